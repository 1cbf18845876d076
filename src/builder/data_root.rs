//! Where dockerd keeps its files, while it does not run.
//!
//! Mirrors dockerd's `cmd/dockerd/config.go`, `daemon/config/config.go` and `volume/local/local.go` (20.10 to v28): at its
//! start, the local driver takes each directory in `volumes` for a volume of that name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::docker::DEFAULT_HOST;
use super::settings::{all, argument};
use super::{Error, unit};
use crate::daemon::on_path;

const CONFIG: &str = "/etc/docker/daemon.json";
const DEFAULT: &str = "/var/lib/docker";
/// The directory of its own builder: moby `cmd/dockerd/daemon.go`, `initBuildkit`.
pub(super) const ENGINE: &str = "buildkit";

/// Of `daemon.json`, what moves the data root, and where it listens.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Config {
    data_root: Option<PathBuf>,
    /// What it was called before 17.05.
    graph: Option<PathBuf>,
    userns_remap: Option<String>,
    hosts: Vec<String>,
}

/// Of a volume's `opts.json`, what is mounted as its content.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Options {
    mount_device: String,
}

/// The data root of the dockerd that listens at `host` when it runs, by what systemd starts it with, and `daemon.json`.
pub(super) fn find(host: &str) -> Result<PathBuf, Error> {
    let arguments = unit::arguments("docker.service");
    let path = PathBuf::from(argument(&arguments, "config-file").unwrap_or(CONFIG));
    let config = parse(&path, &read(&path)?)?;
    if !listens_at(&arguments, &config, host) {
        return Err(Error::NotTheMachines { host: host.to_owned() });
    }
    let root = data_root(&arguments, config)?;
    if root.is_dir() || on_path("dockerd").is_some() {
        Ok(root)
    } else {
        Err(Error::NoDataRoot { path: root })
    }
}

/// Where this machine's dockerd keeps the state of its own builder, whether or not it has ever run.
pub(super) fn of_engine() -> Result<PathBuf, Error> {
    let arguments = unit::arguments("docker.service");
    let path = PathBuf::from(argument(&arguments, "config-file").unwrap_or(CONFIG));
    Ok(data_root(&arguments, parse(&path, &read(&path)?)?)?.join(ENGINE))
}

/// The same of a dockerd that is told nothing.
pub(super) fn default_engine() -> PathBuf {
    PathBuf::from(DEFAULT).join(ENGINE)
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

fn parse(path: &Path, config: &str) -> Result<Config, Error> {
    if config.trim().is_empty() {
        return Ok(Config::default());
    }
    serde_json::from_str(config).map_err(|error| unreadable(path, &error))
}

/// Whether that dockerd is the one at `host`, and not a second one, or podman.
fn listens_at(arguments: &[String], config: &Config, host: &str) -> bool {
    // One is a link to the other.
    let plain = |host: &str| host.replacen("unix:///var/run/", "unix:///run/", 1);
    let told = ["host", "H"]
        .iter()
        .flat_map(|name| all(arguments, name))
        .chain(config.hosts.iter().map(String::as_str));
    let host = plain(host);
    host == plain(DEFAULT_HOST) || told.into_iter().any(|told| plain(told) == host)
}

fn data_root(arguments: &[String], config: Config) -> Result<PathBuf, Error> {
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

    fn words(arguments: &[&str]) -> Vec<String> {
        arguments.iter().map(|&word| word.to_owned()).collect()
    }

    fn config(text: &str) -> Config {
        parse(Path::new(CONFIG), text).unwrap()
    }

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
        for (arguments, text, expected) in cases {
            let found = data_root(&words(arguments), config(text)).unwrap();
            assert_eq!(found, Path::new(expected), "{arguments:?} {text}");
        }
    }

    #[test]
    fn another_docker_is_told_from_the_machines_own() {
        let cases: [(&[&str], &str, &str, bool); 8] = [
            (&[], "", "unix:///var/run/docker.sock", true),
            (&["-H", "fd://"], "", "unix:///run/docker.sock", true),
            (&["-H", "fd://", "-H", "unix:///x.sock"], "", "unix:///x.sock", true),
            (&["--host=unix:///x.sock", "--host=tcp://[::1]:2375"], "", "unix:///x.sock", true),
            (&[], "{\"hosts\":[\"unix:///var/run/x.sock\"]}", "unix:///run/x.sock", true),
            (&[], "", "unix:///run/podman/podman.sock", false),
            (&["-H", "fd://"], "{\"hosts\":[]}", "unix:///x.sock", false),
            (&["-H", "unix:///x.sock"], "", "unix:///x.sock.2", false),
        ];
        for (arguments, text, host, expected) in cases {
            assert_eq!(
                listens_at(&words(arguments), &config(text), host),
                expected,
                "{arguments:?} {text} {host}"
            );
        }
    }

    #[test]
    fn what_only_dockerd_knows_is_an_error() {
        let remapped = data_root(&[], config("{\"userns-remap\":\"default\"}"));
        assert!(matches!(remapped, Err(Error::Remapped)), "{remapped:?}");
        let broken = parse(Path::new(CONFIG), "{").unwrap_err().to_string();
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
