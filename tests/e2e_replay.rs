//! `warmkit keys replay`: the real build, solved by a real daemon that runs nothing, gives the keys of
//! its cache; and a root baked with these keys is warm.
//!
//! What makes it safe to run anywhere is proven too: no step ran, no layer moved.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::cases::{Case, Origin, assert_warm};
use support::command::{Ended, run};
use support::warmkit::{bake, warmkit};
use support::{BuildRequest, Tools, World, tools};
use warmkit::digest::Digest;

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
    let before = world.registry.requests().len();
    let keys = world.scratch.join(format!("keys-{before}.json"));
    let temporary = world.scratch.join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = warmkit();
    command.env("TMPDIR", &temporary);
    command.args(["keys", "replay", cache, "--json", "-o"]).arg(&keys);
    command.arg("--buildkitd").arg(&world.tools.buildkitd).args(arguments(request)).args(more);
    let Ended { status, stdout, stderr } = run(&mut command, Duration::from_secs(120));
    assert_eq!(status.code(), Some(code), "{more:?}\n{stdout}\n{stderr}");
    let outcome: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?} stay behind");
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
    // Several steps may take it, and the daemon comes to some of them at the same time.
    let all = outcome["builds"][0]["missed"].as_array().unwrap();
    assert!(!all.is_empty(), "{outcome}");
    for missed in all {
        assert!(origin.changed.contains(missed["step"].as_str().unwrap()), "{outcome}");
        assert_eq!(missed["cause"], "files", "{outcome}");
    }
}

/// The only step that was missed, and why.
#[track_caller]
fn missed(outcome: &Value) -> (String, String) {
    assert_eq!(outcome["complete"], false, "{outcome}");
    let [missed] = outcome["builds"][0]["missed"].as_array().unwrap().as_slice() else { panic!("{outcome}") };
    (missed["step"].as_str().unwrap().to_owned(), missed["cause"].as_str().unwrap().to_owned())
}

/// All the other ways to miss, and what a replay takes: on one world, which takes seconds to set up.
fn tells_what_differs(release: &str) {
    let Some((world, case, origin)) = start(release, "app") else { return };
    let miss = |request: &BuildRequest, more: &[&str]| {
        let (outcome, _) = replay(&world, &origin.cache, request, more, 9);
        assert_eq!(outcome["runs_refused"], 0, "the replay was over before: {outcome}");
        missed(&outcome)
    };

    // Another argument: the first step that has it in its environment.
    let (step, why) = miss(&case.request, &["--build-arg", "VERSION=2"]);
    assert!(step.contains("RUN mkdir out") && why == "instruction", "{step}: {why}");

    // An instruction right on the base image, which is not to blame for it.
    let context = copy(&case.request.context, &world.scratch.join("other"));
    edit(&context.join("Dockerfile"), "WORKDIR /app", "RUN echo other > /other");
    let (step, why) = miss(&case.request.context(&context), &["--target", "deps"]);
    assert_eq!((step.as_str(), why.as_str()), ("[deps 1/3] RUN echo other > /other", "instruction"));

    // A file that the base image's first step takes.
    let context = copy(&case.request.context, &world.scratch.join("docs"));
    fs::write(context.join("docs").join("new.md"), "new\n").unwrap();
    let (step, why) = miss(&case.request.context(&context), &["--target", "docs"]);
    assert_eq!((step.as_str(), why.as_str()), ("[docs 1/2] COPY docs /docs", "files"));

    // The tag of the base image means another image today.
    let (manifest, media_type) = world.registry.manifest("base", "latest");
    let moved = without_last_layer(&world, &manifest);
    world.registry.put_manifest("base", "latest", &media_type, &moved);
    let (outcome, _) = replay(&world, &origin.cache, &case.request, &["--target", "deps"], 9);
    let (step, why) = missed(&outcome);
    assert_eq!((step.as_str(), why.as_str()), ("[deps 1/3] WORKDIR /app", "base-moved"));
    let digest = Digest::of(&moved).to_string();
    let missed = &outcome["builds"][0]["missed"][0];
    assert_eq!(missed["digest"], digest.as_str(), "{outcome}");
    assert_eq!(missed["image"], world.registry.reference("base", "latest"), "{outcome}");
    assert_eq!(outcome["images"][0]["digest"], digest.as_str(), "{outcome}");
    documented(&outcome);
    world.registry.put_manifest("base", "latest", &media_type, &manifest);

    // Two stages by name make two builds; the third one stays without keys.
    let (outcome, _) =
        replay(&world, &origin.cache, &case.request, &["--target", "docs", "--target", "deps"], 6);
    let cached: Vec<_> = outcome["builds"].as_array().unwrap().iter().map(|b| b["cached"].clone()).collect();
    assert_eq!(
        (cached, &outcome["keyed"]),
        (vec![Value::from(2), Value::from(3)], &Value::from(5)),
        "{outcome}"
    );
    replay(&world, &origin.cache, &case.request, &["--target", "docs", "--allow-unkeyed"], 0);

    bakes_with_a_replay(&world, &case, &origin);
}

/// `bake --build` replays for what is unkeyed, and only then.
fn bakes_with_a_replay(world: &World, case: &Case, origin: &Origin) {
    let buildkitd = world.tools.buildkitd.display().to_string();
    let bake_json = |cache: &[&str], request: &BuildRequest, root: &Path, code: i32| -> Value {
        let arguments = arguments(request);
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        all.extend(cache);
        all.extend(["--json", "--buildkitd", &buildkitd]);
        let Ended { status, stdout, stderr } = bake(&all, root);
        assert_eq!(status.code(), Some(code), "{stdout}\n{stderr}");
        assert!(code == 0 || stderr.contains("the replay missed"), "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let root = world.root(case, "by-replay");
    let baked = bake_json(&[&origin.cache], &case.request, &root, 0);
    assert_eq!(baked["replay"]["builds"][0]["missed"], Value::Array(Vec::new()), "{baked}");
    let source = baked["keys_from"][0]["source"].as_str().unwrap();
    assert!(source.starts_with("--build "), "{baked}");
    let daemon = world.daemon(&root);
    assert_warm(&daemon.build(&case.request), origin);
    daemon.stop();

    // Nothing is left to replay for.
    let root = world.root(case, "without-replay");
    let baked = bake_json(&[&origin.cache, "--keys-from", &origin.image], &case.request, &root, 0);
    assert_eq!(baked["replay"], Value::Null, "{baked}");

    // What the replay missed stays without a key, and nothing is baked.
    let root = world.root(case, "missed");
    let failed = bake_json(&[&origin.cache], &case.changed, &root, 6);
    assert!(!failed["error"]["unkeyed"].as_array().unwrap().is_empty() && !root.exists(), "{failed}");
}

/// Asserts that docs/json.md shows what was printed.
#[track_caller]
fn documented(outcome: &Value) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    let section = text.split("## `warmkit keys replay --json`").nth(1).unwrap();
    let example = section.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(members(outcome), members(&example.parse().unwrap()));
}

/// The members of an object, and those of what its lists hold first.
fn members(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(object) => object
            .iter()
            .flat_map(|(name, value)| {
                let below = members(value).into_iter().map(move |member| format!("{name}/{member}"));
                below.chain([name.clone()])
            })
            .collect(),
        Value::Array(items) => items.first().map(members).unwrap_or_default(),
        _ => BTreeSet::new(),
    }
}

/// The manifest of an image with a layer less. Another layer it has to be: v0.17.3 knows an image by its
/// layers, too.
fn without_last_layer(world: &World, manifest: &[u8]) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    let config = world.registry.blob("base", manifest["config"]["digest"].as_str().unwrap());
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for list in ["/rootfs/diff_ids", "/history"] {
        config.pointer_mut(list).unwrap().as_array_mut().unwrap().pop().unwrap();
    }
    manifest["layers"].as_array_mut().unwrap().pop().unwrap();
    let config = serde_json::to_vec(&config).unwrap();
    world.registry.put_blob("base", &config);
    manifest["config"]["digest"] = Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    serde_json::to_vec(&manifest).unwrap()
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    support::files::copy_tree(from, to);
    to.to_owned()
}

fn edit(file: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(old));
    fs::write(file, text.replace(old, new)).unwrap();
}

#[test]
fn tells_what_differs_on_v0_34_2() {
    tells_what_differs("v0.34.2");
}

#[test]
fn tells_what_differs_on_v0_17_3() {
    tells_what_differs("v0.17.3");
}

/// A build that no cache has, of steps that would be seen if they ran: on nothing, on an image, and by a
/// download. The replay ends at each, and whoever listens hears nothing.
#[test]
fn no_step_runs() {
    let Some((world, case, origin)) = start(tools::NEWEST, "app") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let context = world.scratch.join("fresh");
    fs::create_dir(&context).unwrap();
    let busybox = fs::read(&world.tools.busybox).unwrap();
    fs::write(context.join("busybox"), busybox).unwrap();
    let call = format!("wget -q -T 1 http://127.0.0.1:{port}/");
    let dockerfile = format!(
        "ARG BASE\nFROM scratch AS nothing\nCOPY busybox /bin/sh\nCOPY busybox /bin/wget\nRUN --network=host {call}\n\
         FROM ${{BASE}} AS image\nRUN --network=host {call}\n\
         FROM ${{BASE}} AS secret\n\
         RUN --network=host --mount=type=secret,id=none,required --mount=type=ssh,required {call}\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let request = case.request.context(&context);
    for target in ["nothing", "image", "secret"] {
        let (outcome, keys) = replay(&world, &origin.cache, &request, &["--target", target], 9);
        let first = &outcome["builds"][0]["missed"][0]["step"];
        let expected = if target == "nothing" { "COPY busybox" } else { "RUN" };
        assert!(first.as_str().unwrap().contains(expected), "{outcome}");
        assert_eq!(outcome["keyed"], 0, "{outcome}");
        assert!(keys.exists());
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a step ran");
}

/// 300 steps; and a platform that this machine can run nothing of.
#[test]
fn many_steps_and_foreign_platforms() {
    let Some((world, case, origin)) = start(tools::NEWEST, "many") else { return };
    let (outcome, _) = replay(&world, &origin.cache, &case.request, &[], 0);
    assert_eq!(outcome["builds"][0]["cached"], origin.outcome.steps.len(), "{outcome}");

    // Copies need no emulator, so that a cache for a foreign platform can be made here.
    let context = world.scratch.join("foreign");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("file"), "file\n").unwrap();
    fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nCOPY file /a\nARG TARGETPLATFORM\nCOPY <<b /b\n$TARGETPLATFORM\nb\n",
    )
    .unwrap();
    let cache = world.registry.reference("foreign", "cache");
    let mut request = BuildRequest::new(&context);
    request.platform = Some("linux/s390x,linux/riscv64".into());
    let daemon = world.daemon(&world.scratch.join("foreign-root"));
    daemon.build(&request.export_to(&support::cases::cache_to(&cache, "")));
    daemon.stop();
    let (outcome, _) = replay(&world, &cache, &request, &[], 0);
    assert_eq!(
        (&outcome["keyed"], &outcome["complete"]),
        (&outcome["records"], &Value::Bool(true)),
        "{outcome}"
    );
}

/// Importers of registry caches read 1 MiB of a config at most, some 3,500 records. A replay imports any, at once.
#[test]
fn a_cache_of_many_more_records_than_a_registry_import_takes() {
    let Some((world, case, origin)) = start(tools::NEWEST, "whiteouts") else { return };
    let (outcome, _) = replay(&world, &origin.cache, &case.request, &[], 0);
    let of_build = outcome["records"].as_u64().unwrap();

    let other = |index: u64| {
        let digest = Digest::of(format!("of another build {index}").as_bytes()).to_string();
        let inputs =
            if index.is_multiple_of(CHAIN) { vec![] } else { vec![[serde_json::json!({"link": index - 1})]] };
        serde_json::json!({"digest": digest, "inputs": inputs, "layers": [{"layer": 0}]})
    };
    let mut records: Vec<Value> = (0..OTHERS).map(other).collect();
    let (manifest, media_type) = world.registry.manifest(case.name, "cache");
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let config = world.registry.blob(case.name, manifest["config"]["digest"].as_str().unwrap());
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    // The records of this build come last, where the first to be cut off are.
    for mut record in config["records"].as_array().unwrap().clone() {
        let inputs = record.get_mut("inputs").and_then(Value::as_array_mut).into_iter().flatten();
        for link in inputs.flat_map(|alternatives| alternatives.as_array_mut().unwrap()) {
            link["link"] = (link["link"].as_u64().unwrap_or_default() + OTHERS).into();
        }
        records.push(record);
    }
    config["records"] = records.into();
    let config = serde_json::to_vec(&config).unwrap();
    world.registry.put_blob(case.name, &config);
    manifest["config"]["digest"] = Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    world.registry.put_manifest(case.name, "cache", &media_type, &manifest);

    let (outcome, _) = replay(&world, &origin.cache, &case.request, &["--allow-unkeyed"], 0);
    assert_eq!(outcome["builds"][0]["missed"], Value::Array(Vec::new()), "{outcome}");
    assert_eq!(outcome["builds"][0]["cached"], origin.outcome.steps.len());
    // Those that chains stand on need no key.
    let all = of_build + OTHERS - OTHERS / CHAIN;
    assert_eq!((&outcome["records"], &outcome["keyed"]), (&all.into(), &of_build.into()));
}

/// Records of other builds in a cache, in chains.
const OTHERS: u64 = 5000;
const CHAIN: u64 = 100;

/// What cannot be replayed at all is an error, not a miss.
#[test]
fn a_build_that_cannot_be_solved_is_an_error() {
    let Some((world, case, origin)) = start(tools::NEWEST, "whiteouts") else { return };
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--target", "nowhere"], 1, "nowhere"),
        (&["--build-arg", "BASE=127.0.0.1:1/none"], 1, "127.0.0.1:1/none"),
        (&["--build-arg", &format!("BASE={}/none", world.registry.host())], 1, "/none"),
        (&["--buildkitd-config", "/nonexistent"], 1, "/nonexistent"),
    ];
    for (more, code, said) in cases {
        let mut command = warmkit();
        command.args(["keys", "replay", &origin.cache, "-o"]).arg(world.scratch.join("none.json"));
        command.arg("--buildkitd").arg(&world.tools.buildkitd).args(arguments(&case.request)).args(more);
        let ended = run(&mut command, Duration::from_secs(120));
        assert_eq!(ended.status.code(), Some(code), "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{more:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("/h/127"), "names of this replay alone: {}", ended.stderr);
    }
}

/// In a build of many branches a daemon begins with steps that miss because another does, in an order of its
/// own. The report names the one that differs, each time.
fn names_the_step_that_differs(release: &str, mode: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let context = world.scratch.join("branches");
    fs::create_dir(&context).unwrap();
    fs::copy(&world.tools.busybox, context.join("busybox")).unwrap();
    fs::write(context.join("a"), "a\n").unwrap();
    let dockerfile = "FROM scratch AS base\nCOPY busybox /bin/sh\n\
        FROM base AS deps\nCOPY a /a\nRUN echo deps >/deps\n\
        FROM base AS build\nCOPY --from=deps /deps /deps\nRUN echo build >/out\nRUN echo more >/more\n\
        FROM base AS docs\nRUN echo docs >/docs\n\
        FROM base\nCOPY --from=docs /docs /\nCOPY --from=build /out /out\nCOPY --from=deps /deps /\n\
        RUN --mount=from=docs,target=/d --mount=from=build,target=/b echo last >/last\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let request = BuildRequest::new(&context);
    let daemon = world.daemon(&world.scratch.join("branches-root"));
    // An image has to be there for `mode=min`.
    let cache = world.registry.reference("branches", "cache");
    let image = world.registry.reference("branches", "image");
    let to = support::cases::cache_to(&cache, "").replace("mode=max", mode);
    daemon.build(&request.push(&image).export_to(&to));
    daemon.stop();
    let cases = [
        ("COPY a /a", "COPY a /b", "[deps 1/2] COPY a /b"),
        ("echo deps", "echo DEPS", "[deps 2/2] RUN echo DEPS >/deps"),
        ("echo more", "echo MORE", "[build 3/3] RUN echo MORE >/more"),
        ("=build /out", "=build /more", "[stage-4 2/4] COPY --from=build /more /out"),
        // Both the stage and the step are in the cache, but not this one on that one.
        ("=deps /deps /\n", "=docs /deps /\n", "[stage-4 3/4] COPY --from=docs /deps /"),
    ];
    for (old, new, expected) in cases {
        edit(&context.join("Dockerfile"), old, new);
        let (outcome, _) = replay(&world, &cache, &request, &[], 9);
        assert_eq!(missed(&outcome).0, expected, "{outcome}");
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    }
}

#[test]
fn names_the_step_that_differs_on_v0_34_2() {
    names_the_step_that_differs("v0.34.2", "mode=max");
}

#[test]
fn names_the_step_that_differs_on_v0_12_5() {
    names_the_step_that_differs("v0.12.5", "mode=min");
}

#[test]
fn app_on_v0_12_5() {
    keys_every_record("v0.12.5", "app");
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
