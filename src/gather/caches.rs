//! Opens caches.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;

use super::{Error, Offer, Options, inline, parallel, sidecar};
use crate::digest::Digest;
use crate::oci::media_type::CACHE_CONFIG;
use crate::oci::{Cache, CacheConfig, CacheManifest, Document, Platform};
use crate::progress::Progress;
use crate::source::{CacheSpec, Manifest, Source};

/// A cache that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BakedCache {
    /// As it was asked for.
    pub cache: String,
    /// The digest of its manifest: what the tag meant this time.
    pub digest: Digest,
    /// Of an image with inline cache, the platform; other caches do not tell.
    pub platform: Option<Platform>,
    /// Records of its config.
    pub records: usize,
    /// Which `BuildKit` releases write such keys, such as `v0.18 or newer`, where proven keys tell.
    pub written_by: Option<String>,
}

/// A cache and where its blobs come from.
pub struct Opened {
    /// Its blobs.
    pub source: Box<dyn Source>,
    /// Its records and layers, checked.
    pub cache: Cache,
    /// What to say of it.
    pub report: BakedCache,
    /// The manifest that it was found by: of an image, that of all its platforms.
    pub subject: Digest,
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
    /// The keys that stand beside them; of two names of one cache, once.
    pub sidecars: Vec<Offer>,
    /// The other ones, in that order too.
    pub missing: Vec<Missing>,
}

/// Caches that are read at once: each is a few round trips, and little else.
const CACHES_AT_ONCE: usize = 16;

/// Opens each of `specs`, many at a time, as [`open`] does, and reads its sidecar if it has one.
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
        Ok(opened) => {
            let subject = opened.first().map(|opened| opened.subject);
            let sidecars = subject.map(|subject| sidecar::find(spec, &subject, options, progress));
            Ok(Ok((opened, sidecars.transpose()?.unwrap_or_default())))
        }
        Err(Error::Source { what, source }) if source.is_missing() => Ok(Err((what, source))),
        Err(error) => Err(error),
    })?;
    let mut all = All::default();
    let mut read = HashSet::new();
    let mut last = None;
    for result in results {
        match result {
            Ok((opened, sidecars)) => {
                all.opened.extend(opened);
                let new = sidecars.iter().filter(|sidecar| read.insert(sidecar.digest));
                all.sidecars.extend(new.map(sidecar::Sidecar::offer));
            }
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
    let wrap = |source| Error::Source { what: name.clone(), source: Box::new(source) };
    let source = spec.open(&options.registry).map_err(wrap)?;
    let mut manifests = source.manifests(progress).map_err(wrap)?;
    if manifests.iter().all(|manifest| manifest.media_type == CACHE_CONFIG) {
        return open_alone(source, &name, manifests);
    }
    let manifest = manifests.swap_remove(0);
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
    Ok(vec![Opened { source, cache, report, subject: digest }])
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

/// Opens configs that stand alone, as object stores have them: all of one source.
fn open_alone(source: Box<dyn Source>, name: &str, configs: Vec<Manifest>) -> Result<Vec<Opened>, Error> {
    let source: Arc<dyn Source> = source.into();
    let open = |Manifest { bytes, digest, .. }: Manifest| {
        let cache = CacheConfig::parse(&bytes)
            .and_then(|config| config.resolve_alone(&bytes))
            .map_err(|source| Error::Cache { cache: name.to_owned(), source })?;
        let report = BakedCache {
            cache: name.to_owned(),
            digest,
            platform: None,
            records: cache.records.len(),
            written_by: None,
        };
        Ok(Opened { source: Box::new(Arc::clone(&source)), cache, report, subject: digest })
    };
    configs.into_iter().map(open).collect()
}

fn open_image(
    source: Box<dyn Source>,
    name: String,
    document: (Document, Digest),
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Opened>, Error> {
    let subject = document.1;
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
        opened.push(Opened { source: Box::new(Arc::clone(&source)), cache, report, subject });
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
        .map_err(|source| Error::Source { what: name.to_owned(), source: Box::new(source) })?;
    CacheConfig::parse(&bytes)
        .and_then(|config| config.resolve(manifest))
        .map_err(|source| Error::Cache { cache: name.to_owned(), source })
}
