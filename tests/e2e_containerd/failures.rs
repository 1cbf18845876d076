//! Bakes that end in the middle of a layer: nothing of them stays, or what stays is of use.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use warmkit::containerd::Kind::Committed;
use warmkit::digest::Digest;

use crate::support::Scratch;
use crate::support::command::run;
use crate::support::containerd::Containerd;
use crate::support::handmade::{Handmade, write_keys};
use crate::support::skip::is_root;
use crate::support::tar::{Entry, Kind, Tar};
use crate::{on, reads};

/// A bake syncs all disks of the machine.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

/// How a registry answers who asks for a blob.
enum Answer {
    Whole,
    /// So many bytes, and nothing more for as long as somebody waits.
    Part(usize),
    Missing,
}

/// Serves a cache as `app:cache` for as long as the test runs; gives its reference.
fn serve(cache: &Handmade, answer: impl Fn(&Digest) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/app:cache", listener.local_addr().unwrap());
    let served = Arc::new((cache.documents(), answer));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let served = Arc::clone(&served);
            // That somebody hangs up is what most of these tests are about.
            thread::spawn(move || drop(answers(stream, &served.0, &served.1)));
        }
    });
    reference
}

fn answers(
    mut stream: TcpStream,
    (manifest, blobs): &(Vec<u8>, Vec<(Digest, Vec<u8>)>),
    answer: &impl Fn(&Digest) -> Answer,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let path = request.split(' ').nth(1).unwrap_or_default();
        let blob = blobs.iter().find(|(digest, _)| path.ends_with(&digest.to_string()));
        let (body, sent) = match blob.map(|(digest, bytes)| (bytes, answer(digest))) {
            Some((bytes, Answer::Whole)) => (bytes, bytes.len()),
            Some((bytes, Answer::Part(sent))) => (bytes, sent),
            None if path.ends_with("/manifests/cache") => (manifest, manifest.len()),
            // No sidecar is beside it.
            _ => {
                stream.write_all(b"HTTP/1.1 404 -\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            }
        };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body[..sent])?;
        while sent < body.len() {
            thread::park();
        }
    }
    Ok(())
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A cache of one layer of 3 MiB, its keys, and the blob's digest.
fn large(scratch: &Scratch) -> (Handmade, String, Digest) {
    let noise: Vec<u8> =
        (0..3_u32 << 20).map(|n| n.wrapping_mul(0x9e37_79b9).rotate_left(n % 13).to_le_bytes()[3]).collect();
    let mut cache = Handmade::default();
    let layer = cache.plain(&Tar::new().add(Entry::new("noise", Kind::File(&noise))).finish(), None);
    cache.record("noise", &[], &[layer]);
    let keys = write_keys(&scratch.join("keys.db"), ["noise"]);
    let digest = cache.documents().1[0].0;
    (cache, keys, digest)
}

/// Starts a bake of [`large`], and waits until containerd has two of its three MiB.
#[track_caller]
fn in_the_middle(containerd: &Containerd, scratch: &Scratch, root: &Path) -> Child {
    let (cache, keys, layer) = large(scratch);
    let source =
        serve(&cache, move |digest| if *digest == layer { Answer::Part(5 * MIB / 2) } else { Answer::Whole });
    let mut bake = on(&containerd.address(), root, &["bake", &source, "--keys-from", &keys]);
    let bake = bake.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("two MiB are ingested", || ingested(containerd) >= 2 * MIB as u64);
    bake
}

/// Bytes of what is half there.
fn ingested(containerd: &Containerd) -> u64 {
    let length = |ingest: PathBuf| fs::metadata(ingest.join("data")).map_or(0, |data| data.len());
    containerd.ingests().into_iter().map(length).sum()
}

#[test]
fn interrupted_in_a_layer_it_leaves_nothing() {
    let Some(containerd) = Containerd::start().filter(|_| is_root()) else { return };
    let scratch = Scratch::new();
    let root = scratch.join("root");
    for signal in [Signal::INT, Signal::TERM] {
        let bake = in_the_middle(&containerd, &scratch, &root);
        kill_process(Pid::from_child(&bake), signal).unwrap();
        let ended = bake.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.ends_with("error: interrupted, nothing was changed\n"), "{said}");
        assert!(!root.exists());
        containerd.collect();
        containerd.assert_empty();
    }
}

/// What a killed bake had sent of a layer is not sent again.
#[test]
fn killed_in_a_layer_it_is_gone_on_with() {
    let Some(containerd) = Containerd::start().filter(|_| is_root()) else { return };
    let scratch = Scratch::new();
    let root = scratch.join("root");
    let mut bake = in_the_middle(&containerd, &scratch, &root);
    bake.kill().unwrap();
    bake.wait().unwrap();
    containerd.collect();
    assert_eq!((containerd.blobs(), containerd.ingests().len()), (Vec::new(), 1));
    assert_eq!(ingested(&containerd), 2 * MIB as u64);

    let (cache, keys, layer) = large(&scratch);
    let source = cache.write(&scratch.join("cache"));
    let socket = scratch.join("socket");
    let sent = counting(&containerd, &socket);
    let mut next = on(socket.to_str().unwrap(), &root, &["bake", &source, "--keys-from", &keys]);
    run(&mut next, LIMIT).expect_success("the next bake");
    let sent = sent.load(Ordering::Acquire);
    assert!((MIB as u64..3 * MIB as u64 / 2).contains(&sent), "{sent} bytes went to containerd");
    assert_eq!((containerd.blobs(), containerd.ingests()), (vec![layer.hex()], Vec::new()));
    reads::assert_sound(&containerd, &root);
}

/// Listens at `path` for a containerd; gives how many bytes it was sent.
fn counting(containerd: &Containerd, path: &Path) -> Arc<AtomicU64> {
    let (listener, to) = (UnixListener::bind(path).unwrap(), containerd.address());
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let Ok(mut server) = UnixStream::connect(&to) else { return };
            let (mut back, mut out) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut back, &mut out));
            let counted = Arc::clone(&counted);
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(n @ 1..) = client.read(&mut buffer) {
                    counted.fetch_add(n as u64, Ordering::AcqRel);
                    if server.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    sent
}

/// The upper layer is missed when containerd has the lower one and has unpacked it: both go.
#[test]
fn what_came_before_a_lost_blob_goes() {
    let Some(containerd) = Containerd::start().filter(|_| is_root()) else { return };
    let scratch = Scratch::new();
    let mut cache = Handmade::default();
    let below = cache.layer("below", None);
    let record = cache.record("below", &[], &[below]);
    let above = cache.layer("above", Some(below));
    cache.record("above", &[&[record]], &[above]);
    let keys = write_keys(&scratch.join("keys.db"), ["below", "above"]);
    let lost = cache.documents().1[1].0;
    let client = containerd.client("buildkit");
    let source = serve(&cache, move |digest| {
        if *digest != lost {
            return Answer::Whole;
        }
        until("the lower layer is unpacked", || {
            let snapshots = client.snapshots("overlayfs").unwrap();
            snapshots.iter().filter(|snapshot| snapshot.kind == Committed).count() == 1
        });
        assert_eq!(client.blobs().unwrap().len(), 1);
        Answer::Missing
    });
    let root = scratch.join("root");
    let failed = run(&mut on(&containerd.address(), &root, &["bake", &source, "--keys-from", &keys]), LIMIT);
    assert_eq!(failed.status.code(), Some(3), "{}", failed.stderr);
    assert!(failed.stderr.contains(&lost.to_string()), "{}", failed.stderr);
    assert!(!root.exists());
    containerd.collect();
    containerd.assert_empty();
}

/// A layer that unpacks to something else than its cache says: containerd has unpacked it by then.
#[test]
fn a_layer_with_another_diff_id_goes() {
    let Some(containerd) = Containerd::start().filter(|_| is_root()) else { return };
    let scratch = Scratch::new();
    let (cache, digest, _) = Handmade::of_another_diff_id("file");
    let keys = write_keys(&scratch.join("keys.db"), ["file"]);
    let (source, root) = (cache.write(&scratch.join("cache")), scratch.join("root"));
    let failed = run(&mut on(&containerd.address(), &root, &["bake", &source, "--keys-from", &keys]), LIMIT);
    assert_eq!(failed.status.code(), Some(5), "{}", failed.stderr);
    let said = format!("layer {digest} does not match its diff ID");
    assert!(failed.stderr.contains(&said), "no {said:?} in {}", failed.stderr);
    assert!(!root.exists());
    containerd.collect();
    containerd.assert_empty();
}
