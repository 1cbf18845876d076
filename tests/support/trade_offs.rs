//! The ways to have a cache on a machine that boots, each tried on disks of its own: what the image costs, and what
//! the first build on a machine booted from it finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::cases::cache_to;
use super::command::run;
use super::files::copy_tree;
use super::packages::Packages;
use super::square::read_trace;
use super::volume::{Used, Volume};
use super::{BuildRequest, Daemon, Registry, Scratch, Tools, image, warmkit};

const REPOSITORY: &str = "app";
const STAGES: [&str; 6] = ["base", "api-deps", "api", "web-deps", "web", "release"];
const PACKAGES: usize = 8;

/// Bytes of a disk: of so large a one that garbage collection's default limits are far away.
const DISK: u64 = 64_000_000_000;
/// No blocks are written but those in use: no tables, no journal of zeros.
const EXT4: [&str; 6] =
    ["-m", "0", "-J", "size=64", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"];
/// As disks are mounted.
pub const MOUNT: &str = "noinit_itable";

/// A way to have the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The volume of the builder that did the build, and older ones before.
    Volume,
    /// None: each machine imports from the registry.
    Registry,
    /// A build while the image is made, that imports the cache.
    Build,
    /// The same for every stage.
    Stages,
    /// A bake.
    Warmkit,
    /// The cache as an OCI layout, which each build imports.
    Layout,
}

/// All ways. The first one makes the cache that the others take.
pub const WAYS: [Way; 6] = [Way::Volume, Way::Registry, Way::Build, Way::Stages, Way::Warmkit, Way::Layout];

/// What a machine that booted from the image does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// Builds the sources of the cache.
    Untouched,
    /// Builds after one source file changed.
    Changed,
    /// The first, without a network.
    UntouchedOffline,
    /// The second, without a network.
    ChangedOffline,
    /// The second, importing the registry's cache as well.
    ChangedImporting,
    /// The first, after garbage collection down to half of what was there.
    Collected,
    /// The first, with a daemon of another release.
    Release,
    /// Two builds at once, each after a change of its own.
    AtOnce,
}

/// All of them.
pub const BOOTS: [Boot; 8] = [
    Boot::Untouched,
    Boot::Changed,
    Boot::UntouchedOffline,
    Boot::ChangedOffline,
    Boot::ChangedImporting,
    Boot::Collected,
    Boot::Release,
    Boot::AtOnce,
];

/// What it took to make an image.
#[derive(Debug, Serialize)]
pub struct Made {
    /// Seconds.
    pub seconds: f64,
    /// Bytes over the network.
    pub network: u64,
    /// What it has more than an empty one.
    pub used: Used,
    /// Bytes that were written and deleted: a snapshot carries them.
    pub deleted: u64,
    /// Whether it has a history of builds, with their arguments.
    pub history: bool,
}

/// What a machine found.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// Steps of each build.
    pub steps: usize,
    /// Those that did not run, of each build; nothing where one failed.
    pub cached: Option<Vec<usize>>,
    /// Seconds until all builds were done.
    pub seconds: f64,
    /// Layers extracted.
    pub extractions: usize,
    /// Bytes over the network.
    pub network: u64,
    /// Bytes read from the disk, by the daemon's start and the builds.
    pub read: u64,
    /// Bytes of the records that the daemon found, before garbage collection.
    pub records: Option<i64>,
    /// What the build said last, where it failed, or the daemon, where it did not start.
    pub failure: Option<String>,
}

/// What all ways are tried with.
#[derive(Debug)]
pub struct World {
    tools: Tools,
    other: Tools,
    registry: Registry,
    packages: Packages,
    scratch: Scratch,
    request: BuildRequest,
    /// What the builder built before.
    older: [BuildRequest; 2],
    /// The request after a change in either branch.
    changed: [BuildRequest; 2],
    cache: String,
    image: String,
}

/// An image, made.
#[derive(Debug)]
pub struct Image {
    way: Way,
    disk: Volume,
    /// What making it took.
    pub made: Made,
    /// Of a builder's volume, a snapshot that was taken while the builder ran, right after the build.
    torn: Option<Volume>,
}

impl World {
    /// Sets everything up, with packages of so many MB.
    pub fn start(tools: Tools, other: Tools, megabytes: usize) -> Self {
        let registry = Registry::start(&tools);
        let packages = Packages::start(PACKAGES, megabytes);
        let scratch = Scratch::new();
        let base = image::push_base(&tools, &registry);
        // Named by its digest, so that no build has to ask what the tag is now.
        let (manifest, _) = registry.manifest("base", "latest");
        let base =
            format!("{}@{}", base.trim_end_matches(":latest"), ::warmkit::digest::Digest::of(&manifest));
        let context = scratch.join("context");
        copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dockerfiles/trade-offs"), &context);
        let request = BuildRequest::new(&context).arg("BASE", &base).arg("PACKAGES", &packages.url());
        let with = |text: &str| {
            ["api", "web"].map(|branch| {
                let other = scratch.join(format!("{text}-{branch}"));
                copy_tree(&context, &other);
                fs::write(other.join(branch).join("src/main.txt"), text).unwrap();
                request.context(&other)
            })
        };
        Self {
            older: with("older"),
            changed: with("changed"),
            cache: registry.reference(REPOSITORY, "cache"),
            image: registry.reference(REPOSITORY, "1"),
            tools,
            other,
            registry,
            packages,
            scratch,
            request,
        }
    }

    /// Layers, records, bytes compressed of the cache that [`Way::Volume`] exported.
    pub fn cache(&self) -> (usize, usize, u64) {
        let (manifest, _) = self.registry.manifest(REPOSITORY, "cache");
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let config = self.registry.blob(REPOSITORY, manifest["config"]["digest"].as_str().unwrap());
        let config: Value = serde_json::from_slice(&config).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        let bytes = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
        (layers.len(), config["records"].as_array().unwrap().len(), bytes)
    }

    /// A daemon on a root, which collects nothing.
    #[track_caller]
    pub fn daemon(&self, root: &Path) -> Daemon {
        let daemon = Daemon::start_elsewhere(&self.tools, root, &self.registry, true, "gc = false");
        daemon.unwrap_or_else(|said| panic!("{said}"))
    }

    /// The build whose cache it is, or one after a source file of one branch changed.
    pub fn request(&self, changed: bool) -> &BuildRequest {
        if changed { &self.changed[1] } else { &self.request }
    }

    /// Bytes over the network so far, however far that was.
    fn network(&self) -> u64 {
        self.registry.sent() + self.packages.sent()
    }

    /// Makes the image.
    #[track_caller]
    pub fn make(&self, way: Way) -> Image {
        self.make_sized(way, DISK)
    }

    /// As [`World::make`], on a disk of so many bytes.
    #[track_caller]
    pub fn make_sized(&self, way: Way, bytes: u64) -> Image {
        let mut disk = Volume::make_sized(&self.scratch, "image", "ext4", bytes, &EXT4).unwrap();
        disk.mount(MOUNT);
        let empty = disk.used();
        let network = self.network();
        let (seconds, daemon) = self.fill(way, &disk);
        let network = self.network() - network;
        let torn = (way == Way::Volume).then(|| disk.snapshot(&self.scratch, "torn"));
        if let Some(daemon) = daemon {
            daemon.stop();
        }
        let used = disk.used();
        let used = Used { bytes: used.bytes - empty.bytes, inodes: used.inodes - empty.inodes };
        let history = root(&disk).join("history.db").exists();
        let deleted = trim(&disk);
        disk.unmount();
        Image { way, disk, made: Made { seconds, network, used, deleted, history }, torn }
    }

    /// Puts what belongs there onto the disk of an image; gives the seconds that this took, and the
    /// daemon that did it, if one did.
    fn fill(&self, way: Way, disk: &Volume) -> (f64, Option<Daemon>) {
        let root = root(disk);
        let importing = self.request.import_from(&self.cache);
        let started = Instant::now();
        let start = || Daemon::start(&self.tools, &root, &self.registry);
        let mut running = None;
        match way {
            Way::Volume => {
                let daemon = start();
                let seconds = self.build_from_nothing(&daemon);
                return (seconds, Some(daemon));
            }
            Way::Registry => {}
            Way::Build => {
                let daemon = start();
                daemon.build(&loading(&importing));
                running = Some(daemon);
            }
            Way::Stages => {
                let daemon = start();
                for stage in STAGES {
                    daemon.build(&importing.target(stage).tar(Path::new("/dev/null")));
                }
                running = Some(daemon);
            }
            Way::Warmkit => {
                warmkit::bake(&[&self.cache, "--keys-from", &self.image], &root).expect_success("bake");
            }
            Way::Layout => {
                let mut skopeo = Command::new("skopeo");
                skopeo.args([
                    "copy",
                    "--quiet",
                    "--src-tls-verify=false",
                    &format!("docker://{}", self.cache),
                ]);
                skopeo.arg(format!("oci:{}:latest", layout(disk).display()));
                run(&mut skopeo, Duration::from_secs(300)).expect_success("skopeo copy");
            }
        }
        (started.elapsed().as_secs_f64(), running)
    }

    /// Has a builder do two older versions, and then the one whose cache is exported; gives the seconds that
    /// a build from nothing takes.
    fn build_from_nothing(&self, daemon: &Daemon) -> f64 {
        let [older, newer] = &self.older;
        let started = Instant::now();
        daemon.build(&loading(older));
        let seconds = started.elapsed().as_secs_f64();
        daemon.build(&loading(newer));
        daemon.build(&self.request.push(&self.image).export_to(&cache_to(&self.cache, "")));
        seconds
    }

    /// Boots a machine from an image, and builds there.
    #[track_caller]
    pub fn boot(&self, image: &Image, boot: Boot) -> Found {
        let disk = image.snapshot(self);
        self.boot_disk(disk, image.way, boot).unwrap_or_else(|said| panic!("{said}"))
    }

    /// As [`World::boot`] for [`Boot::Untouched`], on the snapshot that was taken while the builder ran, if there is one.
    #[track_caller]
    pub fn boot_torn(&self, image: &mut Image) -> Option<Found> {
        let disk = image.torn.take()?;
        let failed = |said: String| Found {
            failure: said.lines().rfind(|line| !line.is_empty()).map(str::to_owned),
            ..Found::default()
        };
        Some(self.boot_disk(disk, image.way, Boot::Untouched).unwrap_or_else(failed))
    }

    /// Builds on the disk as on another machine; what the daemon said where it does not start.
    #[track_caller]
    fn boot_disk(&self, mut disk: Volume, way: Way, boot: Boot) -> Result<Found, String> {
        disk.mount(MOUNT);
        let read = disk.bytes_read();
        let root = root(&disk);
        let online = !matches!(boot, Boot::UntouchedOffline | Boot::ChangedOffline);
        let tools = if boot == Boot::Release { &self.other } else { &self.tools };
        let mut records = None;
        let mut collecting = String::new();
        if boot == Boot::Collected && root.exists() {
            let daemon = Daemon::start_elsewhere(tools, &root, &self.registry, online, "gc = false")?;
            let bytes: i64 = daemon.disk_usage().iter().map(|record| record.size).sum();
            daemon.stop();
            records = Some(bytes);
            if bytes > 0 {
                collecting = format!("[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = {}\n", bytes / 2);
            }
        }
        let network = self.network();
        let daemon = Daemon::start_elsewhere(tools, &root, &self.registry, online, &collecting)?;
        if !collecting.is_empty() {
            daemon.wait_until_collected();
        }
        let [api, web] = &self.changed;
        let requests = match boot {
            Boot::Changed | Boot::ChangedOffline | Boot::ChangedImporting => vec![web],
            Boot::AtOnce => vec![api, web],
            _ => vec![&self.request],
        };
        let started = Instant::now();
        let built: Vec<_> = thread::scope(|scope| {
            let builds: Vec<_> = requests
                .into_iter()
                .enumerate()
                .map(|(number, request)| {
                    let trace = self.scratch.join(format!("trace-{number}"));
                    // It would be appended to.
                    let _ = fs::remove_file(&trace);
                    let request = BuildRequest {
                        trace: Some(trace),
                        ..loading(&self.on_host(way, boot, &disk, request))
                    };
                    let daemon = &daemon;
                    scope.spawn(move || (daemon.try_build(&request), request.trace.unwrap()))
                })
                .collect();
            builds.into_iter().map(|build| build.join().unwrap()).collect()
        });
        let seconds = started.elapsed().as_secs_f64();
        daemon.stop();
        let mut found = Found {
            cached: Some(Vec::new()),
            seconds,
            network: self.network() - network,
            read: disk.bytes_read() - read,
            records,
            ..Found::default()
        };
        for (outcome, trace) in built {
            match outcome {
                Ok(outcome) => {
                    let (steps, ran) = read_trace(&fs::read_to_string(trace).unwrap());
                    assert_eq!(steps.len(), outcome.names().len(), "{}", outcome.log);
                    found.steps = steps.len();
                    found.extractions += outcome.extractions;
                    found.cached.iter_mut().for_each(|all| all.push(steps.len() - ran.len()));
                }
                Err(log) => {
                    found.cached = None;
                    found.failure = log.lines().rfind(|line| !line.is_empty()).map(str::to_owned);
                }
            }
        }
        Ok(found)
    }

    /// The build as machines of this way call it.
    fn on_host(&self, way: Way, boot: Boot, disk: &Volume, request: &BuildRequest) -> BuildRequest {
        match way {
            _ if boot == Boot::ChangedImporting => request.import_from(&self.cache),
            Way::Registry => request.import_from(&self.cache),
            Way::Layout => {
                let import = format!("type=local,src={}", layout(disk).display());
                BuildRequest { import_cache: Some(import), ..request.clone() }
            }
            Way::Volume | Way::Build | Way::Stages | Way::Warmkit => request.clone(),
        }
    }
}

impl Image {
    /// A disk made from it.
    #[track_caller]
    pub fn snapshot(&self, world: &World) -> Volume {
        self.disk.snapshot(&world.scratch, "booted")
    }
}

/// A build whose result docker would load.
pub fn loading(request: &BuildRequest) -> BuildRequest {
    BuildRequest { output: Some("type=docker,dest=/dev/null".to_owned()), ..request.clone() }
}

/// Discards the blocks that no file has, and says how many bytes of them had been written.
fn trim(disk: &Volume) -> u64 {
    disk.sync();
    let before = disk.stored();
    run(Command::new("fstrim").arg(disk.path()), Duration::from_secs(120)).expect_success("fstrim");
    before.saturating_sub(disk.stored())
}

/// The root on a disk.
pub fn root(disk: &Volume) -> PathBuf {
    disk.path().join("buildkit")
}

fn layout(disk: &Volume) -> PathBuf {
    disk.path().join("layout")
}
