//! One release's cache on another release's daemon, by warmkit and by the daemon's own import.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::cases::{Case, cache_to};
use super::daemon::{DATABASES, check_databases};
use super::warmkit::{bake_at, verify};
use super::{BuildRequest, Daemon, Tools, World, build};

/// The Dockerfile in tests/dockerfiles that both sides build.
const CASE: &str = "square";

/// When all bakes of one cache are done, so that equal keys give equal databases.
const TIME: u64 = 1_700_000_000;

/// What a release wrote: its cache, its image, its own root.
#[derive(Debug)]
pub struct Exporter {
    tools: Tools,
    world: World,
    case: Case,
    cache: String,
    sources: BTreeMap<Keys, String>,
    /// What `warmkit verify` says of the root that its daemon built on, and of one on which nothing was built;
    /// nothing where both are healthy.
    pub own_root: String,
}

/// Where a bake has its keys from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keys {
    /// The image's provenance.
    Provenance,
    /// The builder's `cache.db`.
    CacheDb,
}

/// What a build on one root found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Names of the steps that did not run.
    pub steps: BTreeSet<String>,
    /// Cache manifests imported.
    pub imports: usize,
    /// Layers extracted.
    pub extractions: usize,
}

/// A release's cache on a daemon of a release.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Release that exported the cache.
    pub exporter: String,
    /// Release of the daemon that builds with it.
    pub daemon: String,
    /// Names of all steps of the build there.
    pub steps: BTreeSet<String>,
    /// What its own `--import-cache` finds on an empty root.
    pub native: Found,
    /// What it finds on a root that warmkit baked, by the source of the keys.
    pub baked: BTreeMap<Keys, Found>,
    /// Records of the cache that stay without a key.
    pub unkeyed: BTreeMap<Keys, usize>,
    /// Which releases a bake says wrote the cache, by the source of the keys.
    pub written_by: BTreeMap<Keys, Option<String>>,
    /// What `warmkit verify` says of the root after the build; nothing where it is healthy.
    pub verify: String,
}

impl Cell {
    /// What is not as it should be; empty where every bake is worth what the import is.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let diagonal = self.exporter == self.daemon;
        // Equal, but worth nothing: what every release computes alike is always found.
        if self.native.steps.is_empty() {
            faults.push(format!("the import finds none of {} steps", self.steps.len()));
        }
        if !self.baked.keys().eq(&[Keys::Provenance, Keys::CacheDb]) {
            faults.push(format!("baked with {:?} only", self.baked.keys()));
        }
        for (keys, found) in &self.baked {
            let mut differs = |what: &str, these: Vec<&String>| {
                if !these.is_empty() {
                    faults.push(format!("{keys:?}: {what}: {these:?}"));
                }
            };
            differs("only the import finds", self.native.steps.difference(&found.steps).collect());
            differs("only the baked root has", found.steps.difference(&self.native.steps).collect());
            if diagonal {
                differs("not CACHED", self.steps.difference(&found.steps).collect());
                if (found.imports, found.extractions) != (0, 0) {
                    faults.push(format!(
                        "{keys:?}: {} imports, {} extractions on a baked root",
                        found.imports, found.extractions
                    ));
                }
                if self.unkeyed[keys] > 0 {
                    faults.push(format!("{keys:?}: {} records without a key", self.unkeyed[keys]));
                }
            }
        }
        // A `cache.db` has digests only, of which those of `COPY --link` tell the most.
        let by_link = match family(&self.exporter).as_str() {
            "v0.17" | "v0.18 or newer" => "v0.17 or newer".to_owned(),
            older => older.to_owned(),
        };
        let told = BTreeMap::from([
            (Keys::Provenance, Some(family(&self.exporter))),
            (Keys::CacheDb, Some(by_link)),
        ]);
        if self.written_by != told {
            faults.push(format!("said to be written by {:?}", self.written_by));
        }
        if !self.verify.is_empty() {
            faults.push(format!("verify after the build: {}", self.verify));
        }
        faults.iter().map(|fault| format!("{} on {}: {fault}", self.exporter, self.daemon)).collect()
    }
}

impl Exporter {
    /// Builds on an empty daemon of `release`, and exports. `None` where a part is missing.
    #[track_caller]
    pub fn start(release: &str) -> Option<Self> {
        let tools = Tools::find(release)?;
        let world = World::start(tools.clone());
        let case = world.case(CASE);
        let fresh = world.root(&case, "fresh");
        world.daemon(&fresh).stop();
        let root = world.root(&case, "origin");
        let reference = |tag: &str| world.registry.reference(CASE, tag);
        let (cache, image) = (reference("cache"), reference("image"));
        let daemon = world.daemon(&root);
        let outcome = daemon.build(&case.request.push(&image).export_to(&cache_to(&cache, "")));
        assert_eq!(outcome.not_cached(), outcome.names(), "the origin builds from nothing");
        daemon.stop();
        let sources = BTreeMap::from([
            (Keys::Provenance, image),
            (Keys::CacheDb, format!("type=cachedb,src={}", root.display())),
        ]);
        Some(Self { own_root: judged(&fresh) + &judged(&root), tools, world, case, cache, sources })
    }

    /// The release.
    pub fn release(&self) -> &str {
        &self.tools.release
    }

    /// Takes its cache to a daemon of `release`. `None` where a part is missing.
    #[track_caller]
    pub fn on(&self, release: &str) -> Option<Cell> {
        let tools = Tools::find(release)?;
        let path = |name: &str| self.world.root(&self.case, &format!("{release}/{name}"));
        let (steps, native) =
            self.build(&tools, &path("native"), &self.case.request.import_from(&self.cache));
        assert_eq!(native.imports, 1, "{} on {release}: imported", self.release());

        let mut cell = Cell {
            exporter: self.release().to_owned(),
            daemon: release.to_owned(),
            steps,
            native,
            baked: BTreeMap::new(),
            unkeyed: BTreeMap::new(),
            written_by: BTreeMap::new(),
            verify: String::new(),
        };
        let mut built: Vec<(Vec<Vec<u8>>, Found)> = Vec::new();
        for (keys, source) in &self.sources {
            let root = path(&format!("{keys:?}"));
            let arguments =
                [&self.cache, "--keys-from", source, "--allow-unkeyed", "--images", "none", "--json"];
            let report = bake_at(TIME, &arguments, &root).expect_success("bake").stdout;
            let report: Value = serde_json::from_str(&report).unwrap();
            cell.unkeyed.insert(*keys, report["unkeyed"].as_array().unwrap().len());
            let written_by = report["caches"][0]["written_by"].as_str().map(str::to_owned);
            cell.written_by.insert(*keys, written_by);
            // The same keys give the same root, but for what records are called, and that one was built on
            // already.
            let databases = DATABASES.into_iter().filter(|name| !name.ends_with("metadata_v2.db"));
            let databases: Vec<Vec<u8>> = databases.map(|name| fs::read(root.join(name)).unwrap()).collect();
            let found = if let Some((_, found)) = built.iter().find(|(same, _)| *same == databases) {
                found.clone()
            } else {
                let (steps, found) = self.build(&tools, &root, &self.case.request);
                assert_eq!(steps, cell.steps, "the steps, baked and imported");
                cell.verify.push_str(&judged(&root));
                built.push((databases, found.clone()));
                found
            };
            cell.baked.insert(*keys, found);
            fs::remove_dir_all(&root).unwrap();
        }
        fs::remove_dir_all(path("native")).unwrap();
        // Once in a great many runs a daemon's import misses a few steps that it finds in all others (v0.34.2 with a
        // cache of v0.17.3: steps whose inputs it compares by content). What counts is what an import can find.
        for again in ["again", "and again"] {
            if cell.baked.values().all(|found| found.steps.is_subset(&cell.native.steps)) {
                break;
            }
            let root = path(again);
            let request = self.case.request.import_from(&self.cache);
            cell.native.steps.extend(self.build(&tools, &root, &request).1.steps);
            fs::remove_dir_all(&root).unwrap();
        }
        Some(cell)
    }

    /// Builds on `root` with a daemon of `tools`' release: the names of all steps, and what was found.
    fn build(&self, tools: &Tools, root: &Path, request: &BuildRequest) -> (BTreeSet<String>, Found) {
        let trace = root.with_extension("trace");
        let daemon = Daemon::start(tools, root, &self.world.registry);
        let outcome = daemon.build(&BuildRequest { trace: Some(trace.clone()), ..request.clone() });
        daemon.stop();
        check_databases(tools, root);
        let (steps, ran) = read_trace(&fs::read_to_string(trace).unwrap());
        assert_eq!(steps.iter().map(String::as_str).collect::<BTreeSet<_>>(), outcome.names());
        let found = steps.difference(&ran).cloned().collect();
        (steps, Found { steps: found, imports: outcome.imports, extractions: outcome.extractions })
    }
}

/// What a bake is to say of who wrote the cache of a release.
fn family(release: &str) -> String {
    let minor: u32 = release.split('.').nth(1).unwrap().parse().unwrap();
    match minor {
        ..=12 => "v0.12 or older",
        13..=16 => "v0.13 to v0.16",
        17 => "v0.17",
        18.. => "v0.18 or newer",
    }
    .to_owned()
}

/// What `warmkit verify` finds wrong; nothing where the root is healthy.
fn judged(root: &Path) -> String {
    let ended = verify(&[], root);
    if ended.status.success() { String::new() } else { ended.stdout + &ended.stderr }
}

/// The names of all steps in a trace, and of those that ran: of which no vertex was ever said to be cached.
///
/// Printed progress does not tell: a step that was found in an imported cache prints CACHED, or DONE once one
/// of its layers is extracted, whichever step that was for.
pub fn read_trace(trace: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    // Releases before v0.13 write the names of Go's fields.
    let field = |value: &Value, name: &str| -> Value {
        let mut fields = value.as_object().into_iter().flatten();
        fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone()).unwrap_or_default()
    };
    let mut vertices: BTreeMap<String, (String, bool)> = BTreeMap::new();
    for message in serde_json::Deserializer::from_str(trace).into_iter::<Value>() {
        for vertex in field(&message.unwrap(), "vertexes").as_array().into_iter().flatten() {
            let text = |name| field(vertex, name).as_str().unwrap_or_default().to_owned();
            // The vertices of a COPY --link are printed as a group, under its name.
            let group = field(&field(vertex, "progressgroup"), "name");
            let name = group.as_str().map_or_else(|| text("name"), str::to_owned);
            // As FROM does, the download of an ADD asks in every build.
            let no_inputs = field(vertex, "inputs").as_array().is_none_or(Vec::is_empty);
            let source = no_inputs && name.contains("] ADD ") && name.contains(" http://");
            if build::is_instruction(&name) && !source {
                let (_, cached) = vertices.entry(text("digest")).or_insert((name, false));
                *cached |= field(vertex, "cached").as_bool() == Some(true);
            }
        }
    }
    let names = |of: fn(&bool) -> bool| -> BTreeSet<String> {
        vertices.values().filter(|(_, cached)| of(cached)).map(|(name, _)| name.clone()).collect()
    };
    (names(|_| true), names(|cached| !cached))
}

#[test]
fn a_cell_that_is_not_as_it_should_be_says_so() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let found = |steps: &[&str], imports| Found { steps: names(steps), imports, extractions: 0 };
    let both = |found: Found| BTreeMap::from([(Keys::Provenance, found.clone()), (Keys::CacheDb, found)]);
    let sound = |daemon: &str, steps: &[&str]| Cell {
        exporter: "v0.17.3".to_owned(),
        daemon: daemon.to_owned(),
        steps: names(&["a", "b"]),
        native: found(steps, 1),
        baked: both(found(steps, 0)),
        unkeyed: BTreeMap::from([(Keys::Provenance, 0), (Keys::CacheDb, 0)]),
        written_by: BTreeMap::from([
            (Keys::Provenance, Some("v0.17".to_owned())),
            (Keys::CacheDb, Some("v0.17 or newer".to_owned())),
        ]),
        verify: String::new(),
    };
    let own = || sound("v0.17.3", &["a", "b"]);
    let other = || sound("v0.34.2", &["a"]);
    assert_eq!((own().faults(), other().faults()), (vec![], vec![]));
    let cases = [
        ("only the import finds: [\"a\"]", Cell { baked: both(found(&[], 0)), ..other() }),
        ("only the baked root has: [\"b\"]", Cell { baked: both(found(&["a", "b"], 0)), ..other() }),
        ("finds none of 2 steps", sound("v0.34.2", &[])),
        ("finds none of 0 steps", Cell { steps: names(&[]), ..sound("v0.17.3", &[]) }),
        ("baked with", Cell { baked: BTreeMap::new(), ..other() }),
        ("not CACHED: [\"b\"]", sound("v0.17.3", &["a"])),
        ("1 imports", Cell { baked: both(found(&["a", "b"], 1)), ..own() }),
        (
            "1 records without a key",
            Cell { unkeyed: BTreeMap::from([(Keys::Provenance, 1), (Keys::CacheDb, 0)]), ..own() },
        ),
        ("said to be written by", Cell { written_by: BTreeMap::new(), ..other() }),
        ("verify after the build: hm", Cell { verify: "hm".to_owned(), ..other() }),
    ];
    for (expected, cell) in cases {
        let faults = cell.faults().join("; ");
        assert!(faults.contains(expected), "{expected}: {faults}");
    }
}

#[test]
fn reads_traces_of_old_and_new_releases() {
    let trace = r#"{"Vertexes":[{"Digest":"a","Inputs":["x"],"Name":"[1/3] COPY a /","Cached":false},
                                {"Digest":"u","Inputs":null,"Name":"[2/3] ADD http://b /","Cached":false}]}
                   {"Vertexes":[{"Digest":"a","Inputs":["x"],"Name":"[1/3] COPY a /","Cached":true}]}
                   {"vertexes":[{"digest":"a","inputs":["x"],"name":"[1/3] COPY a /"}],"statuses":[]}
                   {"vertexes":[{"digest":"b","inputs":["a","u"],"name":"[2/3] ADD http://b /","cached":true},
                                {"digest":"d","inputs":["b"],"name":"[3/3] LINK COPY --link c /",
                                 "progressGroup":{"id":"g","name":"[3/3] COPY --link c /"}},
                                {"digest":"i","name":"[internal] load"}]}"#;
    let (steps, ran) = read_trace(trace);
    assert_eq!((steps.len(), ran), (3, BTreeSet::from(["[3/3] COPY --link c /".to_owned()])));
}
