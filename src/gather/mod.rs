//! Reads caches and key sources: every small document, not a single layer.

use std::collections::BTreeSet;

use crate::digest::{Digest, RecordDigest};
use crate::keys::{self, Candidates, KeySpec, Keyring};
use crate::oci::{Cache, CacheConfig, CacheManifest, Document, Reference};
use crate::progress::Progress;
use crate::source::{CacheSpec, Registry, Source};

use super::report::{BakedCache, KeySourceReport};
use super::{Cancel, Error, Options};

/// A cache and where its blobs come from.
pub(crate) struct Opened {
    pub(crate) source: Box<dyn Source>,
    pub(crate) cache: Cache,
    pub(crate) report: BakedCache,
}

/// Reads manifest and config of one cache and checks them.
pub(crate) fn open_cache(
    spec: &CacheSpec,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Opened, Error> {
    let name = spec.to_string();
    let wrap = |source| Error::Source { what: name.clone(), source };
    let source = spec.open(&options.registry).map_err(wrap)?;
    let manifest = source.manifest(None, progress).map_err(wrap)?;
    let cache = (|| Document::parse(&manifest.bytes)?.into_cache())()
        .map_err(|source| Error::Cache { cache: name.clone(), source })?;
    let cache = read_config(&*source, &cache, &name, progress)?;
    let report = BakedCache { cache: name, digest: manifest.digest, records: cache.records.len() };
    Ok(Opened { source, cache, report })
}

fn read_config(
    source: &dyn Source,
    manifest: &CacheManifest,
    name: &str,
    progress: &dyn Progress,
) -> Result<Cache, Error> {
    let bytes = source
        .document(&manifest.config, progress)
        .map_err(|source| Error::Source { what: name.to_owned(), source })?;
    CacheConfig::parse(&bytes)
        .and_then(|config| config.resolve(manifest))
        .map_err(|source| Error::Cache { cache: name.to_owned(), source })
}

/// What all key sources offered, and what each was worth.
pub(crate) struct Keys {
    pub(crate) candidates: Candidates,
    pub(crate) keyring: Keyring,
    pub(crate) reports: Vec<KeySourceReport>,
}

/// Reads every key source and proves what it offers against the records of `caches`.
pub(crate) fn collect_keys(
    specs: &[KeySpec],
    caches: &[Cache],
    options: &Options,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Keys, Error> {
    // Root keys are written as they are; what needs proof is a record with inputs.
    let records = || caches.iter().flat_map(|cache| &cache.records);
    let wanted: BTreeSet<&RecordDigest> =
        records().filter(|record| !record.inputs.is_empty()).map(|record| &record.digest).collect();
    let mut all = Candidates::default();
    let mut reports = Vec::new();
    for spec in specs {
        cancel.check()?;
        let candidates = read_candidates(spec, options, progress)?;
        let keyring = Keyring::prove(&candidates, wanted.iter().copied());
        let keyed = wanted.iter().filter(|digest| keyring.get(digest).is_some()).count();
        reports.push(KeySourceReport { source: spec.to_string(), candidates: candidates.len(), keyed });
        all.merge(candidates);
    }
    let keyring = Keyring::prove(&all, records().map(|record| &record.digest));
    Ok(Keys { candidates: all, keyring, reports })
}

fn read_candidates(spec: &KeySpec, options: &Options, progress: &dyn Progress) -> Result<Candidates, Error> {
    let wrap = |source| Error::Keys { what: spec.to_string(), source };
    match spec {
        KeySpec::Provenance(src) => keys::provenance::read(src, &options.platform()).map_err(wrap),
        KeySpec::CacheDb(src) => keys::harvest::candidates(src).map_err(wrap),
        KeySpec::Image(reference) => image_candidates(spec, reference, options, progress),
    }
}

/// Candidates from the attestation manifests of an image, those of every platform.
fn image_candidates(
    spec: &KeySpec,
    reference: &Reference,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Candidates, Error> {
    let what = || spec.to_string();
    let wrap = |source| Error::Source { what: what(), source };
    let image = Registry::open(reference, &options.registry).map_err(wrap)?;
    let fetch = |digest: Option<&Digest>| -> Result<Document, Error> {
        let manifest = image.manifest(digest, progress).map_err(wrap)?;
        Document::parse(&manifest.bytes).map_err(|source| Error::KeyImage { image: what(), source })
    };
    let platform = options.platform();
    let mut all = Candidates::default();
    let mut statements = 0;
    for attestation in keys::attestation::manifests(&fetch(None)?, &platform) {
        let manifest = fetch(Some(&attestation.digest))?;
        for layer in keys::attestation::provenance_layers(&manifest) {
            statements += 1;
            let bytes = image.document(&layer, progress).map_err(wrap)?;
            let found = keys::provenance::candidates(&bytes, &platform)
                .map_err(|source| Error::Keys { what: what(), source })?;
            all.merge(found);
        }
    }
    if statements == 0 {
        return Err(Error::NoAttestation { image: what() });
    }
    Ok(all)
}
