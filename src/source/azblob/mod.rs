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
mod error;

use jiff::Timestamp;

pub use self::attributes::Attributes;
use self::attributes::join;
use self::credentials::Authority;
pub use self::error::AzureError;
use super::http::{Failure, Options, Transport, element, percent_encode};
use super::objects::{Config, Object, Objects, Store};
use super::{Denied, Error};

/// A container, and who is asking.
pub(super) struct Container {
    /// `container <name>`, for messages.
    place: String,
    /// Percent-encoded.
    path: String,
    authority: Authority,
    transport: Transport,
    /// `scheme://host:port`.
    server: String,
}

/// Gets ready; asks for nothing yet.
///
/// # Errors
/// Neither the attributes nor the environment say which account, or what they say is none.
pub(super) fn open(attributes: &Attributes, options: &Options) -> Result<Objects<Container>, Error> {
    let settings = attributes.settings(&options.env)?;
    let url = &settings.url;
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let manifests = join(&[&settings.prefix, &attributes.manifests_prefix]);
    let config = |name: &String| Config {
        what: format!("cache {name:?}"),
        name: name.clone(),
        part: String::new(),
        key: join(&[&manifests, name]),
        // Upstream takes what there is of several names; nobody shall wonder, though.
        is_expected: true,
    };
    let configs = attributes.names.iter().map(config).collect();
    let mut blobs = join(&[&settings.prefix, &attributes.blobs_prefix]);
    if !blobs.is_empty() && !blobs.ends_with('/') {
        blobs.push('/');
    }
    let store = Container {
        place: format!("container {}", settings.container),
        path: format!("{}/{}", url.path().trim_end_matches('/'), settings.container),
        authority: Authority::new(&settings.account, attributes.key.as_ref(), options)?,
        transport: Transport::at(url, options)?,
        server: format!("{}://{authority}", url.scheme_str().unwrap_or("https")),
    };
    Ok(Objects::new(store, attributes.written.to_string(), configs, blobs, options))
}

impl Store for Container {
    fn place(&self) -> &str {
        &self.place
    }

    fn get(&self, what: &str, key: &str, headers: &[(&'static str, String)]) -> Result<Object, Failure> {
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
            return Ok(Object::Here(reply));
        }
        let code = reply.header("x-ms-error-code").map(str::to_owned);
        let (body, detail) = reply.error_body();
        let code = code.or_else(|| element(&body, "Code")).unwrap_or_default();
        let (status, host) = (reply.status, reply.host);
        Err(match (status, code.as_str()) {
            (404, "ContainerNotFound") => Error::NoSuchContainer { host, name: self.place.clone(), detail },
            (404, _) => return Ok(Object::Missing(detail)),
            (401 | 403 | 409, _) => {
                let denied = Denied {
                    host,
                    what: format!("{what} ({key}) in {}", self.place),
                    credentials: self.authority.shown(),
                    status,
                    detail,
                    advice: advice(&code, self.authority.has_key()).to_owned(),
                };
                Error::Denied(Box::new(denied))
            }
            _ => Error::Status { what: format!("{what} of {}", self.place), host, status, detail },
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
