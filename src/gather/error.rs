//! Why a cache or key source could not be read.

use crate::{keys, oci, source};

/// A cache or key source that could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A cache or image could not be read.
    #[error("{what}: {source}")]
    Source {
        /// As it was asked for.
        what: String,
        /// What went wrong.
        source: source::Error,
    },
    /// What was read is not a cache that can be baked.
    #[error("{cache}: {source}")]
    Cache {
        /// As it was asked for.
        cache: String,
        /// What is wrong with it.
        source: oci::Error,
    },
    /// An image to seed is none, or not one that can be seeded.
    #[error("image {image}: {source}")]
    Image {
        /// As it was asked for.
        image: String,
        /// What is wrong with it.
        source: oci::Error,
    },
    /// A key source could not be used.
    #[error("--keys-from {what}: {source}")]
    Keys {
        /// As it was asked for.
        what: String,
        /// What went wrong.
        source: keys::Error,
    },
    /// The image of a key source is not valid.
    #[error("--keys-from {image}: {source}")]
    KeyImage {
        /// As it was asked for.
        image: String,
        /// What is wrong with it.
        source: oci::Error,
    },
    /// An image without provenance.
    #[error(
        "--keys-from {image}: the image has no provenance for this platform; push it with \
         `--provenance mode=max` (buildx) or `--opt attest:provenance=mode=max` (buildctl)"
    )]
    NoAttestation {
        /// As it was asked for.
        image: String,
    },
    /// A signal ended it.
    #[error("interrupted")]
    Interrupted,
}

/// What an [`Error`] means for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// A cache or key source was not written as it has to be.
    Spec,
    /// A cache or key source could not be read.
    Source,
    /// A registry refused the credentials.
    Authentication,
    /// What was read is not what its digest says, or not a cache.
    Content,
    /// The machine: a file, a signal.
    Other,
}

impl From<&source::Error> for ErrorClass {
    fn from(error: &source::Error) -> Self {
        match error.class() {
            source::ErrorClass::Spec => Self::Spec,
            source::ErrorClass::Unavailable => Self::Source,
            source::ErrorClass::Auth => Self::Authentication,
            source::ErrorClass::Content => Self::Content,
            source::ErrorClass::Output => Self::Other,
        }
    }
}

impl Error {
    /// What this means for whoever asked.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Source { source, .. } => source.into(),
            Self::Keys { .. } | Self::NoAttestation { .. } => ErrorClass::Source,
            Self::Cache { .. } | Self::Image { .. } | Self::KeyImage { .. } => ErrorClass::Content,
            Self::Interrupted => ErrorClass::Other,
        }
    }
}
