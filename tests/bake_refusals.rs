//! Bad input: each kind has a message of its own, an exit code of its own, and loses nothing.
//!
//! The caches are OCI layouts made here, so nothing but this binary runs.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/skip.rs"]
mod skip;
#[path = "support/tmpfs.rs"]
mod tmpfs;

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use skip::is_root;
use tmpfs::Tmpfs;
use warmkit::digest::{DiffId, Digest};

const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A cache under construction; a test spoils one thing of it.
struct Fixture {
    dir: tempfile::TempDir,
    config_type: &'static str,
    config: Value,
    layers: Vec<Value>,
    tags: Vec<Option<&'static str>>,
}

fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

impl Fixture {
    /// A sound cache: one layer, one root record that has it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cache/blobs/sha256")).unwrap();
        let mut fixture = Self {
            dir,
            config_type: CACHE_CONFIG,
            config: Value::Null,
            layers: Vec::new(),
            tags: vec![Some("latest")],
        };
        let tar = tar("file", b"content");
        let layer = fixture.layer(GZIP, &gzip(&tar), &tar);
        fixture.config = json!({
            "layers": [{"blob": layer, "parent": -1}],
            "records": [{"digest": Digest::of(b"root"), "layers": [{"layer": 0}]}],
        });
        fixture
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        digest
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.cache().join("blobs/sha256").join(digest.hex())
    }

    fn layer(&mut self, media_type: &str, blob: &[u8], tar: &[u8]) -> Digest {
        let digest = self.blob(blob);
        self.layers.push(json!({
            "mediaType": media_type, "digest": digest, "size": blob.len(),
            "annotations": {"containerd.io/uncompressed": DiffId::of(tar)},
        }));
        digest
    }

    /// Writes config, manifest and index, and bakes.
    fn bake(&self) -> Output {
        self.write();
        self.command().output().unwrap()
    }

    fn write(&self) {
        let config = self.config.to_string();
        let entry = |tag: Option<&str>| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "layers": self.layers,
                "config": {
                    "mediaType": self.config_type,
                    "digest": self.blob(config.as_bytes()),
                    "size": config.len(),
                },
                "annotations": {"tag": tag.unwrap_or_default()},
            })
            .to_string();
            let digest = self.blob(manifest.as_bytes());
            let mut entry = json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.len()});
            if let Some(tag) = tag {
                entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
            }
            entry
        };
        let manifests: Vec<Value> = self.tags.iter().copied().map(entry).collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        fs::write(self.cache().join("index.json"), index).unwrap();
        fs::write(self.cache().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
        command.arg("bake").arg(format!("type=local,src={}", self.cache().display()));
        command.arg("--root").arg(self.root());
        command
    }

    /// Everything beside the cache itself: what a refused bake must not change.
    fn surroundings(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.clone());
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        found.retain(|path| !path.starts_with(self.cache()));
        found.sort();
        found
    }
}

/// The last line on standard error, paths and digests replaced by what they are.
fn message(fixture: &Fixture, output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.lines().rfind(|line| line.starts_with("error: ")).unwrap_or(&text).to_owned();
    let line = line.replace(&fixture.dir.path().display().to_string(), "<dir>");
    let mut parts = line.split("sha256:");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let hex = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        out.push_str(if hex == 64 { "<digest>" } else { "sha256:" });
        out.push_str(if hex == 64 { &part[64..] } else { part });
    }
    out
}

/// Runs a case and checks message, exit code, and that nothing was left or changed.
#[track_caller]
fn refused(fixture: &Fixture, code: i32, expected: &str) {
    let before = fixture.surroundings();
    let output = fixture.bake();
    let message = message(fixture, &output);
    assert_eq!(message, expected);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(fixture.surroundings(), before, "{message}");
}

#[test]
fn a_sound_cache_bakes() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let output = fixture.bake();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = fixture.root().join("runc-overlayfs/snapshots/snapshots/1/fs/file");
    assert_eq!(fs::read(file).unwrap(), b"content");
}

#[test]
fn caches_that_are_none() {
    if !is_root() {
        return;
    }
    let mut image = Fixture::new();
    image.config_type = "application/vnd.oci.image.config.v1+json";
    refused(
        &image,
        5,
        "error: type=local,src=<dir>/cache: an image, not a build cache, and it carries no inline cache: name what --cache-to type=registry,ref=REF exported, or push the image with --cache-to type=inline",
    );

    let mut empty = Fixture::new();
    empty.config = json!({});
    empty.layers.clear();
    refused(&empty, 5, "error: type=local,src=<dir>/cache: the cache is empty: it has no records");

    let mut other = Fixture::new();
    other.config = json!("text");
    refused(
        &other,
        5,
        "error: type=local,src=<dir>/cache: the cache config is not valid: invalid type: string \"text\", expected struct CacheConfig at line 1 column 6",
    );
}

#[test]
fn tags_that_are_not_there_or_not_clear() {
    if !is_root() {
        return;
    }
    let mut two = Fixture::new();
    two.tags = vec![Some("main"), Some("next")];
    refused(
        &two,
        2,
        "error: type=local,src=<dir>/cache: <dir>/cache holds several caches, add one of: tag=main (<digest>), tag=next (<digest>)",
    );

    let fixture = Fixture::new();
    fixture.write();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.arg("bake").arg(format!("type=local,src={},tag=nope", fixture.cache().display()));
    let output = command.arg("--root").arg(fixture.root()).output().unwrap();
    assert_eq!(
        message(&fixture, &output),
        "error: type=local,src=<dir>/cache,tag=nope: no tag \"nope\" in <dir>/cache; it has: tag=latest (<digest>)"
    );
    assert_eq!(output.status.code(), Some(3));

    let nothing = Fixture::new();
    let output = nothing.command().output().unwrap();
    assert_eq!(
        message(&nothing, &output),
        "error: type=local,src=<dir>/cache: <dir>/cache is not an OCI layout: it has no index.json"
    );
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn indexes_that_do_not_fit() {
    if !is_root() {
        return;
    }
    let record = |extra: Value| {
        let mut record = json!({"digest": Digest::of(b"root")});
        record.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        record
    };
    let cases = [
        (
            json!({"layers": [{"layer": 7}]}),
            "error: type=local,src=<dir>/cache: record 0 (<digest>) points at layer 7, but there are only 1",
        ),
        (
            json!({"chains": [{"layers": [0, -1]}]}),
            "error: type=local,src=<dir>/cache: record 0 (<digest>), chain points at layer -1, but there are only 1",
        ),
        (
            json!({"inputs": [[{"link": 4}]]}),
            "error: type=local,src=<dir>/cache: record 0 (<digest>), input 0 points at record 4, but there are only 1",
        ),
        (
            json!({"inputs": [[{"link": 0}]]}),
            "error: type=local,src=<dir>/cache: cache config has a cycle through record 0",
        ),
        (
            json!({"inputs": [[]]}),
            "error: type=local,src=<dir>/cache: record 0 (<digest>): input 0 has no link",
        ),
    ];
    for (extra, expected) in cases {
        let mut fixture = Fixture::new();
        fixture.config["records"][0] = record(extra);
        refused(&fixture, 5, expected);
    }

    let mut own_parent = Fixture::new();
    own_parent.config["layers"][0]["parent"] = json!(0);
    refused(&own_parent, 5, "error: type=local,src=<dir>/cache: cache config has a cycle through layer 0");

    let mut not_listed = Fixture::new();
    not_listed.config["layers"].as_array_mut().unwrap().push(json!({"blob": Digest::of(b"x"), "parent": -1}));
    refused(
        &not_listed,
        5,
        "error: type=local,src=<dir>/cache: cache config layer 1 names blob <digest>, which the manifest does not list",
    );

    let mut not_named = Fixture::new();
    let more = tar("more", b"");
    not_named.layer(GZIP, &gzip(&more), &more);
    refused(
        &not_named,
        5,
        "error: type=local,src=<dir>/cache: the manifest lists layer <digest>, which the cache config does not name",
    );
}

#[test]
fn layers_that_are_not_what_they_should_be() {
    if !is_root() {
        return;
    }
    let plain = tar("file", b"content");
    let spoil = |media_type: &str, blob: &[u8], tar: &[u8]| {
        let mut fixture = Fixture::new();
        fixture.layers.clear();
        let digest = fixture.layer(media_type, blob, tar);
        fixture.config["layers"][0]["blob"] = json!(digest);
        (fixture, digest)
    };

    let (unknown, _) = spoil("application/x-lzma", b"lzma", &plain);
    refused(
        &unknown,
        5,
        "error: type=local,src=<dir>/cache: layer <digest> has unknown media type \"application/x-lzma\"",
    );

    let packed = gzip(&plain);
    let (truncated, _) = spoil(GZIP, &packed[..packed.len() - 20], &plain);
    refused(
        &truncated,
        5,
        "error: layer <digest>: cannot decompress the layer as gzip: the blob is damaged or truncated: incomplete deflate stream",
    );

    let (cut_tar, _) = spoil(GZIP, &gzip(&plain[..515]), &plain[..515]);
    refused(&cut_tar, 5, "error: layer <digest>: not a valid layer archive near byte 515: truncated");

    let (other_tar, _) = spoil(GZIP, &packed, b"another tar");
    refused(
        &other_tar,
        5,
        "error: layer <digest> does not match its diff ID: expected <digest>, found <digest>",
    );

    let (flipped, digest) = spoil(GZIP, &packed, &plain);
    flipped.write();
    let mut bytes = packed.clone();
    bytes[5] ^= 1;
    fs::write(flipped.blob_path(&digest), bytes).unwrap();
    refused(
        &flipped,
        5,
        "error: <dir>/cache: blob <digest> from <dir>/cache: expected that digest, found <digest>",
    );

    let (short, digest) = spoil(GZIP, &packed, &plain);
    short.write();
    fs::write(short.blob_path(&digest), &packed[..10]).unwrap();
    refused(&short, 5, "error: <dir>/cache: blob <digest> from <dir>/cache: expected 104 bytes, found 10");

    let (missing, digest) = spoil(GZIP, &packed, &plain);
    missing.write();
    fs::remove_file(missing.blob_path(&digest)).unwrap();
    refused(
        &missing,
        3,
        "error: <dir>/cache: blob <digest> is not in <dir>/cache, though its manifest lists it: export the cache again",
    );

    let mut no_diff_id = Fixture::new();
    no_diff_id.layers[0]["annotations"] = json!({});
    refused(
        &no_diff_id,
        5,
        "error: type=local,src=<dir>/cache: layer <digest> has no valid annotation containerd.io/uncompressed, so its diff ID is unknown",
    );
}

#[test]
fn records_without_a_key_are_named_and_nothing_is_baked() {
    if !is_root() {
        return;
    }
    let mut fixture = Fixture::new();
    let step = json!({"digest": Digest::of(b"step"), "inputs": [[{"link": 0}]], "layers": [{"layer": 0}]});
    fixture.config["records"].as_array_mut().unwrap().push(step);
    refused(
        &fixture,
        6,
        "error: 1 of 2 records have no key, so their steps would not be CACHED without an import; give --keys-from a source that knows them, or --build the sources of the build, or --allow-unkeyed to bake only their layers",
    );
    let output = fixture.bake();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("without a key:\n  layer sha256:"), "{text}");

    let output = fixture.command().args(["--allow-unkeyed", "--json"]).output().unwrap();
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["records"], &report["keyed"]), (&json!(2), &json!(1)));
    assert_eq!(report["unkeyed"][0]["digest"], json!(Digest::of(b"step")));
}

#[test]
fn targets_that_are_taken() {
    if !is_root() {
        return;
    }
    let full = Fixture::new();
    fs::create_dir(full.root()).unwrap();
    fs::write(full.root().join("cache.db"), b"precious").unwrap();
    refused(&full, 7, "error: <dir>/root is not empty, nothing was changed: found cache.db");
    assert_eq!(fs::read(full.root().join("cache.db")).unwrap(), b"precious");

    let foreign = Fixture::new();
    fs::create_dir_all(foreign.root().join("runc-stargz")).unwrap();
    refused(&foreign, 7, "error: <dir>/root is not empty, nothing was changed: found runc-stargz");
    let said = String::from_utf8(foreign.bake().stderr).unwrap();
    assert!(said.contains("help: runc-stargz is of a daemon with the snapshotter stargz, which"), "{said}");

    let left = Fixture::new();
    fs::create_dir_all(left.root().join(".warmkit-aB3dE6")).unwrap();
    refused(
        &left,
        7,
        "error: <dir>/root is not empty, nothing was changed: found .warmkit-aB3dE6, left by a bake that was killed: remove it with `rm -rf <dir>/root/.warmkit-aB3dE6`",
    );

    let busy = Fixture::new();
    fs::create_dir(busy.root()).unwrap();
    let lock = fs::File::create(busy.root().join("buildkitd.lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    refused(
        &busy,
        7,
        "error: <dir>/root is in use by a running buildkitd, nothing was changed: stop the daemon first",
    );

    let file = Fixture::new();
    fs::write(file.root(), b"a file").unwrap();
    refused(
        &file,
        7,
        "error: <dir>/root is not a directory: name a directory that is empty or does not exist yet",
    );
}

#[test]
fn nobody_but_root_may_bake_or_verify() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    assert!(fixture.bake().status.success());
    // Another user must reach the binary: a checkout may lie where only its owner may go.
    let copy = tempfile::Builder::new().prefix("warmkit-").tempdir_in("/tmp").unwrap();
    let binary = copy.path().join("warmkit");
    // By a process of its own: what this one writes may be open in a child of another test's, and is then too
    // busy to run.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_warmkit")).arg(&binary).status().unwrap();
    assert!(copied.success());
    for path in [copy.path(), fixture.dir.path(), &fixture.root()] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let cache = format!("type=local,src={}", fixture.cache().display());
    let cases: [(&[&str], &str); 2] = [
        (
            &["bake", &cache],
            "error: baking needs root: layers hold owners, devices and overlay attributes; run it under sudo",
        ),
        // What nobody may read is no damage.
        (&["verify"], "error: cannot open <dir>/root: no permission; run warmkit as root"),
    ];
    for (arguments, expected) in cases {
        let mut command = Command::new(&binary);
        command.args(arguments).arg("--root").arg(fixture.root()).uid(65534).gid(65534);
        let output = command.output().unwrap();
        assert_eq!(message(&fixture, &output), expected);
        assert_eq!(output.status.code(), Some(1), "{expected}");
    }
}

#[test]
fn an_empty_directory_and_a_mount_keep_their_inode() {
    use std::os::unix::fs::MetadataExt;
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir(fixture.root()).unwrap();
    let inode = fixture.root().metadata().unwrap().ino();
    assert!(fixture.bake().status.success());
    assert_eq!(fixture.root().metadata().unwrap().ino(), inode);
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&fixture.root()), ["cache.db", "runc-overlayfs"]);

    let fixture = Fixture::new();
    let disk = Tmpfs::new(fixture.root(), "size=64m");
    assert!(fixture.bake().status.success());
    assert_eq!(names(&disk.0), ["cache.db", "runc-overlayfs"]);
}

#[test]
fn wrong_command_lines() {
    let cases: [&[&str]; 6] = [
        &["bake"],
        &["bake", "type=s3,bucket=b"],
        &["bake", "type=registry"],
        &["bake", "UPPER//case:"],
        &["bake", "a/b:c", "--keys-from", "type=guess,src=x"],
        &["bake", "a/b:c", "--platform", "linux"],
    ];
    for arguments in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_warmkit")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
}
