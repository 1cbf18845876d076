//! Manifests: by tag and by digest, in either form, never on the server's word.

use warmkit::digest::Digest;
use warmkit::oci::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use warmkit::oci::{Document, Reference};
use warmkit::progress::Silent;
use warmkit::source::{CacheSpec, Environment, ErrorClass, Options, Registry, Source};

use crate::server::{Answer, Server};
use crate::{Log, options, registry};

fn index() -> Vec<u8> {
    let layer = serde_json::json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(b"layer"), "size": 5,
    });
    let config = serde_json::json!({
        "mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": Digest::of(b"config"), "size": 6,
    });
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [layer, config]})
        .to_string()
        .into_bytes()
}

#[test]
fn comes_by_tag_and_is_hashed_here() {
    let body = index();
    let server = Server::start(move |_| {
        // A server that lies about the digest is not believed, nor refused: nobody asked for one.
        Answer::new(200, &*body)
            .header("content-type", format!("{OCI_INDEX}; charset=utf-8"))
            .header("docker-content-digest", Digest::of(b"a lie"))
    });
    let manifest = registry(&server, &options()).manifest(None, &Silent).unwrap();
    assert_eq!(manifest.bytes, index());
    assert_eq!(manifest.digest, Digest::of(&index()));
    assert_eq!(manifest.media_type, OCI_INDEX);
    let cache = Document::parse(&manifest.bytes).unwrap().into_cache().unwrap();
    assert_eq!((cache.config.digest, cache.layers.len()), (Digest::of(b"config"), 1));

    let request = &server.requests()[0];
    assert_eq!(request.target, "/v2/acme/app/manifests/cache");
    let accept = request.header("accept").unwrap();
    for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST] {
        assert!(accept.split(", ").any(|accepted| accepted == media_type), "{accept}");
    }
}

#[test]
fn comes_by_digest() {
    let body = index();
    let server = Server::start(move |_| Answer::new(200, &*body));
    let digest = Digest::of(&index());
    let by_argument = registry(&server, &options()).manifest(Some(&digest), &Silent).unwrap();
    assert_eq!(by_argument.digest, digest);
    // A digest in the reference goes before its tag.
    let reference: Reference = format!("{}/acme/app:cache@{digest}", server.addr).parse().unwrap();
    let by_reference = Registry::open(&reference, &options()).unwrap().manifest(None, &Silent).unwrap();
    assert_eq!(by_reference, by_argument);
    assert_eq!(server.targets(), vec![format!("/v2/acme/app/manifests/{digest}"); 2]);
}

#[test]
fn other_bytes_than_the_digests_are_an_error() {
    let server = Server::start(|_| Answer::new(200, "{}"));
    let (expected, found) = (Digest::of(b"x"), Digest::of(b"{}"));
    let registry = registry(&server, &options());
    let error = registry.manifest(Some(&expected), &Silent).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("manifest from {}: expected digest {expected}, found {found}", registry.name())
    );
    assert_eq!(error.class(), ErrorClass::Content);
}

#[test]
fn a_tag_that_is_not_there_is_named() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    let server = Server::start(move |_| Answer::new(404, body));
    let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no such tag \"cache\" in repository {}/acme/app (MANIFEST_UNKNOWN: manifest unknown): check the \
             reference, and that the build which exports the cache has run",
            server.addr
        )
    );
    assert_eq!(error.class(), ErrorClass::Unavailable);
}

#[test]
fn is_asked_for_again_when_it_breaks_off() {
    let body = index();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Answer::new(503, ""),
        1 => Answer::new(200, &*body).cut(10),
        _ => Answer::new(200, &*body),
    });
    let log = Log::default();
    assert_eq!(registry(&server, &options()).manifest(None, &log).unwrap().bytes, index());
    assert_eq!(log.retries().len(), 2);
}

#[test]
fn loopback_has_many_names() {
    let body = index();
    let server = Server::start(move |_| Answer::new(200, &*body));
    let port = server.addr.port();
    for host in ["localhost", "127.0.0.1"] {
        let spec: CacheSpec = format!("type=registry,ref={host}:{port}/acme/app:cache").parse().unwrap();
        let manifest = spec.open(&options()).unwrap().manifest(None, &Silent).unwrap();
        assert_eq!(manifest.digest, Digest::of(&index()), "{host}");
    }
    let body = index();
    let Some(server) = Server::start_at("[::1]:0", move |_| Answer::new(200, &*body)) else {
        crate::skip::skip("there is no IPv6 on loopback");
        return;
    };
    let spec: CacheSpec = format!("{}/acme/app:cache", server.addr).parse().unwrap();
    let source = spec.open(&options()).unwrap();
    assert_eq!(source.manifest(None, &Silent).unwrap().digest, Digest::of(&index()));
    assert_eq!(source.repository(), Some(("::1".to_owned(), "acme/app".to_owned())));
}

#[test]
fn has_a_limit() {
    let server = Server::start(|_| Answer::new(200, vec![b' '; (8 << 20) + 1]));
    let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
    assert!(error.to_string().ends_with("is larger than 8388608 bytes, the most that is read"), "{error}");
    assert_eq!(error.class(), ErrorClass::Content);
}

#[test]
fn the_repository_is_named_as_buildkit_notes_it() {
    let cases = [
        ("ghcr.io/acme/app:cache", "ghcr.io", "acme/app"),
        ("app", "docker.io", "library/app"),
        ("localhost:5000/a/b/c", "localhost", "a/b/c"),
    ];
    let options = Options { env: Environment::default(), ..options() };
    for (text, host, repository) in cases {
        let registry = Registry::open(&text.parse().unwrap(), &options).unwrap();
        assert_eq!(registry.repository(), Some((host.to_owned(), repository.to_owned())));
    }
}
