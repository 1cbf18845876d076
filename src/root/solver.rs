//! `cache.db`: the solver's keys, links and results.
//!
//! ```text
//! _result/<id>/<result> = {"CreatedAt":…,"ID":"<result>"}    result: <worker id>::<record id>
//! _byresult/<result>/<id> = ""
//! _links/<id>/<link>@<target id> = ""      link: {"Input":n,"Output":n,"Digest":"…","Selector":"…"}
//! _backlinks/<target id>/<id> = ""         in this order, zero and empty ones left out
//! ```
//!
//! Mirrors `solver/bboltcachestorage/storage.go` of `BuildKit`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;

use super::database::{self, Entry};
use super::fault::{FaultKind, Faults, shown};
use crate::bolt::{BucketRef, Database};

/// What a link says: an input of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// Which input.
    pub input: i64,
    /// Which output.
    pub output: i64,
    /// The operation digest; merges and diffs of old releases have their JSON there.
    pub digest: String,
    /// What the operation reads of the input; empty: its result as such.
    pub selector: String,
}

impl Operation {
    /// Reads the JSON of a link.
    pub(crate) fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let LinkJson { input, output, digest, selector } = serde_json::from_str(json)?;
        Ok(Self { input, output, digest: digest.into(), selector: selector.into() })
    }
}

/// A link from one key to another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// The key that it leads to.
    pub target: String,
    /// Its JSON, as it stands there: a lookup compares it byte by byte.
    pub written: String,
    /// What that says; `None` where it does not decode.
    pub operation: Option<Operation>,
}

/// A result of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyResult {
    /// What it stands under, and what `_byresult` calls it.
    pub name: String,
    /// Worker id and record id, of which the name is made; `None` where it is not.
    pub of: Option<(String, String)>,
    /// The name that its value gives it; `None` where that does not decode.
    pub id: Option<String>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
}

/// All of `cache.db`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Solver {
    /// The keys, by id, each with the links that lead from it.
    pub keys: BTreeMap<String, Vec<Link>>,
    /// By the key that links lead to: the keys that they come from.
    pub backlinks: BTreeMap<String, BTreeSet<String>>,
    /// By key.
    pub results: BTreeMap<String, Vec<KeyResult>>,
    /// By the name of a result: the keys that have it.
    pub by_result: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkJson<'a> {
    #[serde(rename = "Input", default)]
    input: i64,
    #[serde(rename = "Output", default)]
    output: i64,
    #[serde(rename = "Digest", default, borrow)]
    digest: Cow<'a, str>,
    #[serde(rename = "Selector", default, borrow)]
    selector: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ResultJson {
    #[serde(rename = "CreatedAt", default)]
    created_at: String,
    #[serde(rename = "ID", default)]
    id: String,
}

/// Decodes the database.
pub(super) fn read(db: &Database, path: &Path, faults: &mut Faults) -> Solver {
    let at = Entry::new(path);
    let root = db.root();
    Solver {
        keys: each(root, "_links", &at, faults, links),
        backlinks: each(root, "_backlinks", &at, faults, names),
        results: each(root, "_result", &at, faults, results),
        by_result: each(root, "_byresult", &at, faults, names),
    }
}

/// What `read` makes of each bucket below a bucket of the root, by name.
fn each<T>(
    root: BucketRef<'_>,
    name: &str,
    at: &Entry<'_>,
    faults: &mut Faults,
    read: impl Fn(BucketRef<'_>, &Entry<'_>, &mut Faults) -> T,
) -> BTreeMap<String, T> {
    let Some(bucket) = database::needed(root, name, at, faults) else { return BTreeMap::new() };
    let at = at.child(name.as_bytes());
    let mut found = BTreeMap::new();
    for (id, bucket) in database::buckets(bucket, &at, faults) {
        let at = at.child(id);
        if let Some(id) = database::utf8(id, &at, faults) {
            found.insert(id.to_owned(), read(bucket, &at, faults));
        }
    }
    found
}

fn names(bucket: BucketRef<'_>, at: &Entry<'_>, faults: &mut Faults) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, _) in database::values(bucket, at, faults) {
        names.extend(database::utf8(name, &at.child(name), faults).map(str::to_owned));
    }
    names
}

fn links(bucket: BucketRef<'_>, at: &Entry<'_>, faults: &mut Faults) -> Vec<Link> {
    let mut links = Vec::new();
    for (entry, _) in database::values(bucket, at, faults) {
        let at = at.child(entry);
        let Some(entry) = database::utf8(entry, &at, faults) else { continue };
        let Some((json, target)) = entry.rsplit_once('@') else {
            faults.add(FaultKind::EntryInvalid, at.place(), "no @ before a target");
            continue;
        };
        let operation = Operation::parse(json)
            .map_err(|error| faults.add(FaultKind::EntryInvalid, at.place(), error.to_string()))
            .ok();
        links.push(Link { target: target.to_owned(), written: json.to_owned(), operation });
    }
    links
}

fn results(bucket: BucketRef<'_>, at: &Entry<'_>, faults: &mut Faults) -> Vec<KeyResult> {
    let mut results = Vec::new();
    for (name, value) in database::values(bucket, at, faults) {
        let at = at.child(name);
        let Some(name) = database::utf8(name, &at, faults) else { continue };
        let mut invalid = |detail: String| faults.add(FaultKind::EntryInvalid, at.place(), detail);
        let mut result = KeyResult { name: name.to_owned(), of: None, id: None, created_at: None };
        match serde_json::from_slice::<ResultJson>(value) {
            Ok(value) => {
                match value.created_at.parse() {
                    Ok(time) => result.created_at = Some(time),
                    Err(error) => invalid(format!("CreatedAt {:?}: {error}", value.created_at)),
                }
                result.id = Some(value.id);
            }
            Err(error) => invalid(format!("{}: {error}", shown(value))),
        }
        match name.split_once("::") {
            Some((worker, record)) => result.of = Some((worker.to_owned(), record.to_owned())),
            None => invalid("no :: between a worker id and a record id".to_owned()),
        }
        results.push(result);
    }
    results
}
