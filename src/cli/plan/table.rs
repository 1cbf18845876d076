//! What `warmkit plan` and `warmkit forecast` print for people.

use std::fmt::Write as _;

use indicatif::HumanBytes;

use super::super::escape::one_line;
use super::super::render::{LISTED, contents, counted, row, unkeyed};
use super::super::text::{Style, Text};
use super::Outcome;
use crate::bake::{Containerd, Estimate, TargetRoom, WholeTrees};
use crate::gc::{Forecast, Origin, PassReport};

/// What goes into the root, what it takes, and what becomes of it.
pub(super) fn plan(outcome: &Outcome<'_>) -> Text {
    let plan = outcome.foreseen;
    let mut text = Text::from(format!("plan for {}: nothing was written\n\n", plan.root));
    contents(&mut text, &plan.contents);
    row(&mut text, "to pull", &HumanBytes(plan.contents.bytes_down).to_string());
    let bytes = range(plan.bytes_on_disk, |bytes| HumanBytes(bytes).to_string());
    let inodes = range(plan.inodes, |inodes| inodes.to_string());
    if let Some(Containerd { address, namespace }) = &plan.containerd {
        row(&mut text, "containerd", &format!("{bytes}, less what is there"));
        row(&mut text, "", &format!("in namespace {namespace} at {address}"));
        row(&mut text, "", "on its disk, which the forecast takes to be that of the root");
        if let Some(whole) = &plan.whole_trees {
            row(&mut text, "  of trees", &trees(whole));
        }
        row(&mut text, "on disk", &format!("databases, up to {} inodes", plan.inodes.up_to));
    } else {
        row(&mut text, "on disk", &bytes);
        if let Some(whole) = &plan.whole_trees {
            row(&mut text, "  of trees", &trees(whole));
        }
        row(&mut text, "  inodes", &inodes);
    }
    if plan.tars_known < plan.contents.layers {
        let guessed = plan.contents.layers - plan.tars_known;
        row(&mut text, "", &format!("what {guessed} layers unpack to is guessed from their compressed size"));
    }
    let target = &plan.target;
    row(&mut text, "free there", &free(target));
    for refusal in &outcome.refusals {
        text.push_styled(Style::Bad, format!("{:<12}", "refused"));
        let _ = writeln!(text, "{}", refusal.message);
        if let Some(help) = &refusal.help {
            row(&mut text, "", help);
        }
    }
    if !plan.contents.unkeyed.is_empty() {
        let _ = write!(text, "\n{}\n", unkeyed(&plan.contents.unkeyed));
    }
    text.push("\n");
    forecast(&mut text, &plan.gc);
    text
}

fn free(target: &TargetRoom) -> String {
    let inodes = target.inodes_free.map(|free| format!(" and {free} inodes")).unwrap_or_default();
    match (target.bytes, target.bytes_free) {
        (Some(all), Some(free)) => format!("{}{inodes}, of {}", HumanBytes(free), HumanBytes(all)),
        _ => format!("the file system does not tell bytes{inodes}"),
    }
}

/// What becomes of a root that is there.
pub(in crate::cli) fn root(root: &str, records: usize, bytes: u64, gc: &Forecast) -> Text {
    let mut text = Text::from(format!("{root}: {records} records of {}\n\n", HumanBytes(bytes)));
    forecast(&mut text, gc);
    text
}

/// An estimate, with its limits where it has some.
fn range(estimate: Estimate, show: impl Fn(u64) -> String) -> String {
    let Estimate { at_least, estimate, up_to } = estimate;
    if at_least == up_to {
        return show(estimate);
    }
    format!("about {} (at least {}, up to {})", show(estimate), show(at_least), show(up_to))
}

/// What a snapshotter with whole trees costs.
fn trees(whole: &WholeTrees) -> String {
    let probably = |bytes: Estimate| {
        let about = if bytes.at_least == bytes.up_to { "" } else { "about " };
        format!("{about}{}", HumanBytes(bytes.estimate))
    };
    let (trees, layers) = (probably(whole.trees), probably(whole.layers));
    format!("{trees}, as native keeps a whole tree for each layer, and layers alone are {layers}")
}

fn forecast(text: &mut Text, forecast: &Forecast) {
    let origin = match forecast.policy {
        Origin::Off => "off in its configuration",
        Origin::Default => "by its defaults",
        Origin::Configured => "as configured",
    };
    let (total, free) = (HumanBytes(forecast.disk.total), HumanBytes(forecast.disk.free));
    row(text, "collection", &format!("BuildKit {}, {origin}", forecast.release));
    row(text, "", &format!("on a disk of {total}, {free} free with the root on it"));
    for key in &forecast.ignored {
        row(text, "", &format!("{key} means nothing to this release"));
    }
    for pass in &forecast.passes {
        row(text, &when(pass.hours), &what_goes(pass));
        for removed in pass.removed.iter().take(LISTED) {
            let among = match removed.among {
                1 => String::new(),
                among => format!(", or another of {among} that are as old and as much used"),
            };
            let (size, step) = (HumanBytes(removed.bytes).to_string(), one_line(&removed.description));
            let _ = writeln!(text, "              {size:>10}  rule {}  {step}{among}", removed.rule);
        }
        if let Some(more @ [_, ..]) = pass.removed.get(LISTED..) {
            let bytes = more.iter().map(|removed| removed.bytes).fold(0, u64::saturating_add);
            let (count, bytes) = (more.len(), HumanBytes(bytes));
            let _ =
                writeln!(text, "              {:>10}  and {count} more; --json lists all", bytes.to_string());
        }
    }
    let (style, verdict) = if forecast.keeps_all() {
        (Style::Good, "nothing goes")
    } else {
        (Style::Warning, "not all of it stays")
    };
    text.push("\n");
    text.push_styled(style, verdict);
    text.push(
        ", as long as nothing is built; to keep all of it beside what builds add, in buildkitd.toml:\n",
    );
    for line in forecast.keep.lines() {
        let _ = write!(text, "\n{}", format!("  {line}").trim_end());
    }
}

fn when(hours: i64) -> String {
    match hours {
        0 => "  at boot".to_owned(),
        hours if hours % 24 == 0 && hours > 48 => format!("  {} days", hours / 24),
        hours => format!("  {hours} hours"),
    }
}

fn what_goes(pass: &PassReport) -> String {
    let up_to = match pass.records_up_to {
        more if more > pass.records => format!("; up to {more} if layers are as large as they can be"),
        _ => String::new(),
    };
    match pass.records {
        0 => format!("nothing goes{up_to}"),
        records => {
            let goes = if records == 1 { "goes" } else { "go" };
            let (bytes, left) = (HumanBytes(pass.bytes), HumanBytes(pass.bytes_left));
            format!("{} {goes}, {bytes}; {left} left{up_to}", counted(records, "record"))
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::gc::{Configuration, Disk, Question, Record, Release, foretell};

    const GIB: u64 = 1 << 30;

    /// Three records of a GiB, two of them equal; the first may have three.
    fn told(text: &str) -> String {
        let record = |(id, name, count): (&str, &str, u64)| Record {
            id: id.to_owned(),
            description: name.to_owned(),
            size: GIB,
            last_used_at: Some(Timestamp::UNIX_EPOCH),
            usage_count: count,
            ..Record::default()
        };
        let records =
            [("a", "[deps 2/4] RUN make\nall", 2), ("b", "[app 1/2] COPY . .", 2), ("c", "base", 3)]
                .map(record);
        let forecast = foretell(&Question {
            records: &records,
            largest: &[3 * GIB, GIB, GIB],
            configuration: &Configuration::read(text).unwrap(),
            release: Release::NEWEST,
            disk: Disk { total: 100 * GIB, free: 50 * GIB },
            start: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1),
            room: Some(GIB),
        });
        root("/root", 3, 3 * GIB, &forecast.unwrap()).to_string()
    }

    #[test]
    fn tells_what_goes_and_what_keeps_it() {
        let rules = "[[worker.oci.gcpolicy]]\nkeepDuration = \"1h\"\nmaxUsedSpace = 3000000000\n\
                     [[worker.oci.gcpolicy]]\nmaxUsedSpace = 5000000000\n";
        insta::assert_snapshot!(told(rules), @r"
        /root: 3 records of 3.00 GiB

        collection  BuildKit v0.34.2, as configured
                    on a disk of 100.00 GiB, 50.00 GiB free with the root on it
          at boot   nothing goes; up to 1 if layers are as large as they can be
          48 hours  1 record goes, 1.00 GiB; 2.00 GiB left
                        1.00 GiB  rule 1  [deps 2/4] RUN make\nall, or another of 2 that are as old and as much used
          60 days   nothing goes

        not all of it stays, as long as nothing is built; to keep all of it beside what builds add, in buildkitd.toml:

          [worker.oci]
            gc = true

          [[worker.oci.gcpolicy]]
            all = true
            reservedSpace = 6443000000
        ");
        insta::assert_snapshot!(told("[worker.oci]\ngc = false\n"), @r"
        /root: 3 records of 3.00 GiB

        collection  BuildKit v0.34.2, off in its configuration
                    on a disk of 100.00 GiB, 50.00 GiB free with the root on it
          at boot   nothing goes
          48 hours  nothing goes
          60 days   nothing goes

        nothing goes, as long as nothing is built; to keep all of it beside what builds add, in buildkitd.toml:

          [worker.oci]
            gc = true

          [[worker.oci.gcpolicy]]
            all = true
            reservedSpace = 6443000000
        ");
    }
}
