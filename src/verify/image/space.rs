//! Whether garbage collection leaves an image's root as it is: at the first start, and in hosts that stand idle.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::fstatvfs;

use super::super::report::{FindingKind, Findings, Subject};
use super::{Configured, Image};
use crate::gc::{self, Configuration, Disk};
use crate::root::{Root, Worker};

/// Where the configuration of a daemon stands that runs as root.
const CONFIGURATION: &str = "/etc/buildkit/buildkitd.toml";
/// That of a daemon that a plain user runs, in the user's home.
const OF_USER: &str = ".config/buildkit/buildkitd.toml";
/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Foretells collections with the configuration that was given, or that the image has, and gives where that is; `home`:
/// of the user whose rootless daemon it is.
pub(super) fn check(
    image: &Image<'_>,
    root: &Root,
    workers: &[Worker],
    home: Option<&Path>,
    findings: &mut Findings,
) -> (Option<String>, Option<gc::Forecast>) {
    let in_image = home.map_or_else(|| PathBuf::from(CONFIGURATION), |home| home.join(OF_USER));
    let in_image = in_image.as_path();
    let (place, text) = match &image.options.configuration {
        Some(Configured { path, text }) => (path.as_path(), Some(text.clone())),
        None => match image.sysroot.read(in_image, LONGEST) {
            Ok(bytes) => (in_image, bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
            Err(fault) => {
                findings.add(FindingKind::CollectionUnknown, Subject::file(in_image), fault.detail);
                return (None, None);
            }
        },
    };
    let config = text.as_ref().map(|_| place.display().to_string());
    let forecast = match Configuration::read(&text.unwrap_or_default()) {
        Ok(configuration) => forecast(image, root, workers, &configuration),
        Err(error) => Err(error),
    };
    let forecast = forecast.unwrap_or_else(|error| {
        // That a parent is missing was a finding when the records were judged.
        if !matches!(error, gc::Error::Parent { .. }) {
            findings.add(FindingKind::CollectionUnknown, Subject::file(place), error.to_string());
        }
        None
    });
    if let Some(forecast) = forecast.as_ref().filter(|forecast| !forecast.keeps_all()) {
        findings.add(FindingKind::CollectionTakes, image.subject(""), describe(forecast, in_image));
    }
    (config, forecast)
}

/// `None` where records cannot be read, which is a finding already.
fn forecast(
    image: &Image<'_>,
    root: &Root,
    workers: &[Worker],
    configuration: &Configuration,
) -> Result<Option<gc::Forecast>, gc::Error> {
    let Some(disk) = disk(root) else { return Ok(None) };
    if workers.iter().any(|worker| worker.records.is_none()) {
        return Ok(None);
    }
    let records: Vec<gc::Record> =
        workers.iter().flat_map(|worker| root.usage(worker)).map(gc::Record::from).collect();
    let used: u64 = records.iter().fold(0, |sum, record| sum.saturating_add(record.size));
    let disk = match image.options.disk_size {
        Some(total) => Disk { total, free: total.saturating_sub(used) },
        None => disk,
    };
    gc::foretell(&gc::Question {
        records: &records,
        largest: &[],
        configuration,
        release: image.options.release,
        disk,
        start: Timestamp::now(),
        room: None,
    })
    .map(Some)
}

/// The disk that the root is on.
fn disk(root: &Root) -> Option<Disk> {
    let stat = fstatvfs(&root.tree).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Disk { total: bytes(stat.f_blocks), free: bytes(stat.f_bfree) })
}

fn describe(forecast: &gc::Forecast, configuration: &Path) -> String {
    let taken = forecast.passes.iter().filter(|pass| pass.records > 0).map(|pass| {
        let when = match pass.hours {
            0 => "when the machine boots".to_owned(),
            hours => format!("after {hours} hours"),
        };
        format!("{} records, {} bytes, {when}", pass.records, pass.bytes)
    });
    let taken: Vec<_> = taken.collect();
    let keep: Vec<_> = forecast.keep.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    format!(
        "BuildKit {} on a disk of {} bytes takes {}; ship it on a larger disk, or with {}: {}",
        forecast.release,
        forecast.disk.total,
        taken.join(", then "),
        configuration.display(),
        keep.join("; ")
    )
}
