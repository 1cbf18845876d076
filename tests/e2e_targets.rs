//! Targets that are there already: an empty directory that must stay the same one (a docker
//! volume), and a mount point. Both end up warm, and a second bake is refused.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::cases::{Case, Origin, assert_warm};
use support::command::run;
use support::daemon::check_databases;
use support::warmkit::{bake, verify};
use support::{Daemon, Tools, World, tools};

/// A file system of its own, unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(path: &'a Path) -> Self {
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(path), Duration::from_secs(10))
            .expect_success("mount");
        Self(path)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0), Duration::from_secs(10));
    }
}

fn warms_in_place(world: &World, case: &Case, origin: &Origin, root: &Path) {
    let before = fs::metadata(root).unwrap();
    bake(&[&origin.cache, "--keys-from", &origin.image], root).expect_success("bake");
    let after = fs::metadata(root).unwrap();
    assert_eq!((before.dev(), before.ino()), (after.dev(), after.ino()), "the directory was replaced");
    check_databases(&world.tools, root);

    let refused = bake(&[&origin.cache, "--keys-from", &origin.image], root);
    assert_eq!(refused.status.code(), Some(7), "a second bake\n{}", refused.stderr);

    let daemon = world.daemon(root);
    assert_warm(&daemon.build(&case.request.tar(&world.root(case, "result.tar"))), origin);
    let held = bake(&[&origin.cache, "--keys-from", &origin.image], root);
    assert_eq!(held.status.code(), Some(7), "a bake under a running daemon\n{}", held.stderr);
    assert_eq!(daemon.logged_errors(), [""; 0]);
    daemon.stop();
}

#[test]
fn a_mount_point() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let root = world.root(&case, "mounted");
    fs::create_dir(&root).unwrap();
    let _mounted = Mounted::tmpfs(&root);
    warms_in_place(&world, &case, &origin, &root);
}

/// What separates the options of a mount: a daemon that has its root there can mount no layers, but for one that has
/// it elsewhere it is a root like any other. One whose snapshots are whole trees needs no mounts.
#[test]
fn a_path_that_mounts_take_apart() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let arguments = [&origin.cache, "--keys-from", &origin.image];
    for odd in ["a,b", "a:b"] {
        let root = world.scratch.join(odd);
        let baked = bake(&arguments, &root).expect_success("bake");
        let warning = format!("warning: {}: mounts of overlayfs take the {:?}", root.display(), &odd[1..2]);
        assert!(baked.stderr.contains(&warning.replace('"', "'")), "{}", baked.stderr);
        verify(&["--read-data"], &root).expect_success("verify");
        let daemon = world.daemon(&root);
        let error = daemon.try_build(&case.changed).unwrap_err();
        assert!(error.contains("no such file or directory"), "{error}");
        daemon.stop();
        fs::remove_dir_all(&root).unwrap();
        bake(&arguments, &root).expect_success("bake");
        let moved = world.scratch.join("moved");
        fs::rename(&root, &moved).unwrap();
        let daemon = world.daemon(&moved);
        assert_warm(&daemon.build(&case.request), &origin);
        daemon.build(&case.changed);
        daemon.stop();
        fs::remove_dir_all(&moved).unwrap();
    }
    let root = world.scratch.join("of,native");
    let baked = bake(&[&arguments[..], &["--snapshotter", "native"]].concat(), &root).expect_success("bake");
    assert!(!baked.stderr.contains("separator"), "{}", baked.stderr);
    let daemon = Daemon::start_on(&world.tools, &root, &world.registry, "native");
    assert_warm(&daemon.build(&case.request), &origin);
    daemon.build(&case.changed);
    daemon.stop();
}

/// A directory on a file system of its own cannot be replaced by rename; one that is empty could
/// be, but whoever holds it open (docker, a bind mount) would keep the old one.
#[test]
fn an_empty_directory_that_is_bind_mounted_elsewhere() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let (volume, seen) = (world.root(&case, "volume/_data"), world.root(&case, "seen"));
    fs::create_dir_all(&volume).unwrap();
    fs::create_dir(&seen).unwrap();
    run(Command::new("mount").arg("--bind").args([&volume, &seen]), Duration::from_secs(10))
        .expect_success("mount");
    let _mounted = Mounted(&seen);
    warms_in_place(&world, &case, &origin, &volume);
    assert!(seen.join("cache.db").is_file(), "whoever mounted the directory sees nothing of the bake");
}
