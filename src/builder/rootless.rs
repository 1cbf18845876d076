//! The root of a daemon that a plain user runs.
//!
//! Mirrors `BuildKit` `util/appdefaults/appdefaults_unix.go` (v0.34.2), and the XDG base directories.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Error;
use super::root::{Kind, Root};
use super::settings::Settings;
use crate::daemon::{on_path, output_within};
use crate::userns::{IdMap, Owners, read_subordinate_ids};

/// Ranges of users that each user may have beside its own.
const SUBUID: &str = "/etc/subuid";
/// Ranges of groups.
const SUBGID: &str = "/etc/subgid";
/// How long a directory service may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A user as `passwd` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) id: u32,
    group: u32,
    pub(super) home: PathBuf,
}

/// The root of the daemon that a user runs: whose name is given, or who is root in the user namespace of this process,
/// or who has started it under sudo.
pub(super) fn find(user: Option<&str>) -> Result<Root, Error> {
    let here = Owners::of_this_process()
        .map_err(|source| Error::Read { path: "/proc/self/uid_map".into(), source })?;
    if here.is_namespace() {
        // Who is root here, and whose the files are that it makes.
        if user.is_some() {
            return Err(Error::InNamespace);
        }
        let home = env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let home = home.ok_or(Error::NoHome)?;
        return at(&home, |name| env::var_os(name), here);
    }
    let name = match user {
        Some(name) => name.to_owned(),
        None => env::var("SUDO_USER").ok().filter(|name| name != "root").ok_or(Error::WhichUser)?,
    };
    let account = account(&name)?;
    if account.id == 0 {
        return Err(Error::RootIsNotRootless);
    }
    let map = |id, file: &'static str| {
        let ranges = read_subordinate_ids(Path::new(file), &account.name, account.id)
            .map_err(|source| Error::Read { path: file.into(), source })?;
        if ranges.is_empty() {
            return Err(Error::NoSubordinateIds { user: account.name.clone(), file });
        }
        Ok(IdMap::rootless(id, &ranges))
    };
    let owners = Owners::Namespace { users: map(account.id, SUBUID)?, groups: map(account.group, SUBGID)? };
    at(&account.home, |_| None, owners)
}

/// The root of who has this home, and these variables.
fn at(
    home: &Path,
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    owners: Owners,
) -> Result<Root, Error> {
    let directory = |name: &str, otherwise: &str| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| home.join(otherwise))
    };
    let config = directory("XDG_CONFIG_HOME", ".config").join("buildkit/buildkitd.toml");
    let settings = Settings::at(&[], &config)?;
    let snapshotter = settings
        .snapshotter()
        .map_err(|misfit| Error::Misfit { whose: config.display().to_string(), misfit })?;
    let root =
        settings.named_root().unwrap_or_else(|| directory("XDG_DATA_HOME", ".local/share").join("buildkit"));
    Ok(Root::of(root, Kind { snapshotter, owners, containerd: None }))
}

/// What the directory of users has of a name or number: `getent` asks all of it, and its file is what is left without.
pub(super) fn account(name: &str) -> Result<Account, Error> {
    let unknown = || Error::NoUser { name: name.to_owned() };
    let entry = match on_path("getent") {
        Some(getent) => {
            let mut command = Command::new(getent);
            command.args(["passwd", "--", name]);
            output_within(&mut command, PATIENCE).map_err(|_| unknown())?
        }
        None => passwd()?,
    };
    entry
        .lines()
        .filter_map(parse)
        .find(|found| found.name == name || found.id.to_string() == name)
        .ok_or_else(unknown)
}

/// All users that the directory of users tells unasked: one on the network may keep them to itself.
pub(super) fn accounts() -> Result<Vec<Account>, Error> {
    let entries = match on_path("getent") {
        Some(getent) => {
            output_within(Command::new(getent).arg("passwd"), PATIENCE).map_err(Error::Program)?
        }
        None => passwd()?,
    };
    Ok(entries.lines().filter_map(parse).collect())
}

fn passwd() -> Result<String, Error> {
    fs::read_to_string("/etc/passwd").map_err(|source| Error::Read { path: "/etc/passwd".into(), source })
}

/// A line of `passwd`.
fn parse(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let (id, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = PathBuf::from(fields.nth(1)?);
    home.is_absolute().then_some(Account { name, id, group, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read() {
        let account = parse("ci:x:1001:1002:CI,,,:/home/ci:/bin/bash").unwrap();
        let expected = Account { name: "ci".into(), id: 1001, group: 1002, home: "/home/ci".into() };
        assert_eq!(account, expected);
        for line in ["", "ci:x:1001", "ci:x:a:b::/home/ci:", "ci:x:1:1:::"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(account_of_root().id, 0);
        assert!(matches!(super::account("no-such-user"), Err(Error::NoUser { .. })));
    }

    fn account_of_root() -> Account {
        super::account("root").unwrap()
    }

    #[test]
    fn a_root_is_where_its_daemon_has_it() {
        let home = tempfile::tempdir().unwrap();
        let root = |variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
            };
            at(home.path(), variable, Owners::AsNamed).unwrap()
        };
        assert_eq!(root(&[]).path(), home.path().join(".local/share/buildkit"));
        assert_eq!(root(&[("XDG_DATA_HOME", "/data")]).path(), Path::new("/data/buildkit"));
        assert_eq!(root(&[("XDG_DATA_HOME", "data")]).path(), home.path().join(".local/share/buildkit"));
        let config = home.path().join(".config/buildkit");
        fs::create_dir_all(&config).unwrap();
        let text = "root = \"/r\"\n[worker.oci]\nsnapshotter = \"native\"\n";
        fs::write(config.join("buildkitd.toml"), text).unwrap();
        assert_eq!(root(&[]).path(), Path::new("/r"));
        assert_eq!(root(&[]).kind().snapshotter.as_deref(), Some("native"));
    }
}
