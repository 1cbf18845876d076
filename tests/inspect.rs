//! `warmkit inspect` and `warmkit diff` on caches that are made here: what is shared and what has no key is shown,
//! damage is told, thousands of records stay readable.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/handmade.rs"]
mod handmade;
#[path = "support/skip.rs"]
mod skip;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use handmade::{Handmade, write_keys};
use serde_json::Value;

fn warmkit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.env("DOCKER_CONFIG", "/nonexistent").env_remove("REGISTRY_AUTH_FILE");
    command.args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a command prints as JSON, and its exit code.
#[track_caller]
fn json(arguments: &[&str]) -> (Value, i32) {
    let output = warmkit(&[arguments, &["--format", "json"]].concat());
    let value = text(&output.stdout).parse().unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
    (value, output.status.code().unwrap())
}

/// Bakes caches, whether they have keys or not.
#[track_caller]
fn bake(arguments: &[&str], root: &Path) {
    let root = root.to_str().unwrap();
    let output = warmkit(&[&["bake", "--allow-unkeyed", "--root", root], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// A cache of two stages on one base, with a layer that is in both, and what knows the keys of all but one.
struct Shared {
    dir: tempfile::TempDir,
    cache: String,
    keys: String,
}

impl Shared {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Handmade::default();
        let base_layer = cache.layer("base", None);
        let base = cache.record("base", &[], &[base_layer]);
        let one_layer = cache.layer("one", Some(base_layer));
        let one = cache.record("one", &[&[base]], &[one_layer]);
        // Another operation with the same result, and the same layer on another one.
        cache.record("again", &[&[base]], &[one_layer]);
        let lost = cache.layer("lost", Some(base_layer));
        let lost = (cache.record("lost", &[&[base]], &[lost]), lost);
        let repeated = cache.layer("one", Some(lost.1));
        cache.record("on lost", &[&[lost.0]], &[repeated]);
        cache.record("without", &[&[one]], &[]);
        let argument = cache.write(&dir.path().join("cache"));
        let keys = write_keys(&dir.path().join("cache.db"), ["one", "again", "on lost", "without"]);
        Self { dir, cache: argument, keys }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn what_is_shared_and_what_has_no_key_is_told() {
    let shared = Shared::new();
    let (report, code) = json(&["inspect", &shared.cache, "--keys-from", &shared.keys]);
    assert_eq!(code, 0);
    let totals = &report["totals"];
    let of = |name: &str| totals[name].as_u64().unwrap();
    assert_eq!(
        ["records", "layers", "shared_layers", "snapshots", "shared_snapshots"].map(of),
        [4, 3, 1, 4, 0]
    );
    assert_eq!(["keys", "roots", "unkeyed", "without_record"].map(of), [6, 1, 2, 1]);
    let records = report["records"].as_array().unwrap();
    let seen = |record: &Value| {
        let numbers = ["keys", "same_layer"].map(|name| record[name].as_u64().unwrap());
        (record["status"].as_str().unwrap().to_owned(), numbers)
    };
    let mut seen: Vec<_> = records.iter().map(seen).collect();
    seen.sort();
    let expected = [("keyed", [1, 0]), ("keyed", [2, 1]), ("only-inputs", [1, 1]), ("unkeyed", [1, 0])];
    assert_eq!(seen, expected.map(|(status, numbers)| (status.to_owned(), numbers)));

    let table = warmkit(&["inspect", &shared.cache, "--keys-from", &shared.keys]);
    let table = text(&table.stdout);
    for part in ["  none ", "  input missing  ", "(2 keys, layer of 2 records)", "(layer of 2 records)"] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    assert!(table.contains("keys        6: 1 root, 3 keyed, 2 unkeyed; 1 without a record"), "{table}");
    assert!(!table.contains('\u{1b}'), "colours without a terminal");
}

#[test]
fn a_root_is_what_its_cache_is() {
    if !skip::is_root() {
        return;
    }
    let shared = Shared::new();
    let root = shared.path("root");
    bake(&[&shared.cache, "--keys-from", &shared.keys], &root);
    let root = root.to_str().unwrap();
    let keys_from = ["--keys-from", &shared.keys];

    // A bake writes no key that no build finds.
    let (found, code) = json(&[&["diff", root, &shared.cache, "--exit-code"], &keys_from[..]].concat());
    assert_eq!(code, 10);
    assert_eq!((&found["gone"]["records"], &found["added"]["records"]), (&0.into(), &0.into()), "{found:#}");
    assert_eq!((&found["same"]["records"], &found["keys"]["added"]), (&4.into(), &2.into()), "{found:#}");
    let all = write_keys(&shared.path("all.db"), ["one", "again", "lost", "on lost", "without"]);
    let whole = shared.path("whole");
    bake(&[&shared.cache, "--keys-from", &all], &whole);
    let whole = whole.to_str().unwrap();
    for (a, b) in [(whole, shared.cache.as_str()), (&shared.cache, whole), (whole, whole)] {
        let (found, code) = json(&["diff", a, b, "--exit-code", "--keys-from", &all]);
        assert_eq!((code, &found["equal"]), (0, &true.into()), "{found:#}");
        let table = warmkit(&["diff", a, b, "--keys-from", &all]);
        assert!(text(&table.stdout).ends_with("\nno difference\n"), "{}", text(&table.stdout));
    }

    // The records of both have the same ids and parents.
    let ids = |report: &Value| -> Vec<Value> {
        let of = |record: &Value| serde_json::json!([record["id"], record["parents"], record["chain"]]);
        let mut ids: Vec<Value> = report["records"].as_array().unwrap().iter().map(of).collect();
        ids.sort_by_key(ToString::to_string);
        ids
    };
    let (of_root, of_cache) = (json(&["inspect", "--root", whole]).0, json(&["inspect", &shared.cache]).0);
    assert_eq!(ids(&of_root), ids(&of_cache));
}

#[test]
fn what_cannot_be_read_is_told() {
    if !skip::is_root() {
        return;
    }
    let shared = Shared::new();
    let root = shared.path("root");
    bake(&[&shared.cache], &root);
    let path = root.to_str().unwrap();
    let fails = |arguments: &[&str], code: i32, part: &str| {
        let output = warmkit(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(part), "{arguments:?}: {errors}");
    };
    let absent = shared.path("absent");
    fails(&["inspect", "--root", absent.to_str().unwrap()], 1, "cannot open");
    fails(
        &["inspect", "--root", shared.path("cache").to_str().unwrap()],
        5,
        "is no BuildKit state directory",
    );
    // Not even a cache.db makes one.
    fails(&["inspect", "--root", shared.dir.path().to_str().unwrap()], 5, "no worker's directory");
    fails(&["diff", path, "type=local,src=/nonexistent"], 3, "/nonexistent");
    // A name that a registry of this machine would have, did it listen there, and that a directory here has.
    let name = "localhost:1/r1";
    fs::create_dir_all(shared.path(name)).unwrap();
    let mut diff = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    let output = diff.current_dir(shared.dir.path()).args(["diff", name, path]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("a directory localhost:1/r1 is here: write ./localhost:1/r1"), "{said}");
    fails(&["inspect", "--root", path, &shared.cache], 2, "cannot be used with");
    fails(&["inspect"], 2, "required");
    fails(&["diff", path], 2, "required");

    let lock = fs::File::open(root.join("cache.db")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    fails(&["inspect", "--root", path], 7, "holds cache.db locked");
    drop(lock);

    let database = root.join("runc-overlayfs/metadata_v2.db");
    fs::write(&database, b"no database").unwrap();
    fails(
        &["inspect", "--root", path],
        5,
        "is damaged, `warmkit verify` has the details: runc-overlayfs/metadata_v2.db",
    );
    fails(&["diff", &shared.cache, path], 5, "is damaged");
}

/// Thousands of records in as many lines as one reads.
#[test]
fn of_many_records_the_largest_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut cache = Handmade::default();
    let base = cache.layer("base", None);
    for stage in 0..12 {
        let mut top = base;
        for step in 0..100 {
            top = cache.layer(&format!("stage {stage} step {step}"), Some(top));
        }
        cache.record(&format!("stage {stage}"), &[], &[top]);
    }
    let cache = cache.write(&dir.path().join("cache"));
    let lines = |arguments: &[&str]| {
        let output = warmkit(&[&["inspect", &cache], arguments].concat());
        text(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let short = lines(&[]);
    assert!((100..200).contains(&short.len()), "{short:#?}");
    let told = "these are the 100 largest of 1201 records; --largest N or --all shows more";
    assert!(short.iter().any(|line| line == told), "{short:#?}");
    // What is shown and what is said to be left out are all there is.
    let counted = |line: &String| match line.split_once("… ") {
        Some((_, rest)) => rest.split(' ').next().unwrap().parse().unwrap(),
        None => usize::from(line.contains(" layer sha256:")),
    };
    assert_eq!(short.iter().map(counted).sum::<usize>(), 1201, "{short:#?}");
    let none = lines(&["--largest", "0"]);
    assert!(none.iter().any(|line| line.ends_with("… 1201 records")), "{none:#?}");
    for whole in [lines(&["--all"]), lines(&["--largest", "1201"])] {
        assert_eq!(whole.iter().map(counted).sum::<usize>(), 1201);
        assert!(!whole.iter().any(|line| line.contains('…') || line.contains("largest")), "{whole:#?}");
    }
    let (report, _) = json(&["inspect", &cache]);
    assert_eq!(report["records"].as_array().unwrap().len(), 1201);
}
