//! `snapshots/metadata.db`: the snapshotter's own database.
//!
//! ```text
//! v1/snapshots/<name>/{id,kind,parent,createdat,updatedat,size,inodes}    sequence: the highest id
//! v1/parents/<uvarint parent id> 00 <uvarint child id> = <name of the child>
//! ```
//!
//! Mirrors `core/snapshots/storage/bolt.go` of containerd. Size and inodes stand at committed snapshots
//! only, the parent nowhere where there is none.

use std::collections::BTreeMap;
use std::path::Path;

use super::database::{self, Place};
use super::decode;
use super::report::{FindingKind, Findings};
use crate::bolt::{BucketRef, Database};

/// What may be done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    View,
    Active,
    Committed,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::View => "a view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

#[derive(Debug)]
pub(super) struct Stored {
    /// Number of the directory.
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// Name of the parent.
    pub(super) parent: Option<String>,
    pub(super) inodes: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Snapshotter {
    pub(super) snapshots: BTreeMap<String, Stored>,
}

/// Decodes the database and checks what it says of itself.
pub(super) fn read(db: &Database, path: &Path, findings: &mut Findings) -> Snapshotter {
    let place = Place::new(path);
    let mut store = Snapshotter::default();
    let root = db.root();
    // A daemon that never had a snapshot has an empty file.
    if root.iter().next().is_none() {
        return store;
    }
    let Some(schema) = database::needed(root, "v1", &place, findings) else { return store };
    let place = place.child(b"v1");
    let Some(snapshots) = database::needed(schema, "snapshots", &place, findings) else { return store };
    let snapshots_place = place.child(b"snapshots");
    for (name, bucket) in database::buckets(snapshots, &snapshots_place, findings) {
        let place = snapshots_place.child(name);
        let Some(name) = database::utf8(name, &place, findings) else { continue };
        if let Some(stored) = snapshot(bucket, &place, findings) {
            store.snapshots.insert(name.to_owned(), stored);
        }
    }
    ids(&store, snapshots.sequence(), &snapshots_place, findings);
    parents(&store, schema, &place, findings);
    store
}

fn snapshot(bucket: BucketRef<'_>, place: &Place, findings: &mut Findings) -> Option<Stored> {
    for key in ["createdat", "updatedat"] {
        let time = |bytes: &[u8]| decode::is_time(bytes).then_some(());
        database::decoded(bucket, key, "a time", time, place, findings);
    }
    let id = database::decoded(bucket, "id", "a snapshot id", decode::uvarint, place, findings);
    let kind = |bytes: &[u8]| match bytes {
        [1] => Some(Kind::View),
        [2] => Some(Kind::Active),
        [3] => Some(Kind::Committed),
        _ => None,
    };
    let kind = database::decoded(bucket, "kind", "1, 2 or 3", kind, place, findings);
    let parent = match database::value(bucket, "parent", place, findings) {
        None | Some([]) => None,
        Some(parent) => Some(database::utf8(parent, &place.child(b"parent"), findings)?.to_owned()),
    };
    let (id, kind) = (id?, kind?);
    let mut inodes = None;
    if kind == Kind::Committed {
        let number = |bytes: &[u8]| decode::varint(bytes).filter(|&n| n >= 0);
        inodes = database::decoded(bucket, "inodes", "a number", number, place, findings);
        database::decoded(bucket, "size", "a size", number, place, findings);
    }
    Some(Stored { id, kind, parent, inodes })
}

fn ids(store: &Snapshotter, sequence: u64, place: &Place, findings: &mut Findings) {
    let mut seen = BTreeMap::new();
    for (name, stored) in &store.snapshots {
        if let Some(other) = seen.insert(stored.id, name) {
            let detail = format!("directory {} is also that of {other}", stored.id);
            findings.add(FindingKind::SnapshotIdShared, place.child(name.as_bytes()).subject(), detail);
        }
    }
    if let Some((&highest, _)) = seen.last_key_value()
        && highest > sequence
    {
        let detail = format!("sequence {sequence}, but snapshot id {highest} was given out");
        findings.add(FindingKind::SequenceTooLow, place.subject(), detail);
    }
}

fn parents(store: &Snapshotter, schema: BucketRef<'_>, place: &Place, findings: &mut Findings) {
    let mut expected: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    for (name, stored) in &store.snapshots {
        let Some(parent) = &stored.parent else { continue };
        if let Some(parent) = store.snapshots.get(parent) {
            expected.insert((parent.id, stored.id), name);
        } else {
            let place = place.child(b"snapshots").child(name.as_bytes()).child(b"parent");
            let detail = format!("there is no snapshot {parent}");
            findings.add(FindingKind::SnapshotParentMissing, place.subject(), detail);
        }
    }
    let index = database::bucket(schema, "parents", place, findings);
    let place = place.child(b"parents");
    if let Some(index) = index {
        for (key, name) in database::values(index, &place, findings) {
            let Some(ids) = decode::parents_key(key) else {
                let detail = "not uvarint, 0x00, uvarint";
                findings.add(FindingKind::EntryInvalid, place.child(key).subject(), detail);
                continue;
            };
            let (parent, child) = ids;
            match expected.remove(&ids) {
                Some(expected) if expected.as_bytes() == name => {}
                Some(expected) => {
                    let detail = format!(
                        "parent {parent}, child {child}: {}, expected {expected}",
                        database::shown(name)
                    );
                    findings.add(FindingKind::SnapshotParentsIndex, place.child(key).subject(), detail);
                }
                None => {
                    let detail = format!("parent {parent}, child {child}: no snapshot says so");
                    findings.add(FindingKind::SnapshotParentsIndex, place.child(key).subject(), detail);
                }
            }
        }
    }
    for ((parent, child), name) in expected {
        let detail = format!("no entry for parent {parent}, child {child} ({name})");
        findings.add(FindingKind::SnapshotParentsIndex, place.subject(), detail);
    }
}
