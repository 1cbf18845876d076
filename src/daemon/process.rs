//! The daemon, and the shell that sees to its end.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::tools::output_until;
use super::{Error, Tools, io_error, tail};

/// How long a daemon may take until it answers: it reads its databases, and a slow disk is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The option that says where the socket for traces goes, which daemons may not share.
const TRACES: &str = "--otel-socket-path";

/// Runs the daemon (`$3…`) and ends it when its input says so, or ends: then whoever started it was
/// killed, and the directories `$1` and `$2` go too.
const GUARD: &str = r#"
run=$1 scratch=$2
shift 2
exec 3<&0
"$@" </dev/null &
daemon=$!
{
    read -r word <&3 || : >"$run/orphaned"
    kill -TERM "$daemon"
    waited=0
    while kill -0 "$daemon" && [ "$waited" -lt 30 ]; do
        sleep 1
        waited=$((waited + 1))
    done
    kill -KILL "$daemon"
    if [ -e "$run/orphaned" ]; then
        while read -r _ _ _ _ point _; do
            case $point in
            "$scratch"/*) umount -l -- "$(printf '%b' "$point")" ;;
            esac
        done </proc/self/mountinfo
        rm -rf -- "$scratch" "$run"
    fi
} 2>/dev/null &
guard=$!
wait "$daemon"
status=$?
[ -e "$run/orphaned" ] || kill "$guard" 2>/dev/null
exit "$status"
"#;

/// What a daemon is started on.
pub struct Start<'a> {
    /// Its root.
    pub root: &'a Path,
    /// Where its log goes; removed with `scratch` when this process is killed.
    pub run: &'a Path,
    /// Where its sockets go: `run`, or a directory in it that is the daemon's own.
    pub own: &'a Path,
    /// What has its root, and what is mounted for it.
    pub scratch: &'a Path,
    /// Its configuration; `None`: an empty one, not the machine's.
    pub config: Option<&'a Path>,
    /// Its snapshotter.
    pub snapshotter: &'a str,
    /// A program that runs it, with its arguments; empty where none does.
    pub through: &'a [OsString],
    /// Further arguments of buildkitd.
    pub arguments: &'a [OsString],
    /// Asked while it is waited for, until its first answer: whether to give up.
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Variables of its environment that differ from those of this process; `None`: not there.
    pub environment: &'a [(OsString, Option<OsString>)],
}

/// A running daemon; ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    guard: Child,
    /// Open as long as the daemon is to run.
    word: Option<ChildStdin>,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it answers. `prepare` runs in the thread that starts it: what it does to the
    /// namespaces of that thread holds for the daemon, and for nothing else.
    ///
    /// # Errors
    /// It cannot be started, ends, or does not answer.
    pub fn start<E: From<Error> + Send>(
        tools: &Tools,
        start: &Start<'_>,
        prepare: impl FnOnce() -> Result<(), E> + Send,
    ) -> Result<Self, E> {
        let Start { root, run, own, scratch, .. } = *start;
        let log = run.join("log");
        let socket = own.join("sock");
        let config = if let Some(config) = start.config {
            // A daemon takes a file that is not there for an empty one.
            File::open(config).map_err(io_error("read", config))?;
            config.to_owned()
        } else {
            let path = run.join("buildkitd.toml");
            fs::write(&path, "").map_err(io_error("write", &path))?;
            fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(io_error("write", &path))?;
            path
        };
        let logged = File::create(&log).map_err(io_error("make", &log))?;
        let errors = logged.try_clone().map_err(io_error("open", &log))?;
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "sh"]).arg(run).arg(scratch).args(start.through).arg(&tools.buildkitd);
        command.arg("--config").arg(&config).arg("--root").arg(root);
        command.arg("--addr").arg(format!("unix://{}", socket.display()));
        // From v0.13 on; before, that socket is there only where tracing was asked for.
        let mut help = Command::new(&tools.buildkitd);
        if output_until(help.arg("--help"), start.is_stopped)?.contains(TRACES) {
            command.arg(TRACES).arg(own.join("otel.sock"));
        }
        // Nothing here lives long enough to be collected.
        command.args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false"]);
        command.args(["--oci-worker-snapshotter", start.snapshotter]).args(start.arguments);
        for (name, value) in start.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("PATH", &tools.path).stdin(Stdio::piped()).stdout(logged).stderr(errors);
        // An interrupt from the terminal ends us; the daemon then ends as it should, by the guard.
        command.process_group(0);
        // A thread of its own, so that its namespaces are not those of this process.
        let started = thread::scope(|scope| {
            scope
                .spawn(move || {
                    prepare()?;
                    command.spawn().map_err(io_error("run", Path::new("sh"))).map_err(E::from)
                })
                .join()
        });
        let mut guard = match started {
            Ok(started) => started?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let word = guard.stdin.take();
        let mut daemon = Self { guard, word, socket, log };
        daemon.wait_for_answer(tools, start.is_stopped)?;
        Ok(daemon)
    }

    fn wait_for_answer(&mut self, tools: &Tools, is_stopped: &dyn Fn() -> bool) -> Result<(), Error> {
        let begin = Instant::now();
        let mut asking: Option<Child> = None;
        let answer = loop {
            if let Ok(Some(status)) = self.guard.try_wait() {
                break Err(Error::Ended { status, log: self.log_tail() });
            }
            if is_stopped() {
                break Err(Error::Stopped);
            }
            if begin.elapsed() > PATIENCE {
                break Err(Error::NoAnswer { seconds: PATIENCE.as_secs(), log: self.log_tail() });
            }
            // A client of a daemon that hangs does so too, so it is not waited for.
            match asking.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => {}
                Some(Ok(Some(status))) if status.success() => return Ok(()),
                _ if !self.socket.exists() => {}
                _ => asking = self.ask(tools).ok(),
            }
            thread::sleep(Duration::from_millis(20));
        };
        if let Some(mut client) = asking {
            let _ = client.kill();
            let _ = client.wait();
        }
        answer
    }

    fn ask(&self, tools: &Tools) -> io::Result<Child> {
        let mut client = Command::new(&tools.buildctl);
        client.arg("--addr").arg(self.address()).args(["debug", "workers"]);
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        client.spawn()
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn log_tail(&self) -> String {
        tail(&String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()))
    }

    /// Ends it and waits for its end.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut word) = self.word.take() {
            // Where this fails the guard is gone, and the daemon before it.
            let _ = word.write_all(b"end\n");
        }
        let _ = self.guard.wait();
    }
}
