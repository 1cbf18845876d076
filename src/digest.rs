//! SHA-256 digests, one type for each meaning.
//!
//! The same 32 bytes mean different things in different stores, and mixing them up gives a
//! root that looks right and is cold. So each meaning has a type of its own:
//!
//! | type | what was hashed |
//! |---|---|
//! | [`Digest`] | a blob as it is transferred and stored (compressed layer, manifest, config) |
//! | [`DiffId`] | the uncompressed tar of a layer |
//! | [`ChainId`] | a chain of diff IDs, OCI image-spec `identity.ChainID` |
//! | [`BlobChainId`] | the same construction over `ChainID([digest, diff ID])` of each layer, `BuildKit` `cache/refs.go` |
//! | [`OpDigest`] | a solver operation, `solver/llbsolver/ops`; text, since old releases keep it unhashed |
//! | [`RecordDigest`] | a cache key: `sha256("<operation digest>@<output>")`, `solver/cachemanager.go` `rootKey` |

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A digest that is not `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {text:?}: expected sha256: and 64 lower-case hexadecimal digits")]
pub struct ParseDigestError {
    /// What stood where a digest was expected.
    pub text: String,
}

/// Bytes hashed so far; the one place where the hash implementation is chosen.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Starts an empty hash.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes so far.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl io::Write for Hasher {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher.finish()
}

fn write_hex(bytes: &[u8; 32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

fn parse_hex(hex: &str) -> Option<[u8; 32]> {
    fn nibble(c: u8) -> Option<u8> {
        match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        }
    }
    let hex = hex.as_bytes();
    if hex.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

macro_rules! sha256_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes over a finished SHA-256.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Hashes `bytes`.
            pub fn of(bytes: &[u8]) -> Self {
                Self(sha256(bytes))
            }

            /// The 64 hexadecimal digits, without `sha256:`.
            pub fn hex(&self) -> String {
                self.to_string().split_off("sha256:".len())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sha256:")?;
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, ParseDigestError> {
                text.strip_prefix("sha256:")
                    .and_then(parse_hex)
                    .map(Self)
                    .ok_or_else(|| ParseDigestError { text: text.to_owned() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

sha256_type! {
    /// Digest of a blob as transferred: a compressed layer, a manifest, a config.
    Digest
}
sha256_type! {
    /// Digest of a layer's uncompressed tar stream.
    DiffId
}
sha256_type! {
    /// OCI chain ID over diff IDs: names the file tree that a chain of layers gives.
    ChainId
}
sha256_type! {
    /// `BuildKit`'s chain over (digest, diff ID) pairs: tells differently compressed chains apart.
    BlobChainId
}

fn chain(parent: Option<&[u8; 32]>, top: &[u8; 32]) -> [u8; 32] {
    // image-spec identity.ChainID: the text form of both, a blank between.
    let Some(parent) = parent else { return *top };
    let text = format!("{} {}", Digest(*parent), Digest(*top));
    sha256(text.as_bytes())
}

impl ChainId {
    /// The chain ID of a layer on `parent` (`None` for a base layer).
    pub fn of_layer(parent: Option<ChainId>, diff_id: DiffId) -> Self {
        Self(chain(parent.as_ref().map(|p| &p.0), &diff_id.0))
    }
}

impl BlobChainId {
    /// The blob chain ID of a layer on `parent` (`None` for a base layer).
    pub fn of_layer(parent: Option<BlobChainId>, digest: Digest, diff_id: DiffId) -> Self {
        let layer = chain(Some(&digest.0), &diff_id.0);
        Self(chain(parent.as_ref().map(|p| &p.0), &layer))
    }
}

/// The digest of a solver operation, before the output index goes in.
///
/// Text rather than 32 bytes: `BuildKit` v0.12 uses the JSON of merge and diff operations as it
/// stands, and a source key may be `random:…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpDigest(String);

impl OpDigest {
    /// Takes the text as a candidate; nothing is known of it yet.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Hashes an operation's JSON.
    pub fn of(json: &[u8]) -> Self {
        Self(Digest::of(json).to_string())
    }

    /// The text as it stands in link JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The record digest that this operation's `output` has in a cache config.
    ///
    /// Mirrors `rootKey` in `solver/cachemanager.go`.
    pub fn record_digest(&self, output: i64) -> RecordDigest {
        if self.0.starts_with("random:") {
            return RecordDigest(self.0.clone());
        }
        RecordDigest(Digest::of(format!("{}@{output}", self.0).as_bytes()).to_string())
    }
}

impl fmt::Display for OpDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The digest of a record in a cache config: `sha256:` or, for some sources, `random:` and 64
/// hexadecimal digits. Releases up to v0.17 also export a key without a digest by its bare id of 25
/// lower-case letters and digits (seen where the LLB itself is built).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RecordDigest(String);

impl RecordDigest {
    /// The text, as it stands in the cache config and as a root key's id in `cache.db`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RecordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RecordDigest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("random:"));
        let is_id = || text.len() == 25 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if hex.and_then(parse_hex).is_some() || is_id() {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseDigestError { text: text.to_owned() })
        }
    }
}

impl<'de> Deserialize<'de> for RecordDigest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.hex(), EMPTY[7..]);
    }

    #[test]
    fn refuses_what_is_not_a_digest() {
        let upper = EMPTY.to_uppercase();
        let cases =
            ["", "sha256:", "sha256:../../etc/passwd", &EMPTY[7..], &EMPTY[..70], &upper, "sha512:00"];
        for text in cases {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn chain_of_one_layer_is_the_layer() {
        let diff_id = DiffId::of(b"a");
        assert_eq!(ChainId::of_layer(None, diff_id).as_bytes(), diff_id.as_bytes());
    }

    #[test]
    fn chain_hashes_the_text_forms() {
        let base = ChainId::of_layer(None, DiffId::of(b"a"));
        let text = format!("{} {}", DiffId::of(b"a"), DiffId::of(b"b"));
        assert_eq!(ChainId::of_layer(Some(base), DiffId::of(b"b")), ChainId::of(text.as_bytes()));
    }

    #[test]
    fn blob_chain_tells_compressions_apart() {
        let diff_id = DiffId::of(b"tar");
        let gzip = BlobChainId::of_layer(None, Digest::of(b"gzip"), diff_id);
        let zstd = BlobChainId::of_layer(None, Digest::of(b"zstd"), diff_id);
        assert_ne!(gzip, zstd);
    }

    #[test]
    fn a_record_may_be_named_by_a_bare_id() {
        assert!("mwdy8694o2j9srwi00uh8n3o1".parse::<RecordDigest>().is_ok());
        for text in ["mwdy8694o2j9srwi00uh8n3o", "mwdy8694o2j9srwi00uh8n3O1", "../../etc/passwd/etc/passw"] {
            assert!(text.parse::<RecordDigest>().is_err(), "{text}");
        }
    }

    #[test]
    fn record_digest_hashes_digest_and_output() {
        let op = OpDigest::of(b"{}");
        assert_eq!(op.record_digest(0).as_str(), Digest::of(format!("{op}@0").as_bytes()).to_string());
        let random = OpDigest::new(format!("random:{}", "0".repeat(64)));
        assert_eq!(random.record_digest(3).as_str(), random.as_str());
    }
}
