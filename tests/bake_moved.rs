//! A bake as root for a user, while that user renames, replaces and links all that the user may: the bake ends with the
//! target as the user has it, or completes, and nothing of it is elsewhere.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/command.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used")]
mod command;
#[path = "support/handmade.rs"]
mod handmade;
#[path = "support/serve.rs"]
#[allow(unreachable_pub, reason = "as in the other tests")]
mod serve;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/tmpfs.rs"]
mod tmpfs;

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use command::run;
use handmade::Handmade;
use serve::Serving;
use skip::is_root;
use tempfile::TempDir;
use tmpfs::Tmpfs;
use warmkit::digest::Digest;

const LIMIT: Duration = Duration::from_secs(60);
/// The user's number, and its group's.
const ID: u32 = 4242;
/// Where its daemon has its root.
const ROOT: &str = ".local/share/buildkit";

/// A registry with one cache of two layers, each of which it gives when it is let.
struct Registry {
    /// Says that a layer is asked for.
    asked: Receiver<()>,
    /// Lets it be given; closed, all are.
    go_on: Option<Sender<()>>,
    /// Dropped after what it waits for.
    serving: Serving,
}

impl Registry {
    fn start() -> Self {
        let mut cache = Handmade::default();
        let base = cache.layer("base", None);
        let top = cache.layer("top", Some(base));
        let from = cache.record("from", &[], &[base]);
        cache.record("run", &[&[from]], &[top]);
        let (manifest, blobs) = cache.documents();
        let layers: Vec<Digest> = blobs[..2].iter().map(|(digest, _)| *digest).collect();
        let (tell, asked) = channel();
        let (go_on, wait) = channel();
        let gate = Mutex::new((tell, wait));
        let serving = Serving::start(move |mut stream| {
            let mut lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            let path = request.split(' ').nth(1).unwrap_or_default();
            let blob = blobs.iter().find(|(digest, _)| path.ends_with(&digest.to_string()));
            let body = match blob {
                Some((digest, bytes)) => {
                    if layers.contains(digest) {
                        let (tell, wait) = &*gate.lock().unwrap();
                        let _ = tell.send(());
                        let _ = wait.recv();
                    }
                    bytes
                }
                None if path.ends_with("/manifests/cache") => &manifest,
                None => {
                    return stream
                        .write_all(b"HTTP/1.1 404 -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                }
            };
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
            stream.write_all(body)
        });
        Self { asked, go_on: Some(go_on), serving }
    }
}

/// A machine with one plain user, and a directory that is none of that user's business.
struct Machine {
    /// The home, where it is on a file system of its own. Unmounted before the directory goes that it is in.
    _mounted: Option<Tmpfs>,
    scratch: TempDir,
}

impl Machine {
    fn new(is_mounted: bool) -> Self {
        // A daemon of a plain user has no marks on a tmpfs, so neither are any baked there.
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| scratch.path().join(name);
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
        let home = path("home");
        let mounted = is_mounted.then(|| Tmpfs::new(home.clone(), "size=16m"));
        // What the user's directories have there is outside, too, with the same names.
        let worker = ["content/blobs/sha256", "content/ingest", "snapshots/snapshots"];
        let worker = worker.map(|directory| format!("outside/{directory}"));
        for directory in worker.iter().map(String::as_str).chain(["etc", "outside/share", "outside/buildkit"])
        {
            fs::create_dir_all(path(directory)).unwrap();
        }
        fs::create_dir_all(&home).unwrap();
        chown(&home, Some(ID), Some(ID)).unwrap();
        let entry = format!("root:x:0:0::/root:/bin/sh\nci:x:{ID}:{ID}::{}:/bin/sh\n", home.display());
        let range = "ci:200000:65536\n".to_owned();
        let passwd = "passwd: files\ngroup: files\n".to_owned();
        for (name, text) in
            [("passwd", &entry), ("subuid", &range), ("subgid", &range), ("nsswitch.conf", &passwd)]
        {
            fs::write(path("etc").join(name), text).unwrap();
        }
        Self { _mounted: mounted, scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A bake as root, with the machine's own `/etc`.
    fn command(&self, registry: &Registry, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$1\" /etc\nshift\nexec \"$@\"\n";
        command.args(["--mount", "sh", "-euc", script, "sh"]).arg(self.path("etc"));
        command.args([env!("CARGO_BIN_EXE_warmkit"), "bake", "--allow-unkeyed"]);
        command.arg(format!("{}/app:cache", registry.serving.address)).args(arguments);
        command.env_remove("TMPDIR").stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn bake(&self, registry: &Registry, arguments: &[&str]) -> Child {
        self.command(registry, arguments).spawn().unwrap()
    }

    /// Runs a script of the user's in the home, with `$outside`, and the staging directory as `$staged`.
    #[track_caller]
    fn as_user(&self, script: &str) {
        let mut command = Command::new("sh");
        // Renamed, it is one that nobody may look into.
        let find = "staged=$(find . -name '.warmkit-*' -prune 2>/dev/null) || :\n";
        command.args(["-euc", &format!("{find}{script}")]).current_dir(self.path("home"));
        command.env("outside", self.path("outside")).uid(ID).gid(ID);
        run(&mut command, LIMIT).expect_success(script);
    }

    /// All that is outside of the home.
    fn outside(&self) -> Vec<String> {
        [self.path("outside"), self.path("etc")].iter().flat_map(|path| listing(path)).collect()
    }

    /// What begins with `.warmkit-` anywhere in the home and has something in it.
    fn left(&self) -> Vec<String> {
        listing(&self.path("home")).into_iter().filter(|line| line.contains("/.warmkit-")).collect()
    }
}

/// Everything in a directory, with what renaming, writing and giving away change.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let facts = (found.ino(), found.mode(), found.uid(), found.gid(), found.ctime(), found.ctime_nsec());
        lines.push(format!("{} {facts:?}", path.display()));
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

/// How it ended, and what it said.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = command::wait(&mut child, LIMIT).unwrap();
    (status.code(), said)
}

/// What the user does when the first layer is asked for, and when the second is; and what the bake then says, if it does
/// not complete.
struct Case {
    /// Whether the target is there before.
    in_place: bool,
    scripts: [&'static str; 2],
    says: Option<&'static str>,
}

const MOVED: Option<&str> =
    Some("was moved away, or something else put in its place, while the bake was at work");
const CASES: [Case; 8] = [
    // The directories above it, made by the bake for the user, are elsewhere, and a link in their place.
    Case { in_place: false, scripts: ["mv .local away; ln -s $outside .local", ""], says: MOVED },
    // They are so while a layer is written, and no longer at the end.
    Case {
        in_place: false,
        scripts: ["mv .local away; ln -s $outside .local", "rm .local; mv away .local"],
        says: None,
    },
    // The staging directory has another name, and a link has its.
    Case {
        in_place: false,
        scripts: ["mv $staged .local/share/away; ln -s $outside $staged", ""],
        says: MOVED,
    },
    // Or a directory of the user's.
    Case {
        in_place: false,
        scripts: [
            "mv $staged .local/share/away; mkdir $staged
            ln -s $outside $staged/runc-overlayfs; ln -s $outside $staged/runc-native",
            "",
        ],
        says: MOVED,
    },
    Case {
        in_place: false,
        scripts: ["ln -s $outside/buildkit .local/share/buildkit", ""],
        says: Some("is not empty, nothing was changed"),
    },
    Case {
        in_place: true,
        scripts: ["mv .local/share/buildkit away; ln -s $outside/buildkit .local/share/buildkit", ""],
        says: MOVED,
    },
    Case {
        in_place: true,
        scripts: ["mv .local away; ln -s $outside .local", "rm .local; mv away .local"],
        says: None,
    },
    Case {
        in_place: true,
        scripts: ["mv $staged .local/share/buildkit/away; ln -s $outside $staged", ""],
        says: Some("is not empty, nothing was changed: found"),
    },
];

fn attack(is_mounted: bool, snapshotter: &str) {
    if !is_root() {
        return;
    }
    for (at, case) in CASES.iter().enumerate() {
        let machine = Machine::new(is_mounted);
        if case.in_place {
            machine.as_user(&format!("mkdir -p {ROOT}"));
        }
        let before = machine.outside();
        let registry = Registry::start();
        let bake = machine.bake(&registry, &["--for", "rootless:ci", "--snapshotter", snapshotter]);
        for script in case.scripts {
            registry.asked.recv_timeout(LIMIT).unwrap();
            machine.as_user(script);
            registry.go_on.as_ref().unwrap().send(()).unwrap();
        }
        let (code, said) = end(bake);
        assert_eq!(machine.outside(), before, "case {at}: {said}");
        let root = machine.path("home").join(ROOT);
        if let Some(says) = case.says {
            assert_eq!(code, Some(7), "case {at}: {said}");
            assert!(said.contains(says), "case {at}: {said}");
            // Neither is it in what was moved away, nor what it is made of.
            assert!(
                !listing(&machine.path("home")).iter().any(|path| path.contains("cache.db")),
                "case {at}"
            );
            assert!(!listing(&machine.path("home")).iter().any(|path| path.contains("/fs/")), "case {at}");
            continue;
        }
        assert_eq!(code, Some(0), "case {at}: {said}");
        assert_eq!(machine.left(), [""; 0], "case {at}");
        let upper = if snapshotter == "native" { "" } else { "fs/" };
        for (file, owner) in [
            (String::new(), ID),
            ("cache.db".into(), ID),
            (format!("runc-{snapshotter}/snapshots/snapshots/1/{upper}base"), ID),
            (format!("runc-{snapshotter}/snapshots/snapshots/2/{upper}top"), ID),
        ] {
            let found = fs::symlink_metadata(root.join(&file)).unwrap();
            assert_eq!((found.uid(), found.gid()), (owner, owner), "case {at}: {file}");
        }
    }
}

#[test]
fn a_user_who_moves_all_that_it_may() {
    attack(false, "overlayfs");
}

#[test]
fn a_user_whose_home_is_a_file_system_of_its_own() {
    attack(true, "native");
}

#[test]
fn what_a_killed_bake_left_at_a_users_is_named_by_the_next() {
    if !is_root() {
        return;
    }
    let machine = Machine::new(false);
    let mut registry = Registry::start();
    let arguments = ["--for", "rootless:ci"];
    let mut killed = machine.bake(&registry, &arguments);
    registry.asked.recv_timeout(LIMIT).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    // What a command is printed for must be one that a bake made.
    machine.as_user("mkdir '.local/share/.warmkit-buildkit-x;y' .local/share/.warmkit-other-abc123");
    registry.go_on.take();
    let ended = run(&mut machine.command(&registry, &arguments), LIMIT).expect_success("bake");
    let hint = "a bake of this root that was killed left ";
    let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(hint)).collect();
    let share = machine.path("home").join(".local/share");
    let left = format!("remove it with `rm -rf {}/.warmkit-buildkit-", share.display());
    assert!(matches!(said[..], [line] if line.contains(&left) && !line.contains(';')), "{}", ended.stderr);
    assert!(share.join("buildkit/cache.db").exists());
}

/// Where a directory is named itself, too.
#[test]
fn links_of_a_user_lead_only_to_the_users_own() {
    if !is_root() {
        return;
    }
    let machine = Machine::new(false);
    let mut registry = Registry::start();
    registry.go_on.take();
    machine.as_user("ln -s $outside link; mkdir own; ln -s own to-own");
    let before = (machine.outside(), listing(&machine.path("home")));
    let root = |path: &str| machine.path("home").join(path).display().to_string();
    for target in ["link/root", "link/new/root", "link/buildkit"] {
        for command in ["bake", "plan"] {
            let mut refused = Command::new(env!("CARGO_BIN_EXE_warmkit"));
            refused.args([command, "--allow-unkeyed", "--root", &root(target)]);
            refused.arg(format!("{}/app:cache", registry.serving.address));
            let ended = run(&mut refused, LIMIT);
            assert_eq!(ended.status.code(), Some(7), "{target}: {}", ended.stderr);
            let there = format!("{target} leads to {}", machine.path("outside").display());
            let text = format!("{}{}", ended.stdout, ended.stderr);
            assert!(text.contains(&there) && text.contains("user 4242 may link"), "{target}: {text}");
        }
        assert_eq!((machine.outside(), listing(&machine.path("home"))), before, "{target}");
    }
    // Nor where it is a group's, to whom nothing can be given.
    fs::create_dir(machine.path("shared")).unwrap();
    fs::set_permissions(machine.path("shared"), Permissions::from_mode(0o775)).unwrap();
    symlink(machine.path("outside"), machine.path("shared/link")).unwrap();
    let target = machine.path("shared/link/root").display().to_string();
    let ended = run(&mut machine.command(&registry, &["--root", &target]), LIMIT);
    let hint = format!("`chmod go-w {}`", machine.path("shared").display());
    assert!(ended.status.code() == Some(7) && ended.stderr.contains(&hint), "{}", ended.stderr);
    assert_eq!(machine.outside(), before.0);
    // Not so root's own links; and what root has made in the user's directories may be used.
    symlink(machine.path("outside"), machine.path("to-outside")).unwrap();
    fs::create_dir(machine.path("home/roots")).unwrap();
    let outside = machine.path("to-outside/root").display().to_string();
    for target in [root("to-own/root"), root("roots/new/../root"), outside] {
        run(&mut machine.command(&registry, &["--root", &target]), LIMIT).expect_success(&target);
        assert!(Path::new(&target.replace("new/../", "")).join("cache.db").exists(), "{target}");
    }
}
