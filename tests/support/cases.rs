//! The builds that end-to-end tests run, and what real daemons make of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use warmkit::digest::Digest;

use super::agent::{SshAgent, WebServer};
use super::daemon::check_databases;
use super::files::{copy_tree, digest_of};
use super::tar::{Entry, Kind, Tar};
use super::{BuildOutcome, BuildRequest, Daemon, Registry, Scratch, Tools, image};

/// What `ADD <URL>` gets.
const DOWNLOAD: &[u8] = b"fetched over http\n";

/// Everything a build may need around it: a registry with base images, an agent, a web server.
#[derive(Debug)]
pub struct World {
    /// The real parts.
    pub tools: Tools,
    /// Has the base images, and takes what is pushed.
    pub registry: Registry,
    /// Contexts, roots and exports.
    pub scratch: Scratch,
    base: String,
    onbuild: String,
    agent: SshAgent,
    web: WebServer,
}

/// One Dockerfile of tests/dockerfiles, ready to be built, and again after one source file changed.
#[derive(Debug)]
pub struct Case {
    /// Its name, the directory's.
    pub name: &'static str,
    /// The build.
    pub request: BuildRequest,
    /// The same with one source file changed.
    pub changed: BuildRequest,
}

/// A build that a real daemon did from nothing, and what it exported.
#[derive(Debug)]
pub struct Origin {
    /// Reference of the registry cache.
    pub cache: String,
    /// Reference of the image, pushed with provenance.
    pub image: String,
    /// Its steps.
    pub outcome: BuildOutcome,
    /// Names of the steps that ran after the change.
    pub changed: BTreeSet<String>,
    /// The builder's root; its daemon has stopped.
    pub root: PathBuf,
}

impl World {
    /// Sets everything up.
    pub fn start(tools: Tools) -> Self {
        let registry = Registry::start(&tools);
        Self {
            base: image::push_base(&tools, &registry),
            onbuild: image::push_onbuild_base(&tools, &registry),
            agent: SshAgent::start(&tools),
            web: WebServer::start(DOWNLOAD),
            scratch: Scratch::new(),
            registry,
            tools,
        }
    }

    /// Starts a daemon on `root`.
    #[track_caller]
    pub fn daemon(&self, root: &Path) -> Daemon {
        Daemon::start(&self.tools, root, &self.registry)
    }

    /// Lays out the context of one case.
    ///
    /// # Panics
    ///
    /// When there is no such case.
    pub fn case(&self, name: &'static str) -> Case {
        let context = self.scratch.join(format!("{name}/context"));
        let changed = self.scratch.join(format!("{name}/changed"));
        if name == "many" {
            many(&context);
        } else {
            copy_tree(&dockerfiles().join(name), &context);
        }
        if matches!(name, "everything" | "square") {
            fs::write(context.join("archive.tar"), archive()).unwrap();
        }
        copy_tree(&context, &changed);
        let file = match name {
            "app" | "everything" | "square" => "src/main.txt",
            "whiteouts" => "marker.txt",
            "many" => "seed.txt",
            _ => panic!("no case {name}"),
        };
        fs::write(changed.join(file), "changed\n").unwrap();

        let mut request = BuildRequest::new(&context).arg("BASE", &self.base);
        if matches!(name, "everything" | "square") {
            let token = self.scratch.write(format!("{name}/token"), "secret\n");
            request = request
                .arg("ONBUILD_BASE", &self.onbuild)
                .arg("URL", &self.web.url("file"))
                .arg("URL_DIGEST", &Digest::of(DOWNLOAD).to_string())
                .arg("SIZE", "4")
                .secret("token", &token);
            request.ssh = Some(self.agent.socket().to_owned());
        }
        Case { name, changed: request.context(&changed), request }
    }

    /// A directory for one more root; nothing is made.
    pub fn root(&self, case: &Case, name: &str) -> PathBuf {
        self.scratch.join(format!("{}/{name}", case.name))
    }

    /// Builds a case on an empty daemon that imports `cache`, to a tar; gives the tar's digest.
    #[track_caller]
    pub fn native_import(&self, case: &Case, cache: &str) -> Digest {
        let daemon = self.daemon(&self.root(case, "native"));
        let tar = self.root(case, "native.tar");
        let (outcome, digest) = export_tar(&daemon, &case.request.import_from(cache), &tar);
        assert_eq!(outcome.imports, 1, "{}", outcome.log);
        assert!(outcome.extractions > 0 && outcome.ran().is_empty(), "a native import\n{}", outcome.log);
        daemon.stop();
        digest
    }

    /// Asserts that a build is warm on a baked root, whose databases and layers are whole.
    #[track_caller]
    pub fn warms(&self, request: &BuildRequest, origin: &Origin, root: &Path) {
        check_databases(&self.tools, root);
        let daemon = self.daemon(root);
        // The tar reads every layer of the result.
        let outcome = daemon.build(&request.tar(&root.with_extension("tar")));
        assert_warm(&outcome, origin);
        assert_eq!(daemon.logged_errors(), [""; 0]);
        daemon.stop();
    }

    /// Builds a case on an empty daemon, pushes image and cache, and then builds it changed.
    #[track_caller]
    pub fn export(&self, case: &Case) -> Origin {
        self.export_as(case, "cache", "")
    }

    /// As [`World::export`], under another tag and with more options (each with a comma before it).
    #[track_caller]
    pub fn export_as(&self, case: &Case, tag: &str, options: &str) -> Origin {
        let root = self.scratch.join(format!("{}/origin-{tag}", case.name));
        let cache = self.registry.reference(case.name, tag);
        let image = self.registry.reference(case.name, &format!("{tag}-image"));
        let daemon = self.daemon(&root);
        let outcome = daemon.build(&case.request.push(&image).export_to(&cache_to(&cache, options)));
        let changed = daemon.build(&case.changed);
        let changed = changed.not_cached().into_iter().map(str::to_owned).collect();
        daemon.stop();
        Origin { cache, image, outcome, changed, root }
    }
}

/// `--export-cache` of a whole build to `reference`.
pub fn cache_to(reference: &str, options: &str) -> String {
    format!("type=registry,ref={reference},mode=max,image-manifest=true,oci-mediatypes=true{options}")
}

/// Asserts that a build found everything: each step that `origin` did printed CACHED, and nothing
/// was imported, downloaded or extracted for it.
#[track_caller]
pub fn assert_warm(outcome: &BuildOutcome, origin: &Origin) {
    assert_cached(outcome, origin);
    let moved = (outcome.imports, outcome.downloads, outcome.extractions);
    assert_eq!(moved, (0, 0, 0), "(imports, downloads, extractions)\n{}", outcome.log);
}

/// Asserts that a build of the changed source did the steps that `origin`'s own did, with nothing imported or extracted.
#[track_caller]
pub fn assert_only_changed(outcome: &BuildOutcome, origin: &Origin) {
    let changed: BTreeSet<&str> = origin.changed.iter().map(String::as_str).collect();
    assert_eq!(outcome.not_cached(), changed, "{}", outcome.log);
    assert_eq!((outcome.imports, outcome.extractions), (0, 0), "after a change\n{}", outcome.log);
}

/// Asserts that each step that `origin` did printed CACHED.
#[track_caller]
pub fn assert_cached(outcome: &BuildOutcome, origin: &Origin) {
    assert_eq!(outcome.names(), origin.outcome.names(), "the steps\n{}", outcome.log);
    assert_eq!(outcome.not_cached(), BTreeSet::new(), "not CACHED\n{}", outcome.log);
}

/// Builds to a tar and gives its digest with what the build said.
#[track_caller]
pub fn export_tar(daemon: &Daemon, request: &BuildRequest, file: &Path) -> (BuildOutcome, Digest) {
    let outcome = daemon.build(&request.tar(file));
    let digest = digest_of(file);
    (outcome, digest)
}

fn dockerfiles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dockerfiles")
}

/// What `ADD archive.tar` unpacks.
fn archive() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::new("bin", Kind::Dir).mode(0o711).owner(1000, 1000));
    tar.add(Entry::new("bin/tool", Kind::File(b"tool\n")).mode(0o4755).time(1_650_000_000, 500_000_000));
    tar.add(Entry::new("bin/alias", Kind::Link("bin/tool")).mode(0o4755).time(1_650_000_000, 500_000_000));
    tar.add(Entry::new("bin/link", Kind::Symlink("../etc/nothing")));
    tar.finish()
}

/// Stages of [`many`], each with [`STEPS`] steps.
const STAGES: usize = 10;
const STEPS: usize = 29;

/// Writes a context of 300 steps: ten stages side by side, and one that takes from each.
///
/// Most steps are copies, which need no container; the step in the middle of the middle stage
/// takes `seed.txt`.
fn many(context: &Path) {
    let mut text = String::from("# Written by tests/support/cases.rs.\nARG BASE\nFROM ${BASE} AS base\n");
    for stage in 0..STAGES {
        writeln!(text, "\nFROM base AS stage{stage}").unwrap();
        for step in 0..STEPS {
            if stage == STAGES / 2 && step == STEPS / 2 {
                writeln!(text, "COPY seed.txt /stage{stage}/{step}").unwrap();
            } else if step % 10 == 9 {
                writeln!(text, "RUN cat /stage{stage}/* > /sum{step}").unwrap();
            } else {
                writeln!(text, "COPY <<file /stage{stage}/{step}\n{stage}.{step}\nfile").unwrap();
            }
        }
    }
    text.push_str("\nFROM base\n");
    for stage in 0..STAGES {
        writeln!(text, "COPY --from=stage{stage} /stage{stage} /all/{stage}").unwrap();
    }
    fs::create_dir_all(context).unwrap();
    fs::write(context.join("Dockerfile"), text).unwrap();
    fs::write(context.join("seed.txt"), "seed\n").unwrap();
}
