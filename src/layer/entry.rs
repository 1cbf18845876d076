//! One entry of a layer, and what its fields mean on disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file of the same layer.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A pax global header: its records are ignored, but it has a name, and what stood there is removed.
    Global,
    /// Anything else, by its type flag. Layers may hold it only where it is not unpacked.
    Other(u8),
}

/// A point in time: seconds since 1970 and nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999, counted forwards also before 1970.
    pub nanos: u32,
}

/// Go counts seconds from year 1 and lets them wrap; the order of times depends on it.
const YEAR_1: i64 = 62_135_596_800;
/// The last time that fits nanoseconds in 64 bits, in 2262.
const LAST: Time = Time { seconds: 9_223_372_036, nanos: 854_775_807 };

impl Time {
    /// 1970-01-01.
    pub const EPOCH: Self = Self { seconds: 0, nanos: 0 };

    fn order(self) -> (i64, u32) {
        (self.seconds.wrapping_add(YEAR_1), self.nanos)
    }

    /// The time that a file gets for this header time: times before 1970 and after 2262 become 1970.
    #[must_use]
    pub fn on_disk(self) -> Self {
        if self.order() < Self::EPOCH.order() || self.order() > LAST.order() { Self::EPOCH } else { self }
    }

    pub(super) fn latest(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if self.order() < other.order() => other,
            _ => self,
        }
    }
}

/// Numeric owner, as it goes to `chown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User id; `None` leaves it alone (an id of -1).
    pub uid: Option<u32>,
    /// Group id; `None` leaves it alone (an id of -1).
    pub gid: Option<u32>,
}

/// A device number as its header has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Device {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
}

/// What an entry whose name begins with `.wh.` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// Hide everything that lower layers have in the entry's directory.
    Opaque,
    /// Hide this name in the entry's directory.
    Name(&'a [u8]),
    /// It names the directory itself or its parent: no layer may have it.
    Invalid,
}

/// One entry of a layer's archive: a header with its extended records applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as archived.
    pub(super) name: Vec<u8>,
    /// The name cleaned: no `.`, `..`, empty parts or outer slashes; empty for the root.
    pub(super) path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Mode as archived; see [`Entry::permissions`].
    pub mode: i64,
    /// User id as archived; see [`Entry::owner`].
    pub uid: i64,
    /// Group id as archived; see [`Entry::owner`].
    pub gid: i64,
    /// Bytes of content, holes included.
    pub size: u64,
    /// Modification time as archived; see [`Time::on_disk`].
    pub mtime: Time,
    /// Access time, where the archive has one.
    pub atime: Option<Time>,
    /// Target of a hard link or symlink, as archived.
    pub link: Vec<u8>,
    /// Device number; zero where the header has none.
    pub device: Device,
    /// Extended attributes, all that the archive has; see [`Entry::settable_xattrs`].
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    pub(super) fn new() -> Self {
        Self {
            name: Vec::new(),
            path: Vec::new(),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::EPOCH,
            atime: None,
            link: Vec::new(),
            device: Device::default(),
            xattrs: BTreeMap::new(),
        }
    }

    /// Derives the path from the name.
    pub(super) fn clean(&mut self) {
        self.path.clear();
        for part in self.name.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    let end = self.path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                    self.path.truncate(end);
                }
                part => {
                    if !self.path.is_empty() {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(part);
                }
            }
        }
    }

    /// The name as archived.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Where the entry goes, relative to the layer's directory; empty for that directory itself, which is skipped.
    ///
    /// Symlinks of the layer on the way are not resolved yet.
    pub fn path(&self) -> &Path {
        path(&self.path)
    }

    /// The mode that the file gets: permissions, setuid, setgid and sticky bits.
    pub fn permissions(&self) -> u32 {
        u32::try_from(self.mode & 0o7777).unwrap_or(0)
    }

    /// The owner that the file gets: ids are cut to 32 bits, as the system call does.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cut is the contract")]
    pub fn owner(&self) -> Owner {
        let id = |id: i64| Some(id as u32).filter(|&id| id != u32::MAX);
        Owner { uid: id(self.uid), gid: id(self.gid) }
    }

    /// The whiteout that the entry is; `None` for an ordinary entry.
    pub fn whiteout(&self) -> Option<Whiteout<'_>> {
        let (_, base) = split(&self.path);
        let hidden = base.strip_prefix(b".wh.")?;
        Some(match hidden {
            b".wh..opq" => Whiteout::Opaque,
            b"" | b"." | b".." => Whiteout::Invalid,
            name => Whiteout::Name(name),
        })
    }

    /// The extended attributes that a layer may set: all but `trusted.*`, which would let a layer write overlay marks.
    pub fn settable_xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs
            .iter()
            .filter(|(name, _)| !name.starts_with(b"trusted."))
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
    }
}

/// Bytes as a path.
pub(super) fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Splits a clean path into its directory (empty for the root) and last part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Joins a clean directory path and a name.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !directory.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Entry {
        let mut entry = Entry::new();
        entry.name = name.as_bytes().to_vec();
        entry.clean();
        entry
    }

    #[test]
    fn paths_never_lead_upwards() {
        let cases = [
            ("", ""),
            (".", ""),
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("../..", ""),
            ("a", "a"),
            ("./a/", "a"),
            ("/a//b/./c/", "a/b/c"),
            ("../a", "a"),
            ("a/../b", "b"),
            ("a/../../b", "b"),
            ("a/b/..", "a"),
            ("a/..", ""),
            ("...", "..."),
        ];
        for (name, path) in cases {
            assert_eq!(named(name).path(), Path::new(path), "{name}");
        }
    }

    #[test]
    fn whiteouts_are_told_by_name() {
        let cases: [(&str, Option<Whiteout<'_>>); 9] = [
            ("a/.wh.b", Some(Whiteout::Name(b"b"))),
            (".wh.b/", Some(Whiteout::Name(b"b"))),
            ("a/.wh..wh..opq", Some(Whiteout::Opaque)),
            ("a/.wh..wh.aufs", Some(Whiteout::Name(b".wh.aufs"))),
            (".wh.", Some(Whiteout::Invalid)),
            ("a/.wh..", Some(Whiteout::Invalid)),
            ("a/.wh...", Some(Whiteout::Invalid)),
            (".wh.a/b", None),
            ("a.wh.b", None),
        ];
        for (name, whiteout) in cases {
            assert_eq!(named(name).whiteout(), whiteout, "{name}");
        }
    }

    #[test]
    fn ids_are_cut_to_32_bits() {
        let cases = [
            (0, Some(0)),
            (65_534, Some(65_534)),
            (-1, None),
            (i64::from(u32::MAX), None),
            ((1 << 32) + 5, Some(5)),
            (-2, Some(u32::MAX - 1)),
        ];
        for (id, expected) in cases {
            let entry = Entry { uid: id, gid: id, ..Entry::new() };
            assert_eq!(entry.owner(), Owner { uid: expected, gid: expected }, "{id}");
        }
    }

    #[test]
    fn times_outside_the_range_become_1970() {
        let at = |seconds, nanos| Time { seconds, nanos };
        let cases = [
            (at(5, 7), at(5, 7)),
            (at(-1, 999_999_999), Time::EPOCH),
            (LAST, LAST),
            (at(LAST.seconds, LAST.nanos + 1), Time::EPOCH),
            (at(i64::MAX, 0), Time::EPOCH),
            (at(i64::MIN, 0), Time::EPOCH),
        ];
        for (time, expected) in cases {
            assert_eq!(time.on_disk(), expected, "{time:?}");
        }
    }
}
