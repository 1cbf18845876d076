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

use super::database::{self, Entry};
use super::decode;
use super::fault::{FaultKind, Faults};
use crate::bolt::{BucketRef, Database};

/// What may be done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is read only, and goes when whoever made it is done.
    View,
    /// It is written to.
    Active,
    /// It no longer changes.
    Committed,
}

impl Kind {
    /// What it is called in messages: `a view`, `active`, `committed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "a view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// A snapshot as the snapshotter has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stored {
    /// Number of the directory.
    pub id: u64,
    /// What may be done with it.
    pub kind: Kind,
    /// Name of the parent.
    pub parent: Option<String>,
    /// Inodes of its directory, of a committed one.
    pub inodes: Option<i64>,
    /// Bytes of its directory, of a committed one.
    pub size: Option<i64>,
}

/// An entry of the snapshotter's index of parents and children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentEntry {
    /// Its key, as it is.
    pub key: Vec<u8>,
    /// Directory number of the parent.
    pub parent: u64,
    /// Directory number of the child.
    pub child: u64,
    /// Name of the child, as it is.
    pub name: Vec<u8>,
}

/// All of `snapshots/metadata.db`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Snapshotter {
    /// The snapshots, by name.
    pub snapshots: BTreeMap<String, Stored>,
    /// The highest directory number that was given out.
    pub sequence: u64,
    /// The index of parents and children.
    pub parents: Vec<ParentEntry>,
}

/// Decodes the database.
pub(crate) fn read(db: &Database, path: &Path, faults: &mut Faults) -> Snapshotter {
    let at = Entry::new(path);
    let mut store = Snapshotter::default();
    let root = db.root();
    // A daemon that never had a snapshot has an empty file.
    if root.iter().next().is_none() {
        return store;
    }
    let Some(schema) = database::needed(root, "v1", &at, faults) else { return store };
    let at = at.child(b"v1");
    let Some(snapshots) = database::needed(schema, "snapshots", &at, faults) else { return store };
    store.sequence = snapshots.sequence();
    let of_snapshots = at.child(b"snapshots");
    for (name, bucket) in database::buckets(snapshots, &of_snapshots, faults) {
        let at = of_snapshots.child(name);
        let Some(name) = database::utf8(name, &at, faults) else { continue };
        if let Some(stored) = snapshot(bucket, &at, faults) {
            store.snapshots.insert(name.to_owned(), stored);
        }
    }
    if let Some(parents) = database::bucket(schema, "parents", &at, faults) {
        let at = at.child(b"parents");
        for (key, name) in database::values(parents, &at, faults) {
            if let Some((parent, child)) = decode::parents_key(key) {
                store.parents.push(ParentEntry { key: key.to_vec(), parent, child, name: name.to_vec() });
            } else {
                let place = at.child(key).place();
                faults.add(FaultKind::EntryInvalid, place, "not uvarint, 0x00, uvarint");
            }
        }
    }
    store
}

fn snapshot(bucket: BucketRef<'_>, at: &Entry<'_>, faults: &mut Faults) -> Option<Stored> {
    for key in ["createdat", "updatedat"] {
        let time = |bytes: &[u8]| decode::is_time(bytes).then_some(());
        database::decoded(bucket, key, "a time", time, at, faults);
    }
    let id = database::decoded(bucket, "id", "a snapshot id", decode::uvarint, at, faults);
    let kind = |bytes: &[u8]| match bytes {
        [1] => Some(Kind::View),
        [2] => Some(Kind::Active),
        [3] => Some(Kind::Committed),
        _ => None,
    };
    let kind = database::decoded(bucket, "kind", "1, 2 or 3", kind, at, faults);
    let parent = match database::value(bucket, "parent", at, faults) {
        None | Some([]) => None,
        Some(parent) => Some(database::utf8(parent, &at.child(b"parent"), faults)?.to_owned()),
    };
    let (id, kind) = (id?, kind?);
    let (mut inodes, mut size) = (None, None);
    if kind == Kind::Committed {
        let number = |bytes: &[u8]| decode::varint(bytes).filter(|&n| n >= 0);
        inodes = database::decoded(bucket, "inodes", "a number", number, at, faults);
        size = database::decoded(bucket, "size", "a size", number, at, faults);
    }
    Some(Stored { id, kind, parent, inodes, size })
}
