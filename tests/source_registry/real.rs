//! The same against docker's own registry.
//!
//! Skipped where `docker-registry` is not installed, unless `WARMKIT_REQUIRE_REAL=1`.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use warmkit::digest::Digest;
use warmkit::oci::media_type::{CACHE_CONFIG, OCI_INDEX, OCI_MANIFEST};
use warmkit::oci::{Descriptor, Document};
use warmkit::progress::Silent;
use warmkit::source::{CacheSpec, ErrorClass, Options, Registry, Source};

use crate::auth::with_config;
use crate::skip::skip;
use crate::{Log, bytes, descriptor, options};

const PROGRAMS: [&str; 2] = ["docker-registry", "registry"];
/// bcrypt of `secret`.
const HTPASSWD: &str = "ci:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn run(program: &str, args: &[&str], dir: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

struct Real {
    child: Child,
    addr: SocketAddr,
    dir: TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// Starts a registry with these lines of configuration in addition; `None` where there is none.
    fn start(dir: TempDir, http: &str, more: &str) -> Option<Self> {
        let program = PROGRAMS.iter().find(|program| run(program, &["--version"], dir.path()))?;
        // Another process may take the port between these two: try again.
        for _ in 0..5 {
            let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let root = dir.path().join("data");
            let config = format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http:\n  addr: {addr}\n{http}{more}",
                root.display()
            );
            let file = dir.path().join("registry.yml");
            std::fs::write(&file, config).unwrap();
            let mut child = Command::new(program)
                .arg("serve")
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut log = BufReader::new(child.stderr.take().unwrap());
            let mut line = String::new();
            while log.read_line(&mut line).unwrap_or(0) > 0 && !line.contains("listening on") {
                line.clear();
            }
            // Its log must be drained, or it stops.
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            if !line.is_empty() {
                return Some(Self { child, addr, dir });
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("the registry does not start");
    }

    /// Puts a blob straight into the registry's storage, as a push would.
    fn blob(&self, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        self.write(&format!("blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex()), bytes);
        self.write(
            &format!("repositories/acme/app/_layers/sha256/{}/link", digest.hex()),
            digest.to_string().as_bytes(),
        );
        Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", digest, bytes.len() as u64)
    }

    fn manifest(&self, tag: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let link = digest.to_string();
        self.write(&format!("blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex()), bytes);
        let manifests = "repositories/acme/app/_manifests";
        self.write(&format!("{manifests}/revisions/sha256/{}/link", digest.hex()), link.as_bytes());
        self.write(&format!("{manifests}/tags/{tag}/current/link"), link.as_bytes());
        self.write(&format!("{manifests}/tags/{tag}/index/sha256/{}/link", digest.hex()), link.as_bytes());
        digest
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.dir.path().join("data/docker/registry/v2").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn open(&self, tag: &str, options: &Options) -> Registry {
        Registry::open(&format!("{}/acme/app:{tag}", self.addr).parse().unwrap(), options).unwrap()
    }
}

/// A cache with one layer, as an image manifest.
fn image(config: &Descriptor, layer: &Descriptor) -> Vec<u8> {
    let config = json_descriptor(config, CACHE_CONFIG);
    let layers = [json_descriptor(layer, &layer.media_type)];
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
        .to_string()
        .into_bytes()
}

/// The same as an index.
fn index(config: &Descriptor, layer: &Descriptor) -> Vec<u8> {
    let manifests = [json_descriptor(layer, &layer.media_type), json_descriptor(config, CACHE_CONFIG)];
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string().into_bytes()
}

fn json_descriptor(descriptor: &Descriptor, media_type: &str) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": descriptor.digest, "size": descriptor.size})
}

#[test]
fn pulls_a_cache_in_both_forms() {
    let Some(real) = Real::start(tempfile::tempdir().unwrap(), "", "") else {
        return skip("docker-registry is not installed");
    };
    let layer = bytes(3_000_000);
    let (layer_blob, config_blob) = (real.blob(&layer), real.blob(b"{}"));
    let forms = [
        ("image", image(&config_blob, &layer_blob), OCI_MANIFEST),
        ("index", index(&config_blob, &layer_blob), OCI_INDEX),
    ];
    for (tag, document, media_type) in forms {
        let digest = real.manifest(tag, &document);
        let spec: CacheSpec = format!("type=registry,ref={}/acme/app:{tag}", real.addr).parse().unwrap();
        let source = spec.open(&options()).unwrap();
        let manifest = source.manifest(None, &Silent).unwrap();
        assert_eq!((manifest.digest, manifest.media_type.as_str()), (digest, media_type));
        assert_eq!(manifest.bytes, document);
        assert_eq!(source.manifest(Some(&digest), &Silent).unwrap(), manifest);

        let cache = Document::parse(&manifest.bytes).unwrap().into_cache().unwrap();
        assert_eq!(source.document(&cache.config, &Silent).unwrap(), b"{}");
        let log = Log::default();
        let mut out = Vec::new();
        source.blob(&cache.layers[0], &mut out, &log).unwrap();
        assert_eq!(out, layer);
        assert!(log.retries().is_empty());
    }

    let error = real.open("absent", &options()).manifest(None, &Silent).unwrap_err();
    let start = format!("no such tag \"absent\" in repository {}/acme/app (MANIFEST_UNKNOWN", real.addr);
    assert!(error.to_string().starts_with(&start), "{error}");
    let error = real.open("image", &options()).document(&descriptor(b"absent"), &Silent).unwrap_err();
    assert!(error.to_string().contains("(BLOB_UNKNOWN"), "{error}");
}

#[test]
fn logs_in_with_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let htpasswd = dir.path().join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", htpasswd.display());
    let Some(real) = Real::start(dir, "", &auth) else { return skip("docker-registry is not installed") };
    let blob = real.blob(b"layer");
    let digest = real.manifest("cache", &image(&real.blob(b"{}"), &blob));

    let error = real.open("cache", &options()).manifest(None, &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth, "{error}");
    assert!(error.to_string().contains("without credentials (status 401)"), "{error}");

    let config = tempfile::tempdir().unwrap();
    let with = |password: &str| {
        let auths = json!({real.addr.to_string(): {"username": "ci", "password": password}});
        with_config(config.path(), &json!({"auths": auths}))
    };
    let error = real.open("cache", &with("wrong")).manifest(None, &Silent).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Auth, "{error}");
    let registry = real.open("cache", &with("secret"));
    assert_eq!(registry.manifest(None, &Silent).unwrap().digest, digest);
    assert_eq!(registry.document(&blob, &Silent).unwrap(), b"layer");
}

/// What `openssl ca` needs; nothing else writes certificates that have expired.
const AUTHORITY: &str = "[ca]\ndefault_ca = authority\n[authority]\ndatabase = index.txt\nnew_certs_dir = .\n\
                         rand_serial = yes\ndefault_md = sha256\npolicy = policy\n[policy]\ncommonName = supplied\n";

/// An authority (`ca`), and certificates that it has signed: `leaf` for 127.0.0.1, `other` for another name, and `old`,
/// which has expired. `None` without openssl.
fn certificates() -> Option<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("leaf.ext", "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:false\n");
    write("other.ext", "subjectAltName=DNS:other.example\nbasicConstraints=CA:false\n");
    write("ca.cnf", AUTHORITY);
    write("index.txt", "");
    let commands = [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 \
         -subj /CN=test-authority",
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr \
         -subj /CN=registry",
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.crt",
        "x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile other.ext -out other.crt",
        "ca -batch -notext -config ca.cnf -cert ca.crt -keyfile ca.key -in leaf.csr -extfile leaf.ext -out old.crt \
         -startdate 20200101000000Z -enddate 20210101000000Z",
    ];
    let all = commands
        .iter()
        .all(|command| run("openssl", &command.split_whitespace().collect::<Vec<_>>(), dir.path()));
    all.then_some(dir)
}

/// The lines of a registry's configuration for the certificate of this name.
fn tls(certificates: &TempDir, name: &str) -> String {
    let file = |name: String| certificates.path().join(name).display().to_string();
    let key = if name == "ca" { "ca.key" } else { "leaf.key" };
    format!("  tls: {{certificate: {}, key: {}}}\n", file(format!("{name}.crt")), file(key.to_owned()))
}

/// Options that trust the authority for a registry.
fn trusting(certificates: &TempDir, real: &Real) -> Options {
    let of_host = certificates.path().join("certs.d").join(real.addr.to_string());
    std::fs::create_dir_all(&of_host).unwrap();
    std::fs::copy(certificates.path().join("ca.crt"), of_host.join("ca.crt")).unwrap();
    Options { certs_dirs: vec![certificates.path().join("certs.d")], ..options() }
}

#[test]
fn trusts_an_authority_of_its_own_and_falls_back_to_https() {
    let Some(certificates) = certificates() else { return skip("openssl is not installed") };
    let real = Real::start(tempfile::tempdir().unwrap(), &tls(&certificates, "leaf"), "");
    let Some(real) = real else { return skip("docker-registry is not installed") };
    let blob = real.blob(b"layer");
    let options = trusting(&certificates, &real);
    assert_eq!(real.open("cache", &options).document(&blob, &Silent).unwrap(), b"layer");
}

#[test]
fn says_of_each_certificate_why_it_is_not_trusted() {
    let Some(certificates) = certificates() else { return skip("openssl is not installed") };
    let cases = [
        (
            "leaf",
            false,
            "nobody whom this machine trusts has signed its certificate: put the certificate of the authority",
        ),
        ("other", true, "its certificate is not for that name, but for other.example: use a name that"),
        (
            "old",
            true,
            "its certificate expired on 2021-01-01T00:00:00Z: have it renewed there, or set this machine's clock",
        ),
        ("ca", true, "its certificate is that of an authority: give the server one of its own"),
    ];
    for (name, is_trusted, message) in cases {
        let real = Real::start(tempfile::tempdir().unwrap(), &tls(&certificates, name), "");
        let Some(real) = real else { return skip("docker-registry is not installed") };
        let options = if is_trusted { trusting(&certificates, &real) } else { options() };
        let error = real.open("cache", &options).manifest(None, &Silent).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unavailable);
        let start = format!("{}: no trusted TLS connection: {message}", real.addr);
        assert!(error.to_string().starts_with(&start), "{error}\n  wanted: {start}");
    }
}
