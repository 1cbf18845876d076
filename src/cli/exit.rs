//! Exit codes: few, documented, and the same for every command.

use std::error::Error;

use super::caches;
use crate::bake::{self, ErrorClass};
use crate::{builder, daemon, gather, hydrate, replay, root, verify};

/// Everything went well.
pub const OK: u8 = 0;
/// Something else failed: a file could not be written, not root, interrupted.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// A cache or key source could not be read: no such tag, no answer, a broken transfer.
pub const SOURCE: u8 = 3;
/// A registry refused the credentials, or there are none.
pub const AUTHENTICATION: u8 = 4;
/// What was read is not what its digest says, or not a cache.
pub const CONTENT: u8 = 5;
/// Some records have no key; nothing was baked.
pub const UNKEYED: u8 = 6;
/// The target is not empty, in use, or moved or linked elsewhere by its user.
pub const TARGET: u8 = 7;
/// Verify found something wrong with the root.
pub const FINDINGS: u8 = 8;
/// A step of the live build was not CACHED, or something was imported or extracted; or a replay missed a step.
pub const NOT_CACHED: u8 = 9;
/// Diff found a difference, and was asked to tell.
pub const DIFFERENT: u8 = 10;
/// The target's disk is too small for the root, or filled up.
pub const SPACE: u8 = 11;

/// The table that every `--help` ends with.
pub(super) const HELP: &str = "\
Exit codes:
   0  success
   1  other failure (a file, not root, interrupted)
   2  wrong command line
   3  a cache or key source could not be read
   4  a registry refused the credentials
   5  content that does not match its digest, or is no build cache
   6  records without a key; nothing was baked
   7  the target is not empty, in use, or moved or linked elsewhere by its user
   8  verify found something wrong
   9  a step of the live build was not CACHED, or a replay missed one
  10  diff --exit-code found a difference
  11  not enough space or inodes on the target's disk; nothing was baked";

/// What the `--help` of a command ends with.
pub(super) fn help(examples: &str) -> String {
    format!("{HELP}\n\n{examples}")
}

/// Why a command ended without a result, and the exit code that says the same.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Box<dyn Error>,
    pub(super) code: u8,
}

impl Failure {
    pub(super) fn new(error: impl Into<Box<dyn Error>>, code: u8) -> Self {
        Self { error: error.into(), code }
    }
}

impl From<caches::Error> for Failure {
    fn from(error: caches::Error) -> Self {
        let code = if matches!(error, caches::Error::Read { .. }) { FAILURE } else { USAGE };
        Self::new(error, code)
    }
}

impl From<bake::Error> for Failure {
    fn from(error: bake::Error) -> Self {
        let code = of_bake(&error);
        Self::new(error, code)
    }
}

impl From<builder::Error> for Failure {
    fn from(error: builder::Error) -> Self {
        let code = match error.class() {
            builder::ErrorClass::Choice => USAGE,
            builder::ErrorClass::Busy => TARGET,
            builder::ErrorClass::Other => FAILURE,
        };
        Self::new(error, code)
    }
}

impl From<gather::Error> for Failure {
    fn from(error: gather::Error) -> Self {
        // A bake that ends with it knows what it means.
        bake::Error::from(error).into()
    }
}

impl From<replay::Error> for Failure {
    fn from(error: replay::Error) -> Self {
        bake::Error::from(error).into()
    }
}

impl From<daemon::Error> for Failure {
    fn from(error: daemon::Error) -> Self {
        Self::new(error, FAILURE)
    }
}

impl From<hydrate::Error> for Failure {
    fn from(error: hydrate::Error) -> Self {
        Self::new(error, FAILURE)
    }
}

impl From<root::Error> for Failure {
    fn from(error: root::Error) -> Self {
        let code = match of_verify(&error) {
            FINDINGS => CONTENT,
            code => code,
        };
        Self::new(error, code)
    }
}

impl From<verify::LiveError> for Failure {
    fn from(error: verify::LiveError) -> Self {
        let code = match &error {
            verify::LiveError::Root(error) => of_verify(error),
            _ => FAILURE,
        };
        Self::new(error, code)
    }
}

/// The exit code of a bake that ends with this.
pub(super) fn of_bake(error: &bake::Error) -> u8 {
    match error.class() {
        ErrorClass::Spec => USAGE,
        ErrorClass::Source => SOURCE,
        ErrorClass::Authentication => AUTHENTICATION,
        ErrorClass::Content => CONTENT,
        ErrorClass::Unkeyed => UNKEYED,
        ErrorClass::Target => TARGET,
        ErrorClass::Space => SPACE,
        ErrorClass::Other => FAILURE,
    }
}

/// The exit code for a build on a view of a root.
pub(super) fn of_build(report: &verify::LiveReport) -> u8 {
    let cached = |step: &verify::Step| step.status == verify::StepStatus::Cached;
    if report.all_cached() {
        OK
    } else if report.failure.is_some() && report.steps.iter().all(cached) {
        // Such as a context that is not there: this says nothing of the root.
        FAILURE
    } else {
        NOT_CACHED
    }
}

/// The exit code of a verification of a root that could not be read.
pub(super) fn of_verify(error: &root::Error) -> u8 {
    match error {
        root::Error::Busy { .. } => TARGET,
        root::Error::Open { .. } => FAILURE,
        // What is wrong is how it was named.
        root::Error::ContainerdWorker { .. }
        | root::Error::NotInContainerd { .. }
        | root::Error::NoSnapshotter { .. }
        | root::Error::NoContainerd => USAGE,
        #[cfg(feature = "containerd")]
        root::Error::Containerd(_) => FAILURE,
        _ => FINDINGS,
    }
}
