//! The caches as the daemon of a replay imports them: their records, with stand-ins for layers.
//!
//! ```text
//! caches, of any form and size ── union ──▶ one config: records, a layer for each step
//! ```
//!
//! The gate serves it as a cache of `type=s3`: of all forms the only one that is a single document of any size
//! and asks for no layer before it is needed. Importers of registry caches and folders read 1 MiB at most (`readBlob` in
//! `cache/remotecache/import.go`), and of a folder every layer as soon as a record is used (`unlazyProvider`
//! in `cache/remotecache/local/local.go`); one import it has to be, since of several a daemon goes on
//! with the one in which it found a step first, and can miss what stands on that step in another.
//!
//! What a record has as its result is never looked at, since nothing runs; that it has one is what makes its
//! step CACHED. So each step has a layer of its own that there is nowhere, those too of which the cache has no
//! result (`mode=min`): what misses is then the step that differs, never one below it that would have to run for it.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use crate::digest::{Digest, RecordDigest};
use crate::oci::Cache;
use crate::oci::cacheconfig::Link;

/// The layer that stands for a result.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The config that `caches` make together.
pub(super) fn config(caches: &[&Cache]) -> Vec<u8> {
    let (mut layers, mut records) = (Vec::new(), Vec::new());
    for (index, record) in union(caches).iter().enumerate() {
        let link = |(below, selector): &(usize, String)| {
            let mut value = Map::from_iter([("link".to_owned(), Value::from(*below))]);
            if !selector.is_empty() {
                value.insert("selector".into(), Value::from(selector.as_str()));
            }
            Value::Object(value)
        };
        let mut value = Map::from_iter([("digest".to_owned(), Value::from(record.digest.as_str()))]);
        if record.has_result {
            // No blob has this digest.
            let digest = Digest::of(format!("stand-in {index} {}", record.digest).as_bytes());
            value.insert("layers".into(), json!([{"layer": layers.len()}]));
            let annotations = json!({"mediaType": LAYER, "diffID": digest, "size": 1});
            layers.push(json!({"blob": digest, "parent": -1, "annotations": annotations}));
        }
        if !record.inputs.is_empty() {
            let inputs = record.inputs.iter().map(|input| input.iter().map(link).collect::<Value>());
            value.insert("inputs".into(), inputs.collect());
        }
        records.push(Value::Object(value));
    }
    json!({"layers": layers, "records": records}).to_string().into_bytes()
}

/// A record without its results.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bare {
    digest: RecordDigest,
    has_result: bool,
    inputs: Vec<Alternatives>,
}

/// What may stand at one input of a record: other records, each with a selector.
type Alternatives = BTreeSet<(usize, String)>;

/// The records of all caches, each once, after those that it stands on.
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
                // A source is what it is, and its files are looked at.
                let has_result = !inputs.is_empty();
                all.push(Bare { digest: record.digest.clone(), has_result, inputs: inputs.clone() });
                all.len() - 1
            });
            all[at].has_result |= !record.results.is_empty();
            positions.push(at);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::cacheconfig::UNCOMPRESSED;
    use crate::oci::media_type::{CACHE_CONFIG, OCI_MANIFEST};
    use crate::oci::{CacheConfig, Document};

    /// A cache of `stages` chains of `steps` records each, all on one root; the last of each has a layer.
    fn cache(stages: usize, steps: usize) -> Cache {
        let mut records = vec![json!({"digest": Digest::of(b"root")})];
        let (mut layers, mut listed) = (Vec::new(), Vec::new());
        for stage in 0..stages {
            for step in 0..steps {
                let digest = Digest::of(format!("{stage}.{step}").as_bytes());
                let below = if step == 0 { 0 } else { records.len() - 1 };
                let mut record = json!({"digest": digest, "inputs": [[{"link": below, "selector": "s"}]]});
                if step + 1 == steps {
                    record["layers"] = json!([{"layer": layers.len()}]);
                    layers.push(json!({"blob": digest, "parent": -1}));
                    let annotations = json!({UNCOMPRESSED: digest});
                    listed.push(
                        json!({"mediaType": LAYER, "digest": digest, "size": 7, "annotations": annotations}),
                    );
                }
                records.push(record);
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

    #[test]
    fn every_step_has_a_layer_of_its_own_and_what_caches_share_is_there_once() {
        let (one, all) = (cache(1, 5), cache(3, 5));
        let config: Value = serde_json::from_slice(&config(&[&one, &all, &all])).unwrap();
        let records = config["records"].as_array().unwrap();
        let mut used = BTreeSet::new();
        for (record, expected) in records.iter().zip(&all.records) {
            assert_eq!(record["digest"], expected.digest.as_str());
            let links =
                expected.inputs.iter().flatten().map(|link| json!({"link": link.record, "selector": "s"}));
            let expected: Vec<Value> = links.map(|link| json!([link])).collect();
            assert_eq!(record["inputs"].as_array().cloned().unwrap_or_default(), expected);
            assert_eq!(record.get("layers").is_some(), !expected.is_empty(), "sources have none");
            if let Some(layer) = record.pointer("/layers/0/layer") {
                let layer = &config["layers"][usize::try_from(layer.as_u64().unwrap()).unwrap()];
                assert!(used.insert(layer["blob"].as_str().unwrap().to_owned()));
                assert_eq!(layer["annotations"]["diffID"], layer["blob"]);
            }
        }
        assert_eq!((records.len(), used.len()), (all.records.len(), 15));
    }
}
