//! What `warmkit inspect` prints for people.

use std::fmt::Write as _;

use indicatif::HumanBytes;

use super::super::escape::{cut, one_line, room};
use super::super::render::{called, counted, described, row, worth};
use super::super::text::{Style, Text};
use super::Report;
use super::tree::{What, draw};
use crate::inspect::{Record, Status, Totals, forest};

/// Entries of databases that could not be read, of which so many are shown.
const FAULTS: usize = 10;

/// Sources, the records as a tree, and the sums.
pub(super) fn inventory(report: &Report<'_>, limit: usize, columns: Option<usize>) -> Text {
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
        tree(&mut text, report, limit, columns);
    }
    text.push("\n");
    sums(&mut text, &report.totals, report.root.is_some());
    if report.left_out > 0 {
        let _ = write!(text, "\nleft out    {} records of other platforms", report.left_out);
    }
    if !report.faults.is_empty() {
        let title = format!(
            "\n\n{} of its parts could not be read; `warmkit verify` judges them",
            report.faults.len()
        );
        text.push_styled(Style::Warning, title);
        for fault in report.faults.iter().take(FAULTS) {
            let _ = write!(text, "\n  {}", one_line(fault));
        }
    }
    text
}

fn tree(text: &mut Text, report: &Report<'_>, limit: usize, columns: Option<usize>) {
    let forest = forest(report.records);
    let lines = draw(report.records, &forest, limit);
    let cells: Vec<(String, String, &str)> = lines
        .iter()
        .map(|line| match line.what {
            What::Record(at) => {
                let record = &report.records[at];
                let with_all = HumanBytes(forest.weights[at].bytes).to_string();
                (size(record), with_all, key(record))
            }
            What::Again(_) => (String::new(), String::new(), ""),
            What::Rest { own, with_all } => {
                (HumanBytes(own.bytes).to_string(), HumanBytes(with_all.bytes).to_string(), "")
            }
        })
        .collect();
    let width = |title: &str, cell: fn(&(String, String, &str)) -> usize| {
        cells.iter().map(cell).max().unwrap_or_default().max(title.len())
    };
    let sizes = width("SIZE", |cells| cells.0.chars().count());
    let sums = width("WITH ALL", |cells| cells.1.chars().count());
    let keys = width("KEY", |cells| cells.2.chars().count());
    let titles = format!("{:>sizes$}  {:>sums$}  {:<keys$}  STEP", "SIZE", "WITH ALL", "KEY");
    text.push_styled(Style::Title, titles);
    for (line, (size, with_all, key)) in lines.iter().zip(&cells) {
        let _ = write!(text, "\n{size:>sizes$}  {with_all:>sums$}  ");
        let is_lost = matches!(*key, UNKEYED | ONLY_INPUTS);
        text.push_styled(is_lost.then_some(Style::Bad), format!("{key:<keys$}"));
        let room = room(columns, sizes + sums + keys + 6 + line.lead.chars().count());
        let _ = write!(text, "  {}{}", line.lead, cut(&label(line.what, report.records), room));
    }
    text.push("\n");
    if report.records.len() > limit {
        let all = report.records.len();
        let _ = writeln!(
            text,
            "\nthese are the {limit} largest of {all} records; --largest N or --all shows more"
        );
    }
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
        What::Rest { own, .. } => format!("… {}", counted(own.records, "record")),
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
    called(record.name.as_deref(), record.layer, &record.id)
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
        let record = |(at, (name, parents)): (usize, &(&str, &[&str]))| Record {
            id: (*name).to_owned(),
            name: Some((*name).to_owned()),
            record_type: "regular".to_owned(),
            parents: parents.iter().map(|&id| id.to_owned()).collect(),
            layer_bytes: Some(100 * (at as u64 + 1)),
            ..Record::default()
        };
        shape.iter().enumerate().map(record).collect()
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
        let text = inventory(&report, usize::MAX, None).to_string();
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

        1 of its parts could not be read; `warmkit verify` judges them
          cache.db _links: a value where a bucket is needed
        ");
    }
}
