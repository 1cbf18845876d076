//! Arguments that several commands take, and what they mean to the library.

use std::collections::HashMap;
use std::fmt::Display;

use clap::Args;

use crate::gather;
use crate::keys::KeySpec;
use crate::oci::Platform;
use crate::source::{self, Stop};

/// How registries are asked.
#[derive(Debug, Args)]
pub(super) struct Registries {
    /// Allow plain http for registries on other hosts than this one too
    #[arg(long)]
    insecure: bool,
}

impl Registries {
    /// The same for the library; `stop` ends all that is asked.
    pub(super) fn options(&self, stop: Stop) -> source::Options {
        source::Options { insecure: self.insecure, stop, ..source::Options::default() }
    }
}

/// Where the keys of caches come from.
#[derive(Debug, Args)]
pub(super) struct KeySources {
    /// Where keys may come from; may be repeated: an image reference or type=image,ref=REF (its provenance),
    /// type=provenance,src=FILE, type=cachedb,src=FILE-OR-ROOT, type=builder,name=NAME (a builder of buildx),
    /// or type=keys,src=FILE
    #[arg(long, value_name = "SRC")]
    keys_from: Vec<KeySpec>,

    /// Do without the sidecars that `warmkit keys push` puts beside caches; keys push then replaces them
    /// unread
    #[arg(long)]
    pub(super) no_sidecar: bool,

    /// Leave out what only builds for other platforms use, as far as an image with inline cache, or
    /// provenance, tells; also what the builder ran on that exported the caches, for operations that name no
    /// platform. May be repeated; default: everything, and this machine's platform
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    pub(super) platforms: Vec<Platform>,

    #[command(flatten)]
    pub(super) registries: Registries,
}

impl KeySources {
    /// Each source once: one that is named twice would seem to be needless.
    pub(super) fn keys_from(&self) -> Vec<KeySpec> {
        distinct(self.keys_from.clone())
    }

    /// How caches and key sources are read.
    pub(super) fn gather(&self, stop: Stop) -> gather::Options {
        gather::Options {
            platforms: self.platforms.clone(),
            no_sidecar: self.no_sidecar,
            registry: self.registries.options(stop),
        }
    }
}

/// The first of each, in their order.
pub(super) fn distinct<T: Display + PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut known: HashMap<String, Vec<usize>> = HashMap::new();
    let mut distinct = Vec::with_capacity(all.len());
    for one in all {
        // Text alone does not tell: it leaves out secrets.
        let alike = known.entry(one.to_string()).or_default();
        if alike.iter().all(|&at| distinct[at] != one) {
            alike.push(distinct.len());
            distinct.push(one);
        }
    }
    distinct
}
