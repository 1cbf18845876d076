//! Opens caches.

use serde::Serialize;

use super::{Error, Options};
use crate::digest::Digest;
use crate::oci::{Cache, CacheConfig, CacheManifest, Document};
use crate::progress::Progress;
use crate::source::{CacheSpec, Source};

/// A cache that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BakedCache {
    /// As it was asked for.
    pub cache: String,
    /// The digest of its manifest: what the tag meant this time.
    pub digest: Digest,
    /// Records of its config.
    pub records: usize,
}

/// A cache and where its blobs come from.
pub struct Opened {
    /// Its blobs.
    pub source: Box<dyn Source>,
    /// Its records and layers, checked.
    pub cache: Cache,
    /// What to say of it.
    pub report: BakedCache,
}

/// Reads manifest and config of what one spec names and checks them.
///
/// Most specs name one cache. Never empty.
///
/// # Errors
/// It cannot be read, or is no cache.
pub fn open(spec: &CacheSpec, options: &Options, progress: &dyn Progress) -> Result<Vec<Opened>, Error> {
    options.check()?;
    let name = spec.to_string();
    let wrap = |source| Error::Source { what: name.clone(), source };
    let source = spec.open(&options.registry).map_err(wrap)?;
    let manifest = source.manifest(None, progress).map_err(wrap)?;
    let cache = (|| Document::parse(&manifest.bytes)?.into_cache())()
        .map_err(|source| Error::Cache { cache: name.clone(), source })?;
    let cache = read_config(&*source, &cache, &name, progress)?;
    let report = BakedCache { cache: name, digest: manifest.digest, records: cache.records.len() };
    Ok(vec![Opened { source, cache, report }])
}

fn read_config(
    source: &dyn Source,
    manifest: &CacheManifest,
    name: &str,
    progress: &dyn Progress,
) -> Result<Cache, Error> {
    let bytes = source
        .document(&manifest.config, progress)
        .map_err(|source| Error::Source { what: name.to_owned(), source })?;
    CacheConfig::parse(&bytes)
        .and_then(|config| config.resolve(manifest))
        .map_err(|source| Error::Cache { cache: name.to_owned(), source })
}
