//! `containerdmeta.db`: what containerd's metadata knows of blobs, snapshots and leases.
//!
//! ```text
//! v1/version = varint
//! v1/<namespace>/content/blob/<digest>/{createdat,updatedat,size,labels/<label>}
//!               /content/ingests/<reference>/…
//!               /leases/<id>/{createdat,labels/<label>,content/<digest>,snapshots/<snapshotter>/<key>}
//!               /snapshots/<snapshotter>/<key>/{name,parent,createdat,updatedat,labels/…,children/<key>}
//! ```
//!
//! Mirrors `core/metadata/buckets.go` of containerd. `BuildKit` keeps its cache in the namespace
//! `buildkit`, its build history in `buildkit_history`; blobs of both stand in one content store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::database::{self, Entry};
use super::decode;
use super::fault::{FaultKind, Faults, text};
use crate::bolt::{BucketRef, Database};
use crate::digest::Digest;

/// The namespace of the build cache.
const NAMESPACE: &str = "buildkit";
/// Label of leases that a daemon makes for the time of one operation.
const TEMPORARY: &str = "buildkit/lease.temporary";

/// A blob of the cache's namespace.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Blob {
    /// Its bytes.
    pub size: Option<i64>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What keeps data.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Lease {
    /// Made for the time of one operation.
    pub temporary: bool,
    /// Digests of the blobs that it keeps.
    pub content: BTreeSet<String>,
    /// Keys of the worker's snapshots that it keeps.
    pub snapshots: BTreeSet<String>,
}

/// A snapshot as containerd's metadata has it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its name in the snapshotter's own database.
    pub name: Option<String>,
    /// Key of the parent.
    pub parent: Option<String>,
    /// Keys of the children.
    pub children: BTreeSet<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What the namespace of the cache holds, and the blobs of all namespaces.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Containerd {
    /// Version of the schema.
    pub version: Option<i64>,
    /// Blobs of the cache's namespace.
    pub blobs: BTreeMap<Digest, Blob>,
    /// Leases, by id: that of the record that they are of.
    pub leases: BTreeMap<String, Lease>,
    /// Snapshots of the worker, by key.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// The last number given out in snapshot names.
    pub sequence: u64,
    /// Sizes by digest, of all namespaces, in the order of the namespaces.
    pub sizes: BTreeMap<Digest, Vec<(String, Option<i64>)>>,
    /// Transfers that were not finished: namespace and reference.
    pub ingests: Vec<(String, String)>,
}

impl Containerd {
    /// Whether the namespace holds nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.blobs.is_empty() && self.leases.is_empty() && self.snapshots.is_empty()
    }
}

/// Decodes the database. `snapshotter` is the worker's own; `has_records` says whether the worker has records,
/// whose data must then be in here.
pub(super) fn read(
    db: &Database,
    path: &Path,
    snapshotter: &str,
    has_records: bool,
    faults: &mut Faults,
) -> Containerd {
    let at = Entry::new(path);
    let mut containerd = Containerd::default();
    let Some(schema) = database::needed(db.root(), "v1", &at, faults) else { return containerd };
    let at = at.child(b"v1");
    containerd.version = database::decoded(schema, "version", "a number", decode::varint, &at, faults);
    for item in &schema {
        // `version` is the one value; page faults were found when the file was opened.
        let Ok((namespace, crate::bolt::Item::Bucket(bucket))) = item else { continue };
        let at = at.child(namespace);
        let Some(namespace) = database::utf8(namespace, &at, faults) else { continue };
        blobs(bucket, namespace, &at, &mut containerd, faults);
        if namespace == NAMESPACE {
            leases(bucket, snapshotter, &at, &mut containerd, faults);
            snapshots(bucket, snapshotter, &at, &mut containerd, faults);
        }
    }
    // A daemon makes it with its first lease.
    if has_records && matches!(schema.item(NAMESPACE.as_bytes()), Ok(None)) {
        let detail = "there are records, and no namespace with their data";
        faults.add(FaultKind::BucketMissing, at.child(NAMESPACE.as_bytes()).place(), detail);
    }
    containerd
}

fn times(bucket: BucketRef<'_>, keys: &[&str], at: &Entry<'_>, faults: &mut Faults) {
    for key in keys {
        let time = |bytes: &[u8]| decode::is_time(bytes).then_some(());
        database::decoded(bucket, key, "a time", time, at, faults);
    }
}

fn labels(bucket: BucketRef<'_>, at: &Entry<'_>, faults: &mut Faults) -> BTreeMap<String, String> {
    let Some(labels) = database::bucket(bucket, "labels", at, faults) else { return BTreeMap::new() };
    let at = at.child(b"labels");
    let mut found = BTreeMap::new();
    for (key, value) in database::values(labels, &at, faults) {
        let at = at.child(key);
        if let (Some(key), Some(value)) =
            (database::utf8(key, &at, faults), database::utf8(value, &at, faults))
        {
            found.insert(key.to_owned(), value.to_owned());
        }
    }
    found
}

fn blobs(
    namespace: BucketRef<'_>,
    name: &str,
    at: &Entry<'_>,
    containerd: &mut Containerd,
    faults: &mut Faults,
) {
    let Some(content) = database::bucket(namespace, "content", at, faults) else { return };
    let at = at.child(b"content");
    if let Some(blobs) = database::bucket(content, "blob", &at, faults) {
        let at = at.child(b"blob");
        for (key, bucket) in database::buckets(blobs, &at, faults) {
            let at = at.child(key);
            let parsed = std::str::from_utf8(key).ok().and_then(|text| text.parse::<Digest>().ok());
            let Some(digest) = parsed else {
                let detail = "not sha256: and 64 lower-case hexadecimal digits";
                faults.add(FaultKind::EntryInvalid, at.place(), detail);
                continue;
            };
            times(bucket, &["createdat", "updatedat"], &at, faults);
            let size = |bytes: &[u8]| decode::varint(bytes).filter(|&size| size >= 0);
            let size = database::decoded(bucket, "size", "a size", size, &at, faults);
            containerd.sizes.entry(digest).or_default().push((name.to_owned(), size));
            if name == NAMESPACE {
                let labels = labels(bucket, &at, faults);
                containerd.blobs.insert(digest, Blob { size, labels });
            }
        }
    }
    if let Some(ingests) = database::bucket(content, "ingests", &at, faults) {
        let at = at.child(b"ingests");
        let references = database::buckets(ingests, &at, faults).into_iter();
        containerd.ingests.extend(references.map(|(reference, _)| (name.to_owned(), text(reference))));
    }
}

fn leases(
    namespace: BucketRef<'_>,
    snapshotter: &str,
    at: &Entry<'_>,
    containerd: &mut Containerd,
    faults: &mut Faults,
) {
    let Some(leases) = database::bucket(namespace, "leases", at, faults) else { return };
    let at = at.child(b"leases");
    for (id, bucket) in database::buckets(leases, &at, faults) {
        let at = at.child(id);
        let Some(id) = database::utf8(id, &at, faults) else { continue };
        times(bucket, &["createdat"], &at, faults);
        let temporary = labels(bucket, &at, faults).contains_key(TEMPORARY);
        let mut lease = Lease { temporary, ..Lease::default() };
        if let Some(content) = database::bucket(bucket, "content", &at, faults) {
            names(content, &at.child(b"content"), &mut lease.content, faults);
        }
        if let Some(snapshots) = database::bucket(bucket, "snapshots", &at, faults) {
            let at = at.child(b"snapshots");
            if let Some(own) = database::bucket(snapshots, snapshotter, &at, faults) {
                names(own, &at.child(snapshotter.as_bytes()), &mut lease.snapshots, faults);
            }
        }
        containerd.leases.insert(id.to_owned(), lease);
    }
}

fn names(bucket: BucketRef<'_>, at: &Entry<'_>, names: &mut BTreeSet<String>, faults: &mut Faults) {
    for (key, _) in database::values(bucket, at, faults) {
        if let Some(key) = database::utf8(key, &at.child(key), faults) {
            names.insert(key.to_owned());
        }
    }
}

fn snapshots(
    namespace: BucketRef<'_>,
    snapshotter: &str,
    at: &Entry<'_>,
    containerd: &mut Containerd,
    faults: &mut Faults,
) {
    let Some(all) = database::bucket(namespace, "snapshots", at, faults) else { return };
    let at = at.child(b"snapshots");
    let Some(own) = database::bucket(all, snapshotter, &at, faults) else { return };
    let at = at.child(snapshotter.as_bytes());
    containerd.sequence = own.sequence();
    for (key, bucket) in database::buckets(own, &at, faults) {
        let at = at.child(key);
        let Some(key) = database::utf8(key, &at, faults) else { continue };
        times(bucket, &["createdat", "updatedat"], &at, faults);
        let text =
            |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(str::to_owned);
        let name = database::decoded(bucket, "name", "a name", text, &at, faults);
        let parent = match database::value(bucket, "parent", &at, faults) {
            None | Some([]) => None,
            Some(parent) => database::utf8(parent, &at.child(b"parent"), faults).map(str::to_owned),
        };
        let mut children = BTreeSet::new();
        if let Some(bucket) = database::bucket(bucket, "children", &at, faults) {
            names(bucket, &at.child(b"children"), &mut children, faults);
        }
        let labels = labels(bucket, &at, faults);
        containerd.snapshots.insert(key.to_owned(), Snapshot { name, parent, children, labels });
    }
}
