//! Promise: what a registry source returns is what the digest says, whatever the server does.

// The exemption for tests ends at their own functions, and these are all tests.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod auth;
mod blobs;
mod hostile;
mod manifests;
mod push;
mod real;
mod server;
#[path = "../support/skip.rs"]
mod skip;

use std::sync::Mutex;
use std::time::Duration;

use server::Server;
use warmkit::digest::Digest;
use warmkit::oci::Descriptor;
use warmkit::progress::{Event, Progress};
use warmkit::source::{Environment, Options, Registry, RetryPolicy};

/// No credentials, no certificates, and little patience.
fn options() -> Options {
    Options {
        env: Environment::default(),
        certs_dirs: Vec::new(),
        retry: RetryPolicy {
            failures: 4,
            failures_before_first_answer: 2,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(5),
            longest_retry_after: Duration::from_secs(2),
        },
        ..Options::default()
    }
}

/// The repository `acme/app`, tag `cache`, of a scripted registry.
fn registry(server: &Server, options: &Options) -> Registry {
    let reference = format!("{}/acme/app:cache", server.addr).parse().unwrap();
    Registry::open(&reference, options).unwrap()
}

/// Bytes that no two offsets share for long.
fn bytes(len: u32) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect()
}

fn descriptor(blob: &[u8]) -> Descriptor {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Descriptor::new(media_type, Digest::of(blob), blob.len() as u64)
}

/// Counts events.
#[derive(Default)]
struct Log(Mutex<Vec<Event>>);

impl Progress for Log {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Log {
    /// Bytes that arrived.
    fn fetched(&self) -> u64 {
        let bytes = |event: &Event| match event {
            Event::Fetched { bytes, .. } => *bytes,
            _ => 0,
        };
        self.0.lock().unwrap().iter().map(bytes).sum()
    }

    /// Why requests were made again.
    fn retries(&self) -> Vec<String> {
        let reason = |event: &Event| match event {
            Event::Retry { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.0.lock().unwrap().iter().filter_map(reason).collect()
    }
}
