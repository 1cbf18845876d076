//! Getting what a sidecar holds.

use serde::Serialize;

use super::{Sidecar, find};
use crate::digest::Digest;
use crate::gather::{Error, Options};
use crate::keys::file::KeysFile;
use crate::progress::{Phase, Progress, during};
use crate::source::CacheSpec;

/// A sidecar that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PulledSidecar {
    /// What a bake calls it.
    pub source: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Whether it was pushed for the cache as it is now.
    pub current: bool,
    /// Operation digests in it.
    pub keys: usize,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PullReport {
    /// The cache, as it was asked for.
    pub cache: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The sidecars that were read.
    pub sidecars: Vec<PulledSidecar>,
    /// Distinct operation digests in all of them.
    pub keys: usize,
}

/// Reads the sidecars that a bake of the cache would find; gives all that is in them. The cache itself is not
/// read, so nothing is proven.
///
/// # Errors
/// [`Error::NoRegistry`] for a cache that is in none; [`Error::NoSidecar`]; the registry cannot be read.
pub fn pull(
    spec: &CacheSpec,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(PullReport, KeysFile), Error> {
    let cache = spec.to_string();
    if !matches!(spec, CacheSpec::Registry { .. }) {
        return Err(Error::NoRegistry { cache });
    }
    let wrap = |source| Error::Source { what: cache.clone(), source: Box::new(source) };
    let source = spec.open(&options.registry).map_err(wrap)?;
    let digest = during(progress, Phase::Resolve, || source.manifest(None, progress)).map_err(wrap)?.digest;
    let found = during(progress, Phase::Keys, || find(spec, &digest, options, progress))?;
    if found.is_empty() {
        return Err(Error::NoSidecar { cache });
    }
    let mut keys = KeysFile::default();
    let mut sidecars = Vec::with_capacity(found.len());
    for Sidecar { name, digest, current, keys: own } in found {
        sidecars.push(PulledSidecar { source: name, digest, current, keys: own.len() });
        keys.merge(own);
    }
    Ok((PullReport { cache, digest, sidecars, keys: keys.len() }, keys))
}
