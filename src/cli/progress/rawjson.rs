//! Events as JSON, one object per line: docs/json.md, "`--progress rawjson`".

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

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
    Progress { bytes: u64, unpacked: usize },
    ToRead { files: usize, bytes: u64 },
    Read { bytes: u64 },
    Downloaded { digest: &'a Digest },
    Unpacked { digest: &'a Digest },
    Retry { what: &'a str, failures: u32, seconds: f64, reason: &'a str },
    Warning { message: &'a str },
    Error { message: &'a str, exit_code: u8 },
}

fn line(told: Told<'_>) -> String {
    // To the millisecond, in every line alike.
    let line = Line { time: format!("{:.3}", Timestamp::now()), told };
    serde_json::to_string(&line).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// The line that a failed command ends with.
pub(super) fn error(message: &str, exit_code: u8) -> String {
    line(Told::Error { message, exit_code })
}

#[derive(Debug, Default)]
struct State {
    planned: bool,
    bytes: u64,
    unpacked: usize,
    /// What [`Told::Progress`] last told, and when.
    told: (u64, usize),
    at: Option<Instant>,
}

impl State {
    fn progress(&mut self) -> Option<Told<'static>> {
        let now = (self.bytes, self.unpacked);
        if self.told == now {
            return None;
        }
        (self.told, self.at) = (now, Some(Instant::now()));
        Some(Told::Progress { bytes: self.bytes, unpacked: self.unpacked })
    }

    /// Whether more was read than was told last.
    fn read_on(&mut self) -> bool {
        let before = std::mem::replace(&mut self.told, (self.bytes, 0));
        self.at = Some(Instant::now());
        before != self.told
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
        // Held while a line is written: lines are in the order of what they tell.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Started(phase) => self.tell(Told::Started { phase: phase.name() }),
            Event::Finished(phase, took) => {
                // However fast it was: who adds nothing up has the whole at the end.
                if phase == Phase::Layers
                    && let Some(progress) = state.progress()
                {
                    self.tell(progress);
                }
                if matches!(phase, Phase::Databases | Phase::FirstBuild | Phase::Rest) && state.read_on() {
                    self.tell(Told::Read { bytes: state.bytes });
                }
                self.tell(Told::Finished { phase: phase.name(), seconds: seconds(took) });
            }
            Event::Planned { layers, bytes, unpacks } => {
                state.planned = true;
                self.tell(Told::Planned { layers, bytes, unpacks });
            }
            // Documents come before the layers are planned, and count for nothing.
            Event::Fetched { bytes, .. } if state.planned => {
                state.bytes += bytes;
                if state.at.is_none_or(|at| at.elapsed() >= INTERVAL)
                    && let Some(progress) = state.progress()
                {
                    self.tell(progress);
                }
            }
            Event::Fetched { .. } => {}
            Event::ToRead { files, bytes } => {
                (state.bytes, state.told, state.at) = (0, (0, 0), None);
                self.tell(Told::ToRead { files, bytes });
            }
            Event::Read { bytes } => {
                state.bytes += bytes;
                if state.at.is_none_or(|at| at.elapsed() >= INTERVAL) {
                    state.read_on();
                    self.tell(Told::Read { bytes: state.bytes });
                }
            }
            Event::BlobDone { digest } => self.tell(Told::Downloaded { digest: &digest }),
            Event::LayerDone { digest } => {
                state.unpacked += 1;
                self.tell(Told::Unpacked { digest: &digest });
            }
            Event::Retry { what, failures, wait, reason } => {
                self.tell(Told::Retry { what: &what, failures, seconds: seconds(wait), reason: &reason });
            }
            Event::Warning(message) => self.tell(Told::Warning { message: &message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(events: Vec<Event>) -> Vec<Value> {
        let lines = Mutex::new(Vec::new());
        {
            let progress = Events::new(|line: &str| lines.lock().unwrap().push(line.to_owned()));
            for event in events {
                progress.event(event);
            }
        }
        let parsed = lines.into_inner().unwrap().into_iter().map(|line| {
            assert!(!line.contains('\n'), "{line}");
            let mut value: Value = line.parse().unwrap();
            let time = value.as_object_mut().unwrap().remove("time").unwrap();
            let time = time.as_str().unwrap();
            assert!(time.parse::<Timestamp>().is_ok() && time.len() == 24, "{time}");
            value
        });
        parsed.collect()
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
        ];
        let expected = [
            json!({"event": "started", "phase": "resolve"}),
            json!({"event": "finished", "phase": "resolve", "seconds": 1.5}),
            json!({"event": "retry", "what": "a", "failures": 2, "seconds": 1.5, "reason": "b\nc"}),
            json!({"event": "warning", "message": "\u{1b}[31mred"}),
            json!({"event": "downloaded", "digest": digest}),
            json!({"event": "unpacked", "digest": digest}),
        ];
        assert_eq!(told(events), expected);
    }

    #[test]
    fn bytes_are_told_now_and_then_and_whole_at_the_end() {
        let digest = Digest::of(b"layer");
        let fetched = || Event::Fetched { digest, bytes: 10 };
        let mut events = vec![fetched(), Event::Planned { layers: 1, bytes: 10_000, unpacks: 1 }];
        events.extend(std::iter::repeat_with(fetched).take(1_000));
        events.push(Event::LayerDone { digest });
        events.push(Event::Finished(Phase::Layers, Duration::ZERO));
        let told = told(events);
        assert_eq!(told[0], json!({"event": "planned", "layers": 1, "bytes": 10_000, "unpacks": 1}));
        assert_eq!(told[1], json!({"event": "progress", "bytes": 10, "unpacked": 0}));
        let (last, whole) = (&told[told.len() - 1], &told[told.len() - 2]);
        assert_eq!(last, &json!({"event": "finished", "phase": "layers", "seconds": 0.0}));
        assert_eq!(whole, &json!({"event": "progress", "bytes": 10_000, "unpacked": 1}));
        assert!(told.len() < 1_000, "{} lines", told.len());
    }
}
