//! A live verification builds for real, and leaves nothing behind but its report.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use support::cases::Case;
use support::files::listing;
use support::{BuildRequest, Scratch, Tools, World};
use warmkit::daemon;
use warmkit::progress::Silent;
use warmkit::verify::{self, LiveError, LiveOptions, LiveReport, StepStatus};

/// What a live verification must not leave: scratch directories beside the root, mounts.
fn leftovers(beside: &Path) -> Vec<String> {
    let names = fs::read_dir(beside).unwrap().map(|entry| entry.unwrap().path());
    let scratch = names.filter(|path| path.to_string_lossy().contains(".warmkit-verify-"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = |line: &&str| line.contains(&*beside.to_string_lossy());
    scratch
        .map(|path| path.display().to_string())
        .chain(mounts.lines().filter(below).map(str::to_owned))
        .collect()
}

fn options(world: &World, request: &BuildRequest) -> LiveOptions {
    let mut options = LiveOptions::default();
    let host = world.registry.host();
    let config = world.scratch.write("live.toml", format!("[registry.{host:?}]\n  http = true\n"));
    options.build.context.clone_from(&request.context);
    options.build.build_args = request.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    options.search.buildkitd = Some(world.tools.buildkitd.clone());
    options.buildkitd_config = Some(config);
    options
}

/// Verifies live and proves that the root is what it was.
#[track_caller]
fn live(root: &Path, options: &LiveOptions) -> Result<LiveReport, LiveError> {
    let before = listing(root);
    let report = verify::live(root, options);
    assert_eq!(listing(root), before, "the root changed");
    assert_eq!(leftovers(root.parent().unwrap()), [""; 0]);
    report
}

fn ran(report: &LiveReport) -> Vec<&str> {
    let ran = |status: &StepStatus| *status != StepStatus::Cached;
    report.steps.iter().filter(|step| ran(&step.status)).map(|step| step.name.as_str()).collect()
}

fn builds_on_a_view(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);

    // The root of a builder, with active snapshots of sources and steps.
    let report = live(&origin.root, &options(&world, &case.request)).unwrap();
    assert!(report.all_cached(), "{report:#?}");
    assert_eq!((report.imports, report.extractions), (0, 0));
    let names: BTreeSet<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, origin.outcome.names());
    assert!(report.buildkitd.contains("buildkitd"), "{report:?}");

    // A baked root, then with a source changed: steps run, on the layers that are there, and those of other
    // stages stay CACHED.
    let baked = world.root(&case, "baked");
    let keys = format!("type=image,ref={}", origin.image);
    support::warmkit::bake(&[&origin.cache, "--keys-from", &keys], &baked).expect_success("bake");
    assert!(live(&baked, &options(&world, &case.request)).unwrap().all_cached());
    let report = live(&baked, &options(&world, &case.changed)).unwrap();
    assert!(!report.all_cached());
    let found: BTreeSet<String> = ran(&report).into_iter().map(str::to_owned).collect();
    assert_eq!(found, origin.changed, "{report:#?}");
    assert_eq!((report.extractions, report.failure), (0, None));

    // A target, and a cache that is imported though nothing needs it.
    let mut docs = options(&world, &case.request);
    docs.build.target = Some("docs".into());
    docs.build.import_caches = vec![format!("type=registry,ref={}", origin.cache)];
    let report = live(&baked, &docs).unwrap();
    assert!(report.all_cached() && report.steps.len() == 2, "{report:#?}");
    assert_eq!(report.imports, 1);

    broken(&world, &case, &baked);
}

/// What is damaged is seen, and what cannot be built is a report, not an error.
fn broken(world: &World, case: &Case, root: &Path) {
    let mut request = options(world, &case.request);
    request.build.target = Some("nowhere".into());
    let report = live(root, &request).unwrap();
    assert!(!report.all_cached());
    assert!(report.failure.as_ref().is_some_and(|said| said.contains("nowhere")), "{report:?}");

    let mut other = options(world, &case.request);
    other.build.build_args.push("VERSION=2".into());
    assert_eq!(ran(&live(root, &other).unwrap()).len(), 4);

    // Another worker id: a daemon drops every result.
    let id = root.join("runc-overlayfs/workerid");
    let kept = fs::read(&id).unwrap();
    fs::set_permissions(&id, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&id, "a".repeat(25)).unwrap();
    let report = live(root, &options(world, &case.request)).unwrap();
    assert_eq!(ran(&report).len(), report.steps.len());
    fs::write(&id, kept).unwrap();

    // A database that no daemon starts on.
    let path = root.join("runc-overlayfs/metadata_v2.db");
    let kept = fs::read(&path).unwrap();
    fs::write(&path, vec![0; kept.len()]).unwrap();
    let error = live(root, &options(world, &case.request)).unwrap_err();
    assert!(
        matches!(error, LiveError::Daemon(daemon::Error::Ended { .. }) | LiveError::Damaged { .. }),
        "{error:?}"
    );
    fs::write(&path, kept).unwrap();
    assert!(verify::offline(root, &verify::Options::default(), &Silent).is_ok());
}

#[test]
fn builds_on_a_view_with_v0_34_2() {
    builds_on_a_view("v0.34.2");
}

#[test]
fn builds_on_a_view_with_v0_33_1() {
    builds_on_a_view("v0.33.1");
}

#[test]
fn builds_on_a_view_with_v0_17_3() {
    builds_on_a_view("v0.17.3");
}

/// A docker that has one image: the programs of this machine.
#[test]
fn docker_gives_what_is_not_installed() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let log = world.scratch.join("docker.log");
    let bin = world.tools.buildkitd.parent().unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>{log}\ncase $1 in\n\
         create) echo pulling; echo 0123abcd;;\n\
         cp) name=${{2##*/}}; [ \"$name\" = buildkit-runc ] && exec cp \"$(command -v runc)\" \"$3\"\n\
         exec cp {bin}/\"$name\" \"$3\";;\n\
         rm) exit 0;;\n*) exit 1;;\nesac\n",
        log = log.display(),
        bin = bin.display()
    );
    let docker = world.scratch.program("docker", script);
    let mut request = options(&world, &case.request);
    request.search.buildkitd = None;
    request.search.docker = Some(docker);
    request.search.image = Some("example.org/buildkit:test".into());
    let report = live(&origin.root, &request).unwrap();
    assert!(report.all_cached(), "{report:#?}");
    let asked = fs::read_to_string(log).unwrap();
    let asked: Vec<&str> = asked.lines().map(|line| line.split(" /").next().unwrap()).collect();
    assert_eq!(
        asked,
        [
            "create --quiet --pull missing example.org/buildkit:test",
            "cp 0123abcd:/usr/bin/buildkitd",
            "cp 0123abcd:/usr/bin/buildctl",
            "cp 0123abcd:/usr/bin/buildkit-runc",
            "rm 0123abcd",
        ]
    );
    // A docker that fails says so.
    let docker = world.scratch.program("no-docker", "#!/bin/sh\necho no daemon >&2\nexit 1\n");
    request.search.docker = Some(docker);
    let error = live(&origin.root, &request).unwrap_err();
    assert!(error.to_string().contains("no daemon"), "{error}");
}

#[test]
fn what_is_missing_is_said() {
    if !rustix::process::geteuid().is_root() {
        let error = verify::live(Path::new("/"), &LiveOptions::default()).unwrap_err();
        assert!(matches!(error, LiveError::Daemon(daemon::Error::NotRoot { .. })));
        return;
    }
    let scratch = Scratch::new();
    let mut options = LiveOptions::default();
    options.search.buildkitd = Some(scratch.join("buildkitd"));
    let root = scratch.join("root");
    assert!(matches!(verify::live(&root, &options), Err(LiveError::Root(verify::Error::Open { .. }))));
    fs::create_dir(&root).unwrap();
    let error = verify::live(&root, &options).unwrap_err();
    assert!(matches!(error, LiveError::Root(verify::Error::NotAStateDirectory { .. })), "{error}");
    fs::create_dir_all(root.join("runc-overlayfs")).unwrap();
    let error = verify::live(&root, &options).unwrap_err();
    assert!(
        matches!(error, LiveError::Daemon(daemon::Error::NoProgram { program: "buildkitd", .. })),
        "{error}"
    );
    assert_eq!(leftovers(scratch.path()), [""; 0]);
}

/// The directories of steps that run in the scratch directories beside a root.
fn running(beside: &Path) -> usize {
    let below = |directories: Vec<PathBuf>, name: &str| -> Vec<PathBuf> {
        let entries = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.to_string_lossy().contains(name)).collect()
    };
    let roots = below(vec![beside.to_owned()], ".warmkit-verify-").into_iter().map(|path| path.join("root"));
    let workers = below(roots.collect(), "runc-overlayfs");
    below(workers.into_iter().map(|worker| worker.join("executor")).collect(), "")
        .iter()
        .filter(|p| p.is_dir())
        .count()
}

#[test]
fn an_interrupt_ends_it_and_what_it_runs() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let mut request = options(&world, &case.request);
    // Nothing is said of a step that says nothing.
    let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN sleep 1000\n";
    request.build.dockerfile = Some(world.scratch.write("slow/Dockerfile", dockerfile));
    let interrupted = request.interrupted.clone();
    let beside = origin.root.parent().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let begin = Instant::now();
            while running(beside) == 0 && begin.elapsed() < Duration::from_secs(60) {
                thread::sleep(Duration::from_millis(20));
            }
            interrupted.store(true, Ordering::Relaxed);
        });
        let error = live(&origin.root, &request).unwrap_err();
        assert!(matches!(error, LiveError::Interrupted), "{error}");
    });
    // And before there is a daemon.
    let error = live(&origin.root, &request).unwrap_err();
    assert!(matches!(error, LiveError::Daemon(daemon::Error::Stopped)), "{error}");
}

/// A daemon makes the database of snapshots with its first one.
#[test]
fn builds_on_a_view_of_a_root_that_nothing_was_built_on() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let world = World::start(tools);
    let case = world.case("whiteouts");
    let root = world.root(&case, "new");
    world.daemon(&root).stop();
    assert!(!root.join("runc-overlayfs/snapshots/metadata.db").exists());
    let report = live(&root, &options(&world, &case.request)).unwrap();
    assert_eq!((ran(&report).len(), &report.failure), (report.steps.len(), &None));
}

/// What [`a_killed_verification_leaves_no_daemon`] runs in a process of its own, and kills. Nothing where
/// it does not say so.
#[test]
fn victim() {
    let Some(root) = std::env::var_os("WARMKIT_TEST_LIVE_ROOT") else { return };
    let from = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let mut options = LiveOptions::default();
    options.build.context = from("WARMKIT_TEST_LIVE_CONTEXT");
    options.search.buildkitd = Some(from("WARMKIT_TEST_LIVE_BUILDKITD"));
    options.buildkitd_config = Some(from("WARMKIT_TEST_LIVE_CONFIG"));
    options.build.build_args = vec![std::env::var("WARMKIT_TEST_LIVE_ARG").unwrap()];
    let _ = verify::live(Path::new(&root), &options);
}

#[test]
fn a_killed_verification_leaves_no_daemon() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let before = listing(&origin.root);
    // A build that is still at it when it is killed.
    let slow = world.scratch.join("slow");
    fs::create_dir(&slow).unwrap();
    fs::write(slow.join("Dockerfile"), "ARG BASE\nFROM ${BASE}\nRUN touch /begun && sleep 600\n").unwrap();
    let request = options(&world, &case.request);
    let beside = origin.root.parent().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim"])
        .env("WARMKIT_TEST_LIVE_ROOT", &origin.root)
        .env("WARMKIT_TEST_LIVE_CONTEXT", &slow)
        .env("WARMKIT_TEST_LIVE_BUILDKITD", request.search.buildkitd.unwrap())
        .env("WARMKIT_TEST_LIVE_CONFIG", request.buildkitd_config.unwrap())
        .env("WARMKIT_TEST_LIVE_ARG", &request.build.build_args[0])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The view's daemons name their root, the view, on their command lines.
    let daemons = || -> Vec<PathBuf> {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        let ours = |path: &PathBuf| {
            let words = fs::read(path.join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains(&format!("{}/.warmkit-verify-", beside.display()))
        };
        processes.filter(ours).collect()
    };
    let wait = |what: &str, is: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    let begun = || {
        let views = fs::read_dir(beside).unwrap().map(|entry| entry.unwrap().path());
        let mut views = views.filter(|path| path.to_string_lossy().contains(".warmkit-verify-"));
        views.any(|view| {
            let snapshots = fs::read_dir(view.join("root/runc-overlayfs/snapshots/snapshots"));
            snapshots.is_ok_and(|mut all| all.any(|one| one.unwrap().path().join("fs/begun").exists()))
        })
    };
    wait("the step does not begin", &begun);
    assert!(!daemons().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    wait("a daemon is left", &|| daemons().is_empty());
    wait("a scratch directory is left", &|| leftovers(beside).is_empty());
    assert_eq!(listing(&origin.root), before, "the root changed");
}
