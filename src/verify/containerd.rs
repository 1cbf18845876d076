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

use super::database::{self, Place};
use super::decode;
use super::report::{FindingKind, Findings};
use crate::bolt::{BucketRef, Database};
use crate::digest::Digest;

/// The namespace of the build cache.
pub(super) const NAMESPACE: &str = "buildkit";
/// Label of leases that a daemon makes for the time of one operation.
const TEMPORARY: &str = "buildkit/lease.temporary";

#[derive(Debug, Default)]
pub(super) struct Blob {
    pub(super) size: Option<i64>,
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(super) struct Lease {
    pub(super) temporary: bool,
    pub(super) content: BTreeSet<String>,
    pub(super) snapshots: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) name: Option<String>,
    pub(super) parent: Option<String>,
    pub(super) children: BTreeSet<String>,
}

/// What the namespace of the cache holds, and the blobs of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Containerd {
    pub(super) version: Option<i64>,
    /// Blobs of the cache's namespace.
    pub(super) blobs: BTreeMap<Digest, Blob>,
    pub(super) leases: BTreeMap<String, Lease>,
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    /// The last number given out in snapshot names.
    pub(super) sequence: u64,
    /// Sizes by digest, of all namespaces, in the order of the namespaces.
    pub(super) sizes: BTreeMap<Digest, Vec<(String, Option<i64>)>>,
}

/// Decodes the database. `snapshotter` is the worker's own; `has_records` says whether the worker has records,
/// whose data must then be in here.
pub(super) fn read(
    db: &Database,
    path: &Path,
    snapshotter: &str,
    has_records: bool,
    findings: &mut Findings,
) -> Containerd {
    let place = Place::new(path);
    let mut containerd = Containerd::default();
    let Some(schema) = database::needed(db.root(), "v1", &place, findings) else { return containerd };
    let place = place.child(b"v1");
    containerd.version = database::decoded(schema, "version", "a number", decode::varint, &place, findings);
    for item in &schema {
        // `version` is the one value; page faults were found when the file was opened.
        let Ok((namespace, crate::bolt::Item::Bucket(bucket))) = item else { continue };
        let place = place.child(namespace);
        let Some(namespace) = database::utf8(namespace, &place, findings) else { continue };
        blobs(bucket, namespace, &place, &mut containerd, findings);
        if namespace == NAMESPACE {
            leases(bucket, snapshotter, &place, &mut containerd, findings);
            snapshots(bucket, snapshotter, &place, &mut containerd, findings);
        }
    }
    // A daemon makes it with its first lease.
    if has_records && matches!(schema.item(NAMESPACE.as_bytes()), Ok(None)) {
        let detail = "there are records, and no namespace with their data";
        findings.add(FindingKind::BucketMissing, place.child(NAMESPACE.as_bytes()).subject(), detail);
    }
    containerd
}

fn times(bucket: BucketRef<'_>, keys: &[&str], place: &Place, findings: &mut Findings) {
    for key in keys {
        let time = |bytes: &[u8]| decode::is_time(bytes).then_some(());
        database::decoded(bucket, key, "a time", time, place, findings);
    }
}

fn labels(bucket: BucketRef<'_>, place: &Place, findings: &mut Findings) -> BTreeMap<String, String> {
    let Some(labels) = database::bucket(bucket, "labels", place, findings) else { return BTreeMap::new() };
    let place = place.child(b"labels");
    let mut found = BTreeMap::new();
    for (key, value) in database::values(labels, &place, findings) {
        let place = place.child(key);
        if let (Some(key), Some(value)) =
            (database::utf8(key, &place, findings), database::utf8(value, &place, findings))
        {
            found.insert(key.to_owned(), value.to_owned());
        }
    }
    found
}

fn blobs(
    namespace: BucketRef<'_>,
    name: &str,
    place: &Place,
    containerd: &mut Containerd,
    findings: &mut Findings,
) {
    let Some(content) = database::bucket(namespace, "content", place, findings) else { return };
    let place = place.child(b"content");
    if let Some(blobs) = database::bucket(content, "blob", &place, findings) {
        let place = place.child(b"blob");
        for (key, bucket) in database::buckets(blobs, &place, findings) {
            let place = place.child(key);
            let parsed = std::str::from_utf8(key).ok().and_then(|text| text.parse::<Digest>().ok());
            let Some(digest) = parsed else {
                let detail = "not sha256: and 64 lower-case hexadecimal digits";
                findings.add(FindingKind::EntryInvalid, place.subject(), detail);
                continue;
            };
            times(bucket, &["createdat", "updatedat"], &place, findings);
            let size = |bytes: &[u8]| decode::varint(bytes).filter(|&size| size >= 0);
            let size = database::decoded(bucket, "size", "a size", size, &place, findings);
            containerd.sizes.entry(digest).or_default().push((name.to_owned(), size));
            if name == NAMESPACE {
                let labels = labels(bucket, &place, findings);
                containerd.blobs.insert(digest, Blob { size, labels });
            }
        }
    }
    if let Some(ingests) = database::bucket(content, "ingests", &place, findings) {
        let place = place.child(b"ingests");
        for (reference, _) in database::buckets(ingests, &place, findings) {
            let detail = "a transfer that was not finished";
            findings.add(FindingKind::IngestLeft, place.child(reference).subject(), detail);
        }
    }
}

fn leases(
    namespace: BucketRef<'_>,
    snapshotter: &str,
    place: &Place,
    containerd: &mut Containerd,
    findings: &mut Findings,
) {
    let Some(leases) = database::bucket(namespace, "leases", place, findings) else { return };
    let place = place.child(b"leases");
    for (id, bucket) in database::buckets(leases, &place, findings) {
        let place = place.child(id);
        let Some(id) = database::utf8(id, &place, findings) else { continue };
        times(bucket, &["createdat"], &place, findings);
        let temporary = labels(bucket, &place, findings).contains_key(TEMPORARY);
        let mut lease = Lease { temporary, ..Lease::default() };
        if let Some(content) = database::bucket(bucket, "content", &place, findings) {
            names(content, &place.child(b"content"), &mut lease.content, findings);
        }
        if let Some(snapshots) = database::bucket(bucket, "snapshots", &place, findings) {
            let place = place.child(b"snapshots");
            if let Some(own) = database::bucket(snapshots, snapshotter, &place, findings) {
                names(own, &place.child(snapshotter.as_bytes()), &mut lease.snapshots, findings);
            }
        }
        containerd.leases.insert(id.to_owned(), lease);
    }
}

fn names(bucket: BucketRef<'_>, place: &Place, names: &mut BTreeSet<String>, findings: &mut Findings) {
    for (key, _) in database::values(bucket, place, findings) {
        if let Some(key) = database::utf8(key, &place.child(key), findings) {
            names.insert(key.to_owned());
        }
    }
}

fn snapshots(
    namespace: BucketRef<'_>,
    snapshotter: &str,
    place: &Place,
    containerd: &mut Containerd,
    findings: &mut Findings,
) {
    let Some(all) = database::bucket(namespace, "snapshots", place, findings) else { return };
    let place = place.child(b"snapshots");
    let Some(own) = database::bucket(all, snapshotter, &place, findings) else { return };
    let place = place.child(snapshotter.as_bytes());
    containerd.sequence = own.sequence();
    for (key, bucket) in database::buckets(own, &place, findings) {
        let place = place.child(key);
        let Some(key) = database::utf8(key, &place, findings) else { continue };
        times(bucket, &["createdat", "updatedat"], &place, findings);
        let text =
            |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(str::to_owned);
        let name = database::decoded(bucket, "name", "a name", text, &place, findings);
        let parent = match database::value(bucket, "parent", &place, findings) {
            None | Some([]) => None,
            Some(parent) => database::utf8(parent, &place.child(b"parent"), findings).map(str::to_owned),
        };
        let mut children = BTreeSet::new();
        if let Some(bucket) = database::bucket(bucket, "children", &place, findings) {
            names(bucket, &place.child(b"children"), &mut children, findings);
        }
        containerd.snapshots.insert(key.to_owned(), Snapshot { name, parent, children });
    }
}
