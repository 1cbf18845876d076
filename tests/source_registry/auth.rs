//! Who is asking: passwords, tokens, helpers.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use warmkit::progress::Silent;
use warmkit::source::{Environment, Error, ErrorClass, Given, Options, Registry, Source};

use crate::server::{Answer, Request, Server};
use crate::{Log, bytes, descriptor, options, registry};

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

/// A registry with passwords: `ci`, `secret`.
fn basic_registry(blob: &[u8]) -> Server {
    let content = blob.to_vec();
    Server::start(move |request| match request.header("authorization") {
        Some("Basic Y2k6c2VjcmV0") => Answer::new(200, &*content),
        _ => Answer::new(401, "").header("www-authenticate", "Basic realm=\"here\""),
    })
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
fn a_refusal_without_a_challenge_is_final() {
    let server = Server::start(|_| Answer::new(403, "not for you"));
    let error = registry(&server, &options()).manifest(None, &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth);
    assert_eq!(server.requests().len(), 1);
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
fn a_helper_is_asked() {
    let blob = bytes(10);
    let server = basic_registry(&blob);
    let addr = server.addr.to_string();
    let script = format!(
        "test \"$1\" = get && test \"$(cat)\" = {addr} || exit 3\n\
         echo '{{\"ServerURL\":\"{addr}\",\"Username\":\"ci\",\"Secret\":\"secret\"}}'"
    );
    for config in
        [json!({"credHelpers": {&addr: "ours"}}), json!({"credsStore": "ours", "auths": {&addr: {}}})]
    {
        let dir = tempfile::tempdir().unwrap();
        write_helper(dir.path(), "ours", &script);
        let options = with_config(dir.path(), &config);
        assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
    }
}

#[test]
fn a_helper_may_give_an_identity_token() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = Server::start(move |request| match request.header("authorization") {
        _ if request.body.contains("refresh_token=ident") => Answer::new(200, r#"{"access_token":"a"}"#),
        Some("Bearer a") => Answer::new(200, &*content),
        _ => challenge(request),
    });
    let dir = tempfile::tempdir().unwrap();
    write_helper(dir.path(), "ours", "echo '{\"Username\":\"<token>\",\"Secret\":\"ident\"}'");
    let options = with_config(dir.path(), &json!({"credsStore": "ours"}));
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
}

#[test]
fn a_helper_that_knows_nothing_means_anonymous() {
    let blob = bytes(10);
    let content = blob.clone();
    let server = token_registry(300, |_| true, move |_| Answer::new(200, &*content));
    let dir = tempfile::tempdir().unwrap();
    write_helper(dir.path(), "ours", "echo 'credentials not found in native keychain'; exit 1");
    let options = with_config(dir.path(), &json!({"credsStore": "ours"}));
    assert_eq!(registry(&server, &options).document(&descriptor(&blob), &Silent).unwrap(), blob);
    assert_eq!(token_requests(&server)[0].header("authorization"), None);
}

#[test]
fn a_helper_that_fails_is_named() {
    let server = basic_registry(b"");
    let addr = server.addr;
    let helper = "credential helper docker-credential-ours";
    let cases = [
        (
            10.0,
            "echo 'no key ring' >&2; exit 7",
            format!("{helper} failed for {addr} (exit status: 7): no key ring"),
        ),
        (10.0, "echo nonsense", format!("{helper} gave an answer for {addr} that is not valid: ")),
        (0.3, "exec sleep 20", format!("{helper} gave no answer for {addr} in 0.3 seconds")),
        // A grandchild keeps the pipe open.
        (0.3, "sleep 20 & exit 0", format!("{helper} gave no answer for {addr} in 0.3 seconds")),
    ];
    for (limit, script, message) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_helper(dir.path(), "ours", script);
        let mut options = with_config(dir.path(), &json!({"credsStore": "ours"}));
        options.helper_timeout = Duration::from_secs_f32(limit);
        let start = Instant::now();
        let error = registry(&server, &options).manifest(None, &Silent).unwrap_err();
        assert!(error.to_string().starts_with(&message), "{error}");
        assert_eq!(error.class(), ErrorClass::Auth);
        assert!(start.elapsed() < Duration::from_secs(15));
    }
    let dir = tempfile::tempdir().unwrap();
    let options = with_config(dir.path(), &json!({"credsStore": "absent"}));
    let error = registry(&server, &options).manifest(None, &Silent).unwrap_err();
    let path = dir.path().join("config.json");
    let start =
        format!("cannot run credential helper docker-credential-absent, which {} asks for: ", path.display());
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[test]
fn a_helper_is_ended_when_the_run_is() {
    let server = basic_registry(b"");
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    write_helper(dir.path(), "ours", &format!("echo $$ > '{}'; exec sleep 600", fifo.display()));
    let mut options = with_config(dir.path(), &json!({"credsStore": "ours"}));
    options.helper_timeout = Duration::from_secs(600);
    let registry = registry(&server, &options);
    let (pid, error) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| registry.manifest(None, &Silent).unwrap_err());
        // Blocks until the helper runs.
        let pid = std::fs::read_to_string(&fifo).unwrap();
        options.stop.stop();
        (pid, asked.join().unwrap())
    });
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn what_a_helper_prints_is_not_repeated() {
    let server = basic_registry(b"");
    for script in [
        "echo '\"hunter2\"'",
        "echo '{\"Username\":[\"hunter2\"]}'",
        "echo '{\"Username\":\"ci\",\"Secret\":\"hunter2\"}'; exit 1",
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_helper(dir.path(), "ours", script);
        let options = with_config(dir.path(), &json!({"credsStore": "ours"}));
        let error = registry(&server, &options).manifest(None, &Silent).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Auth);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
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
