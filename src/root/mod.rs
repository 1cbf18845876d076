//! Reads a root: a `BuildKit` state directory, whoever wrote it.
//!
//! ```text
//! Root::open    locks what a daemon locks, finds the workers     files
//! Root::read    State ── Solver        cache.db                  solver
//!                     └─ Worker ─┬─ Records      metadata_v2.db         records
//!                                ├─ Containerd   containerdmeta.db      containerd
//!                                ├─ Snapshotter  snapshots/metadata.db  snapshotter
//!                                └─ id           workerid
//!               and a Fault for whatever could not be read
//! Root::history what history.db tells of builds                       history
//! Root::usage   the records of a worker as `buildctl du` shows them  usage
//! ```
//!
//! A containerd worker has records alone; what it would have besides says the containerd that keeps it, by its API
//! (`keeper`).
//!
//! Plain data, as it stands there: whether it makes sense is for others to judge (`verify`). Nothing is shared
//! with what writes roots, and nothing of a root is trusted: what does not decode is a [`Fault`] and absent.

mod containerd;
pub(crate) mod database;
pub(crate) mod decode;
pub(crate) mod fault;
pub(crate) mod files;
mod found;
mod history;
#[cfg_attr(not(feature = "containerd"), path = "no_keeper.rs")]
pub(crate) mod keeper;
// What a build without the feature has instead of `keeper`, for its tests: they run with all features.
#[cfg(all(test, feature = "containerd"))]
#[allow(dead_code)]
mod no_keeper;
mod records;
mod schema;
mod snapshotter;
mod solver;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

pub use containerd::{Blob, Containerd, Lease, Snapshot};
pub use fault::{Fault, FaultKind, Place};
pub use history::History;
pub use records::{Record, Records};
pub use snapshotter::{Kind, ParentEntry, Snapshotter, Stored};
pub use solver::{KeyResult, Link, Operation, Solver};
pub use usage::Usage;

pub(crate) use found::Found;
pub(crate) use snapshotter::read as read_snapshotter;

use fault::Faults;
use files::Tree;
use found::{IN_CONTAINERD, OCI, SNAPSHOTTERS};
use keeper::Keeper;

/// The file that a running daemon holds locked.
pub(crate) const LOCK: &str = "buildkitd.lock";

/// The builds of a daemon; not needed, and not written by a bake.
pub(crate) const HISTORY: &str = "history.db";

/// Why a root was not read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The root cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The root.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No file of a state directory is there.
    #[error("{} is no BuildKit state directory: it has neither cache.db nor a worker's directory runc-…", path.display())]
    NotAStateDirectory {
        /// The root.
        path: PathBuf,
    },
    /// A worker that keeps its data in containerd, and nobody said in which.
    #[error(
        "{} is the root of a containerd worker ({}), whose layers are in a containerd that has to run: say in which one, \
         with --for containerd or --for containerd:ADDRESS",
        path.display(), worker.display()
    )]
    ContainerdWorker {
        /// The root.
        path: PathBuf,
        /// The worker's directory.
        worker: PathBuf,
    },
    /// A root that keeps its layers itself, of which somebody said that a containerd does.
    #[error(
        "{} is no root of a containerd worker: it has no directory containerd-…; name the one that is, or leave \
         --for containerd away",
        path.display()
    )]
    NotInContainerd {
        /// The root.
        path: PathBuf,
    },
    /// A containerd worker with a snapshotter that its containerd does not have.
    #[error(
        "the containerd has no snapshotter {snapshotter:?}, in which {} has its layers: name the containerd that has it, with \
         --for containerd:ADDRESS; `ctr plugins ls` lists the snapshotters of one",
        worker.display()
    )]
    NoSnapshotter {
        /// The worker's directory.
        worker: PathBuf,
        /// The snapshotter's name.
        snapshotter: String,
    },
    /// A program that lacks a part.
    #[error(
        "this warmkit was built without the feature `containerd`: install a package of `scripts/package`, or build with `--features containerd`"
    )]
    NoContainerd,
    /// The containerd that keeps its layers cannot be asked.
    #[cfg(feature = "containerd")]
    #[error(transparent)]
    Containerd(#[from] crate::containerd::Error),
    /// A worker whose snapshotter keeps layers in a form of its own.
    #[error(
        "{} is the root of {} worker with the snapshotter {snapshotter} ({}), which keeps layers in a form of its own; \
         roots of overlayfs, fuse-overlayfs and native are read and written: give the daemon one of these as {}, and it \
         makes a worker beside this one",
        path.display(), if in_containerd(worker) { "a containerd" } else { "an OCI" }, worker.display(),
        snapshotter_option(worker)
    )]
    OtherSnapshotter {
        /// The root.
        path: PathBuf,
        /// The worker's directory.
        worker: PathBuf,
        /// The snapshotter's name.
        snapshotter: String,
    },
    /// What dockerd keeps of its own builder, whose layers are in dockerd's image store.
    #[error(
        "{} is the state of dockerd's own builder, whose layers are in dockerd's image store; it is neither read nor \
         written: on this host a builder of the driver docker-container is the way, with --for buildx:NAME",
        path.display()
    )]
    DockerEngine {
        /// The directory.
        path: PathBuf,
    },
    /// A daemon runs on the root: what it writes meanwhile would look like damage.
    #[error(
        "{} is in use: another process holds {file} locked; stop the daemon, or take a copy of the root",
        path.display()
    )]
    Busy {
        /// The root.
        path: PathBuf,
        /// The locked file, relative to the root.
        file: String,
    },
    /// A schema that nobody here has seen; reading it by older rules would be guessing.
    #[error(
        "{database} has schema version {found}, known {}: the root is not read; a newer warmkit may know it",
        shown(known)
    )]
    UnknownSchema {
        /// The database, relative to the root.
        database: String,
        /// The version found.
        found: i64,
        /// The versions known.
        known: RangeInclusive<i64>,
    },
    /// A database with more in it than any release keeps there that was seen.
    #[error(
        "{database} has a bucket {bucket:?}, known are {known}: the root is not read; a newer warmkit may know it"
    )]
    UnknownBucket {
        /// The database, relative to the root.
        database: String,
        /// The bucket.
        bucket: String,
        /// The buckets known.
        known: String,
    },
    /// A database is damaged.
    #[error("{} is damaged, `warmkit verify` has the details: {fault}", path.display())]
    Damaged {
        /// The root.
        path: PathBuf,
        /// The first of the faults.
        fault: Fault,
    },
}

fn shown(known: &RangeInclusive<i64>) -> String {
    if known.start() == known.end() {
        format!("is {}", known.start())
    } else {
        format!("are {} to {}", known.start(), known.end())
    }
}

/// The containerd that keeps the layers of a containerd worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptIn {
    /// Path of its socket, with or without `unix://`.
    pub address: String,
    /// The namespace that they are in.
    pub namespace: String,
}

/// A worker's directory and what was read in it; `None` where a database cannot be read, or is not.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Worker {
    /// Relative to the root: `runc-<snapshotter>`, of a containerd worker `containerd-<snapshotter>`.
    pub path: PathBuf,
    /// Whether blobs, snapshots and leases are in a containerd, which was asked: names of snapshots and numbers of
    /// directories are made up then, and of its namespaces one is told.
    pub in_containerd: bool,
    /// The snapshotter's name.
    pub snapshotter: String,
    /// The worker's id.
    pub id: Option<String>,
    /// The cache records.
    pub records: Option<Records>,
    /// Blobs, snapshots and leases.
    pub containerd: Option<Containerd>,
    /// The snapshotter's own database.
    pub store: Option<Snapshotter>,
}

impl Worker {
    /// Whether its layers were looked for: in a containerd they are only where that has the snapshotter.
    pub fn is_read(&self) -> bool {
        !self.in_containerd || self.store.is_some()
    }
}

/// What a root holds.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct State {
    /// The workers; a daemon has one.
    pub workers: Vec<Worker>,
    /// Ids of those that were not read: of containerd workers, or beside these of OCI workers, and of those with a
    /// snapshotter that is not read.
    pub other_workers: Vec<String>,
    /// The solver's keys; `None` where they cannot be read.
    pub solver: Option<Solver>,
    /// What could not be read.
    pub faults: Vec<Fault>,
}

/// A root. That of [`Root::open`] no daemon uses, and none starts on it while this lives.
#[derive(Debug)]
pub struct Root {
    pub(crate) tree: Tree,
    /// The directories of workers, relative to the root: of OCI workers, and with a keeper those of containerd workers.
    pub(crate) workers: Vec<PathBuf>,
    /// Who has the layers of these.
    pub(crate) keeper: Option<Keeper>,
    /// Those of all other workers: a daemon may have one of each kind, and keeps what it had with another snapshotter.
    others: Vec<PathBuf>,
    _locks: Vec<OwnedFd>,
}

impl Root {
    /// Opens the state directory at `path`. Nothing is written; shared locks are held.
    ///
    /// # Errors
    /// It cannot be opened or read, is no state directory of an OCI worker, or is in use.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::with(path, Tree::open(path))
    }

    /// As [`Root::open`], of a containerd worker whose layers are in that containerd.
    ///
    /// # Errors
    /// As there, and the containerd does not answer.
    pub fn open_in(path: &Path, containerd: &KeptIn) -> Result<Self, Error> {
        let root = Self::readable(path, Tree::open(path))?;
        let found = found(&root.tree)?;
        if let Some(error @ Error::DockerEngine { .. }) = found.refusal(path) {
            return Err(error);
        }
        if found.in_containerd.is_empty() {
            let none = || Error::NotInContainerd { path: path.to_owned() };
            return Err(found.other(path, IN_CONTAINERD).unwrap_or_else(none));
        }
        let is_there = |path: &PathBuf| in_containerd(path);
        let (unread, others): (Vec<_>, Vec<_>) = found.others.into_iter().partition(is_there);
        let workers = [found.in_containerd, unread].concat();
        let locks = locks(&root.tree, &workers)?;
        let keeper = Some(Keeper::connect(containerd)?);
        Ok(Self { workers, others: [found.workers, others].concat(), keeper, _locks: locks, ..root })
    }

    /// [`Root::open_in`] where a containerd is given, else [`Root::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open_with(path: &Path, containerd: Option<&KeptIn>) -> Result<Self, Error> {
        containerd.map_or_else(|| Self::open(path), |containerd| Self::open_in(path, containerd))
    }

    /// As [`Root::open`], of a directory that was opened, or could not be; `path` is for messages.
    pub(crate) fn with(path: &Path, tree: io::Result<Tree>) -> Result<Self, Error> {
        let root = Self::unlocked(path, tree)?;
        let locks = locks(&root.tree, &root.workers)?;
        Ok(Self { _locks: locks, ..root })
    }

    /// Opens the state directory at `path`, which a daemon may be using: what it commits meanwhile may tear a
    /// database, which is then absent, and a [`Fault`].
    ///
    /// # Errors
    /// It cannot be opened or read, or is no state directory of an OCI worker.
    pub fn open_unlocked(path: &Path) -> Result<Self, Error> {
        Self::unlocked(path, Tree::open(path))
    }

    fn unlocked(path: &Path, tree: io::Result<Tree>) -> Result<Self, Error> {
        let root = Self::readable(path, tree)?;
        let found = worker_directories(&root.tree)?;
        let others = [found.in_containerd, found.others].concat();
        Ok(Self { workers: found.workers, others, ..root })
    }

    /// A directory that may be read, whatever it has.
    fn readable(path: &Path, tree: io::Result<Tree>) -> Result<Self, Error> {
        let open = |source| Error::Open { path: path.to_owned(), source };
        let user = rustix::process::geteuid();
        let denied =
            || open(io::Error::new(io::ErrorKind::PermissionDenied, "no permission; run warmkit as root"));
        let tree = tree.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied if !user.is_root() => denied(),
            _ => open(error),
        })?;
        let owner = tree.stat(Path::new("")).map_err(|fault| open(io::Error::other(fault.detail)))?.st_uid;
        // Who may not read it would find it damaged.
        if !user.is_root() && user.as_raw() != owner {
            return Err(denied());
        }
        Ok(Self { tree, workers: Vec::new(), keeper: None, others: Vec::new(), _locks: Vec::new() })
    }

    /// Reads all databases.
    ///
    /// # Errors
    /// One has an unknown schema. Whatever is wrong in them is a fault.
    pub fn read(&self) -> Result<State, Error> {
        let mut faults = Faults::default();
        let workers = if let Some(keeper) = &self.keeper {
            self.kept(keeper, &mut faults)?
        } else {
            let read = |name: &PathBuf| worker(&self.tree, name, &mut faults);
            self.workers.iter().map(read).collect::<Result<_, Error>>()?
        };
        if self.workers.is_empty() {
            let place = Place::file(Path::new("runc-overlayfs"));
            faults.add(FaultKind::FileMissing, place, "no worker's directory");
        }
        let path = Path::new("cache.db");
        let solver = match database::open(&self.tree, path, &mut faults) {
            Some(db) => {
                schema::solver(&db, path)?;
                Some(solver::read(&db, path, &mut faults))
            }
            None => None,
        };
        // What is wrong with those is not asked.
        let id = |path: &PathBuf| worker_id(&self.tree, path, &mut Faults::default());
        let other_workers = self.others.iter().filter_map(id).collect();
        Ok(State { workers, other_workers, solver, faults: faults.0 })
    }

    /// The workers whose layers `keeper` has. Of one with a snapshotter that it does not have, or that is not read, there
    /// are records at most, and a fault that names it; where that is so of all of them, it is an error.
    fn kept(&self, keeper: &Keeper, faults: &mut Faults) -> Result<Vec<Worker>, Error> {
        let namespace = keeper.held()?;
        let mut workers = Vec::new();
        for path in &self.workers {
            let snapshotter = path.to_string_lossy().trim_start_matches(IN_CONTAINERD).to_owned();
            let is_known = SNAPSHOTTERS.contains(&&*snapshotter);
            let kept = if is_known { keeper.read(&snapshotter, &namespace)? } else { None };
            let (containerd, store) = kept.unzip();
            let (records, id) = if store.is_some() {
                (records(&self.tree, path, faults)?, worker_id(&self.tree, path, faults))
            } else {
                let why = if is_known { "containerd does not have" } else { "is not read" };
                let detail = format!(
                    "of the snapshotter {snapshotter}, which {why}: its layers are not looked at; if no daemon is to use it \
                     again, remove the directory"
                );
                faults.add(FaultKind::WorkerUnread, Place::file(path), detail);
                // What is wrong with it is not asked.
                let unasked = &mut Faults::default();
                (records(&self.tree, path, unasked).ok().flatten(), worker_id(&self.tree, path, unasked))
            };
            let path = path.clone();
            workers.push(Worker { path, in_containerd: true, snapshotter, id, records, containerd, store });
        }
        match workers.first() {
            Some(Worker { path, snapshotter, .. }) if !workers.iter().any(Worker::is_read) => {
                let (worker, snapshotter) = (self.tree.path.join(path), snapshotter.clone());
                Err(Error::NoSnapshotter { worker, snapshotter })
            }
            _ => Ok(workers),
        }
    }

    /// Reads what a daemon keeps of builds; nothing where there is no `history.db`. What is wrong in it is a fault.
    pub fn history(&self) -> (History, Vec<Fault>) {
        let mut faults = Faults::default();
        let path = Path::new(HISTORY);
        if self.tree.stat(path).is_err() {
            return (History::default(), faults.0);
        }
        let history = database::open(&self.tree, path, &mut faults).map(|db| {
            history::read(&db, &self.tree.read(path, files::MAX_DATABASE).unwrap_or_default(), &mut faults)
        });
        (history.unwrap_or_default(), faults.0)
    }

    /// Reads all databases of a root that is to be relied on: each can be read, but for single entries.
    ///
    /// # Errors
    /// As [`Root::read`], and [`Error::Damaged`] where a database or the worker's id cannot be read.
    pub fn read_whole(&self) -> Result<State, Error> {
        let state = self.read()?;
        let is_whole = |worker: &Worker| {
            !worker.is_read()
                || worker.id.is_some()
                    && worker.records.is_some()
                    && worker.containerd.is_some()
                    && worker.store.is_some()
        };
        let whole = state.solver.is_some() && !state.workers.is_empty() && state.workers.iter().all(is_whole);
        match state.faults.first() {
            Some(fault) if !whole => {
                Err(Error::Damaged { path: self.tree.path.clone(), fault: fault.clone() })
            }
            _ => Ok(state),
        }
    }
}

impl Root {
    /// The records that a daemon knows after it started here, as `buildctl du` shows them, by id; none where
    /// the worker's records cannot be read. Of what is written to, the files are counted, as a daemon does.
    pub fn usage(&self, worker: &Worker) -> Vec<Usage> {
        usage::usage(worker, |id| {
            let upper = files::upper(&worker.path, &worker.snapshotter, id);
            let tree = self.tree.subtree(&upper).ok()?;
            let mut blocks = BTreeMap::new();
            let faults = files::walk(&tree, |_, stat| {
                blocks.insert((stat.st_dev, stat.st_ino), stat.st_blocks);
            });
            // Each inode once.
            let blocks = blocks.into_values().filter_map(|blocks| u64::try_from(blocks).ok());
            faults.is_empty().then(|| 512 * blocks.sum::<u64>())
        })
    }
}

/// Looks for OCI workers' directories whose snapshotters are known. Those of others are left alone beside them: a
/// daemon has one worker, and keeps what it had with another snapshotter.
fn worker_directories(tree: &Tree) -> Result<Found, Error> {
    let found = found(tree)?;
    match found.refusal(&tree.path) {
        Some(error) if found.workers.is_empty() => Err(error),
        _ if found.workers.is_empty() && !found.has_solver => {
            Err(Error::NotAStateDirectory { path: tree.path.clone() })
        }
        _ => Ok(found),
    }
}

/// What the names in a root tell of it.
fn found(tree: &Tree) -> Result<Found, Error> {
    let entries = tree
        .list(Path::new(""))
        .map_err(|fault| Error::Open { path: tree.path.clone(), source: io::Error::other(fault.detail) })?;
    Ok(Found::among(entries.iter().map(|(name, kind)| (name.0.as_os_str(), *kind == FileType::Directory))))
}

fn in_containerd(worker: &Path) -> bool {
    worker.to_string_lossy().starts_with(IN_CONTAINERD)
}

/// What tells a daemon the snapshotter of the worker with this directory.
pub(crate) fn snapshotter_option(worker: &Path) -> &'static str {
    if in_containerd(worker) { "--containerd-worker-snapshotter" } else { "--oci-worker-snapshotter" }
}

/// The snapshotter of the worker with this directory, as [`Found::among`] has found it.
pub(crate) fn snapshotter_of(worker: &Path) -> &str {
    worker.to_str().and_then(|name| name.strip_prefix(OCI)).unwrap_or_default()
}

/// Locks everything that a daemon would lock.
fn locks(tree: &Tree, workers: &[PathBuf]) -> Result<Vec<OwnedFd>, Error> {
    let mut paths: Vec<PathBuf> = [LOCK, "cache.db", HISTORY].map(PathBuf::from).to_vec();
    for worker in workers {
        let databases = ["metadata_v2.db", "containerdmeta.db", "snapshots/metadata.db"];
        paths.extend(databases.map(|database| worker.join(database)));
    }
    let mut locks = Vec::new();
    for path in paths {
        match tree.lock(&path) {
            Ok(lock) => locks.extend(lock),
            Err(Errno::WOULDBLOCK) => {
                let file = path.display().to_string();
                return Err(Error::Busy { path: tree.path.clone(), file });
            }
            // What cannot be opened is a fault later on.
            Err(_) => {}
        }
    }
    Ok(locks)
}

fn worker(tree: &Tree, path: &Path, faults: &mut Faults) -> Result<Worker, Error> {
    let snapshotter = snapshotter_of(path).to_owned();
    let records = records(tree, path, faults)?;
    let containerd_path = path.join("containerdmeta.db");
    let containerd = database::open(tree, &containerd_path, faults);
    let has_records = records.as_ref().is_some_and(|records| !records.all.is_empty());
    if let Some(db) = &containerd {
        schema::containerd_bucket(db, &containerd_path)?;
    }
    let containerd =
        containerd.map(|db| containerd::read(&db, &containerd_path, &snapshotter, has_records, faults));
    if let Some(found) = containerd.as_ref().and_then(|containerd| containerd.version) {
        schema::containerd_version(found, &containerd_path)?;
    }

    // A daemon makes it with its first snapshot.
    let store_path = path.join("snapshots/metadata.db");
    let has_snapshots = containerd.as_ref().is_none_or(|containerd| !containerd.snapshots.is_empty());
    let store = if has_snapshots || tree.stat(&store_path).is_ok() {
        let db = database::open(tree, &store_path, faults);
        if let Some(db) = &db {
            schema::containerd_bucket(db, &store_path)?;
        }
        db.map(|db| snapshotter::read(&db, &store_path, faults))
    } else {
        Some(Snapshotter::default())
    };
    let id = worker_id(tree, path, faults);
    Ok(Worker { path: path.to_owned(), in_containerd: false, snapshotter, id, records, containerd, store })
}

/// The records of the worker in a directory.
fn records(tree: &Tree, worker: &Path, faults: &mut Faults) -> Result<Option<Records>, Error> {
    schema::records_file(tree, worker)?;
    let path = worker.join("metadata_v2.db");
    let Some(db) = database::open(tree, &path, faults) else { return Ok(None) };
    schema::records(&db, &path)?;
    Ok(Some(records::read(&db, &path, faults)))
}

fn worker_id(tree: &Tree, worker: &Path, faults: &mut Faults) -> Option<String> {
    let path = worker.join("workerid");
    let bytes = match tree.read(&path, 4096) {
        Ok(bytes) => bytes,
        Err(fault) => {
            faults.add(fault.kind, Place::file(&path), fault.detail);
            return None;
        }
    };
    match std::str::from_utf8(&bytes) {
        Ok(id) if decode::is_identity(id) => Some(id.to_owned()),
        _ => {
            let detail = format!("{}: not 25 characters of [a-z0-9]", fault::shown(&bytes));
            faults.add(FaultKind::WorkerId, Place::file(&path), detail);
            None
        }
    }
}
