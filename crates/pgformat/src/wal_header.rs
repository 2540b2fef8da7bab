use pgkeep_base::{Classified, Hint, RetryClass};

use crate::wal_records::{u16_at, u32_at, u64_at};
use crate::{Lsn, SegmentName, SegmentSize, SegmentSizeError, Timeline};

/// The size of a segment's first header (`SizeOfXLogLongPHD`).
pub const WAL_HEADER_BYTES: usize = 40;
/// The high byte of `XLOG_PAGE_MAGIC`; the low one counts PostgreSQL's versions.
const MAGIC_HIGH: u16 = 0xD100;
/// `XLP_LONG_HEADER`: the first page of a segment has more in its header.
pub(crate) const LONG_HEADER: u16 = 0x0002;

/// What the first page of a segment of the WAL says (`XLogLongPageHeaderData`, `access/xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// The timeline that the page was written on: the segment's, or an earlier one whose segment was taken over.
    pub timeline: Timeline,
    /// The position of its first byte.
    pub start: Lsn,
    /// Which cluster wrote it.
    pub system_identifier: u64,
    /// The size of segments.
    pub segment_size: SegmentSize,
}

/// The bytes don't begin a segment of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WalHeaderError {
    /// They end too early.
    #[error("it has {0} bytes, fewer than a header")]
    TooShort(usize),
    /// They don't look like it.
    #[error("it doesn't begin as a WAL segment of PostgreSQL does: {0}")]
    Contents(&'static str),
    /// It says that segments have a size that can't be.
    #[error(transparent)]
    SegmentSize(#[from] SegmentSizeError),
    /// It is another one than its name says.
    #[error("it is the segment at {found}, not {name}")]
    OtherPlace {
        /// What it says.
        found: Lsn,
        /// What its name says.
        name: SegmentName,
    },
}

impl Classified for WalHeaderError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(
            "see what PostgreSQL's own program says of it: pg_waldump FILE",
        ))
    }
}

impl WalHeader {
    /// Reads the first bytes of a segment, of which [`WAL_HEADER_BYTES`] are enough.
    ///
    /// # Errors
    /// They aren't those of a segment.
    pub fn parse(contents: &[u8]) -> Result<Self, WalHeaderError> {
        let too_short = WalHeaderError::TooShort(contents.len());
        let header: &[u8; WAL_HEADER_BYTES] = contents.first_chunk().ok_or(too_short)?;
        let (magic, info) = u16_at(header, 0).zip(u16_at(header, 2)).ok_or(too_short)?;
        let u32_at = |at| u32_at(header, at).ok_or(too_short);
        let u64_at = |at| u64_at(header, at).ok_or(too_short);
        if magic & 0xFF00 != MAGIC_HIGH {
            return Err(WalHeaderError::Contents("its magic number is wrong"));
        }
        if info & LONG_HEADER == 0 {
            return Err(WalHeaderError::Contents("it isn't the first page of a segment"));
        }
        let timeline = Timeline::new(u32_at(4)?);
        Ok(Self {
            timeline: timeline.ok_or(WalHeaderError::Contents("its timeline is 0"))?,
            start: Lsn::new(u64_at(8)?),
            system_identifier: u64_at(24)?,
            segment_size: SegmentSize::new(u64::from(u32_at(32)?))?,
        })
    }

    /// Whether it is the header of the segment of this name, which may have been begun on an earlier timeline.
    ///
    /// # Errors
    /// It isn't.
    pub fn check(&self, name: SegmentName) -> Result<(), WalHeaderError> {
        if self.segment_size != name.size() {
            return Err(WalHeaderError::Contents("its segments have another size"));
        }
        if self.start != name.start() {
            return Err(WalHeaderError::OtherPlace {
                found: self.start,
                name,
            });
        }
        if self.timeline > name.timeline() {
            return Err(WalHeaderError::Contents("it is of a later timeline"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of PostgreSQL 17: segment 3 of a cluster with segments of 1 MiB.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0x16, 0xD1, 0x07, 0x00, 1, 0, 0, 0];
        bytes.extend_from_slice(&(3_u64 << 20).to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&7_400_000_000_000_000_001_u64.to_le_bytes());
        bytes.extend_from_slice(&(1_u32 << 20).to_le_bytes());
        bytes.extend_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_tells_its_segment() {
        let header = WalHeader::parse(&sample()).unwrap();
        assert_eq!(header.system_identifier, 7_400_000_000_000_000_001);
        let name = SegmentName::holding(header.timeline, header.start, header.segment_size);
        assert_eq!(name.to_string(), "000000010000000000000003");
        header.check(name).unwrap();
        header.check(name.on(Timeline::new(2).unwrap())).unwrap();
        assert!(header.check(name.next().unwrap()).is_err());
        let larger = SegmentName::holding(header.timeline, header.start, SegmentSize::DEFAULT);
        assert!(header.check(larger).is_err());
    }

    #[test]
    fn other_bytes_are_refused() {
        for length in 0..WAL_HEADER_BYTES {
            assert!(WalHeader::parse(&sample()[..length]).is_err());
        }
        for (at, byte) in [(1, 0xD0), (2, 0), (4, 0), (34, 0)] {
            let mut bytes = sample();
            bytes[at] = byte;
            assert!(WalHeader::parse(&bytes).is_err(), "byte {at}");
        }
    }
}
