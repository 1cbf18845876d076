//! `--for auto` on machines of every kind, each in namespaces of its own: its /etc, /run, /var/lib, homes, processes and
//! programs are what a test lays out.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod builders;
mod host;
mod machine;
#[path = "../support/mod.rs"]
mod support;
mod users;

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
    machine.shipped();
    let (cache, keys) = (machine.moved(&cache()), machine.moved(&keys()));
    let report = |arguments: &[&str]| {
        let output = machine.warmkit(&[arguments, &["--for", "auto", "--json"]].concat());
        let errors = output.stderr;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
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

/// What an image ships with is judged by the configuration that its daemon is told, wherever that is.
#[test]
fn an_image_is_judged_by_the_configuration_of_its_daemon() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    machine.unit("buildkit.service", "--config /etc/own.toml").write("etc/own.toml", "debug = true\n");
    let unit = "[Service]\nEnvironment=XDG_CONFIG_HOME=%h/conf\nExecStart=buildkitd\n";
    machine.write("home/ci/.config/systemd/user/buildkit.service", unit);
    machine.write("home/ci/.config/buildkit/buildkitd.toml", "");
    machine.write("home/ci/conf/buildkit/buildkitd.toml", "");
    machine.shipped();
    let (cache, keys) = (machine.moved(&cache()), machine.moved(&keys()));
    for (target, root, config) in [
        ("host", "/var/lib/buildkit", "/etc/own.toml"),
        ("rootless:ci", "/home/ci/.local/share/buildkit", "/home/ci/conf/buildkit/buildkitd.toml"),
    ] {
        let baked = machine.warmkit(&["bake", &cache, "--keys-from", &keys, "--for", target]);
        assert!(baked.status.success(), "{}", baked.stderr);
        let by_directory = (target != "host").then_some(["--root", root]);
        for place in [Some(["--for", target]), by_directory].into_iter().flatten() {
            let output = machine.warmkit(&[&["verify", "--image", "--json"][..], &place].concat());
            let report: Value = serde_json::from_str(&output.stdout)
                .unwrap_or_else(|error| panic!("{error}: {}", output.stderr));
            assert_eq!(report["offline"]["image"]["buildkitd_config"], config, "{place:?}: {report:#}");
        }
    }
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
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.ends_with("say which, as --for host or --for buildx:ci"), "{message}");
    let errors = output.stderr;
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
        let errors = output.stderr;
        assert!(output.status.code() == Some(2) && errors.contains(said), "{errors}");
    }
}
