//! What a kill leaves between two commits of a daemon, made by hand: what verify says of it, and what a real daemon
//! then does.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::bolt_tree::{self, Node, Tree};
use support::command::run;
use support::skip::skip;
use support::tools::on_path;
use support::warmkit::judge;
use support::{BuildRequest, Daemon, Registry, Scratch, Tools, demo, tools};
use warmkit::verify::{self, FindingKind, Report};

/// A key that no snapshot has.
const NOBODY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaa";

/// A root, and its snapshotter.
struct Root {
    path: PathBuf,
    snapshotter: &'static str,
}

impl Root {
    fn worker(&self, path: &str) -> PathBuf {
        self.path.join(format!("runc-{}", self.snapshotter)).join(path)
    }

    /// Changes what containerd's metadata has of snapshots.
    fn edit(&self, change: impl FnOnce(&mut Tree)) {
        bolt_tree::edit(&self.worker("containerdmeta.db"), |tree| {
            change(tree.at(&["v1", "buildkit", "snapshots", self.snapshotter]));
        });
    }

    /// The number that the next snapshot's directory gets.
    fn next_directory(&self) -> (u64, PathBuf) {
        let mut store = bolt_tree::read(&self.worker("snapshots/metadata.db"));
        let next = store.at(&["v1", "snapshots"]).sequence + 1;
        (next, self.worker(&format!("snapshots/snapshots/{next}")))
    }

    fn judge(&self) -> Report {
        judge(&self.path).unwrap()
    }
}

/// An active snapshot of containerd's metadata that the snapshotter has no longer; gives the number of its name.
fn add_active(snapshots: &mut Tree) -> u64 {
    let base = snapshots.names().into_iter().find(|key| !has_parent(snapshots, key)).unwrap();
    let mut active = snapshots.at(&[&base]).clone();
    active.entries.remove(&b"children"[..]);
    snapshots.sequence += 1;
    active.put("name", format!("buildkit/{}/{NOBODY}", snapshots.sequence));
    snapshots.entries.insert(NOBODY.into(), Node::Bucket(active));
    snapshots.sequence
}

fn has_parent(snapshots: &mut Tree, key: &str) -> bool {
    snapshots.at(&[key]).entries.contains_key(&b"parent"[..])
}

/// Killed after the snapshotter had committed, and before containerd's metadata had.
fn in_a_commit(root: &Root) {
    let mut number = 0;
    root.edit(|snapshots| number = add_active(snapshots));
    let (next, directory) = root.next_directory();
    bolt_tree::edit(&root.worker("snapshots/metadata.db"), |store| {
        let stored = store.at(&["v1", "snapshots"]);
        let base = stored.names().into_iter().find(|name| !has_parent(stored, name)).unwrap();
        let mut committed = stored.at(&[&base]).clone();
        let [id] = committed.value("id")[..] else { panic!("one byte") };
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(directory.with_file_name(id.to_string())).arg(&directory);
        run(&mut copy, Duration::from_secs(60)).expect_success("cp");
        committed.put("id", [u8::try_from(next).unwrap()]);
        stored.sequence = next;
        let name = format!("buildkit/{}/committed", number + 1);
        stored.entries.insert(name.into(), Node::Bucket(committed));
    });
}

/// The same, and killed once more: after the next daemon had used the number, and before it had collected.
fn in_a_commit_and_again(root: &Root) {
    root.edit(|snapshots| {
        add_active(snapshots);
        snapshots.sequence += 1;
    });
}

/// Killed after the snapshotter had put a new directory in its place, and before it had committed.
fn in_a_prepare(root: &Root) {
    let (_, directory) = root.next_directory();
    let tree = if root.snapshotter == "native" { directory } else { directory.join("fs") };
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("file"), "").unwrap();
}

/// Copies a baked root, leaves it in a state, and says what verify says of it.
#[track_caller]
fn left(good: &Root, scratch: &Scratch, state: impl Fn(&Root), name: &str) -> (Root, Report) {
    let root = Root { path: scratch.join(name), snapshotter: good.snapshotter };
    let mut copy = Command::new("cp");
    run(copy.arg("-a").arg(&good.path).arg(&root.path), Duration::from_secs(60)).expect_success("cp");
    state(&root);
    let report = root.judge();
    (root, report)
}

fn kinds(findings: &[verify::Finding]) -> BTreeSet<FindingKind> {
    findings.iter().map(|finding| finding.kind).collect()
}

fn recovers(snapshotter: &'static str) {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    if snapshotter == "fuse-overlayfs" && on_path(snapshotter).is_none() {
        return skip("no fuse-overlayfs in $PATH");
    }
    let scratch = Scratch::new();
    let registry = Registry::start(&tools);
    let good = Root { path: scratch.join("good"), snapshotter };
    demo::bake(&["--snapshotter", snapshotter], &good.path);
    let context = demo::context(&scratch);
    fs::write(context.join("src/main.txt"), "changed\n").unwrap();
    let mut request = BuildRequest::new(&context);
    request.platform = Some("linux/amd64".into());
    let start = |root: &Path| Daemon::start_on(&tools, root, &registry, snapshotter);

    for (name, state) in
        [("in-a-commit", in_a_commit as fn(&Root)), ("in-a-commit-and-again", in_a_commit_and_again)]
    {
        let (root, report) = left(&good, &scratch, state, name);
        assert_eq!(report.findings, [], "{name}");
        assert!(
            kinds(&report.notes).contains(&FindingKind::SnapshotUnfinished),
            "{name}: {:#?}",
            report.notes
        );
        let daemon = start(&root.path);
        let outcome = daemon.build(&request);
        assert!(outcome.not_cached().len() < demo::STEPS, "{}", outcome.log);
        // As when a record is deleted: what nothing holds goes.
        daemon.prune_all();
        assert_eq!(daemon.logged_errors(), [""; 0], "{name}");
        daemon.stop();
        let report = root.judge();
        assert_eq!(report.findings, [], "{name}, and pruned");
        assert!(
            !kinds(&report.notes).contains(&FindingKind::SnapshotUnfinished),
            "{name}: {:#?}",
            report.notes
        );
    }

    let (root, report) = left(&good, &scratch, in_a_prepare, "in-a-prepare");
    assert_eq!(kinds(&report.findings), BTreeSet::from([FindingKind::SnapshotDirectoryTaken]));
    let daemon = start(&root.path);
    let error = daemon.try_build(&request).unwrap_err();
    assert!(error.contains("failed to rename"), "{error}");
    let outcome = daemon.build(&request);
    assert!(outcome.not_cached().len() < demo::STEPS, "{}", outcome.log);
    daemon.stop();
    assert_eq!(root.judge().findings, [], "after a build that failed, and one that did not");
}

#[test]
fn overlayfs() {
    recovers("overlayfs");
}

#[test]
fn fuse_overlayfs() {
    recovers("fuse-overlayfs");
}

#[test]
fn native() {
    recovers("native");
}
