//! What a command prints: its report on standard output, all else on standard error.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use serde::Serialize;

use super::escape::harmless;
use super::exit::{self, Failure};
use super::render;

/// How a command says what came of it.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct Output {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Whether the report is for a program.
    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// Prints a report.
    ///
    /// # Errors
    /// It cannot be written; a reader that went away is no failure of ours.
    pub(super) fn report<T: Serialize>(
        self,
        report: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        out(if self.json { render::json(report) } else { text(report) })
    }

    /// What `--json` prints where there is no report; gives the exit code.
    pub(super) fn json_failure(self, failure: &Failure) -> u8 {
        if self.json {
            // Where this fails too, the exit code is all there is.
            let _ = out(render::json_failure(&*failure.error, failure.code));
        }
        failure.code
    }
}

/// Prints a line on standard output.
///
/// # Errors
/// As [`Output::report`].
pub(super) fn out(text: impl AsRef<str>) -> Result<(), Failure> {
    out_bytes(format!("{}\n", harmless(text.as_ref())).as_bytes())
}

/// Prints what is for a program as it is.
///
/// # Errors
/// As [`Output::report`].
pub(super) fn out_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}"), exit::FAILURE))
        }
        _ => Ok(()),
    }
}

/// Prints a line on standard error.
pub(super) fn err(text: impl AsRef<str>) {
    // There is nowhere left to say that it failed.
    // In one piece: a program that reads lines gets whole ones.
    let _ = io::stderr().write_all(format!("{}\n", harmless(text.as_ref())).as_bytes());
}

/// Columns of the terminal that standard output is, if it is one.
pub(super) fn columns() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout))?.ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::super::escape::is_steering;
    use super::*;

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"name": "\u{1b}[31m\u{9b}\u{7f}\u{202e}\n\t\"\\ü"});
        let printed = render::json(&value);
        let shown = harmless(&printed);
        assert!(!shown.chars().any(|c| c != '\n' && is_steering(c)), "{shown}");
        assert_eq!(shown.parse::<serde_json::Value>().unwrap(), value);
    }
}
