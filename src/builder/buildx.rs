//! What buildx keeps of its builders.
//!
//! ```text
//! <buildx>/instances/<name>   driver, nodes (name, endpoint, flags, files, options of the driver)
//! a docker context            is a builder too, of its own name and the driver "docker"
//! ```
//!
//! Mirrors buildx's `store/store.go`, `store/nodegroup.go`, `util/confutil/config.go` and
//! `driver/docker-container/driver.go` (v0.37.2).

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::Error;
use super::docker::is_context;
use super::settings::argument;

/// The name of the configuration among the files of a node.
const CONFIG: &str = "buildkitd.toml";

/// A builder, as buildx keeps it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Builder {
    /// How its daemons run: `docker-container`, `docker`, `kubernetes`, `remote`, or another.
    pub driver: String,
    /// Its daemons.
    #[serde(default)]
    pub nodes: Vec<Node>,
}

/// One daemon of a builder.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Its name, which no other node on that docker has.
    pub name: String,
    /// A docker context, or where a docker daemon listens; empty: docker's current context.
    #[serde(default)]
    pub endpoint: String,
    /// Arguments of buildkitd; older releases of buildx call them so, newer ones otherwise.
    #[serde(default, alias = "BuildkitdFlags")]
    flags: Option<Vec<String>>,
    #[serde(default)]
    driver_opts: Option<BTreeMap<String, String>>,
    /// Files of `/etc/buildkit`, in base64.
    #[serde(default)]
    files: Option<BTreeMap<String, Option<String>>>,
}

impl Node {
    /// The node that `docker buildx create` makes of a name.
    pub(super) fn to_be(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// The container that its daemon runs in, with the driver `docker-container`.
    pub fn container(&self) -> String {
        format!("buildx_buildkit_{}", self.name)
    }

    /// The volume of that container.
    pub fn volume(&self) -> String {
        format!("{}_state", self.container())
    }

    /// The arguments that its daemon is started with.
    pub(super) fn flags(&self) -> &[String] {
        self.flags.as_deref().unwrap_or_default()
    }

    /// The root that its daemon is told to use by an argument, if it is.
    pub fn told_root(&self) -> Option<&str> {
        argument(self.flags(), "root")
    }

    /// The image that its container is made from, if one was chosen.
    pub(super) fn image(&self) -> Option<&str> {
        self.driver_opts.as_ref()?.get("image").map(String::as_str)
    }

    /// A variable that its daemon is to be started with (`--driver-opt env.NAME=VALUE`).
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let value = self.driver_opts.as_ref()?.get(&format!("env.{name}"))?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// The configuration that its daemon is given, if it is.
    pub(super) fn config(&self) -> Option<String> {
        let encoded = self.files.as_ref()?.get(CONFIG)?.as_ref()?;
        String::from_utf8(BASE64.decode(encoded).ok()?).ok()
    }
}

/// The builder `name`: one that buildx keeps, or a docker context.
///
/// # Errors
/// What buildx keeps of it cannot be read, or is something else.
pub fn find(name: &str) -> Result<Option<Builder>, Error> {
    find_in(&directory(), name)
}

/// That there is no builder `name`, as an error that says which there are.
pub fn unknown(name: &str) -> Error {
    unknown_in(&directory(), name)
}

/// Where buildx keeps its state.
pub(super) fn directory() -> PathBuf {
    directory_by(|name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn directory_by(var: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    if let Some(directory) = var("BUILDX_CONFIG") {
        return directory.into();
    }
    let docker = var("DOCKER_CONFIG").map(PathBuf::from);
    let home = || PathBuf::from(var("HOME").unwrap_or_else(|| "/root".into())).join(".docker");
    docker.unwrap_or_else(home).join("buildx")
}

/// Whether buildx takes `name` for a builder's or a node's.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn find_in(directory: &Path, name: &str) -> Result<Option<Builder>, Error> {
    if is_name(name) {
        // Whatever its user writes: buildx keeps names in lower case.
        let path = directory.join("instances").join(name.to_ascii_lowercase());
        match fs::read(&path) {
            Ok(bytes) => {
                return serde_json::from_slice(&bytes)
                    .map(Some)
                    .map_err(|source| Error::Json { path, source });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { path, source }),
        }
    }
    Ok(is_context(name).then(|| {
        let node = Node { name: name.to_owned(), endpoint: name.to_owned(), ..Node::default() };
        Builder { driver: "docker".into(), nodes: vec![node] }
    }))
}

fn unknown_in(directory: &Path, name: &str) -> Error {
    let known = names(directory).unwrap_or_default();
    Error::Unknown { name: name.to_owned(), directory: directory.to_owned(), known }
}

/// The builders that buildx keeps in this directory, sorted; none where there is no such directory.
///
/// # Errors
/// It cannot be read.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let path = directory.join("instances");
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let entries = entries.map_err(|source| Error::Read { path, source })?;
    let names: BTreeSet<String> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    Ok(names.into_iter().filter(|name| is_name(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildx_keeps_its_state_where_it_is_told() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[("BUILDX_CONFIG", "/b"), ("DOCKER_CONFIG", "/d"), ("HOME", "/h")], "/b"),
            (&[("DOCKER_CONFIG", "/d"), ("HOME", "/h")], "/d/buildx"),
            (&[("HOME", "/h")], "/h/.docker/buildx"),
            (&[], "/root/.docker/buildx"),
        ];
        for (vars, expected) in cases {
            let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            assert_eq!(directory_by(var), Path::new(expected), "{vars:?}");
        }
    }

    #[test]
    fn what_buildx_keeps_is_read() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("instances")).unwrap();
        let instance = r#"{"Name":"ci","Driver":"docker-container","Nodes":[{"Name":"ci0",
            "Endpoint":"unix:///var/run/docker.sock","Platforms":null,"Flags":["--root","/r"],
            "DriverOpts":{"image":"moby/buildkit:v0.34.2","env.A":"/a","env.B":""},"Files":{"buildkitd.toml":"cm9vdCA9ICIveCIK"}},
            {"Name":"ci1","Endpoint":"there","Flags":null,"DriverOpts":null,"Files":null}],"Dynamic":false}"#;
        fs::write(directory.path().join("instances/ci"), instance).unwrap();
        for name in ["ci", "CI"] {
            let Some(Builder { driver, nodes }) = find_in(directory.path(), name).unwrap() else {
                panic!("no builder {name}")
            };
            assert_eq!(driver, "docker-container");
            let [first, second] = nodes.as_slice() else { panic!("{nodes:?}") };
            assert_eq!(
                (first.container(), first.volume()),
                ("buildx_buildkit_ci0".into(), "buildx_buildkit_ci0_state".into())
            );
            assert_eq!(first.flags(), ["--root", "/r"]);
            assert_eq!(first.image(), Some("moby/buildkit:v0.34.2"));
            assert_eq!(
                (first.variable("A"), first.variable("B"), first.variable("C")),
                (Some("/a"), None, None)
            );
            assert_eq!(first.config().as_deref(), Some("root = \"/x\"\n"));
            assert_eq!((second.flags(), second.image(), second.config()), (&[][..], None, None));
        }
    }

    #[test]
    fn what_is_no_builder_is_told_from_what_is_none_of_ours() {
        let directory = tempfile::tempdir().unwrap();
        let instances = directory.path().join("instances");
        fs::create_dir(&instances).unwrap();
        fs::write(instances.join("x"), "[]").unwrap();
        // A name leads nowhere else.
        for name in ["absent", "no/../x", "../instances/x", "", ".", "\u{e9}"] {
            assert!(find_in(directory.path(), name).unwrap().is_none(), "{name:?}");
        }
        assert!(matches!(find_in(directory.path(), "x"), Err(Error::Json { .. })));
        let error = unknown_in(directory.path(), "y").to_string();
        assert!(error.contains("there are x"), "{error}");
        fs::remove_file(instances.join("x")).unwrap();
        fs::create_dir(instances.join("x")).unwrap();
        assert!(matches!(find_in(directory.path(), "x"), Err(Error::Read { .. })));
    }
}
