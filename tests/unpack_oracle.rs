//! The unpacker against a real daemon: both unpack the same odd layers, and the trees are compared path by path.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use support::{BuildRequest, Daemon, Registry, Scratch, Tools};
use warmkit::bolt::Database;
use warmkit::digest::{ChainId, DiffId, Digest};
use warmkit::layer::{self, Compression, Fate, Options};

use layers::{Case, Layer, PLAIN};

/// Attributes of one path that both must agree on.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    mode: u32,
    owner: (u32, u32),
    /// `None` where upstream leaves the time of unpacking: whiteout devices, implied directories, the root.
    mtime: Option<(i64, i64)>,
    device: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    same_as: PathBuf,
    links: u64,
    content: Content,
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    None,
    Link(PathBuf),
    Bytes(u64, Digest),
}

/// What became of one layer.
enum Outcome {
    Unpacked(BTreeMap<PathBuf, Node>),
    Refused(String),
}

#[test]
fn unpacks_as_a_real_daemon_does() {
    let Some(tools) = Tools::find(support::tools::NEWEST) else { return };
    let corpus = layers::corpus();
    assert!(corpus.len() >= 200, "{} cases", corpus.len());
    let scratch = Scratch::new();
    let root = scratch.join("root");
    let errors = extract_all(&tools, &root, &scratch, &corpus);
    let snapshots = snapshots(&root);

    let mut faults = String::new();
    let mut compared = 0;
    for (i, case) in corpus.iter().enumerate() {
        let uppers: Vec<PathBuf> =
            (0..case.layers.len()).map(|n| scratch.join(format!("ours/{i}/{n}"))).collect();
        let mut chain = None;
        for (n, layer) in case.layers.iter().enumerate() {
            let diff_id = DiffId::of(&layer.tar);
            chain = Some(ChainId::of_layer(chain, diff_id));
            let valid = case.valid || n + 1 < case.layers.len();
            let (ours, implied) = match unpack(layer, diff_id, &uppers, n) {
                Ok(implied) => (Outcome::Unpacked(tree(&uppers[n], &implied)), implied),
                Err(e) => (Outcome::Refused(e), BTreeSet::new()),
            };
            let native = match chain.and_then(|chain| snapshots.get(&chain)) {
                Some(fs) => Outcome::Unpacked(tree(fs, &implied)),
                None => Outcome::Refused(errors[i].clone()),
            };
            let subject = format!("{} layer {n}", case.name);
            match (&ours, &native) {
                (Outcome::Unpacked(ours), Outcome::Unpacked(native)) => {
                    compare(&subject, ours, native, &mut faults);
                }
                (Outcome::Refused(_), Outcome::Refused(_)) => {}
                (Outcome::Refused(e), Outcome::Unpacked(_)) => {
                    writeln!(faults, "{subject}: only we refuse: {e}").unwrap();
                }
                (Outcome::Unpacked(_), Outcome::Refused(e)) => {
                    writeln!(faults, "{subject}: only the daemon refuses: {e}").unwrap();
                }
            }
            // A case that both refuse for a reason of its own would prove nothing.
            if matches!(native, Outcome::Unpacked(_)) != valid {
                let said = if let Outcome::Refused(e) = &native { e } else { "extracted" };
                writeln!(faults, "{subject}: expected {}: {said}", if valid { "valid" } else { "refused" })
                    .unwrap();
            }
            compared += 1;
        }
    }
    assert!(faults.is_empty(), "{faults}");
    eprintln!("{} cases, {compared} layers agree", corpus.len());
}

/// Has a daemon extract every case; returns what it said about those that failed.
fn extract_all(tools: &Tools, root: &Path, scratch: &Scratch, corpus: &[Case]) -> Vec<String> {
    let registry = Registry::start(tools);
    let daemon = Daemon::start(tools, root, &registry);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut said = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = corpus.get(i) else { return said };
            let reference = push(&registry, &format!("case-{i}"), &case.layers);
            // Making a directory on top needs all layers unpacked.
            let context = scratch.join(format!("context/{i}"));
            fs::create_dir_all(&context).unwrap();
            fs::write(context.join("Dockerfile"), format!("FROM {reference}\nWORKDIR /made-on-top\n"))
                .unwrap();
            said.push((i, daemon.try_build(&BuildRequest::new(&context)).err().unwrap_or_default()));
        }
    };
    let mut errors = vec![String::new(); corpus.len()];
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            for (i, error) in worker.join().unwrap() {
                errors[i] = error;
            }
        }
    });
    daemon.stop();
    errors
}

fn push(registry: &Registry, repository: &str, layers: &[Layer]) -> String {
    let put = |media_type: &str, bytes: &[u8]| {
        registry.put_blob(repository, bytes);
        json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
    };
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| DiffId::of(&l.tar)).collect::<Vec<_>>() },
    });
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": put("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config).unwrap()),
        "layers": layers.iter().map(|l| put(l.media_type, &l.blob)).collect::<Vec<_>>(),
    });
    registry.put_manifest(repository, "latest", manifest_type, &serde_json::to_vec(&manifest).unwrap());
    registry.reference(repository, "latest")
}

/// The directory of each extracted layer, by chain ID.
fn snapshots(root: &Path) -> BTreeMap<ChainId, PathBuf> {
    let store = root.join("runc-overlayfs/snapshots");
    let database = Database::open(&store.join("metadata.db")).unwrap();
    let buckets = database.root().path(&[b"v1", b"snapshots"]).unwrap().unwrap();
    let mut found = BTreeMap::new();
    for item in &buckets {
        let name = String::from_utf8(item.unwrap().0.to_vec()).unwrap();
        let Some((_, hex)) = name.split_once("buildkit-layer-snapshot-v1-sha256-") else { continue };
        let bucket = buckets.bucket(name.as_bytes()).unwrap().unwrap();
        let id = bucket.get(b"id").unwrap().unwrap();
        let id = id.iter().rev().fold(0_u64, |id, byte| id << 7 | u64::from(byte & 0x7f));
        let chain: Digest = format!("sha256:{hex}").parse().unwrap();
        found.insert(ChainId::from_bytes(*chain.as_bytes()), store.join(format!("snapshots/{id}/fs")));
    }
    found
}

/// Unpacks one layer as a bake does; returns the directories whose times are upstream's of unpacking.
fn unpack(layer: &Layer, diff_id: DiffId, uppers: &[PathBuf], n: usize) -> Result<BTreeSet<PathBuf>, String> {
    let upper = &uppers[n];
    fs::create_dir_all(upper).unwrap();
    let compression = if layer.media_type == PLAIN { Compression::None } else { Compression::Detect };
    let chain = |e: layer::Error| {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(cause) = source {
            write!(text, ": {cause}").unwrap();
            source = cause.source();
        }
        text
    };
    let unpacked =
        layer::unpack(layer.blob.as_slice(), compression, upper, &Options { base: n == 0 }).map_err(chain)?;
    assert_eq!(unpacked.diff_id, diff_id);
    assert_eq!(unpacked.bytes, layer.tar.len() as u64);
    let lowers: Vec<&Path> = uppers[..n].iter().rev().map(PathBuf::as_path).collect();
    layer::inherit(upper, &unpacked.implied, &lowers).map_err(chain)?;
    Ok(unpacked.implied.into_iter().filter(|i| i.fate == Fate::Kept).map(|i| i.path).collect())
}

fn tree(root: &Path, implied: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let same_as = inodes.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        let file_type = meta.file_type();
        if meta.is_dir() {
            let mut children: Vec<_> =
                fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())).collect();
            children.sort_by(|a, b| b.cmp(a));
            pending.extend(children);
        }
        let whiteout = file_type.is_char_device() && meta.rdev() == 0;
        let untimed = whiteout || implied.contains(&path) || path.as_os_str().is_empty();
        nodes.insert(
            path,
            Node {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                mtime: (!untimed).then(|| (meta.mtime(), meta.mtime_nsec())),
                device: meta.rdev(),
                xattrs: xattrs(&full),
                same_as,
                links: if meta.is_dir() { 0 } else { meta.nlink() },
                content: if file_type.is_symlink() {
                    Content::Link(fs::read_link(&full).unwrap())
                } else if meta.is_file() {
                    Content::Bytes(meta.len(), Digest::of(&fs::read(&full).unwrap()))
                } else {
                    Content::None
                },
            },
        );
    }
    nodes
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..n].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(n);
            (name.to_vec(), value)
        })
        .collect()
}

fn compare(
    subject: &str,
    ours: &BTreeMap<PathBuf, Node>,
    native: &BTreeMap<PathBuf, Node>,
    faults: &mut String,
) {
    let paths: BTreeSet<_> = ours.keys().chain(native.keys()).collect();
    for path in paths {
        let text = String::from_utf8_lossy(path.as_os_str().as_bytes());
        match (ours.get(path), native.get(path)) {
            (Some(ours), Some(native)) if ours == native => {}
            (ours, native) => {
                writeln!(faults, "{subject}: {text}:\n  ours   {ours:?}\n  native {native:?}").unwrap();
            }
        }
    }
}
