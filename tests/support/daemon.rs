//! A real buildkitd on a root of the test's choice.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::command::{self, run};
use super::rootless::User;
use super::{BuildOutcome, BuildRequest, Registry, Scratch, Tools};

/// The databases of a root that its daemon must find, and leave, free of faults.
pub const DATABASES: [&str; 4] = [
    "cache.db",
    "runc-overlayfs/metadata_v2.db",
    "runc-overlayfs/containerdmeta.db",
    "runc-overlayfs/snapshots/metadata.db",
];

/// Runs a program as on another machine, once it has namespaces of its own; first comes a file for the machine's id.
const ELSEWHERE: &str = "\
    echo elsewhere >/proc/sys/kernel/hostname\n\
    tr -d - </proc/sys/kernel/random/uuid >\"$1\"\n\
    [ ! -e /etc/machine-id ] || mount --bind \"$1\" /etc/machine-id\n\
    shift\n\
    exec \"$@\"\n";

/// Runs a daemon without the argument `--config`: the file is where it looks by itself, without its root.
const UNTOLD: &str = "\
    mkdir -p \"$XDG_CONFIG_HOME/buildkit\"\n\
    sed '/^root = /d' \"$2\" >\"$XDG_CONFIG_HOME/buildkit/buildkitd.toml\"\n\
    exec buildkitd\n";

/// The snapshotter that daemons have unless a test wants another.
const OVERLAYFS: &str = "overlayfs";

/// A running daemon. Garbage collection runs as it does by default.
#[derive(Debug)]
pub struct Daemon {
    tools: Tools,
    child: Option<Child>,
    root: PathBuf,
    scratch: Scratch,
}

/// One record as `buildctl du` gives it.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct DiskUsage {
    /// Record id.
    pub id: String,
    /// Whether it may still change (a local source, a cache mount).
    #[serde(default)]
    pub mutable: bool,
    /// Bytes of its snapshot and blobs.
    #[serde(default)]
    pub size: i64,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// `regular`, `source.local`, `exec.cachemount`, …
    #[serde(default, alias = "type")]
    pub record_type: String,
    /// Ids of the records it stands on.
    #[serde(default)]
    pub parents: Option<Vec<String>>,
}

impl Daemon {
    /// Starts one of `tools`' release on `root`, and waits until it answers.
    #[track_caller]
    pub fn start(tools: &Tools, root: &Path, registry: &Registry) -> Self {
        Self::start_with(tools, root, &[registry])
    }

    /// As [`Daemon::start`], with several registries.
    #[track_caller]
    pub fn start_with(tools: &Tools, root: &Path, registries: &[&Registry]) -> Self {
        let registries = http_registries(registries);
        Self::launch(tools, Command::new(&tools.buildkitd), root, &registries, OVERLAYFS, "")
            .unwrap_or_else(|said| panic!("{said}"))
    }

    /// As [`Daemon::start`], with another snapshotter than overlayfs.
    #[track_caller]
    pub fn start_on(tools: &Tools, root: &Path, registry: &Registry, snapshotter: &str) -> Self {
        let registries = http_registries(&[registry]);
        Self::launch(tools, Command::new(&tools.buildkitd), root, &registries, snapshotter, "")
            .unwrap_or_else(|said| panic!("{said}"))
    }

    /// As [`Daemon::start_on`], run by a plain user.
    #[track_caller]
    pub fn start_rootless(
        tools: &Tools,
        root: &Path,
        registry: &Registry,
        snapshotter: &str,
        user: &User,
    ) -> Self {
        Self::run_by(user, user.in_namespace("buildkitd"), tools, root, registry, snapshotter)
    }

    #[track_caller]
    fn run_by(
        user: &User,
        program: Command,
        tools: &Tools,
        root: &Path,
        registry: &Registry,
        snapshotter: &str,
    ) -> Self {
        let registries = http_registries(&[registry]);
        let scratch = Scratch::new();
        user.owns(scratch.path());
        let workers = oci_worker(snapshotter, "rootless = true\n  noProcessSandbox = true");
        Self::launch_in(scratch, tools, program, root, &registries, &workers, true)
            .unwrap_or_else(|said| panic!("{said}"))
    }

    /// As [`Daemon::start_rootless`], of a user who has these variables, among them `$XDG_CONFIG_HOME`, and tells it
    /// nothing: its configuration is where it looks for it, and says no root.
    #[track_caller]
    pub fn start_untold(
        tools: &Tools,
        root: &Path,
        registry: &Registry,
        snapshotter: &str,
        user: &User,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut program = user.in_namespace("sh");
        program.args(["-euc", UNTOLD, "sh"]).envs(variables.iter().copied());
        Self::run_by(user, program, tools, root, registry, snapshotter)
    }

    /// As [`Daemon::start`], with its layers in the containerd that `worker` says: lines of `[worker.containerd]`.
    #[track_caller]
    pub fn start_on_containerd(tools: &Tools, root: &Path, registry: &Registry, worker: &str) -> Self {
        let program = Command::new(&tools.buildkitd);
        let workers =
            format!("[worker.oci]\n  enabled = false\n[worker.containerd]\n  enabled = true\n{worker}\n");
        let registries = http_registries(&[registry]);
        Self::launch_in(Scratch::new(), tools, program, root, &registries, &workers, false)
            .unwrap_or_else(|said| panic!("{said}"))
    }

    /// Starts one that collects as `worker` says, which goes on where `[worker.oci]` has begun.
    #[track_caller]
    pub fn start_collecting(tools: &Tools, root: &Path, worker: &str) -> Self {
        Self::launch(tools, Command::new(&tools.buildkitd), root, "", OVERLAYFS, worker)
            .unwrap_or_else(|said| panic!("{said}"))
    }

    /// As [`Daemon::start`] on another machine: it sees another hostname and another machine id, and no network
    /// at all unless `network`. Collects as `worker` says, where that is not empty. What it said, where it ends instead.
    pub fn start_elsewhere(
        tools: &Tools,
        root: &Path,
        registry: &Registry,
        network: bool,
        worker: &str,
    ) -> Result<Self, String> {
        let id = Scratch::new();
        let mut program = Command::new("unshare");
        program.args(["--uts", "--mount"]).args((!network).then_some("--net"));
        program.args(["sh", "-euc", ELSEWHERE, "sh"]).arg(id.join("machine-id")).arg(&tools.buildkitd);
        // What it has mounted it has still when the file is gone.
        Self::launch(tools, program, root, &http_registries(&[registry]), OVERLAYFS, worker)
    }

    fn launch(
        tools: &Tools,
        program: Command,
        root: &Path,
        registries: &str,
        snapshotter: &str,
        worker: &str,
    ) -> Result<Self, String> {
        // What was collected is said to those only who debug.
        let (workers, debug) = (oci_worker(snapshotter, worker), !worker.is_empty());
        Self::launch_in(Scratch::new(), tools, program, root, registries, &workers, debug)
    }

    /// Starts the program with a configuration, and waits until it answers; what it said, where it does not.
    fn launch_in(
        scratch: Scratch,
        tools: &Tools,
        mut program: Command,
        root: &Path,
        registries: &str,
        workers: &str,
        debug: bool,
    ) -> Result<Self, String> {
        // Two daemons of one host would share the default of the tracing socket.
        let config = format!(
            "root = \"{root}\"\ndebug = {debug}\n\
             [grpc]\n  address = [\"unix://{socket}\"]\n\
             [otel]\n  socketPath = \"{otel}\"\n\
             {workers}{registries}",
            root = root.display(),
            socket = scratch.join("sock").display(),
            otel = scratch.join("otel.sock").display(),
        );
        let config = scratch.write("buildkitd.toml", config);
        let log = fs::File::create(scratch.join("log")).unwrap();
        let child = program
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { tools: tools.clone(), child: Some(child), root: root.to_owned(), scratch };
        // It may have to wait for its disk, and for everybody else.
        let limit = Duration::from_secs(120);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = daemon.child.as_mut().unwrap().try_wait().unwrap() {
                return Err(format!("buildkitd {} ended: {status}\n{}", tools.release, daemon.log()));
            }
            let answer = run(daemon.buildctl().args(["debug", "workers"]), limit);
            if answer.status.success() {
                return Ok(daemon);
            }
            if Instant::now() > deadline {
                return Err(format!("buildkitd does not answer: {}\n{}", answer.stderr, daemon.log()));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has it collect what nothing holds: that is what a prune ends with, and this one is for no record.
    #[track_caller]
    pub fn collect(&self) {
        let mut command = self.buildctl();
        command.args(["prune", "--filter", "id==none"]);
        run(&mut command, Duration::from_secs(60)).expect_success("buildctl prune");
    }

    /// Waits until it has collected garbage, and found some; for those of [`Daemon::start_collecting`].
    #[track_caller]
    pub fn wait_until_collected(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.log().contains("gc cleaned up") {
            assert!(Instant::now() < deadline, "nothing was collected\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The text of its configuration.
    pub fn configuration(&self) -> String {
        fs::read_to_string(self.scratch.join("buildkitd.toml")).unwrap()
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where clients reach it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.scratch.join("sock").display())
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }

    /// The lines of its log that report an error.
    pub fn logged_errors(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|l| l.contains("level=error") || l.contains("level=fatal"))
            .map(str::to_owned)
            .collect()
    }

    /// Its client.
    pub fn buildctl(&self) -> Command {
        let mut command = Command::new(&self.tools.buildctl);
        command.arg("--addr").arg(self.address());
        command
    }

    /// Builds, and panics when that fails.
    #[track_caller]
    pub fn build(&self, request: &BuildRequest) -> BuildOutcome {
        match self.try_build(request) {
            Ok(outcome) => outcome,
            Err(log) => panic!("build on {} failed:\n{log}\n--- daemon\n{}", self.tools.release, self.log()),
        }
    }

    /// Builds; what it said where that fails.
    #[track_caller]
    pub fn try_build(&self, request: &BuildRequest) -> Result<BuildOutcome, String> {
        let mut command = self.buildctl();
        request.arguments(&mut command);
        let ended = run(&mut command, Duration::from_secs(300));
        if ended.status.success() { Ok(BuildOutcome::parse(&ended.stderr)) } else { Err(ended.stderr) }
    }

    /// Every record, as `buildctl du` gives it.
    #[track_caller]
    pub fn disk_usage(&self) -> Vec<DiskUsage> {
        let mut command = self.buildctl();
        command.args(["du", "--format", "{{json .}}"]);
        let ended = run(&mut command, Duration::from_secs(60)).expect_success("buildctl du");
        serde_json::from_str::<Option<Vec<DiskUsage>>>(&ended.stdout)
            .unwrap_or_else(|e| panic!("buildctl du gave no list of records: {e}\n{}", ended.stdout))
            .unwrap_or_default()
    }

    /// What `buildctl du --verbose` prints.
    #[track_caller]
    pub fn du_verbose(&self) -> String {
        let mut command = self.buildctl();
        command.args(["du", "--verbose"]);
        run(&mut command, Duration::from_secs(60)).expect_success("buildctl du --verbose").stdout
    }

    /// Deletes every record.
    #[track_caller]
    pub fn prune_all(&self) {
        let mut command = self.buildctl();
        command.args(["prune", "--all"]);
        run(&mut command, Duration::from_secs(120)).expect_success("buildctl prune --all");
    }

    /// Copies its root as it is at one moment: what a kill would have left then.
    #[track_caller]
    pub fn copy_root(&self, to: &Path) {
        let child = self.child.as_ref().unwrap();
        signal(child, Signal::STOP);
        while !is_stopped(child.id()) {
            thread::sleep(Duration::from_millis(1));
        }
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&self.root).arg(to);
        let copied = run(&mut copy, Duration::from_secs(60));
        signal(child, Signal::CONT);
        copied.expect_success("cp -a");
    }

    /// Stops it as an operator does, waits until it is gone, and gives its log.
    #[track_caller]
    pub fn stop(mut self) -> String {
        let mut child = self.child.take().unwrap();
        signal(&child, Signal::TERM);
        let status = command::wait(&mut child, Duration::from_secs(60));
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("buildkitd did not stop\n{}", self.log());
        }
        self.log()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only reached by a test that panics or forgot to stop it: gently first, since it
        // holds mounts.
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::TERM);
            if command::wait(&mut child, Duration::from_secs(20)).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// The part of the configuration that has an OCI worker, and goes on with `more`.
fn oci_worker(snapshotter: &str, more: &str) -> String {
    format!(
        "[worker.oci]\n  enabled = true\n  snapshotter = \"{snapshotter}\"\n{more}\n\
         [worker.containerd]\n  enabled = false\n"
    )
}

/// The part of the configuration that lets a daemon speak plain http to them.
fn http_registries(registries: &[&Registry]) -> String {
    registries
        .iter()
        .fold(String::new(), |text, r| format!("{text}[registry.{:?}]\n  http = true\n", r.host()))
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Whether no thread of the process runs any more: each first ends the system call that it is in.
fn is_stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok()).all(|stat| {
        // The state stands after the name, which may have spaces and parentheses in it.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}

/// Runs bbolt's own check on all four databases of a root that no daemon holds.
#[track_caller]
pub fn check_databases(tools: &Tools, root: &Path) {
    let mut command = Command::new(&tools.bbolt_check);
    command.args(DATABASES.map(|name| root.join(name)));
    run(&mut command, Duration::from_secs(120)).expect_success("bbolt's check");
}

/// Bytes of all snapshots of a root as a daemon accounts for them: the blocks of each file, once
/// per snapshot.
pub fn bytes_in_snapshots(root: &Path) -> u64 {
    let snapshots = fs::read_dir(root.join("runc-overlayfs/snapshots/snapshots")).unwrap();
    snapshots.map(|entry| blocks(&entry.unwrap().path().join("fs"), &mut BTreeSet::new())).sum()
}

fn blocks(path: &Path, seen: &mut BTreeSet<u64>) -> u64 {
    let meta = fs::symlink_metadata(path).unwrap();
    let mut total = if seen.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            total += blocks(&entry.unwrap().path(), seen);
        }
    }
    total
}
