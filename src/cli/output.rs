//! What a command prints: its report on standard output, all else on standard error, in colour where there is
//! one to read it in.

use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::exit::{self, Failure};
use super::render;
use super::text::Text;

/// How a command says what came of it.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct Output {
    /// How the report is printed, on standard output
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text for people, in colour on a terminal
    #[default]
    Table,
    /// One object, as docs/json.md says
    Json,
}

impl Output {
    /// Whether the report is for a program.
    pub(super) fn is_json(self) -> bool {
        self.json || self.format == Format::Json
    }

    /// Prints a report.
    ///
    /// # Errors
    /// It cannot be written; a reader that went away is no failure of ours.
    pub(super) fn report<T: Serialize, R: Into<Text>>(
        self,
        report: &T,
        text: impl FnOnce(&T) -> R,
    ) -> Result<(), Failure> {
        if self.is_json() { out(render::json(report)) } else { out(text(report)) }
    }

    /// What `--json` prints where there is no report; gives the exit code.
    pub(super) fn json_failure(self, failure: &Failure) -> u8 {
        if self.is_json() {
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
pub(super) fn out(text: impl Into<Text>) -> Result<(), Failure> {
    out_bytes(text.into().line(is_coloured(&io::stdout())).as_bytes())
}

/// Prints what is for a program as it is.
///
/// # Errors
/// As [`Output::report`].
pub(super) fn out_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// What came of writing to standard output.
///
/// # Errors
/// As [`Output::report`].
pub(super) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}"), exit::FAILURE))
        }
        _ => Ok(()),
    }
}

/// Prints a line on standard error.
pub(super) fn err(text: impl Into<Text>) {
    let line = text.into().line(is_coloured(&io::stderr()));
    // There is nowhere left to say that it failed.
    // In one piece: a program that reads lines gets whole ones.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Whether styles are shown on this stream, by the rules that clap's `--help` follows too: on a terminal that
/// has them, unless `$NO_COLOR` is set or `$CLICOLOR` is 0; elsewhere only with `$CLICOLOR_FORCE`.
fn is_coloured<S: RawStream>(stream: &S) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Columns of the terminal that standard output is, if it is one.
pub(super) fn columns() -> Option<usize> {
    columns_of(&io::stdout())
}

/// Columns of the terminal that a stream is, if it is one and knows.
pub(super) fn columns_of(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let size = stream.is_terminal().then(|| rustix::termios::tcgetwinsize(stream))?.ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::escape::{harmless, is_steering};
    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        output: Output,
    }

    #[test]
    fn json_has_a_short_form() {
        let parse = |flags: &[&str]| {
            let command = Command::try_parse_from([&["warmkit"], flags].concat());
            command.map(|command| command.output.is_json()).map_err(|error| error.kind())
        };
        assert_eq!(parse(&[]), Ok(false));
        assert_eq!(parse(&["--format", "table"]), Ok(false));
        assert_eq!(parse(&["--format", "json"]), Ok(true));
        assert_eq!(parse(&["--json"]), Ok(true));
        let conflict = clap::error::ErrorKind::ArgumentConflict;
        assert_eq!(parse(&["--json", "--format", "table"]), Err(conflict));
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"name": "\u{1b}[31m\u{9b}\u{7f}\u{202e}\n\t\"\\ü"});
        let printed = render::json(&value);
        let shown = harmless(&printed);
        assert!(!shown.chars().any(|c| c != '\n' && is_steering(c)), "{shown}");
        assert_eq!(shown.parse::<serde_json::Value>().unwrap(), value);
    }
}
