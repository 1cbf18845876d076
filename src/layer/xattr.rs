//! Extended attributes that have ids in them, for a user namespace that has other ids than its host.
//!
//! The kernel changes them for who sets them inside: `security/commoncap.c` and `fs/posix_acl.c`.

use crate::userns::{OutOfRange, Owners};

/// What a file may do whoever runs it.
pub(super) const CAPABILITY: &[u8] = b"security.capability";
/// What all attributes of the kernel's security modules begin with.
const SECURITY: &[u8] = b"security.";
/// That of `SELinux`, which decides by itself who may set it.
const LABEL: &[u8] = b"security.selinux";
/// Who may do what with a file.
pub(super) const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
/// The access list that a file gets where it is made in a directory.
pub(super) const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";

/// Bytes of revision 2 of `struct vfs_cap_data` (`linux/capability.h`), whose last byte of the head is its number.
const REVISION_2: (usize, u8) = (20, 2);
/// The only version of access lists, `linux/posix_acl_xattr.h`.
const LIST_VERSION: [u8; 4] = [2, 0, 0, 0];
/// Bytes of an entry of an access list: its tag, what is allowed, and whom.
const LIST_ENTRY: usize = 8;
/// Tags of entries that name a user, and a group.
const USER: [u8; 2] = [2, 0];
const GROUP: [u8; 2] = [8, 0];

/// Whether only root of the host may set it: not who is root in a user namespace, as a rootless daemon.
pub(super) fn is_for_root_alone(name: &[u8]) -> bool {
    name.starts_with(SECURITY) && name != CAPABILITY && name != LABEL
}

/// Whether a copy may lack it where the system does not let it be set: the kernel gives a label to each file that is
/// made, and what else there is, root has put there.
pub(super) fn may_be_left(name: &[u8]) -> bool {
    name.starts_with(SECURITY) && name != CAPABILITY
}

/// Capabilities as they count inside: revision 3, with the root of the namespace, for revision 2. Others stay as they
/// are.
pub(super) fn capability(value: &[u8], owners: &Owners) -> Result<Vec<u8>, OutOfRange> {
    let mut shifted = value.to_vec();
    if (value.len(), value.get(3).copied()) == (REVISION_2.0, Some(REVISION_2.1)) {
        shifted[3] = 3;
        shifted.extend_from_slice(&owners.user(0)?.to_le_bytes());
    }
    Ok(shifted)
}

/// An access list with the users and groups that the host has for those that it names. What is no such list stays as
/// it is, and the kernel refuses it.
pub(super) fn access_list(value: &[u8], owners: &Owners) -> Result<Vec<u8>, OutOfRange> {
    let mut shifted = value.to_vec();
    if !value.starts_with(&LIST_VERSION) {
        return Ok(shifted);
    }
    for entry in shifted[LIST_VERSION.len()..].chunks_exact_mut(LIST_ENTRY) {
        let (head, id) = entry.split_at_mut(4);
        let named = id.iter().rev().fold(0_u32, |named, &byte| named << 8 | u32::from(byte));
        let outside = match [head[0], head[1]] {
            USER => owners.user(named)?,
            GROUP => owners.group(named)?,
            _ => continue,
        };
        id.copy_from_slice(&outside.to_le_bytes());
    }
    Ok(shifted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userns::IdMap;

    fn owners() -> Owners {
        let map = |first| IdMap::rootless(1000, &[(first, 65_536)]);
        Owners::Namespace { users: map(100_000), groups: map(200_000) }
    }

    #[test]
    fn capabilities_name_their_root() {
        let mut two = vec![1, 0, 0, 2];
        two.extend([7; 16]);
        let three = capability(&two, &owners()).unwrap();
        assert_eq!(three[..4], [1, 0, 0, 3]);
        assert_eq!(three[4..], [&[7; 16][..], &[0xe8, 3, 0, 0]].concat());
        for other in [&three[..], b"", b"odd", &[1, 0, 0, 2]] {
            assert_eq!(capability(other, &owners()).unwrap(), other);
        }
    }

    #[test]
    fn access_lists_name_ids_of_the_host() {
        let entry = |tag: u8, id: u32| [&[tag, 0, 6, 0][..], &id.to_le_bytes()].concat();
        let list = |user, group| {
            let entries = [entry(1, u32::MAX), entry(2, user), entry(8, group), entry(0x20, u32::MAX)];
            [LIST_VERSION.to_vec(), entries.concat()].concat()
        };
        assert_eq!(access_list(&list(1, 0), &owners()).unwrap(), list(100_000, 1000));
        assert_eq!(access_list(&list(0, 5), &owners()).unwrap(), list(1000, 200_004));
        let error = access_list(&list(0, 70_000), &owners()).unwrap_err();
        assert_eq!((error.what, error.id), ("group", 70_000));
        for other in [&b""[..], b"\x02\0\0\0\x02", b"\x01\0\0\0\x02\0\x06\0\x01\0\0\0"] {
            assert_eq!(access_list(other, &owners()).unwrap(), other);
        }
    }
}
