//! `--platform` on a cache of several platforms: what only builds for others use stays out, and all that a
//! build for this one uses is there. A cache does not tell which records are whose; the oracles are the
//! layers of the image that the same build pushed, and the build itself.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::cases::cache_to;
use support::command::run;
use support::daemon::check_databases;
use support::warmkit::{bake, verify, warmkit};
use support::{BuildRequest, Daemon, Registry, Scratch, Tools, image, tools};

/// A stage that runs on the builder for both platforms: its first step is the same for both, and its last
/// writes one file that is the same.
const STAGE: &str = "\
ARG BASE
FROM --platform=$BUILDPLATFORM ${BASE} AS build
COPY main.txt /main.txt
RUN cat /main.txt > /shared
ARG TARGETARCH
RUN echo \"for ${TARGETARCH}\" > /out && echo any > /any
";

/// An image that stands on what is of one platform only.
const ON_BASE: &str = "\
FROM ${BASE}
COPY --from=build /out /out
COPY main.txt /main.txt
";

/// One that stands on nothing but files: what is in them tells builds apart, and their platform does not.
const ON_SCRATCH: &str = "\
FROM scratch
COPY --from=build /any /any
COPY --from=build /out /out
COPY --from=build /shared /shared
COPY main.txt /main.txt
";

const AMD64: &str = "linux/amd64";
const ARM64: &str = "linux/arm64";

struct Setting {
    tools: Tools,
    registry: Registry,
    scratch: Scratch,
    request: BuildRequest,
    /// Cache and image of both platforms.
    both: [String; 2],
    builder: PathBuf,
}

impl Setting {
    fn start(release: &str, image: &str) -> Option<Self> {
        let tools = Tools::find(release)?;
        let registry = Registry::start(&tools);
        let scratch = Scratch::new();
        let base = image::push_base_of_both(&tools, &registry, "base");
        scratch.write("context/Dockerfile", [STAGE, image].concat());
        scratch.write("context/main.txt", "main\n");
        let request = BuildRequest::new(&scratch.join("context")).arg("BASE", &base);
        let both = ["cache", "image"].map(|tag| registry.reference("both", tag));
        let builder = scratch.join("builder");
        Some(Self { tools, registry, scratch, request, both, builder })
    }

    fn request(&self, platforms: &str) -> BuildRequest {
        BuildRequest { platform: Some(platforms.to_owned()), ..self.request.clone() }
    }

    fn daemon(&self, root: &Path) -> Daemon {
        Daemon::start(&self.tools, root, &self.registry)
    }

    /// Builds for both platforms, and exports cache and image.
    fn export(&self) {
        let daemon = self.daemon(&self.builder);
        let [cache, image] = &self.both;
        let both = self.request(&format!("{AMD64},{ARM64}"));
        daemon.build(&both.push(image).export_to(&cache_to(cache, "")));
        daemon.stop();
    }

    /// Layers of the image for one platform.
    fn layers(&self, platform: &str) -> BTreeSet<String> {
        let parsed =
            |tag: &str| -> Value { serde_json::from_slice(&self.registry.manifest("both", tag).0).unwrap() };
        let index = parsed("image");
        let is_it =
            |listed: &&Value| platform.ends_with(listed["platform"]["architecture"].as_str().unwrap());
        let listed = index["manifests"].as_array().unwrap().iter().find(is_it).unwrap();
        let manifest = parsed(listed["digest"].as_str().unwrap());
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["digest"].as_str().unwrap()["sha256:".len()..].to_owned()).collect()
    }

    fn bake(&self, root: &str, arguments: &[&str]) -> (PathBuf, Value) {
        let root = self.scratch.join(root);
        let arguments = [arguments, &["--images", "none", "--json"]].concat();
        let ended = bake(&arguments, &root).expect_success("bake");
        let mut report: Value = serde_json::from_str(&ended.stdout).unwrap();
        report["stderr"] = ended.stderr.into();
        (root, report)
    }
}

fn blobs(root: &Path) -> BTreeSet<String> {
    let blobs = fs::read_dir(root.join("runc-overlayfs/content/blobs/sha256")).unwrap();
    blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()).collect()
}

/// Whether a layer is of the base for the builder's platform, on which a stage runs for every platform.
fn on_builder(layer: &str, dockerfile: &str, setting: &Setting) -> bool {
    let builder = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let manifest: Value = serde_json::from_slice(&setting.registry.manifest("base", builder).0).unwrap();
    dockerfile == ON_BASE && manifest["layers"].to_string().contains(layer)
}

fn one_of_several(release: &str, dockerfile: &str) {
    let Some(setting) = Setting::start(release, dockerfile) else { return };
    setting.export();
    let [cache, image] = &setting.both;
    let all = [cache.as_str(), "--keys-from", image];
    let (whole, report) = setting.bake("whole", &all);
    assert_eq!(report["left_out"], 0);
    let records = report["records"].as_u64().unwrap();
    let mut union = BTreeSet::new();
    for (platform, other) in [(AMD64, ARM64), (ARM64, AMD64)] {
        let name = platform.replace('/', "-");
        let arguments = [&all[..], &["--platform", platform]].concat();
        let (root, report) = setting.bake(&name, &arguments);
        let left_out = report["left_out"].as_u64().unwrap();
        assert!(left_out > 0 && report["records"].as_u64() == Some(records - left_out), "{report:#}");
        assert_eq!(report["keyed"], report["records"], "{report:#}");
        let keyed = report["keys_from"][0]["keyed"].as_u64().unwrap();
        assert!(0 < keyed && keyed < report["records"].as_u64().unwrap(), "{report:#}");
        let (own, others) = (setting.layers(platform), setting.layers(other));
        assert!(blobs(&root).is_superset(&own), "layers for {platform}");
        let mut only_others =
            others.difference(&own).filter(|layer| !on_builder(layer, dockerfile, &setting));
        assert_eq!(only_others.find(|layer| blobs(&root).contains(*layer)), None, "layers for {other}");
        assert!(blobs(&root).len() < blobs(&whole).len());
        union.extend(blobs(&root));
        check_databases(&setting.tools, &root);
        verify(&["--read-data"], &root).expect_success("verify");
        checked_as_baked(&arguments, &report);

        let request = setting.request(platform);
        let daemon = setting.daemon(&root);
        let outcome = daemon.build(&request.tar(&root.with_extension("tar")));
        assert_eq!(outcome.not_cached(), BTreeSet::new(), "{}", outcome.log);
        assert_eq!((outcome.imports, outcome.downloads, outcome.extractions), (0, 0, 0), "{}", outcome.log);
        daemon.stop();
    }
    assert_eq!(union, blobs(&whole), "what one of the two platforms needs is all there is");

    let (root, report) =
        setting.bake("listed", &[&all[..], &["--platform", "linux/arm64,linux/amd64"]].concat());
    assert_eq!((&report["left_out"], blobs(&root)), (&0.into(), blobs(&whole)));

    not_held(&setting, &all);
    what_names_no_platform_keeps(&setting, &all, &whole);
}

/// `keys check` counts what a bake of the same arguments does.
fn checked_as_baked(arguments: &[&str], baked: &Value) {
    let mut command = warmkit();
    command.args(["keys", "check", "--json"]).args(arguments);
    let checked = run(&mut command, Duration::from_secs(60)).expect_success("keys check");
    let checked: Value = serde_json::from_str(&checked.stdout).unwrap();
    for member in ["records", "left_out", "keyed", "keys_from", "caches"] {
        assert_eq!(checked[member], baked[member], "{member}");
    }
}

fn not_held(setting: &Setting, all: &[&str]) {
    let root = setting.scratch.join("refused");
    let refused = bake(&[all, &["--platform", "linux/s390x"]].concat(), &root);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    let expected = "no cache is for --platform linux/s390x: they are for linux/amd64, linux/arm64";
    assert!(refused.stderr.contains(expected) && !root.exists(), "{}", refused.stderr);
}

/// A key source that does not tell may know the record from any build: nothing is left out for another's
/// word, and that is said.
fn what_names_no_platform_keeps(setting: &Setting, all: &[&str], whole: &Path) {
    let database = format!("type=cachedb,src={}", setting.builder.display());
    let arguments = [all, &["--keys-from", &database, "--platform", AMD64]].concat();
    let (root, report) = setting.bake("untold", &arguments);
    assert_eq!((&report["left_out"], blobs(&root)), (&0.into(), blobs(whole)), "{report:#}");
    let warning = report["stderr"].as_str().unwrap();
    assert!(warning.contains("a key source that names no platform"), "{warning}");
}

#[test]
fn on_a_base() {
    one_of_several(tools::NEWEST, ON_BASE);
}

#[test]
fn on_nothing() {
    one_of_several(tools::NEWEST, ON_SCRATCH);
}

#[test]
fn on_a_base_with_an_old_release() {
    one_of_several("v0.17.3", ON_BASE);
}

#[test]
fn on_nothing_with_an_old_release() {
    one_of_several("v0.17.3", ON_SCRATCH);
}
