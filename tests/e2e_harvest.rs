//! `warmkit keys harvest`: the keys of a builder that runs, by its name, without stopping it.
//!
//! What docker does for it (`cp`, `info`) a stand-in does here, on the root of a real daemon: its database
//! is copied while it builds, as `docker cp` copies it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::cases::{assert_warm, cache_to};
use support::command::{Ended, run};
use support::warmkit::{bake, warmkit};
use support::{Scratch, Tools, World, tools};

/// buildx's state directory and a `docker` that copies from directories.
struct Docker {
    scratch: Scratch,
}

impl Docker {
    fn new() -> Self {
        let scratch = Scratch::new();
        // $1 is where containers are, by their names; the first copies may be cut short.
        let script = "#!/bin/sh\n\
            here=${0%/*}\necho \"$*\" >>\"$here/asked\"\n\
            case $1 in --host | --context) shift 2 ;; esac\n\
            case $1 in\n\
            info) echo \"$here/dockerd\" ;;\n\
            cp) shift 2; from=$here/containers/${1%%:*}/${1#*:}; [ -e \"$from\" ] || { echo \"no such file: $1\" >&2; exit 1; }\n\
                cat \"$from\" >\"$2\"\n\
                if [ -s \"$here/torn\" ]; then sed -i 1d \"$here/torn\"; truncate -s -8192 \"$2\"; fi ;;\n\
            *) echo \"unknown: $*\" >&2; exit 1 ;;\nesac\n";
        scratch.program("docker", script);
        fs::create_dir_all(scratch.join("buildx/instances")).unwrap();
        Self { scratch }
    }

    /// A builder as buildx keeps it, and its containers on these roots.
    fn builder(&self, name: &str, driver: &str, roots: &[&Path]) {
        let mut nodes = Vec::new();
        for (number, root) in roots.iter().enumerate() {
            let node = format!("{name}{number}");
            nodes.push(json!({"Name": node, "Endpoint": "unix:///var/run/docker.sock", "Flags": null}));
            let state = self.scratch.join(format!("containers/buildx_buildkit_{node}/var/lib"));
            fs::create_dir_all(&state).unwrap();
            std::os::unix::fs::symlink(root, state.join("buildkit")).unwrap();
        }
        let instance = json!({"Name": name, "Driver": driver, "Nodes": nodes, "Dynamic": false});
        self.scratch.write(format!("buildx/instances/{name}"), instance.to_string());
    }

    fn warmkit(&self) -> Command {
        let mut command = warmkit();
        let path = std::env::var("PATH").unwrap();
        command.env("BUILDX_CONFIG", self.scratch.join("buildx"));
        command.env("PATH", format!("{}:{path}", self.scratch.path().display()));
        command
    }

    /// Harvests, asserts the exit code, and gives the report with the keys file.
    #[track_caller]
    fn harvest(&self, sources: &[&str], code: i32) -> (Value, PathBuf) {
        let keys = self.scratch.join(format!("keys-{}.json", self.asked().len()));
        let mut command = self.warmkit();
        command.args(["keys", "harvest", "--json", "-o"]).arg(&keys).args(sources);
        let Ended { status, stdout, stderr } = run(&mut command, Duration::from_secs(60));
        assert_eq!(status.code(), Some(code), "{stdout}\n{stderr}");
        (serde_json::from_str(&stdout).unwrap(), keys)
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.scratch.join("asked")).unwrap_or_default()
    }
}

/// Harvested from a running builder, the keys make a warm root; nothing else of the build is in the file.
fn keys_a_bake(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let (world, docker) = (World::start(tools), Docker::new());
    let case = world.case("app");
    let origin = world.export(&case);
    let daemon = world.daemon(&origin.root);
    docker.builder("ci", "docker-container", &[&origin.root]);

    let (harvested, keys) = docker.harvest(&["type=builder,name=ci"], 0);
    assert!(harvested["candidates"].as_u64().unwrap() >= 11, "{harvested}");
    let text = fs::read_to_string(&keys).unwrap();
    assert!(!text.contains("RUN") && !text.contains("127.0.0.1"), "{text}");
    assert!(docker.asked().contains("--host unix:///var/run/docker.sock cp -- buildx_buildkit_ci0:"));

    let root = world.root(&case, "by-harvest");
    let source = format!("type=keys,src={}", keys.display());
    bake(&[&origin.cache, "--keys-from", &source], &root).expect_success("bake");
    daemon.stop();
    let daemon = world.daemon(&root);
    assert_warm(&daemon.build(&case.request), &origin);
    daemon.stop();

    // The same straight in a bake, and from the root that the daemon left.
    let root = world.root(&case, "by-builder");
    let mut command = docker.warmkit();
    command.args(["bake", &origin.cache, "--keys-from", "type=builder,name=ci", "--root"]).arg(&root);
    run(&mut command, Duration::from_secs(60)).expect_success("bake --keys-from type=builder");
    let cachedb = format!("type=cachedb,src={}", origin.root.display());
    let (again, _) = docker.harvest(&[&cachedb, &source, "type=builder,name=ci"], 0);
    assert_eq!(again["candidates"], harvested["candidates"], "{again}");
}

#[test]
fn keys_a_bake_on_v0_34_2() {
    keys_a_bake("v0.34.2");
}

#[test]
fn keys_a_bake_on_v0_17_3() {
    keys_a_bake("v0.17.3");
}

/// A builder that is at work: its file changes under whoever copies it. No copy is an error, and when it is
/// done the keys are all there.
#[test]
fn reads_a_builder_while_it_builds() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let (world, docker) = (World::start(tools), Docker::new());
    let case = world.case("everything");
    let root = world.root(&case, "busy");
    let daemon = world.daemon(&root);
    let app = world.case("app");
    daemon.build(&app.request);
    docker.builder("busy", "docker-container", &[&root]);
    let (before, _) = docker.harvest(&["type=builder,name=busy"], 0);
    let cache = world.registry.reference("busy", "cache");
    let request = case.request.export_to(&cache_to(&cache, ""));
    let during: Vec<u64> = thread::scope(|scope| {
        let build = scope.spawn(|| daemon.build(&request));
        let mut during = Vec::new();
        while !build.is_finished() || during.is_empty() {
            let (harvested, _) = docker.harvest(&["type=builder,name=busy"], 0);
            during.push(harvested["candidates"].as_u64().unwrap());
        }
        build.join().unwrap();
        during
    });
    let least = before["candidates"].as_u64().unwrap();
    assert!(during.iter().all(|&found| found > 0), "{least} before, then {during:?}");
    let (after, keys) = docker.harvest(&["type=builder,name=busy"], 0);
    assert!(after["candidates"].as_u64().unwrap() > least, "{after}");
    daemon.stop();
    let root = world.root(&case, "baked");
    let source = format!("type=keys,src={}", keys.display());
    bake(&[&cache, "--keys-from", &source], &root).expect_success("bake");
}

/// A torn copy is taken again; one that stays torn costs candidates at worst. Every node counts, and one
/// that cannot be read is an error.
#[test]
fn takes_torn_copies_again_and_every_node() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let (world, docker) = (World::start(tools), Docker::new());
    let mut roots = Vec::new();
    for name in ["app", "whiteouts"] {
        let case = world.case(name);
        let root = world.root(&case, "node");
        let daemon = world.daemon(&root);
        daemon.build(&case.request);
        daemon.stop();
        roots.push(root);
    }
    let [a, b] = roots.as_slice() else { unreachable!() };
    docker.builder("one", "docker-container", &[a]);
    docker.builder("other", "docker-container", &[b]);
    docker.builder("both", "docker-container", &[a, b]);
    let count = |name: &str| {
        docker.harvest(&[&format!("type=builder,name={name}")], 0).0["candidates"].as_u64().unwrap()
    };
    let (one, other, both) = (count("one"), count("other"), count("both"));
    assert!(one > 0 && other > 0 && both > one.max(other) && both <= one + other, "{one} {other} {both}");

    // A copy that lacks its end, once; then always.
    docker.scratch.write("torn", "x\n");
    assert!(count("one") >= one);
    docker.scratch.write("torn", "x\n".repeat(50));
    let mut command = docker.warmkit();
    command.args(["keys", "harvest", "type=builder,name=one", "-o"]).arg(docker.scratch.join("torn.json"));
    let torn = run(&mut command, Duration::from_secs(60));
    assert!(matches!(torn.status.code(), Some(0 | 3)), "{}", torn.stderr);
    docker.scratch.write("torn", "");

    // dockerd's own builder: below its data root.
    fs::create_dir_all(docker.scratch.join("dockerd")).unwrap();
    std::os::unix::fs::symlink(a, docker.scratch.join("dockerd/buildkit")).unwrap();
    docker.builder("engine", "docker", &[a]);
    assert_eq!((count("engine"), count("default")), (one, one));

    // A node that is gone.
    fs::remove_dir_all(docker.scratch.join("containers/buildx_buildkit_both1")).unwrap();
    for (name, said) in [("both", "node both1"), ("nobody", "no builder \"nobody\"")] {
        let (failed, _) = docker.harvest(&[&format!("type=builder,name={name}")], 3);
        let message = failed["error"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
}
