//! Sparse files: GNU's old format and its pax formats 0.0, 0.1 and 1.0.

use std::io::BufRead;

use super::super::error::ArchiveFault;
use super::super::{Error, Result};
use super::content::{Body, SparseMap};
use super::header::{Format, number};
use super::pax::{Pax, decimal};
use super::{BLOCK, SPECIAL};

/// Bytes of the map's part of a header block.
const IN_HEADER: std::ops::Range<usize> = 386..483;
/// Bytes of one map entry in old headers: offset and length.
const ELEMENT: usize = 24;

/// Reads the map of an entry of type `S`: up to four elements in the header, the others in blocks after it.
pub(super) fn old_gnu<R: BufRead>(
    body: &mut Body<R>,
    block: &mut [u8; BLOCK],
    format: Format,
) -> Result<SparseMap> {
    // star uses the same type flag with another layout.
    if format != Format::Gnu {
        return Err(body.fault(ArchiveFault::SparseMap));
    }
    let size = number(&block[483..495]).ok_or_else(|| body.fault(ArchiveFault::Number))?;
    let mut spans = Vec::new();
    let mut part = IN_HEADER;
    let mut total = part.len();
    while total < SPECIAL {
        let elements = &block[part.clone()];
        let count = elements.len() / ELEMENT;
        for element in elements.chunks_exact(ELEMENT).take_while(|element| element[0] != 0) {
            let (Some(offset), Some(length)) = (number(&element[..12]), number(&element[12..])) else {
                return Err(body.fault(ArchiveFault::Number));
            };
            spans.push((offset, length));
        }
        if elements[count * ELEMENT] == 0 {
            return Ok(SparseMap { spans, size });
        }
        if !body.read_block(block)? {
            return Err(body.fault(ArchiveFault::Truncated));
        }
        part = 0..BLOCK;
        total += BLOCK;
    }
    Err(body.fault(ArchiveFault::TooLong))
}

/// Reads the map that extended records announce; `None` for an ordinary file.
pub(super) fn pax<R: BufRead>(
    body: &mut Body<R>,
    pax: &Pax,
    name: &mut Vec<u8>,
    size: i64,
) -> Result<Option<SparseMap>> {
    let in_content = match pax.sparse_version() {
        (b"0", b"0" | b"1") => false,
        (b"1", b"0") => true,
        (b"", b"") if !pax.sparse_map().is_empty() => false,
        _ => return Ok(None),
    };
    if let Some(real) = pax.sparse_name() {
        real.clone_into(name);
    }
    let size = match pax.sparse_size() {
        Some(text) => decimal(text).ok_or_else(|| body.fault(ArchiveFault::SparseMap))?,
        None => size,
    };
    let spans = if in_content {
        map_in_content(body)?
    } else {
        map_in_records(pax).ok_or_else(|| body.fault(ArchiveFault::SparseMap))?
    };
    Ok(Some(SparseMap { spans, size }))
}

fn map_in_records(pax: &Pax) -> Option<Vec<(i64, i64)>> {
    let count = usize::try_from(decimal(pax.sparse_blocks())?).ok()?;
    let text = pax.sparse_map();
    let mut numbers = text.split(|&b| b == b',').map(decimal);
    if text.is_empty() {
        return (count == 0).then(Vec::new);
    }
    let mut spans = Vec::new();
    while let Some(offset) = numbers.next() {
        spans.push((offset?, numbers.next()??));
    }
    (spans.len() == count).then_some(spans)
}

/// Format 1.0: decimal numbers on lines of their own, padded to a block, before the data.
fn map_in_content<R: BufRead>(body: &mut Body<R>) -> Result<Vec<(i64, i64)>> {
    let mut text = Lines::default();
    let malformed = ArchiveFault::SparseMap;
    let count = text.next(body)?.and_then(|count| usize::try_from(count).ok());
    let Some(count) = count else { return Err(body.fault(malformed)) };
    let mut spans = Vec::new();
    for _ in 0..count {
        let (Some(offset), Some(length)) = (text.next(body)?, text.next(body)?) else {
            return Err(body.fault(malformed));
        };
        spans.push((offset, length));
    }
    Ok(spans)
}

#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    at: usize,
}

impl Lines {
    /// The next line as a number, `None` where it is none; reads no more blocks than it needs.
    fn next<R: BufRead>(&mut self, body: &mut Body<R>) -> Result<Option<i64>, Error> {
        let mut searched = self.at;
        loop {
            if let Some(end) = self.text[searched..].iter().position(|&b| b == b'\n') {
                let end = searched + end;
                let value = decimal(&self.text[self.at..end]);
                self.at = end + 1;
                return Ok(value);
            }
            searched = self.text.len();
            if searched + BLOCK > SPECIAL {
                return Err(body.fault(ArchiveFault::TooLong));
            }
            body.read_content_block(&mut self.text)?;
        }
    }
}
