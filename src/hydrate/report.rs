//! What was read: the object that `--json` prints.

use serde::Serialize;

use super::{Options, Stage};

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// Which one.
    pub stage: Stage,
    /// Directories read, with the inodes in them.
    pub directories: u64,
    /// Files read.
    pub files: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// Bytes that the disk was asked for, directories and inodes included; the rest was in memory.
    pub from_disk: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Something that is there and could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// From the root.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What a run read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The root.
    pub root: String,
    /// The stages, in the order in which they were read.
    pub stages: Vec<StageReport>,
    /// Files and directories that went away before they were read, or that something is mounted on, as it happens
    /// under a running daemon.
    pub gone: u64,
    /// What could not be read.
    pub failed: Vec<Failed>,
    /// How long all took.
    pub seconds: f64,
}

impl Report {
    /// Nothing was read.
    pub fn nothing(options: &Options) -> Self {
        let root = options.root.display().to_string();
        Self { root, stages: Vec::new(), gone: 0, failed: Vec::new(), seconds: 0.0 }
    }

    /// Whether everything was read that was there.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }
}
