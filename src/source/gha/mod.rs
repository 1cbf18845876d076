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

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

pub use self::attributes::Attributes;
use self::attributes::{Protocol, Settings};
use self::token::Scope;
use super::http::{Failure, Method, Options, Transport, percent_encode};
use super::objects::{Config, Object, Objects, Store};
use super::{Denied, Error};
use crate::digest::Digest;

const SERVICE: &str = "twirp/github.actions.results.api.v1.CacheService/GetCacheEntryDownloadURL";
/// What go-actions-cache hashes for the `version` of every entry.
const ENTRY_VERSION: &str = "|go-actionscache-1.0";
const PLACE: &str = "the cache of GitHub Actions";

/// The service, and the job that asks it.
pub(super) struct Service {
    settings: Settings,
    transport: Transport,
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

/// Gets ready; asks for nothing yet.
///
/// # Errors
/// [`Error::NoRunner`] where neither attributes nor environment have address and token, and
/// [`Error::JobToken`] where the token has ended, or is none.
pub(super) fn open(attributes: &Attributes, options: &Options) -> Result<Objects<Service>, Error> {
    let settings = attributes.settings(&options.env)?;
    let refs = token::scopes(settings.token.expose(), Timestamp::now())
        .map_err(|reason| Error::JobToken { origin: settings.origin, reason })?;
    let config = |of: &Scope| Config {
        what: format!("scope {:?} of {}", attributes.scope, of.name),
        name: attributes.scope.clone(),
        part: format!(" for {}", of.name),
        key: index_key(&attributes.scope, of),
        // A branch of which nothing has been built yet takes what the others have.
        is_expected: false,
    };
    let configs = refs.iter().map(config).collect();
    let transport = Transport::at(&settings.url, options)?;
    let store = Service { settings, transport };
    Ok(Objects::new(store, attributes.written.to_string(), configs, "buildkit-blob-1-".to_owned(), options))
}

/// What the key of a ref's cache config begins with. A number follows it, and goes up with each export.
fn index_key(name: &str, of: &Scope) -> String {
    let hash = Digest::of(of.name.as_bytes()).hex();
    format!("index-{name}-1-{}#", &hash[..8])
}

impl Store for Service {
    fn place(&self) -> &str {
        PLACE
    }

    fn get(&self, what: &str, key: &str, headers: &[(&'static str, String)]) -> Result<Object, Failure> {
        let Some(url) = self.locate(what, key)? else { return Ok(Object::Missing(String::new())) };
        let mut reply = self.transport.get(&url, headers, None)?;
        if let Some(failure) = reply.passing_failure() {
            return Err(failure);
        }
        match reply.status {
            200 | 206 => Ok(Object::Here(reply)),
            404 => Ok(Object::Missing(reply.error_detail())),
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
}

impl Service {
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
