//! Text with a meaning to some of it, which a terminal shows in colour.
//!
//! Styles are kept apart from the text: whatever the text holds, no control character in it gets through.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Color};

use super::escape::harmless;

/// What a piece of text is to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A verdict that all is well.
    Good,
    /// A verdict that something is wrong, or an error.
    Bad,
    /// What should be known, and is no error.
    Warning,
    /// The titles of a table, and of a paragraph.
    Title,
}

impl Style {
    fn ansi(self) -> anstyle::Style {
        let bold = anstyle::Style::new().bold();
        let colour = match self {
            Self::Good => AnsiColor::Green,
            Self::Bad => AnsiColor::Red,
            Self::Warning => AnsiColor::Yellow,
            Self::Title => return bold,
        };
        bold.fg_color(Some(Color::Ansi(colour)))
    }
}

/// Pieces of text, some of them with a style. [`fmt::Write`] adds text without one; `to_string` gives all of it
/// without any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text(Vec<(Option<Style>, String)>);

impl Text {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// One piece.
    pub(super) fn styled(style: Style, text: impl Into<String>) -> Self {
        Self(vec![(Some(style), text.into())])
    }

    /// Adds text without a style.
    pub(super) fn push(&mut self, text: &str) {
        match self.0.last_mut() {
            Some((None, last)) => last.push_str(text),
            _ => self.0.push((None, text.to_owned())),
        }
    }

    /// Adds text with a style, or without one. A cell of a table is padded before it gets here.
    pub(super) fn push_styled(&mut self, style: impl Into<Option<Style>>, text: impl Into<String>) {
        self.0.push((style.into(), text.into()));
    }

    /// A line of it as it is written: harmless, and styled if `coloured`.
    pub(super) fn line(&self, coloured: bool) -> String {
        let mut line = String::new();
        for (style, text) in &self.0 {
            let text = harmless(text);
            let _ = match style.filter(|_| coloured).map(Style::ansi) {
                Some(style) => write!(line, "{style}{text}{style:#}"),
                None => write!(line, "{text}"),
            };
        }
        line.push('\n');
        line
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(_, text)| f.write_str(text))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(vec![(None, text)])
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_styles_steer_the_terminal() {
        let mut text = Text::styled(Style::Bad, "error:");
        let _ = write!(text, " \u{1b}[32mRUN make");
        text.push_styled(Style::Good, "\u{1b}[5mall\nwell\u{9b}");
        text.push(".");
        assert_eq!(text.to_string(), "error: \u{1b}[32mRUN make\u{1b}[5mall\nwell\u{9b}.");
        assert_eq!(text.line(false), "error: \\u001b[32mRUN make\\u001b[5mall\nwell\\u009b.\n");
        let styled = "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m \\u001b[32mRUN make\
                      \u{1b}[1m\u{1b}[32m\\u001b[5mall\nwell\\u009b\u{1b}[0m.\n";
        assert_eq!(text.line(true), styled);
    }
}
