//! The promise, on Dockerfiles of the kind people have (tests/corpus): which keys each source has by
//! itself, and that a root which was baked with them is warm for the same build. The daemon is started on the root
//! of harvest; where another source has all keys too, the root that is baked with them has the same `cache.db`.
//!
//! One real builder builds every case, pushes its images with provenance, and exports its caches.
//! docs/coverage.md has what each source was worth, as this test found it; run with
//! `WARMKIT_UPDATE_DOCS=1` it writes that table.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "e2e_corpus/cases.rs"]
mod cases;
mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use cases::{Built, CASES, Case, Corpus, directory};
use support::BuildOutcome;
use support::command::run;
use support::warmkit::{bake_at, warmkit};

/// When all bakes are done, so that equal keys give equal databases.
const TIME: u64 = 1_700_000_000;

/// What was found out about one case.
#[derive(Debug)]
struct Coverage {
    /// Records with inputs: those that need a key.
    records: usize,
    /// Those that provenance alone has not, as the bake names them.
    unkeyed: Vec<String>,
    /// Steps, in all builds of the case.
    steps: usize,
    /// How many of them a replay alone has.
    replayed: usize,
    /// Those that are not CACHED in a root that was baked with provenance alone.
    not_cached: BTreeSet<String>,
}

#[test]
fn coverage_of_the_corpus() {
    let Some(corpus) = Corpus::start() else { return };
    let builder = corpus.daemon(&corpus.scratch.join("builder"));
    let built: Vec<Built> = CASES.iter().map(|case| corpus.export(&builder, case.name)).collect();
    builder.stop();
    let mut failures = String::new();
    let of = |(case, built)| (case, coverage(&corpus, case, built, &mut failures));
    let found: Vec<(&Case, Coverage)> = CASES.iter().zip(&built).map(of).collect();
    assert!(failures.is_empty(), "\n{failures}");
    assert_documented(&document(&corpus, &found));
}

/// The steps of a build, without the stage, target and platform that each is shown for: of those that have
/// it in common a daemon shows the one that it came upon first.
fn names(outcome: &BuildOutcome) -> BTreeSet<&str> {
    let of =
        |name: &'_ str| -> usize { name.split(']').next().and_then(|place| place.rfind(' ')).unwrap_or(0) };
    outcome.names().into_iter().map(|name| &name[of(name)..]).collect()
}

/// Bakes with each source by itself, and starts a daemon on what was baked.
fn coverage(corpus: &Corpus, case: &Case, built: &Built, failures: &mut String) -> Coverage {
    let builder = format!("type=cachedb,src={}", corpus.scratch.join("builder").display());
    let root = corpus.scratch.join("root");

    // The builder's own database: everything.
    let report = baked(built, &[builder], &root);
    assert_eq!(report["unkeyed"], serde_json::json!([]), "{}: by harvest alone", case.name);
    let records = usize::try_from(report["keys_from"][0]["keyed"].as_u64().unwrap()).unwrap();
    assert!(records > 0, "{}: no record needs a key", case.name);
    let warm = fs::read(root.join("cache.db")).unwrap();
    let outcomes = first_build(corpus, case, &root);
    fs::remove_dir_all(&root).unwrap();
    for (outcome, origin) in outcomes.iter().zip(&built.outcomes) {
        let (name, log) = (case.name, &outcome.log);
        let differ = names(outcome) != names(origin);
        let moved = (outcome.imports, outcome.downloads, outcome.extractions);
        let faults = (differ, outcome.not_cached(), moved);
        if faults != (false, BTreeSet::new(), (0, 0, 0)) {
            writeln!(failures, "{name}: (other steps, not CACHED, (imports, downloads, extractions)): {faults:?}\n{log}\n--- the builder's\n{}", origin.log).unwrap();
        }
    }
    let steps = outcomes.iter().map(|outcome| outcome.steps.len()).sum();

    // Provenance: what it has, and what the rest is worth.
    let report = baked(built, &built.images, &root);
    let unkeyed = report["unkeyed"].as_array().unwrap();
    let unkeyed: Vec<String> = unkeyed
        .iter()
        .filter(|record| record["only_inputs"] == false)
        .map(|record| record["name"].as_str().unwrap_or("(no name)").to_owned())
        .collect();
    let mut not_cached = BTreeSet::new();
    let mut check_warm = |root: &Path, source: &str| {
        if fs::read(root.join("cache.db")).unwrap() != warm {
            writeln!(failures, "{}: the keys of {source} alone are not those of harvest", case.name).unwrap();
        }
    };
    if unkeyed.is_empty() {
        check_warm(&root, "provenance");
    } else {
        let outcomes = first_build(corpus, case, &root);
        not_cached.extend(outcomes.iter().flat_map(BuildOutcome::not_cached).map(str::to_owned));
    }
    fs::remove_dir_all(&root).unwrap();

    // The build itself, solved once more.
    let mut arguments = corpus.replayed(case.name, built);
    if !case.not_replayed.is_empty() {
        arguments.push("--allow-unkeyed".to_owned());
    }
    let report = baked(built, &[replay(corpus, case.name, &arguments)], &root);
    let replayed = usize::try_from(report["keys_from"][0]["keyed"].as_u64().unwrap()).unwrap();
    if case.not_replayed.is_empty() {
        assert_eq!(report["unkeyed"], serde_json::json!([]), "{}: by replay alone", case.name);
        check_warm(&root, "replay");
    }
    fs::remove_dir_all(&root).unwrap();
    Coverage { records, unkeyed, steps, replayed, not_cached }
}

/// Solves a build with its cache; gives the key source.
fn replay(corpus: &Corpus, name: &str, arguments: &[String]) -> String {
    let keys = corpus.scratch.join(format!("{name}.keys.json"));
    let mut command = warmkit();
    command.args(["keys", "replay", "-o"]).arg(&keys).arg("--buildkitd").arg(&corpus.tools.buildkitd);
    let ended = run(command.args(arguments), Duration::from_secs(120));
    ended.expect_success(&format!("{name}: keys replay {arguments:?}"));
    format!("type=keys,src={}", keys.display())
}

fn first_build(corpus: &Corpus, case: &Case, root: &Path) -> Vec<BuildOutcome> {
    let daemon = corpus.daemon(root);
    let outcomes = corpus.again(&daemon, case.name);
    assert_eq!(daemon.logged_errors(), [""; 0], "{}", case.name);
    daemon.stop();
    outcomes
}

/// What a bake of all caches of a case reports, with these key sources.
fn baked(built: &Built, sources: &[String], root: &Path) -> Value {
    let mut arguments: Vec<&str> = built.caches.iter().map(String::as_str).collect();
    // Images that are seeded have keys of their own.
    arguments.extend(["--allow-unkeyed", "--images", "none", "--json"]);
    arguments.extend(sources.iter().flat_map(|source| ["--keys-from", source]));
    let ended = bake_at(TIME, &arguments, root).expect_success(&format!("bake {arguments:?}"));
    serde_json::from_str(&ended.stdout).unwrap()
}

/// The rows of the table, and what it cannot say in a row.
fn document(corpus: &Corpus, found: &[(&Case, Coverage)]) -> String {
    let count = |part: usize, whole: usize| match part {
        part if part == whole => "all".to_owned(),
        part => format!("{part} of {whole}"),
    };
    let mut text = String::from(
        "| Dockerfile | what is in it | records | provenance | harvest | replay | steps |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (Case { name, what, .. }, coverage) in found {
        let Coverage { records, unkeyed, replayed, steps, .. } = coverage;
        let provenance = count(records - unkeyed.len(), *records);
        let replay = count(*replayed, *records);
        writeln!(
            text,
            "| [{name}](../tests/corpus/{name}) | {what} | {records} | {provenance} | all | {replay} | {steps} |"
        )
        .unwrap();
    }
    let lacking: Vec<_> = found.iter().filter(|(_, coverage)| !coverage.unkeyed.is_empty()).collect();
    for (case, coverage) in lacking {
        assert_ne!(case.lacks, "", "{}: nothing says why {:?} have no key", case.name, coverage.unkeyed);
        let steps: Vec<String> =
            coverage.not_cached.iter().map(|step| format!("`{}`", anywhere(corpus, step))).collect();
        writeln!(
            text,
            "\n- **{}**: {} With provenance alone not CACHED: {}.",
            case.name,
            case.lacks,
            steps.join(", ")
        )
        .unwrap();
    }
    for (case, _) in found.iter().filter(|(_, coverage)| coverage.replayed < coverage.records) {
        writeln!(text, "- **{}**: replay: {}", case.name, case.not_replayed).unwrap();
    }
    text
}

/// A step's name without what is so in this run and on this machine only.
fn anywhere(corpus: &Corpus, step: &str) -> String {
    step.replace(&corpus.registry.host(), "registry")
        .replace(&warmkit::oci::Platform::host().to_string(), "linux/amd64")
}

/// Asserts that docs/coverage.md has this text, or writes it there.
fn assert_documented(text: &str) {
    const BEGIN: &str = "<!-- written by tests/e2e_corpus.rs: begin -->\n";
    const END: &str = "<!-- written by tests/e2e_corpus.rs: end -->\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coverage.md");
    let before = fs::read_to_string(&file).unwrap();
    let (head, rest) = before.split_once(BEGIN).unwrap();
    let (documented, tail) = rest.split_once(END).unwrap();
    if std::env::var_os("WARMKIT_UPDATE_DOCS").is_some_and(|v| v == "1") {
        return fs::write(file, [head, BEGIN, text, END, tail].concat()).unwrap();
    }
    assert_eq!(documented, text, "docs/coverage.md is not what was found; WARMKIT_UPDATE_DOCS=1 writes it");
}

/// Why a replay of that case ends at the scan: so does BuildKit's own import.
#[test]
fn an_import_does_not_find_the_scan_for_an_sbom() {
    let Some(corpus) = Corpus::start() else { return };
    let builder = corpus.daemon(&corpus.scratch.join("builder"));
    let built = corpus.export(&builder, "attested");
    builder.stop();
    let daemon = corpus.daemon(&corpus.scratch.join("importer"));
    let request = corpus.requests("attested").remove(0).import_from(&built.caches[0]);
    let outcome = daemon.build(&request.tar(&corpus.scratch.join("imported.tar")));
    daemon.stop();
    let ran: Vec<&str> = outcome.ran().into_iter().collect();
    assert!(matches!(ran[..], [step] if step.contains("generating sbom")), "{ran:?}\n{}", outcome.log);
}

/// No case is left out by mistake.
#[test]
fn every_directory_is_a_case() {
    let directories = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap());
    let directories = directories.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut found: BTreeSet<String> =
        directories.map(|entry| entry.file_name().into_string().unwrap()).collect();
    // What the images of all cases are made of.
    assert!(found.remove("toolchain") && found.remove("scanner"));
    assert_eq!(found, CASES.iter().map(|case| case.name.to_owned()).collect());
}
