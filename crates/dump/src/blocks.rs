//! Reading a data object: a psql script of COPY blocks whose sizes the manifest gives.
//!
//! The sizes say where the rows end, so the rows themselves are never searched for the end mark; and every byte is
//! compared with what the manifest says should stand there.

use bytes::{Buf, Bytes, BytesMut};
use pgkeep_repository::object::Contents;

use crate::error::DumpError;
use crate::manifest::{DataObject, Segment};
use crate::pack::BLOCK_END;

/// Lines between blocks (settings, the COPY line) are never longer than this, in bytes: 1,600 columns of 63 bytes,
/// quoted.
const LINE_BYTES_MAX: usize = 1 << 20;

/// The next piece of a data object.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A block begins.
    Begin {
        /// What the manifest says of it.
        segment: Segment,
        /// The COPY line, as it stands.
        copy_line: String,
    },
    /// Some of its rows, cut anywhere.
    Rows(Bytes),
    /// The block has ended where it should.
    End(Segment),
}

/// Reads one data object piece by piece.
pub struct BlockReader<'a> {
    object: &'a DataObject,
    contents: Contents,
    waiting: BytesMut,
    next_segment: usize,
    rows_left: Option<u64>,
}

impl<'a> BlockReader<'a> {
    /// Reads `object`, whose contents are `contents`.
    pub fn new(object: &'a DataObject, contents: Contents) -> Self {
        Self { object, contents, waiting: BytesMut::new(), next_segment: 0, rows_left: None }
    }

    /// The next piece; `None` at the end, which comes only after the object's hash was right.
    ///
    /// # Errors
    /// The store's, the key's, or an object that isn't what the manifest says.
    pub async fn next(&mut self) -> Result<Option<Piece>, DumpError> {
        let segment = self.object.segments.get(self.next_segment).copied();
        match (self.rows_left, segment) {
            (Some(0), Some(segment)) => {
                let end = self.take(BLOCK_END.len()).await?;
                if end != BLOCK_END {
                    return Err(self.malformed("a block doesn't end where it should"));
                }
                self.rows_left = None;
                self.next_segment += 1;
                Ok(Some(Piece::End(segment)))
            }
            (Some(left), Some(_)) => {
                if self.waiting.is_empty() && !self.more().await? {
                    return Err(self.malformed("it ends inside a block"));
                }
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.waiting.len());
                self.rows_left = Some(left - length as u64);
                Ok(Some(Piece::Rows(self.waiting.split_to(length).freeze())))
            }
            (None, Some(segment)) => {
                let copy_line = self.copy_line().await?;
                self.rows_left = Some(segment.bytes);
                Ok(Some(Piece::Begin { segment, copy_line }))
            }
            (_, None) => {
                while self.waiting.is_empty() && self.more().await? {}
                if !self.waiting.is_empty() {
                    return Err(self.malformed("there is more in it than the manifest says"));
                }
                Ok(None)
            }
        }
    }

    /// The next line that begins a block, past the settings before it.
    async fn copy_line(&mut self) -> Result<String, DumpError> {
        loop {
            let line = self.line().await?;
            if line.starts_with("COPY ") {
                return Ok(line);
            }
            if !line.starts_with("SET ") {
                return Err(self.malformed("a line before a block is neither SET nor COPY"));
            }
        }
    }

    async fn line(&mut self) -> Result<String, DumpError> {
        let mut searched = 0;
        loop {
            let found = memchr::memchr(b'\n', self.waiting.get(searched..).unwrap_or_default());
            if let Some(place) = found {
                let line = self.waiting.split_to(searched + place);
                self.waiting.advance(1);
                return String::from_utf8(line.to_vec()).map_err(|_| self.malformed("a line before a block isn't UTF-8"));
            }
            searched = self.waiting.len();
            if searched > LINE_BYTES_MAX || !self.more().await? {
                return Err(self.malformed("it ends before a block"));
            }
        }
    }

    async fn take(&mut self, length: usize) -> Result<Bytes, DumpError> {
        while self.waiting.len() < length {
            if !self.more().await? {
                return Err(self.malformed("it ends too early"));
            }
        }
        Ok(self.waiting.split_to(length).freeze())
    }

    async fn more(&mut self) -> Result<bool, DumpError> {
        match self.contents.next().await? {
            Some(block) if self.waiting.is_empty() => {
                // No copy in the common case: the block becomes the buffer.
                self.waiting = block.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                Ok(true)
            }
            Some(block) => {
                self.waiting.extend_from_slice(&block);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn malformed(&self, reason: &str) -> DumpError {
        DumpError::Object { name: self.object.object.name.clone(), reason: reason.to_owned() }
    }
}
