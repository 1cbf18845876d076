//! How a source of keys is written on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::Error;
use crate::csv;
use crate::oci::Reference;
use crate::oci::reference;

/// The supported forms, for messages.
pub(super) const FORMS: &str = "an image reference, type=image,ref=IMAGE, type=provenance,src=FILE, \
                                type=cachedb,src=FILE-OR-ROOT, type=keys,src=FILE or type=builder,name=NAME";

/// Where operation digests may come from.
///
/// Written as the values of buildx's `--cache-from` are: comma-separated `NAME=VALUE`, a field in
/// double quotes where it holds a comma; or a bare image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySpec {
    /// The attestation manifests of an image pushed with provenance `mode=max`.
    Image(Reference),
    /// A file with an in-toto statement, a bare predicate, or a build's metadata.
    Provenance(PathBuf),
    /// A builder's `cache.db` or `cache-debug.db`, or the root directory that holds them.
    CacheDb(PathBuf),
    /// A keys file, as `warmkit keys` writes it.
    Keys(PathBuf),
    /// A running builder of buildx, by its name.
    Builder(String),
}

/// What is wrong with a key source as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecProblem {
    /// Nothing was written.
    Empty,
    /// A quote that is never closed, or that stands inside a field.
    Quote,
    /// A field that is not `NAME=VALUE`.
    Field(String),
    /// A name that the type does not have.
    Name(String),
    /// A name that stands twice.
    Twice(String),
    /// A name that is needed.
    Missing(&'static str),
    /// A type that is not known.
    Type(String),
    /// A reference that is none, and what the parser said of it.
    Reference(String, String),
    /// A reference with a user or a password, which are left out here.
    User(String),
}

impl fmt::Display for SpecProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing is written"),
            Self::Quote => f.write_str("the quotes do not match"),
            Self::Field(field) => write!(f, "{field:?} is not NAME=VALUE"),
            Self::Name(name) => write!(f, "{name:?} is not known for this type"),
            Self::Twice(name) => write!(f, "{name:?} is given twice"),
            Self::Missing(name) => write!(f, "{name}=… is missing"),
            Self::Type(found) => write!(f, "type {found:?} is not known"),
            Self::Reference(text, reason) => write!(f, "{text:?} is not an image reference ({reason})"),
            Self::User(text) => write!(
                f,
                "{text:?} is written with a user or a password, which no reference has: use docker login, or \
                 --username with --password-stdin"
            ),
        }
    }
}

impl fmt::Display for KeySpec {
    /// As it is written on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(reference) => reference.fmt(f),
            Self::Provenance(src) => write!(f, "type=provenance,src={}", src.display()),
            Self::CacheDb(src) => write!(f, "type=cachedb,src={}", src.display()),
            Self::Builder(name) => write!(f, "type=builder,name={name}"),
            Self::Keys(src) => write!(f, "type=keys,src={}", src.display()),
        }
    }
}

impl FromStr for KeySpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|problem| Error::Spec { text: reference::discreet(text), problem })
    }
}

fn parse(text: &str) -> Result<KeySpec, SpecProblem> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SpecProblem::Empty);
    }
    let fields = csv::fields(text).map_err(|_| SpecProblem::Quote)?;
    if let [only] = fields.as_slice()
        && !only.contains('=')
    {
        return image(only);
    }
    let (mut kind, mut reference, mut src, mut builder) = (None, None, None, None);
    for field in &fields {
        let Some((name, value)) = field.split_once('=') else {
            return Err(SpecProblem::Field(reference::discreet(field)));
        };
        let name = name.trim().to_ascii_lowercase();
        let slot = match name.as_str() {
            "type" => &mut kind,
            "ref" => &mut reference,
            "src" => &mut src,
            "name" => &mut builder,
            _ => return Err(SpecProblem::Name(name)),
        };
        if slot.replace(value.to_owned()).is_some() {
            return Err(SpecProblem::Twice(name));
        }
    }
    let path = |src: Option<String>| match src {
        Some(src) if !src.is_empty() => Ok(PathBuf::from(src)),
        _ => Err(SpecProblem::Missing("src")),
    };
    let unused = |value: &Option<String>, name: &str| match value {
        Some(_) => Err(SpecProblem::Name(name.to_owned())),
        None => Ok(()),
    };
    if kind.as_deref() != Some("builder") {
        unused(&builder, "name")?;
    }
    match kind.as_deref() {
        Some("builder") => {
            unused(&reference, "ref")?;
            unused(&src, "src")?;
            let name = builder.filter(|name: &String| !name.is_empty());
            name.map(KeySpec::Builder).ok_or(SpecProblem::Missing("name"))
        }
        Some("image") => {
            unused(&src, "src")?;
            image(&reference.ok_or(SpecProblem::Missing("ref"))?)
        }
        Some("provenance") => {
            unused(&reference, "ref")?;
            path(src).map(KeySpec::Provenance)
        }
        Some("cachedb") => {
            unused(&reference, "ref")?;
            path(src).map(KeySpec::CacheDb)
        }
        Some("keys") => {
            unused(&reference, "ref")?;
            path(src).map(KeySpec::Keys)
        }
        Some(other) => Err(SpecProblem::Type(other.to_owned())),
        None => Err(SpecProblem::Missing("type")),
    }
}

fn image(text: &str) -> Result<KeySpec, SpecProblem> {
    if let Some(text) = reference::without_user(text) {
        return Err(SpecProblem::User(text));
    }
    match text.parse() {
        Ok(reference) => Ok(KeySpec::Image(reference)),
        Err(error) => {
            let error: <Reference as FromStr>::Err = error;
            Err(SpecProblem::Reference(text.to_owned(), error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> KeySpec {
        KeySpec::Image(text.parse().unwrap())
    }

    #[test]
    fn reads_every_form() {
        let cases = [
            ("ghcr.io/acme/app:1.2", reference("ghcr.io/acme/app:1.2")),
            ("type=image,ref=127.0.0.1:5000/app", reference("127.0.0.1:5000/app")),
            ("ref=app:1,type=image", reference("app:1")),
            ("type=provenance,src=out/meta.json", KeySpec::Provenance("out/meta.json".into())),
            ("type=provenance,\"src=a,b\"\".json\"", KeySpec::Provenance("a,b\".json".into())),
            ("type=cachedb,src=/var/lib/buildkit", KeySpec::CacheDb("/var/lib/buildkit".into())),
            (" type=cachedb,src=x=y ", KeySpec::CacheDb("x=y".into())),
            ("type=builder,name=ci", KeySpec::Builder("ci".into())),
            ("type=keys,src=app.keys.json", KeySpec::Keys("app.keys.json".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<KeySpec>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn says_no_password() {
        for text in [
            "user:hidden@r.example/app",
            "https://user:hidden@r.example/app@sha256:ab",
            "type=image,ref=user:hidden@r.example/app",
            "type=image,user:hidden@r.example/app",
            "type=registry,ref=user:hidden@r.example/app",
        ] {
            let error = text.parse::<KeySpec>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
        }
    }

    #[test]
    fn says_what_is_wrong_and_what_is_supported() {
        let cases = [
            ("", "nothing is written"),
            ("type=s3,src=x", "type \"s3\" is not known"),
            ("src=x", "type=… is missing"),
            ("type=image", "ref=… is missing"),
            ("type=image,ref=a,src=b", "\"src\" is not known for this type"),
            ("type=provenance", "src=… is missing"),
            ("type=provenance,src=", "src=… is missing"),
            ("type=provenance,ref=a", "\"ref\" is not known for this type"),
            ("type=cachedb,src=a,src=b", "\"src\" is given twice"),
            ("type=builder", "name=… is missing"),
            ("type=builder,name=a,src=b", "\"src\" is not known for this type"),
            ("type=cachedb,name=a", "\"name\" is not known for this type"),
            ("type=keys", "src=… is missing"),
            ("type=keys,ref=a,src=b", "\"ref\" is not known for this type"),
            ("type=cachedb,mode=max", "\"mode\" is not known"),
            ("type=cachedb,x", "\"x\" is not NAME=VALUE"),
            ("type=cachedb,", "\"\" is not NAME=VALUE"),
            ("type=cachedb,\"src=a", "the quotes do not match"),
            ("type=cachedb,src=\"a\"", "the quotes do not match"),
            ("./Provenance.json", "\"./Provenance.json\" is not an image reference"),
        ];
        for (text, expected) in cases {
            let message = text.parse::<KeySpec>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?}: {message}");
            for form in ["type=image,ref=", "type=provenance,src=", "type=cachedb,src=", "type=keys,src="] {
                assert!(message.contains(form), "{message}");
            }
        }
    }
}
