//! The root of a builder: its directory, and what stands around it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::buildx::{self, Builder, Node};
use super::docker::{Container, Docker};
use super::settings::{CONFIG_VARIABLE, DEFAULT_CONFIG, DEFAULT_ROOT, Settings, Told, argument};
use super::{Error, data_root, unit, user};
use crate::userns::{OutOfRange, Owners};

/// What a rootless daemon in a container does.
const ROOTLESS: &str =
    "runs rootless: the owners in its volume are shifted in a way that is known only in its container";
/// The driver whose roots are in volumes.
pub(super) const DRIVER: &str = "docker-container";
/// The units that start the host's own daemon, where packages bring one.
pub(super) const UNITS: [&str; 2] = ["buildkit.service", "buildkitd.service"];

/// A root that was found, whether or not there is anything yet.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    kind: Kind,
    told: Told,
    /// Who runs its daemon, where that is a plain user.
    user: Option<String>,
    volume: Option<Volume>,
}

/// What its daemon finds: a root of another kind it takes for an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kind {
    /// The snapshotter that it is told to use; `None` where it is told none.
    pub snapshotter: Option<String>,
    /// Whose its files are.
    pub owners: Owners,
    /// Who keeps its layers, where that is not the root.
    pub containerd: Option<Containerd>,
}

/// A containerd that keeps the layers of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containerd {
    /// Path of its socket, with or without `unix://`.
    pub address: String,
    /// The namespace that they are in.
    pub namespace: String,
}

/// The volume of a node that a root is in.
#[derive(Debug)]
struct Volume {
    name: String,
    owner: Owner,
    /// Where the root is in it; empty: it is the volume.
    within: PathBuf,
    /// The docker that keeps it, where it runs.
    docker: Option<Docker>,
    is_there: bool,
    /// Its node has a container, or may have one where docker cannot be asked.
    has_container: bool,
    /// Running containers that use it.
    users: Vec<String>,
    /// Made by this one, and not yet used.
    is_new: bool,
}

/// Whose it is.
#[derive(Debug, Clone)]
struct Owner {
    builder: String,
    node: Node,
    /// buildx has that builder.
    is_known: bool,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of builder {}", self.node.name, self.builder)
    }
}

impl Root {
    /// A directory, whosever it is.
    pub fn at(path: &Path) -> Self {
        Self::of(path.to_owned(), Kind::default())
    }

    /// A directory of a daemon that finds roots of this kind.
    pub(super) fn of(path: PathBuf, kind: Kind) -> Self {
        Self { path, kind, told: Told::default(), user: None, volume: None }
    }

    /// The same, of a daemon that is told this.
    pub(super) fn told(mut self, told: Told) -> Self {
        self.told = told;
        self
    }

    /// The same, of a daemon that this user runs.
    pub(super) fn run_by(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The same in another directory, where it is in no volume.
    #[must_use]
    pub fn moved_to(self, path: &Path) -> Self {
        Self::of(path.to_owned(), self.kind.clone()).told(self.told.clone())
    }

    /// What its daemon finds.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What its daemon is told of garbage collection.
    pub fn configuration(&self) -> &Told {
        &self.told
    }

    /// How a plain user writes it, where it is that of the user's own daemon.
    pub fn way_in(&self) -> Option<String> {
        self.user.as_ref().map(|_| user::way_in())
    }

    /// What gives its user an id that a layer needs, and the user has not.
    pub fn wider_range(&self, missing: &OutOfRange) -> Option<String> {
        user::wider_range(self.user.as_ref()?, &self.kind.owners, missing)
    }

    /// Its directory, which may not be there yet.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What in its path its daemon takes for a separator where it mounts layers. Such mounts fail: builds do with them where
    /// it is told a snapshotter that mounts, and where it is told none it takes native.
    ///
    /// Mirrors the options of overlay mounts, of the kernel and of fuse-overlayfs, in which containerd's snapshotters
    /// and `BuildKit` (v0.17.3, v0.34.2) escape nothing.
    pub fn separator(&self) -> Option<char> {
        // A volume is at the same path in all containers.
        let path = match &self.volume {
            Some(volume) => volume.within.clone(),
            None => std::path::absolute(&self.path).ok()?,
        };
        path.to_string_lossy().chars().find(|char| [',', ':'].contains(char))
    }

    /// Refuses where a container runs on it.
    ///
    /// # Errors
    /// One does.
    pub fn require_idle(&self) -> Result<(), Error> {
        match &self.volume {
            Some(volume) if !volume.users.is_empty() => Err(Error::Running {
                whose: volume.owner.to_string(),
                containers: volume.users.clone(),
                stop: volume.stop(),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses where there is no volume yet.
    ///
    /// # Errors
    /// There is none.
    pub fn require_there(&self) -> Result<(), Error> {
        match &self.volume {
            Some(volume) if !volume.is_there => {
                Err(Error::NoVolume { whose: volume.owner.to_string(), volume: volume.name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Makes the volume, where docker runs and has none. It goes again with this value, unless [`Self::keep`] was
    /// called before.
    ///
    /// # Errors
    /// docker cannot make it, or makes it somewhere else than on this machine.
    pub fn make(&mut self) -> Result<(), Error> {
        let Some(volume) = &mut self.volume else { return Ok(()) };
        let Some(docker) = volume.docker.as_ref().filter(|_| !volume.is_there) else { return Ok(()) };
        docker.make_volume(&volume.name)?;
        volume.is_new = true;
        volume.is_there = true;
        let missing = || Error::NoVolume { whose: volume.owner.to_string(), volume: volume.name.clone() };
        let directory = directory_of(docker, &volume.name)?.ok_or_else(missing)?;
        self.path = below(&directory, &volume.within);
        Ok(())
    }

    /// Leaves the volume that was made: there is something in it now.
    pub fn keep(&mut self) {
        if let Some(volume) = &mut self.volume {
            volume.is_new = false;
        }
    }

    /// What makes a builder use what was written there, where that is not plain.
    pub fn next_step(&self) -> Option<String> {
        let volume = self.volume.as_ref()?;
        let Owner { builder, node, is_known } = &volume.owner;
        if *is_known {
            return Some(format!("the next build of builder {builder} starts on it"));
        }
        if volume.docker.is_some() && volume.has_container {
            return Some(format!("the container {}, which is there already, starts on it", node.container()));
        }
        let name =
            if node.name == first_node(builder) { String::new() } else { format!(" --node {}", node.name) };
        Some(format!(
            "{} has no builder {builder} yet; the one that uses it is made with: docker buildx create --name {builder}{name} \
             --driver {DRIVER} --bootstrap",
            buildx::directory().display()
        ))
    }

    /// How a volume that is not empty is replaced by an empty one.
    pub fn way_out(&self) -> Option<String> {
        let volume = self.volume.as_ref()?;
        let container = volume.owner.node.container();
        let start = if volume.docker.is_some() { "" } else { "start docker, " };
        let remove =
            if volume.has_container { format!("`docker rm {container}` and ") } else { String::new() };
        Some(format!(
            "it is the volume of {}: to begin anew, {start}run {remove}`docker volume rm {}`; the builder stays, with its \
             settings",
            volume.owner, volume.name
        ))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(Volume { name, docker: Some(docker), is_new: true, .. }) = &self.volume {
            // One that a container has taken meanwhile refuses, and stays.
            let _ = docker.remove_volume(name);
        }
    }
}

impl Volume {
    fn stop(&self) -> String {
        let container = self.owner.node.container();
        if self.owner.is_known && self.users == [container] {
            format!("docker buildx stop {}", self.owner.builder)
        } else {
            format!("docker stop {}", self.users.join(" "))
        }
    }
}

/// The root of the `buildkitd` that this machine runs as root.
pub(super) fn of_host() -> Result<Root, Error> {
    of_settings(HOST, &settings_of_host()?)
}

/// The root of a daemon that runs as root, with an OCI worker.
pub(super) fn of_settings(whose: &str, settings: &Settings) -> Result<Root, Error> {
    let snapshotter = fits(whose, settings)?;
    let kind = Kind { snapshotter, ..Kind::default() };
    Ok(Root::of(settings.root(), kind).told(settings.told()))
}

/// The root of this machine's `buildkitd` that has its layers in a containerd, which listens at `address` or where the
/// daemon is told.
pub(super) fn of_containerd(address: Option<&str>) -> Result<Root, Error> {
    of_settings_in_containerd(HOST, &settings_of_host()?, address)
}

/// The root of a daemon that runs as root, with a containerd worker.
pub(super) fn of_settings_in_containerd(
    whose: &str,
    settings: &Settings,
    address: Option<&str>,
) -> Result<Root, Error> {
    let misfit = |misfit| Error::Misfit { whose: whose.to_owned(), misfit };
    let snapshotter = settings.containerd_snapshotter().map_err(misfit)?;
    let containerd = Containerd {
        address: address.map_or_else(|| settings.containerd_address(), str::to_owned),
        namespace: settings.containerd_namespace(),
    };
    let kind = Kind { snapshotter, owners: Owners::AsNamed, containerd: Some(containerd) };
    Ok(Root::of(settings.root(), kind).told(settings.told_of_containerd()))
}

/// What to call this machine's daemon.
const HOST: &str = "this machine's buildkitd";

/// What its unit and its configuration say.
pub(super) fn settings_of_host() -> Result<Settings, Error> {
    for unit in UNITS {
        if let Some(user) = unit::user(unit) {
            let misfit = format!("is run by {user}: name whose it is, with --for rootless:{user}");
            return Err(Error::Misfit { whose: unit.to_owned(), misfit });
        }
    }
    let arguments = UNITS.map(unit::arguments).concat();
    Settings::at(&arguments, &config_of_host(&arguments))
}

/// The configuration of this machine's daemon, which its units start with these arguments.
pub(super) fn config_of_host(arguments: &[String]) -> PathBuf {
    let variable = UNITS.iter().find_map(|unit| unit::variable(unit, CONFIG_VARIABLE));
    config_of(arguments, variable.as_deref()).into()
}

/// The configuration of a daemon that runs as root with these arguments, and this value of [`CONFIG_VARIABLE`].
pub(super) fn config_of<'a>(arguments: &'a [String], variable: Option<&'a str>) -> &'a str {
    let variable = variable.filter(|file| !file.is_empty());
    argument(arguments, "config").or(variable).unwrap_or(DEFAULT_CONFIG)
}

/// The root of a node of buildx.
pub(super) fn of_buildx(builder: &str, node: Option<&str>) -> Result<Root, Error> {
    let owner = owner(builder, node)?;
    let docker = Docker::at(&owner.node.endpoint);
    if docker.is_up(builder)? { of_running_docker(docker, owner) } else { of_stopped_docker(&docker, owner) }
}

fn first_node(builder: &str) -> String {
    format!("{builder}0")
}

fn owner(name: &str, node: Option<&str>) -> Result<Owner, Error> {
    let Some(Builder { driver, nodes }) = buildx::find(name)? else {
        let node = Node::to_be(node.map_or_else(|| first_node(name), str::to_owned));
        return Ok(Owner { builder: name.to_owned(), node, is_known: false });
    };
    if driver != DRIVER {
        return Err(Error::Driver { builder: name.to_owned(), way_out: way_out(name, &driver), driver });
    }
    let names = || nodes.iter().map(|node| node.name.clone()).collect();
    let chosen = match (node, nodes.as_slice()) {
        (None, [only]) => only.clone(),
        (None, []) => Node::to_be(first_node(name)),
        (None, _) => return Err(Error::SeveralNodes { builder: name.to_owned(), nodes: names() }),
        (Some(wanted), _) => match nodes.iter().find(|node| node.name == wanted) {
            Some(node) => node.clone(),
            None => {
                return Err(Error::NoNode {
                    builder: name.to_owned(),
                    node: wanted.to_owned(),
                    nodes: names(),
                });
            }
        },
    };
    Ok(Owner { builder: name.to_owned(), node: chosen, is_known: true })
}

/// What to do about a builder whose driver is another.
fn way_out(name: &str, driver: &str) -> String {
    match driver {
        "docker" => format!(
            "it is dockerd itself, whose cache is bound to its own image store; make a builder beside it, \
             with `docker buildx create --name {name}-warm --driver {DRIVER}`, and bake --for buildx:{name}-warm"
        ),
        "kubernetes" => {
            "its root is in a pod; bake where the pod's volume is mounted, and name it with --root".into()
        }
        "remote" => {
            "its buildkitd was started by somebody else; bake on its host, --for host, or name its root \
                     with --root"
                .into()
        }
        _ => "its root is not on this machine; bake where it is, and name it with --root".into(),
    }
}

fn of_running_docker(docker: Docker, owner: Owner) -> Result<Root, Error> {
    let info = docker.info()?;
    if info.is_rootless() {
        return Err(Error::RootlessDocker { builder: owner.builder, host: docker.host()? });
    }
    let name = owner.node.container();
    let container = docker.container(&name)?;
    let Place { volume, within, snapshotter, told } = match &container {
        Some(container) => of_container(&docker, &name, container, &owner)?,
        None => of_node(&owner)?,
    };
    let directory = directory_of(&docker, &volume)?;
    let is_there = directory.is_some();
    let directory = directory.unwrap_or_else(|| data_of(&info.docker_root_dir, &volume));
    let mut users = docker.users_of(&volume)?;
    let has_container = container.is_some();
    if container.is_some_and(|container| container.is_running()) && !users.contains(&name) {
        users.push(name);
    }
    let path = below(&directory, &within);
    let volume = Volume {
        name: volume,
        owner,
        within,
        docker: Some(docker),
        is_there,
        has_container,
        users,
        is_new: false,
    };
    let kind = Kind { snapshotter, ..Kind::default() };
    Ok(Root { path, kind, told, user: None, volume: Some(volume) })
}

fn of_stopped_docker(docker: &Docker, owner: Owner) -> Result<Root, Error> {
    let host = docker.host()?;
    if host.starts_with("unix:///run/user/") {
        return Err(Error::RootlessDocker { builder: owner.builder, host });
    }
    let Place { volume: name, within, snapshotter, told } = of_node(&owner)?;
    let root = data_root::find(&host)?;
    let directory = data_of(&root, &name);
    if let Some(device) = directory.parent().map(data_root::device).transpose()?.flatten() {
        return Err(Error::VolumeOfOthers { volume: name, how: format!("mounted from {device}") });
    }
    let is_there =
        directory.try_exists().map_err(|source| Error::Read { path: directory.clone(), source })?;
    let path = below(&directory, &within);
    let volume = Volume {
        name,
        owner,
        within,
        docker: None,
        is_there,
        has_container: true,
        users: Vec::new(),
        is_new: false,
    };
    let kind = Kind { snapshotter, ..Kind::default() };
    Ok(Root { path, kind, told, user: None, volume: Some(volume) })
}

/// A directory, or what is deeper in it.
fn below(directory: &Path, within: &Path) -> PathBuf {
    directory.components().chain(within.components()).collect()
}

/// Where docker's local driver keeps the content of a volume.
fn data_of(data_root: &Path, volume: &str) -> PathBuf {
    data_root.join("volumes").join(volume).join("_data")
}

/// The directory of a volume, as docker says; `None` where there is no such volume.
fn directory_of(docker: &Docker, name: &str) -> Result<Option<PathBuf>, Error> {
    let Some(volume) = docker.volume(name)? else { return Ok(None) };
    let others = |how| Error::VolumeOfOthers { volume: name.to_owned(), how };
    if volume.driver != "local" {
        return Err(others(format!("one of the driver {:?}", volume.driver)));
    }
    if let Some(device) = volume.device() {
        return Err(others(format!("mounted from {device}")));
    }
    match fs::metadata(&volume.mountpoint) {
        Ok(metadata) if metadata.is_dir() => Ok(Some(volume.mountpoint)),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Read { path: volume.mountpoint, source })
        }
        _ => Err(Error::Elsewhere { volume: name.to_owned(), path: volume.mountpoint }),
    }
}

fn settings(
    owner: &Owner,
    arguments: &[String],
    config: Option<&str>,
    file: &str,
) -> Result<(PathBuf, Option<String>, Told), Error> {
    let settings = Settings::read(arguments, config).map_err(|error| Error::Configuration {
        file: format!("{file} of {owner}"),
        detail: error.to_string(),
    })?;
    let snapshotter = fits(&owner.to_string(), &settings)?;
    let told = Told { file: file.into(), ..settings.told() };
    Ok((plain(&settings.root()), snapshotter, told))
}

/// The snapshotter that a daemon which runs as root is told, if any.
fn fits(whose: &str, settings: &Settings) -> Result<Option<String>, Error> {
    settings.rootful().map_err(|misfit| Error::Misfit { whose: whose.to_owned(), misfit })
}

/// Where a daemon in a container keeps its root.
struct Place {
    volume: String,
    within: PathBuf,
    snapshotter: Option<String>,
    told: Told,
}

/// The volume that a node gets when its container is made, and where the root is in it.
fn of_node(owner: &Owner) -> Result<Place, Error> {
    let node = &owner.node;
    let tag = node.image().and_then(|image| image.split('@').next()?.rsplit_once(':'));
    if tag.is_some_and(|(_, tag)| tag.split('-').any(|part| part == "rootless")) {
        return Err(Error::Misfit { whose: owner.to_string(), misfit: ROOTLESS.into() });
    }
    let config = node.config();
    if let (None, None, Some(file)) =
        (&config, argument(node.flags(), "config"), node.variable(CONFIG_VARIABLE))
    {
        let misfit = format!(
            "is told by env.{CONFIG_VARIABLE} to have its configuration at {file}, which is in its image, and not known \
             here: make it with --buildkitd-config FILE instead"
        );
        return Err(Error::Misfit { whose: owner.to_string(), misfit });
    }
    let (root, snapshotter, told) = settings(owner, node.flags(), config.as_deref(), "buildkitd.toml")?;
    match root.strip_prefix(DEFAULT_ROOT) {
        Ok(within) => Ok(Place { volume: node.volume(), within: within.to_owned(), snapshotter, told }),
        Err(_) => Err(Error::NoVolumeThere { whose: owner.to_string(), root }),
    }
}

/// The volume that a container's root is in, and where.
fn of_container(docker: &Docker, name: &str, container: &Container, owner: &Owner) -> Result<Place, Error> {
    if container.is_rootless() {
        return Err(Error::Misfit { whose: owner.to_string(), misfit: ROOTLESS.into() });
    }
    let file = config_of(&container.args, container.config.variable(CONFIG_VARIABLE));
    let config = docker.file_of(name, file)?;
    let (root, snapshotter, told) = settings(owner, &container.args, config.as_deref(), file)?;
    let mounts = container.mounts.iter().filter(|mount| root.starts_with(&mount.destination));
    match mounts.max_by_key(|mount| mount.destination.components().count()) {
        Some(mount) if mount.kind == "volume" => {
            let within = root.strip_prefix(&mount.destination).unwrap_or(Path::new(""));
            Ok(Place { volume: mount.name.clone(), within: within.to_owned(), snapshotter, told })
        }
        _ => Err(Error::NoVolumeThere { whose: owner.to_string(), root }),
    }
}

/// A path without `.` and `..`, read as text: it is one of a container.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}
