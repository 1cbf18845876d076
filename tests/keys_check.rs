//! `warmkit keys check` agrees with what a bake does, counts each key source for what it is worth, and
//! never takes a source or a cache that it could not read for one that has nothing.
//!
//! The caches are made here or taken from fixtures/demo, so nothing but this binary runs.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/handmade.rs"]
mod handmade;
#[path = "source_registry/server.rs"]
#[allow(dead_code, reason = "made for another test file, which uses all of it")]
mod server;
#[allow(dead_code, unreachable_pub, reason = "made for other test files too")]
#[path = "support/shipped.rs"]
mod shipped;
#[path = "support/skip.rs"]
mod skip;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use handmade::{Handmade, write_keys};
use serde_json::{Value, json};
use server::{Answer, Request, Server};
use skip::is_root;
use warmkit::gather::{self, Check, ErrorClass};
use warmkit::progress::Silent;
use warmkit::source::{self, Environment, RetryPolicy};

fn warmkit(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
    command.env("DOCKER_CONFIG", "/nonexistent").env_remove("REGISTRY_AUTH_FILE");
    command.args(arguments).output().unwrap()
}

/// Runs a command with `--json`; gives its object and exit code.
fn json_of(arguments: &[&str]) -> (Value, i32) {
    let output = warmkit(&[arguments, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let value = text.parse().unwrap_or_else(|e| panic!("{e}: {text}{}", stderr(&output)));
    (value, output.status.code().unwrap())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Little patience, and nothing of this machine's.
fn options() -> gather::Options {
    let registry = source::Options {
        env: Environment::default(),
        certs_dirs: Vec::new(),
        retry: RetryPolicy {
            failures: 2,
            failures_before_first_answer: 2,
            first_wait: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        ..source::Options::default()
    };
    gather::Options { registry, ..gather::Options::default() }
}

fn check(caches: &[&str], skip_missing: bool, keys: &[&str]) -> Result<Check, gather::Error> {
    let caches: Vec<_> = caches.iter().map(|cache| cache.parse().unwrap()).collect();
    let keys: Vec<_> = keys.iter().map(|keys| keys.parse().unwrap()).collect();
    gather::check(&caches, skip_missing, &keys, &options(), &Silent)
}

/// A root, two steps on it and one on both.
fn small() -> Handmade {
    let mut cache = Handmade::default();
    let (base, a) = (cache.layer("base", None), cache.layer("a", Some(0)));
    let root = cache.record("root", &[], &[base]);
    let first = cache.record("first", &[&[root]], &[a]);
    let second = cache.record("second", &[&[root]], &[]);
    cache.record("both", &[&[first], &[second]], &[a]);
    cache
}

#[test]
fn says_what_a_bake_would() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let root = root.to_str().unwrap();
    let (cache, keys) = (shipped::cache(), shipped::keys());
    let small = small().write(&scratch.path().join("small"));
    let some = write_keys(&scratch.path().join("some.db"), ["first", "both", "other"]);
    let cases: [&[&str]; 5] = [
        &[&cache],
        &[&cache, "--keys-from", &keys],
        &[&cache, &small, "--keys-from", &keys],
        &[&small, "--keys-from", &some],
        &[&small, &small, &cache, "--keys-from", &some, "--keys-from", &keys],
    ];
    for case in cases {
        let (check, check_code) = json_of(&[&["keys", "check"], case].concat());
        let (bake, code) = json_of(&[&["bake"], case, &["--root", root]].concat());
        assert_eq!(check_code, code, "{case:?}");
        let unkeyed = if code == 0 { &bake["unkeyed"] } else { &bake["error"]["unkeyed"] };
        assert_eq!(&check["unkeyed"], unkeyed, "{case:?}");
        let (allowed, _) =
            json_of(&[&["bake"], case, &["--allow-unkeyed", "--root", &format!("{root}-all")]].concat());
        for member in ["caches", "missing", "keys_from", "records", "keyed", "unkeyed"] {
            assert_eq!(check[member], allowed[member], "{member} of {case:?}");
        }
        for root in [root, &format!("{root}-all")] {
            let _ = std::fs::remove_dir_all(root);
        }
    }

    let output = warmkit(&["keys", "check", &cache, "--keys-from", &keys]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("from 1") && text.contains("RUN ") && text.contains("0 have none"), "{text}");
}

#[test]
fn each_step_has_its_sources() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let cache = small().write(&path("cache"));
    let one = write_keys(&path("one.db"), ["first", "unrelated"]);
    let two = write_keys(&path("two.db"), ["first", "both"]);
    let checked = check(&[&cache], false, &[&one, &two]).unwrap();
    let worth: Vec<_> = checked.keys_from.iter().map(|s| (s.candidates, s.keyed, s.only)).collect();
    assert_eq!(worth, [(2, 1, 0), (2, 2, 1)]);
    assert_eq!((checked.records, checked.roots, checked.keyed), (4, 1, 2));
    let steps = serde_json::to_value(&checked.steps).unwrap();
    let fates: BTreeSet<(&str, String)> = steps
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (step["status"].as_str().unwrap(), step["sources"].to_string()))
        .collect();
    let expected = [("keyed", "[0,1]"), ("unkeyed", "[]"), ("only-inputs", "[1]")];
    assert_eq!(fates, expected.map(|(status, sources)| (status, sources.to_owned())).into());
}

/// A step that one cache has on inputs without a key is not found because another cache has the same
/// operation on others.
#[test]
fn an_equal_operation_elsewhere_keys_nothing_here() {
    let scratch = tempfile::tempdir().unwrap();
    let mut here = Handmade::default();
    let root = here.record("root", &[], &[]);
    let lost = here.record("lost", &[&[root]], &[]);
    here.record("step", &[&[lost]], &[]);
    let mut there = Handmade::default();
    let root = there.record("root", &[], &[]);
    there.record("step", &[&[root]], &[]);
    let caches = [here.write(&scratch.path().join("a")), there.write(&scratch.path().join("b"))];
    let keys = write_keys(&scratch.path().join("keys.db"), ["step"]);
    for order in [[0, 1], [1, 0]] {
        let caches = order.map(|at| caches[at].as_str());
        let checked = check(&caches, false, &[&keys]).unwrap();
        let only_inputs: Vec<bool> = checked.unkeyed.iter().map(|record| record.only_inputs).collect();
        assert_eq!((checked.records, checked.keyed, only_inputs.len()), (4, 2, 2));
        assert_eq!(only_inputs.iter().filter(|only| **only).count(), 1);
    }
}

/// A registry with caches under these tags of any repository.
struct Tags {
    server: Server,
}

impl Tags {
    /// `answer` may answer a manifest's request in its own way; the rest is [`small`].
    fn start(answer: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let (manifest, blobs) = small().documents();
        let server = Server::start(move |request| {
            // No sidecars, by neither way to find them.
            if ["/referrers/", "/manifests/sha256-"].iter().any(|part| request.target.contains(part)) {
                return Answer::new(404, "");
            }
            if let Some(answer) = answer(request) {
                return answer;
            }
            if request.target.contains("/manifests/") {
                return Answer::new(200, manifest.clone());
            }
            let digest = request.target.rsplit('/').next().unwrap();
            match blobs.iter().find(|(known, _)| known.to_string() == digest) {
                Some((_, blob)) => Answer::new(200, blob.clone()),
                None => Answer::new(404, ""),
            }
        });
        Self { server }
    }

    fn reference(&self, tag: &str) -> String {
        format!("{}/acme/app:{tag}", self.server.addr)
    }
}

#[test]
fn no_layer_is_pulled() {
    let scratch = tempfile::tempdir().unwrap();
    let tags = Tags::start(|_| None);
    let keys = write_keys(&scratch.path().join("keys.db"), ["first", "second", "both"]);
    let checked = check(&[&tags.reference("a"), &tags.reference("b")], false, &[&keys]).unwrap();
    assert_eq!((checked.records, checked.keyed), (4, 4));
    let config = small().documents().1.last().unwrap().0;
    let blobs: Vec<String> =
        tags.server.targets().into_iter().filter(|target| target.contains("/blobs/")).collect();
    assert_eq!(blobs, vec![format!("/v2/acme/app/blobs/{config}"); 2]);
}

#[test]
fn a_key_source_that_cannot_be_read_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let cache = small().write(&scratch.path().join("cache"));
    let good = write_keys(&scratch.path().join("keys.db"), ["first", "second", "both"]);
    let broken = Server::start(|request| match request.target.as_str() {
        target if target.contains("/broken/") => Answer::new(500, ""),
        target if target.contains("/locked/") => Answer::new(403, ""),
        target if target.contains("/plain/") => Answer::new(
            200,
            json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [],
            })
            .to_string(),
        ),
        _ => Answer::new(404, ""),
    });
    // Nobody listens there once it is dropped.
    let gone = Server::start(|_| Answer::new(200, "")).addr;
    let here = broken.addr;
    let none = scratch.path().join("none").display().to_string();
    let cases = [
        (format!("type=image,ref={gone}/app:1"), ErrorClass::Source, "gave up"),
        (format!("type=image,ref={here}/broken/app:1"), ErrorClass::Source, "status 500"),
        (format!("type=image,ref={here}/absent/app:1"), ErrorClass::Source, "no such tag \"1\""),
        (format!("type=image,ref={here}/locked/app:1"), ErrorClass::Authentication, "denies access"),
        (format!("type=image,ref={here}/plain/app:1"), ErrorClass::Source, "has no provenance"),
        (format!("type=provenance,src={none}"), ErrorClass::Source, "cannot read"),
        (format!("type=cachedb,src={none}"), ErrorClass::Source, "cannot read"),
    ];
    for (source, class, expected) in cases {
        // Whatever the other sources have: a record less than there could be must not go unnoticed.
        let error = check(&[&cache], true, &[&good, &source]).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.class(), class, "{message}");
        assert!(message.contains(expected), "{source}: {message}");
    }
    let output = warmkit(&["keys", "check", &cache, "--keys-from", &format!("type=provenance,src={none}")]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains(&none) && output.stdout.is_empty());
}

fn absent(request: &Request) -> Option<Answer> {
    let gone = ["/manifests/gone", "/manifests/lost"].iter().any(|part| request.target.contains(part));
    gone.then(|| Answer::new(404, ""))
}

#[test]
fn all_missing_caches_are_named_and_can_be_skipped() {
    let scratch = tempfile::tempdir().unwrap();
    let tags = Tags::start(absent);
    let keys = write_keys(&scratch.path().join("keys.db"), ["first", "second", "both"]);
    let no_directory = format!("type=local,src={}/none", scratch.path().display());
    let list = scratch.path().join("caches.txt");
    let lines = ["a", "gone", "b", "lost-1", "c", "lost-2"].map(|tag| tags.reference(tag));
    std::fs::write(&list, lines.join("\n")).unwrap();
    let list = format!("@{}", list.display());

    let arguments = ["keys", "check", &list, &no_directory, "--keys-from", &keys];
    let output = warmkit(&arguments);
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    let named: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
    let starts = [&lines[1], &lines[3], &lines[5], &no_directory];
    assert_eq!(named.len(), starts.len(), "{text}");
    for (line, start) in named.iter().zip(starts) {
        assert!(line.contains(start.as_str()), "{line} is not about {start}");
    }
    assert!(text.contains("4 of 7 caches are not there") && text.contains("--skip-missing"), "{text}");

    let (report, code) = json_of(&[arguments.as_slice(), &["--skip-missing"]].concat());
    assert_eq!(code, 0);
    let skipped: Vec<&str> =
        report["missing"].as_array().unwrap().iter().map(|m| m["cache"].as_str().unwrap()).collect();
    assert_eq!(skipped.len(), 4);
    assert!(skipped[0].ends_with(&lines[1]) && skipped[3] == no_directory, "{skipped:?}");
    assert_eq!(report["caches"].as_array().unwrap().len(), 3);

    for skip_missing in [false, true] {
        let caches = [tags.reference("gone"), tags.reference("lost")];
        let error = check(&[&caches[0], &caches[1]], skip_missing, &[]).unwrap_err().to_string();
        assert!(error.starts_with("none of the 2 caches is there:"), "{error}");
        let error = check(&[&caches[0]], skip_missing, &[]).unwrap_err().to_string();
        assert!(error.contains("no such tag \"gone\""), "{error}");
    }
}

#[test]
fn only_what_is_not_there_is_skipped() {
    let cases =
        [(401, ErrorClass::Authentication), (403, ErrorClass::Authentication), (500, ErrorClass::Source)];
    for (status, class) in cases {
        let tags = Tags::start(move |request| {
            let bad = request.target.contains("/manifests/bad");
            absent(request).or_else(|| bad.then(|| Answer::new(status, "")))
        });
        let caches = ["gone", "a", "bad", "lost"].map(|tag| tags.reference(tag));
        let error = check(&caches.each_ref().map(String::as_str), true, &[]).unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains(":bad"), "{error}");
    }
    let broken = tempfile::tempdir().unwrap();
    let tags = Tags::start(|_| None);
    let local = format!("type=local,src={}", broken.path().display());
    let error = check(&[&tags.reference("a"), &local], true, &[]).unwrap_err().to_string();
    assert!(error.contains("it has no index.json"), "{error}");
}

/// Two hundred tags of one repository: asked for side by side, with one token between them.
#[test]
fn many_tags_are_read_side_by_side() {
    #[derive(Default)]
    struct Seen {
        now: usize,
        most: usize,
    }
    let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
    let tags = {
        let seen = Arc::clone(&seen);
        let realm: Arc<Mutex<String>> = Arc::default();
        let known = Arc::clone(&realm);
        let tags = Tags::start(move |request| {
            if request.target.starts_with("/token") {
                return Some(Answer::new(200, r#"{"token":"abc"}"#));
            }
            if request.header("authorization").is_none() {
                let challenge = format!("Bearer realm=\"{}\",service=\"s\"", known.lock().unwrap());
                return Some(Answer::new(401, "").header("www-authenticate", challenge));
            }
            if request.target.contains("/manifests/") {
                // An answer waits until two are asked for, so that reading one after the other shows.
                let (state, changed) = &*seen;
                let mut state = state.lock().unwrap();
                state.now += 1;
                state.most = state.most.max(state.now);
                changed.notify_all();
                let together = |state: &mut Seen| state.most < 2;
                let (mut state, _) =
                    changed.wait_timeout_while(state, Duration::from_secs(20), together).unwrap();
                state.now -= 1;
            }
            None
        });
        *realm.lock().unwrap() = format!("http://{}/token", tags.server.addr);
        tags
    };
    let names: Vec<String> = (0..200).map(|n| tags.reference(&format!("branch-{n}"))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let checked = check(&names, false, &[]).unwrap();
    let order: Vec<&str> = checked.caches.iter().map(|c| c.cache.rsplit_once("app:").unwrap().1).collect();
    assert_eq!(order, (0..200).map(|n| format!("branch-{n}")).collect::<Vec<_>>());
    assert_eq!(checked.records, 4);
    let most = seen.0.lock().unwrap().most;
    assert!((2..=16).contains(&most), "{most} at a time");
    let tokens = tags.server.targets().iter().filter(|target| target.starts_with("/token")).count();
    assert_eq!(tokens, 1, "a token for each tag");
}

#[test]
fn caches_that_contradict_each_other_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut caches = ["a", "b"].map(|_| Handmade::default());
    for (cache, tar) in caches.iter_mut().zip(["one", "two"]) {
        let layer = cache.blob(b"blob".to_vec(), warmkit::digest::DiffId::of(tar.as_bytes()), None);
        cache.record("root", &[], &[layer]);
    }
    let [a, b] =
        [("a", &caches[0]), ("b", &caches[1])].map(|(name, cache)| cache.write(&scratch.path().join(name)));
    let output = warmkit(&["keys", "check", &a, &b]);
    assert_eq!(output.status.code(), Some(5));
    let text = stderr(&output);
    assert!(text.contains(&format!("{a} and {b} claim different diff IDs for layer")), "{text}");
}
