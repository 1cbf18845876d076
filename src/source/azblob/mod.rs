//! Caches in Azure's blob storage, as `--cache-to type=azblob` writes them.
//!
//! ```text
//! <container>/<prefix>/<manifests_prefix>/<name>    the cache config, with an annotation for each layer
//! <container>/<prefix>/<blobs_prefix>/sha256:<hex>  a layer
//! ```
//!
//! Mirrors the importer of `BuildKit`'s `cache/remotecache/azblob`. It takes the caches of all names that
//! are written, and so does a bake.

mod attributes;
mod credentials;

use std::fmt;
use std::io::Write;

use jiff::Timestamp;

pub use self::attributes::Attributes;
use self::attributes::join;
use self::credentials::Authority;
pub use self::credentials::AzureError;
use super::http::{
    Download, Failure, Options, Reply, RetryPolicy, Stop, Transport, document, element, percent_encode,
};
use super::{Denied, Error, Manifest, MissingCache, Source};
use crate::digest::Digest;
use crate::oci::Descriptor;
use crate::progress::{Event, Progress};

/// The caches of some names in one container.
pub struct Azblob {
    name: String,
    names: Vec<String>,
    container: String,
    manifests: String,
    blobs: String,
    /// Of the container, percent-encoded.
    path: String,
    authority: Authority,
    transport: Transport,
    /// `scheme://host:port`.
    server: String,
    retry: RetryPolicy,
    stop: Stop,
}

impl fmt::Debug for Azblob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azblob").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Azblob {
    /// Gets ready; asks for nothing yet.
    ///
    /// # Errors
    /// Neither the attributes nor the environment say which account, or what they say is none.
    pub fn open(attributes: &Attributes, options: &Options) -> Result<Self, Error> {
        let settings = attributes.settings(&options.env)?;
        let url = &settings.url;
        let authority = url.authority().map_or("", |authority| authority.as_str());
        Ok(Self {
            name: attributes.written.to_string(),
            names: attributes.names.clone(),
            manifests: join(&[&settings.prefix, &attributes.manifests_prefix]),
            blobs: join(&[&settings.prefix, &attributes.blobs_prefix]),
            path: format!("{}/{}", url.path().trim_end_matches('/'), settings.container),
            container: settings.container,
            authority: Authority::new(&settings.account, attributes.key.as_ref(), options)?,
            transport: Transport::at(url, options)?,
            server: format!("{}://{authority}", url.scheme_str().unwrap_or("https")),
            retry: options.retry,
            stop: options.stop.clone(),
        })
    }

    fn place(&self) -> String {
        format!("container {}", self.container)
    }

    /// Makes one request for the blob `key`. Gives an answer that has it, in whole or in part.
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
        // As the exporter's client writes it: a slash in a name is encoded, too.
        let path = format!("{}/{}", self.path, percent_encode(key));
        let range = headers.iter().find(|(name, _)| *name == "range").map(|(_, value)| value.as_str());
        let mut all = self.authority.headers(&path, range, Timestamp::now())?;
        all.extend_from_slice(headers);
        let mut reply = self.transport.get_here(&format!("{}{path}", self.server), &all, None)?;
        if let Some(failure) = reply.passing_failure() {
            return Err(failure);
        }
        if matches!(reply.status, 200 | 206) {
            return Ok(reply);
        }
        let code = reply.header("x-ms-error-code").map(str::to_owned);
        let (body, detail) = reply.error_body();
        let code = code.or_else(|| element(&body, "Code")).unwrap_or_default();
        let (status, host) = (reply.status, reply.host);
        Err(match (status, code.as_str()) {
            (404, "ContainerNotFound") => Error::NoSuchContainer { host, name: self.place(), detail },
            (404, _) => missing(detail),
            (401 | 403 | 409, _) => {
                let denied = Denied {
                    host,
                    what: format!("{what} ({key}) in {}", self.place()),
                    credentials: self.authority.shown(),
                    status,
                    detail,
                    advice: advice(&code, self.authority.has_key()).to_owned(),
                };
                Error::Denied(Box::new(denied))
            }
            _ => Error::Status { what: format!("{what} of {}", self.place()), host, status, detail },
        }
        .into())
    }
}

/// What to do about a refusal.
fn advice(code: &str, with_key: bool) -> &'static str {
    match (code, with_key) {
        ("AuthenticationFailed" | "AuthorizationFailure", true) => {
            "check account_name, secret_access_key, the account's network rules, and this machine's clock, which \
             may be 15 minutes off at most"
        }
        ("AuthorizationPermissionMismatch" | "AuthorizationFailure", _) => {
            "give the identity the role Storage Blob Data Reader, and let the account's network rules admit it"
        }
        _ => "check that the account may read the container",
    }
}

impl Source for Azblob {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn manifest(&self, digest: Option<&Digest>, progress: &dyn Progress) -> Result<Manifest, Error> {
        Manifest::one_of(self.manifests(progress)?, digest, &self.name)
    }

    fn manifests(&self, progress: &dyn Progress) -> Result<Vec<Manifest>, Error> {
        let mut found = Vec::new();
        let mut all_missing = Vec::new();
        for name in &self.names {
            let (what, key) = (format!("cache {name:?}"), join(&[&self.manifests, name]));
            let missing = |detail| {
                let missing =
                    MissingCache { name: name.clone(), place: self.place(), key: key.clone(), detail };
                Error::NoSuchCache(Box::new(missing))
            };
            let whole = format!("{what} of {}", self.place());
            let ask = || self.get(&what, &key, &[], &missing);
            match document(&whole, &self.name, self.retry, &self.stop, progress, &ask) {
                Ok(bytes) => found.push(Manifest::of_config(bytes, None, &self.name)?),
                Err(error @ Error::NoSuchCache(_)) => all_missing.push(error),
                Err(error) => return Err(error),
            }
        }
        if found.is_empty() && !all_missing.is_empty() {
            return Err(all_missing.swap_remove(0));
        }
        // Upstream takes what there is of several names; nobody shall wonder, though.
        for error in all_missing {
            progress.event(Event::Warning(error.to_string()));
        }
        Ok(found)
    }

    fn blob(&self, blob: &Descriptor, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error> {
        let place = self.place();
        let key = join(&[&self.blobs, &blob.digest.to_string()]);
        let missing =
            |detail| Error::NoSuchBlob { blob: blob.digest, source_name: format!("{place} ({key})"), detail };
        let download =
            Download { blob, source_name: &self.name, place: &place, retry: self.retry, stop: &self.stop };
        download.run(out, progress, &|what, headers| self.get(what, &key, headers, &missing))
    }

    fn repository(&self) -> Option<(String, String)> {
        None
    }
}
