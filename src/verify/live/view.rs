//! The throwaway view: a directory that looks like the root to a daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, StatVfsMountFlags};
use rustix::mount::MountFlags;

use super::runner::Runner;
use super::{LiveError, fail};
use crate::daemon::output;
use crate::fsutil;
use crate::root::fault::Faults;
use crate::root::files::{self, MAX_DATABASE, Tree};
use crate::root::{self, FaultKind, Kind, Snapshotter};

/// A view under construction: what has to be mounted waits for the daemon's mount namespace.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// The daemon's root.
    pub(super) root: PathBuf,
    /// The real root, canonical.
    original: PathBuf,
    runner: &'a Runner,
    overlays: Vec<Overlay>,
}

/// A directory that is written to over a directory that is not.
#[derive(Debug)]
struct Overlay {
    lower: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
}

impl<'a> View<'a> {
    /// Makes the view of a worker in `scratch`, for who runs its daemon.
    pub(super) fn make(
        tree: &Tree,
        worker: &Path,
        runner: &'a Runner,
        scratch: &Path,
    ) -> Result<Self, LiveError> {
        let root = scratch.join("root");
        let mut view = Self { root, original: tree.path.clone(), runner, overlays: Vec::new() };
        view.make_directory(&view.root)?;
        view.copy(tree, Path::new("cache.db"))?;
        view.make_directory(&view.root.join(worker))?;
        for name in ["metadata_v2.db", "containerdmeta.db", "workerid"] {
            view.copy(tree, &worker.join(name))?;
        }
        view.blobs(tree, worker)?;
        view.snapshots(tree, worker, scratch)?;
        Ok(view)
    }

    /// Makes a directory for the daemon, in one that is there.
    fn make_directory(&self, path: &Path) -> Result<(), LiveError> {
        fs::DirBuilder::new().mode(0o700).create(path).map_err(fail("make", path))?;
        self.runner.own(path)
    }

    /// Makes all directories above one for the daemon, and it.
    fn make_directories(&self, below: &Path, path: &Path) -> Result<(), LiveError> {
        let mut at = below.to_owned();
        for name in path {
            at.push(name);
            if !at.is_dir() {
                self.make_directory(&at)?;
            }
        }
        Ok(())
    }

    /// Copies a file; one that is missing stays missing, which is what the build is to see.
    fn copy(&self, tree: &Tree, path: &Path) -> Result<(), LiveError> {
        let bytes = match tree.read(path, MAX_DATABASE) {
            Ok(bytes) => bytes,
            Err(fault) if fault.kind == FaultKind::FileMissing => return Ok(()),
            Err(fault) => {
                let path = self.original.join(path);
                return Err(LiveError::Damaged { path, detail: fault.detail });
            }
        };
        let target = self.root.join(path);
        fs::write(&target, bytes).map_err(fail("write", &target))?;
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::chmod(&target, mode)
            .map_err(io::Error::from)
            .map_err(fail("change the mode of", &target))?;
        self.runner.own(&target)
    }

    fn link(&self, path: &Path) -> Result<(), LiveError> {
        let target = self.root.join(path);
        symlink(self.original.join(path), &target).map_err(fail("make", &target))
    }

    fn blobs(&self, tree: &Tree, worker: &Path) -> Result<(), LiveError> {
        let directory = files::blobs(worker);
        self.make_directories(&self.root, &directory)?;
        for (name, _) in tree.list(&directory).unwrap_or_default() {
            self.link(&directory.join(&name.0))?;
        }
        Ok(())
    }

    fn snapshots(&mut self, tree: &Tree, worker: &Path, scratch: &Path) -> Result<(), LiveError> {
        let directory = files::snapshots(worker);
        self.make_directories(&self.root, &directory)?;
        let path = worker.join("snapshots/metadata.db");
        self.copy(tree, &path)?;
        let store = self.store(tree, &path)?;
        let active: BTreeMap<String, bool> = store
            .snapshots
            .values()
            .filter(|stored| stored.kind == Kind::Active)
            .map(|stored| (stored.id.to_string(), stored.parent.is_some()))
            .collect();
        let has_upper = files::has_upper(root::snapshotter_of(worker));
        for (name, _) in tree.list(&directory).unwrap_or_default() {
            let path = directory.join(&name.0);
            match name.0.to_str().and_then(|name| Some((name, *active.get(name)?))) {
                Some((id, has_parent)) if has_upper => self.active(&path, id, has_parent, scratch)?,
                Some((id, _)) => self.active_tree(&path, id, scratch)?,
                None => self.link(&path)?,
            }
        }
        Ok(())
    }

    /// The snapshotter's database, which a daemon makes with its first snapshot.
    fn store(&self, tree: &Tree, path: &Path) -> Result<Snapshotter, LiveError> {
        if !self.root.join(path).exists() {
            return Ok(Snapshotter::default());
        }
        let mut faults = Faults::default();
        if let Some(db) = root::database::open(tree, path, &mut faults) {
            return Ok(root::read_snapshotter(&db, path, &mut faults));
        }
        let detail = faults.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Err(LiveError::Damaged { path: self.original.join(path), detail })
    }

    /// A snapshot that the daemon may write to.
    fn active(&mut self, path: &Path, id: &str, has_parent: bool, scratch: &Path) -> Result<(), LiveError> {
        let (lower, at) = (self.original.join(path).join("fs"), self.root.join(path));
        let target = at.join("fs");
        for directory in [&at, &target, &at.join("work")] {
            self.make_directory(directory)?;
        }
        // Missing in the root, or a link, which no daemon makes: missing in the view, but for an empty directory.
        if !is_directory(&lower) {
            return Ok(());
        }
        if has_parent {
            // Its directory will be the upper one of an overlay, which no overlay can be.
            let mut command = Command::new("cp");
            command.args(["-a", "--reflink=auto", "--"]).arg(lower.join(".")).arg(&target);
            output(&mut command)?;
            return Ok(());
        }
        self.overlay(lower, target, id, scratch)
    }

    /// The same of a snapshotter whose snapshots are whole trees. Where it stands is a link, which the daemon can take
    /// away, as it cannot a mount point.
    fn active_tree(&mut self, path: &Path, id: &str, scratch: &Path) -> Result<(), LiveError> {
        let lower = self.original.join(path);
        if !is_directory(&lower) {
            return self.link(path);
        }
        let target = scratch.join("active").join(id).join("tree");
        self.make_directories(scratch, &Path::new("active").join(id).join("tree"))?;
        let link = self.root.join(path);
        symlink(&target, &link).map_err(fail("make", &link))?;
        self.overlay(lower, target, id, scratch)
    }

    /// Has a directory written to at `target`, not where it is.
    fn overlay(
        &mut self,
        lower: PathBuf,
        target: PathBuf,
        id: &str,
        scratch: &Path,
    ) -> Result<(), LiveError> {
        let over = Path::new("active").join(id);
        for name in ["upper", "work"] {
            self.make_directories(scratch, &over.join(name))?;
        }
        let (upper, work) = (scratch.join(&over).join("upper"), scratch.join(over).join("work"));
        // Its own attributes are those that the mount shows.
        let of = lower.metadata().map_err(fail("look at", &lower))?;
        lchown(&upper, Some(of.uid()), Some(of.gid())).map_err(fail("change the owner of", &upper))?;
        fs::set_permissions(&upper, of.permissions()).map_err(fail("change the mode of", &upper))?;
        self.overlays.push(Overlay { lower, upper, work, target });
        Ok(())
    }

    /// Leaves the mount namespace of the process, for this thread and those that it starts, and mounts what the view
    /// needs. The root is read-only from here on.
    pub(super) fn enter(&self) -> Result<(), LiveError> {
        let mount = |action, path: &Path| {
            let fail = fail(action, path);
            move |errno: rustix::io::Errno| fail(errno.into())
        };
        fsutil::own_mount_namespace().map_err(fail("make a mount namespace for", &self.original))?;
        let root = &self.original;
        rustix::mount::mount_bind_recursive(root, root).map_err(mount("bind", root))?;
        for point in mounts_at_or_below(root)? {
            let read_only = MountFlags::BIND | MountFlags::RDONLY | kept(&point)?;
            rustix::mount::mount_remount(&point, read_only, c"").map_err(mount("make read-only", &point))?;
        }
        for overlay in &self.overlays {
            let mut options = Vec::new();
            for (name, path) in
                [("lowerdir=", &overlay.lower), (",upperdir=", &overlay.upper), (",workdir=", &overlay.work)]
            {
                options.extend_from_slice(name.as_bytes());
                fsutil::escape_overlay_option(path, &mut options);
            }
            // In a namespace no other marks can be made.
            if self.runner.in_namespace {
                options.extend_from_slice(b",userxattr");
            }
            let options = std::ffi::CString::new(options).map_err(io::Error::from);
            let options = options.map_err(fail("mount", &overlay.target))?;
            rustix::mount::mount("overlay", &overlay.target, "overlay", MountFlags::empty(), &*options)
                .map_err(mount("mount an overlay at", &overlay.target))?;
        }
        Ok(())
    }
}

/// Whether it is a directory itself.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// What a user namespace may not take away from a mount that it was given.
fn kept(point: &Path) -> Result<MountFlags, LiveError> {
    let found = rustix::fs::statvfs(point).map_err(io::Error::from).map_err(fail("look at", point))?.f_flag;
    let flags = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ];
    let kept = flags.into_iter().filter(|(flag, _)| found.contains(*flag)).map(|(_, flag)| flag);
    Ok(kept.fold(MountFlags::empty(), MountFlags::union))
}

/// Mount points at and below `root`, outermost first.
fn mounts_at_or_below(root: &Path) -> Result<Vec<PathBuf>, LiveError> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let table = fs::read_to_string(path).map_err(fail("read", path))?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(root))
        .collect();
    points.sort();
    points.dedup();
    Ok(points)
}

/// Blanks and the like stand in mountinfo as `\ooo`.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|code| u8::from_str_radix(code, 8).ok());
        if let Some(code) = code {
            out.push(char::from(code));
            rest = &rest[at + 4..];
        } else {
            out.push('\\');
            rest = &rest[at + 1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        let cases = [("/a", "/a"), (r"/a\040b", "/a b"), (r"/a\134b\011", "/a\\b\t"), (r"/a\9", r"/a\9")];
        for (escaped, plain) in cases {
            assert_eq!(unescape(escaped), plain);
        }
    }
}
