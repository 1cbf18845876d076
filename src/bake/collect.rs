//! Reads caches and key sources: every small document, not a single layer.

use crate::digest::Digest;
use crate::keys::{self, Candidates, KeySpec, Keyring};
use crate::oci::media_type::IN_TOTO;
use crate::oci::{Cache, CacheConfig, CacheManifest, Document};
use crate::progress::{Event, Progress};
use crate::source::{self, Source};

use super::report::{BakedCache, KeySourceReport};
use super::{Cancel, Error, IoContext, Options};

/// A cache and where its blobs come from.
pub(crate) struct Opened {
    pub(crate) source: Box<dyn Source>,
    pub(crate) cache: Cache,
    pub(crate) report: BakedCache,
}

/// Reads manifest and config of one cache and checks them.
pub(crate) fn open_cache(
    spec: &source::CacheSpec,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Opened, Error> {
    let name = spec.to_string();
    let wrap = |source| Error::Source { what: name.clone(), source };
    let source = spec.open(&options.registry).map_err(wrap)?;
    let manifest = source.manifest(None, progress).map_err(wrap)?;
    let cache = (|| Document::parse(&manifest.bytes)?.into_cache())()
        .map_err(|source| Error::Cache { cache: name.clone(), source })?;
    let cache = read_config(&*source, cache, &name, progress)?;
    let report = BakedCache { cache: name, digest: manifest.digest, records: cache.records.len() };
    Ok(Opened { source, cache, report })
}

fn read_config(
    source: &dyn Source,
    manifest: CacheManifest,
    name: &str,
    progress: &dyn Progress,
) -> Result<Cache, Error> {
    let bytes = source
        .document(&manifest.config, progress)
        .map_err(|source| Error::Source { what: name.to_owned(), source })?;
    CacheConfig::parse(&bytes)
        .and_then(|config| config.resolve(&manifest))
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
    let wanted = || {
        let records = caches.iter().flat_map(|cache| &cache.records);
        records.filter(|record| !record.inputs.is_empty()).map(|record| &record.digest)
    };
    let mut all = Candidates::default();
    let mut reports = Vec::new();
    for spec in specs {
        cancel.check()?;
        let candidates = read_candidates(spec, options, progress)?;
        let keyring = Keyring::prove(&candidates, wanted());
        let keyed = wanted().collect::<std::collections::BTreeSet<_>>();
        let keyed = keyed.into_iter().filter(|digest| keyring.get(digest).is_some()).count();
        reports.push(KeySourceReport { source: spec.to_string(), candidates: candidates.len(), keyed });
        all.merge(candidates);
    }
    let every = caches.iter().flat_map(|cache| &cache.records).map(|record| &record.digest);
    let keyring = Keyring::prove(&all, every);
    Ok(Keys { candidates: all, keyring, reports })
}

fn read_candidates(
    spec: &KeySpec,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Candidates, Error> {
    let what = spec.to_string();
    let wrap = |source| Error::Keys { what: what.clone(), source };
    match spec {
        KeySpec::Image { reference } => image_candidates(reference, &what, options, progress),
        KeySpec::Provenance { src } => {
            let bytes = std::fs::read(src).at("read", src)?;
            keys::provenance::candidates(&bytes, &options.platform()).map_err(wrap)
        }
        KeySpec::CacheDb { src } => keys::harvest::candidates(src).map_err(wrap),
    }
}

/// Candidates from the attestation manifests of an image, all platforms or the one asked for.
fn image_candidates(
    reference: &crate::oci::Reference,
    what: &str,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Candidates, Error> {
    let wrap = |source| Error::Source { what: what.to_owned(), source };
    let image = source::Registry::open(reference, &options.registry).map_err(wrap)?;
    let fetch = |digest: Option<&Digest>| -> Result<Document, Error> {
        let manifest = image.manifest(digest, progress).map_err(wrap)?;
        Document::parse(&manifest.bytes)
            .map_err(|source| Error::KeyImage { image: what.to_owned(), source })
    };
    let Document::Index { manifests } = fetch(None)? else {
        return Err(Error::NoProvenance { image: what.to_owned() });
    };
    let attestations = keys::attestation::manifests(&manifests);
    let mut all = Candidates::default();
    let mut statements = 0;
    for attestation in attestations {
        let platform = attestation.platform.clone().unwrap_or_else(|| options.platform());
        if options.platform.as_ref().is_some_and(|wanted| *wanted != platform) {
            continue;
        }
        let Document::Manifest { layers, .. } = fetch(Some(&attestation.descriptor.digest))? else {
            continue;
        };
        for layer in layers.iter().filter(|layer| layer.media_type == IN_TOTO) {
            if !keys::attestation::is_provenance(layer) {
                continue;
            }
            statements += 1;
            let bytes = image.document(layer, progress).map_err(wrap)?;
            let found = keys::provenance::candidates(&bytes, &platform)
                .map_err(|source| Error::Keys { what: what.to_owned(), source })?;
            all.merge(found);
        }
    }
    if statements == 0 {
        return Err(Error::NoProvenance { image: what.to_owned() });
    }
    if all.is_empty() {
        progress.event(Event::Warning(format!(
            "{what}: its provenance names no operation; push the image with provenance mode=max"
        )));
    }
    Ok(all)
}
