//! Opens the caches that an image carries in its configs, one for each of its platforms.
//!
//! ```text
//! index ─> manifest, linux/amd64 ─> config: records ──> a cache of these layers
//!      ├─> manifest, linux/arm64 ─> config: records ──> another
//!      ├─> attestation manifests                        passed over
//!      └─> index ─> …
//! ```

use std::collections::BTreeSet;

use super::{Error, Options};
use crate::digest::Digest;
use crate::keys::attestation;
use crate::oci::{self, Cache, Descriptor, Document, ImageConfig, Platform, inline, media_type};
use crate::progress::Progress;
use crate::source::Source;

/// How deep indexes may stand in indexes; tools write one level.
const MAX_DEPTH: usize = 4;

/// A cache that one platform's image carries.
pub(super) struct Inline {
    /// Of the manifest.
    pub(super) digest: Digest,
    pub(super) platform: Option<Platform>,
    /// `None` where the platform was not asked for; its config was not checked then.
    pub(super) cache: Option<Cache>,
}

/// An image while its manifests are read.
struct Image<'a> {
    source: &'a dyn Source,
    name: &'a str,
    options: &'a Options,
    progress: &'a dyn Progress,
    seen: BTreeSet<Digest>,
    /// Images found, with and without a cache.
    images: usize,
    found: Vec<Inline>,
}

/// Reads the inline caches of what `document`, the manifest or index with this digest, lists.
///
/// Never empty: at least one has a cache, or its platform was not asked for.
///
/// # Errors
/// No platform carries a cache, or what one carries is not valid. What is no image is an
/// [`oci::Error::NotACache`].
pub(super) fn read(
    source: &dyn Source,
    name: &str,
    (document, digest): (Document, Digest),
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Inline>, Error> {
    let is_index = matches!(document, Document::Index { .. });
    let mut image = Image {
        source,
        name,
        options,
        progress,
        seen: BTreeSet::from([digest]),
        images: 0,
        found: Vec::new(),
    };
    image.document(&document, digest, None, 0)?;
    let error = match (image.found.is_empty(), image.images) {
        (false, _) => return Ok(image.found),
        // Not an image either: what it is instead stands in the error.
        (true, 0) => match document.into_cache() {
            Err(error) => error,
            Ok(_) => oci::Error::NoInlineCache { what: "an image", platforms: 1 },
        },
        (true, platforms) => {
            let what = if is_index { "an image index" } else { "an image" };
            oci::Error::NoInlineCache { what, platforms }
        }
    };
    Err(image.invalid(error))
}

impl Image<'_> {
    fn invalid(&self, source: oci::Error) -> Error {
        Error::Cache { cache: self.name.to_owned(), source }
    }

    /// Whether an image for this platform was asked for.
    fn is_wanted(&self, platform: Option<&Platform>) -> bool {
        let wanted = &self.options.platforms;
        wanted.is_empty() || platform.is_none_or(|platform| wanted.contains(platform))
    }

    fn document(
        &mut self,
        document: &Document,
        digest: Digest,
        listed_for: Option<&Platform>,
        depth: usize,
    ) -> Result<(), Error> {
        match document {
            Document::Manifest { config, layers } => self.manifest(config, layers, digest, listed_for),
            Document::Index { manifests } => {
                for listed in manifests {
                    self.listed(listed, depth)?;
                }
                Ok(())
            }
        }
    }

    fn listed(&mut self, listed: &Descriptor, depth: usize) -> Result<(), Error> {
        self.options.check()?;
        let may_be_an_image = media_type::is_manifest(&listed.media_type);
        if !may_be_an_image || attestation::is_attestation(listed) || !self.seen.insert(listed.digest) {
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(self.invalid(oci::Error::TooDeep { limit: MAX_DEPTH }));
        }
        let platform = listed.platform.as_ref();
        let is_index = media_type::is_index(&listed.media_type);
        if !is_index && platform.is_some() && !self.is_wanted(platform) {
            self.images += 1;
            self.found.push(Inline { digest: listed.digest, platform: platform.cloned(), cache: None });
            return Ok(());
        }
        let manifest = self
            .source
            .manifest(Some(&listed.digest), self.progress)
            .map_err(|source| Error::Source { what: self.name.to_owned(), source: Box::new(source) })?;
        let document = Document::parse(&manifest.bytes).map_err(|error| self.invalid(error))?;
        self.document(&document, listed.digest, platform, depth + 1)
    }

    fn manifest(
        &mut self,
        config: &Descriptor,
        layers: &[Descriptor],
        digest: Digest,
        listed_for: Option<&Platform>,
    ) -> Result<(), Error> {
        if !inline::is_image_config(&config.media_type) {
            return Ok(());
        }
        let bytes = self
            .source
            .document(config, self.progress)
            .map_err(|source| Error::Source { what: self.name.to_owned(), source: Box::new(source) })?;
        let image = ImageConfig::parse(&bytes).map_err(|error| self.invalid(error))?;
        self.images += 1;
        let platform = listed_for.or(image.platform()).cloned();
        let cache = if self.is_wanted(platform.as_ref()) {
            match image.inline_cache(config, layers).map_err(|error| self.invalid(error))? {
                Some(cache) => Some(cache),
                None => return Ok(()),
            }
        } else {
            None
        };
        self.found.push(Inline { digest, platform, cache });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Write;
    use std::sync::Mutex;

    use base64::Engine as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::media_type::{DOCKER_CONFIG, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
    use crate::progress::Silent;
    use crate::source::{self, Content, Manifest, Stop};

    /// Documents by their digest, and which of them were asked for.
    #[derive(Default)]
    struct Documents {
        bytes: HashMap<Digest, Vec<u8>>,
        asked: Mutex<Vec<Digest>>,
    }

    impl Documents {
        fn add(&mut self, media_type: &str, document: &Value) -> Value {
            let bytes = document.to_string().into_bytes();
            let descriptor =
                json!({"mediaType": media_type, "digest": Digest::of(&bytes), "size": bytes.len()});
            self.bytes.insert(Digest::of(&bytes), bytes);
            descriptor
        }

        /// An image of one layer; with a cache of one record where it is given a name.
        fn image(&mut self, platform: &str, record: Option<&str>) -> Value {
            self.image_as(OCI_CONFIG, platform, record)
        }

        fn image_as(&mut self, config_type: &str, platform: &str, record: Option<&str>) -> Value {
            let (os, architecture) = platform.split_once('/').unwrap();
            let layer = Digest::of(platform.as_bytes());
            let mut config = json!({
                "os": os, "architecture": architecture, "rootfs": {"diff_ids": [layer]},
            });
            if let Some(record) = record {
                let records = json!([{"digest": Digest::of(record.as_bytes()), "layers": [{"layer": 0}]}]);
                let encoded = base64::engine::general_purpose::STANDARD.encode(records.to_string());
                config["moby.buildkit.cache.v0"] = json!(encoded);
            }
            let config = self.add(config_type, &config);
            let layer = json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 1,
            });
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
            let mut descriptor = self.add(OCI_MANIFEST, &manifest);
            descriptor["platform"] = json!({"os": os, "architecture": architecture});
            descriptor
        }

        fn index(&mut self, manifests: &[Value]) -> Value {
            self.add(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": manifests}))
        }

        /// What the image with this descriptor carries: platforms, and the record of each.
        fn read(&self, image: &Value, platforms: &[&str]) -> Result<Vec<(String, Option<String>)>, Error> {
            let digest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
            let document = Document::parse(&self.bytes[&digest]).unwrap();
            let platforms = platforms.iter().map(|platform| platform.parse().unwrap()).collect();
            let options = Options { platforms, ..Options::default() };
            let found = super::read(self, "the image", (document, digest), &options, &Silent)?;
            let told = |inline: Inline| {
                let record = inline.cache.map(|cache| cache.records[0].digest.to_string());
                (inline.platform.unwrap().to_string(), record)
            };
            Ok(found.into_iter().map(told).collect())
        }
    }

    impl Source for Documents {
        fn name(&self) -> String {
            "documents".to_owned()
        }

        fn manifest(&self, digest: Option<&Digest>, _: &dyn Progress) -> Result<Manifest, source::Error> {
            let digest = *digest.unwrap();
            self.asked.lock().unwrap().push(digest);
            Ok(Manifest { bytes: self.bytes[&digest].clone(), digest, media_type: String::new() })
        }

        fn content<'a>(&'a self, blob: &'a Descriptor) -> Box<dyn Content + 'a> {
            self.asked.lock().unwrap().push(blob.digest);
            Box::new(Whole(&self.bytes[&blob.digest]))
        }

        fn repository(&self) -> Option<(String, String)> {
            None
        }
    }

    struct Whole<'a>(&'a [u8]);

    impl Content for Whole<'_> {
        fn copy(&self, out: &mut dyn Write, _: &dyn Progress) -> Result<(), source::Error> {
            out.write_all(self.0).unwrap();
            Ok(())
        }

        fn tail(&self, _: u64, _: &dyn Progress) -> Result<Option<Vec<u8>>, source::Error> {
            Ok(None)
        }
    }

    fn carries(platform: &str, record: &str) -> (String, Option<String>) {
        (platform.to_owned(), Some(Digest::of(record.as_bytes()).to_string()))
    }

    #[test]
    fn one_image_is_one_cache() {
        for config_type in [OCI_CONFIG, DOCKER_CONFIG] {
            let mut documents = Documents::default();
            let image = documents.image_as(config_type, "linux/amd64", Some("a"));
            assert_eq!(documents.read(&image, &[]).unwrap(), [carries("linux/amd64", "a")]);
            assert_eq!(documents.read(&image, &["linux/amd64"]).unwrap(), [carries("linux/amd64", "a")]);
            let other = documents.read(&image, &["linux/arm64"]).unwrap();
            assert_eq!(other, [("linux/amd64".to_owned(), None)]);
        }
    }

    #[test]
    fn an_index_has_a_cache_for_each_platform_that_carries_one() {
        let mut documents = Documents::default();
        let amd64 = documents.image("linux/amd64", Some("a"));
        let arm64 = documents.image("linux/arm64", Some("b"));
        let bare = documents.image("linux/s390x", None);
        let mut attestation = documents.image("unknown/unknown", None);
        attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let strange = json!({"mediaType": "text/plain", "digest": Digest::of(b"strange"), "size": 7});
        let nested = documents.index(&[arm64.clone(), amd64.clone()]);
        let index = documents.index(&[amd64.clone(), attestation.clone(), bare, strange, nested, amd64]);
        let both = [carries("linux/amd64", "a"), carries("linux/arm64", "b")];
        assert_eq!(documents.read(&index, &[]).unwrap(), both);
        let attestation: Digest = attestation["digest"].as_str().unwrap().parse().unwrap();
        assert!(!documents.asked.lock().unwrap().contains(&attestation));

        // Of what is not wanted, nothing is read.
        documents.asked.lock().unwrap().clear();
        let chosen = documents.read(&index, &["linux/arm64"]).unwrap();
        let passed_over = |platform: &str| (platform.to_owned(), None);
        assert_eq!(
            chosen,
            [passed_over("linux/amd64"), passed_over("linux/s390x"), carries("linux/arm64", "b")]
        );
        assert_eq!(documents.asked.lock().unwrap().len(), 3, "an index, a manifest, its config");
    }

    #[test]
    fn says_what_it_is_where_there_is_no_cache() {
        let mut documents = Documents::default();
        let one = documents.image("linux/amd64", None);
        let two = documents.image("linux/arm64", None);
        let several = documents.index(&[one.clone(), two]);
        let artifact = documents.image_as("application/vnd.cncf.helm.config.v1+json", "linux/amd64", None);
        let empty = documents.index(&[]);
        let mut deep = documents.image("linux/amd64", Some("a"));
        for _ in 0..6 {
            deep = documents.index(&[deep]);
        }
        let broken = documents.image("linux/riscv64", Some("a"));
        let cases = [
            (&one, "the image: an image, not a build cache, and it carries no inline cache"),
            (&several, "an image index, not a build cache, and none of its platforms carries inline cache"),
            (&artifact, "its config has media type \"application/vnd.cncf.helm.config.v1+json\""),
            (&empty, "an image index, not a build cache"),
            (&deep, "nested more than 4 levels deep"),
        ];
        for (image, expected) in cases {
            let text = documents.read(image, &[]).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}\n  wanted: {expected}");
            assert!(text.contains("--cache-to") || text.contains("nested"), "{text}");
        }
        // What one platform carries and cannot be read is not passed over.
        let digest: Digest = broken["digest"].as_str().unwrap().parse().unwrap();
        let text = String::from_utf8(documents.bytes[&digest].clone()).unwrap();
        let text = text.replace("\"layers\":[{", "\"layers\":[],\"others\":[{");
        documents.bytes.insert(digest, text.into_bytes());
        let sound = documents.image("linux/amd64", Some("a"));
        let index = documents.index(&[sound, broken]);
        let text = documents.read(&index, &[]).unwrap_err().to_string();
        assert!(text.contains("the manifest lists 0 layers, the config 1 diff IDs"), "{text}");
    }

    #[test]
    fn a_signal_ends_it() {
        let mut documents = Documents::default();
        let image = documents.image("linux/amd64", Some("a"));
        let index = documents.index(&[image]);
        let digest: Digest = index["digest"].as_str().unwrap().parse().unwrap();
        let document = Document::parse(&documents.bytes[&digest]).unwrap();
        let stop = Stop::default();
        stop.stop();
        let options = Options {
            registry: source::Options { stop, ..source::Options::default() },
            ..Options::default()
        };
        let result = super::read(&documents, "the image", (document, digest), &options, &Silent);
        assert!(matches!(result, Err(Error::Interrupted)));
    }
}
