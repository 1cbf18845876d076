//! What may be written after `type=gha`, and what the runner's variables say instead.
//!
//! ```text
//! version   $ACTIONS_CACHE_SERVICE_V2: true means 2
//! url_v2    $ACTIONS_RESULTS_URL, with version 2
//! url       $ACTIONS_CACHE_URL, else $ACTIONS_RESULTS_URL
//! token     $ACTIONS_RUNTIME_TOKEN
//! ```
//!
//! Mirrors `loadGithubEnv` of `BuildKit`'s `cmd/buildctl/build/util.go`, which buildx has as well, and
//! `getConfig` of `cache/remotecache/gha/gha.go` (v0.34), where the two meet.

use ureq::http::Uri;

use crate::source::fields::{Fields, SpecError, Written, parse_bool, parse_url};
use crate::source::secret::Secret;
use crate::source::{Environment, Error};

const EXPECTED: &str = "a URL of http or https";
const KEYS: &[&str] = &["scope", "url_v2", "url", "token", "version", "timeout", "repository", "ghtoken"];
/// The host of GitHub's own service of version 2.
const SERVICE_V2: &str = "results-receiver.actions.githubusercontent.com";

/// A cache of GitHub Actions, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Which of a repository's caches.
    pub scope: String,
    /// Where the service of version 2 is.
    pub url_v2: Option<Uri>,
    /// Where the service of version 1 is.
    pub url: Option<Uri>,
    /// What a job shows the service.
    pub token: Option<Secret>,
    /// Which of the two to speak.
    pub version: Option<u32>,
    /// Every attribute but secrets.
    pub(in crate::source) written: Written,
}

/// What the service is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// `_apis/artifactcache`: GitHub Enterprise Server.
    V1,
    /// Twirp, with blobs in Azure's storage.
    V2,
}

/// Attributes and variables together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) url: Uri,
    pub(super) protocol: Protocol,
    pub(super) token: Secret,
    /// For messages: where the token comes from.
    pub(super) origin: &'static str,
}

impl Attributes {
    pub(in crate::source) fn parse(values: Vec<(String, String)>) -> Result<Self, SpecError> {
        let fields = Fields::new("gha", KEYS, values)?;
        let text = |key| fields.get(key).map(str::to_owned);
        let url = |key| fields.get(key).map(|url| parse_url(key, url, EXPECTED)).transpose();
        let version = |value: &str| {
            let invalid = || SpecError::Value { key: "version", value: value.to_owned(), expected: "1 or 2" };
            value.parse().ok().filter(|n| matches!(n, 1 | 2)).ok_or_else(invalid)
        };
        Ok(Self {
            scope: text("scope").unwrap_or_else(|| "buildkit".to_owned()),
            url_v2: url("url_v2")?,
            url: url("url")?,
            token: text("token").map(Secret::new),
            version: fields.get("version").map(version).transpose()?,
            written: fields.without(&["token", "ghtoken"]),
        })
    }

    pub(super) fn settings(&self, env: &Environment) -> Result<Settings, Error> {
        const V2: &str = "ACTIONS_CACHE_SERVICE_V2";
        let asks_for_v2 = env.text(V2).is_some_and(|value| parse_bool(V2, value) == Ok(true));
        let version = self.version.or(asks_for_v2.then_some(2));
        let set = |variable| env.text(variable).map(|url| parse_url(variable, url, EXPECTED)).transpose();
        let (cache, results) = (set("ACTIONS_CACHE_URL")?, set("ACTIONS_RESULTS_URL")?);
        let url_v2 = self.url_v2.as_ref().or(results.as_ref().filter(|_| version == Some(2)));
        let url = self.url.as_ref().or(cache.as_ref()).or(results.as_ref());
        let (url, protocol) = match (url_v2.filter(|_| self.version != Some(1)), url) {
            (Some(url), _) => (url, Protocol::V2),
            (None, Some(url)) => {
                let by_host = version.is_none() && url.host() == Some(SERVICE_V2);
                (url, if version == Some(2) || by_host { Protocol::V2 } else { Protocol::V1 })
            }
            (None, None) => {
                return Err(Error::NoRunner { missing: "url_v2", variable: "ACTIONS_RESULTS_URL" });
            }
        };
        let of_env = || env.text("ACTIONS_RUNTIME_TOKEN").map(Secret::new);
        let origin = if self.token.is_some() { "the attribute token" } else { "$ACTIONS_RUNTIME_TOKEN" };
        let none = Error::NoRunner { missing: "token", variable: "ACTIONS_RUNTIME_TOKEN" };
        let token = self.token.clone().or_else(of_env).ok_or(none)?;
        Ok(Settings { url: url.clone(), protocol, token, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::CacheSpec;

    fn parse(text: &str) -> Attributes {
        match text.parse::<CacheSpec>().unwrap() {
            CacheSpec::Gha(attributes) => *attributes,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn attributes_go_before_variables() {
        const V1: Protocol = Protocol::V1;
        const V2: Protocol = Protocol::V2;
        let runner: &[_] = &[
            ("ACTIONS_CACHE_SERVICE_V2", "True"),
            ("ACTIONS_RESULTS_URL", "https://results/"),
            ("ACTIONS_CACHE_URL", "https://cache/"),
        ];
        let old: &[_] = &[("ACTIONS_CACHE_URL", "https://cache/")];
        let results: &[_] =
            &[("ACTIONS_RESULTS_URL", "https://results-receiver.actions.githubusercontent.com/")];
        let cases: [(_, &[_], _, _); 9] = [
            ("type=gha", runner, "https://results/", V2),
            ("type=gha,version=1", runner, "https://cache/", V1),
            ("type=gha,version=2", &runner[1..], "https://results/", V2),
            ("type=gha,url_v2=https://a", runner, "https://a/", V2),
            ("type=gha,url_v2=https://a,url=https://b,version=1", &[], "https://b/", V1),
            ("type=gha,url=https://b", &[], "https://b/", V1),
            ("type=gha,url=https://b,version=2", &[], "https://b/", V2),
            ("type=gha", old, "https://cache/", V1),
            ("type=gha", results, "https://results-receiver.actions.githubusercontent.com/", V2),
        ];
        for (text, variables, url, protocol) in cases {
            let env = variables.iter().copied().chain([("ACTIONS_RUNTIME_TOKEN", "t")]).collect();
            let found = parse(text).settings(&env).unwrap();
            assert_eq!((&*found.url.to_string(), found.protocol), (url, protocol), "{text} {variables:?}");
            assert_eq!(found.origin, "$ACTIONS_RUNTIME_TOKEN");
        }
    }

    #[test]
    fn outside_of_a_runner_there_is_a_way_out() {
        let env = Environment::default();
        for text in ["type=gha", "type=gha,url_v2=https://a", "type=gha,token=t"] {
            let error = parse(text).settings(&env).unwrap_err().to_string();
            assert!(error.contains("--cache-to type=registry"), "{error}");
        }
    }

    #[test]
    fn shows_all_but_the_tokens() {
        let found = parse("type=gha,scope=x,token=hidden,ghtoken=hidden,timeout=5m");
        assert_eq!(found.written.to_string(), "type=gha,scope=x,timeout=5m");
        assert!(!format!("{found:?}").contains("hidden"));
        let env = [("ACTIONS_RESULTS_URL", "ftp://h")].into_iter().collect();
        let error = parse("type=gha").settings(&env).unwrap_err().to_string();
        assert_eq!(
            error,
            "invalid value \"ftp://h\" for ACTIONS_RESULTS_URL: expected a URL of http or https"
        );
        let error = "type=gha,version=3".parse::<CacheSpec>().unwrap_err().to_string();
        assert_eq!(error, "invalid value \"3\" for version: expected 1 or 2");
    }
}
