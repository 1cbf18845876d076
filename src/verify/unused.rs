//! What is there and serves nobody.

use std::collections::BTreeSet;

use super::report::{FindingKind, Findings, Subject};
use crate::root::{Containerd, Records};

/// Snapshots that no lease holds.
pub(super) fn snapshots(containerd: &Containerd, findings: &mut Findings) {
    let leases = containerd.leases.values();
    let mut held: BTreeSet<&str> =
        leases.flat_map(|lease| lease.snapshots.iter().map(String::as_str)).collect();
    held.extend(containerd.snapshots.values().filter_map(|snapshot| snapshot.parent.as_deref()));
    for key in containerd.snapshots.keys().filter(|key| !held.contains(key.as_str())) {
        let detail = "no lease and no other snapshot holds it";
        findings.add(FindingKind::SnapshotUnused, Subject::snapshot(key), detail);
    }
}

/// Leases whose record is gone, and blobs that no lease holds: of the records of all that have these.
pub(super) fn leases_and_blobs(records: &[&Records], containerd: &Containerd, findings: &mut Findings) {
    let mut content: BTreeSet<&str> = BTreeSet::new();
    for (id, lease) in &containerd.leases {
        content.extend(lease.content.iter().map(String::as_str));
        let record = id.strip_suffix("-variants").unwrap_or(id);
        if !lease.temporary && !records.iter().any(|records| records.all.contains_key(record)) {
            let subject = Subject::Lease { id: id.clone() };
            findings.add(FindingKind::LeaseOrphaned, subject, format!("there is no record {record}"));
        }
    }
    for blob in containerd.blobs.values() {
        let references =
            blob.labels.iter().filter(|(label, _)| label.starts_with("containerd.io/gc.ref.content"));
        content.extend(
            references.filter(|(label, to)| !label.ends_with(to.as_str())).map(|(_, to)| to.as_str()),
        );
    }
    for digest in containerd.blobs.keys() {
        if !content.contains(digest.to_string().as_str()) {
            findings.add(
                FindingKind::BlobUnused,
                Subject::blob(digest),
                "no lease and no other blob holds it",
            );
        }
    }
}
