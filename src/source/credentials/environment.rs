//! The environment variables that say where credentials are, and whose they are.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

/// The environment variables that say where credentials are.
///
/// Held as a value so that no code here reads the process's own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
    user: Option<u32>,
}

impl Environment {
    /// A copy of the process's variables, and who runs it.
    pub fn of_process() -> Self {
        let user = Some(rustix::process::getuid().as_raw());
        Self { user, ..std::env::vars_os().collect() }
    }

    /// The number of the user, whom a collection of variables does not tell.
    pub(in crate::source) fn user(&self) -> Option<u32> {
        self.user
    }

    pub(in crate::source) fn path(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(OsStr::new(name)).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// A variable as text; an empty one, and one that is no text, counts as none.
    pub(in crate::source) fn text(&self, name: &str) -> Option<&str> {
        self.variables
            .get(OsStr::new(name))
            .and_then(|value| value.to_str())
            .filter(|value| !value.is_empty())
    }

    /// Has a program see these variables, and no others.
    pub(in crate::source) fn give_to(&self, command: &mut Command) {
        command.env_clear().envs(&self.variables);
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Self {
        let variables = vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, user: None }
    }
}

impl fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}
