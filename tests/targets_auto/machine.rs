//! A machine with namespaces of its own: what is on it a test lays out, and what systemd and docker would say that
//! stand-ins say.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::command::{Ended, run};
use super::support::shipped::demo;

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
by() {
    user=$1
    shift
    HOME=$(sed -n "s|^[^:]*:x:$user:[^:]*:[^:]*:\\([^:]*\\):.*|\\1|p" /etc/passwd) \
        USER=$(sed -n "s|^\\([^:]*\\):x:$user:.*|\\1|p" /etc/passwd) \
        "$setpriv" "--reuid=$user" "--regid=$user" --clear-groups "$@"
}
as() {
    start by "$@"
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

/// How long all of a machine may take.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Machine {
    dir: tempfile::TempDir,
    /// Only held: what asks whether dockerd is there connects to it.
    listening: Option<UnixListener>,
    /// What starts its daemons.
    pub(super) daemons: String,
    pub(super) variables: Vec<(String, String)>,
    pub(super) user: Option<u32>,
    /// What runs warmkit: a program, and its arguments.
    pub(super) within: Vec<String>,
}

impl Machine {
    /// One with nothing on it, but for its users.
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("wk-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let machine = Self {
            dir,
            listening: None,
            daemons: String::new(),
            variables: Vec::new(),
            user: None,
            within: Vec::new(),
        };
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> &Self {
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

    pub(super) fn directory(&self, name: &str) -> &Self {
        fs::create_dir_all(self.path(name)).unwrap();
        self.give(name)
    }

    pub(super) fn program(&self, name: &str, script: &str) -> &Self {
        self.write("draft", script);
        // By another process: a file that a child of another thread may have open for writing does not run.
        let mut install = Command::new("install");
        install.args(["-m", "755"]).arg(self.path("draft")).arg(self.path("bin").join(name));
        assert!(install.status().unwrap().success());
        self
    }

    /// What `systemctl show` says of a unit that runs.
    pub(super) fn unit(&self, unit: &str, arguments: &str) -> &Self {
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\n[ \"$last\" = {unit} ] || exit 0\ncase $2 in\n\
             *ActiveState) echo active ;;\n\
             *ExecStart) echo '{{ path=/usr/sbin/x ; argv[]=/usr/sbin/x {arguments} ; ignore_errors=no ; pid=0 }}' ;;\n\
             esac\n"
        );
        self.program("systemctl", &script)
    }

    /// Puts a program of this machine's there, under its name.
    pub(super) fn real(&self, program: &Path) -> &Self {
        let name = program.file_name().unwrap().to_str().unwrap();
        let listed = fs::read_to_string(self.path("real")).unwrap();
        self.write(&format!("bin/{name}"), "");
        self.write("real", &format!("{listed}{name} {}\n", program.display()))
    }

    /// Waits until a daemon that was started last answers. Each answer takes its time; one that has ended gives none.
    pub(super) fn answers(&mut self, buildctl: &str) -> &mut Self {
        self.runs(&format!(
            "until {buildctl} debug workers >\"$files/said\" 2>&1; do kill -0 $!; sleep 0.1; done"
        ))
    }

    /// Runs a daemon: a line of shell, after `start`, `as USER` or `contained`; without one of these, of a real one.
    pub(super) fn runs(&mut self, line: &str) -> &mut Self {
        self.daemons += line;
        self.daemons += "\n";
        self
    }

    /// A builder of buildx, of root.
    pub(super) fn builder(&self, name: &str, driver: &str, nodes: &[&str]) -> &Self {
        let nodes: Vec<Value> = nodes.iter().map(|node| json!({"Name": node, "Endpoint": ""})).collect();
        let instance = json!({"Name": name, "Driver": driver, "Nodes": nodes, "Dynamic": false});
        self.write(&format!("root/.docker/buildx/instances/{name}"), &instance.to_string())
    }

    /// A docker that answers, with these volumes.
    pub(super) fn docker(&mut self, volumes: &[&str]) -> &mut Self {
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

    /// Starts its daemons, and runs a command of this program. All of it ends with that, or after [`LIMIT`].
    pub(super) fn warmkit(&self, arguments: &[&str]) -> Ended {
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
            // With another user it would not end with its machine.
            command.args(["--clear-groups", "--pdeathsig", "keep"]);
        }
        command.args(&self.within).arg(self.path("bin/warmkit")).args(arguments);
        for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "BUILDX_CONFIG", "SUDO_USER"] {
            command.env_remove(name);
        }
        for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "SOURCE_DATE_EPOCH"] {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        run(&mut command, LIMIT)
    }

    /// Copies the cache that ships to it: where the repository is may be hidden there.
    pub(super) fn shipped(&self) {
        let mut copy = Command::new("cp");
        assert!(copy.arg("-r").arg(demo("")).arg(self.path("demo")).status().unwrap().success());
    }

    /// Where an argument says a path of that cache, with that of its copy.
    pub(super) fn moved(&self, argument: &str) -> String {
        argument.replace(demo("").to_str().unwrap(), &format!("{}/", self.path("demo").display()))
    }

    /// Asserts that this is said, and nothing else of targets: what is taken, or why nothing is.
    #[track_caller]
    pub(super) fn looks(&self, taken: Result<&str, &str>, said: &[&str]) {
        // Nothing can be read there: that is known after the target is.
        let output = self.warmkit(&["plan", "type=local,src=/nonexistent", "--for", "auto"]);
        let errors = output.stderr;
        let last = errors.lines().rfind(|line| line.starts_with("error: ")).unwrap_or(&errors);
        let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("taken: ")).collect();
        match taken {
            Ok(way) => {
                // Or the target is not empty, its containerd is none, or this program cannot ask one: known before.
                let (of_containerd, code) = (way.contains("containerd"), output.status.code());
                let is_ended = match code {
                    Some(1) => of_containerd && last.starts_with("error: no containerd at "),
                    Some(2) if !cfg!(feature = "containerd") => {
                        of_containerd && last.contains("without the feature `containerd`")
                    }
                    code => matches!(code, Some(3 | 7)),
                };
                assert!(is_ended, "{errors}");
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
