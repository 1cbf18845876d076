//! What can go wrong with credentials for AWS.

use std::io;
use std::path::PathBuf;

/// Why AWS credentials cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AwsError {
    /// There are none anywhere.
    #[error(
        "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the attributes \
         access_key_id and secret_access_key (looked into the environment, {}, and asked for a container's or \
         an instance's role: {metadata})",
        list(files)
    )]
    None {
        /// The shared files; they need not exist.
        files: Vec<PathBuf>,
        /// Why the instance's metadata gave none.
        metadata: String,
    },
    /// A file that is named, or the shared files, cannot be read.
    #[error("cannot read {}, which is to hold AWS credentials: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A profile that is not there.
    #[error("no AWS profile {name:?} in {}", list(files))]
    NoProfile {
        /// As it was asked for.
        name: String,
        /// Where it was looked for.
        files: Vec<PathBuf>,
    },
    /// A profile, or the environment, with one half of what belongs together.
    #[error("AWS credentials from {from} are not complete: {missing} is missing")]
    Incomplete {
        /// The profile, or the environment.
        from: String,
        /// What is missing.
        missing: &'static str,
    },
    /// A profile that takes its credentials in a way that is not supported.
    #[error(
        "AWS profile {name:?} takes its credentials by {setting}, which warmkit does not; run \
         `eval \"$(aws configure export-credentials --profile {name} --format env)\"` first"
    )]
    Unsupported {
        /// The profile.
        name: String,
        /// The setting.
        setting: &'static str,
    },
    /// Profiles that take credentials from one another in a circle.
    #[error("AWS profile {name:?} takes its credentials from itself, by way of source_profile")]
    Circle {
        /// The profile that was asked for.
        name: String,
    },
    /// A program of a profile that gave none.
    #[error("the credential_process of AWS profile {name:?} failed: {reason}")]
    Process {
        /// The profile.
        name: String,
        /// In which way.
        reason: String,
    },
    /// A service that gave none.
    #[error("{service} gives no AWS credentials: {reason}")]
    Service {
        /// Which service.
        service: String,
        /// What it said.
        reason: String,
    },
}

fn list(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "no shared file, since HOME is not set".to_owned();
    }
    files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}
