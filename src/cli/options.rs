//! Arguments that several commands take, and what they mean to the library.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::io::{self, IsTerminal};

use clap::Args;

use super::caches::discreet;
use super::exit::{self, Failure};
use crate::gather;
use crate::keys::KeySpec;
use crate::oci::{Platform, Reference};
use crate::source::{self, CacheSpec, Given, Stop};

/// How registries are asked.
#[derive(Debug, Args)]
pub(super) struct Registries {
    /// Allow plain http for registries on other hosts than this one too
    #[arg(long)]
    insecure: bool,

    /// The user whose password --password-stdin reads, at the one registry that caches and key sources are in; goes
    /// before all other credentials, and no other registry is shown it
    #[arg(long, value_name = "USER", requires = "password_stdin")]
    username: Option<String>,

    /// Read a password or token from standard input
    #[arg(long, requires = "username")]
    pub(super) password_stdin: bool,
}

impl Registries {
    /// Reads the password, if there is one to read, for the registry of the references that were named. Best before
    /// signals are caught: nobody may be writing it.
    pub(super) fn given<'a>(
        &self,
        named: impl IntoIterator<Item = &'a Reference>,
    ) -> Result<Option<Given>, Failure> {
        let Some(user) = self.username.as_deref().filter(|_| self.password_stdin) else { return Ok(None) };
        let registry = one_registry(named).map_err(|error| Failure::new(error, exit::USAGE))?;
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let error = "--password-stdin reads a pipe or a file, so that no password is seen on a terminal";
            return Err(Failure::new(error, exit::USAGE));
        }
        Given::read(&registry, user, &mut stdin.lock())
            .map(Some)
            .map_err(|error| Failure::new(error, exit::USAGE))
    }

    /// The same for the library; `stop` ends all that is asked.
    pub(super) fn options(&self, stop: Stop, given: Option<Given>) -> source::Options {
        source::Options { insecure: self.insecure, given, stop, ..source::Options::default() }
    }
}

/// Where the keys of caches come from.
#[derive(Debug, Args)]
pub(super) struct KeySources {
    /// Where keys may come from; may be repeated: an image reference or type=image,ref=REF (its provenance),
    /// type=provenance,src=FILE, type=cachedb,src=FILE-OR-ROOT, type=builder,name=NAME (a builder of buildx),
    /// or type=keys,src=FILE
    #[arg(long, value_name = "SRC", value_parser = discreet::<KeySpec>())]
    keys_from: Vec<KeySpec>,

    /// Do without the sidecars that `warmkit keys push` puts beside caches; keys push then replaces them
    /// unread
    #[arg(long)]
    pub(super) no_sidecar: bool,

    /// Leave out what only builds for other platforms use, as far as an image with inline cache, or
    /// provenance, tells; also what the builder ran on that exported the caches, for operations that name no
    /// platform. May be repeated; default: everything, and this machine's platform
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub(super) platforms: Vec<Platform>,

    #[command(flatten)]
    pub(super) registries: Registries,
}

impl KeySources {
    /// Each source once: one that is named twice would seem to be needless.
    pub(super) fn keys_from(&self) -> Vec<KeySpec> {
        distinct(self.keys_from.clone())
    }

    /// The password for these caches and the key sources, read from standard input if that was asked for.
    pub(super) fn given<'a>(
        &'a self,
        caches: impl IntoIterator<Item = &'a CacheSpec>,
    ) -> Result<Option<Given>, Failure> {
        self.registries.given(of_caches(caches).chain(of_keys(&self.keys_from)))
    }

    /// How caches and key sources are read.
    pub(super) fn gather(&self, stop: Stop, given: Option<Given>) -> gather::Options {
        gather::Options {
            platforms: self.platforms.clone(),
            no_sidecar: self.no_sidecar,
            registry: self.registries.options(stop, given),
        }
    }
}

/// The references of caches in registries.
pub(super) fn of_caches<'a>(
    caches: impl IntoIterator<Item = &'a CacheSpec>,
) -> impl Iterator<Item = &'a Reference> {
    caches.into_iter().filter_map(|cache| match cache {
        CacheSpec::Registry { reference, .. } => Some(reference),
        _ => None,
    })
}

/// The references of key sources in registries.
pub(super) fn of_keys(sources: &[KeySpec]) -> impl Iterator<Item = &Reference> {
    sources.iter().filter_map(|source| match source {
        KeySpec::Image(reference) => Some(reference),
        _ => None,
    })
}

/// The registry of all of these: a password must not be shown to another one than was meant.
fn one_registry<'a>(named: impl IntoIterator<Item = &'a Reference>) -> Result<String, String> {
    let registries: BTreeSet<&str> = named.into_iter().map(Reference::registry).collect();
    let registries: Vec<_> = registries.into_iter().collect();
    match registries[..] {
        [] => Err("--password-stdin is for a registry, and no cache or key source is in one".to_owned()),
        [registry] => Ok(registry.to_owned()),
        _ => Err(format!(
            "--password-stdin is for one registry, and caches and key sources are in several ({}): use docker login",
            registries.join(", ")
        )),
    }
}

/// The first of each, in their order.
pub(super) fn distinct<T: Display + PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut known: HashMap<String, Vec<usize>> = HashMap::new();
    let mut distinct = Vec::with_capacity(all.len());
    for one in all {
        // Text alone does not tell: it leaves out secrets.
        let alike = known.entry(one.to_string()).or_default();
        if alike.iter().all(|&at| distinct[at] != one) {
            alike.push(distinct.len());
            distinct.push(one);
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_for_one_registry() {
        let cases: [(&[&str], Result<&str, &str>); 5] = [
            (&["r.example/a:1"], Ok("r.example")),
            (&["r.example/a:1", "r.example/b/c:2"], Ok("r.example")),
            (&["alpine"], Ok("docker.io")),
            (&[], Err("no cache or key source is in one")),
            (&["r.example/a", "alpine"], Err("in several (docker.io, r.example)")),
        ];
        for (references, expected) in cases {
            let references: Vec<Reference> = references.iter().map(|text| text.parse().unwrap()).collect();
            match (one_registry(&references), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (found, _) => panic!("{references:?}: {found:?}"),
            }
        }
    }
}
