//! Reads caches and key sources: every small document, not a single layer.
//!
//! ```text
//! CACHE         caches, inline ──> records, layers ───────┬──> coverage: which records a build finds
//!               sidecar ─────────> operation digests ─┐   │    by their keys
//! --keys-from   keys, builder ───> operation digests ─┴─> keys: what is proven, and by which source
//! --platform    platforms ───────> without what only builds for others use
//! provenance    images ──────────> images that builds start from
//!                                  blobs: the layers of all of these, each once
//!                                  tars: what those unpack to, as far as their last bytes tell
//! ```
//!
//! `bake` goes on from here to the layers; `check` is what only asks after keys, and ends here. `parallel`
//! does several of a kind at a time.

mod blobs;
pub mod builder;
mod caches;
mod check;
mod coverage;
mod error;
mod images;
mod inline;
mod keys;
mod parallel;
mod platforms;
pub mod sidecar;
mod tars;

use crate::oci::Platform;
use crate::source;

pub use blobs::{Blob, add_images, blobs, earliest};
pub use caches::{All, BakedCache, Missing, Opened, open, open_all};
pub use check::{Check, Gathered, StepReport, check, gather};
pub use coverage::{Coverage, Covered, Status, Unkeyed};
pub use error::{Error, ErrorClass};
pub use images::{Image, ImageDocument, Images, OpenedImage, SeededImage, SkippedImage, open_images};
pub use keys::{KeySourceReport, Keys, Offer, collect, offers, prove};
pub use platforms::keep_platforms;
pub use tars::{TarSize, tar_size_said, tar_sizes};

/// How caches and key sources are read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only what builds for these platforms use, as far as caches and key sources tell, and the platforms
    /// that operations ran on that name none. Empty: everything, and this machine's platform.
    pub platforms: Vec<Platform>,
    /// Leave aside the sidecars that stand beside caches.
    pub no_sidecar: bool,
    /// How registries are talked to; its `stop` ends the reading.
    pub registry: source::Options,
}

impl Options {
    /// What operations ran on that name no platform. Never empty.
    fn builders(&self) -> Vec<Platform> {
        if self.platforms.is_empty() { vec![Platform::host()] } else { self.platforms.clone() }
    }

    fn check(&self) -> Result<(), Error> {
        if self.registry.stop.is_stopped() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
