//! A registry that is asked as GitHub's is: a token service of its own before a real one, with tokens for one repository
//! that do for a few requests each.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;

use super::Registry;
use super::serve::Serving;

/// The name that it is reached by.
pub const HOST: &str = "ghcr.io";
/// The longest head of a request that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// What is asked of it; ends when dropped.
#[derive(Debug)]
pub struct Ghcr {
    serving: Serving,
    log: Arc<Mutex<Log>>,
}

/// What was asked so far.
#[derive(Debug, Default)]
pub struct Log {
    /// Requests for tokens: their queries and authorizations.
    pub tokens: Vec<(String, String)>,
    /// Authorizations of all other requests.
    pub shown: Vec<String>,
    /// The repository of each token, and for how many requests it still does.
    left: BTreeMap<String, (String, usize)>,
}

impl Ghcr {
    /// Starts one before `registry`, which lets everybody in: whose user and password are `account` gets tokens that do
    /// for `uses` requests each, if they are for `repository`.
    pub fn start(registry: &Registry, account: (&str, &str), repository: &str, uses: usize) -> Self {
        let account =
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", account.0, account.1));
        let log = Arc::<Mutex<Log>>::default();
        let gate = Arc::new(Gate {
            registry: registry.host().parse().unwrap(),
            basic: format!("Basic {account}"),
            repository: repository.to_owned(),
            uses,
            log: Arc::clone(&log),
        });
        let serving = Serving::start(move |stream| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.answer(stream));
            Ok(())
        });
        Self { serving, log }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.serving.address.to_string()
    }

    /// What was asked since the last time.
    pub fn take_log(&self) -> Log {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

struct Gate {
    registry: SocketAddr,
    basic: String,
    repository: String,
    uses: usize,
    log: Arc<Mutex<Log>>,
}

impl Gate {
    /// Answers one request, and ends the connection.
    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let target = text.split_ascii_whitespace().nth(1).unwrap_or_default();
        // A proxy is asked for whole URLs.
        let target =
            target.strip_prefix("http://").map_or(target, |rest| &rest[rest.find('/').unwrap_or(0)..]);
        let header = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
        });
        let authorization = header.unwrap_or_default();
        if let Some(query) = target.strip_prefix("/token?") {
            let answer = self.token(query, authorization);
            return client.write_all(answer.as_bytes());
        }
        let repository = target.strip_prefix("/v2/").and_then(|path| {
            ["/manifests/", "/blobs/", "/referrers/"].iter().find_map(|part| Some(&path[..path.find(part)?]))
        });
        if target != "/v2/" && !self.lets_in(repository.unwrap_or_default(), authorization) {
            let challenge = format!(
                "Bearer realm=\"http://{HOST}/token\",service=\"{HOST}\",scope=\"repository:{}:pull\"",
                repository.unwrap_or_default()
            );
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            let head = format!("WWW-Authenticate: {challenge}\r\n");
            return client.write_all(response("401 Unauthorized", &head, body).as_bytes());
        }
        let mut server = TcpStream::connect(self.registry)?;
        let range = text.lines().filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            ["range", "accept"].contains(&name.as_str())
        });
        let kept: Vec<&str> = range.flat_map(|line| [line, "\r\n"]).collect();
        write!(
            server,
            "GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{}\r\n",
            self.registry,
            kept.concat()
        )?;
        io::copy(&mut server, &mut client).map(|_| ())
    }

    fn token(&self, query: &str, authorization: String) -> String {
        let mut log = self.log.lock().unwrap();
        let scope = format!("scope=repository%3A{}%3Apull", self.repository.replace('/', "%2F"));
        let (known, scoped) = (authorization == self.basic, query.split('&').any(|part| part == scope));
        log.tokens.push((query.to_owned(), authorization));
        if !known || !scoped {
            let body = r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#;
            return response("403 Forbidden", "", body);
        }
        let token = format!("token-{}", log.tokens.len());
        log.left.insert(format!("Bearer {token}"), (self.repository.clone(), self.uses));
        response("200 OK", "", &format!("{{\"token\":\"{token}\"}}"))
    }

    fn lets_in(&self, repository: &str, authorization: String) -> bool {
        let mut log = self.log.lock().unwrap();
        let is_good = match log.left.get_mut(&authorization) {
            Some((of, left)) if of == repository && *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        };
        log.shown.push(authorization);
        is_good
    }
}

fn response(status: &str, head: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{head}\r\n{body}", body.len())
}
