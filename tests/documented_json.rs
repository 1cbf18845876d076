//! docs/json.md shows the members that `--json` and `--progress rawjson` print: all of them, and no others.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot set up has failed"
)]

#[path = "support/handmade.rs"]
mod handmade;
#[allow(dead_code, unreachable_pub, reason = "made for other test files too")]
#[path = "support/shipped.rs"]
mod shipped;
#[path = "support/skip.rs"]
mod skip;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use handmade::Handmade;
use serde_json::Value;

/// The JSON example of docs/json.md below a heading.
fn documented(heading: &str) -> Value {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("docs/json.md has no section {heading:?}"));
    section.split("```json\n").nth(1).unwrap().split("```").next().unwrap().parse().unwrap()
}

/// The members of a value, each with its path; those of a list's items count once.
fn members(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        // Names of databases, not of members.
        Value::Object(object) if path != "/offline/schema_versions" => {
            for (name, value) in object {
                let path = format!("{path}/{name}");
                members(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| members(item, path, found)),
        _ => {}
    }
}

fn members_of(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    members(value, "", &mut found);
    found
}

/// What `warmkit <arguments> --json` prints, and its exit code.
fn printed(arguments: &[&str]) -> (Value, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_warmkit")).args(arguments).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value =
        text.parse().unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (value, output.status.code())
}

#[test]
fn json_has_the_members_that_are_documented() {
    if !skip::is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let root = root.to_str().unwrap();
    let (cache, keys) = (shipped::cache(), shipped::keys());
    let bake = documented("`warmkit bake --json`");
    let check = documented("`warmkit keys check --json`");
    let verify = documented("`warmkit verify --json`");
    let failure = documented("When a command fails");

    let (unkeyed, code) = printed(&["bake", &cache, "--root", root]);
    assert_eq!(code, Some(6));
    assert_eq!(unkeyed["error"]["exit_code"], 6);
    let record = &unkeyed["error"]["unkeyed"][0];
    let names: BTreeSet<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["digest", "name", "layer", "size", "only_inputs"]));
    let without_records = |mut value: Value| {
        value["error"]["unkeyed"] = Value::Array(Vec::new());
        members_of(&value)
    };
    assert_eq!(without_records(unkeyed), without_records(failure));

    let (checked, code) = printed(&["keys", "check", &cache, "--keys-from", &keys]);
    assert_eq!(code, Some(0), "{checked}");
    assert_eq!(members_of(&checked), members_of(&check));

    let file = scratch.path().join("keys.json");
    let (harvested, code) = printed(&["keys", "harvest", &keys, "-o", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{harvested}");
    assert_eq!(members_of(&harvested), members_of(&documented("`warmkit keys harvest --json`")));

    let config = scratch.path().join("buildkitd.toml");
    let policy = "[[worker.oci.gcpolicy]]\nmaxUsedSpace = 1\nfilters = [\"type==regular\"]\n";
    std::fs::write(&config, policy).unwrap();
    let config = config.to_str().unwrap();
    // An old release reads past the limit, and takes everything.
    let hosts = ["--buildkitd-config", config, "--buildkitd-release", "v0.12.5"];
    let (planned, code) = printed(&[&["plan", &cache, "--root", root][..], &hosts].concat());
    assert_eq!(code, Some(6), "{planned}");
    let without_records = |mut value: Value| {
        value["unkeyed"] = Value::Array(Vec::new());
        value["keys_from"] = Value::Array(Vec::new());
        members_of(&value)
    };
    assert_eq!(without_records(planned), without_records(documented("`warmkit plan --format json`")));

    let (baked, code) = printed(&["bake", &cache, "--keys-from", &keys, "--root", root]);
    assert_eq!(code, Some(0), "{baked}");
    assert_eq!(members_of(&baked), members_of(&bake));

    let (foretold, code) = printed(&["forecast", "--root", root]);
    assert_eq!(code, Some(0), "{foretold}");
    assert_eq!(members_of(&foretold), members_of(&documented("`warmkit forecast --format json`")));

    let (verified, code) = printed(&["verify", "--root", root]);
    assert_eq!(code, Some(0), "{verified}");
    assert_eq!(members_of(&verified), members_of(&verify));

    let (hydrated, code) = printed(&["hydrate", "--root", root]);
    assert_eq!(code, Some(0), "{hydrated}");
    assert_eq!(members_of(&hydrated), members_of(&documented("`warmkit hydrate --json`")));

    let inspect = documented("`warmkit inspect --json`");
    let (inspected, code) = printed(&["inspect", &cache, "--keys-from", &keys]);
    assert_eq!(code, Some(0), "{inspected}");
    assert_eq!(members_of(&inspected), members_of(&inspect));
    let without_caches = |mut value: Value| {
        (value["caches"], value["keys_from"]) = (Value::Array(Vec::new()), Value::Array(Vec::new()));
        members_of(&value)
    };
    let (inspected, code) = printed(&["inspect", "--root", root]);
    assert_eq!(code, Some(0), "{inspected}");
    assert_eq!(without_caches(inspected), without_caches(inspect));

    let mut other = Handmade::default();
    let layer = other.layer("other", None);
    other.record("other", &[], &[layer]);
    let other = other.write(&scratch.path().join("other"));
    let (compared, code) = printed(&["diff", root, &other, "--exit-code"]);
    assert_eq!(code, Some(10), "{compared}");
    assert_eq!(members_of(&compared), members_of(&documented("`warmkit diff --json`")));

    let sysroot = scratch.path().to_str().unwrap();
    scratch_image(scratch.path());
    let (verified, code) = printed(&["verify", "--image", "--sysroot", sysroot, "--root", "/root"]);
    assert_eq!(code, Some(8), "{verified}");
    assert_eq!(members_of(&verified), members_of(&documented("`warmkit verify --image --json`")));
}

/// Somebody's home with a password in it.
fn scratch_image(sysroot: &Path) {
    let docker = sysroot.join("home/ci/.docker");
    std::fs::create_dir_all(&docker).unwrap();
    std::fs::write(docker.join("config.json"), r#"{"auths":{"r.example":{"password":"x"}}}"#).unwrap();
}

/// Names in the first two columns of a table in docs/json.md's section on `--progress rawjson`.
fn documented_names(title: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    let section = text.split("\n## `--progress rawjson`\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = section.lines().skip_while(|line| !line.starts_with(title)).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            (names(cells[1]), names(cells[2]))
        })
        .collect()
}

/// The lines of a command with `--progress rawjson`, each with the members that are documented for it.
fn events(arguments: &[&str]) -> Vec<Value> {
    let documented: Vec<(String, BTreeSet<String>)> = documented_names("| `event` |")
        .into_iter()
        .flat_map(|(events, members)| {
            let members: BTreeSet<String> = members.into_iter().collect();
            events.into_iter().map(move |event| (event, members.clone()))
        })
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    let output = command.args(arguments).args(["--progress", "rawjson"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let events: Vec<Value> = errors.lines().map(|line| line.parse().expect(line)).collect();
    for event in &events {
        let mut members =
            members_of(event).into_iter().map(|path| path[1..].to_owned()).collect::<BTreeSet<_>>();
        assert!(members.remove("time") && members.remove("event"), "{event}");
        let found = documented.iter().find(|(name, _)| event["event"] == name.as_str());
        assert_eq!(Some(&members), found.map(|(_, members)| members), "{event}");
    }
    events
}

#[test]
fn progress_has_the_events_that_are_documented() {
    if !skip::is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let cache = shipped::cache();
    let bake = ["bake", &cache, "--root", root.to_str().unwrap()];
    let failed = events(&bake);
    assert_eq!(
        (&failed.last().unwrap()["event"], &failed.last().unwrap()["exit_code"]),
        (&"error".into(), &6.into())
    );

    let baked = events(&[&bake[..], &["--allow-unkeyed"]].concat());
    let last = |event: &str| baked.iter().rfind(|line| line["event"] == event).unwrap();
    assert_eq!(last("progress")["bytes"], last("planned")["bytes"]);
    assert_eq!(last("progress")["unpacked"], last("planned")["unpacks"]);
    assert_eq!(baked.last().unwrap()["phase"], "commit");
    assert_eq!(baked.iter().filter(|line| line["event"] == "unpacked").count(), 12);

    let verified = events(&["verify", "--root", root.to_str().unwrap(), "--read-data"]);
    assert_eq!(verified.iter().filter(|line| line["event"] == "compared").count(), 12);
    assert_eq!(verified.iter().filter(|line| line["event"] == "hashed").count(), 12);
    let (planned, progress) = (&verified[3], &verified[verified.len() - 2]);
    assert_eq!((&planned["bytes"], &planned["unpacks"]), (&progress["bytes"], &progress["unpacked"]));
    let keys = shipped::keys();
    let file = scratch.path().join("keys.json");
    let checked = events(&["keys", "check", &cache, "--keys-from", &keys]);
    let harvested = events(&["keys", "harvest", &keys, "-o", file.to_str().unwrap()]);

    let hydrated = events(&["hydrate", "--root", root.to_str().unwrap()]);
    assert!(hydrated.iter().any(|line| line["event"] == "to-read"));

    let documented = documented_names("| command |");
    for (command, events) in [
        ("bake", &baked),
        ("verify", &verified),
        ("hydrate", &hydrated),
        ("keys check", &checked),
        ("keys harvest", &harvested),
    ] {
        let (_, phases) = documented.iter().find(|(names, _)| names[0] == command).unwrap();
        let phases: Vec<&str> = phases
            .iter()
            .map(String::as_str)
            .filter(|name| !matches!(*name, "replay" | "--build" | "build"))
            .collect();
        for event in ["started", "finished"] {
            let told = events.iter().filter(|line| line["event"] == event);
            let told: Vec<&str> = told.map(|line| line["phase"].as_str().unwrap()).collect();
            assert_eq!(told, phases, "{command}: {event}");
        }
    }
}

/// Wherever there is something to wait for, it can be told to a program.
#[test]
fn every_command_that_is_documented_to_has_progress() {
    for (names, _) in documented_names("| command |") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
        let output = command.args(names[0].split(' ')).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("--progress") && help.contains("rawjson"), "{names:?}: {help}");
    }
}
