//! warmkit bakes a BuildKit registry cache into a BuildKit state directory.

pub mod bake;
pub mod bolt;
pub mod cli;
pub mod digest;
pub mod fsutil;
pub mod keys;
pub mod layer;
pub mod oci;
pub mod progress;
pub mod source;
pub mod store;
pub mod verify;
