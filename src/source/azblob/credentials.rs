//! Showing Azure's storage who is asking: with the account's key, or with a token.
//!
//! ```text
//! secret_access_key                                       Shared Key: every request is signed
//! AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET   token, for a service principal
//! … and AZURE_FEDERATED_TOKEN_FILE                        token, for a workload's identity
//! IDENTITY_ENDPOINT, IDENTITY_HEADER                      token, from a service's own endpoint
//! http://169.254.169.254/metadata/identity                token, from the instance's metadata
//! az account get-access-token                             token, of who is logged in
//! ```
//!
//! Mirrors azidentity's `DefaultAzureCredential`, which `BuildKit` uses without a key, in its order.

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use ureq::http::Uri;

use super::error::AzureError;
use crate::source::Error;
use crate::source::credentials::{JsonFault, run_helper};
use crate::source::hmac::hmac_sha256;
use crate::source::http::{Failure, Options, Reply, Transport, one_line, percent_encode};
use crate::source::secret::Secret;

/// The version of the storage's protocol: of those with tokens, one that every emulator knows.
const VERSION: &str = "2021-12-02";
const RESOURCE: &str = "https://storage.azure.com";
const AUTHORITY: &str = "https://login.microsoftonline.com";
const METADATA: &str = "http://169.254.169.254/metadata/identity/oauth2/token";
/// How long before its end a token is fetched anew.
const AHEAD: Duration = Duration::from_secs(300);

fn service(service: &str, reason: impl Into<String>) -> AzureError {
    AzureError::Service { service: service.to_owned(), reason: reason.into() }
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Instant,
    /// For messages, after "with".
    origin: String,
}

/// Who is asking, shared by threads.
pub(super) struct Authority {
    account: String,
    key: Option<Vec<u8>>,
    options: Options,
    /// The lock is held while a token is fetched, so that threads which all find it stale fetch one.
    token: Mutex<Option<Token>>,
}

impl Authority {
    pub(super) fn new(account: &str, key: Option<&Secret>, options: &Options) -> Result<Self, AzureError> {
        let key = key.map(|key| STANDARD.decode(key.expose().trim()).map_err(|_| AzureError::Key));
        Ok(Self {
            account: account.to_owned(),
            key: key.transpose()?,
            options: options.clone(),
            token: Mutex::default(),
        })
    }

    /// The headers that a GET of this path, percent-encoded, has to have.
    pub(super) fn headers(
        &self,
        path: &str,
        range: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<(&'static str, String)>, Failure> {
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let mut headers = vec![("x-ms-date", date.clone()), ("x-ms-version", VERSION.to_owned())];
        let authorization = match &self.key {
            Some(key) => {
                let to_sign = string_to_sign(&self.account, path, range.unwrap_or_default(), &date);
                let signature = STANDARD.encode(hmac_sha256(key, to_sign.as_bytes()));
                format!("SharedKey {}:{signature}", self.account)
            }
            None => format!("Bearer {}", self.bearer()?),
        };
        headers.push(("authorization", authorization));
        Ok(headers)
    }

    /// Whether requests are signed with the account's key.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// For messages: with which credentials the storage was asked.
    pub(super) fn shown(&self) -> String {
        if self.key.is_some() {
            return format!("with the key of account {:?} from secret_access_key", self.account);
        }
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.as_ref().map_or("without credentials".to_owned(), |token| format!("with {}", token.origin))
    }

    fn bearer(&self) -> Result<String, Failure> {
        let mut state = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = state.as_ref().filter(|held| Instant::now() < held.renew_at) {
            return Ok(held.text.clone());
        }
        let fetched = self.fetch()?;
        let text = fetched.text.clone();
        *state = Some(fetched);
        Ok(text)
    }

    fn fetch(&self) -> Result<Token, Failure> {
        let env = &self.options.env;
        let text = |name| env.text(name);
        let client = text("AZURE_CLIENT_ID");
        if let (Some(tenant), Some(client)) = (text("AZURE_TENANT_ID"), client) {
            let scope = format!("{RESOURCE}/.default");
            let mut form =
                vec![("client_id", client), ("grant_type", "client_credentials"), ("scope", &scope)];
            if let Some(secret) = text("AZURE_CLIENT_SECRET") {
                form.push(("client_secret", secret));
                return self.ask_authority(tenant, &form, &format!("the token of client {client}"));
            }
            if let Some(path) = env.path("AZURE_FEDERATED_TOKEN_FILE") {
                let read = std::fs::read_to_string(&path);
                let token = read.map_err(|source| AzureError::Read { path, source })?;
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                form.extend([("client_assertion_type", kind), ("client_assertion", token.trim())]);
                return self.ask_authority(tenant, &form, &format!("the token of workload {client}"));
            }
        }
        if let (Some(endpoint), Some(secret)) = (text("IDENTITY_ENDPOINT"), text("IDENTITY_HEADER")) {
            let header = [("x-identity-header", secret.to_owned())];
            return from_endpoint(endpoint, "2019-08-01", &header, client, &self.options);
        }
        let header = [("metadata", "true".to_owned())];
        // A machine that is no instance says nothing at all, so patience is short.
        let options = Options {
            connect_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(5),
            ..self.options.clone()
        };
        let endpoint = text("AZURE_POD_IDENTITY_AUTHORITY_HOST")
            .map_or_else(|| METADATA.to_owned(), |host| METADATA.replace("http://169.254.169.254", host));
        let metadata = match from_endpoint(&endpoint, "2018-02-01", &header, client, &options) {
            Ok(token) => return Ok(token),
            Err(Failure::Again { reason, .. }) => reason,
            Err(Failure::Final(error)) => error.to_string(),
        };
        self.of_cli().map_err(|cli| {
            if self.options.stop.is_stopped() {
                return Error::Stopped { what: "token for the storage account".to_owned() }.into();
            }
            AzureError::None { metadata, cli }.into()
        })
    }

    fn ask_authority(&self, tenant: &str, form: &[(&str, &str)], origin: &str) -> Result<Token, Failure> {
        let base = self.options.env.text("AZURE_AUTHORITY_HOST").unwrap_or(AUTHORITY);
        let base = base.trim_end_matches('/');
        let transport = Transport::at(&uri(base)?, &self.options)?;
        let url = format!("{base}/{}/oauth2/v2.0/token", percent_encode(tenant));
        token_of(transport.post_form(&url, form)?, origin)
    }

    fn of_cli(&self) -> Result<Token, String> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "accessToken")]
            access_token: String,
            expires_on: Option<i64>,
        }
        let mut az = Command::new("az");
        self.options.env.give_to(&mut az);
        az.args(["account", "get-access-token", "--output", "json", "--resource", RESOURCE]);
        let limit = self.options.helper_timeout;
        let ended = run_helper(&mut az, b"", limit, &self.options.stop).map_err(|error| error.to_string())?;
        if !ended.status.success() {
            return Err(one_line(&ended.stderr));
        }
        let answer: Answer =
            serde_json::from_slice(&ended.stdout).map_err(|error| JsonFault::from(&error).to_string())?;
        let left = answer.expires_on.map_or(0, |end| end - Timestamp::now().as_second());
        let origin = "the token of who is logged in with az".to_owned();
        Ok(Token { text: answer.access_token, renew_at: renewal(u64::try_from(left).unwrap_or(0)), origin })
    }
}

/// When to fetch a token anew that lasts so many seconds.
fn renewal(seconds: u64) -> Instant {
    let lasts = Duration::from_secs(seconds.min(86_400));
    Instant::now() + lasts.saturating_sub(AHEAD.min(lasts / 4))
}

fn uri(text: &str) -> Result<Uri, AzureError> {
    let uri: Uri = text.parse().map_err(|error| service(text, format!("{error}")))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(service(text, "it is no URL of http or https")),
    }
}

fn from_endpoint(
    endpoint: &str,
    version: &str,
    header: &[(&'static str, String)],
    client: Option<&str>,
    options: &Options,
) -> Result<Token, Failure> {
    let transport = Transport::at(&uri(endpoint)?, options)?;
    let mut url = format!("{endpoint}?api-version={version}&resource={}", percent_encode(RESOURCE));
    if let Some(client) = client {
        url = format!("{url}&client_id={}", percent_encode(client));
    }
    token_of(transport.get_here(&url, header, None)?, "the token of the managed identity")
}

fn token_of(mut reply: Reply, origin: &str) -> Result<Token, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        /// A number; from managed identities, its digits.
        #[serde(default)]
        expires_in: Value,
    }
    if let Some(failure) = reply.passing_failure() {
        return Err(failure);
    }
    if reply.status != 200 {
        let detail = reply.error_detail();
        return Err(service(&reply.host, format!("status {} ({detail})", reply.status)).into());
    }
    let bytes = reply.answer()?;
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|error| service(&reply.host, JsonFault::from(&error).to_string()))?;
    let lasts = answer.expires_in.as_u64().or_else(|| answer.expires_in.as_str()?.parse().ok());
    if answer.access_token.is_empty() || !answer.access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(service(&reply.host, "its token is no valid header value").into());
    }
    Ok(Token { text: answer.access_token, renew_at: renewal(lasts.unwrap_or(0)), origin: origin.to_owned() })
}

/// What a GET is signed by, from "Authorize with Shared Key", for version 2015-02-21 and later.
fn string_to_sign(account: &str, path: &str, range: &str, date: &str) -> String {
    // Twelve lines: the method, ten headers of which a GET has none, and the range.
    format!("GET{}{range}\nx-ms-date:{date}\nx-ms-version:{VERSION}\n/{account}{path}", "\n".repeat(11))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_the_lines_in_their_order() {
        let found = string_to_sign("acme", "/box/a%2Fb", "bytes=5-", "Fri, 26 Jun 2015 23:39:12 GMT");
        let expected = "GET\n\n\n\n\n\n\n\n\n\n\nbytes=5-\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\n\
                        x-ms-version:2021-12-02\n/acme/box/a%2Fb";
        assert_eq!(found, expected);
    }

    #[test]
    fn a_key_that_is_no_base64_is_told() {
        let key = Secret::new("not base64!");
        let error = Authority::new("a", Some(&key), &Options::default()).err().unwrap();
        assert_eq!(error.to_string(), "secret_access_key is not the base64 of an account's key");
    }
}
