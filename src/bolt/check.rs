//! Finding every fault of a bolt file.
//!
//! What Go's `Tx.Check` (`tx_check.go`, bbolt v1.5) finds is found here too, and page headers and
//! meta pages besides. A fault does not end the walk; what lies below a damaged page is not seen, and
//! then pages are not reported as leaked, since nothing is known of them.

use super::format::{FREELIST, MAX_DEPTH, META_PAGE, Page, u16_at};
use super::read::{bucket_header, inline_page, metas};
use super::{Database, Fault, FaultKind, MetaFault};

/// The two meta pages of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaState {
    /// Page 0, and page 1: `None` where the page is valid.
    pub faults: [Option<MetaFault>; 2],
}

impl Database {
    /// What is wrong with either meta page. One invalid page is what a write that was cut leaves
    /// behind; bolt then goes on from the other.
    pub fn meta_state(&self) -> MetaState {
        let (first, second) = metas(&self.bytes);
        MetaState { faults: [first.err(), second.err()] }
    }

    /// Walks all pages and returns every fault found; an empty list means a sound file.
    ///
    /// Each page is reached exactly once, bears its own number and a fitting type; keys ascend within
    /// and across pages and stay within the range that the page above gives; the freelist, where one
    /// is kept, names no page twice and none in use, and with it no page is left over.
    pub fn check(&self) -> Vec<Fault> {
        let mut check =
            Check { db: self, reached: vec![false; self.page_count()], faults: Vec::new(), unseen: false };
        check.metas();
        check.page_tree(self.meta.root, None, None, 0);
        if self.has_freelist() {
            check.freelist();
        }
        check.faults
    }

    /// Pages below the high-water mark that the file holds.
    fn page_count(&self) -> usize {
        let held = self.bytes.len() / self.meta.page_size;
        held.min(usize::try_from(self.meta.high_water).unwrap_or(usize::MAX))
    }
}

struct Check<'db> {
    db: &'db Database,
    /// Per page, whether something leads to it.
    reached: Vec<bool>,
    faults: Vec<Fault>,
    /// A damaged page hid what is below it.
    unseen: bool,
}

impl<'db> Check<'db> {
    fn report(&mut self, page: u64, kind: FaultKind) {
        let offset = page.saturating_mul(self.db.meta.page_size as u64);
        self.faults.push(Fault { page, offset, kind });
    }

    fn metas(&mut self) {
        for (page, fault) in (0..).zip(self.db.meta_state().faults) {
            if let Some(fault) = fault {
                self.report(page, FaultKind::Meta(fault));
            } else {
                let at = if page == 0 { 0 } else { self.db.meta.page_size };
                let flags = u16_at(&self.db.bytes, at + 8).unwrap_or_default();
                if flags != META_PAGE {
                    self.report(page, FaultKind::WrongType { expected: "meta", flags });
                }
            }
        }
        for reached in self.reached.iter_mut().take(2) {
            *reached = true;
        }
        let size = self.db.meta.page_size as u64;
        let (needed, len) = (self.db.meta.high_water.saturating_mul(size), self.db.bytes.len() as u64);
        if needed > len {
            self.report(len / size, FaultKind::Truncated { needed, len });
            self.unseen = true;
        }
    }

    /// Marks a page and those that it runs on to as reached; false where one was already.
    fn reach(&mut self, page: &Page<'_>) -> bool {
        let span = self.db.span(page);
        let mut new = true;
        for id in page.id..page.id + span {
            if let Some(reached) = usize::try_from(id).ok().and_then(|id| self.reached.get_mut(id)) {
                new &= !std::mem::replace(reached, true);
            }
        }
        if !new {
            self.faults.push(page.fault(FaultKind::MultipleReferences));
        }
        new
    }

    /// Walks the pages below page `id`, whose keys lie from `min` on and below `max`.
    fn page_tree(&mut self, id: u64, min: Option<&'db [u8]>, max: Option<&'db [u8]>, depth: usize) {
        let page = match self.db.page(id) {
            Ok(page) => page,
            Err(fault) => {
                self.faults.push(fault);
                self.unseen = true;
                return;
            }
        };
        if depth > MAX_DEPTH * 2 {
            self.faults.push(page.fault(FaultKind::TooDeep { limit: MAX_DEPTH * 2 }));
            self.unseen = true;
            return;
        }
        // A page reached twice was walked the first time; walking it again might never end.
        if !self.reach(&page) {
            return;
        }
        if page.is_branch() {
            self.branch(&page, min, max, depth);
        } else if page.is_leaf() {
            self.leaf(&page, min, max, depth);
        } else {
            let kind = FaultKind::WrongType { expected: "branch or leaf", flags: page.flags };
            self.faults.push(page.fault(kind));
            self.unseen = true;
        }
    }

    fn branch(&mut self, page: &Page<'db>, min: Option<&'db [u8]>, max: Option<&'db [u8]>, depth: usize) {
        if page.count == 0 {
            self.faults.push(page.fault(FaultKind::EmptyBranch));
        }
        let mut previous = None;
        for index in 0..page.count {
            let (key, child) = match page.branch(index) {
                Ok(element) => element,
                Err(fault) => {
                    self.faults.push(fault);
                    self.unseen = true;
                    continue;
                }
            };
            self.key(page, index, key, previous, min, max);
            let next =
                if index + 1 < page.count { page.branch(index + 1).ok().map(|(key, _)| key) } else { max };
            self.page_tree(child, Some(key), next, depth + 1);
            previous = Some(key);
        }
    }

    fn leaf(&mut self, page: &Page<'db>, min: Option<&'db [u8]>, max: Option<&'db [u8]>, depth: usize) {
        let mut previous = None;
        for index in 0..page.count {
            let element = match page.leaf(index) {
                Ok(element) => element,
                Err(fault) => {
                    self.faults.push(fault);
                    self.unseen = true;
                    continue;
                }
            };
            self.key(page, index, element.key, previous, min, max);
            previous = Some(element.key);
            if element.is_bucket {
                match (bucket_header(page, index), inline_page(page, index)) {
                    (_, Ok(Some(inline))) if depth <= MAX_DEPTH => self.leaf(&inline, None, None, depth + 1),
                    (Ok((root, _)), Ok(None)) => self.page_tree(root, None, None, depth + 1),
                    (Err(fault), _) | (_, Err(fault)) => {
                        self.faults.push(fault);
                        self.unseen = true;
                    }
                    _ => {
                        let kind = FaultKind::TooDeep { limit: MAX_DEPTH };
                        self.faults.push(page.element_fault(index, kind));
                        self.unseen = true;
                    }
                }
            }
        }
    }

    fn key(
        &mut self,
        page: &Page<'_>,
        index: usize,
        key: &[u8],
        previous: Option<&[u8]>,
        min: Option<&[u8]>,
        max: Option<&[u8]>,
    ) {
        if previous.is_some_and(|previous| previous >= key) {
            self.faults.push(page.element_fault(index, FaultKind::KeyOrder { index }));
        }
        if min.is_some_and(|min| key < min) || max.is_some_and(|max| key >= max) {
            self.faults.push(page.element_fault(index, FaultKind::KeyRange { index }));
        }
    }

    fn freelist(&mut self) {
        let page = match self.db.page(self.db.meta.freelist) {
            Ok(page) if page.flags == FREELIST => page,
            Ok(page) => {
                let kind = FaultKind::WrongType { expected: "freelist", flags: page.flags };
                self.faults.push(page.fault(kind));
                return;
            }
            Err(fault) => {
                self.faults.push(fault);
                return;
            }
        };
        self.reach(&page);
        let ids = match page.free_ids() {
            Ok(ids) => ids,
            Err(fault) => {
                self.faults.push(fault);
                return;
            }
        };
        let mut free = vec![false; self.reached.len()];
        for id in ids {
            match usize::try_from(id).ok().filter(|&id| id >= 2 && id < free.len()) {
                None => {
                    let high_water = self.db.meta.high_water;
                    self.report(id, FaultKind::OutOfBounds { end: id.saturating_add(1), high_water });
                }
                Some(at) if free[at] => self.report(id, FaultKind::FreeTwice),
                Some(at) if self.reached[at] => self.report(id, FaultKind::FreeInUse),
                Some(at) => free[at] = true,
            }
        }
        if !self.unseen {
            for (id, free) in (0..).zip(free) {
                if !free && !self.reached[id] {
                    self.report(id as u64, FaultKind::Leaked);
                }
            }
        }
    }
}
