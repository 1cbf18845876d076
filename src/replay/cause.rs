//! Which step missed, and why, as far as it can be told.
//!
//! A step is looked for by the keys of what it stands on and by the digest of its operation. So a step
//! that misses although all that it stands on was found differs itself: in the files that it takes, or in
//! what it says. Where it stands on an image, the cache tells whether it knows that image: its key is
//! made of the image's digest or of its layers.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::gate::Gate;
use crate::daemon::{Graph, Vertex};
use crate::digest::{Digest, OpDigest};
use crate::oci::{Cache, Platform};

/// Why a step was not in the caches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
#[non_exhaustive]
pub enum Cause {
    /// The image that it stands on is not the one that the caches were made on.
    BaseMoved {
        /// As the build names it.
        image: String,
        /// What it is today.
        digest: Digest,
    },
    /// The files that it takes from a context, or how it takes them.
    Files,
    /// What it says: the instruction, an argument, a variable; or the release of the frontend.
    Instruction,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BaseMoved { image, digest } => {
                write!(f, "{image} is now {digest}, which the caches were not made on")
            }
            Self::Files => f.write_str("the files that it takes, or how it takes them, are not those of the cache"),
            Self::Instruction => f.write_str(
                "the instruction, a build argument or a variable of it differs, or another family of BuildKit \
                 made the cache",
            ),
        }
    }
}

/// A step that was not in the caches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Missed {
    /// As a daemon prints it: `[build 2/4] RUN make`.
    pub step: String,
    /// Why, where it can be told.
    #[serde(flatten)]
    pub cause: Cause,
}

/// The steps that missed for certain: no cache had them, and all that they stand on was found.
///
/// A daemon may begin with another step before: it looks at the files of one input while it does not know yet
/// whether a cache has the other.
pub(super) fn certain(graph: &Graph) -> Vec<&Vertex> {
    let mut begun = graph.begun().peekable();
    if begun.peek().is_none() {
        return Vec::new();
    }
    let found = graph.found();
    let is_found =
        |(id, vertex): (&str, &Vertex)| vertex.inputs.is_empty() || vertex.is_merge() || found.contains(id);
    begun.filter(|vertex| graph.below(vertex).into_iter().all(is_found)).collect()
}

/// A step that a daemon began with, of which it did not say of all that it stands on whether a cache had it.
#[derive(Debug)]
pub(super) struct Suspect {
    missed: Missed,
    /// The names of all that it stands on. (Ids are others in each build that takes a local context.)
    below: BTreeSet<String>,
}

/// Tells the causes of misses of one build.
pub(super) struct Causes<'a> {
    /// Digests of the records that stand on nothing.
    roots: BTreeSet<&'a str>,
    gate: &'a Gate,
    platforms: Vec<Platform>,
}

impl<'a> Causes<'a> {
    pub(super) fn new(caches: &[&'a Cache], gate: &'a Gate, platforms: Vec<Platform>) -> Self {
        let records = caches.iter().flat_map(|cache| &cache.records);
        let roots = records.filter(|record| record.inputs.is_empty());
        Self { roots: roots.map(|record| record.digest.as_str()).collect(), gate, platforms }
    }

    /// These steps in the order in which they were reported, each with its cause.
    pub(super) fn of(&self, graph: &Graph, steps: &[&Vertex]) -> Vec<Missed> {
        let mut all = Vec::new();
        for vertex in
            graph.vertices().into_iter().filter(|v| steps.iter().any(|step| std::ptr::eq(*step, *v)))
        {
            let missed = self.of_one(graph, vertex);
            if !all.contains(&missed) {
                all.push(missed);
            }
        }
        all
    }

    /// What a daemon began with in a build in which nothing missed for certain.
    pub(super) fn suspects(&self, graph: &Graph) -> Vec<Suspect> {
        let suspect = |vertex: &Vertex| Suspect {
            missed: self.of_one(graph, vertex),
            below: graph.below(vertex).values().map(|below| self.gate.real_name(&below.name)).collect(),
        };
        graph.begun().map(suspect).collect()
    }

    fn of_one(&self, graph: &Graph, vertex: &Vertex) -> Missed {
        let inputs: Vec<&Vertex> = vertex.inputs.iter().filter_map(|id| graph.get(id)).collect();
        let moved = inputs
            .iter()
            .find_map(|input| moved(&self.gate.real_name(&input.own_name), &self.roots, &self.platforms));
        let takes_files = inputs.iter().any(|input| input.inputs.is_empty() && is_context(&input.own_name));
        let cause = match moved {
            Some(cause) => cause,
            None if takes_files => Cause::Files,
            None => Cause::Instruction,
        };
        Missed { step: self.gate.real_name(&vertex.name), cause }
    }
}

/// Of all suspects those that stand on no other, each once.
pub(super) fn lowest(suspects: &[Suspect]) -> Vec<Missed> {
    let mut all = Vec::new();
    for Suspect { missed, below } in suspects {
        if !suspects.iter().any(|other| below.contains(&other.missed.step)) && !all.contains(missed) {
            all.push(missed.clone());
        }
    }
    all
}

/// Whether a source is what a client sends: `[internal] load build context`, `[context x] load from client`.
fn is_context(name: &str) -> bool {
    name.ends_with("load build context")
        || name.starts_with("[context ")
        || name.ends_with("load from client")
}

/// Whether a vertex is an image that the caches do not know: `[build 1/4] FROM ghcr.io/a/b:1@sha256:…`.
fn moved(name: &str, roots: &BTreeSet<&str>, platforms: &[Platform]) -> Option<Cause> {
    let image = name.split_once("FROM ").map_or(name, |(_, image)| image);
    let image = image.strip_prefix("docker-image://").unwrap_or(image);
    let (reference, digest) = image.rsplit_once('@')?;
    let digest: Digest = digest.parse().ok()?;
    let known = platforms
        .iter()
        .any(|platform| roots.contains(image_key(digest, platform).record_digest(0).as_str()));
    (!known).then(|| Cause::BaseMoved { image: reference.to_owned(), digest })
}

/// The operation digest of an image by its digest: `mainManifestKey` in `source/containerimage/pull.go`, under
/// the prefix of `CacheMap` in `solver/llbsolver/ops/source.go` (v0.34.2; the same in v0.17.3).
fn image_key(digest: Digest, platform: &Platform) -> OpDigest {
    let variant = match platform.variant.as_str() {
        "" => String::new(),
        variant => format!(",\"Variant\":\"{variant}\""),
    };
    let text = format!(
        "{{\"Digest\":\"{digest}\",\"OS\":\"{}\",\"Arch\":\"{}\"{variant}}}",
        platform.os, platform.arch
    );
    OpDigest::of(format!("buildkit.source.v0:{}", Digest::of(text.as_bytes())).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A build as a daemon tells of it: vertices that were begun, loaded, or only shown as done, and their inputs.
    fn graph(vertices: &[(&str, &str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        for (name, how, inputs) in vertices {
            let (cached, completed) = match *how {
                "began" => (false, serde_json::Value::Null),
                "loaded" => (true, serde_json::Value::Null),
                "shown" => (true, "1".into()),
                _ => (false, "2".into()),
            };
            let started = (*how != "-").then_some("1");
            let vertex = serde_json::json!({
                "digest": name, "name": name, "inputs": inputs, "started": started, "cached": cached,
                "completed": completed,
            });
            assert!(graph.read(serde_json::json!({"vertexes": [vertex]}).to_string().as_bytes()));
        }
        graph
    }

    fn names(graph: &Graph) -> Vec<&str> {
        certain(graph).into_iter().map(|vertex| vertex.name.as_str()).collect()
    }

    #[test]
    fn certain_is_what_stands_on_nothing_but_what_was_found() {
        // `copy` has its files looked at while nobody knows whether a cache has `run`, and shows it as done.
        let open = [
            ("image", "began", &[][..]),
            ("deps", "loaded", &["image"]),
            ("docs", "loaded", &["image"]),
            ("run", "shown", &["deps"]),
            ("copy", "began", &["run", "docs"]),
        ];
        assert!(names(&graph(&open)).is_empty());
        let mut known = open;
        known[3].1 = "began";
        assert_eq!(names(&graph(&known)), ["run"]);
        // What was found may be known from what stands on it alone; a merge need not be.
        let below = [
            ("image", "began", &[][..]),
            ("deps", "shown", &["image"]),
            ("run", "loaded", &["deps"]),
            ("[2/3] LINK copy", "began", &["run"]),
            ("next", "began", &["[2/3] LINK copy", "deps"]),
        ];
        assert_eq!(names(&graph(&below)), ["next"]);
    }

    #[test]
    fn of_suspects_the_lowest_count() {
        let suspect = |step: &str, below: &[&str]| Suspect {
            missed: Missed { step: step.to_owned(), cause: Cause::Instruction },
            below: below.iter().map(|&name| name.to_owned()).collect(),
        };
        let all =
            [suspect("b", &["a"]), suspect("a", &["x"]), suspect("c", &["b", "y"]), suspect("a", &["x"])];
        let lowest = lowest(&all);
        assert_eq!(lowest.iter().map(|missed| missed.step.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
