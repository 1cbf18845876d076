//! `containerdmeta.db`: what containerd knows of blobs and snapshots, and the leases that keep them.
//!
//! ```text
//! v1/
//!   version                    varint
//!   buildkit/                  the namespace
//!     content/blob/<digest>/
//!       size                   varint
//!       createdat, updatedat   time
//!       labels/                    of a document only distribution.source
//!         containerd.io/gc.ref.content.blob-<digest>        <digest>
//!         containerd.io/distribution.source.<host>          <repository>[,<repository>]
//!         buildkit.io/blob/mediatype                        <media type>
//!         buildkit.io/blob/annotation.<annotation>          containerd.io/uncompressed, estargz's
//!     snapshots/<snapshotter>/ sequence: that of the last <number> in a name
//!       <key>/
//!         name                 buildkit/<number>/<key>: the name in snapshots/metadata.db
//!         parent               <key>, where there is one
//!         children/<key>       empty, where there are any
//!         createdat, updatedat time
//!     leases/<record id>/
//!       createdat              time
//!       labels/containerd.io/gc.flat    <RFC 3339>
//!       content/<digest>                empty; the layer, and documents of an image that ends with it
//!       snapshots/<snapshotter>/<key>   empty
//! ```
//!
//! Mirrors containerd `core/metadata/{buckets,content,snapshot,leases}.go` (v2.4) and `BuildKit`
//! `cache/{manager,refs}.go` (v0.34). Leases alone keep data: containerd's garbage collector removes the
//! rest.

use std::collections::{BTreeMap, BTreeSet};

use super::schema::NAMESPACE;
use super::schema::containerd::{
    ANNOTATION, BLOB, CHILDREN, CONTENT, CREATED_AT, DISTRIBUTION_SOURCE, GC_FLAT, GC_REF_BLOB, LABEL_MAX,
    LABELS, LEASES, MEDIA_TYPE, NAME, PARENT, SIZE, SNAPSHOTS, UPDATED_AT, V1, VERSION, VERSION_WRITTEN,
};
use super::{Blob, Contents, Error, Snapshotter, at, encode, snapshots};
use crate::bolt::Bucket;
use crate::digest::Digest;
use crate::oci::Compression;
use crate::oci::cacheconfig::UNCOMPRESSED;

/// Annotations that `BuildKit` keeps beside the diff ID; `compression.EStargzAnnotations`.
const KEPT_ANNOTATIONS: [&str; 2] =
    ["containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size"];

pub(super) fn database(contents: &Contents, snapshotter: Snapshotter) -> Result<Bucket, Error> {
    let mut root = Bucket::new();
    let v1 = root.bucket(V1);
    v1.put(VERSION, encode::varint(VERSION_WRITTEN));
    let namespace = v1.bucket(NAMESPACE);
    blobs(contents, namespace.bucket(CONTENT).bucket(BLOB));
    snapshot_entries(contents, namespace.bucket(SNAPSHOTS).bucket(snapshotter.name()))?;
    leases(contents, snapshotter, namespace.bucket(LEASES))?;
    Ok(root)
}

fn blobs(contents: &Contents, bucket: &mut Bucket) {
    let written = encode::time(contents.written_at);
    let layers = contents.blobs.iter().map(|blob| (blob.descriptor.digest, blob.descriptor.size));
    let documents = contents.documents.iter().map(|document| (document.digest, document.size));
    for (digest, size) in layers.chain(documents) {
        let entry = bucket.bucket(digest.to_string());
        entry.put(SIZE, encode::varint_of(size));
        entry.put(CREATED_AT, written);
        entry.put(UPDATED_AT, written);
    }
    for (digest, labels) in labels(contents) {
        let bucket = bucket.bucket(digest.to_string()).bucket(LABELS);
        for (name, value) in labels {
            bucket.put(name, value);
        }
    }
}

/// By digest, the labels that layers and documents have in the content store; who has none is not among them.
pub fn labels(contents: &Contents) -> BTreeMap<Digest, BTreeMap<String, String>> {
    let mut labels: BTreeMap<Digest, BTreeMap<String, String>> = BTreeMap::new();
    let mut sources: BTreeMap<(Digest, &str), BTreeSet<&str>> = BTreeMap::new();
    for blob in &contents.blobs {
        let digest = blob.descriptor.digest;
        labels.entry(digest).or_default().extend(labels_of(blob));
        for (host, repositories) in &blob.sources {
            sources.entry((digest, host)).or_default().extend(repositories.iter().map(String::as_str));
        }
    }
    for document in &contents.documents {
        for (host, repositories) in &document.sources {
            let sources = sources.entry((document.digest, host)).or_default();
            sources.extend(repositories.iter().map(String::as_str));
        }
    }
    for ((digest, host), repositories) in sources {
        let label = format!("{DISTRIBUTION_SOURCE}{host}");
        // containerd refuses to touch a label that is too long, so name as many as fit: one is enough for
        // a push to find the blob in its own registry.
        let mut value = String::new();
        for repository in repositories {
            let separator = if value.is_empty() { "" } else { "," };
            if label.len() + value.len() + separator.len() + repository.len() <= LABEL_MAX {
                value.push_str(separator);
                value.push_str(repository);
            }
        }
        if !value.is_empty() {
            labels.entry(digest).or_default().insert(label, value);
        }
    }
    labels
}

/// Whether a blob that has a label of [`labels`], but with the value `has`, may keep it.
///
/// Of two media types for the same bytes a daemon writes that of who fetched them (`linkBlob` of `cache/refs.go`), and
/// leaves it to whoever finds them there. Nobody is served by another diff ID, or by a compression that is not the blob's.
pub fn is_same_label(name: &str, has: &str, wanted: &str) -> bool {
    let is_diff_id = || name.strip_prefix(ANNOTATION) == Some(UNCOMPRESSED);
    let compression = Compression::of_layer;
    match name {
        _ if has == wanted => true,
        MEDIA_TYPE => compression(has).is_some() && compression(has) == compression(wanted),
        _ => !is_diff_id(),
    }
}

fn labels_of(blob: &Blob) -> BTreeMap<String, String> {
    let digest = blob.descriptor.digest.to_string();
    let mut labels = BTreeMap::from([
        (format!("{GC_REF_BLOB}{digest}"), digest),
        (MEDIA_TYPE.to_owned(), blob.descriptor.media_type.clone()),
        (format!("{ANNOTATION}{UNCOMPRESSED}"), blob.diff_id.to_string()),
    ]);
    for name in KEPT_ANNOTATIONS {
        if let Some(value) = blob.descriptor.annotations.get(name) {
            labels.insert(format!("{ANNOTATION}{name}"), value.clone());
        }
    }
    labels
}

fn snapshot_entries(contents: &Contents, bucket: &mut Bucket) -> Result<(), Error> {
    let written = encode::time(contents.written_at);
    bucket.set_sequence(contents.snapshots.len() as u64);
    for (index, snapshot) in contents.snapshots.iter().enumerate() {
        let entry = bucket.bucket(snapshot.key.as_str());
        entry.put(NAME, snapshots::name(index, snapshot));
        entry.put(CREATED_AT, written);
        entry.put(UPDATED_AT, written);
        if let Some(parent) = snapshot.parent {
            let parent = at(&contents.snapshots, parent, "snapshot")?;
            entry.put(PARENT, parent.key.as_str());
            bucket.bucket(parent.key.as_str()).bucket(CHILDREN).put(snapshot.key.as_str(), "");
        }
    }
    Ok(())
}

fn leases(contents: &Contents, snapshotter: Snapshotter, bucket: &mut Bucket) -> Result<(), Error> {
    let written = encode::time(contents.written_at);
    let flat = encode::rfc3339(contents.written_at);
    for record in &contents.records {
        let blob = at(&contents.blobs, record.blob, "blob")?;
        let snapshot = at(&contents.snapshots, record.snapshot, "snapshot")?;
        let lease = bucket.bucket(record.id.as_str());
        lease.put(CREATED_AT, written);
        lease.bucket(LABELS).put(GC_FLAT, flat.as_str());
        lease.bucket(CONTENT).put(blob.descriptor.digest.to_string(), "");
        for &document in &record.documents {
            let document = at(&contents.documents, document, "document")?;
            lease.bucket(CONTENT).put(document.digest.to_string(), "");
        }
        lease.bucket(SNAPSHOTS).bucket(snapshotter.name()).put(snapshot.key.as_str(), "");
    }
    Ok(())
}
