//! Whose files a root has, and extended attributes that name ids, as a daemon in a user namespace leaves them.
//!
//! Written against the kernel (`security/commoncap.c`, `fs/posix_acl.c`), not against what writes them here, so that a
//! fault of either shows.

use std::path::{Path, PathBuf};

use crate::root::files::Tree;
use crate::userns::{IdMap, OutOfRange, Owners, subordinate_ids};

const CAPABILITY: &[u8] = b"security.capability";
const ACCESS_LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// Tags of an access list's entries that name somebody.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// How the owners that layers name are owners in the root at `tree`; `text` reads a file of the machine that it is for.
///
/// A root that belongs to a plain user is that of a daemon with the user's subordinate ids; `None` where it has none.
pub(super) fn of_root(tree: &Tree, text: impl Fn(&Path) -> Option<String>) -> Option<Owners> {
    let here = Owners::of_this_process().ok()?;
    if here.is_namespace() {
        return Some(here);
    }
    let stat = tree.stat(Path::new("")).ok()?;
    if stat.st_uid == 0 {
        return Some(Owners::AsNamed);
    }
    let name = user(stat.st_uid, &text).map(|user| user.name).unwrap_or_default();
    let map = |id, file| {
        let ranges = subordinate_ids(&text(Path::new(file))?, &name, stat.st_uid);
        (!ranges.is_empty()).then(|| IdMap::rootless(id, &ranges))
    };
    let (users, groups) = (map(stat.st_uid, "/etc/subuid")?, map(stat.st_gid, "/etc/subgid")?);
    Some(Owners::Namespace { users, groups })
}

/// What a machine's list of users has of one.
pub(super) struct User {
    pub(super) name: String,
    pub(super) home: PathBuf,
}

/// The user of an id; `text` reads a file of the machine.
pub(super) fn user(id: u32, text: impl Fn(&Path) -> Option<String>) -> Option<User> {
    text(Path::new("/etc/passwd"))?.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let found: u32 = fields.nth(1)?.parse().ok()?;
        let home = fields.nth(2).unwrap_or_default().into();
        (found == id).then_some(User { name, home })
    })
}

/// The value that an attribute has on disk.
///
/// # Errors
/// An access list names somebody that the namespace has not.
pub(super) fn xattr(name: &[u8], value: &[u8], owners: &Owners) -> Result<Vec<u8>, OutOfRange> {
    if !owners.is_namespace() || !ACCESS_LISTS.contains(&name) {
        return Ok(value.to_vec());
    }
    let mut shifted = value.to_vec();
    // A head of four bytes, then a tag, what is allowed, and an id for each.
    let entries = shifted.get_mut(4..).unwrap_or_default();
    for entry in entries.chunks_exact_mut(8) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let id = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER => owners.user(id)?,
            GROUP => owners.group(id)?,
            _ => continue,
        };
        entry[4..].copy_from_slice(&id.to_le_bytes());
    }
    Ok(shifted)
}

/// Whether a value that was found is the expected one. A capability of a namespace may name its root (revision 3), or
/// leave that to the kernel (revision 2), which shows the latter to the namespace itself.
pub(super) fn is_same(name: &[u8], expected: &[u8], found: &[u8], owners: &Owners) -> bool {
    if expected == found {
        return true;
    }
    if !owners.is_namespace() || name != CAPABILITY {
        return false;
    }
    match (capability(expected), capability(found)) {
        (Some((flags, sets, _)), Some((found_flags, found_sets, root))) => {
            let is_root = root.is_none_or(|root| owners.user(0) == Ok(root));
            flags == found_flags && sets == found_sets && is_root
        }
        _ => false,
    }
}

/// Flags, sets, and the root of the namespace that it counts in.
fn capability(value: &[u8]) -> Option<(&[u8], &[u8], Option<u32>)> {
    let (head, rest) = value.split_at_checked(4)?;
    let (flags, revision) = head.split_at_checked(3)?;
    match (revision, rest.len()) {
        ([2], 16) => Some((flags, rest, None)),
        ([3], 20) => {
            let (sets, root) = rest.split_at_checked(16)?;
            Some((flags, sets, Some(u32::from_le_bytes(root.try_into().ok()?))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userns::IdMap;

    fn rootless() -> Owners {
        let map = |first| IdMap::rootless(1000, &[(first, 65_536)]);
        Owners::Namespace { users: map(100_000), groups: map(200_000) }
    }

    #[test]
    fn a_plain_user_has_the_ids_of_its_machine() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let owners = |user: u32, text: &dyn Fn(&str) -> Option<&'static str>| {
            std::os::unix::fs::chown(temp.path(), Some(user), Some(user)).unwrap();
            let tree = Tree::open(temp.path()).unwrap();
            of_root(&tree, |path| text(path.to_str().unwrap()).map(str::to_owned))
        };
        assert_eq!(owners(0, &|_| None), Some(Owners::AsNamed));
        assert_eq!(owners(1000, &|_| None), None);
        let text = |path: &str| match path {
            "/etc/passwd" => Some("root:x:0:0::/:/bin/sh\nci:x:1000:1000::/home/ci:/bin/sh\n"),
            "/etc/subuid" => Some("ci:100000:65536\n"),
            "/etc/subgid" => Some("1000:200000:65536\n"),
            _ => None,
        };
        assert_eq!(owners(1000, &text), Some(rootless()));
        assert_eq!(owners(1001, &text), None);
        let home =
            |id| user(id, |path| text(path.to_str().unwrap()).map(str::to_owned)).map(|user| user.home);
        assert_eq!((home(1000), home(1001)), (Some("/home/ci".into()), None));
    }

    #[test]
    fn capabilities_count_in_their_namespace() {
        let two = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        let three = |root: u32| [&[1, 0, 0, 3][..], &[7; 16], &root.to_le_bytes()].concat();
        for (found, owners, same) in [
            (two.clone(), rootless(), true),
            (three(1000), rootless(), true),
            (three(0), rootless(), false),
            (three(1000), Owners::AsNamed, false),
            ([&[0, 0, 0, 3][..], &[7; 16], &1000_u32.to_le_bytes()].concat(), rootless(), false),
            (vec![1, 0, 0, 3], rootless(), false),
        ] {
            assert_eq!(is_same(CAPABILITY, &two, &found, &owners), same, "{found:?} {owners:?}");
        }
        assert!(!is_same(b"user.x", b"1", b"2", &rootless()));
    }

    #[test]
    fn access_lists_name_others_outside() {
        let list = |user: u32, group: u32| {
            let entry = |tag: u8, id: u32| [&[tag, 0, 6, 0][..], &id.to_le_bytes()].concat();
            [vec![2, 0, 0, 0], entry(1, u32::MAX), entry(2, user), entry(8, group)].concat()
        };
        let name = ACCESS_LISTS[0];
        assert_eq!(xattr(name, &list(1, 0), &rootless()), Ok(list(100_000, 1000)));
        assert_eq!(xattr(name, &list(1, 0), &Owners::AsNamed), Ok(list(1, 0)));
        assert_eq!(xattr(b"user.x", &list(1, 0), &rootless()), Ok(list(1, 0)));
        assert!(xattr(name, &list(0, 70_000), &rootless()).is_err());
        assert_eq!(xattr(name, b"\x02", &rootless()), Ok(vec![2]));
    }
}
