//! The records of a worker as `buildctl du` shows them.
//!
//! Mirrors `getRecord`, `DiskUsage` and `size` in `cache/manager.go` and `cache/refs.go` of `BuildKit`: what a
//! daemon that just started says of a root.

use std::collections::{BTreeMap, BTreeSet};

use super::{Containerd, Record, Records, Worker};
use crate::digest::Digest;

/// Before a digest, label of a blob: one of the same layer in another compression; `cache/refs.go`.
const VARIANT: &str = "containerd.io/gc.ref.content.blob-";
/// Label of a merge's snapshot: its bytes without what is linked to from others; `snapshot/merge.go`.
const OF_MERGE: &str = "buildkit.mergeUsageSize";

/// A record, as `buildctl du` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its id.
    pub id: String,
    /// Bytes of its snapshot and blobs; `None` where they cannot be told.
    pub size: Option<u64>,
    /// `regular`, `source.local`, `exec.cachemount`, `frontend`, …
    pub record_type: String,
    /// A step, or where it was pulled from.
    pub description: String,
    /// Whether it may still change.
    pub mutable: bool,
    /// When it was made, in nanoseconds since 1970.
    pub created_at: Option<i64>,
    /// When it was used last, in nanoseconds since 1970.
    pub last_used_at: Option<i64>,
    /// How often it was used.
    pub usage_count: u64,
    /// Ids of the records it stands on.
    pub parents: Vec<String>,
    /// The record that has the same data and is not shown, if there is one: results may name either.
    pub twin: Option<String>,
}

/// The records that a daemon knows after it started on this worker, by id; empty where the worker's records cannot
/// be read. Two that share their data, one of them mutable, are one: the one that others stand on, or else the
/// mutable one. `measure` tells the bytes of the snapshot with a directory number, where no database has them: it is
/// written to.
pub(super) fn usage(worker: &Worker, measure: impl Fn(u64) -> Option<u64>) -> Vec<Usage> {
    let Some(records) = &worker.records else { return Vec::new() };
    let kept = Kept { worker, records, known: BTreeMap::new() }.all();
    let below: BTreeSet<&str> = kept.values().flat_map(|record| record.parents()).collect();
    // By the record that is not shown, and by the one that is.
    let (mut hidden, mut twins) = (BTreeSet::new(), BTreeMap::new());
    for (&id, record) in &kept {
        if let Some(mutable) = record.equal_mutable.as_deref().filter(|id| kept.contains_key(id)) {
            let (shown, other) = if below.contains(id) { (id, mutable) } else { (mutable, id) };
            hidden.insert(other);
            twins.insert(shown, other);
        }
    }
    let of = |(id, record): (&str, &Record)| Usage {
        id: id.to_owned(),
        size: size(record, &kept, worker, &measure),
        record_type: record.record_type.clone().unwrap_or_else(|| "regular".to_owned()),
        description: record.description.clone().unwrap_or_default(),
        mutable: record.is_mutable(),
        created_at: record.created_at,
        last_used_at: record.last_used_at.filter(|&time| time != 0 && record.usage_count.is_some()),
        usage_count: record.usage_count.and_then(|count| count.try_into().ok()).unwrap_or_default(),
        parents: record.parents().map(str::to_owned).collect(),
        twin: twins.get(id).map(|&twin| twin.to_owned()),
    };
    let shown = kept.iter().filter(|(id, _)| !hidden.contains(*id));
    shown.map(|(&id, &record)| of((id, record))).collect()
}

/// Which records a daemon takes over at its start.
struct Kept<'a> {
    worker: &'a Worker,
    records: &'a Records,
    /// Those that are decided; what is being decided counts as not kept, so that a circle ends.
    known: BTreeMap<&'a str, bool>,
}

impl<'a> Kept<'a> {
    fn all(mut self) -> BTreeMap<&'a str, &'a Record> {
        let records = self.records;
        for id in records.all.keys() {
            self.decide(id);
        }
        let all = records.all.iter().map(|(id, record)| (id.as_str(), record));
        all.filter(|(id, _)| self.is_known(id)).collect()
    }

    fn is_known(&self, id: &str) -> bool {
        self.known.get(id).copied().unwrap_or_default()
    }

    /// Depth first, without recursion: a chain may be as long as a build.
    fn decide(&mut self, id: &'a str) {
        let mut pending = vec![id];
        while let Some(&id) = pending.last() {
            let Some(record) = self.records.all.get(id).filter(|_| !self.is_known(id)) else {
                pending.pop();
                continue;
            };
            let before = pending.len();
            if self.known.insert(id, false).is_none() {
                let needed = record.parents().chain(record.equal_mutable.as_deref());
                pending.extend(needed.filter(|needed| !self.known.contains_key(needed)));
            }
            if pending.len() == before {
                self.known.insert(id, self.is_kept(id, record));
                pending.pop();
            }
        }
    }

    /// Of a record about whose parents all is decided.
    fn is_kept(&self, id: &str, record: &Record) -> bool {
        let has_snapshot = |key: &str| {
            let containerd = self.worker.containerd.as_ref();
            containerd.is_none_or(|containerd| containerd.snapshots.contains_key(key))
        };
        if !record.parents().all(|parent| self.is_known(parent)) {
            return false;
        }
        if let Some(mutable) = &record.equal_mutable {
            if self.is_known(mutable) {
                return true;
            }
            if !has_snapshot(&record.snapshot) {
                return false;
            }
        }
        !record.deleted && (!record.is_mutable() || has_snapshot(id))
    }
}

/// Bytes of a record's snapshot and blobs: as a daemon counted them, or as it would.
fn size(
    record: &Record,
    kept: &BTreeMap<&str, &Record>,
    worker: &Worker,
    measure: impl Fn(u64) -> Option<u64>,
) -> Option<u64> {
    if let Some(counted) = record.size.and_then(|size| u64::try_from(size).ok()) {
        return Some(counted);
    }
    let containerd = worker.containerd.as_ref()?;
    let mutable = record.equal_mutable.as_deref().and_then(|id| kept.get(id));
    let key = mutable.map_or(&record.snapshot, |mutable| &mutable.snapshot);
    let snapshot = match containerd.snapshots.get(key) {
        Some(snapshot) if !record.blob_only => match snapshot.labels.get(OF_MERGE) {
            Some(size) => size.parse().ok()?,
            None => {
                let stored = worker.store.as_ref()?.snapshots.get(snapshot.name.as_deref()?)?;
                match stored.size {
                    Some(size) => u64::try_from(size).ok()?,
                    None => measure(stored.id)?,
                }
            }
        },
        _ => 0,
    };
    Some(snapshot.saturating_add(record.blob.map(|blob| blobs(blob, containerd)).unwrap_or_default()))
}

/// Bytes of a blob, and of the same layer in other compressions, which its labels name.
fn blobs(blob: Digest, containerd: &Containerd) -> u64 {
    let mut counted = BTreeSet::new();
    let mut pending = vec![blob];
    let mut bytes = 0_u64;
    while let Some(digest) = pending.pop() {
        let Some(found) = containerd.blobs.get(&digest).filter(|_| counted.insert(digest)) else { continue };
        let size = found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        bytes = size.saturating_add(bytes);
        let variants = found.labels.iter().filter(|(label, _)| label.starts_with(VARIANT));
        pending.extend(variants.filter_map(|(_, to)| to.parse::<Digest>().ok()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::{Blob, Kind, Snapshot, Snapshotter, Stored};

    /// A worker with these records; each has a snapshot of its own name and of 100 bytes.
    fn worker(records: &[(&str, Record)]) -> Worker {
        let mut worker = Worker::default();
        let (mut all, mut containerd, mut store) =
            (Records::default(), Containerd::default(), Snapshotter::default());
        for (at, (id, record)) in records.iter().enumerate() {
            let snapshot =
                if record.snapshot.is_empty() { (*id).to_owned() } else { record.snapshot.clone() };
            let name = Some(snapshot.clone());
            containerd.snapshots.insert(snapshot.clone(), Snapshot { name, ..Snapshot::default() });
            let size = record.committed.then_some(100);
            let kind = if record.committed { Kind::Committed } else { Kind::Active };
            let stored = Stored { id: at as u64, kind, parent: None, inodes: size, size };
            store.snapshots.insert(snapshot.clone(), stored);
            all.all.insert((*id).to_owned(), Record { snapshot, ..record.clone() });
        }
        worker.records = Some(all);
        worker.containerd = Some(containerd);
        worker.store = Some(store);
        worker
    }

    fn committed() -> Record {
        Record { committed: true, created_at: Some(1), ..Record::default() }
    }

    fn on(parent: &str) -> Record {
        Record { parent: Some(parent.to_owned()), ..committed() }
    }

    fn mutable() -> Record {
        Record { created_at: Some(1), ..Record::default() }
    }

    fn data_of(mutable: &str) -> Record {
        Record { equal_mutable: Some(mutable.to_owned()), ..committed() }
    }

    fn ids(worker: &Worker) -> Vec<String> {
        usage(worker, |_| None).into_iter().map(|usage| usage.id).collect()
    }

    #[test]
    fn records_that_a_daemon_knows_after_its_start() {
        let deleted = || Record { deleted: true, ..committed() };
        let merge = |of: &[&str]| Record {
            merge_parents: of.iter().map(|&id| id.to_owned()).collect(),
            ..Record::default()
        };
        type Case = (&'static str, Vec<(&'static str, Record)>, &'static [&'static str]);
        let cases: [Case; 8] = [
            ("a chain", vec![("a", on("b")), ("b", on("c")), ("c", committed())], &["a", "b", "c"]),
            ("without its end", vec![("a", on("b")), ("b", on("c")), ("d", committed())], &["d"]),
            ("a circle", vec![("a", on("b")), ("b", on("a")), ("c", on("b")), ("d", committed())], &["d"]),
            ("on one that is deleted", vec![("a", on("b")), ("b", deleted())], &[]),
            (
                "a merge",
                vec![("a", committed()), ("b", committed()), ("m", merge(&["a", "b"]))],
                &["a", "b", "m"],
            ),
            ("a merge of what is gone", vec![("a", committed()), ("m", merge(&["a", "b"]))], &["a"]),
            ("two that share their data", vec![("i", data_of("m")), ("m", mutable())], &["m"]),
            (
                "the same, and one on top",
                vec![("i", data_of("m")), ("m", mutable()), ("t", on("i"))],
                &["i", "t"],
            ),
        ];
        for (name, records, expected) in cases {
            assert_eq!(ids(&worker(&records)), expected, "{name}");
        }
        let mut gone = worker(&[("m", mutable()), ("i", data_of("absent"))]);
        assert_eq!(ids(&gone), ["i", "m"]);
        gone.containerd.as_mut().unwrap().snapshots.clear();
        assert_eq!(ids(&gone), [] as [&str; 0]);
        assert_eq!(usage(&Worker::default(), |_| None), []);
        let twins = usage(&worker(&[("i", data_of("m")), ("m", mutable()), ("o", committed())]), |_| None);
        assert_eq!(twins.iter().map(|usage| usage.twin.as_deref()).collect::<Vec<_>>(), [Some("i"), None]);
    }

    #[test]
    fn sizes_as_a_daemon_counts_them() {
        let (blob, other) = (Digest::of(b"blob"), Digest::of(b"other"));
        let with_blob = |size| Record { blob: Some(blob), size, ..committed() };
        let cases = [
            ("counted", with_blob(Some(7)), Some(7)),
            ("not counted", with_blob(Some(-1)), Some(100 + 10 + 5)),
            ("lazy", Record { blob_only: true, ..with_blob(None) }, Some(10 + 5)),
            ("without blob", committed(), Some(100)),
            ("written to", mutable(), Some(40)),
        ];
        for (name, record, expected) in cases {
            let mut worker = worker(&[("r", record)]);
            let blobs = &mut worker.containerd.as_mut().unwrap().blobs;
            // Each names the other.
            for (digest, to, size) in [(blob, other, 10), (other, blob, 5)] {
                let labels = [(format!("{VARIANT}{to}"), to.to_string())].into();
                blobs.insert(digest, Blob { size: Some(size), labels });
            }
            assert_eq!(usage(&worker, |_| Some(40))[0].size, expected, "{name}");
        }
        let mut merge = worker(&[("r", committed())]);
        let snapshot = merge.containerd.as_mut().unwrap().snapshots.get_mut("r").unwrap();
        snapshot.labels.insert(OF_MERGE.to_owned(), "3".to_owned());
        assert_eq!(usage(&merge, |_| None)[0].size, Some(3));
    }

    #[test]
    fn times_as_a_daemon_reads_them() {
        let used = |usage_count, last_used_at| Record { usage_count, last_used_at, ..committed() };
        for (record, expected) in [
            (used(Some(2), Some(5)), (2, Some(5))),
            (used(Some(2), Some(0)), (2, None)),
            (used(None, Some(5)), (0, None)),
            (used(Some(-1), None), (0, None)),
        ] {
            let found = usage(&worker(&[("r", record)]), |_| None).remove(0);
            assert_eq!((found.usage_count, found.last_used_at), expected);
        }
    }
}
