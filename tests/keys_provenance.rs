//! The promise: the provenance of a build (`mode=max`) gives the key of every record with inputs, for
//! each release of `BuildKit` that is supported, and a wrong candidate proves nothing.
//!
//! fixtures/provenance holds what real daemons wrote; README.md there says how.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use warmkit::digest::RecordDigest;
use warmkit::keys::{Candidates, Keyring, provenance};
use warmkit::oci::Platform;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/provenance")
}

/// The digests of the records with inputs, and of the roots.
fn records(name: &str) -> (Vec<RecordDigest>, Vec<RecordDigest>) {
    let config = fs::read(fixtures().join(format!("{name}.cacheconfig.json"))).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let (with_inputs, roots): (Vec<&Value>, _) =
        config["records"].as_array().unwrap().iter().partition(|record| record.get("inputs").is_some());
    let digest = |record: &Value| record["digest"].as_str().unwrap().parse();
    let with_inputs = with_inputs.into_iter().map(|record| digest(record).unwrap()).collect();
    // v0.12 and v0.17 export a root under a random name for LLB that was built from LLB.
    (with_inputs, roots.into_iter().filter_map(|record| digest(record).ok()).collect())
}

fn json(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(format!("{name}.provenance.json"))).unwrap()
}

fn candidates(name: &str) -> Candidates {
    provenance::candidates(&json(name), &"linux/amd64".parse::<Platform>().unwrap()).unwrap()
}

/// How many records with inputs each build's cache has.
const BUILDS: [(&str, usize); 12] = [
    ("v0.12.5/plain", 8),
    ("v0.12.5/everything", 31),
    ("v0.12.5/llb", 11),
    ("v0.17.3/plain", 8),
    ("v0.17.3/everything", 44),
    ("v0.17.3/llb", 11),
    ("v0.33.1/plain", 8),
    ("v0.33.1/everything", 46),
    ("v0.33.1/llb", 11),
    ("v0.34.2/plain", 8),
    ("v0.34.2/everything", 46),
    ("v0.34.2/llb", 14),
];

#[test]
fn every_record_with_inputs_is_keyed() {
    for (name, count) in BUILDS {
        let (with_inputs, _) = records(name);
        assert_eq!(with_inputs.len(), count, "{name}");
        let keyring = Keyring::prove(&candidates(name), &with_inputs);
        let missing: Vec<_> = with_inputs.iter().filter(|record| keyring.get(record).is_none()).collect();
        assert!(missing.is_empty(), "{name}: {} of {count} without a key: {missing:?}", missing.len());
    }
}

#[test]
fn a_key_hashes_to_its_record() {
    for (name, _) in BUILDS {
        let (with_inputs, roots) = records(name);
        let all: Vec<_> = with_inputs.into_iter().chain(roots).collect();
        let keyring = Keyring::prove(&candidates(name), &all);
        for record in &all {
            if let Some(key) = keyring.get(record) {
                assert_eq!(&key.digest().record_digest(key.output()), record, "{name}");
            }
        }
    }
}

/// What the daemon printed for the build, a line for each step.
fn printed(name: &str) -> Vec<String> {
    let text = fs::read_to_string(fixtures().join(format!("{name}.steps.txt"))).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn steps_are_called_what_the_daemon_printed() {
    for (name, _) in BUILDS.into_iter().filter(|(name, _)| !name.ends_with("llb")) {
        let candidates = candidates(name);
        let named: Vec<&str> = candidates.ops().filter_map(|(_, name)| name).collect();
        let printed = printed(name);
        // v0.12 forgot to count the triggers of a base ("[trig 2/1]"); newer releases count them.
        let miscounted = |step: &str| name.starts_with("v0.12") && step.starts_with("[trig ");
        for step in named.iter().filter(|step| !miscounted(step)) {
            assert!(printed.iter().any(|line| line == step), "{name}: {step} was never printed");
        }
        // Sources, whose records have no operation digest to compute.
        let silent = ["[internal] load", "] FROM "];
        for line in
            printed.iter().filter(|line| !silent.iter().any(|part| line.contains(part)) && !miscounted(line))
        {
            assert!(named.contains(&line.as_str()), "{name}: {line} has no candidate");
        }
    }
}
