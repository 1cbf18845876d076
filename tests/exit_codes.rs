//! The exit codes that are documented: the program's, all of them, and each by a command that ends with it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use support::command::{Ended, run};
use support::demo;
use support::files::copy_tree;
use support::handmade::Handmade;
use support::tmpfs::Tmpfs;
use support::warmkit::warmkit;
use support::{Registry, Scratch, Tools, tools};

/// Codes and what they mean, of the README.
fn documented() -> Vec<(u8, String)> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Exit codes\n").unwrap();
    let rows = section.lines().take_while(|line| !line.starts_with('#'));
    rows.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter_map(|(code, meaning)| Some((code.parse().ok()?, meaning.replace('`', ""))))
        .collect()
}

fn ended(arguments: &[&str]) -> Ended {
    run(warmkit().args(arguments), Duration::from_secs(120))
}

#[test]
fn help_has_those_of_the_readme() {
    let documented = documented();
    assert!(documented.iter().map(|(code, _)| *code).eq(0..=11), "{documented:?}");
    for command in [&["--help"][..], &["bake", "--help"], &["keys", "pull", "--help"]] {
        let help = ended(command).expect_success("help").stdout;
        let rows = help.lines().skip_while(|line| *line != "Exit codes:").skip(1);
        let printed: Vec<(u8, String)> = rows
            .take_while(|line| !line.is_empty())
            .map(|line| line.trim_start().split_once("  ").unwrap())
            .map(|(code, meaning)| (code.parse().unwrap(), meaning.to_owned()))
            .collect();
        assert_eq!(printed, documented, "{command:?}");
    }
}

#[test]
fn each_is_that_of_a_command() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let scratch = Scratch::new();
    let path = |name: &str| scratch.join(name).display().to_string();
    let (cache, keys) = (demo::cache(), demo::keys());
    let root = path("root");
    demo::bake(&[], Path::new(&root));

    let registry = Registry::start_with_password(&tools);
    let locked = registry.reference("demo", "cache");
    let damaged = format!("type=local,src={}", path("damaged"));
    copy_tree(&demo::demo("cache"), &scratch.join("damaged"));
    for blob in fs::read_dir(scratch.join("damaged/blobs/sha256")).unwrap() {
        let file = blob.unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        bytes[0] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let mut other = Handmade::default();
    other.record("other", &[], &[]);
    let other = other.write(&scratch.join("other"));
    fs::create_dir(scratch.join("no-root")).unwrap();
    let disk = Tmpfs::new(scratch.join("disk"), "size=256k");
    // The same build, but for one file of its context.
    let context = demo::context(&scratch);
    fs::write(context.join("src/main.txt"), "changed\n").unwrap();
    let (context, buildkitd) = (context.display().to_string(), tools.buildkitd.display().to_string());

    let (no_root, tight) = (path("no-root"), disk.0.join("root").display().to_string());
    let cases: [(u8, &[&str]); 12] = [
        (0, &["keys", "check", &cache, "--keys-from", &keys]),
        (1, &["keys", "harvest", &keys, "-o", "/nonexistent/keys.json"]),
        (2, &["keys", "check", &cache, "--no-such-flag"]),
        (3, &["keys", "check", "type=local,src=/nonexistent"]),
        (4, &["keys", "check", &locked]),
        (5, &["keys", "check", &damaged]),
        (6, &["keys", "check", &cache]),
        (7, &["bake", &cache, "--keys-from", &keys, "--root", &root]),
        (8, &["verify", "--root", &no_root]),
        (
            9,
            &[
                &["verify", "--root", &root, "--build", &context, "--opt", "platform=linux/amd64"][..],
                &["--buildkitd", &buildkitd],
            ]
            .concat(),
        ),
        (10, &["diff", &cache, &other, "--exit-code"]),
        (11, &["bake", &cache, "--keys-from", &keys, "--root", &tight]),
    ];
    for ((code, arguments), (documented, meaning)) in cases.iter().zip(documented()) {
        assert_eq!(*code, documented);
        let Ended { status, stdout, stderr } = ended(arguments);
        assert_eq!(status.code(), Some(i32::from(*code)), "{meaning}: {arguments:?}: {stdout}{stderr}");
        // Whoever waits for one has no need to read on; whoever reads has the reason.
        let is_told =
            if *code == 0 { stderr.contains("error:") } else { stdout.is_empty() && stderr.is_empty() };
        assert!(!is_told, "{arguments:?}: {stdout}{stderr}");
    }
}
