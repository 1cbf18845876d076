//! A cache of GitHub Actions, as `--cache-to type=gha` writes it, for bakes that a workflow starts.
//!
//! ```text
//! index-<scope>-1-<hash of ref>#<n>    the cache config, with an annotation for each layer; the newest counts
//! buildkit-blob-1-sha256:<hex>         a layer
//!
//! version 2   POST <url>/twirp/…/GetCacheEntryDownloadURL {key, restore_keys, version}
//!             -> {ok, signed_download_url}
//! version 1   GET <url>/_apis/artifactcache/cache?keys&version -> {archiveLocation}, or status 204
//! ```
//!
//! Mirrors the importer of `BuildKit`'s `cache/remotecache/gha/gha.go` and
//! `github.com/tonistiigi/go-actions-cache`. The token names the refs whose caches a job may read: its own
//! branch's and those of the branches it comes from. A daemon imports all of them, and so does a bake.

mod attributes;
mod token;

use std::fmt;
use std::io::Write;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

pub use self::attributes::Attributes;
use self::attributes::{Protocol, Settings};
use self::token::Scope;
use super::http::{
    Download, Failure, Method, Options, Reply, RetryPolicy, Stop, Transport, document, percent_encode,
};
use super::{Denied, Error, Manifest, MissingCache, Source};
use crate::digest::Digest;
use crate::oci::Descriptor;
use crate::progress::Progress;

const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService/GetCacheEntryDownloadURL";
/// What go-actions-cache hashes for the `version` of every entry.
const ENTRY_VERSION: &str = "|go-actionscache-1.0";
const PLACE: &str = "the cache of GitHub Actions";

/// The caches of one scope, one for each ref that the token may read.
pub struct Gha {
    name: String,
    scope: String,
    settings: Settings,
    refs: Vec<Scope>,
    transport: Transport,
    retry: RetryPolicy,
    stop: Stop,
}

#[derive(Deserialize)]
struct AnswerV2 {
    #[serde(default)]
    ok: bool,
    #[serde(default, alias = "signedDownloadUrl")]
    signed_download_url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerV1 {
    #[serde(default)]
    archive_location: String,
}

impl fmt::Debug for Gha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gha").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Gha {
    /// Gets ready; asks for nothing yet.
    ///
    /// # Errors
    /// [`Error::NoRunner`] where neither attributes nor environment have address and token, and
    /// [`Error::JobToken`] where the token has ended, or is none.
    pub fn open(attributes: &Attributes, options: &Options) -> Result<Self, Error> {
        let settings = attributes.settings(&options.env)?;
        let refs = token::scopes(settings.token.expose(), Timestamp::now())
            .map_err(|reason| Error::JobToken { origin: settings.origin, reason })?;
        Ok(Self {
            name: attributes.written.to_string(),
            scope: attributes.scope.clone(),
            transport: Transport::at(&settings.url, options)?,
            settings,
            refs,
            retry: options.retry,
            stop: options.stop.clone(),
        })
    }

    /// What the key of a ref's cache config begins with. A number follows it, and goes up with each export.
    fn index_key(&self, scope: &Scope) -> String {
        let hash = Digest::of(scope.name.as_bytes()).hex();
        format!("index-{}-1-{}#", self.scope, &hash[..8])
    }

    /// Makes one request for an entry. Gives an answer that has it, in whole or in part.
    fn get(
        &self,
        what: &str,
        key: &str,
        headers: &[(&'static str, String)],
        missing: &dyn Fn(String) -> Error,
    ) -> Result<Reply, Failure> {
        if self.stop.is_stopped() {
            return Err(Error::Stopped { what: what.to_owned() }.into());
        }
        let url = self.locate(what, key)?.ok_or_else(|| missing(String::new()))?;
        let mut reply = self.transport.get(&url, headers, None)?;
        if let Some(failure) = reply.passing_failure() {
            return Err(failure);
        }
        match reply.status {
            200 | 206 => Ok(reply),
            404 => Err(missing(reply.error_detail()).into()),
            status => {
                let detail = reply.error_detail();
                let host = reply.host;
                if matches!(status, 401 | 403) {
                    // Its address was signed for some minutes only: the service has others.
                    let reason = format!("{host} answered with status {status} ({detail})");
                    return Err(Failure::again(reason));
                }
                let what = format!("{what} of {PLACE}");
                Err(Error::Status { what, host, status, detail }.into())
            }
        }
    }

    /// Asks the service where the newest entry is whose key begins with `key`.
    fn locate(&self, what: &str, key: &str) -> Result<Option<String>, Failure> {
        let version = Digest::of(ENTRY_VERSION.as_bytes()).hex();
        let base = self.transport.base()?;
        let authorization = format!("Bearer {}", self.settings.token.expose());
        let mut reply = match self.settings.protocol {
            Protocol::V2 => {
                let headers =
                    [("authorization", authorization), ("content-type", "application/json".to_owned())];
                let body = json!({ "key": key, "restore_keys": [key], "version": version }).to_string();
                self.transport.send(Method::Post, &format!("{base}/{SERVICE}"), &headers, body.as_bytes())?
            }
            Protocol::V1 => {
                let accept = [("accept", "application/json;api-version=6.0-preview.1".to_owned())];
                let keys = percent_encode(key);
                let url = format!("{base}/_apis/artifactcache/cache?keys={keys}&version={version}");
                self.transport.get_here(&url, &accept, Some(&authorization))?
            }
        };
        if let Some(failure) = reply.passing_failure() {
            return Err(failure);
        }
        let status = reply.status;
        if status == 204 {
            return Ok(None);
        }
        let what = || format!("{what} of {PLACE}");
        if status != 200 {
            let detail = reply.error_detail();
            let host = reply.host;
            if !matches!(status, 401 | 403) {
                return Err(Error::Status { what: what(), host, status, detail }.into());
            }
            let credentials = format!("with the token from {}", self.settings.origin);
            let advice = "a job's token lasts as long as the job: bake in a step of the workflow".to_owned();
            let denied = Denied { host, what: what(), credentials, status, detail, advice };
            return Err(Error::Denied(Box::new(denied)).into());
        }
        let bytes = reply.answer()?;
        let bad = |reason: String| Error::BadAnswer { what: what(), host: reply.host.clone(), reason };
        let json = |error| bad(format!("sent an answer that is not valid: {error}"));
        let url = match self.settings.protocol {
            Protocol::V2 => {
                let answer: AnswerV2 = serde_json::from_slice(&bytes).map_err(json)?;
                answer.ok.then_some(answer.signed_download_url)
            }
            Protocol::V1 => {
                let answer: AnswerV1 = serde_json::from_slice(&bytes).map_err(json)?;
                Some(answer.archive_location).filter(|url| !url.is_empty())
            }
        };
        let Some(url) = url else { return Ok(None) };
        if !url.parse().is_ok_and(|url| self.transport.may_ask(&url)) {
            return Err(
                bad("names an address that may not be asked, since it is not on https".to_owned()).into()
            );
        }
        Ok(Some(url))
    }
}

impl Source for Gha {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error> {
        Manifest::one_of(self.manifests(progress)?, digest, &self.name)
    }

    fn manifests(&self, progress: &dyn Progress) -> Result<Vec<Manifest>, Error> {
        let mut found = Vec::new();
        let mut first_missing = None;
        for scope in &self.refs {
            let (what, key) = (format!("scope {:?} of {}", self.scope, scope.name), self.index_key(scope));
            let missing = |detail| {
                let missing = MissingCache {
                    name: self.scope.clone(),
                    place: format!("{PLACE} for {}", scope.name),
                    key: key.clone(),
                    detail,
                };
                Error::NoSuchCache(Box::new(missing))
            };
            let whole = format!("{what} of {PLACE}");
            let ask = || self.get(&what, &key, &[], &missing);
            match document(&whole, &self.name, self.retry, &self.stop, progress, &ask) {
                Ok(bytes) => found.push(Manifest::of_config(bytes, None, &self.name)?),
                // A branch of which nothing has been built yet takes what the others have.
                Err(error @ Error::NoSuchCache(_)) => {
                    first_missing.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match first_missing {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    fn blob(&self, blob: &Descriptor, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error> {
        let key = format!("buildkit-blob-1-{}", blob.digest);
        let missing =
            |detail| Error::NoSuchBlob { blob: blob.digest, source_name: format!("{PLACE} ({key})"), detail };
        let download =
            Download { blob, source_name: &self.name, place: PLACE, retry: self.retry, stop: &self.stop };
        download.run(out, progress, &|what, headers| self.get(what, &key, headers, &missing))
    }

    fn repository(&self) -> Option<(String, String)> {
        None
    }
}
