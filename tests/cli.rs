//! What every command owes whoever runs it: it ends when asked to, loses no report, and lets no text of others
//! steer the terminal.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[allow(unreachable_pub, clippy::missing_panics_doc, reason = "made for other test files too")]
#[path = "support/commands.rs"]
mod commands;
#[allow(dead_code, unreachable_pub, reason = "made for other test files too")]
#[path = "support/shipped.rs"]
mod shipped;
#[path = "support/skip.rs"]
mod skip;

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use commands::commands;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shipped::{cache, demo, keys};

fn warmkit(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.args(arguments).stdin(Stdio::null()).env_remove("DOCKER_CONFIG");
    command
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
    let (cache, context) = (silent.reference(), demo("context").display().to_string());
    let commands: [&[&str]; 5] = [
        &["keys", "check", &cache, "--json"],
        &["keys", "push", &cache, "--json"],
        &["keys", "pull", &cache, "-o", file, "--json"],
        &["keys", "harvest", &cache, "-o", file, "--json"],
        &["keys", "replay", &cache, "--build", &context, "-o", file, "--json"],
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
    let cache = cache();
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

    let context = demo("context").display().to_string();
    let verify = ["verify", "--root", root.to_str().unwrap(), "--build", &context];
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
    let (cache, keys) = (cache(), keys());
    let commands: [&[&str]; 3] =
        [&["keys", "check", &cache, "--keys-from", &keys], &["--help"], &["completion", "bash"]];
    for command in commands {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = warmkit(command).stdout(full).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("error: cannot write to standard output: No space left"), "{errors}");

        // A reader that has seen enough is another matter.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = warmkit(command).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
}

#[test]
fn an_output_file_is_tried_before_the_work() {
    let silent = Silent(TcpListener::bind("127.0.0.1:0").unwrap());
    silent.0.set_nonblocking(true).unwrap();
    let cache = silent.reference();
    let context = demo("context").display().to_string();
    let commands: [&[&str]; 3] = [
        &["keys", "pull", &cache, "-o", "/nonexistent/keys.json"],
        &["keys", "harvest", &cache, "-o", "/nonexistent/keys.json"],
        &["keys", "replay", &cache, "--build", &context, "-o", "/nonexistent/keys.json"],
    ];
    for command in commands {
        let output = warmkit(command).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let errors = text(&output.stderr);
        assert!(errors.starts_with("error: cannot write /nonexistent/keys.json: No such file"), "{errors}");
    }
    assert!(silent.0.accept().is_err(), "a server was asked");
}

/// What a build is made of is looked for before anything else: where nothing can be built, too.
#[test]
fn a_build_that_is_not_there_is_told_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (none, file, empty, there) = (path("none"), path("file"), path("empty"), path("there"));
    for directory in [&empty, &there] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(&file, "").unwrap();
    fs::write(dir.path().join("there/dockerfile"), "FROM scratch\n").unwrap();
    let named = format!("base={none}");
    let cases: [(&[&str], String); 5] = [
        (&["--build", &none], format!("cannot find the build context {none}: No such file")),
        (&["--build", &file], format!("cannot find the build context {file}: not a directory")),
        (&["--build", &empty], format!("cannot find the Dockerfile {empty}/Dockerfile: No such file")),
        (&["--build", &there, "-f", &none], format!("cannot find the Dockerfile {none}: No such file")),
        (
            &["--build", &there, "--build-context", &named],
            format!("cannot find the build context {none}: No"),
        ),
    ];
    let (cache, root, output) = (cache(), path("root"), path("keys.json"));
    let commands: [&[&str]; 4] = [
        &["bake", &cache, "--root", &root],
        &["plan", &cache, "--root", &root],
        &["keys", "replay", &cache, "-o", &output],
        &["verify", "--root", &there],
    ];
    for command in commands {
        for (build, expected) in &cases {
            let output = warmkit(command).args(*build).env("PATH", "").output().unwrap();
            let errors = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?} {build:?}: {errors}");
            assert!(errors.starts_with(&format!("error: {expected}")), "{command:?} {build:?}: {errors}");
        }
    }
    // Where all of it is there, the next thing is told.
    let output = warmkit(&["verify", "--root", &there, "--build", &there]).env("PATH", "").output().unwrap();
    assert!(text(&output.stderr).contains("is no BuildKit state directory"), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something was left");
}

/// `-h` is for whoever looks for a flag; what there is to read comes with `--help`, each part under its title.
#[test]
fn short_help_has_flags_and_long_help_the_rest() {
    for command in commands() {
        let help =
            |flag: &str| text(&warmkit(&[]).args(&command).arg(flag).output().unwrap().stdout).to_owned();
        let (short, long) = (help("-h"), help("--help"));
        assert!(!short.contains("Examples:") && short.len() < long.len(), "{command:?}: {short}");
        // What says how a report is printed is not about a build or a host.
        let general = |help: &str| {
            help.split_once("\nOptions:\n").map(|(_, rest)| {
                rest.split("\n\n").take_while(|part| part.starts_with("  ")).collect::<String>()
            })
        };
        if long.contains("--json") {
            let general = general(&long).unwrap();
            assert!(general.contains("--json") && general.contains("--format"), "{command:?}: {general}");
        }
    }
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

    let cache = cache();
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
    let (cache, keys) = (cache(), keys());
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
    for command in commands() {
        let output = warmkit(&[]).args(&command).arg("--help").output().unwrap();
        let help = text(&output.stdout);
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{command:?} has none"));
        let mut goes_on = false;
        for line in examples.lines().filter(|line| !line.is_empty()) {
            assert!(line.chars().count() <= 80, "{command:?}: {line}");
            let start = if goes_on { "    " } else { "  " };
            let rest = line.strip_prefix(start).unwrap_or_else(|| panic!("{command:?}: {line}"));
            assert!(goes_on || rest.starts_with("# ") || rest.contains("warmkit "), "{command:?}: {line}");
            goes_on = line.ends_with(['\\', '|']);
        }
        assert!(!goes_on, "{command:?}");
    }
}
