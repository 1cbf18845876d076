//! Every form in which an exporter writes a cache, and in which it is kept afterwards: what a real daemon
//! exported is baked, and the same release then finds on the root what a native import of it finds, with
//! nothing imported and nothing extracted. `tests/e2e_sources.rs` has the forms that differ only in their
//! compression or media types.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::cases::Case;
use support::command::run;
use support::daemon::check_databases;
use support::warmkit::{bake, verify};
use support::{BuildOutcome, BuildRequest, Tools, World, tools};
use warmkit::bolt::{Database, Item};

fn setup(release: &str) -> Option<(World, Case)> {
    let world = World::start(Tools::find(release)?);
    let case = world.case("app");
    Some((world, case))
}

/// Bakes, looks at every byte, and builds to a tar on what was baked.
#[track_caller]
fn bake_and_build(world: &World, root: &Path, arguments: &[&str], request: &BuildRequest) -> BuildOutcome {
    bake(arguments, root).expect_success(&format!("bake {arguments:?}"));
    check_databases(&world.tools, root);
    verify(&["--read-data"], root).expect_success("verify of the baked root");
    build_on(world, root, request)
}

/// Builds to a tar, which reads every layer of the result.
#[track_caller]
fn build_on(world: &World, root: &Path, request: &BuildRequest) -> BuildOutcome {
    let daemon = world.daemon(root);
    let outcome = daemon.build(&request.tar(&root.with_extension("tar")));
    assert_eq!(daemon.logged_errors(), [""; 0]);
    daemon.stop();
    outcome
}

/// The same build on an empty daemon that imports the cache itself.
#[track_caller]
fn import_and_build(world: &World, root: &Path, cache: &str, request: &BuildRequest) -> BuildOutcome {
    let request = BuildRequest { import_cache: Some(cache.to_owned()), ..request.clone() };
    let outcome = build_on(world, root, &request);
    assert_eq!(outcome.imports, 1, "{}", outcome.log);
    outcome
}

/// Asserts that the baked root had for a build what the import had, and moved nothing.
#[track_caller]
fn assert_as_warm_as(baked: &BuildOutcome, native: &BuildOutcome) {
    assert_eq!(baked.names(), native.names(), "the steps\n{}", baked.log);
    let ran: BTreeSet<&str> = baked.not_cached();
    assert_eq!(ran, native.ran(), "the steps that ran\n{}\n--- native\n{}", baked.log, native.log);
    assert_eq!((baked.imports, baked.extractions), (0, 0), "(imports, extractions)\n{}", baked.log);
}

/// Builds, and pushes an image that carries its cache, with provenance. Gives its reference.
#[track_caller]
fn push_inline(world: &World, root: &Path, case: &Case, tag: &str, request: &BuildRequest) -> String {
    let image = world.registry.reference(case.name, tag);
    let daemon = world.daemon(root);
    daemon.build(&request.push(&image).export_to("type=inline"));
    daemon.stop();
    image
}

fn inline(release: &str) {
    let Some((world, case)) = setup(release) else { return };
    let image = push_inline(&world, &world.root(&case, "origin"), &case, "inline", &case.request);
    let cache = format!("type=registry,ref={image}");
    let native = import_and_build(&world, &world.root(&case, "native"), &cache, &case.request);
    for (name, cache) in [("csv", cache.as_str()), ("bare", image.as_str())] {
        let arguments = [cache, "--keys-from", image.as_str()];
        let baked = bake_and_build(&world, &world.root(&case, name), &arguments, &case.request);
        assert_as_warm_as(&baked, &native);
    }
    assert_partly_warm(&world, &case, &world.root(&case, "bare"), &cache);
}

#[test]
fn inline_cache() {
    inline(tools::NEWEST);
}

#[test]
fn inline_cache_of_an_old_release() {
    inline("v0.17.3");
}

/// One image for each stage, all of them baked into one root: nothing is left of the build.
#[test]
fn inline_caches_of_several_targets() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let origin = world.root(&case, "origin");
    let targets = ["deps", "build", "docs"];
    let mut images: Vec<String> = targets
        .iter()
        .map(|target| push_inline(&world, &origin, &case, target, &case.request.target(target)))
        .collect();
    images.push(push_inline(&world, &origin, &case, "all", &case.request));

    let mut arguments: Vec<&str> = images.iter().map(String::as_str).collect();
    arguments.extend(images.iter().flat_map(|image| ["--keys-from", image]));
    let root = world.root(&case, "baked");
    let baked = bake_and_build(&world, &root, &arguments, &case.request);
    assert_eq!(baked.not_cached(), BTreeSet::new(), "{}", baked.log);
    assert_eq!(baked.steps.len(), 11, "{:?}", baked.names());
    assert_eq!((baked.imports, baked.downloads, baked.extractions), (0, 0, 0), "{}", baked.log);
    for target in targets {
        let baked = build_on(&world, &root, &case.request.target(target));
        assert_eq!(baked.not_cached(), BTreeSet::new(), "{}", baked.log);
    }
}

/// A build for two platforms, one stage of which runs on the builder's own for both.
fn platforms(world: &World) -> Case {
    let dockerfile = "ARG BASE\n\
                      FROM --platform=$BUILDPLATFORM ${BASE} AS build\n\
                      ARG TARGETARCH\n\
                      RUN echo \"for ${TARGETARCH}\" > /out\n\
                      FROM scratch\n\
                      COPY --from=build /out /out\n\
                      COPY main.txt /main.txt\n";
    let app = world.case("app").request;
    let context = world.scratch.join("platforms/context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    fs::write(context.join("main.txt"), "main\n").unwrap();
    let request = BuildRequest { context, platform: Some("linux/amd64,linux/arm64".into()), ..app };
    Case { name: "platforms", changed: request.clone(), request }
}

/// What was baked, by `--json`: the platform and records of each cache.
#[track_caller]
fn baked_platforms(arguments: &[&str], root: &Path) -> Vec<String> {
    let ended = bake(&[arguments, &["--json"]].concat(), root).expect_success("bake --json");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let caches = report["caches"].as_array().unwrap();
    caches.iter().map(|cache| cache["platform"].as_str().unwrap_or("none").to_owned()).collect()
}

/// An image index, with attestations: each platform's image carries a cache of its own.
#[test]
fn inline_caches_of_several_platforms() {
    let Some((world, _)) = setup(tools::NEWEST) else { return };
    let case = platforms(&world);
    let image = push_inline(&world, &world.root(&case, "origin"), &case, "inline", &case.request);
    let index: Value = serde_json::from_slice(&world.registry.manifest(case.name, "inline").0).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 4, "two images, two attestations: {index}");

    let cache = format!("type=registry,ref={image}");
    let native = import_and_build(&world, &world.root(&case, "native"), &cache, &case.request);
    let arguments = [&*image, "--keys-from", &*image];
    let root = world.root(&case, "both");
    let baked = bake_and_build(&world, &root, &arguments, &case.request);
    assert_as_warm_as(&baked, &native);
    assert_eq!(baked_platforms(&arguments, &world.root(&case, "json")), ["linux/amd64", "linux/arm64"]);

    // One of the two, and the build for it alone.
    for platform in ["linux/amd64", "linux/arm64"] {
        let name = platform.replace('/', "-");
        let request = BuildRequest { platform: Some(platform.into()), ..case.request.clone() };
        let native =
            import_and_build(&world, &world.root(&case, &format!("native-{name}")), &cache, &request);
        let arguments = [&*image, "--keys-from", &*image, "--platform", platform];
        let baked = bake_and_build(&world, &world.root(&case, &name), &arguments, &request);
        assert_as_warm_as(&baked, &native);
        let json = world.root(&case, &format!("json-{name}"));
        assert_eq!(baked_platforms(&arguments, &json), [platform]);
    }

    let refusals = [
        (vec!["linux/s390x"], "the image is for linux/amd64, linux/arm64, not for linux/s390x"),
        (
            vec!["linux/arm64", "linux/s390x"],
            "no cache is for --platform linux/s390x: they are for linux/arm64",
        ),
    ];
    for (platforms, message) in refusals {
        let mut arguments = vec![&*image, "--keys-from", &*image];
        for platform in platforms {
            arguments.extend(["--platform", platform]);
        }
        let root = world.root(&case, "refused");
        let refused = bake(&arguments, &root);
        assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
        assert!(refused.stderr.contains(message), "{}", refused.stderr);
        assert!(!root.exists());
    }
}

/// An image that carries no cache is not taken for one, with one platform or several.
#[test]
fn images_without_cache() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let image = world.registry.reference(case.name, "no-cache");
    let daemon = world.daemon(&world.root(&case, "origin"));
    daemon.build(&case.request.push(&image));
    daemon.stop();
    for (reference, message) in [
        (image, "an image index, not a build cache, and it carries no inline cache"),
        (
            world.registry.reference("base", "latest"),
            "an image, not a build cache, and it carries no inline cache",
        ),
    ] {
        let refused = bake(&[&reference], &world.root(&case, "refused"));
        assert_eq!(refused.status.code(), Some(5), "{}", refused.stderr);
        for text in [message, "--cache-to type=inline"] {
            assert!(refused.stderr.contains(text), "no {text:?} in: {}", refused.stderr);
        }
    }
}

/// A cache of the final stage only: what a build of another stage misses on an import, it misses here.
#[track_caller]
fn assert_partly_warm(world: &World, case: &Case, baked: &Path, cache: &str) {
    let request = case.request.target("build");
    let native = import_and_build(world, &world.root(case, "native-build"), cache, &request);
    assert!(!native.ran().is_empty(), "everything is there\n{}", native.log);
    let baked = build_on(world, baked, &request);
    assert_as_warm_as(&baked, &native);
}

/// Exports with these options of `--export-cache`, and compares a bake with a native import.
fn exported_with(release: &str, tag: &str, options: &str) {
    let Some((world, case)) = setup(release) else { return };
    let origin = world.export_as(&case, tag, options);
    let cache = format!("type=registry,ref={}", origin.cache);
    let native = import_and_build(&world, &world.root(&case, "native"), &cache, &case.request);
    let arguments = [&*origin.cache, "--keys-from", &*origin.image];
    let root = world.root(&case, "baked");
    let baked = bake_and_build(&world, &root, &arguments, &case.request);
    assert_as_warm_as(&baked, &native);
    assert_same_labels(&root, &world.root(&case, "native"));
    if tag == "min" {
        assert_partly_warm(&world, &case, &root, &cache);
    }
    let of_estargz = |name: &String| name.ends_with("containerd.io/snapshot/stargz/toc.digest");
    let labels = blob_labels(&root);
    let estargz = labels.values().filter(|labels| labels.keys().any(of_estargz)).count();
    assert_eq!(estargz > 3, tag == "estargz", "{estargz} of {} layers are estargz", labels.len());
}

/// Labels of the blobs of a root that no daemon holds, by blob and name.
fn blob_labels(root: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let database = Database::open(&root.join("runc-overlayfs/containerdmeta.db")).unwrap();
    let blobs = database.root().path(&[b"v1", b"buildkit", b"content", b"blob"]).unwrap().unwrap();
    let mut found = BTreeMap::new();
    for entry in &blobs {
        let (digest, Item::Bucket(blob)) = entry.unwrap() else { continue };
        let labels = blob.bucket(b"labels").unwrap().unwrap();
        let labels = labels.iter().map(|entry| match entry.unwrap() {
            (name, Item::Value(value)) => (text(name), text(value)),
            (name, Item::Bucket(_)) => panic!("a bucket among labels: {}", text(name)),
        });
        found.insert(text(digest), labels.collect());
    }
    found
}

/// Asserts that blobs that both roots have carry the same labels.
#[track_caller]
fn assert_same_labels(baked: &Path, native: &Path) {
    let (baked, native) = (blob_labels(baked), blob_labels(native));
    let common: Vec<&String> = native.keys().filter(|digest| baked.contains_key(*digest)).collect();
    assert!(common.len() > 3, "few blobs in common: {common:?}");
    for digest in common {
        // Where a blob came from: a daemon notes it, or not, by when it asks for the blob. And what it notes
        // for itself when it looked whether a blob has this compression.
        let compared = |labels: &BTreeMap<String, String>| {
            let mut labels = labels.clone();
            labels.retain(|name, _| {
                !name.starts_with("containerd.io/distribution.source.")
                    && name != "buildkit.io/compression/estargz"
            });
            labels
        };
        assert_eq!(compared(&baked[digest]), compared(&native[digest]), "labels of {digest}");
    }
}

#[test]
fn estargz_layers() {
    exported_with(tools::NEWEST, "estargz", ",compression=estargz,force-compression=true");
}

#[test]
fn estargz_layers_of_an_old_release() {
    exported_with("v0.17.3", "estargz", ",compression=estargz,force-compression=true");
}

#[test]
fn gzip_layers_of_another_level() {
    exported_with(tools::NEWEST, "gzip", ",compression=gzip,compression-level=1,force-compression=true");
}

#[test]
fn min_mode() {
    exported_with(tools::NEWEST, "min", ",mode=min");
}

#[test]
fn min_mode_of_an_old_release() {
    exported_with("v0.17.3", "min", ",mode=min,image-manifest=false");
}

#[test]
fn errors_of_the_export_ignored() {
    exported_with(tools::NEWEST, "ignore-error", ",ignore-error=true");
}

/// Has a daemon write a local cache with these options; gives its directory, and the key source.
fn local_cache(world: &World, case: &Case, options: &str) -> (PathBuf, String) {
    let layout = world.root(case, "layout");
    let root = world.root(case, "origin");
    let daemon = world.daemon(&root);
    daemon.build(&case.request.export_to(&format!("type=local,dest={},mode=max{options}", layout.display())));
    daemon.stop();
    (layout, format!("type=cachedb,src={}", root.display()))
}

/// Bakes `type=local,src=…` and asserts that nothing of the build is left.
#[track_caller]
fn local_warms(world: &World, case: &Case, name: &str, src: &Path, keys: &str) {
    let cache = format!("type=local,src={}", src.display());
    let root = world.root(case, name);
    let baked = bake_and_build(world, &root, &[&cache, "--keys-from", keys], &case.request);
    assert_eq!(baked.not_cached(), BTreeSet::new(), "{name}\n{}", baked.log);
    assert_eq!((baked.imports, baked.downloads, baked.extractions), (0, 0, 0), "{name}\n{}", baked.log);
}

#[test]
fn local_cache_in_index_form() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let (layout, keys) = local_cache(&world, &case, ",image-manifest=false,oci-mediatypes=false");
    local_warms(&world, &case, "baked", &layout, &keys);
}

/// What a task cache leaves of a folder: names and bytes. Blobs are symlinks into its store, modes and
/// times are its own, and directories without files are gone.
#[test]
fn local_cache_from_a_task_cache() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let (layout, keys) = local_cache(&world, &case, "");
    let (store, restored) = (world.root(&case, "store"), world.root(&case, "restored"));
    fs::create_dir_all(&store).unwrap();
    let mut stored = 0;
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(layout.join(&directory)).unwrap() {
            let name = directory.join(entry.unwrap().file_name());
            if layout.join(&name).is_dir() {
                pending.push(name);
                continue;
            }
            let kept = store.join(stored.to_string());
            stored += 1;
            fs::copy(layout.join(&name), &kept).unwrap();
            fs::set_permissions(&kept, fs::Permissions::from_mode(0o400)).unwrap();
            fs::create_dir_all(restored.join(&directory)).unwrap();
            symlink(&kept, restored.join(&name)).unwrap();
        }
    }
    assert!(stored > 5 && !restored.join("ingest").exists(), "{stored} files");
    fs::remove_dir_all(&layout).unwrap();
    local_warms(&world, &case, "baked", &restored, &keys);
}

/// A local cache in one tar, as people make them, and an image that buildkitd itself wrote as one.
#[test]
fn layouts_in_a_tar() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let (layout, keys) = local_cache(&world, &case, "");
    let tar = |name: &str, arguments: &[&str]| -> PathBuf {
        let file = world.root(&case, name);
        run(Command::new("tar").arg("-cf").arg(&file).args(arguments), Duration::from_secs(60))
            .expect_success("tar");
        file
    };
    let directory = layout.to_str().unwrap();
    let dotted = tar("dotted.tar", &["--format=gnu", "-C", directory, "."]);
    local_warms(&world, &case, "dotted", &dotted, &keys);
    let names: Vec<String> = fs::read_dir(&layout)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut arguments = vec!["--format=posix", "-C", directory];
    arguments.extend(names.iter().map(String::as_str));
    local_warms(&world, &case, "named", &tar("named.tar", &arguments), &keys);

    // Not read, but told what to do.
    let nested = tar("nested.tar", &["-C", layout.parent().unwrap().to_str().unwrap(), "layout"]);
    let gzipped = tar("layout.tar.gz", &["-z", "-C", directory, "."]);
    let cut = world.root(&case, "cut.tar");
    let whole = fs::read(&dotted).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    for (file, code, message) in [
        (&nested, 3, "pack it with tar -C layout -cf FILE ."),
        (&gzipped, 3, "compressed with gzip"),
        (&cut, 5, "copy it again"),
    ] {
        let refused = bake(&[&format!("type=local,src={}", file.display())], &world.root(&case, "refused"));
        assert_eq!(refused.status.code(), Some(code), "{}", refused.stderr);
        assert!(refused.stderr.contains(message), "{}", refused.stderr);
    }
}

/// `--output type=oci`: a tar, of an image that carries its cache.
#[test]
fn an_image_with_inline_cache_in_a_tar() {
    let Some((world, case)) = setup(tools::NEWEST) else { return };
    let root = world.root(&case, "origin");
    let file = world.root(&case, "image.tar");
    let mut request = case.request.export_to("type=inline");
    request.output = Some(format!("type=oci,dest={}", file.display()));
    let daemon = world.daemon(&root);
    daemon.build(&request);
    daemon.stop();
    let keys = format!("type=cachedb,src={}", root.display());
    let cache = format!("type=local,src={}", file.display());
    let arguments = [&*cache, "--keys-from", &*keys];
    let baked = bake_and_build(&world, &world.root(&case, "baked"), &arguments, &case.request);
    // The same cache, where a daemon can import it from.
    let image = push_inline(&world, &root, &case, "inline", &case.request);
    let imported = format!("type=registry,ref={image}");
    let native = import_and_build(&world, &world.root(&case, "native"), &imported, &case.request);
    assert_as_warm_as(&baked, &native);
}
