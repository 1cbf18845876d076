//! Which records `BuildKit`'s garbage collection takes from a root, and when.
//!
//! ```text
//! buildkitd.toml ── Configuration::read ──▶ Configuration ── policy ──▶ Policy
//!                                           release, disk                 │
//! records of a root ──────────────────────────────────────── forecast ◀───┘
//!                                                               │
//!                                            a Pass per moment: which records go, by which rule
//! ```
//!
//! A daemon collects one second after it starts, and after a build, a minute apart at least. What it takes
//! is decided by the records alone: sizes, times and counts of use, parents. So it can be told beforehand,
//! and [`keeping`] writes the configuration under which nothing goes.
//!
//! Nothing is read here but the text that is given. Mirrors `BuildKit` `cmd/buildkitd/config/gcpolicy.go`,
//! `getGCPolicy` in `cmd/buildkitd/main.go`, and `prune` in `cache/manager.go`, as they were from v0.12
//! to v0.34; [`Release`] says what changed when.

mod config;
mod filter;
mod foretell;
mod keep;
mod prune;
mod quantity;
mod release;

use serde::Serialize;

pub use config::{Configuration, Origin, Policy, Rule, Worker};
pub use foretell::{Forecast, PassReport, Question, Removed, RuleReport, foretell};
pub use keep::keeping;
pub use prune::{Pass, Record, Removal, forecast};
pub use quantity::Space;
pub use release::Release;

/// The file system that a root is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes that it has.
    pub total: u64,
    /// Bytes that are free, those that are reserved for root included.
    pub free: u64,
}

/// Why there is no forecast.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not TOML.
    #[error("the configuration is not TOML")]
    Toml(#[from] toml::de::Error),
    /// A value is not of the kind that its key wants.
    #[error("{key} is not {expected}")]
    Kind {
        /// Where it stands.
        key: String,
        /// What it would have to be.
        expected: &'static str,
    },
    /// An amount of disk space is not written as the daemon reads it.
    #[error("{key} = {value:?} is no disk space: bytes, a size like \"10GB\", or a percentage")]
    Space {
        /// Where it stands.
        key: String,
        /// What is there.
        value: String,
    },
    /// A duration is not written as the daemon reads it.
    #[error("{key} = {value:?} is no duration: seconds, or hours, minutes and seconds like \"48h\"")]
    Duration {
        /// Where it stands.
        key: String,
        /// What is there.
        value: String,
    },
    /// A filter that the daemon cannot read: its collection would end at this rule, each time.
    #[error("filter {filter:?} cannot be read: {reason}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record names a parent that is not among the records.
    #[error("record {record} stands on {parent}, which is not there")]
    Parent {
        /// The record.
        record: String,
        /// What it stands on.
        parent: String,
    },
    /// Not the name of a release.
    #[error("{0:?} is no release of BuildKit: they are named like v0.34.2")]
    Release(String),
}
