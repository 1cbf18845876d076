//! Reader, writer and check against each other, on random trees and on damaged files.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::format::{self, Meta};
use super::{Bucket, BucketRef, Database, Error, FaultKind, Item, PageSize};

/// What a test puts in and gets back.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Value(Vec<u8>),
    Bucket(u64, BTreeMap<Vec<u8>, Tree>),
}

fn fill(bucket: &mut Bucket, sequence: u64, entries: &BTreeMap<Vec<u8>, Tree>) {
    bucket.set_sequence(sequence);
    for (key, tree) in entries {
        match tree {
            Tree::Value(value) => bucket.put(key.clone(), value.clone()),
            Tree::Bucket(sequence, entries) => fill(bucket.bucket(key.clone()), *sequence, entries),
        }
    }
}

fn drain(bucket: BucketRef<'_>) -> Result<Tree, Error> {
    let mut entries = BTreeMap::new();
    for entry in &bucket {
        let tree = match entry? {
            (key, Item::Value(value)) => (key.to_vec(), Tree::Value(value.to_vec())),
            (key, Item::Bucket(bucket)) => (key.to_vec(), drain(bucket)?),
        };
        entries.insert(tree.0, tree.1);
    }
    Ok(Tree::Bucket(bucket.sequence(), entries))
}

fn tree() -> impl Strategy<Value = Tree> {
    let value =
        prop_oneof![9 => vec(any::<u8>(), 0..80), 1 => vec(any::<u8>(), 0..9000)].prop_map(Tree::Value);
    let leaf = (any::<u64>(), btree_map(vec(any::<u8>(), 1..30), value, 0..60))
        .prop_map(|(sequence, entries)| Tree::Bucket(sequence, entries));
    leaf.prop_recursive(3, 300, 8, |inner| {
        (any::<u64>(), btree_map(vec(any::<u8>(), 1..12), inner, 0..8))
            .prop_map(|(sequence, entries)| Tree::Bucket(sequence, entries))
    })
}

fn page_size() -> impl Strategy<Value = PageSize> {
    (10..=16_u32).prop_map(|shift| PageSize::try_from(1_usize << shift).unwrap())
}

fn bytes_of(tree: &Tree, page_size: PageSize) -> Vec<u8> {
    let Tree::Bucket(sequence, entries) = tree else { panic!("the root is a bucket") };
    let mut root = Bucket::new();
    fill(&mut root, *sequence, entries);
    root.to_bytes(page_size).unwrap()
}

/// Reads all that can be read; what counts is that this returns.
fn read_all(bytes: Vec<u8>) -> Option<Tree> {
    let database = Database::from_bytes(bytes).ok()?;
    let _ = database.check();
    drain(database.root()).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_is_read(tree in tree(), page_size in page_size()) {
        let bytes = bytes_of(&tree, page_size);
        prop_assert_eq!(bytes.len() % page_size.bytes(), 0);
        let database = Database::from_bytes(bytes).unwrap();
        prop_assert_eq!(database.page_size(), page_size.bytes());
        prop_assert_eq!(database.check(), vec![]);
        prop_assert_eq!(drain(database.root()).unwrap(), tree);
    }

    #[test]
    fn each_key_is_found_and_seeked(
        keys in btree_map(vec(any::<u8>(), 1..20), vec(any::<u8>(), 0..40), 0..500),
        probes in vec(vec(any::<u8>(), 0..3), 20),
    ) {
        let mut root = Bucket::new();
        for (key, value) in &keys {
            root.put(key.clone(), value.clone());
        }
        let bytes = root.to_bytes(PageSize::try_from(1024).unwrap()).unwrap();
        let database = Database::from_bytes(bytes).unwrap();
        for (key, value) in &keys {
            prop_assert_eq!(database.root().get(key).unwrap(), Some(value.as_slice()));
        }
        for probe in probes {
            let expected: Vec<_> = keys.range(probe.clone()..).map(|(key, _)| key.as_slice()).collect();
            let found: Vec<_> = database.root().iter_from(&probe).map(|entry| entry.unwrap().0).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(database.root().get(&probe).unwrap(), keys.get(&probe).map(Vec::as_slice));
        }
    }

    #[test]
    fn damage_never_panics(
        tree in tree(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = bytes_of(&tree, PageSize::try_from(1024).unwrap());
        let len = bytes.len();
        for (at, byte) in flips {
            bytes[at.index(len)] ^= byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(len));
        }
        // With the meta pages as they were, so that damage gets past them, too.
        let whole = bytes_of(&tree, PageSize::try_from(1024).unwrap());
        let mut with_meta = bytes.clone();
        let metas = with_meta.len().min(2048);
        with_meta[..metas].copy_from_slice(&whole[..metas]);
        read_all(bytes);
        read_all(with_meta);
    }

    #[test]
    fn hostile_headers_never_panic(
        tree in tree(),
        words in vec((any::<prop::sample::Index>(), prop_oneof![
            Just(0_u64), Just(u64::MAX), Just(1 << 32), 0..20_u64, any::<u64>(),
        ]), 1..60),
    ) {
        // Aimed at the first 64 bytes of each page, where headers and elements stand.
        let mut bytes = bytes_of(&tree, PageSize::try_from(1024).unwrap());
        let pages = bytes.len() / 1024 - 2;
        for (at, word) in words {
            let at = at.index(pages * 16);
            let offset = 2048 + at / 16 * 1024 + at % 16 * 4;
            bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
        }
        read_all(bytes);
    }
}

/// A database of one bucket `b` with `count` keys `k0000…`, pages of 1 KiB.
fn sample(count: usize) -> Vec<u8> {
    let mut root = Bucket::new();
    let bucket = root.bucket("b");
    for index in 0..count {
        bucket.put(format!("k{index:04}"), format!("value {index}"));
    }
    root.to_bytes(PageSize::try_from(1024).unwrap()).unwrap()
}

fn kinds(bytes: Vec<u8>) -> Vec<FaultKind> {
    Database::from_bytes(bytes).unwrap().check().into_iter().map(|fault| fault.kind).collect()
}

#[test]
fn same_tree_same_bytes() {
    assert_eq!(sample(500), sample(500));
}

#[test]
fn smallest_file_is_what_bbolt_creates() {
    let bytes = Bucket::new().to_bytes(PageSize::DEFAULT).unwrap();
    let page = |n: usize| &bytes[n * 4096..n * 4096 + 24];
    assert_eq!(bytes.len(), 4 * 4096);
    let word = u64::to_le_bytes;
    // id, flags, count, overflow; then the start of the content
    assert_eq!(page(0), [word(0), word(4), word(0x0000_0002_ED0C_DAED)].concat());
    assert_eq!(page(1), [word(1), word(4), word(0x0000_0002_ED0C_DAED)].concat());
    assert_eq!(page(2), [word(2), word(16), word(0)].concat());
    assert_eq!(page(3), [word(3), word(2), word(0)].concat());
    // Page size and flags, root, sequence, freelist, high-water mark, txid, checksum.
    let meta: Vec<u64> =
        bytes[4096 + 24..4096 + 80].chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
    assert_eq!(meta[..6], [4096, 3, 0, 2, 4, 1]);
    assert_eq!(meta[6], format::fnv1a(&bytes[4096 + 16..4096 + 72]));
}

#[test]
fn small_buckets_stand_in_their_parents() {
    // Header 16, element 16, key 1: a value of 223 bytes fills a quarter of 1 KiB exactly.
    for (len, pages) in [(223, 4), (224, 5)] {
        let mut root = Bucket::new();
        root.bucket("small").put("k", vec![0; len]);
        assert_eq!(root.to_bytes(PageSize::try_from(1024).unwrap()).unwrap().len(), pages * 1024, "{len}");
    }
    let mut root = Bucket::new();
    root.bucket("outer").bucket("inner").put("k", "v");
    let bytes = root.to_bytes(PageSize::DEFAULT).unwrap();
    assert_eq!(bytes.len(), 5 * 4096, "a bucket with a bucket in it has a page of its own");
}

#[test]
fn no_page_of_a_large_bucket_is_nearly_empty() {
    for count in [60, 61, 62, 63, 200, 1000, 5000] {
        let bytes = sample(count);
        let database = Database::from_bytes(bytes).unwrap();
        let mut id = 3;
        while let Ok(page) = database.page(id) {
            let root = id + 2 >= database.meta.high_water;
            assert!(root || page.count >= 8, "{count} keys: page {id} has {}", page.count);
            id += database.span(&page);
        }
    }
}

#[test]
fn refuses_what_bbolt_cannot_hold() {
    let cases: [(Vec<u8>, bool); 4] =
        [(vec![], false), (vec![1], true), (vec![1; 32_768], true), (vec![1; 32_769], false)];
    for (key, valid) in cases {
        let mut root = Bucket::new();
        root.put(key.clone(), "");
        assert_eq!(root.to_bytes(PageSize::DEFAULT).is_ok(), valid, "{} bytes", key.len());
    }
    for size in [0, 512, 1000, 4095, 1 << 17] {
        assert!(PageSize::try_from(size).is_err(), "{size}");
    }
}

#[test]
fn the_later_valid_meta_page_counts() {
    let good = sample(10);
    let reads = |bytes: &[u8]| Database::from_bytes(bytes.to_vec()).map(|d| d.meta.txid);
    assert_eq!(reads(&good).unwrap(), 1);
    let mut torn = good.clone();
    torn[1024 + 40] ^= 1;
    assert_eq!(reads(&torn).unwrap(), 0);
    assert!(matches!(kinds(torn.clone())[..], [FaultKind::Meta(_)]));
    let mut first = good.clone();
    first[20] ^= 1;
    assert_eq!(reads(&first).unwrap(), 1, "the second page is found without the first");
    torn[20] ^= 1;
    let message = reads(&torn).unwrap_err().to_string();
    assert!(message.contains("meta page 0: unknown version 3"), "{message}");
    for short in [0, 10, 80, 1024] {
        let found = reads(&good[..short]);
        assert_eq!(found.is_ok(), short >= 80, "{short} bytes");
    }
    assert!(Database::from_bytes(b"SQLite format 3".repeat(1000)).is_err());
}

#[test]
fn check_names_each_fault() {
    let good = sample(500);
    assert_eq!(kinds(good.clone()), []);
    let database = Database::from_bytes(good.clone()).unwrap();
    let high_water = usize::try_from(database.meta.high_water).unwrap();
    let root = usize::try_from(database.meta.root).unwrap();
    let has = |damage: &dyn Fn(&mut Vec<u8>), expected: &dyn Fn(&FaultKind) -> bool| {
        let mut bytes = good.clone();
        damage(&mut bytes);
        let found = kinds(bytes);
        assert!(found.iter().any(expected), "{found:?}");
    };
    let page = |n: usize| n * 1024;
    has(&|b| b[page(3) + 8] = 4, &|k| matches!(k, FaultKind::WrongType { .. }));
    has(&|b| b[page(3)] = 9, &|k| matches!(k, FaultKind::WrongId { found: 9 }));
    has(&|b| b[page(3) + 12] = 200, &|k| matches!(k, FaultKind::OutOfBounds { .. }));
    has(&|b| b[page(3) + 12] = 1, &|k| matches!(k, FaultKind::MultipleReferences));
    has(&|b| b[page(3) + 16 + 4] = 255, &|k| matches!(k, FaultKind::Element { index: 0 }));
    has(&|b| b.truncate(page(high_water - 1)), &|k| matches!(k, FaultKind::Truncated { .. }));
    // The bucket's root page, second to last, is its top branch: let two elements name one child.
    let branch = page(root - 1) + 16;
    has(&|b| b.copy_within(branch + 8..branch + 16, branch + 24), &|k| {
        matches!(k, FaultKind::MultipleReferences)
    });
    has(&|b| b.copy_within(branch + 8..branch + 16, branch + 24), &|k| matches!(k, FaultKind::Leaked));
    // A key of the first leaf made larger than all that follow, the last one smaller than all.
    let first = good.windows(5).position(|w| w == b"k0001").unwrap();
    has(&|b| b[first] = b'z', &|k| matches!(k, FaultKind::KeyOrder { .. }));
    has(&|b| b[first] = b'z', &|k| matches!(k, FaultKind::KeyRange { .. }));
    // A freelist that names a page in use, twice, and one beyond the mark.
    let free = page(2);
    let list = |b: &mut Vec<u8>| {
        b[free + 10] = 3;
        b[free + 16] = 3;
        b[free + 24] = 3;
        b[free + 32..free + 40].copy_from_slice(&[255; 8]);
    };
    has(&list, &|k| matches!(k, FaultKind::FreeInUse));
    has(&list, &|k| matches!(k, FaultKind::OutOfBounds { .. }));
}

#[test]
fn a_free_page_is_free_once_and_leaked_without_a_list() {
    // One more page than the tree has, and a freelist that names it.
    let mut bytes = sample(5);
    let mut meta = Database::from_bytes(bytes.clone()).unwrap().meta;
    let extra = u8::try_from(meta.high_water).unwrap();
    bytes.resize(bytes.len() + 1024, 0);
    meta.high_water += 1;
    bytes[1024 + 16..1024 + 80].copy_from_slice(&meta.to_bytes());
    assert_eq!(kinds(bytes.clone()), [FaultKind::Leaked]);
    let mut listed = bytes.clone();
    (listed[2048 + 10], listed[2048 + 16]) = (1, extra);
    assert_eq!(kinds(listed.clone()), []);
    (listed[2048 + 10], listed[2048 + 24]) = (2, extra);
    assert_eq!(kinds(listed), [FaultKind::FreeTwice]);
    // Without a freelist, as a running daemon leaves it, free pages are not named at all.
    let meta = Meta { freelist: format::NO_FREELIST, ..meta };
    bytes[1024 + 16..1024 + 80].copy_from_slice(&meta.to_bytes());
    let database = Database::from_bytes(bytes).unwrap();
    assert!(!database.has_freelist());
    assert_eq!(database.check(), vec![]);
}

#[test]
fn a_cycle_is_an_error() {
    let mut bytes = sample(500);
    let database = Database::from_bytes(bytes.clone()).unwrap();
    let top = usize::try_from(database.meta.root - 1).unwrap();
    // The first child of the bucket's top branch is the branch itself.
    bytes[top * 1024 + 24..top * 1024 + 32].copy_from_slice(&(top as u64).to_le_bytes());
    let database = Database::from_bytes(bytes).unwrap();
    let bucket = database.root().bucket(b"b").unwrap().unwrap();
    assert!(bucket.get(b"k0000").is_err());
    let items: Vec<_> = bucket.iter().collect();
    assert!(items.len() == 1 && items[0].is_err());
    assert!(database.check().iter().any(|fault| fault.kind == FaultKind::MultipleReferences));
}

#[test]
fn overlapping_inline_buckets_are_an_error() {
    // Buckets inside one another whose elements all share one tail could be walked for ever.
    let mut root = Bucket::new();
    let bucket = root.bucket("b");
    bucket.put("k1", "same");
    bucket.put("k2", "same");
    let bytes = root.to_bytes(PageSize::DEFAULT).unwrap();
    let database = Database::from_bytes(bytes.clone()).unwrap();
    assert!(drain(database.root()).is_ok());
    let element = bytes.windows(6).position(|w| w == b"k1same").unwrap() - 32;
    let mut shared = bytes;
    // The first element's position now is that of the second's data.
    let position = u32::from_le_bytes(shared[element + 20..element + 24].try_into().unwrap()) + 16;
    shared[element + 4..element + 8].copy_from_slice(&position.to_le_bytes());
    shared[element + 12] += 6;
    let database = Database::from_bytes(shared).unwrap();
    assert!(drain(database.root()).is_err());
}
