//! The cache in fixtures/demo: baked, verified and built on, as `scripts/demo` shows it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use support::command::Ended;
use support::demo;
use support::warmkit::verify;
use support::{BuildRequest, Daemon, Registry, Scratch, Tools, tools};

#[test]
fn bakes_and_is_warm() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let registry = Registry::start(&tools);
    let scratch = Scratch::new();
    let root = scratch.join("root");
    demo::bake(&[], &root);
    verify(&["--read-data"], &root).expect_success("verify");

    let context = demo::context(&scratch);
    let context_path = context.display().to_string();
    let buildkitd = tools.buildkitd.display().to_string();
    let live = ["--build", &context_path, "--opt", "platform=linux/amd64", "--buildkitd", &buildkitd];
    verify(&live, &root).expect_success("verify --build");
    // A build that cannot begin says nothing of the root.
    let none = scratch.join("none").display().to_string();
    for wrong in [["--build", &none], ["--buildkitd-config", &none]] {
        let mut arguments = vec!["--buildkitd", &buildkitd, wrong[0], wrong[1]];
        if wrong[0] != "--build" {
            arguments.extend(["--build", &context_path]);
        }
        let Ended { status, stdout, stderr } = verify(&arguments, &root);
        assert_eq!(status.code(), Some(1), "{wrong:?}: {stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains(&none), "{wrong:?}: {stdout}{stderr}");
    }

    let daemon = Daemon::start(&tools, &root, &registry);
    let mut request = BuildRequest::new(&context).tar(&scratch.join("result.tar"));
    request.platform = Some("linux/amd64".into());
    let outcome = daemon.build(&request);
    assert_eq!(outcome.steps.len(), demo::STEPS, "{}", outcome.log);
    assert!(outcome.not_cached().is_empty(), "{}", outcome.log);
    assert_eq!((outcome.imports, outcome.extractions), (0, 0), "{}", outcome.log);
    daemon.stop();
}
