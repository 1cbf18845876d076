//! What real daemons do with their own cache, without warmkit.
//!
//! Proves the harness: it sees imports, extractions and steps that ran where they are, so that
//! their absence on a baked root means something.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use support::cases::{assert_warm, cache_to};
use support::daemon::check_databases;
use support::{Tools, World, tools};

fn native(release: &str, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case(name);

    // Built from nothing: every step runs, and the base image's three layers are extracted.
    let origin = world.export(&case);
    assert_eq!(origin.outcome.not_cached(), origin.outcome.names());
    assert_eq!(origin.outcome.imports, 0);
    assert!(origin.outcome.extractions >= 3, "{}", origin.outcome.log);
    assert!(!origin.changed.is_empty() && origin.changed.len() < origin.outcome.steps.len());
    check_databases(&world.tools, &origin.root);

    // Imported on an empty daemon: nothing runs, and layers are extracted.
    let daemon = world.daemon(&world.root(&case, "imported"));
    let outcome =
        daemon.build(&case.request.import_from(&origin.cache).tar(&world.root(&case, "imported.tar")));
    assert_eq!(outcome.imports, 1);
    assert!(outcome.extractions > 3 && outcome.downloads > 3, "{}", outcome.log);
    assert_eq!(outcome.names(), origin.outcome.names());
    assert!(outcome.ran().is_empty(), "{:?}", outcome.ran());
    daemon.stop();
    check_databases(&world.tools, &world.root(&case, "imported"));

    // Built again where it was built: all there, and the cache is the same again.
    let daemon = world.daemon(&origin.root);
    assert_warm(&daemon.build(&case.request), &origin);
    let again = world.registry.reference(case.name, "again");
    assert_warm(&daemon.build(&case.request.export_to(&cache_to(&again, ""))), &origin);
    let manifest = |tag| world.registry.manifest(case.name, tag).0;
    assert_eq!(manifest("again"), manifest("cache"));
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), []);
    assert_eq!(daemon.logged_errors(), [""; 0]);
    daemon.stop();
    check_databases(&world.tools, &origin.root);
}

#[test]
fn app() {
    native(tools::NEWEST, "app");
}

#[test]
fn everything_on_the_newest() {
    native(tools::NEWEST, "everything");
}

#[test]
fn everything_on_the_oldest() {
    native("v0.17.3", "everything");
}

#[test]
fn whiteouts() {
    native(tools::NEWEST, "whiteouts");
}

#[test]
fn many() {
    native(tools::NEWEST, "many");
}
