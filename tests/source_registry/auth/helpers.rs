//! Programs that give credentials.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use warmkit::progress::Silent;
use warmkit::source::{Error, ErrorClass, Source};

use super::{basic_registry, challenge, token_registry, token_requests, with_config, write_helper};
use crate::server::{Answer, Server};
use crate::{bytes, descriptor, registry};

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
    let by_hand = format!("echo {addr} | docker-credential-ours get >/dev/null");
    let slow =
        format!("{helper} gave no answer for {addr} in 0.3 seconds: see what it waits for, with {by_hand}");
    let cases = [
        (
            10.0,
            "echo 'no key ring' >&2; exit 7",
            format!("{helper} failed for {addr} (exit status: 7): no key ring: see why, with {by_hand}"),
        ),
        (
            10.0,
            "exit 1",
            format!("{helper} failed for {addr} (exit status: 1): it said nothing: see why, with "),
        ),
        (
            10.0,
            "kill -9 $$",
            format!("{helper} failed for {addr} (signal: 9 (SIGKILL)): it said nothing: see "),
        ),
        (
            10.0,
            "printf 'at\\nlast\\033[31m' >&2; exit 1",
            format!("{helper} failed for {addr} (exit status: 1): at last [31m: see why, with {by_hand}"),
        ),
        (
            10.0,
            "echo nonsense",
            format!(
                "{helper} gave an answer for {addr} that is not valid: no JSON at line 1 column 2: it has to print \
                 {{\"Username\": …, \"Secret\": …}}, and nothing besides"
            ),
        ),
        (10.0, "true", format!("{helper} gave an answer for {addr} that is not valid: it ends too early")),
        (0.3, "exec sleep 20", slow.clone()),
        // A grandchild keeps the pipe open.
        (0.3, "sleep 20 & exit 0", slow),
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
    let end = ": have it on the PATH as a program that runs, or log in without it";
    assert!(error.to_string().ends_with(end), "{error}");
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
        "echo 'a warning'; echo '{\"Username\":\"ci\",\"Secret\":\"hunter2\"}'; exit 1",
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_helper(dir.path(), "ours", script);
        let options = with_config(dir.path(), &json!({"credsStore": "ours"}));
        let error = registry(&server, &options).manifest(None, &Silent).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Auth);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}
