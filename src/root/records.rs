//! `metadata_v2.db`: the cache records.
//!
//! ```text
//! _main/<record id>/<key> = {"value":…} | {"value":…,"index":"<index>"} | ""   (empty: no value)
//! _index/<index>::<record id> = ""
//! _external/<record id>/<key> = bytes
//! ```
//!
//! Mirrors `cache/metadata/metadata.go` and `cache/metadata.go` of `BuildKit`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::database::{self, Entry};
use super::decode;
use super::fault::{FaultKind, Faults, shown, text};
use crate::bolt::{BucketRef, Database};
use crate::digest::{BlobChainId, ChainId, DiffId, Digest};

/// A cache record. Values that do not decode are faults and absent, as a daemon reads them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Record {
    /// Digest of its layer's blob.
    pub blob: Option<Digest>,
    /// Bytes of that blob.
    pub blob_size: Option<i64>,
    /// Media type of that blob.
    pub media_type: Option<String>,
    /// Digest of the layer's uncompressed tar.
    pub diff_id: Option<DiffId>,
    /// What the chain ID was made from (v0.33.1 on).
    pub layer_identity: Option<DiffId>,
    /// The layer with all below it, by diff IDs.
    pub chain_id: Option<ChainId>,
    /// The same, by blobs and diff IDs.
    pub blob_chain_id: Option<BlobChainId>,
    /// Key of its snapshot.
    pub snapshot: String,
    /// Bytes of snapshot and blobs, as a daemon counted them; -1 where none did.
    pub size: Option<i64>,
    /// The record below.
    pub parent: Option<String>,
    /// Of a merge, the records that it merges.
    pub merge_parents: Vec<String>,
    /// Of a diff, the records between which it is: the lower one first.
    pub diff_parents: Vec<String>,
    /// The mutable record that has its data.
    pub equal_mutable: Option<String>,
    /// Whether the snapshot no longer changes.
    pub committed: bool,
    /// Whether the layer has yet to be extracted.
    pub blob_only: bool,
    /// Whether it was being deleted.
    pub deleted: bool,
    /// When it was made, in nanoseconds since 1970.
    pub created_at: Option<i64>,
    /// When it was used last, in nanoseconds since 1970.
    pub last_used_at: Option<i64>,
    /// How often it was used.
    pub usage_count: Option<i64>,
    /// What `buildctl du` says of it: a step, or where it was pulled from.
    pub description: Option<String>,
    /// `source.local`, `exec.cachemount`, `frontend`, …; `None`: an ordinary one.
    pub record_type: Option<String>,
    /// Names of the images that it is a layer of.
    pub image_refs: Vec<String>,
}

impl Record {
    /// Every record that this one stands on.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        let single = self.parent.iter();
        single.chain(&self.merge_parents).chain(&self.diff_parents).map(String::as_str)
    }

    /// A merge or a diff of others; its snapshot is made when it is needed.
    pub fn is_composed(&self) -> bool {
        self.parent.is_none() && !(self.merge_parents.is_empty() && self.diff_parents.is_empty())
    }

    /// Not whole yet: a daemon writes parents and the time together, after the record's first values.
    pub fn is_unfinished(&self) -> bool {
        self.created_at.is_none() && self.is_mutable()
    }

    /// Still being written to: a cache mount, a local source.
    pub fn is_mutable(&self) -> bool {
        !self.committed && !self.is_composed()
    }
}

/// All of `metadata_v2.db`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Records {
    /// The records, by id.
    pub all: BTreeMap<String, Record>,
    /// What records say they are indexed by: index and record id.
    pub indexed: BTreeSet<(String, String)>,
    /// What the index has: index and record id; `None` where there is no index.
    pub index: Option<BTreeSet<(String, String)>>,
    /// Ids of the records that have content hashes.
    pub external: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Wrapped {
    #[serde(default)]
    value: serde_json::Value,
    #[serde(default)]
    index: String,
}

/// The values of one record as they are read.
struct Values<'db, 'f> {
    found: BTreeMap<&'db str, serde_json::Value>,
    at: &'f Entry<'f>,
    faults: &'f mut Faults,
}

impl Values<'_, '_> {
    fn get<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.found.remove(key)?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                let place = self.at.child(key.as_bytes()).place();
                self.faults.add(FaultKind::EntryInvalid, place, error.to_string());
                None
            }
        }
    }

    /// A text that may stand there empty, for none.
    fn text(&mut self, key: &str) -> Option<String> {
        self.get::<String>(key).filter(|text| !text.is_empty())
    }

    fn digest<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.text(key)?;
        match text.parse() {
            Ok(digest) => Some(digest),
            Err(error) => {
                let place = self.at.child(key.as_bytes()).place();
                self.faults.add(FaultKind::EntryInvalid, place, error.to_string());
                None
            }
        }
    }
}

/// Decodes all records and the indexes.
pub(super) fn read(db: &Database, path: &Path, faults: &mut Faults) -> Records {
    let at = Entry::new(path);
    let root = db.root();
    let mut records = Records::default();
    // A daemon makes each bucket when it first writes into it; one that has built nothing has none.
    if let Some(main) = database::bucket(root, "_main", &at, faults) {
        let at = at.child(b"_main");
        for (id, bucket) in database::buckets(main, &at, faults) {
            let at = at.child(id);
            let Some(id) = database::utf8(id, &at, faults) else { continue };
            if !decode::is_identity(id) {
                let detail = "a record id is 25 characters of [a-z0-9]";
                faults.add(FaultKind::EntryInvalid, at.place(), detail);
            }
            let record = record(id, bucket, &at, &mut records.indexed, faults);
            records.all.insert(id.to_owned(), record);
        }
    }
    records.index = index(root, &at, records.indexed.len(), faults);
    // A daemon makes this bucket when it writes the first content hash.
    if let Some(external) = database::bucket(root, "_external", &at, faults) {
        let buckets = database::buckets(external, &at.child(b"_external"), faults);
        records.external = buckets.into_iter().map(|(id, _)| text(id)).collect();
    }
    records
}

fn record(
    id: &str,
    bucket: BucketRef<'_>,
    at: &Entry<'_>,
    indexed: &mut BTreeSet<(String, String)>,
    faults: &mut Faults,
) -> Record {
    let mut found = BTreeMap::new();
    for (key, value) in database::values(bucket, at, faults) {
        let at = at.child(key);
        let Some(key) = database::utf8(key, &at, faults) else { continue };
        // What was unset stands there empty.
        if value.is_empty() {
            continue;
        }
        match serde_json::from_slice::<Wrapped>(value) {
            Ok(wrapped) => {
                if !wrapped.index.is_empty() {
                    indexed.insert((wrapped.index, id.to_owned()));
                }
                found.insert(key, wrapped.value);
            }
            Err(error) => {
                let detail = format!("{}: {error}", shown(value));
                faults.add(FaultKind::EntryInvalid, at.place(), detail);
            }
        }
    }
    let mut values = Values { found, at, faults };
    let record = Record {
        blob: values.digest("cache.blob"),
        blob_size: values.get("cache.blobsize"),
        media_type: values.text("cache.mediatype"),
        diff_id: values.digest("cache.diffID"),
        layer_identity: values.digest("cache.layerIdentity"),
        chain_id: values.digest("cache.chainID"),
        blob_chain_id: values.digest("cache.blobChainID"),
        // Early releases did not write it; the record's id was the key.
        snapshot: values.text("cache.snapshot").unwrap_or_else(|| id.to_owned()),
        size: values.get("snapshot.size"),
        parent: values.text("cache.parent"),
        merge_parents: values.get("cache.mergeParents").unwrap_or_default(),
        diff_parents: ["cache.lowerDiffParent", "cache.upperDiffParent"]
            .into_iter()
            .filter_map(|key| values.text(key))
            .collect(),
        equal_mutable: values.text("cache.equalMutable"),
        committed: values.get("snapshot.committed").unwrap_or_default(),
        blob_only: values.get("cache.blobonly").unwrap_or_default(),
        deleted: values.get("cache.deleted").unwrap_or_default(),
        created_at: values.get("cache.createdAt"),
        last_used_at: values.get("cache.lastUsedAt"),
        usage_count: values.get("cache.usageCount"),
        description: values.text("cache.description"),
        record_type: values.text("cache.recordType"),
        image_refs: values.get("cache.imageRefs").unwrap_or_default(),
    };
    // Read only to see whether they decode.
    let _: Option<i64> = values.get("cache.cachePolicy");
    let _: Option<Vec<String>> = values.get("cache.layer.urls");
    let _: Option<String> = values.get("cache.layerType");
    record
}

fn index(
    root: BucketRef<'_>,
    at: &Entry<'_>,
    indexed: usize,
    faults: &mut Faults,
) -> Option<BTreeSet<(String, String)>> {
    let Some(index) = database::bucket(root, "_index", at, faults) else {
        if indexed > 0 && matches!(root.item(b"_index"), Ok(None)) {
            let detail = format!("{indexed} values of records name an index");
            faults.add(FaultKind::BucketMissing, at.child(b"_index").place(), detail);
        }
        return None;
    };
    let at = at.child(b"_index");
    let mut found = BTreeSet::new();
    for (key, _) in database::values(index, &at, faults) {
        let at = at.child(key);
        let Some(text) = database::utf8(key, &at, faults) else { continue };
        match text.rsplit_once("::") {
            Some((name, id)) => {
                found.insert((name.to_owned(), id.to_owned()));
            }
            None => faults.add(FaultKind::EntryInvalid, at.place(), "no :: before a record id"),
        }
    }
    Some(found)
}
