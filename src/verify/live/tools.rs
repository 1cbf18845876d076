//! Finding buildkitd, its client, and what it runs containers with.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{DEFAULT_IMAGE, LiveError, LiveOptions, tail};

/// The programs that a build needs.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) buildkitd: PathBuf,
    pub(super) buildctl: PathBuf,
    /// What `buildkitd --version` prints.
    pub(super) version: String,
    /// `$PATH` of the daemon: its own directory first, where the image has `buildkit-runc`.
    pub(super) path: OsString,
}

/// Finds them: as given, in `$PATH`, or by docker, which copies them into `run`.
pub(super) fn find(options: &LiveOptions, run: &Path) -> Result<Tools, LiveError> {
    let image = options.image.as_deref().unwrap_or(DEFAULT_IMAGE);
    let buildkitd = match &options.buildkitd {
        Some(given) if given.is_file() => given.clone(),
        Some(given) => {
            return Err(LiveError::NoProgram {
                program: "buildkitd",
                place: format!("at {}", given.display()),
            });
        }
        None => match on_path("buildkitd") {
            Some(found) => found,
            None => from_image(options.docker.clone(), image, &run.join("bin"))?,
        },
    };
    let beside = buildkitd.parent().map(|directory| directory.join("buildctl")).filter(|path| path.is_file());
    let buildctl = options.buildctl.clone().or(beside).or_else(|| on_path("buildctl"));
    let buildctl = buildctl.ok_or_else(|| LiveError::NoProgram {
        program: "buildctl",
        place: format!("beside {} or in $PATH", buildkitd.display()),
    })?;
    let mut path = buildkitd.parent().map(|directory| directory.as_os_str().to_owned()).unwrap_or_default();
    if let Some(inherited) = env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    let version = output(Command::new(&buildkitd).arg("--version"))?;
    Ok(Tools { buildkitd, buildctl, version: version.trim().to_owned(), path })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// Takes the programs out of an image. No container is run: one is made, copied from, and removed.
fn from_image(docker: Option<PathBuf>, image: &str, bin: &Path) -> Result<PathBuf, LiveError> {
    let Some(docker) = docker.or_else(|| on_path("docker")) else {
        return Err(LiveError::NoBuildkitd { image: image.to_owned() });
    };
    let make = |source| LiveError::View { action: "make", path: bin.to_owned(), source };
    std::fs::create_dir_all(bin).map_err(make)?;
    // Quiet, so that the progress of a pull does not stand before the id.
    let id = output(Command::new(&docker).args(["create", "--quiet", "--pull", "missing", image]))?;
    let id = id.lines().last().unwrap_or_default().trim().to_owned();
    let mut copied = Ok(());
    for program in ["buildkitd", "buildctl", "buildkit-runc"] {
        let from = format!("{id}:/usr/bin/{program}");
        copied = output(Command::new(&docker).arg("cp").arg(from).arg(bin.join(program))).map(drop);
        if copied.is_err() {
            break;
        }
    }
    // The container goes in any case; why copying failed matters more.
    let removed = output(Command::new(&docker).args(["rm", &id]));
    copied?;
    removed?;
    Ok(bin.join("buildkitd"))
}

/// Runs a program to its end and takes what it prints.
pub(super) fn output(command: &mut Command) -> Result<String, LiveError> {
    let shown = shown(command);
    let ended = command
        .output()
        .map_err(|error| LiveError::Program { command: shown.clone(), detail: error.to_string() })?;
    if !ended.status.success() {
        let detail = format!("{}: {}", ended.status, tail(&String::from_utf8_lossy(&ended.stderr)));
        return Err(LiveError::Program { command: shown, detail });
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}
