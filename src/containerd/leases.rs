//! Leases: what keeps blobs and snapshots. What no lease has is collected.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tonic::Code;

use super::Result;
use super::client::{Client, Failure};
use super::wire::{self, Empty};

/// Label of a lease: it keeps what it names, and not what that refers to.
const FLAT: &str = "containerd.io/gc.flat";
/// Label of a lease: from then on it keeps nothing.
const EXPIRE: &str = "containerd.io/gc.expire";
/// Label of a lease that `buildkitd` deletes when it starts.
const TEMPORARY: &str = "buildkit/lease.temporary";
/// Label of the lease of a record: the bake that made it.
const BAKE: &str = "warmkit/bake";
/// Label of a lease that has nothing: a bake whose root is not in its place.
const PENDING: &str = "warmkit/pending";

/// Something that a lease keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    /// A blob, by its digest.
    Content(&'a str),
    /// A snapshot.
    Snapshot {
        /// Whose.
        snapshotter: &'a str,
        /// Its key.
        key: &'a str,
    },
}

/// A bake whose root is not in its place, as far as containerd was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// The bake.
    pub bake: String,
    /// The leases that it made for records.
    pub records: Vec<String>,
}

/// What there is at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leased {
    /// The bakes that are [noted](Client::note_pending).
    pub pending: Vec<Pending>,
    /// The ids of all leases.
    pub ids: BTreeSet<String>,
}

/// A lease that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// Whether a `buildkitd` deletes it when it starts.
    pub temporary: bool,
    /// Whether it is a [note](Client::note_pending), and keeps nothing.
    pub is_note: bool,
    /// Digests of the blobs that it keeps.
    pub content: Vec<String>,
    /// The snapshots that it keeps: snapshotter and key.
    pub snapshots: Vec<(String, String)>,
}

impl Resource<'_> {
    fn message(self) -> wire::Resource {
        match self {
            Self::Content(digest) => wire::Resource { id: digest.to_owned(), kind: "content".to_owned() },
            Self::Snapshot { snapshotter, key } => {
                wire::Resource { id: key.to_owned(), kind: format!("snapshots/{snapshotter}") }
            }
        }
    }
}

impl Client {
    /// Makes a lease that holds all that is made from here on, as each request then carries it. It ends by itself: at
    /// `until`, and when a `buildkitd` starts on this namespace.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn work_under(&mut self, lease: &str, until: Timestamp) -> Result<()> {
        let labels = [(EXPIRE, until.to_string()), (TEMPORARY, until.to_string())];
        self.create_lease(lease, &labels).map_err(|failure| failure.at("make the lease", lease))?;
        self.carry(lease);
        Ok(())
    }

    /// Makes the lease of a record for a bake, which keeps what is added to it and nothing else; tells whether it is new.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn lease_record(&self, lease: &str, bake: &str, at: Timestamp) -> Result<bool> {
        let labels = [(FLAT, at.to_string()), (BAKE, bake.to_owned())];
        is_new(lease, self.create_lease(lease, &labels))
    }

    /// Notes under `lease`, which keeps nothing and does not end by itself, that the root of a bake is not in its place;
    /// tells whether that is new. Also when this client was stopped.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn note_pending(&self, lease: &str, bake: &str) -> Result<bool> {
        let created = self.after_all(wire::LEASE_CREATE, create(lease, &[(PENDING, bake.to_owned())]));
        is_new(lease, created.map(|Empty {}| ()))
    }

    /// What is leased, and which bakes are [noted](Self::note_pending). Also when this client was stopped.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn leased(&self) -> Result<Leased> {
        let listed: wire::Leases = self
            .after_all(wire::LEASE_LIST, Empty {})
            .map_err(|failure| failure.at("list leases of", self.what()))?;
        let mut bakes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for lease in &listed.leases {
            if let Some(bake) = lease.labels.get(PENDING) {
                bakes.entry(bake).or_default();
            }
        }
        for lease in &listed.leases {
            if let Some(records) = lease.labels.get(BAKE).and_then(|bake| bakes.get_mut(&**bake)) {
                records.push(lease.id.clone());
            }
        }
        let pending = |(bake, records): (&str, _)| Pending { bake: bake.to_owned(), records };
        let pending = bakes.into_iter().map(pending).collect();
        Ok(Leased { pending, ids: listed.leases.into_iter().map(|lease| lease.id).collect() })
    }

    /// The leases of this namespace. One that ends meanwhile may be absent.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        let listed: wire::Leases = self
            .call(wire::LEASE_LIST, Empty {})
            .map_err(|failure| failure.at("list leases of", self.what()))?;
        let mut leases = Vec::new();
        for wire::Lease { id, labels } in listed.leases {
            let kept: std::result::Result<wire::Resources, Failure> =
                self.short(wire::LEASE_RESOURCES, wire::LeaseId { id: id.clone() });
            let kept = match kept {
                Ok(kept) => kept.resources,
                Err(failure) if failure.is(Code::NotFound) => continue,
                Err(failure) => return Err(failure.at("list what is held by the lease", id)),
            };
            let is_note = labels.contains_key(PENDING);
            let mut lease =
                Lease { temporary: labels.contains_key(TEMPORARY), is_note, id, ..Lease::default() };
            for wire::Resource { id, kind } in kept {
                match kind.strip_prefix("snapshots/") {
                    Some(snapshotter) => lease.snapshots.push((snapshotter.to_owned(), id)),
                    None if kind == "content" => lease.content.push(id),
                    None => {}
                }
            }
            leases.push(lease);
        }
        Ok(leases)
    }

    fn create_lease(&self, id: &str, labels: &[(&str, String)]) -> std::result::Result<(), Failure> {
        let Empty {} = self.short(wire::LEASE_CREATE, create(id, labels))?;
        Ok(())
    }

    /// Has a lease keep something, whether or not it is there yet.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn add_to_lease(&self, lease: &str, resource: Resource<'_>) -> Result<()> {
        let resource = resource.message();
        let what = format!("{} {}", resource.kind, resource.id);
        let add = wire::LeaseAdd { id: lease.to_owned(), resource: Some(resource) };
        let added: std::result::Result<Empty, _> = self.short(wire::LEASE_ADD, add);
        match added {
            Err(failure) if !failure.is(Code::AlreadyExists) => Err(failure.at("lease", what)),
            _ => Ok(()),
        }
    }

    /// Ends a lease, also when this client was stopped; tells whether it was there. What nothing else keeps is collected
    /// before this returns where `collect` says so, else when containerd sees fit.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn delete_lease(&self, lease: &str, collect: bool) -> Result<bool> {
        let delete = wire::LeaseDelete { id: lease.to_owned(), sync: collect };
        let deleted: std::result::Result<Empty, Failure> = self.after_all(wire::LEASE_DELETE, delete);
        match deleted {
            Ok(Empty {}) => Ok(true),
            Err(failure) if failure.is(Code::NotFound) => Ok(false),
            Err(failure) => Err(failure.at("delete the lease", lease)),
        }
    }
}

fn create(id: &str, labels: &[(&str, String)]) -> wire::LeaseCreate {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    wire::LeaseCreate { id: id.to_owned(), labels }
}

/// Whether a lease is new that was asked for.
fn is_new(lease: &str, created: std::result::Result<(), Failure>) -> Result<bool> {
    match created {
        Ok(()) => Ok(true),
        Err(failure) if failure.is(Code::AlreadyExists) => Ok(false),
        Err(failure) => Err(failure.at("make the lease", lease)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_containerd_has_them() {
        for (resource, id, kind) in [
            (Resource::Content("sha256:ab"), "sha256:ab", "content"),
            (Resource::Snapshot { snapshotter: "overlayfs", key: "k" }, "k", "snapshots/overlayfs"),
        ] {
            assert_eq!(resource.message(), wire::Resource { id: id.into(), kind: kind.into() });
        }
    }
}
