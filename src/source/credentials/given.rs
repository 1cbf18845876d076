//! Credentials that a person gave for one registry, with this run.

use std::fmt;
use std::io::{self, Read};

use crate::source::secret::Secret;

/// The longest password that is read, in bytes; tokens of ECR have some 2 KiB.
const LONGEST: u64 = 64 << 10;

/// A user and a password for one registry, which no other is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As references name it: `docker.io`.
    pub(super) registry: String,
    pub(super) user: String,
    pub(super) password: Secret,
}

/// Why a password could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GivenError {
    /// Reading failed.
    #[error("cannot read the password from standard input: {0}")]
    Read(#[from] io::Error),
    /// Nothing came.
    #[error("standard input has no password")]
    Empty,
    /// More than any password has.
    #[error("what stands on standard input is longer than {LONGEST} bytes, and so no password")]
    TooLong,
    /// No text, or more than a line of it.
    #[error("what stands on standard input is not one line of text")]
    NotALine,
}

impl Given {
    /// Reads a password to its end; one line break behind it is none of it, as with `docker login`.
    pub fn read(registry: &str, user: &str, input: &mut dyn Read) -> Result<Self, GivenError> {
        let mut bytes = Vec::new();
        input.take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST {
            return Err(GivenError::TooLong);
        }
        let text = String::from_utf8(bytes).map_err(|_| GivenError::NotALine)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(GivenError::Empty);
        }
        if line.contains(['\n', '\r', '\0']) {
            return Err(GivenError::NotALine);
        }
        Ok(Self { registry: registry.to_owned(), user: user.to_owned(), password: Secret::new(line) })
    }
}

impl fmt::Display for Given {
    /// Whose, and for which registry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.user, self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_line() {
        let long = "x".repeat(70_000);
        let cases: [(&[u8], Result<&str, &str>); 9] = [
            (b"pw", Ok("pw")),
            (b"pw\n", Ok("pw")),
            (b"pw\r\n", Ok("pw")),
            (b" p w ", Ok(" p w ")),
            (b"", Err("standard input has no password")),
            (b"\n", Err("standard input has no password")),
            (b"pw\nmore\n", Err("what stands on standard input is not one line of text")),
            (b"\xff", Err("what stands on standard input is not one line of text")),
            (
                long.as_bytes(),
                Err("what stands on standard input is longer than 65536 bytes, and so no password"),
            ),
        ];
        for (mut input, expected) in cases {
            let found = Given::read("r.example", "ci", &mut input);
            let found = found.as_ref().map(|given| given.password.expose()).map_err(ToString::to_string);
            assert_eq!(found, expected.map_err(ToOwned::to_owned), "{}", input.len());
        }
    }

    #[test]
    fn is_not_shown() {
        let given = Given::read("r.example", "ci", &mut b"hunter2".as_slice()).unwrap();
        assert!(!format!("{given} {given:?}").contains("hunter2"));
    }
}
