//! Turns a plan and what unpacking told into the rows of the four databases.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;

use jiff::Timestamp;

use crate::gather::{Blob, Image, ImageDocument};
use crate::source::Source;
use crate::store::{self, BlobWriter, Contents, RecordId, SnapshotKey, StateDir, WorkerId};

use super::layers::Unpacked;
use super::plan::{self, Plan};
use super::{Error, IoContext};

/// Writes documents of images, worker id and databases of a root whose blobs and snapshots are there
/// already. Of `sources`, the last are those of `images`.
pub(crate) fn write(
    plan: &Plan,
    sources: &[Box<dyn Source>],
    images: &[Image],
    unpacked: &Unpacked,
    root: &StateDir,
    written_at: Timestamp,
) -> Result<(), Error> {
    let of_images = sources.len().saturating_sub(images.len());
    let (documents, documents_of) = write_documents(images, &sources[of_images..], root)?;
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
        records: plan
            .records
            .iter()
            .map(|record| {
                let pulled = plan.blobs[record.blob].caches.first() >= Some(&of_images);
                store_record(record, plan, images, pulled, &documents_of, written_at)
            })
            .collect(),
        documents,
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

/// Puts what was read of each image into the content store; gives all documents, and where among them
/// those of each image are.
fn write_documents(
    images: &[Image],
    sources: &[Box<dyn Source>],
    root: &StateDir,
) -> Result<(Vec<store::Document>, Vec<Range<usize>>), Error> {
    let mut all = Vec::new();
    let mut of_image = Vec::new();
    for (image, source) in images.iter().zip(sources) {
        let first = all.len();
        for ImageDocument { digest, bytes } in &image.documents {
            let mut writer = BlobWriter::new(root)?;
            writer.write_all(bytes).at("write", &root.blob(digest))?;
            writer.finish(digest)?;
            let sources = repositories(source.repository());
            all.push(store::Document { digest: *digest, size: bytes.len() as u64, sources });
        }
        of_image.push(first..all.len());
    }
    Ok((all, of_image))
}

/// By host, the repositories there.
fn repositories(found: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, BTreeSet<String>> {
    let mut repositories: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (host, repository) in found {
        repositories.entry(host).or_default().insert(repository);
    }
    repositories
}

fn store_blob(blob: &Blob, sources: &[Box<dyn Source>]) -> store::Blob {
    let repositories = repositories(blob.caches.iter().filter_map(|&cache| sources[cache].repository()));
    store::Blob {
        descriptor: blob.layer.descriptor.clone(),
        diff_id: blob.layer.diff_id,
        sources: repositories,
    }
}

fn store_record(
    record: &plan::Record,
    plan: &Plan,
    images: &[Image],
    pulled: bool,
    documents_of: &[Range<usize>],
    written_at: Timestamp,
) -> store::Record {
    let layer = &plan.blobs[record.blob].layer;
    let image_refs: Vec<String> = record.images.iter().map(|&at| images[at].report.image.clone()).collect();
    let description = image_refs
        .first()
        .filter(|_| pulled)
        .map(|image| format!("pulled from {image}"))
        .or_else(|| record.name.clone())
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
        image_refs,
        documents: record.tops.iter().flat_map(|&at| documents_of[at].clone()).collect(),
        frontend: record.tops.iter().any(|&at| images[at].report.frontend),
    }
}
