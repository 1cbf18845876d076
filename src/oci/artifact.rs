//! Artifacts that refer to a manifest, and the lists in which a registry tells them.
//!
//! ```text
//! image manifest  {artifactType, config: {} of type "empty", layers: [one], subject, annotations}
//! image index     {manifests: [{mediaType, digest, size, artifactType, annotations}, …]}
//!                  the answer of the referrers API, and what a tag sha256-<hex> holds without one
//! ```
//!
//! OCI image-spec 1.1, "Guidelines for Artifact Usage", and distribution-spec 1.1, "Listing Referrers"
//! and "Referrers Tag Schema".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::media_type::{OCI_EMPTY, OCI_INDEX, OCI_MANIFEST};
use super::{Descriptor, Error};
use crate::digest::Digest;

/// The bytes of the config that an artifact has which needs none.
pub const EMPTY: &[u8] = b"{}";

/// A manifest that is no image: something that belongs to another manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// What it is.
    pub artifact_type: String,
    /// What it consists of.
    pub layers: Vec<Descriptor>,
    /// What it belongs to; without annotations.
    pub subject: Option<Descriptor>,
    /// Empty where there are none.
    pub annotations: BTreeMap<String, String>,
}

/// An artifact as a list of referrers has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// The artifact's manifest, with its annotations where the registry tells them.
    pub manifest: Descriptor,
    /// What it is; empty where the list does not say.
    pub artifact_type: String,
}

impl Referrer {
    /// Whether it is of this type as far as the list tells: some registries put the type of the config
    /// there, which tells nothing of an artifact that has none.
    pub fn may_be(&self, artifact_type: &str) -> bool {
        [artifact_type, OCI_EMPTY, ""].contains(&self.artifact_type.as_str())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson<'a> {
    schema_version: u8,
    media_type: &'static str,
    artifact_type: &'a str,
    config: DescriptorJson<'a>,
    layers: Vec<DescriptorJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<DescriptorJson<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorJson<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
}

impl<'a> From<&'a Descriptor> for DescriptorJson<'a> {
    fn from(from: &'a Descriptor) -> Self {
        Self { media_type: &from.media_type, digest: from.digest, size: from.size }
    }
}

impl Artifact {
    /// Its manifest. Equal artifacts have equal bytes.
    ///
    /// # Errors
    /// None that anybody has seen: these types can all be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let config = Descriptor::new(OCI_EMPTY, Digest::of(EMPTY), EMPTY.len() as u64);
        let manifest = ManifestJson {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            artifact_type: &self.artifact_type,
            config: (&config).into(),
            layers: self.layers.iter().map(Into::into).collect(),
            subject: self.subject.as_ref().map(Into::into),
            annotations: &self.annotations,
        };
        serde_json::to_vec(&manifest).map_err(json("the artifact's manifest"))
    }

    /// Parses a manifest; where it names no type, that of its config is meant.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let manifest: oci_spec::image::ImageManifest =
            serde_json::from_slice(bytes).map_err(json("the artifact's manifest"))?;
        let artifact_type = manifest.artifact_type().as_ref().unwrap_or(manifest.config().media_type());
        Ok(Self {
            artifact_type: artifact_type.to_string(),
            layers: manifest.layers().iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            subject: manifest.subject().as_ref().map(TryInto::try_into).transpose()?,
            annotations: manifest
                .annotations()
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        })
    }
}

fn json(what: &'static str) -> impl Fn(serde_json::Error) -> Error {
    move |source| Error::Json { what, source }
}

/// A list of referrers. What this program does not know of other entries stays as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferrersList {
    document: Map<String, Value>,
}

impl Default for ReferrersList {
    fn default() -> Self {
        let mut document = Map::new();
        document.insert("schemaVersion".to_owned(), 2.into());
        document.insert("mediaType".to_owned(), OCI_INDEX.into());
        document.insert("manifests".to_owned(), Vec::<Value>::new().into());
        Self { document }
    }
}

impl ReferrersList {
    /// Parses an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let what = "the list of referrers";
        let document: Map<String, Value> = serde_json::from_slice(bytes).map_err(json(what))?;
        let media_type = document.get("mediaType").and_then(Value::as_str).unwrap_or(OCI_INDEX);
        if media_type != OCI_INDEX || !document.get("manifests").is_some_and(Value::is_array) {
            return Err(Error::NotReferrers { media_type: media_type.to_owned() });
        }
        Ok(Self { document })
    }

    /// The document.
    ///
    /// # Errors
    /// None that anybody has seen: it was parsed.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&self.document).map_err(json("the list of referrers"))
    }

    fn entries(&self) -> &[Value] {
        self.document.get("manifests").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// What it lists; entries with a digest that is not SHA-256 are passed over.
    pub fn referrers(&self) -> impl Iterator<Item = Referrer> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Entry {
            media_type: String,
            digest: Digest,
            size: u64,
            #[serde(default)]
            artifact_type: String,
            #[serde(default)]
            annotations: Option<BTreeMap<String, String>>,
        }
        self.entries().iter().filter_map(|entry| {
            let entry = Entry::deserialize(entry).ok()?;
            let mut manifest = Descriptor::new(entry.media_type, entry.digest, entry.size);
            manifest.annotations = entry.annotations.unwrap_or_default();
            Some(Referrer { manifest, artifact_type: entry.artifact_type })
        })
    }

    /// Adds an artifact unless it is there, and takes out those of its type with the digests of
    /// `superseded`. Gives whether that changed anything.
    pub fn replace(&mut self, added: &Referrer, superseded: &[Digest]) -> bool {
        let digest_of = |entry: &Value| -> Option<Digest> { entry.get("digest")?.as_str()?.parse().ok() };
        let manifest = &added.manifest;
        let Some(Value::Array(entries)) = self.document.get_mut("manifests") else { return false };
        let before = entries.len();
        let same_type = |entry: &Value| {
            entry.get("artifactType").and_then(Value::as_str) == Some(added.artifact_type.as_str())
        };
        entries.retain(|entry| {
            let digest = digest_of(entry).filter(|digest| *digest != manifest.digest);
            !same_type(entry) || digest.is_none_or(|digest| !superseded.contains(&digest))
        });
        let removed = entries.len() != before;
        if entries.iter().any(|entry| digest_of(entry) == Some(manifest.digest)) {
            return removed;
        }
        let mut entry = Map::new();
        entry.insert("mediaType".to_owned(), manifest.media_type.clone().into());
        entry.insert("digest".to_owned(), manifest.digest.to_string().into());
        entry.insert("size".to_owned(), manifest.size.into());
        entry.insert("artifactType".to_owned(), added.artifact_type.clone().into());
        if !manifest.annotations.is_empty() {
            let annotations: Map<_, _> =
                manifest.annotations.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            entry.insert("annotations".to_owned(), annotations.into());
        }
        entries.push(entry.into());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(name: &str) -> Referrer {
        Referrer {
            manifest: Descriptor::new(OCI_MANIFEST, Digest::of(name.as_bytes()), 7),
            artifact_type: "application/vnd.test".to_owned(),
        }
    }

    #[test]
    fn an_artifact_is_read_as_it_was_written() {
        let subject = Descriptor::new(OCI_INDEX, Digest::of(b"cache"), 5);
        let artifact = Artifact {
            artifact_type: "application/vnd.test".to_owned(),
            layers: vec![Descriptor::new("application/json", Digest::of(b"[]"), 2)],
            subject: Some(subject),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
        };
        let bytes = artifact.to_bytes().unwrap();
        assert_eq!(Artifact::parse(&bytes).unwrap(), artifact);
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["config"]["mediaType"], OCI_EMPTY);
        let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(json["config"]["digest"], empty);
        assert_eq!(json["config"]["size"], 2);
    }

    #[test]
    fn an_old_artifact_has_the_type_of_its_config() {
        let digest = Digest::of(b"");
        let json = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"x/y\",\"digest\":\"{digest}\",\"size\":0}},\"layers\":[]}}"
        );
        assert_eq!(Artifact::parse(json.as_bytes()).unwrap().artifact_type, "x/y");
        assert!(Artifact::parse(b"{}").is_err());
    }

    #[test]
    fn a_list_keeps_what_is_not_known() {
        let other = Digest::of(b"other");
        let text = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{OCI_INDEX}\",\"x\":1,\"manifests\":[\
             {{\"mediaType\":\"m\",\"digest\":\"{other}\",\"size\":1,\"y\":{{\"z\":[]}}}},\
             {{\"digest\":\"sha512:00\"}},7]}}"
        );
        let mut list = ReferrersList::parse(text.as_bytes()).unwrap();
        assert!(list.replace(&referrer("one"), &[]));
        assert!(!list.replace(&referrer("one"), &[]));
        assert!(list.replace(&referrer("two"), &[Digest::of(b"one"), other]));
        let found: Vec<_> = list.referrers().map(|referrer| referrer.manifest.digest).collect();
        assert_eq!(found, [other, Digest::of(b"two")]);
        let bytes = list.to_bytes().unwrap();
        assert_eq!(ReferrersList::parse(&bytes).unwrap(), list);
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&json["x"], &json["manifests"][0]["y"]["z"]), (&1.into(), &Value::Array(Vec::new())));
        assert_eq!(json["manifests"].as_array().unwrap().len(), 4);
        assert_eq!(json["manifests"][3]["artifactType"], "application/vnd.test");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let manifest = format!("{{\"mediaType\":\"{OCI_MANIFEST}\",\"manifests\":[]}}");
        for text in ["", "[]", "{}", "{\"manifests\":{}}", &manifest, "<html>"] {
            assert!(ReferrersList::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(ReferrersList::parse(b"{\"manifests\":[]}").unwrap().referrers().count(), 0);
    }

    #[test]
    fn a_type_may_be_hidden() {
        let of = |text: &str| Referrer { artifact_type: text.to_owned(), ..referrer("x") };
        assert!(of("a").may_be("a") && of("").may_be("a") && of(OCI_EMPTY).may_be("a"));
        assert!(!of("b").may_be("a"));
    }
}
