//! `warmkit inspect` and `warmkit diff` against what real daemons say of the same roots, and against what changed
//! between two of their builds.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::cases::cache_to;
use support::command::run;
use support::warmkit::{bake, warmkit};
use support::{Daemon, Tools, World, tools};

/// What `warmkit <arguments> --format json` prints.
#[track_caller]
fn json(arguments: &[&str], code: i32) -> Value {
    let mut command = warmkit();
    command.args(arguments).args(["--format", "json"]);
    let ended = run(&mut command, Duration::from_secs(60));
    assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// A record as both tell it: size, parents, description, type, whether it may change.
type Told = (Option<u64>, Vec<String>, String, String, bool);

fn told_by(daemon: &Daemon) -> BTreeMap<String, Told> {
    let told = daemon.disk_usage().into_iter().map(|usage| {
        let parents = usage.parents.unwrap_or_default();
        let size = u64::try_from(usage.size).ok();
        (usage.id, (size, parents, usage.description, usage.record_type, usage.mutable))
    });
    told.collect()
}

/// The records of a root, by id.
#[track_caller]
fn inspected(root: &Path) -> BTreeMap<String, Told> {
    let report = json(&["inspect", "--root", root.to_str().unwrap()], 0);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = report["records"].as_array().unwrap().iter().map(|record| {
        let parents = record["parents"].as_array().unwrap().iter().map(text).collect();
        let told = (
            record["bytes"].as_u64(),
            parents,
            text(&record["name"]),
            text(&record["type"]),
            record["mutable"] == true,
        );
        (text(&record["id"]), told)
    });
    let told: BTreeMap<String, Told> = told.collect();
    assert_eq!(report["totals"]["records"], told.len());
    assert_eq!(report["faults"], Value::Array(Vec::new()));
    told
}

/// Of a baked root and of one that builds filled, daemons and inspect say the same.
fn as_daemons_say(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case("everything");
    let origin = world.export(&case);
    let baked = world.root(&case, "baked");
    bake(&[&origin.cache, "--keys-from", &origin.image], &baked).expect_success("bake");
    let before = inspected(&baked);
    assert!(before.len() > 10, "{before:?}");
    let daemon = world.daemon(&baked);
    assert_eq!(told_by(&daemon), before, "baked");

    // A running daemon's root is refused.
    let mut command = warmkit();
    command.args(["inspect", "--root"]).arg(&baked);
    let refused = run(&mut command, Duration::from_secs(60));
    assert_eq!(refused.status.code(), Some(7), "{}", refused.stderr);
    assert!(refused.stderr.contains("take a copy of the root"), "{}", refused.stderr);
    daemon.stop();

    // Cache mounts, sources, merges, and layers that no daemon has counted yet.
    let before = inspected(&origin.root);
    let daemon = world.daemon(&origin.root);
    let told = told_by(&daemon);
    daemon.stop();
    assert_eq!(before.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>(), "built");
    for (id, told) in &told {
        assert_eq!(&before[id], told, "record {id}");
    }
    assert!(told.values().any(|told| told.4) && told.values().any(|told| told.1.len() > 1), "{told:?}");
}

#[test]
fn v0_34_2_says_the_same() {
    as_daemons_say(tools::NEWEST);
}

#[test]
fn v0_17_3_says_the_same() {
    as_daemons_say("v0.17.3");
}

/// The named steps of one side of a diff.
fn steps(diff: &Value, change: &str) -> BTreeSet<String> {
    let steps = diff["steps"].as_array().unwrap().iter().filter(|step| step["change"] == change);
    steps.map(|step| step["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_changed_source_changes_the_steps_that_ran() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let (cache, image) =
        (world.registry.reference("app", "next"), world.registry.reference("app", "next-image"));
    let daemon = world.daemon(&origin.root);
    daemon.build(&case.changed.push(&image).export_to(&cache_to(&cache, "")));
    daemon.stop();
    let keys = ["--keys-from", &origin.image, "--keys-from", &image];

    let diff = json(&[&["diff", &origin.cache, &cache], &keys[..]].concat(), 0);
    assert!(!origin.changed.is_empty());
    assert_eq!(steps(&diff, "gone"), origin.changed, "{diff:#}");
    assert_eq!(steps(&diff, "added"), origin.changed, "{diff:#}");
    assert_eq!(diff["equal"], false);

    // A root is what its cache is, and as old as that.
    let root = world.root(&case, "baked");
    bake(&[&origin.cache, "--keys-from", &origin.image], &root).expect_success("bake");
    let root = root.to_str().unwrap();
    let same = json(&[&["diff", root, &origin.cache, "--exit-code"], &keys[..]].concat(), 0);
    assert_eq!((&same["equal"], &same["steps"]), (&true.into(), &Value::Array(Vec::new())), "{same:#}");
    assert!(same["same"]["records"].as_u64() > Some(5), "{same:#}");
    let old = json(&[&["diff", root, &cache, "--exit-code"], &keys[..]].concat(), 10);
    assert_eq!((&old["gone"], &old["added"], &old["steps"]), (&diff["gone"], &diff["added"], &diff["steps"]));

    // The builder itself has each layer of its cache, and more.
    let built = json(&["diff", &cache, origin.root.to_str().unwrap()], 0);
    assert_eq!(built["gone"]["records"], 0, "{built:#}");
}
