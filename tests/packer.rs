//! The Packer templates, run by the real Packer: all are valid, and the null one makes a root on
//! which a real daemon prints CACHED for every step.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot set up has failed")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::cases::assert_warm;
use support::command::{Ended, run};
use support::machine::Key;
use support::packer::{list, packer, tar_of};
use support::tools::NEWEST;
use support::{Scratch, Tools, World};

/// Runs `packer <verb> -var … packer/<template>`.
#[track_caller]
fn run_packer(packer: &Path, verb: &str, template: &str, variables: &[(&str, &str)]) -> Ended {
    support::packer::run_packer(packer, verb, template, variables, Duration::from_secs(300))
}

/// A file that could be uploaded.
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

/// What templates are called with, and what for.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

#[test]
fn the_templates_are_valid() {
    let Some(packer) = packer() else { return };
    let scratch = Scratch::new();
    let (image, key) = (scratch.write("image.qcow2", ""), Key::generate(scratch.path()));
    let (output, private) = (scratch.join("out"), key.private.to_str().unwrap());
    let caches =
        list(&["registry.example.com/app:cache", "type=registry,ref=registry.example.com/base:cache"]);
    let (files, context_args) = (list(&[README]), list(&["-f", "docker/Dockerfile", "--target=app"]));

    let always = [("caches", caches.as_str())];
    let amazon = [("region", "eu-central-1"), ("source_ami", "ami-0123456789abcdef0")];
    let qemu = [
        ("image", image.to_str().unwrap()),
        ("image_checksum", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("output", output.to_str().unwrap()),
        ("ssh_private_key_file", private),
    ];
    let bake = [
        ("keys", "[\"type=provenance,src=/tmp/warmkit/README.md\"]"),
        ("target", "buildx:ci"),
        ("platform", "linux/arm64"),
        ("allow_unkeyed", "true"),
        ("read_data", "true"),
        ("warmkit_binary", env!("CARGO_BIN_EXE_warmkit")),
        ("context", README),
        ("context_args", &context_args),
    ];
    let upload = [("files", files.as_str()), ("docker_config", "{\"auths\":{}}"), ("enable", "x.service")];
    let download = [("root", "/mnt/root"), ("warmkit_url", "https://example.com/x"), ("warmkit_sha256", "0")];
    let machine = [&bake[..], &upload].concat();

    let cases: [Case<'_>; 15] = [
        ("null", "as it is", &[]),
        ("null", "a bake", &bake),
        ("null", "a download", &download),
        ("amazon-ebs", "as it is", &[]),
        ("amazon-ebs", "a bake", &machine),
        ("amazon-ebs", "a download", &download),
        ("amazon-ebs", "a volume of another type", &[("volume_type", "gp2"), ("volume_size", "8")]),
        ("amazon-ebs", "provisioned IOPS", &[("volume_type", "io2"), ("volume_iops", "9000")]),
        ("amazon-ebs", "a KMS key", &[("kms_key_id", "alias/images")]),
        ("amazon-ebs", "no encryption", &[("encrypt", "false"), ("root_device", "/dev/xvda")]),
        (
            "amazon-ebs",
            "a key pair, in a network",
            &[
                ("ssh_keypair_name", "mine"),
                ("ssh_private_key_file", private),
                ("ssh_from", "[\"10.0.0.0/8\"]"),
                ("ssh_interface", "private_ip"),
                ("subnet_id", "subnet-0123456789abcdef0"),
            ],
        ),
        (
            "amazon-ebs",
            "a session",
            &[
                ("ssh_interface", "session_manager"),
                ("iam_instance_profile", "baker"),
                ("tags", "{team = \"builders\"}"),
            ],
        ),
        ("qemu", "as it is", &[]),
        ("qemu", "a bake, with a key", &[&machine[..], &[("ssh_public_key", &key.public)]].concat()),
        (
            "qemu",
            "a seed",
            &[
                ("seed", scratch.path().to_str().unwrap()),
                ("disk_size", "50G"),
                ("ssh_username", "debian"),
                ("accelerator", "tcg"),
            ],
        ),
    ];
    for (template, what, variables) in cases {
        let needed: &[_] = match template {
            "amazon-ebs" => &amazon,
            "qemu" => &qemu,
            _ => &[],
        };
        let variables = [&always[..], needed, variables].concat();
        run_packer(&packer, "validate", &format!("{template}.pkr.hcl"), &variables)
            .expect_success(&format!("{template}: {what}"));
    }
}

/// The variables of a template: type and default of each.
fn variables(template: &str) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(Path::new(support::packer::TEMPLATES).join(template)).unwrap();
    let blocks = text.split("\nvariable \"").skip(1).map(|rest| rest.split("\n}").next().unwrap());
    let parse = |block: &str| {
        let (name, body) = block.split_once('"').unwrap();
        assert!(body.contains("\n  description = \""), "{template}: {name} has no description");
        let is_meant = |line: &&str| line.starts_with("  type ") || line.starts_with("  default ");
        (name.to_owned(), body.lines().filter(is_meant).map(str::to_owned).collect())
    };
    blocks.map(parse).collect()
}

#[test]
fn what_templates_have_in_common_is_the_same() {
    let templates = ["null.pkr.hcl", "amazon-ebs.pkr.hcl", "qemu.pkr.hcl"].map(variables);
    let mut common = 0;
    for (name, first) in &templates[1] {
        // Users differ from image to image, a disk image has a way in of its own, and not every one is a snapshot.
        if ["ssh_username", "ssh_private_key_file", "hydrate"].contains(&name.as_str()) {
            continue;
        }
        for other in [&templates[0], &templates[2]] {
            if let Some(other) = other.get(name) {
                assert_eq!(other, first, "{name}");
                common += 1;
            }
        }
    }
    assert!(common > 20, "{common}");
}

#[test]
fn the_templates_are_formatted() {
    let Some(packer) = packer() else { return };
    for template in fs::read_dir(support::packer::TEMPLATES).unwrap() {
        let template = template.unwrap().path();
        if template.extension().is_some_and(|extension| extension == "hcl") {
            let mut command = Command::new(&packer);
            command.args(["fmt", "-check", "-diff"]).arg(&template).env("CHECKPOINT_DISABLE", "1");
            run(&mut command, Duration::from_secs(60)).expect_success("packer fmt -check");
        }
    }
}

#[test]
fn a_template_without_its_variables_is_not_valid() {
    let Some(packer) = packer() else { return };
    let amazon = [("caches", "[\"a\"]"), ("region", "eu-central-1"), ("source_ami", "ami-0123456789abcdef0")];
    let missing_binary = [&amazon[..], &[("warmkit_binary", "/no/binary")]].concat();
    let missing_context = [&amazon[..], &[("context", "/no/context.tar")]].concat();
    let missing_key = [&amazon[..], &[("ssh_keypair_name", "mine")]].concat();
    for (template, variables, fault) in [
        ("null.pkr.hcl", &[][..], "Unset variable \"caches\""),
        ("null.pkr.hcl", &[("caches", "[]")][..], "The list of caches is empty"),
        ("null.pkr.hcl", &[("caches", "[\"a\"]"), ("target", "buildx:")][..], "neither host nor buildx:NAME"),
        ("amazon-ebs.pkr.hcl", &[("caches", "[\"a\"]")][..], "Unset variable \"region\""),
        ("amazon-ebs.pkr.hcl", &missing_binary, "Bad source '/no/binary'"),
        ("amazon-ebs.pkr.hcl", &missing_context, "Bad source '/no/context.tar'"),
        ("amazon-ebs.pkr.hcl", &missing_key, "ssh_private_key_file must be provided"),
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
    let context = tar_of(&case.request.context, &world.scratch);
    let (name, value) = &case.request.args[0];
    let (argument, buildkitd) =
        (format!("--build-arg={name}={value}"), world.tools.buildkitd.to_str().unwrap());
    let context_args = list(&[&argument, "--buildkitd", buildkitd]);
    let variables = [
        ("caches", caches.as_str()),
        ("keys", &keys),
        ("root", root.to_str().unwrap()),
        ("warmkit_binary", env!("CARGO_BIN_EXE_warmkit")),
        ("bin_dir", bin_dir.to_str().unwrap()),
        ("read_data", "true"),
        ("context", &context),
        ("context_args", &context_args),
    ];
    let ended = run_packer(&packer, "build", "null.pkr.hcl", &variables).expect_success("packer build");
    assert!(ended.stdout.contains(&format!("provision: {} is warm", root.display())), "{}", ended.stdout);
    assert!(ended.stdout.contains("steps CACHED, 0 imports, 0 extractions"), "{}", ended.stdout);
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
