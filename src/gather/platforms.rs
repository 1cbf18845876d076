//! Leaves out what only builds for other platforms use.
//!
//! ```text
//! provenance for linux/amd64   a  b  c ─┐
//! provenance for linux/arm64   a  d     ├─ --platform linux/amd64: d goes, and what stands on d,
//! keys file, of no platform    e       ─┘  and roots that only these need
//! ```
//!
//! A cache does not say which platform a record is for, and neither does the operation: a step that
//! cross-compiles runs on the builder's platform, and a copied file is the same for all. Provenance says
//! what the build was for. So a record goes where every source of its key says that it is of builds for other
//! platforms, and stays where one does not say.

use std::collections::{BTreeSet, HashMap};

use super::{BakedCache, Covered, Error, Keys, Options};
use crate::digest::RecordDigest;
use crate::keys::images::image_keys;
use crate::keys::{ProvenKey, Targets};
use crate::oci::{Cache, Platform};
use crate::progress::{Event, Progress};

/// Takes the records out of `caches` that are of builds for none of the platforms in `options`, as far as
/// `keys` tell; gives how many distinct ones went. The reports in `keys` then count what is left.
///
/// Caches of which `reports` tell the platform are for one that was asked for already.
///
/// # Errors
/// [`Error::PlatformNotHeld`] where everything is told to be for others.
pub fn keep_platforms(
    caches: &mut [Cache],
    reports: &[BakedCache],
    keys: &mut Keys,
    options: &Options,
    progress: &dyn Progress,
) -> Result<usize, Error> {
    let wanted: BTreeSet<&Platform> = options.platforms.iter().collect();
    if wanted.is_empty() {
        return Ok(0);
    }
    let coverage = &keys.coverage;
    let records = coverage.records();
    // What an image with inline cache has is for its platform, whoever else uses it.
    let mut pinned = vec![false; records.len()];
    for (at, _) in reports.iter().enumerate().filter(|(_, report)| report.platform.is_some()) {
        (0..caches[at].records.len()).for_each(|record| pinned[coverage.place(at, record)] = true);
    }
    let targets = targets(records, keys);
    check_held(records, &targets, reports, &wanted)?;

    let left_out = left_out(records, &targets, &pinned, &wanted);
    let vetoed = |targets: &&Targets| targets.untold && is_of_others(targets, &wanted);
    let vetoed = targets.iter().flatten().filter(vetoed).count();
    for (at, cache) in caches.iter_mut().enumerate() {
        remove(cache, |record| left_out[coverage.place(at, record)]);
    }
    keys.count(caches);
    if vetoed > 0 {
        progress.event(Event::Warning(format!(
            "{vetoed} records stay that provenance has for other platforms than --platform: a key source \
             that names no platform (a sidecar, a keys file, a builder's database) has them too"
        )));
    }
    Ok(left_out.iter().filter(|left_out| **left_out).count())
}

/// What the builds were for that have each record's operation; `None` where nothing proves its key.
fn targets(records: &[Covered], keys: &Keys) -> Vec<Option<Targets>> {
    let proven = |record: &Covered| keys.keyring.get(&record.digest).map(ProvenKey::digest);
    let mut all: Vec<Option<Targets>> = records
        .iter()
        .map(|record| proven(record).and_then(|digest| keys.candidates.targets(digest)).cloned())
        .collect();
    // Only provenance has images: a source that does not tell its builds' platform does not tell their images.
    if all.iter().flatten().any(|targets| targets.untold) {
        return all;
    }
    let mut images: HashMap<RecordDigest, Targets> = HashMap::new();
    for image in keys.candidates.images() {
        let Some(digest) = image.reference.digest().and_then(|digest| digest.parse().ok()) else { continue };
        for key in image_keys(&digest, &image.platform, None) {
            let targets = images.entry(key).or_insert(Targets { told: BTreeSet::new(), untold: false });
            targets.told.extend(image.target.clone());
            targets.untold |= image.target.is_none();
        }
    }
    for (targets, record) in all.iter_mut().zip(records).filter(|(_, record)| record.inputs.is_empty()) {
        *targets = targets.take().or_else(|| images.get(&record.digest).cloned());
    }
    all
}

/// Whether sources tell, and only platforms that are not wanted.
fn is_of_others(targets: &Targets, wanted: &BTreeSet<&Platform>) -> bool {
    !targets.told.is_empty() && targets.told.iter().all(|platform| !wanted.contains(platform))
}

/// Checks that each platform is one that something is for, or may be.
fn check_held(
    records: &[Covered],
    targets: &[Option<Targets>],
    reports: &[BakedCache],
    wanted: &BTreeSet<&Platform>,
) -> Result<(), Error> {
    let may_be_any = |(record, targets): (&Covered, &Option<Targets>)| match targets {
        Some(targets) => targets.untold,
        None => !record.inputs.is_empty(),
    };
    let told = targets.iter().flatten().flat_map(|targets| &targets.told);
    let held: BTreeSet<&Platform> =
        told.chain(reports.iter().filter_map(|report| report.platform.as_ref())).collect();
    if held.is_empty() || records.iter().zip(targets).any(may_be_any) {
        return Ok(());
    }
    match wanted.iter().find(|platform| !held.contains(**platform)) {
        Some(&platform) => {
            let held = held.into_iter().cloned().collect();
            Err(Error::PlatformNotHeld { platform: platform.clone(), held })
        }
        None => Ok(()),
    }
}

/// Which records no build for a wanted platform uses.
fn left_out(
    records: &[Covered],
    targets: &[Option<Targets>],
    pinned: &[bool],
    wanted: &BTreeSet<&Platform>,
) -> Vec<bool> {
    let mut left_out: Vec<bool> = Vec::with_capacity(records.len());
    for (at, record) in records.iter().enumerate() {
        let own = targets[at].as_ref();
        let is_told = own.is_some_and(|targets| !targets.untold);
        // A copied file has one key for all platforms, and stands on something of only one.
        let is_content = |input: usize| records[input].inputs.is_empty() && targets[input].is_none();
        let is_out = |alternatives: &Vec<(usize, String)>| {
            alternatives.iter().any(|&(input, _)| left_out[input])
                && alternatives.iter().all(|&(input, _)| left_out[input] || (is_told && is_content(input)))
        };
        let of_others = is_told && own.is_some_and(|targets| is_of_others(targets, wanted));
        left_out.push(!pinned[at] && (of_others || record.inputs.iter().any(is_out)));
    }
    // Of a content nobody tells whose it is: it is there for what stands on it.
    let mut is_used = vec![false; records.len()];
    let mut is_needed = vec![false; records.len()];
    for (at, record) in records.iter().enumerate() {
        for &(input, _) in record.inputs.iter().flatten() {
            is_used[input] = true;
            is_needed[input] |= !left_out[at];
        }
    }
    for at in 0..records.len() {
        let is_content = records[at].inputs.is_empty() && targets[at].is_none();
        left_out[at] |= is_content && is_used[at] && !is_needed[at] && !pinned[at];
    }
    left_out
}

/// Takes records out of a cache, and the links to them. What stays has an alternative left for each input.
fn remove(cache: &mut Cache, is_out: impl Fn(usize) -> bool) {
    let mut moved: Vec<Option<usize>> = Vec::with_capacity(cache.records.len());
    let mut kept = 0;
    for at in 0..cache.records.len() {
        moved.push((!is_out(at)).then_some(kept));
        kept += usize::from(!is_out(at));
    }
    let mut at = 0..;
    cache.records.retain(|_| at.next().is_some_and(|at| moved[at].is_some()));
    for alternatives in cache.records.iter_mut().flat_map(|record| &mut record.inputs) {
        alternatives.retain_mut(|link| match moved[link.record] {
            Some(to) => {
                link.record = to;
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::digest::{Digest, OpDigest};
    use crate::gather::{Offer, prove};
    use crate::keys::{Candidates, UsedImage};
    use crate::oci::Record;
    use crate::oci::cacheconfig::Link;
    use crate::progress::Silent;

    const AMD64: &str = "linux/amd64";
    const ARM64: &str = "linux/arm64";

    fn digest(name: &str) -> RecordDigest {
        OpDigest::of(name.as_bytes()).record_digest(0)
    }

    const INDEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// The base for this platform, as a build for `target` used it.
    fn image(name: &str, target: &str) -> UsedImage {
        let reference = format!("r.io/base@{INDEX}").parse().unwrap();
        UsedImage { reference, platform: platform(name), target: Some(platform(target)), frontend: false }
    }

    fn image_root(name: &str) -> RecordDigest {
        image_keys(&INDEX.parse().unwrap(), &platform(name), None).remove(0)
    }

    /// A name without inputs is a root; one with a slash the root of an image.
    fn cache(records: &[(&str, &[&[&str]])]) -> Cache {
        let at = |name: &&str| {
            let record = records.iter().position(|(known, _)| known == name).unwrap();
            Link { record, selector: String::new() }
        };
        let record = |(name, inputs): &(&str, &[&[&str]])| Record {
            digest: if name.contains('/') { image_root(name) } else { digest(name.trim_end_matches('\'')) },
            results: Vec::new(),
            inputs: inputs.iter().map(|all| all.iter().map(at).collect()).collect(),
        };
        Cache { layers: Vec::new(), records: records.iter().map(record).collect() }
    }

    fn offer(names: &[&str], target: Option<&str>) -> Offer {
        let mut candidates = Candidates::new();
        for name in names {
            candidates.add(OpDigest::of(name.as_bytes()), None);
        }
        candidates.set_target(target.map(platform).as_ref());
        // The builder is an amd64.
        if let Some(target) = target {
            for name in [AMD64, target] {
                candidates.add_image(image(name, target));
            }
        }
        Offer { source: format!("{target:?}"), candidates }
    }

    fn report(of: Option<&str>) -> BakedCache {
        BakedCache {
            cache: "cache".into(),
            digest: Digest::of(b"cache"),
            platform: of.map(platform),
            records: 0,
            written_by: None,
        }
    }

    /// Names of what stays of one cache, and how many records went.
    fn kept(
        records: &[(&str, &[&[&str]])],
        offers: &[Offer],
        platforms: &[&str],
    ) -> Result<(Vec<String>, usize), Error> {
        let mut caches = [cache(records)];
        let mut keys = prove(offers, &caches);
        let platforms = platforms.iter().map(|text| platform(text)).collect();
        let options = Options { platforms, ..Options::default() };
        let whole = caches[0].clone();
        let left_out = keep_platforms(&mut caches, &[report(None)], &mut keys, &options, &Silent)?;
        for record in &caches[0].records {
            assert!(record.inputs.iter().all(|all| !all.is_empty()), "an input without a link");
            assert!(record.inputs.iter().flatten().all(|link| link.record < caches[0].records.len()));
        }
        // In their order, so that equal digests are told apart.
        let mut rest = caches[0].records.iter().peekable();
        let is_next = |at: usize| {
            let (known, now) = (&whole.records[at], rest.peek());
            let stays = now.is_some_and(|now| now.digest == known.digest);
            if stays {
                rest.next();
            }
            stays
        };
        let stay: Vec<bool> = (0..records.len()).map(is_next).collect();
        let names = records.iter().zip(stay).filter(|(_, stays)| *stays);
        Ok((names.map(|((name, _), _)| (*name).to_owned()).collect(), left_out))
    }

    #[test]
    fn what_only_others_use_goes() {
        let records: &[(&str, &[&[&str]])] = &[
            (AMD64, &[]),
            (ARM64, &[]),
            ("file", &[]),
            ("only arm64 copies it", &[]),
            ("shared", &[&[AMD64], &["file"]]),
            ("compile for amd64", &[&["shared"]]),
            ("compile for arm64", &[&["shared"]]),
            ("what came out for arm64", &[]),
            ("copy", &[&["compile for amd64"]]),
            ("copy'", &[&["compile for arm64", "what came out for arm64"]]),
            ("on base", &[&[ARM64], &["only arm64 copies it"]]),
            ("nobody knows", &[&["file"]]),
        ];
        let amd64 = offer(&["shared", "compile for amd64", "copy"], Some(AMD64));
        let arm64 = offer(&["shared", "compile for arm64", "copy", "on base"], Some(ARM64));
        let offers = [amd64.clone(), arm64.clone()];
        let stays = [AMD64, "file", "shared", "compile for amd64", "copy", "nobody knows"];
        assert_eq!(kept(records, &offers, &[AMD64]).unwrap(), (stays.map(String::from).to_vec(), 6));
        let (stays, left_out) = kept(records, &offers, &[ARM64]).unwrap();
        assert_eq!((stays.contains(&"compile for amd64".to_owned()), left_out), (false, 2), "{stays:?}");
        assert_eq!(kept(records, &offers, &[AMD64, ARM64]).unwrap().1, 0);
        assert_eq!(kept(records, &offers, &[]).unwrap().1, 0);

        // Whoever does not tell may have it from any build.
        let untold = offer(&["shared", "compile for arm64", "copy", "on base"], None);
        assert_eq!(kept(records, &[amd64.clone(), arm64.clone(), untold], &[AMD64]).unwrap().1, 0);
        let untold = offer(&["copy"], None);
        let (stays, _) = kept(records, &[amd64, arm64, untold], &[AMD64]).unwrap();
        assert!(!stays.contains(&"compile for arm64".to_owned()), "{stays:?}");
        assert!(stays.contains(&"what came out for arm64".to_owned()), "{stays:?}");
    }

    #[test]
    fn a_platform_has_to_be_one_of_those_that_are_told() {
        let records: &[(&str, &[&[&str]])] = &[("root", &[]), ("a", &[&["root"]]), ("b", &[&["a"]])];
        let arm64 = offer(&["a", "b"], Some(ARM64));
        for platforms in [&[AMD64][..], &[ARM64, AMD64]] {
            let text = kept(records, slice::from_ref(&arm64), platforms).unwrap_err().to_string();
            assert_eq!(text, "no cache is for --platform linux/amd64: they are for linux/arm64");
        }
        // What has no key, or one from who knows where, may be for it.
        let only_a = offer(&["a"], Some(ARM64));
        assert_eq!(kept(records, slice::from_ref(&only_a), &[AMD64]).unwrap().1, 3, "b stands on a");
        assert_eq!(kept(records, &[only_a, offer(&["a", "b"], None)], &[AMD64]).unwrap().1, 0);
        assert_eq!(kept(records, &[], &[AMD64]).unwrap().1, 0);
    }

    #[test]
    fn an_inline_cache_is_for_its_platform() {
        let records: &[(&str, &[&[&str]])] = &[("root", &[]), ("a", &[&["root"]]), ("b", &[&["root"]])];
        let mut caches = [cache(records), cache(&records[..2])];
        let mut keys = prove(&[offer(&["a", "b"], Some(ARM64))], &caches);
        assert_eq!(keys.reports[0].keyed, 2);
        let options = Options { platforms: vec![platform(AMD64)], ..Options::default() };
        let reports = [report(None), report(Some(AMD64))];
        assert_eq!(keep_platforms(&mut caches, &reports, &mut keys, &options, &Silent).unwrap(), 1);
        assert_eq!(caches.map(|cache| cache.records.len()), [2, 2]);
        assert_eq!((keys.reports[0].keyed, keys.reports[0].only), (1, 1));
    }
}
