//! Turns a plan and what unpacking told into the rows of the four databases.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::gather::Blob;
use crate::source::Source;
use crate::store::{self, Contents, RecordId, SnapshotKey, StateDir, WorkerId};

use super::Error;
use super::layers::Unpacked;
use super::plan::{self, Plan};

/// Writes worker id and databases of a root whose blobs and snapshots are there already.
pub(crate) fn write(
    plan: &Plan,
    sources: &[Box<dyn Source>],
    unpacked: &Unpacked,
    root: &StateDir,
    written_at: Timestamp,
) -> Result<(), Error> {
    let contents = Contents {
        worker: WorkerId::warmkit(),
        written_at,
        blobs: plan.blobs.iter().map(|blob| store_blob(blob, sources)).collect(),
        snapshots: plan
            .snapshots
            .iter()
            .zip(&unpacked.usage)
            .map(|(snapshot, usage)| store::Snapshot {
                key: SnapshotKey::of(&snapshot.chain_id),
                parent: snapshot.parent,
                size: usage.size,
                inodes: usage.inodes,
            })
            .collect(),
        records: plan.records.iter().map(|record| store_record(record, plan, written_at)).collect(),
        keys: plan
            .keys
            .iter()
            .map(|key| store::Key { id: key.id.clone(), results: key.results.clone().into_iter().collect() })
            .collect(),
        links: plan
            .links
            .iter()
            .map(|link| store::Link {
                from: link.from,
                to: link.to,
                input: link.input,
                output: link.output,
                digest: link.digest.clone(),
                selector: link.selector.clone(),
            })
            .collect(),
    };
    Ok(store::write_databases(root.root(), &contents)?)
}

fn store_blob(blob: &Blob, sources: &[Box<dyn Source>]) -> store::Blob {
    let mut repositories: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (host, repository) in blob.caches.iter().filter_map(|&cache| sources[cache].repository()) {
        repositories.entry(host).or_default().insert(repository);
    }
    store::Blob {
        descriptor: blob.layer.descriptor.clone(),
        diff_id: blob.layer.diff_id,
        sources: repositories,
    }
}

fn store_record(record: &plan::Record, plan: &Plan, written_at: Timestamp) -> store::Record {
    let layer = &plan.blobs[record.blob].layer;
    let description = record
        .name
        .clone()
        .or_else(|| layer.description.clone())
        .unwrap_or_else(|| format!("imported {}", layer.descriptor.digest));
    store::Record {
        id: RecordId::of(&record.blob_chain_id),
        blob: record.blob,
        snapshot: record.snapshot,
        parent: record.parent,
        chain_id: record.chain_id,
        blob_chain_id: record.blob_chain_id,
        created_at: record.created_at.unwrap_or(written_at),
        last_used_at: written_at,
        usage_count: 1,
        description,
    }
}
