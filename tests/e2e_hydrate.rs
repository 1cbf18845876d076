//! `warmkit hydrate` beside a real daemon that builds and prunes on the same root.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::command::{Ended, run};
use support::daemon::check_databases;
use support::demo;
use support::warmkit::{verify, warmkit};
use support::{BuildRequest, Daemon, Scratch, Tools, tools};

/// Reads the root again and again until `enough`; gives what came of it each time.
fn again_and_again(root: &Path, enough: &AtomicBool) -> Vec<Ended> {
    let mut all = Vec::new();
    loop {
        let last = enough.load(Ordering::SeqCst);
        let mut command = warmkit();
        all.push(run(command.args(["hydrate", "--json", "--root"]).arg(root), Duration::from_secs(120)));
        if last {
            return all;
        }
    }
}

#[test]
fn a_daemon_builds_and_prunes_meanwhile() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let scratch = Scratch::new();
    let root = scratch.join("root");
    demo::bake(&[], &root);
    let context = demo::context(&scratch);
    let request = |name: &str| {
        let mut request = BuildRequest::new(&context).tar(&scratch.join(name));
        request.platform = Some("linux/amd64".into());
        request
    };

    let enough = AtomicBool::new(false);
    let runs = thread::scope(|scope| {
        let runs = scope.spawn(|| again_and_again(&root, &enough));
        let daemon = Daemon::start_with(&tools, &root, &[]);
        let warm = daemon.build(&request("warm.tar"));
        assert_eq!((warm.steps.len(), warm.not_cached().len()), (demo::STEPS, 0), "{}", warm.log);
        fs::write(context.join("src/main.txt"), "changed\n").unwrap();
        let changed = daemon.build(&request("changed.tar"));
        assert!(!changed.not_cached().is_empty(), "{}", changed.log);
        daemon.prune_all();
        let cold = daemon.build(&request("cold.tar"));
        assert_eq!(cold.not_cached().len(), demo::STEPS, "{}", cold.log);
        assert_eq!(daemon.logged_errors(), [""; 0]);
        daemon.stop();
        enough.store(true, Ordering::SeqCst);
        runs.join().unwrap()
    });
    assert!(runs.len() >= 2);
    for ended in runs {
        let report: Value = ended.expect_success("hydrate").stdout.parse().unwrap();
        assert_eq!(report["failed"], Value::Array(Vec::new()));
        assert_eq!(report["stages"].as_array().unwrap().len(), 3);
    }
    check_databases(&tools, &root);
    verify(&[], &root).expect_success("verify");
}
