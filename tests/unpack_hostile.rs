//! Whatever a blob holds, unpacking it ends, writes nothing outside its directory, and takes bounded memory.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/layers.rs"]
mod layers;
#[path = "support/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use warmkit::digest::DiffId;
use warmkit::layer::{self, Compression, Error, Options, Segment};

use skip::{is_root, skip};

use layers::{BLOCK, Case, Tar, file, open, tar};

/// A directory to unpack into, with things around it that must stay as they are.
struct Fence {
    dir: TempDir,
    before: BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)>,
}

impl Fence {
    fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.unwrap();
        for name in ["upper", "etc", "d", "a"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["file", "etc/passwd", "d/e", "a/b", "upper2"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        symlink("etc", dir.path().join("link")).unwrap();
        let before = Self::look(dir.path());
        Self { dir, before }
    }

    fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    /// Everything but what is below `upper`.
    fn look(dir: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)> {
        let mut seen = BTreeMap::new();
        let mut pending = vec![dir.to_owned()];
        while let Some(path) = pending.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            if path.ends_with("upper") {
                // Its time changes with what is made in it; its mode and owner may not.
                seen.insert(path, (meta.mode(), u64::from(meta.uid()), 0, 0, Vec::new()));
                continue;
            }
            if meta.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            seen.insert(path, (meta.mode(), meta.nlink(), meta.mtime(), meta.ctime_nsec(), bytes));
        }
        seen
    }

    fn unpack(&self, blob: &[u8], base: bool) -> layer::Result<layer::Unpacked> {
        let result = layer::unpack(blob, Compression::Detect, &self.upper(), &Options::of_upper(base));
        assert_eq!(Self::look(self.dir.path()), self.before);
        result
    }
}

fn corpus() -> &'static [Case] {
    static CORPUS: OnceLock<Vec<Case>> = OnceLock::new();
    CORPUS.get_or_init(layers::corpus)
}

#[test]
fn odd_layers_stay_inside() {
    if !is_root() {
        return;
    }
    for case in corpus() {
        for layer in &case.layers {
            for base in [true, false] {
                let _ = Fence::new().unpack(&layer.blob, base);
            }
        }
    }
    for path in ["/tmp/warmkit-escape", "/tmp/warmkit-escape2"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
}

#[test]
fn entries_are_read_as_they_are_unpacked() {
    if !is_root() {
        return;
    }
    for case in corpus().iter().filter(|case| case.valid) {
        for layer in &case.layers {
            let compression =
                if layer.media_type == layers::PLAIN { Compression::None } else { Compression::Detect };
            let mut entries = 0;
            let stream = layer::entries::<Error>(layer.blob.as_slice(), compression, |entry, content| {
                entries += 1;
                // Not every content is looked at: what is left is skipped.
                if entries % 2 == 0 {
                    let mut bytes = Vec::new();
                    content.read_to_end(&mut bytes).unwrap();
                    assert_eq!(bytes.len() as u64, entry.size, "{}: {:?}", case.name, entry.path());
                }
                Ok(())
            })
            .unwrap();
            assert_eq!(stream.diff_id, DiffId::of(&layer.tar), "{}", case.name);
            let fence = Fence::new();
            if let Ok(unpacked) =
                layer::unpack(layer.blob.as_slice(), compression, &fence.upper(), &Options::of_upper(true))
            {
                assert_eq!((unpacked.entries, unpacked.diff_id), (entries, stream.diff_id), "{}", case.name);
            }
        }
    }
}

/// A change to a tar: overwrite a byte, make the header's checksum right again, swap or drop blocks.
#[derive(Debug, Clone)]
enum Change {
    Byte(prop::sample::Index, u8),
    Signed(prop::sample::Index, usize, u8),
    Swap(prop::sample::Index, prop::sample::Index),
    Drop(prop::sample::Index),
    Cut(prop::sample::Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let index = any::<prop::sample::Index>;
    let telling = prop::sample::select(b"\0/.12567x \x80\xff".to_vec());
    let change = prop_oneof![
        2 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        8 => (index(), 0..BLOCK, telling).prop_map(|(block, at, byte)| Change::Signed(block, at, byte)),
        2 => (index(), index()).prop_map(|(a, b)| Change::Swap(a, b)),
        1 => index().prop_map(Change::Drop),
        1 => index().prop_map(Change::Cut),
    ];
    prop::collection::vec(change, 0..6)
}

fn mutate(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let blocks = bytes.len() / BLOCK;
        if blocks == 0 {
            return bytes;
        }
        match change {
            Change::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Signed(block, at, byte) => {
                let start = block.index(blocks) * BLOCK;
                bytes[start + at] = *byte;
                let header = &mut bytes[start..start + BLOCK];
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            Change::Swap(a, b) => {
                let (a, b) = (a.index(blocks) * BLOCK, b.index(blocks) * BLOCK);
                let first = bytes[a..a + BLOCK].to_vec();
                bytes.copy_within(b..b + BLOCK, a);
                bytes[b..b + BLOCK].copy_from_slice(&first);
            }
            Change::Drop(at) => {
                let at = at.index(blocks) * BLOCK;
                bytes.drain(at..at + BLOCK);
            }
            Change::Cut(at) => {
                let at = at.index(bytes.len());
                bytes.truncate(at);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_layers_stay_inside(
        first in any::<prop::sample::Index>(),
        second in any::<prop::sample::Index>(),
        changes in changes(),
        base in any::<bool>(),
    ) {
        if !is_root() {
            return Ok(());
        }
        // Two cases in one layer meet at the same names.
        let small: Vec<&Vec<u8>> = corpus()
            .iter()
            .flat_map(|case| &case.layers)
            .map(|layer| &layer.tar)
            .filter(|tar| tar.len() < 200_000)
            .collect();
        let without_end = |tar: &[u8]| tar.strip_suffix(&[0; 2 * BLOCK]).unwrap_or(tar).to_vec();
        let both = [without_end(small[first.index(small.len())]), small[second.index(small.len())].clone()].concat();
        let _ = Fence::new().unpack(&mutate(both, &changes), base);
    }

    #[test]
    fn changed_blobs_end(at in any::<prop::sample::Index>(), byte: u8, which in any::<prop::sample::Index>()) {
        let blobs: Vec<&Vec<u8>> = corpus().iter().flat_map(|case| &case.layers).map(|layer| &layer.blob).collect();
        let mut blob = blobs[which.index(blobs.len())].clone();
        if !blob.is_empty() {
            let at = at.index(blob.len());
            blob[at] = byte;
        }
        let _ = layer::entries::<Error>(blob.as_slice(), Compression::Detect, |_, _| Ok(()));
    }

    #[test]
    fn random_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..3000), magic in 0..4_usize) {
        let magic: &[u8] = [&[][..], &[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]][magic];
        let blob = [magic, &bytes].concat();
        let _ = layer::entries::<Error>(blob.as_slice(), Compression::Detect, |_, _| Ok(()));
    }
}

/// A blob without end, that counts what is read of it.
struct Endless<'a> {
    start: &'a [u8],
    read: &'a AtomicUsize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = if self.start.is_empty() {
            buffer.fill(b'x');
            buffer.len()
        } else {
            self.start.read(buffer)?
        };
        self.read.fetch_add(n, Ordering::Relaxed);
        Ok(n)
    }
}

fn endless_file() -> Tar {
    open([file("first", ""), file("endless", "").put(124, "77777777777\0").keep_size()])
}

#[test]
fn memory_is_bounded_and_errors_end_all_stages() {
    #[derive(Debug, PartialEq)]
    enum Stop {
        Here,
        Layer(String),
    }
    impl From<Error> for Stop {
        fn from(error: Error) -> Self {
            Self::Layer(error.to_string())
        }
    }
    let (start, read) = (endless_file().0, AtomicUsize::new(0));
    let blob = Endless { start: &start, read: &read };
    let stopped = layer::entries(blob, Compression::Detect, |entry, content| {
        if entry.path() == Path::new("first") {
            return Ok(());
        }
        for _ in 0..100 {
            assert!(matches!(content.segment(), Ok(Segment::Data(_))));
        }
        let consumed = 90 * (256 << 10);
        std::thread::sleep(Duration::from_millis(100));
        let ahead = read.load(Ordering::Relaxed) - consumed;
        // Ten more chunks consumed at most, eight in the stages, one in the reader.
        assert!(ahead < 6 << 20, "{ahead} bytes read ahead");
        Err(Stop::Here)
    });
    assert_eq!(stopped, Err(Stop::Here));
}

#[test]
fn the_first_cause_is_reported() {
    struct Broken(Vec<u8>, usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let left = &self.0[self.1..];
            if left.is_empty() {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset));
            }
            let n = left.len().min(buffer.len()).min(4096);
            buffer[..n].copy_from_slice(&left[..n]);
            self.1 += n;
            Ok(n)
        }
    }
    let blob = tar([file("f", vec![b'x'; 3_000_000])]).0;
    for length in [0, 5, 2000, 1_000_000] {
        let result =
            layer::entries::<Error>(Broken(blob[..length].to_vec(), 0), Compression::Detect, |_, _| Ok(()));
        assert!(
            matches!(&result, Err(Error::Blob(e)) if e.kind() == io::ErrorKind::ConnectionReset),
            "{result:?}"
        );
    }
    // A stream that is damaged behind the archive's end is damaged all the same.
    let result = layer::entries::<Error>(Broken(blob, 0), Compression::Detect, |_, _| Ok(()));
    assert!(matches!(result, Err(Error::Blob(_))), "{result:?}");
}

#[test]
fn a_full_disk_is_told() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let source = std::ffi::CString::new("size=1m").unwrap();
    if rustix::mount::mount(
        "tmpfs",
        dir.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(source.as_c_str()),
    )
    .is_err()
    {
        skip("no tmpfs can be mounted");
        return;
    }
    let blob = tar([file("large", vec![b'x'; 4_000_000])]).0;
    let result = layer::unpack(blob.as_slice(), Compression::None, dir.path(), &Options::of_upper(true));
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    let error = result.unwrap_err();
    assert!(error.is_disk_full(), "{error:?}");
    assert_eq!(error.to_string(), r#"cannot write "large" in the layer's directory"#);
}
