//! Where a path leads inside a directory, as continuity's `RootPath` finds it.
//!
//! Not the kernel's own resolution: parts that do not exist count as directories to be made, so a path
//! through a dangling symlink has a place too, and some `..` in link targets are taken off as text. Layers
//! were written against these rules, so they are followed to the letter; the result is a path without symlinks,
//! and whoever opens it forbids them, so a wrong result could not lead outside either.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::sys;

/// Symlinks on one path.
const LINKS: usize = 255;

/// Why a path leads nowhere.
#[derive(Debug)]
pub(super) enum Fault {
    /// More than 255 symlinks.
    Loop,
    /// The system's answer.
    System(Errno),
}

/// Resolves `path`, symlinks included, to a clean path relative to `root` without symlinks.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut walk = Walk { root, links: 0 };
    let mut path = path.to_vec();
    if path.is_empty() {
        return Ok(path);
    }
    loop {
        let before = walk.links;
        let walked = walk.walk(&path)?;
        if before == walk.links {
            let clean = rooted(&walked);
            if clean == path {
                return Ok(clean[1..].to_vec());
            }
            path = clean;
        } else {
            path = walked;
        }
    }
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    links: usize,
}

impl Walk<'_> {
    /// One pass over all parts of a path, first to last. A loop, since a hard link's target may have half a
    /// million of them.
    fn walk(&mut self, path: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut parts = path.split(|&b| b == b'/').filter(|part| !part.is_empty());
        let mut directory = match parts.next() {
            Some(first) if !path.starts_with(b"/") => self.step(first)?.0,
            Some(first) => self.enter(b"/", first)?,
            None => return Ok(b"/".to_vec()),
        };
        for part in parts {
            directory = self.enter(&directory, part)?;
        }
        Ok(directory)
    }

    fn enter(&mut self, directory: &[u8], part: &[u8]) -> Result<Vec<u8>, Fault> {
        let (next, is_link) = self.step(&joined(directory, part))?;
        if !is_link || next.starts_with(b"/") { Ok(next) } else { Ok(joined(directory, &next)) }
    }

    /// Reads the link at `path`; whatever is none, or is not there, stays.
    fn step(&mut self, path: &[u8]) -> Result<(Vec<u8>, bool), Fault> {
        if self.links > LINKS {
            return Err(Fault::Loop);
        }
        let path = rooted(path);
        if path == b"/" {
            return Ok((path, false));
        }
        let object = match sys::open_in_root(self.root, &path[1..]) {
            Ok(object) => object,
            Err(Errno::NOENT) => return Ok((path, false)),
            Err(e) => return Err(Fault::System(e)),
        };
        let stat = rustix::fs::fstat(&object).map_err(Fault::System)?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
            return Ok((path, false));
        }
        let target = rustix::fs::readlinkat(&object, "", Vec::new()).map_err(Fault::System)?;
        self.links += 1;
        Ok((target.into_bytes(), true))
    }
}

/// Cleans a path as text, as seen from the root: `..` takes off the part before it.
fn rooted(path: &[u8]) -> Vec<u8> {
    let mut clean = vec![b'/'];
    push_parts(&mut clean, path, true);
    clean
}

/// Joins and cleans as text; stays relative where `directory` is, so that leading `..` stay.
fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let both = [directory, b"/", name].concat();
    if directory.starts_with(b"/") {
        return rooted(&both);
    }
    let mut clean = Vec::with_capacity(both.len());
    push_parts(&mut clean, &both, false);
    if clean.is_empty() {
        clean.push(b'.');
    }
    clean
}

fn push_parts(clean: &mut Vec<u8>, path: &[u8], rooted: bool) {
    let root = usize::from(rooted);
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let start = clean.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
                if clean.len() > root && &clean[start..] != b".." {
                    clean.truncate(start.saturating_sub(1).max(root));
                } else if !rooted {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(b"..");
                }
            }
            part => {
                if clean.len() > root {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn cleans_as_text() {
        let cases = [
            ("a", "b", "a/b"),
            ("/a", "b", "/a/b"),
            ("/a", "../b", "/b"),
            ("/", "../../b", "/b"),
            ("a", "..", "."),
            ("a", "../..", ".."),
            ("..", "..", "../.."),
            ("a/b", "./../c//", "a/c"),
            ("link/..", "x", "x"),
        ];
        for (directory, name, expected) in cases {
            let clean = joined(directory.as_bytes(), name.as_bytes());
            assert_eq!(clean, expected.as_bytes(), "{directory} + {name}");
        }
    }

    #[test]
    fn stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("real/deep")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        for (target, name) in [
            ("real", "link"),
            ("/real/deep", "absolute"),
            ("../../../..", "up"),
            ("/etc", "host"),
            ("missing/place", "dangling"),
            ("link", "chain"),
            ("../../outside", "real/out"),
            ("loop", "loop"),
            ("absolute/..", "text"),
        ] {
            symlink(target, at(name)).unwrap();
        }
        let root = sys::open_root(dir.path()).unwrap();
        let cases = [
            ("", Some("")),
            ("real", Some("real")),
            ("link", Some("real")),
            ("link/deep", Some("real/deep")),
            ("absolute", Some("real/deep")),
            ("up/x", Some("x")),
            ("host/passwd", Some("etc/passwd")),
            ("dangling/x", Some("missing/place/x")),
            ("chain/x/y", Some("real/x/y")),
            ("real/out", Some("outside")),
            ("link/out/x", Some("outside/x")),
            ("../../real/../file", Some("file")),
            ("loop", None),
            ("loop/x", None),
            ("file/x", None),
            ("text", Some("real")),
        ];
        // As long as an extended header may be.
        let (down, up) = ("a/".repeat(1 << 19), format!("{}file", "../".repeat(1 << 18)));
        let cases = cases.into_iter().chain([(down.as_str(), None), (up.as_str(), Some("file"))]);
        for (path, expected) in cases {
            let resolved = resolve(root.as_fd(), path.as_bytes()).ok();
            let shown = &path[..path.len().min(20)];
            assert_eq!(resolved.as_deref(), expected.map(str::as_bytes), "{shown}");
        }
    }
}
