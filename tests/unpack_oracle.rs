//! The unpacker against a real daemon: both unpack the same odd layers, and the trees are compared path by path.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use support::rootless::User;
use support::{BuildRequest, Daemon, Registry, Scratch, Tools};
use warmkit::bolt::Database;
use warmkit::digest::{ChainId, DiffId, Digest};
use warmkit::fsutil;
use warmkit::layer::{self, Compression, Fate, Options, Overlay, Whiteouts};
use warmkit::progress::Silent;
use warmkit::store::{Snapshotter, StateDir};
use warmkit::userns::Owners;
use warmkit::verify;

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

const SETGID: u32 = 0o2000;

/// What became of one layer.
enum Outcome {
    Unpacked(BTreeMap<PathBuf, Node>),
    Refused(String),
}

/// How a daemon's layers are unpacked, and looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Upper directories, each by itself.
    Overlayfs,
    /// Upper directories, through a mount of those below, and seen through one.
    FuseOverlayfs,
    /// Whole trees.
    Native,
    /// Upper directories of a daemon that a plain user runs, through a mount and seen through one.
    Rootless,
    /// Whole trees of such a daemon.
    RootlessNative,
}

impl Way {
    fn snapshotter(self) -> Snapshotter {
        match self {
            Self::Overlayfs | Self::Rootless => Snapshotter::Overlayfs,
            Self::FuseOverlayfs => Snapshotter::FuseOverlayfs,
            Self::Native | Self::RootlessNative => Snapshotter::Native,
        }
    }

    /// Whether a plain user runs the daemon.
    fn is_rootless(self) -> bool {
        matches!(self, Self::Rootless | Self::RootlessNative)
    }
}

#[test]
fn unpacks_as_a_real_daemon_does() {
    agrees(Way::Overlayfs);
}

#[test]
fn unpacks_as_one_with_fuse_overlayfs() {
    agrees(Way::FuseOverlayfs);
}

#[test]
fn unpacks_as_one_with_native_snapshots() {
    agrees(Way::Native);
}

#[test]
fn unpacks_as_a_rootless_one() {
    agrees(Way::Rootless);
}

#[test]
fn unpacks_as_a_rootless_one_with_native_snapshots() {
    agrees(Way::RootlessNative);
}

/// Compares what becomes of each layer with what a daemon makes of it.
fn agrees(way: Way) {
    let Some(tools) = Tools::find(support::tools::NEWEST) else { return };
    if way == Way::FuseOverlayfs && support::tools::on_path("fuse-overlayfs").is_none() {
        return support::skip::skip("no fuse-overlayfs in $PATH");
    }
    let corpus = layers::corpus();
    assert!(corpus.len() >= 200, "{} cases", corpus.len());
    let scratch = Scratch::new();
    let root = scratch.join("root");
    let user = if way.is_rootless() {
        let Some(user) = User::make(&tools) else { return };
        Some(user.with_more_ids())
    } else {
        None
    };
    let owners = user.as_ref().map_or(Owners::AsNamed, User::owners);
    let root = user.as_ref().map_or(root, |user| user.home.join("root"));
    let errors = extract_all(&tools, &root, &scratch, &corpus, way.snapshotter(), user.as_ref());
    let snapshots = snapshots(&root, way.snapshotter());
    // Of this thread, for what is mounted.
    fsutil::own_mount_namespace().unwrap();

    let mut faults = String::new();
    let mut compared = 0;
    for (i, case) in corpus.iter().enumerate() {
        let chains: Vec<ChainId> = case
            .layers
            .iter()
            .scan(None, |chain, layer| {
                *chain = Some(ChainId::of_layer(*chain, DiffId::of(&layer.tar)));
                *chain
            })
            .collect();
        let natives: Vec<_> = chains.iter().map(|chain| snapshots.get(chain)).collect();
        let uppers: Vec<PathBuf> =
            (0..case.layers.len()).map(|n| scratch.join(format!("ours/{i}/{n}"))).collect();
        for (n, layer) in case.layers.iter().enumerate() {
            let valid = case.valid || n + 1 < case.layers.len();
            let (ours, implied) = match unpack(layer, way, &owners, &uppers, n, &scratch.join(".")) {
                Ok(implied) => {
                    (Outcome::Unpacked(seen(way, &uppers[..=n], &scratch.join("."), &implied)), implied)
                }
                Err(e) => (Outcome::Refused(e), Untimed::default()),
            };
            let natives: Option<Vec<PathBuf>> = natives[..=n].iter().map(|fs| fs.cloned()).collect();
            let native = match natives {
                Some(natives) => Outcome::Unpacked(seen(way, &natives, &scratch.join("."), &implied)),
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
                // A namespace may not set it, who writes from outside may.
                (Outcome::Unpacked(_), Outcome::Refused(e))
                    if way.is_rootless() && e.contains("failed to setxattr") && e.contains("\"security.") => {
                }
                (Outcome::Unpacked(_), Outcome::Refused(e)) => {
                    writeln!(faults, "{subject}: only the daemon refuses: {e}").unwrap();
                }
            }
            // A case that both refuse for a reason of its own would prove nothing. What layers may have is not quite
            // the same everywhere.
            if way == Way::Overlayfs && matches!(native, Outcome::Unpacked(_)) != valid {
                let said = if let Outcome::Refused(e) = &native { e } else { "extracted" };
                writeln!(faults, "{subject}: expected {}: {said}", if valid { "valid" } else { "refused" })
                    .unwrap();
            }
            compared += 1;
        }
    }
    assert!(faults.is_empty(), "{faults}");
    eprintln!("{} cases, {compared} layers agree", corpus.len());
    verified(&root);
}

/// What verify expects of the layers is what the daemon made of them.
fn verified(root: &Path) {
    let mut options = verify::Options::default();
    options.read_data = true;
    let report = verify::offline(root, &options, &Silent).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.counts.layers_compared > 100, "{:?}", report.counts);
}

/// Has a daemon extract every case; returns what it said about those that failed.
fn extract_all(
    tools: &Tools,
    root: &Path,
    scratch: &Scratch,
    corpus: &[Case],
    snapshotter: Snapshotter,
    user: Option<&User>,
) -> Vec<String> {
    let registry = Registry::start(tools);
    let daemon = match user {
        Some(user) => Daemon::start_rootless(tools, root, &registry, snapshotter.name(), user),
        None => Daemon::start_on(tools, root, &registry, snapshotter.name()),
    };
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
fn snapshots(root: &Path, snapshotter: Snapshotter) -> BTreeMap<ChainId, PathBuf> {
    let state = StateDir::new(root, snapshotter);
    let store = state.in_worker("snapshots");
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
        found.insert(ChainId::from_bytes(*chain.as_bytes()), state.upper(id));
    }
    found
}

/// Whose times are upstream's of unpacking.
#[derive(Debug, Default)]
struct Untimed {
    /// Directories that the layer has something in, and does not describe.
    implied: BTreeSet<PathBuf>,
    /// Where a layer is unpacked onto those below it: of directories, all but those that it describes.
    but: Option<BTreeSet<PathBuf>>,
}

impl Untimed {
    fn has(&self, path: &Path, is_directory: bool) -> bool {
        self.implied.contains(path)
            || is_directory && self.but.as_ref().is_some_and(|but| !but.contains(path))
    }
}

/// Unpacks one layer as a bake does.
fn unpack(
    layer: &Layer,
    way: Way,
    owners: &Owners,
    uppers: &[PathBuf],
    n: usize,
    scratch: &Path,
) -> Result<Untimed, String> {
    let upper = &uppers[n];
    fs::create_dir_all(upper).unwrap();
    let root = (owners.user(0).unwrap(), owners.group(0).unwrap());
    chown(upper, Some(root.0), Some(root.1)).unwrap();
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
    let unpack =
        |options: &Options, to: &Path| layer::unpack(layer.blob.as_slice(), compression, to, options);
    let onto = Options { whiteouts: Whiteouts::Remove, owners: owners.clone() };
    let unpacked = match way {
        Way::Overlayfs => unpack(&Options::of_upper(n == 0), upper),
        _ if n == 0 => unpack(&onto, upper),
        Way::Native | Way::RootlessNative => {
            layer::copy_tree(&uppers[n - 1], upper).and_then(|()| unpack(&onto, upper))
        }
        Way::FuseOverlayfs | Way::Rootless => {
            let (work, target) = (scratch.join("work"), scratch.join("target"));
            let _ = fs::remove_dir_all(&work);
            fs::create_dir_all(&work).unwrap();
            fs::create_dir_all(&target).unwrap();
            let lowers: Vec<PathBuf> = uppers[..n].iter().rev().cloned().collect();
            let overlay = Overlay {
                directory: scratch,
                lowers: &lowers,
                upper,
                work: &work,
                target: &target,
                userxattr: way == Way::Rootless,
            };
            overlay.with(|at| unpack(&onto, at)).and_then(|unpacked| overlay.settle(root).map(|()| unpacked))
        }
    };
    let unpacked = unpacked.map_err(chain)?;
    assert_eq!(unpacked.diff_id, DiffId::of(&layer.tar));
    assert_eq!(unpacked.bytes, layer.tar.len() as u64);
    let lowers: Vec<&Path> = uppers[..n].iter().rev().map(PathBuf::as_path).collect();
    let lowers = if way == Way::Overlayfs { lowers.as_slice() } else { &[] };
    layer::inherit(upper, &unpacked.implied, lowers).map_err(chain)?;
    let implied = unpacked.implied.into_iter().filter(|i| i.fate == Fate::Kept).map(|i| i.path).collect();
    let mut described = BTreeSet::new();
    if way != Way::Overlayfs {
        let read = layer::entries(layer.blob.as_slice(), compression, |entry, _| {
            described.insert(entry.path().to_owned());
            Ok::<_, layer::Error>(())
        });
        read.map_err(chain)?;
    }
    Ok(Untimed { implied, but: (way != Way::Overlayfs).then_some(described) })
}

/// What a chain of layers, lowest first, shows a build; for overlayfs only what the last one has.
fn seen(way: Way, layers: &[PathBuf], scratch: &Path, untimed: &Untimed) -> BTreeMap<PathBuf, Node> {
    let last = layers.last().unwrap();
    if !matches!(way, Way::FuseOverlayfs | Way::Rootless) || layers.len() == 1 {
        return tree(last, untimed);
    }
    let target = scratch.join("seen");
    fs::create_dir_all(&target).unwrap();
    let lowers: Vec<String> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
    let lowers = format!("lowerdir={}", lowers.join(":"));
    let mut command = Command::new(if way == Way::Rootless { "mount" } else { "fuse-overlayfs" });
    if way == Way::Rootless {
        command.args(["-t", "overlay", "overlay", "-o", &format!("{lowers},userxattr")]);
    } else {
        command.args(["-o", &lowers]);
    }
    command.arg(&target);
    assert!(command.status().unwrap().success(), "{command:?}");
    let mut nodes = tree(&target, untimed);
    // Where fuse-overlayfs copies up a directory, it loses the setgid bit, and what is made in it the group.
    for (path, node) in nodes.iter_mut().filter(|_| way == Way::FuseOverlayfs) {
        if matches!(node.content, Content::None) && node.device == 0 {
            node.mode &= !SETGID;
            if untimed.implied.contains(path) {
                node.owner.1 = 0;
            }
        }
    }
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    nodes
}

fn tree(root: &Path, untimed: &Untimed) -> BTreeMap<PathBuf, Node> {
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
        let untimed = whiteout || untimed.has(&path, meta.is_dir()) || path.as_os_str().is_empty();
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
