//! Directories and inodes: read by listing the ones and asking for the others.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, RawDir, Stat};

use super::account::Account;
use super::files::{self, Unread};
use super::parallel;
use super::run::{Run, Tally};

/// Bytes for the entries of a directory, a call's worth.
const ENTRIES: usize = 32 << 10;

/// What is in a directory and to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directory {
    /// From the root.
    pub(super) path: PathBuf,
    /// Regular files that are not empty, in the order of their names.
    pub(super) files: Vec<File>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: OsString,
    pub(super) size: u64,
    /// What of it stands on the disk: less than the size where there are holes.
    pub(super) stored: u64,
}

/// How far a walk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// What is in the directories, and their subdirectories' own inodes.
    Shallow,
    /// Everything below.
    All,
}

struct Listed {
    /// Which of the starts led here.
    start: usize,
    directory: Directory,
    below: Vec<PathBuf>,
}

/// Reads directories, and all inodes in them, from each of `starts`; gives what is in them, in the order of
/// `starts`. What `skip` names is passed over, with all below.
pub(super) fn walk(
    run: &Run<'_>,
    starts: Vec<PathBuf>,
    depth: Depth,
    skip: &BTreeSet<PathBuf>,
) -> Vec<Directory> {
    let mut found: Vec<(usize, Directory)> = Vec::new();
    let mut level: Vec<(usize, PathBuf)> = starts.into_iter().enumerate().collect();
    while !level.is_empty() {
        let listed = parallel::each(run.jobs(), &level, Account::open, |account, (start, path)| {
            run.may_begin(0)?;
            let mut tally = Tally::default();
            let listed = list(run, *start, path, skip, &mut tally);
            let fetched = account.since_last();
            run.settle(0, fetched.unwrap_or_default());
            tally.from_disk += fetched.unwrap_or_default();
            run.count(tally);
            Some(listed)
        });
        level.clear();
        for Listed { start, directory, below } in listed {
            if depth == Depth::All {
                level.extend(below.into_iter().map(|path| (start, path)));
            }
            found.push((start, directory));
        }
    }
    found.sort_by_key(|(start, _)| *start);
    found.into_iter().map(|(_, directory)| directory).collect()
}

fn list(run: &Run<'_>, start: usize, path: &Path, skip: &BTreeSet<PathBuf>, tally: &mut Tally) -> Listed {
    let mut listed = Listed {
        start,
        directory: Directory { path: path.to_owned(), files: Vec::new() },
        below: Vec::new(),
    };
    match files::open_directory(run.root(), path) {
        Ok(directory) => {
            tally.directories += 1;
            if let Err(unread) = entries(run, &directory, skip, &mut listed) {
                tally.unread(path, unread);
            }
        }
        Err(unread) => tally.unread(path, unread),
    }
    listed.directory.files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listed.below.sort_unstable();
    listed
}

fn entries(
    run: &Run<'_>,
    directory: &OwnedFd,
    skip: &BTreeSet<PathBuf>,
    listed: &mut Listed,
) -> Result<(), Unread> {
    files::touch_xattrs(directory);
    let mut buffer = [const { MaybeUninit::uninit() }; ENTRIES];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match files::stat(directory, name) {
            Ok(stat) => add(run, directory, name, &stat, skip, listed),
            Err(Unread::Gone) => {}
            Err(unread) => return Err(unread),
        }
    }
    Ok(())
}

fn add(
    run: &Run<'_>,
    directory: &OwnedFd,
    name: &CStr,
    stat: &Stat,
    skip: &BTreeSet<PathBuf>,
    listed: &mut Listed,
) {
    let as_text = OsStr::from_bytes(name.to_bytes());
    let path = || listed.directory.path.join(as_text);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if skip.is_empty() || !skip.contains(&path()) => listed.below.push(path()),
        FileType::RegularFile if stat.st_size > 0 && (skip.is_empty() || !skip.contains(&path())) => {
            // Under its other names it has been found already.
            if stat.st_nlink > 1 && !run.is_new(stat) {
                return;
            }
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            let stored = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512).min(size);
            listed.directory.files.push(File { name: as_text.to_owned(), size, stored });
        }
        // A short target stands in the inode.
        FileType::Symlink if stat.st_blocks > 0 => files::touch_link(directory, name),
        _ => {}
    }
}
