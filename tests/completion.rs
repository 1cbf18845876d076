//! What packages ship beside the program: completions that shells load, and a manual page for each command.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/skip.rs"]
mod skip;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

fn warmkit(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warmkit")).args(arguments).output().unwrap()
}

fn printed(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

fn completion(shell: &str) -> String {
    printed(&warmkit(&["completion", shell])).to_owned()
}

/// What bash offers for a command line whose last word is being typed.
fn offered(words: &[&str]) -> BTreeSet<String> {
    // As bash itself calls it: the command, the word, the one before it.
    let script = r#"
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
        function=$(complete -p warmkit); function=${function#*-F }; function=${function%% *}
        # Of bash itself only where it completes.
        compopt() { printf '%s\n' "$*"; } 2>/dev/null
        "$function" warmkit "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("warmkit");
    fs::write(&file, completion("bash")).unwrap();
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-euc", script, "bash"]).arg(&file).args(words);
    printed(&bash.output().unwrap()).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["warmkit", "ba"], &["bake"]),
        (&["warmkit", "keys", "pu"], &["pull", "push"]),
        (&["warmkit", "bake", "--allow"], &["--allow-unkeyed"]),
        (&["warmkit", "bake", "--images", ""], &["auto", "none"]),
        (&["warmkit", "bake", "--for", "bu"], &["-o nospace", "buildx:"]),
        (&["warmkit", "bake", "--for", "ho"], &["host"]),
        (
            &["warmkit", "hydrate", "--for", ""],
            &["auto", "buildx:", "containerd", "containerd:", "host", "rootless", "rootless:"],
        ),
        (&["warmkit", "completion", ""], &["bash", "fish", "zsh"]),
    ];
    for (words, expected) in cases {
        let offered = offered(words);
        let options = words.last() == Some(&"");
        let offered: Vec<&str> =
            offered.iter().map(String::as_str).filter(|word| !options || !word.starts_with('-')).collect();
        assert_eq!(offered, expected, "{words:?}");
    }
}

#[test]
fn each_shell_has_every_command() {
    let mut titles = BTreeSet::new();
    commands(&[], &mut titles);
    for shell in ["bash", "fish", "zsh"] {
        let script = completion(shell);
        for title in &titles {
            let command = title.trim_end_matches(".1").rsplit('-').next().unwrap();
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(warmkit(&["completion", "cmd"]).status.code(), Some(2));
}

/// Each shell itself: bash by its function, above; these by what they offer after they loaded it.
#[test]
fn fish_and_zsh_take_their_completions() {
    let dir = tempfile::tempdir().unwrap();
    let fish = "source $argv[1]; complete --do-complete 'warmkit keys pu'";
    // zsh offers only in a terminal; what it would is what the function hands to _describe.
    let zsh =
        "autoload -U compinit; compinit -u -d $1.dump; source $1; [[ $_comps[warmkit] = _warmkit ]] || exit 1
        _describe() { print -l -- $commands }; _warmkit__subcmd__keys_commands";
    let cases: [(&str, &str, &[&str], &str); 2] = [
        ("fish", "warmkit.fish", &["--no-config", "--command"], fish),
        ("zsh", "_warmkit", &["-f", "-c"], zsh),
    ];
    for (shell, name, flags, script) in cases {
        if Command::new(shell).arg("--version").output().is_err() {
            skip::skip(&format!("there is no {shell}"));
            continue;
        }
        let file = dir.path().join(name);
        fs::write(&file, completion(shell)).unwrap();
        let syntax = Command::new(shell).arg("-n").arg(&file).output().unwrap();
        assert!(printed(&syntax).is_empty() && syntax.stderr.is_empty(), "{shell}: {syntax:?}");
        let mut command = Command::new(shell);
        command.args(flags).arg(script);
        // The first argument is the name of the script, to zsh.
        if shell == "zsh" {
            command.arg("zsh");
        }
        let output = command.arg(&file).env("HOME", dir.path()).output().unwrap();
        let offered = printed(&output);
        for expected in ["pull", "push"] {
            assert!(offered.contains(expected), "{shell}: {output:?}");
        }
    }
}

/// A word that ends in a colon goes on. zsh completes in a terminal only, which its own module gives it.
#[test]
fn zsh_puts_no_space_behind_a_target_that_is_to_be_named() {
    let script = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        setup="autoload -U compinit; compinit -u -D; source $1; show() { print -r -- \"<\$BUFFER>\"; BUFFER= }"
        zpty -w shell "$setup; zle -N show; bindkey '^X' show; PS1="
        for word in bu ho containerd; do
            zpty -w -n shell "warmkit bake --for $word"$'\t\x18'
            zpty -r shell line '*<warmkit bake --for *>*'
            print -r -- "<${line##*<}"
        done
    "#;
    if Command::new("zsh").arg("--version").output().is_err() {
        skip::skip("there is no zsh");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("_warmkit");
    fs::write(&file, completion("zsh")).unwrap();
    let mut zsh = Command::new("timeout");
    zsh.args(["100", "zsh", "-f", "-c", script, "zsh"])
        .arg(&file)
        .env("HOME", dir.path())
        .env("TERM", "dumb");
    let output = zsh.output().unwrap();
    let found: Vec<&str> = printed(&output).lines().map(str::trim_end).collect();
    // Two begin with the last word.
    let expected = ["buildx:>", "host >", "containerd>"].map(|end| format!("<warmkit bake --for {end}"));
    assert_eq!(found, expected, "{output:?}");
}

/// Titles of the pages that the commands, read from their own help, should have.
fn commands(path: &[&str], found: &mut BTreeSet<String>) {
    found.insert([&["warmkit"], path].concat().join("-") + ".1");
    let help = warmkit(&[path, &["--help"]].concat());
    let help = printed(&help);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    for line in listed.take_while(|line| !line.is_empty()) {
        match line.strip_prefix("  ").and_then(|line| line.split(' ').next()) {
            None | Some("" | "help") => {}
            Some(name) => commands(&[path, &[name]].concat(), found),
        }
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    // Of directories that are not there yet too, and twice: packages are built again.
    let pages = dir.path().join("share/man/man1");
    for _ in 0..2 {
        assert_eq!(printed(&warmkit(&["man", pages.to_str().unwrap()])), "");
    }
    let written: BTreeSet<String> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected = BTreeSet::new();
    commands(&[], &mut expected);
    assert!(expected.contains("warmkit-keys-check.1"), "{expected:?}");
    assert_eq!(written, expected);

    let page = fs::read_to_string(pages.join("warmkit-bake.1")).unwrap();
    for line in [".SH \"EXIT STATUS\"", " 6  records without a key; nothing was baked", ".SH EXAMPLES"] {
        assert!(page.lines().any(|found| found == line), "{line}: {page}");
    }

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = warmkit(&["man", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.starts_with(b"error: cannot write "), "{refused:?}");
}

/// A page that a formatter has to guess at shows wrongly somewhere.
#[test]
fn manual_pages_are_formatted_without_a_warning() {
    if Command::new("groff").arg("--version").output().is_err() {
        skip::skip("there is no groff");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(warmkit(&["man", dir.path().to_str().unwrap()]).status.success());
    for page in fs::read_dir(dir.path()).unwrap() {
        let page = page.unwrap().path();
        let mut groff = Command::new("groff");
        let output =
            groff.args(["-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=78n"]).arg(&page).output().unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", page.display());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("SYNOPSIS"), "{}: {text}", page.display());
    }
}
