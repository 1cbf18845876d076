//! A bake that is stopped leaves nothing behind, or says what to do with what it left.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/skip.rs"]
mod skip;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use skip::is_root;
use warmkit::digest::{DiffId, Digest, RecordDigest};

const LIMIT: Duration = Duration::from_secs(30);

/// A registry with one cache, whose only layer stops in its middle for as long as the test runs.
struct Stalling {
    port: u16,
    stalled: Receiver<()>,
}

impl Stalling {
    fn start() -> Self {
        let layer = Digest::of(b"never whole");
        let record: RecordDigest = Digest::of(b"root").to_string().parse().unwrap();
        let config = json!({
            "layers": [{"blob": layer, "parent": -1}],
            "records": [{"digest": record, "layers": [{"layer": 0}]}],
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.buildkit.cacheconfig.v0",
                "digest": Digest::of(config.as_bytes()),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 1 << 20,
                "annotations": {"containerd.io/uncompressed": DiffId::of(b"tar")},
            }],
        })
        .to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, stalled) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (tell, config, manifest) = (tell.clone(), config.clone(), manifest.clone());
                thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                    let mut stream = stream;
                    while let Some(request) = lines.next() {
                        while lines.next().is_some_and(|line| !line.is_empty()) {}
                        let config_path = Digest::of(config.as_bytes()).to_string();
                        let body = match request.split(' ').nth(1).unwrap_or_default() {
                            path if path.ends_with("/manifests/cache") => &manifest,
                            path if path.ends_with(&config_path) => &config,
                            path if path.ends_with(&layer.to_string()) => {
                                let head =
                                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\npart", 1 << 20);
                                stream.write_all(head.as_bytes()).unwrap();
                                let _ = tell.send(());
                                thread::sleep(LIMIT);
                                return;
                            }
                            // No sidecar is beside it.
                            _ => {
                                stream.write_all(b"HTTP/1.1 404 -\r\nContent-Length: 0\r\n\r\n").unwrap();
                                continue;
                            }
                        };
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                        stream.write_all(head.as_bytes()).unwrap();
                        stream.write_all(body.as_bytes()).unwrap();
                    }
                });
            }
        });
        Self { port, stalled }
    }

    fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warmkit"));
        command.arg("bake").arg(format!("127.0.0.1:{}/app:cache", self.port)).arg("--root").arg(root);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a bake and waits until it is in the middle of the layer.
    fn bake(&self, root: &Path) -> Child {
        let child = self.command(root).spawn().unwrap();
        self.stalled.recv_timeout(LIMIT).unwrap();
        // Long enough for it to wait for a byte that never comes.
        thread::sleep(Duration::from_millis(300));
        child
    }
}

fn end(child: Child, signal: Signal) -> Output {
    let started = Instant::now();
    kill_process(Pid::from_child(&child), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < LIMIT / 2, "it took {:?} to end", started.elapsed());
    output
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).collect()
}

#[test]
fn asked_to_stop_it_removes_what_it_made() {
    if !is_root() {
        return;
    }
    let registry = Stalling::start();
    for (signal, existing) in [(Signal::INT, false), (Signal::TERM, true)] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/root");
        if existing {
            fs::create_dir_all(&root).unwrap();
        }
        let output = end(registry.bake(&root), signal);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.ends_with("error: interrupted, nothing was changed\n"), "{text}");
        if existing {
            assert_eq!(names(&root), [""; 0]);
        } else {
            assert_eq!(names(dir.path()), [""; 0], "not even the directories on the way");
        }
    }
}

#[test]
fn killed_it_leaves_a_directory_that_the_next_bake_names() {
    if !is_root() {
        return;
    }
    let registry = Stalling::start();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    end(registry.bake(&root), Signal::KILL);
    let left = names(dir.path());
    assert!(left.len() == 1 && left[0].starts_with(".warmkit-root-"), "{left:?}");
    assert!(!root.exists());

    let output = end(registry.bake(&root), Signal::TERM);
    let text = String::from_utf8(output.stderr).unwrap();
    let hint = format!("remove it with `rm -rf {}`", dir.path().join(&left[0]).display());
    assert!(text.contains(&hint), "{text}");
    assert_eq!(names(dir.path()), left, "somebody may still want to look at it");
}

/// Two bakes of one target at a time: the second does not take the first for one that was killed, nor for a
/// bake of another target whose name goes on where this one's ends.
#[test]
fn a_second_bake_of_one_target_is_refused_while_the_first_is_at_work() {
    if !is_root() {
        return;
    }
    let registry = Stalling::start();
    for existing in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("root"), dir.path().join("root-2"));
        if existing {
            fs::create_dir(&root).unwrap();
        }
        let (first, of_other) = (registry.bake(&root), registry.bake(&other));
        let refused = |expected: &str| {
            let output = registry.command(&root).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(7), "{text}");
            assert!(text.contains(expected), "{text}");
        };
        let at_work =
            format!("error: another bake is writing {}, nothing was changed: wait until", root.display());
        refused(&at_work);

        // The lock goes with the process, however it ends.
        end(first, Signal::KILL);
        if existing {
            refused("left by a bake that was killed: remove it with");
        } else {
            let text = String::from_utf8(end(registry.bake(&root), Signal::TERM).stderr).unwrap();
            assert_eq!(text.matches("a bake of this root that was killed left").count(), 1, "{text}");
            assert!(!text.contains(".warmkit-root-2-"), "{text}");
        }
        end(of_other, Signal::TERM);
    }
}
