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
use crate::oci::reference::without_user;
use crate::source::fields::{Fields, SpecError, without_secret, write_field};
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

/// Parses a reference, normalised as docker does; a digest in it must be SHA-256.
///
/// Understands an IPv6 address as the registry (`[::1]:5000/app`), which `oci_spec` does not.
pub fn parse_reference(text: &str) -> Result<Reference, SpecError> {
    if let Some(text) = without_user(text) {
        return Err(SpecError::User { text });
    }
    let invalid = |source| {
        let text = text.to_owned();
        let is_but_capitals = text.to_lowercase().parse::<Reference>().is_ok();
        if is_but_capitals { SpecError::Capitals { text } } else { SpecError::Reference { text, source } }
    };
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

impl FromStr for CacheSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.trim().is_empty() {
            return Err(SpecError::Empty);
        }
        let fields = csv::fields(text).map_err(|csv::Error { reason, column }| SpecError::Csv {
            text: without_secret(text),
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
        for (at, field) in fields.iter().enumerate() {
            let Some((key, value)) = field.split_once('=') else {
                return Err(SpecError::NotKeyValue { text: without_secret(text), number: at + 1 });
            };
            match key.to_lowercase().as_str() {
                "type" => value.clone_into(&mut kind),
                key => values.push((key.to_owned(), value.to_owned())),
            }
        }
        match kind.as_str() {
            "" => Err(SpecError::NoType { text: without_secret(text) }),
            "registry" => {
                let fields = Fields::new("registry", REGISTRY_KEYS, values)?;
                Ok(Self::Registry {
                    reference: parse_reference(fields.need("ref")?)?,
                    insecure: fields.flag("registry.insecure")?,
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
            _ => Err(SpecError::UnknownType { found: without_secret(&kind) }),
        }
    }
}

impl fmt::Display for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { reference, insecure: false } => reference.fmt(f),
            Self::Registry { reference, insecure: true } => {
                write!(f, "type=registry,ref={reference},registry.insecure=true")
            }
            Self::Azblob(attributes) => attributes.written.fmt(f),
            Self::Gha(attributes) => attributes.written.fmt(f),
            Self::S3(attributes) => attributes.written.fmt(f),
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
            (
                "  ",
                "empty cache: expected a reference, or type=TYPE and its attributes; types are registry (for inline caches, too), local, s3, azblob and gha",
            ),
            (
                "type=inline",
                "unsupported cache type \"inline\"; types are registry (for inline caches, too), local, s3, azblob and gha",
            ),
            (
                "ref=a",
                "cache \"ref=a\" has no type=TYPE; types are registry (for inline caches, too), local, s3, azblob and gha",
            ),
            ("type=registry", "type=registry needs ref=…"),
            ("type=local,tag=x", "type=local needs src=…"),
            ("type=local,src=d,tga=x", "unknown key \"tga\" for type=local: supported are src, tag, digest"),
            (
                "type=registry,ref=a,mode=max",
                "unknown key \"mode\" for type=registry: supported are ref, registry.insecure",
            ),
            ("type=s3,b", "field 2 of cache \"type=s3,b\" is no KEY=VALUE"),
            (
                "type=registry,ref=A b",
                "invalid reference \"A b\": invalid reference format; expected something like \
                 ghcr.io/acme/app:cache, or type=local,src=PATH for a directory or a tar",
            ),
            (
                "r.io/Acme/app:V1",
                "invalid reference \"r.io/Acme/app:V1\": names of repositories have no capital letters",
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
    #[test]
    fn says_no_secret() {
        let cases = [
            "bucket=b,secret_access_key=hidden",
            "type=s3,secret_access_key=hidden,hidden",
            "type=s3,\"secret_access_key=hidden",
            "type=s3;secret_access_key=hidden",
            "type=gha,token=hidden,tokn=hidden",
            "type=s3,endpoint_url=https://user:hidden@host",
            "type=azblob,account_url=https://host?sig=hidden",
            "type=gha,url=https://user:hidden@host",
            "user:hidden@r.example/app:cache",
            "https://user:hidden@r.example/app",
            "type=registry,ref=user:hidden@r.example/app",
            "ref=user:hidden@r.example/app",
            "type=registry,user:hidden@r.example/app",
        ];
        for text in cases {
            let error = text.parse::<CacheSpec>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
        }
    }
}
