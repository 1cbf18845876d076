//! A cache as the user writes it: what follows `--cache-from` of `docker buildx build`.
//!
//! ```text
//! REF
//! type=registry,ref=REF[,registry.insecure=true]
//! type=local,src=DIR-OR-TAR[,tag=TAG][,digest=DIGEST]
//! type=s3,region=REGION,bucket=BUCKET[,name=NAME][,…]
//! type=gha[,scope=SCOPE][,…]
//! type=azblob,account_url=URL[,container=CONTAINER][,name=NAME][,…]
//! ```
//!
//! Mirrors buildx's `util/buildflags/cache.go` (fields are CSV as Go's `encoding/csv` reads it, keys in
//! any case, a single field without `=` is a reference) and, for the keys, `BuildKit`'s
//! `cache/remotecache/{registry,local}`. Unlike there, an unknown key is an error: a misspelt `tag=`
//! must not silently bake another cache.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::csv;
use crate::digest::Digest;
use crate::oci::Reference;
use crate::source::{azblob, gha, s3};

const REGISTRY_KEYS: &[&str] = &["ref", "registry.insecure"];
const LOCAL_KEYS: &[&str] = &["src", "tag", "digest"];

/// A cache, as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSpec {
    /// In a registry.
    Registry {
        /// Normalised: `app` is `docker.io/library/app:latest`.
        reference: Reference,
        /// Whether plain http is allowed where the registry is not on loopback.
        insecure: bool,
    },
    /// In an OCI layout, as `--cache-to type=local` writes it.
    Local {
        /// The directory, or a tar of it.
        src: PathBuf,
        /// Which entry of its index.
        tag: Option<String>,
        /// Which manifest; goes before `tag`.
        digest: Option<Digest>,
    },
    /// In an S3 bucket, as `--cache-to type=s3` writes it.
    S3(Box<s3::Attributes>),
    /// In a container of Azure's blob storage, as `--cache-to type=azblob` writes it.
    Azblob(Box<azblob::Attributes>),
    /// In the cache of GitHub Actions, as `--cache-to type=gha` writes it.
    Gha(Box<gha::Attributes>),
}

/// Why a text names no cache.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Nothing was written.
    #[error("empty cache: expected a reference, type=registry,ref=REF or type=local,src=DIR")]
    Empty,
    /// Quotes that do not fit.
    #[error("invalid cache {text:?}: {reason} at character {column}")]
    Csv {
        /// What was written.
        text: String,
        /// What is wrong.
        reason: &'static str,
        /// Where, from 1.
        column: usize,
    },
    /// A field that is no `KEY=VALUE`.
    #[error("invalid field {field:?} in cache {text:?}: expected KEY=VALUE")]
    NotKeyValue {
        /// What was written.
        text: String,
        /// The field.
        field: String,
    },
    /// Fields, but no `type`.
    #[error("cache {text:?} has no type: add type=registry or type=local")]
    NoType {
        /// What was written.
        text: String,
    },
    /// A type that is not supported.
    #[error("unsupported cache type {found:?}: supported are registry, local, s3, azblob and gha")]
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
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What may be.
        expected: &'static str,
    },
    /// A reference that is none.
    #[error("invalid reference {text:?}: {source}; expected something like ghcr.io/acme/app:cache")]
    Reference {
        /// What was written.
        text: String,
        /// What is wrong with it.
        source: oci_spec::distribution::ParseError,
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

/// Parses a reference, normalised as docker does; a digest in it must be SHA-256.
///
/// Understands an IPv6 address as the registry (`[::1]:5000/app`), which `oci_spec` does not.
pub fn parse_reference(text: &str) -> Result<Reference, SpecError> {
    let invalid = |source| SpecError::Reference { text: text.to_owned(), source };
    let reference = match ipv6_registry(text) {
        Some((registry, rest)) => {
            let inner: Reference = format!("localhost/{rest}").parse().map_err(invalid)?;
            let (registry, repository) = (registry.to_owned(), inner.repository().to_owned());
            match (inner.tag().map(str::to_owned), inner.digest().map(str::to_owned)) {
                (Some(tag), Some(digest)) => {
                    Reference::with_tag_and_digest(registry, repository, tag, digest)
                }
                (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
                (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_default()),
            }
        }
        None => text.parse().map_err(invalid)?,
    };
    if let Some(digest) = reference.digest() {
        digest.parse::<Digest>()?;
    }
    Ok(reference)
}

/// Splits `[::1]:5000/app` into registry and the rest.
fn ipv6_registry(text: &str) -> Option<(&str, &str)> {
    let (registry, rest) = text.split_once('/')?;
    let (address, port) = registry.strip_prefix('[')?.split_once(']')?;
    address.parse::<std::net::Ipv6Addr>().ok()?;
    let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    port_fits.then_some((registry, rest))
}

/// Writes one CSV field so that [`csv::fields`] reads it back.
fn write_field(f: &mut fmt::Formatter<'_>, key: &str, value: &str) -> fmt::Result {
    if value.contains([',', '"', '\n', '\r']) {
        write!(f, "\"{key}={}\"", value.replace('"', "\"\""))
    } else {
        write!(f, "{key}={value}")
    }
}

/// Writes fields of a type so that [`CacheSpec`] reads them back.
pub(super) fn write_fields(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    fields: &[(String, String)],
) -> fmt::Result {
    write!(f, "type={kind}")?;
    fields.iter().try_for_each(|(key, value)| {
        f.write_str(",")?;
        write_field(f, key, value)
    })
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

    /// All fields but those of these keys.
    pub(super) fn without(&self, keys: &[&str]) -> Vec<(String, String)> {
        self.values.iter().filter(|(key, _)| !keys.contains(&key.as_str())).cloned().collect()
    }

    fn need(&self, key: &'static str) -> Result<&str, SpecError> {
        self.get(key).ok_or(SpecError::MissingKey { kind: self.kind, key })
    }
}

impl FromStr for CacheSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.trim().is_empty() {
            return Err(SpecError::Empty);
        }
        let fields = csv::fields(text).map_err(|csv::Error { reason, column }| SpecError::Csv {
            text: text.to_owned(),
            reason,
            column,
        })?;
        if let [reference] = fields.as_slice()
            && !reference.contains('=')
        {
            return Ok(Self::Registry { reference: parse_reference(reference)?, insecure: false });
        }
        let mut kind = String::new();
        let mut values = Vec::new();
        for field in fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(SpecError::NotKeyValue { text: text.to_owned(), field });
            };
            match key.to_lowercase().as_str() {
                "type" => value.clone_into(&mut kind),
                key => values.push((key.to_owned(), value.to_owned())),
            }
        }
        match kind.as_str() {
            "" => Err(SpecError::NoType { text: text.to_owned() }),
            "registry" => {
                let fields = Fields::new("registry", REGISTRY_KEYS, values)?;
                let insecure = fields.get("registry.insecure");
                Ok(Self::Registry {
                    reference: parse_reference(fields.need("ref")?)?,
                    insecure: insecure.map_or(Ok(false), |v| parse_bool("registry.insecure", v))?,
                })
            }
            "local" => {
                let fields = Fields::new("local", LOCAL_KEYS, values)?;
                Ok(Self::Local {
                    src: PathBuf::from(fields.need("src")?),
                    tag: fields.get("tag").map(str::to_owned),
                    digest: fields.get("digest").map(str::parse).transpose()?,
                })
            }
            "azblob" => Ok(Self::Azblob(Box::new(azblob::Attributes::parse(values)?))),
            "gha" => Ok(Self::Gha(Box::new(gha::Attributes::parse(values)?))),
            "s3" => Ok(Self::S3(Box::new(s3::Attributes::parse(values)?))),
            _ => Err(SpecError::UnknownType { found: kind }),
        }
    }
}

impl fmt::Display for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { reference, insecure } => {
                write!(f, "type=registry,ref={reference}")?;
                if *insecure { f.write_str(",registry.insecure=true") } else { Ok(()) }
            }
            Self::Azblob(attributes) => attributes.fmt(f),
            Self::Gha(attributes) => attributes.fmt(f),
            Self::S3(attributes) => attributes.fmt(f),
            Self::Local { src, tag, digest } => {
                f.write_str("type=local,")?;
                write_field(f, "src", &src.to_string_lossy())?;
                if let Some(tag) = tag {
                    f.write_str(",")?;
                    write_field(f, "tag", tag)?;
                }
                if let Some(digest) = digest {
                    write!(f, ",digest={digest}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn registry(reference: &str) -> CacheSpec {
        CacheSpec::Registry { reference: parse_reference(reference).unwrap(), insecure: false }
    }

    fn local(src: &str, tag: Option<&str>, digest: Option<&str>) -> CacheSpec {
        CacheSpec::Local {
            src: src.into(),
            tag: tag.map(str::to_owned),
            digest: digest.map(|d| d.parse().unwrap()),
        }
    }

    #[test]
    fn reads_what_buildx_reads() {
        let by_digest = format!("ghcr.io/acme/app@{DIGEST}");
        let local_by_digest = format!("type=local,src=d,digest={DIGEST}");
        let cases = [
            ("ghcr.io/acme/app:cache", registry("ghcr.io/acme/app:cache")),
            ("ghcr.io/acme/app:cache\n", registry("ghcr.io/acme/app:cache")),
            (&by_digest, registry(&by_digest)),
            ("app", registry("docker.io/library/app:latest")),
            ("acme/app", registry("docker.io/acme/app:latest")),
            ("type=registry,ref=localhost:5000/app", registry("localhost:5000/app:latest")),
            ("TYPE=registry,Ref=localhost:5000/app", registry("localhost:5000/app:latest")),
            ("ref=a,type=registry,ref=b", registry("b")),
            ("\"type=registry\",\"ref=b\"", registry("b")),
            ("type=local,src=/tmp/cache", local("/tmp/cache", None, None)),
            ("type=local,\"src=/a,b \"\"c\"\"\",tag=x", local("/a,b \"c\"", Some("x"), None)),
            ("type=local,src=d,tag=", local("d", None, None)),
            (&local_by_digest, local("d", None, Some(DIGEST))),
            ("[::1]:5000/app", registry("[::1]:5000/app:latest")),
        ];
        for (text, expected) in cases {
            let spec: CacheSpec = text.parse().unwrap();
            assert_eq!(spec, expected, "{text}");
            assert_eq!(spec.to_string().parse::<CacheSpec>().unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn insecure_goes_with_one_cache() {
        let spec: CacheSpec = "type=registry,ref=r.local/a,registry.insecure=true".parse().unwrap();
        assert!(matches!(&spec, CacheSpec::Registry { insecure: true, .. }));
        assert_eq!(spec.to_string(), "type=registry,ref=r.local/a:latest,registry.insecure=true");
    }

    #[test]
    fn normalises_references() {
        let cases = [
            ("app", "docker.io", "library/app", Some("latest")),
            ("index.docker.io/acme/app:1", "docker.io", "acme/app", Some("1")),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000", "a/b", Some("c")),
            ("[::1]/a/b:c", "[::1]", "a/b", Some("c")),
            ("[::1]:80/a/b", "[::1]:80", "a/b", Some("latest")),
        ];
        for (text, host, repository, tag) in cases {
            let reference = parse_reference(text).unwrap();
            let parts = (reference.registry(), reference.repository(), reference.tag());
            assert_eq!(parts, (host, repository, tag), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let cases = [
            ("", "empty cache: expected a reference, type=registry,ref=REF or type=local,src=DIR"),
            ("  ", "empty cache: expected a reference, type=registry,ref=REF or type=local,src=DIR"),
            (
                "type=inline",
                "unsupported cache type \"inline\": supported are registry, local, s3, azblob and gha",
            ),
            ("ref=a", "cache \"ref=a\" has no type: add type=registry or type=local"),
            ("type=registry", "type=registry needs ref=…"),
            ("type=local,tag=x", "type=local needs src=…"),
            ("type=local,src=d,tga=x", "unknown key \"tga\" for type=local: supported are src, tag, digest"),
            (
                "type=registry,ref=a,mode=max",
                "unknown key \"mode\" for type=registry: supported are ref, registry.insecure",
            ),
            ("a,b", "invalid field \"a\" in cache \"a,b\": expected KEY=VALUE"),
            (
                "type=registry,ref=A b",
                "invalid reference \"A b\": invalid reference format; expected something like \
                 ghcr.io/acme/app:cache",
            ),
            (
                "type=local,src=d,digest=sha256:ab",
                "invalid digest \"sha256:ab\": expected sha256: and 64 lower-case hexadecimal digits",
            ),
            (
                "type=registry,ref=a,registry.insecure=yes",
                "invalid value \"yes\" for registry.insecure: expected true or false",
            ),
            ("a\"b", "invalid cache \"a\\\"b\": bare \" in a field without quotes at character 2"),
            ("\"ab", "invalid cache \"\\\"ab\": missing closing \" at character 2"),
            ("\"ab\"c", "invalid cache \"\\\"ab\\\"c\": extraneous \" at character 4"),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<CacheSpec>().unwrap_err().to_string(), message, "{text:?}");
        }
    }
}
