//! File-system facts and operations that the standard library lacks.

mod held;

use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

pub use held::{Foreign, Held, HoldError, foreign, nearest_of_root};

/// File systems that may write fewer bytes than they are given: btrfs, ZFS, bcachefs.
const COMPRESSING: [u32; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];
/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS: u32 = 0x0102_1994;
/// The major and minor number of `/dev/null`.
const NULL: (u32, u32) = (1, 3);
/// Bytes of a configuration, far more than anybody writes.
const MAX_CONFIG: u64 = 1 << 20;

/// How much room a file system has, for root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that it has, and those that root may still write; `None` where it does not tell, as some in user space and
    /// a tmpfs without a limit.
    pub bytes: Option<(u64, u64)>,
    /// Inodes that it has, and those that are free; `None` where it makes them as it needs them.
    pub inodes: Option<(u64, u64)>,
    /// Whether files may take fewer bytes than they have.
    pub compresses: bool,
}

/// How much room there is on the file system of `path`.
pub fn room(path: &Path) -> io::Result<Room> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Room {
        bytes: (stat.f_blocks > 0).then(|| (bytes(stat.f_blocks), bytes(stat.f_bfree))),
        inodes: (stat.f_files > 0).then_some((stat.f_files, stat.f_ffree)),
        compresses: COMPRESSING.contains(&magic(path)?),
    })
}

/// What kind of file system it is: `linux/magic.h`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers have 32 bits")]
fn magic(path: &Path) -> io::Result<u32> {
    Ok(rustix::fs::statfs(path)?.f_type as u32)
}

/// How much room there is where `path` is or would be made: on the file system of the nearest of its ancestors that
/// exists.
pub fn room_at(path: &Path) -> io::Result<Room> {
    room(&nearest(path)?)
}

/// `path`, or the nearest of its ancestors that exists, absolute.
pub fn nearest(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let found = path.ancestors().find(|ancestor| ancestor.exists());
    found.map(Path::to_owned).ok_or(io::ErrorKind::NotFound.into())
}

/// Whether `path` is mounted read-only.
pub fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statvfs(path)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether `path` is on a tmpfs.
pub fn is_on_tmpfs(path: &Path) -> io::Result<bool> {
    Ok(magic(path)? == TMPFS)
}

/// Whether files on the file system of `path`, which is one that can be read, may have `user.*` attributes.
pub fn takes_user_xattrs(path: &Path) -> io::Result<bool> {
    match rustix::fs::getxattr(path, "user.overlay.opaque", &mut [0_u8; 0]) {
        Err(Errno::OPNOTSUPP) => Ok(false),
        Ok(_) | Err(Errno::NODATA) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// The text of a file that somebody else may have put there; of `/dev/null`, none. Links are followed.
///
/// # Errors
/// It cannot be read, has more than a mebibyte, or is no regular file: reading one of another kind may never end.
pub fn read_config(path: &Path) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    let device = metadata.rdev();
    if metadata.file_type().is_char_device() && (rustix::fs::major(device), rustix::fs::minor(device)) == NULL
    {
        return Ok(String::new());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"));
    }
    let mut text = String::new();
    file.take(MAX_CONFIG + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 1 MiB"));
    }
    Ok(text)
}

/// Writes everything of the file system of `directory` to its disk, with one call.
pub fn sync_file_system(directory: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(directory)?)
}

/// What FITRIM is about: `struct fstrim_range` of `linux/fs.h`.
#[repr(C)]
struct TrimRange {
    start: u64,
    len: u64,
    min_len: u64,
}

const FITRIM: Opcode = ioctl::opcode::read_write::<TrimRange>(b'X', 121);

/// Tells the disk which blocks of the file system of `directory` are free, so that it forgets what was in them; gives
/// their bytes. Some file systems leave out what they told before.
///
/// # Errors
/// The disk or the file system knows no such thing (`Unsupported`), or the user may not.
pub fn discard_free_blocks(directory: &File) -> io::Result<u64> {
    // What was deleted is free only once it is written that it is.
    sync_file_system(directory)?;
    let mut range = TrimRange { start: 0, len: u64::MAX, min_len: 0 };
    // Nobody wraps this ioctl. Its number says that the kernel reads and writes one `TrimRange`.
    #[allow(unsafe_code)]
    unsafe {
        ioctl::ioctl(directory, ioctl::Updater::<FITRIM, _>::new(&mut range))?;
    }
    Ok(range.len)
}

/// Gives this thread, and those that it starts, a mount namespace and a working directory of their own: what they
/// mount nobody else sees, and it ends with them.
///
/// # Errors
/// The user may not.
pub fn own_mount_namespace() -> io::Result<()> {
    #[allow(unsafe_code)] // Unsafe for file descriptor tables only, which stay shared.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS)?;
    }
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Appends a path as overlayfs wants it among its mount options.
pub fn escape_overlay_option(path: &Path, options: &mut Vec<u8>) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            options.push(b'\\');
        }
        options.push(byte);
    }
}

/// Makes a directory for this user alone in `parent`, with a name that begins with `prefix`. It goes when what is
/// returned is dropped.
///
/// # Errors
/// What the system says, without the path that tempfile adds to it: whoever asks says where.
pub fn temporary_directory(prefix: &str, parent: &Path) -> io::Result<TempDir> {
    let made =
        tempfile::Builder::new().prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent);
    made.map_err(|error| match error.to_string().split_once(" at path ") {
        Some((said, _)) => io::Error::new(error.kind(), said),
        None => error,
    })
}

/// Takes the `flock` of a file or directory, until what is returned is dropped; `None` where some
/// process holds it.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    // Somebody may have put a FIFO there, which would wait for who writes to it, or a link to a device.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether some process holds a `flock` on `path`. What is absent is not locked, nor is a link.
///
/// A daemon leaves its lock file behind when it is killed, so only the lock itself counts.
pub fn is_locked(path: &Path) -> io::Result<bool> {
    match try_lock(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(false),
        lock => Ok(lock?.is_none()),
    }
}

/// Whether this process may do what a root user may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_where_something_would_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let all = |(all, _free)| all;
        let of = |room: Room| (room.bytes.map(all), room.inodes.map(all), room.compresses);
        let here = of(room(dir.path()).unwrap());
        assert!(here.0 > Some(0));
        assert_eq!(of(room_at(&dir.path().join("not/there/yet")).unwrap()), here);
        assert!(room(&dir.path().join("not")).is_err());
    }

    #[test]
    fn a_temporary_directory_is_for_its_user_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let made = temporary_directory(".a-", dir.path()).unwrap();
        let path = made.path().to_owned();
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with(".a-"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        drop(made);
        assert!(!path.exists());
        let error = temporary_directory("a", &dir.path().join("not")).unwrap_err();
        assert_eq!(error.to_string(), "No such file or directory (os error 2)");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_lock_counts_only_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buildkitd.lock");
        assert!(!is_locked(&path).unwrap());
        File::create(&path).unwrap();
        for path in [path.as_path(), dir.path()] {
            assert!(!is_locked(path).unwrap());
            let lock = try_lock(path).unwrap();
            assert!(lock.is_some() && is_locked(path).unwrap());
            drop(lock);
            assert!(!is_locked(path).unwrap());
        }
    }
}
