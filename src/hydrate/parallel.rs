//! Doing the same with many things on several threads that each have something of their own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Does `work` for each item, in their order, on at most `jobs` threads; gives what came of it in that order.
///
/// `begin` makes what a thread has for itself. `work` may give nothing, which ends all: items behind one
/// that gave nothing may not have been begun.
pub(super) fn each<I: Sync, W, R: Send>(
    jobs: usize,
    items: &[I],
    begin: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, &I) -> Option<R> + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut own = begin();
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            match work(&mut own, item) {
                Some(result) => done.push((at, result)),
                None => next.store(items.len(), Ordering::Relaxed),
            }
        }
    };
    let mut all = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.min(items.len())).map(|_| scope.spawn(run)).collect();
        let mut all = Vec::with_capacity(items.len());
        for thread in threads {
            match thread.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_unstable_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn gives_results_in_order_from_threads_side_by_side() {
        let together = Barrier::new(4);
        let items: Vec<usize> = (0..100).collect();
        let results = each(4, &items, || together.wait(), |_, &item| Some(item * 2));
        assert_eq!(results, (0..200).step_by(2).collect::<Vec<_>>());
        assert!(each(4, &[] as &[usize], || (), |(), _| Some(())).is_empty());
    }

    #[test]
    fn ends_where_nothing_came() {
        let items: Vec<usize> = (0..100).collect();
        let results = each(1, &items, || (), |(), &item| (item < 7).then_some(item));
        assert_eq!(results, (0..7).collect::<Vec<_>>());
    }
}
