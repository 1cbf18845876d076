//! How a test says that it cannot run here.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "compiled into each test file")]
#![allow(clippy::print_stderr)]

use std::env;

/// Says that the test is skipped, and why; the test is then to return.
///
/// # Panics
///
/// With `WARMKIT_REQUIRE_REAL=1`, as in CI: there everything has to run.
#[track_caller]
pub fn skip(why: &str) {
    let message = format!("skipped: {why}; scripts/tools installs what tests need");
    assert!(env::var_os("WARMKIT_REQUIRE_REAL").is_none_or(|v| v != "1"), "{message}");
    eprintln!("{message}");
}

/// Whether root runs the test; says that it is skipped where not.
///
/// # Panics
///
/// As [`skip`].
#[track_caller]
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("it needs root, as baking does");
    }
    root
}
