//! Blobs: looked up, ingested, read.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::client::{Client, Failure};
use super::wire::{self, Action, Empty};
use super::{Error, Result};

/// Bytes in a message: containerd takes up to 16 MiB.
const CHUNK: usize = 1 << 20;
/// How long somebody else may take who writes the same blob.
const PATIENCE: Duration = Duration::from_secs(60);

/// A blob that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub size: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A blob on its way in. What was written stays when this is dropped, and the next one goes on from there.
#[derive(Debug)]
pub struct Ingest<'a> {
    client: &'a Client,
    /// `None` when it ends.
    requests: Option<mpsc::Sender<wire::Write>>,
    replies: Streaming<wire::Written>,
    name: String,
    digest: String,
    total: u64,
    /// What containerd has of it, from this client or from one before.
    offset: u64,
    /// What was written here: what containerd has already is passed over.
    written: u64,
    buffer: Vec<u8>,
    /// Why a write failed, which an [`io::Error`] does not tell in full.
    failure: Option<Error>,
}

impl Client {
    /// The blobs of this namespace.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn blobs(&self) -> Result<Vec<Blob>> {
        let parts: Vec<wire::Infos> = self
            .list(wire::CONTENT_LIST, Empty {})
            .map_err(|failure| failure.at("list blobs of", self.what()))?;
        let infos = parts.into_iter().flat_map(|part| part.infos);
        let blob = |info: wire::Info| Blob {
            digest: info.digest,
            size: info.size,
            labels: info.labels.into_iter().collect(),
        };
        Ok(infos.map(blob).collect())
    }

    /// Labels of a blob; `None` where there is none in this namespace.
    ///
    /// # Errors
    /// containerd refuses.
    pub fn labels(&self, digest: &str) -> Result<Option<BTreeMap<String, String>>> {
        let asked = wire::Digested { digest: digest.to_owned() };
        let reply: std::result::Result<wire::InfoReply, Failure> = self.short(wire::CONTENT_INFO, asked);
        match reply {
            Ok(reply) => Ok(Some(reply.info.unwrap_or_default().labels.into_iter().collect())),
            Err(failure) if failure.is(Code::NotFound) => Ok(None),
            Err(failure) => Err(failure.at("look up blob", digest)),
        }
    }

    /// Gives a blob these labels, beside those that it has.
    ///
    /// # Errors
    /// containerd refuses, as where there is no such blob.
    pub fn label(&self, digest: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        if labels.is_empty() {
            // containerd takes no names for all of them, and would remove those that it has.
            return Ok(());
        }
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let info = wire::Info { digest: digest.to_owned(), labels: owned(labels), ..wire::Info::default() };
        let update = wire::InfoUpdate { info: Some(info), mask: Some(wire::Mask { paths }) };
        let updated: std::result::Result<wire::InfoReply, Failure> = self.short(wire::CONTENT_UPDATE, update);
        updated.map(drop).map_err(|failure| failure.at("label blob", digest))
    }

    /// Begins to write a blob, all of it, or goes on where one was left off; `None` where it is there. Waits a while for
    /// somebody else who writes the same one.
    ///
    /// # Errors
    /// containerd refuses, or somebody else takes too long.
    pub fn write(&self, digest: &str, total: u64) -> Result<Option<Ingest<'_>>> {
        let begun = Instant::now();
        loop {
            match self.open(digest, total) {
                Ok(ingest) => return Ok(Some(ingest)),
                Err(failure) if failure.is(Code::AlreadyExists) => return Ok(None),
                // That is what one gets who is not alone.
                Err(failure) if failure.is(Code::Unavailable) && begun.elapsed() < PATIENCE => {
                    self.pause().map_err(|failure| failure.at("ingest blob", digest))?;
                }
                Err(failure) => return Err(failure.at("ingest blob", digest)),
            }
        }
    }

    fn open(&self, digest: &str, total: u64) -> std::result::Result<Ingest<'_>, Failure> {
        let name = format!("warmkit-{digest}");
        let (requests, receiver) = mpsc::channel(1);
        let first = wire::Write {
            action: Action::Stat.into(),
            name: name.clone(),
            total: signed(total),
            expected: digest.to_owned(),
            ..wire::Write::default()
        };
        // There is room for one.
        let _ = requests.try_send(first);
        let stream = self.request(ReceiverStream::new(receiver));
        let (replies, state) = self.run(async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<wire::Write, wire::Written>::default();
            let path = PathAndQuery::from_static(wire::CONTENT_WRITE);
            let mut replies = grpc.streaming(stream, path, codec).await?.into_inner();
            let state = next(&mut replies).await?;
            Ok((replies, state))
        })?;
        Ok(Ingest {
            client: self,
            requests: Some(requests),
            replies,
            name,
            digest: digest.to_owned(),
            total,
            offset: u64::try_from(state.offset).unwrap_or_default(),
            written: 0,
            buffer: Vec::with_capacity(CHUNK),
            failure: None,
        })
    }

    /// The bytes of a blob.
    ///
    /// # Errors
    /// containerd refuses, as where there is no such blob.
    pub fn read(&self, digest: &str) -> Result<Reader<'_>> {
        let request = self.request(wire::Digested { digest: digest.to_owned() });
        let opened = self.run(async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<wire::Digested, wire::Chunk>::default();
            let path = PathAndQuery::from_static(wire::CONTENT_READ);
            Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
        });
        let stream = opened.map_err(|failure| failure.at("read blob", digest))?;
        let digest = digest.to_owned();
        Ok(Reader { client: self, stream, digest, chunk: Vec::new(), at: 0, failure: None })
    }
}

async fn next(replies: &mut Streaming<wire::Written>) -> std::result::Result<wire::Written, Status> {
    replies.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))
}

fn owned(labels: &BTreeMap<String, String>) -> HashMap<String, String> {
    labels.clone().into_iter().collect()
}

/// A size, as the API has it.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

impl Ingest<'_> {
    /// Whether containerd has all of it, as from another namespace: nothing needs to be written.
    pub fn is_whole(&self) -> bool {
        self.total > 0 && self.offset >= self.total
    }

    /// Forgets what was written, which may have been other bytes: all of them are to come again, from the first.
    pub fn again(&mut self) {
        // What is written at the very start replaces all that there is.
        (self.offset, self.written) = (0, 0);
        self.buffer.clear();
        self.failure = None;
    }

    /// What has failed since, if anything.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Puts the blob in its place, without labels. containerd proves size and digest.
    ///
    /// # Errors
    /// containerd refuses, as where it is another blob; the next one then begins anew.
    pub fn finish(mut self) -> Result<()> {
        self.send_buffer()?;
        let commit = wire::Write {
            action: Action::Commit.into(),
            total: signed(self.total),
            expected: self.digest.clone(),
            offset: signed(self.offset),
            ..wire::Write::default()
        };
        match self.exchange(commit) {
            Ok(_) => Ok(()),
            // Another client was faster.
            Err(failure) if failure.is(Code::AlreadyExists) => Ok(()),
            Err(failure) => {
                if matches!(failure, Failure::Status(_)) {
                    let abort = wire::Ref { name: self.name.clone() };
                    // One that does not go is collected with its lease.
                    let _: std::result::Result<Empty, Failure> =
                        self.client.short(wire::CONTENT_ABORT, abort);
                }
                Err(failure.at("commit blob", &*self.digest))
            }
        }
    }

    fn exchange(&mut self, message: wire::Write) -> std::result::Result<wire::Written, Failure> {
        let (requests, replies) = (&self.requests, &mut self.replies);
        self.client.run(async {
            if let Some(requests) = requests {
                // That nobody takes it any more is explained by what comes back.
                let _ = requests.send(message).await;
            }
            next(replies).await
        })
    }

    fn send_buffer(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        let end = self.offset + data.len() as u64;
        let message = wire::Write {
            action: Action::Write.into(),
            offset: signed(self.offset),
            data,
            ..wire::Write::default()
        };
        let reply = self.exchange(message).map_err(|failure| failure.at("ingest blob", &*self.digest))?;
        if reply.offset != signed(end) {
            return Err(Error::Unexpected {
                what: format!("blob {}", self.digest),
                expected: format!("{end} bytes"),
                found: format!("{} bytes", reply.offset),
            });
        }
        self.offset = end;
        Ok(())
    }
}

impl Drop for Ingest<'_> {
    /// Waits until containerd has closed what it has of the blob: until then nobody can go on with that, and where it is
    /// collected at once, what is written when it is closed may be left.
    fn drop(&mut self) {
        self.requests = None;
        let replies = &mut self.replies;
        self.client.see_off(async { while let Ok(Some(_)) = replies.message().await {} });
    }
}

impl Write for Ingest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Of what comes, containerd has so much.
        let have = (self.offset + self.buffer.len() as u64).saturating_sub(self.written);
        let known = usize::try_from(have).unwrap_or(usize::MAX).min(bytes.len());
        let taken = if known > 0 {
            known
        } else {
            let taken = bytes.len().min(CHUNK - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..taken]);
            if self.buffer.len() == CHUNK
                && let Err(error) = self.send_buffer()
            {
                let said = io::Error::other(error.to_string());
                self.failure = Some(error);
                return Err(said);
            }
            taken
        };
        self.written += taken as u64;
        Ok(taken)
    }

    /// Nothing: what is buffered goes out when there is enough of it, or at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of a blob, as they come.
#[derive(Debug)]
pub struct Reader<'a> {
    client: &'a Client,
    stream: Streaming<wire::Chunk>,
    digest: String,
    chunk: Vec<u8>,
    at: usize,
    /// Why a read failed, which an [`io::Error`] does not tell in full.
    failure: Option<Error>,
}

impl Reader<'_> {
    /// What has failed since, if anything.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            let stream = &mut self.stream;
            match self.client.run(stream.message()) {
                Ok(Some(chunk)) => (self.chunk, self.at) = (chunk.data, 0),
                Ok(None) => return Ok(0),
                Err(failure) => {
                    let error = failure.at("read blob", &*self.digest);
                    let said = io::Error::other(error.to_string());
                    self.failure = Some(error);
                    return Err(said);
                }
            }
        }
        let taken = out.len().min(self.chunk.len() - self.at);
        out[..taken].copy_from_slice(&self.chunk[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}
