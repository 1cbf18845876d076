//! The chain of places, each against a small server on loopback or files in a scratch directory.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::*;

/// Answers each path with its text, as many times as it is asked, and says what it was asked.
struct Server {
    url: String,
    asked: std::sync::mpsc::Receiver<String>,
}

impl Server {
    fn start(answers: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, asked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let line = head.lines().next().unwrap_or_default().to_owned();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let answer = answers.iter().find(|(at, _)| *at == path).map(|(_, text)| *text);
                // Before the answer: who has that may ask at once what was asked.
                if sender.send(head).is_err() {
                    return;
                }
                let status = if answer.is_some() { "200 OK" } else { "404 Not Found" };
                let body = answer.unwrap_or_default();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.try_iter().collect()
    }
}

fn provider(variables: &[(&str, &str)]) -> Provider {
    let off = [("AWS_EC2_METADATA_DISABLED", "true"), ("PATH", "/usr/bin:/bin")];
    let env = off.iter().chain(variables).copied().collect();
    let options = Options { env, certs_dirs: Vec::new(), ..Options::default() };
    Provider::new(None, "eu-west-1", &options)
}

fn found(variables: &[(&str, &str)]) -> Result<(String, String), String> {
    let provider = provider(variables);
    match provider.current() {
        Ok(keys) => Ok((keys.id, provider.shown())),
        Err(Failure::Final(error)) => Err(error.to_string()),
        Err(Failure::Again { reason, .. }) => Err(reason),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_first_place_that_has_keys_counts() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = write(
        dir.path(),
        "credentials",
        "[default]\naws_access_key_id=D\naws_secret_access_key=s\n[half]\naws_access_key_id=H\n\
         [process]\ncredential_process=echo '{\"Version\":1,\"AccessKeyId\":\"P\",\"SecretAccessKey\":\"s\"}'\n\
         [fails]\ncredential_process=echo no luck >&2; exit 3\n[empty]\ncredential_process=echo '{}'\n\
         [sso]\nsso_session=x\n[a]\nrole_arn=r\nsource_profile=b\n[b]\nrole_arn=r\nsource_profile=a\n",
    );
    let file = ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str());
    let env = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let (_, shown) = found(&[file, env[0], env[1], ("AWS_PROFILE", "process")]).unwrap();
    assert_eq!(shown, "with access key E from the environment");
    let (_, shown) = found(&[file, env[0]]).unwrap();
    assert_eq!(shown, "with access key D from profile \"default\"");
    let (_, shown) = found(&[file, ("AWS_PROFILE", "process")]).unwrap();
    assert_eq!(shown, "with access key P from the credential_process of profile \"process\"");

    let errors = [
        ("half", "AWS credentials from profile \"half\" are not complete: aws_secret_access_key is missing"),
        ("fails", "no luck"),
        ("empty", "holds no AccessKeyId"),
        ("sso", "aws configure export-credentials --profile sso"),
        ("a", "takes its credentials from itself"),
        ("none", "no AWS profile \"none\" in "),
    ];
    for (profile, expected) in errors {
        let error = found(&[file, ("AWS_PROFILE", profile)]).unwrap_err();
        assert!(error.contains(expected), "{profile}: {error}");
    }
    let error = found(&[]).unwrap_err();
    assert!(error.starts_with("no AWS credentials: set AWS_ACCESS_KEY_ID"), "{error}");
}

#[test]
fn a_container_has_an_agent_on_this_host_or_on_https() {
    let server = Server::start(&[(
        "/creds",
        r#"{"AccessKeyId":"C","SecretAccessKey":"s","Token":"t","Expiration":"2999-01-01T00:00:00Z"}"#,
    )]);
    let dir = tempfile::tempdir().unwrap();
    let token = write(dir.path(), "token", "Bearer x\n");
    let url = format!("{}/creds", server.url);
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.as_str()),
    ];
    let provider = provider(&variables);
    let keys = provider.current().unwrap_or_else(|failure| panic!("{failure:?}"));
    assert_eq!((keys.id.as_str(), keys.session_token.is_some()), ("C", true));
    // They last: the agent is asked once.
    provider.current().unwrap_or_else(|failure| panic!("{failure:?}"));
    let asked = server.asked();
    assert!(asked.len() == 1 && asked[0].contains("uthorization: Bearer x\r\n"), "{asked:?}");
    // Refused though they should last: the agent is asked again.
    assert!(provider.refused(&keys));
    provider.current().unwrap_or_else(|failure| panic!("{failure:?}"));
    assert_eq!(server.asked().len(), 1);

    let error = found(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://agent.example/creds")]).unwrap_err();
    assert!(error.contains("neither on https nor on this host"), "{error}");
    let gone = format!("{}/gone", server.url);
    let error = found(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &gone)]).unwrap_err();
    assert!(error.contains("status 404"), "{error}");
}

#[test]
fn an_instance_is_asked_with_a_token() {
    let server = Server::start(&[
        ("/latest/api/token", "session"),
        ("/latest/meta-data/iam/security-credentials/", "builder\n"),
        (
            "/latest/meta-data/iam/security-credentials/builder",
            r#"{"Code":"Success","AccessKeyId":"I","SecretAccessKey":"s","Token":"t","Expiration":"2999-01-01T00:00:00Z"}"#,
        ),
    ]);
    let variables =
        [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url.as_str())];
    let (_, shown) = found(&variables).unwrap();
    assert_eq!(shown, "with access key I from the instance's role builder");
    let asked = server.asked();
    assert!(asked[0].starts_with("PUT ") && asked[0].contains("token-ttl-seconds: 21600"), "{}", asked[0]);
    assert!(asked[2].contains("x-aws-ec2-metadata-token: session"), "{}", asked[2]);
}

#[test]
fn a_program_that_hangs_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "credentials", "[default]\ncredential_process = exec sleep 60\n");
    let env = [("AWS_SHARED_CREDENTIALS_FILE", file.as_str()), ("PATH", "/usr/bin:/bin")];
    let options = Options {
        env: env.into_iter().collect(),
        helper_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let Err(Failure::Final(error)) = Provider::new(None, "r", &options).current() else { panic!("keys") };
    assert!(error.to_string().contains("no answer in 0.05 seconds"), "{error}");
}
