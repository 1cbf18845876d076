//! Questions to docker, through its client: it knows contexts, sockets and credentials as its user does.

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Error;
use crate::daemon::{on_path, output_within};
use crate::fsutil;

/// How long docker may take for an answer: it starts by the first one where a socket waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where dockerd listens if it is not told otherwise.
pub(super) const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// A docker daemon, as a node of buildx names it.
#[derive(Debug, Clone)]
pub struct Docker {
    /// A context, or where the daemon listens; empty: what docker's client takes by itself.
    endpoint: String,
}

/// What docker says of its daemon.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Info {
    pub(super) docker_root_dir: PathBuf,
    #[serde(default)]
    security_options: Option<Vec<String>>,
}

impl Info {
    /// Whether its containers run in a user namespace, with owners of its own.
    pub(super) fn is_rootless(&self) -> bool {
        self.security_options
            .iter()
            .flatten()
            .any(|option| option.split(',').any(|part| part == "name=rootless"))
    }
}

/// What docker says of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Container {
    pub(super) args: Vec<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) config: ContainerConfig,
    state: State,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerConfig {
    user: String,
    entrypoint: Option<Vec<String>>,
    env: Option<Vec<String>>,
}

impl ContainerConfig {
    /// A variable that its processes start with, where it says something.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let mut all = self.env.iter().flatten().rev();
        let value = all.find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))?;
        Some(value).filter(|value| !value.is_empty())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    running: bool,
    paused: bool,
    restarting: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Mount {
    pub(super) name: String,
    #[serde(rename = "Type")]
    pub(super) kind: String,
    pub(super) source: PathBuf,
    pub(super) destination: PathBuf,
}

impl Container {
    /// Whether its processes are there, or may be at any moment.
    pub(super) fn is_running(&self) -> bool {
        self.state.running || self.state.paused || self.state.restarting
    }

    /// Whether it is one of the `rootless` images.
    pub(super) fn is_rootless(&self) -> bool {
        let user = self.config.user.split(':').next().unwrap_or_default();
        let wrapped = |word: &String| word.rsplit('/').next() == Some("rootlesskit");
        !matches!(user, "" | "0" | "root") || self.config.entrypoint.iter().flatten().any(wrapped)
    }
}

/// What docker says of a volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Volume {
    pub(super) driver: String,
    pub(super) mountpoint: PathBuf,
    #[serde(default)]
    options: Option<std::collections::BTreeMap<String, String>>,
}

impl Volume {
    /// What docker mounts as its content while a container uses it, if it does.
    pub(super) fn device(&self) -> Option<&str> {
        self.options.as_ref()?.get("device").map(String::as_str)
    }
}

impl Docker {
    /// The docker of a node.
    pub fn at(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned() }
    }

    /// docker's client, talking to this daemon.
    ///
    /// # Errors
    /// There is no docker in `$PATH`.
    pub fn command(&self) -> Result<Command, Error> {
        let mut command = Command::new(on_path("docker").ok_or(Error::NoDocker)?);
        if self.endpoint.contains("://") {
            command.arg("--host").arg(&self.endpoint);
        } else if !self.endpoint.is_empty() {
            command.arg("--context").arg(&self.endpoint);
        }
        Ok(command)
    }

    /// What docker answers.
    ///
    /// # Errors
    /// It does not, or not within a minute.
    pub fn ask(&self, arguments: &[&str]) -> Result<String, Error> {
        output_within(self.command()?.args(arguments), PATIENCE).map_err(Error::Docker)
    }

    fn ask_json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, Error> {
        let said = self.ask(arguments)?;
        serde_json::from_str(&said)
            .map_err(|error| Error::Answer { question: arguments.join(" "), detail: error.to_string() })
    }

    /// Where the daemon listens, as a URL.
    pub(super) fn host(&self) -> Result<String, Error> {
        if self.endpoint.contains("://") {
            return Ok(self.endpoint.clone());
        }
        if on_path("docker").is_none() {
            // What its client would do, as far as that needs no client.
            let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
            return match (self.endpoint.as_str(), set("DOCKER_HOST"), set("DOCKER_CONTEXT").as_deref()) {
                ("", Some(host), _) => Ok(host),
                ("", None, None | Some("default")) | ("default", None, _) => Ok(DEFAULT_HOST.to_owned()),
                _ => Err(Error::NoDocker),
            };
        }
        let mut question = vec!["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"];
        if !self.endpoint.is_empty() {
            question.extend(["--", &self.endpoint]);
        }
        // Contexts are files of the client: this asks no daemon.
        let said = Self::at("").ask(&question)?.trim().to_owned();
        if !said.contains("://") {
            // podman's does nothing, and calls that a success.
            return Err(Error::Answer {
                question: question.join(" "),
                detail: format!("no address: {said:?}"),
            });
        }
        Ok(said)
    }

    /// Whether a daemon of this machine listens; one elsewhere is an error.
    pub(super) fn is_up(&self, builder: &str) -> Result<bool, Error> {
        let host = self.host()?;
        let Some(path) = host.strip_prefix("unix://") else {
            return Err(Error::Remote { builder: builder.to_owned(), host });
        };
        match UnixStream::connect(path) {
            Ok(_) => Ok(true),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(false)
            }
            Err(source) => Err(Error::Read { path: path.into(), source }),
        }
    }

    pub(super) fn info(&self) -> Result<Info, Error> {
        self.ask_json(&["info", "--format", "{{json .}}"])
    }

    /// The container of that name, if there is one.
    pub(super) fn container(&self, name: &str) -> Result<Option<Container>, Error> {
        let all = self.ask(&["container", "ls", "--all", "--format", "{{.Names}}"])?;
        // With links, a container has several names.
        if !all.lines().any(|names| names.split(',').any(|one| one == name)) {
            return Ok(None);
        }
        self.ask_json(&["container", "inspect", "--format", "{{json .}}", "--", name]).map(Some)
    }

    /// Those running containers that use the volume `name`.
    pub(super) fn users_of(&self, name: &str) -> Result<Vec<String>, Error> {
        let filter = format!("volume={name}");
        let said = self.ask(&["container", "ls", "--filter", &filter, "--format", "{{.Names}}"])?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// The names of all its volumes.
    pub(super) fn volumes(&self) -> Result<Vec<String>, Error> {
        let said = self.ask(&["volume", "ls", "--format", "{{.Name}}"])?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// The volume of that name, if there is one.
    pub(super) fn volume(&self, name: &str) -> Result<Option<Volume>, Error> {
        if !self.volumes()?.iter().any(|one| one == name) {
            return Ok(None);
        }
        self.ask_json(&["volume", "inspect", "--format", "{{json .}}", "--", name]).map(Some)
    }

    pub(super) fn make_volume(&self, name: &str) -> Result<(), Error> {
        self.ask(&["volume", "create", "--", name]).map(drop)
    }

    pub(super) fn remove_volume(&self, name: &str) -> Result<(), Error> {
        self.ask(&["volume", "rm", "--", name]).map(drop)
    }

    /// A file of a container, if it has one there.
    pub(super) fn file_of(&self, container: &str, path: &str) -> Result<Option<String>, Error> {
        let scratch = fsutil::temporary_directory("warmkit-", &env::temp_dir())
            .map_err(|source| Error::Read { path: env::temp_dir(), source })?;
        let file = scratch.path().join("file");
        let from = format!("{container}:{path}");
        let mut copy = self.command()?;
        // The container was just there: what fails is the file.
        let _ = output_within(copy.args(["cp", "--follow-link", "--"]).arg(from).arg(&file), PATIENCE);
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path: path.into(), source }),
        }
    }
}

/// Whether docker's client has a context `name`.
pub(super) fn is_context(name: &str) -> bool {
    name == "default"
        || on_path("docker").is_some_and(|docker| {
            let mut command = Command::new(docker);
            command.args(["context", "inspect", "--format", "{{.Name}}", "--", name]);
            output_within(&mut command, PATIENCE).is_ok_and(|said| said.trim() == name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_may_run_do() {
        let cases = [
            (r#"{"State":{"Running":true,"Paused":false,"Restarting":false}}"#, true),
            (r#"{"State":{"Running":true,"Paused":true}}"#, true),
            (r#"{"State":{"Running":false,"Restarting":true}}"#, true),
            (r#"{"State":{"Status":"exited","Running":false}}"#, false),
            (r#"{"State":{"Status":"created","Running":false},"Mounts":[],"Args":[]}"#, false),
        ];
        for (said, expected) in cases {
            assert_eq!(serde_json::from_str::<Container>(said).unwrap().is_running(), expected, "{said}");
        }
    }

    #[test]
    fn rootless_images_are_known() {
        let cases = [
            (r#"{"Config":{"User":"","Entrypoint":["buildkitd"]}}"#, false),
            (r#"{"Config":{"User":"0:0","Entrypoint":null}}"#, false),
            (r#"{"Config":{"User":"1000:1000","Entrypoint":["buildkitd"]}}"#, true),
            (r#"{"Config":{"User":"","Entrypoint":["/usr/bin/rootlesskit","buildkitd"]}}"#, true),
        ];
        for (said, expected) in cases {
            assert_eq!(serde_json::from_str::<Container>(said).unwrap().is_rootless(), expected, "{said}");
        }
    }

    #[test]
    fn variables_of_containers_are_read() {
        let cases = [
            (r#"{"Config":{"Env":["AB=/ab","A=/a","PATH=/bin"]}}"#, Some("/a")),
            (r#"{"Config":{"Env":["A=/a","A=/b"]}}"#, Some("/b")),
            (r#"{"Config":{"Env":["A=","AB=/ab"]}}"#, None),
            (r#"{"Config":{"Env":null}}"#, None),
        ];
        for (said, expected) in cases {
            let container = serde_json::from_str::<Container>(said).unwrap();
            assert_eq!(container.config.variable("A"), expected, "{said}");
        }
    }

    #[test]
    fn a_rootless_docker_is_known() {
        let cases = [
            (
                r#"{"DockerRootDir":"/d","SecurityOptions":["name=seccomp,profile=default","name=rootless"]}"#,
                true,
            ),
            (r#"{"DockerRootDir":"/d","SecurityOptions":["name=seccomp,profile=default"]}"#, false),
            (r#"{"DockerRootDir":"/d","SecurityOptions":null}"#, false),
        ];
        for (said, expected) in cases {
            assert_eq!(serde_json::from_str::<Info>(said).unwrap().is_rootless(), expected, "{said}");
        }
    }

    #[test]
    fn a_docker_elsewhere_is_refused() {
        for host in ["tcp://192.0.2.1:2376", "ssh://ci@builds.example", "npipe:////./pipe/docker_engine"] {
            let error = Docker::at(host).is_up("ci").unwrap_err();
            assert!(matches!(&error, Error::Remote { host: named, .. } if named == host), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let docker = Docker::at(&format!("unix://{}", socket.display()));
        assert!(!docker.is_up("ci").unwrap());
        let listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(docker.is_up("ci").unwrap());
        // What a daemon leaves that was killed.
        drop(listening);
        assert!(!docker.is_up("ci").unwrap());
    }
}
