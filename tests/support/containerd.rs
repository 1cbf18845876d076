//! A real containerd, all of its own: its directories and its socket.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use warmkit::containerd::Client;
use warmkit::digest::Digest;

use super::command;
use super::tools::{directory, on_path};
use super::{Scratch, skip};

const LIMIT: Duration = Duration::from_secs(120);
/// Where it has blobs.
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// Where it has those that are not whole.
const INGESTS: &str = "io.containerd.content.v1.content/ingest";

/// The snapshotter fuse-overlayfs, below [`directory`].
const FUSE: &str = "fuse-overlayfs-snapshotter-v2.1.7/bin/containerd-fuse-overlayfs-grpc";

/// Which containerd.
#[derive(Debug, Clone, Copy)]
pub enum Release {
    /// That of Debian's package: 1.6 in Debian 12.
    Debian,
    /// The one that `scripts/tools` builds: 2.2.
    Newer,
}

impl Release {
    fn programs(self) -> &'static str {
        match self {
            Self::Debian => "docker/bin",
            Self::Newer => "containerd-v2.2.4/bin",
        }
    }
}

/// Where a program of a release is. `None` when it is missing, after it said so.
#[track_caller]
pub fn program(release: Release, name: &str) -> Option<PathBuf> {
    let program = directory().unwrap_or_default().join(release.programs()).join(name);
    if program.is_file() {
        return Some(program);
    }
    skip::skip(&format!("no {}", program.display()));
    None
}

/// A containerd. Its garbage collection runs as it does by default: shortly after its start, and after what frees
/// something.
#[derive(Debug)]
pub struct Containerd {
    scratch: Scratch,
    root: PathBuf,
    program: PathBuf,
    child: Option<Child>,
    /// A snapshotter that is a program of its own, and where it listens.
    proxy: Option<(Child, PathBuf)>,
}

impl Containerd {
    /// Starts the one of Debian's package. `None` when it is missing, after it said so.
    ///
    /// # Panics
    ///
    /// When it is missing and `WARMKIT_REQUIRE_REAL=1`.
    #[track_caller]
    pub fn start() -> Option<Self> {
        Self::start_of(Release::Debian)
    }

    /// As [`Self::start`], one of a release.
    #[track_caller]
    pub fn start_of(release: Release) -> Option<Self> {
        Some(Self::of(release, None)?.running())
    }

    /// As [`Self::start`], with its data in a directory.
    #[track_caller]
    pub fn start_in(root: &Path) -> Option<Self> {
        Some(Self::of(Release::Debian, Some(root))?.running())
    }

    /// As [`Self::start`], with the snapshotter fuse-overlayfs, which is a program of its own.
    #[track_caller]
    pub fn start_with_fuse() -> Option<Self> {
        let program = directory().unwrap_or_default().join(FUSE);
        for needed in ["fuse-overlayfs", "mount.fuse3"] {
            if !program.is_file() || on_path(needed).is_none() {
                skip::skip(&format!("no {} or no {needed} in $PATH", program.display()));
                return None;
            }
        }
        let mut containerd = Self::of(Release::Debian, None)?;
        let socket = containerd.scratch.join("fuse");
        let mut proxy = Command::new(program);
        proxy.arg(&socket).arg(containerd.scratch.join("fuse-root")).stdin(Stdio::null());
        let proxy = proxy.stdout(containerd.logged()).stderr(containerd.logged()).spawn().unwrap();
        containerd.proxy = Some((proxy, socket.clone()));
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(&socket).is_err() {
            let ended = containerd.proxy.as_mut().unwrap().0.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}\n{}", containerd.log());
            thread::sleep(Duration::from_millis(20));
        }
        Some(containerd.running())
    }

    #[track_caller]
    fn of(release: Release, root: Option<&Path>) -> Option<Self> {
        let (program, scratch) = (program(release, "containerd")?, Scratch::new());
        let root = root.map_or_else(|| scratch.join("root"), Path::to_owned);
        // One that never had a blob collects no ingest: its collection ends where this is missing.
        fs::create_dir_all(root.join(BLOBS)).unwrap();
        Some(Self { scratch, root, program, child: None, proxy: None })
    }

    fn running(mut self) -> Self {
        self.run();
        self
    }

    /// What is written to it is in [`Self::log`].
    fn logged(&self) -> fs::File {
        fs::File::options().append(true).create(true).open(self.scratch.join("log")).unwrap()
    }

    /// Runs `ctr` on a namespace; gives what it prints. `None` when it is missing, after it said so.
    #[track_caller]
    pub fn ctr(&self, namespace: &str, arguments: &[&str]) -> Option<String> {
        let mut ctr = Command::new(program(Release::Newer, "ctr")?);
        ctr.args(["--address", &self.address(), "--namespace", namespace]).args(arguments);
        Some(command::run(&mut ctr, LIMIT).expect_success("ctr").stdout)
    }

    /// What `[worker.containerd]` of a daemon says of it.
    pub fn worker(&self) -> String {
        format!("  address = {:?}", self.address())
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.root.join(BLOBS).join(hex)
    }

    fn run(&mut self) {
        let scratch = &self.scratch;
        let path = |name| scratch.join(name).display().to_string();
        let proxy = self.proxy.as_ref().map_or_else(String::new, |(_, socket)| {
            let socket = socket.display().to_string();
            format!("[proxy_plugins.fuse-overlayfs]\n  type = \"snapshot\"\n  address = {socket:?}\n")
        });
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = {:?}\n\
             [ttrpc]\n  address = {:?}\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {:?}\n{proxy}",
            self.root.display().to_string(),
            path("state"),
            self.address(),
            path("ttrpc"),
            path("opt"),
        );
        let config = scratch.write("config.toml", config);
        let beside = self.program.parent().unwrap().display();
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(config)
            // Its shims are beside it, and Debian keeps runc where only root looks.
            .env("PATH", format!("{beside}:{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(self.logged())
            .stderr(self.logged())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + LIMIT;
        while let Err(error) = Client::connect(&self.address(), "test", Box::new(|| false)) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "containerd ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "containerd does not answer: {error}\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.scratch.join("sock").display().to_string()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }

    /// A connection for the namespace.
    pub fn client(&self, namespace: &str) -> Client {
        Client::connect(&self.address(), namespace, Box::new(|| false)).unwrap()
    }

    /// Has it collect what nothing holds, as `ctr leases delete --sync` does; it has when this returns.
    pub fn collect(&self) {
        let mut client = self.client("test");
        client
            .work_under("for-nothing", jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1))
            .unwrap();
        // It looks through what it stores only where something is removed, as after a full disk kept it from that.
        let bytes = b"for nothing";
        let mut ingest = client.write(&Digest::of(bytes).to_string(), bytes.len() as u64).unwrap().unwrap();
        ingest.write_all(bytes).unwrap();
        ingest.finish().unwrap();
        client.prepare("overlayfs", "for-nothing", None).unwrap();
        client.delete_lease("for-nothing", true).unwrap();
    }

    /// Names of the blobs in its content store, of all namespaces.
    pub fn blobs(&self) -> Vec<String> {
        names(&self.root.join(BLOBS))
    }

    /// Ids of the snapshots that its overlayfs has, of all namespaces.
    pub fn snapshots(&self) -> Vec<String> {
        self.snapshots_of("overlayfs")
    }

    /// The same of another snapshotter.
    pub fn snapshots_of(&self, snapshotter: &str) -> Vec<String> {
        names(&self.root.join(format!("io.containerd.snapshotter.v1.{snapshotter}/snapshots")))
    }

    /// Where it has what was begun to be ingested and not finished, of all namespaces. One that was begun on a full disk may
    /// leave a directory without any data, which no containerd finds any more.
    pub fn ingests(&self) -> Vec<PathBuf> {
        let directory = self.root.join(INGESTS);
        let ingests = names(&directory).into_iter().map(|name| directory.join(name));
        ingests.filter(|ingest| ingest.join("data").exists()).collect()
    }

    /// Asserts that it has nothing: no blob, none that is half there, no snapshot, and no lease in namespace `buildkit`.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(self.client("buildkit").leases().unwrap(), []);
        assert_eq!(self.blobs(), [""; 0], "blobs");
        assert_eq!(self.ingests(), Vec::<PathBuf>::new(), "ingests");
        assert_eq!(self.snapshots(), [""; 0], "snapshots");
    }

    /// Stops it and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.restart_after(|| ());
    }

    /// The same, and does something in between.
    #[track_caller]
    pub fn restart_after(&mut self, between: impl FnOnce()) {
        self.stop();
        between();
        self.run();
    }

    fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
        if let Some((proxy, _)) = self.proxy.take() {
            end(proxy);
        }
    }
}

fn end(mut child: Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    if command::wait(&mut child, LIMIT).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
