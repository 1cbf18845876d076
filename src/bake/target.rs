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
//!
//! Both directories are held open from the beginning, and nobody but root may look into the staging directory. A user
//! whose directories lead there can rename and replace those, but what is written stays in what was opened, and goes
//! where the target was looked for, or nowhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::place::{self, CreatedParents, Marks, Place, STAGING_PREFIX};
use super::{Error, IoContext};
use crate::fsutil::{self, Held};

/// What a staging directory lets others than root do.
const OTHERS: u32 = 0o077;

/// A place for the new root, beside or inside the target and removed again unless committed.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    /// The target's name in the directory that holds `dir`; `None` where that is the target itself.
    name: Option<OsString>,
    dir: Directory,
    /// Staging directories that earlier bakes of this target left because they were killed.
    leftovers: Vec<PathBuf>,
    /// Only dropped, and after `dir`.
    _created_parents: CreatedParents,
}

/// A root in its place.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) path: PathBuf,
    /// It, open: from here on its path may lead elsewhere.
    pub(crate) directory: File,
}

/// A directory that goes when it is dropped, with all that is in it.
#[derive(Debug)]
struct Directory {
    /// What it was made in.
    parent: Held,
    /// With which name.
    name: OsString,
    held: Held,
    is_kept: bool,
    /// Only dropped, and after all else: tells other bakes that this one lives.
    _lock: File,
}

impl Directory {
    /// Makes one that nobody but root looks into.
    fn make(parent: Held, prefix: &str, target: &Path) -> Result<Self, Error> {
        let made = fsutil::temporary_directory(prefix, parent.path());
        let made = made.at("create a staging directory in", parent.name())?.keep();
        Self::take(parent, made.file_name().unwrap_or_default().to_owned(), target)
    }

    /// Takes the one that was made in `parent` with this name; or another one, put there in this moment by who may, but
    /// only if that is as good.
    fn take(parent: Held, name: OsString, target: &Path) -> Result<Self, Error> {
        let path = parent.name().join(&name);
        let held = parent.directory(&name).inspect_err(|_| {
            // Nobody is left to be told.
            let _ = parent.remove(&name);
        });
        let held = held.at("open", &path)?;
        // Empty and root's is that of another bake, too, for as long as that has not come to its first layer.
        let Some(lock) = fsutil::try_lock(held.path()).at("lock", held.name())? else {
            return Err(Error::TargetBeingBaked { path: target.to_owned() });
        };
        if parent.is_loose() {
            // Who put another one there has nothing written to it.
            let found = held.metadata().at("look at", &path)?;
            let is_own = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & OTHERS == 0;
            if !is_own || !held.is_empty().at("list", &path)? {
                return Err(Error::TargetMoved { path: target.to_owned() });
            }
        }
        Ok(Self { parent, name, held, is_kept: false, _lock: lock })
    }

    /// Moves it to another name beside it, which it then keeps.
    fn rename(&mut self, to: &OsStr) -> io::Result<bool> {
        if !self.parent.has(&self.name, &self.held) {
            return Ok(false);
        }
        self.parent.move_to(&self.name, &self.parent, to)?;
        self.is_kept = self.parent.has(to, &self.held);
        if !self.is_kept {
            // What was put in its place in this moment goes back there.
            let _ = self.parent.move_to(to, &self.parent, &self.name);
        }
        Ok(self.is_kept)
    }

    /// Removes it. What has its name may be another one by now, which goes only if it is empty.
    fn remove(&mut self) -> io::Result<()> {
        self.is_kept = true;
        self.held.clear()?;
        self.parent.remove(&self.name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.is_kept {
            // Nobody is left to be told.
            let _ = self.remove();
        }
    }
}

impl Staging {
    /// Checks that `target` may be baked into, for the `user` whom it is to belong to where that is not root, and makes
    /// the staging directory.
    ///
    /// Touches nothing where it refuses: not root, a daemon or another bake at work, a target that is not
    /// empty, that a plain user's link leads away from, that is not in the user's directories, or that no root can be
    /// written into.
    pub(crate) fn new(target: &Path, marks: Marks, user: Option<u32>) -> Result<Self, Error> {
        if !fsutil::is_root() {
            return Err(Error::NotRoot);
        }
        match Place::find(target, marks, user)? {
            Place::Inside(held) => {
                let target = held.name().to_owned();
                Self::at(target, None, held, STAGING_PREFIX, CreatedParents::default())
            }
            Place::Beside { above, missing, name } => {
                let (parent, created_parents) = place::create_parents(above, &missing, target)?;
                let prefix = place::prefix(&name);
                Self::at(parent.name().join(&name), Some(name), parent, &prefix, created_parents)
            }
        }
    }

    /// Makes the staging directory in `parent`, which is the target itself or the directory it is to stand in.
    fn at(
        target: PathBuf,
        name: Option<OsString>,
        parent: Held,
        prefix: &str,
        created_parents: CreatedParents,
    ) -> Result<Self, Error> {
        let leftovers = place::leftovers(&target, &parent, prefix)?;
        let dir = Directory::make(parent, prefix, &target)?;
        Ok(Self { target, name, dir, leftovers, _created_parents: created_parents })
    }

    /// The directory in which the root is built, as this process gets there.
    pub(crate) fn path(&self) -> &Path {
        self.dir.held.path()
    }

    /// Staging directories that earlier bakes of this target left because they were killed.
    pub(crate) fn leftovers(&self) -> &[PathBuf] {
        &self.leftovers
    }

    /// Syncs once and puts the root in place.
    ///
    /// `last` names the entries of the root, relative to it, that must come after all others.
    ///
    /// # Errors
    /// With [`Error::NotSynced`] the root is in its place; with any other the target is as it was.
    pub(crate) fn commit(self, last: &[&str]) -> Result<Committed, Error> {
        self.commit_synced_by(last, |directory| directory.file().sync_all())
    }

    /// The same, with a way to make the entries of a directory durable.
    fn commit_synced_by(
        mut self,
        last: &[&str],
        sync: impl FnMut(&Held) -> io::Result<()>,
    ) -> Result<Committed, Error> {
        let staged = &self.dir.held;
        let root = if self.name.is_some() { staged } else { &self.dir.parent };
        let directory = root.file().try_clone().at("open", root.name())?;
        fsutil::sync_file_system(staged.file()).at("sync", staged.name())?;
        // Somebody may have been busy here while the layers came in.
        if !self.dir.parent.is_in_place() {
            return Err(Error::TargetMoved { path: self.target });
        }
        match self.name.clone() {
            Some(name) => self.rename(&name, sync)?,
            None => self.move_up(last, sync)?,
        }
        Ok(Committed { path: self.target, directory })
    }

    /// Makes it the target, which is absent.
    fn rename(&mut self, name: &OsStr, mut sync: impl FnMut(&Held) -> io::Result<()>) -> Result<(), Error> {
        let path = &self.target;
        match self.dir.rename(name) {
            Ok(true) => {
                let synced = sync(&self.dir.parent).at("sync", self.dir.parent.name());
                synced.map_err(|error| error.of_root_in_place(path))
            }
            Ok(false) => Err(Error::TargetMoved { path: path.clone() }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::TargetNotEmpty { path: path.clone(), found: vec!["the directory itself".into()] })
            }
            Err(error) => Err(error).at("move into place", path),
        }
    }

    /// Moves what is in it into the target, which is empty but for it.
    fn move_up(&mut self, last: &[&str], mut sync: impl FnMut(&Held) -> io::Result<()>) -> Result<(), Error> {
        let Directory { parent: target, name: own, held: staged, .. } = &self.dir;
        place::require_empty_but(target, own)?;
        let names = place::names(staged)?;
        let mut moved: Vec<OsString> = Vec::new();
        let count = names.len();
        for name in in_order(names, last) {
            let renamed =
                staged.move_to(&name, target, &name).at("move into place", &self.target.join(&name));
            if renamed.is_ok() {
                moved.push(name);
            }
            let synced = renamed.and_then(|()| sync(target).at("sync", &self.target));
            let Err(error) = synced else { continue };
            if moved.len() == count {
                return Err(error.of_root_in_place(&self.target));
            }
            for back in moved.iter().rev() {
                // Nothing better can be done for one that will not go back.
                let _ = target.move_to(back, staged, back);
            }
            return Err(error);
        }
        // A directory that is left, and empty, does no harm; the root is there.
        let _ = self.dir.remove();
        Ok(())
    }

    /// Gives up: removes what was staged, and says where that failed.
    pub(crate) fn discard(mut self) -> Result<(), Error> {
        let path = self.dir.held.name().to_owned();
        self.dir.remove().at("remove", &path)
    }
}

/// `names` with `last` after all others.
fn in_order(mut names: Vec<OsString>, last: &[&str]) -> Vec<OsString> {
    names.sort_by_cached_key(|name| {
        (last.iter().position(|l| name == l).map_or(0, |at| at + 1), name.clone())
    });
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::chown;

    /// What is put in the place of a staging directory between its making and its opening. Needs root, as a bake does.
    #[test]
    fn a_staging_directory_is_of_one_bake() {
        if !fsutil::is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        for made in ["home", "home/theirs", "home/full/in"] {
            fs::create_dir_all(directory.path().join(made)).unwrap();
        }
        for theirs in [home.clone(), home.join("theirs")] {
            chown(theirs, Some(4242), None).unwrap();
        }
        let target = home.join("root");
        let other = Staging::new(&target, Marks::Any, None).unwrap();
        let its = other.dir.name.to_str().unwrap();
        for (name, is_baked) in [(its, true), ("theirs", false), ("full", false)] {
            let parent = Held::open(&home).unwrap();
            match Directory::take(parent, name.into(), &target).unwrap_err() {
                Error::TargetBeingBaked { .. } => assert!(is_baked, "{name}"),
                Error::TargetMoved { .. } => assert!(!is_baked, "{name}"),
                error => panic!("{name}: {error}"),
            }
        }
        // And nothing of it is gone.
        fs::write(other.path().join("cache.db"), "").unwrap();
        other.commit(&[]).unwrap();
        assert!(target.join("cache.db").exists() && home.join("full/in").exists());
    }

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
            let staging = Staging::new(&target, Marks::Any, None).unwrap();
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
            let staging = Staging::new(&target, Marks::Any, None).unwrap();
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
