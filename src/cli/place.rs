//! Where a root is: `--root` says it, or `--for` whose it is.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::exit::{self, Failure};
use crate::builder::{Containerd, Root, Target};
use crate::root::KeptIn;

/// The root that a command is about.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The root, as a directory; beside --for containerd it says where that root is, and with no other --for it goes
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    root: Option<PathBuf>,

    /// The root, by whose it is: `host`, this machine's buildkitd (/var/lib/buildkit), which is taken where neither is
    /// given; `rootless:USER`, the buildkitd that a user runs (`rootless`: who calls sudo, or whose user namespace this
    /// is); `containerd` or `containerd:ADDRESS`, this machine's buildkitd with a containerd worker, whose layers go to the
    /// containerd that listens there; `buildx:NAME` or `buildx:NAME/NODE`, a builder of the docker-container driver, which need not exist yet
    #[arg(id = "for", long = "for", value_name = "TARGET", value_hint = ValueHint::Other)]
    target: Option<Target>,
}

impl Place {
    /// Whether a root was named, where one need not be.
    pub(super) fn is_given(&self) -> bool {
        self.root.is_some() || self.target.is_some()
    }

    /// The root's directory, for reading, also beside a daemon that runs on it.
    pub(super) fn root(&self) -> Result<PathBuf, Failure> {
        let root = self.find()?;
        root.require_there()?;
        Ok(root.path().to_owned())
    }

    /// The root's directory, which no container runs on, and the containerd that keeps its layers, where one does.
    pub(super) fn idle_root(&self) -> Result<(PathBuf, Option<KeptIn>), Failure> {
        let root = self.find()?;
        root.require_idle()?;
        root.require_there()?;
        let kept_in = root.kind().containerd.clone();
        let kept_in = kept_in.map(|Containerd { address, namespace }| KeptIn { address, namespace });
        Ok((root.path().to_owned(), kept_in))
    }

    /// The root, to be written. There need not be anything yet, and nothing is made.
    pub(super) fn find(&self) -> Result<Root, Failure> {
        match (&self.root, &self.target) {
            (Some(root), None) => Ok(Root::at(root)),
            (Some(root), Some(target @ Target::Containerd { .. })) => Ok(target.find()?.moved_to(root)),
            (Some(_), Some(target)) => Err(Failure::new(
                format!("--for {target} says where the root is: leave --root away"),
                exit::USAGE,
            )),
            (None, target) => Ok(target.as_ref().unwrap_or(&Target::Host).find()?),
        }
    }
}
