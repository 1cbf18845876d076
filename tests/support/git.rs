//! A git repository, served over http on loopback as forges do (`git upload-pack --stateless-rpc`).

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use flate2::read::GzDecoder;

use super::Scratch;
use super::files::copy_tree;
use super::serve::Serving;

/// A served repository with one commit, on branch `main`, tagged `v1`. Ends when dropped.
#[derive(Debug)]
pub struct GitServer {
    serving: Serving,
    commit: String,
    _scratch: Scratch,
}

impl GitServer {
    /// Commits the files of `tree` and serves them.
    pub fn start(tree: &Path) -> Self {
        let scratch = Scratch::new();
        let work = scratch.join("work");
        copy_tree(tree, &work);
        git(&work, &["init", "--quiet", "--initial-branch=main"]);
        git(&work, &["add", "--all"]);
        git(&work, &["commit", "--quiet", "--message=one"]);
        git(&work, &["tag", "v1"]);
        let commit = git(&work, &["rev-parse", "HEAD"]);

        let serving = Serving::start(move |stream| answer(stream, &work));
        Self { serving, commit, _scratch: scratch }
    }

    /// Where it is cloned from.
    pub fn url(&self) -> String {
        format!("http://{}/repository.git", self.serving.address)
    }

    /// Its commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }
}

/// Runs git with nothing of this machine's configuration; gives what it printed.
fn git(work: &Path, arguments: &[&str]) -> String {
    let mut command = clean_git();
    command.arg("-C").arg(work).args(["-c", "user.name=warmkit", "-c", "user.email=warmkit@example.com"]);
    command.env("GIT_AUTHOR_DATE", "2023-11-14T22:13:20Z").env("GIT_COMMITTER_DATE", "2023-11-14T22:13:20Z");
    let output = command.args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn clean_git() -> Command {
    let mut command = Command::new("git");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// One request: the references, or a pack.
fn answer(mut stream: TcpStream, work: &Path) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (mut length, mut protocol, mut zipped) = (0, String::new(), false);
    let first = line.clone();
    loop {
        line.clear();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        let (name, value) = line.trim().split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "git-protocol" => value.clone_into(&mut protocol),
            "content-encoding" => zipped = value == "gzip",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if zipped {
        let mut plain = Vec::new();
        GzDecoder::new(&body[..]).read_to_end(&mut plain)?;
        body = plain;
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    if path == "/repository.git/info/refs?service=git-upload-pack" {
        let mut refs = b"001e# service=git-upload-pack\n0000".to_vec();
        refs.extend(upload_pack(work, &protocol, &["--advertise-refs"], b""));
        return respond(&mut stream, "200 OK", "advertisement", &refs);
    }
    if first.starts_with("POST /repository.git/git-upload-pack ") {
        let pack = upload_pack(work, &protocol, &[], &body);
        return respond(&mut stream, "200 OK", "result", &pack);
    }
    respond(&mut stream, "404 Not Found", "result", b"")
}

fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/x-git-upload-pack-{kind}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)
}

fn upload_pack(work: &Path, protocol: &str, flags: &[&str], input: &[u8]) -> Vec<u8> {
    let repository: PathBuf = work.join(".git");
    debug_assert!(fs::exists(&repository).unwrap_or_default());
    let mut child = clean_git()
        // A pinned commit may be asked for by its digest.
        .args(["-c", "uploadpack.allowAnySHA1InWant=true", "upload-pack", "--stateless-rpc"])
        .args(flags)
        .arg(&repository)
        .env("GIT_PROTOCOL", protocol)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A request is a few hundred bytes: it fits the pipe.
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().stdout
}
