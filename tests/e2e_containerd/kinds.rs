//! What a daemon may be told of its containerd, and a bake reads there: another namespace, other snapshotters.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use warmkit::digest::Digest;

use crate::support::cases::{assert_warm, export_tar};
use crate::support::command::run;
use crate::support::containerd::Containerd;
use crate::support::warmkit::warmkit;
use crate::support::{Daemon, Tools, tools};
use crate::{Bed, on, reads};

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

/// A snapshotter that is a program of its own, which containerd talks to.
#[test]
fn fuse_overlayfs_by_a_proxy() {
    let (Some(tools), Some(containerd)) = (Tools::find(tools::NEWEST), Containerd::start_with_fuse()) else {
        return;
    };
    let mut bed = Bed::with(tools, containerd, "whiteouts");
    let worker = format!("{}\n  snapshotter = \"fuse-overlayfs\"", bed.containerd.worker());
    let start = |bed: &Bed, root: &Path| {
        Daemon::start_on_containerd(&bed.world.tools, root, &bed.world.registry, &worker)
    };
    let Some(beside) = Containerd::start() else { return };
    let imported = bed.root("imported");
    let daemon =
        Daemon::start_on_containerd(&bed.world.tools, &imported, &bed.world.registry, &beside.worker());
    let request = bed.case.request.import_from(&bed.origin.cache);
    let (_, native) = export_tar(&daemon, &request, &bed.root("imported.tar"));
    daemon.stop();

    let (root, address) = (bed.root("root"), bed.containerd.address());
    let arguments = ["bake", &bed.origin.cache, "--keys-from", &bed.origin.image];
    let snapshotter = ["--snapshotter", "fuse-overlayfs"];
    run(on(&address, &root, &arguments).args(snapshotter), LIMIT).expect_success("bake");
    assert!(root.join("containerd-fuse-overlayfs/metadata_v2.db").is_file());
    reads::assert_sound(&bed.containerd, &root);
    bed.containerd.restart();
    bed.containerd.collect();
    let daemon = start(&bed, &root);
    let (outcome, tar) = export_tar(&daemon, &bed.case.request, &bed.root("root.tar"));
    assert_warm(&outcome, &bed.origin);
    assert_eq!(tar, native, "the tar differs from that of a root with overlayfs");
    // Steps that run on these layers, too.
    let outcome = daemon.build(&bed.case.changed);
    assert_eq!(
        outcome.not_cached(),
        bed.origin.changed.iter().map(String::as_str).collect(),
        "{}",
        outcome.log
    );
    daemon.prune_all();
    daemon.stop();
    bed.containerd.collect();
    assert_eq!(bed.containerd.client("buildkit").snapshots("fuse-overlayfs").unwrap(), []);
}
