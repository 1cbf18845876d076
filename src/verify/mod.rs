//! Finding the faults of a state directory, whoever wrote it.
//!
//! Everything is read with this module's own eyes, never through the writers in `store`, or a fault of
//! theirs would prove itself right; only which ids warmkit gives is asked there. What is checked, in this order:
//!
//! ```text
//! files        type, mode and owner of every state file; no daemon holds a lock
//! database     each bolt file page by page (crate::bolt)
//! records      metadata_v2.db: every value decodes; values and indexes agree
//! containerd   containerdmeta.db: likewise
//! snapshotter  snapshots/metadata.db: likewise; ids, sequence, the index of parents
//! solver       cache.db: likewise; links and the ways back, results and the index by results, circles
//! relations    the four against each other and the worker id: result, record, lease, snapshot, blob,
//!              chain ID, blob chain ID, parent
//! disk         snapshot directories and blob files against all that; every blob is hashed
//! layers       with `read_data`: each blob inflated, read as tar and compared with its snapshot
//! ```
//!
//! A root that a daemon wrote has no finding, whether it was stopped or killed, pruned or not. That is
//! tested with real daemons of ten releases, and it decides what is a [`FindingKind`] and what a note:
//! see `docs/verify.md`.

mod containerd;
mod database;
mod decode;
mod disk;
mod files;
mod layers;
mod live;
mod parallel;
mod records;
mod relations;
mod report;
mod schema;
mod snapshotter;
mod solver;
mod tree;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::fs::FileType;
use rustix::io::Errno;

pub use live::{DEFAULT_IMAGE, LiveError, LiveOptions, LiveReport, Step, StepStatus, live};
pub use report::{Counts, Finding, FindingKind, Report, Severity, Subject};

use crate::progress::{Event, Phase, Progress};
use crate::store::ids::{RecordId, WorkerId};
use containerd::Containerd;
use disk::Look;
use files::{Tree, directory, file};
use records::Records;
use report::Findings;
use snapshotter::Snapshotter;

/// The file that a running daemon holds locked.
const LOCK: &str = "buildkitd.lock";

/// The builds of a daemon; not needed, and not written by a bake.
const HISTORY: &str = "history.db";

/// What an offline verification does.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Unpack each layer again, in memory, and compare it with its snapshot entry by entry.
    pub read_data: bool,
    /// Threads; `None`: as many as the machine runs at once.
    pub jobs: Option<NonZeroUsize>,
}

/// Why a root was not judged at all.
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
    /// A worker that keeps its data in containerd.
    #[error(
        "{} is the root of a containerd worker ({worker}): its layers are in containerd, verify judges \
         roots of OCI workers only",
        path.display()
    )]
    ContainerdWorker {
        /// The root.
        path: PathBuf,
        /// The worker's directory.
        worker: String,
    },
    /// A daemon runs on the root: what it writes meanwhile would look like damage.
    #[error(
        "{} is in use: another process holds {file} locked; stop the daemon, or verify a copy of the root",
        path.display()
    )]
    Busy {
        /// The root.
        path: PathBuf,
        /// The locked file, relative to the root.
        file: String,
    },
    /// A schema that nobody here has seen; judging it by older rules would be guessing.
    #[error(
        "{database} has schema version {found}, known {}: the root is not judged; a newer warmkit may know it",
        shown(known)
    )]
    UnknownSchema {
        /// The database, relative to the root.
        database: String,
        /// The version found.
        found: i64,
        /// The versions known.
        known: std::ops::RangeInclusive<i64>,
    },
    /// A database with more in it than any release keeps there that was seen.
    #[error(
        "{database} has a bucket {bucket:?}, known are {known}: the root is not judged; a newer warmkit may know it"
    )]
    UnknownBucket {
        /// The database, relative to the root.
        database: String,
        /// The bucket.
        bucket: String,
        /// The buckets known.
        known: String,
    },
}

fn shown(known: &std::ops::RangeInclusive<i64>) -> String {
    if known.start() == known.end() {
        format!("is {}", known.start())
    } else {
        format!("are {} to {}", known.start(), known.end())
    }
}

/// A worker's directory and what was read in it; `None` where a database cannot be judged.
struct Worker {
    /// Relative to the root: `runc-<snapshotter>`.
    path: PathBuf,
    snapshotter: String,
    id: Option<String>,
    records: Option<Records>,
    containerd: Option<Containerd>,
    store: Option<Snapshotter>,
}

/// Judges the state directory at `root` by its bytes. Nothing is written; shared locks are held
/// meanwhile, so that no daemon starts on it.
///
/// # Errors
/// The root was not judged: it cannot be opened, is no state directory, is in use, or has an unknown
/// schema. Whatever is wrong *in* it is a finding.
pub fn offline(root: &Path, options: &Options, progress: &dyn Progress) -> Result<Report, Error> {
    let open = |source| Error::Open { path: root.to_owned(), source };
    let user = rustix::process::geteuid();
    let denied =
        || open(io::Error::new(io::ErrorKind::PermissionDenied, "no permission; run verify as root"));
    let tree = Tree::open(root).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied if !user.is_root() => denied(),
        _ => open(error),
    })?;
    let owner = tree.stat(Path::new("")).map_err(|fault| open(io::Error::other(fault.detail)))?.st_uid;
    // Who may not read it would find it damaged.
    if !user.is_root() && user.as_raw() != owner {
        return Err(denied());
    }
    let jobs = options.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let mut findings = Findings::default();
    progress.event(Event::Started(Phase::Databases));
    let started = Instant::now();
    let names = worker_directories(&tree)?;
    let _locks = locks(&tree, &names)?;

    files::check(&tree, Path::new(""), directory(0o755), owner, &mut findings);
    let mut counts = Counts::default();
    let mut schema_versions = BTreeMap::new();
    let mut workers = Vec::new();
    for name in &names {
        workers.push(worker(&tree, name, owner, &mut schema_versions, &mut findings)?);
    }
    if workers.is_empty() {
        let detail = "no worker's directory";
        findings.add(FindingKind::StateFileMissing, files::subject(Path::new("runc-overlayfs")), detail);
    }
    let history = Path::new(HISTORY);
    if tree.stat(history).is_ok() && files::check(&tree, history, file(0o600), owner, &mut findings) {
        database::open(&tree, history, &mut findings);
    }
    solver(&tree, &workers, owner, &mut counts, &mut findings)?;
    for worker in &workers {
        relate(worker, &mut counts, &mut findings);
    }
    progress.event(Event::Finished(Phase::Databases, started.elapsed()));

    progress.event(Event::Started(Phase::Blobs));
    let started = Instant::now();
    let look = Look { root: &tree, owner, jobs, progress };
    for worker in &workers {
        on_disk(&look, worker, options, &mut counts, &mut findings);
    }
    progress.event(Event::Finished(Phase::Blobs, started.elapsed()));
    let (findings, notes) = findings.finish();
    Ok(Report { findings, notes, counts, schema_versions, read_data: options.read_data })
}

/// The names of OCI workers' directories.
fn worker_directories(tree: &Tree) -> Result<Vec<PathBuf>, Error> {
    let entries = tree
        .list(Path::new(""))
        .map_err(|fault| Error::Open { path: tree.path.clone(), source: io::Error::other(fault.detail) })?;
    let mut names = Vec::new();
    let mut in_containerd = None;
    let mut is_state = false;
    for (name, kind) in entries {
        let text = name.0.to_string_lossy();
        is_state |= text == "cache.db";
        if kind == FileType::Directory && text.starts_with("runc-") {
            names.push(PathBuf::from(&name.0));
        } else if kind == FileType::Directory && text.starts_with("containerd-") {
            in_containerd = Some(text.into_owned());
        }
    }
    match in_containerd {
        Some(worker) if names.is_empty() => Err(Error::ContainerdWorker { path: tree.path.clone(), worker }),
        _ if names.is_empty() && !is_state => Err(Error::NotAStateDirectory { path: tree.path.clone() }),
        _ => Ok(names),
    }
}

/// Locks everything that a daemon would lock.
fn locks(tree: &Tree, workers: &[PathBuf]) -> Result<Vec<std::os::fd::OwnedFd>, Error> {
    let mut paths: Vec<PathBuf> = [LOCK, "cache.db", "history.db"].map(PathBuf::from).to_vec();
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
            // What cannot be opened is a finding later on.
            Err(_) => {}
        }
    }
    Ok(locks)
}

fn worker(
    tree: &Tree,
    path: &Path,
    owner: u32,
    versions: &mut BTreeMap<String, i64>,
    findings: &mut Findings,
) -> Result<Worker, Error> {
    let snapshotter = path.to_string_lossy().trim_start_matches("runc-").to_owned();
    files::check(tree, path, directory(0o700), owner, findings);
    for name in ["snapshots", "snapshots/snapshots"] {
        files::check(tree, &path.join(name), directory(0o700), owner, findings);
    }
    let open = |name: &str, mode: u32, findings: &mut Findings| {
        let path = path.join(name);
        let sound = files::check(tree, &path, file(mode), owner, findings);
        sound.then(|| database::open(tree, &path, findings)).flatten()
    };
    schema::records_file(tree, path)?;
    let records = open("metadata_v2.db", 0o600, findings);
    let containerd = open("containerdmeta.db", 0o644, findings);
    if let Some(db) = &records {
        schema::records(db, &path.join("metadata_v2.db"))?;
    }
    let records = records.map(|db| records::read(&db, &path.join("metadata_v2.db"), findings));
    let has_records = records.as_ref().is_some_and(|records| !records.0.is_empty());

    let containerd_path = path.join("containerdmeta.db");
    if let Some(db) = &containerd {
        schema::containerd_bucket(db, &containerd_path)?;
    }
    let containerd =
        containerd.map(|db| containerd::read(&db, &containerd_path, &snapshotter, has_records, findings));
    if let Some(found) = containerd.as_ref().and_then(|containerd| containerd.version) {
        schema::containerd_version(found, &containerd_path)?;
        versions.insert(containerd_path.display().to_string(), found);
    }

    // Some releases make it with the first blob, those before v0.18 with 0777.
    let content = path.join("content");
    let has_blobs = containerd.as_ref().is_none_or(|containerd| !containerd.sizes.is_empty());
    if has_blobs || tree.stat(&content).is_ok() {
        files::check(tree, &content, directory(0o777), owner, findings);
    }

    // A daemon makes it with its first snapshot.
    let store_path = path.join("snapshots/metadata.db");
    let has_snapshots = containerd.as_ref().is_none_or(|containerd| !containerd.snapshots.is_empty());
    let store = if has_snapshots || tree.stat(&store_path).is_ok() {
        let db = open("snapshots/metadata.db", 0o600, findings);
        if let Some(db) = &db {
            schema::containerd_bucket(db, &store_path)?;
        }
        db.map(|db| snapshotter::read(&db, &store_path, findings))
    } else {
        Some(Snapshotter::default())
    };
    Ok(Worker {
        path: path.to_owned(),
        id: worker_id(tree, path, owner, findings),
        records,
        store,
        containerd,
        snapshotter,
    })
}

fn worker_id(tree: &Tree, worker: &Path, owner: u32, findings: &mut Findings) -> Option<String> {
    let path = worker.join("workerid");
    if !files::check(tree, &path, file(0o600), owner, findings) {
        return None;
    }
    let bytes = match tree.read(&path, 4096) {
        Ok(bytes) => bytes,
        Err(fault) => {
            findings.add(fault.kind, files::subject(&path), fault.detail);
            return None;
        }
    };
    match std::str::from_utf8(&bytes) {
        Ok(id) if decode::is_identity(id) => Some(id.to_owned()),
        _ => {
            let detail = format!("{}: not 25 characters of [a-z0-9]", database::shown(&bytes));
            findings.add(FindingKind::WorkerIdInvalid, files::subject(&path), detail);
            None
        }
    }
}

fn solver(
    tree: &Tree,
    workers: &[Worker],
    owner: u32,
    counts: &mut Counts,
    findings: &mut Findings,
) -> Result<(), Error> {
    let path = Path::new("cache.db");
    if !files::check(tree, path, file(0o600), owner, findings) {
        return Ok(());
    }
    let Some(db) = database::open(tree, path, findings) else { return Ok(()) };
    schema::solver(&db, path)?;
    // A daemon makes history.db at its start, and keys of its own afterwards.
    let untouched = tree.stat(Path::new(HISTORY)).is_err();
    let derived = untouched && !workers.is_empty() && workers.iter().all(is_baked);
    let solver = solver::read(&db, path, derived, counts, findings);
    let mut known: BTreeMap<&str, Option<&Records>> = BTreeMap::new();
    for worker in workers {
        // Without an id nothing can be said of results, and that it is missing is a finding already.
        let Some(id) = &worker.id else { return Ok(()) };
        known.insert(id, worker.records.as_ref());
    }
    relations::results(&solver.results, &known, findings);
    Ok(())
}

/// Whether everything that the worker has was written by warmkit: its id and those of its records are derived.
fn is_baked(worker: &Worker) -> bool {
    let derived = |(id, record): (&String, &records::Record)| {
        record.blob_chain_id.is_some_and(|chain| RecordId::of(&chain).as_str() == id)
    };
    worker.id.as_deref() == Some(WorkerId::warmkit().as_str())
        && worker.records.as_ref().is_some_and(|records| records.0.iter().all(derived))
}

fn relate(worker: &Worker, counts: &mut Counts, findings: &mut Findings) {
    if let Some(records) = &worker.records {
        counts.records += records.0.len();
        counts.layers += records.0.values().filter(|record| record.blob.is_some()).count();
        relations::records(records, findings);
    }
    if let Some(containerd) = &worker.containerd {
        counts.leases += containerd.leases.len();
        counts.snapshots += containerd.snapshots.len();
        counts.blobs += containerd.sizes.len();
        relations::snapshots(containerd, worker.store.as_ref(), worker.records.as_ref(), findings);
        if let Some(records) = &worker.records {
            relations::data(records, containerd, worker.store.as_ref(), findings);
            relations::unused(records, containerd, findings);
        }
    }
}

fn on_disk(
    look: &Look<'_>,
    worker: &Worker,
    options: &Options,
    counts: &mut Counts,
    findings: &mut Findings,
) {
    if let Some(store) = &worker.store {
        disk::check_snapshots(look, &worker.path, &worker.snapshotter, store, findings);
    }
    let Some(containerd) = &worker.containerd else { return };
    let (jobs_of_layers, others) = match &worker.records {
        Some(records) if options.read_data => layer_jobs(worker, records, containerd),
        _ => (Vec::new(), 0),
    };
    look.progress.event(Event::Planned {
        layers: containerd.sizes.len(),
        bytes: containerd.sizes.values().filter_map(|sizes| u64::try_from(sizes.first()?.1?).ok()).sum(),
        unpacks: jobs_of_layers.len(),
    });
    let (bytes, sound) = disk::check_blobs(look, &worker.path, containerd, findings);
    counts.blob_bytes += bytes;
    counts.layers_not_comparable += others;
    // What a damaged blob differs in says nothing of the snapshot.
    let layers: Vec<_> = jobs_of_layers.into_iter().filter(|job| sound.contains(&job.blob)).collect();
    counts.layers_compared += layers.len();
    let outcomes = parallel::each(look.jobs, &layers, |job, entries: &mut u64, findings| {
        *entries += layers::compare(look, &worker.path, job, findings);
    });
    for (entries, found) in outcomes {
        counts.entries_compared += entries;
        findings.append(found);
    }
}

/// The layers to compare, and the number of those that cannot be.
fn layer_jobs(worker: &Worker, records: &Records, containerd: &Containerd) -> (Vec<layers::Job>, usize) {
    let (layers, mut others) = relations::comparable(records);
    // Other snapshotters, and rootless ones, mark whiteouts in other ways.
    let Some(store) = worker.store.as_ref().filter(|_| worker.snapshotter == "overlayfs") else {
        return (Vec::new(), others + layers.len());
    };
    let chains = disk::chains(containerd, store);
    let mut jobs = Vec::new();
    for ((blob, snapshot), (diff_id, media_type)) in layers {
        match chains.get(&snapshot) {
            Some(chain) => {
                let chain = chain.clone();
                jobs.push(layers::Job { blob, diff_id, media_type, snapshot, chain });
            }
            None => others += 1,
        }
    }
    (jobs, others)
}
