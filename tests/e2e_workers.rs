//! Roots of other OCI workers than that of a machine's root with overlayfs: baked, verified, and built on by real
//! daemons.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::cases::{Case, Origin, assert_only_changed, assert_warm, export_tar};
use support::command::run;
use support::daemon::{DATABASES, check_databases};
use support::rootless::User;
use support::skip::skip;
use support::tools::on_path;
use support::warmkit::{bake, verify, warmkit};
use support::{Daemon, Tools, World, tools};
use warmkit::bolt::Database;
use warmkit::digest::Digest;

/// No fault in a root, whose layers are all compared with their snapshots.
#[track_caller]
fn assert_sound(root: &Path, state: &str) {
    let ended = verify(&["--read-data", "--json"], root);
    assert_eq!(ended.status.code(), Some(0), "{state}: {}{}", ended.stdout, ended.stderr);
    let report: Value = ended.stdout.parse().unwrap();
    assert!(report["offline"]["counts"]["layers_compared"].as_u64() > Some(3), "{state}: {report:#}");
}

/// A file with the owner that its layer names, where a rootless daemon needs the one of its namespace: it would be
/// nobody's in a build.
#[track_caller]
fn assert_owners_count(root: &Path, snapshotter: &str) {
    let upper = if snapshotter == "native" { "1" } else { "1/fs" };
    let file = root.join(format!("runc-{snapshotter}/snapshots/snapshots/{upper}/bin/busybox"));
    let owner = fs::symlink_metadata(&file).unwrap();
    lchown(&file, Some(0), Some(0)).unwrap();
    let ended = verify(&["--read-data"], root);
    assert_eq!(ended.status.code(), Some(8), "{}", ended.stdout);
    assert!(ended.stdout.contains("layer-entry-owner"), "{}", ended.stdout);
    lchown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// A root for the snapshotter is warm: untouched, after a change of the source, and after another start.
fn warms(release: &str, snapshotter: &str, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    if snapshotter == "fuse-overlayfs" && on_path(snapshotter).is_none() {
        return skip("no fuse-overlayfs in $PATH");
    }
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);

    // What the same daemon makes of the cache by itself.
    let start = |root: &Path| Daemon::start_on(&world.tools, root, &world.registry, snapshotter);
    let daemon = start(&world.root(&case, "imported"));
    let request = case.request.import_from(&origin.cache);
    let (_, native) = export_tar(&daemon, &request, &world.root(&case, "imported.tar"));
    daemon.stop();
    assert_sound(&world.root(&case, "imported"), "imported and extracted");

    let root = world.root(&case, "root");
    let arguments = [&origin.cache, "--keys-from", &origin.image, "--snapshotter", snapshotter];
    bake(&arguments, &root).expect_success("bake");
    assert_sound(&root, "baked");

    stays_warm(&world, &case, &origin, &root, (snapshotter != "native").then_some(native), &start);
}

/// A root is warm for the daemons that `start` starts on it: untouched, with this tar where one is given, after a change
/// of the source, and after another start; and it can be emptied.
fn stays_warm(
    world: &World,
    case: &Case,
    origin: &Origin,
    root: &Path,
    native: Option<Digest>,
    start: &dyn Fn(&Path) -> Daemon,
) {
    let daemon = start(root);
    assert_in_use(root);
    let (outcome, tar) = export_tar(&daemon, &case.request, &world.root(case, "root.tar"));
    assert_warm(&outcome, origin);
    // Each copy of a tree makes its directories anew, so those of a native snapshot tell when it was made.
    if let Some(native) = native {
        assert_eq!(tar, native, "the tar differs from that of a natively imported root");
    }
    assert_only_changed(&daemon.build(&case.changed), origin);
    daemon.stop();
    assert_sound(root, "built on");

    let daemon = start(root);
    assert_warm(&daemon.build(&case.request), origin);
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), [], "after prune --all");
    assert_eq!(daemon.logged_errors(), [""; 0], "{}", daemon.log());
    daemon.stop();
}

/// A root that a daemon runs on is neither baked into nor planned for, nor judged.
#[track_caller]
fn assert_in_use(root: &Path) {
    let cache = "type=local,src=/nonexistent";
    for (command, said) in [
        (&["bake", cache][..], "is in use by a running buildkitd, nothing was changed"),
        (&["plan", cache], "is in use by a running buildkitd"),
        (&["verify"], "is in use: another process holds buildkitd.lock locked"),
    ] {
        let ended = run(warmkit().args(command).arg("--root").arg(root), Duration::from_secs(60));
        assert_eq!(ended.status.code(), Some(7), "{command:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{command:?}: {}", ended.stderr);
    }
}

/// Who bakes a root for a daemon that a plain user runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// Root, from outside.
    Root,
    /// The user, in a namespace as the daemon has, which then is told neither its root nor its configuration.
    User,
}

/// The same of a daemon that a plain user runs, in the user's home.
fn warms_rootless(release: &str, snapshotter: &str, bakers: &[By], name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    if snapshotter == "fuse-overlayfs" && on_path(snapshotter).is_none() {
        return skip("no fuse-overlayfs in $PATH");
    }
    let Some(mut user) = User::make(&tools).map(User::with_more_ids) else { return };
    if snapshotter == "fuse-overlayfs" {
        user = user.with_fuse();
    }
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);
    let start = |root: &Path| Daemon::start_rootless(&world.tools, root, &world.registry, snapshotter, &user);

    let imported = user.home.join("imported");
    let daemon = start(&imported);
    let request = case.request.import_from(&origin.cache);
    let (_, native) = export_tar(&daemon, &request, &world.root(&case, "imported.tar"));
    daemon.stop();
    assert_sound(&imported, "imported and extracted");

    let (data, config) = (user.home.join("data"), user.home.join("config"));
    // The first of several counts.
    let (several, config) = (format!("{}:/nonexistent", data.display()), config.display().to_string());
    let variables = [("XDG_DATA_HOME", several.as_str()), ("XDG_CONFIG_HOME", config.as_str())];
    let in_namespace = |arguments: &[&str]| {
        let mut command = user.in_namespace(&user.warmkit());
        run(command.envs(variables).args(arguments), Duration::from_secs(120))
    };

    let arguments = ["bake", &origin.cache, "--keys-from", &origin.image, "--snapshotter", snapshotter];
    let native = (snapshotter != "native").then_some(native);
    for by in bakers {
        let root = if *by == By::User {
            in_namespace(&[&arguments[..], &["--for", "rootless"]].concat()).expect_success("bake");
            data.join("buildkit")
        } else {
            let target = format!("rootless:{}", user.name);
            let mut command = warmkit();
            command.args(arguments).args(["--for", &target]);
            run(&mut command, Duration::from_secs(120)).expect_success("bake");
            user.home.join(".local/share/buildkit")
        };
        assert_sound(&root, "baked");
        assert_owners_count(&root, snapshotter);
        if *by == By::Root {
            stays_warm(&world, &case, &origin, &root, native, &start);
            continue;
        }
        // Where the owners are those of the namespace.
        let ended = in_namespace(&["verify", "--read-data", "--root", root.to_str().unwrap()]);
        let ended = ended.expect_success("verify in the namespace");
        assert!(ended.stdout.contains(", 0 not comparable"), "{}", ended.stdout);
        // The user's other root is passed over: this is the one that is told.
        let ended = in_namespace(&["verify", "--for", "auto"]).expect_success("verify --for auto");
        assert!(ended.stderr.contains("taken: --for rootless\n"), "{}", ended.stderr);

        let start = |root: &Path| {
            let (tools, registry) = (&world.tools, &world.registry);
            let daemon = Daemon::start_untold(tools, root, registry, snapshotter, &user, &variables);
            for target in ["rootless", "auto"] {
                let ended = in_namespace(&["bake", "type=local,src=/nonexistent", "--for", target]);
                assert_eq!(ended.status.code(), Some(7), "{target}: {}", ended.stderr);
                let said = "is in use by a running buildkitd";
                assert!(ended.stderr.contains(said), "{target}: {}", ended.stderr);
            }
            daemon
        };
        stays_warm(&world, &case, &origin, &root, native, &start);
    }
}

/// Databases with the pages of an arm64 machine: a daemon here opens them, writes to them, and Go finds no fault.
#[test]
fn pages_of_other_machines() {
    for (release, size) in [(tools::NEWEST, "65536"), ("v0.17.3", "16384")] {
        let Some(tools) = Tools::find(release) else { return };
        let world = World::start(tools);
        let case = world.case("app");
        let origin = world.export(&case);
        let root = world.root(&case, "root");
        let arguments = [&origin.cache, "--keys-from", &origin.image, "--page-size", size];
        bake(&arguments, &root).expect_success("bake");
        verify(&["--read-data"], &root).expect_success("verify");
        check_databases(&world.tools, &root);

        let daemon = world.daemon(&root);
        assert_warm(&daemon.build(&case.request), &origin);
        daemon.build(&case.changed);
        daemon.stop();
        verify(&[], &root).expect_success("verify after builds");
        check_databases(&world.tools, &root);
        for database in DATABASES {
            let found = Database::open(&root.join(database)).unwrap().page_size();
            assert_eq!(found.to_string(), size, "{database}");
        }
        let daemon = world.daemon(&root);
        assert_warm(&daemon.build(&case.request), &origin);
        daemon.stop();
    }
}

#[test]
fn rootless_baked_as_root() {
    warms_rootless(tools::NEWEST, "overlayfs", &[By::Root], "whiteouts");
}

#[test]
fn rootless_baked_by_the_user() {
    warms_rootless(tools::NEWEST, "overlayfs", &[By::User], "app");
}

#[test]
fn rootless_of_an_older_release() {
    warms_rootless("v0.17.3", "overlayfs", &[By::User], "whiteouts");
}

#[test]
fn rootless_with_fuse_overlayfs() {
    warms_rootless(tools::NEWEST, "fuse-overlayfs", &[By::User, By::Root], "whiteouts");
}

#[test]
fn rootless_with_fuse_overlayfs_of_an_older_release() {
    warms_rootless("v0.17.3", "fuse-overlayfs", &[By::Root], "app");
}

#[test]
fn rootless_with_native_snapshots_of_an_older_release() {
    warms_rootless("v0.17.3", "native", &[By::User], "whiteouts");
}

#[test]
fn rootless_with_native_snapshots() {
    warms_rootless(tools::NEWEST, "native", &[By::Root, By::User], "app");
}

#[test]
fn fuse_overlayfs() {
    warms(tools::NEWEST, "fuse-overlayfs", "whiteouts");
}

#[test]
fn fuse_overlayfs_of_an_older_release() {
    warms("v0.17.3", "fuse-overlayfs", "app");
}

#[test]
fn native() {
    warms(tools::NEWEST, "native", "app");
}

#[test]
fn native_of_an_older_release() {
    warms("v0.17.3", "native", "whiteouts");
}

#[test]
fn a_user_who_has_too_few_ids_gets_no_root() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(user) = User::make(&tools) else { return };
    let world = World::start(tools);
    let case = world.case("whiteouts");
    let origin = world.export(&case);
    let bake = |target: &str, code: i32, said: &[&str]| {
        let mut command = warmkit();
        command.args(["bake", &origin.cache, "--keys-from", &origin.image, "--for", target]);
        let ended = run(&mut command, Duration::from_secs(120));
        assert_eq!(ended.status.code(), Some(code), "{target}: {}", ended.stderr);
        for said in said {
            assert!(ended.stderr.contains(said), "{target}: {said:?} in\n{}", ended.stderr);
        }
        assert!(!user.home.join(".local").exists(), "{target}");
    };
    let target = format!("rootless:{}", user.name);
    // The base image has one.
    bake(&target, 1, &["odd/large-owner", "user 3000000 is none of those", "(0-65536)", "/etc/subuid"]);
    bake("rootless:no-such-user", 1, &["no user \"no-such-user\""]);
    bake("rootless:root", 2, &["--for host"]);
    bake("rootless", 2, &["--for rootless:USER"]);

    let user = user.without_ids();
    let mut command = warmkit();
    command.args(["bake", &origin.cache, "--for", &target]);
    let ended = run(&mut command, Duration::from_secs(120));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no range in /etc/subuid") && ended.stderr.contains(&user.name),
        "{}",
        ended.stderr
    );
}
