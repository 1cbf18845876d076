//! Extended headers.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::entry::{Entry, Time};
use super::super::error::ArchiveFault;

/// Prefix of the records that carry extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header that mean something to a layer. The last of several with one key counts.
#[derive(Debug, Default)]
pub(super) struct Pax {
    /// The header's content; all ranges are in it.
    pub(super) text: Vec<u8>,
    path: Option<Range<usize>>,
    link: Option<Range<usize>>,
    uid: Option<Range<usize>>,
    gid: Option<Range<usize>>,
    size: Option<Range<usize>>,
    mtime: Option<Range<usize>>,
    atime: Option<Range<usize>>,
    ctime: Option<Range<usize>>,
    xattrs: BTreeMap<Vec<u8>, Range<usize>>,
    sparse: Sparse,
}

#[derive(Debug, Default)]
struct Sparse {
    major: Option<Range<usize>>,
    minor: Option<Range<usize>>,
    name: Option<Range<usize>>,
    size: Option<Range<usize>>,
    real_size: Option<Range<usize>>,
    blocks: Option<Range<usize>>,
    map: Option<Range<usize>>,
    /// Map of format 0.0, which has a record for each number.
    numbers: Vec<u8>,
    count: usize,
}

impl Pax {
    pub(super) fn clear(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        *self = Self { text, ..Self::default() };
    }

    /// Takes the records out of `text`, forgetting earlier ones.
    pub(super) fn parse(&mut self) -> Result<(), ArchiveFault> {
        let text = std::mem::take(&mut self.text);
        *self = Self::default();
        let result = self.parse_records(&text);
        self.text = text;
        result
    }

    fn parse_records(&mut self, text: &[u8]) -> Result<(), ArchiveFault> {
        let mut at = 0;
        while at < text.len() {
            let (key, value, next) = record(text, at).ok_or(ArchiveFault::Pax)?;
            at = next;
            let bytes = &text[value.clone()];
            let slot = match &text[key.clone()] {
                b"path" => &mut self.path,
                b"linkpath" => &mut self.link,
                b"uid" => &mut self.uid,
                b"gid" => &mut self.gid,
                b"size" => &mut self.size,
                b"mtime" => &mut self.mtime,
                b"atime" => &mut self.atime,
                b"ctime" => &mut self.ctime,
                b"GNU.sparse.major" => &mut self.sparse.major,
                b"GNU.sparse.minor" => &mut self.sparse.minor,
                b"GNU.sparse.name" => &mut self.sparse.name,
                b"GNU.sparse.size" => &mut self.sparse.size,
                b"GNU.sparse.realsize" => &mut self.sparse.real_size,
                b"GNU.sparse.numblocks" => &mut self.sparse.blocks,
                b"GNU.sparse.map" => &mut self.sparse.map,
                key @ (b"GNU.sparse.offset" | b"GNU.sparse.numbytes") => {
                    let is_offset = key.ends_with(b"offset");
                    if is_offset != self.sparse.count.is_multiple_of(2) || bytes.contains(&b',') {
                        return Err(ArchiveFault::Pax);
                    }
                    if self.sparse.count > 0 {
                        self.sparse.numbers.push(b',');
                    }
                    self.sparse.numbers.extend_from_slice(bytes);
                    self.sparse.count += 1;
                    continue;
                }
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.insert(name.to_vec(), value);
                    }
                    continue;
                }
            };
            *slot = Some(value);
        }
        Ok(())
    }

    fn get(&self, range: Option<&Range<usize>>) -> Option<&[u8]> {
        range.map(|range| &self.text[range.clone()]).filter(|value| !value.is_empty())
    }

    /// The path, where there is one.
    pub(super) fn path(&self) -> Option<&[u8]> {
        self.get(self.path.as_ref())
    }

    /// Puts the records into `entry`, and returns the size, which is `size` unless there is a record.
    pub(super) fn merge(&self, entry: &mut Entry, size: i64) -> Result<i64, ArchiveFault> {
        let number = |range: &Option<Range<usize>>, or: i64| match self.get(range.as_ref()) {
            Some(text) => decimal(text).ok_or(ArchiveFault::Pax),
            None => Ok(or),
        };
        let time = |range: &Option<Range<usize>>| match self.get(range.as_ref()) {
            Some(text) => parse_time(text).map(Some).ok_or(ArchiveFault::Pax),
            None => Ok(None),
        };
        if let Some(path) = self.path() {
            path.clone_into(&mut entry.name);
        }
        if let Some(link) = self.get(self.link.as_ref()) {
            link.clone_into(&mut entry.link);
        }
        entry.uid = number(&self.uid, entry.uid)?;
        entry.gid = number(&self.gid, entry.gid)?;
        entry.mtime = time(&self.mtime)?.unwrap_or(entry.mtime);
        entry.atime = time(&self.atime)?.or(entry.atime);
        time(&self.ctime)?;
        for (name, value) in &self.xattrs {
            entry.xattrs.insert(name.clone(), self.text[value.clone()].to_vec());
        }
        number(&self.size, size)
    }

    /// The version of the sparse format, where the records tell it.
    pub(super) fn sparse_version(&self) -> (&[u8], &[u8]) {
        let text = |range: &Option<Range<usize>>| self.get(range.as_ref()).unwrap_or_default();
        (text(&self.sparse.major), text(&self.sparse.minor))
    }

    /// The real name of a sparse file.
    pub(super) fn sparse_name(&self) -> Option<&[u8]> {
        self.get(self.sparse.name.as_ref())
    }

    /// The size of a sparse file with its holes, as text.
    pub(super) fn sparse_size(&self) -> Option<&[u8]> {
        self.get(self.sparse.size.as_ref()).or_else(|| self.get(self.sparse.real_size.as_ref()))
    }

    /// The number of entries in the map, as text.
    pub(super) fn sparse_blocks(&self) -> &[u8] {
        self.get(self.sparse.blocks.as_ref()).unwrap_or_default()
    }

    /// The map of formats 0.0 and 0.1, as text.
    pub(super) fn sparse_map(&self) -> &[u8] {
        if self.sparse.count > 0 {
            return &self.sparse.numbers;
        }
        self.get(self.sparse.map.as_ref()).unwrap_or_default()
    }
}

/// Splits the record at `at`, `"<length> <key>=<value>\n"`, into key, value and the next record's position.
fn record(text: &[u8], at: usize) -> Option<(Range<usize>, Range<usize>, usize)> {
    let rest = &text[at..];
    let blank = rest.iter().position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&rest[..blank])?).ok()?;
    if length < 5 || length > rest.len() || length <= blank + 1 || rest[length - 1] != b'\n' {
        return None;
    }
    let body = &rest[blank + 1..length - 1];
    let equals = body.iter().position(|&b| b == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let text_value = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    if key.is_empty() || (if text_value { value } else { key }).contains(&0) {
        return None;
    }
    let start = at + blank + 1;
    Some((start..start + equals, start + equals + 1..at + length - 1, at + length))
}

/// A decimal number with an optional sign.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time as seconds with an optional fraction; digits beyond nanoseconds are cut.
fn parse_time(text: &[u8]) -> Option<Time> {
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().map(|b| u32::from(b - b'0')).chain(std::iter::repeat(0));
    let nanos = digits.take(9).fold(0, |nanos, digit| nanos * 10 + digit);
    Some(if whole[0] == b'-' && nanos > 0 {
        Time { seconds: seconds.wrapping_sub(1), nanos: 1_000_000_000 - nanos }
    } else {
        Time { seconds, nanos }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |seconds, nanos| Some(Time { seconds, nanos });
        let cases: [(&str, Option<Time>); 13] = [
            ("1", at(1, 0)),
            ("+1", at(1, 0)),
            ("1.", at(1, 0)),
            ("1.5", at(1, 500_000_000)),
            ("1.000000001", at(1, 1)),
            ("1.0000000019", at(1, 1)),
            ("-1", at(-1, 0)),
            ("-1.25", at(-2, 750_000_000)),
            ("-0.5", at(-1, 500_000_000)),
            ("", None),
            (".5", None),
            ("1.5x", None),
            ("9223372036854775808", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn records() {
        let parse = |text: &[u8]| {
            let mut pax = Pax { text: text.to_vec(), ..Pax::default() };
            pax.parse().map(|()| pax.path().map(<[u8]>::to_vec))
        };
        assert_eq!(parse(b"8 path=a\n"), Err(ArchiveFault::Pax));
        assert_eq!(parse(b"9 path=a\n"), Ok(Some(b"a".to_vec())));
        assert_eq!(parse(b"+9 path=a\n").ok(), None);
        assert_eq!(parse(b"12 path=a\n").ok(), None);
        assert_eq!(parse(b"011 path=a\n"), Ok(Some(b"a".to_vec())));
        // A value may hold newlines and what looks like another record.
        assert_eq!(parse(b"34 SCHILY.xattr.user.a=\n9 path=b\n\n").ok(), Some(None));
        assert_eq!(parse(b"9 path=a\n9 path=b\n"), Ok(Some(b"b".to_vec())));
        // The last one counts even where it is empty.
        assert_eq!(parse(b"9 path=a\n8 path=\n"), Ok(None));
        assert_eq!(parse(b"9 path=\0\n"), Err(ArchiveFault::Pax));
        assert_eq!(parse(b"6 =abc\n").ok(), None);
        assert_eq!(parse(b"").ok(), Some(None));
    }
}
