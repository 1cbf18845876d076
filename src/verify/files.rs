//! Type, mode and owner of the files of a root.

use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::report::{FindingKind, Findings, Subject};
use crate::root::files::{Tree, describe};

/// What a state file must be, and at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) directory: bool,
    /// Permission bits that a daemon gives; fewer are no fault.
    pub(super) mode: u32,
}

pub(super) const fn directory(mode: u32) -> Expected {
    Expected { directory: true, mode }
}

pub(super) const fn file(mode: u32) -> Expected {
    Expected { directory: false, mode }
}

/// Checks type, mode and owner of a state file. False where it is not there or of the wrong type.
pub(super) fn check(
    tree: &Tree,
    path: &Path,
    expected: Expected,
    owner: u32,
    findings: &mut Findings,
) -> bool {
    let stat = match tree.stat(path) {
        Ok(stat) => stat,
        Err(fault) => {
            findings.file(path, fault);
            return false;
        }
    };
    let wanted = if expected.directory { FileType::Directory } else { FileType::RegularFile };
    let found = FileType::from_raw_mode(stat.st_mode);
    if found != wanted {
        let detail = format!("{} where {} is needed", describe(found), describe(wanted));
        findings.add(FindingKind::StateFileType, Subject::file(path), detail);
        return false;
    }
    rights(path, &stat, expected.mode, owner, findings);
    true
}

/// Checks mode and owner of a state file that was read: whether it is there, and a file, was told then.
pub(super) fn check_rights(tree: &Tree, path: &Path, mode: u32, owner: u32, findings: &mut Findings) {
    if let Ok(stat) = tree.stat(path)
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    {
        rights(path, &stat, mode, owner, findings);
    }
}

fn rights(path: &Path, stat: &Stat, expected: u32, owner: u32, findings: &mut Findings) {
    let mode = stat.st_mode & 0o7777;
    if mode & !expected != 0 {
        let detail = format!("mode {mode:04o}, a daemon gives {expected:04o}");
        findings.add(FindingKind::StateFileMode, Subject::file(path), detail);
    }
    if stat.st_uid != owner {
        let detail = format!("owner {}, the root belongs to {owner}", stat.st_uid);
        findings.add(FindingKind::StateFileOwner, Subject::file(path), detail);
    }
}
