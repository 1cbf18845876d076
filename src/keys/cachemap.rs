//! From an operation to the digests that `BuildKit` may have given it.
//!
//! Mirrors the `CacheMap` methods in `solver/llbsolver/ops/` (`exec.go`, `file.go`, `merge.go`,
//! `diff.go`, `build.go`, `passthrough.go`) of v0.12.5, v0.17.3, v0.33.1 and v0.34.2. Which release
//! hashed an operation is not known, and one cache can mix several, so every form is a candidate:
//! a handful for each operation, bounded by the number of dialects, escapes, platforms and rules.

use std::collections::BTreeSet;

use super::dialects::{Dialect, Encoder, Escapes};
use super::llb::{Action, ExecOp, FileAction, Mount, OpPlatform, Operation, Step, Wire};
use crate::digest::OpDigest;
use crate::oci::Platform;

/// Every digest that the operation may have; none for a source or an unknown operation.
///
/// `platforms` are what an operation without a platform may have run on.
pub(super) fn digests(step: &Step, platforms: &[Platform]) -> Vec<OpDigest> {
    let mut forms = Forms::default();
    match &step.operation {
        Operation::Exec(exec) => exec_forms(exec, step.platform.as_ref(), platforms, &mut forms),
        Operation::File(actions) => forms.add(|encoder| file(encoder, actions, step.inputs)),
        Operation::Merge(op) => {
            forms.unhashed = true;
            forms.add(|encoder| wrap(encoder, "buildkit.merge.v0", "Merge", op));
        }
        Operation::Diff(op) => {
            forms.unhashed = true;
            forms.add(|encoder| wrap(encoder, "buildkit.diff.v0", "Diff", op));
        }
        Operation::Build(op) => forms.add(|encoder| wrap(encoder, "buildkit.build.v0", "Exec", op.as_ref())),
        Operation::Passthrough(op) => {
            forms.add(|encoder| wrap(encoder, "buildkit.passthrough.v0", "Passthrough", op));
        }
        Operation::Source { .. } | Operation::Other => {}
    }
    forms.digests()
}

/// The distinct JSON texts of one operation.
#[derive(Default)]
struct Forms {
    json: BTreeSet<String>,
    /// v0.12 takes the JSON of merge and diff as the digest, without hashing it.
    unhashed: bool,
}

impl Forms {
    fn add(&mut self, write: impl Fn(&mut Encoder)) {
        for dialect in Dialect::ALL {
            for escapes in Escapes::ALL {
                let mut encoder = Encoder::new(dialect, escapes);
                write(&mut encoder);
                let matter = encoder.escapes_matter;
                self.json.insert(encoder.finish());
                if !matter {
                    break;
                }
            }
        }
    }

    fn digests(self) -> Vec<OpDigest> {
        let hashed: Vec<_> = self.json.iter().map(|json| OpDigest::of(json.as_bytes())).collect();
        let unhashed = self.json.into_iter().filter(|_| self.unhashed).map(OpDigest::new);
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
    let mut ops = vec![op];
    // v0.13 and newer forget id and sharing of most cache mounts.
    if ops[0].mounts.iter().any(forgets_cache_opt) {
        let mut op = ops[0].clone();
        for mount in &mut op.mounts {
            if forgets_cache_opt(mount) {
                if let Some(cache) = &mut mount.cache {
                    cache.id.clear();
                    cache.sharing = 0;
                }
            }
        }
        ops.push(op);
    }
    // A daemon without devices drops those that are optional.
    if !ops[0].cdi_devices.is_empty() {
        for mut op in ops.clone() {
            op.cdi_devices.retain(|device| !device.optional);
            ops.push(op);
        }
    }
    for op in &mut ops {
        if matches!(op.mounts.as_slice(), [mount] if is_plain_root(mount)) {
            op.mounts.clear();
        }
    }
    for op in &ops {
        for platform in exec_platforms(own, fallback) {
            forms.add(|encoder| exec_json(encoder, op, &platform));
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
