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
//! With the native snapshotter, whose directories are bound into builds as they are, overlays serve all active ones.
//!
//! The daemon runs in a mount namespace of its own, in which the root is mounted read-only: the kernel
//! sees to it that the root stays as it is, whatever the build does and however the daemon ends, and no
//! mount of the daemon outlives it. The daemon of a rootless root runs as its user, in a user namespace. What the build
//! writes goes to the scratch directory. A shell between us and the daemon ends it, and removes the scratch directory,
//! also when this process is killed.

mod runner;
mod view;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::daemon::{self, Build, Daemon, Outcome, Search, Start};
use crate::fsutil;
use crate::root::{self, Root, Worker};

use runner::Runner;
use view::View;

pub use crate::daemon::{DEFAULT_IMAGE, Step, StepStatus};

/// Where the scratch directory of a root goes that is on a user's own file system.
const ELSEWHERE: &str = "/var/tmp";

/// What is built, and by which buildkitd.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LiveOptions {
    /// What is built.
    pub build: Build,
    /// Where the daemon is looked for.
    pub search: Search,
    /// The daemon's configuration; `None`: an empty one, not the machine's.
    pub buildkitd_config: Option<PathBuf>,
    /// Where the scratch directory is made; `None`: beside the root, whose file system is known to serve
    /// snapshots, or where others than root may rename things there, in the nearest directory above it where they may
    /// not. Where that is on another file system, in `/var/tmp`.
    pub scratch: Option<PathBuf>,
    /// True once somebody wants it to end; then nothing of it stays behind.
    pub interrupted: Arc<AtomicBool>,
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
    /// No daemon could be found, started or talked to.
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
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
    /// It was to end.
    #[error("interrupted")]
    Interrupted,
    /// The snapshotter's database cannot be read, so it is unknown which snapshots may be written to.
    #[error("{} is damaged, so no view of the root can be made: {detail}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LiveError + use<> {
    let path = path.to_owned();
    move |source| LiveError::View { action, path, source }
}

/// The worker that a daemon of this root would have. Of several, which daemons with other snapshotters left beside each
/// other, it is the last one's: at its start a daemon takes away the results of all others.
fn worker(root: &Root) -> Result<PathBuf, LiveError> {
    if let [worker] = root.workers.as_slice() {
        return Ok(worker.clone());
    }
    let state = root.read().map_err(LiveError::Root)?;
    let mut results: BTreeMap<&str, usize> = BTreeMap::new();
    for (worker, _) in
        state.solver.iter().flat_map(|solver| solver.results.values().flatten()).filter_map(|r| r.of.as_ref())
    {
        *results.entry(worker).or_default() += 1;
    }
    let results = |worker: &&Worker| worker.id.as_deref().and_then(|id| results.get(id)).copied();
    let last = state.workers.iter().max_by_key(results);
    Ok(last.map_or_else(|| PathBuf::from("runc-overlayfs"), |worker| worker.path.clone()))
}

/// Where the scratch directory goes: beside the root, or above it where only root can take it away from under this.
fn beside(root: &Path) -> Result<PathBuf, LiveError> {
    let parent = root.parent().unwrap_or(root);
    let found = fsutil::nearest_of_root(parent).map_err(fail("look at", parent))?;
    Ok(found.unwrap_or_else(|| ELSEWHERE.into()))
}

/// Builds on a throwaway view of `root` and tells which steps were CACHED. The root stays untouched, byte
/// for byte; neither layers nor blobs are copied.
///
/// # Errors
/// The build could not be run. A build that fails is a report, see [`LiveReport::failure`].
pub fn live(root: &Path, options: &LiveOptions) -> Result<LiveReport, LiveError> {
    if !fsutil::is_root() {
        return Err(daemon::Error::NotRoot { purpose: "a live verification" }.into());
    }
    let root = root.canonicalize().map_err(|source| super::Error::Open { path: root.to_owned(), source })?;
    let opened = Root::open(&root)?;

    // Sockets have short paths, so they do not go beside the root.
    let temporary = |prefix, parent: &Path| {
        fsutil::temporary_directory(prefix, parent).map_err(fail("make a directory in", parent))
    };
    let run = temporary("warmkit-", &std::env::temp_dir())?;
    let beside = match &options.scratch {
        Some(scratch) => scratch.clone(),
        None => beside(&root)?,
    };
    let scratch = temporary(".warmkit-verify-", &beside)?;
    // Only dropped: whoever looks for what is left sees that this lives.
    let _lock = fsutil::try_lock(scratch.path()).map_err(fail("lock", scratch.path()))?;

    let is_stopped = || options.interrupted.load(Ordering::Relaxed);
    let tools = daemon::find(&options.search, run.path(), &is_stopped)?;
    // What is written here stays out of reach of who runs the daemon, who could put links in the way.
    let own = run.path().join("daemon");
    fs::create_dir(&own).map_err(fail("make", &own))?;
    fs::set_permissions(run.path(), Permissions::from_mode(0o711))
        .map_err(fail("change the mode of", run.path()))?;
    let runner = Runner::of(&opened.tree, &own)?;
    runner.own(&own)?;
    let worker = worker(&opened)?;
    let view = View::make(&opened.tree, &worker, &runner, scratch.path())?;
    let start = Start {
        root: &view.root,
        run: run.path(),
        own: &own,
        scratch: scratch.path(),
        config: options.buildkitd_config.as_deref(),
        snapshotter: root::snapshotter_of(&worker),
        through: &runner.through,
        arguments: &[],
        environment: &runner.environment,
        is_stopped: &is_stopped,
    };
    let daemon = Daemon::start(&tools, &start, || {
        view.enter()?;
        runner.own(scratch.path())
    })?;
    let outcome = options.build.outcome(&tools, &daemon.address(), &is_stopped);
    daemon.stop();
    for directory in [scratch, run] {
        let path = directory.path().to_owned();
        directory.close().map_err(fail("remove", &path))?;
    }
    if is_stopped() {
        return Err(LiveError::Interrupted);
    }
    let Outcome { steps, imports, extractions, failure } = outcome?;
    Ok(LiveReport { buildkitd: tools.version, steps, imports, extractions, failure })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::MountFlags;
    use std::os::unix::fs::chown;

    #[test]
    fn the_scratch_directory_is_where_nobody_but_root_moves_it() {
        if !fsutil::is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        fs::create_dir_all(path("home/share/root")).unwrap();
        assert_eq!(beside(&path("home/share/root")).unwrap(), path("home/share"));
        chown(path("home"), Some(4242), None).unwrap();
        assert_eq!(beside(&path("home/share/root")).unwrap(), base.path());
        assert_eq!(beside(&path("home")).unwrap(), base.path());
        let mounted = || {
            fsutil::own_mount_namespace().unwrap();
            rustix::mount::mount("tmpfs", path("home"), "tmpfs", MountFlags::empty(), c"uid=4242").unwrap();
            fs::create_dir(path("home/root")).unwrap();
            assert_eq!(beside(&path("home/root")).unwrap(), Path::new(ELSEWHERE));
        };
        std::thread::scope(|scope| scope.spawn(mounted).join()).unwrap();
    }
}
