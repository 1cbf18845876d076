//! What a root will hold, worked out before a single layer is fetched.
//!
//! Everything is identified by content: a layer by its digest, a snapshot by its chain ID, a cache
//! record by its blob chain ID, a cache key by its digest and inputs. So what several caches or
//! several chains have in common is planned once, and the order of the caches does not matter.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use crate::digest::{BlobChainId, ChainId, Digest, OpDigest};
use crate::gather::Image;
use crate::keys::{Candidates, Keyring};
use crate::oci::{Cache, Layer};
use crate::store::KeyId;
use crate::store::ids::KeyInput;

use super::Error;
use super::report::Unkeyed;

/// A layer blob to fetch.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) layer: Layer,
    /// Indexes of the caches that have it, and of the images, which count on from them.
    pub(crate) caches: BTreeSet<usize>,
}

/// A directory to unpack a layer into.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) chain_id: ChainId,
    /// Index of the snapshot below; always smaller than its own.
    pub(crate) parent: Option<usize>,
    /// The blob that is unpacked, where several have the same diff ID.
    pub(crate) blob: usize,
}

/// A cache record: a layer on its parents.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) chain_id: ChainId,
    pub(crate) blob_chain_id: BlobChainId,
    pub(crate) blob: usize,
    pub(crate) snapshot: usize,
    /// Index of the record below; always smaller than its own.
    pub(crate) parent: Option<usize>,
    pub(crate) created_at: Option<Timestamp>,
    /// The step that made it.
    pub(crate) name: Option<String>,
    /// Indexes of the images that it is a layer of.
    pub(crate) images: BTreeSet<usize>,
    /// Indexes of the images whose last layer it is.
    pub(crate) tops: BTreeSet<usize>,
}

/// A cache key with its results: indexes of records, each with when it was made.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: KeyId,
    pub(crate) results: BTreeMap<usize, Option<Timestamp>>,
}

/// A link from one key to another by an operation.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) input: usize,
    pub(crate) output: i64,
    pub(crate) digest: OpDigest,
    pub(crate) selector: String,
}

/// The whole plan; every list is sorted by content, parents before children.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) blobs: Vec<Blob>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) records: Vec<Record>,
    pub(crate) keys: Vec<Key>,
    pub(crate) links: Vec<Link>,
    /// Records of the caches, those of several caches counted once.
    pub(crate) total: usize,
    /// Records whose key cannot be written, and why it matters.
    pub(crate) unkeyed: Vec<Unkeyed>,
}

impl Plan {
    /// Compressed bytes of all blobs. Sizes are claims until the blobs are here, and a hostile cache may
    /// claim more than there are numbers for.
    pub(crate) fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.layer.descriptor.size).fold(0, u64::saturating_add)
    }
}

/// A chain of layers while the plan grows.
struct Node {
    parent: Option<usize>,
    depth: usize,
    blob: Digest,
    chain_id: ChainId,
    blob_chain_id: BlobChainId,
    created_at: Option<Timestamp>,
    name: Option<String>,
    images: BTreeSet<usize>,
    tops: BTreeSet<usize>,
}

#[derive(Default)]
struct Chains {
    nodes: Vec<Node>,
    by_layer: HashMap<(Option<usize>, Digest), usize>,
}

impl Chains {
    fn intern(&mut self, parent: Option<usize>, layer: &Layer) -> usize {
        let blob = layer.descriptor.digest;
        let node = *self.by_layer.entry((parent, blob)).or_insert_with(|| {
            let below = parent.map(|p| &self.nodes[p]);
            let node = Node {
                parent,
                depth: below.map_or(0, |p| p.depth + 1),
                blob,
                chain_id: ChainId::of_layer(below.map(|p| p.chain_id), layer.diff_id),
                blob_chain_id: BlobChainId::of_layer(below.map(|p| p.blob_chain_id), blob, layer.diff_id),
                created_at: None,
                name: None,
                images: BTreeSet::new(),
                tops: BTreeSet::new(),
            };
            self.nodes.push(node);
            self.nodes.len() - 1
        });
        let known = &mut self.nodes[node].created_at;
        *known = earliest(*known, layer.created_at);
        node
    }
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The result of a record: the top node of its chain.
type NodeResult = (usize, Option<Timestamp>);

/// Works out what a root for all of `caches` and `images` holds.
///
/// Fails only where two of them claim different diff IDs for one blob.
pub(crate) fn plan(
    caches: &[Cache],
    images: &[Image],
    keyring: &Keyring,
    candidates: &Candidates,
) -> Result<Plan, Error> {
    let blobs = blobs(caches, images)?;
    let mut chains = Chains::default();
    let mut keys: BTreeMap<KeyId, BTreeMap<usize, Option<Timestamp>>> = BTreeMap::new();
    let mut links = BTreeSet::new();
    let mut unkeyed = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut keyed = BTreeSet::new();

    for cache in caches {
        let mut ids: Vec<Option<KeyId>> = Vec::with_capacity(cache.records.len());
        for record in &cache.records {
            seen.insert(record.digest.clone());
            let results: Vec<NodeResult> = record
                .results
                .iter()
                .filter_map(|result| {
                    let mut top = None;
                    for &layer in &result.layers {
                        top = Some(chains.intern(top, &cache.layers[layer]));
                    }
                    top.map(|top| (top, result.created_at))
                })
                .collect();
            let proven = keyring.get(&record.digest);
            for &(top, created_at) in &results {
                let node = &mut chains.nodes[top];
                node.created_at = earliest(node.created_at, created_at.filter(|_| node.created_at.is_none()));
                let name = proven.and_then(|p| p.name()).map(str::to_owned);
                node.name = [node.name.take(), name].into_iter().flatten().min();
            }

            let inputs: Vec<Vec<(KeyId, String)>> = record
                .inputs
                .iter()
                .map(|alternatives| {
                    let known = |link: &crate::oci::cacheconfig::Link| {
                        ids[link.record].clone().map(|id| (id, link.selector.clone()))
                    };
                    alternatives.iter().filter_map(known).collect()
                })
                .collect();
            let id = if inputs.is_empty() {
                Some(KeyId::root(&record.digest))
            } else if proven.is_none() || inputs.iter().any(Vec::is_empty) {
                let top = results.first().map(|&(top, _)| chains.nodes[top].blob);
                let entry = Unkeyed {
                    digest: record.digest.clone(),
                    name: proven
                        .and_then(|p| p.name())
                        .map(str::to_owned)
                        .or_else(|| candidates.layer_name(top.as_ref()?).map(str::to_owned)),
                    layer: top,
                    size: top.map(|digest| blobs[&digest].layer.descriptor.size),
                    only_inputs: proven.is_some(),
                };
                unkeyed.insert(record.digest.clone(), entry);
                None
            } else {
                let inputs: Vec<Vec<KeyInput<'_>>> = inputs
                    .iter()
                    .map(|input| input.iter().map(|(key, selector)| (key, selector.as_str())).collect())
                    .collect();
                Some(KeyId::derived(&record.digest, &inputs))
            };
            if let Some(id) = &id {
                keyed.insert(record.digest.clone());
                let known = keys.entry(id.clone()).or_default();
                for (top, created_at) in results {
                    let slot = known.entry(top).or_insert(created_at);
                    *slot = earliest(*slot, created_at);
                }
                if let Some(proven) = proven {
                    for (input, alternatives) in inputs.into_iter().enumerate() {
                        for (from, selector) in alternatives {
                            links.insert((
                                from,
                                id.clone(),
                                input,
                                proven.output(),
                                proven.digest().clone(),
                                selector,
                            ));
                        }
                    }
                }
            }
            ids.push(id);
        }
    }
    for (at, image) in images.iter().enumerate() {
        let mut top = None;
        for layer in &image.layers {
            let node = chains.intern(top, layer);
            chains.nodes[node].images.insert(at);
            top = Some(node);
        }
        let Some(top) = top else { continue };
        chains.nodes[top].tops.insert(at);
        for key in &image.keys {
            keys.entry(KeyId::root(key)).or_default().entry(top).or_insert(None);
        }
    }
    // A record whose inputs one cache could not key may be whole in another.
    unkeyed.retain(|digest, _| !keyed.contains(digest));
    let (total, unkeyed) = (seen.len(), unkeyed.into_values().collect());
    Ok(finish(blobs, &chains, keys, links, candidates, total, unkeyed))
}

/// The distinct blobs that some record's result, or an image, is made of.
fn blobs(caches: &[Cache], images: &[Image]) -> Result<BTreeMap<Digest, Blob>, Error> {
    let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
    let mut add = |at: usize, layer: &Layer| {
        let digest = layer.descriptor.digest;
        let blob =
            blobs.entry(digest).or_insert_with(|| Blob { layer: layer.clone(), caches: BTreeSet::new() });
        if blob.layer.diff_id != layer.diff_id {
            let claims = [blob.layer.diff_id, layer.diff_id];
            return Err(Error::DiffIdClaims { digest, claims });
        }
        blob.caches.insert(at);
        Ok(())
    };
    for (at, cache) in caches.iter().enumerate() {
        let used = cache.records.iter().flat_map(|r| &r.results).flat_map(|r| &r.layers);
        used.map(|&layer| &cache.layers[layer]).try_for_each(|layer| add(at, layer))?;
    }
    for (at, image) in images.iter().enumerate() {
        image.layers.iter().try_for_each(|layer| add(caches.len() + at, layer))?;
    }
    Ok(blobs)
}

type LinkById = (KeyId, KeyId, usize, i64, OpDigest, String);

/// Turns what was collected into sorted lists that point at each other by index.
fn finish(
    blobs: BTreeMap<Digest, Blob>,
    chains: &Chains,
    keys: BTreeMap<KeyId, BTreeMap<usize, Option<Timestamp>>>,
    links: BTreeSet<LinkById>,
    candidates: &Candidates,
    total: usize,
    unkeyed: Vec<Unkeyed>,
) -> Plan {
    let blob_index: BTreeMap<Digest, usize> = blobs.keys().enumerate().map(|(i, d)| (*d, i)).collect();

    let mut order: Vec<usize> = (0..chains.nodes.len()).collect();
    order.sort_by_key(|&n| (chains.nodes[n].depth, chains.nodes[n].blob_chain_id));
    let mut record_index = vec![0; order.len()];
    for (to, &node) in order.iter().enumerate() {
        record_index[node] = to;
    }

    // Chains that differ only in compression share a snapshot; the smallest digest is unpacked.
    let mut by_chain: BTreeMap<(usize, ChainId), (usize, Option<ChainId>)> = BTreeMap::new();
    for node in &chains.nodes {
        let parent = node.parent.map(|p| chains.nodes[p].chain_id);
        let blob = blob_index[&node.blob];
        let unpacked = &mut by_chain.entry((node.depth, node.chain_id)).or_insert((blob, parent)).0;
        *unpacked = blob.min(*unpacked);
    }
    let snapshot_index: HashMap<ChainId, usize> =
        by_chain.keys().enumerate().map(|(i, (_, chain_id))| (*chain_id, i)).collect();
    let snapshots = by_chain
        .into_iter()
        .map(|((_, chain_id), (blob, parent))| Snapshot {
            chain_id,
            parent: parent.map(|p| snapshot_index[&p]),
            blob,
        })
        .collect();

    let records = order
        .iter()
        .map(|&n| {
            let node = &chains.nodes[n];
            Record {
                chain_id: node.chain_id,
                blob_chain_id: node.blob_chain_id,
                blob: blob_index[&node.blob],
                snapshot: snapshot_index[&node.chain_id],
                parent: node.parent.map(|p| record_index[p]),
                created_at: node.created_at,
                // Equal operations at two places have one digest, but each has a layer of its own.
                name: candidates.layer_name(&node.blob).map(str::to_owned).or_else(|| node.name.clone()),
                images: node.images.clone(),
                tops: node.tops.clone(),
            }
        })
        .collect();

    let key_index: BTreeMap<KeyId, usize> = keys.keys().enumerate().map(|(i, id)| (id.clone(), i)).collect();
    let links = links
        .into_iter()
        .map(|(from, to, input, output, digest, selector)| Link {
            from: key_index[&from],
            to: key_index[&to],
            input,
            output,
            digest,
            selector,
        })
        .collect();
    let keys = keys
        .into_iter()
        .map(|(id, results)| Key {
            id,
            results: results.into_iter().map(|(node, at)| (record_index[node], at)).collect(),
        })
        .collect();
    Plan { blobs: blobs.into_values().collect(), snapshots, records, keys, links, total, unkeyed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{DiffId, RecordDigest};
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

    fn plan_of(caches: &[Cache], known: &[&str]) -> Plan {
        let mut candidates = Candidates::default();
        for name in known {
            candidates.add(op(name), Some(format!("RUN {name}")));
        }
        let digests: Vec<RecordDigest> =
            caches.iter().flat_map(|c| &c.records).map(|r| r.digest.clone()).collect();
        plan(caches, &[], &Keyring::prove(&candidates, &digests), &candidates).unwrap()
    }

    fn outline(plan: &Plan) -> String {
        let links: Vec<_> = plan.links.iter().map(|l| (&l.from, &l.to, l.input, &l.selector)).collect();
        format!("{:?} {:?} {:?} {links:?} {:?}", plan.blobs, plan.snapshots, plan.records, plan.keys)
    }

    #[test]
    fn a_layer_on_two_parents_is_one_blob_and_two_snapshots() {
        let cache = Cache {
            layers: vec![layer("a", "a"), layer("b", "b")],
            records: vec![record("r", &[], &[&[0, 1], &[1]])],
        };
        let plan = plan_of(&[cache], &[]);
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
        let plan = plan_of(&[cache], &[]);
        assert_eq!((plan.blobs.len(), plan.snapshots.len(), plan.records.len()), (2, 1, 2));
        assert!(plan.records.iter().all(|record| record.snapshot == 0));
    }

    #[test]
    fn links_carry_the_proven_operation_and_records_its_name() {
        let cache = Cache {
            layers: vec![layer("a", "a")],
            records: vec![record("root", &[], &[]), record("step", &[&[0]], &[&[0]])],
        };
        let plan = plan_of(&[cache], &["step"]);
        assert_eq!(plan.links.len(), 1);
        assert_eq!((&plan.links[0].digest, plan.links[0].output), (&op("step"), 0));
        assert_eq!(plan.records[0].name.as_deref(), Some("RUN step"));
        assert!(plan.unkeyed.is_empty());
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
        let plan = plan_of(&[cache], &["above", "either"]);
        let unkeyed: Vec<_> = plan.unkeyed.iter().map(|u| (u.digest.clone(), u.only_inputs)).collect();
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
        let (mut ab, mut ba) = (plan_of(&[a.clone(), b.clone()], &["x", "y"]), plan_of(&[b, a], &["x", "y"]));
        assert_eq!((ab.records.len(), ab.keys.len(), ab.total), (3, 3, 3));
        for blob in ab.blobs.iter_mut().chain(&mut ba.blobs) {
            blob.caches.clear();
        }
        assert_eq!(outline(&ab), outline(&ba));
    }

    #[test]
    fn refuses_two_claims_for_one_blob() {
        let cache =
            |tar| Cache { layers: vec![layer("blob", tar)], records: vec![record("r", &[], &[&[0]])] };
        let keyring = Keyring::prove(&Candidates::default(), &[]);
        let error = plan(&[cache("a"), cache("b")], &[], &keyring, &Candidates::default()).unwrap_err();
        assert!(matches!(error, Error::DiffIdClaims { .. }));
    }
}
