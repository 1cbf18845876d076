//! Descriptors: what a blob is called, how long it is, and what its publisher says of it.

use std::collections::BTreeMap;

use super::{Error, Platform};
use crate::digest::Digest;

/// A reference to a blob or manifest, with a digest that is known to be SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// As the document has it; may be one that nobody knows.
    pub media_type: String,
    /// Hash of the bytes as transferred.
    pub digest: Digest,
    /// Length in bytes, as transferred.
    pub size: u64,
    /// Empty where there are none.
    pub annotations: BTreeMap<String, String>,
    /// In an index, what the manifest is for.
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor without annotations or platform.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, annotations: BTreeMap::new(), platform: None }
    }
}

impl TryFrom<&oci_spec::image::Descriptor> for Descriptor {
    type Error = Error;

    fn try_from(from: &oci_spec::image::Descriptor) -> Result<Self, Error> {
        Ok(Self {
            media_type: from.media_type().to_string(),
            digest: from.digest().as_ref().parse()?,
            size: from.size(),
            annotations: from.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            platform: from.platform().as_ref().map(|p| {
                Platform::new(
                    &p.os().to_string(),
                    &p.architecture().to_string(),
                    p.variant().as_deref().unwrap_or(""),
                )
            }),
        })
    }
}
