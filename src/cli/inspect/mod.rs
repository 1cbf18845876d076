//! `warmkit inspect`.

mod table;
mod tree;

use clap::Args;
use serde::Serialize;

use super::caches::Caches;
use super::exit::{self, Failure};
use super::largest::Largest;
use super::options::KeySources;
use super::output::{Output, columns};
use super::place::Place;
use super::progress::Shown;
use super::signals::interruptible;
use crate::gather::{self, BakedCache, KeySourceReport, Missing};
use crate::inspect::{self, Inventory, Key, Record, Totals};
use crate::root::Root;

const EXAMPLES: &str = "\
Examples:
  # which steps does this cache hold, how large, and would a build find them?
  warmkit inspect ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main

  # what is in the root of this machine; no daemon may run on it
  warmkit inspect --root /var/lib/buildkit

  # a large one: its twenty largest records, and what stands between them
  warmkit inspect --root /var/lib/buildkit --largest 20

  # the ten largest records, for a script
  warmkit inspect --root /var/lib/buildkit --format json |
    jq -r '.records | sort_by(-.bytes)[:10][] | [.bytes, .name] | @tsv'
";

/// What is about caches only.
const OF_CACHES: [&str; 6] = ["named", "from_file", "skip_missing", "keys_from", "no_sidecar", "platforms"];

/// Show what caches or a root hold: records, sizes, what is shared, what has a key; pulls no layer
#[derive(Debug, Args)]
#[command(
    after_long_help = exit::help(EXAMPLES),
    mut_arg("named", |arg| arg.required_unless_present_any(["from_file", "root", "for"])),
    mut_arg("root", |arg| arg.conflicts_with_all(OF_CACHES).help("A root instead of caches, as a directory; no \
        daemon may run on it. Of a containerd worker beside --for containerd")),
    mut_arg("for", |arg| arg.conflicts_with_all(OF_CACHES).help("A root instead of caches, by whose it is; no \
        daemon may run on it")),
)]
pub(super) struct Arguments {
    #[command(flatten)]
    caches: Caches,

    #[command(flatten)]
    place: Place,

    #[command(flatten)]
    keys: KeySources,

    #[command(flatten)]
    largest: Largest,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report<'a> {
    root: Option<String>,
    caches: Vec<BakedCache>,
    missing: Vec<Missing>,
    keys_from: Vec<KeySourceReport>,
    left_out: usize,
    faults: Vec<String>,
    totals: Totals,
    records: &'a [Record],
    keys: &'a [Key],
}

/// Inspects and returns the exit code.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { caches, place, keys, largest, output, progress } = arguments;
    let mut report = Report {
        root: None,
        caches: Vec::new(),
        missing: Vec::new(),
        keys_from: Vec::new(),
        left_out: 0,
        faults: Vec::new(),
        totals: Totals::default(),
        records: &[],
        keys: &[],
    };
    let inventory: Inventory;
    if place.is_given() {
        let (path, kept_in) = place.idle_root(progress)?;
        let root = Root::open_with(&path, kept_in.as_ref())?;
        let state = root.read_whole()?;
        inventory = inspect::of_root(&root, &state);
        report.root = Some(path.display().to_string());
        report.faults = state.faults.iter().map(ToString::to_string).collect();
    } else {
        let skip_missing = caches.skip_missing;
        let caches = caches.read(&keys.registries)?;
        let given = keys.given(&caches)?;
        let gathered = interruptible(output, progress, |stop| {
            let progress = progress.start()?;
            gather::gather(&caches, skip_missing, &keys.keys_from(), &keys.gather(stop, given), &*progress)
                .map_err(Failure::from)
        })?;
        inventory = inspect::of_caches(&gathered);
        report.caches = gathered.reports;
        report.missing = gathered.missing;
        report.keys_from = gathered.keys.reports;
        report.left_out = gathered.left_out;
    }
    report.totals = inventory.totals;
    report.records = &inventory.records;
    report.keys = &inventory.keys;
    output.report(&report, |report| table::inventory(report, largest.limit(), columns()))?;
    Ok(exit::OK)
}
