//! Where a bake writes, and how what it wrote becomes the root: all of it, or nothing.
//!
//! ```text
//! target absent          <parent>/.warmkit-<name>-XXXXXX/   built here, then renamed to <name>
//! target an empty        <target>/.warmkit-XXXXXX/          built here; then its entries move up one
//! directory or a mount                                      by one, the solver's cache.db last
//! ```
//!
//! An existing directory keeps its inode, owner and mode, since it may be a mount point or the
//! volume of a container. A root whose `cache.db` is missing is cold but sound, so a crash between
//! the last two renames costs warmth, never a build. Until the first rename the target is as it was.
//!
//! A bake holds a lock on the directory it builds in: one that nobody holds was left by a bake that
//! was killed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Error, IoContext};
use crate::fsutil;
use crate::store::state_dir::LOCK;

/// Names that an empty target may hold: `mkfs.ext4` makes this one.
const HARMLESS: &[&str] = &["lost+found"];
pub(crate) const STAGING_PREFIX: &str = ".warmkit-";

/// A place for the new root, beside or inside the target and removed again unless committed.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    in_place: bool,
    dir: TempDir,
    /// Staging directories that earlier bakes of this target left because they were killed.
    leftovers: Vec<PathBuf>,
    /// Only dropped: tells other bakes that this one lives.
    _lock: Option<File>,
    /// Only dropped, and after `dir`.
    _created_parents: CreatedParents,
}

/// What the marks of overlays ask of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// Nothing: there are none, or `trusted.*` attributes, which any has on which overlays work at all.
    Any,
    /// `user.*` attributes, as fuse-overlayfs has them that a plain user runs.
    InUserXattrs,
    /// The same of the kernel's overlayfs, mounted by a plain user's daemon, which asks for none on a tmpfs.
    OfUsers,
}

/// Directories made on the way to the target, outermost first; those that stay empty go again.
#[derive(Debug, Default)]
struct CreatedParents(Vec<PathBuf>);

impl Drop for CreatedParents {
    fn drop(&mut self) {
        for parent in self.0.iter().rev() {
            // One that holds the root, or somebody else's file, refuses and stays.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Where the staging directory of a target has to be.
enum Place {
    /// In the target, which is an empty directory.
    Inside(PathBuf),
    /// In the directory where the target will be, which may be missing too.
    Beside { target: PathBuf, parent: PathBuf, prefix: String },
}

impl Place {
    /// Touches nothing.
    ///
    /// # Errors
    /// The target may not be baked into.
    fn find(target: &Path, marks: Marks) -> Result<Self, Error> {
        let place = Self::of(target)?;
        require_fit(target, marks)?;
        Ok(place)
    }

    fn of(target: &Path) -> Result<Self, Error> {
        let target = std::path::absolute(target).at("resolve", target)?;
        match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => {
                let target = target.canonicalize().at("resolve", &target)?;
                require_empty(&target)?;
                Ok(Self::Inside(target))
            }
            Ok(_) => Err(Error::TargetNotDirectory { path: target }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&target).is_ok() {
                    return Err(Error::TargetNotDirectory { path: target });
                }
                let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
                    return Err(Error::TargetNotDirectory { path: target });
                };
                let prefix = format!("{STAGING_PREFIX}{}-", name.to_string_lossy());
                Ok(Self::Beside { parent: parent.to_owned(), prefix, target })
            }
            Err(error) => Err(error).at("look at", &target),
        }
    }
}

/// Checks that `target` may be baked into, by whoever may; touches nothing.
///
/// # Errors
/// As [`Staging::new`].
pub(crate) fn check(target: &Path, marks: Marks) -> Result<(), Error> {
    match Place::find(target, marks)? {
        Place::Beside { target, parent, prefix } if parent.exists() => {
            leftovers(&target, &parent, &prefix).map(drop)
        }
        _ => Ok(()),
    }
}

/// Refuses where the root cannot be written, or not as its daemon finds it.
fn require_fit(target: &Path, marks: Marks) -> Result<(), Error> {
    let path = fsutil::nearest(target).at("look at", target)?;
    if fsutil::is_read_only(&path).at("look at the file system of", &path)? {
        return Err(Error::TargetReadOnly { path });
    }
    let is_tmpfs =
        marks == Marks::OfUsers && fsutil::is_on_tmpfs(&path).at("look at the file system of", &path)?;
    let has_none = || fsutil::takes_user_xattrs(&path).map(|takes| !takes).at("read attributes of", &path);
    if is_tmpfs || marks != Marks::Any && has_none()? {
        return Err(Error::NoMarks { path, is_tmpfs });
    }
    Ok(())
}

impl Staging {
    /// Checks that `target` may be baked into and makes the staging directory.
    ///
    /// Touches nothing where it refuses: not root, a daemon or another bake at work, a target that is not
    /// empty, or that no root can be written into.
    pub(crate) fn new(target: &Path, marks: Marks) -> Result<Self, Error> {
        if !fsutil::is_root() {
            return Err(Error::NotRoot);
        }
        match Place::find(target, marks)? {
            Place::Inside(target) => {
                Self::at(target.clone(), &target, STAGING_PREFIX, CreatedParents::default())
            }
            Place::Beside { target, parent, prefix } => {
                let created_parents = create_parents(&parent)?;
                Self::at(target, &parent, &prefix, created_parents)
            }
        }
    }

    /// Makes the staging directory in `parent`, which is the target itself or the directory it is to stand in.
    fn at(
        target: PathBuf,
        parent: &Path,
        prefix: &str,
        created_parents: CreatedParents,
    ) -> Result<Self, Error> {
        let leftovers = leftovers(&target, parent, prefix)?;
        let dir = fsutil::temporary_directory(prefix, parent).at("create a staging directory in", parent)?;
        let lock = fsutil::try_lock(dir.path()).at("lock", dir.path())?;
        let in_place = parent == target;
        Ok(Self { target, in_place, dir, leftovers, _lock: lock, _created_parents: created_parents })
    }

    /// The directory in which the root is built.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Staging directories that earlier bakes of this target left because they were killed.
    pub(crate) fn leftovers(&self) -> &[PathBuf] {
        &self.leftovers
    }

    /// Syncs once and puts the root in place. Returns the target's path.
    ///
    /// `last` names the entries of the root, relative to it, that must come after all others.
    ///
    /// # Errors
    /// With [`Error::NotSynced`] the root is in its place; with any other the target is as it was.
    pub(crate) fn commit(self, last: &[&str]) -> Result<PathBuf, Error> {
        self.commit_synced_by(last, fsutil::sync_directory)
    }

    /// The same, with a way to make the entries of a directory durable.
    fn commit_synced_by(
        self,
        last: &[&str],
        mut sync: impl FnMut(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, Error> {
        let staged = self.dir.path();
        fsutil::sync_file_system(staged).at("sync", staged)?;
        // Somebody may have been busy here while the layers came in.
        if self.in_place {
            require_empty_but(&self.target, staged)?;
            let names: Vec<_> = fs::read_dir(staged)
                .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>())
                .at("list", staged)?;
            let mut moved: Vec<PathBuf> = Vec::new();
            let count = names.len();
            for name in in_order(names, last) {
                let to = self.target.join(&name);
                let renamed = fs::rename(staged.join(&name), &to).at("move into place", &to);
                if renamed.is_ok() {
                    moved.push(to);
                }
                let synced = renamed.and_then(|()| sync(&self.target).at("sync", &self.target));
                let Err(error) = synced else { continue };
                if moved.len() == count {
                    return Err(error.of_root_in_place(&self.target));
                }
                for back in moved.iter().rev() {
                    if let Some(name) = back.file_name() {
                        // Nothing better can be done for one that will not go back.
                        let _ = fs::rename(back, staged.join(name));
                    }
                }
                return Err(error);
            }
            drop(self.dir);
        } else {
            if fs::symlink_metadata(&self.target).is_ok() {
                return Err(Error::TargetNotEmpty {
                    path: self.target,
                    found: vec!["the directory itself".into()],
                });
            }
            let staged = self.dir.keep();
            if let Err(error) = fs::rename(&staged, &self.target) {
                let _ = fs::remove_dir_all(&staged);
                return Err(error).at("move into place", &self.target);
            }
            if let Some(parent) = self.target.parent() {
                let synced = sync(parent).at("sync", parent);
                synced.map_err(|error| error.of_root_in_place(&self.target))?;
            }
        }
        Ok(self.target)
    }

    /// Gives up: removes what was staged, and says where that failed.
    pub(crate) fn discard(self) -> Result<(), Error> {
        let path = self.dir.path().to_owned();
        self.dir.close().at("remove", &path)
    }
}

/// `names` with `last` after all others.
fn in_order(mut names: Vec<OsString>, last: &[&str]) -> Vec<OsString> {
    names.sort_by_cached_key(|name| {
        (last.iter().position(|l| name == l).map_or(0, |at| at + 1), name.clone())
    });
    names
}

/// Staging directories of `target` in `parent` that nobody is at work in.
fn leftovers(target: &Path, parent: &Path, prefix: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).at("list", parent)? {
        let entry = entry.at("list", parent)?;
        let name = entry.file_name();
        // What follows is random. More than that belongs to a target whose name goes on where this one ends.
        let random = name.to_str().and_then(|name| name.strip_prefix(prefix));
        if random.is_some_and(|random| !random.contains('-')) {
            require_unlocked(target, &entry.path())?;
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Refuses where a bake of `target` is at work in its staging directory `staged`.
fn require_unlocked(target: &Path, staged: &Path) -> Result<(), Error> {
    if fsutil::is_locked(staged).at("test the lock of", staged)? {
        return Err(Error::TargetBeingBaked { path: target.to_owned() });
    }
    Ok(())
}

/// Makes the missing directories down to `path`.
fn create_parents(path: &Path) -> Result<CreatedParents, Error> {
    let mut missing: Vec<_> = path.ancestors().take_while(|p| !p.exists()).map(Path::to_owned).collect();
    missing.reverse();
    let missing = CreatedParents(missing);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).at("create", path)?;
    // Whose home it is in, or data directory, goes on there as if they had made it.
    for made in &missing.0 {
        if let Some(parent) = made.parent() {
            let owner = fs::metadata(parent).at("look at", parent)?;
            lchown(made, Some(owner.uid()), Some(owner.gid())).at("change owner of", made)?;
        }
    }
    Ok(missing)
}

fn require_empty(target: &Path) -> Result<(), Error> {
    let lock = target.join(LOCK);
    if fsutil::is_locked(&lock).at("test the lock of", &lock)? {
        return Err(Error::TargetBusy { path: target.to_owned() });
    }
    require_empty_but(target, Path::new(""))
}

fn require_empty_but(target: &Path, own: &Path) -> Result<(), Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(target).at("list", target)? {
        let entry = entry.at("list", target)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if HARMLESS.contains(&name.as_str()) || entry.path() == own {
            continue;
        }
        if name.starts_with(STAGING_PREFIX) {
            require_unlocked(target, &entry.path())?;
        }
        found.push(name);
    }
    if found.is_empty() {
        return Ok(());
    }
    found.sort();
    Err(Error::TargetNotEmpty { path: target.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_come_last_comes_last() {
        let names = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
        let ordered = in_order(names(&["cache.db", "runc-overlayfs", "a", "b"]), &["b", "cache.db"]);
        assert_eq!(ordered, names(&["a", "runc-overlayfs", "b", "cache.db"]));
    }

    /// Needs root, as a bake does.
    #[test]
    fn a_disk_that_fails_to_sync_leaves_the_root_or_nothing() {
        if !fsutil::is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        // Which sync fails, and whether the root is there then.
        for (name, exists, failing, is_there) in [
            ("absent", false, 0, true),
            ("first", true, 0, false),
            ("second", true, 1, false),
            ("last", true, 2, true),
        ] {
            let target = directory.path().join(name);
            if exists {
                fs::create_dir(&target).unwrap();
            }
            let staging = Staging::new(&target, Marks::Any).unwrap();
            for file in ["a", "b", "cache.db"] {
                fs::write(staging.path().join(file), "").unwrap();
            }
            let mut syncs = 0..;
            let error = staging
                .commit_synced_by(&["cache.db"], |_| match syncs.next() {
                    Some(sync) if sync == failing => Err(io::Error::from(io::ErrorKind::StorageFull)),
                    _ => Ok(()),
                })
                .unwrap_err()
                .or_full(&target, directory.path());
            assert_eq!(matches!(error, Error::NotSynced { .. }), is_there, "{name}: {error}");
            let mut found: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
            found.sort();
            assert_eq!(found, if is_there { &["a", "b", "cache.db"][..] } else { &[] }, "{name}");
        }
    }

    /// Needs root, as a bake does.
    #[test]
    fn what_appears_at_the_target_meanwhile_stays() {
        if !fsutil::is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        for (name, exists) in [("there", true), ("absent", false)] {
            let target = directory.path().join(name);
            if exists {
                fs::create_dir(&target).unwrap();
            }
            let staging = Staging::new(&target, Marks::Any).unwrap();
            fs::write(staging.path().join("cache.db"), "ours").unwrap();
            fs::create_dir_all(&target).unwrap();
            fs::write(target.join("cache.db"), "theirs").unwrap();
            let error = staging.commit(&[]).unwrap_err();
            assert!(matches!(error, Error::TargetNotEmpty { .. }), "{name}: {error}");
            assert_eq!(fs::read_to_string(target.join("cache.db")).unwrap(), "theirs", "{name}");
            assert_eq!(fs::read_dir(&target).unwrap().count(), 1, "{name}");
        }
    }
}
