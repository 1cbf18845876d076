//! `warmkit plan`, and the bake that it was about.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::command::{Ended, run};
use super::warmkit::{bake, warmkit};

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
    let mut command = warmkit();
    command.arg("plan").args(arguments).arg("--json").arg("--root").arg(root);
    run(&mut command, Duration::from_secs(60))
}

/// Plans a bake for such hosts and bakes: checks that planning left everything beside the root as it was, and that it
/// told what then happened; gives the plan.
#[track_caller]
pub fn bake_as_planned(arguments: &[&str], hosts: &[&str], root: &Path) -> Value {
    let around = root.ancestors().skip(1).find(|path| path.exists()).unwrap();
    let before = tree(around);
    let planned = plan(&[arguments, hosts].concat(), root);
    assert_eq!(tree(around), before, "planning changed something");
    let code = planned.status.code();
    let planned: Value = planned.stdout.parse().unwrap_or_else(|e| panic!("{e}: {}", planned.stderr));
    assert_eq!((code, &planned["refusals"]), (Some(0), &Value::Array(Vec::new())), "{planned:#}");

    let baked = bake(&[arguments, &["--json"]].concat(), root).expect_success("bake");
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
