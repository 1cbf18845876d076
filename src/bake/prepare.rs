//! What comes before the layers: caches, keys and images are read, and it is planned what goes where.

use super::plan::{self, Plan};
use super::report::{Contents, Phases};
use super::{Error, FindImages, Options};
use crate::gather::{self, Image, Images, Keys, Offer};
use crate::oci::Cache;
use crate::progress::{Event, Phase, Progress, Running, during};
use crate::replay::{self, Replay};
use crate::source::Source;

/// All that is known before the first layer.
pub(super) struct Prepared {
    /// Those of the caches, then those of the images.
    pub(super) sources: Vec<Box<dyn Source>>,
    pub(super) images: Vec<Image>,
    pub(super) plan: Plan,
    pub(super) contents: Contents,
    /// How long `resolve` and `keys` took.
    pub(super) seconds: Phases,
}

/// Reads everything but layers.
///
/// # Errors
/// Something cannot be read. [`Error::Unkeyed`], unless `with_unkeyed`.
pub(super) fn prepare(
    options: &Options,
    with_unkeyed: bool,
    progress: &dyn Progress,
) -> Result<Prepared, Error> {
    let mut seconds = Phases::default();

    let running = Running::start(progress, Phase::Resolve);
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
    seconds.set(Phase::Resolve, running.finish());

    let running = Running::start(progress, Phase::Keys);
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
    if !unkeyed.is_empty() && !with_unkeyed {
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
    seconds.set(Phase::Keys, running.finish());

    let contents = Contents {
        caches: baked,
        missing: all.missing,
        keys_from: keys.reports,
        replay: replayed,
        images: images.iter().map(|image| image.report.clone()).collect(),
        images_skipped: skipped,
        records: total,
        left_out,
        keyed: total - unkeyed.len(),
        unkeyed,
        layers: plan.blobs.len(),
        snapshots: plan.snapshots.len(),
        bytes_down: plan.bytes(),
    };
    Ok(Prepared { sources, images, plan, contents, seconds })
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
