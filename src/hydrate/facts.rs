//! What the order of reading follows from, as the databases have it.
//!
//! A daemon may be writing meanwhile, and no lock is taken. So nothing here is an error: a database that cannot be
//! read is not known, and [`super::order`] has less to go by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::order::{Facts, Record, Snapshot};
use crate::root::files::has_upper;
use crate::root::{self, Root, Solver, State, Worker};

/// How often databases are read that a commit has torn.
const ATTEMPTS: usize = 3;

/// The type of a record that is the last layer of a frontend's image; `client/diskusage.go` of `BuildKit`.
const FRONTEND: &str = "frontend";

/// Types of records that builds use again though they are no step's result: contexts, checkouts, and what
/// `RUN --mount=type=cache` mounts. No bake makes any; a daemon does.
const REUSED: [&str; 3] = ["source.local", "source.git.checkout", "exec.cachemount"];

/// By worker, what the databases of the root at `path` say.
pub(super) fn read(path: &Path) -> BTreeMap<PathBuf, Facts> {
    let once = || Root::open_unlocked(path).and_then(|root| root.read());
    let is_whole = |state: &State| {
        let whole = |worker: &Worker| {
            worker.records.is_some() && worker.containerd.is_some() && worker.store.is_some()
        };
        state.solver.is_some() && state.workers.iter().all(whole)
    };
    let mut last = once().unwrap_or_default();
    for _ in 1..ATTEMPTS {
        if is_whole(&last) {
            break;
        }
        last = once().unwrap_or_default();
    }
    let steps = last.solver.as_ref().map(steps_on).unwrap_or_default();
    last.workers.iter().map(|worker| (worker.path.clone(), of_worker(worker, &steps))).collect()
}

fn of_worker(worker: &Worker, steps: &BTreeMap<&str, usize>) -> Facts {
    let stored = worker.store.iter().flat_map(|store| &store.snapshots);
    let snapshot = |stored: &root::Stored| Snapshot { id: stored.id, parent: stored.parent.clone() };
    let names = worker.containerd.as_ref().map(|containerd| &containerd.snapshots);
    let record = |(id, record): (&String, &root::Record)| {
        let kind = record.record_type.as_deref().unwrap_or_default();
        Some(Record {
            snapshot: names?.get(&record.snapshot)?.name.clone()?,
            frontend: kind == FRONTEND,
            reused: !record.image_refs.is_empty() || REUSED.contains(&kind),
            steps: steps.get(id.as_str()).copied().unwrap_or_default(),
        })
    };
    Facts {
        whole: !has_upper(&worker.snapshotter),
        snapshots: stored.map(|(name, stored)| (name.clone(), snapshot(stored))).collect(),
        records: worker.records.iter().flat_map(|records| &records.all).filter_map(record).collect(),
    }
}

/// By record, how many steps have it as an input: a key of theirs is linked from a key whose result it is.
fn steps_on(solver: &Solver) -> BTreeMap<&str, usize> {
    let mut steps: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (key, results) in &solver.results {
        let targets = || solver.keys.get(key).into_iter().flatten().map(|link| link.target.as_str());
        for (_, record) in results.iter().filter_map(|result| result.of.as_ref()) {
            steps.entry(record).or_default().extend(targets());
        }
    }
    steps.into_iter().map(|(record, steps)| (record, steps.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_or_no_database_is_not_known() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(read(&scratch.path().join("none")), BTreeMap::new());
        std::fs::create_dir_all(scratch.path().join("runc-overlayfs/snapshots")).unwrap();
        let nothing = BTreeMap::from([(PathBuf::from("runc-overlayfs"), Facts::default())]);
        assert_eq!(read(scratch.path()), nothing);
        for name in ["cache.db", "runc-overlayfs/metadata_v2.db", "runc-overlayfs/snapshots/metadata.db"] {
            std::fs::write(scratch.path().join(name), vec![0xed; 40_000]).unwrap();
        }
        assert_eq!(read(scratch.path()), nothing);
    }
}
