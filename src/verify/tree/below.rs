//! What the layers below a layer have, taken into its tree where an entry touches it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Stat};

use super::super::view::{self, View};
use super::{Described, Fault, Inode, Node, Tree};
use crate::layer::Time;
use crate::root::files::FileFault;
use crate::userns::Owners;

/// What the layers below have in a directory.
#[derive(Debug)]
pub(in super::super) struct Below {
    pub(in super::super) directory: view::Directory,
    /// Names that are gone.
    pub(super) hidden: BTreeSet<Vec<u8>>,
    /// All that nothing has touched is gone.
    pub(super) emptied: bool,
}

impl Below {
    /// Whether a name that is not in the tree is still what the layers below have.
    pub(in super::super) fn shows(&self, name: &[u8]) -> bool {
        !self.emptied && !self.hidden.contains(name)
    }
}

impl<'v> Tree<'v> {
    /// The tree of a layer that is extracted onto what those below it show, with the owners that there are.
    pub(in super::super) fn onto(view: Option<&'v View>, owners: &'v Owners) -> Result<Self, Fault> {
        // What the layer hides is removed, as in one that stands on nothing.
        let mut tree = Self { owners, view, ..Self::new(true) };
        tree.inodes.clear();
        let root = tree.add(Node::Directory(BTreeMap::new()), Described::Never);
        if let Some(view) = view {
            tree.stand_on(root, view.root()?);
        }
        Ok(tree)
    }

    fn stand_on(&mut self, inode: usize, directory: view::Directory) {
        self.below.insert(inode, Below { directory, hidden: BTreeSet::new(), emptied: false });
    }

    /// What the layers below have of a directory, where they have it.
    pub(in super::super) fn below(&self, directory: usize) -> Option<&Below> {
        self.below.get(&directory)
    }

    /// What a name leads to, looked up below where nothing has asked for it yet.
    pub(super) fn child(&mut self, directory: usize, name: &[u8]) -> Result<Option<usize>, Fault> {
        let Some(children) = self.children(directory) else { return Ok(None) };
        if let Some(&inode) = children.get(name) {
            return Ok(Some(inode));
        }
        let (Some(view), Some(below)) = (self.view, self.below.get(&directory)) else { return Ok(None) };
        if !below.shows(name) {
            return Ok(None);
        }
        let at = below.directory.clone();
        let name_of = OsStr::from_bytes(name);
        let Some(seen) = view.look(&at, name_of)? else { return Ok(None) };
        let known = self.by_file.get(&(seen.stat.st_dev, seen.stat.st_ino)).copied();
        let inode = match known {
            Some(inode) => inode,
            None => self.take(view, &at, directory, name, &seen)?,
        };
        if let Some(children) = self.children_mut(directory) {
            children.insert(name.to_vec(), inode);
        }
        Ok(Some(inode))
    }

    /// Takes in what a name shows below.
    fn take(
        &mut self,
        view: &View,
        at: &view::Directory,
        directory: usize,
        name: &[u8],
        seen: &view::Seen,
    ) -> Result<usize, Fault> {
        let inode = self.inodes.len();
        let taken = lower(view, at, name, seen, directory)?;
        let is_directory = matches!(taken.node, Node::Directory(_));
        self.inodes.push(taken);
        if is_directory {
            if let Some(directory) = view.descend(at, OsStr::from_bytes(name))? {
                self.stand_on(inode, directory);
            }
        } else if view.keeps_links() && seen.stat.st_nlink > 1 {
            self.by_file.insert((seen.stat.st_dev, seen.stat.st_ino), inode);
        }
        Ok(inode)
    }

    /// What became of a file of the layers below that stays one file whatever name it goes by.
    pub(in super::super) fn of_file(&self, stat: &Stat) -> Option<usize> {
        self.by_file.get(&(stat.st_dev, stat.st_ino)).copied()
    }
}

/// What the layers below show at a name, as it is there; `directory` is kept for what its bytes are looked up by.
pub(in super::super) fn lower(
    view: &View,
    at: &view::Directory,
    name: &[u8],
    seen: &view::Seen,
    directory: usize,
) -> Result<Inode, FileFault> {
    let name_of = OsStr::from_bytes(name);
    let here = view.here(seen.layer, at)?;
    let stat = &seen.stat;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let node = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Node::Directory(BTreeMap::new()),
        FileType::Symlink => Node::Symlink(here.read_link(name_of)?),
        FileType::CharacterDevice => Node::CharDevice(device.0, device.1),
        FileType::BlockDevice => Node::BlockDevice(device.0, device.1),
        FileType::Fifo => Node::Fifo,
        _ => Node::Lower(directory, name.to_vec()),
    };
    // That of a directory changes with what is made in it.
    let time = Time { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX) };
    let mtime = (!matches!(node, Node::Directory(_))).then_some(time);
    let mut xattrs = here.xattrs(name_of)?;
    xattrs.retain(|name, _| !view.marks().has(name));
    Ok(Inode {
        node,
        described: Described::Below,
        mode: stat.st_mode & 0o7777,
        uid: Some(stat.st_uid),
        gid: Some(stat.st_gid),
        mtime,
        xattrs,
        opaque: false,
    })
}
