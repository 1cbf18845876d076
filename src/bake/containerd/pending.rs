//! Leases of records that no root has taken yet.
//!
//! ```text
//! <bake>-pending   made before the first record lease, keeps nothing, does not end by itself
//! record leases    labelled with the bake
//! databases        written and synced, by others
//! <bake>-pending   deleted; from here on the record leases are those of a root
//! root             put in place, by others
//! ```
//!
//! So a bake that was killed, or whose containerd did not answer when it gave up, left leases that no root needs exactly where its
//! `pending` is there, and the next bake in the namespace removes them. Bakes take turns at this, by a lock that ends
//! with them: whoever has it sees none that is at work. One that sees another socket, as from a container, may be taken
//! for killed: it finds its `pending` gone, and ends. Leases of a root that is in its place are nobody's to remove.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::bake::{Cancel, Error, IoContext};
use crate::containerd::{Client, Pending};
use crate::fsutil;
use crate::progress::{Event, Progress};

/// How often it is looked whether another bake is done.
const GLANCE: Duration = Duration::from_millis(50);

/// The right to lease for records, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "held for its lock")] File);

impl Turn {
    /// `None` where another bake has it.
    pub(super) fn take(client: &Client) -> Result<Option<Self>, Error> {
        let directory = client.socket().parent().unwrap_or(Path::new("/"));
        Ok(fsutil::try_lock(directory).at("lock", directory)?.map(Self))
    }

    /// Waits for it.
    pub(super) fn wait(client: &Client, cancel: &Cancel, progress: &dyn Progress) -> Result<Self, Error> {
        let mut is_told = false;
        loop {
            if let Some(turn) = Self::take(client)? {
                return Ok(turn);
            }
            cancel.check()?;
            if !std::mem::replace(&mut is_told, true) {
                let socket = client.socket().display();
                progress.event(Event::Warning(format!(
                    "waiting for another bake into the containerd at {socket}, which is about to put its root in place"
                )));
            }
            thread::sleep(GLANCE);
        }
    }
}

/// Removes what bakes have leased for records that were killed before their root was in its place.
pub(super) fn clear(_by: &Turn, client: &Client) -> Result<(), Error> {
    client.pending()?.iter().try_for_each(|Pending { bake, .. }| give_up(client, bake))
}

/// Notes that a bake is about to lease for records.
pub(super) fn begin(_by: &Turn, client: &Client, bake: &str) -> Result<(), Error> {
    client.note_pending(&pending(bake), bake)?;
    Ok(())
}

/// What a bake has leased is its root's, which is about to be put in place.
pub(super) fn commit(_by: &Turn, client: &Client, bake: &str) -> Result<(), Error> {
    if client.delete_lease(&pending(bake), false)? { Ok(()) } else { Err(Error::TakenForKilled) }
}

fn pending(bake: &str) -> String {
    format!("{bake}-pending")
}

/// Removes what a bake has leased for records, and the note. One that is cut short is gone on with by the next.
pub(super) fn give_up(client: &Client, bake: &str) -> Result<(), Error> {
    let dropped = format!("{bake}-dropped");
    // First of all, so that there is a note until all is gone.
    client.note_pending(&dropped, bake)?;
    // And whoever is at work after all finds out.
    client.delete_lease(&pending(bake), false)?;
    let records = client.pending()?.into_iter().filter(|pending| pending.bake == bake);
    for lease in records.flat_map(|pending| pending.records) {
        client.delete_lease(&lease, false)?;
    }
    client.delete_lease(&dropped, false)?;
    Ok(())
}
