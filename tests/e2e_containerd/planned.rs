//! What `warmkit plan` says of a root whose layers a containerd keeps.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::on;
use crate::support::Scratch;
use crate::support::command::{Ended, run};
use crate::support::containerd::Containerd;
use crate::support::foreseen::bake_at_as_planned;
use crate::support::handmade::{Handmade, write_keys};
use crate::support::skip::is_root;
use crate::support::tmpfs::Tmpfs;

const LIMIT: Duration = Duration::from_secs(60);

/// A cache of two layers with names that begin so, and the keys of its records: arguments of a bake.
pub(crate) fn cache(scratch: &Scratch, name: &str) -> [String; 3] {
    let [below, above] = ["below", "above"].map(|layer| format!("{name}-{layer}"));
    let mut cache = Handmade::default();
    let base = cache.layer(&below, None);
    let base_record = cache.record(&below, &[], &[base]);
    let top = cache.layer(&above, Some(base));
    cache.record(&above, &[&[base_record]], &[top]);
    let keys = write_keys(&scratch.join(format!("{name}.db")), [&*below, &*above]);
    [cache.write(&scratch.join(name)), "--keys-from".to_owned(), keys]
}

fn planned(containerd: &str, root: &Path, arguments: &[&str]) -> (Ended, Value) {
    let ended = run(&mut on(containerd, root, &[&["plan", "--format", "json"], arguments].concat()), LIMIT);
    let plan = ended.stdout.parse().unwrap_or_else(|e| panic!("{e}: {}", ended.stderr));
    (ended, plan)
}

/// Figures are those of the bake that follows, and until then containerd has nothing of it.
#[test]
fn what_goes_where_is_told_and_nothing_written() {
    if !is_root() {
        return;
    }
    let Some(containerd) = Containerd::start() else { return };
    let scratch = Scratch::new();
    let (root, address) = (scratch.join("root"), containerd.address());
    let cache = cache(&scratch, "app");
    let arguments: Vec<&str> = cache.iter().map(String::as_str).collect();

    let text = run(&mut on(&address, &root, &[&["plan"], &arguments[..]].concat()), LIMIT);
    let text = text.expect_success("plan").stdout;
    for said in [
        "containerd  about ".to_owned(),
        format!("in namespace buildkit at {address}\n"),
        // The root, its worker's directory and one in that, databases and id.
        "on disk     databases, up to 6 inodes\n".to_owned(),
    ] {
        assert!(text.contains(&said), "no {said:?} in {text}");
    }
    containerd.assert_empty();

    // Refused as a bake is, which looks there before it looks at the cache.
    let absent = ["--snapshotter", "fuse-overlayfs"];
    let (ended, plan) = planned(&address, &root, &[&arguments[..], &absent].concat());
    assert_eq!(ended.status.code(), Some(2), "{plan:#}");
    let refusals = plan["refusals"].as_array().unwrap();
    let said = refusals[0]["message"].as_str().unwrap();
    assert!(refusals.len() == 1 && said.contains("has no snapshotter \"fuse-overlayfs\""), "{plan:#}");
    let baked = run(&mut on(&address, &root, &[&["bake"], &arguments[..], &absent].concat()), LIMIT);
    assert_eq!(baked.status.code(), Some(2), "{}", baked.stderr);
    assert!(baked.stderr.contains(said), "{said} in {}", baked.stderr);

    // A disk that has no room for the root, however much containerd has.
    let small = Tmpfs::new(scratch.join("small"), "size=4m,nr_inodes=4");
    let (ended, plan) = planned(&address, &small.0.join("root"), &arguments);
    assert_eq!(ended.status.code(), Some(11), "{plan:#}");
    let said = plan["refusals"][0]["message"].as_str().unwrap();
    assert!(said.contains("takes at least 5 inodes"), "{said}");
    let baked = run(&mut on(&address, &small.0.join("root"), &[&["bake"], &arguments[..]].concat()), LIMIT);
    assert_eq!(baked.status.code(), Some(11), "{}", baked.stderr);
    assert!(baked.stderr.contains("inodes"), "{}", baked.stderr);
    containerd.collect();
    containerd.assert_empty();

    let target = format!("containerd:{address}");
    let place = ["--for", &target, "--root", root.to_str().unwrap()];
    let plan = bake_at_as_planned(&arguments, &[], &place, &root);
    assert_eq!(plan["containerd"], serde_json::json!({ "address": address, "namespace": "buildkit" }));
}
