//! The units in packer/, by systemd's own judgement, and the command that they run.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::command::run;
use support::demo;
use support::files::Scratch;
use support::skip::{is_root, skip};
use support::tools::on_path;

const LIMIT: Duration = Duration::from_secs(60);
const UNITS: [&str; 2] = ["warmkit-hydrate.service", "warmkit-hydrate.timer"];

fn packer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packer").join(name)
}

/// The units, with the warmkit that is under test.
fn units(scratch: &Scratch) -> Vec<PathBuf> {
    let unit = |name: &str| {
        let text = fs::read_to_string(packer(name)).unwrap();
        scratch.write(name, text.replace("/usr/local/bin/warmkit", env!("CARGO_BIN_EXE_warmkit")))
    };
    UNITS.map(unit).into()
}

#[test]
fn systemd_finds_nothing_wrong_and_nothing_exposed() {
    if on_path("systemd-analyze").is_none() {
        skip("no systemd-analyze in $PATH");
        return;
    }
    let scratch = Scratch::new();
    let units = units(&scratch);
    let analyze = |arguments: &[&str], units: &[PathBuf]| {
        run(Command::new("systemd-analyze").args(arguments).args(units), LIMIT)
    };
    let verified = analyze(&["verify"], &units).expect_success("systemd-analyze verify");
    assert_eq!(verified.stdout + &verified.stderr, "", "it is not content");

    // Of 100; a service of which nothing is said has 96.
    let security = ["security", "--offline=true", "--threshold=20", "--no-pager"];
    analyze(&security, &units[..1]).expect_success("systemd-analyze security");

    // It does tell.
    let broken = scratch.write("broken.service", "[Service]\nExecStart=/nonexistent\nProtectSystem=strong\n");
    let verified = analyze(&["verify"], &[broken]);
    assert!(verified.stderr.contains("/nonexistent") && verified.stderr.contains("broken.service:3:"));
}

/// The words of a command of the service, its specifiers and variables replaced.
fn words(service: &Path, replaced: &[(&str, &str)]) -> Vec<String> {
    let text = fs::read_to_string(service).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let replace =
        |word: &str| replaced.iter().fold(word.to_owned(), |word, (from, to)| word.replace(from, to));
    let words: Vec<_> = line.split_whitespace().map(replace).filter(|word| !word.is_empty()).collect();
    assert!(!words.iter().any(|word| word.contains(['%', '$'])), "{words:?}");
    words
}

#[test]
fn the_service_says_when_the_databases_are_read() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.join("root");
    demo::bake(&[], &root);

    let state = scratch.join("state");
    fs::create_dir_all(state.join("warmkit")).unwrap();
    let service = &units(&scratch)[0];
    let words = words(
        service,
        &[
            ("/var/lib/buildkit", root.to_str().unwrap()),
            ("%S", state.to_str().unwrap()),
            ("%m", "id"),
            ("$WARMKIT_HYDRATE_OPTIONS", ""),
        ],
    );
    let socket = scratch.join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    let mut command = Command::new(&words[0]);
    let ended = run(command.args(&words[1..]).env("NOTIFY_SOCKET", &socket), LIMIT);
    let ended = ended.expect_success("the service's command");
    assert_eq!(ended.stderr, "");
    listener.set_nonblocking(true).unwrap();
    let mut told = String::new();
    let mut buffer = [0; 256];
    while let Ok(read) = listener.recv(&mut buffer) {
        told += std::str::from_utf8(&buffer[..read]).unwrap();
        told.push('\n');
    }
    let expected = [
        "STATUS=reading databases",
        "READY=1",
        "READY=1",
        "STATUS=reading what steps are built on",
        "READY=1",
        "STATUS=reading the rest",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    // systemd refuses openat2 where this is set, since it cannot see modes there.
    let text = fs::read_to_string(service).unwrap();
    assert!(!text.lines().any(|line| line.starts_with("RestrictSUIDSGID=")), "nothing could be opened");
    // What the conditions of both units look for.
    assert!(state.join("warmkit/hydrated-id").is_file());
    for unit in UNITS {
        let condition = "\nConditionPathExists=!/var/lib/warmkit/hydrated-%m\n";
        assert!(fs::read_to_string(packer(unit)).unwrap().contains(condition), "{unit}");
    }
}
