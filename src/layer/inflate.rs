//! Decompression, told by a blob's first bytes.
//!
//! | after the last gzip member or zstd frame | |
//! |---|---|
//! | nothing | end |
//! | another member or frame, a skippable frame | goes on (estargz, zstd:chunked, pigz -i) |
//! | zeros, junk, the beginning of a member | error, as upstream's decoders without `unpigz` or `igzip` |
//!
//! An empty blob is an empty tar. A gzip trailer's checksum and length and a frame's checksum are checked.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::rc::Rc;

use super::{Compression, Error, Result};

/// Bytes read from the blob at a time.
const INPUT: usize = 256 << 10;
/// Bytes that are looked at.
const HEAD: usize = 10;
/// The largest window, as a power of two: what `zstd --ultra` and `--long` write. Larger ones need an option with
/// the zstd tool too; upstream goes up to 29.
const ZSTD_WINDOW: u32 = 27;

/// A decompressed blob.
pub(super) struct Decoder<'a> {
    inner: Inner<'a>,
    read_failed: Rc<Cell<bool>>,
}

type Input<'a> = Chain<Cursor<Vec<u8>>, BufReader<Noting<'a>>>;

enum Inner<'a> {
    Plain(Input<'a>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Input<'a>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<'a>>>),
}

/// Notes when it is the blob that cannot be read, so that it is not taken for damage.
struct Noting<'a> {
    blob: Box<dyn Read + 'a>,
    failed: Rc<Cell<bool>>,
}

impl Read for Noting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.blob.read(buffer);
        if result.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
            self.failed.set(true);
        }
        result
    }
}

impl<'a> Decoder<'a> {
    /// Reads the first bytes of `blob` and chooses.
    pub(super) fn new(blob: impl Read + 'a, compression: Compression) -> Result<Self> {
        let read_failed = Rc::new(Cell::new(false));
        let noting = Noting { blob: Box::new(blob), failed: Rc::clone(&read_failed) };
        let mut reader = BufReader::with_capacity(INPUT, noting);
        let mut head = Vec::with_capacity(HEAD);
        if compression == Compression::Detect {
            reader.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(Error::Blob)?;
        }
        let gzip = head.starts_with(&[0x1f, 0x8b, 8]);
        let zstd = head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
            || (head.len() >= 8 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18]);
        let input = Cursor::new(head).chain(reader);
        let inner = if gzip {
            Inner::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input)))
        } else if zstd {
            let fail = |source| Error::Decompress { format: "zstd", source };
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(fail)?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(fail)?;
            Inner::Zstd(Box::new(decoder))
        } else {
            Inner::Plain(input)
        };
        Ok(Self { inner, read_failed })
    }

    /// Fills `buffer` as far as the stream goes; less than its length only at the end.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            let (format, result) = match &mut self.inner {
                Inner::Plain(reader) => ("tar", reader.read(rest)),
                Inner::Gzip(reader) => ("gzip", reader.read(rest)),
                Inner::Zstd(reader) => ("zstd", reader.read(rest)),
            };
            match result {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if self.read_failed.get() => return Err(Error::Blob(e)),
                Err(source) => return Err(Error::Decompress { format, source }),
            }
        }
        Ok(filled)
    }
}

// `Chain` is a `BufRead` only where both halves are.
const _: fn(&Input<'_>) = |input| {
    fn assert_buf_read(_: &impl BufRead) {}
    assert_buf_read(input);
};
