//! One release's cache on another release's daemon: a baked root has exactly the steps that the
//! daemon's own `--import-cache` finds.
//!
//! CI runs the pairs of [`PAIRS`]. `scripts/compatibility` runs the whole square with the same code: it
//! names the pairs in `$WARMKIT_SQUARE`, as `EXPORTER:DAEMON,DAEMON…` with spaces between exporters, and
//! takes what was found from the file `$WARMKIT_SQUARE_OUT`, an object for each exporter.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::VecDeque;
use std::env;
use std::fs::File;
use std::io::Write as _;
use std::panic;
use std::sync::Mutex;
use std::thread;

use serde::Serialize;
use support::square::{Cell, Exporter};

/// Each release whose cache is exported, and on which releases' daemons it is tried.
const PAIRS: [(&str, &[&str]); 4] = [
    ("v0.34.2", &["v0.34.2"]),
    ("v0.33.1", &["v0.33.1"]),
    ("v0.17.3", &["v0.17.3", "v0.34.2"]),
    ("v0.12.5", &["v0.12.5", "v0.33.1"]),
];

/// All that one release's cache was tried on.
#[derive(Debug, Serialize)]
struct Row {
    exporter: String,
    /// What verify says of the exporter's own root; empty where it is healthy.
    own_root: String,
    cells: Vec<Cell>,
}

/// What to try: the square of the releases that `$WARMKIT_SQUARE` names, or [`PAIRS`].
fn plan() -> Vec<(String, Vec<String>)> {
    match env::var("WARMKIT_SQUARE") {
        Ok(text) => {
            let rows = text.split_whitespace().map(|row| row.split_once(':').unwrap());
            rows.map(|(exporter, daemons)| owned(exporter, &daemons.split(',').collect::<Vec<_>>())).collect()
        }
        Err(_) => PAIRS.iter().map(|(exporter, daemons)| owned(exporter, daemons)).collect(),
    }
}

fn owned(exporter: &str, daemons: &[&str]) -> (String, Vec<String>) {
    (exporter.to_owned(), daemons.iter().map(|&daemon| daemon.to_owned()).collect())
}

fn row(exporter: &str, daemons: &[String]) -> Option<Row> {
    let exporter = Exporter::start(exporter)?;
    let mut cells = Vec::new();
    for daemon in daemons {
        let cell = exporter.on(daemon)?;
        let baked: Vec<_> = cell.baked.iter().map(|(keys, found)| (keys, found.steps.len())).collect();
        eprintln!(
            "{} on {daemon}: baked {baked:?}, imported {}, of {}",
            exporter.release(),
            cell.native.steps.len(),
            cell.steps.len()
        );
        cells.push(cell);
    }
    Some(Row { exporter: exporter.release().to_owned(), own_root: exporter.own_root.clone(), cells })
}

/// Where the table of docs/compatibility.md has another number of steps for a cell than was found.
fn undocumented(cell: &Cell, document: &str) -> Option<String> {
    let cells = |line: &str| line.split('|').map(|text| text.trim().to_owned()).collect::<Vec<_>>();
    let line = |start: &str| document.lines().find(|line| line.starts_with(start)).map(cells);
    let said = line("| cache of")
        .zip(line(&format!("| {} |", cell.exporter)))
        .and_then(|(head, row)| row.get(head.iter().position(|name| *name == cell.daemon)?).cloned());
    let found = format!("{0} · {0} · {1}", cell.native.steps.len(), cell.steps.len());
    let (exporter, daemon) = (&cell.exporter, &cell.daemon);
    (said.as_ref() != Some(&found))
        .then(|| format!("{exporter} on {daemon}: found {found}, docs/compatibility.md says {said:?}"))
}

#[test]
fn a_baked_root_has_what_an_import_finds() {
    let plan = plan();
    assert!(
        !plan.is_empty() && plan.iter().all(|(_, daemons)| !daemons.is_empty()),
        "{plan:?}: nothing to try"
    );
    let threads = env::var("RUST_TEST_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let expected = plan.len();
    let queue = Mutex::new(VecDeque::from(plan));
    // Row by row, so that a run that is stopped has not been for nothing.
    let out = env::var_os("WARMKIT_SQUARE_OUT").map(|file| Mutex::new(File::create(file).unwrap()));
    // A row that panics has said why; the others are told of all the same.
    let rows: Vec<Result<Option<Row>, String>> = thread::scope(|scope| {
        let work = || {
            let mut rows = Vec::new();
            loop {
                let next = queue.lock().unwrap().pop_front();
                let Some((exporter, daemons)) = next else { return rows };
                let row = panic::catch_unwind(|| row(&exporter, &daemons));
                if let (Some(out), Ok(Some(row))) = (&out, &row) {
                    writeln!(out.lock().unwrap(), "{}", serde_json::to_string(row).unwrap()).unwrap();
                }
                rows.push(row.map_err(|_| exporter));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let panicked = rows.iter().filter_map(|row| row.as_ref().err());
    let mut faults: Vec<String> = panicked.map(|exporter| format!("{exporter}: its row panicked")).collect();
    let rows: Vec<Row> = rows.into_iter().filter_map(Result::ok).flatten().collect();
    if faults.is_empty() && rows.len() < expected {
        // A part was missing, and support::skip said which.
        return;
    }
    let unhealthy = rows.iter().filter(|row| !row.own_root.is_empty());
    faults.extend(unhealthy.map(|row| format!("verify of {}'s own root: {}", row.exporter, row.own_root)));
    faults.extend(rows.iter().flat_map(|row| &row.cells).flat_map(Cell::faults));
    if env::var_os("WARMKIT_SQUARE").is_none() {
        let document = include_str!("../docs/compatibility.md");
        faults.extend(rows.iter().flat_map(|row| &row.cells).filter_map(|cell| undocumented(cell, document)));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
