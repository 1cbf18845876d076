//! Running the real build on a throwaway view of a root.
//!
//! ```text
//! root (read-only for the daemon)                    scratch/root, the daemon's --root
//!   cache.db, <worker>/*.db, workerid  ── copied ──►   cache.db, <worker>/*.db, workerid
//!   <worker>/content/blobs/sha256/<hex> ◄─ symlink ──  <worker>/content/blobs/sha256/<hex>
//!   <worker>/snapshots/snapshots/<n>    ◄─ symlink ──  committed snapshots
//!                                       ◄─ overlay ──  active ones without a parent (cache mounts, sources)
//!                                          copied ──►  active ones with a parent
//! ```
//!
//! The daemon runs in a mount namespace of its own, in which the root is mounted read-only: the kernel
//! sees to it that the root stays as it is, whatever the build does and however the daemon ends, and no
//! mount of the daemon outlives it. What the build writes goes to the scratch directory. A shell between us and the
//! daemon ends it, and removes the scratch directory, also when this process is killed.

mod daemon;
mod steps;
mod tools;
mod view;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use serde::Serialize;

pub use steps::{Step, StepStatus};

/// The image that buildkitd is taken from where none is installed: the one that buildx uses.
pub const DEFAULT_IMAGE: &str = "moby/buildkit:buildx-stable-1";

/// What is built, and by which buildkitd.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LiveOptions {
    /// The build context, a local directory.
    pub context: PathBuf,
    /// The Dockerfile; `None`: `Dockerfile` in the context.
    pub dockerfile: Option<PathBuf>,
    /// The stage to build; `None`: the last.
    pub target: Option<String>,
    /// Build arguments as `KEY=VALUE`.
    pub build_args: Vec<String>,
    /// Frontend options as `KEY=VALUE`.
    pub opts: Vec<String>,
    /// Platforms as `os/arch[/variant]`; `None`: the daemon's own.
    pub platform: Option<String>,
    /// Caches to import, as `buildctl --import-cache` takes them.
    pub import_caches: Vec<String>,
    /// Further arguments of `buildctl build`: `--secret …`, `--ssh …`, `--allow …`.
    pub buildctl_args: Vec<OsString>,
    /// The daemon; `None`: the one in `$PATH`, else the one in [`LiveOptions::image`], through docker.
    pub buildkitd: Option<PathBuf>,
    /// Its client; `None`: beside the daemon, else in `$PATH`.
    pub buildctl: Option<PathBuf>,
    /// The docker client; `None`: the one in `$PATH`. Used only where no buildkitd is found otherwise.
    pub docker: Option<PathBuf>,
    /// Where docker has to get them; `None`: [`DEFAULT_IMAGE`].
    pub image: Option<String>,
    /// The daemon's configuration; `None`: an empty one, not the machine's.
    pub buildkitd_config: Option<PathBuf>,
    /// Where the scratch directory is made; `None`: beside the root, whose file system is known to serve
    /// snapshots.
    pub scratch: Option<PathBuf>,
}

/// What the build did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LiveReport {
    /// `buildkitd --version`.
    pub buildkitd: String,
    /// The instructions but FROM, which asks the registry in every build, in the order in which they were
    /// first reported.
    pub steps: Vec<Step>,
    /// Cache manifests that were imported.
    pub imports: usize,
    /// Layers that were extracted, each once.
    pub extractions: usize,
    /// Why the build failed, if it did: the end of what the client printed.
    pub failure: Option<String>,
}

impl LiveReport {
    /// Whether the build succeeded, there was a step, and every step was CACHED.
    pub fn all_cached(&self) -> bool {
        let cached = |step: &Step| step.status == StepStatus::Cached;
        self.failure.is_none() && !self.steps.is_empty() && self.steps.iter().all(cached)
    }
}

/// Why the build could not be run at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The root cannot be judged: not there, in use, no state directory.
    #[error(transparent)]
    Root(#[from] super::Error),
    /// buildkitd needs root, and so does the mount namespace.
    #[error("a live verification runs buildkitd, which needs root: run it under sudo")]
    NotRoot,
    /// Neither given, nor in `$PATH`, nor can docker get it.
    #[error(
        "no buildkitd found: name one by --buildkitd, put one into $PATH, or install docker, which \
         takes it out of {image}"
    )]
    NoBuildkitd {
        /// The image that docker would have used.
        image: String,
    },
    /// A program that is needed is not there.
    #[error("no {program} found {place}")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Where it was looked for.
        place: String,
    },
    /// A program could not be started, or failed.
    #[error("{command} failed: {detail}")]
    Program {
        /// What was run.
        command: String,
        /// Its status and the end of what it printed.
        detail: String,
    },
    /// The view could not be made.
    #[error("cannot {action} {}: {source}", path.display())]
    View {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The snapshotter's database cannot be read, so it is unknown which snapshots may be written to.
    #[error("{} is damaged, so no view of the root can be made: {detail}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The daemon ended before it answered.
    #[error("buildkitd ended with {status} on the view of the root; its log ends with: {log}")]
    Ended {
        /// Its status.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The daemon did not answer in time.
    #[error("buildkitd did not answer within {seconds} s; its log ends with: {log}")]
    NoAnswer {
        /// How long it was waited for.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
}

/// Builds on a throwaway view of `root` and tells which steps were CACHED. The root stays untouched, byte
/// for byte; neither layers nor blobs are copied.
///
/// # Errors
/// The build could not be run. A build that fails is a report, see [`LiveReport::failure`].
pub fn live(root: &Path, options: &LiveOptions) -> Result<LiveReport, LiveError> {
    let fail = |action, path: &Path| {
        let path = path.to_owned();
        move |source| LiveError::View { action, path, source }
    };
    if !crate::fsutil::is_root() {
        return Err(LiveError::NotRoot);
    }
    let root = root.canonicalize().map_err(|source| super::Error::Open { path: root.to_owned(), source })?;
    let tree =
        super::Tree::open(&root).map_err(|source| super::Error::Open { path: root.clone(), source })?;
    let workers = super::worker_directories(&tree)?;
    let _locks = super::locks(&tree, &workers)?;

    // Sockets have short paths, so they do not go beside the root.
    let run = tempfile::Builder::new().prefix("warmkit-").tempdir();
    let run = run.map_err(fail("make a directory in", &std::env::temp_dir()))?;
    let beside = options.scratch.clone().or_else(|| root.parent().map(Path::to_owned)).unwrap_or_default();
    let scratch = tempfile::Builder::new().prefix(".warmkit-verify-").tempdir_in(&beside);
    let scratch = scratch.map_err(fail("make a directory in", &beside))?;

    let tools = tools::find(options, run.path())?;
    let view = view::View::make(&tree, &workers, scratch.path())?;
    let daemon = daemon::Daemon::start(&tools, view, run.path(), scratch.path(), options)?;
    let outcome = steps::build(&tools, &daemon.address(), options);
    daemon.stop();
    for directory in [scratch, run] {
        let path = directory.path().to_owned();
        directory.close().map_err(fail("remove", &path))?;
    }
    let outcome = outcome?;
    Ok(LiveReport {
        buildkitd: tools.version,
        steps: outcome.steps,
        imports: outcome.imports,
        extractions: outcome.extractions,
        failure: outcome.failure,
    })
}

/// The end of a text that may be long.
fn tail(text: &str) -> String {
    const LINES: usize = 20;
    const BYTES: usize = 8192;
    let lines: Vec<&str> = text.lines().collect();
    let text = lines[lines.len().saturating_sub(LINES)..].join("\n");
    let mut start = text.len().saturating_sub(BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
