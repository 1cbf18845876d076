//! Images: which manifest of an index is for a platform, and the layers with their diff IDs.
//!
//! ```text
//! index ── best match for a platform ──> manifest {config, layers[]}
//! config {rootfs {type: "layers", diff_ids[]}}      one diff ID for each layer, lowest first
//! ```
//!
//! Mirrors what a pull by `BuildKit` does: containerd `core/images/image.go` (`LimitManifests`,
//! `RootFS`) and `platforms/compare.go` (`platformVector`).

use super::{Descriptor, Error, ImageConfig, Layer, Platform};
use crate::digest::ChainId;

impl ImageConfig {
    /// The layers of a manifest with this config, lowest first. What they unpack to is a claim until they
    /// are unpacked.
    ///
    /// # Errors
    /// The config has another number of layers, or no SHA-256 for one, or a layer cannot be had from the image's registry.
    pub fn layers(&self, layers: &[Descriptor]) -> Result<Vec<Layer>, Error> {
        let diff_ids = self.diff_ids();
        if diff_ids.len() != layers.len() {
            return Err(Error::LayerCount { manifest: layers.len(), config: diff_ids.len() });
        }
        let layers = layers.iter().zip(diff_ids);
        layers.map(|(layer, diff_id)| Layer::of_image(layer.clone(), diff_id.parse()?)).collect()
    }
}

/// Chain ID of all these layers; of none, none.
pub fn chain_id(layers: &[Layer]) -> Option<ChainId> {
    layers.iter().fold(None, |below, layer| Some(ChainId::of_layer(below, layer.diff_id)))
}

/// The manifest of an index that a daemon takes for `platform`: the first in the order of what such a
/// machine runs, and where none says what it is for, the first.
///
/// Attestations are for `unknown/unknown`, and so for nobody.
pub fn choose<'a>(manifests: &'a [Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let of = |wanted: &Platform| manifests.iter().find(|manifest| manifest.platform.as_ref() == Some(wanted));
    let unsaid = || manifests.iter().find(|manifest| manifest.platform.is_none());
    runs(platform).iter().find_map(of).or_else(unsaid)
}

/// What a machine of this platform runs, the best first.
fn runs(platform: &Platform) -> Vec<Platform> {
    let of = |arch: &str, variant: String| Platform::new(&platform.os, arch, &variant);
    let version = |default: u32| {
        let digits = platform.variant.strip_prefix('v').unwrap_or_default();
        if platform.variant.is_empty() { Some(default) } else { digits.parse::<u32>().ok() }
    };
    let mut all = vec![platform.clone()];
    let arm = |newest: u32| (5..=newest.min(8)).rev().map(move |v| of("arm", format!("v{v}")));
    match (platform.arch.as_str(), version(if platform.arch == "arm64" { 8 } else { 1 })) {
        ("amd64", newest) => {
            let older = (1..newest.unwrap_or(1).min(4)).rev();
            all.extend(older.map(|v| of("amd64", format!("v{v}"))));
            all.push(of("386", String::new()));
        }
        ("arm", Some(newest)) => all.extend(arm(newest.saturating_sub(1))),
        ("arm64", _) => {
            all.push(of("arm64", String::new()));
            all.extend(arm(8));
        }
        _ => {}
    }
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{DiffId, Digest};

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn layer(media_type: &str, name: &str) -> Descriptor {
        Descriptor::new(media_type, Digest::of(name.as_bytes()), 7)
    }

    fn config(names: &[&str]) -> ImageConfig {
        let ids: Vec<String> = names.iter().map(|name| DiffId::of(name.as_bytes()).to_string()).collect();
        let json = serde_json::json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } });
        ImageConfig::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn layers_and_diff_ids_go_together() {
        let config = config(&["a", "b"]);
        let layers = config.layers(&[layer(GZIP, "x"), layer(GZIP, "y")]).unwrap();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        assert_eq!(diff_ids, [DiffId::of(b"a"), DiffId::of(b"b")]);
        let below = ChainId::of_layer(None, DiffId::of(b"a"));
        assert_eq!(chain_id(&layers), Some(ChainId::of_layer(Some(below), DiffId::of(b"b"))));
        assert_eq!(chain_id(&[]), None);
    }

    #[test]
    fn says_why_an_image_cannot_be_had() {
        let cases: [(&[&str], &str, &str); 5] = [
            (&["a", "b"], GZIP, "1 layers, but its config has 2 diff IDs"),
            (
                &["a"],
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "is not kept in the image's registry",
            ),
            (
                &["a"],
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                "is not kept in the image's registry",
            ),
            (&["a"], "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
            (&["a"], "application/vnd.in-toto+json", "unknown media type \"application/vnd.in-toto+json\""),
        ];
        for (diff_ids, media_type, expected) in cases {
            let error = config(diff_ids).layers(&[layer(media_type, "x")]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let config = ImageConfig::parse(br#"{"rootfs":{"diff_ids":["sha512:00"]}}"#).unwrap();
        let error = config.layers(&[layer(GZIP, "x")]).unwrap_err().to_string();
        assert!(error.contains("sha512:00"), "{error}");
    }

    #[test]
    fn takes_the_manifest_that_a_daemon_takes() {
        let index: Vec<Descriptor> =
            ["unknown/unknown", "linux/386", "linux/arm/v6", "linux/amd64", "linux/arm64"]
                .iter()
                .map(|platform| {
                    let platform: Platform = platform.parse().unwrap();
                    let name = platform.to_string();
                    Descriptor { platform: Some(platform), ..layer("", &name) }
                })
                .collect();
        let cases = [
            ("linux/amd64", Some("linux/amd64")),
            ("linux/amd64/v3", Some("linux/amd64")),
            ("linux/386", Some("linux/386")),
            ("linux/arm64", Some("linux/arm64")),
            ("linux/arm/v7", Some("linux/arm/v6")),
            ("linux/arm/v5", None),
            ("linux/s390x", None),
            ("windows/amd64", None),
        ];
        let pick = |index: &[Descriptor], platform: &str| {
            let chosen = choose(index, &platform.parse().unwrap());
            chosen.map(|m| m.platform.as_ref().map(ToString::to_string).unwrap_or_default())
        };
        for (platform, expected) in cases {
            assert_eq!(pick(&index, platform).as_deref(), expected, "{platform}");
        }
        assert_eq!(pick(&index[..3], "linux/amd64").as_deref(), Some("linux/386"));
        assert_eq!(pick(&index[2..3], "linux/arm64").as_deref(), Some("linux/arm/v6"));
        assert_eq!(pick(&[layer("", "any")], "linux/amd64").as_deref(), Some(""));
        assert_eq!(pick(&[], "linux/amd64"), None);
    }
}
