//! Exit codes: few, documented, and the same for every command.

use crate::bake::{self, ErrorClass};
use crate::{gather, verify};

/// Everything went well.
pub const OK: u8 = 0;
/// Something else failed: a file could not be written, the disk is full, not root, interrupted.
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
/// The target is not empty, or a daemon uses it.
pub const TARGET: u8 = 7;
/// Verify found something wrong with the root.
pub const FINDINGS: u8 = 8;
/// A step of the live build was not CACHED, or something was imported or extracted; or a replay missed a step.
pub const NOT_CACHED: u8 = 9;

/// The table that every `--help` ends with.
pub(crate) const HELP: &str = "\
Exit codes:
  0  success
  1  other failure (a file, the disk, not root, interrupted)
  2  wrong command line
  3  a cache or key source could not be read
  4  a registry refused the credentials
  5  content that does not match its digest, or is no build cache
  6  records without a key; nothing was baked
  7  the target is not empty, or a daemon uses it
  8  verify found something wrong
  9  a step of the live build was not CACHED, or a replay missed one";

/// The exit code for a bake that failed.
pub fn of_bake(error: &bake::Error) -> u8 {
    match error.class() {
        ErrorClass::Spec => USAGE,
        ErrorClass::Source => SOURCE,
        ErrorClass::Authentication => AUTHENTICATION,
        ErrorClass::Content => CONTENT,
        ErrorClass::Unkeyed => UNKEYED,
        ErrorClass::Target => TARGET,
        ErrorClass::Other => FAILURE,
    }
}

/// The exit code for caches or key sources that could not be read.
pub fn of_gather(error: &gather::Error) -> u8 {
    match error.class() {
        gather::ErrorClass::Spec => USAGE,
        gather::ErrorClass::Source => SOURCE,
        gather::ErrorClass::Authentication => AUTHENTICATION,
        gather::ErrorClass::Content => CONTENT,
        gather::ErrorClass::Unkeyed => UNKEYED,
        gather::ErrorClass::Other => FAILURE,
    }
}

/// The exit code for a root that could not be judged.
pub fn of_verify(error: &verify::Error) -> u8 {
    match error {
        verify::Error::Busy { .. } => TARGET,
        verify::Error::NotAStateDirectory { .. }
        | verify::Error::ContainerdWorker { .. }
        | verify::Error::UnknownSchema { .. }
        | verify::Error::UnknownBucket { .. } => FINDINGS,
        verify::Error::Open { .. } => FAILURE,
    }
}

/// The exit code for a build that could not be run on a root.
pub fn of_live(error: &verify::LiveError) -> u8 {
    match error {
        verify::LiveError::Root(error) => of_verify(error),
        _ => FAILURE,
    }
}
