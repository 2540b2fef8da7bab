//! Reading a data object: a psql script of COPY blocks, or one stream in COPY's binary format. The manifest gives the
//! sizes of the blocks; a binary stream is one.
//!
//! The sizes say where the rows end, so the rows themselves are never searched for the end mark; and every byte is
//! compared with what the manifest says should stand there.

use bytes::{Buf, Bytes, BytesMut};
use pgkeep_repository::object::Contents;

use crate::binary;
use crate::error::DumpError;
use crate::manifest::{DataObject, QualifiedName, Relation, RowFormat, Segment};
use crate::pack::BLOCK_END;

/// Settings before a block are short lines, in bytes.
const SETTING_BYTES_MAX: usize = 4 << 10;

/// What loads a block: the statement that psql would run. Whoever reads a block knows it from the manifest, and runs
/// nothing that merely stands in an object.
pub fn copy_in_statement(into: &QualifiedName, columns: &str, format: RowFormat, freeze: bool) -> String {
    let options = match (format, freeze) {
        (RowFormat::Text, true) => " WITH (FREEZE)",
        (RowFormat::Binary, true) => " WITH (FORMAT binary, FREEZE)",
        (format, false) => format_option(format),
    };
    format!("COPY {} FROM stdin{options}", with_columns(into, columns))
}

/// What reads all rows of a table, so that [`copy_in_statement`] loads them.
pub fn copy_out_statement(from: &QualifiedName, columns: &str, format: RowFormat) -> String {
    format!(
        "COPY {} TO STDOUT{}",
        with_columns(from, columns),
        format_option(format)
    )
}

/// A table without columns takes no list.
fn with_columns(name: &QualifiedName, columns: &str) -> String {
    if columns.is_empty() {
        name.quoted()
    } else {
        format!("{} ({columns})", name.quoted())
    }
}

fn format_option(format: RowFormat) -> &'static str {
    match format {
        RowFormat::Text => "",
        RowFormat::Binary => " WITH (FORMAT binary)",
    }
}

/// What stands before a block's rows and after them, as COPY takes them; in a text object, more is around them.
pub fn around_rows(format: RowFormat) -> (&'static [u8], &'static [u8]) {
    match format {
        RowFormat::Text => (b"", b""),
        RowFormat::Binary => (binary::HEADER, binary::TRAILER),
    }
}

/// The next piece of a data object.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A block begins, of which the manifest says this.
    Begin(Segment),
    /// Some of its rows, cut anywhere.
    Rows(Bytes),
    /// The block has ended where it should.
    End(Segment),
}

/// Reads one data object piece by piece.
pub struct BlockReader<'a> {
    object: &'a DataObject,
    relations: &'a [Relation],
    contents: Contents,
    waiting: BytesMut,
    next_segment: usize,
    rows_left: Option<u64>,
}

impl<'a> BlockReader<'a> {
    /// Reads `object`, whose contents are `contents`, and whose blocks are of `relations`.
    pub fn new(object: &'a DataObject, relations: &'a [Relation], contents: Contents) -> Self {
        Self {
            object,
            relations,
            contents,
            waiting: BytesMut::new(),
            next_segment: 0,
            rows_left: None,
        }
    }

    /// The next piece; `None` at the end, which comes only after the object's hash was right.
    ///
    /// # Errors
    /// The store's, the key's, or an object that isn't what the manifest says.
    pub async fn next(&mut self) -> Result<Option<Piece>, DumpError> {
        let segment = self.object.segments.get(self.next_segment).copied();
        match (self.rows_left, segment) {
            (Some(0), Some(segment)) => {
                let expected = match self.relation(segment)?.format {
                    RowFormat::Text => BLOCK_END,
                    RowFormat::Binary => binary::TRAILER,
                };
                if self.take(expected.len()).await? != expected {
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
                let length = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(self.waiting.len());
                self.rows_left = Some(left - length as u64);
                Ok(Some(Piece::Rows(self.waiting.split_to(length).freeze())))
            }
            (None, Some(segment)) => {
                self.begin(segment).await?;
                self.rows_left = Some(segment.bytes);
                Ok(Some(Piece::Begin(segment)))
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

    fn relation(&self, segment: Segment) -> Result<&'a Relation, DumpError> {
        let relation = self.relations.get(segment.relation as usize);
        relation.ok_or_else(|| self.malformed("it has a block of a table that isn't in the manifest"))
    }

    /// Past the settings and the COPY statement, which must be the one that the manifest implies; or past the header.
    async fn begin(&mut self, segment: Segment) -> Result<(), DumpError> {
        const SETTING: &[u8] = b"SET ";
        let relation = self.relation(segment)?;
        if relation.format == RowFormat::Binary {
            if self.object.segments.len() != 1 {
                return Err(self.malformed("it has several blocks, and one of them is binary"));
            }
            if self.take(binary::HEADER.len()).await? != binary::HEADER {
                return Err(self.malformed("it doesn't begin as COPY's binary format does"));
            }
            return Ok(());
        }
        let statement = copy_in_statement(relation.target(), &relation.columns, RowFormat::Text, false);
        let expected = format!("{statement};\n");
        loop {
            self.fill(SETTING.len()).await?;
            if !self.waiting.starts_with(SETTING) {
                break;
            }
            self.skip_line().await?;
        }
        if self.take(expected.len()).await? != expected.as_bytes() {
            return Err(self.malformed(&format!(
                "it should have a block of {} where it has something else",
                relation.name
            )));
        }
        Ok(())
    }

    async fn skip_line(&mut self) -> Result<(), DumpError> {
        let mut searched = 0;
        loop {
            if let Some(place) = memchr::memchr(b'\n', self.waiting.get(searched..).unwrap_or_default()) {
                self.waiting.advance(searched + place + 1);
                return Ok(());
            }
            searched = self.waiting.len();
            if searched > SETTING_BYTES_MAX || !self.more().await? {
                return Err(self.malformed("it ends before a block"));
            }
        }
    }

    async fn fill(&mut self, length: usize) -> Result<(), DumpError> {
        while self.waiting.len() < length {
            if !self.more().await? {
                return Err(self.malformed("it ends too early"));
            }
        }
        Ok(())
    }

    async fn take(&mut self, length: usize) -> Result<Bytes, DumpError> {
        self.fill(length).await?;
        Ok(self.waiting.split_to(length).freeze())
    }

    async fn more(&mut self) -> Result<bool, DumpError> {
        match self.contents.next().await? {
            Some(block) if self.waiting.is_empty() => {
                // No copy in the common case: the block becomes the buffer.
                self.waiting = block
                    .try_into_mut()
                    .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
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
        DumpError::Object {
            name: self.object.object.name.clone(),
            reason: reason.to_owned(),
        }
    }
}
