//! Several caches in one root: each build is as warm as on a root of its own, every layer is fetched and
//! unpacked once, and the order in which the caches are named changes nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use support::cases::{Case, Origin, assert_warm, cache_to};
use support::daemon::{DATABASES, check_databases};
use support::handmade::{Handmade, blob_path, write_keys};
use support::moto::Moto;
use support::skip::is_root;
use support::warmkit::{bake, bake_at, verify};
use support::{BuildRequest, Daemon, Scratch, Tools, World, tools};

const EPOCH: u64 = 1_700_000_000;

/// Bakes `caches` with `keys`; gives the report.
#[track_caller]
fn bake_all(caches: &[&str], keys: &[&str], root: &Path) -> Value {
    let keys = keys.iter().flat_map(|keys| ["--keys-from", keys]);
    let arguments: Vec<&str> = caches.iter().copied().chain(keys).chain(["--json"]).collect();
    let ended = bake_at(EPOCH, &arguments, root).expect_success(&format!("bake {arguments:?}"));
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Asserts that two roots have the same databases, byte for byte, and the same files.
#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    for name in DATABASES.into_iter().chain(["runc-overlayfs/workerid"]) {
        let [a, b] = [one, other].map(|root| fs::read(root.join(name)).unwrap());
        assert!(a == b, "{name} differs between {} and {}", one.display(), other.display());
    }
    assert_eq!(files(one), files(other));
}

/// The paths below a root.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Builds on a root that was baked, to a tar, and asserts that nothing was left to do.
#[track_caller]
fn assert_builds_warm(world: &World, root: &Path, builds: &[(&BuildRequest, &Origin)]) {
    check_databases(&world.tools, root);
    verify(&["--read-data"], root).expect_success("verify of a baked root");
    let daemon = world.daemon(root);
    for (request, origin) in builds {
        // The tar reads every layer of the result.
        assert_warm(&daemon.build(&request.tar(&root.with_extension("tar"))), origin);
    }
    assert_eq!(daemon.logged_errors(), [""; 0]);
    daemon.stop();
}

/// What a fresh builder makes of a request, with cache and image pushed under `tag`.
fn export(world: &World, case: &Case, request: &BuildRequest, tag: &str, options: &str) -> Origin {
    let case = Case { name: case.name, request: request.clone(), changed: request.clone() };
    world.export_as(&case, tag, options)
}

/// A repository with the caches of two branches, which differ in one source file, each built on a builder of
/// its own, so that equal steps have different layers too. And the same cache twice.
#[test]
fn two_branches() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let main = export(&world, &case, &case.request, "main", "");
    let branch = export(&world, &case, &case.changed, "branch", "");
    let root = |name: &str| world.root(&case, name);

    let keys = [main.image.as_str(), &branch.image];
    let alone = bake_all(&[&main.cache], &keys[..1], &root("alone"));
    let both = bake_all(&[&main.cache, &branch.cache], &keys, &root("both"));
    bake_all(&[&branch.cache, &main.cache], &[keys[1], keys[0]], &root("turned"));
    assert_same(&root("both"), &root("turned"));
    let (one, all) = (&alone["records"], &both["records"]);
    assert!(all.as_u64() > one.as_u64(), "{all} records with the branch, {one} without");
    let only: Vec<u64> =
        both["keys_from"].as_array().unwrap().iter().map(|s| s["only"].as_u64().unwrap()).collect();
    assert_eq!(only, [0, 0], "the operations of both branches are the same");

    bake_all(&[&main.cache, &main.cache], &keys[..1], &root("twice"));
    assert_same(&root("alone"), &root("twice"));
    assert_builds_warm(&world, &root("both"), &[(&case.request, &main), (&case.changed, &branch)]);
}

/// Two repositories whose builds stand on one base image; with three caches and in every order.
#[test]
fn repositories_that_share_a_base() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let (app, whiteouts) = (world.case("app"), world.case("whiteouts"));
    let (one, two) = (world.export(&app), world.export(&whiteouts));
    let three = export(&world, &app, &app.changed, "changed", "");
    let caches = [&one.cache, &two.cache, &three.cache];
    let keys = [one.image.as_str(), &two.image];

    let layers = |at: usize| {
        let report = bake_all(&[caches[at]], &keys, &world.root(&app, &format!("alone-{at}")));
        report["layers"].as_u64().unwrap()
    };
    let apart: u64 = (0..3).map(layers).sum();
    let first = world.root(&app, "order-0");
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (at, order) in orders.into_iter().enumerate() {
        let root = world.root(&app, &format!("order-{at}"));
        let report = bake_all(&order.map(|at| caches[at].as_str()), &keys, &root);
        let together = report["layers"].as_u64().unwrap();
        assert!(together < apart, "{together} layers together, {apart} apart");
        assert_same(&first, &root);
    }
    let builds = [(&app.request, &one), (&whiteouts.request, &two), (&app.changed, &three)];
    assert_builds_warm(&world, &first, &builds);
}

/// One build exported with gzip and with zstd: blobs of both, each directory once.
#[test]
fn two_compressions_of_one_build() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let gzip = world.export(&case);
    let zstd = world.registry.reference(case.name, "zstd");
    let daemon = world.daemon(&gzip.root);
    let options = ",compression=zstd,force-compression=true";
    assert_warm(&daemon.build(&case.request.export_to(&cache_to(&zstd, options))), &gzip);
    daemon.stop();

    let root = |name: &str| world.root(&case, name);
    let keys = [gzip.image.as_str()];
    let alone = bake_all(&[&gzip.cache], &keys, &root("gzip"));
    let both = bake_all(&[&gzip.cache, &zstd], &keys, &root("both"));
    bake_all(&[&zstd, &gzip.cache], &keys, &root("turned"));
    assert_same(&root("both"), &root("turned"));
    assert_eq!(both["snapshots"], alone["snapshots"], "a directory for each compression");
    assert!(both["layers"].as_u64() > alone["layers"].as_u64());
    assert_eq!(both["records"], alone["records"]);
    assert_builds_warm(&world, &root("both"), &[(&case.request, &gzip)]);
}

/// One build in a registry, in a folder, in a bucket and in its image: whatever the order, a root of all of them
/// has what that of the registry's cache alone has.
#[test]
fn every_form_of_one_build() {
    let (Some(tools), Some(moto)) = (Tools::find(tools::NEWEST), Moto::start()) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let (folder, inline) = (world.root(&case, "folder"), world.registry.reference(case.name, "inline"));
    let bucket = moto.cache(&moto.key_attributes());
    let daemon = world.daemon(&origin.root);
    for request in [
        case.request.export_to(&format!("type=local,dest={},mode=max", folder.display())),
        case.request.export_to(&format!("{bucket},mode=max")),
        case.request.push(&inline).export_to("type=inline"),
    ] {
        assert_warm(&daemon.build(&request), &origin);
    }
    daemon.stop();

    let folder = format!("type=local,src={}", folder.display());
    let caches = [origin.cache.as_str(), &folder, &bucket, &inline];
    let keys = [origin.image.as_str()];
    let alone = bake_all(&caches[..1], &keys, &world.root(&case, "alone"));
    let root = |at: usize| world.root(&case, &format!("order-{at}"));
    for first in 0..caches.len() {
        let mut order = caches;
        order.rotate_left(first);
        let all = bake_all(&order, &keys, &root(first));
        for count in ["layers", "snapshots", "bytes_down"] {
            assert_eq!(all[count], alone[count], "{count}");
        }
        assert_same(&root(0), &root(first));
    }
    assert_builds_warm(&world, &root(0), &[(&case.request, &origin)]);
}

/// Caches of the oldest release and of the newest, which speak different dialects, in one root: each release
/// finds on it what it finds on a root of its own cache.
#[test]
fn caches_of_two_releases() {
    let (Some(tools), Some(old)) = (Tools::find(tools::NEWEST), Tools::find("v0.12.5")) else { return };
    let world = World::start(tools);
    let case = world.case("square");
    let newest = world.export(&case);
    let old_root = world.root(&case, "origin-old");
    let [cache, image] = ["old", "old-image"].map(|tag| world.registry.reference(case.name, tag));
    let daemon = Daemon::start(&old, &old_root, &world.registry);
    let outcome = daemon.build(&case.request.push(&image).export_to(&cache_to(&cache, "")));
    daemon.stop();
    let oldest = Origin { cache, image, outcome, changed: BTreeSet::new(), root: old_root };

    let root = |name: &str| world.root(&case, name);
    let keys = [newest.image.as_str(), &oldest.image];
    let both = bake_all(&[&newest.cache, &oldest.cache], &keys, &root("both"));
    bake_all(&[&oldest.cache, &newest.cache], &keys, &root("turned"));
    assert_same(&root("both"), &root("turned"));
    let written_by: Vec<_> = both["caches"].as_array().unwrap().iter().map(|c| &c["written_by"]).collect();
    assert!(written_by[0] != written_by[1], "{written_by:?}");

    assert_builds_warm(&world, &root("both"), &[(&case.request, &newest)]);
    let daemon = Daemon::start(&old, &root("turned"), &world.registry);
    assert_warm(&daemon.build(&case.request.tar(&root("old.tar"))), &oldest);
    assert_eq!(daemon.logged_errors(), [""; 0]);
    daemon.stop();
}

/// A build whose steps give something else each time, on two builders: equal keys lead to two results, and
/// those that are found by the content of another one fit only that of the same builder.
#[test]
fn builds_that_nobody_can_repeat() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let app = world.case("app").request;
    let context = world.scratch.join("random/context");
    fs::create_dir_all(&context).unwrap();
    let dockerfile = "ARG BASE\n\
                      FROM ${BASE} AS base\n\
                      FROM base AS one\n\
                      RUN cat /proc/sys/kernel/random/uuid > /one\n\
                      FROM base AS two\n\
                      RUN cat /proc/sys/kernel/random/uuid > /two\n\
                      FROM base\n\
                      COPY --from=one /one /one\n\
                      COPY --from=two /two /two\n\
                      RUN --mount=from=one,target=/mnt cat /mnt/one /one /two > /all\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let longer = format!("{dockerfile}RUN --mount=from=two,target=/mnt cmp /mnt/two /two\n");
    fs::write(context.join("longer.Dockerfile"), longer).unwrap();
    let request = app.context(&context);
    let case = Case { name: "random", changed: request.clone(), request };
    let [one, two] = ["one", "two"].map(|tag| export(&world, &case, &case.request, tag, ""));
    let root = |name: &str| world.root(&case, name);
    let keys = [one.image.as_str()];
    let all = bake_all(&[&one.cache, &two.cache], &keys, &root("both"));
    bake_all(&[&two.cache, &one.cache], &keys, &root("turned"));
    assert_same(&root("both"), &root("turned"));
    let alone = bake_all(&[&one.cache], &keys, &root("alone"));
    assert!(all["layers"].as_u64() > alone["layers"].as_u64(), "{all:#}");
    assert_builds_warm(&world, &root("both"), &[(&case.request, &one)]);
    // A step more: what it stands on, and what it takes from beside it, are of one builder.
    let daemon = world.daemon(&root("turned"));
    let outcome = daemon.build(&case.request.dockerfile("longer.Dockerfile").tar(&root("longer.tar")));
    assert_eq!(outcome.ran().len(), 1, "{}", outcome.log);
    assert_eq!((outcome.downloads, outcome.extractions), (0, 0), "{}", outcome.log);
    daemon.stop();
}

/// A cache whose records have no results, beside a whole one.
#[test]
fn a_cache_that_brings_nothing() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let mut whole = Handmade::default();
    let (base, top) = (whole.layer("base", None), whole.layer("top", Some(0)));
    let root = whole.record("root", &[], &[base]);
    whole.record("step", &[&[root]], &[top]);
    let mut without_results = Handmade::default();
    let root = without_results.record("root", &[], &[]);
    without_results.record("step", &[&[root]], &[]);
    let caches =
        [whole.write(&scratch.join("whole")), without_results.write(&scratch.join("without-results"))];
    let keys = write_keys(&scratch.join("keys.db"), ["step"]);
    let run = |order: &[usize], root: &str| {
        let order: Vec<&str> = order.iter().map(|&at| caches[at].as_str()).collect();
        bake_all(&order, &[&keys], &scratch.join(root))
    };
    run(&[0], "alone");
    let all = run(&[0, 1], "all");
    assert_eq!((&all["records"], &all["keyed"]), (&Value::from(2), &Value::from(2)));
    run(&[1, 0], "turned");
    for root in ["all", "turned"] {
        assert_same(&scratch.join("alone"), &scratch.join(root));
    }
    // By itself it is a root without layers.
    let report = run(&[1], "only");
    assert_eq!((&report["records"], &report["layers"]), (&Value::from(2), &Value::from(0)));
    verify(&["--read-data"], &scratch.join("only")).expect_success("verify");
}

/// A layer that one cache lists but has lost comes from another one that has it.
#[test]
fn a_layer_that_one_cache_has_lost() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let mut cache = Handmade::default();
    let (base, top) = (cache.layer("base", None), cache.layer("top", Some(0)));
    let root = cache.record("root", &[], &[base]);
    cache.record("step", &[&[root]], &[top]);
    let (whole, damaged) = (scratch.join("whole"), scratch.join("damaged"));
    let (whole_cache, damaged_cache) = (cache.write(&whole), cache.write(&damaged));
    let keys = write_keys(&scratch.join("keys.db"), ["step"]);
    let arguments = |caches: &[&str]| -> Vec<String> {
        caches.iter().copied().chain(["--keys-from", &keys]).map(str::to_owned).collect()
    };
    let run = |caches: &[&str], root: &str| {
        let arguments = arguments(caches);
        bake_at(EPOCH, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), &scratch.join(root))
    };
    run(&[&whole_cache], "expected").expect_success("bake of a whole cache");

    fs::remove_file(blob_path(&damaged, "top")).unwrap();
    fs::write(blob_path(&damaged, "base"), "something else").unwrap();
    let alone = run(&[&damaged_cache], "alone");
    assert!(matches!(alone.status.code(), Some(3 | 5)), "{}", alone.stderr);
    assert!(!scratch.join("alone").exists());

    for (at, caches) in
        [[&damaged_cache, &whole_cache], [&whole_cache, &damaged_cache]].into_iter().enumerate()
    {
        let root = format!("both-{at}");
        let ended = run(&caches.map(String::as_str), &root).expect_success("bake of both");
        let warned = ended.stderr.lines().filter(|line| line.starts_with("warning: ")).count();
        assert_eq!(warned, if at == 0 { 2 } else { 0 }, "{}", ended.stderr);
        assert_same(&scratch.join("expected"), &scratch.join(&root));
    }
    fs::remove_file(blob_path(&whole, "top")).unwrap();
    let ended = run(&[&whole_cache, &damaged_cache], "neither");
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("export the cache again"), "{}", ended.stderr);
}

/// A list of caches with one that is not there: nothing is baked, or the rest is.
#[test]
fn lists_with_missing_caches() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let mut cache = Handmade::default();
    let base = cache.layer("base", None);
    cache.record("root", &[], &[base]);
    let there = cache.write(&scratch.join("there"));
    let gone = format!("type=local,src={}", scratch.join("gone").display());
    let list = scratch.write("caches.txt", format!("# both\n{gone}\n{there}\n"));
    let list = list.display().to_string();
    let root = scratch.join("root");
    let refused = bake(&["--from-file", &list], &root);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains(&gone) && !root.exists(), "{}", refused.stderr);
    let skipped = bake(&["--from-file", &list, "--skip-missing"], &root).expect_success("bake");
    assert!(skipped.stdout.contains("skipped") && skipped.stdout.contains(&gone), "{}", skipped.stdout);
    verify(&["--read-data"], &root).expect_success("verify");
}
