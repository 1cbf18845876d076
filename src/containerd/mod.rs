//! containerd's API, as far as a bake and a look at its outcome need it: blocking calls for several threads, over one connection.
//!
//! | file | service |
//! |---|---|
//! | `client` | the connection, and what each request carries: namespace and lease |
//! | `leases` | what keeps blobs and snapshots |
//! | `content` | blobs: looked up, listed, ingested, read |
//! | `snapshots` | listed, prepared, applied to, committed |
//! | `wire` | the messages |
//!
//! gRPC comes as futures only: they run on a runtime of one thread at a time, that of whoever calls, and none leaves
//! this module.

mod client;
mod content;
mod error;
mod leases;
mod snapshots;
mod wire;

pub use client::{Client, Stopped};
pub use content::{Blob, Ingest, Reader};
pub use error::Error;
pub use leases::{Lease, Leased, Pending, Resource};
pub use snapshots::{Kind, Mounts, Snapshot, Usage};

/// What a call gives.
pub type Result<T> = std::result::Result<T, Error>;
