//! Layer blobs to overlay upper directories.
//!
//! ```text
//!  blob ──► inflate ──► chunks ─┬─► hash ───────────────► diff ID
//!           (thread)   (8 × 256 │   (thread)
//!                       KiB,    └─► tar entries ─► apply ─► snapshots/<n>/fs
//!                       reused)     (the calling thread)
//! ```
//!
//! The three stages run at the same time and hand on references to the same buffers, so a layer
//! of any size takes two MiB, what the decoder needs (a zstd frame may ask for up to 128 MiB),
//! the names of its directories, and the largest extended header (1 MiB).
//!
//! What comes out is what `BuildKit`'s own applier makes of the same blob; the rules, and where
//! each one lives here:
//!
//! | rule | upstream | here |
//! |---|---|---|
//! | which bytes are a valid archive, what its headers mean | Go `archive/tar`, 1.26 | `tar` |
//! | which entry becomes what | containerd v2.4 `pkg/archive/tar.go` | `apply` |
//! | where a path leads inside the directory | continuity v0.5 `fs/path.go` | `resolve` |
//! | whiteouts of an overlay | containerd `pkg/archive/tar_opts_linux.go` | `apply` |
//! | attributes of directories that a layer implies | `mkparent` in `tar.go` | [`inherit`] |
//! | compression, trailing bytes | containerd `pkg/archive/compression`, klauspost gzip and zstd | `inflate` |
//! | disk usage | continuity `fs/du_unix.go` | [`usage`] |
//!
//! Who sets which attribute:
//!
//! | | owner | mode | mtime | xattrs |
//! |---|---|---|---|---|
//! | file, device, fifo | header | header | header | header, without `trusted.*` |
//! | directory | header | header | header, after everything else | added to those it has |
//! | symlink | header | - | header | header, where the kernel lets it |
//! | hard link | header, on the shared inode | as the file | as the file | as the file |
//! | whiteout device | header | 0000 | header (upstream: time of unpacking) | - |
//! | implied directory | nearest lower layer, else root | same, else 0755 | same, else 1970 (upstream: time of unpacking) | same, without `trusted.*` |

mod apply;
mod copy;
mod entry;
mod error;
mod inflate;
mod inherit;
mod overlay;
mod remove;
mod resolve;
mod stream;
mod sys;
mod tar;
mod usage;
mod walk;
mod xattr;

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::digest::DiffId;
use crate::userns::Owners;

pub use copy::copy_tree;
pub use entry::{Device, Entry, Kind, Owner, Time, Whiteout};
pub use error::{ArchiveFault, Error, Refusal};
pub use inherit::inherit;
pub use overlay::Overlay;
pub use tar::{Content, Segment};
pub use usage::{Usage, usage};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How to find out how a blob is compressed.
///
/// Upstream's applier believes a media type only so far as it says "compressed or not", then looks at
/// the first bytes: a plain tar under a gzip media type unpacks, and so does zstd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// The blob is a tar, whatever its first bytes look like.
    None,
    /// gzip or zstd where the first bytes say so, else a plain tar.
    #[default]
    Detect,
}

/// What becomes of a whiteout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whiteouts {
    /// The mark of an overlay: the directory is the upper one of a layer that stands on others, and empty.
    #[default]
    Mark,
    /// What it hides is removed: the directory has what the layers below have, or there are none.
    Remove,
}

/// How to unpack.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What becomes of whiteouts.
    pub whiteouts: Whiteouts,
    /// Whose the files are.
    pub owners: Owners,
}

impl Options {
    /// Of a layer that is unpacked by itself, with owners as it names them; `base`: it stands on no other.
    pub fn of_upper(base: bool) -> Self {
        let whiteouts = if base { Whiteouts::Remove } else { Whiteouts::Mark };
        Self { whiteouts, owners: Owners::AsNamed }
    }
}

/// A decompressed layer, read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The hash of all decompressed bytes, those after the archive's end included.
    pub diff_id: DiffId,
    /// Their number.
    pub bytes: u64,
}

/// A directory that was made because a layer has something below it, before any entry of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Implied {
    /// Where it is, relative to the upper directory.
    pub path: PathBuf,
    /// What became of it.
    pub fate: Fate,
    /// It was made in a directory of which the same was true at that time.
    pub below_implied: bool,
}

/// What became of an implied directory, later in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stayed as it is: it inherits everything.
    Kept,
    /// An entry of its own came: it inherits only xattrs that it does not have.
    Described,
    /// It was removed or replaced: it inherits nothing, but a lower layer may still forbid its path.
    Removed,
}

/// A layer that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The hash of all decompressed bytes. The caller compares it.
    pub diff_id: DiffId,
    /// Number of decompressed bytes.
    pub bytes: u64,
    /// Number of entries in the archive, global headers included.
    pub entries: u64,
    /// Directories for [`inherit`], parents before children.
    pub implied: Vec<Implied>,
}

/// Unpacks a layer blob into `upper`, an existing directory, as root.
///
/// `upper` itself keeps its mode, owner and time. No path leaves it, whatever the archive says. The content is
/// not synced. After an error `upper` holds part of the layer.
///
/// # Errors
///
/// [`Error`]: the blob cannot be read or decompressed, is no archive, holds an entry that upstream
/// refuses too, or the file system fails. The stages stop at the first error, and that is the one returned.
pub fn unpack(
    blob: impl Read + Send,
    compression: Compression,
    upper: &Path,
    options: &Options,
) -> Result<Unpacked> {
    let mut applier = apply::Applier::new(upper, options)?;
    let mut entries = 0;
    let stream = stream::visit(blob, compression, |entry, content| {
        entries += 1;
        applier.apply(entry, content)
    })?;
    let implied = applier.finish()?;
    Ok(Unpacked { diff_id: stream.diff_id, bytes: stream.bytes, entries, implied })
}

/// Reads a layer blob and shows each entry to `visit`, in order, writing nothing.
///
/// The visitor reads as much of the content as it wants; the rest is skipped.
///
/// # Errors
///
/// The visitor's first error, or [`Error`] when the blob cannot be read, decompressed or understood.
pub fn entries<E: From<Error>>(
    blob: impl Read + Send,
    compression: Compression,
    visit: impl FnMut(&Entry, &mut Content<'_>) -> Result<(), E>,
) -> Result<Stream, E> {
    stream::visit(blob, compression, visit)
}
