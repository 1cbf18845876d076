//! Opening a bolt file of a root, and walking its buckets with a fault for each surprise.

use std::path::Path;

use super::fault::{FaultKind as Kind, Faults, Place, shown, text};
use super::files::{self, Tree};
use crate::bolt::{self, BucketRef, Database, FaultKind, Item};

/// More faults of one file than this say nothing new.
const MAX_FAULTS: usize = 100;

/// An entry of a database, for faults: written out only when there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    database: &'a Path,
    /// The bucket that it is in, and its key; `None`: the database's root.
    within: Option<(&'a Entry<'a>, &'a [u8])>,
}

impl<'a> Entry<'a> {
    pub(super) fn new(database: &'a Path) -> Self {
        Self { database, within: None }
    }

    pub(super) fn child(&'a self, key: &'a [u8]) -> Self {
        Self { database: self.database, within: Some((self, key)) }
    }

    pub(super) fn place(&self) -> Place {
        let mut path = Vec::new();
        let mut at = self.within;
        while let Some((above, key)) = at {
            path.push(text(key));
            at = above.within;
        }
        path.reverse();
        Place::Entry { database: self.database.display().to_string(), path }
    }
}

/// Reads and checks the database at `path`, relative to the root. `None` where what it holds cannot be
/// trusted; faults then say why.
pub(crate) fn open(tree: &Tree, path: &Path, faults: &mut Faults) -> Option<Database> {
    let bytes = match tree.read(path, files::MAX_DATABASE) {
        Ok(bytes) => bytes,
        Err(fault) => {
            faults.add(fault.kind, Place::file(path), fault.detail);
            return None;
        }
    };
    let database = match Database::from_bytes(bytes) {
        Ok(database) => database,
        Err(error) => {
            faults.add(Kind::Database, Place::file(path), error.to_string());
            return None;
        }
    };
    let found = database.check();
    let mut sound = true;
    for fault in found.iter().take(MAX_FAULTS) {
        let kind = match fault.kind {
            FaultKind::Meta(_) => Kind::MetaPage,
            FaultKind::FreeTwice
            | FaultKind::FreeInUse
            | FaultKind::Leaked
            | FaultKind::WrongType { expected: "freelist", .. } => Kind::Freelist,
            _ => Kind::Page,
        };
        sound &= kind != Kind::Page;
        let place = Place::Page { database: path.display().to_string(), page: fault.page };
        faults.add(kind, place, fault.to_string());
    }
    if found.len() > MAX_FAULTS {
        let detail = format!("{} faults in all, {MAX_FAULTS} shown", found.len());
        faults.add(Kind::Page, Place::file(path), detail);
        sound = false;
    }
    sound.then_some(database)
}

/// What `open` let through can be walked; should a page fail all the same, it is a fault.
fn page_fault(at: &Entry<'_>, error: &bolt::Error, faults: &mut Faults) {
    faults.add(Kind::Page, at.place(), error.to_string());
}

fn wrong_type(at: &Entry<'_>, wanted: &str, faults: &mut Faults) {
    let found = if wanted == "bucket" { "value" } else { "bucket" };
    faults.add(Kind::EntryType, at.place(), format!("a {found} where a {wanted} is needed"));
}

/// The buckets in `bucket`; values among them are faults.
pub(super) fn buckets<'db>(
    bucket: BucketRef<'db>,
    at: &Entry<'_>,
    faults: &mut Faults,
) -> Vec<(&'db [u8], BucketRef<'db>)> {
    let mut found = Vec::new();
    for item in &bucket {
        match item {
            Ok((key, Item::Bucket(bucket))) => found.push((key, bucket)),
            Ok((key, Item::Value(_))) => wrong_type(&at.child(key), "bucket", faults),
            Err(error) => page_fault(at, &error, faults),
        }
    }
    found
}

/// The values in `bucket`; buckets among them are faults.
pub(super) fn values<'db>(
    bucket: BucketRef<'db>,
    at: &Entry<'_>,
    faults: &mut Faults,
) -> Vec<(&'db [u8], &'db [u8])> {
    let mut found = Vec::new();
    for item in &bucket {
        match item {
            Ok((key, Item::Value(value))) => found.push((key, value)),
            Ok((key, Item::Bucket(_))) => wrong_type(&at.child(key), "value", faults),
            Err(error) => page_fault(at, &error, faults),
        }
    }
    found
}

/// The bucket `key` of `bucket`; `None` where there is none, a fault where it is a value.
pub(super) fn bucket<'db>(
    bucket: BucketRef<'db>,
    key: &str,
    at: &Entry<'_>,
    faults: &mut Faults,
) -> Option<BucketRef<'db>> {
    match bucket.item(key.as_bytes()) {
        Ok(Some(Item::Bucket(bucket))) => Some(bucket),
        Ok(Some(Item::Value(_))) => {
            wrong_type(&at.child(key.as_bytes()), "bucket", faults);
            None
        }
        Ok(None) => None,
        Err(error) => {
            page_fault(at, &error, faults);
            None
        }
    }
}

/// Like [`bucket`], for one that a daemon always makes.
pub(super) fn needed<'db>(
    parent: BucketRef<'db>,
    key: &str,
    at: &Entry<'_>,
    faults: &mut Faults,
) -> Option<BucketRef<'db>> {
    let found = bucket(parent, key, at, faults);
    if found.is_none() && matches!(parent.item(key.as_bytes()), Ok(None)) {
        let detail = "a daemon always makes this bucket".to_owned();
        faults.add(Kind::BucketMissing, at.child(key.as_bytes()).place(), detail);
    }
    found
}

/// The value `key` of `bucket`; `None` where there is none, a fault where it is a bucket.
pub(super) fn value<'db>(
    bucket: BucketRef<'db>,
    key: &str,
    at: &Entry<'_>,
    faults: &mut Faults,
) -> Option<&'db [u8]> {
    match bucket.item(key.as_bytes()) {
        Ok(Some(Item::Value(value))) => Some(value),
        Ok(Some(Item::Bucket(_))) => {
            wrong_type(&at.child(key.as_bytes()), "value", faults);
            None
        }
        Ok(None) => None,
        Err(error) => {
            page_fault(at, &error, faults);
            None
        }
    }
}

/// A value that must be there and decode; a fault otherwise.
pub(super) fn decoded<'db, T>(
    bucket: BucketRef<'db>,
    key: &str,
    what: &str,
    decode: impl FnOnce(&'db [u8]) -> Option<T>,
    at: &Entry<'_>,
    faults: &mut Faults,
) -> Option<T> {
    let bytes = self::value(bucket, key, at, faults);
    let at = at.child(key.as_bytes());
    let Some(bytes) = bytes else {
        if matches!(bucket.item(key.as_bytes()), Ok(None)) {
            faults.add(Kind::EntryInvalid, at.place(), format!("missing; {what} is needed"));
        }
        return None;
    };
    let value = decode(bytes);
    if value.is_none() {
        faults.add(Kind::EntryInvalid, at.place(), format!("{}: not {what}", shown(bytes)));
    }
    value
}

/// Text that is UTF-8; a fault otherwise.
pub(super) fn utf8<'db>(bytes: &'db [u8], at: &Entry<'_>, faults: &mut Faults) -> Option<&'db str> {
    std::str::from_utf8(bytes).map_err(|_| faults.add(Kind::EntryInvalid, at.place(), "not UTF-8")).ok()
}
