//! Progress for a person: a bar on a terminal, plain lines elsewhere.

use std::fmt::Write;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::meter::Meter;
use super::words;
use crate::cli::output::{columns_of, err};
use crate::cli::render;
use crate::cli::text::Text;
use crate::progress::{Event, Progress};

/// How often a log gets a line while nothing else is told.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// Columns of a terminal that does not know how many it has, such as a serial line.
const COLUMNS: usize = 80;

type Shared = Arc<Mutex<Meter>>;

fn locked(meter: &Mutex<Meter>) -> MutexGuard<'_, Meter> {
    meter.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What both tell as it comes.
fn told(event: &Event) -> Option<Text> {
    match event {
        Event::Retry { what, failures, wait, reason } => {
            let wait = wait.as_secs_f32();
            Some(format!("retry {failures} in {wait:.1} s: {what}: {reason}").into())
        }
        Event::Warning(text) => Some(render::warning(text)),
        _ => None,
    }
}

/// One line at the bottom of a terminal, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    meter: Shared,
}

/// The bar that is on the screen, for a signal that ends the process at once.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Takes the bar off the screen, if there is one.
pub(in crate::cli) fn take_down() {
    let bar = ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

impl Bar {
    /// `None` where standard error is no terminal, or one that cannot go back in a line.
    pub(super) fn new() -> Option<Self> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if bar.is_hidden() {
            return None;
        }
        let meter = Shared::default();
        let shown = Arc::clone(&meter);
        // Two for the spinner, and one that terminals with old habits break the line at.
        let line = move |_: &ProgressState, to: &mut dyn Write| {
            let room = columns_of(&io::stderr()).unwrap_or(COLUMNS).saturating_sub(3);
            if let Some(reading) = locked(&shown).read(Instant::now()) {
                let _ = to.write_str(&words::line(&reading, room));
            }
        };
        let style = ProgressStyle::with_template("{spinner} {line}").ok()?;
        bar.set_style(style.with_key("line", line));
        bar.enable_steady_tick(TICK);
        *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Some(Self { bar, meter })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        take_down();
    }
}

impl Progress for Bar {
    fn event(&self, event: Event) {
        locked(&self.meter).take(&event, Instant::now());
        // The meter is free by now: the bar is drawn again after the text.
        if let Some(text) = told(&event) {
            self.bar.suspend(|| err(text));
        }
    }
}

/// Lines for a log: one per phase, and one every few seconds.
pub(super) struct Lines {
    write: Arc<dyn Fn(Text) + Send + Sync>,
    meter: Shared,
    /// Ends the thread that tells how far it is.
    running: Option<mpsc::Sender<()>>,
    telling: Option<JoinHandle<()>>,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self::every(INTERVAL, Arc::new(|line: Text| err(line)))
    }

    fn every(interval: Duration, write: Arc<dyn Fn(Text) + Send + Sync>) -> Self {
        let meter = Shared::default();
        let (told, tell) = (Arc::clone(&meter), Arc::clone(&write));
        let (running, ended) = mpsc::channel::<()>();
        let telling = thread::spawn(move || {
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                if let Some(reading) = locked(&told).read(Instant::now()) {
                    tell(words::still(&reading).into());
                }
            }
        });
        Self { write, meter, running: Some(running), telling: Some(telling) }
    }
}

impl Drop for Lines {
    /// Nothing is told any more.
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = self.telling.take().map(JoinHandle::join);
    }
}

impl Progress for Lines {
    fn event(&self, event: Event) {
        let now = Instant::now();
        // Held while a line is written: lines are in the order of what they tell.
        let mut meter = locked(&self.meter);
        let ended = match &event {
            Event::Finished(phase, _) => meter.read(now).filter(|reading| reading.phase == *phase),
            _ => None,
        };
        meter.take(&event, now);
        let line = match &event {
            Event::Started(phase) => Some(words::doing(*phase).into()),
            Event::Planned { layers, bytes, .. } => {
                meter.read(now).map(|reading| words::planned(reading.phase, *layers, *bytes).into())
            }
            Event::ToRead { files, bytes } => Some(words::to_read(*files, *bytes).into()),
            Event::Finished(..) => ended.and_then(|reading| words::finished(&reading)).map(Text::from),
            event => told(event),
        };
        if let Some(line) = line {
            (self.write)(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::progress::Phase;

    #[test]
    fn a_log_hears_of_what_takes_long() {
        let (send, told) = mpsc::channel();
        let lines = Lines::every(
            Duration::from_millis(1),
            Arc::new(move |line: Text| send.send(line.to_string()).unwrap()),
        );
        let until = |start: &str| told.iter().find(|line| line.starts_with(start)).unwrap();
        lines.event(Event::Started(Phase::Keys));
        assert_eq!(told.recv().unwrap(), "recovering keys");
        assert_eq!(until("still"), "still recovering keys (0 s)");
        lines.event(Event::Warning("odd".into()));
        assert_eq!(until("warning"), "warning: odd");
        lines.event(Event::Finished(Phase::Keys, Duration::ZERO));
        lines.event(Event::Started(Phase::Layers));
        lines.event(Event::Planned { layers: 1, bytes: 10, unpacks: 1 });
        assert_eq!(until("1 layer"), "1 layer, 10 B to be downloaded");
        lines.event(Event::Fetched { digest: Digest::of(b""), bytes: 5 });
        assert!(until("0/1 layers unpacked, 5 B of 10 B downloaded").len() < 100);
        lines.event(Event::Finished(Phase::Layers, Duration::ZERO));
        assert!(until("0/1 layers unpacked, 5 B downloaded in ").ends_with(" s"));
        drop(lines);
        assert_eq!(told.iter().count(), 0);
    }
}
