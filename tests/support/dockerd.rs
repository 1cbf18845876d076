//! A real dockerd with the real buildx, all of its own: data root, sockets, mounts, processes and configuration.
//!
//! It runs in a mount and a process namespace. With its first process everything in them is gone: containers,
//! containerd, mounts. Its files are where the test sees them, too.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::command::{self, Ended, run};
use super::tools::{directory, on_path};
use super::{BuildOutcome, Registry, Scratch, Tools, skip, tools};

const LIMIT: Duration = Duration::from_secs(120);

/// An OCI runtime for machines whose root lacks a capability that privileged containers are given. It takes it out of
/// what docker asks for, in `create --bundle` and in `exec --process`.
const RUNTIME: &str = r#"#!/bin/sh
set -eu
option='' file=''
for word in "$@"; do
	case $option in
	--bundle) file=$word/config.json ;;
	--process) file=$word ;;
	esac
	option=$word
done
if [ -n "$file" ]; then
	jq 'walk(if type == "array" then map(select(. != "CAP_SYS_RESOURCE")) else . end)' "$file" >"$file.less"
	cat "$file.less" >"$file"
	rm "$file.less"
fi
exec runc "$@"
"#;

/// docker on a machine: its files, its configuration, and where it listens.
#[derive(Debug)]
pub struct Docker {
    scratch: Scratch,
    programs: PathBuf,
    child: Option<Child>,
}

impl Docker {
    /// Lays it out; nothing runs yet. `None` when a part is missing, after it said so.
    ///
    /// # Panics
    ///
    /// When one is missing and `WARMKIT_REQUIRE_REAL=1`.
    #[track_caller]
    pub fn find() -> Option<Self> {
        let buildx = tools::buildx()?;
        let programs = directory().unwrap_or_default().join("docker/bin");
        let missing = ["dockerd", "docker", "containerd", "containerd-shim-runc-v2", "docker-init"]
            .iter()
            .map(|name| programs.join(name))
            .find(|program| !program.is_file())
            .or_else(|| {
                ["jq", "unshare"]
                    .map(PathBuf::from)
                    .into_iter()
                    .find(|name| on_path(name.to_str().unwrap()).is_none())
            });
        if let Some(missing) = missing {
            skip::skip(&format!("no {}", missing.display()));
            return None;
        }
        let scratch = Scratch::new();
        scratch.program("runtime", RUNTIME);
        let config = serde_json::json!({
            "data-root": scratch.join("data"),
            "exec-root": scratch.join("exec"),
            "pidfile": scratch.join("pid"),
            "hosts": [format!("unix://{}", scratch.join("sock").display())],
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "runtimes": {"able": {"path": scratch.join("runtime")}},
            "default-runtime": "able",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        });
        scratch.write("etc/docker/daemon.json", config.to_string());
        fs::create_dir_all(scratch.join("config/cli-plugins")).unwrap();
        symlink(buildx, scratch.join("config/cli-plugins/docker-buildx")).unwrap();
        Some(Self { scratch, programs, child: None })
    }

    /// Its data root.
    pub fn data_root(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// Where it has the content of a volume, by its local driver.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.data_root().join("volumes").join(name).join("_data")
    }

    /// Where docker's client is, and the configuration of its user.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let path = std::env::var("PATH").unwrap_or_default();
        [
            // Debian keeps runc where only root looks.
            ("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.programs.display())),
            ("DOCKER_HOST", format!("unix://{}", self.scratch.join("sock").display())),
            ("DOCKER_CONFIG", self.scratch.join("config").display().to_string()),
        ]
    }

    /// Gives them to a command.
    pub fn equip(&self, command: &mut Command) {
        command.envs(self.environment());
        for name in [
            "DOCKER_CONTEXT",
            "DOCKER_TLS_VERIFY",
            "DOCKER_TLS",
            "BUILDX_CONFIG",
            "BUILDX_BUILDER",
            "BUILDKIT_HOST",
        ] {
            command.env_remove(name);
        }
    }

    /// `warmkit` on a machine whose `/etc/docker` is that of this docker.
    pub fn warmkit(&self) -> Command {
        self.warmkit_after(Command::new("unshare"), "")
    }

    /// The same on a machine with nothing else: no other users, processes, or state. dockerd runs.
    #[track_caller]
    pub fn warmkit_alone(&self) -> Command {
        self.scratch.write("etc/passwd", "root:x:0:0::/:/bin/sh\n");
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--target", &self.daemon().to_string(), "unshare"]);
        let mut command = self.warmkit_after(
            command,
            "for directory in /run /var/lib; do mount -t tmpfs tmpfs \"$directory\"; done",
        );
        command.env("HOME", "/").env_remove("SUDO_USER");
        command
    }

    /// `warmkit` after a line of shell, in a mount namespace that `unshare` makes.
    fn warmkit_after(&self, mut unshare: Command, line: &str) -> Command {
        let (etc, work) = (self.scratch.join("etc"), self.scratch.join("etc-work"));
        fs::create_dir_all(&work).unwrap();
        unshare.args(["--mount", "sh", "-euc"]);
        unshare.arg(format!(
            "mount -t overlay overlay -o \"lowerdir=/etc,upperdir=$1,workdir=$2\" /etc; shift 2; {line}\nexec \"$@\""
        ));
        unshare.args(["sh".as_ref(), etc.as_os_str(), work.as_os_str()]).arg(env!("CARGO_BIN_EXE_warmkit"));
        self.equip(&mut unshare);
        unshare.env_remove("SOURCE_DATE_EPOCH");
        unshare
    }

    /// dockerd itself: `unshare` only waits for it.
    #[track_caller]
    fn daemon(&self) -> u32 {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("dockerd does not run")).id();
        let children = fs::read_to_string(format!("/proc/{child}/task/{child}/children")).unwrap();
        let daemon = children.split_whitespace().next().unwrap_or_else(|| panic!("dockerd has ended"));
        daemon.parse().unwrap()
    }

    /// Runs `docker` to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(self.programs.join("docker"));
        self.equip(&mut command);
        run(command.args(arguments), LIMIT)
    }

    /// Runs a line as its user's shell does.
    #[track_caller]
    pub fn shell(&self, line: &str) -> Ended {
        let mut command = Command::new("sh");
        self.equip(&mut command);
        run(command.args(["-euc", line]), LIMIT).expect_success(line)
    }

    /// Starts dockerd, and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.child.is_none());
        let log = fs::File::create(self.scratch.join("log")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
            .arg(self.programs.join("dockerd"))
            .arg("--config-file")
            .arg(self.scratch.join("etc/docker/daemon.json"));
        self.equip(&mut command);
        let log = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(log.spawn().unwrap());
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("dockerd ended: {status}\n{}", self.log());
            }
            let answer = self.run(&["version", "--format", "{{.Server.Version}}"]);
            if answer.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "dockerd does not answer: {}\n{}", answer.stderr, self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops dockerd with all its containers, as an operator does, and waits until it is gone.
    #[track_caller]
    pub fn stop(&mut self) {
        let daemon = Pid::from_raw(self.daemon().cast_signed()).unwrap();
        kill_process(daemon, Signal::TERM).unwrap();
        let mut child = self.child.take().unwrap();
        let status = command::wait(&mut child, LIMIT);
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("dockerd did not stop\n{}", self.log());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.scratch.path().to_str().unwrap()), "dockerd left mounts\n{mounts}");
    }

    /// What it logged since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }

    /// Makes the image of a builder from the real programs, under a name that no registry serves; gives what
    /// `docker buildx create` needs to use it.
    #[track_caller]
    pub fn builder_options(&self, tools: &Tools, registry: &Registry) -> String {
        let image = registry.reference("moby/buildkit", &tools.release);
        let tree = self.scratch.join("image");
        let programs = [&tools.buildkitd, &tools.buildctl, &on_path("runc").unwrap(), &tools.busybox];
        let mut files = BTreeSet::new();
        for program in programs {
            files.extend(libraries(program));
            put(program, &tree.join("usr/bin").join(program.file_name().unwrap()));
        }
        for file in files {
            put(&file, &tree.join(file.strip_prefix("/").unwrap()));
        }
        fs::create_dir_all(tree.join("tmp")).unwrap();
        self.shell(&format!(
            "tar -C '{}' -c . | docker import --change 'ENTRYPOINT [\"buildkitd\"]' - {image}",
            tree.display()
        ));
        fs::remove_dir_all(&tree).unwrap();
        let config = format!("[registry.{:?}]\n  http = true\n", registry.host());
        let config = self.scratch.write("buildkitd.toml", config);
        format!("--driver-opt image={image},network=host --buildkitd-config {}", config.display())
    }

    /// `docker buildx build` of a context, with the result as a tar.
    #[track_caller]
    pub fn build(&self, builder: &str, base: &str, context: &Path) -> BuildOutcome {
        let tar = self.scratch.join("result.tar");
        let output = format!("--output=type=tar,dest={}", tar.display());
        let builder = format!("--builder={builder}");
        let base = format!("--build-arg=BASE={base}");
        let context = context.to_str().unwrap();
        let ended = self.run(&["buildx", "build", &builder, "--progress=plain", &base, &output, context]);
        BuildOutcome::parse(&ended.expect_success("docker buildx build").stderr)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Only a test that panics has left it running: its namespaces go with it.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Copies a file without what it would lead to.
fn put(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// The libraries that a program is linked with, and its loader.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let said = run(Command::new("ldd").arg(program), LIMIT);
    // A static program has none, which ldd calls a failure.
    said.stdout.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
