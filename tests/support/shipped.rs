//! The small real cache in fixtures/demo, and its keys.

use std::path::{Path, PathBuf};

/// A file or directory of the fixture.
pub fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo").join(name)
}

/// The cache, as an argument.
pub fn cache() -> String {
    format!("type=local,src={}", demo("cache").display())
}

/// All its keys, as an argument.
pub fn keys() -> String {
    format!("type=provenance,src={}", demo("provenance.json").display())
}
