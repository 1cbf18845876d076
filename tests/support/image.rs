//! Base images made from nothing but busybox, the same bytes each time, pushed to a registry.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use warmkit::digest::{DiffId, Digest};

use super::tar::{Entry, Kind, Tar};
use super::{Registry, Tools};

/// One layer of an image to be.
struct Layer {
    blob: Vec<u8>,
    diff_id: DiffId,
    comment: &'static str,
}

/// Pushes the base image that the Dockerfiles in tests/dockerfiles stand on; returns its reference.
///
/// Three layers: a busybox system, odd files, and deletions of some of both.
pub fn push_base(tools: &Tools, registry: &Registry) -> String {
    push(registry, "base", &base_layers(tools), &json!({}))
}

/// As [`push_base`], with ONBUILD instructions and one more layer.
///
/// Without that layer v0.17.3 does not find the steps on one of the two images again after a build
/// that changed something on the other, on roots of its own too.
pub fn push_onbuild_base(tools: &Tools, registry: &Registry) -> String {
    let config =
        json!({ "OnBuild": ["COPY onbuild.txt /onbuild.txt", "RUN cat /onbuild.txt > /onbuild.out"] });
    let mut tar = Tar::new();
    tar.add(Entry::new("etc/onbuild", Kind::File(b"for others to build on\n")));
    let mut layers = base_layers(tools);
    layers.push(layer("onbuild", &tar.finish()));
    push(registry, "onbuild", &layers, &config)
}

fn base_layers(tools: &Tools) -> Vec<Layer> {
    let busybox = std::fs::read(&tools.busybox).unwrap();
    vec![
        layer("busybox system", &system(&busybox)),
        layer("odd files", &odd_files()),
        layer("deletions", &deletions()),
    ]
}

fn layer(comment: &'static str, tar: &[u8]) -> Layer {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(tar).unwrap();
    Layer { blob: encoder.finish().unwrap(), diff_id: DiffId::of(tar), comment }
}

/// The applets that the Dockerfiles use, each a symbolic link.
const APPLETS: [&str; 32] = [
    "sh",
    "ash",
    "cat",
    "ls",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "ln",
    "chmod",
    "chown",
    "touch",
    "test",
    "[",
    "echo",
    "printf",
    "sleep",
    "true",
    "id",
    "pwd",
    "env",
    "find",
    "sort",
    "wc",
    "head",
    "tail",
    "grep",
    "sed",
    "dd",
    "mkfifo",
    "stat",
    "sha256sum",
];

fn system(busybox: &[u8]) -> Vec<u8> {
    let mut tar = Tar::new();
    for dir in ["bin", "dev", "etc", "proc", "sys", "usr", "usr/bin", "var", "var/cache", "home"] {
        tar.add(Entry::new(dir, Kind::Dir));
    }
    tar.add(Entry::new("root", Kind::Dir).mode(0o700));
    tar.add(Entry::new("tmp", Kind::Dir).mode(0o1777));
    tar.add(Entry::new("bin/busybox", Kind::File(busybox)).mode(0o755));
    for applet in APPLETS {
        tar.add(Entry::new(&format!("bin/{applet}"), Kind::Symlink("busybox")));
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/home/builder:/bin/sh\n";
    tar.add(Entry::new("etc/passwd", Kind::File(passwd)));
    tar.add(Entry::new("etc/group", Kind::File(b"root:x:0:\nbuilder:x:1000:\n")));
    tar.add(Entry::new("home/builder", Kind::Dir).owner(1000, 1000).mode(0o750));
    tar.finish()
}

/// `cap_net_bind_service=ep` as the kernel keeps it: `struct vfs_cap_data`, revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn odd_files() -> Vec<u8> {
    let deep = "odd/deep/".to_owned() + &"directory-with-a-long-name/".repeat(6) + "leaf";
    let mut tar = Tar::new();
    tar.add(Entry::new("odd", Kind::Dir).mode(0o2775).owner(0, 1000).time(1_600_000_000, 123_456_789));
    tar.add(Entry::new("odd/setuid", Kind::File(b"u")).mode(0o4755));
    tar.add(
        Entry::new("odd/capable", Kind::File(b"c")).mode(0o755).xattr("security.capability", &CAPABILITY),
    );
    tar.add(Entry::new("odd/attributed", Kind::File(b"a")).xattr("user.comment", b"one=two\nthree\0four"));
    tar.add(Entry::new("odd/one", Kind::File(b"linked")).time(1_500_000_000, 1));
    tar.add(Entry::new("odd/two", Kind::Link("odd/one")).time(1_500_000_000, 1));
    tar.add(Entry::new("odd/dangling", Kind::Symlink("/nowhere/at/all")));
    tar.add(Entry::new("odd/outward", Kind::Symlink("../../../../etc/passwd")));
    tar.add(Entry::new("odd/pipe", Kind::Fifo).mode(0o600));
    tar.add(Entry::new("odd/null", Kind::Char(1, 3)).mode(0o666));
    tar.add(Entry::new("odd/grüße 世界", Kind::File("ü".as_bytes())));
    tar.add(Entry::new("odd/large-owner", Kind::File(b"o")).owner(3_000_000, 4_000_000));
    tar.add(Entry::new("odd/empty", Kind::Dir).mode(0o711));
    // Its directories have no entries of their own: whoever unpacks has to make them.
    // Every directory is named: one that is only implied gets the time of its extraction from a daemon.
    let directories: Vec<&str> = deep.match_indices('/').skip(1).map(|(end, _)| &deep[..end]).collect();
    for directory in directories {
        tar.add(Entry::new(directory, Kind::Dir));
    }
    tar.add(Entry::new(&deep, Kind::File(b"deep")));
    for dir in ["gone", "gone/below", "opaque", "replaced"] {
        tar.add(Entry::new(dir, Kind::Dir));
    }
    for file in ["gone/file", "gone/below/file", "opaque/hidden", "replaced/file", "etc/doomed"] {
        tar.add(Entry::new(file, Kind::File(file.as_bytes())));
    }
    tar.finish()
}

fn deletions() -> Vec<u8> {
    let mut tar = Tar::new();
    let empty = |name| Entry::new(name, Kind::File(b""));
    tar.add(Entry::new("etc", Kind::Dir));
    tar.add(empty("etc/.wh.doomed"));
    tar.add(empty(".wh.gone"));
    tar.add(Entry::new("opaque", Kind::Dir));
    tar.add(empty("opaque/.wh..wh..opq"));
    tar.add(Entry::new("opaque/visible", Kind::File(b"v")));
    // A directory below becomes a file above.
    tar.add(Entry::new("replaced", Kind::File(b"now a file")));
    tar.finish()
}

fn push(registry: &Registry, repository: &str, layers: &[Layer], extra: &Value) -> String {
    put(registry, repository, "latest", host_architecture(), layers, extra);
    registry.reference(repository, "latest")
}

/// What another machine is called in images.
fn other_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" }
}

/// Pushes an image that a Dockerfile copies from, of two small layers; returns its reference.
pub fn push_files(registry: &Registry, repository: &str) -> String {
    let of = |name: &str| {
        let mut tar = Tar::new();
        tar.add(Entry::new(name, Kind::File(name.as_bytes())));
        tar.finish()
    };
    push(registry, repository, &[layer("file", &of("file")), layer("other", &of("other"))], &json!({}))
}

/// Pushes an image with `program` as a Dockerfile frontend, for this machine and, with other layers, for
/// another one. Returns its reference, and the digest of the other machine's last layer.
pub fn push_frontend(registry: &Registry, repository: &str, program: &Path) -> (String, Digest) {
    let mut system = Tar::new();
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        system.add(Entry::new(dir, Kind::Dir));
    }
    let system = layer("system", &system.finish());
    let with = |program: &[u8]| {
        let mut tar = Tar::new();
        tar.add(Entry::new("bin/dockerfile-frontend", Kind::File(program)).mode(0o755));
        layer("frontend", &tar.finish())
    };
    let config = json!({ "Entrypoint": ["/bin/dockerfile-frontend"] });
    let (own, other) = (with(&std::fs::read(program).unwrap()), with(b"for another machine"));
    let other_blob = Digest::of(&other.blob);
    let of = |architecture, layers: &[Layer]| {
        put(registry, repository, architecture, architecture, layers, &config)
    };
    let manifests = [of(other_architecture(), &[other]), of(host_architecture(), &[system, own])];
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    registry.put_manifest(repository, "1", media_type, &serde_json::to_vec(&index).unwrap());
    (registry.reference(repository, "1"), other_blob)
}

/// What this machine is called in images.
fn host_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Pushes an image for one architecture under a tag; returns its descriptor.
fn put(
    registry: &Registry,
    repository: &str,
    tag: &str,
    architecture: &str,
    layers: &[Layer],
    extra: &Value,
) -> Value {
    let mut config = json!({ "Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let created = "2023-11-14T22:13:20Z";
    let history: Vec<Value> =
        layers.iter().map(|l| json!({ "created": created, "created_by": l.comment })).collect();
    let image = json!({
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id).collect::<Vec<_>>() },
        "history": history,
    });
    let image = serde_json::to_vec(&image).unwrap();
    let descriptor = |media_type: &str, bytes: &[u8]| {
        registry.put_blob(repository, bytes);
        json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &image),
        "layers": layers
            .iter()
            .map(|l| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &l.blob))
            .collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    registry.put_manifest(repository, tag, media_type, &manifest);
    json!({
        "mediaType": media_type,
        "digest": Digest::of(&manifest),
        "size": manifest.len(),
        "platform": { "os": "linux", "architecture": architecture },
    })
}

/// As [`push_base`], for both architectures, each with a last layer of its own; gives the reference.
pub fn push_base_of_both(tools: &Tools, registry: &Registry, repository: &str) -> String {
    let of = |architecture: &str| {
        let mut tar = Tar::new();
        tar.add(Entry::new("etc/architecture", Kind::File(architecture.as_bytes())));
        let mut layers = base_layers(tools);
        layers.push(layer("architecture", &tar.finish()));
        put(registry, repository, architecture, architecture, &layers, &json!({}))
    };
    put_index(registry, repository, &["amd64", "arm64"].map(of))
}

fn put_index(registry: &Registry, repository: &str, manifests: &[Value]) -> String {
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    registry.put_manifest(repository, "latest", media_type, &serde_json::to_vec(&index).unwrap());
    registry.reference(repository, "latest")
}

/// Pushes what is at `latest`, an index, again as Docker wrote it before there was OCI; gives the reference.
pub fn push_as_docker(registry: &Registry, repository: &str) -> String {
    let renamed = [
        (
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        ),
        (
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ),
        ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ];
    let rename = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        renamed.iter().fold(text, |text, (oci, docker)| text.replace(oci, docker))
    };
    let mut index = rename(registry.manifest(repository, "latest").0);
    let listed: Value = serde_json::from_str(&index).unwrap();
    for digest in
        listed["manifests"].as_array().unwrap().iter().map(|listed| listed["digest"].as_str().unwrap())
    {
        let before = registry.manifest(repository, digest).0;
        let size = before.len();
        let manifest = rename(before);
        let now = Digest::of(manifest.as_bytes()).to_string();
        registry.put_manifest(repository, &now, renamed[1].1, manifest.as_bytes());
        index = index.replace(digest, &now).replace(&format!("{size}"), &format!("{}", manifest.len()));
    }
    registry.put_manifest(repository, "docker", renamed[0].1, index.as_bytes());
    registry.reference(repository, "docker")
}

/// Pushes one image of these layers for both architectures; the files in it are those of this machine.
fn push_index(registry: &Registry, repository: &str, layers: &[Layer], extra: &Value) -> String {
    let of = |architecture| put(registry, repository, architecture, architecture, layers, extra);
    put_index(registry, repository, &["amd64", "arm64"].map(of))
}

/// Pushes a small system with the programs of `scripts` in `/usr/bin`; returns its reference.
///
/// It is an index for amd64 and arm64, of which only this machine's can run a step. `extra` goes
/// into its configuration.
pub fn push_programs(
    tools: &Tools,
    registry: &Registry,
    repository: &str,
    scripts: &Path,
    extra: &Value,
) -> String {
    let mut files: Vec<_> = std::fs::read_dir(scripts).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut tar = Tar::new();
    for file in files {
        let name = format!("usr/bin/{}", file.file_name().unwrap().to_str().unwrap());
        tar.add(Entry::new(&name, Kind::File(&std::fs::read(&file).unwrap())).mode(0o755));
    }
    let busybox = std::fs::read(&tools.busybox).unwrap();
    let layers = [layer("busybox system", &system(&busybox)), layer("programs", &tar.finish())];
    push_index(registry, repository, &layers, extra)
}
