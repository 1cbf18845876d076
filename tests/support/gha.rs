//! The cache service of GitHub Actions on loopback: both versions of its protocol, and the storage that
//! its signed addresses lead to. Real daemons export to it and import from it, which is what says that it
//! is one.
//!
//! ```text
//! version 2  POST /twirp/github.actions.results.api.v1.CacheService/CreateCacheEntry
//!            PUT  /storage/<entry>?sig=…[&comp=block&blockid=…][&comp=blocklist]     as Azure's
//!            POST …/FinalizeCacheEntryUpload      POST …/GetCacheEntryDownloadURL
//!            GET  /storage/<entry>?sig=…
//! version 1  POST /_apis/artifactcache/caches     PATCH and POST /_apis/artifactcache/caches/<entry>
//!            GET  /_apis/artifactcache/cache?keys=…&version=…
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The service, as long as the test's process runs.
#[derive(Debug, Clone)]
pub struct Actions {
    url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they were reserved.
    entries: Vec<Entry>,
    tokens: Vec<String>,
    /// Signatures handed out, each with its entry and whether it is for writing.
    signatures: BTreeMap<String, (usize, bool)>,
    /// How often storage refuses a signature that is good.
    refusals: u32,
    /// Where signed addresses lead, where not here.
    elsewhere: Option<String>,
}

#[derive(Debug, Default)]
struct Entry {
    key: String,
    version: String,
    bytes: Vec<u8>,
    blocks: BTreeMap<String, Vec<u8>>,
    finished: bool,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    fn json(status: u16, body: &Value) -> Self {
        Self {
            headers: vec![("content-type", "application/json".into())],
            ..Self::new(status, body.to_string())
        }
    }
}

impl Actions {
    /// Starts one; the kernel picks its port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let actions = Self { url, state: Arc::default() };
        let served = actions.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(&stream));
            }
        });
        actions
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The token of a job that may write to the first of these refs, and read all of them.
    pub fn token(&self, refs: &[&str]) -> String {
        let scopes: Vec<_> = refs
            .iter()
            .enumerate()
            .map(|(at, name)| json!({ "Scope": name, "Permission": if at == 0 { 3 } else { 1 } }))
            .collect();
        let scopes = Value::from(scopes).to_string();
        let claims = json!({ "ac": scopes, "nbf": 1_700_000_000, "exp": 4_000_000_000_u64 }).to_string();
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.c2ln", encode(r#"{"alg":"HS256","typ":"JWT"}"#), encode(&claims));
        self.lock().tokens.push(token.clone());
        token
    }

    /// The keys of all entries that were finished.
    pub fn keys(&self) -> Vec<String> {
        self.lock().entries.iter().filter(|entry| entry.finished).map(|entry| entry.key.clone()).collect()
    }

    /// Forgets the entries whose keys begin so.
    pub fn forget(&self, prefix: &str) {
        for entry in &mut self.lock().entries {
            entry.finished &= !entry.key.starts_with(prefix);
        }
    }

    /// Has storage say so often that a signature has run out.
    pub fn let_signatures_run_out(&self, times: u32) {
        self.lock().refusals = times;
    }

    /// Has signed addresses lead to another server.
    pub fn lead_to(&self, base: &str) {
        self.lock().elsewhere = Some(base.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut writer = stream;
        // A client that goes away ends the connection; whatever it misses, its test notices.
        while let Some(request) = read_request(&mut reader, stream) {
            let Answer { status, headers, body } = self.answer(&request);
            let mut head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in &headers {
                write!(head, "{name}: {value}\r\n").unwrap();
            }
            head.push_str("\r\n");
            if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let mut state = self.lock();
        if let Some(entry) = request.path.strip_prefix("/storage/") {
            return state.storage(entry, request);
        }
        let shown = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if !shown.is_some_and(|token| state.tokens.iter().any(|known| known == token)) {
            return Answer::json(401, &json!({ "code": "unauthenticated", "msg": "bad token" }));
        }
        let body = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let service = "/twirp/github.actions.results.api.v1.CacheService/";
        if let Some(verb) = request.path.strip_prefix(service).filter(|_| request.method == "POST") {
            return match verb {
                "CreateCacheEntry" => match state.reserve(text("key"), text("version")) {
                    Some(entry) => {
                        let url = state.sign(&self.url, entry, true);
                        Answer::json(200, &json!({ "ok": true, "signed_upload_url": url }))
                    }
                    None => Answer::json(409, &json!({ "code": "already_exists", "msg": "already exists" })),
                },
                "FinalizeCacheEntryUpload" => {
                    let size = body["size_bytes"].as_u64().or_else(|| text("size_bytes").parse().ok());
                    let ok = state.finish(&text("key"), size);
                    Answer::json(200, &json!({ "ok": ok, "entry_id": "1" }))
                }
                "GetCacheEntryDownloadURL" => {
                    let prefixes: Vec<_> = body["restore_keys"].as_array().cloned().unwrap_or_default();
                    let prefixes = prefixes.iter().filter_map(Value::as_str);
                    match state.find(&text("key"), prefixes, &text("version")) {
                        Some(entry) => {
                            let key = state.entries[entry].key.clone();
                            let url = state.sign(&self.url, entry, false);
                            let answer =
                                json!({ "ok": true, "signed_download_url": url, "matched_key": key });
                            Answer::json(200, &answer)
                        }
                        None => Answer::json(200, &json!({ "ok": false })),
                    }
                }
                _ => Answer::json(404, &json!({ "code": "bad_route", "msg": verb })),
            };
        }
        let path = request.path.strip_prefix("/_apis/artifactcache/").unwrap_or_default();
        match (request.method.as_str(), path.strip_prefix("caches/").and_then(|id| id.parse::<usize>().ok()))
        {
            ("GET", None) if path == "cache" => {
                let keys = &request.query["keys"];
                match state.find(keys, keys.split(','), &request.query["version"]) {
                    Some(entry) => {
                        let key = state.entries[entry].key.clone();
                        let url = state.sign(&self.url, entry, false);
                        Answer::json(200, &json!({ "cacheKey": key, "archiveLocation": url }))
                    }
                    None => Answer::new(204, ""),
                }
            }
            ("POST", None) if path == "caches" => {
                if let Some(entry) = state.reserve(text("key"), text("version")) {
                    Answer::json(201, &json!({ "cacheID": entry + 1 }))
                } else {
                    let key = "ArtifactCacheItemAlreadyExistsException";
                    Answer::json(409, &json!({ "message": "already exists", "typeKey": key }))
                }
            }
            ("PATCH", Some(id)) => {
                let range = request.headers["content-range"].strip_prefix("bytes ").unwrap();
                let start = range.split('-').next().unwrap().parse::<usize>().unwrap();
                let entry = &mut state.entries[id - 1];
                let end = start + request.body.len();
                entry.bytes.resize(entry.bytes.len().max(end), 0);
                entry.bytes[start..end].copy_from_slice(&request.body);
                Answer::new(204, "")
            }
            ("POST", Some(id)) => {
                let key = state.entries[id - 1].key.clone();
                Answer::new(if state.finish(&key, body["size"].as_u64()) { 204 } else { 400 }, "")
            }
            _ => Answer::new(404, ""),
        }
    }
}

impl State {
    fn reserve(&mut self, key: String, version: String) -> Option<usize> {
        let taken = self.entries.iter().any(|entry| entry.key == key && entry.version == version);
        if taken {
            return None;
        }
        self.entries.push(Entry { key, version, ..Entry::default() });
        Some(self.entries.len() - 1)
    }

    fn finish(&mut self, key: &str, size: Option<u64>) -> bool {
        let entry = self.entries.iter_mut().find(|entry| entry.key == key && !entry.finished);
        let Some(entry) = entry.filter(|entry| Some(entry.bytes.len() as u64) == size) else { return false };
        entry.finished = true;
        true
    }

    /// The entry with that key, else the newest whose key begins with one of the others.
    fn find<'a>(&self, key: &str, prefixes: impl Iterator<Item = &'a str>, version: &str) -> Option<usize> {
        let newest = |fits: &dyn Fn(&str) -> bool| {
            self.entries.iter().rposition(|e| e.finished && e.version == version && fits(&e.key))
        };
        newest(&|found| found == key).or_else(|| {
            prefixes.filter(|prefix| !prefix.is_empty()).find_map(|prefix| newest(&|k| k.starts_with(prefix)))
        })
    }

    fn sign(&mut self, base: &str, entry: usize, write: bool) -> String {
        let signature = format!("{:08x}", self.signatures.len());
        self.signatures.insert(signature.clone(), (entry, write));
        let base = self.elsewhere.as_deref().unwrap_or(base);
        format!("{base}/storage/{entry}?sig={signature}")
    }

    /// What Azure's storage does with a block blob.
    fn storage(&mut self, entry: &str, request: &Request) -> Answer {
        let refused = Answer::new(403, "<Error><Code>AuthenticationFailed</Code></Error>");
        let writes = request.method == "PUT";
        let signed = request.query.get("sig").and_then(|signature| self.signatures.get(signature));
        let Ok(entry) = entry.parse::<usize>() else { return refused };
        if signed != Some(&(entry, writes)) {
            return refused;
        }
        if !writes && self.refusals > 0 {
            self.refusals -= 1;
            return refused;
        }
        let entry = &mut self.entries[entry];
        if !writes {
            let range = ["x-ms-range", "range"].iter().find_map(|name| request.headers.get(*name));
            let start = range.and_then(|value| value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            let Some(start) = start.filter(|start| *start > 0) else {
                return Answer::new(200, entry.bytes.clone());
            };
            let total = entry.bytes.len();
            let mut answer = Answer::new(206, &entry.bytes[start..]);
            answer.headers.push(("content-range", format!("bytes {start}-{}/{total}", total - 1)));
            return answer;
        }
        match request.query.get("comp").map(String::as_str) {
            Some("block") => {
                entry.blocks.insert(request.query["blockid"].clone(), request.body.clone());
            }
            Some("blocklist") => {
                let list = String::from_utf8(request.body.clone()).unwrap();
                let ids = list.split("<Latest>").skip(1).map(|rest| rest.split('<').next().unwrap());
                entry.bytes = ids.flat_map(|id| entry.blocks[id].clone()).collect();
            }
            _ => entry.bytes.clone_from(&request.body),
        }
        let mut answer = Answer::new(201, "");
        answer.headers.push(("x-ms-request-id", "1".to_owned()));
        answer
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut parts = line.split(' ');
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    if headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim(), 16).ok()?;
            reader.take(size).read_to_end(&mut body).ok()?;
            reader.read_line(&mut line).ok()?;
            if size == 0 {
                break;
            }
        }
    } else {
        let length = headers.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        reader.take(length).read_to_end(&mut body).ok()?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(key, value)| (key.to_owned(), decode(value))).collect();
    Some(Request { method, path: path.to_owned(), query, headers, body })
}

/// Undoes percent-encoding, and `+` for a space.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digits: Vec<u8> = if byte == b'%' { rest.by_ref().take(2).collect() } else { Vec::new() };
        let code = std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(code.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
