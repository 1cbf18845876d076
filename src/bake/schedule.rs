//! Fetches layers and unpacks them, both at once, wherever they go.
//!
//! ```text
//! downloads (6 tasks)          unpacks (a task per core)
//! fetch ───────────────────>  place, unpack
//! ```
//!
//! A layer is unpacked as soon as its blob is here and proven and, where a [`Keeper`] stacks them, its parent is
//! unpacked.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::Sender;

use crate::gather::{self, Blob};
use crate::progress::{Event, Progress};
use crate::source::Source;

use super::plan::Plan;
use super::{Cancel, Error};

/// Requests under way at once: enough to fill a line to S3, few enough for any registry's limits.
const DOWNLOADS: usize = 6;

/// Something to do with a blob that is here.
#[derive(Clone, Copy)]
pub(super) enum Job {
    /// A snapshot of the plan is made of it.
    Unpack(usize),
    /// Its diff ID must be proven though another one is unpacked in its place.
    Prove(usize),
}

impl Job {
    /// The blob.
    pub(super) fn blob(self, plan: &Plan) -> usize {
        match self {
            Self::Unpack(snapshot) => plan.snapshots[snapshot].blob,
            Self::Prove(blob) => blob,
        }
    }
}

/// Who keeps layers: takes blobs in, and makes snapshots of them.
pub(super) trait Keeper: Sync {
    /// What a thread that unpacks needs for itself.
    type Place;

    /// Whether a layer is unpacked onto its parent, which then comes first.
    fn stacks(&self) -> bool;

    /// Takes a blob in, proven by its digest.
    fn fetch(&self, blob: usize) -> Result<(), Error>;

    /// What the thread that calls it needs, which is the `worker`th.
    fn place(&self, worker: usize) -> Result<Self::Place, Error>;

    /// Does a job, and proves the diff ID of its blob.
    fn unpack(&self, job: Job, place: &Self::Place) -> Result<(), Error>;
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

struct Run<'a, K> {
    keeper: &'a K,
    queue: Queue,
    cancel: &'a Cancel,
    failure: Mutex<Option<Error>>,
}

impl<K> Run<'_, K> {
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
}

/// Has `keeper` fetch and unpack everything of `plan`.
///
/// # Errors
/// The first thing that failed; what was under way has ended when this returns.
pub(super) fn run<K: Keeper>(
    plan: &Plan,
    keeper: &K,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let jobs = jobs_by_blob(plan);
    let unpacks = jobs.iter().map(Vec::len).sum();
    let mut children = vec![Vec::new(); plan.snapshots.len()];
    for (at, snapshot) in plan.snapshots.iter().enumerate() {
        if let Some(parent) = snapshot.parent.filter(|_| keeper.stacks()) {
            children[parent].push(at);
        }
    }
    let mut lacks = vec![1; plan.snapshots.len()];
    children.iter().flatten().for_each(|&child| lacks[child] += 1);
    let (send, receive) = crossbeam_channel::unbounded::<Job>();
    let run = Run {
        keeper,
        queue: Queue {
            ready: Mutex::new(Some(send).filter(|_| unpacks > 0)),
            lacks: lacks.into_iter().map(AtomicUsize::new).collect(),
            unfinished: AtomicUsize::new(unpacks),
        },
        cancel,
        failure: Mutex::new(None),
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
                    if !run.attempt(|| run.keeper.fetch(blob)) {
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
            let (receive, run, children) = (receive.clone(), &run, &children);
            scope.spawn(move || {
                let mut place = None;
                if !run.attempt(|| run.keeper.place(worker).map(|made| place = Some(made))) {
                    return;
                }
                let Some(place) = place else { return };
                for job in receive {
                    if !run.attempt(|| run.keeper.unpack(job, &place)) {
                        return;
                    }
                    if let Job::Unpack(snapshot) = job {
                        children[snapshot].iter().for_each(|&child| run.queue.supply(child));
                    }
                    run.queue.done();
                }
            });
        }
    });

    let failure = lock(&run.failure).take();
    failure.map_or(Ok(()), Err)
}

/// Copies a blob from the first of its caches that gives it. What a blob is follows from its digest, so any of
/// them is as good.
pub(super) fn from_first(
    blob: &Blob,
    sources: &[Box<dyn Source>],
    progress: &dyn Progress,
    mut copy: impl FnMut(&dyn Source) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut failed: Option<gather::Error> = None;
    let mut asked = BTreeSet::new();
    for source in blob.caches.iter().map(|&cache| &sources[cache]) {
        // Two tags of one repository have the same blobs.
        if !asked.insert(source.blob_store()) {
            continue;
        }
        match copy(&**source) {
            Ok(()) => {
                if let Some(error) = failed {
                    let name = source.name();
                    progress.event(Event::Warning(format!("{error}; {name} has had it")));
                }
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

/// Takes a lock whose holder cannot leave the value half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
