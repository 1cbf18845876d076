//! A build as asked for, and as `--progress=plain` told it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `buildctl build` is to do.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// The context, which has the Dockerfile in it.
    pub context: PathBuf,
    /// The Dockerfile's name in the context, where it is not `Dockerfile`.
    pub dockerfile: Option<String>,
    /// The stage to build, where it is not the last.
    pub target: Option<String>,
    /// `KEY=VALUE` frontend options.
    pub opts: Vec<String>,
    /// More directories to send: the names that options call them by, and where they are.
    pub locals: Vec<(String, PathBuf)>,
    /// Directories with OCI layouts, by the names that options call them by.
    pub layouts: Vec<(String, PathBuf)>,
    /// Build arguments.
    pub args: Vec<(String, String)>,
    /// Secrets: id and file.
    pub secrets: Vec<(String, PathBuf)>,
    /// The socket of an SSH agent.
    pub ssh: Option<PathBuf>,
    /// The platform, where it is not the daemon's own.
    pub platform: Option<String>,
    /// `--import-cache`, as it stands.
    pub import_cache: Option<String>,
    /// `--export-cache`, as it stands.
    pub export_cache: Option<String>,
    /// `--output`, as it stands.
    pub output: Option<String>,
    /// `--metadata-file`.
    pub metadata_file: Option<PathBuf>,
    /// `--trace`: a file for everything that the daemon says.
    pub trace: Option<PathBuf>,
    /// A docker configuration directory with credentials.
    pub docker_config: Option<PathBuf>,
}

impl BuildRequest {
    /// Of the Dockerfile in `context`.
    pub fn new(context: &Path) -> Self {
        Self { context: context.to_owned(), ..Self::default() }
    }

    /// With one more build argument.
    pub fn arg(mut self, key: &str, value: &str) -> Self {
        self.args.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With one more frontend option.
    pub fn opt(mut self, opt: &str) -> Self {
        self.opts.push(opt.to_owned());
        self
    }

    /// With a secret from a file.
    pub fn secret(mut self, id: &str, file: &Path) -> Self {
        self.secrets.push((id.to_owned(), file.to_owned()));
        self
    }

    /// With one more directory to send.
    pub fn local(mut self, name: &str, directory: &Path) -> Self {
        self.locals.push((name.to_owned(), directory.to_owned()));
        self
    }

    /// With one more OCI layout to take images from.
    pub fn layout(mut self, name: &str, directory: &Path) -> Self {
        self.layouts.push((name.to_owned(), directory.to_owned()));
        self
    }

    /// Of another context.
    pub fn context(&self, context: &Path) -> Self {
        Self { context: context.to_owned(), ..self.clone() }
    }

    /// Of another Dockerfile in the same context.
    pub fn dockerfile(&self, name: &str) -> Self {
        Self { dockerfile: Some(name.to_owned()), ..self.clone() }
    }

    /// Of another stage.
    pub fn target(&self, name: &str) -> Self {
        Self { target: Some(name.to_owned()), ..self.clone() }
    }

    /// With the cache of `reference` imported.
    pub fn import_from(&self, reference: &str) -> Self {
        Self { import_cache: Some(format!("type=registry,ref={reference}")), ..self.clone() }
    }

    /// With `--export-cache` as it stands.
    pub fn export_to(&self, cache: &str) -> Self {
        Self { export_cache: Some(cache.to_owned()), ..self.clone() }
    }

    /// With the result as a tar.
    pub fn tar(&self, file: &Path) -> Self {
        Self { output: Some(format!("type=tar,dest={}", file.display())), ..self.clone() }
    }

    /// With the result pushed as an image, with provenance of mode max.
    pub fn push(&self, reference: &str) -> Self {
        let output = format!("type=image,name={reference},push=true");
        Self { output: Some(output), ..self.clone() }.opt("attest:provenance=mode=max")
    }

    /// The same build as arguments of `warmkit verify`.
    pub fn verify_arguments(&self) -> Vec<String> {
        let mut all = vec!["--build".to_owned(), self.context.display().to_string()];
        let mut add = |flag: &str, value: String| all.extend([flag.to_owned(), value]);
        if let Some(name) = &self.dockerfile {
            add("--file", self.context.join(name).display().to_string());
        }
        for (flag, value) in [
            ("--target", &self.target),
            ("--platform", &self.platform),
            ("--import-cache", &self.import_cache),
        ] {
            if let Some(value) = value {
                add(flag, value.clone());
            }
        }
        self.opts.iter().for_each(|opt| add("--opt", opt.clone()));
        self.args.iter().for_each(|(key, value)| add("--build-arg", format!("{key}={value}")));
        self.secrets.iter().for_each(|(id, file)| add("--secret", format!("id={id},src={}", file.display())));
        if let Some(socket) = &self.ssh {
            add("--ssh", format!("default={}", socket.display()));
        }
        all
    }

    pub(super) fn arguments(&self, command: &mut Command) {
        let context = self.context.display();
        command.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
        command.arg(format!("--local=context={context}")).arg(format!("--local=dockerfile={context}"));
        let mut opt = |text: String| {
            command.arg("--opt").arg(text);
        };
        let named = [("filename", &self.dockerfile), ("target", &self.target), ("platform", &self.platform)];
        for (name, value) in named {
            if let Some(value) = value {
                opt(format!("{name}={value}"));
            }
        }
        self.args.iter().for_each(|(key, value)| opt(format!("build-arg:{key}={value}")));
        self.opts.iter().for_each(|text| opt(text.clone()));
        for (name, directory) in &self.locals {
            command.arg(format!("--local={name}={}", directory.display()));
        }
        for (name, directory) in &self.layouts {
            command.arg(format!("--oci-layout={name}={}", directory.display()));
        }
        for (id, file) in &self.secrets {
            command.arg("--secret").arg(format!("id={id},src={}", file.display()));
        }
        if let Some(socket) = &self.ssh {
            command.arg("--ssh").arg(format!("default={}", socket.display()));
        }
        let flags = [
            ("--import-cache", &self.import_cache),
            ("--export-cache", &self.export_cache),
            ("--output", &self.output),
        ];
        for (flag, value) in flags {
            if let Some(value) = value {
                command.arg(flag).arg(value);
            }
        }
        for (flag, file) in [("--metadata-file", &self.metadata_file), ("--trace", &self.trace)] {
            if let Some(file) = file {
                command.arg(flag).arg(file);
            }
        }
        if let Some(directory) = &self.docker_config {
            command.env("DOCKER_CONFIG", directory);
        }
    }
}

/// One instruction of the Dockerfile, other than FROM: that one asks the registry in every build,
/// and prints DONE for it.
///
/// Vertices of one name are one step (`--link` makes a copy and a merge of an instruction). It is
/// CACHED when all of them are, but for the first of an `ADD <URL>`: the download, which asks the
/// web server in every build, as FROM does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// As printed: `[build 2/4] RUN …`.
    pub name: String,
    /// Whether it was printed as CACHED.
    pub cached: bool,
    /// Layers extracted for it. A cached step for which layers are extracted prints DONE.
    pub extracted: usize,
}

/// What a build said.
#[derive(Debug, Clone)]
pub struct BuildOutcome {
    /// The steps, in the order in which they were first printed.
    pub steps: Vec<Step>,
    /// Cache manifests imported.
    pub imports: usize,
    /// Layers extracted: `extracting sha256:…`, each once.
    pub extractions: usize,
    /// Blobs downloaded, at least in part.
    pub downloads: usize,
    /// Transfers from the client: contexts, Dockerfiles.
    pub transfers: usize,
    /// Everything, as printed.
    pub log: String,
}

#[derive(Default)]
struct Vertex {
    name: String,
    cached: bool,
    extracted: BTreeSet<String>,
    downloaded: BTreeSet<String>,
    transferred: BTreeSet<String>,
}

impl BuildOutcome {
    /// Reads what `--progress=plain` printed: `#<vertex> <name>` first, then `#<vertex> <event>`
    /// for each event, with the vertex's name again whenever the output turns back to it.
    pub fn parse(log: &str) -> Self {
        let mut vertices: BTreeMap<u32, Vertex> = BTreeMap::new();
        for line in log.lines() {
            let Some((number, text)) = line.strip_prefix('#').and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let Ok(number) = number.parse() else { continue };
            let vertex = vertices.entry(number).or_default();
            if vertex.name.is_empty() {
                text.clone_into(&mut vertex.name);
                continue;
            }
            let first = text.split(' ').next().unwrap_or_default();
            if text == "CACHED" {
                vertex.cached = true;
            } else if let Some(blob) = text.strip_prefix("extracting ") {
                vertex.extracted.insert(blob.split(' ').next().unwrap_or_default().to_owned());
            } else if first.starts_with("sha256:") {
                vertex.downloaded.insert(first.to_owned());
            } else if let Some(what) = text.strip_prefix("transferring ") {
                vertex.transferred.insert(what.split(':').next().unwrap_or_default().to_owned());
            }
        }
        let count = |of: fn(&Vertex) -> usize| vertices.values().map(of).sum();
        Self {
            steps: steps(vertices.values()),
            imports: vertices.values().filter(|v| v.name.starts_with("importing cache manifest")).count(),
            extractions: count(|v| v.extracted.len()),
            downloads: count(|v| v.downloaded.len()),
            transfers: count(|v| v.transferred.len()),
            log: log.to_owned(),
        }
    }

    /// The names of all steps.
    pub fn names(&self) -> BTreeSet<&str> {
        self.steps.iter().map(|s| s.name.as_str()).collect()
    }

    /// The names of the steps that were not CACHED.
    pub fn not_cached(&self) -> BTreeSet<&str> {
        self.steps.iter().filter(|s| !s.cached).map(|s| s.name.as_str()).collect()
    }

    /// The names of the steps that really ran: not CACHED, and not taken from an imported cache.
    pub fn ran(&self) -> BTreeSet<&str> {
        self.steps.iter().filter(|s| !s.cached && s.extracted == 0).map(|s| s.name.as_str()).collect()
    }
}

/// Whether a vertex of this name is an instruction other than FROM.
pub fn is_instruction(name: &str) -> bool {
    // `[internal]`, `[linux/arm64 internal]`, `[context base]`, `[api context base]`, `[api] exporting`.
    let (place, step) = name.split_once(']').unwrap_or_default();
    let apart = ["internal", "[internal", "[auth"].contains(&place.rsplit(' ').next().unwrap_or_default())
        || place.starts_with("[context ")
        || place.contains(" context ")
        || step.starts_with(" exporting ");
    name.starts_with('[') && !apart && !name.starts_with("[auth]") && !name.contains("] FROM ")
}

fn steps<'a>(vertices: impl Iterator<Item = &'a Vertex>) -> Vec<Step> {
    let mut by_name: BTreeMap<&str, Vec<&Vertex>> = BTreeMap::new();
    let mut order = Vec::new();
    for vertex in vertices {
        let name = vertex.name.as_str();
        if !is_instruction(name) {
            continue;
        }
        let same = by_name.entry(name).or_default();
        if same.is_empty() {
            order.push(name);
        }
        same.push(vertex);
    }
    let step = |name: &str| {
        let same = &by_name[name];
        let downloads = usize::from(same.len() > 1 && name.contains("] ADD ") && name.contains(" http://"));
        Step {
            name: name.to_owned(),
            cached: same.iter().skip(downloads).all(|v| v.cached),
            extracted: same.iter().map(|v| v.extracted.len()).sum(),
        }
    };
    order.into_iter().map(step).collect()
}

#[test]
fn reads_plain_progress() {
    let log = "#1 [internal] load build definition from Dockerfile\n\
               #1 transferring dockerfile: 31B done\n\
               #1 DONE 0.1s\n\
               \n\
               #2 importing cache manifest from 127.0.0.1:5000/a:cache\n\
               #2 inferred cache manifest type: application/vnd.oci.image.manifest.v1+json done\n\
               #2 DONE 0.0s\n\
               \n\
               #3 [build 1/2] FROM 127.0.0.1:5000/base\n\
               #3 sha256:aa 0B / 1.2MB 0.2s\n\
               #3 ...\n\
               \n\
               #4 [build 2/2] RUN echo CACHED\n\
               #4 0.123 CACHED\n\
               #4 DONE 0.2s\n\
               \n\
               #3 [build 1/2] FROM 127.0.0.1:5000/base\n\
               #3 sha256:aa 1.2MB / 1.2MB 0.3s done\n\
               #3 extracting sha256:aa\n\
               #3 extracting sha256:aa 0.5s done\n\
               #3 CACHED\n";
    let outcome = BuildOutcome::parse(log);
    let ran = Step { name: "[build 2/2] RUN echo CACHED".into(), cached: false, extracted: 0 };
    assert_eq!(outcome.steps, [ran]);
    assert_eq!((outcome.imports, outcome.extractions, outcome.downloads, outcome.transfers), (1, 1, 1, 1));
    assert_eq!(outcome.not_cached(), BTreeSet::from(["[build 2/2] RUN echo CACHED"]));
}
