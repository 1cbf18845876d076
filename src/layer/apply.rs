//! Entries to files.
//!
//! Each entry takes few system calls: its parent directory stays open while the archive stays inside it, files are
//! created without looking first (only where something is in the way is it looked at and removed), and all
//! attributes are set through the open file.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::entry::{self, Entry, Kind, Whiteout, join, split};
use super::remove::remove_all;
use super::resolve::{Fault, resolve};
use super::tar::{Content, Segment};
use super::{Error, Fate, Implied, Refusal, Result, sys};

/// Directories kept open.
const OPEN: usize = 32;
/// The mark that hides what lower layers have in a directory.
const OPAQUE: &str = "trusted.overlay.opaque";

/// An open directory and its path in the layer, free of symlinks.
struct Directory {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// A directory made because something below it came first.
struct Made {
    implied: Implied,
    /// Upstream remembers an entry of this path, though it was removed since.
    remembered: bool,
}

/// Writes the entries of one layer.
pub(super) struct Applier {
    base: bool,
    root: Rc<Directory>,
    /// Directories on the way to the last entry's, outermost first.
    open: Vec<Rc<Directory>>,
    /// The last directory that was reached through a symlink, by the path that was asked for.
    alias: Option<(Vec<u8>, Rc<Directory>)>,
    /// Names of all directory entries, one after the other, and where each ends, with its times.
    names: Vec<u8>,
    times: Vec<(usize, Timestamps)>,
    /// A directory or symlink was removed, so a path may lead elsewhere now than when it was unpacked.
    moved: bool,
    /// Implied directories in the order of their making, and where each path stands in them.
    made: Vec<Made>,
    implied: BTreeMap<Vec<u8>, usize>,
    /// In a base layer: directories that an opaque mark has emptied, and paths that were unpacked and removed.
    emptied: HashSet<Vec<u8>>,
    removed: HashSet<Vec<u8>>,
}

impl Applier {
    pub(super) fn new(upper: &Path, base: bool) -> Result<Self> {
        let fd = sys::open_root(upper).map_err(|e| Error::Entry {
            action: "open",
            path: upper.to_owned(),
            source: e.into(),
        })?;
        Ok(Self {
            base,
            root: Rc::new(Directory { fd, path: Vec::new() }),
            open: Vec::new(),
            alias: None,
            names: Vec::new(),
            times: Vec::new(),
            moved: false,
            made: Vec::new(),
            implied: BTreeMap::new(),
            emptied: HashSet::new(),
            removed: HashSet::new(),
        })
    }

    /// Unpacks one entry.
    pub(super) fn apply(&mut self, entry: &Entry, content: &mut Content<'_>) -> Result<()> {
        if entry.path.is_empty() {
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        let parent = self.parent(parent)?;
        if let Some(whiteout) = entry.whiteout() {
            return self.hide(entry, &parent, whiteout);
        }
        self.create(entry, &parent, name, content)?;
        if !self.implied.is_empty() {
            self.describe(entry.kind, &join(&parent.path, name));
        }
        Ok(())
    }

    /// Sets the times of directories, which unpacking below them has changed, and tells the implied ones.
    pub(super) fn finish(mut self) -> Result<Vec<Implied>> {
        let names = std::mem::take(&mut self.names);
        let mut start = 0;
        for (end, times) in std::mem::take(&mut self.times) {
            let path = &names[start..end];
            start = end;
            let fail = |e: Errno| Error::entry("set times of", path, e);
            // The entry may have become a symlink; upstream follows it inside the layer.
            let resolved = if self.moved { Some(self.resolve(path)?) } else { None };
            let (parent, name) = split(resolved.as_deref().unwrap_or(path));
            if name.is_empty() {
                rustix::fs::futimens(&self.root.fd, &times).map_err(fail)?;
                continue;
            }
            let parent = self.existing(parent)?;
            rustix::fs::utimensat(&parent.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        }
        Ok(self.made.into_iter().map(|made| made.implied).collect())
    }

    // Where things go.

    /// The directory `path` (clean), made with its parents where it does not exist.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        if let Some(directory) = self.lookup(path) {
            return Ok(directory);
        }
        match self.open_below(path) {
            Ok(directory) => Ok(directory),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let resolved = self.resolve(path)?;
                let directory = self.make_directories(&resolved)?;
                if resolved == path {
                    self.keep_open(&directory);
                } else {
                    self.alias = Some((path.to_vec(), Rc::clone(&directory)));
                }
                Ok(directory)
            }
            Err(e) => Err(Error::entry("open directory", path, e)),
        }
    }

    /// The directory `path`, which may be of any shape; not made.
    fn existing(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        let clean = !path.split(|&b| b == b'/').any(|part| matches!(part, b"" | b"." | b".."));
        if path.is_empty() || clean {
            if let Some(directory) = self.lookup(path) {
                return Ok(directory);
            }
            if let Ok(fd) = sys::open_directory(self.root.fd.as_fd(), path) {
                return Ok(Rc::new(Directory { fd, path: path.to_vec() }));
            }
        }
        let resolved = self.resolve(path)?;
        if resolved.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        let fd = sys::open_directory(self.root.fd.as_fd(), &resolved)
            .map_err(|e| Error::entry("open directory", &resolved, e))?;
        Ok(Rc::new(Directory { fd, path: resolved }))
    }

    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>> {
        resolve(self.root.fd.as_fd(), path).map_err(|fault| match fault {
            Fault::Loop => Error::Refused { path: entry::path(path).to_owned(), refusal: Refusal::Loop },
            Fault::System(e) => Error::entry("resolve", path, e),
        })
    }

    fn lookup(&self, path: &[u8]) -> Option<Rc<Directory>> {
        if path.is_empty() {
            return Some(Rc::clone(&self.root));
        }
        if let Some((alias, directory)) = &self.alias
            && alias == path
        {
            return Some(Rc::clone(directory));
        }
        self.open.iter().rev().find(|directory| directory.path == path).cloned()
    }

    /// Opens an existing directory that no symlink leads to, from the nearest open one.
    fn open_below(&mut self, path: &[u8]) -> Result<Rc<Directory>, Errno> {
        while self.open.last().is_some_and(|top| !is_below(path, &top.path)) {
            self.open.pop();
        }
        let (from, rest) = match self.open.last() {
            Some(top) => (top, &path[top.path.len() + 1..]),
            None => (&self.root, path),
        };
        let fd = sys::open_directory(from.fd.as_fd(), rest)?;
        let directory = Rc::new(Directory { fd, path: path.to_vec() });
        self.keep_open(&directory);
        Ok(directory)
    }

    fn keep_open(&mut self, directory: &Rc<Directory>) {
        while self.open.last().is_some_and(|top| !is_below(&directory.path, &top.path)) {
            self.open.pop();
        }
        if self.open.len() < OPEN && !directory.path.is_empty() {
            self.open.push(Rc::clone(directory));
        }
    }

    /// Opens the directory `path` (free of symlinks), making what is missing.
    fn make_directories(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        let mut directory = Rc::clone(&self.root);
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            let below = join(&directory.path, name);
            let fail = |e: Errno| Error::entry("create parent directory", &below, e);
            let fd = match sys::open_directory(directory.fd.as_fd(), name) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&directory.fd, name, sys::mode(0o755)).map_err(fail)?;
                    let fd = sys::open_directory(directory.fd.as_fd(), name).map_err(fail)?;
                    rustix::fs::fchmod(&fd, sys::mode(0o755)).map_err(fail)?;
                    self.imply(&directory.path, &below);
                    fd
                }
                opened => opened.map_err(fail)?,
            };
            directory = Rc::new(Directory { fd, path: below });
        }
        Ok(directory)
    }

    fn imply(&mut self, parent: &[u8], path: &[u8]) {
        let below_implied = self.fate(parent) == Some(Fate::Kept);
        let implied = Implied { path: entry::path(path).to_owned(), fate: Fate::Kept, below_implied };
        self.implied.insert(path.to_vec(), self.made.len());
        self.made.push(Made { implied, remembered: self.removed.contains(path) });
    }

    fn fate(&self, path: &[u8]) -> Option<Fate> {
        self.implied.get(path).map(|&at| self.made[at].implied.fate)
    }

    // What is in the way.

    /// Removes `name` with everything below it.
    fn remove(&mut self, parent: &Directory, name: &[u8]) -> Result<()> {
        let path = join(&parent.path, name);
        let fail = |e: Errno| Error::entry("remove", &path, e);
        let (base, gone) = (self.base, &mut self.removed);
        let removed_type = match sys::file_type(parent.fd.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            file_type => file_type.map_err(fail)?,
        };
        if matches!(removed_type, FileType::Directory | FileType::Symlink) {
            self.moved = true;
            self.alias = None;
            self.open.retain(|open| open.path != path && !is_below(&open.path, &path));
        }
        let (implied, made) = (&mut self.implied, &mut self.made);
        remove_all(parent.fd.as_fd(), name, &mut |removed| {
            let path = join(&parent.path, removed);
            let mut had_entry = true;
            if let Some(at) = implied.remove(&path) {
                let made = &mut made[at];
                had_entry = made.remembered || made.implied.fate == Fate::Described;
                made.implied.fate = Fate::Removed;
            }
            if base && had_entry {
                gone.insert(path);
            }
        })
        .map_err(fail)
    }

    /// Makes something new at `name`, removing what stands there.
    fn place<T>(
        &mut self,
        action: &'static str,
        parent: &Directory,
        name: &[u8],
        mut create: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let result = match create(parent.fd.as_fd()) {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                create(parent.fd.as_fd())
            }
            done => done,
        };
        result.map_err(|e| Error::entry(action, &join(&parent.path, name), e))
    }

    /// An entry of its own came for a directory that was implied.
    fn describe(&mut self, kind: Kind, path: &[u8]) {
        if let Some(&at) = self.implied.get(path)
            && kind == Kind::Directory
        {
            self.made[at].implied.fate = Fate::Described;
        }
    }

    fn hide(&mut self, entry: &Entry, parent: &Rc<Directory>, whiteout: Whiteout<'_>) -> Result<()> {
        let fail = |action| move |e: Errno| Error::entry(action, &entry.path, e);
        match whiteout {
            Whiteout::Invalid => Err(refused(entry, Refusal::Whiteout)),
            Whiteout::Opaque if self.base => self.empty(parent),
            Whiteout::Opaque => rustix::fs::fsetxattr(&parent.fd, OPAQUE, b"y", XattrFlags::empty())
                .map_err(fail("mark opaque by")),
            Whiteout::Name(name) if self.base => self.remove(parent, name),
            Whiteout::Name(name) => {
                let fail = fail("create whiteout device for");
                rustix::fs::mknodat(&parent.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(fail)?;
                let (uid, gid) = sys::ids(entry.owner());
                rustix::fs::chownat(&parent.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
                rustix::fs::utimensat(&parent.fd, name, &sys::times(entry), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail)
            }
        }
    }

    /// An opaque mark in a base layer: of what is in the directory, only what had an entry of its own stays; the
    /// rest are implied directories. Upstream does it once for each directory.
    fn empty(&mut self, directory: &Rc<Directory>) -> Result<()> {
        if !self.emptied.insert(directory.path.clone()) {
            return Ok(());
        }
        let mut doomed: Vec<Vec<u8>> = self
            .implied
            .iter()
            .filter(|&(path, &at)| {
                let made = &self.made[at];
                is_below(path, &directory.path) && !made.remembered && made.implied.fate == Fate::Kept
            })
            .map(|(path, _)| path.clone())
            .collect();
        // A path sorts before those below it, but siblings may sort between: go by the last one that was removed.
        doomed.dedup_by(|path, before| is_below(path, before));
        for path in doomed {
            let (parent, name) = split(&path);
            if let Ok(parent) = self.existing(parent) {
                self.remove(&parent, name)?;
            }
        }
        Ok(())
    }

    // What is made.

    fn create(
        &mut self,
        entry: &Entry,
        parent: &Rc<Directory>,
        name: &[u8],
        content: &mut Content<'_>,
    ) -> Result<()> {
        match entry.kind {
            Kind::File => return self.create_file(entry, parent, name, content),
            Kind::Directory => return self.create_directory(entry, parent, name),
            Kind::Global => {
                self.remove(parent, name)?;
                if self.base {
                    self.removed.insert(join(&parent.path, name));
                }
                return Ok(());
            }
            Kind::Symlink => {
                self.place("create symlink", parent, name, |dir| {
                    rustix::fs::symlinkat(entry.link.as_slice(), dir, name)
                })?;
                // Paths that were dangling or plain may lead elsewhere now.
                self.alias = None;
            }
            Kind::HardLink => self.create_link(entry, parent, name)?,
            Kind::CharDevice => self.create_node(entry, parent, name, FileType::CharacterDevice)?,
            Kind::BlockDevice => self.create_node(entry, parent, name, FileType::BlockDevice)?,
            Kind::Fifo => self.create_node(entry, parent, name, FileType::Fifo)?,
            Kind::Other(flag) => return Err(refused(entry, Refusal::Type(flag.into()))),
        }
        set_attributes(entry, parent, name)?;
        rustix::fs::utimensat(&parent.fd, name, &sys::times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::entry("set times of", &entry.path, e))
    }

    fn create_file(
        &mut self,
        entry: &Entry,
        parent: &Rc<Directory>,
        name: &[u8],
        content: &mut Content<'_>,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.place("create file", parent, name, |dir| {
            rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let fail = |action| move |e: Errno| Error::entry(action, &entry.path, e);
        let mut ends_in_hole = false;
        loop {
            match content.segment()? {
                Segment::Data(data) => {
                    sys::write_all(&file, data).map_err(fail("write"))?;
                    ends_in_hole = false;
                }
                Segment::Hole(length) => {
                    let by = i64::try_from(length).map_err(|_| Errno::FBIG).map_err(fail("write"))?;
                    rustix::fs::seek(&file, rustix::fs::SeekFrom::Current(by)).map_err(fail("write"))?;
                    ends_in_hole = true;
                }
                Segment::End => break,
            }
        }
        if ends_in_hole {
            rustix::fs::ftruncate(&file, entry.size).map_err(fail("set size of"))?;
        }
        // Writing and changing the owner clear capabilities and setuid bits: so this order.
        let (uid, gid) = sys::ids(entry.owner());
        rustix::fs::fchown(&file, uid, gid).map_err(fail("change owner of"))?;
        for (key, value) in entry.settable_xattrs() {
            match rustix::fs::fsetxattr(&file, key, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(e) => return Err(Error::entry("set extended attribute of", &entry.path, e)),
            }
        }
        rustix::fs::fchmod(&file, sys::mode(entry.permissions())).map_err(fail("change mode of"))?;
        rustix::fs::futimens(&file, &sys::times(entry)).map_err(fail("set times of"))
    }

    fn create_directory(&mut self, entry: &Entry, parent: &Rc<Directory>, name: &[u8]) -> Result<()> {
        let create = |dir: BorrowedFd<'_>| match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            // A directory is not replaced but described.
            Err(Errno::EXIST) if sys::is_directory(dir, name)? => Ok(()),
            done => done,
        };
        self.place("create directory", parent, name, create)?;
        set_attributes(entry, parent, name)?;
        let times = sys::times(entry);
        self.names.extend_from_slice(&entry.path);
        self.times.push((self.names.len(), times.clone()));
        // Now too: the path may lead elsewhere at the end.
        rustix::fs::utimensat(&parent.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::entry("set times of", &entry.path, e))
    }

    fn create_link(&mut self, entry: &Entry, parent: &Rc<Directory>, name: &[u8]) -> Result<()> {
        let slash = entry.link.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let (directory, target) = entry.link.split_at(slash);
        if matches!(target, b"" | b"." | b"..") {
            return Err(refused(entry, Refusal::LinkToDirectory));
        }
        // Upstream removes what is in the way before it looks for the target.
        let directory = directory.strip_suffix(b"/").unwrap_or(directory);
        let directory = if directory.is_empty() {
            Rc::clone(&self.root)
        } else if directory == parent.path {
            Rc::clone(parent)
        } else {
            self.existing(directory)?
        };
        self.place("create hard link", parent, name, |dir| {
            rustix::fs::linkat(&directory.fd, target, dir, name, AtFlags::empty())
        })
    }

    fn create_node(
        &mut self,
        entry: &Entry,
        parent: &Rc<Directory>,
        name: &[u8],
        file_type: FileType,
    ) -> Result<()> {
        let (Ok(major), Ok(minor)) = (u32::try_from(entry.device.major), u32::try_from(entry.device.minor))
        else {
            return Err(refused(entry, Refusal::Device));
        };
        let device = rustix::fs::makedev(major, minor);
        self.place("create device", parent, name, |dir| {
            rustix::fs::mknodat(dir, name, file_type, Mode::RUSR | Mode::WUSR, device)
        })
    }
}

/// Owner, extended attributes and mode of what was just made at `name`.
fn set_attributes(entry: &Entry, parent: &Directory, name: &[u8]) -> Result<()> {
    let fail = |action| move |e: Errno| Error::entry(action, &entry.path, e);
    let dir = parent.fd.as_fd();
    let (uid, gid) = sys::ids(entry.owner());
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(fail("change owner of"))?;
    // A hard link has the type of its target.
    let file_type = |fail| match entry.kind {
        Kind::HardLink => sys::file_type(dir, name).map_err(fail),
        Kind::Symlink => Ok(FileType::Symlink),
        Kind::Directory => Ok(FileType::Directory),
        _ => Ok(FileType::Unknown),
    };
    let file_type = file_type(fail("examine"))?;
    for (key, value) in entry.settable_xattrs() {
        match sys::set_xattr_at(dir, name, key, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            // Only files and directories can have these.
            Err(Errno::PERM)
                if key.starts_with(b"user.")
                    && !matches!(file_type, FileType::RegularFile | FileType::Directory) => {}
            Err(e) => return Err(Error::entry("set extended attribute of", &entry.path, e)),
        }
    }
    if file_type != FileType::Symlink {
        let mode = sys::mode(entry.permissions());
        rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).map_err(fail("change mode of"))?;
    }
    Ok(())
}

fn refused(entry: &Entry, refusal: Refusal) -> Error {
    Error::Refused { path: entry.path().to_owned(), refusal }
}

/// Whether `path` is below `directory`, not itself.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}
