//! Snapshots: prepared, applied to, committed.

use std::collections::BTreeMap;

use tonic::Code;

use super::client::{Client, Failure};
use super::wire::{self, Empty};
use super::{Error, Result};

/// Where a snapshot that is being made is to be mounted from; of use to containerd alone.
#[derive(Debug, Clone)]
pub struct Mounts(Vec<wire::Mount>);

/// What a snapshot takes, as containerd accounts for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in blocks.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

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

/// A snapshot that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its key.
    pub key: String,
    /// That of its parent.
    pub parent: Option<String>,
    /// What may be done with it.
    pub kind: Kind,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Client {
    /// The snapshots of this namespace that one of containerd's snapshotters has.
    ///
    /// # Errors
    /// There is no such snapshotter.
    pub fn snapshots(&self, snapshotter: &str) -> Result<Vec<Snapshot>> {
        let asked = wire::SnapshotList { snapshotter: snapshotter.to_owned() };
        let parts: std::result::Result<Vec<wire::Snapshots>, Failure> = self.list(wire::SNAPSHOT_LIST, asked);
        let parts = match parts {
            Err(failure) if failure.is(Code::InvalidArgument) => {
                return Err(Error::NoSnapshotter { name: snapshotter.to_owned() });
            }
            parts => parts.map_err(|failure| failure.at("list snapshots of", self.what()))?,
        };
        let snapshot = |wire::Snapshot { key, parent, kind, labels }| Snapshot {
            key,
            parent: Some(parent).filter(|parent| !parent.is_empty()),
            kind: match kind {
                wire::VIEW => Kind::View,
                wire::COMMITTED => Kind::Committed,
                _ => Kind::Active,
            },
            labels: labels.into_iter().collect(),
        };
        Ok(parts.into_iter().flat_map(|part| part.infos).map(snapshot).collect())
    }

    /// Whether there is a committed snapshot with this key.
    ///
    /// # Errors
    /// There is no such snapshotter, or what has this key is still changing.
    pub fn has_snapshot(&self, snapshotter: &str, key: &str) -> Result<bool> {
        let stat: std::result::Result<wire::SnapshotReply, Failure> =
            self.short(wire::SNAPSHOT_STAT, named(snapshotter, key));
        match stat {
            Ok(reply) if reply.info.as_ref().is_some_and(|info| info.kind == wire::COMMITTED) => Ok(true),
            Ok(_) => Err(Error::Unexpected {
                what: format!("snapshot {key}"),
                expected: "a committed one".into(),
                found: "one that still changes".into(),
            }),
            Err(failure) if failure.is(Code::NotFound) => Ok(false),
            Err(failure) if failure.is(Code::InvalidArgument) => {
                Err(Error::NoSnapshotter { name: snapshotter.to_owned() })
            }
            Err(failure) => Err(failure.at("look up snapshot", key)),
        }
    }

    /// Begins a snapshot on another one, or on nothing.
    ///
    /// # Errors
    /// containerd refuses, as where there is no such parent.
    pub fn prepare(&self, snapshotter: &str, key: &str, parent: Option<&str>) -> Result<Mounts> {
        let prepare = wire::SnapshotPrepare {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
        };
        let mounts: wire::Mounts = self
            .short(wire::SNAPSHOT_PREPARE, prepare)
            .map_err(|failure| failure.at("prepare snapshot", key))?;
        Ok(Mounts(mounts.mounts))
    }

    /// Has containerd unpack a blob; gives the digest of what it unpacked, the layer's diff ID.
    ///
    /// # Errors
    /// containerd cannot.
    pub fn apply(&self, digest: &str, size: u64, media_type: &str, mounts: Mounts) -> Result<String> {
        let diff = wire::Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
        };
        let applied: wire::Applied = self
            .call(wire::DIFF_APPLY, wire::Apply { diff: Some(diff), mounts: mounts.0 })
            .map_err(|failure| failure.at("unpack layer", digest))?;
        Ok(applied.applied.unwrap_or_default().digest)
    }

    /// Makes what was prepared under `key` the snapshot `name`; gives whether it did, and not somebody else before.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn commit(&self, snapshotter: &str, name: &str, key: &str) -> Result<bool> {
        let commit = wire::SnapshotCommit {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
        };
        // It reads the whole tree to account for it.
        let committed: std::result::Result<Empty, Failure> = self.call(wire::SNAPSHOT_COMMIT, commit);
        match committed {
            Ok(Empty {}) => Ok(true),
            Err(failure) if failure.is(Code::AlreadyExists) => {
                let removed: std::result::Result<Empty, Failure> =
                    self.short(wire::SNAPSHOT_REMOVE, named(snapshotter, key));
                removed.map(|_| false).map_err(|failure| failure.at("remove snapshot", key))
            }
            Err(failure) => Err(failure.at("commit snapshot", name)),
        }
    }

    /// What a snapshot takes.
    ///
    /// # Errors
    /// containerd refuses, as where there is none.
    pub fn usage(&self, snapshotter: &str, key: &str) -> Result<Usage> {
        let usage: wire::Usage = self
            .call(wire::SNAPSHOT_USAGE, named(snapshotter, key))
            .map_err(|failure| failure.at("account for snapshot", key))?;
        let unsigned = |number| u64::try_from(number).unwrap_or_default();
        Ok(Usage { size: unsigned(usage.size), inodes: unsigned(usage.inodes) })
    }
}

fn named(snapshotter: &str, key: &str) -> wire::SnapshotKey {
    wire::SnapshotKey { snapshotter: snapshotter.to_owned(), key: key.to_owned() }
}
