//! `--for` where nothing of docker runs: what is refused, in words of its own, and where a root is looked for.
//!
//! What a dockerd would say that cannot be had here (one in a virtual machine, a rootless one) a stand-in says.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/skip.rs"]
mod skip;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use skip::is_root;

/// Runs a program where a directory is read-only.
const READ_ONLY: &str = "\
    /usr/bin/mount --bind \"$0\" \"$0\"\n\
    /usr/bin/mount -o remount,bind,ro \"$0\"\n\
    exec \"$@\"\n";

/// A machine with a docker that says what a test wants.
struct Machine {
    dir: tempfile::TempDir,
    /// Only held: what asks whether dockerd is there connects to it.
    #[allow(dead_code)]
    listening: Option<UnixListener>,
}

impl Machine {
    /// One whose dockerd is stopped.
    fn stopped() -> Self {
        // Where every user may look, which is not so of each $TMPDIR.
        let dir = tempfile::Builder::new().prefix("wk-").tempdir_in("/var/tmp").unwrap();
        fs::create_dir_all(dir.path().join("buildx/instances")).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        Self { dir, listening: None }
    }

    /// One whose dockerd answers: `info`, and each `volume inspect`, with these.
    fn running(info: &Value, volume: &Value) -> Self {
        let mut machine = Self::stopped();
        machine.listening = Some(UnixListener::bind(machine.path("docker.sock")).unwrap());
        let name = volume["Name"].as_str().unwrap_or_default();
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>'{asked}'\n\
             case $1-$2 in\n\
             info-*) echo '{info}' ;;\n\
             context-inspect) echo 'unix://{socket}' ;;\n\
             container-ls) ;;\n\
             volume-ls) echo '{name}' ;;\n\
             volume-inspect) echo '{volume}' ;;\n\
             *) echo \"unknown: $*\" >&2; exit 1 ;;\n\
             esac\n",
            asked = machine.path("asked").display(),
            socket = machine.path("docker.sock").display(),
        );
        machine.program("docker", &script);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let draft = self.path("draft");
        fs::write(&draft, script).unwrap();
        self.install(&draft, name);
    }

    fn install(&self, program: &Path, name: &str) {
        // By another process: a file that a child of another thread may have open for writing does not run.
        let mut install = Command::new("install");
        install.args(["-m", "755"]).arg(program).arg(self.path("bin").join(name));
        assert!(install.status().unwrap().success());
    }

    /// What `systemctl show` says of a unit.
    fn unit(&self, unit: &str, arguments: &str) {
        self.unit_with(unit, arguments, "");
    }

    /// The same of one with variables.
    fn unit_with(&self, unit: &str, arguments: &str, variables: &str) {
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\n\
             case \"$last $2\" in\n\
             '{unit} --property=ExecStart')\n\
             echo '{{ path=/usr/sbin/x ; argv[]=/usr/sbin/x {arguments} ; ignore_errors=no ; pid=0 }}' ;;\n\
             '{unit} --property=Environment') echo '{variables}' ;;\n\
             esac\n"
        );
        self.program("systemctl", &script);
    }

    fn builder(&self, name: &str, driver: &str, nodes: &Value) {
        let instance = json!({"Name": name, "Driver": driver, "Nodes": nodes, "Dynamic": false});
        fs::write(self.path("buildx/instances").join(name), instance.to_string()).unwrap();
    }

    /// Runs a command; gives its exit code and what it said of its error.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        self.runs(Command::new(env!("CARGO_BIN_EXE_warmkit")).args(arguments))
    }

    fn runs(&self, command: &mut Command) -> (i32, String) {
        command.env_remove("DOCKER_CONTEXT");
        // Nothing of this machine: it may have a docker.
        command.env("PATH", format!("{}:/nonexistent", self.path("bin").display()));
        command.env("BUILDX_CONFIG", self.path("buildx")).env("DOCKER_CONFIG", self.dir.path());
        command.env("DOCKER_HOST", format!("unix://{}", self.path("docker.sock").display()));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    }

    /// Asserts that a target is refused.
    #[track_caller]
    fn refuses(&self, target: &str, code: i32, said: &[&str]) {
        for command in ["verify", "bake"] {
            let mut arguments = vec![command, "--for", target];
            if command == "bake" {
                arguments.push("type=local,src=/nonexistent");
            }
            let (found, error) = self.fails(&arguments);
            assert_eq!(found, code, "{command}: {error}");
            for said in said {
                assert!(error.contains(said), "{command}: no {said:?} in {error}");
            }
        }
    }
}

fn info(root: &Path, options: &[&str]) -> Value {
    json!({"DockerRootDir": root, "SecurityOptions": options})
}

#[test]
fn a_docker_that_sees_other_files_is_refused() {
    let volume = json!({"Name": "buildx_buildkit_ci0_state", "Driver": "local", "Options": null,
        "Mountpoint": "/nonexistent/docker/volumes/buildx_buildkit_ci0_state/_data"});
    let machine = Machine::running(&info(Path::new("/nonexistent/docker"), &[]), &volume);
    machine.refuses("buildx:ci", 1, &["/nonexistent/docker/volumes/", "a virtual machine"]);
    let asked = fs::read_to_string(machine.path("asked")).unwrap();
    assert!(!asked.contains("create"), "{asked}");
}

#[test]
fn a_rootless_docker_is_refused() {
    let info =
        info(Path::new("/home/ci/.local/share/docker"), &["name=seccomp,profile=builtin", "name=rootless"]);
    Machine::running(&info, &json!({})).refuses("buildx:ci", 2, &["runs rootless", "docker.sock"]);
    // One that is stopped is known by where it would listen.
    let machine = Machine::stopped();
    let node = json!([{"Name": "ci0", "Endpoint": "unix:///run/user/4242/docker.sock"}]);
    machine.builder("ci", "docker-container", &node);
    machine.refuses("buildx:ci", 2, &["unix:///run/user/4242/docker.sock", "runs rootless"]);
}

#[test]
fn podman_under_dockers_name_is_told() {
    let machine = Machine::stopped();
    // Of what it does not know it says nothing, and that this went well.
    machine.program("docker", "#!/bin/sh\nexit 0\n");
    machine.refuses("buildx:ci", 1, &["`docker context inspect", "if podman stands there", "--root"]);
    // Asked for what it does know, it has words of its own.
    machine.program("docker", "#!/bin/sh\necho '{\"host\": {}}'\n");
    let _listening = UnixListener::bind(machine.path("podman.sock")).unwrap();
    let endpoint = format!("unix://{}", machine.path("podman.sock").display());
    machine.builder("ci", "docker-container", &json!([{"Name": "ci0", "Endpoint": endpoint}]));
    machine.refuses("buildx:ci", 1, &["`docker info", "DockerRootDir", "if podman stands there"]);
}

#[test]
fn whoever_may_not_ask_docker_is_told_to_be_root() {
    if !is_root() {
        return;
    }
    let machine = Machine::running(&json!({}), &json!({}));
    fs::set_permissions(machine.path("docker.sock"), Permissions::from_mode(0o600)).unwrap();
    for open in ["", "bin", "buildx", "buildx/instances"] {
        fs::set_permissions(machine.path(open), Permissions::from_mode(0o755)).unwrap();
    }
    // Where cargo put it, others may not look.
    machine.install(Path::new(env!("CARGO_BIN_EXE_warmkit")), "warmkit");
    let warmkit = machine.path("bin/warmkit");
    for arguments in
        [&["verify", "--for", "buildx:ci"][..], &["bake", "--for", "buildx:ci", "type=local,src=/x"]]
    {
        let (code, said) = machine.runs(Command::new(&warmkit).args(arguments).uid(65534).gid(65534));
        assert_eq!(code, 1, "{said}");
        for part in ["docker.sock: Permission denied", "run it under sudo"] {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    }
}

#[test]
fn a_volume_of_a_plugin_is_refused() {
    let volume =
        json!({"Name": "buildx_buildkit_ci0_state", "Driver": "rexray", "Options": {}, "Mountpoint": ""});
    let machine = Machine::running(&info(Path::new("/nonexistent"), &[]), &volume);
    machine.refuses("buildx:ci", 2, &["buildx_buildkit_ci0_state is one of the driver \"rexray\""]);
}

#[test]
fn drivers_without_a_volume_are_refused() {
    let machine = Machine::stopped();
    let cases = [
        ("kubernetes", "kubernetes:///x?deployment=x0", "its root is in a pod"),
        ("remote", "tcp://192.0.2.1:1234", "--for host"),
        ("docker", "default", "docker buildx create --name ci-warm --driver docker-container"),
        ("cloud", "acme/builder", "its root is not on this machine"),
    ];
    for (driver, endpoint, way_out) in cases {
        machine.builder("ci", driver, &json!([{"Name": "ci0", "Endpoint": endpoint}]));
        machine.refuses("buildx:ci", 2, &["\"ci\" has the driver", driver, way_out]);
    }
}

#[test]
fn a_configuration_that_is_in_an_image_is_refused() {
    let machine = Machine::stopped();
    let node = json!([{"Name": "ci0", "DriverOpts": {"env.BUILDKITD_CONFIG": "/etc/own.toml"}}]);
    machine.builder("ci", "docker-container", &node);
    machine.refuses("buildx:ci", 2, &["env.BUILDKITD_CONFIG", "/etc/own.toml", "--buildkitd-config FILE"]);
}

#[test]
fn a_docker_elsewhere_is_refused() {
    let machine = Machine::stopped();
    for endpoint in ["tcp://192.0.2.1:2376", "ssh://ci@builds.example"] {
        machine.builder("ci", "docker-container", &json!([{"Name": "ci0", "Endpoint": endpoint}]));
        machine.refuses("buildx:ci", 2, &["\"ci\" is not on this machine", endpoint]);
    }
}

#[test]
fn a_stopped_docker_is_where_its_unit_says() {
    if !is_root() {
        return;
    }
    let machine = Machine::stopped();
    // Not that of the machine, which may have one.
    let host = format!("unix://{}", machine.path("docker.sock").display());
    machine.refuses("buildx:ci", 1, &["no docker answers at", &host, "start it"]);
    let data = machine.path("data");
    let start = |data: &str| machine.unit("docker.service", &format!("-H fd:// -H {host} {data}"));
    start(&format!("--data-root {}", data.display()));
    machine.refuses("buildx:ci", 1, &["no docker answers", data.to_str().unwrap()]);
    start("--userns-remap=default");
    machine.refuses("buildx:ci", 1, &["userns-remap"]);

    // There, without docker's client: what is in the volume is found, and left.
    fs::create_dir_all(machine.path("data/volumes/buildx_buildkit_ci0_state/_data/used")).unwrap();
    start(&format!("--data-root={}", data.display()));
    let target = ["--for", "buildx:ci", "type=local,src=/nonexistent"];
    for command in ["bake", "plan"] {
        let (code, said) = machine.fails(&[&[command][..], &target].concat());
        assert_eq!(code, 7, "{command}: {said}");
        for part in ["_data is not empty", "found used", "node ci0 of builder ci", "start docker"] {
            assert!(said.contains(part), "{command}: no {part:?} in {said}");
        }
    }

    // One on a disk that nothing can be written to.
    let volume = machine.path("data/volumes/buildx_buildkit_ci0_state/_data");
    fs::remove_dir(volume.join("used")).unwrap();
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--mount", "/bin/sh", "-euc", READ_ONLY]).arg(&volume);
    let (code, said) = machine.runs(command.args([env!("CARGO_BIN_EXE_warmkit"), "bake"]).args(target));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("_data is mounted read-only, nothing was changed"), "{said}");
}

#[test]
fn the_host_is_where_its_unit_and_its_configuration_say() {
    let machine = Machine::stopped();
    let config = machine.path("buildkitd.toml");
    let unit = || machine.unit("buildkit.service", &format!("--addr fd:// --config {}", config.display()));
    unit();
    let cases = [
        ("root = \"/nonexistent/from-config\"", 1, "/nonexistent/from-config"),
        ("[worker.oci]\nenabled = false", 2, "OCI worker turned off"),
        (
            "[worker.oci]\nsnapshotter = \"stargz\"",
            2,
            "snapshotter \"stargz\", which keeps layers in a form of its own; roots are written for overlayfs",
        ),
        ("[worker.oci]\nsnapshotter = \"nydus\"", 2, "snapshotter \"nydus\", which"),
        ("[worker.oci]\nsnapshotter = \"zfs\"", 2, "snapshotter \"zfs\", which"),
        ("[worker.oci]\nsnapshotter = \"btrfs\"", 2, "snapshotter \"btrfs\", which"),
        (
            "[worker.oci]\nsnapshotter = \"overlayfs\"\nproxySnapshotterPath = \"/run/nydus.sock\"",
            2,
            "leaves its snapshots to the program that listens at /run/nydus.sock",
        ),
        ("root = ", 1, "buildkitd.toml"),
    ];
    for (text, code, said) in cases {
        fs::write(&config, text).unwrap();
        let (found, error) = machine.fails(&["verify", "--for", "host"]);
        assert!(found == code && error.contains(said), "{text}: {found} {error}");
        if code == 2 {
            let (found, error) = machine.fails(&["bake", "type=local,src=/nonexistent"]);
            assert!(found == code && error.contains(said), "{text}: {found} {error}");
        }
    }
    fs::write(&config, "").unwrap();
    for (flag, said) in [
        ("--oci-worker-proxy-snapshotter-path=/run/p.sock", "that listens at /run/p.sock"),
        ("--oci-worker-rootless", "runs rootless"),
        ("--rootless", "runs rootless"),
    ] {
        machine.unit("buildkit.service", &format!("--config {} {flag}", config.display()));
        let (found, error) = machine.fails(&["verify"]);
        assert!(found == 2 && error.contains(said), "{flag}: {found} {error}");
    }
    machine.unit("buildkitd.service", "--root=/nonexistent/from-unit");
    let (_, error) = machine.fails(&["verify"]);
    assert!(error.contains("/nonexistent/from-unit"), "{error}");
    let by_variable = machine.path("by-variable.toml");
    fs::write(&by_variable, "root = \"/nonexistent/by-variable\"").unwrap();
    fs::write(&config, "root = \"/nonexistent/by-argument\"").unwrap();
    let variable = format!("A=1 BUILDKITD_CONFIG={}", by_variable.display());
    let argument = format!("--config {}", config.display());
    for (arguments, said) in [("", "/nonexistent/by-variable"), (&argument, "/nonexistent/by-argument")] {
        machine.unit_with("buildkit.service", arguments, &variable);
        let (_, error) = machine.fails(&["verify"]);
        assert!(error.contains(said), "{arguments}: {error}");
    }
}

#[test]
fn a_containerd_is_where_the_configuration_says() {
    if !is_root() {
        return;
    }
    let machine = Machine::stopped();
    let config = machine.path("buildkitd.toml");
    machine.unit("buildkit.service", &format!("--config {}", config.display()));
    let root = machine.path("root");
    let configure = |text: &str| {
        let root = root.display();
        fs::write(&config, format!("root = \"{root}\"\n[worker.containerd]\n{text}\n")).unwrap();
    };
    let bake =
        |arguments: &[&str]| machine.fails(&[&["bake", "type=local,src=/nonexistent"], arguments].concat());
    let (nobody, code) = if cfg!(feature = "containerd") {
        ("no containerd at /nonexistent/", 1)
    } else {
        ("without the feature `containerd`", 2)
    };
    for (text, arguments, expected, said) in [
        ("address = \"/nonexistent/a\"", &["--for", "containerd"][..], code, nobody),
        ("", &["--for", "containerd:/nonexistent/b"], code, nobody),
        ("", &["--for", "containerd:b"], 2, "the path of a socket"),
        ("enabled = false", &["--for", "containerd"], 2, "containerd worker turned off"),
        ("snapshotter = \"stargz\"", &["--for", "containerd"], 2, "the snapshotter \"stargz\""),
        ("rootless = true", &["--for", "containerd:/nonexistent/c"], code, nobody),
        ("", &["--for", "host", "--root", "/nonexistent"], 2, "leave --root away"),
    ] {
        configure(text);
        let (found, error) = bake(arguments);
        assert!(found == expected && error.contains(said), "{text} {arguments:?}: {found} {error}");
        assert!(!root.exists(), "{text} {arguments:?}");
    }
    // Found before a containerd is asked.
    if cfg!(feature = "containerd") {
        configure("");
        fs::create_dir_all(root.join("containerd-stargz")).unwrap();
        for command in ["verify", "inspect"] {
            let (found, error) = machine.fails(&[command, "--for", "containerd:/nonexistent"]);
            let said = "a containerd worker with the snapshotter stargz (containerd-stargz)";
            assert!(found != 0 && error.contains(said), "{command}: {found} {error}");
        }
        let (found, error) = bake(&["--for", "containerd:/nonexistent"]);
        assert!(found == 7 && error.contains("(--containerd-worker-snapshotter)"), "{found} {error}");
    }
}
