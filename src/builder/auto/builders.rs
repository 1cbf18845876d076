//! Builders of buildx, and the docker that they are in.

use std::env;
use std::path::{Path, PathBuf};

use super::{Look, Process, Processes, Way};
use crate::builder::buildx::{self, Builder, Node};
use crate::builder::docker::Docker;
use crate::builder::root::DRIVER;
use crate::builder::{Error, Target, data_root, user};
use crate::daemon::on_path;

pub(super) fn look(look: &mut Look, daemons: &Processes) {
    let directory = buildx::directory();
    let (mut known, mut nodes) = (Vec::new(), 0);
    for name in look.kept(buildx::names(&directory)).unwrap_or_default() {
        let Some(Some(builder)) = look.kept(buildx::find(&name)) else { continue };
        known.extend(builder.nodes.iter().map(Node::volume));
        if builder.driver == DRIVER {
            nodes += builder.nodes.len();
        }
        sign(look, &directory, name, &builder);
    }
    of_sudo(look, &directory);
    let of_buildx = known.len();
    let engine = docker(look, &mut known);
    if let Some(path) = engine.or_else(|| state_of_engine(daemons)) {
        for process in daemons.dockerd.iter().filter(|process| !process.is_contained) {
            look.sign(Way::Engine(path.clone()), process.shown());
        }
        if look.is_there(&path) {
            look.sign(Way::Engine(path.clone()), format!("directory {}", path.display()));
        }
    }
    // Which of them is whose is known inside of them only: as many as there are nodes may be those of builders.
    let contained: Vec<_> = daemons.buildkitd.iter().filter(|process| process.is_contained).collect();
    if contained.len() > nodes + known.len() - of_buildx {
        for process in contained {
            look.unseen.push(Error::Contained { process: process.shown() });
        }
    }
}

/// A builder that buildx keeps, with a root for each of its nodes.
fn sign(look: &mut Look, directory: &Path, name: String, builder: &Builder) {
    let Builder { driver, nodes } = builder;
    let evidence = format!("builder of the driver {driver} in {}", directory.display());
    if driver != DRIVER || nodes.len() < 2 {
        look.sign(Target::Buildx { name, node: None }, evidence);
        return;
    }
    for node in nodes {
        look.sign(Target::Buildx { name: name.clone(), node: Some(node.name.clone()) }, evidence.clone());
    }
}

/// Builders of the user who calls sudo, where those are not the ones that are looked at.
fn of_sudo(look: &mut Look, looked_at: &Path) {
    if env::var_os("BUILDX_CONFIG").is_some() || env::var_os("DOCKER_CONFIG").is_some() {
        return;
    }
    let account = env::var("SUDO_USER").ok().and_then(|name| user::account(&name).ok());
    let Some(home) = account.and_then(|account| account.home) else { return };
    let directory = home.join(".docker/buildx");
    if directory == looked_at {
        return;
    }
    let names = look.kept(buildx::names(&directory)).unwrap_or_default();
    if !names.is_empty() {
        look.unseen.push(Error::OthersBuilders { directory, names });
    }
}

/// Looks at docker itself, or at what it has left; gives where its own builder keeps its state, if it is there. Volumes of
/// builders that are seen here first become known.
fn docker(look: &mut Look, known: &mut Vec<String>) -> Option<PathBuf> {
    let docker = Docker::at("");
    let host = match docker.host() {
        Ok(host) => host,
        // A context, and no client that knows it.
        Err(error) => {
            look.unseen.push(error);
            return None;
        }
    };
    let is_up = match docker.is_up("default") {
        Ok(is_up) => is_up,
        // What is elsewhere is no target of this machine.
        Err(Error::Remote { .. }) => return None,
        Err(error) => {
            look.unseen.push(error);
            return None;
        }
    };
    let data_root = if is_up && on_path("docker").is_some() {
        let info = look.kept(docker.info())?;
        if info.is_rootless() {
            look.sign(Way::Engine(info.docker_root_dir.join(data_root::ENGINE)), format!("docker at {host}"));
            return None;
        }
        for name in look.kept(docker.volumes()).unwrap_or_default() {
            volume(look, known, &name, &format!("of docker at {host}"));
        }
        info.docker_root_dir
    } else {
        let data_root = match data_root::find(&host) {
            Ok(data_root) => data_root,
            // None of this machine.
            Err(Error::NoDataRoot { .. } | Error::NotTheMachines { .. }) => return None,
            Err(error) => {
                look.unseen.push(error);
                return None;
            }
        };
        let volumes = data_root.join("volumes");
        for name in look.names(&volumes).unwrap_or_default() {
            volume(look, known, &name, &format!("in {}", volumes.display()));
        }
        data_root
    };
    let engine = data_root.join(data_root::ENGINE);
    if is_up {
        look.sign(Way::Engine(engine.clone()), format!("docker at {host}"));
    }
    Some(engine)
}

/// A volume of docker, which may be that of a builder whose user has it elsewhere.
fn volume(look: &mut Look, known: &mut Vec<String>, name: &str, place: &str) {
    if let Some((builder, node)) = owner(name).filter(|_| !known.iter().any(|known| known == name)) {
        look.sign(Target::Buildx { name: builder, node }, format!("volume {name} {place}"));
        known.push(name.to_owned());
    }
}

/// The builder and the node that are named so that they have this volume.
fn owner(volume: &str) -> Option<(String, Option<String>)> {
    let node = volume.strip_prefix("buildx_buildkit_")?.strip_suffix("_state")?;
    let node = Some(node).filter(|node| buildx::is_name(node))?.to_owned();
    match node.strip_suffix('0').filter(|name| buildx::is_name(name)) {
        Some(name) => Some((name.to_owned(), None)),
        None => Some((node.clone(), Some(node))),
    }
}

/// Where dockerd's own builder keeps its state while one runs that does not answer here.
fn state_of_engine(daemons: &Processes) -> Option<PathBuf> {
    let is_running = daemons.dockerd.iter().any(|process: &Process| !process.is_contained);
    is_running.then(data_root::of_engine)?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_after_its_node() {
        for (volume, expected) in [
            ("buildx_buildkit_ci0_state", Some(("ci", None))),
            ("buildx_buildkit_a.b-c0_state", Some(("a.b-c", None))),
            ("buildx_buildkit_ci10_state", Some(("ci1", None))),
            ("buildx_buildkit_gpu_state", Some(("gpu", Some("gpu")))),
            ("buildx_buildkit_ci1_state", Some(("ci1", Some("ci1")))),
            ("buildx_buildkit__state", None),
            ("buildx_buildkit_0_state", None),
            ("buildx_buildkit_ci0", None),
            ("data", None),
        ] {
            let found = owner(volume);
            let found = found.as_ref().map(|(name, node)| (name.as_str(), node.as_deref()));
            assert_eq!(found, expected, "{volume}");
            if let Some((name, node)) = expected {
                let node = node.map_or_else(|| format!("{name}0"), str::to_owned);
                assert_eq!(format!("buildx_buildkit_{node}_state"), volume);
            }
        }
    }
}
