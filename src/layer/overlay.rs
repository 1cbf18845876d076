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
//! Mirrors containerd v2.4 `core/diff/apply/apply_linux.go`, and `temp.go` and `mount_unix.go` of `core/mount`.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::walk::walk;
use super::{Error, Result, sys};
use crate::fsutil::escape_overlay_option;

/// The kernel takes a page of options, with a zero at its end.
const MAX_OPTIONS: usize = 4095;
/// How long a mount may be busy, and how often it is looked at whether it still is.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);
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
        let unmounted = self.unmount();
        let done = done?;
        unmounted.map_err(|source| Error::Unmount { path: self.target.to_owned(), source: source.into() })?;
        Ok(done)
    }

    /// Whatever this process starts meanwhile, such as a credential helper, has all that is open here until it runs its
    /// own program: that long the mount is busy.
    fn unmount(&self) -> Result<(), Errno> {
        let begin = Instant::now();
        loop {
            match rustix::mount::unmount(self.target, UnmountFlags::empty()) {
                Err(Errno::BUSY) if begin.elapsed() < PATIENCE => thread::sleep(LOOK),
                ended => return ended,
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsutil;
    use std::fs::{self, File};

    /// As what another thread starts has it.
    #[test]
    fn a_file_that_is_open_for_a_moment_does_not_keep_it_mounted() {
        if !fsutil::is_root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        for name in ["lower", "upper", "work", "target"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("lower/file"), "").unwrap();
        let work = || {
            fsutil::own_mount_namespace().unwrap();
            let (lowers, upper, work, target) =
                ([path("lower")], path("upper"), path("work"), path("target"));
            let overlay = Overlay {
                directory: temp.path(),
                lowers: &lowers,
                upper: &upper,
                work: &work,
                target: &target,
                userxattr: false,
            };
            let holder = overlay.with(|at| {
                let file = File::open(at.join("file")).unwrap();
                Ok(thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    drop(file);
                }))
            });
            holder.unwrap().join().unwrap();
            assert!(fs::read_dir(&target).unwrap().next().is_none(), "it is mounted still");
        };
        thread::scope(|scope| scope.spawn(work).join()).unwrap();
    }
}
