//! Writes tars entry by entry, the same bytes for the same calls.
//!
//! Pax records stand before an entry wherever the ustar header cannot say what is wanted:
//! sub-second times, extended attributes, long or non-ASCII names, large numbers.

use std::fmt::Write as _;

/// What an entry is, beyond its name and attributes.
#[derive(Debug, Clone)]
pub enum Kind<'a> {
    /// A regular file with these bytes.
    File(&'a [u8]),
    /// A directory.
    Dir,
    /// A symbolic link to this target, as it stands.
    Symlink(&'a str),
    /// Another name of an entry that came earlier.
    Link(&'a str),
    /// A named pipe.
    Fifo,
    /// A character device (major, minor).
    Char(u32, u32),
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    name: &'a str,
    kind: Kind<'a>,
    mode: u32,
    owner: (u32, u32),
    time: (u64, u32),
    xattrs: Vec<(&'a str, &'a [u8])>,
}

/// Seconds since 1970 of every entry that is given no time of its own.
pub const TIME: u64 = 1_700_000_000;

impl<'a> Entry<'a> {
    /// An entry owned by root; mode 0755 for directories, else 0644.
    pub fn new(name: &'a str, kind: Kind<'a>) -> Self {
        let mode = match kind {
            Kind::Dir => 0o755,
            Kind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        Self { name, kind, mode, owner: (0, 0), time: (TIME, 0), xattrs: Vec::new() }
    }

    /// With these permissions, setuid, setgid and sticky bits.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Owned by these ids.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    /// Last changed then: seconds since 1970 and nanoseconds.
    pub fn time(self, seconds: u64, nanoseconds: u32) -> Self {
        Self { time: (seconds, nanoseconds), ..self }
    }

    /// With one more extended attribute.
    pub fn xattr(mut self, name: &'a str, value: &'a [u8]) -> Self {
        self.xattrs.push((name, value));
        self
    }
}

/// A tar in the making.
#[derive(Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `entry`.
    #[expect(clippy::needless_pass_by_value, reason = "entries are made where they are added")]
    pub fn add(&mut self, entry: Entry<'_>) -> &mut Self {
        let (flag, target, data, device): (u8, &str, &[u8], (u32, u32)) = match entry.kind {
            Kind::File(bytes) => (b'0', "", bytes, (0, 0)),
            Kind::Link(target) => (b'1', target, &[], (0, 0)),
            Kind::Symlink(target) => (b'2', target, &[], (0, 0)),
            Kind::Char(major, minor) => (b'3', "", &[], (major, minor)),
            Kind::Dir => (b'5', "", &[], (0, 0)),
            Kind::Fifo => (b'6', "", &[], (0, 0)),
        };
        let name = match entry.kind {
            Kind::Dir => format!("{}/", entry.name),
            _ => entry.name.to_owned(),
        };

        let mut pax = Vec::new();
        if name.len() > 100 || !name.is_ascii() {
            record(&mut pax, "path", name.as_bytes());
        }
        if target.len() > 100 || !target.is_ascii() {
            record(&mut pax, "linkpath", target.as_bytes());
        }
        if entry.time.1 != 0 {
            record(&mut pax, "mtime", format!("{}.{:09}", entry.time.0, entry.time.1).as_bytes());
        }
        for (key, id) in [("uid", entry.owner.0), ("gid", entry.owner.1)] {
            if id > 0o777_7777 {
                record(&mut pax, key, id.to_string().as_bytes());
            }
        }
        for (key, value) in &entry.xattrs {
            record(&mut pax, &format!("SCHILY.xattr.{key}"), value);
        }
        if !pax.is_empty() {
            self.header("PaxHeaders/entry", b'x', "", pax.len(), 0o644, (0, 0), TIME, (0, 0));
            self.data(&pax);
        }
        let owner = (entry.owner.0.min(0o777_7777), entry.owner.1.min(0o777_7777));
        self.header(&name, flag, target, data.len(), entry.mode, owner, entry.time.0, device);
        self.data(data);
        self
    }

    /// Ends it.
    pub fn finish(&mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        std::mem::take(&mut self.0)
    }

    #[expect(clippy::too_many_arguments, reason = "one for each field of the header")]
    fn header(
        &mut self,
        name: &str,
        flag: u8,
        target: &str,
        size: usize,
        mode: u32,
        owner: (u32, u32),
        seconds: u64,
        device: (u32, u32),
    ) {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, len: usize, bytes: &[u8]| {
            let len = bytes.len().min(len);
            block[at..at + len].copy_from_slice(&bytes[..len]);
        };
        put(0, 100, name.as_bytes());
        put(100, 8, format!("{mode:07o}").as_bytes());
        put(108, 8, format!("{:07o}", owner.0).as_bytes());
        put(116, 8, format!("{:07o}", owner.1).as_bytes());
        put(124, 12, format!("{size:011o}").as_bytes());
        put(136, 12, format!("{seconds:011o}").as_bytes());
        put(148, 8, b"        ");
        put(156, 1, &[flag]);
        put(157, 100, target.as_bytes());
        put(257, 8, b"ustar\x0000");
        put(329, 8, format!("{:07o}", device.0).as_bytes());
        put(337, 8, format!("{:07o}", device.1).as_bytes());
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
    }

    fn data(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }
}

/// Appends `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length += 1;
    }
    let mut text = String::new();
    write!(text, "{length} {key}=").unwrap();
    out.extend(text.as_bytes());
    out.extend(value);
    out.push(b'\n');
}
