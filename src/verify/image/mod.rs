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
mod leftovers;
mod space;
mod sysroot;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::owners;
use super::report::{FindingKind, Findings, ImageReport, Subject};
use crate::gc;
use crate::root::{HISTORY, History, Root, Worker};
use crate::userns::Owners;

pub(super) use sysroot::Sysroot;

/// The namespace of containerd's metadata in which logs, traces and provenance stand.
const HISTORY_NAMESPACE: &str = "buildkit_history";

/// How an image is looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageOptions {
    /// The image's `/`, mounted anywhere: the root's path, too, is resolved in it, and nothing outside of it
    /// is looked at. `/` is this machine.
    pub sysroot: PathBuf,
    /// The daemon's configuration; `None`: `/etc/buildkit/buildkitd.toml` of the image, if there is one.
    pub configuration: Option<Configured>,
    /// The release of `BuildKit` whose garbage collection is foretold.
    pub release: gc::Release,
    /// Bytes of the disk that the root will be on, beside nothing else; `None`: that which it is on, as it is.
    pub disk_size: Option<u64>,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            sysroot: PathBuf::from("/"),
            configuration: None,
            release: gc::Release::NEWEST,
            disk_size: None,
        }
    }
}

/// A `buildkitd.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// Where it is from, for messages.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
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
    pub(super) path: PathBuf,
}

impl<'a> Image<'a> {
    /// Opens the image of a root, which is given by its path in the image.
    pub(super) fn open(root: &Path, options: &'a ImageOptions) -> Result<Self, super::Error> {
        let open = |path: &Path| {
            let path = path.to_owned();
            move |source| super::Error::Open { path, source }
        };
        let sysroot = Sysroot::open(&options.sysroot).map_err(open(&options.sysroot))?;
        let path = if options.sysroot == Path::new("/") {
            std::path::absolute(root).map_err(open(root))?
        } else {
            Path::new("/").join(root)
        };
        Ok(Self { options, sysroot, path })
    }

    /// Opens the root in it.
    pub(super) fn root(&self) -> Result<Root, super::Error> {
        Root::with(&self.path, self.sysroot.root(&self.path))
    }

    /// A text file of the image; `None` where there is none that can be read.
    pub(super) fn text(&self, path: &Path) -> Option<String> {
        let bytes = self.sysroot.read(path, credentials::LONGEST).ok()??;
        String::from_utf8(bytes).ok()
    }

    /// Looks for all that must not be in it, after the root itself was judged.
    pub(super) fn check(
        &self,
        root: &Root,
        history: &History,
        workers: &[Worker],
        owners: Option<&Owners>,
        findings: &mut Findings,
    ) -> ImageReport {
        leftovers::check(&self.sysroot, &self.path, root, findings);
        self.history(history, workers, findings);
        self.records(workers, findings);
        let user = root.tree.stat(Path::new("")).map_or(0, |stat| stat.st_uid);
        let is_rootless = owners.is_some_and(Owners::is_namespace);
        if user != 0 && !is_rootless {
            let detail = format!(
                "owner {user}; chown -R it to root, as whom the daemon runs, or give the user of a rootless daemon \
                 ranges in /etc/subuid and /etc/subgid"
            );
            findings.add(FindingKind::RootOwner, self.subject(""), detail);
        }
        let home = owners::user(user, |path| self.text(path)).filter(|_| is_rootless).map(|user| user.home);
        let looked = credentials::check(&self.sysroot, findings);
        let (buildkitd_config, gc) = space::check(self, root, workers, home.as_deref(), findings);
        ImageReport {
            sysroot: self.options.sysroot.display().to_string(),
            homes: looked.homes.iter().map(|home| home.display().to_string()).collect(),
            credential_files: looked.files,
            builds: history.builds,
            gc,
            buildkitd_config,
        }
    }

    fn subject(&self, path: impl AsRef<Path>) -> Subject {
        let path = path.as_ref();
        Subject::file(&if path.as_os_str().is_empty() { self.path.clone() } else { self.path.join(path) })
    }

    /// Looks at what a daemon keeps of builds, in its history and among the blobs.
    fn history(&self, history: &History, workers: &[Worker], findings: &mut Findings) {
        if history.builds > 0 {
            let detail = format!("{}; {BAKE_ANEW}, or delete the file", describe(history));
            findings.add(FindingKind::HistoryKept, self.subject(HISTORY), detail);
        }
        if history.deleted > 0 {
            let detail = format!("deleted builds in its free pages: {}; delete the file", history.deleted);
            findings.add(FindingKind::HistoryRemains, self.subject(HISTORY), detail);
        }
        for worker in workers {
            let Some(containerd) = &worker.containerd else { continue };
            let sizes = containerd.sizes.values().flatten();
            let sizes: Vec<i64> =
                sizes.filter(|(space, _)| space == HISTORY_NAMESPACE).filter_map(|(_, size)| *size).collect();
            if !sizes.is_empty() {
                let bytes: i64 = sizes.iter().fold(0, |sum, size| sum.saturating_add(*size));
                let blobs = sizes.len();
                let detail =
                    format!("blobs in namespace {HISTORY_NAMESPACE}: {blobs}, {bytes} bytes; {BAKE_ANEW}");
                let database = worker.path.join("containerdmeta.db");
                findings.add(FindingKind::HistoryBlobs, self.subject(database), detail);
            }
        }
    }

    fn records(&self, workers: &[Worker], findings: &mut Findings) {
        for records in workers.iter().filter_map(|worker| worker.records.as_ref()) {
            // What a step made stays mutable as long as nobody needs it to be a layer.
            let made: BTreeSet<&str> =
                records.all.values().filter_map(|record| record.equal_mutable.as_deref()).collect();
            for (id, record) in
                records.all.iter().filter(|(_, record)| record.is_mutable() && !record.deleted)
            {
                let kind = record.record_type.as_deref().unwrap_or(REGULAR);
                if kind == REGULAR && made.contains(id.as_str()) {
                    continue;
                }
                let of = record.description.as_deref().unwrap_or("no description");
                let detail = format!("{kind}, {of:?}; {BAKE_ANEW}");
                findings.add(FindingKind::RecordMutable, Subject::record(id), detail);
            }
        }
        let garbage = findings.count(&GARBAGE);
        if !garbage.is_empty() {
            let counts: Vec<_> = garbage.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let detail = format!("{} (see the notes); {BAKE_ANEW}", counts.join(", "));
            findings.add(FindingKind::LeftoverGarbage, self.subject(""), detail);
        }
    }
}

/// What a history has, without any value.
fn describe(history: &History) -> String {
    const SHOWN: usize = 8;
    let mut detail = format!("builds in it: {}", history.builds);
    if !history.arguments.is_empty() {
        let names: Vec<_> = history.arguments.iter().take(SHOWN).map(String::as_str).collect();
        let more = if history.arguments.len() > SHOWN { ", …" } else { "" };
        detail = format!("{detail}, with the build arguments {}{more}", names.join(", "));
    }
    detail
}
