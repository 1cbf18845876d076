//! A disk as a cloud makes it from a snapshot: the first access to each block of it waits until that was fetched.
//!
//! It is a file whose reads and writes this process answers, by FUSE (the kernel's
//! `Documentation/filesystems/fuse`, `include/uapi/linux/fuse.h`), for a loop device to stand on: a device of its own
//! (dm-delay, nbd) needs modules that not every kernel has.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Requests that are answered at a time.
const THREADS: u16 = 64;
/// The largest request.
const LARGEST: u32 = 1 << 20;

const HEADER: usize = 40;
const WRITE_HEADER: usize = 40;

/// How slow a disk is.
#[derive(Debug, Clone, Copy)]
pub struct Slowness {
    /// Bytes that are fetched at once.
    pub block: u32,
    /// How long it takes to fetch a block that is not there yet, however many are being fetched.
    pub latency: Duration,
    /// Most bytes per second of reads, fetched or not.
    pub rate: u32,
}

impl Slowness {
    /// None at all: blocks are only counted.
    pub const fn counting(block: u32) -> Self {
        Self { block, latency: Duration::ZERO, rate: u32::MAX }
    }
}

/// The file. Unmounted when dropped.
#[derive(Debug)]
pub struct Lazy {
    path: PathBuf,
    disk: Arc<Disk>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Disk {
    image: File,
    size: u64,
    slowness: Slowness,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By block, when it is there; none for those nobody asked for.
    there: Vec<Option<Instant>>,
    /// Blocks that had to be fetched.
    fetched: u64,
    /// When all that was read so far is through at the rate.
    busy_until: Instant,
}

impl Lazy {
    /// Has the file `path` be the disk whose blocks are in `image`.
    #[track_caller]
    pub fn mount(image: &Path, path: PathBuf, slowness: Slowness) -> Self {
        let image = OpenOptions::new().read(true).write(true).open(image).unwrap();
        let size = image.metadata().unwrap().len();
        let blocks = size.div_ceil(u64::from(slowness.block));
        let there = vec![None; usize::try_from(blocks).unwrap()];
        let state = Mutex::new(State { there, fetched: 0, busy_until: Instant::now() });
        let disk = Arc::new(Disk { image, size, slowness, state });

        File::create(&path).unwrap();
        let kernel = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let kernel = Arc::new(kernel.expect("/dev/fuse: the kernel has it, or its module fuse does"));
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", kernel.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("lazy", &path, "fuse", MountFlags::NOSUID | MountFlags::NODEV, &*options).unwrap();
        let serve = |_| {
            let (kernel, disk) = (Arc::clone(&kernel), Arc::clone(&disk));
            thread::spawn(move || serve(&kernel, &disk))
        };
        Self { path, disk: Arc::clone(&disk), threads: (0..THREADS).map(serve).collect() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Blocks that had to be fetched so far.
    pub fn fetched(&self) -> u64 {
        self.disk.state.lock().unwrap().fetched
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        // Nobody has it open any more, or he is told that it is gone.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Disk {
    /// Waits until the bytes are there, and through; `through` of them count for the rate.
    fn wait(&self, offset: u64, len: u64, through: u64) {
        let now = Instant::now();
        let until = {
            let mut state = self.state.lock().unwrap();
            let mut until = now;
            let size = u64::from(self.slowness.block);
            for block in offset / size..(offset + len).div_ceil(size) {
                let at = usize::try_from(block).unwrap();
                if state.there[at].is_none() {
                    let in_snapshot = self.has_data(block * size);
                    state.fetched += u64::from(in_snapshot);
                    let latency = if in_snapshot { self.slowness.latency } else { Duration::ZERO };
                    state.there[at] = Some(now + latency);
                }
                until = until.max(state.there[at].unwrap());
            }
            let time = Duration::from_nanos(through * 1_000_000_000 / u64::from(self.slowness.rate));
            state.busy_until = state.busy_until.max(now) + time;
            until.max(state.busy_until)
        };
        thread::sleep(until.saturating_duration_since(now));
    }

    /// Whether the snapshot has a block: one of which nothing was ever written is in none.
    fn has_data(&self, start: u64) -> bool {
        match rustix::fs::seek(&self.image, SeekFrom::Data(start)) {
            Ok(data) => data < start + u64::from(self.slowness.block),
            Err(error) => error != Errno::NXIO,
        }
    }

    fn read(&self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        let len = u64::from(len).min(self.size.saturating_sub(offset));
        self.wait(offset, len, len);
        let mut data = vec![0; usize::try_from(len).unwrap()];
        self.image.read_exact_at(&mut data, offset)?;
        Ok(data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<Vec<u8>> {
        self.wait(offset, data.len() as u64, 0);
        self.image.write_all_at(data, offset)?;
        Ok(words(&[u32::try_from(data.len()).unwrap(), 0]))
    }

    /// `struct fuse_attr_out`: valid for ever.
    fn attributes(&self) -> Vec<u8> {
        let mut out = words64(&[u64::from(u32::MAX), 0, 1, self.size, self.size / 512, 0, 0, 0]);
        out.extend(words(&[0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0]));
        out
    }

    /// The answer to a request; none where the kernel waits for none.
    fn answer(&self, opcode: u32, body: &[u8]) -> Option<Result<Vec<u8>, Errno>> {
        let failed = |_: io::Error| Errno::IO;
        Some(match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // GETATTR
            3 => Ok(self.attributes()),
            // OPEN: parallel direct writes
            14 => Ok(words(&[0, 0, 1 << 6, 0])),
            // READ
            15 => self.read(number(body, 8), half(body, 16)).map_err(failed),
            // WRITE
            16 => self.write(number(body, 8), &body[WRITE_HEADER..]).map_err(failed),
            // RELEASE, FSYNC, FLUSH, DESTROY
            18 | 20 | 25 | 38 => Ok(Vec::new()),
            // INIT, with: asynchronous reads, large writes, asynchronous direct requests, larger requests
            26 => {
                let flags = 1 | 1 << 5 | 1 << 15 | 1 << 22;
                let pages = LARGEST / 4096;
                let background = u32::from(THREADS) << 16 | u32::from(THREADS);
                let mut out = words(&[7, 31, LARGEST, flags & half(body, 12), background, LARGEST, 1, pages]);
                out.resize(64, 0);
                Ok(out)
            }
            _ => Err(Errno::NOSYS),
        })
    }
}

/// Answers requests until the file is unmounted.
fn serve(mut kernel: &File, disk: &Disk) {
    let mut request = vec![0; HEADER + WRITE_HEADER + LARGEST as usize];
    loop {
        let read = match kernel.read(&mut request) {
            Ok(0) => return,
            Ok(read) => read,
            // Interrupted; or a request that was taken back.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)) => {
                continue;
            }
            Err(_) => return,
        };
        let (opcode, unique) = (half(&request, 4), number(&request, 8));
        let Some(answer) = disk.answer(opcode, &request[HEADER..read]) else { continue };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let len = u32::try_from(16 + body.len()).unwrap();
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend(len.to_ne_bytes());
        out.extend(error.to_ne_bytes());
        out.extend(unique.to_ne_bytes());
        out.extend(body);
        // Whoever asked may have gone away.
        let _ = kernel.write(&out);
    }
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
