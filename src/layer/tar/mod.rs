//! Tar archives, read as Go's `archive/tar` reads them: the same streams are valid, and the same fields count.
//!
//! ```text
//! header block  0 name 100 | mode 8 | uid 8 | gid 8 | size 12 | mtime 12 | checksum 8 | type 1 | link 100
//!             257 magic 6 | version 2 | user 32 | group 32 | major 8 | minor 8
//!   ustar     345 prefix 155
//!   star      345 prefix 131 | atime 12 | ctime 12 | 508 "tar\0"
//!   GNU       345 atime 12 | ctime 12 | offset 12 | longnames 4 | unused 1
//!             386 sparse 4 × (offset 12, length 12) | extended 1 | real size 12
//! ```
//!
//! - Numbers are octal, or base-256 where the first bit is set; empty is 0.
//! - An archive ends with two zero blocks, one zero block at the end of the stream, or the stream's end at a
//!   block's edge or in the last entry's padding.
//! - Records of an `x` header count for the next entry only; two of them in a row: the last. Records of a `g` header
//!   count for nothing. A record given twice: the last. An empty value: the header's field stays (xattrs: set empty).
//! - Names: GNU long name over pax path over header; `GNU.sparse.name` over all.

mod content;
mod header;
mod pax;
mod sparse;

use std::io::BufRead;

pub use content::{Content, Segment};

use self::content::Body;
use self::header::Format;
use self::pax::Pax;
use super::Result;
use super::entry::{Entry, Kind};
use super::error::ArchiveFault;

/// Bytes of a block.
const BLOCK: usize = 512;
/// The largest extended header, long name or sparse map.
const SPECIAL: usize = 1 << 20;

/// Reads an archive entry by entry; allocates nothing for an ordinary one.
pub(super) struct Reader<R> {
    body: Body<R>,
    entry: Entry,
    block: Box<[u8; BLOCK]>,
    pax: Pax,
    name: Vec<u8>,
    link: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            body: Body::new(input),
            entry: Entry::new(),
            block: Box::new([0; BLOCK]),
            pax: Pax::default(),
            name: Vec::new(),
            link: Vec::new(),
        }
    }

    /// The entry that `next` found, and its content.
    pub(super) fn parts(&mut self) -> (&Entry, Content<'_>) {
        (&self.entry, Content::new(&mut self.body))
    }

    /// Goes to the next entry; false at the end of the archive.
    pub(super) fn next(&mut self) -> Result<bool> {
        self.pax.clear();
        self.name.clear();
        self.link.clear();
        loop {
            if !self.body.skip()? || !self.read_header_block()? {
                return Ok(false);
            }
            let (format, flag) =
                header::parse(&self.block, &mut self.entry).map_err(|fault| self.body.fault(fault))?;
            let size = self.body.start(flag, header::size(&self.block))?;
            match flag {
                b'x' | b'g' => {
                    self.body.read_special(&mut self.pax.text)?;
                    self.pax.parse().map_err(|fault| self.body.fault(fault))?;
                    if flag == b'g' {
                        // Nothing of its header counts but the name.
                        let name = match self.pax.path() {
                            Some(path) => path.to_vec(),
                            None => std::mem::take(&mut self.entry.name),
                        };
                        self.entry = Entry { name, kind: Kind::Global, ..Entry::new() };
                        self.entry.clean();
                        return Ok(true);
                    }
                }
                b'L' => read_name(&mut self.body, &mut self.name)?,
                b'K' => read_name(&mut self.body, &mut self.link)?,
                _ => {
                    self.finish_entry(format, flag, size)?;
                    return Ok(true);
                }
            }
        }
    }

    fn finish_entry(&mut self, format: Format, mut flag: u8, size: i64) -> Result<()> {
        let entry = &mut self.entry;
        let size = self.pax.merge(entry, size).map_err(|fault| self.body.fault(fault))?;
        if !self.name.is_empty() {
            self.name.clone_into(&mut entry.name);
        }
        if !self.link.is_empty() {
            self.link.clone_into(&mut entry.link);
        }
        if flag == 0 {
            flag = if entry.name.ends_with(b"/") { b'5' } else { b'0' };
        }
        entry.kind = match flag {
            b'0' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        let size = self.body.start(flag, size)?;
        let map = if flag == b'S' {
            Some(sparse::old_gnu(&mut self.body, &mut self.block, format)?)
        } else {
            sparse::pax(&mut self.body, &self.pax, &mut entry.name, size)?
        };
        entry.size = match map {
            Some(map) => self.body.make_sparse(flag, map)?,
            None if header::has_content(flag) => size.unsigned_abs(),
            None => 0,
        };
        entry.clean();
        Ok(())
    }

    /// Reads the next header; false at the end of the archive.
    fn read_header_block(&mut self) -> Result<bool> {
        if !self.body.read_block(&mut self.block)? {
            return Ok(false);
        }
        if self.block.iter().any(|&b| b != 0) {
            return Ok(true);
        }
        if !self.body.read_block(&mut self.block)? || self.block.iter().all(|&b| b == 0) {
            return Ok(false);
        }
        Err(self.body.fault(ArchiveFault::ZeroBlock))
    }
}

fn read_name<R: BufRead>(body: &mut Body<R>, name: &mut Vec<u8>) -> Result<()> {
    body.read_special(name)?;
    if let Some(end) = name.iter().position(|&b| b == 0) {
        name.truncate(end);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
