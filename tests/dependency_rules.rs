//! Who may import whom (docs/architecture.md, "Modules"), read from the sources themselves.
//!
//! Paths that start at the crate's root are looked at, however they are written: `crate::a::b`,
//! `use crate::{a::b, c}`, or enough `super::` to get there. Test code may import what it likes.

#![allow(clippy::unwrap_used, reason = "a test that cannot read the sources has failed")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What a module may import, as prefixes of paths, and what not even so.
struct Rule {
    module: &'static str,
    may: &'static [&'static str],
    may_not: &'static [&'static str],
}

const RULES: &[Rule] = &[
    // The ground floor knows nothing above it.
    Rule { module: "csv", may: &[], may_not: &[] },
    Rule { module: "digest", may: &[], may_not: &[] },
    Rule { module: "fsutil", may: &[], may_not: &[] },
    Rule { module: "progress", may: &["digest"], may_not: &[] },
    Rule { module: "userns", may: &[], may_not: &[] },
    Rule { module: "oci", may: &["digest"], may_not: &[] },
    Rule { module: "bolt", may: &["fsutil"], may_not: &[] },
    // A builder beside this program: it knows nothing of caches and stores.
    Rule { module: "daemon", may: &[], may_not: &[] },
    Rule { module: "builder", may: &["daemon", "fsutil", "userns"], may_not: &[] },
    // A service beside this program, too; the only module with futures in it.
    Rule { module: "containerd", may: &[], may_not: &[] },
    // These four do not know each other: gather and bake join them.
    Rule { module: "source", may: &["oci", "csv", "digest", "progress"], may_not: &[] },
    Rule {
        module: "keys",
        may: &["oci", "csv", "digest", "bolt"],
        may_not: &["bolt::Bucket", "bolt::PageSize", "bolt::write"],
    },
    Rule {
        module: "layer",
        may: &["oci::Compression", "oci::media_type", "digest", "fsutil", "userns"],
        may_not: &[],
    },
    // A forecast from what others read of a root.
    Rule { module: "gc", may: &["root::Usage"], may_not: &[] },
    Rule { module: "store", may: &["bolt", "oci", "digest", "fsutil"], may_not: &[] },
    Rule {
        module: "gather",
        may: &["source", "keys", "builder", "daemon", "oci", "digest", "fsutil", "progress"],
        may_not: &[],
    },
    Rule {
        module: "replay",
        may: &["daemon", "source", "keys", "oci", "digest", "fsutil", "progress"],
        may_not: &[],
    },
    Rule {
        module: "bake",
        may: &[
            "gather",
            "replay",
            "source",
            "keys",
            "layer",
            "store",
            "containerd",
            "gc",
            "oci",
            "digest",
            "fsutil",
            "progress",
            "userns",
        ],
        may_not: &[],
    },
    // Nor does what reads roots know what writes them: a writer's fault would verify itself.
    Rule {
        module: "root",
        may: &["bolt", "digest", "containerd"],
        may_not: &["bolt::Bucket", "bolt::PageSize", "bolt::write"],
    },
    // What a bake would write is what it plans.
    Rule {
        module: "inspect",
        may: &["gather", "bake::plan", "root", "oci", "digest", "store::ids"],
        may_not: &[],
    },
    // Never a writer. Of layers it reads the entries.
    Rule {
        module: "verify",
        may: &[
            "userns",
            "root",
            "oci",
            "daemon",
            "gc",
            "digest",
            "fsutil",
            "progress",
            "store::ids",
            "layer::entries",
            "layer::Entry",
            "layer::Kind",
            "layer::Owner",
            "layer::Device",
            "layer::Time",
            "layer::Whiteout",
            "layer::Content",
            "layer::Segment",
            "layer::Compression",
            "layer::Error",
        ],
        may_not: &[],
    },
    // It reads, and only reads.
    Rule { module: "hydrate", may: &["root", "progress"], may_not: &[] },
    Rule {
        module: "cli",
        may: &[
            "gather",
            "hydrate",
            "bake",
            "gc",
            "fsutil",
            "root",
            "inspect",
            "verify",
            "replay",
            "builder",
            "daemon",
            "source",
            "keys",
            "layer::Error",
            "layer::Refusal",
            "oci",
            "digest",
            "progress",
            "userns",
        ],
        may_not: &[],
    },
    // The crate's root declares modules, and imports nothing.
    Rule { module: "lib", may: &[], may_not: &[] },
];

fn is_within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl Rule {
    fn allows(&self, path: &str) -> bool {
        let own = is_within(path, self.module);
        // A module's own name alone uses nothing of it: what is reached through it is looked at.
        let may = self.may.iter().any(|prefix| is_within(path, prefix) || is_within(prefix, path));
        let may_not = self.may_not.iter().any(|prefix| is_within(path, prefix));
        own || (may && !may_not)
    }
}

/// The sources under `dir`, each with its path from there.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(dir).unwrap().to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

/// The modules that a file stands in: `store/content.rs` gives `["store", "content"]`.
fn modules(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Source text without comments and without test code, which stands last in its file.
fn product_code(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let end = lines
        .windows(2)
        .position(|pair| {
            pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        })
        .unwrap_or(lines.len());
    lines[..end].iter().fold(String::new(), |mut code, line| {
        let _ = writeln!(code, "{}", line.split("//").next().unwrap_or_default());
        code
    })
}

/// Every path from the crate's root in `code`, without `crate::`.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    // In a file of depth n, n times `super::` is the crate's root.
    let mut found = BTreeSet::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth)] {
        paths_after(code, &root, "", &mut found);
    }
    // A module that was imported by its name is a way to everything in it.
    let by_name: Vec<String> = found.iter().filter(|path| !path.contains("::")).cloned().collect();
    for module in by_name {
        let prefix = format!("{module}::");
        paths_after(code, &prefix, &prefix, &mut found);
    }
    found
}

/// Every path in `code` that begins with `root`, with `prefix` in its place.
fn paths_after(code: &str, root: &str, prefix: &str, found: &mut BTreeSet<String>) {
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            tree(&code[at + root.len()..], prefix, found);
        }
    }
}

/// Reads one use tree (`a::{b, c as d}`) into the paths it stands for; gives what follows it.
fn tree<'a>(text: &'a str, prefix: &str, found: &mut BTreeSet<String>) -> &'a str {
    let text = text.trim_start();
    let in_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '*');
    let (path, mut rest) = text.split_at(text.find(|c| !in_path(c)).unwrap_or(text.len()));
    let path = format!("{prefix}{path}");
    let Some(mut group) = rest.strip_prefix('{') else {
        let path = path.trim_end_matches("::self").trim_end_matches(':');
        if !path.is_empty() {
            found.insert(path.to_owned());
        }
        if let Some(renamed) = rest.trim_start().strip_prefix("as ") {
            rest = renamed.trim_start().trim_start_matches(in_path);
        }
        return rest;
    };
    loop {
        group = group.trim_start();
        if let Some(after) = group.strip_prefix('}') {
            return after;
        }
        group = tree(group, &path, found).trim_start();
        match group.strip_prefix(',') {
            Some(next) => group = next,
            None => return group.strip_prefix('}').unwrap_or(group),
        }
    }
}

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = String::new();
    let mut seen = BTreeSet::new();
    for (file, text) in sources(&src) {
        let place = modules(&file);
        // main.rs is a crate of its own, and sees the library's public face only.
        if place == ["main"] || place.last().is_some_and(|last| last == "tests") {
            continue;
        }
        seen.insert(place[0].clone());
        let Some(rule) = RULES.iter().find(|rule| rule.module == place[0]) else {
            let _ = writeln!(faults, "{}: no rule for this module", file.display());
            continue;
        };
        for path in imports(&product_code(&text), place.len()) {
            if !rule.allows(&path) {
                let _ = writeln!(faults, "{}: {} must not import {path}", file.display(), rule.module);
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
    for rule in RULES {
        assert!(seen.contains(rule.module), "the rule for {} is about nothing", rule.module);
    }
}

#[test]
fn the_reader_finds_every_way_to_write_a_path() {
    let code = product_code(
        "use crate::store::{self, content::{Blob, write as w}, ids};\n\
         fn g() { store::write_databases(); my_store::f(); x::store::g() }\n\
         use crate::{\n    digest::{\n        DiffId,\n        Digest,\n    },\n    keys,\n};\n\
         // use crate::commented;\n\
         pub(crate) use crate::oci;\n\
         fn f() -> crate::bolt::Result<()> { super::super::layer::unpack(); super::near() }\n\
         impl crate::progress::Progress for X {}\n\
         use other_crate::cli;\n\
         #[cfg(test)]\nmod tests {\n use crate::bake;\n}\n",
    );
    let expected = [
        "bolt::Result",
        "digest::DiffId",
        "digest::Digest",
        "keys",
        "layer::unpack",
        "oci",
        "progress::Progress",
        "store",
        "store::content::Blob",
        "store::content::write",
        "store::ids",
        "store::write_databases",
    ];
    assert_eq!(imports(&code, 2).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_rule_holds_for_whole_names() {
    for (module, path, allowed) in [
        ("root", "bolt::Database", true),
        ("root", "bolt::BucketRef", true),
        ("root", "bolt::Bucket", false),
        ("root", "bolt::write", false),
        ("root", "bolt::write::to_file", false),
        ("verify", "verify::offline", true),
        ("verify", "bolt::Database", false),
        ("verify", "store::ids::RecordId", true),
        ("verify", "store::content::write", false),
        ("verify", "store", true),
        ("verify", "store::write_databases", false),
        ("verify", "layer::entries", true),
        ("verify", "layer::unpack", false),
        ("verify", "bake", false),
    ] {
        let rule = RULES.iter().find(|rule| rule.module == module).unwrap();
        assert_eq!(rule.allows(path), allowed, "{module}: {path}");
    }
}
