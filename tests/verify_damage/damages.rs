//! The damages, each with the finding that must name it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};

use rustix::fs::{CWD, FileType, Mode};
use warmkit::digest::Digest;
use warmkit::verify::FindingKind::{self, *};

use super::Root;
use super::bolt_tree::{Node, Tree};
use super::parts::*;

/// Its name, the finding that must name it, and how it is done.
pub type Damage = (&'static str, FindingKind, fn(&Root));

/// Every damage.
pub const ALL: &[Damage] = &[
    // The files of the root.
    ("worker id removed", StateFileMissing, |r| fs::remove_file(r.worker("workerid")).unwrap()),
    ("worker id not an id", WorkerIdInvalid, |r| overwrite(&r.worker("workerid"), b"worker\n")),
    ("worker id of another worker", ResultWorker, |r| {
        overwrite(&r.worker("workerid"), NOBODY.as_bytes());
    }),
    ("cache.db removed", StateFileMissing, |r| fs::remove_file(r.path("cache.db")).unwrap()),
    ("content removed", StateFileMissing, |r| fs::remove_dir_all(r.worker("content")).unwrap()),
    ("cache.db a link out of the root", StateFileType, |r| {
        let outside = r.path("../outside.db");
        fs::rename(r.path("cache.db"), &outside).unwrap();
        symlink(&outside, r.path("cache.db")).unwrap();
    }),
    ("metadata_v2.db a named pipe", StateFileType, |r| pipe(&r.database("records"))),
    ("snapshots a link", StateFileType, |r| {
        fs::rename(r.worker("snapshots"), r.worker("elsewhere")).unwrap();
        symlink("elsewhere", r.worker("snapshots")).unwrap();
    }),
    ("cache.db larger than any", StateFileUnreadable, |r| {
        OpenOptions::new().write(true).open(r.path("cache.db")).unwrap().set_len(5 << 30).unwrap();
    }),
    ("cache.db readable by all", StateFileMode, |r| mode(&r.path("cache.db"), 0o644)),
    ("a blob that can be executed", StateFileMode, |r| mode(&some_blob(r), 0o755)),
    ("containerdmeta.db of another owner", StateFileOwner, |r| {
        chown(r.database("containerd"), Some(12345), None).unwrap();
    }),
    ("a snapshot directory of another owner", StateFileOwner, |r| {
        chown(r.worker("snapshots/snapshots/3"), Some(12345), None).unwrap();
    }),
    // Bolt files.
    ("cache.db empty", DatabaseUnreadable, |r| overwrite(&r.path("cache.db"), b"")),
    ("metadata_v2.db of zeros", DatabaseUnreadable, |r| {
        let length = fs::metadata(r.database("records")).unwrap().len();
        overwrite(&r.database("records"), &vec![0; usize::try_from(length).unwrap()]);
    }),
    ("a bit flipped in a meta page", DatabaseMetaPage, |r| flip(&r.path("cache.db"), 16 + 40)),
    ("a bit flipped in a page of cache.db", DatabasePage, |r| flip_page(&r.database("cache"))),
    ("a bit flipped in a page of metadata_v2.db", DatabasePage, |r| flip_page(&r.database("records"))),
    ("a bit flipped in a page of containerdmeta.db", DatabasePage, |r| flip_page(&r.database("containerd"))),
    ("a bit flipped in a page of snapshots/metadata.db", DatabasePage, |r| {
        flip_page(&r.database("snapshots"));
    }),
    ("containerdmeta.db cut", DatabasePage, |r| {
        let path = r.database("containerd");
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 4096).unwrap();
    }),
    ("a page in use in the freelist", DatabaseFreelist, |r| free_in_use(&r.path("cache.db"))),
    ("history.db overwritten", DatabaseUnreadable, |r| {
        fs::write(r.path("history.db"), "history").unwrap();
        mode(&r.path("history.db"), 0o600);
    }),
    ("no index of records", BucketMissing, |r| r.edit("records", |t| drop(t.remove("_index")))),
    ("no backlinks", BucketMissing, |r| r.edit("cache", |t| drop(t.remove("_backlinks")))),
    ("no namespace", BucketMissing, |r| r.edit("containerd", |t| drop(t.at(&["v1"]).remove("buildkit")))),
    ("a value among the records", EntryType, |r| r.edit("records", |t| t.at(&["_main"]).put(NOBODY, "x"))),
    ("a bucket for a size", EntryType, |r| {
        r.edit("containerd", |t| {
            let blob = first(t.at(&BLOBS));
            blob.entries.insert(b"size".to_vec(), Node::Bucket(Tree::default()));
        });
    }),
    ("a bit flipped in a value's JSON", EntryInvalid, |r| {
        r.edit("records", |t| {
            let record = first(t.at(&["_main"]));
            let mut value = record.value("cache.diffID");
            value[0] ^= 1;
            record.put("cache.diffID", value);
        });
    }),
    ("a value of another type", EntryInvalid, |r| {
        r.edit("records", |t| first(t.at(&["_main"])).put("cache.createdAt", r#"{"value":"now"}"#));
    }),
    ("a digest too short", EntryInvalid, |r| {
        r.edit("records", |t| first(t.at(&["_main"])).put("cache.chainID", r#"{"value":"sha256:ab"}"#));
    }),
    ("a time cut", EntryInvalid, |r| {
        r.edit("containerd", |t| {
            let snapshot = first(t.at(&SNAPSHOTS));
            let time = snapshot.value("createdat");
            snapshot.put("createdat", &time[..14]);
        });
    }),
    ("a number that never ends", EntryInvalid, |r| {
        r.edit("snapshots", |t| first(t.at(&STORED)).put("inodes", [0x80; 9]));
    }),
    ("a result's JSON cut", EntryInvalid, |r| {
        r.edit("cache", |t| {
            let results = first(t.at(&["_result"]));
            let name = results.names()[0].clone();
            results.put(&name, "{");
        });
    }),
    ("a snapshot of unknown kind", EntryInvalid, |r| {
        r.edit("snapshots", |t| first(t.at(&STORED)).put("kind", [7]));
    }),
    // Records.
    ("diff ID removed", RecordValueMissing, |r| {
        r.edit("records", |t| drop(first(t.at(&["_main"])).remove("cache.diffID")));
    }),
    ("creation time removed", RecordValueMissing, |r| {
        r.edit("records", |t| drop(first(t.at(&["_main"])).remove("cache.createdAt")));
    }),
    ("parent that does not exist", RecordParentMissing, |r| {
        r.edit("records", |t| {
            let (_, child) = pair(t);
            json(t.at(&["_main", &child]), "cache.parent", NOBODY);
        });
    }),
    ("record that is its own grandparent", RecordParentCycle, |r| {
        r.edit("records", |t| {
            let (parent, child) = pair(t);
            json(t.at(&["_main", &parent]), "cache.parent", &child);
        });
    }),
    ("data in a mutable record that does not exist", RecordMutableMissing, |r| {
        let mut key = String::new();
        r.edit("records", |t| {
            let leaf = leaf(t);
            let record = t.at(&["_main", &leaf]);
            json(record, "cache.equalMutable", NOBODY);
            key = string(record, "cache.snapshot");
        });
        r.edit("containerd", |t| remove_snapshot(t, &key));
    }),
    ("chain ID of another layer", RecordChainId, |r| {
        r.edit("records", |t| indexed(t, "cache.chainID", "chainid:"));
    }),
    ("blob chain ID of another layer", RecordBlobChainId, |r| {
        r.edit("records", |t| indexed(t, "cache.blobChainID", "blobchainid:"));
    }),
    ("layer identity of another layer", RecordLayerIdentity, |r| {
        r.edit("records", |t| json(first(t.at(&["_main"])), "cache.layerIdentity", NOTHING));
    }),
    ("snapshot key of another layer", RecordSnapshotKey, |r| {
        r.edit("records", |t| {
            let (parent, child) = pair(t);
            let key = string(t.at(&["_main", &parent]), "cache.snapshot");
            json(t.at(&["_main", &child]), "cache.snapshot", &key);
        });
    }),
    ("index entry removed", IndexMissing, |r| {
        r.edit("records", |t| {
            let index = t.at(&["_index"]);
            let name = index.names()[0].clone();
            index.remove(name);
        });
    }),
    ("index entry of no record", IndexOrphaned, |r| {
        r.edit("records", |t| t.at(&["_index"]).put(format!("chainid:{NOTHING}::{NOBODY}"), ""));
    }),
    ("content hashes of no record", ExternalOrphaned, |r| {
        r.edit("records", |t| {
            t.at(&["_external"]).entries.insert(NOBODY.into(), Node::Bucket(Tree::default()));
        });
    }),
    ("record being deleted", RecordDeleted, |r| {
        r.edit("records", |t| {
            let leaf = leaf(t);
            t.at(&["_main", &leaf]).put("cache.deleted", r#"{"value":true}"#);
        });
    }),
    ("mutable record without snapshot", RecordUnfinished, |r| {
        r.edit("records", |t| {
            let mut record = Tree::default();
            json(&mut record, "cache.snapshot", NOBODY);
            record.put("cache.createdAt", r#"{"value":1}"#);
            t.at(&["_main"]).entries.insert(NOBODY.into(), Node::Bucket(record));
        });
    }),
    ("record that only a registry can fill", RecordLazy, |r| {
        let (digest, key) = make_lazy(r);
        r.edit("containerd", |t| {
            t.at(&BLOBS).remove(&digest);
            remove_snapshot(t, &key);
        });
        fs::remove_file(blob_path(r, &digest)).unwrap();
    }),
    // Leases.
    ("lease removed", LeaseMissing, |r| {
        r.edit("containerd", |t| {
            let leases = t.at(&LEASES);
            let id = leases.names()[0].clone();
            leases.remove(id);
        });
    }),
    ("snapshot taken out of its lease", SnapshotNotLeased, |r| {
        r.edit("containerd", |t| drop(first(t.at(&LEASES)).remove("snapshots")));
    }),
    ("blob taken out of its lease", BlobNotLeased, |r| {
        r.edit("containerd", |t| drop(first(t.at(&LEASES)).remove("content")));
    }),
    ("lease of no record", LeaseOrphaned, |r| {
        r.edit("containerd", |t| {
            let leases = t.at(&LEASES);
            let lease = leases.entries.values().next().unwrap().clone();
            leases.entries.insert(NOBODY.into(), lease);
        });
    }),
    // Snapshots.
    ("snapshot removed from containerd's metadata", SnapshotMissing, |r| {
        r.edit("containerd", |t| {
            let key = leaf_snapshot(t);
            remove_snapshot(t, &key);
        });
    }),
    ("snapshot removed from the snapshotter's database", SnapshotNameMissing, |r| {
        r.edit("snapshots", |t| {
            let name = leaf_stored(t);
            t.at(&STORED).remove(name);
        });
    }),
    ("snapshot of a record under another name", SnapshotNameMissing, |r| {
        let next = r.next_name();
        r.edit("snapshots", |t| {
            let name = leaf_stored(t);
            t.at(&STORED).rename(&name, &next);
        });
    }),
    ("two snapshots of one name", SnapshotNameShared, |r| {
        r.edit("containerd", |t| {
            let snapshots = t.at(&SNAPSHOTS);
            let names = snapshots.names();
            let name = snapshots.at(&[&names[0]]).value("name");
            snapshots.at(&[&names[1]]).put("name", name);
        });
    }),
    ("parent of a snapshot does not exist", SnapshotParentMissing, |r| {
        r.edit("containerd", |t| {
            let key = leaf_snapshot(t);
            t.at(&SNAPSHOTS).at(&[&key]).put("parent", NOBODY);
        });
    }),
    ("snapshot moved below another, in all stores", SnapshotParent, |r| {
        let (key, name, sibling_name) = move_snapshot(r);
        assert!(!key.is_empty());
        r.edit("snapshots", |t| reparent(t, &name, &sibling_name));
    }),
    ("snapshot moved below another, in the snapshotter's database", SnapshotStoreParent, |r| {
        let mut names = (String::new(), String::new());
        r.edit("containerd", |t| {
            let (_, key, other) = three(t);
            names = (name_of(t, &key), name_of(t, &other));
        });
        r.edit("snapshots", |t| reparent(t, &names.0, &names.1));
    }),
    ("snapshots in a circle", SnapshotParentCycle, |r| {
        r.edit("containerd", |t| {
            let snapshots = t.at(&SNAPSHOTS);
            let child = child_of(snapshots);
            let parent = snapshots.at(&[&child]).text("parent");
            snapshots.at(&[&parent]).put("parent", &child);
        });
    }),
    ("snapshot not among its parent's children", SnapshotChildMissing, |r| {
        r.edit("containerd", |t| {
            let snapshots = t.at(&SNAPSHOTS);
            let child = child_of(snapshots);
            let parent = snapshots.at(&[&child]).text("parent");
            snapshots.at(&[&parent, "children"]).remove(&child);
        });
    }),
    ("snapshot not committed", SnapshotKind, |r| {
        r.edit("snapshots", |t| first(t.at(&STORED)).put("kind", [2]));
    }),
    ("two snapshots with one directory", SnapshotIdShared, |r| {
        r.edit("snapshots", |t| {
            let names = t.at(&STORED).names();
            let id = t.at(&STORED).at(&[&names[0]]).value("id");
            t.at(&STORED).at(&[&names[1]]).put("id", id);
        });
    }),
    ("sequence of directories too low", SequenceTooLow, |r| {
        r.edit("snapshots", |t| t.at(&STORED).sequence = 1);
    }),
    ("sequence of names too low", SequenceTooLow, |r| {
        r.edit("containerd", |t| t.at(&SNAPSHOTS).sequence = 1);
    }),
    ("entry of the parents' index removed", SnapshotParentsIndex, |r| {
        r.edit("snapshots", |t| {
            let parents = t.at(&["v1", "parents"]);
            let key = parents.entries.keys().next().unwrap().clone();
            parents.remove(key);
        });
    }),
    ("entry of the parents' index of nobody", SnapshotParentsIndex, |r| {
        r.edit("snapshots", |t| t.at(&["v1", "parents"]).put([99, 0, 100], "buildkit/1/x"));
    }),
    ("snapshot directory removed", SnapshotDirectoryMissing, |r| {
        fs::remove_dir_all(r.worker("snapshots/snapshots/3")).unwrap();
    }),
    ("fs removed", SnapshotDirectoryMissing, |r| {
        fs::remove_dir_all(r.worker("snapshots/snapshots/3/fs")).unwrap();
    }),
    ("fs a link out of the root", SnapshotDirectoryMissing, |r| {
        let fs = r.worker("snapshots/snapshots/3/fs");
        std::fs::rename(&fs, r.path("../outside")).unwrap();
        symlink(r.path("../outside"), &fs).unwrap();
    }),
    ("work removed", SnapshotDirectoryMissing, |r| {
        fs::remove_dir(r.worker("snapshots/snapshots/3/work")).unwrap();
    }),
    ("two snapshot directories swapped", LayerEntryMissing, |r| {
        let at = |n: &str| r.worker("snapshots/snapshots").join(n);
        fs::rename(at("3"), at("x")).unwrap();
        fs::rename(at("1"), at("3")).unwrap();
        fs::rename(at("x"), at("1")).unwrap();
    }),
    ("file added to a snapshot", SnapshotInodes, |r| {
        fs::write(r.worker("snapshots/snapshots/3/fs/added"), "").unwrap();
    }),
    ("snapshot that nothing holds", SnapshotUnused, |r| {
        r.edit("containerd", |t| {
            let key = leaf_snapshot(t);
            let mut copy = t.at(&SNAPSHOTS).at(&[&key]).clone();
            let name = copy.text("name").replace(&key, NOBODY);
            copy.put("name", &name);
            let parent = copy.text("parent");
            t.at(&SNAPSHOTS).at(&[&parent, "children"]).put(NOBODY, "");
            t.at(&SNAPSHOTS).entries.insert(NOBODY.into(), Node::Bucket(copy));
        });
    }),
    ("snapshot that containerd does not know", SnapshotUnknown, |r| {
        r.edit("snapshots", |t| {
            let mut copy = first(t.at(&STORED)).clone();
            copy.entries.remove(&b"parent"[..]);
            copy.put("id", [99]);
            t.at(&STORED).sequence = 99;
            t.at(&STORED).entries.insert(b"buildkit/99/x".to_vec(), Node::Bucket(copy));
        });
    }),
    ("snapshot whose commit did not end", SnapshotUnfinished, |r| {
        let next = r.next_name();
        r.edit("containerd", |t| {
            let key = leaf_snapshot(t);
            let mut copy = t.at(&SNAPSHOTS).at(&[&key]).clone();
            let name = copy.text("name").replace(&key, NOBODY);
            copy.put("name", &name);
            copy.entries.remove(&b"parent"[..]);
            t.at(&SNAPSHOTS).entries.insert(NOBODY.into(), Node::Bucket(copy));
        });
        r.edit("snapshots", |t| {
            let mut copy = first(t.at(&STORED)).clone();
            copy.entries.remove(&b"parent"[..]);
            copy.put("id", [99]);
            t.at(&STORED).sequence = 99;
            t.at(&STORED).entries.insert(next.into(), Node::Bucket(copy));
        });
    }),
    ("directory of no snapshot", SnapshotDirectoryOrphaned, |r| {
        fs::create_dir(r.worker("snapshots/snapshots/new-123")).unwrap();
    }),
    ("directory of a snapshot that is to come", SnapshotDirectoryTaken, |r| {
        let next = r.read("snapshots").at(&STORED).sequence + 1;
        fs::create_dir_all(r.worker(&format!("snapshots/snapshots/{next}/fs"))).unwrap();
    }),
    ("empty directory of a snapshot that is to come", SnapshotDirectoryOrphaned, |r| {
        let next = r.read("snapshots").at(&STORED).sequence + 1;
        fs::create_dir(r.worker(&format!("snapshots/snapshots/{next}"))).unwrap();
    }),
    ("child that does not exist", SnapshotChildGone, |r| {
        r.edit("containerd", |t| {
            let snapshots = t.at(&SNAPSHOTS);
            let child = child_of(snapshots);
            let parent = snapshots.at(&[&child]).text("parent");
            snapshots.at(&[&parent, "children"]).put("gone", "");
        });
    }),
    // Blobs.
    ("blob removed from containerd's metadata", BlobMissing, |r| {
        r.edit("containerd", |t| {
            let digest = t.at(&BLOBS).names()[0].clone();
            t.at(&BLOBS).remove(digest);
        });
    }),
    ("blob file removed", BlobFileMissing, |r| fs::remove_file(some_blob(r)).unwrap()),
    ("blob truncated", BlobSize, |r| {
        let blob = some_blob(r);
        let bytes = fs::read(&blob).unwrap();
        overwrite(&blob, &bytes[..bytes.len() - 1]);
    }),
    ("a bit flipped in a blob", BlobDigest, |r| flip(&some_blob(r), 20)),
    ("blob a link out of the root", StateFileType, |r| {
        let blob = some_blob(r);
        fs::rename(&blob, r.path("../outside")).unwrap();
        symlink(r.path("../outside"), &blob).unwrap();
    }),
    ("blob a named pipe", StateFileType, |r| pipe(&some_blob(r))),
    ("size of a blob wrong in its entry", BlobSize, |r| {
        r.edit("containerd", |t| first(t.at(&BLOBS)).put("size", [2]));
    }),
    ("size of a blob wrong in its record", RecordBlobSize, |r| {
        r.edit("records", |t| first(t.at(&["_main"])).put("cache.blobsize", r#"{"value":1}"#));
    }),
    ("diff ID of a blob's label wrong", BlobLabel, |r| {
        r.edit("containerd", |t| {
            let label = "buildkit.io/blob/annotation.containerd.io/uncompressed";
            first(t.at(&BLOBS)).at(&["labels"]).put(label, NOTHING);
        });
    }),
    ("labels of a blob removed", BlobLabelMissing, |r| {
        r.edit("containerd", |t| drop(first(t.at(&BLOBS)).remove("labels")));
    }),
    ("blob file that nobody knows", BlobFileOrphaned, |r| {
        let path = r.worker("content/blobs/sha256").join(Digest::of(b"x").hex());
        fs::write(path, "x").unwrap();
    }),
    ("blob that nothing holds", BlobUnused, |r| {
        let digest = Digest::of(b"x");
        let path = r.worker("content/blobs/sha256").join(digest.hex());
        fs::write(path, "x").unwrap();
        r.edit("containerd", |t| {
            let mut blob = first(t.at(&BLOBS)).clone();
            blob.put("size", [2]);
            blob.entries.remove(&b"labels"[..]);
            t.at(&BLOBS).entries.insert(digest.to_string().into_bytes(), Node::Bucket(blob));
        });
    }),
    ("transfer that was not finished", IngestLeft, |r| {
        r.edit("containerd", |t| {
            let mut ingests = Tree::default();
            ingests.entries.insert(b"ref".to_vec(), Node::Bucket(Tree::default()));
            let content = t.at(&["v1", "buildkit", "content"]);
            content.entries.insert(b"ingests".to_vec(), Node::Bucket(ingests));
        });
    }),
    // cache.db
    ("result of a record that does not exist", ResultRecordMissing, |r| {
        r.edit("cache", |t| {
            let record = t.at(&["_byresult"]).names()[0].clone();
            let (worker, _) = record.split_once("::").unwrap();
            t.replace(&record, &format!("{worker}::{NOBODY}"));
        });
    }),
    ("result of a local source that is gone", ResultStale, |r| {
        r.edit("cache", |t| {
            let worker = t.at(&["_byresult"]).names()[0].split_once("::").unwrap().0.to_owned();
            let key = format!("random:{}", &NOTHING[7..]);
            let result = format!("{worker}::{NOBODY}");
            let value = format!(r#"{{"CreatedAt":"2026-01-02T03:04:05Z","ID":"{result}"}}"#);
            let bucket = |name: &str, value: &str| {
                let mut tree = Tree::default();
                tree.put(name, value);
                Node::Bucket(tree)
            };
            t.at(&["_result"]).entries.insert(key.clone().into_bytes(), bucket(&result, &value));
            t.at(&["_byresult"]).entries.insert(result.into_bytes(), bucket(&key, ""));
            t.at(&["_links"]).entries.insert(key.into_bytes(), Node::Bucket(Tree::default()));
        });
    }),
    ("result whose value names another", ResultValue, |r| {
        r.edit("cache", |t| {
            let results = first(t.at(&["_result"]));
            let name = results.names()[0].clone();
            let value = results.text(&name).replace("::", "::a");
            results.put(&name, value);
        });
    }),
    ("result not in the index by results", ByResultMissing, |r| {
        r.edit("cache", |t| {
            let name = t.at(&["_byresult"]).names()[0].clone();
            t.at(&["_byresult"]).remove(name);
        });
    }),
    ("index by results names a key without it", ByResultOrphaned, |r| {
        r.edit("cache", |t| first(t.at(&["_byresult"])).put(NOBODY, ""));
    }),
    ("key without a bucket of links", KeyMissing, |r| {
        r.edit("cache", |t| {
            let key = end_key(t);
            t.at(&["_links"]).remove(key);
        });
    }),
    ("link to a key that does not exist", LinkTargetMissing, |r| {
        r.edit("cache", |t| {
            let key = end_key(t);
            t.at(&["_links"]).remove(key);
        });
    }),
    ("way back removed", BacklinkMissing, |r| {
        r.edit("cache", |t| {
            let key = t.at(&["_backlinks"]).names()[0].clone();
            t.at(&["_backlinks"]).remove(key);
        });
    }),
    ("way back without a link", BacklinkOrphaned, |r| {
        r.edit("cache", |t| first(t.at(&["_backlinks"])).put(NOBODY, ""));
    }),
    ("keys in a circle", LinkCycle, |r| r.edit("cache", circle)),
    ("keys in a circle, where a daemon ran", LinkLoop, |r| {
        // Any database will do: that it is there says that a daemon was.
        fs::copy(r.path("cache.db"), r.path("history.db")).unwrap();
        r.edit("cache", circle);
    }),
    ("link by a later input alone", LinkInputMissing, |r| {
        r.edit("cache", |t| change_link(t, |json| json.replacen('{', r#"{"Input":3,"#, 1)));
    }),
    ("operation digest of another operation", KeyId, |r| {
        r.edit("cache", |t| {
            change_link(t, |json| {
                let at = json.find(r#""Digest":"sha256:"#).unwrap() + 17;
                let other = if &json[at..=at] == "0" { "1" } else { "0" };
                format!("{}{other}{}", &json[..at], &json[at + 1..])
            });
        });
    }),
    ("operation digest that is none", EntryInvalid, |r| {
        r.edit("cache", |t| change_link(t, |json| json.replace("sha256:", "sha25:")));
    }),
    ("selector dropped or added", KeyId, |r| {
        r.edit("cache", |t| {
            change_link(t, |json| {
                let end = json.find(r#","Selector""#).unwrap_or(json.len() - 1);
                let selector =
                    if end == json.len() - 1 { format!(r#","Selector":"{NOTHING}""#) } else { String::new() };
                format!("{}{selector}}}", &json[..end])
            });
        });
    }),
    ("link written in another way", EntryInvalid, |r| {
        r.edit("cache", |t| change_link(t, |json| json.replace(r#""Digest":"#, r#""Digest": "#)));
    }),
    ("output of another number", KeyId, |r| {
        r.edit("cache", |t| change_link(t, |json| json.replace(r#""Digest":"#, r#""Output":1,"Digest":"#)));
    }),
    // Layers against snapshots.
    ("blob that is no layer", LayerUnreadable, |r| {
        let old = fs::read(some_blob(r)).unwrap();
        let new = vec![b'x'; old.len()];
        let (from, to) = (Digest::of(&old).to_string(), Digest::of(&new).to_string());
        fs::remove_file(some_blob(r)).unwrap();
        fs::write(blob_path(r, &to), new).unwrap();
        for database in ["records", "containerd"] {
            r.edit(database, |t| t.replace(&from, &to));
        }
    }),
    ("diff ID of another layer in all stores", LayerDiffId, |r| {
        let diff_id = string(first(r.read("records").at(&["_main"])), "cache.diffID");
        for database in ["records", "containerd"] {
            r.edit(database, |t| t.replace(&diff_id, NOTHING));
        }
    }),
    ("file removed from a snapshot", LayerEntryMissing, |r| fs::remove_file(a_file(r)).unwrap()),
    ("whiteout removed from a snapshot", LayerEntryMissing, |r| {
        fs::remove_file(find(r, &|m| m.file_type().is_char_device())).unwrap();
    }),
    ("directory added to a snapshot", LayerEntryExtra, |r| {
        fs::create_dir(a_file(r).with_file_name("added")).unwrap();
    }),
    ("file replaced by a directory", LayerEntryType, |r| {
        let file = a_file(r);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
    }),
    ("file replaced by a link to one outside", LayerEntryType, |r| {
        let file = a_file(r);
        fs::rename(&file, r.path("../outside")).unwrap();
        symlink(r.path("../outside"), &file).unwrap();
    }),
    ("mode of a file", LayerEntryMode, |r| {
        let file = a_file(r);
        let bits = fs::metadata(&file).unwrap().mode() ^ 0o111;
        mode(&file, bits & 0o7777);
    }),
    ("setuid on a file", LayerEntryMode, |r| {
        let file = a_file(r);
        mode(&file, (fs::metadata(&file).unwrap().mode() & 0o7777) | 0o4000);
    }),
    ("owner of a file", LayerEntryOwner, |r| chown(a_file(r), Some(4711), None).unwrap()),
    ("group of a directory", LayerEntryOwner, |r| {
        chown(a_file(r).parent().unwrap(), None, Some(4711)).unwrap();
    }),
    ("time of a file, by a nanosecond", LayerEntryTime, |r| {
        let file = a_file(r);
        let time = fs::metadata(&file).unwrap().modified().unwrap() + std::time::Duration::from_nanos(1);
        OpenOptions::new().write(true).open(&file).unwrap().set_modified(time).unwrap();
    }),
    ("extended attribute added", LayerEntryXattrs, |r| xattr(&a_file(r), "trusted.x", b"y")),
    ("directory made opaque", LayerEntryXattrs, |r| {
        let directory = a_file(r);
        xattr(directory.parent().unwrap(), "trusted.overlay.opaque", b"y");
    }),
    ("a bit flipped in a file", LayerEntryContent, |r| {
        let file = a_file(r);
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        flip(&file, 0);
        OpenOptions::new().write(true).open(&file).unwrap().set_modified(time).unwrap();
    }),
    ("file longer by a byte", LayerEntryContent, |r| {
        OpenOptions::new().append(true).open(a_file(r)).unwrap().write_all(b"x").unwrap();
    }),
    ("file of holes", LayerEntryContent, |r| {
        let file = a_file(r);
        let length = fs::metadata(&file).unwrap().len();
        overwrite(&file, b"");
        OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
    }),
    ("whiteout made a device", LayerEntryContent, |r| {
        let path = find(r, &|m| m.file_type().is_char_device());
        fs::remove_file(&path).unwrap();
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), device).unwrap();
    }),
    ("two files made one", LayerEntryLink, |r| {
        let file = a_file(r);
        let names = fs::read_dir(file.parent().unwrap()).unwrap();
        let other = names.map(|e| e.unwrap().path()).find(|p| *p != file && p.is_file()).unwrap();
        fs::remove_file(&other).unwrap();
        fs::hard_link(&file, &other).unwrap();
    }),
];
