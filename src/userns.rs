//! Ids of a user namespace: what a container has for an owner, and what its host has for the same one.
//!
//! ```text
//! inside           outside
//! 0                the user who runs the daemon
//! 1 .. count       the user's ranges of /etc/subuid and /etc/subgid, one after the other
//! ```
//!
//! Mirrors rootlesskit `pkg/parent/idtools/idtools.go` (v2.3), `moby/sys` `userns/userns_linux.go` and
//! `user/user.go`.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// Ids that follow each other inside of a namespace, and outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

/// All ids that a namespace has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap(Vec<IdRange>);

impl IdMap {
    /// The ids of a rootless daemon: 0 is the user, and what follows are the user's subordinate ids, each range as
    /// its first id and their number.
    pub fn rootless(user: u32, subordinate: &[(u32, u32)]) -> Self {
        let mut ranges = vec![IdRange { inside: 0, outside: user, count: 1 }];
        let mut inside: u32 = 1;
        for &(outside, count) in subordinate {
            // Those that cannot be numbered are of no use to anybody.
            let count = count.min(u32::MAX - inside);
            ranges.push(IdRange { inside, outside, count });
            inside += count;
        }
        Self(ranges)
    }

    /// Reads what the kernel says of a process, as in `/proc/self/uid_map`: lines of three numbers.
    pub fn of_process(text: &str) -> Option<Self> {
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
            let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
            numbers.next().is_none().then_some(IdRange { inside, outside, count })
        };
        text.lines().map(range).collect::<Option<_>>().map(Self)
    }

    /// The same ids on both sides.
    fn identity(&self) -> Self {
        Self(self.0.iter().map(|range| IdRange { outside: range.inside, ..*range }).collect())
    }

    /// Whether it has all ids, each as itself: that of no namespace, or of the first.
    fn is_initial(&self) -> bool {
        self.0 == [IdRange { inside: 0, outside: 0, count: u32::MAX }]
    }

    /// What the host has for an id inside; `None` where the namespace has no such id.
    pub fn outside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let offset = id.checked_sub(range.inside).filter(|&offset| offset < range.count)?;
            range.outside.checked_add(offset)
        })
    }
}

impl IdMap {
    /// How many ids it would need after its last one to have this too; `None` where it has it, or a gap before it.
    fn lacks(&self, id: u32) -> Option<u32> {
        let last =
            self.0.iter().filter(|range| range.count > 0).map(|range| range.inside + (range.count - 1)).max();
        id.checked_sub(last?).filter(|&count| count > 0)
    }
}

impl fmt::Display for IdMap {
    /// The ids inside, as in `0-65536`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for range in self.0.iter().filter(|range| range.count > 0) {
            let last = range.inside.saturating_add(range.count - 1);
            match ranges.last_mut() {
                Some((_, end)) if end.checked_add(1) == Some(range.inside) => *end = last,
                _ => ranges.push((range.inside, last)),
            }
        }
        for (at, (first, last)) in ranges.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// Whose files are: how the owners that layers name become owners on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Owners {
    /// As layers name them.
    #[default]
    AsNamed,
    /// As a rootless daemon sees them, which has these users and groups only, and may make no device.
    Namespace {
        /// From users inside to users on disk.
        users: IdMap,
        /// From groups inside to groups on disk.
        groups: IdMap,
    },
}

/// An id that a namespace has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {id} is none of those that the user namespace has ({has})")]
pub struct OutOfRange {
    /// `user` or `group`.
    pub what: &'static str,
    /// The id inside.
    pub id: u32,
    /// The ids inside that there are.
    pub has: String,
}

impl Owners {
    /// Those of this process: where it runs in a user namespace, the ids that this has, as it sees them.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let read = |path: &str| {
            let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{path} is no id map"));
            IdMap::of_process(&fs::read_to_string(path)?).ok_or_else(invalid)
        };
        let (users, groups) = (read("/proc/self/uid_map")?, read("/proc/self/gid_map")?);
        if users.is_initial() {
            return Ok(Self::AsNamed);
        }
        Ok(Self::Namespace { users: users.identity(), groups: groups.identity() })
    }

    /// Whether they are those of a namespace.
    pub fn is_namespace(&self) -> bool {
        matches!(self, Self::Namespace { .. })
    }

    /// The user on disk.
    ///
    /// # Errors
    /// There is none.
    pub fn user(&self, id: u32) -> Result<u32, OutOfRange> {
        match self {
            Self::AsNamed => Ok(id),
            Self::Namespace { users, .. } => mapped("user", id, users),
        }
    }

    /// How many ids more it takes to have one that is out of range; `None` where more do not help.
    pub fn lacks(&self, missing: &OutOfRange) -> Option<u32> {
        match self {
            Self::AsNamed => None,
            Self::Namespace { groups, .. } if missing.what == "group" => groups.lacks(missing.id),
            Self::Namespace { users, .. } => users.lacks(missing.id),
        }
    }

    /// The group on disk.
    ///
    /// # Errors
    /// There is none.
    pub fn group(&self, id: u32) -> Result<u32, OutOfRange> {
        match self {
            Self::AsNamed => Ok(id),
            Self::Namespace { groups, .. } => mapped("group", id, groups),
        }
    }
}

fn mapped(what: &'static str, id: u32, map: &IdMap) -> Result<u32, OutOfRange> {
    map.outside(id).ok_or_else(|| OutOfRange { what, id, has: map.to_string() })
}

/// The subordinate ids that a file such as `/etc/subuid` gives a user, by name or by number: the first of each range,
/// and how many. Lines that are no ranges count for nothing, as for `newuidmap`.
pub fn subordinate_ids(text: &str, name: &str, id: u32) -> Vec<(u32, u32)> {
    let id = id.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next().filter(|owner| *owner == name || *owner == id)?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (fields.next().is_none() && !owner.is_empty()).then_some((start, count))
    };
    text.lines().filter_map(range).collect()
}

/// The first id from 100000 on that comes after all ranges of a file such as `/etc/subuid`.
pub fn first_free_id(text: &str) -> u32 {
    let end = |line: &str| {
        let mut fields = line.trim().split(':').skip(1);
        let (start, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(start.saturating_add(count))
    };
    text.lines().filter_map(end).max().unwrap_or_default().max(100_000)
}

/// Reads [`subordinate_ids`] of a file; none where there is no such file.
///
/// # Errors
/// It cannot be read.
pub fn read_subordinate_ids(path: &Path, name: &str, id: u32) -> io::Result<Vec<(u32, u32)>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(subordinate_ids(&text, name, id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other() {
        let map = IdMap::rootless(1000, &[(100_000, 65_536), (300_000, 10)]);
        for (inside, outside) in [
            (0, Some(1000)),
            (1, Some(100_000)),
            (65_536, Some(165_535)),
            (65_537, Some(300_000)),
            (65_546, Some(300_009)),
            (65_547, None),
            (u32::MAX, None),
        ] {
            assert_eq!(map.outside(inside), outside, "{inside}");
        }
        assert_eq!(map.to_string(), "0-65546");
        assert_eq!(IdMap::rootless(1000, &[]).to_string(), "0");
        assert_eq!(IdMap::rootless(7, &[(1, u32::MAX)]).outside(u32::MAX), None);
    }

    #[test]
    fn reads_what_the_kernel_says() {
        let initial = IdMap::of_process("         0          0 4294967295\n").unwrap();
        assert!(initial.is_initial());
        let map = IdMap::of_process("0 1000 1\n1 100000 65536\n").unwrap();
        assert_eq!(map, IdMap::rootless(1000, &[(100_000, 65_536)]));
        assert_eq!(map.identity().outside(5), Some(5));
        assert_eq!(map.identity().outside(65_537), None);
        for text in ["0 1000\n", "0 1 2 3\n", "a b c\n"] {
            assert_eq!(IdMap::of_process(text), None, "{text:?}");
        }
    }

    #[test]
    fn owners_that_a_namespace_has_not() {
        let map = IdMap::rootless(1000, &[(100_000, 10)]);
        let owners = Owners::Namespace { users: map.clone(), groups: map };
        assert_eq!(owners.user(3), Ok(100_002));
        let error = owners.group(70_000).unwrap_err().to_string();
        assert_eq!(error, "group 70000 is none of those that the user namespace has (0-10)");
        assert_eq!(Owners::AsNamed.user(70_000), Ok(70_000));
    }

    #[test]
    fn what_is_lacking_follows_the_last_id() {
        let map = IdMap::rootless(1000, &[(100_000, 65_536), (300_000, 10)]);
        for (id, expected) in [(65_546, None), (65_547, Some(1)), (70_000, Some(4_454)), (0, None)] {
            assert_eq!(map.lacks(id), expected, "{id}");
        }
        let owners = Owners::Namespace { users: map, groups: IdMap::rootless(1000, &[(100_000, 9)]) };
        assert_eq!(owners.lacks(&owners.group(10).unwrap_err()), Some(1));
        assert_eq!(owners.lacks(&owners.user(65_547).unwrap_err()), Some(1));
    }

    #[test]
    fn free_ids_come_after_all_others() {
        for (text, expected) in [
            ("", 100_000),
            ("a:1:2\n", 100_000),
            ("a:100000:65536\nb:300000:10\nc:200000:5\nx\n", 300_010),
            ("a:4294967295:9\n", u32::MAX),
        ] {
            assert_eq!(first_free_id(text), expected, "{text:?}");
        }
    }

    #[test]
    fn subordinate_ids_by_name_or_number() {
        let text = "a:1:2\nuser:100000:65536\n# user:1:1\n1000:300000:10\nuser:x:1\nuser:1:2:3\n:5:5\n";
        assert_eq!(subordinate_ids(text, "user", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate_ids(text, "b", 7), []);
        assert_eq!(subordinate_ids(text, "", 7), []);
    }
}
