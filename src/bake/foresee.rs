//! What a bake would do, told without a layer and without a write.

use std::time::Instant;

use serde::Serialize;

use super::need::{self, Estimate, Need, WholeTrees};
use super::plan::Plan;
use super::prepare::{Prepared, prepare};
use super::report::Contents;
use super::{Cancel, Containerd, Error, IoContext, Options, containerd, place, stores, watched};
use crate::fsutil::{self, Room};
use crate::gather::{self, Image};
use crate::gc::{self, Disk, Forecast};
use crate::progress::{Event, Progress};
use crate::store::RecordId;
use crate::store::schema::metadata::FRONTEND;

/// The daemon that will run on the root, as far as its garbage collection goes.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// What its configuration says.
    pub configuration: gc::Configuration,
    /// Its release.
    pub release: gc::Release,
    /// Bytes of its disk, on which nothing but the root is taken to be; `None`: that of the target, as it is.
    pub disk_size: Option<u64>,
    /// How many bytes builds may add before something has to go; `None`: half of what is free.
    pub room: Option<u64>,
}

/// What a bake would do.
#[derive(Debug, Serialize)]
pub struct Foreseen {
    /// The root that it would make, absolute.
    pub root: String,
    /// What would go into it.
    #[serde(flatten)]
    pub contents: Contents,
    /// As [`super::Report::bytes_on_disk`].
    pub bytes_on_disk: Estimate,
    /// Files and directories of the root.
    pub inodes: Estimate,
    /// Who keeps its layers, where that is not the root: all of `bytes_on_disk` is there, on a disk that nothing is known
    /// of, and `inodes` has none of it.
    pub containerd: Option<Containerd>,
    /// Of the bytes, those of trees; `None` where each layer is kept by itself.
    pub whole_trees: Option<WholeTrees>,
    /// Layers of which the size of the tar is known; what the other ones unpack to is known less well.
    pub tars_known: usize,
    /// The disk that the root would be on.
    pub target: TargetRoom,
    /// Why the bake would be refused; empty where it would not.
    #[serde(skip)]
    pub refusals: Vec<Error>,
    /// What garbage collection would do to it.
    pub gc: Forecast,
    /// Seconds that it took.
    pub seconds: f64,
}

/// How much room there is for a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TargetRoom {
    /// Bytes of the file system; `None` where it does not tell.
    pub bytes: Option<u64>,
    /// Those that are free, those that are reserved for root included.
    pub bytes_free: Option<u64>,
    /// Inodes of the file system; `None` where it makes them as it needs them.
    pub inodes: Option<u64>,
    /// Those that are free.
    pub inodes_free: Option<u64>,
}

impl From<Room> for TargetRoom {
    fn from(room: Room) -> Self {
        let Room { bytes, inodes, .. } = room;
        let (bytes, bytes_free) = bytes.unzip();
        let (inodes, inodes_free) = inodes.unzip();
        Self { bytes, bytes_free, inodes, inodes_free }
    }
}

/// Says what a bake with these options would do, and what would become of the root. Nothing is written, and of a
/// layer no more is read than its last bytes.
///
/// # Errors
/// What a bake would end with before it looks at its target. What it would refuse after that is in
/// [`Foreseen::refusals`].
pub fn foresee(
    options: &Options,
    gc: &GcOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Foreseen, Error> {
    watched(options, cancel, |options| {
        let foreseen = foresee_watched(options, gc, cancel, progress);
        foreseen.map_err(|error| cancel.check().err().unwrap_or(error))
    })
}

fn foresee_watched(
    options: &Options,
    gc: &GcOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Foreseen, Error> {
    let started = Instant::now();
    let target = std::path::absolute(&options.root).at("resolve", &options.root)?;
    let mut refusals = Vec::new();
    let connected =
        options.containerd.as_ref().map(|to| containerd::connect(to, options, cancel).map(drop)).transpose();
    cancel.check()?;
    // In the order in which a bake looks.
    for refused in
        [place::check(&target, options.marks(), options.user()?).err(), connected.err()].into_iter().flatten()
    {
        // Who may not look there is not who will bake there.
        if !fsutil::is_root() && is_kept_out(&refused) {
            progress
                .event(Event::Warning(format!("{refused}; a bake, as root, may find more to refuse there")));
        } else {
            refusals.push(refused);
        }
    }
    // A bake looks at its target first.
    let Prepared { sources, images, plan, contents, .. } = match prepare(options, true, progress) {
        Err(_) if !refusals.is_empty() => return Err(refusals.swap_remove(0)),
        prepared => prepared?,
    };
    if !contents.unkeyed.is_empty() && !options.allow_unkeyed {
        refusals.push(Error::Unkeyed { records: contents.unkeyed.clone(), total: contents.records });
    }
    let tars = gather::tar_sizes(&plan.blobs, &sources, progress)?;
    let need = need::of(&plan, &images, &tars, &options.state_dir(&target)?);
    let room = fsutil::room_at(&target).at("look at the file system of", &target)?;
    if let Some(shortage) = need.shortage(&room) {
        refusals.push(Error::NoSpace { path: options.root.clone(), shortage });
    }
    let gc = collected(&plan, &images, &need, &room, options, gc, sources.len() - images.len())?;
    Ok(Foreseen {
        // As a bake calls it, which follows a link where there is one.
        root: target.canonicalize().unwrap_or(target).display().to_string(),
        contents,
        bytes_on_disk: need.bytes,
        inodes: need.inodes,
        containerd: options.containerd.clone(),
        whole_trees: need.whole_trees,
        tars_known: tars.iter().flatten().filter(|tar| tar.is_known()).count(),
        target: room.into(),
        refusals,
        gc,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Whether it may be that only this user cannot look.
fn is_kept_out(error: &Error) -> bool {
    match error {
        Error::Io { .. } => true,
        #[cfg(feature = "containerd")]
        Error::Containerd(crate::containerd::Error::Connect { source, .. }) => {
            source.kind() == std::io::ErrorKind::PermissionDenied
        }
        _ => false,
    }
}

/// What a daemon's garbage collection will do to the root; the blobs of caches come from the first `caches` sources.
fn collected(
    plan: &Plan,
    images: &[Image],
    need: &Need,
    room: &Room,
    options: &Options,
    gc: &GcOptions,
    caches: usize,
) -> Result<Forecast, Error> {
    let of = |size: fn(&Estimate) -> u64| {
        let size = move |record: &super::plan::Record| {
            let blob = plan.blobs[record.blob].layer.descriptor.size;
            size(&need.snapshots[record.snapshot]).saturating_add(blob)
        };
        plan.records.iter().map(size).collect::<Vec<u64>>()
    };
    let id = |at: usize| RecordId::of(&plan.records[at].blob_chain_id).to_string();
    let largest = of(|size| size.up_to);
    let records: Vec<gc::Record> = plan
        .records
        .iter()
        .zip(of(|size| size.estimate))
        .enumerate()
        .map(|(at, (record, size))| gc::Record {
            id: id(at),
            size,
            record_type: if stores::is_frontend(record, images) { FRONTEND } else { "" }.to_owned(),
            description: stores::description(record, plan, images, caches),
            last_used_at: Some(options.written_at),
            usage_count: stores::usage_count(record),
            parents: record.parent.map(id).into_iter().collect(),
            ..gc::Record::default()
        })
        .collect();
    // The daemon takes what it is told.
    let (total, free) = gc.disk_size.map(|size| (size, size)).or(room.bytes).unwrap_or_default();
    let disk = Disk { total, free: free.saturating_sub(need.bytes.estimate) };
    Ok(gc::foretell(&gc::Question {
        records: &records,
        largest: &largest,
        configuration: &gc.configuration,
        release: gc.release,
        disk,
        start: options.written_at,
        room: gc.room,
    })?)
}
