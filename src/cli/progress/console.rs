//! Progress for a person: a bar on a terminal, plain lines elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::cli::output::err;
use crate::cli::render;
use crate::cli::text::Text;
use crate::progress::{Event, Phase, Progress};

/// How often a log gets a line while layers come in.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// How often the bar moves while a server is slow.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct State {
    layers: usize,
    unpacks: usize,
    bytes: u64,
    fetched: u64,
    unpacked: usize,
    last_line: Option<Instant>,
}

/// While nobody knows how much there is to do.
const SPINNER: &str = "{spinner} {msg}";
/// While layers come in.
const BAR: &str = "{spinner} {msg:20} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What is done to layers and to bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Verbs {
    layers: &'static str,
    bytes: &'static str,
}

impl Verbs {
    pub(in crate::cli) const BAKE: Self = Self { layers: "unpacked", bytes: "downloaded" };
    pub(in crate::cli) const VERIFY: Self = Self { layers: "compared", bytes: "hashed" };
    pub(in crate::cli) const HYDRATE: Self = Self { layers: "", bytes: "read" };
}

/// Shows events to a person.
#[derive(Debug)]
pub(in crate::cli) struct Console {
    bar: Option<ProgressBar>,
    verbs: Verbs,
    state: Mutex<State>,
}

impl Console {
    pub(in crate::cli) fn new(verbs: Verbs) -> Self {
        // Hidden where standard error is no terminal, or one that cannot go back in a line.
        let bar = Some(ProgressBar::new(0).with_style(style(SPINNER))).filter(|bar| !bar.is_hidden());
        if let Some(bar) = &bar {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, verbs, state: Mutex::default() }
    }

    /// Lines, also on a terminal.
    pub(super) fn plain(verbs: Verbs) -> Self {
        Self { bar: None, verbs, state: Mutex::default() }
    }

    pub(super) fn has_bar(&self) -> bool {
        self.bar.is_some()
    }

    fn line(&self, text: impl Into<Text>) {
        match &self.bar {
            Some(bar) => bar.suspend(|| err(text)),
            None => err(text),
        }
    }

    fn show(&self, state: &mut State, now: bool) {
        let layers = format!("{}/{} layers", state.unpacked, state.unpacks);
        if let Some(bar) = &self.bar {
            bar.set_position(state.fetched);
            bar.set_message(if state.unpacks > 0 { layers } else { self.verbs.bytes.to_owned() });
            return;
        }
        let due = state.last_line.is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL);
        if now || due {
            state.last_line = Some(Instant::now());
            let (fetched, bytes) = (HumanBytes(state.fetched), HumanBytes(state.bytes));
            let bytes = format!("{fetched} of {bytes} {}", self.verbs.bytes);
            if state.unpacks > 0 {
                err(format!("{layers} {}, {bytes}", self.verbs.layers));
            } else {
                err(bytes);
            }
        }
    }
}

impl Drop for Console {
    /// Takes the bar off the screen.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Console {
    fn event(&self, event: Event) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Started(phase) => {
                let message = match phase {
                    Phase::Resolve => "reading caches",
                    Phase::Keys => "recovering keys",
                    Phase::Layers => return,
                    Phase::Commit => "writing to disk",
                    Phase::Databases => "reading databases",
                    Phase::FirstBuild => "reading what steps are built on",
                    Phase::Rest => "reading the rest",
                };
                match &self.bar {
                    Some(bar) => {
                        bar.set_style(style(SPINNER));
                        bar.set_message(message);
                    }
                    None => err(message),
                }
            }
            Event::Planned { layers, bytes, unpacks } => {
                (state.layers, state.bytes, state.unpacks) = (layers, bytes, unpacks);
                if let Some(bar) = &self.bar {
                    bar.set_style(style(BAR));
                    bar.set_length(bytes);
                }
                if self.bar.is_none() {
                    state.last_line = Some(Instant::now());
                    let bytes = HumanBytes(bytes);
                    err(format!("{layers} layers, {bytes} to be {}", self.verbs.bytes));
                }
            }
            Event::ToRead { files, bytes } => {
                (state.bytes, state.fetched, state.last_line) = (bytes, 0, Some(Instant::now()));
                match &self.bar {
                    Some(bar) => {
                        bar.set_style(style(BAR));
                        bar.set_length(bytes);
                        bar.reset_eta();
                    }
                    None => err(format!("{files} files, {} to be {}", HumanBytes(bytes), self.verbs.bytes)),
                }
            }
            Event::Read { bytes } => {
                state.fetched += bytes;
                self.show(&mut state, false);
            }
            // Documents come before the layers are planned, and count for nothing.
            Event::Fetched { bytes, .. } if state.layers > 0 => {
                state.fetched += bytes;
                self.show(&mut state, false);
            }
            Event::LayerDone { .. } => {
                state.unpacked += 1;
                let all = state.unpacked == state.unpacks;
                self.show(&mut state, all);
            }
            Event::Retry { what, failures, wait, reason } => {
                let wait = wait.as_secs_f32();
                self.line(format!("retry {failures} in {wait:.1} s: {what}: {reason}"));
            }
            Event::Warning(text) => self.line(render::warning(&text)),
            Event::Fetched { .. } | Event::Finished(..) | Event::BlobDone { .. } => {}
        }
    }
}
