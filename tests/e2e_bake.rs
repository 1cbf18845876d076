//! The promise: a daemon that starts on a baked root prints CACHED for every step, imports
//! nothing and extracts nothing, and behaves afterwards as on a root of its own.
//!
//! Each test takes one BuildKit release and one Dockerfile of tests/dockerfiles, has a real daemon
//! build it and export its cache, bakes that cache, and starts the same release on what was baked.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::cases::{Case, Origin, assert_cached, assert_warm, cache_to, export_tar};
use support::daemon::{DATABASES, bytes_in_snapshots, check_databases};
use support::foreseen::bake_as_planned;
use support::warmkit::{bake, bake_at, verify};
use support::{Daemon, Tools, World};
use warmkit::digest::Digest;

fn proves(release: &str, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);
    assert_eq!(origin.outcome.not_cached(), origin.outcome.names(), "the origin builds from nothing");
    let native = world.native_import(&case, &origin.cache);
    // What daemons write themselves is healthy, as built and as imported.
    verify(&[], &origin.root).expect_success("verify of the builder's root");
    verify(&["--read-data"], &world.root(&case, "native")).expect_success("verify of an imported root");

    keyed(&world, &case, &origin, native);
    unkeyed(&world, &case, &origin, native);
    reproducible(&world, &case, &origin);
}

/// A bake with keys: nothing is left to do for a build.
fn keyed(world: &World, case: &Case, origin: &Origin, native: Digest) {
    let root = world.root(case, "keyed");
    let planned = bake_as_planned(&[&origin.cache, "--keys-from", &origin.image], &[], &root);
    assert_eq!(planned["tars_known"], planned["layers"], "a registry gives the ends of layers");
    check_databases(&world.tools, &root);
    verify(&["--read-data"], &root).expect_success("verify of a baked root");
    let snapshots = bytes_in_snapshots(&root);

    let daemon = world.daemon(&root);
    accounts_for_every_layer(world, case, &daemon, snapshots);
    // What no lease holds is gone after this.
    daemon.collect();

    let (outcome, tar) = export_tar(&daemon, &case.request, &world.root(case, "keyed.tar"));
    assert_warm(&outcome, origin);
    assert_eq!(tar, native, "the tar differs from that of a natively imported root");

    let again = world.registry.reference(case.name, "again");
    let outcome = daemon.build(&case.request.export_to(&cache_to(&again, "")));
    assert_warm(&outcome, origin);
    let (expected, found) = (manifest(world, case, "cache"), manifest(world, case, "again"));
    assert_eq!(found, expected, "the cache exported from the baked root");

    let outcome = daemon.build(&case.changed);
    let ran: BTreeSet<String> = outcome.not_cached().into_iter().map(str::to_owned).collect();
    assert_eq!(
        ran, origin.changed,
        "the steps that ran after a change, here and on the builder\n{}",
        outcome.log
    );
    assert_eq!((outcome.imports, outcome.extractions), (0, 0), "after a change\n{}", outcome.log);
    if case.name == "app" {
        // Spelled out once, so that the comparison above compares what it should.
        let of = |stage: &str| ran.iter().filter(|s| s.starts_with(stage)).count();
        assert_eq!((of("[build "), of("[stage-4 "), ran.len()), (3, 2, 5), "{ran:?}");
        new_step(&daemon, case);
    }

    daemon.stop();
    check_databases(&world.tools, &root);

    let daemon = world.daemon(&root);
    assert_warm(&daemon.build(&case.request), origin);
    prunes_empty(&daemon, &root);
    daemon.stop();
    check_databases(&world.tools, &root);
}

/// A bake without keys: the layers are there, and a build that imports the cache finds them.
fn unkeyed(world: &World, case: &Case, origin: &Origin, native: Digest) {
    let root = world.root(case, "unkeyed");
    let refused = bake(&[&origin.cache], &root);
    assert_eq!(refused.status.code(), Some(6), "a bake without keys\n{}", refused.stderr);
    assert!(!root.exists(), "a refused bake left {}", root.display());

    bake(&[&origin.cache, "--allow-unkeyed"], &root).expect_success("bake --allow-unkeyed");
    check_databases(&world.tools, &root);
    let daemon = world.daemon(&root);
    let request = case.request.import_from(&origin.cache);
    let (outcome, tar) = export_tar(&daemon, &request, &world.root(case, "unkeyed.tar"));
    assert_cached(&outcome, origin);
    let moved = (outcome.imports, outcome.downloads, outcome.extractions);
    assert_eq!(moved, (1, 0, 0), "(imports, downloads, extractions)\n{}", outcome.log);
    assert_eq!(tar, native, "the tar differs from that of a natively imported root");
    if case.name == "app" {
        new_step(&daemon, case);
    }
    prunes_empty(&daemon, &root);
    daemon.stop();
    check_databases(&world.tools, &root);
}

/// Two bakes of one cache, with one time given: the same databases, byte for byte.
fn reproducible(world: &World, case: &Case, origin: &Origin) {
    let roots = ["first", "second"].map(|name| world.root(case, name));
    for root in &roots {
        bake_at(1_700_000_000, &[&origin.cache, "--keys-from", &origin.image], root).expect_success("bake");
    }
    for name in DATABASES.into_iter().chain(["runc-overlayfs/workerid"]) {
        let [first, second] = roots.each_ref().map(|root| fs::read(root.join(name)).unwrap());
        assert!(first == second, "{name} differs between two bakes of one cache");
    }
}

/// `du` shows each layer of the cache as a record, with what it takes on the disk, and says what it is.
fn accounts_for_every_layer(world: &World, case: &Case, daemon: &Daemon, snapshots: u64) {
    let manifest: serde_json::Value = serde_json::from_slice(&manifest(world, case, "cache")).unwrap();
    let blobs: Vec<u64> =
        manifest["layers"].as_array().unwrap().iter().map(|l| l["size"].as_u64().unwrap()).collect();
    let layers = blobs.len();
    let records = daemon.disk_usage();
    let verbose = daemon.du_verbose();
    assert_eq!(records.len(), layers, "one record for each layer\n{verbose}");
    let sizes: u64 = records.iter().map(|r| u64::try_from(r.size).unwrap()).sum();
    // A blob counts for each record that has it: `--link` makes two of one.
    let expected = snapshots + blobs.iter().sum::<u64>();
    assert_eq!(sizes, expected, "the sizes in du, and on the disk\n{verbose}");
    let blank = records.iter().filter(|r| r.description.is_empty() || r.mutable || r.size == 0);
    assert_eq!(blank.count(), 0, "records without description or size\n{verbose}");
    assert_eq!(verbose.matches("Size:").count(), layers, "{verbose}");
}

/// A step that no cache has, on the base image of the case: the base is there.
fn new_step(daemon: &Daemon, case: &Case) {
    let outcome = daemon.build(&case.request.dockerfile("new-step.Dockerfile"));
    assert_eq!(outcome.ran().len(), 1, "{}", outcome.log);
    assert_eq!((outcome.downloads, outcome.extractions), (0, 0), "of the base\n{}", outcome.log);
}

/// Everything can be deleted again, and the daemon has nothing to complain about.
fn prunes_empty(daemon: &Daemon, root: &Path) {
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), [], "after prune --all");
    // containerd collects what no lease holds, soon after.
    let snapshots = root.join("runc-overlayfs/snapshots/snapshots");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while fs::read_dir(&snapshots).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < deadline, "snapshots remain after prune --all\n{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(daemon.logged_errors(), [""; 0], "{}", daemon.log());
}

fn manifest(world: &World, case: &Case, tag: &str) -> Vec<u8> {
    world.registry.manifest(case.name, tag).0
}

macro_rules! proofs {
    ($($release:ident $version:literal)*) => {$(
        mod $release {
            #[test]
            fn app() {
                super::proves($version, "app");
            }

            #[test]
            fn everything() {
                super::proves($version, "everything");
            }

            #[test]
            fn whiteouts() {
                super::proves($version, "whiteouts");
            }

            #[test]
            fn many() {
                super::proves($version, "many");
            }
        }
    )*};
}

proofs! {
    v0_34_2 "v0.34.2"
    v0_33_1 "v0.33.1"
    v0_17_3 "v0.17.3"
}
