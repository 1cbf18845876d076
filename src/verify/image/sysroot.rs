//! The file system of an image: that of this machine, or one that is mounted somewhere.
//!
//! Paths are those inside of the image, and links lead inside of it, absolute ones too: what is looked at is what the
//! machine that boots from the image would find, and nothing of the machine that looks.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FsWord, Stat, fstat, fstatfs};
use rustix::io::Errno;

use crate::root::FaultKind;
use crate::root::files::{self, FileFault, Tree};

const TMPFS: FsWord = 0x0102_1994;
const RAMFS: FsWord = 0x8584_58f6;

/// An image's `/`.
#[derive(Debug)]
pub(in super::super) struct Sysroot {
    tree: Tree,
    device: u64,
}

impl Sysroot {
    /// Opens the directory at `path`.
    pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
        let tree = Tree::open(path)?;
        let device = fstat(&tree)?.st_dev;
        Ok(Self { tree, device })
    }

    /// The directory at `path`, wherever it is mounted from.
    pub(in super::super) fn root(&self, path: &Path) -> io::Result<Tree> {
        Ok(self.tree.directory_in_root(path)?)
    }

    /// The directory at `path`; `None` where there is none, or none that an image would have.
    pub(super) fn directory(&self, path: &Path) -> Result<Option<Tree>, FileFault> {
        match self.tree.directory_in_root(path) {
            Ok(tree) => Ok(self.ships(&tree, &fstat(&tree)?).then_some(tree)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The bytes of the regular file at `path`, at most `limit`; `None` as for [`Sysroot::directory`].
    pub(super) fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileFault> {
        match self.tree.file_in_root(path) {
            Ok((file, stat)) if self.ships(&file, &stat) => files::read_whole(file, &stat, limit).map(Some),
            Ok(_) => Ok(None),
            Err(fault) if fault.kind == FaultKind::FileMissing || self.is_below_a_file(path) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Whether what should be a directory on the way to `path` is none: then nothing is at `path`.
    fn is_below_a_file(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| {
            matches!(self.tree.directory_in_root(parent), Err(Errno::NOTDIR | Errno::NOENT))
        })
    }

    /// Whether what was opened would be part of an image: what stands in memory ends with the machine.
    fn ships(&self, opened: impl AsFd, stat: &Stat) -> bool {
        let in_memory = |fd| fstatfs(fd).is_ok_and(|stat| matches!(stat.f_type, TMPFS | RAMFS));
        stat.st_dev == self.device || !in_memory(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::create_dir_all(image.join("var/real/docker")).unwrap();
        std::fs::create_dir(dir.path().join("var")).unwrap();
        std::fs::write(dir.path().join("outside"), "no").unwrap();
        std::fs::write(image.join("outside"), "yes").unwrap();
        std::fs::write(image.join("var/real/docker/file"), "12345").unwrap();
        symlink("/var/real", image.join("home")).unwrap();
        symlink("../../../../outside", image.join("var/real/up")).unwrap();
        symlink(dir.path().join("outside"), image.join("var/real/absolute")).unwrap();
        symlink("loop", image.join("loop")).unwrap();
        let sysroot = Sysroot::open(&image).unwrap();
        let read = |path: &str| sysroot.read(Path::new(path), 5).unwrap();
        assert_eq!(read("/home/docker/file").as_deref(), Some(b"12345".as_slice()));
        assert_eq!(read("home/up").as_deref(), Some(b"yes".as_slice()));
        for absent in ["/home/absolute", "/home/absent", "/outside/below", "/absent/below"] {
            assert_eq!(read(absent), None, "{absent}");
        }
        let kind = |path: &str, limit| sysroot.read(Path::new(path), limit).unwrap_err().kind;
        assert_eq!(kind("/home/docker/file", 4), FaultKind::FileUnreadable);
        assert_eq!(kind("/loop", 5), FaultKind::FileType);
        assert_eq!(kind("/home/docker", 5), FaultKind::FileType);
        assert!(sysroot.directory(Path::new("/home/docker")).unwrap().is_some());
        assert!(sysroot.directory(Path::new("/outside")).unwrap().is_none());
    }

    #[test]
    fn what_is_in_memory_is_in_no_image() {
        let in_memory = |path: &str| {
            let path = Path::new(path);
            std::fs::File::open(path)
                .ok()
                .and_then(|file| fstatfs(file).ok())
                .is_some_and(|stat| stat.f_type == TMPFS)
        };
        if in_memory("/") || !in_memory("/dev/shm") {
            return;
        }
        let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        assert_eq!(Sysroot::open(Path::new("/")).unwrap().read(file.path(), 5).unwrap(), None);
        let there = Sysroot::open(Path::new("/dev/shm")).unwrap();
        let name = Path::new(file.path().file_name().unwrap());
        assert_eq!(there.read(name, 5).unwrap(), Some(Vec::new()));
    }
}
