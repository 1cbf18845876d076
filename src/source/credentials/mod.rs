//! Credentials where docker and podman keep them.
//!
//! ```text
//! $DOCKER_AUTH_CONFIG, the JSON itself
//! $DOCKER_CONFIG/config.json, else ~/.docker/config.json
//! $REGISTRY_AUTH_FILE, else $XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json
//! ```
//!
//! A file that a variable names goes before those at default places; the first file that knows the
//! registry counts. Helpers have a time limit, and end when the run does.

mod environment;
mod error;
mod file;
mod helper;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use self::file::{AuthFile, host_keys};
use super::Error;
use super::http::{Options, Stop};

pub use environment::Environment;
pub use error::{CredentialError, JsonFault};
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
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) secret: Secret,
    /// For messages: a file, or a helper.
    pub(super) origin: String,
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
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    env: Environment,
    helper_timeout: Duration,
    stop: Stop,
}

impl Credentials {
    pub(super) fn new(options: &Options) -> Self {
        Self { env: options.env.clone(), helper_timeout: options.helper_timeout, stop: options.stop.clone() }
    }

    /// The files that are looked into, in order; they need not exist.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let docker = self.env.path("DOCKER_CONFIG").map(|dir| dir.join("config.json"));
        let podman = self.env.path("REGISTRY_AUTH_FILE");
        let home = self.env.path("HOME");
        let config = self.env.path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
        let (docker_set, podman_set) = (docker.is_some(), podman.is_some());
        let mut files: Vec<_> = docker.into_iter().chain(podman).collect();
        if !docker_set {
            files.extend(home.map(|h| h.join(".docker/config.json")));
        }
        if !podman_set {
            files.extend(self.env.path("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json")));
            files.extend(config.map(|d| d.join("containers/auth.json")));
        }
        files
    }

    /// Finds credentials for a registry as references name it (`docker.io`, `localhost:5000`).
    pub(super) fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Error> {
        let in_env = self.env.path(IN_ENV).map(|json| json.into_os_string().into_encoded_bytes());
        let in_env = in_env.into_iter().map(|json| Ok((PathBuf::from(format!("${IN_ENV}")), json)));
        let in_files = self.files().into_iter().filter_map(|path| match std::fs::read(&path) {
            Ok(bytes) => Some(Ok((path, bytes))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(source) => Some(Err(CredentialError::Read { path, source })),
        });
        for found in in_env.chain(in_files) {
            let (path, bytes) = found?;
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let file = AuthFile::parse(&path, &bytes)?;
            if let Some(found) = self.find_in(&path, &file, registry, repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
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
    ) -> Result<Option<Credential>, Error> {
        let origin = path.display().to_string();
        // Helpers know Docker Hub by the first of its names.
        let server = host_keys(registry).first().copied().unwrap_or(registry);
        for name in file.helpers(registry) {
            let helper = format!("docker-credential-{name}");
            if let Some(found) = self.ask_helper(&helper, self.command(&helper), server, &origin)? {
                return Ok(Some(found));
            }
        }
        Ok(file.secret(path, registry, repository)?.map(|secret| Credential { secret, origin }))
    }
}

#[cfg(test)]
mod tests;
