//! What the tests of object stores share: a case whose cache is exported to one, and roots baked from it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::cases::{Case, Origin, World};
use super::command::{self, Ended};
use super::warmkit::warmkit;
use super::{BuildRequest, Tools};

/// What the variables of stores begin with.
const VARIABLES: [&str; 4] = ["AWS_", "AZURE_", "BUILDKIT_AZURE_", "ACTIONS_"];

/// One case, and where it is built.
pub struct Stored {
    /// Daemons and a registry.
    pub world: World,
    /// What is built.
    pub case: Case,
}

impl Stored {
    /// Sets everything up; `None` where something is missing, after it said so.
    #[track_caller]
    pub fn start(release: &str) -> Option<Self> {
        let world = World::start(Tools::find(release)?);
        let case = world.case("app");
        Some(Self { world, case })
    }

    /// Builds on an empty daemon, pushes the image, and exports as `to` says what is then read as `cache`.
    #[track_caller]
    pub fn export(&self, name: &str, request: &BuildRequest, cache: &str, to: &str) -> Origin {
        let root = self.world.root(&self.case, name);
        let image = self.world.registry.reference(self.case.name, name);
        let daemon = self.world.daemon(&root);
        let outcome = daemon.build(&request.push(&image).export_to(&format!("{to},mode=max")));
        daemon.stop();
        Origin { cache: cache.to_owned(), image, outcome, changed: BTreeSet::new(), root }
    }

    /// Bakes with these variables, and no others of any store.
    #[track_caller]
    pub fn bake(cache: &str, images: &[&str], root: &Path, variables: &[(&str, &str)]) -> Ended {
        let mut command = warmkit();
        for (name, _) in std::env::vars_os() {
            if VARIABLES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(variables.iter().copied()).args(["bake", cache, "--root"]).arg(root);
        for image in images {
            command.args(["--keys-from", image]);
        }
        command::run(&mut command, Duration::from_secs(120))
    }

    /// Asserts that the build of `origin` is warm on a baked root.
    #[track_caller]
    pub fn warms(&self, request: &BuildRequest, origin: &Origin, root: &Path) {
        self.world.warms(request, origin, root);
    }

    /// Asserts that a bake ends with this code and these words, says none of these secrets, and leaves nothing.
    #[track_caller]
    pub fn refused(
        &self,
        origin: &Origin,
        cache: &str,
        variables: &[(&str, &str)],
        (code, words): (i32, &[&str]),
        secrets: &[&str],
    ) {
        let root = self.world.root(&self.case, "refused");
        let ended = Self::bake(cache, &[&origin.image], &root, variables);
        assert_eq!(ended.status.code(), Some(code), "{cache}\n{}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "no {word:?} in: {}", ended.stderr);
        }
        for secret in secrets {
            assert!(!ended.stderr.contains(secret), "a secret is shown: {}", ended.stderr);
        }
        assert!(!root.exists());
    }
}
