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
//! with them: whoever has it sees none that is at work. One that has the socket elsewhere, as in a container, may be at
//! work all the same. If it is taken for killed, it finds its `pending` gone, and ends; and whoever takes up what another
//! bake has leased finds that bake noted, or the leases gone, and ends. Leases of a root that is in its place are nobody's to
//! remove.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::bake::{Cancel, Error, IoContext};
use crate::containerd::{self, Client, Leased, Pending};
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
        // Links to the socket, and to its directory, are the same containerd.
        let socket = client.socket().canonicalize().at("resolve", client.socket())?;
        let directory = socket.parent().unwrap_or(Path::new("/"));
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

/// Removes what bakes have leased for records that were killed before their root was in its place, and gives these bakes.
/// They stay noted until they are [forgotten](forget): one that is at work after all may lease more.
pub(super) fn clear(_by: &Turn, client: &Client) -> Result<Vec<String>, Error> {
    let bakes: Vec<String> = client.leased()?.pending.into_iter().map(|pending| pending.bake).collect();
    bakes.iter().try_for_each(|bake| remove(client, bake))?;
    Ok(bakes)
}

/// Notes that a bake is about to lease for records.
pub(super) fn begin(_by: &Turn, client: &Client, bake: &str) -> Result<(), Error> {
    client.note_pending(&pending(bake), bake)?;
    Ok(())
}

/// That all that a bake has leased stays: its work lease, and those of `records`, which may be of another bake.
///
/// # Errors
/// It has ended, or that other bake is not done.
pub(super) fn confirm<'a>(
    _by: &Turn,
    client: &Client,
    bake: &str,
    mut records: impl Iterator<Item = &'a str>,
) -> Result<(), Error> {
    let Leased { pending, ids } = client.leased()?;
    if !ids.contains(bake) {
        return Err(containerd::Error::Missing {
            action: "keep the lease",
            what: bake.to_owned(),
            message: "a buildkitd that starts in this namespace ends it, and a clock that is set a day ahead"
                .to_owned(),
        }
        .into());
    }
    let is_of_another = |pending: &Pending| pending.bake != bake && !pending.records.is_empty();
    if pending.iter().any(is_of_another) || !records.all(|record| ids.contains(record)) {
        return Err(Error::UnseenBake);
    }
    Ok(())
}

/// What a bake has leased is its root's, which is about to be put in place.
pub(super) fn commit(_by: &Turn, client: &Client, bake: &str) -> Result<(), Error> {
    if client.delete_lease(&pending(bake), false)? { Ok(()) } else { Err(Error::UnseenBake) }
}

fn pending(bake: &str) -> String {
    format!("{bake}-pending")
}

fn dropped(bake: &str) -> String {
    format!("{bake}-dropped")
}

/// Removes what a bake has leased for records, and notes it no more. One that is cut short is gone on with by the next.
pub(super) fn give_up(client: &Client, bake: &str) -> Result<(), Error> {
    remove(client, bake)?;
    forget(client, bake)
}

/// Removes what a bake has leased for records; it stays noted.
fn remove(client: &Client, bake: &str) -> Result<(), Error> {
    // First of all, so that there is a note until all is gone.
    match client.note_pending(&dropped(bake), bake) {
        // Whoever is at work after all finds out by this.
        Ok(_) => drop(client.delete_lease(&pending(bake), false)?),
        // The note that is there has to do.
        Err(containerd::Error::Full { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let records = client.leased()?.pending.into_iter().filter(|pending| pending.bake == bake);
    for lease in records.flat_map(|pending| pending.records) {
        client.delete_lease(&lease, false)?;
    }
    Ok(())
}

/// Notes a bake no more of which nothing is left.
pub(super) fn forget(client: &Client, bake: &str) -> Result<(), Error> {
    client.delete_lease(&pending(bake), false)?;
    client.delete_lease(&dropped(bake), false)?;
    Ok(())
}
