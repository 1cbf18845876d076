//! What a root holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Inventory, Key, Record, Status};
use crate::root::{self, Root, Solver, State, Usage};

/// The inventory of a root, of which `state` was read.
pub fn of_root(root: &Root, state: &State) -> Inventory {
    let mut records = Vec::new();
    let mut snapshots = Vec::new();
    // By worker id and record id, of each twin too: the id that is shown.
    let mut shown: HashMap<(&str, String), String> = HashMap::new();
    for worker in &state.workers {
        for usage in root.usage(worker) {
            let raw = worker.records.as_ref().and_then(|records| records.all.get(&usage.id));
            let worker = worker.id.as_deref().unwrap_or_default();
            for id in usage.twin.iter().chain([&usage.id]) {
                shown.insert((worker, id.clone()), usage.id.clone());
            }
            snapshots.push(raw.filter(|raw| !raw.blob_only).map(|raw| raw.snapshot.clone()));
            records.push(record(usage, raw));
        }
    }
    let names: HashMap<&str, &str> =
        records.iter().filter_map(|r| Some((r.id.as_str(), r.name.as_deref()?))).collect();
    let keys = state.solver.as_ref().map(|solver| keys(solver, &shown, &names)).unwrap_or_default();
    Inventory::new(records, keys, &snapshots, true)
}

fn record(usage: Usage, raw: Option<&root::Record>) -> Record {
    Record {
        name: Some(usage.description).filter(|name| !name.is_empty()),
        parents: usage.parents,
        record_type: usage.record_type,
        mutable: usage.mutable,
        layer: raw.and_then(|raw| raw.blob),
        layer_bytes: raw.and_then(|raw| raw.blob_size?.try_into().ok()),
        chain: raw.and_then(|raw| raw.blob_chain_id),
        bytes: usage.size,
        images: raw.map(|raw| raw.image_refs.clone()).unwrap_or_default(),
        id: usage.id,
        ..Record::default()
    }
}

fn keys(solver: &Solver, shown: &HashMap<(&str, String), String>, names: &HashMap<&str, &str>) -> Vec<Key> {
    let mut inputs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (id, links) in &solver.keys {
        for link in links {
            inputs.entry(&link.target).or_default().insert(id);
        }
    }
    let key = |id: &String| {
        let results = solver.results.get(id).into_iter().flatten().filter_map(|result| result.of.as_ref());
        let records: BTreeSet<&str> = results
            .filter_map(|(worker, record)| shown.get(&(worker.as_str(), record.clone())))
            .map(String::as_str)
            .collect();
        let inputs: Vec<String> =
            inputs.get(id.as_str()).into_iter().flatten().map(|&input| input.to_owned()).collect();
        Key {
            id: id.clone(),
            name: records.iter().find_map(|id| names.get(id)).map(|&name| name.to_owned()),
            status: if inputs.is_empty() { Status::Root } else { Status::Keyed },
            inputs,
            records: records.into_iter().map(str::to_owned).collect(),
        }
    };
    solver.keys.keys().map(key).collect()
}
