//! The registry that the daemon of a replay asks in place of every other one.
//!
//! ```text
//! daemon ── source policy ──▶ http://127.0.0.1:<port>/v2/h/<host>/p[<port>]/<repository>/…
//!                                 manifests, configs ──▶ the registry, with this machine's credentials
//!                                 layers ──────────────▶ refused, but for the frontend's own image
//!        ── --import-cache ──▶ http://127.0.0.1:<port>/v2/c/<number>/…
//!                                 manifests, configs ──▶ the caches, whatever form they have
//!                                 layers ──────────────▶ refused
//! ```
//!
//! A source policy rewrites each `docker-image://` of the build, so that no layer can be pulled, whatever
//! the build asks for: a replay needs what images *are*, not what is in them. It also tells what each
//! tag means today.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::import::Import;
use crate::digest::Digest;
use crate::oci::media_type::OCI_MANIFEST;
use crate::oci::{Descriptor, Document, Reference};
use crate::progress::Silent;
use crate::source::{self, Manifest, Registry, Source};

/// The longest request head that is read, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// How long a layer that is asked for is not refused yet.
const GRACE: Duration = Duration::from_secs(5);

/// What is known of one repository.
struct Repository {
    registry: Registry,
    /// Whether its layers may be read: only those of a frontend, which has to run.
    layers: bool,
    /// Blobs that its manifests name: what they are, and whether they are layers.
    blobs: HashMap<Digest, (Descriptor, bool)>,
}

#[derive(Default)]
struct State {
    repositories: HashMap<String, Arc<Mutex<Repository>>>,
    resolved: BTreeMap<String, Digest>,
    refused: BTreeSet<String>,
    /// Why manifests could not be had.
    problems: BTreeSet<String>,
}

struct Shared {
    options: source::Options,
    /// Repositories of frontends, as `host/repository`.
    frontends: BTreeSet<String>,
    /// By their numbers.
    imports: Vec<Import>,
    state: Mutex<State>,
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
    pub(super) fn open(
        options: &source::Options,
        frontends: &[Reference],
        imports: Vec<Import>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let frontends = frontends.iter().map(|r| format!("{}/{}", r.registry(), r.repository())).collect();
        let shared = Arc::new(Shared {
            options: options.clone(),
            frontends,
            imports,
            state: Mutex::default(),
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

    /// The imports, as values of `--import-cache`.
    pub(super) fn imports(&self) -> Vec<String> {
        let host = self.host();
        let import = |number| format!("type=registry,ref={host}/c/{number}:cache");
        (0..self.shared.imports.len()).map(import).collect()
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

    /// Why images could not be resolved: what registries said.
    pub(super) fn problems(&self) -> Vec<String> {
        lock(&self.shared.state).problems.iter().cloned().collect()
    }

    /// Images of which a layer was asked for, and refused.
    pub(super) fn refused(&self) -> BTreeSet<String> {
        lock(&self.shared.state).refused.clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
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
        let document = match self.import(path) {
            Some(document) => Some(document),
            None => asked(path).filter(|asked| asked.kind == "manifests").map(|asked| self.manifest(&asked)),
        };
        let refusal = match asked(path) {
            _ if !matches!(method, "GET" | "HEAD") => {
                Refusal::new("405 Method Not Allowed", "UNSUPPORTED", &"a replay only reads")
            }
            _ if document.is_some() => match document {
                Some(Ok(Manifest { bytes, digest, media_type })) => {
                    write!(
                        out,
                        "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n\
                         Content-Length: {}\r\n\r\n",
                        bytes.len()
                    )?;
                    return if head_only { Ok(()) } else { out.write_all(&bytes) };
                }
                Some(Err(refusal)) => refusal,
                None => return Ok(()),
            },
            None if path.trim_end_matches('/') == "/v2" => {
                return write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{}}");
            }
            None => Refusal::new("404 Not Found", "NAME_UNKNOWN", &"no such path"),
            Some(asked) => match self.blob(&asked) {
                Ok((repository, blob)) => {
                    write!(
                        out,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
                        blob.size
                    )?;
                    if head_only {
                        return Ok(());
                    }
                    let repository = lock(&repository);
                    // The head is out: what fails now ends the connection, and the daemon sees it is short.
                    return repository.registry.blob(&blob, &mut out, &Silent).map_err(io::Error::other);
                }
                Err(refusal) => refusal,
            },
        };
        let body = serde_json::json!({"errors": [{"code": refusal.code, "message": refusal.message}]});
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            refusal.status,
            body.len()
        );
        out.write_all(head.as_bytes())?;
        if head_only { Ok(()) } else { out.write_all(body.as_bytes()) }
    }

    /// What is asked of an import: `/v2/c/<number>/manifests/…` or `/v2/c/<number>/blobs/<config>`; `None`
    /// where it is not asked for one. `Err` where it has no such thing: its layers.
    fn import(&self, path: &str) -> Option<Result<Manifest, Refusal>> {
        let (number, rest) = path.split('?').next()?.strip_prefix("/v2/c/")?.split_once('/')?;
        let import = self.imports.get(number.parse::<usize>().ok()?)?;
        let of = |bytes: &[u8], media_type: &str| Manifest {
            digest: Digest::of(bytes),
            bytes: bytes.to_owned(),
            media_type: media_type.to_owned(),
        };
        let manifest = of(&import.manifest, OCI_MANIFEST);
        let config = of(&import.config, "application/octet-stream");
        Some(match rest.split_once('/')? {
            ("manifests", name) if name == "cache" || name == manifest.digest.to_string() => Ok(manifest),
            ("blobs", name) if name == config.digest.to_string() => Ok(config),
            ("blobs", _) => Err(self.refuse("a cache")),
            _ => Err(Refusal::new("404 Not Found", "MANIFEST_UNKNOWN", &"no such manifest")),
        })
    }

    /// Refuses a layer, after some time. A daemon asks for one where a step was not found by what it stands on, to
    /// look for it by the files that it takes; at once refused, the build would end there, often before the step
    /// is known that really misses.
    fn refuse(&self, what: &str) -> Refusal {
        lock(&self.state).refused.insert(what.to_owned());
        let asked = Instant::now();
        while asked.elapsed() < GRACE && !self.ended.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
        Refusal::new("403 Forbidden", "DENIED", &"a replay downloads no layer")
    }

    fn repository(&self, name: &str) -> Result<Arc<Mutex<Repository>>, Refusal> {
        if let Some(known) = lock(&self.state).repositories.get(name) {
            return Ok(Arc::clone(known));
        }
        let invalid = |error: &dyn std::fmt::Display| Refusal::new("400 Bad Request", "NAME_INVALID", error);
        let reference = source::spec::parse_reference(name).map_err(|error| invalid(&error))?;
        let registry = Registry::open(&reference, &self.options).map_err(|error| Refusal::of(&error))?;
        let layers = self.frontends.contains(name);
        let made = Arc::new(Mutex::new(Repository { registry, layers, blobs: HashMap::new() }));
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
        let document = Document::parse(&manifest.bytes);
        if let Ok(Document::Manifest { config, layers }) = &document {
            repository.blobs.insert(config.digest, (config.clone(), false));
            for layer in layers {
                repository.blobs.entry(layer.digest).or_insert_with(|| (layer.clone(), true));
            }
        }
        if manifest.media_type.is_empty() {
            manifest.media_type = media_type(&manifest.bytes);
        }
        if asked.name.parse::<Digest>().is_err() {
            let name = format!("{}:{}", asked.repository, asked.name);
            lock(&self.state).resolved.insert(name, manifest.digest);
        }
        Ok(manifest)
    }

    fn blob(&self, asked: &Asked<'_>) -> Result<(Arc<Mutex<Repository>>, Descriptor), Refusal> {
        let repository = self.repository(&asked.repository)?;
        let known = asked.name.parse().ok().and_then(|digest: Digest| {
            let repository = lock(&repository);
            let (blob, is_layer) = repository.blobs.get(&digest)?;
            Some((blob.clone(), *is_layer && !repository.layers))
        });
        match known {
            Some((blob, false)) => Ok((repository, blob)),
            Some((_, true)) => Err(self.refuse(&asked.repository)),
            None => Err(Refusal::new("404 Not Found", "BLOB_UNKNOWN", &"no manifest names this blob")),
        }
    }
}

/// What a document says that it is; registries send it along, layouts do not.
fn media_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        #[serde(default)]
        media_type: String,
    }
    let said = serde_json::from_slice::<Typed>(bytes).map(|typed| typed.media_type).unwrap_or_default();
    if said.is_empty() { OCI_MANIFEST.to_owned() } else { said }
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
        let gate = Gate::open(&source::Options::default(), &[], Vec::new()).unwrap();
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
        let gate = Gate::open(&source::Options::default(), &[], Vec::new()).unwrap();
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
