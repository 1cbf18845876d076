//! What `warmkit keys` prints for people.

use std::fmt::Write as _;

use indicatif::HumanBytes;

use super::super::escape::{cut, one_line, room};
use super::super::render::{LISTED, described, unkeyed, worth};
use super::super::text::{Style, Text};
use crate::gather::sidecar::{PullReport, PushReport};
use crate::gather::{Check, Status, StepReport};

/// Rows of sources that one step shows.
const SHOWN: usize = 4;

/// Sources by number, the steps with what keys them, and the sum.
///
/// Names of steps are cut where they would not fit into as many `columns`.
pub(super) fn check(check: &Check, columns: Option<usize>) -> Text {
    let mut text = Text::new();
    for cache in &check.caches {
        let _ = writeln!(text, "cache       {}", described(cache));
    }
    for missing in &check.missing {
        let _ = writeln!(text, "skipped     {}: {}", missing.cache, missing.reason);
    }
    for (at, source) in check.keys_from.iter().enumerate() {
        let _ = writeln!(text, "keys from   {}: {}: {}", at + 1, source.source, worth(source));
    }
    if !check.steps.is_empty() {
        let keys: Vec<String> = check.steps.iter().map(key).collect();
        let sizes: Vec<String> = check.steps.iter().map(size).collect();
        let width = |cells: &[String], title: &str| {
            cells.iter().map(|cell| cell.chars().count()).max().unwrap_or_default().max(title.len())
        };
        let (key_width, size_width) = (width(&keys, "KEY"), width(&sizes, "SIZE"));
        let room = room(columns, key_width + size_width + 4);
        text.push("\n");
        text.push_styled(Style::Title, format!("{:<key_width$}  {:>size_width$}  STEP", "KEY", "SIZE"));
        text.push("\n");
        for ((step, key), size) in check.steps.iter().zip(&keys).zip(&sizes) {
            let lost = matches!(step.status, Status::Unkeyed | Status::OnlyInputs);
            text.push_styled(lost.then_some(Style::Bad), format!("{key:<key_width$}"));
            let _ = writeln!(text, "  {size:>size_width$}  {}", cut(&label(step), room));
        }
    }
    let _ = write!(text, "\n{}", sum(check));
    if !check.unkeyed.is_empty() {
        if check.steps.len() > LISTED {
            let _ = write!(text, "\n\n{}", unkeyed(&check.unkeyed));
        }
        text.push("\n\ngive --keys-from a source that knows them, or make one: warmkit keys replay");
    }
    text
}

/// What was pushed, and how it is found.
pub(super) fn push(report: &PushReport) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "cache       {} ({})", report.cache, report.subject);
    for source in &report.keys_from {
        let _ = writeln!(text, "keys from   {}: {}", source.source, worth(source));
    }
    let _ = writeln!(text, "sidecar     {}", report.sidecar);
    let _ = writeln!(text, "found by    {}", report.found_by.join(", "));
    let _ = writeln!(text, "keys        {}, {} of them new", report.keys, report.added);
    let _ = write!(text, "\n{} of {} records that need a key have one", report.keyed, report.records);
    if report.keyed < report.records {
        let _ = write!(text, "; `warmkit keys check` lists the others");
    }
    text
}

/// What was read, and where it is now.
pub(super) fn pull(report: &PullReport, file: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "cache       {} ({})", report.cache, report.digest);
    for sidecar in &report.sidecars {
        let _ = writeln!(text, "keys from   {} ({}): {} keys", sidecar.source, sidecar.digest, sidecar.keys);
    }
    let _ = write!(text, "\nwrote {} keys to {file}", report.keys);
    text
}

/// By which sources, or why not.
fn key(step: &StepReport) -> String {
    match step.status {
        Status::Unkeyed => "none".to_owned(),
        Status::OnlyInputs => "input missing".to_owned(),
        Status::Root | Status::Keyed => {
            format!("from {}", ranges(&step.sources))
        }
    }
}

/// Sources by their numbers, those in a row as one: `1-3, 7`.
fn ranges(sources: &[usize]) -> String {
    let in_a_row =
        sources.chunk_by(|one, next| one + 1 == *next).filter_map(|row| Some((row.first()?, row.last()?)));
    let mut ranges: Vec<String> = in_a_row
        .map(|(first, last)| match last - first {
            0 => format!("{}", first + 1),
            1 => format!("{}, {}", first + 1, last + 1),
            _ => format!("{}-{}", first + 1, last + 1),
        })
        .collect();
    if ranges.len() > SHOWN {
        ranges.truncate(SHOWN);
        ranges.push("…".to_owned());
    }
    ranges.join(", ")
}

fn size(step: &StepReport) -> String {
    step.size.map_or_else(|| "-".to_owned(), |size| HumanBytes(size).to_string())
}

fn label(step: &StepReport) -> String {
    let what = match (&step.name, &step.layer, &step.digest) {
        (Some(name), ..) => one_line(name).into_owned(),
        (None, Some(layer), _) => format!("layer {layer}"),
        (None, None, Some(digest)) => format!("record {digest}, without a layer"),
        (None, None, None) => String::new(),
    };
    if step.records > 1 { format!("{what} ({} records)", step.records) } else { what }
}

fn sum(check: &Check) -> String {
    let lost = check.unkeyed.len();
    let only_inputs = check.unkeyed.iter().filter(|record| record.only_inputs).count();
    let mut text = format!(
        "{} records: {} need no key, {} have one, {lost} have none",
        check.records,
        check.roots,
        check.keyed - check.roots
    );
    if only_inputs > 0 {
        let _ = write!(text, " ({only_inputs} of them only because an input has none)");
    }
    if check.left_out > 0 {
        let _ = write!(text, "; {} of other platforms are left out", check.left_out);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Digest, OpDigest};
    use crate::gather::{BakedCache, KeySourceReport, Unkeyed};

    #[test]
    fn shows_each_step_with_what_keys_it() {
        let digest = Digest::of(b"");
        let record = OpDigest::of(b"").record_digest(0);
        let step = |name: Option<&str>, status, sources: &[usize], records, size: Option<u64>| StepReport {
            name: name.map(str::to_owned),
            layer: size.filter(|_| name.is_none()).map(|_| digest),
            digest: (name.is_none() && size.is_none()).then(|| record.clone()),
            status,
            sources: sources.to_vec(),
            records,
            size,
        };
        let lost = |only_inputs| Unkeyed {
            digest: record.clone(),
            name: None,
            layer: None,
            size: None,
            only_inputs,
        };
        let source =
            |source: &str, only| KeySourceReport { source: source.to_owned(), candidates: 9, keyed: 3, only };
        let checked = Check {
            caches: vec![BakedCache {
                cache: "r.io/app:cache".into(),
                digest,
                platform: None,
                records: 8,
                written_by: None,
            }],
            missing: Vec::new(),
            keys_from: vec![source("r.io/app:1", 1), source("r.io/app:2", 0)],
            records: 8,
            left_out: 3,
            keyed: 6,
            roots: 2,
            unkeyed: vec![lost(false), lost(true)],
            steps: vec![
                step(Some("[build 2/4] RUN make"), Status::Keyed, &[0, 1], 1, Some(2048)),
                step(Some("[build 3/4] COPY . ."), Status::Keyed, &[0], 3, None),
                step(None, Status::Unkeyed, &[], 1, Some(9)),
                step(None, Status::OnlyInputs, &[1], 1, None),
            ],
            seconds: 0.5,
        };
        let text = check(&checked, None).to_string();
        let text = text.replace(&record.to_string(), "<record>").replace(&digest.to_string(), "<digest>");
        insta::assert_snapshot!(text, @r"
        cache       r.io/app:cache (<digest>)
        keys from   1: r.io/app:1: 3 records keyed, 1 of them by no other source, 9 candidates
        keys from   2: r.io/app:2: 3 records keyed, 0 of them by no other source, 9 candidates

        KEY                SIZE  STEP
        from 1, 2      2.00 KiB  [build 2/4] RUN make
        from 1                -  [build 3/4] COPY . . (3 records)
        none                9 B  layer <digest>
        input missing         -  record <record>, without a layer

        8 records: 2 need no key, 4 have one, 2 have none (1 of them only because an input has none); 3 of other platforms are left out

        give --keys-from a source that knows them, or make one: warmkit keys replay
        ");
    }

    #[test]
    fn sources_in_a_row_are_one() {
        let cases: [(&[usize], &str); 6] = [
            (&[0], "1"),
            (&[0, 1], "1, 2"),
            (&[0, 1, 2], "1-3"),
            (&[0, 1, 2, 6, 8, 9], "1-3, 7, 9, 10"),
            (&[0, 2, 4, 6], "1, 3, 5, 7"),
            (&[0, 2, 4, 6, 8], "1, 3, 5, 7, …"),
        ];
        for (sources, expected) in cases {
            assert_eq!(ranges(sources), expected);
        }
    }

    #[test]
    fn hostile_names_stay_in_their_row() {
        let step = StepReport {
            name: Some("RUN \u{1b}[2J\nnone  1 B  RUN forged".into()),
            layer: None,
            digest: None,
            status: Status::Keyed,
            sources: vec![0],
            records: 1,
            size: None,
        };
        assert_eq!(label(&step), "RUN \\u001b[2J\\nnone  1 B  RUN forged");
    }
}
