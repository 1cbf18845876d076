//! What `--for auto` has seen.

use std::fmt::Write as _;

use crate::builder::{Seen, Survey};
use crate::cli::render;
use crate::cli::text::{Style, Text};

/// What was seen, for people: each target with what tells of it, and which is taken.
pub(super) fn text(survey: &Survey) -> Text {
    let mut text = Text::new();
    text.push_styled(Style::Title, "targets on this machine:");
    if survey.seen.is_empty() {
        text.push(" none");
    }
    for seen in &survey.seen {
        let _ = write!(text, "\n  {}", seen.way);
        match (&seen.root, seen.is_refused()) {
            (Ok(root), _) => {
                let _ = write!(text, "  {}", root.path().display());
            }
            (Err(error), is_refused) => {
                text.push("  ");
                let style = if is_refused { Style::Warning } else { Style::Bad };
                text.push_styled(style, if is_refused { "not to be had:" } else { "failed:" });
                let _ = write!(text, " {}", render::chain(error));
            }
        }
        for evidence in &seen.evidence {
            let _ = write!(text, "\n    {evidence}");
        }
    }
    if let Some(seen) = survey.taken() {
        text.push("\n");
        text.push_styled(Style::Good, "taken:");
        let _ = write!(text, " {}", seen.way);
    }
    text
}

/// Whether it is the one that is taken.
pub(super) fn is_taken(survey: &Survey, seen: &Seen) -> bool {
    survey.taken().is_some_and(|taken| std::ptr::eq(taken, seen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Way;

    #[test]
    fn nothing_is_shown_as_nothing() {
        // What this machine shows differs; what is said of each does not.
        let survey = Survey::of_this_machine();
        let shown = text(&survey).to_string();
        assert!(shown.starts_with("targets on this machine:"), "{shown}");
        for seen in &survey.seen {
            assert!(shown.contains(&seen.way.to_string()), "{shown}");
            assert!(!seen.evidence.is_empty() && seen.evidence.iter().all(|what| shown.contains(what)));
            assert!(!matches!(seen.way, Way::Engine(_)) || seen.is_refused(), "{shown}");
        }
        assert_eq!(shown.contains("taken: "), survey.taken().is_some());
    }
}
