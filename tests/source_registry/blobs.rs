//! Blobs: resumed, retried, proven.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use warmkit::progress::Silent;
use warmkit::source::{Error, ErrorClass, Mismatch, Options, Source, Stop};

use crate::server::{Answer, Request, Server};
use crate::{Log, bytes, descriptor, options, registry};

/// A server that answers request number `n` (from 0) for a blob.
fn script(answer: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |request| answer(count.fetch_add(1, Ordering::SeqCst), request))
}

#[test]
fn comes_whole() {
    let blob = bytes(1_000_000);
    let content = blob.clone();
    let server = script(move |_, _| Answer::new(200, &*content));
    let (log, mut out) = (Log::default(), Vec::new());
    registry(&server, &options()).blob(&descriptor(&blob), &mut out, &log).unwrap();
    assert_eq!(out, blob);
    assert_eq!(log.fetched(), 1_000_000);
    assert!(log.retries().is_empty());
    let path = format!("/v2/acme/app/blobs/{}", descriptor(&blob).digest);
    assert_eq!(server.targets(), [path]);
    assert_eq!(server.requests()[0].header("accept-encoding"), Some("identity"));
}

#[test]
fn comes_in_chunks() {
    let blob = bytes(10_000);
    let content = blob.clone();
    let server = script(move |_, _| Answer::new(200, &*content).chunked());
    assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap(), blob);
}

#[test]
fn an_empty_one_comes_too() {
    let server = script(|_, _| Answer::new(200, ""));
    assert_eq!(registry(&server, &options()).document(&descriptor(b""), &Silent).unwrap(), b"");
}

#[test]
fn a_broken_transfer_is_resumed() {
    let blob = bytes(700_000);
    let content = blob.clone();
    let server = script(move |n, request| match (n, request.range_start()) {
        (0, None) => Answer::new(200, &*content).cut(300_000),
        (1, Some(start)) => Answer::partial(&content, start).cut(200_000),
        (_, Some(start)) => Answer::partial(&content, start),
        _ => Answer::new(500, "asked for the start again"),
    });
    let (log, mut out) = (Log::default(), Vec::new());
    registry(&server, &options()).blob(&descriptor(&blob), &mut out, &log).unwrap();
    assert_eq!(out, blob);
    // Not a byte came twice.
    assert_eq!(log.fetched(), 700_000);
    assert_eq!(log.retries(), vec![format!("{}: the transfer broke off", server.addr); 2]);
    let starts: Vec<_> = server.requests().iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(300_000), Some(500_000)]);
}

#[test]
fn progress_resets_the_count_of_failures() {
    let blob = bytes(40_000);
    let content = blob.clone();
    // Ten failures in all, but four in a row without progress would be too many.
    let server = script(move |n, request| match request.range_start() {
        _ if n % 2 == 1 => Answer::new(502, ""),
        None => Answer::new(200, &*content).cut(8_000),
        Some(start) => Answer::partial(&content, start).cut((content.len() - start).min(8_000)),
    });
    let log = Log::default();
    assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &log).unwrap(), blob);
    assert!(log.retries().len() >= 8, "{:?}", log.retries());
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let blob = bytes(700_000);
    let content = blob.clone();
    let server = script(move |n, _| match n {
        0 => Answer::new(200, &*content).cut(300_000),
        _ => Answer::new(200, &*content),
    });
    let (log, mut out) = (Log::default(), Vec::new());
    registry(&server, &options()).blob(&descriptor(&blob), &mut out, &log).unwrap();
    assert_eq!(out, blob);
    assert_eq!(log.fetched(), 700_000);
    assert_eq!(server.requests()[1].range_start(), Some(300_000));
}

#[test]
fn a_wrong_range_is_not_taken() {
    let blob = bytes(1000);
    let content = blob.clone();
    let server = script(move |n, request| match (n, request.range_start()) {
        (0, _) => Answer::new(200, &*content).cut(500),
        (1, _) => Answer::partial(&content, 400),
        (_, start) => Answer::partial(&content, start.unwrap()),
    });
    let log = Log::default();
    assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &log).unwrap(), blob);
    let reason = format!("{} answered bytes=500- with Content-Range \"bytes 400-999/1000\"", server.addr);
    assert_eq!(log.retries()[1], reason);
}

#[test]
fn a_range_may_be_shorter_than_asked_for() {
    let blob = bytes(1000);
    let content = blob.clone();
    let server = script(move |n, request| match (n, request.range_start()) {
        (0, _) => Answer::new(200, &*content).cut(500),
        (1, _) => {
            Answer::new(206, &content[500..600]).header("content-range", "bytes 500-599/1000").chunked()
        }
        (_, start) => Answer::partial(&content, start.unwrap()),
    });
    let log = Log::default();
    assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &log).unwrap(), blob);
    let reason = format!("{}: the transfer ended after 600 of 1000 bytes", server.addr);
    assert_eq!(log.retries()[1], reason);
}

#[test]
fn a_range_that_is_not_there_is_an_error() {
    let blob = bytes(1000);
    let content = blob.clone();
    let server = script(move |n, _| match n {
        0 => Answer::new(200, &*content).cut(500),
        _ => Answer::new(416, ""),
    });
    let error = registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap_err();
    assert!(matches!(error, Error::Status { status: 416, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Unavailable);
}

#[test]
fn a_stalled_transfer_is_resumed() {
    let blob = bytes(1000);
    let content = blob.clone();
    let server = script(move |n, request| match (n, request.range_start()) {
        (0, _) => Answer::new(200, &*content).stall(600, Duration::from_secs(20)),
        (_, start) => Answer::partial(&content, start.unwrap()),
    });
    let (log, start) = (Log::default(), Instant::now());
    let options = Options { stall_timeout: Duration::from_secs(1), ..options() };
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &log).unwrap(), blob);
    assert_eq!(log.retries(), [format!("{}: the transfer stalled", server.addr)]);
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn one_that_always_breaks_off_at_the_same_place_is_given_up() {
    let blob = bytes(1000);
    let content = blob.clone();
    let server = script(move |_, _| Answer::new(200, &*content).cut(600));
    let log = Log::default();
    let error = registry(&server, &options()).document(&descriptor(&blob), &log).unwrap_err();
    let (addr, digest) = (server.addr, descriptor(&blob).digest);
    assert_eq!(
        error.to_string(),
        format!(
            "blob {digest} of {addr}/acme/app: gave up after 4 failures in a row, the last: {addr}: the transfer \
             broke off"
        )
    );
    assert_eq!(error.class(), ErrorClass::Unavailable);
    // The first attempt made progress.
    assert_eq!(server.requests().len(), 1 + 3);
}

#[test]
fn retry_after_is_kept_to() {
    let blob = bytes(10);
    for (status, after, least) in [(429, "1", 1000), (503, "1", 1000), (429, "0", 0)] {
        let content = blob.clone();
        let server = script(move |n, _| match n {
            0 => Answer::new(status, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#)
                .header("retry-after", after),
            _ => Answer::new(200, &*content),
        });
        let (log, start) = (Log::default(), Instant::now());
        assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &log).unwrap(), blob);
        assert!(start.elapsed() >= Duration::from_millis(least), "{status} {after}");
        let answered = format!("{} answered with status {status}", server.addr);
        assert_eq!(log.retries(), [format!("{answered} (TOOMANYREQUESTS: slow down)")]);
    }
}

#[test]
fn retry_after_may_be_a_date_or_too_long() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = script(move |n, _| match n {
        0 => Answer::new(429, "").header("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
        1 => Answer::new(200, &*content).cut(5),
        _ => Answer::new(429, "").header("retry-after", 3600),
    });
    let error = registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap_err();
    let (addr, digest) = (server.addr, descriptor(&blob).digest);
    assert_eq!(
        error.to_string(),
        format!(
            "blob {digest} of {addr}/acme/app: {addr} answered with status 429, and asks to wait 3600 seconds: try \
             again later"
        )
    );
}

#[test]
fn passing_failures_are_retried_and_others_not() {
    let blob = bytes(10);
    for status in [408, 429, 500, 502, 503, 504] {
        let content = blob.clone();
        let server = script(move |n, _| match n {
            0 | 1 => Answer::new(status, "not now"),
            _ => Answer::new(200, &*content),
        });
        let log = Log::default();
        assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &log).unwrap(), blob);
        assert_eq!(log.retries().len(), 2, "{status}");
    }
    for status in [400, 405, 410, 451] {
        let server = script(move |_, _| Answer::new(status, "never"));
        let error = registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap_err();
        let (addr, digest) = (server.addr, descriptor(&blob).digest);
        assert_eq!(error.to_string(), format!("blob {digest}: {addr} answered with status {status} (never)"));
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[test]
fn a_blob_that_is_not_there_is_named() {
    let server = script(|_, _| Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"gone"}]}"#));
    let blob = descriptor(b"x");
    let error = registry(&server, &options()).document(&blob, &Silent).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "blob {} is not in {}/acme/app (BLOB_UNKNOWN: gone), though its manifest lists it: export the cache \
             again",
            blob.digest, server.addr
        )
    );
}

#[test]
fn a_wrong_size_is_an_error_before_a_byte_is_taken() {
    let blob = bytes(1000);
    for (content, found) in [(&blob[..999], 999), (&[&blob[..], b"x"].concat()[..], 1001)] {
        let body = content.to_vec();
        let server = script(move |_, _| Answer::new(200, &*body));
        let mut out = Vec::new();
        let registry = registry(&server, &options());
        let error = registry.blob(&descriptor(&blob), &mut out, &Silent).unwrap_err();
        let digest = descriptor(&blob).digest;
        assert_eq!(
            error.to_string(),
            format!("blob {digest} from {}: expected 1000 bytes, found {found}", registry.name())
        );
        assert_eq!(error.class(), ErrorClass::Content);
        assert!(out.is_empty());
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_wrong_size_is_found_without_a_length_too() {
    let blob = bytes(1000);
    let longer = [&blob[..], b"more"].concat();
    let server = script(move |_, _| Answer::new(200, &*longer).chunked());
    let mut out = Vec::new();
    let error = registry(&server, &options()).blob(&descriptor(&blob), &mut out, &Silent).unwrap_err();
    let expected = Mismatch::Longer { expected: 1000 };
    assert!(matches!(error, Error::BlobMismatch { mismatch, .. } if mismatch == expected), "{error}");
    assert!(out.len() <= 1000);

    let shorter = blob[..900].to_vec();
    let server = script(move |_, _| Answer::new(200, &*shorter).chunked());
    let error = registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap_err();
    let expected = Mismatch::Size { expected: 1000, found: 900 };
    assert!(matches!(error, Error::BlobMismatch { mismatch, .. } if mismatch == expected), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_wrong_digest_is_an_error() {
    let (blob, mut other) = (bytes(1000), bytes(1000));
    other[500] ^= 1;
    let found = descriptor(&other).digest;
    let server = script(move |_, _| Answer::new(200, &*other));
    let registry = registry(&server, &options());
    let error = registry.document(&descriptor(&blob), &Silent).unwrap_err();
    let digest = descriptor(&blob).digest;
    assert_eq!(
        error.to_string(),
        format!("blob {digest} from {}: expected that digest, found {found}", registry.name())
    );
    assert_eq!(error.class(), ErrorClass::Content);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_blob_that_changes_between_attempts_is_found() {
    let (blob, mut other) = (bytes(1000), bytes(1000));
    other[900] ^= 1;
    let content = blob.clone();
    let server = script(move |n, request| match n {
        0 => Answer::new(200, &*content).cut(500),
        _ => Answer::partial(&other, request.range_start().unwrap()),
    });
    let error = registry(&server, &options()).document(&descriptor(&blob), &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Content, "{error}");
}

#[test]
fn a_server_that_is_not_there_is_not_asked_for_long() {
    let server = script(|_, _| Answer::new(200, ""));
    let mut options = options();
    options.retry.first_wait = Duration::from_millis(10);
    let registry = {
        // Nobody listens on a port that was just given back.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let reference = format!("{}/a:b", listener.local_addr().unwrap()).parse().unwrap();
        warmkit::source::Registry::open(&reference, &options).unwrap()
    };
    drop(server);
    let log = Log::default();
    let error = registry.document(&descriptor(b"x"), &log).unwrap_err();
    assert!(error.to_string().contains("gave up after 2 failures in a row"), "{error}");
    assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
    assert_eq!(log.retries().len(), 1);
}

#[test]
fn a_redirect_to_another_host_takes_no_authorization_along() {
    let blob = bytes(500_000);
    let content = blob.clone();
    let storage = script(move |n, request| match (n, request.range_start()) {
        (0, None) => Answer::new(200, &*content).cut(200_000),
        (_, Some(start)) => Answer::partial(&content, start),
        _ => Answer::new(500, ""),
    });
    let to = storage.addr;
    let server = script(move |n, request| match request.header("authorization") {
        None => Answer::new(401, "").header("www-authenticate", "Basic realm=\"r\""),
        // Each time another address, as one that is signed and runs out.
        Some(_) => Answer::new(307, "").header("location", format!("http://{to}/signed?n={n}")),
    });
    let dir = tempfile::tempdir().unwrap();
    let options = crate::auth::with_config(
        dir.path(),
        &serde_json::json!({"auths": {server.addr.to_string(): {"username": "ci", "password": "secret"}}}),
    );
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
    let at_storage = storage.requests();
    assert_eq!(storage.targets(), ["/signed?n=1", "/signed?n=2"]);
    assert!(at_storage.iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(at_storage[1].range_start(), Some(200_000));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_redirect_on_the_same_host_keeps_the_authorization() {
    let blob = bytes(1000);
    let content = blob.clone();
    let server = script(move |_, request| match (request.target.as_str(), request.header("authorization")) {
        (_, None) => Answer::new(401, "").header("www-authenticate", "Basic"),
        ("/elsewhere", Some(_)) => Answer::new(200, &*content),
        _ => Answer::new(302, "").header("location", "/elsewhere"),
    });
    let dir = tempfile::tempdir().unwrap();
    let options = crate::auth::with_config(
        dir.path(),
        &serde_json::json!({"auths": {server.addr.to_string(): {"auth": "Y2k6c2VjcmV0"}}}),
    );
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
}

#[test]
fn redirects_end() {
    let server = script(|n, _| Answer::new(302, "").header("location", format!("/{n}")));
    let error = registry(&server, &options()).document(&descriptor(b"x"), &Silent).unwrap_err();
    assert!(error.to_string().ends_with("redirects without end"), "{error}");

    let server = script(|_, _| Answer::new(302, ""));
    let error = registry(&server, &options()).document(&descriptor(b"x"), &Silent).unwrap_err();
    assert!(error.to_string().ends_with("redirects without a readable Location"), "{error}");
}

#[test]
fn a_storage_host_that_refuses_is_no_matter_of_credentials() {
    let storage = script(|_, _| Answer::new(403, "<Error><Code>AccessDenied</Code></Error>"));
    let to = storage.addr;
    let server = script(move |_, _| Answer::new(307, "").header("location", format!("http://{to}/x")));
    let addr = server.addr;
    let error = registry(&server, &options()).document(&descriptor(b"x"), &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert!(
        error
            .to_string()
            .contains(&format!("{addr} sends to {to}, which refuses it (status 403) (AccessDenied): check")),
        "{error}"
    );
}

#[test]
fn a_download_can_be_stopped() {
    let blob = bytes(1_000_000);
    let content = blob.clone();
    let server = script(move |_, _| Answer::new(200, &*content));
    let options = options();
    let registry = registry(&server, &options);
    let mut out = StopAfterFirst { stop: options.stop.clone(), taken: 0 };
    let error = registry.blob(&descriptor(&blob), &mut out, &Silent).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert!(out.taken < blob.len(), "{}", out.taken);
    assert!(matches!(registry.manifest(None, &Silent).unwrap_err(), Error::Stopped { .. }));
    assert_eq!(server.requests().len(), 1);
}

/// A writer that finds reason to stop it all.
struct StopAfterFirst {
    stop: Stop,
    taken: usize,
}

impl std::io::Write for StopAfterFirst {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stop.stop();
        self.taken += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn threads_share_a_registry() {
    let blob = bytes(100_000);
    let content = blob.clone();
    let server = script(move |n, _| match n % 3 {
        0 => Answer::new(200, &*content).cut(50_000),
        _ => Answer::new(200, &*content),
    });
    let registry = registry(&server, &options());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob));
        }
    });
}

/// The last four bytes of a blob, by what the server answers.
fn tail(answer: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> Result<Option<Vec<u8>>, Error> {
    let blob = bytes(10_000);
    let content = blob.clone();
    let server = script(move |_, _| answer(&content));
    let found = registry(&server, &options()).content(&descriptor(&blob)).tail(4, &Silent);
    let asked: Vec<_> = server.requests().iter().map(Request::range_start).collect();
    assert_eq!(asked, [Some(9_996)], "one request, for the end");
    assert!(found.iter().flatten().all(|tail| *tail == blob[9_996..]));
    found
}

#[test]
fn the_end_comes_alone() {
    assert_eq!(tail(|content| Answer::partial(content, 9_996)).unwrap().map(|tail| tail.len()), Some(4));
    // A server without ranges is not read to its end.
    assert_eq!(tail(|content| Answer::new(200, content)).unwrap(), None);
    assert_eq!(tail(|content| Answer::new(200, content).endless()).unwrap(), None);
    assert_eq!(tail(|_| Answer::new(416, "")).unwrap(), None);
    // Another range, or less of it.
    assert_eq!(tail(|content| Answer::partial(content, 9_000)).unwrap(), None);
    let short = |content: &[u8]| {
        Answer::new(206, &content[9_996..9_998]).header("content-range", "bytes 9996-9997/10000")
    };
    assert_eq!(tail(short).unwrap(), None);
}

#[test]
fn the_end_of_another_blob_is_an_error() {
    let longer = |content: &[u8]| {
        Answer::new(206, &content[9_996..]).header("content-range", "bytes 9996-10000/10001")
    };
    let error = tail(longer).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BlobMismatch { mismatch: Mismatch::Size { expected: 10_000, found: 10_001 }, .. }
        ),
        "{error}"
    );
    let error = tail(|_| Answer::new(404, "")).unwrap_err();
    assert!(matches!(error, Error::NoSuchBlob { .. }), "{error}");
}

#[test]
fn the_end_is_asked_for_again_where_a_server_is_busy() {
    let blob = bytes(3);
    let content = blob.clone();
    let server = script(move |n, request| match n {
        0 => Answer::new(503, ""),
        _ => Answer::partial(&content, request.range_start().unwrap()),
    });
    let log = Log::default();
    assert_eq!(registry(&server, &options()).content(&descriptor(&blob)).tail(4, &log).unwrap(), Some(blob));
    assert_eq!(log.retries().len(), 1);
}
