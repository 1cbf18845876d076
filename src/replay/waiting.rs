//! Requests for layers, kept waiting until the daemon does nothing else.
//!
//! ```text
//! build 1   ── a? ── b? ────── quiet ─▶ a and b refused     names the step that misses, or one above it
//! build 2   ── a? ── b? ────── quiet ─▶ a refused           the failure of b does not hide that of a
//! build 3   ── a? ── b? ────── quiet ─▶ b refused
//! build 4   ── a? ── b? ─ long quiet ─▶ a refused again     there is no other: exhausted
//! ```
//!
//! A daemon asks for a layer where a step was not found by what it stands on, to look for it by the files that
//! it takes: of the step that misses, and of steps above it whose other inputs were found. Any refusal ends
//! the build, and what was not said until then is not said any more.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a daemon is silent that waits for layers alone.
const QUIET: Duration = Duration::from_secs(1);
/// How long the silence has to be before a layer is refused that was refused in an earlier build.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often who waits looks again.
const LOOK: Duration = Duration::from_millis(50);

/// How layers were refused in a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// None was.
    None,
    /// Some, as agreed.
    Some,
    /// One that was refused in an earlier build too: there was no other.
    Exhausted,
}

/// Who waits for layers of the builds of a replay, which follow one another.
pub(super) struct Waiting {
    round: Mutex<Round>,
    /// One that waits may go on.
    woken: Condvar,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { round: Mutex::new(Round::new(Instant::now())), woken: Condvar::new() }
    }

    /// A build begins; who waits in the one before is refused. In the `first` one of a target all layers are refused
    /// together, so that the steps that asked for them all fail. Since the first failure may hide the others,
    /// each further one refuses one at a time, and none that such a build refused before.
    pub(super) fn begin(&self, first: bool) {
        self.lock().begin(first, Instant::now());
        self.woken.notify_all();
    }

    /// By now the daemon said `told` things of the build; `asking`: it asks for a source, which may take its time.
    pub(super) fn heard(&self, told: usize, asking: bool) {
        self.lock().heard(told, asking, Instant::now());
    }

    /// Until it is dropped, the daemon waits for a registry.
    pub(super) fn answering(&self) -> Answering<'_> {
        self.lock().answering += 1;
        Answering(self)
    }

    /// Waits until the layer at `path` may be had, or the time has come to refuse it; whether it may be had.
    pub(super) fn wait(&self, path: &str, may_be_had: impl Fn() -> bool) -> bool {
        let mut round = self.lock();
        round.heard = Instant::now();
        let build = round.build;
        loop {
            if may_be_had() {
                return true;
            }
            if round.ended || round.build != build || round.refuse(path, Instant::now()) {
                drop(round);
                self.woken.notify_all();
                return false;
            }
            let woken = self.woken.wait_timeout(round, LOOK);
            round = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How layers were refused since the build began.
    pub(super) fn refused(&self) -> Refused {
        self.lock().outcome
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.woken.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that a registry answers.
pub(super) struct Answering<'a>(&'a Waiting);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let mut round = self.0.lock();
        round.answering -= 1;
        round.heard = Instant::now();
    }
}

/// What is known of one build, and of those of its target before.
struct Round {
    /// The number of the build: who asked in an earlier one waits for nothing.
    build: usize,
    /// Whether all are refused together.
    together: bool,
    /// Those that were refused in builds of this target before, or in this one, each by itself.
    tried: BTreeSet<String>,
    /// Those that were refused in this one.
    refused: BTreeSet<String>,
    outcome: Refused,
    /// When the daemon last said anything of a step, or asked for anything.
    heard: Instant,
    /// How much it had said then.
    told: usize,
    /// Whether it asks for a source.
    asking: bool,
    /// Requests that are being answered by registries.
    answering: usize,
    /// Whether the replay is over.
    ended: bool,
}

impl Round {
    fn new(now: Instant) -> Self {
        Self {
            build: 0,
            together: true,
            tried: BTreeSet::new(),
            refused: BTreeSet::new(),
            outcome: Refused::None,
            heard: now,
            told: 0,
            asking: false,
            answering: 0,
            ended: false,
        }
    }

    fn begin(&mut self, first: bool, now: Instant) {
        let tried = if first { BTreeSet::new() } else { std::mem::take(&mut self.tried) };
        let (build, answering, ended) = (self.build + 1, self.answering, self.ended);
        *self = Self { build, together: first, tried, answering, ended, ..Self::new(now) };
    }

    fn heard(&mut self, told: usize, asking: bool, now: Instant) {
        if self.told != told {
            self.told = told;
            self.heard = now;
        }
        self.asking = asking;
    }

    /// Whether the layer at `path`, which is waited for, is refused by now.
    fn refuse(&mut self, path: &str, now: Instant) -> bool {
        if self.refused.contains(path) || (self.together && !self.refused.is_empty()) {
            self.refused.insert(path.to_owned());
            return true;
        }
        let is_new = !self.tried.contains(path);
        let silence = now.saturating_duration_since(self.heard);
        if self.asking || self.answering > 0 || silence < if is_new { QUIET } else { PATIENCE } {
            return false;
        }
        if is_new && self.outcome != Refused::Exhausted {
            self.outcome = Refused::Some;
        } else {
            self.outcome = Refused::Exhausted;
        }
        self.refused.insert(path.to_owned());
        if !self.together {
            self.tried.insert(path.to_owned());
            // The others wait on: the failure of this one may end the build.
            self.heard = now;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first build in which the daemon was last heard at the time that is given back.
    fn first() -> (Round, Instant) {
        let start = Instant::now();
        let mut round = Round::new(start);
        round.begin(true, start);
        (round, start)
    }

    #[test]
    fn the_first_build_refuses_all_together_once_the_daemon_is_quiet() {
        let (mut round, start) = first();
        assert!(!round.refuse("a", start + QUIET / 2) && round.outcome == Refused::None);
        assert!(round.refuse("a", start + QUIET));
        round.heard(1, false, start + QUIET);
        assert!(round.refuse("b", start + QUIET), "with the other, of which the daemon said something");
        assert_eq!(round.outcome, Refused::Some);
    }

    #[test]
    fn a_daemon_that_is_busy_is_waited_for() {
        let (mut round, start) = first();
        let later = start + QUIET;
        round.heard(1, false, later);
        assert!(!round.refuse("a", later), "it said something");
        round.heard(1, false, later + QUIET / 2);
        assert!(!round.refuse("a", later + QUIET / 2));
        round.heard(1, true, later + QUIET);
        assert!(!round.refuse("a", later + PATIENCE), "it asks for a source");
        round.heard(1, false, later + QUIET);
        round.answering = 1;
        assert!(!round.refuse("a", later + PATIENCE), "a registry answers");
        round.answering = 0;
        assert!(round.refuse("a", later + QUIET), "nothing new was said since");
    }

    #[test]
    fn each_further_build_refuses_another_one_until_there_is_none() {
        let (mut round, mut now) = first();
        assert!(round.refuse("a", now + QUIET) && round.refuse("b", now + QUIET));
        for (refused, waits) in [("a", "b"), ("b", "a")] {
            now += PATIENCE;
            round.begin(false, now);
            assert_eq!(round.outcome, Refused::None);
            now += QUIET;
            assert!(round.refuse(refused, now), "{refused}: only builds that refuse one count");
            assert!(!round.refuse(waits, now), "{waits} waits: the other may end the build");
            assert!(round.refuse(refused, now), "{refused} is asked for once more");
            assert_eq!(round.outcome, Refused::Some);
        }
        now += PATIENCE;
        round.begin(false, now);
        assert!(!round.refuse("a", now + QUIET) && !round.refuse("b", now + QUIET), "both were before");
        assert!(round.refuse("a", now + PATIENCE));
        assert_eq!(round.outcome, Refused::Exhausted);

        round.begin(true, now);
        assert!(round.refuse("a", now + QUIET), "another target");
        assert_eq!(round.outcome, Refused::Some);
    }

    #[test]
    fn nobody_waits_for_what_may_be_had_or_in_a_build_that_is_over() {
        let waiting = Waiting::new();
        waiting.begin(true);
        assert!(waiting.wait("a", || true));
        assert_eq!(waiting.refused(), Refused::None);

        // A registry that answers all the time: the layer waits, and only the next build ends it.
        let _answering = waiting.answering();
        let (asked, is_asked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                waiting.wait("a", move || {
                    let _ = asked.send(());
                    false
                })
            });
            is_asked.recv().unwrap();
            waiting.begin(false);
            assert!(!waiter.join().unwrap());
        });
        assert_eq!(waiting.refused(), Refused::None, "it is no refusal of this build");
        waiting.end();
        assert!(!waiting.wait("a", || false));
    }
}
