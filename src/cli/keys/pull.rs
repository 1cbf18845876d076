//! `warmkit keys pull`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::super::caches::discreet;
use super::super::progress::{Console, Verbs};
use super::super::{err, exit, out, render};
use super::table;
use crate::gather::{self, sidecar};
use crate::source::{self, CacheSpec};

const EXAMPLES: &str = "\
Examples:
  # get the keys once, and bake where the registry cannot be reached
  warmkit keys pull ghcr.io/acme/app:cache -o app.keys.json
  warmkit bake type=local,src=./cache --keys-from type=keys,src=app.keys.json --root ./root
";

/// Get the sidecar of a cache as a keys file
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXAMPLES}", exit::HELP))]
pub(in crate::cli) struct Arguments {
    /// A cache in a registry: a reference, or type=registry,ref=REF
    #[arg(value_parser = discreet::<CacheSpec>())]
    cache: CacheSpec,

    /// The keys file to write; one that is there is replaced
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Talk http to registries on other hosts than this one too
    #[arg(long)]
    insecure: bool,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    report: &'a sidecar::PullReport,
    file: String,
}

/// A keys file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Pulls and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> u8 {
    let failed = |error: &(dyn std::error::Error + 'static), code| {
        err(render::error(error));
        if arguments.json {
            out(render::json_error(error, code));
        }
        code
    };
    let options = gather::Options {
        registry: source::Options { insecure: arguments.insecure, ..source::Options::default() },
        ..gather::Options::default()
    };
    let console = Console::new(Verbs::BAKE);
    let result = sidecar::pull(&arguments.cache, &options, &console);
    console.finish();
    let (report, keys) = match result {
        Ok(pulled) => pulled,
        Err(error) => return failed(&error, exit::of_gather(&error)),
    };
    let path = arguments.output.clone();
    let written = keys.to_bytes().map_err(io::Error::other).and_then(|bytes| replace(&path, &bytes));
    if let Err(source) = written {
        return failed(&WriteError { path, source }, exit::FAILURE);
    }
    let file = path.display().to_string();
    out(if arguments.json {
        render::json(&Written { report: &report, file })
    } else {
        table::pull(&report, &file)
    });
    exit::OK
}

/// Writes a file so that it is there whole or as it was before.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What is no regular file, such as /dev/stdout, cannot be replaced.
    if path.exists() && !path.is_file() {
        return std::fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().permissions(permissions(path)).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Those of the file that is there, or what anybody may read.
fn permissions(path: &Path) -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path)
        .map_or_else(|_| std::fs::Permissions::from_mode(0o644), |metadata| metadata.permissions())
}
