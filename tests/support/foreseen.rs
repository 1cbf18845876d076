//! `warmkit plan`, and the bake that it was about.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::command::{Ended, run};
use super::warmkit::warmkit;

/// What a bake does exactly as planned.
const EXACT: [&str; 13] = [
    "root",
    "caches",
    "missing",
    "keys_from",
    "images",
    "images_skipped",
    "records",
    "left_out",
    "keyed",
    "unkeyed",
    "layers",
    "snapshots",
    "bytes_down",
];

/// Runs `warmkit plan <arguments> --root <root> --json`.
#[track_caller]
pub fn plan(arguments: &[&str], root: &Path) -> Ended {
    of("plan", arguments, &["--root", root.to_str().unwrap()])
}

/// Runs `warmkit <command> <arguments> <place> --json`.
#[track_caller]
fn of(command: &str, arguments: &[&str], place: &[&str]) -> Ended {
    let mut all = warmkit();
    all.arg(command).args(arguments).arg("--json").args(place);
    run(&mut all, Duration::from_secs(180))
}

/// Plans a bake for such hosts and bakes: checks that planning left everything beside the root as it was, and that it
/// told what then happened; gives the plan.
#[track_caller]
pub fn bake_as_planned(arguments: &[&str], hosts: &[&str], root: &Path) -> Value {
    bake_at_as_planned(arguments, hosts, &["--root", root.to_str().unwrap()], root)
}

/// As [`bake_as_planned`], where `place` says to both commands where the root is.
#[track_caller]
pub fn bake_at_as_planned(arguments: &[&str], hosts: &[&str], place: &[&str], root: &Path) -> Value {
    let around = root.ancestors().skip(1).find(|path| path.exists()).unwrap();
    let before = tree(around);
    let planned = of("plan", &[arguments, hosts].concat(), place);
    assert_eq!(tree(around), before, "planning changed something");
    let code = planned.status.code();
    let planned: Value = planned.stdout.parse().unwrap_or_else(|e| panic!("{e}: {}", planned.stderr));
    assert_eq!((code, &planned["refusals"]), (Some(0), &Value::Array(Vec::new())), "{planned:#}");

    let baked = of("bake", arguments, place).expect_success("bake");
    let baked: Value = baked.stdout.parse().unwrap();
    for member in EXACT {
        assert_eq!(planned[member], baked[member], "{member}");
    }
    assert_within(&planned["bytes_on_disk"], baked["bytes_on_disk"].as_u64().unwrap(), "bytes");
    assert_within(&planned["inodes"], inodes(root), "inodes");
    planned
}

#[track_caller]
fn assert_within(planned: &Value, found: u64, what: &str) {
    let [least, most] = ["at_least", "up_to"].map(|limit| planned[limit].as_u64().unwrap());
    assert!((least..=most).contains(&found), "{found} {what} where {planned} were planned");
}

/// Every path below a directory, with what tells that it was changed.
pub fn tree(directory: &Path) -> BTreeSet<(String, u64, i64, i64)> {
    let mut found = BTreeSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert((path.display().to_string(), meta.ino(), meta.ctime(), meta.ctime_nsec()));
    }
    found
}

/// How many inodes a directory and all below it are.
fn inodes(directory: &Path) -> u64 {
    let inodes: BTreeSet<u64> = tree(directory).into_iter().map(|(_, inode, ..)| inode).collect();
    inodes.len() as u64
}
