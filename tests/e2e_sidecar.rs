//! The promise: keys that were pushed beside a cache are found without a flag, and are as good as those of any
//! other source; whatever stands beside a cache, no key is wrong, and an error says what to do.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::cases::{assert_warm, cache_to};
use support::command::{Ended, run};
use support::daemon::check_databases;
use support::demo;
use support::warmkit::{bake, warmkit};
use support::{Registry, Scratch, Tools, World, tools};
use warmkit::digest::Digest;
use warmkit::keys::file::KeysFile;
use warmkit::oci::media_type::{OCI_EMPTY, OCI_INDEX, OCI_MANIFEST};

const ARTIFACT: &str = "application/vnd.warmkit.keys.v1";
const LAYER: &str = "application/vnd.warmkit.keys.v1+json";

/// Runs `warmkit keys <arguments>`.
#[track_caller]
fn keys(arguments: &[&str]) -> Ended {
    run(warmkit().arg("keys").args(arguments), Duration::from_secs(60))
}

/// The object that `warmkit keys <arguments> --json` prints.
#[track_caller]
fn json_of(arguments: &[&str]) -> Value {
    let ended = keys(&[arguments, &["--json"]].concat()).expect_success(&format!("keys {arguments:?}"));
    ended.stdout.parse().unwrap()
}

/// What a bake would find, whether it covers everything or not.
#[track_caller]
fn check(cache: &str) -> Value {
    let ended = keys(&["check", cache, "--json"]);
    assert!(matches!(ended.status.code(), Some(0 | 6)), "{}", ended.stderr);
    ended.stdout.parse().unwrap()
}

/// Asserts that a command ends with this code and says this.
#[track_caller]
fn refused(ended: &Ended, code: i32, says: &str) {
    assert_eq!(ended.status.code(), Some(code), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}

/// Asserts that docs/json.md shows these members of a command's object, and no others.
#[track_caller]
fn documented(command: &str, printed: &Value) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap();
    let section = text.split(&format!("## `warmkit {command} --json`")).nth(1).unwrap();
    let example = section.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let example: Value = example.parse().unwrap();
    let members = |value: &Value| {
        let inner = value.as_object().unwrap().iter().flat_map(|(name, value)| {
            let items = value.as_array().and_then(|items| items.first()?.as_object()).into_iter();
            items.flat_map(move |item| item.keys().map(move |inner| format!("{name}/{inner}")))
        });
        let mut all: Vec<_> = inner.chain(value.as_object().unwrap().keys().cloned()).collect();
        all.sort();
        all
    };
    assert_eq!(members(printed), members(&example));
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// From a builder into the registry, from there into a root, and on when the cache is exported again.
#[test]
fn a_pushed_sidecar_warms() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);
    let cache = origin.cache.as_str();
    let builder = format!("type=cachedb,src={}", origin.root.display());

    refused(&keys(&["push", cache]), 6, "give --keys-from a source");
    refused(&keys(&["pull", cache, "-o", "/dev/null"]), 3, "there is no sidecar of");

    let pushed = json_of(&["push", cache, "--keys-from", &builder]);
    let subject = Digest::of(&world.registry.manifest("app", "cache").0);
    assert_eq!(pushed["subject"], subject.to_string());
    assert_eq!(pushed["keyed"], pushed["records"]);
    assert_eq!(pushed["added"], pushed["keys"]);
    documented("keys push", &pushed);
    let list = format!("tag sha256-{}", subject.hex());
    assert_eq!(texts(&pushed["found_by"]), [&list, "tag cache.warmkit-keys"]);

    let again = json_of(&["push", cache, "--keys-from", &builder]);
    assert_eq!((&again["sidecar"], &again["added"]), (&pushed["sidecar"], &json!(0)));

    // What is in the registry tells nothing of the build.
    let (manifest, media_type) = world.registry.manifest("app", "cache.warmkit-keys");
    assert_eq!(media_type, OCI_MANIFEST);
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        (&manifest["artifactType"], &manifest["config"]["mediaType"]),
        (&json!(ARTIFACT), &json!(OCI_EMPTY))
    );
    assert_eq!(manifest["subject"]["digest"], subject.to_string());
    let file = world.registry.blob("app", manifest["layers"][0]["digest"].as_str().unwrap());
    let read = KeysFile::parse(&file).unwrap();
    assert_eq!(json!(read.len()), pushed["keys"]);
    assert_eq!(read.to_bytes().unwrap(), file);

    let output = world.scratch.join("app.keys.json");
    let pulled = json_of(&["pull", cache, "-o", output.to_str().unwrap()]);
    assert_eq!(pulled["sidecars"][0]["digest"], pushed["sidecar"]);
    assert_eq!(fs::read(&output).unwrap(), file);
    documented("keys pull", &pulled);

    // By tag, by digest, and from the file alone.
    let (repository, _) = cache.rsplit_once(':').unwrap();
    let source = format!("type=keys,src={}", output.display());
    for arguments in [
        vec!["check", cache],
        vec!["check", &format!("{repository}@{subject}")],
        vec!["check", cache, "--no-sidecar", "--keys-from", &source],
    ] {
        keys(&arguments).expect_success(&format!("keys {arguments:?}"));
    }
    refused(&keys(&["check", cache, "--no-sidecar"]), 6, "");
    // The same cache under two names: one source of keys, and without it there would be none.
    let twice = json_of(&["check", cache, &format!("{repository}@{subject}")]);
    assert_eq!(twice["keys_from"].as_array().unwrap().len(), 1, "{}", twice["keys_from"]);
    assert_eq!(twice["keys_from"][0]["only"], twice["keys_from"][0]["keyed"]);

    let root = world.root(&case, "sidecar");
    bake(&[cache], &root).expect_success("a bake with nothing but the sidecar");
    check_databases(&world.tools, &root);
    let daemon = world.daemon(&root);
    assert_warm(&daemon.build(&case.request), &origin);

    // The cache is exported again under its tag. A file has changed: other records, the same operations.
    daemon.build(&case.changed.export_to(&cache_to(cache, "")));
    let checked = check(cache);
    let source = |checked: &Value| checked["keys_from"][0]["source"].clone();
    assert_eq!(source(&checked), format!("earlier sidecar of {cache}"));
    assert_eq!(checked["unkeyed"], json!([]));

    // And once more, with a step that there was not.
    let context = &case.changed.context;
    let dockerfile = fs::read_to_string(context.join("Dockerfile")).unwrap() + "\nRUN echo more\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    daemon.build(&case.changed.export_to(&cache_to(cache, "")));
    daemon.stop();
    let checked = check(cache);
    assert_eq!(source(&checked), format!("earlier sidecar of {cache}"));
    let keyed = &checked["keys_from"][0]["keyed"];
    assert!(keyed.as_u64() > Some(0) && checked["unkeyed"] != json!([]), "{checked}");
    // They are carried over to a sidecar of its own, and no key is lost that the new cache can use.
    let carried = json_of(&["push", cache]);
    assert_ne!(carried["subject"], pushed["subject"]);
    assert_eq!((&carried["keyed"], &carried["added"]), (keyed, &carried["keys"]));
    assert_eq!(source(&check(cache)), format!("sidecar of {cache}"));
}

/// Two caches that need no BuildKit: the one of the demo, and one with other records.
struct Demo {
    registry: Registry,
    scratch: Scratch,
    cache: String,
    subject: Digest,
    provenance: String,
}

impl Demo {
    fn push_to(registry: Registry) -> Self {
        let manifest = demo::push(&registry);
        Self {
            cache: registry.reference("demo", "cache"),
            subject: Digest::of(&manifest),
            provenance: demo::keys(),
            scratch: Scratch::new(),
            registry,
        }
    }

    /// On docker's registry, which has no referrers API.
    fn start() -> Option<Self> {
        Tools::find(tools::NEWEST).map(|tools| Self::push_to(Registry::start(&tools)))
    }

    /// Splits the keys of the demo into two files; gives their sources.
    fn halves(&self) -> [String; 2] {
        let whole = self.scratch.join("whole.json");
        json_of(&["push", &self.cache, "--keys-from", &self.provenance]);
        json_of(&["pull", &self.cache, "-o", whole.to_str().unwrap()]);
        let text = fs::read_to_string(&whole).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("{\"digest"))
            .map(|line| line.trim_end_matches(','))
            .collect();
        let (first, second) = lines.split_at(lines.len() / 2);
        assert!(!first.is_empty());
        [("first", first), ("second", second)].map(|(name, lines)| {
            let text = format!("{{\"kind\":\"warmkit-keys\",\"version\":1,\"keys\":[{}]}}", lines.join(","));
            format!("type=keys,src={}", self.scratch.write(name, text).display())
        })
    }

    /// Puts a sidecar there that nobody proved, and lists it under the tag that stands in for the API.
    fn put_sidecar(&self, layer: &Value) -> String {
        self.registry.put_blob("demo", b"{}");
        let config = json!({"mediaType": OCI_EMPTY, "digest": Digest::of(b"{}"), "size": 2});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": ARTIFACT, "config": config, "layers": [layer]})
                .to_string();
        let digest = Digest::of(manifest.as_bytes()).to_string();
        self.registry.put_manifest("demo", &digest, OCI_MANIFEST, manifest.as_bytes());
        let entry = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(), "artifactType": ARTIFACT});
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string();
        let tag = format!("sha256-{}", self.subject.hex());
        self.registry.put_manifest("demo", &tag, OCI_INDEX, index.as_bytes());
        digest
    }
}

/// One registry without the API, one with it, and one that does not say so when it takes a sidecar.
#[test]
fn pushing_twice_merges() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let Some(with) = Registry::start_with_referrers(true) else { return };
    let Some(silent) = Registry::start_with_referrers(false) else { return };
    let whole = Demo::push_to(Registry::start(&tools));
    let [first, second] = whole.halves();
    for (registry, api) in [(Registry::start(&tools), false), (with, true), (silent, true)] {
        let demo = Demo::push_to(registry);
        let one = json_of(&["push", &demo.cache, "--keys-from", &first]);
        let found_by = texts(&one["found_by"]);
        assert_eq!(found_by[0] == "referrers", api, "{found_by:?}");
        assert!(one["keyed"].as_u64() < one["records"].as_u64(), "{one}");
        refused(&keys(&["check", &demo.cache]), 6, "");

        let both = json_of(&["push", &demo.cache, "--keys-from", &second]);
        assert_eq!(both["keyed"], both["records"], "{both}");
        assert_eq!(
            both["added"].as_u64().unwrap() + one["keys"].as_u64().unwrap(),
            both["keys"].as_u64().unwrap()
        );
        let again = json_of(&["push", &demo.cache, "--keys-from", &first]);
        assert_eq!((&again["sidecar"], &again["added"]), (&both["sidecar"], &json!(0)));

        // The first one may still be listed, and is passed over.
        let checked = check(&demo.cache);
        let reports = checked["keys_from"].as_array().unwrap();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert_eq!(reports[0]["source"], format!("sidecar of {}", demo.cache));
        assert_eq!(checked["unkeyed"], json!([]));

        // Found by the digest alone, too: through the list, since a digest has no tag beside it.
        let (repository, _) = demo.cache.rsplit_once(':').unwrap();
        keys(&["check", &format!("{repository}@{}", demo.subject)]).expect_success("check by digest");
    }
}

/// A list that does not tell what replaces what: then the manifests do.
#[test]
fn many_pushes_leave_one_sidecar() {
    let Some(demo) = Demo::start() else { return };
    let halves = demo.halves();
    let mut entries = Vec::new();
    for half in halves.iter().cycle().take(20) {
        // Each names the one before, so each is another one.
        let pushed = json_of(&["push", &demo.cache, "--no-sidecar", "--keys-from", half]);
        entries.push(json!({"mediaType": OCI_MANIFEST, "digest": pushed["sidecar"], "size": 1000, "artifactType": ARTIFACT}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    let list = format!("sha256-{}", demo.subject.hex());
    demo.registry.put_manifest("demo", &list, OCI_INDEX, index.as_bytes());

    let checked = check(&demo.cache);
    assert_eq!(checked["keys_from"].as_array().unwrap().len(), 1, "{checked}");
    let pushed = json_of(&["push", &demo.cache, "--keys-from", &halves[0]]);
    assert_eq!(pushed["keyed"], pushed["records"], "{pushed}");
    assert_eq!(check(&demo.cache)["unkeyed"], json!([]));
}

#[test]
fn a_sidecar_of_another_cache_is_harmless() {
    let Some(demo) = Demo::start() else { return };
    let digests: Vec<_> =
        (0..100_u8).map(|n| json!({"digest": Digest::of(&[n]), "outputs": [0, 1]})).collect();
    let file = json!({"kind": "warmkit-keys", "version": 1, "keys": digests}).to_string();
    demo.registry.put_blob("demo", file.as_bytes());
    let layer = json!({"mediaType": LAYER, "digest": Digest::of(file.as_bytes()), "size": file.len()});
    demo.put_sidecar(&layer);
    let checked = check(&demo.cache);
    let report = &checked["keys_from"][0];
    assert_eq!((&report["candidates"], &report["keyed"]), (&json!(100), &json!(0)));
    refused(&keys(&["push", &demo.cache]), 6, "nothing was pushed");
    // What is not proven does not stay.
    let pushed = json_of(&["push", &demo.cache, "--keys-from", &demo.provenance]);
    assert_eq!(pushed["keyed"], pushed["records"]);
    assert_eq!(check(&demo.cache)["keys_from"][0]["candidates"], pushed["keys"]);
}

#[test]
fn a_damaged_sidecar_is_an_error_that_has_a_way_out() {
    let Some(demo) = Demo::start() else { return };
    let blob = |text: &str| {
        demo.registry.put_blob("demo", text.as_bytes());
        json!({"mediaType": LAYER, "digest": Digest::of(text.as_bytes()), "size": text.len()})
    };
    let small = blob("{}");
    let with = |name: &str, value: Value| {
        let mut layer = small.clone();
        layer[name] = value;
        layer
    };
    let cases = [
        (blob("<html>"), 5, "not a valid keys file"),
        (small.clone(), 5, "it has no \"kind\""),
        (blob("{\"kind\":\"warmkit-keys\",\"version\":2}"), 5, "of version 2"),
        (with("mediaType", json!("text/html")), 5, "its manifest has no layer of media type"),
        (with("size", json!(1_u64 << 40)), 5, "is said to have 1099511627776 bytes"),
        (with("size", json!(3)), 5, "expected 3 bytes"),
    ];
    for (layer, code, says) in cases {
        let digest = demo.put_sidecar(&layer);
        for arguments in [&["check"][..], &["pull", "-o", "/dev/null"], &["push"]] {
            let ended = keys(&[arguments, &[demo.cache.as_str()]].concat());
            refused(&ended, code, says);
            refused(&ended, code, "--no-sidecar");
        }
        let root = demo.scratch.join("root");
        refused(&bake(&[&demo.cache, "--keys-from", &demo.provenance], &root), code, says);
        assert!(!root.exists());
        let without = ["check", &demo.cache, "--no-sidecar", "--keys-from", &demo.provenance];
        keys(&without).expect_success("without the sidecar");

        // A new one takes its place.
        let push = ["push", &demo.cache, "--no-sidecar", "--keys-from", &demo.provenance];
        assert_ne!(json_of(&push)["sidecar"], digest);
        keys(&["check", &demo.cache]).expect_success("after a new push");
    }
}

#[test]
fn what_is_no_sidecar_under_its_tag_is_passed_over() {
    let Some(demo) = Demo::start() else { return };
    let (manifest, media_type) = demo.registry.manifest("demo", "cache");
    demo.registry.put_manifest("demo", "cache.warmkit-keys", &media_type, &manifest);
    let ended = keys(&["check", &demo.cache, "--keys-from", &demo.provenance]).expect_success("check");
    assert!(ended.stderr.contains("holds something else than a sidecar"), "{}", ended.stderr);
}

#[test]
fn a_sidecar_needs_a_registry_that_takes_it() {
    let local = demo::cache();
    refused(&keys(&["push", &local]), 2, "a sidecar is pushed to a registry, and this cache is in none");
    refused(&keys(&["pull", &local, "-o", "x"]), 2, "--keys-from type=keys,src=FILE");

    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let demo = Demo::push_to(Registry::start_with_password(&tools));
    let push = ["push", &demo.cache, "--keys-from", &demo.provenance];
    refused(&keys(&push), 4, "run docker login");
    let mut with_password = warmkit();
    with_password.env("DOCKER_CONFIG", demo.registry.docker_config()).arg("keys").args(push);
    run(&mut with_password, Duration::from_secs(60)).expect_success("push with a password");
}
