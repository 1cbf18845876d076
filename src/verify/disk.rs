//! Snapshot directories and blob files, against what the databases say of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FileType;

use super::files::{self, directory, file};
use super::parallel;
use super::report::{FindingKind, Findings, Subject};
use crate::digest::{Digest, Hasher};
use crate::progress::{Event, Progress};
use crate::root::fault::text;
use crate::root::files::{FileFault, Tree, blobs, describe, has_upper, snapshots, upper, walk};
use crate::root::{Containerd, FaultKind, Kind, Snapshotter, Stored, Worker};

/// What a look at the disk needs besides what it looks at.
pub(super) struct Look<'a> {
    /// The root.
    pub(super) root: &'a Tree,
    /// Who owns it.
    pub(super) owner: u32,
    /// Threads.
    pub(super) jobs: usize,
    /// Who watches.
    pub(super) progress: &'a dyn Progress,
}

/// How much of a blob is in memory at a time, per thread.
const BUFFER: usize = 1 << 18;

/// Whether a snapshot has a directory of its own; `known`: containerd's metadata has it.
///
/// - A view of another snapshot has none with the native snapshotter, which mounts its parent's read-only
///   (containerd `plugins/snapshots/native/native.go`, `createSnapshot`).
/// - That of one which containerd's metadata does not know any more may be gone already: the native snapshotter moves
///   it away before its own transaction ends (`Remove`), and a next collection takes the rest.
fn needs_directory(snapshotter: &str, stored: &Stored, known: bool) -> bool {
    let is_mere_view = !has_upper(snapshotter) && stored.kind == Kind::View && stored.parent.is_some();
    known && !is_mere_view
}

/// Whether something stands where a new snapshot's directory is to be, and is no empty directory: snapshotters make
/// directories under another name and rename them, and remove what was in the way when they fail (containerd
/// `plugins/snapshots/overlay/overlay.go`, `createSnapshot`, and those of the others).
fn is_in_the_way(root: &Tree, path: &Path, store: &Snapshotter) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let number = name.parse::<u64>().ok().filter(|number| number.to_string() == name);
    number.is_some_and(|number| number > store.sequence)
        && !root.list(path).is_ok_and(|entries| entries.is_empty())
}

/// Checks every snapshot's directory, and counts the inodes of committed ones.
pub(super) fn check_snapshots(
    look: &Look<'_>,
    worker: &Worker,
    store: &Snapshotter,
    findings: &mut Findings,
) {
    let (snapshotter, containerd) = (worker.snapshotter.as_str(), worker.containerd.as_ref());
    let worker = worker.path.as_path();
    // Without containerd's metadata all count as known.
    let known: Option<BTreeSet<&str>> = containerd.map(|containerd| {
        containerd.snapshots.values().filter_map(|snapshot| snapshot.name.as_deref()).collect()
    });
    let ids: BTreeSet<String> = store.snapshots.values().map(|stored| stored.id.to_string()).collect();
    match look.root.list(&snapshots(worker)) {
        Ok(names) => {
            for (name, _) in names {
                if name.0.to_str().is_some_and(|name| ids.contains(name)) {
                    continue;
                }
                let path = snapshots(worker).join(&name.0);
                if is_in_the_way(look.root, &path, store) {
                    let detail = "a new snapshot is to have its number: the build that makes it fails, once";
                    findings.add(FindingKind::SnapshotDirectoryTaken, Subject::file(&path), detail);
                } else {
                    let detail = "no snapshot has this directory";
                    findings.add(FindingKind::SnapshotDirectoryOrphaned, Subject::file(&path), detail);
                }
            }
        }
        Err(fault) => {
            findings.file(&snapshots(worker), fault);
            return;
        }
    }
    let all: Vec<(&String, &Stored)> = store.snapshots.iter().collect();
    let outcomes = parallel::each(look.jobs, &all, |(name, stored), (): &mut (), findings| {
        let known = known.as_ref().is_none_or(|known| known.contains(name.as_str()));
        let path = snapshots(worker).join(stored.id.to_string());
        if needs_directory(snapshotter, stored, known) || look.root.stat(&path).is_ok() {
            check_snapshot(look, worker, snapshotter, name, stored, findings);
        }
    });
    for ((), found) in outcomes {
        findings.append(found);
    }
}

fn check_snapshot(
    look: &Look<'_>,
    worker: &Path,
    snapshotter: &str,
    name: &str,
    stored: &Stored,
    findings: &mut Findings,
) {
    let path = snapshots(worker).join(stored.id.to_string());
    let mut needed = vec![path.clone()];
    if has_upper(snapshotter) {
        needed.push(path.join("fs"));
        // A view is never written to.
        if stored.kind != Kind::View {
            needed.push(path.join("work"));
        }
    }
    for (index, path) in needed.iter().enumerate() {
        // Mode and owner of the tree itself are the layer's.
        let is_tree = path.ends_with("fs") || !has_upper(snapshotter);
        let found = match look.root.stat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                Some(format!("{} stands there", describe(FileType::from_raw_mode(stat.st_mode))))
            }
            Ok(_) if is_tree => None,
            Ok(_) => {
                files::check(look.root, path, directory(0o711), look.owner, findings);
                None
            }
            Err(FileFault { detail, .. }) => Some(detail),
        };
        if let Some(found) = found {
            let detail = format!("directory of snapshot {name}: {found}");
            findings.add(FindingKind::SnapshotDirectoryMissing, Subject::file(path), detail);
            if index == 0 {
                return;
            }
        }
    }
    let upper = upper(worker, snapshotter, stored.id);
    if let Some(expected) = stored.inodes
        && let Ok(tree) = look.root.subtree(&upper)
    {
        let mut inodes = BTreeSet::new();
        let faults = walk(&tree, |_, stat| {
            inodes.insert((stat.st_dev, stat.st_ino));
        });
        for (path, fault) in faults {
            findings.add(FindingKind::StateFileUnreadable, Subject::file(&upper.join(path)), fault.detail);
        }
        let found = inodes.len();
        if i64::try_from(found) != Ok(expected) {
            let detail = format!("{found} inodes, {expected} when snapshot {name} was committed");
            findings.add(FindingKind::SnapshotInodes, Subject::file(&upper), detail);
        }
    }
}

/// Checks every blob file: there, as long as recorded, with the bytes that its name says. Returns how many
/// bytes were hashed, and the blobs that are sound.
pub(super) fn check_blobs(
    look: &Look<'_>,
    worker: &Path,
    containerd: &Containerd,
    findings: &mut Findings,
) -> (u64, BTreeSet<Digest>) {
    let directory = blobs(worker);
    let mut found: BTreeSet<Digest> = BTreeSet::new();
    match look.root.list(&directory) {
        Ok(names) => {
            for (name, _) in names {
                match digest_of(&name.0) {
                    Some(digest) if containerd.sizes.contains_key(&digest) => {
                        found.insert(digest);
                    }
                    _ => {
                        let detail = "containerd's metadata does not know it";
                        let path = directory.join(&name.0);
                        findings.add(FindingKind::BlobFileOrphaned, Subject::file(&path), detail);
                    }
                }
            }
        }
        // No blob yet: the directory is made with the first.
        Err(fault) if fault.kind == FaultKind::FileMissing => {}
        Err(fault) => {
            findings.file(&directory, fault);
            return (0, BTreeSet::new());
        }
    }
    for digest in containerd.sizes.keys().filter(|digest| !found.contains(digest)) {
        let detail = format!("no file {}", text(directory.join(digest.hex()).as_os_str().as_bytes()));
        findings.add(FindingKind::BlobFileMissing, Subject::blob(digest), detail);
    }
    let mut all: Vec<_> =
        found.iter().filter_map(|digest| Some((*digest, containerd.sizes.get(digest)?))).collect();
    // The longest first, so that no thread starts on it when the others are done.
    all.sort_by_key(|(digest, sizes)| (std::cmp::Reverse(sizes.iter().filter_map(|s| s.1).max()), *digest));
    let outcomes =
        parallel::each(look.jobs, &all, |(digest, sizes), outcome: &mut (u64, Vec<Digest>), findings| {
            let path = directory.join(digest.hex());
            // A daemon makes it 0666, and 0444 once it stands here: one killed in between leaves it so.
            if files::check(look.root, &path, file(0o666), look.owner, findings)
                && check_blob(look, &path, digest, sizes, &mut outcome.0, findings)
            {
                outcome.1.push(*digest);
            }
        });
    let (mut bytes, mut sound) = (0, BTreeSet::new());
    for ((hashed, good), found) in outcomes {
        bytes += hashed;
        sound.extend(good);
        findings.append(found);
    }
    (bytes, sound)
}

fn check_blob(
    look: &Look<'_>,
    path: &Path,
    digest: &Digest,
    sizes: &[(String, Option<i64>)],
    hashed: &mut u64,
    findings: &mut Findings,
) -> bool {
    let (size, actual) = match hash(look.root, path, digest, look.progress) {
        Ok(read) => read,
        Err(fault) => {
            findings.file(path, fault);
            return false;
        }
    };
    *hashed += size;
    let mut sound = true;
    for (namespace, expected) in sizes {
        if let Some(expected) = expected
            && i64::try_from(size) != Ok(*expected)
        {
            let detail = format!("{size} bytes, namespace {namespace} says {expected}");
            findings.add(FindingKind::BlobSize, Subject::blob(digest), detail);
            sound = false;
        }
    }
    if actual != *digest {
        findings.add(FindingKind::BlobDigest, Subject::blob(digest), format!("its bytes have {actual}"));
        sound = false;
    }
    if sound {
        look.progress.event(Event::BlobDone { digest: *digest });
    }
    sound
}

fn hash(
    root: &Tree,
    path: &Path,
    digest: &Digest,
    progress: &dyn Progress,
) -> Result<(u64, Digest), FileFault> {
    let (mut file, _) = root.file(path)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => return Ok((size, Digest::from_bytes(hasher.finish()))),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        hasher.update(&buffer[..n]);
        size += n as u64;
        progress.event(Event::Fetched { digest: *digest, bytes: n as u64 });
    }
}

fn digest_of(name: &OsStr) -> Option<Digest> {
    format!("sha256:{}", name.to_str()?).parse().ok()
}

/// The snapshots by key, with their directory numbers and those of their ancestors, nearest first.
pub(super) fn chains(containerd: &Containerd, store: &Snapshotter) -> BTreeMap<String, Vec<u64>> {
    let id = |key: &str| {
        let name = containerd.snapshots.get(key)?.name.as_ref()?;
        store.snapshots.get(name).map(|stored| stored.id)
    };
    let mut chains = BTreeMap::new();
    for key in containerd.snapshots.keys() {
        let mut chain = Vec::new();
        let mut at = Some(key.as_str());
        // A circle is a finding of its own; here it only must not go on for ever.
        while let Some(key) = at
            && chain.len() <= containerd.snapshots.len()
        {
            let Some(id) = id(key) else { break };
            chain.push(id);
            at = containerd.snapshots.get(key).and_then(|snapshot| snapshot.parent.as_deref());
        }
        if !chain.is_empty() {
            chains.insert(key.clone(), chain);
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_every_snapshot_has_a_directory() {
        let stored = |kind, parent: Option<&str>| {
            let parent = parent.map(str::to_owned);
            Stored { id: 1, kind, parent, inodes: None, size: None }
        };
        let cases = [
            ("native", stored(Kind::View, Some("p")), true, false),
            ("native", stored(Kind::View, None), true, true),
            ("native", stored(Kind::Active, Some("p")), true, true),
            ("native", stored(Kind::Committed, Some("p")), true, true),
            ("native", stored(Kind::Committed, Some("p")), false, false),
            ("overlayfs", stored(Kind::View, Some("p")), true, true),
            ("fuse-overlayfs", stored(Kind::View, Some("p")), true, true),
            ("overlayfs", stored(Kind::Active, None), false, false),
        ];
        for (snapshotter, stored, known, needed) in cases {
            assert_eq!(
                needs_directory(snapshotter, &stored, known),
                needed,
                "{snapshotter} {stored:?} {known}"
            );
        }
    }
}
