//! Finds, starts, drives and stops a `buildkitd`, for whatever needs a real one beside it.
//!
//! ```text
//! Search ── find ──▶ Tools ── start ──▶ Daemon ── build ──▶ Outcome
//! --buildkitd,       buildkitd,         its root,           steps, imports,
//! $PATH, an image    buildctl           its socket          extractions
//! ```
//!
//! Verification builds on a view of a root, replay on an empty scratch directory; both use this. A shell
//! between this process and the daemon ends it, and removes its directories, also when this process is
//! killed.

mod build;
mod error;
mod process;
mod steps;
mod tools;

pub use build::{Build, Watch};
pub use error::{Error, io_error};
pub use process::{Daemon, Start};
pub use steps::{Graph, Outcome, Step, StepStatus, Vertex};
pub use tools::{Search, Tools, find, on_path, output, output_within};

/// The image that buildkitd is taken from where none is installed: the one that buildx uses.
pub const DEFAULT_IMAGE: &str = "moby/buildkit:buildx-stable-1";

/// The end of a text that may be long.
pub fn tail(text: &str) -> String {
    const LINES: usize = 20;
    const BYTES: usize = 8192;
    let lines: Vec<&str> = text.lines().collect();
    let text = lines[lines.len().saturating_sub(LINES)..].join("\n");
    let mut start = text.len().saturating_sub(BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
