//! What a build says of its steps.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::tools::{Tools, output};
use super::{LiveError, LiveOptions, tail};

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
pub(super) struct Outcome {
    pub(super) steps: Vec<Step>,
    pub(super) imports: usize,
    pub(super) extractions: usize,
    pub(super) failure: Option<String>,
}

/// Runs the build and reads its progress.
pub(super) fn build(tools: &Tools, address: &str, options: &LiveOptions) -> Result<Outcome, LiveError> {
    let help = output(Command::new(&tools.buildctl).args(["build", "--help"]))?;
    // From v0.13 on; before, what people read has to do.
    let raw = help.contains("rawjson");
    let mut command = Command::new(&tools.buildctl);
    command.arg("--addr").arg(address).arg("build");
    arguments(&mut command, options);
    command.arg(if raw { "--progress=rawjson" } else { "--progress=plain" });
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed =
        |detail: String| LiveError::Program { command: format!("{}", tools.buildctl.display()), detail };
    let mut client = command.spawn().map_err(|error| failed(error.to_string()))?;
    let mut graph = Graph::default();
    let mut said = String::new();
    if let Some(errors) = client.stderr.take() {
        // Progress may be long; of everything else only the end is kept.
        let mut lines = BufReader::new(errors);
        let mut line = Vec::new();
        loop {
            line.clear();
            match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let _ = client.kill();
                    let _ = client.wait();
                    return Err(failed(error.to_string()));
                }
            }
            let text = String::from_utf8_lossy(&line);
            let understood = if raw { graph.raw(&text) } else { graph.plain(&text) };
            if !understood || !raw {
                said.push_str(&text);
                if said.len() > 1 << 16 {
                    said = tail(&said);
                    said.push('\n');
                }
            }
        }
    }
    let status = client.wait().map_err(|error| failed(error.to_string()))?;
    let mut outcome = graph.outcome();
    if !status.success() {
        outcome.failure = Some(format!("{status}: {}", tail(&said)));
    }
    Ok(outcome)
}

/// The longest line that is taken at once: a piece of a container's output in base64 fits.
const MAX_LINE: u64 = 16 << 20;

fn arguments(command: &mut Command, options: &LiveOptions) {
    let local = |name: &str, path: &Path| {
        let mut local = std::ffi::OsString::from(format!("{name}="));
        local.push(if path.as_os_str().is_empty() { Path::new(".") } else { path });
        local
    };
    command.args(["--frontend", "dockerfile.v0", "--local"]).arg(local("context", &options.context));
    let mut opts: Vec<String> = Vec::new();
    match &options.dockerfile {
        None => {
            command.arg("--local").arg(local("dockerfile", &options.context));
        }
        Some(file) => {
            command.arg("--local").arg(local("dockerfile", file.parent().unwrap_or(Path::new("."))));
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            opts.push(format!("filename={name}"));
        }
    }
    opts.extend(options.target.iter().map(|target| format!("target={target}")));
    opts.extend(options.platform.iter().map(|platform| format!("platform={platform}")));
    opts.extend(options.build_args.iter().map(|arg| format!("build-arg:{arg}")));
    opts.extend(options.opts.iter().cloned());
    for opt in opts {
        command.arg("--opt").arg(opt);
    }
    for cache in &options.import_caches {
        command.arg("--import-cache").arg(cache);
    }
    command.args(&options.buildctl_args);
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

#[derive(Debug, Default)]
struct Vertex {
    name: String,
    /// Position among all vertices seen.
    order: usize,
    has_inputs: bool,
    started: bool,
    cached: bool,
    error: String,
}

/// Everything that was said of each vertex.
#[derive(Debug, Default)]
struct Graph {
    /// By digest, or by number in plain output.
    vertices: BTreeMap<String, Vertex>,
    extracted: BTreeSet<String>,
}

impl Graph {
    fn vertex(&mut self, id: &str) -> &mut Vertex {
        let order = self.vertices.len();
        self.vertices.entry(id.to_owned()).or_insert_with(|| Vertex { order, ..Vertex::default() })
    }

    /// Takes a line of JSON; false where it is something else.
    fn raw(&mut self, line: &str) -> bool {
        let Ok(status) = serde_json::from_str::<Status>(line) else { return false };
        for raw in status.vertexes {
            let vertex = self.vertex(&raw.digest);
            let name = raw.group.map(|group| group.name).filter(|name| !name.is_empty()).unwrap_or(raw.name);
            if !name.is_empty() {
                vertex.name = name;
            }
            vertex.has_inputs |= !raw.inputs.is_empty();
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
    fn plain(&mut self, line: &str) -> bool {
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

    fn outcome(&self) -> Outcome {
        let mut vertices: Vec<&Vertex> = self.vertices.values().collect();
        vertices.sort_by_key(|vertex| vertex.order);
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

/// Whether a vertex is an instruction, or a part of one, that a cache can serve. Not so are images and
/// downloads: a build asks for them each time.
fn is_step(vertex: &Vertex, all: &[&Vertex]) -> bool {
    let name = vertex.name.as_str();
    let printed = name.starts_with('[') && !name.starts_with("[internal]") && !name.starts_with("[auth]");
    if !printed || name.contains("] FROM ") {
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
        let outcome = graph.outcome();
        // The copy was CACHED, the merge onto what stands below ran.
        let expected = [("[2/3] COPY --link a /", &StepStatus::Ran), ("[3/3] RUN true", &StepStatus::Cached)];
        assert_eq!(steps(&outcome), expected);
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
}
