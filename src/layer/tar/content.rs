//! The stream behind the headers: contents, holes and padding.

use std::io::{self, BufRead, Read};

use super::super::error::ArchiveFault;
use super::super::{Error, Result};
use super::{BLOCK, SPECIAL, header};

/// Where the data of a sparse file goes; not checked yet.
pub(super) struct SparseMap {
    /// Offset and length of each piece of data.
    pub(super) spans: Vec<(i64, i64)>,
    /// Size of the file with its holes.
    pub(super) size: i64,
}

/// A sparse file being read.
struct Sparse {
    /// Pieces of data as start and end, in order; none is empty.
    spans: Vec<(u64, u64)>,
    next: usize,
    position: u64,
    size: u64,
}

/// The archive's bytes and where in an entry they are.
pub(super) struct Body<R> {
    input: R,
    /// Bytes consumed from the input.
    offset: u64,
    /// Bytes of the current entry that are still in the input.
    left: u64,
    /// Padding after them.
    padding: u64,
    /// Bytes that were shown and not consumed yet.
    shown: usize,
    sparse: Option<Sparse>,
}

impl<R: BufRead> Body<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, offset: 0, left: 0, padding: 0, shown: 0, sparse: None }
    }

    pub(super) fn fault(&self, fault: ArchiveFault) -> Error {
        Error::Archive { offset: self.offset, fault }
    }

    fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.offset += n as u64;
    }

    /// Shows what is in the input; empty at its end.
    fn peek(&mut self) -> Result<&[u8]> {
        self.input.fill_buf().map_err(|_| Error::Stopped)
    }

    /// Sets the length of what follows; returns the size.
    pub(super) fn start(&mut self, flag: u8, size: i64) -> Result<i64> {
        let length = if header::has_content(flag) { size } else { 0 };
        self.left = u64::try_from(length).map_err(|_| self.fault(ArchiveFault::NegativeSize))?;
        self.padding = self.left.wrapping_neg() % BLOCK as u64;
        self.sparse = None;
        Ok(size)
    }

    /// Checks `map` and makes what follows a sparse file; returns its size.
    pub(super) fn make_sparse(&mut self, flag: u8, map: SparseMap) -> Result<u64> {
        let mut spans = Vec::with_capacity(map.spans.len());
        let checked = || -> Option<u64> {
            let size = u64::try_from(map.size).ok()?;
            let mut last = 0;
            for (offset, length) in map.spans {
                let start = u64::try_from(offset).ok()?;
                let end = start.checked_add(u64::try_from(length).ok()?)?;
                if end > size || start < last {
                    return None;
                }
                last = end;
                if start < end {
                    spans.push((start, end));
                }
            }
            header::has_content(flag).then_some(size)
        };
        let size = checked().ok_or_else(|| self.fault(ArchiveFault::SparseMap))?;
        self.sparse = Some(Sparse { spans, next: 0, position: 0, size });
        Ok(size)
    }

    /// Goes to the end of the current entry; false where the archive ends in its padding.
    pub(super) fn skip(&mut self) -> Result<bool> {
        self.consume(self.shown);
        self.shown = 0;
        self.sparse = None;
        while self.left > 0 {
            let n = self.advance(self.left)?;
            if n == 0 {
                return Err(self.fault(ArchiveFault::Truncated));
            }
            self.left -= n;
        }
        while self.padding > 0 {
            let n = self.advance(self.padding)?;
            if n == 0 {
                return Ok(false);
            }
            self.padding -= n;
        }
        Ok(true)
    }

    fn advance(&mut self, at_most: u64) -> Result<u64> {
        let n = self.peek()?.len();
        let n = usize::try_from(at_most).map_or(n, |most| n.min(most));
        self.consume(n);
        Ok(n as u64)
    }

    /// Fills `block`; false at the end of the stream.
    pub(super) fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = self.peek()?;
            let n = bytes.len().min(BLOCK - filled);
            if n == 0 {
                return if filled == 0 { Ok(false) } else { Err(self.fault(ArchiveFault::Truncated)) };
            }
            block[filled..filled + n].copy_from_slice(&bytes[..n]);
            filled += n;
            self.consume(n);
        }
        Ok(true)
    }

    /// Reads the whole content of a header that describes the next one.
    pub(super) fn read_special(&mut self, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        if self.left > SPECIAL as u64 {
            return Err(self.fault(ArchiveFault::TooLong));
        }
        self.append(self.left, into)
    }

    /// Appends a block of the current entry's content.
    pub(super) fn read_content_block(&mut self, into: &mut Vec<u8>) -> Result<()> {
        if self.left < BLOCK as u64 {
            return Err(self.fault(ArchiveFault::Truncated));
        }
        self.append(BLOCK as u64, into)
    }

    fn append(&mut self, mut length: u64, into: &mut Vec<u8>) -> Result<()> {
        while length > 0 {
            let bytes = self.peek()?;
            let n = usize::try_from(length).map_or(bytes.len(), |most| bytes.len().min(most));
            if n == 0 {
                return Err(self.fault(ArchiveFault::Truncated));
            }
            into.extend_from_slice(&bytes[..n]);
            self.consume(n);
            self.left -= n as u64;
            length -= n as u64;
        }
        Ok(())
    }

    fn show(&mut self, at_most: u64) -> Result<usize> {
        let n = self.peek()?.len();
        let n = usize::try_from(at_most).map_or(n, |most| n.min(most));
        if n == 0 {
            return Err(self.fault(ArchiveFault::Truncated));
        }
        self.shown = n;
        self.left -= n as u64;
        Ok(n)
    }
}

/// What [`Content`] needs of a body, whatever it reads from.
trait Segments {
    fn next(&mut self) -> Result<Segment<'_>>;
}

impl<R: BufRead> Segments for Body<R> {
    fn next(&mut self) -> Result<Segment<'_>> {
        self.consume(self.shown);
        self.shown = 0;
        let Some(sparse) = &mut self.sparse else {
            if self.left == 0 {
                return Ok(Segment::End);
            }
            let n = self.show(self.left)?;
            return Ok(Segment::Data(&self.peek()?[..n]));
        };
        if sparse.spans.get(sparse.next).is_some_and(|&(_, end)| end == sparse.position) {
            sparse.next += 1;
        }
        let (start, end) = sparse.spans.get(sparse.next).copied().unwrap_or((sparse.size, sparse.size));
        if sparse.position < start {
            let hole = start - sparse.position;
            sparse.position = start;
            return Ok(Segment::Hole(hole));
        }
        let wanted = end - sparse.position;
        if wanted == 0 {
            let fits = self.left == 0;
            return if fits { Ok(Segment::End) } else { Err(self.fault(ArchiveFault::SparseData)) };
        }
        if self.left == 0 {
            return Err(self.fault(ArchiveFault::SparseData));
        }
        let n = self.show(self.left.min(wanted))?;
        if let Some(sparse) = &mut self.sparse {
            sparse.position += n as u64;
        }
        Ok(Segment::Data(&self.peek()?[..n]))
    }
}

/// A piece of a file's content.
#[derive(Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zeros that the archive does not hold.
    Hole(u64),
    /// Nothing more.
    End,
}

/// The content of one entry, in the stream's own buffers.
///
/// Read it by [`Content::segment`], which copies nothing and tells holes, or as a [`Read`].
pub struct Content<'a> {
    body: &'a mut dyn Segments,
    /// For `Read`: what a segment had too much.
    rest: Vec<u8>,
    at: usize,
    hole: u64,
}

impl<'a> Content<'a> {
    pub(super) fn new<R: BufRead>(body: &'a mut Body<R>) -> Self {
        Self { body, rest: Vec::new(), at: 0, hole: 0 }
    }

    /// The next piece.
    ///
    /// # Errors
    ///
    /// [`Error::Archive`] where the stream ends too early or a sparse file's data does not fit its map.
    pub fn segment(&mut self) -> Result<Segment<'_>> {
        self.body.next()
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.rest.len() && self.hole == 0 {
            self.rest.clear();
            self.at = 0;
            match self.body.next().map_err(io::Error::other)? {
                Segment::End => return Ok(0),
                Segment::Hole(length) => self.hole = length,
                Segment::Data(data) => {
                    let n = data.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&data[..n]);
                    self.rest.extend_from_slice(&data[n..]);
                    return Ok(n);
                }
            }
        }
        if self.hole > 0 {
            let n = usize::try_from(self.hole).map_or(buffer.len(), |hole| buffer.len().min(hole));
            buffer[..n].fill(0);
            self.hole -= n as u64;
            return Ok(n);
        }
        let n = buffer.len().min(self.rest.len() - self.at);
        buffer[..n].copy_from_slice(&self.rest[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
