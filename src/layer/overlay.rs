//! A layer on those below it, as a daemon sees them that extracts through a mount.
//!
//! ```text
//! mount point       what all layers below show, and what is written now
//!   upper           gets what is written: new files, marks, directories copied up
//!   lower ...       stay as they are
//! ```
//!
//! That is how daemons extract that run rootless or with fuse-overlayfs. What the kernel leaves in an upper directory
//! for its own use is taken away again: it names inodes of this file system, and another one may get the root.
//!
//! Mirrors containerd v2.4 `core/diff/apply/apply_linux.go` and `core/mount/temp.go`.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::walk::walk;
use super::{Error, Result, sys};
use crate::fsutil::escape_overlay_option;

/// The kernel takes a page of options, with a zero at its end.
const MAX_OPTIONS: usize = 4095;
/// What overlayfs keeps in its attributes beside the marks: `fs/overlayfs/overlayfs.h`.
const EXTRAS: [&str; 4] = ["origin", "impure", "uuid", "nlink"];

/// Where a layer stands, and on what.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The directory that all lower ones are relative to, for there may be many.
    pub directory: &'a Path,
    /// The upper directories of the layers below, nearest first; at least one.
    pub lowers: &'a [PathBuf],
    /// The layer's own upper directory.
    pub upper: &'a Path,
    /// An empty directory on the same file system.
    pub work: &'a Path,
    /// An empty directory to mount at.
    pub target: &'a Path,
    /// Marks are `user.overlay.*`, as a user namespace has them, not `trusted.overlay.*`.
    pub userxattr: bool,
}

impl Overlay<'_> {
    /// Mounts it, does `work` with the mount point, and unmounts it. The thread must have a mount namespace of its own
    /// ([`crate::fsutil::own_mount_namespace`]).
    ///
    /// # Errors
    /// It cannot be mounted or unmounted; or what `work` gives.
    pub fn with<T>(&self, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.mount()?;
        let done = work(self.target);
        let unmounted = rustix::mount::unmount(self.target, UnmountFlags::empty());
        let done = done?;
        unmounted.map_err(|source| Error::Mount { layers: self.lowers.len(), source: source.into() })?;
        Ok(done)
    }

    fn mount(&self) -> Result<()> {
        let failed = |source| Error::Mount { layers: self.lowers.len(), source };
        let mut options = b"lowerdir=".to_vec();
        for (at, lower) in self.lowers.iter().enumerate() {
            if at > 0 {
                options.push(b':');
            }
            escape_overlay_option(lower, &mut options);
        }
        options.extend_from_slice(b",upperdir=");
        escape_overlay_option(self.upper, &mut options);
        options.extend_from_slice(b",workdir=");
        escape_overlay_option(self.work, &mut options);
        // Nothing is durable before the whole root is: without volatile, each unmount would write everything out.
        options.extend_from_slice(b",index=off,metacopy=off,redirect_dir=nofollow,volatile");
        if self.userxattr {
            options.extend_from_slice(b",userxattr");
        }
        if options.len() > MAX_OPTIONS {
            return Err(failed(Errno::TOOBIG.into()));
        }
        let options = CString::new(options).map_err(|error| failed(error.into()))?;
        rustix::process::chdir(self.directory).map_err(|errno| failed(errno.into()))?;
        rustix::mount::mount("overlay", self.target, "overlay", MountFlags::empty(), &*options)
            .map_err(|errno| failed(errno.into()))
    }

    /// Takes away what only this kernel and this file system understand, once it is unmounted, and gives the whiteouts
    /// that the kernel made their owner.
    ///
    /// # Errors
    /// A directory cannot be read or changed.
    pub fn settle(&self, owner: (u32, u32)) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        walk(self.upper, "examine", |directory, name, stat| match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.strip(directory, name),
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            }
            // A hard link to a file of a lower layer has copied it up.
            FileType::RegularFile if stat.st_nlink > 1 => self.strip(directory, name),
            _ => Ok(()),
        })
    }

    fn strip(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let space = if self.userxattr { "user" } else { "trusted" };
        for extra in EXTRAS {
            match sys::remove_xattr_at(directory, name, format!("{space}.overlay.{extra}").as_bytes()) {
                Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
