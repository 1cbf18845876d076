//! Daemons that run, as `/proc` shows them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Look;
use crate::builder::Error;

const PROC: &str = "/proc";

/// A daemon that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    id: u32,
    name: String,
    /// Who runs it.
    pub(super) user: u32,
    /// It has a namespace of process ids that is not this one's, as containers have.
    pub(super) is_contained: bool,
    /// It has user ids of its own.
    pub(super) is_mapped: bool,
    /// What follows its program.
    pub(super) arguments: Vec<String>,
}

/// Those that run.
#[derive(Debug, Default)]
pub(super) struct Processes {
    pub(super) buildkitd: Vec<Process>,
    pub(super) dockerd: Vec<Process>,
}

impl Processes {
    pub(super) fn find(look: &mut Look) -> Self {
        let mut found = Self::default();
        let own_map = fs::read_to_string(Path::new(PROC).join("self/uid_map")).unwrap_or_default();
        let names = look.names(Path::new(PROC)).unwrap_or_default();
        let mut ids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        if !ids.contains(&1) {
            look.unseen.push(hidden(Path::new(PROC).join("1")));
        }
        for id in ids {
            let directory = Path::new(PROC).join(id.to_string());
            match read(&directory, id, &own_map) {
                Ok(Some(process)) if process.name == "buildkitd" => found.buildkitd.push(process),
                Ok(Some(process)) => found.dockerd.push(process),
                // One such tells of all.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    look.unseen.push(hidden(directory));
                    break;
                }
                // Another program, or one that has ended.
                Ok(None) | Err(_) => {}
            }
        }
        found
    }
}

/// That the processes of others are not shown here.
fn hidden(path: PathBuf) -> Error {
    let why = "the processes of others are not shown (hidepid)";
    Error::Read { path, source: io::Error::new(io::ErrorKind::PermissionDenied, why) }
}

fn read(directory: &Path, id: u32, own_map: &str) -> io::Result<Option<Process>> {
    let Some(status) = Status::read(&fs::read_to_string(directory.join("status"))?) else { return Ok(None) };
    let words = fs::read(directory.join("cmdline"))?;
    let map = fs::read_to_string(directory.join("uid_map"))?;
    Ok(Some(Process {
        id,
        user: status.user,
        is_contained: status.is_contained,
        is_mapped: map != own_map,
        arguments: arguments(&words, &status.name),
        name: status.name,
    }))
}

/// What `/proc/PID/status` says.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    name: String,
    user: u32,
    is_contained: bool,
}

impl Status {
    /// That of a daemon; `None` of everything else, and of one that has ended.
    fn read(text: &str) -> Option<Self> {
        let line = |name: &str| {
            text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
        };
        let name = line("Name").filter(|name| matches!(*name, "buildkitd" | "dockerd"))?;
        if line("State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return None;
        }
        // Real, effective, saved, of files.
        let user = line("Uid")?.split_whitespace().nth(1)?.parse().ok()?;
        let is_contained = line("NSpid").is_some_and(|ids| ids.split_whitespace().count() > 1);
        Some(Self { name: name.to_owned(), user, is_contained })
    }
}

/// What follows the program, also where an interpreter or a loader stands before it.
fn arguments(words: &[u8], name: &str) -> Vec<String> {
    let words = words.strip_suffix(b"\0").unwrap_or(words);
    let words: Vec<String> =
        words.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let program = words.iter().position(|word| word.rsplit('/').next() == Some(name)).unwrap_or(0);
    words.into_iter().skip(program + 1).collect()
}

/// Of a daemon's arguments those that tell where its root is, and of what kind: others may have secrets in them.
pub(super) fn telling(arguments: &[String]) -> Vec<String> {
    let is_telling = |name: &str| {
        matches!(name, "root" | "config" | "config-file" | "data-root" | "rootless")
            || name.starts_with("oci-worker")
            || name.starts_with("containerd-worker")
    };
    let mut told = Vec::new();
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(name) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { continue };
        let has_value = name.contains('=');
        if !is_telling(name.split('=').next().unwrap_or_default()) {
            continue;
        }
        told.push(argument.clone());
        if !has_value && let Some(value) = arguments.next_if(|next| !next.starts_with('-')) {
            told.push(value.clone());
        }
    }
    told
}

impl Process {
    /// How it is called, for people.
    pub(super) fn shown(&self) -> String {
        let told = telling(&self.arguments);
        let words = [std::slice::from_ref(&self.name), told.as_slice()].concat().join(" ");
        // Whoever runs it has chosen them.
        format!("process {}, {}", self.id, words.replace(char::is_control, " "))
    }

    /// A path that it was told, as seen from everywhere.
    pub(super) fn absolute(&self, path: PathBuf) -> Result<PathBuf, Error> {
        if path.is_absolute() {
            return Ok(path);
        }
        let link = Path::new(PROC).join(self.id.to_string()).join("cwd");
        match fs::read_link(&link) {
            Ok(directory) => Ok(directory.join(path)),
            Err(source) => Err(Error::Read { path: link, source }),
        }
    }

    /// A variable of its environment.
    pub(super) fn variable(&self, name: &str) -> Result<Option<String>, Error> {
        let path = Path::new(PROC).join(self.id.to_string()).join("environ");
        match fs::read(&path) {
            Ok(variables) => Ok(variables.split(|&byte| byte == 0).find_map(|variable| {
                let text = String::from_utf8_lossy(variable);
                let value = text.strip_prefix(name)?.strip_prefix('=')?;
                (!value.is_empty()).then(|| value.to_owned())
            })),
            Err(source) => Err(Error::Read { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_known_by_what_the_kernel_says() {
        let status = |name: &str, state: &str, ids: &str| {
            format!(
                "Name:\t{name}\nUmask:\t0022\nState:\t{state}\nUid:\t1000\t0\t0\t0\nNSpid:\t{ids}\nThreads:\t9\n"
            )
        };
        let daemon = |name: &str, is_contained| Some(Status { name: name.into(), user: 0, is_contained });
        for (name, state, ids, expected) in [
            ("buildkitd", "S (sleeping)", "812", daemon("buildkitd", false)),
            ("dockerd", "R (running)", "7", daemon("dockerd", false)),
            ("buildkitd", "S (sleeping)", "900\t1", daemon("buildkitd", true)),
            ("buildkitd", "Z (zombie)", "812", None),
            ("buildctl", "S (sleeping)", "812", None),
        ] {
            assert_eq!(Status::read(&status(name, state, ids)), expected, "{name} {state} {ids}");
        }
        assert_eq!(Status::read(""), None);
    }

    #[test]
    fn arguments_follow_the_program() {
        let cases: [(&[u8], &[&str]); 5] = [
            (b"buildkitd\0", &[]),
            (b"/usr/local/bin/buildkitd\0--root\0/a b\0", &["--root", "/a b"]),
            (b"/bin/sh\0/opt/buildkitd\0--debug\0", &["--debug"]),
            (b"renamed\0--root=/r\0", &["--root=/r"]),
            (b"", &[]),
        ];
        for (words, expected) in cases {
            assert_eq!(arguments(words, "buildkitd"), expected, "{words:?}");
        }
    }

    #[test]
    fn this_process_is_read_and_is_no_daemon() {
        let own = Path::new("/proc/self");
        assert_eq!(read(own, 1, "").unwrap(), None);
        let own = Process {
            id: std::process::id(),
            name: "x".into(),
            user: 0,
            is_contained: false,
            is_mapped: false,
            arguments: vec!["--root".into(), "r".into()],
        };
        let here = std::env::current_dir().unwrap();
        assert_eq!(own.absolute("r".into()).unwrap(), here.join("r"));
        assert_eq!(own.variable("PATH").unwrap(), std::env::var("PATH").ok());
        assert_eq!(own.variable("PAT").unwrap(), None);
        assert!(own.shown().ends_with(", x --root r"));
    }
}
