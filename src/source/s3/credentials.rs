//! AWS credentials, looked for where AWS's own tools look for them.
//!
//! ```text
//! access_key_id, secret_access_key, session_token        of the cache itself
//! AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
//! AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN              a role, for a token in a file (EKS)
//! profile $AWS_PROFILE of the shared files               keys, a role, a program
//! AWS_CONTAINER_CREDENTIALS_{RELATIVE,FULL}_URI          ECS, EKS pod identity
//! instance metadata (IMDSv2)                             EC2
//! ```
//!
//! Mirrors the order of aws-sdk-go-v2's `config.LoadDefaultConfig`, which `BuildKit` and buildx use.
//! What comes with a time at which it ends is fetched anew before that.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::error::AwsError;
use super::held::{Answer, Held};
use super::profile::{Profile, Profiles};
use super::remote;
use super::sigv4::Keys;
use crate::source::credentials::{JsonFault, run_helper};
use crate::source::http::{Failure, Options, one_line};

/// How long before their end temporary keys are fetched anew.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// How many profiles may take their credentials from one another.
const MAX_CHAIN: usize = 8;

/// Finds keys and keeps them as long as they last; shared by threads.
pub(super) struct Provider {
    written: Option<Keys>,
    options: Options,
    region: String,
    /// The lock is held while keys are fetched, so that threads which all find them stale fetch once.
    state: Mutex<Option<Held>>,
}

impl Provider {
    pub(super) fn new(written: Option<Keys>, region: &str, options: &Options) -> Self {
        Self { written, options: options.clone(), region: region.to_owned(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        // What is guarded is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys to sign with now.
    pub(super) fn current(&self) -> Result<Keys, Failure> {
        let mut state = self.lock();
        let lasts = |held: &Held| held.expires.is_none_or(|end| Timestamp::now() + AHEAD < end);
        if let Some(held) = state.as_ref().filter(|held| lasts(held)) {
            return Ok(held.keys.clone());
        }
        let held = self.find()?;
        let keys = held.keys.clone();
        *state = Some(held);
        Ok(keys)
    }

    /// Forgets keys that were refused, if others may be had instead: those that end by themselves.
    pub(super) fn refused(&self, keys: &Keys) -> bool {
        let mut state = self.lock();
        match state.as_ref() {
            Some(held) if held.keys == *keys && held.expires.is_some() => {
                *state = None;
                true
            }
            // Another thread has got new ones already.
            Some(held) => held.keys != *keys,
            None => true,
        }
    }

    /// For messages: with which credentials the store was asked.
    pub(super) fn shown(&self) -> String {
        self.lock().as_ref().map_or("without credentials".to_owned(), ToString::to_string)
    }

    fn find(&self) -> Result<Held, Failure> {
        if let Some(keys) = &self.written {
            let origin = "the attribute access_key_id".to_owned();
            return Ok(Held { keys: keys.clone(), origin, expires: None });
        }
        let env = &self.options.env;
        let text = |name| env.text(name);
        let id = text("AWS_ACCESS_KEY_ID").or_else(|| text("AWS_ACCESS_KEY"));
        let secret = text("AWS_SECRET_ACCESS_KEY").or_else(|| text("AWS_SECRET_KEY"));
        if let (Some(id), Some(secret)) = (id, secret) {
            return Ok(Held::new(id, secret, text("AWS_SESSION_TOKEN"), "the environment"));
        }
        if let Some(file) = env.path("AWS_WEB_IDENTITY_TOKEN_FILE") {
            let from = "the environment".to_owned();
            let missing = AwsError::Incomplete { from, missing: "AWS_ROLE_ARN" };
            let role = text("AWS_ROLE_ARN").ok_or(missing)?;
            return self.web_identity(file, role, text("AWS_ROLE_SESSION_NAME"));
        }
        let profiles = Profiles::read(env)?;
        let asked = text("AWS_PROFILE").or_else(|| text("AWS_DEFAULT_PROFILE"));
        let name = asked.unwrap_or("default");
        match profiles.get(name) {
            Some(profile) => self.of_profile(&profiles, name, profile, 0),
            None if asked.is_some() => {
                Err(AwsError::NoProfile { name: name.to_owned(), files: profiles.files }.into())
            }
            None => self.of_machine(&profiles.files),
        }
    }

    /// What a profile says, or, where it says nothing, what the machine gives.
    fn of_profile(
        &self,
        profiles: &Profiles,
        name: &str,
        profile: &Profile,
        depth: usize,
    ) -> Result<Held, Failure> {
        if depth == MAX_CHAIN {
            return Err(AwsError::Circle { name: name.to_owned() }.into());
        }
        let from = format!("profile {name:?}");
        let missing = |missing| AwsError::Incomplete { from: from.clone(), missing };
        let keys = || -> Result<Option<Held>, AwsError> {
            let Some(id) = profile.get("aws_access_key_id") else { return Ok(None) };
            let secret = profile.get("aws_secret_access_key");
            let secret = secret.ok_or_else(|| missing("aws_secret_access_key"))?;
            Ok(Some(Held::new(id, secret, profile.get("aws_session_token"), from.clone())))
        };
        if profile.get("role_arn").is_some() && profile.get("mfa_serial").is_some() {
            return Err(AwsError::Unsupported { name: name.to_owned(), setting: "mfa_serial" }.into());
        }
        let base = if let Some(source) = profile.get("source_profile") {
            if source == name {
                // A profile may name itself: its own keys take its role.
                keys()?.ok_or_else(|| missing("aws_access_key_id"))?
            } else {
                let files = || profiles.files.clone();
                let none = || AwsError::NoProfile { name: source.to_owned(), files: files() };
                self.of_profile(profiles, source, profiles.get(source).ok_or_else(none)?, depth + 1)?
            }
        } else if let Some(held) = keys()? {
            held
        } else if let Some(file) = profile.get("web_identity_token_file") {
            let role = profile.get("role_arn").ok_or_else(|| missing("role_arn"))?;
            return self.web_identity(PathBuf::from(file), role, profile.get("role_session_name"));
        } else if profile.get("sso_session").is_some() || profile.get("sso_start_url").is_some() {
            return Err(AwsError::Unsupported { name: name.to_owned(), setting: "single sign-on" }.into());
        } else if let Some(command) = profile.get("credential_process") {
            self.of_process(name, command)?
        } else {
            self.of_machine(&profiles.files)?
        };
        match profile.get("role_arn") {
            Some(role) => {
                let session = profile.get("role_session_name");
                let region = profile.get("region").unwrap_or(&self.region);
                remote::assume_role(
                    &self.options,
                    region,
                    &base.keys,
                    role,
                    session,
                    profile.get("external_id"),
                )
            }
            None => Ok(base),
        }
    }

    fn web_identity(&self, file: PathBuf, role: &str, session: Option<&str>) -> Result<Held, Failure> {
        let token = std::fs::read_to_string(&file).map_err(|source| AwsError::Read { path: file, source })?;
        remote::assume_role_with_web_identity(&self.options, &self.region, token.trim(), role, session)
    }

    /// A container's role, else an instance's.
    fn of_machine(&self, files: &[PathBuf]) -> Result<Held, Failure> {
        if let Some(held) = remote::of_container(&self.options)? {
            return Ok(held);
        }
        remote::of_instance(&self.options)
            .map_err(|metadata| AwsError::None { files: files.to_owned(), metadata }.into())
    }

    /// What a program prints; it is run by a shell, as AWS's tools do.
    fn of_process(&self, name: &str, command: &str) -> Result<Held, Failure> {
        let error = |reason: String| AwsError::Process { name: name.to_owned(), reason };
        let mut shell = Command::new("sh");
        self.options.env.give_to(shell.arg("-c").arg(command));
        let limit = self.options.helper_timeout;
        let ended = run_helper(&mut shell, b"", limit, &self.options.stop).map_err(|unfinished| {
            let what = || format!("the credential_process of profile {name:?}");
            unfinished.stopped(what).unwrap_or_else(|reason| error(reason).into())
        })?;
        if !ended.status.success() {
            return Err(error(format!("{} {}", ended.status, one_line(&ended.stderr))).into());
        }
        let answer: Answer =
            serde_json::from_slice(&ended.stdout).map_err(|e| error(JsonFault::from(&e).to_string()))?;
        answer
            .into_held(&format!("the credential_process of profile {name:?}"))
            .map_err(|reason| error(reason).into())
    }
}

#[cfg(test)]
mod tests;
