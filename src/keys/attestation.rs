//! Where an image keeps its provenance: attestation manifests in its index.
//!
//! ```text
//! index     manifests[] image, platform linux/amd64, digest D
//!           manifests[] attestation, platform unknown/unknown
//!                       vnd.docker.reference.type   = attestation-manifest
//!                       vnd.docker.reference.digest = D
//! manifest  layers[]    application/vnd.in-toto+json
//!                       in-toto.io/predicate-type   = https://slsa.dev/provenance/v1
//! ```
//!
//! Mirrors `exporter/containerimage/writer.go` and `exporter/containerimage/image/docker_image.go`.

use crate::digest::Digest;
use crate::oci::{Descriptor, Document, Platform, media_type};

/// Annotation of a manifest in an index: what it is.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Annotation of a manifest in an index: the manifest that it speaks of.
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// Value of [`REFERENCE_TYPE`] for attestations.
const ATTESTATION_MANIFEST: &str = "attestation-manifest";
/// Annotation of a layer: the type of its predicate.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Types of provenance predicates, up to the version.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// The attestation manifests that an image index lists, those of `platform` first.
///
/// All are returned, because a stage may have run on another platform than the image is for, and one
/// candidate more does no harm. Empty for an index without attestations, and for a plain manifest.
pub fn manifests(index: &Document, platform: &Platform) -> Vec<Descriptor> {
    let Document::Index { manifests } = index else { return Vec::new() };
    let of_platform: Vec<Digest> = manifests
        .iter()
        .filter(|manifest| manifest.platform.as_ref() == Some(platform))
        .map(|manifest| manifest.digest)
        .collect();
    let mut found: Vec<Descriptor> =
        manifests.iter().filter(|manifest| is_attestation(manifest)).cloned().collect();
    found.sort_by_key(|manifest| {
        let of = manifest.annotations.get(REFERENCE_DIGEST).and_then(|text| text.parse().ok());
        !of.is_some_and(|digest| of_platform.contains(&digest))
    });
    found
}

/// Whether an index lists this as attestations of one of its images, not as an image.
pub fn is_attestation(listed: &Descriptor) -> bool {
    listed.annotations.get(REFERENCE_TYPE).is_some_and(|kind| kind == ATTESTATION_MANIFEST)
}

/// The layers of an attestation manifest that hold SLSA provenance, of any version.
pub fn provenance_layers(manifest: &Document) -> Vec<Descriptor> {
    let Document::Manifest { layers, .. } = manifest else { return Vec::new() };
    let is_provenance = |layer: &&Descriptor| {
        layer.media_type == media_type::IN_TOTO
            && layer.annotations.get(PREDICATE_TYPE).is_some_and(|kind| kind.starts_with(PROVENANCE))
    };
    layers.iter().filter(is_provenance).cloned().collect()
}
