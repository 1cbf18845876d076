//! What a daemon may be told of its containerd, and a bake reads there: another namespace, other snapshotters.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use warmkit::bolt::Database;
use warmkit::digest::Digest;

use crate::support::cases::{assert_only_changed, assert_warm, export_tar};
use crate::support::command::run;
use crate::support::containerd::Containerd;
use crate::support::warmkit::warmkit;
use crate::support::{Daemon, Tools, tools};
use crate::{Bed, left, on, reads};

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

/// What is in a tar, entry by entry, and a digest of all bytes in its files. Times are left out of directories: those of
/// a native snapshot tell when it was made, as each copy of a tree makes them anew.
fn contents(tar: &Path) -> (Vec<String>, Digest) {
    let tar = |options: &[&str]| {
        let output = Command::new("tar").args(options).arg("--file").arg(tar).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let listed = String::from_utf8(tar(&["--list", "--verbose", "--numeric-owner", "--full-time"])).unwrap();
    let entry = |line: &str| {
        let is_directory = line.starts_with('d');
        // Mode, owner, size, day, time, name.
        let words = line.split_whitespace().enumerate();
        let kept = words.filter(|(at, _)| !(is_directory && matches!(at, 3 | 4)));
        kept.map(|(_, word)| word).collect::<Vec<_>>().join(" ")
    };
    (listed.lines().map(entry).collect(), Digest::of(&tar(&["--extract", "--to-stdout"])))
}

/// The native snapshotter in a namespace that nobody has made yet, as `buildkitd.toml` has it, with an image that is seeded
/// (its manifest and config are blobs, too) and pages of 64 KiB: each command that reads such a root; first build, changed
/// source and prune as with overlayfs, and what is in the tar of a native import.
#[test]
fn native_in_another_namespace() {
    const NAMESPACE: &str = "elsewhere";
    let Some(Bed { mut containerd, world, case, origin }) = Bed::new() else { return };
    let worker = |containerd: &Containerd, namespace: &str| {
        format!("{}\n  namespace = {namespace:?}\n  snapshotter = \"native\"", containerd.worker())
    };
    let Some(beside) = Containerd::start() else { return };
    let imported = world.root(&case, "imported");
    let of_beside = worker(&beside, NAMESPACE);
    let daemon = Daemon::start_on_containerd(&world.tools, &imported, &world.registry, &of_beside);
    let request = case.request.import_from(&origin.cache);
    let exported = world.root(&case, "imported.tar");
    export_tar(&daemon, &request, &exported);
    let native = contents(&exported);
    daemon.stop();
    drop(beside);

    let root = world.root(&case, "root");
    let config = world.scratch.join("buildkitd.toml");
    let configure = |namespace: &str| {
        let worker = worker(&containerd, namespace);
        fs::write(&config, format!("root = {root:?}\n[worker.containerd]\n{worker}\n")).unwrap();
    };
    configure(NAMESPACE);
    let bin = world.scratch.join("bin");
    unit(&bin, &config);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let warmkit = |arguments: &[&str]| {
        let mut command = warmkit();
        run(command.env("PATH", &path).args(arguments).args(["--for", "containerd"]), LIMIT)
    };

    let arguments = ["bake", &origin.cache, "--keys-from", &origin.image, "--with-image", &origin.image];
    warmkit(&[&arguments[..], &["--page-size", "65536"]].concat()).expect_success("bake");
    for database in ["cache.db", "containerd-native/metadata_v2.db"] {
        assert_eq!(Database::open(&root.join(database)).unwrap().page_size(), 65536, "{database}");
    }
    let client = containerd.client(NAMESPACE);
    let (manifest, _) = world.registry.manifest(case.name, "cache-image");
    let manifest = Digest::of(&manifest).to_string();
    let leases = client.leases().unwrap();
    assert!(leases.iter().any(|lease| lease.content.contains(&manifest)), "{manifest}: {leases:?}");
    assert!(!leases.iter().any(|lease| lease.temporary), "{leases:?}");
    assert!(client.labels(&manifest).unwrap().is_some());
    assert_eq!(containerd.client("buildkit").leases().unwrap(), []);
    let kept = (containerd.blobs(), containerd.snapshots_of("native"));
    assert!(!kept.1.is_empty());

    warmkit(&["verify"]).expect_success("verify");
    let hydrated = warmkit(&["hydrate"]).expect_success("hydrate");
    assert!(
        hydrated.stderr.contains("in the directories of a containerd, and are not read"),
        "{}",
        hydrated.stderr
    );
    let side =
        format!("type=root,src={},containerd={},namespace={NAMESPACE}", root.display(), containerd.address());
    let mut diff = crate::warmkit();
    diff.args(["diff", &side, &origin.cache, "--keys-from", &origin.image, "--exit-code"]);
    run(&mut diff, LIMIT).expect_success("diff");
    // Where nobody has ever been.
    configure("nowhere");
    let absent = warmkit(&["verify", "--format", "json"]);
    assert_eq!(absent.status.code(), Some(8), "{}", absent.stderr);
    let absent: serde_json::Value = absent.stdout.parse().unwrap();
    let findings = absent["offline"]["findings"].as_array().unwrap();
    assert_eq!((findings.len(), &findings[0]["kind"]), (1, &"namespace-empty".into()), "{findings:?}");
    let said = format!("namespace nowhere of the containerd at {} has nothing", containerd.address());
    assert!(findings[0]["detail"].as_str().unwrap().contains(&said), "{findings:?}");
    configure(NAMESPACE);

    let Some(_) = containerd.ctr(NAMESPACE, &["content", "prune", "references"]) else { return };
    containerd.restart();
    containerd.collect();
    assert_eq!((containerd.blobs(), containerd.snapshots_of("native")), kept);
    let of_this = worker(&containerd, NAMESPACE);
    let daemon = Daemon::start_on_containerd(&world.tools, &root, &world.registry, &of_this);
    let exported = world.root(&case, "root.tar");
    let (outcome, _) = export_tar(&daemon, &case.request, &exported);
    assert_warm(&outcome, &origin);
    assert_eq!(contents(&exported), native, "the tar differs from that of a natively imported root");
    assert_only_changed(&daemon.build(&case.changed), &origin);
    daemon.stop();
    warmkit(&["verify"]).expect_success("verify after builds");
    warmkit(&["inspect"]).expect_success("inspect after builds");
    let daemon = Daemon::start_on_containerd(&world.tools, &root, &world.registry, &of_this);
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), [], "after prune --all");
    daemon.stop();
    containerd.collect();
    assert_eq!(left(&kept, &containerd).0, [""; 0], "after prune --all");
    assert_eq!(containerd.snapshots_of("native"), [""; 0], "after prune --all");
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
    assert_only_changed(&daemon.build(&bed.case.changed), &bed.origin);
    daemon.prune_all();
    daemon.stop();
    bed.containerd.collect();
    assert_eq!(bed.containerd.client("buildkit").snapshots("fuse-overlayfs").unwrap(), []);
}
