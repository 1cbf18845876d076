//! The target: a `BuildKit` state directory, one file per store.
//!
//! | file | store |
//! |---|---|
//! | `state_dir` | the tree: paths and modes |
//! | `content` | layer blobs |
//! | `snapshots` | `snapshots/metadata.db`, the snapshotter's own store |
//! | `containerdmeta` | `containerdmeta.db`: blobs, snapshots and leases as containerd has them |
//! | `metadata` | `metadata_v2.db`: cache records |
//! | `cache` | `cache.db`: cache keys, links, results |
//!
//! `schema` names what is in the databases, `ids` derives ids from content. [`write_databases`] puts
//! [`Contents`] into all of them; blobs and snapshot directories are written before, by others.

mod cache;
mod containerdmeta;
pub mod content;
mod encode;
pub mod ids;
mod metadata;
pub mod schema;
mod snapshots;
pub mod state_dir;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::bolt;
use crate::digest::{BlobChainId, ChainId, DiffId, Digest, OpDigest};
use crate::oci::Descriptor;

pub use crate::bolt::PageSize;
pub use containerdmeta::{is_same_label, labels};
pub use content::BlobWriter;
pub use ids::{KeyId, RecordId, SnapshotKey, WorkerId};
pub use state_dir::{Layers, Snapshotter, StateDir, StateFile};

/// Why a store cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be created, or did not get its mode.
    #[error("cannot create {}", path.display())]
    Create {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A database could not be written.
    #[error("cannot write {}", path.display())]
    Database {
        /// Which one.
        path: PathBuf,
        /// What failed.
        #[source]
        source: bolt::Error,
    },
    /// The contents name something that is not among them.
    #[error("the contents name {what} {index}, but there are only {len}")]
    OutOfRange {
        /// `blob`, `document`, `snapshot`, `record` or `key`.
        what: &'static str,
        /// The index found.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// Two snapshots, records or keys have one id, so one would hide the other.
    #[error("the contents have {what} {id} twice")]
    Duplicate {
        /// `snapshot`, `record` or `key`.
        what: &'static str,
        /// The id that they share.
        id: String,
    },
}

/// Everything that the databases say, by indexes into the lists here.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The worker that all results belong to.
    pub worker: WorkerId,
    /// When blobs, snapshots and leases are said to have been made; two bakes that name the same time are
    /// byte-identical.
    pub written_at: Timestamp,
    /// Blobs in the content store. Entries with the same digest make one blob with all their sources.
    pub blobs: Vec<Blob>,
    /// Snapshots; the one at index `i` has the directory `i + 1`.
    pub snapshots: Vec<Snapshot>,
    /// Manifests, indexes and configs of images in the content store. Entries with the same digest make
    /// one blob with all their sources.
    pub documents: Vec<Document>,
    /// Cache records.
    pub records: Vec<Record>,
    /// Cache keys.
    pub keys: Vec<Key>,
    /// From each key to those that have it as an input.
    pub links: Vec<Link>,
}

/// A layer blob.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Digest, size, media type, and the annotations that a re-export needs.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar, proven.
    pub diff_id: DiffId,
    /// Where a push may find it: by registry host without port, the repositories.
    pub sources: BTreeMap<String, BTreeSet<String>>,
}

/// A document of an image.
#[derive(Debug, Clone)]
pub struct Document {
    /// Hash of its bytes.
    pub digest: Digest,
    /// How many those are.
    pub size: u64,
    /// Where it is from, as in [`Blob::sources`]: a daemon takes it for an image of these repositories
    /// only.
    pub sources: BTreeMap<String, BTreeSet<String>>,
}

/// An unpacked layer.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its key.
    pub key: SnapshotKey,
    /// Index of the snapshot below.
    pub parent: Option<usize>,
    /// Bytes of the blocks of its upper directory, each inode once.
    pub size: u64,
    /// Inodes of its upper directory, itself included.
    pub inodes: u64,
}

/// A cache record: a layer on its chain.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its id, and its lease's.
    pub id: RecordId,
    /// Index of its blob.
    pub blob: usize,
    /// Index of its snapshot; records that differ in compression alone share one.
    pub snapshot: usize,
    /// Index of the record of the layer below.
    pub parent: Option<usize>,
    /// Chain ID of the layer.
    pub chain_id: ChainId,
    /// Blob chain ID of the layer.
    pub blob_chain_id: BlobChainId,
    /// When the layer's step ran.
    pub created_at: Timestamp,
    /// When it is said to have been used last; eviction takes the oldest first.
    pub last_used_at: Timestamp,
    /// How often it is said to have been used; eviction takes the least used first.
    pub usage_count: u64,
    /// What `buildctl du` shows.
    pub description: String,
    /// The images that it is a layer of, by name and digest.
    pub image_refs: Vec<String>,
    /// Indexes of the documents of images whose last layer it is; they live as long as the record.
    pub documents: Vec<usize>,
    /// Whether it is the last layer of a frontend's image.
    pub frontend: bool,
}

/// A cache key.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Index of each record that is its result, and when that was made if not when the layer was.
    pub results: Vec<(usize, Option<Timestamp>)>,
}

/// A link: key `to` is operation `digest` with key `from` as an input.
#[derive(Debug, Clone)]
pub struct Link {
    /// Index of the key of the input.
    pub from: usize,
    /// Index of the key that has it.
    pub to: usize,
    /// Which input.
    pub input: usize,
    /// Which output of the operation.
    pub output: i64,
    /// The operation.
    pub digest: OpDigest,
    /// Digest of what the operation reads of the input; empty: its result as such.
    pub selector: String,
}

fn at<'a, T>(list: &'a [T], index: usize, what: &'static str) -> Result<&'a T, Error> {
    list.get(index).ok_or(Error::OutOfRange { what, index, len: list.len() })
}

fn distinct<'a>(what: &'static str, ids: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(Error::Duplicate { what, id: id.to_owned() });
        }
    }
    Ok(())
}

/// Writes the databases and the worker's id of `state`, in the order of [`StateDir::files`] and with their modes; the directories must exist. A file that is there already is replaced.
///
/// The bytes depend on the contents, the snapshotter and `page_size` alone. Nothing is flushed to disk.
///
/// # Errors
/// The contents contradict themselves, or a file cannot be written. A root that is left in the middle has
/// no `cache.db` and so makes no step CACHED.
pub fn write_databases(state: &StateDir, contents: &Contents, page_size: PageSize) -> Result<(), Error> {
    distinct("snapshot", contents.snapshots.iter().map(|snapshot| snapshot.key.as_str()))?;
    distinct("record", contents.records.iter().map(|record| record.id.as_str()))?;
    distinct("key", contents.keys.iter().map(|key| key.id.as_str()))?;
    for &file in state.files() {
        let database = match file {
            StateFile::Snapshots => snapshots::database(contents)?,
            StateFile::Containerd => containerdmeta::database(contents, state.snapshotter())?,
            StateFile::Metadata => metadata::database(contents)?,
            StateFile::Cache => cache::database(contents)?,
            StateFile::WorkerId => {
                let path = state.file(file);
                let id = contents.worker.as_str().as_bytes();
                let written = create(state, &path, file.mode()).and_then(|mut file| file.write_all(id));
                written.map_err(|source| Error::Create { path, source })?;
                continue;
            }
        };
        let path = state.file(file);
        let out = create(state, &path, file.mode())
            .map_err(|source| Error::Create { path: path.clone(), source })?;
        database
            .write(page_size, &mut BufWriter::new(out))
            .map_err(|source| Error::Database { path, source })?;
    }
    Ok(())
}

/// A new file with exactly this mode, whatever the umask and whatever stood there.
fn create(state: &StateDir, path: &Path, mode: u32) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    state.finish_file(&file, mode)?;
    Ok(file)
}
