//! What the names in a directory tell of it: whose root it is, if it is one.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::Error;

/// The snapshotters whose workers are read: each layer is a directory of plain files.
pub(super) const SNAPSHOTTERS: [&str; 3] = ["overlayfs", "fuse-overlayfs", "native"];
/// Before the snapshotter's name, the directory of an OCI worker.
pub(super) const OCI: &str = "runc-";
/// The same of a containerd worker.
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
    /// The same of containerd workers.
    pub(crate) in_containerd: Vec<PathBuf>,
    /// Directories of workers of either kind with another snapshotter.
    pub(super) others: Vec<PathBuf>,
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
            let (snapshotter, workers) = match (text.strip_prefix(OCI), text.strip_prefix(IN_CONTAINERD)) {
                (Some(snapshotter), _) => (snapshotter, &mut found.workers),
                (_, Some(snapshotter)) => (snapshotter, &mut found.in_containerd),
                _ => continue,
            };
            let is_known = SNAPSHOTTERS.contains(&snapshotter);
            if is_known { workers } else { &mut found.others }.push(name.into());
        }
        found
    }

    /// Why what is at `path` is not read, where something is known of it that is not.
    pub(crate) fn refusal(&self, path: &Path) -> Option<Error> {
        if self.is_engine || (self.has_solver && self.of_engine == ENGINE.len()) {
            return Some(Error::DockerEngine { path: path.to_owned() });
        }
        if let Some(other) = self.other(path, OCI) {
            return Some(other);
        }
        if let Some(worker) = self.in_containerd.first() {
            return Some(Error::ContainerdWorker { path: path.to_owned(), worker: worker.clone() });
        }
        self.other(path, IN_CONTAINERD)
    }

    /// That there is a worker of this kind with another snapshotter.
    pub(super) fn other(&self, path: &Path, kind: &str) -> Option<Error> {
        self.others.iter().find_map(|worker| {
            let snapshotter = worker.to_str()?.strip_prefix(kind)?.to_owned();
            Some(Error::OtherSnapshotter { path: path.to_owned(), worker: worker.clone(), snapshotter })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_a_directory_is() {
        // Directories end in a slash.
        let cases: [(&[&str], usize, &str); 13] = [
            (&["cache.db", "runc-overlayfs/"], 1, ""),
            (&["cache.db", "runc-native/", "runc-fuse-overlayfs/"], 2, ""),
            (&["runc-stargz/"], 0, "the snapshotter stargz (runc-stargz)"),
            (&["runc-zfs/", "runc-overlayfs/"], 1, "the snapshotter zfs (runc-zfs)"),
            (&["cache.db", "runc-overlayfs"], 0, ""),
            (&["cache.db", "containerd-native/"], 0, "a containerd worker (containerd-native)"),
            (
                &["cache.db", "containerd-devmapper/"],
                0,
                "a containerd worker with the snapshotter devmapper (containerd-devmapper)",
            ),
            (
                &["containerd-stargz/", "containerd-overlayfs/"],
                0,
                "a containerd worker (containerd-overlayfs)",
            ),
            // One that another program keeps.
            (&["cache.db", "runc-auto/"], 0, "an OCI worker with the snapshotter auto (runc-auto)"),
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
