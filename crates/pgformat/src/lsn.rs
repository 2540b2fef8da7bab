use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use pgkeep_base::{Classified, Hint, RetryClass};

/// A position in the WAL: bytes since its beginning (`XLogRecPtr`, `access/xlogdefs.h`), written as PostgreSQL writes it
/// up to version 18, `16/B374D848` (`LSN_FORMAT_ARGS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `InvalidXLogRecPtr`: no position. No record can be there.
    pub const INVALID: Self = Self(0);

    /// The position so many bytes from the beginning.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the beginning.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Is it any position at all?
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// The position so many bytes further, if there is one.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// How many bytes it is behind an earlier position; `None` if that one isn't earlier, nor the same.
    pub fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

/// The text is no position in the WAL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a position in the WAL: write two hexadecimal numbers, such as 16/B374D848")]
pub struct ParseLsnError(String);

impl Classified for ParseLsnError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Usage
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(
            "ask the server for its own: SELECT pg_current_wal_lsn()",
        ))
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// As `pg_lsn_in_internal` (`utils/adt/pg_lsn.c`): one to eight digits on both sides.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let well_formed =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            well_formed
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// A timeline's number (`TimeLineID`), never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(NonZeroU32);

impl Timeline {
    /// The one that a new cluster begins with (`BootstrapTimeLineID`).
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline of this number; 0 is none.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Its number.
    pub const fn as_u32(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is no timeline's number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a timeline: write its number, from 1 on")]
pub struct ParseTimelineError(String);

impl Classified for ParseTimelineError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Usage
    }
}

impl FromStr for Timeline {
    type Err = ParseTimelineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Rust's own parser takes a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number
            .and_then(Self::new)
            .ok_or_else(|| ParseTimelineError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_are_written_as_the_server_writes_them() {
        for (bytes, text) in [
            (0, "0/0"),
            (0x16_B374_D848, "16/B374D848"),
            (0x1_0000_0028, "1/28"),
            (u64::MAX, "FFFFFFFF/FFFFFFFF"),
        ] {
            assert_eq!(Lsn::new(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn::new(bytes)));
        }
        assert_eq!("a/00000028".parse(), Ok(Lsn::new(0xA_0000_0028)));
        for wrong in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "1/2/3",
            "123456789/0",
            "0/123456789",
            "+1/1",
            "g/1",
            " 1/1",
        ] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn distances_do_not_run_over() {
        let lsn = Lsn::new(100);
        assert_eq!(lsn.bytes_since(Lsn::new(40)), Some(60));
        assert_eq!(lsn.bytes_since(Lsn::new(101)), None);
        assert_eq!(Lsn::new(u64::MAX).checked_add(1), None);
        assert_eq!(lsn.checked_add(1), Some(Lsn::new(101)));
    }

    #[test]
    fn timelines_are_numbers_from_1_on() {
        assert_eq!("1".parse(), Ok(Timeline::FIRST));
        for wrong in ["", "0", "-1", "+1", "4294967296", "x"] {
            assert!(wrong.parse::<Timeline>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_position_is_read_as_it_was_written(bytes: u64) {
            prop_assert_eq!(Lsn::new(bytes).to_string().parse(), Ok(Lsn::new(bytes)));
        }
    }
}
