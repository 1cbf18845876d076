//! Events as JSON, one object per line: docs/json.md, "`--progress rawjson`".

use std::borrow::Cow;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::meter::{Amount, Meter};
use crate::builder::{Seen, Way};
use crate::cli::advice::advice;
use crate::cli::render;
use crate::digest::Digest;
use crate::progress::{Event, Phase, Progress};

/// How often bytes are told while they come in.
const INTERVAL: Duration = Duration::from_millis(200);

/// A line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    told: Told<'a>,
}

/// What a line tells. Names are documented, and stay.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Told<'a> {
    Started { phase: &'static str },
    Finished { phase: &'static str, seconds: f64 },
    Planned { layers: usize, bytes: u64, unpacks: usize },
    Progress { bytes: u64, unpacked: usize, bytes_per_second: Option<u64>, seconds_left: Option<f64> },
    ToRead { files: usize, bytes: u64 },
    Read { bytes: u64, bytes_per_second: Option<u64>, seconds_left: Option<f64> },
    Downloaded { digest: &'a Digest },
    Unpacked { digest: &'a Digest },
    Hashed { digest: &'a Digest },
    Compared { digest: &'a Digest },
    Retry { what: &'a str, failures: u32, seconds: f64, reason: &'a str },
    Target(Sighted<'a>),
    Warning { message: &'a str },
    Error { message: &'a str, help: Option<Cow<'static, str>>, exit_code: u8 },
}

/// A target that was seen.
#[derive(Serialize)]
struct Sighted<'a> {
    name: Option<String>,
    root: Option<String>,
    evidence: &'a [String],
    taken: bool,
    reason: Option<String>,
}

fn line(told: Told<'_>) -> String {
    // To the millisecond, in every line alike.
    let line = Line { time: format!("{:.3}", Timestamp::now()), told };
    serde_json::to_string(&line).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// The line of a target that was seen.
pub(super) fn target(seen: &Seen, taken: bool) -> String {
    let name = (!matches!(seen.way, Way::Engine(_))).then(|| seen.way.to_string());
    let root = seen.root.as_ref().ok().map(|root| root.path().display().to_string());
    let reason = seen.root.as_ref().err().map(|error| render::chain(error));
    line(Told::Target(Sighted { name, root, evidence: &seen.evidence, taken, reason }))
}

/// The line of a warning.
pub(super) fn warning(message: &str) -> String {
    line(Told::Warning { message })
}

/// The line that a failed command ends with.
pub(super) fn error(error: &(dyn Error + 'static), exit_code: u8) -> String {
    line(Told::Error { message: &render::chain(error), help: advice(error), exit_code })
}

#[derive(Debug, Default)]
struct State {
    meter: Meter,
    /// What [`Told::Progress`] last told, and when.
    told: Amount,
    at: Option<Instant>,
}

impl State {
    /// What has been done since this was told last, in a phase of which it is known how much there is to do.
    fn progress(&mut self, now: Instant) -> Option<Told<'static>> {
        let reading = self.meter.read(now).filter(|reading| reading.planned.is_some())?;
        if self.told == reading.done {
            return None;
        }
        (self.told, self.at) = (reading.done, Some(now));
        let (bytes, unpacked) = (reading.done.bytes, reading.done.layers);
        let (bytes_per_second, seconds_left) = (reading.rate, reading.left.map(seconds));
        Some(match reading.phase {
            // Of a root, from its disk.
            Phase::Databases | Phase::FirstBuild | Phase::Rest => {
                Told::Read { bytes, bytes_per_second, seconds_left }
            }
            _ => Told::Progress { bytes, unpacked, bytes_per_second, seconds_left },
        })
    }
}

/// Tells events to a program.
#[derive(Debug)]
pub(super) struct Events<W> {
    write: W,
    state: Mutex<State>,
}

impl<W: Fn(&str) + Sync> Events<W> {
    /// `write` is given one line at a time, without its end.
    pub(super) fn new(write: W) -> Self {
        Self { write, state: Mutex::default() }
    }

    fn tell(&self, told: Told<'_>) {
        (self.write)(&line(told));
    }
}

impl<W: Fn(&str) + Sync> Progress for Events<W> {
    fn event(&self, event: Event) {
        let now = Instant::now();
        // Held while a line is written: lines are in the order of what they tell.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::Finished(phase, _) = &event {
            // However fast it was: who adds nothing up has the whole at the end.
            let ends = state.meter.read(now).is_some_and(|reading| reading.phase == *phase);
            if let Some(progress) = ends.then(|| state.progress(now)).flatten() {
                self.tell(progress);
            }
        }
        state.meter.take(&event, now);
        let verifies = state.meter.read(now).is_some_and(|reading| reading.phase == Phase::Blobs);
        match &event {
            Event::Started(phase) => {
                state.told = Amount::default();
                self.tell(Told::Started { phase: phase.name() });
            }
            Event::Finished(phase, took) => {
                self.tell(Told::Finished { phase: phase.name(), seconds: seconds(*took) });
            }
            Event::Planned { layers, bytes, unpacks } => {
                self.tell(Told::Planned { layers: *layers, bytes: *bytes, unpacks: *unpacks });
            }
            Event::ToRead { files, bytes } => self.tell(Told::ToRead { files: *files, bytes: *bytes }),
            Event::Fetched { .. } | Event::Read { .. } => {
                let due = state.at.is_none_or(|at| now.duration_since(at) >= INTERVAL);
                if let Some(progress) = due.then(|| state.progress(now)).flatten() {
                    self.tell(progress);
                }
            }
            Event::BlobDone { digest } if verifies => self.tell(Told::Hashed { digest }),
            Event::BlobDone { digest } => self.tell(Told::Downloaded { digest }),
            Event::LayerDone { digest } if verifies => self.tell(Told::Compared { digest }),
            Event::LayerDone { digest } => self.tell(Told::Unpacked { digest }),
            Event::Retry { what, failures, wait, reason } => {
                self.tell(Told::Retry { what, failures: *failures, seconds: seconds(*wait), reason });
            }
            Event::Warning(message) => self.tell(Told::Warning { message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::source;

    fn told(events: Vec<Event>) -> Vec<Value> {
        let lines = Mutex::new(Vec::new());
        {
            let progress = Events::new(|line: &str| lines.lock().unwrap().push(line.to_owned()));
            for event in events {
                progress.event(event);
            }
        }
        lines.into_inner().unwrap().iter().map(|line| line_of(line)).collect()
    }

    /// A line without its time.
    fn line_of(line: &str) -> Value {
        assert!(!line.contains('\n'), "{line}");
        let mut value: Value = line.parse().unwrap();
        let time = value.as_object_mut().unwrap().remove("time").unwrap();
        let time = time.as_str().unwrap();
        assert!(time.parse::<Timestamp>().is_ok() && time.len() == 24, "{time}");
        value
    }

    #[test]
    fn each_event_is_a_line() {
        let digest = Digest::of(b"layer");
        let second = Duration::from_millis(1_500);
        let events = vec![
            Event::Started(Phase::Resolve),
            Event::Finished(Phase::Resolve, second),
            Event::Retry { what: "a".to_owned(), failures: 2, wait: second, reason: "b\nc".to_owned() },
            Event::Warning("\u{1b}[31mred".to_owned()),
            Event::BlobDone { digest },
            Event::LayerDone { digest },
            Event::Started(Phase::Blobs),
            Event::BlobDone { digest },
            Event::LayerDone { digest },
        ];
        let expected = [
            json!({"event": "started", "phase": "resolve"}),
            json!({"event": "finished", "phase": "resolve", "seconds": 1.5}),
            json!({"event": "retry", "what": "a", "failures": 2, "seconds": 1.5, "reason": "b\nc"}),
            json!({"event": "warning", "message": "\u{1b}[31mred"}),
            json!({"event": "downloaded", "digest": digest}),
            json!({"event": "unpacked", "digest": digest}),
            json!({"event": "started", "phase": "blobs"}),
            json!({"event": "hashed", "digest": digest}),
            json!({"event": "compared", "digest": digest}),
        ];
        assert_eq!(told(events), expected);
    }

    #[test]
    fn an_error_comes_with_what_to_do() {
        let told = |error: source::Error| line_of(&super::error(&error, 3));
        let help = "name the directory or the tar that --cache-to type=local,dest=… wrote";
        let none = source::Error::NoSuchLayout { path: "cache".into() };
        let expected = json!({"event": "error", "message": none.to_string(), "help": help, "exit_code": 3});
        assert_eq!(told(none), expected);
        assert_eq!(told(source::Error::Stopped { what: "x".into() })["help"], Value::Null);
    }

    #[test]
    fn bytes_are_told_now_and_then_and_whole_at_the_end() {
        let digest = Digest::of(b"layer");
        let fetched = || Event::Fetched { digest, bytes: 10 };
        let mut events = vec![Event::Started(Phase::Layers), fetched()];
        events.push(Event::Planned { layers: 1, bytes: 10_000, unpacks: 1 });
        events.extend(std::iter::repeat_with(fetched).take(1_000));
        events.push(Event::LayerDone { digest });
        events.push(Event::Finished(Phase::Layers, Duration::ZERO));
        let told = told(events);
        assert_eq!(told[1], json!({"event": "planned", "layers": 1, "bytes": 10_000, "unpacks": 1}));
        let done = |line: &Value| (line["event"].clone(), line["bytes"].clone(), line["unpacked"].clone());
        let first = json!({"event": "progress", "bytes": 10, "unpacked": 0, "bytes_per_second": null,
            "seconds_left": null});
        assert_eq!(told[2], first);
        let (last, whole) = (&told[told.len() - 1], &told[told.len() - 2]);
        assert_eq!(last, &json!({"event": "finished", "phase": "layers", "seconds": 0.0}));
        assert_eq!(done(whole), ("progress".into(), 10_000.into(), 1.into()));
        assert!(told.len() < 1_000, "{} lines", told.len());
    }
}
