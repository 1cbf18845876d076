//! What a server answers: the failures that a status means, and how much of a body is read.

use std::io::Read;

use jiff::Timestamp;
use ureq::Body;
use ureq::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use ureq::http::{HeaderMap, Response};

use super::retry::{Failure, parse_retry_after};
use super::text::{error_detail, secrets_in};
use crate::source::Error;
use crate::source::secret::Secret;

/// The longest answer of a service that gives tokens, keys or addresses.
const MAX_ANSWER: u64 = 1 << 20;
/// As much of an error's body as is read.
const MAX_ERROR_BODY: u64 = 64 << 10;

/// An answer, after redirects.
pub(in crate::source) struct Reply {
    pub(in crate::source) status: u16,
    pub(in crate::source) headers: HeaderMap,
    pub(in crate::source) body: Body,
    /// Who answered; not the registry if it redirected.
    pub(in crate::source) host: String,
    /// Whether whoever answered saw the `Authorization` that was given.
    pub(in crate::source) authorized: bool,
    /// What whoever answered was told, and messages do not repeat.
    secrets: Vec<Secret>,
}

impl Reply {
    /// `authorization` is what whoever answered saw.
    pub(super) fn new(response: Response<Body>, host: String, authorization: Option<&str>) -> Self {
        let (parts, body) = response.into_parts();
        let secrets = authorization.map(secrets_in).unwrap_or_default();
        let authorized = authorization.is_some();
        Self { status: parts.status.as_u16(), headers: parts.headers, body, host, authorized, secrets }
    }

    /// Was told these, too.
    pub(super) fn knowing(mut self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        self.secrets.extend(secrets);
        self
    }

    /// A header as text.
    pub(in crate::source) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// All `WWW-Authenticate` headers.
    pub(in crate::source) fn challenges(&self) -> impl Iterator<Item = &str> {
        self.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok())
    }

    /// Reads the body into memory; `None` if it is longer than `limit`.
    pub(in crate::source) fn read(&mut self, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        let mut reader = self.body.as_reader().take(limit + 1);
        reader.read_to_end(&mut bytes).map_err(|error| read_failure(&self.host, &error))?;
        Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= limit))
    }

    /// Reads the JSON document `what` into memory; `None` if it is longer than `limit`. A web page, as proxies and
    /// sign-in pages answer with, is an error of its own: who sent it matters, not where its JSON is wrong.
    pub(in crate::source) fn document(&mut self, what: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let bytes = self.read(limit)?;
        if bytes.as_ref().is_some_and(|bytes| bytes.trim_ascii_start().starts_with(b"<")) {
            let reason = "sent a web page instead; is there a proxy or a sign-in page in between?".to_owned();
            return Err(Error::BadAnswer { what: what.to_owned(), host: self.host.clone(), reason }.into());
        }
        Ok(bytes)
    }

    /// Reads the body of an answer that is never long, such as a token.
    pub(in crate::source) fn answer(&mut self) -> Result<Vec<u8>, Failure> {
        let read = self.read(MAX_ANSWER)?;
        read.ok_or_else(|| {
            let reason = format!("sent more than {MAX_ANSWER} bytes where a few were expected");
            Error::BadAnswer { what: "request".to_owned(), host: self.host.clone(), reason }.into()
        })
    }

    /// What the body of an error says, in one line; reading it also frees the connection.
    pub(in crate::source) fn error_detail(&mut self) -> String {
        self.error_body().1
    }

    /// The body of an error, as far as it is read, and what it says, in one line.
    pub(in crate::source) fn error_body(&mut self) -> (Vec<u8>, String) {
        let mut bytes = Vec::new();
        // A part of the message is better than none.
        let _ = self.body.as_reader().take(MAX_ERROR_BODY).read_to_end(&mut bytes);
        let detail = error_detail(&bytes, &self.secrets);
        (bytes, detail)
    }

    /// The failure that a status means, where it is one that may pass: 408, 429 and 5xx, but for what is
    /// not implemented.
    pub(in crate::source) fn passing_failure(&mut self) -> Option<Failure> {
        if !matches!(self.status, 408 | 429 | 500 | 502..=599) {
            return None;
        }
        let after = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let after = after.and_then(|text| parse_retry_after(&text, Timestamp::now()));
        let detail = self.error_detail();
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        let reason = format!("{} answered with status {}{detail}", self.host, self.status);
        Some(Failure::Again { reason, after, answered: true })
    }
}

/// Errors of reading a body; all may pass.
pub(in crate::source) fn read_failure(host: &str, error: &std::io::Error) -> Failure {
    let timed_out = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ureq::Error>())
        .is_some_and(|error| matches!(error, ureq::Error::Timeout(_)));
    let reason = match error.kind() {
        _ if timed_out => "the transfer stalled".to_owned(),
        std::io::ErrorKind::UnexpectedEof => "the transfer broke off".to_owned(),
        _ => error.to_string(),
    };
    Failure::again(format!("{host}: {reason}"))
}
