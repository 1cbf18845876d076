//! Which records a build will find by their keys.
//!
//! A record is found if it needs no key (it has no inputs), or if its operation digest is proven and each
//! input has an alternative that is found. This is decided here and nowhere else: what `bake` writes
//! and what `keys check` reports is the same.

use std::collections::{BTreeSet, HashMap, hash_map::Entry};

use serde::Serialize;

use crate::digest::{Digest, RecordDigest};
use crate::keys::{Candidates, Keyring};
use crate::oci::Cache;

/// Whether a build finds a record by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It has no inputs, and its key is its digest.
    Root,
    /// Its key is proven, and its inputs are found.
    Keyed,
    /// Its key is proven, but no alternative of one of its inputs is found.
    OnlyInputs,
    /// Nothing proves its key.
    Unkeyed,
}

impl Status {
    /// Whether a build finds such a record.
    pub fn is_found(self) -> bool {
        matches!(self, Self::Root | Self::Keyed)
    }
}

/// A record that no build will find by its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unkeyed {
    /// The record's digest in the cache config.
    pub digest: RecordDigest,
    /// The step, such as `[build 2/4] RUN make`, where provenance tells.
    pub name: Option<String>,
    /// The layer that it has as its result, if any.
    pub layer: Option<Digest>,
    /// That layer's compressed bytes.
    pub size: Option<u64>,
    /// Its own key is known, but one of its inputs is unkeyed and so it cannot be reached.
    pub only_inputs: bool,
}

/// A distinct record of the caches. Those of several caches that have one digest and the same inputs are
/// one record, with the results of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covered {
    /// The digest in the cache config.
    pub digest: RecordDigest,
    /// Per input its alternatives, sorted: index of a record, always smaller than its own, and selector.
    pub inputs: Vec<Vec<(usize, String)>>,
    /// Whether a build finds it.
    pub status: Status,
    /// The step, where a key source tells.
    pub name: Option<String>,
    /// Of the layers that are its results, the one with the smallest digest, with its compressed bytes.
    pub layer: Option<(Digest, u64)>,
}

/// What is known of all records of some caches.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    records: Vec<Covered>,
    places: Vec<Vec<usize>>,
}

/// A record as it is told from others: its digest, and its inputs by their places.
type Identity<'a> = (&'a RecordDigest, Vec<Vec<(usize, &'a str)>>);

impl Coverage {
    /// Decides for each record of `caches` by what was proven; `candidates` name the steps.
    pub fn new(caches: &[Cache], keyring: &Keyring, candidates: &Candidates) -> Self {
        let mut records: Vec<Covered> = Vec::new();
        let mut known: HashMap<Identity<'_>, usize> = HashMap::new();
        let mut places = Vec::with_capacity(caches.len());
        for cache in caches {
            let mut of_cache: Vec<usize> = Vec::with_capacity(cache.records.len());
            for record in &cache.records {
                let inputs: Vec<Vec<(usize, &str)>> = record
                    .inputs
                    .iter()
                    .map(|alternatives| {
                        let place = |link: &'_ crate::oci::cacheconfig::Link| of_cache[link.record];
                        let mut all: Vec<_> =
                            alternatives.iter().map(|link| (place(link), link.selector.as_str())).collect();
                        all.sort_unstable();
                        all.dedup();
                        all
                    })
                    .collect();
                let tops = record.results.iter().filter_map(|result| result.layers.last());
                let layer = tops
                    .map(|&top| &cache.layers[top].descriptor)
                    .map(|descriptor| (descriptor.digest, descriptor.size))
                    .min();
                let place = match known.entry((&record.digest, inputs)) {
                    Entry::Occupied(entry) => {
                        let place = *entry.get();
                        let known = &mut records[place].layer;
                        *known = [*known, layer].into_iter().flatten().min();
                        place
                    }
                    Entry::Vacant(entry) => {
                        let inputs: Vec<Vec<(usize, String)>> = entry
                            .key()
                            .1
                            .iter()
                            .map(|all| all.iter().map(|&(at, selector)| (at, selector.to_owned())).collect())
                            .collect();
                        let status = status(&record.digest, &inputs, &records, keyring);
                        records.push(Covered {
                            digest: record.digest.clone(),
                            inputs,
                            status,
                            name: None,
                            layer,
                        });
                        *entry.insert(records.len() - 1)
                    }
                };
                of_cache.push(place);
            }
            places.push(of_cache);
        }
        for record in &mut records {
            // Equal operations at two places have one digest, but each has a layer of its own.
            let of_layer = record.layer.and_then(|(digest, _)| candidates.layer_name(&digest));
            let of_key = || keyring.get(&record.digest).and_then(|proven| proven.name());
            record.name = of_layer.or_else(of_key).map(str::to_owned);
        }
        Self { records, places }
    }

    /// The distinct records, each after its inputs.
    pub fn records(&self) -> &[Covered] {
        &self.records
    }

    /// Which of [`Coverage::records`] each record of a cache is, by the indexes of both.
    pub fn place(&self, cache: usize, record: usize) -> usize {
        self.places[cache][record]
    }

    /// The records that need a key: those with inputs.
    pub fn need_key(&self) -> impl Iterator<Item = &Covered> {
        self.records.iter().filter(|record| record.status != Status::Root)
    }

    /// How many records have this status.
    pub fn count(&self, status: Status) -> usize {
        self.records.iter().filter(|record| record.status == status).count()
    }

    /// How many records no build will find.
    pub fn lost(&self) -> usize {
        self.count(Status::Unkeyed) + self.count(Status::OnlyInputs)
    }

    /// The records that no build will find, in an order that the caches' does not change.
    pub fn unkeyed(&self) -> Vec<Unkeyed> {
        let mut lost: Vec<Unkeyed> = self
            .records
            .iter()
            .filter(|record| !record.status.is_found())
            .map(|record| Unkeyed {
                digest: record.digest.clone(),
                name: record.name.clone(),
                layer: record.layer.map(|(digest, _)| digest),
                size: record.layer.map(|(_, size)| size),
                only_inputs: record.status == Status::OnlyInputs,
            })
            .collect();
        lost.sort_unstable();
        lost
    }

    /// Digests of the records that need a key.
    pub(super) fn wanted(caches: &[Cache]) -> BTreeSet<&RecordDigest> {
        let records = caches.iter().flat_map(|cache| &cache.records);
        records.filter(|record| !record.inputs.is_empty()).map(|record| &record.digest).collect()
    }
}

fn status(
    digest: &RecordDigest,
    inputs: &[Vec<(usize, String)>],
    records: &[Covered],
    keyring: &Keyring,
) -> Status {
    let found = |alternatives: &Vec<(usize, String)>| {
        alternatives.iter().any(|&(at, _)| records[at].status.is_found())
    };
    if inputs.is_empty() {
        Status::Root
    } else if keyring.get(digest).is_none() {
        Status::Unkeyed
    } else if inputs.iter().all(found) {
        Status::Keyed
    } else {
        Status::OnlyInputs
    }
}
