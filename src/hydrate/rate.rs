//! How fast is read: a bucket of bytes that fills at a steady rate and holds nothing over.
//!
//! A read begins when all that were paid for before it would be done at the rate, and is paid for then. So up to
//! any moment no more was begun than the rate allows, and one read more. What a read turns out not to have cost is
//! given back, and nobody waits for it any longer. Time in which nothing was read is not saved up: a burst after it
//! would be what the rate is there to prevent.

use std::num::NonZero;
use std::time::Duration;

/// The account of one run. Times are those since its start.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes per second.
    rate: NonZero<u64>,
    /// When all that was paid for will be done.
    paid_until: Duration,
}

impl Bucket {
    pub(super) fn new(rate: NonZero<u64>) -> Self {
        Self { rate, paid_until: Duration::ZERO }
    }

    /// Pays for a read of `bytes` that begins now.
    ///
    /// # Errors
    /// It may not begin yet, but after this long, or earlier if something is given back.
    pub(super) fn begin(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        match self.paid_until.saturating_sub(now) {
            Duration::ZERO => {
                self.paid_until = now.saturating_add(self.time(bytes));
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// Corrects what was paid for a read, once it is known what it took.
    pub(super) fn settle(&mut self, paid: u64, taken: u64) {
        if taken >= paid {
            self.paid_until = self.paid_until.saturating_add(self.time(taken - paid));
        } else {
            self.paid_until = self.paid_until.saturating_sub(self.time(paid - taken));
        }
    }

    fn time(&self, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.get());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bucket(rate: u64) -> Bucket {
        Bucket::new(NonZero::new(rate).unwrap())
    }

    #[test]
    fn reads_wait_for_those_before_them() {
        let mut bucket = bucket(100);
        assert_eq!(bucket.begin(Duration::ZERO, 100), Ok(()));
        assert_eq!(bucket.begin(Duration::ZERO, 50), Err(SECOND));
        assert_eq!(bucket.begin(SECOND / 2, 50), Err(SECOND / 2));
        assert_eq!(bucket.begin(SECOND, 50), Ok(()));
        // After 1.5 s all is done; what was not used of the seconds after that is gone.
        assert_eq!(bucket.begin(10 * SECOND, 100), Ok(()));
        assert_eq!(bucket.begin(10 * SECOND, 1), Err(SECOND));
    }

    #[test]
    fn what_was_in_memory_costs_nothing() {
        let mut bucket = bucket(100);
        for _ in 0..1000 {
            assert_eq!(bucket.begin(Duration::ZERO, 100), Ok(()));
            // Whoever comes meanwhile does not wait for what is given back.
            assert_eq!(bucket.begin(Duration::ZERO, 100), Err(SECOND));
            bucket.settle(100, 0);
        }
        assert_eq!(bucket.begin(Duration::ZERO, 100), Ok(()));
        // Read ahead, and directories that nobody could pay for beforehand.
        bucket.settle(100, 200);
        bucket.settle(0, 100);
        assert_eq!(bucket.begin(Duration::ZERO, 1), Err(3 * SECOND));
    }

    /// Whatever is asked for: what was begun up to a moment is at most what the rate gives until then, and one
    /// read.
    #[test]
    fn no_more_is_begun_than_the_rate_allows() {
        for (rate, sizes) in [(1_000, &[1, 7, 400, 1_000][..]), (1 << 20, &[1 << 20, 4096]), (3, &[1])] {
            let mut bucket = bucket(rate);
            let (mut now, mut begun) = (Duration::ZERO, 0);
            let largest = u128::from(*sizes.iter().max().unwrap());
            for step in 0..500 {
                let bytes = sizes[step % sizes.len()];
                while let Err(wait) = bucket.begin(now, bytes) {
                    now += wait;
                }
                begun += u128::from(bytes);
                let allowed = now.as_nanos() * u128::from(rate) / 1_000_000_000 + largest;
                // Nanoseconds are cut off, once per read.
                assert!(begun <= allowed + 2, "{rate}: {begun} bytes begun after {now:?}, {allowed} allowed");
            }
        }
    }

    #[test]
    fn no_amount_is_too_large() {
        let mut bucket = bucket(1);
        assert_eq!(bucket.begin(Duration::ZERO, u64::MAX), Ok(()));
        assert!(bucket.begin(Duration::ZERO, u64::MAX).unwrap_err() > SECOND);
        bucket.settle(0, u64::MAX);
        bucket.settle(u64::MAX, 0);
    }
}
