//! Why a bake ended without a root.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::place::{STAGING_PREFIX, is_staging};
use super::report::Unkeyed;
use crate::digest::{DiffId, Digest};
use crate::gather::ErrorClass;
use crate::{fsutil, gather, gc, layer, replay, store};

const MAKE_ROOM: &str =
    "make room, or take a larger disk or fewer caches; `warmkit plan` says how much it takes";

/// What a file system can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Space.
    Bytes,
    /// Files and directories.
    Inodes,
    /// What a quota leaves of either.
    Quota,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Inodes => "inodes",
            Self::Quota => "quota",
        })
    }
}

/// What a root takes in any case, and a file system does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the root takes at least {needed} {what}, and {free} are free")]
pub struct Shortage {
    /// Of what.
    pub what: Resource,
    /// How much it takes at least.
    pub needed: u64,
    /// How much there is.
    pub free: u64,
}

/// A bake that failed; the target is as it was, but for [`Error::NotSynced`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Owners, devices and `trusted.*` attributes are root's to set.
    #[error("baking needs root: layers hold owners, devices and overlay attributes; run it under sudo")]
    NotRoot,
    /// Layers of this worker are unpacked through mounts.
    #[error(
        "cannot make a mount namespace: the daemon of such a root extracts layers through overlay mounts, and so \
         does this; a container needs CAP_SYS_ADMIN for it"
    )]
    MountNamespace {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A user namespace without a root.
    #[error(
        "the root's files cannot belong to the root of the user namespace: {0}; run it where user and group 0 are mapped, as \
         `rootlesskit` and `unshare --user --map-root-user --map-auto` do"
    )]
    Owners(#[source] crate::userns::OutOfRange),
    /// A file, or a link that points nowhere.
    #[error("{path} is not a directory: name a directory that is empty or does not exist yet")]
    TargetNotDirectory {
        /// The target.
        path: PathBuf,
    },
    /// Somebody's data.
    #[error("{path} is not empty, nothing was changed: found {}{}", list(found), staging_hint(path, found))]
    TargetNotEmpty {
        /// The target.
        path: PathBuf,
        /// What stands there, sorted.
        found: Vec<String>,
    },
    /// Nothing can be written there.
    #[error(
        "{} is mounted read-only, nothing was changed: mount it for writing (`mount -o remount,rw`), or bake into another \
         directory",
        path.display()
    )]
    TargetReadOnly {
        /// The target, or the nearest directory above it.
        path: PathBuf,
    },
    /// The daemon of such a root finds no marks there: what a layer deletes would be back.
    #[error(
        "{} is on {}, where the overlays of a rootless daemon keep no marks of what a layer deletes, nothing was changed: have \
         its root on ext4, xfs or btrfs ($XDG_DATA_HOME, or root in its buildkitd.toml), or have the daemon use the \
         snapshotter native and bake --snapshotter native",
        path.display(), if *is_tmpfs { "a tmpfs" } else { "a file system without user.* attributes" }
    )]
    NoMarks {
        /// The target, or the nearest directory above it.
        path: PathBuf,
        /// Whether it is a tmpfs, on which such a daemon asks for none.
        is_tmpfs: bool,
    },
    /// A daemon holds the root's lock.
    #[error("{path} is in use by a running buildkitd, nothing was changed: stop the daemon first")]
    TargetBusy {
        /// The target.
        path: PathBuf,
    },
    /// Another bake is at work on it.
    #[error("another bake is writing {path}, nothing was changed: wait until it is done")]
    TargetBeingBaked {
        /// The target.
        path: PathBuf,
    },
    /// A link of others than root leads it to what is not theirs.
    #[error(
        "{} leads to {} by {}", path.display(), there.display(), led_away(by, *user)
    )]
    TargetLedAway {
        /// The target.
        path: PathBuf,
        /// Where it, or the nearest directory above it, leads.
        there: PathBuf,
        /// The link, or the directory in which links are.
        by: PathBuf,
        /// Whose that is.
        user: u32,
    },
    /// The target is to belong to a user where that user could not make it.
    #[error(
        "{} is to be user {user}'s, and {} is not, nothing was changed: give that to the user with chown, or have the daemon \
         keep its root elsewhere",
        path.display(), at.display()
    )]
    TargetNotOfUser {
        /// The target.
        path: PathBuf,
        /// It, or the nearest directory above it.
        at: PathBuf,
        /// Who runs its daemon.
        user: u32,
    },
    /// The owner of a directory above the target has moved it, or what was made in it.
    #[error(
        "{} was moved away, or something else put in its place, while the bake was at work, and nothing was baked: \
         bake while no process of its user changes the directories above it",
        path.display()
    )]
    TargetMoved {
        /// The target.
        path: PathBuf,
    },
    /// A cache or key source could not be read.
    #[error(transparent)]
    Gather(Box<gather::Error>),
    /// The build could not be replayed.
    #[error(transparent)]
    Replay(#[from] replay::Error),
    /// Some records would never be found.
    #[error(
        "{} of {total} records have no key, so their steps would not be CACHED without an import; \
         give --keys-from a source that knows them, or --build the sources of the build, \
         or --allow-unkeyed to bake only their layers",
        records.len()
    )]
    Unkeyed {
        /// Which.
        records: Vec<Unkeyed>,
        /// Records in all.
        total: usize,
    },
    /// A layer could not be unpacked.
    #[error("layer {digest}: {source}")]
    Layer {
        /// Its blob.
        digest: Digest,
        /// What went wrong.
        source: layer::Error,
    },
    /// A layer unpacks to something else than the cache says.
    #[error("layer {digest} does not match its diff ID: expected {expected}, found {found}")]
    DiffIdMismatch {
        /// Its blob.
        digest: Digest,
        /// As the cache says.
        expected: DiffId,
        /// As it is.
        found: DiffId,
    },
    /// containerd cannot be used, or failed.
    #[cfg(feature = "containerd")]
    #[error(transparent)]
    Containerd(#[from] crate::containerd::Error),
    /// What containerd holds for the root may go with another bake.
    #[error(
        "another bake in this namespace of containerd did not see this one, and took it for killed or leases what it does, \
         nothing was changed: bake again, and where bakes do not see each other, as from containers that have the socket \
         alone, one after the other"
    )]
    UnseenBake,
    /// A program that lacks a part.
    #[error(
        "this warmkit was built without the feature `containerd`: install a package of `scripts/package`, or build with `--features containerd`"
    )]
    NoContainerd,
    /// A database or directory of the root could not be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The root cannot fit.
    #[error("not enough space for {}: {shortage}; nothing was changed: {MAKE_ROOM}", path.display())]
    NoSpace {
        /// The target.
        path: PathBuf,
        /// What is missing.
        shortage: Shortage,
    },
    /// The disk filled up while the root was written.
    #[error("{} ran out of {what}, nothing was changed: {MAKE_ROOM}", path.display())]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Of what.
        what: Resource,
        /// What could not be done.
        source: Box<Error>,
    },
    /// The root is whole and in its place, and may be gone if the machine loses power now.
    #[error(
        "the root is in place at {}, but is not known to be on the disk: {source}; if `sync` fails too, bake on another \
         disk, else `warmkit verify` tells that it is whole",
        path.display()
    )]
    NotSynced {
        /// The target.
        path: PathBuf,
        /// What could not be done.
        source: Box<Error>,
    },
    /// The configuration of garbage collection cannot be applied.
    #[error("the daemon's configuration: {0}")]
    Gc(#[from] gc::Error),
    /// Reading or writing a file failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A signal ended it.
    #[error("interrupted, nothing was changed")]
    Interrupted,
}

impl Error {
    /// Whether all that stands in the way is what a killed bake left.
    pub fn is_left_by_a_bake(&self) -> bool {
        matches!(self, Self::TargetNotEmpty { found, .. } if left_by_a_bake(found).is_some())
    }

    /// What this means for whoever started the bake.
    pub fn class(&self) -> ErrorClass {
        use layer::Error as L;
        match self {
            Self::Gather(error) => error.class(),
            // It is good, for other daemons.
            Self::Layer { source, .. } if source.is_for_root_alone() => ErrorClass::Other,
            Self::DiffIdMismatch { .. }
            | Self::Layer { source: L::Decompress { .. } | L::Archive { .. } | L::Refused { .. }, .. } => {
                ErrorClass::Content
            }
            Self::Unkeyed { .. } => ErrorClass::Unkeyed,
            Self::TargetNotEmpty { .. }
            | Self::TargetBusy { .. }
            | Self::TargetBeingBaked { .. }
            | Self::TargetNotDirectory { .. }
            | Self::TargetLedAway { .. }
            | Self::TargetNotOfUser { .. }
            | Self::TargetMoved { .. } => ErrorClass::Target,
            Self::NoSpace { .. } | Self::DiskFull { .. } => ErrorClass::Space,
            Self::Gc(_) | Self::NoContainerd => ErrorClass::Spec,
            #[cfg(feature = "containerd")]
            Self::Containerd(
                crate::containerd::Error::NoSnapshotter { .. } | crate::containerd::Error::Namespace { .. },
            ) => ErrorClass::Spec,
            #[cfg(feature = "containerd")]
            Self::Containerd(crate::containerd::Error::Full { .. }) => ErrorClass::Space,
            #[cfg(feature = "containerd")]
            Self::Containerd(_) => ErrorClass::Other,
            Self::NotRoot
            | Self::MountNamespace { .. }
            | Self::Owners(_)
            | Self::Replay(_)
            | Self::Layer { .. }
            | Self::Store(_)
            | Self::TargetReadOnly { .. }
            | Self::NoMarks { .. }
            | Self::NotSynced { .. }
            | Self::Io { .. }
            | Self::UnseenBake
            | Self::Interrupted => ErrorClass::Other,
        }
    }
}

impl Error {
    /// The same, of a root that stands at `path` already.
    pub(super) fn of_root_in_place(self, path: &Path) -> Self {
        Self::NotSynced { path: path.to_owned(), source: Box::new(self) }
    }

    /// The same, or [`Error::DiskFull`] where that is the cause: the disk that `staged` is on.
    pub(super) fn or_full(self, target: &Path, staged: &Path) -> Self {
        // A replay writes elsewhere, and something was changed by a bake that is done.
        let is_other = matches!(self, Self::Replay(_) | Self::DiskFull { .. } | Self::NotSynced { .. });
        let Some(kind) = full(&self).filter(|_| !is_other) else { return self };
        let what = match fsutil::room_at(staged) {
            _ if kind == io::ErrorKind::QuotaExceeded => Resource::Quota,
            Ok(fsutil::Room { inodes: Some((_, 0)), .. }) => Resource::Inodes,
            _ => Resource::Bytes,
        };
        Self::DiskFull { path: target.to_owned(), what, source: Box::new(self) }
    }
}

/// By what a target leads elsewhere, and what to do then.
fn led_away(by: &Path, user: u32) -> String {
    let by = by.display();
    if user == 0 {
        // A group, or everybody.
        return format!(
            "what others than root may link as they like ({by}), nothing was changed: name the directory itself, or \
             `chmod go-w {by}`"
        );
    }
    format!(
        "what user {user} may link as it likes ({by}), and what is there is not that user's, nothing was changed: name the \
         directory itself, or give it to the user with chown"
    )
}

/// Which of the causes of an error is a full disk, and of which kind.
fn full(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let is_full =
        |kind: &io::ErrorKind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let io = error.downcast_ref::<io::Error>().map(io::Error::kind).filter(is_full);
    io.or_else(|| error.source().and_then(full))
}

impl From<gather::Error> for Error {
    fn from(error: gather::Error) -> Self {
        Self::Gather(Box::new(error))
    }
}

/// Puts what was tried, and on what, beside an I/O error.
pub(crate) trait IoContext<T> {
    /// Says that it was tried to `action` `path`.
    fn at(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}

const LISTED: usize = 8;

fn list(found: &[String]) -> String {
    let mut text = found.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if found.len() > LISTED {
        text = format!("{text} and {} more", found.len() - LISTED);
    }
    text
}

fn staging_hint(path: &Path, found: &[String]) -> String {
    let Some(left) = left_by_a_bake(found) else { return String::new() };
    format!(", left by a bake that was killed: remove it with `rm -rf {}`", path.join(left).display())
}

/// The only thing that was found, if it is a staging directory.
fn left_by_a_bake(found: &[String]) -> Option<&str> {
    match found {
        [only] => Some(only.as_str()).filter(|only| is_staging(only, STAGING_PREFIX)),
        _ => None,
    }
}
