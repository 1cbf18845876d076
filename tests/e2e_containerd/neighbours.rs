//! Other namespaces of the same containerd.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;

use jiff::{SignedDuration, Timestamp};
use warmkit::containerd::{Blob, Client, Lease, Snapshot};
use warmkit::digest::Digest;

use crate::pending::Place;
use crate::reads;
use crate::support::handmade::blob_path;
use crate::support::tmpfs::Tmpfs;

/// All that a namespace has, in an order of its own.
fn all(client: &Client) -> (Vec<Blob>, Vec<Lease>, Vec<Snapshot>) {
    let mut leases = client.leases().unwrap();
    leases.sort_by(|a, b| a.id.cmp(&b.id));
    for lease in &mut leases {
        lease.content.sort();
    }
    (client.blobs().unwrap(), leases, client.snapshots("overlayfs").unwrap())
}

fn put(client: &Client, bytes: &[u8], label: &str) {
    let digest = Digest::of(bytes).to_string();
    let mut ingest = client.write(&digest, bytes.len() as u64).unwrap().unwrap();
    ingest.write_all(bytes).unwrap();
    ingest.finish().unwrap();
    client.label(&digest, &BTreeMap::from([(label.to_owned(), "theirs".to_owned())])).unwrap();
}

/// A blob of the cache with labels of their own, another one, a snapshot and what holds them: bakes that fail, are
/// killed or end well share the blob, and nothing of it changes.
#[test]
fn stay_as_they_are() {
    let Some(place) = Place::new() else { return };
    let theirs_too = blob_path(&place.scratch.join("first"), "first-below");
    let mut theirs = place.containerd.client("theirs");
    theirs.work_under("theirs", Timestamp::now() + SignedDuration::from_hours(1)).unwrap();
    put(&theirs, &fs::read(&theirs_too).unwrap(), "buildkit.io/blob/mediatype");
    put(&theirs, b"of no cache", "theirs");
    theirs.prepare("overlayfs", "draft", None).unwrap();
    assert!(theirs.commit("overlayfs", "theirs", "draft").unwrap());
    let before = all(&theirs);
    assert_eq!((before.0.len(), before.1.len(), before.2.len()), (2, 1, 1));
    // So that it comes from there.
    fs::remove_file(theirs_too).unwrap();

    let full = Tmpfs::new(place.scratch.join("full"), "size=8k");
    let failed = place.bake(&place.first, &full.0.join("root"));
    assert_eq!(failed.status.code(), Some(11), "{}", failed.stderr);
    place.containerd.collect();
    assert_eq!(all(&theirs), before, "after a bake that failed");

    let root = place.scratch.join("root");
    place.kill(&root);
    place.containerd.collect();
    assert_eq!(all(&theirs), before, "after a bake that was killed");

    place.bake(&place.first, &root).expect_success("bake");
    place.expire();
    place.containerd.collect();
    assert_eq!(all(&theirs), before, "after a bake");
    assert_eq!(place.containerd.blobs().len(), 3, "one is shared");
    reads::assert_sound(&place.containerd, &root);
}
