//! Credentials where docker and podman keep them.
//!
//! ```text
//! $DOCKER_AUTH_CONFIG, the JSON itself
//! $DOCKER_CONFIG/config.json, else ~/.docker/config.json
//! $REGISTRY_AUTH_FILE, else $XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json
//!   {"auths":       {"<host or host/namespace>": {"auth": base64("user:password"), "identitytoken": …}},
//!    "credHelpers": {"<host>": "<name>"},        runs docker-credential-<name>
//!    "credsStore":  "<name>"}
//! ```
//!
//! A file that a variable names goes before those at default places; the first file that knows the
//! registry counts. Within a file the order is docker's (`cli/config/configfile/file.go`): the helper
//! of that host, then the store for all hosts, then `auths`, of which the longest match counts, as in
//! `containers-auth.json(5)`. A helper that knows nothing of the host is no error.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine;
use serde::Deserialize;

/// The key under which docker keeps Docker Hub's credentials.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The variable that holds credentials instead of saying where they are (docker 28.3, GitLab).
const IN_ENV: &str = "DOCKER_AUTH_CONFIG";
/// What a helper prints for a host that it does not know.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that stands for "the secret is an identity token".
const TOKEN_USER: &str = "<token>";

/// The environment variables that say where credentials are.
///
/// Held as a value so that no code here reads the process's own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// A copy of the process's variables.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(OsStr::new(name)).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// A variable as text; an empty one, and one that is no text, counts as none.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(OsStr::new(name)).and_then(|value| value.to_str()).filter(|value| !value.is_empty())
    }

    /// Has a program see these variables, and no others.
    pub(super) fn give_to(&self, command: &mut Command) {
        command.env_clear().envs(&self.0);
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Self {
        Self(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why configured credentials cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A credentials file that cannot be read.
    #[error("cannot read credentials file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A credentials file that is not what docker and podman write.
    #[error("credentials file {} is not valid: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// An `auth` that is not base64 of `user:password`.
    #[error(
        "credentials file {}: the auth of {key} is not base64 of user:password; log in to it again",
        path.display()
    )]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The key under `auths`.
        key: String,
    },
    /// A helper that cannot be started.
    #[error("cannot run credential helper {helper}, which {} asks for: {source}", path.display())]
    HelperStart {
        /// The program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A helper that took too long.
    #[error("credential helper {helper} gave no answer for {host} in {} seconds", limit.as_secs_f32())]
    HelperTimeout {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// How long it was given.
        limit: Duration,
    },
    /// A helper that failed.
    #[error("credential helper {helper} failed for {host} ({status}): {message}")]
    HelperFailed {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// A helper whose answer makes no sense.
    #[error("credential helper {helper} gave an answer for {host} that is not valid: {source}")]
    HelperAnswer {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

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

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: Option<BTreeMap<String, AuthEntry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    secret: String,
}

/// Finds credentials in an environment.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    env: Environment,
    helper_timeout: Duration,
}

impl Credentials {
    pub(super) fn new(env: Environment, helper_timeout: Duration) -> Self {
        Self { env, helper_timeout }
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
    pub(super) fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        let in_env = self.env.0.get(OsStr::new(IN_ENV)).map(|json| json.as_encoded_bytes().to_vec());
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
            let file: AuthFile = serde_json::from_slice(&bytes)
                .map_err(|source| CredentialError::Json { path: path.clone(), source })?;
            if let Some(found) = self.find_in(&path, &file, registry, repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn find_in(
        &self,
        path: &Path,
        file: &AuthFile,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        let keys = host_keys(registry);
        // Helpers know Docker Hub by the first of its names.
        let server = keys.first().copied().unwrap_or(registry);
        let of_host = file.cred_helpers.iter().flatten().find(|(key, _)| keys.contains(&key.as_str()));
        let helpers = of_host.map(|(_, name)| name).into_iter().chain(&file.creds_store);
        for name in helpers.filter(|name| !name.is_empty()) {
            if let Some(found) = self.ask_helper(path, name, server)? {
                return Ok(Some(found));
            }
        }
        let Some(auths) = &file.auths else { return Ok(None) };
        for wanted in keys.iter().flat_map(|host| namespaces(host, repository)) {
            let exact = auths.get_key_value(&wanted);
            let same_host = || auths.iter().find(|(key, _)| host_of_url(key).is_some_and(|h| h == wanted));
            if let Some((key, entry)) = exact.or_else(same_host)
                && let Some(secret) = entry.secret(path, key)?
            {
                return Ok(Some(Credential { secret, origin: path.display().to_string() }));
            }
        }
        Ok(None)
    }

    fn ask_helper(&self, path: &Path, name: &str, host: &str) -> Result<Option<Credential>, CredentialError> {
        let helper = format!("docker-credential-{name}");
        let start =
            |source| CredentialError::HelperStart { helper: helper.clone(), path: path.to_owned(), source };
        let timeout = || CredentialError::HelperTimeout {
            helper: helper.clone(),
            host: host.to_owned(),
            limit: self.helper_timeout,
        };
        let mut command = Command::new(&helper);
        self.env.give_to(command.arg("get"));
        let ended = run_helper(&mut command, host.as_bytes(), self.helper_timeout).map_err(start)?;
        let Ended { status, stdout, stderr } = ended.ok_or_else(timeout)?;
        if !status.success() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
            if text(&stdout) == NOT_FOUND || text(&stderr) == NOT_FOUND {
                return Ok(None);
            }
            let message = if text(&stdout).is_empty() { text(&stderr) } else { text(&stdout) };
            return Err(CredentialError::HelperFailed { helper, host: host.to_owned(), status, message });
        }
        let answer: HelperAnswer = serde_json::from_slice(&stdout).map_err(|source| {
            CredentialError::HelperAnswer { helper: helper.clone(), host: host.to_owned(), source }
        })?;
        if answer.secret.is_empty() {
            return Ok(None);
        }
        let secret = match answer.username.as_str() {
            TOKEN_USER => Secret::Identity(answer.secret),
            _ => Secret::Password { user: answer.username, password: answer.secret },
        };
        Ok(Some(Credential { secret, origin: format!("credential helper {helper}") }))
    }
}

impl AuthEntry {
    /// The secret; docker leaves an empty entry where a helper holds it.
    fn secret(&self, path: &Path, key: &str) -> Result<Option<Secret>, CredentialError> {
        let set = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Secret::Identity(token)));
        }
        if let Some(token) = set(&self.registrytoken) {
            return Ok(Some(Secret::Registry(token)));
        }
        if let Some(auth) = set(&self.auth) {
            let invalid = || CredentialError::Encoding { path: path.to_owned(), key: key.to_owned() };
            let (user, password) = decode_auth(&auth).ok_or_else(invalid)?;
            return Ok(Some(Secret::Password { user, password }));
        }
        Ok(set(&self.username)
            .zip(set(&self.password))
            .map(|(user, password)| Secret::Password { user, password }))
    }
}

/// Decodes `auth`; padding may be missing, and a trailing NUL is docker's own doing.
fn decode_auth(auth: &str) -> Option<(String, String)> {
    let bytes =
        base64::engine::general_purpose::STANDARD_NO_PAD.decode(auth.trim().trim_end_matches('=')).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The names under which a registry's credentials may stand.
fn host_keys(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" => vec![HUB_KEY, "index.docker.io", "docker.io", "registry-1.docker.io"],
        other => vec![other],
    }
}

/// `host/a/b`, `host/a`, `host`.
fn namespaces(host: &str, repository: &str) -> Vec<String> {
    let mut keys = vec![host.to_owned()];
    if !host.ends_with('/') {
        let mut key = host.to_owned();
        for part in repository.split('/') {
            key = format!("{key}/{part}");
            keys.push(key.clone());
        }
    }
    keys.reverse();
    keys
}

/// The host of a key that is written as a URL, as old docker releases did.
fn host_of_url(key: &str) -> Option<&str> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"))?;
    rest.split('/').next()
}

/// What a helper left behind.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Runs a helper to its end, with `input` on its standard input; `None` where it takes longer than
/// `limit`, and is killed.
pub(super) fn run_helper(
    command: &mut Command,
    input: &[u8],
    limit: Duration,
) -> Result<Option<Ended>, io::Error> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that answers without reading is fine.
        let _ = stdin.write_all(input);
    }
    // Read on threads that are not waited for: a grandchild may hold the pipes open.
    let stdout = read_aside(child.stdout.take());
    let stderr = read_aside(child.stderr.take());
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // Its output is there already, or very nearly, unless someone else holds the pipe.
    let grace = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let Ok(stdout) = stdout.recv_timeout(grace) else { return Ok(None) };
    let stderr = if status.success() {
        Vec::new()
    } else {
        stderr.recv_timeout(Duration::from_millis(100)).unwrap_or_default()
    };
    Ok(Some(Ended { status, stdout, stderr }))
}

fn read_aside(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is still the best message there is.
            let _ = pipe.take(1 << 20).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests;
