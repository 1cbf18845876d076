//! Wrong, missing and expired credentials.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use warmkit::progress::Silent;
use warmkit::source::{Environment, ErrorClass, Given, Options, Registry, Source};

use super::{basic_registry, bearer_registry, challenge, token_registry, with_config};
use crate::server::{Answer, Server};
use crate::{bytes, descriptor, options, registry};

#[test]
fn says_who_was_denied() {
    let blob = bytes(10);
    let server = basic_registry(&blob);
    let (addr, digest) = (server.addr, descriptor(&blob).digest);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    let login = format!("run docker login {addr} with an account that may read acme/app");
    let cases = [
        (
            json!({}),
            "without credentials".to_owned(),
            format!(
                "{login}, or check that the repository exists (credentials are read from {})",
                config.display()
            ),
        ),
        (
            json!({"auths": {addr.to_string(): {"username": "ci", "password": "wrong"}}}),
            format!("as \"ci\" from {}", config.display()),
            format!("these credentials are wrong, or may not read acme/app: {login}"),
        ),
    ];
    for (json, credentials, advice) in cases {
        let options = with_config(dir.path(), &json);
        let error = registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{addr} denies access to blob {digest} of {addr}/acme/app {credentials} (status 401): {advice}"
            )
        );
        assert_eq!(error.class(), ErrorClass::Auth);
    }
}

/// A registry that refuses as ECR does what is not valid.
fn ecr_registry(blob: &[u8], valid: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    let content = blob.to_vec();
    Server::start(move |request| match request.header("authorization") {
        Some(shown) if valid(shown) => Answer::new(200, &*content),
        _ => Answer::new(401, "Not Authorized")
            .header("www-authenticate", "Basic realm=\"ecr\",service=\"ecr\""),
    })
}

#[test]
fn wrong_and_expired_credentials_are_told_apart() {
    let blob = bytes(10);
    let dir = tempfile::tempdir().unwrap();
    let config = |server: &Server, auth: &str| {
        with_config(dir.path(), &json!({"auths": {server.addr.to_string(): {"auth": auth}}}))
    };
    let refused =
        |registry: &Registry| registry.document(&descriptor(&blob), &Silent).unwrap_err().to_string();

    // base64 of "AWS:wrong"
    let server = ecr_registry(&blob, |_| false);
    let wrong = refused(&registry(&server, &config(&server, "QVdTOndyb25n")));
    assert!(
        wrong.contains("(status 401) (Not Authorized): these credentials are wrong, or may not read"),
        "{wrong}"
    );

    let server = Server::start(|request| match request.header("authorization") {
        Some(_) => Answer::new(403, "Your authorization token has expired. Reauthenticate and try again."),
        None => Answer::new(401, "").header("www-authenticate", "Basic realm=\"ecr\""),
    });
    let expired = refused(&registry(&server, &config(&server, "QVdTOndyb25n")));
    assert!(
        expired.contains("Reauthenticate and try again.): these credentials have expired: run docker login"),
        "{expired}"
    );

    // Taken once, and then no more: whatever the registry says of it.
    let taken = AtomicUsize::new(0);
    let server = ecr_registry(&blob, move |_| taken.fetch_add(1, Ordering::SeqCst) == 0);
    let registry = registry(&server, &config(&server, "QVdTOndyb25n"));
    assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob);
    let expired = refused(&registry);
    assert!(expired.contains("(status 401) (Not Authorized): these credentials have expired: "), "{expired}");
}

#[test]
fn given_credentials_go_before_files() {
    let blob = bytes(10);
    let server = basic_registry(&blob);
    let addr = server.addr.to_string();
    let dir = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {&addr: {"username": "ci", "password": "wrong"}}});
    let given = |password: &str| Options {
        given: Some(Given::read(&addr, "ci", &mut password.as_bytes()).unwrap()),
        ..with_config(dir.path(), &auths)
    };
    assert_eq!(registry(&server, &given("secret\n")).document(&descriptor(&blob), &Silent).unwrap(), blob);
    let error = registry(&server, &given("hunter2")).manifest(None, &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth);
    let end = "as \"ci\" from standard input (status 401): these credentials are wrong, or may not read acme/app: \
               give a password that may read acme/app";
    assert!(error.to_string().ends_with(end), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn a_password_that_ends_in_the_middle_of_a_pull_is_told_from_one_that_never_did() {
    let blob = bytes(10);
    let content = blob.clone();
    let dir = tempfile::tempdir().unwrap();
    let taken = AtomicUsize::new(0);
    let server = bearer_registry(
        |n| n == 1,
        move |_, _| taken.fetch_add(1, Ordering::SeqCst) == 0,
        move |_| Answer::new(200, &*content),
    );
    let auths = json!({"auths": {server.addr.to_string(): {"auth": "Y2k6c2U6Y3JldA=="}}});
    let options = with_config(dir.path(), &auths);
    let good = registry(&server, &options);
    assert_eq!(good.document(&descriptor(&blob), &Silent).unwrap(), blob);
    let error = good.document(&descriptor(&blob), &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth);
    assert!(
        error.to_string().contains("(DENIED: denied): these credentials have expired: run docker"),
        "{error}"
    );

    let options = Options { pool: Options::default().pool, ..options };
    let error = registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap_err();
    assert!(
        error.to_string().contains("(DENIED: denied): these credentials may not read acme/app: "),
        "{error}"
    );
}

#[test]
fn a_refusal_without_a_challenge_is_final() {
    let server = Server::start(|_| Answer::new(403, "not for you"));
    let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_token_that_is_not_enough_is_denied() {
    // First 401, then, with a token got for it, 403.
    let server = token_registry(
        300,
        |_| true,
        |_| Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#),
    );
    let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth);
    let message = error.to_string();
    assert!(
        message.contains("(status 403) (DENIED: requested access is denied): run docker login"),
        "{message}"
    );
    assert!(message.contains("denies access to tag \"cache\" of"), "{message}");
    assert_eq!(server.requests().len(), 3, "{:?}", server.targets());
}

#[test]
fn a_password_is_shown_when_asked_for() {
    let blob = bytes(10);
    let server = basic_registry(&blob);
    let dir = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {server.addr.to_string(): {"username": "ci", "password": "secret"}}});
    let registry = registry(&server, &with_config(dir.path(), &auths));
    for _ in 0..2 {
        assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob);
    }
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn what_a_registry_says_back_of_a_secret_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    // Basic: both forms of the password. base64 of "ci:hunter2"
    let server = Server::start(|request| match request.header("authorization") {
        Some(shown) => {
            let message = format!("{shown} is hunter2, which is wrong");
            Answer::new(401, json!({"errors": [{"code": "UNAUTHORIZED", "message": message}]}).to_string())
        }
        None => Answer::new(401, "").header("www-authenticate", "Basic realm=\"here\""),
    });
    let auths = json!({"auths": {server.addr.to_string(): {"auth": "Y2k6aHVudGVyMg=="}}});
    let error = registry(&server, &with_config(dir.path(), &auths)).manifest(None, &Silent).unwrap_err();
    assert!(error.to_string().contains("(UNAUTHORIZED: Basic … is …, which is wrong)"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");

    // A token service that is asked with an identity token, and one that is asked with a password.
    for entry in [json!({"identitytoken": "hunter2"}), json!({"auth": "Y2k6aHVudGVyMg=="})] {
        let server = Server::start(|request| {
            if request.target.starts_with("/token") {
                return Answer::new(401, r#"{"details":"hunter2 is wrong, and Y2k6aHVudGVyMg== too"}"#);
            }
            challenge(request)
        });
        let auths = json!({"auths": {server.addr.to_string(): entry}});
        let error = registry(&server, &with_config(dir.path(), &auths)).manifest(None, &Silent).unwrap_err();
        assert!(error.to_string().contains("(… is wrong, and "), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn what_is_secret_in_a_url_is_not_repeated() {
    let signed = "X-Amz-Credential=hidden%2F1&X-Amz-Security-Token=hidden&X-Amz-Signature=hidden";
    // As some gateways do, the storage host repeats what it was asked for.
    let storage = Server::start(|request| Answer::new(403, format!("no {}", request.target)));
    let at = storage.addr;
    let repeated = "tag \"cache\": REGISTRY sends to STORAGE, which refuses it (status 403) (no /l?X-Amz-Credential=…&\
                    X-Amz-Security-Token=…&X-Amz-Signature=…): check this machine's clock, and that no firewall";
    let refused =
        "names a token service that may not be asked, since it is not on https: \"http://…@r.example/token\"";
    let redirect = |to: String| Answer::new(307, "").header("location", to);
    let bearer =
        |realm: &str| Answer::new(401, "").header("www-authenticate", format!("Bearer realm=\"{realm}\""));
    let cases = [
        (redirect(format!("http://{at}/l?{signed}")), repeated),
        (redirect(format!("http://u:hidden@{at}/l?{signed}")), repeated),
        (
            redirect(format!("http://u:hidden@r.example/l?{signed}")),
            "redirects to r.example over plain http, which only",
        ),
        (
            redirect(format!("ftp://u:hidden@r.example/l?{signed}")),
            "redirects to \"ftp://…@r.example/l\", which is no",
        ),
        (bearer("http://u:hidden@r.example/token?key=hidden"), refused),
    ];
    for (answer, message) in cases {
        let server = Server::start(move |_| answer.clone());
        let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
        let message =
            message.replace("REGISTRY", &server.addr.to_string()).replace("STORAGE", &at.to_string());
        assert!(error.to_string().contains(&message), "{error}\n  wanted: {message}");
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
    }
}

#[test]
fn a_registry_that_asks_for_nothing_known_is_told_from_a_wrong_password() {
    let dir = tempfile::tempdir().unwrap();
    for challenge in [None, Some("Negotiate"), Some("Digest realm=\"r\"")] {
        let server = Server::start(move |_| match challenge {
            Some(challenge) => Answer::new(401, "").header("www-authenticate", challenge),
            None => Answer::new(401, ""),
        });
        let auths = json!({"auths": {server.addr.to_string(): {"auth": "Y2k6aHVudGVyMg=="}}});
        let error = registry(&server, &with_config(dir.path(), &auths)).manifest(None, &Silent).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Auth);
        let message =
            "(status 401): it asks neither for a password (Basic) nor for a token (Bearer): check that it is";
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn says_where_to_log_in() {
    let server = basic_registry(b"");
    let addr = server.addr.to_string();
    let dir = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {&addr: {"username": "ci", "password": "wrong"}}}).to_string();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &auths).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let named = file("named.json");
    let folder = |path: &str| path.rsplit_once('/').unwrap().0.to_owned();
    let (docker, podman) =
        (folder(&file("docker/config.json")), folder(&folder(&file("run/containers/auth.json"))));
    // Where the wrong one is found: it goes before whatever is put elsewhere.
    let cases = [
        ("REGISTRY_AUTH_FILE", &named, format!("put into {named} an account that may read acme/app")),
        (
            "DOCKER_AUTH_CONFIG",
            &auths,
            "put into $DOCKER_AUTH_CONFIG an account that may read acme/app".to_owned(),
        ),
        ("DOCKER_CONFIG", &docker, format!("run docker login {addr} with an account that may read acme/app")),
        (
            "XDG_RUNTIME_DIR",
            &podman,
            format!("run podman login {addr} with an account that may read acme/app"),
        ),
    ];
    for (variable, value, advice) in cases {
        let env = Environment::from_iter([(variable, value)]);
        let error = registry(&server, &Options { env, ..options() }).manifest(None, &Silent).unwrap_err();
        assert!(error.to_string().ends_with(&format!("may not read acme/app: {advice}")), "{error}");
    }
}
