//! The promise: what docs/ci.md tells a pipeline to do works with the real buildx and the real buildctl, word
//! for word, and the root that is baked from it is warm.
//!
//! A block of docs/ci.md that comes after `<!-- tried: NAME, … -->` is run; those of one name belong
//! together, in their order. One after `<!-- file: NAME -->` is a file in the context. Replaced are only
//! the names of registries, the builder's root and the root that is baked.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::buildx::Buildx;
use support::command::run;
use support::document::{Block, blocks};
use support::files::copy_tree;
use support::{BuildOutcome, Daemon, Registry, Scratch, Tools, image, tools};

/// What one pipeline of the document is tried in.
struct Pipeline<'a> {
    name: &'a str,
    registry: &'a Registry,
    /// The build's context, and where commands run.
    context: PathBuf,
    /// The root that is baked.
    root: PathBuf,
    /// The root of the builder.
    builder: PathBuf,
    /// What every command is run with.
    environment: &'a BTreeMap<String, String>,
}

impl Pipeline<'_> {
    fn replaced(&self, text: &str) -> String {
        let repository = format!("{}/{}/", self.registry.host(), self.name);
        text.replace("ghcr.io/acme/", &repository)
            .replace("123456789012.dkr.ecr.eu-west-1.amazonaws.com", repository.trim_end_matches('/'))
            .replace("/var/lib/buildkit", self.root.to_str().unwrap())
            .replace("/srv/ci/buildkit", self.builder.to_str().unwrap())
            .replace("/tmp/", &format!("{}-", self.root.display()))
    }

    /// Runs a block by the shell.
    #[track_caller]
    fn shell(&self, script: &str) {
        let script = self.replaced(script);
        let mut command = Command::new("sh");
        command.args(["-euc", &script]).current_dir(&self.context).envs(self.environment);
        let image = format!("{}/{}/app", self.registry.host(), self.name);
        command.env("CI_REGISTRY_IMAGE", image).env("CI_COMMIT_SHORT_SHA", "0123abcd");
        run(&mut command, Duration::from_secs(120)).expect_success(&format!("{}: {script}", self.name));
    }

    #[track_caller]
    fn try_block(&self, block: &Block) {
        match block.language.as_str() {
            "sh" => self.shell(&block.text),
            "yaml" if block.text.contains("docker/build-push-action") => {
                self.shell(&action(&block.text));
            }
            "yaml" => self.shell(&script_of_job(&block.text)),
            other => panic!("{}: nothing here runs {other:?}", self.name),
        }
    }
}

/// What docker/build-push-action runs for its inputs: each is the flag of its name, `tags` being `--tag`.
fn action(yaml: &str) -> String {
    let inputs = yaml.lines().skip_while(|line| line.trim() != "with:").skip(1);
    let (mut flags, mut context) = (String::new(), "");
    for (name, value) in inputs.filter_map(|line| line.trim().split_once(": ")) {
        match name {
            "context" => context = value,
            "push" => flags.push_str(if value == "true" { " --push" } else { "" }),
            "tags" => flags.extend([" --tag ", value]),
            "provenance" | "cache-from" | "cache-to" => flags.extend([" --", name, " ", value]),
            other => panic!("what the action makes of {other:?} is not known here"),
        }
    }
    assert!(!context.is_empty(), "{yaml}");
    format!("docker buildx build{flags} {context}")
}

/// The folded scalar that is the script of a GitLab job.
fn script_of_job(yaml: &str) -> String {
    let script =
        yaml.split("\n  script:\n    - >\n").nth(1).unwrap_or_else(|| panic!("no folded script: {yaml}"));
    script.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Puts programs where commands find them: `docker` with its plugin, `buildctl`, `buildkitd` and `warmkit`.
fn programs(scratch: &Scratch, tools: &Tools, buildx: &Buildx) -> String {
    let put = |name: &str, text: String| {
        scratch.program(Path::new("bin").join(name), text);
    };
    let program = buildx.command().get_program().to_str().unwrap().to_owned();
    put("docker", format!("#!/bin/sh\nset -eu\ntest \"$1\" = buildx\nshift\nexec {program} \"$@\"\n"));
    put("buildctl", format!("#!/bin/sh\nexec {} \"$@\"\n", tools.buildctl.display()));
    put("buildkitd", format!("#!/bin/sh\nexec {} \"$@\"\n", tools.buildkitd.display()));
    put("warmkit", format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_warmkit")));
    format!("{}:{}", scratch.join("bin").display(), std::env::var("PATH").unwrap())
}

#[test]
fn documented_pipelines_warm_a_host() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(buildx) = Buildx::find() else { return };
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ci.md");
    let marked = blocks(&fs::read_to_string(document).unwrap());
    let tried = |marker: &str| marker.strip_prefix("tried: ").map(str::to_owned);
    let names: BTreeSet<String> = marked.iter().filter_map(|(marker, _)| tried(marker)).collect();
    assert!(names.len() >= 9, "only {names:?}: is the reader of the document broken?");

    let registry = Registry::start(&tools);
    let base = image::push_base(&tools, &registry);
    let scratch = Scratch::new();
    let builder = Daemon::start(&tools, &scratch.join("builder"), &registry);
    buildx.use_daemon("ci", &builder);
    let mut environment: BTreeMap<String, String> = buildx
        .command()
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value?.to_str()?.to_owned())))
        .collect();
    environment.insert("PATH".to_owned(), programs(&scratch, &tools, &buildx));
    environment.insert("BUILDKIT_HOST".to_owned(), builder.address());

    for name in &names {
        let pipeline = Pipeline {
            name,
            registry: &registry,
            context: scratch.join(format!("context-{name}")),
            root: scratch.join(format!("root-{name}")),
            builder: builder.root().to_owned(),
            environment: &environment,
        };
        lay_out(&pipeline, &base, &marked);
        if name == "nx" {
            run_task(&pipeline);
        }
        for (_, block) in marked.iter().filter(|(marker, _)| tried(marker).as_ref() == Some(name)) {
            pipeline.try_block(block);
        }
        warms(&tools, &buildx, &pipeline);
    }
    builder.stop();
}

/// Makes the context: an application, and the files that the document shows.
fn lay_out(pipeline: &Pipeline<'_>, base: &str, marked: &[(String, Block)]) {
    let application = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dockerfiles/app");
    copy_tree(&application, &pipeline.context);
    let dockerfile = pipeline.context.join("Dockerfile");
    let text = fs::read_to_string(&dockerfile).unwrap();
    fs::write(dockerfile, text.replacen("ARG BASE\n", &format!("ARG BASE={base}\n"), 1)).unwrap();
    for (marker, block) in marked {
        if let Some(name) = marker.strip_prefix("file: ") {
            fs::write(pipeline.context.join(name), pipeline.replaced(&block.text)).unwrap();
        }
    }
}

/// Runs the target of the `project.json`, as a task runner does, and looks for its outputs.
fn run_task(pipeline: &Pipeline<'_>) {
    let project: Value =
        serde_json::from_slice(&fs::read(pipeline.context.join("project.json")).unwrap()).unwrap();
    let target = &project["targets"]["image-cache"];
    assert_eq!(target["options"]["cwd"], "{projectRoot}");
    pipeline.shell(target["command"].as_str().unwrap());
    for output in target["outputs"].as_array().unwrap() {
        let output = output.as_str().unwrap().replace("{projectRoot}", pipeline.context.to_str().unwrap());
        assert!(fs::read_dir(&output).unwrap().count() > 0, "{output}");
    }
}

/// Starts a daemon on the root that was baked, and builds there as the pipeline did.
fn warms(tools: &Tools, buildx: &Buildx, pipeline: &Pipeline<'_>) {
    let daemon = Daemon::start(tools, &pipeline.root, pipeline.registry);
    buildx.use_daemon("host", &daemon);
    let mut command = buildx.command();
    command.args(["build", "--builder=host", "--progress=plain", "--output=type=tar,dest=/dev/null", "."]);
    let ended = run(command.current_dir(&pipeline.context), Duration::from_secs(120));
    let outcome = BuildOutcome::parse(&ended.expect_success("a first build").stderr);
    assert_eq!(outcome.not_cached(), BTreeSet::new(), "{}\n{}", pipeline.name, outcome.log);
    assert_eq!(outcome.steps.len(), 11, "{}\n{}", pipeline.name, outcome.log);
    let moved = (outcome.imports, outcome.downloads, outcome.extractions);
    assert_eq!(moved, (0, 0, 0), "{}\n{}", pipeline.name, outcome.log);
    buildx.forget("host");
    let mut command = buildx.command();
    run(command.args(["use", "ci"]), Duration::from_secs(60)).expect_success("buildx use");
    daemon.stop();
}

/// A pipeline that asks for `mode=min`, as the action does in private repositories, gets no keys, and is told.
#[test]
fn provenance_of_mode_min_has_no_keys() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(buildx) = Buildx::find() else { return };
    let registry = Registry::start(&tools);
    let base = image::push_base(&tools, &registry);
    let scratch = Scratch::new();
    let context = scratch.join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {base}\nRUN echo > /made\n")).unwrap();
    let builder = Daemon::start(&tools, &scratch.join("builder"), &registry);
    buildx.use_daemon("ci", &builder);
    let (image, cache) = (registry.reference("app", "1"), registry.reference("app", "cache"));
    let mut command = buildx.command();
    command.args(["build", "--push", "--provenance=mode=min,inline-only=true", "--tag", &image]);
    command.arg(format!("--cache-to=type=registry,mode=max,ref={cache}")).arg(&context);
    run(&mut command, Duration::from_secs(120)).expect_success("buildx build");
    builder.stop();
    let ended = support::warmkit::bake(&[&cache, "--keys-from", &image], &scratch.join("root"));
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("mode=max"), "{}", ended.stderr);
}
