//! Tokens, and what they are got with.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use warmkit::progress::Silent;
use warmkit::source::{ErrorClass, Source};

use super::{bearer_registry, challenge, token_registry, token_requests, with_config};
use crate::server::{Answer, Server};
use crate::{Log, bytes, descriptor, options, registry};

#[test]
fn an_anonymous_token_is_fetched_once() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = token_registry(300, |_| true, move |_| Answer::new(200, &*content));
    let registry = registry(&server, &options());
    for _ in 0..3 {
        assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob);
    }
    let tokens = token_requests(&server);
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].target, "/token?service=test%2C%20or%20so&scope=repository%3Aacme%2Fapp%3Apull");
    assert_eq!(tokens[0].header("authorization"), None);
}

#[test]
fn eight_threads_fetch_one_token() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = token_registry(
        300,
        |_| true,
        move |_| {
            std::thread::sleep(Duration::from_millis(20));
            Answer::new(200, &*content)
        },
    );
    let registry = registry(&server, &options());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob));
        }
    });
    assert_eq!(token_requests(&server).len(), 1);
}

#[test]
fn a_token_that_runs_out_mid_pull_is_renewed() {
    let blob = bytes(100_000);
    let content = blob.clone();
    let requests = AtomicUsize::new(0);
    // t1 dies with the broken transfer, t2 lasts.
    let server = token_registry(
        300,
        {
            let seen = AtomicUsize::new(0);
            move |n| n > 1 || seen.fetch_add(1, Ordering::SeqCst) == 0
        },
        move |request| match (requests.fetch_add(1, Ordering::SeqCst), request.range_start()) {
            (0, None) => Answer::new(200, &*content).cut(40_000),
            (_, Some(start)) => Answer::partial(&content, start),
            _ => Answer::new(500, ""),
        },
    );
    let log = Log::default();
    assert_eq!(registry(&server, &options()).document(&descriptor(&blob), &log).unwrap(), blob);
    // Only the broken transfer counts as a failure.
    assert_eq!(log.retries().len(), 1);
    assert_eq!(token_requests(&server).len(), 2);
    assert_eq!(server.requests().last().unwrap().range_start(), Some(40_000));
}

#[test]
fn a_token_is_renewed_before_it_runs_out() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = token_registry(4, |_| true, move |_| Answer::new(200, &*content));
    let registry = registry(&server, &options());
    registry.document(&descriptor(&blob), &Silent).unwrap();
    std::thread::sleep(Duration::from_millis(3200));
    registry.document(&descriptor(&blob), &Silent).unwrap();
    assert_eq!(token_requests(&server).len(), 2);
    // The first request alone was refused.
    let shown: Vec<_> = server
        .requests()
        .iter()
        .filter(|request| request.target.contains("/blobs/"))
        .map(|request| request.header("authorization").map(str::to_owned))
        .collect();
    assert_eq!(shown, [None, Some("Bearer t1".to_owned()), Some("Bearer t2".to_owned())]);
}

#[test]
fn a_password_is_shown_to_the_token_service_only() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = token_registry(300, |_| true, move |_| Answer::new(200, &*content));
    let dir = tempfile::tempdir().unwrap();
    // base64 of "ci:se:cret"
    let options =
        with_config(dir.path(), &json!({"auths": {server.addr.to_string(): {"auth": "Y2k6c2U6Y3JldA=="}}}));
    registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap();
    let token = &token_requests(&server)[0];
    assert_eq!(token.header("authorization"), Some("Basic Y2k6c2U6Y3JldA=="));
    assert!(token.target.ends_with("&account=ci"));
    for request in server.requests().iter().filter(|request| request.target.contains("/blobs/")) {
        assert!(request.header("authorization").is_none_or(|v| v.starts_with("Bearer")));
    }
}

#[test]
fn an_identity_token_is_posted() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = Server::start(move |request| match request.header("authorization") {
        _ if request.target == "/token" => Answer::new(200, r#"{"access_token":"x.y_z-"}"#),
        Some("Bearer x.y_z-") => Answer::new(200, &*content),
        _ => challenge(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {server.addr.to_string(): {"auth": "MDA6", "identitytoken": "r&t"}}});
    let options = with_config(dir.path(), &auths);
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
    let token = &token_requests(&server)[0];
    assert_eq!((token.method.as_str(), token.header("authorization")), ("POST", None));
    let form: Vec<_> = token.body.split('&').collect();
    assert!(form.contains(&"grant_type=refresh_token"), "{form:?}");
    assert!(form.contains(&"refresh_token=r%26t"), "{form:?}");
    assert!(form.iter().any(|field| field.starts_with("scope=repository")), "{form:?}");
}

#[test]
fn a_registry_token_is_shown_as_it_is() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = Server::start(move |request| match request.header("authorization") {
        Some("Bearer raw") => Answer::new(200, &*content),
        _ => challenge(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let auths = json!({"auths": {server.addr.to_string(): {"registrytoken": "raw"}}});
    let options = with_config(dir.path(), &auths);
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
}

#[test]
fn a_403_may_mean_that_a_token_ran_out() {
    let blob = bytes(10);
    let content = blob.clone();
    let used = AtomicUsize::new(0);
    let server = token_registry(
        300,
        |_| true,
        move |request| {
            let t1 = request.header("authorization") == Some("Bearer t1");
            match used.fetch_add(1, Ordering::SeqCst) {
                n if t1 && n > 0 => Answer::new(403, "Your authorization token has expired."),
                _ => Answer::new(200, &*content),
            }
        },
    );
    let registry = registry(&server, &options());
    for _ in 0..3 {
        assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob);
    }
    assert_eq!(token_requests(&server).len(), 2);
}

#[test]
fn a_token_service_in_the_clear_is_not_asked() {
    let server = Server::start(|_| {
        Answer::new(401, "").header("www-authenticate", "Bearer realm=\"http://auth.example/token\"")
    });
    let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
    assert!(error.to_string().contains("since it is not on https: \"http://auth.example/token\""), "{error}");
}

#[test]
fn a_token_service_may_fail_for_a_while_or_refuse() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if request.target.starts_with("/token") {
            return match count.fetch_add(1, Ordering::SeqCst) {
                0 => Answer::new(503, ""),
                _ => Answer::new(401, r#"{"details":"incorrect username or password"}"#),
            };
        }
        challenge(request)
    });
    let log = Log::default();
    let error = registry(&server, &options()).manifest(None, &log).unwrap_err();
    assert_eq!(log.retries().len(), 1);
    assert_eq!(error.class(), ErrorClass::Auth);
    let message = error.to_string();
    assert!(
        message.contains(
            "denies access to token for repository acme/app without credentials (status 401) (incorrect username or \
             password)"
        ),
        "{message}"
    );
}

#[test]
fn a_token_that_is_none_is_an_error() {
    for body in ["", "{}", "{\"token\":\"\"}", "{\"token\":\"a\\nb\"}"] {
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") { Answer::new(200, body) } else { challenge(request) }
        });
        let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unavailable, "{body:?}: {error}");
        assert!(server.requests().len() <= 2);
    }
}

#[test]
fn a_password_gets_a_new_token_in_the_middle_of_a_pull() {
    let blob = bytes(100_000);
    let content = blob.clone();
    let dir = tempfile::tempdir().unwrap();
    // The first token does for the first part alone.
    let server = bearer_registry(
        |_| true,
        |n, request| n > 1 || request.range_start().is_none(),
        move |request| match request.range_start() {
            None => Answer::new(200, &*content).cut(40_000),
            Some(start) => Answer::partial(&content, start),
        },
    );
    let auths = json!({"auths": {server.addr.to_string(): {"auth": "Y2k6c2U6Y3JldA=="}}});
    let registry = registry(&server, &with_config(dir.path(), &auths));
    assert_eq!(registry.document(&descriptor(&blob), &Silent).unwrap(), blob);
    assert_eq!(token_requests(&server).len(), 2);
}
