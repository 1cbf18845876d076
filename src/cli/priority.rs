//! Doing work only when nobody else wants the disk or a processor.

use std::io;

use crate::progress::{Event, Phase, Progress};

/// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` shifted to its place: `ioprio_set(2)`.
const WHO_PROCESS: libc::c_int = 1;
const CLASS_IDLE: libc::c_int = 3 << 13;

/// More than there is between the highest and the lowest priority: the kernel stops at the lowest.
const LOWEST: i32 = 40;

/// Makes this thread, and those that it starts from now on, wait for everybody else.
fn give_way() -> io::Result<()> {
    rustix::process::nice(LOWEST)?;
    // Nobody wraps this system call. It takes three numbers, and no memory.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Passes events on, and gives way to everybody once the databases are read: for those, a daemon may be waiting.
pub(super) struct GivingWay<'a> {
    pub(super) inner: &'a dyn Progress,
}

impl Progress for GivingWay<'_> {
    fn event(&self, event: Event) {
        // Told by the thread that starts those that read.
        if let Event::Started(Phase::FirstBuild | Phase::Rest) = event
            && let Err(error) = give_way()
        {
            self.inner.event(Event::Warning(format!("cannot give way to everybody else: {error}")));
        }
        self.inner.event(event);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::progress::Silent;

    #[test]
    fn what_is_started_afterwards_waits_for_everybody_else() {
        let nice = || thread::spawn(|| rustix::process::nice(0).unwrap()).join().unwrap();
        // In a thread of its own, whose priority nobody else has.
        let of_others = thread::spawn(move || {
            let progress = GivingWay { inner: &Silent };
            progress.event(Event::Started(Phase::Databases));
            let before = nice();
            progress.event(Event::Started(Phase::Rest));
            (before, nice())
        });
        let (before, after) = of_others.join().unwrap();
        assert_eq!((before < 19, after), (true, 19));
    }
}
