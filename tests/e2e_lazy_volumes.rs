//! The first build on a volume whose blocks are fetched when they are first read, and what reading them beforehand or
//! meanwhile changes.
//!
//! CI runs this with packages of 1 MB, and counts blocks. `scripts/lazy-volumes` has more readers, larger packages
//! (`$WARMKIT_LAZY_MB` each) and a slow volume, and takes times from the file `$WARMKIT_LAZY_OUT`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::env;
use std::fs;
use std::time::Duration;

use serde_json::json;
use support::first_build::{FirstBuild, READERS, Reader, first_build};
use support::lazy::Slowness;
use support::tools::{self, Tools};
use support::trade_offs::{Way, World};

/// Bytes of the volume.
const VOLUME: u64 = 4_000_000_000;
/// What a snapshot of EBS is made of.
const BLOCK: u32 = 512 << 10;
/// A block from S3 takes this long; a volume of gp3 gives so many MiB per second unless more are paid for.
const MEASURED: Slowness = Slowness { block: BLOCK, latency: Duration::from_millis(20), rate: 125 << 20 };
#[test]
fn what_a_first_build_waits_for() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    for program in ["mkfs.ext4", "fstrim", "unshare"] {
        if tools::on_path(program).is_none() {
            support::skip::skip(&format!("no {program} in $PATH"));
            return;
        }
    }
    let measured: Option<usize> = env::var("WARMKIT_LAZY_MB").ok().map(|text| text.parse().unwrap());
    let world = World::start(tools.clone(), tools, measured.unwrap_or(1));
    // The builder, which exports the cache.
    world.make(Way::Volume);
    let image = world.make_sized(Way::Warmkit, VOLUME);
    let seen = |changed, reader| {
        // In CI, nobody waits.
        let slowness = if measured.is_some() { MEASURED } else { Slowness::counting(BLOCK) };
        let seen = first_build(&world, &image, changed, reader, slowness);
        eprintln!("changed: {changed}, {reader:?}: {seen:?}");
        seen
    };
    if measured.is_some() {
        let both = |reader| json!({ "reader": reader, "untouched": seen(false, reader), "changed": seen(true, reader) });
        let measured = json!({
            "release": tools::NEWEST,
            "cores": std::thread::available_parallelism().unwrap(),
            "bytes": image.made.used.bytes,
            "inodes": image.made.used.inodes,
            "volume": VOLUME,
            "latency": MEASURED.latency.as_millis(),
            "rate": MEASURED.rate,
            "readers": READERS.map(both),
        });
        fs::write(env::var_os("WARMKIT_LAZY_OUT").unwrap(), measured.to_string()).unwrap();
        return;
    }
    let [nobody, beside, before] =
        [Reader::Nobody, Reader::Hydrate, Reader::HydrateBefore].map(|reader| seen(true, reader));
    let during = |seen: &FirstBuild| seen.fetched[1] - seen.fetched[0];
    assert!(nobody.cached > 0 && [beside.cached, before.cached] == [nobody.cached; 2]);
    assert!(during(&nobody) >= 16, "too small a root to tell much: {nobody:?}");
    // What is free, and the file system's tables of that, is nobody's to read.
    assert!(during(&before) <= 4, "a build waited for what was to be read before: {before:?}");
    // A daemon waits for the databases, not for the rest.
    assert!(beside.fetched[0] <= before.fetched[0] / 2, "{beside:?}, of {before:?}");
}
