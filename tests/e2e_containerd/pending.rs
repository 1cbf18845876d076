//! Leases of records that no root has taken: a bake was killed, or failed, between them and its root.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use warmkit::containerd::{Client, Lease};

use crate::planned::cache;
use crate::support::Scratch;
use crate::support::command::{Ended, run};
use crate::support::containerd::Containerd;
use crate::support::skip::is_root;
use crate::support::tmpfs::Tmpfs;
use crate::{on, reads};

/// A bake syncs all disks of the machine.
const LIMIT: Duration = Duration::from_secs(120);
/// What requests have in them of a kind, and no others, and which of them is meant.
type Request = (&'static [u8], usize);
/// That has the last snapshot leased: for [`cache`], two are by the work lease, and one by that of each record.
const LAST_LEASED: Request = (b"snapshots/overlayfs", 4);
/// That says that the root is about to be put in its place: it takes back the first.
const ABOUT_TO_COMMIT: Request = (b"-pending", 2);

/// A containerd, and two caches that have nothing in common.
pub(crate) struct Place {
    pub(crate) containerd: Containerd,
    pub(crate) scratch: Scratch,
    pub(crate) first: [String; 3],
    other: [String; 3],
}

impl Place {
    /// `None` when something is missing, after it said so.
    #[track_caller]
    pub(crate) fn new() -> Option<Self> {
        let containerd = Containerd::start().filter(|_| is_root())?;
        let scratch = Scratch::new();
        let [first, other] = ["first", "other"].map(|name| cache(&scratch, name));
        Some(Self { containerd, scratch, first, other })
    }

    fn client(&self) -> Client {
        self.containerd.client("buildkit")
    }

    pub(crate) fn bake(&self, cache: &[String], root: &Path) -> Ended {
        run(&mut on(&self.containerd.address(), root, &arguments(cache)), LIMIT)
    }

    /// Kills a bake of the first cache when it is about to have the last snapshot leased.
    #[track_caller]
    pub(crate) fn kill(&self, root: &Path) {
        let (tell, there) = channel();
        let socket = self.scratch.join("socket");
        stand_before(&self.containerd, &socket, LAST_LEASED, move || {
            tell.send(()).unwrap();
            loop {
                thread::park();
            }
        });
        let mut bake = on(socket.to_str().unwrap(), root, &arguments(&self.first));
        let mut bake = bake.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        there.recv_timeout(LIMIT).unwrap();
        bake.kill().unwrap();
        bake.wait().unwrap();
        fs::remove_file(socket).unwrap();
        assert!(!root.exists());
    }

    /// Ends what a killed bake holds until tomorrow.
    #[track_caller]
    pub(crate) fn expire(&self) {
        let client = self.client();
        let leases = client.leases().unwrap();
        let temporary: Vec<&Lease> = leases.iter().filter(|lease| lease.temporary).collect();
        assert_eq!(temporary.len(), 1, "{leases:?}");
        assert!(client.delete_lease(&temporary[0].id, true).unwrap());
    }
}

fn arguments(cache: &[String]) -> Vec<&str> {
    ["bake"].into_iter().chain(cache.iter().map(String::as_str)).collect()
}

/// Listens at `path` for a containerd, and does something before a request goes on.
fn stand_before(containerd: &Containerd, path: &Path, at: Request, act: impl FnOnce() + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    let to = containerd.address();
    let state = Arc::new(Mutex::new((0, Some(act))));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = UnixStream::connect(&to) else { return };
            let (mut back, mut out) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut back, &mut out));
            let state = Arc::clone(&state);
            thread::spawn(move || there(client, server, at, &state));
        }
    });
}

fn there<F: FnOnce()>(
    mut from: UnixStream,
    mut to: UnixStream,
    (of_kind, last): Request,
    state: &Mutex<(usize, Option<F>)>,
) {
    let (mut buffer, mut tail) = (vec![0; 1 << 16], Vec::new());
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        tail.extend_from_slice(&buffer[..n]);
        let found = tail.windows(of_kind.len()).filter(|bytes| *bytes == of_kind).count();
        // As much of it as may be the beginning of one more.
        tail.drain(..(tail.len() + 1).saturating_sub(of_kind.len()));
        let act = {
            let mut state = state.lock().unwrap();
            state.0 += found;
            if state.0 >= last { state.1.take() } else { None }
        };
        if let Some(act) = act {
            act();
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Leases that a root has.
fn of_roots(client: &Client) -> Vec<Lease> {
    let mut leases = client.leases().unwrap();
    leases.retain(|lease| !lease.temporary);
    leases.sort_by(|a, b| a.id.cmp(&b.id));
    leases
}

/// The next bake, whatever it is of, removes them: nothing is left when the work lease ends.
#[test]
fn another_bake_removes_what_a_killed_one_leased() {
    let Some(place) = Place::new() else { return };
    let (root, client) = (place.scratch.join("root"), place.client());
    place.kill(&root);
    assert_eq!(client.leased().unwrap().pending.len(), 1);
    assert_eq!(client.leased().unwrap().pending[0].records.len(), 2);
    // They do not end by themselves.
    place.expire();
    place.containerd.collect();
    assert_eq!(place.containerd.blobs().len(), 2);

    let other = place.scratch.join("other-root");
    place.bake(&place.other, &other).expect_success("bake");
    assert_eq!(client.leased().unwrap().pending, []);
    assert_eq!(of_roots(&client).len(), 2);
    place.containerd.collect();
    assert_eq!((place.containerd.blobs().len(), place.containerd.snapshots().len()), (2, 2));
    assert_eq!(place.containerd.ingests(), Vec::<PathBuf>::new());
    reads::assert_sound(&place.containerd, &other);
}

/// A bake of the same caches that fails leaves none either, though it had found them there.
#[test]
fn one_that_takes_up_and_fails_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    place.kill(&place.scratch.join("root"));
    let full = Tmpfs::new(place.scratch.join("full"), "size=8k");
    let failed = place.bake(&place.first, &full.0.join("root"));
    assert_eq!(failed.status.code(), Some(11), "{}", failed.stderr);
    place.expire();
    place.containerd.collect();
    place.containerd.assert_empty();
}

/// Leases of a root that is there are nobody's to remove: not when a killed bake of the same caches had found them there,
/// and not when its root is the next one's.
#[test]
fn leases_of_roots_stay() {
    let Some(place) = Place::new() else { return };
    let (root, client) = (place.scratch.join("root"), place.client());
    let [second, third] = ["second", "third"].map(|name| place.scratch.join(name));
    place.kill(&root);
    place.bake(&place.first, &root).expect_success("the next bake");
    let leased = of_roots(&client);
    assert_eq!(leased.len(), 2);

    // It has found all there.
    place.kill(&second);
    assert_eq!(client.leased().unwrap().pending[0].records, [""; 0]);
    place.bake(&place.other, &third).expect_success("bake of another cache");
    assert_eq!(client.leased().unwrap().pending, []);
    for lease in &leased {
        assert!(of_roots(&client).contains(lease), "{lease:?}");
    }
    for left in client.leases().unwrap().iter().filter(|lease| lease.temporary) {
        client.delete_lease(&left.id, true).unwrap();
    }
    place.containerd.collect();
    reads::assert_sound(&place.containerd, &root);
    reads::assert_sound(&place.containerd, &third);
}

/// A bake that goes on though another has taken it for killed, since it sees the containerd by another socket: it ends,
/// and its root is not put in place.
#[test]
fn one_that_was_taken_for_killed_ends() {
    let Some(place) = Place::new() else { return };
    let (root, other) = (place.scratch.join("root"), place.scratch.join("other-root"));
    let socket = place.scratch.join("socket");
    let (tell, ended) = channel();
    let (address, cache, at) = (place.containerd.address(), place.other.clone(), other.clone());
    stand_before(&place.containerd, &socket, ABOUT_TO_COMMIT, move || {
        tell.send(run(&mut on(&address, &at, &arguments(&cache)), LIMIT)).unwrap();
    });
    let late = run(&mut on(socket.to_str().unwrap(), &root, &arguments(&place.first)), 2 * LIMIT);
    ended.recv_timeout(LIMIT).unwrap().expect_success("the bake meanwhile");
    assert_eq!(late.status.code(), Some(1), "{}", late.stderr);
    assert!(late.stderr.contains("did not see this one"), "{}", late.stderr);
    assert!(!root.exists());

    place.containerd.collect();
    assert_eq!(place.client().leases().unwrap().len(), 2);
    assert_eq!((place.containerd.blobs().len(), place.containerd.snapshots().len()), (2, 2));
    reads::assert_sound(&place.containerd, &other);
}

/// One that takes up what another bake is leasing, which sees the containerd by another socket: what that bake fails to
/// commit goes, so this one ends.
#[test]
fn one_that_takes_up_from_a_bake_at_work_ends() {
    let Some(place) = Place::new() else { return };
    let (root, socket, client) = (place.scratch.join("root"), place.scratch.join("socket"), place.client());
    // Which leases a bake of these caches makes.
    place.bake(&place.first, &place.scratch.join("before")).expect_success("bake");
    let records: Vec<String> = of_roots(&client).into_iter().map(|lease| lease.id).collect();
    for record in &records {
        assert!(client.delete_lease(record, true).unwrap());
    }
    client.note_pending("theirs-pending", "theirs").unwrap();
    let (theirs, record) = (place.client(), records[1].clone());
    // That takes back `theirs-pending` twice, as it clears twice, and then notes its own.
    stand_before(&place.containerd, &socket, (b"-pending", 3), move || {
        assert!(theirs.lease_record(&record, "theirs", Timestamp::now()).unwrap());
    });
    let ended = run(&mut on(socket.to_str().unwrap(), &root, &arguments(&place.first)), LIMIT);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("did not see this one"), "{}", ended.stderr);
    assert!(!root.exists());
    assert_eq!(client.leases().unwrap(), []);
    place.containerd.collect();
    place.containerd.assert_empty();
}

/// Where they see the same socket they wait for each other, also where a link leads to it.
#[test]
fn bakes_take_turns() {
    let Some(place) = Place::new() else { return };
    let socket = PathBuf::from(place.containerd.address());
    let directory = socket.parent().unwrap();
    let [linked, around] = ["linked", "around"].map(|name| place.scratch.join(name));
    symlink(&socket, &linked).unwrap();
    symlink(directory, &around).unwrap();
    for (name, address) in [
        ("there", &socket),
        ("by-link", &linked),
        ("by-directory", &around.join(socket.file_name().unwrap())),
    ] {
        let root = place.scratch.join(name);
        let theirs = File::open(directory).unwrap();
        flock(&theirs, FlockOperation::LockExclusive).unwrap();
        let leased = of_roots(&place.client());
        let mut bake = on(address.to_str().unwrap(), &root, &arguments(&place.first));
        let mut bake = bake.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, said) = channel();
        let stderr = BufReader::new(bake.stderr.take().unwrap());
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        while !said.recv_timeout(LIMIT).unwrap().contains("waiting for another bake into the containerd at") {
        }
        assert_eq!(of_roots(&place.client()), leased, "{name}");
        drop(theirs);
        assert!(bake.wait().unwrap().success(), "{name}: {:?}", said.iter().collect::<Vec<String>>());
        reads::assert_sound(&place.containerd, &root);
    }
}
