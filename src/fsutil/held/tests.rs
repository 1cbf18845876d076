use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::sync::mpsc;
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
fn what_a_process_has_mounted_is_its_own() {
    let Some(base) = directories() else { return };
    let point = base.path().join("root/in");
    let (tell, told) = mpsc::channel();
    let (done, wait) = mpsc::channel::<()>();
    let at = point.clone();
    let mounted = move || {
        own_mount_namespace().unwrap();
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        fs::create_dir(at.join("there")).unwrap();
        tell.send(rustix::thread::gettid()).unwrap();
        // Until the other is done, however that ends.
        let _ = wait.recv();
    };
    thread::scope(|scope| {
        scope.spawn(mounted);
        let done = done;
        let process = format!("/proc/{}/task/{}/root", std::process::id(), told.recv().unwrap());
        let there = Path::new(&process).join(point.strip_prefix("/").unwrap()).join("there");
        let held = Held::open(&there).unwrap();
        assert!(held.is_loose() && held.is_in_place());
        let held = held.resolved().unwrap();
        assert!(held.name() == there && held.is_in_place() && held.is_empty().unwrap());
        drop(done);
    });
    assert!(!point.join("there").exists());
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
        assert!(here.is_loose());
        fs::create_dir(here.path().join("at")).unwrap();
        let at = here.path().join("at");
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(at.join("file"), "").unwrap();
        assert!(path("user/moved/at/file").exists());
    };
    thread::scope(|scope| scope.spawn(mounted).join()).unwrap();
    let plain = || {
        let error = Held::in_own_mount_namespace(&path("root/no")).unwrap_err();
        assert!(matches!(error, MountError::Directory(_)), "{error:?}");
        assert_eq!(Held::in_own_mount_namespace(&path("root")).unwrap().path(), path("root"));
    };
    thread::scope(|scope| scope.spawn(plain).join()).unwrap();
    assert!(path("user/moved/at").is_dir() && !path("user/moved/at/file").exists());
}
