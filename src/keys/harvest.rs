//! Candidates from the solver's own databases, of any builder that ran the build.
//!
//! ```text
//! cache.db        _links/<key id>/<link JSON>@<key id>    link JSON {"Input", "Output", "Digest", "Selector"}
//! cache-debug.db  byhash/<digest>                         frames {kind u32 | length u32 | bytes}, big-endian
//!                                                         kind 1: type, such as string; kind 2: what was hashed
//! ```
//!
//! A link has the operation digest as it is; a debug database has the text `<operation digest>@<output>`
//! under the digest of each record, and the operation's JSON under the operation digest. Keys without
//! inputs have no link; they need none.
//!
//! A copy of a live builder's file may be torn. Then what the tree still leads to is read, and the rest
//! of the file is searched for what looks like a link: a candidate less or a wrong one does no harm.
//!
//! Mirrors `solver/bboltcachestorage/storage.go` and `util/cachedigest/{db,frame}.go` of v0.34.2.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Candidates, Error};
use crate::bolt::{self, BucketRef, Database, Item};
use crate::digest::OpDigest;

/// The databases of a root that are read.
const FILES: [&str; 2] = ["cache.db", "cache-debug.db"];
/// The bucket of links in `cache.db`.
const LINKS: &[u8] = b"_links";
/// The bucket of a debug database.
const BY_HASH: &[u8] = b"byhash";
/// Kind of a frame that holds what was hashed.
const DATA_FRAME: u32 = 2;
/// The longest file that is read, in bytes; it is read whole. A builder of many years has some hundred MiB.
const MAX_BYTES: u64 = 4 << 30;
/// The first bytes of a bolt meta page's content.
const MAGIC: [u8; 4] = 0xed0c_daed_u32.to_le_bytes();

/// The operation digests in a `cache.db` or `cache-debug.db`, or in both of a builder's root.
///
/// # Errors
///
/// [`Error::Read`] where the path cannot be read, [`Error::NoDatabase`] for a directory without
/// either file, [`Error::NotBolt`] and [`Error::NotACacheDb`] where a file is something else. Damage
/// is no error as long as anything can be read.
pub fn candidates(path: &Path) -> Result<Candidates, Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if !metadata.is_dir() {
        if !metadata.is_file() {
            // A device or a pipe may have no end.
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(Error::Read { path: path.to_owned(), source });
        }
        return of_file(path);
    }
    let files: Vec<PathBuf> = FILES.iter().map(|name| path.join(name)).filter(|file| file.exists()).collect();
    let mut candidates = Candidates::new();
    let mut error = None;
    let mut read = false;
    for file in &files {
        match of_file(file) {
            Ok(found) => {
                read = true;
                candidates.merge(found);
            }
            Err(found) => error = error.or(Some(found)),
        }
    }
    match error {
        None if files.is_empty() => Err(Error::NoDatabase { path: path.to_owned() }),
        Some(error) if !read => Err(error),
        _ => Ok(candidates),
    }
}

/// What a copy of a database gave.
#[derive(Debug, Clone)]
pub struct Copy {
    /// What could be read.
    pub candidates: Candidates,
    /// Whether some of it could not: a writer was at it while it was copied, or it is damaged.
    pub torn: bool,
}

fn of_file(path: &Path) -> Result<Candidates, Error> {
    of_copy(path).map(|copy| copy.candidates)
}

/// The operation digests in one file, which may have been written to while it was copied.
///
/// # Errors
///
/// As [`candidates`].
pub fn of_copy(path: &Path) -> Result<Copy, Error> {
    let read = || whole(path).map_err(|source| Error::Read { path: path.to_owned(), source });
    let bytes = read()?;
    let is_bolt = is_bolt(&bytes);
    let not_bolt = |source| Error::NotBolt { path: path.to_owned(), source };
    let mut candidates = Candidates::new();
    let outcome = match Database::from_bytes(bytes) {
        Ok(database) => of_database(&database, &mut candidates),
        Err(error) if is_bolt => Err(error),
        Err(error) => return Err(not_bolt(error)),
    };
    match outcome {
        Ok(true) => Ok(Copy { candidates, torn: false }),
        Ok(false) => Err(Error::NotACacheDb { path: path.to_owned() }),
        Err(error) => {
            search(&read()?, &mut candidates);
            if candidates.is_empty() { Err(not_bolt(error)) } else { Ok(Copy { candidates, torn: true }) }
        }
    }
}

/// The bytes of a file, unless they are too many.
fn whole(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_BYTES {
        let text = format!("it has {size} bytes, and no more than {MAX_BYTES} are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX))?;
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether either meta page begins as those of a bolt file do, valid or not.
fn is_bolt(bytes: &[u8]) -> bool {
    let page_sizes = (10..=16).map(|shift| 1 << shift);
    std::iter::once(0).chain(page_sizes).any(|page: usize| bytes.get(page + 16..page + 20) == Some(&MAGIC))
}

/// Reads what the tree leads to; false where it holds neither kind of bucket. What was found before
/// an error stays.
fn of_database(database: &Database, candidates: &mut Candidates) -> Result<bool, bolt::Error> {
    let links = database.root().bucket(LINKS)?;
    let by_hash = database.root().bucket(BY_HASH)?;
    let any = links.is_some() || by_hash.is_some();
    let of_links = links.map_or(Ok(()), |bucket| of_links(bucket, candidates));
    let of_hashes = by_hash.map_or(Ok(()), |bucket| of_hashes(bucket, candidates));
    of_links.and(of_hashes).map(|()| any)
}

fn of_links(links: BucketRef<'_>, candidates: &mut Candidates) -> Result<(), bolt::Error> {
    let mut outcome = Ok(());
    for entry in &links {
        // A damaged bucket of one key does not hide those after it.
        if let (_, Item::Bucket(of_key)) = entry? {
            for link in &of_key {
                match link {
                    Ok((link, _)) => candidates_of_link(link, candidates),
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
            }
        }
    }
    outcome
}

fn of_hashes(by_hash: BucketRef<'_>, candidates: &mut Candidates) -> Result<(), bolt::Error> {
    for entry in &by_hash {
        let (key, item) = entry?;
        if let Ok(digest) = std::str::from_utf8(key) {
            candidates.add(OpDigest::new(digest), None);
        }
        if let Item::Value(frames) = item {
            candidates_of_frames(frames, candidates);
        }
    }
    Ok(())
}

/// The part of a link that matters here.
#[derive(Deserialize)]
struct Link {
    #[serde(rename = "Digest", default)]
    digest: String,
    /// Left out where it is 0.
    #[serde(rename = "Output", default)]
    output: i64,
}

/// `link` is the link's JSON with what comes after it.
fn candidates_of_link(link: &[u8], candidates: &mut Candidates) {
    let mut values = serde_json::Deserializer::from_slice(link).into_iter::<Link>();
    if let Some(Ok(link)) = values.next()
        && !link.digest.is_empty()
    {
        candidates.add_output(OpDigest::new(link.digest), link.output);
    }
}

fn candidates_of_frames(mut frames: &[u8], candidates: &mut Candidates) {
    fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
        let (number, rest) = bytes.split_first_chunk()?;
        Some((u32::from_be_bytes(*number), rest))
    }
    while let Some((kind, rest)) = number(frames) {
        let Some((length, rest)) = number(rest) else { break };
        let Some((data, rest)) =
            usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length))
        else {
            break;
        };
        if kind == DATA_FRAME {
            candidates_of_text(data, candidates);
        }
        frames = rest;
    }
}

/// `<operation digest>@<output>`.
fn candidates_of_text(text: &[u8], candidates: &mut Candidates) {
    let Some((digest, output)) = std::str::from_utf8(text).ok().and_then(|text| text.rsplit_once('@')) else {
        return;
    };
    if let Ok(output) = output.parse()
        && !digest.is_empty()
    {
        candidates.add_output(OpDigest::new(digest), output);
    }
}

/// Searches a damaged file for digests: those in links, and any that stand by themselves.
fn search(bytes: &[u8], candidates: &mut Candidates) {
    const FIELD: &[u8] = b"\"Digest\":";
    const DIGEST: &[u8] = b"sha256:";
    for (at, _) in bytes.windows(DIGEST.len()).enumerate().filter(|(_, window)| *window == DIGEST) {
        let text = bytes.get(at..at + DIGEST.len() + 64).and_then(|text| std::str::from_utf8(text).ok());
        if let Some(text) = text.filter(|text| text.parse::<crate::digest::Digest>().is_ok()) {
            candidates.add(OpDigest::new(text), None);
        }
    }
    // v0.12 has digests that are JSON.
    for (at, _) in bytes.windows(FIELD.len()).enumerate().filter(|(_, window)| *window == FIELD) {
        let value = bytes.get(at + FIELD.len()..).unwrap_or_default();
        if let Some(Ok(digest)) = serde_json::Deserializer::from_slice(value).into_iter::<String>().next() {
            candidates.add(OpDigest::new(digest), None);
        }
    }
}
