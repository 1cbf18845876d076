//! Builders of this machine, and where each of them keeps its root.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the host's own daemon keeps its root.
const HOST_ROOT: &str = "/var/lib/buildkit";

/// A builder, as `--for` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The `buildkitd` of this machine, run as root.
    Host,
}

impl Target {
    /// Where its root is.
    pub fn root(&self) -> PathBuf {
        match self {
            Self::Host => HOST_ROOT.into(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
        }
    }
}

/// What is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected host")]
pub struct ParseError;

impl FromStr for Target {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "host" { Ok(Self::Host) } else { Err(ParseError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_reads_as_it_is_written() {
        assert_eq!("host".parse::<Target>().unwrap().to_string(), "host");
        for text in ["", "Host", "host ", "hosts"] {
            assert_eq!(text.parse::<Target>(), Err(ParseError), "{text:?}");
        }
    }
}
