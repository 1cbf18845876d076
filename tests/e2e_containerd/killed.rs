//! A bake that is killed when containerd has all, and the root is not in its place yet.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::support::cases::assert_warm;
use crate::support::containerd::Containerd;
use crate::support::{Daemon, Tools, World, tools};
use crate::{bake, left, on, reads};

const LIMIT: Duration = Duration::from_secs(60);
/// What a request has in it that has a lease keep a snapshot, and no other.
const LEASED: &[u8] = b"snapshots/overlayfs";

/// Stands before a containerd, and counts requests that have snapshots kept. What containerd says after the last of them
/// nobody hears.
struct Gate {
    path: PathBuf,
    requests: Arc<AtomicUsize>,
    closed: Receiver<()>,
}

impl Gate {
    fn before(containerd: &Containerd, path: &Path, last: usize) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (to, requests) = (containerd.address(), Arc::new(AtomicUsize::new(0)));
        let (tell, closed) = channel();
        let counted = Arc::clone(&requests);
        thread::spawn(move || {
            let is_closed = Arc::new(AtomicBool::new(false));
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&to) else { return };
                let (from, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (counted, closing, tell) = (Arc::clone(&counted), Arc::clone(&is_closed), tell.clone());
                thread::spawn(move || there(from, server, &counted, last, &closing, &tell));
                let is_closed = Arc::clone(&is_closed);
                thread::spawn(move || and_back(back, client, &is_closed));
            }
        });
        Self { path: path.to_owned(), requests, closed }
    }
}

fn there(
    mut from: UnixStream,
    mut to: UnixStream,
    counted: &AtomicUsize,
    last: usize,
    closing: &AtomicBool,
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
            closing.store(true, Ordering::Release);
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

fn and_back(mut from: UnixStream, mut to: UnixStream, is_closed: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if !is_closed.load(Ordering::Acquire) && to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

#[test]
fn a_killed_bake_is_taken_up_by_the_next() {
    let Some(tools) = Tools::find(tools::NEWEST) else { return };
    let (Some(beside), Some(mut containerd)) = (Containerd::start(), Containerd::start()) else { return };
    let world = World::start(tools);
    let case = world.case("app");
    let origin = world.export(&case);

    // How often snapshots are leased in a bake of this cache.
    let gate = Gate::before(&beside, &world.scratch.join("counting"), usize::MAX);
    bake(&origin, gate.path.to_str().unwrap(), &world.root(&case, "counted")).expect_success("bake");
    let last = gate.requests.load(Ordering::Acquire);
    assert!(last > 0);
    drop(beside);

    let root = world.root(&case, "root");
    let gate = Gate::before(&containerd, &world.scratch.join("gate"), last);
    let arguments = ["bake", &origin.cache, "--keys-from", &origin.image];
    let mut killed = on(gate.path.to_str().unwrap(), &root, &arguments);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    gate.closed.recv_timeout(LIMIT).unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!root.exists());
    let leases = containerd.client("buildkit").leases().unwrap();
    assert_eq!(leases.iter().filter(|lease| lease.temporary).count(), 1, "{leases:?}");
    assert!(leases.len() > 1, "{leases:?}");
    containerd.collect();
    let kept = (containerd.blobs(), containerd.snapshots());

    let next = bake(&origin, &containerd.address(), &root).expect_success("the next bake");
    assert!(next.stderr.contains("a bake of this root that was killed left"), "{}", next.stderr);
    assert_eq!((containerd.blobs(), containerd.snapshots()), kept, "nothing is made again");
    reads::assert_sound(&containerd, &root);
    // Before and after that of the killed one goes.
    let Some(_) = containerd.ctr("buildkit", &["content", "prune", "references"]) else { return };
    containerd.restart();
    containerd.collect();
    assert_eq!(left(&kept, &containerd), kept);
    let daemon = Daemon::start_on_containerd(&world.tools, &root, &world.registry, &containerd.worker());
    containerd.collect();
    assert_warm(&daemon.build(&case.request), &origin);
    assert_eq!(left(&kept, &containerd), kept);
    daemon.prune_all();
    daemon.stop();
    containerd.collect();
    assert_eq!(containerd.client("buildkit").leases().unwrap(), []);
    assert_eq!(left(&kept, &containerd).0, [""; 0]);
    assert_eq!(containerd.snapshots(), [""; 0]);
}
