//! Which step missed, and why, as far as it can be told.
//!
//! A step is looked for by the keys of what it stands on and by the digest of its operation. So a step
//! that misses although all that it stands on was found differs itself: in the files that it takes, or in
//! what it says. Where it stands on an image, the cache tells whether it knows that image: its key is
//! made of the image's digest or of its layers.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use serde::Serialize;

use super::gate::Gate;
use crate::daemon::{Graph, Vertex};
use crate::digest::{Digest, RecordDigest};
use crate::keys::images::image_keys;
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
    roots: HashSet<&'a RecordDigest>,
    gate: &'a Gate,
    platforms: Vec<Platform>,
}

impl<'a> Causes<'a> {
    pub(super) fn new(caches: &[&'a Cache], gate: &'a Gate, platforms: Vec<Platform>) -> Self {
        let records = caches.iter().flat_map(|cache| &cache.records);
        let roots = records.filter(|record| record.inputs.is_empty());
        Self { roots: roots.map(|record| &record.digest).collect(), gate, platforms }
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
        let inputs = vertex.inputs.iter().filter_map(|id| graph.get(id));
        let sources: Vec<&Vertex> = inputs.filter(|input| input.inputs.is_empty()).collect();
        let moved = sources.iter().find_map(|source| self.moved(&self.gate.real_name(&source.own_name)));
        let cause = match moved {
            Some(cause) => cause,
            None if sources.into_iter().any(has_files) => Cause::Files,
            None => Cause::Instruction,
        };
        Missed { step: self.gate.real_name(&vertex.name), cause }
    }

    /// Whether a source is an image that the caches do not know.
    fn moved(&self, name: &str) -> Option<Cause> {
        let (reference, digest) = image(name)?;
        let mut keys = self.platforms.iter().flat_map(|platform| image_keys(&digest, platform, None));
        let known = keys.any(|key| self.roots.contains(&key));
        (!known).then(|| Cause::BaseMoved { image: reference.to_owned(), digest })
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

/// Whether files come from a source that is no image: `[internal] load build context`, `[context x] load from
/// client`, `[2/3] ADD https://…`. A stage may be called `context` too, and its `FROM` is an instruction.
fn has_files(source: &Vertex) -> bool {
    let name = &source.own_name;
    if source.is_instruction() {
        return name.contains("] ADD ");
    }
    image(name).is_none() && (name.starts_with("[context ") || name.contains("] load "))
}

/// The image that a source is, as the build names it, and its digest: `[build 1/4] FROM ghcr.io/a/b:1@sha256:…`,
/// `[context b] ghcr.io/a/b:1@sha256:…`, `docker-image://ghcr.io/a/b:1@sha256:…`.
fn image(name: &str) -> Option<(&str, Digest)> {
    let name = name.split_once("] ").filter(|_| name.starts_with('[')).map_or(name, |(_, name)| name);
    let name =
        ["FROM ", "docker-image://"].iter().fold(name, |name, mark| name.strip_prefix(mark).unwrap_or(name));
    let (reference, digest) = name.rsplit_once('@')?;
    Some((reference, digest.parse().ok()?))
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
        // Sources are asked for in each build.
        assert_eq!(names(&graph(&[("image", "began", &[]), ("run", "began", &["image"])])), ["run"]);
    }

    fn gate() -> Gate {
        Gate::open(&crate::source::Options::default(), Vec::new()).unwrap()
    }

    /// What the replay says of `step`, which missed: the cause, where the caches know the image `known`.
    fn cause(known: &str, graph: &Graph, step: &str) -> Cause {
        let platform: Platform = "linux/amd64".parse().unwrap();
        let keys = image_keys(&Digest::of(known.as_bytes()), &platform, None);
        let gate = gate();
        let platforms = vec!["linux/s390x".parse().unwrap(), platform];
        let causes = Causes { roots: keys.iter().collect(), gate: &gate, platforms };
        let steps: Vec<&Vertex> = graph.begun().filter(|vertex| vertex.name == step).collect();
        let [missed] = causes.of(graph, &steps).try_into().unwrap();
        assert_eq!(missed.step, step);
        missed.cause
    }

    #[test]
    fn the_cause_is_in_what_a_step_stands_on_directly() {
        let digest = Digest::of(b"today");
        let moved = |image: &str| Cause::BaseMoved { image: image.to_owned(), digest };
        let cases = [
            ("[build 1/2] FROM r.io/a:1@DIGEST", moved("r.io/a:1"), Cause::Instruction),
            ("[context 1/2] FROM r.io/a:1@DIGEST", moved("r.io/a:1"), Cause::Instruction),
            ("[context base] r.io/a:1@DIGEST", moved("r.io/a:1"), Cause::Instruction),
            ("docker-image://r.io/a:1@DIGEST", moved("r.io/a:1"), Cause::Instruction),
            ("FROM r.io/a:1@DIGEST", moved("r.io/a:1"), Cause::Instruction),
            ("[internal] load build context", Cause::Files, Cause::Files),
            ("[linux/arm64 internal] load build context", Cause::Files, Cause::Files),
            ("[internal] load git source https://r.io/a.git#main", Cause::Files, Cause::Files),
            ("[context base] load from client", Cause::Files, Cause::Files),
            ("[context base] https://r.io/a.tar", Cause::Files, Cause::Files),
            ("[2/3] ADD https://r.io/a /", Cause::Files, Cause::Files),
            ("[context 1/2] WORKDIR /", Cause::Instruction, Cause::Instruction),
            ("[internal] preparing inline document", Cause::Instruction, Cause::Instruction),
        ];
        for (source, unknown, known) in cases {
            let source = source.replace("DIGEST", &digest.to_string());
            let graph =
                graph(&[(&source, "began", &[]), ("copy", "began", &[&source]), ("run", "began", &["copy"])]);
            assert_eq!(cause("yesterday", &graph, "copy"), unknown, "{source}");
            assert_eq!(cause("today", &graph, "copy"), known, "{source}");
            assert_eq!(cause("yesterday", &graph, "run"), Cause::Instruction, "{source} is not right below");
        }
        // A download has a source and a step of the same name.
        let name = "[2/3] ADD https://r.io/a /";
        let below =
            graph(&[("source", "began", &[]), (name, "began", &["source"]), ("run", "began", &[name])]);
        assert_eq!(cause("today", &below, "run"), Cause::Instruction);
        // A moved image explains what files cannot.
        let image = format!("[1/2] FROM r.io/a:1@{digest}");
        let both = ["[internal] load build context", &image];
        let graph = graph(&[(both[0], "began", &[]), (both[1], "began", &[]), ("copy", "began", &both)]);
        assert_eq!(cause("yesterday", &graph, "copy"), moved("r.io/a:1"));
        assert_eq!(cause("today", &graph, "copy"), Cause::Files);
    }

    #[test]
    fn what_begins_in_several_builds_is_told_apart_by_what_it_stands_on() {
        let gate = gate();
        let causes = Causes { roots: HashSet::new(), gate: &gate, platforms: Vec::new() };
        let first = [
            ("deps", "shown", &[][..]),
            ("run", "shown", &["deps"]),
            ("more", "shown", &["run"]),
            ("copy", "began", &["more"]),
        ];
        let mut second = first;
        (second[1].1, second[3].1) = ("began", "shown");
        let mut suspects = causes.suspects(&graph(&first));
        suspects.extend(causes.suspects(&graph(&second)));
        let lowest = lowest(&suspects);
        assert_eq!(lowest.iter().map(|missed| missed.step.as_str()).collect::<Vec<_>>(), ["run"]);
    }

    #[test]
    fn a_step_of_two_platforms_is_named_once() {
        let gate = gate();
        let causes = Causes { roots: HashSet::new(), gate: &gate, platforms: Vec::new() };
        let mut graph = graph(&[("base", "loaded", &[])]);
        for (digest, name) in [("1", "[2/3] RUN a"), ("2", "[2/3] RUN a"), ("3", "[2/2] RUN b")] {
            let vertex =
                serde_json::json!({"digest": digest, "name": name, "inputs": ["base"], "started": "1"});
            assert!(graph.read(serde_json::json!({"vertexes": [vertex]}).to_string().as_bytes()));
        }
        let missed = causes.of(&graph, &certain(&graph));
        let steps: Vec<&str> = missed.iter().map(|missed| missed.step.as_str()).collect();
        assert_eq!(steps, ["[2/3] RUN a", "[2/2] RUN b"]);
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
