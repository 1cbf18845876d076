//! Disks that take no more: those of containerd, and that of the root.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::fs::statvfs;

use crate::support::command::run;
use crate::support::containerd::Containerd;
use crate::support::skip::is_root;
use crate::support::tmpfs::Tmpfs;
use crate::support::tools::on_path;
use crate::support::volume::Volume;
use crate::support::{Scratch, Tools, skip, tools};
use crate::{Bed, on, reads};

const LIMIT: Duration = Duration::from_secs(120);

/// A disk that fills up: what was written is collected, and when there is room the same bake is made.
#[test]
fn its_disk_is_full() {
    let Some(tools) = Tools::find(tools::NEWEST).filter(|_| is_root()) else { return };
    let scratch = Scratch::new();
    let disk = Tmpfs::new(scratch.join("disk"), "size=32m");
    let Some(containerd) = Containerd::start_in(&disk.0) else { return };
    let bed = Bed::with(tools, containerd, "app");
    let (manifest, _) = bed.world.registry.manifest(bed.case.name, "cache");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let blobs: u64 = manifest["layers"].as_array().unwrap().iter().filter_map(|l| l["size"].as_u64()).sum();

    let (root, filler) = (bed.root("root"), disk.0.join("filler"));
    let client = bed.containerd.client("buildkit");
    // Room for what containerd notes; for all blobs, and not for what is in them.
    for (room, has_unpacked) in [(256 << 10, false), ((512 << 10) + blobs, true)] {
        let free = statvfs(&disk.0).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
        fs::write(&filler, vec![1; usize::try_from(free - room).unwrap()]).unwrap();
        let full = bed.bake(&root);
        assert_eq!(full.status.code(), Some(11), "{room}: {}", full.stderr);
        assert!(full.stderr.contains("no space left on device"), "{room}: {}", full.stderr);
        assert!(!root.exists(), "{room}");
        fs::remove_file(&filler).unwrap();
        if !has_unpacked {
            bed.containerd.collect();
            assert_eq!(client.leases().unwrap(), []);
            assert_eq!(bed.kept(), (Vec::new(), Vec::new()));
        }
    }
    bed.bake(&root).expect_success("with room");
    reads::assert_sound(&bed.containerd, &root);

    // On a full disk containerd may be unable to note that it has removed a snapshot: it does when it removes another one.
    for lease in client.leases().unwrap() {
        client.delete_lease(&lease.id, true).unwrap();
    }
    assert_eq!(bed.kept(), (Vec::new(), Vec::new()));
}

/// A disk that the kernel writes no more to, as after an error: nothing can be baked, what is there can be read, and is
/// there afterwards.
#[test]
fn its_disk_is_read_only() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let scratch = Scratch::on_disk();
    let Some(mut disk) = Volume::make_sized(&scratch, "disk", "ext4", 64 << 20, &[]) else { return };
    disk.mount("defaults");
    let Some(containerd) = Containerd::start_in(&disk.path().join("root")) else { return };
    let mut bed = Bed::with(tools, containerd, "app");
    let root = bed.baked("root");
    let kept = bed.kept();
    disk.sync();
    let remount = run(Command::new("mount").args(["-o", "remount,abort"]).arg(disk.path()), LIMIT);
    assert_eq!(remount.status.code(), Some(0), "{}", remount.stderr);

    let second = bed.root("second");
    let refused = bed.bake(&second);
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    for said in ["read-only file system", "where its `root` is is mounted read-only"] {
        assert!(refused.stderr.contains(said), "no {said:?} in {}", refused.stderr);
    }
    assert!(!second.exists());
    reads::assert_sound(&bed.containerd, &root);

    bed.containerd.restart_after(|| {
        disk.unmount();
        disk.mount("defaults");
    });
    assert_eq!(bed.kept(), kept);
    reads::assert_sound(&bed.containerd, &root);
    bed.bake(&second).expect_success("bake");
}

/// The root is renamed to its place, and then the disk fails: it stays, with what containerd holds for it.
#[test]
fn the_last_sync_of_a_root_fails() {
    let Some(bed) = Bed::new() else { return };
    if on_path("strace").is_none() {
        return skip::skip("no strace in $PATH");
    }
    let root = bed.root("root");
    let arguments = ["bake", &bed.origin.cache, "--keys-from", &bed.origin.image];
    let bake = on(&bed.containerd.address(), &root, &arguments);
    let mut failing = Command::new("strace");
    failing.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "-P"]);
    failing.arg(root.parent().unwrap()).arg(bake.get_program()).args(bake.get_args());
    let failed = run(&mut failing, LIMIT);
    assert_eq!(failed.status.code(), Some(1), "{}", failed.stderr);
    for said in ["the root is in place at", "is not known to be on the disk", "Input/output error"] {
        assert!(failed.stderr.contains(said), "no {said:?} in {}", failed.stderr);
    }
    bed.containerd.collect();
    let leases = bed.containerd.client("buildkit").leases().unwrap();
    assert!(!leases.is_empty() && !leases.iter().any(|lease| lease.temporary), "{leases:?}");
    reads::assert_sound(&bed.containerd, &root);
}
