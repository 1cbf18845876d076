//! The unpacker against a real daemon: both unpack the same odd layers, and the trees are compared path by path.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use support::command::run;
use support::files;
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
    /// The same, mounted by fuse-overlayfs.
    RootlessFuse,
    /// Whole trees of such a daemon.
    RootlessNative,
}

impl Way {
    fn snapshotter(self) -> Snapshotter {
        match self {
            Self::Overlayfs | Self::Rootless => Snapshotter::Overlayfs,
            Self::FuseOverlayfs | Self::RootlessFuse => Snapshotter::FuseOverlayfs,
            Self::Native | Self::RootlessNative => Snapshotter::Native,
        }
    }

    /// Whether a plain user runs the daemon.
    fn is_rootless(self) -> bool {
        matches!(self, Self::Rootless | Self::RootlessFuse | Self::RootlessNative)
    }

    /// Whether the daemon's trees are seen through fuse-overlayfs.
    fn is_fuse(self) -> bool {
        self.snapshotter() == Snapshotter::FuseOverlayfs
    }

    /// Whether layers are unpacked through a mount.
    fn is_mounted(self) -> bool {
        !matches!(self, Self::Overlayfs | Self::Native | Self::RootlessNative)
    }

    /// Whether the daemon makes something else of a case than one with overlayfs that runs as root, which extracts
    /// those that are valid.
    fn differs(self, case: &str) -> bool {
        self != Self::Overlayfs && ONTO_LOWER.contains(&case)
            || self.is_rootless() && IN_A_NAMESPACE.contains(&case)
            || self == Self::FuseOverlayfs && case == "device-that-is-a-whiteout"
    }
}

/// Cases that come out differently where a layer is extracted onto what those below it show.
const ONTO_LOWER: [&str; 6] = [
    "entry-then-whiteout",
    "whiteout-twice",
    "below-a-whiteout",
    "implied-directory-over-a-lower-file",
    "implied-directories-over-a-whiteout",
    "hard-link-into-a-lower-layer",
];
/// Those that do where owners are few, devices are skipped, and some attributes may not be set.
const IN_A_NAMESPACE: [&str; 6] = [
    "owners",
    "records-with-numbers",
    "device-major-out-of-range",
    "device-minor-negative",
    "hard-links-to-anything",
    "xattr-security-on-symlink",
];

/// What became of unpacking a layer: whose times are not to be compared, or why it is refused.
type Unpacked = Result<Untimed, String>;

/// Says to a test of this binary that it runs in a user namespace: the directory to unpack in.
const INSIDE: &str = "WARMKIT_TEST_UNPACKS_IN";
/// What that test is called.
const INSIDE_TEST: &str = "what_a_user_unpacks_in_a_namespace";

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

#[test]
fn unpacks_as_a_rootless_one_with_fuse_overlayfs() {
    agrees(Way::RootlessFuse);
}

/// No test by itself: it is run in a user namespace by those that have a daemon there.
#[test]
fn what_a_user_unpacks_in_a_namespace() {
    let Some(directory) = std::env::var_os(INSIDE).map(PathBuf::from) else { return };
    let owners = Owners::of_this_process().unwrap();
    assert!(owners.is_namespace());
    fsutil::own_mount_namespace().unwrap();
    let way = if directory.join(LABELLED).exists() { Way::RootlessNative } else { Way::Rootless };
    if way == Way::RootlessNative {
        let copied = directory.join("copied");
        fs::create_dir(&copied).unwrap();
        layer::copy_tree(&directory.join(LABELLED), &copied).unwrap();
    }
    let unpacked: Vec<_> = unpack_all(&layers::corpus(), way, &owners, &directory)
        .into_iter()
        .map(|layers| layers.into_iter().map(|layer| layer.map(Untimed::into_bytes)).collect::<Vec<_>>())
        .collect();
    fs::write(directory.join("unpacked.json"), serde_json::to_vec(&unpacked).unwrap()).unwrap();
}

/// A tree with attributes that only root may set.
const LABELLED: &str = "labelled";

/// The same as [`unpack_all`], by a user in a namespace as its daemon has.
fn unpack_all_inside(user: &User, way: Way, directory: &Path) -> Vec<Vec<Unpacked>> {
    fs::create_dir(directory).unwrap();
    user.owns(directory);
    if way == Way::RootlessNative {
        let labelled = directory.join(LABELLED);
        fs::create_dir(&labelled).unwrap();
        fs::write(labelled.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", labelled.join("link")).unwrap();
        for name in ["file", "link", ""] {
            let path = labelled.join(name);
            lchown(&path, Some(user.id), Some(user.id)).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(path.as_os_str().as_bytes(), "security.odd", b"1", flags).unwrap();
        }
    }
    let program = user.home.join("bin/unpack_oracle");
    files::install(&std::env::current_exe().unwrap(), &program);
    let mut command = user.in_namespace(program.to_str().unwrap());
    command.args(["--exact", INSIDE_TEST, "--nocapture"]).env(INSIDE, directory);
    run(&mut command, Duration::from_secs(120)).expect_success("unpack in a namespace");
    if way == Way::RootlessNative {
        let copied = tree(&directory.join("copied"), &Untimed::default());
        assert_eq!(copied.len(), 3, "{copied:?}");
        assert!(copied.values().all(|node| node.xattrs.is_empty()), "{copied:?}");
    }
    let unpacked: Vec<Vec<Result<Bytes, String>>> =
        serde_json::from_slice(&fs::read(directory.join("unpacked.json")).unwrap()).unwrap();
    let layers =
        |layers: Vec<Result<_, _>>| layers.into_iter().map(|layer| layer.map(Untimed::of_bytes)).collect();
    unpacked.into_iter().map(layers).collect()
}

/// Compares what becomes of each layer with what a daemon makes of it.
fn agrees(way: Way) {
    let Some(tools) = Tools::find(support::tools::NEWEST) else { return };
    if way.is_fuse() && support::tools::on_path("fuse-overlayfs").is_none() {
        return support::skip::skip("no fuse-overlayfs in $PATH");
    }
    let corpus = layers::corpus();
    assert!(corpus.len() >= 200, "{} cases", corpus.len());
    let scratch = Scratch::new();
    let root = scratch.join("root");
    let user = if way.is_rootless() {
        let Some(user) = User::make(&tools) else { return };
        let user = user.with_more_ids();
        Some(if way.is_fuse() { user.with_fuse() } else { user })
    } else {
        None
    };
    let owners = user.as_ref().map_or(Owners::AsNamed, User::owners);
    let root = user.as_ref().map_or(root, |user| user.home.join("root"));
    let errors = extract_all(&tools, &root, &scratch, &corpus, way.snapshotter(), user.as_ref());
    let snapshots = snapshots(&root, way.snapshotter());
    // Of this thread, for what is mounted.
    fsutil::own_mount_namespace().unwrap();

    let natives = Natives { way, errors, snapshots, target: scratch.join("seen") };
    let directory = scratch.join("ours");
    fs::create_dir(&directory).unwrap();
    natives.agree(&corpus, &directory, &unpack_all(&corpus, way, &owners, &directory));
    // A bake unpacks the same for both daemons that mount layers.
    if let Some(user) = user.as_ref().filter(|_| !way.is_fuse()) {
        let directory = user.home.join("ours");
        natives.agree(&corpus, &directory, &unpack_all_inside(user, way, &directory));
    }
    verified(&root);
}

/// What a daemon has made of the corpus.
struct Natives {
    way: Way,
    /// What it said of cases that it did not extract.
    errors: Vec<String>,
    /// The directories of layers.
    snapshots: BTreeMap<ChainId, PathBuf>,
    /// Where layers are mounted, to be seen.
    target: PathBuf,
}

impl Natives {
    /// Compares it with what was unpacked in `directory`.
    fn agree(&self, corpus: &[Case], directory: &Path, unpacked: &[Vec<Unpacked>]) {
        let way = self.way;
        let mut faults = String::new();
        let (mut compared, mut refused) = (0, 0);
        for (i, case) in corpus.iter().enumerate() {
            let chains = case.layers.iter().scan(None, |chain, layer| {
                *chain = Some(ChainId::of_layer(*chain, DiffId::of(&layer.tar)));
                *chain
            });
            let natives: Vec<_> = chains.map(|chain| self.snapshots.get(&chain).cloned()).collect();
            let uppers = uppers(directory, i, case);
            for (n, ours) in unpacked[i].iter().enumerate() {
                let native: Option<Vec<PathBuf>> = natives[..=n].iter().cloned().collect();
                let subject = format!("{} layer {n}", case.name);
                let is_last = n + 1 == case.layers.len();
                let valid = case.valid || !is_last;
                // A case that both refuse for a reason of its own would prove nothing.
                if native.is_some() != (valid != (is_last && way.differs(&case.name))) {
                    let said = if native.is_some() { "extracted" } else { &self.errors[i] };
                    let expected = if native.is_some() { "refused" } else { "valid" };
                    writeln!(faults, "{subject}: expected {expected}: {said}").unwrap();
                }
                match (ours, native) {
                    (Ok(untimed), Some(native)) => {
                        let ours = seen(way, &uppers[..=n], &self.target, untimed);
                        let native = seen(way, &native, &self.target, untimed);
                        compare(&subject, &ours, &native, &mut faults);
                        compared += 1;
                    }
                    (Err(_), None) => refused += 1,
                    (Err(e), Some(_)) => writeln!(faults, "{subject}: only we refuse: {e}").unwrap(),
                    (Ok(_), None) => {
                        writeln!(faults, "{subject}: only the daemon refuses: {}", self.errors[i]).unwrap();
                    }
                }
            }
        }
        assert!(faults.is_empty(), "{way:?} in {}: {faults}", directory.display());
        eprintln!(
            "{way:?}, {} cases: {compared} layers are the same, {refused} are refused by both",
            corpus.len()
        );
        assert!(compared >= 130 && refused >= 100, "{compared} and {refused} layers");
    }
}

/// Unpacks the corpus as a bake does.
fn unpack_all(corpus: &[Case], way: Way, owners: &Owners, directory: &Path) -> Vec<Vec<Unpacked>> {
    let unpack_case = |(i, case): (usize, &Case)| {
        let uppers = uppers(directory, i, case);
        let layers = case.layers.iter().enumerate();
        layers.map(|(n, layer)| unpack(layer, way, owners, &uppers, n, directory)).collect()
    };
    corpus.iter().enumerate().map(unpack_case).collect()
}

/// Where the layers of a case are unpacked, lowest first.
fn uppers(directory: &Path, i: usize, case: &Case) -> Vec<PathBuf> {
    (0..case.layers.len()).map(|n| directory.join(format!("{i}/{n}"))).collect()
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

/// [`Untimed`], with paths as bytes.
type Bytes = (Vec<Vec<u8>>, Option<Vec<Vec<u8>>>);

impl Untimed {
    /// Paths need be no text.
    fn into_bytes(self) -> Bytes {
        let bytes = |paths: BTreeSet<PathBuf>| {
            paths.into_iter().map(|path| path.into_os_string().into_vec()).collect()
        };
        (bytes(self.implied), self.but.map(bytes))
    }

    fn of_bytes((implied, but): Bytes) -> Self {
        let paths =
            |paths: Vec<Vec<u8>>| paths.into_iter().map(|path| OsString::from_vec(path).into()).collect();
        Self { implied: paths(implied), but: but.map(paths) }
    }

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
) -> Unpacked {
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
        Way::FuseOverlayfs | Way::Rootless | Way::RootlessFuse => {
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
                userxattr: way.is_rootless(),
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
fn seen(way: Way, layers: &[PathBuf], target: &Path, untimed: &Untimed) -> BTreeMap<PathBuf, Node> {
    let last = layers.last().unwrap();
    if !way.is_mounted() || layers.len() == 1 {
        return tree(last, untimed);
    }
    fs::create_dir_all(target).unwrap();
    let lowers: Vec<String> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
    let lowers = format!("lowerdir={}", lowers.join(":"));
    let mut command = Command::new(if way.is_fuse() { "fuse-overlayfs" } else { "mount" });
    if way.is_fuse() {
        command.args(["-o", &lowers]);
    } else {
        command.args(["-t", "overlay", "overlay", "-o", &format!("{lowers},userxattr")]);
    }
    command.arg(target);
    assert!(command.status().unwrap().success(), "{command:?}");
    let mut nodes = tree(target, untimed);
    // Where fuse-overlayfs copies up a directory, it loses the setgid bit, and what is made in it the group.
    for (path, node) in nodes.iter_mut().filter(|_| way.is_fuse()) {
        if matches!(node.content, Content::None) && node.device == 0 {
            node.mode &= !SETGID;
            if untimed.implied.contains(path) {
                node.owner.1 = 0;
            }
        }
    }
    rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH).unwrap();
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
