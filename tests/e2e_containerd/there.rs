//! What a containerd has already: it is used as it is, and nothing of it is lost.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use warmkit::containerd::{Blob, Client, Lease};

use crate::support::Scratch;
use crate::support::cases::assert_warm;
use crate::support::command::run;
use crate::support::containerd::Containerd;
use crate::support::handmade::{Handmade, write_keys};
use crate::support::skip::is_root;
use crate::{Bed, left, on, reads};

const MEDIA_TYPE: &str = "buildkit.io/blob/mediatype";
const DIFF_ID: &str = "buildkit.io/blob/annotation.containerd.io/uncompressed";

/// Puts a blob into a namespace, as another program may have.
fn put(client: &mut Client, digest: &str, bytes: &[u8]) {
    use std::io::Write as _;
    client.work_under("theirs", Timestamp::now() + SignedDuration::from_hours(1)).unwrap();
    let mut ingest = client.write(digest, bytes.len() as u64).unwrap().unwrap();
    ingest.write_all(bytes).unwrap();
    ingest.finish().unwrap();
}

/// All that a namespace has.
fn all(client: &Client) -> (Vec<Blob>, Vec<Lease>, usize) {
    let snapshots = client.snapshots("overlayfs").unwrap();
    (client.blobs().unwrap(), client.leases().unwrap(), snapshots.len())
}

/// What is there is used, whoever's it is; what fails leaves nothing; and no other namespace changes.
#[test]
fn takes_what_is_there_and_leaves_nothing_behind() {
    let Some(bed) = Bed::new() else { return };
    let (containerd, registry) = (&bed.containerd, &bed.world.registry);
    let (manifest, _) = registry.manifest(bed.case.name, "cache");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers: Vec<&str> =
        manifest["layers"].as_array().unwrap().iter().map(|l| l["digest"].as_str().unwrap()).collect();
    let mut theirs = containerd.client("theirs");
    put(&mut theirs, layers[0], &registry.blob(bed.case.name, layers[0]));
    theirs.label(layers[0], &BTreeMap::from([(MEDIA_TYPE.to_owned(), "theirs".to_owned())])).unwrap();
    theirs.prepare("overlayfs", "theirs", None).unwrap();
    let of_others = all(&theirs);

    let root = bed.baked("root");
    let kept = bed.kept();
    let refused = bed.bake(&root);
    assert_eq!(refused.status.code(), Some(7), "{}", refused.stderr);

    // The same again: nothing is fetched, which the registry has lost, or unpacked, of which there are no bytes.
    for layer in &layers {
        registry.lose_blob(bed.case.name, layer);
    }
    let bytes: Vec<_> = layers.iter().map(|layer| fs::read(containerd.blob(layer)).unwrap()).collect();
    for layer in &layers {
        fs::write(containerd.blob(layer), "").unwrap();
    }
    let again = bed.baked("again");
    layers.iter().zip(bytes).for_each(|(layer, bytes)| fs::write(containerd.blob(layer), bytes).unwrap());
    assert_eq!(bed.kept(), kept);
    reads::assert_sound(containerd, &again);
    let daemon = bed.start(&again);
    assert_warm(&daemon.build(&bed.case.request), &bed.origin);
    daemon.prune_all();
    daemon.stop();
    containerd.collect();
    assert_eq!(left(&kept, containerd).0, [layers[0].trim_start_matches("sha256:")], "after prune --all");
    assert_eq!(containerd.snapshots().len(), 1, "after prune --all");

    // Now they are missing, but for the one that another namespace has: what came before that is collected.
    let failed = bed.bake(&bed.root("failed"));
    assert_eq!(failed.status.code(), Some(3), "{}", failed.stderr);
    assert!(!bed.root("failed").exists());
    containerd.collect();
    let ours = containerd.client("buildkit");
    assert_eq!(ours.leases().unwrap(), [], "after a bake that failed");
    assert_eq!(ours.snapshots("overlayfs").unwrap(), [], "after a bake that failed");
    assert!(ours.labels(layers[0]).unwrap().is_none(), "after a bake that failed");
    assert_eq!(all(&theirs), of_others);
}

/// Labels of blobs are of who came first, or last: they are left as a daemon's own import leaves them, and mended where
/// they are of no use to anybody.
#[test]
fn blobs_with_labels_of_others() {
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let Some(bed) = Bed::new() else { return };
    let client = bed.containerd.client("buildkit");
    let root = bed.baked("root");
    // Those of layers; documents of images have no such labels.
    let layers = client.blobs().unwrap().into_iter().filter(|blob| blob.labels.contains_key(DIFF_ID));
    let ours: BTreeMap<_, _> = layers.map(|blob| (blob.digest, blob.labels)).collect();
    assert!(!ours.is_empty());
    let label = |blob: &str, name: &str, value: &str| {
        client.label(blob, &BTreeMap::from([(name.to_owned(), value.to_owned())])).unwrap();
    };
    let are = |media_type: &str| {
        for blob in ours.keys() {
            let labels = client.labels(blob).unwrap().unwrap();
            assert_eq!(labels[MEDIA_TYPE], media_type, "{blob}");
        }
    };

    // The same bytes by the name that another program has for them.
    for blob in ours.keys() {
        label(blob, MEDIA_TYPE, DOCKER);
    }
    reads::assert_sound(&bed.containerd, &root);
    let imported = bed.root("imported");
    let daemon = bed.start(&imported);
    let outcome = daemon.build(&bed.case.request.import_from(&bed.origin.cache));
    assert_eq!((outcome.imports, outcome.ran().len()), (1, 0), "{}", outcome.log);
    daemon.stop();
    are(DOCKER);
    reads::assert_sound(&bed.containerd, &imported);
    let again = bed.baked("again");
    are(DOCKER);
    reads::assert_sound(&bed.containerd, &again);

    // What no one can have found out.
    for (name, value) in [
        (MEDIA_TYPE, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (DIFF_ID, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ] {
        for blob in ours.keys() {
            label(blob, name, value);
        }
        let found = reads::found(&bed.containerd, &again);
        assert!(!found.is_empty() && found.iter().all(|kind| kind == "blob-label"), "{name}: {found:?}");
        let mended = bed.baked(&format!("mended{}", name.len()));
        for (blob, labels) in &ours {
            assert_eq!(client.labels(blob).unwrap().unwrap()[name], labels[name], "{blob}");
        }
        reads::assert_sound(&bed.containerd, &mended);
    }
    let daemon = bed.start(&again);
    assert_warm(&daemon.build(&bed.case.request), &bed.origin);
    daemon.stop();
}

/// A cache that tells another diff ID than a blob has that is there: nothing of what it tells stays with the blob.
#[test]
fn a_false_cache_marks_no_blob() {
    let Some(containerd) = Containerd::start().filter(|_| is_root()) else { return };
    let scratch = Scratch::new();
    let (cache, digest, bytes) = Handmade::of_another_diff_id("step");
    let keys = write_keys(&scratch.join("keys.db"), ["step"]);
    let (cache, digest) = (cache.write(&scratch.join("cache")), digest.to_string());

    let mut client = containerd.client("buildkit");
    put(&mut client, &digest, &bytes);
    let root = scratch.join("root");
    let mut bake = on(&containerd.address(), &root, &["bake", &cache, "--keys-from", &keys]);
    let failed = run(&mut bake, Duration::from_secs(60));
    assert_eq!(failed.status.code(), Some(5), "{}", failed.stderr);
    assert!(failed.stderr.contains("does not match its diff ID"), "{}", failed.stderr);
    assert!(!root.exists());
    assert_eq!(client.labels(&digest).unwrap(), Some(BTreeMap::new()));
}
