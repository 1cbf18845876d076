//! One release's cache on another release's daemon: a baked root has exactly the steps that the
//! daemon's own `--import-cache` finds.
//!
//! CI runs the pairs of [`PAIRS`]. `scripts/compatibility` runs the whole square with the same code: it
//! names the releases in `$WARMKIT_SQUARE` and takes what was found from the file `$WARMKIT_SQUARE_OUT`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::VecDeque;
use std::env;
use std::fs;
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
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    match env::var("WARMKIT_SQUARE") {
        Ok(text) => {
            let releases: Vec<&str> = text.split_whitespace().collect();
            releases.iter().map(|&exporter| (exporter.to_owned(), owned(&releases))).collect()
        }
        Err(_) => PAIRS.iter().map(|(exporter, daemons)| ((*exporter).to_owned(), owned(daemons))).collect(),
    }
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

#[test]
fn a_baked_root_has_what_an_import_finds() {
    let plan = plan();
    let threads = env::var("RUST_TEST_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let expected = plan.len();
    let queue = Mutex::new(VecDeque::from(plan));
    // A row that panics has said why; the others are told of all the same.
    let rows: Vec<Result<Option<Row>, String>> = thread::scope(|scope| {
        let work = || {
            let mut rows = Vec::new();
            loop {
                let next = queue.lock().unwrap().pop_front();
                let Some((exporter, daemons)) = next else { return rows };
                let row = panic::catch_unwind(|| row(&exporter, &daemons));
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
    if let Some(file) = env::var_os("WARMKIT_SQUARE_OUT") {
        fs::write(file, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    }
    let unhealthy = rows.iter().filter(|row| !row.own_root.is_empty());
    faults.extend(unhealthy.map(|row| format!("verify of {}'s own root: {}", row.exporter, row.own_root)));
    faults.extend(rows.iter().flat_map(|row| &row.cells).flat_map(Cell::faults));
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
