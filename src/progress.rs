//! What a long run tells whoever watches it: typed events, never text on a terminal.

use std::time::{Duration, Instant};

use crate::digest::Digest;

/// A stage of a command. One may begin within another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Manifests and configs are read.
    Resolve,
    /// Operation digests are collected and proven, and images read.
    Keys,
    /// A build is solved for its keys; within [`Phase::Keys`] in a bake.
    Replay,
    /// Layers are downloaded and unpacked, at the same time.
    Layers,
    /// Databases are written and everything is synced and put in place.
    Commit,
    /// A sidecar is uploaded.
    Push,
    /// The databases of a root are read, to be judged or to have them in memory.
    Databases,
    /// Blobs are hashed, and layers compared with their snapshots.
    Blobs,
    /// A build runs on a view of a root.
    Build,
    /// Of a root that is read from its disk: what a step that is not CACHED may need.
    FirstBuild,
    /// Everything else of it.
    Rest,
}

impl Phase {
    /// A stable lower-case name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Keys => "keys",
            Self::Replay => "replay",
            Self::Layers => "layers",
            Self::Commit => "commit",
            Self::Push => "push",
            Self::Databases => "databases",
            Self::Blobs => "blobs",
            Self::Build => "build",
            Self::FirstBuild => "first-build",
            Self::Rest => "rest",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A phase began.
    Started(Phase),
    /// A phase ended.
    Finished(Phase, Duration),
    /// How much there is to do in the phase; several add up.
    Planned {
        /// Layers to fetch.
        layers: usize,
        /// Their compressed bytes together.
        bytes: u64,
        /// Layers to read whole: to unpack (one layer on two parents counts twice), to prove, or to compare.
        unpacks: usize,
    },
    /// Some bytes of a blob arrived.
    Fetched {
        /// The blob.
        digest: Digest,
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// How much of a root is to be read from its disk in this phase.
    ToRead {
        /// Files.
        files: usize,
        /// Bytes of their data.
        bytes: u64,
    },
    /// Some of that was read.
    Read {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// A blob is here whole, and its digest matches.
    BlobDone {
        /// The blob.
        digest: Digest,
    },
    /// A layer is unpacked, and its diff ID matches.
    LayerDone {
        /// The layer's blob.
        digest: Digest,
    },
    /// A request failed and will be made again.
    Retry {
        /// What was asked for.
        what: String,
        /// How many times it failed so far.
        failures: u32,
        /// How long until it is made again.
        wait: Duration,
        /// Why it failed.
        reason: String,
    },
    /// Something that does not stop the run but that people should know.
    Warning(String),
}

/// Receives events, from several threads at once.
pub trait Progress: Sync {
    /// Takes one event; must be quick.
    fn event(&self, event: Event);
}

/// Ignores every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}

/// Does `work` as a phase. One that fails does not finish.
///
/// # Errors
/// Those of `work`.
pub fn during<T, E>(
    progress: &dyn Progress,
    phase: Phase,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let running = Running::start(progress, phase);
    let done = work()?;
    running.finish();
    Ok(done)
}

/// A phase that began. One that is dropped does not finish.
#[must_use]
pub struct Running<'a> {
    progress: &'a dyn Progress,
    phase: Phase,
    since: Instant,
}

impl<'a> Running<'a> {
    /// Begins a phase.
    pub fn start(progress: &'a dyn Progress, phase: Phase) -> Self {
        progress.event(Event::Started(phase));
        Self { progress, phase, since: Instant::now() }
    }

    /// Ends it; gives how long it took.
    pub fn finish(self) -> Duration {
        let took = self.since.elapsed();
        self.progress.event(Event::Finished(self.phase, took));
        took
    }
}
