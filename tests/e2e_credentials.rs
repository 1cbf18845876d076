//! Promise: a password given, a helper's or an instance role's opens a registry, and stands nowhere afterwards.
//!
//! ECR's API is moto, asked by Debian's own `docker-credential-ecr-login` under its real name, through a proxy. What
//! stands for the AWS CLI is a script that prints what `aws ecr get-login-password` does. GitHub's registry is a real one
//! behind a token service as GitHub's.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::json;
use support::command::{Ended, run};
use support::ghcr::{self, Ghcr};
use support::handmade::Handmade;
use support::metadata::Instance;
use support::moto::Moto;
use support::proxy::Proxy;
use support::registry::{ECR, PASSWORD, USER};
use support::serve::Serving;
use support::skip::{is_root, skip};
use support::warmkit::warmkit;
use support::{Registry, Scratch, Tools, tools};

/// A private registry of ECR, and its API.
const HOST: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
const API: &str = "api.ecr.us-east-1.amazonaws.com";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A token as a workflow of GitHub has it.
const TOKEN: &str = "ghs_0123456789abcdefABCDEF";
const LIMIT: Duration = Duration::from_secs(120);

/// A registry that wants ECR's password, with a cache in `app:cache`.
fn registry() -> Option<Registry> {
    let tools = Tools::find(tools::NEWEST)?;
    let registry = Registry::start_with_login(&tools, ECR);
    push_cache(&registry, "app");
    Some(registry)
}

/// Pushes a cache with the tag `cache`.
fn push_cache(registry: &Registry, repository: &str) {
    let mut cache = Handmade::default();
    let layer = cache.layer("file", None);
    cache.record("base", &[], &[layer]);
    let (manifest, blobs) = cache.documents();
    for (_, blob) in &blobs {
        registry.put_blob(repository, blob);
    }
    registry.put_manifest(repository, "cache", MANIFEST, &manifest);
}

/// `warmkit <arguments>` that knows the registry under its name at ECR, with nothing of this machine's own.
fn at_ecr(proxy: &Proxy, home: &Scratch, path: &str, arguments: &[&str]) -> Command {
    let mut command = warmkit();
    command.env_clear().env("HOME", home.path()).env("PATH", path).env("HTTPS_PROXY", proxy.url());
    command.args(arguments).args([&format!("{HOST}/app:cache"), "--insecure"]);
    command
}

fn openssl(dir: &Path, command: &str) -> bool {
    let mut openssl = Command::new("openssl");
    openssl.args(command.split_whitespace()).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    openssl.status().is_ok_and(|status| status.success())
}

/// What this run printed, without any secret.
#[track_caller]
fn assert_discreet(ended: &Ended) {
    for text in [&ended.stdout, &ended.stderr] {
        assert!(secrets().iter().all(|secret| !text.contains(secret)), "{text}");
    }
}

/// The password, and what becomes of it in an `Authorization`.
fn secrets() -> [String; 2] {
    let both = format!("{}:{}", ECR.user, ECR.password);
    [ECR.password.to_owned(), base64::engine::general_purpose::STANDARD.encode(both)]
}

/// Files below a directory that hold a secret.
fn files_with_secrets(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_with_secrets(&path));
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            let holds = |secret: &String| bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            found.extend(secrets().iter().any(holds).then(|| path.display().to_string()));
        }
    }
    found
}

/// The command lines of a process and of all that it has started, one per line.
fn command_lines(pid: u32) -> String {
    let process = Path::new("/proc").join(pid.to_string());
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let mut lines = String::from_utf8_lossy(&line).replace('\0', " ") + "\n";
    for thread in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().for_each(|child| lines.push_str(&command_lines(child.parse().unwrap())));
    }
    lines
}

#[test]
fn ecr_is_opened_by_the_helper_of_aws() {
    let helper = "docker-credential-ecr-login";
    if !Command::new(helper)
        .arg("version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return skip("no docker-credential-ecr-login");
    }
    let Some(registry) = registry() else { return };
    let certs = Scratch::new();
    certs.write("ext", format!("subjectAltName=DNS:{API}\nbasicConstraints=CA:false\n"));
    let made = [
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=ca -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=moto -keyout leaf.key -out leaf.csr",
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out leaf.crt",
    ];
    if !made.iter().all(|command| openssl(certs.path(), command)) {
        return skip("no openssl");
    }
    let Some(moto) = Moto::start_https(&certs.join("leaf.crt"), &certs.join("leaf.key")) else { return };
    let api = moto.url().trim_start_matches("https://").to_owned();
    let proxy = Proxy::start(&[(&format!("{HOST}:80"), &registry.host()), (&format!("{API}:443"), &api)]);
    let home = Scratch::new();
    let check = || {
        let mut command = at_ecr(&proxy, &home, "/usr/bin:/bin", &["keys", "check"]);
        command.env("SSL_CERT_FILE", certs.join("ca.crt")).env("AWS_EC2_METADATA_DISABLED", "true");
        command
    };

    let mut with_keys = check();
    with_keys.env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any");
    let ended = run(&mut with_keys, LIMIT).expect_success("keys check at ECR");
    assert_discreet(&ended);
    // Not even in the helper's own cache.
    assert_eq!(files_with_secrets(home.path()), Vec::<String>::new());

    // The role of an instance, from its metadata.
    let instance = Instance::start();
    let mut with_role = check();
    with_role
        .env("AWS_EC2_METADATA_DISABLED", "false")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url());
    let ended = run(&mut with_role, LIMIT).expect_success("keys check at ECR with a role");
    assert_discreet(&ended);

    let ended = run(&mut check(), LIMIT);
    assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
    let message =
        format!("docker-credential-ecr-login has no credentials for {HOST}: check the machine's role");
    assert!(ended.stderr.contains(&message), "{}", ended.stderr);
}

#[test]
fn ecr_is_opened_by_the_command_line_of_aws() {
    let Some(registry) = registry() else { return };
    let proxy = Proxy::start(&[(&format!("{HOST}:80"), &registry.host())]);
    let home = Scratch::new();
    let check = |script: &str| {
        let bin = Scratch::new();
        bin.program(
            "aws",
            format!(
                "#!/bin/sh\ntest \"$*\" = 'ecr get-login-password --region us-east-1' || exit 9\n{script}\n"
            ),
        );
        run(&mut at_ecr(&proxy, &home, bin.path().to_str().unwrap(), &["keys", "check"]), LIMIT)
    };
    let good = check(&format!("echo {}", ECR.password)).expect_success("keys check at ECR");
    assert_discreet(&good);
    let throttled = format!(
        "if test -e '{0}'; then echo {1}; exit; fi; : > '{0}'\n\
         echo 'An error occurred (ThrottlingException) when calling GetAuthorizationToken: Rate exceeded' >&2; exit 254",
        home.join("asked").display(),
        ECR.password
    );
    check(&throttled).expect_success("keys check at ECR that throttles");
    let mut missing = at_ecr(&proxy, &home, "", &["keys", "check"]);
    let bin = Scratch::new();
    bin.program("aws", format!("#!/bin/sh\necho {}\n", ECR.password));
    missing.env("PATH", bin.path()).arg(format!("{HOST}/app:nothing"));
    let ended = run(&mut missing, LIMIT);
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("ECR takes no cache that is an index"), "{}", ended.stderr);
    let cases = [
        (
            "echo 'Unable to locate credentials' >&2; exit 253",
            format!("aws ecr get-login-password failed for {HOST} (exit status: 253): Unable to locate credentials"),
        ),
        (":", format!("aws ecr get-login-password printed no password for {HOST}")),
        (
            "echo other",
            "as \"AWS\" from aws ecr get-login-password (status 401) (UNAUTHORIZED: authentication required): these \
             credentials are wrong, or may not read app: check that the machine's role, or its AWS credentials, may \
             read app"
                .to_owned(),
        ),
    ];
    for (script, message) in cases {
        let ended = check(script);
        assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
        assert!(ended.stderr.contains(&message), "{}", ended.stderr);
    }

    let nothing = run(&mut at_ecr(&proxy, &home, "/nonexistent", &["keys", "check"]), LIMIT);
    assert_eq!(nothing.status.code(), Some(4), "{}", nothing.stderr);
    assert!(
        nothing.stderr.contains("install docker-credential-ecr-login or the AWS CLI"),
        "{}",
        nothing.stderr
    );
}

#[test]
fn a_password_on_standard_input_stands_nowhere_afterwards() {
    if !is_root() {
        return;
    }
    let Some(registry) = registry() else { return };
    let scratch = Scratch::new();
    fs::create_dir(scratch.join("home")).unwrap();
    let mut bake = warmkit();
    bake.args([
        "bake",
        &registry.reference("app", "cache"),
        "--username",
        ECR.user,
        "--password-stdin",
        "--root",
    ])
    .arg(scratch.join("root"))
    .env("HOME", scratch.join("home"))
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped());
    let mut child = bake.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(ECR.password.as_bytes()).unwrap();
    // It waits for the end of its input meanwhile; a process that has just begun has no command line yet.
    let deadline = Instant::now() + LIMIT;
    let mut lines = command_lines(child.id());
    while lines.trim().is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
        lines = command_lines(child.id());
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let ended = Ended { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
    let ended = ended.expect_success("bake with a password");
    assert_discreet(&ended);
    assert!(lines.contains("--username AWS --password-stdin"), "{lines}");
    assert!(secrets().iter().all(|secret| !lines.contains(secret)), "{lines}");
    assert_eq!(files_with_secrets(scratch.path()), Vec::<String>::new());

    let mut wrong = Command::new("/bin/sh");
    wrong.args(["-c", "echo hunter2 | exec \"$0\" keys check \"$1\" --username AWS --password-stdin"]);
    wrong.arg(env!("CARGO_BIN_EXE_warmkit")).arg(registry.reference("app", "cache"));
    let ended = run(&mut wrong, LIMIT);
    assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("as \"AWS\" from standard input"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2") && !ended.stdout.contains("hunter2"), "{}", ended.stderr);
}

#[test]
fn a_helper_is_told_no_secret_in_its_arguments() {
    let Some(registry) = registry() else { return };
    let scratch = Scratch::new();
    let fifo = scratch.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let answer = json!({ "Username": ECR.user, "Secret": ECR.password });
    scratch.program(
        "docker-credential-ours",
        format!("#!/bin/sh\nread go < '{}'\necho '{answer}'\n", fifo.display()),
    );
    let config = json!({ "credHelpers": { registry.host(): "ours" } });
    scratch.write("docker/config.json", config.to_string());
    let mut check = warmkit();
    check
        .args(["keys", "check", &registry.reference("app", "cache")])
        .env("DOCKER_CONFIG", scratch.join("docker"))
        .env("PATH", format!("{}:/usr/bin:/bin", scratch.path().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = check.spawn().unwrap();
    // Blocks until the helper runs, and holds it meanwhile.
    let mut go = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let lines = command_lines(child.id());
    go.write_all(b"on\n").unwrap();
    drop(go);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lines.contains("docker-credential-ours get"), "{lines}");
    assert!(secrets().iter().all(|secret| !lines.contains(secret)), "{lines}");
}

/// Answers every request so, and ends the connection.
fn always(answer: &'static str) -> Serving {
    Serving::start(move |mut stream| {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        stream.write_all(answer.as_bytes())
    })
}

#[test]
fn each_source_goes_before_those_below_it() {
    let registry = always(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"\r\nContent-Length: 0\r\nConnection: \
         close\r\n\r\n",
    );
    let proxy = Proxy::start(&[(&format!("{HOST}:80"), &registry.address.to_string())]);
    let home = Scratch::new();
    let login = |user: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:wrong-{user}"));
        json!({ HOST: { "auth": auth } })
    };
    let auths = |user: &str| json!({ "auths": login(user) }).to_string();
    let helper = |name: &str| {
        let answer = json!({ "Username": name, "Secret": format!("wrong-{name}") });
        home.program(format!("bin/docker-credential-{name}"), format!("#!/bin/sh\necho '{answer}'\n"))
    };
    fs::create_dir(home.join("bin")).unwrap();
    let named = home.write("named.json", auths("named"));
    home.write(".docker/config.json", auths("docker"));
    home.write("run/containers/auth.json", auths("runtime"));
    home.write(".config/containers/auth.json", auths("podman"));
    let ecr = [helper("ours"), helper("store"), helper("ecr-login")][2].clone();
    home.program("bin/aws", "#!/bin/sh\necho wrong-aws\n");
    let at = |path: &str| home.join(path).display().to_string();

    // Each in the place of its number, with all that come after it.
    let sources = [
        " from standard input".to_owned(),
        format!("from {}", named.display()),
        "from $DOCKER_AUTH_CONFIG".to_owned(),
        "from credential helper docker-credential-ours".to_owned(),
        "from credential helper docker-credential-store".to_owned(),
        format!("from {}", at("folder/config.json")),
        format!("from {}", at(".docker/config.json")),
        format!("from {}", at("run/containers/auth.json")),
        format!("from {}", at(".config/containers/auth.json")),
        "from credential helper docker-credential-ecr-login".to_owned(),
        "from aws ecr get-login-password".to_owned(),
    ];
    for (from, source) in sources.iter().enumerate() {
        let path = format!("{}:/usr/bin:/bin", at("bin"));
        let mut check = Command::new("/bin/sh");
        check.args([
            "-c",
            "echo wrong-given | exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_warmkit"),
            "keys",
            "check",
        ]);
        check.args([&format!("{HOST}/app:cache"), "--insecure", "--progress", "rawjson"]);
        check.env_clear().env("HOME", home.path()).env("HTTPS_PROXY", proxy.url());
        if from == 0 {
            check.args(["--username", "given", "--password-stdin"]);
        }
        if from <= 1 {
            check.env("REGISTRY_AUTH_FILE", &named);
        }
        if from <= 2 {
            check.env("DOCKER_AUTH_CONFIG", auths("variable"));
        }
        let mut config = json!({ "auths": login("folder") });
        if from <= 3 {
            config["credHelpers"] = json!({ HOST: "ours" });
        }
        if from <= 4 {
            config["credsStore"] = json!("store");
        }
        home.write("folder/config.json", config.to_string());
        if from <= 5 {
            check.env("DOCKER_CONFIG", home.join("folder"));
        }
        if from <= 7 {
            check.env("XDG_RUNTIME_DIR", home.join("run"));
        }
        let gone = [
            (7, home.join(".docker/config.json")),
            (9, home.join(".config/containers/auth.json")),
            (10, ecr.clone()),
        ];
        gone.into_iter().filter(|(at, _)| *at == from).for_each(|(_, file)| fs::remove_file(file).unwrap());
        // The machine's own helper of AWS would answer in the place of the one that is gone.
        check.env("PATH", if from == 10 { at("bin") } else { path });
        let ended = run(&mut check, LIMIT);
        assert_eq!(ended.status.code(), Some(4), "{source}: {}", ended.stderr);
        assert!(ended.stderr.contains(source), "{}\n  wanted: {source}", ended.stderr);
        assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("wrong-"), "{}", ended.stderr);
    }
}

#[test]
fn a_proxy_that_is_not_named_right_is_no_matter_of_the_registry() {
    let refusing = always(
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"p\"\r\nContent-Length: \
         0\r\nConnection: close\r\n\r\n",
    );
    let address = refusing.address;
    let cases = [
        (
            format!("http://ci:hunter2@{address}"),
            format!("the proxy {address} wants a user and a password, or others: write"),
        ),
        (
            format!("http://{address}"),
            format!("the proxy {address} wants a user and a password, or others: write"),
        ),
        (
            format!("http://ci:hun ter2@{address}"),
            "the proxy $HTTPS_PROXY is no URL of a proxy: write http".to_owned(),
        ),
        (
            "http://ci:hunter2@127.0.0.1:1".to_owned(),
            "registry.example (by the proxy 127.0.0.1:1): Connection refused".to_owned(),
        ),
    ];
    for (url, message) in cases {
        let mut check = warmkit();
        check.env_clear().env("HTTPS_PROXY", &url);
        check.args(["keys", "check", "registry.example/app:cache", "--progress", "rawjson"]);
        let ended = run(&mut check, LIMIT);
        let code = if message.contains("refused") { 3 } else { 4 };
        assert_eq!(ended.status.code(), Some(code), "{url}: {}", ended.stderr);
        assert!(ended.stderr.contains(&message), "{}\n  wanted: {message}", ended.stderr);
        assert!(!ended.stderr.contains("hun"), "{}", ended.stderr);
    }
}

#[test]
fn a_password_in_a_reference_is_not_repeated() {
    let cases: [&[&str]; 4] = [
        &["bake", "ci:hunter2@registry.example/app:cache"],
        &["plan", "https://ci:hunter2@registry.example/app:cache"],
        &["keys", "check", "r.example/app", "--keys-from", "ci:hunter2@registry.example/app:cache"],
        &["keys", "harvest", "type=image,ref=ci:hunter2@registry.example/app", "-o", "/nonexistent"],
    ];
    for arguments in cases {
        let mut command = warmkit();
        command.args(arguments);
        let ended = run(&mut command, LIMIT);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("is written with a user or a password"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[test]
fn a_password_needs_one_registry() {
    let cases: [(&[&str], &str); 5] = [
        (&["--from-file", "-"], "standard input cannot be both the list of caches and the password"),
        (&["@-", "r.example/a:1"], "standard input cannot be both the list of caches and the password"),
        (&["r.example/a:1", "s.example/a:1"], "in several (r.example, s.example): use docker login"),
        (&["type=local,src=x"], "no cache or key source is in one"),
        (&["r.example/a:1"], "standard input has no password"),
    ];
    for (caches, message) in cases {
        let mut check = warmkit();
        check.args(["keys", "check", "--username", "ci", "--password-stdin"]).args(caches);
        let ended = run(&mut check, LIMIT);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(message), "{}", ended.stderr);
    }
}

#[test]
fn githubs_registry_is_opened_by_a_workflows_token() {
    if !is_root() {
        return;
    }
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let registry = Registry::start(&tools);
    push_cache(&registry, "acme/app");
    push_cache(&registry, "acme/private");
    let ghcr = Ghcr::start(&registry, ("x-access-token", TOKEN), "acme/app", 2);
    let proxy = Proxy::start(&[(&format!("{}:80", ghcr::HOST), &ghcr.address())]);
    let scratch = Scratch::new();
    let bake = |reference: &str, token: Option<&str>| {
        let mut bake = warmkit();
        bake.env_clear().env("HOME", scratch.path()).env("HTTPS_PROXY", proxy.url());
        token.map(|token| bake.env("GITHUB_TOKEN", token));
        bake.args(["bake", reference, "--insecure", "--root"]).arg(scratch.join("root"));
        run(&mut bake, LIMIT)
    };
    let discreet = |ended: &Ended| {
        for text in [&ended.stdout, &ended.stderr] {
            assert!(!text.contains(TOKEN) && !text.contains("token-1"), "{text}");
        }
    };

    let ended = bake("ghcr.io/acme/app:cache", Some(TOKEN)).expect_success("bake from ghcr.io");
    discreet(&ended);
    let log = ghcr.take_log();
    // A token does for two requests: manifest, config, sidecars and layer are more.
    assert!(log.tokens.len() > 1, "{log:?}");
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{TOKEN}"));
    for (query, authorization) in &log.tokens {
        assert_eq!(authorization, &format!("Basic {basic}"), "{query}");
        let parts: Vec<&str> = query.split('&').collect();
        let expected = ["service=ghcr.io", "scope=repository%3Aacme%2Fapp%3Apull", "account=x-access-token"];
        assert_eq!(parts, expected);
    }
    // The registry itself sees tokens alone.
    assert!(log.shown.iter().all(|shown| shown.is_empty() || shown.starts_with("Bearer ")), "{log:?}");
    fs::remove_dir_all(scratch.join("root")).unwrap();

    let from = "as \"x-access-token\" from $GITHUB_TOKEN (status 403) (DENIED: denied): these credentials may not read";
    let advice = "let it read acme/";
    for (reference, token, messages) in [
        ("ghcr.io/acme/app:cache", Some("ghs_ended"), [from, advice]),
        ("ghcr.io/acme/private:cache", Some(TOKEN), [from, advice]),
        (
            "ghcr.io/acme/app:cache",
            None,
            ["without credentials", "set $GITHUB_TOKEN, or run docker login ghcr.io"],
        ),
    ] {
        let ended = bake(reference, token);
        assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
        assert!(messages.iter().all(|message| ended.stderr.contains(message)), "{}", ended.stderr);
        discreet(&ended);
    }
    assert!(!scratch.join("root").exists());
}

#[test]
fn a_file_of_credentials_that_is_not_there_is_passed_over_as_skopeo_does() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    if !Command::new("skopeo").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        return skip("no skopeo");
    }
    let registry = Registry::start_with_password(&tools);
    push_cache(&registry, "app");
    let reference = registry.reference("app", "cache");
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let config = json!({ "auths": { registry.host(): { "auth": auth } } });
    let home = Scratch::new();
    home.write(".docker/config.json", config.to_string());
    let absent = home.join("absent.json");
    let with = |mut command: Command, home: &Path| {
        run(command.env_remove("DOCKER_CONFIG").env("HOME", home).env("REGISTRY_AUTH_FILE", &absent), LIMIT)
    };
    let skopeo = || {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
        skopeo
    };
    let check = || {
        let mut check = warmkit();
        check.args(["keys", "check", &reference]);
        check
    };
    with(skopeo(), home.path()).expect_success("skopeo inspect");
    with(check(), home.path()).expect_success("keys check");

    // Where nothing else has any, it is said.
    let nowhere = Scratch::new();
    assert!(!with(skopeo(), nowhere.path()).status.success());
    let ended = with(check(), nowhere.path());
    assert_eq!(ended.status.code(), Some(4), "{}", ended.stderr);
    let message = format!("{}, which $REGISTRY_AUTH_FILE names and is not there", absent.display());
    assert!(ended.stderr.contains(&message), "{}", ended.stderr);
}
