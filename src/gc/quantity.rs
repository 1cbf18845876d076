//! Disk space and durations as `buildkitd.toml` has them.

use super::Disk;

/// What a percentage is of where the size of the disk is not known.
const UNKNOWN_DISK: i64 = 2_000_000_000;
const GIB: i128 = 1 << 30;

/// An amount of disk space; bytes count where there are both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes.
    pub bytes: i64,
    /// Hundredths of the disk.
    pub percentage: i64,
}

impl Space {
    /// So many bytes.
    pub const fn bytes(bytes: i64) -> Self {
        Self { bytes, percentage: 0 }
    }

    /// So many hundredths of the disk.
    pub const fn percentage(percentage: i64) -> Self {
        Self { bytes: 0, percentage }
    }

    /// Whether nothing was asked for.
    pub fn is_unset(self) -> bool {
        self == Self::default()
    }

    /// Bytes on a disk of this size. A percentage is rounded up to whole GiB, which then count for a GB each.
    pub fn on(self, disk: Disk) -> i64 {
        if self.bytes != 0 || self.percentage == 0 {
            return self.bytes;
        }
        if disk.total == 0 {
            return UNKNOWN_DISK;
        }
        let share = i128::from(disk.total) * i128::from(self.percentage) / 100;
        i64::try_from((share / GIB + 1) * 1_000_000_000).unwrap_or(i64::MAX)
    }

    /// Reads `9000`, `512MB`, `1.5 GiB` (all units are powers of 1024) or `10%`.
    pub fn read(text: &str) -> Option<Self> {
        let text = unquoted(text);
        if text.is_empty() {
            return Some(Self::default());
        }
        match text.strip_suffix('%') {
            Some(number) => number.parse().ok().map(Self::percentage),
            None => bytes(text).map(Self::bytes),
        }
    }
}

/// As `RAMInBytes` of docker/go-units.
fn bytes(text: &str) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = match text.as_bytes()[last] {
        b' ' => (&text[..last], &text[last + 1..]),
        _ => text.split_at(last + 1),
    };
    let number: f64 = number.parse().ok().filter(|number| *number >= 0.0)?;
    let unit = unit.to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if matches!(unit.as_str(), "" | "b") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    if !matches!(unit.get(1..), None | Some("" | "b" | "ib")) {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, reason = "the daemon cuts fractions of a byte off too")]
    Some((number * 1024_f64.powi(power)) as i64)
}

/// Nanoseconds of `48h`, `1h30m`, `-1.5s` or, in seconds, `172800`.
pub(super) fn duration(text: &str) -> Option<i64> {
    let text = unquoted(text);
    if text.is_empty() {
        return Some(0);
    }
    go_duration(text).or_else(|| text.parse::<i64>().ok()?.checked_mul(1_000_000_000))
}

/// As `time.ParseDuration`.
fn go_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.as_bytes()[0] {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut scale = unit;
        let mut part = 0_i64;
        for digit in fraction.bytes() {
            scale /= 10;
            part += i64::from(digit - b'0') * scale;
        }
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(part)?;
        rest = after;
    }
    (text.len() > 1).then_some(sign * total)
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spaces() {
        for (text, expected) in [
            ("9000", Some(Space::bytes(9000))),
            ("512MB", Some(Space::bytes(512 << 20))),
            ("512m", Some(Space::bytes(512 << 20))),
            ("10GB", Some(Space::bytes(10 << 30))),
            ("10 GiB", Some(Space::bytes(10 << 30))),
            ("1.5g", Some(Space::bytes(3 << 29))),
            ("7b", Some(Space::bytes(7))),
            ("10%", Some(Space::percentage(10))),
            ("", Some(Space::default())),
            ("\"1k\"", Some(Space::bytes(1024))),
            ("1.5%", None),
            ("-1", None),
            ("GB", None),
            ("10GBi", None),
            ("10bb", None),
            ("10ib", None),
            ("10 GBs", None),
            ("1e", None),
        ] {
            assert_eq!(Space::read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn reads_durations() {
        const SECOND: i64 = 1_000_000_000;
        for (text, expected) in [
            ("48h", Some(48 * 3600 * SECOND)),
            ("1h30m", Some(5400 * SECOND)),
            ("1.5h", Some(5400 * SECOND)),
            (".5s", Some(SECOND / 2)),
            ("-1h", Some(-3600 * SECOND)),
            ("172800", Some(172_800 * SECOND)),
            ("0", Some(0)),
            ("", Some(0)),
            ("100ms", Some(SECOND / 10)),
            ("2µs", Some(2000)),
            ("2d", None),
            ("h", None),
            (".s", None),
            ("1.2.3s", None),
            ("9999999999999h", None),
            ("-", None),
        ] {
            assert_eq!(duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn percentages_are_of_the_disk() {
        let disk = |total| Disk { total, free: 0 };
        // Half of 100 GiB is 50 GiB: 51, once rounded up, of a GB each.
        assert_eq!(Space::percentage(50).on(disk(100 << 30)), 51_000_000_000);
        assert_eq!(Space::percentage(10).on(disk(1)), 1_000_000_000);
        assert_eq!(Space::percentage(10).on(disk(0)), UNKNOWN_DISK);
        assert_eq!(Space { bytes: 5, percentage: 10 }.on(disk(100 << 30)), 5);
        assert_eq!(Space::default().on(disk(100 << 30)), 0);
    }
}
