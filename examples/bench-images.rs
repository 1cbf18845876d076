//! Writes the images that `scripts/bench` builds on: an OCI layout with one image per stage, the
//! same bytes each time.
//!
//! Shaped like the layers of builds: many small files in deep directories, a few large ones, some
//! links; part text, part noise, so that gzip shrinks it to about two fifths.
//!
//!     cargo run --release --example bench-images -- DIR [STAGES] [LAYERS-PER-STAGE]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool of the repository, not of its users")]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use warmkit::digest::{DiffId, Digest, Hasher};

/// Files of one layer, by kind: how many, and from how many bytes to how many.
const FILES: [(usize, usize, usize); 4] =
    [(3000, 200, 4 << 10), (1150, 4 << 10, 64 << 10), (24, 1 << 20, 4 << 20), (2, 48 << 20, 64 << 20)];

/// 2023-11-14T22:13:20Z.
const TIME: u64 = 1_700_000_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap();
    let dir = Path::new(&dir);
    let stages: usize = args.next().map_or(3, |n| n.parse().unwrap());
    let per_stage: usize = args.next().map_or(4, |n| n.parse().unwrap());
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();

    let layers = write_layers(dir, stages * per_stage);
    let manifests: Vec<Value> = layers
        .chunks(per_stage)
        .enumerate()
        .map(|(stage, layers)| write_image(dir, &format!("stage{}", stage + 1), layers))
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();

    let sum = |f: fn(&Layer) -> u64| layers.iter().map(f).sum::<u64>();
    println!(
        "{} layers, {} files, {} MB compressed, {} MB uncompressed",
        layers.len(),
        sum(|l| l.files),
        sum(|l| l.size) / 1_000_000,
        sum(|l| l.tar_size) / 1_000_000,
    );
}

struct Layer {
    digest: Digest,
    diff_id: DiffId,
    size: u64,
    tar_size: u64,
    files: u64,
}

/// Writes `count` layers, as many at a time as there are cores.
fn write_layers(dir: &Path, count: usize) -> Vec<Layer> {
    let queue = Mutex::new(0..count);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                loop {
                    let Some(number) = queue.lock().unwrap().next() else { return };
                    let layer = write_layer(dir, number);
                    done.lock().unwrap().push((number, layer));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, layer)| layer).collect()
}

/// Passes bytes on, counted and hashed.
struct Tee<W> {
    to: W,
    hash: Hasher,
    bytes: u64,
}

impl<W: Write> Tee<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Hasher::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.to.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn write_layer(dir: &Path, number: usize) -> Layer {
    let temporary = dir.join(format!("layer-{number}"));
    let file = BufWriter::with_capacity(1 << 20, File::create(&temporary).unwrap());
    let mut tar = Tee::new(GzEncoder::new(Tee::new(file), Compression::new(6)));
    let files = write_tar(&mut tar, number).unwrap();
    let (diff_id, tar_size) = (DiffId::from_bytes(tar.hash.finish()), tar.bytes);
    let mut blob = tar.to.finish().unwrap();
    blob.flush().unwrap();
    let (digest, size) = (Digest::from_bytes(blob.hash.finish()), blob.bytes);
    fs::rename(temporary, blob_path(dir, &digest)).unwrap();
    Layer { digest, diff_id, size, tar_size, files }
}

fn blob_path(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    dir.join("blobs").join(digest.to_string().replace(':', "/"))
}

fn write_tar(out: &mut impl Write, number: usize) -> io::Result<u64> {
    let mut random = Random::new(number);
    let mut data = Vec::new();
    let mut files = 0;
    header(out, "opt/", b'5', 0o755, 0, "")?;
    header(out, &format!("opt/layer{number}/"), b'5', 0o755, 0, "")?;
    // What the measured build copies out of each stage.
    header(out, "opt/id", b'0', 0o644, 3, "")?;
    body(out, format!("{number:03}").as_bytes())?;
    for (kind, (count, least, most)) in FILES.into_iter().enumerate() {
        let mut parent = String::new();
        for i in 0..count {
            if i % 25 == 0 {
                parent = format!("opt/layer{number}/kind{kind}/package{}/", i / 25);
                header(out, &parent, b'5', 0o755, 0, "")?;
                parent.push_str("lib/");
                header(out, &parent, b'5', 0o755, 0, "")?;
            }
            let name = format!("{parent}file{i}");
            random.fill(&mut data, random.clone().between(least, most));
            header(out, &name, b'0', if i % 40 == 0 { 0o755 } else { 0o644 }, data.len(), "")?;
            body(out, &data)?;
            files += 1;
            if i % 50 == 1 {
                header(out, &format!("{name}.symlink"), b'2', 0o777, 0, &format!("file{i}"))?;
                header(out, &format!("{name}.link"), b'1', 0o644, 0, &name)?;
            }
        }
    }
    out.write_all(&[0; 1024])?;
    Ok(files)
}

/// One ustar header.
fn header(out: &mut impl Write, name: &str, kind: u8, mode: u32, size: usize, link: &str) -> io::Result<()> {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}\0{:07o}\0{:07o}\0", 0, 0).as_bytes());
    put(124, format!("{size:011o}\0{TIME:011o}\0        ").as_bytes());
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&block)
}

fn body(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.write_all(&[0; 512][..(512 - data.len() % 512) % 512])
}

/// Marsaglia's xorshift64: fast, and the same everywhere.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: usize) -> Self {
        Self(0x9E37_79B9_7F4A_7C15 ^ ((seed as u64 + 1) << 20))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn between(mut self, least: usize, most: usize) -> usize {
        self.next();
        least + usize::try_from(self.next() >> 1).unwrap() % (most - least)
    }

    /// Makes `data` `len` bytes long: runs of text, and of noise that no compressor shrinks.
    fn fill(&mut self, data: &mut Vec<u8>, len: usize) {
        const WORDS: [&str; 32] = [
            "the ", "cache ", "layer ", "of ", "return ", "if ", "0x", "self.", "();\n", "    ", "fn ",
            "let ", "error", "path", "digest ", "= ", "{\n", "}\n", "snapshot", "build", "struct ", "match ",
            "Some(", "None", "::new", "//", "data", "import ", "const ", "value", "key ", "\n",
        ];
        data.clear();
        while data.len() < len {
            let run = (len - data.len()).min(4096);
            let end = data.len() + run;
            if self.next() % 100 < 24 {
                while data.len() < end {
                    data.extend_from_slice(&self.next().to_le_bytes());
                }
            } else {
                while data.len() < end {
                    let mut bits = self.next();
                    for _ in 0..12 {
                        data.extend_from_slice(WORDS[(bits & 31) as usize].as_bytes());
                        bits >>= 5;
                    }
                }
            }
            data.truncate(end);
        }
    }
}

/// Writes config and manifest of one image; gives its entry in the index.
fn write_image(dir: &Path, tag: &str, layers: &[Layer]) -> Value {
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blob_path(dir, &digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let config = json!({
        "created": "2023-11-14T22:13:20Z",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {},
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>(),
        },
    });
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|l| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": l.digest.to_string(),
                "size": l.size,
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
        "layers": descriptors,
    });
    let mut entry = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    entry
}
