//! The cases of tests/corpus, and what each needs around it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use warmkit::digest::Digest;

use crate::support::agent::{SshAgent, WebServer};
use crate::support::buildx::Buildx;
use crate::support::cases::cache_to;
use crate::support::command::run;
use crate::support::files::copy_tree;
use crate::support::git::GitServer;
use crate::support::tar::{Entry, Kind, Tar};
use crate::support::{BuildOutcome, BuildRequest, Daemon, Registry, Scratch, Tools, image, tools};

/// What `ADD <URL>` gets.
const DOWNLOAD: &[u8] = b"#!/bin/sh\n";

/// A Dockerfile of tests/corpus.
#[derive(Debug)]
pub(crate) struct Case {
    /// The directory's name.
    pub(crate) name: &'static str,
    /// What people do in it, in a few words.
    pub(crate) what: &'static str,
    /// Why provenance does not have every key, where it has not.
    pub(crate) lacks: &'static str,
    /// Why a replay does not have every key, where it has not.
    pub(crate) not_replayed: &'static str,
}

/// Every case, in the order in which one builder builds them.
pub(crate) const CASES: [Case; 17] = [
    case("apt", "packages, with and without cache mounts"),
    case("npm", "lockfile first, cache mounts, an application of two stages"),
    case("pip", "a virtual environment, a bind mount of the requirements"),
    case("cargo", "cargo-chef, named cache mounts"),
    case("go", "bind mounts of the sources, cache mounts, a build argument"),
    case("cross", "two platforms, compiled on the builder's own"),
    case("heredocs", "scripts and files in the Dockerfile"),
    case("onbuild", "triggers of an image and of a stage"),
    case("remote", "`ADD` of git repositories and of files over http"),
    case("git-context", "a build from a git repository"),
    case("contexts", "named contexts: an image, a directory, an OCI layout"),
    Case {
        lacks: "the scan is no step of the Dockerfile, and BuildKit leaves it out of the provenance of its own result.",
        not_replayed: "BuildKit does not find the scan in an imported cache, so the build is replayed without.",
        ..case("attested", "SBOM of the result, a stage and the context")
    },
    case("copies", "links, `--parents`, `--exclude`, `--link`, archives"),
    case("secrets", "secrets, ssh, networks, tmpfs"),
    case("reproducible", "`SOURCE_DATE_EPOCH`, odd quotes, exec form"),
    case("targets", "three targets of one Dockerfile, a cache each"),
    Case {
        not_replayed: "contexts that are targets of a bake file are buildx's own, and a replay has none: only the target that is the context is replayed.",
        ..case("bake", "a bake file: a matrix on a target that is a context")
    },
];

const fn case(name: &'static str, what: &'static str) -> Case {
    Case { name, what, lacks: "", not_replayed: "" }
}

/// What a case built.
#[derive(Debug)]
pub(crate) struct Built {
    /// Each build's output.
    pub(crate) outcomes: Vec<BuildOutcome>,
    /// References of the caches, as they were exported.
    pub(crate) caches: Vec<String>,
    /// References of the images, each with provenance.
    pub(crate) images: Vec<String>,
}

/// What all cases share.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) tools: Tools,
    pub(crate) registry: Registry,
    pub(crate) scratch: Scratch,
    buildx: Buildx,
    base: String,
    onbuild: String,
    scanner: String,
    git: GitServer,
    agent: SshAgent,
    web: WebServer,
}

pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

impl Corpus {
    /// Starts everything; `None` where a part is missing, after it said so.
    pub(crate) fn start() -> Option<Self> {
        let tools = Tools::find(tools::NEWEST)?;
        let buildx = Buildx::find()?;
        let registry = Registry::start(&tools);
        let (programs, scanner) = (directory().join("toolchain"), directory().join("scanner"));
        Some(Self {
            base: image::push_programs(&tools, &registry, "toolchain", &programs, &json!({})),
            onbuild: image::push_onbuild_base(&tools, &registry),
            scanner: image::push_programs(
                &tools,
                &registry,
                "scanner",
                &scanner,
                &json!({ "Cmd": ["scan-for-sbom"] }),
            ),
            git: GitServer::start(&directory().join("git-context/repository")),
            agent: SshAgent::start(&tools),
            web: WebServer::start(DOWNLOAD),
            scratch: Scratch::new(),
            buildx,
            registry,
            tools,
        })
    }

    /// Starts a daemon on `root`.
    #[track_caller]
    pub(crate) fn daemon(&self, root: &Path) -> Daemon {
        Daemon::start(&self.tools, root, &self.registry)
    }

    /// Builds a case from its directory, pushes its images with provenance, and exports its caches.
    #[track_caller]
    pub(crate) fn export(&self, daemon: &Daemon, name: &str) -> Built {
        self.lay_out(name);
        if name == "bake" {
            return self.bake_file(daemon, true);
        }
        let mut built = Built { outcomes: Vec::new(), caches: Vec::new(), images: Vec::new() };
        for (i, request) in self.requests(name).iter().enumerate() {
            let cache = self.registry.reference(name, &format!("cache{i}"));
            let image = self.registry.reference(name, &format!("image{i}"));
            built.outcomes.push(daemon.build(&request.push(&image).export_to(&cache_to(&cache, ""))));
            built.caches.push(cache);
            built.images.push(image);
        }
        built
    }

    /// Builds it once more, with the result as a tar, which reads every layer of it.
    #[track_caller]
    pub(crate) fn again(&self, daemon: &Daemon, name: &str) -> Vec<BuildOutcome> {
        if name == "bake" {
            return self.bake_file(daemon, false).outcomes;
        }
        let tar = self.scratch.join(format!("{name}.tar"));
        let outcomes = self.requests(name).iter().map(|r| daemon.build(&r.tar(&tar))).collect();
        fs::remove_file(&tar).unwrap();
        outcomes
    }

    /// The builds of a case as arguments of one `warmkit keys replay`: all targets, with the caches of all. What
    /// [`Case::not_replayed`] tells of is left out.
    pub(crate) fn replayed(&self, name: &str, built: &Built) -> Vec<String> {
        let mut requests = self.requests(name);
        requests[0].opts.retain(|opt| !opt.starts_with("attest:sbom"));
        let mut arguments = replay(&requests[0], &built.caches);
        for request in &requests[1..] {
            arguments.extend(["--target".to_owned(), request.target.clone().unwrap()]);
        }
        arguments
    }

    fn context(&self, name: &str) -> PathBuf {
        self.scratch.join("contexts").join(name)
    }

    /// Copies a case's directory, and adds what is no text.
    fn lay_out(&self, name: &str) {
        let context = self.context(name);
        copy_tree(&directory().join(name), &context);
        if name == "copies" {
            let mut tar = Tar::new();
            tar.add(Entry::new("packed", Kind::Dir).mode(0o750).owner(1000, 1000));
            tar.add(Entry::new("packed/tool", Kind::File(b"tool\n")).mode(0o4755));
            let mut zip = GzEncoder::new(Vec::new(), Compression::fast());
            zip.write_all(&tar.finish()).unwrap();
            fs::write(context.join("archive.tar.gz"), zip.finish().unwrap()).unwrap();
            symlink("services/api/package.txt", context.join("link.txt")).unwrap();
            symlink("nowhere", context.join("services/dangling")).unwrap();
        }
    }

    /// The builds of a case, as `buildctl` is asked for them.
    pub(crate) fn requests(&self, name: &str) -> Vec<BuildRequest> {
        let context = self.context(name);
        let request = BuildRequest::new(&context).arg("BASE", &self.base);
        let one = match name {
            "go" => request.arg("VERSION", "1.4.0"),
            "cross" => BuildRequest { platform: Some("linux/amd64,linux/arm64".into()), ..request },
            "heredocs" => request.arg("GREETING", "good <day> & night"),
            "onbuild" => request.arg("ONBUILD_BASE", &self.onbuild),
            "remote" => request
                .arg("REPOSITORY", &self.git.url())
                .arg("COMMIT", self.git.commit())
                .arg("URL", &self.web.url("file"))
                .arg("URL_DIGEST", &Digest::of(DOWNLOAD).to_string()),
            "git-context" => request.opt(&format!("context={}#main", self.git.url())),
            "contexts" => {
                let layout = self.layout();
                BuildRequest::new(&context)
                    .opt(&format!("context:base=docker-image://{}", self.base))
                    .opt("context:shared=local:shared")
                    .local("shared", &context.join("shared"))
                    .opt(&format!("context:pinned=oci-layout://pinned@{}", layout.1))
                    .layout("pinned", &layout.0)
            }
            "attested" => request.opt(&format!("attest:sbom=generator={}", self.scanner)),
            "secrets" => {
                let token = self.scratch.write("secret-token", "secret\n");
                let npmrc = self.scratch.write("secret-npmrc", "registry=https://npm.example.com\n");
                BuildRequest { ssh: Some(self.agent.socket().to_owned()), ..request }
                    .secret("token", &token)
                    .secret("npmrc", &npmrc)
            }
            "reproducible" => request.arg("SOURCE_DATE_EPOCH", "1700000000").arg("REVISION", "0123abc"),
            "targets" => {
                return ["test", "api", "worker"].map(|target| request.target(target)).to_vec();
            }
            _ => request,
        };
        vec![one]
    }

    /// An OCI layout with the toolchain's image for this machine: its directory, and the digest.
    fn layout(&self) -> (PathBuf, Digest) {
        let directory = self.scratch.join("layout");
        let tag = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let (bytes, media_type) = self.registry.manifest("toolchain", tag);
        let digest = Digest::of(&bytes);
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        let put = |digest: &str, bytes: &[u8]| {
            let (_, hex) = digest.split_once(':').unwrap();
            self.scratch.write(directory.join("blobs/sha256").join(hex), bytes);
        };
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().unwrap();
            put(digest, &self.registry.blob("toolchain", digest));
        }
        put(&digest.to_string(), &bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        self.scratch.write(directory.join("index.json"), index.to_string());
        self.scratch.write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
        (directory, digest)
    }

    /// Runs the bake file by buildx, on this daemon.
    #[track_caller]
    fn bake_file(&self, daemon: &Daemon, export: bool) -> Built {
        let builder = if export { "builder" } else { "warm" };
        self.buildx.use_daemon(builder, daemon);
        let mut command = self.buildx.command();
        command.args(["bake", "--progress=plain"]).current_dir(self.context("bake"));
        command.env("REGISTRY", self.registry.host()).env("BASE_IMAGE", &self.base);
        if !export {
            command.args(["--set", "*.cache-to="]);
            for name in ["api", "worker"] {
                // Beside the file: elsewhere it would have to be allowed.
                command.args(["--set", &format!("service-{name}.output=type=tar,dest={name}.tar")]);
            }
        }
        let ended = run(&mut command, Duration::from_secs(120)).expect_success("buildx bake");
        self.buildx.forget(builder);
        let reference = |kind: &str, name: &str| self.registry.reference("bake", &format!("{kind}{name}"));
        let services = ["api", "worker"];
        Built {
            outcomes: vec![BuildOutcome::parse(&ended.stderr)],
            caches: services.map(|name| reference("cache-", name)).to_vec(),
            images: services.map(|name| reference("", name)).to_vec(),
        }
    }
}

/// Secrets and agents are left out: no step runs.
fn replay(request: &BuildRequest, caches: &[String]) -> Vec<String> {
    let remote = request.opts.iter().find_map(|opt| opt.strip_prefix("context="));
    let context = remote.map_or_else(|| request.context.display().to_string(), str::to_owned);
    let mut all = caches.to_vec();
    all.extend(["--build".to_owned(), context]);
    let mut add = |flag: &str, value: &str| all.extend([flag.to_owned(), value.to_owned()]);
    for (flag, value) in [("--platform", &request.platform), ("--target", &request.target)] {
        if let Some(value) = value {
            add(flag, value);
        }
    }
    for (name, value) in &request.args {
        add("--build-arg", &format!("{name}={value}"));
    }
    for opt in request.opts.iter().filter(|opt| !opt.starts_with("context=")) {
        match opt.strip_prefix("context:") {
            Some(context) => add("--build-context", &named(request, context)),
            None => add("--opt", opt),
        }
    }
    all
}

/// A named context as buildx has it, where its client's directory is written instead of the name that
/// stands for it.
fn named(request: &BuildRequest, context: &str) -> String {
    let directory = |among: &[(String, PathBuf)], name: &str| {
        let (_, directory) = among.iter().find(|(known, _)| known == name).unwrap();
        directory.display().to_string()
    };
    let (name, value) = context.split_once('=').unwrap();
    match value.split_once(':') {
        Some(("local", local)) => format!("{name}={}", directory(&request.locals, local)),
        Some(("oci-layout", layout)) => {
            let (layout, digest) = layout.trim_start_matches('/').split_once('@').unwrap();
            format!("{name}=oci-layout://{}@{digest}", directory(&request.layouts, layout))
        }
        _ => context.to_owned(),
    }
}
