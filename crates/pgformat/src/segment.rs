use std::fmt;

use pgkeep_base::{Classified, Hint, RetryClass};

use crate::{Lsn, Timeline};

/// The size of the WAL's files: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`, `access/xlog_internal.h`),
/// chosen by `initdb --wal-segsize`, in `pg_control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

/// No server has segments of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("WAL segments of {0} bytes: PostgreSQL has powers of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError(u64);

impl Classified for SegmentSizeError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }
}

impl SegmentSize {
    /// What `initdb` takes if nothing else is said: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A size in bytes.
    ///
    /// # Errors
    /// No server can have it.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(Self(size)),
            _ => Err(SegmentSizeError(bytes)),
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// `XLogSegmentsPerXLogId`: how many segments have the same middle part of the name.
    const fn segments_for_each_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// A segment of the WAL: which piece of it, on which timeline (`XLogFileName`, `access/xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentName {
    timeline: Timeline,
    number: u64,
    size: SegmentSize,
}

impl SegmentName {
    /// The segment that holds this byte (`XLByteToSeg`). A position at a segment's edge is its first byte.
    pub fn holding(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self {
            timeline,
            number: lsn.as_u64() / size.bytes(),
            size,
        }
    }

    /// The segment whose last byte is the one before this position (`XLByteToPrevSeg`): the last one that is needed to
    /// come to it.
    pub fn before(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self::holding(timeline, Lsn::new(lsn.as_u64().saturating_sub(1)), size)
    }

    /// Reads 24 hexadecimal digits, as `XLogFromFileName` does; the middle and last part must fit the size.
    ///
    /// # Errors
    /// No segment of this size has that name.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, WalFileNameError> {
        match WalFileName::parse(name, size)? {
            WalFileName::Segment(segment) => Ok(segment),
            _ => Err(WalFileNameError::new(name, size)),
        }
    }

    /// Its timeline.
    pub fn timeline(self) -> Timeline {
        self.timeline
    }

    /// Its number in the WAL, from 0; the first that a cluster has is 1.
    pub fn number(self) -> u64 {
        self.number
    }

    /// The size of it.
    pub fn size(self) -> SegmentSize {
        self.size
    }

    /// Its first byte's position.
    pub fn start(self) -> Lsn {
        Lsn::new(self.number * self.size.bytes())
    }

    /// The position behind its last byte; `None` for the very last of all, which ends where positions do.
    pub fn end(self) -> Option<Lsn> {
        self.start().checked_add(self.size.bytes())
    }

    /// How far into it a position lies (`XLogSegmentOffset`), if it does.
    pub fn offset_of(self, lsn: Lsn) -> Option<u64> {
        lsn.bytes_since(self.start())
            .filter(|offset| *offset < self.size.bytes())
    }

    /// The next one on the same timeline.
    pub fn next(self) -> Option<Self> {
        self.end().map(|end| Self::holding(self.timeline, end, self.size))
    }

    /// The same piece of the WAL on another timeline.
    #[must_use]
    pub fn on(self, timeline: Timeline) -> Self {
        Self { timeline, ..self }
    }

    /// The middle 8 digits of its name.
    pub fn log(self) -> u64 {
        self.number / self.size.segments_for_each_log()
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segment = self.number % self.size.segments_for_each_log();
        f.pad(&format!(
            "{:08X}{:08X}{segment:08X}",
            self.timeline.as_u32(),
            self.log()
        ))
    }
}

/// A file that PostgreSQL archives (`access/xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalFileName {
    /// A whole segment (`IsXLogFileName`).
    Segment(SegmentName),
    /// The last segment of a timeline that was left in the middle of it (`IsPartialXLogFileName`).
    Partial(SegmentName),
    /// The history of a timeline (`IsTLHistoryFileName`).
    History(Timeline),
    /// What a backup says of itself (`IsBackupHistoryFileName`); it begins at this byte of the segment.
    Backup {
        /// Where the backup begins.
        segment: SegmentName,
        /// The offset of its start in that segment.
        offset: u32,
    },
}

/// The name is none that PostgreSQL gives to a file of WAL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is not the name of a WAL file with segments of {} bytes", size.bytes())]
pub struct WalFileNameError {
    name: String,
    size: SegmentSize,
}

impl WalFileNameError {
    fn new(name: &str, size: SegmentSize) -> Self {
        Self {
            name: name.to_owned(),
            size,
        }
    }
}

impl Classified for WalFileNameError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Usage
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(
            "give the name that PostgreSQL gives (%f in archive_command and restore_command); the size of segments is what \
             SHOW wal_segment_size says",
        ))
    }
}

impl WalFileName {
    /// Reads a name, without a path.
    ///
    /// # Errors
    /// PostgreSQL gives no such name.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, WalFileNameError> {
        Self::read(name, size).ok_or_else(|| WalFileNameError::new(name, size))
    }

    fn read(name: &str, size: SegmentSize) -> Option<Self> {
        let (digits, suffix) = match name.split_once('.') {
            Some((digits, suffix)) => (digits, Some(suffix)),
            None => (name, None),
        };
        match suffix {
            None => segment(digits, size).map(Self::Segment),
            Some("partial") => segment(digits, size).map(Self::Partial),
            Some("history") => Timeline::new(part(digits)?).map(Self::History),
            Some(suffix) => {
                let offset = part(suffix.strip_suffix(".backup")?)?;
                let segment = segment(digits, size).filter(|_| u64::from(offset) < size.bytes())?;
                Some(Self::Backup { segment, offset })
            }
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Segment(segment) => segment.to_string(),
            Self::Partial(segment) => format!("{segment}.partial"),
            Self::History(timeline) => format!("{:08X}.history", timeline.as_u32()),
            Self::Backup { segment, offset } => format!("{segment}.{offset:08X}.backup"),
        };
        f.pad(&text)
    }
}

/// Eight hexadecimal digits, capitals as PostgreSQL writes them.
fn part(digits: &str) -> Option<u32> {
    let well_formed = digits.len() == 8
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    well_formed
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

fn segment(digits: &str, size: SegmentSize) -> Option<SegmentName> {
    let timeline = Timeline::new(part(digits.get(..8)?)?)?;
    let log = u64::from(part(digits.get(8..16)?)?);
    let segment = u64::from(part(digits.get(16..)?)?);
    (segment < size.segments_for_each_log()).then(|| SegmentName {
        timeline,
        number: log * size.segments_for_each_log() + segment,
        size,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20..=30_u32).prop_map(|shift| SegmentSize::new(1 << shift).unwrap())
    }

    #[test]
    fn names_are_those_of_the_server() {
        let size = SegmentSize::DEFAULT;
        let name = SegmentName::holding(Timeline::new(10).unwrap(), Lsn::new(0x2_FF00_0028), size);
        assert_eq!(name.to_string(), "0000000A00000002000000FF");
        assert_eq!(name.next().unwrap().to_string(), "0000000A0000000300000000");
        assert_eq!((name.log(), name.number()), (2, 0x2FF));
        assert_eq!(name.offset_of(Lsn::new(0x2_FF00_0028)), Some(0x28));
        assert_eq!(name.offset_of(Lsn::new(0x3_0000_0000)), None);
        assert_eq!(name.on(Timeline::FIRST).to_string(), "0000000100000002000000FF");
        let edge = name.end().unwrap();
        assert_eq!(SegmentName::before(name.timeline(), edge, size), name);
        assert_eq!(
            SegmentName::holding(name.timeline(), edge, size),
            name.next().unwrap()
        );
        // 64 MiB: 64 segments for each log.
        let large = SegmentSize::new(64 << 20).unwrap();
        let name = SegmentName::holding(Timeline::FIRST, Lsn::new(0x1_0000_0000 - 1), large);
        assert_eq!(name.to_string(), "00000001000000000000003F");
        assert_eq!(name.next().unwrap().to_string(), "000000010000000100000000");
    }

    #[test]
    fn the_last_segment_of_all_has_no_next() {
        let last = SegmentName::holding(Timeline::FIRST, Lsn::new(u64::MAX), SegmentSize::DEFAULT);
        assert_eq!(last.to_string(), "00000001FFFFFFFF000000FF");
        assert_eq!((last.end(), last.next()), (None, None));
    }

    #[test]
    fn what_no_server_names_is_refused() {
        let size = SegmentSize::DEFAULT;
        for wrong in [
            "",
            "000000000000000100000001",
            "000000010000000000000100",
            "00000001000000000000001",
            "0000000100000000000000010",
            "00000001000000000000000a",
            "000000010000000000000001.done",
            "000000010000000000000001.partial.",
            "000000010000000000000001.01000000.backup",
            "000000010000000000000001.28.backup",
            "00000000.history",
            "000000020000000000000001.history",
            "0000000é0000000000000001",
        ] {
            assert!(WalFileName::parse(wrong, size).is_err(), "{wrong}");
        }
        assert!(SegmentName::parse("00000002.history", size).is_err());
        for bytes in [0, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_read_as_it_was_written(timeline in 1..=u32::MAX, lsn: u64, size in sizes()) {
            let (timeline, lsn) = (Timeline::new(timeline).unwrap(), Lsn::new(lsn));
            let segment = SegmentName::holding(timeline, lsn, size);
            let offset = u32::try_from(segment.offset_of(lsn).unwrap()).unwrap();
            prop_assert_eq!(segment.start().checked_add(u64::from(offset)), Some(lsn));
            for name in [
                WalFileName::Segment(segment),
                WalFileName::Partial(segment),
                WalFileName::History(timeline),
                WalFileName::Backup { segment, offset },
            ] {
                prop_assert_eq!(WalFileName::parse(&name.to_string(), size), Ok(name));
            }
        }

        #[test]
        fn the_next_segment_begins_where_one_ends(lsn in 0..=u64::MAX - (1 << 31), size in sizes()) {
            let segment = SegmentName::holding(Timeline::FIRST, Lsn::new(lsn), size);
            let next = segment.next().unwrap();
            prop_assert_eq!(segment.end(), Some(next.start()));
            prop_assert!(segment.to_string() < next.to_string());
        }
    }
}
