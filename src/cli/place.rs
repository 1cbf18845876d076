//! Where a root is: `--root` says it, or `--for` whose it is.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::exit::Failure;
use crate::builder::Target;

/// The root that a command is about.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The root, as a directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "for")]
    root: Option<PathBuf>,

    /// The root, by whose it is: `host` is this machine's buildkitd (/var/lib/buildkit), and taken where
    /// neither is given
    #[arg(id = "for", long = "for", value_name = "TARGET")]
    target: Option<Target>,
}

impl Place {
    /// The root's directory, which may not be there yet.
    pub(super) fn root(&self) -> Result<PathBuf, Failure> {
        match (&self.root, &self.target) {
            (Some(root), _) => Ok(root.clone()),
            (None, target) => Ok(target.as_ref().unwrap_or(&Target::Host).root()),
        }
    }
}
