//! Caches in an object store, which has no manifests: cache configs and layers, each under its key.

use std::fmt;

use super::http::{Attempts, Download, Failure, Options, Reply, RetryPolicy, Stop};
use super::{Content, Error, MAX_DOCUMENT, Manifest, MissingCache, Source};
use crate::digest::Digest;
use crate::oci::Descriptor;
use crate::progress::{Event, Progress};

/// What an object store answers.
pub(super) enum Object {
    /// The object, in whole or in part.
    Here(Reply),
    /// There is none; with what the store said.
    Missing(String),
}

/// Where objects are. Who is asking, and what refusals mean, is for each store to know.
pub(super) trait Store: Send + Sync {
    /// What to call it in messages: `bucket cache`.
    fn place(&self) -> &str;

    /// Makes one request for the object `key`, with these headers; `what` names it in messages.
    fn get(&self, what: &str, key: &str, headers: &[(&'static str, String)]) -> Result<Object, Failure>;
}

/// Where one cache config is.
pub(super) struct Config {
    /// `cache "name"` or the like, for messages.
    pub(super) what: String,
    /// The name of the cache.
    pub(super) name: String,
    /// Which part of the store has it, where that is not the whole.
    pub(super) part: String,
    pub(super) key: String,
    /// Whether who has others needs to know that this one is missing.
    pub(super) is_expected: bool,
}

/// The caches of an object store that a spec names.
pub(super) struct Objects<S> {
    store: S,
    name: String,
    configs: Vec<Config>,
    /// What the keys of layers begin with; their digests follow.
    blobs: String,
    retry: RetryPolicy,
    stop: Stop,
}

impl<S> fmt::Debug for Objects<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: Store> Objects<S> {
    /// `name` is what to call the source, as the user would write it.
    pub(super) fn new(
        store: S,
        name: String,
        configs: Vec<Config>,
        blobs: String,
        options: &Options,
    ) -> Self {
        Self { store, name, configs, blobs, retry: options.retry, stop: options.stop.clone() }
    }

    /// Asks for an object; one that is not there is `missing`.
    fn get(
        &self,
        what: &str,
        key: &str,
        headers: &[(&'static str, String)],
        missing: impl Fn(String) -> Error,
    ) -> Result<Reply, Failure> {
        match self.store.get(what, key, headers)? {
            Object::Here(reply) => Ok(reply),
            Object::Missing(detail) => Err(missing(detail).into()),
        }
    }

    fn config(&self, config: &Config, progress: &dyn Progress) -> Result<Manifest, Error> {
        let whole = format!("{} of {}", config.what, self.store.place());
        let missing = |detail| {
            let place = format!("{}{}", self.store.place(), config.part);
            let (name, key) = (config.name.clone(), config.key.clone());
            Error::NoSuchCache(Box::new(MissingCache { name, place, key, detail }))
        };
        let bytes = Attempts::new(whole.clone(), self.retry, &self.stop, progress).run(|| {
            let mut reply = self.get(&config.what, &config.key, &[], missing)?;
            let too_large = || Error::TooLarge {
                what: whole.clone(),
                source_name: self.name.clone(),
                limit: MAX_DOCUMENT,
            };
            reply.document(&whole, MAX_DOCUMENT)?.ok_or_else(|| too_large().into())
        })?;
        Ok(Manifest::of_config(bytes))
    }
}

impl<S: Store> Source for Objects<S> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error> {
        let mut all = self.manifests(progress)?;
        let Some(&expected) = digest else { return Ok(all.swap_remove(0)) };
        let found = all[0].digest;
        let fitting = all.into_iter().find(|manifest| manifest.digest == expected);
        let source_name = || self.name.clone();
        fitting.ok_or_else(|| Error::ManifestMismatch { source_name: source_name(), expected, found })
    }

    fn manifests(&self, progress: &dyn Progress) -> Result<Vec<Manifest>, Error> {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for config in &self.configs {
            match self.config(config, progress) {
                Ok(manifest) => found.push(manifest),
                Err(error @ Error::NoSuchCache(_)) => missing.push((config, error)),
                Err(error) => return Err(error),
            }
        }
        if found.is_empty() && !missing.is_empty() {
            return Err(missing.swap_remove(0).1);
        }
        for (_, error) in missing.iter().filter(|(config, _)| config.is_expected) {
            progress.event(Event::Warning(error.to_string()));
        }
        Ok(found)
    }

    fn content<'a>(&'a self, blob: &'a Descriptor) -> Box<dyn Content + 'a> {
        let place = self.store.place();
        let key = format!("{}{}", self.blobs, blob.digest);
        let ask = move |what: &str, headers: &[_]| {
            let source_name = || format!("{place} ({key})");
            let missing =
                |detail| Error::NoSuchBlob { blob: blob.digest, source_name: source_name(), detail };
            self.get(what, &key, headers, missing)
        };
        let (source_name, place) = (self.name.clone(), place.to_owned());
        let (retry, stop, ask) = (self.retry, &self.stop, Box::new(ask));
        Box::new(Download { blob, source_name, place, retry, stop, ask })
    }

    fn repository(&self) -> Option<(String, String)> {
        None
    }
}
