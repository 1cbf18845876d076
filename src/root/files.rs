//! Files of a root, opened without trust: nothing is followed out of it, nothing blocks.
//!
//! Every path is resolved below the root's own descriptor with `openat2` and `RESOLVE_BENEATH |
//! RESOLVE_NO_SYMLINKS`, so a symbolic link that somebody put into a root is a fault, not a way to
//! another file. Files are opened non-blocking, so a named pipe is a fault, not a wait.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::fault::FaultKind;

/// The largest database that is read; those of the largest builders have tens of megabytes.
pub(crate) const MAX_DATABASE: u64 = 4 << 30;

/// A directory below which paths are resolved.
#[derive(Debug)]
pub(crate) struct Tree {
    dir: OwnedFd,
    /// For messages only.
    pub(crate) path: PathBuf,
}

/// Why a file of a root cannot be used.
#[derive(Debug)]
pub(crate) struct FileFault {
    pub(crate) kind: FaultKind,
    pub(crate) detail: String,
}

impl From<Errno> for FileFault {
    fn from(errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT => FaultKind::FileMissing,
            Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NXIO => FaultKind::FileType,
            _ => FaultKind::FileUnreadable,
        };
        let detail = match errno {
            Errno::NOENT => "does not exist".to_owned(),
            Errno::LOOP | Errno::XDEV => "a symbolic link, which a root never has here".to_owned(),
            Errno::NOTDIR => "not a directory, or below something that is none".to_owned(),
            errno => io::Error::from(errno).to_string(),
        };
        Self { kind, detail }
    }
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Self { kind: FaultKind::FileUnreadable, detail: error.to_string() },
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(pub(crate) OsString);

impl Tree {
    /// Opens the directory at `path`, which may be a symbolic link to one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::open(path, flags, Mode::empty())?;
        Ok(Self { dir, path: path.to_owned() })
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // To read a root is not to use it; but only who owns a file may say so.
        let mut flags = flags | OFlags::CLOEXEC | OFlags::NOATIME;
        loop {
            match fs::openat2(&self.dir, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere in the tree while the kernel resolved the path.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => flags -= OFlags::NOATIME,
                other => return other,
            }
        }
    }

    /// A directory below this one, as a tree of its own.
    pub(crate) fn subtree(&self, path: &Path) -> Result<Self, FileFault> {
        let dir = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Self { dir, path: self.path.join(path) })
    }

    /// Type, mode, owner and size, symbolic links not followed.
    pub(crate) fn stat(&self, path: &Path) -> Result<Stat, FileFault> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // The last name may be a link: RESOLVE_NO_SYMLINKS would refuse it even with O_NOFOLLOW.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(fs::fstat(&self.dir)?);
        };
        if parent.as_os_str().is_empty() {
            return Ok(fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = fs::openat2(&self.dir, parent, flags, Mode::empty(), resolve)?;
        Ok(fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a regular file for reading.
    pub(crate) fn file(&self, path: &Path) -> Result<(File, Stat), FileFault> {
        regular(self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?)
    }

    /// The bytes of a regular file of at most `limit` bytes.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, FileFault> {
        let (file, stat) = self.file(path)?;
        read_whole(file, &stat, limit)
    }

    /// The target of a symbolic link in this directory.
    pub(crate) fn read_link(&self, name: &OsStr) -> Result<Vec<u8>, FileFault> {
        Ok(fs::readlinkat(&self.dir, name, Vec::new())?.into_bytes())
    }

    /// A directory below this one, where links lead as if this one were the root of all.
    pub(crate) fn directory_in_root(&self, path: &Path) -> Result<Self, Errno> {
        let dir = self.open_in_root(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Self { dir, path: self.path.join(path.strip_prefix("/").unwrap_or(path)) })
    }

    /// As [`Tree::file`], where links lead as if this one were the root of all.
    pub(crate) fn file_in_root(&self, path: &Path) -> Result<(File, Stat), FileFault> {
        regular(self.open_in_root(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?)
    }

    fn open_in_root(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // With `..` in the path, for any rename on the system.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// All extended attributes of `name` in this directory (`.` for itself), links not followed.
    pub(crate) fn xattrs(&self, name: &OsStr) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, FileFault> {
        // There is no llistxattrat in older kernels; the link in /proc leads to the open directory.
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        path.push(name);
        let mut list = Vec::new();
        match grow(&mut list, |buffer| fs::llistxattr(&path, buffer)) {
            Ok(()) => {}
            Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
            Err(errno) => return Err(errno.into()),
        }
        let mut xattrs = BTreeMap::new();
        for name in list.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            let mut value = Vec::new();
            grow(&mut value, |buffer| fs::lgetxattr(&path, name, buffer))?;
            xattrs.insert(name.to_vec(), value);
        }
        Ok(xattrs)
    }

    /// The names in a directory, in order, with their types as the directory tells them.
    pub(crate) fn list(&self, path: &Path) -> Result<Vec<(Name, FileType)>, FileFault> {
        let dir = fs::Dir::new(self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
        let mut names = Vec::new();
        for entry in dir {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((Name(OsString::from_vec(name.to_vec())), entry.file_type()));
            }
        }
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(names)
    }

    /// Takes a shared lock of a file, if there is one. `Ok(None)`: no such file.
    ///
    /// # Errors
    /// `WOULDBLOCK` where another process holds it.
    pub(crate) fn lock(&self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        let Ok(fd) = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK) else { return Ok(None) };
        match fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Err(Errno::WOULDBLOCK),
            // A file system without locks, or no regular file: reading will tell.
            Err(_) => Ok(None),
            Ok(()) => Ok(Some(fd)),
        }
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn regular(fd: OwnedFd) -> Result<(File, Stat), FileFault> {
    let stat = fs::fstat(&fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((File::from(fd), stat)),
        found => Err(FileFault {
            kind: FaultKind::FileType,
            detail: format!("{}, not a regular file", describe(found)),
        }),
    }
}

/// The bytes of an open file of at most `limit` bytes.
pub(crate) fn read_whole(file: File, stat: &Stat, limit: u64) -> Result<Vec<u8>, FileFault> {
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    let too_long = || FileFault {
        kind: FaultKind::FileUnreadable,
        detail: format!("{size} bytes, more than the {limit} that are read"),
    };
    if size > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(bytes) }
}

/// Calls `read` with buffers that grow until what there is fits.
fn grow(buffer: &mut Vec<u8>, read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
    let mut size = 256;
    loop {
        buffer.resize(size, 0);
        match read(buffer.as_mut_slice()) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(());
            }
            // The kernel allows 64 KiB for either.
            Err(Errno::RANGE) if size < 1 << 20 => size *= 4,
            Err(errno) => return Err(errno),
        }
    }
}

/// What a file type is called in messages.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "something unknown",
    }
}

/// Where the worker keeps its snapshot directories, relative to the root.
pub(crate) fn snapshots(worker: &Path) -> PathBuf {
    worker.join("snapshots/snapshots")
}

/// Where the worker keeps its blobs, relative to the root.
pub(crate) fn blobs(worker: &Path) -> PathBuf {
    worker.join("content/blobs/sha256")
}

/// Whether snapshots of this snapshotter have `fs` and `work`; the native one's are the tree itself.
pub(crate) fn has_upper(snapshotter: &str) -> bool {
    snapshotter != "native"
}

/// The directory that holds the files of snapshot `id`, relative to the root.
pub(crate) fn upper(worker: &Path, snapshotter: &str, id: u64) -> PathBuf {
    let directory = snapshots(worker).join(id.to_string());
    if has_upper(snapshotter) { directory.join("fs") } else { directory }
}

/// Visits everything in `tree`, itself (as the empty path) included, in no particular order. Returns what
/// could not be visited.
pub(crate) fn walk(tree: &Tree, mut visit: impl FnMut(&Path, &Stat)) -> Vec<(PathBuf, FileFault)> {
    let mut faults = Vec::new();
    match tree.stat(Path::new("")) {
        Ok(stat) => visit(Path::new(""), &stat),
        Err(fault) => faults.push((PathBuf::new(), fault)),
    }
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        // One descriptor for all names of the directory; paths are not resolved again for each.
        let listed = tree.subtree(&directory).and_then(|tree| Ok((tree.list(Path::new(""))?, tree)));
        let (names, here) = match listed {
            Ok(listed) => listed,
            Err(fault) => {
                faults.push((directory, fault));
                continue;
            }
        };
        for (name, _) in names {
            let path = directory.join(&name.0);
            match here.stat(Path::new(&name.0)) {
                Ok(stat) => {
                    visit(&path, &stat);
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        directories.push(path);
                    }
                }
                Err(fault) => faults.push((path, fault)),
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_pipes_are_faults() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let root = dir.path().join("root");
        symlink("../secret", root.join("out")).unwrap();
        symlink("file", root.join("inside")).unwrap();
        symlink(".", root.join("dir")).unwrap();
        std::fs::write(root.join("file"), "12345").unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), FileType::Fifo, mode, 0).unwrap();

        let tree = Tree::open(&root).unwrap();
        let kind = |path: &str| tree.read(Path::new(path), 5).unwrap_err().kind;
        for path in ["out", "inside", "dir/file", "../secret", "pipe", ".", "file/x"] {
            assert_eq!(kind(path), FaultKind::FileType, "{path}");
        }
        assert_eq!(kind("absent"), FaultKind::FileMissing);
        assert_eq!(tree.read(Path::new("file"), 5).unwrap(), b"12345");
        let long = tree.read(Path::new("file"), 4).unwrap_err();
        assert_eq!(long.kind, FaultKind::FileUnreadable);
        let names: Vec<_> = tree.list(Path::new("")).unwrap().into_iter().map(|(n, _)| n.0).collect();
        assert_eq!(names, ["dir", "file", "inside", "out", "pipe"]);
    }

    #[test]
    fn a_lock_that_another_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        assert!(tree.lock(Path::new("lock")).unwrap().is_some());
        assert!(tree.lock(Path::new("absent")).unwrap().is_none());
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(tree.lock(Path::new("lock")).unwrap_err(), Errno::WOULDBLOCK);
    }
}
