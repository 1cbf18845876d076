//! The images that a build used, by its provenance, and the cache keys that a daemon has for an image.
//!
//! ```text
//! SLSA 0.2   materials[]                                  {uri, digest {sha256}}
//! SLSA 1     buildDefinition.resolvedDependencies[]       {uri, digest {sha256}}
//!   uri      pkg:docker/<name>@<tag>?digest=…&platform=<os>%2F<arch>
//! LLB        source.identifier                            docker-image://<name>:<tag>@<digest>
//! frontend   args.source of the request                   <name>:<tag>: what `# syntax=` names
//! ```
//!
//! Mirrors `util/purl/image.go`, `solver/llbsolver/provenance/predicate.go`, and for the keys
//! `source/containerimage/pull.go` and `solver/llbsolver/ops/source.go` (v0.34.2; v0.17.3 for the second
//! key).

use serde_json::{Map, Value};

use super::llb::{Operation, Step};
use super::variables::Platforms;
use super::wire::get;
use crate::digest::{ChainId, Digest, OpDigest, RecordDigest};
use crate::oci::{Platform, Reference};

/// An image that a build used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedImage {
    /// Its name, normalised, with the tag where it had one and always with the digest.
    pub reference: Reference,
    /// What it was used on: of an index, which of its manifests.
    pub platform: Platform,
    /// What the build was for that used it, where that is told.
    pub target: Option<Platform>,
    /// Whether it was the frontend of the build, which `# syntax=` names.
    pub frontend: bool,
}

impl UsedImage {
    /// What tells images apart: name, platform, target.
    pub(super) fn id(&self) -> (String, String, String) {
        let target = self.target.as_ref().map(ToString::to_string).unwrap_or_default();
        (self.reference.whole(), self.platform.to_string(), target)
    }
}

/// The images of one build.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) images: Vec<UsedImage>,
    /// Images that no registry has, as the build named them.
    pub(super) local: Vec<String>,
}

/// Finds the images in a build's dependencies and operations.
///
/// `default` is the platform of what names none: that of the builder. Whatever is not an image, or not
/// pinned by a digest, is passed over: what the build pulled is pinned.
pub(super) fn find(
    dependencies: Option<&Value>,
    steps: &[Step],
    args: Option<&Map<String, Value>>,
    platforms: &Platforms,
    default: &Platform,
) -> Found {
    let frontend = args.and_then(|args| get(args, "source")).and_then(Value::as_str).and_then(parse);
    let default = platforms.builder.as_ref().unwrap_or(default);
    let mut found = Found::default();
    let mut add = |reference: Reference, platform: Option<Platform>| {
        let is_frontend = frontend.as_ref().is_some_and(|frontend| names(frontend, &reference));
        found.images.push(UsedImage {
            // A frontend runs on the builder, and its dependency names no platform.
            frontend: is_frontend && platform.is_none(),
            platform: platform.unwrap_or_else(|| default.clone()),
            target: platforms.target.clone(),
            reference,
        });
    };
    for dependency in dependencies.and_then(Value::as_array).into_iter().flatten() {
        if let Some((reference, platform)) = dependency.as_object().and_then(of_dependency) {
            add(reference, platform);
        }
    }
    for step in steps {
        let Operation::Source { identifier } = &step.operation else { continue };
        if let Some(name) = identifier.strip_prefix("docker-image://") {
            let platform = step.platform.as_ref();
            let platform = platform.map(|p| Platform::new(&p.os, &p.architecture, &p.variant));
            let pinned = parse(name).filter(|reference| reference.digest().is_some());
            if let Some(reference) = pinned {
                add(reference, Some(platform.unwrap_or_else(|| default.clone())));
            }
        } else if identifier.starts_with("oci-layout://") {
            found.local.push(identifier.clone());
        }
    }
    found
}

/// A reference whose digest, where it has one, is SHA-256.
fn parse(name: &str) -> Option<Reference> {
    let reference: Reference = name.parse().ok()?;
    reference.digest().is_none_or(|digest| digest.parse::<Digest>().is_ok()).then_some(reference)
}

/// Whether `name`, as a Dockerfile has it, is the image that was resolved as `pinned`.
fn names(name: &Reference, pinned: &Reference) -> bool {
    let same_digest = name.digest().is_some() && name.digest() == pinned.digest();
    name.registry() == pinned.registry()
        && name.repository() == pinned.repository()
        && (same_digest || (name.digest().is_none() && name.tag() == pinned.tag()))
}

fn of_dependency(dependency: &Map<String, Value>) -> Option<(Reference, Option<Platform>)> {
    let uri = get(dependency, "uri")?.as_str()?;
    let digest = get(dependency, "digest").and_then(Value::as_object);
    let digest = digest.and_then(|digest| get(digest, "sha256")).and_then(Value::as_str);
    let rest = uri.strip_prefix("pkg:docker/")?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (name, version) = path.rsplit_once('@').map_or((path, None), |(name, version)| (name, Some(version)));
    let qualifier = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| decode(value))
    };
    let digest = qualifier("digest").or_else(|| digest.map(|hex| format!("sha256:{hex}")))?;
    let mut text = decode(name)?;
    if let Some(version) = version {
        text.push(':');
        text.push_str(&decode(version)?);
    }
    let reference = parse(&format!("{text}@{digest}"))?;
    Some((reference, qualifier("platform").and_then(|text| text.parse().ok())))
}

/// Undoes percent encoding; `None` where it is none.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// The platform that a predicate's subject (`pkg:docker/app@1?platform=linux%2Famd64`) was built for.
pub(super) fn platform_of_subject(name: &str) -> Option<Platform> {
    let (_, query) = name.split_once('?')?;
    let value = query.split('&').find_map(|pair| pair.strip_prefix("platform="))?;
    decode(value)?.parse().ok()
}

/// The root keys under which a daemon has the result of pulling an image.
///
/// `manifest` is what the tag resolves to, an index where there is one. All releases have the key of that
/// and the platform; up to v0.28.1 at least, and no more in v0.33.1, there is a second one, of what the
/// layers unpack to. It is as good as the first where the diff IDs were proven.
pub fn image_keys(manifest: &Digest, platform: &Platform, chain_id: Option<&ChainId>) -> Vec<RecordDigest> {
    let mut variants = vec![platform.variant.as_str()];
    if (platform.arch.as_str(), platform.variant.as_str()) == ("arm64", "") {
        // The platform of a daemon itself, which frontends are pulled for, is not normalised.
        variants.push("v8");
    }
    let of_manifest = variants.into_iter().map(|variant| {
        let Platform { os, arch, .. } = platform;
        let variant =
            if variant.is_empty() { String::new() } else { format!(",\"Variant\":{}", Value::from(variant)) };
        let (os, arch) = (Value::from(os.as_str()), Value::from(arch.as_str()));
        let json = format!("{{\"Digest\":\"{manifest}\",\"OS\":{os},\"Arch\":{arch}{variant}}}");
        Digest::of(json.as_bytes()).to_string()
    });
    let keys = of_manifest.chain(chain_id.map(ToString::to_string));
    keys.map(|key| OpDigest::of(format!("buildkit.source.v0:{key}").as_bytes()).record_digest(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::DiffId;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn found(dependencies: &Value, steps: &Value, args: &Value) -> (Vec<String>, Vec<String>) {
        let steps: Vec<Step> = steps.as_array().unwrap().iter().filter_map(Step::read).collect();
        let platforms = Platforms { builder: "linux/arm64".parse().ok(), target: "linux/s390x".parse().ok() };
        let default = "linux/amd64".parse().unwrap();
        let found = find(Some(dependencies), &steps, args.as_object(), &platforms, &default);
        let show = |image: &UsedImage| {
            assert_eq!(image.target, platforms.target);
            let name = image.reference.whole().replace(DIGEST, "D");
            format!("{name} {}{}", image.platform, if image.frontend { " frontend" } else { "" })
        };
        (found.images.iter().map(show).collect(), found.local)
    }

    #[test]
    fn reads_dependencies() {
        let hex = &DIGEST["sha256:".len()..];
        let of = |uri: &str| serde_json::json!([{ "uri": uri, "digest": { "sha256": hex } }]);
        let cases = [
            ("pkg:docker/alpine@3.18?platform=linux%2Famd64", "docker.io/library/alpine:3.18@D linux/amd64"),
            ("pkg:docker/docker/dockerfile@1", "docker.io/docker/dockerfile:1@D linux/arm64 frontend"),
            (
                "pkg:docker/127.0.0.1%3A5000/a/b@c?platform=linux%2Farm%2Fv7",
                "127.0.0.1:5000/a/b:c@D linux/arm/v7",
            ),
            ("pkg:docker/127.0.0.1:5000/a/b@c", "127.0.0.1:5000/a/b:c@D linux/arm64"),
            (
                &format!("pkg:docker/alpine?digest={DIGEST}&platform=linux%2Famd64"),
                "docker.io/library/alpine@D linux/amd64",
            ),
            (&format!("pkg:docker/r.io/a?digest={}", DIGEST.replace(':', "%3A")), "r.io/a@D linux/arm64"),
            ("pkg:oci/local@1?platform=linux%2Famd64", ""),
            ("https://github.com/moby/buildkit.git#v0.1", ""),
            ("pkg:docker/UPPER@1", ""),
            ("pkg:docker/a%2", ""),
            ("pkg:docker/a%+1@1", ""),
            ("", ""),
        ];
        let args = serde_json::json!({ "source": "docker/dockerfile:1" });
        for (uri, expected) in cases {
            let (images, _) = found(&of(uri), &serde_json::json!([]), &args);
            assert_eq!(images.join(";"), expected, "{uri}");
        }
        let unpinned = serde_json::json!([{ "uri": "pkg:docker/alpine@3" }, 7, { "uri": 7 }]);
        assert_eq!(found(&unpinned, &serde_json::json!([]), &args).0, [""; 0]);
    }

    #[test]
    fn reads_operations() {
        let step = |kind: &str, identifier: &str| {
            serde_json::json!({
                "id": "step0",
                "op": {
                    "Op": { kind: { "identifier": identifier } },
                    "platform": { "Architecture": "arm64", "OS": "linux", "Variant": "v8" },
                },
            })
        };
        let steps = serde_json::json!([
            step("source", &format!("docker-image://docker.io/library/alpine:3@{DIGEST}")),
            step("Source", &format!("docker-image://docker/dockerfile:1@{DIGEST}")),
            step("source", "docker-image://docker.io/library/unpinned:3"),
            step("source", "local://context"),
            step("source", &format!("oci-layout://store/base@{DIGEST}")),
        ]);
        let args = serde_json::json!({ "source": "docker/dockerfile:1" });
        let (images, local) = found(&Value::Null, &steps, &args);
        let expected =
            ["docker.io/library/alpine:3@D linux/arm64", "docker.io/docker/dockerfile:1@D linux/arm64"];
        assert_eq!(images, expected, "an image to copy from is not the frontend, whatever its name");
        assert_eq!(local, [format!("oci-layout://store/base@{DIGEST}")]);
    }

    #[test]
    fn tells_what_a_predicate_is_for() {
        let cases = [
            ("pkg:docker/app@1?platform=linux%2Farm64", Some("linux/arm64")),
            ("pkg:docker/app@1?digest=x&platform=linux%2Famd64", Some("linux/amd64")),
            ("pkg:docker/app@1", None),
            ("_", None),
        ];
        for (name, expected) in cases {
            assert_eq!(platform_of_subject(name).map(|p| p.to_string()).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn keys_are_those_of_daemons() {
        // Seen in cache.db of v0.17.3, which has both, and of v0.34.2, which has the first.
        let manifest =
            "sha256:a7b470c19a4f848f9d608595b39db05e833127afadcfd6fdffaf39392cbe3157".parse().unwrap();
        let diff_ids: [DiffId; 2] = [
            "sha256:e7f49dbf3632c024ac4f559e5739ec6221b5fa08cb8d25a5960345529eaaf657".parse().unwrap(),
            "sha256:2bea6506e5ddf9627d779d7476899231e2e53ab866c3c73d263ea863658ad424".parse().unwrap(),
        ];
        let chain_id = ChainId::of_layer(Some(ChainId::of_layer(None, diff_ids[0])), diff_ids[1]);
        let keys = |platform: &str, chain_id: Option<&ChainId>| -> Vec<String> {
            let keys = image_keys(&manifest, &platform.parse().unwrap(), chain_id);
            keys.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            keys("linux/amd64", Some(&chain_id)),
            [
                "sha256:72a7291cb8647af2e891a02226cfb5062c5959e08981ec79204ca89430199c87",
                "sha256:82e49861259f3a79d553c6e3177f4378aaf7977f5ca909c722756c68bf3a4b8f",
            ]
        );
        assert_eq!(keys("linux/arm64", None).len(), 2);
        assert_eq!(keys("linux/arm/v7", None).len(), 1);
    }
}
