//! What becomes of one root, told for people: at boot, after two days and after two months without a build.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::prune::forecast as passes;
use super::{Configuration, Disk, Error, Origin, Pass, Record, Release, Removal, Rule, keeping};

/// Hours after the root was made at which it is told what goes: at boot, and when the two times of the default rules
/// are over.
const HOURS: [i64; 3] = [0, 48, 60 * 24];

/// What is asked: a root, and the daemon that will run on it.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The records of the root.
    pub records: &'a [Record],
    /// The most bytes that each of them may have; where their sizes are known, those.
    pub largest: &'a [u64],
    /// The daemon's configuration.
    pub configuration: &'a Configuration,
    /// The daemon's release.
    pub release: Release,
    /// The root's disk, with the root on it.
    pub disk: Disk,
    /// When the daemon starts.
    pub start: Timestamp,
    /// How many bytes builds may add before something has to go; `None`: half of what is free.
    pub room: Option<u64>,
}

/// What collection will do to a root on which nothing is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// The daemon's release.
    pub release: String,
    /// Where its rules are from.
    pub policy: Origin,
    /// The rules, in their order.
    pub rules: Vec<RuleReport>,
    /// Keys of its configuration that it reads past.
    pub ignored: Vec<String>,
    /// The disk.
    pub disk: Disk,
    /// What goes when.
    pub passes: Vec<PassReport>,
    /// A `buildkitd.toml` with which nothing goes.
    pub keep: String,
}

/// A [`Rule`], with a time of whole seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    filters: Vec<String>,
    all: bool,
    keep_seconds: i64,
    reserved_space: i64,
    max_used_space: i64,
    min_free_space: i64,
}

/// One collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassReport {
    /// Hours after the start.
    pub hours: i64,
    /// Records that go.
    pub records: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the records that are left.
    pub bytes_left: u64,
    /// How many would go if each record had the most bytes that it may have.
    pub records_up_to: usize,
    /// What goes, in this order.
    pub removed: Vec<Removed>,
}

/// A record that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Its id.
    pub record: String,
    /// What `buildctl du` says of it.
    pub description: String,
    /// Its bytes.
    pub bytes: u64,
    /// The rule that takes it, counted from 1.
    pub rule: usize,
    /// Of how many records any may go at this point, equally old and used as they are.
    pub among: usize,
}

impl Forecast {
    /// Whether nothing goes, as far as it can be told: not even if records have the most bytes that they may have.
    pub fn keeps_all(&self) -> bool {
        self.passes.iter().all(|pass| pass.records == 0 && pass.records_up_to == 0)
    }
}

/// Foretells what is asked.
///
/// # Errors
/// A record's parent is missing, or the daemon cannot read a filter.
pub fn foretell(question: &Question<'_>) -> Result<Forecast, Error> {
    let Question { records, configuration, release, disk, start, .. } = *question;
    let policy = configuration.policy(release, disk)?;
    let moments = HOURS.map(|hours| start + SignedDuration::from_hours(hours));
    let expected = passes(records, &policy, release, disk, &moments)?;
    let mut large = records.to_vec();
    for (record, size) in large.iter_mut().zip(question.largest) {
        record.size = record.size.max(*size);
    }
    let more = large
        .iter()
        .zip(records)
        .fold(0_u64, |sum, (large, record)| sum.saturating_add(large.size - record.size));
    let fuller = Disk { free: disk.free.saturating_sub(more), ..disk };
    let largest = passes(&large, &policy, release, fuller, &moments)?;
    let room = question.room.unwrap_or(fuller.free / 2);
    let report = |((hours, pass), large): ((i64, &Pass), &Pass)| PassReport {
        hours,
        records: pass.removed.len(),
        bytes: pass.bytes_removed,
        bytes_left: pass.bytes_left,
        records_up_to: large.removed.len(),
        removed: removed(records, pass),
    };
    Ok(Forecast {
        release: release.to_string(),
        policy: policy.origin,
        rules: policy.rules.iter().map(RuleReport::from).collect(),
        ignored: policy.ignored,
        disk,
        passes: HOURS.into_iter().zip(&expected).zip(&largest).map(report).collect(),
        keep: keeping(configuration.worker(), &large, room, release),
    })
}

fn removed(records: &[Record], pass: &Pass) -> Vec<Removed> {
    let report = |removal: &Removal| {
        let record = &records[removal.record];
        Removed {
            record: record.id.clone(),
            description: record.description.clone(),
            bytes: record.size,
            rule: removal.rule + 1,
            among: removal.among,
        }
    };
    pass.removed.iter().map(report).collect()
}

impl From<&Rule> for RuleReport {
    fn from(rule: &Rule) -> Self {
        Self {
            filters: rule.filters.clone(),
            all: rule.all,
            keep_seconds: rule.keep_duration.as_secs(),
            reserved_space: rule.reserved_space,
            max_used_space: rule.max_used_space,
            min_free_space: rule.min_free_space,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const START: Timestamp = Timestamp::UNIX_EPOCH;

    fn records(sizes: &[u64]) -> Vec<Record> {
        let record = |(at, size): (usize, &u64)| Record {
            id: at.to_string(),
            size: *size,
            last_used_at: Some(START),
            usage_count: 2,
            description: format!("step {at}"),
            ..Record::default()
        };
        sizes.iter().enumerate().map(record).collect()
    }

    fn ask(sizes: &[u64], largest: &[u64], text: &str) -> Forecast {
        let disk = Disk { total: 100 * GIB, free: 60 * GIB };
        foretell(&Question {
            records: &records(sizes),
            largest,
            configuration: &Configuration::read(text).unwrap(),
            release: Release::NEWEST,
            disk,
            start: START,
            room: None,
        })
        .unwrap()
    }

    fn counts(forecast: &Forecast) -> Vec<(i64, usize, usize)> {
        forecast.passes.iter().map(|pass| (pass.hours, pass.records, pass.records_up_to)).collect()
    }

    #[test]
    fn tells_what_goes_when() {
        let idle = "[[worker.oci.gcpolicy]]\nkeepDuration = \"48h\"\n";
        for (sizes, largest, text, expected) in [
            // Defaults of this disk: 81 GB, and 21 GB free.
            ([10 * GIB, 20 * GIB], [10 * GIB, 20 * GIB], "", [0, 0, 0, 0, 0, 0]),
            ([10 * GIB, 20 * GIB], [80 * GIB, 20 * GIB], "", [0, 2, 0, 0, 0, 0]),
            ([80 * GIB, 10 * GIB], [80 * GIB, 10 * GIB], "", [1, 1, 0, 0, 0, 0]),
            ([1, 1], [1, 1], idle, [0, 0, 2, 2, 0, 0]),
            ([1, 1], [1, 1], "[worker.oci]\ngc = false", [0, 0, 0, 0, 0, 0]),
        ] {
            let forecast = ask(&sizes, &largest, text);
            let expected: Vec<_> = HOURS
                .into_iter()
                .zip(expected.chunks(2))
                .map(|(hours, pair)| (hours, pair[0], pair[1]))
                .collect();
            assert_eq!(counts(&forecast), expected, "{sizes:?} {largest:?} {text:?}");
            assert_eq!(forecast.keeps_all(), expected.iter().all(|pass| (pass.1, pass.2) == (0, 0)));
        }
    }

    #[test]
    fn what_is_to_keep_it_keeps_it() {
        let sizes = [90 * GIB, 3];
        let forecast = ask(&sizes, &[95 * GIB, 4], "");
        assert!(!forecast.keeps_all());
        assert_eq!(forecast.passes[0].removed.len(), 1);
        assert!(ask(&sizes, &[95 * GIB, 4], &forecast.keep).keeps_all(), "{}", forecast.keep);
    }
}
