//! Turns a plan and what unpacking told into the rows of the four databases.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;

use jiff::Timestamp;

use crate::gather::{Blob, Image, ImageDocument};
use crate::layer::Usage;
use crate::source::Source;
use crate::store::{self, BlobWriter, Contents, RecordId, SnapshotKey, StateDir, WorkerId};

use super::plan::{self, Plan};
use super::{Error, IoContext};

/// All that the databases of a root say, of layers that take as much as `usage` says, by snapshot of the plan. Of
/// `sources`, the last are those of `images`.
pub(super) fn contents(
    plan: &Plan,
    sources: &[Box<dyn Source>],
    images: &[Image],
    usage: &[Usage],
    written_at: Timestamp,
) -> Contents {
    let of_images = sources.len().saturating_sub(images.len());
    let (documents, documents_of) = documents(images, &sources[of_images..]);
    Contents {
        worker: WorkerId::warmkit(),
        written_at,
        blobs: plan.blobs.iter().map(|blob| store_blob(blob, sources)).collect(),
        snapshots: plan
            .snapshots
            .iter()
            .zip(usage)
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
                let description = description(record, plan, images, of_images);
                store_record(record, images, description, &documents_of, written_at)
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
    }
}

/// What was read of each image, as the content store has it, and where among all of it that of each image is.
fn documents(images: &[Image], sources: &[Box<dyn Source>]) -> (Vec<store::Document>, Vec<Range<usize>>) {
    let mut all = Vec::new();
    let mut of_image = Vec::new();
    for (image, source) in images.iter().zip(sources) {
        let first = all.len();
        for ImageDocument { digest, bytes } in &image.documents {
            let sources = repositories(source.repository());
            all.push(store::Document { digest: *digest, size: bytes.len() as u64, sources });
        }
        of_image.push(first..all.len());
    }
    (all, of_image)
}

/// Puts what was read of each image into the content store of a root.
pub(super) fn write_documents(images: &[Image], root: &StateDir) -> Result<(), Error> {
    for ImageDocument { digest, bytes } in images.iter().flat_map(|image| &image.documents) {
        let mut writer = BlobWriter::new(root)?;
        writer.write_all(bytes).at("write", &root.blob(digest))?;
        writer.finish(digest)?;
    }
    Ok(())
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

/// How often a record is said to have been used, which is what keeps a daemon from taking it first.
///
/// Collection goes by steps: each distinct time, and each distinct count, among the records that nothing stands on.
/// So all records of a root have one time, or else they would be many steps and what builds add only a few, late ones
/// far above them. And those that a build finds have one use more than what a build adds and never uses again. Above
/// that the uses are those that they would have if each result of the caches had been used once.
pub(super) fn usage_count(record: &plan::Record) -> u64 {
    record.uses.saturating_add(1)
}

/// What `buildctl du` shows of a record; the blobs of caches come from the first `caches` sources.
pub(super) fn description(record: &plan::Record, plan: &Plan, images: &[Image], caches: usize) -> String {
    let blob = &plan.blobs[record.blob];
    let pulled = blob.caches.first() >= Some(&caches);
    image_refs(record, images)
        .next()
        .filter(|_| pulled)
        .map(|image| format!("pulled from {image}"))
        .or_else(|| record.name.clone())
        .or_else(|| blob.layer.description.clone())
        .unwrap_or_else(|| format!("imported {}", blob.layer.descriptor.digest))
}

/// Whether it is the last layer of a frontend's image.
pub(super) fn is_frontend(record: &plan::Record, images: &[Image]) -> bool {
    record.tops.iter().any(|&at| images[at].report.frontend)
}

/// The images that it is a layer of.
fn image_refs<'a>(record: &'a plan::Record, images: &'a [Image]) -> impl Iterator<Item = &'a str> {
    record.images.iter().map(|&at| images[at].report.image.as_str())
}

fn store_record(
    record: &plan::Record,
    images: &[Image],
    description: String,
    documents_of: &[Range<usize>],
    written_at: Timestamp,
) -> store::Record {
    store::Record {
        id: RecordId::of(&record.blob_chain_id),
        blob: record.blob,
        snapshot: record.snapshot,
        parent: record.parent,
        chain_id: record.chain_id,
        blob_chain_id: record.blob_chain_id,
        created_at: record.created_at.unwrap_or(written_at),
        last_used_at: written_at,
        usage_count: usage_count(record),
        description,
        image_refs: image_refs(record, images).map(str::to_owned).collect(),
        documents: record.tops.iter().flat_map(|&at| documents_of[at].clone()).collect(),
        frontend: is_frontend(record, images),
    }
}
