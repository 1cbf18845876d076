//! containerd's filters, as rules have them.
//!
//! ```text
//! filter   = selector { "," selector }          all of them
//! selector = field [ ("==" | "!=" | "~=") value ]
//! ```
//!
//! Mirrors containerd `pkg/filters`, and `adaptUsageInfo` in `BuildKit`'s `cache/manager.go`.

use std::iter::Peekable;
use std::str::Chars;

use regex_lite::Regex;

use super::{Error, Record, Release};

/// One filter: selectors that all have to match.
#[derive(Debug)]
pub(super) struct Filter(Vec<Selector>);

#[derive(Debug)]
struct Selector {
    field: String,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filter {
    /// Reads a filter; the empty one matches everything.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut selectors = Vec::new();
        let mut reader = Reader(text.chars().peekable());
        let fault = |reason| Error::Filter { filter: text.to_owned(), reason };
        while !text.is_empty() {
            selectors.push(reader.selector().map_err(fault)?);
            match reader.0.next() {
                None => break,
                Some(',') => {}
                Some(_) => return Err(fault("a comma or the end has to follow a selector")),
            }
        }
        Ok(Self(selectors))
    }

    /// Whether a record is one of those that it is about, as collection sees records.
    pub(super) fn matches(&self, record: &Record, release: Release) -> bool {
        self.0.iter().all(|selector| {
            let (value, present) = field(&selector.field, record, release);
            match &selector.test {
                Test::Present => present,
                Test::Equal(expected) => present && value == expected,
                Test::NotEqual(other) => value != other,
                Test::Matches(expression) => expression.is_match(value),
            }
        })
    }
}

/// A field's value, and whether it is there. Collection fills in neither parents nor whether a record is in
/// use, which it never is.
fn field<'a>(name: &str, record: &'a Record, release: Release) -> (&'a str, bool) {
    let text = |text: &'a str| (text, !text.is_empty());
    match name {
        "id" => text(&record.id),
        "description" if release.filters_see_descriptions() => text(&record.description),
        "type" => text(record.kind()),
        "mutable" => ("", record.mutable),
        "immutable" => ("", !record.mutable),
        "shared" => ("", record.shared),
        "private" => ("", !record.shared),
        _ => ("", false),
    }
}

struct Reader<'a>(Peekable<Chars<'a>>);

type Read<T> = Result<T, &'static str>;

impl Reader<'_> {
    fn selector(&mut self) -> Read<Selector> {
        let field = self.field()?;
        while self.0.next_if_eq(&'.').is_some() {
            // No field has parts, but the first one is what is looked at.
            self.field()?;
        }
        if matches!(self.0.peek(), None | Some(',')) {
            return Ok(Selector { field, test: Test::Present });
        }
        self.skip_spaces();
        let test = match self.take(|c| matches!(c, '=' | '!' | '~')).as_str() {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let expression = self.value(true)?;
                Test::Matches(Regex::new(&expression).map_err(|_| "not a regular expression")?)
            }
            _ => return Err("the operators are ==, != and ~="),
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Read<String> {
        self.skip_spaces();
        if self.0.peek() == Some(&'"') {
            return self.quoted();
        }
        let name = self.take(|c| c == '_' || c.is_ascii_alphanumeric());
        if name.is_empty() { Err("a field is missing") } else { Ok(name) }
    }

    fn value(&mut self, is_expression: bool) -> Read<String> {
        self.skip_spaces();
        match self.0.peek() {
            Some('/' | '|') if !is_expression => Err("these quotes are for ~= only"),
            Some('"' | '/' | '|') => self.quoted(),
            Some('.' | ',' | '=' | '!' | '~') | None => Err("a value is missing"),
            Some(_) => Ok(self.take(|c| c != ',' && !c.is_whitespace() && !c.is_control())),
        }
    }

    fn skip_spaces(&mut self) {
        while self.0.next_if(|c| c.is_whitespace()).is_some() {}
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.0.next_if(|c| wanted(*c)) {
            taken.push(c);
        }
        taken
    }

    fn quoted(&mut self) -> Read<String> {
        let quote = self.0.next().ok_or("a value is missing")?;
        let mut text = String::new();
        loop {
            match self.0.next() {
                None | Some('\n') => return Err("a quote is not closed"),
                Some(c) if c == quote => return Ok(text),
                Some('\\') => text.push(self.escape(quote)?),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, quote: char) -> Read<char> {
        let c = self.0.next().ok_or("a quote is not closed")?;
        let (digits, radix, mut number) = match c {
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'v' => return Ok('\u{b}'),
            '\\' => return Ok('\\'),
            _ if c == quote => return Ok(c),
            '0'..='7' => (2, 8, c.to_digit(8).unwrap_or_default()),
            'x' => (2, 16, 0),
            'u' => (4, 16, 0),
            'U' => (8, 16, 0),
            _ => return Err("no such escape"),
        };
        for _ in 0..digits {
            let digit = self.0.next().and_then(|c| c.to_digit(radix)).ok_or("an escape is too short")?;
            number = number.wrapping_mul(radix).wrapping_add(digit);
        }
        char::from_u32(number).ok_or("an escape is no character")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_what_a_daemon_matches() {
        let record = Record {
            id: "abc".into(),
            record_type: "source.local".into(),
            description: "local source for context".into(),
            mutable: true,
            ..Record::default()
        };
        for (filter, expected) in [
            ("", true),
            ("type==source.local", true),
            ("type == source.local", true),
            ("type==\"source.local\"", true),
            ("type==source.local,type==exec.cachemount", false),
            ("type!=regular,mutable", true),
            ("immutable", false),
            ("private", true),
            ("shared", false),
            ("id~=^a.c$", true),
            ("id~=/^a[b]c$/", true),
            ("id~=|^\\x62|", false),
            ("description~=\"local source\"", true),
            ("parents", false),
            // What is not there is not equal to anything.
            ("nothing!=x", true),
            ("nothing==x", false),
            ("inuse", false),
        ] {
            let filter = Filter::parse(filter).unwrap();
            assert_eq!(filter.matches(&record, Release::NEWEST), expected, "{filter:?}");
        }
        let described = Filter::parse("description").unwrap();
        assert!(!described.matches(&record, Release::new(0, 13, 0)));
        let plain = Record::default();
        assert!(Filter::parse("type==regular").unwrap().matches(&plain, Release::NEWEST));
    }

    #[test]
    fn refuses_what_a_daemon_refuses() {
        for filter in [
            "type=regular",
            "type=",
            "type==",
            "==x",
            "type==a b",
            "type==/a/",
            "id~=/\\d/",
            "id~=\"a",
            "a,",
            "type===x",
            ",",
            " ",
            // A daemon reads this one, reports it at every record, and matches none.
            "id~=[",
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
    }
}
