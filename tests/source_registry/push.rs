//! Promise: what is written to a registry arrives whole, with leave to write it, or an error says what to do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use warmkit::digest::Digest;
use warmkit::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use warmkit::oci::{Descriptor, Referrer, ReferrersList};
use warmkit::progress::Silent;
use warmkit::source::{Error, ErrorClass, Options, Registry, Source as _};

use crate::server::{Answer, Request, Server};
use crate::{Log, options};

const TYPE: &str = "application/vnd.test";

fn writable(server: &Server, options: &Options) -> Registry {
    let reference = format!("{}/acme/app:cache", server.addr).parse().unwrap();
    Registry::open_for_push(&reference, options).unwrap()
}

fn is(request: &Request, method: &str, path: &str) -> bool {
    request.method == method && request.target.starts_with(path)
}

/// The methods and paths asked for, without queries.
fn log(server: &Server) -> Vec<String> {
    let path = |target: &str| target.split('?').next().unwrap_or_default().to_owned();
    server.requests().iter().map(|request| format!("{} {}", request.method, path(&request.target))).collect()
}

#[test]
fn a_blob_goes_where_the_registry_says() {
    let digest = Digest::of(b"{}");
    // Absolute, relative to the host, relative to the path, and with a query of its own.
    let locations = ["http://{}/v2/up?state=a%2Bb", "/up/1", "up2?x=y", "//{}/up3"];
    for location in locations {
        let server = Server::start(move |request| {
            let host = request.header("host").unwrap().to_owned();
            if is(request, "POST", "/v2/acme/app/blobs/uploads/") {
                return Answer::new(202, "").header("location", location.replace("{}", &host));
            }
            assert_eq!((request.method.as_str(), request.body.as_str()), ("PUT", "{}"));
            assert_eq!(request.header("content-type"), Some("application/octet-stream"));
            Answer::new(201, "").header("docker-content-digest", Digest::of(b"{}"))
        });
        assert_eq!(writable(&server, &options()).put_blob(b"{}", &Silent).unwrap(), digest);
        let put = server.targets().pop().unwrap();
        let separator = if location.contains('?') { '&' } else { '?' };
        let expected = location.rsplit("{}").next().unwrap();
        let expected = if expected.starts_with('/') || expected.starts_with("http") {
            expected.to_owned()
        } else {
            format!("/v2/acme/app/blobs/uploads/{expected}")
        };
        assert_eq!(put, format!("{expected}{separator}digest={digest}"), "{location}");
    }
}

#[test]
fn a_blob_that_is_there_is_not_sent() {
    let server = Server::start(|_| Answer::new(201, ""));
    writable(&server, &options()).put_blob(b"{}", &Silent).unwrap();
    assert_eq!(log(&server), ["POST /v2/acme/app/blobs/uploads/"]);
}

#[test]
fn an_upload_that_fails_begins_again() {
    let puts = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if request.method == "POST" {
            return Answer::new(202, "").header("location", "/up");
        }
        match puts.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::new(503, ""),
            1 => Answer::new(404, r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#),
            _ => Answer::new(201, ""),
        }
    });
    let progress = Log::default();
    writable(&server, &options()).put_blob(b"{}", &progress).unwrap();
    let start = "POST /v2/acme/app/blobs/uploads/";
    assert_eq!(log(&server), [start, "PUT /up", start, "PUT /up", start, "PUT /up"]);
    let retries = progress.retries();
    assert!(retries[0].contains("status 503") && retries[1].contains("lost the upload"), "{retries:?}");
}

#[test]
fn a_redirect_keeps_the_method_and_leaves_the_password_behind() {
    let storage = Server::start(|request| {
        assert_eq!((request.method.as_str(), request.body.as_str()), ("PUT", "{}"));
        assert_eq!(request.header("authorization"), None);
        Answer::new(201, "")
    });
    let elsewhere = format!("http://{}/store", storage.addr);
    let server = Server::start(move |request| {
        if request.header("authorization").is_none() {
            return Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\"");
        }
        match request.method.as_str() {
            "POST" => Answer::new(202, "").header("location", "/up"),
            _ => Answer::new(307, "").header("location", &elsewhere),
        }
    });
    let config = tempfile::tempdir().unwrap();
    let auths = json!({server.addr.to_string(): {"username": "ci", "password": "secret"}});
    let options = crate::auth::with_config(config.path(), &json!({"auths": auths}));
    writable(&server, &options).put_blob(b"{}", &Silent).unwrap();
    assert_eq!(storage.requests().len(), 1);
}

#[test]
fn an_upload_does_not_go_to_another_machine_in_the_clear() {
    let server = Server::start(|_| Answer::new(202, "").header("location", "http://registry.example/up"));
    let error = writable(&server, &options()).put_blob(b"{}", &Silent).unwrap_err();
    assert!(error.to_string().contains("over plain http, which only --insecure allows"), "{error}");
}

#[test]
fn asks_for_leave_to_push() {
    let server = Server::start(|request| {
        if is(request, "GET", "/token") {
            assert!(
                request.target.contains("scope=repository%3Aacme%2Fapp%3Apull%2Cpush"),
                "{}",
                request.target
            );
            return Answer::new(200, r#"{"token":"t"}"#);
        }
        if request.header("authorization") != Some("Bearer t") {
            let host = request.header("host").unwrap();
            let challenge =
                format!("Bearer realm=\"http://{host}/token\",scope=\"repository:acme/app:pull,push\"");
            return Answer::new(401, "").header("www-authenticate", challenge);
        }
        Answer::new(201, "").header("oci-subject", Digest::of(b"cache"))
    });
    let pushed = writable(&server, &options()).put_manifest("tag", OCI_MANIFEST, b"{}", &Silent).unwrap();
    assert!(pushed.listed);
    assert_eq!(pushed.digest, Digest::of(b"{}"));
}

#[test]
fn who_may_not_push_is_told_what_to_do() {
    let server = Server::start(|request| {
        if request.header("authorization").is_none() {
            return Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\"");
        }
        Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#)
    });
    let config = tempfile::tempdir().unwrap();
    let auths = json!({server.addr.to_string(): {"username": "ci", "password": "secret"}});
    let options = crate::auth::with_config(config.path(), &json!({"auths": auths}));
    let registry = writable(&server, &options);
    for error in [
        registry.put_blob(b"{}", &Silent).unwrap_err(),
        registry.put_manifest("tag", OCI_MANIFEST, b"{}", &Silent).unwrap_err(),
    ] {
        assert_eq!(error.class(), ErrorClass::Auth);
        let text = error.to_string();
        assert!(text.contains("(status 403) (DENIED: read only)"), "{text}");
        assert!(text.contains("with an account that may push to acme/app"), "{text}");
    }
}

#[test]
fn an_answer_that_is_no_success_is_an_error() {
    let statuses = [(400, "MANIFEST_INVALID"), (405, "UNSUPPORTED"), (413, "too large"), (501, "")];
    for (status, detail) in statuses {
        let server = Server::start(move |_| Answer::new(status, detail));
        let error =
            writable(&server, &options()).put_manifest("tag", OCI_MANIFEST, b"{}", &Silent).unwrap_err();
        assert!(matches!(&error, Error::Status { status: found, .. } if *found == status), "{error}");
        assert!(error.to_string().contains(detail), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
    let other = Digest::of(b"other");
    let server = Server::start(move |_| Answer::new(201, "").header("docker-content-digest", other));
    let error = writable(&server, &options()).put_manifest("tag", OCI_MANIFEST, b"{}", &Silent).unwrap_err();
    assert!(error.to_string().contains("says that it stored"), "{error}");
}

#[test]
fn lists_referrers_or_says_that_there_is_no_api() {
    let subject = Digest::of(b"cache");
    let entry = |name: &str, artifact_type: &str| json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(name.as_bytes()), "size": 1, "artifactType": artifact_type});
    let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry("ours", TYPE), entry("theirs", "x/y")]});
    let index = |status, body: String| Answer::new(status, body).header("content-type", OCI_INDEX);
    let answers: Vec<(Answer, Option<usize>)> = vec![
        (index(200, list.to_string()), Some(1)),
        (index(200, r#"{"manifests":[]}"#.to_owned()), Some(0)),
        (Answer::new(404, "404 page not found"), None),
        (Answer::new(400, ""), None),
        (Answer::new(401, ""), None),
        (Answer::new(403, ""), None),
        (Answer::new(405, ""), None),
        (Answer::new(501, ""), None),
        (Answer::new(200, "<html>").header("content-type", "text/html"), None),
    ];
    for (answer, expected) in answers {
        let shown = format!("{answer:?}");
        let server = Server::start(move |request| {
            assert!(request.target.ends_with("?artifactType=application%2Fvnd.test"));
            answer.clone()
        });
        let registry = crate::registry(&server, &options());
        let listed = registry.referrers(&subject, TYPE, &Silent).unwrap();
        assert_eq!(listed.map(|listed| listed.len()), expected, "{shown}");
        // A registry without is not asked again.
        let before = server.requests().len();
        registry.referrers(&subject, TYPE, &Silent).unwrap();
        assert_eq!(server.requests().len() > before, expected.is_some(), "{shown}");
    }
    for (answer, reason) in [(index(200, "{".to_owned()), "no such list"), (Answer::new(502, ""), "gave up")]
    {
        let server = Server::start(move |_| answer.clone());
        let error = crate::registry(&server, &options()).referrers(&subject, TYPE, &Silent).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// A registry whose tokens are good for reading, whatever was asked for.
#[test]
fn who_gets_a_token_to_read_only_is_told_what_to_do() {
    let server = Server::start(|request| {
        if is(request, "GET", "/token") {
            return Answer::new(200, r#"{"token":"t"}"#);
        }
        if request.method == "GET" && request.header("authorization") == Some("Bearer t") {
            return Answer::new(200, "{}").header("content-type", OCI_MANIFEST);
        }
        let host = request.header("host").unwrap();
        let scope = "scope=\"repository:acme/app:pull,push\",error=\"insufficient_scope\"";
        Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"no push for you"}]}"#)
            .header("www-authenticate", format!("Bearer realm=\"http://{host}/token\",{scope}"))
    });
    let registry = writable(&server, &options());
    registry.manifest(None, &Silent).unwrap();
    let error = registry.put_manifest("tag", OCI_MANIFEST, b"{}", &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth, "{error}");
    let text = error.to_string();
    assert!(text.contains("no push for you") && text.contains("may push to acme/app"), "{text}");
    assert!(server.requests().len() < 10, "{:?}", server.targets());
}

/// A registry that gives `count` referrers, `size` on each page; the last page leads to `after`.
fn in_pages(count: usize, size: usize, after: Option<usize>) -> Server {
    Server::start(move |request| {
        let from = request.target.split("last=").nth(1).map_or(0, |last| last.parse().unwrap());
        let to = count.min(from + size);
        let entry = |n: usize| json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(&n.to_le_bytes()), "size": 1, "artifactType": TYPE});
        let list = json!({"manifests": (from..to).map(entry).collect::<Vec<_>>()});
        let answer = Answer::new(200, list.to_string()).header("content-type", OCI_INDEX);
        // The host is made up: nothing but the query counts.
        let (path, _) = request.target.split_once('?').unwrap();
        let link = |last| {
            format!(
                "<{path}?n=1,2>; rel=\"first\", <http://elsewhere.invalid{path}?x=1,2&last={last}>; rel=\"next\""
            )
        };
        match if to < count { Some(to) } else { after } {
            Some(next) => answer.header("link", link(next)),
            None => answer,
        }
    })
}

#[test]
fn a_list_is_read_to_its_last_page() {
    let subject = Digest::of(b"cache");
    for (count, size, pages) in [(10_000, 100, 100), (10_000, 10_000, 1), (3, 1, 3), (0, 1, 1)] {
        let server = in_pages(count, size, None);
        let listed = crate::registry(&server, &options()).referrers(&subject, TYPE, &Silent).unwrap();
        assert_eq!(listed.unwrap().len(), count);
        assert_eq!(server.requests().len(), pages);
        let own = format!("/v2/acme/app/referrers/{subject}?");
        assert!(server.targets().iter().all(|target| target.starts_with(&own)), "{:?}", server.targets());
    }
    // Pages that lead back, and pages that never end.
    for (count, after, most) in [(300, Some(0), 5), (1_000_000, None, 256)] {
        let server = in_pages(count, 100, after);
        let error = crate::registry(&server, &options()).referrers(&subject, TYPE, &Silent).unwrap_err();
        assert!(error.to_string().contains("pages without end"), "{error}");
        assert!(server.requests().len() <= most);
    }
    // What is missing of a list is not passed over.
    let server = Server::start(move |request| {
        if request.target.contains("last=") {
            return Answer::new(404, "gone");
        }
        let page = Answer::new(200, r#"{"manifests":[]}"#).header("content-type", OCI_INDEX);
        page.header("link", "<?last=1>; rel=\"next\"")
    });
    let error = crate::registry(&server, &options()).referrers(&subject, TYPE, &Silent).unwrap_err();
    assert!(matches!(error, Error::Status { status: 404, .. }), "{error}");
}

/// A registry that keeps what is put under tags, and in which somebody else writes the list right behind
/// the first writer.
fn busy(others: Vec<Referrer>) -> Server {
    let tag: Mutex<Option<Vec<u8>>> = Mutex::default();
    let others = Mutex::new(others);
    Server::start(move |request| {
        let mut stored = tag.lock().unwrap();
        if request.method == "GET" {
            return match &*stored {
                Some(bytes) => Answer::new(200, bytes.clone()).header("content-type", OCI_INDEX),
                None => Answer::new(404, ""),
            };
        }
        *stored = Some(match others.lock().unwrap().pop() {
            // It had read the list before, and has overwritten what was just put in.
            Some(other) => {
                let before = stored.as_deref().map(|bytes| ReferrersList::parse(bytes).unwrap());
                let mut list = before.unwrap_or_default();
                list.replace(&other, &[]);
                list.to_bytes().unwrap()
            }
            None => request.body.clone().into_bytes(),
        });
        Answer::new(201, "")
    })
}

fn referrer(name: &str) -> Referrer {
    let manifest = Descriptor::new(OCI_MANIFEST, Digest::of(name.as_bytes()), 1);
    Referrer { manifest, artifact_type: TYPE.to_owned() }
}

#[test]
fn a_list_that_two_write_at_the_same_time_has_both() {
    let server = busy(vec![referrer("other"), referrer("another")]);
    let (subject, ours) = (Digest::of(b"cache"), referrer("ours"));
    let registry = writable(&server, &options());
    let tag = registry.tag_referrer(&subject, &ours, &[], &Silent).unwrap();
    assert_eq!(tag, format!("sha256-{}", subject.hex()));
    let found = registry.tagged_referrers(&subject, TYPE, &Silent).unwrap();
    let expected = [referrer("another"), referrer("other"), ours.clone()];
    assert_eq!(found, expected);

    // Once more changes nothing, and a successor takes its place.
    let before = server.requests().len();
    registry.tag_referrer(&subject, &ours, &[], &Silent).unwrap();
    assert_eq!(server.requests().len(), before + 1);
    registry.tag_referrer(&subject, &referrer("next"), &[ours.manifest.digest], &Silent).unwrap();
    let found = registry.tagged_referrers(&subject, TYPE, &Silent).unwrap();
    assert_eq!(found, [referrer("another"), referrer("other"), referrer("next")]);
}

#[test]
fn a_list_that_never_stays_is_given_up() {
    let server = busy((0..100).map(|n| referrer(&n.to_string())).collect());
    let registry = writable(&server, &options());
    let error = registry.tag_referrer(&Digest::of(b"cache"), &referrer("ours"), &[], &Silent).unwrap_err();
    assert!(error.to_string().contains("somebody else wrote it at the same time"), "{error}");
}

#[test]
fn what_else_stands_under_the_tag_of_a_list_stays() {
    let server = Server::start(|request| {
        assert_eq!(request.method, "GET");
        Answer::new(200, r#"{"schemaVersion":2,"config":{},"layers":[]}"#)
            .header("content-type", OCI_MANIFEST)
    });
    let registry = writable(&server, &options());
    let error = registry.tag_referrer(&Digest::of(b"cache"), &referrer("ours"), &[], &Silent).unwrap_err();
    assert!(error.to_string().contains("has something else there"), "{error}");
}
