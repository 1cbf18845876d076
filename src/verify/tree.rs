//! The file tree that a layer makes, in memory, entry by entry.
//!
//! Where layers are extracted onto what those below show ([`Tree::onto`]), it has of that only what the entries touch:
//! a name is looked up below when something asks for it.
//!
//! Written against what containerd's applier does (`pkg/archive/tar.go`), not against our own, so that a
//! fault of either shows. The memory goes with the number of paths, not with their bytes.

mod below;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;

use super::owners;
use super::view::View;
use crate::layer::{Entry, Kind, Time, Whiteout};
use crate::root::files::FileFault;
use crate::userns::{OutOfRange, Owners};
use below::Below;
pub(super) use below::lower;

/// Symbolic links on one path.
const MAX_LINKS: usize = 255;
/// The index of the layer's own directory.
pub(super) const ROOT: usize = 0;

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory(BTreeMap<Vec<u8>, usize>),
    /// With what the comparison of the bytes gave, made while they streamed by: `None` for the same.
    File(Option<String>),
    /// A file of the layers below: in which directory of the tree, and its name there.
    Lower(usize, Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// Hides what lower layers have here.
    Whiteout,
}

/// Who described a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Described {
    /// An entry, when it was made.
    First,
    /// An entry that came after something below it.
    Later,
    /// None: it has what lower layers have for it.
    Never,
    /// None: it is that of the layers below, onto which the layer was extracted.
    Below,
}

/// A file, by inode: several paths may lead to it.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) node: Node,
    pub(super) described: Described,
    /// Permission bits; meaningless for symbolic links.
    pub(super) mode: u32,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// `None` where it depends on when the layer was unpacked.
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) opaque: bool,
}

/// The tree of one layer.
#[derive(Debug)]
pub(super) struct Tree<'v> {
    pub(super) inodes: Vec<Inode>,
    owners: &'v Owners,
    /// What the layers below show.
    view: Option<&'v View>,
    /// The directories that they have.
    below: HashMap<usize, Below>,
    /// Their files that have several names, where these stay one file.
    by_file: HashMap<(u64, u64), usize>,
    base: bool,
    /// Every directory entry with its time, in order: they are set when all is unpacked.
    times: Vec<(Vec<u8>, Time)>,
    /// A directory or link was replaced, so a path may lead elsewhere at the end.
    moved: bool,
    /// In a base layer: directories that an opaque mark has emptied, and every path that had an entry,
    /// though it may be gone again.
    emptied: BTreeSet<usize>,
    remembered: BTreeSet<Vec<u8>>,
}

/// Where a path leads: the names on the way, free of links, and the inode.
type Found = (Vec<Vec<u8>>, usize);

/// Why an entry cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("a path goes through more than {MAX_LINKS} symbolic links")]
    Loop,
    #[error("a path goes through something that is no directory")]
    NotADirectory,
    #[error("the target of a hard link does not exist")]
    LinkTarget,
    #[error("an invalid whiteout")]
    Whiteout,
    #[error("an entry of type {0:#x}, which layers never have")]
    Type(u8),
    #[error("a device number out of range")]
    Device,
    #[error(transparent)]
    Owner(#[from] OutOfRange),
    #[error("the layers below: {0}")]
    Below(String),
}

impl From<FileFault> for Fault {
    fn from(fault: FileFault) -> Self {
        Self::Below(fault.detail)
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

/// Cleans a path as text: `..` takes off the part before it. `rooted`: as seen from the root, else leading
/// `..` stay, and nothing is `.`.
fn cleaned(path: &[u8], rooted: bool) -> Vec<u8> {
    let mut stack: Vec<&[u8]> = Vec::new();
    for part in parts(path) {
        match (part, stack.last()) {
            (b"..", Some(last)) if *last != b".." => drop(stack.pop()),
            (b"..", None) if rooted => {}
            _ => stack.push(part),
        }
    }
    let joined = stack.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", &joined[..]].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Tree<'_> {
    /// The empty tree of a layer that is unpacked by itself; `base` where it has no parent.
    pub(super) fn new(base: bool) -> Self {
        let mut tree = Self {
            inodes: Vec::new(),
            owners: &Owners::AsNamed,
            view: None,
            below: HashMap::new(),
            by_file: HashMap::new(),
            base,
            times: Vec::new(),
            moved: false,
            emptied: BTreeSet::new(),
            remembered: BTreeSet::new(),
        };
        tree.add(Node::Directory(BTreeMap::new()), Described::Never);
        tree
    }

    fn add(&mut self, node: Node, described: Described) -> usize {
        let xattrs = BTreeMap::new();
        let (uid, gid) = (self.owners.user(0).ok(), self.owners.group(0).ok());
        let inode = Inode { node, described, mode: 0o755, uid, gid, mtime: None, xattrs, opaque: false };
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn children(&self, directory: usize) -> Option<&BTreeMap<Vec<u8>, usize>> {
        match &self.inodes[directory].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, directory: usize) -> Option<&mut BTreeMap<Vec<u8>, usize>> {
        match &mut self.inodes[directory].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Where `path` leads with all links followed; with `make`, missing directories are made.
    ///
    /// As continuity's `RootPath` (`fs/path.go`) does it, on which containerd's applier relies: part by part, the
    /// target of a link is joined and cleaned as text, and all is done again until nothing changes. So `..`
    /// in a target takes off a link's name, not the directory that the link leads to.
    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Option<Found>, Fault> {
        let mut links = 0;
        let mut path = path.to_vec();
        if !path.is_empty() {
            loop {
                let before = links;
                let walked = self.walk(&path, &mut links)?;
                if links != before {
                    path = walked;
                    continue;
                }
                let clean = cleaned(&walked, true);
                if clean == path {
                    break;
                }
                path = clean;
            }
        }
        let (mut way, mut at) = (Vec::new(), ROOT);
        for name in parts(&path) {
            if self.children(at).is_none() {
                return Err(Fault::NotADirectory);
            }
            at = match self.child(at, name)? {
                Some(inode) => inode,
                None if make => {
                    let inode = self.add(Node::Directory(BTreeMap::new()), Described::Never);
                    if let Some(children) = self.children_mut(at) {
                        children.insert(name.to_vec(), inode);
                    }
                    inode
                }
                None => return Ok(None),
            };
            way.push(name.to_vec());
        }
        Ok(Some((way, at)))
    }

    /// One pass over all parts of a path.
    fn walk(&mut self, path: &[u8], links: &mut usize) -> Result<Vec<u8>, Fault> {
        let mut end = path.len();
        while end > 1 && path[end - 1] == b'/' {
            end -= 1;
        }
        let path = &path[..end];
        if path == b"/" || path.is_empty() {
            return Ok(b"/".to_vec());
        }
        // From the outermost directory in; the path so far is what the next part is joined to.
        let mut parts = Vec::new();
        let mut rest = path;
        while let Some(slash) = rest.iter().rposition(|&b| b == b'/') {
            parts.push(&rest[slash + 1..]);
            rest = &rest[..slash];
            while rest.ends_with(b"/") {
                rest = &rest[..rest.len() - 1];
            }
            if rest.is_empty() {
                break;
            }
        }
        let mut so_far = if rest.is_empty() {
            b"/".to_vec()
        } else {
            self.step(rest, links)?.unwrap_or_else(|| cleaned(rest, true))
        };
        for part in parts.into_iter().rev() {
            let joined = [&so_far[..], b"/", part].concat();
            let joined = cleaned(&joined, so_far.starts_with(b"/"));
            so_far = match self.step(&joined, links)? {
                None => cleaned(&joined, true),
                Some(target) if target.starts_with(b"/") => target,
                Some(target) => {
                    let joined = [&so_far[..], b"/", &target].concat();
                    cleaned(&joined, so_far.starts_with(b"/"))
                }
            };
        }
        Ok(so_far)
    }

    /// The target of the link at `path`; `None` where there is no link.
    fn step(&mut self, path: &[u8], links: &mut usize) -> Result<Option<Vec<u8>>, Fault> {
        if *links > MAX_LINKS {
            return Err(Fault::Loop);
        }
        let Some(inode) = self.find(&cleaned(path, true), 0)? else { return Ok(None) };
        match &self.inodes[inode].node {
            Node::Symlink(target) => {
                *links += 1;
                Ok(Some(target.clone()))
            }
            _ => Ok(None),
        }
    }

    /// What the kernel finds at `path` below the layer's directory as root: links on the way are followed,
    /// the last part is not.
    fn find(&mut self, path: &[u8], mut links: usize) -> Result<Option<usize>, Fault> {
        let mut todo: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut way = vec![ROOT];
        while let Some(name) = todo.pop() {
            let here = way.last().copied().unwrap_or(ROOT);
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            if self.children(here).is_none() {
                return Err(Fault::NotADirectory);
            }
            let Some(inode) = self.child(here, &name)? else { return Ok(None) };
            match &self.inodes[inode].node {
                Node::Symlink(target) if !todo.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Fault::Loop);
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    todo.extend(parts(target).rev().map(<[u8]>::to_vec));
                }
                _ => way.push(inode),
            }
        }
        Ok(way.last().copied())
    }

    fn remove(&mut self, directory: usize, name: &[u8]) {
        let removed = self.children_mut(directory).and_then(|children| children.remove(name));
        let moves = |inode: usize| matches!(self.inodes[inode].node, Node::Directory(_) | Node::Symlink(_));
        if removed.is_some_and(moves) {
            self.moved = true;
        }
        if let Some(below) = self.below.get_mut(&directory) {
            below.hidden.insert(name.to_vec());
            // It may have been a link that no entry has gone through.
            self.moved = true;
        }
    }

    fn put(&mut self, directory: usize, name: &[u8], inode: usize) {
        self.remove(directory, name);
        if let Some(children) = self.children_mut(directory) {
            children.insert(name.to_vec(), inode);
        }
    }

    /// Takes in one entry. `compare` is asked for the content of a regular file, with the path where it
    /// stands once symbolic links are resolved.
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        compare: impl FnOnce(&[u8]) -> Result<Option<String>, crate::layer::Error>,
    ) -> Result<Result<(), Fault>, crate::layer::Error> {
        let path = entry.path().as_os_str().as_bytes();
        let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
        // In a user namespace there are none, and upstream does not even look where they would go.
        if path.is_empty() || is_device && self.owners.is_namespace() {
            return Ok(Ok(()));
        }
        let (parent, name) = split(path);
        let (way, directory) = match self.resolve(parent, true) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Err(Fault::NotADirectory)),
            Err(fault) => return Ok(Err(fault)),
        };
        if self.children(directory).is_none() {
            return Ok(Err(Fault::NotADirectory));
        }
        if let Some(whiteout) = entry.whiteout() {
            return Ok(self.hide(entry, &way, directory, whiteout));
        }
        let mut real = way.join(&b'/');
        if !real.is_empty() {
            real.push(b'/');
        }
        real.extend_from_slice(name);
        if self.base {
            self.remembered.insert(real.clone());
        }
        if entry.kind == Kind::File {
            let content = compare(&real)?;
            let inode = self.add(Node::File(content), Described::First);
            self.put(directory, name, inode);
            return Ok(self.describe(inode, entry));
        }
        Ok(self.create(entry, directory, name, path))
    }

    fn create(&mut self, entry: &Entry, directory: usize, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        let device = || -> Result<_, Fault> {
            // As many bits as the kernel keeps.
            let number = |n: i64, bits| u32::try_from(n).map(|n| n & bits).map_err(|_| Fault::Device);
            Ok((number(entry.device.major, 0xfff)?, number(entry.device.minor, 0xf_ffff)?))
        };
        let node = match entry.kind {
            Kind::Directory => {
                self.times.push((path.to_vec(), entry.mtime));
                match self.child(directory, name)? {
                    // A directory is not replaced but described.
                    Some(inode) if self.children(inode).is_some() => {
                        if self.inodes[inode].described == Described::Never {
                            self.inodes[inode].described = Described::Later;
                        }
                        return self.describe(inode, entry);
                    }
                    _ => Node::Directory(BTreeMap::new()),
                }
            }
            Kind::Symlink => Node::Symlink(entry.link.clone()),
            Kind::HardLink => {
                let (parent, last) = split(&entry.link);
                let found = self.resolve(parent, false)?;
                let target = match found {
                    Some((_, directory)) => self.child(directory, last)?,
                    None => None,
                };
                let target =
                    target.filter(|&inode| self.children(inode).is_none()).ok_or(Fault::LinkTarget)?;
                self.put(directory, name, target);
                return self.describe(target, entry);
            }
            Kind::CharDevice => {
                let (major, minor) = device()?;
                Node::CharDevice(major, minor)
            }
            Kind::BlockDevice => {
                let (major, minor) = device()?;
                Node::BlockDevice(major, minor)
            }
            Kind::Fifo => Node::Fifo,
            Kind::Global => {
                self.remove(directory, name);
                return Ok(());
            }
            Kind::Other(flag) => return Err(Fault::Type(flag)),
            Kind::File => return Ok(()),
        };
        let inode = self.add(node, Described::First);
        self.put(directory, name, inode);
        self.describe(inode, entry)
    }

    fn describe(&mut self, inode: usize, entry: &Entry) -> Result<(), Fault> {
        let owner = entry.owner();
        let uid = owner.uid.map(|id| self.owners.user(id)).transpose()?;
        let gid = owner.gid.map(|id| self.owners.group(id)).transpose()?;
        let mut xattrs = Vec::new();
        for (name, value) in entry.settable_xattrs() {
            xattrs.push((name.to_vec(), owners::xattr(name, value, self.owners)?));
        }
        let inode = &mut self.inodes[inode];
        inode.mode = entry.permissions();
        // An id of -1 leaves it as it is.
        let is_below = inode.described == Described::Below;
        inode.uid = uid.or(inode.uid.filter(|_| is_below));
        inode.gid = gid.or(inode.gid.filter(|_| is_below));
        // That of a directory is set at the end.
        if entry.kind != Kind::Directory {
            inode.mtime = Some(entry.mtime.on_disk());
        }
        inode.xattrs.extend(xattrs);
        Ok(())
    }

    fn hide(
        &mut self,
        entry: &Entry,
        way: &[Vec<u8>],
        directory: usize,
        whiteout: Whiteout<'_>,
    ) -> Result<(), Fault> {
        match whiteout {
            Whiteout::Invalid => return Err(Fault::Whiteout),
            // There is nothing below a base layer: what the layer itself has is removed.
            Whiteout::Name(name) if self.base => self.remove(directory, name),
            Whiteout::Opaque if self.base => {
                if self.emptied.insert(directory) {
                    self.remove_implied(way.join(&b'/'), directory);
                }
            }
            Whiteout::Opaque => self.inodes[directory].opaque = true,
            Whiteout::Name(name) => {
                let inode = self.add(Node::Whiteout, Described::First);
                let owner = entry.owner();
                let node = &mut self.inodes[inode];
                (node.mode, node.uid, node.gid) = (0, owner.uid, owner.gid);
                self.put(directory, name, inode);
            }
        }
        Ok(())
    }

    /// Removes what is below `directory` and had no entry.
    fn remove_implied(&mut self, path: Vec<u8>, directory: usize) {
        let mut todo = vec![(path, directory)];
        while let Some((path, at)) = todo.pop() {
            if let Some(below) = self.below.get_mut(&at) {
                below.emptied = true;
                self.moved = true;
            }
            let children: Vec<_> =
                self.children(at).into_iter().flatten().map(|(name, &inode)| (name.clone(), inode)).collect();
            for (name, inode) in children {
                let below = [&path[..], &name].into_iter().filter(|part| !part.is_empty());
                let below = below.collect::<Vec<_>>().join(&b'/');
                match (self.remembered.contains(&below), self.children(inode).is_some()) {
                    (true, true) => todo.push((below, inode)),
                    (true, false) => {}
                    (false, _) => self.remove(at, &name),
                }
            }
        }
    }

    /// Gives directories their times; nothing may be applied afterwards.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        for (path, time) in std::mem::take(&mut self.times) {
            let found = if self.moved {
                self.resolve(&path, false)?.map(|(_, inode)| inode)
            } else {
                let (parent, name) = split(&path);
                match self.resolve(parent, false)? {
                    Some((_, directory)) => self.child(directory, name)?,
                    None => None,
                }
            };
            if let Some(inode) = found {
                self.inodes[inode].mtime = Some(time.on_disk());
            }
        }
        Ok(())
    }
}
