//! Roots that are read: verify, inspect, forecast, diff and hydrate, of baked ones and of those that a daemon made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::refusals::refused;
use crate::support::Daemon;
use crate::support::cases::Origin;
use crate::support::command::run;
use crate::support::containerd::Containerd;
use crate::support::daemon::DiskUsage;
use crate::support::warmkit::warmkit;
use crate::{Bed, on};

const LIMIT: Duration = Duration::from_secs(60);

#[track_caller]
fn json(command: &mut Command, code: i32) -> Value {
    let ended = run(command.args(["--format", "json"]), LIMIT);
    assert_eq!(ended.status.code(), Some(code), "{command:?}: {}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Asserts that every command that reads such a root finds it whole, and that each tells something of it.
#[track_caller]
pub(crate) fn assert_sound(containerd: &Containerd, root: &Path) {
    let address = containerd.address();
    let verified = json(&mut on(&address, root, &["verify"]), 0);
    assert_eq!(verified["healthy"], true);
    assert_eq!(verified["offline"]["findings"], Value::Array(Vec::new()));
    let counts = &verified["offline"]["counts"];
    for count in ["records", "layers", "leases", "snapshots", "blobs", "blob_bytes", "keys", "results"] {
        assert!(counts[count].as_u64() > Some(0), "no {count}: {counts}");
    }
    assert_eq!(counts["layers_compared"], 0);
    let forecast = json(&mut on(&address, root, &["forecast"]), 0);
    assert!(forecast["bytes"].as_u64() > Some(0), "{forecast}");
    assert!(forecast["gc"]["keep"].as_str().unwrap().starts_with("[worker.containerd]\n"), "{forecast}");
    let hydrated = run(&mut on(&address, root, &["hydrate", "--only", "databases"]), LIMIT);
    assert_eq!(hydrated.status.code(), Some(0), "{}", hydrated.stderr);
    assert!(
        hydrated.stderr.contains("in the directories of a containerd, and are not read"),
        "{}",
        hydrated.stderr
    );
}

/// Bytes by record, as `warmkit inspect` tells them.
#[track_caller]
pub(crate) fn sizes(containerd: &Containerd, root: &Path) -> BTreeMap<String, i64> {
    let report = json(&mut on(&containerd.address(), root, &["inspect"]), 0);
    let records = report["records"].as_array().unwrap().iter();
    records
        .map(|record| (record["id"].as_str().unwrap().to_owned(), record["bytes"].as_i64().unwrap()))
        .collect()
}

/// The same, as `buildctl du` tells them.
pub(crate) fn told(usage: &[DiskUsage]) -> BTreeMap<String, i64> {
    usage.iter().map(|usage| (usage.id.clone(), usage.size)).collect()
}

/// Asserts that a root that a daemon made has what the daemon said.
#[track_caller]
pub(crate) fn assert_sizes(containerd: &Containerd, root: &Path, usage: &[DiskUsage]) {
    assert_eq!(sizes(containerd, root), told(usage));
}

/// Asserts that a root has what the cache has that it was baked from.
#[track_caller]
pub(crate) fn assert_same_as(containerd: &Containerd, root: &Path, origin: &Origin) {
    let side = format!("type=root,src={},containerd={}", root.display(), containerd.address());
    let mut diff = warmkit();
    diff.args(["diff", &side, &origin.cache, "--keys-from", &origin.image, "--exit-code"]);
    let report = json(&mut diff, 0);
    assert_eq!(report["equal"], true);
    assert!(report["same"]["records"].as_u64() > Some(0), "{report}");
}

/// What `warmkit verify` says of a root that is not whole.
#[track_caller]
pub(crate) fn found(containerd: &Containerd, root: &Path) -> Vec<String> {
    let report = json(&mut on(&containerd.address(), root, &["verify"]), 8);
    let findings = report["offline"]["findings"].as_array().unwrap().iter();
    findings.map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect()
}

/// Each way in which a containerd may have less than the records need.
#[test]
fn what_containerd_has_lost_is_found() {
    let Some(bed) = Bed::new() else { return };
    let (containerd, root) = (&bed.containerd, bed.baked("root"));
    let client = containerd.client("buildkit");

    // The bytes of a blob, then other bytes, then fewer.
    let blob = client.blobs().unwrap().into_iter().max_by_key(|blob| blob.size).unwrap();
    let file = containerd.blob(&blob.digest);
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(found(containerd, &root), ["blob-file-missing"]);
    fs::write(&file, bytes.iter().map(|byte| !byte).collect::<Vec<u8>>()).unwrap();
    assert_eq!(found(containerd, &root), ["blob-digest"]);
    fs::write(&file, &bytes[1..]).unwrap();
    assert_eq!(found(containerd, &root), ["blob-size"]);
    fs::write(&file, &bytes).unwrap();
    assert_sound(containerd, &root);

    // A lease is left that holds nothing.
    let lease = client.leases().unwrap().into_iter().max_by_key(|lease| lease.id.clone()).unwrap();
    client.delete_lease(&lease.id, false).unwrap();
    client.lease_record(&lease.id, "test", jiff::Timestamp::now()).unwrap();
    let findings = found(containerd, &root);
    assert!(
        findings.iter().all(|kind| kind.ends_with("-not-leased") || kind.ends_with("-missing")),
        "{findings:?}"
    );
    client.delete_lease(&lease.id, true).unwrap();
    assert!(found(containerd, &root).contains(&"lease-missing".to_owned()));

    // All but what one lease has.
    let mut leases = client.leases().unwrap();
    let last = leases.pop().unwrap().id;
    for lease in leases {
        client.delete_lease(&lease.id, true).unwrap();
    }
    let findings = found(containerd, &root);
    for kind in ["lease-missing", "snapshot-missing", "blob-missing"] {
        assert!(findings.iter().any(|found| found == kind), "no {kind} in {findings:?}");
    }
    // All of it, as where another containerd is asked.
    client.delete_lease(&last, true).unwrap();
    assert_eq!(found(containerd, &root), ["namespace-empty"]);
}

/// What cannot be done is refused, with what to do instead; and nothing is said of whether the root is good.
#[test]
fn what_cannot_be_read_is_refused() {
    let Some(bed) = Bed::new() else { return };
    let (root, address) = (bed.baked("root"), bed.containerd.address());

    for command in ["verify", "inspect", "forecast"] {
        refused(
            warmkit().arg(command).arg("--root").arg(&root),
            2,
            &["say in which one, with --for containerd"],
        );
    }
    refused(warmkit().arg("diff").arg(&root).arg(&root), 2, &[",containerd=ADDRESS"]);
    for (options, said) in [
        (&["--read-data"][..], "--read-data is not for a containerd worker: "),
        (&["--build", "."], "start buildkitd on the root itself"),
        (&["--image"], "--image is not for a containerd worker: "),
    ] {
        refused(&mut on(&address, &root, &[&["verify"], options].concat()), 2, &[said]);
    }

    let oci = bed.root("oci");
    let ended = run(
        warmkit().args(["bake", &bed.origin.cache, "--keys-from", &bed.origin.image]).arg("--root").arg(&oci),
        LIMIT,
    );
    ended.expect_success("bake");
    refused(&mut on(&address, &oci, &["verify"]), 2, &["is no root of a containerd worker"]);
}

/// A daemon that was given another snapshotter has made a worker beside the first: both are read, what they share once.
/// When containerd has that snapshotter no more, what can be read is.
#[test]
fn several_workers_of_a_root() {
    let Some(bed) = Bed::new() else { return };
    let (containerd, root) = (&bed.containerd, bed.baked("root"));
    let address = containerd.address();
    let worker = format!("{}\n  snapshotter = \"native\"", containerd.worker());
    let daemon = Daemon::start_on_containerd(&bed.world.tools, &root, &bed.world.registry, &worker);
    daemon.build(&bed.case.changed);
    daemon.stop();
    let notes = |report: &Value| -> Vec<(String, String)> {
        let notes = report["offline"]["notes"].as_array().unwrap().iter();
        notes.map(|n| (n["kind"].as_str().unwrap().to_owned(), n["subject"].to_string())).collect()
    };
    let counts = |report: &Value| {
        let client = containerd.client("buildkit");
        let bytes: i64 = client.blobs().unwrap().iter().map(|blob| blob.size).sum();
        let counts = &report["offline"]["counts"];
        assert_eq!(counts["blobs"].as_u64(), Some(client.blobs().unwrap().len() as u64));
        assert_eq!(counts["leases"].as_u64(), Some(client.leases().unwrap().len() as u64));
        assert_eq!(counts["blob_bytes"].as_i64(), Some(bytes));
    };

    assert_sound(containerd, &root);
    let both = json(&mut on(&address, &root, &["verify"]), 0);
    counts(&both);
    let garbage = ["lease-orphaned", "blob-unused", "snapshot-unused", "worker-unread"];
    let found = notes(&both);
    assert!(!found.iter().any(|(kind, _)| garbage.contains(&kind.as_str())), "{found:?}");

    // One that this containerd does not have, and one that is not read.
    let (mut name, overlayfs) = ("native", root.join("containerd-overlayfs"));
    for (gone, said) in [("fuse-overlayfs", "which containerd does not have"), ("gone", "which is not read")]
    {
        fs::rename(root.join(format!("containerd-{name}")), root.join(format!("containerd-{gone}"))).unwrap();
        name = gone;
        assert_sound(containerd, &root);
        let one = json(&mut on(&address, &root, &["verify"]), 0);
        counts(&one);
        let unread: Vec<_> =
            notes(&one).into_iter().filter(|(kind, _)| garbage.contains(&kind.as_str())).collect();
        let [(kind, subject)] = &unread[..] else { panic!("{unread:?}") };
        assert!(kind == "worker-unread" && subject.contains(&format!("containerd-{gone}")), "{unread:?}");
        let inspected = json(&mut on(&address, &root, &["inspect"]), 0);
        let fault = inspected["faults"][0].as_str().unwrap();
        let expected = format!("containerd-{gone}: of the snapshotter {gone}, {said}: ");
        assert!(fault.starts_with(&expected), "{fault}");
    }
    // Whatever is left in it.
    fs::remove_file(root.join("containerd-gone/metadata_v2.db")).unwrap();
    fs::remove_file(root.join("containerd-gone/workerid")).unwrap();
    assert_sound(containerd, &root);

    fs::remove_dir_all(root.join("containerd-gone")).unwrap();
    fs::rename(&overlayfs, root.join("containerd-fuse-overlayfs")).unwrap();
    for command in ["verify", "inspect", "forecast"] {
        let said = [
            "no snapshotter \"fuse-overlayfs\"",
            "containerd-fuse-overlayfs has its layers",
            "--for containerd:ADDRESS",
        ];
        refused(&mut on(&address, &root, &[command]), 2, &said);
    }
}
