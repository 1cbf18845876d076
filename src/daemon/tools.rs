//! Finding buildkitd, its client, and what it runs containers with.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{DEFAULT_IMAGE, Error, io_error, tail};

/// How often it is looked at whether a program has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Where the programs are looked for.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// The daemon; `None`: the one in `$PATH`, else the one in [`Search::image`], through docker.
    pub buildkitd: Option<PathBuf>,
    /// Its client; `None`: beside the daemon, else in `$PATH`.
    pub buildctl: Option<PathBuf>,
    /// The docker client; `None`: the one in `$PATH`. Used only where no buildkitd is found otherwise.
    pub docker: Option<PathBuf>,
    /// Where docker has to get them; `None`: [`DEFAULT_IMAGE`].
    pub image: Option<String>,
}

/// The programs that a build needs.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The daemon.
    pub buildkitd: PathBuf,
    /// Its client.
    pub buildctl: PathBuf,
    /// What `buildkitd --version` prints.
    pub version: String,
    /// `$PATH` of the daemon: its own directory first, where the image has `buildkit-runc`.
    pub path: OsString,
}

/// Finds them: as given, in `$PATH`, or by docker, which copies them into `run`.
///
/// # Errors
/// One is not there, or docker cannot get it. [`Error::Stopped`] once it `is_stopped`: an image may take long.
pub fn find(options: &Search, run: &Path, is_stopped: &dyn Fn() -> bool) -> Result<Tools, Error> {
    let image = options.image.as_deref().unwrap_or(DEFAULT_IMAGE);
    let buildkitd = match &options.buildkitd {
        Some(given) if given.is_file() => given.clone(),
        Some(given) => {
            return Err(Error::NoProgram { program: "buildkitd", place: format!("at {}", given.display()) });
        }
        None => match on_path("buildkitd") {
            Some(found) => found,
            None => from_image(options.docker.clone(), image, &run.join("bin"), is_stopped)?,
        },
    };
    let beside = buildkitd.parent().map(|directory| directory.join("buildctl")).filter(|path| path.is_file());
    let buildctl = options.buildctl.clone().or(beside).or_else(|| on_path("buildctl"));
    let buildctl = buildctl.ok_or_else(|| Error::NoProgram {
        program: "buildctl",
        place: format!("beside {} or in $PATH", buildkitd.display()),
    })?;
    let mut path = buildkitd.parent().map(|directory| directory.as_os_str().to_owned()).unwrap_or_default();
    if let Some(inherited) = env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    let version = output_until(Command::new(&buildkitd).arg("--version"), is_stopped)?;
    Ok(Tools { buildkitd, buildctl, version: version.trim().to_owned(), path })
}

/// The program `name` in `$PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// Takes the programs out of an image. No container is run: one is made, copied from, and removed.
fn from_image(
    docker: Option<PathBuf>,
    image: &str,
    bin: &Path,
    is_stopped: &dyn Fn() -> bool,
) -> Result<PathBuf, Error> {
    let Some(docker) = docker.or_else(|| on_path("docker")) else {
        return Err(Error::NoBuildkitd { image: image.to_owned() });
    };
    copy_from_image(&docker, image, bin, is_stopped).map_err(|error| match error {
        Error::Program { .. } => Error::NotInImage { source: Box::new(error) },
        other => other,
    })
}

fn copy_from_image(
    docker: &Path,
    image: &str,
    bin: &Path,
    is_stopped: &dyn Fn() -> bool,
) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(bin).map_err(io_error("make", bin))?;
    // Quiet, so that the progress of a pull does not stand before the id.
    let mut create = Command::new(docker);
    let id = output_until(create.args(["create", "--quiet", "--pull", "missing", image]), is_stopped)?;
    let id = id.lines().last().unwrap_or_default().trim().to_owned();
    let mut copied = Ok(());
    for program in ["buildkitd", "buildctl", "buildkit-runc"] {
        let from = format!("{id}:/usr/bin/{program}");
        let mut copy = Command::new(docker);
        copied = output_until(copy.arg("cp").arg(from).arg(bin.join(program)), is_stopped).map(drop);
        if copied.is_err() {
            break;
        }
    }
    // The container goes in any case; why copying failed matters more.
    let removed = output(Command::new(docker).args(["rm", &id]));
    copied?;
    removed?;
    Ok(bin.join("buildkitd"))
}

/// Runs a program to its end and takes what it prints.
///
/// # Errors
/// It cannot be started, or fails: then with the end of what it said.
pub fn output(command: &mut Command) -> Result<String, Error> {
    output_until(command, &|| false)
}

/// As [`output`], but a program that takes longer than `limit` is killed.
///
/// # Errors
/// As [`output`], and it took longer.
pub fn output_within(command: &mut Command, limit: Duration) -> Result<String, Error> {
    let shown = shown(command);
    let start = Instant::now();
    output_until(command, &|| start.elapsed() > limit).map_err(|error| match error {
        Error::Stopped => {
            Error::Program { command: shown, detail: format!("no answer within {} s", limit.as_secs()) }
        }
        other => other,
    })
}

/// As [`output`], but the program is killed once it `is_stopped`.
pub(super) fn output_until(command: &mut Command, is_stopped: &dyn Fn() -> bool) -> Result<String, Error> {
    let shown = shown(command);
    let failed = |error: io::Error| Error::Program { command: shown.clone(), detail: error.to_string() };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (printed, said) = (all_of(child.stdout.take()), all_of(child.stderr.take()));
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if is_stopped() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Stopped);
        }
        thread::sleep(LOOK);
    };
    let text =
        |read: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&read.join().unwrap_or_default()).into_owned();
    if !status.success() {
        return Err(Error::Program { command: shown, detail: format!("{status}: {}", tail(&text(said))) });
    }
    Ok(text(printed))
}

/// Reads what a program writes, beside what is done here.
fn all_of(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // Of one that breaks off, what came until then is what there is.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    })
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}
