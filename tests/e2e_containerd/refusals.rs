//! What a containerd, or what passes for one, may be like: each is told by name, and nothing is left.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::Scratch;
use crate::support::command::{Ended, run};
use crate::support::skip::is_root;
use crate::{Bed, on};

const LIMIT: Duration = Duration::from_secs(60);
/// Nobody.
const USER: u32 = 65534;

/// A root that there is as much of as is looked at before the containerd.
fn a_root(scratch: &Scratch) -> std::path::PathBuf {
    let root = scratch.join("root");
    fs::create_dir_all(root.join("containerd-overlayfs")).unwrap();
    root
}

/// Asserts that a command ends with this code, says each of these, and prints nothing.
#[track_caller]
pub(super) fn refused(command: &mut Command, code: i32, said: &[&str]) {
    let Ended { status, stderr, stdout } = run(command, LIMIT);
    assert_eq!(status.code(), Some(code), "{command:?}: {stdout}{stderr}");
    for said in said {
        assert!(stderr.contains(said), "{command:?}: no {said:?} in {stderr}");
    }
    assert_eq!(stdout, "", "{command:?}");
}

/// Asserts that whoever writes to what is at an address, or would, or reads it, is refused.
#[track_caller]
fn all_refused(address: &str, said: &[&str]) {
    let scratch = Scratch::new();
    let root = a_root(&scratch);
    for command in ["verify", "inspect", "forecast"] {
        refused(&mut on(address, &root, &[command]), 1, said);
    }
    if is_root() {
        let absent = scratch.join("absent");
        for command in ["plan", "bake"] {
            refused(&mut on(address, &absent, &[command, "type=local,src=/nonexistent"]), 1, said);
        }
        assert!(!absent.exists());
    }
}

/// What is done with a connection.
type Answer = fn(UnixStream);

/// Answers each connection, in a thread of its own, for as long as the test runs.
fn listen(path: &Path, answer: Answer) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
}

#[test]
fn nobody_listens() {
    let scratch = Scratch::new();
    let socket = scratch.join("sock");
    let address = socket.display().to_string();
    let said = format!("no containerd at {address}: ");
    all_refused(&address, &[&said, "start it, or say where it listens"]);
    // A socket that its containerd has left.
    drop(UnixListener::bind(&socket).unwrap());
    all_refused(&address, &[&said, "Connection refused"]);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    all_refused(&address, &[&said]);
}

#[test]
fn somebody_else_listens() {
    let scratch = Scratch::new();
    let said = "does not answer as containerd does";
    let answers: [(&str, Answer); 2] = [
        ("http", |mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        }),
        ("closes", drop),
    ];
    for (name, answer) in answers {
        let socket = scratch.join(name);
        listen(&socket, answer);
        all_refused(socket.to_str().unwrap(), &[said]);
    }
}

#[test]
fn one_of_another_version() {
    let scratch = Scratch::new();
    let socket = scratch.join("sock");
    listen(&socket, |stream| {
        let _ = says_version(stream, "v1.5.18");
    });
    all_refused(socket.to_str().unwrap(), &["is of version v1.5.18; roots are written for 1.6 and later"]);
}

/// Answers every request as containerd answers one for its version: HTTP/2, just enough of it.
fn says_version(mut stream: UnixStream, version: &str) -> std::io::Result<()> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    let (end_of_stream, ack, end_of_headers) = (1, 1, 4);
    let frame = |kind: u8, flags: u8, on: [u8; 4], payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &on, payload].concat()
    };
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, [0; 4], &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, on @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        stream.read_exact(&mut vec![0; usize::try_from(length).unwrap()])?;
        if kind == SETTINGS && flags & ack == 0 {
            stream.write_all(&frame(SETTINGS, ack, [0; 4], &[]))?;
        }
        if matches!(kind, DATA | HEADERS) && flags & end_of_stream != 0 {
            // `:status: 200`, then a name of the static table and a name in full.
            let headers = [&[0x88, 0x0f, 0x10][..], &text("application/grpc")].concat();
            let message = [&[0x0a][..], &text(version)].concat();
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let trailers = [&[0][..], &text("grpc-status"), &text("0")].concat();
            stream.write_all(&frame(HEADERS, end_of_headers, on, &headers))?;
            stream.write_all(&frame(DATA, 0, on, &[&[0][..], &length, &message].concat()))?;
            stream.write_all(&frame(HEADERS, end_of_headers | end_of_stream, on, &trailers))?;
        }
    }
}

#[test]
fn one_that_a_user_may_not_talk_to() {
    if !is_root() {
        return;
    }
    // Where every user may look.
    let scratch = Scratch::on_disk();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    let socket = scratch.join("sock");
    listen(&socket, drop);
    fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap();
    let root = a_root(&scratch);
    chown(&root, Some(USER), None).unwrap();
    // By another process: a file that a child of another thread may have open for writing does not run.
    let program = scratch.join("warmkit");
    let mut install = Command::new("install");
    install.args(["-m", "755", env!("CARGO_BIN_EXE_warmkit")]).arg(&program);
    assert!(install.status().unwrap().success());
    let target = format!("containerd:{}", socket.display());
    let mut verify = Command::new(&program);
    verify.args(["verify", "--for", &target, "--root"]).arg(&root).uid(USER).gid(USER);
    refused(&mut verify, 1, &["Permission denied", "its socket is root's: run warmkit as root"]);
}

#[test]
fn a_daemon_runs_on_the_root() {
    let Some(bed) = Bed::new() else { return };
    let (root, address) = (bed.root("root"), bed.containerd.address());
    let daemon = bed.start(&root);
    let refused_bake = bed.bake(&root);
    assert_eq!(refused_bake.status.code(), Some(7), "{}", refused_bake.stderr);
    assert!(refused_bake.stderr.contains("in use by a running buildkitd"), "{}", refused_bake.stderr);
    for command in ["verify", "inspect", "forecast"] {
        refused(&mut on(&address, &root, &[command]), 7, &["is in use"]);
    }
    daemon.stop();
    assert_eq!(bed.containerd.client("buildkit").leases().unwrap(), []);

    // A snapshotter that this containerd does not have.
    let absent = bed.root("absent");
    let arguments =
        ["bake", &bed.origin.cache, "--keys-from", &bed.origin.image, "--snapshotter", "fuse-overlayfs"];
    refused(&mut on(&address, &absent, &arguments), 2, &["has no snapshotter \"fuse-overlayfs\""]);
    assert!(!absent.exists());
}
