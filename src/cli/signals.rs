//! Ending on a signal.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::exit::{self, Failure};
use super::output::Output;
use super::progress::{Shown, take_down};
use crate::source::Stop;

/// Those that ask a process to end. A terminal that goes away is one of them, but not under `nohup`.
fn signals() -> Vec<i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = if ignores(&status, SIGHUP) { &[SIGINT, SIGTERM] as &[i32] } else { &[SIGINT, SIGTERM, SIGHUP] };
    of.to_vec()
}

/// Whether a process that has this `/proc/<pid>/status` was started with `signal` ignored: proc(5), `SigIgn`.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

/// How a signal ends the process: at once, until there is something to undo.
pub(super) struct Ending {
    orderly: Arc<AtomicBool>,
    interrupted: Arc<AtomicBool>,
    stop: Stop,
}

impl Ending {
    /// From now on the first signal only makes this flag true. The second one ends the process at once, in case the
    /// first does not get through.
    pub(super) fn in_order(&self) -> Arc<AtomicBool> {
        self.orderly.store(true, Ordering::SeqCst);
        Arc::clone(&self.interrupted)
    }
}

/// Ends the process on a signal, with the message and the exit code for that.
pub(super) fn end_on_signal(output: Output, progress: Shown) -> Result<Ending, Failure> {
    let mut signals = Signals::new(signals())
        .map_err(|error| Failure::new(format!("cannot handle signals: {error}"), exit::FAILURE))?;
    let interrupted: Arc<AtomicBool> = Arc::default();
    let stop = Stop::on_flag(Arc::clone(&interrupted));
    let ending = Ending { orderly: Arc::default(), interrupted, stop: stop.clone() };
    let (orderly, interrupted) = (Arc::clone(&ending.orderly), Arc::clone(&ending.interrupted));
    thread::spawn(move || {
        for _ in signals.forever() {
            if !orderly.load(Ordering::SeqCst) || interrupted.swap(true, Ordering::SeqCst) {
                take_down();
                std::process::exit(i32::from(progress.failure(output, &by_signal())));
            }
            // Also cuts connections, so that nothing waits for a server any longer.
            stop.stop();
        }
    });
    Ok(ending)
}

/// Does `work` with a switch that a signal throws. When it then ends with an error, that is the reason.
pub(super) fn interruptible<T>(
    output: Output,
    progress: Shown,
    work: impl FnOnce(Stop) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let ending = end_on_signal(output, progress)?;
    ending.in_order();
    let result = work(ending.stop.clone());
    result.map_err(|error| if ending.stop.is_stopped() { by_signal() } else { error })
}

fn by_signal() -> Failure {
    Failure::new("interrupted", exit::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_ignored() {
        let status = "Name:\twarmkit\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!([SIGHUP, SIGINT, SIGTERM].map(|signal| ignores(status, signal)), [true, false, false]);
        assert!(!ignores("", SIGHUP));
    }
}
