//! Disk usage, as containerd's overlay snapshotter counts it.

use std::collections::HashSet;
use std::path::Path;

use rustix::fs::Stat;

use super::Result;
use super::walk::walk;

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
/// [`super::Error::Entry`] where a directory cannot be read.
pub fn usage(upper: &Path) -> Result<Usage> {
    let mut count = Count::default();
    walk(upper, "measure", |_, _, stat| {
        count.add(stat);
        Ok(())
    })?;
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
