//! `metadata_v2.db`: the cache records.
//!
//! ```text
//! _main/<record id>/<key> = {"value":<JSON>} or {"value":<JSON>,"index":"<index>"}
//!   cache.blob, cache.blobsize, cache.mediatype       the blob
//!   cache.diffID, cache.layerIdentity                 diff ID
//!   cache.chainID       index chainid:<chain ID>
//!   cache.blobChainID   index blobchainid:<blob chain ID>
//!   cache.parent        record id of the layer below, where there is one
//!   cache.snapshot      key of the snapshot
//!   snapshot.size       bytes of snapshot and blob
//!   snapshot.committed true, cache.blobonly false     extracted
//!   cache.cachePolicy   1: retain
//!   cache.createdAt, cache.lastUsedAt                 nanoseconds since 1970
//!   cache.usageCount, cache.description
//!   cache.imageRefs     names of the images that it is a layer of, where there are any
//!   cache.recordType    "frontend": the last layer of a frontend's image
//! _index/<index>::<record id> = ""
//! _external/                                          content hashes; a daemon fills it
//! ```
//!
//! Mirrors `BuildKit` `cache/metadata/metadata.go`, `cache/metadata.go`, and of `cache/manager.go`
//! `GetByBlob` (v0.34). A native import also has the cache's name in `cache.imageRefs`, which only remote
//! snapshotters read; here only layers of images have them.
//! A daemon that extracts a layer leaves `snapshot.size` at -1 until the first `du` computes it.

use super::schema::metadata::{
    BLOB, BLOB_CHAIN_ID, BLOB_CHAIN_INDEX, BLOB_ONLY, BLOB_SIZE, CACHE_POLICY, CHAIN_ID, CHAIN_INDEX,
    COMMITTED, CREATED_AT, DESCRIPTION, DIFF_ID, EXTERNAL, FRONTEND, IMAGE_REFS, INDEX, INDEX_SEPARATOR,
    LAST_USED_AT, LAYER_IDENTITY, MAIN, MEDIA_TYPE, PARENT, RECORD_TYPE, RETAIN, SIZE, SNAPSHOT, USAGE_COUNT,
};
use super::{Contents, Error, Record, at, encode};
use crate::bolt::Bucket;

pub(super) fn database(contents: &Contents) -> Result<Bucket, Error> {
    let mut root = Bucket::new();
    root.bucket(EXTERNAL);
    root.bucket(INDEX);
    root.bucket(MAIN);
    for record in &contents.records {
        put_record(contents, record, &mut root)?;
    }
    Ok(root)
}

fn put_record(contents: &Contents, record: &Record, root: &mut Bucket) -> Result<(), Error> {
    let blob = at(&contents.blobs, record.blob, "blob")?;
    let snapshot = at(&contents.snapshots, record.snapshot, "snapshot")?;
    let descriptor = &blob.descriptor;

    let chain_id = record.chain_id.to_string();
    let blob_chain_id = record.blob_chain_id.to_string();
    let indexed = [
        (CHAIN_ID, format!("{CHAIN_INDEX}{chain_id}"), chain_id),
        (BLOB_CHAIN_ID, format!("{BLOB_CHAIN_INDEX}{blob_chain_id}"), blob_chain_id),
    ];
    for (key, index, value) in indexed {
        let (value, quoted) = (encode::json_string(&value), encode::json_string(&index));
        let entry = root.bucket(MAIN).bucket(record.id.as_str());
        entry.put(key, format!("{{\"value\":{value},\"index\":{quoted}}}"));
        root.bucket(INDEX).put(format!("{index}{INDEX_SEPARATOR}{}", record.id), "");
    }

    let entry = root.bucket(MAIN).bucket(record.id.as_str());
    let mut put = |key: &str, json: String| entry.put(key, format!("{{\"value\":{json}}}"));
    let diff_id = encode::json_string(&blob.diff_id.to_string());
    put(BLOB, encode::json_string(&descriptor.digest.to_string()));
    put(BLOB_SIZE, descriptor.size.to_string());
    put(MEDIA_TYPE, encode::json_string(&descriptor.media_type));
    put(DIFF_ID, diff_id.clone());
    put(LAYER_IDENTITY, diff_id);
    put(SNAPSHOT, encode::json_string(snapshot.key.as_str()));
    put(SIZE, snapshot.size.saturating_add(descriptor.size).to_string());
    put(COMMITTED, true.to_string());
    put(BLOB_ONLY, false.to_string());
    put(CACHE_POLICY, RETAIN.to_string());
    put(CREATED_AT, encode::unix_nanoseconds(record.created_at).to_string());
    put(LAST_USED_AT, encode::unix_nanoseconds(record.last_used_at).to_string());
    put(USAGE_COUNT, record.usage_count.to_string());
    put(DESCRIPTION, encode::json_string(&record.description));
    if !record.image_refs.is_empty() {
        let refs: Vec<String> = record.image_refs.iter().map(|name| encode::json_string(name)).collect();
        put(IMAGE_REFS, format!("[{}]", refs.join(",")));
    }
    if record.frontend {
        put(RECORD_TYPE, encode::json_string(FRONTEND));
    }
    if let Some(parent) = record.parent {
        put(PARENT, encode::json_string(at(&contents.records, parent, "record")?.id.as_str()));
    }
    Ok(())
}
