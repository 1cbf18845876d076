//! Whether garbage collection leaves an image's root as it is: at the first start, and in hosts that stand idle.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::fstatvfs;

use super::super::files::subject;
use super::super::report::{Collection, CollectionPass, FindingKind, Findings};
use super::{Configured, Image};
use crate::gc::{self, Configuration, Disk, Release};
use crate::root::{Root, Usage, Worker, usage};

/// Where a daemon's configuration stands.
const CONFIGURATION: &str = "/etc/buildkit/buildkitd.toml";
/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// When daemons collect, in hours: when the machine boots, and when the times of the default rules have passed.
const MOMENTS: [u32; 3] = [0, 48, 60 * 24];
/// What builds may add before something goes, in the configuration that is proposed, in bytes.
const ROOM: u64 = 10_000_000_000;

/// Foretells collections with the configuration that was given, or that the image has.
pub(super) fn check(
    image: &Image<'_>,
    root: &Root,
    workers: &[Worker],
    findings: &mut Findings,
) -> Option<Collection> {
    let (place, text, is_there) = match &image.options.configuration {
        Some(Configured { path, text }) => (path.as_path(), text.clone(), true),
        None => match image.sysroot.read(Path::new(CONFIGURATION), LONGEST) {
            Ok(bytes) => {
                let is_there = bytes.is_some();
                let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
                (Path::new(CONFIGURATION), text, is_there)
            }
            Err(fault) => {
                findings.add(FindingKind::CollectionUnknown, subject(Path::new(CONFIGURATION)), fault.detail);
                return None;
            }
        },
    };
    let release = image.options.release;
    let disk = disk(root, image.options.disk)?;
    let policy = Configuration::read(&text).and_then(|configuration| configuration.policy(release, disk));
    let policy = match policy {
        Ok(policy) => policy,
        Err(error) => {
            findings.add(FindingKind::CollectionUnknown, subject(place), error.to_string());
            return None;
        }
    };
    if workers.iter().any(|worker| worker.records.is_none()) {
        return None;
    }
    let records: Vec<gc::Record> = workers.iter().flat_map(usage).map(collected).collect();
    let now = Timestamp::now();
    let moments = MOMENTS.map(|hours| now + SignedDuration::from_hours(hours.into()));
    // Where there is none, a record's parent is missing, which is a finding already; so are records that cannot be read.
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

/// The disk that the root is on, with as much used of it as there is, however large it will be.
fn disk(root: &Root, size: Option<u64>) -> Option<Disk> {
    let stat = fstatvfs(&root.tree).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let (total, free) = (bytes(stat.f_blocks), bytes(stat.f_bfree));
    Some(match size {
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

/// A record as collection sees it.
fn collected(usage: Usage) -> gc::Record {
    gc::Record {
        id: usage.id,
        // One that nobody has counted yet counts when the daemon does.
        size: usage.size.unwrap_or_default(),
        record_type: usage.record_type,
        description: usage.description,
        mutable: usage.mutable,
        last_used_at: usage.last_used_at.and_then(|at| Timestamp::from_nanosecond(at.into()).ok()),
        usage_count: usage.usage_count,
        parents: usage.parents,
        ..gc::Record::default()
    }
}
