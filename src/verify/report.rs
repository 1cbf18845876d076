//! What a verification found, as data.
//!
//! A [`Finding`] is something that makes a root cold, broken, or other than its own databases say.
//! A [note](Severity::Note) is garbage: what a daemon that was stopped or killed at any moment may leave behind, and
//! what its next garbage collection takes away. Notes are reported, but a root with nothing but notes
//! is healthy.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

use crate::digest::Digest;
use crate::gc;
use crate::root::files::FileFault;
use crate::root::{Fault, FaultKind, Place};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A daemon on this root fails, or is cold where it should be warm.
    Error,
    /// A daemon works, but something is not as it should be.
    Warning,
    /// Garbage, or a loose end that daemons leave themselves.
    Note,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $severity:ident;)+) => {
        /// What is wrong, one variant for each kind of damage. The kebab-case name is stable: scripts
        /// may match it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum FindingKind {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl FindingKind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable kebab-case name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Whether only an image can have findings of this kind, see [`super::Options::image`].
            pub fn is_of_image(self) -> bool {
                self >= Self::HistoryKept
            }

            /// How much findings of this kind matter.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$variant => Severity::$severity,)+
                }
            }

            /// One sentence of documentation.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc, "\n"),+).trim_ascii(),)+
                }
            }
        }
    };
}

kinds! {
    // The files of the root.
    /// A file or directory that every state directory has is not there.
    StateFileMissing = "state-file-missing", Error;
    /// Something of another type stands where a file or directory is needed: a symbolic link, a device.
    StateFileType = "state-file-type", Error;
    /// A file or directory of the root cannot be read.
    StateFileUnreadable = "state-file-unreadable", Error;
    /// A state file or directory gives more rights than a daemon gives it.
    StateFileMode = "state-file-mode", Warning;
    /// A state file or directory belongs to somebody else than the root does.
    StateFileOwner = "state-file-owner", Warning;
    /// The worker id is not 25 characters of `[a-z0-9]`.
    WorkerIdInvalid = "worker-id-invalid", Error;
    /// A worker's directory of a snapshotter that is not read, or that the containerd does not have.
    WorkerUnread = "worker-unread", Note;

    // Bolt files.
    /// No bolt file at all, or both meta pages are damaged.
    DatabaseUnreadable = "database-unreadable", Error;
    /// One of the two meta pages is damaged; bolt goes on from the other, which may be older.
    DatabaseMetaPage = "database-meta-page", Warning;
    /// A page, or an element of one, is damaged; what stands in this database is not judged further.
    DatabasePage = "database-page", Error;
    /// The freelist disagrees with the pages in use: the next write may destroy data.
    DatabaseFreelist = "database-freelist", Error;
    /// A bucket is missing that a daemon would have made by now.
    BucketMissing = "bucket-missing", Error;
    /// A bucket stands where a value is needed, or the other way round.
    EntryType = "entry-type", Error;
    /// A key or value that does not decode: JSON, number, time, digest or name.
    EntryInvalid = "entry-invalid", Error;

    // metadata_v2.db
    /// A record lacks a value without which it cannot be used.
    RecordValueMissing = "record-value-missing", Error;
    /// A record's parent does not exist: a daemon drops the record and all that stand on it.
    RecordParentMissing = "record-parent-missing", Error;
    /// A record is its own ancestor.
    RecordParentCycle = "record-parent-cycle", Error;
    /// A record's data is said to be in a mutable record that does not exist, nor does its own snapshot.
    RecordMutableMissing = "record-mutable-missing", Error;
    /// A chain ID is not that of the parent's chain ID and the diff ID.
    RecordChainId = "record-chain-id", Error;
    /// A blob chain ID is not that of the parent's, the blob and the diff ID.
    RecordBlobChainId = "record-blob-chain-id", Error;
    /// A layer identity other than the diff ID.
    RecordLayerIdentity = "record-layer-identity", Error;
    /// A snapshot key that names another chain ID than the record's.
    RecordSnapshotKey = "record-snapshot-key", Error;
    /// A value says that it is indexed, and the index does not have it: lookups miss the record.
    IndexMissing = "index-missing", Error;
    /// An index leads to a record that is not there or has no such value.
    IndexOrphaned = "index-orphaned", Error;
    /// Data under a record id that does not exist.
    ExternalOrphaned = "external-orphaned", Note;
    /// The record was being deleted when the daemon stopped.
    RecordDeleted = "record-deleted", Note;
    /// A mutable record that was not whole yet, or whose snapshot is gone already: a daemon completes or drops it.
    RecordUnfinished = "record-unfinished", Note;
    /// A record that only a registry can fill: neither its blob nor its snapshot is here.
    RecordLazy = "record-lazy", Note;

    // Leases.
    /// A containerd has nothing at all where it is to have what the records need.
    NamespaceEmpty = "namespace-empty", Error;
    /// A record has no lease, so garbage collection removes its data.
    LeaseMissing = "lease-missing", Error;
    /// A record's lease does not hold its snapshot, so garbage collection removes it.
    SnapshotNotLeased = "snapshot-not-leased", Error;
    /// A record's lease does not hold its blob, so garbage collection removes it.
    BlobNotLeased = "blob-not-leased", Error;
    /// A lease without a record: it keeps data that nothing in this root uses.
    LeaseOrphaned = "lease-orphaned", Note;

    // Snapshots.
    /// A record's snapshot is not in containerd's metadata.
    SnapshotMissing = "snapshot-missing", Error;
    /// A snapshot's name is not in the snapshotter's own database.
    SnapshotNameMissing = "snapshot-name-missing", Error;
    /// Two snapshots have the same name in the snapshotter's own database.
    SnapshotNameShared = "snapshot-name-shared", Error;
    /// A snapshot's parent is not in containerd's metadata.
    SnapshotParentMissing = "snapshot-parent-missing", Error;
    /// A snapshot's parent is not the one that its record's parent has.
    SnapshotParent = "snapshot-parent", Error;
    /// The snapshotter's own database gives a snapshot another parent than containerd's metadata.
    SnapshotStoreParent = "snapshot-store-parent", Error;
    /// Snapshots whose parents form a circle.
    SnapshotParentCycle = "snapshot-parent-cycle", Error;
    /// A snapshot is not listed among its parent's children.
    SnapshotChildMissing = "snapshot-child-missing", Error;
    /// A snapshot of the wrong kind: a committed record's is not committed, or a mutable one's not active.
    SnapshotKind = "snapshot-kind", Error;
    /// Two snapshots share a directory number.
    SnapshotIdShared = "snapshot-id-shared", Error;
    /// A sequence is below a number that was given out already: the next snapshot fails or overwrites one.
    SequenceTooLow = "sequence-too-low", Error;
    /// The snapshotter's index of parents and children disagrees with its snapshots.
    SnapshotParentsIndex = "snapshot-parents-index", Error;
    /// A snapshot's directory, or the `fs` or `work` in it, is not there.
    SnapshotDirectoryMissing = "snapshot-directory-missing", Error;
    /// A killed daemon left what is in the way of a new snapshot: the build that makes it fails, and removes that.
    SnapshotDirectoryTaken = "snapshot-directory-taken", Error;
    /// A snapshot's directory holds another number of inodes than was recorded when it was committed.
    SnapshotInodes = "snapshot-inodes", Error;
    /// A daemon was stopped while it committed this snapshot: the next one makes it anew, or collects what is left.
    SnapshotUnfinished = "snapshot-unfinished", Note;
    /// A snapshot that neither a lease nor another snapshot holds.
    SnapshotUnused = "snapshot-unused", Note;
    /// A snapshot of the snapshotter's own database that containerd's metadata does not know.
    SnapshotUnknown = "snapshot-unknown", Note;
    /// A directory under `snapshots/` that belongs to no snapshot.
    SnapshotDirectoryOrphaned = "snapshot-directory-orphaned", Note;
    /// A parent lists a child that does not exist; daemons leave these themselves.
    SnapshotChildGone = "snapshot-child-gone", Note;

    // Blobs.
    /// A record's blob is not in containerd's metadata, and the record is not lazy.
    BlobMissing = "blob-missing", Error;
    /// A blob of containerd's metadata has no file.
    BlobFileMissing = "blob-file-missing", Error;
    /// A blob's file is not as long as containerd's metadata says.
    BlobSize = "blob-size", Error;
    /// A blob's bytes do not have its digest.
    BlobDigest = "blob-digest", Error;
    /// A record gives another size for its blob than containerd's metadata.
    RecordBlobSize = "record-blob-size", Error;
    /// A blob's label names another diff ID or compression than its record.
    BlobLabel = "blob-label", Error;
    /// A blob has no label of its diff ID or media type, so what is exported from it is made anew.
    BlobLabelMissing = "blob-label-missing", Note;
    /// A file among the blobs that containerd's metadata does not know.
    BlobFileOrphaned = "blob-file-orphaned", Note;
    /// A blob that no lease holds.
    BlobUnused = "blob-unused", Note;
    /// An unfinished transfer.
    IngestLeft = "ingest-left", Note;

    // cache.db
    /// A result of another worker: a daemon removes all such results at its start.
    ResultWorker = "result-worker", Error;
    /// A result whose record does not exist: the step runs again.
    ResultRecordMissing = "result-record-missing", Error;
    /// The result of a local source whose record a later build replaced.
    ResultStale = "result-stale", Note;
    /// A result whose value names another one than its key.
    ResultValue = "result-value", Error;
    /// A result that the index by results does not have.
    ByResultMissing = "by-result-missing", Error;
    /// An entry of the index by results without the result.
    ByResultOrphaned = "by-result-orphaned", Error;
    /// A key with results that has no bucket of links, so it does not exist for a daemon.
    KeyMissing = "key-missing", Error;
    /// A link leads to a key that does not exist.
    LinkTargetMissing = "link-target-missing", Error;
    /// A link that has no way back.
    BacklinkMissing = "backlink-missing", Error;
    /// A way back without a link.
    BacklinkOrphaned = "backlink-orphaned", Error;
    /// Keys of a baked root whose links form a circle: no cache has any.
    LinkCycle = "link-cycle", Error;
    /// Keys whose links form a circle, as builds leave them that copy again what they copied before.
    LinkLoop = "link-loop", Note;
    /// A key that is reached by one input of an operation, but not by an earlier one: it can never match.
    LinkInputMissing = "link-input-missing", Error;
    /// A key whose id does not follow from the links that lead to it, though it was derived from them.
    KeyId = "key-id", Error;

    // Layers against snapshots, with `read_data`.
    /// A blob does not inflate or is no tar.
    LayerUnreadable = "layer-unreadable", Error;
    /// A blob's uncompressed bytes do not have the record's diff ID.
    LayerDiffId = "layer-diff-id", Error;
    /// The snapshot lacks a path of the layer, or of those below.
    LayerEntryMissing = "layer-entry-missing", Error;
    /// The snapshot has a path that neither the layer has nor one below.
    LayerEntryExtra = "layer-entry-extra", Error;
    /// Another type of file.
    LayerEntryType = "layer-entry-type", Error;
    /// Other permission bits.
    LayerEntryMode = "layer-entry-mode", Error;
    /// Another owner or group.
    LayerEntryOwner = "layer-entry-owner", Error;
    /// Another time of modification.
    LayerEntryTime = "layer-entry-time", Error;
    /// Other extended attributes.
    LayerEntryXattrs = "layer-entry-xattrs", Error;
    /// Other bytes, or another symbolic link target or device number.
    LayerEntryContent = "layer-entry-content", Error;
    /// Not the same file as the path that the layer links it to.
    LayerEntryLink = "layer-entry-link", Error;

    // An image, with `image`.
    /// A daemon's history of builds, with their arguments and sources.
    HistoryKept = "history-kept", Error;
    /// Builds that were deleted from the history, and whose bytes are still in its file.
    HistoryRemains = "history-remains", Error;
    /// Logs, traces and provenance of builds among the blobs.
    HistoryBlobs = "history-blobs", Error;
    /// A password, a token or a key in a file that a bake may take it from.
    CredentialsLeft = "credentials-left", Error;
    /// A file or directory that may have credentials and cannot be read.
    CredentialsUnreadable = "credentials-unreadable", Warning;
    /// The directory in which a bake or a verification works.
    LeftoverStaging = "leftover-staging", Error;
    /// A temporary file outside the root.
    LeftoverTemporary = "leftover-temporary", Warning;
    /// A daemon's lock file.
    LeftoverLock = "leftover-lock", Warning;
    /// A socket of a daemon.
    LeftoverSocket = "leftover-socket", Warning;
    /// Something in the root that no bake writes.
    LeftoverFile = "leftover-file", Warning;
    /// Garbage in the root: what the notes tell of.
    LeftoverGarbage = "leftover-garbage", Warning;
    /// A record that may still change: sources of a build, a cache mount, a step that was under way.
    RecordMutable = "record-mutable", Warning;
    /// The root belongs neither to root nor to a user whom a rootless daemon can run as.
    RootOwner = "root-owner", Warning;
    /// Garbage collection takes records of the root.
    CollectionTakes = "collection-takes", Error;
    /// A `buildkitd.toml` with which the daemon does not start, or does not collect.
    CollectionUnknown = "collection-unknown", Error;
}

impl From<FaultKind> for FindingKind {
    fn from(kind: FaultKind) -> Self {
        match kind {
            FaultKind::FileMissing => Self::StateFileMissing,
            FaultKind::FileType => Self::StateFileType,
            FaultKind::FileUnreadable => Self::StateFileUnreadable,
            FaultKind::WorkerId => Self::WorkerIdInvalid,
            FaultKind::WorkerUnread => Self::WorkerUnread,
            FaultKind::Database => Self::DatabaseUnreadable,
            FaultKind::MetaPage => Self::DatabaseMetaPage,
            FaultKind::Page => Self::DatabasePage,
            FaultKind::Freelist => Self::DatabaseFreelist,
            FaultKind::BucketMissing => Self::BucketMissing,
            FaultKind::EntryType => Self::EntryType,
            FaultKind::EntryInvalid => Self::EntryInvalid,
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for FindingKind {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// What a finding is about. Texts that are not UTF-8 are shown with `U+FFFD` in place of what is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Subject {
    /// A cache record.
    Record {
        /// Its id.
        id: String,
    },
    /// A lease.
    Lease {
        /// Its id.
        id: String,
    },
    /// A snapshot of containerd's metadata.
    Snapshot {
        /// Its key.
        key: String,
    },
    /// A blob.
    Blob {
        /// Its digest.
        digest: String,
    },
    /// A key of the solver's cache.
    Key {
        /// Its id.
        id: String,
    },
    /// A path of a layer and its snapshot.
    LayerPath {
        /// The layer's blob.
        digest: String,
        /// The snapshot's key.
        snapshot: String,
        /// The path inside the layer.
        path: String,
    },
    /// A file, or something in a database.
    #[serde(untagged)]
    Place(Place),
}

impl Subject {
    pub(super) fn record(id: &str) -> Self {
        Self::Record { id: id.to_owned() }
    }

    pub(super) fn snapshot(key: &str) -> Self {
        Self::Snapshot { key: key.to_owned() }
    }

    pub(super) fn blob(digest: &Digest) -> Self {
        Self::Blob { digest: digest.to_string() }
    }

    pub(super) fn key(id: &str) -> Self {
        Self::Key { id: id.to_owned() }
    }

    /// The file or directory at `path`, relative to the root.
    pub(super) fn file(path: &Path) -> Self {
        Self::Place(Place::file(path))
    }

    /// The entry of the database at a path relative to the root, by its buckets and key.
    pub(super) fn entry(database: &Path, path: &[&str]) -> Self {
        Self::Place(Place::entry(database, path))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place) => place.fmt(f),
            Self::Record { id } => write!(f, "record {id}"),
            Self::Lease { id } => write!(f, "lease {id}"),
            Self::Snapshot { key } => write!(f, "snapshot {key}"),
            Self::Blob { digest } => write!(f, "blob {digest}"),
            Self::Key { id } => write!(f, "key {id}"),
            Self::LayerPath { digest, snapshot, path } => {
                write!(f, "{path} of {digest} in snapshot {snapshot}")
            }
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How much it matters; a property of the kind, here for those who read the JSON.
    pub severity: Severity,
    /// What is wrong.
    pub kind: FindingKind,
    /// What it is about.
    pub subject: Subject,
    /// What was expected and what was found.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind, self.subject, self.detail)
    }
}

/// How many things of each sort were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Cache records of `metadata_v2.db`.
    pub records: usize,
    /// Those of them that have a blob.
    pub layers: usize,
    /// Keys of `cache.db`.
    pub keys: usize,
    /// Results of `cache.db`.
    pub results: usize,
    /// Links of `cache.db`.
    pub links: usize,
    /// Leases.
    pub leases: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Blobs, of all namespaces, each once.
    pub blobs: usize,
    /// Bytes of blobs that were hashed.
    pub blob_bytes: u64,
    /// Layers that were compared with their snapshots.
    pub layers_compared: usize,
    /// Entries of those layers.
    pub entries_compared: u64,
    /// Layers that were not compared, since a build and not the blob filled their snapshot, or there is none.
    pub layers_not_comparable: usize,
}

/// The outcome of an offline verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Errors first, then warnings; by kind, subject and detail. Empty for a healthy root.
    pub findings: Vec<Finding>,
    /// Garbage and loose ends; no fault.
    pub notes: Vec<Finding>,
    /// What was looked at.
    pub counts: Counts,
    /// Versions of the schemas found, by database relative to the root.
    pub schema_versions: BTreeMap<String, i64>,
    /// Whether layers were compared with their snapshots.
    pub read_data: bool,
    /// What of an image was looked at, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageReport>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_healthy(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What of an image was looked at besides its root; what was found is among the findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageReport {
    /// The image's `/`, as it was given.
    pub sysroot: String,
    /// Home directories that were looked through for credentials, in the image.
    pub homes: Vec<String>,
    /// Files that were read for credentials.
    pub credential_files: usize,
    /// Builds in the daemon's history.
    pub builds: usize,
    /// What garbage collection does to the root, if nothing is built; none where a finding says why nobody knows.
    pub gc: Option<gc::Forecast>,
    /// The configuration of the daemon, in the image or as given; none: the release's defaults.
    pub buildkitd_config: Option<String>,
}

/// Collects findings; from one thread, workers bring theirs along.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, kind: FindingKind, subject: Subject, detail: impl Into<String>) {
        self.0.push(Finding { severity: kind.severity(), kind, subject, detail: detail.into() });
    }

    /// What could not be read.
    pub(super) fn faults(&mut self, faults: Vec<Fault>) {
        for Fault { kind, place, detail } in faults {
            self.add(kind.into(), Subject::Place(place), detail);
        }
    }

    /// Why a file or directory at a path relative to the root cannot be used.
    pub(super) fn file(&mut self, path: &Path, fault: FileFault) {
        self.add(fault.kind.into(), Subject::file(path), fault.detail);
    }

    pub(super) fn append(&mut self, mut others: Findings) {
        self.0.append(&mut others.0);
    }

    /// How many findings there are of each of these kinds, that have any.
    pub(super) fn count(&self, kinds: &[FindingKind]) -> BTreeMap<FindingKind, usize> {
        let mut counts = BTreeMap::new();
        for finding in self.0.iter().filter(|finding| kinds.contains(&finding.kind)) {
            *counts.entry(finding.kind).or_default() += 1;
        }
        counts
    }

    /// Findings and notes, each sorted and without repetitions.
    pub(super) fn finish(self) -> (Vec<Finding>, Vec<Finding>) {
        let mut all = self.0;
        all.sort_unstable();
        all.dedup();
        all.into_iter().partition(|finding| finding.severity != Severity::Note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_kebab_case_and_distinct() {
        let names: BTreeSet<_> = FindingKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), FindingKind::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        }
    }

    #[test]
    fn the_documentation_lists_every_kind() {
        let page = include_str!("../../docs/verify.md");
        for kind in FindingKind::ALL {
            let row = format!("| `{}` | {} |", kind.name(), kind.meaning());
            assert!(page.contains(&row), "docs/verify.md lacks the row\n{row}");
        }
    }

    #[test]
    fn findings_are_sorted_and_notes_are_apart() {
        let mut findings = Findings::default();
        let file = |path: &str| Subject::file(Path::new(path));
        findings.add(FindingKind::BlobUnused, file("b"), "");
        findings.add(FindingKind::StateFileMode, file("b"), "");
        findings.add(FindingKind::BlobSize, file("b"), "");
        findings.add(FindingKind::BlobSize, file("a"), "");
        findings.add(FindingKind::BlobSize, file("a"), "");
        let (findings, notes) = findings.finish();
        let order: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(order, ["blob-size: a: ", "blob-size: b: ", "state-file-mode: b: "]);
        assert_eq!(notes.len(), 1);
    }
}
