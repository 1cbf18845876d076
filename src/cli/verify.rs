//! `warmkit verify`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueHint};
use serde::Serialize;

use super::build::Solve;
use super::exit::{self, Failure};
use super::output::{Output, out};
use super::place::{Place, kept_in};
use super::plan::size;
use super::progress::Shown;
use super::{render, signals};
use crate::builder::{Root, Target, Told};
use crate::daemon::Build;
use crate::gc::Release;
use crate::progress::{Phase, during};
use crate::verify::{self, Configured, ImageOptions, LiveOptions, LiveReport};

const EXAMPLES: &str = "\
Examples:
  # before the image ships: every database and blob, each against the others
  warmkit verify --root /var/lib/buildkit

  # also unpack every layer in memory and compare it with its snapshot
  warmkit verify --root /var/lib/buildkit --read-data

  # that of a containerd worker, in the containerd that runs
  warmkit verify --for containerd

  # the real build, on a throwaway view of the root: is every step CACHED?
  warmkit verify --root /var/lib/buildkit --build . \\
    -f docker/Dockerfile --build-arg VERSION=1.2

  # the last look before an image is made: at this machine, or a mounted one
  warmkit verify --image
  warmkit verify --image --sysroot /mnt/image
";

const READ_DATA_IN_CONTAINERD: &str = "the files of its snapshots are containerd's own, and to look at them would write \
    to it; without --read-data records, leases, snapshots and the bytes of every blob are checked, and the bake has \
    compared each layer with its diff ID";
const BUILD_IN_CONTAINERD: &str = "a daemon on a copy of the root would still write to the containerd that runs, leases \
    and snapshots that nobody would remove; start buildkitd on the root itself, and build: every step should be CACHED";
const IMAGE_IN_CONTAINERD: &str = "a containerd that is being shipped does not run, and what others keep in it is not \
    looked at; check the root without --image, and what ships besides by hand";

/// Check that a root is whole and warm; no daemon may run on it
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
#[command(group = ArgGroup::new("with_daemon").args(["build", "image"]).multiple(true))]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,

    /// Unpack each layer again, in memory, and compare it with its snapshot entry by entry
    #[arg(long)]
    read_data: bool,

    #[command(flatten)]
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,

    #[command(flatten)]
    image: ImageArguments,

    /// Also run this build on a throwaway view of the root, which stays untouched: is every step CACHED?
    #[arg(long, value_name = "CONTEXT", help_heading = "Build")]
    build: Option<PathBuf>,

    /// The stage to build; default: the last
    #[arg(long, value_name = "STAGE", requires = "build", help_heading = "Build")]
    target: Option<String>,

    /// The platforms to build for; default: the daemon's own
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", requires = "build", help_heading = "Build")]
    platform: Option<String>,

    /// A cache that the build imports, as buildctl takes it: type=registry,ref=REF; for roots baked
    /// with --allow-unkeyed
    #[arg(long, value_name = "CACHE", requires = "build", help_heading = "Build")]
    import_cache: Vec<String>,

    #[command(flatten)]
    solve: Solve,

    /// The daemon's buildkitd.toml; default: an empty one for --build, and for --image that of the image,
    /// /etc/buildkit/buildkitd.toml, or the one in the home of a rootless daemon's user
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        requires = "with_daemon",
        help_heading = "Build"
    )]
    buildkitd_config: Option<PathBuf>,
}

/// Whether, and how, an image is looked at.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
struct ImageArguments {
    /// Also look for what must not be in a machine image that ships: histories of builds, leftovers, credentials,
    /// a cache that garbage collection takes
    #[arg(long)]
    image: bool,

    /// The / of an image that is mounted: the root, too, is then looked for inside of it
    #[arg(
        long,
        value_name = "DIR",
        value_hint = ValueHint::DirPath,
        requires = "image",
        conflicts_with = "build",
        default_value = "/"
    )]
    sysroot: PathBuf,

    /// The BuildKit release of the hosts that boot from the image
    #[arg(long, value_name = "VERSION", requires = "image", default_value_t = Release::NEWEST)]
    buildkitd_release: Release,

    /// The size of their disk, such as 50GB (units are powers of 1024), taken to hold nothing but the root; default:
    /// the disk of the root, as it is
    #[arg(long, value_name = "SIZE", requires = "image", value_parser = size)]
    disk_size: Option<u64>,
}

impl ImageArguments {
    fn options(
        &self,
        buildkitd_config: Option<&PathBuf>,
        told: impl FnOnce() -> Option<Configured>,
    ) -> Result<Option<ImageOptions>, Failure> {
        if !self.image {
            return Ok(None);
        }
        let mut options = ImageOptions::default();
        options.sysroot.clone_from(&self.sysroot);
        options.release = self.buildkitd_release;
        options.disk_size = self.disk_size;
        if let Some(path) = buildkitd_config {
            let error =
                |error| Failure::new(format!("cannot read {}: {error}", path.display()), exit::FAILURE);
            let text = fs::read_to_string(path).map_err(error)?;
            options.configuration = Some(Configured { path: path.clone(), text });
        } else if self.sysroot == Path::new("/") {
            options.configuration = told();
        }
        Ok(Some(options))
    }
}

impl Arguments {
    /// The root, in the image if that is mounted.
    fn root(&self) -> Result<Root, Failure> {
        if self.place.is_auto() && self.image.sysroot != Path::new("/") {
            let reason = "--for auto looks at this machine, and --sysroot is another: name its root";
            return Err(Failure::new(reason, exit::USAGE));
        }
        let root = self.place.find_idle_in(&self.image.sysroot, self.progress)?;
        if root.kind().containerd.is_some() {
            self.refuse_for_containerd()?;
        }
        Ok(root)
    }

    /// The configuration of the daemon whose root it is, on this machine; a directory tells by its owner whose it is.
    fn configuration(&self, root: &Root) -> Option<Configured> {
        let configured = |root: &Root| {
            let Told { file, text, .. } = root.configuration();
            Some(Configured { path: file.clone(), text: text.clone()? })
        };
        if !self.place.is_directory() {
            return configured(root);
        }
        let owner = fs::metadata(root.path()).ok()?.uid();
        let user = Target::Rootless { user: Some(owner.to_string()) };
        // Where that cannot be told, it is looked for in the owner's home.
        if owner == 0 { None } else { configured(&user.find().ok()?) }
    }

    /// What cannot be done where a containerd keeps the layers.
    fn refuse_for_containerd(&self) -> Result<(), Failure> {
        let refused = [
            (self.read_data, "--read-data", READ_DATA_IN_CONTAINERD),
            (self.build.is_some(), "--build", BUILD_IN_CONTAINERD),
            (self.image.image, "--image", IMAGE_IN_CONTAINERD),
        ];
        match refused.into_iter().find(|(is_given, ..)| *is_given) {
            Some((_, option, why)) => {
                Err(Failure::new(format!("{option} is not for a containerd worker: {why}"), exit::USAGE))
            }
            None => Ok(()),
        }
    }

    /// The build on a view of the root, where one is named.
    fn live(&self) -> Result<Option<LiveOptions>, Failure> {
        let Some(context) = self.build.clone() else { return Ok(None) };
        let build = Build {
            target: self.target.clone(),
            platform: self.platform.clone(),
            import_caches: self.import_cache.clone(),
            ..self.solve.build(context)?
        };
        let buildkitd_config = self.buildkitd_config.clone();
        Ok(Some(LiveOptions {
            build,
            search: self.solve.search(),
            buildkitd_config,
            ..LiveOptions::default()
        }))
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    root: String,
    healthy: bool,
    offline: &'a verify::Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a LiveReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    all_cached: Option<bool>,
}

/// Verifies and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let (output, progress) = (arguments.output, arguments.progress);
    let ending = signals::end_on_signal(output, progress)?;
    let found = arguments.root()?;
    let root = found.path();
    let options = verify::Options {
        read_data: arguments.read_data,
        containerd: kept_in(&found),
        image: arguments
            .image
            .options(arguments.buildkitd_config.as_ref(), || arguments.configuration(&found))?,
        ..verify::Options::default()
    };
    let live = arguments.live()?;
    let report = verify::offline(root, &options, &*progress.start()?).map_err(|error| {
        let code = exit::of_verify(&error);
        Failure::new(error, code)
    })?;
    if !output.is_json() {
        out(render::verify(root, &report))?;
    }
    let live = match live {
        None => None,
        Some(mut options) => {
            options.interrupted = ending.in_order();
            let build = || verify::live(root, &options);
            Some(during(&*progress.start()?, Phase::Build, build)?)
        }
    };
    if output.is_json() {
        let outcome = Outcome {
            root: root.display().to_string(),
            healthy: report.is_healthy(),
            offline: &report,
            live: live.as_ref(),
            all_cached: live.as_ref().map(LiveReport::all_cached),
        };
        out(render::json(&outcome))?;
    } else if let Some(live) = &live {
        out(render::live(live))?;
    }
    Ok(if report.is_healthy() { live.as_ref().map_or(exit::OK, exit::of_build) } else { exit::FINDINGS })
}
