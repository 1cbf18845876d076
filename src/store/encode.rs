//! How Go writes the values in the databases.

use std::fmt::Write as _;

use jiff::Timestamp;

/// Seconds from the start of year 1, where Go counts from, to that of 1970.
const YEAR_1_TO_1970: i64 = 62_135_596_800;
const NANOSECONDS: i128 = 1_000_000_000;

/// `time.Time.MarshalBinary` of a UTC time: version 1, seconds since year 1, nanoseconds, and -1 for UTC.
pub(super) fn time(time: Timestamp) -> [u8; 15] {
    let nanoseconds = time.as_nanosecond();
    // jiff's range is years -9999 to 9999, so neither conversion can fail.
    let seconds = i64::try_from(nanoseconds.div_euclid(NANOSECONDS)).unwrap_or_default() + YEAR_1_TO_1970;
    let fraction = i32::try_from(nanoseconds.rem_euclid(NANOSECONDS)).unwrap_or_default();
    let mut out = [1; 15];
    out[1..9].copy_from_slice(&seconds.to_be_bytes());
    out[9..13].copy_from_slice(&fraction.to_be_bytes());
    out[13..].copy_from_slice(&(-1_i16).to_be_bytes());
    out
}

/// `time.RFC3339Nano` in UTC: as many digits of the fraction as it needs.
pub(super) fn rfc3339(time: Timestamp) -> String {
    time.to_string()
}

/// `time.Time.UnixNano`.
pub(super) fn unix_nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// `binary.PutUvarint`.
pub(super) fn uvarint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(10);
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// `binary.PutVarint`: zigzag.
pub(super) fn varint(value: i64) -> Vec<u8> {
    uvarint((value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned())
}

/// A size or count as a varint; those beyond 2^63 do not occur.
pub(super) fn varint_of(value: u64) -> Vec<u8> {
    varint(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A string as `json.Marshal` writes it, quotes and HTML escapes included. The bytes matter where JSON is
/// part of a key.
pub(super) fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }

    #[test]
    fn times_as_go_marshals_them() {
        let cases = [
            ("2026-11-20T23:45:21.343930144Z", "010000000ee292d291147ff520ffff"),
            ("1970-01-01T00:00:00Z", "010000000e7791f70000000000ffff"),
            ("1969-12-31T23:59:59.9Z", "010000000e7791f6ff35a4e900ffff"),
            ("0001-01-01T00:00:00Z", "01000000000000000000000000ffff"),
        ];
        for (text, expected) in cases {
            assert_eq!(hex(&time(text.parse().unwrap())), expected, "{text}");
        }
    }

    #[test]
    fn rfc3339_drops_trailing_zeros() {
        for text in ["2026-11-20T23:44:56.46611104Z", "2026-11-20T23:44:56Z", "2026-11-20T23:44:56.1Z"] {
            assert_eq!(rfc3339(text.parse().unwrap()), text);
        }
    }

    #[test]
    fn varints_as_go_puts_them() {
        let unsigned = [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02")];
        for (value, expected) in unsigned {
            assert_eq!(hex(&uvarint(value)), expected, "{value}");
        }
        assert_eq!(hex(&uvarint(u64::MAX)), "ffffffffffffffffff01");
        // 4096, 307631 and 129 as they stand in a daemon's stores.
        let signed = [(0, "00"), (-1, "01"), (3, "06"), (4096, "8040"), (307_631, "dec625"), (129, "8202")];
        for (value, expected) in signed {
            assert_eq!(hex(&varint(value)), expected, "{value}");
        }
        assert_eq!(varint(i64::MIN), uvarint(u64::MAX));
    }

    #[test]
    fn json_strings_as_go_marshals_them() {
        let cases = [
            ("sha256:0f", r#""sha256:0f""#),
            ("a && b < \"c\"", r#""a \u0026\u0026 b \u003c \"c\"""#),
            ("\n\t\u{1}\u{8}\u{c}\u{2028}\\ü\u{7f}", "\"\\n\\t\\u0001\\b\\f\\u2028\\\\ü\u{7f}\""),
        ];
        for (text, expected) in cases {
            assert_eq!(json_string(text), expected);
        }
    }
}
