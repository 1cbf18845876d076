//! Users of this machine: their ids, and what gives them more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Error;
use crate::daemon::{on_path, output_within};
use crate::userns::{IdMap, OutOfRange, Owners, first_free_id, read_subordinate_ids};

/// Ranges of users that each user may have beside its own.
const SUBUID: &str = "/etc/subuid";
/// Ranges of groups.
const SUBGID: &str = "/etc/subgid";
/// How long a directory service may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What makes a user namespace that has the user's ranges.
const HELPERS: [&str; 3] = ["rootlesskit", "newuidmap", "newgidmap"];

/// A user as `passwd` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) id: u32,
    /// Where it is absolute.
    pub(super) home: Option<PathBuf>,
}

impl Account {
    /// Whose files are whose that its rootless daemon makes.
    ///
    /// # Errors
    /// It has no ranges of ids beside its own, or they cannot be read.
    pub(super) fn owners(&self) -> Result<Owners, Error> {
        Ok(Owners::Namespace { users: self.ids(SUBUID)?, groups: self.ids(SUBGID)? })
    }

    fn ids(&self, file: &'static str) -> Result<IdMap, Error> {
        let ranges = read_subordinate_ids(Path::new(file), &self.name, self.id)
            .map_err(|source| Error::Read { path: file.into(), source })?;
        if ranges.is_empty() {
            return Err(Error::NoSubordinateIds {
                user: self.name.clone(),
                file,
                is_there: Path::new(file).exists(),
                first: free_in(SUBUID).max(free_in(SUBGID)),
            });
        }
        Ok(IdMap::rootless(self.id, &ranges))
    }
}

/// How a user may write the root of its own daemon.
pub(super) fn way_in() -> String {
    let missing: Vec<&str> = HELPERS.into_iter().filter(|helper| on_path(helper).is_none()).collect();
    let install = if missing.is_empty() {
        String::new()
    } else {
        format!(
            "; $PATH has no {}: install them first (Debian's packages rootlesskit and uidmap)",
            missing.join(", ")
        )
    };
    format!(
        "as the user of a rootless daemon, run it in a user namespace as the daemon has: `rootlesskit warmkit bake … --for \
         rootless`{install}"
    )
}

/// What gives a user the ids that a layer needs; `None` where no range can.
pub(super) fn wider_range(user: &str, owners: &Owners, missing: &OutOfRange) -> Option<String> {
    let file = if missing.what == "group" { SUBGID } else { SUBUID };
    let (first, count) = (free_in(file), owners.lacks(missing)?);
    first.checked_add(count)?;
    Some(format!(
        "give {user} {count} more by a line `{user}:{first}:{count}` in {file}, and start its daemon anew, which could not \
         extract that layer either"
    ))
}

fn free_in(file: &str) -> u32 {
    first_free_id(&fs::read_to_string(file).unwrap_or_default())
}

/// What the directory of users has of a name or number: `getent` asks all of it, and its file is what is left without.
pub(super) fn account(name: &str) -> Result<Account, Error> {
    let unknown = || Error::NoUser { name: name.to_owned() };
    if name.starts_with('-') {
        return Err(unknown());
    }
    let entry = match on_path("getent") {
        Some(getent) => {
            let mut command = Command::new(getent);
            command.args(["passwd", name]);
            // It fails for who is unknown, and where it cannot ask.
            output_within(&mut command, PATIENCE).or_else(|_| passwd())?
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
    let id = fields.nth(1)?.parse().ok()?;
    let home = PathBuf::from(fields.nth(2)?);
    Some(Account { name, id, home: home.is_absolute().then_some(home) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read() {
        let account = parse("ci:x:1001:1002:CI,,,:/home/ci:/bin/bash").unwrap();
        assert_eq!(account, Account { name: "ci".into(), id: 1001, home: Some("/home/ci".into()) });
        assert_eq!(parse("ci:x:1:1:::").unwrap().home, None);
        for line in ["", "ci:x:1001", "ci:x:a:b::/home/ci:"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(super::account("root").unwrap().id, 0);
        assert!(matches!(super::account("no-such-user"), Err(Error::NoUser { .. })));
    }

    #[test]
    fn the_line_that_is_missing_is_told() {
        let map = IdMap::rootless(1000, &[(100_000, 65_536)]);
        let owners = Owners::Namespace { users: map.clone(), groups: map };
        let said = wider_range("ci", &owners, &owners.user(70_000).unwrap_err()).unwrap();
        let first = free_in(SUBUID);
        assert!(said.contains(&format!("`ci:{first}:4464` in /etc/subuid")), "{said}");
        assert_eq!(wider_range("ci", &owners, &owners.user(u32::MAX).unwrap_err()), None);
    }
}
