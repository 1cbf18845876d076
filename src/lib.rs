//! warmkit bakes `BuildKit` registry caches into a `BuildKit` state directory.
//!
//! A daemon started on that directory prints CACHED for every step of the builds that the caches
//! came from: it imports nothing, extracts nothing and pulls no layer. No daemon takes part in
//! baking, and nothing is built.
//!
//! ```text
//!            registry or OCI layout                         --keys-from
//!          manifest, cacheconfig, layers         provenance, or a builder's cache.db
//!                     │                                          │
//!              [source] [oci]                                 [keys]
//!                     │                         operation digests, proven by hash
//!                     └───────────────────┬──────────────────────┘
//!                                     [gather]
//!                                      [bake]
//!                     ┌───────────────────┴──────────────────────┐
//!                  [layer]                                    [store]
//!        inflate, hash, apply                      databases and directories
//!                     │                                          │
//!  <root>/            ▼                                          ▼
//!    cache.db ····················································  cache keys -> results
//!    runc-overlayfs/
//!      metadata_v2.db ············································  cache records
//!      containerdmeta.db ·········································  blobs, snapshots, leases
//!      snapshots/metadata.db ·····································  snapshot parents and sizes
//!      snapshots/snapshots/<n>/fs/   unpacked layers
//!      content/blobs/sha256/<hex>    compressed layers
//!                     │
//!                  [root]     reads it all back, and shares nothing with the writers
//!                  [verify]   judges it
//! ```
//!
//! [source]: crate::source
//! [oci]: crate::oci
//! [keys]: crate::keys
//! [gather]: crate::gather
//! [bake]: crate::bake
//! [layer]: crate::layer
//! [store]: crate::store
//! [root]: crate::root
//! [verify]: crate::verify

pub mod bake;
pub mod bolt;
pub mod builder;
pub mod cli;
#[cfg(feature = "containerd")]
pub mod containerd;
pub mod csv;
pub mod daemon;
pub mod digest;
pub mod fsutil;
pub mod gather;
pub mod gc;
pub mod hydrate;
pub mod inspect;
pub mod keys;
pub mod layer;
pub mod oci;
pub mod progress;
pub mod replay;
pub mod root;
pub mod source;
pub mod store;
pub mod userns;
pub mod verify;
