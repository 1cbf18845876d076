//! The sidecar of a cache: a keys file in the same repository, that refers to the cache's manifest.
//!
//! ```text
//! cache manifest <──subject── sidecar {artifactType, config {}, layers: [keys file]}
//!      ^                         ^   ^
//!      |                         |   └─ referrers of the cache's digest (API, or tag sha256-<hex>)
//!  tag "cache" ············· tag "cache.warmkit-keys": the newest sidecar that was pushed for that tag
//! ```
//!
//! A cache that is pushed again under its tag is another manifest, to which nothing refers yet. Most of its
//! records are those of the one before, so the sidecar of that one, found by the second tag, is still worth
//! reading. Nothing of this needs trust: what a sidecar has are candidates.

mod pull;
mod push;

use std::collections::BTreeSet;

use super::{Error, Offer, Options};
use crate::digest::Digest;
use crate::keys::file::{self, KeysFile};
use crate::oci::{Artifact, Descriptor, Reference, Referrer};
use crate::progress::{Event, Progress};
use crate::source::{CacheSpec, Manifest, Registry, Source};

pub use pull::{PullReport, PulledSidecar, pull};
pub use push::{PushReport, push};

/// What a sidecar is, as its manifest says it.
pub const ARTIFACT_TYPE: &str = "application/vnd.warmkit.keys.v1";
/// The media type of a sidecar's only layer: the keys file.
pub const LAYER_TYPE: &str = "application/vnd.warmkit.keys.v1+json";
/// The annotation of a sidecar that names those of the same subject which it replaces.
pub const SUPERSEDES: &str = "vnd.warmkit.keys.supersedes";
/// What comes behind a cache's tag in the tag of its newest sidecar.
const TAG_SUFFIX: &str = ".warmkit-keys";
/// The longest tag that registries take.
const MAX_TAG: usize = 128;
/// The most sidecars of one cache that are read. Each push replaces those before, so there is one, or
/// some few where several were pushed at the same time.
const MAX_SIDECARS: usize = 16;
/// The most manifests that are read to find them. Registries tell in their list what replaces what; of one
/// that does not, each manifest that was ever pushed has to be asked.
const MAX_LISTED: usize = 256;

/// Why something that is listed as a sidecar is none that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Its manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] crate::oci::Error),
    /// Its manifest is one of something else.
    #[error("its manifest has no layer of media type {LAYER_TYPE} alone")]
    Layers,
    /// Its keys file is too long, or those of all sidecars of a cache are: a push could not put them into one.
    #[error("its keys file is said to have {size} bytes; of all together no more than {limit} are read", limit = file::MAX_BYTES)]
    TooLarge {
        /// As its manifest says.
        size: u64,
    },
    /// Its keys file is none.
    #[error(transparent)]
    Keys(#[from] file::Error),
    /// There are too many of them.
    #[error("the registry lists {found} sidecars for it, and no more than {limit} are read")]
    TooMany {
        /// How many there are.
        found: usize,
        /// The most that are read.
        limit: usize,
    },
}

/// A sidecar that was read.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// What to call it: `sidecar of ghcr.io/acme/app:cache`, `earlier sidecar of …`.
    pub name: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Whether it was pushed for the cache as it is now, and not for an earlier one under the same tag.
    pub current: bool,
    /// What it holds.
    pub keys: KeysFile,
}

impl Sidecar {
    /// As a key source.
    pub fn offer(&self) -> Offer {
        Offer { source: self.name.clone(), candidates: self.keys.candidates() }
    }
}

/// The sidecars of a cache: those that refer to `subject`, its manifest, or else the last one that was pushed for
/// its tag. None for a cache that is in no registry.
///
/// That there is none is no error, nor that the registry has no means to tell.
///
/// # Errors
/// The registry cannot be reached, or what is there cannot be read: what a bake finds must not depend on
/// how the registry feels.
pub fn find(
    spec: &CacheSpec,
    subject: &Digest,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Sidecar>, Error> {
    let CacheSpec::Registry { reference, insecure } = spec else { return Ok(Vec::new()) };
    if options.no_sidecar {
        return Ok(Vec::new());
    }
    let mut registry_options = options.registry.clone();
    registry_options.insecure |= insecure;
    let cache = Cache { reference, subject, options };
    let registry = Registry::open(reference, &registry_options).map_err(|source| cache.failed(source))?;
    cache.find(&registry, progress).map(|found| found.sidecars)
}

/// A cache in a registry whose sidecars are looked for.
struct Cache<'a> {
    reference: &'a Reference,
    subject: &'a Digest,
    options: &'a Options,
}

/// What there is beside a cache.
struct Found {
    /// Whether the registry has the referrers API.
    api: bool,
    /// What the registry lists, read or not.
    listed: Vec<Digest>,
    sidecars: Vec<Sidecar>,
}

impl Cache<'_> {
    fn failed(&self, source: crate::source::Error) -> Error {
        Error::Sidecar { cache: self.reference.to_string(), source: Box::new(source) }
    }

    fn damaged(&self, sidecar: &Digest, problem: impl Into<Problem>) -> Error {
        Error::SidecarContent {
            cache: self.reference.to_string(),
            sidecar: *sidecar,
            problem: Box::new(problem.into()),
        }
    }

    fn find(&self, registry: &Registry, progress: &dyn Progress) -> Result<Found, Error> {
        let (api, listed) = self.listed(registry, progress)?;
        let digests = listed.iter().map(|referrer| referrer.manifest.digest).collect();
        if self.options.no_sidecar {
            return Ok(Found { api, listed: digests, sidecars: Vec::new() });
        }
        let mut read = Vec::new();
        for referrer in self.few(live(listed.iter().map(|referrer| &referrer.manifest)), MAX_LISTED)? {
            self.options.check()?;
            let manifest =
                registry.manifest(Some(&referrer.digest), progress).map_err(|source| self.failed(source))?;
            read.extend(self.artifact(&manifest)?.map(|artifact| (manifest.digest, artifact)));
        }
        // A list need not have the annotations, so what is superseded may be known only now.
        let described: Vec<Descriptor> = read
            .iter()
            .map(|(digest, artifact)| {
                let mut descriptor = Descriptor::new(ARTIFACT_TYPE, *digest, 0);
                descriptor.annotations.clone_from(&artifact.annotations);
                descriptor
            })
            .collect();
        let mut sidecars = Vec::new();
        let mut left = file::MAX_BYTES;
        for live in self.few(live(described.iter()), MAX_SIDECARS)? {
            let Some((digest, artifact)) = read.iter().find(|(digest, _)| *digest == live.digest) else {
                continue;
            };
            let keys = self.keys(registry, digest, artifact, &mut left, progress)?;
            let name = format!("sidecar of {}", self.reference);
            sidecars.push(Sidecar { name, digest: *digest, current: true, keys });
        }
        if sidecars.is_empty() {
            sidecars.extend(self.earlier(registry, progress)?);
        }
        Ok(Found { api, listed: digests, sidecars })
    }

    /// `all` of them, unless they are more than `limit`.
    fn few<'a>(&self, all: Vec<&'a Descriptor>, limit: usize) -> Result<Vec<&'a Descriptor>, Error> {
        match all.get(limit) {
            Some(first) => Err(self.damaged(&first.digest, Problem::TooMany { found: all.len(), limit })),
            None => Ok(all),
        }
    }

    /// What refers to the cache, and whether the registry has an API to say so.
    fn listed(&self, registry: &Registry, progress: &dyn Progress) -> Result<(bool, Vec<Referrer>), Error> {
        let failed = |source| self.failed(source);
        if let Some(listed) = registry.referrers(self.subject, ARTIFACT_TYPE, progress).map_err(failed)? {
            return Ok((true, listed));
        }
        let listed = registry.tagged_referrers(self.subject, ARTIFACT_TYPE, progress).map_err(failed)?;
        Ok((false, listed))
    }

    /// The manifest of a sidecar; `None` where it is that of some other artifact.
    fn artifact(&self, manifest: &Manifest) -> Result<Option<Artifact>, Error> {
        let artifact =
            Artifact::parse(&manifest.bytes).map_err(|error| self.damaged(&manifest.digest, error))?;
        Ok(Some(artifact).filter(|artifact| artifact.artifact_type == ARTIFACT_TYPE))
    }

    /// What a sidecar holds; its size is taken from `left`, in bytes.
    fn keys(
        &self,
        registry: &Registry,
        digest: &Digest,
        artifact: &Artifact,
        left: &mut u64,
        progress: &dyn Progress,
    ) -> Result<KeysFile, Error> {
        let [layer] = artifact.layers.as_slice() else { return Err(self.damaged(digest, Problem::Layers)) };
        if layer.media_type != LAYER_TYPE {
            return Err(self.damaged(digest, Problem::Layers));
        }
        let rest = left.checked_sub(layer.size);
        *left = rest.ok_or_else(|| self.damaged(digest, Problem::TooLarge { size: layer.size }))?;
        let bytes = registry.document(layer, progress).map_err(|source| self.failed(source))?;
        KeysFile::parse(&bytes).map_err(|error| self.damaged(digest, error))
    }

    /// The last sidecar that was pushed for the cache's tag, whatever the tag meant then.
    fn earlier(&self, registry: &Registry, progress: &dyn Progress) -> Result<Option<Sidecar>, Error> {
        let Some(tag) = self.reference.tag().map(sidecar_tag) else { return Ok(None) };
        let Some(manifest) = registry.tagged(&tag, progress).map_err(|source| self.failed(source))? else {
            return Ok(None);
        };
        // Nobody says that this tag is ours, as referrers of our type are.
        let Some(artifact) = self.artifact(&manifest).unwrap_or_default() else {
            progress.event(Event::Warning(format!(
                "tag {tag:?} beside {} holds something else than a sidecar, and is passed over",
                self.reference
            )));
            return Ok(None);
        };
        let mut left = file::MAX_BYTES;
        let keys = self.keys(registry, &manifest.digest, &artifact, &mut left, progress)?;
        let current = artifact.subject.is_some_and(|subject| subject.digest == *self.subject);
        let earlier = if current { "" } else { "earlier " };
        let name = format!("{earlier}sidecar of {}", self.reference);
        Ok(Some(Sidecar { name, digest: manifest.digest, current, keys }))
    }
}

/// Those that no other one supersedes, by their digests.
fn live<'a>(listed: impl Iterator<Item = &'a Descriptor> + Clone) -> Vec<&'a Descriptor> {
    let superseded: BTreeSet<Digest> = listed.clone().flat_map(superseded_by).collect();
    let mut live: Vec<_> = listed.filter(|descriptor| !superseded.contains(&descriptor.digest)).collect();
    live.sort_unstable_by_key(|descriptor| descriptor.digest);
    live.dedup_by_key(|descriptor| descriptor.digest);
    live
}

/// What a sidecar says that it replaces: other ones, never itself.
fn superseded_by(sidecar: &Descriptor) -> Vec<Digest> {
    let text = sidecar.annotations.get(SUPERSEDES).map_or("", String::as_str);
    text.split(',')
        .filter_map(|digest| digest.parse().ok())
        .filter(|digest| *digest != sidecar.digest)
        .collect()
}

/// The tag of the newest sidecar of what a tag names.
fn sidecar_tag(tag: &str) -> String {
    if tag.len() + TAG_SUFFIX.len() <= MAX_TAG {
        format!("{tag}{TAG_SUFFIX}")
    } else {
        format!("{}{TAG_SUFFIX}", Digest::of(tag.as_bytes()).hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar(name: &str, supersedes: &[&str]) -> Descriptor {
        let digest = |name: &str| Digest::of(name.as_bytes());
        let mut descriptor = Descriptor::new(ARTIFACT_TYPE, digest(name), 1);
        let text: Vec<_> = supersedes.iter().map(|name| digest(name).to_string()).collect();
        descriptor.annotations.insert(SUPERSEDES.to_owned(), text.join(","));
        descriptor
    }

    #[test]
    fn what_is_superseded_is_passed_over() {
        let listed = [
            sidecar("a", &[]),
            sidecar("b", &["a"]),
            sidecar("c", &["b", "gone"]),
            sidecar("at the same time", &["b", "at the same time"]),
            sidecar("c", &["b"]),
        ];
        let mut expected = ["c", "at the same time"].map(|name| Digest::of(name.as_bytes()));
        expected.sort_unstable();
        assert_eq!(live(listed.iter()).iter().map(|d| d.digest).collect::<Vec<_>>(), expected);
        let mut odd = sidecar("x", &[]);
        odd.annotations.insert(SUPERSEDES.to_owned(), "latest,,sha256:0".to_owned());
        assert!(superseded_by(&odd).is_empty());
    }

    #[test]
    fn the_tag_of_a_sidecar_is_one_that_registries_take() {
        assert_eq!(sidecar_tag("cache"), "cache.warmkit-keys");
        let long = sidecar_tag(&"x".repeat(128));
        assert_eq!(long.len(), 64 + TAG_SUFFIX.len());
        assert_ne!(long, sidecar_tag(&"x".repeat(127)));
        assert_eq!(sidecar_tag(&"y".repeat(115)).len(), 128);
    }
}
