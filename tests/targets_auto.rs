//! `--for auto` on machines of every kind, each in namespaces of its own: its /etc, /run, /var/lib, homes, processes and
//! programs are what a test lays out. What systemd and docker would say that stand-ins say.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[allow(unreachable_pub, reason = "made for other test files too")]
#[path = "support/shipped.rs"]
mod shipped;
#[path = "support/skip.rs"]
mod skip;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use shipped::{cache, keys};
use skip::is_root;

/// Lays the machine out ($1: its files, among them a list of programs that are real; $2: warmkit), starts daemons ($3),
/// and becomes warmkit ($4 …).
const INIT: &str = r#"
files=$1 program=$2 daemons=$3
shift 3
mount --bind "$program" "$files/bin/warmkit"
PATH=$PATH:/usr/sbin:/sbin
setpriv=$(command -v setpriv) unshare=$(command -v unshare)
# Open for both: there is no end of it between two daemons.
exec 4<>"$files/bin/ready"
start() {
    "$@" 4<&- &
    read -r _ <&4
}
as() {
    user=$1
    shift
    HOME=$(sed -n "s|^[^:]*:x:$user:[^:]*:[^:]*:\\([^:]*\\):.*|\\1|p" /etc/passwd) \
        start "$setpriv" "--reuid=$user" --clear-groups "$@"
}
contained() {
    start "$unshare" --pid --fork --kill-child "$@"
}
bin=$files/bin
while read -r name real; do
    [ -z "$name" ] || mount --bind "$real" "$bin/$name"
done <"$files/real"
for directory in etc run home root var/lib; do
    mount --bind "$files/$directory" "/$directory"
done
eval "$daemons"
exec 4<&-
PATH=$bin HOME=/root
export PATH HOME
exec "$@"
"#;

/// A daemon that says that it runs, and does nothing else until its machine goes.
const DAEMON: &str = "#!/bin/sh\nexec 3<>\"${0%/*}/never\"\necho >\"${0%/*}/ready\"\nread -r _ <&3\n";

struct Machine {
    dir: tempfile::TempDir,
    /// Only held: what asks whether dockerd is there connects to it.
    listening: Option<UnixListener>,
    /// What starts its daemons.
    daemons: String,
    variables: Vec<(String, String)>,
    user: Option<u32>,
}

impl Machine {
    /// One with nothing on it, but for its users.
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("wk-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let machine =
            Self { dir, listening: None, daemons: String::new(), variables: Vec::new(), user: None };
        for directory in ["etc", "run", "home", "root", "var/lib", "bin"] {
            fs::create_dir_all(machine.path(directory)).unwrap();
        }
        machine.write("etc/nsswitch.conf", "passwd: files\n");
        let shell = "/bin/sh";
        machine.write(
            "etc/passwd",
            &format!(
                "root:x:0:0::/root:{shell}\nnobody:x:65534:65534::/nonexistent:{shell}\n\
                 ci:x:4001:4001::/home/ci:{shell}\nann:x:4002:4002::/home/ann:{shell}\n\
                 poor:x:4003:4003::/home/poor:{shell}\nguest:x:4004:4004::/home/ci:{shell}\n"
            ),
        );
        for file in ["etc/subuid", "etc/subgid"] {
            machine.write(file, "ci:100000:65536\nann:200000:65536\n");
        }
        for (name, id) in [("ci", 4001), ("ann", 4002), ("poor", 4003)] {
            let home = machine.path("home").join(name);
            fs::create_dir(&home).unwrap();
            chown(&home, Some(id), Some(id)).unwrap();
        }
        machine.write("bin/warmkit", "").write("real", "");
        for name in ["never", "ready"] {
            let mut mkfifo = Command::new("mkfifo");
            let fifo = machine.path("bin").join(name);
            assert!(mkfifo.arg("--mode=666").arg(fifo).status().unwrap().success());
        }
        for name in ["buildkitd", "dockerd"] {
            machine.program(name, DAEMON);
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.give(name)
    }

    /// What is in a home is its owner's.
    fn give(&self, name: &str) -> &Self {
        if let Some((user, below)) = name.strip_prefix("home/").and_then(|name| name.split_once('/')) {
            let mut at = self.path("home").join(user);
            let id = fs::metadata(&at).unwrap().uid();
            for name in Path::new(below) {
                at.push(name);
                chown(&at, Some(id), Some(id)).unwrap();
            }
        }
        self
    }

    fn directory(&self, name: &str) -> &Self {
        fs::create_dir_all(self.path(name)).unwrap();
        self.give(name)
    }

    fn program(&self, name: &str, script: &str) -> &Self {
        self.write("draft", script);
        // By another process: a file that a child of another thread may have open for writing does not run.
        let mut install = Command::new("install");
        install.args(["-m", "755"]).arg(self.path("draft")).arg(self.path("bin").join(name));
        assert!(install.status().unwrap().success());
        self
    }

    /// What `systemctl show` says of a unit that runs.
    fn unit(&self, unit: &str, arguments: &str) -> &Self {
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\n[ \"$last\" = {unit} ] || exit 0\ncase $2 in\n\
             *ActiveState) echo active ;;\n\
             *ExecStart) echo '{{ path=/usr/sbin/x ; argv[]=/usr/sbin/x {arguments} ; ignore_errors=no ; pid=0 }}' ;;\n\
             esac\n"
        );
        self.program("systemctl", &script)
    }

    /// Runs a daemon: a line of shell, after `start`, `as USER` or `contained`.
    fn runs(&mut self, line: &str) -> &mut Self {
        self.daemons += line;
        self.daemons += "\n";
        self
    }

    /// A builder of buildx, of root.
    fn builder(&self, name: &str, driver: &str, nodes: &[&str]) -> &Self {
        let nodes: Vec<Value> = nodes.iter().map(|node| json!({"Name": node, "Endpoint": ""})).collect();
        let instance = json!({"Name": name, "Driver": driver, "Nodes": nodes, "Dynamic": false});
        self.write(&format!("root/.docker/buildx/instances/{name}"), &instance.to_string())
    }

    /// A docker that answers, with these volumes.
    fn docker(&mut self, volumes: &[&str]) -> &mut Self {
        let socket = self.path("run/docker.sock");
        self.listening.get_or_insert_with(|| UnixListener::bind(socket).unwrap());
        let data = |volume: &str| format!("/var/lib/docker/volumes/{volume}/_data");
        let mut inspect = String::new();
        for volume in volumes {
            self.directory(&data(volume)[1..]);
            let said =
                json!({"Name": volume, "Driver": "local", "Options": null, "Mountpoint": data(volume)});
            inspect.extend(["    ", volume, ") echo '", &said.to_string(), "' ;;\n"]);
        }
        let info = json!({"DockerRootDir": "/var/lib/docker", "SecurityOptions": []});
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\n\
             case $1-$2 in\n\
             info-*) echo '{info}' ;;\n\
             context-inspect) echo 'unix:///run/docker.sock' ;;\n\
             container-ls) ;;\n\
             volume-ls) printf '%s\\n' {names} ;;\n\
             volume-inspect)\n    case $last in\n{inspect}    esac ;;\n\
             *) echo \"unknown: $*\" >&2; exit 1 ;;\n\
             esac\n",
            names = if volumes.is_empty() { "''".to_owned() } else { volumes.join(" ") },
        );
        self.program("docker", &script);
        self
    }

    fn warmkit(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-euc",
            INIT,
            "sh",
        ]);
        command.arg(self.dir.path()).arg(env!("CARGO_BIN_EXE_warmkit")).arg(&self.daemons);
        if let Some(user) = self.user {
            // $PATH is the machine's by then.
            command.args(["/usr/bin/setpriv", &format!("--reuid={user}"), &format!("--regid={user}")]);
            command.arg("--clear-groups");
        }
        command.arg(self.path("bin/warmkit")).args(arguments);
        for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "BUILDX_CONFIG", "SUDO_USER"] {
            command.env_remove(name);
        }
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "SOURCE_DATE_EPOCH"] {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    }

    /// Asserts that this is said, and nothing else of targets: what is taken, or why nothing is.
    #[track_caller]
    fn looks(&self, taken: Result<&str, &str>, said: &[&str]) {
        // Nothing can be read there: that is known after the target is.
        let output = self.warmkit(&["plan", "type=local,src=/nonexistent", "--for", "auto"]);
        let errors = String::from_utf8(output.stderr).unwrap();
        let last = errors.lines().rfind(|line| line.starts_with("error: ")).unwrap_or(&errors);
        let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("taken: ")).collect();
        match taken {
            Ok(way) => {
                // Or the target is not empty, which is known before.
                assert!(matches!(output.status.code(), Some(3 | 7)), "{errors}");
                assert_eq!(lines, [format!("taken: {way}")], "{errors}");
            }
            Err(why) => {
                assert!(last.contains(why), "no {why:?} in {errors}");
                assert_eq!((output.status.code(), lines.len()), (Some(2), 0), "{errors}");
            }
        }
        for said in said {
            let is_said = errors.lines().any(|line| {
                let line = line.trim_start();
                line == *said || said.strip_suffix('…').is_some_and(|start| line.starts_with(start))
            });
            assert!(is_said, "no line {said:?} in {errors}");
        }
        // A path or a process that nobody expected.
        let evidence = errors.lines().filter(|line| line.starts_with("    ")).count();
        let expected = said.iter().filter(|said| is_evidence(said)).count();
        assert_eq!(evidence, expected, "{errors}");
    }
}

fn is_evidence(line: &str) -> bool {
    let words = [
        "configuration ",
        "unit ",
        "socket ",
        "directory ",
        "process ",
        "builder of",
        "volume ",
        "docker at",
    ];
    words.iter().any(|word| line.starts_with(word))
}

#[test]
fn a_machine_with_nothing_is_told_how_to_name_it() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    let none = "no target is seen on this machine: say which, as --for host (/var/lib/buildkit)";
    machine.looks(Err(none), &["targets on this machine: none"]);
}

#[test]
fn the_host_is_known_by_each_of_its_traces() {
    if !is_root() {
        return;
    }
    let host = Ok("--for host");
    let machine = Machine::new();
    machine.directory("var/lib/buildkit");
    machine.looks(host, &["--for host  /var/lib/buildkit", "directory /var/lib/buildkit, empty"]);

    let machine = Machine::new();
    machine.write("etc/buildkit/buildkitd.toml", "root = \"/var/lib/moved\"\n");
    machine.directory("var/lib/moved/runc-overlayfs").write("var/lib/moved/cache.db", "");
    machine.looks(
        host,
        &[
            "--for host  /var/lib/moved",
            "configuration /etc/buildkit/buildkitd.toml",
            "directory /var/lib/moved, with cache.db, runc-overlayfs",
        ],
    );

    let machine = Machine::new();
    machine.unit("buildkitd.service", "--root /var/lib/of-unit").write("run/buildkit/buildkitd.sock", "");
    machine.looks(
        host,
        &[
            "--for host  /var/lib/of-unit",
            "unit buildkitd.service, which runs, with --root /var/lib/of-unit",
            "socket /run/buildkit/buildkitd.sock",
        ],
    );

    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --debug");
    machine.looks(host, &["--for host  /var/lib/buildkit", "process …"]);

    // What is wrong with the only one is the reason.
    let machine = Machine::new();
    machine.write("etc/buildkit/buildkitd.toml", "[worker.oci]\nsnapshotter = \"stargz\"\n");
    machine.looks(Err("the snapshotter \"stargz\""), &["configuration /etc/buildkit/buildkitd.toml"]);
}

/// What a daemon itself makes and leaves.
#[test]
fn a_real_daemon_is_known_while_it_runs_and_after() {
    if !is_root() {
        return;
    }
    let cache = || {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
        Some(std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?.join("warmkit/tools"))
    };
    let tools = std::env::var_os("WARMKIT_TOOLS").map(PathBuf::from).or_else(cache).unwrap_or_default();
    let programs = tools.join("buildkit-v0.34.2/bin");
    if !programs.join("buildkitd").is_file() {
        skip::skip("there is no buildkitd v0.34.2");
        return;
    }
    let mut machine = Machine::new();
    let real = ["buildkitd", "buildctl"].map(|name| format!("{name} {}\n", programs.join(name).display()));
    machine.write("real", &real.concat()).write("bin/buildctl", "");
    machine.write("etc/buildkit/buildkitd.toml", "[worker.oci]\nsnapshotter = \"overlayfs\"\n");
    machine.runs(
        "$bin/buildkitd --oci-worker-snapshotter=overlayfs --containerd-worker=false >\"$files/log\" 2>&1 &",
    );
    // Each answer takes its time; a daemon that has ended gives none.
    machine.runs("until \"$bin/buildctl\" debug workers >\"$files/said\" 2>&1; do kill -0 $!; done");
    let left = [
        "--for host  /var/lib/buildkit",
        "configuration /etc/buildkit/buildkitd.toml",
        "socket /run/buildkit/buildkitd.sock",
        "directory /var/lib/buildkit, with cache.db, runc-overlayfs",
    ];
    machine.looks(Ok("--for host"), &[&left[..], &["process …"]].concat());
    // It went with its machine, as one that is killed.
    machine.daemons.clear();
    machine.looks(Ok("--for host"), &left);
}

#[test]
fn a_daemon_that_runs_with_another_root_is_named_by_that() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --root /var/lib/other --oci-worker-snapshotter=native");
    machine.looks(Ok("--root /var/lib/other"), &["--root /var/lib/other  /var/lib/other", "process …"]);
    machine.runs("cd \"$files/var\"\nstart $bin/buildkitd --root relative");
    let relative = machine.path("var/relative");
    let both = format!("as --root /var/lib/other or --root {}", relative.display());
    machine.looks(Err(&both), &["process …", "process …"]);
}

#[test]
fn a_containerd_worker_is_seen_where_a_configuration_has_it() {
    if !is_root() {
        return;
    }
    let config = "etc/buildkit/buildkitd.toml";
    let seen = "configuration /etc/buildkit/buildkitd.toml";
    let machine = Machine::new();
    machine.write("run/containerd/containerd.sock", "");
    // That there is a containerd tells nothing.
    machine.looks(Err("no target is seen"), &[]);
    machine.write(config, "[worker.oci]\nenabled = false\n");
    let expected = ["--for containerd  /var/lib/buildkit", seen, "socket /run/containerd/containerd.sock"];
    machine.looks(if_built(Ok("--for containerd")), &expected);
    machine.write(config, "[worker.containerd]\nenabled = true\naddress = \"/run/k3s.sock\"\n");
    machine.looks(Err("as --for host or --for containerd"), &[seen, seen]);
    machine.write(config, "").directory("var/lib/buildkit/containerd-overlayfs");
    let state = "directory /var/lib/buildkit, with containerd-overlayfs";
    let expected = [seen, state, "socket /run/containerd/containerd.sock"];
    machine.looks(Err("as --for host or --for containerd"), &expected);

    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --oci-worker=false --containerd-worker-addr=/run/x.sock --root /r");
    machine.looks(if_built(Ok("--for containerd:/run/x.sock --root /r")), &["process …"]);
    let mut machine = Machine::new();
    machine.runs("start $bin/buildkitd --oci-worker=false --containerd-worker-namespace=x");
    machine.looks(Err("is told a namespace or a snapshotter of containerd"), &["process …"]);
}

/// A bake for containerd is refused by a program that was built without it: after the target was taken.
fn if_built(taken: Result<&'static str, &'static str>) -> Result<&'static str, &'static str> {
    if cfg!(feature = "containerd") { taken } else { Err("without the feature `containerd`") }
}

#[test]
fn daemons_of_users_are_found_in_their_homes_and_among_processes() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    // A home of somebody else's is no trace of its second owner.
    machine.directory("home/ci/.local/share/buildkit");
    let state = "directory /home/ci/.local/share/buildkit, empty";
    machine.looks(Ok("--for rootless:ci"), &[state]);
    // One that is masked is none.
    machine.write("home/ci/.config/systemd/user/buildkitd.service", "");
    machine.write("home/ci/.config/systemd/user/buildkit.service", "[Service]\nExecStart=buildkitd\n");
    machine.write("run/user/4001/buildkit/buildkitd.sock", "").directory("home/ci/.config/buildkit");
    machine.runs("as 4001 $bin/buildkitd --addr unix:///run/user/4001/buildkit/buildkitd.sock");
    let all = [
        "configuration /home/ci/.config/buildkit",
        "unit /home/ci/.config/systemd/user/buildkit.service",
        "socket /run/user/4001/buildkit/buildkitd.sock",
        state,
        "process …",
    ];
    machine.looks(Ok("--for rootless:ci"), &all);
    machine.directory("home/ann/.config/buildkit");
    let both = [&all[..], &["configuration /home/ann/.config/buildkit"]].concat();
    machine.looks(Err("as --for rootless:ci or --for rootless:ann"), &both);

    // No daemon of theirs would start.
    let machine = Machine::new();
    machine.directory("home/poor/.config/buildkit").directory("var/lib/buildkit");
    let said = [
        "configuration /home/poor/.config/buildkit",
        "directory /var/lib/buildkit, empty",
        "--for rootless:poor  not to be had: poor has no range in /etc/subuid…",
    ];
    machine.looks(Ok("--for host"), &said);

    // Elsewhere than its name says.
    for line in ["as 4001 $bin/buildkitd --root /srv/ci", "as 4001 env XDG_DATA_HOME=/srv $bin/buildkitd"] {
        let mut machine = Machine::new();
        machine.runs(line);
        machine.looks(Err("and --for rootless:ci would be /home/ci/.local/share/buildkit"), &["process …"]);
    }
}

#[test]
fn builders_are_found_where_buildx_and_docker_keep_them() {
    if !is_root() {
        return;
    }
    let by_buildx = "builder of the driver docker-container in /root/.docker/buildx";
    let engine = "docker at unix:///run/docker.sock";
    let mut machine = Machine::new();
    machine.builder("ci", "docker-container", &["ci0"]).directory("var/lib/docker/buildkit");
    machine.docker(&["buildx_buildkit_ci0_state", "data"]);
    let state = "directory /var/lib/docker/buildkit";
    machine
        .looks(Ok("--for buildx:ci"), &[by_buildx, engine, state, "dockerd's own builder  not to be had: …"]);

    // Of another user: docker has its volume.
    machine.docker(&["buildx_buildkit_ci0_state", "buildx_buildkit_gpu_state"]);
    let volume = "volume buildx_buildkit_gpu_state of docker at unix:///run/docker.sock";
    machine.looks(Err("as --for buildx:ci or --for buildx:gpu/gpu"), &[by_buildx, volume, engine, state]);

    let machine = Machine::new();
    machine.builder("two", "docker-container", &["a", "b"]).directory("var/lib/docker");
    machine.looks(Err("as --for buildx:two/a or --for buildx:two/b"), &[by_buildx, by_buildx]);

    // Those that cannot be written for are named, and not counted.
    let machine = Machine::new();
    machine.builder("pods", "kubernetes", &["pods0"]).directory("var/lib/buildkit");
    let of_pods = "builder of the driver kubernetes in /root/.docker/buildx";
    machine.looks(Ok("--for host"), &["directory /var/lib/buildkit, empty", of_pods]);

    // docker is stopped.
    let machine = Machine::new();
    machine.directory("var/lib/docker/volumes/buildx_buildkit_ci0_state/_data");
    let volume = "volume buildx_buildkit_ci0_state in /var/lib/docker/volumes";
    machine.looks(Ok("--for buildx:ci"), &[volume]);

    // A daemon in a container is its builder's.
    let mut machine = Machine::new();
    machine.directory("var/lib/buildkit");
    machine.runs("contained $bin/buildkitd");
    machine.looks(Err("there may be more targets than --for host"), &["directory /var/lib/buildkit, empty"]);
    let mut machine = Machine::new();
    machine.builder("ci", "docker-container", &["ci0"]).directory("var/lib/docker");
    machine.runs("contained $bin/buildkitd");
    machine.looks(Ok("--for buildx:ci"), &[by_buildx]);

    // Whoever calls sudo has builders, too.
    let mut machine = Machine::new();
    machine.directory("var/lib/buildkit").write("home/ci/.docker/buildx/instances/mine", "{}");
    machine.variables.push(("SUDO_USER".into(), "ci".into()));
    let warning = "warning: /home/ci/.docker/buildx has builders too (mine)…";
    machine.looks(
        Err("there may be more targets than --for host"),
        &["directory /var/lib/buildkit, empty", warning],
    );
}

#[test]
fn dockers_own_builder_is_named_and_refused() {
    if !is_root() {
        return;
    }
    let way_out = "`docker buildx create --name warm --driver docker-container`, and --for buildx:warm";
    let mut machine = Machine::new();
    machine.docker(&[]).runs("start $bin/dockerd -H fd://");
    machine.looks(Err(way_out), &["docker at unix:///run/docker.sock", "process …"]);
    let mut machine = Machine::new();
    machine.runs("start $bin/dockerd").directory("var/lib/docker/buildkit");
    machine.looks(Err(way_out), &["directory /var/lib/docker/buildkit", "process …"]);

    // By its directory, whatever is in it, by whatever path, wherever dockerd is told to have it.
    machine.write("var/lib/moved/buildkit/history_c8d.db", "").directory("var/lib/moved/buildkit/content");
    symlink("/var/lib/moved/buildkit", machine.path("var/lib/link")).unwrap();
    machine.unit("docker.service", "--data-root /var/lib/told");
    for path in [
        "/var/lib/docker/buildkit",
        "/var/lib/docker/buildkit/mine",
        "/var/lib/moved/buildkit",
        "/var/lib/moved/buildkit/content/mine",
        "/var/lib/link",
        "/var/lib/told/buildkit/mine",
    ] {
        for command in ["bake", "plan", "verify", "inspect", "hydrate", "forecast"] {
            let mut arguments = vec![command, "--root", path];
            if matches!(command, "bake" | "plan") {
                arguments.push("type=local,src=/nonexistent");
            }
            let output = machine.warmkit(&arguments);
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
            assert!(errors.contains(way_out) && errors.contains("dockerd's image store"), "{errors}");
        }
    }
    assert!(!machine.path("var/lib/told").exists() && !machine.path("var/lib/docker/buildkit/mine").exists());
}

#[test]
fn what_cannot_be_looked_at_is_told() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.directory("home/ann/.config/buildkit");
    fs::set_permissions(machine.path("home/ann"), Permissions::from_mode(0o700)).unwrap();
    machine.write("etc/buildkit/buildkitd.toml", "");
    // Others may look everywhere else.
    machine.user = Some(4001);
    let said = [
        "configuration /etc/buildkit/buildkitd.toml",
        "warning: cannot read /home/ann/.config/buildkit: Permission denied (os error 13); run it under sudo",
    ];
    machine.looks(Err("there may be more targets than --for host: say that one"), &said);
    machine.user = None;
    let both = [said[0], "configuration /home/ann/.config/buildkit"];
    machine.looks(Err("as --for host or --for rootless:ann"), &both);
}

#[test]
fn the_root_that_was_found_is_baked_and_read() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    machine.write("etc/buildkit/buildkitd.toml", "");
    // Where the repository is may be hidden there.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo");
    let mut copy = Command::new("cp");
    assert!(copy.arg("-r").arg(&fixture).arg(machine.path("demo")).status().unwrap().success());
    let moved = |argument: String| {
        argument.replace(fixture.to_str().unwrap(), machine.path("demo").to_str().unwrap())
    };
    let (cache, keys) = (moved(cache()), moved(keys()));
    let report = |arguments: &[&str]| {
        let output = machine.warmkit(&[arguments, &["--for", "auto", "--json"]].concat());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["root"], "/var/lib/buildkit", "{arguments:?}: {report}");
        errors
    };
    let bake = ["bake", cache.as_str(), "--keys-from", &keys];
    report(&[&["plan"], &bake[1..]].concat());
    assert!(!machine.path("var/lib/buildkit").exists());
    report(&bake);
    let state = "    directory /var/lib/buildkit, with cache.db, runc-overlayfs";
    for command in ["verify", "inspect", "hydrate", "forecast"] {
        let errors = report(&[command]);
        assert!(errors.lines().any(|line| line == state), "{command}: {errors}");
    }
    // Said where nothing but warnings is wanted, it would be too much.
    assert_eq!(report(&["verify", "--progress", "quiet"]), "");
}

#[test]
fn programs_are_told_in_their_way() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::new();
    machine.builder("ci", "docker-container", &["ci0"]).directory("var/lib/buildkit");
    machine.docker(&[]);
    let arguments = ["verify", "--for", "auto", "--json", "--progress", "rawjson"];
    let output = machine.warmkit(&arguments);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let message = report["error"]["message"].as_str().unwrap();
    assert!(message.ends_with("say which, as --for host or --for buildx:ci"), "{message}");
    let errors = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = errors.lines().map(|line| line.parse().unwrap()).collect();
    let (error, targets) = lines.split_last().unwrap();
    assert_eq!((&error["event"], &error["message"]), (&"error".into(), &message.into()));
    let [host, builder, engine] = targets else { panic!("{errors}") };
    for (target, name, root) in [
        (host, json!("--for host"), json!("/var/lib/buildkit")),
        (builder, json!("--for buildx:ci"), json!("/var/lib/docker/volumes/buildx_buildkit_ci0_state/_data")),
        (engine, Value::Null, Value::Null),
    ] {
        let members: Vec<&str> = target.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["event", "evidence", "name", "reason", "root", "taken", "time"], "{target}");
        assert_eq!((&target["name"], &target["root"]), (&name, &root), "{target}");
        assert_eq!((&target["event"], &target["taken"]), (&"target".into(), &false.into()), "{target}");
        assert_eq!(target["reason"].is_null(), !root.is_null(), "{target}");
    }
    assert_eq!(host["evidence"], json!(["directory /var/lib/buildkit, empty"]));

    // Another machine's root is not looked for on this one.
    for (arguments, said) in [
        (
            &["verify", "--image", "--sysroot", "/var", "--for", "auto"][..],
            "--sysroot is another: name its root",
        ),
        (&["verify", "--for", "auto", "--root", "/x"][..], "leave --root away"),
    ] {
        let output = machine.warmkit(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && errors.contains(said), "{errors}");
    }
}
