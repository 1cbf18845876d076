//! Whether garbage collection leaves an image's root as it is: at the first start, and in hosts that stand idle.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::fstatvfs;

use super::super::files::subject;
use super::super::records::Records;
use super::super::report::{Collection, CollectionPass, FindingKind, Findings};
use super::super::{Error, Worker};
use super::Image;
use crate::gc::{self, Configuration, Disk, Release};

/// Where a daemon's configuration stands.
const CONFIGURATION: &str = "/etc/buildkit/buildkitd.toml";
/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// When daemons collect, in hours: when the machine boots, and when the times of the default rules have passed.
const MOMENTS: [u32; 3] = [0, 48, 60 * 24];
/// What builds may add before something goes, in the configuration that is proposed, in bytes.
const ROOM: u64 = 10_000_000_000;

/// Foretells collections with the configuration that the image has, or that was given with its `text`.
pub(super) fn check(
    image: &Image<'_>,
    given: Option<&str>,
    workers: &[Worker],
    findings: &mut Findings,
) -> Option<Collection> {
    let place = image.options.buildkitd_config.as_deref().unwrap_or(Path::new(CONFIGURATION));
    let (text, is_there) = match given {
        Some(text) => (text.to_owned(), true),
        None => match image.sysroot.read(place, LONGEST) {
            Ok(bytes) => {
                let is_there = bytes.is_some();
                (String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned(), is_there)
            }
            Err(fault) => {
                findings.add(FindingKind::CollectionUnknown, subject(place), fault.detail);
                return None;
            }
        },
    };
    let release = image.options.release;
    let disk = disk(image)?;
    let policy = Configuration::read(&text).and_then(|configuration| configuration.policy(release, disk));
    let policy = match policy {
        Ok(policy) => policy,
        Err(error) => {
            findings.add(FindingKind::CollectionUnknown, subject(place), error.to_string());
            return None;
        }
    };
    let mut records = Vec::new();
    for worker in workers {
        records.extend(collected(worker.records.as_ref()?));
    }
    let now = Timestamp::now();
    let moments = MOMENTS.map(|hours| now + SignedDuration::from_hours(hours.into()));
    // Where there is none, a record's parent is missing, which is a finding already.
    let passes = gc::forecast(&records, &policy, release, disk, &moments).ok()?;
    let passes: Vec<CollectionPass> = MOMENTS
        .into_iter()
        .zip(&passes)
        .map(|(after_hours, pass)| CollectionPass {
            after_hours,
            records: pass.removed.len(),
            bytes: pass.bytes_removed,
        })
        .collect();
    if passes.iter().any(|pass| pass.records > 0) {
        let detail = describe(&passes, &records, disk, release);
        findings.add(FindingKind::CollectionTakes, image.subject(""), detail);
    }
    let configuration = is_there.then(|| place.display().to_string());
    Some(Collection { release: release.to_string(), configuration, disk: disk.total, passes })
}

/// The configuration outside of the image, if one was named.
pub(in super::super) fn given(options: &super::ImageOptions) -> Result<Option<String>, Error> {
    let read = |path: &std::path::PathBuf| {
        let error = |source| Error::Configuration { path: path.clone(), source };
        std::fs::read_to_string(path).map_err(error)
    };
    options.buildkitd_config.as_ref().map(read).transpose()
}

/// The disk that the root is on, with as much used of it as there is, however large it will be.
fn disk(image: &Image<'_>) -> Option<Disk> {
    let stat = fstatvfs(image.tree).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let (total, free) = (bytes(stat.f_blocks), bytes(stat.f_bfree));
    Some(match image.options.disk {
        Some(size) => Disk { total: size, free: size.saturating_sub(total.saturating_sub(free)) },
        None => Disk { total, free },
    })
}

fn describe(passes: &[CollectionPass], records: &[gc::Record], disk: Disk, release: Release) -> String {
    let taken = passes.iter().filter(|pass| pass.records > 0).map(|pass| {
        let when = match pass.after_hours {
            0 => "when the machine boots".to_owned(),
            hours => format!("after {hours} hours"),
        };
        format!("{} of {} records, {} bytes, {when}", pass.records, records.len(), pass.bytes)
    });
    let taken: Vec<_> = taken.collect();
    let keep = gc::keeping(records, ROOM, release);
    let keep: Vec<_> = keep.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    format!(
        "BuildKit {release} on a disk of {} bytes takes {}; ship it on a larger disk, or with {CONFIGURATION}: {}",
        disk.total,
        taken.join(", then "),
        keep.join("; ")
    )
}

/// The records as collection sees them: two that share their data, one of them mutable, are one.
fn collected(records: &Records) -> impl Iterator<Item = gc::Record> {
    let twin = |id: &str| {
        let mutable = records.0.get(id)?.equal_mutable.as_deref()?;
        records.0.contains_key(mutable).then_some(mutable)
    };
    // Mutable records stand on what their twins stand on, and others stand on the twins.
    let real: BTreeMap<&str, &str> =
        records.0.keys().filter_map(|id| Some((id.as_str(), twin(id)?))).collect();
    records.0.iter().filter_map(move |(id, record)| {
        if record.deleted || real.contains_key(id.as_str()) {
            return None;
        }
        let parents = record.parents().map(|parent| real.get(parent).copied().unwrap_or(parent).to_owned());
        Some(gc::Record {
            id: id.clone(),
            // One that nobody has counted yet counts when the daemon does.
            size: record.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
            record_type: record.record_type.clone().unwrap_or_default(),
            description: record.description.clone().unwrap_or_default(),
            mutable: record.is_mutable(),
            last_used_at: record.last_used_at.and_then(|at| Timestamp::from_nanosecond(at.into()).ok()),
            usage_count: record.usage_count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default(),
            parents: parents.collect(),
            ..gc::Record::default()
        })
    })
}
