//! What the integration tests share: real BuildKit daemons, a real registry, base images made
//! from nothing, and readers of what they say.
//!
//! Nothing here stands in for a real part. A test that needs a part which is missing prints
//! `skipped: …` and passes, unless `WARMKIT_REQUIRE_REAL=1` (as in CI) makes that a failure.
//! `scripts/tools` installs the parts.
#![allow(dead_code, reason = "each test file uses its own part of this module")]
#![allow(unreachable_pub, reason = "compiled into each test file")]
#![allow(unused_imports, reason = "so are the names below")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::missing_panics_doc)]

pub mod agent;
pub mod azurite;
pub mod bolt_tree;
pub mod build;
pub mod buildx;
pub mod cases;
pub mod command;
pub mod commands;
#[cfg(feature = "containerd")]
pub mod containerd;
pub mod daemon;
pub mod demo;
pub mod dockerd;
pub mod document;
pub mod files;
pub mod first_build;
pub mod foreseen;
pub mod gha;
pub mod ghcr;
pub mod git;
pub mod handmade;
pub mod image;
pub mod instance;
pub mod lazy;
pub mod machine;
pub mod metadata;
pub mod moto;
pub mod packages;
pub mod packer;
pub mod proxy;
pub mod registry;
pub mod rootless;
pub mod serve;
pub mod shipped;
pub mod skip;
pub mod square;
pub mod stored;
pub mod tar;
pub mod tmpfs;
pub mod tools;
pub mod trade_offs;
pub mod volume;
pub mod warmkit;

pub use build::{BuildOutcome, BuildRequest};
pub use cases::World;
pub use daemon::Daemon;
pub use files::Scratch;
pub use registry::Registry;
pub use tools::Tools;
