//! The fields of a header block.

use super::super::entry::{Device, Entry, Time};
use super::super::error::ArchiveFault;
use super::BLOCK;

/// Which layout a header's second half has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

type Block = [u8; BLOCK];

/// Whether entries of this type are followed by as many bytes as their size says.
pub(super) fn has_content(flag: u8) -> bool {
    !matches!(flag, b'1'..=b'6')
}

/// The size field; checked by [`parse`] already.
pub(super) fn size(block: &Block) -> i64 {
    number(&block[124..136]).unwrap_or(0)
}

/// Takes the fields over into `entry`, but for kind, size and clean path, and tells format and type flag.
pub(super) fn parse(block: &Block, entry: &mut Entry) -> Result<(Format, u8), ArchiveFault> {
    let format = format(block)?;
    let number = |field| number(field).ok_or(ArchiveFault::Number);
    text(&block[..100]).clone_into(&mut entry.name);
    text(&block[157..257]).clone_into(&mut entry.link);
    number(&block[124..136])?;
    entry.mode = number(&block[100..108])?;
    entry.uid = number(&block[108..116])?;
    entry.gid = number(&block[116..124])?;
    entry.mtime = seconds(number(&block[136..148])?);
    entry.atime = None;
    entry.device = Device::default();
    entry.xattrs.clear();
    if format != Format::V7 {
        entry.device = Device { major: number(&block[329..337])?, minor: number(&block[337..345])? };
    }
    match format {
        Format::V7 => {}
        Format::Ustar => prepend(&mut entry.name, text(&block[345..500])),
        Format::Star => {
            prepend(&mut entry.name, text(&block[345..476]));
            entry.atime = Some(seconds(number(&block[476..488])?));
            number(&block[488..500])?;
        }
        Format::Gnu => {
            // Old Go releases wrote a prefix here; whatever is no time and is ASCII is taken for one.
            let time = |field: &[u8]| if field[0] == 0 { Some(None) } else { self::number(field).map(Some) };
            if let (Some(access), Some(_)) = (time(&block[345..357]), time(&block[357..369])) {
                entry.atime = access.map(seconds);
            } else {
                let prefix = text(&block[345..500]);
                if prefix.is_ascii() {
                    prepend(&mut entry.name, prefix);
                }
            }
        }
    }
    Ok((format, block[156]))
}

fn format(block: &Block) -> Result<Format, ArchiveFault> {
    let expected = octal(&block[148..156]).ok_or(ArchiveFault::Checksum)?;
    // The checksum's own field counts as blanks. Old Sun tars summed signed bytes.
    let counted = || block[..148].iter().chain(&block[156..]);
    let blanks = 8 * i64::from(b' ');
    let unsigned = blanks + counted().map(|&b| i64::from(b)).sum::<i64>();
    if expected != unsigned {
        let signed = blanks + counted().map(|&b| i64::from(b.cast_signed())).sum::<i64>();
        if expected != signed {
            return Err(ArchiveFault::Checksum);
        }
    }
    Ok(match &block[257..265] {
        magic if magic[..6] == *b"ustar\0" => {
            if block[508..] == *b"tar\0" {
                Format::Star
            } else {
                Format::Ustar
            }
        }
        b"ustar  \0" => Format::Gnu,
        _ => Format::V7,
    })
}

fn prepend(name: &mut Vec<u8>, prefix: &[u8]) {
    if !prefix.is_empty() {
        name.splice(..0, prefix.iter().copied().chain([b'/']));
    }
}

fn seconds(seconds: i64) -> Time {
    Time { seconds, nanos: 0 }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A number in octal or base-256; `None` where it is neither or does not fit.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let Some(&first) = field.first().filter(|&&b| b & 0x80 != 0) else { return octal(field) };
    // Two's complement: a negative number is the inverse of a positive one.
    let invert = if first & 0x40 == 0 { 0 } else { 0xff };
    let mut value: u64 = 0;
    for (i, &byte) in field.iter().enumerate() {
        let byte = (byte ^ invert) & if i == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if invert == 0 { value } else { !value })
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_padding = |&b: &u8| b == b' ' || b == 0;
    let start = field.iter().position(|b| !is_padding(b));
    let end = field.iter().rposition(|b| !is_padding(b));
    let (Some(start), Some(end)) = (start, end) else { return Some(0) };
    // Fields have at most twelve digits, 36 bits.
    text(&field[start..=end]).iter().try_fold(0_i64, |value, &b| match b {
        b'0'..=b'7' => Some(value << 3 | i64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases: [(&[u8], Option<i64>); 14] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\x00\x00644\0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"64\x0099\0\0\0", Some(0o64)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], Some(i64::MIN)),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
