//! From an operation to the digests that `BuildKit` may have given it.
//!
//! Mirrors the `CacheMap` methods in `solver/llbsolver/ops/` (`exec.go`, `file.go`, `merge.go`,
//! `diff.go`, `build.go`, `passthrough.go`) of v0.12.5, v0.17.3, v0.33.1 and v0.34.2. Which release
//! hashed an operation is not known, and one cache can mix several, so every form is a candidate:
//! a handful for each operation, bounded by the number of dialects, escapes, platforms and rules.

use std::collections::BTreeMap;

use super::dialects::{Dialect, Encoder, Escapes};
use super::llb::{Action, ExecOp, FileAction, Mount, OpPlatform, Operation, Step};
use super::wire::Wire;
use super::writers::Writers;
use crate::digest::OpDigest;
use crate::oci::Platform;

/// Every digest that the operation may have, with the releases that give it that one; none for a source
/// or an unknown operation.
///
/// `platforms` are what an operation without a platform may have run on.
pub(super) fn digests(step: &Step, platforms: &[Platform]) -> Vec<(OpDigest, Writers)> {
    let mut forms = Forms::default();
    match &step.operation {
        Operation::Exec(exec) => exec_forms(exec, step.platform.as_ref(), platforms, &mut forms),
        Operation::File(actions) => forms.add(Writers::ANY, |encoder| file(encoder, actions, step.inputs)),
        Operation::Merge(op) => {
            forms.unhashed = true;
            forms.add(Writers::ANY, |encoder| wrap(encoder, "buildkit.merge.v0", "Merge", op));
        }
        Operation::Diff(op) => {
            forms.unhashed = true;
            forms.add(Writers::ANY, |encoder| wrap(encoder, "buildkit.diff.v0", "Diff", op));
        }
        Operation::Build(op) => {
            forms.add(Writers::ANY, |encoder| wrap(encoder, "buildkit.build.v0", "Exec", op.as_ref()));
        }
        Operation::Passthrough(op) => {
            forms.add(Writers::ANY, |encoder| {
                wrap(encoder, "buildkit.passthrough.v0", "Passthrough", op);
            });
        }
        Operation::Source { .. } | Operation::Other => {}
    }
    forms.digests()
}

/// The distinct JSON texts of one operation, with the releases that write them.
#[derive(Default)]
struct Forms {
    json: BTreeMap<String, Writers>,
    /// v0.12 takes the JSON of merge and diff as the digest, without hashing it.
    unhashed: bool,
}

impl Forms {
    /// Adds what `write` writes in each dialect; `writers` says which releases have this form at all.
    fn add(&mut self, writers: Writers, write: impl Fn(&mut Encoder)) {
        for dialect in Dialect::ALL {
            for escapes in Escapes::ALL {
                let mut encoder = Encoder::new(dialect, escapes);
                write(&mut encoder);
                let matter = encoder.escapes_matter;
                let known = self.json.entry(encoder.finish()).or_default();
                *known = *known | dialect.writers() & writers;
                if !matter {
                    break;
                }
            }
        }
    }

    fn digests(self) -> Vec<(OpDigest, Writers)> {
        let hashing = if self.unhashed { Writers::FROM_V0_13 } else { Writers::ANY };
        let hashed: Vec<_> = self
            .json
            .iter()
            .map(|(json, &writers)| (OpDigest::of(json.as_bytes()), writers & hashing))
            .collect();
        let unhashed = self
            .json
            .into_iter()
            .filter(|_| self.unhashed)
            .map(|(json, writers)| (OpDigest::new(json), writers & Writers::TO_V0_12));
        hashed.into_iter().chain(unhashed).collect()
    }
}

fn wrap(encoder: &mut Encoder, kind: &str, name: &str, op: &impl Wire) {
    encoder.object(|object| {
        object.with("Type", |encoder| encoder.string(kind));
        object.with(name, |encoder| op.write(encoder));
    });
}

/// `pb.MountType_BIND`.
const BIND: i64 = 0;

fn exec_forms(exec: &ExecOp, own: Option<&OpPlatform>, fallback: &[Platform], forms: &mut Forms) {
    let mut op = exec.clone();
    if let Some(meta) = &mut op.meta {
        meta.proxy_env = None;
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
    }
    for mount in &mut op.mounts {
        mount.selector.clear();
    }
    let mut ops = vec![(op, Writers::ANY)];
    // v0.13 and newer forget id and sharing of most cache mounts.
    if ops[0].0.mounts.iter().any(forgets_cache_opt) {
        let mut op = ops[0].0.clone();
        for mount in &mut op.mounts {
            if forgets_cache_opt(mount)
                && let Some(cache) = &mut mount.cache
            {
                cache.id.clear();
                cache.sharing = 0;
            }
        }
        ops[0].1 = Writers::TO_V0_12;
        ops.push((op, Writers::FROM_V0_13));
    }
    // A daemon without devices drops those that are optional.
    if !ops[0].0.cdi_devices.is_empty() {
        for (mut op, writers) in ops.clone() {
            op.cdi_devices.retain(|device| !device.optional);
            ops.push((op, writers));
        }
    }
    for (op, _) in &mut ops {
        if matches!(op.mounts.as_slice(), [mount] if is_plain_root(mount)) {
            op.mounts.clear();
        }
    }
    for (op, writers) in &ops {
        for platform in exec_platforms(own, fallback) {
            forms.add(*writers, |encoder| exec_json(encoder, op, &platform));
        }
    }
}

/// `checkShouldClearCacheOpts`: all but the ids that a Dockerfile gives by default,
/// `<dest>` and `<namespace>/<dest>`.
fn forgets_cache_opt(mount: &Mount) -> bool {
    let Some(cache) = &mount.cache else { return false };
    let by_default =
        cache.id == mount.dest || cache.id.split_once('/').is_some_and(|(_, rest)| rest == mount.dest);
    !(by_default && cache.sharing == 0)
}

/// The root mount of a plain `RUN`, which is left out of the digest when it is the only mount.
fn is_plain_root(mount: &Mount) -> bool {
    mount.dest == "/"
        && mount.selector.is_empty()
        && !mount.readonly
        && mount.mount_type == BIND
        && mount.cache.is_none()
        && mount.ssh.is_none()
        && mount.secret.is_none()
        && mount.result_id.is_empty()
}

/// The platforms that an operation may be hashed with: its own, normalised and as it stands (or
/// those that stand in where it has none), each with and without the version and features of the
/// operating system, which v0.12 leaves out.
fn exec_platforms(own: Option<&OpPlatform>, fallback: &[Platform]) -> Vec<OpPlatform> {
    let of = |platform: &Platform, like: &OpPlatform| {
        let mut out = like.clone();
        out.os.clone_from(&platform.os);
        out.architecture.clone_from(&platform.arch);
        out.variant.clone_from(&platform.variant);
        out
    };
    let mut all = Vec::new();
    match own {
        Some(own) => {
            all.push(of(&Platform::new(&own.os, &own.architecture, &own.variant), own));
            all.push(own.clone());
        }
        None => all.extend(fallback.iter().map(|platform| of(platform, &OpPlatform::default()))),
    }
    for mut platform in all.clone() {
        platform.os_version.clear();
        platform.os_features.clear();
        all.push(platform);
    }
    let mut distinct: Vec<OpPlatform> = Vec::new();
    for platform in all {
        if !distinct.contains(&platform) {
            distinct.push(platform);
        }
    }
    distinct
}

fn exec_json(encoder: &mut Encoder, op: &ExecOp, platform: &OpPlatform) {
    encoder.object(|object| {
        object.with("Type", |encoder| encoder.string("buildkit.exec.v0"));
        object.with("Exec", |encoder| op.write(encoder));
        object.with("OS", |encoder| encoder.string(&platform.os));
        object.with("Arch", |encoder| encoder.string(&platform.architecture));
        for (name, value) in [("Variant", &platform.variant), ("OSVersion", &platform.os_version)] {
            if !value.is_empty() {
                object.with(name, |encoder| encoder.string(value));
            }
        }
        if !platform.os_features.is_empty() {
            object.with("OSFeatures", |encoder| platform.os_features.write(encoder));
        }
    });
}

fn file(encoder: &mut Encoder, actions: &[FileAction], inputs: usize) {
    let (dialect, escapes) = (encoder.dialect, encoder.escapes);
    encoder.object(|object| {
        object.with("Type", |encoder| encoder.string("buildkit.file.v0"));
        object.with("Actions", |encoder| {
            encoder.list(actions, |encoder, action| {
                let mut inner = Encoder::new(dialect, escapes);
                file_action(&mut inner, action, inputs);
                encoder.escapes_matter |= inner.escapes_matter;
                match inner.finish() {
                    json if json.is_empty() => encoder.raw("null"),
                    json => encoder.bytes(json.as_bytes()),
                }
            });
        });
        if !is_default_indexes(actions) && !actions.is_empty() {
            object.with("indexes", |encoder| {
                encoder.list(actions, |encoder, action| {
                    let indexes = [action.input, action.secondary_input, action.output];
                    encoder.list(indexes, Encoder::integer);
                });
            });
        }
    });
}

fn file_action(encoder: &mut Encoder, action: &FileAction, inputs: usize) {
    match &action.action {
        Action::Copy(copy) => {
            let from_input = action.secondary_input != -1
                && usize::try_from(action.secondary_input).map_or(true, |index| index < inputs);
            if from_input {
                let mut copy = copy.clone();
                copy.src = base_name(&copy.src).to_owned();
                copy.write(encoder);
            } else {
                copy.write(encoder);
            }
        }
        Action::MkFile(op) => op.write(encoder),
        Action::MkDir(op) => op.write(encoder),
        Action::Rm(op) => op.write(encoder),
        Action::Symlink(op) => op.write(encoder),
        Action::Untold => {}
    }
}

/// Go's `path.Base`.
fn base_name(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let path = path.trim_end_matches('/');
    match path.rsplit('/').next() {
        Some(base) if !base.is_empty() => base,
        _ => "/",
    }
}

/// `isDefaultIndexes`: a chain of actions, each on the one before, with at most one other input.
fn is_default_indexes(actions: &[FileAction]) -> bool {
    let count = i64::try_from(actions.len()).unwrap_or(i64::MAX);
    !actions.is_empty()
        && actions.iter().zip(0i64..).all(|(action, i)| {
            action.input == if i == 0 { 0 } else { count + i - 1 }
                && matches!(action.secondary_input, -1 | 1)
                && action.output == if i == count - 1 { 0 } else { -1 }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step(value: &Value) -> Step {
        Step::read(value).unwrap()
    }

    /// The JSON that one dialect gives an operation, before any choice of rules.
    fn texts(op: &Value, inputs: usize) -> Vec<String> {
        let inputs: Vec<_> = (0..inputs).map(|i| format!("step{i}:0")).collect();
        let step = step(&json!({"id": "step9", "op": op, "inputs": inputs}));
        let mut forms = Forms::default();
        match &step.operation {
            Operation::Exec(exec) => {
                exec_forms(exec, step.platform.as_ref(), &["linux/amd64".parse().unwrap()], &mut forms);
            }
            Operation::File(actions) => {
                forms.add(Writers::ANY, |encoder| file(encoder, actions, step.inputs));
            }
            Operation::Merge(op) => {
                forms.add(Writers::ANY, |encoder| wrap(encoder, "buildkit.merge.v0", "Merge", op));
            }
            other => panic!("{other:?}"),
        }
        forms.json.into_keys().collect()
    }

    fn exec(exec: &Value, platform: &Value) -> Vec<String> {
        texts(&json!({"Op": {"exec": exec}, "platform": platform}), 1)
    }

    #[test]
    fn a_plain_run_has_no_mounts() {
        let op = json!({
            "meta": {"args": ["/bin/sh", "-c", "a && b"], "cwd": "/", "proxy_env": {"no_proxy": "*"}},
            "mounts": [{"dest": "/", "selector": "/x"}],
        });
        let expected = "{\"Type\":\"buildkit.exec.v0\",\"Exec\":{\"meta\":{\"args\":[\"/bin/sh\",\"-c\",\
                        \"a \\u0026\\u0026 b\"],\"cwd\":\"/\"}},\"OS\":\"linux\",\"Arch\":\"amd64\"}";
        assert_eq!(exec(&op, &Value::Null), [expected]);
    }

    #[test]
    fn one_root_mount_that_is_not_plain_stays() {
        for (name, value) in [
            ("readonly", json!(true)),
            ("mountType", json!(4)),
            ("cacheOpt", json!({})),
            ("secretOpt", json!({})),
            ("SSHOpt", json!({})),
            ("resultID", json!("x")),
        ] {
            let op = json!({"mounts": [{"dest": "/", name: value}]});
            for text in exec(&op, &Value::Null) {
                assert!(text.contains("\"mounts\":[{"), "{name}: {text}");
            }
        }
    }

    #[test]
    fn hosts_lose_their_address() {
        let op = json!({"meta": {"extraHosts": [{"Host": "a", "IP": "10.0.0.1"}]}});
        for text in exec(&op, &Value::Null) {
            assert!(text.contains(r#""extraHosts":[{"Host":"a"}]"#), "{text}");
        }
    }

    #[test]
    fn cache_mounts_are_tried_with_and_without_their_id() {
        let with = |id: &str, sharing: i64| {
            let mount = json!({"dest": "/c", "mountType": 3, "cacheOpt": {"ID": id, "sharing": sharing}});
            let texts = exec(&json!({"mounts": [mount]}), &Value::Null);
            let without = texts.iter().filter(|text| text.contains(r#""cacheOpt":{}"#)).count();
            (texts.len() - without, without)
        };
        // Two texts each: zero indexes written or not.
        assert_eq!(with("/c", 0), (2, 0));
        assert_eq!(with("name//c", 0), (2, 0));
        assert_eq!(with("/c", 1), (2, 2));
        assert_eq!(with("own", 0), (2, 2));
        assert_eq!(with("a/b//c", 0), (2, 2));
    }

    #[test]
    fn platforms_are_normalised_and_bare() {
        let platform = json!({
            "Architecture": "arm64", "OS": "linux", "Variant": "v8", "OSVersion": "1", "OSFeatures": ["f"],
        });
        let ends: Vec<String> = exec(&json!({}), &platform)
            .into_iter()
            .map(|text| text.split_once("\"Exec\":{},").unwrap().1.to_owned())
            .collect();
        let expected = [
            r#""OS":"linux","Arch":"arm64","OSVersion":"1","OSFeatures":["f"]}"#,
            r#""OS":"linux","Arch":"arm64","Variant":"v8","OSVersion":"1","OSFeatures":["f"]}"#,
            r#""OS":"linux","Arch":"arm64","Variant":"v8"}"#,
            r#""OS":"linux","Arch":"arm64"}"#,
        ];
        assert_eq!(ends, expected);
    }

    #[test]
    fn fields_of_a_newer_release_come_last() {
        let op = json!({"aNewField": {"x": 1}, "network": 2, "meta": {"zNew": "<", "user": "u"}});
        let text = exec(&op, &Value::Null).remove(0);
        assert!(
            text.contains(r#""Exec":{"meta":{"user":"u","zNew":"\u003c"},"network":2,"aNewField":{"x":1}}"#),
            "{text}"
        );
    }

    #[test]
    fn go_generations_are_tried_where_they_differ() {
        assert_eq!(exec(&json!({"meta": {"cwd": "\u{8}"}}), &Value::Null).len(), 2);
        assert_eq!(exec(&json!({"meta": {"cwd": "\u{fffd}"}}), &Value::Null).len(), 2);
        assert_eq!(exec(&json!({"meta": {"cwd": "\u{c}\u{fffd}"}}), &Value::Null).len(), 4);
        // Inside the base64 of a file action as well.
        let action = |path: &str| json!({"Op": {"file": {"actions": [{"Action": {"rm": {"path": path}}}]}}});
        assert_eq!(texts(&action("/a"), 1).len(), 1);
        assert_eq!(texts(&action("/\u{8}"), 1).len(), 2);
    }

    /// The actions of a file operation as text, and the rest of it.
    fn file_texts(actions: &Value, inputs: usize) -> Vec<(Vec<String>, Value)> {
        use base64::Engine as _;
        let texts = texts(&json!({"Op": {"file": {"actions": actions}}}), inputs);
        let decode = |action: &Value| match action.as_str() {
            Some(action) => {
                String::from_utf8(base64::engine::general_purpose::STANDARD.decode(action).unwrap()).unwrap()
            }
            None => action.to_string(),
        };
        texts
            .iter()
            .map(|text| {
                let value: Value = serde_json::from_str(text).unwrap();
                let actions = value["Actions"].as_array().unwrap().iter().map(decode).collect();
                (actions, value["indexes"].clone())
            })
            .collect()
    }

    #[test]
    fn owners_differ_by_dialect() {
        let owner = |user: Value| {
            let action =
                json!({"secondaryInput": -1, "Action": {"mkdir": {"path": "/a", "owner": {"user": user}}}});
            let mut texts: Vec<String> = file_texts(&json!([action]), 1)
                .into_iter()
                .map(|(mut actions, _)| actions.remove(0))
                .collect();
            texts.sort();
            texts
        };
        let text = |user: &str| format!(r#"{{"path":"/a","owner":{{"user":{{"User":{user}}}}}}}"#);
        assert_eq!(owner(json!({"User": {}})), [text(r#"{"ByID":0}"#), text("{}")]);
        assert_eq!(
            owner(json!({"User": {"byID": 7}})),
            [text(r#"{"ByID":7}"#), text(r#"{"byID":7}"#), text(r#"{"byId":7}"#)]
        );
        assert_eq!(
            owner(json!({"User": {"ByName": {"name": "u"}}})),
            [
                text(r#"{"ByName":{"name":"u"}}"#),
                text(r#"{"byName":{"name":"u","input":0}}"#),
                text(r#"{"byName":{"name":"u"}}"#),
            ]
        );
    }

    #[test]
    fn copies_from_an_input_keep_the_base_name() {
        let source = |secondary: i64, inputs| {
            let action = json!({"secondaryInput": secondary, "Action": {"copy": {"src": "/a/b"}}});
            file_texts(&json!([action]), inputs).remove(0).0.remove(0)
        };
        assert_eq!(source(1, 2), r#"{"src":"b"}"#);
        assert_eq!(source(0, 1), r#"{"src":"b"}"#);
        assert_eq!(source(2, 2), r#"{"src":"/a/b"}"#);
        assert_eq!(source(-1, 2), r#"{"src":"/a/b"}"#);
    }

    #[test]
    fn base_names_are_those_of_go() {
        let cases = [
            ("", "."),
            ("/", "/"),
            ("//", "/"),
            ("a", "a"),
            ("/a/b", "b"),
            ("/a/b//", "b"),
            (".", "."),
            ("a/..", ".."),
        ];
        for (path, expected) in cases {
            assert_eq!(base_name(path), expected, "{path:?}");
        }
    }

    #[test]
    fn only_unusual_indexes_are_written() {
        let indexes = |actions: &[[i64; 3]]| {
            let actions: Vec<_> = actions
                .iter()
                .map(|[input, secondary, output]| {
                    json!({"input": input, "secondaryInput": secondary, "output": output,
                           "Action": {"rm": {"path": "/"}}})
                })
                .collect();
            file_texts(&json!(actions), 2).remove(0).1
        };
        assert_eq!(indexes(&[[0, -1, 0]]), Value::Null);
        assert_eq!(indexes(&[[0, 1, -1], [2, 1, 0]]), Value::Null);
        assert_eq!(
            indexes(&[[0, 1, -1], [2, -1, -1], [4, 1, 0]]),
            json!([[0, 1, -1], [2, -1, -1], [4, 1, 0]])
        );
        assert_eq!(indexes(&[[1, -1, 0]]), json!([[1, -1, 0]]));
        assert_eq!(indexes(&[[0, 2, 0]]), json!([[0, 2, 0]]));
        assert_eq!(indexes(&[[0, -1, 1]]), json!([[0, -1, 1]]));
        assert_eq!(indexes(&[[0, -1, 0], [2, -1, 0]]), json!([[0, -1, 0], [2, -1, 0]]));
    }

    #[test]
    fn optional_devices_are_tried_without() {
        let op = json!({"cdiDevices": [{"name": "needed"}, {"name": "wanted", "optional": true}]});
        let texts = exec(&op, &Value::Null);
        let having = |name: &str| texts.iter().filter(|text| text.contains(name)).count();
        assert_eq!((texts.len(), having("needed"), having("wanted")), (2, 2, 1), "{texts:?}");
    }

    #[test]
    fn symlinks_are_hashed_where_they_are_told() {
        let symlink = json!({"secondaryInput": -1, "Action": {"symlink": {"oldpath": "a", "newpath": "/b"}}});
        assert_eq!(file_texts(&json!([symlink]), 1).remove(0).0, [r#"{"oldpath":"a","newpath":"/b"}"#]);
        let untold = json!({"secondaryInput": -1, "Action": {}});
        assert_eq!(file_texts(&json!([untold]), 1).remove(0).0, ["null"]);
    }

    #[test]
    fn merges_are_tried_unhashed() {
        let op = json!({"op": {"Op": {"merge": {"inputs": [{"input": 0}, {"input": 1}]}}}});
        let digests = digests(&step(&op), &[]);
        let gogo = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":0},{"input":1}]}}"#;
        let newer = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}"#;
        let newest = Writers::V0_17 | Writers::FROM_V0_18;
        for (json, hashed, unhashed) in
            [(gogo, Writers::V0_13_TO_V0_16, Writers::TO_V0_12), (newer, newest, Writers::default())]
        {
            assert!(digests.contains(&(OpDigest::new(json), unhashed)));
            assert!(digests.contains(&(OpDigest::of(json.as_bytes()), hashed)));
        }
        assert_eq!(digests.len(), 4);
    }

    #[test]
    fn says_who_writes_what() {
        let of = |op: Value| -> Vec<(String, Writers)> {
            let step = step(
                &json!({"op": {"Op": op, "platform": {"Architecture": "a", "OS": "o"}}, "inputs": ["step0:0"]}),
            );
            let mut forms = Forms::default();
            match &step.operation {
                Operation::Exec(exec) => exec_forms(exec, step.platform.as_ref(), &[], &mut forms),
                Operation::File(actions) => forms.add(Writers::ANY, |encoder| file(encoder, actions, 1)),
                other => panic!("{other:?}"),
            }
            forms.json.into_iter().collect()
        };
        let plain = of(json!({"exec": {"meta": {"cwd": "/"}, "mounts": [{"dest": "/"}]}}));
        assert_eq!(plain.iter().map(|(_, writers)| *writers).collect::<Vec<_>>(), [Writers::ANY]);
        let cache = json!({"input": -1, "output": -1, "dest": "/c", "mountType": 3, "cacheOpt": {"ID": "x"}});
        for (text, writers) in of(json!({"exec": {"mounts": [cache]}})) {
            let expected = if text.contains(r#""ID":"x""#) { Writers::TO_V0_12 } else { Writers::FROM_V0_13 };
            assert_eq!(writers, expected, "{text}");
        }
        let owned = json!({"Action": {"mkdir": {"path": "/d", "owner": {"user": {"User": {"byID": 0}}}}}});
        let gogo = Writers::TO_V0_12 | Writers::V0_13_TO_V0_16;
        let writers: Vec<Writers> =
            of(json!({"file": {"actions": [owned]}})).into_iter().map(|(_, w)| w).collect();
        // {"User":{}} was written first, and is again.
        assert_eq!(writers.len(), 2);
        assert!(
            writers.contains(&(gogo | Writers::FROM_V0_18)) && writers.contains(&Writers::V0_17),
            "{writers:?}"
        );
    }

    #[test]
    fn sources_and_unknown_operations_have_no_digest() {
        for op in [json!({"source": {"identifier": "x"}}), json!({"new": {}}), Value::Null] {
            assert!(digests(&step(&json!({"op": {"Op": op}})), &[]).is_empty());
        }
    }
}
