//! Work that mostly waits for a network, several pieces at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::Error;

/// Does `work` for each item, at most `at_once` at a time; gives what came of it in the items' order.
///
/// # Errors
/// That of the first item, in their order, that failed: whichever comes to its end first. Items behind
/// it may not have been begun.
pub(super) fn each<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let first_failed = AtomicUsize::new(usize::MAX);
    let done: Vec<Mutex<Option<Result<R, Error>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let (work, next, first_failed, done) = (&work, &next, &first_failed, &done);
    thread::scope(|scope| {
        for _ in 0..at_once.min(items.len()) {
            scope.spawn(move || {
                loop {
                    // They are begun in order, so all those before one that failed come to their end.
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(item), true) = (items.get(at), at < first_failed.load(Ordering::Relaxed))
                    else {
                        return;
                    };
                    let result = work(item);
                    if result.is_err() {
                        first_failed.fetch_min(at, Ordering::Relaxed);
                    }
                    *done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    let mut results = Vec::with_capacity(items.len());
    for slot in done {
        match slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Ok(result)) => results.push(result),
            Some(Err(error)) => return Err(error),
            // Only behind one that failed.
            None => break,
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn failed(at: usize) -> Error {
        Error::NoAttestation { image: at.to_string() }
    }

    #[test]
    fn gives_results_in_order_and_works_side_by_side() {
        let items: Vec<usize> = (0..100).collect();
        let together = Barrier::new(4);
        let results = each(&items, 4, |&item| {
            together.wait();
            Ok(item * 2)
        });
        assert_eq!(results.unwrap(), (0..200).step_by(2).collect::<Vec<_>>());
        assert_eq!(each(&[] as &[usize], 4, |_| Ok(())).unwrap(), []);
    }

    #[test]
    fn the_first_failure_in_order_is_the_one_that_is_told() {
        let items: Vec<usize> = (0..50).collect();
        for _ in 0..50 {
            let error = each(&items, 8, |&item| {
                if item == 7 {
                    thread::yield_now();
                }
                if item % 10 == 7 { Err(failed(item)) } else { Ok(()) }
            });
            assert!(matches!(error.unwrap_err(), Error::NoAttestation { image } if image == "7"));
        }
    }
}
