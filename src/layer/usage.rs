//! Disk usage, as containerd's overlay snapshotter counts it.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Stat};

use super::entry::join;
use super::{Error, Result, sys};

/// What a directory takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of the blocks of all distinct inodes, the directory's own included.
    pub size: u64,
    /// Number of distinct inodes.
    pub inodes: u64,
}

/// Counts `upper`, itself included; a file with several names counts once.
///
/// # Errors
///
/// [`Error::Entry`] where a directory cannot be read.
pub fn usage(upper: &Path) -> Result<Usage> {
    let fail = |path: &[u8]| {
        let path = path.to_vec();
        move |e: rustix::io::Errno| Error::entry("measure", &path, e)
    };
    let root = sys::open_root(upper).map_err(fail(b""))?;
    let mut count = Count::default();
    count.add(&rustix::fs::fstat(&root).map_err(fail(b""))?);
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
            count.add(&stat);
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                pending.push(join(&path, name));
            }
        }
    }
    Ok(count.usage)
}

#[derive(Default)]
struct Count {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        let is_directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
        if !is_directory && stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.size += stat.st_blocks.unsigned_abs() * 512;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn counts_inodes_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(at("d/a"), at("b")).unwrap();
        std::os::unix::fs::symlink("b", at("c")).unwrap();
        let blocks = |name: &str| std::fs::symlink_metadata(at(name)).unwrap().blocks() * 512;
        let expected = Usage { size: blocks("") + blocks("d") + blocks("b") + blocks("c"), inodes: 4 };
        assert_eq!(usage(dir.path()).unwrap(), expected);
    }
}
