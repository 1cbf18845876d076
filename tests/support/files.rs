//! Scratch directories, and what is done to the files in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use warmkit::digest::Digest;

/// A directory that is gone when this is dropped, unless `WARMKIT_KEEP=1`.
///
/// On tmpfs where one is at hand: a root has thousands of small files, and overlayfs works
/// on it. Its path is short, since it holds sockets, whose paths end at 107 bytes.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes one.
    pub fn new() -> Self {
        let enough = 2 << 30;
        let shm = Path::new("/dev/shm");
        let roomy = rustix::fs::statvfs(shm).is_ok_and(|s| s.f_bavail * s.f_frsize > enough);
        Self::within(&if roomy { shm.to_owned() } else { std::env::temp_dir() })
    }

    /// Makes one on the disk: not every file system does what is needed there.
    pub fn on_disk() -> Self {
        Self::within(Path::new("/var/tmp"))
    }

    fn within(parent: &Path) -> Self {
        let mut dir = tempfile::Builder::new().prefix("wk-").tempdir_in(parent).unwrap();
        dir.disable_cleanup(std::env::var_os("WARMKIT_KEEP").is_some_and(|v| v == "1"));
        Self(dir)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` in it; nothing is made.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes the file `name` in it.
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes the program `name` in it.
    pub fn program(&self, name: impl AsRef<Path>, script: impl AsRef<[u8]>) -> PathBuf {
        let program = self.join(name.as_ref());
        install(&self.write(name.as_ref().with_extension("draft"), script), &program);
        program
    }
}

/// Copies a program to where it is to run.
///
/// By a process of its own: of what this one has open to write, every child that another thread starts meanwhile has
/// a copy for a moment, and a file that somebody may write to does not run (`ETXTBSY`).
pub fn install(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755", "--"]).arg(from).arg(to).status().unwrap();
    assert!(status.success(), "install {}", to.display());
}

/// Copies the files and directories below `from` to `to`, with their modes.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Everything that can be told of a directory and all below it but times of access, with a digest of the bytes of each file.
pub fn listing(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let (owner, device) = ((found.uid(), found.gid()), found.rdev());
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        let facts = (found.ino(), found.nlink(), found.mode(), owner, device, found.size(), times);
        let content = found.is_file().then(|| digest_of(&path));
        all.insert(path, format!("{facts:?} {content:?}"));
    }
    all
}

/// The digest of a file's bytes.
pub fn digest_of(path: &Path) -> Digest {
    let mut hasher = warmkit::digest::Hasher::new();
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return Digest::from_bytes(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
