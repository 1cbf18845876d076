//! Promise: `verify --image` finds what must not ship, made by what really makes it: daemons that built, bakes that
//! were killed, logins. A baked root in a clean image has no finding, and no secret is ever printed.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::command::run;
use support::demo;
use support::registry::{PASSWORD, USER};
use support::skip::{is_root, skip};
use support::warmkit::warmkit;
use support::{Daemon, Registry, Scratch, Tools, World, tools};

const LIMIT: Duration = Duration::from_secs(120);
const ROOT: &str = "var/lib/buildkit";
/// A secret that must not be shown.
const SECRET: &str = "hunter2-of-this-test";

/// An image with users, and a baked root.
struct Image(Scratch);

impl Image {
    /// `None` without root, after it said so.
    fn new() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let image = Self(Scratch::new());
        image.0.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nci:x:1000:1000::/srv/ci:/bin/sh\nbad line\n");
        for home in ["root", "srv/ci", "home/admin"] {
            fs::create_dir_all(image.0.join(home)).unwrap();
        }
        demo::bake(&[], &image.root());
        Some(image)
    }

    fn root(&self) -> PathBuf {
        self.0.join(ROOT)
    }

    /// Replaces the root by one that is elsewhere.
    fn take(&self, root: &Path) {
        fs::remove_dir_all(self.root()).unwrap();
        fs::rename(root, self.root()).unwrap();
    }

    /// `verify --image --json` with these arguments: what it found and printed.
    #[track_caller]
    fn verify(&self, arguments: &[&str]) -> Found {
        let mut command = warmkit();
        command.args(["verify", "--image", "--json", "--sysroot"]).arg(self.0.path()).args(arguments);
        let ended = run(&mut command, LIMIT);
        assert!(!ended.stdout.contains(SECRET) && !ended.stderr.contains(SECRET), "{}", ended.stdout);
        let json: Value =
            ended.stdout.parse().unwrap_or_else(|e| panic!("{e}: {}{}", ended.stdout, ended.stderr));
        let healthy = json["healthy"] == true;
        assert_eq!(ended.status.code(), Some(if healthy { 0 } else { 8 }), "{json}");
        Found(json)
    }
}

/// What was found.
struct Found(Value);

impl Found {
    /// `kind: path: detail` of each finding.
    fn lines(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let findings = self.0["offline"]["findings"].as_array().unwrap().iter();
        let line = |finding: &Value| {
            let subject = &finding["subject"];
            let subject =
                if subject["type"] == "file" { text(&subject["path"]) } else { text(&subject["type"]) };
            format!("{}: {subject}: {}", text(&finding["kind"]), text(&finding["detail"]))
        };
        findings.map(line).collect()
    }

    fn kinds(&self) -> BTreeSet<String> {
        let kind = |line: String| line.split(':').next().unwrap().to_owned();
        self.lines().into_iter().map(kind).collect()
    }

    #[track_caller]
    fn assert_has(&self, start: &str) {
        assert!(self.lines().iter().any(|line| line.starts_with(start)), "no {start} in {:#?}", self.lines());
    }
}

#[test]
fn a_baked_root_in_a_clean_image_has_no_finding() {
    let Some(image) = Image::new() else { return };
    let helpers =
        json!({"auths": {"r.example": {}}, "credHelpers": {"ghcr.io": "pass"}, "credsStore": "desktop"});
    image.0.write("root/.docker/config.json", helpers.to_string());
    image.0.write("srv/ci/.aws/config", "[default]\nregion = eu-central-1\n");
    image.0.write("etc/environment", "PATH=/usr/bin\n");
    fs::create_dir_all(image.0.join("run/buildkit")).unwrap();
    fs::create_dir(image.root().join("lost+found")).unwrap();
    let found = image.verify(&["--read-data"]);
    assert_eq!((found.lines(), found.0["offline"]["notes"].clone()), (Vec::new(), json!([])));
    let looked = &found.0["offline"]["image"];
    assert_eq!(looked["homes"], json!(["/home/admin", "/root", "/srv/ci"]));
    assert_eq!((&looked["credential_files"], &looked["builds"]), (&json!(3), &json!(0)));
    assert_eq!(looked["gc"]["passes"].as_array().unwrap().len(), 3);

    // Where the root is a link, it leads inside of the image.
    fs::create_dir(image.0.join("data")).unwrap();
    fs::rename(image.root(), image.0.join("data/buildkit")).unwrap();
    symlink("/data/buildkit", image.root()).unwrap();
    assert_eq!(image.verify(&[]).lines(), Vec::<String>::new());
    fs::create_dir(image.0.join("data/.warmkit-buildkit-AbC123")).unwrap();
    image
        .verify(&[])
        .assert_has("leftover-staging: /var/lib/buildkit/../.warmkit-buildkit-AbC123: left by a bake");
    for place in ["var", "var/tmp"] {
        fs::create_dir_all(image.0.join(place).join(".warmkit-verify-AbC123")).unwrap();
        image
            .verify(&[])
            .assert_has(&format!("leftover-staging: /{place}/.warmkit-verify-AbC123: left by a"));
    }
    fs::remove_file(image.root()).unwrap();
    symlink(image.0.join("data/buildkit"), image.root()).unwrap();
    let mut outside = warmkit();
    outside.args(["verify", "--image", "--sysroot"]).arg(image.0.path());
    let ended = run(&mut outside, LIMIT);
    assert_eq!(ended.status.code(), Some(1), "a link out of the image\n{}", ended.stdout);
}

#[test]
fn what_a_daemon_keeps_of_builds_is_found() {
    keeps_of_builds(tools::NEWEST);
}

#[test]
fn what_an_older_daemon_keeps_of_builds_is_found() {
    keeps_of_builds("v0.33.1");
}

fn keeps_of_builds(release: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let Some(image) = Image::new() else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let root = world.scratch.join("root");
    let daemon = world.daemon(&root);
    daemon.build(&case.request.clone().arg("TOKEN", SECRET));
    let killed = world.scratch.join("killed");
    daemon.copy_root(&killed);
    daemon.stop();
    image.take(&root);
    let bytes = fs::read(image.root().join("history.db")).unwrap();
    assert!(bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "the daemon keeps arguments");
    let found = image.verify(&[]);
    found.assert_has(
        "history-kept: /var/lib/buildkit/history.db: builds in it: 1, with the build arguments BASE, TOKEN; ",
    );
    found.assert_has("history-blobs: /var/lib/buildkit/runc-overlayfs/containerdmeta.db: ");
    found.assert_has(
        "leftover-file: /var/lib/buildkit/runc-overlayfs/executor/resolv.conf: a regular file, of a step",
    );
    found.assert_has("record-mutable: record: source.local, \"local source for context\"");
    assert_eq!(found.0["offline"]["image"]["builds"], 1);

    let kinds: Vec<String> = found.kinds().into_iter().collect();
    assert_eq!(kinds, ["history-blobs", "history-kept", "leftover-file", "record-mutable"]);

    // Deleted by the daemon's own means: the bytes stay.
    let daemon = world.daemon(&image.root());
    run(daemon.buildctl().arg("prune-histories"), LIMIT).expect_success("prune-histories");
    daemon.stop();
    let found = image.verify(&[]);
    // v0.34 was the first to write over them.
    let bytes = fs::read(image.root().join("history.db")).unwrap();
    let remains = bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    assert_eq!(remains, found.kinds().contains("history-remains"), "{:?}", found.lines());
    if release != tools::NEWEST {
        found.assert_has(
            "history-remains: /var/lib/buildkit/history.db: deleted builds in its free pages: 1; ",
        );
    }
    assert!(
        !found.kinds().contains("history-kept") && !found.kinds().contains("history-blobs"),
        "{:?}",
        found.lines()
    );
}

#[test]
fn a_daemon_that_only_ran_keeps_no_history() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(image) = Image::new() else { return };
    let registry = Registry::start(&tools);
    Daemon::start(&tools, &image.root(), &registry).stop();
    let found = image.verify(&[]);
    assert_eq!(found.lines(), Vec::<String>::new());
    assert!(image.root().join("history.db").exists());
}

#[test]
fn a_killed_bake_is_found() {
    let Some(image) = Image::new() else { return };
    // Takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/app:cache", silent.local_addr().unwrap());
    fs::create_dir(image.0.join("var/lib/in-place")).unwrap();
    for (root, beside, name) in [
        ("var/lib/other", "var/lib", "/var/lib/.warmkit-other-"),
        ("var/lib/in-place", "var/lib/in-place", "/var/lib/in-place/.warmkit-"),
    ] {
        let mut bake = warmkit();
        bake.arg("bake").arg(&reference).arg("--root").arg(image.0.join(root));
        let mut child = bake.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + LIMIT;
        let is_there = || {
            let mut entries = fs::read_dir(image.0.join(beside)).unwrap();
            entries.any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".warmkit-"))
        };
        while !is_there() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no staging directory");
            thread::sleep(Duration::from_millis(5));
        }
        let seen = if root.ends_with("other") { ROOT } else { "var/lib/in-place" };
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        if root.ends_with("in-place") {
            // The root that is looked at is the one that it was to become.
            for entry in fs::read_dir(image.root()).unwrap() {
                let entry = entry.unwrap();
                fs::rename(entry.path(), image.0.join(root).join(entry.file_name())).unwrap();
            }
        }
        let found = image.verify(&["--root", seen]);
        found.assert_has(&format!("leftover-staging: {name}"));
        assert_eq!(found.kinds(), BTreeSet::from(["leftover-staging".to_owned()]));
        assert!(found.lines()[0].ends_with("left by a bake or a verification that was killed; delete it"));
    }
}

#[test]
fn what_stands_around_is_found() {
    let Some(image) = Image::new() else { return };
    fs::create_dir_all(image.0.join("run/user/1000/buildkit")).unwrap();
    fs::create_dir_all(image.0.join("run/buildkit")).unwrap();
    // Sockets have short paths.
    for socket in ["run/buildkit/buildkitd.sock", "run/user/1000/buildkit/otel-grpc.sock"] {
        UnixListener::bind(image.0.join(socket)).unwrap();
    }
    UnixListener::bind(image.root().join("otel.sock")).unwrap();
    fs::create_dir_all(image.0.join("tmp/warmkit-replay-x")).unwrap();
    fs::create_dir_all(image.0.join("var/tmp/buildkit-mount123")).unwrap();
    fs::write(image.root().join("cache.db.abc.bak"), "").unwrap();
    fs::create_dir(image.root().join("runc-overlayfs/content/ingest/half")).unwrap();
    fs::write(image.root().join("runc-overlayfs/content/blobs/sha256/what"), "").unwrap();
    chown(image.root(), Some(12345), None).unwrap();
    let found = image.verify(&[]);
    for start in [
        "leftover-socket: /run/buildkit/buildkitd.sock: a socket",
        "leftover-socket: /run/user/1000/buildkit/otel-grpc.sock: a socket",
        "leftover-socket: /var/lib/buildkit/otel.sock: a socket",
        "leftover-temporary: /tmp/warmkit-replay-x: a temporary file",
        "leftover-temporary: /var/tmp/buildkit-mount123: a temporary file",
        "leftover-file: /var/lib/buildkit/cache.db.abc.bak: a regular file, which no bake writes; ",
        "leftover-file: /var/lib/buildkit/runc-overlayfs/content/ingest/half: a directory, of a transfer that did not ",
        "leftover-garbage: /var/lib/buildkit: 1 blob-file-orphaned (see the notes); ",
        "root-owner: /var/lib/buildkit: owner 12345; ",
    ] {
        found.assert_has(start);
    }
}

#[test]
fn the_root_of_a_rootless_daemon_belongs_to_its_user() {
    let Some(image) = Image::new() else { return };
    let mut command = std::process::Command::new("chown");
    run(command.args(["-R", "1000:1000"]).arg(image.root()), LIMIT).expect_success("chown");
    image.0.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nci:x:1000:1000::/srv/ci:/bin/sh\n");
    image.verify(&[]).assert_has("root-owner: /var/lib/buildkit: owner 1000; ");

    image.0.write("etc/subuid", "ci:100000:65536\n");
    image.0.write("etc/subgid", "ci:100000:65536\n");
    image.0.write("srv/ci/.config/buildkit/buildkitd.toml", "");
    let found = image.verify(&["--read-data"]);
    assert!(!found.kinds().contains("root-owner"), "{:#?}", found.lines());
    // With the ids that the image gives the user.
    assert!(found.0["offline"]["counts"]["layers_compared"].as_u64() > Some(3), "{}", found.0);
    let config = &found.0["offline"]["image"]["buildkitd_config"];
    assert_eq!(config, "/srv/ci/.config/buildkit/buildkitd.toml");
}

#[test]
fn credentials_of_every_kind_are_found_and_not_shown() {
    let Some(image) = Image::new() else { return };
    let auth = json!({"auths": {"r.example": {"identitytoken": SECRET}}}).to_string();
    image.0.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nci:x:1000:1000::/srv/ci:/bin/sh\n");
    image.0.write("srv/ci/.config/containers/auth.json", &auth);
    image.0.write("run/containers/0/auth.json", &auth);
    image.0.write("run/user/1000/containers/auth.json", &auth);
    image.0.write("home/admin/.aws/credentials", format!("[default]\naws_secret_access_key={SECRET}\n"));
    let session = json!({"Credentials": {"SessionToken": SECRET}}).to_string();
    image.0.write("home/admin/.aws/cli/cache/0123.json", session);
    image.0.write("etc/environment", format!("GITHUB_TOKEN={SECRET}\n"));
    image.0.write("home/admin/.docker/config.json", SECRET);
    // A home that is a link, and a file that is one, inside of the image.
    symlink("/srv/ci", image.0.join("home/link")).unwrap();
    image.0.write("opt/config.json", &auth);
    fs::create_dir(image.0.join("root/.docker")).unwrap();
    symlink("/opt/config.json", image.0.join("root/.docker/config.json")).unwrap();
    // And what is outside of it is nobody's business.
    let outside = Scratch::new();
    outside.write("home/.docker/config.json", &auth);
    symlink(outside.join("home"), image.0.join("home/outside")).unwrap();
    let found = image.verify(&[]);
    let expected = [
        "credentials-left: /etc/environment: variable GITHUB_TOKEN; delete the lines",
        "credentials-left: /home/admin/.aws/cli/cache/0123.json: what a login left; delete the file",
        "credentials-left: /home/admin/.aws/credentials: keys of profile default; delete the file",
        "credentials-left: /home/link/.config/containers/auth.json: a token for r.example; run podman logout",
        "credentials-left: /root/.docker/config.json: a token for r.example; run docker logout",
        "credentials-left: /run/containers/0/auth.json: a token for r.example; run podman logout",
        "credentials-left: /run/user/1000/containers/auth.json: a token for r.example; run podman logout",
        "credentials-left: /srv/ci/.config/containers/auth.json: a token for r.example; run podman logout",
        "credentials-unreadable: /home/admin/.docker/config.json: no JSON object, so it is unknown",
    ];
    let lines = found.lines();
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line}\n{start}");
    }
}

#[test]
fn a_real_login_is_found() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(image) = Image::new() else { return };
    if !Command::new("skopeo").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        return skip("no skopeo");
    }
    let registry = Registry::start_with_password(&tools);
    let file = image.0.write("root/.docker/config.json", "{}");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["login", "--tls-verify=false", "--username", USER, "--password", PASSWORD, "--authfile"]);
    run(skopeo.arg(&file).arg(registry.host()), LIMIT).expect_success("skopeo login");
    let found = image.verify(&[]);
    let expected =
        format!("credentials-left: /root/.docker/config.json: a password for {}; ", registry.host());
    found.assert_has(&expected);
    let mut skopeo = Command::new("skopeo");
    run(skopeo.args(["logout", "--authfile"]).arg(&file).arg(registry.host()), LIMIT)
        .expect_success("logout");
    assert_eq!(image.verify(&[]).lines(), Vec::<String>::new());
}

#[test]
fn a_root_that_collection_takes_is_found() {
    let Some(image) = Image::new() else { return };
    // Before v0.17 the limit is a tenth of the disk, in whole GB.
    image.0.write("etc/buildkit/buildkitd.toml", "[worker.oci]\n  gckeepstorage = 100000\n");
    let old = ["--buildkitd-release", "v0.12.5"];
    let found = image.verify(&[&old[..], &["--disk-size", "8GB"]].concat());
    found.assert_has(
        "collection-takes: /var/lib/buildkit: BuildKit v0.12.5 on a disk of 8589934592 bytes takes ",
    );
    let looked = &found.0["offline"]["image"];
    assert_eq!(looked["buildkitd_config"], "/etc/buildkit/buildkitd.toml");
    assert!(looked["gc"]["passes"][0]["records"].as_u64().unwrap() > 0, "{looked}");

    // With what it proposes, nothing goes.
    let kept = image.0.write("kept.toml", looked["gc"]["keep"].as_str().unwrap());
    let kept = kept.to_str().unwrap();
    let found = image.verify(&[&old[..], &["--buildkitd-config", kept]].concat());
    assert_eq!(found.lines(), Vec::<String>::new());
    assert_eq!(found.0["offline"]["image"]["buildkitd_config"], kept);

    image.0.write("etc/buildkit/buildkitd.toml", "[worker.oci]\n  gc = \"no\"\n");
    let found = image.verify(&[]);
    found.assert_has("collection-unknown: /etc/buildkit/buildkitd.toml: worker.oci.gc is not true or false");
    assert_eq!(found.0["offline"]["image"]["gc"], Value::Null);
}

#[test]
fn flags_of_an_image_need_an_image() {
    for arguments in [
        &["--sysroot", "/"][..],
        &["--disk-size", "1"],
        &["--buildkitd-config", "x"],
        &["--buildkitd-release", "v0.34.2"],
        &["--image", "--buildkitd-release", "new"],
        &["--image", "--sysroot", "/", "--build", "."],
    ] {
        let mut command = warmkit();
        let ended = run(command.arg("verify").args(arguments), LIMIT);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {}", ended.stderr);
    }
}
