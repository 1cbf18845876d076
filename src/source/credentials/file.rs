//! The files of docker and podman.
//!
//! ```text
//! {"auths":       {"<host or host/namespace>": {"auth": base64("user:password"), "identitytoken": …}},
//!  "credHelpers": {"<host>": "<name>"},        runs docker-credential-<name>
//!  "credsStore":  "<name>"}
//! ```
//!
//! The order is docker's (`cli/config/configfile/file.go`): the helper of that host, then the store for all
//! hosts, then `auths`, of which the longest match counts, as in `containers-auth.json(5)`.

use std::collections::BTreeMap;

use base64::Engine;
use serde::Deserialize;

use super::error::{CredentialError, JsonFault};
use super::{Login, Place};
use crate::source::secret::Secret;

/// The key under which docker keeps Docker Hub's credentials.
const HUB_KEY: &str = "https://index.docker.io/v1/";

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AuthFile {
    auths: Option<BTreeMap<String, AuthEntry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthFile {
    /// Reads what docker and podman write; `place` is for messages.
    pub(super) fn parse(place: &Place, bytes: &[u8]) -> Result<Self, CredentialError> {
        let json = |error| CredentialError::Json { path: place.to_string(), fault: JsonFault::from(&error) };
        serde_json::from_slice(bytes).map_err(json)
    }

    /// The helpers to ask for a registry, in order, by their short names.
    pub(super) fn helpers<'a>(&'a self, registry: &str) -> impl Iterator<Item = &'a str> {
        let keys = host_keys(registry);
        let of_host = self.cred_helpers.iter().flatten().find(|(key, _)| keys.contains(&key.as_str()));
        let helpers = of_host.map(|(_, name)| name).into_iter().chain(&self.creds_store);
        helpers.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// What stands in the file itself.
    pub(super) fn login(
        &self,
        place: &Place,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Login>, CredentialError> {
        let Some(auths) = &self.auths else { return Ok(None) };
        for wanted in host_keys(registry).iter().flat_map(|host| namespaces(host, repository)) {
            let exact = auths.get_key_value(&wanted);
            let same_host = || auths.iter().find(|(key, _)| host_of_url(key).is_some_and(|h| h == wanted));
            if let Some((key, entry)) = exact.or_else(same_host)
                && let Some(login) = entry.login(place, key)?
            {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

impl AuthEntry {
    /// What to show; docker leaves an empty entry where a helper holds it.
    fn login(&self, place: &Place, key: &str) -> Result<Option<Login>, CredentialError> {
        let set = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Login::Identity(Secret::new(token))));
        }
        if let Some(token) = set(&self.registrytoken) {
            return Ok(Some(Login::Registry(Secret::new(token))));
        }
        if let Some(auth) = set(&self.auth) {
            let invalid = || CredentialError::Encoding { path: place.to_string(), key: key.to_owned() };
            let (user, password) = decode_auth(&auth).ok_or_else(invalid)?;
            return Ok(Some(Login::password(&user, password)));
        }
        let both = set(&self.username).zip(set(&self.password));
        Ok(both.map(|(user, password)| Login::password(&user, password)))
    }
}

/// Decodes `auth`; padding may be missing, and a trailing NUL is docker's own doing.
fn decode_auth(auth: &str) -> Option<(String, String)> {
    let bytes =
        base64::engine::general_purpose::STANDARD_NO_PAD.decode(auth.trim().trim_end_matches('=')).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The names under which a registry's credentials may stand.
pub(super) fn host_keys(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" => vec![HUB_KEY, "index.docker.io", "docker.io", "registry-1.docker.io"],
        other => vec![other],
    }
}

/// `host/a/b`, `host/a`, `host`.
fn namespaces(host: &str, repository: &str) -> Vec<String> {
    let mut keys = vec![host.to_owned()];
    if !host.ends_with('/') {
        let mut key = host.to_owned();
        for part in repository.split('/') {
            key = format!("{key}/{part}");
            keys.push(key.clone());
        }
    }
    keys.reverse();
    keys
}

/// The host of a key that is written as a URL, as old docker releases did.
fn host_of_url(key: &str) -> Option<&str> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"))?;
    rest.split('/').next()
}
