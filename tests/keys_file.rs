//! The promise: a keys file says what was put into it, in one form; files can be put together in any
//! order; and no file, however it is made, makes the program panic or take a wrong key.

#![allow(clippy::unwrap_used)] // a test that cannot make its input has failed

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use warmkit::digest::OpDigest;
use warmkit::keys::file::{self, KeysFile};
use warmkit::keys::{Candidates, Keyring};

fn any_digest() -> impl Strategy<Value = OpDigest> {
    let input = -1..4_i64;
    prop_oneof![
        4 => any::<u8>().prop_map(|n| OpDigest::of(&[n])),
        1 => (input.clone(), input.clone()).prop_map(|(lower, upper)| {
            OpDigest::new(format!(
                "{{\"Type\":\"buildkit.diff.v0\",\"Diff\":{{\"lower\":{{\"input\":{lower}}},\
                 \"upper\":{{\"input\":{upper}}}}}}}"
            ))
        }),
        1 => proptest::collection::vec(input, 1..4).prop_map(|inputs| {
            let inputs: Vec<_> = inputs.iter().map(|input| format!("{{\"input\":{input}}}")).collect();
            let inputs = inputs.join(",");
            OpDigest::new(format!("{{\"Type\":\"buildkit.merge.v0\",\"Merge\":{{\"inputs\":[{inputs}]}}}}"))
        }),
    ]
}

fn any_candidates() -> impl Strategy<Value = Candidates> {
    let outputs = proptest::collection::vec(-1..20_i64, 0..3);
    proptest::collection::vec((any_digest(), outputs), 0..12).prop_map(|keys| {
        let mut candidates = Candidates::new();
        for (digest, outputs) in keys {
            candidates.add(digest.clone(), Some("[1/2] RUN secret".to_owned()));
            for output in outputs {
                candidates.add_output(digest.clone(), output);
            }
        }
        candidates
    })
}

fn union(files: &[&KeysFile]) -> Vec<u8> {
    let mut all = KeysFile::default();
    for file in files {
        all.merge((*file).clone());
    }
    all.to_bytes().unwrap()
}

/// Members and values that mean something in a keys file, and any other ones.
fn any_json() -> impl Strategy<Value = Value> {
    let digest = OpDigest::of(b"one").to_string();
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2..3_i64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(Value::from("warmkit-keys")),
        Just(Value::from(digest)),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        let names = &["kind", "version", "keys", "digest", "diff", "merge", "outputs"][..];
        let name =
            prop_oneof![9 => proptest::sample::select(names).prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..6)
                .prop_map(|fields| Value::from(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(candidates in any_candidates()) {
        let bytes = file::write(&candidates).unwrap();
        let back = file::read(&bytes).unwrap();
        let sorted = |candidates: &Candidates| {
            let mut keys: Vec<_> = candidates.outputs().map(|(d, o)| (d.clone(), o.to_vec())).collect();
            keys.sort();
            keys
        };
        prop_assert_eq!(sorted(&back), sorted(&candidates));
        prop_assert_eq!(file::write(&back).unwrap(), &bytes[..]);
        let text = String::from_utf8(bytes).unwrap();
        prop_assert!(!text.contains("RUN") && !text.contains("secret"));
        let keys: Vec<&str> = text.lines().filter(|line| line.starts_with("{\"digest")).collect();
        prop_assert!(keys.is_sorted());
    }

    #[test]
    fn a_union_depends_on_no_order(a in any_candidates(), b in any_candidates(), c in any_candidates()) {
        let [a, b, c] = [a, b, c].map(|candidates| KeysFile::of_candidates(&candidates));
        let all = union(&[&a, &b, &c]);
        prop_assert_eq!(&union(&[&c, &a, &b]), &all);
        prop_assert_eq!(&union(&[&b, &b, &c, &a, &b]), &all);
        let inner = KeysFile::parse(&union(&[&b, &c])).unwrap();
        prop_assert_eq!(&union(&[&a, &inner]), &all);
    }

    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = file::read(&bytes);
    }

    #[test]
    fn any_json_is_read(value in any_json(), keys in any_json()) {
        let _ = file::read(&serde_json::to_vec(&value).unwrap());
        let value = json!({"kind": "warmkit-keys", "version": 1, "keys": [keys]});
        let _ = file::read(&serde_json::to_vec(&value).unwrap());
    }

    #[test]
    fn damage_gives_no_wrong_key(candidates in any_candidates(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = file::write(&candidates).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let Ok(read) = file::read(&bytes) else { return Ok(()) };
        let records: Vec<_> = candidates.outputs().map(|(digest, _)| digest.record_digest(0)).collect();
        for (record, key) in Keyring::prove(&read, &records).iter() {
            prop_assert_eq!(&key.digest().record_digest(key.output()), record);
        }
    }
}

#[test]
fn the_file_of_a_keyring_has_its_keys_and_no_others() {
    let mut candidates = Candidates::new();
    for n in 0..100_u8 {
        candidates.add(OpDigest::of(&[n]), Some("RUN x".to_owned()));
    }
    let records = [OpDigest::of(&[1]).record_digest(0), OpDigest::of(&[7]).record_digest(2)];
    let keys = KeysFile::of_keyring(&Keyring::prove(&candidates, &records));
    assert_eq!(keys.len(), 2);
    let read = file::read(&keys.to_bytes().unwrap()).unwrap();
    assert_eq!(Keyring::prove(&read, &records).len(), 2);
}

#[test]
fn many_keys_are_read_and_equal_ones_are_one() {
    let document = |keys: &mut dyn Iterator<Item = String>| {
        let keys: Vec<_> = keys.collect();
        format!("{{\"kind\":\"warmkit-keys\",\"version\":1,\"keys\":[{}]}}", keys.join(","))
    };
    let key = |n: u32| format!("{{\"digest\":\"sha256:{n:064x}\",\"outputs\":[0]}}");
    let different = KeysFile::parse(document(&mut (0..20_000).map(key)).as_bytes()).unwrap();
    assert_eq!(different.len(), 20_000);
    assert_eq!(KeysFile::parse(&different.to_bytes().unwrap()).unwrap(), different);
    let equal = KeysFile::parse(document(&mut (0..20_000).map(|_| key(7))).as_bytes()).unwrap();
    assert_eq!(equal.len(), 1);
}
