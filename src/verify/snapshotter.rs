//! `snapshots/metadata.db` against itself: directory numbers, the sequence, the index of parents.

use std::collections::BTreeMap;
use std::path::Path;

use super::report::{FindingKind, Findings, Subject};
use crate::root::fault::{shown, text};
use crate::root::{ParentEntry, Snapshotter};

/// Checks what the database at `path` says of itself.
pub(super) fn check(store: &Snapshotter, path: &Path, findings: &mut Findings) {
    let subject = |below: &[&str]| Subject::entry(path, &[&["v1"], below].concat());
    ids(store, &subject, findings);
    parents(store, &subject, findings);
}

fn ids(store: &Snapshotter, subject: &impl Fn(&[&str]) -> Subject, findings: &mut Findings) {
    let mut seen = BTreeMap::new();
    for (name, stored) in &store.snapshots {
        if let Some(other) = seen.insert(stored.id, name) {
            let detail = format!("directory {} is also that of {other}", stored.id);
            findings.add(FindingKind::SnapshotIdShared, subject(&["snapshots", name]), detail);
        }
    }
    if let Some((&highest, _)) = seen.last_key_value()
        && highest > store.sequence
    {
        let detail = format!("sequence {}, but snapshot id {highest} was given out", store.sequence);
        findings.add(FindingKind::SequenceTooLow, subject(&["snapshots"]), detail);
    }
}

fn parents(store: &Snapshotter, subject: &impl Fn(&[&str]) -> Subject, findings: &mut Findings) {
    let mut expected: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    for (name, stored) in &store.snapshots {
        let Some(parent) = &stored.parent else { continue };
        if let Some(parent) = store.snapshots.get(parent) {
            expected.insert((parent.id, stored.id), name);
        } else {
            let detail = format!("there is no snapshot {parent}");
            let subject = subject(&["snapshots", name, "parent"]);
            findings.add(FindingKind::SnapshotParentMissing, subject, detail);
        }
    }
    for ParentEntry { key, parent, child, name } in &store.parents {
        let detail = match expected.remove(&(*parent, *child)) {
            Some(expected) if expected.as_bytes() == name => continue,
            Some(expected) => {
                format!("parent {parent}, child {child}: {}, expected {expected}", shown(name))
            }
            None => format!("parent {parent}, child {child}: no snapshot says so"),
        };
        findings.add(FindingKind::SnapshotParentsIndex, subject(&["parents", &text(key)]), detail);
    }
    for ((parent, child), name) in expected {
        let detail = format!("no entry for parent {parent}, child {child} ({name})");
        findings.add(FindingKind::SnapshotParentsIndex, subject(&["parents"]), detail);
    }
}
