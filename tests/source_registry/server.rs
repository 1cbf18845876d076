//! A registry that does as a test tells it, on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first byte that a `Range` asks for.
    pub(crate) fn range_start(&self) -> Option<usize> {
        Some(self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().unwrap())
    }
}

/// What to answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut: Option<usize>,
    /// Send nothing more after so many bytes of the body, for so long.
    stall: Option<(usize, Duration)>,
    chunked: bool,
    /// Send the body over and over, until the other side has had enough.
    endless: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), format!("{value}")));
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    pub(crate) fn stall(mut self, after: usize, time: Duration) -> Self {
        self.stall = Some((after, time));
        self
    }

    pub(crate) fn endless(mut self) -> Self {
        self.endless = true;
        self.chunked()
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The bytes from `start` on, as a server that knows ranges gives them.
    pub(crate) fn partial(whole: &[u8], start: usize) -> Self {
        let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
        Self::new(206, &whole[start..]).header("content-range", range)
    }

    fn head(&self) -> String {
        let framing = if self.chunked {
            "transfer-encoding: chunked\r\n".to_owned()
        } else {
            format!("content-length: {}\r\n", self.body.len())
        };
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("HTTP/1.1 {} Whatever\r\n{framing}{}\r\n", self.status, headers.concat())
    }

    /// Whether the connection may be used again.
    fn send(&self, stream: &mut TcpStream) -> std::io::Result<bool> {
        stream.write_all(self.head().as_bytes())?;
        if self.chunked {
            loop {
                for chunk in self.body.chunks(if self.endless { 1 << 20 } else { 1000 }) {
                    write!(stream, "{:x}\r\n", chunk.len())?;
                    stream.write_all(chunk)?;
                    stream.write_all(b"\r\n")?;
                }
                if !self.endless {
                    break;
                }
            }
            stream.write_all(b"0\r\n\r\n")?;
            return Ok(true);
        }
        if let Some((after, time)) = self.stall {
            stream.write_all(&self.body[..after])?;
            std::thread::sleep(time);
            return Ok(false);
        }
        match self.cut {
            Some(after) => stream.write_all(&self.body[..after]).map(|()| false),
            None => stream.write_all(&self.body).map(|()| true),
        }
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// Runs until dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Answers each request with what `handler` says; only the question whether it speaks http at all
    /// (`GET /v2/`) is answered and left out of the log here.
    pub(crate) fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", handler).unwrap()
    }

    /// The same at an address that may not be there.
    pub(crate) fn start_at(
        addr: &str,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Option<Self> {
        let listener = TcpListener::bind(addr).ok()?;
        let addr = listener.local_addr().unwrap();
        let (requests, stop) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::<AtomicBool>::default());
        let (log, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                std::thread::spawn(move || serve(stream.unwrap(), &log, &*handler));
            }
        });
        Some(Self { addr, requests, stop })
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The paths asked for, in order.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.target).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        let answer = if request.target == "/v2/" {
            Answer::new(200, "{}")
        } else {
            log.lock().unwrap().push(request.clone());
            handler(&request)
        };
        if !answer.send(&mut stream).unwrap_or(false) {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, target, headers, body: String::new() };
    let length = request.header("content-length").map_or(0, |n| n.parse().unwrap());
    reader.take(length).read_to_string(&mut request.body).ok()?;
    Some(request)
}
