//! The file tree that a layer makes, in memory, entry by entry.
//!
//! Written against what containerd's applier does (`pkg/archive/tar.go`), not against our own, so that a
//! fault of either shows. The memory goes with the number of paths, not with their bytes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layer::{Entry, Kind, Time, Whiteout};

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
pub(super) struct Tree {
    pub(super) inodes: Vec<Inode>,
    base: bool,
    /// Every directory entry with its time, in order: they are set when all is unpacked.
    times: Vec<(Vec<u8>, Time)>,
    /// A directory or link was replaced, so a path may lead elsewhere at the end.
    moved: bool,
    /// In a base layer: directories that an opaque mark has emptied.
    emptied: BTreeSet<usize>,
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
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Tree {
    /// The empty tree of a layer; `base` where the layer has no parent.
    pub(super) fn new(base: bool) -> Self {
        let mut tree =
            Self { inodes: Vec::new(), base, times: Vec::new(), moved: false, emptied: BTreeSet::new() };
        tree.add(Node::Directory(BTreeMap::new()), Described::Never);
        tree
    }

    fn add(&mut self, node: Node, described: Described) -> usize {
        let xattrs = BTreeMap::new();
        let (uid, gid) = (Some(0), Some(0));
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

    fn child(&self, directory: usize, name: &[u8]) -> Option<usize> {
        self.children(directory)?.get(name).copied()
    }

    /// Where `path` leads with all links followed, as the names on the way and the inode; with `make`,
    /// missing directories are made.
    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Option<Found>, Fault> {
        let mut todo: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut way: Vec<(Vec<u8>, usize)> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                way.pop();
                continue;
            }
            let here = way.last().map_or(ROOT, |(_, inode)| *inode);
            let Some(children) = self.children(here) else { return Err(Fault::NotADirectory) };
            match children.get(&name).copied() {
                Some(inode) => {
                    if let Node::Symlink(target) = &self.inodes[inode].node {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Fault::Loop);
                        }
                        if target.starts_with(b"/") {
                            way.clear();
                        }
                        todo.extend(parts(target).rev().map(<[u8]>::to_vec));
                    } else {
                        way.push((name, inode));
                    }
                }
                None if make => {
                    let inode = self.add(Node::Directory(BTreeMap::new()), Described::Never);
                    if let Some(children) = self.children_mut(here) {
                        children.insert(name.clone(), inode);
                    }
                    way.push((name, inode));
                }
                None => return Ok(None),
            }
        }
        let inode = way.last().map_or(ROOT, |(_, inode)| *inode);
        Ok(Some((way.into_iter().map(|(name, _)| name).collect(), inode)))
    }

    fn remove(&mut self, directory: usize, name: &[u8]) {
        let removed = self.children_mut(directory).and_then(|children| children.remove(name));
        let moves = |inode: usize| matches!(self.inodes[inode].node, Node::Directory(_) | Node::Symlink(_));
        if removed.is_some_and(moves) {
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
        use std::os::unix::ffi::OsStrExt;
        let path = entry.path().as_os_str().as_bytes();
        if path.is_empty() {
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
            return Ok(self.hide(entry, directory, whiteout));
        }
        if entry.kind == Kind::File {
            let mut real = way.join(&b'/');
            if !real.is_empty() {
                real.push(b'/');
            }
            real.extend_from_slice(name);
            let content = compare(&real)?;
            let inode = self.add(Node::File(content), Described::First);
            self.put(directory, name, inode);
            self.describe(inode, entry);
            return Ok(Ok(()));
        }
        Ok(self.create(entry, directory, name, path))
    }

    fn create(&mut self, entry: &Entry, directory: usize, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        let device = || {
            let number = |n: i64| u32::try_from(n).map_err(|_| Fault::Device);
            Ok((number(entry.device.major)?, number(entry.device.minor)?))
        };
        let node = match entry.kind {
            Kind::Directory => {
                self.times.push((path.to_vec(), entry.mtime));
                match self.child(directory, name) {
                    // A directory is not replaced but described.
                    Some(inode) if self.children(inode).is_some() => {
                        if self.inodes[inode].described == Described::Never {
                            self.inodes[inode].described = Described::Later;
                        }
                        self.describe(inode, entry);
                        return Ok(());
                    }
                    _ => Node::Directory(BTreeMap::new()),
                }
            }
            Kind::Symlink => Node::Symlink(entry.link.clone()),
            Kind::HardLink => {
                let (parent, last) = split(&entry.link);
                let found = self.resolve(parent, false)?;
                let target = found.and_then(|(_, directory)| self.child(directory, last));
                let target =
                    target.filter(|&inode| self.children(inode).is_none()).ok_or(Fault::LinkTarget)?;
                self.put(directory, name, target);
                self.describe(target, entry);
                return Ok(());
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
        self.describe(inode, entry);
        Ok(())
    }

    fn describe(&mut self, inode: usize, entry: &Entry) {
        let owner = entry.owner();
        let inode = &mut self.inodes[inode];
        inode.mode = entry.permissions();
        inode.uid = owner.uid;
        inode.gid = owner.gid;
        // That of a directory is set at the end.
        if entry.kind != Kind::Directory {
            inode.mtime = Some(entry.mtime.on_disk());
        }
        inode.xattrs.extend(entry.settable_xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())));
    }

    fn hide(&mut self, entry: &Entry, directory: usize, whiteout: Whiteout<'_>) -> Result<(), Fault> {
        match whiteout {
            Whiteout::Invalid => return Err(Fault::Whiteout),
            // There is nothing below a base layer: what the layer itself has is removed.
            Whiteout::Name(name) if self.base => self.remove(directory, name),
            Whiteout::Opaque if self.base => {
                if self.emptied.insert(directory) {
                    self.remove_implied(directory);
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

    /// Removes the directories below `directory` that no entry described.
    fn remove_implied(&mut self, directory: usize) {
        let mut todo = vec![directory];
        while let Some(at) = todo.pop() {
            let children: Vec<_> =
                self.children(at).into_iter().flatten().map(|(n, &i)| (n.clone(), i)).collect();
            for (name, inode) in children {
                if self.children(inode).is_none() {
                    continue;
                }
                if self.inodes[inode].described == Described::Never {
                    self.remove(at, &name);
                } else {
                    todo.push(inode);
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
                let parent = self.resolve(parent, false)?;
                parent.and_then(|(_, directory)| self.child(directory, name))
            };
            if let Some(inode) = found {
                self.inodes[inode].mtime = Some(time.on_disk());
            }
        }
        Ok(())
    }
}
