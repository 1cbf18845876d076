//! Files and directories of a root that others may be changing.
//!
//! Paths are resolved with `openat2` below the root's own descriptor: never through a symbolic link, and never
//! into another file system that is mounted below, as a daemon's containers are. Only directories and
//! regular files are opened, and that without locks and, where the owner allows it, without a new access time.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Why something is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is gone, became something else, or is of another file system: nothing that is to be read.
    Gone,
    /// It is there, and cannot be read.
    Failed(Errno),
}

impl From<Errno> for Unread {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::STALE | Errno::LOOP | Errno::XDEV => {
                Self::Gone
            }
            errno => Self::Failed(errno),
        }
    }
}

/// Opens `path` below `dir`; it may be empty.
fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    without_new_access_time(|noatime| {
        // A mere handle has no access times to keep.
        let noatime = if flags.contains(OFlags::PATH) { OFlags::empty() } else { noatime };
        fs::openat2(dir, path, flags | noatime, Mode::empty(), resolve)
    })
}

fn without_new_access_time(open: impl Fn(OFlags) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let mut noatime = OFlags::NOATIME;
    loop {
        match open(noatime) {
            // A rename elsewhere in the tree while the kernel resolved the path.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Somebody else's file.
            Err(Errno::PERM) if !noatime.is_empty() => noatime = OFlags::empty(),
            other => return other,
        }
    }
}

/// Opens the root itself, which may be a symbolic link to a directory.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory; `path` may be empty.
pub(super) fn open_directory(dir: impl AsFd, path: &Path) -> Result<OwnedFd, Unread> {
    Ok(open(dir.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY)?)
}

/// Opens a regular file, with what the kernel says of it.
pub(super) fn open_file(dir: impl AsFd, path: &Path) -> Result<(OwnedFd, Stat), Unread> {
    // First only a handle: a device that has come to stand here must not even be opened.
    let handle = open(dir.as_fd(), path, OFlags::PATH)?;
    let stat = fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Unread::Gone);
    }
    let handle = format!("/proc/thread-self/fd/{}", handle.as_raw_fd());
    let file = without_new_access_time(|noatime| {
        fs::open(&handle, OFlags::RDONLY | OFlags::CLOEXEC | noatime, Mode::empty())
    })?;
    Ok((file, stat))
}

/// What the kernel says of a name in a directory.
pub(super) fn stat(dir: impl AsFd, name: &CStr) -> Result<Stat, Unread> {
    Ok(fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)?)
}

/// Has the blocks read that hold the target of a symbolic link.
pub(super) fn touch_link(dir: impl AsFd, name: &CStr) {
    // One that is gone by now has none.
    let _ = fs::readlinkat(dir, name, Vec::new());
}

/// Has the blocks read that hold the extended attributes of a file or directory.
pub(super) fn touch_xattrs(file: impl AsFd) {
    // Not every file system has any.
    let _ = fs::flistxattr(file, &mut [0; 4096][..]);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn opens_what_is_to_be_read_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, outside) = (scratch.path().join("root"), scratch.path().join("outside"));
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("f"), "secret").unwrap();
        std::fs::write(root.join("d/f"), "data").unwrap();
        symlink(&outside, root.join("d/up")).unwrap();
        symlink("f", root.join("d/link")).unwrap();
        fs::mknodat(fs::CWD, root.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let root = open_root(&root).unwrap();
        let directory = |path: &str| open_directory(&root, Path::new(path)).map(drop);
        let file = |path: &str| open_file(&root, Path::new(path)).map(drop);
        for good in ["", "d", "d/e"] {
            assert_eq!(directory(good), Ok(()), "{good}");
        }
        assert_eq!(file("d/f"), Ok(()));
        for gone in ["none", "d/f", "d/up", "../outside", "d/../../outside", "pipe"] {
            assert_eq!(directory(gone), Err(Unread::Gone), "{gone}");
        }
        for gone in ["none", "d", "d/link", "d/up/f", "../outside/f", "pipe"] {
            assert_eq!(file(gone), Err(Unread::Gone), "{gone}");
        }
    }
}
