//! What all threads of a run share: how fast they may read, whether they are to end, and what they have read.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use super::files::Unread;
use super::rate::Bucket;
use super::report::Failed;
use super::{Error, Options};
use crate::progress::{Event, Progress};

/// Bytes per read: EBS counts up to so many as one operation. Whoever else reads waits behind those under way.
const CHUNK: u64 = 256 << 10;
/// The smallest, however low the rate.
const MIN_CHUNK: u64 = 64 << 10;
/// How long a thread that waits for the rate may take to see that the run is to end.
const ATTENTION: Duration = Duration::from_millis(50);

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) directories: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) from_disk: u64,
    pub(super) gone: u64,
    pub(super) failed: Vec<Failed>,
}

impl Tally {
    /// Notes what was not read.
    pub(super) fn unread(&mut self, path: &Path, unread: Unread) {
        match unread {
            Unread::Gone => self.gone += 1,
            Unread::Failed(errno) => self.failed.push(Failed {
                path: path.display().to_string(),
                reason: io::Error::from(errno).to_string(),
            }),
        }
    }

    fn add(&mut self, other: Self) {
        self.directories += other.directories;
        self.files += other.files;
        self.bytes += other.bytes;
        self.from_disk += other.from_disk;
        self.gone += other.gone;
        self.failed.extend(other.failed);
    }
}

pub(super) struct Run<'a> {
    root: &'a OwnedFd,
    jobs: usize,
    chunk: usize,
    bucket: Option<Mutex<Bucket>>,
    /// Something was given back.
    settled: Condvar,
    started: Instant,
    interrupted: &'a AtomicBool,
    progress: &'a dyn Progress,
    /// Inodes with several names that were found under one.
    linked: Mutex<HashSet<(u64, u64)>>,
    tally: Mutex<Tally>,
}

/// Takes a lock whose holder cannot leave the value half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Run<'a> {
    pub(super) fn new(root: &'a OwnedFd, options: &'a Options, progress: &'a dyn Progress) -> Self {
        // At a low rate no single read takes seconds to be paid for.
        let chunk = options.rate.map_or(CHUNK, |rate| (rate.get() / 8).clamp(MIN_CHUNK, CHUNK));
        Self {
            root,
            jobs: options.jobs.get(),
            chunk: usize::try_from(chunk).unwrap_or(64 << 10),
            bucket: options.rate.map(|rate| Mutex::new(Bucket::new(rate))),
            settled: Condvar::new(),
            started: Instant::now(),
            interrupted: &options.interrupted,
            progress,
            linked: Mutex::default(),
            tally: Mutex::default(),
        }
    }

    pub(super) fn root(&self) -> &OwnedFd {
        self.root
    }

    /// Threads that read at a time.
    pub(super) fn jobs(&self) -> usize {
        self.jobs
    }

    /// Bytes that one read is for.
    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Waits until `bytes` more may be read, and pays for them; 0 waits for what was read without having been paid
    /// for. None when the run is to end.
    pub(super) fn may_begin(&self, bytes: u64) -> Option<()> {
        let Some(bucket) = &self.bucket else { return self.check().ok() };
        let mut bucket = lock(bucket);
        loop {
            self.check().ok()?;
            let Err(wait) = bucket.begin(self.started.elapsed(), bytes) else { return Some(()) };
            let woken = self.settled.wait_timeout(bucket, wait.min(ATTENTION));
            bucket = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Corrects what was paid, by what the disk was really asked for.
    pub(super) fn settle(&self, paid: u64, taken: u64) {
        if let Some(bucket) = &self.bucket {
            lock(bucket).settle(paid, taken);
            self.settled.notify_all();
        }
    }

    /// Whether an inode with several names is found for the first time.
    pub(super) fn is_new(&self, stat: &Stat) -> bool {
        lock(&self.linked).insert((stat.st_dev, stat.st_ino))
    }

    /// Tells what is going to be read.
    pub(super) fn planned(&self, files: usize, bytes: u64) {
        self.progress.event(Event::ToRead { files, bytes });
    }

    pub(super) fn has_read(&self, bytes: u64) {
        self.progress.event(Event::Read { bytes });
    }

    /// Adds to what was read, and warns of what could not be.
    pub(super) fn count(&self, tally: Tally) {
        for failed in &tally.failed {
            self.progress.event(Event::Warning(format!("cannot read {}: {}", failed.path, failed.reason)));
        }
        lock(&self.tally).add(tally);
    }

    /// What was read since the last call.
    pub(super) fn take(&self) -> Tally {
        std::mem::take(&mut *lock(&self.tally))
    }
}
