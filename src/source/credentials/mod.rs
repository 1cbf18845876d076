//! Who is asking a registry: what was given, what docker and podman keep, what a cloud has.
//!
//! ```text
//! given    user and password for one registry, with the run
//! file     $REGISTRY_AUTH_FILE
//!          $DOCKER_AUTH_CONFIG, the JSON itself
//!          $DOCKER_CONFIG/config.json, else ~/.docker/config.json
//!          without $REGISTRY_AUTH_FILE: $XDG_RUNTIME_DIR/containers/auth.json, else /run/containers/<uid>/auth.json;
//!                                       $XDG_CONFIG_HOME/containers/auth.json, else ~/.config/containers/auth.json
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
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use self::asked::Asked;
use self::file::{AuthFile, host_keys};
use super::Error;
use super::http::{Options, Stop};
use super::secret::Secret;

pub(super) use cloud::{AWS_CLI, ECR_HELPER, GHCR, GITHUB_TOKEN, ecr_region};
pub use environment::Environment;
pub use error::{CredentialError, JsonFault};
pub use given::{Given, GivenError};
pub(super) use helper::run_helper;

/// The variable that holds credentials instead of saying where they are (docker 28.3, GitLab).
const IN_ENV: &str = "DOCKER_AUTH_CONFIG";

/// What to show to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: String,
        password: Secret,
    },
    /// An `OAuth2` refresh token.
    Identity(Secret),
    /// A token to show to the registry as it is.
    Registry(Secret),
}

impl Login {
    fn password(user: &str, password: impl Into<String>) -> Self {
        Self::Password { user: user.to_owned(), password: Secret::new(password) }
    }
}

/// What to show and where it came from.
#[derive(Clone)]
pub(super) struct Credential {
    pub(super) login: Login,
    pub(super) origin: Origin,
    /// Whether a program gave it when it was asked before, so that it may have ended since.
    pub(super) kept: bool,
}

impl PartialEq for Credential {
    /// Whether both are the same to a registry.
    fn eq(&self, other: &Self) -> bool {
        self.login == other.login && self.origin == other.origin
    }
}

impl Eq for Credential {}

impl Credential {
    fn new(login: Login, origin: Origin) -> Self {
        Self { login, origin, kept: false }
    }
}

/// A file of credentials, or what stands for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The file that `$REGISTRY_AUTH_FILE` names.
    Named(PathBuf),
    /// [`IN_ENV`].
    Variable,
    /// Docker's own.
    Docker(PathBuf),
    /// One of podman's own.
    Podman(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(path) | Self::Docker(path) | Self::Podman(path) => path.display().fmt(f),
            Self::Variable => write!(f, "${IN_ENV}"),
        }
    }
}

impl Place {
    /// How to put there what goes on with "an account"; elsewhere it would come too late.
    fn how_to_log_in(&self, registry: &str) -> String {
        match self {
            Self::Named(_) | Self::Variable => format!("put into {self}"),
            Self::Docker(_) => format!("run docker login {registry} with"),
            Self::Podman(_) => format!("run podman login {registry} with"),
        }
    }

    /// What stands there; `None` where there is nothing.
    fn read(&self, env: &Environment) -> Result<Option<Vec<u8>>, CredentialError> {
        let (Self::Named(path) | Self::Docker(path) | Self::Podman(path)) = self else {
            return Ok(env.path(IN_ENV).map(|json| json.into_os_string().into_encoded_bytes()));
        };
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(CredentialError::Read { path: path.clone(), source }),
        }
    }
}

/// Where credentials came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Whoever started the run.
    Given,
    /// A file, or what stands for one.
    File(Place),
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
            Self::File(place) => place.fmt(f),
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
            Self::File(place) => format!("{} an account that may {wanted}", place.how_to_log_in(registry)),
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
        match &self.login {
            Login::Password { user, .. } => write!(f, "as {user:?} from {}", self.origin),
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
        let shown = |place: Place| match &place {
            Place::Variable => None,
            Place::Named(path) if !path.exists() => {
                Some(format!("{place}, which $REGISTRY_AUTH_FILE names and is not there"))
            }
            _ => Some(place.to_string()),
        };
        self.places().into_iter().filter_map(shown).collect()
    }

    /// Where to look, in order.
    fn places(&self) -> Vec<Place> {
        let home = self.env.path("HOME");
        let in_home = |dir: &str| home.as_ref().map(|home| home.join(dir));
        let named = self.env.path("REGISTRY_AUTH_FILE").map(Place::Named);
        let is_named = named.is_some();
        let docker = self.env.path("DOCKER_CONFIG").or_else(|| in_home(".docker"));
        let docker = docker.map(|dir| Place::Docker(dir.join("config.json")));
        let mut places: Vec<_> = named.into_iter().chain([Place::Variable]).chain(docker).collect();
        if !is_named {
            let of_user = || self.env.user().map(|user| format!("/run/containers/{user}").into());
            let runtime = self.env.path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers")).or_else(of_user);
            let config = self.env.path("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
            let podman = [runtime, config.map(|dir| dir.join("containers"))];
            places.extend(podman.into_iter().flatten().map(|dir| Place::Podman(dir.join("auth.json"))));
        }
        places
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
            let (user, password) = (given.user.clone(), given.password.clone());
            return Ok(Some(Credential::new(Login::Password { user, password }, Origin::Given)));
        }
        for place in self.places() {
            let Some(bytes) = place.read(&self.env)? else { continue };
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let file = AuthFile::parse(&place, &bytes)?;
            if let Some(found) = self.find_in(place, &file, registry, repository, refused)? {
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
        place: Place,
        file: &AuthFile,
        registry: &str,
        repository: &str,
        refused: Option<&Credential>,
    ) -> Result<Option<Credential>, Error> {
        let asked_by = place.to_string();
        // Helpers know Docker Hub by the first of its names.
        let server = host_keys(registry).first().copied().unwrap_or(registry);
        for name in file.helpers(registry) {
            let helper = format!("docker-credential-{name}");
            let ask = || self.ask_helper(&helper, self.command(&helper), server, &asked_by);
            if let Some(found) = self.asked.once(&helper, server, refused, ask)? {
                return Ok(Some(found));
            }
        }
        let login = file.login(&place, registry, repository)?;
        Ok(login.map(|login| Credential::new(login, Origin::File(place))))
    }
}

#[cfg(test)]
mod tests;
