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
use support::warmkit::bake;
use support::{Tools, World, tools};

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
