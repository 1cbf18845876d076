//! Collects operation digests and proves them.

use std::collections::HashMap;

use serde::Serialize;

use super::{Coverage, Error, Options, builder, parallel};
use crate::digest::{Digest, RecordDigest};
use crate::keys::{self, Candidates, KeySpec, Keyring};
use crate::oci::{Cache, Document, Reference};
use crate::progress::Progress;
use crate::source::{Registry, Source};

/// Key sources that are read at once. Provenance may be large, and is parsed whole.
const SOURCES_AT_ONCE: usize = 8;

/// A key source that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeySourceReport {
    /// As it was asked for.
    pub source: String,
    /// Operation digests that it offered.
    pub candidates: usize,
    /// Records of the caches with inputs whose keys these prove, as [`Coverage`] counts records.
    pub keyed: usize,
    /// Those of them whose keys no other source proves: what the caches would lose without this one.
    pub only: usize,
}

/// What one key source offers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What to call the source.
    pub source: String,
    /// What it offers.
    pub candidates: Candidates,
}

/// What all key sources offered, and what each was worth.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Everything that was offered.
    pub candidates: Candidates,
    /// What was proven.
    pub keyring: Keyring,
    /// Which records a build finds with it.
    pub coverage: Coverage,
    /// In the order of the sources.
    pub reports: Vec<KeySourceReport>,
    proven_by: HashMap<RecordDigest, Vec<usize>>,
}

impl Keys {
    /// The sources that could key a record with inputs: indexes into [`Keys::reports`], rising.
    pub fn proven_by(&self, record: &RecordDigest) -> &[usize] {
        self.proven_by.get(record).map_or(&[], Vec::as_slice)
    }

    /// Adds what one more source offers, and proves with it what is not proven yet of the records of `caches`.
    pub fn add(&mut self, offer: Offer, caches: &[Cache]) {
        let records = caches.iter().flat_map(|cache| &cache.records).map(|record| &record.digest);
        let unproven = records.filter(|record| self.keyring.get(record).is_none());
        let proven = Keyring::prove(&offer.candidates, unproven);
        self.keyring.extend(proven);
        self.credit(&offer, caches);
        self.candidates.merge(offer.candidates);
        self.count(caches);
    }

    /// Notes which of the proven keys this source could have proven.
    fn credit(&mut self, offer: &Offer, caches: &[Cache]) {
        let at = self.reports.len();
        let (source, candidates) = (offer.source.clone(), offer.candidates.len());
        self.reports.push(KeySourceReport { source, candidates, keyed: 0, only: 0 });
        for record in Coverage::wanted(caches) {
            let proven = self.keyring.get(record);
            if proven.is_some_and(|proven| proven.follows_from(&offer.candidates)) {
                self.proven_by.entry(record.clone()).or_default().push(at);
            }
        }
    }

    /// Decides which records of `caches` a build finds, and what each source is worth for them. All of these
    /// records were among those of the proof.
    pub(super) fn count(&mut self, caches: &[Cache]) {
        self.coverage = Coverage::new(caches, &self.keyring, &self.candidates);
        for report in &mut self.reports {
            (report.keyed, report.only) = (0, 0);
        }
        for record in self.coverage.need_key() {
            let Some(sources) = self.proven_by.get(&record.digest) else { continue };
            for &source in sources {
                self.reports[source].keyed += 1;
                self.reports[source].only += usize::from(sources.len() == 1);
            }
        }
    }

    /// Which `BuildKit` releases wrote a cache, as far as its proven keys tell; see [`Keyring::written_by`].
    pub fn written_by(&self, cache: &Cache) -> Option<String> {
        self.keyring.written_by(cache.records.iter().map(|record| &record.digest))
    }
}

/// Reads every key source and proves what it offers, and what was `found` with the caches, against the
/// records of `caches`.
///
/// # Errors
/// A source cannot be read: never a lower number instead. Of several that cannot, the first is named.
pub fn collect(
    specs: &[KeySpec],
    found: Vec<Offer>,
    caches: &[Cache],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Keys, Error> {
    let mut offers = offers(specs, options, progress)?;
    offers.extend(found);
    Ok(prove(&offers, caches))
}

/// Reads every key source; what they offer, in their order.
///
/// # Errors
/// As [`collect`].
pub fn offers(specs: &[KeySpec], options: &Options, progress: &dyn Progress) -> Result<Vec<Offer>, Error> {
    parallel::each(specs, SOURCES_AT_ONCE, |spec| {
        options.check()?;
        let candidates = read_candidates(spec, options, progress)?;
        Ok(Offer { source: spec.to_string(), candidates })
    })
}

/// Proves what sources offer against the records of `caches`. A candidate that several of them offer is
/// hashed once, and counts for each.
///
/// Which keys and names there are does not depend on the order of the offers.
pub fn prove(offers: &[Offer], caches: &[Cache]) -> Keys {
    // Of two names for one thing the first stays, so the order has to come from what is offered.
    let mut sorted: Vec<&Offer> = offers.iter().collect();
    sorted.sort_by(|a, b| a.source.cmp(&b.source));
    let mut candidates = Candidates::default();
    for offer in sorted {
        candidates.merge(offer.candidates.clone());
    }
    // Root keys are written as they are, but a proof gives some of them a name.
    let records = caches.iter().flat_map(|cache| &cache.records);
    let keyring = Keyring::prove(&candidates, records.map(|record| &record.digest));
    let mut keys = Keys { candidates, keyring, ..Keys::default() };
    for offer in offers {
        keys.credit(offer, caches);
    }
    keys.count(caches);
    keys
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
        KeySpec::Builder(name) => builder::candidates(name)
            .map_err(|error| Error::Builder { what: spec.to_string(), source: Box::new(error) }),
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
    let wrap = |source| Error::Source { what: what(), source: Box::new(source) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::OpDigest;
    use crate::gather::Status;
    use crate::oci::Record;
    use crate::oci::cacheconfig::Link;

    fn op(name: &str) -> OpDigest {
        OpDigest::of(name.as_bytes())
    }

    /// A cache of a root and these steps on it.
    fn cache(steps: &[&str]) -> Cache {
        let root = Record { digest: op("root").record_digest(0), results: Vec::new(), inputs: Vec::new() };
        let step = |name: &&str| Record {
            digest: op(name).record_digest(0),
            results: Vec::new(),
            inputs: vec![vec![Link { record: 0, selector: String::new() }]],
        };
        Cache { layers: Vec::new(), records: [root].into_iter().chain(steps.iter().map(step)).collect() }
    }

    fn offer(source: &str, names: &[&str]) -> Offer {
        let mut candidates = Candidates::new();
        for name in names {
            candidates.add(op(name), Some(format!("{name} as {source} says")));
        }
        Offer { source: source.to_owned(), candidates }
    }

    #[test]
    fn each_source_is_worth_what_only_it_has() {
        let caches = [cache(&["a", "b", "c", "d"]), cache(&["b", "e"])];
        let offers = [offer("y", &["a", "b", "root", "other"]), offer("x", &["b", "c"]), offer("z", &[])];
        let keys = prove(&offers, &caches);
        let worth: Vec<_> =
            keys.reports.iter().map(|r| (r.source.as_str(), r.candidates, r.keyed, r.only)).collect();
        assert_eq!(worth, [("y", 4, 2, 1), ("x", 2, 2, 1), ("z", 0, 0, 0)]);
        let by = |name: &str| keys.proven_by(&op(name).record_digest(0)).to_vec();
        assert_eq!(["a", "b", "c", "d", "root"].map(by), [vec![0], vec![0, 1], vec![1], vec![], vec![]]);
        let name =
            |keys: &Keys| keys.keyring.get(&op("b").record_digest(0)).unwrap().name().map(str::to_owned);
        let [y, x, z] = offers;
        for other in [prove(&[x.clone(), y.clone()], &caches), prove(&[z, y, x], &caches)] {
            assert_eq!(name(&other), name(&keys));
        }
    }
    #[test]
    fn one_operation_on_two_inputs_is_two_records() {
        let mut other = cache(&["a", "b"]);
        other.records[0].digest = op("another root").record_digest(0);
        let caches = [cache(&["a", "b"]), other];
        let keys = prove(&[offer("x", &["a"]), offer("y", &["a", "b"])], &caches);
        let worth: Vec<_> = keys.reports.iter().map(|r| (r.keyed, r.only)).collect();
        assert_eq!(worth, [(2, 0), (4, 2)]);
        assert_eq!(keys.coverage.count(Status::Keyed), 4);
    }
    #[test]
    fn a_source_that_comes_later_is_worth_as_much() {
        let caches = [cache(&["a", "b", "c", "d"]), cache(&["b", "e"])];
        let offers = [offer("y", &["a", "b"]), offer("x", &["b", "c"]), offer("z", &["e", "other"])];
        let at_once = prove(&offers, &caches);
        let [y, x, z] = offers;
        let mut in_turn = prove(&[y], &caches);
        in_turn.add(x, &caches);
        in_turn.add(z, &caches);
        assert_eq!(in_turn.reports, at_once.reports);
        for (record, again) in at_once.coverage.records().iter().zip(in_turn.coverage.records()) {
            assert_eq!((&again.digest, again.status), (&record.digest, record.status));
            assert_eq!(in_turn.proven_by(&record.digest), at_once.proven_by(&record.digest));
        }
    }
}
