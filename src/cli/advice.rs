//! What to do about an error, where its message does not say so itself: it was found deep down, by code that does
//! not know what was asked of the command.

use std::borrow::Cow;
use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::iter;
use std::path::Path;

use crate::{bake, keys, layer, root, source};

/// A sentence for whoever started the command.
pub(super) fn advice(error: &(dyn Error + 'static)) -> Option<Cow<'static, str>> {
    chain(error).find_map(|error| {
        let of_source = found(error).and_then(of_source);
        let of_keys = || found(error).and_then(of_keys);
        let of_target = || found(error).and_then(of_bake);
        let of_root = || found(error).and_then(of_root);
        let of_system = || found(error).and_then(of_system);
        let fixed = of_source.or_else(of_keys).or_else(of_target).or_else(of_root).or_else(of_system);
        found(error).and_then(of_foreign).map(Cow::Owned).or(fixed.map(Cow::Borrowed))
    })
}

const SPACE: &str = "free space and inodes there (df, df -i), or write elsewhere";

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The error as what it is, also in a box.
fn found<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    error.downcast_ref().or_else(|| error.downcast_ref::<Box<T>>().map(|boxed| &**boxed))
}

fn of_source(error: &source::Error) -> Option<&'static str> {
    match error {
        source::Error::GaveUp { .. } => Some(
            "check the name, and that this machine reaches it (DNS, proxy, firewall), or try again later",
        ),
        source::Error::NotALayout { .. } | source::Error::NoSuchLayout { .. } => {
            Some("name the directory or the tar that --cache-to type=local,dest=… wrote")
        }
        source::Error::ManifestMismatch { .. } | source::Error::BlobMismatch { .. } => {
            Some("it is damaged where it is kept: export the cache again")
        }
        _ => None,
    }
}

fn of_keys(error: &keys::Error) -> Option<&'static str> {
    match error {
        keys::Error::Json { .. } => Some("name the provenance of a build, or what its --metadata-file wrote"),
        _ => None,
    }
}

fn of_bake(error: &bake::Error) -> Option<&'static str> {
    match error {
        // What a bake left has its own advice.
        bake::Error::TargetNotEmpty { .. } if !error.is_left_by_a_bake() => {
            Some("move away what is there, or name a directory by --root that is empty or absent")
        }
        bake::Error::NoSpace { .. } => Some(SPACE),
        bake::Error::Layer { source: layer::Error::Owner { .. }, .. } => Some(
            "give the user more ids in /etc/subuid and /etc/subgid; its daemon could not extract that layer either",
        ),
        bake::Error::Layer { source, .. } if source.is_for_root_alone() => Some(
            "its daemon could not extract that layer either: make it without the attribute, or bake for a daemon that runs as root",
        ),
        _ => None,
    }
}

/// Where a bake met what a daemon keeps for which no root can be written.
fn of_foreign(error: &bake::Error) -> Option<String> {
    let bake::Error::TargetNotEmpty { path, found } = error else { return None };
    let names = found.iter().map(|name| (OsStr::new(name), path.join(name).is_dir()));
    match root::Found::among(names).refusal(Path::new(""))? {
        root::Error::DockerEngine { .. } => Some(
            "this is the state of dockerd's own builder, for which no root can be written: bake for a builder of buildx on \
             this host, of the driver docker-container, with --for buildx:NAME"
                .into(),
        ),
        root::Error::OtherSnapshotter { worker, snapshotter, .. } => Some(format!(
            "{} is of a daemon with the snapshotter {snapshotter}, which finds nothing in a root that is written here: have it \
             use overlayfs, fuse-overlayfs or native ({}), and bake into a directory that is empty or absent",
            worker.display(),
            root::snapshotter_option(&worker)
        )),
        _ => None,
    }
}

fn of_root(error: &root::Error) -> Option<&'static str> {
    use io::ErrorKind::{NotADirectory, NotFound};
    let is_none = match error {
        root::Error::NotAStateDirectory { .. } => true,
        root::Error::Open { source, .. } => matches!(source.kind(), NotFound | NotADirectory),
        _ => false,
    };
    is_none.then_some("name the directory that buildkitd has as its --root")
}

fn of_system(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(SPACE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::gather;

    #[test]
    fn what_a_daemon_of_another_kind_left_is_named() {
        let target = tempfile::tempdir().unwrap();
        for (name, said) in [
            ("runc-stargz", "with the snapshotter stargz, which"),
            ("containerd-zfs", "(--containerd-worker-snapshotter)"),
            ("runc-overlayfs", "move away "),
        ] {
            std::fs::create_dir(target.path().join(name)).unwrap();
            let error = bake::Error::TargetNotEmpty {
                path: target.path().into(),
                found: vec![name.into(), "cache.db".into()],
            };
            let advice = advice(&error).unwrap();
            assert!(advice.contains(said), "{advice}");
        }
    }

    #[test]
    fn advice_is_found_however_deep() {
        let gave_up = source::Error::GaveUp { what: "x".into(), failures: 3, reason: "refused".into() };
        let gathered = gather::Error::Source { what: "x".into(), source: Box::new(gave_up) };
        let full = layer::Error::Entry {
            action: "write",
            path: "a".into(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        let layer = bake::Error::Layer { digest: Digest::of(b""), source: full };
        let target =
            |found: &str| bake::Error::TargetNotEmpty { path: "r".into(), found: vec![found.into()] };
        let cases: [(bake::Error, Option<&str>); 5] = [
            (gathered.into(), Some("check the name, ")),
            (layer, Some("free space ")),
            (target("cache.db"), Some("move away ")),
            (target(".warmkit-aB3dE6"), None),
            (bake::Error::NotRoot, None),
        ];
        for (error, start) in cases {
            let advice = advice(&error);
            assert_eq!(
                advice.as_ref().map(|text| text.starts_with(start.unwrap_or_default())),
                start.map(|_| true),
                "{error}"
            );
        }
    }
}
