//! Directories that root works in although somebody else may rename, replace and link what leads to them.
//!
//! ```text
//! /  home  ci  .local  share  buildkit
//! └root's─┘└── the user's: each may be another one, or a link, at any moment ──┘
//! ```
//!
//! A name there says nothing for long, so the directory is opened once, looked at, and held: what is made, renamed and
//! removed in it is named from the descriptor, and paths that go through it begin with `/proc/self/fd`. Where all that
//! leads to it is root's alone, a path does.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// The mode's bits that let others than the owner make and remove names; an access list that does shows in them, too.
const OTHERS_WRITE: u32 = 0o022;
/// The bit that keeps them from removing and renaming what is not theirs.
const STICKY: u32 = 0o1000;
/// As many links on one way the kernel follows.
const MAX_LINKS: u32 = 40;

/// What others than root may turn elsewhere: a directory in which they rename, replace and link as they like, or a link of
/// theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Where it is; all that leads to it is root's alone.
    pub path: PathBuf,
    /// Its owner.
    pub owner: u32,
}

/// The first thing on the way to `path`, which is there, by which somebody else than root may have it lead elsewhere.
///
/// None for who is not root; nor where `/` is another's: there root is that of a user's namespace, and may do no more
/// than its user.
///
/// # Errors
/// It cannot be looked at.
pub fn foreign(path: &Path) -> io::Result<Option<Foreign>> {
    if !super::is_root() || fs::metadata("/")?.uid() != 0 {
        return Ok(None);
    }
    Ok(follow(&std::path::absolute(path)?, &mut 0)?.err())
}

/// Where `path`, which is absolute, leads to without links; or the first that is foreign on the way.
fn follow(path: &Path, links: &mut u32) -> io::Result<Result<PathBuf, Foreign>> {
    let mut at = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            at.pop();
            continue;
        }
        let next = at.join(component);
        let found = fs::symlink_metadata(&next)?;
        if !found.is_symlink() {
            if found.is_dir() && !is_roots_alone(&found) {
                return Ok(Err(Foreign { path: next, owner: found.uid() }));
            }
            at = next;
            continue;
        }
        // Where nobody but root may make links nor replace them, it does not matter whose one is.
        if found.uid() != 0 && fs::metadata(&at)?.mode() & OTHERS_WRITE != 0 {
            return Ok(Err(Foreign { path: next, owner: found.uid() }));
        }
        *links += 1;
        if *links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        match follow(&at.join(fs::read_link(&next)?), links)? {
            Ok(there) => at = there,
            foreign => return Ok(foreign),
        }
    }
    Ok(Ok(at))
}

/// Whether nobody but root may rename or replace what root has in this directory.
fn is_roots_alone(directory: &Metadata) -> bool {
    let mode = directory.mode();
    directory.uid() == 0 && (mode & OTHERS_WRITE == 0 || mode & STICKY != 0)
}

/// The directory nearest to `path`, which is a directory itself, on the same file system, that nobody but root can take
/// away from under who works in it: `path`, or one above it.
///
/// # Errors
/// `path` cannot be looked at.
pub fn nearest_of_root(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = path.canonicalize()?;
    let device = fs::metadata(&path)?.dev();
    for above in path.ancestors() {
        if fs::metadata(above)?.dev() != device {
            break;
        }
        if foreign(above)?.is_none() {
            return Ok(Some(above.to_owned()));
        }
    }
    Ok(None)
}

/// A directory that is held open.
#[derive(Debug)]
pub struct Held {
    file: File,
    /// As it was named.
    name: PathBuf,
    /// Where what is done is done in it.
    path: PathBuf,
    /// Whether others than root may turn its name elsewhere.
    is_loose: bool,
}

/// Why a directory is not to be worked in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// A link of a plain user leads root to where that user has no say.
    #[error("leads to {}", there.display())]
    LedAway {
        /// Where it leads.
        there: PathBuf,
        /// From where.
        foreign: Foreign,
    },
    /// It cannot be opened or looked at.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Held {
    /// Opens `path`, and follows links; those of a plain user only within the user's own directory, and to directories of
    /// that user.
    ///
    /// # Errors
    /// It is no directory, cannot be looked at, or is led away to.
    pub fn open(path: &Path) -> Result<Self, HoldError> {
        let name = std::path::absolute(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(CWD, &name, flags, Mode::empty()).map_err(io::Error::from)?);
        let foreign = foreign(&name)?;
        let held = Self::of(file, name, foreign.is_some());
        let Some(foreign) = foreign else {
            // All of the way is root's alone, and was before: so it led here.
            return Ok(held);
        };
        // What is open stays what it is, and above what is foreign nobody moves anything.
        let there = held.there()?;
        let is_theirs = foreign.owner != 0 && held.file.metadata()?.uid() == foreign.owner;
        if is_theirs || there.starts_with(&foreign.path) {
            return Ok(held);
        }
        Err(HoldError::LedAway { there, foreign })
    }

    /// Where it is at this moment, without links.
    fn there(&self) -> io::Result<PathBuf> {
        if !self.is_loose {
            return self.name.canonicalize();
        }
        fs::read_link(descriptor(&self.file))
            .map_err(|error| io::Error::new(error.kind(), format!("/proc/self/fd: {error}")))
    }

    /// The same, named without links.
    ///
    /// # Errors
    /// It is not known where it is.
    pub fn resolved(self) -> io::Result<Self> {
        let name = self.there()?;
        Ok(Self::of(self.file, name, self.is_loose))
    }

    fn of(file: File, name: PathBuf, is_loose: bool) -> Self {
        // With the dot it is the directory itself for all calls, also for those that do not follow links.
        let path = if is_loose { descriptor(&file).join(".") } else { name.clone() };
        Self { file, name, path, is_loose }
    }

    /// Opens the directory `name` in this one, and no link.
    ///
    /// # Errors
    /// It is no directory, or cannot be opened.
    pub fn directory(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.file, name, flags, Mode::empty())?);
        // It may have been put there by others who may in a directory of root's, such as /tmp.
        let is_loose = self.is_loose || super::is_root() && file.metadata()?.uid() != 0;
        Ok(Self::of(file, self.name.join(name), is_loose))
    }

    /// The same, once more.
    ///
    /// # Errors
    /// There are too many open.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self::of(self.file.try_clone()?, self.name.clone(), self.is_loose))
    }

    /// How it was named, for people.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Leads here as long as this is held, whoever renames what; in this process only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether others than root may turn its name elsewhere.
    pub fn is_loose(&self) -> bool {
        self.is_loose
    }

    /// The open directory.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it is.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Whether nothing is in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.names()?.is_empty())
    }

    /// The names in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.file)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    /// Whether its name still leads here.
    pub fn is_in_place(&self) -> bool {
        let is_here = |found: Metadata| Ok(same(&found, &self.metadata()?));
        fs::metadata(&self.name).and_then(is_here).unwrap_or(false)
    }

    /// Whether `entry` is what stands in this directory with that name.
    pub fn has(&self, name: &OsStr, entry: &Self) -> bool {
        let is_here =
            |stat: Stat| entry.metadata().is_ok_and(|of| (of.dev(), of.ino()) == (stat.st_dev, stat.st_ino));
        self.stat(name).is_ok_and(is_here)
    }

    /// What stands there with that name; a link is not followed.
    ///
    /// # Errors
    /// Nothing does.
    pub fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Makes a directory in it; tells whether it was not there before.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(&self, name: &OsStr, mode: u32) -> io::Result<bool> {
        match rustix::fs::mkdirat(&self.file, name, Mode::from_raw_mode(mode)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes an empty directory in it.
    ///
    /// # Errors
    /// It is not there, or not empty.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.file, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes all that is in it, and follows no link and no path to it.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        for name in self.names()? {
            match rustix::fs::unlinkat(&self.file, &name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    self.directory(&name)?.clear()?;
                    self.remove(&name)?;
                }
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Moves what is in it with a name into another one, where nothing may stand with the name that it gets.
    ///
    /// # Errors
    /// `AlreadyExists` where something does.
    pub fn move_to(&self, name: &OsStr, to: &Self, as_name: &OsStr) -> io::Result<()> {
        match rustix::fs::renameat_with(&self.file, name, &to.file, as_name, RenameFlags::NOREPLACE) {
            // The file system does not know how, as NFS.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match to.stat(as_name) {
                Ok(_) => Err(Errno::EXIST.into()),
                Err(_) => Ok(rustix::fs::renameat(&self.file, name, &to.file, as_name)?),
            },
            moved => Ok(moved?),
        }
    }

    /// Gives this thread, and those that it starts, a mount namespace of their own, as [`super::own_mount_namespace`], and
    /// the directory at `path` as it is there, where mounts can be made in it.
    ///
    /// # Errors
    /// The user may not.
    pub fn in_own_mount_namespace(path: &Path) -> io::Result<Self> {
        // A descriptor stays in the namespace that it is of; a working directory comes along.
        #[allow(unsafe_code)] // Unsafe for file descriptor tables only, which stay shared.
        unsafe {
            rustix::thread::unshare_unsafe(UnshareFlags::FS)?;
        }
        rustix::process::chdir(path)?;
        super::own_mount_namespace()?;
        let file = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(".")?;
        Ok(Self::of(file, path.to_owned(), true))
    }
}

/// Where a process finds what it has open.
fn descriptor(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
    use std::thread;

    use rustix::mount::MountFlags;
    use tempfile::TempDir;

    use super::super::{is_root, own_mount_namespace};
    use super::*;

    const USER: u32 = 4242;

    /// Directories of root, of a user, and that others may write to, each with one more in it; `None` for who is not
    /// root.
    fn directories() -> Option<TempDir> {
        if !is_root() {
            return None;
        }
        let base = tempfile::tempdir().unwrap();
        for (name, owner, mode) in [
            ("root", 0, 0o755),
            ("user", USER, 0o700),
            ("other", USER + 1, 0o755),
            ("group", 0, 0o775),
            ("tmp", 0, 0o1777),
        ] {
            let path = base.path().join(name);
            fs::create_dir_all(path.join("in")).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            lchown(&path, Some(owner), None).unwrap();
        }
        for (link, owner, to) in [
            ("root/to-user", 0, "../user/in"),
            ("root/to-root", 0, "../root/in"),
            ("root/loop", 0, "loop"),
            ("root/of-user", USER, "../other"),
            ("root/of-user-to-root", USER, "in"),
            ("user/to-root", USER, "../root"),
            ("user/to-own", USER, "../own"),
            ("user/within", USER, "in"),
            ("user/to-other", USER, "../other"),
            ("tmp/to-root", USER, "../root"),
            ("tmp/to-tmp", USER, "in"),
            ("group/to-root", 0, "../root"),
        ] {
            symlink(to, base.path().join(link)).unwrap();
            lchown(base.path().join(link), Some(owner), None).unwrap();
        }
        fs::create_dir(base.path().join("own")).unwrap();
        lchown(base.path().join("own"), Some(USER), None).unwrap();
        Some(base)
    }

    #[test]
    fn what_is_foreign_on_the_way() {
        let Some(base) = directories() else { return };
        for (path, expected) in [
            ("", None),
            ("root/in", None),
            ("root/../root/to-root", None),
            ("root/of-user-to-root", None),
            ("root/of-user", Some(("other", USER + 1))),
            ("tmp/in", None),
            ("user", Some(("user", USER))),
            ("user/in", Some(("user", USER))),
            ("root/to-user", Some(("user", USER))),
            ("user/to-root", Some(("user", USER))),
            ("tmp/to-root", Some(("tmp/to-root", USER))),
            ("group/in", Some(("group", 0))),
        ] {
            let found = foreign(&base.path().join(path)).unwrap();
            let expected = expected.map(|(path, owner)| Foreign { path: base.path().join(path), owner });
            assert_eq!(found, expected, "{path}");
        }
        foreign(&base.path().join("root/loop")).unwrap_err();
        foreign(&base.path().join("root/no")).unwrap_err();
    }

    #[test]
    fn links_of_a_user_lead_where_the_user_may_write() {
        let Some(base) = directories() else { return };
        for (path, leads_to) in [
            ("root/to-user", None),
            ("root/of-user", None),
            ("user/within", None),
            ("user/to-own", None),
            ("user/to-root", Some("root")),
            ("user/to-root/in", Some("root/in")),
            ("user/to-other", Some("other")),
            ("tmp/to-root", Some("root")),
            ("tmp/to-tmp", Some("tmp/in")),
            ("group/in", None),
            ("group/to-root", Some("root")),
        ] {
            match (Held::open(&base.path().join(path)), leads_to) {
                (Ok(_), None) => {}
                (Err(HoldError::LedAway { there, .. }), Some(to)) => {
                    assert_eq!(there, base.path().join(to), "{path}");
                }
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_nearest_directory_of_root_is_on_the_same_file_system() {
        let Some(base) = directories() else { return };
        for (path, expected) in
            [("root/in", "root/in"), ("tmp", "tmp"), ("user/in", ""), ("root/to-user", ""), ("group/in", "")]
        {
            let found = nearest_of_root(&base.path().join(path)).unwrap();
            assert_eq!(found.unwrap(), base.path().join(expected).components().as_path(), "{path}");
        }
        let mounted = || {
            own_mount_namespace().unwrap();
            let point = base.path().join("user/in");
            rustix::mount::mount("tmpfs", &point, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
            fs::create_dir(point.join("below")).unwrap();
            assert_eq!(nearest_of_root(&point.join("below")).unwrap(), None);
        };
        thread::scope(|scope| scope.spawn(mounted).join()).unwrap();
    }

    #[test]
    fn what_is_held_stays_what_it_is() {
        let Some(base) = directories() else { return };
        let path = |name: &str| base.path().join(name);
        let plain = Held::open(&path("root")).unwrap();
        assert_eq!((plain.path(), plain.is_loose()), (path("root").as_path(), false));

        let held = Held::open(&path("user/in")).unwrap();
        assert!(held.is_in_place() && held.is_loose() && held.is_empty().unwrap());
        fs::rename(path("user/in"), path("user/moved")).unwrap();
        symlink("../root", path("user/in")).unwrap();
        assert!(!held.is_in_place());
        fs::write(held.path().join("a"), "").unwrap();
        assert!(held.make("made".as_ref(), 0o700).unwrap() && !held.make("made".as_ref(), 0o700).unwrap());
        let made = held.directory("made".as_ref()).unwrap();
        assert!(made.is_loose() && held.has("made".as_ref(), &made) && !held.has("a".as_ref(), &made));
        assert!(path("user/moved/made").is_dir() && path("user/moved/a").exists());

        let error = held.move_to("a".as_ref(), &held, "made".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        held.move_to("a".as_ref(), &made, "a".as_ref()).unwrap();
        fs::create_dir_all(made.path().join("deep/er")).unwrap();
        for link in ["link", "deep/link", "deep/er/link"] {
            symlink(path("root"), made.path().join(link)).unwrap();
        }
        held.directory("no".as_ref()).unwrap_err();
        made.directory("link".as_ref()).unwrap_err();
        held.remove("made".as_ref()).unwrap_err();
        made.clear().unwrap();
        held.remove("made".as_ref()).unwrap();
        assert!(held.is_empty().unwrap());
        assert_eq!(fs::read_dir(path("root")).unwrap().count(), 6);
    }

    /// Also where it was root's alone when it was opened, and then given to a user.
    #[test]
    fn what_is_removed_is_in_what_was_opened() {
        let Some(base) = directories() else { return };
        let path = |name: &str| base.path().join(name);
        let held = Held::open(&path("tmp")).unwrap().directory("in".as_ref()).unwrap();
        fs::write(path("tmp/in/file"), "").unwrap();
        assert!(!held.is_loose());
        fs::rename(path("tmp/in"), path("tmp/moved")).unwrap();
        symlink("../root", path("tmp/in")).unwrap();
        assert_eq!(held.names().unwrap(), ["file"]);
        held.clear().unwrap();
        assert!(held.is_empty().unwrap() && fs::read_dir(path("tmp/moved")).unwrap().next().is_none());
        assert_eq!(fs::read_dir(path("root")).unwrap().count(), 6);
    }

    #[test]
    fn mounts_are_made_in_a_directory_that_was_moved() {
        let Some(base) = directories() else { return };
        let path = |name: &str| base.path().join(name);
        let held = Held::open(&path("user/in")).unwrap();
        fs::rename(path("user/in"), path("user/moved")).unwrap();
        let mounted = || {
            let here = Held::in_own_mount_namespace(held.path()).unwrap();
            fs::create_dir(here.path().join("at")).unwrap();
            let at = here.path().join("at");
            rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
            fs::write(at.join("file"), "").unwrap();
            assert!(path("user/moved/at/file").exists());
        };
        thread::scope(|scope| scope.spawn(mounted).join()).unwrap();
        assert!(path("user/moved/at").is_dir() && !path("user/moved/at/file").exists());
    }
}
