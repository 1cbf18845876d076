//! Caches that a real daemon exported to the cache service of GitHub Actions. That the server here is
//! one, a real daemon says too: it imports from it what it exported.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use support::cases::Origin;
use support::gha::Actions;
use support::stored::Stored;
use support::{BuildRequest, tools};

const MAIN: &str = "refs/heads/main";
const BRANCH: &str = "refs/pull/7/merge";

struct Setup {
    stored: Stored,
    actions: Actions,
}

impl Setup {
    fn start(release: &str) -> Option<Self> {
        Some(Self { stored: Stored::start(release)?, actions: Actions::start() })
    }

    /// Builds on an empty daemon, and exports with these attributes.
    #[track_caller]
    fn export(&self, name: &str, request: &BuildRequest, attributes: &str) -> Origin {
        self.stored.export(name, request, "type=gha", &format!("type=gha,{attributes}"))
    }

    fn v2(&self, token: &str) -> String {
        format!("url_v2={},token={token}", self.actions.url())
    }

    /// Builds on an empty daemon that imports with these attributes: every step comes from the cache.
    #[track_caller]
    fn native_import(&self, attributes: &str) {
        let Stored { world, case } = &self.stored;
        let root = world.root(case, "native");
        let daemon = world.daemon(&root);
        let mut request = case.request.tar(&root.with_extension("tar"));
        request.import_cache = Some(format!("type=gha,{attributes}"));
        let outcome = daemon.build(&request);
        assert!(outcome.extractions > 0 && outcome.ran().is_empty(), "a native import\n{}", outcome.log);
        daemon.stop();
        std::fs::remove_dir_all(root).unwrap();
    }

    fn runner<'a>(&'a self, token: &'a str) -> [(&'a str, &'a str); 3] {
        [
            ("ACTIONS_CACHE_SERVICE_V2", "True"),
            ("ACTIONS_RESULTS_URL", self.actions.url()),
            ("ACTIONS_RUNTIME_TOKEN", token),
        ]
    }
}

/// A pull request's job sees the caches of its branch and of the main one, and a bake takes both: each
/// build is warm. Addresses in storage that have run out are asked for again.
#[test]
fn every_ref_that_the_token_names() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let Setup { stored, actions } = &setup;
    let Stored { world, case } = stored;
    let main = setup.export("main", &case.request, &setup.v2(&actions.token(&[MAIN])));
    let token = actions.token(&[BRANCH, MAIN]);
    setup.native_import(&setup.v2(&token));
    actions.let_signatures_run_out(2);

    // Of the branch nothing has been built yet.
    let root = world.root(case, "before");
    Stored::bake("type=gha", &[&main.image], &root, &setup.runner(&token)).expect_success("bake");
    setup.stored.warms(&case.request, &main, &root);

    let branch = setup.export("branch", &case.changed, &setup.v2(&token));
    let root = world.root(case, "both");
    let images = [main.image.as_str(), &branch.image];
    Stored::bake("type=gha", &images, &root, &setup.runner(&token)).expect_success("bake");
    setup.stored.warms(&case.changed, &branch, &root);
    setup.stored.warms(&case.request, &main, &root);
}

/// GitHub Enterprise Server's version of the protocol; and a scope.
#[test]
fn version_1() {
    let Some(setup) = Setup::start("v0.17.3") else { return };
    let token = setup.actions.token(&[MAIN]);
    let attributes = format!("url={}/,token={token},scope=app", setup.actions.url());
    let origin = setup.export("main", &setup.stored.case.request, &attributes);
    setup.native_import(&attributes);
    let root = setup.stored.world.root(&setup.stored.case, "baked");
    let cache = format!("type=gha,{attributes}");
    Stored::bake(&cache, &[&origin.image], &root, &[]).expect_success("bake");
    setup.stored.warms(&setup.stored.case.request, &origin, &root);
}

#[test]
fn says_what_is_wrong() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let token = setup.actions.token(&[MAIN]);
    let origin = setup.export("main", &setup.stored.case.request, &setup.v2(&token));
    let refused = |cache: &str, variables: &[(&str, &str)], code: i32, words: &[&str]| {
        setup.stored.refused(&origin, cache, variables, (code, words), &[&token]);
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
