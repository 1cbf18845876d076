//! `warmkit keys replay`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use super::super::build::{ReplayArguments, SolveConfig};
use super::super::caches::Caches;
use super::super::exit::{self, Failure};
use super::super::options::{Registries, of_caches};
use super::super::output::Output;
use super::super::progress::Shown;
use super::super::render;
use super::super::signals::interruptible;
use super::file::OutputPath;
use crate::gather::{self, All, BakedCache, Missing};
use crate::keys::{self, Keyring};
use crate::oci::{Cache, Platform};
use crate::progress::{Phase, during};
use crate::replay::{self, Replay, Report};

const EXAMPLES: &str = "\
Examples:
  # the keys of a cache whose build did not leave them, from its sources
  warmkit keys replay ghcr.io/acme/app:cache --build . -o keys.json
  warmkit bake ghcr.io/acme/app:cache --keys-from type=keys,src=keys.json

  # the build as CI runs it, for two platforms and two stages
  warmkit keys replay ghcr.io/acme/app:cache --build . \\
    -f docker/Dockerfile --target test --target app \\
    --platform linux/amd64,linux/arm64 --build-arg VERSION=1.2 -o keys.json
";

/// Solve a build with its caches imported, run nothing, and write the keys that BuildKit computes for it
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES), mut_arg("build", |build| build.required(true)))]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    caches: Caches,

    #[command(flatten)]
    file: OutputPath,

    /// The platforms to build for; may be repeated; default: the daemon's own
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platforms: Vec<Platform>,

    /// Be content although records stay without a key: those of other builds, whose cache this is too
    #[arg(long)]
    allow_unkeyed: bool,

    #[command(flatten)]
    registries: Registries,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,

    #[command(flatten)]
    build: ReplayArguments,

    #[command(flatten)]
    config: SolveConfig,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    output: String,
    caches: Vec<&'a BakedCache>,
    missing: &'a [Missing],
    #[serde(flatten)]
    report: &'a Report,
    complete: bool,
    candidates: usize,
    /// Records with inputs, and how many of them have their key now.
    records: usize,
    keyed: usize,
}

/// Replays and returns the exit code.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let file = arguments.file.create()?;
    let skip_missing = arguments.caches.skip_missing;
    let specs = arguments.caches.read(&arguments.registries)?;
    let given = arguments.registries.given(of_caches(&specs))?;
    let (all, Replay { candidates, report }) = interruptible(arguments.output, arguments.progress, |stop| {
        let registry = arguments.registries.options(stop, given);
        let Some(options) =
            arguments.build.replay(&arguments.platforms, &registry, arguments.config.buildkitd_config)?
        else {
            return Err(Failure::new("--build CONTEXT is missing", exit::USAGE));
        };
        let gathering = gather::Options { platforms: arguments.platforms, no_sidecar: true, registry };
        let progress = arguments.progress.start()?;
        let all = during(&*progress, Phase::Resolve, || {
            gather::open_all(&specs, skip_missing, &gathering, &*progress)
        })?;
        let replayed = during(&*progress, Phase::Replay, || replay::replay(&caches(&all), &options))?;
        Ok((all, replayed))
    })?;
    let (keyed, records) = proven(&candidates, &caches(&all));
    let outcome = Outcome {
        output: file.write(keys::file::write(&candidates))?,
        caches: all.opened.iter().map(|opened| &opened.report).collect(),
        missing: &all.missing,
        complete: report.is_complete(),
        report: &report,
        candidates: candidates.len(),
        records,
        keyed,
    };
    arguments.output.report(&outcome, text)?;
    Ok(if !outcome.complete {
        exit::NOT_CACHED
    } else if keyed < records && !arguments.allow_unkeyed {
        exit::UNKEYED
    } else {
        exit::OK
    })
}

fn caches(all: &All) -> Vec<&Cache> {
    all.opened.iter().map(|opened| &opened.cache).collect()
}

/// How many of the distinct records with inputs have their key, and how many there are.
fn proven(candidates: &keys::Candidates, caches: &[&Cache]) -> (usize, usize) {
    let records = caches.iter().flat_map(|cache| &cache.records);
    let wanted: std::collections::BTreeSet<_> =
        records.filter(|record| !record.inputs.is_empty()).map(|record| &record.digest).collect();
    let keyring = Keyring::prove(candidates, wanted.iter().copied());
    (wanted.iter().filter(|digest| keyring.get(digest).is_some()).count(), wanted.len())
}

fn text(outcome: &Outcome<'_>) -> String {
    let mut text = render::replay(outcome.report);
    let _ = write!(
        text,
        "\n{} of {} records keyed; {} candidates written to {}",
        outcome.keyed, outcome.records, outcome.candidates, outcome.output
    );
    if outcome.keyed < outcome.records && outcome.complete {
        text.push_str(
            "\nthe other records are not of this build: replay the other builds too (targets, platforms), or \
             take their keys from elsewhere",
        );
    }
    text
}
