//! Attributes of directories that a layer needs and does not describe.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::{self, split};
use super::resolve::{Fault, resolve};
use super::{Error, Fate, Implied, Refusal, Result, sys};

/// Gives the `implied` directories of `upper` what the nearest of `lowers` has for them: owner, mode, xattrs
/// but `trusted.*`, and mtime; a directory that none has keeps 0755 and root, and gets the time 1970.
///
/// `lowers` are the upper directories of the parents, nearest first, each finished with its own `inherit`;
/// a path is looked up in each with symlinks resolved inside that one alone. One that has something else there
/// ends the search, as it does upstream. A directory that the layer did describe gets xattrs only, those that
/// it does not have.
///
/// # Errors
///
/// [`Error::Entry`] where a directory cannot be read or changed, or, as upstream, where a lower layer has a file
/// where the path needs a directory.
pub fn inherit(upper: &Path, implied: &[Implied], lowers: &[&Path]) -> Result<()> {
    if implied.is_empty() {
        return Ok(());
    }
    let open =
        |path: &Path| sys::open_root(path).map_err(|e| Error::entry("open", path.as_os_str().as_bytes(), e));
    let upper = open(upper)?;
    let lowers = lowers.iter().map(|lower| open(lower)).collect::<Result<Vec<_>>>()?;
    // A directory made inside one with the setgid bit takes over its group, but upstream sets the bit before.
    let mut groups = HashMap::new();
    for directory in implied {
        let path = directory.path.as_os_str().as_bytes();
        let fail = |e: Errno| Error::entry("inherit attributes of", path, e);
        let source = find(&lowers, path)?;
        let stat = source.as_ref().map(rustix::fs::fstat).transpose().map_err(fail)?;
        if let Some(stat) = stat
            && stat.st_mode & Mode::SGID.as_raw_mode() != 0
        {
            groups.insert(path, Gid::from_raw(stat.st_gid));
        }
        if directory.fate == Fate::Removed {
            continue;
        }
        let target = sys::open_directory(upper.as_fd(), path).map_err(fail)?;
        if directory.fate == Fate::Kept {
            let group = groups.get(split(path).0).copied().filter(|_| directory.below_implied);
            match stat {
                Some(stat) => {
                    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                    rustix::fs::fchown(&target, Some(uid), Some(gid)).map_err(fail)?;
                    rustix::fs::fchmod(&target, sys::mode(stat.st_mode)).map_err(fail)?;
                }
                None => rustix::fs::fchown(&target, None, group).map_err(fail)?,
            }
        }
        if let Some(source) = &source {
            copy_xattrs(source.as_fd(), target.as_fd()).map_err(fail)?;
        }
        if directory.fate == Fate::Kept {
            let mtime = stat.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |stat| Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec.cast_signed(),
            });
            let times = Timestamps { last_access: mtime, last_modification: mtime };
            rustix::fs::futimens(&target, &times).map_err(fail)?;
        }
    }
    Ok(())
}

fn find(lowers: &[OwnedFd], path: &[u8]) -> Result<Option<OwnedFd>> {
    for lower in lowers {
        let resolved = resolve(lower.as_fd(), path).map_err(|fault| match fault {
            Fault::Loop => Error::Refused { path: entry::path(path).to_owned(), refusal: Refusal::Loop },
            Fault::System(e) => Error::entry("look up in a lower layer", path, e),
        })?;
        let found = if resolved.is_empty() {
            rustix::io::dup(lower)
        } else {
            sys::open_directory(lower.as_fd(), &resolved)
        };
        match found {
            Ok(directory) => return Ok(Some(directory)),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => {
                // Something else at the path itself: it was replaced. In the middle of it: upstream fails.
                let (parent, name) = split(&resolved);
                let is_there = if parent.is_empty() {
                    sys::file_type(lower.as_fd(), name)
                } else {
                    sys::open_directory(lower.as_fd(), parent)
                        .and_then(|dir| sys::file_type(dir.as_fd(), name))
                };
                return match is_there {
                    Ok(_) => Ok(None),
                    Err(e) => Err(Error::entry("look up in a lower layer", path, e)),
                };
            }
            Err(e) => return Err(Error::entry("look up in a lower layer", path, e)),
        }
    }
    Ok(None)
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for name in sys::list_xattrs(from)?.iter().filter(|name| !name.starts_with(b"trusted.")) {
        let value = match sys::get_xattr(from, name) {
            Ok(value) => value,
            Err(Errno::NOTSUP | Errno::NODATA) => continue,
            Err(e) => return Err(e),
        };
        match rustix::fs::fsetxattr(to, name.as_slice(), &value, XattrFlags::CREATE) {
            Ok(()) | Err(Errno::NOTSUP | Errno::NODATA | Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
