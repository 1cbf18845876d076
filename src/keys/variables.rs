//! Variables of a build: arguments, environments, and the platforms that every Dockerfile may ask for.

use std::collections::BTreeMap;

use super::expand::Variable;
use crate::oci::Platform;

/// How many bytes of variables are kept for a stage.
const MAX_VARS: usize = 256 << 10;

/// Variables, up to [`MAX_VARS`]: what a Dockerfile can grow by `ENV a=$a$a` must not fill the memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Vars {
    values: BTreeMap<String, String>,
    bytes: usize,
}

impl Vars {
    pub(super) fn get(&self, name: &str) -> Option<&String> {
        self.values.get(name)
    }

    /// As [`expand`](super::expand::expand) asks for it.
    pub(super) fn known(&self, name: &str) -> Variable {
        self.get(name).cloned().map_or(Variable::Unset, Variable::Set)
    }

    /// Sets it, in place of what it was; what is too long for all of them is not set.
    pub(super) fn set(&mut self, name: String, value: String) {
        if let Some(old) = self.values.remove(&name) {
            self.bytes -= name.len() + old.len();
        }
        let bytes = self.bytes + name.len() + value.len();
        if bytes <= MAX_VARS {
            self.bytes = bytes;
            self.values.insert(name, value);
        }
    }
}

impl FromIterator<(String, String)> for Vars {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(entries: I) -> Self {
        let mut vars = Self::default();
        for (name, value) in entries {
            vars.set(name, value);
        }
        vars
    }
}

/// What a build ran on and for, where provenance tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Platforms {
    /// The builder's own platform.
    pub(super) builder: Option<Platform>,
    /// The platform of the image.
    pub(super) target: Option<Platform>,
}

impl Platforms {
    /// The arguments that every Dockerfile may ask for.
    pub(super) fn args(&self) -> Vars {
        let of = |prefix: &str, platform: &Option<Platform>| {
            let values = platform.iter().flat_map(|p| {
                [
                    ("PLATFORM", p.to_string()),
                    ("OS", p.os.clone()),
                    ("ARCH", p.arch.clone()),
                    ("VARIANT", p.variant.clone()),
                ]
            });
            values.map(|(name, value)| (format!("{prefix}{name}"), value)).collect::<Vec<_>>()
        };
        of("BUILD", &self.builder).into_iter().chain(of("TARGET", &self.target)).collect()
    }

    /// Whether an argument has a value that only the builder knows.
    pub(super) fn sets(name: &str) -> bool {
        let part = name.strip_prefix("BUILD").or_else(|| name.strip_prefix("TARGET"));
        part.is_some_and(|part| {
            matches!(part, "PLATFORM" | "OS" | "ARCH" | "VARIANT" | "OSVERSION" | "STAGE")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_set_again_takes_no_more_room() {
        let mut vars = Vars::default();
        let long = |letter: &str| letter.repeat(MAX_VARS / 2);
        for letter in ["a", "b", "c", "d"] {
            vars.set("x".to_owned(), long(letter));
        }
        assert_eq!(vars.get("x"), Some(&long("d")));
        // What does not fit is not there, and its old value is not told for it.
        vars.set("x".to_owned(), "e".repeat(MAX_VARS));
        assert_eq!(vars.get("x"), None);
        vars.set("y".to_owned(), long("y"));
        assert_eq!(vars.get("y"), Some(&long("y")));
    }
}
