//! What a root baked from some caches would hold, its images aside.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Inventory, Key, Record, distinct};
use crate::bake::plan::{Plan, plan};
use crate::digest::Digest;
use crate::gather::{Covered, Gathered};
use crate::oci::Cache;
use crate::store::ids::{KeyId, RecordId};

/// The inventory of caches, and of what their key sources prove.
pub fn of_caches(gathered: &Gathered) -> Inventory {
    let Gathered { caches, keys, blobs, .. } = gathered;
    let plan = plan(caches, &[], blobs.clone(), keys);
    let ids: Vec<String> =
        plan.records.iter().map(|record| RecordId::of(&record.blob_chain_id).to_string()).collect();
    let records = plan.records.iter().zip(&ids).map(|(record, id)| {
        let layer = &plan.blobs[record.blob].layer;
        Record {
            id: id.clone(),
            name: record.name.clone().or_else(|| layer.description.clone()),
            parents: record.parent.iter().map(|&parent| ids[parent].clone()).collect(),
            record_type: "regular".to_owned(),
            layer: Some(layer.descriptor.digest),
            layer_bytes: Some(layer.descriptor.size),
            chain: Some(record.blob_chain_id),
            ..Record::default()
        }
    });
    let snapshots: Vec<_> = plan.records.iter().map(|record| Some(record.snapshot)).collect();
    let results = results(caches, &plan, |cache, record| keys.coverage.place(cache, record));
    Inventory::new(records.collect(), self::keys(keys.coverage.records(), &results, &ids), &snapshots, false)
}

/// By the place of a record of the caches: indexes of the records of the plan that are its results.
fn results(
    caches: &[Cache],
    plan: &Plan,
    place: impl Fn(usize, usize) -> usize,
) -> HashMap<usize, BTreeSet<usize>> {
    let mut on: HashMap<(Option<usize>, Digest), usize> = HashMap::new();
    for (at, record) in plan.records.iter().enumerate() {
        on.insert((record.parent, plan.blobs[record.blob].layer.descriptor.digest), at);
    }
    let mut results: HashMap<usize, BTreeSet<usize>> = HashMap::new();
    for (at, cache) in caches.iter().enumerate() {
        for (index, record) in cache.records.iter().enumerate() {
            for result in &record.results {
                let layers = result.layers.iter().map(|&layer| cache.layers[layer].descriptor.digest);
                let top = layers.fold(None, |below, layer| on.get(&(below, layer)).copied());
                results.entry(place(at, index)).or_default().extend(top);
            }
        }
    }
    results
}

/// The keys, under the ids that a bake gives those that it writes.
fn keys(covered: &[Covered], results: &HashMap<usize, BTreeSet<usize>>, ids: &[String]) -> Vec<Key> {
    let mut key_ids: Vec<KeyId> = Vec::with_capacity(covered.len());
    let mut keys: BTreeMap<String, Key> = BTreeMap::new();
    for (at, record) in covered.iter().enumerate() {
        // A bake leaves out alternatives that no build finds; of a key that none finds, all tell what it is.
        let counts =
            |input: &&(usize, String)| !record.status.is_found() || covered[input.0].status.is_found();
        let inputs: Vec<Vec<_>> = record
            .inputs
            .iter()
            .map(|all| {
                all.iter().filter(counts).map(|(input, sel)| (&key_ids[*input], sel.as_str())).collect()
            })
            .collect();
        let id = if inputs.is_empty() {
            KeyId::root(&record.digest)
        } else {
            KeyId::derived(&record.digest, &inputs)
        };
        let from = inputs.iter().flatten().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
        let key = keys.entry(id.to_string()).or_insert_with(|| Key {
            id: id.to_string(),
            name: record.name.clone(),
            status: record.status,
            inputs: distinct(from),
            records: Vec::new(),
        });
        let of = results.get(&at).into_iter().flatten().map(|&record| ids[record].clone());
        key.records = distinct(key.records.drain(..).chain(of));
        key_ids.push(id);
    }
    keys.into_values().collect()
}
