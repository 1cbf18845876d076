//! `cache.db`: the solver's keys, links and results.
//!
//! ```text
//! _result/<id>/<result> = {"CreatedAt":…,"ID":"<result>"}    result: <worker id>::<record id>
//! _byresult/<result>/<id> = ""
//! _links/<id>/<link>@<target id> = ""      link: {"Input":n,"Output":n,"Digest":"…","Selector":"…"}
//! _backlinks/<target id>/<id> = ""         in this order, zero and empty ones left out
//! ```
//!
//! Mirrors `solver/bboltcachestorage/storage.go` of `BuildKit`. A lookup compares the JSON of a link
//! byte by byte, so one that is written in another way never matches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::database::{self, Place};
use super::report::{Counts, FindingKind, Findings, Subject};
use crate::bolt::{BucketRef, Database};
use crate::digest::{Digest, Hasher, OpDigest};

/// What other stores are compared with.
#[derive(Debug, Default)]
pub(super) struct Solver {
    /// Every result that stands under a key: key id, worker id, record id.
    pub(super) results: BTreeSet<(String, String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link<'a> {
    #[serde(rename = "Input", default)]
    input: i64,
    #[serde(rename = "Output", default)]
    output: i64,
    #[serde(rename = "Digest", default, borrow)]
    digest: std::borrow::Cow<'a, str>,
    #[serde(rename = "Selector", default, borrow)]
    selector: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct ResultValue {
    #[serde(rename = "CreatedAt", default)]
    created_at: String,
    #[serde(rename = "ID", default)]
    id: String,
}

impl Link<'_> {
    /// Why the link can never match, if so.
    fn fault(&self, written: &str) -> Option<String> {
        if self.input < 0 {
            return Some(format!("input {}", self.input));
        }
        // Merge and diff operations of old releases have their JSON as digest.
        if self.digest.parse::<Digest>().is_err() && !self.digest.starts_with('{') {
            return Some(format!("{:?} is no operation digest", self.digest));
        }
        if !self.selector.is_empty() && self.selector.parse::<Digest>().is_err() {
            return Some(format!("{:?} is no selector", self.selector));
        }
        let canonical = self.canonical()?;
        (canonical != written).then(|| format!("a daemon writes {canonical}"))
    }

    /// The JSON as Go writes it; `None` where a text needs escapes, which no digest does.
    fn canonical(&self) -> Option<String> {
        let plain = |text: &str| {
            text.bytes().all(|b| (0x20..0x7f).contains(&b) && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'&'))
        };
        if !plain(&self.digest) || !plain(&self.selector) {
            return None;
        }
        let number = |name: &str, n: i64| (n != 0).then(|| format!("\"{name}\":{n}"));
        let text = |name: &str, t: &str| (!t.is_empty()).then(|| format!("\"{name}\":\"{t}\""));
        let fields = [
            number("Input", self.input),
            number("Output", self.output),
            text("Digest", &self.digest),
            text("Selector", &self.selector),
        ];
        Some(format!("{{{}}}", fields.into_iter().flatten().collect::<Vec<_>>().join(",")))
    }
}

/// Per target and operation (digest, output) and input, the keys that lead to it, with selectors.
type Inputs<'db> = BTreeMap<(&'db str, String, i64), BTreeMap<i64, BTreeSet<(&'db str, String)>>>;

struct Cache<'db, 'f> {
    place: Place,
    /// Keys that exist: each has a bucket of links, maybe an empty one.
    links: BTreeMap<&'db str, BTreeSet<&'db str>>,
    inputs: Inputs<'db>,
    findings: &'f mut Findings,
}

/// Decodes the database and checks each entry and the indexes. `derived`: every key's id follows from the
/// links that lead to it, since warmkit wrote them all.
pub(super) fn read(
    db: &Database,
    path: &Path,
    derived: bool,
    counts: &mut Counts,
    findings: &mut Findings,
) -> Solver {
    let place = Place::new(path);
    let root = db.root();
    let mut cache = Cache { place, links: BTreeMap::new(), inputs: BTreeMap::new(), findings };
    cache.links(root, counts);
    cache.backlinks(root);
    cache.inputs(derived);
    cache.cycles(derived);
    let solver = cache.results(root);
    counts.keys = cache.links.len();
    counts.results = solver.results.len();
    solver
}

fn key(id: &str) -> Subject {
    Subject::Key { id: id.to_owned() }
}

/// The id that warmkit gives a key with inputs: 25 base-36 digits of SHA-256 over `warmkit key`, the digest
/// in cache configs and, per input, the number of its alternatives with the key and selector of each; every
/// part with its length as 64 bits in front. A daemon draws ids at random.
fn derived_id<'a>(record: &str, inputs: impl Iterator<Item = &'a BTreeSet<(&'a str, String)>>) -> String {
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

impl<'db> Cache<'db, '_> {
    /// The buckets below a bucket of the root, with their names as text.
    fn below(&mut self, root: BucketRef<'db>, name: &str) -> Vec<(&'db str, BucketRef<'db>, Place)> {
        let Some(bucket) = database::needed(root, name, &self.place, self.findings) else {
            return Vec::new();
        };
        let place = self.place.child(name.as_bytes());
        let mut found = Vec::new();
        for (id, bucket) in database::buckets(bucket, &place, self.findings) {
            let place = place.child(id);
            if let Some(id) = database::utf8(id, &place, self.findings) {
                found.push((id, bucket, place));
            }
        }
        found
    }

    fn links(&mut self, root: BucketRef<'db>, counts: &mut Counts) {
        for (id, bucket, place) in self.below(root, "_links") {
            let mut targets = BTreeSet::new();
            for (entry, _) in database::values(bucket, &place, self.findings) {
                counts.links += 1;
                let place = place.child(entry);
                let Some(entry) = database::utf8(entry, &place, self.findings) else { continue };
                let Some((json, target)) = entry.rsplit_once('@') else {
                    self.findings.add(FindingKind::EntryInvalid, place.subject(), "no @ before a target");
                    continue;
                };
                match serde_json::from_str::<Link<'_>>(json) {
                    Ok(link) => {
                        if let Some(fault) = link.fault(json) {
                            self.findings.add(FindingKind::EntryInvalid, place.subject(), fault);
                        }
                        let operation = (target, link.digest.into_owned(), link.output);
                        let inputs = self.inputs.entry(operation).or_default();
                        let from = (id, link.selector.into_owned());
                        inputs.entry(link.input).or_default().insert(from);
                    }
                    Err(error) => {
                        self.findings.add(FindingKind::EntryInvalid, place.subject(), error.to_string());
                    }
                }
                targets.insert(target);
            }
            self.links.insert(id, targets);
        }
    }

    fn backlinks(&mut self, root: BucketRef<'db>) {
        let mut missing: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (id, targets) in &self.links {
            for target in targets {
                missing.insert((target, id));
                if !self.links.contains_key(target) {
                    let detail = format!("linked from {id}, but does not exist");
                    self.findings.add(FindingKind::LinkTargetMissing, key(target), detail);
                }
            }
        }
        for (target, bucket, place) in self.below(root, "_backlinks") {
            for (id, _) in database::values(bucket, &place, self.findings) {
                let place = place.child(id);
                let Some(id) = database::utf8(id, &place, self.findings) else { continue };
                if !missing.remove(&(target, id)) {
                    let detail = format!("{id} has no link to {target}");
                    self.findings.add(FindingKind::BacklinkOrphaned, place.subject(), detail);
                }
            }
        }
        for (target, id) in missing {
            let detail = format!("linked from {id}, but _backlinks does not say so");
            self.findings.add(FindingKind::BacklinkMissing, key(target), detail);
        }
    }

    fn inputs(&mut self, derived: bool) {
        for ((target, digest, output), inputs) in &self.inputs {
            // As many as there are must be 0, 1, 2, …
            let complete = (0..).zip(inputs.keys()).all(|(expected, input)| expected == *input);
            if !complete {
                let found: Vec<_> = inputs.keys().collect();
                let detail = format!(
                    "operation {digest} (output {output}) leads here by inputs {found:?}, not by all before"
                );
                self.findings.add(FindingKind::LinkInputMissing, key(target), detail);
            } else if derived {
                let record = OpDigest::new(digest.clone()).record_digest(*output);
                let expected = derived_id(record.as_str(), inputs.values());
                if *target != expected {
                    let detail =
                        format!("its links give the id {expected}: one of them, or the id, was changed");
                    self.findings.add(FindingKind::KeyId, key(target), detail);
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
        for &start in self.links.keys() {
            if !done.insert(start) {
                continue;
            }
            on_path.insert(start);
            let mut stack = vec![(start, self.links[start].iter())];
            while let Some((id, targets)) = stack.last_mut() {
                match targets.next() {
                    Some(&target) if on_path.contains(target) => {
                        let detail = format!("its links come back to it through {id}");
                        self.findings.add(kind, key(target), detail);
                    }
                    Some(&target) => {
                        if let Some(next) = self.links.get(target)
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

    fn results(&mut self, root: BucketRef<'db>) -> Solver {
        let mut solver = Solver::default();
        let mut missing: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (id, bucket, place) in self.below(root, "_result") {
            let mut any = false;
            for (name, value) in database::values(bucket, &place, self.findings) {
                any = true;
                let place = place.child(name);
                let Some(name) = database::utf8(name, &place, self.findings) else { continue };
                missing.insert((name, id));
                match serde_json::from_slice::<ResultValue>(value) {
                    Ok(value) => self.result_value(name, &value, &place),
                    Err(error) => {
                        let detail = format!("{}: {error}", database::shown(value));
                        self.findings.add(FindingKind::EntryInvalid, place.subject(), detail);
                    }
                }
                if let Some((worker, record)) = name.split_once("::") {
                    solver.results.insert((id.to_owned(), worker.to_owned(), record.to_owned()));
                } else {
                    let detail = "no :: between a worker id and a record id";
                    self.findings.add(FindingKind::EntryInvalid, place.subject(), detail);
                }
            }
            if any && !self.links.contains_key(id) {
                let detail = "it has results, but no bucket in _links, so a daemon does not know it";
                self.findings.add(FindingKind::KeyMissing, key(id), detail);
            }
        }
        for (name, bucket, place) in self.below(root, "_byresult") {
            for (id, _) in database::values(bucket, &place, self.findings) {
                let place = place.child(id);
                let Some(id) = database::utf8(id, &place, self.findings) else { continue };
                if !missing.remove(&(name, id)) {
                    let detail = format!("key {id} has no result {name}");
                    self.findings.add(FindingKind::ByResultOrphaned, place.subject(), detail);
                }
            }
        }
        for (name, id) in missing {
            let detail = format!("_byresult does not have its result {name}");
            self.findings.add(FindingKind::ByResultMissing, key(id), detail);
        }
        solver
    }

    fn result_value(&mut self, name: &str, value: &ResultValue, place: &Place) {
        if value.id != name {
            let detail = format!("the value names {:?}", value.id);
            self.findings.add(FindingKind::ResultValue, place.subject(), detail);
        }
        if let Err(error) = value.created_at.parse::<jiff::Timestamp>() {
            let detail = format!("CreatedAt {:?}: {error}", value.created_at);
            self.findings.add(FindingKind::EntryInvalid, place.subject(), detail);
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
            let link: Link<'_> = serde_json::from_str(&json).unwrap();
            assert_eq!(link.fault(&json), None, "{json}");
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
            let link: Link<'_> = serde_json::from_str(&json).unwrap();
            assert!(link.fault(&json).is_some(), "{json}");
        }
    }
}
