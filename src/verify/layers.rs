//! Layers against their snapshots, entry by entry.
//!
//! The blob is inflated and read once; a regular file's bytes are compared while they stream by, nothing
//! of them is kept. The tree that the entries make ([`super::tree`]) is then compared with the snapshot's
//! directory: type, mode, owner, time, extended attributes, link groups, and nothing besides.
//!
//! That is so for layers that were unpacked by themselves. Those that were extracted onto what the layers below show
//! ([`Manner`]) are compared with what the snapshot shows: see [`super::extracted`].
//!
//! Not compared: the times of whiteouts and of directories that no entry describes, which are those of the
//! unpacking; the directory of the snapshot itself; and snapshots that a build filled, which keep sub-second
//! times and untouched parents that no layer has.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::disk::Look;
use super::owners;
use super::report::{FindingKind, Findings, Subject};
use super::tree::{self, Described, Inode, Node};
use super::view::{Marks, View, Views};
use crate::digest::{DiffId, Digest};
use crate::layer::{self, Content, Segment};
use crate::oci;
use crate::progress::Event;
use crate::root::Worker;
use crate::root::fault::text;
use crate::root::files::{FileFault, Tree, blobs, describe, upper};
use crate::userns::Owners;

/// More differences of one layer than this say nothing new.
const MAX_DIFFERENCES: usize = 100;
/// How much of a snapshot's file is in memory at a time.
const BUFFER: usize = 64 << 10;
/// Marks that the kernel keeps in upper directories; layers work with and without them.
const KERNEL_MARKS: [&[u8]; 5] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.uuid",
    b"trusted.overlay.nlink",
    b"security.selinux",
];
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Extended attributes by name.
type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A layer and the snapshot that it should be.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) blob: Digest,
    pub(super) diff_id: DiffId,
    pub(super) media_type: String,
    /// The snapshot's key.
    pub(super) snapshot: String,
    /// Numbers of the snapshot's directory and of its ancestors', nearest first.
    pub(super) chain: Vec<u64>,
}

/// How a worker's layers became snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manner {
    /// How what is hidden is marked where layers were extracted onto those below; `None` where each was unpacked by
    /// itself, into an upper directory of overlayfs.
    onto: Option<Marks>,
    owners: Owners,
}

impl Manner {
    /// That of a snapshotter, for files of these owners.
    pub(super) fn of(snapshotter: &str, owners: Owners) -> Option<Self> {
        let user = owners.is_namespace();
        let onto = match snapshotter {
            "overlayfs" if !user => None,
            "overlayfs" => Some(Marks::Overlay { user }),
            "fuse-overlayfs" => Some(Marks::Fuse { user }),
            "native" => Some(Marks::None),
            _ => return None,
        };
        Some(Self { onto, owners })
    }
}

/// One comparison under way.
pub(super) struct Comparison<'a> {
    job: &'a Job,
    manner: &'a Manner,
    upper: Tree,
    lowers: Vec<Tree>,
    /// Some directory of the layer gives what is made in it an access control list.
    default_acls: bool,
    differences: usize,
    findings: &'a mut Findings,
}

/// Compares one layer. Returns the number of its entries.
pub(super) fn compare(
    look: &Look<'_>,
    worker: &Worker,
    manner: &Manner,
    job: &Job,
    findings: &mut Findings,
) -> u64 {
    let open = |id: &u64| look.root.subtree(&upper(&worker.path, &worker.snapshotter, *id));
    let open_all = |ids: &[u64]| ids.iter().map(open).collect::<Result<Vec<_>, _>>();
    let Some((own, ancestors)) = job.chain.split_first() else { return 0 };
    // Those that have something to show in what the snapshot shows.
    let ancestors =
        if manner.onto == Some(Marks::None) { &ancestors[..ancestors.len().min(1)] } else { ancestors };
    // A directory that is not there is a finding already.
    let (Ok(upper), Ok(lowers)) = (open(own), open_all(ancestors)) else { return 0 };
    let path = blobs(&worker.path).join(job.blob.hex());
    let Ok((blob, _)) = look.root.file(&path) else { return 0 };

    let mut comparison =
        Comparison { job, manner, upper, lowers, default_acls: false, differences: 0, findings };
    let entries = match manner.onto {
        None => comparison.run(blob, tree::Tree::new(job.chain.len() == 1), None),
        Some(marks) => {
            let shown = if marks == Marks::None { &job.chain[..1] } else { &job.chain[..] };
            let Ok(shown) = open_all(shown) else { return 0 };
            let below = View::new(std::mem::take(&mut comparison.lowers), marks);
            let views = Views { shown: View::new(shown, marks), below };
            let below = Some(&views.below).filter(|_| job.chain.len() > 1);
            match tree::Tree::onto(below, &manner.owners) {
                Ok(tree) => comparison.run(blob, tree, Some(&views)),
                Err(fault) => {
                    comparison.differs(FindingKind::StateFileUnreadable, b"", fault.to_string());
                    0
                }
            }
        }
    };
    if comparison.differences == 0 {
        look.progress.event(Event::LayerDone { digest: job.blob });
    }
    entries
}

impl Comparison<'_> {
    /// Makes the tree of the layer's entries, and compares it with the snapshot.
    fn run(&mut self, blob: File, mut tree: tree::Tree<'_>, views: Option<&Views>) -> u64 {
        let mut entries = 0;
        let compression = match oci::Compression::of_layer(&self.job.media_type) {
            // Docker's media type of a plain tar says nothing to a daemon.
            Some(oci::Compression::None) if self.job.media_type.starts_with("application/vnd.oci.") => {
                layer::Compression::None
            }
            _ => layer::Compression::Detect,
        };
        let read = layer::entries::<layer::Error>(blob, compression, |entry, content| {
            entries += 1;
            let upper = &self.upper;
            let applied = tree.apply(entry, |path| compare_content(upper, path, content))?;
            if let Err(fault) = applied {
                self.differs(FindingKind::LayerUnreadable, entry.name(), fault.to_string());
            }
            Ok(())
        });
        match read {
            Ok(stream) if stream.diff_id != self.job.diff_id => {
                let detail = format!("its bytes have {}, expected {}", stream.diff_id, self.job.diff_id);
                self.differs(FindingKind::LayerDiffId, b"", detail);
            }
            Ok(_) => {}
            Err(error) => {
                self.differs(FindingKind::LayerUnreadable, b"", with_causes(&error));
                return entries;
            }
        }
        if let Err(fault) = tree.finish() {
            self.differs(FindingKind::LayerUnreadable, b"", fault.to_string());
            return entries;
        }
        let gives_acl = |inode: &Inode| inode.xattrs.contains_key(DEFAULT_ACL);
        self.default_acls = tree.inodes.iter().any(gives_acl);
        match views {
            None => self.trees(&tree),
            Some(views) => self.extracted(&tree, views),
        }
        if let Some(more) = self.differences.checked_sub(MAX_DIFFERENCES).filter(|&more| more > 0) {
            let detail = format!("{more} more differences are not shown");
            self.findings.add(FindingKind::LayerEntryContent, self.subject(b""), detail);
        }
        entries
    }

    fn subject(&self, path: &[u8]) -> Subject {
        let (digest, snapshot) = (self.job.blob.to_string(), self.job.snapshot.clone());
        Subject::LayerPath { digest, snapshot, path: text(path) }
    }

    pub(super) fn differs(&mut self, kind: FindingKind, path: &[u8], detail: impl Into<String>) {
        self.differences += 1;
        if self.differences <= MAX_DIFFERENCES {
            self.findings.add(kind, self.subject(path), detail);
        }
    }

    /// Every directory of the layer against the one of the snapshot.
    fn trees(&mut self, tree: &tree::Tree<'_>) {
        let mut groups = Groups::default();
        let mut todo = vec![(PathBuf::new(), tree::ROOT)];
        while let Some((path, directory)) = todo.pop() {
            let Node::Directory(children) = &tree.inodes[directory].node else { continue };
            let listed = self.upper.subtree(&path).and_then(|here| Ok((here.list(Path::new(""))?, here)));
            let (names, here) = match listed {
                Ok(listed) => listed,
                Err(fault) => {
                    self.fault(&path, fault);
                    continue;
                }
            };
            if directory == tree::ROOT {
                let opaque = tree.inodes[tree::ROOT].opaque;
                self.opaque(&path, opaque, &here, OsStr::new("."));
            }
            let mut expected: BTreeMap<&[u8], usize> =
                children.iter().map(|(name, inode)| (name.as_slice(), *inode)).collect();
            for (name, _) in names {
                let path = path.join(&name.0);
                let Some(index) = expected.remove(name.0.as_bytes()) else {
                    self.differs(
                        FindingKind::LayerEntryExtra,
                        path.as_os_str().as_bytes(),
                        "not in the layer",
                    );
                    continue;
                };
                match here.stat(Path::new(&name.0)) {
                    Ok(stat) => {
                        let inode = &tree.inodes[index];
                        if !self.inode(&path, inode, &stat, &here, &name.0) {
                            continue;
                        }
                        if matches!(inode.node, Node::Directory(_)) {
                            todo.push((path, index));
                        } else {
                            self.link(&path, Of::Tree(index), &stat, &mut groups);
                        }
                    }
                    Err(fault) => self.fault(&path, fault),
                }
            }
            for name in expected.into_keys() {
                let path = path.join(OsStr::from_bytes(name));
                self.differs(
                    FindingKind::LayerEntryMissing,
                    path.as_os_str().as_bytes(),
                    "not in the snapshot",
                );
            }
        }
    }

    pub(super) fn fault(&mut self, path: &Path, fault: FileFault) {
        self.differs(FindingKind::StateFileUnreadable, path.as_os_str().as_bytes(), fault.detail);
    }

    /// Whether paths of one file in the layer, and no others, are one file in the snapshot.
    pub(super) fn link(&mut self, path: &Path, of: Of, stat: &Stat, groups: &mut Groups) {
        let file = (stat.st_dev, stat.st_ino);
        let (first, of_inode) = groups.by_inode.entry(of).or_insert_with(|| (path.to_owned(), file));
        if *of_inode != file {
            let detail = format!("not the same file as {}", first.display());
            self.differs(FindingKind::LayerEntryLink, path.as_os_str().as_bytes(), detail);
        }
        let (first, of_file) = groups.by_file.entry(file).or_insert_with(|| (path.to_owned(), of));
        if *of_file != of {
            let detail = format!("the same file as {}, which the layer does not say", first.display());
            self.differs(FindingKind::LayerEntryLink, path.as_os_str().as_bytes(), detail);
        }
    }

    /// Compares one path; false where it is of another type.
    pub(super) fn inode(
        &mut self,
        path: &Path,
        inode: &Inode,
        stat: &Stat,
        here: &Tree,
        name: &OsStr,
    ) -> bool {
        let shown = path.as_os_str().as_bytes();
        let found = FileType::from_raw_mode(stat.st_mode);
        let expected = match &inode.node {
            Node::Directory(_) => FileType::Directory,
            Node::File(_) | Node::Lower(..) => FileType::RegularFile,
            Node::Symlink(_) => FileType::Symlink,
            Node::CharDevice(..) | Node::Whiteout => FileType::CharacterDevice,
            Node::BlockDevice(..) => FileType::BlockDevice,
            Node::Fifo => FileType::Fifo,
        };
        if found != expected {
            let detail = format!("{}, expected {}", describe(found), describe(expected));
            self.differs(FindingKind::LayerEntryType, shown, detail);
            return false;
        }
        self.content(shown, &inode.node, stat, here, name);
        // Attributes of a directory that no entry described are those of the nearest lower layer.
        let lower = match inode.described {
            Described::First | Described::Below => None,
            Described::Later | Described::Never => self.lower(path),
        };
        let (mut mode, mut uid, mut gid) = (inode.mode, inode.uid, inode.gid);
        if inode.described == Described::Never {
            (mode, uid, gid) = match &lower {
                Some((stat, _)) => (stat.st_mode & 0o7777, Some(stat.st_uid), Some(stat.st_gid)),
                // One made inside a directory with the setgid bit has that directory's group.
                None => (0o755, inode.uid, None),
            };
        }
        let found = stat.st_mode & 0o7777;
        let inherits_setgid = inode.described == Described::Never && lower.is_none();
        // fuse-overlayfs drops it where it copies a directory up.
        let loses_setgid = inode.described == Described::Below
            && matches!(inode.node, Node::Directory(_))
            && matches!(self.manner.onto, Some(Marks::Fuse { .. }));
        let known = if inherits_setgid { found & !0o2000 } else { found };
        let known = if loses_setgid { found | mode & 0o2000 } else { known };
        if expected != FileType::Symlink && known != mode {
            self.differs(
                FindingKind::LayerEntryMode,
                shown,
                format!("mode {found:04o}, expected {mode:04o}"),
            );
        }
        if uid.is_some_and(|uid| uid != stat.st_uid) || gid.is_some_and(|gid| gid != stat.st_gid) {
            let id = |id: Option<u32>| id.map_or_else(|| "any".to_owned(), |id| id.to_string());
            let detail = format!("owner {}:{}, expected {}:{}", stat.st_uid, stat.st_gid, id(uid), id(gid));
            self.differs(FindingKind::LayerEntryOwner, shown, detail);
        }
        if let Some(time) = inode.mtime {
            let found = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(-1));
            if found != (time.seconds, i64::from(time.nanos)) {
                let detail =
                    format!("time {}.{:09}, expected {}.{:09}", found.0, found.1, time.seconds, time.nanos);
                self.differs(FindingKind::LayerEntryTime, shown, detail);
            }
        }
        let inherited = lower.map(|(_, xattrs)| xattrs).unwrap_or_default();
        self.xattrs(shown, inode, &inherited, here, name);
        true
    }

    fn content(&mut self, shown: &[u8], node: &Node, stat: &Stat, here: &Tree, name: &OsStr) {
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let detail = match node {
            Node::File(difference) => difference.clone(),
            Node::Symlink(target) => match here.read_link(name) {
                Ok(found) if found == *target => None,
                Ok(found) => Some(format!("target {}, expected {}", text(&found), text(target))),
                Err(fault) => Some(fault.detail),
            },
            Node::CharDevice(major, minor) | Node::BlockDevice(major, minor)
                if device != (*major, *minor) =>
            {
                Some(format!("device {}:{}, expected {major}:{minor}", device.0, device.1))
            }
            Node::Whiteout if device != (0, 0) => {
                Some(format!("device {}:{}, a whiteout has 0:0", device.0, device.1))
            }
            _ => None,
        };
        if let Some(detail) = detail {
            self.differs(FindingKind::LayerEntryContent, shown, detail);
        }
    }

    /// What the nearest lower layer has for a directory: where one has something else, or hides it, the
    /// search ends.
    fn lower(&self, path: &Path) -> Option<(Stat, Xattrs)> {
        for lower in &self.lowers {
            match lower.directory_in_root(path) {
                Ok(found) => {
                    let stat = found.stat(Path::new("")).ok()?;
                    let xattrs = found.xattrs(OsStr::new(".")).ok()?;
                    return Some((stat, xattrs));
                }
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            }
        }
        None
    }

    fn opaque(&mut self, path: &Path, expected: bool, here: &Tree, name: &OsStr) {
        let found = here.xattrs(name).is_ok_and(|xattrs| xattrs.contains_key(OPAQUE));
        if found != expected {
            let is = |there: bool| if there { "opaque" } else { "not opaque" };
            let detail = format!("{}, expected {}", is(found), is(expected));
            self.differs(FindingKind::LayerEntryXattrs, path.as_os_str().as_bytes(), detail);
        }
    }

    fn xattrs(&mut self, shown: &[u8], inode: &Inode, inherited: &Xattrs, here: &Tree, name: &OsStr) {
        let found = match here.xattrs(name) {
            Ok(found) => found,
            Err(fault) => {
                self.differs(FindingKind::LayerEntryXattrs, shown, fault.detail);
                return;
            }
        };
        let mut expected: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
        let inherited = inherited.iter().filter(|(name, _)| !name.starts_with(b"trusted."));
        expected.extend(inherited.chain(&inode.xattrs).map(|(n, v)| (n.as_slice(), v.as_slice())));
        if inode.opaque {
            expected.insert(OPAQUE, b"y");
        }
        let mut details = Vec::new();
        for (name, value) in &found {
            match expected.remove(name.as_slice()) {
                Some(expected) if owners::is_same(name, expected, value, &self.manner.owners) => {}
                // The kernel writes capabilities in the version that fits the writer's namespace.
                Some(_) => details.push(format!("{} has another value", text(name))),
                None if KERNEL_MARKS.contains(&name.as_slice()) => {}
                None if self.manner.onto.is_some_and(|marks| marks.has(name)) => {}
                // A directory's default one is inherited by what is made in it.
                None if self.default_acls && name.starts_with(b"system.posix_acl_") => {}
                None => details.push(format!("{} is not in the layer", text(name))),
            }
        }
        // Only files and directories can have user attributes, and links hardly any.
        let takes_all = matches!(inode.node, Node::File(_) | Node::Lower(..) | Node::Directory(_));
        // Names of no known kind are refused by the kernel, and then left out.
        let is_mark = |name: &[u8]| self.manner.onto.is_some_and(|marks| marks.has(name));
        let known =
            |name: &&[u8]| (name.starts_with(b"user.") || name.starts_with(b"security.")) && !is_mark(name);
        for name in expected.into_keys().filter(known).filter(|_| takes_all) {
            details.push(format!("{} is missing", text(name)));
        }
        if !details.is_empty() {
            self.differs(FindingKind::LayerEntryXattrs, shown, details.join(", "));
        }
    }
}

/// Which file should stand at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Of {
    /// An inode of the layer's tree.
    Tree(usize),
    /// A file of the layers below, by device and number.
    Below(u64, u64),
}

/// Which paths are one file.
#[derive(Default)]
pub(super) struct Groups {
    by_inode: HashMap<Of, (PathBuf, (u64, u64))>,
    by_file: HashMap<(u64, u64), (PathBuf, Of)>,
}

/// The bytes of an entry against those of the file at `path`; `None` where they are the same.
fn compare_content(
    upper: &Tree,
    path: &[u8],
    content: &mut Content<'_>,
) -> Result<Option<String>, layer::Error> {
    let mut file = match upper.file(Path::new(OsStr::from_bytes(path))) {
        Ok((file, _)) => file,
        // Missing, or of another type, which the comparison of the trees says; or replaced later on.
        Err(fault) => return Ok(Some(fault.detail)),
    };
    let mut buffer = vec![0; BUFFER];
    let mut at = 0u64;
    loop {
        let (bytes, mut left) = match content.segment()? {
            Segment::Data(data) => (Some(data), data.len() as u64),
            Segment::Hole(length) => (None, length),
            Segment::End => break,
        };
        let mut offset = 0;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let found = &mut buffer[..n];
            if let Err(error) = file.read_exact(found) {
                return Ok(Some(match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => {
                        format!("shorter than in the layer, after byte {at}")
                    }
                    _ => error.to_string(),
                }));
            }
            let same = match bytes {
                Some(bytes) => bytes.get(offset..offset + n) == Some(&*found),
                None => found.iter().all(|&b| b == 0),
            };
            if !same {
                return Ok(Some(format!("other bytes, between {at} and {}", at + n as u64)));
            }
            offset += n;
            at += n as u64;
            left -= n as u64;
        }
    }
    match file.read(&mut buffer) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(format!("longer than the {at} bytes in the layer"))),
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// An error with what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !message.ends_with(&next) {
            message = format!("{message}: {next}");
        }
        cause = error.source();
    }
    message
}
