//! Variables in Dockerfile words, expanded as a daemon does before it shows a step.
//!
//! Mirrors `frontend/dockerfile/shell/lex.go` of v0.34.2, but for patterns (`${x#…}`, `${x%…}`,
//! `${x/…/…}`): a word with one of those is shown as it was written.

use std::iter::Peekable;
use std::str::Chars;

/// What is known of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variable {
    /// It has this value.
    Set(String),
    /// It is not set.
    Unset,
    /// Whether it is set cannot be told: the base image may set it.
    Unknown,
}

/// How quotes, escapes and unset variables are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Quotes and escapes vanish, an unset variable is empty: all instructions but `RUN`.
    Plain,
    /// Quotes, escapes and unset variables stay as written: `RUN`.
    Raw,
}

/// Expands `text`; `None` where it is malformed or something in it is not known.
pub(super) fn expand(
    text: &str,
    escape: char,
    mode: Mode,
    lookup: &dyn Fn(&str) -> Variable,
) -> Option<String> {
    let mut lexer = Lexer { chars: text.chars().peekable(), escape, mode, lookup };
    lexer.until(None)
}

/// Splits at blanks outside quotes and escapes, all of which stay; `<<` takes the word after it along.
pub(super) fn split_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(c);
        if c == escape {
            word.extend(chars.next());
        } else if c == '\'' || c == '"' {
            while let Some(inner) = chars.next() {
                word.push(inner);
                if inner == c {
                    break;
                }
                if inner == escape && c == '"' {
                    word.extend(chars.next());
                }
            }
        } else if c == '<' && chars.next_if_eq(&'<').is_some() {
            word.push('<');
            while let Some(blank) = chars.next_if(|c| *c == ' ' || *c == '\t') {
                word.push(blank);
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    mode: Mode,
    lookup: &'a dyn Fn(&str) -> Variable,
}

impl Lexer<'_> {
    /// Reads up to `stop`, or to the end.
    fn until(&mut self, stop: Option<char>) -> Option<String> {
        let raw = self.mode == Mode::Raw;
        let mut out = String::new();
        while let Some(&c) = self.chars.peek() {
            if Some(c) == stop {
                self.chars.next();
                return Some(out);
            }
            match c {
                '\'' => self.single_quoted(&mut out)?,
                '"' => self.double_quoted(&mut out)?,
                '$' => out.push_str(&self.dollar()?),
                _ => {
                    self.chars.next();
                    if c == self.escape {
                        if raw {
                            out.push(c);
                        }
                        out.extend(self.chars.next());
                    } else {
                        out.push(c);
                    }
                }
            }
        }
        if stop.is_some() { None } else { Some(out) }
    }

    fn single_quoted(&mut self, out: &mut String) -> Option<()> {
        let quote = self.chars.next()?;
        let raw = self.mode == Mode::Raw;
        out.extend(raw.then_some(quote));
        loop {
            match self.chars.next()? {
                '\'' => break,
                c => out.push(c),
            }
        }
        out.extend(raw.then_some(quote));
        Some(())
    }

    fn double_quoted(&mut self, out: &mut String) -> Option<()> {
        let quote = self.chars.next()?;
        let raw = self.mode == Mode::Raw;
        out.extend(raw.then_some(quote));
        loop {
            match *self.chars.peek()? {
                '"' => {
                    self.chars.next();
                    out.extend(raw.then_some('"'));
                    return Some(());
                }
                '$' => out.push_str(&self.dollar()?),
                c => {
                    self.chars.next();
                    if c != self.escape {
                        out.push(c);
                        continue;
                    }
                    match self.chars.next_if(|next| matches!(next, '"' | '$') || *next == c) {
                        Some(escaped) => {
                            out.extend(raw.then_some(c));
                            out.push(escaped);
                        }
                        None => out.push(c),
                    }
                }
            }
        }
    }

    fn dollar(&mut self) -> Option<String> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Some("$".to_owned());
            }
            return match (self.lookup)(&name) {
                Variable::Set(value) => Some(value),
                Variable::Unset if self.mode == Mode::Raw => Some(format!("${name}")),
                Variable::Unset => Some(String::new()),
                Variable::Unknown => None,
            };
        }
        let name = self.name();
        let mut operator = String::new();
        let mut kind = self.chars.next()?;
        if name.is_empty() {
            return None;
        }
        if kind == ':' {
            operator.push(kind);
            kind = self.chars.next()?;
        }
        operator.push(kind);
        let word = match kind {
            '}' if operator.len() == 1 => None,
            '+' | '-' | '?' => Some(self.until(Some('}'))?),
            _ => return None,
        };
        let value = match (self.lookup)(&name) {
            Variable::Unknown => return None,
            Variable::Unset if self.mode == Mode::Raw => {
                return Some(match word {
                    None => format!("${{{name}}}"),
                    Some(word) => format!("${{{name}{operator}{word}}}"),
                });
            }
            Variable::Unset => None,
            Variable::Set(value) => Some(value),
        };
        let null_is_unset = operator.starts_with(':');
        let present = value.as_ref().is_some_and(|value| !(null_is_unset && value.is_empty()));
        match (kind, word) {
            ('-', Some(word)) if !present => Some(word),
            ('+', Some(word)) => Some(if present { word } else { String::new() }),
            ('?', _) if !present => None,
            _ => Some(value.unwrap_or_default()),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(c) if c.is_ascii_digit() => {
                while let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.chars.next()),
            _ => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Variable {
        match name {
            "a" => Variable::Set("A".into()),
            "empty" => Variable::Set(String::new()),
            "base" => Variable::Unknown,
            _ => Variable::Unset,
        }
    }

    #[test]
    fn expands_words() {
        let cases = [
            ("x $a ${a}b", Some("x A Ab")),
            ("$none|${none}", Some("|")),
            ("'$a' \"$a\" \\$a", Some("$a A $a")),
            ("\"a\\\"b\\c\"", Some("a\"b\\c")),
            ("${none:-$a} ${none-d} ${empty:-e} ${empty-f}", Some("A d e ")),
            ("${a:+yes} ${none:+no} ${empty+set}", Some("yes  set")),
            ("${a:?must}", Some("A")),
            ("${none:?must}", None),
            ("$base", None),
            ("${a#x}", None),
            ("'open", None),
            ("${a", None),
            ("${}", None),
            ("cost: 5$", Some("cost: 5$")),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, '\\', Mode::Plain, &lookup).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn keeps_what_run_keeps() {
        let cases = [
            ("echo '$a' \"$a\" \\$a", Some("echo '$a' \"A\" \\$a")),
            ("$none ${none} ${none:-x}", Some("$none ${none} ${none:-x}")),
            ("\"a\\\"b\\c\"", Some("\"a\\\"b\\c\"")),
            ("$? $$ $1 $@", Some("$? $$ $1 $@")),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, '\\', Mode::Raw, &lookup).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn splits_words() {
        let text = "a 'b c' \"d \\\" e\" f\\ g << EOF <<-\"X Y\"";
        let expected = ["a", "'b c'", "\"d \\\" e\"", "f\\ g", "<< EOF", "<<-\"X Y\""];
        assert_eq!(split_words(text, '\\'), expected);
    }
}
