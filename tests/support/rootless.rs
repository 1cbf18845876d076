//! A plain user of this machine, who runs a daemon of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use warmkit::userns::{IdMap, Owners, read_subordinate_ids};

use super::command::run;
use super::{Scratch, Tools, files, skip};

/// Enough for the owners of the base image: more users than those that there are, and other groups than these, for
/// nothing says that a user and a group of the same number are shifted alike.
const MORE_USERS: &str = "100000000-105000000";
const GROUPS: &str = "200000000-206000000";
/// All ids that there can be.
const ALL: &str = "0-4294967294";

/// Runs a program that has another `/dev/fuse`.
const WITH_FUSE: &str = "mount --bind \"$0\" /dev/fuse\nexec \"$@\"\n";

/// A user that was made for one test, with a home and subordinate ids; gone when dropped.
#[derive(Debug)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its number, and its group's.
    pub id: u32,
    /// Its home, which it can reach.
    pub home: Scratch,
    programs: PathBuf,
    /// What it has as `/dev/fuse`, if not what is there.
    fuse: Option<PathBuf>,
}

impl User {
    /// Makes one who can run the daemon of `tools`; `None` where a part is missing, after it said which.
    #[track_caller]
    pub fn make(tools: &Tools) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for program in ["rootlesskit", "newuidmap", "useradd"] {
            if super::tools::on_path(program).is_none() {
                skip::skip(&format!("no {program} in $PATH"));
                return None;
            }
        }
        // Where it is on a tmpfs, a daemon of a plain user mounts no overlay that can have marks.
        let home = Scratch::on_disk();
        let name = format!("wk{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut add = Command::new("useradd");
        add.args(["--no-create-home", "--user-group", "--shell", "/bin/sh", "--home-dir"]);
        retry(add.arg(home.path()).arg(&name));
        let entry = fs::read_to_string("/etc/passwd").unwrap();
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let id = entry.lines().map(fields).find(|fields| fields[0] == name).unwrap()[2].parse().unwrap();
        let programs = home.join("bin");
        let user = Self { name, id, home, programs, fuse: None };
        fs::set_permissions(user.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in [user.home.path(), &user.programs, &user.runtime()] {
            fs::create_dir_all(directory).unwrap();
            user.owns(directory);
        }
        for program in [&tools.buildkitd, &tools.buildctl] {
            files::install(program, &user.programs.join(program.file_name().unwrap()));
        }
        Some(user)
    }

    /// Gives it ids for the large ones that odd layers have.
    #[must_use]
    pub fn with_more_ids(self) -> Self {
        let mut more = Command::new("usermod");
        more.args(["--add-subuids", MORE_USERS, "--del-subgids", ALL, "--add-subgids", GROUPS]);
        retry(more.arg(&self.name));
        self
    }

    /// Lets its daemons mount file systems in user space, where udev has not.
    #[must_use]
    pub fn with_fuse(mut self) -> Self {
        let device = fs::metadata("/dev/fuse").unwrap();
        if device.mode() & 0o006 != 0o006 {
            let node = self.home.join("fuse");
            let mode = Mode::from_raw_mode(0o666);
            mknodat(CWD, &node, FileType::CharacterDevice, mode, device.rdev()).unwrap();
            fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
            self.fuse = Some(node);
        }
        self
    }

    /// Takes all of its subordinate ids away.
    #[must_use]
    pub fn without_ids(self) -> Self {
        let mut less = Command::new("usermod");
        less.args(["--del-subuids", ALL, "--del-subgids", ALL]);
        retry(less.arg(&self.name));
        self
    }

    fn runtime(&self) -> PathBuf {
        self.home.join("run")
    }

    /// Gives it a file or directory.
    pub fn owns(&self, path: &Path) {
        chown(path, Some(self.id), Some(self.id)).unwrap();
    }

    /// A program of whoever runs the test, where `/dev/fuse` is the user's.
    pub fn beside(&self, program: &str) -> Command {
        let Some(node) = &self.fuse else { return Command::new(program) };
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", WITH_FUSE]).arg(node).arg(program);
        command
    }

    /// A program that it runs as root of a user namespace, with its subordinate ids.
    pub fn in_namespace(&self, program: &str) -> Command {
        let mut command = self.beside("setpriv");
        command.args(["--reuid", &self.name, "--regid", &self.name, "--init-groups", "--"]);
        command.args(["rootlesskit", "--net=host", "--copy-up=/etc", "--copy-up=/run", program]);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("HOME", self.home.path())
            .env("USER", &self.name)
            .env("XDG_RUNTIME_DIR", self.runtime());
        command.env_remove("TMPDIR").env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
        command
    }

    /// warmkit, where it may run it.
    pub fn warmkit(&self) -> String {
        let copy = self.programs.join("warmkit");
        files::install(Path::new(env!("CARGO_BIN_EXE_warmkit")), &copy);
        copy.display().to_string()
    }

    /// Whose the files of its roots are, seen from outside.
    pub fn owners(&self) -> Owners {
        let map = |file: &str| {
            IdMap::rootless(self.id, &read_subordinate_ids(Path::new(file), &self.name, self.id).unwrap())
        };
        Owners::Namespace { users: map("/etc/subuid"), groups: map("/etc/subgid") }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        retry(Command::new("userdel").arg(&self.name));
    }
}

/// Another test may have the files of the users locked, and what the user ran may not be gone yet.
#[track_caller]
fn retry(command: &mut Command) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ended = run(command, Duration::from_secs(60));
        if ended.status.success() {
            return;
        }
        let passes = ended.stderr.contains("lock") || ended.stderr.contains("currently used");
        assert!(passes && Instant::now() < deadline, "{command:?}: {}", ended.stderr);
        std::thread::sleep(Duration::from_millis(100));
    }
}
