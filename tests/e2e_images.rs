//! What a first build pulls though every step is CACHED: the frontend of a `# syntax=` line, and the
//! images of steps that run. Seeded, they cost a request for each tag and nothing else, as on a root
//! whose daemon pulled them itself.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cases::cache_to;
use support::command;
use support::daemon::{DiskUsage, check_databases};
use support::warmkit::{bake, verify, warmkit};
use support::{BuildOutcome, BuildRequest, Daemon, Registry, Scratch, Tools, image, tools};
use warmkit::bolt::{BucketRef, Database, Item};
use warmkit::digest::Digest;

/// A registry with a frontend, a base and an image to copy from, and a build that needs all three.
struct Setting {
    tools: Tools,
    registry: Registry,
    scratch: Scratch,
    frontend: String,
    base: String,
    files: String,
    /// A layer of the frontend's image that is not for this machine.
    foreign: Digest,
}

/// What a builder made of it.
struct Origin {
    cache: String,
    image: String,
    outcome: BuildOutcome,
    root: PathBuf,
}

impl Setting {
    fn start(release: &str) -> Option<Self> {
        let (tools, program) = (Tools::find(release)?, tools::dockerfile_frontend()?);
        let registry = Registry::start(&tools);
        let (frontend, foreign) = image::push_frontend(&registry, "frontend", &program);
        Some(Self {
            base: image::push_base(&tools, &registry),
            files: image::push_files(&registry, "files"),
            scratch: Scratch::new(),
            frontend,
            foreign,
            registry,
            tools,
        })
    }

    fn context(&self, name: &str, dockerfile: &str) -> BuildRequest {
        let file = self.scratch.write(format!("{name}/Dockerfile"), dockerfile);
        BuildRequest::new(file.parent().unwrap())
    }

    fn build(&self) -> BuildRequest {
        self.context(
            "context",
            &format!(
                "# syntax={}\nFROM {}\nRUN echo made > /made\nCOPY --from={} /file /file\n",
                self.frontend, self.base, self.files
            ),
        )
    }

    fn daemon(&self, root: &Path) -> Daemon {
        Daemon::start(&self.tools, root, &self.registry)
    }

    fn root(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn export(&self) -> Origin {
        let (cache, image) =
            (self.registry.reference("app", "cache"), self.registry.reference("app", "image"));
        let root = self.root("origin");
        let daemon = self.daemon(&root);
        let outcome = daemon.build(&self.build().push(&image).export_to(&cache_to(&cache, "")));
        assert_eq!(outcome.not_cached(), outcome.names(), "the origin builds from nothing");
        assert_eq!(outcome.steps.len(), 2, "{}", outcome.log);
        daemon.stop();
        Origin { cache, image, outcome, root }
    }

    /// The digest that a tag stands for.
    fn digest(&self, repository: &str, tag: &str) -> Digest {
        Digest::of(&self.registry.manifest(repository, tag).0)
    }

    /// Names of the three images, pinned.
    fn pinned(&self) -> [String; 3] {
        let pin = |name: &str, repository, tag| format!("{name}@{}", self.digest(repository, tag));
        [
            pin(&self.base, "base", "latest"),
            pin(&self.files, "files", "latest"),
            pin(&self.frontend, "frontend", "1"),
        ]
    }
}

fn moved(outcome: &BuildOutcome) -> (usize, usize, usize) {
    (outcome.imports, outcome.downloads, outcome.extractions)
}

/// A replay runs the frontend of the `# syntax=` line, whose image it pulls, and nothing else.
#[test]
fn is_replayed_by_its_frontend() {
    let Some(setting) = Setting::start(tools::NEWEST) else { return };
    let origin = setting.export();
    let mut command = warmkit();
    command.args(["keys", "replay", &origin.cache, "--json", "-o"]).arg(setting.root("keys.json"));
    command.arg("--buildkitd").arg(&setting.tools.buildkitd).arg("--build").arg(setting.build().context);
    let ended = command::run(&mut command, Duration::from_secs(120)).expect_success("keys replay");
    let outcome: Value = serde_json::from_str(&ended.stdout).unwrap();
    let found: Vec<&Value> = ["complete", "records", "keyed", "runs_refused", "layers_refused"]
        .map(|name| &outcome[name])
        .to_vec();
    assert_eq!(json!(found), json!([true, 2, 2, 0, []]), "{}", ended.stdout);
}

fn seeds(release: &str) {
    let Some(setting) = Setting::start(release) else { return };
    let origin = setting.export();
    let root = setting.root("seeded");
    let baked = bake(&[&origin.cache, "--keys-from", &origin.image, "--json"], &root).expect_success("bake");
    let report: Value = serde_json::from_str(&baked.stdout).unwrap();
    assert_eq!(report["images_skipped"], json!([]));
    assert_all_seeded(&setting, &report);
    check_databases(&setting.tools, &root);
    verify(&["--read-data"], &root).expect_success("verify of a seeded root");
    let foreign = root.join("runc-overlayfs/content/blobs/sha256").join(setting.foreign.hex());
    assert!(!foreign.exists(), "a layer for another machine was fetched");
    as_a_pull_leaves_them(&origin.root, &root);

    let daemon = setting.daemon(&root);
    daemon.collect();
    first_build(&setting, &origin, &daemon);
    new_builds(&setting, &daemon);
    accounted_for_and_pruned(&setting, &daemon, &root);
    daemon.stop();
    check_databases(&setting.tools, &root);

    without_seeding(&setting, &origin);
    replayed(&setting, &origin);
    layer_is_gone(&setting, &origin);
    base_is_gone(&setting, &origin);
}

/// Asserts that the images of the build are seeded, each for this machine.
#[track_caller]
fn assert_all_seeded(setting: &Setting, report: &Value) {
    let images = report["images"].as_array().unwrap().iter();
    let seeded: Vec<(&str, bool, u64)> = images
        .map(|i| {
            (i["image"].as_str().unwrap(), i["frontend"].as_bool().unwrap(), i["layers"].as_u64().unwrap())
        })
        .collect();
    let [base, files, frontend] = setting.pinned();
    assert_eq!(seeded, [(base.as_str(), false, 3), (files.as_str(), false, 2), (frontend.as_str(), true, 2)]);
}

/// A replay runs the frontend, which has to come whole, and no step; it has all keys.
fn replayed(setting: &Setting, origin: &Origin) {
    let keys = setting.scratch.join("keys.json");
    let context = setting.build().context;
    let mut command = warmkit();
    command.args(["keys", "replay", &origin.cache, "--json", "-o"]).arg(&keys).arg("--build").arg(context);
    command.arg("--buildkitd").arg(&setting.tools.buildkitd);
    let ended = command::run(&mut command, Duration::from_secs(120)).expect_success("keys replay");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["runs_refused"], &report["layers_refused"]), (&json!(0), &json!([])), "{report:#}");
    let keys = format!("type=keys,src={}", keys.display());
    let mut command = warmkit();
    command.args(["keys", "check", &origin.cache, "--no-sidecar", "--keys-from", &keys]);
    command::run(&mut command, Duration::from_secs(60)).expect_success("keys check");

    // Straight in a bake it finds the images too, as provenance does.
    let root = setting.root("by-replay");
    let (context, buildkitd) = (setting.build().context, &setting.tools.buildkitd);
    let build = ["--build", context.to_str().unwrap(), "--buildkitd", buildkitd.to_str().unwrap()];
    let baked =
        bake(&[&[&*origin.cache, "--json"], &build[..]].concat(), &root).expect_success("bake --build");
    assert_all_seeded(setting, &serde_json::from_str(&baked.stdout).unwrap());
    let daemon = setting.daemon(&root);
    first_build(setting, origin, &daemon);
    daemon.stop();
}

/// The build that the cache is of: each tag is looked up, and that is all.
fn first_build(setting: &Setting, origin: &Origin, daemon: &Daemon) {
    setting.registry.requests_of_daemons();
    let outcome = daemon.build(&setting.build());
    assert_eq!(outcome.names(), origin.outcome.names(), "{}", outcome.log);
    assert_eq!(outcome.not_cached(), BTreeSet::new(), "not CACHED\n{}", outcome.log);
    assert_eq!(moved(&outcome), (0, 0, 0), "(imports, downloads, extractions)\n{}", outcome.log);
    asked_for_tags_only(setting);
}

/// Since the last look, daemons asked what digest each of the three tags has, and for nothing else.
fn asked_for_tags_only(setting: &Setting) {
    let tags = ["base/manifests/latest", "files/manifests/latest", "frontend/manifests/1"];
    let expected = BTreeSet::from(tags.map(|tag| format!("HEAD /v2/{tag}")));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut requests = BTreeSet::new();
    // The registry logs a request after it was answered.
    while !requests.is_superset(&expected) && Instant::now() < deadline {
        requests.extend(setting.registry.requests_of_daemons());
    }
    assert_eq!(requests, expected, "what a daemon asked the registry for");
}

/// Builds that no cache is of, on the same images.
fn new_builds(setting: &Setting, daemon: &Daemon) {
    let (frontend, base, files) = (&setting.frontend, &setting.base, &setting.files);
    let text = format!("# syntax={frontend}\nFROM {files}\nCOPY --from={base} /etc/passwd /users\n");
    let outcome = daemon.build(&setting.context("new", &text));
    assert_eq!(outcome.ran().len(), 1, "{}", outcome.log);
    assert_eq!(moved(&outcome), (0, 0, 0), "on seeded images\n{}", outcome.log);
    asked_for_tags_only(setting);

    // Named by their digests, they need no registry at all.
    let [base, files, frontend] = setting.pinned();
    let text = format!("# syntax={frontend}\nFROM {base}\nRUN true\nCOPY --from={files} /other /other\n");
    let outcome = daemon.build(&setting.context("pinned", &text));
    assert_eq!(outcome.ran().len(), 2, "{}", outcome.log);
    assert_eq!(moved(&outcome), (0, 0, 0), "on pinned images\n{}", outcome.log);
    assert_eq!(setting.registry.requests_of_daemons(), [""; 0], "{}", outcome.log);
}

/// `du` says what each layer is, and nothing of an image stays when everything is pruned.
fn accounted_for_and_pruned(setting: &Setting, daemon: &Daemon, root: &Path) {
    let usage = daemon.disk_usage();
    let verbose = daemon.du_verbose();
    let [_, _, frontend] = setting.pinned();
    let described: Vec<&DiskUsage> =
        usage.iter().filter(|r| r.description == format!("pulled from {frontend}")).collect();
    assert_eq!(described.len(), 2, "{verbose}");
    assert!(described.iter().all(|r| r.size > 0 && !r.mutable), "{verbose}");
    let top: Vec<_> = usage.iter().filter(|r| r.record_type == "frontend").collect();
    assert_eq!(top.len(), 1, "{verbose}");
    assert_eq!(top[0].description, format!("pulled from {frontend}"), "{verbose}");

    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), [], "after prune --all");
    // Temporary leases of the builds keep documents for minutes; no lease keeps layers.
    let layers = |root: &Path| {
        let blobs = fs::read_dir(root.join("runc-overlayfs/content/blobs/sha256")).unwrap();
        let is_layer = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]));
        blobs.filter(|blob| is_layer(&blob.as_ref().unwrap().path())).count()
            + fs::read_dir(root.join("runc-overlayfs/snapshots/snapshots")).unwrap().count()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while layers(root) > 0 {
        assert!(Instant::now() < deadline, "layers remain after prune --all\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(daemon.logged_errors(), [""; 0], "{}", daemon.log());
}

/// The same without images: the steps are CACHED, and the frontend is pulled for it.
fn without_seeding(setting: &Setting, origin: &Origin) {
    let root = setting.root("unseeded");
    let arguments = [&origin.cache, "--keys-from", &origin.image, "--images", "none"];
    bake(&arguments, &root).expect_success("bake --images none");
    let daemon = setting.daemon(&root);
    let outcome = daemon.build(&setting.build());
    assert_eq!(outcome.not_cached(), BTreeSet::new(), "not CACHED\n{}", outcome.log);
    assert_eq!(moved(&outcome), (0, 2, 2), "(imports, downloads, extractions)\n{}", outcome.log);
    let extracted: BTreeSet<&str> = outcome.log.lines().filter(|l| l.contains("extracting")).collect();
    assert!(!extracted.is_empty() && outcome.log.contains(&setting.frontend), "{}", outcome.log);
    daemon.stop();
}

/// An image of which only a layer is gone: no layer of it comes, and what else there is, is whole.
fn layer_is_gone(setting: &Setting, origin: &Origin) {
    let manifest: Value = serde_json::from_slice(&setting.registry.manifest("files", "latest").0).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let layers: Vec<&str> = layers.iter().map(|layer| layer["digest"].as_str().unwrap()).collect();
    setting.registry.lose_blob("files", layers[1]);
    let root = setting.root("layer-gone");
    let arguments = [origin.cache.as_str(), "--keys-from", &origin.image, "--json"];
    let baked = bake(&arguments, &root).expect_success("bake without a layer of an image");
    let report: Value = serde_json::from_str(&baked.stdout).unwrap();
    let [_, files, _] = setting.pinned();
    let reason = format!("its registry no longer has layer {}", layers[1]);
    assert_eq!(report["images_skipped"], json!([{ "image": files, "reason": reason }]));
    assert_eq!(report["images"].as_array().unwrap().len(), 2, "{}", baked.stdout);
    assert!(baked.stderr.contains(&format!("image {files} is not seeded: {reason}")), "{}", baked.stderr);
    let blobs = root.join("runc-overlayfs/content/blobs/sha256");
    for layer in layers {
        assert!(!blobs.join(&layer["sha256:".len()..]).exists(), "{layer} of an image that is not seeded");
    }
    check_databases(&setting.tools, &root);
    verify(&["--read-data"], &root).expect_success("verify");
    let daemon = setting.daemon(&root);
    let outcome = daemon.build(&setting.build());
    assert_eq!(outcome.not_cached(), BTreeSet::new(), "{}", outcome.log);
    assert_eq!(moved(&outcome), (0, 0, 0), "(imports, downloads, extractions)\n{}", outcome.log);
    daemon.stop();

    let root = setting.root("refused");
    let refused = bake(&[&arguments[..3], &["--with-image", &setting.files]].concat(), &root);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("{}: its registry no longer has layer", setting.files)));
    assert!(refused.stderr.contains("push the image again") && !root.exists(), "{}", refused.stderr);
}

/// A base that is no longer there is worth a warning, unless somebody asked for it.
fn base_is_gone(setting: &Setting, origin: &Origin) {
    let digest = setting.digest("base", "latest").to_string();
    setting.registry.delete_manifest("base", &digest);
    let root = setting.root("gone");
    let arguments = [origin.cache.as_str(), "--keys-from", &origin.image, "--json"];
    let baked = bake(&arguments, &root).expect_success("bake without the base");
    let report: Value = serde_json::from_str(&baked.stdout).unwrap();
    assert_eq!(report["images"].as_array().unwrap().len(), 1, "{}", baked.stdout);
    let skipped = report["images_skipped"].as_array().unwrap();
    assert_eq!(skipped.len(), 2, "the one that lost a layer is still not there: {}", baked.stdout);
    assert_eq!(skipped[0]["image"], format!("{}@{digest}", setting.base));
    assert!(skipped[0]["reason"].as_str().unwrap().contains("no longer has it"), "{}", baked.stdout);
    assert!(baked.stderr.contains("is not seeded"), "{}", baked.stderr);
    verify(&[], &root).expect_success("verify");

    let root = setting.root("refused");
    let arguments = [&arguments[..3], &["--with-image", &setting.base]].concat();
    let refused = bake(&arguments, &root);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains(&setting.base) && !root.exists(), "{}", refused.stderr);
}

/// What the databases say of an image that a daemon pulled, they say of the seeded one.
fn as_a_pull_leaves_them(native: &Path, seeded: &Path) {
    let native = ImageRows::read(native);
    assert!(native.records.len() == 4 && native.documents.len() == 5, "{native:?}");
    let seeded = ImageRows::read(seeded);
    assert_eq!(seeded.records, native.records, "records of layers");
    assert_eq!(seeded.documents, native.documents, "labels of manifests and configs");
}

/// The rows that are about images no layer of which a cache has: the frontend, and what is copied from.
#[derive(Debug, Default)]
struct ImageRows {
    /// Per record of a layer, names and values that do not depend on who wrote them, and the lease.
    records: BTreeSet<Vec<String>>,
    /// Per document, digest and labels.
    documents: BTreeSet<Vec<String>>,
}

impl ImageRows {
    fn read(root: &Path) -> Self {
        let worker = root.join("runc-overlayfs");
        let metadata = Database::open(&worker.join("metadata_v2.db")).unwrap();
        let containerd = Database::open(&worker.join("containerdmeta.db")).unwrap();
        let bucket = |path: &[&str]| {
            path.iter().fold(containerd.root(), |at, name| at.bucket(name.as_bytes()).unwrap().unwrap())
        };
        let mut rows = Self::default();
        for (id, record) in buckets(metadata.root().bucket(b"_main").unwrap().unwrap()) {
            let value = |name: &str| {
                let value = record.get(name.as_bytes()).unwrap().unwrap_or_default();
                format!("{name} {}", String::from_utf8_lossy(value))
            };
            let refs = value("cache.imageRefs");
            if !refs.contains("/frontend") && !refs.contains("/files") {
                continue;
            }
            let names =
                ["cache.blob", "cache.blobChainID", "cache.blobsize", "cache.chainID", "cache.diffID"];
            let more = ["cache.blobonly", "cache.description", "cache.mediatype", "cache.recordType"];
            let mut row: Vec<String> = names.into_iter().chain(more).map(value).collect();
            row.push(refs);
            let content = bucket(&["v1", "buildkit", "leases", &id, "content"]);
            for item in &content {
                let digest = String::from_utf8(item.unwrap().0.to_vec()).unwrap();
                let labels = bucket(&["v1", "buildkit", "content", "blob", &digest, "labels"]);
                let labels: Vec<String> = (&labels)
                    .into_iter()
                    .map(|item| {
                        let (key, Item::Value(value)) = item.unwrap() else {
                            panic!("a bucket among labels")
                        };
                        format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value))
                    })
                    .collect();
                // Of a layer, a seeded root knows one more thing: where it is from.
                if !labels.iter().any(|label| label.starts_with("buildkit.io/blob/mediatype")) {
                    rows.documents.insert([vec![digest.clone()], labels].concat());
                }
                row.push(digest);
            }
            rows.records.insert(row);
        }
        rows
    }
}

fn buckets(bucket: BucketRef<'_>) -> Vec<(String, BucketRef<'_>)> {
    let of = |(name, item): (&[u8], Item<'_>)| match item {
        Item::Bucket(_) => Some(String::from_utf8(name.to_vec()).unwrap()),
        Item::Value(_) => None,
    };
    let names: Vec<String> = (&bucket).into_iter().filter_map(|entry| of(entry.unwrap())).collect();
    names.into_iter().map(|name| (name.clone(), bucket.bucket(name.as_bytes()).unwrap().unwrap())).collect()
}

mod v0_34_2 {
    #[test]
    fn seeds() {
        super::seeds("v0.34.2");
    }
}

mod v0_17_3 {
    #[test]
    fn seeds() {
        super::seeds("v0.17.3");
    }
}

/// Every way in which a build names images, one of them in a registry with a password. A seeded root is as a
/// daemon keeps its own: what it holds outlives restarts, and a prune that spares what was just used.
fn ways_to_name_images(release: &str) {
    let Some(setting) = Setting::start(release) else { return };
    let Setting { tools, registry, frontend, .. } = &setting;
    let locked = Registry::start_with_password(tools);
    locked.copy(registry, "files", "latest");
    image::push_base_of_both(tools, registry, "base");
    let listed = image::push_as_docker(registry, "base");
    image::push_onbuild_base(tools, registry);
    let frontend = format!("{frontend}@{}", setting.digest("frontend", "1"));
    let onbuild = format!("{}/onbuild@{}", registry.host(), setting.digest("onbuild", "latest"));
    let files = locked.reference("files", "latest");
    let repository = listed.strip_suffix(":docker").unwrap();
    let text = format!(
        "# syntax={frontend}\nARG TAG=none\nFROM {repository}:${{TAG}} AS build\nRUN echo made > /made\n\
         FROM {onbuild}\nCOPY --from=build /made /made\nCOPY --from={files} /file /file\n"
    );
    let mut request = setting.context("ways", &text).arg("TAG", "docker");
    setting.scratch.write("ways/onbuild.txt", "onbuild\n");
    request.docker_config = Some(locked.docker_config());

    let daemon = |root: &Path| Daemon::start_with(tools, root, &[registry, &locked]);
    let [cache, image] = ["cache", "image"].map(|tag| registry.reference("ways", tag));
    let origin = daemon(&setting.root("origin"));
    let first = origin.build(&request.push(&image).export_to(&cache_to(&cache, "")));
    origin.stop();
    let asked = || -> BTreeSet<String> { registry.requests_of_daemons().into_iter().collect() };
    asked();
    let origin = daemon(&setting.root("origin"));
    origin.build(&request);
    origin.stop();
    let of_native = asked();
    assert!(of_native.iter().all(|request| request.starts_with("HEAD ")), "{of_native:?}");

    let bake = |name: &str, docker_config: &Path| {
        let root = setting.root(name);
        let mut command = warmkit();
        command.args(["bake", &cache, "--keys-from", &image, "--json", "--root"]).arg(&root);
        let ended = command::run(command.env("DOCKER_CONFIG", docker_config), Duration::from_secs(180));
        let ended = ended.expect_success("bake");
        (root, serde_json::from_str::<Value>(&ended.stdout).unwrap())
    };
    let (root, report) = bake("seeded", &locked.docker_config());
    assert_eq!(report["images_skipped"], json!([]), "{report:#}");
    assert_eq!(report["images"].as_array().unwrap().len(), 4, "{report:#}");
    verify(&["--read-data"], &root).expect_success("verify");

    asked();
    for restart in 0..2 {
        let daemon = daemon(&root);
        daemon.collect();
        let outcome = daemon.build(&request.tar(&root.with_extension("tar")));
        assert_eq!(outcome.names(), first.names(), "{}", outcome.log);
        assert_eq!(outcome.not_cached(), BTreeSet::new(), "start {restart}\n{}", outcome.log);
        assert_eq!(moved(&outcome), (0, 0, 0), "start {restart}\n{}", outcome.log);
        assert_eq!(asked(), of_native, "start {restart}: what a daemon asks that pulled the images itself");
        let mut prune = daemon.buildctl();
        prune.args(["prune", "--keep-duration", "1h"]);
        command::run(&mut prune, Duration::from_secs(60)).expect_success("buildctl prune");
        daemon.stop();
        check_databases(tools, &root);
    }
    let daemon = daemon(&root);
    let text = format!("# syntax={frontend}\nFROM {files}\nCOPY --from={listed} /etc/architecture /\n");
    let mut other = setting.context("other", &text);
    other.docker_config = Some(locked.docker_config());
    let outcome = daemon.build(&other);
    assert_eq!((outcome.ran().len(), moved(&outcome)), (1, (0, 0, 0)), "{}", outcome.log);
    daemon.stop();

    // Without the password it is one image fewer.
    let (root, report) = bake("without-password", Path::new("/nonexistent"));
    let skipped = report["images_skipped"].as_array().unwrap();
    assert_eq!(skipped.len(), 1, "{report:#}");
    assert!(skipped[0]["image"].as_str().unwrap().starts_with(&files), "{report:#}");
    assert!(skipped[0]["reason"].as_str().unwrap().contains("denies access"), "{report:#}");
    verify(&[], &root).expect_success("verify");
}

#[test]
fn every_way_to_name_an_image() {
    ways_to_name_images(tools::NEWEST);
}

#[test]
fn every_way_to_name_an_image_with_an_old_release() {
    ways_to_name_images("v0.17.3");
}

/// An image that no provenance names, of the platform that is asked for.
#[test]
fn takes_images_by_name() {
    let Some(setting) = Setting::start(tools::NEWEST) else { return };
    // A cache of its own, whose build knows none of the other images.
    let cache = setting.registry.reference("plain", "cache");
    let daemon = setting.daemon(&setting.root("origin"));
    let text = "FROM scratch\nCOPY Dockerfile /\n";
    daemon.build(&setting.context("plain", text).export_to(&cache_to(&cache, "")));
    daemon.stop();

    let allow = "--allow-unkeyed";
    let root = setting.root("named");
    let with = [&cache, allow, "--with-image", &setting.frontend, "--with-image", &setting.base];
    bake(&with, &root).expect_success("bake --with-image");
    verify(&["--read-data"], &root).expect_success("verify");
    let daemon = setting.daemon(&root);
    let text = format!("# syntax={}\nFROM {}\nRUN true\n", setting.frontend, setting.base);
    let outcome = daemon.build(&setting.context("new", &text));
    assert_eq!((outcome.ran().len(), moved(&outcome)), (1, (0, 0, 0)), "{}", outcome.log);
    daemon.stop();

    let other = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    let root = setting.root("other");
    let with = [&cache, allow, "--with-image", &setting.frontend, "--platform", other];
    bake(&with, &root).expect_success("bake of another platform's image");
    let blobs = root.join("runc-overlayfs/content/blobs/sha256");
    assert!(blobs.join(setting.foreign.hex()).is_file(), "the other machine's layer");

    for (what, code, expected) in [
        (cache.as_str(), 5, "not an image: its config has media type"),
        ("--platform=linux/s390x", 5, "no manifest for linux/s390x; it has linux/"),
        ("UPPER", 2, "invalid reference"),
        ("127.0.0.1:1/none:1", 3, "127.0.0.1:1/none:1"),
    ] {
        let root = setting.root("refused");
        let image = if what.starts_with("--") { &setting.frontend } else { what };
        let mut with = vec![cache.as_str(), allow, "--with-image", image];
        with.extend(what.starts_with("--").then_some(what));
        let refused = bake(&with, &root);
        assert_eq!(refused.status.code(), Some(code), "{what}: {}", refused.stderr);
        assert!(refused.stderr.contains(expected), "{what}: {}", refused.stderr);
        assert!(!root.exists());
    }
}
