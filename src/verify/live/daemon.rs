//! The daemon on the view, and the shell that sees to its end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::tools::Tools;
use super::view::View;
use super::{LiveError, LiveOptions, tail};

/// How long a daemon may take until it answers: it reads its databases, and a slow disk is slow.
const PATIENCE: Duration = Duration::from_secs(120);

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

/// A running daemon; ended when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    guard: Child,
    /// Open as long as the daemon is to run.
    word: Option<ChildStdin>,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts it on the view and waits until it answers.
    pub(super) fn start(
        tools: &Tools,
        view: View,
        run: &Path,
        scratch: &Path,
        options: &LiveOptions,
    ) -> Result<Self, LiveError> {
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| LiveError::View { action, path, source }
        };
        let log = run.join("log");
        let socket = run.join("sock");
        let config = if let Some(config) = &options.buildkitd_config {
            config.clone()
        } else {
            let path = run.join("buildkitd.toml");
            fs::write(&path, "").map_err(fail("write", &path))?;
            path
        };
        let output = File::create(&log).map_err(fail("make", &log))?;
        let errors = output.try_clone().map_err(fail("open", &log))?;
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "sh"]).arg(run).arg(scratch).arg(&tools.buildkitd);
        command.arg("--config").arg(&config).arg("--root").arg(&view.root);
        command.arg("--addr").arg(format!("unix://{}", socket.display()));
        command.arg("--otel-socket-path").arg(run.join("otel.sock"));
        // What a daemon would collect here is no business of a verification.
        command.args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false"]);
        command.args(["--oci-worker-snapshotter", "overlayfs"]);
        command.env("PATH", &tools.path).stdin(Stdio::piped()).stdout(output).stderr(errors);
        // An interrupt from the terminal ends us; the daemon then ends as it should, by the guard.
        command.process_group(0);
        // The namespace is that of a thread of its own, and of what it starts.
        let started = thread::spawn(move || {
            view.enter()?;
            let shell = PathBuf::from("sh");
            command.spawn().map_err(|source| LiveError::View { action: "run", path: shell, source })
        });
        let mut guard = match started.join() {
            Ok(started) => started?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let word = guard.stdin.take();
        let mut daemon = Self { guard, word, socket, log };
        daemon.wait_for_answer(tools)?;
        Ok(daemon)
    }

    fn wait_for_answer(&mut self, tools: &Tools) -> Result<(), LiveError> {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.guard.try_wait() {
                return Err(LiveError::Ended { status, log: self.log_tail() });
            }
            let mut client = Command::new(&tools.buildctl);
            client.arg("--addr").arg(self.address()).args(["debug", "workers"]);
            client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if self.socket.exists() && client.status().as_ref().is_ok_and(ExitStatus::success) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(LiveError::NoAnswer { seconds: PATIENCE.as_secs(), log: self.log_tail() });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn log_tail(&self) -> String {
        tail(&String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()))
    }

    /// Ends it and waits for its end.
    pub(super) fn stop(self) {
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
