//! `warmkit keys replay`.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use serde::Serialize;

use super::super::build::BuildArguments;
use super::super::caches::Caches;
use super::super::progress::{Console, Verbs};
use super::super::{err, exit, out, render, signals};
use crate::gather::{self, BakedCache, Missing};
use crate::keys::{self, Keyring};
use crate::oci::{Cache, Platform};
use crate::replay::{self, Report};
use crate::source::{self, Stop};

const EXAMPLES: &str = "\
Examples:
  # the keys of a cache whose build did not leave them, from its sources
  warmkit keys replay ghcr.io/acme/app:cache --build . -o keys.json
  warmkit bake ghcr.io/acme/app:cache --keys-from type=keys,src=keys.json

  # the build as CI runs it, for two platforms and two stages
  warmkit keys replay ghcr.io/acme/app:cache --build . -f docker/Dockerfile --target test --target app \\
    --platform linux/amd64,linux/arm64 --build-arg VERSION=1.2 -o keys.json
";

/// Solve a build with its caches imported, run nothing, and write the keys that BuildKit computes for it
#[derive(Debug, Args)]
#[command(
    after_help = format!("{}\n\n{EXAMPLES}", exit::HELP),
    group = ArgGroup::new("replayed").required(true).args(["build"])
)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    caches: Caches,

    /// The keys file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The platforms to build for; may be repeated; default: the daemon's own
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platforms: Vec<Platform>,

    /// Be content although records stay without a key: those of other builds, whose cache this is too
    #[arg(long)]
    allow_unkeyed: bool,

    /// Talk http to registries on other hosts than this one too
    #[arg(long)]
    insecure: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    build: BuildArguments,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    output: String,
    caches: &'a [BakedCache],
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
pub(super) fn run(arguments: Arguments) -> u8 {
    let json = arguments.json;
    match replay(arguments) {
        Ok(code) => code,
        Err((error, code)) => {
            err(render::error(&*error));
            if json {
                out(render::json_error(&*error, code));
            }
            code
        }
    }
}

type Failed = (Box<dyn Error>, u8);

fn failed(code: u8) -> impl FnOnce(Box<dyn Error>) -> Failed {
    move |error| (error, code)
}

fn replay(arguments: Arguments) -> Result<u8, Failed> {
    let interrupted = signals::interrupted().map_err(|error| failed(exit::FAILURE)(error.into()))?;
    let registry = source::Options {
        insecure: arguments.insecure,
        stop: Stop::on_flag(interrupted),
        ..source::Options::default()
    };
    let gathering = gather::Options {
        platforms: arguments.platforms.clone(),
        no_sidecar: true,
        registry: registry.clone(),
    };
    let console = Console::new(Verbs::BAKE);
    let skip_missing = arguments.caches.skip_missing;
    let specs = arguments.caches.read().map_err(|error| {
        let code = error.exit_code();
        failed(code)(error.into())
    })?;
    let all = gather::open_all(&specs, skip_missing, &gathering, &console).map_err(|error| {
        let code = exit::of_gather(&error);
        failed(code)(error.into())
    })?;
    console.finish();
    let caches: Vec<&Cache> = all.opened.iter().map(|opened| &opened.cache).collect();
    let reports: Vec<BakedCache> = all.opened.iter().map(|opened| opened.report.clone()).collect();

    let Some(options) = arguments.build.replay(&arguments.platforms, &registry) else {
        return Err(failed(exit::USAGE)("--build CONTEXT is missing".into()));
    };
    err("replaying the build; no step runs, and no layer is downloaded");
    let replayed = replay::replay(&caches, &options).map_err(|error| failed(exit::FAILURE)(error.into()))?;
    let bytes =
        keys::file::write(&replayed.candidates).map_err(|error| failed(exit::FAILURE)(error.into()))?;
    fs::write(&arguments.output, bytes).map_err(|error| {
        let message = format!("cannot write {}: {error}", arguments.output.display());
        failed(exit::FAILURE)(message.into())
    })?;

    let (keyed, records) = proven(&replayed.candidates, &caches);
    let outcome = Outcome {
        output: arguments.output.display().to_string(),
        caches: &reports,
        missing: &all.missing,
        complete: replayed.report.is_complete(),
        report: &replayed.report,
        candidates: replayed.candidates.len(),
        records,
        keyed,
    };
    out(if arguments.json { render::json(&outcome) } else { text(&outcome) });
    Ok(if !outcome.complete {
        exit::NOT_CACHED
    } else if keyed < records && !arguments.allow_unkeyed {
        exit::UNKEYED
    } else {
        exit::OK
    })
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
