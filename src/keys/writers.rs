//! Which releases write an operation the way that a digest proves.
//!
//! What `BuildKit` hashes changed three times (see [`super::dialects`] and [`super::cachemap`]):
//!
//! | release | change |
//! |---|---|
//! | v0.13 | merge and diff are hashed; id and sharing of most cache mounts are left out |
//! | v0.17 | the structs come from another generator: zero indexes are left out, users are spelled in another way |
//! | v0.18 | users are spelled as before v0.17 |
//!
//! A text that was proven and that only some of them write says that one of them wrote it. Most texts say
//! nothing: all releases write them alike.

use std::ops::{BitAnd, BitOr};

/// A set of families of `BuildKit` releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Writers(u8);

/// The first and the last release of each family; `None` where it is open.
const FAMILIES: [(Option<&str>, Option<&str>); 4] = [
    (None, Some("v0.12")),
    (Some("v0.13"), Some("v0.16")),
    (Some("v0.17"), Some("v0.17")),
    (Some("v0.18"), None),
];

impl Writers {
    /// v0.12 and older.
    pub(super) const TO_V0_12: Self = Self(1);
    /// v0.13 to v0.16.
    pub(super) const V0_13_TO_V0_16: Self = Self(1 << 1);
    /// v0.17.
    pub(super) const V0_17: Self = Self(1 << 2);
    /// v0.18 and newer.
    pub(super) const FROM_V0_18: Self = Self(1 << 3);
    /// All of them.
    pub(super) const ANY: Self = Self(0b1111);
    /// v0.13 and newer.
    pub(super) const FROM_V0_13: Self = Self(0b1110);

    /// What every proven key of a cache, one after the other, leaves over: such as `v0.18 or newer`,
    /// or `several releases` where no family can have written all of them. `None` where nothing tells.
    pub(super) fn of_all(keys: impl IntoIterator<Item = Self>) -> Option<String> {
        // What none of them was thought to write says nothing.
        let keys = keys.into_iter().filter(|writers| *writers != Self::default());
        match keys.fold(Self::ANY, |all, one| all & one) {
            Self::ANY => None,
            Self(0) => Some("several releases".to_owned()),
            some => Some(some.describe()),
        }
    }

    fn describe(self) -> String {
        let mut ranges: Vec<String> = Vec::new();
        let has = |at: usize| self.0 & 1 << at != 0;
        let mut at = 0;
        while at < FAMILIES.len() {
            if !has(at) {
                at += 1;
                continue;
            }
            let (first, _) = FAMILIES[at];
            while at + 1 < FAMILIES.len() && has(at + 1) {
                at += 1;
            }
            let (_, last) = FAMILIES[at];
            ranges.push(match (first, last) {
                (Some(first), Some(last)) if first == last => first.to_owned(),
                (Some(first), Some(last)) => format!("{first} to {last}"),
                (Some(first), None) => format!("{first} or newer"),
                (None, Some(last)) => format!("{last} or older"),
                (None, None) => "any release".to_owned(),
            });
            at += 1;
        }
        ranges.join(", or ")
    }
}

impl BitOr for Writers {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Writers {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_keys_leave_over() {
        let gogo = Writers::TO_V0_12 | Writers::V0_13_TO_V0_16;
        let cases: [(&[Writers], Option<&str>); 9] = [
            (&[], None),
            (&[Writers::ANY, Writers::ANY], None),
            (&[Writers::ANY, Writers::FROM_V0_18], Some("v0.18 or newer")),
            (&[Writers::FROM_V0_13, gogo], Some("v0.13 to v0.16")),
            (&[gogo], Some("v0.16 or older")),
            (&[Writers::TO_V0_12, gogo], Some("v0.12 or older")),
            (&[gogo | Writers::FROM_V0_18], Some("v0.16 or older, or v0.18 or newer")),
            (&[Writers::FROM_V0_13, Writers::V0_17 | Writers::FROM_V0_18], Some("v0.17 or newer")),
            (&[Writers::V0_17, Writers::FROM_V0_18], Some("several releases")),
        ];
        for (keys, expected) in cases {
            assert_eq!(Writers::of_all(keys.iter().copied()).as_deref(), expected, "{keys:?}");
        }
        assert_eq!(Writers::V0_17.describe(), "v0.17");
    }
}
