//! Numbers of the file format, and a page whose every access is checked.

use super::{Fault, FaultKind, MetaFault};

pub(super) const MAGIC: u32 = 0xED0C_DAED;
pub(super) const VERSION: u32 = 2;
pub(super) const PAGE_HEADER: usize = 16;
pub(super) const META: usize = 64;
pub(super) const ELEMENT: usize = 16;
pub(super) const BUCKET_HEADER: usize = 16;
/// The freelist's page number where none is kept.
pub(super) const NO_FREELIST: u64 = u64::MAX;
/// The count of a freelist page whose count stands in its first entry.
pub(super) const COUNT_ELSEWHERE: u16 = u16::MAX;
/// The first page after the meta pages.
pub(super) const FIRST_PAGE: u64 = 2;

pub(super) const BRANCH: u16 = 1;
pub(super) const LEAF: u16 = 2;
pub(super) const META_PAGE: u16 = 4;
pub(super) const FREELIST: u16 = 16;
/// Flag of a leaf element whose value is a bucket.
pub(super) const BUCKET: u32 = 1;

pub(super) const MIN_PAGE_SIZE: usize = 1 << 10;
pub(super) const MAX_PAGE_SIZE: usize = 1 << 24;

/// A branch page holds at least two keys, so no file that fits a disk is deeper; buckets of
/// containerd and `BuildKit` nest six deep.
pub(super) const MAX_DEPTH: usize = 64;

/// 64-bit FNV-1a.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// A valid meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_size: usize,
    pub(super) root: u64,
    pub(super) sequence: u64,
    pub(super) freelist: u64,
    pub(super) high_water: u64,
    pub(super) txid: u64,
}

impl Meta {
    /// Reads the meta page that starts at `at`.
    pub(super) fn parse(file: &[u8], at: usize) -> Result<Self, MetaFault> {
        let start = at.saturating_add(PAGE_HEADER);
        let meta: [u8; META] = array(file, start).ok_or(MetaFault::Short)?;
        let u32_at = |at| u32_at(&meta, at).ok_or(MetaFault::Short);
        let u64_at = |at| u64_at(&meta, at).ok_or(MetaFault::Short);
        let (magic, version, page_size) = (u32_at(0)?, u32_at(4)?, u32_at(8)?);
        if magic != MAGIC {
            return Err(MetaFault::Magic { found: magic });
        }
        if version != VERSION {
            return Err(MetaFault::Version { found: version });
        }
        let (expected, found) = (fnv1a(&meta[..56]), u64_at(56)?);
        if expected != found {
            return Err(MetaFault::Checksum { expected, found });
        }
        let size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let possible = size.is_power_of_two() && (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&size);
        if !possible || (at != 0 && at != size) {
            return Err(MetaFault::PageSize { found: page_size });
        }
        Ok(Self {
            page_size: size,
            root: u64_at(16)?,
            sequence: u64_at(24)?,
            freelist: u64_at(32)?,
            high_water: u64_at(40)?,
            txid: u64_at(48)?,
        })
    }

    /// The content of a meta page: what [`Meta::parse`] reads, header not included.
    pub(super) fn to_bytes(self) -> [u8; META] {
        let mut out = [0; META];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&VERSION.to_le_bytes());
        out[8..12].copy_from_slice(&u32::try_from(self.page_size).unwrap_or(0).to_le_bytes());
        let words = [self.root, self.sequence, self.freelist, self.high_water, self.txid];
        for (at, word) in (16..).step_by(8).zip(words) {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let checksum = fnv1a(&out[..56]);
        out[56..].copy_from_slice(&checksum.to_le_bytes());
        out
    }
}

/// A page with the pages that its content runs on to; or the page inside an inline bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<'db> {
    /// Number of the page in the file; for an inline bucket, that of the page around it.
    pub(super) id: u64,
    /// Where `bytes` starts in the file.
    pub(super) offset: u64,
    pub(super) flags: u16,
    pub(super) count: usize,
    bytes: &'db [u8],
}

impl<'db> Page<'db> {
    /// Takes `bytes`, header and all, as page `id`. `None` where they are shorter than a header.
    pub(super) fn new(id: u64, offset: u64, bytes: &'db [u8]) -> Option<Self> {
        if bytes.len() < PAGE_HEADER {
            return None;
        }
        let (flags, count) = (u16_at(bytes, 8)?, u16_at(bytes, 10)?);
        Some(Self { id, offset, flags, count: usize::from(count), bytes })
    }

    pub(super) fn fault(&self, kind: FaultKind) -> Fault {
        Fault { page: self.id, offset: self.offset, kind }
    }

    pub(super) fn element_fault(&self, index: usize, kind: FaultKind) -> Fault {
        let at = PAGE_HEADER.saturating_add(index.saturating_mul(ELEMENT));
        Fault { page: self.id, offset: self.element_offset(at), kind }
    }

    fn element_offset(&self, at: usize) -> u64 {
        self.offset.saturating_add(u64::try_from(at).unwrap_or(u64::MAX))
    }

    pub(super) fn is_branch(&self) -> bool {
        self.flags == BRANCH
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.flags == LEAF
    }

    /// Where in the file element `index` stands: names the reference that the element is.
    pub(super) fn reference(&self, index: usize) -> u64 {
        self.element_offset(PAGE_HEADER + index * ELEMENT)
    }

    fn element(&self, index: usize) -> Option<(usize, &'db [u8])> {
        let at = PAGE_HEADER.checked_add(index.checked_mul(ELEMENT)?)?;
        (index < self.count).then_some(())?;
        Some((at, self.bytes.get(at..at.checked_add(ELEMENT)?)?))
    }

    /// Start of the data of element `index`; of the page's end for the one after the last.
    fn data_start(&self, index: usize) -> Option<usize> {
        if index == self.count {
            return Some(self.bytes.len());
        }
        let (at, element) = self.element(index)?;
        let position = u32_at(element, if self.is_branch() { 0 } else { 4 })?;
        at.checked_add(usize::try_from(position).ok()?)
    }

    /// The data of element `index`: beyond the elements, and before the data of the next one, as
    /// writers lay it out. That no two overlap keeps a walk over nested inline buckets linear.
    fn data(&self, index: usize, len: usize) -> Option<(usize, &'db [u8])> {
        let start = self.data_start(index)?;
        let end = start.checked_add(len)?;
        let elements = PAGE_HEADER + self.count * ELEMENT;
        if start < elements || end > self.data_start(index + 1)? {
            return None;
        }
        Some((start, self.bytes.get(start..end)?))
    }

    /// Key and child page of element `index` of a branch page.
    pub(super) fn branch(&self, index: usize) -> Result<(&'db [u8], u64), Fault> {
        let read = || {
            let (_, element) = self.element(index)?;
            let (_, key) = self.data(index, usize::try_from(u32_at(element, 4)?).ok()?)?;
            Some((key, u64_at(element, 8)?))
        };
        read().ok_or_else(|| self.element_fault(index, FaultKind::Element { index }))
    }

    /// Element `index` of a leaf page.
    pub(super) fn leaf(&self, index: usize) -> Result<LeafElement<'db>, Fault> {
        let read = || {
            let (_, element) = self.element(index)?;
            let key_len = usize::try_from(u32_at(element, 8)?).ok()?;
            let value_len = usize::try_from(u32_at(element, 12)?).ok()?;
            let (start, data) = self.data(index, key_len.checked_add(value_len)?)?;
            let (key, value) = data.split_at_checked(key_len)?;
            let value_offset = self.element_offset(start + key_len);
            Some(LeafElement { is_bucket: u32_at(element, 0)? & BUCKET != 0, key, value, value_offset })
        };
        read().ok_or_else(|| self.element_fault(index, FaultKind::Element { index }))
    }

    /// The page numbers of a freelist page.
    pub(super) fn free_ids(&self) -> Result<Vec<u64>, Fault> {
        let read = || {
            let mut at = PAGE_HEADER;
            let mut count = self.count;
            if count == usize::from(COUNT_ELSEWHERE) {
                count = usize::try_from(u64_at(self.bytes, at)?).ok()?;
                at += 8;
            }
            let ids = self.bytes.get(at..at.checked_add(count.checked_mul(8)?)?)?;
            ids.chunks_exact(8).map(|id| u64_at(id, 0)).collect::<Option<Vec<_>>>()
        };
        read().ok_or_else(|| self.fault(FaultKind::Element { index: self.count }))
    }
}

/// An element of a leaf page.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeafElement<'db> {
    pub(super) is_bucket: bool,
    pub(super) key: &'db [u8],
    pub(super) value: &'db [u8],
    pub(super) value_offset: u64,
}
