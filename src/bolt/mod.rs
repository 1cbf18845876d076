//! bolt files, as `go.etcd.io/bbolt` v1.3 to v1.5 reads and writes them.
//!
//! Nothing here knows a containerd or `BuildKit` bucket. [`Database`] reads a file, whoever wrote it;
//! [`Database::check`] finds its faults; [`Bucket`] writes one from scratch.
//!
//! # The file
//!
//! Pages of one size (that of the machine that wrote it), numbered from 0, integers little-endian:
//!
//! ```text
//! page 0, 1      meta pages; the valid one with the higher txid counts
//! page 2 ..      branch, leaf, freelist and free pages, up to the high-water mark
//!
//! page           0 id u64 | 8 flags u16 | 10 count u16 | 12 overflow u32 | 16 content
//!                flags: 1 branch, 2 leaf, 4 meta, 16 freelist
//!                overflow: how many more pages the content runs on for
//!   meta         0 magic u32 ed0cdaed | 4 version u32 2 | 8 page size u32 | 12 flags u32 0
//!                16 root page u64 | 24 root sequence u64 | 32 freelist page u64 (2^64-1: none kept)
//!                40 high-water mark u64 | 48 txid u64 | 56 checksum u64, FNV-1a of bytes 0..56
//!   branch       count x { 0 position u32 | 4 key size u32 | 8 page u64 }, then the keys
//!   leaf         count x { 0 flags u32 (1: a bucket) | 4 position u32 | 8 key size u32
//!                          12 value size u32 }, then key and value of each
//!                position counts from the element itself
//!   freelist     count x id u64, ascending; a count of 65535 means that the first u64 is the count
//!
//! bucket         a leaf value: 0 root page u64 | 8 sequence u64
//!                root page 0: an inline bucket; a whole leaf page follows at 16
//! ```
//!
//! Mirrors `internal/common/{page,meta,inode,bucket}.go` of bbolt v1.5.

mod check;
mod format;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use check::MetaState;
pub use read::{BucketRef, Database, Item, Iter};
pub use write::{Bucket, PageSize};

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a bolt file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither meta page is valid: no bolt file, or one that was cut or overwritten.
    #[error("no bolt database: meta page 0: {first}; meta page 1: {second}")]
    NoMeta {
        /// What is wrong with the first meta page.
        first: MetaFault,
        /// What is wrong with the second.
        second: MetaFault,
    },
    /// A page that the tree leads to is damaged.
    #[error(transparent)]
    Corrupt(#[from] Fault),
    /// A page size that is not written.
    #[error("page size {found}: expected a power of two from 1024 to 65536")]
    PageSize {
        /// The page size asked for.
        found: usize,
    },
    /// A key that bbolt does not take.
    #[error("a key of {len} bytes: expected 1 to {max}")]
    KeyLength {
        /// Its length in bytes.
        len: usize,
        /// The longest that is allowed.
        max: usize,
    },
    /// A value that bbolt does not take.
    #[error("a value of {len} bytes: expected at most {max}")]
    ValueLength {
        /// Its length in bytes.
        len: usize,
        /// The longest that is allowed.
        max: usize,
    },
    /// The pages could not be written.
    #[error("cannot write the database")]
    Write {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn write(source: io::Error) -> Self {
        Self::Write { source }
    }
}

/// A fault of a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("page {page}, byte {offset} of the file: {kind}")]
pub struct Fault {
    /// The page, by its number.
    pub page: u64,
    /// Where in the file the faulty bytes stand.
    pub offset: u64,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What is wrong with a meta page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaFault {
    /// The file ends before it.
    #[error("the file is too short")]
    Short,
    /// Another kind of file, or an overwritten page.
    #[error("wrong magic {found:#010x}")]
    Magic {
        /// The magic found.
        found: u32,
    },
    /// A format version other than 2.
    #[error("unknown version {found}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The bytes do not have the checksum that the page names.
    #[error("checksum {found:#018x} instead of {expected:#018x}")]
    Checksum {
        /// The checksum of the bytes.
        expected: u64,
        /// The checksum that the page names.
        found: u64,
    },
    /// No power of two between 1 KiB and 16 MiB, or not where such a page size puts this page.
    #[error("impossible page size {found}")]
    PageSize {
        /// The page size found.
        found: u32,
    },
}

/// The kind of a [`Fault`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// A meta page is not valid; bolt goes on with the other.
    Meta(MetaFault),
    /// The page, or one that its content runs on to, is a meta page or at or beyond the high-water mark.
    OutOfBounds {
        /// The page after the last one that is needed.
        end: u64,
        /// The high-water mark.
        high_water: u64,
    },
    /// The file ends inside the page.
    Truncated {
        /// Bytes that the file would need.
        needed: u64,
        /// Bytes that it has.
        len: u64,
    },
    /// The page bears another page's number.
    WrongId {
        /// The number that it bears.
        found: u64,
    },
    /// The page's type is not the one needed here.
    WrongType {
        /// `branch or leaf`, `leaf`, `freelist` or `meta`.
        expected: &'static str,
        /// The flags found.
        flags: u16,
    },
    /// Two elements lead to the page, or the content of two pages overlaps.
    MultipleReferences,
    /// An element, key or value that reaches out of its page or into its neighbour.
    Element {
        /// Which element.
        index: usize,
    },
    /// A branch page without elements.
    EmptyBranch,
    /// A key that does not stand after the one before it.
    KeyOrder {
        /// Which element.
        index: usize,
    },
    /// A key outside the range that the page above gives this page.
    KeyRange {
        /// Which element.
        index: usize,
    },
    /// A bucket's value too short for its header, or an inline bucket that is no leaf page.
    Bucket {
        /// Which element.
        index: usize,
    },
    /// Buckets or branch pages nested deeper than any writer does.
    TooDeep {
        /// How deep is allowed.
        limit: usize,
    },
    /// The freelist names a page twice.
    FreeTwice,
    /// The freelist names a page that is in use.
    FreeInUse,
    /// The page is neither in use nor in the freelist.
    Leaked,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(fault) => write!(f, "invalid meta page: {fault}"),
            Self::OutOfBounds { end, high_water } => {
                write!(f, "pages up to {end} are outside the range 2 to {high_water} of this file")
            }
            Self::Truncated { needed, len } => {
                write!(f, "the file has {len} bytes where {needed} are needed")
            }
            Self::WrongId { found } => write!(f, "the page bears the number {found}"),
            Self::WrongType { expected, flags } => {
                write!(f, "page flags {flags:#x} where a {expected} page is needed")
            }
            Self::MultipleReferences => f.write_str("more than one element leads to this page"),
            Self::Element { index } => {
                write!(f, "element {index} reaches out of its page or into its neighbour")
            }
            Self::EmptyBranch => f.write_str("a branch page without elements"),
            Self::KeyOrder { index } => write!(f, "key {index} does not stand after the key before it"),
            Self::KeyRange { index } => {
                write!(f, "key {index} is outside the range that the page above gives")
            }
            Self::Bucket { index } => write!(f, "element {index} is not a valid bucket"),
            Self::TooDeep { limit } => write!(f, "nested deeper than {limit} levels"),
            Self::FreeTwice => f.write_str("the freelist names this page twice"),
            Self::FreeInUse => f.write_str("the freelist names this page, which is in use"),
            Self::Leaked => f.write_str("the page is neither in use nor in the freelist"),
        }
    }
}
