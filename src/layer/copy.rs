//! A whole tree once more, for snapshotters that have one per layer.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::{join, split};
use super::{Error, Result, sys, xattr};

/// Copies what is in `from` into `to`, an existing empty directory, which gets the attributes of `from` too: types,
/// content, owners, modes, times, extended attributes and hard links. File systems that can share the blocks do.
///
/// Attributes of security modules are left out where they may not be set, as in a user namespace: so does containerd's
/// `plugins/snapshots/native/native.go` (v2.4). File capabilities are not.
///
/// # Errors
/// A file cannot be read, or not written.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let open = |path: &Path| {
        sys::open_root(path).map_err(|e| Error::entry("open", path.as_os_str().as_encoded_bytes(), e))
    };
    Copy { from: open(from)?, to: open(to)?, linked: HashMap::new() }.all()
}

struct Copy {
    from: OwnedFd,
    to: OwnedFd,
    /// Files with several names, and the first of them that was copied.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Copy {
    fn all(mut self) -> Result<()> {
        let mut pending = vec![Vec::new()];
        // Each before what is in it.
        let mut directories: Vec<(Vec<u8>, Stat)> = Vec::new();
        while let Some(path) = pending.pop() {
            let fail = |e: Errno| Error::entry("copy", &path, e);
            let (from, to) = (open(&self.from, &path).map_err(fail)?, open(&self.to, &path).map_err(fail)?);
            for entry in Dir::read_from(&from).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let path = join(&path, name);
                let fail = |e: Errno| Error::entry("copy", &path, e);
                let stat = rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
                if FileType::from_raw_mode(stat.st_mode).is_dir() {
                    rustix::fs::mkdirat(&to, name, Mode::RWXU).map_err(fail)?;
                    pending.push(path);
                } else {
                    self.entry(from.as_fd(), to.as_fd(), name, &path, &stat).map_err(fail)?;
                }
            }
            let stat = rustix::fs::fstat(&from).map_err(fail)?;
            attributes(from.as_fd(), to.as_fd(), &stat).map_err(fail)?;
            directories.push((path, stat));
        }
        for (path, stat) in directories {
            let fail = |e: Errno| Error::entry("set times of", &path, e);
            let to = open(&self.to, &path).map_err(fail)?;
            rustix::fs::futimens(&to, &sys::times_of(&stat)).map_err(fail)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), Errno> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if stat.st_nlink > 1 {
            let known = self.linked.entry((stat.st_dev, stat.st_ino));
            match known {
                std::collections::hash_map::Entry::Occupied(first) => {
                    let (directory, first) = split(first.get());
                    let directory = open(&self.to, directory)?;
                    return rustix::fs::linkat(&directory, first, to, name, AtFlags::empty());
                }
                std::collections::hash_map::Entry::Vacant(slot) => drop(slot.insert(path.to_vec())),
            }
        }
        match file_type {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                content(source.as_fd(), copy.as_fd(), stat)?;
                attributes(source.as_fd(), copy.as_fd(), stat)?;
                return rustix::fs::futimens(&copy, &sys::times_of(stat));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
            }
            other => rustix::fs::mknodat(to, name, other, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        rustix::fs::chownat(
            to,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        for key in sys::list_xattrs_at(from, name)? {
            let value = sys::get_xattr_at(from, name, &key)?;
            set(&key, sys::set_xattr_at(to, name, &key, &value, XattrFlags::empty()))?;
        }
        if file_type != FileType::Symlink {
            rustix::fs::chmodat(to, name, sys::mode(stat.st_mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(to, name, &sys::times_of(stat), AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn open(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    if path.is_empty() {
        sys::open_directory(root.as_fd(), b".")
    } else {
        sys::open_directory(root.as_fd(), path)
    }
}

/// Copies what is in a file, holes as holes.
fn content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    // Shares all blocks, where the file system can.
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole to its end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?;
        let (mut read, mut written) = (data, data);
        while read < hole {
            let length = usize::try_from(hole - read).unwrap_or(usize::MAX);
            if rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length)? == 0 {
                return Err(Errno::IO);
            }
        }
        at = hole;
    }
    rustix::fs::ftruncate(to, size)
}

/// Owner, extended attributes and mode. Changing the owner clears capabilities and setuid bits: so this order.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for key in sys::list_xattrs(from)? {
        let value = sys::get_xattr(from, &key)?;
        set(&key, rustix::fs::fsetxattr(to, key.as_slice(), &value, XattrFlags::empty()))?;
    }
    rustix::fs::fchmod(to, sys::mode(stat.st_mode))
}

/// How an extended attribute was set, where it need not be.
fn set(key: &[u8], set: Result<(), Errno>) -> Result<(), Errno> {
    match set {
        Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) if xattr::may_be_left(key) => Ok(()),
        set => set,
    }
}
