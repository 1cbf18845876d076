//! The caches as the daemon of a replay imports them: everything but the layers.
//!
//! ```text
//! cache, of any form and size ── split ──▶ manifest   layers by their descriptors
//!                                          config     records, each document under 1 MiB
//! ```
//!
//! The gate serves them as registry caches, so the daemon needs neither credentials nor a way to where they
//! are, and it can download no layer: none is there. (A local cache would not do: of those a daemon reads
//! every layer as soon as it uses a record, `unlazyProvider` in `cache/remotecache/local/local.go` of
//! v0.34.2.) Importers refuse a manifest or config over 1 MiB (`readBlob` in `cache/remotecache/import.go`),
//! so a larger cache is given to them in several parts. A record's key is made of those of its inputs: each
//! part holds, with a record, all that it stands on.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::Error;
use crate::digest::Digest;
use crate::oci::cacheconfig::UNCOMPRESSED;
use crate::oci::media_type::{CACHE_CONFIG, OCI_MANIFEST};
use crate::oci::{Cache, Layer};

/// The largest document that an importer reads, in bytes.
const LIMIT: usize = 1 << 20;
/// What a document has beside its records and layers, at most, in bytes.
const FRAME: usize = 4096;
/// What an entry of `layers` in the config takes at most, in bytes.
const CONFIG_LAYER: usize = 128;

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
    let mut imports = Vec::new();
    for cache in caches {
        imports.extend(parts(cache, LIMIT)?.iter().map(|part| import(cache, part)));
    }
    Ok(imports)
}

/// Bytes in config and manifest.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    config: usize,
    manifest: usize,
}

/// A set of records that fits into one import, and what it takes.
#[derive(Clone)]
struct Part {
    has: Vec<bool>,
    placed: Vec<bool>,
    layers: Vec<bool>,
    size: Size,
}

impl Part {
    fn new(weights: &Weights) -> Self {
        Self {
            has: vec![false; weights.records.len()],
            placed: vec![false; weights.places.len()],
            layers: vec![false; weights.layers.len()],
            size: Size { config: FRAME, manifest: FRAME },
        }
    }

    /// Adds records with their layers, and counts the bytes.
    fn add(&mut self, records: &[usize], weights: &Weights) {
        for &record in records {
            if std::mem::replace(&mut self.has[record], true) {
                continue;
            }
            self.size.config += weights.records[record];
            for &top in &weights.tops[record] {
                let mut next = Some(top);
                while let Some(place) = next.filter(|&place| !self.placed[place]) {
                    let (layer, below) = weights.places[place];
                    self.placed[place] = true;
                    self.size.config += CONFIG_LAYER;
                    if !std::mem::replace(&mut self.layers[layer], true) {
                        self.size.manifest += weights.layers[layer];
                    }
                    next = below;
                }
            }
        }
    }
}

/// What each record takes in the config, and each layer in the manifest, in bytes at most.
struct Weights {
    records: Vec<usize>,
    layers: Vec<usize>,
    /// Each layer on each other that it stands on, which is what a config lists: with the place below.
    places: Vec<(usize, Option<usize>)>,
    /// Of each record, the places of its results.
    tops: Vec<Vec<usize>>,
}

impl Weights {
    fn of(cache: &Cache) -> Self {
        let of_record = |record: &crate::oci::Record| {
            let links: usize = record.inputs.iter().flatten().map(|link| 48 + 2 * link.selector.len()).sum();
            64 + 2 * record.digest.as_str().len()
                + links
                + 4 * record.inputs.len()
                + 96 * record.results.len()
        };
        let mut places = Vec::new();
        let mut known: HashMap<(usize, Option<usize>), usize> = HashMap::new();
        let mut top_of = |layers: &[usize]| {
            layers.iter().fold(None, |below, &layer| {
                Some(*known.entry((layer, below)).or_insert_with(|| {
                    places.push((layer, below));
                    places.len() - 1
                }))
            })
        };
        let tops = cache
            .records
            .iter()
            .map(|record| record.results.iter().filter_map(|chain| top_of(&chain.layers)).collect())
            .collect();
        Self {
            places,
            tops,
            records: cache.records.iter().map(of_record).collect(),
            layers: cache.layers.iter().map(|layer| descriptor(layer).to_string().len() + 1).collect(),
        }
    }
}

/// Splits a cache so that no document is longer than `limit`; indexes of records, in order.
fn parts(cache: &Cache, limit: usize) -> Result<Vec<Vec<usize>>, Error> {
    let weights = Weights::of(cache);
    let mut is_input = vec![false; cache.records.len()];
    for link in cache.records.iter().flat_map(|record| record.inputs.iter().flatten()) {
        is_input[link.record] = true;
    }
    let fits = |size: Size| size.config <= limit && size.manifest <= limit;
    let mut done: Vec<Part> = Vec::new();
    let mut part = Part::new(&weights);
    for last in (0..cache.records.len()).filter(|&record| !is_input[record]) {
        let below = ancestry(cache, last);
        let before = part.clone();
        part.add(&below, &weights);
        if fits(part.size) {
            continue;
        }
        let mut alone = Part::new(&weights);
        alone.add(&below, &weights);
        if !fits(alone.size) {
            return Err(Error::TooLarge {
                digest: cache.records[last].digest.clone(),
                records: below.len(),
                bytes: alone.size.config.max(alone.size.manifest),
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

/// A record and all that it stands on, in the order of the cache.
fn ancestry(cache: &Cache, record: usize) -> Vec<usize> {
    let mut seen = vec![false; record + 1];
    let mut pending = vec![record];
    while let Some(at) = pending.pop() {
        if !std::mem::replace(&mut seen[at], true) {
            pending.extend(cache.records[at].inputs.iter().flatten().map(|link| link.record));
        }
    }
    (0..=record).filter(|&at| seen[at]).collect()
}

fn descriptor(layer: &Layer) -> Value {
    let mut annotations: BTreeMap<&str, String> =
        layer.descriptor.annotations.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    annotations.insert(UNCOMPRESSED, layer.diff_id.to_string());
    json!({
        "mediaType": layer.descriptor.media_type,
        "digest": layer.descriptor.digest,
        "size": layer.descriptor.size,
        "annotations": annotations,
    })
}

/// Config and manifest of a part, as values.
fn documents(cache: &Cache, records: &[usize]) -> (Value, Vec<Value>) {
    let mut position = HashMap::with_capacity(records.len());
    // Chains as the config has them: a layer with the index of the one below it.
    let mut chains: HashMap<(usize, i64), i64> = HashMap::new();
    let mut layers = Vec::new();
    let mut listed: Vec<Value> = Vec::new();
    let mut is_listed = vec![false; cache.layers.len()];
    let mut out = Vec::with_capacity(records.len());
    for (at, &index) in records.iter().enumerate() {
        position.insert(index, at);
        let record = &cache.records[index];
        let mut results = Vec::new();
        for chain in &record.results {
            let mut parent = -1_i64;
            for &layer in &chain.layers {
                let next = i64::try_from(layers.len()).unwrap_or(i64::MAX);
                parent = *chains.entry((layer, parent)).or_insert_with(|| {
                    layers.push(json!({"blob": cache.layers[layer].descriptor.digest, "parent": parent}));
                    next
                });
                if !std::mem::replace(&mut is_listed[layer], true) {
                    listed.push(descriptor(&cache.layers[layer]));
                }
            }
            let mut result = Map::from_iter([("layer".to_owned(), Value::from(parent))]);
            if let Some(created) = chain.created_at {
                result.insert("createdAt".into(), Value::from(created.to_string()));
            }
            results.push(Value::Object(result));
        }
        let inputs: Vec<Vec<Value>> = record
            .inputs
            .iter()
            .map(|alternatives| {
                let link = |link: &crate::oci::cacheconfig::Link| {
                    let mut value =
                        Map::from_iter([("link".to_owned(), Value::from(position[&link.record]))]);
                    if !link.selector.is_empty() {
                        value.insert("selector".into(), Value::from(link.selector.as_str()));
                    }
                    Value::Object(value)
                };
                alternatives.iter().map(link).collect()
            })
            .collect();
        let mut value = Map::from_iter([("digest".to_owned(), Value::from(record.digest.as_str()))]);
        if !results.is_empty() {
            value.insert("layers".into(), Value::from(results));
        }
        if !inputs.is_empty() {
            value.insert("inputs".into(), json!(inputs));
        }
        out.push(Value::Object(value));
    }
    (json!({"layers": layers, "records": out}), listed)
}

fn import(cache: &Cache, records: &[usize]) -> Import {
    let (config, layers) = documents(cache, records);
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CACHE_CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": layers,
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
        let imports = imports(&[&cache]).unwrap();
        let [import] = imports.as_slice() else { panic!("{imports:?}") };
        let again = read_back(import);
        assert_eq!((again.records, again.layers), (cache.records, cache.layers));
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
        let error = parts(&cache(1, 200), 16 << 10).unwrap_err();
        assert!(matches!(error, Error::TooLarge { records: 201, .. }), "{error}");
    }
}
