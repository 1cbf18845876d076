//! Collects operation digests and proves them.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Error, Options};
use crate::digest::{Digest, RecordDigest};
use crate::keys::{self, Candidates, KeySpec, Keyring};
use crate::oci::{Cache, Document, Reference};
use crate::progress::Progress;
use crate::source::{Registry, Source};

/// A key source that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeySourceReport {
    /// As it was asked for.
    pub source: String,
    /// Operation digests that it offered.
    pub candidates: usize,
    /// Records of the caches that these could key.
    pub keyed: usize,
}

/// What all key sources offered, and what each was worth.
pub struct Keys {
    /// Everything that was offered.
    pub candidates: Candidates,
    /// What was proven.
    pub keyring: Keyring,
    /// In the order of the sources.
    pub reports: Vec<KeySourceReport>,
}

/// Reads every key source and proves what it offers against the records of `caches`.
///
/// # Errors
/// A source cannot be read: never a lower number instead.
pub fn collect(
    specs: &[KeySpec],
    caches: &[Cache],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Keys, Error> {
    // Root keys are written as they are; what needs proof is a record with inputs.
    let records = || caches.iter().flat_map(|cache| &cache.records);
    let wanted: BTreeSet<&RecordDigest> =
        records().filter(|record| !record.inputs.is_empty()).map(|record| &record.digest).collect();
    let mut all = Candidates::default();
    let mut reports = Vec::new();
    for spec in specs {
        options.check()?;
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
        KeySpec::Provenance(src) => {
            let mut all = Candidates::default();
            for platform in options.builders() {
                all.merge(keys::provenance::read(src, &platform).map_err(wrap)?);
            }
            Ok(all)
        }
        KeySpec::CacheDb(src) => keys::harvest::candidates(src).map_err(wrap),
        KeySpec::Keys(src) => keys::file::load(src).map(|file| file.candidates()).map_err(wrap),
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
    let builders = options.builders();
    let mut all = Candidates::default();
    let mut statements = 0;
    for attestation in keys::attestation::manifests(&fetch(None)?, &builders[0]) {
        let manifest = fetch(Some(&attestation.digest))?;
        for layer in keys::attestation::provenance_layers(&manifest) {
            statements += 1;
            let bytes = image.document(&layer, progress).map_err(wrap)?;
            for platform in &builders {
                let found = keys::provenance::candidates(&bytes, platform)
                    .map_err(|source| Error::Keys { what: what(), source })?;
                all.merge(found);
            }
        }
    }
    if statements == 0 {
        return Err(Error::NoAttestation { image: what() });
    }
    Ok(all)
}
