//! Writes the cache that `scripts/bench-records` reads: many records, many layers of a few bytes, and a
//! `cache.db` that has the keys.
//!
//! Shaped like the caches of a large monorepo: stages of a hundred steps on common bases, steps with several
//! alternatives for an input, and every other step without a layer of its own.
//!
//!     cargo run --release --example bench-records -- DIR [RECORDS] [LAYERS]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool of the repository, not of its users")]

#[path = "../tests/support/handmade.rs"]
mod handmade;

use std::path::Path;

use handmade::{Handmade, write_keys};

/// Steps of a stage, half of them with a layer: as high as a chain of layers gets to be in practice.
const STEPS: usize = 100;
/// Stages that stand on one base.
const SHARED: usize = 10;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap();
    let dir = Path::new(&dir);
    let records: usize = args.next().map_or(10_000, |n| n.parse().unwrap());
    let layers: usize = args.next().map_or(5_000, |n| n.parse().unwrap());
    std::fs::create_dir_all(dir).unwrap();

    let mut cache = Handmade::default();
    let mut operations = Vec::new();
    let (mut made, mut chains) = (0, 0);
    let mut last_of_stage: Vec<usize> = Vec::new();
    let (mut base, mut base_layer) = (0, 0);
    for stage in 0.. {
        if made == records {
            break;
        }
        if stage % SHARED == 0 {
            let layer = cache.layer(&format!("base-{stage}"), None);
            base = cache.record(&format!("base {stage}"), &[], &[layer]);
            base_layer = layer;
            made += 1;
            chains += 1;
        }
        let (mut below, mut top) = (base, base_layer);
        let mut files = None;
        for step in 0..STEPS.min(records - made) {
            let name = format!("stage {stage} step {step}");
            // As many layers as are wanted, spread evenly over the records.
            let layer = chains * records < made * layers;
            if layer {
                top = cache.layer(&format!("layer-{stage}-{step}"), Some(top));
                chains += 1;
            }
            let result = [top];
            let result: &[usize] = if layer { &result } else { &[] };
            below = match (files, last_of_stage.last()) {
                // A copy: files of the context, or of the stage before, in two ways as the solver has them.
                (Some(files), _) if step % 10 == 3 => {
                    cache.record(&name, &[&[below], &[files, base]], result)
                }
                (_, Some(&other)) if step % 10 == 7 => {
                    cache.record(&name, &[&[below, base], &[other]], result)
                }
                (None, _) if step == 2 => {
                    files = Some(cache.record(&name, &[], &[]));
                    below
                }
                _ => cache.record(&name, &[&[below]], result),
            };
            operations.push(name);
            made += 1;
        }
        last_of_stage.push(below);
    }
    let argument = cache.write(&dir.join("cache"));
    let keys = write_keys(&dir.join("cache.db"), operations.iter().map(String::as_str));
    let (manifest, blobs) = cache.documents();
    println!(
        "{made} records, {} layers, manifest {} KB, config {} KB\n{argument}\n{keys}",
        blobs.len() - 1,
        manifest.len() / 1000,
        blobs.last().unwrap().1.len() / 1000
    );
}
