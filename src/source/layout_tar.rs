//! Files in a tar, read where they stand: no copy, and no unpacking.
//!
//! ```text
//! tar  ── one pass over the headers ──> name ─> offset and length
//! read ── pread at the offset ────────> bytes, from any number of threads
//! ```
//!
//! Names are taken as `tar -x` would lay them out in an empty directory: `./a` and `/a` are `a`, the last
//! of several entries of one name counts, links lead to other entries. What leads out of the tar leads
//! nowhere. The `tar` crate reads the headers, with GNU's and POSIX's long names and sizes.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tar::EntryType;

use super::Error;

/// The most entries that are listed: a layout has a few for each layer.
const MAX_ENTRIES: usize = 1 << 20;
/// The most bytes of headers and long names that one entry may have.
const MAX_HEADERS: u64 = 1 << 20;
/// The most links that are followed from one name, as in a file system.
const MAX_LINKS: usize = 40;

/// What a compressed file starts with, what that is called, and what makes a plain file of it.
const COMPRESSED: [(&[u8], &str, &str); 5] = [
    (&[0x1f, 0x8b], "gzip", "gunzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "unzstd"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "unxz"),
    (b"BZh", "bzip2", "bunzip2"),
    (&[0x04, 0x22, 0x4d, 0x18], "lz4", "unlz4"),
];

#[derive(Debug)]
enum Entry {
    File {
        at: u64,
        len: u64,
    },
    /// Leads to another entry, by its name in the tar.
    Link(String),
    /// Leads out of the tar, or is nothing that has bytes.
    Other(&'static str),
}

/// A tar whose entries are known.
#[derive(Debug, Clone)]
pub(super) struct LayoutTar {
    path: PathBuf,
    file: Arc<File>,
    entries: Arc<HashMap<String, Entry>>,
}

/// The bytes of one file of a tar.
pub(super) struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Part {
    /// Leaves out the next bytes.
    pub(super) fn skip(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.at += bytes;
        self.left -= bytes;
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar became shorter"));
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// A file whose headers are read: ends when one entry has too many of them.
struct Metered<'a> {
    file: &'a File,
    left: Rc<Cell<u64>>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("an entry has too long a name, or too many"))?);
        Ok(read)
    }
}

impl Seek for Metered<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl LayoutTar {
    /// Reads the headers of the tar at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no tar, is compressed, or ends too early.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        check_plain(path, &file).map_err(read)??;
        let entries = list(path, &file, len)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), entries: Arc::new(entries) })
    }

    /// The bytes of a file and how many they are; `None` where there is no such entry.
    ///
    /// # Errors
    /// The entry is no file, or leads to none.
    pub(super) fn file(&self, name: &str) -> Result<Option<(Part, u64)>, Error> {
        let fault =
            |reason: &str| Error::Tar { path: self.path.clone(), reason: format!("{name}: {reason}") };
        let mut at = name;
        for _ in 0..=MAX_LINKS {
            match self.entries.get(at) {
                None if at == name => return Ok(None),
                None => return Err(fault(&format!("leads to {at}, which is not in the tar"))),
                Some(Entry::Link(target)) => at = target,
                Some(Entry::Other(what)) => return Err(fault(what)),
                Some(&Entry::File { at, len }) => {
                    return Ok(Some((Part { file: Arc::clone(&self.file), at, left: len }, len)));
                }
            }
        }
        Err(fault("leads through too many links"))
    }

    /// The directory of the only `index.json` that is not at the top, for messages: what was packed one level
    /// too high.
    pub(super) fn nested(&self) -> Option<String> {
        let mut found = self.entries.keys().filter_map(|name| name.strip_suffix("/index.json"));
        let first = found.next()?;
        found.next().is_none().then(|| first.escape_debug().to_string())
    }
}

/// Refuses what only looks like a tar once it was decompressed.
fn check_plain(path: &Path, file: &File) -> io::Result<Result<(), Error>> {
    let mut head = [0; 8];
    let read = file.read_at(&mut head, 0)?;
    let found = COMPRESSED.iter().find(|(magic, ..)| head[..read].starts_with(magic));
    Ok(match found {
        Some((_, format, command)) => Err(Error::NotALayout {
            path: path.to_owned(),
            reason: format!("it is compressed with {format}; a tar is read in place: {command} it first"),
        }),
        None => Ok(()),
    })
}

fn list(path: &Path, file: &File, len: u64) -> Result<HashMap<String, Entry>, Error> {
    let fault = |reason: String| Error::Tar { path: path.to_owned(), reason };
    let left = Rc::new(Cell::new(MAX_HEADERS));
    let mut archive = tar::Archive::new(Metered { file, left: Rc::clone(&left) });
    let mut entries = HashMap::new();
    let mut count = 0;
    let broken = |error: io::Error, count: usize| match count {
        0 => Error::NotALayout { path: path.to_owned(), reason: "neither a directory nor a tar".to_owned() },
        // A tar is whole blocks of 512 bytes.
        _ if !len.is_multiple_of(512) => {
            fault(format!("it ends in the header of entry {count}: copy it again"))
        }
        _ => fault(format!("entry {count}: {error}")),
    };
    for entry in archive.entries_with_seek().map_err(|error| broken(error, 0))? {
        let entry = entry.map_err(|error| broken(error, count))?;
        left.set(MAX_HEADERS);
        count += 1;
        if count > MAX_ENTRIES {
            return Err(fault(format!("it has more than {MAX_ENTRIES} entries")));
        }
        let kind = entry.header().entry_type();
        let raw_name = entry.path_bytes();
        let (at, size) = (entry.raw_file_position(), entry.size());
        if matches!(kind, EntryType::Regular | EntryType::Continuous)
            && at.checked_add(size).is_none_or(|end| end > len)
        {
            let name = String::from_utf8_lossy(&raw_name).into_owned();
            return Err(fault(format!("it ends in the middle of {name:?}: copy it again")));
        }
        // What is not UTF-8 is no file of a layout, and what leads out of the tar is none either.
        let Some(name) = std::str::from_utf8(&raw_name).ok().and_then(|name| resolve("", name)) else {
            continue;
        };
        let target = entry.link_name_bytes();
        let target = target.as_deref().and_then(|target| std::str::from_utf8(target).ok());
        let link = |target: Option<String>| target.map_or(Entry::Other("leads out of the tar"), Entry::Link);
        let found = match kind {
            EntryType::Regular | EntryType::Continuous => Entry::File { at, len: size },
            EntryType::Link => link(target.and_then(|target| resolve("", target))),
            EntryType::Symlink => {
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                let inside = target.filter(|target| !target.starts_with('/'));
                link(inside.and_then(|target| resolve(directory, target)))
            }
            EntryType::GNUSparse => Entry::Other("packed as a sparse file: pack it without --sparse"),
            EntryType::Directory => Entry::Other("not a regular file"),
            kind if kind.is_pax_global_extensions() => continue,
            _ => Entry::Other("not a regular file"),
        };
        entries.insert(name, found);
    }
    if count == 0 {
        return Err(Error::NotALayout { path: path.to_owned(), reason: "it is an empty tar".to_owned() });
    }
    Ok(entries)
}

/// `name`, seen from `directory`, as a path without `.` and `..`; `None` where it leads out of the tar.
fn resolve(directory: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for component in Path::new(name).components() {
        match component {
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::Normal(part) => parts.push(part.to_str()?),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, content: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0);
        if matches!(kind, EntryType::Link | EntryType::Symlink) {
            header.set_size(0);
            tar.append_link(&mut header, name, content).unwrap();
        } else {
            header.set_size(content.len() as u64);
            // `append_data` refuses names that a hostile tar has.
            let bytes = name.as_bytes();
            let fits = bytes.len().min(100);
            header.as_old_mut().name[..fits].copy_from_slice(&bytes[..fits]);
            header.set_cksum();
            if fits < bytes.len() {
                tar.append_data(&mut header, name, content.as_bytes()).unwrap();
            } else {
                tar.append(&header, content.as_bytes()).unwrap();
            }
        }
    }

    /// Files with these contents, in this order.
    fn files(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (name, content) in entries {
            entry(&mut tar, EntryType::Regular, name, content);
        }
        tar.into_inner().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<LayoutTar, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        LayoutTar::open(file.path())
    }

    fn read(tar: &LayoutTar, name: &str) -> Result<Option<String>, Error> {
        Ok(tar.file(name)?.map(|(mut part, len)| {
            let mut text = String::new();
            part.read_to_string(&mut text).unwrap();
            assert_eq!(text.len() as u64, len);
            text
        }))
    }

    #[test]
    fn reads_files_as_tar_would_lay_them_out() {
        let long = format!("blobs/{}end", "deep/".repeat(40));
        let tar = open(&files(&[
            ("./index.json", "old"),
            ("/oci-layout", "absolute"),
            (&long, "long"),
            ("a/b/../c", "up"),
            ("../outside", "never"),
            ("index.json", "new"),
            ("empty", ""),
        ]))
        .unwrap();
        let cases = [
            ("index.json", Some("new")),
            ("oci-layout", Some("absolute")),
            (long.as_str(), Some("long")),
            ("a/c", Some("up")),
            ("outside", None),
            ("empty", Some("")),
            ("absent", None),
        ];
        for (name, expected) in cases {
            assert_eq!(read(&tar, name).unwrap().as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn takes_names_and_sizes_from_posix_records() {
        let name = format!("blobs/{}", "x".repeat(300));
        let mut tar = Builder::new(Vec::new());
        let path = name.clone();
        tar.append_pax_extensions([("path", path.as_bytes()), ("size", b"4")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_size(4);
        header.set_cksum();
        tar.append(&header, &b"data"[..]).unwrap();
        let tar = open(&tar.into_inner().unwrap()).unwrap();
        assert_eq!(read(&tar, &name).unwrap().as_deref(), Some("data"));
    }

    #[test]
    fn follows_links_inside_the_tar_only() {
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, EntryType::Regular, "store/file", "bytes");
        entry(&mut tar, EntryType::Symlink, "blobs/a/near", "../../store/file");
        entry(&mut tar, EntryType::Link, "blobs/hard", "./store/file");
        entry(&mut tar, EntryType::Symlink, "chain", "blobs/hard");
        entry(&mut tar, EntryType::Symlink, "passwd", "/etc/passwd");
        entry(&mut tar, EntryType::Symlink, "up", "../../../etc/passwd");
        entry(&mut tar, EntryType::Symlink, "loop", "loop");
        entry(&mut tar, EntryType::Symlink, "dangling", "nowhere");
        entry(&mut tar, EntryType::Directory, "directory", "");
        entry(&mut tar, EntryType::Fifo, "fifo", "");
        let tar = open(&tar.into_inner().unwrap()).unwrap();
        for name in ["blobs/a/near", "blobs/hard", "chain"] {
            assert_eq!(read(&tar, name).unwrap().as_deref(), Some("bytes"), "{name}");
        }
        let cases = [
            ("passwd", "passwd: leads out of the tar"),
            ("up", "up: leads out of the tar"),
            ("loop", "loop: leads through too many links"),
            ("dangling", "dangling: leads to nowhere, which is not in the tar"),
            ("directory", "directory: not a regular file"),
            ("fifo", "fifo: not a regular file"),
        ];
        for (name, expected) in cases {
            let text = read(&tar, name).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let good = files(&[("index.json", "{}"), ("blobs/x", &"y".repeat(2000))]);
        let mut checksum = good.clone();
        checksum[1024] ^= 1;
        let mut nameless = Builder::new(Vec::new());
        entry(&mut nameless, EntryType::GNULongName, "././@LongLink", &"n".repeat(2 << 20));
        entry(&mut nameless, EntryType::Regular, "file", "");
        let mut sparse = good.clone();
        sparse.truncate(1024);
        let mut huge = Header::new_gnu();
        huge.set_path("blobs/huge").unwrap();
        huge.set_size(u64::MAX >> 1);
        huge.set_cksum();
        sparse.extend(huge.as_bytes());
        let cases: [(&[u8], &str); 11] = [
            (b"", "is not an OCI layout: it is an empty tar"),
            (&[0; 1024], "it is an empty tar"),
            (b"{\"schemaVersion\":2}", "is not an OCI layout: neither a directory nor a tar"),
            (&[b'x'; 2048], "neither a directory nor a tar"),
            (&[0x1f, 0x8b, 8, 0, 0], "it is compressed with gzip; a tar is read in place: gunzip it first"),
            (&[0x28, 0xb5, 0x2f, 0xfd, 0], "it is compressed with zstd"),
            (&good[..2000], "it ends in the middle of \"blobs/x\": copy it again"),
            (&good[..1500], "it ends in the header of entry 1"),
            (&checksum, "entry 1: archive header checksum mismatch"),
            (&nameless.into_inner().unwrap(), "neither a directory nor a tar"),
            (&sparse, "it ends in the middle of \"blobs/huge\""),
        ];
        for (bytes, expected) in cases {
            let text = open(bytes).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}\n  wanted: {expected}");
        }
        let absent = LayoutTar::open(Path::new("/nonexistent/cache.tar")).unwrap_err().to_string();
        assert!(absent.contains("cannot read /nonexistent/cache.tar"), "{absent}");
    }

    #[test]
    fn a_name_has_a_limit() {
        let mut tar = Builder::new(Vec::new());
        entry(&mut tar, EntryType::Regular, "index.json", "{}");
        entry(&mut tar, EntryType::GNULongName, "././@LongLink", &"n".repeat(2 << 20));
        entry(&mut tar, EntryType::Regular, "file", "");
        let text = open(&tar.into_inner().unwrap()).unwrap_err().to_string();
        assert!(text.contains("entry 1: an entry has too long a name, or too many"), "{text}");
    }

    #[test]
    fn a_tar_that_shrinks_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), files(&[("blobs/x", "0123456789")])).unwrap();
        let tar = LayoutTar::open(file.path()).unwrap();
        file.as_file().set_len(515).unwrap();
        let (mut part, _) = tar.file("blobs/x").unwrap().unwrap();
        let error = part.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn finds_what_was_packed_one_level_too_high() {
        let nested = open(&files(&[("cache/index.json", "{}"), ("cache/blobs/x", "")])).unwrap();
        assert_eq!(nested.nested().as_deref(), Some("cache"));
        let two = open(&files(&[("a/index.json", "{}"), ("b/index.json", "{}")])).unwrap();
        assert_eq!(two.nested(), None);
    }
}
