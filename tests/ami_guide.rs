//! The commands of docs/ami-guide.md, as they stand there: on a host, where only the root's place is another, and for
//! Packer, which says whether it would take them (e2e tests have it make images).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::command::{Ended, run};
use support::demo;
use support::document::blocks;
use support::packer::packer;
use support::{Registry, Scratch, Tools, tools};

/// The blocks of the guide that are tried under this name.
fn tried(name: &str) -> String {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ami-guide.md");
    let name = format!("tried: {name}");
    let all = blocks(&std::fs::read_to_string(document).unwrap());
    let found: Vec<_> = all.into_iter().filter(|(other, _)| *other == name).collect();
    assert!(!found.is_empty(), "no block is {name}: is the reader of the document broken?");
    found.into_iter().map(|(_, block)| block.text).collect()
}

/// Runs a script by the shell, with the programs in `bin` first.
fn shell(script: &str, directory: &Path, bin: &Path, home: &Path) -> Ended {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(directory).env("PATH", path).env("HOME", home);
    command.env("CHECKPOINT_DISABLE", "1").env("PACKER_NO_COLOR", "1");
    command.env("PACKER_CACHE_DIR", home.join("cache"));
    run(&mut command, Duration::from_secs(120))
}

#[test]
fn packer_takes_what_the_guide_gives_it() {
    let Some(packer) = packer() else { return };
    let scratch = Scratch::new();
    let program = format!(
        "#!/bin/sh\nset -eu\ntest \"$1\" = build\nshift\nexec {} validate \"$@\"\n",
        packer.display()
    );
    scratch.program("bin/packer", program);
    let ended =
        shell(&tried("packer"), Path::new(env!("CARGO_MANIFEST_DIR")), &scratch.join("bin"), scratch.path());
    ended.expect_success("packer validate");
}

#[test]
fn a_plan_says_what_keeps_the_root() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let registry = Registry::start(&tools);
    demo::push(&registry);
    let scratch = Scratch::new();
    scratch.program("bin/warmkit", format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_warmkit")));
    let ecr = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
    let keys = demo::keys();
    let script = tried("plan")
        .replace(&format!("{ecr}/cache:app"), &registry.reference("demo", "cache"))
        .replace(&format!("{ecr}/app:1.4"), &keys);
    let root = scratch.join("root");
    let script = script.trim_end().to_owned() + &format!(" --root {}", root.display());
    let said = shell(&script, scratch.path(), &scratch.join("bin"), scratch.path());
    let said = said.expect_success("plan").stdout;
    assert!(said.contains("gcpolicy"), "{said}");
    assert!(!root.exists());
}

#[test]
fn a_host_is_as_the_guide_says() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let scratch = Scratch::new();
    let root = scratch.join("root");
    demo::bake(&[], &root);
    for (name, program) in [
        ("warmkit", Path::new(env!("CARGO_BIN_EXE_warmkit"))),
        ("buildkitd", tools.buildkitd.as_path()),
        ("buildctl", tools.buildctl.as_path()),
    ] {
        scratch
            .program(Path::new("bin").join(name), format!("#!/bin/sh\nexec {} \"$@\"\n", program.display()));
    }
    // The fixture is of a build for amd64, whatever this machine is.
    let script = tried("host").replace("/var/lib/buildkit", root.to_str().unwrap());
    let script = script.replace("--build .", "--build . --opt platform=linux/amd64");
    let ended = shell(&script, &demo::context(&scratch), &scratch.join("bin"), scratch.path());
    let said = ended.expect_success("the host's commands").stdout;
    assert!(said.contains("CACHED"), "{said}");
}
