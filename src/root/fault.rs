//! What of a root could not be read, as data.

use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::Serialize;

/// Why something could not be read, or only in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FaultKind {
    /// A file or directory is not there.
    FileMissing,
    /// Something of another type stands where a file or directory is needed.
    FileType,
    /// A file or directory cannot be read.
    FileUnreadable,
    /// The worker id is not 25 characters of `[a-z0-9]`.
    WorkerId,
    /// The containerd that should have a worker's layers has no such snapshotter, or one that is not read.
    WorkerUnread,
    /// No bolt file at all, or both meta pages are damaged.
    Database,
    /// One of the two meta pages is damaged.
    MetaPage,
    /// A page in use, or an element of one, is damaged: the database counts as not read.
    Page,
    /// The freelist disagrees with the pages in use.
    Freelist,
    /// A bucket is missing that a daemon would have made by now.
    BucketMissing,
    /// A bucket stands where a value is needed, or the other way round.
    EntryType,
    /// A key or value that does not decode; it counts as absent.
    EntryInvalid,
}

/// Where a fault is. Texts that are not UTF-8 are shown with `U+FFFD` in place of what is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Place {
    /// A file or directory.
    File {
        /// Relative to the root.
        path: String,
    },
    /// A page of a database.
    Page {
        /// The database, relative to the root.
        database: String,
        /// The page's number.
        page: u64,
    },
    /// An entry of a database.
    Entry {
        /// The database, relative to the root.
        database: String,
        /// Buckets from the outside in, and the key.
        path: Vec<String>,
    },
}

impl Place {
    /// The file or directory at `path`, relative to the root.
    pub(crate) fn file(path: &Path) -> Self {
        Self::File { path: text(path.as_os_str().as_bytes()) }
    }

    /// The entry of the database at a path relative to the root, by its buckets and key.
    pub(crate) fn entry(database: &Path, path: &[&str]) -> Self {
        let path = path.iter().map(|name| text(name.as_bytes())).collect();
        Self::Entry { database: database.display().to_string(), path }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path } => f.write_str(path),
            Self::Page { database, page } => write!(f, "{database} page {page}"),
            Self::Entry { database, path } => write!(f, "{database} {}", path.join(" / ")),
        }
    }
}

/// One thing that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Fault {
    /// Why.
    pub kind: FaultKind,
    /// Where.
    pub place: Place,
    /// What was expected and what was found.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.detail)
    }
}

/// Collects faults while a root is read.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, kind: FaultKind, place: Place, detail: impl Into<String>) {
        self.0.push(Fault { kind, place, detail: detail.into() });
    }
}

/// Bytes as people read them.
pub(crate) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => String::from_utf8_lossy(bytes).escape_debug().to_string(),
    }
}

/// The start of a value, for messages.
pub(crate) fn shown(bytes: &[u8]) -> String {
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
