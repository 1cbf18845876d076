//! Layers of other snapshotters than overlayfs: what differs from their blobs, and from the layers below, is found.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::command::run;
use support::files::Scratch;
use support::warmkit::judge;
use support::{demo, skip};
use warmkit::verify::FindingKind;

/// The directories of files of all snapshots, lowest first.
fn uppers(root: &Path, snapshotter: &str) -> Vec<PathBuf> {
    let snapshots = root.join(format!("runc-{snapshotter}/snapshots/snapshots"));
    let mut numbers: Vec<u64> = fs::read_dir(&snapshots)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    let upper = |number: u64| {
        let directory = snapshots.join(number.to_string());
        if snapshotter == "native" { directory } else { directory.join("fs") }
    };
    numbers.into_iter().map(upper).collect()
}

/// A regular file with something in it, below a directory.
fn file(directory: &Path) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            return file(&entry.path());
        }
        (metadata.is_file() && metadata.len() > 0).then(|| entry.path())
    })
}

/// Other bytes, and all else as it was.
fn flip(path: &Path) {
    let (mut bytes, modified) = (fs::read(path).unwrap(), fs::metadata(path).unwrap().modified().unwrap());
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_times(FileTimes::new().set_modified(modified))
        .unwrap();
}

type Damage = (&'static str, FindingKind, fn(&Path, &[PathBuf]));

/// Each is done to a file of the last snapshot that has one.
const DAMAGES: [Damage; 6] = [
    ("other bytes", FindingKind::LayerEntryContent, |path, _| flip(path)),
    ("removed", FindingKind::LayerEntryMissing, |path, _| fs::remove_file(path).unwrap()),
    ("added", FindingKind::LayerEntryExtra, |path, _| {
        fs::write(path.with_file_name("nobody has it"), "").unwrap();
    }),
    ("mode", FindingKind::LayerEntryMode, |path, _| {
        fs::set_permissions(path, Permissions::from_mode(0o4711)).unwrap();
    }),
    ("owner", FindingKind::LayerEntryOwner, |path, _| chown(path, Some(12345), None).unwrap()),
    ("time", FindingKind::LayerEntryTime, |path, _| {
        let times = FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::open(path).unwrap().set_times(times).unwrap();
    }),
];

/// What marks hide, and what they fail to hide.
const OF_MARKS: [Damage; 2] = [
    ("hidden", FindingKind::LayerEntryMissing, |_, uppers| {
        let (lowest, last) = (&uppers[0], uppers.last().unwrap());
        let names = fs::read_dir(lowest).unwrap().map(|entry| entry.unwrap().file_name());
        let free = names.map(|name| last.join(name)).find(|path| !path.exists()).unwrap();
        mknodat(CWD, free, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }),
    ("shadowed", FindingKind::LayerEntryContent, |_, uppers| {
        let (lowest, last) = (&uppers[0], uppers.last().unwrap());
        let lower = file(lowest).unwrap();
        let upper = last.join(lower.strip_prefix(lowest).unwrap());
        fs::create_dir_all(upper.parent().unwrap()).unwrap();
        let mut copy = std::process::Command::new("cp");
        run(copy.arg("-a").arg(&lower).arg(&upper), std::time::Duration::from_secs(10)).expect_success("cp");
        flip(&upper);
    }),
];

fn finds(snapshotter: &str, damages: &[Damage]) {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("only root bakes");
    }
    let scratch = Scratch::new();
    let root = scratch.join("root");
    demo::bake(&["--snapshotter", snapshotter], &root);
    let report = judge(&root).unwrap();
    assert_eq!(report.findings, [], "{snapshotter}");
    assert!(report.counts.layers_compared > 3, "{:?}", report.counts);

    for (name, kind, damage) in damages {
        let copy = scratch.join("copy");
        let _ = fs::remove_dir_all(&copy);
        let mut command = std::process::Command::new("cp");
        run(command.arg("-a").arg(&root).arg(&copy), std::time::Duration::from_secs(30)).expect_success("cp");
        let uppers = uppers(&copy, snapshotter);
        let path = uppers.iter().rev().find_map(|upper| file(upper)).unwrap();
        damage(&path, &uppers);
        let found: BTreeSet<String> =
            judge(&copy).unwrap().findings.iter().map(|finding| finding.kind.to_string()).collect();
        assert!(found.contains(&kind.to_string()), "{snapshotter}, {name}: {found:?}");
    }
}

#[test]
fn native_trees_are_compared_with_those_below() {
    finds("native", &DAMAGES);
}

#[test]
fn what_fuse_overlayfs_shows_is_compared() {
    finds("fuse-overlayfs", &DAMAGES);
    finds("fuse-overlayfs", &OF_MARKS);
}
