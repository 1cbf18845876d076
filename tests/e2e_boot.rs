//! The disk image that `packer build packer/qemu.pkr.hcl` makes: machines that boot from it print CACHED in
//! their first build, and after a reboot, and each is its own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::command::{Ended, run};
use support::demo::{self, demo};
use support::files::digest_of;
use support::machine::{Emulator, Machine, PARTITION};
use support::packer::{list, packer, run_packer};
use support::registry::PASSWORD;
use support::{BuildOutcome, BuildRequest, Registry, Scratch, Tools, tools};

/// Where virtual machines see the loopback of the machine that they run on.
const HOST: &str = "10.0.2.2";

#[test]
fn machines_booted_from_a_baked_disk_are_warm() {
    let (Some(packer), Some(tools)) = (packer(), Tools::find(tools::NEWEST)) else { return };
    let Some(emulator) = Emulator::find() else { return };
    let registry = Registry::start_with_password(&tools);
    demo::push(&registry);
    let scratch = Scratch::new();
    let context = demo::context(&scratch);

    let disk = bake(&packer, &emulator, &registry, &scratch);
    let machines = thread::scope(|scope| {
        let boot = |name| first_build(&emulator, &disk, &context, name);
        let alpha = scope.spawn(move || boot("alpha"));
        let beta = boot("beta");
        // While the other one boots again.
        is_sealed(&emulator, &disk, &registry, &scratch);
        [alpha.join().unwrap(), beta]
    });

    let names: Vec<_> = machines.iter().map(|machine| machine.hostname.as_str()).collect();
    assert_eq!(names, ["alpha", "beta"]);
    let ids: BTreeSet<_> = machines.iter().flat_map(|machine| [&machine.id, &machine.host_key]).collect();
    assert_eq!(ids.len(), 4, "{machines:?}");
    assert_eq!(machines[0].result, machines[1].result);
}

/// The docker configuration that lets machines read the registry, and the secret in it.
fn credentials(registry: &Registry) -> (String, String) {
    let config = fs::read_to_string(registry.docker_config().join("config.json")).unwrap();
    let auth = serde_json::from_str::<Value>(&config).unwrap()["auths"][registry.host()]["auth"].clone();
    (config.replace("127.0.0.1", HOST), auth.as_str().unwrap().to_owned())
}

/// `packer build` on a disk that has BuildKit and nothing else; gives the new one.
#[track_caller]
fn bake(packer: &Path, emulator: &Emulator, registry: &Registry, scratch: &Scratch) -> PathBuf {
    // What debuggers need would take as long to upload as the whole bake.
    let warmkit = scratch.join("warmkit");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&warmkit).arg(env!("CARGO_BIN_EXE_warmkit"));
    run(&mut strip, Duration::from_secs(60)).expect_success("strip");

    let reference = registry.reference("demo", "cache").replace("127.0.0.1", HOST);
    let caches = list(&[&format!("type=registry,ref={reference},registry.insecure=true")]);
    let keys = list(&["type=provenance,src=/tmp/warmkit/provenance.json"]);
    let files = list(&[demo("provenance.json").to_str().unwrap()]);
    let checksum = digest_of(&emulator.disk).to_string();
    let output = scratch.join("disk");
    let (config, _) = credentials(registry);
    let variables = [
        ("image", emulator.disk.to_str().unwrap()),
        ("image_checksum", &checksum),
        ("output", output.to_str().unwrap()),
        ("ssh_private_key_file", emulator.key.private.to_str().unwrap()),
        ("ssh_public_key", &emulator.key.public),
        ("accelerator", "tcg"),
        ("cpu", "max,la57=off"),
        ("memory", "1024"),
        ("warmkit_binary", warmkit.to_str().unwrap()),
        ("docker_config", &config),
        ("caches", &caches),
        ("keys", &keys),
        ("files", &files),
        ("enable", "buildkit.service"),
        ("hydrate", "true"),
        ("read_data", "true"),
    ];
    let limit = Duration::from_secs(1200);
    let ended = run_packer(packer, "build", "qemu.pkr.hcl", &variables, limit).expect_success("packer build");
    for line in ["provision: /var/lib/buildkit is warm", " for credentials"] {
        assert!(ended.stdout.contains(line), "{line}:\n{}", ended.stdout);
    }
    assert!(
        !(ended.stdout + &ended.stderr).contains(&credentials(registry).1),
        "packer printed the password"
    );
    output.join("warm.qcow2")
}

/// Asserts that the image has nothing of the machine that it was made on, nor what that was let in with.
#[track_caller]
fn is_sealed(emulator: &Emulator, disk: &Path, registry: &Registry, scratch: &Scratch) {
    let raw = scratch.join("raw");
    emulator.to_raw(disk, &raw);
    let partition = format!("{}?offset={PARTITION}", raw.display());
    let ended = |program: &str, arguments: &[&str]| {
        run(Command::new(program).args(arguments), Duration::from_secs(300))
    };
    ended("e2fsck", &["-fn", &partition]).expect_success("e2fsck: the machine was shut down cleanly");

    let debugfs = |request: &str| -> Ended { ended("debugfs", &["-R", request, &partition]) };
    let names = |directory: &str| -> Vec<String> {
        // `/<inode>/<mode>/<uid>/<gid>/<name>/<size>/`
        let listed = debugfs(&format!("ls -p {directory}")).stdout;
        let names: Vec<_> =
            listed.lines().filter_map(|line| Some(line.split('/').nth(5)?.to_owned())).collect();
        assert!(names.contains(&"..".to_owned()), "{directory}: {listed}");
        names
    };
    assert!(names("/var/lib/buildkit").contains(&"cache.db".to_owned()));
    assert_eq!(debugfs("cat /etc/machine-id").stdout, "");
    let found = |directory, start: &str| names(directory).iter().any(|name| name.starts_with(start));
    assert!(found("/etc", "machine-id") && !found("/etc/ssh", "ssh_host_"));
    assert!(!found("/root/.ssh", "authorized_keys") && !found("/root", ".docker"));
    assert!(!found("/tmp", "warmkit") && !found("/var/lib/buildkit", "history.db"));

    // Not in what was deleted, either.
    let (_, secret) = credentials(registry);
    assert!(secret.len() > PASSWORD.len());
    let words = ["-e", &secret, "-e", "buildkit.service"];
    let found = ended("grep", &[&["-a", "-o", "-F"][..], &words, &["--", raw.to_str().unwrap()]].concat());
    let found: BTreeSet<_> = found.expect_success("grep").stdout.lines().map(str::to_owned).collect();
    assert!(found.contains("buildkit.service"), "{found:?}");
    assert!(!found.contains(&secret), "the password is in the image");
    fs::remove_file(raw).unwrap();
}

/// What is told by a machine of itself, and of its build.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    hostname: String,
    id: String,
    host_key: String,
    result: String,
}

/// Asserts that the machine's own warmkit has read the root, confined as it is, and will not do so again.
#[track_caller]
fn is_hydrated(machine: &Machine<'_>) {
    let unit = "warmkit-hydrate.service";
    // It has started when the databases are read; the daemon comes after that.
    machine.run(&format!("while systemctl --quiet is-active {unit}; do sleep 0.2; done"));
    let shown = machine.run(&format!("systemctl show --property=Result,ConditionResult {unit}"));
    let log = || machine.run(&format!("journalctl --output=cat --unit={unit}"));
    assert_eq!(shown, "Result=success\nConditionResult=yes", "{}", log());
    let stamp = machine.run("cat /var/lib/warmkit/hydrated-$(cat /etc/machine-id)");
    let report: Value = stamp.parse().unwrap();
    assert_eq!(report["failed"], Value::Array(Vec::new()), "{stamp}");
    let stages: Vec<_> = report["stages"].as_array().unwrap().iter().map(|stage| &stage["stage"]).collect();
    assert_eq!(stages, ["databases", "first-build", "rest"]);
    let times = "--property=ActiveEnterTimestampMonotonic --value";
    let started =
        |unit: &str| -> u64 { machine.run(&format!("systemctl show {times} {unit}")).parse().unwrap() };
    assert!(started(unit) < started("buildkit.service"));
    machine.run(&format!("systemctl start {unit}"));
    has_nothing_to_hydrate(machine);
}

/// Asserts that the root was not read again.
#[track_caller]
fn has_nothing_to_hydrate(machine: &Machine<'_>) {
    let shown = machine.run("systemctl show --property=ConditionResult warmkit-hydrate.service");
    assert_eq!(shown, "ConditionResult=no");
}

/// Boots a machine, and asserts that its first build finds everything; of one of them, the first build after
/// another boot, too.
#[track_caller]
fn first_build(emulator: &Emulator, disk: &Path, context: &Path, name: &str) -> Told {
    let machine = emulator.boot(disk, name);
    machine.copy(context, "/root/context");
    let told = build(&machine);
    is_hydrated(&machine);
    let disk = machine.power_off();
    if name == "alpha" {
        let again = emulator.boot_on(disk, name);
        assert_eq!(build(&again), told, "after another boot");
        has_nothing_to_hydrate(&again);
        again.power_off();
    }
    told
}

/// Asserts that a build on a machine that has just booted finds everything.
#[track_caller]
fn build(machine: &Machine<'_>) -> Told {
    // Waits until all units are up; "degraded" would be that one has failed.
    let state = machine.try_run("systemctl is-system-running --wait").stdout;
    let failed = || machine.try_run("systemctl --failed; journalctl --output=cat --priority=warning").stdout;
    assert_eq!(state.trim(), "running", "{}", failed());
    assert_eq!(machine.run("systemctl is-active buildkit.service"), "active");

    let mut request = BuildRequest::new(Path::new("/root/context")).tar(Path::new("/root/result.tar"));
    request.platform = Some("linux/amd64".into());
    let outcome = BuildOutcome::parse(&machine.build(&request));
    assert_eq!(outcome.steps.len(), demo::STEPS, "{}", outcome.log);
    assert!(outcome.not_cached().is_empty(), "{}", outcome.log);
    let moved = (outcome.imports, outcome.downloads, outcome.extractions);
    assert_eq!(moved, (0, 0, 0), "(imports, downloads, extractions)\n{}", outcome.log);

    let log = machine.run("journalctl --boot --output=cat --unit=buildkit.service");
    assert!(log.contains("running server on"), "{log}");
    let errors: Vec<_> =
        log.lines().filter(|l| l.contains("level=error") || l.contains("level=fatal")).collect();
    assert!(errors.is_empty(), "{errors:#?}");

    Told {
        hostname: machine.run("hostname"),
        id: machine.run("cat /etc/machine-id"),
        host_key: machine.run("cat /etc/ssh/ssh_host_ed25519_key.pub"),
        result: machine.run("sha256sum /root/result.tar"),
    }
}
