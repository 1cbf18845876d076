//! `warmkit keys replay`: the real build, solved by a real daemon that runs nothing, gives the keys of
//! its cache; and a root baked with these keys is warm.
//!
//! What makes it safe to run anywhere is proven too: no step ran, no layer moved.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::cases::{Case, Origin, assert_warm};
use support::command::{Ended, run};
use support::warmkit::{bake, warmkit};
use support::{BuildRequest, Tools, World, tools};

/// A build as arguments of a replay: without the secrets and agents that it was made with.
fn arguments(request: &BuildRequest) -> Vec<String> {
    let mut all = vec!["--build".to_owned(), request.context.display().to_string()];
    let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
    if let Some(target) = &request.target {
        add("--target", target.clone());
    }
    if let Some(platform) = &request.platform {
        add("--platform", platform.clone());
    }
    request.args.iter().for_each(|(key, value)| add("--build-arg", format!("{key}={value}")));
    request.opts.iter().for_each(|opt| add("--opt", opt.clone()));
    all
}

/// Replays with `more` arguments; asserts the exit code, and that nothing but documents came from the
/// registry. Gives what `--json` prints, and the keys file.
#[track_caller]
fn replay(world: &World, cache: &str, request: &BuildRequest, more: &[&str], code: i32) -> (Value, PathBuf) {
    let keys = world.scratch.join(format!("keys-{}.json", world.registry.requests().len()));
    let before = world.registry.requests().len();
    let mut command = warmkit();
    command.args(["keys", "replay", cache, "--json", "-o"]).arg(&keys);
    command.arg("--buildkitd").arg(&world.tools.buildkitd).args(arguments(request)).args(more);
    let Ended { status, stdout, stderr } = run(&mut command, Duration::from_secs(120));
    assert_eq!(status.code(), Some(code), "{more:?}\n{stdout}\n{stderr}");
    let outcome: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    let layers = layers(world, cache);
    for request in world.registry.requests().split_off(before) {
        let fetched = request.rsplit_once("/blobs/").map(|(_, digest)| digest.to_owned());
        assert!(!fetched.is_some_and(|digest| layers.contains(&digest)), "downloaded a layer: {request}");
        assert!(request.starts_with("GET ") || request.starts_with("HEAD "), "{request}");
    }
    (outcome, keys)
}

/// Digests of all layers of a cache, and of the base images.
fn layers(world: &World, cache: &str) -> BTreeSet<String> {
    let (repository, tag) = cache.rsplit_once(':').unwrap();
    let repository = repository.split_once('/').unwrap().1;
    let mut all = BTreeSet::new();
    for (repository, tag) in [(repository, tag), ("base", "latest"), ("onbuild", "latest")] {
        let manifest: Value = serde_json::from_slice(&world.registry.manifest(repository, tag).0).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        all.extend(layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()));
    }
    assert!(!all.is_empty());
    all
}

fn start(release: &str, name: &'static str) -> Option<(World, Case, Origin)> {
    let world = World::start(Tools::find(release)?);
    let case = world.case(name);
    let origin = world.export(&case);
    Some((world, case, origin))
}

/// Keys by replay alone, and a warm root from them.
fn keys_every_record(release: &str, name: &'static str) {
    let Some((world, case, origin)) = start(release, name) else { return };
    let (outcome, keys) = replay(&world, &origin.cache, &case.request, &[], 0);
    assert_eq!(outcome["complete"], true, "{outcome}");
    assert_eq!(outcome["keyed"], outcome["records"], "{outcome}");
    assert_eq!(outcome["runs_refused"], 0, "{outcome}");
    assert_eq!(outcome["layers_refused"], Value::Array(Vec::new()), "{outcome}");
    assert_eq!(outcome["builds"][0]["cached"], origin.outcome.steps.len(), "{outcome}");

    let root = world.root(&case, "baked");
    let keys = format!("type=keys,src={}", keys.display());
    bake(&[&origin.cache, "--keys-from", &keys], &root).expect_success("bake");
    let daemon = world.daemon(&root);
    assert_warm(&daemon.build(&case.request), &origin);
    daemon.stop();
    misses(&world, &case, &origin);
}

/// A changed file ends the replay at the step that takes it.
fn misses(world: &World, case: &Case, origin: &Origin) {
    let (outcome, _) = replay(world, &origin.cache, &case.changed, &[], 9);
    let (step, cause) = missed(&outcome);
    assert!(origin.changed.contains(&step), "{step}: {outcome}");
    assert_eq!(cause, "files", "{outcome}");
}

/// The only step that was missed, and why.
#[track_caller]
fn missed(outcome: &Value) -> (String, String) {
    assert_eq!(outcome["complete"], false, "{outcome}");
    let [missed] = outcome["builds"][0]["missed"].as_array().unwrap().as_slice() else { panic!("{outcome}") };
    (missed["step"].as_str().unwrap().to_owned(), missed["cause"].as_str().unwrap().to_owned())
}

#[test]
fn app_on_v0_34_2() {
    keys_every_record("v0.34.2", "app");
}

#[test]
fn app_on_v0_17_3() {
    keys_every_record("v0.17.3", "app");
}

#[test]
fn everything_on_v0_34_2() {
    keys_every_record("v0.34.2", "everything");
}

#[test]
fn everything_on_v0_17_3() {
    keys_every_record("v0.17.3", "everything");
}
#[test]
fn hold() {
    let Some((world, case, origin)) = start("v0.34.2", "everything") else { return };
    let app = world.case("app");
    let origin2 = world.export(&app);
    eprintln!(
        "HOLD {} {} {:?}\n {:?} {:?}",
        origin.cache,
        origin2.cache,
        arguments(&case.request),
        arguments(&app.request),
        arguments(&app.changed)
    );
    std::thread::sleep(Duration::from_secs(3000));
}
