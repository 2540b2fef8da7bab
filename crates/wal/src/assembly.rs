//! A segment of the WAL as it comes: into frames, and those into parts and the whole. No I/O.

use bytes::Bytes;
use pgkeep_pgformat::{Lsn, SegmentName, WAL_HEADER_BYTES, WalFileName, WalHeader};
use pgkeep_repository::wal::{WalCompressor, WalContents, WalObject};

use crate::error::WalError;

/// Larger segments are stored in parts alone: a whole one lies in memory, compressed, until it is put.
pub(crate) const WHOLE_BYTES_MAX: u64 = 64 << 20;
/// Of larger segments, the parts.
pub(crate) const PART_BYTES_MAX: u64 = 16 << 20;

/// An object that is to be put.
#[derive(Debug, Clone)]
pub(crate) struct ToPut {
    pub object: WalObject,
    pub contents: WalContents,
}

/// Something that is stored of the segment, with the hash of its contents.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub object: WalObject,
    pub from: u64,
    pub to: u64,
    pub hash: blake3::Hash,
}

struct Comparison {
    known: Known,
    hasher: blake3::Hasher,
}

/// A piece of the contents, compressed.
struct Frame {
    /// Offset of its first byte.
    from: u64,
    bytes: Bytes,
}

/// Whose WAL it is.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// The cluster's name in the repository.
    pub cluster: String,
    pub system_identifier: u64,
}

/// A segment that fills.
pub(crate) struct Assembly {
    name: SegmentName,
    writer: Writer,
    /// Its first bytes, until they are enough to tell whose it is.
    head: Vec<u8>,
    frames: Vec<Frame>,
    /// How many bytes are here.
    filled: u64,
    /// Up to here all is stored, or on its way.
    given_out: u64,
    /// As long as not all that was stored before has been compared, nothing is put beside it.
    silent_until: u64,
    whole_is_stored: bool,
    /// Of all bytes.
    hasher: blake3::Hasher,
    /// Of those from `given_out` on.
    rest: blake3::Hasher,
    comparisons: Vec<Comparison>,
}

impl Assembly {
    /// Begins a segment, of which this is stored already: what comes is compared with it.
    pub fn new(name: SegmentName, writer: Writer, known: Vec<Known>) -> Self {
        let mut sorted: Vec<&Known> = known.iter().collect();
        sorted.sort_unstable_by_key(|known| known.from);
        let mut given_out = 0;
        for known in sorted {
            if known.from <= given_out {
                given_out = given_out.max(known.to);
            }
        }
        Self {
            name,
            writer,
            head: Vec::new(),
            frames: Vec::new(),
            filled: 0,
            given_out,
            silent_until: known.iter().map(|known| known.to).max().unwrap_or(0),
            whole_is_stored: known
                .iter()
                .any(|known| matches!(known.object, WalObject::File(WalFileName::Segment(_)))),
            hasher: blake3::Hasher::new(),
            rest: blake3::Hasher::new(),
            comparisons: known
                .into_iter()
                .map(|known| Comparison {
                    known,
                    hasher: blake3::Hasher::new(),
                })
                .collect(),
        }
    }

    /// Whether all of it is here.
    pub fn is_full(&self) -> bool {
        self.filled == self.name.size().bytes()
    }

    /// Takes the next bytes, which don't reach beyond the segment. Returns the ranges that have been compared with what is
    /// stored, and are the same. Blocking.
    ///
    /// # Errors
    /// They differ from what is stored; they aren't WAL of this cluster; the compressor failed.
    pub fn append(
        &mut self,
        compressor: &mut WalCompressor,
        bytes: &[u8],
    ) -> Result<Vec<(Lsn, Lsn)>, WalError> {
        self.check_header(bytes)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            // A part begins where the stored ones end: a frame has to.
            let edge = match self.given_out.checked_sub(self.filled) {
                None | Some(0) => u64::MAX,
                Some(distance) => distance,
            };
            let length = usize::try_from(edge).unwrap_or(usize::MAX);
            let length = length.min(rest.len()).min(WalCompressor::FRAME_BYTES_MAX);
            let (piece, after) = rest.split_at(length);
            if (self.becomes_whole() && !self.whole_is_stored) || self.filled >= self.given_out {
                self.frames.push(Frame {
                    from: self.filled,
                    bytes: compressor.frame(piece)?,
                });
            }
            if self.becomes_whole() {
                self.hasher.update(piece);
            }
            if self.filled >= self.given_out {
                self.rest.update(piece);
            }
            for comparison in &mut self.comparisons {
                comparison.update(self.filled, piece);
            }
            self.filled += piece.len() as u64;
            rest = after;
        }
        self.compare()
    }

    fn check_header(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        let missing = WAL_HEADER_BYTES - self.head.len();
        if missing == 0 {
            return Ok(());
        }
        let first = bytes.get(..missing.min(bytes.len())).unwrap_or_default();
        self.head.extend_from_slice(first);
        if self.head.len() < WAL_HEADER_BYTES {
            return Ok(());
        }
        let segment = self.name;
        let no_segment = |reason| WalError::NoSegment { segment, reason };
        let header = WalHeader::parse(&self.head).map_err(no_segment)?;
        header.check(self.name).map_err(no_segment)?;
        if header.system_identifier != self.writer.system_identifier {
            return Err(WalError::OtherSystem {
                what: format!("segment {}", self.name),
                found: header.system_identifier,
                ours: self.writer.system_identifier,
            });
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<Vec<(Lsn, Lsn)>, WalError> {
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.comparisons)
            .into_iter()
            .partition(|comparison| comparison.known.to <= self.filled);
        self.comparisons = waiting;
        let mut same = Vec::new();
        for Comparison { known, hasher } in done {
            if hasher.finalize() != known.hash {
                return Err(WalError::OtherWal {
                    cluster: self.writer.cluster.clone(),
                    object: known.object.to_string(),
                });
            }
            same.extend(self.position(known.from).zip(self.position(known.to)));
        }
        Ok(same)
    }

    fn position(&self, offset: u64) -> Option<Lsn> {
        self.name.start().checked_add(offset)
    }

    /// What isn't stored or on its way yet, as a part; it is on its way then.
    pub fn part(&mut self) -> Option<ToPut> {
        if self.whole_is_stored || self.filled < self.silent_until {
            return None;
        }
        let object = WalObject::part(self.name, self.given_out, self.filled)?;
        let frames = self.frames.iter().filter(|frame| frame.from >= self.given_out);
        let frames = frames.map(|frame| frame.bytes.clone()).collect();
        let contents = WalContents::new(frames, self.rest.finalize(), self.filled - self.given_out);
        self.rest.reset();
        self.given_out = self.filled;
        if !self.becomes_whole() {
            self.frames.clear();
        }
        Some(ToPut { object, contents })
    }

    /// After each piece: what has to go without further waiting. The whole segment when it is full, or a part of one that is
    /// too large for that.
    pub fn due(&mut self) -> Option<ToPut> {
        if !self.becomes_whole() {
            let waiting = self.filled.saturating_sub(self.given_out);
            return match self.is_full() || waiting >= PART_BYTES_MAX {
                true => self.part(),
                false => None,
            };
        }
        if !self.is_full() || self.whole_is_stored {
            return None;
        }
        self.whole_is_stored = true;
        self.given_out = self.filled;
        let frames = std::mem::take(&mut self.frames);
        Some(ToPut {
            object: WalObject::File(WalFileName::Segment(self.name)),
            contents: WalContents::new(
                frames.into_iter().map(|frame| frame.bytes).collect(),
                self.hasher.finalize(),
                self.filled,
            ),
        })
    }

    fn becomes_whole(&self) -> bool {
        self.name.size().bytes() <= WHOLE_BYTES_MAX
    }
}

impl Comparison {
    /// Takes the part of a piece that it is about.
    fn update(&mut self, from: u64, piece: &[u8]) {
        let within = |position: u64| {
            let offset = position.saturating_sub(from);
            usize::try_from(offset).unwrap_or(usize::MAX).min(piece.len())
        };
        let (start, end) = (within(self.known.from), within(self.known.to));
        self.hasher.update(piece.get(start..end).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
