//! Roots made to hurt: whatever they hold, verification ends with findings or an error.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use warmkit::verify::{self, FindingKind};

use super::bolt_tree::{Node, Tree};
use super::support::Scratch;
use super::{Root, copy, good_root, judge, kinds};

/// A small generator, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

#[test]
fn random_bytes_in_every_database_end_in_findings() {
    let scratch = Scratch::new();
    let Some(good) = good_root(&scratch) else { return };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for name in ["cache", "records", "containerd", "snapshots"] {
        let root = copy(&good, &scratch, name);
        let path = root.database(name);
        let bytes = fs::read(&path).unwrap();
        for round in 0..150 {
            let mut damaged = bytes.clone();
            // One bit, some bytes, or all of a page.
            match round % 3 {
                0 => damaged[random.below(bytes.len())] ^= 1 << random.below(8),
                1 => {
                    for _ in 0..20 {
                        damaged[random.below(bytes.len())] = u8::try_from(random.below(256)).unwrap();
                    }
                }
                _ => {
                    let at = random.below(bytes.len() / 4096) * 4096;
                    for byte in &mut damaged[at..at + 4096] {
                        *byte = u8::try_from(random.below(256)).unwrap();
                    }
                }
            }
            fs::write(&path, damaged).unwrap();
            let begin = Instant::now();
            // What is in pages that nothing leads to is no fault; so: an answer, and soon.
            match judge(&root) {
                Ok(_) | Err(verify::Error::UnknownSchema { .. } | verify::Error::UnknownBucket { .. }) => {}
                Err(error) => panic!("{name}, round {round}: {error}"),
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{name}, round {round}");
        }
    }
}

#[test]
fn giants_and_depths_end_in_findings() {
    let scratch = Scratch::new();
    let Some(good) = good_root(&scratch) else { return };
    let cases: [super::damages::Damage; 6] = [
        ("deep JSON", FindingKind::EntryInvalid, |r| {
            r.edit("records", |t| {
                let id = t.at(&["_main"]).names()[0].clone();
                t.at(&["_main", &id]).put("cache.parent", "[".repeat(1 << 20));
            });
        }),
        ("a value of 64 MiB", FindingKind::EntryInvalid, |r| {
            r.edit("records", |t| {
                let id = t.at(&["_main"]).names()[0].clone();
                t.at(&["_main", &id]).put("cache.description", vec![b'"'; 64 << 20]);
            });
        }),
        ("a key that is no text", FindingKind::EntryInvalid, |r| {
            r.edit("cache", |t| {
                let empty = Node::Bucket(super::bolt_tree::Tree::default());
                t.at(&["_links"]).entries.insert(vec![0xff; 30_000], empty);
            });
        }),
        ("blobs a link to the root of all", FindingKind::StateFileType, |r| {
            fs::remove_dir_all(r.worker("content/blobs/sha256")).unwrap();
            symlink("/", r.worker("content/blobs/sha256")).unwrap();
        }),
        ("snapshots a circle of links", FindingKind::StateFileType, |r| {
            fs::remove_dir_all(r.worker("snapshots/snapshots")).unwrap();
            symlink("snapshots", r.worker("snapshots/snapshots")).unwrap();
        }),
        ("a file of a snapshot a terabyte long", FindingKind::LayerEntryContent, |r| {
            let file = r.worker("snapshots/snapshots/3/fs/docs/guide.md");
            OpenOptions::new().write(true).open(file).unwrap().set_len(1 << 40).unwrap();
        }),
    ];
    for (name, expected, damage) in cases {
        let root = copy(&good, &scratch, "hostile");
        damage(&root);
        let begin = Instant::now();
        let report = judge(&root).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(kinds(&report).contains(&expected), "{name}: {:#?}", report.findings);
        assert!(begin.elapsed() < Duration::from_secs(30), "{name}");
        fs::remove_dir_all(&root.0).unwrap();
    }
}

#[test]
fn a_long_chain_of_keys_needs_no_stack() {
    let scratch = Scratch::new();
    let Some(good) = good_root(&scratch) else { return };
    let root = copy(&good, &scratch, "long");
    let keys = 20_000;
    root.edit("cache", |t| {
        let digest = warmkit::digest::Digest::of(b"op");
        let bucket = |name: String| {
            let mut tree = super::bolt_tree::Tree::default();
            tree.put(name, "");
            Node::Bucket(tree)
        };
        for n in 0..keys {
            let (id, next) = (format!("{n:025}"), format!("{:025}", n + 1));
            let link = format!(r#"{{"Digest":"{digest}"}}@{next}"#);
            t.at(&["_links"]).entries.insert(id.clone().into_bytes(), bucket(link));
            t.at(&["_backlinks"]).entries.insert(next.into_bytes(), bucket(id));
        }
    });
    let report = judge(&root).unwrap();
    assert!(kinds(&report).contains(&FindingKind::LinkTargetMissing));
    assert!(!kinds(&report).contains(&FindingKind::LinkCycle));
    assert!(report.counts.keys > keys);
}

#[test]
fn what_is_no_root_or_in_use_is_an_error() {
    let scratch = Scratch::new();
    let empty = scratch.join("empty");
    fs::create_dir(&empty).unwrap();
    let error = |path: &std::path::Path| judge(&Root(path.to_owned())).unwrap_err();
    assert!(matches!(error(&empty), verify::Error::NotAStateDirectory { .. }));
    assert!(matches!(error(&scratch.join("absent")), verify::Error::Open { .. }));
    fs::create_dir(empty.join("containerd-overlayfs")).unwrap();
    assert!(matches!(error(&empty), verify::Error::ContainerdWorker { .. }));
    fs::create_dir(empty.join("runc-stargz")).unwrap();
    assert!(matches!(error(&empty), verify::Error::OtherSnapshotter { .. }));
    let engine = scratch.join("engine");
    fs::create_dir(&engine).unwrap();
    for name in ["cache.db", "containerdmeta.db", "metadata_v2.db"] {
        fs::write(engine.join(name), "").unwrap();
    }
    assert!(matches!(error(&engine), verify::Error::DockerEngine { .. }));

    let Some(good) = good_root(&scratch) else { return };
    let lock =
        OpenOptions::new().write(true).create(true).truncate(true).open(good.path("buildkitd.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let busy = error(&good.0);
    assert!(matches!(busy, verify::Error::Busy { .. }));
    assert!(busy.to_string().contains("holds buildkitd.lock locked; stop the daemon"), "{busy}");
    drop(lock);
    // A lock file that nobody holds is what a killed daemon leaves.
    assert!(judge(&good).unwrap().is_healthy());
}

/// A root of a schema that is not known is not judged, whichever database says so.
#[test]
fn roots_of_another_schema_are_an_error() {
    type Change = fn(&Root);
    let scratch = Scratch::new();
    let Some(good) = good_root(&scratch) else { return };
    let cases: [(Change, &str, &str); 7] = [
        (
            |r| r.edit("containerd", |t| t.at(&["v1"]).put("version", [100])),
            "runc-overlayfs/containerdmeta.db has schema version 50, known are 3 to 4",
            "containerd's own version",
        ),
        (
            |r| r.edit("containerd", |t| add(t, "v2")),
            "runc-overlayfs/containerdmeta.db has schema version 2, known is 1",
            "containerd's bucket",
        ),
        (
            |r| r.edit("snapshots", |t| add(t, "v2")),
            "runc-overlayfs/snapshots/metadata.db has schema version 2, known is 1",
            "the snapshotter's bucket",
        ),
        (
            |r| fs::rename(r.database("records"), r.worker("metadata_v3.db")).unwrap(),
            "runc-overlayfs/metadata_v3.db has schema version 3, known is 2",
            "a newer name of the records' database",
        ),
        (
            |r| fs::rename(r.database("records"), r.worker("metadata.db")).unwrap(),
            "runc-overlayfs/metadata.db has schema version 1, known is 2",
            "the name that it had long ago",
        ),
        (
            |r| r.edit("records", |t| add(t, "_layers")),
            "runc-overlayfs/metadata_v2.db has a bucket \"_layers\", known are _external, _index, _main",
            "one more kind of record",
        ),
        (
            |r| r.edit("cache", |t| add(t, "_version")),
            "cache.db has a bucket \"_version\", known are _backlinks, _byresult, _links, _result",
            "one more bucket of the solver",
        ),
    ];
    for (change, expected, name) in cases {
        let root = copy(&good, &scratch, "another");
        change(&root);
        let unknown = judge(&root).unwrap_err().to_string();
        let expected = format!("{expected}: the root is not read; a newer warmkit may know it");
        assert_eq!(unknown, expected, "{name}");
        let said = super::support::warmkit::verify(&["--json"], &root.0);
        assert_eq!(said.status.code(), Some(8), "{name}: {}", said.stderr);
        let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!((&json["error"]["exit_code"], &json["offline"]), (&8.into(), &serde_json::Value::Null));
        fs::remove_dir_all(&root.0).unwrap();
    }
    // What an old daemon left when it moved its records into metadata_v2.db is no schema of now.
    fs::write(good.worker("metadata.db"), "").unwrap();
    assert!(judge(&good).unwrap().is_healthy());
}

fn add(t: &mut Tree, bucket: &str) {
    t.entries.insert(bucket.into(), Node::Bucket(Tree::default()));
}
