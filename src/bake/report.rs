//! What a bake says of itself when it is done: the object that `--json` prints.

use std::time::Duration;

use serde::Serialize;

use crate::gather::{BakedCache, KeySourceReport, Missing, SeededImage, SkippedImage};
use crate::progress::Phase;
use crate::replay;

pub use crate::gather::Unkeyed;

/// Seconds that each phase took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Phases {
    /// Reading manifests and configs.
    pub resolve: f64,
    /// Collecting and proving operation digests, and reading images.
    pub keys: f64,
    /// Downloading and unpacking layers.
    pub layers: f64,
    /// Writing the databases, syncing, putting the root in place.
    pub commit: f64,
}

impl Phases {
    pub(crate) fn set(&mut self, phase: Phase, took: Duration) {
        let slot = match phase {
            Phase::Resolve => &mut self.resolve,
            Phase::Keys => &mut self.keys,
            Phase::Layers => &mut self.layers,
            Phase::Commit => &mut self.commit,
            // Of other commands, or within one of these.
            _ => return,
        };
        *slot = took.as_secs_f64();
    }

    /// All phases together.
    pub fn total(&self) -> f64 {
        self.resolve + self.keys + self.layers + self.commit
    }
}

/// What goes into a root, known before the first layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contents {
    /// Which caches are in it.
    pub caches: Vec<BakedCache>,
    /// Caches that were asked for, are not there, and were skipped.
    pub missing: Vec<Missing>,
    /// Where operation digests came from.
    pub keys_from: Vec<KeySourceReport>,
    /// How the build was replayed, where it was asked for and needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<replay::Report>,
    /// Images whose layers are in it, whether or not a cache has them too.
    pub images: Vec<SeededImage>,
    /// Images that builds used and that could not be read.
    pub images_skipped: Vec<SkippedImage>,
    /// Distinct records of the caches: those of several caches with one digest and the same inputs
    /// count once.
    pub records: usize,
    /// Those that are not among them, since only builds for other platforms than those that were asked for
    /// use them.
    pub left_out: usize,
    /// Records whose key was proven and written.
    pub keyed: usize,
    /// The other ones.
    pub unkeyed: Vec<Unkeyed>,
    /// Distinct layer blobs.
    pub layers: usize,
    /// Directories unpacked: a layer on two parents counts twice.
    pub snapshots: usize,
    /// Compressed bytes of the layers.
    pub bytes_down: u64,
}

/// A finished bake.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The root, absolute.
    pub root: String,
    /// What went into it.
    #[serde(flatten)]
    pub contents: Contents,
    /// Bytes on disk: blobs and snapshots, in allocated blocks.
    pub bytes_on_disk: u64,
    /// Seconds per phase.
    pub seconds: Phases,
    /// Bytes of free blocks that the disk was told of, where that was asked for and could be done.
    pub trimmed: Option<u64>,
    /// Staging directories of earlier bakes of this root that were killed; they can be removed.
    pub leftovers: Vec<String>,
}
