//! Pushing a sidecar.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ARTIFACT_TYPE, Cache, Found, LAYER_TYPE, SUPERSEDES, Sidecar, sidecar_tag};
use crate::digest::Digest;
use crate::gather::{Coverage, Error, KeySourceReport, Options, Status, collect, open};
use crate::keys::file::KeysFile;
use crate::keys::{KeySpec, Keyring};
use crate::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Artifact, Descriptor, Document, Reference, Referrer, artifact};
use crate::progress::{Phase, Progress, during};
use crate::source::{CacheSpec, Registry, Source};

/// A sidecar that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushReport {
    /// The cache, as it was asked for.
    pub cache: String,
    /// The digest of its manifest: what the sidecar refers to.
    pub subject: Digest,
    /// The digest of the sidecar's manifest.
    pub sidecar: Digest,
    /// How a bake finds it: `referrers`, and tags.
    pub found_by: Vec<String>,
    /// Distinct records of the cache that need a key.
    pub records: usize,
    /// Those whose key is in the sidecar.
    pub keyed: usize,
    /// Operation digests in the sidecar.
    pub keys: usize,
    /// Those of them that no sidecar of this cache had before.
    pub added: usize,
    /// Where they came from; sidecars that were there before are the last ones.
    pub keys_from: Vec<KeySourceReport>,
}

/// Proves what `keys_from` and the sidecars that are there offer against the records of a cache, and pushes what
/// is proven as the sidecar of that cache, in place of those.
///
/// With `no_sidecar` those that are there are replaced without being read.
///
/// Doing so again changes nothing. Of two that push at the same time neither undoes the other: both sidecars
/// stay until the next push, and a bake reads both.
///
/// # Errors
/// [`Error::NoRegistry`] for a cache that is in none; [`Error::NothingProven`]; a source cannot be read; the
/// registry does not take it.
pub fn push(
    spec: &CacheSpec,
    keys_from: &[KeySpec],
    options: &Options,
    progress: &dyn Progress,
) -> Result<PushReport, Error> {
    let name = spec.to_string();
    let CacheSpec::Registry { reference, insecure } = spec else {
        return Err(Error::NoRegistry { cache: name });
    };
    let mut registry_options = options.registry.clone();
    registry_options.insecure |= insecure;
    let wrap = |source| Error::Source { what: name.clone(), source: Box::new(source) };
    let registry = Registry::open_for_push(reference, &registry_options).map_err(wrap)?;
    let manifest = during(progress, Phase::Resolve, || registry.manifest(None, progress)).map_err(wrap)?;
    let subject = manifest.digest;

    // By its digest: a tag may move while this goes on.
    let pinned = Reference::with_digest(
        reference.registry().to_owned(),
        reference.repository().to_owned(),
        subject.to_string(),
    );
    let pinned = CacheSpec::Registry { reference: pinned, insecure: *insecure };
    let cache = Cache { reference, subject: &subject, options };
    let (caches, Found { api, listed, sidecars }, found) = during(progress, Phase::Keys, || {
        let opened = open(&pinned, options, progress)?;
        let caches: Vec<_> = opened.into_iter().map(|opened| opened.cache).collect();
        let beside = cache.find(&registry, progress)?;
        let offers = beside.sidecars.iter().map(Sidecar::offer).collect();
        let found = collect(keys_from, offers, &caches, options, progress)?;
        Ok::<_, Error>((caches, beside, found))
    })?;
    let wanted = Coverage::wanted(&caches);
    let keyring = Keyring::prove(&found.candidates, wanted.iter().copied());
    if keyring.is_empty() && !wanted.is_empty() {
        return Err(Error::NothingProven {
            cache: name,
            records: found.coverage.need_key().count(),
            sources: found.reports,
        });
    }

    let keys = KeysFile::of_keyring(&keyring);
    let before: Vec<&Sidecar> = sidecars.iter().filter(|sidecar| sidecar.current).collect();
    let mut known = KeysFile::default();
    for sidecar in &before {
        known.merge(sidecar.keys.clone());
    }
    // One that has just these keys, and no other beside it: there is nothing to do but to name it.
    let same = match before.as_slice() {
        [only] if only.keys == keys => Some(only.digest),
        _ => None,
    };
    let mut superseded: Vec<Digest> = match before.as_slice() {
        [] => listed,
        before => before.iter().map(|sidecar| sidecar.digest).collect(),
    };
    superseded.sort_unstable();
    let upload = Upload {
        registry: &registry,
        reference,
        subject: Descriptor::new(media_type(&manifest)?, subject, manifest.bytes.len() as u64),
        api,
    };
    let uploaded = during(progress, Phase::Push, || upload.run(&keys, same, &superseded, progress));
    let (sidecar, found_by) = uploaded.map_err(|error| match error {
        Failure::Source(source) => wrap(source),
        Failure::Oci(source) => Error::Cache { cache: name.clone(), source },
        Failure::Keys(error) => cache.damaged(&subject, error),
    })?;
    Ok(PushReport {
        cache: name.clone(),
        subject,
        sidecar,
        found_by,
        records: found.coverage.need_key().count(),
        keyed: found.coverage.need_key().filter(|record| record.status != Status::Unkeyed).count(),
        keys: keys.len(),
        added: keys.missing_from(&known),
        keys_from: found.reports,
    })
}

/// The media type of a manifest: as it says itself, as the registry says, or what its form has by default.
fn media_type(manifest: &crate::source::Manifest) -> Result<String, Error> {
    let own = crate::oci::manifest::media_type(&manifest.bytes);
    let told = [own.unwrap_or_default(), manifest.media_type.clone()];
    if let Some(told) = told.into_iter().find(|told| crate::oci::media_type::is_manifest(told)) {
        return Ok(told);
    }
    let parsed = Document::parse(&manifest.bytes)
        .map_err(|source| Error::Cache { cache: manifest.digest.to_string(), source })?;
    Ok(if matches!(parsed, Document::Index { .. }) { OCI_INDEX } else { OCI_MANIFEST }.to_owned())
}

enum Failure {
    Source(crate::source::Error),
    Oci(crate::oci::Error),
    Keys(crate::keys::file::Error),
}

impl From<crate::source::Error> for Failure {
    fn from(error: crate::source::Error) -> Self {
        Self::Source(error)
    }
}

impl From<crate::oci::Error> for Failure {
    fn from(error: crate::oci::Error) -> Self {
        Self::Oci(error)
    }
}

impl From<crate::keys::file::Error> for Failure {
    fn from(error: crate::keys::file::Error) -> Self {
        Self::Keys(error)
    }
}

struct Upload<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    subject: Descriptor,
    /// Whether the registry has the referrers API.
    api: bool,
}

impl Upload<'_> {
    /// Pushes `keys` in place of `superseded`, unless there is the `same` already; gives the sidecar's digest
    /// and how it is found.
    fn run(
        &self,
        keys: &KeysFile,
        same: Option<Digest>,
        superseded: &[Digest],
        progress: &dyn Progress,
    ) -> Result<(Digest, Vec<String>), Failure> {
        let manifest = match same {
            Some(digest) => self.registry.manifest(Some(&digest), progress)?.bytes,
            None => self.blobs(keys, superseded, progress)?.to_bytes()?,
        };
        let digest = Digest::of(&manifest);
        // Who names a cache by its digest does not say under which tag others look for it.
        let tag = match self.reference.digest() {
            None => self.reference.tag().map(sidecar_tag),
            Some(_) => None,
        };
        let at = tag.clone().unwrap_or_else(|| digest.to_string());
        let pushed = self.registry.put_manifest(&at, OCI_MANIFEST, &manifest, progress)?;
        let subject = &self.subject.digest;
        let mut found_by = Vec::new();
        if pushed.listed || (self.api && self.is_listed(&digest, progress)?) {
            found_by.push("referrers".to_owned());
        } else {
            let mut descriptor = Descriptor::new(OCI_MANIFEST, digest, manifest.len() as u64);
            descriptor.annotations = Artifact::parse(&manifest)?.annotations;
            let added = Referrer { manifest: descriptor, artifact_type: ARTIFACT_TYPE.to_owned() };
            let list = self.registry.tag_referrer(subject, &added, superseded, progress)?;
            found_by.push(format!("tag {list}"));
        }
        found_by.extend(tag.map(|tag| format!("tag {tag}")));
        Ok((digest, found_by))
    }

    /// Uploads what the sidecar consists of.
    fn blobs(
        &self,
        keys: &KeysFile,
        superseded: &[Digest],
        progress: &dyn Progress,
    ) -> Result<Artifact, Failure> {
        let bytes = keys.to_bytes()?;
        self.registry.put_blob(artifact::EMPTY, progress)?;
        let digest = self.registry.put_blob(&bytes, progress)?;
        let mut annotations = BTreeMap::new();
        if !superseded.is_empty() {
            let superseded: Vec<_> = superseded.iter().map(ToString::to_string).collect();
            annotations.insert(SUPERSEDES.to_owned(), superseded.join(","));
        }
        Ok(Artifact {
            artifact_type: ARTIFACT_TYPE.to_owned(),
            layers: vec![Descriptor::new(LAYER_TYPE, digest, bytes.len() as u64)],
            subject: Some(self.subject.clone()),
            annotations,
        })
    }

    /// Whether the referrers API has the sidecar, of which the registry said nothing when it took it.
    fn is_listed(&self, sidecar: &Digest, progress: &dyn Progress) -> Result<bool, Failure> {
        let listed = self.registry.referrers(&self.subject.digest, ARTIFACT_TYPE, progress)?;
        Ok(listed.unwrap_or_default().iter().any(|referrer| referrer.manifest.digest == *sidecar))
    }
}
