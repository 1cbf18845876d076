//! What every command owes whoever runs it: it ends when asked to, loses no report, and lets no text of others
//! steer the terminal.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/skip.rs"]
mod skip;

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn warmkit(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.args(arguments).stdin(Stdio::null()).env_remove("DOCKER_CONFIG");
    command
}

fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo").join(name)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A server that takes requests and never answers.
struct Silent(TcpListener);

impl Silent {
    fn reference(&self) -> String {
        format!("127.0.0.1:{}/app:cache", self.0.local_addr().unwrap().port())
    }

    /// Waits for a client that has asked for something.
    fn asked(&self) -> TcpStream {
        let (mut stream, _) = self.0.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    }
}

fn interrupted(child: Child, signal: Signal) -> Output {
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn commands_that_wait_for_a_server_end_on_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.json");
    let file = keys.to_str().unwrap();
    let silent = Silent(TcpListener::bind("127.0.0.1:0").unwrap());
    let cache = silent.reference();
    let commands: [&[&str]; 5] = [
        &["keys", "check", &cache, "--json"],
        &["keys", "push", &cache, "--json"],
        &["keys", "pull", &cache, "-o", file, "--json"],
        &["keys", "harvest", &cache, "-o", file, "--json"],
        &["keys", "replay", &cache, "--build", ".", "-o", file, "--json"],
    ];
    for (command, signal) in commands.iter().zip([Signal::INT, Signal::TERM].into_iter().cycle()) {
        let child = warmkit(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let open = silent.asked();
        let output = interrupted(child, signal);
        drop(open);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {errors}");
        assert!(errors.ends_with("error: interrupted\n"), "{command:?}: {errors}");
        assert!(!errors.contains("retry"), "{command:?}: {errors}");
        let json: Value = text(&output.stdout).parse().unwrap();
        assert_eq!(json["error"]["exit_code"], 1, "{command:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{command:?} leaves a file");
    }
}

/// A verification ends wherever it is, and leaves nothing: here while it waits for a `buildkitd` to say which it is.
#[test]
fn a_verification_ends_on_a_signal() {
    if !skip::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (root, fifo, buildkitd) =
        (dir.path().join("root"), dir.path().join("fifo"), dir.path().join("buildkitd"));
    let cache = format!("type=local,src={}", demo("cache").display());
    let bake = ["bake", &cache, "--allow-unkeyed", "--root", root.to_str().unwrap()];
    assert!(warmkit(&bake).output().unwrap().status.success());
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    // By a process of its own: what this one writes may be open in a child of another test's, and is then too
    // busy to run.
    let script = "printf '#!/bin/sh\\necho asked >\"%s\"\\nread -r end <\"%s\"\\n' \"$1\" \"$1\" >\"$2\"
        chmod 755 \"$2\"
        cp \"$2\" \"$3\"";
    let mut write = Command::new("sh");
    write.args(["-euc", script, "sh"]).arg(&fifo).arg(&buildkitd).arg(dir.path().join("buildctl"));
    assert!(write.status().unwrap().success());

    let verify = ["verify", "--root", root.to_str().unwrap(), "--build", "."];
    let mut command = warmkit(&verify);
    command.arg("--buildkitd").arg(&buildkitd).env("TMPDIR", dir.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(fs::read_to_string(&fifo).unwrap(), "asked\n");
    let output = interrupted(child, Signal::INT);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.ends_with("error: interrupted\n"), "{errors}");
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("warmkit-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_report_that_cannot_be_written_is_a_failure() {
    let cache = format!("type=local,src={}", demo("cache").display());
    let keys = format!("type=provenance,src={}", demo("provenance.json").display());
    let check = ["keys", "check", &cache, "--keys-from", &keys];
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = warmkit(&check).stdout(full).output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("error: cannot write to standard output: No space left"), "{errors}");

    // A reader that has seen enough is another matter.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = warmkit(&check).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn an_output_file_is_tried_before_the_work() {
    let silent = Silent(TcpListener::bind("127.0.0.1:0").unwrap());
    silent.0.set_nonblocking(true).unwrap();
    let cache = silent.reference();
    let commands: [&[&str]; 3] = [
        &["keys", "pull", &cache, "-o", "/nonexistent/keys.json"],
        &["keys", "harvest", &cache, "-o", "/nonexistent/keys.json"],
        &["keys", "replay", &cache, "--build", ".", "-o", "/nonexistent/keys.json"],
    ];
    for command in commands {
        let output = warmkit(command).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let errors = text(&output.stderr);
        assert!(errors.starts_with("error: cannot write /nonexistent/keys.json: No such file"), "{errors}");
    }
    assert!(silent.0.accept().is_err(), "a server was asked");
}

#[test]
fn names_of_steps_do_not_steer_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let mut provenance: Value = fs::read_to_string(demo("provenance.json")).unwrap().parse().unwrap();
    let source = &mut provenance["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["source"];
    let dockerfile = &mut source["infos"][0]["data"];
    let lines = BASE64.decode(dockerfile.as_str().unwrap()).unwrap();
    let lines = text(&lines).replace("COPY docs /docs", "COPY docs\u{1b}[2J\u{9b}31m\u{202e} /docs");
    *dockerfile = BASE64.encode(lines).into();
    let file = dir.path().join("provenance.json");
    fs::write(&file, provenance.to_string()).unwrap();

    let cache = format!("type=local,src={}", demo("cache").display());
    let keys = format!("type=provenance,src={}", file.display());
    let check = |more: &[&str]| {
        let output = warmkit(&["keys", "check", &cache, "--keys-from", &keys]).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let printed = text(&output.stdout).to_owned();
        assert!(!printed.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{printed}");
        printed
    };
    let named = |line: &&str| line.contains("[docs 1/2] COPY docs") && line.ends_with(" /docs");
    let table = check(&[]);
    assert_eq!(table.lines().filter(named).count(), 1, "{table}");
    let json: Value = check(&["--json"]).parse().unwrap();
    let steps = json["steps"].as_array().unwrap().iter().filter_map(|step| step["name"].as_str());
    assert_eq!(steps.filter(named).count(), 1, "{json}");
}

#[test]
fn a_cache_that_is_named_twice_counts_once() {
    let cache = format!("type=local,src={}", demo("cache").display());
    let keys = format!("type=provenance,src={}", demo("provenance.json").display());
    let command = ["keys", "check", &cache, &cache, "--keys-from", &keys, "--keys-from", &keys, "--json"];
    let output = warmkit(&command).output().unwrap();
    let json: Value = text(&output.stdout).parse().unwrap();
    assert_eq!(json["caches"].as_array().unwrap().len(), 1);
    assert_eq!(json["keys_from"].as_array().unwrap().len(), 1);
    assert_eq!(json["keys_from"][0]["only"], json["keys_from"][0]["keyed"]);
}

/// Whoever copies an example from a terminal of usual width gets the whole command, in lines that the shell
/// takes for one.
#[test]
fn examples_are_not_wrapped() {
    let commands: [&[&str]; 9] = [
        &["bake"],
        &["verify"],
        &["completion"],
        &["man"],
        &["keys", "check"],
        &["keys", "push"],
        &["keys", "pull"],
        &["keys", "harvest"],
        &["keys", "replay"],
    ];
    for command in commands {
        let output = warmkit(command).arg("--help").output().unwrap();
        let help = text(&output.stdout);
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{command:?} has none"));
        let mut goes_on = false;
        for line in examples.lines().filter(|line| !line.is_empty()) {
            assert!(line.chars().count() <= 80, "{command:?}: {line}");
            let start = if goes_on { "    " } else { "  " };
            let rest = line.strip_prefix(start).unwrap_or_else(|| panic!("{command:?}: {line}"));
            assert!(goes_on || rest.starts_with("# ") || rest.contains("warmkit "), "{command:?}: {line}");
            goes_on = line.ends_with('\\');
        }
        assert!(!goes_on, "{command:?}");
    }
}
