//! `warmkit forecast`.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::exit::{self, Failure};
use super::output::Output;
use super::place::{Place, kept_in};
use super::plan::{Host, table};
use super::progress::Shown;
use crate::bake::{self, GcOptions};
use crate::fsutil;
use crate::gc::{self, Disk, Forecast, Question, Record};
use crate::root::Root;

const EXAMPLES: &str = "\
Examples:
  # what would the daemon of this machine take of its root, if nothing is built?
  warmkit forecast

  # and that of a user's rootless daemon, by the user's own configuration?
  warmkit forecast --for rootless:ci

  # a root that is shipped to hosts with a disk of 50 GB
  warmkit forecast --root ./root --disk-size 50GB --buildkitd-release v0.31.2

  # keep it: the configuration, with 30 GB for what builds add
  warmkit forecast --root ./root --room 30GB --format json | jq -r .gc.keep
";

/// Say what garbage collection will take of a root on which nothing is built, from now on
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    host: Host,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Outcome {
    root: String,
    records: usize,
    bytes: u64,
    gc: Forecast,
}

/// Foretells and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let place = arguments.place.find_idle(Shown::default())?;
    let gc = arguments.host.options(&place)?;
    let path = place.path();
    let root = Root::open_with(path, kept_in(&place).as_ref())?;
    let workers = root.read_whole()?.workers;
    let read = workers.iter().filter(|worker| worker.is_read());
    let records: Vec<Record> = read.flat_map(|worker| root.usage(worker)).map(Record::from).collect();
    let bytes = records.iter().fold(0_u64, |sum, record| sum.saturating_add(record.size));
    let around = fsutil::room_at(path).map_err(|error| {
        Failure::new(format!("cannot look at {}: {error}", path.display()), exit::FAILURE)
    })?;
    let GcOptions { configuration, release, disk_size, room: adds } = gc;
    let free = |total: u64| (total, total.saturating_sub(bytes));
    let (total, free) = disk_size.map(free).or(around.bytes).unwrap_or_default();
    let disk = Disk { total, free };
    let gc = gc::foretell(&Question {
        records: &records,
        largest: &[],
        configuration: &configuration,
        release,
        disk,
        start: Timestamp::now(),
        room: adds,
    })
    .map_err(bake::Error::from)?;
    let outcome = Outcome { root: path.display().to_string(), records: records.len(), bytes, gc };
    arguments.output.report(&outcome, |outcome| {
        table::root(&outcome.root, outcome.records, outcome.bytes, &outcome.gc)
    })?;
    Ok(exit::OK)
}
