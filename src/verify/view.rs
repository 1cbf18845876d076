//! What a stack of snapshot directories shows: that of a snapshot, and those of its ancestors.
//!
//! ```text
//! overlayfs, fuse-overlayfs   upper directories, nearest first: names of all, but what marks hide
//! native                      one directory, which is the whole tree
//! ```
//!
//! Read without mounting anything. Links are never followed. What hides is as the kernel (`fs/overlayfs/namei.c`) and
//! fuse-overlayfs (`main.c`) have it: a character device 0:0 hides its name, and an opaque directory what is below it.
//! Directories are named by paths and opened anew for each look, since a layer may have more of them than a process may
//! have open.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use crate::root::FaultKind;
use crate::root::files::{FileFault, Tree};

/// Names of files by which fuse-overlayfs marks what is hidden.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// How what is hidden is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// Nothing is hidden: there is one directory.
    None,
    /// Those of overlayfs, in `user.*` where it is mounted in a user namespace.
    Overlay { user: bool },
    /// Those that fuse-overlayfs makes, too.
    Fuse { user: bool },
}

impl Marks {
    /// Extended attributes of an opaque directory.
    fn opaque(self) -> &'static [&'static [u8]] {
        match self {
            Self::None => &[],
            Self::Overlay { user: false } => &[b"trusted.overlay.opaque"],
            Self::Overlay { user: true } => &[b"user.overlay.opaque"],
            Self::Fuse { user: false } => &[b"trusted.overlay.opaque", b"user.fuseoverlayfs.opaque"],
            Self::Fuse { user: true } => &[b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"],
        }
    }

    /// Whether an extended attribute is one of the marks, or what else the mount keeps for itself.
    pub(super) fn has(self, name: &[u8]) -> bool {
        let of = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        match self {
            Self::None => false,
            Self::Overlay { user: false } => of(&[b"trusted.overlay."]),
            Self::Overlay { user: true } => of(&[b"user.overlay."]),
            Self::Fuse { .. } => of(&[b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."]),
        }
    }

    fn is_fuse(self) -> bool {
        matches!(self, Self::Fuse { .. })
    }
}

/// A snapshot, and what it stands on.
pub(super) struct Views {
    pub(super) shown: View,
    pub(super) below: View,
}

/// A stack of directories, nearest first.
#[derive(Debug)]
pub(super) struct View {
    trees: Vec<Tree>,
    marks: Marks,
}

/// A directory that a view shows.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
    /// Which of the trees have it, nearest first.
    layers: Vec<usize>,
}

impl Directory {
    /// Whether the nearest tree has it.
    pub(super) fn is_in_first(&self) -> bool {
        self.layers.first() == Some(&0)
    }
}

/// What a name in a directory shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// The tree that it comes from.
    pub(super) layer: usize,
    pub(super) stat: Stat,
}

impl Seen {
    pub(super) fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }
}

impl View {
    pub(super) fn new(trees: Vec<Tree>, marks: Marks) -> Self {
        Self { trees, marks }
    }

    pub(super) fn marks(&self) -> Marks {
        self.marks
    }

    /// Whether files of several names stay one file when a layer is extracted onto them: a mount copies up one name.
    pub(super) fn keeps_links(&self) -> bool {
        self.marks == Marks::None
    }

    /// The directory of all.
    pub(super) fn root(&self) -> Result<Directory, FileFault> {
        let mut root = Directory { path: PathBuf::new(), layers: Vec::new() };
        for layer in 0..self.trees.len() {
            root.layers.push(layer);
            if self.is_opaque(layer, &root.path)? {
                break;
            }
        }
        Ok(root)
    }

    /// A directory as its tree has it: for what is not shown by a mount, such as names of attributes.
    pub(super) fn here(&self, layer: usize, directory: &Directory) -> Result<Tree, FileFault> {
        self.trees[layer].subtree(&directory.path)
    }

    /// Whether something on disk can be seen through the mount at all: not what has the form of a mark.
    pub(super) fn can_show(&self, name: &[u8], is_zero_device: bool) -> bool {
        let is_mark = self.marks.is_fuse() && name.starts_with(WHITEOUT);
        !(is_mark || is_zero_device && self.marks != Marks::None)
    }

    /// What a name shows; `None` where it shows nothing.
    pub(super) fn look(&self, directory: &Directory, name: &OsStr) -> Result<Option<Seen>, FileFault> {
        if !self.can_show(name.as_bytes(), false) {
            return Ok(None);
        }
        let path = directory.path.join(name);
        for &layer in &directory.layers {
            match self.found(layer, &path)? {
                Some(stat) if self.hides(&stat) => return Ok(None),
                Some(stat) => return Ok(Some(Seen { layer, stat })),
                None if self.has_whiteout(layer, directory, name)? => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// The directory of this name; `None` where it shows none.
    pub(super) fn descend(
        &self,
        directory: &Directory,
        name: &OsStr,
    ) -> Result<Option<Directory>, FileFault> {
        let mut below = Directory { path: directory.path.join(name), layers: Vec::new() };
        for &layer in &directory.layers {
            match self.found(layer, &below.path)? {
                // A whiteout is no directory either.
                Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => break,
                Some(_) => {
                    below.layers.push(layer);
                    if self.is_opaque(layer, &below.path)? {
                        break;
                    }
                }
                None if self.has_whiteout(layer, directory, name)? => break,
                None => {}
            }
        }
        Ok(Some(below).filter(|below| !below.layers.is_empty()))
    }

    /// All names that a directory shows.
    pub(super) fn names(&self, directory: &Directory) -> Result<BTreeSet<Vec<u8>>, FileFault> {
        // Whether the nearest tree that has a name shows something.
        let mut shown: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        for &layer in &directory.layers {
            let here = self.here(layer, directory)?;
            let listed = here.list(Path::new(""))?;
            for (name, kind) in &listed {
                if !self.can_show(name.0.as_bytes(), false) {
                    continue;
                }
                let may_hide = matches!(kind, FileType::CharacterDevice | FileType::Unknown);
                let is_visible = !may_hide || !self.hides(&here.stat(Path::new(&name.0))?);
                shown.entry(name.0.as_bytes().to_vec()).or_insert(is_visible);
            }
            for (name, _) in listed.iter().filter(|_| self.marks.is_fuse()) {
                if let Some(hidden) = name.0.as_bytes().strip_prefix(WHITEOUT) {
                    shown.entry(hidden.to_vec()).or_insert(false);
                }
            }
        }
        Ok(shown.into_iter().filter(|(_, is_visible)| *is_visible).map(|(name, _)| name).collect())
    }

    /// Whether what stands there hides what is below it.
    fn hides(&self, stat: &Stat) -> bool {
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        self.marks != Marks::None && is_device && stat.st_rdev == 0
    }

    fn has_whiteout(&self, layer: usize, directory: &Directory, name: &OsStr) -> Result<bool, FileFault> {
        if !self.marks.is_fuse() {
            return Ok(false);
        }
        let whiteout = [WHITEOUT, name.as_bytes()].concat();
        Ok(self.found(layer, &directory.path.join(OsStr::from_bytes(&whiteout)))?.is_some())
    }

    fn is_opaque(&self, layer: usize, path: &Path) -> Result<bool, FileFault> {
        let marks = self.marks.opaque();
        if marks.is_empty() {
            return Ok(false);
        }
        let here = self.trees[layer].subtree(path)?;
        let xattrs = here.xattrs(OsStr::new("."))?;
        if marks.iter().any(|mark| xattrs.get(*mark).is_some_and(|value| value == b"y")) {
            return Ok(true);
        }
        Ok(self.marks.is_fuse() && found(&here, Path::new(OPAQUE))?.is_some())
    }

    fn found(&self, layer: usize, path: &Path) -> Result<Option<Stat>, FileFault> {
        found(&self.trees[layer], path)
    }
}

fn found(tree: &Tree, path: &Path) -> Result<Option<Stat>, FileFault> {
    match tree.stat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(fault) if fault.kind == FaultKind::FileMissing => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, XattrFlags, mknodat, setxattr};
    use std::fs;

    fn names(view: &View, path: &str) -> Vec<String> {
        let mut at = view.root().unwrap();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = view.descend(&at, OsStr::new(name)).unwrap().unwrap();
        }
        let text = |name: Vec<u8>| String::from_utf8(name).unwrap();
        view.names(&at).unwrap().into_iter().map(text).collect()
    }

    #[test]
    fn marks_hide_what_is_below() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let (upper, lower) = (temp.path().join("upper"), temp.path().join("lower"));
        for path in ["d/kept", "d/gone", "o/x", "f/y", "w/z", "plain"] {
            let path = lower.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        for path in ["d", "o", "f"] {
            fs::create_dir_all(upper.join(path)).unwrap();
        }
        let device = FileType::CharacterDevice;
        for path in ["d/gone", "w"] {
            mknodat(CWD, upper.join(path), device, Mode::empty(), 0).unwrap();
        }
        setxattr(upper.join("o"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        fs::write(upper.join("f/.wh..wh..opq"), "").unwrap();
        fs::write(upper.join(".wh.plain"), "").unwrap();

        let view = |marks| {
            let open = |path: &Path| Tree::open(path).unwrap();
            View::new(vec![open(&upper), open(&lower)], marks)
        };
        let overlay = view(Marks::Overlay { user: false });
        assert_eq!(names(&overlay, ""), [".wh.plain", "d", "f", "o", "plain"]);
        assert_eq!(names(&overlay, "d"), ["kept"]);
        assert_eq!(names(&overlay, "o"), [""; 0]);
        assert_eq!(names(&overlay, "f"), [".wh..wh..opq", "y"]);
        let root = overlay.root().unwrap();
        assert!(overlay.look(&root, OsStr::new("w")).unwrap().is_none());
        assert!(overlay.descend(&root, OsStr::new("w")).unwrap().is_none());
        assert_eq!(overlay.look(&root, OsStr::new("plain")).unwrap().unwrap().layer, 1);
        assert!(overlay.look(&root, OsStr::new("d")).unwrap().unwrap().is_directory());

        let fuse = view(Marks::Fuse { user: false });
        assert_eq!(names(&fuse, ""), ["d", "f", "o"]);
        assert_eq!(names(&fuse, "f"), [""; 0]);
        // Those of a daemon that runs as root mean nothing to a rootless one.
        assert_eq!(names(&view(Marks::Overlay { user: true }), "o"), ["x"]);
        assert_eq!(names(&view(Marks::None), "d"), ["gone", "kept"]);
    }
}
