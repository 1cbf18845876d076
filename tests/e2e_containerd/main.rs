//! Roots of a containerd worker: layers go through the API of a real containerd, and a real buildkitd builds on them.
#![cfg(feature = "containerd")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod api;
mod killed;
mod kinds;
mod planned;
mod reads;
mod refusals;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::cases::{Origin, assert_warm, export_tar};
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

/// Names of blobs, and ids of snapshots.
type Kept = (Vec<String>, Vec<String>);

/// What is left of what there was. A daemon's history has blobs of its own.
fn left(kept: &Kept, containerd: &Containerd) -> Kept {
    let both =
        |kept: &[String], now: &[String]| kept.iter().filter(|name| now.contains(name)).cloned().collect();
    (both(&kept.0, &containerd.blobs()), both(&kept.1, &containerd.snapshots()))
}

/// A plan and the bake as planned, first build, changed source, containerd's collection and restart, another start, prune: as on any other root.
fn warms(release: &str, kept_by: Release, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    let Some(mut containerd) = Containerd::start_of(kept_by) else { return };
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);
    let start = |containerd: &Containerd, root: &Path| {
        Daemon::start_on_containerd(&world.tools, root, &world.registry, &containerd.worker())
    };

    // What the same daemon makes of the cache by itself.
    let Some(beside) = Containerd::start_of(kept_by) else { return };
    let imported = world.root(&case, "imported");
    let daemon = start(&beside, &imported);
    let request = case.request.import_from(&origin.cache);
    let (_, native) = export_tar(&daemon, &request, &world.root(&case, "imported.tar"));
    let told = daemon.disk_usage();
    daemon.stop();
    reads::assert_sound(&beside, &imported);
    reads::assert_sizes(&beside, &imported, &told);
    drop(beside);

    let root = world.root(&case, "root");
    let target = format!("containerd:{}", containerd.address());
    let place = ["--for", &target, "--root", root.to_str().unwrap()];
    let planned = bake_at_as_planned(&[&origin.cache, "--keys-from", &origin.image], &[], &place, &root);
    assert_eq!(planned["containerd"]["namespace"], "buildkit");
    let kept = (containerd.blobs(), containerd.snapshots());
    assert!(!kept.0.is_empty() && !kept.1.is_empty(), "{kept:?}");
    reads::assert_sound(&containerd, &root);
    reads::assert_same_as(&containerd, &root, &origin);

    let inspected = reads::sizes(&containerd, &root);
    let daemon = start(&containerd, &root);
    assert_eq!(reads::told(&daemon.disk_usage()), inspected);
    let (outcome, tar) = export_tar(&daemon, &case.request, &world.root(&case, "root.tar"));
    assert_warm(&outcome, &origin);
    assert_eq!(tar, native, "the tar differs from that of a natively imported root");
    let outcome = daemon.build(&case.changed);
    assert_eq!(outcome.not_cached(), origin.changed.iter().map(String::as_str).collect(), "{}", outcome.log);
    assert_eq!((outcome.imports, outcome.extractions), (0, 0), "after a change\n{}", outcome.log);
    daemon.stop();
    reads::assert_sound(&containerd, &root);

    let Some(collected) = containerd.ctr("buildkit", &["content", "prune", "references"]) else { return };
    assert!(!kept.0.iter().any(|blob| collected.contains(blob)), "{collected}");
    containerd.restart();
    containerd.collect();
    assert_eq!(left(&kept, &containerd), kept, "something was collected");
    let daemon = start(&containerd, &root);
    let (outcome, tar) = export_tar(&daemon, &case.request, &world.root(&case, "again.tar"));
    assert_warm(&outcome, &origin);
    assert_eq!(tar, native, "after a restart of containerd");
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), [], "after prune --all");
    assert_eq!(daemon.logged_errors(), [""; 0], "{}", daemon.log());
    daemon.stop();
    containerd.collect();
    assert_eq!(left(&kept, &containerd).0, [""; 0], "after prune --all");
    assert_eq!(containerd.snapshots(), [""; 0], "after prune --all");
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

/// What is there is used, whoever's it is; what fails leaves nothing; and no other namespace changes.
#[test]
fn takes_what_is_there_and_leaves_nothing_behind() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(containerd) = Containerd::start() else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let address = containerd.address();

    let root = world.root(&case, "root");
    bake(&origin, &address, &root).expect_success("bake");
    let kept = (containerd.blobs(), containerd.snapshots());
    let refused = bake(&origin, &address, &root);
    assert_eq!(refused.status.code(), Some(7), "{}", refused.stderr);

    // The same again: nothing new is made.
    let again = world.root(&case, "again");
    bake(&origin, &address, &again).expect_success("bake beside the first");
    assert_eq!((containerd.blobs(), containerd.snapshots()), kept);
    for file in ["cache.db", "containerd-overlayfs/metadata_v2.db", "containerd-overlayfs/workerid"] {
        assert!(again.join(file).is_file(), "{file}");
    }
    let daemon = Daemon::start_on_containerd(&world.tools, &again, &world.registry, &containerd.worker());
    assert_warm(&daemon.build(&case.request), &origin);
    daemon.prune_all();
    daemon.stop();
    containerd.collect();
    assert_eq!(left(&kept, &containerd).0, [""; 0], "after prune --all");
    assert_eq!(containerd.snapshots(), [""; 0], "after prune --all");

    // A layer that the registry has lost: what came before it is collected.
    let (manifest, _) = world.registry.manifest(case.name, "cache");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let smallest = manifest["layers"].as_array().unwrap().iter().min_by_key(|layer| layer["size"].as_u64());
    world.registry.lose_blob(case.name, smallest.unwrap()["digest"].as_str().unwrap());
    let failed = bake(&origin, &address, &world.root(&case, "failed"));
    assert_eq!(failed.status.code(), Some(3), "{}", failed.stderr);
    assert!(!world.root(&case, "failed").exists());
    containerd.collect();
    assert_eq!(left(&kept, &containerd).0, [""; 0], "after a bake that failed");
    assert_eq!(containerd.snapshots(), [""; 0], "after a bake that failed");
}
