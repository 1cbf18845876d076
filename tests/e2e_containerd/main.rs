//! Roots of a containerd worker: layers go through the API of a real containerd, and a real buildkitd builds on them.
#![cfg(feature = "containerd")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod api;
mod disk;
mod failures;
mod killed;
mod kinds;
mod neighbours;
mod pending;
mod planned;
mod reads;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
mod there;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::warmkit::containerd::Lease;
use support::cases::{Case, Origin, assert_only_changed, assert_warm, export_tar};
use support::command::{Ended, run};
use support::containerd::{Containerd, Release};
use support::foreseen::bake_at_as_planned;
use support::warmkit::warmkit;
use support::{Daemon, Tools, World, tools};

/// `warmkit <arguments>`, of a root whose layers are in the containerd at an address.
fn on(containerd: &str, root: &Path, arguments: &[&str]) -> Command {
    let mut command = warmkit();
    command.args(arguments).arg("--for").arg(format!("containerd:{containerd}")).arg("--root").arg(root);
    command
}

fn bake(origin: &Origin, containerd: &str, root: &Path) -> Ended {
    let arguments = ["bake", &origin.cache, "--keys-from", &origin.image];
    run(&mut on(containerd, root, &arguments), Duration::from_secs(120))
}

/// A build whose cache is in a registry, and a containerd that is to keep it.
struct Bed {
    containerd: Containerd,
    world: World,
    case: Case,
    origin: Origin,
}

impl Bed {
    /// `None` when something is missing, after it said so.
    #[track_caller]
    fn new() -> Option<Self> {
        Self::of(tools::NEWEST, Release::Debian, "app")
    }

    /// Of a release of `BuildKit`, one of containerd, and a case.
    #[track_caller]
    fn of(release: &str, kept_by: Release, name: &'static str) -> Option<Self> {
        Some(Self::with(Tools::find(release)?, Containerd::start_of(kept_by)?, name))
    }

    #[track_caller]
    fn with(tools: Tools, containerd: Containerd, name: &'static str) -> Self {
        let world = World::start(tools);
        let case = world.case(name);
        let origin = world.export(&case);
        Self { containerd, world, case, origin }
    }

    /// A directory for one more root; nothing is made.
    fn root(&self, name: &str) -> PathBuf {
        self.world.root(&self.case, name)
    }

    fn bake(&self, root: &Path) -> Ended {
        bake(&self.origin, &self.containerd.address(), root)
    }

    /// A root that was baked.
    #[track_caller]
    fn baked(&self, name: &str) -> PathBuf {
        let root = self.root(name);
        self.bake(&root).expect_success("bake");
        assert_settled(&self.containerd);
        root
    }

    #[track_caller]
    fn start(&self, root: &Path) -> Daemon {
        let Self { containerd, world, .. } = self;
        Daemon::start_on_containerd(&world.tools, root, &world.registry, &containerd.worker())
    }

    /// What it has; nothing is half there.
    #[track_caller]
    fn kept(&self) -> Kept {
        assert_eq!(self.containerd.ingests(), Vec::<PathBuf>::new());
        (self.containerd.blobs(), self.containerd.snapshots())
    }
}

/// Asserts that nothing of a bake is held for a while only: before a daemon starts, which deletes what is labelled so.
#[track_caller]
fn assert_settled(containerd: &Containerd) {
    let client = containerd.client("buildkit");
    let leases = client.leases().unwrap();
    let is_ours = |lease: &Lease| lease.temporary && lease.id.starts_with("warmkit-");
    assert!(!leases.is_empty() && !leases.iter().any(is_ours), "{leases:?}");
    assert_eq!(client.leased().unwrap().pending, []);
}

/// Names of blobs, and ids of snapshots.
type Kept = (Vec<String>, Vec<String>);

/// What is left of what there was. A daemon's history has blobs of its own.
fn left(kept: &Kept, containerd: &Containerd) -> Kept {
    let both =
        |kept: &[String], now: &[String]| kept.iter().filter(|name| now.contains(name)).cloned().collect();
    (both(&kept.0, &containerd.blobs()), both(&kept.1, &containerd.snapshots()))
}

/// A plan and the bake as planned, first build, changed source, containerd's collection and restart, another start, prune:
/// as on any other root, and with the tar of a native import.
fn warms(release: &str, kept_by: Release, name: &'static str) {
    let Some(mut bed) = Bed::of(release, kept_by, name) else { return };
    // What the same daemon makes of the cache by itself.
    let Some(beside) = Containerd::start_of(kept_by) else { return };
    let imported = bed.root("imported");
    let daemon =
        Daemon::start_on_containerd(&bed.world.tools, &imported, &bed.world.registry, &beside.worker());
    let request = bed.case.request.import_from(&bed.origin.cache);
    let (_, native) = export_tar(&daemon, &request, &bed.root("imported.tar"));
    let told = daemon.disk_usage();
    daemon.stop();
    reads::assert_sound(&beside, &imported);
    reads::assert_sizes(&beside, &imported, &told);
    drop(beside);

    let root = bed.root("root");
    let target = format!("containerd:{}", bed.containerd.address());
    let place = ["--for", &target, "--root", root.to_str().unwrap()];
    bake_at_as_planned(&[&bed.origin.cache, "--keys-from", &bed.origin.image], &[], &place, &root);
    assert_settled(&bed.containerd);
    let kept = bed.kept();
    assert!(!kept.0.is_empty() && !kept.1.is_empty(), "{kept:?}");
    reads::assert_sound(&bed.containerd, &root);
    reads::assert_same_as(&bed.containerd, &root, &bed.origin);

    let inspected = reads::sizes(&bed.containerd, &root);
    let daemon = bed.start(&root);
    assert_eq!(reads::told(&daemon.disk_usage()), inspected);
    let (outcome, tar) = export_tar(&daemon, &bed.case.request, &bed.root("root.tar"));
    assert_warm(&outcome, &bed.origin);
    assert_eq!(tar, native, "the tar differs from that of a natively imported root");
    assert_only_changed(&daemon.build(&bed.case.changed), &bed.origin);
    daemon.stop();
    reads::assert_sound(&bed.containerd, &root);

    let Some(collected) = bed.containerd.ctr("buildkit", &["content", "prune", "references"]) else { return };
    assert!(!kept.0.iter().any(|blob| collected.contains(blob)), "{collected}");
    bed.containerd.restart();
    bed.containerd.collect();
    assert_eq!(left(&kept, &bed.containerd), kept, "something was collected");
    let daemon = bed.start(&root);
    let (outcome, tar) = export_tar(&daemon, &bed.case.request, &bed.root("again.tar"));
    assert_warm(&outcome, &bed.origin);
    assert_eq!(tar, native, "after a restart of containerd");
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), [], "after prune --all");
    assert_eq!(daemon.logged_errors(), [""; 0], "{}", daemon.log());
    daemon.stop();
    bed.containerd.collect();
    assert_eq!(left(&kept, &bed.containerd).0, [""; 0], "after prune --all");
    assert_eq!(bed.containerd.snapshots(), [""; 0], "after prune --all");
}

#[test]
fn containerd_worker() {
    warms(tools::NEWEST, Release::Debian, "whiteouts");
}

#[test]
fn containerd_worker_of_a_newer_containerd() {
    warms(tools::NEWEST, Release::Newer, "app");
}

#[test]
fn containerd_worker_of_an_older_release() {
    warms("v0.17.3", Release::Debian, "app");
}
