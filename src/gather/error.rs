//! Why a cache or key source could not be read.

use std::fmt::Write as _;

use super::Missing;
use crate::digest::Digest;
use crate::oci::Platform;
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
        source: Box<source::Error>,
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
    /// A registry lost a layer of an image.
    #[error(
        "image {image}: its registry no longer has layer {layer}, which its manifest lists: push the image again"
    )]
    ImageLayer {
        /// As it was asked for.
        image: String,
        /// The layer's blob.
        layer: Digest,
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
    /// A builder could not be read.
    #[error("--keys-from {what}: {source}")]
    Builder {
        /// As it was asked for.
        what: String,
        /// What went wrong.
        source: Box<super::builder::Error>,
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
    /// An image with inline cache, but not for a platform that was asked for.
    #[error("{cache}: the image is for {}, not for {}", platforms(held), platforms(wanted))]
    NoPlatform {
        /// As it was asked for.
        cache: String,
        /// The platforms that were asked for.
        wanted: Vec<Platform>,
        /// The platforms that the image is for.
        held: Vec<Platform>,
    },
    /// A platform that was asked for and that no cache is for.
    #[error("no cache is for --platform {platform}: they are for {}", platforms(held))]
    PlatformNotHeld {
        /// The platform.
        platform: Platform,
        /// The platforms that were baked otherwise.
        held: Vec<Platform>,
    },
    /// Some of several caches are not there.
    #[error(
        "{} of {total} caches are not there:{}\n--skip-missing goes on without them",
        missing.len(),
        reasons(missing)
    )]
    Missing {
        /// Which, in the order in which they were asked for.
        missing: Vec<Missing>,
        /// How many were asked for.
        total: usize,
    },
    /// Nothing is left when what is missing is left out.
    #[error("none of the {} caches is there:{}", missing.len(), reasons(missing))]
    AllMissing {
        /// Which, in the order in which they were asked for.
        missing: Vec<Missing>,
    },
    /// Two caches disagree on what a blob is.
    #[error(
        "{} and {} claim different {what} for layer {digest}: {} {}, {} {}; \
         one of the two is damaged, and reading each by itself tells which",
        claims[0].0, claims[1].0, claims[0].0, claims[0].1, claims[1].0, claims[1].1
    )]
    Claims {
        /// The blob.
        digest: Digest,
        /// `diff IDs` or `sizes`.
        what: &'static str,
        /// Each cache, as it was asked for, with what it claims.
        claims: Box<[(String, String); 2]>,
    },
    /// What stands beside a cache could not be read.
    #[error("sidecar of {cache}: {source}; bake and keys check do without it with --no-sidecar")]
    Sidecar {
        /// The cache, as it was asked for.
        cache: String,
        /// What went wrong.
        source: Box<source::Error>,
    },
    /// What stands beside a cache is damaged, or not what it says.
    #[error(
        "sidecar {sidecar} of {cache}: {problem}; push it again with `warmkit keys push --no-sidecar`; \
         bake and keys check do without it with --no-sidecar"
    )]
    SidecarContent {
        /// The cache, as it was asked for.
        cache: String,
        /// The digest of the sidecar's manifest.
        sidecar: Digest,
        /// What is wrong with it.
        problem: Box<super::sidecar::Problem>,
    },
    /// A sidecar for a cache that is in no registry.
    #[error(
        "{cache}: a sidecar is pushed to a registry, and this cache is in none; \
         keep its keys in a file, and give that to a bake as --keys-from type=keys,src=FILE"
    )]
    NoRegistry {
        /// As it was asked for.
        cache: String,
    },
    /// Nothing to push.
    #[error(
        "none of the {records} records of {cache} that need a key has one, so nothing was pushed: \
         {}",
        if sources.is_empty() { "give --keys-from a source" } else { "the key sources are those of another build" }
    )]
    NothingProven {
        /// As it was asked for.
        cache: String,
        /// Records that need a key.
        records: usize,
        /// What was tried.
        sources: Vec<super::KeySourceReport>,
    },
    /// There is no sidecar.
    #[error("there is no sidecar of {cache}: push one with `warmkit keys push`")]
    NoSidecar {
        /// As it was asked for.
        cache: String,
    },
    /// A signal ended it.
    #[error("interrupted")]
    Interrupted,
}

/// What an [`Error`], or that of a bake, means for whoever asked.
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
    /// Records have no key.
    Unkeyed,
    /// What a bake would write is taken.
    Target,
    /// The target's disk is too small, or full.
    Space,
    /// The machine: not root, a file, a signal.
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
            Self::Source { source, .. } => (&**source).into(),
            Self::Sidecar { source, .. } => source.as_ref().into(),
            Self::NoRegistry { .. } => ErrorClass::Spec,
            Self::NothingProven { .. } => ErrorClass::Unkeyed,
            Self::NoSidecar { .. }
            | Self::ImageLayer { .. }
            | Self::Keys { .. }
            | Self::Builder { .. }
            | Self::NoAttestation { .. }
            | Self::NoPlatform { .. }
            | Self::PlatformNotHeld { .. }
            | Self::Missing { .. }
            | Self::AllMissing { .. } => ErrorClass::Source,
            Self::Cache { .. }
            | Self::Image { .. }
            | Self::KeyImage { .. }
            | Self::Claims { .. }
            | Self::SidecarContent { .. } => ErrorClass::Content,
            Self::Interrupted => ErrorClass::Other,
        }
    }
}

/// A line for each.
fn reasons(missing: &[Missing]) -> String {
    missing.iter().fold(String::new(), |mut text, missing| {
        let _ = write!(text, "\n  {}: {}", missing.cache, missing.reason);
        text
    })
}

fn platforms(list: &[Platform]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
