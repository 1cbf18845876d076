//! How far a command is: what bars, lines and events for programs all tell.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::progress::{Event, Phase};

/// What rates are taken over: long enough to be calm, short enough to notice when a server slows down.
const WINDOW: Duration = Duration::from_secs(8);
/// How close samples of a rate may be.
const APART: Duration = Duration::from_millis(100);
/// How long bytes have to come in before their rate says something.
const SETTLED: Duration = Duration::from_millis(500);

/// Bytes per second, of late.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// `bytes` were there at `now`, all in all.
    fn sample(&mut self, now: Instant, bytes: u64) {
        if self.0.back().is_none_or(|(at, _)| now.duration_since(*at) >= APART) {
            self.0.push_back((now, bytes));
        }
        // One that is older stays: there has to be something to count from.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
    }

    fn get(&self, now: Instant, bytes: u64) -> Option<u64> {
        let (at, before) = self.0.front()?;
        let took = now.duration_since(*at);
        let rate = || u128::from(bytes.saturating_sub(*before)) * 1_000 / took.as_millis();
        (took >= SETTLED).then(|| u64::try_from(rate()).unwrap_or(u64::MAX))
    }
}

/// How much there is to do in a phase, or how much is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    /// Bytes to read.
    pub(super) bytes: u64,
    /// Layers to unpack.
    pub(super) layers: usize,
}

/// A phase that has begun.
#[derive(Debug)]
struct Running {
    phase: Phase,
    since: Instant,
    planned: Option<Amount>,
    done: Amount,
    rate: Rate,
}

/// Takes events, and tells how far the phase is. A phase may begin within another, which then goes on.
#[derive(Debug, Default)]
pub(super) struct Meter(Vec<Running>);

/// How far a phase is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reading {
    pub(super) phase: Phase,
    /// Since the phase began.
    pub(super) took: Duration,
    /// Where it is known how much there is to do.
    pub(super) planned: Option<Amount>,
    pub(super) done: Amount,
    /// Bytes per second, of late.
    pub(super) rate: Option<u64>,
    /// How long the other bytes take at this rate. Layers may still be unpacked then.
    pub(super) left: Option<Duration>,
}

impl Meter {
    pub(super) fn take(&mut self, event: &Event, now: Instant) {
        if let Event::Started(phase) = event {
            let (planned, done, rate) = Default::default();
            self.0.push(Running { phase: *phase, since: now, planned, done, rate });
        }
        let Some(running) = self.0.last_mut() else { return };
        match event {
            Event::Planned { bytes, unpacks, .. } => {
                let planned = running.planned.get_or_insert_default();
                planned.bytes += bytes;
                planned.layers += unpacks;
                running.rate.sample(now, running.done.bytes);
            }
            // Documents come before anything is planned, and count for nothing.
            Event::Fetched { bytes, .. } if running.planned.is_some() => {
                running.done.bytes += bytes;
                running.rate.sample(now, running.done.bytes);
            }
            Event::ToRead { bytes, .. } => {
                running.planned.get_or_insert_default().bytes += bytes;
                running.rate.sample(now, running.done.bytes);
            }
            Event::Read { bytes } => {
                running.done.bytes += bytes;
                running.rate.sample(now, running.done.bytes);
            }
            Event::LayerDone { .. } => running.done.layers += 1,
            Event::Finished(phase, _) if *phase == running.phase => drop(self.0.pop()),
            _ => {}
        }
    }

    /// Where the innermost phase is.
    pub(super) fn read(&self, now: Instant) -> Option<Reading> {
        let Running { phase, since, planned, done, rate } = self.0.last()?;
        let rate = rate.get(now, done.bytes);
        let missing =
            planned.map(|planned| planned.bytes.saturating_sub(done.bytes)).filter(|&missing| missing > 0);
        // At no rate at all it takes for ever.
        let millis =
            missing.zip(rate).and_then(|(missing, rate)| missing.saturating_mul(1_000).checked_div(rate));
        let left = millis.map(Duration::from_millis);
        let took = now.duration_since(*since);
        Some(Reading { phase: *phase, took, planned: *planned, done: *done, rate, left })
    }
}

impl Reading {
    /// How much of the bytes is there, in percent. What is read again after a failure counts again, but is not more
    /// than all.
    pub(super) fn percent(&self) -> Option<u64> {
        let all = self.planned?.bytes;
        (self.done.bytes.min(all) * 100).checked_div(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn fetched(bytes: u64) -> Event {
        Event::Fetched { digest: Digest::of(b""), bytes }
    }

    #[test]
    fn tells_rate_and_time_left() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.take(&fetched(10), start);
        assert_eq!(meter.read(start), None);
        meter.take(&Event::Started(Phase::Layers), start);
        meter.take(&fetched(10), start);
        let reading = meter.read(at(start, 400)).unwrap();
        assert_eq!((reading.planned, reading.done, reading.rate), (None, Amount::default(), None));
        assert_eq!((reading.took, reading.percent()), (Duration::from_millis(400), None));

        meter.take(&Event::Planned { layers: 1, bytes: 6_000, unpacks: 1 }, at(start, 1_000));
        meter.take(&Event::Planned { layers: 1, bytes: 4_000, unpacks: 2 }, at(start, 1_000));
        meter.take(&fetched(500), at(start, 1_100));
        assert_eq!(meter.read(at(start, 1_100)).unwrap().rate, None);
        meter.take(&fetched(1_500), at(start, 2_000));
        meter.take(&Event::LayerDone { digest: Digest::of(b"") }, at(start, 2_000));
        let reading = meter.read(at(start, 2_000)).unwrap();
        assert_eq!(reading.planned, Some(Amount { bytes: 10_000, layers: 3 }));
        assert_eq!(reading.done, Amount { bytes: 2_000, layers: 1 });
        assert_eq!((reading.rate, reading.left), (Some(2_000), Some(Duration::from_secs(4))));
        assert_eq!(reading.percent(), Some(20));

        // Nothing comes in any more: less and less, and none in the end.
        assert_eq!(meter.read(at(start, 5_000)).unwrap().rate, Some(500));
        meter.take(&fetched(0), at(start, 60_000));
        meter.take(&fetched(0), at(start, 70_000));
        let reading = meter.read(at(start, 70_000)).unwrap();
        assert_eq!((reading.rate, reading.left), (Some(0), None));

        // Read twice, after a failure.
        meter.take(&fetched(20_000), at(start, 71_000));
        let reading = meter.read(at(start, 71_000)).unwrap();
        assert_eq!((reading.percent(), reading.left), (Some(100), None));
    }

    #[test]
    fn rates_are_those_of_late() {
        let start = Instant::now();
        let mut rate = Rate::default();
        for second in 0..60 {
            rate.sample(at(start, second * 1_000), second * 100);
        }
        for second in 60..80 {
            rate.sample(at(start, second * 1_000), 6_000 + (second - 60) * 1_000);
        }
        assert_eq!(rate.get(at(start, 79_000), 25_000), Some(1_000));
        assert!(rate.0.len() <= 10, "{rate:?}");
    }

    #[test]
    fn a_phase_within_another_leaves_it_as_it_was() {
        let now = Instant::now();
        let mut meter = Meter::default();
        let phase = |meter: &Meter| meter.read(now).map(|reading| reading.phase);
        meter.take(&Event::Started(Phase::Keys), now);
        meter.take(&Event::Started(Phase::Replay), now);
        assert_eq!(phase(&meter), Some(Phase::Replay));
        meter.take(&Event::Finished(Phase::Replay, Duration::ZERO), now);
        assert_eq!(phase(&meter), Some(Phase::Keys));
        meter.take(&Event::Finished(Phase::Keys, Duration::ZERO), now);
        assert_eq!(phase(&meter), None);
    }
}
