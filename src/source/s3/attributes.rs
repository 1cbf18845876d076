//! What may be written after `type=s3`.
//!
//! Mirrors `getConfig` of `BuildKit`'s `cache/remotecache/s3/s3.go` (v0.34): names, defaults, and the
//! variables that stand in for `bucket` and `region`. Unlike there, a value that makes no sense is an error.

use ureq::http::Uri;

use super::sigv4::Keys;
use crate::source::fields::{Fields, SpecError, Written, parse_url};
use crate::source::secret::Secret;

/// What is expected of `endpoint_url`.
pub(super) const ENDPOINT: &str = "the URL of a server, such as https://s3.example.com";

const KEYS: &[&str] = &[
    "bucket",
    "region",
    "name",
    "prefix",
    "manifests_prefix",
    "blobs_prefix",
    "endpoint_url",
    "use_path_style",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "retry_max_attempts",
    "retry_mode",
    "disable_accept_encoding",
    "touch_refresh",
    "upload_parallelism",
];

/// A cache in a bucket, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `$AWS_BUCKET` where it was not written.
    pub bucket: Option<String>,
    /// `$AWS_REGION` where it was not written.
    pub region: Option<String>,
    /// The cache's name: the first of those that an export was given.
    pub name: String,
    /// What all keys begin with.
    pub prefix: String,
    /// What the keys of manifests go on with.
    pub manifests_prefix: String,
    /// What the keys of blobs go on with.
    pub blobs_prefix: String,
    /// A server that is not Amazon's.
    pub endpoint_url: Option<Uri>,
    /// Whether that server wants the bucket in the path.
    pub use_path_style: bool,
    /// Keys that were written; otherwise they are looked for as AWS's tools do.
    pub keys: Option<Keys>,
    /// How often a request that fails may be made.
    pub retry_max_attempts: Option<u32>,
    /// Every attribute but secrets.
    pub(in crate::source) written: Written,
}

impl Attributes {
    pub(in crate::source) fn parse(values: Vec<(String, String)>) -> Result<Self, SpecError> {
        let fields = Fields::new("s3", KEYS, values)?;
        let text = |key| fields.get(key).map(str::to_owned);
        let keys = match (fields.get("access_key_id"), fields.get("secret_access_key")) {
            (Some(id), Some(secret)) => Some(Keys {
                id: id.to_owned(),
                secret: Secret::new(secret),
                session_token: fields.get("session_token").map(Secret::new),
            }),
            (None, None) => None,
            (None, _) => return Err(SpecError::MissingKey { kind: "s3", key: "access_key_id" }),
            (_, None) => return Err(SpecError::MissingKey { kind: "s3", key: "secret_access_key" }),
        };
        if let Some(mode) = fields.get("retry_mode").filter(|mode| !matches!(*mode, "standard" | "adaptive"))
        {
            let (key, expected) = ("retry_mode", "standard or adaptive");
            return Err(SpecError::Value { key, value: mode.to_owned(), expected });
        }
        fields.flag("disable_accept_encoding")?;
        let endpoint = fields.get("endpoint_url").map(|url| parse_url("endpoint_url", url, ENDPOINT));
        let names = fields.written("name").unwrap_or("buildkit");
        Ok(Self {
            bucket: text("bucket"),
            region: text("region"),
            // An import reads the first, an export writes all.
            name: names.split(';').next().unwrap_or_default().to_owned(),
            prefix: text("prefix").unwrap_or_default(),
            manifests_prefix: fields.written("manifests_prefix").unwrap_or("manifests/").to_owned(),
            blobs_prefix: fields.written("blobs_prefix").unwrap_or("blobs/").to_owned(),
            endpoint_url: endpoint.transpose()?,
            use_path_style: fields.flag("use_path_style")?,
            keys,
            retry_max_attempts: fields
                .get("retry_max_attempts")
                .map(|value| parse_attempts("retry_max_attempts", value))
                .transpose()?,
            written: fields.without(&["access_key_id", "secret_access_key", "session_token"]),
        })
    }
}

fn parse_attempts(key: &'static str, value: &str) -> Result<u32, SpecError> {
    let invalid = || SpecError::Value { key, value: value.to_owned(), expected: "a positive number" };
    value.parse().ok().filter(|n| *n > 0).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::CacheSpec;

    fn parse(text: &str) -> Result<Attributes, SpecError> {
        match text.parse::<CacheSpec>()? {
            CacheSpec::S3(attributes) => Ok(*attributes),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn defaults_are_upstreams() {
        let found = parse("type=s3,bucket=b").unwrap();
        assert_eq!(
            (&*found.name, &*found.prefix, &*found.manifests_prefix, &*found.blobs_prefix),
            ("buildkit", "", "manifests/", "blobs/")
        );
        assert_eq!((found.region, found.endpoint_url, found.use_path_style), (None, None, false));
    }

    #[test]
    fn an_empty_prefix_is_a_prefix_and_the_first_name_counts() {
        let found = parse("type=s3,manifests_prefix=,blobs_prefix=b_,prefix=p/,name=main;other").unwrap();
        assert_eq!((&*found.manifests_prefix, &*found.blobs_prefix, &*found.prefix), ("", "b_", "p/"));
        assert_eq!(found.name, "main");
    }

    #[test]
    fn shows_all_but_the_keys() {
        let text = "type=s3,bucket=b,access_key_id=AKIA1,secret_access_key=hidden,session_token=hidden,\
                    \"prefix=a,b\",touch_refresh=1h";
        let found = parse(text).unwrap();
        let shown = "type=s3,bucket=b,\"prefix=a,b\",touch_refresh=1h";
        assert_eq!(found.written.to_string(), shown);
        assert!(!format!("{found:?}").contains("hidden"));
        assert_eq!(parse(shown).unwrap().written.to_string(), shown);
    }

    #[test]
    fn says_what_is_wrong() {
        let cases = [
            ("type=s3,access_key_id=a", "type=s3 needs secret_access_key=…"),
            ("type=s3,secret_access_key=a", "type=s3 needs access_key_id=…"),
            ("type=s3,use_path_style=on", "invalid value \"on\" for use_path_style: expected true or false"),
            (
                "type=s3,retry_max_attempts=0",
                "invalid value \"0\" for retry_max_attempts: expected a positive number",
            ),
            (
                "type=s3,endpoint_url=minio:9000",
                "invalid value \"minio:9000\" for endpoint_url: expected the URL of a server, such as \
                 https://s3.example.com",
            ),
            ("type=s3,retry_mode=x", "invalid value \"x\" for retry_mode: expected standard or adaptive"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
        assert!(parse("type=s3,buckt=b").unwrap_err().to_string().starts_with("unknown key \"buckt\""));
    }
}
