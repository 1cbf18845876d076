//! The layer blobs of several caches, each once.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use jiff::Timestamp;

use super::{Error, Image};
use crate::digest::Digest;
use crate::oci::{Cache, Compression, Layer};

/// A layer blob, and who has it.
#[derive(Debug, Clone)]
pub struct Blob {
    /// What all caches together say of it.
    pub layer: Layer,
    /// Indexes of the caches that have it, and of the images, which count on from them.
    pub caches: BTreeSet<usize>,
}

/// The distinct blobs that results of records are made of. What caches say of one blob is put together
/// in a way that does not depend on their order.
///
/// # Errors
/// Two caches claim different sizes or diff IDs for one blob; `name` says which cache is which.
pub fn blobs(caches: &[Cache], name: impl Fn(usize) -> String) -> Result<BTreeMap<Digest, Blob>, Error> {
    let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
    for (at, cache) in caches.iter().enumerate() {
        let used: BTreeSet<usize> =
            cache.records.iter().flat_map(|r| &r.results).flat_map(|r| &r.layers).copied().collect();
        for layer in used.into_iter().map(|layer| &cache.layers[layer]) {
            add(&mut blobs, layer, at, &name)?;
        }
    }
    Ok(blobs)
}

/// Adds the layers of images to the blobs of `caches` caches.
///
/// # Errors
/// As of [`blobs()`].
pub fn add_images(
    blobs: &mut BTreeMap<Digest, Blob>,
    images: &[Image],
    name: impl Fn(usize) -> String,
    caches: usize,
) -> Result<(), Error> {
    let name = |at: usize| match at.checked_sub(caches) {
        Some(image) => images[image].report.image.clone(),
        None => name(at),
    };
    for (at, image) in images.iter().enumerate() {
        for layer in &image.layers {
            add(blobs, layer, caches + at, &name)?;
        }
    }
    Ok(())
}

fn add(
    blobs: &mut BTreeMap<Digest, Blob>,
    layer: &Layer,
    at: usize,
    name: &impl Fn(usize) -> String,
) -> Result<(), Error> {
    let digest = layer.descriptor.digest;
    match blobs.entry(digest) {
        Entry::Vacant(entry) => {
            entry.insert(Blob { layer: layer.clone(), caches: BTreeSet::from([at]) });
        }
        Entry::Occupied(mut entry) => {
            let known = entry.get_mut();
            if let Some((what, claims)) = disagreement(&known.layer, layer) {
                let first = known.caches.first().copied().unwrap_or(at);
                let [one, other] = claims;
                let claims = Box::new([(name(first), one), (name(at), other)]);
                return Err(Error::Claims { digest, what, claims });
            }
            known.caches.insert(at);
            merge(&mut known.layer, layer);
        }
    }
    Ok(())
}

/// What two descriptions of one blob cannot both be right about, and what each says.
fn disagreement(a: &Layer, b: &Layer) -> Option<(&'static str, [String; 2])> {
    let (size_a, size_b) = (a.descriptor.size, b.descriptor.size);
    if a.diff_id != b.diff_id {
        Some(("diff IDs", [a.diff_id.to_string(), b.diff_id.to_string()]))
    } else if size_a != size_b {
        Some(("sizes", [format!("{size_a} bytes"), format!("{size_b} bytes")]))
    } else {
        None
    }
}

/// Puts what `other` says to what is known. Commutative and associative: the smaller of two values,
/// by an order of which only the first rules mean something, stays.
fn merge(known: &mut Layer, other: &Layer) {
    // A cache may have its manifest in OCI's words and another in Docker's. A plain tar is taken at its
    // word, anything else is told by its first bytes: so the word that says least goes last.
    let rank = |layer: &Layer| {
        let docker = !layer.descriptor.media_type.starts_with("application/vnd.oci.");
        (docker, layer.compression == Compression::None, layer.descriptor.media_type.clone())
    };
    if rank(other) < rank(known) {
        known.descriptor.media_type.clone_from(&other.descriptor.media_type);
        known.compression = other.compression;
    }
    for (key, value) in &other.descriptor.annotations {
        let known = known.descriptor.annotations.entry(key.clone()).or_insert_with(|| value.clone());
        if value < known {
            known.clone_from(value);
        }
    }
    known.created_at = earliest(known.created_at, other.created_at);
    known.description = [known.description.take(), other.description.clone()].into_iter().flatten().min();
}

/// The earlier of two times, where there is one.
pub fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::DiffId;
    use crate::oci::Descriptor;
    use crate::oci::cacheconfig::{Record, ResultChain};

    const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn layer(media_type: &str, annotations: &[(&str, &str)]) -> Layer {
        let mut descriptor = Descriptor::new(media_type, Digest::of(b"blob"), 10);
        descriptor.annotations =
            annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Layer {
            compression: Compression::of_layer(media_type).unwrap(),
            diff_id: DiffId::of(b"tar"),
            created_at: None,
            description: None,
            descriptor,
        }
    }

    fn cache(layer: Layer) -> Cache {
        let results = vec![ResultChain { layers: vec![0], created_at: None }];
        let digest = crate::digest::OpDigest::of(b"op").record_digest(0);
        Cache { layers: vec![layer], records: vec![Record { digest, results, inputs: Vec::new() }] }
    }

    #[test]
    fn what_is_said_of_a_blob_does_not_depend_on_who_says_it_first() {
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let plain = "application/vnd.oci.image.layer.v1.tar";
        let mut dated = layer(docker, &[("a", "2"), ("b", "1")]);
        dated.created_at = Some("2024-01-02T03:04:05Z".parse().unwrap());
        dated.description = Some("RUN make".into());
        let mut dated_later = layer(plain, &[("c", "1")]);
        dated_later.created_at = Some("2025-01-02T03:04:05Z".parse().unwrap());
        dated_later.description = Some("RUN test".into());
        let all = [dated, dated_later, layer(OCI_GZIP, &[("a", "1")])];
        let merged = |order: [usize; 3]| {
            let caches = order.map(|at| cache(all[at].clone()));
            blobs(&caches, |at| at.to_string()).unwrap().into_values().next().unwrap().layer
        };
        let expected = merged([0, 1, 2]);
        assert_eq!(expected.descriptor.media_type, OCI_GZIP);
        assert_eq!(expected.compression, Compression::Gzip);
        assert_eq!(expected.description.as_deref(), Some("RUN make"));
        assert_eq!(expected.descriptor.annotations["a"], "1");
        assert_eq!(expected.descriptor.annotations.len(), 3);
        assert_eq!(expected.created_at, all[0].created_at);
        for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(merged(order), expected, "{order:?}");
        }
    }

    #[test]
    fn two_claims_for_one_blob_name_both_caches() {
        let mut other_tar = layer(OCI_GZIP, &[]);
        other_tar.diff_id = DiffId::of(b"another tar");
        let mut other_size = layer(OCI_GZIP, &[]);
        other_size.descriptor.size = 11;
        for (other, what) in [(other_tar, "different diff IDs"), (other_size, "10 bytes, b 11 bytes")] {
            let caches = [cache(layer(OCI_GZIP, &[])), cache(other)];
            let message = blobs(&caches, |at| ["a", "b"][at].to_owned()).unwrap_err().to_string();
            assert!(message.starts_with("a and b claim different ") && message.contains(what), "{message}");
        }
    }
}
