//! The promise: the provenance of a build (`mode=max`) gives the key of every record with inputs, for
//! each release of `BuildKit` that is supported, and a wrong candidate proves nothing.
//!
//! fixtures/provenance holds what real daemons wrote; README.md there says how.

#![allow(clippy::unwrap_used)] // a test that cannot read its fixture has failed

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use warmkit::digest::{Digest, RecordDigest};
use warmkit::keys::images::image_keys;
use warmkit::keys::{Candidates, Error, Keyring, attestation, provenance};
use warmkit::oci::{Document, Platform};

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

fn statement(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(format!("{name}.provenance.json"))).unwrap()
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn candidates(name: &str) -> Candidates {
    provenance::candidates(&statement(name), &amd64()).unwrap()
}

/// How many of the records the candidates prove.
fn proven(candidates: &Candidates, records: &[RecordDigest]) -> usize {
    let keyring = Keyring::prove(candidates, records);
    records.iter().filter(|record| keyring.get(record).is_some()).count()
}

/// How many records with inputs each build's cache has.
const BUILDS: [(&str, usize); 13] = [
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
    ("v0.34.2/permissions", 2),
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

/// The images of each build, and that the key of each is one that the daemon exported.
#[test]
fn images_are_found_and_their_keys_are_those_of_the_daemon() {
    let multi = ["v0.34.2/multi.linux-amd64-v2", "v0.34.2/multi.linux-arm64"];
    let mut seen = BTreeSet::new();
    for name in BUILDS.iter().map(|(name, _)| *name).chain(multi) {
        let (build, _) = name.split_once(".linux").unwrap_or((name, ""));
        let (_, roots) = records(build);
        let candidates = candidates(name);
        let mut images = 0;
        for image in candidates.images() {
            let digest: Digest = image.reference.digest().unwrap().parse().unwrap();
            let keys = image_keys(&digest, &image.platform, None);
            assert!(keys.iter().any(|key| roots.contains(key)), "{name}: {image:?}");
            let tag = image.reference.tag().unwrap();
            seen.insert(format!("{}:{tag} {}", image.reference.repository(), image.platform));
            assert!(!image.frontend, "{name}: the frontend was the daemon's own");
            if name.contains("multi") {
                assert!(
                    name.ends_with(&image.target.as_ref().unwrap().to_string().replace('/', "-")),
                    "{name}"
                );
            }
            images += 1;
        }
        assert!(images > 0 || name.ends_with("permissions"), "{name}");
        assert_eq!(candidates.local_images().count(), 0, "{name}");
    }
    let expected = ["base:1 linux/amd64", "base:1 linux/amd64/v2", "base:1 linux/arm64"];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
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

/// The blobs of the cache's layers.
fn layers(name: &str) -> Vec<Digest> {
    let config = fs::read(fixtures().join(format!("{name}.cacheconfig.json"))).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let layers = config["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["blob"].as_str().unwrap().parse().unwrap()).collect()
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
        let layers = layers(name);
        let of_layers = layers.iter().filter_map(|layer| candidates.layer_name(layer));
        let named: BTreeSet<&str> = candidates.ops().filter_map(|(_, name)| name).chain(of_layers).collect();
        let printed = printed(name);
        // v0.12 forgot to count the triggers of a base ("[trig 2/1]"), and did not say which line
        // COPY --link stands on.
        let odd = |step: &str| {
            name.starts_with("v0.12") && (step.starts_with("[trig ") || step.contains(" COPY --link "))
        };
        for step in named.iter().filter(|step| !odd(step)) {
            assert!(printed.iter().any(|line| line == step), "{name}: {step} was never printed");
        }
        // Sources have no operation digest to compute.
        let expected = printed.iter().filter(|line| !line.starts_with("[internal] load") && !odd(line));
        for line in expected {
            assert!(named.contains(line.as_str()), "{name}: {line} is not known");
        }
    }
}

#[test]
fn odd_steps_are_called_what_the_daemon_printed() {
    let candidates = candidates("v0.34.2/names");
    let (with_inputs, _) = records("v0.34.2/names");
    let mut named: BTreeSet<&str> = candidates.ops().filter_map(|(_, name)| name).collect();
    let layers = layers("v0.34.2/names");
    named.extend(layers.iter().filter_map(|layer| candidates.layer_name(layer)));
    // The base image has three triggers, of which provenance shows two.
    assert!(named.remove("[stage-1] COPY a$.txt /opt/yes"));
    assert!(named.remove("[stage-1] RUN echo \"yes\""));
    let printed = printed("v0.34.2/names");
    for step in &named {
        assert!(printed.iter().any(|line| line == step), "{step} was never printed");
    }
    // Three times the same at the end: one digest, one empty layer.
    let known = |line: &&String| {
        !["[internal]", "[stage-1 "].iter().any(|part| line.starts_with(part)) && !line.ends_with("RUN true")
    };
    for line in printed.iter().filter(known) {
        assert!(named.contains(line.as_str()), "{line} is not known");
    }
    assert_eq!(proven(&candidates, &with_inputs), with_inputs.len());
}

#[test]
fn every_platform_of_a_build_is_keyed() {
    let (with_inputs, _) = records("v0.34.2/multi");
    assert_eq!(with_inputs.len(), 11);
    let mut candidates = Candidates::new();
    let mut counts = Vec::new();
    for platform in ["linux-amd64", "linux-arm64", "linux-arm-v6", "linux-amd64-v2"] {
        let of_platform = self::candidates(&format!("v0.34.2/multi.{platform}"));
        counts.push(proven(&of_platform, &with_inputs));
        candidates.merge(of_platform);
    }
    assert_eq!(counts, [3, 3, 3, 3]);
    assert_eq!(proven(&candidates, &with_inputs), 11);
}

#[test]
fn records_of_earlier_builds_need_the_provenance_of_those() {
    // The builder had run the same build before, without SOURCE_DATE_EPOCH. Its WORKDIR, which made
    // the same files, stands in the cache as a second way to the steps after it.
    let (with_inputs, _) = records("v0.34.2/epoch");
    let mut candidates = candidates("v0.34.2/epoch");
    assert_eq!((proven(&candidates, &with_inputs), with_inputs.len()), (12, 13));
    candidates.merge(self::candidates("v0.34.2/plain"));
    assert_eq!(proven(&candidates, &with_inputs), 13);
}

#[test]
fn one_byte_off_is_not_keyed() {
    for (name, _) in BUILDS {
        let (with_inputs, _) = records(name);
        let flip = |record: &RecordDigest| {
            let mut text = record.to_string();
            let last = text.pop().unwrap();
            text.push(if last == '0' { '1' } else { '0' });
            text.parse().unwrap()
        };
        let flipped: Vec<RecordDigest> = with_inputs.iter().map(flip).collect();
        assert_eq!(proven(&candidates(name), &flipped), 0, "{name}");
    }
}

#[test]
fn one_byte_off_in_a_step_costs_its_key() {
    for release in ["v0.12.5", "v0.17.3", "v0.33.1", "v0.34.2"] {
        let name = format!("{release}/plain");
        let (with_inputs, _) = records(&name);
        let text = String::from_utf8(statement(&name)).unwrap();
        for (before, after) in
            [("> deps.lock", "> deps.lick"), ("/out/app", "/out/apP"), ("\"/go.mod\"", "\"/go.mud\"")]
        {
            assert!(
                text.contains(before) || text.contains(&before.replace('>', "\\u003e")),
                "{name}: {before}"
            );
            let changed = text
                .replace(before, after)
                .replace(&before.replace('>', "\\u003e"), &after.replace('>', "\\u003e"));
            let candidates = provenance::candidates(changed.as_bytes(), &amd64()).unwrap();
            assert!(proven(&candidates, &with_inputs) < with_inputs.len(), "{name}: {after}");
            assert!(proven(&candidates, &with_inputs) >= with_inputs.len() - 2, "{name}: {after}");
        }
    }
}

#[test]
fn a_symlink_is_not_in_provenance() {
    // The daemon writes an empty action, so its record stays without a key, and no other does.
    let (with_inputs, _) = records("v0.34.2/symlink");
    assert_eq!(with_inputs.len(), 2);
    assert_eq!(proven(&candidates("v0.34.2/symlink"), &with_inputs), 1);
}

#[test]
fn every_wrapping_gives_the_same() {
    for name in ["v0.12.5/plain", "v0.34.2/plain"] {
        let statement: Value = serde_json::from_slice(&statement(name)).unwrap();
        let predicate = &statement["predicate"];
        let envelope = json!({
            "payloadType": "application/vnd.in-toto+json",
            "payload": STANDARD.encode(statement.to_string()),
            "signatures": [{"sig": "bm8="}],
        });
        let wrappings = [
            envelope.clone(),
            json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope}),
            predicate.clone(),
            json!({"containerimage.digest": "sha256:0", "buildx.build.provenance": predicate}),
            json!({
                "buildx.build.provenance/linux/arm64": {"buildType": "x", "builder": {}},
                "buildx.build.provenance/linux/amd64": predicate,
            }),
            json!({"app": {"buildx.build.provenance": predicate, "buildx.build.ref": "x"}, "buildx.bake": []}),
            json!({"app": {"buildx.build.provenance/linux/amd64": predicate}}),
            json!({"SLSA": predicate}),
            json!({"linux/amd64": {"SLSA": predicate}}),
        ];
        let (with_inputs, _) = records(name);
        for wrapping in wrappings {
            let json = serde_json::to_vec(&wrapping).unwrap();
            let candidates = provenance::candidates(&json, &amd64()).unwrap();
            assert_eq!(proven(&candidates, &with_inputs), with_inputs.len(), "{name}: {wrapping:.80}");
        }
    }
}

#[test]
fn spelling_does_not_matter() {
    /// Spells names in another case, and whole numbers as strings.
    fn respell(value: &mut Value, inside_op: bool) {
        match value {
            Value::Object(object) => {
                for (name, mut value) in std::mem::take(object) {
                    respell(&mut value, inside_op || name == "op");
                    object.insert(if inside_op { name.to_uppercase() } else { name }, value);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| respell(item, inside_op)),
            Value::Number(number) if inside_op => *value = number.to_string().into(),
            _ => {}
        }
    }
    for (name, _) in BUILDS.into_iter().filter(|(name, _)| !name.ends_with("llb")) {
        let mut statement: Value = serde_json::from_slice(&statement(name)).unwrap();
        respell(&mut statement, false);
        let json = serde_json::to_vec(&statement).unwrap();
        let (with_inputs, _) = records(name);
        let candidates = provenance::candidates(&json, &amd64()).unwrap();
        assert_eq!(proven(&candidates, &with_inputs), with_inputs.len(), "{name}");
    }
}

#[test]
fn an_image_leads_to_its_provenance() {
    for (name, _) in
        BUILDS.into_iter().filter(|(name, _)| fixtures().join(format!("{name}.index.json")).exists())
    {
        let read = |kind: &str| fs::read(fixtures().join(format!("{name}.{kind}.json"))).unwrap();
        let index = Document::parse(&read("index")).unwrap();
        let [manifest] = attestation::manifests(&index, &amd64()).try_into().unwrap();
        let bytes = read("attestation");
        assert_eq!(manifest.digest, Digest::of(&bytes), "{name}");
        let [layer] = attestation::provenance_layers(&Document::parse(&bytes).unwrap()).try_into().unwrap();
        assert_eq!(layer.digest, Digest::of(&statement(name)), "{name}");
        // Neither document is taken for the other.
        assert!(attestation::provenance_layers(&index).is_empty());
        assert!(attestation::manifests(&Document::parse(&bytes).unwrap(), &amd64()).is_empty());
    }
}

#[test]
fn the_platform_comes_first() {
    let index = fs::read(fixtures().join("v0.34.2/multi.index.json")).unwrap();
    let raw: Value = serde_json::from_slice(&index).unwrap();
    let index = Document::parse(&index).unwrap();
    for platform in ["linux/amd64", "linux/arm64", "linux/arm/v6", "linux/amd64/v2"] {
        let platform: Platform = platform.parse().unwrap();
        let found = attestation::manifests(&index, &platform);
        assert_eq!(found.len(), 4, "{platform}");
        let image = &found[0].annotations["vnd.docker.reference.digest"];
        let images = raw["manifests"].as_array().unwrap();
        let image = images.iter().find(|manifest| manifest["digest"] == **image).unwrap();
        let of = |name: &str| image["platform"][name].as_str().unwrap_or_default();
        assert_eq!(Platform::new(of("os"), of("architecture"), of("variant")), platform);
    }
}

/// What says no platform ran on the builder's own, or on the one that is asked for.
#[test]
fn an_operation_without_a_platform_may_have_run_on_the_builders() {
    let exec = json!({"meta": {"args": ["a"], "cwd": "/"}, "mounts": [{"dest": "/"}]});
    let step = json!({"id": "step0", "op": {"Op": {"exec": exec}}, "inputs": ["step1:0"]});
    let count = |builder: &str| {
        let predicate = json!({
            "buildType": "x", "builder": {}, "buildConfig": {"llbDefinition": [step]},
            "invocation": {"environment": {"platform": builder}},
        });
        let platform: Platform = "linux/amd64".parse().unwrap();
        provenance::candidates(predicate.to_string().as_bytes(), &platform).unwrap().len()
    };
    assert_eq!((count("linux/amd64"), count("linux/arm64")), (1, 2));
}

#[test]
fn says_what_is_wrong() {
    let read = |json: &str| provenance::candidates(json.as_bytes(), &amd64()).unwrap_err();
    assert!(matches!(read("no json"), Error::Json { .. }));
    for other in ["{}", "[]", "1", "{\"config\":{},\"layers\":[]}"] {
        assert!(matches!(read(other), Error::NoProvenance), "{other}");
    }
    let signed = |json: &str| format!("{{\"payloadType\":\"x\",\"payload\":\"{}\"}}", STANDARD.encode(json));
    assert!(matches!(read(&signed("no json")), Error::Json { .. }));
    assert!(matches!(read(&signed("{}")), Error::NoProvenance));
    assert!(matches!(read(&signed(&signed("{}"))), Error::NoProvenance));
    assert!(matches!(read("{\"payloadType\":\"x\",\"payload\":\"§\"}"), Error::NoProvenance));
    let many = format!("[{}0]", "0,".repeat(provenance::MAX_VALUES));
    assert!(matches!(read(&signed(&many)), Error::TooManyValues { .. }));
    // mode=min, in both versions.
    let mut slsa1: Value = serde_json::from_slice(&statement("v0.34.2/plain")).unwrap();
    let parameters = slsa1["predicate"]["buildDefinition"]["internalParameters"].as_object_mut().unwrap();
    parameters.remove("buildConfig").unwrap();
    let mut slsa02: Value = serde_json::from_slice(&statement("v0.17.3/plain")).unwrap();
    slsa02["predicate"].as_object_mut().unwrap().remove("buildConfig").unwrap();
    for min in [slsa1, slsa02] {
        let error = read(&min.to_string());
        assert!(matches!(error, Error::NoOperations));
        assert!(error.to_string().contains("mode=max"), "{error}");
    }
    let missing = provenance::read(Path::new("/nonexistent/meta.json"), &amd64()).unwrap_err();
    assert_eq!(missing.to_string().split(':').next(), Some("cannot read /nonexistent/meta.json"));
}
