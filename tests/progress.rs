//! What is seen of a command while it works: a bar on a terminal, lines in a log, and colour only where there is
//! somebody to see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

#[allow(dead_code, unreachable_pub, reason = "made for other test files too")]
#[path = "support/shipped.rs"]
mod shipped;
#[path = "support/skip.rs"]
mod skip;
#[allow(dead_code, clippy::missing_panics_doc, unreachable_pub)]
#[path = "support/terminal.rs"]
mod terminal;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use serde_json::Value;
use shipped::{cache, demo};
use terminal::{Shown, screen};

/// As on a terminal that can do everything, whatever that of the test can.
fn warmkit(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.args(arguments);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI", "COLORTERM", "DOCKER_CONFIG"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm-256color").envs(environment.iter().copied());
    command
}

/// A registry with the demo's cache, which holds back half of its largest layer until it is released.
struct Slow {
    port: u16,
    release: Sender<()>,
}

/// The largest blob of the demo's cache, as `sha256/…`.
fn largest() -> String {
    let blobs = fs::read_dir(demo("cache/blobs/sha256")).unwrap().map(|entry| entry.unwrap());
    let largest = blobs.max_by_key(|entry| (entry.metadata().unwrap().len(), entry.file_name())).unwrap();
    largest.file_name().into_string().unwrap()
}

impl Slow {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (release, released) = channel();
        let released = Arc::new(Mutex::new(released));
        let index: Value =
            fs::read(demo("cache/index.json")).map(|b| serde_json::from_slice(&b).unwrap()).unwrap();
        let manifest = index["manifests"][0].clone();
        // Ends with the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (manifest, released) = (manifest.clone(), Arc::clone(&released));
                // A client that goes away is its own business.
                thread::spawn(move || stream.and_then(|stream| answer(stream, &manifest, &released)));
            }
        });
        Self { port, release }
    }

    fn cache(&self) -> String {
        format!("127.0.0.1:{}/app:cache", self.port)
    }
}

fn answer(mut stream: TcpStream, manifest: &Value, released: &Mutex<Receiver<()>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let asked = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = asked.split(' ').nth(1).unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let digest = manifest["digest"].as_str().unwrap();
    let (name, kind) = match path.split('/').rev().nth(1) {
        Some("manifests") if name == "cache" || name == digest => {
            (digest, manifest["mediaType"].as_str().unwrap())
        }
        Some("blobs") => (name, "application/octet-stream"),
        _ => ("", ""),
    };
    let Ok(bytes) = fs::read(demo("cache/blobs/sha256").join(name.trim_start_matches("sha256:"))) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let length = bytes.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if asked.starts_with("HEAD ") {
        return Ok(());
    }
    let (first, rest) = bytes.split_at(length / 2);
    stream.write_all(first)?;
    if name.ends_with(&largest()) {
        let _ = released.lock().unwrap().recv();
    }
    stream.write_all(rest)
}

#[test]
fn a_bar_has_all_its_parts_and_goes() {
    if !skip::is_root() {
        return;
    }
    // Parts that are seen while a layer is held back, in one line that fits.
    let full: &[&str] = &["/12 unpacked", "━", "KiB/", "/s", " s left"];
    let narrow: &[&str] = &["/12  ", "%"];
    for (columns, parts, most) in [(100, full, 100), (0, full, 80), (20, narrow, 20)] {
        let slow = Slow::start();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let bake = ["bake", &slow.cache(), "--allow-unkeyed", "--root", root.to_str().unwrap()];
        let mut running = terminal::start(warmkit(&bake, &[]), Shown::Errors, columns);
        running.until(|written| {
            let drawn = written.rsplit(['\r', '\n']).filter(|line| !line.is_empty()).take(4);
            drawn.map(|line| screen(line).concat()).any(|line| parts.iter().all(|part| line.contains(part)))
        });
        slow.release.send(()).unwrap();
        let (report, code) = running.end();
        assert_eq!(code, Some(0), "{:?}", running.written);
        assert!(report.starts_with("baked "), "{report}");
        assert!(!report.contains('\u{1b}'), "{report}");
        for line in running.written.split(['\r', '\n']) {
            let width = screen(line).concat().chars().count();
            assert!(width < most, "{width} columns of {columns}: {line:?}");
        }
        assert_eq!(screen(&running.written), Vec::<String>::new(), "{:?}", running.written);
    }
}

#[test]
fn a_bar_makes_way_for_warnings_and_errors() {
    let slow = Slow::start();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let keys = [
        "bake",
        &slow.cache(),
        "--keys-from",
        "type=keys,src=/nonexistent",
        "--root",
        root.to_str().unwrap(),
    ];
    let mut running = terminal::start(warmkit(&keys, &[]), Shown::Both, 80);
    let (_, code) = running.end();
    assert_ne!(code, Some(0));
    let screen = screen(&running.written);
    assert_eq!(screen.len(), 1, "{screen:?}");
    assert!(screen[0].starts_with("error: "), "{screen:?}");
    assert!(running.written.contains("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m "), "{:?}", running.written);
}

#[test]
fn a_log_has_plain_lines() {
    if !skip::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let root = root.to_str().unwrap();
    let cache = cache();
    let bake = ["bake", &cache, "--allow-unkeyed", "--root", root];
    let verify = ["verify", "--root", root, "--read-data"];
    let harvest = ["keys", "harvest", "type=cachedb,src=/nonexistent", "-o", "/dev/null"];
    let commands: [(&[&str], &[&str]); 3] = [
        (
            &bake,
            &[
                "reading caches",
                "recovering keys",
                "downloading layers",
                "12 layers, ",
                "12/12 layers unpacked, ",
                "writing to disk",
            ],
        ),
        (&verify, &["reading databases", "reading blobs", "12 layers, ", "12/12 layers compared, "]),
        (&harvest, &["recovering keys", "error: "]),
    ];
    for (arguments, lines) in commands {
        let output = warmkit(arguments, &[]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
        // Those that tell how far it is by now come with the time.
        let now_and_then = |line: &&str| line.starts_with("still ") || line.contains(" of ");
        let told: Vec<&str> = told.lines().filter(|line| !now_and_then(line)).collect();
        assert_eq!(told.len(), lines.len(), "{told:?}");
        for (told, line) in told.iter().zip(lines) {
            assert!(told.starts_with(line), "{told:?} {line:?}");
        }
    }
}

#[test]
fn colour_is_for_those_who_see_it() {
    /// Arguments, environment, what the terminal is, whether there is colour.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], Shown, bool);
    let cache = cache();
    let check = ["keys", "check", &cache];
    let json = ["keys", "check", &cache, "--format", "json"];
    let cases: [Case<'_>; 7] = [
        (&check, &[], Shown::Both, true),
        (&check, &[("NO_COLOR", "1")], Shown::Both, false),
        (&check, &[("TERM", "dumb")], Shown::Both, false),
        (&check, &[("CLICOLOR", "0")], Shown::Both, false),
        (&check, &[], Shown::Errors, false),
        (&check, &[("CLICOLOR_FORCE", "1")], Shown::Errors, true),
        (&json, &[("CLICOLOR_FORCE", "1")], Shown::Errors, false),
    ];
    for (arguments, environment, shown, coloured) in cases {
        let mut running = terminal::start(warmkit(arguments, environment), shown, 80);
        let (piped, code) = running.end();
        assert_eq!(code, Some(6), "{:?}", running.written);
        let report = if shown == Shown::Both { &running.written } else { &piped };
        assert!(report.contains(if arguments == json { "\"keyed\"" } else { "KEY" }), "{report}");
        assert_eq!(report.contains("\u{1b}[1m"), coloured, "{environment:?} {shown:?}: {report:?}");
        // No bar, and nothing else that steers, where the terminal could not do it.
        if environment.contains(&("TERM", "dumb")) {
            assert!(!report.contains('\u{1b}'), "{report:?}");
        }
    }
}
