//! What `warmkit hydrate` reads of a root, and what it leaves alone: on file systems whose disk counts.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::command::{self, run};
use support::daemon::DATABASES;
use support::demo;
use support::files::Scratch;
use support::lazy::Slowness;
use support::volume::Volume;
use support::warmkit::warmkit;

const LIMIT: Duration = Duration::from_secs(60);
const SNAPSHOT: &str = "runc-overlayfs/snapshots/snapshots/1/fs";
const BLOBS: &str = "runc-overlayfs/content/blobs/sha256";
const MIB: u64 = 1 << 20;

/// A volume with the demo baked into a root on it, and that root. Mounted to be read: nothing of it is in memory.
fn baked(scratch: &Scratch) -> Option<(Volume, PathBuf)> {
    let mut volume = Volume::make(scratch, "ext4", &[])?;
    let root = volume.path().join("buildkit");
    volume.mount("rw");
    demo::bake(&[], &root);
    volume.unmount();
    volume.mount("ro");
    Some((volume, root))
}

/// Runs `warmkit hydrate --json <arguments>`, and gives its report.
#[track_caller]
fn hydrate(root: &Path, arguments: &[&str]) -> Value {
    let mut command = warmkit();
    command.args(["hydrate", "--json", "--root"]).arg(root).args(arguments);
    let ended = run(&mut command, LIMIT).expect_success("hydrate");
    let report: Value = ended.stdout.parse().unwrap();
    assert_eq!(report["failed"], Value::Array(Vec::new()));
    assert_eq!(report["gone"], 0);
    report
}

fn sum(report: &Value, member: &str) -> u64 {
    report["stages"].as_array().unwrap().iter().map(|stage| stage[member].as_u64().unwrap()).sum()
}

/// Adds to a snapshot what file systems keep in ways of their own. Not all of it is ever made by a bake.
fn add_unusual(root: &Path) {
    let dir = root.join(SNAPSHOT).join("unusual");
    fs::create_dir_all(dir.join("deep/er/still")).unwrap();
    for at in 0..200 {
        fs::write(dir.join(format!("deep/er/still/a file with quite a long name {at}")), vec![7; at * 40])
            .unwrap();
    }
    // Larger than what one thread reads, and of bytes that no file system finds a shorter way to keep.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    })
    .take(20 << 17)
    .flatten()
    .collect();
    fs::write(dir.join("large"), noise).unwrap();
    fs::hard_link(dir.join("large"), dir.join("same")).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(64 << 30).unwrap();
    sparse.write_all_at(b"data", 32 << 30).unwrap();
    symlink("x/".repeat(400), dir.join("long link")).unwrap();
    symlink("/etc/passwd", dir.join("link")).unwrap();
    rustix::fs::setxattr(dir.join("deep"), "user.long", &[9; 2000], XattrFlags::empty()).unwrap();
    let file = dir.join("deep/er/still/a file with quite a long name 1");
    rustix::fs::setxattr(file, "user.long", &[9; 2000], XattrFlags::empty()).unwrap();
}

/// Everything below, in no order.
fn all(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at) {
        if path.symlink_metadata().unwrap().is_dir() {
            let entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            found.extend(entries);
        }
        at += 1;
    }
    found
}

/// Reads whatever is to be had of a tree, by the plainest means.
fn read_all(path: &Path) {
    let mut buffer = vec![0; 1 << 20];
    for path in all(path) {
        let metadata = path.symlink_metadata().unwrap();
        let mut names = vec![0; 4096];
        let listed = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        for name in names[..listed].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            rustix::fs::lgetxattr(&path, name, &mut buffer[..]).unwrap();
        }
        if metadata.is_symlink() {
            fs::read_link(&path).unwrap();
        } else if path.ends_with("sparse") {
            File::open(&path).unwrap().read_exact_at(&mut buffer, (32 << 30) - 4096).unwrap();
        } else if metadata.is_file() {
            let mut file = File::open(&path).unwrap();
            while file.read(&mut buffer).unwrap() > 0 {}
        }
    }
}

/// The disk counts the pages that are read for the first time, whatever the kernel keeps in memory: if some are left
/// for the plainest reader there is, they were not read.
#[test]
fn every_block_is_read_and_the_databases_first() {
    let scratch = Scratch::new();
    for kind in ["ext4", "xfs"] {
        let Some(mut volume) = Volume::make(&scratch, kind, &[]) else { return };
        let root = volume.path().join("buildkit");
        volume.mount("rw");
        demo::bake(&[], &root);
        add_unusual(&root);
        // Everything stands on the lowest layer; and a step copies from this.
        let copied = all(&root).into_iter().find(|path| path.ends_with("fs/work/app")).unwrap();
        volume.unmount();

        // Read-only: nothing that the file system does for itself.
        volume.fetch_lazily(Slowness::counting(4096));
        volume.mount("ro");
        let (before, read_before) = (volume.fetched(), volume.bytes_read());
        let databases = hydrate(&root, &["--only", "databases"]);
        let after = volume.fetched();
        assert_eq!(sum(&databases, "files"), 5, "{kind}: four databases and an id: {databases}");
        for database in DATABASES {
            read_all(&root.join(database));
        }
        assert_eq!(volume.fetched(), after, "{kind}: of the databases, not all was read");

        let first = hydrate(&root, &["--only", "first-build"]);
        let after = volume.fetched();
        read_all(&root.join(SNAPSHOT));
        read_all(&copied);
        assert_eq!(volume.fetched(), after, "{kind}: of what is needed first, not all was read");

        let rest = hydrate(&root, &["--only", "rest"]);
        let (whole, read) = (volume.fetched(), volume.bytes_read() - read_before);
        assert!(whole > after, "{kind}: nothing was left for the rest");
        let reports = [&databases, &first, &rest];
        let from_disk: u64 = reports.map(|report| sum(report, "from_disk")).iter().sum();
        let data: u64 = reports.map(|report| sum(report, "bytes")).iter().sum();
        assert!(data >= 20 * MIB && from_disk >= data, "{kind}: {from_disk} from the disk for {data}");
        assert!(from_disk <= read, "{kind}: {from_disk} of {read} counted");
        assert!(data < 32 * MIB, "{kind}: holes were read, or a file twice: {data}");
        assert!((whole - before) * 4096 >= data, "{kind}: the disk counts {whole} pages of {data} bytes");

        read_all(&root);
        hydrate(&root, &[]);
        assert_eq!(volume.fetched(), whole, "{kind}: not all was read");
        volume.unmount();
    }
}

/// Other snapshotters keep layers in other places.
#[test]
fn every_block_is_read_whatever_the_snapshotter() {
    let scratch = Scratch::new();
    for snapshotter in ["fuse-overlayfs", "native"] {
        let Some(mut volume) = Volume::make(&scratch, "ext4", &[]) else { return };
        let root = volume.path().join("buildkit");
        volume.mount("rw");
        demo::bake(&["--snapshotter", snapshotter], &root);
        volume.unmount();

        volume.fetch_lazily(Slowness::counting(4096));
        volume.mount("ro");
        hydrate(&root, &["--only", "databases"]);
        let after = volume.fetched();
        for database in DATABASES {
            read_all(&root.join(database.replace("overlayfs", snapshotter)));
        }
        assert_eq!(volume.fetched(), after, "{snapshotter}: of the databases, not all was read");
        let first = hydrate(&root, &["--only", "first-build"]);
        assert!(sum(&first, "files") > 0, "{snapshotter}: {first}");
        hydrate(&root, &["--only", "rest"]);
        let whole = volume.fetched();
        read_all(&root);
        assert_eq!(volume.fetched(), whole, "{snapshotter}: not all was read");
        volume.unmount();
    }
}

/// Bytes of a file that are in memory.
fn in_memory(path: &Path) -> u64 {
    let mut fincore = Command::new("fincore");
    fincore.args(["--bytes", "--raw", "--noheadings", "--output", "RES"]).arg(path);
    run(&mut fincore, LIMIT).expect_success("fincore").stdout.trim().parse().unwrap()
}

#[test]
fn memory_is_left_as_it_was_but_for_databases() {
    let scratch = Scratch::new();
    let Some((mut volume, root)) = baked(&scratch) else { return };
    let blobs: Vec<_> = all(&root.join(BLOBS)).into_iter().filter(|path| path.is_file()).collect();
    // Somebody works with one of them.
    let used = &blobs[blobs.len() / 2];
    read_all(used);
    let whole = |path: &Path| path.metadata().unwrap().len().next_multiple_of(4096);
    let report = hydrate(&root, &[]);
    assert!(sum(&report, "from_disk") > 0);
    for blob in &blobs {
        let expected = if blob == used { whole(blob) } else { 0 };
        assert_eq!(in_memory(blob), expected, "{}", blob.display());
    }
    for database in DATABASES {
        let database = root.join(database);
        assert_eq!(in_memory(&database), whole(&database), "{}", database.display());
    }
    volume.unmount();
}

#[test]
fn no_faster_than_it_may() {
    let scratch = Scratch::new();
    let Some((mut volume, root)) = baked(&scratch) else { return };
    let report = hydrate(&root, &["--rate", "2MiB", "--jobs", "2"]);
    let (seconds, from_disk) = (report["seconds"].as_f64().unwrap(), sum(&report, "from_disk"));
    // The last read needs not be waited for, and is of an eighth of a second.
    #[allow(clippy::cast_precision_loss)]
    let least = (from_disk as f64) / (2 * MIB) as f64 - 0.25;
    assert!(least > 0.5 && seconds >= least, "{from_disk} bytes in {seconds} s, not {least}");
    // Now databases are in memory, and cost nothing.
    let again = hydrate(&root, &["--only", "databases", "--rate", "16KiB"]);
    assert!(sum(&again, "from_disk") < sum(&again, "bytes") / 2, "{again}");
    volume.unmount();
}

/// Times of last access of all files below; those of directories this test changes by looking for them.
fn access_times(path: &Path) -> Vec<(PathBuf, i64, i64)> {
    let mut times: Vec<_> = all(path)
        .into_iter()
        .filter_map(|path| {
            let metadata = path.symlink_metadata().unwrap();
            metadata.is_file().then(|| (path, metadata.atime(), metadata.atime_nsec()))
        })
        .collect();
    times.sort();
    times
}

#[test]
fn opens_nothing_that_is_no_file_of_the_root_and_changes_nothing() {
    let scratch = Scratch::new();
    let Some(mut volume) = Volume::make(&scratch, "ext4", &[]) else { return };
    volume.mount("rw,strictatime");
    let root = volume.path().join("buildkit");
    demo::bake(&[], &root);
    let expected = sum(&hydrate(&root, &[]), "bytes");

    let snapshot = root.join(SNAPSHOT);
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, snapshot.join(name), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    };
    // Who opens these waits for ever, reads without an end, or opens a device that is not there.
    node("pipe", FileType::Fifo, 0);
    node("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5));
    node("whiteout", FileType::CharacterDevice, 0);
    node("disk", FileType::BlockDevice, rustix::fs::makedev(7, 250));
    let outside = volume.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), vec![1; 100_000]).unwrap();
    symlink(&outside, snapshot.join("directory")).unwrap();
    symlink(outside.join("file"), snapshot.join("link")).unwrap();
    // Another file system, and the same one at another place: as a daemon's containers have them.
    for (name, arguments) in
        [("tmpfs", ["-t", "tmpfs", "tmpfs"]), ("bound", ["--bind", "-v", outside.to_str().unwrap()])]
    {
        let at = snapshot.join(name);
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(arguments).arg(&at), LIMIT).expect_success("mount");
    }
    fs::write(snapshot.join("tmpfs/file"), vec![1; 100_000]).unwrap();

    let before = access_times(&root);
    let mut command = warmkit();
    command.args(["hydrate", "--json", "--root"]).arg(&root);
    let ended = run(&mut command, LIMIT).expect_success("hydrate");
    let report: Value = ended.stdout.parse().unwrap();
    assert_eq!(access_times(&root), before);
    for name in ["tmpfs", "bound"] {
        run(Command::new("umount").arg(snapshot.join(name)), LIMIT).expect_success("umount");
    }
    assert_eq!((sum(&report, "bytes"), &report["failed"]), (expected, &Value::Array(Vec::new())));
    assert_eq!(report["gone"], 2, "what is mounted: {report}");
    volume.unmount();
}

#[test]
fn a_signal_ends_it() {
    let scratch = Scratch::new();
    let Some((mut volume, root)) = baked(&scratch) else { return };
    let stamp = scratch.join("stamp");
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = warmkit();
        command.args(["hydrate", "--rate", "1", "--progress", "rawjson", "--stamp"]).arg(&stamp);
        let mut child = command.arg("--root").arg(&root).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("\"started\""));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = command::wait(&mut child, LIMIT).expect("it goes on after a signal");
        assert_eq!(status.code(), Some(1));
        let last: Value = lines.last().unwrap().unwrap().parse().unwrap();
        assert_eq!((&last["event"], &last["message"]), (&"error".into(), &"interrupted".into()));
    }
    assert!(!stamp.exists());
    volume.unmount();
}

#[test]
fn once_if_that_is_asked_for() {
    if !support::skip::is_root() {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.join("root");
    demo::bake(&[], &root);
    let stamp = scratch.join("stamp");
    let arguments = ["--idle", "--jobs", "3", "--stamp", stamp.to_str().unwrap()];
    let first = hydrate(&root, &arguments);
    assert_eq!(first["stages"].as_array().unwrap().len(), 3);
    assert_eq!(fs::read_to_string(&stamp).unwrap().parse::<Value>().unwrap(), first);
    assert_eq!(hydrate(&root, &arguments)["stages"], Value::Array(Vec::new()));

    // What is no root is left alone.
    for (path, message) in
        [(scratch.path(), "is no BuildKit state directory"), (&scratch.join("none"), "cannot open")]
    {
        let ended = run(warmkit().args(["hydrate", "--root"]).arg(path), LIMIT);
        assert_eq!(ended.status.code(), Some(1));
        assert!(ended.stderr.contains(message), "{}", ended.stderr);
    }
}

/// Everything that a bake ever wrote to the disk is there at its end: blocks that were written and freed again
/// would still be in the file behind the disk.
#[test]
fn a_bake_leaves_no_deleted_blocks() {
    let scratch = Scratch::new();
    // Without a journal, which is written anew all the time; synchronously, so that nothing is deleted before
    // it was ever written.
    let options = ["-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard"];
    let Some(mut volume) = Volume::make(&scratch, "ext4", &options) else { return };
    volume.mount("rw,sync,nodiscard");
    for name in ["absent", "empty"] {
        let root = volume.path().join(name);
        if name == "empty" {
            fs::create_dir(&root).unwrap();
        }
        run(Command::new("sync").arg("-f").arg(volume.path()), LIMIT).expect_success("sync");
        let before = volume.stored();
        demo::bake(&[], &root);
        run(Command::new("sync").arg("-f").arg(volume.path()), LIMIT).expect_success("sync");
        let kept: u64 = all(&root).iter().map(|path| path.symlink_metadata().unwrap().blocks() * 512).sum();
        let written = volume.stored() - before;
        // Tables of inodes and blocks are nobody's.
        assert!(written <= kept + MIB / 8, "{name}: {written} bytes were written, {kept} kept");
        assert!(written >= kept / 2, "{name}: nobody counted");
    }
    volume.unmount();
}

#[test]
fn fstrim_forgets_what_was_deleted() {
    let scratch = Scratch::new();
    for kind in ["ext4", "xfs"] {
        let Some(mut volume) = Volume::make(&scratch, kind, &[]) else { return };
        volume.mount("rw,nodiscard");
        let empty = volume.stored();
        let junk = volume.path().join("junk");
        fs::write(&junk, vec![0x5a; 64 << 20]).unwrap();
        run(Command::new("sync").arg("-f").arg(volume.path()), LIMIT).expect_success("sync");
        fs::remove_file(&junk).unwrap();
        let root = volume.path().join("buildkit");
        let ended = demo::bake(&["--fstrim", "--json"], &root);
        let report: Value = ended.stdout.parse().unwrap();
        assert!(report["trimmed"].as_u64().unwrap() >= 64 << 20, "{kind}: {report}");
        let kept: u64 = all(&root).iter().map(|path| path.symlink_metadata().unwrap().blocks() * 512).sum();
        // XFS does not wait for the disk.
        volume.unmount();
        let stored = volume.stored() - empty;
        assert!(stored <= kept + MIB, "{kind}: {stored} bytes are stored, {kept} kept");
    }
    // A file system without a disk: a warning, and a root.
    let on_tmpfs = scratch.join("tmpfs");
    fs::create_dir(&on_tmpfs).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&on_tmpfs), LIMIT).expect_success("mount");
    let ended = demo::bake(&["--fstrim", "--json"], &on_tmpfs.join("buildkit"));
    run(Command::new("umount").arg(&on_tmpfs), LIMIT).expect_success("umount");
    assert_eq!(ended.stdout.parse::<Value>().unwrap()["trimmed"], Value::Null);
    assert!(ended.stderr.contains("warning: cannot discard the free blocks"), "{}", ended.stderr);
}
