//! Text that anybody wrote, made harmless for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Characters that steer a terminal, or show text in another order than it stands in.
pub(super) fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with what steers a terminal, line breaks excepted, as JSON would escape it; JSON stays the same
/// document. Names of steps and answers of registries are written by anybody.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_steering(c) && c != '\n')
}

/// [`harmless`], and on one line.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_steering)
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

/// Columns that are left on a line for a name: enough to tell it by, however narrow the terminal is.
pub(super) fn room(columns: Option<usize>, taken: usize) -> Option<usize> {
    const LEAST: usize = 20;
    columns.map(|columns| columns.saturating_sub(taken).max(LEAST))
}

/// As much of the text as fits into as many columns.
pub(super) fn cut(text: &str, room: Option<usize>) -> Cow<'_, str> {
    let Some(room) = room.filter(|&room| text.width() > room) else { return Cow::Borrowed(text) };
    let mut left = room - 1;
    let fits = |c: &char| {
        let rest = left.checked_sub(c.width().unwrap_or_default());
        rest.is_some_and(|rest| {
            left = rest;
            true
        })
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push('…');
    Cow::Owned(cut)
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
    fn a_name_has_room_on_the_narrowest_terminal() {
        assert_eq!([room(None, 30), room(Some(80), 30), room(Some(35), 30)], [None, Some(50), Some(20)]);
    }

    #[test]
    fn names_are_cut_at_the_columns_that_they_take() {
        let cases = [
            ("RUN make", None, "RUN make"),
            ("RUN make", Some(8), "RUN make"),
            ("RUN make", Some(7), "RUN ma…"),
            ("日本語", Some(6), "日本語"),
            ("日本語", Some(5), "日本…"),
            ("日本語", Some(4), "日…"),
            ("e\u{301}te\u{301}s", Some(3), "e\u{301}t…"),
        ];
        for (name, room, expected) in cases {
            assert_eq!(cut(name, room), expected, "{name} {room:?}");
        }
    }
}
