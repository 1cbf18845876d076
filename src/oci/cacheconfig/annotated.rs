//! Cache configs that stand alone, as object stores have them: what a manifest says of a layer
//! elsewhere is in annotations of the config's layers.
//!
//! ```text
//! layers[]  {blob, parent, annotations {mediaType, diffID, size, createdAt}}
//! ```
//!
//! Mirrors `LayerAnnotations` of `cache/remotecache/v1/types/spec.go` and `makeDescriptorProviderPair` of
//! `cache/remotecache/{s3,azblob,gha}` (v0.34).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::Deserialize;

use super::{CREATED_AT, Cache, CacheConfig, UNCOMPRESSED, parse_time};
use crate::digest::{DiffId, Digest};
use crate::oci::media_type::CACHE_CONFIG;
use crate::oci::{CacheManifest, Compression, Descriptor, Error};

/// As they stand there; none of it is checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Annotations {
    #[serde(default)]
    media_type: String,
    #[serde(default, rename = "diffID")]
    diff_id: String,
    #[serde(default)]
    size: i64,
    #[serde(default)]
    created_at: Option<String>,
}

impl Annotations {
    /// The descriptor that a manifest would have for this layer.
    fn descriptor(&self, index: usize, blob: Digest) -> Result<Descriptor, Error> {
        let fault = |name, value: &str| Error::LayerAnnotation { index, blob, name, value: value.to_owned() };
        if Compression::of_layer(&self.media_type).is_none() {
            return Err(fault("mediaType", &self.media_type));
        }
        let diff_id: DiffId = self.diff_id.parse().map_err(|_| fault("diffID", &self.diff_id))?;
        // No layer is without a byte: even of an empty one there is the end of its tar.
        let size = u64::try_from(self.size).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| fault("size", &self.size.to_string()))?;
        let mut descriptor = Descriptor::new(self.media_type.as_str(), blob, size);
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        if let Some(text) = self.created_at.as_deref().filter(|text| !text.is_empty()) {
            text.parse::<jiff::Timestamp>().map_err(|_| fault("createdAt", text))?;
            // Go's zero time says that none is known.
            if parse_time(text).is_some() {
                descriptor.annotations.insert(CREATED_AT.to_owned(), text.to_owned());
            }
        }
        Ok(descriptor)
    }
}

impl CacheConfig {
    /// As [`CacheConfig::resolve`], for a config without a manifest, which has these bytes.
    ///
    /// # Errors
    /// A layer has no annotations, or one that makes no sense, or one blob has different ones.
    pub fn resolve_alone(self, bytes: &[u8]) -> Result<Cache, Error> {
        let mut layers = Vec::new();
        let mut seen = BTreeMap::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let annotations =
                layer.annotations.as_ref().ok_or(Error::NoLayerAnnotations { index, blob: layer.blob })?;
            match seen.entry(layer.blob) {
                Entry::Vacant(entry) => {
                    layers.push(annotations.descriptor(index, layer.blob)?);
                    entry.insert(annotations);
                }
                Entry::Occupied(entry) if *entry.get() == annotations => {}
                Entry::Occupied(_) => return Err(Error::LayerAnnotationsDiffer { index, blob: layer.blob }),
            }
        }
        let config = Descriptor::new(CACHE_CONFIG, Digest::of(bytes), bytes.len() as u64);
        self.resolve(&CacheManifest { config, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn annotations(changed: &str) -> String {
        let mut all = serde_json::json!({
            "mediaType": GZIP,
            "diffID": DiffId::of(b"tar").to_string(),
            "size": 10,
            "createdAt": "2024-01-02T03:04:05Z",
        });
        let change: serde_json::Value = serde_json::from_str(changed).unwrap();
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        all.to_string()
    }

    fn resolve(layers: &[String]) -> Result<Cache, Error> {
        let blob = Digest::of(b"blob");
        let layers: Vec<_> =
            layers.iter().map(|rest| format!(r#"{{"blob":"{blob}","parent":-1{rest}}}"#)).collect();
        let json = format!(
            r#"{{"layers":[{}],"records":[{{"digest":"{blob}","layers":[{{"layer":0}}]}}]}}"#,
            layers.join(",")
        );
        CacheConfig::parse(json.as_bytes())?.resolve_alone(json.as_bytes())
    }

    fn with(changed: &str) -> String {
        format!(r#","annotations":{}"#, annotations(changed))
    }

    #[test]
    fn annotations_are_what_a_manifest_would_say() {
        let cache = resolve(&[with("{}"), with("{}")]).unwrap();
        assert_eq!(cache.layers.len(), 1);
        let layer = &cache.layers[0];
        assert_eq!((layer.descriptor.size, layer.compression), (10, Compression::Gzip));
        assert_eq!(layer.diff_id, DiffId::of(b"tar"));
        assert_eq!(layer.created_at.unwrap().to_string(), "2024-01-02T03:04:05Z");
        let zero = resolve(&[with(r#"{"createdAt":"0001-01-01T00:00:00Z"}"#)]).unwrap();
        assert_eq!(zero.layers[0].created_at, None);
    }

    #[test]
    fn every_value_is_checked() {
        let cases = [
            (vec![String::new()], "has no annotations"),
            (vec![with(r#"{"mediaType":"text/html"}"#)], "mediaType \"text/html\""),
            (vec![with(r#"{"mediaType":""}"#)], "mediaType \"\""),
            (vec![with(r#"{"diffID":"sha256:../../x"}"#)], "diffID \"sha256:../../x\""),
            (vec![with(r#"{"diffID":""}"#)], "diffID \"\""),
            (vec![with(r#"{"size":-1}"#)], "size \"-1\""),
            (vec![with(r#"{"size":0}"#)], "size \"0\""),
            (vec![with(r#"{"size":"10"}"#)], "not valid"),
            (vec![with(r#"{"createdAt":"yesterday"}"#)], "createdAt \"yesterday\""),
            (vec![with("{}"), with(r#"{"size":11}"#)], "other annotations"),
        ];
        for (layers, expected) in cases {
            let text = resolve(&layers).unwrap_err().to_string();
            assert!(text.contains(expected), "{layers:?}\n  gave: {text}");
        }
    }
}
