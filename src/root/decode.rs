//! Encodings that the databases share, read without trust.
//!
//! ```text
//! varint     Go binary.PutVarint: zigzag, 7 bits per byte, low ones first     sizes, inodes, versions
//! uvarint    Go binary.PutUvarint                                             snapshot ids
//! time       Go time.MarshalBinary: 0x01 | i64 BE seconds since year 1 | i32 BE nanoseconds
//!            | i16 BE zone minutes (-1: UTC); version 0x02 has one byte of zone seconds more
//! ```

/// A whole uvarint at the start of `bytes`, and what follows it.
pub(super) fn uvarint_prefix(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        let low = u64::from(byte & 0x7f);
        let shift = 7 * u32::try_from(index).ok()?;
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

/// A uvarint that fills `bytes`.
pub(super) fn uvarint(bytes: &[u8]) -> Option<u64> {
    uvarint_prefix(bytes).filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value)
}

/// A zigzag varint that fills `bytes`.
pub(super) fn varint(bytes: &[u8]) -> Option<i64> {
    let raw = uvarint(bytes)?;
    let half = i64::try_from(raw >> 1).ok()?;
    Some(if raw & 1 == 0 { half } else { !half })
}

/// Whether `bytes` are a Go time.
pub(super) fn is_time(bytes: &[u8]) -> bool {
    let right_length = match bytes.first() {
        Some(1) => bytes.len() == 15,
        Some(2) => bytes.len() == 16,
        _ => false,
    };
    let nanoseconds = bytes.get(9..13).and_then(|n| <[u8; 4]>::try_from(n).ok()).map(i32::from_be_bytes);
    right_length && nanoseconds.is_some_and(|n| (0..1_000_000_000).contains(&n))
}

/// The two ids of a key of the snapshotter's bucket `parents`.
pub(super) fn parents_key(key: &[u8]) -> Option<(u64, u64)> {
    let (parent, rest) = uvarint_prefix(key)?;
    let child = uvarint(rest.strip_prefix(&[0])?)?;
    Some((parent, child))
}

/// Whether `id` is 25 characters of `[a-z0-9]`, as `identity.NewID` of `BuildKit` makes them.
pub(crate) fn is_identity(id: &str) -> bool {
    id.len() == 25 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_as_go_writes_them() {
        let cases: [(&[u8], Option<i64>); 9] = [
            (&[0], Some(0)),
            (&[1], Some(-1)),
            (&[8], Some(4)),
            (&[0xc0, 0x07], Some(480)),
            (&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(i64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Some(i64::MIN)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None),
            (&[0x80], None),
            (&[0, 0], None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(varint(bytes), expected, "{bytes:x?}");
        }
        assert_eq!(uvarint(&[]), None);
        assert_eq!(uvarint(&[0x80; 64]), None);
    }

    #[test]
    fn times_as_go_writes_them() {
        let time = [1, 0, 0, 0, 0x0e, 0xe2, 0x92, 0xcd, 0x7e, 0x06, 0x4a, 0x56, 0xa1, 0xff, 0xff];
        assert!(is_time(&time));
        let mut late = time;
        late[9] = 0x7f;
        let mut future = time;
        future[0] = 3;
        for bad in [&late[..], &future, &time[..14], &[], &[1; 16]] {
            assert!(!is_time(bad), "{bad:x?}");
        }
    }

    #[test]
    fn parents_keys() {
        assert_eq!(parents_key(&[4, 0, 6]), Some((4, 6)));
        assert_eq!(parents_key(&[0x80, 1, 0, 0x81, 1]), Some((128, 129)));
        for bad in [&[][..], &[4], &[4, 0], &[4, 1, 6], &[4, 0, 6, 6]] {
            assert_eq!(parents_key(bad), None, "{bad:?}");
        }
    }
}
