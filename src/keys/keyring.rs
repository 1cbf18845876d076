//! The proof: a candidate belongs to a record if hashing it gives the record's digest.

use std::collections::HashMap;

use super::writers::Writers;
use super::{Candidates, known};
use crate::digest::{Digest, OpDigest, RecordDigest};

/// The outputs that are tried, the likely ones first. -1 stands for no output.
const OUTPUTS: [i64; 18] = [0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// An operation digest and output that were hashed and gave the digest of the record.
///
/// Only [`Keyring::prove`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenKey {
    digest: OpDigest,
    output: i64,
    name: Option<String>,
    writers: Option<Writers>,
}

impl ProvenKey {
    /// The operation digest, as links in `cache.db` have it.
    pub fn digest(&self) -> &OpDigest {
        &self.digest
    }

    /// Which output of the operation the record is.
    pub fn output(&self) -> i64 {
        self.output
    }

    /// Whether these candidates alone would have proven it.
    pub fn follows_from(&self, candidates: &Candidates) -> bool {
        match candidates.outputs_of(&self.digest) {
            Some(seen) => seen.contains(&self.output) || OUTPUTS.contains(&self.output),
            None => false,
        }
    }

    /// The step as a daemon shows it, such as `[build 2/4] RUN make`, where a source told it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// The proven keys of a cache's records.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: HashMap<RecordDigest, ProvenKey>,
}

impl Keyring {
    /// Tries every candidate, with every output that is likely, against the records.
    ///
    /// Takes a hash for each candidate and output at worst, those that a source told first; it ends as soon as
    /// all records have their key. Records whose digest is not `sha256:` cannot be proven and are passed over.
    pub fn prove<'a>(candidates: &Candidates, records: impl IntoIterator<Item = &'a RecordDigest>) -> Self {
        let mut wanted: HashMap<Digest, &RecordDigest> =
            records.into_iter().filter_map(|record| Some((record.as_str().parse().ok()?, record))).collect();
        let mut keys = HashMap::with_capacity(wanted.len());
        // Where a source tells the output, that is nearly always it.
        let told = candidates
            .outputs()
            .flat_map(|(digest, outputs)| outputs.iter().map(move |&output| (digest, output)));
        let likely =
            OUTPUTS.into_iter().flat_map(|output| candidates.ops().map(move |(digest, _)| (digest, output)));
        for (digest, output) in told.chain(likely) {
            if wanted.is_empty() {
                break;
            }
            let text = format!("{digest}@{output}");
            if let Some(record) = wanted.remove(&Digest::of(text.as_bytes())) {
                let name = candidates.name(digest).map(str::to_owned);
                let writers = candidates.writers(digest).or_else(|| known::writers(digest));
                keys.insert(record.clone(), ProvenKey { digest: digest.clone(), output, name, writers });
            }
        }
        Self { keys }
    }

    /// Takes over the keys of records that have none here.
    pub fn extend(&mut self, other: Self) {
        for (record, proven) in other.keys {
            self.keys.entry(record).or_insert(proven);
        }
    }

    /// The key of a record; `None` where no candidate proved it.
    pub fn get(&self, record: &RecordDigest) -> Option<&ProvenKey> {
        self.keys.get(record)
    }

    /// Which `BuildKit` releases give all of these records the keys that were proven, such as `v0.18 or newer`;
    /// `several releases` where none gives all. `None` where nothing tells: most operations have one key with
    /// all releases, and but for merges and diffs only provenance has the operations.
    pub fn written_by<'a>(&self, records: impl IntoIterator<Item = &'a RecordDigest>) -> Option<String> {
        Writers::of_all(records.into_iter().filter_map(|record| self.get(record)?.writers))
    }

    /// Every key, in no particular order, with its record.
    pub fn iter(&self) -> impl Iterator<Item = (&RecordDigest, &ProvenKey)> {
        self.keys.iter()
    }

    /// How many records have their key.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no record has its key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proves_every_output_that_is_tried() {
        let op = OpDigest::of(b"op");
        let mut candidates = Candidates::new();
        candidates.add(OpDigest::of(b"other"), None);
        candidates.add(op.clone(), Some("step".into()));
        let records: Vec<_> = OUTPUTS.iter().map(|output| op.record_digest(*output)).collect();
        let keyring = Keyring::prove(&candidates, &records);
        assert_eq!(keyring.len(), OUTPUTS.len());
        for (record, output) in records.iter().zip(OUTPUTS) {
            let key = keyring.get(record).unwrap();
            assert_eq!((key.digest(), key.output(), key.name()), (&op, output, Some("step")));
        }
    }

    #[test]
    fn proves_an_output_that_only_a_source_could_tell() {
        let op = OpDigest::of(b"op");
        let records = [op.record_digest(1000), op.record_digest(2)];
        let mut candidates = Candidates::new();
        candidates.add_output(op.clone(), 999);
        assert_eq!(Keyring::prove(&candidates, &records).len(), 1);
        candidates.add_output(op.clone(), 1000);
        let keyring = Keyring::prove(&candidates, &records);
        assert_eq!(keyring.get(&records[0]).unwrap().output(), 1000);
        assert_eq!(keyring.get(&records[1]).unwrap().output(), 2);
    }

    #[test]
    fn proves_digests_that_are_json() {
        // v0.12 keeps the JSON of merge and diff unhashed.
        let op = OpDigest::new(r#"{"Type":"buildkit.merge.v0"}"#);
        let mut candidates = Candidates::new();
        candidates.add(op.clone(), None);
        let record = op.record_digest(0);
        assert_eq!(Keyring::prove(&candidates, [&record]).get(&record).unwrap().digest(), &op);
    }

    #[test]
    fn proves_nothing_without_a_match() {
        let mut candidates = Candidates::new();
        candidates.add(OpDigest::of(b"op"), None);
        // What is no hash is no proof, even where the text is the same.
        let random = OpDigest::new(format!("random:{}", "0".repeat(64)));
        candidates.add(random.clone(), None);
        let records = [OpDigest::of(b"another").record_digest(0), random.record_digest(0)];
        assert!(Keyring::prove(&candidates, &records).is_empty());
    }
}
