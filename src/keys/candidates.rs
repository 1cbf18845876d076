//! What may be an operation digest; nothing here is proven.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use super::UsedImage;
use super::writers::Writers;
use crate::digest::{Digest, OpDigest};
use crate::oci::Platform;

/// Operation digests that may belong to records, and names for steps, from any number of sources.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    ops: HashMap<OpDigest, Hints>,
    layers: HashMap<Digest, String>,
    images: BTreeMap<(String, String, String), UsedImage>,
    local_images: BTreeSet<String>,
}

/// What a source said of an operation digest beside it.
#[derive(Debug, Clone, Default)]
struct Hints {
    name: Option<String>,
    /// Sorted, without repetition; nearly always one or none.
    outputs: Vec<i64>,
    /// Which releases give the operation this digest, where the source has the operation itself.
    writers: Option<Writers>,
    targets: Targets,
}

/// What the builds were for that have an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// The platforms that sources tell.
    pub told: BTreeSet<Platform>,
    /// A source has the operation and does not tell, so it may be of any build.
    pub untold: bool,
}

impl Targets {
    fn new(target: Option<&Platform>) -> Self {
        Self { told: target.cloned().into_iter().collect(), untold: target.is_none() }
    }
}

impl Default for Targets {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Hints {
    fn add_writers(&mut self, writers: Option<Writers>) {
        self.writers = match (self.writers, writers) {
            (Some(one), Some(other)) => Some(one | other),
            (one, other) => one.or(other),
        };
    }
}

/// Text of somebody else's document that people will see: it must not steer their terminal. A tab does not.
fn printable(text: String) -> String {
    let steers = |c: char| c.is_control() && c != '\t';
    if text.contains(steers) { text.replace(steers, "\u{fffd}") } else { text }
}

impl Candidates {
    /// No candidates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an operation digest and, where it is known, the name of the step as a daemon shows it.
    /// A name that is there already stays.
    pub fn add(&mut self, digest: OpDigest, name: Option<String>) {
        let name = name.map(printable);
        match self.ops.entry(digest) {
            Entry::Occupied(mut entry) => {
                let hints = entry.get_mut();
                hints.name = hints.name.take().or(name);
            }
            Entry::Vacant(entry) => {
                entry.insert(Hints { name, ..Hints::default() });
            }
        }
    }

    /// Says what the one build was for that all these operations are of; `None` where nothing tells.
    pub fn set_target(&mut self, target: Option<&Platform>) {
        for hints in self.ops.values_mut() {
            hints.targets = Targets::new(target);
        }
    }

    /// What the builds were for that have this operation, by all sources of it.
    pub fn targets(&self, digest: &OpDigest) -> Option<&Targets> {
        self.ops.get(digest).map(|hints| &hints.targets)
    }

    /// Adds an operation digest and one output that a record was seen to have with it. That one is tried
    /// first, and also where no other source would think of it.
    pub fn add_output(&mut self, digest: OpDigest, output: i64) {
        let outputs = &mut self.ops.entry(digest).or_default().outputs;
        if let Err(at) = outputs.binary_search(&output) {
            outputs.insert(at, output);
        }
    }

    /// Says which releases give an operation this digest.
    pub(super) fn add_writers(&mut self, digest: &OpDigest, writers: Writers) {
        if let Some(hints) = self.ops.get_mut(digest) {
            hints.add_writers(Some(writers));
        }
    }

    /// The releases that give an operation this digest, where a source tells.
    pub(super) fn writers(&self, digest: &OpDigest) -> Option<Writers> {
        self.ops.get(digest)?.writers
    }

    /// Says which step made a layer, by the layer's blob. A name that is there already stays.
    pub fn name_layer(&mut self, layer: Digest, name: String) {
        self.layers.entry(layer).or_insert_with(|| printable(name));
    }

    /// Adds an image that a build used.
    pub fn add_image(&mut self, image: UsedImage) {
        match self.images.entry(image.id()) {
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                entry.get_mut().frontend |= image.frontend;
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(image);
            }
        }
    }

    /// Adds an image that a build took from where no registry is, as the build named it.
    pub fn add_local_image(&mut self, name: String) {
        self.local_images.insert(printable(name));
    }

    /// Takes over all that `other` has; where both name something, the name here stays.
    pub fn merge(&mut self, other: Self) {
        for (digest, hints) in other.ops {
            match self.ops.entry(digest) {
                Entry::Occupied(mut entry) => {
                    let own = entry.get_mut();
                    own.name = own.name.take().or(hints.name);
                    own.outputs.extend(hints.outputs);
                    own.outputs.sort_unstable();
                    own.outputs.dedup();
                    own.add_writers(hints.writers);
                    own.targets.told.extend(hints.targets.told);
                    own.targets.untold |= hints.targets.untold;
                }
                Entry::Vacant(entry) => {
                    entry.insert(hints);
                }
            }
        }
        for (layer, name) in other.layers {
            self.name_layer(layer, name);
        }
        for image in other.images.into_values() {
            self.add_image(image);
        }
        self.local_images.extend(other.local_images);
    }

    /// How many distinct operation digests there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is no operation digest.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The outputs that this operation digest was seen with, where it is among them.
    pub fn outputs_of(&self, digest: &OpDigest) -> Option<&[i64]> {
        self.ops.get(digest).map(|hints| hints.outputs.as_slice())
    }

    /// The operation digests, in no particular order, with the names of their steps.
    pub fn ops(&self) -> impl Iterator<Item = (&OpDigest, Option<&str>)> {
        self.ops.iter().map(|(digest, hints)| (digest, hints.name.as_deref()))
    }

    /// The operation digests, in no particular order, with the outputs that they were seen with: sorted,
    /// and none where the source does not tell them.
    pub fn outputs(&self) -> impl Iterator<Item = (&OpDigest, &[i64])> {
        self.ops.iter().map(|(digest, hints)| (digest, hints.outputs.as_slice()))
    }

    /// The step's name, where it is known.
    pub fn name(&self, digest: &OpDigest) -> Option<&str> {
        self.ops.get(digest)?.name.as_deref()
    }

    /// The images that builds used, each once, in the order of their names.
    pub fn images(&self) -> impl Iterator<Item = &UsedImage> {
        self.images.values()
    }

    /// Images that builds used and no registry has, in the order of their names.
    pub fn local_images(&self) -> impl Iterator<Item = &str> {
        self.local_images.iter().map(String::as_str)
    }

    /// The step that made the layer with this blob: a name for records that stay without a key.
    pub fn layer_name(&self, layer: &Digest) -> Option<&str> {
        self.layers.get(layer).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_steer_a_terminal() {
        let mut candidates = Candidates::new();
        let op = OpDigest::new("op");
        candidates.add(op.clone(), Some("[1/1] RUN \u{1b}[2J\r\n\u{9b}31m é".into()));
        candidates.name_layer(Digest::of(b"x"), "\u{7}".into());
        candidates.add_local_image("oci-layout://\u{1b}".into());
        let expected = "[1/1] RUN \u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}31m é";
        assert_eq!(candidates.name(&op), Some(expected));
        assert_eq!(candidates.layer_name(&Digest::of(b"x")), Some("\u{fffd}"));
        assert_eq!(candidates.local_images().collect::<Vec<_>>(), ["oci-layout://\u{fffd}"]);
    }

    #[test]
    fn merging_keeps_names_and_fills_gaps() {
        let (one, two) = (OpDigest::new("one"), OpDigest::new("two"));
        let mut a = Candidates::new();
        a.add(one.clone(), Some("first".into()));
        a.add(two.clone(), None);
        a.name_layer(Digest::of(b"x"), "first".into());
        a.add_output(one.clone(), 3);
        let mut b = Candidates::new();
        b.add(one.clone(), Some("other".into()));
        b.add(two.clone(), Some("second".into()));
        b.name_layer(Digest::of(b"x"), "other".into());
        b.add_output(one.clone(), 0);
        b.add_output(one.clone(), 3);
        a.merge(b);
        assert_eq!(a.len(), 2);
        let names: HashMap<_, _> = a.ops().collect();
        assert_eq!(names[&one], Some("first"));
        assert_eq!(names[&two], Some("second"));
        let outputs: HashMap<_, _> = a.outputs().collect();
        assert_eq!(outputs[&one], [0, 3]);
        assert_eq!(outputs[&two], [0; 0]);
        assert_eq!(a.layer_name(&Digest::of(b"x")), Some("first"));
    }

    #[test]
    fn an_operation_is_of_all_releases_that_a_source_tells() {
        let op = OpDigest::new("op");
        let of = |writers: Option<Writers>| {
            let mut candidates = Candidates::new();
            candidates.add(op.clone(), None);
            if let Some(writers) = writers {
                candidates.add_writers(&op, writers);
            }
            candidates
        };
        let (old, new) = (Writers::TO_V0_12, Writers::V0_17);
        for (one, other, both) in
            [(Some(old), Some(new), old | new), (None, Some(new), new), (Some(old), None, old)]
        {
            let mut merged = of(one);
            merged.merge(of(other));
            assert_eq!(merged.writers(&op), Some(both));
        }
    }

    #[test]
    fn targets_are_told_where_every_source_tells() {
        let (one, two) = (OpDigest::new("one"), OpDigest::new("two"));
        let of = |ops: &[&OpDigest], target: Option<&str>| {
            let mut candidates = Candidates::new();
            for op in ops {
                candidates.add((*op).clone(), None);
            }
            candidates.set_target(target.map(|text| text.parse().unwrap()).as_ref());
            candidates
        };
        let mut all = of(&[&one, &two], Some("linux/amd64"));
        all.merge(of(&[&one], Some("linux/arm64")));
        let show = |targets: Option<&Targets>| {
            let targets = targets.unwrap();
            let told: Vec<String> = targets.told.iter().map(ToString::to_string).collect();
            (told.join(" "), targets.untold)
        };
        assert_eq!(show(all.targets(&one)), ("linux/amd64 linux/arm64".into(), false));
        assert_eq!(show(all.targets(&two)), ("linux/amd64".into(), false));
        let mut untold = Candidates::new();
        untold.add(one.clone(), None);
        all.merge(untold);
        all.merge(of(&[&two], None));
        assert_eq!(show(all.targets(&one)), ("linux/amd64 linux/arm64".into(), true));
        assert_eq!(show(all.targets(&two)), ("linux/amd64".into(), true));
        assert_eq!(all.targets(&OpDigest::new("three")), None);
    }
}
