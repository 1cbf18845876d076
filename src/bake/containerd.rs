//! Keeps layers in a running containerd, as the containerd worker of a `buildkitd` does.
//!
//! ```text
//! work lease        expires by itself; in every request, so that it holds all that they make
//!   blobs           looked up, else ingested; one of another namespace is shared
//!   snapshots       looked up, else prepared on the parent, applied to, diff ID compared, committed
//!   labels          of blobs whose diff ID is proven
//! record leases     one per record, flat: blob, documents, snapshot; noted as pending, until the root is whole
//! databases         written and put in place, by others
//! work lease        deleted; before that, a bake that fails deletes what leases it made
//! ```
//!
//! What a bake leaves that is killed is held by a lease that ends in a day, or when a `buildkitd` starts: containerd
//! collects it. Until then the next bake of the same caches takes it up, since nothing here has a name that depends on the
//! bake but the lease and snapshots that are not committed. Leases of records that no root took any next bake removes.

mod pending;

use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::{SignedDuration, Timestamp};

use crate::containerd::{self, Client, Ingest, Resource};
use crate::digest::{DiffId, Digest};
use crate::gather::{self, Image, ImageDocument};
use crate::layer::{self, Usage};
use crate::progress::{Event, Progress};
use crate::source::Source;
use crate::store::{self, Contents};

use super::layers::{Cancellable, compression};
use super::plan::Plan;
use super::schedule::{self, Job, Keeper, from_first, lock};
use super::{Cancel, Containerd, Error, Options, stores};

/// How long what a killed bake left is held.
const HELD_FOR: SignedDuration = SignedDuration::from_hours(24);

use pending::Turn;

type Labels = BTreeMap<String, String>;

/// Connects to it, and looks whether it has the snapshotter.
pub(super) fn connect(containerd: &Containerd, options: &Options, cancel: &Cancel) -> Result<Client, Error> {
    let stop = cancel.stop.clone();
    let client =
        Client::connect(&containerd.address, &containerd.namespace, Box::new(move || stop.is_stopped()))?;
    client.has_snapshot(options.snapshotter.name(), "warmkit")?;
    Ok(client)
}

/// What a containerd holds for a root. Dropped, the leases that were made go, and it collects what they held.
pub(super) struct Held {
    client: Client,
    work: String,
    /// From the first record lease on.
    turn: Option<Turn>,
    /// Bakes that were killed, and are noted until nothing is leased any more.
    cleared: Vec<String>,
    is_settled: bool,
}

impl Held {
    /// The root is whole, and the next thing is to put it in its place: what is leased for its records stays if this is
    /// killed.
    ///
    /// # Errors
    /// containerd refuses, or another bake has taken this one for killed.
    pub(super) fn commit(&self) -> Result<(), Error> {
        self.turn.as_ref().map_or(Ok(()), |turn| pending::commit(turn, &self.client, &self.work))
    }

    /// The root is in its place: records have their own leases. Says what could not be done.
    pub(super) fn settle(mut self) -> Option<Error> {
        self.is_settled = true;
        self.client.delete_lease(&self.work, false).err().map(Error::from)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // What cannot be removed is for the next bake to remove; and a containerd that does not answer is not asked again.
        if let Err(Error::Containerd(error)) = self.give_up()
            && error.is_silence()
        {
            return;
        }
        // And this one ends by itself.
        let _ = self.client.delete_lease(&self.work, true);
    }
}

impl Held {
    fn give_up(&mut self) -> Result<(), Error> {
        if self.turn.is_some() {
            pending::give_up(&self.client, &self.work)?;
        }
        if self.cleared.is_empty() {
            return Ok(());
        }
        let turn = match self.turn.take() {
            None => Turn::take(&self.client)?,
            turn => turn,
        };
        // Where another bake has it, that one clears them, too.
        if turn.is_some() {
            self.cleared.iter().try_for_each(|bake| pending::give_up(&self.client, bake))?;
        }
        Ok(())
    }
}

/// Has a containerd keep everything of `plan`; gives what each snapshot takes. Of `sources`, the last are those of
/// `images`.
pub(super) fn keep(
    mut client: Client,
    plan: &Plan,
    sources: &[Box<dyn Source>],
    images: &[Image],
    options: &Options,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Vec<Usage>, Held), Error> {
    let snapshotter = options.snapshotter.name();
    let nothing = vec![Usage::default(); plan.snapshots.len()];
    let contents = stores::contents(plan, sources, images, &nothing, options.written_at);
    let work = format!("warmkit-{}-{}", std::process::id(), Timestamp::now().as_nanosecond());
    client.work_under(&work, Timestamp::now() + HELD_FOR)?;
    let mut held = Held { client, work, turn: None, cleared: Vec::new(), is_settled: false };
    let layers = Kept {
        client: &held.client,
        lease: &held.work,
        snapshotter,
        plan,
        sources,
        contents: &contents,
        labels: store::labels(&contents),
        has: plan.blobs.iter().map(|_| Mutex::default()).collect(),
        prepared: AtomicUsize::new(0),
        cancel,
        progress,
    };
    layers.hold()?;
    if let Some(turn) = Turn::take(&held.client)? {
        // Of those, this bake holds what it needs.
        let cleared = pending::clear(&turn, &held.client)?;
        held.cleared = cleared;
    }
    for document in images.iter().flat_map(|image| &image.documents) {
        layers.put(document)?;
    }
    schedule::run(plan, &layers, cancel, progress)?;
    let usage = contents
        .snapshots
        .iter()
        .map(|snapshot| {
            let usage = held.client.usage(snapshotter, snapshot.key.as_str())?;
            Ok(Usage { size: usage.size, inodes: usage.inodes })
        })
        .collect::<Result<Vec<Usage>, Error>>()?;
    let turn = Turn::wait(&held.client, cancel, progress)?;
    held.cleared = pending::clear(&turn, &held.client)?;
    let turn = held.turn.insert(turn);
    pending::begin(turn, &held.client, &held.work)?;
    lease(&held.client, &held.work, &contents, snapshotter, cancel)?;
    let records = contents.records.iter().map(|record| record.id.as_str());
    pending::confirm(turn, &held.client, &held.work, records)?;
    for bake in held.cleared.drain(..) {
        pending::forget(&held.client, &bake)?;
    }
    Ok((usage, held))
}

/// Gives each record a lease of its own.
fn lease(
    client: &Client,
    bake: &str,
    contents: &Contents,
    snapshotter: &str,
    cancel: &Cancel,
) -> Result<(), Error> {
    for record in &contents.records {
        cancel.check()?;
        let id = record.id.as_str();
        client.lease_record(id, bake, contents.written_at)?;
        let blob = contents.blobs[record.blob].descriptor.digest;
        let documents = record.documents.iter().map(|&document| contents.documents[document].digest);
        for digest in std::iter::once(blob).chain(documents) {
            client.add_to_lease(id, Resource::Content(&digest.to_string()))?;
        }
        let key = contents.snapshots[record.snapshot].key.as_str();
        client.add_to_lease(id, Resource::Snapshot { snapshotter, key })?;
    }
    Ok(())
}

/// Layers on their way into a containerd.
struct Kept<'a> {
    client: &'a Client,
    lease: &'a str,
    snapshotter: &'a str,
    plan: &'a Plan,
    sources: &'a [Box<dyn Source>],
    contents: &'a Contents,
    /// What blobs are to have, as from a daemon.
    labels: BTreeMap<Digest, Labels>,
    /// What each blob has of that; all of it once its diff ID is proven.
    has: Vec<Mutex<Labels>>,
    prepared: AtomicUsize,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
}

impl Kept<'_> {
    /// Has the work lease hold what may be there already.
    fn hold(&self) -> Result<(), Error> {
        let Self { client, lease, snapshotter, contents, .. } = *self;
        let blobs = contents.blobs.iter().map(|blob| blob.descriptor.digest);
        for digest in blobs.chain(contents.documents.iter().map(|document| document.digest)) {
            self.cancel.check()?;
            client.add_to_lease(lease, Resource::Content(&digest.to_string()))?;
        }
        for snapshot in &contents.snapshots {
            self.cancel.check()?;
            client.add_to_lease(lease, Resource::Snapshot { snapshotter, key: snapshot.key.as_str() })?;
        }
        Ok(())
    }

    /// Takes a document in.
    fn put(&self, document: &ImageDocument) -> Result<(), Error> {
        let ImageDocument { digest, bytes } = document;
        let mut has = self.take(digest, bytes.len() as u64, |ingest| {
            // What failed is told by the ingest.
            let _ = ingest.write_all(bytes);
            Ok(())
        })?;
        self.label(digest, &mut has)
    }

    /// Takes a blob in that `write` writes, unless it is there; gives the labels that it has.
    fn take(
        &self,
        digest: &Digest,
        size: u64,
        write: impl FnOnce(&mut Ingest<'_>) -> Result<(), Error>,
    ) -> Result<Labels, Error> {
        let name = digest.to_string();
        let mut found = self.client.labels(&name)?;
        if found.is_none() {
            if let Some(mut ingest) = self.client.write(&name, size)? {
                if !ingest.is_whole() {
                    let written = write(&mut ingest);
                    if let Some(error) = ingest.failure() {
                        return Err(error.into());
                    }
                    written?;
                }
                ingest.finish()?;
                return Ok(Labels::new());
            }
            found = self.client.labels(&name)?;
        }
        Ok(found.unwrap_or_default())
    }

    /// Gives a blob the labels that it lacks. One whose diff ID is not proven gets none: it would pass for proven.
    fn label(&self, digest: &Digest, has: &mut Labels) -> Result<(), Error> {
        let lacks: Labels = (self.labels.get(digest).into_iter().flatten())
            .filter(|&(name, value)| !has.get(name).is_some_and(|has| store::is_same_label(name, has, value)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !lacks.is_empty() {
            self.client.label(&digest.to_string(), &lacks)?;
            has.extend(lacks);
        }
        Ok(())
    }

    /// Whether somebody has proven the diff ID of a blob before, and said so by its label.
    fn is_proven(&self, blob: usize) -> bool {
        let layer = &self.plan.blobs[blob].layer;
        let diff_id = layer.diff_id.to_string();
        let has = lock(&self.has[blob]);
        let labels = self.labels.get(&layer.descriptor.digest).into_iter().flatten();
        labels.filter(|&(_, value)| *value == diff_id).any(|(name, value)| has.get(name) == Some(value))
    }
}

impl Keeper for Kept<'_> {
    type Place = ();

    fn stacks(&self) -> bool {
        true
    }

    fn fetch(&self, at: usize) -> Result<(), Error> {
        let blob = &self.plan.blobs[at];
        let descriptor = &blob.layer.descriptor;
        let has = self.take(&descriptor.digest, descriptor.size, |ingest| {
            let mut is_first = true;
            from_first(blob, self.sources, self.progress, |source| {
                if !std::mem::take(&mut is_first) {
                    ingest.again();
                }
                let mut out = Cancellable { inner: &mut *ingest, cancel: self.cancel };
                let copied = source.blob(descriptor, &mut out, self.progress);
                match ingest.failure() {
                    Some(error) => Err(error.into()),
                    None => copied.map_err(|error| {
                        gather::Error::Source { what: source.name(), source: Box::new(error) }.into()
                    }),
                }
            })
        })?;
        *lock(&self.has[at]) = has;
        self.progress.event(Event::BlobDone { digest: descriptor.digest });
        Ok(())
    }

    fn place(&self, _worker: usize) -> Result<(), Error> {
        Ok(())
    }

    fn unpack(&self, job: Job, (): &()) -> Result<(), Error> {
        let Self { client, snapshotter, .. } = *self;
        let at = job.blob(self.plan);
        let expected = &self.plan.blobs[at].layer;
        let digest = expected.descriptor.digest;
        let key = |snapshot: usize| self.contents.snapshots[snapshot].key.as_str();
        let missing = match job {
            Job::Unpack(snapshot) if !client.has_snapshot(snapshotter, key(snapshot))? => Some(snapshot),
            _ => None,
        };
        let found = if let Some(snapshot) = missing {
            let number = self.prepared.fetch_add(1, Ordering::Relaxed);
            let temporary = format!("{}-{number}", self.lease);
            let parent = self.plan.snapshots[snapshot].parent.map(key);
            let mounts = client.prepare(snapshotter, &temporary, parent)?;
            let descriptor = &expected.descriptor;
            let applied =
                client.apply(&digest.to_string(), descriptor.size, &descriptor.media_type, mounts)?;
            let applied: DiffId = applied.parse().map_err(|_| containerd::Error::Unexpected {
                what: format!("layer {digest}"),
                expected: expected.diff_id.to_string(),
                found: applied,
            })?;
            if applied == expected.diff_id {
                client.commit(snapshotter, key(snapshot), &temporary)?;
            }
            applied
        } else if self.is_proven(at) {
            expected.diff_id
        } else {
            let blob = Cancellable { inner: client.read(&digest.to_string())?, cancel: self.cancel };
            let read = layer::entries(BufReader::new(blob), compression(expected), |_, _| Ok(()));
            read.map_err(|source: layer::Error| Error::Layer { digest, source })?.diff_id
        };
        if found != expected.diff_id {
            return Err(Error::DiffIdMismatch { digest, expected: expected.diff_id, found });
        }
        self.label(&digest, &mut lock(&self.has[at]))?;
        self.progress.event(Event::LayerDone { digest });
        Ok(())
    }
}
