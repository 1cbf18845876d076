//! Caches that a real daemon exported to the cache service of GitHub Actions. That the server here is
//! one, a real daemon says too: it imports from it what it exported.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use support::cases::{Case, Origin, assert_warm};
use support::command::{self, Ended};
use support::daemon::check_databases;
use support::gha::Actions;
use support::warmkit::warmkit;
use support::{BuildRequest, Tools, World, tools};

const MAIN: &str = "refs/heads/main";
const BRANCH: &str = "refs/pull/7/merge";

struct Setup {
    world: World,
    case: Case,
    actions: Actions,
}

impl Setup {
    fn start(release: &str) -> Option<Self> {
        let world = World::start(Tools::find(release)?);
        let case = world.case("app");
        Some(Self { world, case, actions: Actions::start() })
    }

    /// Builds on an empty daemon, and exports with these attributes.
    #[track_caller]
    fn export(&self, name: &str, request: &BuildRequest, attributes: &str) -> Origin {
        let root = self.world.root(&self.case, name);
        let image = self.world.registry.reference(self.case.name, name);
        let daemon = self.world.daemon(&root);
        let to = format!("type=gha,mode=max,{attributes}");
        let outcome = daemon.build(&request.push(&image).export_to(&to));
        daemon.stop();
        Origin { cache: "type=gha".to_owned(), image, outcome, changed: BTreeSet::new(), root }
    }

    fn v2(&self, token: &str) -> String {
        format!("url_v2={},token={token}", self.actions.url())
    }

    /// Builds on an empty daemon that imports with these attributes: every step comes from the cache.
    #[track_caller]
    fn native_import(&self, attributes: &str) {
        let root = self.world.root(&self.case, "native");
        let daemon = self.world.daemon(&root);
        let mut request = self.case.request.tar(&root.with_extension("tar"));
        request.import_cache = Some(format!("type=gha,{attributes}"));
        let outcome = daemon.build(&request);
        assert!(outcome.extractions > 0 && outcome.ran().is_empty(), "a native import\n{}", outcome.log);
        daemon.stop();
        std::fs::remove_dir_all(root).unwrap();
    }

    /// Bakes as a step of a workflow does: with these variables.
    #[track_caller]
    fn bake(cache: &str, images: &[&str], root: &Path, variables: &[(&str, &str)]) -> Ended {
        let mut command = warmkit();
        for name in
            ["ACTIONS_CACHE_SERVICE_V2", "ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL", "ACTIONS_RUNTIME_TOKEN"]
        {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied()).args(["bake", cache, "--root"]).arg(root);
        for image in images {
            command.args(["--keys-from", image]);
        }
        command::run(&mut command, Duration::from_secs(120))
    }

    fn runner<'a>(&'a self, token: &'a str) -> [(&'a str, &'a str); 3] {
        [
            ("ACTIONS_CACHE_SERVICE_V2", "True"),
            ("ACTIONS_RESULTS_URL", self.actions.url()),
            ("ACTIONS_RUNTIME_TOKEN", token),
        ]
    }

    #[track_caller]
    fn warms(&self, request: &BuildRequest, origin: &Origin, root: &Path) {
        check_databases(&self.world.tools, root);
        let daemon = self.world.daemon(root);
        // The tar reads every layer of the result.
        let outcome = daemon.build(&request.tar(&root.with_extension("tar")));
        assert_warm(&outcome, origin);
        assert_eq!(daemon.logged_errors(), [""; 0]);
        daemon.stop();
    }
}

/// A pull request's job sees the caches of its branch and of the main one, and a bake takes both: each
/// build is warm. Addresses in storage that have run out are asked for again.
#[test]
fn every_ref_that_the_token_names() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let Setup { case, actions, world, .. } = &setup;
    let main = setup.export("main", &case.request, &setup.v2(&actions.token(&[MAIN])));
    let token = actions.token(&[BRANCH, MAIN]);
    setup.native_import(&setup.v2(&token));
    actions.let_signatures_run_out(2);

    // Of the branch nothing has been built yet.
    let root = world.root(case, "before");
    Setup::bake("type=gha", &[&main.image], &root, &setup.runner(&token)).expect_success("bake");
    setup.warms(&case.request, &main, &root);

    let branch = setup.export("branch", &case.changed, &setup.v2(&token));
    let root = world.root(case, "both");
    let images = [main.image.as_str(), &branch.image];
    Setup::bake("type=gha", &images, &root, &setup.runner(&token)).expect_success("bake");
    setup.warms(&case.changed, &branch, &root);
    setup.warms(&case.request, &main, &root);
}

/// GitHub Enterprise Server's version of the protocol; and a scope.
#[test]
fn version_1() {
    let Some(setup) = Setup::start("v0.17.3") else { return };
    let token = setup.actions.token(&[MAIN]);
    let attributes = format!("url={}/,token={token},scope=app", setup.actions.url());
    let origin = setup.export("main", &setup.case.request, &attributes);
    setup.native_import(&attributes);
    let root = setup.world.root(&setup.case, "baked");
    let cache = format!("type=gha,{attributes}");
    Setup::bake(&cache, &[&origin.image], &root, &[]).expect_success("bake");
    setup.warms(&setup.case.request, &origin, &root);
}

#[test]
fn says_what_is_wrong() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let token = setup.actions.token(&[MAIN]);
    let origin = setup.export("main", &setup.case.request, &setup.v2(&token));
    let refused = |cache: &str, variables: &[(&str, &str)], code: i32, words: &[&str]| {
        let root = setup.world.root(&setup.case, "refused");
        let ended = Setup::bake(cache, &[&origin.image], &root, variables);
        assert_eq!(ended.status.code(), Some(code), "{cache}\n{}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains(&token), "the token is shown: {}", ended.stderr);
        assert!(!root.exists());
    };
    let runner = setup.runner(&token);
    refused("type=gha", &[], 4, &["$ACTIONS_RESULTS_URL", "--cache-to type=registry"]);
    refused("type=gha", &runner[..2], 4, &["$ACTIONS_RUNTIME_TOKEN", "--cache-to type=registry"]);
    refused("type=gha", &setup.runner("a.b.c"), 4, &["token of GitHub Actions from $ACTIONS_RUNTIME_TOKEN"]);
    let stranger = Actions::start().token(&[MAIN, BRANCH]);
    refused("type=gha", &setup.runner(&stranger), 4, &["denies access", "unauthenticated"]);
    refused("type=gha,scope=other", &runner, 3, &["no cache \"other\"", "refs/heads/main", "index-other-1-"]);
    refused("type=gha,scpe=x", &runner, 2, &["unknown key \"scpe\""]);

    assert!(setup.actions.keys().iter().any(|key| key.starts_with("buildkit-blob-1-sha256:")));
    setup.actions.forget("buildkit-blob-1-");
    refused("type=gha", &runner, 3, &["buildkit-blob-1-sha256:", "export the cache again"]);
    // A service on http may name storage on http, and nothing else.
    setup.actions.lead_to("ftp://192.0.2.1");
    refused("type=gha", &runner, 3, &["may not be asked, since it is not on https"]);
}
