//! The registry that the daemon of a replay asks in place of every other one.
//!
//! ```text
//! daemon ── source policy ──▶ http://127.0.0.1:<port>/v2/h/<host>/p[<port>]/<repository>/…
//!                                 manifests, configs ──▶ the registry, with this machine's credentials
//!                                 layers ──────────────▶ refused, but for the frontend's own image
//!        ── --import-cache ──▶ http://127.0.0.1:<port>/cache/…   (as S3 does)
//!                                 manifests/records ───▶ the caches, whatever form they have
//!                                 blobs/… ─────────────▶ refused
//! ```
//!
//! A source policy rewrites each `docker-image://` of the build, so that no layer can be pulled, whatever
//! the build asks for: a replay needs what images *are*, not what is in them. It also tells what each
//! tag means today.
//!
//! A layer is not refused at once: [`Waiting`] says when.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::daemon::Graph;
use crate::digest::Digest;
use crate::oci::manifest::media_type;
use crate::oci::media_type::OCI_MANIFEST;
use crate::oci::{Descriptor, Document, Platform};
use crate::progress::Silent;
use crate::source::{self, Manifest, Registry, Source};

use super::waiting::Waiting;

/// The longest request head that is read, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// What is known of one repository.
struct Repository {
    registry: Registry,
    /// Blobs that its manifests name: what they are, and whether they are layers.
    blobs: HashMap<Digest, (Descriptor, bool)>,
    /// The tags that manifests and indexes were asked for by.
    tags: HashMap<Digest, String>,
    /// What indexes list: in which index, and for which platform.
    listed: HashMap<Digest, (Digest, Platform)>,
    /// The images that were asked for: manifests, or indexes with a platform.
    used: HashSet<(Digest, Option<Platform>)>,
}

impl Repository {
    fn new(registry: Registry) -> Self {
        Self {
            registry,
            blobs: HashMap::new(),
            tags: HashMap::new(),
            listed: HashMap::new(),
            used: HashSet::new(),
        }
    }

    /// Takes down what a document names, and what it is for.
    fn learn(&mut self, digest: Digest, tag: Option<&str>, document: &Document) {
        if let Some(tag) = tag {
            self.tags.insert(digest, tag.to_owned());
        }
        match document {
            Document::Manifest { config, layers } => {
                self.blobs.insert(config.digest, (config.clone(), false));
                for layer in layers {
                    self.blobs.entry(layer.digest).or_insert_with(|| (layer.clone(), true));
                }
                self.used.insert(match self.listed.get(&digest) {
                    Some((index, platform)) => (*index, Some(platform.clone())),
                    None => (digest, None),
                });
            }
            Document::Index { manifests } => {
                for manifest in manifests {
                    if let Some(platform) = &manifest.platform {
                        self.listed.insert(manifest.digest, (digest, platform.clone()));
                    }
                }
            }
        }
    }
}

/// An image that the daemon asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Used {
    /// `<host>[:<port>]/<repository>[:<tag>]@<digest>`; the digest is that of an index, where there is one.
    pub(super) image: String,
    /// Which of an index; `None`: it is no index.
    pub(super) platform: Option<Platform>,
    /// Whether it is that of a frontend.
    pub(super) frontend: bool,
}

#[derive(Default)]
struct State {
    repositories: HashMap<String, Arc<Mutex<Repository>>>,
    resolved: BTreeMap<String, Digest>,
    refused: BTreeSet<String>,
    /// Repositories of frontends, as `host/repository`: they run, so their layers are given.
    frontends: BTreeSet<String>,
    /// Why manifests could not be had.
    problems: BTreeSet<String>,
}

struct Shared {
    options: source::Options,
    /// The config of the cache that is imported.
    import: Vec<u8>,
    imported: AtomicBool,
    state: Mutex<State>,
    waiting: Waiting,
    ended: AtomicBool,
}

/// A running gate; ends when dropped.
pub(super) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// Opens it on loopback, at a port that the kernel picks.
    pub(super) fn open(options: &source::Options, import: Vec<u8>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            options: options.clone(),
            import,
            imported: AtomicBool::new(false),
            state: Mutex::default(),
            waiting: Waiting::new(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let serving = Arc::clone(&serving);
                // A client that goes away is its own business.
                thread::spawn(move || serving.serve(&stream));
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Its host and port.
    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The import, as a value of `--import-cache`.
    pub(super) fn import(&self) -> String {
        format!(
            "type=s3,endpoint_url=http://{},use_path_style=true,bucket=cache,name=records,region=none,\
             access_key_id=none,secret_access_key=none",
            self.host()
        )
    }

    /// Whether the import was asked for.
    pub(super) fn was_imported(&self) -> bool {
        self.shared.imported.load(Ordering::Relaxed)
    }

    /// When layers are refused.
    pub(super) fn waiting(&self) -> &Waiting {
        &self.shared.waiting
    }

    /// The daemon said this of a build by now.
    pub(super) fn heard(&self, graph: &Graph) {
        self.shared.waiting.heard(graph.told(), graph.is_asking());
        // The image of a frontend alone has no other name than its own: those of steps are called `[…] FROM …`.
        let images = graph.sources().filter_map(|source| source.own_name.strip_prefix("docker-image://"));
        for image in images {
            if let Ok(reference) = source::spec::parse_reference(&self.real_name(image)) {
                let name = format!("{}/{}", reference.registry(), reference.repository());
                lock(&self.shared.state).frontends.insert(name);
            }
        }
    }

    /// The source policy that sends every image this way.
    ///
    /// What is sent already stays as it is, since the daemon applies a policy until nothing changes.
    pub(super) fn policy(&self) -> String {
        let host = self.host();
        let escaped = host.replace('.', "\\.");
        let pattern =
            format!("^docker-image://(?:{escaped}/h/([^/]+)/p([0-9]*)/(.*)|([^/:]+)(?::([0-9]+))?/(.*))$");
        let target = format!("docker-image://{host}/h/${{1}}${{4}}/p${{2}}${{5}}/${{3}}${{6}}");
        serde_json::json!({
            "version": 1,
            "rules": [{
                "action": "CONVERT",
                "selector": {"identifier": pattern, "match_type": "REGEX"},
                "updates": {"identifier": target},
            }],
        })
        .to_string()
    }

    /// The real name of what a daemon calls by the gate's: `127.0.0.1:<port>/h/docker.io/p/library/alpine`.
    pub(super) fn real_name(&self, text: &str) -> String {
        let prefix = format!("{}/h/", self.host());
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(&prefix) {
            out.push_str(before);
            match after.split_once("/p").and_then(|(host, tail)| Some((host, tail.split_once('/')?))) {
                Some((host, (port, tail))) if port.bytes().all(|b| b.is_ascii_digit()) => {
                    out.push_str(host);
                    if !port.is_empty() {
                        out.push(':');
                        out.push_str(port);
                    }
                    out.push('/');
                    rest = tail;
                }
                _ => rest = after,
            }
        }
        out.push_str(rest);
        out
    }

    /// What was asked for by a tag, with the digest that it means.
    pub(super) fn resolved(&self) -> BTreeMap<String, Digest> {
        lock(&self.shared.state).resolved.clone()
    }

    /// The images that the daemon asked for, in no order.
    pub(super) fn used(&self) -> Vec<Used> {
        let State { repositories, frontends, .. } = &*lock(&self.shared.state);
        let (repositories, frontends) = (repositories.clone(), frontends.clone());
        let mut all = Vec::new();
        for (name, repository) in repositories {
            let repository = lock(&repository);
            for (digest, platform) in &repository.used {
                let tag = repository.tags.get(digest).map(|tag| format!(":{tag}")).unwrap_or_default();
                all.push(Used {
                    image: format!("{name}{tag}@{digest}"),
                    platform: platform.clone(),
                    frontend: frontends.contains(&name),
                });
            }
        }
        all
    }

    /// Why images could not be resolved: what registries said.
    pub(super) fn problems(&self) -> Vec<String> {
        lock(&self.shared.state).problems.iter().cloned().collect()
    }

    /// Images of which a layer was asked for, and not given.
    pub(super) fn refused(&self) -> BTreeSet<String> {
        lock(&self.shared.state).refused.clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.waiting.end();
        // Wakes the thread, which waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is asked for: `/v2/h/<host>/p<port>/<repository>/<kind>/<name>`.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    /// `<host>[:<port>]/<repository>`.
    repository: String,
    /// `manifests` or `blobs`.
    kind: &'a str,
    /// A tag or digest.
    name: &'a str,
}

fn asked(path: &str) -> Option<Asked<'_>> {
    let path = path.split('?').next()?.strip_prefix("/v2/h/")?;
    let (host, rest) = path.split_once("/p")?;
    let (port, rest) = rest.split_once('/')?;
    let (rest, name) = rest.rsplit_once('/')?;
    let (repository, kind) = rest.rsplit_once('/')?;
    let sound = !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !repository.is_empty();
    if !sound || !matches!(kind, "manifests" | "blobs") {
        return None;
    }
    let colon = if port.is_empty() { "" } else { ":" };
    Some(Asked { repository: format!("{host}{colon}{port}/{repository}"), kind, name })
}

/// Why nothing comes, as a registry says it.
struct Refusal {
    status: &'static str,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: &'static str, code: &'static str, message: &dyn std::fmt::Display) -> Self {
        Self { status, code, message: message.to_string() }
    }

    /// As the registry behind the gate has it.
    fn of(error: &source::Error) -> Self {
        match error.class() {
            source::ErrorClass::Auth => Self::new("403 Forbidden", "DENIED", error),
            _ if matches!(error, source::Error::NoSuchManifest { .. }) => {
                Self::new("404 Not Found", "MANIFEST_UNKNOWN", error)
            }
            _ => Self::new("400 Bad Request", "UNSUPPORTED", error),
        }
    }
}

/// What there is to give.
enum Found<'a> {
    Document { bytes: Cow<'a, [u8]>, headers: String },
    Blob(Arc<Mutex<Repository>>, Descriptor),
}

impl Shared {
    fn serve(&self, stream: &TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
        let mut reader = BufReader::new(stream);
        while let Some((method, path)) = request(&mut reader) {
            if self.ended.load(Ordering::Relaxed) || self.answer(stream, &method, &path).is_err() {
                return;
            }
        }
    }

    fn answer(&self, mut out: &TcpStream, method: &str, path: &str) -> io::Result<()> {
        let head_only = method == "HEAD";
        let path = path.split('?').next().unwrap_or_default();
        let found = match method {
            "GET" | "HEAD" => self.find(path),
            _ => Err(Refusal::new("405 Method Not Allowed", "UNSUPPORTED", &"a replay only reads")),
        };
        match found {
            Ok(Found::Document { bytes, headers }) => {
                write!(out, "HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", bytes.len())?;
                if head_only { Ok(()) } else { out.write_all(&bytes) }
            }
            Ok(Found::Blob(repository, blob)) => {
                let kind = "application/octet-stream";
                let length = blob.size;
                write!(out, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")?;
                if head_only {
                    return Ok(());
                }
                let _answering = self.waiting.answering();
                let repository = lock(&repository);
                // The head is out: what fails now ends the connection, and the daemon sees it is short.
                repository.registry.blob(&blob, &mut out, &Silent).map_err(io::Error::other)
            }
            Err(Refusal { status, code, message }) => {
                let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
                let (kind, length) = ("application/json", body.len());
                write!(out, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")?;
                if head_only { Ok(()) } else { out.write_all(body.as_bytes()) }
            }
        }
    }

    fn find(&self, path: &str) -> Result<Found<'_>, Refusal> {
        if path == "/cache/manifests/records" {
            self.imported.store(true, Ordering::Relaxed);
            return Ok(Found::Document { bytes: Cow::Borrowed(&self.import), headers: String::new() });
        }
        if path.starts_with("/cache/blobs/") {
            return match self.wait("a cache", path, || false) {
                Ok(()) => Err(Refusal::new("404 Not Found", "BLOB_UNKNOWN", &"a cache has no layers here")),
                Err(refusal) => Err(refusal),
            };
        }
        if path.trim_end_matches('/') == "/v2" {
            return Ok(Found::Document { bytes: Cow::Borrowed(b"{}"), headers: String::new() });
        }
        let missing = || Refusal::new("404 Not Found", "NAME_UNKNOWN", &"no such path");
        let asked = asked(path).ok_or_else(missing)?;
        if asked.kind == "manifests" {
            let _answering = self.waiting.answering();
            let Manifest { bytes, digest, media_type } = self.manifest(&asked)?;
            let headers = format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n");
            return Ok(Found::Document { bytes: Cow::Owned(bytes), headers });
        }
        let (repository, blob) = self.blob(&asked)?;
        Ok(Found::Blob(repository, blob))
    }

    /// Keeps who asks for a layer of `image` waiting until it may be had, or is refused.
    fn wait(&self, image: &str, path: &str, may_be_had: impl Fn() -> bool) -> Result<(), Refusal> {
        lock(&self.state).refused.insert(image.to_owned());
        if self.waiting.wait(path, may_be_had) {
            lock(&self.state).refused.remove(image);
            return Ok(());
        }
        Err(Refusal::new("403 Forbidden", "DENIED", &"a replay downloads no layer"))
    }

    fn repository(&self, name: &str) -> Result<Arc<Mutex<Repository>>, Refusal> {
        if let Some(known) = lock(&self.state).repositories.get(name) {
            return Ok(Arc::clone(known));
        }
        let invalid = |error: &dyn std::fmt::Display| Refusal::new("400 Bad Request", "NAME_INVALID", error);
        let reference = source::spec::parse_reference(name).map_err(|error| invalid(&error))?;
        let registry = Registry::open(&reference, &self.options).map_err(|error| Refusal::of(&error))?;
        let made = Arc::new(Mutex::new(Repository::new(registry)));
        Ok(Arc::clone(lock(&self.state).repositories.entry(name.to_owned()).or_insert(made)))
    }

    fn manifest(&self, asked: &Asked<'_>) -> Result<Manifest, Refusal> {
        let repository = self.repository(&asked.repository)?;
        let mut repository = lock(&repository);
        let manifest = if let Ok(digest) = asked.name.parse() {
            repository.registry.manifest(Some(&digest), &Silent)
        } else {
            let tagged = format!("{}:{}", asked.repository, asked.name);
            source::spec::parse_reference(&tagged)
                .map_err(source::Error::from)
                .and_then(|reference| Registry::open(&reference, &self.options))
                .and_then(|registry| registry.manifest(None, &Silent))
        };
        let mut manifest = manifest.map_err(|error| {
            // A daemon asks by HEAD first, so it does not hear why.
            lock(&self.state).problems.insert(format!("{}: {error}", asked.repository));
            Refusal::of(&error)
        })?;
        let tag = asked.name.parse::<Digest>().is_err().then_some(asked.name);
        if let Ok(document) = Document::parse(&manifest.bytes) {
            repository.learn(manifest.digest, tag, &document);
        }
        if manifest.media_type.is_empty() {
            let said = media_type(&manifest.bytes);
            manifest.media_type = said.unwrap_or_else(|| OCI_MANIFEST.to_owned());
        }
        if let Some(tag) = tag {
            let name = format!("{}:{tag}", asked.repository);
            lock(&self.state).resolved.insert(name, manifest.digest);
        }
        Ok(manifest)
    }

    fn blob(&self, asked: &Asked<'_>) -> Result<(Arc<Mutex<Repository>>, Descriptor), Refusal> {
        let repository = self.repository(&asked.repository)?;
        let known = asked.name.parse().ok().and_then(|digest: Digest| {
            let repository = lock(&repository);
            let (blob, is_layer) = repository.blobs.get(&digest)?;
            Some((blob.clone(), *is_layer))
        });
        let unknown = || Refusal::new("404 Not Found", "BLOB_UNKNOWN", &"no manifest names this blob");
        let (blob, is_layer) = known.ok_or_else(unknown)?;
        let is_frontend = || lock(&self.state).frontends.contains(&asked.repository);
        if is_layer && !is_frontend() {
            self.wait(&asked.repository, &format!("{}/{}", asked.repository, asked.name), is_frontend)?;
        }
        Ok((repository, blob))
    }
}

/// Reads the head of a request, and gives its method and path; `None` when there is none.
fn request(reader: &mut BufReader<&TcpStream>) -> Option<(String, String)> {
    let mut head = reader.by_ref().take(MAX_HEAD);
    let mut line = String::new();
    head.read_line(&mut line).ok().filter(|&length| length > 0)?;
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    loop {
        let mut header = String::new();
        if head.read_line(&mut header).ok()? == 0 {
            return None;
        }
        if header.trim_end().is_empty() {
            return Some((method, path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_the_real_repository() {
        let cases = [
            ("/v2/h/docker.io/p/library/alpine/manifests/3.20", "docker.io/library/alpine", "3.20"),
            ("/v2/h/127.0.0.1/p5000/a/b/c/blobs/sha256:0", "127.0.0.1:5000/a/b/c", "sha256:0"),
            ("/v2/h/ghcr.io/p/pp/p5/manifests/x?ns=y", "ghcr.io/pp/p5", "x"),
        ];
        for (path, repository, name) in cases {
            let found = asked(path).unwrap();
            assert_eq!((found.repository.as_str(), found.name), (repository, name), "{path}");
        }
        for path in ["/v2/", "/v2/h/x/manifests/y", "/v2/h/x/pa/b/manifests/y", "/v2/h/x/p/b/tags/list"] {
            assert_eq!(asked(path), None, "{path}");
        }
    }

    #[test]
    fn names_of_the_gate_become_real_ones_again() {
        let gate = Gate::open(&source::Options::default(), Vec::new()).unwrap();
        let host = gate.host();
        let cases = [
            (
                format!("[1/2] FROM {host}/h/docker.io/p/library/alpine:3@sha256:0"),
                "[1/2] FROM docker.io/library/alpine:3@sha256:0",
            ),
            (format!("{host}/h/127.0.0.1/p5000/base and {host}/h/a.b/p/c"), "127.0.0.1:5000/base and a.b/c"),
            ("RUN true".to_owned(), "RUN true"),
        ];
        for (text, expected) in cases {
            assert_eq!(gate.real_name(&text), expected);
        }
    }

    #[test]
    fn what_no_manifest_named_is_not_there() {
        let gate = Gate::open(&source::Options::default(), Vec::new()).unwrap();
        let url = format!("http://{}/v2", gate.host());
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let digest = Digest::of(b"x");
        let cases = [
            (format!("{url}/"), 200),
            (format!("{url}/h/127.0.0.1/p1/base/blobs/{digest}"), 404),
            (format!("{url}/_catalog"), 404),
        ];
        for (url, status) in cases {
            assert_eq!(agent.get(&url).call().unwrap().status(), status, "{url}");
        }
        assert!(gate.resolved().is_empty() && gate.refused().is_empty());
    }
}
