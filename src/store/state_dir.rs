//! The tree of a state directory: paths and modes.
//!
//! ```text
//! <root>/                            0700   /var/lib/buildkit
//!   cache.db                         0600   solver: cache keys, links, results
//!   runc-overlayfs/                  0700   the worker
//!     workerid                       0400   25 characters, no newline
//!     metadata_v2.db                 0600   cache records
//!     containerdmeta.db              0644   containerd: blobs, snapshots, leases
//!     content/                       0755
//!       blobs/sha256/<hex>           0444   layer blobs as transferred; directories 0755
//!       ingest/                      0777   blobs on their way in
//!     snapshots/                     0700
//!       metadata.db                  0600   the overlay snapshotter's own store
//!       snapshots/<n>/               0700   directories 0700
//!         fs/                        0755   the layer's upper directory
//!         work/                      0711   for overlayfs
//!     executor/                      0711
//!     cachemounts/                   0700
//! ```
//!
//! As `BuildKit` v0.33.1 and v0.34.2 make it as root with `--oci-worker-snapshotter=overlayfs`; v0.17.3
//! differs in one mode, 0777 for `content`. A daemon adds `buildkitd.lock` and `history.db`.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::digest::Digest;

use super::Error;

/// Directory of the worker: `runc-` and the snapshotter's name.
pub const WORKER: &str = "runc-overlayfs";
/// The solver's store.
pub const CACHE_DB: &str = "cache.db";
/// The worker's id.
pub const WORKER_ID: &str = "runc-overlayfs/workerid";
/// The cache records.
pub const METADATA_DB: &str = "runc-overlayfs/metadata_v2.db";
/// containerd's metadata.
pub const CONTAINERD_DB: &str = "runc-overlayfs/containerdmeta.db";
/// The snapshotter's store.
pub const SNAPSHOTS_DB: &str = "runc-overlayfs/snapshots/metadata.db";
/// Directory of the blobs, each named by the hexadecimal part of its digest.
pub const BLOBS: &str = "runc-overlayfs/content/blobs/sha256";
/// Directory of blobs that are not yet complete.
pub const INGEST: &str = "runc-overlayfs/content/ingest";
/// Directory of the snapshots' directories.
pub const SNAPSHOTS: &str = "runc-overlayfs/snapshots/snapshots";
/// Upper directory within a snapshot's directory.
pub const FS: &str = "fs";
/// overlayfs' work directory within a snapshot's directory.
pub const WORK: &str = "work";
/// A running daemon holds a lock on this file.
pub const LOCK: &str = "buildkitd.lock";

/// Mode of the root, the worker's and each snapshot's directory.
pub const PRIVATE_DIR_MODE: u32 = 0o700;
/// Mode of every database but [`CONTAINERD_DB`].
pub const DB_MODE: u32 = 0o600;
/// Mode of [`CONTAINERD_DB`].
pub const CONTAINERD_DB_MODE: u32 = 0o644;
/// Mode of [`WORKER_ID`].
pub const WORKER_ID_MODE: u32 = 0o400;
/// Mode of a blob.
pub const BLOB_MODE: u32 = 0o444;
/// Mode of [`FS`].
pub const FS_MODE: u32 = 0o755;
/// Mode of [`WORK`].
pub const WORK_MODE: u32 = 0o711;

/// Every directory of a root without snapshots, parents first, with its mode. The root itself is the
/// empty path.
pub const DIRECTORIES: &[(&str, u32)] = &[
    ("", PRIVATE_DIR_MODE),
    (WORKER, PRIVATE_DIR_MODE),
    ("runc-overlayfs/content", 0o755),
    ("runc-overlayfs/content/blobs", 0o755),
    (BLOBS, 0o755),
    (INGEST, 0o777),
    ("runc-overlayfs/snapshots", PRIVATE_DIR_MODE),
    (SNAPSHOTS, PRIVATE_DIR_MODE),
    ("runc-overlayfs/executor", 0o711),
    ("runc-overlayfs/cachemounts", PRIVATE_DIR_MODE),
];

/// The files that make a root a root, in the order in which they must appear, with their modes: each only
/// names what stands in those before it, and nothing is found without the last.
pub const COMMIT_ORDER: &[(&str, u32)] = &[
    (SNAPSHOTS_DB, DB_MODE),
    (CONTAINERD_DB, CONTAINERD_DB_MODE),
    (METADATA_DB, DB_MODE),
    (WORKER_ID, WORKER_ID_MODE),
    (CACHE_DB, DB_MODE),
];

/// Paths below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Names the root; touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One of this module's relative paths, below the root.
    pub fn path(&self, relative: &str) -> PathBuf {
        if relative.is_empty() { self.root.clone() } else { self.root.join(relative) }
    }

    /// Where a blob stands.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.path(BLOBS).join(digest.hex())
    }

    /// Directory of the snapshot with this id; ids start at 1.
    pub fn snapshot(&self, id: u64) -> PathBuf {
        self.path(SNAPSHOTS).join(id.to_string())
    }

    /// Upper directory of the snapshot with this id.
    pub fn upper(&self, id: u64) -> PathBuf {
        self.snapshot(id).join(FS)
    }

    /// Makes all of [`DIRECTORIES`], with their modes whatever the umask is. What exists is kept and gets
    /// its mode; parents of the root must exist.
    ///
    /// # Errors
    /// A directory cannot be made, or something else stands there.
    pub fn create(&self) -> Result<(), Error> {
        DIRECTORIES.iter().try_for_each(|(path, mode)| make_dir(&self.path(path), *mode))
    }

    /// Makes the directory of a snapshot with an empty upper directory, and returns the latter.
    ///
    /// # Errors
    /// A directory cannot be made, or something else stands there.
    pub fn create_snapshot(&self, id: u64) -> Result<PathBuf, Error> {
        let (directory, upper) = (self.snapshot(id), self.upper(id));
        make_dir(&directory, PRIVATE_DIR_MODE)?;
        make_dir(&upper, FS_MODE)?;
        make_dir(&directory.join(WORK), WORK_MODE)?;
        Ok(upper)
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let created = match DirBuilder::new().mode(mode).create(path) {
        // A symbolic link is followed: an operator may keep a directory on another disk.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    };
    created
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|source| Error::Create { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().join("root"));
        state.create().unwrap();
        state.create_snapshot(1).unwrap();
        // 0777 and 0711 survive any usual umask only when set explicitly.
        for (path, expected) in DIRECTORIES {
            assert_eq!(mode(&state.path(path)), *expected, "{path}");
        }
        assert_eq!(mode(&state.snapshot(1)), 0o700);
        assert_eq!(mode(&state.upper(1)), 0o755);
        assert_eq!(mode(&state.snapshot(1).join(WORK)), 0o711);
    }

    #[test]
    fn creating_twice_keeps_what_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path());
        state.create().unwrap();
        fs::write(state.path(CACHE_DB), "kept").unwrap();
        state.create().unwrap();
        assert_eq!(fs::read(state.path(CACHE_DB)).unwrap(), b"kept");
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(WORKER), "").unwrap();
        let error = StateDir::new(temp.path()).create().unwrap_err();
        assert!(matches!(error, Error::Create { path, .. } if path.ends_with(WORKER)));
    }
}
