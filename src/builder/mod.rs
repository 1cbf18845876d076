//! Builders of this machine, and where each of them keeps its root.
//!
//! ```text
//! --for host              /var/lib/buildkit, or where the arguments of its unit or buildkitd.toml say
//! --for rootless:USER     ~/.local/share/buildkit, or where XDG_DATA_HOME or the user's buildkitd.toml say
//! --for containerd        as host; layers are in a containerd, where buildkitd.toml or ADDRESS says
//! --for auto              the only one of these that this machine shows anything of
//! --for buildx:NAME       the volume of its node, buildx_buildkit_<node>_state
//!   docker runs           docker says where it is, and makes it where there is none
//!   docker is stopped     <data root>/volumes/<volume>/_data, where dockerd finds it at its next start
//! ```
//!
//! Asking changes nothing: a volume is made by [`Root::make`] alone.

mod auto;
mod buildx;
mod data_root;
mod docker;
mod engine;
mod error;
mod root;
mod rootless;
mod settings;
mod start;
mod unit;
mod user;
mod user_unit;

use std::fmt;
use std::str::FromStr;

pub use auto::{Seen, Survey, Way};
pub use buildx::{Builder, Node, find, unknown};
pub use docker::Docker;
pub use engine::{default_engine_around, engine_around};
pub use error::{Error, ErrorClass};
pub use root::{Containerd, Kind, Root};
pub use settings::Told;

/// A builder, as `--for` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The only one of the others that this machine has.
    Auto,
    /// The `buildkitd` of this machine, run as root.
    Host,
    /// The `buildkitd` that a user runs.
    Rootless {
        /// The user, by name or number; `None`: who has called sudo, or is root in the user namespace of this process.
        user: Option<String>,
    },
    /// The `buildkitd` of this machine, with a containerd that keeps its layers.
    Containerd {
        /// Where that listens, a path with or without `unix://`; `None`: where `buildkitd` is told that it does.
        address: Option<String>,
    },
    /// A builder of buildx, in lower case as buildx keeps it, and which of its nodes.
    Buildx {
        /// The builder, which need not exist yet.
        name: String,
        /// The node; needed where there are several.
        node: Option<String>,
    },
}

impl Target {
    /// Looks for its root.
    ///
    /// # Errors
    /// It is not on this machine, or not one that can be written for; or docker and its files cannot be read.
    pub fn find(&self) -> Result<Root, Error> {
        match self {
            Self::Auto => Survey::of_this_machine().choose(),
            Self::Host => root::of_host(),
            Self::Rootless { user } => rootless::find(user.as_deref()),
            Self::Containerd { address } => root::of_containerd(address.as_deref()),
            Self::Buildx { name, node } => root::of_buildx(name, node.as_deref()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Host => f.write_str("host"),
            Self::Rootless { user: None } => f.write_str("rootless"),
            Self::Rootless { user: Some(user) } => write!(f, "rootless:{user}"),
            Self::Containerd { address: None } => f.write_str("containerd"),
            Self::Containerd { address: Some(address) } => write!(f, "containerd:{address}"),
            Self::Buildx { name, node: None } => write!(f, "buildx:{name}"),
            Self::Buildx { name, node: Some(node) } => write!(f, "buildx:{name}/{node}"),
        }
    }
}

/// What is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected auto, host, rootless, rootless:USER, containerd, containerd:ADDRESS, buildx:NAME or buildx:NAME/NODE, with an \
     address that is the path of a socket, and names as buildx takes them"
)]
pub struct ParseError;

impl FromStr for Target {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if text == "host" {
            return Ok(Self::Host);
        }
        if text == "rootless" {
            return Ok(Self::Rootless { user: None });
        }
        if let Some(user) = text.strip_prefix("rootless:") {
            let is_name = !user.is_empty() && !user.starts_with('-') && !user.contains([':', '/', '\n']);
            return if is_name {
                Ok(Self::Rootless { user: Some(user.to_owned()) })
            } else {
                Err(ParseError)
            };
        }
        if text == "containerd" {
            return Ok(Self::Containerd { address: None });
        }
        if let Some(address) = text.strip_prefix("containerd:") {
            let is_path = address.strip_prefix("unix://").unwrap_or(address).starts_with('/');
            return if is_path {
                Ok(Self::Containerd { address: Some(address.to_owned()) })
            } else {
                Err(ParseError)
            };
        }
        let named = text.strip_prefix("buildx:").ok_or(ParseError)?;
        let (name, node) = match named.split_once('/') {
            Some((name, node)) => (name, Some(node)),
            None => (named, None),
        };
        if !buildx::is_name(name) || !node.is_none_or(buildx::is_name) {
            return Err(ParseError);
        }
        Ok(Self::Buildx { name: name.to_ascii_lowercase(), node: node.map(str::to_ascii_lowercase) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_reads_as_it_is_written() {
        for text in [
            "auto",
            "host",
            "rootless",
            "rootless:ci",
            "rootless:1000",
            "containerd",
            "containerd:/run/k3s/containerd/containerd.sock",
            "containerd:unix:///run/containerd/containerd.sock",
            "buildx:ci",
            "buildx:ci/ci0",
            "buildx:a.b-c_1",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("buildx:CI/Node".parse::<Target>().unwrap().to_string(), "buildx:ci/node");
        for text in [
            "",
            "Host",
            "host ",
            "buildx",
            "buildx:",
            "buildx:/a",
            "buildx:a/",
            "buildx:a/b/c",
            "rootless:",
            "containerd:",
            "containerd:sock",
            "containerd:tcp://127.0.0.1:1",
            "rootless:-x",
            "rootless:a:b",
            "buildx:0",
            "buildx:../x",
            "ci",
        ] {
            assert_eq!(text.parse::<Target>(), Err(ParseError), "{text:?}");
        }
    }
}
