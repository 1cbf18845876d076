//! `warmkit bake`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::build::{ReplayArguments, SolveConfig};
use super::caches::Caches;
use super::exit::{self, Failure};
use super::options::KeySources;
use super::output::Output;
use super::place::Place;
use super::progress::Shown;
use super::{render, signals};
use crate::bake::{self, Cancel, Options, PageSize, Snapshotter};
use crate::builder::{self, Kind, Root};
use crate::layer;
use crate::oci::Reference;
use crate::progress::Event;
use crate::source::Stop;
use crate::source::spec::parse_reference;
use crate::userns::Owners;

const EXAMPLES: &str = "\
Examples:
  # what CI exported with --cache-to type=registry,ref=ghcr.io/acme/app:cache,
  # mode=max, with keys from the image that it pushed with --provenance=mode=max
  warmkit bake ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main

  # with a password of its own, which no other registry is shown
  warmkit bake r.example/app:cache --keys-from r.example/app:main \\
    --username ci --password-stdin < /run/secrets/registry

  # a local export and a metadata file, into a root that is shipped elsewhere
  warmkit bake type=local,src=./cache \\
    --keys-from type=provenance,src=metadata.json --root ./root

  # into the volume of a builder of buildx, which need not exist yet
  warmkit bake ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main \\
    --for buildx:ci

  # for the only builder that this host has, whichever it is
  warmkit bake ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main \\
    --for auto

  # for a buildkitd with a containerd worker; its containerd has to run
  warmkit bake ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main \\
    --for containerd

  # a bucket, with credentials from where AWS's own tools have them
  warmkit bake type=s3,region=eu-central-1,bucket=acme-cache,name=app \\
    --keys-from ghcr.io/acme/app:main

  # with an image that builds on this host will start from
  warmkit bake ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main \\
    --with-image alpine:3.22

  # images that were pushed with --cache-to type=inline, of two stages
  warmkit bake ghcr.io/acme/app:deps ghcr.io/acme/app:main \\
    --platform linux/amd64 --keys-from ghcr.io/acme/app:deps \\
    --keys-from ghcr.io/acme/app:main

  # keys from the sources of the build, where CI left none; no step runs
  warmkit bake ghcr.io/acme/app:cache --build . --build-arg VERSION=1.2

  # every branch that has a cache, in one root, with the keys of each
  warmkit bake ghcr.io/acme/app:cache-main --from-file branches.txt \\
    --skip-missing --keys-from ghcr.io/acme/app:main \\
    --keys-from ghcr.io/acme/app:next

  # only the layers: builds find them with --cache-from, and extract nothing
  warmkit bake ghcr.io/acme/app:cache --allow-unkeyed
";

/// What is baked, and where: for the commands that bake, or say what a bake would do.
#[derive(Debug, Args)]
pub(super) struct Baking {
    #[command(flatten)]
    caches: Caches,

    #[command(flatten)]
    pub(super) place: Place,

    #[command(flatten)]
    keys: KeySources,

    /// Whether to seed the images that the builds used, their frontends included, as provenance or a replay tells:
    /// a build then pulls and extracts no layer of them
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    images: FindImages,

    /// An image to seed that no provenance needs to name; for --platform, or this machine's. May be
    /// repeated
    #[arg(long = "with-image", value_name = "REF", value_parser = parse_reference)]
    with_images: Vec<Reference>,

    /// Bake although some records have no key; their layers are there, their steps are not CACHED
    /// without an import
    #[arg(long)]
    allow_unkeyed: bool,

    #[command(flatten)]
    pub(super) progress: Shown,

    /// Seconds since 1970 to write where a cache tells no time: the same caches and the same value
    /// give the same databases, byte for byte
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", value_parser = parse_epoch)]
    source_date_epoch: Option<Timestamp>,

    /// The snapshotter of the worker that the root is for, as in --oci-worker-snapshotter of buildkitd [default:
    /// what the builder's configuration says, else overlayfs]
    #[arg(long, value_name = "NAME", value_parser = snapshotters())]
    snapshotter: Option<Snapshotter>,

    /// Page size of the databases: that of the memory of the machines that will use them, which any other opens as
    /// well
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = page_sizes())]
    page_size: PageSize,

    #[command(flatten)]
    build: ReplayArguments,
}

/// Pull caches and write them into a BuildKit state directory, which must be absent or empty
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) baking: Baking,

    /// At the end, tell the disk which blocks of the root's file system are free (as fstrim does): what was
    /// deleted there, before or meanwhile, is then in no snapshot of the disk
    #[arg(long, help_heading = None::<&str>)]
    fstrim: bool,

    #[command(flatten, next_help_heading = None::<&str>)]
    pub(super) output: Output,

    #[command(flatten)]
    config: SolveConfig,
}

/// Which images are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FindImages {
    /// Those that provenance or a replay names; one that cannot be had is a warning
    Auto,
    /// None but those of --with-image
    None,
}

/// Those that are written.
fn snapshotters() -> impl TypedValueParser<Value = Snapshotter> {
    PossibleValuesParser::new(Snapshotter::ALL.map(Snapshotter::name))
        .try_map(|name| Snapshotter::named(&name).ok_or("no such snapshotter"))
}

/// Those that Linux has.
fn page_sizes() -> impl TypedValueParser<Value = PageSize> {
    PossibleValuesParser::new(["4096", "16384", "65536"]).try_map(|text| {
        text.parse::<usize>()
            .map_err(|error| error.to_string())
            .and_then(|size| PageSize::try_from(size).map_err(|error| error.to_string()))
    })
}

fn parse_epoch(text: &str) -> Result<Timestamp, String> {
    let seconds: i64 =
        text.parse().map_err(|_| "expected seconds since 1970, such as 1700000000".to_owned())?;
    if seconds < 0 {
        return Err("times before 1970 cannot be written".to_owned());
    }
    Timestamp::from_second(seconds).map_err(|error| error.to_string())
}

impl Baking {
    /// The same for the library, and what ends it at a signal; a replay's daemon has this configuration.
    pub(super) fn options(
        self,
        root: &Root,
        buildkitd_config: Option<PathBuf>,
        output: Output,
    ) -> Result<(Options, Cancel), Failure> {
        let skip_missing = self.caches.skip_missing;
        let Kind { snapshotter, owners, containerd } = root.kind();
        let told = snapshotter.as_deref().and_then(Snapshotter::named);
        // What is written in a user namespace is for a daemon there.
        let owners = match owners {
            Owners::AsNamed => Owners::of_this_process().map_err(|error| {
                Failure::new(format!("cannot read the id maps of this process: {error}"), exit::FAILURE)
            })?,
            owners @ Owners::Namespace { .. } => owners.clone(),
        };
        let snapshotter = self.snapshotter.or(told).unwrap_or_default();
        self.require_mounts(root, snapshotter)?;
        let caches = self.caches.read(&self.keys.registries)?;
        let given = self.keys.given(&caches)?;
        let cancel = Cancel::new(signals::end_on_signal(output, self.progress)?.in_order());
        let registry = self.keys.registries.options(Stop::default(), given);
        let options = Options {
            skip_missing,
            caches,
            replay: self.build.replay(&self.keys.platforms, &registry, buildkitd_config)?,
            keys_from: self.keys.keys_from(),
            no_sidecar: self.keys.no_sidecar,
            root: root.path().to_owned(),
            snapshotter,
            owners,
            containerd: containerd.as_ref().map(|containerd| bake::Containerd {
                address: containerd.address.clone(),
                namespace: containerd.namespace.clone(),
            }),
            page_size: self.page_size,
            platforms: self.keys.platforms,
            find_images: match self.images {
                FindImages::Auto => bake::FindImages::Auto,
                FindImages::None => bake::FindImages::None,
            },
            with_images: self.with_images,
            allow_unkeyed: self.allow_unkeyed,
            written_at: self.source_date_epoch.unwrap_or_else(Timestamp::now),
            trim: false,
            registry,
        };
        Ok((options, cancel))
    }

    /// Refuses a root whose daemon could not mount its layers, and warns of it where that daemon may have it at another
    /// path.
    fn require_mounts(&self, root: &Root, snapshotter: Snapshotter) -> Result<(), Failure> {
        // A containerd keeps its layers elsewhere.
        let is_mounted = snapshotter.has_upper() && root.kind().containerd.is_none();
        let Some(separator) = root.separator().filter(|_| is_mounted) else { return Ok(()) };
        let path = root.path();
        if !self.place.is_directory() {
            let (path, snapshotter) = (path.to_owned(), snapshotter.name());
            let is_told = root.kind().snapshotter.is_some();
            return Err(builder::Error::Separator { path, separator, snapshotter, is_told }.into());
        }
        self.progress.start()?.event(Event::Warning(format!(
            "{}: mounts of {snapshotter} take the {separator:?} in it for a separator, so unless its daemon has the root at \
             another path, it takes native there (bake with --snapshotter native), or fails all builds where it is told \
             {snapshotter}",
            path.display()
        )));
        Ok(())
    }
}

/// Bakes and returns the exit code.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { baking, fstrim, output, config } = arguments;
    let mut root = baking.place.find(baking.progress)?;
    root.require_idle()?;
    let progress = baking.progress;
    let (mut options, cancel) = baking.options(&root, config.buildkitd_config, output)?;
    options.trim = fstrim;
    root.make()?;
    // Where docker has made a volume, it has the last word on where that is.
    root.path().clone_into(&mut options.root);
    let baked = bake::bake(&options, &cancel, &*progress.start()?);
    let report = baked.map_err(|error| with_way_out(error, &root))?;
    root.keep();
    let outcome = Outcome { report: &report, next_step: root.next_step() };
    output.report(&outcome, |outcome| {
        let text = render::bake(outcome.report);
        match &outcome.next_step {
            Some(next) => format!("{text}\n{next}"),
            None => text,
        }
    })?;
    Ok(exit::OK)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    report: &'a bake::Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_step: Option<String>,
}

/// What to do about an error that depends on whose the root is.
pub(super) fn way_out(error: &bake::Error, root: &Root) -> Option<String> {
    match error {
        // A builder's root that has been used is not for whoever starts the bake to clear by hand.
        bake::Error::TargetNotEmpty { .. } => root.way_out(),
        bake::Error::NotRoot => root.way_in(),
        bake::Error::Layer { source: layer::Error::Owner { source, .. }, .. } => root.wider_range(source),
        _ => None,
    }
}

/// The same with what to do about it.
pub(super) fn with_way_out(error: bake::Error, root: &Root) -> Failure {
    match way_out(&error, root) {
        Some(way_out) => Failure::new(format!("{error}; {way_out}"), exit::of_bake(&error)),
        None => error.into(),
    }
}
