//! What `warmkit diff` prints for people.

use std::fmt::Write as _;

use indicatif::HumanBytes;

use super::super::escape::{cut, room};
use super::super::render::{called, counted, row};
use super::super::text::{Style, Text};
use super::{Compared, Report};
use crate::inspect::{Change, Differing, Share, Status, Totals};

/// The two, what only one of them has, and the sums.
pub(super) fn diff(report: &Report, limit: usize, columns: Option<usize>) -> Text {
    let mut text = Text::new();
    for (title, side) in [("a", &report.a), ("b", &report.b)] {
        row(&mut text, title, &compared(side));
    }
    let diff = &report.diff;
    let (listed, more) = diff.steps.split_at(limit.min(diff.steps.len()));
    if !listed.is_empty() {
        text.push("\n");
        steps(&mut text, listed, columns);
    }
    if !more.is_empty() {
        let _ = writeln!(text, "and {}; --largest N or --all lists more", left_out(more));
    }
    text.push("\n");
    row(&mut text, "same", &share(diff.same));
    row(&mut text, "gone", &share(diff.gone));
    row(&mut text, "added", &share(diff.added));
    if diff.images.records > 0 {
        let what =
            format!("{}, only of images: no cache holds those, so they are not compared", share(diff.images));
        row(&mut text, "seeded", &what);
    }
    let keys = &diff.keys;
    row(&mut text, "keys", &format!("{} same, {} gone, {} added", keys.same, keys.gone, keys.added));
    text.push("\n");
    if diff.equal {
        text.push_styled(Style::Good, "no difference");
    } else {
        text.push_styled(Style::Warning, "they differ");
    }
    text
}

fn compared(side: &Compared) -> String {
    let what = if side.is_root { "root" } else { "cache" };
    let digests: Vec<String> = side.caches.iter().map(|cache| cache.digest.to_string()).collect();
    let digests = if digests.is_empty() { String::new() } else { format!(" ({})", digests.join(", ")) };
    let faults = match side.faults {
        0 => String::new(),
        count => format!("; {count} of its entries could not be read, `warmkit verify` judges them"),
    };
    let Totals { records, keys, .. } = side.totals;
    let (records, keys) = (counted(records, "record"), counted(keys, "key"));
    format!("{what} {}{digests}: {records}, {keys}{faults}", side.name)
}

fn share(share: Share) -> String {
    format!("{}, {}", counted(share.records, "record"), HumanBytes(share.bytes))
}

/// How much there is of each change.
fn left_out(steps: &[Differing]) -> String {
    let mut parts = Vec::new();
    for (change, word) in [(Change::Gone, "gone"), (Change::Added, "added")] {
        let of_it: Vec<_> = steps.iter().filter(|step| step.change == change).collect();
        let bytes = of_it.iter().filter_map(|step| step.bytes).fold(0, u64::saturating_add);
        if !of_it.is_empty() {
            parts.push(format!("{} more {word} ({})", of_it.len(), HumanBytes(bytes)));
        }
    }
    parts.join(", ")
}

fn steps(text: &mut Text, steps: &[Differing], columns: Option<usize>) {
    let sizes: Vec<String> = steps.iter().map(size).collect();
    let width = sizes.iter().map(|size| size.chars().count()).max().unwrap_or_default().max("SIZE".len());
    let room = room(columns, width + 9);
    text.push_styled(Style::Title, format!("       {:>width$}  STEP", "SIZE"));
    for (step, size) in steps.iter().zip(&sizes) {
        text.push("\n");
        match step.change {
            Change::Gone => text.push_styled(Style::Bad, "gone "),
            Change::Added => text.push_styled(Style::Good, "added"),
        }
        let _ = write!(text, "  {size:>width$}  {}", cut(&label(step), room));
    }
    text.push("\n");
}

fn size(step: &Differing) -> String {
    step.bytes.map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string())
}

fn label(step: &Differing) -> String {
    let name = called(step.name.as_deref(), step.layer, &step.id);
    match step.status {
        Some(Status::Unkeyed) => format!("{name} (no key)"),
        Some(Status::OnlyInputs) => format!("{name} (an input has no key)"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::gather::BakedCache;
    use crate::inspect::{Diff, KeyCounts};

    fn side(name: &str, is_root: bool, records: usize) -> Compared {
        let digest = Digest::of(b"");
        let cache =
            BakedCache { cache: name.to_owned(), digest, platform: None, records: 0, written_by: None };
        let mut totals = Totals::default();
        (totals.records, totals.keys) = (records, 2 * records);
        let caches = if is_root { Vec::new() } else { vec![cache] };
        Compared { name: name.to_owned(), is_root, caches, faults: 0, totals }
    }

    fn shown(report: &Report) -> String {
        diff(report, usize::MAX, None).to_string().replace(&Digest::of(b"").to_string(), "<digest>")
    }

    #[test]
    fn shows_what_differs_and_how_much() {
        let step = |change, name: Option<&str>, bytes, status| Differing {
            change,
            name: name.map(str::to_owned),
            id: "id".to_owned(),
            layer: name.is_none().then(|| Digest::of(b"")),
            bytes,
            status,
        };
        let steps = vec![
            step(Change::Gone, Some("[2/3] COPY . ."), Some(2048), Some(Status::Keyed)),
            step(Change::Added, Some("[2/3] COPY . ."), Some(10), Some(Status::Unkeyed)),
            step(Change::Added, None, Some(7), None),
            step(Change::Gone, Some("RUN \u{1b}[2J\nforged"), None, Some(Status::OnlyInputs)),
        ];
        let mut all = Diff { steps, ..Diff::default() };
        all.same.records = 7;
        (all.gone.records, all.gone.bytes) = (1, 2048);
        (all.added.records, all.added.bytes) = (2, 17);
        (all.images.records, all.images.bytes) = (1, 5);
        all.keys = KeyCounts { same: 9, gone: 2, added: 1 };
        let report = Report { a: side("./root", true, 8), b: side("r.io/a:1", false, 9), diff: all };
        insta::assert_snapshot!(shown(&report), @r"
        a           root ./root: 8 records, 16 keys
        b           cache r.io/a:1 (<digest>): 9 records, 18 keys

                   SIZE  STEP
        gone   2.00 KiB  [2/3] COPY . .
        added      10 B  [2/3] COPY . . (no key)
        added       7 B  layer <digest>
        gone          -  RUN \u001b[2J\nforged (an input has no key)

        same        7 records, 0 B
        gone        1 record, 2.00 KiB
        added       2 records, 17 B
        seeded      1 record, 5 B, only of images: no cache holds those, so they are not compared
        keys        9 same, 2 gone, 1 added

        they differ
        ");

        let mut same = Diff { equal: true, ..Diff::default() };
        same.same.records = 1;
        let report = Report { a: side("./root", true, 1), b: side("/b", true, 1), diff: same };
        insta::assert_snapshot!(shown(&report), @r"
        a           root ./root: 1 record, 2 keys
        b           root /b: 1 record, 2 keys

        same        1 record, 0 B
        gone        0 records, 0 B
        added       0 records, 0 B
        keys        0 same, 0 gone, 0 added

        no difference
        ");
    }

    #[test]
    fn of_many_steps_the_first_are_listed() {
        let step = |at: u64| Differing {
            change: if at < 3 { Change::Gone } else { Change::Added },
            name: Some(format!("RUN {at}")),
            id: at.to_string(),
            layer: None,
            bytes: Some(at),
            status: None,
        };
        let diff = Diff { steps: (0..5).map(step).collect(), ..Diff::default() };
        let report = Report { a: side("a", true, 0), b: side("b", true, 0), diff };
        let listed = |limit| super::diff(&report, limit, None).to_string();
        let two = "RUN 1\nand 1 more gone (2 B), 2 more added (7 B); --largest N or --all lists more\n";
        assert!(listed(2).contains(two), "{}", listed(2));
        let four = "RUN 3\nand 1 more added (4 B); --largest";
        assert!(listed(4).contains(four), "{}", listed(4));
        assert!(listed(5).contains("RUN 4\n\nsame"), "{}", listed(5));
    }
}
