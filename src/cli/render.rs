//! Reports as text and as JSON.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;

use super::advice::advice;
use super::escape::one_line;
use super::text::{Style, Text};
use crate::bake::{Contents, Report, Unkeyed};
use crate::digest::Digest;
use crate::gather::{BakedCache, KeySourceReport};
use crate::hydrate;
use crate::verify::{self, LiveReport, Severity, StepStatus};

/// Unkeyed records that are listed for a person; `--json` has all.
pub(super) const LISTED: usize = 20;

/// One JSON object, with a line break in the end left to the caller.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value)
        .unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
}

#[derive(Serialize)]
struct Failed<'a> {
    error: FailedText<'a>,
}

#[derive(Serialize)]
struct FailedText<'a> {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<Cow<'static, str>>,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    unkeyed: Option<&'a [Unkeyed]>,
}

/// The object that `--json` prints instead of a report.
pub(super) fn json_failure(error: &(dyn Error + 'static), exit_code: u8) -> String {
    let unkeyed = records_without_key(error);
    json(&Failed { error: FailedText { message: chain(error), help: advice(error), exit_code, unkeyed } })
}

/// `error: …` with every cause that the text before it does not already tell, and `help: …` where they leave open
/// what to do.
pub(super) fn failure(error: &(dyn Error + 'static)) -> Text {
    let mut text = Text::new();
    if let Some(records) = records_without_key(error) {
        let _ = writeln!(text, "{}", unkeyed(records));
    }
    text.push_styled(Style::Bad, "error:");
    let _ = write!(text, " {}", chain(error));
    if let Some(advice) = advice(error) {
        text.push("\n");
        text.push_styled(Style::Title, "help:");
        let _ = write!(text, " {advice}");
    }
    text
}

/// `warning: …`
pub(super) fn warning(message: &str) -> Text {
    let mut text = Text::styled(Style::Warning, "warning:");
    let _ = write!(text, " {message}");
    text
}

fn records_without_key<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a [Unkeyed]> {
    match error.downcast_ref() {
        Some(crate::bake::Error::Unkeyed { records, .. }) => Some(records),
        _ => None,
    }
}

/// A message with its causes.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    text
}

/// The closing table of a bake.
pub(super) fn bake(report: &Report) -> String {
    let mut text = format!("baked {} in {:.1} s\n\n", report.root, report.seconds.total());
    contents(&mut text, &report.contents);
    row(&mut text, "downloaded", &HumanBytes(report.contents.bytes_down).to_string());
    row(&mut text, "on disk", &HumanBytes(report.bytes_on_disk).to_string());
    if let Some(trimmed) = report.trimmed {
        row(&mut text, "discarded", &format!("{} of free blocks", HumanBytes(trimmed)));
    }
    let seconds = &report.seconds;
    let phases = format!(
        "resolve {:.1} s, keys {:.1} s, layers {:.1} s, commit {:.1} s",
        seconds.resolve, seconds.keys, seconds.layers, seconds.commit
    );
    row(&mut text, "time", &phases);
    if !report.contents.unkeyed.is_empty() {
        text.push('\n');
        text.push_str(&unkeyed(&report.contents.unkeyed));
        text.push('\n');
    }
    let _ = write!(text, "\ncheck it with: warmkit verify --root {}", report.root);
    text
}

/// What goes into a root.
pub(super) fn contents(text: &mut impl fmt::Write, contents: &Contents) {
    for cache in &contents.caches {
        row(text, "cache", &described(cache));
        if let Some(release) = &cache.written_by {
            row(text, "  by", &format!("BuildKit {release}"));
        }
    }
    for missing in &contents.missing {
        row(text, "skipped", &format!("{}: {}", missing.cache, missing.reason));
    }
    for source in &contents.keys_from {
        row(text, "keys from", &format!("{}: {}", source.source, worth(source)));
    }
    for image in &contents.images {
        let frontend = if image.frontend { ", frontend" } else { "" };
        let what = format!("{}, {}", counted(image.layers, "layer"), HumanBytes(image.bytes));
        row(text, "image", &format!("{}: {}{frontend}, {what}", image.image, image.platform));
    }
    for image in &contents.images_skipped {
        row(text, "not seeded", &format!("{}: {}", image.image, image.reason));
    }
    row(text, "records", &contents.records.to_string());
    row(text, "  keyed", &contents.keyed.to_string());
    row(text, "  unkeyed", &contents.unkeyed.len().to_string());
    if contents.left_out > 0 {
        row(text, "left out", &format!("{} records of other platforms", contents.left_out));
    }
    row(text, "layers", &format!("{} in {} snapshots", contents.layers, contents.snapshots));
}

/// A cache, with what it meant this time.
pub(super) fn described(cache: &BakedCache) -> String {
    match &cache.platform {
        Some(platform) => format!("{} ({platform}, {})", cache.cache, cache.digest),
        None => format!("{} ({})", cache.cache, cache.digest),
    }
}

/// What a key source did for the caches.
pub(super) fn worth(source: &KeySourceReport) -> String {
    let KeySourceReport { candidates, keyed, only, .. } = source;
    format!("{keyed} records keyed, {only} of them by no other source, {candidates} candidates")
}

/// What a record is called: its step, or where that is not known its layer.
pub(super) fn called(name: Option<&str>, layer: Option<Digest>, id: &str) -> String {
    match (name, layer) {
        (Some(name), _) => one_line(name).into_owned(),
        (None, Some(layer)) => format!("layer {layer}"),
        (None, None) => format!("record {}", one_line(id)),
    }
}

/// `1 record`, `2 records`.
pub(super) fn counted(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// A line of a report: what it is about, and what there is to say.
pub(super) fn row(text: &mut impl fmt::Write, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<12}{value}");
}

/// What was read of a root.
pub(super) fn hydrate(report: &hydrate::Report) -> String {
    let mut text = format!("read {} in {:.1} s\n\n", report.root, report.seconds);
    for stage in &report.stages {
        let name = match stage.stage {
            hydrate::Stage::Databases => "databases",
            hydrate::Stage::FirstBuild => "first build",
            hydrate::Stage::Rest => "rest",
        };
        let hydrate::StageReport { directories, files, seconds, .. } = stage;
        let (bytes, from_disk) = (HumanBytes(stage.bytes), HumanBytes(stage.from_disk));
        let what = format!("{files} files, {bytes}, and {directories} directories");
        row(&mut text, name, &format!("{what}: {from_disk} from the disk in {seconds:.1} s"));
    }
    if report.gone > 0 {
        row(
            &mut text,
            "gone",
            &format!("{} files and directories, or something is mounted there", report.gone),
        );
    }
    for failed in &report.failed {
        row(&mut text, "not read", &format!("{}: {}", failed.path, failed.reason));
    }
    text.trim_end().to_owned()
}

/// What an offline verification found.
pub(super) fn verify(root: &Path, report: &verify::Report) -> Text {
    let mut text = Text::new();
    for finding in &report.findings {
        let error = finding.severity == Severity::Error;
        let (style, severity) = if error { (Style::Bad, "error:") } else { (Style::Warning, "warning:") };
        text.push_styled(style, severity);
        let _ = writeln!(text, " {finding}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if !report.findings.is_empty() || !report.notes.is_empty() {
        text.push("\n");
    }
    let counts = &report.counts;
    let links = format!("{} with {} results and {} links", counts.keys, counts.results, counts.links);
    row(&mut text, "keys", &links);
    row(&mut text, "records", &format!("{}, {} of them layers", counts.records, counts.layers));
    row(&mut text, "snapshots", &counts.snapshots.to_string());
    row(&mut text, "blobs", &format!("{}, {} hashed", counts.blobs, HumanBytes(counts.blob_bytes)));
    if report.read_data {
        let compared = format!(
            "{} layers with {} entries, {} not comparable",
            counts.layers_compared, counts.entries_compared, counts.layers_not_comparable
        );
        row(&mut text, "compared", &compared);
    }
    if let Some(image) = &report.image {
        let homes = counted(image.homes.len(), "home");
        let files = counted(image.credential_files, "file");
        row(&mut text, "image", &format!("{}, {homes}, {files} for credentials", image.sysroot));
        if let Some(forecast) = &image.gc {
            let rules = image.buildkitd_config.as_deref().unwrap_or("its defaults");
            let taken: usize = forecast.passes.iter().map(|pass| pass.records).sum();
            let (release, disk) = (&forecast.release, HumanBytes(forecast.disk.total));
            let taken = counted(taken, "record");
            let what = format!("BuildKit {release} with {rules} takes {taken} on a disk of {disk}");
            row(&mut text, "collection", &what);
        }
    }
    let (style, verdict) = match report.findings.len() {
        0 => (Style::Good, "healthy".to_owned()),
        1 => (Style::Bad, "1 finding".to_owned()),
        many => (Style::Bad, format!("{many} findings")),
    };
    let _ = write!(text, "\n{}: ", root.display());
    text.push_styled(style, verdict);
    text
}

/// How the build on a view of the root went.
pub(super) fn live(report: &LiveReport) -> Text {
    let mut text = Text::from(format!("\nbuilt with {}\n", report.buildkitd));
    for step in &report.steps {
        let (style, status) = match &step.status {
            StepStatus::Cached => (Some(Style::Good), "CACHED"),
            StepStatus::Ran => (Some(Style::Warning), "ran"),
            StepStatus::Error { .. } => (Some(Style::Bad), "failed"),
            _ => (None, "not reached"),
        };
        text.push_styled(style, format!("{status:<12}"));
        let _ = writeln!(text, "{}", one_line(&step.name));
        if let StepStatus::Error { message } = &step.status {
            let _ = writeln!(text, "            {message}");
        }
    }
    if let Some(failure) = &report.failure {
        let _ = writeln!(text, "the build failed: {failure}");
    }
    let cached = report.steps.iter().filter(|step| step.status == StepStatus::Cached).count();
    let style = if report.all_cached() { Style::Good } else { Style::Bad };
    text.push("\n");
    text.push_styled(style, format!("{cached} of {} steps CACHED", report.steps.len()));
    let _ = write!(text, ", {} imports, {} extractions", report.imports, report.extractions);
    text
}

/// What a replay found, and what it missed.
pub(super) fn replay(report: &crate::replay::Report) -> String {
    let mut text = format!("replayed with {} in {:.1} s\n", report.buildkitd, report.seconds);
    for build in &report.builds {
        let target = build.target.as_deref().map(|target| format!("target {target}: ")).unwrap_or_default();
        let _ = writeln!(text, "{target}{} of {} steps in the caches", build.cached, build.steps);
        for missed in &build.missed {
            let _ = writeln!(text, "missed      {}\n            {}", one_line(&missed.step), missed.cause);
        }
    }
    text
}

/// The records that no build will find by their keys: those first that keep others from being found.
pub(super) fn unkeyed(records: &[Unkeyed]) -> String {
    let mut text = String::from("without a key:");
    let (consequences, causes): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.only_inputs);
    for record in causes.into_iter().chain(consequences).take(LISTED) {
        let what = match (&record.name, &record.layer) {
            (Some(name), _) => one_line(name).into_owned(),
            (None, Some(layer)) => format!("layer {layer}"),
            (None, None) => format!("record {} without a layer", record.digest),
        };
        let size = record.size.map(|size| format!(", {}", HumanBytes(size))).unwrap_or_default();
        let why = if record.only_inputs { " (its own is known, but an input has none)" } else { "" };
        let _ = write!(text, "\n  {what}{size}{why}");
    }
    if records.len() > LISTED {
        let _ = write!(text, "\n  and {} more; --json lists all", records.len() - LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::OpDigest;

    #[test]
    fn what_keeps_others_from_being_found_is_listed_first() {
        let record = |name: &str, only_inputs| Unkeyed {
            digest: OpDigest::of(b"").record_digest(0),
            name: Some(name.to_owned()),
            layer: None,
            size: None,
            only_inputs,
        };
        let mut records = vec![record("on top", true); LISTED + 5];
        records.push(record("RUN\nthis", false));
        let text = unkeyed(&records);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["without a key:", "  RUN\\nthis"]);
        assert_eq!(lines[2], "  on top (its own is known, but an input has none)");
        assert_eq!(lines[LISTED + 1..], ["  and 6 more; --json lists all"]);
    }
}
