//! Which record stands on which.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::Record;

/// A record on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Its index.
    pub record: usize,
    /// Whether its place is elsewhere: it stands on several, and its place is on the first of them.
    pub again: bool,
}

/// A record with all that has its place on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// How many records.
    pub records: usize,
    /// Their bytes, by [`Record::weight`].
    pub bytes: u64,
}

impl Weight {
    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes.saturating_add(other.bytes) }
    }

    /// This one, of which `part` is a part, without it.
    #[must_use]
    pub fn without(self, part: Self) -> Self {
        Self { records: self.records - part.records, bytes: self.bytes.saturating_sub(part.bytes) }
    }
}

/// The records as trees: each has one place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forest {
    /// Indexes of the records that stand on none.
    pub roots: Vec<usize>,
    /// By index, what stands on a record.
    pub children: Vec<Vec<Child>>,
    /// By index.
    pub weights: Vec<Weight>,
}

/// Puts each record on the first of those that it stands on, the heaviest first everywhere.
pub fn forest(records: &[Record]) -> Forest {
    let by_id: HashMap<&str, usize> = records.iter().enumerate().map(|(at, r)| (r.id.as_str(), at)).collect();
    let mut children: Vec<Vec<Child>> = vec![Vec::new(); records.len()];
    let mut place: Vec<Option<usize>> = Vec::with_capacity(records.len());
    for (at, record) in records.iter().enumerate() {
        let mut on = record.parents.iter().filter_map(|id| by_id.get(id.as_str()).copied());
        let first = on.next();
        place.push(first);
        if let Some(first) = first {
            children[first].push(Child { record: at, again: false });
        }
        for other in on {
            children[other].push(Child { record: at, again: true });
        }
    }
    let mut roots: Vec<usize> = (0..records.len()).filter(|&at| place[at].is_none()).collect();
    let weights = weights(records, &roots, &children);
    let order =
        |at: usize| (Reverse(weights[at].bytes), records[at].name.as_deref(), records[at].id.as_str());
    roots.sort_by_key(|&at| order(at));
    for children in &mut children {
        children.sort_by_key(|child| (child.again, order(child.record)));
    }
    Forest { roots, children, weights }
}

/// From the upper ends down, without recursion: a chain may be as long as a build.
fn weights(records: &[Record], roots: &[usize], children: &[Vec<Child>]) -> Vec<Weight> {
    let mut weights: Vec<Weight> =
        records.iter().map(|record| Weight { records: 1, bytes: record.weight() }).collect();
    let mut order: Vec<(usize, Option<usize>)> = roots.iter().map(|&root| (root, None)).collect();
    let mut next = 0;
    while let Some(&(at, _)) = order.get(next) {
        let own = children[at].iter().filter(|child| !child.again);
        order.extend(own.map(|child| (child.record, Some(at))));
        next += 1;
    }
    for (at, place) in order.into_iter().rev() {
        if let Some(place) = place {
            weights[place] = weights[place].with(weights[at]);
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, parents: &[&str], bytes: u64) -> Record {
        Record {
            id: id.to_owned(),
            parents: parents.iter().map(|&id| id.to_owned()).collect(),
            layer_bytes: Some(bytes),
            ..Record::default()
        }
    }

    #[test]
    fn the_heaviest_come_first_and_each_has_one_place() {
        let records = [
            record("merge", &["light", "heavy"], 1),
            record("light", &["base"], 1),
            record("base", &[], 5),
            record("heavy", &["base"], 7),
            record("other", &["gone"], 20),
        ];
        let forest = forest(&records);
        let name = |at: usize| records[at].id.as_str();
        assert_eq!(forest.roots.iter().map(|&at| name(at)).collect::<Vec<_>>(), ["other", "base"]);
        let children = |at: usize| -> Vec<(&str, bool)> {
            forest.children[at].iter().map(|child| (name(child.record), child.again)).collect()
        };
        assert_eq!(children(2), [("heavy", false), ("light", false)]);
        assert_eq!(children(1), [("merge", false)]);
        assert_eq!(children(3), [("merge", true)]);
        assert_eq!(forest.weights[2], Weight { records: 4, bytes: 14 });
        assert_eq!(forest.weights[3], Weight { records: 1, bytes: 7 });
    }

    #[test]
    fn a_long_chain_needs_no_stack() {
        let ids: Vec<String> = (0..50_000).map(|n| n.to_string()).collect();
        let chain = (0..ids.len()).map(|n| match n {
            0 => record(&ids[0], &[], 1),
            n => record(&ids[n], &[&ids[n - 1]], 1),
        });
        let forest = forest(&chain.collect::<Vec<_>>());
        assert_eq!(forest.weights[0], Weight { records: 50_000, bytes: 50_000 });
    }
}
