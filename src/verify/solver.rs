//! `cache.db` against itself: links and the ways back, results and the index by results, circles.
//!
//! A lookup compares the JSON of a link byte by byte, so one that is written in another way never matches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::report::{Counts, FindingKind, Findings, Subject};
use crate::digest::{Digest, Hasher, OpDigest};
use crate::root::{Link, Operation, Solver};

/// Why a link can never match, if so.
fn link_fault(operation: &Operation, written: &str) -> Option<String> {
    let Operation { input, digest, selector, .. } = operation;
    if *input < 0 {
        return Some(format!("input {input}"));
    }
    // Merge and diff operations of old releases have their JSON as digest.
    if digest.parse::<Digest>().is_err() && !digest.starts_with('{') {
        return Some(format!("{digest:?} is no operation digest"));
    }
    if !selector.is_empty() && selector.parse::<Digest>().is_err() {
        return Some(format!("{selector:?} is no selector"));
    }
    let canonical = canonical(operation)?;
    (canonical != written).then(|| format!("a daemon writes {canonical}"))
}

/// The JSON as Go writes it; `None` where a text needs escapes, which no digest does.
fn canonical(operation: &Operation) -> Option<String> {
    let Operation { input, output, digest, selector, .. } = operation;
    let plain = |text: &str| {
        text.bytes().all(|b| (0x20..0x7f).contains(&b) && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&'))
    };
    if !plain(digest) || !plain(selector) {
        return None;
    }
    let number = |name: &str, n: i64| (n != 0).then(|| format!("\"{name}\":{n}"));
    let text = |name: &str, t: &str| (!t.is_empty()).then(|| format!("\"{name}\":\"{t}\""));
    let fields = [
        number("Input", *input),
        number("Output", *output),
        text("Digest", digest),
        text("Selector", selector),
    ];
    Some(format!("{{{}}}", fields.into_iter().flatten().collect::<Vec<_>>().join(",")))
}

/// Per target and operation (digest, output) and input, the keys that lead to it, with selectors.
type Inputs<'a> = BTreeMap<(&'a str, &'a str, i64), BTreeMap<i64, BTreeSet<(&'a str, &'a str)>>>;

struct Check<'a, 'f> {
    solver: &'a Solver,
    path: &'a Path,
    findings: &'f mut Findings,
}

/// Checks each entry and the indexes of the database at `path`. `derived`: every key's id follows from the
/// links that lead to it, since warmkit wrote them all.
pub(super) fn check(
    solver: &Solver,
    path: &Path,
    derived: bool,
    counts: &mut Counts,
    findings: &mut Findings,
) {
    counts.keys = solver.keys.len();
    counts.links = solver.keys.values().map(Vec::len).sum();
    counts.results = solver.results.values().flatten().filter(|result| result.of.is_some()).count();
    let mut check = Check { solver, path, findings };
    check.links();
    check.backlinks();
    check.inputs(derived);
    check.cycles(derived);
    check.results();
}

/// The id that warmkit gives a key with inputs: 25 base-36 digits of SHA-256 over `warmkit key`, the digest
/// in cache configs and, per input, the number of its alternatives with the key and selector of each; every
/// part with its length as 64 bits in front. A daemon draws ids at random.
fn derived_id<'a>(record: &str, inputs: impl Iterator<Item = &'a BTreeSet<(&'a str, &'a str)>>) -> String {
    let mut hasher = Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    };
    part(b"warmkit key");
    part(record.as_bytes());
    for alternatives in inputs {
        part(&(alternatives.len() as u64).to_be_bytes());
        for (from, selector) in alternatives {
            part(from.as_bytes());
            part(selector.as_bytes());
        }
    }
    let hash = hasher.finish();
    let mut number = hash[..16].iter().fold(0u128, |number, &byte| number << 8 | u128::from(byte));
    let mut digits = String::new();
    for _ in 0..25 {
        let digit = u32::try_from(number % 36).unwrap_or_default();
        digits.insert(0, char::from_digit(digit, 36).unwrap_or_default());
        number /= 36;
    }
    digits
}

impl Check<'_, '_> {
    fn links(&mut self) {
        for (id, links) in &self.solver.keys {
            for Link { target, written, operation, .. } in links {
                let Some(fault) = operation.as_ref().and_then(|operation| link_fault(operation, written))
                else {
                    continue;
                };
                let subject = Subject::entry(self.path, &["_links", id, &format!("{written}@{target}")]);
                self.findings.add(FindingKind::EntryInvalid, subject, fault);
            }
        }
    }

    fn backlinks(&mut self) {
        let mut missing: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (id, links) in &self.solver.keys {
            for Link { target, .. } in links {
                if missing.insert((target, id)) && !self.solver.keys.contains_key(target) {
                    let detail = format!("linked from {id}, but does not exist");
                    self.findings.add(FindingKind::LinkTargetMissing, Subject::key(target), detail);
                }
            }
        }
        for (target, ids) in &self.solver.backlinks {
            for id in ids {
                if !missing.remove(&(target, id)) {
                    let detail = format!("{id} has no link to {target}");
                    let subject = Subject::entry(self.path, &["_backlinks", target, id]);
                    self.findings.add(FindingKind::BacklinkOrphaned, subject, detail);
                }
            }
        }
        for (target, id) in missing {
            let detail = format!("linked from {id}, but _backlinks does not say so");
            self.findings.add(FindingKind::BacklinkMissing, Subject::key(target), detail);
        }
    }

    fn inputs(&mut self, derived: bool) {
        let mut all: Inputs<'_> = BTreeMap::new();
        for (id, links) in &self.solver.keys {
            for link in links {
                let Some(operation) = &link.operation else { continue };
                let inputs = all.entry((&link.target, &operation.digest, operation.output)).or_default();
                inputs.entry(operation.input).or_default().insert((id, &operation.selector));
            }
        }
        for ((target, digest, output), inputs) in &all {
            // As many as there are must be 0, 1, 2, …
            let complete = (0..).zip(inputs.keys()).all(|(expected, input)| expected == *input);
            if !complete {
                let found: Vec<_> = inputs.keys().collect();
                let detail = format!(
                    "operation {digest} (output {output}) leads here by inputs {found:?}, not by all before"
                );
                self.findings.add(FindingKind::LinkInputMissing, Subject::key(target), detail);
            } else if derived {
                let record = OpDigest::new(*digest).record_digest(*output);
                let expected = derived_id(record.as_str(), inputs.values());
                if *target != expected {
                    let detail =
                        format!("its links give the id {expected}: one of them, or the id, was changed");
                    self.findings.add(FindingKind::KeyId, Subject::key(target), detail);
                }
            }
        }
    }

    /// Depth first, without recursion: a chain may be as long as a build.
    /// Daemons write circles, and take them out of the caches that they export.
    fn cycles(&mut self, derived: bool) {
        let kind = if derived { FindingKind::LinkCycle } else { FindingKind::LinkLoop };
        let mut done: BTreeSet<&str> = BTreeSet::new();
        let mut on_path: BTreeSet<&str> = BTreeSet::new();
        let mut targets: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (id, links) in &self.solver.keys {
            targets.insert(id, links.iter().map(|link| link.target.as_str()).collect());
        }
        for &start in targets.keys() {
            if !done.insert(start) {
                continue;
            }
            on_path.insert(start);
            let mut stack = vec![(start, targets[start].iter())];
            while let Some((id, rest)) = stack.last_mut() {
                match rest.next() {
                    Some(&target) if on_path.contains(target) => {
                        let detail = format!("its links come back to it through {id}");
                        self.findings.add(kind, Subject::key(target), detail);
                    }
                    Some(&target) => {
                        if let Some(next) = targets.get(target)
                            && done.insert(target)
                        {
                            on_path.insert(target);
                            stack.push((target, next.iter()));
                        }
                    }
                    None => {
                        on_path.remove(id);
                        stack.pop();
                    }
                }
            }
        }
    }

    fn results(&mut self) {
        let mut missing: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (id, results) in &self.solver.results {
            for result in results {
                missing.insert((&result.name, id));
                if let Some(found) = result.id.as_ref().filter(|found| **found != result.name) {
                    let subject = Subject::entry(self.path, &["_result", id, &result.name]);
                    let detail = format!("the value names {found:?}");
                    self.findings.add(FindingKind::ResultValue, subject, detail);
                }
            }
            if !results.is_empty() && !self.solver.keys.contains_key(id) {
                let detail = "it has results, but no bucket in _links, so a daemon does not know it";
                self.findings.add(FindingKind::KeyMissing, Subject::key(id), detail);
            }
        }
        for (name, ids) in &self.solver.by_result {
            for id in ids {
                if !missing.remove(&(name, id)) {
                    let detail = format!("key {id} has no result {name}");
                    let subject = Subject::entry(self.path, &["_byresult", name, id]);
                    self.findings.add(FindingKind::ByResultOrphaned, subject, detail);
                }
            }
        }
        for (name, id) in missing {
            let detail = format!("_byresult does not have its result {name}");
            self.findings.add(FindingKind::ByResultMissing, Subject::key(id), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_can_never_match() {
        let digest = Digest::of(b"op");
        let selector = Digest::of(b"s");
        let good = [
            format!(r#"{{"Digest":"{digest}"}}"#),
            format!(r#"{{"Input":1,"Output":2,"Digest":"{digest}","Selector":"{selector}"}}"#),
            r#"{"Digest":"{\"Type\":\"buildkit.merge.v0\"}"}"#.to_owned(),
        ];
        for json in good {
            assert_eq!(link_fault(&Operation::parse(&json).unwrap(), &json), None, "{json}");
        }
        let bad = [
            format!(r#"{{"Digest":"{digest}","Input":1}}"#),
            format!(r#"{{"Input":0,"Digest":"{digest}"}}"#),
            format!(r#"{{"Input":1, "Digest":"{digest}"}}"#),
            format!(r#"{{"Input":-1,"Digest":"{digest}"}}"#),
            r#"{"Digest":"sha256:0"}"#.to_owned(),
            r#"{"Input":1}"#.to_owned(),
            format!(r#"{{"Digest":"{digest}","Selector":"x"}}"#),
        ];
        for json in bad {
            assert!(link_fault(&Operation::parse(&json).unwrap(), &json).is_some(), "{json}");
        }
    }
}
