//! The `KEY=VALUE` fields of a cache, and what can be wrong with them: what all types have in common.
//!
//! No message repeats a secret. A value that is one, or that may hold one, is left out; of a text that
//! cannot be taken apart, what comes behind the first secret is.

use std::fmt;

use ureq::http::Uri;

use super::http::discreet_url;
use crate::oci::reference;

const TYPES: &str = "types are registry (for inline caches, too), local, s3, azblob and gha";

/// What the keys of secrets end with.
const SECRETS: [&str; 2] = ["secret_access_key=", "token="];

/// Why a text names no cache.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Nothing was written.
    #[error("empty cache: expected a reference, or type=TYPE and its attributes; {TYPES}")]
    Empty,
    /// Quotes that do not fit.
    #[error("invalid cache {text:?}: {reason} at character {column}")]
    Csv {
        /// What was written, up to the first secret.
        text: String,
        /// What is wrong.
        reason: &'static str,
        /// Where, from 1.
        column: usize,
    },
    /// A field that is no `KEY=VALUE`.
    #[error("field {number} of cache {text:?} is no KEY=VALUE")]
    NotKeyValue {
        /// What was written, up to the first secret.
        text: String,
        /// Which field, from 1.
        number: usize,
    },
    /// Fields, but no `type`.
    #[error("cache {text:?} has no type=TYPE; {TYPES}")]
    NoType {
        /// What was written, up to the first secret.
        text: String,
    },
    /// A type that is not supported.
    #[error("unsupported cache type {found:?}; {TYPES}")]
    UnknownType {
        /// The type.
        found: String,
    },
    /// A key that the type does not have.
    #[error("unknown key {key:?} for type={kind}: supported are {}", supported.join(", "))]
    UnknownKey {
        /// The type.
        kind: &'static str,
        /// The key.
        key: String,
        /// The keys there are.
        supported: &'static [&'static str],
    },
    /// A key without which the type makes no sense.
    #[error("type={kind} needs {key}=…")]
    MissingKey {
        /// The type.
        kind: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A key without which the type makes no sense, and that a variable may stand in for.
    #[error("type={kind} needs {key}=… or ${variable}")]
    NotSet {
        /// The type.
        kind: &'static str,
        /// The key.
        key: &'static str,
        /// The variable.
        variable: &'static str,
    },
    /// A value that is none of those that the key may have.
    #[error("invalid value {value:?} for {key}: expected {expected}")]
    Value {
        /// The key, or the variable that stands in for it.
        key: &'static str,
        /// What was written.
        value: String,
        /// What may be.
        expected: &'static str,
    },
    /// A reference that is none.
    #[error(
        "invalid reference {text:?}: {source}; expected something like ghcr.io/acme/app:cache, or \
         type=local,src=PATH for a directory or a tar"
    )]
    Reference {
        /// What was written.
        text: String,
        /// What is wrong with it.
        source: oci_spec::distribution::ParseError,
    },
    /// A reference with capital letters where none can be, as names of organisations have them.
    #[error("invalid reference {text:?}: names of repositories have no capital letters")]
    Capitals {
        /// What was written.
        text: String,
    },
    /// A user or a password before the host of a reference.
    #[error(
        "{text:?} is written with a user or a password, which no reference has, and which others would see: use docker \
         login, or --username with --password-stdin"
    )]
    User {
        /// The reference without them.
        text: String,
    },
    /// A digest that is not SHA-256.
    #[error(transparent)]
    Digest(#[from] crate::digest::ParseDigestError),
    /// A boolean that is none.
    #[error("invalid value {value:?} for {key}: expected true or false")]
    Bool {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
    },
}

/// Writes one CSV field so that [`csv::fields`](crate::csv::fields) reads it back.
pub(super) fn write_field(f: &mut fmt::Formatter<'_>, key: &str, value: &str) -> fmt::Result {
    if value.contains([',', '"', '\n', '\r']) {
        write!(f, "\"{key}={}\"", value.replace('"', "\"\""))
    } else {
        write!(f, "{key}={value}")
    }
}

/// Fields as they were written, but for those that are secret: a cache's name in messages. It reads back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    kind: &'static str,
    fields: Vec<(String, String)>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type={}", self.kind)?;
        self.fields.iter().try_for_each(|(key, value)| {
            f.write_str(",")?;
            write_field(f, key, value)
        })
    }
}

/// A text up to its first secret.
pub(super) fn without_secret(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let ends = SECRETS.iter().filter_map(|key| lower.find(key).map(|at| at + key.len()));
    match ends.min().filter(|end| *end < text.len()) {
        Some(end) => format!("{}…", &text[..end]),
        None => reference::discreet(text),
    }
}

/// Reads the URL of a server. A user, a password or a query would be shown wherever the cache is named, and
/// are no part of any such URL. `key` is where it comes from.
pub(super) fn parse_url(key: &'static str, text: &str, expected: &'static str) -> Result<Uri, SpecError> {
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        let host = uri.host().is_some_and(|host| !host.is_empty());
        let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        let more = user || text.contains(['?', '#']);
        matches!(uri.scheme_str(), Some("http" | "https")) && host && !more
    });
    uri.ok_or_else(|| SpecError::Value { key, value: discreet_url(text), expected })
}

/// The values that Go's `strconv.ParseBool` knows.
pub(super) fn parse_bool(key: &'static str, value: &str) -> Result<bool, SpecError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(SpecError::Bool { key, value: value.to_owned() }),
    }
}

/// The `KEY=VALUE` fields of one type; of equal keys the last counts, as in buildx.
pub(super) struct Fields {
    kind: &'static str,
    values: Vec<(String, String)>,
}

impl Fields {
    pub(super) fn new(
        kind: &'static str,
        supported: &'static [&'static str],
        values: Vec<(String, String)>,
    ) -> Result<Self, SpecError> {
        match values.iter().find(|(key, _)| !supported.contains(&key.as_str())) {
            Some((key, _)) => Err(SpecError::UnknownKey { kind, key: key.clone(), supported }),
            None => Ok(Self { kind, values }),
        }
    }

    /// The value; an empty one counts as none.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.written(key).filter(|value| !value.is_empty())
    }

    /// The value, empty or not.
    pub(super) fn written(&self, key: &str) -> Option<&str> {
        self.values.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// A boolean; `false` where it was not written.
    pub(super) fn flag(&self, key: &'static str) -> Result<bool, SpecError> {
        self.get(key).map_or(Ok(false), |value| parse_bool(key, value))
    }

    /// All fields but those of these keys.
    pub(super) fn without(&self, keys: &[&str]) -> Written {
        let shown = self.values.iter().filter(|(key, _)| !keys.contains(&key.as_str()));
        Written { kind: self.kind, fields: shown.cloned().collect() }
    }

    pub(super) fn need(&self, key: &'static str) -> Result<&str, SpecError> {
        self.get(key).ok_or(SpecError::MissingKey { kind: self.kind, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_up_to_its_first_secret() {
        let cases = [
            ("type=s3,bucket=b", "type=s3,bucket=b"),
            ("a,Secret_Access_Key=hidden,b=c", "a,Secret_Access_Key=…"),
            ("\"session_token=hidden", "\"session_token=…"),
            ("ghtoken=hidden,secret_access_key=hidden", "ghtoken=…"),
            ("token=", "token="),
            ("ref=u:hidden@h/a", "…@h/a"),
            ("ä=Ä,token=ß", "ä=Ä,token=…"),
        ];
        for (text, shown) in cases {
            assert_eq!(without_secret(text), shown, "{text}");
        }
    }

    #[test]
    fn a_url_holds_no_secret() {
        assert_eq!(parse_url("url", "http://h:1/p/", "it").unwrap().to_string(), "http://h:1/p/");
        let cases = [
            ("h:9000", "h:9000"),
            ("ftp://h", "ftp://h"),
            ("/h", "/h"),
            ("", ""),
            ("https://", "https://"),
            ("https://h?sig=hidden", "https://h"),
            ("https://h#hidden", "https://h"),
            ("https://u:hidden@h/p", "https://…@h/p"),
            ("u:hidden@h", "…@h"),
            ("https://u:hid@den@h", "https://…@h"),
        ];
        for (text, shown) in cases {
            let error = parse_url("url", text, "it").unwrap_err().to_string();
            assert_eq!(error, format!("invalid value {shown:?} for url: expected it"));
        }
    }
}
