//! Caches made without a build: a cache config, its layers, and the keys that a builder would have.
//!
//! Operations have names here; an operation's digest is the hash of its name. For what no real build
//! does in seconds (ten thousand records) or at all (a layer that is lost).
#![allow(dead_code, reason = "each test file uses its own part of this module")]
#![allow(unreachable_pub, reason = "compiled into each test file")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use warmkit::bolt::{Bucket, PageSize};
use warmkit::digest::{DiffId, Digest, OpDigest};

const CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A cache that grows.
#[derive(Debug, Clone, Default)]
pub struct Handmade {
    descriptors: Vec<Value>,
    layers: Vec<Value>,
    records: Vec<Value>,
    blobs: Vec<(Digest, Vec<u8>)>,
}

/// The digest of an operation.
pub fn operation(name: &str) -> OpDigest {
    OpDigest::of(name.as_bytes())
}

/// A tar with one small file.
fn tar(name: &str) -> Vec<u8> {
    let content = format!("{name}\n");
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\x000000000\x000000000\x00");
    put(124, format!("{:011o}\x0014524770400\x00        0", content.len()).as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [header.as_slice(), content.as_bytes()].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

impl Handmade {
    /// Adds a layer with a file of this name on another one; gives its index.
    pub fn layer(&mut self, name: &str, parent: Option<usize>) -> usize {
        let tar = tar(name);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar).unwrap();
        self.blob(gzip.finish().unwrap(), DiffId::of(&tar), parent)
    }

    /// Adds a layer of this tar, as it is.
    pub fn plain(&mut self, tar: &[u8], parent: Option<usize>) -> usize {
        self.typed(TAR, tar.to_vec(), DiffId::of(tar), parent)
    }

    /// Adds a layer of these bytes, of which the cache says that they unpack to `diff_id`.
    pub fn blob(&mut self, blob: Vec<u8>, diff_id: DiffId, parent: Option<usize>) -> usize {
        self.typed(GZIP, blob, diff_id, parent)
    }

    /// A cache whose one record, the operation `name`, has a layer that unpacks to something else than is said of it; with
    /// the layer's digest and bytes.
    pub fn of_another_diff_id(name: &str) -> (Self, Digest, Vec<u8>) {
        let mut honest = Self::default();
        honest.layer("file", None);
        let (digest, bytes) = honest.blobs.swap_remove(0);
        let mut cache = Self::default();
        let layer = cache.blob(bytes.clone(), DiffId::of(b"something else"), None);
        cache.record(name, &[], &[layer]);
        (cache, digest, bytes)
    }

    fn typed(&mut self, media_type: &str, blob: Vec<u8>, diff_id: DiffId, parent: Option<usize>) -> usize {
        let digest = Digest::of(&blob);
        let mut layer = json!({ "blob": digest });
        // As Go writes it: 0 is left out.
        match parent {
            Some(0) => {}
            Some(parent) => layer["parent"] = json!(parent),
            None => layer["parent"] = json!(-1),
        }
        self.layers.push(layer);
        if !self.blobs.iter().rev().take(64).any(|(known, _)| *known == digest) {
            self.descriptors.push(json!({
                "mediaType": media_type, "digest": digest, "size": blob.len(),
                "annotations": {
                    "containerd.io/uncompressed": diff_id,
                    "buildkit/createdat": "2024-01-02T03:04:05Z",
                },
            }));
            self.blobs.push((digest, blob));
        }
        self.layers.len() - 1
    }

    /// Adds a record: the operation `name`, per input the records that it may be, and the layers that are its
    /// results; gives its index.
    pub fn record(&mut self, name: &str, inputs: &[&[usize]], results: &[usize]) -> usize {
        let link = |record: &usize| json!({ "link": record });
        let inputs: Vec<Vec<Value>> = inputs.iter().map(|input| input.iter().map(link).collect()).collect();
        let result = |layer: &usize| json!({ "layer": layer, "createdAt": "2024-01-02T03:04:05Z" });
        let mut record = json!({ "digest": operation(name).record_digest(0) });
        if !inputs.is_empty() {
            record["inputs"] = json!(inputs);
        }
        if !results.is_empty() {
            record["layers"] = results.iter().map(result).collect();
        }
        self.records.push(record);
        self.records.len() - 1
    }

    /// The manifest and all blobs, the config among them.
    pub fn documents(&self) -> (Vec<u8>, Vec<(Digest, Vec<u8>)>) {
        let config = json!({ "layers": self.layers, "records": self.records }).to_string().into_bytes();
        let digest = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": self.descriptors,
            "config": { "mediaType": CONFIG, "digest": digest, "size": config.len() },
        });
        let blobs = self.blobs.iter().cloned().chain([(digest, config)]).collect();
        (manifest.to_string().into_bytes(), blobs)
    }

    /// Writes it as an OCI layout; gives it as an argument of `warmkit bake`.
    pub fn write(&self, layout: &Path) -> String {
        let (manifest, blobs) = self.documents();
        let directory = layout.join("blobs/sha256");
        fs::create_dir_all(&directory).unwrap();
        let digest = Digest::of(&manifest);
        let entry = json!({ "mediaType": MANIFEST, "digest": digest, "size": manifest.len() });
        for (digest, bytes) in blobs.iter().chain([&(digest, manifest)]) {
            fs::write(directory.join(digest.hex()), bytes).unwrap();
        }
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        format!("type=local,src={}", layout.display())
    }
}

/// Where a layout keeps a layer's blob: that with a file of this name.
pub fn blob_path(layout: &Path, name: &str) -> PathBuf {
    let mut cache = Handmade::default();
    cache.layer(name, None);
    layout.join("blobs/sha256").join(cache.blobs[0].0.hex())
}

/// Writes a `cache.db` that knows these operations; gives it as a source of keys.
pub fn write_keys<'a>(file: &Path, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut root = Bucket::new();
    for name in names {
        let link = format!("{{\"Digest\":\"{}\"}}@{name}", operation(name));
        root.bucket("_links").bucket("root").put(link, "");
    }
    fs::write(file, root.to_bytes(PageSize::DEFAULT).unwrap()).unwrap();
    format!("type=cachedb,src={}", file.display())
}
