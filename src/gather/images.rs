//! Opens images that builds start from, so that their layers are there before a build asks for them.
//!
//! ```text
//! candidates.images() ─┐                       ┌─> layers, to be fetched from the image's registry
//! --with-image REF    ─┴─> index, manifest, config ─> root keys
//!                                              └─> documents, kept as a pull keeps them
//! ```
//!
//! What was found in provenance is a help: where it cannot be had, the bake is as warm as without it.
//! What was asked for is not: there it is an error.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Blob, Error, Options, parallel};
use crate::digest::{Digest, RecordDigest};
use crate::keys::{Candidates, images::image_keys};
use crate::oci::{self, Document, ImageConfig, Layer, Platform, Reference, image};
use crate::progress::{Event, Progress};
use crate::source::{self, Registry, Source};

/// An image that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeededImage {
    /// Its name, with the tag where it has one and always with the digest.
    pub image: String,
    /// The digest of what the name stands for: an index, where there is one.
    pub digest: Digest,
    /// Which of its manifests was taken.
    pub platform: String,
    /// Whether it is the frontend of a build, which `# syntax=` names.
    pub frontend: bool,
    /// Its layers.
    pub layers: usize,
    /// Their compressed bytes, those that caches have too included.
    pub bytes: u64,
}

/// An image that could not be seeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedImage {
    /// Its name, as provenance has it.
    pub image: String,
    /// Why.
    pub reason: String,
}

/// An image and where its layers come from.
pub struct OpenedImage {
    /// Its blobs.
    pub source: Box<dyn Source>,
    /// What it is made of.
    pub image: Image,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its layers, lowest first, at least one.
    pub layers: Vec<Layer>,
    /// The keys that have its last layer as their result.
    pub keys: Vec<RecordDigest>,
    /// Index, manifest and config: what a pull reads, and a daemon keeps as long as the last layer.
    pub documents: Vec<ImageDocument>,
    /// What to say of it.
    pub report: SeededImage,
}

/// A document of an image, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDocument {
    /// Hash of `bytes`.
    pub digest: Digest,
    /// Manifest, index or config.
    pub bytes: Vec<u8>,
}

/// All images, in the order of their names, and those that could not be had.
#[derive(Default)]
pub struct Images {
    /// Those that were read.
    pub opened: Vec<OpenedImage>,
    /// Those found in provenance that were not.
    pub skipped: Vec<SkippedImage>,
}

struct Wanted {
    reference: Reference,
    platform: Platform,
    frontend: bool,
    /// Given by the user rather than found.
    asked_for: bool,
}

/// Layers that are asked after at once.
const LAYERS_AT_ONCE: usize = 8;

/// Reads the images `asked_for` by name, and those that `found` names, for the platforms that were used.
///
/// With platforms in `options`, only images of builds for one of these; images that were asked for are
/// read for each of them, or for this machine's. Layers that are not in `held`, which caches have, are asked
/// after, so that a bake does not end in its midst for an image that it can do without.
///
/// # Errors
/// An image that was asked for cannot be read, or is none. Whatever is wrong with one that was found is a
/// warning, and in [`Images::skipped`].
pub fn open_images(
    asked_for: &[Reference],
    found: Option<&Candidates>,
    held: &BTreeMap<Digest, Blob>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Images, Error> {
    let mut images = Images::default();
    let mut skip = |image: String, reason: String| {
        progress.event(Event::Warning(format!("image {image} is not seeded: {reason}")));
        images.skipped.push(SkippedImage { image, reason });
    };
    for name in found.into_iter().flat_map(Candidates::local_images) {
        skip(name.to_owned(), "it is in no registry".to_owned());
    }
    let mut opened: BTreeMap<(String, String), OpenedImage> = BTreeMap::new();
    // Of a registry that does not answer, one image is enough to wait for.
    let mut silent: BTreeMap<String, String> = BTreeMap::new();
    for wanted in wanted(asked_for, found, options) {
        options.check()?;
        let name = wanted.reference.whole();
        if let (false, Some(reason)) = (wanted.asked_for, silent.get(wanted.reference.registry())) {
            skip(name, reason.clone());
            continue;
        }
        match open(&wanted, held, options, progress) {
            Ok(image) if image.image.layers.is_empty() => skip(name, "it has no layers".to_owned()),
            Ok(image) => {
                let report = &image.image.report;
                let id = (report.image.clone(), report.platform.clone());
                let known = opened.entry(id).or_insert(image);
                known.image.report.frontend |= wanted.frontend;
            }
            Err(error) if wanted.asked_for => return Err(error),
            Err(error) => {
                options.check()?;
                let reason = match &error {
                    Error::Image { source, .. } => source.to_string(),
                    Error::Source { source, .. }
                        if matches!(**source, source::Error::NoSuchManifest { .. }) =>
                    {
                        "its registry no longer has it".to_owned()
                    }
                    Error::Source { source, .. } => source.to_string(),
                    Error::ImageLayer { layer, .. } => format!("its registry no longer has layer {layer}"),
                    other => other.to_string(),
                };
                if let Error::Source { source, .. } = &error
                    && is_silence(source)
                {
                    silent.insert(wanted.reference.registry().to_owned(), reason.clone());
                }
                skip(name, reason);
            }
        }
    }
    images.opened = opened.into_values().collect();
    Ok(images)
}

fn is_silence(error: &source::Error) -> bool {
    use source::Error as E;
    matches!(error, E::GaveUp { .. } | E::WaitTooLong { .. } | E::Tls { .. })
}

/// Each image once for each platform; those that were asked for first.
fn wanted(asked_for: &[Reference], found: Option<&Candidates>, options: &Options) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    let mut add = |wanted: Wanted| {
        let same =
            |known: &&mut Wanted| known.reference == wanted.reference && known.platform == wanted.platform;
        match all.iter_mut().find(same) {
            Some(known) => known.frontend |= wanted.frontend,
            None => all.push(wanted),
        }
    };
    for reference in asked_for {
        for platform in options.builders() {
            add(Wanted { reference: reference.clone(), platform, frontend: false, asked_for: true });
        }
    }
    let chosen = |target: &Platform| options.platforms.is_empty() || options.platforms.contains(target);
    for image in found.into_iter().flat_map(Candidates::images) {
        if image.target.as_ref().is_none_or(chosen) {
            let (reference, platform) = (image.reference.clone(), image.platform.clone());
            add(Wanted { reference, platform, frontend: image.frontend, asked_for: false });
        }
    }
    all
}

fn open(
    wanted: &Wanted,
    held: &BTreeMap<Digest, Blob>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<OpenedImage, Error> {
    let what = || wanted.reference.whole();
    let unavailable = |source| Error::Source { what: what(), source: Box::new(source) };
    let invalid = |source| Error::Image { image: what(), source };

    let source = Registry::open(&wanted.reference, &options.registry).map_err(unavailable)?;
    let top = source.manifest(None, progress).map_err(unavailable)?;
    let mut documents = vec![ImageDocument { digest: top.digest, bytes: top.bytes }];
    let mut document = Document::parse(&documents[0].bytes).map_err(invalid)?;
    if let Document::Index { manifests } = &document {
        let chosen = image::choose(manifests, &wanted.platform).ok_or_else(|| {
            let platforms = manifests.iter().filter_map(|manifest| manifest.platform.clone());
            let found = platforms.filter(|platform| platform.os != "unknown").collect();
            invalid(oci::Error::NoPlatform { platform: Box::new(wanted.platform.clone()), found })
        })?;
        let manifest = source.manifest(Some(&chosen.digest), progress).map_err(unavailable)?;
        document = Document::parse(&manifest.bytes).map_err(invalid)?;
        documents.push(ImageDocument { digest: manifest.digest, bytes: manifest.bytes });
    }
    let (config, layers) = document.into_image().map_err(invalid)?;
    let bytes = source.document(&config, progress).map_err(unavailable)?;
    let layers = ImageConfig::parse(&bytes).and_then(|config| config.layers(&layers)).map_err(invalid)?;
    documents.push(ImageDocument { digest: config.digest, bytes });

    let own: BTreeSet<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
    let own: Vec<Digest> = own.into_iter().filter(|layer| !held.contains_key(layer)).collect();
    parallel::each(&own, LAYERS_AT_ONCE, |&layer| match source.has_blob(&layer, progress) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::ImageLayer { image: what(), layer }),
        Err(error) => Err(unavailable(error)),
    })?;

    let digest = top.digest;
    let report = SeededImage {
        image: pinned(&wanted.reference, &digest),
        digest,
        platform: wanted.platform.to_string(),
        frontend: wanted.frontend,
        layers: layers.len(),
        bytes: layers.iter().map(|layer| layer.descriptor.size).fold(0, u64::saturating_add),
    };
    let keys = image_keys(&digest, &wanted.platform, image::chain_id(&layers).as_ref());
    Ok(OpenedImage { source: Box::new(source), image: Image { layers, keys, documents, report } })
}

/// `<registry>/<repository>[:<tag>]@<digest>`, as a daemon notes where a layer was pulled from.
fn pinned(reference: &Reference, digest: &Digest) -> String {
    let tag = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    format!("{}/{}{tag}@{digest}", reference.registry(), reference.repository())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::UsedImage;

    fn outline(asked_for: &[&str], found: &[(&str, &str, &str, bool)], platforms: &[&str]) -> Vec<String> {
        let mut candidates = Candidates::new();
        for (reference, platform, target, frontend) in found {
            candidates.add_image(UsedImage {
                reference: reference.parse().unwrap(),
                platform: platform.parse().unwrap(),
                target: target.parse().ok(),
                frontend: *frontend,
            });
        }
        let asked_for: Vec<Reference> = asked_for.iter().map(|text| text.parse().unwrap()).collect();
        let platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
        let options = Options { platforms, ..Options::default() };
        let show = |w: &Wanted| {
            let frontend = if w.frontend { " frontend" } else { "" };
            format!("{} {}{frontend}", w.reference, w.platform)
        };
        wanted(&asked_for, Some(&candidates), &options).iter().map(show).collect()
    }

    #[test]
    fn takes_what_the_wanted_builds_used() {
        let found = [
            ("r.io/base:1", "linux/amd64", "linux/amd64", false),
            ("r.io/base:1", "linux/arm64", "linux/arm64", false),
            // Used by both builds, on the builder.
            ("r.io/fe:1", "linux/amd64", "linux/amd64", true),
            ("r.io/fe:1", "linux/amd64", "linux/arm64", false),
            ("r.io/any:1", "linux/amd64", "", false),
        ];
        let all = [
            "r.io/any:1 linux/amd64",
            "r.io/base:1 linux/amd64",
            "r.io/base:1 linux/arm64",
            "r.io/fe:1 linux/amd64 frontend",
        ];
        assert_eq!(outline(&[], &found, &[]), all);
        let arm = ["r.io/any:1 linux/amd64", "r.io/base:1 linux/arm64", "r.io/fe:1 linux/amd64"];
        assert_eq!(outline(&[], &found, &["linux/arm64"]), arm);
    }

    #[test]
    fn takes_what_is_asked_for_on_each_platform() {
        let both = ["linux/amd64", "linux/arm64"];
        let found = [("r.io/a:1", "linux/amd64", "", true)];
        assert_eq!(
            outline(&["r.io/a:1"], &found, &both),
            ["r.io/a:1 linux/amd64 frontend", "r.io/a:1 linux/arm64"]
        );
        assert_eq!(outline(&["a"], &[], &[]), [format!("docker.io/library/a:latest {}", Platform::host())]);
    }
}
