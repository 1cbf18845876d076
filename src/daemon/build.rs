//! A build of a Dockerfile, as `buildctl` runs it.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::steps::{Graph, Outcome};
use super::tools::Tools;
use super::{Error, io_error, tail};

/// What is built.
#[derive(Debug, Clone, Default)]
pub struct Build {
    /// The build context, a local directory.
    pub context: PathBuf,
    /// The Dockerfile; `None`: `Dockerfile` in the context.
    pub dockerfile: Option<PathBuf>,
    /// The stage to build; `None`: the last.
    pub target: Option<String>,
    /// Build arguments as `KEY=VALUE`.
    pub build_args: Vec<String>,
    /// Frontend options as `KEY=VALUE`.
    pub opts: Vec<String>,
    /// Platforms as `os/arch[/variant]`, with commas between them; `None`: the daemon's own.
    pub platform: Option<String>,
    /// Caches to import, as `buildctl --import-cache` takes them.
    pub import_caches: Vec<String>,
    /// Named contexts as `NAME=VALUE`; a value without a scheme is a local directory, as for buildx, and
    /// `oci-layout://DIR@DIGEST` an OCI layout.
    pub contexts: Vec<String>,
    /// Further arguments of `buildctl build`: `--secret …`, `--ssh …`, `--allow …`.
    pub buildctl_args: Vec<OsString>,
}

/// Whether a build is to go on after what was said of it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It goes on.
    GoOn,
    /// Its client is killed, which cancels it.
    Stop,
}

/// The longest line that is taken at once: a piece of a container's output in base64 fits.
const MAX_LINE: u64 = 16 << 20;

/// How often a build that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Lines of a trace that are read ahead.
const AHEAD: usize = 64;

impl Build {
    /// Looks for what the build takes from this machine: contexts, and the Dockerfile.
    ///
    /// # Errors
    /// Something is not there.
    pub fn require_inputs(&self) -> Result<(), Error> {
        let directory = |path: &Path| {
            let there = or_here(path).metadata().and_then(|metadata| {
                if metadata.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
            });
            there.map_err(io_error("find the build context", path))
        };
        let contexts = self.contexts.iter().filter_map(|context| context.split_once('='));
        for (_, value) in contexts {
            match layout(value) {
                Some((path, _)) => directory(Path::new(path))?,
                None if is_elsewhere(value) => {}
                None => directory(Path::new(value))?,
            }
        }
        if is_remote(&self.context.to_string_lossy()) {
            return Ok(());
        }
        directory(&self.context)?;
        let is_default = self.dockerfile.is_none();
        if is_default && self.opts.iter().any(|opt| opt.starts_with("filename=")) {
            return Ok(());
        }
        let file = self.dockerfile.clone().unwrap_or_else(|| self.context.join("Dockerfile"));
        // Which BuildKit takes too.
        let lower =
            (file.file_name() == Some(OsStr::new("Dockerfile"))).then(|| file.with_file_name("dockerfile"));
        match file.metadata() {
            Err(error) if !lower.is_some_and(|lower| lower.exists()) => {
                Err(io_error("find the Dockerfile", &file)(error))
            }
            _ => Ok(()),
        }
    }

    /// Runs the build, without any output but its progress, and calls `watch` each time more of that
    /// was read, and from time to time where nothing comes. Gives what was said of each step, and why the
    /// build failed, if it did or was stopped.
    ///
    /// The progress comes by `--trace`, which has everything, and which every release has; `--progress=rawjson`
    /// is there from v0.13 on.
    ///
    /// # Errors
    /// The client cannot be run.
    pub fn run(
        &self,
        tools: &Tools,
        address: &str,
        watch: &mut dyn FnMut(&Graph) -> Watch,
    ) -> Result<(Graph, Option<String>), Error> {
        let mut command = Command::new(&tools.buildctl);
        command.arg("--addr").arg(address).arg("build");
        self.arguments(&mut command);
        command.args(["--progress=plain", "--trace", "/dev/stdout"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed =
            |detail: String| Error::Program { command: tools.buildctl.display().to_string(), detail };
        let mut client = command.spawn().map_err(|error| failed(error.to_string()))?;
        let (trace, errors) = (client.stdout.take(), client.stderr.take());
        let mut graph = Graph::default();
        let (read, said) = thread::scope(|scope| {
            let said = scope.spawn(|| errors.map(end_of).unwrap_or_default());
            let read = trace.map_or(Ok(Watch::GoOn), |trace| follow(trace, &mut graph, watch));
            if !matches!(read, Ok(Watch::GoOn)) {
                // One that ended by itself in between is as good.
                let _ = client.kill();
            }
            (read, said.join().unwrap_or_default())
        });
        let status = client.wait().map_err(|error| failed(error.to_string()))?;
        read.map_err(|error| failed(error.to_string()))?;
        let failure = (!status.success()).then(|| format!("{status}: {}", tail(&said)));
        Ok((graph, failure))
    }

    /// As [`Build::run`], to its end or until it `is_stopped`, with what it did.
    ///
    /// # Errors
    /// The client cannot be run.
    pub fn outcome(
        &self,
        tools: &Tools,
        address: &str,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Outcome, Error> {
        let mut watch = |_: &Graph| if is_stopped() { Watch::Stop } else { Watch::GoOn };
        let (graph, failure) = self.run(tools, address, &mut watch)?;
        Ok(Outcome { failure, ..graph.outcome() })
    }

    fn arguments(&self, command: &mut Command) {
        let local = |name: &str, path: &Path| {
            let mut local = OsString::from(format!("{name}="));
            local.push(or_here(path));
            local
        };
        command.args(["--frontend", "dockerfile.v0"]);
        let mut opts: Vec<String> = Vec::new();
        let context = self.context.to_string_lossy();
        if is_remote(&context) {
            opts.push(format!("context={context}"));
        } else {
            command.arg("--local").arg(local("context", &self.context));
        }
        match &self.dockerfile {
            None if is_remote(&context) => {}
            Some(file) if is_remote(&context) => opts.push(format!("filename={}", file.display())),
            None => {
                command.arg("--local").arg(local("dockerfile", &self.context));
            }
            Some(file) => {
                command.arg("--local").arg(local("dockerfile", file.parent().unwrap_or(Path::new("."))));
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                opts.push(format!("filename={name}"));
            }
        }
        opts.extend(self.target.iter().map(|target| format!("target={target}")));
        opts.extend(self.platform.iter().map(|platform| format!("platform={platform}")));
        opts.extend(self.build_args.iter().map(|arg| format!("build-arg:{arg}")));
        opts.extend(self.opts.iter().cloned());
        let contexts = self.contexts.iter().filter_map(|context| context.split_once('='));
        for (at, (name, value)) in contexts.enumerate() {
            if let Some((path, digest)) = layout(value) {
                // The daemon asks its client for what it needs of it, by this name.
                let mut store = OsString::from(format!("layout{at}="));
                store.push(path);
                command.arg("--oci-layout").arg(store);
                opts.push(format!("context:{name}=oci-layout://layout{at}@{digest}"));
            } else if is_elsewhere(value) {
                opts.push(format!("context:{name}={value}"));
            } else {
                command.arg("--local").arg(local(&format!("context:{name}"), Path::new(value)));
                opts.push(format!("context:{name}=local:context:{name}"));
            }
        }
        for opt in opts {
            command.arg("--opt").arg(opt);
        }
        for cache in &self.import_caches {
            command.arg("--import-cache").arg(cache);
        }
        command.args(&self.buildctl_args);
    }
}

/// Reads a trace to its end, or until `watch` has seen enough; then whoever writes it has to be ended.
fn follow(
    trace: impl Read + Send + 'static,
    graph: &mut Graph,
    watch: &mut dyn FnMut(&Graph) -> Watch,
) -> io::Result<Watch> {
    let (send, lines) = mpsc::sync_channel(AHEAD);
    // Ends with the trace, or with the first line that nobody takes any more.
    thread::spawn(move || {
        let mut trace = BufReader::new(trace);
        loop {
            let mut line = Vec::new();
            let read = trace.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
            if matches!(read, Ok(0)) || send.send(read.map(|_| line)).is_err() {
                return;
            }
        }
    });
    loop {
        let is_news = match lines.recv_timeout(LOOK) {
            Ok(line) => graph.read(&line?),
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => return Ok(Watch::GoOn),
        };
        if is_news && watch(graph) == Watch::Stop {
            return Ok(Watch::Stop);
        }
    }
}

/// The end of what a client says, without what it says of steps: `#<number> …`.
fn end_of(errors: impl Read) -> String {
    let mut lines = BufReader::new(errors);
    let mut line = Vec::new();
    let mut said = String::new();
    loop {
        line.clear();
        if !lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            return said;
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() || is_progress(&text) {
            continue;
        }
        said.push_str(&text);
        if said.len() > 1 << 16 {
            said = tail(&said);
            said.push('\n');
        }
    }
}

fn is_progress(line: &str) -> bool {
    let number = line.strip_prefix('#').and_then(|rest| rest.split_once(' ')).map(|(number, _)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// A directory, which no name at all is this one.
fn or_here(directory: &Path) -> &Path {
    if directory.as_os_str().is_empty() { Path::new(".") } else { directory }
}

/// Directory and digest of a context that is an OCI layout.
fn layout(context: &str) -> Option<(&str, &str)> {
    context.strip_prefix("oci-layout://")?.rsplit_once('@')
}

/// Whether a named context is no directory of this machine.
fn is_elsewhere(context: &str) -> bool {
    is_remote(context) || context.starts_with("target:")
}

/// Whether a context is one that the daemon gets by itself.
fn is_remote(context: &str) -> bool {
    context.contains("://") || context.starts_with("git@") || context.starts_with("github.com/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_client_says_the_steps_are_left_aside() {
        let said =
            "#1 [internal] load\n#1 DONE 0.0s\n\n#12 0.031 output\nerror: failed to solve: no #5\n# 1\n";
        assert_eq!(end_of(said.as_bytes()), "error: failed to solve: no #5\n# 1\n");
        assert!(end_of("x\n".repeat(1 << 20).as_bytes()).len() <= 1 << 17);
    }
}
