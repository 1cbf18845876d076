//! Every command on every kind of root, baked and of a daemon's own making, against what the root's real daemon says.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::command::run;
use support::files::listing;
use support::foreseen::{bake_at_as_planned, plan};
use support::rootless::User;
use support::skip::skip;
use support::tools::on_path;
use support::warmkit::warmkit;
use warmkit::bolt::{Database, PageSize};

use support::{BuildRequest, Daemon, Registry, Scratch, Tools, bolt_tree, demo, tools};

/// A kind of root: what its daemon is, and whose.
#[derive(Debug)]
struct Kind {
    tools: Tools,
    registry: Registry,
    scratch: Scratch,
    snapshotter: &'static str,
    /// Who runs the daemon, where that is not root.
    user: Option<User>,
}

impl Kind {
    /// `None` where a part is missing, after it said which.
    fn make(release: &str, snapshotter: &'static str, rootless: bool) -> Option<Self> {
        let tools = Tools::find(release)?;
        if snapshotter == "fuse-overlayfs" && on_path(snapshotter).is_none() {
            skip("no fuse-overlayfs in $PATH");
            return None;
        }
        let user = if rootless { Some(User::make(&tools)?.with_fuse()) } else { None };
        let registry = Registry::start(&tools);
        demo::push(&registry);
        Some(Self { tools, registry, scratch: Scratch::new(), snapshotter, user })
    }

    /// A directory that the daemon's user can reach.
    fn shared(&self) -> &Scratch {
        self.user.as_ref().map_or(&self.scratch, |user| &user.home)
    }

    /// Where a root may be, which is not there yet.
    fn root(&self, name: &str) -> PathBuf {
        self.shared().join(name)
    }

    #[track_caller]
    fn daemon(&self, root: &Path) -> Daemon {
        let (tools, registry) = (&self.tools, &self.registry);
        match &self.user {
            None => Daemon::start_on(tools, root, registry, self.snapshotter),
            Some(user) => Daemon::start_rootless(tools, root, registry, self.snapshotter, user),
        }
    }

    /// The demo's build, and twice the same with a source that changed.
    fn requests(&self) -> [BuildRequest; 3] {
        let context = demo::context(self.shared());
        let changed = |text: &str| {
            let changed = self.shared().join(text);
            support::files::copy_tree(&context, &changed);
            fs::write(changed.join("src/main.txt"), text).unwrap();
            changed
        };
        [context.clone(), changed("changed"), changed("changed-again")].map(|context| {
            let mut request = BuildRequest::new(&context);
            request.platform = Some("linux/amd64".into());
            request
        })
    }

    /// The daemon's program.
    fn buildkitd(&self) -> PathBuf {
        self.user
            .as_ref()
            .map_or_else(|| self.tools.buildkitd.clone(), |user| user.home.join("bin/buildkitd"))
    }

    /// A configuration of the daemon that `verify --build` starts, which may be in a container itself.
    fn configuration(&self) -> String {
        let sandbox = if self.user.is_some() { "[worker.oci]\n  noProcessSandbox = true\n" } else { "" };
        let path = self.shared().write("live.toml", sandbox);
        path.display().to_string()
    }
}

/// `warmkit` where the daemons of this kind run.
fn beside(kind: &Kind) -> Command {
    let Some(user) = &kind.user else { return warmkit() };
    let mut command = user.beside(env!("CARGO_BIN_EXE_warmkit"));
    command.env_remove("SOURCE_DATE_EPOCH").env("DOCKER_CONFIG", "/nonexistent");
    command
}

/// What `warmkit <arguments>` prints as JSON.
#[track_caller]
fn json(arguments: &[&str], root: &Path, code: i32) -> Value {
    let mut command = warmkit();
    command.args(arguments).arg("--root").arg(root);
    parsed(&mut command, code)
}

#[track_caller]
fn parsed(command: &mut Command, code: i32) -> Value {
    let ended = run(command, Duration::from_secs(120));
    assert_eq!(ended.status.code(), Some(code), "{command:?}\n{}{}", ended.stdout, ended.stderr);
    ended.stdout.parse().unwrap()
}

/// A record as both tell it: size, parents, description, type, whether it may change.
type Told = (Option<u64>, Vec<String>, String, String, bool);

/// Asserts that inspect and forecast say of a root what its daemon then says.
#[track_caller]
fn said_as_by_its_daemon(kind: &Kind, root: &Path, state: &str) {
    let report = json(&["inspect", "--json"], root, 0);
    assert_eq!(report["faults"], Value::Array(Vec::new()), "{state}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().unwrap().iter().map(text).collect::<Vec<_>>();
    let inspected: BTreeMap<String, Told> = report["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| {
            let told = (
                record["bytes"].as_u64(),
                list(&record["parents"]),
                text(&record["name"]),
                text(&record["type"]),
                record["mutable"] == true,
            );
            (text(&record["id"]), told)
        })
        .collect();
    let forecast = json(&["forecast", "--json"], root, 0);

    let daemon = kind.daemon(root);
    let told: BTreeMap<String, Told> = daemon
        .disk_usage()
        .into_iter()
        .map(|usage| {
            let size = u64::try_from(usage.size).ok();
            let parents = usage.parents.unwrap_or_default();
            (usage.id, (size, parents, usage.description, usage.record_type, usage.mutable))
        })
        .collect();
    daemon.stop();
    assert!(told.len() > 5, "{state}: {told:?}");
    assert_eq!(inspected.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>(), "{state}");
    for (id, told) in &told {
        assert_eq!(&inspected[id], told, "{state}: record {id}");
    }
    let bytes: u64 = told.values().filter_map(|told| told.0).sum();
    assert_eq!((&forecast["records"], &forecast["bytes"]), (&told.len().into(), &bytes.into()), "{state}");
}

/// The arguments of `warmkit verify` that have a build run by the daemon of this kind.
fn arguments_of_build(kind: &Kind, request: &BuildRequest) -> Vec<String> {
    let mut arguments = ["verify", "--json", "--buildkitd"].map(str::to_owned).to_vec();
    arguments.extend([kind.buildkitd().display().to_string(), "--buildkitd-config".into()]);
    arguments.push(kind.configuration());
    arguments.extend(request.verify_arguments());
    arguments
}

/// The steps that were not CACHED, by the report of verify; nothing was extracted.
#[track_caller]
fn not_cached(report: &Value, state: &str) -> BTreeSet<String> {
    assert!(report["offline"]["counts"]["layers_compared"].as_u64() > Some(2), "{state}: {report:#}");
    let steps = report["live"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), demo::STEPS, "{state}: {report:#}");
    assert_eq!(report["live"]["extractions"], 0, "{state}: {report:#}");
    let ran = steps.iter().filter(|step| step["status"] != "cached");
    ran.map(|step| step["name"].to_string()).collect()
}

/// Asserts that verify finds a root whole, and that its daemon, on a view of it, finds what it should.
#[track_caller]
fn verified(kind: &Kind, root: &Path, [request, changed]: [&BuildRequest; 2], state: &str) {
    let before = listing(root);
    let report = json(&["verify", "--json"], root, 0);
    assert_eq!(report["healthy"], true, "{state}: {report:#}");
    let live = |request: &BuildRequest, code| {
        let mut command = beside(kind);
        command.args(arguments_of_build(kind, request)).arg("--read-data").arg("--root").arg(root);
        // Where every user may look, as the one of a rootless root has to.
        command.env("TMPDIR", "/var/tmp");
        not_cached(&parsed(&mut command, code), state)
    };
    assert_eq!(live(request, 0), BTreeSet::new(), "{state}");
    let ran = live(changed, 9);
    assert!(!ran.is_empty() && ran.len() < demo::STEPS, "{state}: {ran:?}");
    assert!(listing(root) == before, "{state}: verify changed the root");
    let beside = fs::read_dir(root.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = beside.filter(|name| name.to_string_lossy().starts_with(".warmkit")).collect();
    assert_eq!(left, [""; 0], "{state}");
}

/// The databases of a root, those that only daemons make included.
fn databases(root: &Path, snapshotter: &str) -> Vec<PathBuf> {
    let of_worker = ["metadata_v2.db", "containerdmeta.db", "snapshots/metadata.db"];
    let worker = root.join(format!("runc-{snapshotter}"));
    let of_root = ["cache.db", "history.db"].map(|name| root.join(name));
    let all = of_root.into_iter().chain(of_worker.map(|name| worker.join(name)));
    all.filter(|path| path.exists()).collect()
}

/// Asserts that all databases of a root have such pages, and that bbolt finds no fault in them.
#[track_caller]
fn assert_pages(kind: &Kind, root: &Path, pages: usize, state: &str) {
    let databases = databases(root, kind.snapshotter);
    for database in &databases {
        // What the daemon itself has made has the pages of this machine.
        let own = database.ends_with("history.db") && state == "baked";
        let expected = if own { rustix::param::page_size() } else { pages };
        let found = Database::open(database).unwrap().page_size();
        assert_eq!(found, expected, "{state}: {}", database.display());
    }
    let mut check = Command::new(&kind.tools.bbolt_check);
    run(check.args(&databases), Duration::from_secs(60)).expect_success("bbolt's check");
}

/// A baked root in an image has nothing that must not ship; one that builds were done on has.
#[track_caller]
fn ships(kind: &Kind, root: &Path, baked: bool) {
    let image = kind.root("image");
    let _ = fs::remove_dir_all(&image);
    fs::create_dir_all(image.join("etc")).unwrap();
    for file in ["passwd", "subuid", "subgid"] {
        fs::copy(Path::new("/etc").join(file), image.join("etc").join(file)).unwrap();
    }
    let mut copy = Command::new("cp");
    run(copy.arg("-a").arg(root).arg(image.join("root")), Duration::from_secs(60)).expect_success("cp");
    let mut command = warmkit();
    command.args(["verify", "--json", "--read-data", "--image", "--root", "/root", "--sysroot"]).arg(&image);
    let report = parsed(&mut command, if baked { 0 } else { 8 });
    let kinds: BTreeSet<&str> = report["offline"]["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["kind"].as_str().unwrap())
        .collect();
    let expected: &[&str] = if baked { &[] } else { &["history-kept", "history-blobs", "record-mutable"] };
    assert!(expected.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    assert!(kinds.iter().all(|kind| !kind.starts_with("layer-") && *kind != "root-owner"), "{report:#}");
    assert!(report["offline"]["counts"]["layers_compared"].as_u64() > Some(2), "{report:#}");
    fs::remove_dir_all(image).unwrap();
}

/// All commands on a baked root, and on one that its daemon made.
fn serves(release: &str, snapshotter: &'static str, rootless: bool, pages: usize) {
    let Some(kind) = Kind::make(release, snapshotter, rootless) else { return };
    let [request, changed, again] = &kind.requests();
    let (cache, keys) = (demo::cache(), demo::keys());

    let page_size = pages.to_string();
    let arguments = [&cache, "--keys-from", &keys, "--snapshotter", snapshotter, "--page-size", &page_size];
    let (place, baked) = match &kind.user {
        None => (["--root".to_owned(), kind.root("baked").display().to_string()], kind.root("baked")),
        Some(user) => {
            (["--for".into(), format!("rootless:{}", user.name)], kind.root(".local/share/buildkit"))
        }
    };
    let planned = bake_at_as_planned(&arguments, &[], &[&place[0], &place[1]], &baked);
    if snapshotter == "native" {
        // It tells what whole trees cost.
        let upper = plan(&[&cache, "--keys-from", &keys], &kind.root("not made")).expect_success("plan");
        let upper: Value = upper.stdout.parse().unwrap();
        for what in ["bytes_on_disk", "inodes"] {
            let [whole, upper] = [&planned, &upper].map(|plan| plan[what]["estimate"].as_u64().unwrap());
            assert!(whole > 2 * upper, "{what}: {whole} for whole trees, {upper} for upper directories");
        }
    }

    let made = kind.root("made");
    let daemon = kind.daemon(&made);
    let import = request.import_from(&kind.registry.reference("demo", "cache"));
    let outcome = daemon.build(&import.tar(&kind.scratch.join("made.tar")));
    assert!(outcome.extractions > 0 && outcome.ran().is_empty(), "{}", outcome.log);
    daemon.build(again);
    daemon.stop();
    // As a machine with such pages leaves it.
    for database in databases(&made, snapshotter) {
        bolt_tree::read(&database).save(&database, PageSize::try_from(pages).unwrap());
    }

    for (root, state) in [(&baked, "baked"), (&made, "made")] {
        verified(&kind, root, [request, changed], state);
        ships(&kind, root, state == "baked");
        let mut diff = warmkit();
        diff.args(["diff", "--json"]).arg(root).arg(&cache).args(["--keys-from", &keys]);
        let diff = parsed(&mut diff, 0);
        assert_eq!(diff["equal"], state == "baked", "{state}: {diff:#}");
        let hydrated = json(&["hydrate", "--json"], root, 0);
        assert_eq!(hydrated["failed"], Value::Array(Vec::new()), "{state}");
        said_as_by_its_daemon(&kind, root, state);
        let daemon = kind.daemon(root);
        let outcome = daemon.build(changed);
        assert!(outcome.extractions == 0 && outcome.not_cached().len() < demo::STEPS, "{}", outcome.log);
        assert_eq!(daemon.logged_errors(), [""; 0], "{state}");
        daemon.stop();
        json(&["verify", "--json", "--read-data"], root, 0);
        assert_pages(&kind, root, pages, state);
    }

    if let Some(user) = &kind.user {
        // By the user, in a namespace as the daemon has.
        let mut command = user.in_namespace(&user.warmkit());
        command.args(arguments_of_build(&kind, request)).args(["--read-data", "--for", "rootless"]);
        assert_eq!(not_cached(&parsed(&mut command, 0), "in the namespace"), BTreeSet::new());
    }
}

#[test]
fn overlayfs() {
    serves(tools::NEWEST, "overlayfs", false, 4096);
}

#[test]
fn overlayfs_of_an_older_release() {
    serves("v0.17.3", "overlayfs", false, 65536);
}

#[test]
fn fuse_overlayfs() {
    serves(tools::NEWEST, "fuse-overlayfs", false, 65536);
}

#[test]
fn native() {
    serves(tools::NEWEST, "native", false, 16384);
}

#[test]
fn native_of_an_older_release() {
    serves("v0.17.3", "native", false, 65536);
}

#[test]
fn rootless() {
    serves(tools::NEWEST, "overlayfs", true, 16384);
}

#[test]
fn rootless_with_fuse_overlayfs() {
    serves(tools::NEWEST, "fuse-overlayfs", true, 4096);
}

#[test]
fn rootless_with_native_snapshots() {
    serves(tools::NEWEST, "native", true, 65536);
}
