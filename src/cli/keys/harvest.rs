//! `warmkit keys harvest`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::super::progress::{Console, Verbs};
use super::super::{err, exit, out, render, signals};
use crate::gather;
use crate::keys::{self, Candidates, KeySpec};
use crate::oci::Platform;
use crate::source::{self, Stop};

const EXAMPLES: &str = "\
Examples:
  # from a running builder of buildx, by its name, without stopping it
  warmkit keys harvest type=builder,name=ci -o keys.json

  # from the root of a buildkitd, and from the image that another build pushed with provenance
  warmkit keys harvest type=cachedb,src=/var/lib/buildkit ghcr.io/acme/app:main -o keys.json

  # keys files of several builders as one
  warmkit keys harvest type=keys,src=amd64.json type=keys,src=arm64.json -o keys.json
";

/// Write the keys that builders, images and files have to one file
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXAMPLES}", exit::HELP))]
pub(in crate::cli) struct Arguments {
    /// Where operation digests come from: type=builder,name=NAME, type=cachedb,src=FILE-OR-ROOT, an image
    /// reference or type=image,ref=REF (its provenance), type=provenance,src=FILE or type=keys,src=FILE
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<KeySpec>,

    /// The keys file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The platform of the builder that made the provenance, for operations that name none; may be
    /// repeated; default: this machine's
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platforms: Vec<Platform>,

    /// Talk http to registries on other hosts than this one too
    #[arg(long)]
    insecure: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What one source had.
#[derive(Serialize)]
struct Harvested {
    source: String,
    candidates: usize,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome {
    output: String,
    sources: Vec<Harvested>,
    /// Distinct operation digests of all sources.
    candidates: usize,
}

/// Harvests and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> u8 {
    match harvest(arguments) {
        Ok(outcome) => {
            out(if arguments.json { render::json(&outcome) } else { text(&outcome) });
            exit::OK
        }
        Err((error, code)) => {
            err(render::error(&*error));
            if arguments.json {
                out(render::json_error(&*error, code));
            }
            code
        }
    }
}

fn harvest(arguments: &Arguments) -> Result<Outcome, (Box<dyn Error>, u8)> {
    let failed = |error: Box<dyn Error>| (error, exit::FAILURE);
    let interrupted = signals::interrupted().map_err(|error| failed(error.into()))?;
    let registry = source::Options {
        insecure: arguments.insecure,
        stop: Stop::on_flag(interrupted),
        ..source::Options::default()
    };
    let options = gather::Options { platforms: arguments.platforms.clone(), no_sidecar: true, registry };
    let console = Console::new(Verbs::BAKE);
    let offers = gather::offers(&arguments.sources, &options, &console);
    console.finish();
    let offers = offers.map_err(|error| {
        let code = exit::of_gather(&error);
        (Box::<dyn Error>::from(error), code)
    })?;
    let mut all = Candidates::new();
    let mut sources = Vec::new();
    for offer in offers {
        sources.push(Harvested { source: offer.source, candidates: offer.candidates.len() });
        all.merge(offer.candidates);
    }
    let bytes = keys::file::write(&all).map_err(|error| failed(error.into()))?;
    fs::write(&arguments.output, bytes)
        .map_err(|error| failed(format!("cannot write {}: {error}", arguments.output.display()).into()))?;
    Ok(Outcome { output: arguments.output.display().to_string(), sources, candidates: all.len() })
}

fn text(outcome: &Outcome) -> String {
    let lines =
        outcome.sources.iter().map(|source| format!("{}: {} candidates\n", source.source, source.candidates));
    lines.chain([format!("{} candidates written to {}", outcome.candidates, outcome.output)]).collect()
}
