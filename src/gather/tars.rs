//! What layers unpack to, without the layers: the sizes of their tars.
//!
//! | a layer | its tar's size | |
//! |---|---|---|
//! | a plain tar | the blob's | exact |
//! | eStargz | an annotation of its manifest | as the exporter says |
//! | gzip | the last four bytes of the blob, modulo 2^32 | exact up to 500 MiB, in one member as builders write it |
//! | zstd, other gzip | | not known |

use std::collections::BTreeSet;

use super::{Blob, Error, parallel};
use crate::oci::{Compression, Layer};
use crate::progress::Progress;
use crate::source::Source;

/// Requests under way at once: each is a round trip, and little else.
const AT_ONCE: usize = 16;
/// Where eStargz says it.
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// The unit of tars.
const TAR_BLOCK: u64 = 512;
/// The most that deflate makes of a byte.
const DEFLATE_RATIO: u64 = 1032;
/// How much smaller gzip makes layers: mostly, and hardly more.
const RATIO: (u64, u64) = (3, 8);
/// The length of a tar is known but for multiples of this.
const MODULUS: u64 = 1 << 32;
/// A gzip with nothing in it but a name, or that eStargz ends with.
const EMPTY_MEMBER: u64 = 300;
/// Bytes at the end of a gzip member that have the length.
const LENGTH: u64 = 4;

/// The size of a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarSize {
    /// What it is, or probably is.
    pub likely: u64,
    /// The same, where it is known; else more.
    pub most: u64,
}

impl TarSize {
    fn known(size: u64) -> Self {
        Self { likely: size, most: size }
    }

    /// Whether it is no guess.
    pub fn is_known(self) -> bool {
        self.likely == self.most
    }
}

/// The size of a layer's tar, as far as descriptors tell.
pub fn tar_size_said(layer: &Layer) -> Option<TarSize> {
    let size = layer.descriptor.size;
    let said = || layer.descriptor.annotations.get(UNCOMPRESSED_SIZE)?.parse().ok();
    // Of what is no tar, nothing is unpacked: what cannot be right is not believed.
    let is_likely = |tar: &u64| *tar <= size.saturating_mul(DEFLATE_RATIO);
    let said = if layer.compression == Compression::None { Some(size) } else { said().filter(is_likely) };
    said.map(TarSize::known)
}

/// The sizes of the tars of these blobs, where they can be had without the blobs; of `sources`, each blob names those
/// that have it.
///
/// Asks for the end of every blob, so that one that its source has lost is found.
///
/// # Errors
/// No source has one of the blobs.
pub fn tar_sizes(
    blobs: &[Blob],
    sources: &[Box<dyn Source>],
    progress: &dyn Progress,
) -> Result<Vec<Option<TarSize>>, Error> {
    parallel::each(blobs, AT_ONCE, |blob| {
        let tail = tail(blob, sources, progress)?;
        let read = || from_gzip(&tail?, blob.layer.descriptor.size);
        let is_gzip = blob.layer.compression == Compression::Gzip;
        Ok(tar_size_said(&blob.layer).or_else(|| if is_gzip { read() } else { None }))
    })
}

/// The last bytes of a blob, from the first of its sources that has it.
fn tail(blob: &Blob, sources: &[Box<dyn Source>], progress: &dyn Progress) -> Result<Option<Vec<u8>>, Error> {
    let mut failed = None;
    let mut asked = BTreeSet::new();
    for source in blob.caches.iter().map(|&at| &sources[at]) {
        if !asked.insert(source.blob_store()) {
            continue;
        }
        match source.content(&blob.layer.descriptor).tail(LENGTH, progress) {
            Ok(tail) => return Ok(tail),
            Err(error) => {
                failed.get_or_insert(Error::Source { what: source.name(), source: Box::new(error) });
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

/// What the end of a gzip blob of this size says of its tar. The end of one with several members says nothing of
/// those before it; then it is mostly too small.
fn from_gzip(tail: &[u8], size: u64) -> Option<TarSize> {
    let rest = u64::from(u32::from_le_bytes(tail.try_into().ok()?));
    if !rest.is_multiple_of(TAR_BLOCK) || (rest == 0 && size > EMPTY_MEMBER) {
        return None;
    }
    // What cannot be compressed grows by less than a thousandth, and the header may have a name.
    let least = size.saturating_sub(size / 1000 + 1024);
    let most = size.saturating_mul(RATIO.1);
    let first = rest + (least.saturating_sub(rest).div_ceil(MODULUS) * MODULUS);
    if first > most {
        // Below 4 GiB there is only one, however well it is compressed.
        let is_possible = first == rest && rest <= size.saturating_mul(DEFLATE_RATIO);
        return is_possible.then_some(TarSize::known(rest));
    }
    let others = (most - first) / MODULUS;
    let likely =
        size.saturating_mul(RATIO.0).saturating_sub(first + MODULUS / 2).div_ceil(MODULUS).min(others);
    Some(TarSize { likely: first + likely * MODULUS, most: first + others * MODULUS })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{DiffId, Digest};
    use crate::oci::Descriptor;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn reads_the_length_of_a_gzip() {
        for (tar, size, expected) in [
            (10_240, 500, Some((10_240, 10_240))),
            (0, 32, Some((0, 0))),
            (10_240, 10_300, Some((10_240, 10_240))),
            // Zeros.
            (2 * GIB, 3 * MIB, Some((2 * GIB, 2 * GIB))),
            (3 * GIB, 500 * MIB, Some((3 * GIB, 3 * GIB))),
            // Only the rest stands there: what would be 1, 5 or 9 times as large.
            (3 * GIB, GIB, Some((3 * GIB, 7 * GIB))),
            (5 * GIB, 2 * GIB, Some((5 * GIB, 13 * GIB))),
            (9 * GIB, 3 * GIB, Some((9 * GIB, 21 * GIB))),
            // No tar has that length; the last of several members; more than deflate can make.
            (10_241, 500, None),
            (1024, 50_000_000, None),
            (0, GIB, None),
            (512, 0, None),
        ] {
            let tail = u32::try_from(tar % MODULUS).unwrap().to_le_bytes();
            let found = from_gzip(&tail, size).map(|found| (found.likely, found.most));
            assert_eq!(found, expected, "{tar} in {size}");
        }
        assert_eq!(from_gzip(&[0; 3], 100), None);
    }

    #[test]
    fn believes_a_likely_annotation() {
        let layer = |compression, annotation: Option<&str>| {
            let mut descriptor = Descriptor::new("", Digest::of(b""), 1000);
            let annotation = annotation.map(|text| (UNCOMPRESSED_SIZE.to_owned(), text.to_owned()));
            descriptor.annotations.extend(annotation);
            Layer { descriptor, compression, diff_id: DiffId::of(b""), created_at: None, description: None }
        };
        for (compression, annotation, expected) in [
            (Compression::None, None, Some(1000)),
            (Compression::Gzip, None, None),
            (Compression::Gzip, Some("5120"), Some(5120)),
            (Compression::Gzip, Some("5120 bytes"), None),
            (Compression::Gzip, Some("99999999999"), None),
        ] {
            assert_eq!(
                tar_size_said(&layer(compression, annotation)),
                expected.map(TarSize::known),
                "{annotation:?}"
            );
        }
    }
}
