//! Why no build could be run.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why no build could be run. A build that ran and failed is an [`Outcome`](super::Outcome).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// buildkitd needs root.
    #[error("{purpose} runs buildkitd, which needs root: run it under sudo")]
    NotRoot {
        /// What the daemon is for.
        purpose: &'static str,
    },
    /// Neither given, nor in `$PATH`, nor can docker get it.
    #[error(
        "no buildkitd found: name one by --buildkitd, put one into $PATH, or install docker, which \
         takes it out of {image}"
    )]
    NoBuildkitd {
        /// The image that docker would have used.
        image: String,
    },
    /// Neither given nor in `$PATH`, and docker, which is there, cannot get it.
    #[error("no buildkitd found: name one by --buildkitd, or put one into $PATH; {source}")]
    NotInImage {
        /// What docker was asked for, and what it said.
        source: Box<Error>,
    },
    /// A program that is needed is not there.
    #[error("no {program} found {place}")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Where it was looked for.
        place: String,
    },
    /// A program could not be started, or failed.
    #[error("{command} failed: {detail}")]
    Program {
        /// What was run.
        command: String,
        /// Its status and the end of what it printed.
        detail: String,
    },
    /// What the daemon stands on could not be made.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The daemon ended before it answered.
    #[error("buildkitd ended with {status}; its log ends with: {log}")]
    Ended {
        /// Its status.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It was not waited for any longer.
    #[error("interrupted")]
    Stopped,
    /// The daemon did not answer in time.
    #[error("buildkitd did not answer within {seconds} s; its log ends with: {log}")]
    NoAnswer {
        /// How long it was waited for.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
}

/// For `map_err`: what was done, and to what.
pub fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}
