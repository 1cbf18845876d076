//! Manifests and indexes, and which of them is a cache.
//!
//! A cache comes in two forms (`cache/remotecache/export.go`): an image manifest whose config is the
//! cache config, and, from older releases or with `image-manifest=false`, an index that lists the
//! layers and one cache config as if they were manifests.

use oci_spec::image::{ImageIndex, ImageManifest};
use serde::Deserialize;

use super::media_type::{self, CACHE_CONFIG};
use super::{Descriptor, Error, inline};

/// A parsed manifest document.
#[derive(Debug, Clone)]
pub enum Document {
    /// An image manifest, of an image, a cache or another artifact.
    Manifest {
        /// The config blob.
        config: Descriptor,
        /// The layer blobs, lowest first.
        layers: Vec<Descriptor>,
    },
    /// An image index or manifest list.
    Index {
        /// What it lists.
        manifests: Vec<Descriptor>,
    },
}

/// The blobs that a cache consists of.
#[derive(Debug, Clone)]
pub struct CacheManifest {
    /// The cache config, media type [`CACHE_CONFIG`].
    pub config: Descriptor,
    /// The layers, in the order of the manifest.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: String,
    config: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// What a manifest says that it is; `None` where it does not.
pub fn media_type(bytes: &[u8]) -> Option<String> {
    let probe: Probe = serde_json::from_slice(bytes).ok()?;
    Some(probe.media_type).filter(|media_type| !media_type.is_empty())
}

impl Document {
    /// Parses a manifest or index by its own content: the media type that a registry sends along is
    /// not needed, and an OCI document may leave its own out.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let json = |source| Error::Json { what: "the manifest", source };
        let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
        let known = probe.media_type.is_empty() || media_type::is_manifest(&probe.media_type);
        match (known, probe.config.is_some(), probe.manifests.is_some()) {
            (true, true, false) => {
                let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(json)?;
                Ok(Self::Manifest {
                    config: manifest.config().try_into()?,
                    layers: manifest.layers().iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                })
            }
            (true, false, true) => {
                let index: ImageIndex = serde_json::from_slice(bytes).map_err(json)?;
                Ok(Self::Index {
                    manifests: index.manifests().iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                })
            }
            _ if probe.schema_version == Some(1) => Err(Error::Schema1),
            _ => Err(Error::UnknownManifest { media_type: probe.media_type }),
        }
    }

    /// Whether it is a cache, in either form.
    pub fn is_cache(&self) -> bool {
        match self {
            Self::Manifest { config, .. } => config.media_type == CACHE_CONFIG,
            Self::Index { manifests } => manifests.iter().any(|listed| listed.media_type == CACHE_CONFIG),
        }
    }

    /// Takes the document as a cache, in either form.
    pub fn into_cache(self) -> Result<CacheManifest, Error> {
        match self {
            Self::Manifest { config, layers } if config.media_type == CACHE_CONFIG => {
                Ok(CacheManifest { config, layers })
            }
            Self::Manifest { config, .. } => {
                Err(Error::NotACache { what: "an image manifest", media_type: config.media_type })
            }
            Self::Index { mut manifests } => {
                match manifests.iter().position(|d| d.media_type == CACHE_CONFIG) {
                    Some(at) => Ok(CacheManifest { config: manifests.remove(at), layers: manifests }),
                    None => Err(Error::NotACache {
                        what: "an image index",
                        media_type: manifests.into_iter().next().map(|d| d.media_type).unwrap_or_default(),
                    }),
                }
            }
        }
    }

    /// Takes the document as the manifest of an image: its config and its layers.
    pub fn into_image(self) -> Result<(Descriptor, Vec<Descriptor>), Error> {
        match self {
            Self::Manifest { config, layers } if inline::is_image_config(&config.media_type) => {
                Ok((config, layers))
            }
            Self::Manifest { config, .. } => Err(Error::NotAnImage { media_type: config.media_type }),
            Self::Index { .. } => Err(Error::NotAnImage { media_type: media_type::OCI_INDEX.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":2}}"#)
    }

    fn cache(json: &str) -> Result<CacheManifest, Error> {
        Document::parse(json.as_bytes())?.into_cache()
    }

    #[test]
    fn both_forms_are_a_cache() {
        let (config, layer) =
            (descriptor(CACHE_CONFIG), descriptor("application/vnd.oci.image.layer.v1.tar"));
        let forms = [
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{layer}]}}"#,
                media_type::DOCKER_MANIFEST
            ),
            format!(r#"{{"schemaVersion":2,"manifests":[{layer},{config}]}}"#),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{config},{layer}]}}"#,
                media_type::DOCKER_LIST
            ),
        ];
        for form in forms {
            let cache = cache(&form).unwrap();
            assert_eq!((cache.config.media_type.as_str(), cache.layers.len()), (CACHE_CONFIG, 1), "{form}");
        }
    }

    #[test]
    fn says_what_it_is_instead() {
        let image = descriptor("application/vnd.oci.image.config.v1+json");
        let manifest = descriptor(media_type::OCI_MANIFEST);
        let evil = manifest.replace(DIGEST, "sha256:../../etc/passwd");
        let cases = [
            (
                format!(r#"{{"schemaVersion":2,"config":{image},"layers":[]}}"#),
                "an image manifest, not a build cache",
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#),
                "an image index, not a build cache",
            ),
            (format!(r#"{{"schemaVersion":2,"manifests":[{evil}]}}"#), "the manifest is not valid"),
            (r#"{"schemaVersion":1,"name":"x"}"#.to_owned(), "schema 1 manifest"),
            (r#"{"schemaVersion":2,"name":"x"}"#.to_owned(), "unknown manifest media type"),
            (r#"{"schemaVersion":2,"mediaType":"text/html"}"#.to_owned(), "\"text/html\""),
            ("<html>".to_owned(), "the manifest is not valid"),
        ];
        for (json, expected) in cases {
            let text = cache(&json).unwrap_err().to_string();
            assert!(text.contains(expected), "{json}\n  gave: {text}");
        }
    }
}
