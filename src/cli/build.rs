//! A build as arguments: `verify` runs it, `keys replay` and `bake` replay it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::daemon::{self, Build, DEFAULT_IMAGE, Search};
use crate::oci::Platform;
use crate::replay::Options;
use crate::source;

/// How a build is solved, and by which buildkitd.
#[derive(Debug, Args)]
#[command(next_help_heading = "Build")]
pub(super) struct Solve {
    /// The Dockerfile; default: Dockerfile in the context
    #[arg(short = 'f', long, value_name = "DOCKERFILE", requires = "build")]
    file: Option<PathBuf>,

    /// A build argument
    #[arg(long, value_name = "KEY=VALUE", requires = "build", value_parser = pair)]
    build_arg: Vec<String>,

    /// An option of the frontend
    #[arg(long, value_name = "KEY=VALUE", requires = "build", value_parser = pair)]
    opt: Vec<String>,

    /// A named context: NAME=DIR, or NAME= and what buildx takes there
    #[arg(long, value_name = "NAME=VALUE", requires = "build", value_parser = pair)]
    build_context: Vec<String>,

    /// A secret of the build, as buildctl takes it: id=ID,src=FILE; only steps that run need it
    #[arg(long, value_name = "SECRET", requires = "build")]
    secret: Vec<String>,

    /// An ssh agent or key of the build, as buildctl takes it: default, or ID=PATH; only contexts and ADD by
    /// Git over ssh need it, and steps that run
    #[arg(long, value_name = "SSH", requires = "build")]
    ssh: Vec<String>,

    /// The daemon; default: the one in $PATH, else the one in --buildkit-image, taken out with docker
    #[arg(long, value_name = "PATH", requires = "build")]
    buildkitd: Option<PathBuf>,

    /// The image to take the daemon from where none is installed
    #[arg(long, value_name = "IMAGE", requires = "build", default_value = DEFAULT_IMAGE)]
    buildkit_image: String,
}

/// The configuration of the daemon that solves a build.
#[derive(Debug, Args)]
#[command(next_help_heading = "Build")]
pub(super) struct SolveConfig {
    /// The daemon's buildkitd.toml; default: an empty one
    #[arg(long, value_name = "FILE", requires = "build")]
    pub(super) buildkitd_config: Option<PathBuf>,
}

/// A name, `=` and a value.
fn pair(text: &str) -> Result<String, &'static str> {
    let is_pair = text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    if is_pair { Ok(text.to_owned()) } else { Err("expected a name, = and a value") }
}

impl Solve {
    /// The build of a context, without target and platform.
    ///
    /// # Errors
    /// Something that it is made of is not there: best known before anything is done.
    pub(super) fn build(&self, context: PathBuf) -> Result<Build, daemon::Error> {
        let flags = |name: &'static str, values: &[String]| {
            values.iter().flat_map(move |value| [name.into(), value.into()]).collect::<Vec<OsString>>()
        };
        let build = Build {
            context,
            dockerfile: self.file.clone(),
            build_args: self.build_arg.clone(),
            opts: self.opt.clone(),
            contexts: self.build_context.clone(),
            buildctl_args: [flags("--secret", &self.secret), flags("--ssh", &self.ssh)].concat(),
            ..Build::default()
        };
        build.require_inputs()?;
        Ok(build)
    }

    /// Where the daemon is looked for.
    pub(super) fn search(&self) -> Search {
        Search {
            buildkitd: self.buildkitd.clone(),
            image: Some(self.buildkit_image.clone()),
            ..Search::default()
        }
    }
}

/// The build that a replay solves.
#[derive(Debug, Args)]
#[command(next_help_heading = "Build")]
pub(super) struct ReplayArguments {
    /// Solve this build on a scratch buildkitd with the caches imported, and take the keys that it computes: a
    /// directory, or a Git or http URL. No step runs, and no layer is downloaded
    #[arg(long, value_name = "CONTEXT")]
    build: Option<PathBuf>,

    /// A stage to build; may be repeated; default: the last
    #[arg(long, value_name = "STAGE", requires = "build")]
    target: Vec<String>,

    /// Where to make the scratch directory, which takes the build context; default: $TMPDIR
    #[arg(long, value_name = "DIR", requires = "build")]
    scratch: Option<PathBuf>,

    #[command(flatten)]
    solve: Solve,
}

impl ReplayArguments {
    /// What to replay, on a daemon with this configuration; `None` where no build is named.
    ///
    /// # Errors
    /// As [`Solve::build`].
    pub(super) fn replay(
        &self,
        platforms: &[Platform],
        registry: &source::Options,
        config: Option<PathBuf>,
    ) -> Result<Option<Options>, daemon::Error> {
        let Some(context) = self.build.clone() else { return Ok(None) };
        let platforms: Vec<String> = platforms.iter().map(Platform::to_string).collect();
        let build = Build {
            platform: (!platforms.is_empty()).then(|| platforms.join(",")),
            ..self.solve.build(context)?
        };
        Ok(Some(Options {
            build,
            targets: self.target.clone(),
            search: self.solve.search(),
            buildkitd_config: config,
            scratch: self.scratch.clone(),
            registry: registry.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        replay: ReplayArguments,

        #[command(flatten)]
        config: SolveConfig,
    }

    impl Command {
        fn replay(&self, platforms: &[Platform]) -> Option<Options> {
            let config = self.config.buildkitd_config.clone();
            self.replay.replay(platforms, &source::Options::default(), config).unwrap()
        }
    }

    #[test]
    fn the_build_gets_all_that_is_said_of_it() {
        // Of this nothing is looked for on this machine.
        let flags = [
            "--build=https://r.example/ctx.git",
            "--file=f/Dockerfile",
            "--target=one",
            "--target=two",
            "--build-arg=A=1",
            "--opt=k=v",
            "--build-context=base=target:one",
            "--secret=id=s,src=file",
            "--ssh=default",
            "--buildkitd=/bin/daemon",
            "--buildkitd-config=conf",
            "--scratch=/scratch",
        ];
        let parse = |flags: &[&str]| Command::try_parse_from([&["warmkit"], flags].concat());
        let platforms = ["linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap()];
        let options = parse(&flags).unwrap().replay(&platforms).unwrap();
        let Build { context, dockerfile, build_args, opts, platform, contexts, buildctl_args, .. } =
            options.build;
        assert_eq!((context, dockerfile), ("https://r.example/ctx.git".into(), Some("f/Dockerfile".into())));
        assert_eq!(
            (build_args, opts, contexts),
            (vec!["A=1".into()], vec!["k=v".into()], vec!["base=target:one".into()])
        );
        assert_eq!(platform.as_deref(), Some("linux/amd64,linux/arm64"));
        assert_eq!(buildctl_args, ["--secret", "id=s,src=file", "--ssh", "default"]);
        assert_eq!(options.targets, ["one", "two"]);
        assert_eq!(options.search.buildkitd, Some("/bin/daemon".into()));
        assert_eq!(
            (options.buildkitd_config, options.scratch),
            (Some("conf".into()), Some("/scratch".into()))
        );

        assert!(parse(&[]).unwrap().replay(&platforms).is_none());
        for flag in &flags[1..] {
            assert!(parse(&[flag]).is_err(), "{flag} without --build");
        }
        for flag in ["--build-arg=A", "--opt==v", "--build-context=base"] {
            assert!(parse(&["--build=.", flag]).is_err(), "{flag}");
        }
    }
}
