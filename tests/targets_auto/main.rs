//! `--for auto` on machines of every kind, each in namespaces of its own: its /etc, /run, /var/lib, homes, processes and
//! programs are what a test lays out.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod builders;
mod host;
mod machine;
#[path = "../support/mod.rs"]
mod support;
mod users;

use std::path::Path;
use std::process::Command;

use machine::Machine;
use serde_json::{Value, json};
use support::shipped::{cache, keys};
use support::skip::is_root;

#[test]
fn a_machine_with_nothing_is_told_how_to_name_it() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let none = "no target is seen on this machine: say which, as --for host (/var/lib/buildkit)";
    machine.looks(Err(none), &["targets on this machine: none"]);
}

#[test]
fn the_root_that_was_found_is_baked_and_read() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    machine.write("etc/buildkit/buildkitd.toml", "");
    // Where the repository is may be hidden there.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo");
    let mut copy = Command::new("cp");
    assert!(copy.arg("-r").arg(&fixture).arg(machine.path("demo")).status().unwrap().success());
    let moved = |argument: String| {
        argument.replace(fixture.to_str().unwrap(), machine.path("demo").to_str().unwrap())
    };
    let (cache, keys) = (moved(cache()), moved(keys()));
    let report = |arguments: &[&str]| {
        let output = machine.warmkit(&[arguments, &["--for", "auto", "--json"]].concat());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["root"], "/var/lib/buildkit", "{arguments:?}: {report}");
        errors
    };
    let bake = ["bake", cache.as_str(), "--keys-from", &keys];
    report(&[&["plan"], &bake[1..]].concat());
    assert!(!machine.path("var/lib/buildkit").exists());
    report(&bake);
    let state = "    directory /var/lib/buildkit, with cache.db, runc-overlayfs";
    for command in ["verify", "inspect", "hydrate", "forecast"] {
        let errors = report(&[command]);
        assert!(errors.lines().any(|line| line == state), "{command}: {errors}");
    }
    // Said where nothing but warnings is wanted, it would be too much.
    assert_eq!(report(&["verify", "--progress", "quiet"]), "");
}

#[test]
fn programs_are_told_in_their_way() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.builder("ci", "docker-container", &["ci0"]).directory("var/lib/buildkit");
    machine.docker(&[]);
    let arguments = ["verify", "--for", "auto", "--json", "--progress", "rawjson"];
    let output = machine.warmkit(&arguments);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.ends_with("say which, as --for host or --for buildx:ci"), "{message}");
    let errors = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = errors.lines().map(|line| line.parse().unwrap()).collect();
    let (error, targets) = lines.split_last().unwrap();
    assert_eq!((&error["event"], &error["message"]), (&"error".into(), &message.into()));
    let [host, builder, engine] = targets else { panic!("{errors}") };
    for (target, name, root) in [
        (host, json!("--for host"), json!("/var/lib/buildkit")),
        (builder, json!("--for buildx:ci"), json!("/var/lib/docker/volumes/buildx_buildkit_ci0_state/_data")),
        (engine, Value::Null, Value::Null),
    ] {
        let members: Vec<&str> = target.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["event", "evidence", "name", "reason", "root", "taken", "time"], "{target}");
        assert_eq!((&target["name"], &target["root"]), (&name, &root), "{target}");
        assert_eq!((&target["event"], &target["taken"]), (&"target".into(), &false.into()), "{target}");
        assert_eq!(target["reason"].is_null(), !root.is_null(), "{target}");
    }
    assert_eq!(host["evidence"], json!(["directory /var/lib/buildkit, empty"]));

    // Another machine's root is not looked for on this one.
    for (arguments, said) in [
        (
            &["verify", "--image", "--sysroot", "/var", "--for", "auto"][..],
            "--sysroot is another: name its root",
        ),
        (&["verify", "--for", "auto", "--root", "/x"][..], "leave --root away"),
    ] {
        let output = machine.warmkit(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && errors.contains(said), "{errors}");
    }
}
