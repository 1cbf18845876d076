//! Who is asking a registry: what was given, what docker and podman keep, what a cloud has.
//!
//! ```text
//! given    user and password for one registry, with the run
//! file     $REGISTRY_AUTH_FILE
//!          $DOCKER_AUTH_CONFIG, the JSON itself
//!          $DOCKER_CONFIG/config.json, else ~/.docker/config.json
//!          without $REGISTRY_AUTH_FILE: $XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json
//!   helper   docker-credential-<name>, where a file names it
//! cloud    ECR: docker-credential-ecr-login, aws ecr get-login-password; ghcr.io: $GITHUB_TOKEN
//! ```
//!
//! The first that knows the registry counts, and none after it is asked. Helpers are asked once per registry, have a
//! time limit, and end when the run does. No secret stands in a message, an argument or a file.

mod asked;
mod cloud;
mod environment;
mod error;
mod file;
mod given;
mod helper;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use self::asked::Asked;
use self::file::{AuthFile, host_keys};
use super::Error;
use super::http::{Options, Stop};

pub(super) use cloud::{AWS_CLI, ECR_HELPER, GHCR, GITHUB_TOKEN, ecr_region};
pub use environment::Environment;
pub use error::{CredentialError, JsonFault};
pub use given::{Given, GivenError};
pub(super) use helper::run_helper;

/// The variable that holds credentials instead of saying where they are (docker 28.3, GitLab).
const IN_ENV: &str = "DOCKER_AUTH_CONFIG";

/// What to show to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Password {
        user: String,
        password: String,
    },
    /// An `OAuth2` refresh token.
    Identity(String),
    /// A token to show to the registry as it is.
    Registry(String),
}

/// A secret and where it came from.
#[derive(Clone)]
pub(super) struct Credential {
    pub(super) secret: Secret,
    pub(super) origin: Origin,
    /// Whether a program gave it when it was asked before, so that it may have ended since.
    pub(super) kept: bool,
}

impl PartialEq for Credential {
    /// Whether both are the same to a registry.
    fn eq(&self, other: &Self) -> bool {
        self.secret == other.secret && self.origin == other.origin
    }
}

impl Eq for Credential {}

impl Credential {
    fn new(secret: Secret, origin: Origin) -> Self {
        Self { secret, origin, kept: false }
    }
}

/// Where credentials came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Whoever started the run.
    Given,
    /// A file, or a variable that stands for one.
    File(String),
    /// A credential helper.
    Helper(String),
    /// The command line of AWS.
    AwsCli,
    /// The token of a workflow.
    GithubToken,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("standard input"),
            Self::File(path) => f.write_str(path),
            Self::Helper(helper) => write!(f, "credential helper {helper}"),
            Self::AwsCli => f.write_str(AWS_CLI),
            Self::GithubToken => write!(f, "${GITHUB_TOKEN}"),
        }
    }
}

impl Origin {
    /// Whether asking again may give others: programs know when theirs have ended.
    pub(super) fn may_change(&self) -> bool {
        matches!(self, Self::Helper(_) | Self::AwsCli)
    }

    /// How to get credentials that may `wanted`.
    pub(super) fn remedy(&self, registry: &str, wanted: &str) -> String {
        match self {
            Self::Given => format!("give a password that may {wanted}"),
            Self::File(_) => format!("run docker login {registry} with an account that may {wanted}"),
            Self::Helper(helper) if helper != ECR_HELPER => {
                format!("have {helper} know an account that may {wanted}")
            }
            Self::Helper(_) | Self::AwsCli => {
                format!("check that the machine's role, or its AWS credentials, may {wanted}")
            }
            Self::GithubToken => format!(
                "let it {wanted} (permissions: packages in the workflow, and the package's own settings); it ends \
                 with its job"
            ),
        }
    }
}

impl fmt::Display for Credential {
    /// Whose they are and where from, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.secret {
            Secret::Password { user, .. } => write!(f, "as {user:?} from {}", self.origin),
            _ => write!(f, "with the token from {}", self.origin),
        }
    }
}

/// Finds credentials as options say.
#[derive(Clone)]
pub(super) struct Credentials {
    given: Option<Given>,
    env: Environment,
    helper_timeout: Duration,
    stop: Stop,
    asked: Arc<Asked>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("given", &self.given)
            .field("env", &self.env)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            given: options.given.clone(),
            env: options.env.clone(),
            helper_timeout: options.helper_timeout,
            stop: options.stop.clone(),
            asked: options.pool.shared(),
        }
    }

    /// The files that are looked into, in order, in words; they need not exist, but one that a variable names may
    /// well be meant to.
    pub(super) fn files(&self) -> Vec<String> {
        let shown = |path: PathBuf| path.display().to_string();
        let named = self.named_file().map(|path| {
            let missing =
                if path.exists() { "" } else { ", which $REGISTRY_AUTH_FILE names and is not there" };
            format!("{}{missing}", path.display())
        });
        named.into_iter().chain(self.default_files().into_iter().map(shown)).collect()
    }

    fn named_file(&self) -> Option<PathBuf> {
        self.env.path("REGISTRY_AUTH_FILE")
    }

    /// Docker's, and podman's own places, where no variable names another.
    fn default_files(&self) -> Vec<PathBuf> {
        let home = self.env.path("HOME");
        let docker = self.env.path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|dir| dir.join(".docker")));
        let mut files: Vec<_> = docker.map(|dir| dir.join("config.json")).into_iter().collect();
        if self.named_file().is_none() {
            let config = self.env.path("XDG_CONFIG_HOME").or_else(|| home.map(|dir| dir.join(".config")));
            let podman = [self.env.path("XDG_RUNTIME_DIR"), config];
            files.extend(podman.into_iter().flatten().map(|dir| dir.join("containers/auth.json")));
        }
        files
    }

    /// Finds credentials for a registry as references name it (`docker.io`, `localhost:5000`). Programs that gave
    /// what was `refused` are asked again; other answers of theirs are taken as they were.
    pub(super) fn find(
        &self,
        registry: &str,
        repository: &str,
        refused: Option<&Credential>,
    ) -> Result<Option<Credential>, Error> {
        if let Some(given) = self.given.as_ref().filter(|given| given.registry == registry) {
            let (user, password) = (given.user.clone(), given.password.expose().to_owned());
            return Ok(Some(Credential::new(Secret::Password { user, password }, Origin::Given)));
        }
        let read = |path: PathBuf| match std::fs::read(&path) {
            Ok(bytes) => Some(Ok((path, bytes))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(source) => Some(Err(CredentialError::Read { path, source })),
        };
        let in_env = self.env.path(IN_ENV).map(|json| json.into_os_string().into_encoded_bytes());
        let in_env = in_env.into_iter().map(|json| Ok((PathBuf::from(format!("${IN_ENV}")), json)));
        let named = self.named_file().and_then(read);
        let others = self.default_files().into_iter().filter_map(read);
        for found in named.into_iter().chain(in_env).chain(others) {
            let (path, bytes) = found?;
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let file = AuthFile::parse(&path, &bytes)?;
            if let Some(found) = self.find_in(&path, &file, registry, repository, refused)? {
                return Ok(Some(found));
            }
        }
        self.of_cloud(registry, refused)
    }

    /// A program that sees the environment.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.env.give_to(&mut command);
        // AWS's helper would keep what it got in `~/.ecr/cache.json`, which would be part of a machine image.
        command.env("AWS_ECR_DISABLE_CACHE", "1");
        command
    }

    fn find_in(
        &self,
        path: &Path,
        file: &AuthFile,
        registry: &str,
        repository: &str,
        refused: Option<&Credential>,
    ) -> Result<Option<Credential>, Error> {
        let asked_by = path.display().to_string();
        // Helpers know Docker Hub by the first of its names.
        let server = host_keys(registry).first().copied().unwrap_or(registry);
        for name in file.helpers(registry) {
            let helper = format!("docker-credential-{name}");
            let ask = || self.ask_helper(&helper, self.command(&helper), server, &asked_by);
            if let Some(found) = self.asked.once(&helper, server, refused, ask)? {
                return Ok(Some(found));
            }
        }
        Ok(file.secret(path, registry, repository)?.map(|secret| {
            let origin = Origin::File(asked_by);
            Credential::new(secret, origin)
        }))
    }
}

#[cfg(test)]
mod tests;
