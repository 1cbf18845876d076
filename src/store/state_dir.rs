//! The tree of a state directory: paths and modes.
//!
//! ```text
//! <root>/                            0700   /var/lib/buildkit
//!   cache.db                         0600   solver: cache keys, links, results
//!   runc-<snapshotter>/              0700   the worker
//!     workerid                       0400   25 characters, no newline
//!     metadata_v2.db                 0600   cache records
//!     containerdmeta.db              0644   containerd: blobs, snapshots, leases
//!     content/                       0755
//!       blobs/sha256/<hex>           0444   layer blobs as transferred; directories 0755
//!       ingest/                      0777   blobs on their way in
//!     snapshots/                     0700
//!       metadata.db                  0600   the snapshotter's own store
//!       snapshots/<n>/               0700   directories 0700
//!         fs/                        0755   the layer's upper directory
//!         work/                      0711   for the overlay
//!     executor/                      0711
//!     cachemounts/                   0700
//! ```
//!
//! As `BuildKit` v0.33.1 and v0.34.2 make it as root with `--oci-worker-snapshotter=overlayfs`; v0.17.3
//! differs in one mode, 0777 for `content`. A daemon adds `buildkitd.lock` and `history.db`.
//! With the native snapshotter `snapshots/<n>` is the tree itself, 0755.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use crate::digest::Digest;

use super::Error;

/// The snapshotter of the worker that a root is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Snapshotter {
    /// The kernel's overlayfs: a directory per layer.
    #[default]
    Overlayfs,
    /// The same directories, mounted by fuse-overlayfs.
    FuseOverlayfs,
    /// Plain directories: a whole tree per layer.
    Native,
}

impl Snapshotter {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Overlayfs, Self::FuseOverlayfs, Self::Native];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|snapshotter| snapshotter.name() == name)
    }

    /// The name that `--oci-worker-snapshotter` and containerd's metadata have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::FuseOverlayfs => "fuse-overlayfs",
            Self::Native => "native",
        }
    }

    /// Directory of its OCI worker.
    pub const fn worker(self) -> &'static str {
        match self {
            Self::Overlayfs => "runc-overlayfs",
            Self::FuseOverlayfs => "runc-fuse-overlayfs",
            Self::Native => "runc-native",
        }
    }

    /// Whether a snapshot's directory has [`FS`] and [`WORK`] in it; else it is the tree.
    pub const fn has_upper(self) -> bool {
        !matches!(self, Self::Native)
    }
}

impl fmt::Display for Snapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The solver's store, in the root.
pub const CACHE_DB: &str = "cache.db";
/// The worker's id, as all that follows in the worker's directory.
pub const WORKER_ID: &str = "workerid";
/// The cache records.
pub const METADATA_DB: &str = "metadata_v2.db";
/// containerd's metadata.
pub const CONTAINERD_DB: &str = "containerdmeta.db";
/// The snapshotter's store.
pub const SNAPSHOTS_DB: &str = "snapshots/metadata.db";
/// Directory of the blobs, each named by the hexadecimal part of its digest.
pub const BLOBS: &str = "content/blobs/sha256";
/// Directory of blobs that are not yet complete.
pub const INGEST: &str = "content/ingest";
/// Directory of the snapshots' directories.
pub const SNAPSHOTS: &str = "snapshots/snapshots";
/// Upper directory within a snapshot's directory.
pub const FS: &str = "fs";
/// The overlay's work directory within a snapshot's directory.
pub const WORK: &str = "work";
/// Before the snapshotter's name, the directory of a containerd worker.
pub const CONTAINERD_WORKER: &str = "containerd-";
/// A running daemon holds a lock on this file, in the root.
pub const LOCK: &str = "buildkitd.lock";

/// Mode of the root, the worker's and each snapshot's directory.
pub const PRIVATE_DIR_MODE: u32 = 0o700;
/// Mode of a blob.
pub const BLOB_MODE: u32 = 0o444;
/// Mode of [`FS`], and of a snapshot's directory that is the tree itself.
pub const FS_MODE: u32 = 0o755;
/// Mode of [`WORK`].
pub const WORK_MODE: u32 = 0o711;

/// Every directory of a worker without snapshots, parents first, with its mode. The worker's own is the
/// empty path.
pub const WORKER_DIRECTORIES: &[(&str, u32)] = &[
    ("", PRIVATE_DIR_MODE),
    ("content", 0o755),
    ("content/blobs", 0o755),
    (BLOBS, 0o755),
    (INGEST, 0o777),
    ("snapshots", PRIVATE_DIR_MODE),
    (SNAPSHOTS, PRIVATE_DIR_MODE),
    ("executor", 0o711),
    ("cachemounts", PRIVATE_DIR_MODE),
];

/// The same of a containerd worker, whose directory is [`CONTAINERD_WORKER`] and the snapshotter's name.
pub const CONTAINERD_WORKER_DIRECTORIES: &[(&str, u32)] =
    &[("", PRIVATE_DIR_MODE), ("cachemounts", PRIVATE_DIR_MODE)];

/// A file that makes a root a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFile {
    /// [`SNAPSHOTS_DB`]
    Snapshots,
    /// [`CONTAINERD_DB`]
    Containerd,
    /// [`METADATA_DB`]
    Metadata,
    /// [`WORKER_ID`]
    WorkerId,
    /// [`CACHE_DB`]
    Cache,
}

impl StateFile {
    /// All of them, in the order in which they must appear: each only names what stands in those before it, and
    /// nothing is found without the last.
    pub const COMMIT_ORDER: [Self; 5] =
        [Self::Snapshots, Self::Containerd, Self::Metadata, Self::WorkerId, Self::Cache];

    /// Its mode.
    pub const fn mode(self) -> u32 {
        match self {
            Self::Containerd => 0o644,
            Self::WorkerId => 0o400,
            Self::Snapshots | Self::Metadata | Self::Cache => 0o600,
        }
    }
}

/// Paths below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
    snapshotter: Snapshotter,
    owner: Option<(u32, u32)>,
    layers: Layers,
}

/// Who keeps the layers of a root: blobs and snapshots, and the leases on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layers {
    /// The root: that of an OCI worker.
    #[default]
    InRoot,
    /// A containerd, in its own directories: that of a containerd worker has records and ids only.
    InContainerd,
}

impl StateDir {
    /// Names the root; touches nothing.
    pub fn new(root: impl Into<PathBuf>, snapshotter: Snapshotter) -> Self {
        Self { root: root.into(), snapshotter, owner: None, layers: Layers::InRoot }
    }

    /// The same, of a daemon that runs as this user and group: what is made belongs to them, but for the root itself,
    /// which keeps them out until [`Self::hand_over`].
    #[must_use]
    pub fn owned_by(self, user: u32, group: u32) -> Self {
        Self { owner: Some((user, group)), ..self }
    }

    /// The same, with its layers kept by these.
    #[must_use]
    pub fn with_layers(self, layers: Layers) -> Self {
        Self { layers, ..self }
    }

    /// The same, by another path to the same root.
    #[must_use]
    pub fn at(&self, root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..self.clone() }
    }

    /// Who keeps its layers.
    pub fn layers(&self) -> Layers {
        self.layers
    }

    /// The directories of its worker before there is a layer, parents first, with their modes.
    pub fn directories(&self) -> &'static [(&'static str, u32)] {
        match self.layers {
            Layers::InRoot => WORKER_DIRECTORIES,
            Layers::InContainerd => CONTAINERD_WORKER_DIRECTORIES,
        }
    }

    /// Its files, in the order in which they must appear.
    pub fn files(&self) -> &'static [StateFile] {
        match self.layers {
            Layers::InRoot => &StateFile::COMMIT_ORDER,
            Layers::InContainerd => &[StateFile::Metadata, StateFile::WorkerId, StateFile::Cache],
        }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The snapshotter of its worker.
    pub fn snapshotter(&self) -> Snapshotter {
        self.snapshotter
    }

    /// One of this module's paths in the worker's directory.
    pub fn in_worker(&self, relative: &str) -> PathBuf {
        let worker = self.root.join(match self.layers {
            Layers::InRoot => self.snapshotter.worker().to_owned(),
            Layers::InContainerd => format!("{CONTAINERD_WORKER}{}", self.snapshotter),
        });
        if relative.is_empty() { worker } else { worker.join(relative) }
    }

    /// Where one of the files stands.
    pub fn file(&self, file: StateFile) -> PathBuf {
        match file {
            StateFile::Snapshots => self.in_worker(SNAPSHOTS_DB),
            StateFile::Containerd => self.in_worker(CONTAINERD_DB),
            StateFile::Metadata => self.in_worker(METADATA_DB),
            StateFile::WorkerId => self.in_worker(WORKER_ID),
            StateFile::Cache => self.root.join(CACHE_DB),
        }
    }

    /// Where a blob stands.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.in_worker(BLOBS).join(digest.hex())
    }

    /// Directory of the snapshot with this id; ids start at 1.
    pub fn snapshot(&self, id: u64) -> PathBuf {
        self.in_worker(SNAPSHOTS).join(id.to_string())
    }

    /// Directory of the files of the snapshot with this id.
    pub fn upper(&self, id: u64) -> PathBuf {
        let directory = self.snapshot(id);
        if self.snapshotter.has_upper() { directory.join(FS) } else { directory }
    }

    /// Makes the root and the worker's directories, with their modes whatever the umask is. What exists is kept and
    /// gets its mode; parents of the root must exist.
    ///
    /// # Errors
    /// A directory cannot be made, or something else stands there.
    pub fn create(&self) -> Result<(), Error> {
        Self { owner: None, ..self.clone() }.make_dir(&self.root, PRIVATE_DIR_MODE)?;
        self.directories().iter().try_for_each(|(path, mode)| self.make_dir(&self.in_worker(path), *mode))
    }

    /// Gives the root itself to its owner, who could have put links in the way of what is written there before.
    ///
    /// # Errors
    /// The system does not.
    pub fn hand_over(&self) -> Result<(), Error> {
        let Some((user, group)) = self.owner else { return Ok(()) };
        lchown(&self.root, Some(user), Some(group))
            .map_err(|source| Error::Create { path: self.root.clone(), source })
    }

    /// Makes the directory of a snapshot, and returns the empty one that its files go into.
    ///
    /// # Errors
    /// A directory cannot be made, or something else stands there.
    pub fn create_snapshot(&self, id: u64) -> Result<PathBuf, Error> {
        let (directory, upper) = (self.snapshot(id), self.upper(id));
        if self.snapshotter.has_upper() {
            self.make_dir(&directory, PRIVATE_DIR_MODE)?;
            self.make_dir(&directory.join(WORK), WORK_MODE)?;
        }
        self.make_dir(&upper, FS_MODE)?;
        Ok(upper)
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let created = match DirBuilder::new().mode(mode).create(path) {
            // A symbolic link is followed: an operator may keep a directory on another disk.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        };
        created
            .and_then(|()| match self.owner {
                // In a user's own directory somebody may have put a link in the way.
                Some((user, group)) => lchown(path, Some(user), Some(group)),
                None => Ok(()),
            })
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(|source| Error::Create { path: path.to_owned(), source })
    }

    /// Gives a new file its owner and mode.
    ///
    /// # Errors
    /// One of them cannot be set.
    pub(super) fn finish_file(&self, file: &File, mode: u32) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            fchown(file, Some(user), Some(group))?;
        }
        file.set_permissions(Permissions::from_mode(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        for snapshotter in Snapshotter::ALL {
            let temp = tempfile::tempdir().unwrap();
            let state = StateDir::new(temp.path().join("root"), snapshotter);
            state.create().unwrap();
            let upper = state.create_snapshot(1).unwrap();
            assert_eq!(mode(state.root()), 0o700);
            // 0777 and 0711 survive any usual umask only when set explicitly.
            for (path, expected) in WORKER_DIRECTORIES {
                assert_eq!(mode(&state.in_worker(path)), *expected, "{snapshotter} {path}");
            }
            assert_eq!(mode(&upper), 0o755, "{snapshotter}");
            if snapshotter.has_upper() {
                assert_eq!(mode(&state.snapshot(1)), 0o700, "{snapshotter}");
                assert_eq!(mode(&state.snapshot(1).join(WORK)), 0o711, "{snapshotter}");
            } else {
                assert_eq!(upper, state.snapshot(1));
            }
        }
    }

    #[test]
    fn a_containerd_worker_keeps_no_layers() {
        let temp = tempfile::tempdir().unwrap();
        let state =
            StateDir::new(temp.path().join("root"), Snapshotter::Overlayfs).with_layers(Layers::InContainerd);
        state.create().unwrap();
        let worker = state.root().join("containerd-overlayfs");
        assert_eq!(mode(&worker), 0o700);
        let made: Vec<_> = fs::read_dir(&worker).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(made, ["cachemounts"]);
        assert_eq!(state.files().last(), Some(&StateFile::Cache));
        assert!(!state.files().contains(&StateFile::Containerd));
    }

    #[test]
    fn creating_twice_keeps_what_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path(), Snapshotter::Overlayfs);
        state.create().unwrap();
        fs::write(state.file(StateFile::Cache), "kept").unwrap();
        state.create().unwrap();
        assert_eq!(fs::read(state.file(StateFile::Cache)).unwrap(), b"kept");
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let worker = Snapshotter::Overlayfs.worker();
        fs::write(temp.path().join(worker), "").unwrap();
        let error = StateDir::new(temp.path(), Snapshotter::Overlayfs).create().unwrap_err();
        assert!(matches!(error, Error::Create { path, .. } if path.ends_with(worker)));
    }
}
