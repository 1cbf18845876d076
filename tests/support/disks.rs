//! Disks as machine images have them: ext4 in a file, mounted by a loop device.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use serde::Serialize;

use super::command::run;

const LIMIT: Duration = Duration::from_secs(120);

/// A disk, as the file that has its blocks. Blocks that were never written are holes.
///
/// Of 64 GB: garbage collection's default limits go by the size of the disk, and are then far away.
#[derive(Debug)]
pub struct Disk {
    file: PathBuf,
}

/// A disk that is mounted, until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    read_before: u64,
}

/// What is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Bytes of the blocks in use.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

impl Disk {
    /// Makes one with an empty file system.
    #[track_caller]
    pub fn format(file: &Path) -> Self {
        fs::File::create(file).unwrap().set_len(64_000_000_000).unwrap();
        let mut mke2fs = Command::new("mke2fs");
        // Nothing is written but what is used: no tables, no journal of zeros.
        let lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        mke2fs.args(["-q", "-t", "ext4", "-m", "0", "-J", "size=64", "-E", lazy]).arg(file);
        run(&mut mke2fs, LIMIT).expect_success("mke2fs");
        Self { file: file.to_owned() }
    }

    /// Mounts it.
    #[track_caller]
    pub fn mount(&self, point: &Path) -> Mounted {
        fs::create_dir_all(point).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop,noinit_itable"]).arg(&self.file).arg(point);
        run(&mut mount, LIMIT).expect_success("mount of a loop device");
        let mut mounted = Mounted { point: point.to_owned(), read_before: 0 };
        mounted.read_before = mounted.read_ever();
        mounted
    }

    /// Another disk with the blocks of this one at this moment, as a snapshot takes them: what a file system that is
    /// mounted has not written yet is not among them.
    #[track_caller]
    pub fn snapshot(&self, file: &Path) -> Self {
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").arg(&self.file).arg(file);
        run(&mut copy, LIMIT).expect_success("cp of a disk");
        Self { file: file.to_owned() }
    }

    /// Discards the blocks that no file has, and says how many bytes of them had been written.
    #[track_caller]
    pub fn trim(&self, point: &Path) -> u64 {
        let before = self.written();
        let mounted = self.mount(point);
        run(Command::new("fstrim").arg(point), LIMIT).expect_success("fstrim");
        drop(mounted);
        before.saturating_sub(self.written())
    }

    /// Bytes of the blocks that were written, and not discarded.
    pub fn written(&self) -> u64 {
        fs::metadata(&self.file).unwrap().blocks() * 512
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// What is on it.
    pub fn used(&self) -> Used {
        // Only what was written has been given its blocks.
        let directory = fs::File::open(&self.point).unwrap();
        rustix::fs::syncfs(&directory).unwrap();
        let of = rustix::fs::statvfs(&self.point).unwrap();
        Used { bytes: (of.f_blocks - of.f_bfree) * of.f_frsize, inodes: of.f_files - of.f_ffree }
    }

    /// Bytes read from the disk since it was mounted.
    pub fn read(&self) -> u64 {
        self.read_ever() - self.read_before
    }

    /// Bytes read from its loop device, whatever was in it.
    fn read_ever(&self) -> u64 {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.point.to_str().unwrap();
        let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(point)).unwrap();
        let device = line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap();
        let name = device.strip_prefix("/dev/").unwrap();
        let statistics = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        // Reads, reads merged, sectors of 512 bytes read, …
        statistics.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap() * 512
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if unmount(&self.point, UnmountFlags::empty()).is_err() {
            // A test that panics may have left something there.
            let _ = unmount(&self.point, UnmountFlags::DETACH);
        }
    }
}
