//! `warmkit hydrate`.

use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use super::exit::{self, Failure};
use super::notify::Notifying;
use super::output::Output;
use super::place::Place;
use super::plan::size;
use super::priority::GivingWay;
use super::progress::Shown;
use super::{render, signals};
use crate::hydrate::{self, Options, Report, Stage};
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  # on a host that was just booted from an AMI, beside its daemon
  warmkit hydrate --root /var/lib/buildkit

  # as slowly as others need it
  warmkit hydrate --rate 100MiB --idle

  # before the daemon starts: what it reads at once
  warmkit hydrate --only databases

  # once in the life of a volume
  warmkit hydrate --stamp /var/lib/warmkit/hydrated
";

/// How long a service manager waits for the databases before it starts what comes after them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Read a root once, so that builds do not wait for blocks of a volume made from a snapshot
///
/// Such a volume fetches each block when it is first read. This reads the databases, then the snapshots that
/// steps are built on, then the rest. A daemon may run meanwhile: nothing is written or locked, and what was
/// read leaves memory again, except for databases, directories and inodes.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,

    /// Read no more than these parts
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    only: Vec<Part>,

    /// Most bytes per second to ask the disk for, such as 100MiB (units are powers of 1024); directories and inodes
    /// count, what is in memory does not
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    rate: Option<NonZero<u64>>,

    /// Reads under way at a time
    #[arg(long, value_name = "N", default_value = "16")]
    jobs: NonZero<usize>,

    /// After the databases, read only when nobody else wants the disk or a processor; the disk's scheduler has
    /// to know priorities (bfq and mq-deadline do, none does not)
    #[arg(long)]
    idle: bool,

    /// Leave all that was read in memory, as far as there is room
    #[arg(long)]
    keep_cached: bool,

    /// A file to make once all was read; where it is there already, nothing is read
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    stamp: Option<PathBuf>,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
}

/// What to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Databases, and the directories that a daemon lists when it starts
    Databases,
    /// Snapshots that steps are built on
    FirstBuild,
    /// Everything else
    Rest,
}

impl From<Part> for Stage {
    fn from(part: Part) -> Self {
        match part {
            Part::Databases => Self::Databases,
            Part::FirstBuild => Self::FirstBuild,
            Part::Rest => Self::Rest,
        }
    }
}

/// `1048576`, or `100MiB`: units are powers of 1024, as in all of BuildKit's sizes.
fn parse_rate(text: &str) -> Result<NonZero<u64>, &'static str> {
    let rate = size(text.strip_suffix("/s").unwrap_or(text)).ok().and_then(NonZero::new);
    rate.ok_or("expected bytes per second above 0, such as 100MiB")
}

/// Reads and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let interrupted = signals::end_on_signal(arguments.output, arguments.progress)?.in_order();
    let stages: Vec<Part> =
        if arguments.only.is_empty() { Part::value_variants().to_vec() } else { arguments.only.clone() };
    let options = Options {
        root: arguments.place.root(arguments.progress)?,
        stages: stages.into_iter().map(Stage::from).collect(),
        rate: arguments.rate,
        jobs: arguments.jobs,
        keep: arguments.keep_cached,
        interrupted,
    };
    if let Some(stamp) = &arguments.stamp
        && stamp.try_exists().map_err(|error| failed("look at", stamp, &error))?
    {
        let nothing = Report::nothing(&options);
        arguments.output.report(&nothing, |_| format!("{} is there: nothing to read", stamp.display()))?;
        return Ok(exit::OK);
    }
    let report = {
        let progress = arguments.progress.start()?;
        let giving_way = GivingWay { inner: &*progress };
        let progress = if arguments.idle { &giving_way as &dyn Progress } else { &*progress };
        hydrate::hydrate(&options, &Notifying::new(progress, PATIENCE))?
    };
    if let Some(stamp) = arguments.stamp.as_ref().filter(|_| report.is_complete()) {
        fs::write(stamp, render::json(&report) + "\n").map_err(|error| failed("write", stamp, &error))?;
    }
    arguments.output.report(&report, render::hydrate)?;
    Ok(if report.is_complete() { exit::OK } else { exit::FAILURE })
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", path.display()), exit::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let cases = [
            ("1", Some(1)),
            ("100MiB", Some(100 << 20)),
            ("100MB/s", Some(100 << 20)),
            ("1.5M", Some(3 << 19)),
            ("0", None),
            ("", None),
            ("10%", None),
            ("much", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_rate(text).ok().map(NonZero::get), expected, "{text}");
        }
    }
}
