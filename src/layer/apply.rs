//! Entries to files.
//!
//! Each entry takes few system calls: its parent directory stays open while the archive stays inside it, files are
//! created without looking first (only where something is in the way is it looked at and removed), and all
//! attributes are set through the open file.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::{self, Entry, Kind, Owner, Whiteout, join, split};
use super::remove::remove_all;
use super::resolve::{Fault, resolve};
use super::tar::{Content, Segment};
use super::xattr::{self, ACCESS_LIST, CAPABILITY, DEFAULT_LIST};
use super::{Error, Fate, Implied, Options, Refusal, Result, Whiteouts, sys};
use crate::userns::{OutOfRange, Owners};

/// Directories kept open.
const OPEN: usize = 32;
/// The mark that hides what lower layers have in a directory.
const OPAQUE: &str = "trusted.overlay.opaque";

/// An open directory and its path in the layer, free of symlinks.
struct Directory {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// Writes the entries of one layer.
pub(super) struct Applier<'a> {
    options: &'a Options,
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
    made: Vec<Implied>,
    implied: BTreeMap<Vec<u8>, usize>,
    /// Where whiteouts remove: what the layer brought, removed again or not; directories that an opaque mark has
    /// emptied; and the times that directories of the layers below had before something was made in them.
    unpacked: HashSet<Vec<u8>>,
    emptied: HashSet<Vec<u8>>,
    touched: BTreeMap<Vec<u8>, Timestamps>,
}

impl<'a> Applier<'a> {
    pub(super) fn new(upper: &Path, options: &'a Options) -> Result<Self> {
        let fd = sys::open_root(upper).map_err(|e| Error::Entry {
            action: "open",
            path: upper.to_owned(),
            source: e.into(),
        })?;
        Ok(Self {
            options,
            root: Rc::new(Directory { fd, path: Vec::new() }),
            open: Vec::new(),
            alias: None,
            names: Vec::new(),
            times: Vec::new(),
            moved: false,
            made: Vec::new(),
            implied: BTreeMap::new(),
            unpacked: HashSet::new(),
            emptied: HashSet::new(),
            touched: BTreeMap::new(),
        })
    }

    /// Whether whiteouts remove what they hide.
    fn removes(&self) -> bool {
        self.options.whiteouts == Whiteouts::Remove
    }

    /// Unpacks one entry.
    pub(super) fn apply(&mut self, entry: &Entry, content: &mut Content<'_>) -> Result<()> {
        let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
        if entry.path.is_empty() || is_device && self.options.owners.is_namespace() {
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        let parent = self.parent(parent)?;
        if self.removes() {
            self.touch(&parent)?;
        }
        if let Some(whiteout) = entry.whiteout() {
            return self.hide(entry, &parent, whiteout);
        }
        self.create(entry, &parent, name, content)?;
        if !self.implied.is_empty() {
            self.describe(entry.kind, &join(&parent.path, name));
        }
        if self.removes() {
            self.unpacked.insert(join(&parent.path, name));
        }
        Ok(())
    }

    /// Remembers the times of a directory of the layers below, before something is made or removed in it.
    fn touch(&mut self, directory: &Directory) -> Result<()> {
        let path = &directory.path;
        if self.implied.contains_key(path) || self.unpacked.contains(path) || self.touched.contains_key(path)
        {
            return Ok(());
        }
        let stat = rustix::fs::fstat(&directory.fd).map_err(|e| Error::entry("examine", path, e))?;
        self.touched.insert(path.clone(), sys::times_of(&stat));
        Ok(())
    }

    /// Sets the times of directories, which unpacking below them has changed, and tells the implied ones.
    pub(super) fn finish(mut self) -> Result<Vec<Implied>> {
        for (path, times) in std::mem::take(&mut self.touched) {
            // What the layer has removed since has no times.
            if let Ok(directory) = sys::open_directory(self.root.fd.as_fd(), &path) {
                rustix::fs::futimens(&directory, &times)
                    .map_err(|e| Error::entry("set times of", &path, e))?;
            }
        }
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
        Ok(self.made)
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
                    self.own(&directory, &fd, &below)?;
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

    /// Gives a new directory to the root of the namespace, and to the group that the kernel gave it where the one that
    /// it is in has the setgid bit.
    fn own(&self, parent: &Directory, fd: &OwnedFd, path: &[u8]) -> Result<()> {
        let Owners::Namespace { .. } = self.options.owners else { return Ok(()) };
        let fail = |e: Errno| Error::entry("change owner of", path, e);
        let stat = rustix::fs::fstat(&parent.fd).map_err(fail)?;
        let inherits_group = stat.st_mode & Mode::SGID.as_raw_mode() != 0;
        let root = Owner { uid: Some(0), gid: (!inherits_group).then_some(0) };
        let (uid, gid) = self.owner(root, path)?;
        rustix::fs::fchown(fd, uid, gid).map_err(fail)
    }

    /// An owner on disk.
    fn owner(&self, owner: Owner, path: &[u8]) -> Result<(Option<Uid>, Option<Gid>)> {
        let owners = &self.options.owners;
        let map = || -> Result<_, OutOfRange> {
            let uid = owner.uid.map(|id| owners.user(id)).transpose()?;
            Ok((uid.map(Uid::from_raw), owner.gid.map(|id| owners.group(id)).transpose()?.map(Gid::from_raw)))
        };
        map().map_err(|source| Error::Owner { path: entry::path(path).to_owned(), source })
    }

    fn imply(&mut self, parent: &[u8], path: &[u8]) {
        let below_implied = self.fate(parent) == Some(Fate::Kept);
        let implied = Implied { path: entry::path(path).to_owned(), fate: Fate::Kept, below_implied };
        self.implied.insert(path.to_vec(), self.made.len());
        self.made.push(implied);
    }

    fn fate(&self, path: &[u8]) -> Option<Fate> {
        self.implied.get(path).map(|&at| self.made[at].fate)
    }

    // What is in the way.

    /// Removes `name` with everything below it.
    fn remove(&mut self, parent: &Directory, name: &[u8]) -> Result<()> {
        let path = join(&parent.path, name);
        let fail = |e: Errno| Error::entry("remove", &path, e);
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
            if let Some(at) = implied.remove(&join(&parent.path, removed)) {
                made[at].fate = Fate::Removed;
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
            self.made[at].fate = Fate::Described;
        }
    }

    fn hide(&mut self, entry: &Entry, parent: &Rc<Directory>, whiteout: Whiteout<'_>) -> Result<()> {
        let fail = |action| move |e: Errno| Error::entry(action, &entry.path, e);
        match whiteout {
            Whiteout::Invalid => Err(refused(entry, Refusal::Whiteout)),
            Whiteout::Opaque if self.removes() => self.empty(parent),
            Whiteout::Opaque => rustix::fs::fsetxattr(&parent.fd, OPAQUE, b"y", XattrFlags::empty())
                .map_err(fail("mark opaque by")),
            Whiteout::Name(name) if self.removes() => self.remove(parent, name),
            Whiteout::Name(name) => {
                let fail = fail("create whiteout device for");
                rustix::fs::mknodat(&parent.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(fail)?;
                let (uid, gid) = self.owner(entry.owner(), &entry.path)?;
                rustix::fs::chownat(&parent.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
                rustix::fs::utimensat(&parent.fd, name, &sys::times(entry), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail)
            }
        }
    }

    /// An opaque mark where whiteouts remove: of what is in the directory, and below, only what the layer brought
    /// stays. Upstream does it once for each directory.
    fn empty(&mut self, directory: &Rc<Directory>) -> Result<()> {
        if !self.emptied.insert(directory.path.clone()) {
            return Ok(());
        }
        let mut pending = vec![Rc::clone(directory)];
        while let Some(directory) = pending.pop() {
            let fail = |e: Errno| Error::entry("list", &directory.path, e);
            let mut names = Vec::new();
            for entry in Dir::read_from(&directory.fd).map_err(fail)? {
                let name = entry.map_err(fail)?.file_name().to_bytes().to_vec();
                if !matches!(name.as_slice(), b"." | b"..") {
                    names.push(name);
                }
            }
            for name in names {
                let path = join(&directory.path, &name);
                if !self.unpacked.contains(&path) {
                    self.remove(&directory, &name)?;
                } else if sys::is_directory(directory.fd.as_fd(), &name).map_err(fail)? {
                    let fd = sys::open_directory(directory.fd.as_fd(), &name).map_err(fail)?;
                    pending.push(Rc::new(Directory { fd, path }));
                }
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
            Kind::Global => return self.remove(parent, name),
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
        self.set_attributes(entry, parent, name)?;
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
        let (uid, gid) = self.owner(entry.owner(), &entry.path)?;
        rustix::fs::fchown(&file, uid, gid).map_err(fail("change owner of"))?;
        for (key, value) in entry.settable_xattrs() {
            let value = self.xattr(entry, key, value)?;
            match rustix::fs::fsetxattr(&file, key, &value, XattrFlags::empty()) {
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
        self.set_attributes(entry, parent, name)?;
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

    /// Owner, extended attributes and mode of what was just made at `name`.
    fn set_attributes(&self, entry: &Entry, parent: &Directory, name: &[u8]) -> Result<()> {
        let fail = |action| move |e: Errno| Error::entry(action, &entry.path, e);
        let dir = parent.fd.as_fd();
        let (uid, gid) = self.owner(entry.owner(), &entry.path)?;
        rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("change owner of"))?;
        // A hard link has the type of its target.
        let file_type = |fail| match entry.kind {
            Kind::HardLink => sys::file_type(dir, name).map_err(fail),
            Kind::Symlink => Ok(FileType::Symlink),
            Kind::Directory => Ok(FileType::Directory),
            _ => Ok(FileType::Unknown),
        };
        let file_type = file_type(fail("examine"))?;
        for (key, value) in entry.settable_xattrs() {
            let value = self.xattr(entry, key, value)?;
            match sys::set_xattr_at(dir, name, key, &value, XattrFlags::empty()) {
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

    /// The value that an extended attribute gets: file capabilities name the root of the namespace that they count in,
    /// and access lists have users and groups. What its daemon could not set is refused, whoever unpacks.
    fn xattr<'v>(&self, entry: &Entry, key: &[u8], value: &'v [u8]) -> Result<Cow<'v, [u8]>> {
        let owners = &self.options.owners;
        if !owners.is_namespace() {
            return Ok(Cow::Borrowed(value));
        }
        let shifted = match key {
            CAPABILITY => xattr::capability(value, owners),
            ACCESS_LIST | DEFAULT_LIST => xattr::access_list(value, owners),
            _ if xattr::is_for_root_alone(key) => return Err(refused(entry, Refusal::SecurityAttribute)),
            _ => return Ok(Cow::Borrowed(value)),
        };
        shifted.map(Cow::Owned).map_err(|source| Error::Owner { path: entry.path().to_owned(), source })
    }
}

fn refused(entry: &Entry, refusal: Refusal) -> Error {
    Error::Refused { path: entry.path().to_owned(), refusal }
}

/// Whether `path` is below `directory`, not itself.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}
