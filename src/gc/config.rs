//! `buildkitd.toml`, and what a release makes of it on a disk.

use jiff::SignedDuration;
use serde::Serialize;
use toml::{Table, Value};

use super::filter::Filter;
use super::quantity::{Space, duration};
use super::{Disk, Error, Release};

const HOURS: i64 = 3600;

/// Which worker a daemon has: each has a table of its own in `buildkitd.toml`, with the same keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Worker {
    /// That with snapshots and blobs in the root.
    #[default]
    Oci,
    /// That with snapshots and blobs in a containerd.
    Containerd,
}

impl Worker {
    /// Its name there, below `worker`.
    fn name(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Containerd => "containerd",
        }
    }

    /// Its table there.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Oci => "worker.oci",
            Self::Containerd => "worker.containerd",
        }
    }
}

/// What the worker's table of a `buildkitd.toml` says of collection; without one, nothing.
///
/// Options on the daemon's command line have the last word: [`Configuration::with_arguments`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    worker: Worker,
    gc: Option<bool>,
    keep_storage: Space,
    limits: Limits,
    rules: Vec<Entry>,
}

/// The three limits of v0.17.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    reserved: Space,
    max_used: Space,
    min_free: Space,
}

impl Limits {
    fn is_unset(self) -> bool {
        self == Self::default()
    }
}

/// A `gcpolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    all: bool,
    filters: Vec<String>,
    keep_duration: i64,
    keep_bytes: Space,
    limits: Limits,
}

/// Where a policy is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Collection is off.
    Off,
    /// The release's own, with the limits of the configuration if it has any.
    Default,
    /// `gcpolicy` in the configuration.
    Configured,
}

/// What a daemon applies, in this order, each time it collects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where it is from.
    pub origin: Origin,
    /// Its rules; none where collection is off.
    pub rules: Vec<Rule>,
    /// Keys of the configuration that this release reads past.
    pub ignored: Vec<String>,
}

/// One rule. Limits are bytes, and 0 where there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What records it is about: one of these has to match, none is for all of them.
    pub filters: Vec<String>,
    /// Whether it takes internal records and frontends too, and those that an image uses.
    pub all: bool,
    /// It leaves what was used within that time.
    pub keep_duration: SignedDuration,
    /// It never goes below this many bytes; `keepBytes` before v0.17.
    pub reserved_space: i64,
    /// It takes records until no more than this is used.
    pub max_used_space: i64,
    /// It takes as many bytes as are missing to this many free ones.
    pub min_free_space: i64,
}

/// The keys that mean something, as upstream writes them.
const WORKER: [&str; 6] =
    ["gc", "gckeepstorage", "reservedSpace", "maxUsedSpace", "minFreeSpace", "gcpolicy"];
/// The keys that came with v0.17.
const LIMITS: [&str; 3] = ["reservedSpace", "maxUsedSpace", "minFreeSpace"];

impl Configuration {
    /// Reads the text of a `buildkitd.toml` for an OCI worker. Other parts of it mean nothing here.
    ///
    /// # Errors
    /// A daemon would not start with it.
    pub fn read(text: &str) -> Result<Self, Error> {
        Self::read_for(Worker::Oci, text)
    }

    /// As [`Self::read`], for either worker.
    ///
    /// # Errors
    /// As there.
    pub fn read_for(worker: Worker, text: &str) -> Result<Self, Error> {
        let table: Table = text.parse()?;
        let mut read = Self { worker, ..Self::default() };
        let Some(workers) = subtable(&table, "worker", "worker")? else { return Ok(read) };
        let Some(own) = subtable(workers, worker.name(), worker.table())? else { return Ok(read) };
        for name in WORKER {
            let Some(value) = get(own, name) else { continue };
            let key = || format!("{}.{name}", worker.table());
            match name {
                "gc" => read.gc = Some(boolean(value, key())?),
                "gckeepstorage" => read.keep_storage = space(value, key())?,
                "gcpolicy" => {
                    let list =
                        value.as_array().ok_or(Error::Kind { key: key(), expected: "a list of tables" })?;
                    for value in list {
                        let expected = "a list of tables";
                        let entry = value.as_table().ok_or(Error::Kind { key: key(), expected })?;
                        read.rules.push(Entry::read(entry, worker)?);
                    }
                }
                limit => read.limits.set(limit, value, key())?,
            }
        }
        Ok(read)
    }

    /// The same with the worker's arguments of `release`, `--oci-worker-gc` and `--oci-worker-gc-keepstorage` or those with
    /// `containerd`, where they are given.
    ///
    /// # Errors
    /// A daemon of this release would not start with them.
    pub fn with_arguments(
        mut self,
        gc: Option<bool>,
        keep_storage: Option<&str>,
        release: Release,
    ) -> Result<Self, Error> {
        self.gc = gc.or(self.gc);
        let Some(text) = keep_storage.filter(|text| !text.is_empty()) else { return Ok(self) };
        let invalid = || Error::Space {
            key: format!("--{}-worker-gc-keepstorage", self.worker.name()),
            value: text.to_owned(),
        };
        // Megabytes: what to reserve, to leave free, and to use at most.
        let megabytes =
            |text: &str| text.parse::<i64>().map(|count| Space::bytes(count.saturating_mul(1_000_000)));
        if !release.has_three_limits() {
            self.keep_storage = megabytes(text).map_err(|_| invalid())?;
            return Ok(self);
        }
        let mut parts = text.splitn(3, ',').map(megabytes);
        let mut next = || parts.next().unwrap_or(Ok(Space::default())).map_err(|_| invalid());
        let (reserved, min_free, max_used) = (next()?, next()?, next()?);
        self.limits = Limits { reserved, max_used, min_free };
        Ok(self)
    }

    /// The worker that it is of.
    pub(super) fn worker(&self) -> Worker {
        self.worker
    }

    /// What `release` makes of it on `disk`.
    ///
    /// # Errors
    /// The daemon cannot read a filter.
    pub fn policy(&self, release: Release, disk: Disk) -> Result<Policy, Error> {
        let mut ignored = Vec::new();
        if !release.has_three_limits() {
            let set = |limits: Limits, place: &str| {
                let all = [limits.reserved, limits.max_used, limits.min_free];
                let set = LIMITS.iter().zip(all).filter(|(_, space)| !space.is_unset());
                set.map(|(name, _)| format!("{place}.{name}")).collect::<Vec<_>>()
            };
            let table = self.worker.table();
            ignored.extend(set(self.limits, table));
            let rules = format!("{table}.gcpolicy");
            ignored.extend(self.rules.iter().flat_map(|rule| set(rule.limits, &rules)));
            ignored.dedup();
        }
        if self.gc == Some(false) {
            return Ok(Policy { origin: Origin::Off, rules: Vec::new(), ignored });
        }
        let (origin, entries) = match self.rules.as_slice() {
            [] => (Origin::Default, self.default_rules(release, disk)),
            rules => (Origin::Configured, rules.to_vec()),
        };
        let rules: Vec<Rule> = entries.iter().map(|entry| entry.rule(release, disk)).collect();
        for filter in rules.iter().flat_map(|rule| &rule.filters) {
            Filter::parse(filter)?;
        }
        Ok(Policy { origin, rules, ignored })
    }

    /// Mirrors `DefaultGCPolicy`.
    fn default_rules(&self, release: Release, disk: Disk) -> Vec<Entry> {
        let easily_made = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
        let filters = if release.default_filters_are_alternatives() {
            easily_made.map(str::to_owned).to_vec()
        } else {
            // One filter that wants a record to be all three at once.
            vec![easily_made.join(",")]
        };
        let days = |count: i64| count * 24 * HOURS * 1_000_000_000;
        let first_limit = Space::bytes(512_000_000);
        let first = Entry { filters, keep_duration: days(2), ..Entry::default() };
        let (first, capped) = if release.has_three_limits() {
            let limits = Limits { max_used: first_limit, ..Limits::default() };
            let capped = Entry { limits: self.limits_or_default(disk), ..Entry::default() };
            (Entry { limits, ..first }, capped)
        } else {
            let keep = self.keep_storage;
            let keep_bytes = if keep.is_unset() { Space::percentage(10) } else { keep };
            (Entry { keep_bytes: first_limit, ..first }, Entry { keep_bytes, ..Entry::default() })
        };
        let old = Entry { keep_duration: days(60), ..capped.clone() };
        let internal = Entry { all: true, ..capped.clone() };
        vec![first, old, capped, internal]
    }

    /// Mirrors `DetectDefaultGCCap` of v0.17.
    fn limits_or_default(&self, disk: Disk) -> Limits {
        let mut limits = self.limits;
        if limits.is_unset() {
            limits.reserved = self.keep_storage;
        }
        if !limits.is_unset() {
            return limits;
        }
        let at_most = |percentage, bytes| {
            let share = Space::percentage(percentage);
            if share.on(disk) > bytes { Space::bytes(bytes) } else { share }
        };
        Limits {
            reserved: at_most(10, 10_000_000_000),
            max_used: at_most(80, 100_000_000_000),
            min_free: Space::percentage(20),
        }
    }
}

impl Limits {
    fn set(&mut self, name: &str, value: &Value, key: String) -> Result<(), Error> {
        let limit = match name {
            "reservedSpace" => &mut self.reserved,
            "maxUsedSpace" => &mut self.max_used,
            _ => &mut self.min_free,
        };
        *limit = space(value, key)?;
        Ok(())
    }
}

impl Entry {
    fn read(table: &Table, worker: Worker) -> Result<Self, Error> {
        let mut entry = Self::default();
        for name in ["all", "filters", "keepDuration", "keepBytes"].into_iter().chain(LIMITS) {
            let Some(value) = get(table, name) else { continue };
            let key = format!("{}.gcpolicy.{name}", worker.table());
            match name {
                "all" => entry.all = boolean(value, key)?,
                "filters" => entry.filters = strings(value, &key)?,
                "keepDuration" => {
                    let text =
                        scalar(value).ok_or(Error::Kind { key: key.clone(), expected: "a duration" })?;
                    entry.keep_duration = duration(&text).ok_or(Error::Duration { key, value: text })?;
                }
                "keepBytes" => entry.keep_bytes = space(value, key)?,
                limit => entry.limits.set(limit, value, key)?,
            }
        }
        Ok(entry)
    }

    fn rule(&self, release: Release, disk: Disk) -> Rule {
        let Limits { mut reserved, max_used, min_free } = self.limits;
        let old = !release.has_three_limits();
        if old || reserved.is_unset() {
            reserved = self.keep_bytes;
        }
        Rule {
            filters: self.filters.clone(),
            all: self.all,
            keep_duration: SignedDuration::from_nanos(self.keep_duration),
            reserved_space: reserved.on(disk),
            max_used_space: if old { 0 } else { max_used.on(disk) },
            min_free_space: if old { 0 } else { min_free.on(disk) },
        }
    }
}

/// A value by its key, which the daemon finds in other cases too.
fn get<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    table
        .get(name)
        .or_else(|| table.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

fn subtable<'a>(table: &'a Table, name: &str, key: &str) -> Result<Option<&'a Table>, Error> {
    let kind = || Error::Kind { key: key.to_owned(), expected: "a table" };
    get(table, name).map(|value| value.as_table().ok_or_else(kind)).transpose()
}

fn boolean(value: &Value, key: String) -> Result<bool, Error> {
    value.as_bool().ok_or(Error::Kind { key, expected: "true or false" })
}

fn strings(value: &Value, key: &str) -> Result<Vec<String>, Error> {
    let kind = || Error::Kind { key: key.to_owned(), expected: "a list of texts" };
    let list = value.as_array().ok_or_else(kind)?;
    list.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(kind)).collect()
}

/// The text of a value that a daemon reads from text or number alike.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

fn space(value: &Value, key: String) -> Result<Space, Error> {
    let text = scalar(value).ok_or(Error::Kind { key: key.clone(), expected: "a disk space" })?;
    Space::read(&text).ok_or(Error::Space { key, value: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Release = Release::new(0, 12, 5);
    const NEW: Release = Release::NEWEST;
    const GB: i64 = 1_000_000_000;
    const DISK: Disk = Disk { total: 200 << 30, free: 150 << 30 };

    fn policy(text: &str, release: Release, disk: Disk) -> Policy {
        Configuration::read(text).unwrap().policy(release, disk).unwrap()
    }

    /// All, hours, reserved, max used and min free of each rule.
    fn numbers(policy: &Policy) -> Vec<(bool, i64, i64, i64, i64)> {
        let number = |rule: &Rule| {
            let hours = rule.keep_duration.as_hours();
            (rule.all, hours, rule.reserved_space, rule.max_used_space, rule.min_free_space)
        };
        policy.rules.iter().map(number).collect()
    }

    #[test]
    fn arguments_have_the_last_word() {
        let text = "[worker.oci]\ngc = false\nreservedSpace = 1000\nmaxUsedSpace = 2000\n";
        let read = || Configuration::read(text).unwrap();
        let capped = |gc, keep, release| {
            let policy = read().with_arguments(gc, keep, release).unwrap().policy(release, DISK).unwrap();
            numbers(&policy).get(2).copied()
        };
        assert_eq!(capped(None, Some("5"), NEW), None);
        assert_eq!(capped(Some(true), None, NEW), Some((false, 0, 1000, 2000, 0)));
        assert_eq!(capped(Some(true), Some("5"), NEW), Some((false, 0, 5_000_000, 0, 0)));
        assert_eq!(capped(Some(true), Some("5,6,7"), NEW), Some((false, 0, 5_000_000, 7_000_000, 6_000_000)));
        assert_eq!(capped(Some(true), Some("5"), OLD), Some((false, 0, 5_000_000, 0, 0)));
        for (keep, release) in [("5,6", OLD), ("x", NEW), ("5,x", NEW), ("10%", NEW)] {
            let error = read().with_arguments(None, Some(keep), release).unwrap_err().to_string();
            assert!(error.contains("--oci-worker-gc-keepstorage"), "{error}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_release_on_the_disk() {
        let small = Disk { total: 20 << 30, free: 0 };
        for (text, release, disk, first, capped) in [
            // A tenth of the disk, in whole GiB that count for GBs.
            ("", OLD, DISK, (512_000_000, 0), (21 * GB, 0, 0)),
            ("[worker.oci]\ngckeepstorage = \"5%\"", OLD, DISK, (512_000_000, 0), (11 * GB, 0, 0)),
            ("[worker.oci]\ngckeepstorage = 9000", OLD, DISK, (512_000_000, 0), (9000, 0, 0)),
            ("[worker.oci]\nmaxUsedSpace = 9000", OLD, DISK, (512_000_000, 0), (21 * GB, 0, 0)),
            ("", NEW, DISK, (0, 512_000_000), (10 * GB, 100 * GB, 41 * GB)),
            ("", NEW, small, (0, 512_000_000), (3 * GB, 17 * GB, 5 * GB)),
            ("[worker.oci]\ngckeepstorage = 9000", NEW, DISK, (0, 512_000_000), (9000, 0, 0)),
            (
                "[worker.oci]\nmaxUsedSpace = \"1k\"\ngckeepstorage = 9",
                NEW,
                DISK,
                (0, 512_000_000),
                (0, 1024, 0),
            ),
            ("[worker.oci]\nreservedSpace = \"5%\"", NEW, DISK, (0, 512_000_000), (11 * GB, 0, 0)),
            ("[WORKER.OCI]\nMinFreeSpace = \"7%\"", NEW, DISK, (0, 512_000_000), (0, 0, 15 * GB)),
        ] {
            let policy = policy(text, release, disk);
            assert_eq!(policy.origin, Origin::Default, "{text}");
            let (reserved, max_used, min_free) = capped;
            let expected = vec![
                (false, 48, first.0, first.1, 0),
                (false, 60 * 24, reserved, max_used, min_free),
                (false, 0, reserved, max_used, min_free),
                (true, 0, reserved, max_used, min_free),
            ];
            assert_eq!(numbers(&policy), expected, "{text:?} in {release}");
        }
        assert_eq!(policy("", OLD, DISK).rules[0].filters.len(), 1);
        assert_eq!(policy("", Release::new(0, 30, 0), DISK).rules[0].filters.len(), 1);
        assert_eq!(policy("", NEW, DISK).rules[0].filters.len(), 3);
    }

    #[test]
    fn rules_are_read_as_the_release_reads_them() {
        let text = "[worker.oci]\n\
                    [[worker.oci.gcpolicy]]\n keepBytes = \"1GB\"\n keepDuration = 172800\n filters = [\"type==regular\"]\n\
                    [[worker.oci.gcpolicy]]\n all = true\n reservedSpace = 5\n maxUsedSpace = 7\n minFreeSpace = \"10%\"\n\
                    keepBytes = 3\n";
        let new = policy(text, NEW, DISK);
        assert_eq!((new.origin, new.ignored.as_slice()), (Origin::Configured, [].as_slice()));
        assert_eq!(new.rules[0].filters, ["type==regular"]);
        assert_eq!(numbers(&new), [(false, 48, 1 << 30, 0, 0), (true, 0, 5, 7, 21 * GB)]);
        let old = policy(text, OLD, DISK);
        assert_eq!(numbers(&old), [(false, 48, 1 << 30, 0, 0), (true, 0, 3, 0, 0)]);
        assert_eq!(old.ignored, LIMITS.map(|name| format!("worker.oci.gcpolicy.{name}")));
    }

    #[test]
    fn off_is_off() {
        let off = policy("[worker.oci]\ngc = false\n[[worker.oci.gcpolicy]]\nall = true", NEW, DISK);
        assert_eq!((off.origin, off.rules.len()), (Origin::Off, 0));
        // The containerd worker has its own.
        let text = "[worker.containerd]\ngc = false";
        assert_eq!(policy(text, NEW, DISK).origin, Origin::Default);
        let read = |text| Configuration::read_for(Worker::Containerd, text);
        assert_eq!(read(text).unwrap().policy(NEW, DISK).unwrap().origin, Origin::Off);
        let told = read("[worker.containerd]\nmaxUsedSpace = 7").unwrap().policy(OLD, DISK).unwrap();
        assert_eq!(told.ignored, ["worker.containerd.maxUsedSpace"]);
        let error = read("[worker.containerd]\ngc = 1").unwrap_err().to_string();
        assert!(error.contains("worker.containerd.gc "), "{error}");
    }

    #[test]
    fn refuses_what_a_daemon_refuses() {
        for (text, expected) in [
            ("[worker", "not TOML"),
            ("worker = 1", "worker is not a table"),
            ("[worker.oci]\ngc = \"no\"", "worker.oci.gc is not true or false"),
            (
                "[worker.oci]\ngckeepstorage = \"lots\"",
                "worker.oci.gckeepstorage = \"lots\" is no disk space",
            ),
            ("[worker.oci]\nmaxUsedSpace = true", "worker.oci.maxUsedSpace is not a disk space"),
            ("[worker.oci]\ngcpolicy = 1", "worker.oci.gcpolicy is not a list of tables"),
            ("[[worker.oci.gcpolicy]]\nkeepDuration = \"2d\"", "\"2d\" is no duration"),
            ("[[worker.oci.gcpolicy]]\nfilters = \"type==regular\"", "is not a list of texts"),
        ] {
            let error = Configuration::read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let unreadable =
            Configuration::read("[[worker.oci.gcpolicy]]\nfilters = [\"type=regular\"]").unwrap();
        assert!(matches!(unreadable.policy(NEW, DISK), Err(Error::Filter { .. })));
    }
}
