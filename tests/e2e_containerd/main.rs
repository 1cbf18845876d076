//! Roots of a containerd worker: layers go through the API of a real containerd, and a real buildkitd builds on them.
#![cfg(feature = "containerd")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use support::cases::{Origin, assert_warm, export_tar};
use support::command::{Ended, run};
use support::containerd::Containerd;
use support::warmkit::warmkit;
use support::{Daemon, Tools, World, tools};
use warmkit::containerd::Error;
use warmkit::digest::Digest;

fn bake(origin: &Origin, containerd: &str, root: &Path) -> Ended {
    let mut command = warmkit();
    command.args(["bake", &origin.cache, "--keys-from", &origin.image]);
    command.arg("--for").arg(format!("containerd:{containerd}")).arg("--root").arg(root);
    run(&mut command, Duration::from_secs(120))
}

/// Names of blobs, and ids of snapshots.
type Kept = (Vec<String>, Vec<String>);

/// What is left of what there was. A daemon's history has blobs of its own.
fn left(kept: &Kept, containerd: &Containerd) -> Kept {
    let both =
        |kept: &[String], now: &[String]| kept.iter().filter(|name| now.contains(name)).cloned().collect();
    (both(&kept.0, &containerd.blobs()), both(&kept.1, &containerd.snapshots()))
}

/// First build, changed source, containerd's collection and restart, another start, prune: as on any other root.
fn warms(release: &str, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    let Some(mut containerd) = Containerd::start() else { return };
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);
    let start = |containerd: &Containerd, root: &Path| {
        Daemon::start_on_containerd(&world.tools, root, &world.registry, &containerd.address())
    };

    // What the same daemon makes of the cache by itself.
    let Some(beside) = Containerd::start() else { return };
    let daemon = start(&beside, &world.root(&case, "imported"));
    let request = case.request.import_from(&origin.cache);
    let (_, native) = export_tar(&daemon, &request, &world.root(&case, "imported.tar"));
    daemon.stop();
    drop(beside);

    let root = world.root(&case, "root");
    bake(&origin, &containerd.address(), &root).expect_success("bake");
    let kept = (containerd.blobs(), containerd.snapshots());
    assert!(!kept.0.is_empty() && !kept.1.is_empty(), "{kept:?}");

    let daemon = start(&containerd, &root);
    let (outcome, tar) = export_tar(&daemon, &case.request, &world.root(&case, "root.tar"));
    assert_warm(&outcome, &origin);
    assert_eq!(tar, native, "the tar differs from that of a natively imported root");
    let outcome = daemon.build(&case.changed);
    assert_eq!(outcome.not_cached(), origin.changed.iter().map(String::as_str).collect(), "{}", outcome.log);
    assert_eq!((outcome.imports, outcome.extractions), (0, 0), "after a change\n{}", outcome.log);
    daemon.stop();

    containerd.collect();
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
    warms(tools::NEWEST, "whiteouts");
}

#[test]
fn containerd_worker_of_an_older_release() {
    warms("v0.17.3", "app");
}

/// A blob that was left off is gone on with, one of another namespace is shared, and wrong bytes do not stay.
#[test]
fn blobs_are_ingested_once() {
    let Some(containerd) = Containerd::start() else { return };
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let labels = |name: &str| BTreeMap::from([(name.to_owned(), "value".to_owned())]);
    let bytes: Vec<u8> =
        (0..(5_u32 << 19) + 7).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
    let (digest, size) = (Digest::of(&bytes).to_string(), bytes.len() as u64);

    let mut one = containerd.client("one");
    one.work_under("work", until).unwrap();
    let mut ingest = one.write(&digest, size).unwrap().unwrap();
    ingest.write_all(&bytes[..2 << 20]).unwrap();
    drop(ingest);
    let mut ingest = one.write(&digest, size).unwrap().unwrap();
    assert!(!ingest.is_whole());
    // What is there is not written again, or these would be other bytes.
    let mut rest = bytes.clone();
    rest[..2 << 20].fill(0);
    ingest.write_all(&rest).unwrap();
    ingest.finish(&labels("one")).unwrap();
    assert!(one.write(&digest, size).unwrap().is_none());
    one.label(&digest, &labels("more")).unwrap();
    let mut read = Vec::new();
    one.read(&digest).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == bytes);

    let mut two = containerd.client("two");
    two.work_under("work", until).unwrap();
    assert_eq!(two.labels(&digest).unwrap(), None);
    let ingest = two.write(&digest, size).unwrap().unwrap();
    assert!(ingest.is_whole());
    ingest.finish(&labels("two")).unwrap();
    assert_eq!(two.labels(&digest).unwrap(), Some(labels("two")));
    let both: BTreeMap<_, _> = labels("one").into_iter().chain(labels("more")).collect();
    assert_eq!(one.labels(&digest).unwrap(), Some(both));

    let wrong = Digest::of(b"right").to_string();
    let mut ingest = one.write(&wrong, 5).unwrap().unwrap();
    ingest.write_all(b"wrong").unwrap();
    let refused = ingest.finish(&BTreeMap::new()).unwrap_err();
    assert!(matches!(refused, Error::Call { action: "commit blob", .. }), "{refused}");
    let mut ingest = one.write(&wrong, 5).unwrap().unwrap();
    ingest.write_all(b"wro").unwrap();
    ingest.again();
    ingest.write_all(b"right").unwrap();
    ingest.finish(&BTreeMap::new()).unwrap();

    // Each namespace by itself: what only one of them held goes with its lease.
    assert_eq!(containerd.blobs().len(), 2);
    one.delete_lease("work", true).unwrap();
    assert_eq!(containerd.blobs().len(), 1);
    assert_eq!(two.labels(&digest).unwrap(), Some(labels("two")));
    two.delete_lease("work", true).unwrap();
    two.delete_lease("work", true).unwrap();
    assert_eq!(containerd.blobs(), [""; 0]);
}

/// The lease of a bake that was killed ends by itself.
#[test]
fn what_a_killed_bake_left_is_collected() {
    let Some(containerd) = Containerd::start() else { return };
    for (hours, left) in [(1, 1), (-1, 0)] {
        let mut client = containerd.client("buildkit");
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let lease = format!("warmkit{hours}");
        client.work_under(&lease, until).unwrap();
        let mut ingest = client.write(&Digest::of(b"layer").to_string(), 5).unwrap().unwrap();
        ingest.write_all(b"layer").unwrap();
        ingest.finish(&BTreeMap::new()).unwrap();
        drop(client);
        containerd.collect();
        assert_eq!(containerd.blobs().len(), left, "{hours} h");
        containerd.client("buildkit").delete_lease(&lease, true).unwrap();
    }
}

#[test]
fn a_snapshotter_that_is_not_there_is_named() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client("buildkit");
    assert!(!client.has_snapshot("overlayfs", "none").unwrap());
    let error = client.has_snapshot("fuse-overlayfs", "none").unwrap_err();
    assert!(matches!(&error, Error::NoSnapshotter { name } if name == "fuse-overlayfs"), "{error}");
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
    let daemon = Daemon::start_on_containerd(&world.tools, &again, &world.registry, &address);
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
