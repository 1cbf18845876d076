//! Candidates from provenance: the LLB of a build, from which its operation digests follow.
//!
//! ```text
//! in-toto statement     {"_type", "predicateType", "predicate": P}
//! metadata file         {"buildx.build.provenance": P,
//!                        "buildx.build.provenance/linux/arm64": P}     one for each platform
//!   of a bake           {"<target>": {… the same …}}
//! inspection            {"SLSA": P} or {"linux/arm64": {"SLSA": P}}
//! signed, DSSE          {"payloadType": "application/vnd.in-toto+json", "payload": base64 of a statement}
//!   of Sigstore         {"dsseEnvelope": {… the same …}}
//!
//! P, SLSA 0.2   buildConfig                                     C
//!               metadata."https://mobyproject.org/buildkit@v1#metadata"   M
//! P, SLSA 1     buildDefinition.internalParameters.buildConfig  C
//!               runDetails.metadata.buildkit_metadata           M
//! C   llbDefinition[] {id, op {Op {exec|file|…}, platform}, inputs[]}
//! M   source {locations {id: …}, infos[] {data: Dockerfile}}, layers {"id:output": [[descriptor]]}
//! ```
//!
//! Mirrors `solver/llbsolver/provenance/` (`buildconfig.go`, `types/types.go`) of v0.34.2.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Map, Value};

use super::llb::{Operation, Step};
use super::wire::get;
use super::{
    Candidates, Error, cachemap, images,
    names::{self, Names},
    variables::Platforms,
    writers::Writers,
};
use crate::digest::{Digest, OpDigest};
use crate::oci::Platform;
use crate::oci::json::count_values;

/// The longest document that is read, in bytes.
///
/// `BuildKit` takes no definition of more than 16 MiB (gRPC's limit there); one step is some 250 bytes in it and
/// some 400 here, 1,500 with the Dockerfile and the layers. So no build outgrows this.
pub const MAX_BYTES: u64 = 64 << 20;

/// The most values that a document may hold: objects, arrays, and what stands in them. A step has some 50, with its place and its layers.
///
/// What is short in JSON is long in memory: `{"":0},` in 64 MiB would take 6 GB.
pub const MAX_VALUES: usize = 3 << 20;

/// The most values of one operation; one with more gives no candidates.
const MAX_OPERATION_VALUES: usize = 20_000;

/// How deep predicates are looked for: bake file, target, platform, statement, predicate.
const MAX_DEPTH: usize = 6;

/// Reads a file with provenance; see [`candidates`].
pub fn read(path: &Path, platform: &Platform) -> Result<Candidates, Error> {
    let io = |source| Error::Read { path: path.to_owned(), source };
    let mut json = Vec::new();
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size > MAX_BYTES {
        return Err(Error::TooLarge { size, limit: MAX_BYTES });
    }
    // What is no plain file tells no size.
    file.take(MAX_BYTES + 1).read_to_end(&mut json).map_err(io)?;
    candidates(&json, platform)
}

/// The operation digests that a build may have had, by its provenance, with the names of its steps.
///
/// `platform` is what operations ran on that do not say it, beside the builder's own.
///
/// # Errors
///
/// [`Error::Json`], [`Error::TooLarge`], [`Error::TooManyValues`], [`Error::NoProvenance`] where the
/// document is something else, [`Error::NoOperations`] where it tells of no operations. What is odd
/// inside an operation is no error: it gives a candidate that proves nothing.
pub fn candidates(json: &[u8], platform: &Platform) -> Result<Candidates, Error> {
    let mut document = parse(json)?;
    if let Some(statement) = signed(&document) {
        document = parse(&statement)?;
    }
    let mut predicates = Vec::new();
    find_predicates(&document, None, MAX_DEPTH, &mut predicates);
    if predicates.is_empty() {
        return Err(Error::NoProvenance);
    }
    let mut candidates = Candidates::new();
    let mut any = false;
    for predicate in &predicates {
        let found = predicate.candidates(platform);
        any |= found.is_some();
        candidates.merge(found.unwrap_or_default());
    }
    if any { Ok(candidates) } else { Err(Error::NoOperations) }
}

fn parse(json: &[u8]) -> Result<Value, Error> {
    if json.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge { size: json.len() as u64, limit: MAX_BYTES });
    }
    if count_values(json) > MAX_VALUES {
        return Err(Error::TooManyValues { limit: MAX_VALUES });
    }
    serde_json::from_slice(json).map_err(|source| Error::Json { source })
}

/// What an envelope holds; `None` for any other document. Who signed it does not matter: nothing of it is
/// believed.
fn signed(document: &Value) -> Option<Vec<u8>> {
    let document = document.as_object()?;
    let envelope = document.get("dsseEnvelope").and_then(Value::as_object).unwrap_or(document);
    envelope.get("payloadType")?;
    let payload = envelope.get("payload")?.as_str()?;
    STANDARD.decode(payload).or_else(|_| URL_SAFE.decode(payload)).ok()
}

/// Whether `value` holds no more than `left` values; takes what it holds from `left`.
fn is_small(value: &Value, left: &mut usize) -> bool {
    let Some(rest) = left.checked_sub(1) else { return false };
    *left = rest;
    match value {
        Value::Array(items) => items.iter().all(|item| is_small(item, left)),
        Value::Object(fields) => fields.values().all(|field| is_small(field, left)),
        _ => true,
    }
}

/// The parts of a predicate that matter here; each may be absent.
struct Predicate<'a> {
    build_config: Option<&'a Map<String, Value>>,
    metadata: Option<&'a Map<String, Value>>,
    /// Arguments of the frontend, build arguments among them.
    args: Option<&'a Map<String, Value>>,
    /// What the builder runs on and what it built for, by the predicate or by what it is wrapped in.
    platforms: Platforms,
    /// What went into the build: images and other sources.
    dependencies: Option<&'a Value>,
}

fn path<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    let (last, parents) = names.split_last()?;
    let mut object = object;
    for name in parents {
        object = get(object, name)?.as_object()?;
    }
    get(object, last)
}

impl<'a> Predicate<'a> {
    fn new(object: &'a Map<String, Value>) -> Option<Self> {
        let find = |names: &[&str]| path(object, names);
        let slsa1 = object.contains_key("buildDefinition");
        let slsa02 = object.contains_key("buildConfig")
            || (object.contains_key("buildType") && object.contains_key("builder"));
        let platform =
            |names: &[&str]| find(names).and_then(Value::as_str).and_then(|text| text.parse().ok());
        let (config, metadata, args, dependencies, platforms) = if slsa1 {
            let internal = ["buildDefinition", "internalParameters"];
            (
                find(&[&internal[..], &["buildConfig"]].concat()),
                find(&["runDetails", "metadata", "buildkit_metadata"]),
                find(&["buildDefinition", "externalParameters", "request", "args"]),
                find(&["buildDefinition", "resolvedDependencies"]),
                Platforms {
                    builder: platform(&[&internal[..], &["builderPlatform"]].concat()),
                    target: platform(&[&internal[..], &["targetPlatform"]].concat()),
                },
            )
        } else if slsa02 {
            (
                find(&["buildConfig"]),
                find(&["metadata", "https://mobyproject.org/buildkit@v1#metadata"]),
                find(&["invocation", "parameters", "args"]),
                find(&["materials"]),
                Platforms { builder: platform(&["invocation", "environment", "platform"]), target: None },
            )
        } else {
            return None;
        };
        Some(Self {
            build_config: config.and_then(Value::as_object),
            metadata: metadata.and_then(Value::as_object),
            args: args.and_then(Value::as_object),
            platforms,
            dependencies,
        })
    }

    /// What the predicate tells; `None` where it tells of no operations.
    fn candidates(&self, platform: &Platform) -> Option<Candidates> {
        let steps = get(self.build_config?, "llbDefinition")?.as_array()?;
        let mut candidates = Candidates::new();
        let mut platforms = vec![platform.clone()];
        platforms.extend(self.platforms.builder.clone());
        platforms.dedup();
        let small = steps.iter().filter(|step| {
            let mut left = MAX_OPERATION_VALUES;
            is_small(step, &mut left)
        });
        let steps: Vec<Step> = small.filter_map(Step::read).collect();
        self.add_images(&steps, platform, &mut candidates);
        let source = self.metadata.and_then(|metadata| get(metadata, "source")).and_then(Value::as_object);
        let names = names::of_steps(&steps, source, self.args, &self.platforms);
        // Equal operations at two places have one digest, so it has no name; their layers have.
        let mut digests: HashMap<OpDigest, (Option<&str>, Writers)> = HashMap::new();
        for step in &steps {
            let name = names.get(&step.id);
            for (digest, writers) in cachemap::digests(step, &platforms) {
                let (of_digest, known) = digests.entry(digest).or_insert((name, writers));
                if *of_digest != name {
                    *of_digest = None;
                }
                *known = *known | writers;
            }
        }
        for (digest, (name, writers)) in digests {
            candidates.add(digest.clone(), name.map(str::to_owned));
            candidates.add_writers(&digest, writers);
        }
        candidates.set_target(self.platforms.target.as_ref());
        self.name_layers(&steps, &names, &mut candidates);
        Some(candidates)
    }

    fn add_images(&self, steps: &[Step], platform: &Platform, candidates: &mut Candidates) {
        let found = images::find(self.dependencies, steps, self.args, &self.platforms, platform);
        found.images.into_iter().for_each(|image| candidates.add_image(image));
        found.local.into_iter().for_each(|name| candidates.add_local_image(name));
    }

    /// Names layers by the steps that made them: the last layer of a step's chain is its own, and all
    /// layers of a source are its own. A layer that several steps made (the empty one) has no name.
    fn name_layers(&self, steps: &[Step], names: &Names<'_>, candidates: &mut Candidates) {
        let layers = self.metadata.and_then(|metadata| get(metadata, "layers")).and_then(Value::as_object);
        let steps: HashMap<&str, &Step> = steps.iter().map(|step| (step.id.as_str(), step)).collect();
        let mut owners: HashMap<Digest, Option<&str>> = HashMap::new();
        for (place, chains) in layers.into_iter().flatten() {
            let id = place.split(':').next().unwrap_or_default();
            let (Some(step), Some(name)) = (steps.get(id), names.get(id)) else { continue };
            for chain in chains.as_array().into_iter().flatten().filter_map(Value::as_array) {
                let own = match step.operation {
                    Operation::Source { .. } => 0,
                    // What it lays over each other was made by others.
                    Operation::Merge(_) => chain.len(),
                    _ => chain.len().saturating_sub(1),
                };
                for layer in chain.iter().skip(own) {
                    let Some(digest) = layer["digest"].as_str().and_then(|text| text.parse().ok()) else {
                        continue;
                    };
                    let owner = owners.entry(digest).or_insert(Some(name));
                    if *owner != Some(name) {
                        *owner = None;
                    }
                }
            }
        }
        for (digest, name) in owners {
            if let Some(name) = name {
                candidates.name_layer(digest, name.to_owned());
            }
        }
    }
}

/// Finds predicates in whatever they are wrapped in, and what each was for where that tells it: a
/// statement's subject, or the platform as the name of a member.
fn find_predicates<'a>(
    value: &'a Value,
    target: Option<&Platform>,
    depth: usize,
    found: &mut Vec<Predicate<'a>>,
) {
    let Value::Object(object) = value else { return };
    if let Some(mut predicate) = Predicate::new(object) {
        predicate.platforms.target = predicate.platforms.target.or_else(|| target.cloned());
        found.push(predicate);
    } else if depth > 0 {
        let subject = || object.get("subject")?.get(0)?.get("name")?.as_str();
        let of_subject = subject().and_then(images::platform_of_subject);
        for (name, value) in object {
            let platform = name.strip_prefix("buildx.build.provenance/").unwrap_or(name);
            let of_name = if platform.contains('/') { platform.parse().ok() } else { None };
            let target = of_name.as_ref().or(of_subject.as_ref()).or(target);
            find_predicates(value, target, depth - 1, found);
        }
    }
}
