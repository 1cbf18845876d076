//! What must not be in a machine image that ships, in the root and around it.
//!
//! ```text
//! history      history.db and its blobs: arguments, sources and logs of builds
//! leftovers    what bakes, verifications and daemons leave: directories, locks, sockets, temporary files
//! records      records that may still change, garbage
//! credentials  what a bake was given to read its caches with
//! space        whether garbage collection leaves the root as it is
//! ```
//!
//! It is about what making a warm root may leave behind. Host keys, machine ids and logs are others' business.

mod credentials;
mod history;
mod leftovers;
mod space;
mod sysroot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::database::{self, Place};
use super::files::{self, Tree, subject};
use super::report::{FindingKind, Findings, ImageReport, Subject};
use super::{HISTORY, LOCK, Worker};
use crate::gc;

pub(super) use space::given as configuration;
pub(super) use sysroot::Sysroot;

/// How an image is looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageOptions {
    /// The image's `/`, mounted anywhere: the root's path, too, is resolved in it, and nothing outside of it
    /// is looked at. `/` is this machine.
    pub sysroot: PathBuf,
    /// The daemon's configuration, outside the image; `None`: `/etc/buildkit/buildkitd.toml` of the image,
    /// if there is one.
    pub buildkitd_config: Option<PathBuf>,
    /// The release of `BuildKit` whose garbage collection is foretold.
    pub release: gc::Release,
    /// Bytes of the disk that the root will be on; `None`: that which it is on.
    pub disk: Option<u64>,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self { sysroot: PathBuf::from("/"), buildkitd_config: None, release: gc::Release::NEWEST, disk: None }
    }
}

/// The notes that are garbage: bytes of somebody's builds that nothing needs.
const GARBAGE: [FindingKind; 11] = [
    FindingKind::ExternalOrphaned,
    FindingKind::RecordDeleted,
    FindingKind::RecordUnfinished,
    FindingKind::LeaseOrphaned,
    FindingKind::SnapshotUnfinished,
    FindingKind::SnapshotUnused,
    FindingKind::SnapshotUnknown,
    FindingKind::SnapshotDirectoryOrphaned,
    FindingKind::BlobFileOrphaned,
    FindingKind::BlobUnused,
    FindingKind::IngestLeft,
];

/// The type of a record that has none.
const REGULAR: &str = "regular";

/// What to do about a root that builds have been made on.
const BAKE_ANEW: &str = "bake the root anew, and build nothing on it before it ships";

/// An image and the root in it.
pub(super) struct Image<'a> {
    pub(super) options: &'a ImageOptions,
    pub(super) sysroot: Sysroot,
    /// The root's path in the image.
    pub(super) root: &'a Path,
    pub(super) tree: &'a Tree,
}

impl Image<'_> {
    /// Looks for all that must not be in it, after the root itself was judged.
    /// `configuration` is the text of [`ImageOptions::buildkitd_config`].
    pub(super) fn check(
        &self,
        configuration: Option<&str>,
        workers: &[Worker],
        findings: &mut Findings,
    ) -> ImageReport {
        let names: Vec<&Path> = workers.iter().map(|worker| worker.path.as_path()).collect();
        leftovers::check(&self.sysroot, self.root, self.tree, &names, findings);
        let builds = self.history(workers, findings);
        self.records(workers, findings);
        self.owner(findings);
        let looked = credentials::check(&self.sysroot, findings);
        ImageReport {
            sysroot: self.options.sysroot.display().to_string(),
            homes: looked.homes.iter().map(|home| home.display().to_string()).collect(),
            credential_files: looked.files,
            builds,
            collection: space::check(self, configuration, workers, findings),
        }
    }

    fn subject(&self, path: impl AsRef<Path>) -> Subject {
        let path = path.as_ref();
        subject(&if path.as_os_str().is_empty() { self.root.to_owned() } else { self.root.join(path) })
    }

    /// Looks at the history of builds. Gives how many it has.
    fn history(&self, workers: &[Worker], findings: &mut Findings) -> usize {
        let mut builds = 0;
        let path = Path::new(HISTORY);
        // What cannot be read was a finding when the root was judged.
        if let Ok(bytes) = self.tree.read(path, files::MAX_DATABASE)
            && let Some(db) = database::open(self.tree, path, findings)
        {
            let found = history::read(&db, &bytes, &Place::new(path), findings);
            builds = found.builds;
            if builds > 0 {
                let detail = format!("{}; {BAKE_ANEW}, or delete the file", describe(&found));
                findings.add(FindingKind::HistoryKept, self.subject(path), detail);
            }
            if found.deleted > 0 {
                let detail = format!("{}; delete the file", counted(found.deleted, "deleted build"));
                findings.add(FindingKind::HistoryRemains, self.subject(path), detail);
            }
        }
        for worker in workers {
            let Some(containerd) = &worker.containerd else { continue };
            let sizes = containerd.sizes.values().flatten();
            let sizes: Vec<i64> = sizes
                .filter(|(space, _)| space == history::NAMESPACE)
                .filter_map(|(_, size)| *size)
                .collect();
            if !sizes.is_empty() {
                let bytes: i64 = sizes.iter().sum();
                let blobs = counted(sizes.len(), "blob");
                let detail =
                    format!("{blobs} of {bytes} bytes in namespace {}; {BAKE_ANEW}", history::NAMESPACE);
                let database = worker.path.join("containerdmeta.db");
                findings.add(FindingKind::HistoryBlobs, self.subject(database), detail);
            }
        }
        builds
    }

    fn records(&self, workers: &[Worker], findings: &mut Findings) {
        for records in workers.iter().filter_map(|worker| worker.records.as_ref()) {
            // What a step made stays mutable as long as nobody needs it to be a layer.
            let made: BTreeSet<&str> =
                records.0.values().filter_map(|record| record.equal_mutable.as_deref()).collect();
            for (id, record) in records.0.iter().filter(|(_, record)| record.is_mutable() && !record.deleted)
            {
                let kind = record.record_type.as_deref().unwrap_or(REGULAR);
                if kind == REGULAR && made.contains(id.as_str()) {
                    continue;
                }
                let of = record.description.as_deref().unwrap_or("no description");
                let detail = format!("{kind}, {of:?}; {BAKE_ANEW}");
                findings.add(FindingKind::RecordMutable, Subject::Record { id: id.clone() }, detail);
            }
        }
        let garbage = findings.count(&GARBAGE);
        if !garbage.is_empty() {
            let counts: Vec<_> = garbage.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let detail = format!("{} (see the notes); {BAKE_ANEW}", counts.join(", "));
            findings.add(FindingKind::LeftoverGarbage, self.subject(""), detail);
        }
    }

    fn owner(&self, findings: &mut Findings) {
        if let Ok(stat) = self.tree.stat(Path::new(""))
            && stat.st_uid != 0
        {
            let detail = format!("owner {}; chown -R it to root, as whom the daemon runs", stat.st_uid);
            findings.add(FindingKind::RootOwner, self.subject(""), detail);
        }
    }
}

/// What a history has, without any value.
fn describe(history: &history::History) -> String {
    const SHOWN: usize = 8;
    let mut detail = counted(history.builds, "build");
    if !history.arguments.is_empty() {
        let names: Vec<_> = history.arguments.iter().take(SHOWN).map(String::as_str).collect();
        let more = if history.arguments.len() > SHOWN { ", …" } else { "" };
        detail += &format!(" with the build arguments {}{more}", names.join(", "));
    }
    detail
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
