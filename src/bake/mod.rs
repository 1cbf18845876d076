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

mod error;
mod layers;
mod plan;
pub mod report;
mod stores;
mod target;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;

pub use error::Error;
pub(crate) use error::IoContext;
pub use report::{Report, Unkeyed};

pub use crate::gather::ErrorClass;

use crate::fsutil;
use crate::gather::{self, Images, Keys, Offer};
use crate::keys::KeySpec;
use crate::oci::{Cache, Platform, Reference};
use crate::progress::{Event, Phase, Progress, during};
use crate::replay::{self, Replay};
use crate::source::{self, CacheSpec, Stop};
use crate::store::StateDir;

use report::Phases;
use target::Staging;

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
    /// How registries are talked to; its `stop` is replaced by that of the bake.
    pub registry: source::Options,
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
/// On any error the target is as it was, and so is everything beside it.
pub fn bake(options: &Options, cancel: &Cancel, progress: &dyn Progress) -> Result<Report, Error> {
    let mut options = options.clone();
    options.registry.stop = cancel.stop.clone();
    // Connections that end with this bake, and no other's.
    options.registry.pool = source::Pool::default();
    thread::scope(|scope| {
        // Wakes the watch when it is dropped, however the bake ends.
        let (running, ended) = crossbeam_channel::bounded::<()>(0);
        scope.spawn(move || cancel.watch(&ended));
        let result = bake_watched(&options, cancel, progress);
        drop(running);
        result
    })
}

fn bake_watched(options: &Options, cancel: &Cancel, progress: &dyn Progress) -> Result<Report, Error> {
    let staging = Staging::new(&options.root)?;
    let leftovers = staging.leftovers().to_vec();
    for left in &leftovers {
        let left = left.display();
        progress.event(Event::Warning(format!(
            "a bake of this root that was killed left {left}: remove it with `rm -rf {left}`"
        )));
    }
    match bake_into(staging.path(), options, cancel, progress) {
        Ok((mut report, committing)) => {
            let root = staging.commit(&[crate::store::state_dir::CACHE_DB])?;
            report.seconds.commit = end(progress, Phase::Commit, committing);
            report.root = root.display().to_string();
            report.leftovers = leftovers.iter().map(|p| p.display().to_string()).collect();
            Ok(report)
        }
        Err(error) => {
            if let Err(left) = staging.discard() {
                progress.event(Event::Warning(left.to_string()));
            }
            // What stopped tasks say of it does not matter when somebody asked them to stop.
            Err(cancel.check().err().unwrap_or(error))
        }
    }
}

fn begin(progress: &dyn Progress, phase: Phase) -> Instant {
    progress.event(Event::Started(phase));
    Instant::now()
}

/// In seconds.
fn end(progress: &dyn Progress, phase: Phase, started: Instant) -> f64 {
    let took = started.elapsed();
    progress.event(Event::Finished(phase, took));
    took.as_secs_f64()
}

/// Replays the build where the other sources leave a record without a key, and adds to `keys` what it gives.
fn replay_missing(
    keys: &mut Keys,
    caches: &[Cache],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Option<replay::Report>, Error> {
    let Some(build) = options.replay.as_ref().filter(|_| keys.coverage.lost() > 0) else { return Ok(None) };
    let build = replay::Options { registry: options.registry.clone(), ..build.clone() };
    let caches_of_it: Vec<&Cache> = caches.iter().collect();
    let Replay { candidates, report } =
        during(progress, Phase::Replay, || replay::replay(&caches_of_it, &build))?;
    for missed in report.builds.iter().flat_map(|build| &build.missed) {
        progress.event(Event::Warning(format!("the replay missed {}: {}", missed.step, missed.cause)));
    }
    let source = format!("--build {}", build.build.context.display());
    keys.add(Offer { source, candidates }, caches);
    Ok(Some(report))
}

/// Everything but to put the root in place; also says when the last phase, which that is part of, began.
fn bake_into(
    staged: &Path,
    options: &Options,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Report, Instant), Error> {
    let mut seconds = Phases::default();

    let started = begin(progress, Phase::Resolve);
    let gathering = options.gather();
    let all = gather::open_all(&options.caches, options.skip_missing, &gathering, progress)?;
    let mut sources = Vec::new();
    let mut caches = Vec::new();
    let mut baked = Vec::new();
    for opened in all.opened {
        sources.push(opened.source);
        caches.push(opened.cache);
        baked.push(opened.report);
    }
    seconds.resolve = end(progress, Phase::Resolve, started);

    let started = begin(progress, Phase::Keys);
    let mut offers = gather::offers(&options.keys_from, &gathering, progress)?;
    offers.extend(all.sidecars);
    let mut keys = gather::prove(&offers, &caches);
    let left_out = gather::keep_platforms(&mut caches, &baked, &mut keys, &gathering, progress)?;
    let replayed = replay_missing(&mut keys, &caches, options, progress)?;
    let mut blobs = gather::blobs(&caches, |at| baked[at].cache.clone())?;
    let (total, unkeyed) = (keys.coverage.records().len(), keys.coverage.unkeyed());
    for (report, cache) in baked.iter_mut().zip(&caches) {
        report.written_by = keys.written_by(cache);
    }
    if !unkeyed.is_empty() && !options.allow_unkeyed {
        return Err(Error::Unkeyed { records: unkeyed, total });
    }
    let found = (options.find_images == FindImages::Auto).then_some(&keys.candidates);
    let Images { opened, skipped } =
        gather::open_images(&options.with_images, found, &blobs, &gathering, progress)?;
    let (of_images, images): (Vec<_>, Vec<_>) =
        opened.into_iter().map(|opened| (opened.source, opened.image)).unzip();
    gather::add_images(&mut blobs, &images, |at| baked[at].cache.clone(), caches.len())?;
    sources.extend(of_images);
    let plan = plan::plan(&caches, &images, blobs, &keys);
    drop(caches);
    seconds.keys = end(progress, Phase::Keys, started);

    let bytes_down = plan.bytes();
    let free = fsutil::free_bytes(staged).at("look at the file system of", staged)?;
    if bytes_down > free {
        return Err(Error::NoSpace { path: options.root.clone(), needed: bytes_down, free });
    }
    let started = begin(progress, Phase::Layers);
    let root = StateDir::new(staged);
    root.create()?;
    let unpacked = layers::fetch_and_unpack(&plan, &sources, &root, cancel, progress)?;
    seconds.layers = end(progress, Phase::Layers, started);

    let committing = begin(progress, Phase::Commit);
    stores::write(&plan, &sources, &images, &unpacked, &root, options.written_at)?;
    cancel.check()?;

    let unpacked_bytes: u64 = unpacked.usage.iter().map(|usage| usage.size).sum();
    let documents: BTreeMap<_, _> =
        images.iter().flat_map(|image| &image.documents).map(|d| (d.digest, d.bytes.len() as u64)).collect();
    let document_bytes: u64 = documents.values().sum();
    let report = Report {
        root: String::new(),
        caches: baked,
        missing: all.missing,
        keys_from: keys.reports,
        replay: replayed,
        images: images.into_iter().map(|image| image.report).collect(),
        images_skipped: skipped,
        records: total,
        left_out,
        keyed: total - unkeyed.len(),
        layers: plan.blobs.len(),
        snapshots: plan.snapshots.len(),
        bytes_down,
        bytes_on_disk: bytes_down + unpacked_bytes + document_bytes,
        seconds,
        leftovers: Vec::new(),
        unkeyed,
    };
    Ok((report, committing))
}
