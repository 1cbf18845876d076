//! What can go wrong with a layer.

use std::io;
use std::path::{Path, PathBuf};

use crate::userns::OutOfRange;

/// A layer that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The compressed blob could not be read.
    #[error("cannot read the layer blob")]
    Blob(#[source] io::Error),
    /// The compressed stream is damaged, truncated, or followed by something that is no stream.
    #[error("cannot decompress the layer as {format}: the blob is damaged or truncated")]
    Decompress {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// What the decoder found.
        #[source]
        source: io::Error,
    },
    /// The decompressed stream is no tar archive.
    #[error("not a valid layer archive near byte {offset}: {fault}")]
    Archive {
        /// Decompressed bytes read so far.
        offset: u64,
        /// What is wrong.
        fault: ArchiveFault,
    },
    /// An entry of a valid archive that no layer may have.
    #[error("layer entry {} refused: {refusal}", shown(path))]
    Refused {
        /// The entry's path.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// The file system did not do what an entry asks for.
    #[error("cannot {action} {} in the layer's directory", shown(path))]
    Entry {
        /// What was tried, as in "create directory".
        action: &'static str,
        /// Path relative to the layer's directory; empty for itself.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The owner of an entry is none of those that there may be.
    #[error("cannot give {} to its owner: {source}", shown(path))]
    Owner {
        /// Path relative to the layer's directory.
        path: PathBuf,
        /// Which one.
        source: OutOfRange,
    },
    /// The layer cannot be mounted on those below it.
    #[error(
        "cannot mount the layer on the {layers} below it as an overlay, which is how its daemon extracts it"
    )]
    Mount {
        /// How many there are.
        layers: usize,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The overlay that the layer was unpacked through stays mounted, until this process ends.
    #[error(
        "cannot unmount the overlay at {} that the layer was unpacked through; a process that was started meanwhile, such as \
         a credential helper, may hold it: end that one, and do the same again",
        path.display()
    )]
    Unmount {
        /// Where it is mounted, in a mount namespace of this process.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The decompressed stream ended early because an earlier stage failed; that stage's error is reported instead.
    #[error("the layer's stream was stopped")]
    Stopped,
}

impl Error {
    pub(super) fn entry(action: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Entry { action, path: super::entry::path(path).to_owned(), source: source.into() }
    }

    /// Nothing is wrong with the layer, but it has an attribute that a rootless daemon may not set.
    pub fn is_for_root_alone(&self) -> bool {
        matches!(self, Self::Refused { refusal: Refusal::SecurityAttribute, .. })
    }

    /// The disk is full, or a quota used up.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Entry { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// A path in quotes. A layer may have one of a mebibyte; no message needs more than its beginning.
#[expect(clippy::unnecessary_debug_formatting, reason = "a terminal would obey what it escapes")]
fn shown(path: &Path) -> String {
    let text = format!("{path:?}");
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What makes a stream no tar archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveFault {
    /// A header's checksum does not fit.
    #[error("header checksum does not match")]
    Checksum,
    /// A number that is neither octal nor base-256, or out of range.
    #[error("header field is no number")]
    Number,
    /// A negative size.
    #[error("negative size")]
    NegativeSize,
    /// A block of zeros followed by something else.
    #[error("a single zero block is followed by data")]
    ZeroBlock,
    /// The stream ends inside an entry or a header.
    #[error("truncated")]
    Truncated,
    /// An extended header that is no list of records, or a record with an invalid value.
    #[error("malformed extended header")]
    Pax,
    /// An extended header, long name or sparse map beyond 1 MiB.
    #[error("extended header or sparse map longer than 1 MiB")]
    TooLong,
    /// A sparse map that is malformed, out of order, or larger than the file.
    #[error("malformed sparse map")]
    SparseMap,
    /// A sparse file with more or less data than its map says.
    #[error("sparse file's data does not fit its map")]
    SparseData,
}

/// Why an entry is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A type that layers do not have.
    #[error("entries of type {0:?} do not occur in layers")]
    Type(char),
    /// A whiteout that names no entry of its directory.
    #[error("whiteout names no file")]
    Whiteout,
    /// A device number that does not fit 32 bits.
    #[error("device number out of range")]
    Device,
    /// A hard link to a directory.
    #[error("hard link to a directory")]
    LinkToDirectory,
    /// More than 255 symlinks on one path.
    #[error("too many symlinks on the path")]
    Loop,
    /// An extended attribute of the kernel's security modules, which only root of the host may set.
    #[error(
        "it has an extended attribute \"security.…\" that a rootless daemon may not set: file capabilities and SELinux's \
         labels alone"
    )]
    SecurityAttribute,
}
