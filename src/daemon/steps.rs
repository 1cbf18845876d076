//! What a build says of its steps.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
#[non_exhaustive]
pub enum StepStatus {
    /// Printed as CACHED.
    Cached,
    /// Ran, or had its result fetched.
    Ran,
    /// Failed.
    Error {
        /// What the daemon said.
        message: String,
    },
    /// The build ended before it came to it.
    NotReached,
}

/// One instruction of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// As printed: `[build 2/4] RUN …`.
    pub name: String,
    /// How it went.
    #[serde(flatten)]
    pub status: StepStatus,
}

/// What a build did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The instructions but FROM, which asks the registry in every build, in the order in which they were
    /// first reported.
    pub steps: Vec<Step>,
    /// Cache manifests that were imported.
    pub imports: usize,
    /// Layers that were extracted, each once.
    pub extractions: usize,
    /// Why the build failed, if it did: the end of what the client printed.
    pub failure: Option<String>,
}

/// `client.SolveStatus` of `BuildKit`, as far as it is needed. Up to v0.12 its members have the names of the
/// Go fields, and lists may be null.
#[derive(Deserialize)]
struct Status {
    #[serde(default, alias = "Vertexes")]
    vertexes: Option<Vec<RawVertex>>,
    #[serde(default, alias = "Statuses")]
    statuses: Option<Vec<RawStatus>>,
}

#[derive(Deserialize)]
struct RawVertex {
    #[serde(alias = "Digest")]
    digest: String,
    #[serde(default, alias = "Name")]
    name: String,
    #[serde(default, alias = "Inputs")]
    inputs: Option<Vec<String>>,
    #[serde(default, alias = "Started")]
    started: Option<String>,
    #[serde(default, alias = "Completed")]
    completed: Option<String>,
    #[serde(default, alias = "Cached")]
    cached: bool,
    #[serde(default, alias = "Error")]
    error: String,
    #[serde(default, rename = "progressGroup", alias = "ProgressGroup")]
    group: Option<RawGroup>,
}

/// Vertices that are printed as one, under the group's name: those of `COPY --link`.
#[derive(Deserialize)]
struct RawGroup {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct RawStatus {
    #[serde(default, alias = "ID")]
    id: String,
}

/// One operation of a build, as its progress shows it.
#[derive(Debug, Default)]
pub struct Vertex {
    /// As printed; that of its group, where it is one of several that are printed as one.
    pub name: String,
    /// Its own name, the group's left aside.
    pub own_name: String,
    /// The ids of the vertices that it stands on; none: a source.
    pub inputs: Vec<String>,
    /// Whether the daemon began with it because no cache had it: to run it, to look at the files that it takes,
    /// or, of a source, to ask for it. Of looking at files it tells only where that fails.
    pub began: bool,
    /// Whether it was taken from a cache.
    pub loaded: bool,
    /// Whether it is shown as taken from a cache: loaded, or what stands on it was, or began. The last may be
    /// false: a step that fails while its files are looked at shows all that it stands on as done.
    pub cached: bool,
    /// What went wrong with it; empty where nothing did.
    pub error: String,
    /// Position among all vertices seen.
    order: usize,
}

impl Vertex {
    /// Whether it puts together what stands below it, as for `COPY --link`: it costs nothing, and no cache need
    /// have it.
    pub fn is_merge(&self) -> bool {
        self.own_name.contains("] LINK ")
    }

    /// Whether it is an instruction, or a part of one, and not `[internal] …` or what comes of a named context.
    pub fn is_instruction(&self) -> bool {
        is_instruction(&self.own_name)
    }
}

/// Everything that was said of each vertex.
#[derive(Debug, Default)]
pub struct Graph {
    /// By digest.
    vertices: BTreeMap<String, Vertex>,
    /// How often something was said of a vertex.
    told: usize,
    /// Sources that are being asked for, but images: one is shown so too while a layer of it is.
    asked: BTreeSet<String>,
    extracted: BTreeSet<String>,
}

impl Graph {
    /// All vertices, in the order in which they were first reported.
    pub fn vertices(&self) -> Vec<&Vertex> {
        let mut vertices: Vec<&Vertex> = self.vertices.values().collect();
        vertices.sort_by_key(|vertex| vertex.order);
        vertices
    }

    /// What stands on nothing: images, contexts, downloads; in no order.
    pub fn sources(&self) -> impl Iterator<Item = &Vertex> {
        self.vertices.values().filter(|vertex| vertex.inputs.is_empty())
    }

    /// How often something was said of a vertex. (Of downloads something is said all the time.)
    pub fn told(&self) -> usize {
        self.told
    }

    /// Whether a context or a download is being asked for, which may take its time.
    pub fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Why a cache could not be imported.
    pub fn import_error(&self) -> Option<&str> {
        let failed = |vertex: &&Vertex| is_import(vertex) && !vertex.error.is_empty();
        self.sources().find(failed).map(|vertex| vertex.error.as_str())
    }

    /// The ids of all vertices that were loaded from a cache, and of those that they stand on.
    pub fn found(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let loaded = self.vertices.iter().filter(|(_, vertex)| vertex.loaded);
        let mut pending: Vec<&str> = loaded.map(|(id, _)| id.as_str()).collect();
        while let Some(id) = pending.pop() {
            if found.insert(id) {
                pending
                    .extend(self.get(id).into_iter().flat_map(|vertex| &vertex.inputs).map(String::as_str));
            }
        }
        found
    }

    /// The vertices that one stands on, directly or through others, with their ids.
    pub fn below<'a>(&'a self, vertex: &'a Vertex) -> BTreeMap<&'a str, &'a Vertex> {
        let mut below = BTreeMap::new();
        let mut pending: Vec<&str> = vertex.inputs.iter().map(String::as_str).collect();
        while let Some(id) = pending.pop() {
            let Some(input) = self.get(id) else { continue };
            if below.insert(id, input).is_none() {
                pending.extend(input.inputs.iter().map(String::as_str));
            }
        }
        below
    }

    /// Steps with inputs that no cache had, as far as the daemon told, in no order.
    pub fn begun(&self) -> impl Iterator<Item = &Vertex> {
        self.vertices.values().filter(|v| v.began && !v.loaded && !v.inputs.is_empty() && !v.is_merge())
    }

    /// The vertex with an id, as in [`Vertex::inputs`].
    pub fn get(&self, id: &str) -> Option<&Vertex> {
        self.vertices.get(id)
    }

    fn vertex(&mut self, id: &str) -> &mut Vertex {
        let order = self.vertices.len();
        self.vertices.entry(id.to_owned()).or_insert_with(|| Vertex { order, ..Vertex::default() })
    }

    /// Takes a line of what `buildctl build --trace` writes; false where it is something else.
    pub fn read(&mut self, line: &[u8]) -> bool {
        let Ok(status) = serde_json::from_slice::<Status>(line) else { return false };
        for raw in status.vertexes.unwrap_or_default() {
            self.told += 1;
            let is_asked = raw.started.is_some() && raw.completed.is_none();
            // What a consumer's beginning shows as done has one time for both.
            let is_shown = raw.cached && raw.completed.is_some() && raw.completed == raw.started;
            let vertex = self.vertex(&raw.digest);
            let own_name = raw.name.clone();
            let name = raw.group.map(|group| group.name).filter(|name| !name.is_empty()).unwrap_or(raw.name);
            if !name.is_empty() {
                vertex.name = name;
            }
            if !own_name.is_empty() {
                vertex.own_name = own_name;
            }
            if vertex.inputs.is_empty() {
                vertex.inputs = raw.inputs.unwrap_or_default();
            }
            vertex.began |= raw.started.is_some() && !raw.cached;
            vertex.loaded |= raw.started.is_some() && raw.cached && !is_shown;
            vertex.cached |= raw.cached;
            if !raw.error.is_empty() {
                vertex.error = raw.error;
            }
            if is_asked && vertex.inputs.is_empty() && !is_image(&vertex.own_name) {
                self.asked.insert(raw.digest);
            } else {
                self.asked.remove(&raw.digest);
            }
        }
        for status in status.statuses.unwrap_or_default() {
            self.extraction(&status.id);
        }
        true
    }

    fn extraction(&mut self, text: &str) {
        if let Some(blob) = text.strip_prefix("extracting ") {
            self.extracted.insert(blob.split(' ').next().unwrap_or_default().to_owned());
        }
    }

    /// What the build did, as far as it came.
    pub fn outcome(&self) -> Outcome {
        let vertices = self.vertices();
        let mut steps: Vec<Step> = Vec::new();
        let mut at: BTreeMap<&str, usize> = BTreeMap::new();
        for vertex in vertices.iter().filter(|vertex| is_step(vertex, &vertices)) {
            let status = if !vertex.error.is_empty() {
                StepStatus::Error { message: vertex.error.clone() }
            } else if vertex.cached {
                StepStatus::Cached
            } else if vertex.began {
                StepStatus::Ran
            } else {
                StepStatus::NotReached
            };
            if let Some(&index) = at.get(vertex.name.as_str()) {
                let merged = worse(&steps[index].status, status);
                steps[index].status = merged;
            } else {
                at.insert(vertex.name.as_str(), steps.len());
                steps.push(Step { name: vertex.name.clone(), status });
            }
        }
        let imports = vertices.iter().filter(|vertex| is_import(vertex)).count();
        Outcome { steps, imports, extractions: self.extracted.len(), failure: None }
    }
}

fn is_image(name: &str) -> bool {
    ["FROM ", "docker-image://", "oci-layout://"].iter().any(|mark| name.contains(mark))
}

fn is_import(vertex: &Vertex) -> bool {
    vertex.name.starts_with("importing cache manifest")
}

/// Whether what a daemon calls a vertex is an instruction: `[build 2/4] RUN make`, and not `[internal] …`,
/// `[linux/arm64 internal] …`, or what a client sends for a named context, `[context base] load from client`.
fn is_instruction(name: &str) -> bool {
    let Some((place, _)) = name.strip_prefix('[').and_then(|name| name.split_once(']')) else { return false };
    let (before, last) = place.rsplit_once(' ').unwrap_or(("", place));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A stage may be called `context` too, and its steps are numbered.
    let numbered = last.split_once('/').is_some_and(|(step, of)| number(step) && number(of));
    numbered || !matches!(last, "internal" | "auth") && before != "context" && !before.ends_with(" context")
}

/// Whether a vertex is an instruction, or a part of one, that a cache can serve. Not so are images and
/// downloads: a build asks for them each time.
fn is_step(vertex: &Vertex, all: &[&Vertex]) -> bool {
    let name = vertex.name.as_str();
    if !is_instruction(name) || name.contains("] FROM ") {
        return false;
    }
    let remote = name.contains("] ADD ") && (name.contains("://") || name.contains("git@"));
    let is_source_of = |other: &&&Vertex| other.name == name && !other.inputs.is_empty();
    !(remote && vertex.inputs.is_empty() && all.iter().any(|other| is_source_of(&other)))
}

/// The status of a step of two parts.
fn worse(a: &StepStatus, b: StepStatus) -> StepStatus {
    let rank = |status: &StepStatus| match status {
        StepStatus::Cached => 0,
        StepStatus::NotReached => 1,
        StepStatus::Ran => 2,
        StepStatus::Error { .. } => 3,
    };
    if rank(a) >= rank(&b) { a.clone() } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(outcome: &Outcome) -> Vec<(&str, &StepStatus)> {
        outcome.steps.iter().map(|step| (step.name.as_str(), &step.status)).collect()
    }

    #[test]
    fn the_parts_of_a_linked_copy_are_one_step() {
        let mut graph = Graph::default();
        let line = r#"{"vertexes":[
            {"digest":"sha256:1","name":"[2/3] COPY --link a /","started":"x","cached":true,
             "progressGroup":{"id":"g","name":"[2/3] COPY --link a /"}},
            {"digest":"sha256:2","name":"[2/3] LINK COPY --link a /","inputs":["sha256:1"],"started":"x",
             "progressGroup":{"id":"g","name":"[2/3] COPY --link a /"}},
            {"digest":"sha256:3","name":"[3/3] RUN true","started":"x","cached":true}]}"#;
        assert!(graph.read(line.as_bytes()));
        // Said once, as the messages that follow need not say it again.
        assert!(graph.read(br#"{"vertexes":[{"digest":"sha256:3","name":"[3/3] RUN true","started":"x"}]}"#));
        let outcome = graph.outcome();
        // The copy was CACHED, the merge onto what stands below ran.
        let expected = [("[2/3] COPY --link a /", &StepStatus::Ran), ("[3/3] RUN true", &StepStatus::Cached)];
        assert_eq!(steps(&outcome), expected);
    }

    #[test]
    fn reads_the_traces_of_old_releases() {
        let mut graph = Graph::default();
        // As v0.12.5 writes it.
        let line = r#"{"Vertexes":[
            {"Digest":"sha256:0","Inputs":null,"Name":"[1/2] FROM a","Started":"1","Completed":null},
            {"Digest":"sha256:1","Inputs":null,"Name":"[internal] load build context","Started":"1","Completed":null,"Cached":false,
             "Error":"","ProgressGroup":null},
            {"Digest":"sha256:2","Inputs":["sha256:1"],"Name":"[2/2] RUN true","Started":"1","Completed":"1",
             "Cached":true,"Error":"","ProgressGroup":null}],
            "Statuses":[{"ID":"extracting sha256:3","Vertex":"sha256:1"}],"Logs":null,"Warnings":null}"#;
        assert!(graph.read(line.as_bytes()) && graph.is_asking() && graph.found().is_empty());
        let outcome = graph.outcome();
        assert_eq!(steps(&outcome), [("[2/2] RUN true", &StepStatus::Cached)]);
        assert_eq!((outcome.extractions, graph.told()), (1, 3));
        let line = r#"{"Vertexes":[{"Digest":"sha256:1","Started":"1","Completed":"2"}],"Statuses":null}"#;
        assert!(graph.read(line.as_bytes()) && !graph.is_asking());
    }

    #[test]
    fn a_download_is_asked_for_each_time_and_is_no_step() {
        let mut graph = Graph::default();
        let name = "[2/2] ADD http://127.0.0.1/a /";
        let line = format!(
            r#"{{"vertexes":[{{"digest":"1","name":"{name}","started":"x"}},
                {{"digest":"2","name":"{name}","inputs":["1"],"started":"x","cached":true}}]}}"#
        );
        assert!(graph.read(line.as_bytes()));
        assert_eq!(steps(&graph.outcome()), [(name, &StepStatus::Cached)]);
    }

    #[test]
    fn a_step_is_what_the_worst_of_its_parts_is() {
        let parts = [
            (r#""started":"x","error":"no","#, StepStatus::Error { message: "no".to_owned() }),
            (r#""started":"x","#, StepStatus::Ran),
            ("", StepStatus::NotReached),
            (r#""started":"x","cached":true,"#, StepStatus::Cached),
        ];
        for (a, one) in parts.iter().enumerate() {
            for (b, other) in parts.iter().enumerate() {
                let mut graph = Graph::default();
                for (digest, (part, _)) in [one, other].iter().enumerate() {
                    assert!(graph.read(format!(
                        r#"{{"vertexes":[{{{part}"digest":"{digest}","inputs":["i"],"name":"[1/1] RUN a"}}]}}"#
).as_bytes()));
                }
                let (_, worst) = &parts[a.min(b)];
                assert_eq!(steps(&graph.outcome()), [("[1/1] RUN a", worst)], "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn instructions_are_known_by_their_names() {
        for name in [
            "[build 2/4] RUN make",
            "[2/4] RUN make",
            "[linux/arm64 build 2/4] RUN make",
            "[context 1/2] COPY a /",
            "[linux/amd64] generating sbom using registry/scanner:latest",
        ] {
            assert!(is_instruction(name), "{name}");
        }
        for name in [
            "[internal] load build context",
            "[linux/arm64 internal] load metadata for docker.io/library/a:1",
            "[auth] library/alpine:pull token for registry-1.docker.io",
            "[context base] load from client",
            "[context base] docker-image://a",
            "[api context base] load .dockerignore",
            "exporting to image",
        ] {
            assert!(!is_instruction(name), "{name}");
        }
    }
}
