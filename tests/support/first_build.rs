//! The first build on a machine whose disk was made from a snapshot, and who reads the disk before it or beside it.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Scratch;
use super::command;
use super::lazy::Slowness;
use super::trade_offs::{Image, MOUNT, World, loading, root};
use super::volume::Volume;
use super::warmkit::warmkit;

const LIMIT: Duration = Duration::from_secs(1200);

/// Who reads the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reader {
    /// Nobody but the daemon.
    Nobody,
    /// `warmkit hydrate`, and the daemon once all is read.
    HydrateBefore,
    /// `warmkit hydrate` as its systemd unit has it: the daemon starts once the databases are read.
    Hydrate,
    /// `dd` over the whole device, and the daemon after it.
    DdBefore,
    /// `dd` and the daemon at once.
    Dd,
    /// `fio` over the whole device, and the daemon after it.
    FioBefore,
    /// `fio` and the daemon at once.
    Fio,
}

/// All of them.
pub const READERS: [Reader; 7] = [
    Reader::Nobody,
    Reader::Hydrate,
    Reader::Dd,
    Reader::Fio,
    Reader::HydrateBefore,
    Reader::DdBefore,
    Reader::FioBefore,
];

/// What a machine saw. Times are seconds since its disk was there.
#[derive(Debug, Serialize)]
pub struct FirstBuild {
    /// Until all was read that somebody reads before the daemon starts.
    pub ready: f64,
    /// Until the daemon answered.
    pub daemon: f64,
    /// Until the build was done.
    pub built: f64,
    /// How long the build took.
    pub build: f64,
    /// Until the reader had read everything, where it was waited for.
    pub read: Option<f64>,
    /// Blocks of the snapshot fetched until the daemon was started, and until the build was done.
    pub fetched: [u64; 2],
    /// Steps that were CACHED.
    pub cached: usize,
}

/// Boots a machine on a disk made from the image, and builds.
#[track_caller]
pub fn first_build(
    world: &World,
    image: &Image,
    changed: bool,
    reader: Reader,
    slowness: Slowness,
) -> FirstBuild {
    let scratch = Scratch::new();
    let mut disk = image.snapshot(world);
    disk.fetch_lazily(slowness);
    let booted = Instant::now();
    let since = || booted.elapsed().as_secs_f64();
    disk.mount(MOUNT);
    let mut reading = Reading::start(reader, &disk, &scratch);
    let mut read = None;
    match reader {
        Reader::HydrateBefore | Reader::DdBefore | Reader::FioBefore => {
            reading.as_mut().unwrap().finish();
            read = Some(since());
        }
        Reader::Hydrate => reading.as_mut().unwrap().wait_until_started(),
        Reader::Nobody | Reader::Dd | Reader::Fio => {}
    }
    let (ready, before) = (since(), disk.fetched());
    let daemon = world.daemon(&root(&disk));
    let answered = since();
    let outcome = daemon.build(&loading(world.request(changed)));
    let built = since();
    let fetched = [before, disk.fetched()];
    if reader == Reader::Hydrate {
        reading.as_mut().unwrap().finish();
        read = Some(since());
    }
    drop(reading);
    daemon.stop();
    disk.unmount();
    let cached = outcome.steps.len() - outcome.not_cached().len();
    FirstBuild { ready, daemon: answered, built, build: built - answered, read, fetched, cached }
}

/// A reader that runs. Killed when dropped.
#[derive(Debug)]
struct Reading {
    child: Child,
    manager: UnixDatagram,
}

impl Reading {
    fn start(reader: Reader, disk: &Volume, scratch: &Scratch) -> Option<Self> {
        let socket = scratch.join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        let device = disk.device();
        let mut command = match reader {
            Reader::Nobody => return None,
            Reader::Hydrate | Reader::HydrateBefore => {
                let mut command = warmkit();
                command.args(["hydrate", "--idle", "--progress", "quiet", "--root"]).arg(root(disk));
                command
            }
            // Both as AWS's "Initialize Amazon EBS volumes" has them.
            Reader::Dd | Reader::DdBefore => {
                let mut command = Command::new("dd");
                command.arg(format!("if={}", device.display())).args(["of=/dev/null", "bs=1M"]);
                command
            }
            Reader::Fio | Reader::FioBefore => {
                let mut command = Command::new("fio");
                command.arg(format!("--filename={}", device.display())).args([
                    "--rw=read",
                    "--bs=1M",
                    "--iodepth=32",
                    "--ioengine=libaio",
                    "--direct=1",
                    "--name=volume-initialize",
                ]);
                command
            }
        };
        command.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null()).stdout(Stdio::null());
        Some(Self { child: command.stderr(Stdio::null()).spawn().unwrap(), manager })
    }

    /// Waits until it says that it has started, as systemd does for a service with `Type=notify`.
    #[track_caller]
    fn wait_until_started(&mut self) {
        self.manager.set_read_timeout(Some(LIMIT)).unwrap();
        let mut buffer = [0; 512];
        loop {
            let read = self.manager.recv(&mut buffer).unwrap();
            if buffer[..read].starts_with(b"READY=1") {
                return;
            }
        }
    }

    /// Waits until it has read everything.
    #[track_caller]
    fn finish(&mut self) {
        let status = command::wait(&mut self.child, LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
