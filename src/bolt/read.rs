//! Reading a bolt file.
//!
//! The whole file is read into memory: keys and values can then be lent out as slices of one
//! immutable buffer without `unsafe`, which a memory map that another process may cut cannot promise,
//! and all reads see the file at one time. These databases hold metadata: tens of megabytes for the
//! largest state directories, while the layers they describe have gigabytes.
//!
//! A file is not trusted. Every access is bounds-checked, and each page may be reached through one
//! element only: whoever comes by another gets an error. So what can be reached is a tree, and walking
//! it ends, whatever the bytes say.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{self, BUCKET_HEADER, FIRST_PAGE, MAX_DEPTH, Meta, PAGE_HEADER, Page, u64_at};
use super::{Error, Fault, FaultKind, MetaFault};

/// A bolt file, read as its valid meta page shows it.
#[derive(Debug)]
pub struct Database {
    pub(super) bytes: Vec<u8>,
    pub(super) meta: Meta,
    /// Per page, where in the file the element stands through which it was reached first; 0: not yet.
    claims: Vec<AtomicU64>,
}

/// What stands under a key.
#[derive(Debug, Clone, Copy)]
pub enum Item<'db> {
    /// A plain value.
    Value(&'db [u8]),
    /// A bucket.
    Bucket(BucketRef<'db>),
}

#[derive(Debug, Clone, Copy)]
enum Root<'db> {
    /// A page of the file, and the reference that leads to it.
    Page { id: u64, reference: u64 },
    /// The page inside an inline bucket's value.
    Inline(Page<'db>),
}

/// A bucket of a [`Database`].
#[derive(Debug, Clone, Copy)]
pub struct BucketRef<'db> {
    db: &'db Database,
    root: Root<'db>,
    sequence: u64,
    depth: usize,
}

impl Database {
    /// Reads the file at `path`. No lock is taken: what a running daemon commits meanwhile may tear
    /// the copy, which reads as an error, not as wrong values.
    ///
    /// # Errors
    /// The file cannot be read, or has no valid meta page.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::from_bytes(bytes)
    }

    /// Takes the bytes of a bolt file.
    ///
    /// # Errors
    /// Neither meta page is valid.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
        let (first, second) = metas(&bytes);
        let meta = match (first, second) {
            (Ok(first), Ok(second)) if second.txid > first.txid => second,
            (Ok(first), _) => first,
            (Err(_), Ok(second)) => second,
            (Err(first), Err(second)) => return Err(Error::NoMeta { first, second }),
        };
        // Pages that the file cannot hold are never claimed, so a huge mark needs no memory.
        let pages =
            (bytes.len() / meta.page_size).min(usize::try_from(meta.high_water).unwrap_or(usize::MAX));
        let claims = std::iter::repeat_with(AtomicU64::default).take(pages).collect();
        Ok(Self { bytes, meta, claims })
    }

    /// The root bucket, which holds all others.
    pub fn root(&self) -> BucketRef<'_> {
        // No element stands in the meta pages, so an offset inside names the root reference.
        let root = Root::Page { id: self.meta.root, reference: 1 };
        BucketRef { db: self, root, sequence: self.meta.sequence, depth: 0 }
    }

    /// The page size that the file was written with, in bytes.
    pub fn page_size(&self) -> usize {
        self.meta.page_size
    }

    /// Whether the file names its free pages; a running daemon's file usually does not.
    pub fn has_freelist(&self) -> bool {
        self.meta.freelist != format::NO_FREELIST
    }

    /// A page by its number, bounds and header checked.
    pub(super) fn page(&self, id: u64) -> Result<Page<'_>, Fault> {
        let size = u64::try_from(self.meta.page_size).unwrap_or(u64::MAX);
        let offset = id.saturating_mul(size);
        let fault = |kind| Fault { page: id, offset, kind };
        let high_water = self.meta.high_water;
        if !(FIRST_PAGE..high_water).contains(&id) {
            return Err(fault(FaultKind::OutOfBounds { end: id.saturating_add(1), high_water }));
        }
        let len = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        let upto = |end: u64| {
            let needed = end.saturating_mul(size);
            let range = usize::try_from(offset).ok()?..usize::try_from(needed).ok()?;
            self.bytes.get(range)
        };
        let truncated = |end: u64| fault(FaultKind::Truncated { needed: end.saturating_mul(size), len });
        let first = upto(id + 1).ok_or_else(|| truncated(id + 1))?;
        let found = u64_at(first, 0).unwrap_or_default();
        if found != id {
            return Err(fault(FaultKind::WrongId { found }));
        }
        let overflow = u64::from(format::u32_at(first, 12).unwrap_or_default());
        let end = id + 1 + overflow;
        if end > high_water {
            return Err(fault(FaultKind::OutOfBounds { end, high_water }));
        }
        let bytes = upto(end).ok_or_else(|| truncated(end))?;
        Page::new(id, offset, bytes).ok_or_else(|| truncated(end))
    }

    /// How many pages the page's content takes, from its header.
    pub(super) fn span(&self, page: &Page<'_>) -> u64 {
        let at = usize::try_from(page.offset).ok().and_then(|at| at.checked_add(12));
        1 + u64::from(at.and_then(|at| format::u32_at(&self.bytes, at)).unwrap_or_default())
    }

    /// The branch or leaf page `id`, reached through the element at `reference`.
    fn tree_page(&self, id: u64, reference: u64) -> Result<Page<'_>, Fault> {
        let page = self.page(id)?;
        if !page.is_branch() && !page.is_leaf() {
            return Err(page.fault(FaultKind::WrongType { expected: "branch or leaf", flags: page.flags }));
        }
        for id in id..id + self.span(&page) {
            let claim = usize::try_from(id).ok().and_then(|id| self.claims.get(id));
            let first = claim.map(|claim| {
                claim
                    .compare_exchange(0, reference, Ordering::Relaxed, Ordering::Relaxed)
                    .unwrap_or_else(|c| c)
            });
            if !matches!(first, Some(first) if first == 0 || first == reference) {
                return Err(page.fault(FaultKind::MultipleReferences));
            }
        }
        if page.is_branch() && page.count == 0 {
            return Err(page.fault(FaultKind::EmptyBranch));
        }
        Ok(page)
    }
}

/// Both meta pages. The page size that places the second one is the first's; where the first is
/// damaged, every page size is tried, as bbolt does.
pub(super) fn metas(bytes: &[u8]) -> (Result<Meta, MetaFault>, Result<Meta, MetaFault>) {
    let first = Meta::parse(bytes, 0);
    let second = if let Ok(meta) = &first {
        Meta::parse(bytes, meta.page_size)
    } else {
        (0..15)
            .map(|shift| Meta::parse(bytes, format::MIN_PAGE_SIZE << shift))
            .find(Result::is_ok)
            .unwrap_or_else(|| Meta::parse(bytes, 4096))
    };
    (first, second)
}

/// Index of the branch element whose child would hold `key`.
fn child_index(page: &Page<'_>, key: &[u8]) -> Result<usize, Fault> {
    let (mut low, mut high) = (0, page.count);
    while low < high {
        let middle = low.midpoint(high);
        if page.branch(middle)?.0 <= key { low = middle + 1 } else { high = middle }
    }
    Ok(low.saturating_sub(1))
}

/// Index of the first leaf element whose key is not below `key`.
fn leaf_index(page: &Page<'_>, key: &[u8]) -> Result<usize, Fault> {
    let (mut low, mut high) = (0, page.count);
    while low < high {
        let middle = low.midpoint(high);
        if page.leaf(middle)?.key < key { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

impl<'db> BucketRef<'db> {
    /// The value under `key`; `None` where there is none, or a bucket.
    ///
    /// # Errors
    /// A page on the way is damaged.
    pub fn get(&self, key: &[u8]) -> Result<Option<&'db [u8]>, Error> {
        Ok(match self.item(key)? {
            Some(Item::Value(value)) => Some(value),
            _ => None,
        })
    }

    /// The bucket under `key`; `None` where there is none, or a value.
    ///
    /// # Errors
    /// A page on the way is damaged.
    pub fn bucket(&self, key: &[u8]) -> Result<Option<BucketRef<'db>>, Error> {
        Ok(match self.item(key)? {
            Some(Item::Bucket(bucket)) => Some(bucket),
            _ => None,
        })
    }

    /// The bucket at the end of a path of bucket names; `None` where one of them is missing.
    ///
    /// # Errors
    /// A page on the way is damaged.
    pub fn path(&self, path: &[&[u8]]) -> Result<Option<BucketRef<'db>>, Error> {
        let mut at = *self;
        for name in path {
            match at.bucket(name)? {
                Some(bucket) => at = bucket,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The bucket's sequence: the last number that Go's `NextSequence` gave out.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// All keys with what stands under them, in key order. Ends after the first error.
    pub fn iter(&self) -> Iter<'db> {
        self.iter_from(b"")
    }

    /// Like [`BucketRef::iter`], from the first key on that is not below `key`.
    pub fn iter_from(&self, key: &[u8]) -> Iter<'db> {
        let mut iter = Iter { bucket: *self, stack: Vec::new(), failed: None };
        iter.failed = iter.seek(key).err();
        iter
    }

    fn root_page(&self) -> Result<Page<'db>, Fault> {
        match self.root {
            Root::Page { id, reference } => self.db.tree_page(id, reference),
            Root::Inline(page) => Ok(page),
        }
    }

    /// What stands under `key`.
    ///
    /// # Errors
    /// A page on the way is damaged.
    pub fn item(&self, key: &[u8]) -> Result<Option<Item<'db>>, Error> {
        let mut page = self.root_page()?;
        for _ in 0..MAX_DEPTH {
            if page.is_branch() {
                let index = child_index(&page, key)?;
                let (_, child) = page.branch(index)?;
                page = self.db.tree_page(child, page.reference(index))?;
                continue;
            }
            let index = leaf_index(&page, key)?;
            if index == page.count || page.leaf(index)?.key != key {
                return Ok(None);
            }
            return Ok(Some(self.leaf_item(&page, index)?.1));
        }
        Err(page.fault(FaultKind::TooDeep { limit: MAX_DEPTH }).into())
    }

    fn leaf_item(&self, page: &Page<'db>, index: usize) -> Result<(&'db [u8], Item<'db>), Fault> {
        let element = page.leaf(index)?;
        if !element.is_bucket {
            return Ok((element.key, Item::Value(element.value)));
        }
        let depth = self.depth + 1;
        if depth > MAX_DEPTH {
            return Err(page.element_fault(index, FaultKind::TooDeep { limit: MAX_DEPTH }));
        }
        let (root, sequence) = bucket_header(page, index)?;
        let root = match inline_page(page, index)? {
            Some(inline) => Root::Inline(inline),
            None => Root::Page { id: root, reference: page.reference(index) },
        };
        Ok((element.key, Item::Bucket(BucketRef { db: self.db, root, sequence, depth })))
    }
}

impl<'db> IntoIterator for &BucketRef<'db> {
    type Item = <Iter<'db> as Iterator>::Item;
    type IntoIter = Iter<'db>;

    fn into_iter(self) -> Iter<'db> {
        self.iter()
    }
}

/// Root page and sequence of the bucket in element `index` of a leaf page.
pub(super) fn bucket_header(page: &Page<'_>, index: usize) -> Result<(u64, u64), Fault> {
    let value = page.leaf(index)?.value;
    match (u64_at(value, 0), u64_at(value, 8)) {
        (Some(root), Some(sequence)) => Ok((root, sequence)),
        _ => Err(page.element_fault(index, FaultKind::Bucket { index })),
    }
}

/// The page of the inline bucket in element `index` of a leaf page; `None` where it is not inline.
pub(super) fn inline_page<'db>(page: &Page<'db>, index: usize) -> Result<Option<Page<'db>>, Fault> {
    let (root, _) = bucket_header(page, index)?;
    if root != 0 {
        return Ok(None);
    }
    let element = page.leaf(index)?;
    let offset = element.value_offset.saturating_add(BUCKET_HEADER as u64);
    let bytes = element.value.get(BUCKET_HEADER..).filter(|bytes| bytes.len() >= PAGE_HEADER);
    bytes
        .and_then(|bytes| Page::new(page.id, offset, bytes))
        .filter(Page::is_leaf)
        .map(Some)
        .ok_or_else(|| page.element_fault(index, FaultKind::Bucket { index }))
}

/// Iterator over a bucket, in key order.
#[derive(Debug)]
pub struct Iter<'db> {
    bucket: BucketRef<'db>,
    /// The way down, each page with the index of the element that comes next.
    stack: Vec<(Page<'db>, usize)>,
    failed: Option<Fault>,
}

impl<'db> Iter<'db> {
    fn seek(&mut self, key: &[u8]) -> Result<(), Fault> {
        let mut page = self.bucket.root_page()?;
        while page.is_branch() {
            let index = child_index(&page, key)?;
            page = self.descend(page, index)?;
        }
        let index = leaf_index(&page, key)?;
        self.stack.push((page, index));
        Ok(())
    }

    /// Notes that `page` goes on after `index`, and opens the child there.
    fn descend(&mut self, page: Page<'db>, index: usize) -> Result<Page<'db>, Fault> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(page.fault(FaultKind::TooDeep { limit: MAX_DEPTH }));
        }
        let (_, child) = page.branch(index)?;
        self.stack.push((page, index + 1));
        self.bucket.db.tree_page(child, page.reference(index))
    }

    fn advance(&mut self) -> Result<Option<(&'db [u8], Item<'db>)>, Fault> {
        while let Some((page, index)) = self.stack.pop() {
            if index >= page.count {
                continue;
            }
            if page.is_leaf() {
                self.stack.push((page, index + 1));
                return self.bucket.leaf_item(&page, index).map(Some);
            }
            let child = self.descend(page, index)?;
            self.stack.push((child, 0));
        }
        Ok(None)
    }
}

impl<'db> Iterator for Iter<'db> {
    type Item = Result<(&'db [u8], Item<'db>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = match self.failed.take() {
            Some(fault) => Err(fault),
            None => self.advance(),
        };
        if step.is_err() {
            self.stack.clear();
        }
        step.map_err(Error::from).transpose()
    }
}
