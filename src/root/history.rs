//! `history.db`: what a daemon keeps of its builds, beside the cache.
//!
//! ```text
//! _records/<build id> = protobuf BuildHistoryRecord
//!   1 string                 the build's id
//!   3 map<string, string>    options of the frontend: build-arg:<NAME>, context, filename, …
//!   4, 9                     exporters and what they answered: image names, digests
//!   8, 10, 11, 13, 18        digests of log, provenance, trace and error, blobs of the namespace buildkit_history
//! _version/…
//! ```
//!
//! Bolt leaves the bytes of deleted records where they were until the page is used again.
//!
//! Mirrors `api/services/control/control.proto` and `solver/llbsolver/history` of `BuildKit`.

use std::collections::BTreeSet;
use std::path::Path;

use super::database::{self, Entry};
use super::fault::Faults;
use super::{HISTORY, decode};
use crate::bolt::Database;

const BUILD_ARGUMENT: &str = "build-arg:";
const REF: u64 = 1;
const FRONTEND_ATTRS: u64 = 3;

/// What a history tells of builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct History {
    /// Builds that are in it.
    pub builds: usize,
    /// Names of their build arguments.
    pub arguments: BTreeSet<String>,
    /// Builds that were deleted from it, and whose bytes are still in the file.
    pub deleted: usize,
}

/// Reads the history in `db`, the bolt file with these `bytes`.
pub(super) fn read(db: &Database, bytes: &[u8], faults: &mut Faults) -> History {
    let mut history = History::default();
    let at = Entry::new(Path::new(HISTORY));
    let mut known = BTreeSet::new();
    // A daemon makes it with its first build.
    if let Some(records) = database::bucket(db.root(), "_records", &at, faults) {
        let at = at.child(b"_records");
        for (id, record) in database::values(records, &at, faults) {
            history.builds += 1;
            known.insert(id.to_vec());
            for (number, field) in fields(record) {
                let attribute = (number == FRONTEND_ATTRS).then(|| fields(field).find(|(key, _)| *key == 1));
                let name = attribute.flatten().and_then(|(_, key)| std::str::from_utf8(key).ok());
                history
                    .arguments
                    .extend(name.and_then(|n| n.strip_prefix(BUILD_ARGUMENT)).map(str::to_owned));
            }
        }
    }
    let seen: BTreeSet<&[u8]> = ids_of_records(bytes).filter(|id| !known.contains(*id)).collect();
    history.deleted = seen.len();
    history
}

/// The ids that the bytes of records begin with, wherever in a file they stand.
fn ids_of_records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const ID: usize = 25;
    // The field's number and type, and how long it is.
    let head = [u8::try_from(REF << 3 | LENGTH).unwrap_or_default(), 25];
    bytes.windows(head.len() + ID).filter_map(move |window| {
        let id = window.strip_prefix(&head)?;
        decode::is_identity(std::str::from_utf8(id).ok()?).then_some(id)
    })
}

/// The wire type of what has its length before it.
const LENGTH: u64 = 2;

/// The fields of a protobuf message that have a length: texts, bytes, messages. Ends at what does not decode.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let (tag, rest) = decode::uvarint_prefix(message)?;
            let (length, rest) = match tag & 7 {
                0 => (0, decode::uvarint_prefix(rest)?.1),
                1 => (8, rest),
                LENGTH => decode::uvarint_prefix(rest)?,
                5 => (4, rest),
                _ => return None,
            };
            let (field, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            message = rest;
            if tag & 7 == LENGTH {
                return Some((tag >> 3, field));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message, and the fields found in it.
    type Case = (&'static [u8], &'static [(u64, &'static [u8])]);

    #[test]
    fn reads_fields_as_far_as_they_go() {
        let cases: [Case; 7] = [
            (b"", &[]),
            (b"\x0a\x02ab\x1a\x00", &[(1, b"ab"), (3, b"")]),
            // A number, eight bytes, four bytes.
            (b"\x08\x96\x01\x11abcdefgh\x1dabcd\x12\x01x", &[(2, b"x")]),
            (b"\x0a\x02ab\x12\x05ab", &[(1, b"ab")]),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x", &[]),
            (b"\x0b\x0a\x01x", &[]),
            (b"\x80", &[]),
        ];
        for (message, expected) in cases {
            assert_eq!(fields(message).collect::<Vec<_>>(), expected, "{message:x?}");
        }
    }

    #[test]
    fn finds_ids_in_free_pages() {
        let id = b"abcdefghijklmnopqrstuvwx1";
        let bytes = [b"..\x0a\x19".as_slice(), id, b"\x12\x0a..\x0a\x19ABC"].concat();
        assert_eq!(ids_of_records(&bytes).collect::<Vec<_>>(), [id]);
        assert_eq!(ids_of_records(b"\x0a\x19").count(), 0);
    }
}
