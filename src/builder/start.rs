//! Where a daemon that a plain user runs has its root and its configuration, by what it is started with.
//!
//! ```text
//! root     --root, `root` in the configuration, $XDG_DATA_HOME/buildkit, ~/.local/share/buildkit
//! config   --config, $BUILDKITD_CONFIG, $XDG_CONFIG_HOME/buildkit/buildkitd.toml, ~/.config/buildkit/buildkitd.toml
//! ```
//!
//! Mirrors `BuildKit` `util/appdefaults/appdefaults_unix.go` (v0.17.3 and v0.34.2): a variable without a value says
//! nothing, and of `$XDG_DATA_HOME` the first directory counts. `$BUILDKITD_CONFIG` is `cmd/buildkitd/main.go` of v0.34.2;
//! v0.33.1 does not know it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Error;
use super::settings::{CONFIG_VARIABLE, Settings, argument};

/// What a daemon is started with, as far as it is known.
pub(super) struct Start<'a> {
    pub(super) arguments: &'a [String],
    pub(super) variable: &'a dyn Fn(&str) -> Result<Option<OsString>, Error>,
    /// The home of its user, where no variable says it.
    pub(super) home: &'a dyn Fn() -> Result<PathBuf, Error>,
    /// Where a path leads that is relative, and what says it.
    pub(super) resolve: &'a dyn Fn(&str, PathBuf) -> Result<PathBuf, Error>,
}

impl Start<'_> {
    /// Its root, and what else it is told.
    ///
    /// # Errors
    /// As [`Settings::at`], and what leads there is not known.
    pub(super) fn find(&self) -> Result<(PathBuf, Settings), Error> {
        let settings = Settings::at(self.arguments, &self.config()?)?;
        let root = match settings.named_root() {
            Some(root) => self.absolute("the root", root)?,
            None => self.default_root()?,
        };
        Ok((root, settings))
    }

    /// The file of its configuration.
    pub(super) fn config(&self) -> Result<PathBuf, Error> {
        if let Some(file) = argument(self.arguments, "config") {
            return self.absolute("--config", file.into());
        }
        match self.value(CONFIG_VARIABLE)? {
            Some(file) => self.absolute(&format!("${CONFIG_VARIABLE}"), file.into()),
            None => Ok(self.config_home()?.join("buildkit/buildkitd.toml")),
        }
    }

    /// Where all programs of its user have their configurations.
    pub(super) fn config_home(&self) -> Result<PathBuf, Error> {
        self.directory("XDG_CONFIG_HOME", ".config")
    }

    /// Its root, where it is told none.
    pub(super) fn default_root(&self) -> Result<PathBuf, Error> {
        Ok(self.directory("XDG_DATA_HOME", ".local/share")?.join("buildkit"))
    }

    fn directory(&self, name: &str, otherwise: &str) -> Result<PathBuf, Error> {
        if let Some(value) = self.value(name)? {
            let first = match value.to_str() {
                Some(value) if name == "XDG_DATA_HOME" => value.split(':').next().unwrap_or_default().into(),
                _ => value.into(),
            };
            return self.absolute(&format!("${name}"), first);
        }
        let home = match self.value("HOME")? {
            Some(home) => self.absolute("$HOME", home.into())?,
            None => (self.home)()?,
        };
        Ok(home.join(otherwise))
    }

    fn value(&self, name: &str) -> Result<Option<OsString>, Error> {
        Ok((self.variable)(name)?.filter(|value| !value.is_empty()))
    }

    fn absolute(&self, what: &str, path: PathBuf) -> Result<PathBuf, Error> {
        if path.is_absolute() { Ok(path) } else { (self.resolve)(what, path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root and configuration of a daemon that runs in `/cwd`.
    fn find(arguments: &[&str], variables: &[(&str, &str)]) -> (PathBuf, PathBuf) {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let variable = |name: &str| {
            Ok(variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)))
        };
        let start = Start {
            arguments: &arguments,
            variable: &variable,
            home: &|| Ok("/home/ci".into()),
            resolve: &|_, path| Ok(PathBuf::from("/cwd").join(path)),
        };
        (start.find().unwrap().0, start.config().unwrap())
    }

    #[test]
    fn arguments_and_variables_say_where_things_are() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str, &'a str);
        let (data, config) = ("/home/ci/.local/share/buildkit", "/home/ci/.config/buildkit/buildkitd.toml");
        let cases: [Case<'_>; 13] = [
            (&[], &[], data, config),
            (&["--root", "/r"], &[("XDG_DATA_HOME", "/d")], "/r", config),
            (&["--root", "r", "--config=c"], &[], "/cwd/r", "/cwd/c"),
            (&[], &[("XDG_DATA_HOME", "/d:/e")], "/d/buildkit", config),
            (&[], &[("XDG_DATA_HOME", "d")], "/cwd/d/buildkit", config),
            // It is no list there.
            (&[], &[("XDG_CONFIG_HOME", "/c:/d")], data, "/c:/d/buildkit/buildkitd.toml"),
            (&[], &[("HOME", "/h")], "/h/.local/share/buildkit", "/h/.config/buildkit/buildkitd.toml"),
            (
                &[],
                &[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c")],
                "/h/.local/share/buildkit",
                "/c/buildkit/buildkitd.toml",
            ),
            (&[], &[("HOME", ""), ("XDG_DATA_HOME", "")], data, config),
            (&[], &[("BUILDKITD_CONFIG", "/b.toml"), ("XDG_CONFIG_HOME", "/c")], data, "/b.toml"),
            (&[], &[("BUILDKITD_CONFIG", "b.toml")], data, "/cwd/b.toml"),
            (&["--config", "/c.toml"], &[("BUILDKITD_CONFIG", "/b.toml")], data, "/c.toml"),
            (&[], &[("BUILDKITD_CONFIG", "")], data, config),
        ];
        for (arguments, variables, root, config) in cases {
            let expected = (PathBuf::from(root), PathBuf::from(config));
            assert_eq!(find(arguments, variables), expected, "{arguments:?} {variables:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let arguments = ["--root".to_owned(), "r".to_owned()];
        let start = |home: &'static dyn Fn() -> Result<PathBuf, Error>, arguments| Start {
            arguments,
            variable: &|_| Ok(None),
            home,
            resolve: &|what, path| Err(Error::Relative { what: what.to_owned(), path }),
        };
        assert!(matches!(start(&|| Err(Error::NoHome), &[]).find(), Err(Error::NoHome)));
        let error = start(&|| Ok("/home/ci".into()), &arguments).find().unwrap_err().to_string();
        assert!(error.starts_with("the root is \"r\", which is another directory"), "{error}");
    }
}
