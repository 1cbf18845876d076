//! What a real daemon does with its own cache, without warmkit: proves that the harness sees
//! imports, extractions and CACHED where they are, so that their absence elsewhere means something.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use support::cases::export_tar;
use support::daemon::check_databases;
use support::{Tools, World, tools};

fn native(release: &str, name: &'static str) {
    let Some(tools) = Tools::find(release) else { return };
    let world = World::start(tools);
    let case = world.case(name);
    let origin = world.export(&case);
    eprintln!("{}", origin.outcome.log);
    assert_eq!(origin.outcome.imports, 0);
    assert!(origin.outcome.extractions >= 3, "the base image has three layers");
    assert_eq!(origin.outcome.names(), origin.outcome.not_cached());
    check_databases(&world.tools, &origin.root);

    let root = world.scratch.join("native");
    let daemon = world.daemon(&root);
    let request = case.request.import_from(&origin.cache);
    let (outcome, _) = export_tar(&daemon, &request, &world.scratch.join("native.tar"));
    eprintln!("{}", outcome.log);
    assert_eq!(outcome.imports, 1);
    assert!(outcome.extractions > 3, "the exported layers were not there");
    assert_eq!(outcome.names(), origin.outcome.names());
    assert!(outcome.ran().is_empty(), "{:?}", outcome.ran());
    let changed = daemon.build(&case.changed.import_from(&origin.cache));
    eprintln!("{}", changed.log);
    eprintln!("{:?}\n{:?}", changed.not_cached(), origin.changed);
    eprintln!("{}", daemon.du_verbose());
    eprintln!("{:?}", daemon.disk_usage());
    daemon.prune_all();
    assert_eq!(daemon.disk_usage(), []);
    assert_eq!(daemon.logged_errors(), [""; 0]);
    eprintln!("{}", daemon.stop());
    check_databases(&world.tools, &root);
}

#[test]
fn app_on_the_newest() {
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
fn whiteouts_on_the_newest() {
    native(tools::NEWEST, "whiteouts");
}
#[test]
fn many_on_the_newest() {
    native(tools::NEWEST, "many");
}
