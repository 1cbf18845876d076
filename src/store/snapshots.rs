//! `snapshots/metadata.db`: the snapshotter's own store, of one schema for all of them.
//!
//! ```text
//! v1/
//!   snapshots/                 sequence: the highest id handed out
//!     <name>/
//!       id          uvarint    number of the directory under snapshots/snapshots
//!       kind        03         committed
//!       parent      <name>     where there is one
//!       size        varint     bytes of the blocks of its files, each inode once
//!       inodes      varint     inodes of its files, the directory itself included
//!       createdat   time
//!       updatedat   time
//!   parents/
//!     uvarint(parent id) 00 uvarint(child id) = <child's name>
//! ```
//!
//! Mirrors containerd `core/snapshots/storage/{bolt,metastore}.go` (v2.4). A base layer has
//! no entry in `parents`.

use super::schema::NAMESPACE;
use super::schema::snapshots::{
    COMMITTED, CREATED_AT, ID, INODES, KIND, PARENT, PARENTS, SIZE, SNAPSHOTS, UPDATED_AT, V1,
};
use super::{Contents, Error, Snapshot, at, encode};
use crate::bolt::Bucket;

/// The id of the snapshot at `index`; the number of its directory.
pub(super) fn id(index: usize) -> u64 {
    index as u64 + 1
}

/// The name that containerd's metadata gives the snapshot at `index`: namespace, number, key.
pub(super) fn name(index: usize, snapshot: &Snapshot) -> String {
    format!("{NAMESPACE}/{}/{}", id(index), snapshot.key)
}

pub(super) fn database(contents: &Contents) -> Result<Bucket, Error> {
    let written = encode::time(contents.written_at);
    let mut root = Bucket::new();
    let v1 = root.bucket(V1);
    v1.bucket(SNAPSHOTS).set_sequence(contents.snapshots.len() as u64);
    v1.bucket(PARENTS);
    for (index, snapshot) in contents.snapshots.iter().enumerate() {
        let name = name(index, snapshot);
        let parent = match snapshot.parent {
            Some(parent) => Some((parent, at(&contents.snapshots, parent, "snapshot")?)),
            None => None,
        };
        let entry = v1.bucket(SNAPSHOTS).bucket(name.as_str());
        entry.put(ID, encode::uvarint(id(index)));
        entry.put(KIND, [COMMITTED]);
        entry.put(SIZE, encode::varint_of(snapshot.size));
        entry.put(INODES, encode::varint_of(snapshot.inodes));
        entry.put(CREATED_AT, written);
        entry.put(UPDATED_AT, written);
        if let Some((parent_index, parent)) = parent {
            entry.put(PARENT, self::name(parent_index, parent));
            let key = [encode::uvarint(id(parent_index)), vec![0], encode::uvarint(id(index))].concat();
            v1.bucket(PARENTS).put(key, name);
        }
    }
    Ok(root)
}
