//! Walking over the records of the WAL, as far as recovery targets need it: where records begin and end, and when
//! transactions ended (`access/transam/xlogreader.c`, `access/xlogrecord.h`, `access/xlog_internal.h`, `access/xact.h`).

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

use crate::wal_header::{LONG_HEADER, WAL_HEADER_BYTES};
use crate::{Lsn, SegmentName};

/// The size of the WAL's pages (`XLOG_BLCKSZ`) in any server that isn't built in another way, in bytes.
const WAL_PAGE_BYTES: usize = 8192;
const SHORT_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 24;
/// Where a record's header has its transaction.
const XID_AT: usize = 4;
/// Where a record's header has its CRC; all before it belongs to what is summed.
const CRC_AT: usize = 20;
/// `XLP_FIRST_IS_CONTRECORD`
const CONTINUED: u16 = 0x0001;
/// `XLogRecordMaxSize`
const RECORD_BYTES_MAX: usize = 1020 << 20;
/// So much of a record is kept: all that is looked at stands at its beginning.
const KEPT_BYTES: usize = 4096;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
/// `RM_TBLSPC_ID` (`access/rmgrlist.h`)
const RM_TABLESPACE: u8 = 5;
/// `XLOG_TBLSPC_CREATE`, and `xl_tblspc_create_rec`: the OID, then the path (`commands/tablespace.h`).
const XLOG_TABLESPACE_CREATE: u8 = 0x00;
const TABLESPACE_PATH_AT: usize = 4;
/// `XLOG_SWITCH`: nothing follows it in its segment.
const XLOG_SWITCH: u8 = 0x40;
/// `XLOG_RESTORE_POINT` (`catalog/pg_control.h`)
const XLOG_RESTORE_POINT: u8 = 0x70;
/// `xl_restore_point`: the time, then the name.
const RESTORE_POINT_NAME_AT: usize = 8;
const RESTORE_POINT_NAME_BYTES: usize = 64;
/// `XLR_INFO_MASK` is what the resource manager doesn't have.
const INFO_BITS: u8 = 0xf0;
/// `XLOG_XACT_OPMASK`
const XACT_OPERATION: u8 = 0x70;
/// `XLOG_XACT_COMMIT`, `_ABORT`, `_COMMIT_PREPARED`, `_ABORT_PREPARED`: their data begins with the time.
const XACT_ENDS: [u8; 4] = [0x00, 0x20, 0x30, 0x40];
/// `XLR_BLOCK_ID_DATA_SHORT`, `_DATA_LONG`, `XLR_BLOCK_ID_ORIGIN`, `_TOPLEVEL_XID`
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOPLEVEL_XID: u8 = 252;

/// A record that is whole and whose CRC is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRecord {
    /// Its first byte.
    pub start: Lsn,
    /// Behind its last byte, without what fills it up.
    pub end: Lsn,
    /// Of a record that ends a transaction, committed or not: when, in microseconds since 2000.
    pub transaction_end: Option<i64>,
    /// Of such a record: which transaction.
    pub transaction: Option<u32>,
    /// Of a record that `pg_create_restore_point` wrote: its name.
    pub restore_point: Option<RestorePointName>,
    /// Of a record that a `CREATE TABLESPACE` wrote: its OID and its directory; that is empty for one in the data directory.
    pub tablespace: Option<(u32, Vec<u8>)>,
}

/// The name of a restore point: at most 63 bytes (`MAXFNAMELEN` with its end, `access/xlog_internal.h`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RestorePointName([u8; RESTORE_POINT_NAME_BYTES]);

impl RestorePointName {
    /// Its bytes, in any encoding.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| *byte == 0);
        self.0.get(..end.unwrap_or(self.0.len())).unwrap_or_default()
    }
}

impl fmt::Debug for RestorePointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_bytes().escape_ascii().to_string())
    }
}

/// A record that isn't whole yet.
struct Partial {
    start: Lsn,
    /// Its first bytes.
    kept: Vec<u8>,
    /// How many bytes of it came.
    length: usize,
    crc: Digest,
}

/// Walks over segments one after another. What it is given begins anywhere: it finds the first record that begins there.
pub struct WalWalker {
    partial: Option<Partial>,
    next_segment: Option<SegmentName>,
    /// Nothing more is to be expected: there was something that is no record.
    ended: bool,
}

impl Default for WalWalker {
    fn default() -> Self {
        Self::new()
    }
}

impl WalWalker {
    /// Before the first segment.
    pub fn new() -> Self {
        Self {
            partial: None,
            next_segment: None,
            ended: false,
        }
    }

    /// Whether what was given has come to an end of the WAL: there are bytes that are no record. What follows them can't be
    /// replayed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Walks over a whole segment. One that doesn't follow the last begins anew.
    pub fn segment(&mut self, name: SegmentName, bytes: &[u8], mut found: impl FnMut(WalRecord)) {
        // A later timeline goes on where the one before was left.
        if self.next_segment.map(|next| next.on(name.timeline())) != Some(name) {
            *self = Self::new();
        }
        self.next_segment = name.next();
        let mut at = name.start();
        for page in bytes.chunks(WAL_PAGE_BYTES) {
            if self.ended {
                return;
            }
            match self.page(at, page, &mut found) {
                Some(Rest::Goes) => {}
                // The rest of the segment is empty.
                Some(Rest::Skipped) => return,
                None => {
                    self.ended = true;
                    self.partial = None;
                }
            }
            let Some(next) = at.checked_add(WAL_PAGE_BYTES as u64) else {
                return;
            };
            at = next;
        }
    }

    /// `None` at the end of the WAL.
    fn page(&mut self, at: Lsn, page: &[u8], found: &mut impl FnMut(WalRecord)) -> Option<Rest> {
        let info = u16_at(page, 2)?;
        let address = u64_at(page, 8)?;
        if u16_at(page, 0)? == 0 || address != at.as_u64() {
            return None;
        }
        let remaining = u32_at(page, 16)? as usize;
        let mut offset = match info & LONG_HEADER {
            0 => SHORT_HEADER_BYTES,
            _ => WAL_HEADER_BYTES,
        };
        match (info & CONTINUED != 0, &self.partial) {
            (true, Some(_)) => {}
            // Its beginning lies before what was given.
            (true, None) => {
                if remaining > page.len().saturating_sub(offset) {
                    return Some(Rest::Goes);
                }
                offset = aligned(offset + remaining);
            }
            // A record that was never completed: another one took its place (XLP_FIRST_IS_OVERWRITE_CONTRECORD).
            (false, _) => self.partial = None,
        }
        while offset < page.len() {
            let here = page.get(offset..)?;
            // A header is never cut before its length.
            if self.partial.is_none() && u32_at(here, 0)? == 0 {
                return None;
            }
            let start = at.checked_add(offset as u64)?;
            let partial = self.partial.get_or_insert_with(|| Partial::new(start));
            let taken = partial.take(here)?;
            offset += taken;
            if !partial.is_whole() {
                return Some(Rest::Goes);
            }
            let end = at.checked_add(offset as u64)?;
            let record = self.partial.take()?;
            found(record.check(end)?);
            if record.is_switch() {
                return Some(Rest::Skipped);
            }
            offset = aligned(offset);
        }
        Some(Rest::Goes)
    }
}

/// What is to be done with what follows in the segment.
enum Rest {
    Goes,
    Skipped,
}

impl Partial {
    fn new(start: Lsn) -> Self {
        Self {
            start,
            kept: Vec::new(),
            length: 0,
            crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    fn total(&self) -> Option<usize> {
        u32_at(&self.kept, 0).map(|total| total as usize)
    }

    fn is_whole(&self) -> bool {
        self.length >= RECORD_HEADER_BYTES && self.total().is_some_and(|total| self.length >= total)
    }

    /// Takes what belongs to it off the bytes; returns how many. `None`: it can't be a record.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let total = match self.total() {
            Some(total) => total,
            None => u32_at(bytes, 0)? as usize,
        };
        if !(RECORD_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&total) {
            return None;
        }
        let taken = bytes.get(..bytes.len().min(total.checked_sub(self.length)?))?;
        let room = KEPT_BYTES.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(taken.get(..taken.len().min(room))?);
        // The header is summed at the end.
        let in_header = RECORD_HEADER_BYTES.saturating_sub(self.length).min(taken.len());
        self.crc.update(taken.get(in_header..)?);
        self.length += taken.len();
        Some(taken.len())
    }

    /// `None` if its CRC is wrong.
    fn check(&self, end: Lsn) -> Option<WalRecord> {
        let mut crc = self.crc;
        crc.update(self.kept.get(..CRC_AT)?);
        if crc.finalize() != u64::from(u32_at(&self.kept, CRC_AT)?) {
            return None;
        }
        Some(WalRecord {
            start: self.start,
            end,
            transaction_end: self.transaction_end(),
            transaction: self.transaction_end().and_then(|_| u32_at(&self.kept, XID_AT)),
            restore_point: self.restore_point(),
            tablespace: self.tablespace(),
        })
    }

    fn info(&self) -> (u8, u8) {
        let byte = |at| self.kept.get(at).copied().unwrap_or(u8::MAX);
        (byte(17), byte(16))
    }

    fn is_switch(&self) -> bool {
        let (manager, info) = self.info();
        manager == RM_XLOG && info & INFO_BITS == XLOG_SWITCH
    }

    fn transaction_end(&self) -> Option<i64> {
        let (manager, info) = self.info();
        if manager != RM_XACT || !XACT_ENDS.contains(&(info & XACT_OPERATION)) {
            return None;
        }
        u64_at(self.data()?, 0).map(u64::cast_signed)
    }

    fn restore_point(&self) -> Option<RestorePointName> {
        let (manager, info) = self.info();
        if manager != RM_XLOG || info & INFO_BITS != XLOG_RESTORE_POINT {
            return None;
        }
        let name = self.data()?.get(RESTORE_POINT_NAME_AT..)?;
        name.first_chunk().copied().map(RestorePointName)
    }

    fn tablespace(&self) -> Option<(u32, Vec<u8>)> {
        let (manager, info) = self.info();
        if manager != RM_TABLESPACE || info & INFO_BITS != XLOG_TABLESPACE_CREATE {
            return None;
        }
        let data = self.data()?;
        let path = data.get(TABLESPACE_PATH_AT..)?;
        let end = path.iter().position(|byte| *byte == 0)?;
        Some((u32_at(data, 0)?, path.get(..end)?.to_vec()))
    }

    /// What a record holds that refers to no blocks, as far as it is kept.
    fn data(&self) -> Option<&[u8]> {
        let mut at = RECORD_HEADER_BYTES;
        loop {
            match *self.kept.get(at)? {
                ORIGIN => at += 1 + 2,
                TOPLEVEL_XID => at += 1 + 4,
                // It is the last thing before the data.
                DATA_SHORT => return self.kept.get(at + 2..),
                DATA_LONG => return self.kept.get(at + 5..),
                _ => return None,
            }
        }
    }
}

fn aligned(offset: usize) -> usize {
    offset.next_multiple_of(8)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{SegmentSize, Timeline};

    fn record(manager: u8, info: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let total = u32::try_from(RECORD_HEADER_BYTES + 5 + data.len()).unwrap();
        bytes.extend_from_slice(&total.to_le_bytes());
        bytes.extend_from_slice(&7_u32.to_le_bytes());
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        bytes.extend_from_slice(&[info, manager, 0, 0, 0, 0, 0, 0, DATA_LONG]);
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(data);
        let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
        crc.update(&bytes[RECORD_HEADER_BYTES..]);
        crc.update(&bytes[..CRC_AT]);
        let crc = u32::try_from(crc.finalize()).unwrap();
        bytes[CRC_AT..RECORD_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Records, laid into pages of segments as a server does.
    fn wal(start: SegmentName, records: &[Vec<u8>]) -> Vec<(SegmentName, Vec<u8>)> {
        let size = usize::try_from(start.size().bytes()).unwrap();
        let mut bytes: Vec<u8> = Vec::new();
        let header = |bytes: &mut Vec<u8>, remaining: usize| {
            let first = bytes.len().is_multiple_of(size);
            let address = start.start().as_u64() + bytes.len() as u64;
            let info = (u16::from(remaining > 0) * CONTINUED) | (u16::from(first) * LONG_HEADER);
            bytes.extend_from_slice(&0xD113_u16.to_le_bytes());
            bytes.extend_from_slice(&info.to_le_bytes());
            bytes.extend_from_slice(&1_u32.to_le_bytes());
            bytes.extend_from_slice(&address.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(remaining).unwrap().to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
            if first {
                bytes.extend_from_slice(&[0; 16]);
            }
        };
        for record in records {
            let mut rest = record.as_slice();
            while !rest.is_empty() {
                let room = match bytes.len() % WAL_PAGE_BYTES {
                    0 => {
                        header(&mut bytes, if rest.len() < record.len() { rest.len() } else { 0 });
                        WAL_PAGE_BYTES - bytes.len() % WAL_PAGE_BYTES
                    }
                    used => WAL_PAGE_BYTES - used,
                };
                let (now, later) = rest.split_at(rest.len().min(room));
                bytes.extend_from_slice(now);
                rest = later;
            }
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(size), 0);
        let mut name = start;
        bytes
            .chunks(size)
            .map(|segment| {
                let this = name;
                name = name.next().unwrap();
                (this, segment.to_vec())
            })
            .collect()
    }

    fn first_segment() -> SegmentName {
        let size = SegmentSize::new(1 << 20).unwrap();
        SegmentName::holding(Timeline::FIRST, Lsn::new(1 << 20), size)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_record_is_found(
            lengths in proptest::collection::vec(8_usize..30_000, 1..120),
            damaged in proptest::option::of((any::<prop::sample::Index>(), 0_u8..8)),
            skip: bool,
        ) {
            let records: Vec<_> = lengths.iter().enumerate().map(|(number, length)| {
                let mut data = vec![5; *length];
                data[..8].copy_from_slice(&(number as i64).to_le_bytes());
                // A commit, or something else of another resource manager.
                record(if number % 3 == 0 { RM_XACT } else { 10 }, 0x80, &data)
            }).collect();
            let mut segments = wal(first_segment(), &records);
            let walk = |segments: &[(SegmentName, Vec<u8>)]| {
                let (mut walker, mut found) = (WalWalker::new(), Vec::new());
                for (name, bytes) in segments {
                    walker.segment(*name, bytes, |record| found.push(record));
                }
                (found, walker.has_ended())
            };
            let (found, _) = walk(&segments);
            prop_assert_eq!(found.len(), records.len());
            for (number, record) in found.iter().enumerate() {
                let expected = (number % 3 == 0).then_some(number as i64);
                prop_assert_eq!(record.transaction_end, expected);
                prop_assert!(record.start < record.end);
            }
            prop_assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
            // From a later segment on: the last ones, all of them that begin there.
            if skip && segments.len() > 1 {
                let (later, _) = walk(&segments[1..]);
                let begin = segments[1].0.start();
                let expected: Vec<_> = found.iter().filter(|record| record.start >= begin).cloned().collect();
                prop_assert_eq!(later, expected);
            }
            if let Some((place, bit)) = damaged {
                let bytes = &mut segments[0].1;
                let place = place.index(bytes.len());
                bytes[place] ^= 1 << bit;
                let (found_after, _) = walk(&segments);
                prop_assert!(found_after.len() <= found.len());
                prop_assert_eq!(&found_after[..], &found[..found_after.len()]);
            }
        }

        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            WalWalker::new().segment(first_segment(), &bytes, |_| {});
        }
    }

    #[test]
    fn nothing_follows_a_switch_in_its_segment() {
        let mut segments = wal(
            first_segment(),
            &[record(10, 0, &[1; 100]), record(RM_XLOG, XLOG_SWITCH, &[])],
        );
        let next = segments[0].0.next().unwrap();
        segments.extend(wal(next, &[record(RM_XACT, 0, &9_i64.to_le_bytes())]));
        let (mut walker, mut found) = (WalWalker::new(), Vec::new());
        for (name, bytes) in &segments {
            walker.segment(*name, bytes, |record| found.push(record));
        }
        assert_eq!(found.len(), 3);
        assert_eq!(found[2].transaction_end, Some(9));
    }
}
