//! `warmkit plan`.

pub(super) mod table;

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use serde::Serialize;

use super::advice::advice;
use super::bake::{Baking, way_out, with_way_out};
use super::exit::{self, Failure};
use super::output::Output;
use super::render;
use crate::bake::{self, Foreseen, GcOptions};
use crate::builder::{Root, Told};
use crate::gc::{Configuration, Release, Space, Worker};

const EXAMPLES: &str = "\
Examples:
  # what would this bake do here? nothing is written, and no layer pulled
  warmkit plan ghcr.io/acme/app:cache --keys-from ghcr.io/acme/app:main

  # for which root? what this machine shows of its builders is listed
  warmkit plan ghcr.io/acme/app:cache --for auto

  # is a volume of 50 GB enough, for the buildkitd of the image to keep it?
  warmkit plan @caches.txt --keys-from ghcr.io/acme/app:main \\
    --disk-size 50GB --buildkitd-release v0.31.2 \\
    --buildkitd-config packer/buildkitd.toml

  # the configuration that keeps it, with 30 GB for what builds add
  warmkit plan @caches.txt --keys-from ghcr.io/acme/app:main --room 30GB \\
    --format json | jq -r .gc.keep
";

/// Say what a bake of the same arguments would do, how much disk it takes, and what garbage collection would do to
/// the root; pulls no layer, and writes nothing but the scratch directory of a replay, while that runs
#[derive(Debug, Args)]
#[command(after_long_help = exit::help(EXAMPLES))]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) baking: Baking,

    #[command(flatten, next_help_heading = None::<&str>)]
    pub(super) output: Output,

    #[command(flatten)]
    host: Host,
}

/// The daemon that will run on a root.
#[derive(Debug, Args)]
#[command(next_help_heading = "Host")]
pub(super) struct Host {
    /// The buildkitd.toml of the hosts, which the daemon of a replay has too; default: that of the daemon that --for
    /// names, and what its unit says, and with --root an empty one
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    buildkitd_config: Option<PathBuf>,

    /// The BuildKit release of the hosts
    #[arg(long, value_name = "VERSION", default_value_t = Release::NEWEST)]
    buildkitd_release: Release,

    /// The size of their disk, such as 50GB (units are powers of 1024), taken to hold nothing but the root; default:
    /// the disk of the target, as it is
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk_size: Option<u64>,

    /// How much builds may add before anything has to go, by the gcpolicy that is printed; default: half of what is
    /// free
    #[arg(long, value_name = "SIZE", value_parser = size)]
    room: Option<u64>,
}

/// Bytes, as daemons read them.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    let space = Space::read(text).filter(|space| space.bytes > 0);
    space.and_then(|space| space.bytes.try_into().ok()).ok_or("expected bytes, or a size such as 50GB")
}

impl Host {
    /// The same for the library.
    pub(super) fn options(&self, root: &Root) -> Result<GcOptions, Failure> {
        let worker = if root.kind().containerd.is_some() { Worker::Containerd } else { Worker::Oci };
        let configuration = match &self.buildkitd_config {
            None => self.told(worker, root.configuration())?,
            Some(file) => {
                let path = file.display();
                let text = fs::read_to_string(file)
                    .map_err(|error| Failure::new(format!("cannot read {path}: {error}"), exit::FAILURE))?;
                Configuration::read_for(worker, &text).map_err(|error| {
                    Failure::new(format!("{path}: {}", render::chain(&error)), exit::USAGE)
                })?
            }
        };
        Ok(GcOptions {
            configuration,
            release: self.buildkitd_release,
            disk_size: self.disk_size,
            room: self.room,
        })
    }

    /// What the daemon that a root was found for is told, in its configuration and by arguments.
    fn told(&self, worker: Worker, told: &Told) -> Result<Configuration, Failure> {
        let Told { file, text, gc, keep_storage } = told;
        Configuration::read_for(worker, text.as_deref().unwrap_or_default())
            .and_then(|read| read.with_arguments(*gc, keep_storage.as_deref(), self.buildkitd_release))
            .map_err(|error| {
                Failure::new(format!("{}: {}", file.display(), render::chain(&error)), exit::FAILURE)
            })
    }
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    foreseen: &'a Foreseen,
    refusals: Vec<Refused>,
}

/// Why a bake would end.
#[derive(Serialize)]
struct Refused {
    message: String,
    help: Option<Cow<'static, str>>,
    exit_code: u8,
}

/// Plans and returns the exit code: that of a bake.
pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { baking, output, host } = arguments;
    let progress = baking.progress;
    let root = baking.place.find(progress)?;
    let gc = host.options(&root)?;
    let busy = root.require_idle().err().map(Failure::from);
    let (options, cancel) = baking.options(&root, host.buildkitd_config, output)?;
    let foreseen = bake::foresee(&options, &gc, &cancel, &*progress.start()?);
    let foreseen = foreseen.map_err(|error| with_way_out(error, &root))?;
    let refused = |error: &bake::Error| match way_out(error, &root) {
        Some(way_out) => {
            let message = format!("{error}; {way_out}");
            Refused { message, help: None, exit_code: exit::of_bake(error) }
        }
        None => {
            Refused { message: render::chain(error), help: advice(error), exit_code: exit::of_bake(error) }
        }
    };
    let busy =
        busy.map(|busy| Refused { message: render::chain(&*busy.error), help: None, exit_code: busy.code });
    let refusals = busy.into_iter().chain(foreseen.refusals.iter().map(refused)).collect();
    let outcome = Outcome { foreseen: &foreseen, refusals };
    output.report(&outcome, |outcome| table::plan(outcome))?;
    Ok(outcome.refusals.first().map_or(exit::OK, |refused| refused.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_daemons_read_them() {
        for (text, expected) in [
            ("50GB", Some(50 << 30)),
            ("1.5 GiB", Some(3 << 29)),
            ("9000", Some(9000)),
            ("0", None),
            ("10%", None),
            ("-5", None),
            ("much", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }
}
