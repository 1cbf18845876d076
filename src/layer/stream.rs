//! The stages of one layer and the buffers between them.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};

use super::inflate::Decoder;
use super::tar::Reader;
use super::{Compression, Content, Entry, Error, Result, Stream};
use crate::digest::{DiffId, Hasher};

/// Bytes in one chunk.
const CHUNK: usize = 256 << 10;
/// Chunks of one layer. Their number is what bounds memory: a stage that is ahead waits for a free one.
const CHUNKS: usize = 8;

/// A piece of the decompressed stream; its buffer goes back to the pool with the last reference.
struct Chunk {
    buffer: Vec<u8>,
    length: usize,
    pool: Sender<Vec<u8>>,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // The pool has room for all buffers; it is gone when the layer is done.
        let _ = self.pool.try_send(std::mem::take(&mut self.buffer));
    }
}

/// Runs the stages; `visit` runs on the calling thread.
pub(super) fn visit<E: From<Error>>(
    blob: impl Read + Send,
    compression: Compression,
    mut visit: impl FnMut(&Entry, &mut Content<'_>) -> Result<(), E>,
) -> Result<Stream, E> {
    let (to_hash, hash_queue) = unbounded::<Arc<Chunk>>();
    let (to_apply, apply_queue) = unbounded::<Arc<Chunk>>();
    let complete = AtomicBool::new(false);
    thread::scope(|scope| {
        let inflate = scope.spawn(|| {
            let result = inflate(blob, compression, &to_hash, &to_apply);
            complete.store(result.is_ok(), Ordering::Release);
            // Only now do the other stages see the end.
            drop((to_hash, to_apply));
            result
        });
        let hash = scope.spawn(move || hash(&hash_queue));
        let mut chunks =
            Chunks { queue: apply_queue, complete: &complete, current: None, at: 0, stopped: false };
        let applied = read(&mut chunks, &mut visit);
        let stopped = chunks.stopped;
        // An inflater that waits for a buffer or a reader goes on, finds the queue gone, and stops.
        drop(chunks);
        let inflated = inflate.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let stream = hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (applied, inflated) {
            (Ok(()), Ok(())) => Ok(stream),
            (Err(_), Err(cause)) if stopped => Err(cause.into()),
            (Err(cause), _) => Err(cause),
            (Ok(()), Err(cause)) => Err(cause.into()),
        }
    })
}

fn inflate(
    blob: impl Read,
    compression: Compression,
    to_hash: &Sender<Arc<Chunk>>,
    to_apply: &Sender<Arc<Chunk>>,
) -> Result<()> {
    let mut decoder = Decoder::new(blob, compression)?;
    let (pool, free) = bounded::<Vec<u8>>(CHUNKS);
    let mut made = 0;
    loop {
        let mut buffer = match free.try_recv() {
            Ok(buffer) => buffer,
            Err(TryRecvError::Empty) if made < CHUNKS => {
                made += 1;
                vec![0; CHUNK]
            }
            // `pool` lives as long as this loop, so this waits until a stage lets go of a chunk.
            Err(_) => free.recv().map_err(|_| Error::Stopped)?,
        };
        let length = decoder.fill(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let chunk = Arc::new(Chunk { buffer, length, pool: pool.clone() });
        let _ = to_hash.send(Arc::clone(&chunk));
        if to_apply.send(chunk).is_err() {
            return Err(Error::Stopped);
        }
        if length < CHUNK {
            return Ok(());
        }
    }
}

fn hash(queue: &Receiver<Arc<Chunk>>) -> Stream {
    let mut hasher = Hasher::new();
    let mut bytes = 0;
    for chunk in queue {
        hasher.update(chunk.bytes());
        bytes += chunk.bytes().len() as u64;
    }
    Stream { diff_id: DiffId::from_bytes(hasher.finish()), bytes }
}

fn read<E: From<Error>>(
    chunks: &mut Chunks<'_>,
    visit: &mut impl FnMut(&Entry, &mut Content<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut reader = Reader::new(&mut *chunks);
    while reader.next()? {
        let (entry, mut content) = reader.parts();
        visit(entry, &mut content)?;
    }
    // The diff ID covers what follows the archive's end, and so does the decoder's check of the stream.
    loop {
        let n = chunks.fill_buf().map_err(|_| Error::Stopped)?.len();
        if n == 0 {
            return Ok(());
        }
        chunks.consume(n);
    }
}

/// The stream as the reader of the archive sees it.
struct Chunks<'a> {
    queue: Receiver<Arc<Chunk>>,
    complete: &'a AtomicBool,
    current: Option<Arc<Chunk>>,
    at: usize,
    stopped: bool,
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.as_ref().is_none_or(|chunk| self.at == chunk.length) {
            // Let go of the old chunk before waiting for a new one: the inflater may need it.
            self.current = None;
            self.at = 0;
            self.current = self.queue.recv().ok();
        }
        match &self.current {
            Some(chunk) => Ok(&chunk.bytes()[self.at..]),
            None if self.complete.load(Ordering::Acquire) => Ok(&[]),
            None => {
                self.stopped = true;
                Err(io::Error::other(Error::Stopped))
            }
        }
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}
