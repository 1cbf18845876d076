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
    #[error("what listens at {address} does not answer as containerd does: {detail}")]
    NotContainerd {
        /// Path of its socket.
        address: String,
        /// What it answered instead.
        detail: String,
    },
    /// A release that nothing was tried with.
    #[error("the containerd at {address} is of version {version}; roots are written for 1.6 and later")]
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
    #[error("containerd could not {action} {what}: {message} ({code})")]
    Call {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// The kind of failure, in the words of gRPC.
        code: String,
        /// What it said.
        message: String,
    },
    /// It does not have what that needs.
    #[error("containerd could not {action} {what}: {message}")]
    Missing {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// What it said.
        message: String,
    },
    /// It did as told, and the outcome is another.
    #[error("containerd has {what} with {found} where {expected} was expected")]
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

/// What to do about a socket that cannot be connected to.
fn way_in(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "its socket is root's: run warmkit as root",
        _ => "start it, or say where it listens, as --for containerd:ADDRESS",
    }
}
