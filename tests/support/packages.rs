//! A server of packages, as package managers get them: tars of many small files and a few large ones.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::serve::Serving;
use super::tar::{Entry, Kind, Tar};

/// Files per MB, by kind: how many, and of how many bytes.
const FILES: [(usize, usize); 3] = [(15, 1_400), (4, 24_000), (1, 880_000)];

/// Files of one directory.
const PER_DIRECTORY: usize = 20;

/// A running server, of the packages `1` to a number.
#[derive(Debug)]
pub struct Packages {
    serving: Serving,
    sent: Arc<AtomicU64>,
}

impl Packages {
    /// Makes so many packages of so many MB, and starts serving them.
    pub fn start(count: usize, megabytes: usize) -> Self {
        let packages: Vec<Vec<u8>> = thread::scope(|scope| {
            let make = |number| scope.spawn(move || package(number, megabytes));
            let making: Vec<_> = (1..=count).map(make).collect();
            making.into_iter().map(|package| package.join().unwrap()).collect()
        });
        let (packages, sent) = (Arc::new(packages), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&sent);
        let serving = Serving::start(move |stream| {
            // Steps side by side get their packages side by side.
            let (packages, count) = (Arc::clone(&packages), Arc::clone(&count));
            thread::spawn(move || answer(stream, &packages, &count));
            Ok(())
        });
        Self { serving, sent }
    }

    /// Where packages are: this, and their number.
    pub fn url(&self) -> String {
        format!("http://{}", self.serving.address)
    }

    /// Bytes of packages sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, packages: &[Vec<u8>], sent: &AtomicU64) -> std::io::Result<()> {
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    while reader.read_line(&mut request)? > 2 {}
    let number = request.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    let Some(package) = number.and_then(|number| packages.get(number.checked_sub(1)?)) else {
        return stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n");
    };
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", package.len())?;
    // Counted before it is out: whoever has received it finds it counted.
    sent.fetch_add(package.len() as u64, Ordering::SeqCst);
    stream.write_all(package)
}

/// The same bytes for the same number and size.
fn package(number: usize, megabytes: usize) -> Vec<u8> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ (number as u64) << 20);
    let mut tar = Tar::new();
    let mut data = Vec::new();
    for (kind, (count, size)) in FILES.into_iter().enumerate() {
        for file in 0..count * megabytes {
            let directory = format!("kind{kind}/package{}", file / PER_DIRECTORY);
            if file % PER_DIRECTORY == 0 {
                tar.add(Entry::new(&directory, Kind::Dir));
            }
            let more = usize::try_from(random.next() % size as u64).unwrap();
            random.fill(&mut data, size / 2 + more);
            tar.add(Entry::new(&format!("{directory}/file{file}"), Kind::File(&data)));
        }
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&tar.finish()).unwrap();
    encoder.finish().unwrap()
}

/// Marsaglia's xorshift64: fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Makes `data` `len` bytes long: pages of noise, and three times as many of what a compressor shrinks.
    fn fill(&mut self, data: &mut Vec<u8>, len: usize) {
        data.clear();
        while data.len() < len {
            let value = self.next();
            let repeated = if value.is_multiple_of(4) { 1 } else { 8 };
            for _ in 0..512 / repeated {
                let bytes = self.next().to_le_bytes();
                for _ in 0..repeated {
                    data.extend_from_slice(&bytes);
                }
            }
        }
        data.truncate(len);
    }
}
