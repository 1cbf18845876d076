//! What a reader of the repository relies on: links lead somewhere, commands exist, files stay short.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the repository has failed")]

#[allow(unreachable_pub, clippy::missing_panics_doc, reason = "made for other test files too")]
#[path = "support/commands.rs"]
mod commands;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use commands::commands;

/// Longest source file, in lines.
const MAX_LINES: usize = 650;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `dir` (from the repository's root), without what cargo and git keep there.
fn files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(dir)];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap_or_else(|e| panic!("{}: {e}", next.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if name == "target" || name == ".git" {
                continue;
            }
            if path.is_symlink() || path.is_file() {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            } else if path.is_dir() {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text_of(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(root().join(file)).unwrap()).into_owned()
}

fn with_extension<'a>(files: &'a [PathBuf], extension: &'a str) -> impl Iterator<Item = &'a PathBuf> {
    files.iter().filter(move |f| f.extension().is_some_and(|e| e == extension))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(root().join(file)).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 == 0o111)
}

/// The lines of a document outside of its fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    prose(text)
        .flat_map(|line| line.match_indices("](").map(move |(at, _)| &line[at + 2..]))
        .filter_map(|rest| rest.split(')').next())
        .collect()
}

/// The anchors that headings get: lower case, spaces to hyphens, punctuation gone.
fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let all = files(".");
    let mut faults = String::new();
    let mut looked_at = 0;
    for file in with_extension(&all, "md") {
        let text = text_of(file);
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            looked_at += 1;
            let (path, anchor) = link.split_once('#').map_or((link, None), |(p, a)| (p, Some(a)));
            let target = match path {
                "" => file.clone(),
                _ => file.parent().unwrap().join(path),
            };
            if !root().join(&target).exists() {
                let _ = writeln!(faults, "{}: {link} does not exist", file.display());
            } else if let Some(anchor) = anchor
                && !anchors(&text_of(&target)).contains(anchor)
            {
                let _ = writeln!(faults, "{}: {link}: no such heading", file.display());
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
    assert!(looked_at > 10, "only {looked_at} links found: is the reader of links broken?");
}

#[test]
fn documents_that_are_named_anywhere_exist() {
    let mut faults = String::new();
    for file in files(".") {
        let text = text_of(&file);
        for (at, _) in text.match_indices("docs/") {
            let path: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.'))
                .collect();
            let path = path.trim_end_matches('.');
            // "https://example.com/docs/…" is a document of somebody else.
            let elsewhere = text[..at].ends_with('/');
            if path.strip_suffix(".md").is_some() && !elsewhere && !root().join(path).exists() {
                let _ = writeln!(faults, "{}: {path} does not exist", file.display());
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn the_readmes_commands_exist() {
    let text = text_of(Path::new("README.md"));
    let commands: BTreeSet<&str> = text
        .split(|c: char| c.is_whitespace() || matches!(c, '`' | '(' | ')'))
        .filter(|word| word.starts_with("scripts/"))
        .collect();
    for needed in ["scripts/demo", "scripts/test"] {
        assert!(commands.contains(needed), "README.md does not name {needed}");
    }
    for command in commands {
        assert!(is_executable(Path::new(command)), "README.md names {command}, which cannot be run");
    }
}

#[test]
fn scripts_stop_at_the_first_failure() {
    let scripts =
        files("scripts").into_iter().chain(files(".ci")).chain(files("packer")).chain(files("tests/support"));
    let mut looked_at = 0;
    for script in scripts {
        let text = text_of(&script);
        let Some(interpreter) = text.lines().next().filter(|line| line.starts_with("#!")) else {
            continue;
        };
        looked_at += 1;
        assert!(is_executable(&script), "{} is not executable", script.display());
        if interpreter.ends_with("bash") {
            assert!(text.contains("\nset -euo pipefail\n"), "{} goes on after a failure", script.display());
        }
    }
    assert!(looked_at >= 4, "only {looked_at} scripts found");
}

#[test]
fn source_files_stay_short() {
    let src = files("src");
    let long: Vec<String> = with_extension(&src, "rs")
        .map(|file| (file, text_of(file).lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:#?}");
}

#[test]
fn the_changelog_has_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let text = text_of(Path::new("CHANGELOG.md"));
    let found =
        prose(&text).any(|line| line.starts_with(&format!("## [{version}]")) || line == "## [Unreleased]");
    assert!(found, "CHANGELOG.md has neither [{version}] nor [Unreleased]");
}

/// What `warmkit <arguments>` prints.
fn output_of(arguments: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_warmkit")).args(arguments).output().unwrap();
    assert!(output.status.success(), "warmkit {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The flags in `words`, without their values.
fn flags<'a>(words: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    words
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .filter_map(|word| word.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next())
        .collect()
}

#[test]
fn documented_commands_have_the_flags_they_are_shown_with() {
    let all = files(".");
    let mut faults = String::new();
    let mut looked_at = 0;
    for command in commands() {
        let help = output_of(&command.iter().map(String::as_str).chain(["--help"]).collect::<Vec<_>>());
        let command = command.join(" ");
        let known = flags(help.split(|c: char| c.is_whitespace() || c == ','));
        let start = format!("warmkit {command} ");
        for file in with_extension(&all, "md") {
            let text = text_of(file).replace("\\\n", " ");
            for (at, _) in text.match_indices(&start) {
                let shown = text[at..].split(['\n', '`', '#']).next().unwrap_or_default();
                looked_at += 1;
                for flag in flags(shown.split_whitespace()).difference(&known) {
                    let _ = writeln!(faults, "{}: {shown}: warmkit {command} has no {flag}", file.display());
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
    assert!(looked_at > 10, "only {looked_at} commands found: is the reader of documents broken?");
}
