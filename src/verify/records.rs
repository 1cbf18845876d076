//! `metadata_v2.db` against itself: values of records and the indexes.

use std::collections::BTreeSet;
use std::path::Path;

use super::report::{FindingKind, Findings, Subject};
use crate::root::Records;

/// Checks the indexes of the database at `path`.
pub(super) fn check(records: &Records, path: &Path, findings: &mut Findings) {
    if let Some(index) = &records.index {
        indexes(records, index, path, findings);
    }
    for id in records.external.iter().filter(|id| !records.all.contains_key(*id)) {
        let detail = format!("there is no record {id}");
        findings.add(FindingKind::ExternalOrphaned, Subject::entry(path, &["_external", id]), detail);
    }
}

fn indexes(records: &Records, index: &BTreeSet<(String, String)>, path: &Path, findings: &mut Findings) {
    for (name, id) in index.difference(&records.indexed) {
        let detail = if records.all.contains_key(id) {
            format!("record {id} has no value with this index")
        } else {
            format!("there is no record {id}")
        };
        let subject = Subject::entry(path, &["_index", &format!("{name}::{id}")]);
        findings.add(FindingKind::IndexOrphaned, subject, detail);
    }
    for (name, id) in records.indexed.difference(index) {
        let detail = format!("not in the index under {name:?}");
        findings.add(FindingKind::IndexMissing, Subject::record(id), detail);
    }
}
