//! Operation digests of a builder by its name, read while it runs.
//!
//! ```text
//! <buildx>/instances/<name>   driver, nodes (name, endpoint, flags)
//!   docker-container          docker cp buildx_buildkit_<node>:<root>/cache.db
//!   docker                    <DockerRootDir>/buildkit/cache.db of the daemon itself
//!   kubernetes, remote        out of reach from here; the error says how to get the file
//! ```
//!
//! The builder is neither stopped nor asked: its database is copied as it lies there. A copy that a commit of
//! the builder ran into is torn, so it is copied until two copies in a row are the same, or a few times. What
//! each copy had counts, since a candidate too many does no harm.
//!
//! Mirrors buildx's `store/store.go`, `util/confutil/config.go` and `driver/docker-container/driver.go` (v0.37.2).

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::daemon::{self, on_path, output};
use crate::digest::Digest;
use crate::keys::{self, Candidates, harvest};

/// How often a file is read that changes while it is read.
const ATTEMPTS: usize = 5;
/// Where the daemon in a container has its root: as root, and without.
const ROOTS: [&str; 2] = ["/var/lib/buildkit", "/home/user/.local/share/buildkit"];
/// The databases that are read; the second is there with `--save-cache-debug` only.
const FILES: [&str; 2] = ["cache.db", "cache-debug.db"];

/// Why a builder could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// buildx knows no such builder.
    #[error(
        "no builder {name:?}: {} has none of that name, nor does docker have such a context{}",
        directory.display(),
        have(known)
    )]
    Unknown {
        /// The name.
        name: String,
        /// Where buildx keeps its builders.
        directory: PathBuf,
        /// Those that are there.
        known: Vec<String>,
    },
    /// What buildx keeps of it cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What buildx keeps of it is no JSON, or has other members.
    #[error("{} is not what buildx keeps of a builder: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A driver whose files are elsewhere.
    #[error("builder {name:?} has the driver {driver:?}, whose files are not on this machine: {way_out}")]
    OutOfReach {
        /// The builder.
        name: String,
        /// Its driver.
        driver: String,
        /// How to get the file.
        way_out: String,
    },
    /// No docker to read it through.
    #[error("no docker found in $PATH, through which builders are read")]
    NoDocker,
    /// docker failed.
    #[error("node {node}: {source}")]
    Docker {
        /// The node of the builder.
        node: String,
        /// What docker said.
        #[source]
        source: daemon::Error,
    },
    /// What was copied is no solver database.
    #[error("node {node}: {source}")]
    Keys {
        /// The node of the builder.
        node: String,
        /// What is wrong with it.
        #[source]
        source: keys::Error,
    },
    /// dockerd's own builder, without the right to read its files.
    #[error("{}, the database of dockerd's own builder, cannot be read: {source}; run it under sudo, on dockerd's host", path.display())]
    OfDockerd {
        /// The database.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: keys::Error,
    },
}

fn have(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; there are {}", known.join(", ")) }
}

/// What buildx keeps of a builder.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    driver: String,
    #[serde(default)]
    nodes: Vec<Node>,
}

/// One daemon of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    name: String,
    /// A docker context, or where a docker daemon listens.
    #[serde(default)]
    endpoint: String,
    /// Arguments of buildkitd; older releases of buildx call them so, newer ones otherwise.
    #[serde(default, alias = "BuildkitdFlags")]
    flags: Option<Vec<String>>,
}

/// The candidates of every node of the builder `name`.
///
/// # Errors
/// There is no such builder, or one of its nodes cannot be read.
pub fn candidates(name: &str) -> Result<Candidates, Error> {
    read(name, &buildx_directory(|name| env::var_os(name).filter(|value| !value.is_empty())))
}

/// Where buildx keeps its state.
fn buildx_directory(var: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    if let Some(directory) = var("BUILDX_CONFIG") {
        return directory.into();
    }
    let docker = var("DOCKER_CONFIG").map(PathBuf::from);
    let home = || PathBuf::from(var("HOME").unwrap_or_else(|| "/root".into())).join(".docker");
    docker.unwrap_or_else(home).join("buildx")
}

fn read(name: &str, directory: &Path) -> Result<Candidates, Error> {
    let path = directory.join("instances").join(name);
    // A name leads nowhere else.
    let is_plain = Path::new(name).file_name().is_some_and(|file| file == name);
    let instance = match fs::read(&path) {
        Ok(bytes) if is_plain => {
            serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?
        }
        Err(source) if is_plain && source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Read { path, source });
        }
        // Every docker context is a builder of its name, without an instance.
        _ if is_context(name) => Instance {
            driver: "docker".into(),
            nodes: vec![Node { name: name.to_owned(), endpoint: name.to_owned(), flags: None }],
        },
        _ => return Err(unknown(name, directory)),
    };
    let mut all = Candidates::new();
    match instance.driver.as_str() {
        "docker-container" => {
            for node in &instance.nodes {
                all.merge(of_container(node)?);
            }
        }
        "docker" => {
            for node in &instance.nodes {
                all.merge(of_dockerd(node)?);
            }
        }
        driver => return Err(out_of_reach(name, driver)),
    }
    Ok(all)
}

fn unknown(name: &str, directory: &Path) -> Error {
    let entries = fs::read_dir(directory.join("instances")).into_iter().flatten().flatten();
    let known: BTreeSet<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    Error::Unknown {
        name: name.to_owned(),
        directory: directory.to_owned(),
        known: known.into_iter().collect(),
    }
}

fn out_of_reach(name: &str, driver: &str) -> Error {
    let then = "and give it as type=cachedb,src=cache.db";
    let way_out = match driver {
        "kubernetes" => format!(
            "copy /var/lib/buildkit/cache.db out of its pod (kubectl exec POD -- cat \
             /var/lib/buildkit/cache.db > cache.db), {then}"
        ),
        _ => format!(
            "copy cache.db from the root of that buildkitd (/var/lib/buildkit by default, on its host), {then}"
        ),
    };
    Error::OutOfReach { name: name.to_owned(), driver: driver.to_owned(), way_out }
}

/// docker, talking to the daemon at `endpoint`.
fn docker(endpoint: &str) -> Result<Command, Error> {
    let mut command = Command::new(on_path("docker").ok_or(Error::NoDocker)?);
    if endpoint.contains("://") {
        command.arg("--host").arg(endpoint);
    } else if !endpoint.is_empty() {
        command.arg("--context").arg(endpoint);
    }
    Ok(command)
}

fn is_context(name: &str) -> bool {
    name == "default"
        || on_path("docker").is_some_and(|docker| {
            output(Command::new(docker).args(["context", "inspect", "--format", "{{.Name}}", "--", name]))
                .is_ok_and(|said| said.trim() == name)
        })
}

/// The root that a node's daemon was told to use, if it was.
fn told_root(flags: &[String]) -> Option<&str> {
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        if flag == "--root" {
            return flags.next().map(String::as_str);
        }
        if let Some(root) = flag.strip_prefix("--root=") {
            return Some(root);
        }
    }
    None
}

/// Copies the databases out of a node's container.
fn of_container(node: &Node) -> Result<Candidates, Error> {
    let container = format!("buildx_buildkit_{}", node.name);
    let failed = |source| Error::Docker { node: node.name.clone(), source };
    let scratch = tempfile::tempdir().map_err(|source| {
        let path = env::temp_dir();
        failed(daemon::Error::Io { action: "make a directory in", path, source })
    })?;
    let copy = |root: &str, file: &str| -> Result<PathBuf, Error> {
        let target = scratch.path().join(file);
        let from = format!("{container}:{root}/{file}");
        output(docker(&node.endpoint)?.arg("cp").arg("--").arg(from).arg(&target)).map_err(failed)?;
        Ok(target)
    };
    let told = told_root(node.flags.as_deref().unwrap_or_default());
    let roots: Vec<&str> = told.map_or(ROOTS.to_vec(), |root| vec![root]);
    let mut all = Candidates::new();
    let mut first_error = None;
    for root in roots {
        let found =
            until_whole(|| copy(root, FILES[0]), |source| Error::Keys { node: node.name.clone(), source });
        match found {
            Ok(found) => {
                all.merge(found);
                // There only where the daemon was told to keep it.
                if let Ok(found) = until_whole(
                    || copy(root, FILES[1]),
                    |source| Error::Keys { node: node.name.clone(), source },
                ) {
                    all.merge(found);
                }
                return Ok(all);
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or(Error::NoDocker))
}

/// Reads the databases of dockerd's own builder, where they lie.
fn of_dockerd(node: &Node) -> Result<Candidates, Error> {
    let failed = |source| Error::Docker { node: node.name.clone(), source };
    let said = output(docker(&node.endpoint)?.args(["info", "--format", "{{.DockerRootDir}}"]));
    let root = PathBuf::from(said.map_err(failed)?.trim()).join("buildkit");
    let path = root.join(FILES[0]);
    let mut all = until_whole(|| Ok(path.clone()), |source| Error::OfDockerd { path: path.clone(), source })?;
    let debug = root.join(FILES[1]);
    if debug.exists()
        && let Ok(found) =
            until_whole(|| Ok(debug.clone()), |source| Error::OfDockerd { path: debug.clone(), source })
    {
        all.merge(found);
    }
    Ok(all)
}

/// Reads a database that somebody writes to, until two copies in a row are the same and whole: a torn one may
/// look whole. All that was seen counts.
fn until_whole(
    mut copy: impl FnMut() -> Result<PathBuf, Error>,
    failed: impl Fn(keys::Error) -> Error,
) -> Result<Candidates, Error> {
    let mut all = Candidates::new();
    let mut before = None;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let read = copy().and_then(|path| {
            let found = harvest::of_copy(&path).map_err(&failed)?;
            Ok((fs::read(&path).map(|bytes| Digest::of(&bytes)).ok(), found))
        });
        match read {
            Ok((digest, harvest::Copy { candidates, torn })) => {
                all.merge(candidates);
                last = None;
                if !torn && digest.is_some() && before == digest {
                    break;
                }
                before = digest;
            }
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) if all.is_empty() => Err(error),
        _ => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildx_keeps_its_state_where_it_is_told() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[("BUILDX_CONFIG", "/b"), ("DOCKER_CONFIG", "/d"), ("HOME", "/h")], "/b"),
            (&[("DOCKER_CONFIG", "/d"), ("HOME", "/h")], "/d/buildx"),
            (&[("HOME", "/h")], "/h/.docker/buildx"),
            (&[], "/root/.docker/buildx"),
        ];
        for (vars, expected) in cases {
            let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            assert_eq!(buildx_directory(var), Path::new(expected), "{vars:?}");
        }
    }

    #[test]
    fn a_daemon_may_have_another_root() {
        let cases: [(&[&str], Option<&str>); 4] = [
            (&["--debug", "--root", "/r"], Some("/r")),
            (&["--root=/r"], Some("/r")),
            (&["--rootless"], None),
            (&["--root"], None),
        ];
        for (flags, expected) in cases {
            let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
            assert_eq!(told_root(&flags), expected, "{flags:?}");
        }
    }

    #[test]
    fn what_is_out_of_reach_has_a_way_out() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("instances")).unwrap();
        for (driver, way_out) in
            [("kubernetes", "kubectl exec"), ("remote", "from the root of that buildkitd")]
        {
            let instance =
                format!("{{\"Name\":\"x\",\"Driver\":{driver:?},\"Nodes\":[{{\"Name\":\"x0\"}}]}}");
            fs::write(directory.path().join("instances/x"), instance).unwrap();
            let error = read("x", directory.path()).unwrap_err().to_string();
            assert!(error.contains(way_out) && error.contains("type=cachedb,src="), "{error}");
        }
        let error = read("no/../x", directory.path()).unwrap_err().to_string();
        assert!(error.contains("there are x"), "{error}");
        fs::write(directory.path().join("instances/x"), "[]").unwrap();
        assert!(matches!(read("x", directory.path()), Err(Error::Json { .. })));
    }
}
