//! Reads a root once, so that no build waits for blocks of a volume that was made from a snapshot: such a volume
//! fetches each block when it is first read.
//!
//! ```text
//! databases     the databases, and the directories that a daemon lists when it starts
//! first-build   what a step that is not CACHED may have mounted, by [order]: all directories and inodes,
//!               then the files; those of frontends in front, then those that most steps stand on
//! rest          all else: other snapshots, and at last the blobs, which only pushing and exporting needs
//! ```
//!
//! A daemon may run meanwhile: nothing is written or locked, what goes away is passed over, and memory that
//! was read into is let go of again, except for databases, directories and inodes.

mod account;
mod facts;
mod files;
mod order;
mod parallel;
mod rate;
mod read;
pub mod report;
mod run;
mod walk;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rustix::fs::{FileType, RawDir};
use serde::Serialize;

pub use report::{Failed, Report, StageReport};

use crate::progress::{Event, Phase, Progress, Running};
use crate::root;

use account::Account;
use order::Order;
use read::Memory;
use run::{Run, Tally};
use walk::{Depth, Directory};

/// The solver's database.
const SOLVER: &str = "cache.db";
/// What the names of containerd workers' directories begin with.
const IN_CONTAINERD: &[u8] = b"containerd-";

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The databases, and the directories that a daemon lists when it starts.
    Databases,
    /// The snapshots that a step which is not CACHED may have mounted.
    FirstBuild,
    /// Everything else.
    Rest,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Databases, Self::FirstBuild, Self::Rest];

    fn phase(self) -> Phase {
        match self {
            Self::Databases => Phase::Databases,
            Self::FirstBuild => Phase::FirstBuild,
            Self::Rest => Phase::Rest,
        }
    }
}

/// What to read, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The root.
    pub root: PathBuf,
    /// Which stages; they are done in their own order.
    pub stages: BTreeSet<Stage>,
    /// Most bytes per second that the disk is asked for. None: as many as it gives.
    pub rate: Option<NonZero<u64>>,
    /// Reads under way at a time.
    pub jobs: NonZero<usize>,
    /// Leave the data of all files in memory.
    pub keep: bool,
    /// Ends the run when it becomes true.
    pub interrupted: Arc<AtomicBool>,
}

/// Why nothing, or not everything, was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The root cannot be opened or listed.
    #[error("cannot open {}", path.display())]
    Open {
        /// The root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory has neither a solver's database nor a worker.
    #[error("{} is no BuildKit state directory: it has neither {SOLVER} nor a worker's directory", path.display())]
    NotAStateDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// What is there is known, and of no use to read.
    #[error(transparent)]
    NotRead(root::Error),
    /// Somebody asked for the end.
    #[error("interrupted")]
    Interrupted,
}

/// Reads the root.
///
/// What cannot be read is in the report, and stops nothing.
///
/// # Errors
/// There is no such root, or the run was interrupted.
pub fn hydrate(options: &Options, progress: &dyn Progress) -> Result<Report, Error> {
    let started = Instant::now();
    let failed =
        |source: rustix::io::Errno| Error::Open { path: options.root.clone(), source: source.into() };
    let root = files::open_root(&options.root).map_err(failed)?;
    let names = names(&root).map_err(failed)?;
    let workers = workers(&options.root, &names).map_err(Error::NotRead)?;
    if workers.is_empty() && files::open_file(&root, Path::new(SOLVER)).is_err() {
        return Err(Error::NotAStateDirectory { path: options.root.clone() });
    }
    for worker in workers.iter().filter(|worker| worker.as_os_str().as_bytes().starts_with(IN_CONTAINERD)) {
        progress.event(Event::Warning(format!(
            "the layers of {} are in the directories of a containerd, and are not read; of this root the databases are",
            worker.display()
        )));
    }
    let run = Run::new(&root, options, progress);
    let mut reading = Reading {
        run: &run,
        path: &options.root,
        workers: &workers,
        keep: options.keep,
        order: None,
        done: BTreeSet::new(),
    };
    let mut report = Report::nothing(options);
    for &stage in &options.stages {
        let running = Running::start(progress, stage.phase());
        match stage {
            Stage::Databases => reading.databases(),
            Stage::FirstBuild => reading.first_build(),
            Stage::Rest => reading.rest(),
        }
        run.check()?;
        let seconds = running.finish().as_secs_f64();
        let tally = run.take();
        report.gone += tally.gone;
        report.failed.extend(tally.failed);
        report.stages.push(StageReport {
            stage,
            directories: tally.directories,
            files: tally.files,
            bytes: tally.bytes,
            from_disk: tally.from_disk,
            seconds,
        });
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What stands in a directory: each name, and whether it may be a directory's.
fn names(root: &OwnedFd) -> Result<Vec<(OsString, bool)>, rustix::io::Errno> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut entries = RawDir::new(root, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        // A file system may leave the type open; what is no directory cannot be listed later on.
        let may_be_directory = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        names.push((name, may_be_directory));
    }
    Ok(names)
}

/// The directories of workers, those in containerd among them: their databases are read, their layers are elsewhere.
fn workers(path: &Path, names: &[(OsString, bool)]) -> Result<Vec<PathBuf>, root::Error> {
    let found =
        root::Found::among(names.iter().map(|(name, is_directory)| (name.as_os_str(), *is_directory)));
    if found.workers.is_empty()
        && let Some(error) = found.refusal(path)
        && !is_in_containerd(&error)
    {
        return Err(error);
    }
    let is_worker = |name: &OsStr| name.as_bytes().starts_with(IN_CONTAINERD);
    let in_containerd = names.iter().filter(|(name, is_directory)| *is_directory && is_worker(name));
    let mut workers = found.workers;
    workers.extend(in_containerd.map(|(name, _)| PathBuf::from(name)));
    workers.sort();
    Ok(workers)
}

/// Whether it is about a worker in a containerd, whatever the snapshotter: its databases are like all others.
fn is_in_containerd(refusal: &root::Error) -> bool {
    match refusal {
        root::Error::ContainerdWorker { .. } => true,
        root::Error::OtherSnapshotter { worker, .. } => {
            worker.as_os_str().as_bytes().starts_with(IN_CONTAINERD)
        }
        _ => false,
    }
}

fn snapshots_of(worker: &Path) -> PathBuf {
    worker.join("snapshots/snapshots")
}

fn blobs_of(worker: &Path) -> PathBuf {
    worker.join("content/blobs/sha256")
}

struct Reading<'a> {
    run: &'a Run<'a>,
    path: &'a Path,
    workers: &'a [PathBuf],
    keep: bool,
    /// Per worker, once it is known.
    order: Option<Vec<Order>>,
    /// What a later stage need not look at.
    done: BTreeSet<PathBuf>,
}

impl Reading<'_> {
    fn databases(&mut self) {
        // A daemon that starts looks for what nobody knows any more: a name and an inode for each.
        let listed: Vec<_> =
            self.workers.iter().flat_map(|worker| [snapshots_of(worker), blobs_of(worker)]).collect();
        let with_databases =
            self.workers.iter().flat_map(|worker| [worker.clone(), worker.join("snapshots")]);
        let starts = with_databases.chain([PathBuf::new()]).chain(listed.iter().cloned());
        let mut databases = walk::walk(self.run, starts.collect(), Depth::Shallow, &self.done);
        databases.retain(|directory| !listed.contains(&directory.path));
        for directory in &databases {
            self.done.extend(directory.files.iter().map(|file| directory.path.join(&file.name)));
        }
        self.read(&databases, Memory::Keep);
    }

    /// Per worker, what the databases say of its snapshots.
    fn order(&mut self) -> Vec<Order> {
        if let Some(order) = &self.order {
            return order.clone();
        }
        let mut account = Account::open();
        let facts = facts::read(self.path);
        let order = |worker: &PathBuf| facts.get(worker).map(order::Facts::order).unwrap_or_default();
        let order: Vec<_> = self.workers.iter().map(order).collect();
        // Where the stage of the databases was left out, they have been read here.
        let from_disk = account.since_last().unwrap_or_default();
        self.run.settle(0, from_disk);
        self.run.count(Tally { from_disk, ..Tally::default() });
        self.order.insert(order).clone()
    }

    fn first_build(&mut self) {
        let orders = self.order();
        let first = self.paths(orders.iter().map(|order| &order.first));
        let found = walk::walk(self.run, first.clone(), Depth::All, &self.done);
        self.done.extend(first);
        self.read(&found, self.memory());
    }

    fn rest(&mut self) {
        let orders = self.order();
        let first = self.paths(orders.iter().map(|order| &order.first));
        let mut starts = self.paths(orders.iter().map(|order| &order.rest));
        // What no database has, caches of steps, what a daemon keeps besides: all below the root that has no turn of
        // its own.
        starts.push(PathBuf::new());
        starts.extend(self.workers.iter().map(|worker| worker.join("content")));
        self.done.extend(starts.iter().cloned().chain(first));
        let all = walk::walk(self.run, starts, Depth::All, &self.done);
        self.read(&all, self.memory());
    }

    fn memory(&self) -> Memory {
        if self.keep { Memory::Keep } else { Memory::Release }
    }

    /// The directories of snapshots, given by their numbers for each worker.
    fn paths<'o>(&self, ids: impl Iterator<Item = &'o Vec<u64>>) -> Vec<PathBuf> {
        let of_worker = |(worker, ids): (&PathBuf, &'o Vec<u64>)| {
            let snapshots = snapshots_of(worker);
            ids.iter().map(|id| snapshots.join(id.to_string())).collect::<Vec<_>>()
        };
        self.workers.iter().zip(ids).flat_map(of_worker).collect()
    }

    fn read(&self, directories: &[Directory], memory: Memory) {
        let files = || directories.iter().flat_map(|directory| &directory.files);
        let bytes = files().map(|file| file.stored).sum();
        self.run.planned(files().count(), bytes);
        read::read(self.run, directories, memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_of_workers_in_a_containerd_are_read() {
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (OsString::from(name), true)).collect();
            workers(Path::new("/root"), &names).ok()
        };
        for (names, expected) in [
            (
                &["runc-overlayfs", "containerd-native"][..],
                Some(&["containerd-native", "runc-overlayfs"][..]),
            ),
            (&["containerd-native"], Some(&["containerd-native"])),
            (&["containerd-devmapper"], Some(&["containerd-devmapper"])),
            (&["runc-stargz"], None),
        ] {
            let expected: Option<Vec<PathBuf>> =
                expected.map(|names| names.iter().map(PathBuf::from).collect());
            assert_eq!(of(names), expected, "{names:?}");
        }
    }
}
