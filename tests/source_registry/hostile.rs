//! Servers that mean harm, or are no registry at all: a clear error, and no secret to anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use warmkit::progress::Silent;
use warmkit::source::{CacheSpec, Error, Options, Source};

use crate::auth::with_config;
use crate::server::{Answer, Request, Server};
use crate::{Log, bytes, descriptor, options, registry};

/// A password for every registry on loopback that asks.
fn with_password(dir: &std::path::Path, server: &Server) -> Options {
    with_config(dir, &json!({"auths": {server.addr.to_string(): {"username": "ci", "password": "hidden"}}}))
}

/// Each kind of source that asks `server`, in the order in which they are named here.
fn sources(server: &Server) -> [(&'static str, Box<dyn Source>); 4] {
    let addr = server.addr;
    let claims = r#"{"ac":"[{\"Scope\":\"refs/heads/main\"}]","nbf":0,"exp":4000000000}"#;
    let token = {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims)
    };
    [
        ("registry", format!("{addr}/acme/app:cache")),
        (
            "s3",
            format!(
                "type=s3,region=r,bucket=b,endpoint_url=http://{addr},use_path_style=true,access_key_id=a,\
                 secret_access_key=hidden"
            ),
        ),
        (
            "azblob",
            format!(
                "type=azblob,account_url=http://{addr}/acme,account_name=acme,secret_access_key=aGlkZGVu"
            ),
        ),
        ("gha", format!("type=gha,url_v2=http://{addr},token=e30.{token}.hidden")),
    ]
    .map(|(kind, text)| (kind, text.parse::<CacheSpec>().unwrap().open(&options()).unwrap()))
}

/// What each kind says of a server that answers everything so.
fn all_say(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static, cases: [&str; 4]) {
    let server = Server::start(answer);
    for ((kind, source), expected) in sources(&server).into_iter().zip(cases) {
        let before = server.requests().len();
        let error = source.manifest(None, &Silent).unwrap_err().to_string();
        assert!(error.contains(expected), "{kind}: {error}\n  wanted: {expected}");
        assert!(!error.contains("hidden") && !error.contains("gave up"), "{kind}: {error}");
        assert!(server.requests().len() - before <= 11, "{kind}: too many requests");
    }
}

#[test]
fn redirects_that_lead_nowhere() {
    let not_followed = "answered with status 302";
    let circle = |_: &Request| Answer::new(302, "").header("location", "/again");
    all_say(circle, ["redirects without end", not_followed, not_followed, not_followed]);
    for to in ["file:///etc/passwd", "ftp://host/x", "http://", "http://user@/x", "//"] {
        let answer = move |_: &Request| Answer::new(302, "").header("location", to);
        let shown = to.replace("user@", "…@");
        let invalid = format!("redirects to {shown:?}, which is no valid URL");
        all_say(answer, [&*invalid, not_followed, not_followed, not_followed]);
    }
    let outside = |_: &Request| Answer::new(302, "").header("location", "http://registry.example/x");
    let in_the_clear = "redirects to registry.example over plain http, which only --insecure allows";
    all_say(outside, [in_the_clear, not_followed, not_followed, not_followed]);
}

#[test]
fn headers_without_end() {
    let header = "x".repeat(100_000);
    let answer = move |_: &Request| Answer::new(200, "{}").header("x-long", &header);
    all_say(answer, ["sent more than 65536 bytes of headers"; 4]);
}

#[test]
fn bodies_without_end() {
    let endless = |_: &Request| Answer::new(200, "x".repeat(1 << 20)).endless();
    let document = "larger than 67108864 bytes";
    all_say(endless, ["larger than 8388608 bytes", document, document, "sent more than 1048576 bytes"]);
    // Of an error no more is read than is shown.
    all_say(|_| Answer::new(400, "x".repeat(1 << 20)).endless(), ["answered with status 400 (xxx"; 4]);
}

#[test]
fn web_pages() {
    let page = "sent a web page instead; is there a proxy or a sign-in page in between?";
    let sign_in = |_: &Request| Answer::new(200, "\n<html><h1>Sign in to the WiFi</h1></html>");
    all_say(sign_in, [page, page, page, "sent an answer that is not valid"]);
}

#[test]
fn waits_without_end() {
    for after in ["3601", "18446744073709551615", "Tue, 31 Dec 2999 23:59:59 GMT"] {
        let answer = move |_: &Request| Answer::new(429, "").header("retry-after", after);
        all_say(answer, ["answered with status 429, and asks to wait"; 4]);
    }
}

#[test]
fn a_manifest_that_always_stalls_is_given_up() {
    let server = Server::start(|_| Answer::new(200, "{}").stall(1, Duration::from_secs(20)));
    let mut options = options();
    options.stall_timeout = Duration::from_millis(100);
    options.retry.failures = 2;
    let error = registry(&server, &options).manifest(None, &Silent).unwrap_err().to_string();
    let addr = server.addr;
    let reason = format!("gave up after 2 failures in a row, the last: {addr}: the transfer stalled");
    assert!(error.ends_with(&reason), "{error}");
}

/// Back from another host, the path is one that the other host has chosen.
#[test]
fn a_redirect_there_and_back_has_lost_the_authorization() {
    let back = Arc::new(std::sync::OnceLock::<String>::new());
    let address = Arc::clone(&back);
    let elsewhere = Server::start(move |_| Answer::new(302, "").header("location", address.get().unwrap()));
    let away = format!("http://{}/", elsewhere.addr);
    let server = Server::start(move |request| match request.header("authorization") {
        _ if request.target == "/chosen" => Answer::new(404, ""),
        None => Answer::new(401, "").header("www-authenticate", "Basic"),
        Some(_) => Answer::new(302, "").header("location", &away),
    });
    back.set(format!("http://{}/chosen", server.addr)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    registry(&server, &with_password(dir.path(), &server)).manifest(None, &Silent).unwrap_err();
    let chosen = server.requests().into_iter().find(|request| request.target == "/chosen").unwrap();
    assert_eq!(chosen.header("authorization"), None);
}

#[test]
fn a_token_may_last_for_ever() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = Server::start(move |request| {
        let host = request.header("host").unwrap();
        match request.header("authorization") {
            _ if request.target.starts_with("/token") => {
                Answer::new(200, json!({"token": "t", "expires_in": u64::MAX}).to_string())
            }
            Some(_) => Answer::new(200, &*content),
            None => Answer::new(401, "")
                .header("www-authenticate", format!("Bearer realm=\"http://{host}/token\",service=s")),
        }
    });
    assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap(), blob);
}

/// What S3 says of the right region is told to the user: it had better be one.
#[test]
fn a_region_is_a_word() {
    for (region, expected) in [("eu-west-1", "write region=eu-west-1"), ("a\u{1b}[2J\nb", "status 301")] {
        let body = format!("<Error><Code>PermanentRedirect</Code><Region>{region}</Region></Error>");
        let server = Server::start(move |_| Answer::new(301, body.clone()));
        let [_, (_, s3), ..] = sources(&server);
        let error = s3.manifest(None, &Silent).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\u{1b}'), "{error:?}");
    }
}

/// The address of an entry is the service's to say, but not whether it is a file of this machine.
#[test]
fn an_entry_is_at_an_address_that_may_be_asked() {
    for url in ["file:///etc/passwd", "ftp://storage.example/x", "", "/relative"] {
        let server = Server::start(move |_| {
            Answer::new(200, json!({"ok": true, "signed_download_url": url}).to_string())
        });
        let [.., (_, gha)] = sources(&server);
        let error = gha.manifest(None, &Silent).unwrap_err();
        assert!(error.to_string().contains("names an address that may not be asked"), "{url:?}: {error}");
    }
}

/// A blob of every kind of source: what comes is counted and hashed, whoever sends it.
#[test]
fn a_layer_that_is_another() {
    let expected = descriptor(&bytes(1000));
    for (content, reason) in [
        (bytes(999), "expected 1000 bytes, found 999"),
        (bytes(1001), "expected 1000 bytes, found 1001"),
        (vec![0; 1000], "expected that digest, found"),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let server = Server::start(move |request| {
            let host = request.header("host").unwrap();
            if request.target.contains("twirp") {
                let url = format!("http://{host}/entry");
                return Answer::new(200, json!({"ok": true, "signed_download_url": url}).to_string());
            }
            counted.fetch_add(1, Ordering::SeqCst);
            Answer::new(200, &*content)
        });
        for (kind, source) in sources(&server) {
            let log = Log::default();
            let error = source.blob(&expected, &mut Vec::new(), &log).unwrap_err();
            assert!(
                matches!(&error, Error::BlobMismatch { mismatch, .. } if mismatch.to_string().contains(reason)),
                "{kind}: {error}"
            );
            assert!(log.retries().is_empty(), "{kind}");
        }
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }
}
