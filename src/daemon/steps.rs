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

/// `client.SolveStatus` of `BuildKit`, as far as it is needed.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    vertexes: Vec<RawVertex>,
    #[serde(default)]
    statuses: Vec<RawStatus>,
}

#[derive(Deserialize)]
struct RawVertex {
    digest: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    inputs: Vec<String>,
    #[serde(default)]
    started: Option<String>,
    #[serde(default)]
    cached: bool,
    #[serde(default)]
    error: String,
    #[serde(default, rename = "progressGroup")]
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
    #[serde(default)]
    id: String,
}

/// One operation of a build, as its progress shows it.
#[derive(Debug, Default)]
pub struct Vertex {
    /// As printed; that of its group, where it is one of several that are printed as one.
    pub name: String,
    /// Its own name, the group's left aside.
    pub own_name: String,
    /// The ids of the vertices that it stands on; plain output does not tell.
    pub inputs: Vec<String>,
    /// Whether the daemon began with it: to ask for it (sources), to run it, or to take it from a cache.
    pub started: bool,
    /// Whether it was taken from a cache.
    pub cached: bool,
    /// What went wrong with it; empty where nothing did.
    pub error: String,
    /// Position among all vertices seen.
    order: usize,
    has_inputs: bool,
}

/// Everything that was said of each vertex.
#[derive(Debug, Default)]
pub struct Graph {
    /// By digest, or by number in plain output.
    vertices: BTreeMap<String, Vertex>,
    extracted: BTreeSet<String>,
}

impl Graph {
    /// All vertices, in the order in which they were first reported.
    pub fn vertices(&self) -> Vec<&Vertex> {
        let mut vertices: Vec<&Vertex> = self.vertices.values().collect();
        vertices.sort_by_key(|vertex| vertex.order);
        vertices
    }

    /// The vertex with an id, as in [`Vertex::inputs`].
    pub fn get(&self, id: &str) -> Option<&Vertex> {
        self.vertices.get(id)
    }

    fn vertex(&mut self, id: &str) -> &mut Vertex {
        let order = self.vertices.len();
        self.vertices.entry(id.to_owned()).or_insert_with(|| Vertex { order, ..Vertex::default() })
    }

    /// Takes a line of JSON; false where it is something else.
    pub(super) fn raw(&mut self, line: &str) -> bool {
        let Ok(status) = serde_json::from_str::<Status>(line) else { return false };
        for raw in status.vertexes {
            let vertex = self.vertex(&raw.digest);
            let own_name = raw.name.clone();
            let name = raw.group.map(|group| group.name).filter(|name| !name.is_empty()).unwrap_or(raw.name);
            if !name.is_empty() {
                vertex.name = name;
            }
            if !own_name.is_empty() {
                vertex.own_name = own_name;
            }
            vertex.has_inputs |= !raw.inputs.is_empty();
            if vertex.inputs.is_empty() {
                vertex.inputs = raw.inputs;
            }
            vertex.started |= raw.started.is_some();
            vertex.cached |= raw.cached;
            if !raw.error.is_empty() {
                vertex.error = raw.error;
            }
        }
        for status in status.statuses {
            self.extraction(&status.id);
        }
        true
    }

    /// Takes a line for people: `#<number> <name>` first, then `#<number> <event>`.
    pub(super) fn plain(&mut self, line: &str) -> bool {
        let Some((number, text)) = line.trim_end().strip_prefix('#').and_then(|rest| rest.split_once(' '))
        else {
            return false;
        };
        if !number.bytes().all(|b| b.is_ascii_digit()) {
            return false;
        }
        self.extraction(text);
        let vertex = self.vertex(number);
        vertex.started = true;
        // Plain output does not say; of vertices of one name the first is the source.
        vertex.has_inputs = true;
        if vertex.name.is_empty() {
            text.clone_into(&mut vertex.name);
        } else if text == "CACHED" {
            vertex.cached = true;
        } else if let Some(error) = text.strip_prefix("ERROR: ") {
            error.clone_into(&mut vertex.error);
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
            } else if vertex.started {
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
        let imports = vertices.iter().filter(|v| v.name.starts_with("importing cache manifest")).count();
        Outcome { steps, imports, extractions: self.extracted.len(), failure: None }
    }
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
    let mut same = all.iter().filter(|other| other.name == name);
    let is_first = same.clone().next().is_some_and(|first| first.order == vertex.order);
    let has_consumer = same.any(|other| other.order != vertex.order && other.has_inputs);
    let remote = name.contains("] ADD ") && (name.contains("://") || name.contains("git@"));
    let is_download = remote && has_consumer && (!vertex.has_inputs || is_first);
    !is_download
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
        assert!(graph.raw(line));
        // Said once, as the messages that follow need not say it again.
        assert!(graph.raw(r#"{"vertexes":[{"digest":"sha256:3","name":"[3/3] RUN true","started":"x"}]}"#));
        let outcome = graph.outcome();
        // The copy was CACHED, the merge onto what stands below ran.
        let expected = [("[2/3] COPY --link a /", &StepStatus::Ran), ("[3/3] RUN true", &StepStatus::Cached)];
        assert_eq!(steps(&outcome), expected);
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
                    assert!(graph.raw(&format!(
                        r#"{{"vertexes":[{{{part}"digest":"{digest}","inputs":["i"],"name":"[1/1] RUN a"}}]}}"#
                    )));
                }
                let (_, worst) = &parts[a.min(b)];
                assert_eq!(steps(&graph.outcome()), [("[1/1] RUN a", worst)], "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn plain_output_is_read_as_raw_output_is() {
        let mut graph = Graph::default();
        let log = "#1 [1/2] FROM a\n#1 DONE 0.0s\n#2 importing cache manifest from a\n#2 DONE 0.1s\n\
                   #3 [2/2] RUN echo CACHED\n#3 extracting sha256:1\n#3 extracting sha256:1 done\n#3 CACHED\n";
        assert!(log.lines().all(|line| graph.plain(line)));
        let outcome = graph.outcome();
        assert_eq!(steps(&outcome), [("[2/2] RUN echo CACHED", &StepStatus::Cached)]);
        assert_eq!((outcome.imports, outcome.extractions), (1, 1));
    }

    #[test]
    fn a_download_is_asked_for_each_time_and_is_no_step() {
        let mut graph = Graph::default();
        let name = "[2/2] ADD http://127.0.0.1/a /";
        let line = format!(
            r#"{{"vertexes":[{{"digest":"1","name":"{name}","started":"x"}},
                {{"digest":"2","name":"{name}","inputs":["1"],"started":"x","cached":true}}]}}"#
        );
        assert!(graph.raw(&line));
        assert_eq!(steps(&graph.outcome()), [(name, &StepStatus::Cached)]);
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
