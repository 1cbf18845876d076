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

use super::database::{self, Place, shown};
use super::decode;
use super::report::{FindingKind, Findings, Subject, text};
use crate::bolt::{BucketRef, Database};
use crate::digest::{BlobChainId, ChainId, DiffId, Digest};

/// A cache record, as far as verification needs it. Values that do not decode are findings and read as
/// absent, as a daemon reads them.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) blob: Option<Digest>,
    pub(super) blob_size: Option<i64>,
    pub(super) media_type: Option<String>,
    pub(super) diff_id: Option<DiffId>,
    pub(super) layer_identity: Option<DiffId>,
    pub(super) chain_id: Option<ChainId>,
    pub(super) blob_chain_id: Option<BlobChainId>,
    pub(super) snapshot: String,
    pub(super) parent: Option<String>,
    pub(super) merge_parents: Vec<String>,
    pub(super) diff_parents: Vec<String>,
    pub(super) equal_mutable: Option<String>,
    pub(super) committed: bool,
    pub(super) blob_only: bool,
    pub(super) deleted: bool,
    pub(super) created_at: Option<i64>,
    /// Bytes of the snapshot and the blobs; below 0, or none: not counted yet.
    pub(super) size: Option<i64>,
    /// Nanoseconds since 1970.
    pub(super) last_used_at: Option<i64>,
    pub(super) usage_count: Option<i64>,
    /// None: `regular`.
    pub(super) record_type: Option<String>,
    pub(super) description: Option<String>,
}

impl Records {
    /// Whether a record that is whole has its data in the snapshot `key`.
    pub(super) fn is_committed_snapshot(&self, key: &str) -> bool {
        let owns =
            |record: &Record| record.committed && record.equal_mutable.is_none() && record.snapshot == key;
        self.0.values().any(owns)
    }
}

impl Record {
    /// Every record that this one stands on.
    pub(super) fn parents(&self) -> impl Iterator<Item = &str> {
        let single = self.parent.iter();
        single.chain(&self.merge_parents).chain(&self.diff_parents).map(String::as_str)
    }

    /// A merge or a diff of others; its snapshot is made when it is needed.
    pub(super) fn is_composed(&self) -> bool {
        self.parent.is_none() && !(self.merge_parents.is_empty() && self.diff_parents.is_empty())
    }

    /// Not whole yet: a daemon writes parents and the time together, after the record's first values.
    pub(super) fn is_unfinished(&self) -> bool {
        self.created_at.is_none() && self.is_mutable()
    }

    /// Still being written to: a cache mount, a local source.
    pub(super) fn is_mutable(&self) -> bool {
        !self.committed && !self.is_composed()
    }
}

/// All of `metadata_v2.db`.
#[derive(Debug, Default)]
pub(super) struct Records(pub(super) BTreeMap<String, Record>);

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
    place: Place,
    findings: &'f mut Findings,
}

impl Values<'_, '_> {
    fn get<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.found.remove(key)?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                let place = self.place.child(key.as_bytes());
                self.findings.add(FindingKind::EntryInvalid, place.subject(), error.to_string());
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
                let place = self.place.child(key.as_bytes());
                self.findings.add(FindingKind::EntryInvalid, place.subject(), error.to_string());
                None
            }
        }
    }
}

/// Decodes all records, and checks each database entry and the indexes.
pub(super) fn read(db: &Database, path: &Path, findings: &mut Findings) -> Records {
    let place = Place::new(path);
    let root = db.root();
    let mut records = Records::default();
    let mut indexed = BTreeSet::new();
    // A daemon makes each bucket when it first writes into it; one that has built nothing has none.
    if let Some(main) = database::bucket(root, "_main", &place, findings) {
        let place = place.child(b"_main");
        for (id, bucket) in database::buckets(main, &place, findings) {
            let place = place.child(id);
            let Some(id) = database::utf8(id, &place, findings) else { continue };
            if !decode::is_identity(id) {
                let detail = "a record id is 25 characters of [a-z0-9]";
                findings.add(FindingKind::EntryInvalid, place.subject(), detail);
            }
            records.0.insert(id.to_owned(), record(id, bucket, place, &mut indexed, findings));
        }
    }
    index(root, &place, &records, indexed, findings);
    external(root, &place, &records, findings);
    records
}

fn record(
    id: &str,
    bucket: BucketRef<'_>,
    place: Place,
    indexed: &mut BTreeSet<(String, String)>,
    findings: &mut Findings,
) -> Record {
    let mut values = BTreeMap::new();
    for (key, value) in database::values(bucket, &place, findings) {
        let place = place.child(key);
        let Some(key) = database::utf8(key, &place, findings) else { continue };
        // What was unset stands there empty.
        if value.is_empty() {
            continue;
        }
        match serde_json::from_slice::<Wrapped>(value) {
            Ok(wrapped) => {
                if !wrapped.index.is_empty() {
                    indexed.insert((wrapped.index, id.to_owned()));
                }
                values.insert(key, wrapped.value);
            }
            Err(error) => {
                let detail = format!("{}: {error}", shown(value));
                findings.add(FindingKind::EntryInvalid, place.subject(), detail);
            }
        }
    }
    let mut values = Values { found: values, place, findings };
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
        size: values.get("snapshot.size"),
        last_used_at: values.get("cache.lastUsedAt"),
        usage_count: values.get("cache.usageCount"),
        record_type: values.text("cache.recordType"),
        description: values.text("cache.description"),
    };
    // Read only to see whether they decode.
    let _: Option<i64> = values.get("cache.cachePolicy");
    let _: Option<Vec<String>> = values.get("cache.imageRefs");
    let _: Option<Vec<String>> = values.get("cache.layer.urls");
    let _: Option<String> = values.get("cache.layerType");
    record
}

fn index(
    root: BucketRef<'_>,
    place: &Place,
    records: &Records,
    mut indexed: BTreeSet<(String, String)>,
    findings: &mut Findings,
) {
    let Some(index) = database::bucket(root, "_index", place, findings) else {
        if !indexed.is_empty() && matches!(root.item(b"_index"), Ok(None)) {
            let detail = format!("{} values of records name an index", indexed.len());
            findings.add(FindingKind::BucketMissing, place.child(b"_index").subject(), detail);
        }
        return;
    };
    let place = place.child(b"_index");
    for (key, _) in database::values(index, &place, findings) {
        let place = place.child(key);
        let Some(text) = database::utf8(key, &place, findings) else { continue };
        let Some((name, id)) = text.rsplit_once("::") else {
            findings.add(FindingKind::EntryInvalid, place.subject(), "no :: before a record id");
            continue;
        };
        if indexed.remove(&(name.to_owned(), id.to_owned())) {
            continue;
        }
        let detail = if records.0.contains_key(id) {
            format!("record {id} has no value with this index")
        } else {
            format!("there is no record {id}")
        };
        findings.add(FindingKind::IndexOrphaned, place.subject(), detail);
    }
    for (name, id) in indexed {
        let detail = format!("not in the index under {name:?}");
        findings.add(FindingKind::IndexMissing, Subject::Record { id }, detail);
    }
}

fn external(root: BucketRef<'_>, place: &Place, records: &Records, findings: &mut Findings) {
    // A daemon makes this bucket when it writes the first content hash.
    let Some(external) = database::bucket(root, "_external", place, findings) else { return };
    let place = place.child(b"_external");
    for (id, _) in database::buckets(external, &place, findings) {
        if !std::str::from_utf8(id).is_ok_and(|id| records.0.contains_key(id)) {
            let detail = format!("there is no record {}", text(id));
            findings.add(FindingKind::ExternalOrphaned, place.child(id).subject(), detail);
        }
    }
}
