//! moto's server of AWS on a loopback port, which lets in only who signs; gone when dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Scratch, skip, tools};

/// The bucket that is there.
pub const BUCKET: &str = "cache";
/// The region that it is in.
pub const REGION: &str = "us-east-1";
/// A role that may read it.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/reader";

/// What moto takes for a signature while nobody has to sign.
const SIGNED_BY_NOBODY: &str =
    "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A running server.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    url: String,
    /// The id of the access key that is let in.
    pub key_id: String,
    /// The key itself.
    pub secret: String,
    agent: ureq::Agent,
    _scratch: Scratch,
}

impl Moto {
    /// Starts one; `None` where it is not installed, after it said so.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let mut moto = Self::launch(&[])?;
        moto.set_up();
        Some(moto)
    }

    /// Starts one that lets everybody in.
    #[track_caller]
    pub fn start_open() -> Option<Self> {
        Self::launch(&[])
    }

    /// Starts one that speaks https, and lets everybody in.
    #[track_caller]
    pub fn start_https(certificate: &Path, key: &Path) -> Option<Self> {
        Self::launch(&["-c".as_ref(), certificate.as_os_str(), "-k".as_ref(), key.as_os_str()])
    }

    #[track_caller]
    fn launch(arguments: &[&OsStr]) -> Option<Self> {
        let program = tools::directory().map(|dir| dir.join("moto/bin/moto-server"));
        let Some(program) = program.filter(|path| path.is_file()) else {
            skip::skip("no moto server");
            return None;
        };
        let scratch = Scratch::new();
        let log = File::create(scratch.join("log")).unwrap();
        // With port 0 the kernel picks one.
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .args(arguments)
            .env("MOTO_ALLOW_NONEXISTENT_REGION", "true")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        let mut moto = Self {
            child,
            url: String::new(),
            key_id: String::new(),
            secret: String::new(),
            agent,
            _scratch: Scratch::new(),
        };
        moto.url = moto.address(&scratch);
        Some(moto)
    }

    /// Where it says that it listens.
    fn address(&mut self, scratch: &Scratch) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let log = std::fs::read_to_string(scratch.join("log")).unwrap_or_default();
            let found = log.lines().find_map(|line| line.split_once("Running on "));
            if let Some((_, url)) = found.filter(|_| log.ends_with('\n')) {
                return url.trim().to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "moto does not come up: {ended:?}\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a bucket, and a user and a role that may do everything with it; from then on everybody
    /// has to sign.
    fn set_up(&mut self) {
        let all = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*","sts:*"],"Resource":"*"}]}"#;
        self.iam(&[("Action", "CreateUser"), ("UserName", "ci")]);
        let key = self.iam(&[("Action", "CreateAccessKey"), ("UserName", "ci")]);
        let text = |name: &str| texts(&key, name).remove(0);
        (self.key_id, self.secret) = (text("AccessKeyId"), text("SecretAccessKey"));
        let policy = [("PolicyName", "all"), ("PolicyDocument", all)];
        self.iam(&[&[("Action", "PutUserPolicy"), ("UserName", "ci")], &policy[..]].concat());
        let role = ROLE.rsplit('/').next().unwrap();
        self.iam(&[("Action", "CreateRole"), ("RoleName", role), ("AssumeRolePolicyDocument", all)]);
        self.iam(&[&[("Action", "PutRolePolicy"), ("RoleName", role)], &policy[..]].concat());
        assert_eq!(self.agent.put(self.object("")).send_empty().unwrap().status(), 200);
        self.require_signatures(true);
    }

    /// Has everybody sign, or nobody.
    fn require_signatures(&self, require: bool) {
        self.let_in(if require { "0" } else { "inf" });
    }

    /// Has everybody sign, but for the next so many requests.
    pub fn let_in_unsigned(&self, count: u32) {
        self.let_in(&count.to_string());
    }

    fn let_in(&self, count: &str) {
        let url = format!("{}/moto-api/reset-auth", self.url);
        let response = self.agent.post(url).content_type("text/plain").send(count).unwrap();
        assert_eq!(response.status(), 200);
    }

    /// Asks IAM, while nobody has to sign. Gives XML.
    pub fn iam(&self, form: &[(&str, &str)]) -> String {
        self.query("iam", "2010-05-08", form)
    }

    /// Asks EC2, while nobody has to sign. Gives XML.
    pub fn ec2(&self, form: &[(&str, &str)]) -> String {
        self.query("ec2", "2016-11-15", form)
    }

    fn query(&self, service: &str, version: &str, form: &[(&str, &str)]) -> String {
        let request =
            self.agent.post(&self.url).header("authorization", SIGNED_BY_NOBODY.replace("s3", service));
        let form = form.iter().copied().chain([("Version", version)]);
        let mut response = request.send_form(form).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        assert_eq!(response.status(), 200, "{text}");
        text
    }

    /// Where it listens: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn object(&self, key: &str) -> String {
        format!("{}/{BUCKET}/{key}", self.url)
    }

    /// The keys of all objects; nobody has to sign meanwhile.
    pub fn keys(&self) -> Vec<String> {
        self.require_signatures(false);
        let mut response = self.agent.get(format!("{}?list-type=2", self.object(""))).call().unwrap();
        let xml = response.body_mut().read_to_string().unwrap();
        self.require_signatures(true);
        texts(&xml, "Key")
    }

    /// Replaces an object, or deletes it.
    pub fn replace(&self, key: &str, bytes: Option<&[u8]>) {
        self.require_signatures(false);
        let url = self.object(&key.replace(':', "%3A"));
        let response = match bytes {
            Some(bytes) => self.agent.put(url).header("authorization", SIGNED_BY_NOBODY).send(bytes),
            None => self.agent.delete(url).header("authorization", SIGNED_BY_NOBODY).call(),
        };
        let mut response = response.unwrap();
        let said = response.body_mut().read_to_string().unwrap();
        assert!(response.status().is_success(), "{key}: {} {said}", response.status());
        self.require_signatures(true);
    }

    /// `type=s3` with what every cache on it needs, and these attributes (each with a comma before it).
    pub fn cache(&self, attributes: &str) -> String {
        let url = &self.url;
        format!("type=s3,region={REGION},bucket={BUCKET},endpoint_url={url},use_path_style=true{attributes}")
    }

    /// The attributes of the access key.
    pub fn key_attributes(&self) -> String {
        format!(",access_key_id={},secret_access_key={}", self.key_id, self.secret)
    }
}

/// The texts of all elements of XML that have this name.
pub fn texts(xml: &str, name: &str) -> Vec<String> {
    let text = |rest: &str| rest.split('<').next().unwrap().to_owned();
    xml.split(&format!("<{name}>")).skip(1).map(text).collect()
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
