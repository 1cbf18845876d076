//! Whether the databases of a root are of a schema that is known here.
//!
//! | database | what tells its schema | known |
//! |---|---|---|
//! | `runc-<snapshotter>/metadata_v<n>.db` | its name, and its buckets | 2 |
//! | `runc-<snapshotter>/containerdmeta.db` | its bucket `v<n>`, and `version` in there | 1; 3 (to `BuildKit` v0.18) and 4 |
//! | `runc-<snapshotter>/snapshots/metadata.db` | its bucket `v<n>` | 1 |
//! | `cache.db` | its buckets | |
//!
//! A root of another schema is not read: by older rules it would be misunderstood.
//!
//! Mirrors `worker/runc/runc.go`, `cache/metadata/metadata.go`, `solver/bboltcachestorage/storage.go` of
//! `BuildKit`, `core/metadata/db.go` and `core/snapshots/storage/bolt.go` of containerd.

use std::ops::RangeInclusive;
use std::path::Path;

use super::Error;
use super::files::Tree;
use crate::bolt::Database;

/// The version in the name of the database of cache records.
const RECORDS: RangeInclusive<i64> = 2..=2;
/// The version in the name of the bucket that has everything in containerd's databases.
const CONTAINERD_BUCKET: RangeInclusive<i64> = 1..=1;
/// Versions of containerd's metadata that were seen to be alike.
const CONTAINERD: RangeInclusive<i64> = 3..=4;
/// All that `metadata_v2.db` holds.
const RECORDS_BUCKETS: &[&str] = &["_external", "_index", "_main"];
/// All that `cache.db` holds.
const SOLVER_BUCKETS: &[&str] = &["_backlinks", "_byresult", "_links", "_result"];

fn unknown(database: &Path, found: i64, known: RangeInclusive<i64>) -> Error {
    Error::UnknownSchema { database: database.display().to_string(), found, known }
}

/// Looks at the names in the directory of a worker for a database of records that is not `metadata_v2.db`.
///
/// # Errors
/// A newer one is there, or only an older one.
pub(super) fn records_file(tree: &Tree, worker: &Path) -> Result<(), Error> {
    // What cannot be listed is a fault already.
    let Ok(entries) = tree.list(worker) else { return Ok(()) };
    let versions: Vec<i64> = entries
        .iter()
        .filter_map(|(name, _)| match name.0.to_str()?.strip_prefix("metadata")?.strip_suffix(".db")? {
            "" => Some(1),
            version => version.strip_prefix("_v")?.parse().ok(),
        })
        .collect();
    match versions.iter().max() {
        Some(&found) if !RECORDS.contains(&found) => {
            let name = if found == 1 { "metadata.db".to_owned() } else { format!("metadata_v{found}.db") };
            Err(unknown(&worker.join(name), found, RECORDS))
        }
        _ => Ok(()),
    }
}

/// Looks at the buckets of `metadata_v2.db`.
///
/// # Errors
/// One is not known.
pub(super) fn records(db: &Database, path: &Path) -> Result<(), Error> {
    buckets(db, path, RECORDS_BUCKETS)
}

/// Looks at the buckets of `cache.db`.
///
/// # Errors
/// One is not known.
pub(super) fn solver(db: &Database, path: &Path) -> Result<(), Error> {
    buckets(db, path, SOLVER_BUCKETS)
}

fn buckets(db: &Database, path: &Path, known: &'static [&'static str]) -> Result<(), Error> {
    let strange = names(db).into_iter().find(|name| !known.contains(&name.as_str()));
    match strange {
        Some(bucket) => Err(Error::UnknownBucket {
            database: path.display().to_string(),
            bucket,
            known: known.join(", "),
        }),
        None => Ok(()),
    }
}

/// Looks for a bucket `v<n>` of another version, in either of containerd's databases.
///
/// # Errors
/// There is one.
pub(super) fn containerd_bucket(db: &Database, path: &Path) -> Result<(), Error> {
    let versions = names(db).into_iter().filter_map(|name| name.strip_prefix('v')?.parse().ok());
    match versions.max() {
        Some(found) if !CONTAINERD_BUCKET.contains(&found) => Err(unknown(path, found, CONTAINERD_BUCKET)),
        _ => Ok(()),
    }
}

/// Looks at the version that containerd's metadata gives itself.
///
/// # Errors
/// It is not known.
pub(super) fn containerd_version(found: i64, path: &Path) -> Result<(), Error> {
    if CONTAINERD.contains(&found) { Ok(()) } else { Err(unknown(path, found, CONTAINERD)) }
}

/// The names of everything on the top level; what cannot be read was a fault when the file was opened.
fn names(db: &Database) -> Vec<String> {
    db.root().iter().flatten().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
}
