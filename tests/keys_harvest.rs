//! The promise: the databases of a builder that ran the build give the key of every record with
//! inputs; damage costs candidates, never more, and what is no such database is refused by its name.

#![allow(clippy::unwrap_used)] // a test that cannot read its fixture has failed

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use warmkit::bolt::{Bucket, PageSize};
use warmkit::digest::RecordDigest;
use warmkit::keys::{Candidates, Keyring, harvest};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/provenance").join(name)
}

fn database(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = fs::File::open(fixture(name)).unwrap();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

fn records(name: &str) -> Vec<RecordDigest> {
    let config: Value = serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap();
    let records = config["records"].as_array().unwrap().iter();
    let with_inputs = records.filter(|record| record.get("inputs").is_some());
    with_inputs.map(|record| record["digest"].as_str().unwrap().parse().unwrap()).collect()
}

/// How many of the records the candidates prove.
fn proven(candidates: &Candidates, records: &[RecordDigest]) -> usize {
    let keyring = Keyring::prove(candidates, records);
    records.iter().filter(|record| keyring.get(record).is_some()).count()
}

fn harvested(bytes: &[u8]) -> Candidates {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("copy.db");
    fs::write(&file, bytes).unwrap();
    harvest::candidates(&file).unwrap()
}

const DATABASES: [(&str, &str); 3] = [
    ("v0.34.2/plain.cache.db.gz", "v0.34.2/plain.cacheconfig.json"),
    ("v0.34.2/plain.cache-debug.db.gz", "v0.34.2/plain.cacheconfig.json"),
    ("v0.12.5/everything.cache.db.gz", "v0.12.5/everything.cacheconfig.json"),
];

#[test]
fn every_record_with_inputs_is_keyed() {
    for (name, config) in DATABASES {
        let records = records(config);
        assert_eq!(proven(&harvested(&database(name)), &records), records.len(), "{name}");
    }
}

#[test]
fn a_root_is_read_by_its_files() {
    let records = records("v0.34.2/plain.cacheconfig.json");
    for names in [&["cache"][..], &["cache-debug"], &["cache", "cache-debug"]] {
        let root = TempDir::new().unwrap();
        for name in names {
            let bytes = database(&format!("v0.34.2/plain.{name}.db.gz"));
            fs::write(root.path().join(format!("{name}.db")), bytes).unwrap();
        }
        let candidates = harvest::candidates(root.path()).unwrap();
        assert_eq!(proven(&candidates, &records), records.len(), "{names:?}");
    }
}

#[test]
fn a_spoiled_file_beside_a_good_one_does_not_matter() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("cache.db"), database("v0.34.2/plain.cache.db.gz")).unwrap();
    fs::write(root.path().join("cache-debug.db"), "no database").unwrap();
    let records = records("v0.34.2/plain.cacheconfig.json");
    assert_eq!(proven(&harvest::candidates(root.path()).unwrap(), &records), records.len());
}

#[test]
fn damage_costs_candidates_at_most() {
    const PAGE: usize = 4096;
    for (name, config) in DATABASES {
        let (bytes, records) = (database(name), records(config));
        let mut lost = 0;
        for page in 2..bytes.len() / PAGE {
            let mut torn = bytes.clone();
            torn[page * PAGE..(page + 1) * PAGE].fill(0xff);
            lost += records.len() - proven(&harvested(&torn), &records);
        }
        // A link stands on one or two pages, so most of them survive each time.
        let pages = bytes.len() / PAGE - 2;
        assert!(lost < records.len() * pages / 4, "{name}: {lost} keys lost over {pages} pages");
        let half = harvested(&bytes[..bytes.len() / 2]);
        assert!(proven(&half, &records) <= records.len(), "{name}");
    }
}

#[test]
fn torn_meta_pages_are_passed_over() {
    for (name, config) in DATABASES {
        let (mut bytes, records) = (database(name), records(config));
        bytes[16 + 56] ^= 1;
        assert_eq!(proven(&harvested(&bytes), &records), records.len(), "{name}: one");
        bytes[4096 + 16 + 56] ^= 1;
        assert_eq!(proven(&harvested(&bytes), &records), records.len(), "{name}: both");
    }
}

#[test]
fn says_what_is_wrong() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("text"), "{\"Digest\":\"sha256:0\"}").unwrap();
    fs::write(path("empty"), "").unwrap();
    let mut root = Bucket::new();
    root.bucket(*b"v1");
    fs::write(path("other.db"), root.to_bytes(PageSize::default()).unwrap()).unwrap();
    let cases = [
        ("text", "is no solver database that can be read"),
        ("empty", "is no solver database that can be read"),
        ("other.db", "neither cache.db (it has no bucket _links) nor cache-debug.db (byhash)"),
        ("", "holds neither cache.db nor cache-debug.db"),
        ("missing", "cannot read"),
    ];
    for (name, expected) in cases {
        let message = harvest::candidates(&path(name)).unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
        assert!(message.contains(dir.path().to_str().unwrap()), "{name}: {message}");
    }
}
