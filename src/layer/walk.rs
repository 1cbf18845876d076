//! Everything below a directory.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::entry::join;
use super::{Error, Result, sys};

/// Shows to `visit` the directory `root`, as `.` in itself, and each entry below it: the directory that it is in, its
/// name there, and what it is. No symlink is followed.
///
/// # Errors
/// [`Error::Entry`], of this action, where a directory cannot be read or `visit` fails.
pub(super) fn walk(
    root: &Path,
    action: &'static str,
    mut visit: impl FnMut(BorrowedFd<'_>, &[u8], &Stat) -> Result<(), Errno>,
) -> Result<()> {
    let fail = |path: &[u8]| {
        let path = path.to_vec();
        move |e: Errno| Error::entry(action, &path, e)
    };
    let root = sys::open_root(root).map_err(fail(b""))?;
    let stat = rustix::fs::fstat(&root).map_err(fail(b""))?;
    visit(root.as_fd(), b".", &stat).map_err(fail(b""))?;
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let opened =
            if path.is_empty() { rustix::io::dup(&root) } else { sys::open_directory(root.as_fd(), &path) };
        let directory = opened.map_err(fail(&path))?;
        for entry in Dir::read_from(&directory).map_err(fail(&path))? {
            let entry = entry.map_err(fail(&path))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let stat =
                rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail(&path))?;
            visit(directory.as_fd(), name, &stat).map_err(fail(&path))?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                pending.push(join(&path, name));
            }
        }
    }
    Ok(())
}
