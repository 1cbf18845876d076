//! Doing the same with many things on several threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::report::Findings;

/// What one thread brings home.
pub(super) type Outcome<T> = (T, Findings);

/// Runs `work` on every item, on `jobs` threads, and returns what each thread gathered.
pub(super) fn each<I: Sync, T: Default + Send>(
    jobs: usize,
    items: &[I],
    work: impl Fn(&I, &mut T, &mut Findings) + Sync,
) -> Vec<Outcome<T>> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut outcome = Outcome::<T>::default();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item, &mut outcome.0, &mut outcome.1);
        }
        outcome
    };
    let threads = jobs.clamp(1, items.len().max(1));
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut outcomes = vec![run()];
        for other in others {
            match other.join() {
                Ok(outcome) => outcomes.push(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        outcomes
    })
}
