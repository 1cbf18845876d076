//! A reading of the meter in words: a line that fits a terminal, and lines for logs.

use std::time::Duration;

use indicatif::HumanBytes;
use unicode_width::UnicodeWidthStr as _;

use super::meter::{Amount, Reading};
use crate::progress::Phase;

/// Columns of a bar: fewer show nothing, and more show no more.
const BAR: std::ops::RangeInclusive<usize> = 6..=40;

/// What is done in a phase, as its beginning is told.
pub(super) fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve => "reading caches",
        Phase::Keys => "recovering keys",
        Phase::Replay => "replaying the build; no step runs, and no layer is downloaded",
        Phase::Layers => "downloading layers",
        Phase::Commit => "writing to disk",
        Phase::Push => "pushing keys",
        Phase::Databases => "reading databases",
        Phase::Blobs => "reading blobs",
        Phase::Build => "building on a throwaway view of the root",
        Phase::FirstBuild => "reading what steps are built on",
        Phase::Rest => "reading the rest",
    }
}

/// What has been done to bytes and to layers.
fn verbs(phase: Phase) -> (&'static str, &'static str) {
    match phase {
        Phase::Blobs => ("hashed", "compared"),
        Phase::Databases | Phase::FirstBuild | Phase::Rest => ("read", "read"),
        _ => ("downloaded", "unpacked"),
    }
}

/// Seconds, minutes or hours, whichever says enough.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn per_second(rate: u64) -> String {
    format!("{}/s", HumanBytes(rate))
}

/// As much of a reading as fits into as many columns, on one line.
pub(super) fn line(reading: &Reading, columns: usize) -> String {
    let Some(planned) = reading.planned else {
        let took = span(reading.took);
        let doing = doing(reading.phase);
        let shorter = doing.split_once(';').map_or(doing, |(doing, _)| doing);
        let choices = [[doing, &took].join("  "), [shorter, &took].join("  "), shorter.to_owned(), took];
        return fitting(choices, columns);
    };
    // Where there are layers to count, they say which phase it is.
    let count = (planned.layers > 0).then(|| format!("{}/{}", reading.done.layers, planned.layers));
    let what = match &count {
        None => reading.phase.name().to_owned(),
        Some(count) => format!("{count} {}", verbs(reading.phase).1),
    };
    let bytes = format!("{}/{}", HumanBytes(reading.done.bytes), HumanBytes(planned.bytes));
    let percent = reading.percent().map(|percent| format!("{percent}%"));
    let rate = reading.rate.map(per_second);
    let left = reading.left.map(|left| format!("{} left", span(left)));
    let joined = |parts: &[Option<&str>]| parts.iter().flatten().copied().collect::<Vec<_>>().join("  ");
    let (what, bytes) = (Some(what.as_str()), Some(bytes.as_str()));
    let (percent, rate, left) = (percent.as_deref(), rate.as_deref(), left.as_deref());

    let others = joined(&[what, bytes, rate, left]).width();
    let room = columns.saturating_sub(others + 2).min(*BAR.end());
    let bar = (room >= *BAR.start()).then(|| bar(reading, room));
    let choices = [
        joined(&[what, bar.as_deref(), bytes, rate, left]),
        joined(&[what, bytes, left]),
        joined(&[what, percent, left]),
        joined(&[what, percent]),
        joined(&[count.as_deref(), percent]),
        joined(&[percent]),
    ];
    fitting(choices, columns)
}

/// How many layers, for a log.
fn layers(reading: &Reading, planned: Amount) -> Option<String> {
    (planned.layers > 0).then(|| format!("{}/{} layers", reading.done.layers, planned.layers))
}

/// The first that fits, or nothing.
fn fitting<const N: usize>(choices: [String; N], columns: usize) -> String {
    choices.into_iter().find(|choice| choice.width() <= columns).unwrap_or_default()
}

fn bar(reading: &Reading, columns: usize) -> String {
    let percent = reading.percent().and_then(|percent| percent.try_into().ok()).unwrap_or(100);
    let full = columns * percent / 100;
    "━".repeat(full) + &"─".repeat(columns - full)
}

/// How much there is to do, for a log.
pub(super) fn planned(phase: Phase, layers: usize, bytes: u64) -> String {
    let what = if layers == 1 { "layer" } else { "layers" };
    format!("{layers} {what}, {} to be {}", HumanBytes(bytes), verbs(phase).0)
}

/// How much there is to read from a disk, for a log.
pub(super) fn to_read(files: usize, bytes: u64) -> String {
    let what = if files == 1 { "file" } else { "files" };
    format!("{files} {what}, {} to be read", HumanBytes(bytes))
}

/// How far a phase is, for a log.
pub(super) fn still(reading: &Reading) -> String {
    let Some(planned) = reading.planned else {
        return format!("still {} ({})", doing(reading.phase), span(reading.took));
    };
    let (of_bytes, of_layers) = verbs(reading.phase);
    let mut parts = Vec::new();
    parts.extend(layers(reading, planned).map(|layers| format!("{layers} {of_layers}")));
    parts.push(format!("{} of {} {of_bytes}", HumanBytes(reading.done.bytes), HumanBytes(planned.bytes)));
    parts.extend(reading.rate.map(per_second));
    parts.extend(reading.left.map(|left| format!("{} left", span(left))));
    parts.join(", ")
}

/// What a phase did, for a log; nothing where it was not known how much there was to do.
pub(super) fn finished(reading: &Reading) -> Option<String> {
    let planned = reading.planned?;
    let (of_bytes, of_layers) = verbs(reading.phase);
    let mut parts = Vec::new();
    parts.extend(layers(reading, planned).map(|layers| format!("{layers} {of_layers}")));
    let seconds = reading.took.as_secs_f64();
    parts.push(format!("{} {of_bytes} in {seconds:.1} s", HumanBytes(reading.done.bytes)));
    Some(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Reading = Reading {
        phase: Phase::Layers,
        took: Duration::from_millis(5_200),
        planned: Some(Amount { bytes: 1 << 30, layers: 18 }),
        done: Amount { bytes: 1 << 28, layers: 4 },
        rate: Some((86 << 20) + (1 << 18)),
        left: Some(Duration::from_millis(8_900)),
    };

    #[test]
    fn a_line_has_what_fits() {
        let cases = [
            (
                120,
                "4/18 unpacked  ━━━━━━━━━━──────────────────────────────  256.00 MiB/1.00 GiB  86.25 MiB/s  8 s left",
            ),
            (77, "4/18 unpacked  ━━━━──────────────  256.00 MiB/1.00 GiB  86.25 MiB/s  8 s left"),
            (65, "4/18 unpacked  ━─────  256.00 MiB/1.00 GiB  86.25 MiB/s  8 s left"),
            (64, "4/18 unpacked  256.00 MiB/1.00 GiB  86.25 MiB/s  8 s left"),
            (50, "4/18 unpacked  256.00 MiB/1.00 GiB  8 s left"),
            (30, "4/18 unpacked  25%  8 s left"),
            (20, "4/18 unpacked  25%"),
            (17, "4/18  25%"),
            (8, "25%"),
            (2, ""),
            (0, ""),
        ];
        for (columns, expected) in cases {
            let line = line(&READING, columns);
            assert_eq!(line, expected, "{columns}");
            assert!(line.width() <= columns, "{columns}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let unknown = Reading { rate: None, left: None, ..READING };
        assert_eq!(line(&unknown, 41), "4/18 unpacked  256.00 MiB/1.00 GiB");
        let nothing = Reading { planned: Some(Amount::default()), done: Amount::default(), ..unknown };
        assert_eq!(line(&nothing, 20), "layers  0 B/0 B");
        assert_eq!(line(&nothing, 30), "layers  ━━━━━━━━━━━━━  0 B/0 B");
        let keys = Reading { phase: Phase::Keys, planned: None, ..unknown };
        assert_eq!(line(&keys, 80), "recovering keys  5 s");
        assert_eq!(line(&keys, 16), "recovering keys");
        assert_eq!(line(&keys, 14), "5 s");
        let replay = Reading { phase: Phase::Replay, planned: None, ..unknown };
        assert_eq!(line(&replay, 40), "replaying the build  5 s");
    }

    #[test]
    fn logs_have_sentences() {
        assert_eq!(planned(Phase::Layers, 1, 3 << 20), "1 layer, 3.00 MiB to be downloaded");
        assert_eq!(planned(Phase::Blobs, 2, 3 << 20), "2 layers, 3.00 MiB to be hashed");
        let sentence = "4/18 layers unpacked, 256.00 MiB of 1.00 GiB downloaded, 86.25 MiB/s, 8 s left";
        assert_eq!(still(&READING), sentence);
        let done = "4/18 layers unpacked, 256.00 MiB downloaded in 5.2 s";
        assert_eq!(finished(&READING).unwrap(), done);
        let only_bytes = Some(Amount { bytes: 1 << 30, layers: 0 });
        let blobs = Reading { phase: Phase::Blobs, planned: only_bytes, rate: None, left: None, ..READING };
        assert_eq!(still(&blobs), "256.00 MiB of 1.00 GiB hashed");
        let keys = Reading { phase: Phase::Keys, planned: None, ..READING };
        assert_eq!(still(&keys), "still recovering keys (5 s)");
        assert_eq!(finished(&keys), None);
    }

    #[test]
    fn spans_are_as_long_as_they_need_to_be() {
        let cases =
            [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3_599, "59 min 59 s"), (7_320, "2 h 2 min")];
        for (seconds, expected) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
    }
}
