//! Every form in which a cache and its keys may be given leads to the same: a root on which a real
//! daemon prints CACHED for every step, and imports and extracts nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::Path;

use support::cases::{Case, Origin, assert_warm, cache_to};
use support::command::Ended;
use support::warmkit::{bake, warmkit};
use support::{Daemon, Registry, Tools, World, command, tools};
use warmkit::digest::Digest;

/// Bakes with these arguments and asserts that the root is warm.
#[track_caller]
fn bake_warms(world: &World, case: &Case, origin: &Origin, name: &str, arguments: &[&str]) {
    let root = world.root(case, name);
    bake(arguments, &root).expect_success(&format!("{name}: bake {arguments:?}"));
    world.warms(&case.request, origin, &root);
}

fn setup(release: &str) -> Option<(World, Case)> {
    let world = World::start(Tools::find(release)?);
    let case = world.case("app");
    Some((world, case))
}

/// Options of `--export-cache` after which the manifest, its media types or its layers differ.
fn exported_as(release: &str, tag: &str, options: &str) {
    let Some((world, case)) = setup(release) else { return };
    let origin = world.export_as(&case, tag, options);
    bake_warms(&world, &case, &origin, "baked", &[&origin.cache, "--keys-from", &origin.image]);
}

#[test]
fn zstd_layers() {
    exported_as(tools::NEWEST, "zstd", ",compression=zstd,force-compression=true");
}

#[test]
fn uncompressed_layers() {
    exported_as(tools::NEWEST, "plain", ",compression=uncompressed,force-compression=true");
}

#[test]
fn docker_media_types() {
    exported_as(tools::NEWEST, "docker", ",image-manifest=false,oci-mediatypes=false");
}

#[test]
fn index_form() {
    exported_as(tools::NEWEST, "index", ",image-manifest=false");
}

#[test]
fn index_form_of_an_old_release() {
    exported_as("v0.17.3", "index", ",image-manifest=false");
}

#[test]
fn zstd_layers_of_an_old_release() {
    exported_as("v0.17.3", "zstd", ",compression=zstd,force-compression=true");
}

/// The registry by tag, by digest and as CSV; keys from an image, a builder's root, a `cache.db`,
/// a provenance file, and from several of them of which only one knows anything.
#[test]
fn references_and_key_sources() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let origin = world.export(&case);
    let digest = Digest::of(&world.registry.manifest(case.name, "cache").0);
    let (repository, _) = origin.cache.rsplit_once(':').unwrap();
    let by_digest = format!("{repository}@{digest}");
    let by_both = format!("{}@{digest}", origin.cache);
    let csv = format!("type=registry,ref={}", origin.cache);

    let image = format!("type=image,ref={}", origin.image);
    let builder = format!("type=cachedb,src={}", origin.root.display());
    let database = format!("type=cachedb,src={}", origin.root.join("cache.db").display());
    let provenance = provenance(&world, &case);

    bake_warms(&world, &case, &origin, "digest", &[&by_digest, "--keys-from", &image]);
    bake_warms(&world, &case, &origin, "tag-digest", &[&by_both, "--keys-from", &builder]);
    bake_warms(&world, &case, &origin, "csv", &[&csv, "--keys-from", &database]);
    bake_warms(&world, &case, &origin, "provenance", &[&csv, "--keys-from", &provenance]);

    // Of another build: good for nothing here, and harmless.
    let other = world.export(&world.case("whiteouts"));
    let several = [csv.as_str(), "--keys-from", &other.image, "--keys-from", &provenance];
    bake_warms(&world, &case, &origin, "several", &several);
}

/// Has a daemon write the provenance of a case to a file; gives its key source.
fn provenance(world: &World, case: &Case) -> String {
    let output = world.root(case, "provenance-out");
    let daemon = world.daemon(&world.root(case, "provenance-root"));
    let mut request = case.request.clone().opt("attest:provenance=mode=max");
    request.output = Some(format!("type=local,dest={}", output.display()));
    daemon.build(&request);
    daemon.stop();
    format!("type=provenance,src={}", output.join("provenance.json").display())
}

/// A local cache: one entry is taken, several want a tag, and a digest names one as well.
#[test]
fn local_caches() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let layout = world.root(&case, "layout");
    let to = |tag: &str| format!("type=local,dest={},mode=max,tag={tag}", layout.display());
    let origin = world.export(&case);
    let builder = format!("type=cachedb,src={}", origin.root.display());
    let daemon = world.daemon(&origin.root);
    daemon.build(&case.request.export_to(&to("one")));

    let local = format!("type=local,src={}", layout.display());
    bake_warms(&world, &case, &origin, "only", &[&local, "--keys-from", &builder]);

    daemon.build(&case.changed.export_to(&to("two")));
    daemon.stop();
    let ambiguous = bake(&[&local, "--keys-from", &builder], &world.root(&case, "ambiguous"));
    assert!(!ambiguous.status.success(), "two entries and no tag");
    for word in ["one", "two", "tag="] {
        assert!(ambiguous.stderr.contains(word), "no {word} in: {}", ambiguous.stderr);
    }
    assert!(!world.root(&case, "ambiguous").exists());

    let tagged = format!("{local},tag=one");
    bake_warms(&world, &case, &origin, "tagged", &[&tagged, "--keys-from", &builder]);

    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let one =
        entries.iter().find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == "one").unwrap();
    let digested = format!("{local},digest={}", one["digest"].as_str().unwrap());
    bake_warms(&world, &case, &origin, "digested", &[&digested, "--keys-from", &builder]);
}

/// Two caches in one root, of two targets of one Dockerfile: both builds are warm.
#[test]
fn two_caches_in_one_root() {
    let Some((world, _)) = setup(tools::NEWEST) else { return };
    let case = world.case("everything");
    let last = world.export(&case);
    let check = Case {
        name: case.name,
        request: case.request.target("check"),
        changed: case.changed.target("check"),
    };
    let check_origin = world.export_as(&check, "check", "");

    let root = world.root(&case, "both");
    let arguments = [
        &*last.cache,
        &*check_origin.cache,
        "--keys-from",
        &*last.image,
        "--keys-from",
        &*check_origin.image,
    ];
    bake(&arguments, &root).expect_success("bake of two caches");
    world.warms(&case.request, &last, &root);
    world.warms(&check.request, &check_origin, &root);
}

/// A cache of one release serves another; keys differ between some releases, not between these.
#[test]
fn another_release_than_the_one_that_exported() {
    let Some((world, case)) = setup("v0.33.1") else { return };
    let Some(newest) = Tools::find(tools::NEWEST) else { return };
    let origin = world.export(&case);
    let root = world.root(&case, "baked");
    bake(&[&origin.cache, "--keys-from", &origin.image], &root).expect_success("bake");
    let daemon = Daemon::start(&newest, &root, &world.registry);
    assert_warm(&daemon.build(&case.request.tar(&root.with_extension("tar"))), &origin);
    daemon.stop();
}

/// A registry that asks for a password: docker's own configuration has it, and without it the
/// exit code says so.
#[test]
fn registry_with_a_password() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let locked = Registry::start_with_password(&world.tools);
    let (cache, image) = (locked.reference("app", "cache"), locked.reference("app", "image"));
    let builder = world.root(&case, "locked-builder");
    let daemon = Daemon::start_with(&world.tools, &builder, &[&world.registry, &locked]);
    let mut request = case.request.push(&image).export_to(&cache_to(&cache, ""));
    request.docker_config = Some(locked.docker_config());
    let outcome = daemon.build(&request);
    daemon.stop();

    let root = world.root(&case, "locked");
    let bake = |config: &Path| -> Ended {
        let mut command = warmkit();
        command.args(["bake", &cache, "--keys-from", &image, "--root"]).arg(&root);
        command::run(command.env("DOCKER_CONFIG", config), std::time::Duration::from_secs(120))
    };
    let refused = bake(Path::new("/nonexistent"));
    assert_eq!(refused.status.code(), Some(4), "without a password\n{}", refused.stderr);
    assert!(!root.exists());
    bake(&locked.docker_config()).expect_success("bake with a password");

    let origin = Origin { cache, image, outcome, changed: std::collections::BTreeSet::new(), root: builder };
    world.warms(&case.request, &origin, &root);
}
