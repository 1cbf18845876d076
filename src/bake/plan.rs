//! What a root will hold, worked out before a single layer is fetched.
//!
//! Everything is identified by content: a layer by its digest, a snapshot by its chain ID, a cache
//! record by its blob chain ID, a cache key by its digest and inputs. So what several caches or
//! several chains have in common is planned once, and the order of the caches does not matter: where
//! they say different things of one thing, the earliest time and the smallest text stay.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use crate::digest::{BlobChainId, ChainId, Digest, OpDigest};
use crate::gather::{Blob, Covered, Image, Keys, earliest};
use crate::keys::Candidates;
use crate::oci::{Cache, Layer};
use crate::store::KeyId;
use crate::store::ids::KeyInput;

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
    /// How many results that builds find, and images, it is part of: in each cache one for each chain that ends
    /// with it or above it.
    pub(crate) uses: u64,
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
    /// When its step ran, as said of the layer.
    layer_made: Option<Timestamp>,
    /// The same, as said of results that end with it.
    result_made: Option<Timestamp>,
    name: Option<String>,
    images: BTreeSet<usize>,
    tops: BTreeSet<usize>,
    /// The distinct caches that have a result ending with it which builds find.
    found_in: BTreeSet<usize>,
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
                layer_made: None,
                result_made: None,
                name: None,
                images: BTreeSet::new(),
                tops: BTreeSet::new(),
                found_in: BTreeSet::new(),
            };
            self.nodes.push(node);
            self.nodes.len() - 1
        });
        let made = &mut self.nodes[node].layer_made;
        *made = earliest(*made, layer.created_at);
        node
    }

    /// The chain of the layers at these indexes of a cache, lowest first; of none, none.
    fn of(&mut self, layers: &[usize], cache: &Cache) -> Option<usize> {
        layers.iter().fold(None, |top, &layer| Some(self.intern(top, &cache.layers[layer])))
    }
}

/// The results of a record: the top nodes of their chains, and when each was made.
type Results = BTreeMap<usize, Option<Timestamp>>;

/// Works out what a root for all of `caches` and `images` holds: all their layers, and the keys of those
/// records that a build will find. `blobs` are those of both, `keys` those of the caches.
pub(crate) fn plan(caches: &[Cache], images: &[Image], blobs: BTreeMap<Digest, Blob>, keys: &Keys) -> Plan {
    let coverage = &keys.coverage;
    let mut chains = Chains::default();
    let distinct = distinct(caches);
    let mut results: Vec<Results> = coverage.records().iter().map(|_| Results::new()).collect();
    for (at, cache) in caches.iter().enumerate() {
        for (index, record) in cache.records.iter().enumerate() {
            let place = coverage.place(at, index);
            for result in &record.results {
                let Some(top) = chains.of(&result.layers, cache) else { continue };
                if coverage.records()[place].status.is_found() {
                    chains.nodes[top].found_in.insert(distinct[at]);
                }
                let made = results[place].entry(top).or_default();
                *made = earliest(*made, result.created_at);
            }
        }
    }

    let mut by_id: BTreeMap<KeyId, Results> = BTreeMap::new();
    let mut links = BTreeSet::new();
    let mut ids: Vec<Option<KeyId>> = Vec::with_capacity(results.len());
    for (record, results) in coverage.records().iter().zip(results) {
        let proven = keys.keyring.get(&record.digest);
        for (&top, &made) in &results {
            let node = &mut chains.nodes[top];
            node.result_made = earliest(node.result_made, made);
            let name = proven.and_then(|p| p.name()).map(str::to_owned);
            node.name = [node.name.take(), name].into_iter().flatten().min();
        }
        let inputs = found_inputs(record, &ids);
        let id = record.status.is_found().then(|| {
            if inputs.is_empty() {
                KeyId::root(&record.digest)
            } else {
                KeyId::derived(&record.digest, &inputs)
            }
        });
        if let Some(id) = &id {
            let known = by_id.entry(id.clone()).or_default();
            for (top, made) in results {
                let slot = known.entry(top).or_default();
                *slot = earliest(*slot, made);
            }
            for (input, alternatives) in inputs.iter().enumerate() {
                for &(from, selector) in alternatives {
                    if let Some(proven) = proven {
                        let operation = (proven.output(), proven.digest().clone());
                        links.insert((from.clone(), id.clone(), input, operation, selector.to_owned()));
                    }
                }
            }
        }
        ids.push(id);
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
            by_id.entry(KeyId::root(key)).or_default().entry(top).or_default();
        }
    }
    finish(blobs, &chains, by_id, links, &keys.candidates)
}

/// Per input of a record, those of its alternatives that a build finds.
fn found_inputs<'a>(record: &'a Covered, ids: &'a [Option<KeyId>]) -> Vec<Vec<KeyInput<'a>>> {
    let found = |(at, selector): &'a (usize, String)| ids[*at].as_ref().map(|id| (id, selector.as_str()));
    record.inputs.iter().map(|alternatives| alternatives.iter().filter_map(found).collect()).collect()
}

type LinkById = (KeyId, KeyId, usize, (i64, OpDigest), String);

/// Turns what was collected into sorted lists that point at each other by index.
fn finish(
    blobs: BTreeMap<Digest, Blob>,
    chains: &Chains,
    keys: BTreeMap<KeyId, Results>,
    links: BTreeSet<LinkById>,
    candidates: &Candidates,
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

    let uses = uses(chains);
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
                created_at: node.layer_made.or(node.result_made),
                // Equal operations at two places have one digest, but each has a layer of its own.
                name: candidates.layer_name(&node.blob).map(str::to_owned).or_else(|| node.name.clone()),
                images: node.images.clone(),
                tops: node.tops.clone(),
                uses: uses[n],
            }
        })
        .collect();

    let key_index: BTreeMap<KeyId, usize> = keys.keys().enumerate().map(|(i, id)| (id.clone(), i)).collect();
    let links = links
        .into_iter()
        .map(|(from, to, input, (output, digest), selector)| Link {
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
    Plan { blobs: blobs.into_values().collect(), snapshots, records, keys, links }
}

/// Of each cache, the index of the first that is the same: one that is named twice counts once.
fn distinct(caches: &[Cache]) -> Vec<usize> {
    let mut alike: HashMap<Vec<Digest>, Vec<usize>> = HashMap::new();
    let first = |(at, cache): (usize, &Cache)| {
        let layers = cache.layers.iter().map(|layer| layer.descriptor.digest).collect();
        let alike = alike.entry(layers).or_default();
        alike.iter().copied().find(|&other| caches[other] == *cache).unwrap_or_else(|| {
            alike.push(at);
            at
        })
    };
    caches.iter().enumerate().map(first).collect()
}

/// Of each node, how many chains end with it or above it.
fn uses(chains: &Chains) -> Vec<u64> {
    let ends = |node: &Node| (node.found_in.len() + node.tops.len()) as u64;
    let mut uses: Vec<u64> = chains.nodes.iter().map(ends).collect();
    // A node is made after the one that it stands on.
    for (at, node) in chains.nodes.iter().enumerate().rev() {
        if let Some(parent) = node.parent {
            uses[parent] = uses[parent].saturating_add(uses[at]);
        }
    }
    uses
}

#[cfg(test)]
mod tests;
