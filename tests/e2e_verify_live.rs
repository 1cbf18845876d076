//! `warmkit verify --build`: the real build, on a view of the root that leaves the root as it is.
//!
//! It must see a warm root as warm and a cold one as cold, and what it says must be what a daemon
//! started on the root itself would print.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::path::Path;

use serde_json::Value;
use support::cases::{Case, Origin};
use support::command::Ended;
use support::files::listing;
use support::warmkit::{bake, verify};
use support::{BuildRequest, Tools, World, tools};

/// Runs `verify --build`, asserts its exit code and that the root did not change, and gives what
/// `--json` says of the build.
#[track_caller]
fn live(world: &World, root: &Path, request: &BuildRequest, code: i32) -> Value {
    let buildkitd = world.tools.buildkitd.display().to_string();
    let mut arguments = vec!["--json".to_owned(), "--buildkitd".to_owned(), buildkitd];
    arguments.extend(request.verify_arguments());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let before = listing(root);
    let Ended { status, stdout, stderr } = verify(&arguments, root);
    assert_eq!(status.code(), Some(code), "verify {arguments:?}\n{stdout}\n{stderr}");
    assert!(listing(root) == before, "verify --build changed the root");
    let outcome: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    assert_eq!(outcome["healthy"], true, "{stdout}");
    assert_eq!(outcome["all_cached"], code == 0, "{stdout}");
    outcome["live"].clone()
}

/// How many steps have each status.
fn count(live: &Value, status: &str) -> usize {
    live["steps"].as_array().unwrap().iter().filter(|step| step["status"] == status).count()
}

fn sees_warm_and_cold(release: &str, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);
    let root = world.root(&case, "baked");
    bake(&[&origin.cache, "--keys-from", &origin.image], &root).expect_success("bake");

    let steps = origin.outcome.steps.len();
    let warm = live(&world, &root, &case.request, 0);
    assert_eq!((count(&warm, "cached"), warm["steps"].as_array().unwrap().len()), (steps, steps), "{warm}");
    assert_eq!((&warm["imports"], &warm["extractions"]), (&Value::from(0), &Value::from(0)), "{warm}");

    let cold = live(&world, &root, &case.changed, 9);
    assert_eq!(count(&cold, "cached"), steps - origin.changed.len(), "{cold}");
    assert_eq!(cold["extractions"], 0, "{cold}");

    unkeyed(&world, &case, &origin);
}

/// Without keys a root is cold, until the build imports the cache; then it is warm, and nothing is extracted.
fn unkeyed(world: &World, case: &Case, origin: &Origin) {
    let root = world.root(case, "unkeyed");
    bake(&[&origin.cache, "--allow-unkeyed"], &root).expect_success("bake --allow-unkeyed");
    let cold = live(world, &root, &case.request, 9);
    assert_eq!(count(&cold, "cached"), 0, "{cold}");
    assert_eq!(cold["extractions"], 0, "of the base image, which is there: {cold}");

    let warm = live(world, &root, &case.request.import_from(&origin.cache), 0);
    assert_eq!((&warm["imports"], &warm["extractions"]), (&Value::from(1), &Value::from(0)), "{warm}");
}

#[test]
fn app_on_v0_34_2() {
    sees_warm_and_cold("v0.34.2", "app");
}

#[test]
fn app_on_v0_33_1() {
    sees_warm_and_cold("v0.33.1", "app");
}

#[test]
fn app_on_v0_17_3() {
    sees_warm_and_cold("v0.17.3", "app");
}

#[test]
fn everything() {
    sees_warm_and_cold(tools::NEWEST, "everything");
}

/// A root that a daemon filled itself is judged as well as a baked one.
#[test]
fn a_root_of_a_daemons_own() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("whiteouts");
    let origin = world.export(&case);
    let warm = live(&world, &origin.root, &case.request, 0);
    assert_eq!(count(&warm, "cached"), origin.outcome.steps.len(), "{warm}");
}
