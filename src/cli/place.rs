//! Where a root is: `--root` says it, or `--for` whose it is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, ValueHint};

use super::engine;
use super::exit::{self, Failure};
use super::progress::Shown;
use crate::builder::{Containerd, Root, Survey, Target};
use crate::root::KeptIn;

/// The root that a command is about.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The root, as a directory; beside --for containerd it says where that root is, and with no other --for it goes
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    root: Option<PathBuf>,

    /// The root, by whose it is [default: host]
    #[arg(id = "for", long = "for", value_name = "TARGET", value_parser = Targets)]
    target: Option<Target>,
}

/// What can stand after `--for`, for help and completion; what follows a colon is read by [`Target`].
pub(super) const TARGETS: [(&str, &str); 7] = [
    ("auto", "The only one of these that this machine shows anything of; with several, none is taken"),
    ("host", "This machine's buildkitd, run as root (/var/lib/buildkit)"),
    ("rootless", "The buildkitd of who calls this or sudo, or whose user namespace this is"),
    ("rootless:", "The buildkitd of a user: rootless:USER"),
    (
        "containerd",
        "This machine's buildkitd with a containerd worker; layers go to its containerd (in builds with that feature)",
    ),
    ("containerd:", "The same with the containerd that listens there: containerd:ADDRESS"),
    (
        "buildx:",
        "A builder of the docker-container driver, which need not exist yet: buildx:NAME or buildx:NAME/NODE",
    ),
];

/// Reads a [`Target`].
#[derive(Clone)]
struct Targets;

impl TypedValueParser for Targets {
    type Value = Target;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Target, clap::Error> {
        StringValueParser::new().try_map(|text| text.parse::<Target>()).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(TARGETS.iter().map(|(name, help)| PossibleValue::new(*name).help(*help))))
    }
}

/// The containerd that keeps the layers of a root, where one does.
pub(super) fn kept_in(root: &Root) -> Option<KeptIn> {
    let Containerd { address, namespace } = root.kind().containerd.clone()?;
    Some(KeptIn { address, namespace })
}

impl Place {
    /// Whether a root was named, where one need not be.
    pub(super) fn is_given(&self) -> bool {
        self.root.is_some() || self.target.is_some()
    }

    /// Whether it is named by its directory alone, which its daemon may have elsewhere.
    pub(super) fn is_directory(&self) -> bool {
        self.root.is_some() && self.target.is_none()
    }

    /// Whether it is to be found by looking at this machine.
    pub(super) fn is_auto(&self) -> bool {
        self.target == Some(Target::Auto)
    }

    /// The root's directory, for reading, also beside a daemon that runs on it.
    pub(super) fn root(&self, shown: Shown) -> Result<PathBuf, Failure> {
        let root = self.find(shown)?;
        root.require_there()?;
        Ok(root.path().to_owned())
    }

    /// The root's directory, which no container runs on, and the containerd that keeps its layers, where one does.
    pub(super) fn idle_root(&self, shown: Shown) -> Result<(PathBuf, Option<KeptIn>), Failure> {
        let root = self.find_idle(shown)?;
        Ok((root.path().to_owned(), kept_in(&root)))
    }

    /// The root, which is there, and which no container runs on.
    pub(super) fn find_idle(&self, shown: Shown) -> Result<Root, Failure> {
        self.find_idle_in(Path::new("/"), shown)
    }

    /// The same of an image that is mounted at `sysroot`, whose path is one inside of it.
    pub(super) fn find_idle_in(&self, sysroot: &Path, shown: Shown) -> Result<Root, Failure> {
        let root = self.find_in(sysroot, shown)?;
        root.require_idle()?;
        root.require_there()?;
        Ok(root)
    }

    /// The root, to be written. There need not be anything yet, and nothing is made. What is seen of targets that are
    /// looked for is shown.
    pub(super) fn find(&self, shown: Shown) -> Result<Root, Failure> {
        self.find_in(Path::new("/"), shown)
    }

    fn find_in(&self, sysroot: &Path, shown: Shown) -> Result<Root, Failure> {
        if let Some(root) = &self.root {
            if sysroot == Path::new("/") { engine::refuse(root)? } else { engine::refuse_in(sysroot, root)? }
        }
        match (&self.root, &self.target) {
            (Some(root), None) => Ok(Root::at(root)),
            (Some(root), Some(target @ Target::Containerd { .. })) => Ok(target.find()?.moved_to(root)),
            (Some(_), Some(target)) => Err(Failure::new(
                format!("--for {target} says where the root is: leave --root away"),
                exit::USAGE,
            )),
            (None, Some(Target::Auto)) => {
                let survey = Survey::of_this_machine();
                shown.targets(&survey);
                Ok(survey.choose()?)
            }
            (None, target) => Ok(target.as_ref().unwrap_or(&Target::Host).find()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_that_is_shown_is_one_or_begins_one() {
        for (name, help) in TARGETS {
            let whole = match name.strip_suffix(':') {
                None => name.to_owned(),
                Some("containerd") => format!("{name}/run/x.sock"),
                Some(_) => format!("{name}x"),
            };
            assert_eq!(whole.parse::<Target>().unwrap().to_string(), whole);
            assert!(name == whole || help.contains(name), "{name}: {help}");
            assert_eq!(name.parse::<Target>().is_ok(), name == whole, "{name} is taken as it stands");
        }
    }
}
