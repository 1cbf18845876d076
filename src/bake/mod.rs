//! Bakes caches into a root: plan, fetch, unpack, commit.
//!
//! ```text
//! caches ──> collect ──> plan ──> layers ──> stores ──> target
//! keys   ──^  small      what     blobs and  databases  sync, rename
//! images ──^  documents  goes     snapshots
//!                        where
//! ```
//!
//! Nothing stands at the target until all of it does. Before the first layer is fetched it is known
//! which records can be keyed, so a bake that would be cold ends early and cheap.

#[cfg_attr(not(feature = "containerd"), path = "no_containerd.rs")]
mod containerd;
mod error;
mod foresee;
mod layers;
mod need;
mod place;
pub(crate) mod plan;
mod prepare;
pub mod report;
mod schedule;
mod stores;
mod target;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;
use serde::Serialize;

pub(crate) use error::IoContext;
pub use error::{Error, Resource, Shortage};
pub use foresee::{Foreseen, GcOptions, TargetRoom, foresee};
pub use need::{Estimate, WholeTrees};
pub use report::{Contents, Report, Unkeyed};

pub use crate::gather::ErrorClass;
pub use crate::store::{PageSize, Snapshotter};

use crate::fsutil;
use crate::gather::{self, Image, TarSize};
use crate::keys::KeySpec;
use crate::oci::{Platform, Reference};
use crate::progress::{Event, Phase, Progress, Running};
use crate::replay;
use crate::source::{self, CacheSpec, Stop};
use crate::store::{self, Layers, StateDir};
use crate::userns::Owners;

use place::Marks;
use plan::Plan;
use prepare::{Prepared, prepare};
use target::{Committed, Staging};

/// What to bake, and where.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Options {
    /// The caches that go in.
    pub caches: Vec<CacheSpec>,
    /// Go on without caches that are not there, as long as one is.
    pub skip_missing: bool,
    /// Where operation digests may come from.
    pub keys_from: Vec<KeySpec>,
    /// Leave aside the sidecars that stand beside caches.
    pub no_sidecar: bool,
    /// The build to replay for records that these leave without a key; its `registry` is that of the bake.
    pub replay: Option<replay::Options>,
    /// The root to make; must be absent or empty.
    pub root: PathBuf,
    /// The snapshotter of the worker that it is for.
    pub snapshotter: Snapshotter,
    /// Whose the files of its layers are.
    pub owners: Owners,
    /// Who keeps its layers, where that is not the root.
    pub containerd: Option<Containerd>,
    /// Page size of its databases: that of the machines that are to use it is best.
    pub page_size: PageSize,
    /// Only what builds for these platforms use, as far as caches and key sources tell, and the platforms
    /// that operations ran on that name none. Empty: everything, and this machine's platform.
    pub platforms: Vec<Platform>,
    /// Which images of builds to seed.
    pub find_images: FindImages,
    /// Images to seed that nothing needs to name.
    pub with_images: Vec<Reference>,
    /// Bake although some records cannot be keyed.
    pub allow_unkeyed: bool,
    /// The time written where a cache tells none, so that a bake can be repeated byte by byte.
    pub written_at: Timestamp,
    /// Tell the disk at the end which blocks are free, so that what was deleted is in no snapshot of it.
    pub trim: bool,
    /// How registries are talked to; its `stop` is replaced by that of the bake.
    pub registry: source::Options,
}

/// A running containerd, and where in it a `buildkitd` keeps its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Containerd {
    /// Path of its socket, with or without `unix://`.
    pub address: String,
    /// The namespace.
    pub namespace: String,
}

/// Which images are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FindImages {
    /// Those that builds used, by their provenance or a replay; one that cannot be had is a warning.
    #[default]
    Auto,
    /// None.
    None,
}

impl Options {
    /// The tree of the root, while it stands in `staged`.
    fn state_dir(&self, staged: &Path) -> Result<StateDir, Error> {
        let layers = if self.containerd.is_some() { Layers::InContainerd } else { Layers::InRoot };
        let state = StateDir::new(staged, self.snapshotter).with_layers(layers);
        if !self.owners.is_namespace() {
            return Ok(state);
        }
        let (user, group) = (self.owners.user(0), self.owners.group(0));
        Ok(state.owned_by(user.map_err(Error::Owners)?, group.map_err(Error::Owners)?))
    }

    /// Who runs its daemon, where that is not root.
    fn user(&self) -> Result<Option<u32>, Error> {
        if !self.owners.is_namespace() || !fsutil::is_root() {
            return Ok(None);
        }
        // In a namespace of its own, the user is root.
        Ok(Some(self.owners.user(0).map_err(Error::Owners)?).filter(|&user| user != 0))
    }

    /// What its daemon's overlays need where the root is.
    fn marks(&self) -> Marks {
        match self.snapshotter {
            _ if !self.owners.is_namespace() || self.containerd.is_some() => Marks::Any,
            Snapshotter::Overlayfs => Marks::OfUsers,
            Snapshotter::FuseOverlayfs => Marks::InUserXattrs,
            Snapshotter::Native => Marks::Any,
        }
    }

    fn gather(&self) -> gather::Options {
        gather::Options {
            platforms: self.platforms.clone(),
            no_sidecar: self.no_sidecar,
            registry: self.registry.clone(),
        }
    }
}

/// Asks a running bake to end, from a signal handler or another thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    interrupted: Arc<AtomicBool>,
    stop: Stop,
}

impl Cancel {
    /// A handle that ends the bake once `interrupted` is true.
    pub fn new(interrupted: Arc<AtomicBool>) -> Self {
        Self { stop: Stop::on_flag(Arc::clone(&interrupted)), interrupted }
    }

    fn check(&self) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Passes a signal on to those that wait for a registry, until `ended` is closed.
    fn watch(&self, ended: &Receiver<()>) {
        while ended.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
            if self.stop.is_stopped() {
                self.stop.stop();
                return;
            }
        }
    }

    fn check_io(&self) -> std::io::Result<()> {
        if self.stop.is_stopped() {
            // Not ErrorKind::Interrupted: readers try again on that one.
            return Err(std::io::Error::other("cancelled"));
        }
        Ok(())
    }
}

/// Bakes.
///
/// On any error but [`Error::NotSynced`] the target is as it was, and so is everything beside it.
pub fn bake(options: &Options, cancel: &Cancel, progress: &dyn Progress) -> Result<Report, Error> {
    watched(options, cancel, |options| bake_watched(options, cancel, progress))
}

/// Does `work` with options of its own, which end when the bake is cancelled.
fn watched<T>(
    options: &Options,
    cancel: &Cancel,
    work: impl FnOnce(&Options) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut options = options.clone();
    options.registry.stop = cancel.stop.clone();
    // Connections that end with this bake, and no other's.
    options.registry.pool = source::Pool::default();
    thread::scope(|scope| {
        // Wakes the watch when it is dropped, however the bake ends.
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        scope.spawn(move || cancel.watch(&ended));
        let result = work(&options);
        drop(running);
        result
    })
}

fn bake_watched(options: &Options, cancel: &Cancel, progress: &dyn Progress) -> Result<Report, Error> {
    let staging = Staging::new(&options.root, options.marks(), options.user()?)
        .map_err(|error| error.or_full(&options.root, &options.root))?;
    let leftovers = staging.leftovers().to_vec();
    for left in &leftovers {
        let left = left.display();
        progress.event(Event::Warning(format!(
            "a bake of this root that was killed left {left}: remove it with `rm -rf {left}`"
        )));
    }
    match bake_into(staging.path(), options, cancel, progress) {
        Ok(Baked { mut report, committing, held }) => {
            let committed = staging
                .commit(&[crate::store::state_dir::CACHE_DB])
                .map_err(|error| error.or_full(&options.root, &options.root));
            // A root that is there needs what is held for it, durable or not.
            let is_there = matches!(committed, Ok(_) | Err(Error::NotSynced { .. }));
            if let Some(error) = held.filter(|_| is_there).and_then(containerd::Held::settle) {
                progress.event(Event::Warning(error.to_string()));
            }
            let root = committed?;
            report.seconds.set(Phase::Commit, committing.finish());
            report.trimmed = options.trim.then(|| trim(&root, progress)).flatten();
            report.root = root.path.display().to_string();
            report.leftovers = leftovers.iter().map(|p| p.display().to_string()).collect();
            Ok(report)
        }
        Err(error) => {
            // While it is: what was staged is about to go.
            let error = error.or_full(&options.root, staging.path());
            if let Err(left) = staging.discard() {
                progress.event(Event::Warning(left.to_string()));
            }
            // What stopped tasks say of it does not matter when somebody asked them to stop.
            Err(cancel.check().err().unwrap_or(error))
        }
    }
}

/// Has the disk forget what is in free blocks; gives their bytes. That it cannot is no reason to have no root.
fn trim(root: &Committed, progress: &dyn Progress) -> Option<u64> {
    let trimmed = fsutil::discard_free_blocks(&root.directory);
    trimmed
        .map_err(|error| {
            let root = root.path.display();
            progress.event(Event::Warning(format!(
                "cannot discard the free blocks of the file system of {root} ({error}): \
                 what was deleted there may be in snapshots of the disk"
            )));
        })
        .ok()
}

/// A root that is whole, but not in its place.
struct Baked<'a> {
    report: Report,
    /// The last phase, which putting it there is part of.
    committing: Running<'a>,
    /// What a containerd holds for it, and drops where it does not get there.
    held: Option<containerd::Held>,
}

/// Everything but to put the root in place.
fn bake_into<'a>(
    staged: &Path,
    options: &Options,
    cancel: &Cancel,
    progress: &'a dyn Progress,
) -> Result<Baked<'a>, Error> {
    let kept_by = options.containerd.as_ref();
    let client = kept_by.map(|containerd| containerd::connect(containerd, options, cancel)).transpose()?;
    let Prepared { sources, images, plan, contents, mut seconds } =
        prepare(options, options.allow_unkeyed, progress)?;
    let root = options.state_dir(staged)?;
    check_room(&plan, &images, staged, &root, options, progress)?;

    let running = Running::start(progress, Phase::Layers);
    root.create()?;
    let (usage, held) = match client {
        None => (layers::fetch_and_unpack(&plan, &sources, &root, &options.owners, cancel, progress)?, None),
        Some(client) => {
            let (usage, held) =
                containerd::keep(client, &plan, &sources, &images, options, cancel, progress)?;
            (usage, Some(held))
        }
    };
    seconds.set(Phase::Layers, running.finish());

    let committing = Running::start(progress, Phase::Commit);
    if held.is_none() {
        stores::write_documents(&images, &root)?;
    }
    let databases = stores::contents(&plan, &sources, &images, &usage, options.written_at);
    store::write_databases(&root, &databases, options.page_size)?;
    root.hand_over()?;
    cancel.check()?;

    let unpacked_bytes: u64 = usage.iter().map(|usage| usage.size).sum();
    let report = Report {
        root: String::new(),
        bytes_on_disk: contents.bytes_down + unpacked_bytes + need::documents(&images).bytes,
        contents,
        seconds,
        trimmed: None,
        leftovers: Vec::new(),
    };
    if let Some(held) = &held {
        // containerd's files are where it has them, and nobody has written them to a disk yet.
        rustix::fs::sync();
        cancel.check()?;
        held.commit()?;
    }
    Ok(Baked { report, committing, held })
}

/// Refuses what cannot fit, and warns of what is likely not to.
fn check_room(
    plan: &Plan,
    images: &[Image],
    staged: &Path,
    state: &StateDir,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let target = &options.root;
    let room = fsutil::room(staged).at("look at the file system of", staged)?;
    let tars: Vec<Option<TarSize>> =
        plan.blobs.iter().map(|blob| gather::tar_size_said(&blob.layer)).collect();
    let need = need::of(plan, images, &tars, state);
    if let Some(shortage) = need.shortage(&room) {
        return Err(Error::NoSpace { path: target.clone(), shortage });
    }
    if need.layers == Layers::InRoot
        && let Some((_, free)) = room.bytes
        && need.bytes.estimate > free
    {
        progress.event(Event::Warning(format!(
            "{} may not have enough space: the root takes about {} bytes, and {} are free; `warmkit plan` \
             tells more exactly",
            target.display(),
            need.bytes.estimate,
            free,
        )));
    }
    Ok(())
}
