//! What may be written after `type=azblob`.
//!
//! ```text
//! account_url    $BUILDKIT_AZURE_STORAGE_ACCOUNT_URL
//! account_name   $BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME, else the first label of the URL's host
//! container      $BUILDKIT_AZURE_STORAGE_CONTAINER, else buildkit-cache
//! prefix         $BUILDKIT_AZURE_STORAGE_PREFIX
//! ```
//!
//! Mirrors `getConfig` of `BuildKit`'s `cache/remotecache/azblob/utils.go` (v0.34).

use ureq::http::Uri;

use crate::source::Environment;
use crate::source::fields::{Fields, SpecError, Written, parse_url};
use crate::source::secret::Secret;

/// The variable that stands in for `account_url`, and what is expected of both.
const URL: &str = "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL";
const EXPECTED: &str = "a URL such as https://account.blob.core.windows.net, without a query: shared access \
                        signatures are not supported";

const KEYS: &[&str] = &[
    "account_url",
    "account_name",
    "container",
    "name",
    "prefix",
    "manifests_prefix",
    "blobs_prefix",
    "secret_access_key",
];

/// Caches in a container of Azure's blob storage, as they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Where the account is.
    pub account_url: Option<Uri>,
    /// The account's name.
    pub account_name: Option<String>,
    /// The container.
    pub container: Option<String>,
    /// The names of the caches; each is taken.
    pub names: Vec<String>,
    /// What all blobs stand below.
    pub prefix: Option<String>,
    /// What cache configs stand below, there.
    pub manifests_prefix: String,
    /// What layers stand below, there.
    pub blobs_prefix: String,
    /// The account's key, where one was written.
    pub key: Option<Secret>,
    /// Every attribute but secrets.
    pub(in crate::source) written: Written,
}

/// Attributes and variables together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) url: Uri,
    pub(super) account: String,
    pub(super) container: String,
    pub(super) prefix: String,
}

impl Attributes {
    pub(in crate::source) fn parse(values: Vec<(String, String)>) -> Result<Self, SpecError> {
        let fields = Fields::new("azblob", KEYS, values)?;
        let text = |key| fields.get(key).map(str::to_owned);
        let url = fields.get("account_url").map(|url| parse_url("account_url", url, EXPECTED));
        Ok(Self {
            account_url: url.transpose()?,
            account_name: text("account_name"),
            container: text("container"),
            names: fields.get("name").unwrap_or("buildkit").split(';').map(str::to_owned).collect(),
            prefix: fields.written("prefix").map(str::to_owned),
            manifests_prefix: fields.written("manifests_prefix").unwrap_or("manifests").to_owned(),
            blobs_prefix: fields.written("blobs_prefix").unwrap_or("blobs").to_owned(),
            key: fields.get("secret_access_key").map(Secret::new),
            written: fields.without(&["secret_access_key"]),
        })
    }

    pub(super) fn settings(&self, env: &Environment) -> Result<Settings, SpecError> {
        let set = |written: &Option<String>, variable| {
            written.as_deref().or_else(|| env.text(variable)).map(str::to_owned)
        };
        let url = match (&self.account_url, env.text(URL)) {
            (Some(url), _) => url.clone(),
            (None, Some(text)) => parse_url(URL, text, EXPECTED)?,
            (None, None) => {
                return Err(SpecError::NotSet { kind: "azblob", key: "account_url", variable: URL });
            }
        };
        let label = url.host().unwrap_or_default().split('.').next().unwrap_or_default().to_owned();
        let account = set(&self.account_name, "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME").unwrap_or(label);
        let container = set(&self.container, "BUILDKIT_AZURE_STORAGE_CONTAINER");
        let container = container.unwrap_or_else(|| "buildkit-cache".to_owned());
        let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '$');
        if container.is_empty() || !container.chars().all(in_name) {
            let expected = "the name of a container: lower-case letters, digits and hyphens";
            return Err(SpecError::Value { key: "container", value: container, expected });
        }
        let prefix = set(&self.prefix, "BUILDKIT_AZURE_STORAGE_PREFIX").unwrap_or_default();
        Ok(Settings { url, account, container, prefix })
    }
}

/// Joins parts of a blob's name, as Go's `filepath.Join` does, which upstream uses: without empty parts,
/// and with `.` and `..` resolved.
pub(super) fn join(parts: &[&str]) -> String {
    let text = parts.iter().copied().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    let mut kept: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if text.starts_with('/') => {}
            part => kept.push(part),
        }
    }
    let joined = kept.join("/");
    if text.starts_with('/') { format!("/{joined}") } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::CacheSpec;

    fn parse(text: &str) -> Attributes {
        match text.parse::<CacheSpec>().unwrap() {
            CacheSpec::Azblob(attributes) => *attributes,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn attributes_go_before_variables() {
        let none: &[(&str, &str)] = &[];
        let all: &[_] = &[
            ("BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "https://b.example/"),
            ("BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", "name"),
            ("BUILDKIT_AZURE_STORAGE_CONTAINER", "box"),
            ("BUILDKIT_AZURE_STORAGE_PREFIX", "p"),
        ];
        let cases = [
            (
                "type=azblob,account_url=https://a.example",
                none,
                ["https://a.example/", "a", "buildkit-cache", ""],
            ),
            ("type=azblob", all, ["https://b.example/", "name", "box", "p"]),
            (
                "type=azblob,account_url=http://127.0.0.1:1/x/,account_name=x,container=c,prefix=",
                all,
                ["http://127.0.0.1:1/x/", "x", "c", ""],
            ),
        ];
        for (text, variables, [url, account, container, prefix]) in cases {
            let found = parse(text).settings(&variables.iter().copied().collect()).unwrap();
            assert_eq!(found.url.to_string(), url, "{text}");
            assert_eq!((&*found.account, &*found.container, &*found.prefix), (account, container, prefix));
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let cases = [
            ("type=azblob", "type=azblob needs account_url=… or $BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"),
            ("type=azblob,account_url=a.example", "invalid value \"a.example\" for account_url"),
            ("type=azblob,account_url=https://a,container=a/b", "invalid value \"a/b\" for container"),
        ];
        for (text, expected) in cases {
            let settings = |spec| match spec {
                CacheSpec::Azblob(attributes) => attributes.settings(&Environment::default()),
                other => panic!("{other}"),
            };
            let error = text.parse().and_then(settings).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn every_name_counts_and_the_key_is_not_shown() {
        let found = parse("type=azblob,name=a;b/c,secret_access_key=hidden");
        assert_eq!(found.names, ["a", "b/c"]);
        assert_eq!(found.written.to_string(), "type=azblob,name=a;b/c");
        assert!(!format!("{found:?}").contains("hidden"));
    }

    #[test]
    fn joins_as_go_does() {
        let cases: [(&[&str], &str); 6] = [
            (&["", "blobs", "sha256:ab"], "blobs/sha256:ab"),
            (&["a/", "/b/", "c"], "a/b/c"),
            (&["/a", "b", "c"], "/a/b/c"),
            (&["a", "../b", "./c"], "b/c"),
            (&["..", "a"], "../a"),
            (&["/..", "a"], "/a"),
        ];
        for (parts, expected) in cases {
            assert_eq!(join(parts), expected, "{parts:?}");
        }
    }
}
