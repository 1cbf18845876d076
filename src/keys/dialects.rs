//! The JSON that `BuildKit` hashes, byte for byte.
//!
//! `BuildKit` hands its operations to Go's `encoding/json`; the text depends on the generator of the
//! structs and on the Go release that built the daemon.
//!
//! | dialect | releases | zero `input`, `output`, `builder` | inside `"User"` |
//! |---|---|---|---|
//! | [`Dialect::Gogo`] | to v0.16 | written | `byName`; `byID`, left out at 0 |
//! | [`Dialect::Protoc`] | v0.17 | left out | `ByName`; `ByID`, written even at 0 |
//! | [`Dialect::ProtocUser`] | from v0.18 | left out | `byName`; `byId`, left out at 0 |
//!
//! Mirrors `solver/pb/ops.pb.go` and `solver/pb/json.go` of v0.12.5, v0.17.3, v0.33.1 and v0.34.2,
//! and `encoding/json/encode.go` of Go.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::writers::Writers;

/// Which generator made the structs that were encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// gogo/protobuf: indexes are written even where they are 0.
    Gogo,
    /// protoc-gen-go: indexes are left out at 0, the wrappers of a oneof have Go's names.
    Protoc,
    /// protoc-gen-go, with an encoder of its own for the owner of a file.
    ProtocUser,
}

impl Dialect {
    /// All of them, the newest first.
    pub(super) const ALL: [Self; 3] = [Self::ProtocUser, Self::Protoc, Self::Gogo];

    /// Who writes it.
    pub(super) fn writers(self) -> Writers {
        match self {
            Self::Gogo => Writers::TO_V0_12 | Writers::V0_13_TO_V0_16,
            Self::Protoc => Writers::V0_17,
            Self::ProtocUser => Writers::FROM_V0_18,
        }
    }
}

/// How strings are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Escapes {
    /// `\b` and `\f` (Go 1.22 and newer) instead of `\u0008` and `\u000c`.
    pub(super) short: bool,
    /// U+FFFD as `\ufffd`: what Go writes where the string held a byte that is no UTF-8.
    pub(super) replacement: bool,
}

impl Escapes {
    /// What most daemons write.
    pub(super) const USUAL: Self = Self { short: true, replacement: false };
    /// All of them, the usual one first.
    pub(super) const ALL: [Self; 4] = [
        Self::USUAL,
        Self { short: false, replacement: false },
        Self { short: true, replacement: true },
        Self { short: false, replacement: true },
    ];
}

/// Writes JSON as Go does.
#[derive(Debug)]
pub(super) struct Encoder {
    out: String,
    pub(super) dialect: Dialect,
    pub(super) escapes: Escapes,
    /// Whether anything was written that other [`Escapes`] would have written in another way.
    pub(super) escapes_matter: bool,
}

impl Encoder {
    pub(super) fn new(dialect: Dialect, escapes: Escapes) -> Self {
        Self { out: String::new(), dialect, escapes, escapes_matter: false }
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    /// Text that is JSON already.
    pub(super) fn raw(&mut self, json: &str) {
        self.out.push_str(json);
    }

    pub(super) fn integer(&mut self, value: i64) {
        self.out.push_str(&value.to_string());
    }

    /// A string, escaped as `encoding/json` does with HTML escaping on.
    pub(super) fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            self.escapes_matter |= matches!(c, '\u{8}' | '\u{c}' | '\u{fffd}');
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' if self.escapes.short => self.out.push_str("\\b"),
                '\u{c}' if self.escapes.short => self.out.push_str("\\f"),
                '\u{fffd}' if !self.escapes.replacement => self.out.push(c),
                '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{fffd}' => {
                    self.out.push_str("\\u");
                    let digits = (0..4).rev().map(|at| u32::from(c) >> (4 * at) & 0xf);
                    self.out.extend(digits.filter_map(|digit| char::from_digit(digit, 16)));
                }
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    /// A `[]byte`: base64 in a string.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out.push('"');
        STANDARD.encode_string(bytes, &mut self.out);
        self.out.push('"');
    }

    /// A slice, each element by `write`.
    pub(super) fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.out.push('[');
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push(',');
            }
            write(self, item);
        }
        self.out.push(']');
    }

    /// An object, written field by field.
    pub(super) fn object(&mut self, write: impl FnOnce(&mut Object<'_>)) {
        self.out.push('{');
        write(&mut Object { encoder: self, empty: true });
        self.out.push('}');
    }

    /// Any value, objects in the order in which they are given.
    pub(super) fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(items) => self.list(items, Self::value),
            Value::Object(fields) => self.object(|object| {
                for (name, value) in fields {
                    object.with(name, |encoder| encoder.value(value));
                }
            }),
            other => self.raw(&other.to_string()),
        }
    }
}

/// An object that is being written.
#[derive(Debug)]
pub(super) struct Object<'a> {
    encoder: &'a mut Encoder,
    empty: bool,
}

impl Object<'_> {
    /// A field whose value `write` writes.
    pub(super) fn with(&mut self, name: &str, write: impl FnOnce(&mut Encoder)) {
        if !std::mem::take(&mut self.empty) {
            self.encoder.out.push(',');
        }
        self.encoder.string(name);
        self.encoder.out.push(':');
        write(self.encoder);
    }

    /// The dialect that it is written in.
    pub(super) fn dialect(&self) -> Dialect {
        self.encoder.dialect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str, escapes: Escapes) -> String {
        let mut encoder = Encoder::new(Dialect::ProtocUser, escapes);
        encoder.string(text);
        encoder.finish()
    }

    #[test]
    fn escapes_strings_as_go_does() {
        // Expected values: json.Marshal of Go 1.26.
        let cases = [
            ("plain é 漢 \u{1f600}", "\"plain é 漢 \u{1f600}\""),
            ("a < b && c > d", r#""a \u003c b \u0026\u0026 c \u003e d""#),
            ("\"\\/", r#""\"\\/""#),
            ("\n\r\t\u{8}\u{c}", r#""\n\r\t\b\f""#),
            ("\0\u{1f}\u{7f}", "\"\\u0000\\u001f\u{7f}\""),
            ("\u{2028}\u{2029}", r#""\u2028\u2029""#),
            ("\u{fffd}", "\"\u{fffd}\""),
        ];
        for (text, expected) in cases {
            assert_eq!(string(text, Escapes::USUAL), expected, "{text:?}");
        }
    }

    #[test]
    fn escapes_strings_as_old_go_does() {
        let old = Escapes { short: false, replacement: true };
        assert_eq!(string("\u{8}\u{c}\u{fffd}", old), r#""\u0008\u000c\ufffd""#);
    }

    #[test]
    fn knows_when_escapes_matter() {
        for (text, expected) in [("\u{8}", true), ("\u{c}", true), ("\u{fffd}", true), ("<>\n\t\0", false)] {
            let mut encoder = Encoder::new(Dialect::Gogo, Escapes::USUAL);
            encoder.string(text);
            assert_eq!(encoder.escapes_matter, expected, "{text:?}");
        }
    }

    #[test]
    fn bytes_are_base64() {
        let mut encoder = Encoder::new(Dialect::Gogo, Escapes::USUAL);
        encoder.bytes(b"\xff\xfe?>");
        assert_eq!(encoder.finish(), "\"//4/Pg==\"");
    }

    #[test]
    fn unknown_values_keep_their_shape() {
        let mut encoder = Encoder::new(Dialect::Gogo, Escapes::USUAL);
        encoder.value(&serde_json::json!({"a": [1, -2, true, null, "<"], "b": {}}));
        assert_eq!(encoder.finish(), r#"{"a":[1,-2,true,null,"\u003c"],"b":{}}"#);
    }
}
