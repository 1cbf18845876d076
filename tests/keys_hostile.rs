//! The promise: a key source that is damaged, hostile or something else costs candidates or ends in a clear
//! error; it never crashes the program, never takes its memory, and never gives a wrong key.
//!
//! `tests/keys_properties.rs` has odd values of every kind; here are whole documents and databases.

#![allow(clippy::unwrap_used)] // a test that cannot make its input has failed

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use warmkit::bolt::{Bucket, PageSize};
use warmkit::digest::{OpDigest, RecordDigest};
use warmkit::keys::{Candidates, Error, Keyring, harvest, provenance};
use warmkit::oci::Platform;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/provenance").join(name)
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// The digests of the records with inputs, each once.
fn records(build: &str) -> Vec<RecordDigest> {
    let config = fs::read(fixture(&format!("{build}.cacheconfig.json"))).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let records = config["records"].as_array().unwrap().iter();
    let with_inputs = records.filter(|record| record.get("inputs").is_some());
    let digests: BTreeSet<&str> = with_inputs.map(|record| record["digest"].as_str().unwrap()).collect();
    digests.into_iter().map(|digest| digest.parse().unwrap()).collect()
}

fn statement(build: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(&format!("{build}.provenance.json"))).unwrap()).unwrap()
}

/// What is proven of the records: the key of each.
fn keys(candidates: &Candidates, records: &[RecordDigest]) -> BTreeMap<String, (OpDigest, i64)> {
    let keyring = Keyring::prove(candidates, records);
    let key = |record: &RecordDigest| {
        let key = keyring.get(record)?;
        Some((record.to_string(), (key.digest().clone(), key.output())))
    };
    records.iter().filter_map(key).collect()
}

fn read(document: &Value) -> Result<Candidates, Error> {
    provenance::candidates(&serde_json::to_vec(document).unwrap(), &amd64())
}

/// The operations of a statement in SLSA 1.
fn operations(statement: &mut Value) -> &mut Vec<Value> {
    let config = &mut statement["predicate"]["buildDefinition"]["internalParameters"]["buildConfig"];
    config["llbDefinition"].as_array_mut().unwrap()
}

#[test]
fn inputs_that_go_in_circles_change_nothing() {
    for build in ["v0.34.2/plain", "v0.34.2/everything", "v0.34.2/names"] {
        let records = records(build);
        let mut statement = statement(build);
        let whole = keys(&read(&statement).unwrap(), &records);
        let count = operations(&mut statement).len();
        for circle in 0..3 {
            for (i, operation) in operations(&mut statement).iter_mut().enumerate() {
                for input in operation["inputs"].as_array_mut().into_iter().flatten() {
                    *input = match circle {
                        0 => format!("step{i}:0"),
                        1 => format!("step{}:0", (i + 1) % count),
                        _ => "step99999999999999999999:-1".to_owned(),
                    }
                    .into();
                }
            }
            assert_eq!(keys(&read(&statement).unwrap(), &records), whole, "{build}, circle {circle}");
        }
    }
}

#[test]
fn stages_that_go_in_circles_have_names_or_none() {
    use base64::Engine as _;
    let texts = [
        "FROM a AS a\nRUN x\n",
        "FROM b AS a\nRUN x\nFROM a AS b\nRUN y\n",
        "FROM a AS a\nONBUILD RUN x\nFROM a AS a\nONBUILD ONBUILD RUN y\nFROM a AS a\nRUN z\n",
        "FROM 0\nFROM 1\nCOPY --from=9 a b\nCOPY --from=1 a b\n",
    ];
    for text in texts {
        let mut statement = statement("v0.34.2/plain");
        let records = records("v0.34.2/plain");
        let info =
            &mut statement["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"];
        assert!(info[0]["data"].is_string());
        info[0]["data"] = base64::engine::general_purpose::STANDARD.encode(text).into();
        assert_eq!(keys(&read(&statement).unwrap(), &records).len(), records.len(), "{text}");
    }
}

#[test]
fn bytes_that_are_no_base64_cost_what_they_stood_for() {
    fn spoil(value: &mut Value) -> usize {
        match value {
            Value::Object(fields) => {
                let data = fields.get_mut("data").filter(|data| data.is_string());
                let spoilt = usize::from(data.map(|data| *data = "§ no base64 §".into()).is_some());
                spoilt + fields.values_mut().map(spoil).sum::<usize>()
            }
            Value::Array(items) => items.iter_mut().map(spoil).sum(),
            _ => 0,
        }
    }
    let build = "v0.34.2/everything";
    let records = records(build);
    let mut statement = statement(build);
    let whole = keys(&read(&statement).unwrap(), &records);
    let spoilt = spoil(&mut statement);
    // The Dockerfile, and files that are in it.
    assert!(spoilt > 1);
    let candidates = read(&statement).unwrap();
    let left = keys(&candidates, &records);
    assert!(left.len() + spoilt > whole.len(), "{} of {}", left.len(), whole.len());
    assert!(left.iter().all(|(record, key)| whole[record] == *key));
    // No Dockerfile, no names but those that do not come from it.
    let names: Vec<&str> = candidates.ops().filter_map(|(_, name)| name).collect();
    assert!(names.iter().all(|name| name.starts_with("[internal] ")), "{names:?}");
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| "{\"def\":".repeat(depth) + "0" + &"}".repeat(depth);
    for (depth, fits) in [(90, true), (1_000, false), (1_000_000, false)] {
        for kind in ["build", "exec", "passthrough"] {
            let text = format!(
                r#"{{"buildConfig":{{"llbDefinition":[{{"op":{{"Op":{{"{kind}":{}}}}}}}]}}}}"#,
                nested(depth)
            );
            match provenance::candidates(text.as_bytes(), &amd64()) {
                Ok(_) => assert!(fits, "{kind} {depth}"),
                Err(error) => {
                    assert!(!fits && matches!(error, Error::Json { .. }), "{kind} {depth}: {error}");
                }
            }
        }
    }
}

/// A document of about `size` bytes, of these operations over and over.
fn repeated(operation: &str, size: usize) -> String {
    let count = size / (operation.len() + 1);
    format!(r#"{{"buildConfig":{{"llbDefinition":[{}]}}}}"#, vec![operation; count].join(","))
}

#[test]
fn a_million_operations_are_refused() {
    let step = r#"{"id":"step1","op":{"Op":{"exec":{"meta":{"args":["sh"],"env":["A=b"],"cwd":"/"}}}},"inputs":["step0:0"]}"#;
    let error = |text: &str| provenance::candidates(text.as_bytes(), &amd64()).unwrap_err();
    // As long as real ones: too long. As short as can be: too many.
    let text = repeated(step, step.len() * 1_000_000);
    assert!(text.len() > 100 << 20);
    let long = error(&text);
    assert!(matches!(long, Error::TooLarge { size, .. } if size == text.len() as u64), "{long}");
    let many = error(&repeated(r#"{"op":{}}"#, 20_000_000));
    assert!(matches!(many, Error::TooManyValues { .. }), "{many}");
    assert_eq!(many.to_string(), "the provenance holds more than 3145728 values; no build has that many");
}

#[test]
fn as_many_steps_as_a_builder_takes_are_read() {
    // 16 MiB of LLB, the most that BuildKit takes, are some tens of thousands of real operations.
    let mut statement = statement("v0.34.2/everything");
    let records = records("v0.34.2/everything");
    let whole = keys(&read(&statement).unwrap(), &records);
    let some = operations(&mut statement).clone();
    let all: Vec<Value> = some.iter().cycle().take(40_000).cloned().collect();
    *operations(&mut statement) = all;
    assert_eq!(keys(&read(&statement).unwrap(), &records), whole);
}

/// Documents that are short in JSON and long in memory, read with no more than 3 GiB of it.
#[test]
fn memory_is_bounded() {
    let values = provenance::MAX_VALUES;
    let mounts = format!(r#"{{"op":{{"Op":{{"exec":{{"mounts":[{}]}}}}}}}}"#, vec!["{}"; 15_000].join(","));
    let actions = format!(r#"{{"op":{{"Op":{{"file":{{"actions":[{}]}}}}}}}}"#, vec!["{}"; 15_000].join(","));
    // Each `{}` counts for itself, and for what could be in it.
    let times = values / 2 / 15_100;
    let documents = [
        ("objects", repeated(r#"{"":0}"#, values / 2 * 7 - 1_000)),
        ("mounts", repeated(&mounts, (mounts.len() + 1) * times)),
        ("actions", repeated(&actions, (actions.len() + 1) * times)),
    ];
    let dir = TempDir::new().unwrap();
    for (what, text) in documents {
        let file = dir.path().join("provenance.json");
        fs::write(&file, text).unwrap();
        let script = r#"ulimit -v 3145728; exec "$@""#;
        let output = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_warmkit"), "keys", "check"])
            .arg("type=local,src=fixtures/demo/cache")
            .arg(format!("--keys-from=type=provenance,src={}", file.display()))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        // Read, and of no use for this cache.
        assert_eq!(output.status.code(), Some(6), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A real `cache.db`, and the keys that it has.
struct Database {
    bytes: Vec<u8>,
    records: Vec<RecordDigest>,
    keys: BTreeMap<String, (OpDigest, i64)>,
}

const PAGE: usize = 4096;

static DATABASE: LazyLock<Database> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    let file = fs::File::open(fixture("v0.12.5/everything.cache.db.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    let records = records("v0.12.5/everything");
    let keys = keys(&harvested(&bytes).unwrap(), &records);
    assert_eq!(keys.len(), records.len());
    Database { bytes, records, keys }
});

fn harvested(bytes: &[u8]) -> Result<Candidates, Error> {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("cache.db");
    fs::write(&file, bytes).unwrap();
    harvest::candidates(&file)
}

/// Reads a damaged copy: how many keys it still has, none of them wrong. An error is none.
fn left(bytes: &[u8]) -> usize {
    match harvested(bytes) {
        Ok(candidates) => {
            let found = keys(&candidates, &DATABASE.records);
            assert!(found.iter().all(|(record, key)| DATABASE.keys[record] == *key), "a wrong key");
            found.len()
        }
        Err(error) => {
            assert!(
                matches!(error, Error::NotBolt { .. } | Error::NotACacheDb { .. }),
                "another error than that it is none: {error}"
            );
            0
        }
    }
}

#[test]
fn a_file_cut_anywhere_has_fewer_keys() {
    let bytes = &DATABASE.bytes;
    let whole = DATABASE.keys.len();
    assert!(bytes.len() / PAGE > 10);
    let mut before = 0;
    for pages in 0..=bytes.len() / PAGE {
        for at in [pages * PAGE, pages * PAGE + 1, pages * PAGE + PAGE / 2] {
            let found = left(&bytes[..at.min(bytes.len())]);
            assert!(found <= whole);
            before = before.max(found);
        }
    }
    assert_eq!(before, whole, "the whole file has all of them");
    // A copy that was torn at its end still has something.
    assert!(left(&bytes[..bytes.len() - PAGE]) > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn flipped_bits_cost_keys_at_most(flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..8_u8), 1..200)) {
        let mut bytes = DATABASE.bytes.clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        left(&bytes);
    }

    /// The first pages steer all reading: flips there do the most harm.
    #[test]
    fn flipped_bits_in_one_page_cost_keys_at_most(page in any::<proptest::sample::Index>(), flips in proptest::collection::vec((0..PAGE, 0..8_u8), 1..20)) {
        let mut bytes = DATABASE.bytes.clone();
        let start = page.index(bytes.len() / PAGE) * PAGE;
        for (at, bit) in flips {
            bytes[start + at] ^= 1 << bit;
        }
        left(&bytes);
    }

    /// A copy of a live file has pages of different times.
    #[test]
    fn pages_in_the_wrong_place_cost_keys_at_most(moves in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>()), 1..8)) {
        let mut bytes = DATABASE.bytes.clone();
        let pages = bytes.len() / PAGE;
        for (from, to) in moves {
            let (from, to) = (from.index(pages) * PAGE, to.index(pages) * PAGE);
            bytes.copy_within(from..from + PAGE, to);
        }
        left(&bytes);
    }

    /// Numbers that are as large as can be: counts, sizes, offsets and page ids.
    #[test]
    fn huge_numbers_cost_keys_at_most(at in any::<proptest::sample::Index>(), width in 1..9_usize, value in any::<u64>()) {
        let mut bytes = DATABASE.bytes.clone();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + width].copy_from_slice(&(value | 1 << 63).to_be_bytes()[..width]);
        left(&bytes);
    }
}

#[test]
fn links_of_any_content_are_read() {
    let mut root = Bucket::new();
    let links = root.bucket(*b"_links");
    let long = format!(r#"{{"Digest":"{}"}}@key"#, "a".repeat(30_000));
    let deep = format!(r#"{{"Digest":{}}}"#, "[".repeat(30_000));
    let contents: [&[u8]; 8] = [
        b"{",
        b"null@key",
        br#"{"Digest":5}@key"#,
        br#"{"Digest":null,"Input":"x"}@key"#,
        b"{\"Digest\":\"\xff\xfe\"}@key",
        br#"{"Digest":"sha256:../../etc/passwd","Digest":"sha256:0"}@"#,
        long.as_bytes(),
        deep.as_bytes(),
    ];
    for (i, content) in contents.iter().enumerate() {
        links.bucket(format!("key {i}").into_bytes()).put(*content, *b"");
    }
    // Not one of them is a bucket, as real ones are.
    links.put(*b"plain", *b"value");
    let candidates = harvested(&root.to_bytes(PageSize::default()).unwrap()).unwrap();
    assert!(candidates.len() <= contents.len());
    assert_eq!(keys(&candidates, &DATABASE.records), BTreeMap::new());
}

#[test]
fn files_of_other_applications_are_refused_by_name() {
    let mut other = Bucket::new();
    other.bucket(*b"_main").bucket(*b"record").put(*b"key", *b"\"Digest\":\"sha256:0\"");
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("metadata_v2.db", other.to_bytes(PageSize::default()).unwrap(), "is a bolt database, but neither"),
        ("other.sqlite", [&b"SQLite format 3\0"[..], &[0; 8192]].concat(), "is no solver database"),
        ("cache.db.gz", fs::read(fixture("v0.34.2/plain.cache.db.gz")).unwrap(), "is no solver database"),
        ("zeros", vec![0; 1 << 20], "is no solver database"),
        ("ones", vec![0xff; 1 << 20], "is no solver database"),
        ("meta-only", DATABASE.bytes[..PAGE].to_vec(), "is no solver database"),
    ];
    let dir = TempDir::new().unwrap();
    for (name, bytes, expected) in cases {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let message = harvest::candidates(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains(name), "{name}: {message}");
    }
}

#[test]
fn what_is_no_file_is_not_read() {
    // It has no end.
    let error = harvest::candidates(Path::new("/dev/zero")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /dev/zero: it is no regular file");
    // Nor has this one, as good as.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache.db");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = harvest::candidates(&path).unwrap_err().to_string();
    assert!(error.ends_with("it has 1099511627776 bytes, and no more than 4294967296 are read"), "{error}");
    let error = provenance::read(Path::new("/dev/zero"), &amd64()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let document = json!({"buildConfig": {"llbDefinition": []}});
    assert_eq!(read(&document).unwrap().len(), 0);
}
