//! What caches and roots hold, as the same plain data, and how two of them differ.
//!
//! ```text
//! gather::gather ──> cache ──┐                ┌──> tree   which record stands on which
//!                            ├──> Inventory ──┤
//! root::Root     ──> root  ──┘                └──> diff   what one has and another has not
//! ```
//!
//! The records of a root are those that `buildctl du` shows; those of a cache are the ones that a root baked from it
//! would have. Keys are the ways on which a build finds them.

mod cache;
mod diff;
mod root;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use serde::Serialize;

use crate::digest::{BlobChainId, Digest};

pub use crate::gather::Status;
pub use cache::of_caches;
pub use diff::{Change, Diff, Differing, KeyCounts, Share, diff};
pub use root::of_root;
pub use tree::{Child, Forest, Weight, forest};

/// A cache record: a layer on those below it, a merge of others, a cache mount, …
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// Its id in the root; of a cache, the one that a bake gives it.
    pub id: String,
    /// The step that made it, or where it was pulled from.
    pub name: Option<String>,
    /// Ids of the records that it stands on.
    pub parents: Vec<String>,
    /// `regular`, `source.local`, `exec.cachemount`, `frontend`, …
    #[serde(rename = "type")]
    pub record_type: String,
    /// Whether it may still change.
    pub mutable: bool,
    /// Digest of its layer's blob, where it has one.
    pub layer: Option<Digest>,
    /// Compressed bytes of that.
    pub layer_bytes: Option<u64>,
    /// Its layer on those below it: equal where the files and the blobs that they came in are.
    pub chain: Option<BlobChainId>,
    /// Bytes in the root, as `buildctl du` counts them: snapshot and blobs. `None` in a cache.
    pub bytes: Option<u64>,
    /// Whether a build finds it by a key, or why not; `None` where it is the result of none, as the lower layers
    /// of an image are.
    pub status: Option<Status>,
    /// Of how many keys it is the result.
    pub keys: usize,
    /// How many other records have the same layer.
    pub same_layer: usize,
    /// How many other records have the same files: their snapshot is one.
    pub same_files: usize,
    /// The images that it is known to be a layer of.
    pub images: Vec<String>,
}

impl Record {
    /// Its bytes, for comparisons: in a root, else compressed.
    pub fn weight(&self) -> u64 {
        self.bytes.or(self.layer_bytes).unwrap_or_default()
    }
}

/// A cache key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Key {
    /// Its id in the root; of a cache, the one that a bake gives it.
    pub id: String,
    /// The step, where that is known.
    pub name: Option<String>,
    /// Whether a build finds it.
    pub status: Status,
    /// Ids of the keys that are its inputs, all alternatives.
    pub inputs: Vec<String>,
    /// Ids of the records that are its results.
    pub records: Vec<String>,
}

/// How much there is of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Records.
    pub records: usize,
    /// Bytes of them in the root, as `buildctl du` counts them; 0 for a cache.
    pub bytes: u64,
    /// Distinct layer blobs.
    pub layers: usize,
    /// Their compressed bytes.
    pub layer_bytes: u64,
    /// Those of them that several records have.
    pub shared_layers: usize,
    /// Distinct snapshots.
    pub snapshots: usize,
    /// Those of them that several records have.
    pub shared_snapshots: usize,
    /// Keys.
    pub keys: usize,
    /// Those of them that have no inputs, and need no proof.
    pub roots: usize,
    /// Those of them that no build finds: the operation is unknown, or an input is.
    pub unkeyed: usize,
    /// Those of them without a result.
    pub without_record: usize,
}

/// What some caches or a root hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inventory {
    /// The records; no two with one id.
    pub records: Vec<Record>,
    /// The keys; no two with one id.
    pub keys: Vec<Key>,
    /// Sums over both.
    pub totals: Totals,
    /// Whether images that builds start from are among the records, as in a root; caches do not hold them as
    /// such.
    pub with_images: bool,
}

impl Inventory {
    /// Counts what is shared, and what there is of each. `snapshots` names the snapshot of each record.
    fn new<S: Eq + Hash>(
        mut records: Vec<Record>,
        keys: Vec<Key>,
        snapshots: &[Option<S>],
        with_images: bool,
    ) -> Self {
        let mut layers: BTreeMap<Digest, (usize, u64)> = BTreeMap::new();
        let mut files: HashMap<&S, usize> = HashMap::new();
        for (record, snapshot) in records.iter().zip(snapshots) {
            if let Some(layer) = record.layer {
                let (count, bytes) = layers.entry(layer).or_default();
                *count += 1;
                *bytes = record.layer_bytes.unwrap_or_default();
            }
            if let Some(snapshot) = snapshot {
                *files.entry(snapshot).or_default() += 1;
            }
        }
        let mut of: HashMap<&str, (usize, Option<Status>)> = HashMap::new();
        for key in &keys {
            for id in &key.records {
                let (count, status) = of.entry(id).or_default();
                *count += 1;
                // In this order they get worse.
                *status = Some(status.map_or(key.status, |status| status.min(key.status)));
            }
        }
        for (record, snapshot) in records.iter_mut().zip(snapshots) {
            let others = |count: Option<&usize>| count.map_or(0, |count| count - 1);
            record.same_layer = record.layer.map_or(0, |layer| others(layers.get(&layer).map(|(n, _)| n)));
            record.same_files = snapshot.as_ref().map_or(0, |snapshot| others(files.get(snapshot)));
            let (keys, status) = of.get(record.id.as_str()).copied().unwrap_or_default();
            (record.keys, record.status) = (keys, status.map(as_found));
        }
        let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
        let totals = Totals {
            records: records.len(),
            bytes: sum(&mut records.iter().filter_map(|record| record.bytes)),
            layers: layers.len(),
            layer_bytes: sum(&mut layers.values().map(|(_, bytes)| *bytes)),
            shared_layers: layers.values().filter(|(count, _)| *count > 1).count(),
            snapshots: files.len(),
            shared_snapshots: files.values().filter(|count| **count > 1).count(),
            keys: keys.len(),
            roots: keys.iter().filter(|key| key.status == Status::Root).count(),
            unkeyed: keys.iter().filter(|key| !key.status.is_found()).count(),
            without_record: keys.iter().filter(|key| key.records.is_empty()).count(),
        };
        Self { records, keys, totals, with_images }
    }
}

/// A record is found or not, whether its key needs a proof or not.
fn as_found(status: Status) -> Status {
    if status.is_found() { Status::Keyed } else { status }
}

fn distinct<T: Ord>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    all.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_shared() {
        let record = |id: &str, layer: Option<&str>, bytes| Record {
            id: id.to_owned(),
            layer: layer.map(|layer| Digest::of(layer.as_bytes())),
            layer_bytes: layer.map(|_| 10),
            bytes,
            ..Record::default()
        };
        let key = |id: &str, status, records: &[&str]| Key {
            id: id.to_owned(),
            name: None,
            status,
            inputs: Vec::new(),
            records: records.iter().map(|&id| id.to_owned()).collect(),
        };
        let records = vec![
            record("a", Some("x"), Some(100)),
            record("b", Some("x"), Some(50)),
            record("c", Some("y"), None),
            record("d", None, Some(1)),
        ];
        let keys = vec![
            key("r", Status::Root, &["a"]),
            key("s", Status::Unkeyed, &["a", "c"]),
            key("t", Status::OnlyInputs, &["c"]),
            key("u", Status::Keyed, &[]),
        ];
        let snapshots = [Some("1"), Some("2"), Some("2"), None];
        let inventory = Inventory::new(records, keys, &snapshots, true);
        let of = |record: &Record| (record.status, record.keys, record.same_layer, record.same_files);
        let found: Vec<_> = inventory.records.iter().map(of).collect();
        let expected = [
            (Some(Status::Keyed), 2, 1, 0),
            (None, 0, 1, 1),
            (Some(Status::OnlyInputs), 2, 0, 1),
            (None, 0, 0, 0),
        ];
        assert_eq!(found, expected);
        let totals = Totals {
            records: 4,
            bytes: 151,
            layers: 2,
            layer_bytes: 20,
            shared_layers: 1,
            snapshots: 2,
            shared_snapshots: 1,
            keys: 4,
            roots: 1,
            unkeyed: 2,
            without_record: 1,
        };
        assert_eq!(inventory.totals, totals);
    }
}
