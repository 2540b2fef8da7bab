use std::fmt;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, WalFileName};

use super::HISTORY_BYTES_MAX;
use super::coverage::digits;
use crate::layout::SEALED_SUFFIXES;

/// An object with WAL. Shown, it is the object's name without its suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalObject {
    /// A file as PostgreSQL has it.
    File(WalFileName),
    /// Bytes of a segment that was still growing; made by [`WalObject::part`].
    Part {
        /// The segment.
        segment: SegmentName,
        /// The first byte's offset.
        from: u32,
        /// The offset behind the last byte.
        to: u32,
    },
}

/// The name is none of an object with WAL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no object with WAL")]
pub struct WalObjectError(String);

impl Classified for WalObjectError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }
}

impl WalObject {
    /// A segment's bytes [from, to), if it has them.
    pub fn part(segment: SegmentName, from: u64, to: u64) -> Option<Self> {
        if from >= to || to > segment.size().bytes() {
            return None;
        }
        Some(Self::Part {
            segment,
            from: u32::try_from(from).ok()?,
            to: u32::try_from(to).ok()?,
        })
    }

    /// Reads an object's name, with its suffix and without its folder.
    ///
    /// # Errors
    /// It is none of an object with WAL in segments of this size.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, WalObjectError> {
        Self::read(name, size).ok_or_else(|| WalObjectError(name.to_owned()))
    }

    fn read(name: &str, size: SegmentSize) -> Option<Self> {
        let name = SEALED_SUFFIXES
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))?;
        let Some((from, to)) = name.split_once('-') else {
            return WalFileName::parse(name, size).ok().map(Self::File);
        };
        let (segment, from) = from.split_once('.')?;
        let segment = SegmentName::parse(segment, size).ok()?;
        Self::part(segment, u64::from(digits(from)?), u64::from(digits(to)?))
    }

    /// The segment that it is of; `None` for a history.
    pub fn segment(&self) -> Option<SegmentName> {
        match self {
            Self::Part { segment, .. }
            | Self::File(
                WalFileName::Segment(segment)
                | WalFileName::Partial(segment)
                | WalFileName::Backup { segment, .. },
            ) => Some(*segment),
            Self::File(WalFileName::History(_)) => None,
        }
    }

    /// Which bytes of its segment it holds, if it is one that recovery reads.
    pub fn offsets(&self) -> Option<(u64, u64)> {
        match self {
            Self::Part { from, to, .. } => Some((u64::from(*from), u64::from(*to))),
            Self::File(WalFileName::Segment(segment)) => Some((0, segment.size().bytes())),
            Self::File(_) => None,
        }
    }

    /// The positions that it holds, if it is one that recovery reads.
    pub fn positions(&self) -> Option<(Lsn, Lsn)> {
        let ((from, to), segment) = self.offsets().zip(self.segment())?;
        let start = segment.start();
        // The very last segment of all ends where positions do.
        let end = start.checked_add(to).unwrap_or(Lsn::new(u64::MAX));
        Some((start.checked_add(from)?, end))
    }

    /// How many bytes its contents have, where the name tells.
    pub(super) fn plain_bytes(&self) -> Option<u64> {
        match self {
            Self::File(WalFileName::Partial(segment)) => Some(segment.size().bytes()),
            _ => self.offsets().map(|(from, to)| to - from),
        }
    }

    /// The most bytes that its contents may have.
    pub(super) fn plain_bytes_max(&self) -> u64 {
        self.plain_bytes().unwrap_or(HISTORY_BYTES_MAX)
    }
}

impl fmt::Display for WalObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => name.fmt(f),
            Self::Part { segment, from, to } => write!(f, "{segment}.{from:08X}-{to:08X}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let size = SegmentSize::DEFAULT;
        for name in [
            "000000010000000000000003",
            "000000010000000000000003.00000000-00002000",
            "000000010000000000000003.00FF0000-01000000",
            "000000010000000000000003.partial",
            "000000010000000000000003.00000028.backup",
            "00000002.history",
        ] {
            for suffix in SEALED_SUFFIXES {
                let object = WalObject::parse(&format!("{name}{suffix}"), size).unwrap();
                assert_eq!(object.to_string(), name);
            }
            assert!(WalObject::parse(name, size).is_err(), "{name}: no suffix");
        }
        for strange in [
            "000000010000000000000003.00000000-01000001.zst",
            "000000010000000000000003.00000020-00000020.zst",
            "000000010000000000000003.00000000-0000200.zst",
            "000000010000000000000003.00000000-0000200a.zst",
            "segment_bytes",
            ".zst",
        ] {
            assert!(WalObject::parse(strange, size).is_err(), "{strange}");
        }
    }
}
