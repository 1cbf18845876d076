//! What a daemon may be told of its containerd, and a bake reads there: another namespace, another snapshotter.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use warmkit::digest::Digest;

use crate::Bed;
use crate::support::Daemon;
use crate::support::cases::{assert_warm, export_tar};
use crate::support::command::run;
use crate::support::warmkit::warmkit;

const LIMIT: Duration = Duration::from_secs(120);

/// A `systemctl` that says with which configuration this machine's daemon is started, in a directory of its own.
fn unit(directory: &Path, config: &Path) {
    let script = format!(
        "#!/bin/sh\nfor last; do :; done\ntest \"$last $2\" = 'buildkit.service --property=ExecStart' || exit 0\n\
         echo '{{ path=/usr/sbin/x ; argv[]=/usr/sbin/x --config {} ; ignore_errors=no ; pid=0 }}'\n",
        config.display()
    );
    fs::create_dir(directory).unwrap();
    let draft = directory.join("draft");
    fs::write(&draft, script).unwrap();
    // By another process: a file that a child of another thread may have open for writing does not run.
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(&draft).arg(directory.join("systemctl"));
    assert!(install.status().unwrap().success());
    assert!(fs::metadata(directory.join("systemctl")).unwrap().permissions().mode() & 0o100 != 0);
}

/// The native snapshotter in a namespace that nobody has made yet, as `buildkitd.toml` has it, with an image that is seeded:
/// its manifest and config are blobs, too.
#[test]
fn native_in_another_namespace() {
    const NAMESPACE: &str = "elsewhere";
    let Some(Bed { mut containerd, world, case, origin }) = Bed::new() else { return };
    let root = world.root(&case, "root");
    let worker = format!("{}\n  namespace = {NAMESPACE:?}\n  snapshotter = \"native\"", containerd.worker());
    let text = format!("root = {root:?}\n[worker.containerd]\n{worker}\n");
    let config = world.scratch.write("buildkitd.toml", text);
    let bin = world.scratch.join("bin");
    unit(&bin, &config);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let warmkit = |arguments: &[&str]| {
        let mut command = warmkit();
        run(command.env("PATH", &path).args(arguments).args(["--for", "containerd"]), LIMIT)
    };

    let arguments = ["bake", &origin.cache, "--keys-from", &origin.image, "--with-image", &origin.image];
    warmkit(&arguments).expect_success("bake");
    assert!(root.join("containerd-native/metadata_v2.db").is_file());
    let client = containerd.client(NAMESPACE);
    let (manifest, _) = world.registry.manifest(case.name, "cache-image");
    let manifest = Digest::of(&manifest).to_string();
    let holders =
        client.leases().unwrap().into_iter().filter(|lease| lease.content.contains(&manifest)).count();
    assert!(holders > 0 && client.labels(&manifest).unwrap().is_some(), "{manifest}");
    assert_eq!(containerd.client("buildkit").leases().unwrap(), []);
    let kept = (containerd.blobs(), containerd.snapshots_of("native"));
    assert!(!kept.1.is_empty());
    warmkit(&["verify"]).expect_success("verify");

    let Some(_) = containerd.ctr(NAMESPACE, &["content", "prune", "references"]) else { return };
    containerd.restart();
    containerd.collect();
    assert_eq!((containerd.blobs(), containerd.snapshots_of("native")), kept);
    let daemon = Daemon::start_on_containerd(&world.tools, &root, &world.registry, &worker);
    let (outcome, _) = export_tar(&daemon, &case.request, &world.root(&case, "root.tar"));
    assert_warm(&outcome, &origin);
    daemon.stop();
    warmkit(&["verify"]).expect_success("verify after a build");
    warmkit(&["inspect"]).expect_success("inspect after a build");
}
