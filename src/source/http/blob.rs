//! Downloading one blob: resumed where it broke off, proven at the end.

use std::io::{self, Read, Write};

use super::reply::{Reply, read_failure};
use super::retry::{Attempts, Failure, RetryPolicy, Stop};
use crate::oci::Descriptor;
use crate::progress::Progress;
use crate::source::{Content, Error, Mismatch, Receiver};

/// What is read at once; also the size of a `Fetched` event at most.
const BUFFER: usize = 128 << 10;

/// `Content-Range: bytes FIRST-LAST/TOTAL`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    total: Option<u64>,
}

fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last).then_some(ContentRange { first, total })
}

/// A blob to download.
pub(in crate::source) struct Download<'a> {
    pub(in crate::source) blob: &'a Descriptor,
    /// What to call the source in messages.
    pub(in crate::source) source_name: String,
    /// What to call the place in it that has the blob.
    pub(in crate::source) place: String,
    pub(in crate::source) retry: RetryPolicy,
    pub(in crate::source) stop: &'a Stop,
    pub(in crate::source) ask: Box<Ask<'a>>,
}

/// Makes one request for a blob, with these headers; the text is what to call it in messages. Gives any answer
/// that is neither a refusal nor a failure that may pass.
type Ask<'a> = dyn Fn(&str, &[(&'static str, String)]) -> Result<Reply, Failure> + 'a;

impl Content for Download<'_> {
    /// Asks as often as it takes.
    fn copy(&self, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), Error> {
        let what = format!("blob {}", self.blob.digest);
        let whole = format!("{what} of {}", self.place);
        let mut receiver = Receiver::new(self.blob, &self.source_name, out, progress);
        let mut attempts = Attempts::new(whole, self.retry, self.stop, progress);
        let mut buffer = vec![0; BUFFER];
        loop {
            attempts.check()?;
            let before = receiver.received();
            match self.attempt(&what, &mut receiver, &mut buffer) {
                Ok(()) => return receiver.finish(),
                Err(failure) => {
                    if receiver.received() > before {
                        attempts.progressed();
                    }
                    attempts.failed(failure)?;
                }
            }
        }
    }

    /// Asks for the last bytes alone.
    fn tail(&self, length: u64, progress: &dyn Progress) -> Result<Option<Vec<u8>>, Error> {
        let (size, what) = (self.blob.size, format!("blob {}", self.blob.digest));
        let first = size.saturating_sub(length);
        let header = [("range", format!("bytes={first}-"))];
        Attempts::new(format!("{what} of {}", self.place), self.retry, self.stop, progress).run(|| {
            let mut reply = (self.ask)(&what, &header)?;
            match reply.status {
                206 => {
                    let header = reply.header("content-range").unwrap_or_default();
                    let range = parse_content_range(header).filter(|range| range.first == first);
                    let Some(range) = range else { return Ok(None) };
                    if let Some(found) = range.total.filter(|total| *total != size) {
                        let (blob, source_name) = (self.blob.digest, self.source_name.clone());
                        let mismatch = Mismatch::Size { expected: size, found };
                        return Err(Error::BlobMismatch { blob, source_name, mismatch }.into());
                    }
                    let mut bytes = Vec::new();
                    let mut reader = reply.body.as_reader().take(length);
                    reader.read_to_end(&mut bytes).map_err(|error| read_failure(&reply.host, &error))?;
                    Ok((bytes.len() as u64 == size - first).then_some(bytes))
                }
                // Of a blob without bytes no range can be had.
                200 | 416 => Ok(None),
                _ => Err(self.refused(&what, reply).into()),
            }
        })
    }
}

impl Download<'_> {
    /// What an answer means that is not the blob.
    fn refused(&self, what: &str, mut reply: Reply) -> Error {
        let detail = reply.error_detail();
        match reply.status {
            404 => {
                let source_name = self.place.clone();
                Error::NoSuchBlob { blob: self.blob.digest, source_name, detail }
            }
            status => Error::Status { what: what.to_owned(), host: reply.host, status, detail },
        }
    }

    /// Downloads what is missing. Always asks whoever names the storage host, not the host that it
    /// named the last time: such addresses run out.
    fn attempt(&self, what: &str, receiver: &mut Receiver<'_>, buffer: &mut [u8]) -> Result<(), Failure> {
        let (blob, have) = (self.blob, receiver.received());
        if have > 0 && have == blob.size {
            // It broke off after the last byte.
            return Ok(());
        }
        let range = (have > 0).then(|| ("range", format!("bytes={have}-")));
        let reply = (self.ask)(what, range.as_slice())?;
        let to_skip = match reply.status {
            200 => {
                check_announced(blob, receiver, length(&reply))?;
                have
            }
            206 => {
                let header = reply.header("content-range").unwrap_or_default();
                let range = parse_content_range(header).filter(|range| range.first == have && have > 0);
                let Some(range) = range else {
                    let reason = format!("answered bytes={have}- with Content-Range {header:?}");
                    return Err(Failure::again(format!("{} {reason}", reply.host)));
                };
                check_announced(blob, receiver, range.total)?;
                0
            }
            _ => return Err(self.refused(what, reply).into()),
        };
        self.receive(reply, to_skip, receiver, buffer)
    }

    /// Reads a body to its end, leaving out the first `to_skip` bytes, which are here already.
    fn receive(
        &self,
        mut reply: Reply,
        mut to_skip: u64,
        receiver: &mut Receiver<'_>,
        buffer: &mut [u8],
    ) -> Result<(), Failure> {
        // Without a length the end of the connection may be the end of the blob, or not: the size decides
        // and the request is made again. With chunks the server has said that this is all; all of a
        // range may be less than was asked for, though.
        let chunked = reply.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        let complete = chunked && reply.status == 200;
        let mut reader = reply.body.as_reader();
        loop {
            if self.stop.is_stopped() {
                let what = format!("blob {}", receiver.blob.digest);
                return Err(Error::Stopped { what }.into());
            }
            let n = match reader.read(buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_failure(&reply.host, &error)),
            };
            let skipped = usize::try_from(to_skip).unwrap_or(usize::MAX).min(n);
            to_skip -= skipped as u64;
            if skipped < n {
                receiver.take(&buffer[skipped..n])?;
            }
        }
        let (have, size) = (receiver.received(), receiver.blob.size);
        if have < size && !complete {
            let reason = format!("the transfer ended after {have} of {size} bytes");
            return Err(Failure::again(format!("{}: {reason}", reply.host)));
        }
        Ok(())
    }
}

fn length(reply: &Reply) -> Option<u64> {
    reply.header("content-length")?.trim().parse().ok()
}

/// Compares the size that a server announces for the whole blob, before a byte is read.
fn check_announced(blob: &Descriptor, receiver: &Receiver<'_>, announced: Option<u64>) -> Result<(), Error> {
    match announced {
        Some(found) if found != blob.size => {
            Err(receiver.mismatch(Mismatch::Size { expected: blob.size, found }))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges() {
        let cases = [
            ("bytes 5-9/10", Some((5, Some(10)))),
            (" bytes 0-0/* ", Some((0, None))),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes=5-9/10", None),
            ("items 5-9/10", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(first, total)| ContentRange { first, total });
            assert_eq!(parse_content_range(text), expected, "{text}");
        }
    }
}
