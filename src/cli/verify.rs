//! `warmkit verify`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::progress::Console;
use super::{err, exit, out, render};
use crate::verify;

const EXAMPLES: &str = "\
Examples:
  # before the image ships: every database, every blob, and each against the others
  warmkit verify --root /var/lib/buildkit

  # also unpack every layer in memory and compare it with its snapshot
  warmkit verify --root /var/lib/buildkit --read-data

  # run the real build on a throwaway view of the root: is every step CACHED?
  warmkit verify --root /var/lib/buildkit --build . -f docker/Dockerfile --build-arg VERSION=1.2
";

/// Check that a root is whole and warm
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n{}", exit::HELP))]
pub(super) struct Arguments {
    /// The root to check; no daemon may run on it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/buildkit")]
    root: PathBuf,

    /// Unpack each layer again, in memory, and compare it with its snapshot entry by entry
    #[arg(long)]
    read_data: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    root: String,
    healthy: bool,
    offline: &'a verify::Report,
}

/// Verifies and returns the exit code.
pub(super) fn run(arguments: Arguments) -> u8 {
    let console = Console::new();
    let mut options = verify::Options::default();
    options.read_data = arguments.read_data;
    let result = verify::offline(&arguments.root, &options, &console);
    console.finish();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let code = exit::of_verify(&error);
            err(render::error(&error));
            if arguments.json {
                out(render::json_error(&error, code));
            }
            return code;
        }
    };
    let outcome = Outcome {
        root: arguments.root.display().to_string(),
        healthy: report.is_healthy(),
        offline: &report,
    };
    out(if arguments.json { render::json(&outcome) } else { render::verify(&arguments.root, &report) });
    if report.is_healthy() { exit::OK } else { exit::FINDINGS }
}
