//! What a running containerd holds for a root, by its API, as the databases of an OCI worker would have it.
//!
//! Between one answer and the next something may change: other daemons use the same containerd. What this root's records
//! need no one else takes away, as long as its daemon does not run.

use std::io::Read as _;

use super::{Blob, Containerd, Error, KeptIn, Kind, Lease, Snapshot, Snapshotter, Stored};
use crate::containerd::{self, Client};
use crate::digest::{Digest, Hasher};

/// How much of a blob is in memory at a time.
const BUFFER: usize = 1 << 18;

/// A connection to it.
#[derive(Debug)]
pub(crate) struct Keeper(Client);

/// What a namespace holds.
#[derive(Debug)]
pub(super) struct Held {
    /// With blobs alone.
    blobs: Containerd,
    leases: Vec<containerd::Lease>,
}

impl Keeper {
    pub(super) fn connect(to: &KeptIn) -> Result<Self, Error> {
        Ok(Self(Client::connect(&to.address, &to.namespace, Box::new(|| false))?))
    }

    /// What the namespace holds, whichever snapshotter is asked about.
    pub(super) fn held(&self) -> Result<Held, Error> {
        let mut held = Containerd::default();
        for containerd::Blob { digest, size, labels } in self.0.blobs()? {
            // Others may keep blobs under digests of another kind, which no record names.
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            held.sizes.insert(digest, vec![(self.namespace(), Some(size))]);
            held.blobs.insert(digest, Blob { size: Some(size), labels });
        }
        Ok(Held { blobs: held, leases: self.0.leases()? })
    }

    /// That with the snapshots of `snapshotter`: as containerd's metadata has them, and as the snapshotter. `None` where
    /// there is no such snapshotter.
    pub(super) fn read(
        &self,
        snapshotter: &str,
        namespace: &Held,
    ) -> Result<Option<(Containerd, Snapshotter)>, Error> {
        let Self(client) = self;
        let snapshots = match client.snapshots(snapshotter) {
            Err(containerd::Error::NoSnapshotter { .. }) => return Ok(None),
            snapshots => snapshots?,
        };
        let (mut held, mut store) = (namespace.blobs.clone(), Snapshotter::default());
        // What bakes note is not of a root.
        let leases = namespace.leases.iter().filter(|lease| !lease.is_note);
        for containerd::Lease { id, temporary, content, snapshots, .. } in leases {
            let own = snapshots.iter().filter(|(whose, _)| whose == snapshotter);
            let snapshots = own.map(|(_, key)| key.clone()).collect();
            let content = content.iter().cloned().collect();
            held.leases.insert(id.clone(), Lease { temporary: *temporary, content, snapshots });
        }
        for (id, found) in (1..).zip(snapshots) {
            let containerd::Snapshot { key, parent, kind, labels } = found;
            let usage = match client.usage(snapshotter, &key) {
                Ok(usage) => Some(usage),
                // Somebody has removed it since.
                Err(containerd::Error::Missing { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let stored = Stored {
                id,
                kind: match kind {
                    containerd::Kind::View => Kind::View,
                    containerd::Kind::Active => Kind::Active,
                    containerd::Kind::Committed => Kind::Committed,
                },
                parent: parent.clone(),
                inodes: usage.and_then(|usage| i64::try_from(usage.inodes).ok()),
                size: usage.and_then(|usage| i64::try_from(usage.size).ok()),
            };
            store.snapshots.insert(key.clone(), stored);
            // The names that both have for it are containerd's own affair.
            let name = Some(key.clone());
            held.snapshots.insert(key, Snapshot { name, parent, labels, ..Snapshot::default() });
        }
        let parents: Vec<(String, String)> =
            held.snapshots.iter().filter_map(|(key, s)| Some((s.parent.clone()?, key.clone()))).collect();
        for (parent, child) in parents {
            if let Some(parent) = held.snapshots.get_mut(&parent) {
                parent.children.insert(child);
            }
        }
        Ok(Some((held, store)))
    }

    /// Where it looks, in messages.
    pub(crate) fn place(&self) -> String {
        format!("namespace {} of the containerd at {}", self.namespace(), self.0.socket().display())
    }

    fn namespace(&self) -> String {
        self.0.namespace().to_owned()
    }

    /// Whether its metadata has a blob of this digest.
    ///
    /// # Errors
    /// containerd refuses.
    pub(crate) fn is_known(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.0.labels(&digest.to_string())?.is_some())
    }

    /// Reads all of a blob; gives its bytes and their digest, and `None` where they are not there, whatever its metadata
    /// says. `read` hears of bytes as they come.
    ///
    /// # Errors
    /// containerd refuses.
    pub(crate) fn hash(&self, digest: &Digest, read: impl Fn(u64)) -> Result<Option<(u64, Digest)>, Error> {
        let name = digest.to_string();
        let mut blob = match self.0.read(&name) {
            Ok(blob) => blob,
            Err(containerd::Error::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (mut hasher, mut buffer, mut size) = (Hasher::new(), vec![0; BUFFER], 0);
        loop {
            match blob.read(&mut buffer) {
                Ok(0) => return Ok(Some((size, Digest::from_bytes(hasher.finish())))),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    size += n as u64;
                    read(n as u64);
                }
                Err(error) => match blob.failure() {
                    Some(containerd::Error::Missing { .. }) => return Ok(None),
                    Some(error) => return Err(error.into()),
                    None => return Err(containerd::Error::Setup(error).into()),
                },
            }
        }
    }
}
