//! Roots of real daemons are healthy, in whatever state the daemon left them.
//!
//! This decides what verify may call a fault: whatever stands in a root that a daemon works with is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::cases::{Case, cache_to, export_tar};
use support::skip::skip;
use support::tools::on_path;
use support::warmkit::judge;
use support::{BuildRequest, Daemon, Tools, World};
use warmkit::verify::{Error, FindingKind, Report};

/// A daemon that is killed, not stopped.
struct Victim<'a> {
    world: &'a World,
    child: Child,
    socket: PathBuf,
    /// Its own directory for temporary files, in which it mounts what it extracts into.
    temporary: PathBuf,
}

impl<'a> Victim<'a> {
    fn start(world: &'a World, root: &Path, snapshotter: &str) -> Self {
        let socket = world.scratch.join("victim.sock");
        let _ = fs::remove_file(&socket);
        let host = world.registry.host();
        let config = world.scratch.write("victim.toml", format!("[registry.{host:?}]\n  http = true\n"));
        let temporary = world.scratch.join("victim-tmp");
        fs::create_dir_all(&temporary).unwrap();
        let child = Command::new(&world.tools.buildkitd)
            .env("TMPDIR", &temporary)
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(root)
            .arg("--addr")
            .arg(format!("unix://{}", socket.display()))
            .arg("--otel-socket-path")
            .arg(world.scratch.join("victim-otel.sock"))
            .args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-snapshotter", snapshotter])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let victim = Self { world, child, socket, temporary };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !victim.client(&["debug", "workers"]).status().unwrap().success() {
            assert!(Instant::now() < deadline, "buildkitd does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        victim
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.world.tools.buildctl);
        command.arg("--addr").arg(format!("unix://{}", self.socket.display())).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts a build and does not wait for it.
    fn build(&self, request: &BuildRequest, more: &[&str]) -> Child {
        let context = request.context.display();
        let mut command = self.client(&["build", "--frontend=dockerfile.v0"]);
        command.arg(format!("--local=context={context}")).arg(format!("--local=dockerfile={context}"));
        for (key, value) in &request.args {
            command.arg("--opt").arg(format!("build-arg:{key}={value}"));
        }
        command.args(more).spawn().unwrap()
    }

    /// Kills it, and takes away what it had mounted.
    fn kill(mut self, root: &Path) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|p| Path::new(p).starts_with(root) || Path::new(p).starts_with(&self.temporary));
        for point in points {
            rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}

#[track_caller]
fn assert_healthy(root: &Path, state: &str) -> Report {
    let report = judge(root).unwrap_or_else(|error| panic!("{state}: {error}"));
    assert_eq!(report.findings, [], "{state}");
    assert!(report.is_healthy());
    report
}

/// As [`assert_healthy`], of a root whose daemon was killed, which may have been making a snapshot's directory.
#[track_caller]
fn assert_killed(root: &Path, state: &str) {
    let mut report = judge(root).unwrap_or_else(|error| panic!("{state}: {error}"));
    report.findings.retain(|finding| finding.kind != FindingKind::SnapshotDirectoryTaken);
    assert_eq!(report.findings, [], "{state}");
}

fn copied(world: &World, daemon: &Daemon, name: &str) -> PathBuf {
    let copy = world.scratch.join(name);
    daemon.copy_root(&copy);
    copy
}

/// Kills daemons in the middle of what they do, again and again on one root.
fn killed(world: &World, case: &Case) {
    let snapshotter = "overlayfs";
    let root = world.root(case, "killed");
    // Before its first build, when it has made neither buckets nor the database of snapshots.
    Victim::start(world, &root, snapshotter).kill(&root);
    let report = assert_healthy(&root, "killed before it built anything");
    assert_eq!((report.counts.records, report.counts.snapshots, report.counts.keys), (0, 0, 0));
    // Daemons of v0.18 to v0.31 make it with the first blob.
    fs::remove_dir_all(root.join("runc-overlayfs/content")).unwrap();
    assert_healthy(&root, "without a directory for blobs, and without blobs");

    let cache = world.registry.reference(case.name, "killed");
    for (round, milliseconds) in [150, 400, 700, 1100, 1600, 2500].into_iter().enumerate() {
        let victim = Victim::start(world, &root, snapshotter);
        let request = if round % 2 == 0 { &case.request } else { &case.changed };
        let export = format!("--export-cache={}", cache_to(&cache, ""));
        let more = if round % 3 == 0 { vec![] } else { vec![export.as_str()] };
        let mut build = victim.build(request, &more);
        let prune = (round == 4).then(|| victim.client(&["prune", "--all"]).spawn().unwrap());
        thread::sleep(Duration::from_millis(milliseconds));
        victim.kill(&root);
        build.wait().unwrap();
        if let Some(mut prune) = prune {
            prune.wait().unwrap();
        }
        assert_killed(&root, &format!("killed after {milliseconds} ms"));
    }
}

fn healthy(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);

    // Built, exported, built again with a change, stopped.
    let report = assert_healthy(&origin.root, "built");
    assert!(report.counts.records > 10 && report.counts.results > 5, "{:?}", report.counts);

    // Imported and extracted: every layer is compared with its snapshot.
    world.native_import(&case, &origin.cache);
    let native = world.root(&case, "native");
    let report = assert_healthy(&native, "imported and extracted");
    assert!(report.counts.layers_compared > 5, "{:?}", report.counts);

    // Imported without output: no layer is here.
    let lazy = world.root(&case, "lazy");
    let daemon = world.daemon(&lazy);
    daemon.build(&case.request.import_from(&origin.cache));
    daemon.stop();
    let report = assert_healthy(&lazy, "imported, not extracted");
    assert!(report.notes.iter().any(|note| note.kind == FindingKind::RecordLazy), "{:?}", report.notes);

    // A running daemon: refused, and a copy of its root is as good as a killed one's.
    let daemon = world.daemon(&origin.root);
    let busy = judge(&origin.root).unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "{busy}");
    daemon.build(&case.changed);
    assert_healthy(&copied(&world, &daemon, "live"), "a copy of a live root");

    // Pruned in part, built on, pruned to nothing.
    for (state, filter) in
        [("COPY", "description~=COPY"), ("RUN", "description~=mount"), ("old", "type==regular")]
    {
        let mut prune = daemon.buildctl();
        prune.args(["prune", "--filter", filter]);
        if state == "old" {
            prune.args(["--keep-duration", "1s"]);
        }
        assert!(prune.stdout(Stdio::null()).status().unwrap().success());
        assert_healthy(&copied(&world, &daemon, state), &format!("pruned of {state}"));
        daemon.build(&case.request);
        assert_healthy(&copied(&world, &daemon, &format!("{state}-again")), "pruned and built again");
    }
    daemon.prune_all();
    daemon.stop();
    let report = assert_healthy(&origin.root, "pruned to nothing");
    assert_eq!((report.counts.records, report.counts.keys), (0, 0));

    killed(&world, &case);
    damaged(&native);
}

/// Damage to a native root is seen as well.
fn damaged(root: &Path) {
    let worker = root.join("runc-overlayfs");
    let largest = |directory: PathBuf| {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        entries.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path()
    };
    let blob = largest(worker.join("content/blobs/sha256"));
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    let snapshots = worker.join("snapshots/snapshots");
    let committed = fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().path());
    let files =
        |path: &PathBuf| fs::read_dir(path.join("fs")).is_ok_and(|mut entries| entries.next().is_some());
    let mut with_files: Vec<PathBuf> = committed.filter(files).collect();
    with_files.sort();
    fs::remove_dir_all(&with_files[0]).unwrap();
    let report = judge(root).unwrap();
    let kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
    for kind in [FindingKind::BlobDigest, FindingKind::SnapshotDirectoryMissing] {
        assert!(kinds.contains(&kind), "{kind}: {:#?}", report.findings);
    }
}

#[test]
fn roots_of_v0_34_2_are_healthy() {
    healthy("v0.34.2");
}

#[test]
fn roots_of_v0_33_1_are_healthy() {
    healthy("v0.33.1");
}

#[test]
fn roots_of_v0_17_3_are_healthy() {
    healthy("v0.17.3");
}

/// Daemons with other snapshotters than overlayfs: stopped, and killed.
fn healthy_with(release: &str, snapshotter: &str) {
    let Some(tools) = Tools::find(release) else { return };
    if snapshotter == "fuse-overlayfs" && on_path(snapshotter).is_none() {
        return skip("no fuse-overlayfs in $PATH");
    }
    let world = World::start(tools);
    let case = world.case("whiteouts");
    let origin = world.export(&case);
    let root = world.root(&case, "imported");
    let daemon = Daemon::start_on(&world.tools, &root, &world.registry, snapshotter);
    export_tar(&daemon, &case.request.import_from(&origin.cache), &world.root(&case, "imported.tar"));
    assert_healthy(&copied(&world, &daemon, "live"), "a copy of a live root");
    daemon.build(&case.changed);
    daemon.stop();
    assert_healthy(&root, "imported, extracted, and built on");
    // Again and again on one root: what one kill has left, the next one finds.
    let root = world.root(&case, "killed");
    for (round, milliseconds) in [300, 500, 800, 1200].into_iter().enumerate() {
        let victim = Victim::start(&world, &root, snapshotter);
        let request = if round % 2 == 0 { &case.request } else { &case.changed };
        let mut build = victim.build(request, &[]);
        thread::sleep(Duration::from_millis(milliseconds));
        victim.kill(&root);
        build.wait().unwrap();
        assert_killed(&root, &format!("killed after {milliseconds} ms"));
    }
}

#[test]
fn native_snapshots_are_healthy() {
    healthy_with("v0.34.2", "native");
}

/// Its frontend leaves a view, which has no directory.
#[test]
fn native_snapshots_of_v0_17_3_are_healthy() {
    healthy_with("v0.17.3", "native");
}

#[test]
fn fuse_overlayfs_snapshots_are_healthy() {
    healthy_with("v0.34.2", "fuse-overlayfs");
}

#[test]
fn every_instruction_and_mount_leaves_a_healthy_root() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let world = World::start(tools);
    for name in ["everything", "whiteouts"] {
        let case = world.case(name);
        let origin = world.export(&case);
        assert_healthy(&origin.root, name);
        world.native_import(&case, &origin.cache);
        let report = assert_healthy(&world.root(&case, "native"), name);
        assert!(report.counts.layers_compared > 3, "{:?}", report.counts);
    }
}
