//! `warmkit diff`.

mod table;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Serialize;

use super::caches::discreet;
use super::engine;
use super::exit::{self, Failure};
use super::largest::Largest;
use super::options::KeySources;
use super::output::{Output, columns};
use super::progress::Shown;
use super::render::chain;
use super::signals::interruptible;
use crate::gather::{self, BakedCache};
use crate::inspect::{self, Diff, Inventory, Totals};
use crate::root::{self, KeptIn, Root};
use crate::source::{CacheSpec, SpecError};

const EXAMPLES: &str = "\
Examples:
  # what did the last build change?
  warmkit diff ghcr.io/acme/app:cache-before ghcr.io/acme/app:cache \\
    --keys-from ghcr.io/acme/app:main

  # is the root in this image as fresh as the cache? 10 if not
  warmkit diff /mnt/image/var/lib/buildkit ghcr.io/acme/app:cache \\
    --keys-from ghcr.io/acme/app:main --exit-code

  # the steps that a new image would add, for a script
  warmkit diff ./root-of-may ./root-of-june --format json |
    jq -r '.steps[] | select(.change == \"added\").name'
";

/// Compare two caches or roots: steps and bytes that are gone, added, the same; pulls no layer
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(super) struct Arguments {
    /// A cache, as `warmkit bake` takes it, or a root: a path that begins with / or ., or type=root,src=DIR, of a
    /// containerd worker with ,containerd=ADDRESS[,namespace=NAME]. No daemon may run on a root
    #[arg(value_name = "A", value_parser = discreet::<Side>())]
    first: Side,

    /// What to compare it with: a cache or a root
    #[arg(value_name = "B", value_parser = discreet::<Side>())]
    second: Side,

    #[command(flatten)]
    keys: KeySources,

    /// End with 10 where they differ; without it, a difference is no reason for another code than 0
    #[arg(long)]
    exit_code: bool,

    #[command(flatten)]
    largest: Largest,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
}

/// The namespace of a containerd worker that is told none.
const NAMESPACE: &str = "buildkit";

/// One of the two that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Root(PathBuf, Option<KeptIn>),
    /// And how it was written.
    Cache(Box<CacheSpec>, String),
}

impl FromStr for Side {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // No reference begins so.
        if text.starts_with(['/', '.']) {
            return Ok(Self::Root(text.into(), None));
        }
        match text.strip_prefix("type=root,src=") {
            Some(root) => Ok(match root.split_once(",containerd=") {
                Some((path, containerd)) => {
                    let (address, namespace) =
                        containerd.split_once(",namespace=").unwrap_or((containerd, NAMESPACE));
                    let (address, namespace) = (address.to_owned(), namespace.to_owned());
                    Self::Root(path.into(), Some(KeptIn { address, namespace }))
                }
                None => Self::Root(root.into(), None),
            }),
            None => Ok(Self::Cache(Box::new(text.parse()?), text.to_owned())),
        }
    }
}

/// What is compared.
#[derive(Serialize)]
struct Compared {
    /// As it was asked for.
    name: String,
    is_root: bool,
    caches: Vec<BakedCache>,
    faults: usize,
    totals: Totals,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report {
    a: Compared,
    b: Compared,
    #[serde(flatten)]
    diff: Diff,
}

/// Compares and returns the exit code.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { first, second, keys, exit_code, largest, output, progress } = arguments;
    for side in [&first, &second] {
        if let Side::Root(path, _) = side {
            engine::refuse(path)?;
        }
    }
    let caches = [&first, &second].into_iter().filter_map(|side| match side {
        Side::Cache(cache, _) => Some(&**cache),
        Side::Root(..) => None,
    });
    let given = keys.given(caches)?;
    let (first, second) = interruptible(output, progress, |stop| {
        let options = keys.gather(stop, given);
        Ok((read(first, &keys, &options, progress)?, read(second, &keys, &options, progress)?))
    })?;
    let diff = inspect::diff(&first.1, &second.1);
    let report = Report { a: first.0, b: second.0, diff };
    output.report(&report, |report| table::diff(report, largest.limit(), columns()))?;
    Ok(if exit_code && !report.diff.equal { exit::DIFFERENT } else { exit::OK })
}

fn read(
    side: Side,
    keys: &KeySources,
    options: &gather::Options,
    progress: Shown,
) -> Result<(Compared, Inventory), Failure> {
    let (name, is_root, caches, faults, inventory) = match side {
        Side::Root(path, kept_in) => {
            let (faults, inventory) = read_root(&path, kept_in.as_ref())?;
            (path.display().to_string(), true, Vec::new(), faults, inventory)
        }
        Side::Cache(cache, written) => {
            let name = cache.to_string();
            let progress = progress.start()?;
            let gathered = gather::gather(&[*cache], false, &keys.keys_from(), options, &*progress)
                .map_err(|error| with_directory(error, &written))?;
            let inventory = inspect::of_caches(&gathered);
            (name, false, gathered.reports, 0, inventory)
        }
    };
    Ok((Compared { name, is_root, caches, faults, totals: inventory.totals }, inventory))
}

/// Whoever wrote the name of a directory may have meant the root in it.
fn with_directory(error: gather::Error, written: &str) -> Failure {
    let failure = Failure::from(error);
    if !Path::new(written).is_dir() {
        return failure;
    }
    let error = chain(&*failure.error);
    Failure::new(
        format!("{error}; a directory {written} is here: write ./{written} for the root in it"),
        failure.code,
    )
}

fn read_root(path: &Path, kept_in: Option<&KeptIn>) -> Result<(usize, Inventory), Failure> {
    let root = match Root::open_with(path, kept_in) {
        Err(error @ root::Error::ContainerdWorker { .. }) => {
            let spec = format!("type=root,src={},containerd=ADDRESS", path.display());
            return Err(Failure::new(format!("{error}; here as {spec}"), exit::of_verify(&error)));
        }
        opened => opened?,
    };
    let state = root.read_whole()?;
    Ok((state.faults.len(), inspect::of_root(&root, &state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_told_from_caches() {
        for (text, root) in [
            ("/var/lib/buildkit", Some(("/var/lib/buildkit", None))),
            ("./root", Some(("./root", None))),
            ("..", Some(("..", None))),
            ("type=root,src=root", Some(("root", None))),
            ("type=root,src=a,b,containerd=/s", Some(("a,b", Some(("/s", "buildkit"))))),
            ("type=root,src=r,containerd=unix:///s,namespace=n", Some(("r", Some(("unix:///s", "n"))))),
            ("root", None),
            ("type=local,src=/x", None),
            ("r.example/a:1", None),
        ] {
            let expected = match root {
                Some((root, kept_in)) => {
                    let kept_in = kept_in.map(|(address, namespace): (&str, &str)| KeptIn {
                        address: address.into(),
                        namespace: namespace.into(),
                    });
                    Side::Root(root.into(), kept_in)
                }
                None => Side::Cache(Box::new(text.parse().unwrap()), text.to_owned()),
            };
            assert_eq!(text.parse::<Side>().unwrap(), expected, "{text}");
        }
        assert!("type=tape,src=/x".parse::<Side>().is_err());
    }
}
