//! Opening a bolt file of a root, and walking its buckets with a finding for each surprise.

use std::path::Path;

use super::files::{self, Tree};
use super::report::{FindingKind, Findings, Subject, text};
use crate::bolt::{self, BucketRef, Database, FaultKind, Item};

/// More faults of one file than this say nothing new.
const MAX_FAULTS: usize = 100;

/// A place in a database, for findings.
#[derive(Debug, Clone)]
pub(super) struct Place {
    database: String,
    path: Vec<String>,
}

impl Place {
    pub(super) fn new(database: &Path) -> Self {
        Self { database: database.display().to_string(), path: Vec::new() }
    }

    pub(super) fn child(&self, key: &[u8]) -> Self {
        let mut child = self.clone();
        child.path.push(text(key));
        child
    }

    pub(super) fn subject(&self) -> Subject {
        Subject::Entry { database: self.database.clone(), path: self.path.clone() }
    }
}

/// Reads and checks the database at `path`, relative to the root. `None` where what it holds cannot be
/// judged; findings then say why.
pub(super) fn open(tree: &Tree, path: &Path, findings: &mut Findings) -> Option<Database> {
    let bytes = match tree.read(path, files::MAX_DATABASE) {
        Ok(bytes) => bytes,
        Err(fault) => {
            findings.add(fault.kind, files::subject(path), fault.detail);
            return None;
        }
    };
    let database = match Database::from_bytes(bytes) {
        Ok(database) => database,
        Err(error) => {
            findings.add(FindingKind::DatabaseUnreadable, files::subject(path), error.to_string());
            return None;
        }
    };
    let faults = database.check();
    let mut sound = true;
    for fault in faults.iter().take(MAX_FAULTS) {
        let kind = match fault.kind {
            FaultKind::Meta(_) => FindingKind::DatabaseMetaPage,
            FaultKind::FreeTwice
            | FaultKind::FreeInUse
            | FaultKind::Leaked
            | FaultKind::WrongType { expected: "freelist", .. } => FindingKind::DatabaseFreelist,
            _ => FindingKind::DatabasePage,
        };
        sound &= kind != FindingKind::DatabasePage;
        let subject = Subject::Page { database: path.display().to_string(), page: fault.page };
        findings.add(kind, subject, fault.to_string());
    }
    if faults.len() > MAX_FAULTS {
        let detail = format!("{} faults in all, {MAX_FAULTS} shown", faults.len());
        findings.add(FindingKind::DatabasePage, files::subject(path), detail);
        sound = false;
    }
    sound.then_some(database)
}

/// What `open` let through can be walked; should a page fail all the same, it is a finding.
fn page_fault(place: &Place, error: &bolt::Error, findings: &mut Findings) {
    findings.add(FindingKind::DatabasePage, place.subject(), error.to_string());
}

fn wrong_type(place: &Place, wanted: &str, findings: &mut Findings) {
    let found = if wanted == "bucket" { "value" } else { "bucket" };
    findings.add(FindingKind::EntryType, place.subject(), format!("a {found} where a {wanted} is needed"));
}

/// The buckets in `bucket`; values among them are findings.
pub(super) fn buckets<'db>(
    bucket: BucketRef<'db>,
    place: &Place,
    findings: &mut Findings,
) -> Vec<(&'db [u8], BucketRef<'db>)> {
    let mut found = Vec::new();
    for item in &bucket {
        match item {
            Ok((key, Item::Bucket(bucket))) => found.push((key, bucket)),
            Ok((key, Item::Value(_))) => wrong_type(&place.child(key), "bucket", findings),
            Err(error) => page_fault(place, &error, findings),
        }
    }
    found
}

/// The values in `bucket`; buckets among them are findings.
pub(super) fn values<'db>(
    bucket: BucketRef<'db>,
    place: &Place,
    findings: &mut Findings,
) -> Vec<(&'db [u8], &'db [u8])> {
    let mut found = Vec::new();
    for item in &bucket {
        match item {
            Ok((key, Item::Value(value))) => found.push((key, value)),
            Ok((key, Item::Bucket(_))) => wrong_type(&place.child(key), "value", findings),
            Err(error) => page_fault(place, &error, findings),
        }
    }
    found
}

/// The bucket `key` of `bucket`; `None` where there is none, a finding where it is a value.
pub(super) fn bucket<'db>(
    bucket: BucketRef<'db>,
    key: &str,
    place: &Place,
    findings: &mut Findings,
) -> Option<BucketRef<'db>> {
    match bucket.item(key.as_bytes()) {
        Ok(Some(Item::Bucket(bucket))) => Some(bucket),
        Ok(Some(Item::Value(_))) => {
            wrong_type(&place.child(key.as_bytes()), "bucket", findings);
            None
        }
        Ok(None) => None,
        Err(error) => {
            page_fault(place, &error, findings);
            None
        }
    }
}

/// Like [`bucket`], for one that a daemon always makes.
pub(super) fn needed<'db>(
    parent: BucketRef<'db>,
    key: &str,
    place: &Place,
    findings: &mut Findings,
) -> Option<BucketRef<'db>> {
    let found = bucket(parent, key, place, findings);
    if found.is_none() && matches!(parent.item(key.as_bytes()), Ok(None)) {
        let detail = "a daemon always makes this bucket".to_owned();
        findings.add(FindingKind::BucketMissing, place.child(key.as_bytes()).subject(), detail);
    }
    found
}

/// The value `key` of `bucket`; `None` where there is none, a finding where it is a bucket.
pub(super) fn value<'db>(
    bucket: BucketRef<'db>,
    key: &str,
    place: &Place,
    findings: &mut Findings,
) -> Option<&'db [u8]> {
    match bucket.item(key.as_bytes()) {
        Ok(Some(Item::Value(value))) => Some(value),
        Ok(Some(Item::Bucket(_))) => {
            wrong_type(&place.child(key.as_bytes()), "value", findings);
            None
        }
        Ok(None) => None,
        Err(error) => {
            page_fault(place, &error, findings);
            None
        }
    }
}

/// A value that must be there and decode; a finding otherwise.
pub(super) fn decoded<'db, T>(
    bucket: BucketRef<'db>,
    key: &str,
    what: &str,
    decode: impl FnOnce(&'db [u8]) -> Option<T>,
    place: &Place,
    findings: &mut Findings,
) -> Option<T> {
    let bytes = self::value(bucket, key, place, findings);
    let place = place.child(key.as_bytes());
    let Some(bytes) = bytes else {
        if matches!(bucket.item(key.as_bytes()), Ok(None)) {
            findings.add(FindingKind::EntryInvalid, place.subject(), format!("missing; {what} is needed"));
        }
        return None;
    };
    let value = decode(bytes);
    if value.is_none() {
        findings.add(FindingKind::EntryInvalid, place.subject(), format!("{}: not {what}", shown(bytes)));
    }
    value
}

/// Text that is UTF-8; a finding otherwise.
pub(super) fn utf8<'db>(bytes: &'db [u8], place: &Place, findings: &mut Findings) -> Option<&'db str> {
    std::str::from_utf8(bytes)
        .map_err(|_| findings.add(FindingKind::EntryInvalid, place.subject(), "not UTF-8"))
        .ok()
}

/// The start of a value, for messages.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MAX: usize = 120;
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => {
            let short: String = text.chars().take(MAX).collect();
            format!("{short:?}")
        }
        _ => {
            let mut hex = String::from("0x");
            for byte in bytes.iter().take(MAX / 2) {
                hex.extend(
                    [byte >> 4, byte & 15].map(|n| char::from_digit(n.into(), 16).unwrap_or_default()),
                );
            }
            hex
        }
    }
}
