//! `warmkit keys check`.

use clap::Args;

use super::super::caches::Caches;
use super::super::exit::{self, Failure};
use super::super::options::KeySources;
use super::super::output::{Output, columns};
use super::super::progress::Shown;
use super::super::signals::interruptible;
use super::table;
use crate::gather;

const EXAMPLES: &str = "\
Examples:
  # would a bake of this cache be warm? 0 if so, 6 if a step has no key
  warmkit keys check ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main

  # which image is needed? one that keys 0 records by itself can be left out
  warmkit keys check --from-file branches.txt \\
    --keys-from ghcr.io/acme/app:main --keys-from ghcr.io/acme/app:next

  # the steps without a key, for a script
  warmkit keys check ghcr.io/acme/app:cache --json | jq -r '.unkeyed[].name'
";

/// Say which steps of caches have a key, and from which source; pulls no layer
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    caches: Caches,

    #[command(flatten)]
    keys: KeySources,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
}

/// Checks and returns the exit code.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { caches, keys, output, progress } = arguments;
    let skip_missing = caches.skip_missing;
    let caches = caches.read(&keys.registries)?;
    let given = keys.given(&caches)?;
    let check = interruptible(output, progress, |stop| {
        let progress = progress.start()?;
        gather::check(&caches, skip_missing, &keys.keys_from(), &keys.gather(stop, given), &*progress)
            .map_err(Failure::from)
    })?;
    output.report(&check, |check| table::check(check, columns()))?;
    Ok(if check.unkeyed.is_empty() { exit::OK } else { exit::UNKEYED })
}
