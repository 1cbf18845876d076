//! `warmkit keys check`.

use std::error::Error;

use clap::Args;

use super::super::caches::Caches;
use super::super::progress::{Console, Verbs};
use super::super::{err, exit, out, render};
use super::table;
use crate::gather;
use crate::keys::KeySpec;
use crate::oci::Platform;
use crate::source;

const EXAMPLES: &str = "\
Examples:
  # would a bake of this cache be warm? exits with 0 if so, with 6 if a step has no key
  warmkit keys check ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main

  # which of the images is needed: one that keys 0 records by itself can be left out
  warmkit keys check --from-file branches.txt --keys-from ghcr.io/acme/app:main \\
    --keys-from ghcr.io/acme/app:next

  # the steps without a key, for a script
  warmkit keys check ghcr.io/acme/app:cache --json | jq -r '.unkeyed[].name'
";

/// Say which steps of caches have a key, and from which source; pulls no layer
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXAMPLES}", exit::HELP))]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    caches: Caches,

    /// Where operation digests may come from, as for warmkit bake
    #[arg(long, value_name = "SRC")]
    keys_from: Vec<KeySpec>,

    /// Leave aside the sidecars that `warmkit keys push` put beside caches
    #[arg(long)]
    no_sidecar: bool,

    /// A platform, as for warmkit bake; may be repeated
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platforms: Vec<Platform>,

    /// Talk http to registries on other hosts than this one too
    #[arg(long)]
    insecure: bool,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Checks and returns the exit code.
pub(super) fn run(arguments: Arguments) -> u8 {
    let failed = |error: &(dyn Error + 'static), code| {
        err(render::error(error));
        if arguments.json {
            out(render::json_error(error, code));
        }
        code
    };
    let skip_missing = arguments.caches.skip_missing;
    let caches = match arguments.caches.read() {
        Ok(caches) => caches,
        Err(error) => return failed(&error, error.exit_code()),
    };
    let options = gather::Options {
        platforms: arguments.platforms,
        no_sidecar: arguments.no_sidecar,
        registry: source::Options { insecure: arguments.insecure, ..source::Options::default() },
    };
    let console = Console::new(Verbs::BAKE);
    let result = gather::check(&caches, skip_missing, &arguments.keys_from, &options, &console);
    console.finish();
    match result {
        Ok(check) => {
            out(if arguments.json { render::json(&check) } else { table::check(&check) });
            if check.unkeyed.is_empty() { exit::OK } else { exit::UNKEYED }
        }
        Err(error) => failed(&error, exit::of_gather(&error)),
    }
}
