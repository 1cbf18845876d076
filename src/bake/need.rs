//! How much disk a root takes, before it is there.
//!
//! | what | bytes | inodes |
//! |---|---|---|
//! | blobs, documents of images | their sizes: exact | one each: exact |
//! | databases, directories around all this | not counted | exact |
//! | what layers unpack to | from the sizes of their tars | from the sizes of their tars |
//!
//! A cache does not say what its layers unpack to. The size of a tar can be had ([`gather::tar_sizes`]); from it, the
//! constants here follow, measured on thirty trees of files (docs/decisions/plan.md), from whole systems to manual
//! pages: a tree takes 1.0 to 1.9 times the bytes of its tar, 1.1 times where it is one that
//! images have, and has an inode for each 1.7 KiB to 1.4 MiB of it.
//!
//! Where a containerd keeps the layers, the bytes are on its disk and the inodes are those of the root: databases, and the
//! directories around them.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::Serialize;

use super::error::{Resource, Shortage};
use super::plan::Plan;
use crate::fsutil::Room;
use crate::gather::{Image, TarSize};
use crate::store::{Layers, StateDir};

/// A number that is known within limits only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Estimate {
    /// It is this in any case.
    pub at_least: u64,
    /// What it probably is.
    pub estimate: u64,
    /// More than it was found to be in anything that was measured.
    pub up_to: u64,
}

impl Estimate {
    fn exactly(number: u64) -> Self {
        Self { at_least: number, estimate: number, up_to: number }
    }
}

impl AddAssign for Estimate {
    fn add_assign(&mut self, other: Self) {
        self.at_least = self.at_least.saturating_add(other.at_least);
        self.estimate = self.estimate.saturating_add(other.estimate);
        self.up_to = self.up_to.saturating_add(other.up_to);
    }
}

/// What it costs that a snapshotter keeps a whole tree for each layer. Where the file system lets files share blocks,
/// they do, and take less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WholeTrees {
    /// Bytes of all trees.
    pub trees: Estimate,
    /// What the layers have of them by themselves, as overlayfs would keep them.
    pub layers: Estimate,
}

/// What a root takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    /// As [`super::Report::bytes_on_disk`] counts them.
    pub(super) bytes: Estimate,
    /// Of the root itself.
    pub(super) inodes: Estimate,
    /// Who has the bytes.
    pub(super) layers: Layers,
    /// Of a snapshotter with whole trees.
    pub(super) whole_trees: Option<WholeTrees>,
    /// Of the bytes, those of each snapshot of the plan.
    pub(super) snapshots: Vec<Estimate>,
}

/// How many documents images bring, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Documents {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// The distinct documents of images.
pub(super) fn documents(images: &[Image]) -> Documents {
    let sizes: BTreeMap<_, _> = images
        .iter()
        .flat_map(|image| &image.documents)
        .map(|document| (document.digest, document.bytes.len() as u64))
        .collect();
    Documents { count: sizes.len() as u64, bytes: sizes.values().sum() }
}

/// The directories around a snapshot's `fs`: `<n>` and `<n>/work`.
const AROUND: u64 = 2;

/// What `root`, that of a plan, takes; `tars` has the size of each blob's tar, where it is known.
pub(super) fn of(plan: &Plan, images: &[Image], tars: &[Option<TarSize>], root: &StateDir) -> Need {
    let (documents, snapshotter, layers) = (documents(images), root.snapshotter(), root.layers());
    let mut snapshots: Vec<Unpacked> = plan
        .snapshots
        .iter()
        .map(|snapshot| {
            let compressed = plan.blobs[snapshot.blob].layer.descriptor.size;
            tars[snapshot.blob].map_or_else(|| unpacked_of_blob(compressed), unpacked)
        })
        .collect();
    let alone = sum(&snapshots);
    if !snapshotter.has_upper() {
        // Each is a whole tree. A parent stands before what stands on it.
        for (at, snapshot) in plan.snapshots.iter().enumerate() {
            if let Some(below) = snapshot.parent.map(|parent| snapshots[parent]) {
                snapshots[at].add_tree(&below);
            }
        }
    }
    let around = if snapshotter.has_upper() { AROUND } else { 0 };
    let mut bytes = Estimate::exactly(plan.bytes().saturating_add(documents.bytes));
    // The root's own directory may be there.
    let fixed = (root.directories().len() + root.files().len()) as u64;
    let mut inodes = Estimate { at_least: fixed, estimate: fixed + 1, up_to: fixed + 1 };
    if layers == Layers::InRoot {
        inodes += Estimate::exactly(plan.blobs.len() as u64 + documents.count);
    }
    for snapshot in &snapshots {
        bytes += snapshot.bytes;
        if layers == Layers::InRoot {
            inodes += snapshot.inodes;
            inodes += Estimate::exactly(around);
        }
    }
    let whole_trees =
        (!snapshotter.has_upper()).then(|| WholeTrees { trees: sum(&snapshots), layers: alone });
    let snapshots = snapshots.into_iter().map(|snapshot| snapshot.bytes).collect();
    Need { bytes, inodes, layers, whole_trees, snapshots }
}

fn sum(snapshots: &[Unpacked]) -> Estimate {
    snapshots.iter().fold(Estimate::default(), |mut sum, snapshot| {
        sum += snapshot.bytes;
        sum
    })
}

impl Need {
    /// What `room`, that of the root, lacks in any case.
    pub(super) fn shortage(&self, room: &Room) -> Option<Shortage> {
        let lacks = |what, needed, free| (needed > free).then_some(Shortage { what, needed, free });
        let bytes = || room.bytes.and_then(|(_, free)| lacks(Resource::Bytes, self.bytes.at_least, free));
        let inodes = || room.inodes.and_then(|(_, free)| lacks(Resource::Inodes, self.inodes.at_least, free));
        let is_known = !room.compresses && self.layers == Layers::InRoot;
        let bytes = is_known.then(bytes).flatten();
        bytes.or_else(inodes)
    }
}

/// What a layer unpacks to.
#[derive(Debug, Clone, Copy)]
struct Unpacked {
    bytes: Estimate,
    inodes: Estimate,
}

impl Unpacked {
    /// Counts the tree that it stands on. It may remove all of that.
    fn add_tree(&mut self, below: &Self) {
        self.bytes += Estimate { at_least: 0, ..below.bytes };
        self.inodes += Estimate { at_least: 0, ..below.inodes };
    }
}

const KIB: u64 = 1 << 10;
/// How many times its size a layer's tar has, if nothing tells: probably, and at most.
const RATIO: (u64, u64) = (3, 12);
/// The block of file systems, which a directory takes.
const BLOCK: u64 = 4 * KIB;

fn unpacked_of_blob(compressed: u64) -> Unpacked {
    let tar = |ratio| compressed.saturating_mul(ratio).saturating_add(BLOCK);
    unpacked(TarSize { likely: tar(RATIO.0), most: tar(RATIO.1) })
}

fn unpacked(TarSize { likely, most }: TarSize) -> Unpacked {
    // An entry has a header of 512 bytes, and takes a block where there is anything in it: 8 times as much.
    let strict = most.saturating_mul(8).saturating_add(BLOCK);
    let measured = most.saturating_mul(2).saturating_add(64 * KIB);
    let bytes = (likely / 10).saturating_mul(11).saturating_add(BLOCK);
    let inodes = (likely / (16 * KIB)).saturating_add(2);
    Unpacked {
        // Links and whiteouts take nothing, and holes neither.
        bytes: within(0, bytes, strict.min(measured)),
        inodes: within(1, inodes, (most / 512).min(most / 1536 + 64).saturating_add(1)),
    }
}

fn within(at_least: u64, estimate: u64, up_to: u64) -> Estimate {
    Estimate { at_least, estimate: estimate.min(up_to), up_to }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { bytes: Some((100, 50)), inodes: Some((20, 10)), compresses: false };

    fn need(bytes: u64, inodes: u64) -> Need {
        let (bytes, inodes) = (Estimate::exactly(bytes), Estimate::exactly(inodes));
        Need { bytes, inodes, layers: Layers::InRoot, whole_trees: None, snapshots: Vec::new() }
    }

    #[test]
    fn lacks_what_is_not_free() {
        let compresses = Room { compresses: true, ..ROOM };
        let endless = Room { inodes: None, ..ROOM };
        let unknown = Room { bytes: None, ..ROOM };
        let elsewhere = |need: Need| Need { layers: Layers::InContainerd, ..need };
        for (need, room, expected) in [
            (need(50, 10), ROOM, None),
            (need(51, 10), ROOM, Some((Resource::Bytes, 51, 50))),
            (need(51, 11), ROOM, Some((Resource::Bytes, 51, 50))),
            (need(50, 11), ROOM, Some((Resource::Inodes, 11, 10))),
            (need(51, 10), compresses, None),
            (need(51, 11), compresses, Some((Resource::Inodes, 11, 10))),
            (need(50, 11), endless, None),
            (need(u64::MAX, 10), unknown, None),
            (need(51, 11), unknown, Some((Resource::Inodes, 11, 10))),
            (elsewhere(need(51, 10)), ROOM, None),
            (elsewhere(need(51, 11)), ROOM, Some((Resource::Inodes, 11, 10))),
        ] {
            let found = need.shortage(&room).map(|shortage| (shortage.what, shortage.needed, shortage.free));
            assert_eq!(found, expected, "{need:?} {room:?}");
        }
    }

    #[test]
    fn a_tree_counts_what_it_stands_on() {
        let of = |bytes: (u64, u64, u64)| {
            let estimate = Estimate { at_least: bytes.0, estimate: bytes.1, up_to: bytes.2 };
            Unpacked { bytes: estimate, inodes: estimate }
        };
        let mut tree = of((1, 10, 100));
        tree.add_tree(&of((2, 20, 200)));
        let expected = Estimate { at_least: 1, estimate: 30, up_to: 300 };
        assert_eq!((tree.bytes, tree.inodes), (expected, expected));
    }

    #[test]
    fn limits_enclose_the_estimate() {
        for size in [0, 1, 512, 1536, 10_240, 1 << 20, 1 << 34, u64::MAX] {
            for Unpacked { bytes, inodes } in
                [unpacked(TarSize { likely: size, most: size }), unpacked_of_blob(size)]
            {
                for range in [bytes, inodes] {
                    assert!(range.at_least <= range.estimate, "{size}: {range:?}");
                    assert!(range.estimate <= range.up_to, "{size}: {range:?}");
                }
            }
        }
    }
}
