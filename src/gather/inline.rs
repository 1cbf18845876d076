//! Opens the caches that an image carries in its configs, one for each of its platforms.
//!
//! ```text
//! index ─> manifest, linux/amd64 ─> config: records ──> a cache of these layers
//!      ├─> manifest, linux/arm64 ─> config: records ──> another
//!      ├─> attestation manifests                        passed over
//!      └─> index ─> …
//! ```

use std::collections::BTreeSet;

use super::{Error, Options};
use crate::digest::Digest;
use crate::keys::attestation;
use crate::oci::{self, Cache, Descriptor, Document, ImageConfig, Platform, inline, media_type};
use crate::progress::Progress;
use crate::source::Source;

/// How deep indexes may stand in indexes; tools write one level.
const MAX_DEPTH: usize = 4;

/// A cache that one platform's image carries.
pub(super) struct Inline {
    /// Of the manifest.
    pub(super) digest: Digest,
    pub(super) platform: Option<Platform>,
    /// `None` where the platform was not asked for; its config was not checked then.
    pub(super) cache: Option<Cache>,
}

/// An image while its manifests are read.
struct Image<'a> {
    source: &'a dyn Source,
    name: &'a str,
    options: &'a Options,
    progress: &'a dyn Progress,
    seen: BTreeSet<Digest>,
    /// Images found, with and without a cache.
    images: usize,
    found: Vec<Inline>,
}

/// Reads the inline caches of what `document`, the manifest or index with this digest, lists.
///
/// Never empty: at least one has a cache, or its platform was not asked for.
///
/// # Errors
/// No platform carries a cache, or what one carries is not valid. What is no image is an
/// [`oci::Error::NotACache`].
pub(super) fn read(
    source: &dyn Source,
    name: &str,
    (document, digest): (Document, Digest),
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Inline>, Error> {
    let is_index = matches!(document, Document::Index { .. });
    let mut image = Image {
        source,
        name,
        options,
        progress,
        seen: BTreeSet::from([digest]),
        images: 0,
        found: Vec::new(),
    };
    image.document(&document, digest, None, 0)?;
    let error = match (image.found.is_empty(), image.images) {
        (false, _) => return Ok(image.found),
        // Not an image either: what it is instead stands in the error.
        (true, 0) => match document.into_cache() {
            Err(error) => error,
            Ok(_) => oci::Error::NoInlineCache { what: "an image", platforms: 1 },
        },
        (true, platforms) => {
            let what = if is_index { "an image index" } else { "an image" };
            oci::Error::NoInlineCache { what, platforms }
        }
    };
    Err(image.invalid(error))
}

impl Image<'_> {
    fn invalid(&self, source: oci::Error) -> Error {
        Error::Cache { cache: self.name.to_owned(), source }
    }

    /// Whether an image for this platform was asked for.
    fn is_wanted(&self, platform: Option<&Platform>) -> bool {
        let wanted = &self.options.platforms;
        wanted.is_empty() || platform.is_none_or(|platform| wanted.contains(platform))
    }

    fn document(
        &mut self,
        document: &Document,
        digest: Digest,
        listed_for: Option<&Platform>,
        depth: usize,
    ) -> Result<(), Error> {
        match document {
            Document::Manifest { config, layers } => self.manifest(config, layers, digest, listed_for),
            Document::Index { manifests } => {
                for listed in manifests {
                    self.listed(listed, depth)?;
                }
                Ok(())
            }
        }
    }

    fn listed(&mut self, listed: &Descriptor, depth: usize) -> Result<(), Error> {
        self.options.check()?;
        let may_be_an_image = media_type::is_manifest(&listed.media_type);
        if !may_be_an_image || attestation::is_attestation(listed) || !self.seen.insert(listed.digest) {
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(self.invalid(oci::Error::TooDeep { limit: MAX_DEPTH }));
        }
        let platform = listed.platform.as_ref();
        let is_index = media_type::is_index(&listed.media_type);
        if !is_index && platform.is_some() && !self.is_wanted(platform) {
            self.images += 1;
            self.found.push(Inline { digest: listed.digest, platform: platform.cloned(), cache: None });
            return Ok(());
        }
        let manifest = self
            .source
            .manifest(Some(&listed.digest), self.progress)
            .map_err(|source| Error::Source { what: self.name.to_owned(), source })?;
        let document = Document::parse(&manifest.bytes).map_err(|error| self.invalid(error))?;
        self.document(&document, listed.digest, platform, depth + 1)
    }

    fn manifest(
        &mut self,
        config: &Descriptor,
        layers: &[Descriptor],
        digest: Digest,
        listed_for: Option<&Platform>,
    ) -> Result<(), Error> {
        if !inline::is_image_config(&config.media_type) {
            return Ok(());
        }
        let bytes = self
            .source
            .document(config, self.progress)
            .map_err(|source| Error::Source { what: self.name.to_owned(), source })?;
        let image = ImageConfig::parse(&bytes).map_err(|error| self.invalid(error))?;
        self.images += 1;
        let platform = listed_for.or(image.platform()).cloned();
        let cache = if self.is_wanted(platform.as_ref()) {
            match image.inline_cache(config, layers).map_err(|error| self.invalid(error))? {
                Some(cache) => Some(cache),
                None => return Ok(()),
            }
        } else {
            None
        };
        self.found.push(Inline { digest, platform, cache });
        Ok(())
    }
}
