//! The keys file: operation digests and outputs by themselves, and nothing else of a build.
//!
//! ```text
//! {"kind": "warmkit-keys", "version": 1,
//!  "keys": [{"digest": "sha256:…", "outputs": [0]},     an operation digest, and which outputs were seen
//!           {"diff": [lower, upper], "outputs": [0]},    v0.12: {"Type":"buildkit.diff.v0","Diff":…}
//!           {"merge": [input, …], "outputs": [0]}]}      v0.12: {"Type":"buildkit.merge.v0","Merge":…}
//! ```
//!
//! One line for each key, sorted; equal keys are one, with the outputs of all. So equal content is equal
//! bytes, and the union of files does not depend on their order. docs/keys-file.md has it for readers.
//!
//! `BuildKit` v0.12 takes the JSON of merge and diff operations as their digest (`solver/llbsolver/ops/`
//! `merge.go`, `diff.go` there). That text has the numbers of inputs in it and nothing else, so these
//! numbers are what is written, and no text of any kind fits into the format.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Candidates, Keyring};
use crate::digest::{Digest, OpDigest};

/// The longest file that is read or written, in bytes: several 100,000 keys.
pub const MAX_BYTES: u64 = 32 << 20;

const KIND: &str = "warmkit-keys";
const VERSION: u64 = 1;
/// The most inputs that a merge has here, and the most outputs that a key has.
const MAX_INDEXES: usize = 1024;
/// Indexes of inputs and outputs, of which -1 is none.
const INDEXES: std::ops::RangeInclusive<i64> = -1..=(i32::MAX as i64);

/// What is wrong with a keys file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Longer than any sensible one.
    #[error("a keys file of more than {limit} bytes is neither read nor written")]
    TooLarge {
        /// The most that is, in bytes.
        limit: u64,
    },
    /// Not JSON, or members and values that the format does not have.
    #[error("not a valid keys file: {source}")]
    Json {
        /// What the parser said, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// JSON of another application.
    #[error("not a keys file: it has no \"kind\": \"{KIND}\"; `warmkit keys` writes them")]
    Kind,
    /// A format of another time.
    #[error("a keys file of version {found}, and this warmkit reads version {VERSION}: use a newer warmkit")]
    Version {
        /// As the file says.
        found: u64,
    },
}

/// One operation digest in a form that cannot hold text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Digest(Digest),
    /// Lower and upper input of a diff.
    Diff([i64; 2]),
    /// The inputs of a merge.
    Merge(Vec<i64>),
}

impl Key {
    /// `None` where the text is none that the format can say.
    fn of(digest: &OpDigest) -> Option<Self> {
        #[derive(Deserialize)]
        struct Text {
            #[serde(rename = "Merge")]
            merge: Option<Inputs>,
            #[serde(rename = "Diff")]
            diff: Option<Sides>,
        }
        #[derive(Deserialize)]
        struct Inputs {
            inputs: Vec<Input>,
        }
        #[derive(Deserialize)]
        struct Sides {
            lower: Input,
            upper: Input,
        }
        #[derive(Deserialize)]
        struct Input {
            input: i64,
        }
        let text = digest.as_str();
        if let Ok(digest) = text.parse() {
            return Some(Self::Digest(digest));
        }
        let key = match serde_json::from_str(text).ok()? {
            Text { merge: Some(merge), diff: None } => {
                Self::Merge(merge.inputs.into_iter().map(|input| input.input).collect())
            }
            Text { merge: None, diff: Some(diff) } => Self::Diff([diff.lower.input, diff.upper.input]),
            _ => return None,
        };
        // Only what comes out again exactly as it went in.
        (key.is_sound() && key.to_op_digest() == *digest).then_some(key)
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Digest(_) => true,
            Self::Diff(sides) => sides.iter().all(|input| INDEXES.contains(input)),
            Self::Merge(inputs) => {
                (1..=MAX_INDEXES).contains(&inputs.len())
                    && inputs.iter().all(|input| INDEXES.contains(input))
            }
        }
    }

    /// As links in `cache.db` have it.
    fn to_op_digest(&self) -> OpDigest {
        let input = |input: &i64| format!("{{\"input\":{input}}}");
        match self {
            Self::Digest(digest) => OpDigest::new(digest.to_string()),
            Self::Diff([lower, upper]) => OpDigest::new(format!(
                "{{\"Type\":\"buildkit.diff.v0\",\"Diff\":{{\"lower\":{},\"upper\":{}}}}}",
                input(lower),
                input(upper)
            )),
            Self::Merge(inputs) => {
                let inputs: Vec<_> = inputs.iter().map(input).collect();
                let inputs = inputs.join(",");
                OpDigest::new(format!(
                    "{{\"Type\":\"buildkit.merge.v0\",\"Merge\":{{\"inputs\":[{inputs}]}}}}"
                ))
            }
        }
    }
}

/// What a keys file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeysFile {
    keys: BTreeMap<Key, BTreeSet<i64>>,
}

impl KeysFile {
    /// What was proven: of each key its operation digest and output.
    pub fn of_keyring(keyring: &Keyring) -> Self {
        let mut file = Self::default();
        for (_, proven) in keyring.iter() {
            file.add(proven.digest(), &[proven.output()]);
        }
        file
    }

    /// What may be a key. Candidates that no record can have (a text that is neither a digest nor a merge
    /// or diff of v0.12) are left out.
    pub fn of_candidates(candidates: &Candidates) -> Self {
        let mut file = Self::default();
        for (digest, outputs) in candidates.outputs() {
            file.add(digest, outputs);
        }
        file
    }

    fn add(&mut self, digest: &OpDigest, outputs: &[i64]) {
        if let Some(key) = Key::of(digest) {
            let outputs = outputs.iter().copied().filter(|output| INDEXES.contains(output));
            self.add_outputs(key, outputs);
        }
    }

    /// Adds outputs of one key; of too many the smallest stay, in whatever order they come.
    fn add_outputs(&mut self, key: Key, outputs: impl IntoIterator<Item = i64>) {
        let own = self.keys.entry(key).or_default();
        for output in outputs {
            own.insert(output);
            if own.len() > MAX_INDEXES {
                own.pop_last();
            }
        }
    }

    /// Takes over all that `other` has.
    pub fn merge(&mut self, other: Self) {
        for (key, outputs) in other.keys {
            self.add_outputs(key, outputs);
        }
    }

    /// How many distinct operation digests there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many operation digests of these `other` does not have.
    pub fn missing_from(&self, other: &Self) -> usize {
        self.keys.keys().filter(|key| !other.keys.contains_key(key)).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// As candidates: that they stand in a file proves nothing.
    pub fn candidates(&self) -> Candidates {
        let mut candidates = Candidates::new();
        for (key, outputs) in &self.keys {
            let digest = key.to_op_digest();
            candidates.add(digest.clone(), None);
            for output in outputs {
                candidates.add_output(digest.clone(), *output);
            }
        }
        candidates
    }

    /// Parses a file.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Json`], [`Error::Kind`], [`Error::Version`]. Nothing of a file that
    /// is wrong somewhere is taken.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            kind: Option<String>,
            version: Option<u64>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            #[serde(rename = "kind")]
            _kind: IgnoredAny,
            #[serde(rename = "version")]
            _version: IgnoredAny,
            keys: Keys,
        }
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::TooLarge { limit: MAX_BYTES });
        }
        let json = |source| Error::Json { source };
        // What it is comes first: another version may have other members.
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        if head.kind.as_deref() != Some(KIND) {
            return Err(Error::Kind);
        }
        if let Some(found) = head.version.filter(|version| *version != VERSION) {
            return Err(Error::Version { found });
        }
        let document: Document = serde_json::from_slice(bytes).map_err(json)?;
        Ok(Self { keys: document.keys.0 })
    }

    /// The file, ending in a line break. The same keys give the same bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where nobody could read it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut text = format!("{{\"kind\":\"{KIND}\",\"version\":{VERSION},\"keys\":[");
        for (at, (key, outputs)) in self.keys.iter().enumerate() {
            text.push_str(if at == 0 { "\n" } else { ",\n" });
            let _ = match key {
                Key::Digest(digest) => write!(text, "{{\"digest\":\"{digest}\""),
                Key::Diff(sides) => write!(text, "{{\"diff\":{}", numbers(sides)),
                Key::Merge(inputs) => write!(text, "{{\"merge\":{}", numbers(inputs)),
            };
            let _ = write!(text, ",\"outputs\":{}}}", numbers(outputs));
        }
        text.push_str("\n]}\n");
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::TooLarge { limit: MAX_BYTES });
        }
        Ok(text.into_bytes())
    }
}

fn numbers<'a>(numbers: impl IntoIterator<Item = &'a i64>) -> String {
    let numbers: Vec<_> = numbers.into_iter().map(ToString::to_string).collect();
    format!("[{}]", numbers.join(","))
}

/// Reads a file; see [`KeysFile::parse`].
pub fn load(path: &Path) -> Result<KeysFile, super::Error> {
    let io = |source| super::Error::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(KeysFile::parse(&bytes)?)
}

/// The candidates in a keys file.
pub fn read(bytes: &[u8]) -> Result<Candidates, Error> {
    KeysFile::parse(bytes).map(|file| file.candidates())
}

/// A keys file with these candidates; see [`KeysFile::of_candidates`].
pub fn write(candidates: &Candidates) -> Result<Vec<u8>, Error> {
    KeysFile::of_candidates(candidates).to_bytes()
}

/// `keys`, put together while it is read: a file of a million equal keys takes the memory of one.
struct Keys(BTreeMap<Key, BTreeSet<i64>>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of keys")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
                let mut file = KeysFile::default();
                while let Some(Entry { key, outputs }) = list.next_element()? {
                    file.add_outputs(key, outputs);
                }
                Ok(Keys(file.keys))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// Indexes of inputs or outputs, and not more than anything has.
struct Indexes(Vec<i64>);

impl<'de> Deserialize<'de> for Indexes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Indexes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_INDEXES} numbers from {}", INDEXES.start())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Indexes, A::Error> {
                let mut indexes = Vec::new();
                while let Some(index) = list.next_element()? {
                    if indexes.len() == MAX_INDEXES {
                        return Err(A::Error::invalid_length(MAX_INDEXES + 1, &self));
                    }
                    if !INDEXES.contains(&index) {
                        return Err(A::Error::invalid_value(Unexpected::Signed(index), &self));
                    }
                    indexes.push(index);
                }
                Ok(Indexes(indexes))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// One item of `keys`.
struct Entry {
    key: Key,
    outputs: Vec<i64>,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            digest: Option<Digest>,
            diff: Option<Indexes>,
            merge: Option<Indexes>,
            outputs: Indexes,
        }
        let Raw { digest, diff, merge, outputs } = Raw::deserialize(deserializer)?;
        let key = match (digest, diff, merge) {
            (Some(digest), None, None) => Ok(Key::Digest(digest)),
            (None, Some(Indexes(sides)), None) => {
                sides.try_into().map(Key::Diff).map_err(|_| "a diff has two inputs")
            }
            (None, None, Some(Indexes(inputs))) if inputs.is_empty() => Err("a merge has inputs"),
            (None, None, Some(Indexes(inputs))) => Ok(Key::Merge(inputs)),
            _ => Err("a key has one of \"digest\", \"diff\" and \"merge\""),
        };
        Ok(Self { key: key.map_err(D::Error::custom)?, outputs: outputs.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const MERGE: &str = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":0},{"input":1}]}}"#;
    const DIFF: &str = r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{"input":-1},"upper":{"input":0}}}"#;

    fn file(keys: &str) -> String {
        format!("{{\"kind\":\"warmkit-keys\",\"version\":1,\"keys\":[{keys}]}}")
    }

    #[test]
    fn what_is_written_is_sorted_and_read_back() {
        let mut candidates = Candidates::new();
        candidates.add_output(OpDigest::new(MERGE), 0);
        candidates.add(OpDigest::new(DIGEST), Some("[1/2] RUN secret".into()));
        candidates.add_output(OpDigest::new(DIFF), 0);
        candidates.add_output(OpDigest::new(DIFF), -1);
        let bytes = write(&candidates).unwrap();
        let expected = [
            "{\"kind\":\"warmkit-keys\",\"version\":1,\"keys\":[\n",
            "{\"digest\":\"",
            DIGEST,
            "\",\"outputs\":[]},\n",
            "{\"diff\":[-1,0],\"outputs\":[-1,0]},\n",
            "{\"merge\":[0,1],\"outputs\":[0]}\n]}\n",
        ];
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected.concat());
        let back = read(&bytes).unwrap();
        assert_eq!(back.len(), 3);
        assert!(back.ops().all(|(_, name)| name.is_none()));
        assert!([DIGEST, MERGE, DIFF].iter().all(|text| back.ops().any(|(op, _)| op.as_str() == *text)));
        assert_eq!(write(&back).unwrap(), bytes);
        let empty = write(&Candidates::new()).unwrap();
        assert!(read(&empty).unwrap().is_empty());
    }

    #[test]
    fn no_text_gets_in() {
        let texts = [
            "random:0000000000000000000000000000000000000000000000000000000000000000",
            "hunter2",
            "",
            r#"{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["hunter2"]}}}"#,
            r#"{"Type":"hunter2","Merge":{"inputs":[{"input":0},{"input":1}]}}"#,
            r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":0},{"input":1,"hunter":2}]}}"#,
            r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}"#,
            r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[]}}"#,
            r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":-7}]}}"#,
            r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{"input":0},"upper":{"input":1}} }"#,
            "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ];
        let mut candidates = Candidates::new();
        for text in texts {
            candidates.add(OpDigest::new(text), None);
        }
        assert_eq!(write(&candidates).unwrap(), write(&Candidates::new()).unwrap());
    }

    #[test]
    fn equal_keys_are_one() {
        let one = format!("{{\"digest\":\"{DIGEST}\",\"outputs\":[1]}}");
        let two = format!("{{\"outputs\":[0,1,0],\"digest\":\"{DIGEST}\"}}");
        let read = KeysFile::parse(file(&format!("{one},{two}")).as_bytes()).unwrap();
        assert_eq!(read.len(), 1);
        let candidates = read.candidates();
        assert_eq!(candidates.outputs().next().unwrap().1, [0, 1]);
    }

    #[test]
    fn says_what_is_wrong() {
        let many = (0..=MAX_INDEXES).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let wide = vec!["0"; MAX_INDEXES + 1].join(",");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let key = |rest: &str| file(&format!("{{\"digest\":\"{DIGEST}\",\"outputs\":[0]{rest}}}"));
        let cases = [
            (String::new(), "not a valid keys file: EOF"),
            ("<html>".to_owned(), "not a valid keys file"),
            ("null".to_owned(), "not a valid keys file"),
            ("{}".to_owned(), "not a keys file: it has no \"kind\""),
            ("{\"kind\":[\"warmkit-keys\"]}".to_owned(), "invalid type: sequence, expected a string"),
            ("{\"kind\":\"other\",\"version\":1}".to_owned(), "not a keys file"),
            ("{\"predicateType\":\"https://slsa.dev/provenance/v1\"}".to_owned(), "not a keys file"),
            ("{\"kind\":\"warmkit-keys\"}".to_owned(), "missing field `version`"),
            ("{\"kind\":\"warmkit-keys\",\"version\":2,\"rings\":{}}".to_owned(), "of version 2, and this"),
            ("{\"kind\":\"warmkit-keys\",\"version\":1}".to_owned(), "missing field `keys`"),
            ("{\"kind\":\"warmkit-keys\",\"version\":1,\"keys\":{}}".to_owned(), "expected a list of keys"),
            (
                "{\"kind\":\"warmkit-keys\",\"kind\":\"warmkit-keys\",\"version\":1}".to_owned(),
                "duplicate field",
            ),
            (file("").replace("[]", "[],\"keys\":[]"), "duplicate field `keys`"),
            (file("").replace("[]", "[],\"more\":1"), "unknown field `more`"),
            (file("") + "x", "trailing characters"),
            (key(",\"outputs\":[1]"), "duplicate field `outputs`"),
            (key(",\"name\":\"RUN x\""), "unknown field `name`"),
            (key(",\"merge\":[0,1]"), "one of \"digest\", \"diff\" and \"merge\""),
            (file("{\"outputs\":[]}"), "one of \"digest\", \"diff\" and \"merge\""),
            (file("{\"digest\":\"sha256:ab\",\"outputs\":[]}"), "invalid digest"),
            (file("{\"digest\":\"../../etc\",\"outputs\":[]}"), "invalid digest"),
            (file("{\"digest\":7,\"outputs\":[]}"), "invalid type"),
            (file(&format!("{{\"digest\":\"{DIGEST}\"}}")), "missing field `outputs`"),
            (file("{\"diff\":[0],\"outputs\":[]}"), "a diff has two inputs"),
            (file("{\"diff\":[0,1,2],\"outputs\":[]}"), "a diff has two inputs"),
            (
                file("{\"merge\":[-2],\"outputs\":[]}"),
                "invalid value: integer `-2`, expected a list of at most 1024 numbers from -1",
            ),
            (file("{\"merge\":[],\"outputs\":[]}"), "a merge has inputs"),
            (
                file(&format!("{{\"merge\":[{wide}],\"outputs\":[]}}")),
                "invalid length 1025, expected a list of at most 1024 numbers",
            ),
            (
                file("{\"diff\":[0,1],\"outputs\":[-2]}"),
                "integer `-2`, expected a list of at most 1024 numbers from -1",
            ),
            (file("{\"diff\":[0,1],\"outputs\":[1e3]}"), "invalid type"),
            (file("{\"diff\":[0,1],\"outputs\":[99999999999999999999]}"), "invalid type"),
            (file(&format!("{{\"diff\":[0,1],\"outputs\":[{many}]}}")), "invalid length 1025"),
            (file(&format!("{{\"x\":{deep}}}")), "unknown field `x`"),
            (deep.clone(), "not a valid keys file"),
            (file("").replace("[]", &deep), "not a valid keys file"),
            (format!("{{\"x\":{deep}}}"), "it has no \"kind\""),
        ];
        for (text, expected) in cases {
            let message = KeysFile::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(expected), "{}: {message}", &text[..text.len().min(200)]);
        }
        let huge = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
        assert!(matches!(KeysFile::parse(&huge), Err(Error::TooLarge { .. })));
    }
}
