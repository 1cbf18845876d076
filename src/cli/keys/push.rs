//! `warmkit keys push`.

use clap::Args;

use super::super::caches::discreet;
use super::super::exit::{self, Failure};
use super::super::options::KeySources;
use super::super::output::Output;
use super::super::progress::Shown;
use super::super::signals::interruptible;
use super::table;
use crate::gather::sidecar;
use crate::source::CacheSpec;

const EXAMPLES: &str = "\
Examples:
  # in CI, after the build that exported the cache: from the builder's database
  warmkit keys push ghcr.io/acme/app:cache --keys-from type=cachedb,src=cache.db

  # from the provenance of the build, which then need not be pushed anywhere
  warmkit keys push ghcr.io/acme/app:cache \\
    --keys-from type=provenance,src=metadata.json

  # a bake finds the sidecar by itself
  warmkit bake ghcr.io/acme/app:cache

  # the cache was exported again: carry over the keys of the steps that stayed
  warmkit keys push ghcr.io/acme/app:cache
";

/// Push the keys of a cache as a sidecar beside it, where bakes find them without a flag
///
/// Only keys that are proven for the cache are pushed: digests and outputs, and nothing else of the build.
/// A sidecar that is there already is read first, and its keys go into the new one.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(in crate::cli) struct Arguments {
    /// A cache in a registry: a reference, or type=registry,ref=REF
    #[arg(value_parser = discreet::<CacheSpec>())]
    cache: CacheSpec,

    #[command(flatten)]
    keys: KeySources,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
}

/// Pushes and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let Arguments { cache, keys, output, progress } = arguments;
    let given = keys.given([cache])?;
    let report = interruptible(*output, *progress, |stop| {
        let progress = progress.start()?;
        sidecar::push(cache, &keys.keys_from(), &keys.gather(stop, given), &*progress).map_err(Failure::from)
    })?;
    output.report(&report, table::push)?;
    Ok(exit::OK)
}
