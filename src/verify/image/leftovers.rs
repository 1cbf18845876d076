//! What bakes, verifications and daemons leave beside and in a root, and what no baked root has.
//!
//! ```text
//! <root>/..  <root>/     .warmkit-…            a bake or a verification that was killed, or is at work
//! /  …  <root>/../..     .warmkit-verify-…     the same of a verification, where the root is in a user's directories
//! /var/tmp
//! /tmp /var/tmp /run     warmkit… buildkit-mount…
//! <root>/                buildkitd.lock        a daemon was started here
//!                        *.sock                sockets, as in /run/buildkit and /run/user/<uid>/buildkit
//!   <worker>/executor/   what a daemon's steps ran in
//! everything else that a bake does not write
//! ```
//!
//! A root that was baked has nothing but what is listed here, so that whatever a coming release leaves is seen, too.

use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};

use super::super::report::{FindingKind, Findings, Subject};
use super::sysroot::Sysroot;
use crate::root::files::{Tree, describe};
use crate::root::{HISTORY, LOCK, Root};

/// What the names of directories begin with in which a bake or a verification works.
const STAGING: &str = ".warmkit-";
/// Those of verifications, which may be higher up, too, and elsewhere.
const SCRATCH: &str = ".warmkit-verify-";

/// What a baked root may hold, from the root; `*` is the worker's directory, and of what is below a directory
/// that ends with `/` others judge.
const BAKED: [&str; 14] = [
    "cache.db",
    // mkfs.ext4 makes it, and verify reads it.
    "lost+found/",
    "*",
    "*/workerid",
    "*/metadata_v2.db",
    "*/containerdmeta.db",
    "*/content",
    "*/content/blobs/",
    "*/content/ingest",
    "*/snapshots",
    "*/snapshots/metadata.db",
    "*/snapshots/snapshots/",
    "*/executor",
    "*/cachemounts",
];

/// Looks at the root, the directories around it, and where programs keep what is temporary.
pub(super) fn check(sysroot: &Sysroot, path: &Path, root: &Root, findings: &mut Findings) {
    in_root(path, &root.tree, &root.workers, findings);
    beside(sysroot, path, &root.tree, findings);
    for directory in ["/tmp", "/var/tmp", "/run"] {
        let is_left = |name: &str, _| is_temporary(name);
        list(sysroot, Path::new(directory), is_left, FindingKind::LeftoverTemporary, TEMPORARY, findings);
    }
    let mut places = vec![PathBuf::from("/run/buildkit")];
    if let Ok(Some(users)) = sysroot.directory(Path::new("/run/user")) {
        let names = users.list(Path::new("")).unwrap_or_default();
        places
            .extend(names.into_iter().map(|(name, _)| Path::new("/run/user").join(name.0).join("buildkit")));
    }
    for place in places {
        let is_left = |_: &str, kind| kind == FileType::Socket;
        list(sysroot, &place, is_left, FindingKind::LeftoverSocket, SOCKET, findings);
    }
}

const TEMPORARY: &str = "a temporary file of a bake, a verification or a daemon; delete it";
const SOCKET: &str = "a socket that nobody listens on in a machine that boots; delete it";

/// What stands in a directory and should not.
fn list(
    sysroot: &Sysroot,
    directory: &Path,
    is_left: impl Fn(&str, FileType) -> bool,
    kind: FindingKind,
    detail: &str,
    findings: &mut Findings,
) {
    let Ok(Some(tree)) = sysroot.directory(directory) else { return };
    for (name, file_type) in tree.list(Path::new("")).unwrap_or_default() {
        if is_left(&name.0.to_string_lossy(), file_type) {
            findings.add(kind, Subject::file(&directory.join(&name.0)), detail);
        }
    }
}

/// Packer's scripts are not among them: one of those may be who runs this, and Packer deletes them.
fn is_temporary(name: &str) -> bool {
    let prefixes = ["warmkit-", "warmkit.", "buildkit-mount"];
    name == "warmkit" || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The directories of killed bakes, in which the next root was to be made.
fn beside(sysroot: &Sysroot, root: &Path, tree: &Tree, findings: &mut Findings) {
    let mut seen = Vec::new();
    let mut look = |place: &Path, prefix| {
        let Ok(Some(directory)) = sysroot.directory(place) else { return };
        let id = fstat(&directory).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if !seen.contains(&id) {
            seen.push(id);
            staging(&directory, place, prefix, findings);
        }
    };
    // The root may be a link: where the link stands, and where that leads to.
    for place in [root.parent().map(Path::to_owned), Some(root.join(".."))].into_iter().flatten() {
        look(&place, STAGING);
    }
    for place in root.ancestors().skip(2).chain(["/var/tmp".as_ref()]) {
        look(place, SCRATCH);
    }
    staging(tree, root, STAGING, findings);
}

fn staging(directory: &Tree, place: &Path, prefix: &str, findings: &mut Findings) {
    for (name, _) in directory.list(Path::new("")).unwrap_or_default() {
        if !name.0.to_string_lossy().starts_with(prefix) {
            continue;
        }
        let detail = match directory.lock(Path::new(&name.0)) {
            Err(_) => "a bake or a verification is at work in it; wait for its end",
            Ok(_) => "left by a bake or a verification that was killed; delete it",
        };
        findings.add(FindingKind::LeftoverStaging, Subject::file(&place.join(&name.0)), detail);
    }
}

/// What is in the root beyond that which a bake writes, and beyond that which others judge.
fn in_root(root: &Path, tree: &Tree, workers: &[PathBuf], findings: &mut Findings) {
    let is_worker = |path: &Path| workers.iter().any(|worker| worker == path);
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for (name, kind) in tree.list(&directory).unwrap_or_default() {
            let path = directory.join(&name.0);
            match judge(&path, kind, is_worker) {
                Judgement::Baked { look } => directories.extend(look.then_some(path)),
                Judgement::Left(kind, detail) => findings.add(kind, Subject::file(&root.join(path)), detail),
                Judgement::Elsewhere => {}
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// A bake writes it; whether to look into it.
    Baked {
        look: bool,
    },
    Left(FindingKind, String),
    /// A finding of others, if any.
    Elsewhere,
}

fn judge(path: &Path, kind: FileType, is_worker: impl Fn(&Path) -> bool) -> Judgement {
    let mut names = path.components().map(|part| part.as_os_str().to_string_lossy());
    let first = names.next().unwrap_or_default();
    let rest: Vec<_> = names.collect();
    if kind == FileType::Socket {
        return Judgement::Left(FindingKind::LeftoverSocket, SOCKET.to_owned());
    }
    if rest.is_empty() && (first.starts_with(STAGING) || first == HISTORY) {
        return Judgement::Elsewhere;
    }
    if rest.is_empty() && first == LOCK {
        let detail = "a daemon was started on this root, which is not as it was baked any more; bake it anew, or \
                      delete the file";
        return Judgement::Left(FindingKind::LeftoverLock, detail.to_owned());
    }
    let of_worker = path.components().next().is_some_and(|first| is_worker(first.as_ref()));
    let known = if of_worker {
        [&["*".into()], &rest[..]].concat().join("/")
    } else {
        [&[first], &rest[..]].concat().join("/")
    };
    if let Some(pattern) = BAKED.iter().find(|pattern| pattern.trim_end_matches('/') == known) {
        return Judgement::Baked { look: kind == FileType::Directory && !pattern.ends_with('/') };
    }
    let what = if of_worker && rest.first().is_some_and(|name| name == "executor") {
        "of a step that ran, or of a daemon that can run some"
    } else if of_worker && rest.first().is_some_and(|name| name == "cachemounts") {
        "of a cache mount"
    } else if rest.starts_with(&["content".into(), "ingest".into()]) {
        "of a transfer that did not end"
    } else {
        "which no bake writes"
    };
    Judgement::Left(
        FindingKind::LeftoverFile,
        format!("{}, {what}; bake the root anew, or delete it", describe(kind)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_a_bake_writes() {
        use FindingKind::{LeftoverFile, LeftoverLock, LeftoverSocket};

        let (file, directory, socket) = (FileType::RegularFile, FileType::Directory, FileType::Socket);
        let kind =
            |path: &str, kind| match judge(Path::new(path), kind, |worker| worker == Path::new("runc-x")) {
                Judgement::Left(kind, _) => Some(Some(kind)),
                Judgement::Baked { look } => look.then_some(None),
                Judgement::Elsewhere => None,
            };
        for (path, found, expected) in [
            ("cache.db", file, None),
            ("history.db", file, None),
            (".warmkit-abc", directory, None),
            ("lost+found", directory, None),
            ("runc-x", directory, Some(None)),
            ("runc-x/content", directory, Some(None)),
            ("runc-x/content/blobs", directory, None),
            ("runc-x/snapshots/snapshots", directory, None),
            ("runc-x/executor", directory, Some(None)),
            ("buildkitd.lock", file, Some(Some(LeftoverLock))),
            ("otel-grpc.sock", socket, Some(Some(LeftoverSocket))),
            ("cache.db.abc.bak", file, Some(Some(LeftoverFile))),
            ("net", directory, Some(Some(LeftoverFile))),
            ("runc-y", directory, Some(Some(LeftoverFile))),
            ("runc-x/executor/resolv.conf", file, Some(Some(LeftoverFile))),
            ("runc-x/content/ingest/0123", directory, Some(Some(LeftoverFile))),
            ("runc-x/content/other", file, Some(Some(LeftoverFile))),
        ] {
            assert_eq!(kind(path, found), expected, "{path}");
        }
    }

    #[test]
    fn knows_temporary_names() {
        for name in ["warmkit", "warmkit-a1", "warmkit.Xy", "buildkit-mount12"] {
            assert!(is_temporary(name), "{name}");
        }
        for name in ["warmkits", "script_1.sh", "ssh-xyz", "buildkit"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
