//! The forecast of garbage collection against daemons that collect: what they take of a baked root is what was
//! said, under policies of each kind and the defaults of each release.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use support::command::run;
use support::files::copy_tree;
use support::foreseen::bake_as_planned;
use support::handmade::{Handmade, blob_path, write_keys};
use support::tar::{Entry, Kind, Tar};
use support::tmpfs::Tmpfs;
use support::warmkit::{bake, bake_at, warmkit};
use support::{Daemon, Scratch, Tools};
use warmkit::bolt::{Bucket, BucketRef, Database, Item, PageSize};
use warmkit::gc::{Configuration, Disk, Record, Release, Worker, forecast, keeping};

const LAST_USED_AT: &str = "cache.lastUsedAt";
const METADATA: &str = "runc-overlayfs/metadata_v2.db";

/// `100PB`, as daemons read that: what records of this size have, no disk has, so that how much is free on
/// this one decides nothing.
const HUGE: u64 = 100 << 50;
const SMALL: u64 = 1000;

/// Name, parent, hours since it was used, how often it was, bytes, type.
type Shape = (&'static str, Option<usize>, i64, u64, u64, &'static str);

/// No two are equally old and equally used: then chance would decide.
const SHAPES: [Shape; 10] = [
    ("base", None, 100, 3, SMALL, "regular"),
    ("middle", Some(0), 90, 1, HUGE, "regular"),
    ("top", Some(1), 80, 1, SMALL, "regular"),
    ("one", None, 70, 1, SMALL, "regular"),
    ("two", None, 60, 5, HUGE, "regular"),
    ("old", None, 70 * 24, 4, SMALL, "regular"),
    ("frontend", None, 200, 1, SMALL, "frontend"),
    ("local", None, 50, 2, SMALL, "source.local"),
    ("young", None, 1, 1, SMALL, "regular"),
    // Goes in any case, by a rule of its own at the end.
    ("last", None, 2, 9, HUGE, "regular"),
];

/// A root with these records, and the records.
struct Baked {
    scratch: Scratch,
    records: Vec<Record>,
}

impl Baked {
    fn new() -> Self {
        let scratch = Scratch::new();
        let mut cache = Handmade::default();
        for (index, (name, parent, ..)) in SHAPES.iter().enumerate() {
            let layer = cache.layer(name, *parent);
            assert_eq!(layer, index);
            cache.record(name, &[], &[layer]);
        }
        let layout = scratch.join("layout");
        let source = cache.write(&layout);
        let root = scratch.join("root");
        bake(&[&source, "--allow-unkeyed"], &root).expect_success("bake");
        let now = Timestamp::now();
        let ids = ids_by_blob(&root);
        let id = |name: &str| {
            let blob = blob_path(&layout, name).file_name().unwrap().to_str().unwrap().to_owned();
            ids[&format!("sha256:{blob}")].clone()
        };
        let record = |(name, parent, hours, usage_count, size, kind): &Shape| Record {
            id: id(name),
            size: *size,
            record_type: (*kind).to_owned(),
            last_used_at: Some(now - SignedDuration::from_hours(*hours)),
            usage_count: *usage_count,
            parents: parent.iter().map(|parent| id(SHAPES[*parent].0)).collect(),
            ..Record::default()
        };
        let records: Vec<Record> = SHAPES.iter().map(record).collect();
        rewrite(&root, &records);
        Self { scratch, records }
    }

    /// The ids of the records that `gone` does not name.
    fn without(&self, gone: &BTreeSet<&str>) -> BTreeMap<String, i64> {
        let left = self.records.iter().filter(|record| !gone.contains(record.id.as_str()));
        left.map(|record| (record.id.clone(), i64::try_from(record.size).unwrap())).collect()
    }

    fn name(&self, id: &str) -> &'static str {
        SHAPES[self.records.iter().position(|record| record.id == id).unwrap()].0
    }
}

/// Each record's id, by the digest of its blob.
fn ids_by_blob(root: &Path) -> BTreeMap<String, String> {
    let database = Database::open(&root.join(METADATA)).unwrap();
    let main = database.root().bucket(b"_main").unwrap().unwrap();
    let entry = |(id, item): (&[u8], Item<'_>)| {
        let Item::Bucket(record) = item else { panic!("a value among the records") };
        let blob: Value = serde_json::from_slice(record.get(b"cache.blob").unwrap().unwrap()).unwrap();
        (blob["value"].as_str().unwrap().to_owned(), String::from_utf8(id.to_vec()).unwrap())
    };
    main.iter().map(|item| entry(item.unwrap())).collect()
}

/// Gives the records of a root the times, counts, sizes and types of these.
fn rewrite(root: &Path, records: &[Record]) {
    change(root, |metadata| {
        for record in records {
            let entry = metadata.bucket("_main").bucket(record.id.as_str());
            let mut put = |key: &str, value: Value| entry.put(key, json!({ "value": value }).to_string());
            let used = i64::try_from(record.last_used_at.unwrap().as_nanosecond()).unwrap();
            put(LAST_USED_AT, json!(used));
            put("cache.usageCount", json!(record.usage_count));
            put("snapshot.size", json!(record.size));
            put("cache.recordType", json!(record.record_type));
        }
    });
}

/// Lets this time pass for the records of a root that no daemon holds.
fn age(root: &Path, by: SignedDuration) {
    let database = Database::open(&root.join(METADATA)).unwrap();
    let main = database.root().bucket(b"_main").unwrap().unwrap();
    let used = main.iter().map(|item| {
        let (id, Item::Bucket(record)) = item.unwrap() else { panic!("a value among the records") };
        let value = record.get(LAST_USED_AT.as_bytes()).unwrap().unwrap();
        let used: Value = serde_json::from_slice(value).unwrap();
        (id.to_vec(), used["value"].as_i64().unwrap() - i64::try_from(by.as_nanos()).unwrap())
    });
    let used: Vec<(Vec<u8>, i64)> = used.collect();
    change(root, |metadata| {
        for (id, used) in used {
            metadata.bucket("_main").bucket(id).put(LAST_USED_AT, json!({ "value": used }).to_string());
        }
    });
}

fn change(root: &Path, edit: impl FnOnce(&mut Bucket)) {
    fn copy(from: BucketRef<'_>, to: &mut Bucket) {
        to.set_sequence(from.sequence());
        for item in &from {
            match item.unwrap() {
                (key, Item::Value(value)) => to.put(key, value),
                (key, Item::Bucket(bucket)) => copy(bucket, to.bucket(key)),
            }
        }
    }
    let path = root.join(METADATA);
    let mut copied = Bucket::new();
    copy(Database::open(&path).unwrap().root(), &mut copied);
    edit(&mut copied);
    fs::write(&path, copied.to_bytes(PageSize::DEFAULT).unwrap()).unwrap();
}

/// The file system that `root` is on.
fn disk_of(root: &Path) -> Disk {
    let statistics = rustix::fs::statvfs(root).unwrap();
    Disk { total: statistics.f_blocks * statistics.f_frsize, free: statistics.f_bfree * statistics.f_frsize }
}

/// Starts a daemon on a copy of the root and compares what it leaves with what was said; gives the names of what
/// went.
fn collect(tools: &Tools, baked: &Baked, worker: &str) -> BTreeSet<&'static str> {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    copy_tree(&baked.scratch.join("root"), &root);
    let disk = disk_of(&root);
    let release: Release = tools.release.parse().unwrap();
    let daemon = Daemon::start_collecting(tools, &root, worker);
    let policy = Configuration::read(&daemon.configuration()).unwrap().policy(release, disk).unwrap();
    let passes = forecast(&baked.records, &policy, release, disk, &[Timestamp::now()]).unwrap();
    let removed = &passes[0].removed;
    assert!(removed.iter().all(|removal| removal.among == 1), "chance decides: {removed:?}");
    let gone: BTreeSet<&str> =
        removed.iter().map(|removal| baked.records[removal.record].id.as_str()).collect();
    daemon.wait_until_collected();
    let left: BTreeMap<String, i64> =
        daemon.disk_usage().into_iter().map(|usage| (usage.id, usage.size)).collect();
    let names = |ids: &BTreeMap<String, i64>| -> Vec<_> { ids.keys().map(|id| baked.name(id)).collect() };
    let expected = baked.without(&gone);
    assert_eq!(names(&left), names(&expected), "left in {release} under:\n{worker}\n{}", daemon.log());
    assert_eq!(left, expected, "sizes in {release} under:\n{worker}");
    daemon.stop();
    gone.iter().map(|id| baked.name(id)).collect()
}

/// Runs every policy on one release, each on a daemon of its own, all at once.
fn forecast_holds(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let baked = Baked::new();
    let last = &baked.records[SHAPES.len() - 1].id;
    // One rule, and one that takes the last record: so that there is always something to wait for.
    let rule = |text: &str| {
        let rule = if text.is_empty() { String::new() } else { format!("[[worker.oci.gcpolicy]]\n{text}\n") };
        format!("gc = true\n{rule}[[worker.oci.gcpolicy]]\nall = true\nfilters = [\"id=={last}\"]\n")
    };
    let kept = keeping(Worker::Oci, &baked.records, 0, release.parse().unwrap());
    let kept = kept.strip_prefix("[worker.oci]\n").unwrap();
    let is_before = |minor| release.parse::<Release>().unwrap() < Release::new(0, minor, 0);
    // Without a limit that the release knows, or with one that it forgets, a rule takes all that it may.
    let all_but_frontend: Vec<&str> =
        SHAPES.iter().map(|shape| shape.0).filter(|name| *name != "frontend").collect();
    let unlimited_before = |minor| is_before(minor).then(|| all_but_frontend.clone());
    // What must go, where it can be told without the forecast.
    let cases: Vec<(String, Option<Vec<&str>>)> = vec![
        ("gc = true".to_owned(), None),
        ("gckeepstorage = \"150PB\"".to_owned(), None),
        (rule(""), Some(vec!["last"])),
        (
            format!("{kept}[[worker.oci.gcpolicy]]\nall = true\nfilters = [\"id=={last}\"]\n"),
            Some(vec!["last"]),
        ),
        (rule("keepBytes = \"250PB\""), None),
        (rule("all = true\nkeepBytes = \"150PB\""), None),
        (rule("keepDuration = \"85h\""), Some(vec!["old", "last"])),
        (rule("keepDuration = 234000"), Some(vec!["top", "one", "old", "last"])),
        (rule("keepDuration = \"234000\""), Some(vec!["top", "one", "old", "last"])),
        (rule("keepDuration = \"64h59m59.5s\""), Some(vec!["top", "one", "old", "last"])),
        (rule("keepDuration = \"-1h\""), Some(all_but_frontend.clone())),
        (rule("filters = [\"type==source.local\", \"id!=x,type~=/^front/\"]"), Some(vec!["local", "last"])),
        (rule("all = true\nfilters = [\"type==frontend\"]"), Some(vec!["frontend", "last"])),
        (rule("reservedSpace = \"250PB\"\nmaxUsedSpace = \"150PB\""), unlimited_before(17)),
        (rule("minFreeSpace = \"120PB\""), None),
        (rule("minFreeSpace = 1"), unlimited_before(21)),
        (
            rule("filters = [\"type==regular,id!=x\"]\nmaxUsedSpace = \"150PB\"\nminFreeSpace = \"120PB\""),
            None,
        ),
    ];
    thread::scope(|scope| {
        for (worker, expected) in &cases {
            let (tools, baked) = (&tools, &baked);
            scope.spawn(move || {
                let gone = collect(tools, baked, worker);
                if let Some(expected) = expected {
                    assert_eq!(gone, expected.iter().copied().collect(), "{worker}");
                }
            });
        }
    });
}

#[test]
fn v0_12_takes_what_was_said() {
    forecast_holds("v0.12.5");
}

#[test]
fn v0_17_takes_what_was_said() {
    forecast_holds("v0.17.3");
}

#[test]
fn v0_22_takes_what_was_said() {
    forecast_holds("v0.22.0");
}

#[test]
fn v0_34_takes_what_was_said() {
    forecast_holds("v0.34.2");
}

/// Days pass between the collections of one root: each takes what was said for its day.
fn forecast_holds_for_days(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let baked = Baked::new();
    let root = baked.scratch.join("root");
    let worker = "[[worker.oci.gcpolicy]]\nkeepDuration = \"65h\"\n";
    let release: Release = release.parse().unwrap();
    let disk = disk_of(&root);
    let policy = Configuration::read(worker).unwrap().policy(release, disk).unwrap();
    let hours = [0, 48, 114, 180];
    let now = Timestamp::now();
    let moments = hours.map(|hours| now + SignedDuration::from_hours(hours));
    let passes = forecast(&baked.records, &policy, release, disk, &moments).unwrap();
    let mut before = 0;
    for (pass, hours) in passes.iter().zip(hours) {
        age(&root, SignedDuration::from_hours(hours - before));
        before = hours;
        let daemon = Daemon::start_collecting(&tools, &root, worker);
        daemon.wait_until_collected();
        let left: BTreeSet<&str> = daemon.disk_usage().iter().map(|usage| baked.name(&usage.id)).collect();
        let gone = passes.iter().take_while(|other| other.at <= pass.at).flat_map(|pass| &pass.removed);
        let gone: BTreeSet<&str> = gone.map(|removal| SHAPES[removal.record].0).collect();
        let expected: BTreeSet<&str> =
            SHAPES.iter().map(|shape| shape.0).filter(|name| !gone.contains(name)).collect();
        assert_eq!(left, expected, "left in {release} after {hours} hours\n{}", daemon.log());
        daemon.stop();
    }
    // The chain went from its upper end, record by record.
    let day = |name| passes.iter().position(|p| p.removed.iter().any(|r| SHAPES[r.record].0 == name));
    assert_eq!([day("top"), day("middle"), day("base"), day("frontend")], [Some(0), Some(2), Some(3), None]);
}

#[test]
fn v0_12_takes_what_was_said_for_each_day() {
    forecast_holds_for_days("v0.12.5");
}

#[test]
fn v0_34_takes_what_was_said_for_each_day() {
    forecast_holds_for_days("v0.34.2");
}

/// Records of one age and one count: which of them go is chance, how many is not.
#[test]
fn of_equals_as_many_go_as_was_said() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let mut baked = Baked::new();
    let root = baked.scratch.join("root");
    let now = Timestamp::now();
    for record in &mut baked.records {
        (record.last_used_at, record.usage_count, record.size) = (Some(now), 1, SMALL);
    }
    rewrite(&root, &baked.records);
    let worker = format!("[[worker.oci.gcpolicy]]\nreservedSpace = {}\n", 6 * SMALL);
    let disk = disk_of(&root);
    let policy = Configuration::read(&worker).unwrap().policy(Release::NEWEST, disk).unwrap();
    let passes = forecast(&baked.records, &policy, Release::NEWEST, disk, &[now]).unwrap();
    assert_eq!(passes[0].bytes_left, 5 * SMALL);
    assert!(passes[0].removed[0].among > 1);
    let daemon = Daemon::start_collecting(&tools, &root, &worker);
    daemon.wait_until_collected();
    assert_eq!(daemon.disk_usage().len(), 5);
    daemon.stop();
}

/// Disks that are smaller than what the defaults are made for, or fuller than a rule allows: the command looks at
/// them as the daemon does.
fn small_disks_are_foretold(release: &str) {
    const MB: u64 = 1_000_000;
    let Some(tools) = Tools::find(release) else { return };
    // What each record says to take, what else is on the disk, and what goes in any case.
    let cases = [
        ("size=2g", 300 * MB, 0, "gc = true", "old"),
        (
            "size=64m",
            10 * MB,
            40 * MB,
            "[[worker.oci.gcpolicy]]\nfilters = [\"type==regular\"]\n\
             maxUsedSpace = \"85MB\"\nminFreeSpace = \"50MB\"\n",
            "one",
        ),
    ];
    let mut baked = Baked::new();
    for (options, size, others, worker, certain) in cases {
        for record in &mut baked.records {
            record.size = size;
        }
        rewrite(&baked.scratch.join("root"), &baked.records);
        let scratch = Scratch::new();
        let disk = Tmpfs::new(scratch.join("disk"), options);
        let root = disk.0.join("root");
        copy_tree(&baked.scratch.join("root"), &root);
        fs::write(disk.0.join("others"), vec![0; usize::try_from(others).unwrap()]).unwrap();
        let config = scratch.write("buildkitd.toml", format!("[worker.oci]\n{worker}"));
        let mut command = warmkit();
        command.args(["forecast", "--json", "--buildkitd-release", release]);
        command.arg("--buildkitd-config").arg(&config).arg("--root").arg(&root);
        let foretold = run(&mut command, Duration::from_secs(60)).expect_success("forecast");
        let foretold: Value = foretold.stdout.parse().unwrap();
        let removed = foretold["gc"]["passes"][0]["removed"].as_array().unwrap();
        let going: BTreeSet<&str> =
            removed.iter().map(|removed| baked.name(removed["record"].as_str().unwrap())).collect();
        assert!(removed.iter().all(|removed| removed["among"] == 1), "chance decides: {removed:#?}");
        assert!(going.contains(certain) && going.len() < 9, "{worker}: {foretold:#}");
        let daemon = Daemon::start_collecting(&tools, &root, worker);
        daemon.wait_until_collected();
        let left: BTreeSet<&str> = daemon.disk_usage().iter().map(|usage| baked.name(&usage.id)).collect();
        let expected: BTreeSet<&str> =
            SHAPES.iter().map(|shape| shape.0).filter(|name| !going.contains(name)).collect();
        assert_eq!(left, expected, "left in {release} under:\n{worker}\n{}", daemon.log());
        daemon.stop();
    }
}

#[test]
fn v0_17_takes_what_was_said_of_small_disks() {
    small_disks_are_foretold("v0.17.3");
}

#[test]
fn v0_34_takes_what_was_said_of_small_disks() {
    small_disks_are_foretold("v0.34.2");
}

/// What builds added to a baked root since, one after the other, and never used again.
const ADDED: [&str; 4] = ["added1", "added2", "added3", "added4"];

/// Two caches in one root, and the records as a daemon finds them after builds added some.
///
/// ```text
/// base ─┬─ both   in both caches       other ── lost   without a key
///       └─ one    in the first
/// ```
fn baked_and_used() -> Baked {
    let scratch = Scratch::new();
    let cache = |name: &str, tops: &[&str]| {
        let mut cache = Handmade::default();
        let base = cache.layer("base", None);
        let from = cache.record("base", &[], &[base]);
        for top in tops {
            let layer = cache.layer(top, Some(base));
            cache.record(top, &[&[from]], &[layer]);
        }
        cache.write(&scratch.join(name))
    };
    let first = cache("first", &["both", "one"]);
    let second = {
        let mut cache = Handmade::default();
        let base = cache.layer("base", None);
        let from = cache.record("base", &[], &[base]);
        let both = cache.layer("both", Some(base));
        cache.record("both", &[&[from]], &[both]);
        let other = cache.layer("other", None);
        let from = cache.record("other", &[], &[other]);
        let lost = cache.layer("lost", Some(other));
        cache.record("lost", &[&[from]], &[lost]);
        for name in ADDED {
            let layer = cache.layer(name, None);
            cache.record(name, &[], &[layer]);
        }
        cache.write(&scratch.join("second"))
    };
    let keys = write_keys(&scratch.join("cache.db"), ["both", "one"]);
    let root = scratch.join("root");
    let now = Timestamp::now();
    let then = u64::try_from(now.as_second()).unwrap() - 10 * 3600;
    bake_at(then, &[&first, &second, "--keys-from", &keys, "--allow-unkeyed"], &root).expect_success("bake");
    let mut records = records_of(&root);
    let ids = ids_by_blob(&root);
    for (hour, name) in (1..).zip(ADDED) {
        let blob = blob_path(&scratch.join("second"), name).file_name().unwrap().to_str().unwrap().to_owned();
        let id = &ids[&format!("sha256:{blob}")];
        let record = records.iter_mut().find(|record| record.id == *id).unwrap();
        (record.last_used_at, record.usage_count) = (Some(now - SignedDuration::from_hours(8 - hour)), 1);
    }
    for record in &mut records {
        record.size = SMALL;
    }
    rewrite(&root, &records);
    Baked { scratch, records }
}

/// The records of a root, named by the file in their layer.
fn records_of(root: &Path) -> Vec<Record> {
    let database = Database::open(&root.join(METADATA)).unwrap();
    let main = database.root().bucket(b"_main").unwrap().unwrap();
    let record = |(id, item): (&[u8], Item<'_>)| {
        let Item::Bucket(record) = item else { panic!("a value among the records") };
        let value = |key: &str| -> Value {
            let found = record.get(key.as_bytes()).unwrap();
            found
                .map_or(Value::Null, |found| serde_json::from_slice::<Value>(found).unwrap()["value"].clone())
        };
        let used = value(LAST_USED_AT).as_i64().unwrap();
        Record {
            id: String::from_utf8(id.to_vec()).unwrap(),
            size: value("snapshot.size").as_u64().unwrap(),
            record_type: value("cache.recordType").as_str().unwrap_or_default().to_owned(),
            last_used_at: Some(Timestamp::from_nanosecond(used.into()).unwrap()),
            usage_count: value("cache.usageCount").as_u64().unwrap(),
            parents: value("cache.parent").as_str().map(str::to_owned).into_iter().collect(),
            ..Record::default()
        }
    };
    main.iter().map(|item| record(item.unwrap())).collect()
}

/// The names of the records of [`baked_and_used`], by their ids.
fn names_of(baked: &Baked) -> BTreeMap<String, &'static str> {
    let ids = ids_by_blob(&baked.scratch.join("root"));
    let names = ["base", "both", "one", "other", "lost"].into_iter().chain(ADDED);
    let id = |name: &'static str| {
        let blob =
            blob_path(&baked.scratch.join("second"), name).file_name().unwrap().to_str().unwrap().to_owned();
        (ids[&format!("sha256:{blob}")].clone(), name)
    };
    names.map(id).collect()
}

/// The warm cache is not the first to go: what builds added and used once goes before what they will find, and what
/// two caches have goes last.
fn baked_records_outlive(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let baked = baked_and_used();
    let names = names_of(&baked);
    let release: Release = release.parse().unwrap();
    let name = if release < Release::new(0, 17, 0) { "keepBytes" } else { "reservedSpace" };
    // At this many records a daemon stops.
    let limits = [1, 3, 5, 7, 8];
    thread::scope(|scope| {
        for limit in limits {
            let (tools, baked, names) = (&tools, &baked, &names);
            scope.spawn(move || {
                let scratch = Scratch::new();
                let root = scratch.join("root");
                copy_tree(&baked.scratch.join("root"), &root);
                let worker = format!("[[worker.oci.gcpolicy]]\nall = true\n{name} = {}\n", limit * SMALL + 1);
                let disk = disk_of(&root);
                let policy = Configuration::read(&worker).unwrap().policy(release, disk).unwrap();
                let passes = forecast(&baked.records, &policy, release, disk, &[Timestamp::now()]).unwrap();
                let removed = &passes[0].removed;
                assert!(removed.iter().all(|removal| removal.among == 1), "chance decides: {removed:?}");
                let order: Vec<&str> =
                    removed.iter().map(|removal| names[&baked.records[removal.record].id]).collect();
                let before = |one: &str, other: &str| {
                    let at = |name: &str| order.iter().position(|n| *n == name).unwrap_or(usize::MAX);
                    assert!(at(one) <= at(other), "{one} after {other}: {order:?}");
                };
                before("lost", "one");
                before("added1", "one");
                before("added2", "both");
                before("one", "both");
                before("both", "base");
                let daemon = Daemon::start_collecting(tools, &root, &worker);
                daemon.wait_until_collected();
                let left: BTreeSet<&str> = daemon.disk_usage().iter().map(|usage| names[&usage.id]).collect();
                let expected: BTreeSet<&str> =
                    names.values().copied().filter(|name| !order.contains(name)).collect();
                assert_eq!(left, expected, "left in {release} of {limit}\n{}", daemon.log());
                daemon.stop();
            });
        }
    });
}

#[test]
fn v0_17_takes_what_is_used_once_before_the_warm_cache() {
    baked_records_outlive("v0.17.3");
}

#[test]
fn v0_34_takes_what_is_used_once_before_the_warm_cache() {
    baked_records_outlive("v0.34.2");
}

/// A plan tells, before there is a root, what a daemon will take of it, and how it is kept from that.
#[test]
fn a_plan_tells_what_a_daemon_takes() {
    let Some(tools) = Tools::find("v0.34.2") else { return };
    let scratch = Scratch::new();
    let mut cache = Handmade::default();
    let mut parent = None;
    for layer in 0..8 {
        let content = vec![layer; 1 << 20];
        let tar = Tar::new().add(Entry::new(&format!("file{layer}"), Kind::File(&content))).finish();
        // Not compressed, so that blob and snapshot are alike.
        let layer = cache.plain(&tar, parent);
        cache.record(&format!("step{layer}"), &[], &[layer]);
        parent = Some(layer);
    }
    let source = cache.write(&scratch.join("layout"));
    let root = scratch.join("root");
    // Eight records of 2 MiB each, of which three are below this.
    let worker = "[[worker.oci.gcpolicy]]\nall = true\nreservedSpace = 7500000\n";
    let config = scratch.write("buildkitd.toml", worker);
    let planned = bake_as_planned(
        &[&source],
        &["--buildkitd-config", config.to_str().unwrap(), "--buildkitd-release", "v0.34.2"],
        &root,
    );
    let removed = planned["gc"]["passes"][0]["removed"].as_array().unwrap();
    assert_eq!(removed.len(), 5, "{planned:#}");
    let going: BTreeSet<&str> = removed.iter().map(|removed| removed["record"].as_str().unwrap()).collect();
    assert!(removed.iter().all(|removed| removed["among"] == 1), "{removed:#?}");

    // The root says of itself what the plan said of it.
    let mut command = warmkit();
    command.args(["forecast", "--json", "--buildkitd-config"]).arg(&config).arg("--root").arg(&root);
    let foretold = run(&mut command, Duration::from_secs(60)).expect_success("forecast");
    let foretold: Value = foretold.stdout.parse().unwrap();
    let ids = |removed: &Value| -> Vec<Value> {
        removed.as_array().unwrap().iter().map(|removed| removed["record"].clone()).collect()
    };
    assert_eq!(ids(&foretold["gc"]["passes"][0]["removed"]), ids(&planned["gc"]["passes"][0]["removed"]));
    assert_eq!(foretold["records"], 8, "{foretold:#}");

    // As planned to keep it, with a rule that takes one record more, so that there is something to wait for.
    let kept = scratch.join("kept");
    copy_tree(&root, &kept);
    let last = removed[0]["record"].as_str().unwrap();
    let keep = planned["gc"]["keep"].as_str().unwrap().strip_prefix("[worker.oci]\n").unwrap();
    let keep = format!("{keep}[[worker.oci.gcpolicy]]\nall = true\nfilters = [\"id=={last}\"]\n");
    let all: BTreeSet<String> = records_of(&root).into_iter().map(|record| record.id).collect();
    for (root, worker, gone) in [(&root, worker, going), (&kept, &keep, BTreeSet::from([last]))] {
        let daemon = Daemon::start_collecting(&tools, root, worker);
        daemon.wait_until_collected();
        let left: BTreeSet<String> = daemon.disk_usage().into_iter().map(|usage| usage.id).collect();
        let expected: BTreeSet<String> =
            all.iter().filter(|id| !gone.contains(id.as_str())).cloned().collect();
        assert_eq!(left, expected, "under:\n{worker}\n{}", daemon.log());
        daemon.stop();
    }
}
