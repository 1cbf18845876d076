//! `warmkit verify`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;

use super::build::{Solve, SolveConfig};
use super::exit::{self, Failure};
use super::output::{Output, out};
use super::place::Place;
use super::progress::Shown;
use super::{render, signals};
use crate::daemon::Build;
use crate::progress::{Phase, during};
use crate::verify::{self, LiveOptions, LiveReport};

const EXAMPLES: &str = "\
Examples:
  # before the image ships: every database and blob, each against the others
  warmkit verify --root /var/lib/buildkit

  # also unpack every layer in memory and compare it with its snapshot
  warmkit verify --root /var/lib/buildkit --read-data

  # the real build, on a throwaway view of the root: is every step CACHED?
  warmkit verify --root /var/lib/buildkit --build . \\
    -f docker/Dockerfile --build-arg VERSION=1.2
";

/// Check that a root is whole and warm; no daemon may run on it
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXAMPLES}", exit::HELP))]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,

    /// Unpack each layer again, in memory, and compare it with its snapshot entry by entry
    #[arg(long)]
    read_data: bool,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,

    /// Also run this build on a throwaway view of the root, which stays untouched: is every step CACHED?
    #[arg(long, value_name = "CONTEXT", help_heading = "Build")]
    build: Option<PathBuf>,

    /// The stage to build; default: the last
    #[arg(long, value_name = "STAGE", requires = "build", help_heading = "Build")]
    target: Option<String>,

    /// The platforms to build for; default: the daemon's own
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", requires = "build", help_heading = "Build")]
    platform: Option<String>,

    /// A cache that the build imports, as buildctl takes it: type=registry,ref=REF; for roots baked
    /// with --allow-unkeyed
    #[arg(long, value_name = "CACHE", requires = "build", help_heading = "Build")]
    import_cache: Vec<String>,

    #[command(flatten)]
    solve: Solve,

    #[command(flatten)]
    config: SolveConfig,
}

impl Arguments {
    fn live(&self, context: PathBuf, interrupted: Arc<AtomicBool>) -> LiveOptions {
        let build = Build {
            target: self.target.clone(),
            platform: self.platform.clone(),
            import_caches: self.import_cache.clone(),
            ..self.solve.build(context)
        };
        let buildkitd_config = self.config.buildkitd_config.clone();
        LiveOptions { build, search: self.solve.search(), buildkitd_config, scratch: None, interrupted }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    root: String,
    healthy: bool,
    offline: &'a verify::Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a LiveReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    all_cached: Option<bool>,
}

/// Verifies and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let (output, progress) = (arguments.output, arguments.progress);
    let ending = signals::end_on_signal(output, progress)?;
    let root = arguments.place.idle_root()?;
    let options = verify::Options { read_data: arguments.read_data, ..verify::Options::default() };
    let report = verify::offline(&root, &options, &*progress.start()?).map_err(|error| {
        let code = exit::of_verify(&error);
        Failure::new(error, code)
    })?;
    if !output.is_json() {
        out(render::verify(&root, &report))?;
    }
    let live = match &arguments.build {
        None => None,
        Some(context) => {
            let options = arguments.live(context.clone(), ending.in_order());
            let build = || verify::live(&root, &options);
            Some(during(&*progress.start()?, Phase::Build, build)?)
        }
    };
    if output.is_json() {
        let outcome = Outcome {
            root: root.display().to_string(),
            healthy: report.is_healthy(),
            offline: &report,
            live: live.as_ref(),
            all_cached: live.as_ref().map(LiveReport::all_cached),
        };
        out(render::json(&outcome))?;
    } else if let Some(live) = &live {
        out(render::live(live))?;
    }
    Ok(if report.is_healthy() { live.as_ref().map_or(exit::OK, exit::of_build) } else { exit::FINDINGS })
}
