//! `warmkit bake`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use jiff::Timestamp;

use super::build::ReplayArguments;
use super::caches::Caches;
use super::exit::{self, Failure};
use super::options::KeySources;
use super::output::Output;
use super::progress::Shown;
use super::{render, signals};
use crate::bake::{self, Cancel, Options};
use crate::oci::Reference;
use crate::source::Stop;
use crate::source::spec::parse_reference;

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

/// Pull caches and write them into a BuildKit state directory
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXAMPLES}", exit::HELP))]
pub(super) struct Arguments {
    #[command(flatten)]
    caches: Caches,

    /// The root to make; must be absent or empty
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "/var/lib/buildkit")]
    root: PathBuf,

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
    pub(super) output: Output,

    #[command(flatten)]
    pub(super) progress: Shown,

    /// Seconds since 1970 to write where a cache tells no time: the same caches and the same value
    /// give the same databases, byte for byte
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", value_parser = parse_epoch)]
    source_date_epoch: Option<Timestamp>,

    #[command(flatten)]
    build: ReplayArguments,
}

/// Which images are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FindImages {
    /// Those that provenance or a replay names; one that cannot be had is a warning
    Auto,
    /// None but those of --with-image
    None,
}

fn parse_epoch(text: &str) -> Result<Timestamp, String> {
    let seconds: i64 =
        text.parse().map_err(|_| "expected seconds since 1970, such as 1700000000".to_owned())?;
    if seconds < 0 {
        return Err("times before 1970 cannot be written".to_owned());
    }
    Timestamp::from_second(seconds).map_err(|error| error.to_string())
}

/// Bakes and returns the exit code.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let skip_missing = arguments.caches.skip_missing;
    let caches = arguments.caches.read()?;
    let given = arguments.keys.given(&caches)?;
    let cancel = Cancel::new(signals::interrupted()?);
    let registry = arguments.keys.registries.options(Stop::default(), given);
    let options = Options {
        skip_missing,
        caches,
        replay: arguments.build.replay(&arguments.keys.platforms, &registry),
        keys_from: arguments.keys.keys_from(),
        no_sidecar: arguments.keys.no_sidecar,
        root: arguments.root,
        platforms: arguments.keys.platforms,
        find_images: match arguments.images {
            FindImages::Auto => bake::FindImages::Auto,
            FindImages::None => bake::FindImages::None,
        },
        with_images: arguments.with_images,
        allow_unkeyed: arguments.allow_unkeyed,
        written_at: arguments.source_date_epoch.unwrap_or_else(Timestamp::now),
        registry,
    };
    let report = bake::bake(&options, &cancel, &*arguments.progress.start()?)?;
    arguments.output.report(&report, render::bake)?;
    Ok(exit::OK)
}
