//! Runs the `warmkit` that is under test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use warmkit::progress::Silent;
use warmkit::verify::{Error, Options, Report, offline};

use super::command::{Ended, run};

/// `warmkit`, without arguments yet, and without this machine's docker configuration.
pub fn warmkit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.env_remove("SOURCE_DATE_EPOCH").env("DOCKER_CONFIG", "/nonexistent");
    command
}

/// Runs `warmkit bake <arguments> --root <root>`.
#[track_caller]
pub fn bake(arguments: &[&str], root: &Path) -> Ended {
    let mut command = warmkit();
    command.arg("bake").args(arguments).arg("--root").arg(root);
    run(&mut command, Duration::from_secs(180))
}

/// As [`bake`], with `SOURCE_DATE_EPOCH`.
#[track_caller]
pub fn bake_at(epoch: u64, arguments: &[&str], root: &Path) -> Ended {
    let mut command = warmkit();
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.arg("bake").args(arguments).arg("--root").arg(root);
    run(&mut command, Duration::from_secs(180))
}

/// Runs `warmkit verify --root <root> <arguments>`.
#[track_caller]
pub fn verify(arguments: &[&str], root: &Path) -> Ended {
    let mut command = warmkit();
    command.arg("verify").arg("--root").arg(root).args(arguments);
    run(&mut command, Duration::from_secs(300))
}

/// What verify says of a root, every layer of which it reads.
pub fn judge(root: &Path) -> Result<Report, Error> {
    let mut options = Options::default();
    options.read_data = true;
    offline(root, &options, &Silent)
}
