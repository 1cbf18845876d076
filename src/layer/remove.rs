//! Removal of whatever stands where an entry goes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::entry::join;
use super::sys;

/// Removes `name` in `dir` with everything below it, following no symlink; what is not there is no error.
///
/// `removed` is told every path, relative to `dir`.
pub(super) fn remove_all(
    dir: BorrowedFd<'_>,
    name: &[u8],
    removed: &mut dyn FnMut(&[u8]),
) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => {
            removed(name);
            return Ok(());
        }
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if sys::is_directory(dir, name)? => {}
        Err(e) => return Err(e),
    }
    // Own stack, and no descriptor kept open: archives may nest as deep as paths go.
    let mut pending = vec![(name.to_vec(), false)];
    while let Some((path, emptied)) = pending.pop() {
        if emptied {
            rustix::fs::unlinkat(dir, &*path, AtFlags::REMOVEDIR)?;
            removed(&path);
            continue;
        }
        let directory = sys::open_directory(dir, &path)?;
        pending.push((path.clone(), true));
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => sys::is_directory(directory.as_fd(), name)?,
                file_type => file_type.is_dir(),
            };
            if is_directory {
                pending.push((join(&path, name), false));
            } else {
                rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
                removed(&join(&path, name));
            }
        }
    }
    Ok(())
}
