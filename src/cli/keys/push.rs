//! `warmkit keys push`.

use clap::Args;

use super::super::caches::discreet;
use super::super::progress::{Console, Verbs};
use super::super::{err, exit, out, render};
use super::table;
use crate::gather::{self, sidecar};
use crate::keys::KeySpec;
use crate::oci::Platform;
use crate::source::{self, CacheSpec};

const EXAMPLES: &str = "\
Examples:
  # in CI, after the build that exported the cache: from the builder that ran it
  warmkit keys push ghcr.io/acme/app:cache --keys-from type=cachedb,src=cache.db

  # from the provenance that the build wrote, which then need not be pushed anywhere
  warmkit keys push ghcr.io/acme/app:cache --keys-from type=provenance,src=metadata.json

  # a bake finds the sidecar by itself
  warmkit bake ghcr.io/acme/app:cache

  # the cache was exported again, and most of its steps are the same: carry their keys over
  warmkit keys push ghcr.io/acme/app:cache
";

/// Push the keys of a cache as a sidecar beside it, where bakes find them without a flag
///
/// Only keys that are proven for the cache are pushed: digests and outputs, and nothing else of the build.
/// A sidecar that is there already is read first, and its keys go into the new one.
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXAMPLES}", exit::HELP))]
pub(in crate::cli) struct Arguments {
    /// A cache in a registry: a reference, or type=registry,ref=REF
    #[arg(value_parser = discreet::<CacheSpec>())]
    cache: CacheSpec,

    /// Where operation digests may come from, as for warmkit bake
    #[arg(long, value_name = "SRC")]
    keys_from: Vec<KeySpec>,

    /// Replace the sidecar that is there, and the last one under the tag, without reading them
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

/// Pushes and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> u8 {
    let options = gather::Options {
        platforms: arguments.platforms.clone(),
        no_sidecar: arguments.no_sidecar,
        registry: source::Options { insecure: arguments.insecure, ..source::Options::default() },
    };
    let console = Console::new(Verbs::BAKE);
    let result = sidecar::push(&arguments.cache, &arguments.keys_from, &options, &console);
    console.finish();
    match result {
        Ok(report) => {
            out(if arguments.json { render::json(&report) } else { table::push(&report) });
            exit::OK
        }
        Err(error) => {
            let code = exit::of_gather(&error);
            err(render::error(&error));
            if arguments.json {
                out(render::json_error(&error, code));
            }
            code
        }
    }
}
