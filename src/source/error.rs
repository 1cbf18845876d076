//! What can go wrong at a source.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::azblob::AzureError;
use super::credentials::CredentialError;
use super::fields::SpecError;
use super::s3::AwsError;
use crate::digest::Digest;

/// What an [`Error`] means for whoever started the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The source was not written as it has to be.
    Spec,
    /// The source, or something in it, cannot be reached or is not there.
    Unavailable,
    /// The source refuses access, or credentials for it cannot be had.
    Auth,
    /// What the source gave is not what its digest or size promised.
    Content,
    /// The receiving side failed (a full disk, for example), or wanted no more.
    Output,
}

/// How a blob differs from what was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another number of bytes.
    #[error("expected {expected} bytes, found {found}")]
    Size {
        /// As the descriptor says.
        expected: u64,
        /// As counted, or as the source announced.
        found: u64,
    },
    /// More bytes than promised; the rest was not read.
    #[error("expected {expected} bytes, found more")]
    Longer {
        /// As the descriptor says.
        expected: u64,
    },
    /// Other bytes: their digest should be the blob's.
    #[error("expected that digest, found {found}")]
    Digest {
        /// As computed.
        found: Digest,
    },
}

/// Who refused what to whom.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} denies access to {what} {credentials} (status {status}){}: {advice}", parenthesis(detail))]
pub struct Denied {
    /// Who refused.
    pub host: String,
    /// What was asked for.
    pub what: String,
    /// With which credentials: `without credentials`, or whose and where from.
    pub credentials: String,
    /// The HTTP status.
    pub status: u16,
    /// What the registry said; may be empty.
    pub detail: String,
    /// What to do about it.
    pub advice: String,
}

/// A cache that an object store does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no cache {name:?} in {place} (asked for {key}){}: check name and prefixes, and that the build which \
     exports the cache has run",
    parenthesis(detail)
)]
pub struct MissingCache {
    /// The name, or scope, that was asked for.
    pub name: String,
    /// Where it was looked for.
    pub place: String,
    /// Under which key.
    pub key: String,
    /// What the store said; may be empty.
    pub detail: String,
}

/// One entry of an OCI layout's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its tag, where it has one.
    pub tag: Option<String>,
    /// The manifest.
    pub digest: Digest,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "tag={} ({})", tag.escape_debug(), self.digest),
            None => write!(f, "digest={}", self.digest),
        }
    }
}

fn list(entries: &[Entry]) -> String {
    entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// ` (detail)`, or nothing.
fn parenthesis(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source was not written as it has to be.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Credentials are configured but cannot be had.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The registry has no such tag or manifest.
    #[error(
        "no such {what} in repository {repository}{}: check the reference, and that the build which exports \
         the cache has run{hint}",
        parenthesis(detail)
    )]
    NoSuchManifest {
        /// `tag "…"` or `manifest sha256:…`.
        what: String,
        /// Registry and repository.
        repository: String,
        /// What the registry said; may be empty.
        detail: String,
        /// What is particular about this registry, from the comma on; may be empty.
        hint: &'static str,
    },
    /// The object store has no cache of that name.
    #[error(transparent)]
    NoSuchCache(Box<MissingCache>),
    /// No such bucket or container.
    #[error("no {name} at {host}{}: check its name, and the endpoint", parenthesis(detail))]
    NoSuchContainer {
        /// Who said so.
        host: String,
        /// `bucket …` or `container …`.
        name: String,
        /// What it said; may be empty.
        detail: String,
    },
    /// What only a running workflow has.
    #[error(
        "type=gha needs {missing}=… or ${variable}, which GitHub gives to the actions of a running workflow only \
         (a step with `run:` sees them after an action such as crazy-max/ghaction-github-runtime); to bake \
         elsewhere, have the build export to a registry too: --cache-to type=registry,ref=REF,mode=max"
    )]
    NoRunner {
        /// The attribute.
        missing: &'static str,
        /// The variable.
        variable: &'static str,
    },
    /// A job's token that is none, or has ended.
    #[error("the token of GitHub Actions from {origin} cannot be used: {reason}")]
    JobToken {
        /// Where it comes from.
        origin: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A bucket that is in another region.
    #[error("{bucket} is not in region {asked} but in {region}: write region={region}")]
    OtherRegion {
        /// `bucket …`.
        bucket: String,
        /// Where it was looked for.
        asked: String,
        /// Where it is.
        region: String,
    },
    /// Azure credentials cannot be had.
    #[error(transparent)]
    Azure(#[from] AzureError),
    /// AWS credentials cannot be had.
    #[error(transparent)]
    Aws(#[from] AwsError),
    /// The source lists a blob that it does not have.
    #[error(
        "blob {blob} is not in {source_name}{}, though its manifest lists it: export the cache again",
        parenthesis(detail)
    )]
    NoSuchBlob {
        /// The blob.
        blob: Digest,
        /// The source.
        source_name: String,
        /// What the source said; may be empty.
        detail: String,
    },
    /// The registry, or its token service, refuses access.
    #[error(transparent)]
    Denied(Box<Denied>),
    /// The host that a registry redirected to refuses what it was named for.
    #[error(
        "{what}: {registry} sends to {host}, which refuses it (status {status}){}: check this machine's clock, and that \
         no firewall, proxy or policy of a VPC endpoint keeps it from reading there",
        parenthesis(detail)
    )]
    Storage {
        /// What was asked for.
        what: String,
        /// Who redirected.
        registry: String,
        /// Who refused.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said; may be empty.
        detail: String,
    },
    /// An HTTP status that making the request again does not change.
    #[error("{what}: {host} answered with status {status}{}", parenthesis(detail))]
    Status {
        /// What was asked for.
        what: String,
        /// Who answered; may be a storage host that the registry redirected to.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said; may be empty.
        detail: String,
    },
    /// Too many failures in a row without any progress.
    #[error("{what}: gave up after {failures} failures in a row, the last: {reason}")]
    GaveUp {
        /// What was asked for.
        what: String,
        /// How often it failed without a byte of progress.
        failures: u32,
        /// The last failure.
        reason: String,
    },
    /// The server asks for more patience than there is.
    #[error("{what}: {reason}, and asks to wait {} seconds: try again later", wait.as_secs())]
    WaitTooLong {
        /// What was asked for.
        what: String,
        /// The failure.
        reason: String,
        /// As `Retry-After` says.
        wait: Duration,
    },
    /// The TLS handshake failed for a reason that lasts.
    #[error("{host}: no trusted TLS connection: {reason}: {advice}")]
    Tls {
        /// The server.
        host: String,
        /// What is wrong.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// A proxy that cannot be used as it was named.
    #[error(
        "the proxy {proxy} {reason}: write http://USER:PASSWORD@HOST:PORT into the variable (HTTPS_PROXY), or without \
         USER:PASSWORD@ where it wants none, and any of :/?#@% in them percent-encoded"
    )]
    Proxy {
        /// Its host and port, or the variable that names it.
        proxy: String,
        /// What is wrong.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("{what}: {host} {reason}")]
    BadAnswer {
        /// What was asked for.
        what: String,
        /// Who answered.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate file that cannot be used.
    #[error("cannot use certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest whose bytes are not those of the digest it was asked by.
    #[error("manifest from {source_name}: expected digest {expected}, found {found}")]
    ManifestMismatch {
        /// The source.
        source_name: String,
        /// As asked for.
        expected: Digest,
        /// As computed.
        found: Digest,
    },
    /// A blob whose bytes are not what the manifest promised.
    #[error("blob {blob} from {source_name}: {mismatch}")]
    BlobMismatch {
        /// The blob.
        blob: Digest,
        /// The source.
        source_name: String,
        /// In what they differ.
        mismatch: Mismatch,
    },
    /// A document that is larger than any sensible one.
    #[error("{what} from {source_name} is larger than {limit} bytes, the most that is read")]
    TooLarge {
        /// Which document.
        what: String,
        /// The source.
        source_name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A directory or file that is no OCI layout.
    #[error("{} is not an OCI layout: {reason}", path.display())]
    NotALayout {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is nothing where an OCI layout should be.
    #[error("{} is not an OCI layout: no such directory, and no such file", path.display())]
    NoSuchLayout {
        /// The directory or tar.
        path: PathBuf,
    },
    /// A tar that cannot be relied on.
    #[error("cannot read the tar {}: {reason}", path.display())]
    Tar {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A layout with several entries, and none was asked for.
    #[error("{} holds several caches, add one of: {}", path.display(), list(entries))]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// What there is.
        entries: Vec<Entry>,
    },
    /// A layout without the entry that was asked for.
    #[error("no tag {tag:?} in {}; it has: {}", path.display(), list(entries))]
    NoSuchTag {
        /// The directory.
        path: PathBuf,
        /// What was asked for.
        tag: String,
        /// What there is.
        entries: Vec<Entry>,
    },
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// [`Stop`](super::Stop) was used.
    #[error("{what}: stopped, since another part of the run has failed")]
    Stopped {
        /// What was asked for.
        what: String,
    },
    /// The receiver of a blob failed.
    #[error("cannot write blob {blob}: {source}")]
    Write {
        /// The blob.
        blob: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether a source that answered says that the cache is not there.
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::NoSuchManifest { .. }
                | Self::NoSuchTag { .. }
                | Self::NoSuchLayout { .. }
                | Self::NoSuchCache(_)
        )
    }

    /// What the error means for whoever started the run.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Spec(_) | Self::Ambiguous { .. } => ErrorClass::Spec,
            Self::Credential(_)
            | Self::Aws(_)
            | Self::Azure(_)
            | Self::NoRunner { .. }
            | Self::JobToken { .. }
            | Self::Proxy { .. }
            | Self::Denied(_) => ErrorClass::Auth,
            Self::ManifestMismatch { .. }
            | Self::BlobMismatch { .. }
            | Self::TooLarge { .. }
            | Self::Tar { .. } => ErrorClass::Content,
            Self::Write { .. } | Self::Stopped { .. } => ErrorClass::Output,
            Self::NoSuchManifest { .. }
            | Self::NoSuchCache(_)
            | Self::NoSuchContainer { .. }
            | Self::OtherRegion { .. }
            | Self::NoSuchBlob { .. }
            | Self::Storage { .. }
            | Self::Status { .. }
            | Self::GaveUp { .. }
            | Self::WaitTooLong { .. }
            | Self::Tls { .. }
            | Self::BadAnswer { .. }
            | Self::Certificate { .. }
            | Self::NotALayout { .. }
            | Self::NoSuchLayout { .. }
            | Self::NoSuchTag { .. }
            | Self::Read { .. } => ErrorClass::Unavailable,
        }
    }
}
