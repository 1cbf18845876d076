//! Writing a bolt file from scratch.
//!
//! ```text
//! page 0, 1     meta pages, txid 0 and 1, both showing the same tree; written last
//! page 2        an empty freelist
//! page 3 ..     every bucket's pages after those of the buckets in it, branches after leaves;
//!               the root bucket's root page is the last page
//! ```
//!
//! The bytes depend on the tree and the page size alone. Pages are packed full, as a file that is
//! read far more often than written wants it; the last two of a level share their elements evenly, so
//! that no page starts out nearly empty. As in bbolt, a page of a bucket with several holds two keys or more,
//! and a bucket without buckets in it that needs at most a quarter page stands inside its parent's value.
//!
//! Mirrors `bucket.go` (`spill`, `inlineable`), `node.go` (`split`) and `db.go` (`init`) of bbolt v1.5.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::ops::Range;

use super::Error;
use super::format::{
    BRANCH, BUCKET, BUCKET_HEADER, ELEMENT, FIRST_PAGE, FREELIST, LEAF, META_PAGE, Meta, PAGE_HEADER,
};

/// The longest key that bbolt takes, in bytes.
const MAX_KEY: usize = 32_768;
/// The longest value, in bytes. bbolt takes 2 GiB, but a page may have to hold three, and positions
/// within it have 32 bits.
const MAX_VALUE: usize = 1 << 30;
/// bbolt's `MinKeysPerPage`.
const MIN_KEYS: usize = 2;

/// Page size of a file to be written: a power of two from 1 KiB to 64 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSize(usize);

impl PageSize {
    /// 4 KiB, the memory page of x86-64 and of most arm64 systems, and so what a daemon would take
    /// there. A daemon on a machine with larger pages opens it as well.
    pub const DEFAULT: Self = Self(4096);

    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        self.0
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<usize> for PageSize {
    type Error = Error;

    fn try_from(size: usize) -> Result<Self, Error> {
        if size.is_power_of_two() && (1 << 10..=1 << 16).contains(&size) {
            Ok(Self(size))
        } else {
            Err(Error::PageSize { found: size })
        }
    }
}

/// A bucket where there is one, else a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    value: Vec<u8>,
    bucket: Option<Box<Bucket>>,
}

/// A bucket to be written, with all that is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bucket {
    sequence: u64,
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Bucket {
    /// An empty bucket, sequence 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a value under `key`, in place of what stood there.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.entries.insert(key.into(), Entry { value: value.into(), bucket: None });
    }

    /// The bucket under `key`, made if need be; a value that stood there gives way.
    pub fn bucket(&mut self, key: impl Into<Vec<u8>>) -> &mut Bucket {
        let entry = self.entries.entry(key.into()).or_default();
        entry.value = Vec::new();
        entry.bucket.get_or_insert_default()
    }

    /// Sets the number that Go's `NextSequence` gave out last.
    pub fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// Writes the file whose root bucket this is, from the start of `out`. The meta pages come last:
    /// a file that was cut short is no bolt file. Nothing is flushed to disk.
    ///
    /// # Errors
    /// A key is empty or too long, a value too long, or `out` fails.
    pub fn write(&self, page_size: PageSize, out: &mut (impl Write + Seek)) -> Result<(), Error> {
        let mut writer = Writer { out, page_size: page_size.0, next: 0 };
        for _ in 0..FIRST_PAGE {
            writer.page(META_PAGE, 0, &[])?;
        }
        let freelist = writer.page(FREELIST, 0, &[])?;
        let leaves = writer.leaves(self)?;
        let root = writer.tree(&leaves)?;
        let high_water = writer.next;
        writer.out.seek(SeekFrom::Start(0)).map_err(Error::write)?;
        writer.next = 0;
        for txid in 0..FIRST_PAGE {
            let sequence = self.sequence;
            let meta = Meta { page_size: page_size.0, root, sequence, freelist, high_water, txid };
            writer.page(META_PAGE, 0, &meta.to_bytes())?;
        }
        writer.out.seek(SeekFrom::End(0)).map_err(Error::write)?;
        writer.out.flush().map_err(Error::write)
    }

    /// The file whose root bucket this is.
    ///
    /// # Errors
    /// A key is empty or too long, or a value too long.
    pub fn to_bytes(&self, page_size: PageSize) -> Result<Vec<u8>, Error> {
        let mut out = Cursor::new(Vec::new());
        self.write(page_size, &mut out)?;
        Ok(out.into_inner())
    }
}

/// An element of a leaf page to be written.
struct Leaf<'a> {
    key: &'a [u8],
    flags: u32,
    value: Cow<'a, [u8]>,
}

/// An element of a page to be written: the fields of its header, and its data.
trait Element<'a> {
    const FLAGS: u16;
    /// Bytes of its data.
    fn len(&self) -> usize;
    fn key(&self) -> &'a [u8];
    /// The 16 bytes that say that its data stands `position` bytes after their own start.
    fn header(&self, position: u32) -> [u8; ELEMENT];
    fn data(&self, out: &mut Vec<u8>);
}

impl<'a> Element<'a> for Leaf<'a> {
    const FLAGS: u16 = LEAF;

    fn len(&self) -> usize {
        self.key.len() + self.value.len()
    }

    fn key(&self) -> &'a [u8] {
        self.key
    }

    fn header(&self, position: u32) -> [u8; ELEMENT] {
        fields([self.flags, position, narrow(self.key.len()), narrow(self.value.len())])
    }

    fn data(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.key);
        out.extend_from_slice(&self.value);
    }
}

/// A page that was written, to be named in a branch page: its first key and number.
struct Child<'a> {
    key: &'a [u8],
    page: u64,
}

impl<'a> Element<'a> for Child<'a> {
    const FLAGS: u16 = BRANCH;

    fn len(&self) -> usize {
        self.key.len()
    }

    fn key(&self) -> &'a [u8] {
        self.key
    }

    fn header(&self, position: u32) -> [u8; ELEMENT] {
        let [low, high] = [self.page, self.page >> 32].map(|half| narrow_u64(half & u64::from(u32::MAX)));
        fields([position, narrow(self.key.len()), low, high])
    }

    fn data(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.key);
    }
}

fn fields(words: [u32; 4]) -> [u8; ELEMENT] {
    let mut out = [0; ELEMENT];
    for (to, word) in out.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Lengths are checked before anything is written (see `Writer::leaves`).
fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn narrow_u64(word: u64) -> u32 {
    u32::try_from(word).unwrap_or(u32::MAX)
}

/// Headers and data of a page's elements.
fn content<'a, E: Element<'a>>(elements: &[E]) -> Vec<u8> {
    let headers = elements.len() * ELEMENT;
    let size = headers + elements.iter().map(E::len).sum::<usize>();
    let mut out = Vec::with_capacity(size);
    let mut data = headers;
    for (index, element) in elements.iter().enumerate() {
        out.extend_from_slice(&element.header(narrow(data - index * ELEMENT)));
        data += element.len();
    }
    for element in elements {
        element.data(&mut out);
    }
    out
}

/// A page header, `content`, and zeros up to a whole number of pages.
fn page_bytes(id: u64, flags: u16, count: usize, content: &[u8], page_size: usize) -> Vec<u8> {
    let pages = (PAGE_HEADER + content.len()).div_ceil(page_size);
    let mut out = Vec::with_capacity(pages * page_size);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(&narrow(pages - 1).to_le_bytes());
    out.extend_from_slice(content);
    out.resize(pages * page_size, 0);
    out
}

/// Which elements go together on a page, for elements of these sizes.
fn partition(sizes: &[usize], page_size: usize) -> Vec<Range<usize>> {
    let capacity = page_size - PAGE_HEADER;
    let mut pages = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, size) in sizes.iter().enumerate() {
        if index - start >= MIN_KEYS && used + size > capacity {
            pages.push(start..index);
            (start, used) = (index, 0);
        }
        used += size;
    }
    let Some(before) = pages.pop() else {
        pages.push(start..sizes.len());
        return pages;
    };
    let both = before.start..sizes.len();
    if both.len() < 2 * MIN_KEYS {
        pages.push(both);
        return pages;
    }
    // Cut the last two in the middle of their bytes, not of their keys; elements of very different
    // sizes may overfill a page that way, and then the first cut stands.
    let bytes = |range: Range<usize>| sizes[range].iter().sum::<usize>();
    let half = bytes(both.clone()) / 2;
    let middle = both
        .clone()
        .scan(0, |used, at| {
            *used += sizes[at];
            Some((at, *used))
        })
        .find(|&(_, used)| used > half)
        .map_or(start, |(at, _)| at)
        .clamp(both.start + MIN_KEYS, both.end - MIN_KEYS);
    let fits = bytes(both.start..middle) <= capacity && bytes(middle..both.end) <= capacity;
    let cut = if fits || sizes.len() - start < MIN_KEYS { middle } else { start };
    pages.push(both.start..cut);
    pages.push(cut..both.end);
    pages
}

struct Writer<'w, W> {
    out: &'w mut W,
    page_size: usize,
    /// The number of the next page.
    next: u64,
}

impl<W: Write + Seek> Writer<'_, W> {
    /// Writes one page, whatever length its content has, and returns its number.
    fn page(&mut self, flags: u16, count: usize, content: &[u8]) -> Result<u64, Error> {
        let id = self.next;
        let page = page_bytes(id, flags, count, content, self.page_size);
        self.out.write_all(&page).map_err(Error::write)?;
        self.next += (page.len() / self.page_size) as u64;
        Ok(id)
    }

    /// The leaf elements of a bucket, once all buckets in it are written.
    fn leaves<'a>(&mut self, bucket: &'a Bucket) -> Result<Vec<Leaf<'a>>, Error> {
        let mut out = Vec::with_capacity(bucket.entries.len());
        for (key, entry) in &bucket.entries {
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(Error::KeyLength { len: key.len(), max: MAX_KEY });
            }
            if entry.value.len() > MAX_VALUE {
                return Err(Error::ValueLength { len: entry.value.len(), max: MAX_VALUE });
            }
            let (flags, value) = match &entry.bucket {
                None => (0, Cow::Borrowed(entry.value.as_slice())),
                Some(bucket) => (BUCKET, Cow::Owned(self.bucket_value(bucket)?)),
            };
            out.push(Leaf { key, flags, value });
        }
        Ok(out)
    }

    /// Writes a bucket's pages, if it needs any, and returns the value that stands for it.
    fn bucket_value(&mut self, bucket: &Bucket) -> Result<Vec<u8>, Error> {
        let leaves = self.leaves(bucket)?;
        let content_size: usize = leaves.iter().map(|leaf| ELEMENT + leaf.len()).sum();
        let size = PAGE_HEADER + content_size;
        let inline = size <= self.page_size / 4 && leaves.iter().all(|leaf| leaf.flags & BUCKET == 0);
        let root = if inline { 0 } else { self.tree(&leaves)? };
        let mut out = Vec::with_capacity(BUCKET_HEADER + if inline { size } else { 0 });
        out.extend_from_slice(&root.to_le_bytes());
        out.extend_from_slice(&bucket.sequence.to_le_bytes());
        if inline {
            // One "page" of just this size, so that nothing pads it.
            out.extend(page_bytes(0, LEAF, leaves.len(), &content(&leaves), size));
        }
        Ok(out)
    }

    /// Writes the pages of a bucket, leaves first, and returns its root page.
    fn tree(&mut self, leaves: &[Leaf<'_>]) -> Result<u64, Error> {
        let mut level = self.level(leaves)?;
        while level.len() > 1 {
            level = self.level(&level)?;
        }
        Ok(level.first().map_or(0, |root| root.page))
    }

    /// Writes `elements` to as many pages as they need.
    fn level<'a, E: Element<'a>>(&mut self, elements: &[E]) -> Result<Vec<Child<'a>>, Error> {
        let sizes: Vec<_> = elements.iter().map(|element| ELEMENT + element.len()).collect();
        let mut out = Vec::new();
        for range in partition(&sizes, self.page_size) {
            let elements = &elements[range];
            let page = self.page(E::FLAGS, elements.len(), &content(elements))?;
            out.push(Child { key: elements.first().map_or(&[], E::key), page });
        }
        Ok(out)
    }
}
