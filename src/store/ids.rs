//! Names of things in the stores, derived from content.
//!
//! `BuildKit` draws its ids at random. Deriving them makes two bakes of one cache byte-identical, and
//! lets two caches that share layers and keys meet under the same ids.

use std::fmt;
use std::str::FromStr;

use crate::digest::{BlobChainId, ChainId, Hasher, RecordDigest};

use super::schema::{ID_LEN, SNAPSHOT_KEY_PREFIX};

/// A text that is not an id: 25 characters of `[a-z0-9]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid id {text:?}: expected 25 characters, each a lower-case letter or a digit")]
pub struct ParseIdError {
    /// What stood where an id was expected.
    pub text: String,
}

/// 25 base-36 digits over `domain` and `parts`, as long as those of `BuildKit`'s `identity.NewID`.
///
/// Each part goes in with its length, so that no two lists of parts hash the same bytes.
fn derive<'a>(domain: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Hasher::new();
    for part in std::iter::once(domain.as_bytes()).chain(parts) {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let hash = hasher.finish();
    // 128 bits fill 25 digits: 36^24 < 2^128 < 36^25.
    let mut number = hash.iter().take(16).fold(0_u128, |number, &byte| number << 8 | u128::from(byte));
    let mut digits = [b'0'; ID_LEN];
    for digit in digits.iter_mut().rev() {
        let value = u8::try_from(number % 36).unwrap_or_default();
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        number /= 36;
    }
    digits.iter().map(|&digit| char::from(digit)).collect()
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text, as the stores have it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! parse_id {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let valid = text.len() == ID_LEN
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                if valid { Ok(Self(text.to_owned())) } else { Err(ParseIdError { text: text.to_owned() }) }
            }
        }
    };
}

id_type! {
    /// Id of a worker: the content of `workerid`, and the first half of every result in `cache.db`.
    WorkerId
}
id_type! {
    /// Id of a cache record in `metadata_v2.db`; its lease has the same.
    RecordId
}
id_type! {
    /// Id of a cache key in `cache.db`.
    KeyId
}
id_type! {
    /// Key of a layer's snapshot.
    SnapshotKey
}
parse_id!(WorkerId);
parse_id!(RecordId);

impl WorkerId {
    /// The worker of every root that warmkit writes.
    ///
    /// Results name their worker, and a daemon drops those of a worker that it does not have. One
    /// constant id lets caches be baked apart and put together; worker ids only ever meet
    /// those of other workers of the same daemon.
    pub fn warmkit() -> Self {
        Self(derive("warmkit worker", []))
    }
}

impl RecordId {
    /// The record of the layer at the end of this chain of blobs.
    pub fn of(chain: &BlobChainId) -> Self {
        Self(derive("warmkit record", [chain.as_bytes().as_slice()]))
    }
}

/// An alternative for an input of a cache key: the key that it is, and the selector on it.
pub type KeyInput<'a> = (&'a KeyId, &'a str);

impl KeyId {
    /// A key without inputs: its id is its digest, `solver/cachemanager.go` `rootKey`.
    pub fn root(digest: &RecordDigest) -> Self {
        Self(digest.as_str().to_owned())
    }

    /// A key with inputs: per input, its alternatives, in any order.
    pub fn derived(digest: &RecordDigest, inputs: &[Vec<KeyInput<'_>>]) -> Self {
        let mut parts = vec![digest.as_str().as_bytes().to_vec()];
        for alternatives in inputs {
            let mut alternatives = alternatives.clone();
            alternatives.sort_unstable();
            alternatives.dedup();
            parts.push((alternatives.len() as u64).to_be_bytes().to_vec());
            for (key, selector) in alternatives {
                parts.push(key.as_str().as_bytes().to_vec());
                parts.push(selector.as_bytes().to_vec());
            }
        }
        Self(derive("warmkit key", parts.iter().map(Vec::as_slice)))
    }
}

impl SnapshotKey {
    /// The snapshot of the file tree that this chain of layers gives.
    ///
    /// `BuildKit` v0.33.1 and later, `snapshot.LayerSnapshotID`; earlier releases use the bare chain ID and
    /// take this as well, while the later ones extract a layer anew whose key is bare.
    pub fn of(chain: &ChainId) -> Self {
        Self(format!("{SNAPSHOT_KEY_PREFIX}{}", chain.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_as_they_are() {
        // A change here gives every baked root new ids: bakes of one cache would no longer meet.
        let digest: RecordDigest = OPS.parse().unwrap();
        let root = KeyId::root(&digest);
        let cases = [
            (WorkerId::warmkit().to_string(), "4zo0wyspb47sosnta15avz704"),
            (RecordId::of(&BlobChainId::of(b"chain")).to_string(), "apkxpu82tyly976d2a5l04l6k"),
            (root.to_string(), OPS),
            (KeyId::derived(&digest, &[vec![(&root, "")]]).to_string(), "c92zt1hm81kh0m0723af07ri2"),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
    }

    const OPS: &str = "sha256:b65b00b7385dcec2a9a9e2d256f026234121b98f2849b016081e005c7967f6d8";

    #[test]
    fn ids_look_like_those_of_buildkit() {
        for n in 0..200_u32 {
            let id = RecordId::of(&BlobChainId::of(&n.to_be_bytes()));
            assert_eq!(id.as_str().parse::<RecordId>().unwrap(), id);
        }
        for text in [
            "",
            "abc",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
            "abcdefghijklmnopqrstuvwx/",
            "abcdefghijklmnopqrstuvwxyz",
        ] {
            assert!(text.parse::<WorkerId>().is_err(), "{text}");
        }
    }

    #[test]
    fn key_ids_depend_on_each_input() {
        let digest: RecordDigest = OPS.parse().unwrap();
        let (a, b) = (KeyId("a".into()), KeyId("b".into()));
        let id = |inputs: &[Vec<KeyInput<'_>>]| KeyId::derived(&digest, inputs);
        assert_eq!(id(&[vec![(&a, ""), (&b, "")]]), id(&[vec![(&b, ""), (&a, ""), (&a, "")]]));
        let all = [
            id(&[vec![(&a, "")], vec![(&b, "")]]),
            id(&[vec![(&b, "")], vec![(&a, "")]]),
            id(&[vec![(&a, ""), (&b, "")]]),
            id(&[vec![(&a, "b")]]),
            id(&[vec![(&a, "")]]),
            id(&[vec![], vec![(&a, "")]]),
            id(&[]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn snapshot_keys_have_the_prefix() {
        let chain: ChainId = OPS.parse().unwrap();
        assert_eq!(
            SnapshotKey::of(&chain).as_str(),
            format!("buildkit-layer-snapshot-v1-sha256-{}", &OPS["sha256:".len()..])
        );
    }
}
