//! `warmkit keys pull`.

use clap::Args;
use serde::Serialize;

use super::super::caches::discreet;
use super::super::exit::{self, Failure};
use super::super::options::{Registries, of_caches};
use super::super::output::Output;
use super::super::progress::Shown;
use super::super::signals::interruptible;
use super::file::OutputPath;
use super::table;
use crate::gather::{self, sidecar};
use crate::source::CacheSpec;

const EXAMPLES: &str = "\
Examples:
  # get the keys once, and bake where the registry cannot be reached
  warmkit keys pull ghcr.io/acme/app:cache -o app.keys.json
  warmkit bake type=local,src=./cache \\
    --keys-from type=keys,src=app.keys.json --root ./root
";

/// Get the sidecar of a cache as a keys file
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(in crate::cli) struct Arguments {
    /// A cache in a registry: a reference, or type=registry,ref=REF
    #[arg(value_parser = discreet::<CacheSpec>())]
    cache: CacheSpec,

    #[command(flatten)]
    file: OutputPath,

    #[command(flatten)]
    registries: Registries,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Written {
    #[serde(flatten)]
    report: sidecar::PullReport,
    file: String,
}

/// Pulls and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let file = arguments.file.create()?;
    let given = arguments.registries.given(of_caches([&arguments.cache]))?;
    let (report, keys) = interruptible(arguments.output, arguments.progress, |stop| {
        let registry = arguments.registries.options(stop, given);
        let options = gather::Options { registry, ..gather::Options::default() };
        sidecar::pull(&arguments.cache, &options, &*arguments.progress.start()?).map_err(Failure::from)
    })?;
    let written = Written { report, file: file.write(keys.to_bytes())? };
    arguments.output.report(&written, |written| table::pull(&written.report, &written.file))?;
    Ok(exit::OK)
}
