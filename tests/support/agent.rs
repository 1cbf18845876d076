//! An SSH agent and a web server, for `RUN --mount=type=ssh` and `ADD <URL>`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::serve::Serving;
use super::{Scratch, Tools};

/// An agent without keys: enough for a socket that answers. Ends when dropped.
#[derive(Debug)]
pub struct SshAgent {
    child: Child,
    socket: PathBuf,
    _scratch: Scratch,
}

impl SshAgent {
    /// Starts one.
    pub fn start(tools: &Tools) -> Self {
        let scratch = Scratch::new();
        let socket = scratch.join("agent.sock");
        // -D: stay in the foreground, so that the child is the agent.
        let child = Command::new(&tools.ssh_agent)
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "ssh-agent made no socket");
            thread::sleep(Duration::from_millis(10));
        }
        Self { child, socket, _scratch: scratch }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves one file at every path, on loopback. Ends when dropped.
#[derive(Debug)]
pub struct WebServer(Serving);

impl WebServer {
    /// Starts serving `body`.
    pub fn start(body: &'static [u8]) -> Self {
        Self(Serving::start(move |stream| answer(stream, body)))
    }

    /// The URL of `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.0.address)
    }
}

fn answer(mut stream: TcpStream, body: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    while reader.read_line(&mut request)? > 2 {}
    let tag = "\"warmkit\"";
    let known = request.to_ascii_lowercase().contains("if-none-match") && request.contains(tag);
    let status = if known { "304 Not Modified" } else { "200 OK" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: {tag}\r\nLast-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\n\
         Content-Type: text/plain\r\nConnection: close\r\n"
    )?;
    if known {
        return stream.write_all(b"\r\n");
    }
    write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
    if !request.starts_with("HEAD") {
        stream.write_all(body)?;
    }
    Ok(())
}
