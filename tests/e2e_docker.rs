//! `--for buildx:NAME` on a real dockerd with the real buildx: what is baked into a builder's volume makes its
//! first build warm, whether the builder is there before, and whether docker runs meanwhile.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::cases::{Case, Origin, assert_warm};
use support::command::{Ended, run};
use support::daemon::check_databases;
use support::dockerd::Docker;
use support::files::copy_tree;
use support::foreseen::tree;
use support::packer::{TEMPLATES, list, packer, run_packer_with, tar_of};
use support::{Tools, World, tools};

const LIMIT: Duration = Duration::from_secs(120);

/// A docker, a cache that was exported elsewhere, and builders to bake it for.
struct Host {
    world: World,
    docker: Docker,
    case: Case,
    origin: Origin,
}

impl Host {
    #[track_caller]
    fn find() -> Option<Self> {
        let tools = Tools::find(tools::NEWEST)?;
        let docker = Docker::find()?;
        let world = World::start(tools);
        let case = world.case("app");
        let origin = world.export(&case);
        Some(Self { world, docker, case, origin })
    }

    fn warmkit(&self, arguments: &[&str]) -> Ended {
        run(self.docker.warmkit().args(arguments), LIMIT)
    }

    /// Bakes for a target; gives the report.
    #[track_caller]
    fn bake(&self, target: &str) -> Value {
        let (cache, keys) = (self.origin.cache.as_str(), self.origin.image.as_str());
        let ended = self.warmkit(&["bake", cache, "--keys-from", keys, "--for", target, "--json"]);
        serde_json::from_str(&ended.expect_success("bake").stdout).unwrap()
    }

    /// Plans a bake for a target, which ends with this exit code and leaves all volumes as they are; gives the plan.
    #[track_caller]
    fn plan(&self, target: &str, code: i32) -> Value {
        let (cache, keys) = (self.origin.cache.as_str(), self.origin.image.as_str());
        let before = (self.volumes(), tree(&self.docker.data_root().join("volumes")));
        let ended = self.warmkit(&["plan", cache, "--keys-from", keys, "--for", target, "--json"]);
        assert_eq!(ended.status.code(), Some(code), "{target}: {}{}", ended.stdout, ended.stderr);
        assert_eq!((self.volumes(), tree(&self.docker.data_root().join("volumes"))), before, "{target}");
        serde_json::from_str(&ended.stdout).unwrap()
    }

    /// Looks at and reads the root of a target that no daemon uses: it is this directory's, and it is read whole.
    #[track_caller]
    fn reads(&self, target: &str, root: &Path) {
        let report = |command, place: [&str; 2]| -> Value {
            let ended = self.warmkit(&[command, place[0], place[1], "--json"]).expect_success(command);
            serde_json::from_str(&ended.stdout).unwrap()
        };
        let inspected = report("inspect", ["--for", target]);
        assert_eq!(inspected, report("inspect", ["--root", root.to_str().unwrap()]));
        assert!(inspected["records"].as_array().unwrap().len() > 8, "{inspected:#}");
        assert_eq!(inspected["faults"], Value::Array(Vec::new()));
        is_hydrated(&report("hydrate", ["--for", target]), root);
    }

    /// Asserts that a bake for a target ends with this exit code, having said these things; gives all that it said.
    #[track_caller]
    fn refuses(&self, target: &str, code: i32, said: &[&str]) -> String {
        let (cache, keys) = (self.origin.cache.as_str(), self.origin.image.as_str());
        let ended = self.warmkit(&["bake", cache, "--keys-from", keys, "--for", target]);
        assert_eq!(ended.status.code(), Some(code), "{target}: {}", ended.stderr);
        for said in said {
            assert!(ended.stderr.contains(said), "{target}: no {said:?} in {}", ended.stderr);
        }
        ended.stderr
    }

    /// Builds, and asserts that everything was there.
    #[track_caller]
    fn is_warm(&self, builder: &str) {
        let (_, base) = &self.case.request.args[0];
        assert_warm(&self.docker.build(builder, base, &self.case.request.context), &self.origin);
    }

    /// Bakes from a registry that never answers, and asks it to end once it waits there.
    #[track_caller]
    fn interrupts_a_bake(&self, target: &str) {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let cache = format!("{}/app:cache", silent.local_addr().unwrap());
        let mut command = self.docker.warmkit();
        command.args(["bake", &cache, "--for", target]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let (mut asked, _) = silent.accept().unwrap();
        asked.read_exact(&mut [0]).unwrap();
        assert_eq!(self.volumes().len(), 1);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && errors.contains("interrupted"), "{errors}");
    }

    /// Builds with one source file changed, and asserts that only what depends on it runs.
    #[track_caller]
    fn goes_on_from_there(&self, builder: &str) {
        let (_, base) = &self.case.request.args[0];
        let outcome = self.docker.build(builder, base, &self.case.changed.context);
        let ran: BTreeSet<String> = outcome.not_cached().into_iter().map(str::to_owned).collect();
        assert_eq!(ran, self.origin.changed, "{}", outcome.log);
        assert_eq!((outcome.imports, outcome.extractions), (0, 0), "{}", outcome.log);
    }

    fn volumes(&self) -> Vec<String> {
        let listed = self.docker.run(&["volume", "ls", "--format", "{{.Name}}"]).expect_success("volume ls");
        listed.stdout.lines().map(str::to_owned).collect()
    }

    /// Makes the builder as a report tells to.
    #[track_caller]
    fn create(&self, report: &Value, options: &str) {
        let next = report["next_step"].as_str().unwrap();
        let (_, command) = next.rsplit_once(": ").unwrap_or_else(|| panic!("no command: {next}"));
        self.docker.shell(&format!("{command} {options}"));
    }
}

/// All of a root was read, the files of layers with it.
#[track_caller]
fn is_hydrated(report: &Value, root: &Path) {
    assert_eq!(report["root"].as_str(), root.to_str());
    assert_eq!(report["failed"], Value::Array(Vec::new()));
    let stages = report["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 3, "{report:#}");
    assert!(stages.iter().all(|stage| stage["files"].as_u64() > Some(0)), "{report:#}");
}

/// The commands in backquotes.
fn commands(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_volume_of_a_builder_with_docker_running() {
    let Some(mut host) = Host::find() else { return };
    host.docker.start();
    let options = host.docker.builder_options(&host.world.tools, &host.world.registry);

    // What a bake has made goes again when it fails, and when it is interrupted.
    let absent = host.world.registry.reference("app", "absent");
    let failed = host.warmkit(&["bake", &absent, "--for", "buildx:ci"]);
    assert_eq!(failed.status.code(), Some(3), "{}", failed.stderr);
    assert_eq!(host.volumes(), [""; 0]);
    host.interrupts_a_bake("buildx:ci");
    assert_eq!(host.volumes(), [""; 0]);
    let nothing = host.warmkit(&["verify", "--for", "buildx:ci"]);
    assert_eq!(nothing.status.code(), Some(1), "{}", nothing.stderr);
    assert!(nothing.stderr.contains("no volume buildx_buildkit_ci0_state"), "{}", nothing.stderr);

    // The builder does not exist yet.
    let planned = host.plan("buildx:ci", 0);
    let report = host.bake("buildx:ci");
    let volume = host.docker.volume("buildx_buildkit_ci0_state");
    assert_eq!(report["root"].as_str(), volume.to_str());
    for same in ["root", "records", "layers", "snapshots", "bytes_down"] {
        assert_eq!(planned[same], report[same], "{same}");
    }
    check_databases(&host.world.tools, &volume);
    host.warmkit(&["verify", "--for", "buildx:ci"]).expect_success("verify");
    host.reads("buildx:ci", &volume);
    host.create(&report, &options);
    host.is_warm("ci");
    host.goes_on_from_there("ci");
    let keys = host.world.scratch.join("keys.json");
    let harvest = ["keys", "harvest", "type=builder,name=ci", "-o", keys.to_str().unwrap(), "--json"];
    let harvested = host.warmkit(&harvest).expect_success("keys harvest").stdout;
    let harvested: Value = serde_json::from_str(&harvested).unwrap();
    assert!(harvested["candidates"].as_u64().unwrap() >= 11, "{harvested}");

    // It runs.
    host.refuses("buildx:ci", 7, &["node ci0 of builder ci", "`docker buildx stop ci`"]);
    let busy = host.warmkit(&["verify", "--for", "buildx:ci"]);
    assert_eq!(busy.status.code(), Some(7), "{}", busy.stderr);
    assert_eq!(host.warmkit(&["inspect", "--for", "buildx:ci"]).status.code(), Some(7));
    // Only reading goes on beside it.
    let hydrated =
        host.warmkit(&["hydrate", "--for", "buildx:ci", "--json"]).expect_success("hydrate").stdout;
    is_hydrated(&hydrated.parse().unwrap(), &volume);

    let engine = host.docker.data_root().join("buildkit");
    let builder = "builder of the driver docker-container in";
    sees_only(&host, 7, &["taken: --for buildx:ci", builder, "dockerd's own builder  not to be had"]);
    sees_only(&host, 7, &["process 1, dockerd", &format!("directory {}", engine.display())]);

    // It is stopped, and its root has been used: what the message says makes room, and the builder stays.
    host.docker.shell("docker buildx stop ci");
    host.warmkit(&["verify", "--for", "buildx:ci"]).expect_success("verify of a used root");
    let planned = host.plan("buildx:ci", 7);
    assert_eq!(planned["refusals"][0]["exit_code"], 7, "{planned:#}");
    let before = fs::read(volume.join("cache.db")).unwrap();
    let said = host.refuses("buildx:ci", 7, &["is not empty, nothing was changed", "the builder stays"]);
    assert_eq!(fs::read(volume.join("cache.db")).unwrap(), before);
    let way_out = commands(&said);
    assert_eq!(way_out, ["docker rm buildx_buildkit_ci0", "docker volume rm buildx_buildkit_ci0_state"]);
    for command in way_out {
        host.docker.shell(command);
    }
    let report = bake_for_auto(&host);
    assert_eq!(report["root"].as_str(), volume.to_str());
    assert_eq!(report["next_step"], "the next build of builder ci starts on it");
    host.is_warm("ci");
    host.docker.shell("docker buildx stop ci");
    sees_only(&host, 0, &["taken: --for buildx:ci"]);
    host.docker.shell("docker buildx rm ci");
    assert_eq!(host.volumes(), [""; 0]);

    packer_bakes(&host, &options);
    refuses_the_state_of_dockers_own_builder(&host);
    refuses_what_it_cannot_write(&host, &options);
    host.docker.stop();
}

/// `verify --for auto` on a machine that has nothing but this docker ends with this code, and has lines with these
/// beginnings; there is one target, beside the builder that dockerd itself is.
#[track_caller]
fn sees_only(host: &Host, code: i32, said: &[&str]) {
    let ended = run(host.docker.warmkit_alone().args(["verify", "--for", "auto"]), LIMIT);
    assert_eq!(ended.status.code(), Some(code), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().map(str::trim_start).collect();
    for said in said {
        assert!(lines.iter().any(|line| line.starts_with(said)), "no line {said:?} in {}", ended.stderr);
    }
    let targets = lines.iter().filter(|line| line.starts_with("--for ")).count();
    assert_eq!((targets, ended.stderr.contains("warning: ")), (1, false), "{}", ended.stderr);
}

/// Bakes there; gives the report.
#[track_caller]
fn bake_for_auto(host: &Host) -> Value {
    let (cache, keys) = (host.origin.cache.as_str(), host.origin.image.as_str());
    let mut command = host.docker.warmkit_alone();
    let ended = run(command.args(["bake", cache, "--keys-from", keys, "--for", "auto", "--json"]), LIMIT);
    serde_json::from_str(&ended.expect_success("bake --for auto").stdout).unwrap()
}

/// Packer, for a builder that is made afterwards; the build on a view of the volume is warm, too.
fn packer_bakes(host: &Host, options: &str) {
    let Some(packer) = packer() else { return };
    let (scratch, request) = (&host.world.scratch, &host.case.request);
    let bin_dir = scratch.join("bin");
    let (name, value) = &request.args[0];
    let argument = format!("--build-arg={name}={value}");
    let buildkitd = host.world.tools.buildkitd.to_str().unwrap();
    let variables = [
        ("target", "buildx:packed"),
        ("caches", &list(&[&host.origin.cache])),
        ("keys", &list(&[&host.origin.image])),
        ("warmkit_binary", env!("CARGO_BIN_EXE_warmkit")),
        ("bin_dir", bin_dir.to_str().unwrap()),
        ("context", &tar_of(&request.context, scratch)),
        ("context_args", &list(&[&argument, "--buildkitd", buildkitd])),
    ];
    let environment = host.docker.environment();
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let template = Path::new(TEMPLATES).join("null.pkr.hcl");
    let ended = run_packer_with(&packer, "build", &template, &variables, &environment, LIMIT);
    let said = ended.expect_success("packer build").stdout;
    let volume = host.docker.volume("buildx_buildkit_packed0_state");
    for line in [
        "steps CACHED, 0 imports, 0 extractions",
        "docker buildx create --name packed --driver docker-container --bootstrap",
        &format!("provision: {} is warm", volume.display()),
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    host.docker.shell(&format!("docker buildx create --name packed --driver docker-container {options}"));
    host.is_warm("packed");
    host.docker.shell("docker buildx rm packed");
}

/// As a real dockerd has made it: where it keeps it, below, and where it is a copy that only its files tell of.
fn refuses_the_state_of_dockers_own_builder(host: &Host) {
    let state = host.docker.data_root().join("buildkit");
    let copy = host.world.scratch.join("kept");
    copy_tree(&state, &copy);
    for path in [state.join("mine"), state, copy.join("mine"), copy] {
        let path = path.to_str().unwrap();
        for command in [&["verify"][..], &["bake", &host.origin.cache]] {
            let ended = host.warmkit(&[command, &["--root", path]].concat());
            assert_eq!(ended.status.code(), Some(2), "{path}: {}", ended.stderr);
            for said in
                ["dockerd's image store", "`docker buildx create --name warm --driver docker-container`"]
            {
                assert!(ended.stderr.contains(said), "{path}: no {said:?} in {}", ended.stderr);
            }
        }
        assert!(!Path::new(path).ends_with("mine") || !Path::new(path).exists());
    }
}

/// Builders whose root is elsewhere, or of another kind.
fn refuses_what_it_cannot_write(host: &Host, options: &str) {
    let create = "docker buildx create --driver docker-container";
    host.docker.shell(&format!("{create} --name moved --buildkitd-flags '--root /srv/buildkit'"));
    host.refuses("buildx:moved", 2, &["node moved0 of builder moved has its root at /srv/buildkit"]);
    host.docker.shell(&format!("{create} --name stargz --buildkitd-flags '--oci-worker-snapshotter=stargz'"));
    host.refuses("buildx:stargz", 2, &["snapshotter \"stargz\"", "overlayfs, fuse-overlayfs and native"]);
    host.docker.shell(&format!(
        "{create} --name rootless --driver-opt image=moby/buildkit:buildx-stable-1-rootless"
    ));
    host.refuses("buildx:rootless", 2, &["runs rootless"]);
    host.docker.shell(&format!(
        "docker context create elsewhere --docker \"host=$DOCKER_HOST\"
         {create} --name several
         {create} --name several --append elsewhere"
    ));
    host.refuses("buildx:several", 2, &["several0, several1", "--for buildx:several/several0"]);
    host.refuses("buildx:several/several2", 2, &["no node \"several2\""]);
    host.docker.shell("docker context update elsewhere --docker host=tcp://192.0.2.1:2376");
    host.refuses(
        "buildx:several/several1",
        2,
        &["\"several\" is not on this machine", "tcp://192.0.2.1:2376"],
    );
    host.docker.shell("docker buildx create --name there --driver remote tcp://192.0.2.1:1234");
    host.refuses("buildx:there", 2, &["the driver \"remote\"", "--for host"]);
    host.refuses("buildx:default", 2, &["the driver \"docker\"", "buildx:default-warm"]);
    let mounted = "docker volume create --opt type=tmpfs --opt device=tmpfs buildx_buildkit_mounted0_state";
    host.docker.shell(mounted);
    host.refuses("buildx:mounted", 2, &["buildx_buildkit_mounted0_state is mounted from tmpfs"]);

    // Of another snapshotter, which its flags name.
    host.docker.shell(&format!(
        "{create} --name native --node native0 --buildkitd-flags '--oci-worker-snapshotter=native' {options}"
    ));
    host.bake("buildx:native");
    host.is_warm("native");
    host.docker.shell("docker buildx rm native");

    // A root that is moved within the volume, by the configuration of a container that was made.
    let config = options.rsplit(' ').next().unwrap();
    let text = fs::read_to_string(config).unwrap();
    fs::write(config, format!("root = \"/var/lib/buildkit/deeper\"\n{text}")).unwrap();
    host.docker.shell(&format!("{create} --name within --node within0 {options}"));
    let report = host.bake("buildx:within");
    let root = host.docker.volume("buildx_buildkit_within0_state").join("deeper");
    assert_eq!(report["root"].as_str(), root.to_str());
    host.is_warm("within");
    host.docker.shell("docker buildx stop within");
    host.warmkit(&["verify", "--for", "buildx:within"]).expect_success("verify of a root within a volume");
    host.docker.shell("docker buildx rm within");
}

#[test]
fn the_volume_of_a_builder_with_docker_stopped() {
    let Some(mut host) = Host::find() else { return };

    // dockerd has never run: there is no data root.
    fs::create_dir(host.docker.data_root()).unwrap();
    let report = host.bake("buildx:ci/gpu");
    let volume = host.docker.volume("buildx_buildkit_gpu_state");
    assert_eq!(report["root"].as_str(), volume.to_str());
    host.warmkit(&["verify", "--for", "buildx:ci/gpu"]).expect_success("verify");

    host.docker.start();
    assert_eq!(host.volumes(), ["buildx_buildkit_gpu_state"]);
    let options = host.docker.builder_options(&host.world.tools, &host.world.registry);
    host.create(&report, &options);
    host.is_warm("ci");
    host.docker.shell("docker buildx stop ci");
    host.docker.stop();

    // The builder exists, and its root has been used.
    let said = host.refuses("buildx:ci", 7, &["is not empty, nothing was changed", "start docker"]);
    host.docker.start();
    for command in commands(&said) {
        host.docker.shell(command);
    }
    host.docker.stop();
    assert_eq!(host.bake("buildx:ci")["root"].as_str(), volume.to_str());
    host.docker.start();
    host.is_warm("ci");
    host.docker.shell("docker buildx rm ci");
    host.docker.stop();
}
