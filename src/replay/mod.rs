//! Replay: the real build on a scratch daemon that has the caches and runs nothing.
//!
//! ```text
//! caches ─── records, no layers ────┐
//! images ─── manifests and configs ─┴▶ gate ──┐
//! context, Dockerfile, arguments ─────────────┼▶ buildkitd on an empty root ─▶ its cache.db ─▶ Candidates
//!                                    runtime ─┘   (no output; a miss ends it)
//! ```
//!
//! The daemon itself computes the operation digests of the build that it is asked for, and finds each step
//! in the imported caches. Its own database then has a link for each of them, with the operation digest: for any frontend, and in
//! the dialect of its own release. Three things keep it from doing anything else:
//!
//! - `import`: the caches come to it without their layers, and so small that it takes them;
//! - `gate`: a registry on loopback that has the caches, and hands on of images all but layers, which `waiting`
//!   refuses when the daemon does nothing else;
//! - `runtime`: in place of runc stands a program that runs no step.
//!
//! So a step that is in no cache cannot run, and what it stands on cannot be downloaded. The replay ends at the
//! first such step and says which it is.

mod cause;
mod gate;
mod import;
mod runtime;
mod waiting;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::daemon::{self, Build, Daemon, Graph, Search, Start, Step, StepStatus, Watch, io_error};
use crate::digest::Digest;
use crate::fsutil;
use crate::keys::{self, Candidates, UsedImage, harvest};
use crate::oci::{Cache, Platform, Reference};
use crate::source::{self, OciLayout, Stop};

use cause::Causes;
use gate::{Gate, Used};
use runtime::Runtime;
use waiting::Refused;

pub use cause::{Cause, Missed};

/// What is replayed, and by which buildkitd.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// The build; its `target` and `import_caches` are set by the replay.
    pub build: Build,
    /// The stages to build, one after the other; empty: the last.
    pub targets: Vec<String>,
    /// Where the daemon is looked for.
    pub search: Search,
    /// The daemon's configuration; `None`: an empty one, not the machine's.
    pub buildkitd_config: Option<PathBuf>,
    /// Where the scratch directory is made, which takes the build context; `None`: `$TMPDIR`.
    pub scratch: Option<PathBuf>,
    /// How registries are talked to, for manifests and configs of images.
    pub registry: source::Options,
}

/// One build of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Replayed {
    /// The stage; `None`: the last.
    pub target: Option<String>,
    /// Steps that the build has, as far as it came.
    pub steps: usize,
    /// Steps that were found in the caches.
    pub cached: usize,
    /// Steps that were not, and stand on nothing else that was not: empty where the build was found whole.
    pub missed: Vec<Missed>,
}

/// What an image's tag means today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Resolved {
    /// As the build names it, with its registry.
    pub image: String,
    /// The digest of its manifest or index.
    pub digest: Digest,
}

/// What a replay did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// `buildkitd --version`.
    pub buildkitd: String,
    /// Each build, in the order of the targets.
    pub builds: Vec<Replayed>,
    /// Images that were resolved by a tag.
    pub images: Vec<Resolved>,
    /// How often the daemon went to run a step, and was refused.
    pub runs_refused: usize,
    /// Images of which it went to download a layer, and was refused.
    pub layers_refused: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Report {
    /// Whether every step of every build was found.
    pub fn is_complete(&self) -> bool {
        self.builds.iter().all(|build| build.missed.is_empty())
    }
}

/// What a replay gives.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The operation digests that the daemon computed, of which nothing is proven here, and the images that it
    /// asked for.
    pub candidates: Candidates,
    /// What it did.
    pub report: Report,
}

/// Why there was no replay. A step that is in no cache is a report, see [`Replayed::missed`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No daemon could be found, started or talked to.
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    /// The build failed for another reason than a step that is not in the caches.
    #[error("the replay of {} failed: {detail}", target.as_deref().map_or_else(|| "the build".to_owned(), |t| format!("target {t}")))]
    Build {
        /// The stage; `None`: the last.
        target: Option<String>,
        /// What the client said in the end.
        detail: String,
    },
    /// The daemon could not import the caches, so that nothing could be found.
    #[error("buildkitd did not import the caches: {detail}")]
    Import {
        /// What it said.
        detail: String,
    },
    /// A named context that is an OCI layout, and the image cannot be found in it.
    #[error("--build-context {name}: {source}")]
    Layout {
        /// The context's name.
        name: String,
        /// What is wrong.
        source: Box<source::Error>,
    },
    /// The daemon left no database that can be read.
    #[error("the replay left no keys: {0}")]
    Harvest(#[source] keys::Error),
    /// A signal ended it.
    #[error("interrupted")]
    Interrupted,
}

/// Replays a build on `caches` and gives what the daemon computed for it.
///
/// # Errors
/// There was no replay: no daemon, not root, a build that cannot be solved.
pub fn replay(caches: &[&Cache], options: &Options) -> Result<Replay, Error> {
    let started = Instant::now();
    if !fsutil::is_root() {
        return Err(daemon::Error::NotRoot { purpose: "a replay" }.into());
    }
    // Sockets have short paths, so they have a directory of their own.
    let run = directory("warmkit-", &std::env::temp_dir())?;
    let beside = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = directory("warmkit-replay-", &beside)?;

    let is_stopped = || options.registry.stop.is_stopped();
    let tools = daemon::find(&options.search, run.path(), &is_stopped)?;
    let runtime = Runtime::make(&tools, run.path())?;
    let gate = Gate::open(&options.registry, import::config(caches))
        .map_err(io_error("listen at", Path::new("127.0.0.1")))?;
    let policy = run.path().join("policy.json");
    fs::write(&policy, gate.policy()).map_err(io_error("write", &policy))?;
    let config = configuration(options, &gate, run.path())?;

    let root = scratch.path().join("root");
    let mut arguments: Vec<OsString> = vec!["--oci-worker-binary".into(), (&runtime.binary).into()];
    // Nothing runs, so nothing needs a network of its own, and nothing is too dangerous to be asked for.
    arguments.extend(["--oci-worker-net", "host"].map(OsString::from));
    for entitlement in ENTITLEMENTS {
        arguments.extend(["--allow-insecure-entitlement", entitlement].map(OsString::from));
    }
    let start = Start {
        root: &root,
        run: run.path(),
        own: run.path(),
        scratch: scratch.path(),
        config: Some(&config),
        // Serves on every file system; there is nothing to be fast with.
        snapshotter: "native",
        arguments: &arguments,
        is_stopped: &is_stopped,
        through: &[],
        environment: &environment(std::env::vars_os()),
    };
    let daemon = Daemon::start(&tools, &start, || Ok::<(), Error>(()))?;
    let mut builds = Vec::new();
    let contexts = pinned(&options.build.contexts)?;
    let targets: Vec<Option<String>> = match options.targets.as_slice() {
        [] => vec![options.build.target.clone()],
        targets => targets.iter().cloned().map(Some).collect(),
    };
    let rounds = Rounds {
        tools: &tools,
        daemon: &daemon,
        gate: &gate,
        runtime: &runtime,
        causes: Causes::new(caches, &gate, platforms(&options.build)),
        stop: &options.registry.stop,
    };
    for target in targets {
        let mut build = options.build.clone();
        build.target = target;
        build.contexts.clone_from(&contexts);
        build.import_caches = vec![gate.import()];
        build.opts.push(runtime.option.clone());
        build.buildctl_args.extend(["--source-policy-file".into(), (&policy).into()]);
        for entitlement in ENTITLEMENTS {
            build.buildctl_args.extend(["--allow", entitlement].map(OsString::from));
        }
        builds.push(rounds.replay(&build)?);
    }
    drop(rounds);
    daemon.stop();
    let mut candidates = harvest::candidates(&root).map_err(Error::Harvest)?;
    for image in images(&gate, &options.build) {
        candidates.add_image(image);
    }
    let images = gate.resolved().into_iter().map(|(image, digest)| Resolved { image, digest }).collect();
    let layers_refused = gate.refused().into_iter().collect();
    let runs_refused = runtime.refused();
    drop(gate);
    for directory in [scratch, run] {
        let path = directory.path().to_owned();
        directory.close().map_err(io_error("remove", &path))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let report = Report { buildkitd: tools.version, builds, images, runs_refused, layers_refused, seconds };
    Ok(Replay { candidates, report })
}

/// The named contexts, those that are OCI layouts with their digest: as for buildx, that of `DIR:TAG`, or of the
/// tag `latest`, where none is written. A layout with one image needs no tag either.
fn pinned(contexts: &[String]) -> Result<Vec<String>, Error> {
    let pin = |context: &String| {
        let Some((name, layout)) = context.split_once("=oci-layout://") else { return Ok(context.clone()) };
        if layout.contains('@') {
            return Ok(context.clone());
        }
        let (path, tag) = match layout.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (layout, None),
        };
        let open = |tag| OciLayout::open(Path::new(path), tag, None);
        let opened = match tag {
            Some(tag) => open(Some(tag)),
            None => open(Some("latest")).or_else(|_| open(None)),
        };
        let failed = |source| Error::Layout { name: name.to_owned(), source: Box::new(source) };
        let digest = opened.map_err(failed)?.digest();
        Ok(format!("{name}=oci-layout://{path}@{digest}"))
    };
    contexts.iter().map(pin).collect()
}

/// What the daemon's environment says of S3 is not meant for the import, and could keep it from its way.
fn environment(vars: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, Option<OsString>)> {
    let of_s3 = vars.map(|(name, _)| name).filter(|name| name.as_encoded_bytes().starts_with(b"AWS_"));
    let nothing = ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"];
    let nothing = nothing.map(|name| (name.into(), Some("/dev/null".into())));
    of_s3.map(|name| (name, None)).chain(nothing).collect()
}

/// What a step may ask for that a daemon does not allow by itself.
const ENTITLEMENTS: [&str; 2] = ["network.host", "security.insecure"];

fn directory(prefix: &str, beside: &Path) -> Result<tempfile::TempDir, Error> {
    Ok(fsutil::temporary_directory(prefix, beside).map_err(io_error("make a directory in", beside))?)
}

/// The daemon's configuration: as given, with the gate as a registry that speaks http.
fn configuration(options: &Options, gate: &Gate, run: &Path) -> Result<PathBuf, Error> {
    let mut text = match &options.buildkitd_config {
        Some(given) => fs::read_to_string(given).map_err(io_error("read", given))?,
        None => String::new(),
    };
    text = format!("{text}\n[registry.{:?}]\n  http = true\n", gate.host());
    let path = run.join("replay.toml");
    fs::write(&path, text).map_err(io_error("write", &path))?;
    Ok(path)
}

/// How often a target is built at most, to find the step that misses.
const BUILDS: usize = 64;

/// What builds of all targets have in common.
struct Rounds<'a> {
    tools: &'a daemon::Tools,
    daemon: &'a Daemon,
    gate: &'a Gate,
    runtime: &'a Runtime,
    causes: Causes<'a>,
    stop: &'a Stop,
}

impl Rounds<'_> {
    /// Replays one target: builds it until it is found whole, or a step misses for certain, or no other can.
    fn replay(&self, build: &Build) -> Result<Replayed, Error> {
        let target = build.target.clone();
        let mut suspects = Vec::new();
        let mut builds = 0;
        loop {
            self.gate.waiting().begin(builds == 0);
            builds += 1;
            let runs_refused = self.runtime.refused();
            let mut watch = |graph: &Graph| {
                self.gate.heard(graph);
                let over = self.stop.is_stopped() || !cause::certain(graph).is_empty();
                if over { Watch::Stop } else { Watch::GoOn }
            };
            let (graph, failure) = build.run(self.tools, &self.daemon.address(), &mut watch)?;
            if self.stop.is_stopped() {
                return Err(Error::Interrupted);
            }
            let missed = self.causes.of(&graph, &cause::certain(&graph));
            let Some(detail) = failure else { return Ok(replayed(target, &graph, Vec::new())) };
            let refused = self.gate.waiting().refused();
            let is_miss = refused != Refused::None || self.runtime.refused() > runs_refused;
            if missed.is_empty() && !is_miss {
                return Err(Error::Build { target, detail: self.why(&detail) });
            }
            if !self.gate.was_imported() {
                let detail = graph.import_error().unwrap_or("it did not ask for them").to_owned();
                return Err(Error::Import { detail });
            }
            if !missed.is_empty() {
                return Ok(replayed(target, &graph, missed));
            }
            suspects.extend(self.causes.suspects(&graph));
            let missed = cause::lowest(&suspects);
            if refused == Refused::Exhausted || builds == BUILDS {
                if missed.is_empty() {
                    return Err(Error::Build { target, detail: self.why(&detail) });
                }
                return Ok(replayed(target, &graph, missed));
            }
        }
    }

    fn why(&self, detail: &str) -> String {
        match self.gate.problems().as_slice() {
            [] => self.gate.real_name(detail),
            problems => problems.join("\n"),
        }
    }
}

/// The images that the daemon asked for; one without an index is used on every platform of the build.
fn images(gate: &Gate, build: &Build) -> Vec<UsedImage> {
    let mut all = Vec::new();
    for Used { image, platform, frontend } in gate.used() {
        let Ok(reference) = image.parse::<Reference>() else { continue };
        let on = match platform {
            Some(platform) => vec![platform],
            None if frontend || build.platform.is_none() => vec![Platform::host()],
            None => named_platforms(build),
        };
        let used = |platform| UsedImage { reference: reference.clone(), platform, target: None, frontend };
        all.extend(on.into_iter().map(used));
    }
    all
}

fn replayed(target: Option<String>, graph: &Graph, missed: Vec<Missed>) -> Replayed {
    let steps = graph.outcome().steps;
    let found: BTreeSet<&str> =
        graph.found().into_iter().filter_map(|id| graph.get(id)).map(|v| v.name.as_str()).collect();
    let is_found = |step: &&Step| {
        step.status == StepStatus::Cached && (missed.is_empty() || found.contains(step.name.as_str()))
    };
    let cached = steps.iter().filter(is_found).count();
    Replayed { target, steps: steps.len(), cached, missed }
}

/// What the build is for, and what it may run on.
fn platforms(build: &Build) -> Vec<Platform> {
    named_platforms(build).into_iter().chain([Platform::host()]).collect()
}

/// What the build is for, where it is said.
fn named_platforms(build: &Build) -> Vec<Platform> {
    let named = build.platform.iter().flat_map(|all| all.split(','));
    named.filter_map(|platform| platform.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_pinned_as_they_are_now() {
        let directory = tempfile::tempdir().unwrap();
        let layout = |name: &str, tags: &[&str]| -> (String, Vec<Digest>) {
            let path = directory.path().join(name);
            fs::create_dir_all(path.join("blobs/sha256")).unwrap();
            fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            let digests: Vec<_> = tags.iter().map(|tag| Digest::of(tag.as_bytes())).collect();
            let listed = tags.iter().zip(&digests).map(|(tag, digest)| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
                    "annotations": {"org.opencontainers.image.ref.name": tag},
                })
            });
            let index = serde_json::json!({"schemaVersion": 2, "manifests": listed.collect::<Vec<_>>()});
            fs::write(path.join("index.json"), index.to_string()).unwrap();
            (path.display().to_string(), digests)
        };
        let (two, of_two) = layout("two", &["dev", "latest"]);
        let (one, of_one) = layout("a:b/one", &["main"]);
        let cases = [
            (format!("c=oci-layout://{two}"), format!("c=oci-layout://{two}@{}", of_two[1])),
            (format!("c=oci-layout://{two}:dev"), format!("c=oci-layout://{two}@{}", of_two[0])),
            (format!("c=oci-layout://{one}"), format!("c=oci-layout://{one}@{}", of_one[0])),
            (format!("c=oci-layout://{one}@{}", of_two[0]), format!("c=oci-layout://{one}@{}", of_two[0])),
            ("c=docker-image://a:1".to_owned(), "c=docker-image://a:1".to_owned()),
        ];
        for (given, expected) in cases {
            assert_eq!(pinned(std::slice::from_ref(&given)).unwrap(), [expected], "{given}");
        }
        let error = pinned(&[format!("c=oci-layout://{two}:none")]).unwrap_err().to_string();
        assert!(error.starts_with("--build-context c: ") && error.contains("none"), "{error}");
    }
}
