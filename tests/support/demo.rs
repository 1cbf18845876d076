//! The small real cache in fixtures/demo: its build's context, and the ways to have it elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::command::Ended;
use super::files::copy_tree;
use super::{Registry, Scratch, warmkit};

pub use super::shipped::{cache, demo, keys};

/// How many steps its build has.
pub const STEPS: usize = 12;

/// A copy of its context. Modes are part of cache keys, and a checkout has those of its umask.
pub fn context(scratch: &Scratch) -> PathBuf {
    let context = scratch.join("context");
    copy_tree(&demo("context"), &context);
    set_modes(&context);
    context
}

fn set_modes(path: &Path) {
    let is_dir = path.is_dir();
    fs::set_permissions(path, fs::Permissions::from_mode(if is_dir { 0o755 } else { 0o644 })).unwrap();
    if is_dir {
        for entry in fs::read_dir(path).unwrap() {
            set_modes(&entry.unwrap().path());
        }
    }
}

/// Bakes it, with all its keys and these arguments besides.
#[track_caller]
pub fn bake(arguments: &[&str], root: &Path) -> Ended {
    let (cache, keys) = (cache(), keys());
    let all = [&[cache.as_str(), "--keys-from", &keys], arguments].concat();
    warmkit::bake(&all, root).expect_success("bake")
}

/// Pushes the demo's cache to `demo:cache`; gives its manifest.
pub fn push(registry: &Registry) -> Vec<u8> {
    let blob = |digest: &str| fs::read(demo("cache/blobs/sha256").join(&digest["sha256:".len()..])).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let index = json(&fs::read(demo("cache/index.json")).unwrap());
    let manifest = &index["manifests"][0];
    let bytes = blob(&text(&manifest["digest"]));
    let parsed = json(&bytes);
    for part in parsed["layers"].as_array().unwrap().iter().chain([&parsed["config"]]) {
        registry.put_blob("demo", &blob(&text(&part["digest"])));
    }
    registry.put_manifest("demo", "cache", &text(&manifest["mediaType"]), &bytes);
    bytes
}
