//! Fetches the layers of a plan and unpacks them, both at once.
//!
//! ```text
//! downloads (6 tasks)                        unpacks (a task per core)
//! source -> hash -> content/blobs/sha256 --> inflate -> hash (diff ID)
//!                                                   \-> apply -> snapshots/<n>/fs
//! ```
//!
//! A layer is unpacked as soon as its blob is here and proven. For overlayfs run as root, layers do not wait for
//! their parents: what a directory inherits from the layer below is copied at the end, lowest layer first. For all
//! others daemons extract what a layer has onto what those below it show, and so it is done here: a layer waits for
//! its parent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::Sender;
use tempfile::TempDir;

use crate::fsutil;
use crate::gather;
use crate::layer::{self, Implied, Overlay, Usage, Whiteouts};
use crate::oci::{self, Descriptor};
use crate::progress::{Event, Progress};
use crate::source::Source;
use crate::store::state_dir::SNAPSHOTS;
use crate::store::{BlobWriter, Snapshotter, StateDir};
use crate::userns::Owners;

use super::plan::Plan;
use super::{Cancel, Error, IoContext};

/// Requests under way at once: enough to fill a line to S3, few enough for any registry's limits.
const DOWNLOADS: usize = 6;

/// What only the unpacked layers tell.
pub(crate) struct Unpacked {
    /// Per snapshot of the plan.
    pub(crate) usage: Vec<Usage>,
}

#[derive(Clone, Copy)]
enum Job {
    Unpack(usize),
    /// A blob whose diff ID must be proven though another one is unpacked in its place.
    Prove(usize),
}

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

/// The jobs that have what they need, and how much the others lack.
struct Queue {
    ready: Mutex<Option<Sender<Job>>>,
    /// Per snapshot: its blob, and its parent where that must come before.
    lacks: Vec<AtomicUsize>,
    unfinished: AtomicUsize,
}

impl Queue {
    fn put(&self, job: Job) {
        if let Some(ready) = &*lock(&self.ready) {
            // The receiver is gone only when an unpack failed, which is kept already.
            let _ = ready.send(job);
        }
    }

    /// Something that a snapshot lacked is there.
    fn supply(&self, snapshot: usize) {
        if self.lacks[snapshot].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.put(Job::Unpack(snapshot));
        }
    }

    /// A job is done; the last one ends all who wait for another.
    fn done(&self) {
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.close();
        }
    }

    fn close(&self) {
        lock(&self.ready).take();
    }
}

struct Run<'a> {
    plan: &'a Plan,
    sources: &'a [Box<dyn Source>],
    root: &'a StateDir,
    way: Way,
    owners: &'a Owners,
    /// Where layers are mounted, if they are.
    scratch: Option<&'a Path>,
    queue: Queue,
    /// Per snapshot: those that stand on it.
    children: Vec<Vec<usize>>,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    failure: Mutex<Option<Error>>,
    /// Per snapshot: directories that the layer did not name itself.
    implied: Vec<Mutex<Vec<Implied>>>,
    usage: Vec<Mutex<Usage>>,
}

/// Fetches and unpacks everything of `plan` into `root`, with files that belong to `owners`.
///
/// Every blob is proven by its digest and every layer by its diff ID when this returns.
pub(crate) fn fetch_and_unpack(
    plan: &Plan,
    sources: &[Box<dyn Source>],
    root: &StateDir,
    owners: &Owners,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Unpacked, Error> {
    let way = Way::of(root.snapshotter(), owners);
    let jobs = jobs_by_blob(plan);
    let unpacks = jobs.iter().map(Vec::len).sum();
    let mut children = vec![Vec::new(); plan.snapshots.len()];
    for (at, snapshot) in plan.snapshots.iter().enumerate() {
        if let Some(parent) = snapshot.parent.filter(|_| way != Way::Apart) {
            children[parent].push(at);
        }
    }
    let mut lacks = vec![1; plan.snapshots.len()];
    children.iter().flatten().for_each(|&child| lacks[child] += 1);
    let (send, receive) = crossbeam_channel::unbounded::<Job>();
    let scratch = match way {
        // On the same disk, and beside the worker, whose directories a daemon knows.
        Way::Mounted { .. } => Some(
            fsutil::temporary_directory("warmkit-", root.root()).at("create a directory in", root.root())?,
        ),
        Way::Apart | Way::Copied => None,
    };
    let run = Run {
        plan,
        sources,
        root,
        way,
        owners,
        scratch: scratch.as_ref().map(TempDir::path),
        queue: Queue {
            ready: Mutex::new(Some(send).filter(|_| unpacks > 0)),
            lacks: lacks.into_iter().map(AtomicUsize::new).collect(),
            unfinished: AtomicUsize::new(unpacks),
        },
        children,
        cancel,
        progress,
        failure: Mutex::new(None),
        implied: plan.snapshots.iter().map(|_| Mutex::default()).collect(),
        usage: plan.snapshots.iter().map(|_| Mutex::default()).collect(),
    };
    progress.event(Event::Planned { layers: plan.blobs.len(), bytes: plan.bytes(), unpacks });
    // The largest first, so that no long one is left for the end.
    let mut order: Vec<usize> = (0..plan.blobs.len()).collect();
    order.sort_by_key(|&blob| std::cmp::Reverse(plan.blobs[blob].layer.descriptor.size));
    let next = AtomicUsize::new(0);

    thread::scope(|scope| {
        for _ in 0..DOWNLOADS.min(order.len()) {
            let (run, next, order, jobs) = (&run, &next, &order, &jobs);
            scope.spawn(move || {
                while let Some(&blob) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !run.attempt(|| run.fetch(blob)) {
                        return;
                    }
                    for &job in &jobs[blob] {
                        match job {
                            Job::Unpack(snapshot) => run.queue.supply(snapshot),
                            Job::Prove(_) => run.queue.put(job),
                        }
                    }
                }
            });
        }
        let workers = thread::available_parallelism().map_or(2, NonZero::get);
        for worker in 0..workers {
            let (receive, run) = (receive.clone(), &run);
            scope.spawn(move || {
                let mut place = None;
                if !run.attempt(|| run.place(worker).map(|made| place = made)) {
                    return;
                }
                for job in receive {
                    if !run.attempt(|| run.unpack(job, place.as_ref())) {
                        return;
                    }
                    if let Job::Unpack(snapshot) = job {
                        run.children[snapshot].iter().for_each(|&child| run.queue.supply(child));
                    }
                    run.queue.done();
                }
            });
        }
    });

    if let Some(error) = lock(&run.failure).take() {
        return Err(error);
    }
    run.inherit()?;
    let usage = run.usage.iter().map(|usage| *lock(usage)).collect();
    drop(run);
    if let Some(scratch) = scratch {
        scratch.close().at("remove a directory in", root.root())?;
    }
    Ok(Unpacked { usage })
}

/// Where a thread mounts the layers that it unpacks.
struct Mountpoint {
    target: PathBuf,
    work: PathBuf,
    userxattr: bool,
}

fn jobs_by_blob(plan: &Plan) -> Vec<Vec<Job>> {
    let mut jobs = vec![Vec::new(); plan.blobs.len()];
    for (at, snapshot) in plan.snapshots.iter().enumerate() {
        jobs[snapshot.blob].push(Job::Unpack(at));
    }
    for (blob, jobs) in jobs.iter_mut().enumerate() {
        if jobs.is_empty() {
            jobs.push(Job::Prove(blob));
        }
    }
    jobs
}

/// The number of a snapshot's directory.
fn directory(snapshot: usize) -> u64 {
    snapshot as u64 + 1
}

/// Takes a lock whose holder cannot leave the value half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Run<'_> {
    /// Runs `work` unless something failed before; keeps the first error. Tells whether to go on.
    fn attempt(&self, work: impl FnOnce() -> Result<(), Error>) -> bool {
        if lock(&self.failure).is_some() {
            return false;
        }
        let Err(error) = self.cancel.check().and_then(|()| work()) else { return true };
        // In this order: what the others say when they are stopped must not pass for the cause.
        lock(&self.failure).get_or_insert(error);
        self.cancel.stop.stop();
        self.queue.close();
        false
    }

    /// Fetches a blob from the first of its caches that gives it. What a blob is follows from its digest,
    /// so any of them is as good.
    fn fetch(&self, blob: usize) -> Result<(), Error> {
        let blob = &self.plan.blobs[blob];
        let digest = blob.layer.descriptor.digest;
        let mut failed: Option<gather::Error> = None;
        let mut asked = BTreeSet::new();
        for source in blob.caches.iter().map(|&cache| &self.sources[cache]) {
            // Two tags of one repository have the same blobs.
            if !asked.insert(source.blob_store()) {
                continue;
            }
            match self.fetch_from(&**source, &blob.layer.descriptor) {
                Ok(()) => {
                    if let Some(error) = failed {
                        let name = source.name();
                        self.progress.event(Event::Warning(format!("{error}; {name} has had it")));
                    }
                    self.progress.event(Event::BlobDone { digest });
                    return Ok(());
                }
                // A full disk, or the end of the run: no other cache helps.
                Err(Error::Gather(error)) if error.class() != gather::ErrorClass::Other => {
                    failed.get_or_insert(*error);
                }
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn fetch_from(&self, source: &dyn Source, descriptor: &Descriptor) -> Result<(), Error> {
        let mut writer = BlobWriter::new(self.root)?;
        let mut out = Cancellable { inner: &mut writer, cancel: self.cancel };
        source
            .blob(descriptor, &mut out, self.progress)
            .map_err(|error| gather::Error::Source { what: source.name(), source: Box::new(error) })?;
        writer.finish(&descriptor.digest)?;
        Ok(())
    }

    /// What a thread needs for itself that unpacks through mounts.
    fn place(&self, worker: usize) -> Result<Option<Mountpoint>, Error> {
        let (Some(scratch), Way::Mounted { userxattr }) = (self.scratch, self.way) else { return Ok(None) };
        let directory = scratch.join(worker.to_string());
        let (target, work) = (directory.join("layer"), directory.join("work"));
        for path in [&directory, &target] {
            fs::create_dir(path).at("create", path)?;
        }
        fsutil::own_mount_namespace().map_err(|source| Error::MountNamespace { source })?;
        Ok(Some(Mountpoint { target, work, userxattr }))
    }

    fn unpack(&self, job: Job, place: Option<&Mountpoint>) -> Result<(), Error> {
        let blob = match job {
            Job::Unpack(snapshot) => self.plan.snapshots[snapshot].blob,
            Job::Prove(blob) => blob,
        };
        let expected = &self.plan.blobs[blob].layer;
        let digest = expected.descriptor.digest;
        let path = self.root.blob(&digest);
        let file = File::open(&path).at("open", &path)?;
        let reader = BufReader::with_capacity(256 << 10, Cancellable { inner: file, cancel: self.cancel });
        let wrap = |source| Error::Layer { digest, source };
        // A daemon takes only OCI's word for a plain tar; the rest it tells by the first bytes.
        let is_oci = expected.descriptor.media_type.starts_with("application/vnd.oci.");
        let compression = match expected.compression {
            oci::Compression::None if is_oci => layer::Compression::None,
            _ => layer::Compression::Detect,
        };
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
            directory: &self.root.in_worker(SNAPSHOTS),
            lowers: &lowers,
            upper: &self.root.upper(directory(snapshot)),
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
        fs::remove_dir_all(&place.work).at("remove", &place.work)?;
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
struct Cancellable<'a, T> {
    inner: T,
    cancel: &'a Cancel,
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
