//! Azurite, Azure's own emulator of its storage, on a loopback port; gone when dropped.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Scratch, command, skip, tools};

/// The account that is there.
pub const ACCOUNT: &str = "warmkit";
/// Its key.
pub const KEY: &str = "bm90IGEgc2VjcmV0LCBvbmx5IGEga2V5IG9mIGEgdGVzdA==";

/// A running emulator.
#[derive(Debug)]
pub struct Azurite {
    child: Child,
    url: String,
    scratch: Scratch,
}

impl Azurite {
    /// Starts one; `None` where it is not installed, after it said so.
    #[track_caller]
    pub fn start() -> Option<Self> {
        Self::launch(Scratch::new(), &[])
    }

    /// Starts one that takes tokens, which it does over TLS only. It does not check their signatures, but all
    /// that is in them.
    #[track_caller]
    pub fn start_with_tokens() -> Option<Self> {
        let Some(openssl) = tools::on_path("openssl") else {
            skip::skip("no openssl, for a certificate");
            return None;
        };
        let scratch = Scratch::new();
        let mut command = Command::new(openssl);
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=azurite", "-days", "2"]);
        command.args([
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        command.args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(scratch.path());
        command::run(&mut command, Duration::from_secs(60)).expect_success("openssl");
        Self::launch(scratch, &["--oauth", "basic", "--cert", "cert.pem", "--key", "key.pem"])
    }

    #[track_caller]
    fn launch(scratch: Scratch, arguments: &[&str]) -> Option<Self> {
        let program = tools::directory().map(|dir| dir.join("azurite/bin/azurite-blob"));
        let Some(program) = program.filter(|path| path.is_file()) else {
            skip::skip("no azurite");
            return None;
        };
        let log = File::create(scratch.join("log")).unwrap();
        // With port 0 the kernel picks one. Daemons are newer than the emulator: it takes their version.
        let child = Command::new(program)
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--skipApiVersionCheck"])
            .args(["--inMemoryPersistence", "--disableTelemetry"])
            .args(arguments)
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut azurite = Self { child, url: String::new(), scratch };
        azurite.url = azurite.address();
        Some(azurite)
    }

    /// Where it says that it listens.
    fn address(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let log = std::fs::read_to_string(self.scratch.join("log")).unwrap_or_default();
            let found = log.lines().find_map(|line| line.split_once("successfully listens on "));
            if let Some((_, url)) = found.filter(|_| log.ends_with('\n')) {
                return url.trim().to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "azurite does not come up: {ended:?}\n{log}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A directory of certificates, as docker has them, in which its own is trusted.
    pub fn certs_dir(&self) -> PathBuf {
        let authority = self.url.trim_start_matches("https://");
        let pem = std::fs::read(self.scratch.join("cert.pem")).unwrap();
        self.scratch.write(format!("certs/{authority}/ca.crt"), pem);
        self.scratch.join("certs")
    }

    /// Stores a blob in the default container, as who has this token.
    pub fn put(&self, token: &str, name: &str, bytes: &[u8]) {
        let tls = ureq::tls::TlsConfig::builder().disable_verification(true).build();
        let agent = ureq::Agent::config_builder().proxy(None).tls_config(tls).build().new_agent();
        let container = format!("{}/{ACCOUNT}/buildkit-cache", self.url);
        for (url, body) in
            [(format!("{container}?restype=container"), &b""[..]), (format!("{container}/{name}"), bytes)]
        {
            let put = agent.put(url).header("authorization", format!("Bearer {token}"));
            let put = put.header("x-ms-version", "2021-12-02").header("x-ms-blob-type", "BlockBlob");
            assert_eq!(put.send(body).unwrap().status(), 201, "{name}");
        }
    }

    /// `type=azblob` with its account, and these attributes (each with a comma before it).
    pub fn cache(&self, attributes: &str) -> String {
        format!("type=azblob,account_url={}/{ACCOUNT},account_name={ACCOUNT}{attributes}", self.url)
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
