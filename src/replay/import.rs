//! The caches as the daemon of a replay imports them: their records, with stand-ins for layers.
//!
//! ```text
//! caches, of any form and size ── union ── split ──▶ manifest   a layer for each record with a result
//!                                                    config     records; both under 1 MiB
//! ```
//!
//! The gate serves them as a registry cache, so the daemon needs neither credentials nor a way to where they
//! are, and it can download no layer: none is there. (A local cache would not do: of those a daemon reads
//! every layer as soon as it uses a record, `unlazyProvider` in `cache/remotecache/local/local.go` of
//! v0.34.2.) What a record has as its result is never looked at, since nothing runs; that it has one of its
//! own is what makes its step CACHED, and its key one of its own. So one layer that there is nowhere stands for
//! the whole chain, and some 3,500 records fit into the 1 MiB that importers read of a document (`readBlob`
//! in `cache/remotecache/import.go`).
//!
//! What is larger comes in several parts. A record's key is made of those of its inputs: each part
//! holds, with a record, all that it stands on. Still, of several imports a daemon goes on with the one in which
//! it found a step first, and can miss what stands on that step in another.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use super::Error;
use crate::digest::{Digest, RecordDigest};
use crate::oci::Cache;
use crate::oci::cacheconfig::{Link, UNCOMPRESSED};
use crate::oci::media_type::{CACHE_CONFIG, OCI_MANIFEST};

/// The largest document that an importer reads, in bytes.
const LIMIT: usize = 1 << 20;
/// What a document has beside its records and layers, at most, in bytes.
const FRAME: usize = 4096;
/// What a stand-in takes at most, in bytes: in the config, and in the manifest.
const CONFIG_LAYER: usize = 128;
const MANIFEST_LAYER: usize = 320;
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One import: a cache, or a part of one.
#[derive(Debug)]
pub(super) struct Import {
    /// An OCI manifest.
    pub(super) manifest: Vec<u8>,
    /// The config that it names.
    pub(super) config: Vec<u8>,
}

/// The imports that `caches` make together.
///
/// # Errors
/// A record that cannot be imported in parts either.
pub(super) fn imports(caches: &[&Cache]) -> Result<Vec<Import>, Error> {
    let records = union(caches);
    Ok(parts(&records, LIMIT)?.iter().map(|part| import(&records, part)).collect())
}

/// A record without its results.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bare {
    digest: RecordDigest,
    has_result: bool,
    inputs: Vec<Alternatives>,
}

/// The records of all caches, each once, after those that it stands on. (Imported side by side, of three
/// targets with a cache each one or two missed in every replay on v0.34.2.)
fn union(caches: &[&Cache]) -> Vec<Bare> {
    let mut all: Vec<Bare> = Vec::new();
    let mut known: HashMap<(&RecordDigest, Vec<Alternatives>), usize> = HashMap::new();
    for cache in caches {
        let mut positions = Vec::with_capacity(cache.records.len());
        for record in &cache.records {
            let moved = |link: &Link| (positions[link.record], link.selector.clone());
            let inputs: Vec<Alternatives> =
                record.inputs.iter().map(|alternatives| alternatives.iter().map(moved).collect()).collect();
            let at = *known.entry((&record.digest, inputs)).or_insert_with_key(|(_, inputs)| {
                all.push(Bare { digest: record.digest.clone(), has_result: false, inputs: inputs.clone() });
                all.len() - 1
            });
            all[at].has_result |= !record.results.is_empty();
            positions.push(at);
        }
    }
    all
}

/// What may stand at one input of a record: other records, each with a selector.
type Alternatives = BTreeSet<(usize, String)>;

/// A set of records that fits into one import, and the bytes of its config and manifest at most.
#[derive(Clone)]
struct Part {
    has: Vec<bool>,
    config: usize,
    manifest: usize,
}

impl Part {
    fn new(records: &[Bare]) -> Self {
        Self { has: vec![false; records.len()], config: FRAME, manifest: FRAME }
    }

    fn add(&mut self, records: &[Bare], added: &[usize]) {
        for &at in added {
            if !std::mem::replace(&mut self.has[at], true) {
                self.config += weight(&records[at]);
                self.manifest += if records[at].has_result { MANIFEST_LAYER } else { 0 };
            }
        }
    }

    /// Bytes of the longer document.
    fn size(&self) -> usize {
        self.config.max(self.manifest)
    }
}

/// What a record takes in the config, in bytes at most.
fn weight(record: &Bare) -> usize {
    let quoted = |text: &str| 2 * text.len() + 2;
    let links: usize = record
        .inputs
        .iter()
        .flatten()
        .map(|(_, selector)| 24 + if selector.is_empty() { 0 } else { 14 + quoted(selector) })
        .sum();
    let result = if record.has_result { CONFIG_LAYER } else { 0 };
    // A digest needs no escapes, unlike a selector, which may be any text.
    64 + result + record.digest.as_str().len() + links + 4 * record.inputs.len()
}

/// Splits records so that no config is longer than `limit`; their indexes, in order.
fn parts(records: &[Bare], limit: usize) -> Result<Vec<Vec<usize>>, Error> {
    let mut is_input = vec![false; records.len()];
    for (below, _) in records.iter().flat_map(|record| record.inputs.iter().flatten()) {
        is_input[*below] = true;
    }
    let mut done: Vec<Part> = Vec::new();
    let mut part = Part::new(records);
    for last in (0..records.len()).filter(|&record| !is_input[record]) {
        let below = ancestry(records, last);
        let before = part.clone();
        part.add(records, &below);
        if part.size() <= limit {
            continue;
        }
        let mut alone = Part::new(records);
        alone.add(records, &below);
        if alone.size() > limit {
            return Err(Error::TooLarge {
                digest: records[last].digest.clone(),
                records: below.len(),
                bytes: alone.size(),
                limit,
            });
        }
        done.push(before);
        part = alone;
    }
    done.push(part);
    let indexes = |part: &Part| (0..part.has.len()).filter(|&record| part.has[record]).collect::<Vec<_>>();
    Ok(done.iter().map(indexes).filter(|records| !records.is_empty()).collect())
}

/// A record and all that it stands on, in order.
fn ancestry(records: &[Bare], record: usize) -> Vec<usize> {
    let mut seen = vec![false; record + 1];
    let mut pending = vec![record];
    while let Some(at) = pending.pop() {
        if !std::mem::replace(&mut seen[at], true) {
            pending.extend(records[at].inputs.iter().flatten().map(|(below, _)| *below));
        }
    }
    (0..=record).filter(|&at| seen[at]).collect()
}

/// The layer that stands for a record's result: no blob has this digest.
fn stand_in(record: &Bare, index: usize) -> Digest {
    Digest::of(format!("stand-in {index} {}", record.digest).as_bytes())
}

fn import(records: &[Bare], part: &[usize]) -> Import {
    let mut position = HashMap::with_capacity(part.len());
    let mut out = Vec::with_capacity(part.len());
    let (mut layers, mut listed) = (Vec::new(), Vec::new());
    for (at, &index) in part.iter().enumerate() {
        position.insert(index, at);
        let record = &records[index];
        let link = |(below, selector): &(usize, String)| {
            let mut value = Map::from_iter([("link".to_owned(), Value::from(position[below]))]);
            if !selector.is_empty() {
                value.insert("selector".into(), Value::from(selector.as_str()));
            }
            Value::Object(value)
        };
        let mut value = Map::from_iter([("digest".to_owned(), Value::from(record.digest.as_str()))]);
        if record.has_result {
            let digest = stand_in(record, index);
            value.insert("layers".into(), json!([{"layer": layers.len()}]));
            layers.push(json!({"blob": digest, "parent": -1}));
            listed.push(json!({
                "mediaType": OCI_LAYER, "digest": digest, "size": 1, "annotations": {UNCOMPRESSED: digest},
            }));
        }
        if !record.inputs.is_empty() {
            let inputs = record.inputs.iter().map(|input| input.iter().map(link).collect::<Value>());
            value.insert("inputs".into(), inputs.collect());
        }
        out.push(Value::Object(value));
    }
    let config = json!({"layers": layers, "records": out}).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CACHE_CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": listed,
    });
    Import { manifest: manifest.to_string().into_bytes(), config }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{CacheConfig, Document};

    /// A cache of `stages` chains of `steps` records each, one layer for each record.
    fn cache(stages: usize, steps: usize) -> Cache {
        let mut records = vec![json!({"digest": Digest::of(b"root")})];
        let (mut layers, mut listed) = (Vec::new(), Vec::new());
        for stage in 0..stages {
            for step in 0..steps {
                let digest = Digest::of(format!("{stage}.{step}").as_bytes());
                let below = if step == 0 { 0 } else { records.len() - 1 };
                let parent = if step == 0 { -1 } else { i64::try_from(layers.len()).unwrap() - 1 };
                let inputs = json!([[{"link": below, "selector": "s"}]]);
                records
                    .push(json!({"digest": digest, "inputs": inputs, "layers": [{"layer": layers.len()}]}));
                layers.push(json!({"blob": digest, "parent": parent}));
                listed.push(json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 7,
                    "annotations": {UNCOMPRESSED: digest},
                }));
            }
        }
        let config = json!({"layers": layers, "records": records}).to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": listed,
            "config": {"mediaType": CACHE_CONFIG, "digest": Digest::of(b"c"), "size": 1},
        });
        let manifest = Document::parse(manifest.to_string().as_bytes()).unwrap().into_cache().unwrap();
        CacheConfig::parse(config.as_bytes()).unwrap().resolve(&manifest).unwrap()
    }

    /// Reads an import back as a cache, after its documents were found short enough.
    fn read_back(import: &Import) -> Cache {
        assert!(import.manifest.len() <= LIMIT && import.config.len() <= LIMIT);
        let manifest = Document::parse(&import.manifest).unwrap().into_cache().unwrap();
        assert_eq!(manifest.config.digest, Digest::of(&import.config));
        CacheConfig::parse(&import.config).unwrap().resolve(&manifest).unwrap()
    }

    #[test]
    fn a_small_cache_stays_in_one_piece() {
        let cache = cache(3, 4);
        let imports = imports(&[&cache, &cache]).unwrap();
        let [import] = imports.as_slice() else { panic!("{imports:?}") };
        let again = read_back(import);
        assert_eq!(again.layers.len(), 12);
        let shape = |cache: &Cache| -> Vec<_> {
            let all = cache.records.iter();
            all.map(|r| (r.digest.clone(), r.inputs.clone(), r.results.len())).collect()
        };
        assert_eq!(shape(&again), shape(&cache));
    }

    #[test]
    fn what_caches_share_is_there_once() {
        let (one, all) = (cache(1, 5), cache(3, 5));
        let imports = imports(&[&one, &all]).unwrap();
        let [import] = imports.as_slice() else { panic!("{imports:?}") };
        assert_eq!(read_back(import).records.len(), all.records.len());
    }

    #[test]
    fn a_large_cache_comes_in_parts_that_hold_all_of_it() {
        let cache = cache(40, 250);
        let imports = imports(&[&cache]).unwrap();
        assert!(imports.len() > 1);
        let whole: HashMap<_, _> = cache.records.iter().map(|record| (&record.digest, record)).collect();
        let mut found = std::collections::BTreeSet::new();
        for import in &imports {
            let part = read_back(import);
            for record in &part.records {
                // The same key: with the same records below it.
                let below = |of: &Cache, at: &crate::oci::Record| -> Vec<_> {
                    at.inputs.iter().flatten().map(|link| of.records[link.record].digest.clone()).collect()
                };
                assert_eq!(below(&part, record), below(&cache, whole[&record.digest]));
                found.insert(record.digest.clone());
            }
        }
        assert_eq!(found.len(), cache.records.len());
    }

    #[test]
    fn one_chain_that_is_too_long_is_refused() {
        let error = parts(&union(&[&cache(1, 200)]), 16 << 10).unwrap_err();
        assert!(matches!(error, Error::TooLarge { records: 201, .. }), "{error}");
    }
}
