//! Operation digests of a builder by its name, read while it runs.
//!
//! ```text
//! docker-container          docker cp buildx_buildkit_<node>:<root>/cache.db
//! docker                    <DockerRootDir>/buildkit/cache.db of the daemon itself
//! kubernetes, remote        out of reach from here; the error says how to get the file
//! ```
//!
//! The builder is neither stopped nor asked: its database is copied as it lies there. A copy that a commit of
//! the builder ran into is torn, so it is copied until two copies in a row are the same, or a few times. What
//! each copy had counts, since a candidate too many does no harm.

use std::fs;
use std::path::PathBuf;

use crate::builder::{self, Builder, Docker, Node};
use crate::daemon::{self, output};
use crate::digest::Digest;
use crate::fsutil;
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
    /// It cannot be found.
    #[error(transparent)]
    Builder(#[from] builder::Error),
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

/// The candidates of every node of the builder `name`.
///
/// # Errors
/// There is no such builder, or one of its nodes cannot be read.
pub fn candidates(name: &str) -> Result<Candidates, Error> {
    let Builder { driver, nodes } = builder::find(name)?.ok_or_else(|| builder::unknown(name))?;
    let of_node = match driver.as_str() {
        "docker-container" => of_container,
        "docker" => of_dockerd,
        _ => return Err(out_of_reach(name, &driver)),
    };
    let mut all = Candidates::new();
    for node in &nodes {
        all.merge(of_node(node)?);
    }
    Ok(all)
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

/// Copies the databases out of a node's container.
fn of_container(node: &Node) -> Result<Candidates, Error> {
    let container = node.container();
    let docker = Docker::at(&node.endpoint);
    let failed = |source| Error::Docker { node: node.name.clone(), source };
    let parent = std::env::temp_dir();
    let scratch = fsutil::temporary_directory("warmkit-", &parent).map_err(|source| {
        failed(daemon::Error::Io { action: "make a directory in", path: parent, source })
    })?;
    let copy = |root: &str, file: &str| -> Result<PathBuf, Error> {
        let target = scratch.path().join(file);
        let from = format!("{container}:{root}/{file}");
        output(docker.command()?.arg("cp").arg("--").arg(from).arg(&target)).map_err(failed)?;
        Ok(target)
    };
    let roots: Vec<&str> = node.told_root().map_or(ROOTS.to_vec(), |root| vec![root]);
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
    Err(first_error.unwrap_or(Error::Builder(builder::Error::NoDocker)))
}

/// Reads the databases of dockerd's own builder, where they lie.
fn of_dockerd(node: &Node) -> Result<Candidates, Error> {
    let failed = |source| Error::Docker { node: node.name.clone(), source };
    let said = output(Docker::at(&node.endpoint).command()?.args(["info", "--format", "{{.DockerRootDir}}"]));
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
    fn what_is_out_of_reach_has_a_way_out() {
        for (driver, way_out) in
            [("kubernetes", "kubectl exec"), ("remote", "from the root of that buildkitd")]
        {
            let error = out_of_reach("x", driver).to_string();
            assert!(error.contains(way_out) && error.contains("type=cachedb,src="), "{error}");
        }
    }
}
