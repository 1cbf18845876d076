//! Operation digests: what a record with inputs is called in `cache.db`.
//!
//! A cache config names a record by `sha256("<operation digest>@<output>")`; `cache.db` links
//! records by the operation digest itself, which nothing in the cache tells. So candidates are
//! collected, from wherever they can be had, and proven:
//!
//! ```text
//!   provenance (LLB) ── dialects, platforms, rules ──┐
//!                                                    ├─▶ Candidates ── hash ──▶ Keyring
//!   cache.db, cache-debug.db, keys files ────────────┘   (any number,           (ProvenKey:
//!                                                         any quality)           nothing else)
//! ```
//!
//! A wrong candidate costs a hash and is never used: only [`Keyring::prove`] makes a [`ProvenKey`].
//!
//! Nothing here fetches: [`attestation`] says which manifests and blobs hold the provenance of an
//! image, and whoever has the registry brings their bytes.

pub mod attestation;
mod cachemap;
mod candidates;
mod dialects;
mod dockerfile;
mod expand;
pub mod file;
pub mod harvest;
pub mod images;
mod keyring;
mod known;
mod llb;
mod names;
pub mod provenance;
mod spec;
mod variables;
mod wire;
mod writers;

use std::io;
use std::path::PathBuf;

pub use candidates::{Candidates, Targets};
pub use images::UsedImage;
pub use keyring::{Keyring, ProvenKey};
pub use spec::{KeySpec, SpecProblem};

/// Why a source of keys could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key source that is not `NAME=VALUE,…` and no image reference.
    #[error("invalid key source {text:?}: {problem}; write {}", spec::FORMS)]
    Spec {
        /// What was written.
        text: String,
        /// What is wrong with it.
        problem: SpecProblem,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A document so long that it can be no provenance.
    #[error("the provenance is {size} bytes long; more than {limit} are not read")]
    TooLarge {
        /// Its length in bytes.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A document of so many values that it can be no provenance.
    #[error("the provenance holds more than {limit} values; no build has that many")]
    TooManyValues {
        /// The most that is read.
        limit: usize,
    },
    /// Not JSON.
    #[error("the provenance is not valid JSON: {source}")]
    Json {
        /// What the parser said, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// JSON without a provenance predicate.
    #[error(
        "no provenance found: expected an in-toto statement, a SLSA 0.2 or 1 predicate, or the metadata file of a build"
    )]
    NoProvenance,
    /// Provenance without the build's operations.
    #[error(
        "the provenance does not hold the build's operations: it was made with mode=min; \
         build with mode=max (for a metadata file, set BUILDX_METADATA_PROVENANCE=max)"
    )]
    NoOperations,
    /// A directory without a solver database.
    #[error(
        "{path} holds neither cache.db nor cache-debug.db; give a builder's root directory or one of these files",
        path = path.display()
    )]
    NoDatabase {
        /// The directory.
        path: PathBuf,
    },
    /// A file that is no bolt database, or one of which nothing can be read.
    #[error("{path} is no solver database that can be read: {source}", path = path.display())]
    NotBolt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: crate::bolt::Error,
    },
    /// A bolt database of another kind.
    #[error(
        "{path} is a bolt database, but neither cache.db (it has no bucket _links) nor cache-debug.db (byhash)",
        path = path.display()
    )]
    NotACacheDb {
        /// The file.
        path: PathBuf,
    },
    /// A keys file that is none.
    #[error(transparent)]
    File(#[from] file::Error),
    /// An attestation manifest or index that cannot be read.
    #[error(transparent)]
    Oci(#[from] crate::oci::Error),
}
