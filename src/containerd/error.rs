//! Why containerd cannot be used, or did not do what it was asked.

use std::io;

/// What went wrong between here and containerd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens, or nobody may connect.
    #[error("no containerd at {address}: {source}; {}", way_in(source))]
    Connect {
        /// Path of its socket.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens who is no containerd.
    #[error(
        "what listens at {address} does not answer as containerd does: {detail}; if it is one, start it again, else say where \
         containerd listens, as --for containerd:ADDRESS"
    )]
    NotContainerd {
        /// Path of its socket.
        address: String,
        /// What it answered instead.
        detail: String,
    },
    /// What is said to be a namespace cannot be one.
    #[error(
        "{name:?} is no namespace of a containerd: mend `namespace` under `[worker.containerd]` in buildkitd.toml, or what \
         else names it"
    )]
    Namespace {
        /// Its name.
        name: String,
    },
    /// A release that nothing was tried with.
    #[error(
        "the containerd at {address} is of version {version}; roots are written for 1.6 and later: update it, or say where a \
         later one listens, as --for containerd:ADDRESS"
    )]
    Version {
        /// Path of its socket.
        address: String,
        /// What it says.
        version: String,
    },
    /// A snapshotter that is not among its plugins.
    #[error(
        "containerd has no snapshotter {name:?}: `ctr plugins ls` lists those it has, and --snapshotter names one"
    )]
    NoSnapshotter {
        /// Its name.
        name: String,
    },
    /// The disk that it keeps blobs and snapshots on is full.
    #[error(
        "containerd could not {action} {what}: {message}; make room where its `root` is, or use a larger disk"
    )]
    Full {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// What it said.
        message: String,
    },
    /// It refused, or failed.
    #[error("containerd could not {action} {what}: {message} ({code}); {}", advice(message, *code))]
    Call {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// The kind of failure.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// It does not have what that needs.
    #[error(
        "containerd could not {action} {what}: {message}; it was collected or removed meanwhile: stop whoever does so in \
         this namespace, and do the same again"
    )]
    Missing {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// What it said.
        message: String,
    },
    /// It did as told, and the outcome is another.
    #[error(
        "containerd has {what} with {found} where {expected} was expected; if doing the same again does not help, its log \
         may tell why (`journalctl -u containerd`)"
    )]
    Unexpected {
        /// On what.
        what: String,
        /// What there should be.
        expected: String,
        /// What there is.
        found: String,
    },
    /// What reads or writes here could not be set up.
    #[error("cannot talk to containerd: {0}")]
    Setup(#[source] io::Error),
    /// Whoever asked wants it no more.
    #[error("stopped while containerd was at work")]
    Stopped,
}

impl Error {
    /// Whether it did not answer, and may not the next time.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Call { code: tonic::Code::Unavailable | tonic::Code::DeadlineExceeded, .. })
    }
}

/// What it says where its disk takes no more: the words of the system, for which gRPC has no code.
const READ_ONLY: &str = "read-only file system";

/// What to do about a call that failed.
fn advice(message: &str, code: tonic::Code) -> &'static str {
    match code {
        _ if message.contains(READ_ONLY) => {
            "the file system where its `root` is is mounted read-only: `dmesg` may tell why; mount it for writing, and start \
             containerd again"
        }
        tonic::Code::Unavailable => {
            "has it stopped? Start it, and do the same again: what it has by now is used"
        }
        tonic::Code::DeadlineExceeded => {
            "it hangs or is busy: do the same again when it answers `ctr version`"
        }
        tonic::Code::PermissionDenied => "run warmkit as root",
        _ => "its log may tell more (`journalctl -u containerd`)",
    }
}

/// What to do about a socket that cannot be connected to.
fn way_in(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "its socket is root's: run warmkit as root",
        _ => "start it, or say where it listens, as --for containerd:ADDRESS",
    }
}
