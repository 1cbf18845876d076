//! `warmkit plan` tells what a bake then does, and a bake that does not fit ends before it fetches a layer, or leaves
//! its target as it was.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use support::Scratch;
use support::command::{Ended, run};
use support::demo::{self, demo};
use support::files::{copy_tree, install};
use support::foreseen::{bake_as_planned, plan, tree};
use support::handmade::{Handmade, blob_path, write_keys};
use support::skip::is_root;
use support::tar::{Entry, Kind, Tar};
use support::tmpfs::Tmpfs;
use support::warmkit::{bake, warmkit};
use warmkit::digest::DiffId;

const MIB: usize = 1 << 20;

/// A cache in a scratch directory, and its keys.
struct Fixture {
    scratch: Scratch,
    layout: PathBuf,
    cache: String,
    keys: String,
}

impl Fixture {
    /// Of one layer.
    fn of_layer(tar: &[u8]) -> Self {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(tar).unwrap();
        let mut cache = Handmade::default();
        cache.blob(gzip.finish().unwrap(), DiffId::of(tar), None);
        Self::of(cache)
    }

    /// Two chains on one base; `lost` has no key.
    fn of_chains() -> Self {
        let mut cache = Handmade::default();
        let base = cache.layer("base", None);
        let layers = ["one", "two", "lost"].map(|name| cache.layer(name, Some(base)));
        let from = cache.record("base", &[], &[base]);
        for (name, layer) in ["one", "two", "lost"].into_iter().zip(layers) {
            cache.record(name, &[&[from]], &[layer]);
        }
        Self::of(cache)
    }

    fn of(mut cache: Handmade) -> Self {
        if cache.documents().1.len() == 2 {
            cache.record("step", &[], &[0]);
        }
        let scratch = Scratch::new();
        let layout = scratch.join("layout");
        let source = cache.write(&layout);
        let keys = write_keys(&scratch.join("cache.db"), ["one", "two"]);
        Self { layout, cache: source, keys, scratch }
    }

    fn arguments(&self) -> [&str; 3] {
        [&self.cache, "--keys-from", &self.keys]
    }

    /// A disk of its own at `disk`.
    fn disk(&self, options: &str) -> Tmpfs {
        Tmpfs::new(self.scratch.join("disk"), options)
    }
}

fn parsed(ended: &Ended) -> Value {
    ended.stdout.parse().unwrap_or_else(|e| panic!("{e}: {}{}", ended.stdout, ended.stderr))
}

/// A tar of files of this many bytes, which do not compress.
fn noise(files: usize, bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap()
    };
    let mut tar = Tar::new();
    for name in 0..files {
        let content: Vec<u8> = (0..bytes).map(|_| byte()).collect();
        tar.add(Entry::new(&format!("file{name}"), Kind::File(&content)));
    }
    tar.finish()
}

#[test]
fn the_shipped_cache_is_baked_as_planned() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let (cache, keys) = (demo::cache(), demo::keys());
    let planned = bake_as_planned(&[&cache, "--keys-from", &keys], &[], &scratch.join("root"));
    assert_eq!(
        (planned["layers"].as_u64(), planned["tars_known"].as_u64()),
        (Some(12), Some(12)),
        "{planned:#}"
    );
    assert_eq!(planned["gc"]["release"], "v0.34.2");
}

#[test]
fn a_plan_says_what_whole_trees_cost() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let (cache, keys) = (demo::cache(), demo::keys());
    let arguments = [&cache, "--keys-from", &keys];
    let native = [&arguments[..], &["--snapshotter", "native"]].concat();
    let planned = bake_as_planned(&native, &[], &scratch.join("root"));
    let layered = parsed(&plan(&arguments, &scratch.join("other")).expect_success("plan"));
    assert!(layered["whole_trees"].is_null(), "{layered:#}");
    // All that such a root has more than one of overlayfs is trees.
    let whole = &planned["whole_trees"];
    for which in ["estimate", "up_to"] {
        let [trees, layers, all, without] =
            [&whole["trees"], &whole["layers"], &planned["bytes_on_disk"], &layered["bytes_on_disk"]]
                .map(|bytes| bytes[which].as_u64().unwrap());
        assert!(trees > 2 * layers, "{which}: {whole:#}");
        assert_eq!(all - trees, without - layers, "{which}");
    }

    let mut command = warmkit();
    command.arg("plan").args(&native).arg("--root").arg(scratch.join("other"));
    let said = run(&mut command, Duration::from_secs(60)).expect_success("plan").stdout;
    let line =
        said.lines().find(|line| line.starts_with("  of trees  about ")).unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.contains(" MiB, as native keeps a whole tree for each layer, and layers alone are about "),
        "{line}"
    );
}

#[test]
fn what_is_written_into_a_mount_or_below_missing_directories_is_planned() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::of_layer(&noise(40, 10_000));
    bake_as_planned(&fixture.arguments(), &[], &fixture.scratch.join("a/b/root"));
    let disk = fixture.disk("size=64m");
    bake_as_planned(&fixture.arguments(), &[], &disk.0);
}

#[test]
fn a_plan_says_what_a_bake_would_refuse() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::of_chains();
    let refusals = |arguments: &[&str], root: &Path| {
        let before = tree(fixture.scratch.path());
        let planned = plan(arguments, root);
        assert_eq!(tree(fixture.scratch.path()), before, "planning changed something");
        let report = parsed(&planned);
        let codes: Vec<i64> =
            report["refusals"].as_array().unwrap().iter().map(|r| r["exit_code"].as_i64().unwrap()).collect();
        assert_eq!(planned.status.code().map(i64::from), Some(codes.first().copied().unwrap_or(0)));
        // A bake ends with the first of them, and says the same.
        let baked = bake(arguments, root);
        assert_eq!(baked.status.code(), planned.status.code(), "{}", baked.stderr);
        if let Some(first) = report["refusals"][0]["message"].as_str() {
            // What is free then is less: the directory that it began with is one inode.
            let first = first.split(", and ").next().unwrap();
            assert!(baked.stderr.contains(&format!("error: {first}")), "{first}\n{}", baked.stderr);
        }
        codes
    };
    let root = |name: &str| fixture.scratch.join(name);
    fs::create_dir_all(root("taken/file")).unwrap();
    let arguments = fixture.arguments();
    assert_eq!(refusals(&arguments, &root("root")), [6]);
    assert_eq!(refusals(&arguments, &root("taken")), [7, 6]);
    let disk = fixture.disk("size=64m,nr_inodes=30");
    assert_eq!(refusals(&[&arguments[..], &["--allow-unkeyed"]].concat(), &disk.0), [11]);
    assert_eq!(refusals(&[&arguments[..], &["--allow-unkeyed"]].concat(), &root("root")), [0_i64; 0]);

    // A layer that its cache has lost is what a bake would end with.
    fs::remove_file(blob_path(&fixture.layout, "two")).unwrap();
    let ended = plan(&[&fixture.cache, "--allow-unkeyed"], &root("other"));
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    assert!(
        parsed(&ended)["error"]["message"].as_str().unwrap().contains("though its manifest lists it"),
        "{}",
        ended.stdout
    );
}

#[test]
fn whoever_may_not_bake_may_plan() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let binary = scratch.join("warmkit");
    install(Path::new(env!("CARGO_BIN_EXE_warmkit")), &binary);
    copy_tree(&demo("cache"), &scratch.join("cache"));
    let private = scratch.join("private");
    fs::create_dir(&private).unwrap();
    for (path, mode) in [(scratch.path(), 0o755), (&private, 0o700)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(&binary);
    let cache = format!("type=local,src={}", scratch.join("cache").display());
    command.args(["plan", &cache, "--allow-unkeyed", "--root"]).arg(private.join("root"));
    let ended = run(command.uid(65534).gid(65534), Duration::from_secs(60)).expect_success("plan");
    assert!(ended.stderr.contains("a bake, as root, may find more to refuse there"), "{}", ended.stderr);
    assert!(ended.stdout.contains("12 in 12 snapshots"), "{}", ended.stdout);
}

#[test]
fn what_cannot_fit_is_refused_before_a_layer_is_fetched() {
    if !is_root() {
        return;
    }
    for (files, bytes, options, expected) in
        [(1, 2 * MIB, "size=1m", "bytes, and "), (1, 100, "size=64m,nr_inodes=12", "inodes, and ")]
    {
        let fixture = Fixture::of_layer(&noise(files, bytes));
        let disk = fixture.disk(options);
        // Whoever fetched it would say that it is not there.
        let blobs = fixture.layout.join("blobs/sha256");
        let large = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path());
        let is_layer = |path: &PathBuf| fs::read(path).unwrap().starts_with(&[0x1f, 0x8b]);
        fs::remove_file(large.into_iter().find(is_layer).unwrap()).unwrap();
        for root in [disk.0.clone(), disk.0.join("root")] {
            let ended = bake(&fixture.arguments(), &root);
            assert_eq!(ended.status.code(), Some(11), "{options}: {}", ended.stderr);
            assert!(ended.stderr.contains("not enough space for "), "{}", ended.stderr);
            assert!(ended.stderr.contains(expected), "{}", ended.stderr);
            assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "{options}");
        }
    }
}

#[test]
fn what_just_fits_is_not_refused() {
    if !is_root() {
        return;
    }
    let (cache, keys) = (demo::cache(), demo::keys());
    let shipped: Vec<&str> = vec![&cache, "--keys-from", &keys];
    let fixtures = [Fixture::of_layer(&noise(200, 700)), Fixture::of_layer(&noise(1, 3 * MIB))];
    // Whether it is warned of: only then does it seem to need more than it does.
    let cases = [
        (shipped, true),
        (fixtures[0].arguments().to_vec(), false),
        (fixtures[1].arguments().to_vec(), true),
    ];
    for (arguments, warned) in &cases {
        let scratch = Scratch::new();
        let used = {
            let disk = Tmpfs::new(scratch.join("roomy"), "size=256m");
            bake(arguments, &disk.0).expect_success("bake");
            let found = rustix::fs::statvfs(&disk.0).unwrap();
            (((found.f_blocks - found.f_bfree) * found.f_frsize), found.f_files - found.f_ffree)
        };
        // The staging directory is one more, while it is there.
        let disk = Tmpfs::new(scratch.join("tight"), &format!("size={},nr_inodes={}", used.0, used.1 + 1));
        let baked = bake(arguments, &disk.0).expect_success("bake into what it takes");
        assert_eq!(baked.stderr.contains("may not have enough space"), *warned, "{}", baked.stderr);
    }
}

/// A tmpfs without a limit says that it has no bytes at all.
#[test]
fn a_disk_that_does_not_tell_its_size_is_baked_on() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::of_layer(&noise(1, MIB));
    let disk = fixture.disk("size=0");
    let planned = parsed(&plan(&fixture.arguments(), &disk.0));
    assert_eq!((&planned["target"]["bytes"], &planned["target"]["bytes_free"]), (&Value::Null, &Value::Null));
    assert_eq!(planned["refusals"], Value::Array(Vec::new()));
    let mut command = warmkit();
    command.arg("plan").args(fixture.arguments()).arg("--root").arg(&disk.0);
    let said = run(&mut command, Duration::from_secs(60)).expect_success("plan").stdout;
    assert!(said.contains("free there  the file system does not tell bytes"), "{said}");
    let baked = bake(&fixture.arguments(), &disk.0).expect_success("bake");
    assert!(!baked.stderr.contains("enough space"), "{}", baked.stderr);
}

#[test]
fn a_disk_that_fills_up_leaves_the_target_as_it_was() {
    if !is_root() {
        return;
    }
    let zeros = {
        let content = vec![0; 8 * MIB];
        Tar::new().add(Entry::new("zeros", Kind::File(&content))).finish()
    };
    for (tar, options, what) in [
        // The blob fits, what it unpacks to does not.
        (zeros, "size=2m", "bytes"),
        (noise(300, 1), "size=64m,nr_inodes=100", "inodes"),
    ] {
        let fixture = Fixture::of_layer(&tar);
        let disk = fixture.disk(options);
        for root in [disk.0.clone(), disk.0.join("a/root")] {
            let ended = bake(&[&fixture.arguments()[..], &["--json"]].concat(), &root);
            assert_eq!(ended.status.code(), Some(11), "{}", ended.stderr);
            let message = parsed(&ended)["error"]["message"].as_str().unwrap().to_owned();
            let start = format!("{} ran out of {what}, nothing was changed: make room", root.display());
            assert!(message.starts_with(&start), "{message}");
            assert!(message.ends_with("No space left on device (os error 28)"), "{message}");
            assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "{options}");
            let found = rustix::fs::statvfs(&disk.0).unwrap();
            assert!(found.f_ffree > 50, "inodes are still held: {}", found.f_ffree);
        }
    }
}

#[test]
fn a_forecast_follows_the_configuration_the_release_and_the_disk() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::of_layer(&noise(4, 100_000));
    let root = fixture.scratch.join("root");
    let write = |text: &str| fixture.scratch.write("buildkitd.toml", text).display().to_string();
    let gc = |more: &[&str]| {
        parsed(&plan(&[&fixture.arguments()[..], more].concat(), &root).expect_success("plan"))["gc"].clone()
    };
    let counts = |gc: &Value| {
        let of = |pass: &Value| (pass["hours"].as_i64().unwrap(), pass["records"].as_i64().unwrap());
        gc["passes"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };

    let defaults = gc(&["--disk-size", "200GB"]);
    assert_eq!(counts(&defaults), [(0, 0), (48, 0), (1440, 0)]);
    assert_eq!((&defaults["policy"], &defaults["disk"]["total"]), (&json!("default"), &json!(200_u64 << 30)));

    let config = write("[[worker.oci.gcpolicy]]\nkeepDuration = \"100h\"\nmaxUsedSpace = 1000\n");
    let timed = gc(&["--buildkitd-config", &config]);
    assert_eq!(counts(&timed), [(0, 0), (48, 0), (1440, 1)]);
    assert_eq!(timed["passes"][2]["removed"][0]["rule"], 1);
    // What an old release reads past.
    let old = gc(&["--buildkitd-config", &config, "--buildkitd-release", "v0.12.5"]);
    assert_eq!(old["ignored"], json!(["worker.oci.gcpolicy.maxUsedSpace"]));
    assert!(old["keep"].as_str().unwrap().contains("keepBytes"), "{old:#}");

    // What is to keep it is a configuration that keeps it.
    let config = write(timed["keep"].as_str().unwrap());
    assert_eq!(counts(&gc(&["--buildkitd-config", &config])), [(0, 0), (48, 0), (1440, 0)]);
    let with_room = gc(&["--room", "30GB"]);
    let limit =
        with_room["keep"].as_str().unwrap().split("reservedSpace = ").nth(1).unwrap().trim().to_owned();
    assert!(limit.parse::<u64>().unwrap() > 30 << 30, "{limit}");

    let config = write("[worker.oci]\ngc = \"maybe\"\n");
    let ended = plan(&[&fixture.arguments()[..], &["--buildkitd-config", &config]].concat(), &root);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.stdout);
}
