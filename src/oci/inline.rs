//! The inline cache: records in the config of an image, whose own layers are those of the cache.
//!
//! ```text
//! config  {"os", "architecture", "variant",
//!          "rootfs":  {"diff_ids": [D0, D1, …]}           one for each layer of the manifest
//!          "history": [{"created", "created_by", "empty_layer"}, …]
//!          "moby.buildkit.cache.v0": base64 of the records of a cache config}
//! ```
//!
//! Layer 0 stands on nothing, and each other one on the one before. Mirrors `importInlineCache` of
//! `cache/remotecache/import.go` (v0.34), but that upstream passes over an image whose config and
//! manifest do not fit, and finds nothing then.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::cacheconfig::{CREATED_AT, DESCRIPTION, UNCOMPRESSED};
use super::{Cache, CacheConfig, CacheManifest, Descriptor, Error, Platform, json, media_type};
use crate::digest::Digest;

/// Whether a blob of this media type is the config of an image.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, media_type::OCI_CONFIG | media_type::DOCKER_CONFIG)
}

/// The config of an image, as far as a cache needs it.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    platform: Option<Platform>,
    raw: RawConfig,
}

#[derive(Debug, Clone, Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    rootfs: RootFs,
    #[serde(default)]
    history: Option<Vec<History>>,
    #[serde(default, rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct History {
    created: Option<String>,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    empty_layer: bool,
}

impl ImageConfig {
    /// Parses the JSON.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let raw: RawConfig = json::parse("the image config", bytes)?;
        let named = !raw.os.is_empty() && !raw.architecture.is_empty();
        let platform = named.then(|| Platform::new(&raw.os, &raw.architecture, &raw.variant));
        Ok(Self { platform, raw })
    }

    /// What the image runs on; `None` where the config does not tell, as that of an attestation.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// What the config claims that the layers unpack to, lowest first.
    pub(super) fn diff_ids(&self) -> &[String] {
        self.raw.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    /// The cache that the image carries; `None` where it carries none.
    ///
    /// `config` and `layers` are those of the image's manifest. What the cache says of a layer is what
    /// the image says of it: its diff ID, when it was made and by what.
    pub fn inline_cache(&self, config: &Descriptor, layers: &[Descriptor]) -> Result<Option<Cache>, Error> {
        let Some(cache) = self.raw.cache.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let invalid = |reason: String| Error::InlineCache { reason };
        let diff_ids = self.diff_ids();
        if diff_ids.len() != layers.len() {
            let (manifest, config) = (layers.len(), diff_ids.len());
            return Err(invalid(format!(
                "the manifest lists {manifest} layers, the config {config} diff IDs"
            )));
        }
        let records = STANDARD.decode(cache).map_err(|error| invalid(format!("not base64: {error}")))?;
        let mut made = self.raw.history.iter().flatten().filter(|history| !history.empty_layer);
        let mut layers: Vec<Descriptor> = layers.to_vec();
        for (layer, diff_id) in layers.iter_mut().zip(diff_ids) {
            let history = made.next();
            let created = history.and_then(|history| history.created.clone());
            let by = history.map(|history| history.created_by.clone()).filter(|by| !by.is_empty());
            layer.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.clone());
            for (key, value) in [(CREATED_AT, created), (DESCRIPTION, by)] {
                if let Some(value) = value {
                    layer.annotations.insert(key.to_owned(), value);
                }
            }
        }
        // A blob that comes twice is known by what was said of it last, as upstream has it.
        let last: BTreeMap<Digest, BTreeMap<String, String>> =
            layers.iter().map(|layer| (layer.digest, layer.annotations.clone())).collect();
        for layer in &mut layers {
            layer.annotations.clone_from(&last[&layer.digest]);
        }
        let cache = CacheConfig::of_image(&records, &layers)?;
        cache.resolve(&CacheManifest { config: config.clone(), layers }).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::DiffId;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn layers(names: &[&str]) -> Vec<Descriptor> {
        let layer = |name: &&str| {
            let mut layer = Descriptor::new(GZIP, Digest::of(name.as_bytes()), 9);
            layer.annotations.insert("containerd.io/snapshot/stargz/toc.digest".into(), "toc".into());
            layer
        };
        names.iter().map(layer).collect()
    }

    fn image(names: &[&str], records: &Value) -> Value {
        let records = STANDARD.encode(serde_json::to_vec(records).unwrap());
        let diff_ids: Vec<DiffId> = names.iter().map(|name| DiffId::of(name.as_bytes())).collect();
        json!({
            "os": "linux", "architecture": "aarch64", "variant": "v8",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [
                {"created": "2024-01-01T00:00:00Z", "created_by": "first"},
                {"created": "2024-01-02T00:00:00Z", "created_by": "ENV", "empty_layer": true},
                {"created": "2024-01-03T00:00:00.5Z", "created_by": "second"},
            ],
            "moby.buildkit.cache.v0": records,
        })
    }

    fn cache(image: &Value, names: &[&str]) -> Result<Option<Cache>, Error> {
        let config = Descriptor::new(media_type::OCI_CONFIG, Digest::of(b"config"), 1);
        ImageConfig::parse(image.to_string().as_bytes())?.inline_cache(&config, &layers(names))
    }

    fn record(name: &str) -> Value {
        json!({"digest": Digest::of(name.as_bytes())})
    }

    #[test]
    fn the_layers_are_those_of_the_image() {
        let mut top = record("top");
        top["layers"] = json!([{"layer": 1, "createdAt": "2024-05-06T07:08:09Z"}]);
        top["inputs"] = json!([[{"link": 1}]]);
        let mut alone = record("alone");
        alone["chains"] = json!([{"layers": [1]}]);
        let image = image(&["a", "b"], &json!([top, record("root"), alone]));
        let cache = cache(&image, &["a", "b"]).unwrap().unwrap();

        let by_digest = |name: &str| {
            cache.records.iter().find(|r| r.digest.to_string() == Digest::of(name.as_bytes()).to_string())
        };
        let blobs = |chain: &[usize]| -> Vec<Digest> {
            chain.iter().map(|&layer| cache.layers[layer].descriptor.digest).collect()
        };
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(blobs(&by_digest("top").unwrap().results[0].layers), [a, b]);
        assert_eq!(blobs(&by_digest("alone").unwrap().results[0].layers), [b]);
        assert!(by_digest("root").unwrap().results.is_empty());

        let of = |digest| cache.layers.iter().find(|layer| layer.descriptor.digest == digest).unwrap();
        assert_eq!(of(a).diff_id, DiffId::of(b"a"));
        assert_eq!(of(b).description.as_deref(), Some("second"));
        assert_eq!(of(b).created_at.unwrap().to_string(), "2024-01-03T00:00:00.5Z");
        assert_eq!(of(b).descriptor.annotations["containerd.io/snapshot/stargz/toc.digest"], "toc");
    }

    #[test]
    fn a_layer_that_comes_twice_is_one_blob() {
        let mut top = record("top");
        top["layers"] = json!([{"layer": 1}]);
        let cache = cache(&image(&["a", "a"], &json!([top])), &["a", "a"]).unwrap().unwrap();
        assert_eq!(cache.layers.len(), 1);
        assert_eq!(cache.records[0].results[0].layers, [0, 0]);
        assert_eq!(cache.layers[0].description.as_deref(), Some("second"));
    }

    #[test]
    fn an_image_without_cache_has_none() {
        let mut without = image(&["a"], &json!([record("x")]));
        for value in [Value::Null, json!("")] {
            without["moby.buildkit.cache.v0"] = value;
            assert!(cache(&without, &["a"]).unwrap().is_none());
        }
        for image in ["{}", r#"{"rootfs":{"diff_ids":null},"history":null}"#] {
            let config = ImageConfig::parse(image.as_bytes()).unwrap();
            assert!(config.platform().is_none());
            assert!(config.inline_cache(&layers(&["a"])[0], &[]).unwrap().is_none());
        }
    }

    #[test]
    fn the_history_may_be_short_or_absent() {
        let mut top = record("top");
        top["layers"] = json!([{"layer": 1}]);
        let mut image = image(&["a", "b"], &json!([top]));
        image["history"] = json!([{"created": null}]);
        let cache = cache(&image, &["a", "b"]).unwrap().unwrap();
        assert!(cache.layers.iter().all(|layer| layer.created_at.is_none() && layer.description.is_none()));
    }

    #[test]
    fn tells_its_platform() {
        let config = ImageConfig::parse(image(&[], &json!([])).to_string().as_bytes()).unwrap();
        assert_eq!(config.platform().unwrap().to_string(), "linux/arm64");
    }

    #[test]
    fn says_what_is_wrong() {
        let good = image(&["a"], &json!([record("x")]));
        let with = |text: &str| {
            let mut image = good.clone();
            image["moby.buildkit.cache.v0"] = json!(text);
            image
        };
        let encoded = |json: &str| with(&STANDARD.encode(json));
        let with_input =
            |link: i64| json!([{"digest": Digest::of(b"x"), "inputs": [[{"link": link}]]}]).to_string();
        let mut no_diff_id = good.clone();
        no_diff_id["rootfs"]["diff_ids"] = json!(["sha512:00"]);
        let cases = [
            (image(&["a", "b"], &json!([record("x")])), "1 layers, the config 2 diff IDs"),
            (with("*"), "not base64"),
            (encoded("{}"), "the inline cache is not valid"),
            (encoded("[]"), "the cache is empty"),
            (encoded(r#"[{"digest":"sha256:12"}]"#), "the inline cache is not valid"),
            (
                encoded(&json!([{"digest": Digest::of(b"x"), "layers": [{"layer": 1}]}]).to_string()),
                "points at layer 1",
            ),
            (encoded(&with_input(0)), "cycle through record 0"),
            (encoded(&with_input(7)), "points at record 7"),
            (encoded(&with_input(-1)), "points at record -1"),
            (encoded(&"[".repeat(10_000)), "the inline cache is not valid"),
            (no_diff_id, "diff ID is unknown"),
        ];
        for (image, expected) in cases {
            let text = cache(&image, &["a"]).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}\n  wanted: {expected}");
        }
        let text = ImageConfig::parse(b"[").unwrap_err().to_string();
        assert!(text.contains("the image config is not valid"), "{text}");
    }
}
