//! Reads from the databases what the order of reading follows from.
//!
//! ```text
//! cache.db             _result/<key>/<worker id>::<record id>     a record is the result of a key
//!                      _links/<key>/<link>@<key of a step>        a step has that key as an input
//! metadata_v2.db       _main/<record id>/cache.snapshot           a record's snapshot
//! containerdmeta.db    v1/buildkit/snapshots/<snapshotter>/<key>/name
//! snapshots/metadata.db   v1/snapshots/<name>/{id,parent}         its directory, and what is below
//! ```
//!
//! A daemon may be writing meanwhile, and no lock is taken. So nothing here is an error: what cannot be read,
//! or does not decode, is not known, and [`super::order`] has less to go by.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::files;
use super::order::{Facts, Record, Snapshot};
use crate::bolt::{self, BucketRef, Database, Item};
use crate::store::schema::{NAMESPACE, cache, containerd, metadata, snapshots as snapshotter};

/// How often a database is read that a commit has torn.
const ATTEMPTS: usize = 3;

/// Names of a worker's databases, from its directory.
pub(super) const RECORDS: &str = "metadata_v2.db";
pub(super) const CONTAINERD: &str = "containerdmeta.db";
pub(super) const SNAPSHOTTER: &str = "snapshots/metadata.db";

/// What the solver's database, at `solver`, and those of the worker in the directory `worker` say.
pub(super) fn read(root: &OwnedFd, solver: &Path, worker: &Path) -> Facts {
    let directory = worker.to_string_lossy();
    let kind = directory.strip_prefix("runc-").unwrap_or(&directory);
    let snapshots = attempt(root, &worker.join(SNAPSHOTTER), all_snapshots);
    let names = attempt(root, &worker.join(CONTAINERD), |db| snapshot_names(db, kind));
    let records = attempt(root, &worker.join(RECORDS), all_records);
    let steps = attempt(root, solver, steps_on);
    join(snapshots, &names, records, &steps)
}

/// What `read` finds in a database; what it is by default where the database cannot be read.
fn attempt<T: Default>(root: &OwnedFd, path: &Path, read: impl Fn(&Database) -> Result<T, bolt::Error>) -> T {
    let once = || {
        let (file, _) = files::open_file(root, path).ok()?;
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes).ok()?;
        read(&Database::from_bytes(bytes).ok()?).ok()
    };
    (0..ATTEMPTS).find_map(|_| once()).unwrap_or_default()
}

fn join(
    snapshots: BTreeMap<String, Snapshot>,
    names: &BTreeMap<String, String>,
    records: BTreeMap<String, Record>,
    steps: &BTreeMap<String, usize>,
) -> Facts {
    let records = records.into_iter().filter_map(|(id, record)| {
        let snapshot = names.get(&record.snapshot)?.clone();
        Some(Record { snapshot, steps: steps.get(&id).copied().unwrap_or_default(), ..record })
    });
    Facts { snapshots, records: records.collect() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The buckets in the bucket at `path`, by name.
fn buckets<'db>(db: &'db Database, path: &[&str]) -> Result<Vec<(&'db [u8], BucketRef<'db>)>, bolt::Error> {
    let path: Vec<_> = path.iter().map(|name| name.as_bytes()).collect();
    let Some(bucket) = db.root().path(&path)? else { return Ok(Vec::new()) };
    bucket
        .iter()
        .filter_map(|item| match item {
            Ok((name, Item::Bucket(bucket))) => Some(Ok((name, bucket))),
            Ok((_, Item::Value(_))) => None,
            Err(error) => Some(Err(error)),
        })
        .collect()
}

fn all_snapshots(db: &Database) -> Result<BTreeMap<String, Snapshot>, bolt::Error> {
    let mut found = BTreeMap::new();
    for (name, bucket) in buckets(db, &[snapshotter::V1, snapshotter::SNAPSHOTS])? {
        if let Some(id) = bucket.get(snapshotter::ID.as_bytes())?.and_then(uvarint) {
            let parent = bucket.get(snapshotter::PARENT.as_bytes())?.filter(|parent| !parent.is_empty());
            found.insert(text(name), Snapshot { id, parent: parent.map(text) });
        }
    }
    Ok(found)
}

/// The snapshotter's names of snapshots, by the keys that records have them under.
fn snapshot_names(db: &Database, kind: &str) -> Result<BTreeMap<String, String>, bolt::Error> {
    let mut found = BTreeMap::new();
    for (key, bucket) in buckets(db, &[containerd::V1, NAMESPACE, containerd::SNAPSHOTS, kind])? {
        if let Some(name) = bucket.get(containerd::NAME.as_bytes())? {
            found.insert(text(key), text(name));
        }
    }
    Ok(found)
}

/// All records by id, each with the key of its snapshot.
fn all_records(db: &Database) -> Result<BTreeMap<String, Record>, bolt::Error> {
    fn value<T: DeserializeOwned>(bucket: BucketRef<'_>, key: &str) -> Result<Option<T>, bolt::Error> {
        #[derive(serde::Deserialize)]
        struct Wrapped<T> {
            value: T,
        }
        let bytes = bucket.get(key.as_bytes())?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice::<Wrapped<T>>(bytes).ok()).map(|w| w.value))
    }
    let mut found = BTreeMap::new();
    for (id, bucket) in buckets(db, &[metadata::MAIN])? {
        let id = text(id);
        let kind: Option<String> = value(bucket, metadata::RECORD_TYPE)?;
        let images: Option<Vec<String>> = value(bucket, metadata::IMAGE_REFS)?;
        let record = Record {
            // Early releases did not write it; the record's id was the key.
            snapshot: value(bucket, metadata::SNAPSHOT)?.unwrap_or_else(|| id.clone()),
            frontend: kind.as_deref() == Some(metadata::FRONTEND),
            image: images.is_some_and(|images| !images.is_empty()),
            steps: 0,
        };
        found.insert(id, record);
    }
    Ok(found)
}

/// By record, how many steps have it as an input.
fn steps_on(db: &Database) -> Result<BTreeMap<String, usize>, bolt::Error> {
    let mut steps_on_key: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
    for (key, links) in buckets(db, &[cache::LINKS])? {
        for link in &links {
            let (link, _) = link?;
            if let Some(at) = link.iter().rposition(|&byte| byte == cache::LINK_SEPARATOR.as_bytes()[0]) {
                steps_on_key.entry(key).or_default().insert(&link[at + 1..]);
            }
        }
    }
    let mut steps: BTreeMap<String, BTreeSet<&[u8]>> = BTreeMap::new();
    for (key, results) in buckets(db, &[cache::RESULT])? {
        let Some(on_key) = steps_on_key.get(key) else { continue };
        for result in &results {
            let name = text(result?.0);
            if let Some((_, record)) = name.split_once(cache::RESULT_SEPARATOR) {
                steps.entry(record.to_owned()).or_default().extend(on_key);
            }
        }
    }
    Ok(steps.into_iter().map(|(record, steps)| (record, steps.len())).collect())
}

/// As Go's `binary.Uvarint` reads it.
fn uvarint(bytes: &[u8]) -> Option<u64> {
    let (last, others) = bytes.split_last()?;
    // The highest bits stand last, and only there is no bit that says that more follow.
    let begin = (*last < 0x80).then_some(u64::from(*last))?;
    others.iter().rev().try_fold(begin, |value, byte| {
        let value = value.checked_mul(0x80)?;
        (*byte >= 0x80).then_some(value | u64::from(byte & 0x7f))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_go_writes_them() {
        let cases: [(&[u8], Option<u64>); 8] = [
            (&[0], Some(0)),
            (&[5], Some(5)),
            (&[0x80, 1], Some(128)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(u64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
            (&[], None),
            (&[0x80], None),
            (&[1, 1], None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(uvarint(bytes), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn what_is_not_there_or_no_database_is_not_known() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("runc-overlayfs/snapshots")).unwrap();
        let root = files::open_root(scratch.path()).unwrap();
        let facts = || read(&root, Path::new("cache.db"), Path::new("runc-overlayfs"));
        assert_eq!(facts(), Facts::default());
        for name in ["cache.db", "runc-overlayfs/metadata_v2.db", "runc-overlayfs/snapshots/metadata.db"] {
            std::fs::write(scratch.path().join(name), [0xed; 40_000]).unwrap();
        }
        assert_eq!(facts(), Facts::default());
    }
}
