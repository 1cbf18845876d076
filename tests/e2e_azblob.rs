//! Caches that a real daemon exported to Azure's storage emulator: a root baked from them is warm, and
//! whoever may not read them, or asks for what is not there, is told what to do.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use support::azurite::{ACCOUNT, Azurite, KEY};
use support::cases::{Case, Origin, assert_warm};
use support::command::{self, Ended};
use support::daemon::check_databases;
use support::warmkit::warmkit;
use support::{BuildRequest, Tools, World, tools};

struct Setup {
    world: World,
    case: Case,
    azurite: Azurite,
}

impl Setup {
    fn start(release: &str) -> Option<Self> {
        let azurite = Azurite::start()?;
        let world = World::start(Tools::find(release)?);
        let case = world.case("app");
        Some(Self { world, case, azurite })
    }

    /// Builds on an empty daemon, and exports with these attributes.
    #[track_caller]
    fn export(&self, name: &str, request: &BuildRequest, attributes: &str) -> Origin {
        let root = self.world.root(&self.case, name);
        let image = self.world.registry.reference(self.case.name, name);
        let cache = self.azurite.cache(attributes);
        let daemon = self.world.daemon(&root);
        let to = format!("{cache},mode=max,secret_access_key={KEY}");
        let outcome = daemon.build(&request.push(&image).export_to(&to));
        daemon.stop();
        Origin { cache, image, outcome, changed: BTreeSet::new(), root }
    }

    #[track_caller]
    fn bake(cache: &str, images: &[&str], root: &Path) -> Ended {
        let mut command = warmkit();
        command.args(["bake", cache, "--root"]).arg(root);
        for image in images {
            command.args(["--keys-from", image]);
        }
        command::run(&mut command, Duration::from_secs(120))
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

/// Defaults, and what the error of each thing that is wrong says.
#[test]
fn a_container_warms_and_says_what_is_wrong() {
    let Some(setup) = Setup::start(tools::NEWEST) else { return };
    let case = &setup.case;
    let origin = setup.export("origin", &case.request, "");
    let root = setup.world.root(case, "baked");
    let key = format!(",secret_access_key={KEY}");
    Setup::bake(&format!("{}{key}", origin.cache), &[&origin.image], &root).expect_success("bake");
    setup.warms(&case.request, &origin, &root);

    let refused = |cache: &str, code: i32, words: &[&str]| {
        let root = setup.world.root(case, "refused");
        let ended = Setup::bake(cache, &[&origin.image], &root);
        assert_eq!(ended.status.code(), Some(code), "{cache}\n{}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains(KEY), "the key is shown: {}", ended.stderr);
        assert!(!root.exists());
    };
    let cache = |attributes: &str| format!("{}{key}", setup.azurite.cache(attributes));
    refused(&cache(",name=other"), 3, &["no cache \"other\" in container buildkit-cache", "manifests/other"]);
    refused(&cache(",container=others"), 3, &["no container others", "ContainerNotFound"]);
    let wrong = setup.azurite.cache(",secret_access_key=aGlkZGVu");
    refused(&wrong, 4, &["denies access", ACCOUNT, "machine's clock"]);
    refused(&setup.azurite.cache(",secret_access_key=no!"), 4, &["not the base64"]);
    refused("type=azblob", 2, &["$BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"]);
}

/// A container, prefixes, and several names: of an old release, each with another build.
#[test]
fn names_and_prefixes() {
    let Some(setup) = Setup::start("v0.17.3") else { return };
    let case = &setup.case;
    let place = ",container=box,prefix=team a/,manifests_prefix=m,blobs_prefix=b";
    let one = setup.export("one", &case.request, &format!("{place},name=main;main/2"));
    let two = setup.export("two", &case.changed, &format!("{place},name=branch"));
    let cache = setup.azurite.cache(&format!("{place},name=branch;gone;main/2,secret_access_key={KEY}"));
    let root = setup.world.root(case, "baked");
    let ended = Setup::bake(&cache, &[&one.image, &two.image], &root).expect_success("bake");
    assert!(ended.stderr.contains("no cache \"gone\""), "{}", ended.stderr);
    setup.warms(&case.request, &one, &root);
    setup.warms(&case.changed, &two, &root);
}
