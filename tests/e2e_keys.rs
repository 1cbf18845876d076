//! The promise: a keys file and a sidecar hold every key of a cache, also those that BuildKit v0.12 does not hash,
//! and a root that was baked with nothing else is warm.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::cases::cache_to;
use support::command::{Ended, run};
use support::warmkit::{bake, warmkit};
use support::{BuildOutcome, Daemon, Registry, Scratch, Tools};
use warmkit::digest::Digest;

/// A protobuf message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
        self
    }

    fn number(self, field: u64, value: i64) -> Self {
        self.varint(field << 3).varint(value.cast_unsigned())
    }

    fn bytes(self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let mut message = self.varint(field << 3 | 2).varint(bytes.len() as u64);
        message.0.extend(bytes);
        message
    }

    fn message(self, field: u64, inner: Self) -> Self {
        self.bytes(field, inner.0)
    }
}

/// A build's definition, as `buildctl build` takes it without a frontend; upstream `solver/pb/ops.proto`.
#[derive(Default)]
struct Definition {
    all: Message,
}

impl Definition {
    /// Adds an operation on the first outputs of `inputs`; gives its digest.
    fn add(&mut self, name: &str, inputs: &[&str], kind: u64, operation: Message) -> String {
        let input = |op: Message, digest: &&str| op.message(1, Message::default().bytes(1, digest));
        let op = inputs.iter().fold(Message::default(), input).message(kind, operation);
        let digest = Digest::of(&op.0).to_string();
        let name = Message::default().bytes(1, "llb.customname").bytes(2, name);
        let metadata = Message::default().bytes(1, &digest).message(2, Message::default().message(2, name));
        self.all = std::mem::take(&mut self.all).message(1, op).message(2, metadata);
        digest
    }

    /// Makes a file on an empty file system, or on an input.
    fn file(&mut self, name: &str, inputs: &[&str]) -> String {
        let input = if inputs.is_empty() { -1 } else { 0 };
        let file = Message::default().bytes(1, format!("/{}", name.len())).number(2, 0o644).bytes(3, name);
        let action =
            Message::default().number(1, input).number(2, -1).number(3, 0).message(5, file.number(5, -1));
        self.add(name, inputs, 4, Message::default().message(2, action))
    }

    fn finish(self, last: &str) -> Vec<u8> {
        let last = Message::default().message(1, Message::default().bytes(1, last));
        self.all.message(1, last).0
    }
}

/// What a later layer adds to an earlier one, laid over a third.
fn merge_and_diff() -> Vec<u8> {
    let mut definition = Definition::default();
    let input = |number| Message::default().number(1, number);
    let lower = definition.file("[1/5] FILE a", &[]);
    let upper = definition.file("[2/5] FILE on a", &[&lower]);
    let diff = Message::default().message(1, input(0)).message(2, input(1));
    let diff = definition.add("[3/5] DIFF", &[&lower, &upper], 7, diff);
    let other = definition.file("[4/5] FILE another", &[]);
    let merge = Message::default().message(1, input(0)).message(1, input(1));
    let merge = definition.add("[5/5] MERGE", &[&other, &diff], 6, merge);
    definition.finish(&merge)
}

#[track_caller]
fn solve(daemon: &Daemon, definition: &Path, more: &[&str]) -> BuildOutcome {
    let buildctl = daemon.buildctl();
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$@" <"$0""#]).arg(definition).arg(buildctl.get_program());
    command.args(buildctl.get_args()).args(["build", "--progress=plain"]).args(more);
    let Ended { stdout, stderr, .. } = run(&mut command, Duration::from_secs(60)).expect_success("buildctl");
    BuildOutcome::parse(&(stdout + &stderr))
}

#[track_caller]
fn keys(arguments: &[&str]) -> Value {
    let mut command = warmkit();
    command.arg("keys").args(arguments).arg("--json");
    let ended = run(&mut command, Duration::from_secs(60)).expect_success(&format!("keys {arguments:?}"));
    ended.stdout.parse().unwrap()
}

/// Merges and diffs go from a builder through a keys file and the registry into a root.
fn merges_and_diffs_are_carried(release: &str, unhashed: bool, written_by: &str) {
    let Some(tools) = Tools::find(release) else { return };
    let (registry, scratch) = (Registry::start(&tools), Scratch::new());
    let cache = registry.reference("merges", "cache");
    let definition = scratch.write("definition", merge_and_diff());
    let origin = scratch.join("origin");
    let daemon = Daemon::start(&tools, &origin, &registry);
    let built = solve(&daemon, &definition, &[&format!("--export-cache={}", cache_to(&cache, ""))]);
    assert_eq!((built.names().len(), built.not_cached().len()), (5, 5), "{}", built.log);
    daemon.stop();

    let file = scratch.join("app.keys.json");
    keys(&["harvest", &format!("type=cachedb,src={}", origin.display()), "-o", file.to_str().unwrap()]);
    let text = fs::read_to_string(&file).unwrap();
    for line in ["{\"diff\":[0,1],\"outputs\":[0]}", "{\"merge\":[0,1],\"outputs\":[0]}"] {
        assert_eq!(text.lines().any(|other| other.trim_end_matches(',') == line), unhashed, "{line}: {text}");
    }
    let pushed = keys(&["push", &cache, "--keys-from", &format!("type=keys,src={}", file.display())]);
    assert_eq!(pushed["keyed"], pushed["records"], "{pushed}");

    let root = scratch.join("root");
    let report = bake(&[&cache, "--json"], &root).expect_success("a bake with nothing but the sidecar");
    let report: Value = report.stdout.parse().unwrap();
    assert_eq!(
        (&report["unkeyed"], &report["caches"][0]["written_by"]),
        (&Value::Array(Vec::new()), &written_by.into())
    );
    // Files on nothing have no inputs: BuildKit exports no results of those, and an import does not find them.
    let solved_at = |root: &str, more: &[&str]| {
        let daemon = Daemon::start(&tools, &scratch.join(root), &registry);
        let outcome = solve(&daemon, &definition, more);
        daemon.stop();
        outcome
    };
    let cached = BTreeSet::from(["[2/5] FILE on a", "[3/5] DIFF", "[5/5] MERGE"]);
    let warm = solved_at("root", &[]);
    assert_eq!((warm.imports, warm.names()), (0, built.names()), "{}", warm.log);
    assert_eq!(&warm.names() - &warm.not_cached(), cached, "{}", warm.log);
    // v0.12 imports nothing for a definition without a frontend.
    if !unhashed {
        let native = solved_at("native", &[&format!("--import-cache=type=registry,ref={cache}")]);
        assert_eq!(&native.names() - &native.not_cached(), cached, "{}", native.log);
    }
}

#[test]
fn merges_and_diffs_of_v0_12_5_are_carried() {
    merges_and_diffs_are_carried("v0.12.5", true, "v0.12 or older");
}

#[test]
fn merges_and_diffs_of_v0_34_2_are_carried() {
    merges_and_diffs_are_carried("v0.34.2", false, "v0.17 or newer");
}
