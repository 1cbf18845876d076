//! Paths that are refused: those of dockerd's own builder.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use crate::builder;
use crate::root::files::Tree;
use crate::root::{self, Found};

/// Refuses what is dockerd's own builder's: a root there would be taken for its state.
pub(super) fn refuse(path: &Path) -> Result<(), builder::Error> {
    let path = real(path);
    let found = path.ancestors().find(|directory| is_engine(directory)).map(Path::to_owned);
    match found.or_else(|| builder::engine_around(&path)) {
        Some(path) => Err(builder::Error::Engine { path }),
        None => Ok(()),
    }
}

/// The same in an image that is mounted at `sysroot`, with a path that is one inside of it; where this machine's dockerd has
/// its state tells nothing there.
pub(super) fn refuse_in(sysroot: &Path, path: &Path) -> Result<(), builder::Error> {
    let Some((sysroot, path)) = real_in(sysroot, path) else { return Ok(()) };
    let on_this_machine = |directory: &Path| sysroot.join(directory.strip_prefix("/").unwrap_or(directory));
    let found = path.ancestors().find(|directory| is_engine(&on_this_machine(directory)));
    match found.map(Path::to_owned).or_else(|| builder::default_engine_around(&path)) {
        Some(path) => Err(builder::Error::Engine { path }),
        None => Ok(()),
    }
}

/// An image's directory without links, and a path of the image without those, as far as it is there. `None` where it
/// leads out, or cannot be read.
fn real_in(sysroot: &Path, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let image = Tree::open(sysroot).ok()?;
    let path = Path::new("/").join(path);
    let (ancestor, there) =
        path.ancestors().find_map(|ancestor| Some((ancestor, image.directory_in_root(ancestor).ok()?)))?;
    let real = |tree: &Tree| fs::read_link(format!("/proc/self/fd/{}", tree.as_fd().as_raw_fd())).ok();
    let (sysroot, there) = (real(&image)?, real(&there)?);
    let inside = Path::new("/").join(there.strip_prefix(&sysroot).ok()?);
    Some((sysroot, path.strip_prefix(ancestor).map_or_else(|_| inside.clone(), |rest| inside.join(rest))))
}

/// Whether dockerd's own builder has its state in this directory.
fn is_engine(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let names: Vec<(OsString, bool)> =
        entries.map(|entry| (entry.file_name(), is_directory(&entry))).collect();
    let found = Found::among(names.iter().map(|(name, is_directory)| (name.as_os_str(), *is_directory)));
    matches!(found.refusal(directory), Some(root::Error::DockerEngine { .. }))
}

/// A path without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match there {
        Some((ancestor, real)) => {
            path.strip_prefix(ancestor).map_or_else(|_| real.clone(), |rest| real.join(rest))
        }
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_dockers_own_builder_is_known_by_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let state = dir.join("moved");
        fs::create_dir_all(state.join("content/blobs")).unwrap();
        std::os::unix::fs::symlink(&state, dir.join("link")).unwrap();
        let refused = |path: PathBuf| match refuse(&path) {
            Err(builder::Error::Engine { path }) => Some(path),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        };
        assert_eq!(refused(state.clone()), None);
        for name in ["cache.db", "containerdmeta.db", "metadata_v2.db", "snapshots.db"] {
            fs::write(state.join(name), "").unwrap();
        }
        for path in ["moved", "moved/content", "moved/content/blobs/new/root", "link", "link/new"] {
            assert_eq!(refused(dir.join(path)), Some(state.clone()), "{path}");
        }
        assert_eq!(refused(dir.join("beside")), None);
        // A worker of a daemon has such names too.
        fs::rename(state.join("cache.db"), dir.join("cache.db")).unwrap();
        assert_eq!(refused(state), None);
        let default = PathBuf::from("/var/lib/docker/buildkit");
        assert_eq!(refused(default.join("new")), Some(default));
    }

    #[test]
    fn an_image_has_a_dockerd_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let state = image.join("srv/moved");
        fs::create_dir_all(state.join("content")).unwrap();
        fs::write(state.join("history_c8d.db"), "").unwrap();
        std::os::unix::fs::symlink("/srv/moved/content", image.join("link")).unwrap();
        // Beside the image is what is nobody's business there.
        fs::write(dir.path().join("history_c8d.db"), "").unwrap();
        let refused = |path: &str| match refuse_in(&image, Path::new(path)) {
            Err(builder::Error::Engine { path }) => Some(path),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        };
        for (path, expected) in [
            ("/srv/moved", Some("/srv/moved")),
            ("srv/moved/content/new", Some("/srv/moved")),
            ("/link", Some("/srv/moved")),
            ("/link/new", Some("/srv/moved")),
            ("/srv", None),
            ("/srv/../..", None),
            ("/var/lib/buildkit", None),
            ("/var/lib/docker/buildkit/new", Some("/var/lib/docker/buildkit")),
        ] {
            assert_eq!(refused(path).as_deref(), expected.map(Path::new), "{path}");
        }
        assert!(refuse_in(&image.join("none"), Path::new("/x")).is_ok());
    }
}
