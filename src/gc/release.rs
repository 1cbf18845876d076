//! The releases of `BuildKit`, as far as their collections differ.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// A release of `BuildKit`.
///
/// | from | what changed |
/// |---|---|
/// | v0.14 | filters see a record's description |
/// | v0.17 | `reservedSpace`, `maxUsedSpace` and `minFreeSpace` beside `keepBytes`; the defaults use them |
/// | v0.21 | a `minFreeSpace` that is met takes at most one record; before, it alone took everything |
/// | v0.22 | the steps that make the order count from 1, not from 0 |
/// | v0.31 | the first default rule matches what it names; before, it matched nothing |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// Before the first dot.
    pub major: u32,
    /// Between the dots.
    pub minor: u32,
    /// After the second dot.
    pub patch: u32,
}

impl Release {
    /// The newest release that this mirrors.
    pub const NEWEST: Self = Self::new(0, 34, 2);

    /// The release of these three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    fn since(self, minor: u32) -> bool {
        (self.major, self.minor) >= (0, minor)
    }

    pub(super) fn filters_see_descriptions(self) -> bool {
        self.since(14)
    }

    pub(super) fn has_three_limits(self) -> bool {
        self.since(17)
    }

    pub(super) fn heeds_free_space_alone(self) -> bool {
        self.since(21)
    }

    /// Where the steps in the order of deletion begin to count.
    pub(super) fn first_step(self) -> f64 {
        if self.since(22) { 1.0 } else { 0.0 }
    }

    pub(super) fn default_filters_are_alternatives(self) -> bool {
        self.since(31)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Release {
    type Err = Error;

    /// Reads `v0.34.2` or `0.34.2`, and takes `v0.35.0-rc1` for the release that it becomes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bare = text.strip_prefix('v').unwrap_or(text);
        let numbers = bare.split(['-', '+']).next().unwrap_or(bare);
        let parts: Option<Vec<u32>> = numbers.split('.').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some([major, minor, patch]) => Ok(Self::new(*major, *minor, *patch)),
            _ => Err(Error::Release(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names() {
        for (text, expected) in [
            ("v0.34.2", Some(Release::NEWEST)),
            ("0.17.3", Some(Release::new(0, 17, 3))),
            ("v0.35.0-rc1", Some(Release::new(0, 35, 0))),
            ("v0.35.0+dirty", Some(Release::new(0, 35, 0))),
            ("v0.34", None),
            ("v0.34.2.1", None),
            ("latest", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Release>().ok(), expected, "{text}");
        }
        assert_eq!(Release::NEWEST.to_string(), "v0.34.2");
        assert!(Release::new(1, 0, 0).default_filters_are_alternatives());
    }
}
