//! The Packer templates, run by the real Packer: all are valid, and the null one makes a root on
//! which a real daemon prints CACHED for every step.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot set up has failed")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::cases::assert_warm;
use support::command::{Ended, run};
use support::machine::Key;
use support::packer::{list, packer};
use support::tools::NEWEST;
use support::{Scratch, Tools, World};

/// Runs `packer <verb> -var … packer/<template>`.
#[track_caller]
fn run_packer(packer: &Path, verb: &str, template: &str, variables: &[(&str, &str)]) -> Ended {
    support::packer::run_packer(packer, verb, template, variables, Duration::from_secs(300))
}

const AMAZON: [(&str, &str); 2] = [("region", "eu-central-1"), ("source_ami", "ami-0123456789abcdef0")];

#[test]
fn the_templates_are_valid() {
    let Some(packer) = packer() else { return };
    let caches =
        list(&["registry.example.com/app:cache", "type=registry,ref=registry.example.com/base:cache"]);
    let caches = [("caches", caches.as_str())];
    run_packer(&packer, "validate", "null.pkr.hcl", &caches).expect_success("validate null");

    let amazon = [&AMAZON[..], &caches].concat();
    run_packer(&packer, "validate", "amazon-ebs.pkr.hcl", &amazon).expect_success("validate amazon-ebs");

    let binary = env!("CARGO_BIN_EXE_warmkit");
    let files = list(&[concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")]);
    let uploads = [("warmkit_binary", binary), ("files", &files), ("docker_config", "{\"auths\":{}}")];
    let all =
        [&amazon[..], &uploads, &[("keys", "[\"type=provenance,src=/tmp/warmkit/README.md\"]")]].concat();
    run_packer(&packer, "validate", "amazon-ebs.pkr.hcl", &all)
        .expect_success("validate amazon-ebs with uploads");

    let scratch = Scratch::new();
    let (image, key) = (scratch.write("image.qcow2", ""), Key::generate(scratch.path()));
    let output = scratch.join("out");
    let image = [
        ("image", image.to_str().unwrap()),
        (
            "image_checksum",
            concat!("sha256:", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ),
        ("output", output.to_str().unwrap()),
    ];
    let ssh = [("ssh_private_key_file", key.private.to_str().unwrap()), ("ssh_public_key", &key.public)];
    let qemu = [&image[..], &ssh, &caches].concat();
    run_packer(&packer, "validate", "qemu.pkr.hcl", &qemu).expect_success("validate qemu");

    let seed = [("seed", scratch.path().to_str().unwrap()), ("disk_size", "50G"), ("ssh_username", "debian")];
    let all = [&qemu[..], &uploads, &seed].concat();
    run_packer(&packer, "validate", "qemu.pkr.hcl", &all).expect_success("validate qemu with a seed");
}

#[test]
fn a_template_without_its_variables_is_not_valid() {
    let Some(packer) = packer() else { return };
    let missing_file = [&AMAZON[..], &[("caches", "[\"a\"]"), ("warmkit_binary", "/nonexistent")]].concat();
    for (template, variables, fault) in [
        ("null.pkr.hcl", &[][..], "Unset variable \"caches\""),
        ("null.pkr.hcl", &[("caches", "[]")][..], "The list of caches is empty"),
        ("null.pkr.hcl", &[("caches", "[\"a\"]"), ("target", "buildx:")][..], "neither host nor buildx:NAME"),
        ("amazon-ebs.pkr.hcl", &[("caches", "[\"a\"]")][..], "Unset variable \"region\""),
        ("amazon-ebs.pkr.hcl", &missing_file, "Bad source '/nonexistent'"),
        ("qemu.pkr.hcl", &[("caches", "[\"a\"]")][..], "Unset variable \"image\""),
    ] {
        let ended = run_packer(&packer, "validate", template, variables);
        assert!(!ended.status.success(), "{template} {variables:?}");
        let said = ended.stdout + &ended.stderr;
        assert!(said.contains(fault), "{template} {variables:?}:\n{said}");
    }
}

#[test]
fn packer_bakes_a_root_that_is_warm() {
    let (Some(packer), Some(tools)) = (packer(), Tools::find(NEWEST)) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);

    let root = world.root(&case, "packed");
    let bin_dir = world.scratch.join("bin");
    let (caches, keys) = (list(&[&origin.cache]), list(&[&origin.image]));
    let variables = [
        ("caches", caches.as_str()),
        ("keys", &keys),
        ("root", root.to_str().unwrap()),
        ("warmkit_binary", env!("CARGO_BIN_EXE_warmkit")),
        ("bin_dir", bin_dir.to_str().unwrap()),
        ("read_data", "true"),
    ];
    let ended = run_packer(&packer, "build", "null.pkr.hcl", &variables).expect_success("packer build");
    assert!(ended.stdout.contains(&format!("provision: {} is warm", root.display())), "{}", ended.stdout);
    assert!(bin_dir.join("warmkit").is_file());

    let daemon = world.daemon(&root);
    let outcome = daemon.build(&case.request);
    assert_warm(&outcome, &origin);
    daemon.stop();

    // A second bake meets a root that is not empty, and leaves it alone.
    let before = fs::read(root.join("cache.db")).unwrap();
    fails_with(&packer, &variables, 7);
    assert_eq!(fs::read(root.join("cache.db")).unwrap(), before);

    // Without keys it fails, too, and nothing is put at the root.
    let other = world.root(&case, "unkeyed");
    let mut unkeyed = variables;
    unkeyed[1].1 = "[]";
    unkeyed[2].1 = other.to_str().unwrap();
    fails_with(&packer, &unkeyed, 6);
    assert!(!other.exists());

    // With no such cache, either.
    let caches = list(&[&world.registry.reference("app", "no-such-tag")]);
    let mut absent = unkeyed;
    absent[0].1 = &caches;
    fails_with(&packer, &absent, 3);
    assert!(!other.exists());
}

/// Asserts that a build fails, and that the provisioning script ended with `code`.
#[track_caller]
fn fails_with(packer: &Path, variables: &[(&str, &str)], code: i32) {
    let ended = run_packer(packer, "build", "null.pkr.hcl", variables);
    assert!(!ended.status.success(), "{}", ended.stdout);
    let said = ended.stdout + &ended.stderr;
    assert!(said.contains(&format!("Script exited with non-zero exit status: {code}.")), "{said}");
}

/// Runs the provisioning script itself, with nothing but `settings` in its environment.
#[track_caller]
fn provision(settings: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/packer/provision.sh"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(settings.iter().copied());
    run(&mut command, Duration::from_secs(60))
}

#[test]
fn provisioning_refuses_contradictory_settings() {
    if Tools::find(NEWEST).is_none() {
        return;
    }
    let binary = ("WARMKIT_BINARY", env!("CARGO_BIN_EXE_warmkit"));
    let caches = ("WARMKIT_CACHES", "registry.example.com/app:cache");
    let url = ("WARMKIT_URL", "https://example.com/warmkit");
    for (settings, fault) in [
        (&[][..], "WARMKIT_CACHES names no cache"),
        (&[caches][..], "no warmkit on this machine"),
        (&[caches, binary, url][..], "WARMKIT_BINARY and WARMKIT_URL are both set"),
        (&[caches, url][..], "WARMKIT_URL needs WARMKIT_SHA256"),
        (&[caches, ("WARMKIT_FOR", "host"), ("WARMKIT_ROOT", "/x")][..], "WARMKIT_FOR and WARMKIT_ROOT"),
        (&[caches, ("WARMKIT_CONTEXT_ARGS", "-f")][..], "WARMKIT_CONTEXT_ARGS needs WARMKIT_CONTEXT"),
    ] {
        let ended = provision(settings);
        assert_eq!(ended.status.code(), Some(2), "{settings:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(fault), "{settings:?}: {}", ended.stderr);
    }
}

#[test]
fn provisioning_does_not_run_a_download_that_does_not_hash_right() {
    if Tools::find(NEWEST).is_none() {
        return;
    }
    let scratch = Scratch::new();
    let program = scratch.write("warmkit", "#!/bin/sh\necho ran >&2\n");
    let url = format!("file://{}", program.display());
    let bin_dir = scratch.join("bin");
    let ended = provision(&[
        ("WARMKIT_CACHES", "registry.example.com/app:cache"),
        ("WARMKIT_URL", &url),
        ("WARMKIT_SHA256", &"0".repeat(64)),
        ("WARMKIT_BIN_DIR", bin_dir.to_str().unwrap()),
    ]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("does not hash to"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("ran") && !bin_dir.exists());
}
