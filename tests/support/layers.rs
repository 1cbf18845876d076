//! Odd layers: tars written header by header, so that every field can be wrong, and what each is to prove.
#![allow(dead_code, reason = "each test file uses its own part of this module")]
#![allow(unreachable_pub, reason = "compiled into each test file")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

#[path = "layers/names.rs"]
mod names;
#[path = "layers/packing.rs"]
mod packing;
#[path = "layers/records.rs"]
mod records;
#[path = "layers/replacing.rs"]
mod replacing;
#[path = "layers/stacked.rs"]
mod stacked;
#[path = "layers/types.rs"]
mod types;

/// Media type of a plain layer.
pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a gzip layer.
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a zstd layer.
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// One layer of a case.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its decompressed bytes.
    pub tar: Vec<u8>,
    /// Its bytes in the registry.
    pub blob: Vec<u8>,
    /// What the manifest calls it.
    pub media_type: &'static str,
}

/// An image's layers, bottom first; all but the last are valid.
#[derive(Debug, Clone)]
pub struct Case {
    /// A unique name.
    pub name: String,
    /// The layers.
    pub layers: Vec<Layer>,
    /// A real daemon extracts the last one too.
    pub valid: bool,
}

/// Collects cases.
#[derive(Debug, Default)]
pub struct Corpus(Vec<Case>);

impl Corpus {
    /// Adds a case of plain tars, packed in turn as gzip, zstd and nothing.
    pub fn add(&mut self, name: &str, valid: bool, tars: &[Tar]) {
        let layers = tars
            .iter()
            .enumerate()
            .map(|(i, tar)| match (self.0.len() + i) % 3 {
                0 => packing::gzip(&tar.0),
                1 => packing::zstd(&tar.0),
                _ => Layer { tar: tar.0.clone(), blob: tar.0.clone(), media_type: PLAIN },
            })
            .collect();
        self.add_packed(name, valid, layers);
    }

    /// Adds a case that a daemon extracts.
    pub fn valid(&mut self, name: &str, tars: &[Tar]) {
        self.add(name, true, tars);
    }

    /// Adds a case whose last layer a daemon refuses.
    pub fn refused(&mut self, name: &str, tars: &[Tar]) {
        self.add(name, false, tars);
    }

    /// Adds a case of packed layers.
    pub fn add_packed(&mut self, name: &str, valid: bool, layers: Vec<Layer>) {
        assert!(self.0.iter().all(|case| case.name != name), "two cases {name}");
        self.0.push(Case { name: name.to_owned(), layers, valid });
    }
}

/// All cases.
pub fn corpus() -> Vec<Case> {
    let mut corpus = Corpus::default();
    types::add(&mut corpus);
    names::add(&mut corpus);
    records::add(&mut corpus);
    replacing::add(&mut corpus);
    stacked::add(&mut corpus);
    packing::add(&mut corpus);
    corpus.0
}

/// The header of one entry.
#[derive(Debug, Clone)]
pub struct Header {
    block: [u8; BLOCK],
    records: Vec<u8>,
    data: Vec<u8>,
    sized: bool,
}

/// An entry of this type: owned by root, 0644 (directories 0755), of 2020-09-13.
pub fn entry(flag: u8, name: impl AsRef<[u8]>) -> Header {
    let mut header = Header { block: [0; BLOCK], records: Vec::new(), data: Vec::new(), sized: false };
    let name = name.as_ref();
    assert!(name.len() <= 100, "longer names need records");
    header.block[257..265].copy_from_slice(b"ustar\x0000");
    header.block[156] = flag;
    header
        .put(0, name)
        .mode(if flag == b'5' { 0o755 } else { 0o644 })
        .owner(0, 0)
        .mtime(1_600_000_000)
        .device(0, 0)
}

/// A regular file.
pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Header {
    entry(b'0', name).data(data)
}

/// A directory.
pub fn dir(name: impl AsRef<[u8]>) -> Header {
    entry(b'5', name)
}

/// A symbolic link.
pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Header {
    entry(b'2', name).mode(0o777).link(target)
}

/// A hard link.
pub fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Header {
    entry(b'1', name).link(target)
}

impl Header {
    /// Overwrites bytes of the header.
    pub fn put(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn octal(self, at: usize, width: usize, value: u64) -> Self {
        self.put(at, format!("{value:0width$o}\0", width = width - 1))
    }

    /// Overwrites a field with a base-256 number.
    pub fn base256(self, at: usize, width: usize, value: i64) -> Self {
        let mut field = vec![if value < 0 { 0xff } else { 0 }; width];
        let bytes = value.to_be_bytes();
        let n = width.min(8);
        field[width - n..].copy_from_slice(&bytes[8 - n..]);
        field[0] |= 0x80;
        self.put(at, field)
    }

    /// Mode, with or without type bits.
    pub fn mode(self, mode: u32) -> Self {
        self.octal(100, 8, mode.into())
    }

    /// Numeric owner.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.octal(108, 8, uid.into()).octal(116, 8, gid.into())
    }

    /// Modification time.
    pub fn mtime(self, seconds: u64) -> Self {
        self.octal(136, 12, seconds)
    }

    /// Device number.
    pub fn device(self, major: u32, minor: u32) -> Self {
        self.octal(329, 8, major.into()).octal(337, 8, minor.into())
    }

    /// Link target of at most 100 bytes.
    pub fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.put(157, target)
    }

    /// GNU's layout: its magic, and no prefix.
    pub fn gnu(self) -> Self {
        self.put(257, b"ustar  \0")
    }

    /// Content; the size is set to its length.
    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    /// Another size than the content's.
    pub fn size(mut self, size: u64) -> Self {
        self.sized = true;
        self.octal(124, 12, size)
    }

    /// The size field as it is now stays.
    pub fn keep_size(mut self) -> Self {
        self.sized = true;
        self
    }

    /// An extended record before the entry.
    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.extend(record(key, value.as_ref()));
        self
    }

    /// An extended attribute.
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(&format!("SCHILY.xattr.{name}"), value)
    }
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A tar in the making.
#[derive(Debug, Clone, Default)]
pub struct Tar(pub Vec<u8>);

/// A whole tar of these entries.
pub fn tar(entries: impl IntoIterator<Item = Header>) -> Tar {
    open(entries).end()
}

/// A tar of these entries without its end.
pub fn open(entries: impl IntoIterator<Item = Header>) -> Tar {
    entries.into_iter().fold(Tar::default(), Tar::add)
}

impl Tar {
    /// Appends an entry.
    pub fn add(mut self, header: Header) -> Self {
        if !header.records.is_empty() {
            let records = entry(b'x', "PaxHeaders.0/entry").data(&header.records);
            self = self.add(records);
        }
        let size = header.data.len() as u64;
        let header = if header.sized { header } else { header.size(size) };
        let mut block = header.block;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.padded(&header.data)
    }

    /// Appends bytes up to a block's edge.
    pub fn padded(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Appends bytes as they are.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }

    /// Takes bytes off the end.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.0.truncate(self.0.len() - bytes);
        self
    }

    /// Appends two zero blocks.
    pub fn end(self) -> Self {
        self.raw([0; 2 * BLOCK])
    }
}
