//! The lines of a tree of records.
//!
//! A record stands on the one above it in its column, or, where lines lead to it, on the one that they come from:
//! only a branching takes more room to the right. Of many records the largest are drawn, and where they branch;
//! what stands between and beside them is one line each time.

use std::cmp::Reverse;

use crate::inspect::{Child, Forest, Record, Weight};

/// What stands in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Record(usize),
    /// A record that has its place elsewhere.
    Again(usize),
    /// Records that are left out.
    Rest {
        own: Weight,
        /// And all that has its place on them, whether it is drawn or not.
        with_all: Weight,
    },
}

/// A line of the tree, and the lines that lead to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) lead: String,
    pub(super) what: What,
}

/// Something that is still to be drawn: what leads to its first line, and to those after it.
struct Pending {
    what: What,
    lead: String,
    rest: String,
}

/// Which records of a forest are drawn.
struct Selection<'a> {
    forest: &'a Forest,
    tops: Vec<Child>,
    drawn: Vec<bool>,
    /// Whether it is drawn, or anything that has its place on it.
    open: Vec<bool>,
}

impl<'a> Selection<'a> {
    /// The `limit` largest records, those first that come first from the top, and what makes them a tree.
    fn new(records: &[Record], forest: &'a Forest, limit: usize) -> Self {
        let tops: Vec<Child> = forest.roots.iter().map(|&record| Child { record, again: false }).collect();
        let order = from_the_top(forest);
        let mut largest = order.clone();
        largest.sort_by_key(|&at| Reverse(records[at].weight()));
        let mut drawn = vec![false; records.len()];
        for &at in largest.iter().take(limit) {
            drawn[at] = true;
        }
        let mut open = drawn.clone();
        for &at in order.iter().rev() {
            let branches = own(&forest.children[at]).filter(|&child| open[child]).count();
            open[at] |= branches > 0;
            drawn[at] |= branches > 1;
        }
        let mut selection = Self { forest, tops, drawn, open };
        // A line for a single record is as long as its own.
        for at in order {
            if selection.drawn[at] {
                selection.draw_single(&forest.children[at]);
            }
        }
        selection.draw_single(&selection.tops.clone());
        selection
    }

    fn draw_single(&mut self, children: &[Child]) {
        let mut left = own(children).filter(|&child| !self.open[child]);
        if let (Some(single), None) = (left.next(), left.next())
            && self.forest.children[single].is_empty()
        {
            (self.drawn[single], self.open[single]) = (true, true);
        }
    }

    /// What is drawn of the children of a record that is drawn itself.
    fn branches(&self, children: &[Child]) -> Vec<What> {
        let mut branches = Vec::new();
        let mut rest = Weight::default();
        for &Child { record, again } in children {
            match again {
                true if self.drawn[record] => branches.push(What::Again(record)),
                true => {}
                false if self.open[record] => branches.push(What::Record(record)),
                false => rest = rest.with(self.forest.weights[record]),
            }
        }
        if rest.records > 0 {
            branches.push(What::Rest { own: rest, with_all: rest });
        }
        branches
    }

    /// From a record that is open to the first on it that is drawn, and what is left out on the way.
    fn next_drawn(&self, from: usize) -> (usize, Weight) {
        let weights = &self.forest.weights;
        let mut at = from;
        while !self.drawn[at] {
            let Some(next) = own(&self.forest.children[at]).find(|&child| self.open[child]) else { break };
            at = next;
        }
        (at, weights[from].without(weights[at]))
    }
}

/// The records that have their place here.
fn own(children: &[Child]) -> impl Iterator<Item = usize> {
    children.iter().filter(|child| !child.again).map(|child| child.record)
}

/// All records, each before what stands on it, without recursion: a chain may be as long as a build.
fn from_the_top(forest: &Forest) -> Vec<usize> {
    let mut order = Vec::with_capacity(forest.children.len());
    let mut pending: Vec<usize> = forest.roots.iter().rev().copied().collect();
    while let Some(at) = pending.pop() {
        order.push(at);
        let before = pending.len();
        pending.extend(own(&forest.children[at]));
        pending[before..].reverse();
    }
    order
}

/// Draws the `limit` largest of the records that are in `forest`, or all if they are not more.
pub(super) fn draw(records: &[Record], forest: &Forest, limit: usize) -> Vec<Line> {
    let selection = Selection::new(records, forest, limit);
    let mut lines = Vec::new();
    let mut pending = match selection.branches(&selection.tops)[..] {
        [what] => vec![Pending { what, lead: String::new(), rest: String::new() }],
        ref branches => branch(branches, ""),
    };
    while let Some(Pending { mut what, mut lead, rest }) = pending.pop() {
        while let What::Record(from) = what {
            let mut add = |what| lines.push(Line { lead: std::mem::replace(&mut lead, rest.clone()), what });
            let (at, left) = selection.next_drawn(from);
            match left.records {
                0 => {}
                1 => add(What::Record(from)),
                _ => add(What::Rest { own: left, with_all: forest.weights[from] }),
            }
            add(What::Record(at));
            let branches = selection.branches(&forest.children[at]);
            let [next @ (What::Record(_) | What::Rest { .. })] = branches[..] else {
                pending.extend(branch(&branches, &rest));
                break;
            };
            what = next;
        }
        if !matches!(what, What::Record(_)) {
            lines.push(Line { lead, what });
        }
    }
    lines
}

/// Side by side, the last one first.
fn branch(branches: &[What], rest: &str) -> Vec<Pending> {
    let last = branches.len().saturating_sub(1);
    let lines = branches.iter().enumerate().map(|(at, &what)| {
        let (lead, below) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        Pending { what, lead: format!("{rest}{lead}"), rest: format!("{rest}{below}") }
    });
    lines.rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::forest;

    /// Records by name, bytes and what they stand on.
    fn records(shape: &[(&str, u64, &[&str])]) -> Vec<Record> {
        let record = |&(name, bytes, parents): &(&str, u64, &[&str])| Record {
            id: name.to_owned(),
            parents: parents.iter().map(|&id| id.to_owned()).collect(),
            layer_bytes: Some(bytes),
            ..Record::default()
        };
        shape.iter().map(record).collect()
    }

    fn drawn(records: &[Record], limit: usize) -> String {
        let weight = |weight: Weight| format!("{} of {}", weight.records, weight.bytes);
        let show = |line: &Line| {
            let what = match line.what {
                What::Record(at) => records[at].id.clone(),
                What::Again(at) => format!("→ {}", records[at].id),
                What::Rest { own, with_all } => format!("… {}, with all {}", weight(own), weight(with_all)),
            };
            format!("{}{what}", line.lead)
        };
        draw(records, &forest(records), limit).iter().map(show).collect::<Vec<_>>().join("\n")
    }

    const ALL: usize = usize::MAX;

    #[test]
    fn only_branchings_go_to_the_right() {
        let shape = records(&[
            ("base", 1, &[]),
            ("apt", 2, &["base"]),
            ("copy", 3, &["apt"]),
            ("make", 4, &["copy"]),
            ("lint", 5, &["copy"]),
            ("docs", 6, &["apt"]),
            ("merge", 7, &["docs", "make"]),
            ("other", 8, &[]),
        ]);
        insta::assert_snapshot!(drawn(&shape, ALL), @r"
        ├─ base
        │  apt
        │  ├─ docs
        │  │  merge
        │  └─ copy
        │     ├─ lint
        │     └─ make
        │        └─ → merge
        └─ other
        ");
        assert_eq!(drawn(&shape, shape.len()), drawn(&shape, ALL));
        assert_eq!(drawn(&shape[..1], ALL), "base");
        assert_eq!(drawn(&[], ALL), "");
    }

    #[test]
    fn of_many_the_largest_are_drawn_and_where_they_branch() {
        // Two chains on one base, and a third one that is small.
        let shape = records(&[
            ("base", 0, &[]),
            ("apt", 0, &["base"]),
            ("deps 1", 1, &["apt"]),
            ("deps 2", 1, &["deps 1"]),
            ("aside", 5, &["deps 1"]),
            ("large", 90, &["deps 2"]),
            ("top 1", 1, &["large"]),
            ("top 2", 1, &["top 1"]),
            ("step", 1, &["apt"]),
            ("medium", 50, &["step"]),
            ("single", 1, &["medium"]),
            ("small 1", 1, &["apt"]),
            ("small 2", 1, &["small 1"]),
            ("other 1", 1, &[]),
            ("other 2", 1, &["other 1"]),
        ]);
        insta::assert_snapshot!(drawn(&shape, 2), @r"
        ├─ base
        │  apt
        │  ├─ … 3 of 7, with all 6 of 99
        │  │  large
        │  │  … 2 of 2, with all 2 of 2
        │  ├─ step
        │  │  medium
        │  │  single
        │  └─ … 2 of 2, with all 2 of 2
        └─ … 2 of 2, with all 2 of 2
        ");
        insta::assert_snapshot!(drawn(&shape, 1), @r"
        ├─ … 10 of 61, with all 13 of 153
        │  large
        │  … 2 of 2, with all 2 of 2
        └─ … 2 of 2, with all 2 of 2
        ");
        assert_eq!(drawn(&shape, 0), "… 15 of 155, with all 15 of 155");
    }

    #[test]
    fn a_long_chain_takes_as_many_lines_as_are_wanted() {
        let names: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        let parents: Vec<Vec<&str>> = (0..names.len())
            .map(|at| at.checked_sub(1).map(|at| names[at].as_str()).into_iter().collect())
            .collect();
        let shape: Vec<(&str, u64, &[&str])> =
            names.iter().zip(&parents).map(|(name, parents)| (name.as_str(), 1, &parents[..])).collect();
        // Of equal ones, those at the bottom of the chain.
        insta::assert_snapshot!(drawn(&records(&shape), 3), @r"
        0
        1
        2
        … 9997 of 9997, with all 9997 of 9997
        ");
    }
}
