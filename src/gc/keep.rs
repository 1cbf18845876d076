//! The configuration that keeps a cache.

use super::{Record, Release, Worker};

/// A size is rounded up to whole units of this, so that it can be read.
const UNIT: u64 = 1_000_000;

/// The part of a `buildkitd.toml` with which collection takes none of these records, as long as builds add no more
/// than `room` bytes to them, however long nothing is built: one rule without a time.
///
/// Beyond that, what was used longest ago and least often goes first, as always.
pub fn keeping(worker: Worker, records: &[Record], room: u64, release: Release) -> String {
    let used = records.iter().fold(room, |sum, record| sum.saturating_add(record.size));
    // A limit that is reached is exceeded; one of 0 bytes is none.
    let limit = (used / UNIT + 1).saturating_mul(UNIT).min(i64::MAX.unsigned_abs());
    let name = if release.has_three_limits() { "reservedSpace" } else { "keepBytes" };
    let table = worker.table();
    format!("[{table}]\n  gc = true\n\n[[{table}.gcpolicy]]\n  all = true\n  {name} = {limit}\n")
}
