//! Each kind of damage to a good root is reported by its name.
//!
//! The good root is baked from the cache in `fixtures/demo`, so no daemon is needed. Every damage is done
//! to a copy of its own. What is reported for each, all of it, is pinned in one snapshot: the names in it are the
//! promise, and that a damage does not set off unrelated findings is another.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    unreachable_pub
)]

mod damages;
mod hostile;
mod parts;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use support::bolt_tree::{self, Tree};
use support::{Scratch, demo};
use warmkit::progress::Silent;
use warmkit::verify::{self, FindingKind, Report, Severity};

/// A root, and where its files are.
pub struct Root(PathBuf);

impl Root {
    /// A path in it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A path in its worker's directory.
    pub fn worker(&self, path: &str) -> PathBuf {
        self.0.join("runc-overlayfs").join(path)
    }

    /// The file of a database, by a short name.
    pub fn database(&self, name: &str) -> PathBuf {
        match name {
            "cache" => self.path("cache.db"),
            "records" => self.worker("metadata_v2.db"),
            "containerd" => self.worker("containerdmeta.db"),
            "snapshots" => self.worker("snapshots/metadata.db"),
            name => panic!("no database {name}"),
        }
    }

    /// Changes a database.
    #[track_caller]
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Tree)) {
        bolt_tree::edit(&self.database(name), change);
    }

    /// A name in the snapshotter's own database with the number that comes next.
    pub fn next_name(&self) -> String {
        let mut metadata = self.read("containerd");
        format!("buildkit/{}/x", metadata.at(&parts::SNAPSHOTS).sequence + 1)
    }

    /// Reads a database.
    #[track_caller]
    pub fn read(&self, name: &str) -> Tree {
        bolt_tree::read(&self.database(name))
    }
}

/// Bakes the good root; `None` without root, after it said so.
pub fn good_root(scratch: &Scratch) -> Option<Root> {
    if !support::skip::is_root() {
        return None;
    }
    let (cache, keys) = (demo::cache(), demo::keys());
    let root = scratch.join("good");
    support::warmkit::bake_at(1_700_000_000, &[&cache, "--keys-from", &keys], &root).expect_success("bake");
    Some(Root(root))
}

/// Copies a root, devices and attributes included.
pub fn copy(good: &Root, scratch: &Scratch, name: &str) -> Root {
    let to = scratch.join(name);
    let status = Command::new("cp").arg("-a").arg(&good.0).arg(&to).status().unwrap();
    assert!(status.success());
    Root(to)
}

/// Verifies with everything.
pub fn judge(root: &Root) -> Result<Report, verify::Error> {
    let mut options = verify::Options::default();
    options.read_data = true;
    verify::offline(&root.0, &options, &Silent)
}

fn kinds(report: &Report) -> BTreeSet<FindingKind> {
    report.findings.iter().chain(&report.notes).map(|finding| finding.kind).collect()
}

#[test]
fn a_baked_root_has_no_finding() {
    let scratch = Scratch::new();
    let Some(good) = good_root(&scratch) else { return };
    let report = judge(&good).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.notes, []);
    assert!(report.counts.layers_compared > 5 && report.counts.links > 5, "{:?}", report.counts);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["counts"]["layers_compared"], report.counts.layers_compared);
}

#[test]
fn every_damage_is_reported_by_its_name() {
    let scratch = Scratch::new();
    let Some(good) = good_root(&scratch) else { return };
    let mut shown = String::new();
    let mut covered = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (name, expected, damage) in damages::ALL {
        assert!(names.insert(name), "two damages are called {name}");
        // What is moved out of the root stays beside it, and goes with it.
        let around = scratch.join("around");
        std::fs::create_dir(&around).unwrap();
        let root = copy(&good, &scratch, "around/root");
        damage(&root);
        let report = judge(&root).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = judge(&root).unwrap();
        assert_eq!(report, again, "{name}: two looks at one root differ");
        let found = kinds(&report);
        assert!(found.contains(expected), "{name}: expected {expected}, found {report:#?}");
        assert_eq!(report.is_healthy(), found.iter().all(|kind| kind.severity() == Severity::Note), "{name}");
        covered.insert(*expected);
        let found: Vec<_> = found.iter().map(|kind| kind.name()).collect();
        writeln!(shown, "{name}: {}", found.join(", ")).unwrap();
        std::fs::remove_dir_all(&around).unwrap();
    }
    // Those of images have tests of their own, and so have those of a containerd.
    let of_containerd = [FindingKind::NamespaceEmpty, FindingKind::WorkerUnread];
    let is_elsewhere = |kind: FindingKind| kind.is_of_image() || of_containerd.contains(&kind);
    let missed: Vec<_> =
        FindingKind::ALL.iter().filter(|&kind| !covered.contains(kind) && !is_elsewhere(*kind)).collect();
    assert!(missed.is_empty(), "no damage shows {missed:?}");
    insta::assert_snapshot!("damages", shown);
}
