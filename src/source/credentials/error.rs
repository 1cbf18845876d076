//! Why configured credentials cannot be had.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::error::Category;

/// Where JSON that holds secrets is wrong. The parser's own words would repeat what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} at line {line} column {column}")]
pub struct JsonFault {
    what: &'static str,
    line: usize,
    column: usize,
}

impl From<&serde_json::Error> for JsonFault {
    fn from(error: &serde_json::Error) -> Self {
        let what = match error.classify() {
            Category::Syntax => "no JSON",
            Category::Data => "another kind of value than expected, or one that is missing,",
            Category::Eof => "it ends too early,",
            Category::Io => "it cannot be read",
        };
        Self { what, line: error.line(), column: error.column() }
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
    #[error("credentials file {} is not valid: {fault}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: JsonFault,
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
    #[error("cannot run credential helper {helper}, which {asked_by} asks for: {source}")]
    HelperStart {
        /// The program.
        helper: String,
        /// The file that names it, or the host that needs it.
        asked_by: String,
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
    /// A cloud that has been asked too often; asking again helps.
    #[error(transparent)]
    Throttled(Box<CredentialError>),
    /// AWS's helper has nothing, and there is no AWS CLI.
    #[error(
        "docker-credential-ecr-login has no credentials for {host}: check the machine's role or its AWS credentials \
         (it writes why to ~/.ecr/log/ecr-login.log)"
    )]
    EcrHelper {
        /// The registry.
        host: String,
    },
    /// An AWS CLI that ended well and printed no password.
    #[error("aws ecr get-login-password printed no password for {host}")]
    NoPassword {
        /// The registry.
        host: String,
    },
    /// A helper whose answer makes no sense.
    #[error("credential helper {helper} gave an answer for {host} that is not valid: {fault}")]
    HelperAnswer {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// What is wrong with it.
        fault: JsonFault,
    },
}
