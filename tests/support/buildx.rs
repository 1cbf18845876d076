//! `docker buildx`, as its plugin's binary, on a daemon of the test's own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::command::run;
use super::{Daemon, Scratch, tools};

/// Buildx with one builder, the daemon's, which is the one in use.
#[derive(Debug)]
pub struct Buildx {
    program: PathBuf,
    /// Its configuration, and docker's: nothing of this machine.
    config: Scratch,
}

impl Buildx {
    /// Finds it; `None` when it is missing, after it said so.
    ///
    /// # Panics
    ///
    /// When it is missing and `WARMKIT_REQUIRE_REAL=1`.
    #[track_caller]
    pub fn find() -> Option<Self> {
        Some(Self { program: tools::buildx()?, config: Scratch::new() })
    }

    /// Makes the daemon its builder, under this name.
    #[track_caller]
    pub fn use_daemon(&self, name: &str, daemon: &Daemon) {
        let mut command = self.command();
        command.args(["create", "--use", "--driver=remote", "--name", name]).arg(daemon.address());
        run(&mut command, Duration::from_secs(60)).expect_success("buildx create");
    }

    /// Forgets the builder.
    #[track_caller]
    pub fn forget(&self, name: &str) {
        let mut command = self.command();
        command.args(["rm", name]);
        run(&mut command, Duration::from_secs(60)).expect_success("buildx rm");
    }

    /// `buildx`, without arguments yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("BUILDX_CONFIG", self.config.join("buildx")).env("DOCKER_CONFIG", self.config.path());
        command.env_remove("BUILDX_BUILDER");
        command
    }
}
