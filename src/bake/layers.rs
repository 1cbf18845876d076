//! Keeps layers in the directories of a root.
//!
//! ```text
//! downloads (6 tasks)                        unpacks (a task per core)
//! source -> hash -> content/blobs/sha256 --> inflate -> hash (diff ID)
//!                                                   \-> apply -> snapshots/<n>/fs
//! ```
//!
//! For overlayfs run as root, layers do not wait for
//! their parents: what a directory inherits from the layer below is copied at the end, lowest layer first. For all
//! others daemons extract what a layer has onto what those below it show, and so it is done here: a layer waits for
//! its parent.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::fsutil::{self, Held, MountError};
use crate::gather;
use crate::layer::{self, Implied, Overlay, Usage, Whiteouts};
use crate::oci::{self, Descriptor};
use crate::progress::{Event, Progress};
use crate::source::Source;
use crate::store::state_dir::SNAPSHOTS;
use crate::store::{BlobWriter, Snapshotter, StateDir};
use crate::userns::Owners;

use super::plan::Plan;
use super::schedule::{self, Job, Keeper, from_first, lock};
use super::{Cancel, Error, IoContext};

/// How layers come to stand on each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Each by itself, with marks of an overlay.
    Apart,
    /// Through a mount of those below; with marks of a user namespace, or without.
    Mounted { userxattr: bool },
    /// On a copy of the tree of its parent.
    Copied,
}

impl Way {
    fn of(snapshotter: Snapshotter, owners: &Owners) -> Self {
        match snapshotter {
            Snapshotter::Native => Self::Copied,
            Snapshotter::Overlayfs if !owners.is_namespace() => Self::Apart,
            Snapshotter::Overlayfs | Snapshotter::FuseOverlayfs => {
                Self::Mounted { userxattr: owners.is_namespace() }
            }
        }
    }
}

/// Layers on their way into a root.
struct Directories<'a> {
    plan: &'a Plan,
    sources: &'a [Box<dyn Source>],
    root: &'a StateDir,
    way: Way,
    owners: &'a Owners,
    /// Where layers are mounted, if they are: a name in the root.
    scratch: Option<&'a OsStr>,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    /// Per snapshot: directories that the layer did not name itself.
    implied: Vec<Mutex<Vec<Implied>>>,
    usage: Vec<Mutex<Usage>>,
}

/// Fetches and unpacks everything of `plan` into `root`, with files that belong to `owners`.
///
/// Every blob is proven by its digest and every layer by its diff ID when this returns, which gives what each
/// snapshot of the plan takes.
pub(crate) fn fetch_and_unpack(
    plan: &Plan,
    sources: &[Box<dyn Source>],
    root: &StateDir,
    owners: &Owners,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<Usage>, Error> {
    let way = Way::of(root.snapshotter(), owners);
    let scratch = match way {
        // On the same disk, and beside the worker, whose directories a daemon knows.
        Way::Mounted { .. } => Some(
            fsutil::temporary_directory("warmkit-", root.root()).at("create a directory in", root.root())?,
        ),
        Way::Apart | Way::Copied => None,
    };
    let directories = Directories {
        plan,
        sources,
        root,
        way,
        owners,
        scratch: scratch.as_ref().and_then(|scratch| scratch.path().file_name()),
        cancel,
        progress,
        implied: plan.snapshots.iter().map(|_| Mutex::default()).collect(),
        usage: plan.snapshots.iter().map(|_| Mutex::default()).collect(),
    };
    schedule::run(plan, &directories, cancel, progress)?;
    directories.inherit()?;
    let usage = directories.usage.iter().map(|usage| *lock(usage)).collect();
    drop(directories);
    if let Some(scratch) = scratch {
        scratch.close().at("remove a directory in", root.root())?;
    }
    Ok(usage)
}

/// Where a thread mounts the layers that it unpacks: all as its mount namespace has it.
struct Mountpoint {
    root: StateDir,
    target: PathBuf,
    work: PathBuf,
    userxattr: bool,
    /// Only dropped: what these paths begin with.
    _held: Held,
}

/// The number of a snapshot's directory.
fn directory(snapshot: usize) -> u64 {
    snapshot as u64 + 1
}

/// How a layer is compressed, as a daemon finds out: it takes only OCI's word for a plain tar, and tells the rest by
/// the first bytes.
pub(super) fn compression(layer: &oci::Layer) -> layer::Compression {
    let is_oci = layer.descriptor.media_type.starts_with("application/vnd.oci.");
    match layer.compression {
        oci::Compression::None if is_oci => layer::Compression::None,
        _ => layer::Compression::Detect,
    }
}

impl Keeper for Directories<'_> {
    /// Only those that unpack through mounts need one.
    type Place = Option<Mountpoint>;

    fn stacks(&self) -> bool {
        self.way != Way::Apart
    }

    fn fetch(&self, blob: usize) -> Result<(), Error> {
        let blob = &self.plan.blobs[blob];
        let descriptor = &blob.layer.descriptor;
        from_first(blob, self.sources, self.progress, |source| self.fetch_from(source, descriptor))?;
        self.progress.event(Event::BlobDone { digest: descriptor.digest });
        Ok(())
    }

    fn place(&self, worker: usize) -> Result<Option<Mountpoint>, Error> {
        let (Some(scratch), Way::Mounted { userxattr }) = (self.scratch, self.way) else { return Ok(None) };
        let held = match Held::in_own_mount_namespace(self.root.root()) {
            Ok(held) => held,
            Err(MountError::Namespace(source)) => return Err(Error::MountNamespace { source }),
            Err(MountError::Directory(source)) => return Err(source).at("open", self.root.root()),
        };
        let root = self.root.at(held.path());
        let directory = held.path().join(scratch).join(worker.to_string());
        let (target, work) = (directory.join("layer"), directory.join("work"));
        for path in [&directory, &target] {
            fs::create_dir(path).at("create", path)?;
        }
        Ok(Some(Mountpoint { root, target, work, userxattr, _held: held }))
    }

    fn unpack(&self, job: Job, place: &Self::Place) -> Result<(), Error> {
        let expected = &self.plan.blobs[job.blob(self.plan)].layer;
        let digest = expected.descriptor.digest;
        let path = self.root.blob(&digest);
        let file = File::open(&path).at("open", &path)?;
        let reader = BufReader::with_capacity(256 << 10, Cancellable { inner: file, cancel: self.cancel });
        let wrap = |source| Error::Layer { digest, source };
        let compression = compression(expected);
        let diff_id = match job {
            Job::Prove(_) => {
                let read = layer::entries(reader, compression, |_, _| Ok(()));
                read.map_err(wrap)?.diff_id
            }
            Job::Unpack(snapshot) => {
                let fs = self.root.create_snapshot(directory(snapshot))?;
                let parent = self.plan.snapshots[snapshot].parent;
                let unpacked = match (parent, place) {
                    _ if self.way == Way::Apart => {
                        layer::unpack(reader, compression, &fs, &layer::Options::of_upper(parent.is_none()))
                    }
                    (None, _) => layer::unpack(reader, compression, &fs, &self.onto()),
                    (Some(_), Some(place)) => self.mounted(snapshot, place, |at| {
                        layer::unpack(reader, compression, at, &self.onto())
                    })?,
                    (Some(parent), None) => layer::copy_tree(&self.root.upper(directory(parent)), &fs)
                        .and_then(|()| layer::unpack(reader, compression, &fs, &self.onto())),
                };
                let unpacked = unpacked.map_err(wrap)?;
                if self.way != Way::Apart {
                    layer::inherit(&fs, &unpacked.implied, &[]).map_err(wrap)?;
                }
                if self.way != Way::Apart || unpacked.implied.is_empty() {
                    *lock(&self.usage[snapshot]) = layer::usage(&fs).map_err(wrap)?;
                } else {
                    *lock(&self.implied[snapshot]) = unpacked.implied;
                }
                unpacked.diff_id
            }
        };
        if diff_id != expected.diff_id {
            return Err(Error::DiffIdMismatch { digest, expected: expected.diff_id, found: diff_id });
        }
        self.progress.event(Event::LayerDone { digest });
        Ok(())
    }
}

impl Directories<'_> {
    fn fetch_from(&self, source: &dyn Source, descriptor: &Descriptor) -> Result<(), Error> {
        let mut writer = BlobWriter::new(self.root)?;
        let mut out = Cancellable { inner: &mut writer, cancel: self.cancel };
        source
            .blob(descriptor, &mut out, self.progress)
            .map_err(|error| gather::Error::Source { what: source.name(), source: Box::new(error) })?;
        writer.finish(&descriptor.digest)?;
        Ok(())
    }

    /// How a layer is unpacked onto those below it.
    fn onto(&self) -> layer::Options {
        layer::Options { whiteouts: Whiteouts::Remove, owners: self.owners.clone() }
    }

    /// Does `unpack` where a snapshot is mounted on those below it.
    fn mounted(
        &self,
        snapshot: usize,
        place: &Mountpoint,
        unpack: impl FnOnce(&Path) -> layer::Result<layer::Unpacked>,
    ) -> Result<layer::Result<layer::Unpacked>, Error> {
        let lowers: Vec<PathBuf> =
            self.below(snapshot).map(|lower| PathBuf::from(format!("{lower}/fs"))).collect();
        let overlay = Overlay {
            directory: &place.root.in_worker(SNAPSHOTS),
            lowers: &lowers,
            upper: &place.root.upper(directory(snapshot)),
            work: &place.work,
            target: &place.target,
            userxattr: place.userxattr,
        };
        // What it has from the layer before says that it was not unmounted.
        fs::create_dir(&place.work).at("create", &place.work)?;
        let root = || Ok((self.owners.user(0)?, self.owners.group(0)?));
        let unpacked = overlay.with(unpack).and_then(|unpacked| {
            let owner = root().map_err(|source| layer::Error::Owner { path: PathBuf::new(), source })?;
            overlay.settle(owner)?;
            Ok(unpacked)
        });
        let removed = fs::remove_dir_all(&place.work).at("remove", &place.work);
        // Why a layer could not be unpacked says more than what stands in the way of cleaning up.
        if unpacked.is_ok() {
            removed?;
        }
        Ok(unpacked)
    }

    /// The numbers of the directories of the snapshots below one, nearest first.
    fn below(&self, snapshot: usize) -> impl Iterator<Item = u64> {
        std::iter::successors(self.plan.snapshots[snapshot].parent, |&p| self.plan.snapshots[p].parent)
            .map(directory)
    }

    /// Gives directories that a layer lacks the attributes that the layers below have for them.
    fn inherit(&self) -> Result<(), Error> {
        for (at, implied) in self.implied.iter().enumerate() {
            self.cancel.check()?;
            let implied = lock(implied);
            if implied.is_empty() {
                continue;
            }
            let lowers: Vec<PathBuf> = self.below(at).map(|lower| self.root.upper(lower)).collect();
            let lowers: Vec<_> = lowers.iter().map(PathBuf::as_path).collect();
            let fs = self.root.upper(directory(at));
            let digest = self.plan.blobs[self.plan.snapshots[at].blob].layer.descriptor.digest;
            let wrap = |source| Error::Layer { digest, source };
            layer::inherit(&fs, &implied, &lowers).map_err(wrap)?;
            *lock(&self.usage[at]) = layer::usage(&fs).map_err(wrap)?;
        }
        Ok(())
    }
}

/// Ends a stream in its middle when the run is cancelled.
pub(super) struct Cancellable<'a, T> {
    pub(super) inner: T,
    pub(super) cancel: &'a Cancel,
}

impl<T: Read> Read for Cancellable<'_, T> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check_io()?;
        self.inner.read(buf)
    }
}

impl<T: Write> Write for Cancellable<'_, T> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.cancel.check_io()?;
        self.inner.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
