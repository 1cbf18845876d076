//! Docker's registry on a loopback port, gone when dropped.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use warmkit::digest::Digest;

use super::{Scratch, Tools};

/// The user that [`Registry::start_with_password`] lets in.
pub const USER: &str = "warm";
/// That user's password.
pub const PASSWORD: &str = "kit";

/// Who is let in.
#[derive(Debug, Clone, Copy)]
pub struct Login {
    /// The user.
    pub user: &'static str,
    /// The password.
    pub password: &'static str,
    /// Both, as `htpasswd -nbBC 4` writes them.
    htpasswd: &'static str,
}

const WARM: Login = Login {
    user: USER,
    password: PASSWORD,
    htpasswd: "warm:$2b$04$mJZc1pMQ0y3Qrp4YWe.VWOAee0AFhXgz4dW6SK3xC5fAOvbGm9PhK\n",
};
/// The password that moto's ECR gives to the first of its accounts.
pub const ECR: Login = Login {
    user: "AWS",
    password: "123456789012-auth-token",
    htpasswd: "AWS:$2b$04$abcdefghijklmnopqrstuu/cMn6kFoLFEf9ShbIPSVtJoiKQtizZG\n",
};

/// User and password as a docker configuration has them.
pub fn secret() -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    scratch: Scratch,
    agent: ureq::Agent,
    login: Option<Login>,
}

impl Registry {
    /// Starts one that lets everybody in.
    pub fn start(tools: &Tools) -> Self {
        Self::launch(tools, None)
    }

    /// Starts one that lets only [`USER`] in.
    pub fn start_with_password(tools: &Tools) -> Self {
        Self::launch(tools, Some(WARM))
    }

    /// Starts one that lets only this user in.
    pub fn start_with_login(tools: &Tools, login: Login) -> Self {
        Self::launch(tools, Some(login))
    }

    fn launch(tools: &Tools, login: Option<Login>) -> Self {
        let scratch = Scratch::new();
        let agent = agent();
        // The port is free when it is looked up, and may be taken when it is used: try again then.
        for _ in 0..5 {
            let port = free_port();
            let child = spawn(tools, &scratch, port, login);
            let mut registry = Self { child, port, scratch: Scratch::new(), agent: agent.clone(), login };
            if registry.comes_up() {
                registry.scratch = scratch;
                return registry;
            }
        }
        let log = std::fs::read_to_string(scratch.join("registry.log")).unwrap_or_default();
        panic!("docker-registry does not come up:\n{log}");
    }

    /// Starts one that has the referrers API, which docker's has not; `says_subject` is whether it tells so
    /// to those that push. `None` when it is missing, after it said so.
    #[track_caller]
    pub fn start_with_referrers(says_subject: bool) -> Option<Self> {
        let program = match super::tools::referrers_registry() {
            Ok(program) => program,
            Err(missing) => {
                super::skip::skip(&missing);
                return None;
            }
        };
        let mut command = Command::new(program);
        if says_subject {
            command.arg("-subject");
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        Some(Self { child, port, scratch: Scratch::new(), agent: agent(), login: None })
    }

    fn comes_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if let Ok(response) = self.agent.get(self.url("")).call() {
                return response.status() == if self.login.is_some() { 401 } else { 200 };
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The reference of a tag.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host())
    }

    /// A docker configuration that has the password; for `$DOCKER_CONFIG`.
    pub fn docker_config(&self) -> std::path::PathBuf {
        let config = serde_json::json!({ "auths": { self.host(): { "auth": secret() } } });
        self.scratch.write("docker/config.json", config.to_string());
        self.scratch.join("docker")
    }

    /// Stores a blob.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) {
        let start = self.agent.post(self.url(&format!("{repository}/blobs/uploads/")));
        let response = self.authorized(start).send_empty().unwrap();
        assert_eq!(response.status(), 202, "upload of a blob to {repository}");
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let location =
            if location.starts_with('/') { format!("http://{}{location}", self.host()) } else { location };
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = self.agent.put(format!("{location}{separator}digest={}", Digest::of(bytes)));
        let response = self.authorized(put).content_type("application/octet-stream").send(bytes).unwrap();
        assert_eq!(response.status(), 201, "upload of a blob to {repository}");
    }

    /// Stores a manifest under a tag or its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let put = self.agent.put(self.url(&format!("{repository}/manifests/{tag}")));
        let response = self.authorized(put).content_type(media_type).send(bytes).unwrap();
        assert_eq!(response.status(), 201, "upload of manifest {repository}:{tag}");
    }

    /// Removes a manifest, by its digest.
    pub fn delete_manifest(&self, repository: &str, digest: &str) {
        let delete = self.agent.delete(self.url(&format!("{repository}/manifests/{digest}")));
        let response = self.authorized(delete).call().unwrap();
        assert_eq!(response.status(), 202, "removal of {repository}@{digest}");
    }

    /// Loses a blob of a repository, as a garbage collection that ran at the wrong time does.
    pub fn lose_blob(&self, repository: &str, digest: &str) {
        let delete = self.agent.delete(self.url(&format!("{repository}/blobs/{digest}")));
        let response = self.authorized(delete).call().unwrap();
        assert_eq!(response.status(), 202, "removal of blob {repository}@{digest}");
    }

    /// What daemons asked it for, `<method> <path>`, since the last time this was called, in the order of
    /// the answers.
    ///
    /// The log is written after an answer is out; one more request, waited for in the log, makes sure that
    /// it has come so far.
    pub fn requests_of_daemons(&self) -> Vec<String> {
        let log = self.log_so_far();
        let since = log.rfind("/v2/marker-").unwrap_or_default();
        log[since..].lines().skip(1).filter_map(request_of_a_daemon).collect()
    }

    /// The log of requests up to now, without the marker that ends it.
    fn log_so_far(&self) -> String {
        let marker =
            format!("marker-{:?}", Instant::now()).replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let _ = self.agent.get(self.url(&format!("{marker}/manifests/none"))).call();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let log = std::fs::read_to_string(self.scratch.join("registry.log")).unwrap();
            if let Some((before, _)) = log.split_once(&marker) {
                return before.to_owned();
            }
            assert!(Instant::now() < deadline, "the registry logs no requests:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What anybody asked it for so far, as [`Registry::requests_of_daemons`] gives it.
    pub fn requests(&self) -> Vec<String> {
        let log = self.log_so_far();
        let request = |line: &str| line.split('"').nth(1)?.strip_suffix(" HTTP/1.1").map(str::to_owned);
        log.lines().filter_map(request).filter(|request| !request.contains("/v2/marker-")).collect()
    }

    /// Bytes of manifests and blobs that it sent so far.
    pub fn sent(&self) -> u64 {
        let sent = |line: &str| {
            // As for [`request_of_a_daemon`].
            let (request, rest) = line.split_once(" \"GET ")?.1.split_once("\" ")?;
            let bytes = rest.split(' ').nth(1)?.parse::<u64>().ok()?;
            (!request.starts_with("/v2/marker-")).then_some(bytes)
        };
        self.log_so_far().lines().filter_map(sent).sum()
    }

    /// The bytes of a manifest, by tag or digest, and its media type.
    pub fn manifest(&self, repository: &str, tag: &str) -> (Vec<u8>, String) {
        let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        let get = self.agent.get(self.url(&format!("{repository}/manifests/{tag}"))).header("accept", accept);
        let mut response = self.authorized(get).call().unwrap();
        assert_eq!(response.status(), 200, "manifest {repository}:{tag}");
        let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        (response.body_mut().read_to_vec().unwrap(), media_type)
    }

    /// The bytes of a blob.
    pub fn blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        let get = self.agent.get(self.url(&format!("{repository}/blobs/{digest}")));
        let mut response = self.authorized(get).call().unwrap();
        assert_eq!(response.status(), 200, "blob {repository}@{digest}");
        response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap()
    }

    /// Copies an image manifest with its blobs from `from`.
    pub fn copy(&self, from: &Self, repository: &str, tag: &str) {
        let (bytes, media_type) = from.manifest(repository, tag);
        let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        for descriptor in layers.iter().chain([&manifest["config"]]) {
            self.put_blob(repository, &from.blob(repository, descriptor["digest"].as_str().unwrap()));
        }
        self.put_manifest(repository, tag, &media_type, &bytes);
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}", self.host())
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let Some(Login { user, password, .. }) = self.login else { return request };
        let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        request.header("authorization", format!("Basic {token}"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `GET /v2/…` of a line of the access log, if it was a daemon that asked.
fn request_of_a_daemon(line: &str) -> Option<String> {
    // <host> - - [<time>] "<method> <path> HTTP/1.1" <status> <bytes> "<referer>" "<user agent>"
    let mut quoted = line.split('"').skip(1).step_by(2);
    let (request, agent) = (quoted.next()?, quoted.nth(1)?);
    let request = request.strip_suffix(" HTTP/1.1")?;
    (agent.starts_with("buildkit/") || agent.starts_with("containerd/")).then(|| request.to_owned())
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent()
}

/// A loopback port that nobody listens on right now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(tools: &Tools, scratch: &Scratch, port: u16, login: Option<Login>) -> Child {
    let auth = if let Some(login) = login {
        let file = scratch.write("htpasswd", login.htpasswd);
        format!("auth:\n  htpasswd:\n    realm: warmkit tests\n    path: {}\n", file.display())
    } else {
        String::new()
    };
    let config = format!(
        "version: 0.1\n\
         log:\n  level: warn\n\
         storage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: 127.0.0.1:{port}\n{auth}",
        scratch.join("storage").display(),
    );
    let config = scratch.write("registry.yml", config);
    let log = std::fs::File::create(scratch.join("registry.log")).unwrap();
    Command::new(&tools.registry)
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
