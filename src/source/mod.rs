//! Where caches come from: registries, object stores and OCI layouts.
//!
//! ```text
//! CACHE text --parse--> CacheSpec --open--> Source
//!                                            |- manifest(): bytes whose digest was computed here
//!                                            `- blob(): streamed in order, size and digest proven
//! ```
//!
//! Caches in object stores have no manifests: `objects` makes a source of a store that is asked for one
//! object at a time, whichever it is.
//!
//! All sources promise the same: what they return was hashed by this program. Neither a
//! registry's headers nor an index's claims are taken for it.

pub mod azblob;
pub mod credentials;
mod error;
mod fields;
pub mod gha;
mod hmac;
pub mod http;
mod layout_tar;
mod objects;
pub mod oci_layout;
pub mod registry;
pub mod s3;
pub mod secret;
pub mod spec;

use std::io::Write;
use std::sync::Arc;

use crate::digest::{Digest, Hasher};
use crate::oci::Descriptor;
use crate::oci::media_type::CACHE_CONFIG;
use crate::progress::{Event, Progress};

pub use credentials::{Environment, Given, GivenError};
pub use error::{Denied, Entry, Error, ErrorClass, Mismatch, MissingCache};
pub use fields::SpecError;
pub use http::{Options, Pool, RetryPolicy, Stop};
pub use oci_layout::OciLayout;
pub use registry::{Pushed, Registry};
pub use spec::CacheSpec;

/// The largest manifest or index that is read, in bytes; registries refuse more than 4 MiB.
pub const MAX_MANIFEST: u64 = 8 << 20;
/// The largest config or other document that is read into memory, in bytes.
pub const MAX_DOCUMENT: u64 = 64 << 20;

/// A manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The document, byte for byte.
    pub bytes: Vec<u8>,
    /// Hash of `bytes`, computed here.
    pub digest: Digest,
    /// What the source says the document is; empty where it does not say. A hint only: the
    /// document tells for itself.
    pub media_type: String,
}

impl Manifest {
    /// A cache config that stands where others have a manifest.
    fn of_config(bytes: Vec<u8>) -> Self {
        Self { digest: Digest::of(&bytes), bytes, media_type: CACHE_CONFIG.to_owned() }
    }
}

/// Something that holds manifests and blobs.
///
/// Methods block, and may be called from several threads at once.
pub trait Source: Send + Sync {
    /// What to call it in messages, as the user would write it.
    fn name(&self) -> String;

    /// Reads a manifest or index: the one that the spec names, or the one with `digest`.
    ///
    /// Object stores have no manifests. What they answer is the cache config itself, of media type
    /// [`CACHE_CONFIG`], whose layers have annotations.
    ///
    /// The returned digest was computed from the bytes; where one was asked for it is that one.
    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error>;

    /// Reads all that the spec names: one, or as many cache configs as an object store has for it. Never empty.
    fn manifests(&self, progress: &dyn Progress) -> Result<Vec<Manifest>, Error> {
        Ok(vec![self.manifest(None, progress)?])
    }

    /// A blob, of which nothing is asked yet.
    fn content<'a>(&'a self, blob: &'a Descriptor) -> Box<dyn Content + 'a>;

    /// [`Content::copy`] of a blob.
    fn blob(&self, blob: &Descriptor, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error> {
        self.content(blob).copy(out, progress)
    }

    /// Where its blobs are. Sources of which this is the same have the same blobs.
    fn blob_store(&self) -> String {
        self.name()
    }

    /// The registry's host, without port, and the repository: what `BuildKit` notes as a blob's
    /// origin. `None` where blobs have none.
    fn repository(&self) -> Option<(String, String)>;

    /// Reads a small blob, such as a config, into memory; more than [`MAX_DOCUMENT`] is an error.
    fn document(&self, blob: &Descriptor, progress: &dyn Progress) -> Result<Vec<u8>, Error> {
        if blob.size > MAX_DOCUMENT {
            let what = format!("blob {} ({})", blob.digest, blob.media_type);
            return Err(Error::TooLarge { what, source_name: self.name(), limit: MAX_DOCUMENT });
        }
        let mut bytes = Vec::new();
        self.blob(blob, &mut bytes, progress)?;
        Ok(bytes)
    }
}

/// A blob that a source has, or says to have.
pub trait Content {
    /// Writes it to `out`, in order, in memory that does not grow with its size.
    ///
    /// On return size and digest match the descriptor. On an error `out` may have received a part,
    /// or bytes that are not the blob's.
    fn copy(&self, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error>;

    /// Reads the last `length` bytes, or all of a shorter one. They prove nothing, but that it is there;
    /// `None` where the source hands out whole blobs only.
    fn tail(&self, length: u64, progress: &dyn Progress) -> Result<Option<Vec<u8>>, Error>;
}

/// One source of several caches.
impl<S: Source + ?Sized> Source for Arc<S> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error> {
        (**self).manifest(digest, progress)
    }

    fn manifests(&self, progress: &dyn Progress) -> Result<Vec<Manifest>, Error> {
        (**self).manifests(progress)
    }

    fn content<'a>(&'a self, blob: &'a Descriptor) -> Box<dyn Content + 'a> {
        (**self).content(blob)
    }

    fn blob_store(&self) -> String {
        (**self).blob_store()
    }

    fn repository(&self) -> Option<(String, String)> {
        (**self).repository()
    }
}

impl CacheSpec {
    /// Opens the source. Of a registry nothing is asked yet; a layout's index is read.
    pub fn open(&self, options: &Options) -> Result<Box<dyn Source>, Error> {
        match self {
            Self::Registry { reference, insecure } => {
                let mut options = options.clone();
                options.insecure |= insecure;
                Ok(Box::new(Registry::open(reference, &options)?))
            }
            Self::Azblob(attributes) => Ok(Box::new(azblob::open(attributes, options)?)),
            Self::Gha(attributes) => Ok(Box::new(gha::open(attributes, options)?)),
            Self::S3(attributes) => Ok(Box::new(s3::open(attributes, options)?)),
            Self::Local { src, tag, digest } => {
                Ok(Box::new(OciLayout::open(src, tag.as_deref(), digest.as_ref())?))
            }
        }
    }
}

/// A blob on its way from a source to whoever wanted it: counted, hashed, passed on.
struct Receiver<'a> {
    blob: &'a Descriptor,
    source_name: &'a str,
    out: &'a mut dyn Write,
    progress: &'a dyn Progress,
    hasher: Hasher,
    received: u64,
}

impl<'a> Receiver<'a> {
    fn new(
        blob: &'a Descriptor,
        source_name: &'a str,
        out: &'a mut dyn Write,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { blob, source_name, out, progress, hasher: Hasher::new(), received: 0 }
    }

    /// Bytes passed on so far.
    fn received(&self) -> u64 {
        self.received
    }

    fn mismatch(&self, mismatch: Mismatch) -> Error {
        Error::BlobMismatch { blob: self.blob.digest, source_name: self.source_name.to_owned(), mismatch }
    }

    /// Takes the next bytes; refuses what goes beyond the blob's size before passing it on.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let len = bytes.len() as u64;
        if len > self.blob.size - self.received {
            return Err(self.mismatch(Mismatch::Longer { expected: self.blob.size }));
        }
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(|source| Error::Write { blob: self.blob.digest, source })?;
        self.received += len;
        self.progress.event(Event::Fetched { digest: self.blob.digest, bytes: len });
        Ok(())
    }

    /// Says whether what came is the blob.
    fn finish(self) -> Result<(), Error> {
        if self.received != self.blob.size {
            let mismatch = Mismatch::Size { expected: self.blob.size, found: self.received };
            return Err(self.mismatch(mismatch));
        }
        let found = Digest::from_bytes(self.hasher.clone().finish());
        if found != self.blob.digest {
            return Err(self.mismatch(Mismatch::Digest { found }));
        }
        Ok(())
    }
}
