//! How much of what a thread read came from the disk: proc(5), `/proc/<pid>/io`, `read_bytes`.
//!
//! It is the kernel that counts, when it hands a request to the disk. So what was in memory already costs nothing,
//! and directories, inodes and what was read ahead are counted, too.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// The account of the thread that opened it.
#[derive(Debug)]
pub(super) struct Account {
    /// None where the kernel keeps no accounts.
    file: Option<File>,
    /// What it had taken when it was last asked.
    taken: u64,
}

impl Account {
    /// Opens that of this thread.
    pub(super) fn open() -> Self {
        let mut account = Self { file: File::open("/proc/thread-self/io").ok(), taken: 0 };
        account.since_last();
        account
    }

    /// Bytes that this thread had the disk read since the last call; none where nobody counts.
    pub(super) fn since_last(&mut self) -> Option<u64> {
        let mut buffer = [0; 512];
        let read = self.file.as_ref()?.read_at(&mut buffer, 0).ok()?;
        let now = read_bytes(std::str::from_utf8(&buffer[..read]).ok()?)?;
        let taken = now.saturating_sub(self.taken);
        self.taken = now;
        Some(taken)
    }
}

fn read_bytes(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        let io = "rchar: 6976\nwchar: 0\nsyscr: 10\nsyscw: 0\nread_bytes: 8192\nwrite_bytes: 4096\n";
        assert_eq!(read_bytes(io), Some(8192));
        for bad in ["", "read_bytes: x", "cancelled_read_bytes: 1"] {
            assert_eq!(read_bytes(bad), None, "{bad}");
        }
    }
}
