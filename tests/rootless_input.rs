//! `--for rootless` where a user, its home or its ranges are not as they have to be: what is refused, in words of its
//! own, and that nothing changes; and what a user's own configuration is good for.
//!
//! The machine's `/etc` is one of the test's own, in a mount namespace, so that no user has to be made.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::Scratch;
use support::command::{Ended, run};
use support::files::install;
use support::foreseen::tree;
use support::handmade::Handmade;
use support::skip::{is_root, skip};
use support::tar::{Entry, Kind, Tar};
use support::tools::on_path;

/// The user's number, and its group's.
const ID: u32 = 4242;
/// What it has in `/etc/subuid` and `/etc/subgid`.
const RANGE: &str = "ci:200000:65536\n";

/// A machine with one plain user, `ci`.
struct Machine {
    scratch: Scratch,
    cache: String,
    /// What is done before a program runs, by root, in its mount namespace.
    setup: String,
}

impl Machine {
    fn new() -> Option<Self> {
        Self::with_owner(0, 0)
    }

    /// One with a cache that has a file of this user and group.
    fn with_owner(user: u32, group: u32) -> Option<Self> {
        Self::with_file(owned().owner(user, group))
    }

    /// One with a cache that has this file.
    fn with_file(file: Entry<'_>) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let scratch = Scratch::on_disk();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut cache = Handmade::default();
        let base = cache.plain(&Tar::new().add(Entry::new("base", Kind::File(b"base"))).finish(), None);
        let top = cache.plain(&Tar::new().add(file).finish(), Some(base));
        let from = cache.record("from", &[], &[base]);
        cache.record("run", &[&[from]], &[top]);
        let cache = cache.write(&scratch.join("layout"));
        let machine = Self { scratch, cache, setup: String::new() };
        for directory in ["etc", "home", "bin", "run"] {
            fs::create_dir(machine.path(directory)).unwrap();
        }
        for owned in ["home", "run"] {
            chown(machine.path(owned), Some(ID), Some(ID)).unwrap();
        }
        let home = machine.home();
        machine.passwd(&format!("ci:x:{ID}:{ID}::{}:/bin/sh", home.display()));
        machine.etc("group", &format!("root:x:0:\nci:x:{ID}:\n"));
        machine.etc("nsswitch.conf", "passwd: files\ngroup: files\n");
        machine.etc("subuid", RANGE);
        machine.etc("subgid", RANGE);
        install(Path::new(env!("CARGO_BIN_EXE_warmkit")), &machine.path("bin/warmkit"));
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn home(&self) -> PathBuf {
        self.path("home")
    }

    fn data(&self) -> PathBuf {
        self.home().join(".local/share/buildkit")
    }

    /// Whom the file of the cache's upper layer belongs to.
    fn owner_of_file(&self) -> (u32, u32) {
        let file = self.data().join("runc-overlayfs/snapshots/snapshots/2/fs/dir/owned");
        let found = fs::metadata(file).unwrap();
        (found.uid(), found.gid())
    }

    fn etc(&self, name: &str, text: &str) {
        fs::write(self.path("etc").join(name), text).unwrap();
    }

    fn passwd(&self, line: &str) {
        self.etc("passwd", &format!("root:x:0:0::/root:/bin/sh\n{line}\n"));
    }

    /// Writes a file of the user.
    fn config(&self, name: &str, text: &str) {
        let path = self.home().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Runs a program with these variables and no others.
    fn run(&self, path: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let mut command = Command::new("unshare");
        let script = format!("mount --bind \"$1\" /etc\n{}\nshift\nexec env \"$@\"\n", self.setup);
        command.args(["--mount", "sh", "-euc", &script, "sh"]).arg(self.path("etc"));
        command.arg(format!("PATH={path}"));
        command.args(variables.iter().map(|(name, value)| format!("{name}={value}"))).args(arguments);
        command.env_remove("TMPDIR").env_remove("SUDO_USER");
        for variable in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "USER", "HOME"] {
            command.env_remove(variable);
        }
        run(&mut command, Duration::from_secs(60))
    }

    /// Runs warmkit as root.
    fn as_root(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let path = std::env::var("PATH").unwrap();
        self.run(&path, variables, &[&[self.path("bin/warmkit").to_str().unwrap()], arguments].concat())
    }

    /// Runs warmkit as the user, after what makes a user namespace for it, if anything does.
    fn as_user(&self, variables: &[(&str, &str)], wrapper: &[&str], arguments: &[&str]) -> Ended {
        self.as_user_with(&std::env::var("PATH").unwrap(), variables, wrapper, arguments)
    }

    fn as_user_with(
        &self,
        path: &str,
        variables: &[(&str, &str)],
        wrapper: &[&str],
        arguments: &[&str],
    ) -> Ended {
        let (home, run) = (self.home(), self.path("run"));
        let id = ID.to_string();
        let mut all = vec![
            ("HOME", home.to_str().unwrap()),
            ("USER", "ci"),
            ("XDG_RUNTIME_DIR", run.to_str().unwrap()),
        ];
        all.extend(variables);
        let setpriv = on_path("setpriv").unwrap();
        let setpriv = [setpriv.to_str().unwrap(), "--reuid", &id, "--regid", &id, "--clear-groups", "--"];
        let warmkit = self.path("bin/warmkit");
        self.run(path, &all, &[&setpriv[..], wrapper, &[warmkit.to_str().unwrap()], arguments].concat())
    }

    fn bake<'a>(&'a self, target: &'a str) -> [&'a str; 5] {
        ["bake", &self.cache, "--allow-unkeyed", "--for", target]
    }

    fn plan<'a>(&'a self, target: &'a str) -> [&'a str; 5] {
        ["plan", &self.cache, "--allow-unkeyed", "--for", target]
    }

    /// Asserts that a bake for the target is refused, by root, with these words; and a plan with the same.
    #[track_caller]
    fn refuses(&self, target: &str, code: i32, said: &[&str]) {
        let before = tree(self.scratch.path());
        for arguments in [self.bake(target), self.plan(target)] {
            says(&self.as_root(&[], &arguments), code, said);
        }
        assert_eq!(tree(self.scratch.path()), before, "{target}: something changed");
    }
}

/// The file of the cache's upper layer.
fn owned() -> Entry<'static> {
    Entry::new("dir/owned", Kind::File(b"owned"))
}

#[track_caller]
fn says(ended: &Ended, code: i32, said: &[&str]) {
    let all = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{all}");
    for said in said {
        assert!(all.contains(said), "no {said:?} in {all}");
    }
}

const NAMESPACE: [&str; 2] = ["rootlesskit", "--net=host"];

/// Whether a user namespace with the ranges of a user can be made.
fn has_rootlesskit() -> bool {
    for program in ["rootlesskit", "newuidmap"] {
        if on_path(program).is_none() {
            skip(&format!("no {program} in $PATH"));
            return false;
        }
    }
    true
}

#[test]
fn a_user_without_ids_is_told_which_are_free() {
    let Some(machine) = Machine::new() else { return };
    machine.etc("subuid", "other:300000:65536\n");
    machine.refuses(
        "rootless:ci",
        1,
        &[
            "ci has no range in /etc/subuid,",
            "`usermod --add-subuids 365536-431071 --add-subgids 365536-431071 ci`",
        ],
    );
    fs::remove_file(machine.path("etc/subuid")).unwrap();
    machine.refuses("rootless:ci", 1, &["ci has no range in /etc/subuid, which is not there"]);
    machine.etc("subuid", RANGE);
    fs::remove_file(machine.path("etc/subgid")).unwrap();
    machine.refuses("rootless:ci", 1, &["ci has no range in /etc/subgid, which is not there"]);
}

#[test]
fn a_range_that_lacks_an_owner_is_told_with_the_line_that_is_missing() {
    for (owner, what, file) in [((70_000, 0), "user", "subuid"), ((0, 70_000), "group", "subgid")] {
        let Some(machine) = Machine::with_owner(owner.0, owner.1) else { return };
        let none = format!("{what} 70000 is none of those that the user namespace has (0-65536)");
        let line = format!("`ci:265536:4464` in /etc/{file}");
        let said = ["error: layer sha256:", "cannot give \"dir/owned\" to its owner: ", &none, &line];
        says(&machine.as_root(&[], &machine.bake("rootless:ci")), 1, &said);
        // It was found in the midst of a layer.
        assert_eq!(fs::read_dir(machine.home()).unwrap().count(), 0);
        if has_rootlesskit() {
            says(&machine.as_user(&[], &NAMESPACE, &machine.bake("rootless")), 1, &said);
            assert_eq!(fs::read_dir(machine.home()).unwrap().count(), 0);
        }

        // With it, the bake goes through.
        machine.etc(file, &format!("{RANGE}ci:265536:4464\n"));
        machine.as_root(&[], &machine.bake("rootless:ci")).expect_success("bake");
        let expected = if what == "user" { (269_999, ID) } else { (ID, 269_999) };
        assert_eq!(machine.owner_of_file(), expected);
    }
}

/// Users and groups have ranges of their own, which need not be alike, and may be several.
#[test]
fn users_and_groups_are_shifted_each_by_their_own_ranges() {
    let Some(machine) = Machine::with_owner(1000, 2000) else { return };
    machine.etc("subuid", "ci:300000:65536\n");
    machine.etc("subgid", "ci:600000:1500\nother:700000:65536\nci:900000:65536\n");
    let expected = (300_999, 900_499);
    machine.as_root(&[], &machine.bake("rootless:ci")).expect_success("bake");
    assert_eq!(machine.owner_of_file(), expected);
    let verify = ["verify", "--read-data", "--for", "rootless:ci"];
    machine.as_root(&[], &verify).expect_success("verify");
    if !has_rootlesskit() {
        return;
    }
    // The kernel shifts those of a bake in a namespace, by what newuidmap and newgidmap have told it.
    fs::remove_dir_all(machine.data()).unwrap();
    machine.as_user(&[], &NAMESPACE, &machine.bake("rootless")).expect_success("bake in a namespace");
    assert_eq!(machine.owner_of_file(), expected);
    machine.as_root(&[], &verify).expect_success("verify from outside");
    machine
        .as_user(&[], &NAMESPACE, &["verify", "--read-data", "--for", "rootless"])
        .expect_success("verify");
}

/// As its daemon refuses it, whoever bakes; one of root takes it.
#[test]
fn attributes_that_a_rootless_daemon_may_not_set_are_refused() {
    let Some(machine) = Machine::with_file(owned().xattr("security.odd", b"1")) else { return };
    let said = [
        "layer entry \"dir/owned\" refused: it has an extended attribute \"security.…\"",
        "its daemon could not extract that layer either",
    ];
    for more in [&[][..], &["--snapshotter", "native"]] {
        let ended = machine.as_root(&[], &[&machine.bake("rootless:ci")[..], more].concat());
        says(&ended, 1, &said);
        if has_rootlesskit() {
            let ended = machine.as_user(&[], &NAMESPACE, &[&machine.bake("rootless")[..], more].concat());
            says(&ended, 1, &said);
        }
        assert_eq!(fs::read_dir(machine.home()).unwrap().count(), 0);
    }
    let root = machine.path("root");
    let arguments = [&machine.bake("")[..3], &["--root", root.to_str().unwrap()]].concat();
    machine.as_root(&[], &arguments).expect_success("bake for root");
}

#[test]
fn users_that_have_no_root_are_refused() {
    let Some(machine) = Machine::new() else { return };
    machine.refuses("rootless:nobody-such", 1, &["this machine has no user \"nobody-such\""]);
    machine.refuses("rootless:root", 2, &["bake --for host"]);
    machine.refuses("rootless", 2, &["--for rootless:USER"]);
    machine.passwd(&format!("ci:x:{ID}:{ID}:::/bin/sh"));
    machine.refuses("rootless:ci", 1, &["ci has no home in passwd"]);
    let home = machine.path("unmounted");
    machine.passwd(&format!("ci:x:{ID}:{ID}::{}:/bin/sh", home.display()));
    machine.refuses("rootless:ci", 1, &["/unmounted, the home of ci, is not there", "mkhomedir_helper ci"]);
}

#[test]
fn who_calls_sudo_is_the_user() {
    let Some(machine) = Machine::new() else { return };
    machine.as_root(&[("SUDO_USER", "ci")], &machine.bake("rootless")).expect_success("bake");
    let made = fs::metadata(machine.data()).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (ID, ID, 0o700));
    // Neither do the directories above it belong to root.
    assert_eq!(fs::metadata(machine.home().join(".local")).unwrap().uid(), ID);
}

/// Who bakes for a user may write anywhere, and read anything: what the user's files say is not done for the user.
#[test]
fn files_of_the_user_lead_root_nowhere_else() {
    let Some(machine) = Machine::new() else { return };
    let toml = ".config/buildkit/buildkitd.toml";
    let others = machine.path("etc/made");
    machine.config(toml, &format!("root = {:?}\n", others.display().to_string()));
    machine.refuses("rootless:ci", 2, &["/etc, which is not that user's", "chown"]);
    assert!(!others.exists());
    machine.config(toml, "");
    std::os::unix::fs::symlink(machine.path("etc"), machine.home().join(".local")).unwrap();
    machine.refuses("rootless:ci", 2, &["/etc, which is not that user's"]);
    fs::remove_file(machine.home().join(".local")).unwrap();

    let config = machine.home().join(toml);
    fs::remove_file(&config).unwrap();
    let secret = machine.scratch.write("secret", "ok = 1\nroot:$y$secret:0\n");
    std::os::unix::fs::symlink(secret, &config).unwrap();
    let ended = machine.as_root(&[], &machine.bake("rootless:ci"));
    says(&ended, 1, &["buildkitd.toml: TOML parse error at line 2"]);
    assert!(!ended.stderr.contains("$y$"), "{}", ended.stderr);
    fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    says(&machine.as_root(&[], &machine.bake("rootless:ci")), 1, &["buildkitd.toml: no regular file"]);
}

#[test]
fn a_plain_user_is_told_how_to_bake() {
    let Some(machine) = Machine::new() else { return };
    let before = tree(machine.scratch.path());
    let root = machine.path("root").display().to_string();
    for target in ["rootless", "rootless:ci"] {
        let ended = machine.as_user(&[], &[], &machine.bake(target));
        says(&ended, 1, &["baking needs root", "`rootlesskit warmkit bake … --for rootless`"]);
        // What changes nothing needs no namespace.
        let planned = machine.as_user(&[], &[], &machine.plan(target)).expect_success("plan");
        assert!(
            planned.stdout.contains(&format!("plan for {}", machine.data().display())),
            "{}",
            planned.stdout
        );
    }
    for arguments in [["--for", "host"], ["--root", &root]] {
        let ended = machine.as_user(&[], &[], &[&machine.bake("host")[..3], &arguments].concat());
        says(&ended, 1, &["baking needs root", "run it under sudo"]);
        assert!(!ended.stderr.contains("rootlesskit"), "{}", ended.stderr);
    }
    // Without what makes a namespace, that is named too.
    let ended = machine.as_user_with("/nonexistent", &[], &[], &machine.bake("rootless"));
    says(&ended, 1, &["$PATH has no rootlesskit, newuidmap, newgidmap: install", "uidmap"]);
    assert_eq!(tree(machine.scratch.path()), before);
}

#[test]
fn a_namespace_without_newuidmap_leaves_all_as_it_was() {
    let Some(machine) = Machine::new() else { return };
    if !has_rootlesskit() {
        return;
    }
    for program in ["rootlesskit", "newgidmap"] {
        std::os::unix::fs::symlink(on_path(program).unwrap(), machine.path("bin").join(program)).unwrap();
    }
    let before = tree(&machine.home());
    let path = machine.path("bin").display().to_string();
    let rootlesskit = machine.path("bin/rootlesskit").display().to_string();
    let ended = machine.as_user_with(&path, &[], &[&rootlesskit, "--net=host"], &machine.bake("rootless"));
    assert!(!ended.status.success(), "{}", ended.stdout);
    assert!(ended.stderr.contains("newuidmap"), "{}", ended.stderr);
    assert_eq!(tree(&machine.home()), before);
}

#[test]
fn a_namespace_has_one_user() {
    let Some(machine) = Machine::new() else { return };
    if !has_rootlesskit() {
        return;
    }
    let before = tree(&machine.home());
    for user in ["root", ""] {
        let ended = machine.as_user(&[("USER", user)], &NAMESPACE, &machine.bake("rootless"));
        says(&ended, 2, &["set USER to the user's name"]);
    }
    let ended = machine.as_user(&[], &NAMESPACE, &machine.bake("rootless:other"));
    says(&ended, 2, &["that of its owner: --for rootless"]);
    let ended = machine.as_user(&[("HOME", "")], &NAMESPACE, &machine.bake("rootless"));
    says(&ended, 1, &["$HOME says no directory"]);
    let ended = machine.as_user(&[("XDG_DATA_HOME", "data")], &NAMESPACE, &machine.bake("rootless"));
    says(&ended, 1, &["$XDG_DATA_HOME of ci's buildkitd is \"data\"", "make it absolute"]);
    assert_eq!(tree(&machine.home()), before);
    // Of several the first, as the daemon has it.
    let data = machine.home().join("data");
    let several = format!("{}:/nonexistent", data.display());
    let variables = [("XDG_DATA_HOME", several.as_str())];
    machine.as_user(&variables, &NAMESPACE, &machine.bake("rootless:ci")).expect_success("bake");
    assert!(data.join("buildkit/cache.db").exists());
}

#[test]
fn a_home_without_marks_is_refused() {
    let Some(mut machine) = Machine::new() else { return };
    let data = machine.home().display().to_string();
    let fuse = ["--snapshotter", "fuse-overlayfs"];
    for (kind, said, more) in [
        ("tmpfs", "/home is on a tmpfs, where", &[][..]),
        ("ramfs", "/home is on a file system without user.* attributes", &[]),
        // It keeps its marks where they are to be had.
        ("ramfs", "/home is on a file system without user.* attributes", &fuse),
    ] {
        machine.setup = format!("mount -t {kind} {kind} '{data}' && chown {ID}:{ID} '{data}'");
        let ended = machine.as_root(&[], &[&machine.bake("rootless:ci")[..], more].concat());
        says(&ended, 1, &[said, "--snapshotter native"]);
        let ended = machine.as_root(&[], &[&machine.plan("rootless:ci")[..], more].concat());
        says(&ended, 1, &[said, "--snapshotter native"]);
        if has_rootlesskit() {
            let ended = machine.as_user(&[], &NAMESPACE, &[&machine.bake("rootless")[..], more].concat());
            says(&ended, 1, &[said]);
        }
    }
    machine.setup = format!("mount -t tmpfs tmpfs '{data}' && chown {ID}:{ID} '{data}'");
    // Trees have no marks, and those of a daemon that root runs are others.
    let root = machine.home().join("root").display().to_string();
    for more in [&["--for", "rootless:ci", "--snapshotter", "native"][..], &["--root", &root]] {
        let arguments = [&machine.bake("")[..3], more].concat();
        machine.as_root(&[], &arguments).expect_success("bake");
    }
}

#[test]
fn a_read_only_directory_is_refused_for_every_kind_of_root() {
    let Some(mut machine) = Machine::new() else { return };
    let home = machine.home().display().to_string();
    machine.setup = format!("mount --bind '{home}' '{home}' && mount -o remount,bind,ro '{home}'");
    let said = ["/home is mounted read-only, nothing was changed", "remount,rw"];
    machine.refuses("rootless:ci", 1, &said);
    if has_rootlesskit() {
        says(&machine.as_user(&[], &NAMESPACE, &machine.bake("rootless")), 1, &said);
    }
    let root = machine.home().join("root").display().to_string();
    let elsewhere: [&[&str]; 5] = [
        &["--root", &root],
        &["--root", &home],
        &["--root", &root, "--snapshotter", "fuse-overlayfs"],
        &["--root", &root, "--snapshotter", "native"],
        &["--root", &root, "--for", "containerd:/nonexistent/containerd.sock"],
    ];
    for more in elsewhere {
        for command in ["bake", "plan"] {
            let ended = machine.as_root(&[], &[&[command, &machine.cache, "--allow-unkeyed"], more].concat());
            says(&ended, 1, &said);
        }
    }
}

#[test]
fn what_the_users_daemon_is_told_counts() {
    let Some(machine) = Machine::new() else { return };
    let gc = |more: &[&str]| {
        let arguments = [&machine.plan("rootless:ci")[..], &["--json"], more].concat();
        let planned = machine.as_root(&[], &arguments).expect_success("plan");
        planned.stdout.parse::<Value>().unwrap()["gc"].clone()
    };
    let limit = |gc: &Value| gc["rules"][2]["max_used_space"].as_i64().unwrap();
    assert_eq!(gc(&[])["policy"], "default");
    let toml = ".config/buildkit/buildkitd.toml";
    machine.config(toml, "[worker.oci]\nmaxUsedSpace = 123456\n");
    assert_eq!(limit(&gc(&[])), 123_456);
    // A file that is named wins.
    let other = machine.scratch.write("other.toml", "[worker.oci]\nmaxUsedSpace = 9999\n");
    assert_eq!(limit(&gc(&["--buildkitd-config", other.to_str().unwrap()])), 9999);
    // As do arguments.
    let unit = ".config/systemd/user/buildkit.service";
    let start = "[Service]\nExecStart=rootlesskit --net=host buildkitd";
    machine.config(unit, &format!("{start} --oci-worker-gc-keepstorage 1,2,3\n"));
    assert_eq!(limit(&gc(&[])), 3_000_000);
    machine.config(unit, &format!("{start} --oci-worker-gc-keepstorage much\n"));
    let said = ["buildkitd.toml: --oci-worker-gc-keepstorage = \"much\""];
    says(&machine.as_root(&[], &machine.plan("rootless:ci")), 1, &said);
    machine.config(toml, "[worker.oci\n");
    machine.refuses("rootless:ci", 1, &[".config/buildkit/buildkitd.toml: TOML parse error"]);

    // What is baked is where the daemon finds it, and of its kind; a forecast is by the same configuration.
    machine.config(toml, "[worker.oci]\nsnapshotter = \"native\"\ngc = false\n");
    machine.config(unit, &format!("{start} --root %h/there\n"));
    machine.as_root(&[], &machine.bake("rootless:ci")).expect_success("bake");
    assert!(machine.home().join("there/runc-native/snapshots/snapshots/2/dir/owned").exists());
    let ended =
        machine.as_root(&[], &["forecast", "--for", "rootless:ci", "--json"]).expect_success("forecast");
    assert_eq!(ended.stdout.parse::<Value>().unwrap()["gc"]["policy"], "off");
    machine.refuses("rootless:ci", 7, &["/there is not empty", "move away"]);
    machine.config(toml, "[worker.oci]\nsnapshotter = \"stargz\"\n");
    machine.refuses("rootless:ci", 2, &["is told to use the snapshotter \"stargz\""]);
}
