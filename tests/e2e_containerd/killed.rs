//! A bake that is killed, or fails, when containerd has all, and the root is not in its place yet.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::cases::assert_warm;
use crate::support::containerd::Containerd;
use crate::{Bed, bake, left, on, reads};

const LIMIT: Duration = Duration::from_secs(60);
/// What a request has in it that has a lease keep a snapshot, and no other.
const LEASED: &[u8] = b"snapshots/overlayfs";

/// Stands before a containerd, and counts requests that have snapshots kept. What containerd says after the last of them
/// nobody hears, until it is opened.
struct Gate {
    path: PathBuf,
    requests: Arc<AtomicUsize>,
    closed: Receiver<()>,
    shut: Arc<Shut>,
}

/// Whether nothing is passed on.
#[derive(Default)]
struct Shut {
    now: Mutex<bool>,
    opened: Condvar,
}

impl Shut {
    fn close(&self) {
        *self.now.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.now.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn wait(&self) {
        drop(self.opened.wait_while(self.now.lock().unwrap(), |shut| *shut).unwrap());
    }
}

impl Gate {
    fn before(containerd: &Containerd, path: &Path, last: usize) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (to, requests) = (containerd.address(), Arc::new(AtomicUsize::new(0)));
        let shut = Arc::new(Shut::default());
        let (tell, closed) = channel();
        let (counted, closing) = (Arc::clone(&requests), Arc::clone(&shut));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&to) else { return };
                let (from, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (counted, shut, tell) = (Arc::clone(&counted), Arc::clone(&closing), tell.clone());
                let waiting = Arc::clone(&closing);
                thread::spawn(move || there(from, server, &counted, last, &shut, &tell));
                thread::spawn(move || and_back(back, client, &waiting));
            }
        });
        Self { path: path.to_owned(), requests, closed, shut }
    }
}

fn there(
    mut from: UnixStream,
    mut to: UnixStream,
    counted: &AtomicUsize,
    last: usize,
    shut: &Shut,
    tell: &Sender<()>,
) {
    let mut buffer = vec![0; 1 << 16];
    let mut tail = Vec::new();
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        tail.extend_from_slice(&buffer[..n]);
        let found = tail.windows(LEASED.len()).filter(|bytes| *bytes == LEASED).count();
        // As much of it as may be the beginning of one more.
        tail.drain(..(tail.len() + 1).saturating_sub(LEASED.len()));
        let is_last = found > 0 && counted.fetch_add(found, Ordering::AcqRel) + found >= last;
        if is_last {
            shut.close();
        }
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
        if is_last {
            let _ = tell.send(());
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn and_back(mut from: UnixStream, mut to: UnixStream, shut: &Shut) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        shut.wait();
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// Somebody else makes the target when containerd has all that a bake gives it: it has nothing of that any more when the
/// bake has failed.
fn fails_past_the_leases(bed: &Bed, last: usize) {
    let taken = bed.root("taken");
    let gate = Gate::before(&bed.containerd, &bed.world.scratch.join("held"), last);
    let arguments = ["bake", &bed.origin.cache, "--keys-from", &bed.origin.image];
    let mut bake = on(gate.path.to_str().unwrap(), &taken, &arguments);
    let bake = bake.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    gate.closed.recv_timeout(LIMIT).unwrap();
    let leases = bed.containerd.client("buildkit").leases().unwrap();
    assert!(leases.iter().any(|lease| !lease.temporary && !lease.is_note), "{leases:?}");
    fs::create_dir(&taken).unwrap();
    gate.shut.open();
    let failed = bake.wait_with_output().unwrap();
    assert_eq!(failed.status.code(), Some(7), "{}", String::from_utf8_lossy(&failed.stderr));
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 0);
    assert_eq!(bed.containerd.client("buildkit").leases().unwrap(), []);
    bed.containerd.collect();
    assert_eq!(bed.kept(), (Vec::new(), Vec::new()));
}

#[test]
fn a_killed_bake_is_taken_up_by_the_next() {
    let (Some(beside), Some(mut bed)) = (Containerd::start(), Bed::new()) else { return };
    // How often snapshots are leased in a bake of this cache.
    let gate = Gate::before(&beside, &bed.world.scratch.join("a b?c#d%20e"), usize::MAX);
    bake(&bed.origin, gate.path.to_str().unwrap(), &bed.root("counted")).expect_success("bake");
    let last = gate.requests.load(Ordering::Acquire);
    assert!(last > 0);
    drop(beside);
    fails_past_the_leases(&bed, last);

    let root = bed.root("root");
    let gate = Gate::before(&bed.containerd, &bed.world.scratch.join("gate"), last);
    let arguments = ["bake", &bed.origin.cache, "--keys-from", &bed.origin.image];
    let mut killed = on(gate.path.to_str().unwrap(), &root, &arguments);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    gate.closed.recv_timeout(LIMIT).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!root.exists());
    let leases = bed.containerd.client("buildkit").leases().unwrap();
    assert_eq!(leases.iter().filter(|lease| lease.temporary).count(), 1, "{leases:?}");
    assert!(leases.iter().any(|lease| !lease.temporary && !lease.is_note), "{leases:?}");
    bed.containerd.collect();
    let kept = bed.kept();

    let next = bed.bake(&root).expect_success("the next bake");
    assert!(next.stderr.contains("a bake of this root that was killed left"), "{}", next.stderr);
    assert_eq!(bed.kept(), kept, "nothing is made again");
    reads::assert_sound(&bed.containerd, &root);
    // Before and after that of the killed one goes.
    let Some(_) = bed.containerd.ctr("buildkit", &["content", "prune", "references"]) else { return };
    bed.containerd.restart();
    bed.containerd.collect();
    assert_eq!(left(&kept, &bed.containerd), kept);
    let daemon = bed.start(&root);
    bed.containerd.collect();
    assert_warm(&daemon.build(&bed.case.request), &bed.origin);
    assert_eq!(left(&kept, &bed.containerd), kept);
    daemon.prune_all();
    daemon.stop();
    bed.containerd.collect();
    assert_eq!(bed.containerd.client("buildkit").leases().unwrap(), []);
    assert_eq!(left(&kept, &bed.containerd).0, [""; 0]);
    assert_eq!(bed.containerd.snapshots(), [""; 0]);
}
