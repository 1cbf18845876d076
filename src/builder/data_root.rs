//! Where dockerd keeps its files, while it does not run.
//!
//! Mirrors dockerd's `cmd/dockerd/config.go`, `daemon/config/config.go` and `volume/local/local.go` (20.10 to v28): at its
//! start, the local driver takes each directory in `volumes` for a volume of that name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::settings::argument;
use super::{Error, unit};
use crate::daemon::on_path;

const CONFIG: &str = "/etc/docker/daemon.json";
const DEFAULT: &str = "/var/lib/docker";

/// Of `daemon.json`, what moves the data root.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Config {
    data_root: Option<PathBuf>,
    /// What it was called before 17.05.
    graph: Option<PathBuf>,
    userns_remap: Option<String>,
}

/// Of a volume's `opts.json`, what is mounted as its content.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Options {
    mount_device: String,
}

/// The data root, by what systemd starts dockerd with, and `daemon.json`.
pub(super) fn find() -> Result<PathBuf, Error> {
    let arguments = unit::arguments("docker.service");
    let path = PathBuf::from(argument(&arguments, "config-file").unwrap_or(CONFIG));
    let root = data_root(&arguments, &path, &read(&path)?)?;
    if root.is_dir() || on_path("dockerd").is_some() {
        Ok(root)
    } else {
        Err(Error::NoDataRoot { path: root })
    }
}

/// What is mounted on a volume while it is used, if anything is.
pub(super) fn device(volume: &Path) -> Result<Option<String>, Error> {
    let path = volume.join("opts.json");
    let options: Options = match read(&path)?.as_str() {
        "" => return Ok(None),
        text => serde_json::from_str(text).map_err(|error| unreadable(&path, &error))?,
    };
    Ok(Some(options.mount_device).filter(|device| !device.is_empty()))
}

fn data_root(arguments: &[String], path: &Path, config: &str) -> Result<PathBuf, Error> {
    let config: Config = if config.trim().is_empty() {
        Config::default()
    } else {
        serde_json::from_str(config).map_err(|error| unreadable(path, &error))?
    };
    let remap = argument(arguments, "userns-remap").or(config.userns_remap.as_deref());
    if remap.is_some_and(|remap| !remap.is_empty()) {
        return Err(Error::Remapped);
    }
    let told =
        ["data-root", "graph", "g"].iter().find_map(|name| argument(arguments, name)).map(PathBuf::from);
    Ok(told.or(config.data_root).or(config.graph).unwrap_or_else(|| DEFAULT.into()))
}

/// The text of a file that need not be there.
fn read(path: &Path) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn unreadable(path: &Path, error: &serde_json::Error) -> Error {
    Error::Configuration { file: path.display().to_string(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_root_is_where_dockerd_is_told() {
        let cases: [(&[&str], &str, &str); 6] = [
            (&[], "", "/var/lib/docker"),
            (&["-H", "fd://"], "{\"log-driver\":\"local\"}", "/var/lib/docker"),
            (&[], "{\"data-root\":\"/srv/docker\"}", "/srv/docker"),
            (&[], "{\"graph\":\"/srv/docker\"}", "/srv/docker"),
            (&["--data-root=/a"], "", "/a"),
            (&["-g", "/a"], "{\"userns-remap\":\"\"}", "/a"),
        ];
        for (arguments, config, expected) in cases {
            let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
            let found = data_root(&arguments, Path::new(CONFIG), config).unwrap();
            assert_eq!(found, Path::new(expected), "{arguments:?} {config}");
        }
    }

    #[test]
    fn what_only_dockerd_knows_is_an_error() {
        let remapped = data_root(&[], Path::new(CONFIG), "{\"userns-remap\":\"default\"}");
        assert!(matches!(remapped, Err(Error::Remapped)), "{remapped:?}");
        let broken = data_root(&[], Path::new(CONFIG), "{").unwrap_err().to_string();
        assert!(broken.starts_with(CONFIG), "{broken}");
    }

    #[test]
    fn a_volume_that_is_mounted_while_it_is_used_is_known() {
        let volume = tempfile::tempdir().unwrap();
        assert_eq!(device(volume.path()).unwrap(), None);
        for (options, expected) in [
            ("{\"MountType\":\"nfs\",\"MountDevice\":\":/export\",\"Quota\":{\"Size\":0}}", Some(":/export")),
            ("{\"MountType\":\"\",\"MountDevice\":\"\",\"Quota\":{\"Size\":1024}}", None),
        ] {
            fs::write(volume.path().join("opts.json"), options).unwrap();
            assert_eq!(device(volume.path()).unwrap().as_deref(), expected);
        }
    }
}
