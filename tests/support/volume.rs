//! File systems of their own, on loop devices that count what is read and written.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{statvfs, syncfs};
use serde::Serialize;

use super::Scratch;
use super::command::run;
use super::lazy::{Lazy, Slowness};
use super::skip::{is_root, skip};
use super::tools::on_path;

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: u64 = 512 << 20;

/// A file with a file system in it. Unmounted, and gone, when dropped.
#[derive(Debug)]
pub struct Volume {
    image: PathBuf,
    path: PathBuf,
    kind: &'static str,
    /// Name of the loop device, while it is mounted.
    device: Option<String>,
    /// What the loop device stands on, where that is not the image itself.
    lazy: Option<Lazy>,
}

/// What is on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Bytes of the blocks in use.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

#[track_caller]
fn succeed(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments), LIMIT).expect_success(program).stdout.trim().to_owned()
}

impl Volume {
    /// Makes a file system of this kind, with these options of its mkfs.
    ///
    /// `None` when something is missing, after it said what; the test is then to return.
    #[track_caller]
    pub fn make(scratch: &Scratch, kind: &'static str, options: &[&str]) -> Option<Self> {
        Self::make_sized(scratch, kind, kind, SIZE, options)
    }

    /// As [`Volume::make`], by a name and of a size of its own.
    #[track_caller]
    pub fn make_sized(
        scratch: &Scratch,
        name: &str,
        kind: &'static str,
        bytes: u64,
        options: &[&str],
    ) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let mkfs = format!("mkfs.{kind}");
        for program in ["losetup", "mount", &mkfs] {
            if on_path(program).is_none() {
                skip(&format!("no {program} in $PATH"));
                return None;
            }
        }
        let volume = Self::named(scratch, name, kind);
        fs::File::create(&volume.image).unwrap().set_len(bytes).unwrap();
        succeed(&mkfs, &[&["-q"], options, &[volume.image.to_str().unwrap()]].concat());
        Some(volume)
    }

    fn named(scratch: &Scratch, name: &str, kind: &'static str) -> Self {
        let path = scratch.join(format!("{name}.mnt"));
        fs::create_dir_all(&path).unwrap();
        Self { image: scratch.join(format!("{name}.img")), path, kind, device: None, lazy: None }
    }

    /// Another one with the blocks of this one at this moment, as a snapshot of a disk has them: not what the file
    /// system, where it is mounted, has still to write.
    #[track_caller]
    pub fn snapshot(&self, scratch: &Scratch, name: &str) -> Self {
        let copy = Self::named(scratch, name, self.kind);
        succeed("cp", &["--sparse=always", self.image.to_str().unwrap(), copy.image.to_str().unwrap()]);
        copy
    }

    /// From now on it is a volume that was made from a snapshot, of this one as it is.
    #[track_caller]
    pub fn fetch_lazily(&mut self, slowness: Slowness) {
        self.lazy = Some(Lazy::mount(&self.image, self.image.with_extension("lazy"), slowness));
    }

    /// Blocks of it that had to be fetched so far.
    pub fn fetched(&self) -> u64 {
        self.lazy.as_ref().unwrap().fetched()
    }

    /// Mounts it; nothing of it is in memory then.
    #[track_caller]
    pub fn mount(&mut self, options: &str) {
        let backing = self.lazy.as_ref().map_or(self.image.as_path(), Lazy::path).to_str().unwrap();
        // Several requests at a time go through to the file only where they are direct.
        let direct: &[&str] = if self.lazy.is_some() { &["--direct-io=on"] } else { &[] };
        let device = succeed("losetup", &[direct, &["--find", "--show", backing]].concat());
        // Whoever looks at new devices has looked.
        if on_path("udevadm").is_some() {
            run(Command::new("udevadm").arg("settle"), LIMIT);
        }
        let path = self.path.to_str().unwrap();
        let mounted = run(Command::new("mount").args(["-t", self.kind, "-o", options, &device, path]), LIMIT);
        if !mounted.status.success() {
            run(Command::new("losetup").args(["-d", &device]), LIMIT);
        }
        mounted.expect_success("mount");
        self.device = Some(device.trim_start_matches("/dev/").to_owned());
    }

    /// Unmounts it.
    #[track_caller]
    pub fn unmount(&mut self) {
        let device = self.device().display().to_string();
        succeed("umount", &[self.path.to_str().unwrap()]);
        succeed("losetup", &["-d", &device]);
        self.device = None;
    }

    /// Has all that was written so far on the disk, while it is mounted.
    pub fn sync(&self) {
        syncfs(fs::File::open(&self.path).unwrap()).unwrap();
    }

    /// What is on it while it is mounted.
    pub fn used(&self) -> Used {
        // What is not written yet has no blocks yet.
        self.sync();
        let of = statvfs(&self.path).unwrap();
        Used { bytes: (of.f_blocks - of.f_bfree) * of.f_frsize, inodes: of.f_files - of.f_ffree }
    }

    /// Its device, while it is mounted.
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(self.device.as_ref().unwrap())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that were read from it since it was mounted, by anybody.
    #[track_caller]
    pub fn bytes_read(&self) -> u64 {
        // The kernel's Documentation/block/stat.rst: the third number is sectors of 512 bytes.
        let stat = fs::read_to_string(format!("/sys/block/{}/stat", self.device.as_ref().unwrap())).unwrap();
        stat.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap() * 512
    }

    /// Bytes of its blocks that were ever written, and not discarded.
    pub fn stored(&self) -> u64 {
        fs::metadata(&self.image).unwrap().blocks() * 512
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            run(Command::new("umount").arg("-l").arg(&self.path), LIMIT);
            run(Command::new("losetup").args(["-d", &format!("/dev/{device}")]), LIMIT);
        }
        let _ = fs::remove_file(&self.image);
    }
}
