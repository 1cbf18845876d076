//! One collection after another, on records instead of a root.
//!
//! Mirrors `Prune`, `prune`, `calculateKeepBytes`, `pruneOnce` and `sortDeleteRecords` in `BuildKit`'s
//! `cache/manager.go`. One thing there is easily missed: a record that loses the last one that stands on it counts
//! as used at that moment (`parentsOf` means to prevent it, and does not). So a rule with a time takes the upper end
//! of a chain only, pass by pass.

use std::cmp::Ordering;
use std::collections::HashMap;

use jiff::Timestamp;

use super::filter::Filter;
use super::{Disk, Error, Policy, Release, Rule};
use crate::root::Usage;

/// Below this many, Go's sorts keep the order of equals.
const STABLE: usize = 12;

/// A record of a root, as `buildctl du` shows it: two that share their data, one of them mutable, are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Bytes of its snapshot and blobs.
    pub size: u64,
    /// `source.local`, `exec.cachemount`, `frontend`, …; empty: `regular`.
    pub record_type: String,
    /// What `buildctl du` says of it.
    pub description: String,
    /// Whether it is a layer of an image in the daemon's image store. The OCI worker has none.
    pub shared: bool,
    /// Whether it may still change.
    pub mutable: bool,
    /// Whether a build has it.
    pub in_use: bool,
    /// When it was used last, where that is known.
    pub last_used_at: Option<Timestamp>,
    /// How often it was used.
    pub usage_count: u64,
    /// Ids of the records it stands on.
    pub parents: Vec<String>,
}

impl From<Usage> for Record {
    /// A record of a root that no daemon uses. One that nobody has counted yet counts when the daemon does.
    fn from(usage: Usage) -> Self {
        let at = |time: i64| Timestamp::from_nanosecond(time.into()).ok();
        Self {
            id: usage.id,
            size: usage.size.unwrap_or_default(),
            record_type: usage.record_type,
            description: usage.description,
            mutable: usage.mutable,
            last_used_at: usage.last_used_at.and_then(at),
            usage_count: usage.usage_count,
            parents: usage.parents,
            ..Self::default()
        }
    }
}

impl Record {
    pub(super) fn kind(&self) -> &str {
        if self.record_type.is_empty() { "regular" } else { &self.record_type }
    }
}

/// One collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// When it runs.
    pub at: Timestamp,
    /// What it takes, in this order.
    pub removed: Vec<Removal>,
    /// Bytes of what it takes.
    pub bytes_removed: u64,
    /// Bytes of what is left.
    pub bytes_left: u64,
}

/// A record that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Its index among the records.
    pub record: usize,
    /// Index of the rule that takes it.
    pub rule: usize,
    /// Of how many records any may go at this point, for all that their times and counts say; 1: only this one.
    pub among: usize,
}

/// What goes at each of these moments, if nothing is built in between: the passes follow one another on what
/// is left, and what a pass takes is free in the next.
///
/// Where several records are equally old and equally used, a daemon takes any of them; here it is the first in
/// the list, and [`Removal::among`] tells.
///
/// # Errors
/// A record's parent is missing, or a filter cannot be read.
pub fn forecast(
    records: &[Record],
    policy: &Policy,
    release: Release,
    disk: Disk,
    moments: &[Timestamp],
) -> Result<Vec<Pass>, Error> {
    let filters = |rule: &Rule| rule.filters.iter().map(|text| Filter::parse(text)).collect();
    let filters: Vec<Vec<Filter>> = policy.rules.iter().map(filters).collect::<Result<_, _>>()?;
    let mut root = Root::new(records, release)?;
    let mut free = clamp(disk.free);
    let mut passes = Vec::with_capacity(moments.len());
    for at in moments {
        let mut removed = Vec::new();
        root.clock = root.clock.max(at.as_nanosecond());
        for (index, (rule, filters)) in policy.rules.iter().zip(&filters).enumerate() {
            let matching = root.matching(filters);
            let collection = Collection { rule, index, at: *at, free, matching: &matching };
            root.prune(&collection, &mut removed);
        }
        let bytes = |indexes: &mut dyn Iterator<Item = usize>| {
            indexes.fold(0_u64, |sum, i| sum.saturating_add(records[i].size))
        };
        let bytes_removed = bytes(&mut removed.iter().map(|removal| removal.record));
        let bytes_left = bytes(&mut (0..records.len()).filter(|i| !root.is_gone[*i]));
        // The space is given back at the end of a pass, not between its rules.
        free = free.saturating_add(clamp(bytes_removed));
        passes.push(Pass { at: *at, removed, bytes_removed, bytes_left });
    }
    Ok(passes)
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// One rule in one pass.
struct Collection<'a> {
    rule: &'a Rule,
    index: usize,
    at: Timestamp,
    free: i64,
    matching: &'a [bool],
}

/// When a record was used last, in nanoseconds since 1970, and how often.
#[derive(Debug, Clone, Copy)]
struct Use {
    last: Option<i128>,
    count: u64,
}

/// The records that are left, and what stands on them.
struct Root<'a> {
    records: &'a [Record],
    release: Release,
    parents: Vec<Vec<usize>>,
    /// How many records stand on each.
    children: Vec<usize>,
    /// Those that count as shared in the total: also what a shared one stands on.
    is_shared: Vec<bool>,
    is_gone: Vec<bool>,
    uses: Vec<Use>,
    /// When a record counts as used next: nanoseconds since 1970, no two alike.
    clock: i128,
    /// Indexes, those used longest ago first; without a time before all.
    by_time: Vec<usize>,
    /// Indexes, those used least first.
    by_count: Vec<usize>,
}

impl<'a> Root<'a> {
    fn new(records: &'a [Record], release: Release) -> Result<Self, Error> {
        let by_id: HashMap<&str, usize> =
            records.iter().enumerate().map(|(index, record)| (record.id.as_str(), index)).collect();
        let mut parents = Vec::with_capacity(records.len());
        let mut children = vec![0; records.len()];
        for record in records {
            let missing =
                |parent: &String| Error::Parent { record: record.id.clone(), parent: parent.clone() };
            let found =
                record.parents.iter().map(|id| by_id.get(id.as_str()).copied().ok_or_else(|| missing(id)));
            let found: Vec<usize> = found.collect::<Result<_, _>>()?;
            for parent in &found {
                children[*parent] += 1;
            }
            parents.push(found);
        }
        let mut is_shared = vec![false; records.len()];
        let mut pending: Vec<usize> = (0..records.len()).filter(|i| records[*i].shared).collect();
        while let Some(index) = pending.pop() {
            if !std::mem::replace(&mut is_shared[index], true) {
                pending.extend(&parents[index]);
            }
        }
        let last = |record: &Record| record.last_used_at.map(Timestamp::as_nanosecond);
        let uses = records.iter().map(|record| Use { last: last(record), count: record.usage_count });
        let uses: Vec<Use> = uses.collect();
        let mut by_time: Vec<usize> = (0..records.len()).collect();
        let mut by_count = by_time.clone();
        by_time.sort_by_key(|index| uses[*index].last);
        by_count.sort_by_key(|index| uses[*index].count);
        let is_gone = vec![false; records.len()];
        let clock = i128::MIN;
        Ok(Self { records, release, parents, children, is_shared, is_gone, uses, clock, by_time, by_count })
    }

    fn matching(&self, filters: &[Filter]) -> Vec<bool> {
        let matches = |record| filters.is_empty() || filters.iter().any(|f| f.matches(record, self.release));
        self.records.iter().map(matches).collect()
    }

    /// Applies one rule until it has no more to take.
    fn prune(&mut self, collection: &Collection<'_>, removed: &mut Vec<Removal>) {
        let counted = (0..self.records.len()).filter(|i| !self.is_gone[*i] && !self.is_shared[*i]);
        let mut total = counted.fold(0_i64, |sum, i| sum.saturating_add(clamp(self.records[i].size)));
        let keep = self.bytes_to_keep(collection, total);
        // With nothing to keep, everything that the rule is about goes, in no order.
        while keep == 0 || total >= keep {
            let candidates: Vec<bool> = (0..self.records.len()).map(|i| self.may_go(i, collection)).collect();
            let going = if keep == 0 {
                (0..self.records.len()).filter(|i| candidates[*i]).map(|i| (i, 1)).collect()
            } else {
                self.next_to_go(&candidates).map_or_else(Vec::new, |next| vec![next])
            };
            if going.is_empty() {
                return;
            }
            for (record, among) in going {
                self.take(record);
                total = total.saturating_sub(clamp(self.records[record].size));
                removed.push(Removal { record, rule: collection.index, among });
            }
        }
    }

    fn take(&mut self, record: usize) {
        self.is_gone[record] = true;
        for parent in std::mem::take(&mut self.parents[record]) {
            self.children[parent] -= 1;
            if self.children[parent] == 0 && !self.records[parent].in_use {
                self.use_now(parent);
            }
        }
    }

    fn use_now(&mut self, index: usize) {
        let now = Use { last: Some(self.clock), count: self.uses[index].count + 1 };
        self.clock += 1;
        self.uses[index] = now;
        let uses = &self.uses;
        self.by_time.retain(|other| *other != index);
        self.by_time.insert(self.by_time.partition_point(|other| uses[*other].last <= now.last), index);
        self.by_count.retain(|other| *other != index);
        self.by_count.insert(self.by_count.partition_point(|other| uses[*other].count <= now.count), index);
    }

    /// At how many bytes a rule stops; 0: it does not.
    fn bytes_to_keep(&self, collection: &Collection<'_>, total: i64) -> i64 {
        let Rule { reserved_space, max_used_space, min_free_space, .. } = *collection.rule;
        if reserved_space == 0 && max_used_space == 0 && min_free_space == 0 {
            return 0;
        }
        let missing = min_free_space.saturating_sub(collection.free);
        let keep = if min_free_space != 0 && missing > 0 {
            let left = total.saturating_sub(missing);
            if max_used_space == 0 { left } else { left.min(max_used_space) }
        } else if min_free_space != 0 && max_used_space == 0 && self.release.heeds_free_space_alone() {
            total
        } else {
            max_used_space
        };
        keep.max(reserved_space)
    }

    fn may_go(&self, index: usize, collection: &Collection<'_>) -> bool {
        let Self { records, is_gone, children, .. } = self;
        let (record, rule) = (&records[index], collection.rule);
        let is_protected = matches!(record.kind(), "internal" | "frontend") || record.shared;
        let keeps = rule.keep_duration.as_nanos();
        let since = collection.at.as_nanosecond() - keeps;
        let is_recent = keeps != 0 && self.uses[index].last.is_some_and(|used| used > since);
        !is_gone[index]
            && !record.in_use
            && children[index] == 0
            && collection.matching[index]
            && (rule.all || !is_protected)
            && !is_recent
    }

    /// The record to go first, and among how many that is a matter of chance.
    fn next_to_go(&self, candidates: &[bool]) -> Option<(usize, usize)> {
        let count = candidates.iter().filter(|is| **is).count();
        let first = self.release.first_step();
        // Distinct times and distinct counts are steps; the score is how far up both ladders a record is.
        let mut steps = vec![(0.0, 0.0); candidates.len()];
        let (mut times, mut latest) = (first, None);
        for index in self.by_time.iter().filter(|i| candidates[**i]) {
            let used = self.uses[*index].last;
            if used > latest {
                (times, latest) = (times + 1.0, used);
            }
            steps[*index].0 = times;
        }
        let (mut counts, mut most) = (first, 0);
        for index in self.by_count.iter().filter(|i| candidates[**i]) {
            let used = self.uses[*index].count;
            if used != most {
                (counts, most) = (counts + 1.0, used);
            }
            steps[*index].1 = counts;
        }
        // A ladder without a step, before v0.22, makes every score no number, and all of them equal.
        let score = |index: usize| steps[index].0 / times + steps[index].1 / counts;
        let all_equal = times == 0.0 || counts == 0.0;
        let by_score =
            |a: usize, b: usize| if all_equal { Ordering::Equal } else { score(a).total_cmp(&score(b)) };
        let by_use = |a: usize, b: usize| {
            let key = |i: usize| (self.uses[i].count, self.uses[i].last);
            key(a).cmp(&key(b))
        };
        let candidates = || (0..candidates.len()).filter(|i| candidates[*i]);
        let next = candidates().min_by(|a, b| by_score(*a, *b).then(by_use(*a, *b)))?;
        let keeps_order = all_equal || count <= STABLE;
        let equals = candidates()
            .filter(|other| by_score(next, *other).is_eq() && (!keeps_order || by_use(next, *other).is_eq()));
        Some((next, equals.count()))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::gc::{Origin, keeping};

    const V12: Release = Release::new(0, 12, 5);
    const V17: Release = Release::new(0, 17, 3);
    const V21: Release = Release::new(0, 21, 0);
    const V34: Release = Release::NEWEST;
    const DISK: Disk = Disk { total: 100, free: 100 };

    fn at(hour: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hour)
    }

    /// A record of ten bytes, used at this hour and so often.
    fn record(id: &str, hour: i64, usage_count: u64, parents: &[&str]) -> Record {
        Record {
            id: id.into(),
            size: 10,
            last_used_at: Some(at(hour)),
            usage_count,
            parents: parents.iter().map(|parent| (*parent).to_owned()).collect(),
            ..Record::default()
        }
    }

    fn rule() -> Rule {
        Rule {
            filters: Vec::new(),
            all: false,
            keep_duration: SignedDuration::ZERO,
            reserved_space: 0,
            max_used_space: 0,
            min_free_space: 0,
        }
    }

    fn run(records: &[Record], rules: &[Rule], release: Release, disk: Disk, hours: &[i64]) -> Vec<Pass> {
        let policy = Policy { origin: Origin::Configured, rules: rules.to_vec(), ignored: Vec::new() };
        let moments: Vec<Timestamp> = hours.iter().map(|hour| at(*hour)).collect();
        forecast(records, &policy, release, disk, &moments).unwrap()
    }

    /// The ids of what goes in the first pass, in order.
    fn gone(records: &[Record], rules: &[Rule], release: Release) -> String {
        let pass = &run(records, rules, release, DISK, &[1000])[0];
        pass.removed.iter().map(|removal| records[removal.record].id.as_str()).collect()
    }

    #[test]
    fn takes_leaves_first_until_below_the_limit() {
        // a ← b ← c, and d alone; d was used after all of them.
        let records = [
            record("a", 1, 1, &[]),
            record("b", 2, 1, &["a"]),
            record("c", 3, 1, &["b"]),
            record("d", 4, 1, &[]),
        ];
        for (reserved_space, expected) in
            [(41, ""), (40, "c"), (31, "c"), (30, "cd"), (20, "cdb"), (1, "cdba")]
        {
            assert_eq!(
                gone(&records, &[Rule { reserved_space, ..rule() }], V34),
                expected,
                "{reserved_space}"
            );
            assert_eq!(
                gone(&records, &[Rule { reserved_space, ..rule() }], V12),
                expected,
                "{reserved_space}"
            );
        }
        // Without a limit everything goes, children before what they stand on.
        assert_eq!(gone(&records, &[rule()], V34), "cdba");
    }

    #[test]
    fn the_order_is_of_age_and_use_together() {
        let one = |release| Rule { reserved_space: 30, ..rule() }.first_gone(release);
        // Steps from 0: a 1/3 + 3/3, b 2/3 + 2/3, c 3/3 + 1/3 are equal, and any may go.
        let equal = [record("a", 1, 3, &[]), record("b", 2, 2, &[]), record("c", 3, 1, &[])];
        assert_eq!(one(V12)(&equal), ("c".into(), 1));
        // Old and little used goes before old and much used.
        let clear = [record("a", 1, 1, &[]), record("b", 1, 5, &[]), record("c", 3, 1, &[])];
        assert_eq!(one(V34)(&clear), ("a".into(), 1));
        assert_eq!(one(V12)(&clear), ("a".into(), 1));
        // From 1 on: a 2/3 + 3/3, b 3/3 + 2/3.  From 0 on: a 1/2 + 2/2, b 2/2 + 1/2.
        let swapped = [record("a", 1, 2, &[]), record("b", 2, 1, &[]), record("c", 2, 2, &[])];
        assert_eq!(one(V34)(&swapped), ("b".into(), 1));
        // Without a time goes first; without any use at all, before v0.22, the times alone count.
        let mut unused = [record("a", 2, 0, &[]), record("b", 1, 0, &[]), record("c", 3, 0, &[])];
        assert_eq!(one(V12)(&unused), ("b".into(), 1));
        unused[2].last_used_at = None;
        assert_eq!(one(V34)(&unused), ("c".into(), 1));
    }

    #[test]
    fn what_is_equal_is_a_matter_of_chance() {
        let baked: Vec<Record> = ["a", "b", "c"].iter().map(|id| record(id, 1, 1, &[])).collect();
        let pass = &run(&baked, &[Rule { reserved_space: 20, ..rule() }], V34, DISK, &[2])[0];
        let among: Vec<usize> = pass.removed.iter().map(|removal| removal.among).collect();
        assert_eq!((among, pass.bytes_removed, pass.bytes_left), (vec![3, 2], 20, 10));
        // Go keeps the order of equals in short lists only.
        let many: Vec<Record> =
            (0..13_u64).map(|i| record(&i.to_string(), i64::try_from(i).unwrap(), 13 - i, &[])).collect();
        let pass = &run(&many, &[Rule { reserved_space: 130, ..rule() }], V34, DISK, &[20])[0];
        assert_eq!(pass.removed[0].among, 13);
        let pass = &run(&many[..12], &[Rule { reserved_space: 120, ..rule() }], V34, DISK, &[20])[0];
        assert_eq!(pass.removed[0].among, 1);
    }

    #[test]
    fn leaves_what_is_protected() {
        let kinds = ["regular", "internal", "frontend", "source.local"];
        let mut records: Vec<Record> = kinds.map(|kind| record(&kind[..1], 1, 1, &[])).to_vec();
        for (record, kind) in records.iter_mut().zip(kinds) {
            record.record_type = kind.to_owned();
        }
        records.extend([record("x", 1, 1, &[]), record("y", 1, 1, &[])]);
        (records[4].shared, records[5].in_use) = (true, true);
        assert_eq!(gone(&records, &[rule()], V34), "rs");
        assert_eq!(gone(&records, &[Rule { all: true, ..rule() }], V34), "rifsx");
        let filters = vec!["type==source.local".to_owned(), "id==r".to_owned()];
        assert_eq!(gone(&records, &[Rule { filters, ..rule() }], V34), "rs");
        let filters = vec!["type==source.local,id==r".to_owned()];
        assert_eq!(gone(&records, &[Rule { filters, ..rule() }], V34), "");
    }

    #[test]
    fn shared_records_and_those_below_them_do_not_count() {
        let mut records = [record("a", 1, 1, &[]), record("b", 2, 1, &["a"]), record("c", 3, 1, &[])];
        records[1].shared = true;
        assert_eq!(gone(&records, &[Rule { reserved_space: 11, ..rule() }], V34), "");
        assert_eq!(gone(&records, &[Rule { reserved_space: 10, ..rule() }], V34), "c");
    }

    #[test]
    fn times_are_those_of_the_pass() {
        let records = [record("a", 0, 1, &[]), record("b", 10, 1, &[]), record("c", 11, 1, &["b"])];
        let two_days = Rule { keep_duration: SignedDuration::from_hours(48), ..rule() };
        let passes = run(&records, &[two_days], V34, DISK, &[47, 48, 58, 59, 106, 107]);
        let taken: Vec<Vec<usize>> =
            passes.iter().map(|pass| pass.removed.iter().map(|removal| removal.record).collect()).collect();
        // What stands below a record that is kept is kept with it, and counts as used when that goes.
        assert_eq!(taken, [vec![], vec![0], vec![], vec![2], vec![], vec![1]]);
        assert_eq!((passes[4].bytes_left, passes[5].bytes_left), (10, 0));
    }

    #[test]
    fn free_space_limits_as_in_the_release() {
        let records: Vec<Record> = (1..=4).map(|hour| record(&hour.to_string(), hour, 1, &[])).collect();
        let free = |bytes| Disk { total: 100, free: bytes };
        let wants = |min_free_space| Rule { min_free_space, ..rule() };
        let capped = |min_free_space, max_used_space, reserved_space| Rule {
            reserved_space,
            max_used_space,
            min_free_space,
            ..rule()
        };
        for (rules, release, disk, expected) in [
            // Enough is free: v0.17 takes everything, v0.21 one record.
            (vec![wants(50)], V17, free(50), 4),
            (vec![wants(50)], V21, free(50), 1),
            (vec![wants(50)], V34, free(50), 1),
            (vec![capped(50, 45, 0)], V34, free(50), 0),
            // 15 bytes are missing.
            (vec![wants(50)], V34, free(35), 2),
            (vec![capped(50, 100, 30)], V34, free(35), 2),
            (vec![capped(50, 15, 0)], V34, free(35), 3),
            (vec![capped(50, 15, 41)], V34, free(35), 0),
            // More than there is is missing: no limit is left.
            (vec![wants(50)], V34, free(10), 4),
            // What the first rule takes is not free yet when the second looks.
            (vec![wants(50), wants(50)], V34, free(40), 4),
        ] {
            let passes = run(&records, &rules, release, disk, &[100]);
            assert_eq!(passes[0].removed.len(), expected, "{rules:?} in {release} on {disk:?}");
        }
        // The next pass knows that it is.
        let passes = run(&records, &[capped(50, 100, 0)], V34, free(40), &[100, 101]);
        assert_eq!(passes.iter().map(|pass| pass.removed.len()).collect::<Vec<_>>(), [2, 0]);
    }

    #[test]
    fn names_the_rule() {
        let records = [record("a", 1, 1, &[]), record("b", 90, 1, &[])];
        let old = Rule { keep_duration: SignedDuration::from_hours(50), ..rule() };
        let pass = &run(&records, &[old, rule()], V34, DISK, &[100])[0];
        let rules: Vec<usize> = pass.removed.iter().map(|removal| removal.rule).collect();
        assert_eq!(rules, [0, 1]);
    }

    #[test]
    fn sizes_of_damaged_roots_are_survived() {
        let records = ["a", "b", "c"].map(|id| Record { size: u64::MAX, ..record(id, 1, 1, &[]) });
        let pass = &run(&records, &[rule()], V34, DISK, &[2])[0];
        assert_eq!((pass.removed.len(), pass.bytes_removed, pass.bytes_left), (3, u64::MAX, 0));
    }

    #[test]
    fn refuses_records_without_their_parents() {
        let policy = Policy { origin: Origin::Off, rules: Vec::new(), ignored: Vec::new() };
        let error = forecast(&[record("a", 1, 1, &["z"])], &policy, V34, DISK, &[]).unwrap_err();
        assert_eq!(error.to_string(), "record a stands on z, which is not there");
    }

    #[test]
    fn what_keeps_a_cache_keeps_it() {
        let mut records = vec![record("a", 1, 1, &[]), record("b", 1, 0, &["a"])];
        records[0].record_type = "frontend".to_owned();
        for size in [0, 10, 999_999, 1_000_000, 3_000_000_000_000] {
            records[1].size = size;
            for release in [V12, V17, V21, V34] {
                for disk in [DISK, Disk { total: 1 << 50, free: 0 }] {
                    let text = keeping(crate::gc::Worker::Oci, &records, 0, release);
                    let policy =
                        crate::gc::Configuration::read(&text).unwrap().policy(release, disk).unwrap();
                    assert_eq!(policy.ignored, Vec::<String>::new(), "{text}");
                    let later = [at(1), at(49), at(60 * 24), at(200_000)];
                    for pass in forecast(&records, &policy, release, disk, &later).unwrap() {
                        assert_eq!(pass.removed, [], "{text} in {release}");
                    }
                    // As much again fits in if it was asked for.
                    let text = keeping(crate::gc::Worker::Oci, &records, size, release);
                    let policy =
                        crate::gc::Configuration::read(&text).unwrap().policy(release, disk).unwrap();
                    let more = [records.clone(), vec![Record { size, ..record("c", 2, 1, &[]) }]].concat();
                    for pass in forecast(&more, &policy, release, disk, &later).unwrap() {
                        assert_eq!(pass.removed, [], "{text} in {release}");
                    }
                }
            }
        }
    }

    impl Rule {
        /// Of some records, the id of the first to go by this rule, and among how many it is.
        fn first_gone(self, release: Release) -> impl Fn(&[Record]) -> (String, usize) {
            move |records| {
                let pass = &run(records, std::slice::from_ref(&self), release, DISK, &[1000])[0];
                let first = pass.removed[0];
                (records[first.record].id.clone(), first.among)
            }
        }
    }
}
