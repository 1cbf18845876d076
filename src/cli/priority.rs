//! Doing work only when nobody else wants the disk or a processor.

use std::io;

/// `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` shifted to its place: ioprio_set(2).
const WHO_PROCESS: libc::c_int = 1;
const CLASS_IDLE: libc::c_int = 3 << 13;

/// Makes this thread, and those that it starts from now on, wait for everybody else.
///
/// # Errors
/// The kernel refuses.
pub(super) fn idle() -> io::Result<()> {
    rustix::process::nice(19)?;
    // Nobody wraps this system call. It takes three numbers, and no memory.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
