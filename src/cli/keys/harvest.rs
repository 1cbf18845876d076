//! `warmkit keys harvest`.

use clap::Args;
use serde::Serialize;

use super::super::caches::discreet;
use super::super::exit::{self, Failure};
use super::super::options::{Registries, distinct, of_keys};
use super::super::output::Output;
use super::super::progress::Shown;
use super::super::signals::interruptible;
use super::file::OutputPath;
use crate::gather;
use crate::keys::{self, Candidates, KeySpec};
use crate::oci::Platform;
use crate::progress::{Phase, during};

const EXAMPLES: &str = "\
Examples:
  # from a running builder of buildx, by its name, without stopping it
  warmkit keys harvest type=builder,name=ci -o keys.json

  # from the root of a buildkitd, and from an image with provenance
  warmkit keys harvest type=cachedb,src=/var/lib/buildkit \\
    ghcr.io/acme/app:main -o keys.json

  # keys files of several builders as one
  warmkit keys harvest type=keys,src=amd64.json type=keys,src=arm64.json \\
    -o keys.json
";

/// Write the keys that builders, images and files have to one file
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(in crate::cli) struct Arguments {
    /// Where operation digests come from: type=builder,name=NAME, type=cachedb,src=FILE-OR-ROOT, an image
    /// reference or type=image,ref=REF (its provenance), type=provenance,src=FILE or type=keys,src=FILE
    #[arg(required = true, value_name = "SRC", value_parser = discreet::<KeySpec>())]
    sources: Vec<KeySpec>,

    #[command(flatten)]
    file: OutputPath,

    /// The platform of the builder that made the provenance, for operations that name none; may be
    /// repeated; default: this machine's
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platforms: Vec<Platform>,

    #[command(flatten)]
    registries: Registries,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
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
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let file = arguments.file.create()?;
    let given = arguments.registries.given(of_keys(&arguments.sources))?;
    let offers = interruptible(arguments.output, arguments.progress, |stop| {
        let options = gather::Options {
            platforms: arguments.platforms.clone(),
            no_sidecar: true,
            registry: arguments.registries.options(stop, given),
        };
        let (sources, progress) = (distinct(arguments.sources.clone()), arguments.progress.start()?);
        during(&*progress, Phase::Keys, || gather::offers(&sources, &options, &*progress))
            .map_err(Failure::from)
    })?;
    let mut all = Candidates::new();
    let mut sources = Vec::new();
    for offer in offers {
        sources.push(Harvested { source: offer.source, candidates: offer.candidates.len() });
        all.merge(offer.candidates);
    }
    let output = file.write(keys::file::write(&all))?;
    arguments.output.report(&Outcome { output, sources, candidates: all.len() }, text)?;
    Ok(exit::OK)
}

fn text(outcome: &Outcome) -> String {
    let lines =
        outcome.sources.iter().map(|source| format!("{}: {} candidates\n", source.source, source.candidates));
    lines.chain([format!("{} candidates written to {}", outcome.candidates, outcome.output)]).collect()
}
