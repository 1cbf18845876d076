//! When a failed request is made again, and when that has been done often enough.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ureq::Agent;

use crate::progress::{Event, Progress};
use crate::source::Error;

/// How patient to be with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row, without a byte of progress between them, after which to give up.
    pub failures: u32,
    /// The same for a server that has never answered: more likely misspelt than overloaded.
    pub failures_before_first_answer: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub first_wait: Duration,
    /// The longest wait between two attempts, unless the server asks for more.
    pub longest_wait: Duration,
    /// The longest wait that a server may ask for with `Retry-After`.
    pub longest_retry_after: Duration,
}

impl Default for RetryPolicy {
    /// Rides out about a minute without any answer.
    fn default() -> Self {
        Self {
            failures: 8,
            failures_before_first_answer: 3,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(20),
            longest_retry_after: Duration::from_secs(300),
        }
    }
}

/// Ends all waits and downloads of the sources that were opened with it; clones are one switch.
///
/// For whoever has seen another part of the run fail: a wait that a server asked for may be minutes long.
#[derive(Clone, Default)]
pub struct Stop {
    used: Arc<AtomicBool>,
    interrupted: Arc<AtomicBool>,
    /// Whose connections are cut.
    agents: Arc<Mutex<Vec<Agent>>>,
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stop").field(&self.is_stopped()).finish()
    }
}

impl Stop {
    /// A switch that a signal handler may throw as well. It can do no more than set the flag, so what is
    /// waiting for a server's next byte ends only when somebody who sees the flag calls [`Stop::stop`].
    pub fn on_flag(interrupted: Arc<AtomicBool>) -> Self {
        Self { interrupted, ..Self::default() }
    }

    /// Makes every request, now and later, end with [`Error::Stopped`]; those that wait for a server, too.
    pub fn stop(&self) {
        let mut agents = lock(&self.agents);
        self.used.store(true, Ordering::Relaxed);
        agents.drain(..).for_each(Agent::shutdown);
    }

    /// Has [`Stop::stop`] cut the connections of `agent`.
    pub(in crate::source) fn cuts(&self, agent: &Agent) {
        let mut agents = lock(&self.agents);
        if self.used.load(Ordering::Relaxed) {
            agent.clone().shutdown();
        } else {
            agents.push(agent.clone());
        }
    }

    /// Whether it has been used.
    pub fn is_stopped(&self) -> bool {
        self.used.load(Ordering::Relaxed) || self.interrupted.load(Ordering::Relaxed)
    }

    /// Sleeps; gives `false` if stopped before the end.
    fn sleep(&self, time: Duration) -> bool {
        const SLICE: Duration = Duration::from_millis(100);
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_stopped() {
                return !self.is_stopped();
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}

fn lock(agents: &Mutex<Vec<Agent>>) -> MutexGuard<'_, Vec<Agent>> {
    agents.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why one attempt failed.
#[derive(Debug)]
pub(in crate::source) enum Failure {
    /// Making the request again may help.
    Again {
        reason: String,
        /// As `Retry-After` says.
        after: Option<Duration>,
        /// Whether any server answered at all.
        answered: bool,
    },
    /// It will not.
    Final(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

impl Failure {
    /// A failure of a server that answers otherwise.
    pub(in crate::source) fn again(reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), after: None, answered: true }
    }
}

/// Counts the failures of one request.
pub(in crate::source) struct Attempts<'a> {
    what: String,
    policy: RetryPolicy,
    stop: &'a Stop,
    progress: &'a dyn Progress,
    failures: u32,
}

impl<'a> Attempts<'a> {
    /// `what` names the request in messages.
    pub(in crate::source) fn new(
        what: String,
        policy: RetryPolicy,
        stop: &'a Stop,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { what, policy, stop, progress, failures: 0 }
    }

    /// Makes attempts until one succeeds, or none will.
    pub(in crate::source) fn run<T>(
        mut self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Error> {
        loop {
            self.check()?;
            match attempt() {
                Ok(found) => return Ok(found),
                Err(failure) => self.failed(failure)?,
            }
        }
    }

    /// Whether there may be another attempt.
    pub(in crate::source) fn check(&self) -> Result<(), Error> {
        if self.stop.is_stopped() { Err(Error::Stopped { what: self.what.clone() }) } else { Ok(()) }
    }

    /// Forgets earlier failures: something arrived.
    pub(in crate::source) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Waits until the request may be made again, or says why it will not be.
    pub(in crate::source) fn failed(&mut self, failure: Failure) -> Result<(), Error> {
        let (reason, after, answered) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again { reason, after, answered } => (reason, after, answered),
        };
        // A connection that was cut to end the waiting is no failure of the server.
        if self.stop.is_stopped() {
            return Err(Error::Stopped { what: self.what.clone() });
        }
        self.failures += 1;
        let limit = if answered { self.policy.failures } else { self.policy.failures_before_first_answer };
        if self.failures >= limit.max(1) {
            return Err(Error::GaveUp { what: self.what.clone(), failures: self.failures, reason });
        }
        if let Some(wait) = after.filter(|wait| *wait > self.policy.longest_retry_after) {
            return Err(Error::WaitTooLong { what: self.what.clone(), reason, wait });
        }
        // What the server asks for is a minimum.
        let wait = self.backoff().max(after.unwrap_or_default());
        let (what, failures) = (self.what.clone(), self.failures);
        self.progress.event(Event::Retry { what, failures, wait, reason });
        if self.stop.sleep(wait) { Ok(()) } else { Err(Error::Stopped { what: self.what.clone() }) }
    }

    /// Doubles with each failure; a random half of it is left out, so that clients that failed
    /// together do not come back together.
    fn backoff(&self) -> Duration {
        let doublings = (self.failures - 1).min(16);
        let full = self.policy.first_wait.saturating_mul(1 << doublings).min(self.policy.longest_wait);
        full.mul_f64(0.5 + random_fraction() / 2.0)
    }
}

/// From 0 to 1. Every `RandomState` has keys of its own, which is random enough for waiting.
fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(bits >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// Reads `Retry-After`: seconds, or an HTTP date (a past one means now).
pub(in crate::source) fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u32, Duration)>>);

    impl Progress for Log {
        fn event(&self, event: Event) {
            if let Event::Retry { failures, wait, .. } = event {
                self.0.lock().unwrap().push((failures, wait));
            }
        }
    }

    fn policy() -> RetryPolicy {
        RetryPolicy {
            failures: 5,
            failures_before_first_answer: 2,
            first_wait: Duration::from_millis(4),
            longest_wait: Duration::from_millis(10),
            longest_retry_after: Duration::from_millis(50),
        }
    }

    #[test]
    fn waits_longer_each_time_and_gives_up() {
        let (log, stop) = (Log::default(), Stop::default());
        let mut attempts = Attempts::new("blob x".to_owned(), policy(), &stop, &log);
        for _ in 0..4 {
            attempts.failed(Failure::again("status 503")).unwrap();
        }
        let error = attempts.failed(Failure::again("status 500")).unwrap_err();
        assert_eq!(error.to_string(), "blob x: gave up after 5 failures in a row, the last: status 500");
        let log = log.0.into_inner().unwrap();
        assert_eq!(log.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for ((_, wait), full) in log.iter().zip([4, 8, 10, 10]) {
            let full = Duration::from_millis(full);
            assert!((full / 2..=full).contains(wait), "{wait:?} of {full:?}");
        }
    }

    #[test]
    fn progress_resets_the_count() {
        let (log, stop) = (Log::default(), Stop::default());
        let mut attempts = Attempts::new("x".to_owned(), policy(), &stop, &log);
        for _ in 0..20 {
            attempts.failed(Failure::again("broken")).unwrap();
            attempts.progressed();
        }
    }

    #[test]
    fn a_server_that_never_answered_gets_less_patience() {
        let (log, stop) = (Log::default(), Stop::default());
        let mut attempts = Attempts::new("x".to_owned(), policy(), &stop, &log);
        let failure =
            || Failure::Again { reason: "connection refused".to_owned(), after: None, answered: false };
        attempts.failed(failure()).unwrap();
        attempts.failed(failure()).unwrap_err();
    }

    #[test]
    fn the_server_may_ask_for_more_but_not_for_ever() {
        let (log, stop) = (Log::default(), Stop::default());
        let mut attempts = Attempts::new("x".to_owned(), policy(), &stop, &log);
        let failure = |ms| Failure::Again {
            reason: "status 429".to_owned(),
            after: Some(Duration::from_millis(ms)),
            answered: true,
        };
        attempts.failed(failure(30)).unwrap();
        assert_eq!(log.0.lock().unwrap()[0].1, Duration::from_millis(30));
        let error = attempts.failed(failure(61_000)).unwrap_err().to_string();
        assert_eq!(error, "x: status 429, and asks to wait 61 seconds: try again later");
    }

    #[test]
    fn a_wait_can_be_stopped() {
        let (log, stop) = (Log::default(), Stop::default());
        let policy = RetryPolicy { longest_retry_after: Duration::from_secs(600), ..policy() };
        let mut attempts = Attempts::new("blob x".to_owned(), policy, &stop, &log);
        let after = Some(Duration::from_secs(600));
        let start = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                while log.0.lock().unwrap().is_empty() {
                    std::thread::yield_now();
                }
                stop.clone().stop();
            });
            attempts.failed(Failure::Again { reason: "busy".to_owned(), after, answered: true }).unwrap_err()
        });
        assert_eq!(error.to_string(), "blob x: stopped, since another part of the run has failed");
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn reads_retry_after() {
        let now: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let cases = [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Fri, 20 Nov 2026 10:00:07 GMT", Some(7)),
            ("Fri, 20 Nov 2026 09:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
