//! Fetches the layers of a plan and unpacks them, both at once.
//!
//! ```text
//! downloads (6 tasks)                        unpacks (a task per core)
//! source -> hash -> content/blobs/sha256 --> inflate -> hash (diff ID)
//!                                                   \-> apply -> snapshots/<n>/fs
//! ```
//!
//! A layer is unpacked as soon as its blob is here and proven. Layers do not wait for their parents:
//! what a directory inherits from the layer below is copied at the end, lowest layer first.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::gather;
use crate::layer::{self, Implied, Usage};
use crate::oci::{self, Descriptor};
use crate::progress::{Event, Progress};
use crate::source::Source;
use crate::store::{BlobWriter, StateDir};

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

struct Run<'a> {
    plan: &'a Plan,
    sources: &'a [Box<dyn Source>],
    root: &'a StateDir,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    failure: Mutex<Option<Error>>,
    /// Per snapshot: directories that the layer did not name itself.
    implied: Vec<Mutex<Vec<Implied>>>,
    usage: Vec<Mutex<Usage>>,
}

/// Fetches and unpacks everything of `plan` into `root`.
///
/// Every blob is proven by its digest and every layer by its diff ID when this returns.
pub(crate) fn fetch_and_unpack(
    plan: &Plan,
    sources: &[Box<dyn Source>],
    root: &StateDir,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Unpacked, Error> {
    let run = Run {
        plan,
        sources,
        root,
        cancel,
        progress,
        failure: Mutex::new(None),
        implied: plan.snapshots.iter().map(|_| Mutex::default()).collect(),
        usage: plan.snapshots.iter().map(|_| Mutex::default()).collect(),
    };
    let jobs = jobs_by_blob(plan);
    progress.event(Event::Planned {
        layers: plan.blobs.len(),
        bytes: plan.bytes(),
        unpacks: jobs.iter().map(Vec::len).sum(),
    });
    // The largest first, so that no long one is left for the end.
    let mut order: Vec<usize> = (0..plan.blobs.len()).collect();
    order.sort_by_key(|&blob| std::cmp::Reverse(plan.blobs[blob].layer.descriptor.size));
    let next = AtomicUsize::new(0);
    let (send, receive) = crossbeam_channel::unbounded::<Job>();

    thread::scope(|scope| {
        for _ in 0..DOWNLOADS.min(order.len()) {
            let (send, run, next, order, jobs) = (send.clone(), &run, &next, &order, &jobs);
            scope.spawn(move || {
                while let Some(&blob) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !run.attempt(|| run.fetch(blob)) {
                        return;
                    }
                    for &job in &jobs[blob] {
                        // The receiver is gone only when an unpack failed, which is kept already.
                        let _ = send.send(job);
                    }
                }
            });
        }
        drop(send);
        let workers = thread::available_parallelism().map_or(2, NonZero::get);
        for _ in 0..workers {
            let (receive, run) = (receive.clone(), &run);
            scope.spawn(move || {
                for job in receive {
                    if !run.attempt(|| run.unpack(job)) {
                        return;
                    }
                }
            });
        }
    });

    if let Some(error) = lock(&run.failure).take() {
        return Err(error);
    }
    run.inherit()?;
    Ok(Unpacked { usage: run.usage.iter().map(|usage| *lock(usage)).collect() })
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

    fn unpack(&self, job: Job) -> Result<(), Error> {
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
                let options = layer::Options { base: self.plan.snapshots[snapshot].parent.is_none() };
                let unpacked = layer::unpack(reader, compression, &fs, &options).map_err(wrap)?;
                if unpacked.implied.is_empty() {
                    *lock(&self.usage[snapshot]) = layer::usage(&fs).map_err(wrap)?;
                }
                *lock(&self.implied[snapshot]) = unpacked.implied;
                unpacked.diff_id
            }
        };
        if diff_id != expected.diff_id {
            return Err(Error::DiffIdMismatch { digest, expected: expected.diff_id, found: diff_id });
        }
        self.progress.event(Event::LayerDone { digest });
        Ok(())
    }

    /// Gives directories that a layer lacks the attributes that the layers below have for them.
    fn inherit(&self) -> Result<(), Error> {
        for (at, implied) in self.implied.iter().enumerate() {
            self.cancel.check()?;
            let implied = lock(implied);
            if implied.is_empty() {
                continue;
            }
            let lowers: Vec<PathBuf> =
                std::iter::successors(self.plan.snapshots[at].parent, |&p| self.plan.snapshots[p].parent)
                    .map(|lower| self.root.upper(directory(lower)))
                    .collect();
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
