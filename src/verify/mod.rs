//! Finding the faults of a state directory, whoever wrote it.
//!
//! Everything is read by `root`, never through the writers in `store`, or a fault of theirs would prove itself
//! right; only which ids warmkit gives is asked there. What is checked, in this order:
//!
//! ```text
//! root         no daemon holds a lock; each bolt file page by page; every value decodes
//! files        type, mode and owner of every state file
//! records      metadata_v2.db: values and indexes agree
//! snapshotter  snapshots/metadata.db: ids, sequence, the index of parents
//! solver       cache.db: links and the ways back, results and the index by results, circles
//! relations    the four against each other and the worker id: result, record, lease, snapshot, blob,
//!              chain ID, blob chain ID, parent
//! disk         snapshot directories and blob files against all that; every blob is hashed
//! kept         the same of a containerd worker's blobs, by the API of the containerd that keeps them
//! layers       with `read_data`: each blob inflated, read as tar and compared with its snapshot
//! image        with `image`: what must not be in an image that ships, in the root and around it
//! ```
//!
//! A root that a daemon wrote has no finding, whether it was stopped or killed, pruned or not. That is
//! tested with real daemons of ten releases, and it decides what is a [`FindingKind`] and what a note:
//! see `docs/verify.md`.

mod disk;
mod extracted;
mod files;
mod image;
mod kept;
mod layers;
mod live;
mod owners;
mod parallel;
mod records;
mod relations;
mod report;
mod snapshotter;
mod solver;
mod tree;
mod unused;
mod view;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;

pub use crate::root::{Error, KeptIn};
pub use image::{Configured, ImageOptions};
pub use live::{DEFAULT_IMAGE, LiveError, LiveOptions, LiveReport, Step, StepStatus, live};
pub use report::{Counts, Finding, FindingKind, ImageReport, Report, Severity, Subject};

use crate::progress::{Event, Phase, Progress, Running};
use crate::root::files::Tree;
use crate::root::keeper::Keeper;
use crate::root::{Containerd, HISTORY, History, Record, Records, Root, State, Worker};
use crate::store::ids::{RecordId, WorkerId};
use disk::Look;
use files::{directory, file};
use image::Image;
use layers::Manner;
use report::Findings;

/// The solver's database.
const CACHE: &str = "cache.db";

/// What an offline verification does.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Unpack each layer again, in memory, and compare it with its snapshot entry by entry.
    pub read_data: bool,
    /// Who keeps the layers of a containerd worker; they are compared with no snapshot, whose files are its own.
    pub containerd: Option<KeptIn>,
    /// Threads; `None`: as many as the machine runs at once.
    pub jobs: Option<NonZeroUsize>,
    /// Also look for what must not be in a machine image that ships; the root's path is one of the image.
    pub image: Option<ImageOptions>,
}

/// Judges the state directory at `root` by its bytes. Nothing is written; shared locks are held
/// meanwhile, so that no daemon starts on it.
///
/// # Errors
/// The root was not judged: it cannot be opened, is no state directory, is in use, or has an unknown
/// schema. Whatever is wrong *in* it is a finding.
pub fn offline(root: &Path, options: &Options, progress: &dyn Progress) -> Result<Report, Error> {
    let running = Running::start(progress, Phase::Databases);
    let image = options.image.as_ref().map(|options| Image::open(root, options)).transpose()?;
    let open = || Root::open_with(root, options.containerd.as_ref());
    let root = image.as_ref().map_or_else(open, Image::root)?;
    let mut state = root.read()?;
    let tree = &root.tree;
    let mut findings = Findings::default();
    findings.faults(std::mem::take(&mut state.faults));
    let jobs = options.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let mut counts = Counts::default();
    let mut schema_versions = BTreeMap::new();
    // Opening has looked at it, too.
    let owner = tree.stat(Path::new("")).map_or_else(|_| rustix::process::geteuid().as_raw(), |s| s.st_uid);
    files::check(tree, Path::new(""), directory(0o755), owner, &mut findings);
    for worker in &state.workers {
        if let Some(version) = worker.containerd.as_ref().and_then(|containerd| containerd.version) {
            schema_versions.insert(worker.path.join("containerdmeta.db").display().to_string(), version);
        }
        if worker.is_read() {
            worker_files(tree, worker, owner, &mut findings);
            within(worker, &mut findings);
        }
    }
    let path = Path::new(HISTORY);
    let mut history = History::default();
    if tree.stat(path).is_ok() && files::check(tree, path, file(0o600), owner, &mut findings) {
        let (found, faults) = root.history();
        findings.faults(faults);
        history = found;
    }
    files::check_rights(tree, Path::new(CACHE), 0o600, owner, &mut findings);
    solver(tree, &state, &mut counts, &mut findings);
    for worker in state.workers.iter().filter(|worker| worker.is_read()) {
        relate(worker, root.keeper.as_ref(), &mut counts, &mut findings);
    }
    held(&state.workers, &mut counts, &mut findings);
    running.finish();

    let running = Running::start(progress, Phase::Blobs);
    // Whose files are behind a user namespace is said by the machine that they are for.
    let owners = owners::of_root(tree, |path| match &image {
        Some(image) => image.text(path),
        None => std::fs::read_to_string(path).ok(),
    });
    let look = Look { root: tree, owner, jobs, progress };
    if let Some(keeper) = &root.keeper {
        counts.layers_not_comparable +=
            state.workers.iter().map(|worker| not_comparable(worker, options)).sum::<usize>();
        // One namespace has those of all workers.
        if let Some(containerd) = state.workers.iter().find_map(|worker| worker.containerd.as_ref()) {
            counts.blob_bytes += kept::check_blobs(keeper, containerd, jobs, progress, &mut findings)?;
        }
    }
    for worker in state.workers.iter().filter(|worker| !worker.in_containerd) {
        let manner = owners.clone().and_then(|owners| Manner::of(&worker.snapshotter, owners));
        on_disk(&look, worker, options, manner.as_ref(), &mut counts, &mut findings);
    }
    let image =
        image.map(|image| image.check(&root, &history, &state.workers, owners.as_ref(), &mut findings));
    running.finish();
    let (findings, notes) = findings.finish();
    Ok(Report { findings, notes, counts, schema_versions, read_data: options.read_data, image })
}

/// Types, modes and owners in a worker's directory.
fn worker_files(tree: &Tree, worker: &Worker, owner: u32, findings: &mut Findings) {
    let path = &worker.path;
    files::check(tree, path, directory(0o700), owner, findings);
    if worker.in_containerd {
        for (name, mode) in [("metadata_v2.db", 0o600), ("workerid", 0o600)] {
            files::check_rights(tree, &path.join(name), mode, owner, findings);
        }
        return;
    }
    for name in ["snapshots", "snapshots/snapshots"] {
        files::check(tree, &path.join(name), directory(0o700), owner, findings);
    }
    let read = [
        ("metadata_v2.db", 0o600),
        ("containerdmeta.db", 0o644),
        ("snapshots/metadata.db", 0o600),
        ("workerid", 0o600),
    ];
    for (name, mode) in read {
        files::check_rights(tree, &path.join(name), mode, owner, findings);
    }
    // Some releases make it with the first blob, those before v0.18 with 0777.
    let content = path.join("content");
    let has_blobs = worker.containerd.as_ref().is_none_or(|containerd| !containerd.sizes.is_empty());
    if has_blobs || tree.stat(&content).is_ok() {
        files::check(tree, &content, directory(0o777), owner, findings);
    }
}

/// What each of a worker's databases says of itself.
fn within(worker: &Worker, findings: &mut Findings) {
    if let Some(records) = &worker.records {
        records::check(records, &worker.path.join("metadata_v2.db"), findings);
    }
    if let Some(containerd) = &worker.containerd {
        let path = worker.path.join("containerdmeta.db");
        for (namespace, reference) in &containerd.ingests {
            let subject = Subject::entry(&path, &["v1", namespace, "content", "ingests", reference]);
            findings.add(FindingKind::IngestLeft, subject, "a transfer that was not finished");
        }
    }
    if let Some(store) = worker.store.as_ref().filter(|_| !worker.in_containerd) {
        snapshotter::check(store, &worker.path.join("snapshots/metadata.db"), findings);
    }
}

fn solver(tree: &Tree, state: &State, counts: &mut Counts, findings: &mut Findings) {
    let Some(solver) = &state.solver else { return };
    // A daemon makes history.db at its start, and keys of its own afterwards.
    let untouched = tree.stat(Path::new(HISTORY)).is_err();
    let derived = untouched && !state.workers.is_empty() && state.workers.iter().all(is_baked);
    solver::check(solver, Path::new(CACHE), derived, counts, findings);
    let mut known: BTreeMap<&str, Option<&Records>> = BTreeMap::new();
    for worker in &state.workers {
        // Without an id nothing can be said of results, and that it is missing is a finding already.
        let Some(id) = &worker.id else { return };
        known.insert(id, worker.records.as_ref());
    }
    known.extend(state.other_workers.iter().map(|id| (id.as_str(), None)));
    relations::results(solver, &known, findings);
}

/// Whether everything that the worker has was written by warmkit: its id and those of its records are derived.
fn is_baked(worker: &Worker) -> bool {
    let derived = |(id, record): (&String, &Record)| {
        record.blob_chain_id.is_some_and(|chain| RecordId::of(&chain).as_str() == id)
    };
    worker.id.as_deref() == Some(WorkerId::warmkit().as_str())
        && worker.records.as_ref().is_some_and(|records| records.all.iter().all(derived))
}

fn relate(worker: &Worker, keeper: Option<&Keeper>, counts: &mut Counts, findings: &mut Findings) {
    if let Some(records) = &worker.records {
        counts.records += records.all.len();
        counts.layers += records.all.values().filter(|record| record.blob.is_some()).count();
        relations::records(records, findings);
    }
    if let Some(containerd) = &worker.containerd {
        counts.snapshots += containerd.snapshots.len();
        relations::ancestry(containerd, findings);
        if !worker.in_containerd {
            relations::names(containerd, worker.store.as_ref(), worker.records.as_ref(), findings);
        }
        if let (Some(keeper), Some(records)) = (keeper, &worker.records)
            && containerd.is_empty()
            && !records.all.is_empty()
        {
            // Else each record would be told of, with all that it lacks.
            let (place, count) = (keeper.place(), records.all.len());
            let detail = format!("{place} has nothing, and there are {count} records");
            findings.add(FindingKind::NamespaceEmpty, Subject::file(&worker.path), detail);
        } else if let Some(records) = &worker.records {
            relations::data(records, containerd, worker.store.as_ref(), findings);
            unused::snapshots(containerd, findings);
        }
    }
}

/// Leases, and what they hold beside snapshots. Workers in a containerd share these.
fn held(workers: &[Worker], counts: &mut Counts, findings: &mut Findings) {
    let (shared, own): (Vec<&Worker>, Vec<&Worker>) = workers.iter().partition(|worker| worker.in_containerd);
    for sharing in own.chunks(1).chain([&*shared]) {
        let Some(containerd) = sharing.iter().find_map(|worker| worker.containerd.as_ref()) else { continue };
        counts.leases += containerd.leases.len();
        counts.blobs += containerd.sizes.len();
        let records: Option<Vec<&Records>> = sharing.iter().map(|worker| worker.records.as_ref()).collect();
        if let Some(records) = records {
            unused::leases_and_blobs(&records, containerd, findings);
        }
    }
}

/// How many layers `read_data` asks for in vain.
fn not_comparable(worker: &Worker, options: &Options) -> usize {
    let records = worker.records.as_ref().filter(|_| options.read_data);
    records.map(relations::comparable).map_or(0, |(layers, others)| layers.len() + others)
}

fn on_disk(
    look: &Look<'_>,
    worker: &Worker,
    options: &Options,
    manner: Option<&Manner>,
    counts: &mut Counts,
    findings: &mut Findings,
) {
    if let Some(store) = &worker.store {
        disk::check_snapshots(look, worker, store, findings);
    }
    let Some(containerd) = &worker.containerd else { return };
    let (jobs_of_layers, others) = match &worker.records {
        Some(records) if options.read_data => layer_jobs(worker, manner, records, containerd),
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
        if let Some(manner) = manner {
            *entries += layers::compare(look, worker, manner, job, findings);
        }
    });
    for (entries, found) in outcomes {
        counts.entries_compared += entries;
        findings.append(found);
    }
}

/// The layers to compare, and the number of those that cannot be.
fn layer_jobs(
    worker: &Worker,
    manner: Option<&Manner>,
    records: &Records,
    containerd: &Containerd,
) -> (Vec<layers::Job>, usize) {
    let (layers, mut others) = relations::comparable(records);
    // Where it is not known which ids a rootless daemon has, nothing can be said of owners.
    let Some(store) = worker.store.as_ref().filter(|_| manner.is_some()) else {
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
