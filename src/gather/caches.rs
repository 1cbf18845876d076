//! Opens caches.

use std::sync::Arc;

use serde::Serialize;

use super::{Error, Options, inline, parallel};
use crate::digest::Digest;
use crate::oci::{Cache, CacheConfig, CacheManifest, Document, Platform};
use crate::progress::Progress;
use crate::source::{CacheSpec, Source};

/// A cache that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BakedCache {
    /// As it was asked for.
    pub cache: String,
    /// The digest of its manifest: what the tag meant this time.
    pub digest: Digest,
    /// Of an image with inline cache, the platform; other caches do not tell.
    #[serde(serialize_with = "as_text")]
    pub platform: Option<Platform>,
    /// Records of its config.
    pub records: usize,
    /// Which `BuildKit` releases write such keys, such as `v0.18 or newer`, where proven keys tell.
    pub written_by: Option<String>,
}

fn as_text<S: serde::Serializer>(platform: &Option<Platform>, serializer: S) -> Result<S::Ok, S::Error> {
    platform.as_ref().map(ToString::to_string).serialize(serializer)
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

/// A cache that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// As it was asked for.
    pub cache: String,
    /// Who says so, and what exactly is not there.
    pub reason: String,
}

/// What came of a list of caches.
#[derive(Default)]
pub struct All {
    /// Those that are there, in the order in which they were asked for.
    pub opened: Vec<Opened>,
    /// The other ones, in that order too.
    pub missing: Vec<Missing>,
}

/// Caches that are read at once: each is a few round trips, and little else.
const CACHES_AT_ONCE: usize = 16;

/// Opens each of `specs`, many at a time, as [`open`] does.
///
/// # Errors
/// One cannot be read; of several, the first is named. Those that are not there are all named, unless
/// `skip_missing` is set; then it is an error only if no cache is left. A registry that refuses or
/// does not answer says nothing of what is there, so that is never skipped. [`Error::PlatformNotHeld`] where
/// no cache is for a platform asked for.
pub fn open_all(
    specs: &[CacheSpec],
    skip_missing: bool,
    options: &Options,
    progress: &dyn Progress,
) -> Result<All, Error> {
    let results = parallel::each(specs, CACHES_AT_ONCE, |spec| match open(spec, options, progress) {
        Ok(opened) => Ok(Ok(opened)),
        Err(Error::Source { what, source }) if source.is_missing() => Ok(Err((what, source))),
        Err(error) => Err(error),
    })?;
    let mut all = All::default();
    let mut last = None;
    for result in results {
        match result {
            Ok(opened) => all.opened.extend(opened),
            Err((what, source)) => {
                all.missing.push(Missing { cache: what.clone(), reason: source.to_string() });
                last = Some(Error::Source { what, source });
            }
        }
    }
    match last {
        // The only cache there is: nothing to be gained by a list.
        Some(error) if specs.len() == 1 => Err(error),
        Some(_) if all.opened.is_empty() => Err(Error::AllMissing { missing: all.missing }),
        Some(_) if !skip_missing => Err(Error::Missing { missing: all.missing, total: specs.len() }),
        _ => {
            check_platforms(all.opened.iter().map(|opened| &opened.report), options)?;
            Ok(all)
        }
    }
}

/// Reads manifest and config of what one spec names and checks them.
///
/// Most specs name one cache. An image carries one for each of its platforms, or for those that
/// `options` asks for.
///
/// # Errors
/// It cannot be read, or is no cache. [`Error::NoPlatform`] where it is for none of the platforms asked for.
pub fn open(spec: &CacheSpec, options: &Options, progress: &dyn Progress) -> Result<Vec<Opened>, Error> {
    options.check()?;
    let name = spec.to_string();
    let wrap = |source| Error::Source { what: name.clone(), source };
    let source = spec.open(&options.registry).map_err(wrap)?;
    let manifest = source.manifest(None, progress).map_err(wrap)?;
    let document =
        Document::parse(&manifest.bytes).map_err(|source| Error::Cache { cache: name.clone(), source })?;
    let digest = manifest.digest;
    if !document.is_cache() {
        return open_image(source, name, (document, digest), options, progress);
    }
    let cache = document.into_cache().map_err(|source| Error::Cache { cache: name.clone(), source })?;
    let cache = read_config(&*source, &cache, &name, progress)?;
    let report =
        BakedCache { cache: name, digest, platform: None, records: cache.records.len(), written_by: None };
    Ok(vec![Opened { source, cache, report }])
}

/// Checks that each platform that `options` asks for is one that some cache is for.
///
/// Where a cache does not tell its platforms, it may be for all of them.
///
/// # Errors
/// [`Error::PlatformNotHeld`].
fn check_platforms<'a>(
    caches: impl IntoIterator<Item = &'a BakedCache>,
    options: &Options,
) -> Result<(), Error> {
    let mut held = Vec::new();
    for cache in caches {
        let Some(platform) = &cache.platform else { return Ok(()) };
        if !held.contains(platform) {
            held.push(platform.clone());
        }
    }
    match options.platforms.iter().find(|platform| !held.contains(platform)) {
        Some(platform) => Err(Error::PlatformNotHeld { platform: platform.clone(), held }),
        None => Ok(()),
    }
}

fn open_image(
    source: Box<dyn Source>,
    name: String,
    document: (Document, Digest),
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Opened>, Error> {
    let images = inline::read(&*source, &name, document, options, progress)?;
    let source: Arc<dyn Source> = source.into();
    let mut opened = Vec::new();
    let mut others = Vec::new();
    for inline::Inline { digest, platform, cache } in images {
        let Some(cache) = cache else {
            others.extend(platform);
            continue;
        };
        let report = BakedCache {
            cache: name.clone(),
            digest,
            platform,
            records: cache.records.len(),
            written_by: None,
        };
        opened.push(Opened { source: Box::new(Arc::clone(&source)), cache, report });
    }
    if opened.is_empty() {
        return Err(Error::NoPlatform { cache: name, wanted: options.platforms.clone(), held: others });
    }
    Ok(opened)
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
