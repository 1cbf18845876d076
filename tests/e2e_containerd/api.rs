//! What is asked of a containerd, by itself.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use warmkit::containerd::Error;
use warmkit::digest::Digest;

use crate::support::containerd::Containerd;
use crate::support::handmade::Handmade;

/// A blob that was left off is gone on with, one of another namespace is shared, and wrong bytes do not stay.
#[test]
fn blobs_are_ingested_once() {
    let Some(containerd) = Containerd::start() else { return };
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let labels = |name: &str| BTreeMap::from([(name.to_owned(), "value".to_owned())]);
    let bytes: Vec<u8> =
        (0..(5_u32 << 19) + 7).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
    let (digest, size) = (Digest::of(&bytes).to_string(), bytes.len() as u64);

    let mut one = containerd.client("one");
    one.work_under("work", until).unwrap();
    let mut ingest = one.write(&digest, size).unwrap().unwrap();
    ingest.write_all(&bytes[..2 << 20]).unwrap();
    drop(ingest);
    let mut ingest = one.write(&digest, size).unwrap().unwrap();
    assert!(!ingest.is_whole());
    // What is there is not written again, or these would be other bytes.
    let mut rest = bytes.clone();
    rest[..2 << 20].fill(0);
    ingest.write_all(&rest).unwrap();
    ingest.finish().unwrap();
    assert_eq!(one.labels(&digest).unwrap(), Some(BTreeMap::new()));
    one.label(&digest, &labels("one")).unwrap();
    assert!(one.write(&digest, size).unwrap().is_none());
    one.label(&digest, &labels("more")).unwrap();
    // None is not all of them.
    one.label(&digest, &BTreeMap::new()).unwrap();
    let mut read = Vec::new();
    one.read(&digest).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == bytes);

    let mut two = containerd.client("two");
    two.work_under("work", until).unwrap();
    assert_eq!(two.labels(&digest).unwrap(), None);
    let ingest = two.write(&digest, size).unwrap().unwrap();
    assert!(ingest.is_whole());
    ingest.finish().unwrap();
    two.label(&digest, &labels("two")).unwrap();
    assert_eq!(two.labels(&digest).unwrap(), Some(labels("two")));
    let both: BTreeMap<_, _> = labels("one").into_iter().chain(labels("more")).collect();
    assert_eq!(one.labels(&digest).unwrap(), Some(both));

    let wrong = Digest::of(b"right").to_string();
    let mut ingest = one.write(&wrong, 5).unwrap().unwrap();
    ingest.write_all(b"wrong").unwrap();
    let refused = ingest.finish().unwrap_err();
    assert!(matches!(refused, Error::Call { action: "commit blob", .. }), "{refused}");
    // Or a bake that goes on would commit these for whole.
    let mut ingest = one.write(&wrong, 5).unwrap().unwrap();
    assert!(!ingest.is_whole());
    ingest.write_all(b"wro").unwrap();
    ingest.again();
    ingest.write_all(b"right").unwrap();
    ingest.finish().unwrap();

    // Each namespace by itself: what only one of them held goes with its lease.
    assert_eq!(containerd.blobs().len(), 2);
    one.delete_lease("work", true).unwrap();
    assert_eq!(containerd.blobs().len(), 1);
    assert_eq!(two.labels(&digest).unwrap(), Some(labels("two")));
    two.delete_lease("work", true).unwrap();
    two.delete_lease("work", true).unwrap();
    assert_eq!(containerd.blobs(), [""; 0]);
}

/// The lease of a bake that was killed ends by itself.
#[test]
fn what_a_killed_bake_left_is_collected() {
    let Some(containerd) = Containerd::start() else { return };
    for (hours, left) in [(1, 1), (-1, 0)] {
        let mut client = containerd.client("buildkit");
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let lease = format!("warmkit{hours}");
        client.work_under(&lease, until).unwrap();
        let mut ingest = client.write(&Digest::of(b"layer").to_string(), 5).unwrap().unwrap();
        ingest.write_all(b"layer").unwrap();
        ingest.finish().unwrap();
        drop(client);
        containerd.collect();
        assert_eq!(containerd.blobs().len(), left, "{hours} h");
        containerd.client("buildkit").delete_lease(&lease, true).unwrap();
    }
}

/// A snapshot that is not committed is held by the lease under which it was prepared, and by nothing else.
#[test]
fn what_is_being_unpacked_is_not_collected() {
    let Some(containerd) = Containerd::start() else { return };
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let mut cache = Handmade::default();
    cache.layer("file", None);
    let (digest, bytes) = cache.documents().1.swap_remove(0);
    let (digest, size) = (digest.to_string(), bytes.len() as u64);
    let mut client = containerd.client("buildkit");
    client.prepare("overlayfs", "held by nothing", None).unwrap();
    client.work_under("work", until).unwrap();
    let mut ingest = client.write(&digest, size).unwrap().unwrap();
    ingest.write_all(&bytes).unwrap();
    ingest.finish().unwrap();
    let mounts = client.prepare("overlayfs", "draft", None).unwrap();
    containerd.collect();
    let keys = client.snapshots("overlayfs").unwrap().into_iter().map(|snapshot| snapshot.key);
    assert_eq!(keys.collect::<Vec<_>>(), ["draft"]);
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let diff_id = client.apply(&digest, size, media_type, mounts).unwrap();
    assert!(diff_id.starts_with("sha256:") && diff_id != digest, "{diff_id}");
    assert!(client.commit("overlayfs", "layer", "draft").unwrap());
    containerd.collect();
    assert!(client.has_snapshot("overlayfs", "layer").unwrap());
    client.delete_lease("work", true).unwrap();
    containerd.assert_empty();
}

#[test]
fn a_snapshotter_that_is_not_there_is_named() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client("buildkit");
    assert!(!client.has_snapshot("overlayfs", "none").unwrap());
    let error = client.has_snapshot("fuse-overlayfs", "none").unwrap_err();
    assert!(matches!(&error, Error::NoSnapshotter { name } if name == "fuse-overlayfs"), "{error}");
}
