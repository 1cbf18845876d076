//! What the names in a directory tell of it: whose root it is, if it is one.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::Error;

/// The snapshotters whose workers are read: each layer is a directory of plain files.
const SNAPSHOTTERS: [&str; 3] = ["overlayfs", "fuse-overlayfs", "native"];
/// Before the snapshotter's name, the directory of a containerd worker.
pub(super) const IN_CONTAINERD: &str = "containerd-";
/// What dockerd has in the directory itself: moby `builder/builder-next/controller.go`, `newGraphDriverController`.
const ENGINE: [&str; 2] = ["containerdmeta.db", "metadata_v2.db"];
/// What it has where its images are in containerd: same file, `newSnapshotterController`.
const ENGINE_IN_CONTAINERD: &str = "history_c8d.db";

/// What the names in a directory tell of it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Directories of OCI workers with a known snapshotter.
    pub(crate) workers: Vec<PathBuf>,
    /// The same with another one, and its name.
    other: Option<(PathBuf, String)>,
    /// Directories of containerd workers.
    pub(crate) in_containerd: Vec<PathBuf>,
    pub(super) has_solver: bool,
    /// How many of [`ENGINE`], which stand beside cache.db, and whether [`ENGINE_IN_CONTAINERD`].
    of_engine: usize,
    is_engine: bool,
}

impl Found {
    /// Looks at names, each with whether it is a directory's.
    pub(crate) fn among<'n>(names: impl Iterator<Item = (&'n OsStr, bool)>) -> Self {
        let mut found = Self::default();
        for (name, is_directory) in names {
            let text = name.to_string_lossy();
            found.has_solver |= text == "cache.db";
            // An OCI worker has both in its own directory.
            found.of_engine += usize::from(!is_directory && ENGINE.contains(&&*text));
            found.is_engine |= text == ENGINE_IN_CONTAINERD;
            if !is_directory {
                continue;
            }
            match text.strip_prefix("runc-") {
                Some(snapshotter) if SNAPSHOTTERS.contains(&snapshotter) => found.workers.push(name.into()),
                Some(snapshotter) => found.other = Some((name.into(), snapshotter.to_owned())),
                None if text.starts_with(IN_CONTAINERD) => found.in_containerd.push(name.into()),
                None => {}
            }
        }
        found
    }

    /// Why what is at `path` is not read, where something is known of it that is not.
    pub(crate) fn refusal(&self, path: &Path) -> Option<Error> {
        let path = || path.to_owned();
        if let Some((worker, snapshotter)) = &self.other {
            let (worker, snapshotter) = (worker.clone(), snapshotter.clone());
            return Some(Error::OtherSnapshotter { path: path(), worker, snapshotter });
        }
        if self.is_engine || (self.has_solver && self.of_engine == ENGINE.len()) {
            return Some(Error::DockerEngine { path: path() });
        }
        if let Some(worker) = self.in_containerd.first() {
            return Some(Error::ContainerdWorker { path: path(), worker: worker.clone() });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_a_directory_is() {
        // Directories end in a slash.
        let cases: [(&[&str], usize, &str); 10] = [
            (&["cache.db", "runc-overlayfs/"], 1, ""),
            (&["cache.db", "runc-native/", "runc-fuse-overlayfs/"], 2, ""),
            (&["runc-stargz/"], 0, "the snapshotter stargz (runc-stargz)"),
            (&["runc-zfs/", "runc-overlayfs/"], 1, "the snapshotter zfs (runc-zfs)"),
            (&["cache.db", "runc-overlayfs"], 0, ""),
            (&["cache.db", "containerd-devmapper/"], 0, "a containerd worker (containerd-devmapper)"),
            (
                &[
                    "cache.db",
                    "containerdmeta.db",
                    "content/",
                    "history.db",
                    "metadata_v2.db",
                    "snapshots.db",
                ],
                0,
                "dockerd's own builder",
            ),
            (&["cache.db", "containerd-overlayfs/", "history_c8d.db"], 0, "dockerd's own builder"),
            (&["metadata_v2.db", "lost+found/"], 0, ""),
            (&["containerdmeta.db", "content/", "metadata_v2.db", "snapshots/", "workerid"], 0, ""),
        ];
        for (names, workers, said) in cases {
            let split = |name: &&'static str| (OsStr::new(name.trim_end_matches('/')), name.ends_with('/'));
            let found = Found::among(names.iter().map(split));
            assert_eq!(found.workers.len(), workers, "{names:?}");
            let refusal = found.refusal(Path::new("/r")).map(|error| error.to_string()).unwrap_or_default();
            assert!(refusal.contains(said) && refusal.is_empty() == said.is_empty(), "{names:?}: {refusal}");
        }
    }
}
