//! Who is asking: passwords, tokens, helpers.

mod ecr;
mod helpers;
mod refused;
mod tokens;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use warmkit::source::{Environment, Options};

use crate::options;
use crate::server::{Answer, Request, Server};

/// Options that find `config` as docker's config.json, and helpers, in `dir`.
pub(crate) fn with_config(dir: &Path, config: &Value) -> Options {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let path = format!("{}:/usr/bin:/bin", dir.display());
    let vars = [("DOCKER_CONFIG", dir.to_str().unwrap()), ("PATH", &path)];
    Options { env: Environment::from_iter(vars), ..options() }
}

/// Writes a credential helper. Through a shell, since a program that this process has open for writing
/// while another thread forks cannot be run.
fn write_helper(dir: &Path, name: &str, script: &str) {
    let path = dir.join(format!("docker-credential-{name}"));
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod +x \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    write!(shell.stdin.take().unwrap(), "#!/bin/sh\n{script}\n").unwrap();
    assert!(shell.wait().unwrap().success());
}

fn challenge(request: &Request) -> Answer {
    let host = request.header("host").unwrap();
    let bearer = format!(
        "Bearer realm=\"http://{host}/token\",service=\"test, or so\",scope=\"repository:acme/app:pull\""
    );
    Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
        .header("WWW-Authenticate", "Basic realm=\"other\"")
        .header("WWW-Authenticate", bearer)
}

/// A registry that takes the token `t<n>` as long as `valid` says so, and a token service that gives
/// `t1`, `t2`, … of `expires_in` seconds.
fn token_registry(
    expires_in: u64,
    valid: impl Fn(usize) -> bool + Send + Sync + 'static,
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> Server {
    let tokens = AtomicUsize::new(0);
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            let n = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return Answer::new(200, json!({"token": format!("t{n}"), "expires_in": expires_in}).to_string());
        }
        let token = request.header("authorization").and_then(|v| v.strip_prefix("Bearer t"));
        match token.map(|n| n.parse().unwrap()) {
            Some(n) if valid(n) => answer(request),
            _ => challenge(request),
        }
    })
}

fn token_requests(server: &Server) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.target.starts_with("/token")).collect()
}

/// A registry with passwords: `ci`, `secret`.
fn basic_registry(blob: &[u8]) -> Server {
    let content = blob.to_vec();
    Server::start(move |request| match request.header("authorization") {
        Some("Basic Y2k6c2VjcmV0") => Answer::new(200, &*content),
        _ => Answer::new(401, "").header("www-authenticate", "Basic realm=\"here\""),
    })
}

/// A registry as GHCR: its token service wants `ci:se:cret` as long as `open` says so, and gives tokens for one scope
/// that each last as long as `valid` says.
fn bearer_registry(
    open: impl Fn(usize) -> bool + Send + Sync + 'static,
    valid: impl Fn(usize, &Request) -> bool + Send + Sync + 'static,
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> Server {
    let tokens = AtomicUsize::new(0);
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            let scoped = request.target.contains("scope=repository%3Aacme%2Fapp%3Apull");
            let known = request.header("authorization") == Some("Basic Y2k6c2U6Y3JldA==");
            let n = tokens.fetch_add(1, Ordering::SeqCst) + 1;
            return if scoped && known && open(n) {
                Answer::new(200, json!({"token": format!("t{n}"), "expires_in": 300}).to_string())
            } else {
                Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#)
            };
        }
        let token = request.header("authorization").and_then(|v| v.strip_prefix("Bearer t"));
        match token.map(|n| n.parse().unwrap()) {
            Some(n) if valid(n, request) => answer(request),
            _ => challenge(request),
        }
    })
}
