//! What a command prints: its report on standard output, all else on standard error.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use serde::Serialize;

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

/// Characters that steer a terminal, or show text in another order than it stands in.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with what steers a terminal, line breaks excepted, as JSON would escape it; JSON stays the same
/// document. Names of steps and answers of registries are written by anybody.
fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, |c| steers(c) && c != '\n')
}

/// [`harmless`], and on one line.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, steers)
}

fn escaped(text: &str, escapes: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&escapes) {
        return Cow::Borrowed(text);
    }
    let mut harmless = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' if escapes(c) => harmless.push_str("\\n"),
            c if escapes(c) => {
                let _ = write!(harmless, "\\u{:04x}", u32::from(c));
            }
            c => harmless.push(c),
        }
    }
    Cow::Owned(harmless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_steers_the_terminal() {
        let cases = [
            ("RUN make", "RUN make", "RUN make"),
            ("RUN \u{1b}[2J\u{7}\r", "RUN \\u001b[2J\\u0007\\u000d", "RUN \\u001b[2J\\u0007\\u000d"),
            ("a\nb\tc", "a\nb\\u0009c", "a\\nb\\u0009c"),
            ("\u{9b}31m \u{7f}", "\\u009b31m \\u007f", "\\u009b31m \\u007f"),
            ("\u{202e}drawkcab\u{2066}", "\\u202edrawkcab\\u2066", "\\u202edrawkcab\\u2066"),
            ("日本 ü 🚀", "日本 ü 🚀", "日本 ü 🚀"),
        ];
        for (text, several, one) in cases {
            assert_eq!((&*harmless(text), &*one_line(text)), (several, one), "{text:?}");
        }
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"name": "\u{1b}[31m\u{9b}\u{7f}\u{202e}\n\t\"\\ü"});
        let printed = render::json(&value);
        let shown = harmless(&printed);
        assert!(!shown.chars().any(|c| steers(c) && c != '\n'), "{shown}");
        assert_eq!(shown.parse::<serde_json::Value>().unwrap(), value);
    }
}
