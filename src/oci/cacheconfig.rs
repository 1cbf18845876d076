//! The cache config (`application/vnd.buildkit.cacheconfig.v0`), checked.
//!
//! ```text
//! layers[]   {blob, parent}            parent: index, -1 none, absent 0
//!            annotations               only where there is no manifest: see `annotated`
//! records[]  {digest,
//!             layers[] {layer, createdAt}      a layer with all its parents
//!             chains[] {layers[], createdAt}   exactly these layers
//!             inputs[][] {link, selector}      per input, alternatives
//! ```
//!
//! Mirrors `cache/remotecache/v1/types/spec.go` and, for what is refused, `v1/parse.go` (v0.34).
//! Unlike upstream, a layer that the manifest does not list is an error: a cache that lost a layer
//! should not ship as warm.

mod annotated;
mod chains;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use self::chains::Chains;
use super::{CacheManifest, Compression, Descriptor, Error, json};
use crate::digest::{DiffId, Digest, RecordDigest};

/// Annotation of a layer that holds its diff ID.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Annotation of a layer that holds when its step ran.
pub const CREATED_AT: &str = "buildkit/createdat";
/// Annotation of a layer that holds its description; only some exporters write it.
pub const DESCRIPTION: &str = "buildkit/description";

/// The JSON document, indexes not yet checked.
#[derive(Debug, Clone, Deserialize)]
pub struct CacheConfig {
    #[serde(default, deserialize_with = "null_default")]
    layers: Vec<RawLayer>,
    #[serde(default, deserialize_with = "null_default")]
    records: Vec<RawRecord>,
}

#[derive(Debug, Clone, Deserialize)]
struct RawLayer {
    blob: Digest,
    #[serde(default)]
    parent: i64,
    #[serde(default)]
    annotations: Option<annotated::Annotations>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawResult {
    layer: i64,
    #[serde(default)]
    created_at: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawChain {
    #[serde(default, deserialize_with = "null_default")]
    layers: Vec<i64>,
    #[serde(default)]
    created_at: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct RawInput {
    link: i64,
    #[serde(default)]
    selector: String,
}

#[derive(Debug, Clone, Deserialize)]
struct RawRecord {
    digest: RecordDigest,
    #[serde(default, deserialize_with = "null_default")]
    layers: Vec<RawResult>,
    #[serde(default, deserialize_with = "null_default")]
    chains: Vec<RawChain>,
    #[serde(default, deserialize_with = "null_default")]
    inputs: Vec<Vec<RawInput>>,
}

/// Go writes a nil slice as `null`.
fn null_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// A layer blob of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest, size, media type and annotations as the manifest has them.
    pub descriptor: Descriptor,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar that the publisher claims; unpacking proves it.
    pub diff_id: DiffId,
    /// When the step that made it ran, where the cache tells.
    pub created_at: Option<Timestamp>,
    /// What the publisher says of it, where the cache tells.
    pub description: Option<String>,
}

impl Layer {
    fn new(descriptor: Descriptor) -> Result<Self, Error> {
        let digest = descriptor.digest;
        let compression = Compression::of_layer(&descriptor.media_type)
            .ok_or_else(|| Error::UnknownLayer { digest, media_type: descriptor.media_type.clone() })?;
        let annotation = |key| descriptor.annotations.get(key);
        let diff_id = annotation(UNCOMPRESSED)
            .and_then(|text| text.parse().ok())
            .ok_or(Error::NoDiffId { digest, annotation: UNCOMPRESSED })?;
        Ok(Self {
            compression,
            diff_id,
            created_at: annotation(CREATED_AT).and_then(|text| parse_time(text)),
            description: annotation(DESCRIPTION).cloned(),
            descriptor,
        })
    }

    /// A layer of an image, whose config claims `diff_id` for it.
    pub(super) fn of_image(descriptor: Descriptor, diff_id: DiffId) -> Result<Self, Error> {
        let digest = descriptor.digest;
        let media_type = descriptor.media_type.as_str();
        if media_type.contains(".nondistributable.") || media_type.contains(".foreign.") {
            return Err(Error::ForeignLayer { digest });
        }
        if media_type.ends_with("+encrypted") {
            return Err(Error::EncryptedLayer { digest });
        }
        let compression = Compression::of_layer(media_type)
            .ok_or_else(|| Error::UnknownLayer { digest, media_type: media_type.to_owned() })?;
        Ok(Self { descriptor, compression, diff_id, created_at: None, description: None })
    }
}

/// A chain of layers that a record has as its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultChain {
    /// Indexes into [`Cache::layers`], lowest first, never empty.
    pub layers: Vec<usize>,
    /// When the result was made, where the cache tells.
    pub created_at: Option<Timestamp>,
}

/// One alternative for one input of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// Index into [`Cache::records`] of the record that the input is.
    pub record: usize,
    /// Selector as the solver has it: a digest of its own, or empty.
    pub selector: String,
}

/// A record of the cache: a cache key with its results and inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Hash of operation digest and output.
    pub digest: RecordDigest,
    /// Results; a record that only leads to others has none.
    pub results: Vec<ResultChain>,
    /// Per input, its alternatives; a root key has no inputs.
    pub inputs: Vec<Vec<Link>>,
}

/// A cache whose every index has been checked: acyclic, in range, layers all listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The distinct layer blobs, in the order of the manifest.
    pub layers: Vec<Layer>,
    /// The records, each after all that its inputs name.
    pub records: Vec<Record>,
}

/// Parses a time as Go writes it; Go's zero time counts as none.
fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().filter(|t| t.as_second() > -62_135_596_800)
}

impl CacheConfig {
    /// Parses the JSON. Indexes are checked by [`CacheConfig::resolve`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        json::parse("the cache config", bytes)
    }

    /// The config of an inline cache: only records, of layers of which each stands on the one before.
    pub(super) fn of_image(records: &[u8], layers: &[Descriptor]) -> Result<Self, Error> {
        let records = json::parse::<Option<_>>("the inline cache", records)?.unwrap_or_default();
        let layers = layers.iter().zip(-1..).map(|(layer, parent)| RawLayer {
            blob: layer.digest,
            parent,
            annotations: None,
        });
        Ok(Self { layers: layers.collect(), records })
    }

    /// Puts config and manifest together and checks every index.
    pub fn resolve(self, manifest: &CacheManifest) -> Result<Cache, Error> {
        if self.records.is_empty() {
            return Err(Error::Empty);
        }
        let mut layers = Vec::new();
        let mut by_blob = BTreeMap::new();
        for descriptor in &manifest.layers {
            by_blob.entry(descriptor.digest).or_insert_with(|| {
                layers.push(descriptor);
                layers.len() - 1
            });
        }
        let layers = layers.into_iter().cloned().map(Layer::new).collect::<Result<Vec<_>, _>>()?;
        let mut chains = self.layers(&by_blob)?;
        let named: BTreeSet<_> = self.layers.iter().map(|l| l.blob).collect();
        if let Some(digest) = by_blob.keys().find(|digest| !named.contains(digest)) {
            return Err(Error::LayerNotNamed { digest: *digest });
        }
        let order = self.record_order()?;
        let mut position = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            position[from] = to;
        }
        let records =
            order.iter().map(|&at| self.record(at, &mut chains, &position)).collect::<Result<_, _>>()?;
        Ok(Cache { layers, records })
    }

    /// Checks the layers' blobs and parents; gives per config layer its blob, as an index into the distinct
    /// ones, and how many layers it is with all its parents.
    fn layers(&self, by_blob: &BTreeMap<Digest, usize>) -> Result<Chains<'_>, Error> {
        let len = self.layers.len();
        let mut blobs = Vec::with_capacity(len);
        for (index, layer) in self.layers.iter().enumerate() {
            let blob = by_blob.get(&layer.blob);
            blobs.push(*blob.ok_or(Error::LayerNotListed { index, digest: layer.blob })?);
            if layer.parent != -1 {
                check_index(layer.parent, len, "layer", || {
                    format!("layer {index} ({}), parent", layer.blob)
                })?;
            }
        }
        // 0: not known yet. Each layer is walked over once, from wherever its chain is first met.
        let mut heights = vec![0_usize; len];
        for index in 0..len {
            let mut above = Vec::new();
            let mut at = Some(index);
            while let Some(layer) = at.filter(|&layer| heights[layer] == 0) {
                if above.len() == len {
                    return Err(Error::Cycle { what: "layer", index });
                }
                above.push(layer);
                at = usize::try_from(self.layers[layer].parent).ok();
            }
            let mut height = at.map_or(0, |layer| heights[layer]);
            for layer in above.into_iter().rev() {
                height += 1;
                heights[layer] = height;
            }
        }
        Ok(Chains { layers: &self.layers, blobs, heights, total: 0 })
    }

    /// Record indexes, inputs before those that use them; stable for one document.
    fn record_order(&self) -> Result<Vec<usize>, Error> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let len = self.records.len();
        let mut links = Vec::with_capacity(len);
        for (index, record) in self.records.iter().enumerate() {
            let mut of_record = Vec::new();
            for (input, alternatives) in record.inputs.iter().enumerate() {
                if alternatives.is_empty() {
                    return Err(Error::EmptyInput { index, digest: record.digest.clone(), input });
                }
                for link in alternatives {
                    let place = || format!("record {index} ({}), input {input}", record.digest);
                    of_record.push(check_index(link.link, len, "record", place)?);
                }
            }
            links.push(of_record);
        }
        // An explicit stack: a cache of 300 steps in a row must not depend on the thread's stack.
        let mut state = vec![State::New; len];
        let mut order = Vec::with_capacity(len);
        for start in 0..len {
            let mut stack = vec![(start, 0)];
            while let Some((at, next)) = stack.pop() {
                if next == 0 {
                    match state[at] {
                        State::Done => continue,
                        State::Open => return Err(Error::Cycle { what: "record", index: at }),
                        State::New => state[at] = State::Open,
                    }
                }
                if let Some(&input) = links[at].get(next) {
                    stack.push((at, next + 1));
                    stack.push((input, 0));
                } else {
                    state[at] = State::Done;
                    order.push(at);
                }
            }
        }
        Ok(order)
    }

    fn record(&self, at: usize, chains: &mut Chains<'_>, position: &[usize]) -> Result<Record, Error> {
        let raw = &self.records[at];
        let len = self.layers.len();
        let mut results = Vec::new();
        for result in &raw.layers {
            let place = || format!("record {at} ({})", raw.digest);
            let layer = check_index(result.layer, len, "layer", place)?;
            let created_at = result.created_at.as_deref().and_then(parse_time);
            results.push(ResultChain { layers: chains.of(layer)?, created_at });
        }
        for chain in &raw.chains {
            chains.count(chain.layers.len(), chain.layers.last().copied().unwrap_or_default())?;
            let mut layers = Vec::with_capacity(chain.layers.len());
            for &layer in &chain.layers {
                let place = || format!("record {at} ({}), chain", raw.digest);
                let layer = check_index(layer, len, "layer", place)?;
                layers.push(chains.blobs[layer]);
            }
            if !layers.is_empty() {
                let created_at = chain.created_at.as_deref().and_then(parse_time);
                results.push(ResultChain { layers, created_at });
            }
        }
        let inputs = raw
            .inputs
            .iter()
            .map(|alternatives| {
                alternatives
                    .iter()
                    .map(|link| {
                        let record = check_index(link.link, position.len(), "record", String::new)?;
                        Ok(Link { record: position[record], selector: link.selector.clone() })
                    })
                    .collect::<Result<_, Error>>()
            })
            .collect::<Result<_, _>>()?;
        Ok(Record { digest: raw.digest.clone(), results, inputs })
    }
}

fn check_index(
    index: i64,
    len: usize,
    what: &'static str,
    place: impl FnOnce() -> String,
) -> Result<usize, Error> {
    usize::try_from(index).ok().filter(|&i| i < len).ok_or_else(|| Error::OutOfRange {
        place: place(),
        what,
        index,
        len,
    })
}

#[cfg(test)]
mod tests {
    use super::chains::{MAX_CHAINED, MAX_HEIGHT};
    use super::*;
    use crate::oci::media_type::CACHE_CONFIG;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn blob(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn manifest(names: &[&str]) -> CacheManifest {
        let layer = |name: &&str| {
            let mut descriptor = Descriptor::new(GZIP, blob(name), 10);
            let diff_id = DiffId::of(name.as_bytes()).to_string();
            descriptor.annotations.insert(UNCOMPRESSED.into(), diff_id);
            descriptor
        };
        CacheManifest {
            config: Descriptor::new(CACHE_CONFIG, blob("config"), 1),
            layers: names.iter().map(layer).collect(),
        }
    }

    /// `{a}` stands for the digest of the text `a`.
    fn resolve(names: &[&str], json: &str) -> Result<Cache, Error> {
        let json = ["a", "b", "c", "r0", "r1", "r2"]
            .iter()
            .fold(json.to_owned(), |json, n| json.replace(&format!("<{n}>"), &blob(n).to_string()));
        CacheConfig::parse(json.as_bytes())?.resolve(&manifest(names))
    }

    #[test]
    fn absent_parent_is_layer_zero_and_minus_one_is_none() {
        let cache = resolve(
            &["a", "b"],
            r#"{"layers":[{"blob":"<a>","parent":-1},{"blob":"<b>"}],
                "records":[{"digest":"<r0>","layers":[{"layer":1,"createdAt":"2024-01-02T03:04:05.5Z"}]}]}"#,
        )
        .unwrap();
        assert_eq!(cache.records[0].results[0].layers, [0, 1]);
        assert_eq!(cache.records[0].results[0].created_at.unwrap().to_string(), "2024-01-02T03:04:05.5Z");
    }

    /// A chain of so many layers, each on the one before, as the config has it.
    fn tower(height: usize, results: &str) -> Result<Cache, Error> {
        let layers: Vec<String> = (0..height)
            .map(|at| format!(r#"{{"blob":"{}","parent":{}}}"#, blob("a"), i64::try_from(at).unwrap() - 1))
            .collect();
        let records = format!(r#"[{{"digest":"<r0>",{results}}}]"#);
        resolve(&["a"], &format!(r#"{{"layers":[{}],"records":{records}}}"#, layers.join(",")))
    }

    #[test]
    fn chains_are_as_high_as_overlayfs_stacks() {
        let top = |layer: usize| format!(r#""layers":[{{"layer":{layer}}}]"#);
        let cache = tower(MAX_HEIGHT, &top(MAX_HEIGHT - 1)).unwrap();
        assert_eq!(cache.records[0].results[0].layers.len(), MAX_HEIGHT);
        // Layers above that no result needs are no fault; they cost nothing either.
        tower(100_000, &top(MAX_HEIGHT - 1)).unwrap();
        let chain = format!(r#""chains":[{{"layers":[{}]}}]"#, vec!["0"; MAX_HEIGHT + 1].join(","));
        for results in [&top(100_000 - 1), &chain] {
            let error = tower(100_000, results).unwrap_err().to_string();
            assert!(error.contains("overlayfs stacks no more than 500"), "{error}");
        }
    }

    #[test]
    fn results_have_a_limit() {
        let results = vec![format!(r#"{{"layer":{}}}"#, MAX_HEIGHT - 1); MAX_CHAINED / MAX_HEIGHT + 1];
        let error = tower(MAX_HEIGHT, &format!(r#""layers":[{}]"#, results.join(","))).unwrap_err();
        assert!(matches!(error, Error::TooManyLayers { .. }), "{error}");
    }

    #[test]
    fn a_chain_takes_its_layers_without_their_parents() {
        let cache = resolve(
            &["a", "b"],
            r#"{"layers":[{"blob":"<a>","parent":-1},{"blob":"<b>","parent":0}],
                "records":[{"digest":"<r0>","chains":[{"layers":[1]}],"layers":[{"layer":1}]}]}"#,
        )
        .unwrap();
        let chains: Vec<_> = cache.records[0].results.iter().map(|r| r.layers.clone()).collect();
        assert_eq!(chains, [vec![0, 1], vec![1]]);
    }

    #[test]
    fn one_blob_on_two_parents_is_one_layer_with_two_chains() {
        let cache = resolve(
            &["a", "b"],
            r#"{"layers":[{"blob":"<a>","parent":-1},{"blob":"<b>","parent":-1},{"blob":"<b>","parent":0}],
                "records":[{"digest":"<r0>","layers":[{"layer":1},{"layer":2}]}]}"#,
        )
        .unwrap();
        assert_eq!(cache.layers.len(), 2);
        let chains: Vec<_> = cache.records[0].results.iter().map(|r| r.layers.clone()).collect();
        assert_eq!(chains, [vec![1], vec![0, 1]]);
    }

    #[test]
    fn records_come_after_their_inputs() {
        let cache = resolve(
            &[],
            r#"{"records":[{"digest":"<r0>","inputs":[[{"link":2,"selector":"s"},{"link":1}]]},
                           {"digest":"<r1>","inputs":[[{"link":2}]]},{"digest":"<r2>"}]}"#,
        )
        .unwrap();
        let digests: Vec<_> = cache.records.iter().map(|r| r.digest.to_string()).collect();
        assert_eq!(digests, ["r2", "r1", "r0"].map(|n| blob(n).to_string()));
        assert_eq!(
            cache.records[2].inputs,
            [[Link { record: 0, selector: "s".into() }, Link { record: 1, selector: String::new() }]]
        );
    }

    #[test]
    fn ten_thousand_steps_in_a_row_need_no_stack() {
        let records: Vec<String> = (0..10_000)
            .map(|i| match i {
                9_999 => format!(r#"{{"digest":"{}"}}"#, blob("last")),
                i => {
                    let digest = blob(&i.to_string());
                    format!(r#"{{"digest":"{digest}","inputs":[[{{"link":{}}}]]}}"#, i + 1)
                }
            })
            .collect();
        let json = format!(r#"{{"records":[{}]}}"#, records.join(","));
        assert_eq!(resolve(&[], &json).unwrap().records.len(), 10_000);
    }

    #[test]
    fn refuses_what_does_not_fit_together() {
        let a = r#""layers":[{"blob":"<a>","parent":-1}]"#;
        let cases: &[(&[&str], &str, &str)] = &[
            (&[], "7", "the cache config is not valid"),
            (&[], "{", "the cache config is not valid"),
            (&[], r#"{"records":[{"digest":"sha256:12"}]}"#, "invalid digest"),
            (&[], "{}", "the cache is empty"),
            (&[], r#"{"layers":null,"records":null}"#, "the cache is empty"),
            (&["a"], r#"{<A>,"records":[{"digest":"<r0>","layers":[{"layer":1}]}]}"#, "points at layer 1"),
            (&["a"], r#"{<A>,"records":[{"digest":"<r0>","layers":[{"layer":-1}]}]}"#, "points at layer -1"),
            (&["a"], r#"{<A>,"records":[{"digest":"<r0>","chains":[{"layers":[7]}]}]}"#, "points at layer 7"),
            (&["a"], r#"{<A>,"records":[{"digest":"<r0>","inputs":[[{"link":1}]]}]}"#, "points at record 1"),
            (&["a"], r#"{<A>,"records":[{"digest":"<r0>","inputs":[[]]}]}"#, "input 0 has no link"),
            (
                &["a"],
                r#"{<A>,"records":[{"digest":"<r0>","inputs":[[{"link":0}]]}]}"#,
                "cycle through record 0",
            ),
            (
                &["a"],
                r#"{<A>,"records":[{"digest":"<r0>","inputs":[[{"link":1}]]},{"digest":"<r1>","inputs":[[{"link":0}]]}]}"#,
                "cycle through record",
            ),
            (&["a"], r#"{"layers":[{"blob":"<a>"}],"records":[{"digest":"<r0>"}]}"#, "cycle through layer 0"),
            (
                &["a"],
                r#"{"layers":[{"blob":"<a>","parent":9}],"records":[{"digest":"<r0>"}]}"#,
                "parent points at layer 9",
            ),
            (&[], r#"{<A>,"records":[{"digest":"<r0>"}]}"#, "which the manifest does not list"),
            (&["a", "b"], r#"{<A>,"records":[{"digest":"<r0>"}]}"#, "which the cache config does not name"),
        ];
        for (layers, json, expected) in cases {
            let error = resolve(layers, &json.replace("<A>", a)).unwrap_err();
            let text = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(": ");
            assert!(text.contains(expected), "{json}\n  gave: {text}\n  wanted: {expected}");
        }
    }

    #[test]
    fn refuses_layers_that_cannot_be_unpacked() {
        let mut strange = manifest(&["a"]);
        strange.layers[0].media_type = "application/x-tar+lzma".into();
        let mut bare = manifest(&["a"]);
        bare.layers[0].annotations.clear();
        let json = format!(
            r#"{{"layers":[{{"blob":"{}","parent":-1}}],"records":[{{"digest":"{}"}}]}}"#,
            blob("a"),
            blob("r0")
        );
        let resolve =
            |m: &CacheManifest| CacheConfig::parse(json.as_bytes()).unwrap().resolve(m).unwrap_err();
        assert!(matches!(resolve(&strange), Error::UnknownLayer { .. }));
        assert!(matches!(resolve(&bare), Error::NoDiffId { .. }));
    }

    #[test]
    fn go_zero_time_is_no_time() {
        assert_eq!(parse_time("0001-01-01T00:00:00Z"), None);
        assert!(parse_time("2024-05-06T07:08:09.123456789+02:00").is_some());
    }
}
