//! What `warmkit inspect` prints for people.
//!
//! A record stands on the one above it in its column, or, where lines lead to it, on the one that they come from:
//! only a branching takes more room to the right.

use std::fmt::Write as _;

use indicatif::HumanBytes;

use super::super::escape::{cut, one_line};
use super::super::render::{counted, described, row, worth};
use super::super::text::{Style, Text};
use super::Report;
use crate::inspect::{Child, Forest, Record, Status, Totals, Weight, forest};

/// Records up to which everything is shown.
const MANY: usize = 1000;
/// Branchings that are followed where there are more.
const DEPTH_OF_MANY: usize = 2;
/// Records on one of which so many are shown then.
const CHILDREN_OF_MANY: usize = 20;
/// Columns that a step's name gets on the narrowest terminal.
const LEAST: usize = 20;
/// Entries of databases that could not be read, of which so many are shown.
const FAULTS: usize = 10;

/// How much of a tree is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    depth: usize,
    children: usize,
}

impl Limits {
    /// As the arguments say, or so that many records stay readable.
    pub(super) fn new(depth: Option<usize>, all: bool, records: usize) -> Self {
        let many = records > MANY && !all;
        Self {
            depth: depth.unwrap_or(if many { DEPTH_OF_MANY } else { usize::MAX }),
            children: if many { CHILDREN_OF_MANY } else { usize::MAX },
        }
    }
}

/// What stands in a line of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Record(usize),
    /// A record that has its place elsewhere.
    Again(usize),
    /// What the limits leave out.
    More(Weight),
}

/// A line of the tree, and the lines that lead to it.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    lead: String,
    what: What,
}

/// Something that is still to be drawn: what leads to its first line, and to those after it.
struct Pending {
    what: What,
    lead: String,
    rest: String,
    depth: usize,
}

fn draw(forest: &Forest, limits: Limits) -> Vec<Line> {
    let mut lines = Vec::new();
    let roots: Vec<Child> = forest.roots.iter().map(|&record| Child { record, again: false }).collect();
    let mut pending = match roots[..] {
        [Child { record, .. }] => {
            vec![Pending { what: What::Record(record), lead: String::new(), rest: String::new(), depth: 0 }]
        }
        _ => branches(&roots, "", 0, forest, limits),
    };
    while let Some(Pending { what, mut lead, rest, depth }) = pending.pop() {
        let What::Record(mut at) = what else {
            lines.push(Line { lead, what });
            continue;
        };
        loop {
            lines.push(Line { lead, what: What::Record(at) });
            match forest.children[at][..] {
                [Child { record, again: false }] => at = record,
                [] => break,
                ref children => {
                    pending.extend(branches(children, &rest, depth + 1, forest, limits));
                    break;
                }
            }
            lead = rest.clone();
        }
    }
    lines
}

/// The children of a record, the last one first.
fn branches(all: &[Child], rest: &str, depth: usize, forest: &Forest, limits: Limits) -> Vec<Pending> {
    let shown = if depth > limits.depth { 0 } else { limits.children.min(all.len()) };
    let (shown, more) = all.split_at(shown);
    let mut whats: Vec<What> = shown
        .iter()
        .map(|child| if child.again { What::Again(child.record) } else { What::Record(child.record) })
        .collect();
    let left = more.iter().filter(|child| !child.again).map(|child| forest.weights[child.record]);
    let left = left.fold(Weight::default(), |sum, weight| Weight {
        records: sum.records + weight.records,
        bytes: sum.bytes.saturating_add(weight.bytes),
    });
    if left.records > 0 {
        whats.push(What::More(left));
    }
    let last = whats.len().saturating_sub(1);
    let lines = whats.into_iter().enumerate().map(|(at, what)| {
        let (lead, below) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        Pending { what, lead: format!("{rest}{lead}"), rest: format!("{rest}{below}"), depth }
    });
    lines.rev().collect()
}

/// Sources, the records as a tree, and the sums.
pub(super) fn inventory(report: &Report<'_>, limits: Limits, columns: Option<usize>) -> Text {
    let mut text = Text::new();
    if let Some(root) = &report.root {
        let _ = writeln!(text, "root        {root}");
    }
    for cache in &report.caches {
        let _ = writeln!(text, "cache       {}", described(cache));
    }
    for missing in &report.missing {
        let _ = writeln!(text, "skipped     {}: {}", missing.cache, missing.reason);
    }
    for source in &report.keys_from {
        let _ = writeln!(text, "keys from   {}: {}", source.source, worth(source));
    }
    if !report.records.is_empty() {
        text.push("\n");
        tree(&mut text, report, limits, columns);
    }
    text.push("\n");
    sums(&mut text, &report.totals, report.root.is_some());
    if report.left_out > 0 {
        let _ = write!(text, "\nleft out    {} records of other platforms", report.left_out);
    }
    if !report.faults.is_empty() {
        let title = format!(
            "\n\n{} of the databases' entries could not be read; `warmkit verify` judges them",
            report.faults.len()
        );
        text.push_styled(Style::Warning, title);
        for fault in report.faults.iter().take(FAULTS) {
            let _ = write!(text, "\n  {}", one_line(fault));
        }
    }
    text
}

fn tree(text: &mut Text, report: &Report<'_>, limits: Limits, columns: Option<usize>) {
    let forest = forest(report.records);
    let lines = draw(&forest, limits);
    let cells: Vec<(String, String, &str)> = lines
        .iter()
        .map(|line| match line.what {
            What::Record(at) => {
                let record = &report.records[at];
                let with_all = HumanBytes(forest.weights[at].bytes).to_string();
                (size(record), with_all, key(record))
            }
            What::Again(_) => (String::new(), String::new(), ""),
            What::More(weight) => (String::new(), HumanBytes(weight.bytes).to_string(), ""),
        })
        .collect();
    let width = |title: &str, cell: fn(&(String, String, &str)) -> usize| {
        cells.iter().map(cell).max().unwrap_or_default().max(title.len())
    };
    let sizes = width("SIZE", |cells| cells.0.chars().count());
    let sums = width("WITH ALL", |cells| cells.1.chars().count());
    let keys = width("KEY", |cells| cells.2.chars().count());
    let room = columns.map(|columns| columns.saturating_sub(sizes + sums + keys + 6));
    let titles = format!("{:>sizes$}  {:>sums$}  {:<keys$}  STEP", "SIZE", "WITH ALL", "KEY");
    text.push_styled(Style::Title, titles);
    for (line, (size, with_all, key)) in lines.iter().zip(&cells) {
        let _ = write!(text, "\n{size:>sizes$}  {with_all:>sums$}  ");
        let is_lost = matches!(*key, UNKEYED | ONLY_INPUTS);
        text.push_styled(is_lost.then_some(Style::Bad), format!("{key:<keys$}"));
        let room = room.map(|room| room.saturating_sub(line.lead.chars().count()).max(LEAST));
        let _ = write!(text, "  {}{}", line.lead, cut(&label(line.what, report.records), room));
    }
    text.push("\n");
}

const UNKEYED: &str = "none";
const ONLY_INPUTS: &str = "input missing";

fn key(record: &Record) -> &'static str {
    match record.status {
        Some(Status::Root | Status::Keyed) => "keyed",
        Some(Status::OnlyInputs) => ONLY_INPUTS,
        Some(Status::Unkeyed) => UNKEYED,
        None => "-",
    }
}

fn size(record: &Record) -> String {
    let bytes = record.bytes.or(record.layer_bytes);
    bytes.map_or_else(|| "?".to_owned(), |bytes| HumanBytes(bytes).to_string())
}

fn label(what: What, records: &[Record]) -> String {
    match what {
        What::Record(at) => described_record(&records[at]),
        What::Again(at) => format!("→ {}, shown elsewhere", name(&records[at])),
        What::More(weight) => format!("… and {} more", counted(weight.records, "record")),
    }
}

fn described_record(record: &Record) -> String {
    let mut notes = Vec::new();
    if record.record_type != "regular" {
        notes.push(one_line(&record.record_type).into_owned());
    }
    if record.mutable {
        notes.push("mutable".to_owned());
    }
    if record.keys > 1 {
        notes.push(format!("{} keys", record.keys));
    }
    if record.same_layer > 0 {
        notes.push(format!("layer of {} records", record.same_layer + 1));
    }
    if record.same_files > 0 {
        notes.push(format!("files of {} records", record.same_files + 1));
    }
    let name = name(record);
    if notes.is_empty() { name } else { format!("{name} ({})", notes.join(", ")) }
}

/// What a record is called.
fn name(record: &Record) -> String {
    match (&record.name, &record.layer) {
        (Some(name), _) => one_line(name).into_owned(),
        (None, Some(layer)) => format!("layer {layer}"),
        (None, None) => format!("record {}", one_line(&record.id)),
    }
}

fn sums(text: &mut Text, totals: &Totals, is_root: bool) {
    let of_several = |count: usize| match count {
        0 => String::new(),
        count => format!(", {count} of them of several records"),
    };
    let bytes = if is_root { format!(", {}", HumanBytes(totals.bytes)) } else { String::new() };
    let mut lines = String::new();
    row(&mut lines, "records", &format!("{}{bytes}", totals.records));
    let layers = HumanBytes(totals.layer_bytes);
    let shared = of_several(totals.shared_layers);
    row(&mut lines, "layers", &format!("{}, {layers} compressed{shared}", totals.layers));
    row(&mut lines, "snapshots", &format!("{}{}", totals.snapshots, of_several(totals.shared_snapshots)));
    row(
        &mut lines,
        "keys",
        &format!(
            "{}: {}, {} keyed, {} unkeyed; {} without a record",
            totals.keys,
            counted(totals.roots, "root"),
            totals.keys - totals.roots - totals.unkeyed,
            totals.unkeyed,
            totals.without_record
        ),
    );
    text.push(lines.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    /// Records by name, each on others, a hundred bytes more from one to the next.
    fn records(shape: &[(&str, &[&str])]) -> Vec<Record> {
        let record = |(at, (name, parents)): (usize, &(&str, &[&str]))| {
            let mut record = Record::default();
            record.id = (*name).to_owned();
            record.name = Some((*name).to_owned());
            record.record_type = "regular".to_owned();
            record.parents = parents.iter().map(|&id| id.to_owned()).collect();
            record.layer_bytes = Some(100 * (at as u64 + 1));
            record
        };
        shape.iter().enumerate().map(record).collect()
    }

    fn drawn(records: &[Record], limits: Limits) -> String {
        let lines = draw(&forest(records), limits);
        let lines = lines.iter().map(|line| format!("{}{}", line.lead, label(line.what, records)));
        lines.collect::<Vec<_>>().join("\n")
    }

    const ALL: Limits = Limits { depth: usize::MAX, children: usize::MAX };

    #[test]
    fn only_branchings_go_to_the_right() {
        let shape = records(&[
            ("base", &[]),
            ("apt", &["base"]),
            ("copy", &["apt"]),
            ("make", &["copy"]),
            ("lint", &["copy"]),
            ("docs", &["apt"]),
            ("merge", &["docs", "make"]),
            ("other", &[]),
        ]);
        insta::assert_snapshot!(drawn(&shape, ALL), @r"
        ├─ base
        │  apt
        │  ├─ docs
        │  │  merge
        │  └─ copy
        │     ├─ lint
        │     └─ make
        │        └─ → merge, shown elsewhere
        └─ other
        ");
        insta::assert_snapshot!(drawn(&shape, Limits { depth: 1, children: 1 }), @r"
        ├─ base
        │  apt
        │  ├─ docs
        │  │  merge
        │  └─ … and 3 records more
        └─ … and 1 record more
        ");
        insta::assert_snapshot!(drawn(&shape[..7], Limits { depth: 0, children: 1 }), @r"
        base
        apt
        └─ … and 5 records more
        ");
        assert_eq!(drawn(&[], ALL), "");
    }

    #[test]
    fn of_many_the_largest_are_shown() {
        let small = Limits::new(None, false, MANY);
        assert_eq!((small.depth, small.children), (usize::MAX, usize::MAX));
        let many = Limits::new(None, false, MANY + 1);
        assert_eq!((many.depth, many.children), (DEPTH_OF_MANY, CHILDREN_OF_MANY));
        assert_eq!(Limits::new(Some(7), false, MANY + 1).depth, 7);
        assert_eq!(Limits::new(None, true, MANY + 1).children, usize::MAX);
    }

    #[test]
    fn an_inventory() {
        let mut shape =
            records(&[("FROM base", &[]), ("RUN \u{1b}[2J\nmake", &["FROM base"]), ("", &["FROM base"])]);
        shape[0].status = Some(Status::Keyed);
        (shape[0].keys, shape[0].same_layer) = (2, 1);
        shape[1].status = Some(Status::OnlyInputs);
        (shape[1].mutable, shape[1].record_type) = (true, "exec.cachemount".to_owned());
        (shape[2].name, shape[2].layer_bytes, shape[2].same_files) = (None, None, 2);
        shape[2].layer = Some(Digest::of(b""));
        let mut totals = Totals::default();
        (totals.records, totals.bytes, totals.layers, totals.layer_bytes) = (3, 4096, 2, 300);
        (totals.shared_layers, totals.snapshots) = (1, 3);
        (totals.keys, totals.roots, totals.unkeyed, totals.without_record) = (5, 2, 1, 1);
        let report = Report {
            root: Some("/var/lib/buildkit".to_owned()),
            caches: Vec::new(),
            missing: Vec::new(),
            keys_from: Vec::new(),
            left_out: 0,
            faults: vec!["cache.db _links: a value where a bucket is needed".to_owned()],
            totals,
            records: &shape,
            keys: &[],
        };
        let text = inventory(&report, ALL, None).to_string();
        insta::assert_snapshot!(text.replace(&Digest::of(b"").to_string(), "<digest>"), @r"
        root        /var/lib/buildkit

         SIZE  WITH ALL  KEY            STEP
        100 B     300 B  keyed          FROM base (2 keys, layer of 2 records)
        200 B     200 B  input missing  ├─ RUN \u001b[2J\nmake (exec.cachemount, mutable)
            ?       0 B  -              └─ layer <digest> (files of 3 records)

        records     3, 4.00 KiB
        layers      2, 300 B compressed, 1 of them of several records
        snapshots   3
        keys        5: 2 roots, 2 keyed, 1 unkeyed; 1 without a record

        1 of the databases' entries could not be read; `warmkit verify` judges them
          cache.db _links: a value where a bucket is needed
        ");
    }
}
