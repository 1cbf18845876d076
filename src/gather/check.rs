//! What a bake would know of its keys before it fetches the first layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use serde::Serialize;

use super::{
    BakedCache, Blob, Error, KeySourceReport, Keys, Missing, Options, Status, Unkeyed, blobs, collect,
    keep_platforms, open_all,
};
use crate::digest::{Digest, RecordDigest};
use crate::keys::KeySpec;
use crate::oci::Cache;
use crate::progress::{Phase, Progress, during};
use crate::source::CacheSpec;

/// Records that need a key, put together where they are the same step with the same fate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// The step, such as `[build 2/4] RUN make`, where a key source tells.
    pub name: Option<String>,
    /// The layer that is the result; only where there is no name.
    pub layer: Option<Digest>,
    /// The record's digest; only where there is neither name nor layer.
    pub digest: Option<RecordDigest>,
    /// Whether a build finds these records.
    pub status: Status,
    /// The key sources that prove their keys: indexes into [`Check::keys_from`].
    pub sources: Vec<usize>,
    /// How many records.
    pub records: usize,
    /// Compressed bytes of their layers, each once; `None` where they have none.
    pub size: Option<u64>,
}

/// How far the key sources cover the caches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// The caches.
    pub caches: Vec<BakedCache>,
    /// Caches that were asked for, are not there, and were skipped.
    pub missing: Vec<Missing>,
    /// The key sources.
    pub keys_from: Vec<KeySourceReport>,
    /// Distinct records of the caches, as a bake counts them.
    pub records: usize,
    /// Those that are not among them, since only builds for other platforms use them.
    pub left_out: usize,
    /// Those that a build finds.
    pub keyed: usize,
    /// Those of them that have no inputs and need no proof.
    pub roots: usize,
    /// Records that no build will find, as a bake reports them.
    pub unkeyed: Vec<Unkeyed>,
    /// The records that need a key, by step, each after those that it stands on.
    pub steps: Vec<StepReport>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Caches and key sources that were read: all but their layers.
pub struct Gathered {
    /// The caches, without what `--platform` leaves out.
    pub caches: Vec<Cache>,
    /// What to say of each of them.
    pub reports: Vec<BakedCache>,
    /// Caches that were asked for, are not there, and were skipped.
    pub missing: Vec<Missing>,
    /// What the key sources prove.
    pub keys: Keys,
    /// The layers of all caches, each once.
    pub blobs: BTreeMap<Digest, Blob>,
    /// How many records only builds for other platforms use.
    pub left_out: usize,
}

/// Reads caches and key sources, and proves the keys. No layer is read.
///
/// # Errors
/// As [`open_all`], [`blobs`] and [`collect`]: what a bake would end with.
pub fn gather(
    caches: &[CacheSpec],
    skip_missing: bool,
    keys_from: &[KeySpec],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Gathered, Error> {
    let all = during(progress, Phase::Resolve, || open_all(caches, skip_missing, options, progress))?;
    let (mut caches, mut reports): (Vec<_>, Vec<_>) =
        all.opened.into_iter().map(|opened| (opened.cache, opened.report)).unzip();

    let (keys, left_out, blobs) = during(progress, Phase::Keys, || {
        let mut keys = collect(keys_from, all.sidecars, &caches, options, progress)?;
        let left_out = keep_platforms(&mut caches, &reports, &mut keys, options, progress)?;
        let blobs = blobs(&caches, |at| reports[at].cache.clone())?;
        Ok::<_, Error>((keys, left_out, blobs))
    })?;
    for (report, cache) in reports.iter_mut().zip(&caches) {
        report.written_by = keys.written_by(cache);
    }
    Ok(Gathered { caches, reports, missing: all.missing, keys, blobs, left_out })
}

/// Reads caches and key sources, and says which records a bake of them could key. No layer is read.
///
/// # Errors
/// As [`gather`].
pub fn check(
    caches: &[CacheSpec],
    skip_missing: bool,
    keys_from: &[KeySpec],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Check, Error> {
    let started = Instant::now();
    let Gathered { reports, missing, keys, left_out, .. } =
        gather(caches, skip_missing, keys_from, options, progress)?;
    let coverage = &keys.coverage;
    let records = coverage.records().len();
    Ok(Check {
        records,
        left_out,
        keyed: records - coverage.lost(),
        roots: coverage.count(Status::Root),
        unkeyed: coverage.unkeyed(),
        steps: steps(&keys),
        caches: reports,
        missing,
        keys_from: keys.reports,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What tells one line of the report from another.
#[derive(PartialEq, Eq, Hash)]
enum Label<'a> {
    Name(&'a str),
    Layer(Digest),
    Digest(&'a RecordDigest),
}

fn steps(keys: &Keys) -> Vec<StepReport> {
    let mut steps: Vec<(StepReport, BTreeSet<Digest>)> = Vec::new();
    let mut known: HashMap<(Label<'_>, Status, &[usize]), usize> = HashMap::new();
    for record in keys.coverage.need_key() {
        let label = match (&record.name, record.layer) {
            (Some(name), _) => Label::Name(name),
            (None, Some((layer, _))) => Label::Layer(layer),
            (None, None) => Label::Digest(&record.digest),
        };
        let sources = keys.proven_by(&record.digest);
        let mut step = StepReport {
            name: None,
            layer: None,
            digest: None,
            status: record.status,
            sources: sources.to_vec(),
            records: 0,
            size: None,
        };
        match &label {
            Label::Name(name) => step.name = Some((*name).to_owned()),
            Label::Layer(layer) => step.layer = Some(*layer),
            Label::Digest(digest) => step.digest = Some((*digest).clone()),
        }
        let at = *known.entry((label, record.status, sources)).or_insert_with(|| {
            steps.push((step, BTreeSet::new()));
            steps.len() - 1
        });
        let (step, layers) = &mut steps[at];
        step.records += 1;
        if let Some((layer, size)) = record.layer
            && layers.insert(layer)
        {
            step.size = Some(step.size.unwrap_or_default().saturating_add(size));
        }
    }
    steps.into_iter().map(|(step, _)| step).collect()
}
