//! The promise: no key source, however it is made, makes the program panic, hang, or take a wrong key.

#![allow(clippy::unwrap_used)] // a test that cannot make its input has failed

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use warmkit::digest::OpDigest;
use warmkit::keys::{KeySpec, Keyring, provenance};
use warmkit::oci::Platform;

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// Names that mean something somewhere in provenance.
const NAMES: [&str; 44] = [
    "predicate",
    "buildConfig",
    "buildDefinition",
    "internalParameters",
    "llbDefinition",
    "id",
    "op",
    "Op",
    "inputs",
    "platform",
    "exec",
    "file",
    "merge",
    "diff",
    "build",
    "passthrough",
    "source",
    "actions",
    "Action",
    "copy",
    "mkfile",
    "owner",
    "user",
    "User",
    "byName",
    "byID",
    "meta",
    "mounts",
    "env",
    "cacheOpt",
    "data",
    "src",
    "metadata",
    "https://mobyproject.org/buildkit@v1#metadata",
    "locations",
    "infos",
    "ranges",
    "start",
    "line",
    "layers",
    "step0:0",
    "step0",
    "lower",
    "def",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        proptest::sample::select(&NAMES[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 96, 6, |inner| {
        let name = prop_oneof![proptest::sample::select(&NAMES[..]).prop_map(str::to_owned), any::<String>()];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..6)
                .prop_map(|fields| Value::from(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Provenance with these operations and this Dockerfile.
fn predicate(ops: &[Value], dockerfile: &str) -> Value {
    let steps = ops
        .iter()
        .enumerate()
        .map(|(i, op)| json!({"id": format!("step{i}"), "op": op, "inputs": ["step0:0"]}));
    let lines = dockerfile.lines().count().max(1);
    let locations = (0..ops.len()).map(|i| {
        let start = json!({"line": i % lines + 1});
        (format!("step{i}"), json!({"locations": [{"ranges": [{"start": start, "end": start}]}]}))
    });
    json!({
        "buildConfig": {"llbDefinition": steps.collect::<Vec<_>>()},
        "metadata": {"https://mobyproject.org/buildkit@v1#metadata": {"source": {
            "locations": locations.collect::<Map<_, _>>(),
            "infos": [{"language": "Dockerfile", "data": STANDARD.encode(dockerfile)}],
        }}},
    })
}

fn read(value: &Value) -> Result<warmkit::keys::Candidates, warmkit::keys::Error> {
    provenance::candidates(&serde_json::to_vec(value).unwrap(), &platform())
}

proptest! {
    #[test]
    fn any_json_is_read(value in any_json()) {
        let _ = read(&value);
    }

    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = provenance::candidates(&bytes, &platform());
    }

    #[test]
    fn any_operation_is_read(op in any_json(), kind in 0..7_usize, nested in any_json()) {
        let kind = ["exec", "file", "merge", "diff", "build", "passthrough", "source"][kind];
        let ops = [op, json!({"Op": {kind: nested}})];
        let candidates = read(&predicate(&ops, "FROM scratch\nRUN x\n")).unwrap();
        // A handful for each operation, whatever is in it.
        prop_assert!(candidates.len() <= 2 * 3 * 4 * 4 * 4);
    }

    #[test]
    fn any_dockerfile_is_read(text in "(?s)([A-Z$`\"'\\\\{}<:=#/\\[\\] -]|\n|FROM a AS b\n|RUN |COPY |ENV a=|ARG |ONBUILD |<<E\n|\\$\\{a:-){0,60}") {
        let exec = json!({"Op": {"exec": {"meta": {"env": ["a=b"]}}}});
        prop_assert!(read(&predicate(&vec![exec; 8], &text)).is_ok());
    }

    #[test]
    fn any_key_source_is_read(text in "(type=|src=|ref=|image|provenance|cachedb|[,=\"a:/@ ]){0,12}|.*") {
        let _ = text.parse::<KeySpec>();
    }

    #[test]
    fn only_the_right_candidate_is_taken(ops in proptest::collection::btree_set("[a-f]{1,8}", 2..20), output in -1..8_i64) {
        let mut ops: Vec<OpDigest> = ops.iter().map(|op| OpDigest::of(op.as_bytes())).collect();
        let right = ops.pop().unwrap();
        let record = right.record_digest(output);
        let mut candidates = warmkit::keys::Candidates::new();
        for op in &ops {
            candidates.add(op.clone(), None);
        }
        prop_assert!(Keyring::prove(&candidates, [&record]).is_empty());
        candidates.add(right.clone(), None);
        let keyring = Keyring::prove(&candidates, [&record]);
        let key = keyring.get(&record).unwrap();
        prop_assert_eq!((key.digest(), key.output()), (&right, output));
    }
}

/// What may be an operation digest, or be taken for one: hashes, texts with outputs in them, JSON of v0.12.
fn any_op() -> impl Strategy<Value = OpDigest> {
    prop_oneof![
        3 => (0..12_u8).prop_map(|n| OpDigest::of(&[n])),
        1 => (0..12_u8, -1..3_i64).prop_map(|(n, output)| OpDigest::new(format!("{}@{output}", OpDigest::of(&[n])))),
        1 => (0..3_i64).prop_map(|n| OpDigest::new(format!("{{\"Type\":\"buildkit.merge.v0\",\"Merge\":{{\"inputs\":[{{\"input\":{n}}}]}}}}"))),
        1 => "(random:|sha256:)?[0-9a-f@-]{0,8}".prop_map(OpDigest::new),
    ]
}

proptest! {
    /// A daemon has a key by digest and output (`rootKey`). Whatever else is offered, in whatever order, each record has
    /// the key that it was made of, or none; and it has one as soon as its own operation is offered.
    #[test]
    fn a_record_has_its_own_key_or_none(
        made_of in proptest::collection::btree_set((any_op().prop_map(|op| op.to_string()), -1..17_i64), 1..12),
        offered in proptest::collection::vec((any_op(), proptest::collection::vec(-2..2000_i64, 0..3)), 0..24),
    ) {
        let made_of: Vec<(OpDigest, i64)> =
            made_of.into_iter().map(|(op, output)| (OpDigest::new(op), output)).collect();
        let mut candidates = warmkit::keys::Candidates::new();
        for (op, outputs) in &offered {
            candidates.add(op.clone(), None);
            for output in outputs {
                candidates.add_output(op.clone(), *output);
            }
        }
        let records: Vec<_> = made_of.iter().map(|(op, output)| op.record_digest(*output)).collect();
        let keyring = Keyring::prove(&candidates, &records);
        for ((op, output), record) in made_of.iter().zip(&records) {
            let key = keyring.get(record).map(|key| (key.digest(), key.output()));
            let is_offered = offered.iter().any(|(offered, _)| offered == op);
            let is_hash = record.as_str().starts_with("sha256:");
            prop_assert_eq!(key, (is_offered && is_hash).then_some((op, *output)));
        }
    }
}

#[test]
fn variables_that_grow_without_end_are_cut() {
    let mut text = String::from("FROM scratch AS a\nENV a=xxxxxxxxxxxxxxxx\n");
    for _ in 0..200 {
        text.push_str("ENV a=$a$a$a$a\n");
    }
    let stages = (0..400).map(|i| format!("FROM a AS b{i}\nENV c{i}=$a\nCOPY $a$a$a$a /\n"));
    text.extend(stages);
    let copy = json!({"Op": {"file": {"actions": []}}});
    assert!(read(&predicate(&vec![copy; 1500], &text)).is_ok());
}

#[test]
fn many_operations_at_one_line_are_read() {
    let exec = json!({"Op": {"exec": {"meta": {"args": ["x"]}}}});
    let text = format!("FROM scratch\nRUN {}", "x".repeat(50_000));
    let candidates = read(&predicate(&vec![exec; 5_000], &text)).unwrap();
    assert!(candidates.len() <= 3);
}

#[test]
fn the_longest_document_is_bounded() {
    let json = vec![b' '; usize::try_from(provenance::MAX_BYTES).unwrap() + 1];
    let error = provenance::candidates(&json, &platform()).unwrap_err();
    assert!(matches!(error, warmkit::keys::Error::TooLarge { .. }), "{error}");
}
