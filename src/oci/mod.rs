//! OCI and cache-config documents: bytes in, types out, no I/O.
//!
//! Manifests are parsed by `oci-spec`; what this module adds is what a cache needs: which of the
//! many document forms is a cache, and layers and records whose indexes have been checked.

pub mod artifact;
pub mod cacheconfig;
pub mod descriptor;
pub mod image;
pub mod inline;
pub mod json;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;

pub use artifact::{Artifact, Referrer, ReferrersList};
pub use cacheconfig::{Cache, CacheConfig, Layer, Record};
pub use descriptor::Descriptor;
pub use inline::ImageConfig;
pub use manifest::{CacheManifest, Document};
pub use media_type::Compression;
pub use oci_spec::distribution::Reference;
pub use platform::Platform;

use crate::digest::{Digest, RecordDigest};

/// Why a document is not a cache that can be baked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not JSON, or JSON of another shape.
    #[error("{what} is not valid: {source}")]
    Json {
        /// Which document.
        what: &'static str,
        /// What the parser said, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// JSON that is much longer in memory than it looks.
    #[error(
        "{what} has more than {limit} values: no build's is that large, so it is damaged or meant to harm"
    )]
    TooManyValues {
        /// Which document.
        what: &'static str,
        /// The most that are read.
        limit: usize,
    },
    /// JSON, but neither a manifest nor an index.
    #[error("unknown manifest media type {media_type:?}")]
    UnknownManifest {
        /// The media type that was found; empty where the document names none.
        media_type: String,
    },
    /// An ordinary image (or another artifact) where a cache was expected.
    #[error(
        "{what}, not a build cache: its config has media type {media_type:?}, a cache has {expected:?}; \
         name what --cache-to type=registry,ref=REF exported",
        expected = media_type::CACHE_CONFIG
    )]
    NotACache {
        /// What it looks like.
        what: &'static str,
        /// The config's media type.
        media_type: String,
    },
    /// An image that carries no inline cache.
    #[error(
        "{what}, not a build cache, and {which} inline cache: name what --cache-to \
         type=registry,ref=REF exported, or push the image with --cache-to type=inline",
        which = if *.platforms == 1 { "it carries no" } else { "none of its platforms carries" }
    )]
    NoInlineCache {
        /// What it is.
        what: &'static str,
        /// Of how many platforms it is.
        platforms: usize,
    },
    /// An index that lists indexes that list indexes, and so on.
    #[error("the image index is nested more than {limit} levels deep")]
    TooDeep {
        /// How many levels are read.
        limit: usize,
    },
    /// An image whose inline cache and layers do not fit together.
    #[error("the image's inline cache is not valid: {reason}")]
    InlineCache {
        /// What is wrong with it.
        reason: String,
    },
    /// A document of another kind where a registry lists what refers to a manifest.
    #[error("expected a list of referrers, found media type {media_type:?} or no list of manifests")]
    NotReferrers {
        /// Its media type.
        media_type: String,
    },
    /// A cache without a single record.
    #[error("the cache is empty: it has no records")]
    Empty,
    /// A digest in a descriptor that is not sha256.
    #[error(transparent)]
    Digest(#[from] crate::digest::ParseDigestError),
    /// A layer blob whose media type is not that of a layer.
    #[error("layer {digest} has unknown media type {media_type:?}")]
    UnknownLayer {
        /// The layer's blob.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer without its diff ID.
    #[error("layer {digest} has no valid annotation {annotation}, so its diff ID is unknown")]
    NoDiffId {
        /// The layer's blob.
        digest: Digest,
        /// The annotation that should hold it.
        annotation: &'static str,
    },
    /// A layer of a config that stands alone, and nothing says what it is.
    #[error("cache config layer {index} ({blob}) has no annotations, and there is no manifest")]
    NoLayerAnnotations {
        /// Index in the config's `layers`.
        index: usize,
        /// The layer's blob.
        blob: Digest,
    },
    /// An annotation of such a layer that makes no sense.
    #[error("cache config layer {index} ({blob}): invalid {name} {value:?}")]
    LayerAnnotation {
        /// Index in the config's `layers`.
        index: usize,
        /// The layer's blob.
        blob: Digest,
        /// Which annotation.
        name: &'static str,
        /// What it is; empty where it is absent.
        value: String,
    },
    /// Two layers of one blob that say different things of it.
    #[error("cache config layer {index} ({blob}) has other annotations than an earlier one of the same blob")]
    LayerAnnotationsDiffer {
        /// Index of the later one in the config's `layers`.
        index: usize,
        /// The blob.
        blob: Digest,
    },
    /// A cache, an artifact or an index where an image was expected.
    #[error("not an image: its config has media type {media_type:?}")]
    NotAnImage {
        /// The config's media type, or that of an index inside an index.
        media_type: String,
    },
    /// An image whose config does not fit its manifest.
    #[error("the image's manifest has {manifest} layers, but its config has {config} diff IDs")]
    LayerCount {
        /// Layers of the manifest.
        manifest: usize,
        /// Diff IDs of the config.
        config: usize,
    },
    /// A layer that only its publisher hands out, as those of old Windows images.
    #[error("layer {digest} is not kept in the image's registry (a foreign layer), so it cannot be seeded")]
    ForeignLayer {
        /// The layer's blob.
        digest: Digest,
    },
    /// A layer for which a key is needed.
    #[error("layer {digest} is encrypted; BuildKit cannot read it either")]
    EncryptedLayer {
        /// The layer's blob.
        digest: Digest,
    },
    /// An index that has nothing for a platform.
    #[error("the image has no manifest for {platform}; it has {}", list(.found))]
    NoPlatform {
        /// What was looked for.
        platform: Box<Platform>,
        /// What there is.
        found: Vec<Platform>,
    },
    /// An image of the format before manifests had a config.
    #[error(
        "the image has a schema 1 manifest, which BuildKit no longer reads; push it again with a current tool"
    )]
    Schema1,
    /// The config names a blob that the manifest does not list.
    #[error("cache config layer {index} names blob {digest}, which the manifest does not list")]
    LayerNotListed {
        /// Index in the config's `layers`.
        index: usize,
        /// The blob named.
        digest: Digest,
    },
    /// The manifest lists a blob that the config never uses.
    #[error("the manifest lists layer {digest}, which the cache config does not name")]
    LayerNotNamed {
        /// The blob listed.
        digest: Digest,
    },
    /// An index that points outside its list.
    #[error("{place} points at {what} {index}, but there are only {len}")]
    OutOfRange {
        /// Where the index stands, such as `record 3 (sha256:…), input 0`.
        place: String,
        /// `layer` or `record`.
        what: &'static str,
        /// The index found.
        index: i64,
        /// How many there are.
        len: usize,
    },
    /// Layers whose parents, or records whose inputs, form a cycle.
    #[error("cache config has a cycle through {what} {index}")]
    Cycle {
        /// `layer` or `record`.
        what: &'static str,
        /// An index on the cycle.
        index: usize,
    },
    /// A chain of layers that nothing could mount.
    #[error("layer {index} is the top of {height} layers, and overlayfs stacks no more than {limit}")]
    TooHigh {
        /// Index in the config's `layers`.
        index: i64,
        /// How many they are.
        height: usize,
        /// The most that are taken.
        limit: usize,
    },
    /// More results, on more layers, than any build has.
    #[error("the results of the cache's records have more than {limit} layers in all")]
    TooManyLayers {
        /// The most that are taken.
        limit: usize,
    },
    /// An input without a single alternative.
    #[error("record {index} ({digest}): input {input} has no link")]
    EmptyInput {
        /// Index of the record.
        index: usize,
        /// Its digest.
        digest: RecordDigest,
        /// Which input.
        input: usize,
    },
    /// A platform that is not `os/arch[/variant]`.
    #[error("invalid platform {text:?}: expected OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64")]
    Platform {
        /// What was written.
        text: String,
    },
}

fn list(platforms: &[Platform]) -> String {
    let all: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    if all.is_empty() { "none at all".to_owned() } else { all.join(", ") }
}
