//! The stores against each other: what one says, the others must bear out.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{FindingKind, Findings, Subject};
use crate::digest::{BlobChainId, ChainId, DiffId, Digest};
use crate::oci::Compression;
use crate::root::decode;
use crate::root::{Containerd, Kind, Lease, Record, Records, Snapshotter, Solver, Stored};

/// Prefix of the keys of snapshots that hold an extracted layer; the chain ID's hexadecimal digits follow.
/// From v0.33.1 on, `snapshot/layer.go`; before, the chain ID itself was the key.
const LAYER_KEY: &str = "buildkit-layer-snapshot-v1-sha256-";
const LABEL_DIFF_ID: &str = "buildkit.io/blob/annotation.containerd.io/uncompressed";
const LABEL_MEDIA_TYPE: &str = "buildkit.io/blob/mediatype";

/// How a snapshot came to be filled, as its key tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the layer's blob.
    Layer,
    /// By a build step; a blob may have been made from it.
    Build,
}

/// How the snapshot that `record` uses was filled; `None` where its key fits neither way.
pub(super) fn origin(record: &Record) -> Option<Origin> {
    let key = record.snapshot.as_str();
    if decode::is_identity(key) {
        return Some(Origin::Build);
    }
    let chain_id = record.chain_id?;
    let expected = key.strip_prefix(LAYER_KEY).map_or_else(
        || key.strip_prefix("sha256:").is_some_and(|hex| hex == chain_id.hex()),
        |hex| hex == chain_id.hex(),
    );
    expected.then_some(Origin::Layer)
}

/// The records among themselves; needs nothing but `metadata_v2.db`.
pub(super) fn records(records: &Records, findings: &mut Findings) {
    for (id, record) in &records.all {
        if record.deleted {
            let detail = "a daemon removes it at its start";
            findings.add(FindingKind::RecordDeleted, Subject::record(id), detail);
            continue;
        }
        for parent in record.parents() {
            if !records.all.contains_key(parent) {
                let detail = format!("there is no record {parent}");
                findings.add(FindingKind::RecordParentMissing, Subject::record(id), detail);
            }
        }
        if record.is_unfinished() {
            let detail = "no cache.createdAt yet";
            findings.add(FindingKind::RecordUnfinished, Subject::record(id), detail);
        }
        let mut missing = |what: &str| {
            let detail = format!("no {what}");
            findings.add(FindingKind::RecordValueMissing, Subject::record(id), detail);
        };
        if record.created_at.is_none() && !record.is_unfinished() {
            missing("cache.createdAt");
        }
        if record.blob.is_some() {
            for (what, there) in [
                ("cache.diffID", record.diff_id.is_some()),
                ("cache.blobsize", record.blob_size.is_some()),
                ("cache.mediatype", record.media_type.is_some()),
            ] {
                if !there {
                    missing(what);
                }
            }
        }
        layer(id, record, records, findings);
    }
    let parents = |id: &str| records.all.get(id).into_iter().flat_map(Record::parents).collect();
    for id in on_cycles(records.all.keys().map(String::as_str), parents) {
        findings.add(FindingKind::RecordParentCycle, Subject::record(id), "it is its own ancestor");
    }
}

/// Chain IDs, layer identity and snapshot key of a record with a blob.
fn layer(id: &str, record: &Record, records: &Records, findings: &mut Findings) {
    let (Some(blob), Some(diff_id)) = (record.blob, record.diff_id) else { return };
    let mut differs = |kind, what: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
        findings.add(kind, Subject::record(id), format!("{what} {found}, expected {expected}"));
    };
    if let Some(identity) = record.layer_identity
        && identity != diff_id
    {
        differs(FindingKind::RecordLayerIdentity, "cache.layerIdentity", &identity, &diff_id);
    }
    // A merge's chain is made of its parents' layers, and its blobs are theirs.
    if !record.is_composed() {
        // A missing parent is a finding of its own.
        let parent = match &record.parent {
            None => Some(None),
            Some(parent) => records.all.get(parent).map(Some),
        };
        if let Some(parent) = parent {
            if let Some(found) = record.chain_id {
                let expected = ChainId::of_layer(parent.and_then(|parent| parent.chain_id), diff_id);
                if found != expected
                    && Some(found) != on_nothing_known(parent.is_some(), diff_id, ChainId::of)
                {
                    differs(FindingKind::RecordChainId, "cache.chainID", &found, &expected);
                }
            }
            if let Some(found) = record.blob_chain_id {
                let below = parent.and_then(|parent| parent.blob_chain_id);
                let expected = BlobChainId::of_layer(below, blob, diff_id);
                let own = BlobChainId::of_layer(None, blob, diff_id);
                if found != expected
                    && Some(found) != on_nothing_known(parent.is_some(), own, BlobChainId::of)
                {
                    differs(FindingKind::RecordBlobChainId, "cache.blobChainID", &found, &expected);
                }
            }
        }
    }
    if origin(record).is_none() {
        let chain_id = record.chain_id.map_or_else(|| "without chain ID".to_owned(), |id| id.to_string());
        let expected = format!("one for chain ID {chain_id}");
        differs(FindingKind::RecordSnapshotKey, "cache.snapshot", &record.snapshot, &expected);
    }
}

/// The chain that a daemon computes for a layer whose parent's chain it does not look at (the upper side
/// of a diff): the parent's is the empty text.
fn on_nothing_known<T>(has_parent: bool, top: impl std::fmt::Display, of: impl Fn(&[u8]) -> T) -> Option<T> {
    has_parent.then(|| of(format!(" {top}").as_bytes()))
}

/// All of `ids` that lie on a circle of `parents` — or rather one of each circle and of each entry to it.
fn on_cycles<'a>(
    ids: impl Iterator<Item = &'a str>,
    parents: impl Fn(&'a str) -> Vec<&'a str>,
) -> BTreeSet<&'a str> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut on_path: BTreeSet<&str> = BTreeSet::new();
    let mut found = BTreeSet::new();
    for start in ids {
        if !done.insert(start) {
            continue;
        }
        on_path.insert(start);
        let mut stack = vec![(start, parents(start).into_iter())];
        while let Some((id, rest)) = stack.last_mut() {
            match rest.next() {
                Some(parent) if on_path.contains(parent) => {
                    found.insert(parent);
                }
                Some(parent) if done.insert(parent) => {
                    on_path.insert(parent);
                    stack.push((parent, parents(parent).into_iter()));
                }
                Some(_) => {}
                None => {
                    on_path.remove(id);
                    stack.pop();
                }
            }
        }
    }
    found
}

/// Whether a record's own snapshot has to exist. What a daemon checks itself at its start is not asked here.
fn needs_snapshot(record: &Record) -> bool {
    record.equal_mutable.is_none() && !(record.is_composed() || record.blob_only)
}

/// Records against containerd's metadata and the snapshotter's own database.
pub(super) fn data(
    records: &Records,
    containerd: &Containerd,
    store: Option<&Snapshotter>,
    findings: &mut Findings,
) {
    let by_chain = snapshots_by_chain(records);
    for (id, record) in records.all.iter().filter(|(_, record)| !record.deleted) {
        let snapshot = containerd.snapshots.get(&record.snapshot);
        if let Some(mutable) = &record.equal_mutable
            && !records.all.contains_key(mutable)
            && snapshot.is_none()
        {
            let detail = format!("its data is that of record {mutable}, which does not exist");
            findings.add(FindingKind::RecordMutableMissing, Subject::record(id), detail);
        }
        if snapshot.is_none() && record.is_mutable() && record.equal_mutable.is_none() {
            let detail = format!("there is no snapshot {}", record.snapshot);
            findings.add(FindingKind::RecordUnfinished, Subject::record(id), detail);
            continue;
        }
        if snapshot.is_none() && needs_snapshot(record) {
            let detail = format!("there is no snapshot {}", record.snapshot);
            findings.add(FindingKind::SnapshotMissing, Subject::record(id), detail);
        }
        if let Some(blob) = record.blob {
            record_blob(id, record, blob, containerd, findings);
        }
        leases(id, record, containerd, findings);
        if let Some(snapshot) = snapshot
            && record.equal_mutable.is_none()
        {
            if let Some(expected) = expected_parents(record, records, &by_chain) {
                let found = snapshot.parent.as_deref();
                if !expected.contains(&found) {
                    let name = |key: Option<&str>| key.unwrap_or("none").to_owned();
                    let expected: Vec<_> = expected.into_iter().map(name).collect();
                    let detail = format!("parent {}, expected {}", name(found), expected.join(" or "));
                    findings.add(FindingKind::SnapshotParent, Subject::snapshot(&record.snapshot), detail);
                }
            }
            let stored = snapshot.name.as_ref().and_then(|name| store?.snapshots.get(name));
            let wanted = if record.is_mutable() { Kind::Active } else { Kind::Committed };
            if let Some(stored) = stored
                && stored.kind != wanted
            {
                let detail = format!("{}, but record {id} needs it {}", stored.kind.name(), wanted.name());
                findings.add(FindingKind::SnapshotKind, Subject::snapshot(&record.snapshot), detail);
            }
        }
    }
}

/// The keys of all snapshots of records with a chain ID.
fn snapshots_by_chain(records: &Records) -> BTreeMap<ChainId, BTreeSet<&str>> {
    let mut by_chain: BTreeMap<ChainId, BTreeSet<&str>> = BTreeMap::new();
    for record in records.all.values() {
        if let Some(chain_id) = record.chain_id {
            by_chain.entry(chain_id).or_default().insert(&record.snapshot);
        }
    }
    by_chain
}

/// The snapshots that may be the parent of `record`'s: its parent's, and those of records with the same
/// chain ID, since such records share what was there first. `None` where nothing can be said.
fn expected_parents<'a>(
    record: &'a Record,
    records: &'a Records,
    by_chain: &BTreeMap<ChainId, BTreeSet<&'a str>>,
) -> Option<BTreeSet<Option<&'a str>>> {
    if record.is_composed() || record.is_unfinished() {
        return None;
    }
    let Some(parent) = &record.parent else { return Some(BTreeSet::from([None])) };
    let parent = records.all.get(parent)?;
    let own = parent.equal_mutable.as_deref().and_then(|id| records.all.get(id)).unwrap_or(parent);
    let mut expected = BTreeSet::from([Some(parent.snapshot.as_str()), Some(own.snapshot.as_str())]);
    if let Some(chain_id) = parent.chain_id {
        expected.extend(by_chain.get(&chain_id).into_iter().flatten().map(|key| Some(*key)));
    }
    // A snapshot that a build filled and that a record of an image shares stands on what that build had,
    // whose record may be gone.
    let shared = decode::is_identity(&record.snapshot) && !records.all.contains_key(&record.snapshot);
    (!shared).then_some(expected)
}

fn record_blob(id: &str, record: &Record, digest: Digest, containerd: &Containerd, findings: &mut Findings) {
    let Some(blob) = containerd.blobs.get(&digest) else {
        let (kind, detail) = if record.blob_only {
            (FindingKind::RecordLazy, format!("neither blob {digest} nor its snapshot is here"))
        } else {
            (FindingKind::BlobMissing, format!("there is no blob {digest}"))
        };
        findings.add(kind, Subject::record(id), detail);
        return;
    };
    if let (Some(found), Some(expected)) = (record.blob_size, blob.size)
        && found != expected
    {
        let detail = format!("cache.blobsize {found}, but blob {digest} has {expected} bytes");
        findings.add(FindingKind::RecordBlobSize, Subject::record(id), detail);
    }
    let diff_id = record.diff_id.map(|diff_id| diff_id.to_string());
    for (label, expected) in [(LABEL_DIFF_ID, &diff_id), (LABEL_MEDIA_TYPE, &record.media_type)] {
        let Some(expected) = expected else { continue };
        let is_same = |found: &String| {
            // Two records may have the same bytes by media types of Docker and of OCI; the label is of one of them.
            let compression = |media_type: &str| Compression::of_layer(media_type);
            found == expected
                || label == LABEL_MEDIA_TYPE
                    && compression(found).is_some()
                    && compression(found) == compression(expected)
        };
        let (kind, found) = match blob.labels.get(label) {
            Some(found) if is_same(found) => continue,
            Some(found) => (FindingKind::BlobLabel, found.as_str()),
            // So daemons themselves leave blobs of rarer media types.
            None => (FindingKind::BlobLabelMissing, "missing"),
        };
        let detail = format!("label {label}: {found}, expected {expected} by record {id}");
        findings.add(kind, Subject::blob(&digest), detail);
    }
}

fn leases(id: &str, record: &Record, containerd: &Containerd, findings: &mut Findings) {
    // Data of such a record is held by the mutable record's lease.
    if record.equal_mutable.is_some() {
        return;
    }
    let holds_data = |lease: &Lease| {
        lease.snapshots.contains(&record.snapshot)
            || record.blob.is_some_and(|blob| lease.content.contains(&blob.to_string()))
    };
    let Some(lease) = containerd.leases.get(id) else {
        let elsewhere = containerd.leases.iter().find(|(_, lease)| holds_data(lease));
        let detail = match elsewhere {
            Some((other, _)) => format!("only lease {other} holds its data"),
            None => "no lease has its id".to_owned(),
        };
        findings.add(FindingKind::LeaseMissing, Subject::record(id), detail);
        return;
    };
    if containerd.snapshots.contains_key(&record.snapshot) && !lease.snapshots.contains(&record.snapshot) {
        let detail = format!("its lease does not hold snapshot {}", record.snapshot);
        findings.add(FindingKind::SnapshotNotLeased, Subject::record(id), detail);
    }
    if let Some(blob) = record.blob
        && containerd.blobs.contains_key(&blob)
        && !lease.content.contains(&blob.to_string())
    {
        let detail = format!("its lease does not hold blob {blob}");
        findings.add(FindingKind::BlobNotLeased, Subject::record(id), detail);
    }
}

/// Containerd's snapshots among themselves.
pub(super) fn ancestry(containerd: &Containerd, findings: &mut Findings) {
    for (key, snapshot) in &containerd.snapshots {
        if let Some(parent) = &snapshot.parent {
            match containerd.snapshots.get(parent) {
                None => {
                    let detail = format!("there is no snapshot {parent}");
                    findings.add(FindingKind::SnapshotParentMissing, Subject::snapshot(key), detail);
                }
                Some(parent_snapshot) if !parent_snapshot.children.contains(key) => {
                    let detail = format!("not among the children of its parent {parent}");
                    findings.add(FindingKind::SnapshotChildMissing, Subject::snapshot(key), detail);
                }
                Some(_) => {}
            }
        }
        for child in &snapshot.children {
            match containerd.snapshots.get(child) {
                Some(found) if found.parent.as_deref() == Some(key) => {}
                found => {
                    let why = if found.is_some() { "has another parent" } else { "does not exist" };
                    let detail = format!("its child {child} {why}");
                    findings.add(FindingKind::SnapshotChildGone, Subject::snapshot(key), detail);
                }
            }
        }
    }
    let parents = |key: &str| {
        let parent = containerd.snapshots.get(key).and_then(|snapshot| snapshot.parent.as_deref());
        parent.into_iter().collect()
    };
    for key in on_cycles(containerd.snapshots.keys().map(String::as_str), parents) {
        findings.add(FindingKind::SnapshotParentCycle, Subject::snapshot(key), "it is its own ancestor");
    }
}

/// The names of containerd's snapshots, against the snapshotter's own database.
pub(super) fn names(
    containerd: &Containerd,
    store: Option<&Snapshotter>,
    records: Option<&Records>,
    findings: &mut Findings,
) {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, snapshot) in &containerd.snapshots {
        let Some(name) = &snapshot.name else { continue };
        if let Some(other) = names.insert(name, key) {
            let detail = format!("its name {name} is also that of snapshot {other}");
            findings.add(FindingKind::SnapshotNameShared, Subject::snapshot(key), detail);
        }
        let number = name.strip_prefix("buildkit/").and_then(|rest| rest.split_once('/'));
        match number.and_then(|(number, _)| number.parse::<u64>().ok()) {
            Some(number) if number > containerd.sequence => {
                let sequence = containerd.sequence;
                let detail = format!("name {name}, but the sequence stands at {sequence}");
                findings.add(FindingKind::SequenceTooLow, Subject::snapshot(key), detail);
            }
            Some(_) => {}
            None => {
                let detail = format!("name {name:?}, expected buildkit/<number>/<key>");
                findings.add(FindingKind::EntryInvalid, Subject::snapshot(key), detail);
            }
        }
        if let Some(store) = store {
            if let Some(stored) = store.snapshots.get(name) {
                stored_parent(key, stored, snapshot.parent.as_deref(), containerd, findings);
            } else {
                let in_use = |records| is_in_use(records, key);
                let is_committed = |records| is_committed(records, key);
                // A daemon that was stopped in the middle of a commit drops the record of it at its next start, and the
                // snapshot only with the next collection: until then it may be stopped once more.
                let unfinished = if was_being_committed(key, name, containerd, store) {
                    !records.is_some_and(is_committed)
                } else {
                    records.is_some_and(|records| !in_use(records)) && !is_parent(key, containerd)
                };
                let kind = if unfinished {
                    FindingKind::SnapshotUnfinished
                } else {
                    FindingKind::SnapshotNameMissing
                };
                let detail = format!("the snapshotter's database has no {name}");
                findings.add(kind, Subject::snapshot(key), detail);
            }
        }
    }
    for name in store.into_iter().flat_map(|store| store.snapshots.keys()) {
        if !names.contains_key(name.as_str()) {
            let detail = "containerd's metadata does not know it";
            findings.add(FindingKind::SnapshotUnknown, Subject::snapshot(name), detail);
        }
    }
}

/// Whether a record that is whole has its data in the snapshot `key`.
fn is_committed(records: &Records, key: &str) -> bool {
    let owns = |record: &Record| record.committed && record.equal_mutable.is_none() && record.snapshot == key;
    records.all.values().any(owns)
}

/// Whether any record, other than those that are being deleted, has its data in the snapshot `key`.
fn is_in_use(records: &Records, key: &str) -> bool {
    records.all.values().any(|record| !record.deleted && record.snapshot == key)
}

/// Whether a snapshot stands on the snapshot `key`.
fn is_parent(key: &str, containerd: &Containerd) -> bool {
    containerd.snapshots.values().any(|snapshot| snapshot.parent.as_deref() == Some(key))
}

/// Whether a daemon may have been stopped in the middle of committing the snapshot `key`: containerd
/// (`core/metadata/snapshot.go`, `Commit`) has the snapshotter give it its new name, under the next number
/// of the sequence, before its own transaction with that number ends.
fn was_being_committed(key: &str, name: &str, containerd: &Containerd, store: &Snapshotter) -> bool {
    let parent = containerd.snapshots.get(key).and_then(|snapshot| snapshot.parent.as_deref());
    let parent = parent.and_then(|parent| containerd.snapshots.get(parent)?.name.as_deref());
    let is_next = |name: &str| {
        let number = name.strip_prefix("buildkit/").and_then(|rest| rest.split_once('/'));
        number.is_some_and(|(number, _)| number.parse() == Ok(containerd.sequence + 1))
    };
    store.snapshots.iter().any(|(new, stored)| {
        new != name && is_next(new) && stored.kind == Kind::Committed && stored.parent.as_deref() == parent
    })
}

fn stored_parent(
    key: &str,
    stored: &Stored,
    parent: Option<&str>,
    containerd: &Containerd,
    findings: &mut Findings,
) {
    let expected = match parent {
        None => None,
        Some(parent) => match containerd.snapshots.get(parent).and_then(|parent| parent.name.as_deref()) {
            Some(name) => Some(name),
            // A finding of its own.
            None => return,
        },
    };
    if stored.parent.as_deref() != expected {
        let found = stored.parent.as_deref().unwrap_or("none");
        let detail =
            format!("parent {found} in the snapshotter's database, expected {}", expected.unwrap_or("none"));
        findings.add(FindingKind::SnapshotStoreParent, Subject::snapshot(key), detail);
    }
}

/// Results against the workers and their records.
pub(super) fn results(solver: &Solver, workers: &BTreeMap<&str, Option<&Records>>, findings: &mut Findings) {
    let of = solver.results.iter().flat_map(|(key, results)| results.iter().map(move |r| (key, &r.of)));
    for (key, worker, record) in of.filter_map(|(key, of)| Some((key, &of.as_ref()?.0, &of.as_ref()?.1))) {
        let subject = Subject::key(key);
        match workers.get(worker.as_str()) {
            None => {
                let known: Vec<_> = workers.keys().copied().collect();
                let detail = format!("result of worker {worker}, the root has {}", known.join(", "));
                findings.add(FindingKind::ResultWorker, subject, detail);
            }
            Some(Some(records)) if !records.all.contains_key(record) => {
                let detail = format!("there is no record {record}");
                // Only what comes from a client has such a key. The next build changes the record in
                // place, and the result goes with the next collection.
                let is_local = key.starts_with("random:");
                let kind = if is_local { FindingKind::ResultStale } else { FindingKind::ResultRecordMissing };
                findings.add(kind, subject, detail);
            }
            Some(_) => {}
        }
    }
}

/// By blob and snapshot key: the diff ID and media type.
pub(super) type Layers = BTreeMap<(Digest, String), (DiffId, String)>;

/// The layers whose blob and snapshot should hold the same: each blob with its snapshot once.
pub(super) fn comparable(records: &Records) -> (Layers, usize) {
    let mut layers = BTreeMap::new();
    let mut others = 0;
    for record in records.all.values().filter(|record| !record.deleted) {
        let (Some(blob), Some(diff_id), Some(media_type)) = (record.blob, record.diff_id, &record.media_type)
        else {
            continue;
        };
        if record.blob_only || origin(record) != Some(Origin::Layer) {
            others += 1;
            continue;
        }
        layers.insert((blob, record.snapshot.clone()), (diff_id, media_type.clone()));
    }
    (layers, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_trees_are_not() {
        type Graph = &'static [(&'static str, &'static [&'static str])];
        let cases: [(Graph, usize); 4] = [
            (&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])], 0),
            (&[("a", &["a"])], 1),
            (&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])], 1),
            (&[("a", &["gone"])], 0),
        ];
        for (graph, expected) in cases {
            let graph: BTreeMap<&str, &[&str]> = graph.iter().copied().collect();
            let parents = |id: &str| graph.get(id).map(|p| p.to_vec()).unwrap_or_default();
            assert_eq!(on_cycles(graph.keys().copied(), parents).len(), expected, "{graph:?}");
        }
    }

    #[test]
    fn keys_tell_how_a_snapshot_was_filled() {
        let chain_id = ChainId::of(b"chain");
        let record = |key: String| Record { chain_id: Some(chain_id), snapshot: key, ..Record::default() };
        let other = ChainId::of(b"other");
        let cases = [
            ("a".repeat(25), Some(Origin::Build)),
            (chain_id.to_string(), Some(Origin::Layer)),
            (format!("{LAYER_KEY}{}", chain_id.hex()), Some(Origin::Layer)),
            (other.to_string(), None),
            (format!("{LAYER_KEY}{}", other.hex()), None),
            (String::new(), None),
        ];
        for (key, expected) in cases {
            assert_eq!(origin(&record(key.clone())), expected, "{key}");
        }
    }
}
