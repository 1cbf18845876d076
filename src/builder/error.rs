//! Why a builder or its root could not be found.

use std::io;
use std::path::PathBuf;

use crate::daemon;

/// How many ids a user usually gets.
const USUAL: u32 = 65_536;

/// A builder that cannot be had, or is not one that a root can be written for.
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
    /// A file that says where a root is cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), as_root(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What buildx keeps of a builder is no JSON, or has other members.
    #[error("{} is not what buildx keeps of a builder: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration that its daemon would not start with.
    #[error("{file}: {detail}")]
    Configuration {
        /// The file, and whose it is.
        file: String,
        /// What the parser said.
        detail: String,
    },
    /// No docker to ask.
    #[error("no docker found in $PATH, through which builders are read: install its client")]
    NoDocker,
    /// docker failed, or gave no answer.
    #[error(transparent)]
    Docker(daemon::Error),
    /// Another program failed, or gave no answer.
    #[error(transparent)]
    Program(daemon::Error),
    /// docker answered something else, as podman does under its name.
    #[error(
        "`docker {question}` did not answer as docker's client does ({detail}): if podman stands there under its name, \
         put docker's client before it in $PATH, or name the root with --root"
    )]
    Answer {
        /// What it was asked.
        question: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// The docker is on another machine.
    #[error(
        "builder {builder:?} is not on this machine: its docker is at {host}; run this there, or name a \
         directory with --root and bring it there"
    )]
    Remote {
        /// The builder.
        builder: String,
        /// Where its docker listens.
        host: String,
    },
    /// A driver that keeps its root where nothing can be written from here.
    #[error("builder {builder:?} has the driver {driver:?}: {way_out}")]
    Driver {
        /// The builder.
        builder: String,
        /// Its driver.
        driver: String,
        /// What to do instead.
        way_out: String,
    },
    /// Several nodes have a root each.
    #[error("builder {builder:?} has the nodes {}: say which, as --for buildx:{builder}/{}", nodes.join(", "), first(nodes))]
    SeveralNodes {
        /// The builder.
        builder: String,
        /// Their names.
        nodes: Vec<String>,
    },
    /// There is no such node.
    #[error("builder {builder:?} has no node {node:?}; there are {}", nodes.join(", "))]
    NoNode {
        /// The builder.
        builder: String,
        /// The name.
        node: String,
        /// Those that are there.
        nodes: Vec<String>,
    },
    /// Somebody may write to the root at any moment.
    #[error("{} {} the root of {whose}: stop it first, with `{stop}`", containers.join(", "), if containers.len() == 1 { "runs on" } else { "run on" })]
    Running {
        /// Whose root it is.
        whose: String,
        /// The containers that run.
        containers: Vec<String>,
        /// The command that stops them.
        stop: String,
    },
    /// A daemon that would find nothing in a root that is written from here.
    #[error("{whose} {misfit}")]
    Misfit {
        /// Whose daemon.
        whose: String,
        /// What it does.
        misfit: String,
    },
    /// Its daemon cannot mount what is in it.
    #[error(
        "{} cannot be the root of a daemon with {snapshotter}, whose mounts take the {separator:?} in it for a separator: {}",
        path.display(),
        if *is_told {
            "every build would fail; have the root elsewhere, or the daemon use the snapshotter native"
        } else {
            "a daemon that is told no snapshotter takes native there; bake with --snapshotter native, or have the root elsewhere"
        }
    )]
    Separator {
        /// The root.
        path: PathBuf,
        /// The character.
        separator: char,
        /// The snapshotter.
        snapshotter: &'static str,
        /// Its daemon is told one: it does not take another where that cannot mount.
        is_told: bool,
    },
    /// Nobody of this name.
    #[error("this machine has no user {name:?}")]
    NoUser {
        /// The name, or number.
        name: String,
    },
    /// Whose daemon is meant is not plain.
    #[error("whose rootless daemon? say it, as --for rootless:USER")]
    WhichUser,
    /// root runs a daemon as root.
    #[error("root's own daemon is no rootless one: bake --for host")]
    RootIsNotRootless,
    /// Another user's files are not to be had from here.
    #[error(
        "in a user namespace there is one rootless daemon to bake for, that of its owner: --for rootless"
    )]
    InNamespace,
    /// A daemon in a user namespace takes itself for that of root there.
    #[error(
        "$USER names no plain user in this user namespace, and a buildkitd that is started so has root's directories \
         (/var/lib/buildkit, /etc/buildkit): set USER to the user's name"
    )]
    RootOfNamespace,
    /// A user namespace without a home.
    #[error("$HOME says no directory to look for the root in: set it")]
    NoHome,
    /// A user without one.
    #[error("{user} has no home in passwd to look for the root in: give one (`usermod --home`)")]
    NoHomeOf {
        /// The user.
        user: String,
    },
    /// A home that is not there, or not mounted.
    #[error(
        "{}, the home of {user}, is not there: make it (`mkhomedir_helper {user}`), or mount it",
        home.display()
    )]
    HomeMissing {
        /// The user.
        user: String,
        /// The home.
        home: PathBuf,
    },
    /// A path that depends on where a daemon is started.
    #[error(
        "{what} is \"{}\", which is another directory wherever buildkitd is started: make it absolute",
        path.display()
    )]
    Relative {
        /// What says so.
        what: String,
        /// The path.
        path: PathBuf,
    },
    /// A daemon of this user would not start.
    #[error(
        "{user} has no range in {file}{}, without which no rootless daemon runs: give one, as `usermod --add-subuids \
         {first}-{} --add-subgids {first}-{} {user}` does",
        if *is_there { "" } else { ", which is not there" }, first.saturating_add(USUAL - 1), first.saturating_add(USUAL - 1)
    )]
    NoSubordinateIds {
        /// The user.
        user: String,
        /// The file that has none.
        file: &'static str,
        /// Whether there is such a file.
        is_there: bool,
        /// The first id that nobody has.
        first: u32,
    },
    /// dockerd itself runs in a user namespace.
    #[error(
        "the docker of builder {builder:?} ({host}) runs rootless: the owners in its volumes are shifted, which a \
         root that is written as root does not follow; use a builder of a rootful docker"
    )]
    RootlessDocker {
        /// The builder.
        builder: String,
        /// Where its docker listens.
        host: String,
    },
    /// The daemon's root is in the container itself, or on what is mounted there.
    #[error(
        "{whose} has its root at {}, which is no volume that docker keeps: make the builder anew without what moves it \
         (--root among its buildkitd flags, root in its buildkitd.toml)",
        root.display()
    )]
    NoVolumeThere {
        /// Whose daemon.
        whose: String,
        /// Its root, in its container.
        root: PathBuf,
    },
    /// There is nothing yet.
    #[error("{whose} has no volume {volume} yet: bake one, or run a build")]
    NoVolume {
        /// Whose volume.
        whose: String,
        /// Its name.
        volume: String,
    },
    /// A volume of a plugin, or one that is mounted while it is used.
    #[error(
        "the volume {volume} is {how}: its files are there only while a container uses it; name the directory \
         with --root where you have mounted them"
    )]
    VolumeOfOthers {
        /// Its name.
        volume: String,
        /// What it is.
        how: String,
    },
    /// docker's directories are not those of this machine.
    #[error(
        "docker keeps {volume} in {}, which is not there: dockerd sees other files than this machine does, as in \
         a virtual machine or behind a forwarded socket; run this where dockerd runs",
        path.display()
    )]
    Elsewhere {
        /// The volume.
        volume: String,
        /// Its directory, as docker says.
        path: PathBuf,
    },
    /// Neither docker nor its files.
    #[error(
        "no docker answers, and there is no {} either: has dockerd never run here, or with another --data-root? start it, \
         or name the volume's directory with --root",
        path.display()
    )]
    NoDataRoot {
        /// Where it would be.
        path: PathBuf,
    },
    /// A docker that is not the one whose configuration this machine has.
    #[error(
        "no docker answers at {host}, and where that one keeps volumes is known only while it runs: start it, \
         or name the volume's directory with --root"
    )]
    NotTheMachines {
        /// Where it would listen.
        host: String,
    },
    /// The data root depends on users that only dockerd looks up.
    #[error(
        "no docker answers, and its configuration has userns-remap, so where it keeps volumes is known \
         only while it runs: start it, or name the volume's directory with --root"
    )]
    Remapped,
    /// dockerd's own builder.
    #[error(
        "{} is for dockerd's own builder, whose layers are in dockerd's image store: no root can be written for it. On \
         this host a builder of the driver docker-container is the way: `docker buildx create --name warm --driver \
         docker-container`, and --for buildx:warm",
        path.display()
    )]
    Engine {
        /// Where it keeps its state.
        path: PathBuf,
    },
    /// Nothing that a root could be for.
    #[error(
        "no target is seen on this machine{}: say which, as --for host (/var/lib/buildkit), --for rootless:USER, --for \
         containerd, --for buildx:NAME or --root DIR; none of them need be set up yet",
        if *refused { " that a root can be written for" } else { "" }
    )]
    NoTarget {
        /// There are some that it cannot be written for.
        refused: bool,
    },
    /// More than one.
    #[error("several targets are seen on this machine, and a root is for one: say which, as {}", ways.join(" or "))]
    SeveralTargets {
        /// In the words that name them.
        ways: Vec<String>,
    },
    /// One, but others may be where nobody could look.
    #[error(
        "not everything could be looked at, so there may be more targets than {way}: say that one, or let the rest be \
         looked at{}",
        if rustix::process::geteuid().is_root() { "" } else { ", under sudo" }
    )]
    PerhapsSeveral {
        /// In the words that name it.
        way: String,
    },
    /// Builders of the user who calls sudo.
    #[error(
        "{} has builders too ({}): they are looked at where BUILDX_CONFIG={} is set",
        directory.display(), names.join(", "), directory.display()
    )]
    OthersBuilders {
        /// Where that user's buildx keeps them.
        directory: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A daemon in a container of somebody else.
    #[error("{process} runs in a container that is no known builder's: its root is named with --root")]
    Contained {
        /// The process.
        process: String,
    },
}

impl Error {
    /// What this means for whoever asked.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Running { .. } => ErrorClass::Busy,
            Self::Remote { .. }
            | Self::Driver { .. }
            | Self::SeveralNodes { .. }
            | Self::NoNode { .. }
            | Self::Misfit { .. }
            | Self::Separator { .. }
            | Self::WhichUser
            | Self::RootIsNotRootless
            | Self::InNamespace
            | Self::RootOfNamespace
            | Self::RootlessDocker { .. }
            | Self::NoVolumeThere { .. }
            | Self::Engine { .. }
            | Self::NoTarget { .. }
            | Self::SeveralTargets { .. }
            | Self::PerhapsSeveral { .. }
            | Self::VolumeOfOthers { .. } => ErrorClass::Choice,
            _ => ErrorClass::Other,
        }
    }
}

/// What an [`Error`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Another target has to be named.
    Choice,
    /// Somebody uses it.
    Busy,
    /// Anything else.
    Other,
}

fn have(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; there are {}", known.join(", ")) }
}

/// What to do where only root may read.
fn as_root(source: &io::Error) -> &'static str {
    let is_denied = source.kind() == io::ErrorKind::PermissionDenied;
    if is_denied && !rustix::process::geteuid().is_root() { "; run it under sudo" } else { "" }
}

fn first(nodes: &[String]) -> &str {
    nodes.first().map_or("NODE", String::as_str)
}
