//! Debian's Packer, run on the templates of this repository.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::command::{Ended, run};
use super::{Scratch, skip::skip, tools::on_path};

/// The templates' directory.
pub const TEMPLATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packer");

/// Finds Packer.
///
/// `None` when it is missing, after it said so; the test is then to return.
///
/// # Panics
///
/// When it is missing and `WARMKIT_REQUIRE_REAL=1`.
#[track_caller]
pub fn packer() -> Option<PathBuf> {
    let found = on_path("packer");
    if found.is_none() {
        skip("no packer in $PATH");
    }
    found
}

/// Runs `packer <verb> -var … packer/<template>`, with a home and a cache of its own, and no call home.
#[track_caller]
pub fn run_packer(
    packer: &Path,
    verb: &str,
    template: &str,
    variables: &[(&str, &str)],
    limit: Duration,
) -> Ended {
    let template = Path::new(TEMPLATES).join(template);
    run_packer_with(packer, verb, &template, variables, &[], limit)
}

/// Runs `packer <verb> -var … <template>` in an environment that has these, too, otherwise as [`run_packer`].
#[track_caller]
pub fn run_packer_with(
    packer: &Path,
    verb: &str,
    template: &Path,
    variables: &[(&str, &str)],
    environment: &[(&str, &str)],
    limit: Duration,
) -> Ended {
    let home = Scratch::new();
    let mut command = Command::new(packer);
    command.arg(verb).env("HOME", home.path()).env("PACKER_CACHE_DIR", home.join("cache"));
    command.env("CHECKPOINT_DISABLE", "1").env("PACKER_NO_COLOR", "1");
    // As CI systems do.
    command.env("CLICOLOR_FORCE", "1");
    for (name, value) in variables {
        command.arg("-var").arg(format!("{name}={value}"));
    }
    command.envs(environment.iter().copied()).arg(template);
    run(&mut command, limit)
}

/// A tar of a context, as templates take it; its path.
pub fn tar_of(context: &Path, scratch: &Scratch) -> String {
    let tar = scratch.join("context.tar");
    let mut command = Command::new("tar");
    command.arg("-C").arg(context).arg("-cf").arg(&tar).arg(".");
    run(&mut command, Duration::from_secs(60)).expect_success("tar");
    tar.to_str().unwrap().to_owned()
}

/// A variable's list of strings.
pub fn list(items: &[&str]) -> String {
    serde_json::to_string(items).unwrap()
}
