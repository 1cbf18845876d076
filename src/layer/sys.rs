//! System calls on the layer's directory, with the flags that keep every path inside it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags};

use super::entry::{Entry, Time};

/// Opens a directory that the caller names.
pub(super) fn open_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory below `dir`, refusing every symlink on the way.
pub(super) fn open_directory(dir: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        dir,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens whatever is at `path`, itself and not what it points to; symlinks on the way stay inside `root`.
pub(super) fn open_in_root(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Mode bits for the system calls.
pub(super) fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

/// The times that an entry's file gets.
pub(super) fn times(entry: &Entry) -> Timestamps {
    let spec = |time: Time| {
        let time = time.on_disk();
        Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() }
    };
    Timestamps { last_access: spec(entry.mtime.latest(entry.atime)), last_modification: spec(entry.mtime) }
}

/// The times that a file has.
pub(super) fn times_of(stat: &Stat) -> Timestamps {
    let spec = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos.cast_signed() };
    Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Writes all of `bytes`.
pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(rustix::io::Errno::IO),
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A path for calls that take no directory descriptor: `name` in `dir`, not followed when it is a symlink.
pub(super) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Sets an extended attribute on `name` in `dir`, of whatever type it is.
pub(super) fn set_xattr_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    key: &[u8],
    value: &[u8],
    flags: XattrFlags,
) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(proc_path(dir, name), key, value, flags)
}

/// Removes an extended attribute of `name` in `dir`, of whatever type it is.
pub(super) fn remove_xattr_at(dir: BorrowedFd<'_>, name: &[u8], key: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lremovexattr(proc_path(dir, name), key)
}

/// Reads the names of all extended attributes of `name` in `dir`, of whatever type it is.
pub(super) fn list_xattrs_at(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<Vec<u8>>> {
    let path = proc_path(dir, name);
    names(grow(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer)))
}

/// Reads an extended attribute of `name` in `dir`, of whatever type it is.
pub(super) fn get_xattr_at(dir: BorrowedFd<'_>, name: &[u8], key: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let path = proc_path(dir, name);
    grow(|buffer| rustix::fs::lgetxattr(path.as_slice(), key, buffer))
}

/// The names in a list of extended attributes; none where the file system has no such thing.
fn names(list: rustix::io::Result<Vec<u8>>) -> rustix::io::Result<Vec<Vec<u8>>> {
    match list {
        Ok(list) => Ok(list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()),
        Err(rustix::io::Errno::NOTSUP) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

/// Reads the names of all extended attributes of an open file.
pub(super) fn list_xattrs(file: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    names(grow(|buffer| rustix::fs::flistxattr(file.as_fd(), buffer)))
}

/// Reads an extended attribute of an open file.
pub(super) fn get_xattr(file: impl AsFd, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    grow(|buffer| rustix::fs::fgetxattr(file.as_fd(), name, buffer))
}

fn grow(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    // 64 KiB is the kernel's limit for both the list of names and one value.
    let mut buffer = vec![0; 1 << 16];
    let n = read(&mut buffer)?;
    buffer.truncate(n);
    Ok(buffer)
}

/// Whether `name` in `dir` is a directory, without following it.
pub(super) fn is_directory(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    Ok(file_type(dir, name)?.is_dir())
}

/// The type of `name` in `dir`, without following it.
pub(super) fn file_type(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<rustix::fs::FileType> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode))
}
