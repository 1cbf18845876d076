//! The build that a replay solves, as arguments; `keys replay` and `bake` take the same.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::daemon::{Build, DEFAULT_IMAGE, Search};
use crate::oci::Platform;
use crate::replay::Options;
use crate::source;

/// What is built, and by which buildkitd.
#[derive(Debug, Args)]
#[command(next_help_heading = "Replay")]
pub(super) struct BuildArguments {
    /// Solve this build on a scratch buildkitd with the caches imported, and take the keys that it computes: a
    /// directory, or a Git or http URL. No step runs, and no layer is downloaded
    #[arg(long, value_name = "CONTEXT")]
    pub(super) build: Option<PathBuf>,

    /// The Dockerfile; default: Dockerfile in the context
    #[arg(short = 'f', long, value_name = "DOCKERFILE", requires = "build")]
    file: Option<PathBuf>,

    /// A stage to build; may be repeated; default: the last
    #[arg(long, value_name = "STAGE", requires = "build")]
    target: Vec<String>,

    /// A build argument
    #[arg(long, value_name = "KEY=VALUE", requires = "build")]
    build_arg: Vec<String>,

    /// An option of the frontend
    #[arg(long, value_name = "KEY=VALUE", requires = "build")]
    opt: Vec<String>,

    /// A named context: NAME=DIR, or NAME= and what buildx takes there
    #[arg(long, value_name = "NAME=VALUE", requires = "build")]
    build_context: Vec<String>,

    /// A secret of the build, as buildctl takes it: id=ID,src=FILE; none is needed, since no step runs
    #[arg(long, value_name = "SECRET", requires = "build")]
    secret: Vec<String>,

    /// An ssh agent or key of the build, as buildctl takes it: default, or ID=PATH; needed for contexts
    /// and ADD by Git over ssh alone
    #[arg(long, value_name = "SSH", requires = "build")]
    ssh: Vec<String>,

    /// The daemon; default: the one in $PATH, else the one in --buildkit-image, taken out with docker
    #[arg(long, value_name = "PATH", requires = "build")]
    buildkitd: Option<PathBuf>,

    /// The image to take the daemon from where none is installed
    #[arg(long, value_name = "IMAGE", requires = "build", default_value = DEFAULT_IMAGE)]
    buildkit_image: String,

    /// The daemon's buildkitd.toml; default: an empty one
    #[arg(long, value_name = "FILE", requires = "build")]
    buildkitd_config: Option<PathBuf>,

    /// Where to make the scratch directory, which takes the build context; default: $TMPDIR
    #[arg(long, value_name = "DIR", requires = "build")]
    scratch: Option<PathBuf>,
}

impl BuildArguments {
    /// What to replay; `None` where no build is named.
    pub(super) fn replay(&self, platforms: &[Platform], registry: &source::Options) -> Option<Options> {
        let context = self.build.clone()?;
        let flags = |name: &'static str, values: &[String]| {
            values.iter().flat_map(move |value| [name.into(), value.into()]).collect::<Vec<OsString>>()
        };
        let platforms: Vec<String> = platforms.iter().map(Platform::to_string).collect();
        let build = Build {
            context,
            dockerfile: self.file.clone(),
            build_args: self.build_arg.clone(),
            opts: self.opt.clone(),
            platform: (!platforms.is_empty()).then(|| platforms.join(",")),
            contexts: self.build_context.clone(),
            buildctl_args: [flags("--secret", &self.secret), flags("--ssh", &self.ssh)].concat(),
            ..Build::default()
        };
        let search = Search {
            buildkitd: self.buildkitd.clone(),
            image: Some(self.buildkit_image.clone()),
            ..Search::default()
        };
        Some(Options {
            build,
            targets: self.target.clone(),
            search,
            buildkitd_config: self.buildkitd_config.clone(),
            scratch: self.scratch.clone(),
            registry: registry.clone(),
        })
    }
}
