//! Programs that know credentials: docker's helpers, and what else runs to its end and prints a secret.
//!
//! ```text
//! docker-credential-<name> get   < host   > {"Username": …, "Secret": …}
//! ```
//!
//! Secrets come over pipes and never stand in arguments. A helper that knows nothing of the host is no error.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::error::{CredentialError, JsonFault};
use super::{Credential, Credentials, Login, Origin};
use crate::source::Error;
use crate::source::http::{Stop, one_line};
use crate::source::secret::Secret;

/// What a helper prints for a host that it does not know.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that stands for "the secret is an identity token".
const TOKEN_USER: &str = "<token>";
/// How often to look whether a program has ended.
const LOOK: Duration = Duration::from_millis(10);
/// The most that is read of what a program prints, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    secret: String,
}

impl Credentials {
    /// Runs a program that prints credentials for `host`; `asked_by` is what names it, for messages.
    pub(super) fn run(
        &self,
        helper: &str,
        command: &mut Command,
        host: &str,
        asked_by: &str,
    ) -> Result<Ended, Error> {
        run_helper(command, host.as_bytes(), self.helper_timeout, &self.stop).map_err(|unfinished| {
            let (helper, host) = (helper.to_owned(), host.to_owned());
            match unfinished {
                Unfinished::Start(source) => {
                    CredentialError::HelperStart { helper, asked_by: asked_by.to_owned(), source }.into()
                }
                Unfinished::TimedOut(limit) => CredentialError::HelperTimeout { helper, host, limit }.into(),
                Unfinished::Stopped => Error::Stopped { what: format!("{helper} for {host}") },
            }
        })
    }

    /// Asks a credential helper.
    pub(super) fn ask_helper(
        &self,
        helper: &str,
        mut command: Command,
        host: &str,
        asked_by: &str,
    ) -> Result<Option<Credential>, Error> {
        let ended = self.run(helper, command.arg("get"), host, asked_by)?;
        if !ended.status.success() {
            return if ended.knows_nothing() { Ok(None) } else { Err(ended.failed(helper, host).into()) };
        }
        let answer: HelperAnswer = serde_json::from_slice(&ended.stdout).map_err(|error| {
            let (helper, host) = (helper.to_owned(), host.to_owned());
            CredentialError::HelperAnswer { helper, host, fault: JsonFault::from(&error) }
        })?;
        if answer.secret.is_empty() {
            return Ok(None);
        }
        let login = match answer.username.as_str() {
            TOKEN_USER => Login::Identity(Secret::new(answer.secret)),
            user => Login::password(user, answer.secret),
        };
        Ok(Some(Credential::new(login, Origin::Helper(helper.to_owned()))))
    }
}

/// What a program left behind.
pub(in crate::source) struct Ended {
    pub(in crate::source) status: ExitStatus,
    pub(in crate::source) stdout: Vec<u8>,
    pub(in crate::source) stderr: Vec<u8>,
}

impl Ended {
    /// Whether it says that it has nothing for the host.
    fn knows_nothing(&self) -> bool {
        [&self.stdout, &self.stderr].iter().any(|said| said.trim_ascii() == NOT_FOUND.as_bytes())
    }

    /// The error for one that failed.
    pub(super) fn failed(&self, helper: &str, host: &str) -> CredentialError {
        let (helper, host, status) = (helper.to_owned(), host.to_owned(), self.status);
        CredentialError::HelperFailed { helper, host, status, message: self.said() }
    }

    /// Why it failed, in its own words: on either stream, as helpers do. An answer is none of these words.
    fn said(&self) -> String {
        match one_line(&self.stdout) {
            stdout
                if stdout.is_empty()
                    || stdout.starts_with(['{', '[', '"'])
                    || stdout.contains("\"Secret\"") =>
            {
                one_line(&self.stderr)
            }
            stdout => stdout,
        }
    }
}

/// Why a program was not run to its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::source) enum Unfinished {
    #[error("{0}")]
    Start(#[from] io::Error),
    #[error("no answer in {} seconds", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("stopped")]
    Stopped,
}

impl Unfinished {
    /// The error that [`Stop`] asks for; any other reason in words.
    pub(in crate::source) fn stopped(self, what: impl FnOnce() -> String) -> Result<Error, String> {
        match self {
            Self::Stopped => Ok(Error::Stopped { what: what() }),
            other => Err(other.to_string()),
        }
    }
}

/// Runs a program to its end, with `input` on its standard input; it is killed when that takes longer than
/// `limit`, or when `stop` is used.
pub(in crate::source) fn run_helper(
    command: &mut Command,
    input: &[u8],
    limit: Duration,
    stop: &Stop,
) -> Result<Ended, Unfinished> {
    if stop.is_stopped() {
        return Err(Unfinished::Stopped);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that answers without reading is fine.
        let _ = stdin.write_all(input);
    }
    // Read on threads that are not waited for: a grandchild may hold the pipes open.
    let stdout = read_aside(child.stdout.take());
    let stderr = read_aside(child.stderr.take());
    let patience = Patience { deadline: Instant::now() + limit, limit, stop };
    let status = patience.wait(&mut child).inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
    })?;
    // Its output is there already, or very nearly, unless someone else holds the pipe.
    let stdout = patience.receive(&stdout)?;
    let stderr = if status.success() {
        Vec::new()
    } else {
        stderr.recv_timeout(Duration::from_millis(100)).unwrap_or_default()
    };
    Ok(Ended { status, stdout, stderr })
}

/// How long a program is waited for.
struct Patience<'a> {
    deadline: Instant,
    limit: Duration,
    stop: &'a Stop,
}

impl Patience<'_> {
    /// Ends as an error when there is no reason to wait any longer.
    fn check(&self) -> Result<(), Unfinished> {
        if self.stop.is_stopped() {
            Err(Unfinished::Stopped)
        } else if Instant::now() >= self.deadline {
            Err(Unfinished::TimedOut(self.limit))
        } else {
            Ok(())
        }
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus, Unfinished> {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            self.check()?;
            std::thread::sleep(LOOK);
        }
    }

    fn receive(&self, output: &mpsc::Receiver<Vec<u8>>) -> Result<Vec<u8>, Unfinished> {
        // For one that ended at the last moment.
        let mut wait = Duration::from_millis(100);
        loop {
            if let Ok(bytes) = output.recv_timeout(wait) {
                return Ok(bytes);
            }
            self.check()?;
            wait = LOOK;
        }
    }
}

fn read_aside(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is still the best message there is.
            let _ = pipe.take(MAX_OUTPUT).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}
