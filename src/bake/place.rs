//! Where the staging directory of a target has to be, and whether the target may be baked into.
//!
//! The directory is [held](crate::fsutil::Held): who bakes as root for a user works in directories of that user.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Component, Path, PathBuf};

use super::{Error, IoContext};
use crate::fsutil::{self, Held, HoldError};
use crate::store::state_dir::LOCK;

/// Names that an empty target may hold: `mkfs.ext4` makes this one.
const HARMLESS: &[&str] = &["lost+found"];
pub(super) const STAGING_PREFIX: &str = ".warmkit-";

/// What the marks of overlays ask of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// Nothing: there are none, or `trusted.*` attributes, which any has on which overlays work at all.
    Any,
    /// `user.*` attributes, as fuse-overlayfs has them that a plain user runs.
    InUserXattrs,
    /// The same of the kernel's overlayfs, mounted by a plain user's daemon, which asks for none on a tmpfs.
    OfUsers,
}

/// Directories made on the way to the target, outermost first, each with the one that it is in; those that stay empty go
/// again.
#[derive(Debug, Default)]
pub(super) struct CreatedParents(Vec<(Held, OsString)>);

impl Drop for CreatedParents {
    fn drop(&mut self) {
        for (above, name) in self.0.iter().rev() {
            // One that holds the root, or somebody else's file, refuses and stays.
            let _ = above.remove(name);
        }
    }
}

/// Where the staging directory of a target has to be.
#[derive(Debug)]
pub(super) enum Place {
    /// In the target, which is an empty directory.
    Inside(Held),
    /// In the directory where the target will be.
    Beside {
        /// The nearest one above the target that is there.
        above: Held,
        /// Those that are missing from there on.
        missing: Vec<OsString>,
        /// The target's own name.
        name: OsString,
    },
}

impl Place {
    /// Touches nothing.
    ///
    /// # Errors
    /// The target may not be baked into; for a `user`, whom it is to belong to, only where that user could make it.
    pub(super) fn find(target: &Path, marks: Marks, user: Option<u32>) -> Result<Self, Error> {
        let place = Self::of(target)?;
        let nearest = place.nearest();
        if let Some(user) = user
            && nearest.metadata().at("look at", nearest.name())?.uid() != user
        {
            return Err(Error::TargetNotOfUser {
                path: target.to_owned(),
                at: nearest.name().to_owned(),
                user,
            });
        }
        require_fit(nearest, marks)?;
        Ok(place)
    }

    fn of(target: &Path) -> Result<Self, Error> {
        let target = std::path::absolute(target).at("resolve", target)?;
        match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => {
                let held = hold(&target, &target)?.resolved().at("resolve", &target)?;
                require_empty(&held)?;
                Ok(Self::Inside(held))
            }
            Ok(_) => Err(Error::TargetNotDirectory { path: target }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&target).is_ok() {
                    return Err(Error::TargetNotDirectory { path: target });
                }
                let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
                    return Err(Error::TargetNotDirectory { path: target });
                };
                let mut nearest = fsutil::nearest(parent).at("look at", parent)?;
                let mut missing = PathBuf::new();
                let mut is_detour = false;
                for component in parent.strip_prefix(&nearest).unwrap_or(Path::new("")).components() {
                    if component != Component::ParentDir {
                        missing.push(component);
                        continue;
                    }
                    is_detour = true;
                    // What is made has no links in it.
                    if !missing.pop() {
                        nearest.push(component);
                    }
                }
                if is_detour {
                    // Where the way ends without what it would only go through, something may be.
                    return Self::of(&nearest.join(missing).join(name));
                }
                Ok(Self::Beside {
                    above: hold(&nearest, &target)?,
                    missing: missing.iter().map(OsStr::to_owned).collect(),
                    name: name.to_owned(),
                })
            }
            Err(error) => Err(error).at("look at", &target),
        }
    }

    fn nearest(&self) -> &Held {
        match self {
            Self::Inside(held) | Self::Beside { above: held, .. } => held,
        }
    }
}

/// Opens a directory on the way to `target`, or it.
fn hold(path: &Path, target: &Path) -> Result<Held, Error> {
    Held::open(path).map_err(|error| match error {
        HoldError::LedAway { there, foreign } => {
            Error::TargetLedAway { path: target.to_owned(), there, by: foreign.path, user: foreign.owner }
        }
        HoldError::Io(source) => Error::Io { action: "open", path: path.to_owned(), source },
    })
}

/// What the staging directories of a target begin with that stand beside it.
pub(super) fn prefix(name: &OsStr) -> String {
    format!("{STAGING_PREFIX}{}-", name.to_string_lossy())
}

/// Whether a bake gives such a name to a staging directory. What follows the prefix is random: more than that belongs to a
/// target whose name goes on where this one ends, or is none of ours, and people are told to remove ours by a command.
pub(super) fn is_staging(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|random| random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Checks that `target` may be baked into, by whoever may; touches nothing.
///
/// # Errors
/// As [`super::target::Staging::new`].
pub(super) fn check(target: &Path, marks: Marks, user: Option<u32>) -> Result<(), Error> {
    match Place::find(target, marks, user)? {
        Place::Beside { above, missing, name } if missing.is_empty() => {
            leftovers(target, &above, &prefix(&name)).map(drop)
        }
        _ => Ok(()),
    }
}

/// Refuses where the root cannot be written, or not as its daemon finds it.
fn require_fit(at: &Held, marks: Marks) -> Result<(), Error> {
    let (path, name) = (at.path(), at.name());
    if fsutil::is_read_only(path).at("look at the file system of", name)? {
        return Err(Error::TargetReadOnly { path: name.to_owned() });
    }
    let is_tmpfs =
        marks == Marks::OfUsers && fsutil::is_on_tmpfs(path).at("look at the file system of", name)?;
    let has_none = || fsutil::takes_user_xattrs(path).map(|takes| !takes).at("read attributes of", name);
    if is_tmpfs || marks != Marks::Any && has_none()? {
        return Err(Error::NoMarks { path: name.to_owned(), is_tmpfs });
    }
    Ok(())
}

/// Staging directories of `target` in `parent` that nobody is at work in.
pub(super) fn leftovers(target: &Path, parent: &Held, prefix: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for name in names(parent)? {
        if name.to_str().is_some_and(|name| is_staging(name, prefix)) {
            require_unlocked(target, parent, &name)?;
            found.push(parent.name().join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// Refuses where a bake of `target` is at work in the staging directory `name` of `parent`.
fn require_unlocked(target: &Path, parent: &Held, name: &OsStr) -> Result<(), Error> {
    let path = parent.name().join(name);
    if fsutil::is_locked(&parent.path().join(name)).at("test the lock of", &path)? {
        return Err(Error::TargetBeingBaked { path: target.to_owned() });
    }
    Ok(())
}

pub(super) fn names(directory: &Held) -> Result<Vec<OsString>, Error> {
    directory.names().at("list", directory.name())
}

/// Makes the directories that are missing below `above`, and opens the last.
pub(super) fn create_parents(
    above: Held,
    missing: &[OsString],
    target: &Path,
) -> Result<(Held, CreatedParents), Error> {
    let mut created = CreatedParents::default();
    let mut at = above;
    for name in missing {
        let path = at.name().join(name);
        let again = at.again().at("open", at.name())?;
        let is_made = at.make(name, 0o755).at("create", &path)?;
        if is_made {
            created.0.push((again, name.clone()));
        }
        let next = at.directory(name).at("open", &path)?;
        if is_made {
            give(&next, &at, target)?;
        }
        at = next;
    }
    Ok((at, created))
}

/// Has a directory that was made go on as if those had made it whose home, or data directory, it is `above` in.
fn give(made: &Held, above: &Held, target: &Path) -> Result<(), Error> {
    let path = made.name();
    // Until it is theirs nobody bakes in it: it may be the staging directory of another bake, put there in this moment.
    let lock = fsutil::try_lock(made.path()).at("lock", path)?;
    let (found, of) = (made.metadata().at("look at", path)?, above.metadata().at("look at", above.name())?);
    if above.is_loose() {
        if lock.is_none() {
            return Err(Error::TargetBeingBaked { path: target.to_owned() });
        }
        // Who put another one there gets nothing that was not theirs, nor a look into it.
        let is_new = if found.uid() == rustix::process::geteuid().as_raw() {
            made.is_empty().at("list", path)?
        } else {
            found.uid() == of.uid()
        };
        if !is_new {
            return Err(Error::TargetMoved { path: target.to_owned() });
        }
    }
    fchown(made.file(), Some(of.uid()), Some(of.gid())).at("change owner of", path)
}

fn require_empty(target: &Held) -> Result<(), Error> {
    if fsutil::is_locked(&target.path().join(LOCK)).at("test the lock of", &target.name().join(LOCK))? {
        return Err(Error::TargetBusy { path: target.name().to_owned() });
    }
    require_empty_but(target, OsStr::new(""))
}

/// Refuses a target that has more in it than `own`.
pub(super) fn require_empty_but(target: &Held, own: &OsStr) -> Result<(), Error> {
    let mut found = Vec::new();
    for name in names(target)? {
        let text = name.to_string_lossy().into_owned();
        if HARMLESS.contains(&text.as_str()) || name == own {
            continue;
        }
        if text.starts_with(STAGING_PREFIX) {
            require_unlocked(target.name(), target, &name)?;
        }
        found.push(text);
    }
    if found.is_empty() {
        return Ok(());
    }
    found.sort();
    Err(Error::TargetNotEmpty { path: target.name().to_owned(), found })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    /// What is put in the place of a directory between its making and its opening. Needs root, as a bake does.
    #[test]
    fn nothing_is_given_away_but_what_was_made() {
        if !fsutil::is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        chown(base.path(), Some(4242), Some(4242)).unwrap();
        for (name, file, owner) in [
            ("made", "", 0),
            ("full", "in", 0),
            ("locked", "", 0),
            ("theirs", "in", 4242),
            ("other", "", 4243),
        ] {
            fs::create_dir_all(base.path().join(name).join(file)).unwrap();
            chown(base.path().join(name), Some(owner), Some(0)).unwrap();
        }
        let _lock = fsutil::try_lock(&base.path().join("locked")).unwrap().unwrap();
        let above = Held::open(base.path()).unwrap();
        for (name, is_given) in
            [("made", true), ("full", false), ("locked", false), ("theirs", true), ("other", false)]
        {
            let given = give(&above.directory(name.as_ref()).unwrap(), &above, base.path());
            assert_eq!(given.is_ok(), is_given, "{name}: {given:?}");
            let found = fs::metadata(base.path().join(name)).unwrap();
            assert_eq!((found.uid(), found.gid()) == (4242, 4242), is_given, "{name}");
        }
    }

    #[test]
    fn what_is_missing_is_named_without_detours() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("there/in")).unwrap();
        symlink("there/in", base.path().join("link")).unwrap();
        for (target, nearest, expected) in [
            ("root", "", &[][..]),
            ("a/b/root", "", &["a", "b"]),
            ("a/../b/root", "", &["b"]),
            ("there/../root", "there/..", &[]),
            ("there/a/./../root", "there", &[]),
            ("there/a/../../root", "there/..", &[]),
            ("there/a/b/../../../c/root", "there/..", &["c"]),
            ("there/a/../../there/root", "there/../there", &[]),
            // Where the link leads to, that is above it.
            ("link/a/../../root", "link/..", &[]),
        ] {
            let place = Place::of(&base.path().join(target)).unwrap();
            let Place::Beside { above, missing, name } = place else { panic!("{target}: {place:?}") };
            // In bytes: paths are equal whose dots are not.
            assert_eq!(
                above.name().as_os_str(),
                base.path().join(nearest).components().as_path().as_os_str(),
                "{target}"
            );
            assert_eq!(
                (missing, name),
                (expected.iter().map(OsString::from).collect(), "root".into()),
                "{target}"
            );
        }
        for target in ["a/../there/in", "there/a/../../there/b/../in", "link/a/.."] {
            let found = Place::of(&base.path().join(target));
            match (found, target.ends_with("in")) {
                (Ok(Place::Inside(held)), true) => assert!(held.name().ends_with("there/in"), "{target}"),
                (Err(Error::TargetNotDirectory { .. }), false) => {}
                (found, _) => panic!("{target}: {found:?}"),
            }
        }
        let error = Place::of(&base.path().join("a/../there")).unwrap_err();
        assert!(matches!(error, Error::TargetNotEmpty { .. }), "{error}");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 2);
    }

    /// Needs root, as a bake does.
    #[test]
    fn a_root_for_a_user_is_in_what_is_that_users() {
        if !fsutil::is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        for name in ["home", "roots", "theirs"] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        for (name, owner) in [("home", 4242), ("theirs", 4243)] {
            chown(base.path().join(name), Some(owner), None).unwrap();
        }
        for (target, at) in [
            ("home", None),
            ("home/a/root", None),
            ("root", Some("")),
            ("roots", Some("roots")),
            ("roots/a/root", Some("roots")),
            ("theirs/root", Some("theirs")),
        ] {
            let target = base.path().join(target);
            match (Place::find(&target, Marks::Any, Some(4242)), at) {
                (Ok(place), None) => assert!(place.nearest().is_loose()),
                (Err(Error::TargetNotOfUser { at, user: 4242, .. }), Some(expected)) => {
                    assert_eq!(at, base.path().join(expected).components().as_path());
                }
                (found, _) => panic!("{}: {found:?}", target.display()),
            }
            Place::find(&target, Marks::Any, None).unwrap();
        }
    }

    #[test]
    fn names_of_staging_directories() {
        for (name, prefix, expected) in [
            (".warmkit-aB3dE6", STAGING_PREFIX, true),
            (".warmkit-root-aB3dE6", STAGING_PREFIX, false),
            (".warmkit-root-aB3dE6", ".warmkit-root-", true),
            (".warmkit-root-2-aB3dE6", ".warmkit-root-", false),
            (".warmkit-a;b", STAGING_PREFIX, false),
            ("root", STAGING_PREFIX, false),
        ] {
            assert_eq!(is_staging(name, prefix), expected, "{name}");
        }
    }
}
