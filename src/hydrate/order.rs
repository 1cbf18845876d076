//! Which snapshots a first build needs, and in which order; from what the databases say, without a file touched.
//!
//! A step that is CACHED needs the databases alone. One that is not has the result of each of its inputs
//! mounted, which is a chain of snapshots. Which step that will be nobody knows, so a snapshot counts for
//! as much as there are steps that would have it mounted: those at the bottom come first, and results
//! that no step builds on are not needed. A frontend (`# syntax=`) runs before there is any step, in every build.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The number of its directory.
    pub(super) id: u64,
    /// The name of the snapshot below it.
    pub(super) parent: Option<String>,
}

/// What a build finds a snapshot by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    /// The name of the snapshot.
    pub(super) snapshot: String,
    /// It is the last layer of a frontend's image.
    pub(super) frontend: bool,
    /// Builds use it again though it is no step's result: a layer of an image, a context, a cache mount.
    pub(super) reused: bool,
    /// How many steps have it as an input.
    pub(super) steps: usize,
}

/// What the databases of one worker say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// By name.
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    pub(super) records: Vec<Record>,
    /// Each snapshot is a whole tree, and needs none of those below it.
    pub(super) whole: bool,
}

/// Numbers of directories of snapshots, those that are needed first in front.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Order {
    /// What a step that is not CACHED may have mounted.
    pub(super) first: Vec<u64>,
    /// The other ones.
    pub(super) rest: Vec<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Need {
    frontend: bool,
    steps: usize,
}

impl Facts {
    /// A snapshot and those below it. A chain that does not end is cut.
    fn chain<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a Snapshot)> + use<'a> {
        let mut seen = BTreeSet::new();
        let get =
            move |name: &str| self.snapshots.get_key_value(name).map(|(name, found)| (name.as_str(), found));
        std::iter::successors(get(name), move |(_, found)| get(found.parent.as_deref()?))
            .take_while(move |(name, _)| seen.insert(*name))
    }

    /// The order in which snapshots are to be read.
    pub(super) fn order(&self) -> Order {
        let mut needs: BTreeMap<&str, Need> = BTreeMap::new();
        let mut add = |chain: &str, need: Need| {
            let depth = if self.whole { 1 } else { usize::MAX };
            for (name, _) in self.chain(chain).take(depth) {
                let sum = needs.entry(name).or_default();
                sum.frontend |= need.frontend;
                sum.steps += need.steps;
            }
        };
        for record in &self.records {
            let steps = record.steps + usize::from(record.reused);
            add(&record.snapshot, Need { frontend: record.frontend, steps });
        }
        // Where no step is known, a snapshot that stands on another tells of the step that made it.
        if self.records.iter().all(|record| record.steps == 0) {
            for parent in self.snapshots.values().filter_map(|snapshot| snapshot.parent.as_deref()) {
                add(parent, Need { frontend: false, steps: 1 });
            }
        }
        let need = |name: &str| needs.get(name).copied().unwrap_or_default();
        let mut ranked: Vec<_> = self
            .snapshots
            .iter()
            .map(|(name, snapshot)| {
                let Need { frontend, steps } = need(name);
                let needed = frontend || steps > 0;
                // What is below comes first where both are needed as much.
                ((Reverse(needed), Reverse(frontend), Reverse(steps), self.chain(name).count()), snapshot.id)
            })
            .collect();
        ranked.sort_unstable();
        let (first, rest) = ranked.into_iter().partition::<Vec<_>, _>(|((needed, ..), _)| needed.0);
        let ids = |ranked: Vec<(_, u64)>| ranked.into_iter().map(|(_, id)| id).collect();
        Order { first: ids(first), rest: ids(rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `child<parent`, or a snapshot with none below; the number in the name is that of its directory.
    fn snapshots(text: &str) -> BTreeMap<String, Snapshot> {
        let snapshots = text.split_whitespace().map(|word| {
            let (name, parent) = word.split_once('<').map_or((word, None), |(n, p)| (n, Some(p.to_owned())));
            (name.to_owned(), Snapshot { id: name[1..].parse().unwrap(), parent })
        });
        snapshots.collect()
    }

    /// `snapshot=steps`, with `F` or `I` behind it for frontends and images.
    fn records(text: &str) -> Vec<Record> {
        let records = text.split_whitespace().map(|word| {
            let (snapshot, steps) = word.split_once('=').unwrap();
            Record {
                snapshot: snapshot.to_owned(),
                frontend: steps.ends_with('F'),
                reused: steps.ends_with('I'),
                steps: steps.trim_end_matches(['F', 'I']).parse().unwrap(),
            }
        });
        records.collect()
    }

    /// What it is about, snapshots, records, what comes first, the rest.
    type Expected = (&'static str, &'static str, &'static str, &'static [u64], &'static [u64]);

    #[test]
    fn what_most_steps_stand_on_comes_first() {
        let cases: &[Expected] = &[
            ("nothing", "", "", &[], &[]),
            // A chain of steps: each has the one before as its input, the last none.
            ("a chain", "s1 s2<s1 s3<s2", "s1=1 s2=1 s3=0", &[1, 2], &[3]),
            // Two builds on one base: it is mounted by most.
            ("two on one", "s7 s2<s7 s3<s7 s4<s3", "s7=2 s2=0 s3=1 s4=0", &[7, 3], &[2, 4]),
            // Copied from into one step, and built on by three.
            ("copied from", "s1 s2<s1 s3", "s1=1 s2=3 s3=1", &[1, 2, 3], &[]),
            // As much needed: the lower first, whatever its number.
            ("same need", "s9 s1<s9", "s1=5", &[9, 1], &[]),
            ("same need and height", "s4 s3", "s3=1 s4=1", &[3, 4], &[]),
            // A frontend runs before all, though no step has it as its input.
            ("a frontend", "s1 s2<s1 s8 s9<s8", "s1=9 s2=0 s9=0F", &[8, 9, 1], &[2]),
            // COPY --from=image, of which no step's result is in the root.
            ("an image", "s1 s2 s3<s2", "s1=2 s3=0I s2=0", &[1, 2, 3], &[]),
            // Without the solver's database, or with no key in it.
            ("no steps", "s1 s2<s1 s3<s2 s4<s1 s5", "s1=0 s5=0", &[1, 2], &[5, 4, 3]),
            ("no records", "s1 s2<s1", "", &[1], &[2]),
            // Torn or damaged: a record without a snapshot, a parent that is gone, a chain that bites its tail.
            ("damaged", "s1<s0 s2<s3 s3<s2", "s9=1 s1=1 s2=1", &[1, 2, 3], &[]),
        ];
        for &(what, all, used, first, rest) in cases {
            let facts = Facts { snapshots: snapshots(all), records: records(used), whole: false };
            let order = facts.order();
            let expected = Order { first: first.to_vec(), rest: rest.to_vec() };
            assert_eq!(order, expected, "{what}");
        }
    }

    #[test]
    fn whole_trees_need_nothing_below() {
        let facts = |used| Facts {
            snapshots: snapshots("s1 s2<s1 s3<s2 s4<s3"),
            records: records(used),
            whole: true,
        };
        for (used, first, rest) in [
            ("s1=1 s2=0 s3=1 s4=0", vec![1, 3], vec![2, 4]),
            ("s2=1 s3=3", vec![3, 2], vec![1, 4]),
            ("", vec![1, 2, 3], vec![4]),
        ] {
            assert_eq!(facts(used).order(), Order { first, rest }, "{used}");
        }
    }
}
