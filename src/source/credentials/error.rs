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

/// The command that asks a helper as warmkit does, without showing what it answers.
fn by_hand(helper: &str, host: &str) -> String {
    if helper.starts_with("docker-credential-") {
        format!("echo {host} | {helper} get >/dev/null")
    } else {
        format!("{helper} >/dev/null")
    }
}

/// Why configured credentials cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A credentials file that cannot be read.
    #[error("cannot read credentials file {}: {source}: make it a file that this user may read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A credentials file that is not what docker and podman write.
    #[error("credentials file {path} is not valid: {fault}: mend it, or move it away and log in again")]
    Json {
        /// The file, or the variable that stands for one.
        path: String,
        /// What is wrong with it.
        fault: JsonFault,
    },
    /// An `auth` that is not base64 of `user:password`.
    #[error("credentials file {path}: the auth of {key} is not base64 of user:password: log in to it again")]
    Encoding {
        /// The file, or the variable that stands for one.
        path: String,
        /// The key under `auths`.
        key: String,
    },
    /// A helper that cannot be started.
    #[error(
        "cannot run credential helper {helper}, which {asked_by} asks for: {source}: have it on the PATH as a program \
         that runs, or log in without it"
    )]
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
    #[error(
        "credential helper {helper} gave no answer for {host} in {} seconds: see what it waits for, with {}",
        limit.as_secs_f32(),
        by_hand(helper, host)
    )]
    HelperTimeout {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// How long it was given.
        limit: Duration,
    },
    /// A helper that failed.
    #[error(
        "credential helper {helper} failed for {host} ({status}): {}: see why, with {}",
        if message.is_empty() { "it said nothing" } else { message },
        by_hand(helper, host)
    )]
    HelperFailed {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said, on one line; may be empty.
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
    #[error(
        "aws ecr get-login-password printed no password for {host}: see whether the aws on the PATH is the AWS CLI"
    )]
    NoPassword {
        /// The registry.
        host: String,
    },
    /// A helper whose answer makes no sense.
    #[error(
        "credential helper {helper} gave an answer for {host} that is not valid: {fault}: it has to print \
         {{\"Username\": …, \"Secret\": …}}, and nothing besides"
    )]
    HelperAnswer {
        /// The program.
        helper: String,
        /// The registry.
        host: String,
        /// What is wrong with it.
        fault: JsonFault,
    },
}
