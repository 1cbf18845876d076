//! What one inventory has and another has not.
//!
//! Records are the same if they have the same layers all the way down (by blobs and diff IDs), and without layers if
//! they have one id. Keys are the same if they have one id: in caches and baked roots it is made of the operation
//! and its inputs. Daemons draw ids at random, so what they add to a root is the same in copies of it only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::{Inventory, Key, Record, Status};
use crate::digest::{BlobChainId, Digest};

/// Which of the two has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the first.
    Gone,
    /// Only the second.
    Added,
}

/// A step that only one of the two has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Differing {
    /// Which one.
    pub change: Change,
    /// The step, where that is known.
    pub name: Option<String>,
    /// Id of the record, or, of a step without a layer, of the key.
    pub id: String,
    /// Digest of its layer's blob, where it has one.
    pub layer: Option<Digest>,
    /// Bytes of that; of a record without one, its bytes in the root.
    pub bytes: Option<u64>,
    /// Whether a build finds it by a key.
    pub status: Option<Status>,
}

/// How many records, and their bytes: of their layers, or where they have none, in the root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// How many.
    pub records: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Share {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.bytes = self.bytes.saturating_add(bytes(record).unwrap_or_default());
    }
}

/// How many keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyCounts {
    /// In both.
    pub same: usize,
    /// In the first only.
    pub gone: usize,
    /// In the second only.
    pub added: usize,
}

/// How two inventories differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diff {
    /// Whether each has what the other has: records and keys.
    pub equal: bool,
    /// Records in both.
    pub same: Share,
    /// Records in the first only.
    pub gone: Share,
    /// Records in the second only.
    pub added: Share,
    /// Records that are not compared: layers of images that were seeded into a root, against caches, which hold
    /// none.
    pub images: Share,
    /// The keys.
    pub keys: KeyCounts,
    /// What only one of them has: records, and the steps without a layer that have a name. What has one name
    /// stands together, what is gone first.
    pub steps: Vec<Differing>,
}

/// What makes a record equal to another.
#[derive(PartialEq, Eq, Hash)]
enum Identity<'a> {
    Layers(BlobChainId),
    Id(&'a str),
}

fn identity(record: &Record) -> Identity<'_> {
    record.chain.map_or(Identity::Id(&record.id), Identity::Layers)
}

/// Alike in caches and roots.
fn bytes(record: &Record) -> Option<u64> {
    record.layer_bytes.or(record.bytes)
}

/// Compares two inventories.
pub fn diff(first: &Inventory, second: &Inventory) -> Diff {
    let (same, gone, added) = records(first, second);
    let mut diff = Diff { same, ..Diff::default() };
    let first_keys: HashSet<&str> = first.keys.iter().map(|key| key.id.as_str()).collect();
    let second_keys: HashSet<&str> = second.keys.iter().map(|key| key.id.as_str()).collect();
    diff.keys.same = first_keys.intersection(&second_keys).count();
    let seeded = Seeded::of(first, second);
    diff.gone = side(Change::Gone, &gone, &seeded, &mut diff);
    diff.keys.gone = keys(Change::Gone, first, &second_keys, &seeded, &mut diff);
    let seeded = Seeded::of(second, first);
    diff.added = side(Change::Added, &added, &seeded, &mut diff);
    diff.keys.added = keys(Change::Added, second, &first_keys, &seeded, &mut diff);
    diff.steps = by_name(diff.steps);
    diff.equal = diff.gone.records + diff.added.records + diff.keys.gone + diff.keys.added == 0;
    diff
}

/// What both have, and what only the first and only the second has.
fn records<'a>(first: &'a Inventory, second: &'a Inventory) -> (Share, Vec<&'a Record>, Vec<&'a Record>) {
    // Daemons write equal records twice now and then, so they are counted.
    let mut unmatched: HashMap<Identity<'_>, usize> = HashMap::new();
    for record in &second.records {
        *unmatched.entry(identity(record)).or_default() += 1;
    }
    let mut matched: HashMap<Identity<'_>, usize> = HashMap::new();
    let mut same = Share::default();
    let mut gone = Vec::new();
    for record in &first.records {
        if take(&mut unmatched, record) {
            *matched.entry(identity(record)).or_default() += 1;
            same.add(record);
        } else {
            gone.push(record);
        }
    }
    let mut added = Vec::new();
    for record in &second.records {
        if !take(&mut matched, record) {
            added.push(record);
        }
    }
    (same, gone, added)
}

/// Counts one less of those that equal `record`; false where there is none.
fn take<'a>(counts: &mut HashMap<Identity<'a>, usize>, record: &'a Record) -> bool {
    let count = counts.get_mut(&identity(record)).filter(|count| **count > 0);
    count.map(|count| *count -= 1).is_some()
}

/// What an inventory has because images were seeded into it, where the other one cannot have it.
#[derive(Default)]
struct Seeded<'a> {
    /// Ids of layers of images that no step of a build stands on.
    records: HashSet<&'a str>,
    /// Ids of all layers of images.
    layers: HashSet<&'a str>,
}

impl<'a> Seeded<'a> {
    fn of(one: &'a Inventory, other: &Inventory) -> Self {
        if !one.with_images || other.with_images {
            return Self::default();
        }
        let by_id: HashMap<&str, &Record> = one.records.iter().map(|r| (r.id.as_str(), r)).collect();
        let mut below: HashSet<&str> = HashSet::new();
        let mut pending: Vec<&Record> = one.records.iter().filter(|r| r.images.is_empty()).collect();
        while let Some(record) = pending.pop() {
            let parents = record.parents.iter().filter(|id| below.insert(id.as_str()));
            pending.extend(parents.filter_map(|id| by_id.get(id.as_str())));
        }
        let of_images = one.records.iter().filter(|record| !record.images.is_empty());
        let layers: HashSet<&str> = of_images.map(|record| record.id.as_str()).collect();
        Self { records: layers.difference(&below).copied().collect(), layers }
    }

    /// Whether it is one that a bake gives an image: no inputs, and a layer of it as result.
    fn has_key(&self, key: &Key) -> bool {
        let is_layer = |id: &String| self.layers.contains(id.as_str());
        key.inputs.is_empty() && !key.records.is_empty() && key.records.iter().all(is_layer)
    }
}

fn side(change: Change, only: &[&Record], seeded: &Seeded<'_>, diff: &mut Diff) -> Share {
    let mut share = Share::default();
    for record in only {
        if seeded.records.contains(record.id.as_str()) {
            diff.images.add(record);
            continue;
        }
        share.add(record);
        diff.steps.push(Differing {
            change,
            name: record.name.clone(),
            id: record.id.clone(),
            layer: record.layer,
            bytes: bytes(record),
            status: record.status,
        });
    }
    share
}

fn keys(
    change: Change,
    one: &Inventory,
    others: &HashSet<&str>,
    seeded: &Seeded<'_>,
    diff: &mut Diff,
) -> usize {
    let mut count = 0;
    let only = one.keys.iter().filter(|key| !others.contains(key.id.as_str()));
    for key in only.filter(|key| !seeded.has_key(key)) {
        count += 1;
        // The others are told by their records.
        if key.records.is_empty() && key.name.is_some() {
            diff.steps.push(Differing {
                change,
                name: key.name.clone(),
                id: key.id.clone(),
                layer: None,
                bytes: None,
                status: Some(key.status),
            });
        }
    }
    count
}

/// Those of one name together; of names the one with the most bytes first, and what has none by itself.
fn by_name(steps: Vec<Differing>) -> Vec<Differing> {
    let mut groups: BTreeMap<String, (u64, Vec<Differing>)> = BTreeMap::new();
    for step in steps {
        let name = step.name.as_deref().unwrap_or(&step.id).to_owned();
        let (bytes, group) = groups.entry(name).or_default();
        *bytes = bytes.saturating_add(step.bytes.unwrap_or_default());
        group.push(step);
    }
    let mut groups: Vec<(String, (u64, Vec<Differing>))> = groups.into_iter().collect();
    // Stable: by name where the bytes are the same.
    groups.sort_by_key(|(_, (bytes, _))| Reverse(*bytes));
    let sorted = groups.into_iter().map(|(_, (_, mut group))| {
        group.sort_by(|a, b| (a.change, Reverse(a.bytes), &a.id).cmp(&(b.change, Reverse(b.bytes), &b.id)));
        group
    });
    sorted.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, name: &str, chain: Option<&str>, bytes: u64, parents: &[&str]) -> Record {
        Record {
            id: id.to_owned(),
            name: (!name.is_empty()).then(|| name.to_owned()),
            chain: chain.map(|chain| BlobChainId::of(chain.as_bytes())),
            layer_bytes: chain.map(|_| bytes),
            bytes: Some(bytes + 1000),
            parents: parents.iter().map(|&id| id.to_owned()).collect(),
            ..Record::default()
        }
    }

    fn key(id: &str, name: Option<&str>, inputs: &[&str], records: &[&str]) -> Key {
        let owned = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect();
        Key {
            id: id.to_owned(),
            name: name.map(str::to_owned),
            status: Status::Keyed,
            inputs: owned(inputs),
            records: owned(records),
        }
    }

    fn inventory(records: Vec<Record>, keys: Vec<Key>, with_images: bool) -> Inventory {
        Inventory { records, keys, with_images, ..Inventory::default() }
    }

    fn shown(diff: &Diff) -> Vec<String> {
        let row = |step: &Differing| {
            let sign = if step.change == Change::Gone { '-' } else { '+' };
            let bytes = step.bytes.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
            format!("{sign} {bytes} {}", step.name.as_deref().unwrap_or(&step.id))
        };
        diff.steps.iter().map(row).collect()
    }

    #[test]
    fn what_changed_is_gone_and_added() {
        let base = || record("base", "FROM base", Some("base"), 100, &[]);
        let first = inventory(
            vec![
                base(),
                record("c1", "COPY src", Some("copy 1"), 10, &["base"]),
                record("r1", "RUN make", Some("make 1"), 70, &["c1"]),
                // Another daemon gave it another id.
                record("x", "COPY docs", Some("docs"), 5, &["base"]),
                record("local", "", None, 3, &[]),
            ],
            vec![key("k", None, &[], &["base"]), key("k1", Some("RUN lint"), &["k"], &[])],
            true,
        );
        let second = inventory(
            vec![
                base(),
                record("c2", "COPY src", Some("copy 2"), 11, &["base"]),
                record("r2", "RUN make", Some("make 2"), 50, &["c2"]),
                record("y", "COPY docs", Some("docs"), 5, &["base"]),
                record("moved", "", None, 4, &[]),
            ],
            vec![key("k", None, &[], &["base"]), key("k2", Some("RUN lint"), &["k"], &[])],
            true,
        );
        let found = diff(&first, &second);
        let expected = [
            "+ 1004 moved",
            "- 1003 local",
            "- 70 RUN make",
            "+ 50 RUN make",
            "- 10 COPY src",
            "+ 11 COPY src",
            "- none RUN lint",
            "+ none RUN lint",
        ];
        assert_eq!(shown(&found), expected);
        assert_eq!(found.same, Share { records: 2, bytes: 105 });
        assert_eq!(found.gone, Share { records: 3, bytes: 1083 });
        assert_eq!(found.added, Share { records: 3, bytes: 1065 });
        assert_eq!(found.keys, KeyCounts { same: 1, gone: 1, added: 1 });
        assert!(!found.equal);

        // Turned round, what was gone is added.
        let turned = diff(&second, &first);
        assert_eq!((turned.gone, turned.added, turned.same), (found.added, found.gone, found.same));
        for inventory in [&first, &second, &Inventory::default()] {
            let itself = diff(inventory, inventory);
            assert!(itself.equal && itself.steps.is_empty(), "{itself:?}");
            assert_eq!(itself.same.records, inventory.records.len());
        }
        assert!(!diff(&Inventory::default(), &second).equal);
    }

    #[test]
    fn equal_records_are_counted() {
        let twice = |n: usize| {
            let all = (0..n).map(|at| record(&at.to_string(), "RUN true", Some("same"), 1, &[])).collect();
            inventory(all, Vec::new(), true)
        };
        let found = diff(&twice(3), &twice(1));
        assert_eq!((found.same.records, found.gone.records, found.added.records), (1, 2, 0));
        let found = diff(&twice(1), &twice(3));
        assert_eq!((found.same.records, found.gone.records, found.added.records), (1, 0, 2));
    }

    #[test]
    fn seeded_images_are_not_compared_with_caches() {
        let image = |id: &str| Record {
            images: vec!["r.example/i".to_owned()],
            ..record(id, "pulled from r.example/i", Some(id), 9, &[])
        };
        let steps = || vec![record("run", "RUN make", Some("make"), 1, &["used"])];
        let root =
            |records| inventory([records, steps()].concat(), vec![key("i", None, &[], &["seeded"])], true);
        let cache = inventory([vec![image("used")], steps()].concat(), Vec::new(), false);
        let found = diff(&root(vec![image("used"), image("seeded")]), &cache);
        assert!(found.equal, "{found:?}");
        assert_eq!((found.images, found.same.records), (Share { records: 1, bytes: 9 }, 2));
        // What steps stand on is compared, and roots have images of their own.
        let other = diff(&root(vec![image("used"), image("seeded")]), &inventory(steps(), Vec::new(), false));
        assert_eq!((other.images.records, other.gone.records, other.same.records), (1, 1, 1));
        let roots = diff(&root(vec![image("used"), image("seeded")]), &root(vec![image("used")]));
        assert_eq!((roots.images.records, roots.gone.records, roots.keys.gone), (0, 1, 0));
    }
}
