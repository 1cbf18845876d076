//! Layers that were extracted onto what those below show, against what their snapshot shows.
//!
//! ```text
//! below    what the ancestors show          + entries of the layer = what the snapshot has to show
//! shown    what the snapshot shows, with its ancestors
//! ```
//!
//! So rootless daemons, fuse-overlayfs and the native snapshotter extract. Which marks and copied-up directories a
//! mount leaves behind differs; what it shows does not. What no entry touches has to be as it is below: where the
//! snapshot's own directory has nothing of it, it is; with the native snapshotter, which has all of it, every file is
//! compared.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::layers::{Comparison, Groups, Of};
use super::report::FindingKind;
use super::tree::{self, Node, Tree};
use super::view::{Directory, Seen, Views};
use crate::root::files::FileFault;

/// How much of each of two files is in memory at a time.
const BUFFER: usize = 64 << 10;

/// A directory that no entry touches.
struct Untouched {
    path: PathBuf,
    below: Directory,
    shown: Directory,
}

impl Comparison<'_> {
    /// Everything that the layer's tree should show against what the snapshot shows.
    pub(super) fn extracted(&mut self, tree: &Tree<'_>, views: &Views) {
        let mut groups = Groups::default();
        let mut untouched = Vec::new();
        let mut todo = Vec::new();
        match views.shown.root() {
            Ok(root) => todo.push((PathBuf::new(), tree::ROOT, root)),
            Err(fault) => self.fault(Path::new(""), fault),
        }
        while let Some((path, index, at)) = todo.pop() {
            if let Err(fault) =
                self.directory(tree, views, (&path, index, &at), &mut groups, &mut todo, &mut untouched)
            {
                self.fault(&path, fault);
            }
            while let Some(directory) = untouched.pop() {
                let path = directory.path.clone();
                if let Err(fault) = self.untouched(tree, views, &directory, &mut groups, &mut untouched) {
                    self.fault(&path, fault);
                }
            }
        }
    }

    /// A directory of the layer's tree.
    fn directory(
        &mut self,
        tree: &Tree<'_>,
        views: &Views,
        (path, index, at): (&Path, usize, &Directory),
        groups: &mut Groups,
        todo: &mut Vec<(PathBuf, usize, Directory)>,
        untouched: &mut Vec<Untouched>,
    ) -> Result<(), FileFault> {
        let Node::Directory(children) = &tree.inodes[index].node else { return Ok(()) };
        let mut names = views.shown.names(at)?;
        for (name, &child) in children {
            names.remove(name);
            let (path, name_of) = (path.join(OsStr::from_bytes(name)), OsStr::from_bytes(name));
            let inode = &tree.inodes[child];
            let Some(seen) = views.shown.look(at, name_of)? else {
                if views.shown.can_show(name, inode.node == Node::CharDevice(0, 0)) {
                    self.missing(&path);
                }
                continue;
            };
            let here = views.shown.here(seen.layer, at)?;
            if !self.inode(&path, inode, &seen.stat, &here, name_of) {
                continue;
            }
            match &inode.node {
                Node::Directory(_) => {
                    if let Some(at) = views.shown.descend(at, name_of)? {
                        todo.push((path, child, at));
                    }
                }
                node => {
                    if let Node::Lower(directory, lower) = node
                        && let Some(below) = tree.below(*directory)
                    {
                        self.bytes(&path, views, (&below.directory, lower), (at, name), &seen)?;
                    }
                    // What comes from below is no file of its own.
                    if seen.layer == 0 {
                        self.link(&path, Of::Tree(child), &seen.stat, groups);
                    }
                }
            }
        }
        if let Some(below) = tree.below(index) {
            let mut kept = views.below.names(&below.directory)?;
            kept.retain(|name| !children.contains_key(name) && below.shows(name));
            self.kept(tree, views, (path, &below.directory, at), (kept, &mut names), groups, untouched)?;
        }
        self.extra(path, names);
        Ok(())
    }

    /// A directory of which all is as below.
    fn untouched(
        &mut self,
        tree: &Tree<'_>,
        views: &Views,
        directory: &Untouched,
        groups: &mut Groups,
        untouched: &mut Vec<Untouched>,
    ) -> Result<(), FileFault> {
        let Untouched { path, below, shown } = directory;
        let (kept, mut names) = (views.below.names(below)?, views.shown.names(shown)?);
        self.kept(tree, views, (path, below, shown), (kept, &mut names), groups, untouched)?;
        self.extra(path, names);
        Ok(())
    }

    /// Names that have to show what they show below; each is taken out of `names`.
    fn kept(
        &mut self,
        tree: &Tree<'_>,
        views: &Views,
        (path, below, shown): (&Path, &Directory, &Directory),
        (kept, names): (BTreeSet<Vec<u8>>, &mut BTreeSet<Vec<u8>>),
        groups: &mut Groups,
        untouched: &mut Vec<Untouched>,
    ) -> Result<(), FileFault> {
        for name in kept {
            let name_of = OsStr::from_bytes(&name);
            let path = path.join(name_of);
            if !names.remove(&name) {
                self.missing(&path);
                continue;
            }
            let seen = views.shown.look(shown, name_of)?;
            let lower = views.below.look(below, name_of)?;
            let (Some(seen), Some(lower)) = (seen, lower) else { continue };
            let directory = if seen.is_directory() { views.shown.descend(shown, name_of)? } else { None };
            let is_own = directory.as_ref().map_or(seen.layer == 0, Directory::is_in_first);
            if !is_own {
                continue;
            }
            // Another name of the same file may have been touched.
            let one = tree.of_file(&lower.stat);
            let taken;
            let expected = if let Some(index) = one {
                &tree.inodes[index]
            } else {
                taken = tree::lower(&views.below, below, &name, &lower, tree::ROOT)?;
                &taken
            };
            let here = views.shown.here(seen.layer, shown)?;
            if !self.inode(&path, expected, &seen.stat, &here, name_of) {
                continue;
            }
            if let (Some(shown), Some(below)) = (directory, views.below.descend(below, name_of)?) {
                untouched.push(Untouched { path, below, shown });
                continue;
            }
            if matches!(expected.node, Node::Lower(..)) {
                self.bytes(&path, views, (below, &name), (shown, &name), &seen)?;
            }
            if views.below.keeps_links() {
                let of = one.map_or(Of::Below(lower.stat.st_dev, lower.stat.st_ino), Of::Tree);
                self.link(&path, of, &seen.stat, groups);
            }
        }
        Ok(())
    }

    /// The bytes of a file against those that it has below.
    fn bytes(
        &mut self,
        path: &Path,
        views: &Views,
        (below, lower): (&Directory, &[u8]),
        (shown, name): (&Directory, &[u8]),
        seen: &Seen,
    ) -> Result<(), FileFault> {
        let (lower, name) = (OsStr::from_bytes(lower), OsStr::from_bytes(name));
        let Some(found) = views.below.look(below, lower)? else { return Ok(()) };
        let one = views.below.here(found.layer, below)?.file(Path::new(lower))?;
        let other = views.shown.here(seen.layer, shown)?.file(Path::new(name))?;
        // The same file, shown through the mount.
        if (one.1.st_dev, one.1.st_ino) == (other.1.st_dev, other.1.st_ino) {
            return Ok(());
        }
        if one.1.st_size != other.1.st_size || !same(one.0, other.0)? {
            let detail = "other bytes than in the layers below";
            self.differs(FindingKind::LayerEntryContent, path.as_os_str().as_bytes(), detail);
        }
        Ok(())
    }

    fn missing(&mut self, path: &Path) {
        self.differs(FindingKind::LayerEntryMissing, path.as_os_str().as_bytes(), "not in the snapshot");
    }

    fn extra(&mut self, path: &Path, names: BTreeSet<Vec<u8>>) {
        for name in names {
            let path = path.join(OsStr::from_bytes(&name));
            let detail = "neither in the layer nor in those below";
            self.differs(FindingKind::LayerEntryExtra, path.as_os_str().as_bytes(), detail);
        }
    }
}

/// Whether two files of the same size have the same bytes.
fn same(mut one: impl Read, mut other: impl Read) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let n = fill(&mut one, &mut left)?;
        if n != fill(&mut other, &mut right)? || left[..n] != right[..n] {
            return Ok(false);
        }
        if n < BUFFER {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match file.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_compared_to_the_end() {
        let long = vec![7; BUFFER + 5];
        let mut other = long.clone();
        *other.last_mut().unwrap() = 8;
        for (one, two, equal) in [
            (&long[..], &long[..], true),
            (&long, &other, false),
            (&long, &long[..BUFFER], false),
            (b"", b"", true),
            (&long[..BUFFER], &long[..BUFFER], true),
        ] {
            assert_eq!(same(one, two).unwrap(), equal);
        }
    }
}
