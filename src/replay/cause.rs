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

/// A merge of what is in the cache costs nothing, and no cache need have it.
fn is_merge(vertex: &Vertex) -> bool {
    vertex.own_name.contains("] LINK ")
}

/// Whether a vertex was begun: it stands on others, and no cache had it.
fn is_missed(vertex: &Vertex) -> bool {
    vertex.started && !vertex.cached && !vertex.inputs.is_empty() && !is_merge(vertex)
}

/// Whether a vertex was to run, for which all that it stands on had to be there. A daemon also begins with one
/// to look at the files of an input, while it does not know yet whether another input will be found.
pub(super) fn is_first_missed(graph: &Graph, vertex: &Vertex) -> bool {
    is_missed(vertex)
        && vertex.inputs.iter().all(|id| graph.get(id).is_some_and(|input| is_found(graph, input)))
        && !stands_on_missed(graph, vertex)
}

fn is_found(graph: &Graph, vertex: &Vertex) -> bool {
    let inputs = || vertex.inputs.iter().all(|id| graph.get(id).is_some_and(|input| is_found(graph, input)));
    vertex.cached || vertex.inputs.is_empty() || (is_merge(vertex) && inputs())
}

/// Whether anything that a vertex stands on missed, directly or through merges and steps that wait for it.
fn stands_on_missed(graph: &Graph, vertex: &Vertex) -> bool {
    let mut seen = BTreeSet::new();
    let mut pending: Vec<&str> = vertex.inputs.iter().map(String::as_str).collect();
    while let Some(id) = pending.pop() {
        let Some(input) = seen.insert(id).then(|| graph.get(id)).flatten() else { continue };
        if is_missed(input) {
            return true;
        }
        pending.extend(input.inputs.iter().map(String::as_str));
    }
    false
}

/// The steps that missed and stand on nothing that missed, in the order of the build.
pub(super) fn missed(graph: &Graph, caches: &[&Cache], gate: &Gate, platforms: &[Platform]) -> Vec<Missed> {
    let roots: BTreeSet<&str> = caches
        .iter()
        .flat_map(|cache| &cache.records)
        .filter(|record| record.inputs.is_empty())
        .map(|record| record.digest.as_str())
        .collect();
    let begun: Vec<&Vertex> = graph.vertices().into_iter().filter(|vertex| is_missed(vertex)).collect();
    let mut first: Vec<&Vertex> =
        begun.iter().copied().filter(|vertex| is_first_missed(graph, vertex)).collect();
    if first.is_empty() {
        // It ended before one was to run.
        first = begun.into_iter().filter(|vertex| !stands_on_missed(graph, vertex)).collect();
    }
    let mut all: Vec<Missed> = Vec::new();
    for vertex in first {
        let inputs: Vec<&Vertex> = vertex.inputs.iter().filter_map(|id| graph.get(id)).collect();
        let moved =
            inputs.iter().find_map(|input| moved(&gate.real_name(&input.own_name), &roots, platforms));
        let takes_files = inputs.iter().any(|input| input.inputs.is_empty() && is_context(&input.own_name));
        let cause = match moved {
            Some(cause) => cause,
            None if takes_files => Cause::Files,
            None => Cause::Instruction,
        };
        let missed = Missed { step: gate.real_name(&vertex.name), cause };
        if !all.contains(&missed) {
            all.push(missed);
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
