//! Plans of one cache, and of several in every order.

use proptest::prelude::*;

use super::*;
use crate::digest::DiffId;
use crate::gather::{Coverage, Offer, SeededImage, add_images, blobs, prove};
use crate::oci::cacheconfig::{Link as InputLink, Record as CacheRecord, ResultChain};
use crate::oci::{Compression, Descriptor};

fn layer(blob: &str, tar: &str) -> Layer {
    Layer {
        descriptor: Descriptor::new("", Digest::of(blob.as_bytes()), 10),
        compression: Compression::Gzip,
        diff_id: DiffId::of(tar.as_bytes()),
        created_at: None,
        description: None,
    }
}

fn op(name: &str) -> OpDigest {
    OpDigest::of(name.as_bytes())
}

/// A record of operation `name`: inputs are alternatives per input, results chains of layers.
fn record(name: &str, inputs: &[&[usize]], results: &[&[usize]]) -> CacheRecord {
    let link = |&record: &usize| InputLink { record, selector: String::new() };
    CacheRecord {
        digest: op(name).record_digest(0),
        results: results.iter().map(|l| ResultChain { layers: l.to_vec(), created_at: None }).collect(),
        inputs: inputs.iter().map(|alternatives| alternatives.iter().map(link).collect()).collect(),
    }
}

/// The keys of `caches` as far as these operations are known.
fn keys_of(caches: &[Cache], known: &[&str]) -> Keys {
    let mut candidates = Candidates::default();
    for name in known {
        candidates.add(op(name), Some(format!("RUN {name}")));
    }
    prove(&[Offer { source: "test".into(), candidates }], caches)
}

fn plan_of(caches: &[Cache], known: &[&str]) -> (Plan, Coverage) {
    let keys = keys_of(caches, known);
    let blobs = blobs(caches, |at| at.to_string()).unwrap();
    (plan(caches, &[], blobs, &keys), keys.coverage)
}

/// All of a plan but who has its blobs.
fn outline(plan: &Plan) -> String {
    let blobs: Vec<_> = plan.blobs.iter().map(|blob| &blob.layer).collect();
    format!("{blobs:?} {:?} {:?} {:?} {:?}", plan.snapshots, plan.records, plan.links, plan.keys)
}

fn image(layers: &[(&str, &str)], key: &str) -> Image {
    let digest = Digest::of(key.as_bytes());
    let report = SeededImage {
        image: format!("r.io/{key}@{digest}"),
        digest,
        platform: "linux/amd64".into(),
        frontend: false,
        layers: layers.len(),
        bytes: 0,
    };
    let layers = layers.iter().map(|(blob, tar)| layer(blob, tar)).collect();
    Image { layers, keys: vec![op(key).record_digest(0)], documents: Vec::new(), report }
}

#[test]
fn images_share_what_caches_have_and_bring_the_rest() {
    let cache = Cache {
        layers: vec![layer("a", "a"), layer("b", "b")],
        records: vec![record("base", &[], &[&[0]]), record("step", &[&[0]], &[&[0, 1]])],
    };
    let caches = [cache];
    let images = [image(&[("a", "a")], "base"), image(&[("a", "a"), ("c", "c")], "other")];
    let keys = keys_of(&caches, &["step"]);
    let mut all = blobs(&caches, |at| at.to_string()).unwrap();
    add_images(&mut all, &images, |at| at.to_string(), caches.len()).unwrap();
    let plan = plan(&caches, &images, all, &keys);

    assert_eq!((plan.blobs.len(), plan.snapshots.len(), plan.records.len()), (3, 3, 3));
    let blob =
        |name: &str| plan.blobs.iter().position(|b| b.layer.diff_id == DiffId::of(name.as_bytes())).unwrap();
    assert_eq!(plan.blobs[blob("a")].caches, BTreeSet::from([0, 1, 2]), "the cache, and both images");
    assert_eq!(plan.blobs[blob("c")].caches, BTreeSet::from([2]));
    let of = |name: &str| plan.records.iter().find(|record| record.blob == blob(name)).unwrap();
    assert_eq!((&of("a").images, &of("a").tops), (&BTreeSet::from([0, 1]), &BTreeSet::from([0])));
    assert_eq!((&of("b").images, &of("b").tops), (&BTreeSet::new(), &BTreeSet::new()));
    assert_eq!((&of("c").images, &of("c").tops), (&BTreeSet::from([1]), &BTreeSet::from([1])));
    // The key of the base is the one that the cache has, the other image's is new.
    assert_eq!(plan.keys.len(), 3);
    let other = KeyId::root(&op("other").record_digest(0));
    let key = plan.keys.iter().find(|key| key.id == other).unwrap();
    assert_eq!(key.results.keys().map(|&at| plan.records[at].blob).collect::<Vec<_>>(), [blob("c")]);
}

#[test]
fn what_more_results_stand_on_is_used_more() {
    // base ─┬─ both (in two caches)      other ── lost (no key)
    //       └─ one (in one, and an image's last)
    let first = Cache {
        layers: vec![
            layer("base", "base"),
            layer("both", "both"),
            layer("other", "other"),
            layer("lost", "lost"),
        ],
        records: vec![
            record("base", &[], &[&[0]]),
            record("both", &[&[0]], &[&[0, 1]]),
            record("other", &[], &[&[2]]),
            record("lost", &[&[2]], &[&[2, 3]]),
        ],
    };
    let second = Cache {
        layers: vec![layer("base", "base"), layer("both", "both"), layer("one", "one")],
        records: vec![
            record("base", &[], &[&[0]]),
            record("both", &[&[0]], &[&[0, 1]]),
            record("one", &[&[0]], &[&[0, 2]]),
        ],
    };
    let caches = [first, second];
    let images = [image(&[("base", "base"), ("one", "one")], "image")];
    let keys = keys_of(&caches, &["both", "one"]);
    let mut all = blobs(&caches, |at| at.to_string()).unwrap();
    add_images(&mut all, &images, |at| at.to_string(), caches.len()).unwrap();
    let plan = plan(&caches, &images, all, &keys);
    let uses = |name: &str| {
        let diff_id = DiffId::of(name.as_bytes());
        plan.records.iter().find(|record| plan.blobs[record.blob].layer.diff_id == diff_id).unwrap().uses
    };
    let all = ["base", "both", "one", "other", "lost"].map(uses);
    assert_eq!(all, [6, 2, 2, 1, 0]);
}

#[test]
fn an_image_and_a_cache_must_not_contradict_each_other() {
    let caches = [Cache { layers: vec![layer("a", "a")], records: vec![record("r", &[], &[&[0]])] }];
    let mut all = blobs(&caches, |at| format!("cache {at}")).unwrap();
    let images = [image(&[("a", "another tar")], "base")];
    let error = add_images(&mut all, &images, |at| format!("cache {at}"), 1).unwrap_err().to_string();
    assert!(error.contains("cache 0") && error.contains("r.io/base@sha256:"), "{error}");
}

#[test]
fn a_layer_on_two_parents_is_one_blob_and_two_snapshots() {
    let cache = Cache {
        layers: vec![layer("a", "a"), layer("b", "b")],
        records: vec![record("r", &[], &[&[0, 1], &[1]])],
    };
    let (plan, _) = plan_of(&[cache], &[]);
    assert_eq!((plan.blobs.len(), plan.snapshots.len(), plan.records.len()), (2, 3, 3));
    assert_eq!(plan.keys[0].results.len(), 2);
    assert!(plan.snapshots.iter().enumerate().all(|(i, s)| s.parent.is_none_or(|p| p < i)));
}

#[test]
fn two_compressions_of_one_tar_share_a_snapshot() {
    let cache = Cache {
        layers: vec![layer("gzip", "tar"), layer("zstd", "tar")],
        records: vec![record("r", &[], &[&[0], &[1]])],
    };
    let (plan, _) = plan_of(&[cache], &[]);
    assert_eq!((plan.blobs.len(), plan.snapshots.len(), plan.records.len()), (2, 1, 2));
    assert!(plan.records.iter().all(|record| record.snapshot == 0));
}

#[test]
fn links_carry_the_proven_operation_and_records_its_name() {
    let cache = Cache {
        layers: vec![layer("a", "a")],
        records: vec![record("root", &[], &[]), record("step", &[&[0]], &[&[0]])],
    };
    let (plan, coverage) = plan_of(&[cache], &["step"]);
    assert_eq!(plan.links.len(), 1);
    assert_eq!((&plan.links[0].digest, plan.links[0].output), (&op("step"), 0));
    assert_eq!(plan.records[0].name.as_deref(), Some("RUN step"));
    assert_eq!(coverage.lost(), 0);
}

#[test]
fn without_its_key_a_record_keeps_its_layer_and_loses_what_needs_it() {
    let cache = Cache {
        layers: vec![layer("a", "a"), layer("b", "b")],
        records: vec![
            record("root", &[], &[]),
            record("lost", &[&[0]], &[&[0]]),
            record("above", &[&[1]], &[&[0, 1]]),
            record("either", &[&[1, 0]], &[]),
        ],
    };
    let (plan, coverage) = plan_of(&[cache], &["above", "either"]);
    let unkeyed: Vec<_> = coverage.unkeyed().iter().map(|u| (u.digest.clone(), u.only_inputs)).collect();
    let mut expected = vec![(op("lost").record_digest(0), false), (op("above").record_digest(0), true)];
    expected.sort();
    assert_eq!(unkeyed, expected);
    assert_eq!((plan.records.len(), plan.keys.len(), plan.links.len()), (2, 2, 1));
}

#[test]
fn the_order_of_caches_does_not_matter() {
    let a = Cache {
        layers: vec![layer("a", "a"), layer("b", "b")],
        records: vec![record("root", &[], &[&[0]]), record("x", &[&[0]], &[&[0, 1]])],
    };
    let b = Cache {
        layers: vec![layer("c", "c"), layer("a", "a")],
        records: vec![record("root", &[], &[&[1]]), record("y", &[&[0]], &[&[1, 0]])],
    };
    let (ab, coverage) = plan_of(&[a.clone(), b.clone()], &["x", "y"]);
    let (ba, _) = plan_of(&[b, a], &["x", "y"]);
    assert_eq!((ab.records.len(), ab.keys.len(), coverage.records().len()), (3, 3, 3));
    assert_eq!(outline(&ab), outline(&ba));
}

/// What one cache may say of a layer that all know by the same blob.
fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
    let said = (prop::sample::select(vec![docker, oci]), 0..4_i64, "[ab]?");
    prop::collection::vec(said, LAYERS).prop_map(|said| {
        let layer = |(at, (media_type, made, description)): (usize, (&str, i64, String))| {
            // Blobs 0 and 1 are one tar.
            let mut layer = layer(&format!("blob {at}"), &format!("tar {}", at.max(1)));
            layer.descriptor.media_type = media_type.to_owned();
            layer.created_at = time(made);
            layer.description = Some(description).filter(|text| !text.is_empty());
            layer
        };
        said.into_iter().enumerate().map(layer).collect()
    })
}

const LAYERS: usize = 5;
const RECORDS: usize = 7;

fn time(seconds: i64) -> Option<Timestamp> {
    (seconds > 0).then(|| Timestamp::from_second(seconds).unwrap())
}

/// Per record: which operation it is, inputs by how far below the record they are and with which
/// selector, and results with their times.
type RawRecord = (usize, Vec<Vec<(usize, bool)>>, Vec<(Vec<usize>, i64)>);

/// A small cache of a few operations that other caches have too, on other inputs and with other results.
fn cache() -> impl Strategy<Value = Cache> {
    let alternatives = prop::collection::vec((1..RECORDS, any::<bool>()), 1..3);
    let inputs = prop::collection::vec(alternatives, 0..3);
    let chain = prop::collection::vec(0..LAYERS, 1..4);
    let results = prop::collection::vec((chain, 0..4_i64), 0..3);
    let records = prop::collection::vec((0..5_usize, inputs, results), 1..RECORDS);
    (layers(), records).prop_map(|(layers, raw): (_, Vec<RawRecord>)| {
        let records = raw
            .into_iter()
            .enumerate()
            .map(|(at, (operation, inputs, results))| CacheRecord {
                digest: op(&operation.to_string()).record_digest(0),
                results: results
                    .into_iter()
                    .map(|(layers, made)| ResultChain { layers, created_at: time(made) })
                    .collect(),
                inputs: inputs
                    .into_iter()
                    .take(at)
                    .map(|alternatives| {
                        let link = |(below, selected): (usize, bool)| InputLink {
                            record: at.saturating_sub(below),
                            selector: if selected { "selector".to_owned() } else { String::new() },
                        };
                        alternatives.into_iter().map(link).collect()
                    })
                    .collect(),
            })
            .collect();
        Cache { layers, records }
    })
}

/// Links by the ids that they lead from and to.
fn linked(plan: &Plan) -> BTreeSet<(&KeyId, &KeyId, usize, &OpDigest, &str)> {
    let id = |key: usize| &plan.keys[key].id;
    plan.links.iter().map(|l| (id(l.from), id(l.to), l.input, &l.digest, l.selector.as_str())).collect()
}

/// What each key leads to, by the blob chain IDs of the results.
fn leads(plan: &Plan) -> BTreeSet<(&KeyId, Option<BlobChainId>)> {
    let of = |key: &'_ usize| plan.records[*key].blob_chain_id;
    let results = |key: &'_ Key| -> Vec<_> {
        [None].into_iter().chain(key.results.keys().map(|r| Some(of(r)))).collect()
    };
    plan.keys.iter().flat_map(|key| results(key).into_iter().map(move |r| (&key.id, r))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_caches_changes_the_plan(
        caches in prop::collection::vec(cache(), 3),
        known in prop::sample::subsequence(vec!["0", "1", "2", "3", "4"], 0..=5),
    ) {
        let (union, coverage) = plan_of(&caches, &known);
        let expected = (outline(&union), coverage.unkeyed());
        for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (plan, coverage) = plan_of(&order.map(|at| caches[at].clone()), &known);
            prop_assert_eq!(&(outline(&plan), coverage.unkeyed()), &expected);
        }
        let twice: Vec<Cache> = caches.iter().chain(&caches).cloned().collect();
        let (plan, coverage) = plan_of(&twice, &known);
        prop_assert_eq!(&(outline(&plan), coverage.unkeyed()), &expected);

        // All that a build finds on a cache by itself is there.
        for cache in &caches {
            let (own, _) = plan_of(std::slice::from_ref(cache), &known);
            prop_assert!(linked(&own).is_subset(&linked(&union)));
            prop_assert!(leads(&own).is_subset(&leads(&union)));
        }
        for (at, snapshot) in union.snapshots.iter().enumerate() {
            prop_assert!(snapshot.parent.is_none_or(|parent| parent < at));
        }
        for (at, record) in union.records.iter().enumerate() {
            prop_assert!(record.parent.is_none_or(|parent| parent < at));
        }
    }
}
