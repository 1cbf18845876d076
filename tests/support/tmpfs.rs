//! A small disk: a tmpfs of so many bytes and inodes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A tmpfs, unmounted when this is dropped.
#[derive(Debug)]
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    /// Mounts one at a directory that it makes, with options as `mount` takes them: `size=2m,nr_inodes=50`.
    #[track_caller]
    pub fn new(path: PathBuf, options: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success(), "no tmpfs can be mounted at {}", path.display());
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
