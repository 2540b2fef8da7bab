//! COPY's binary format, as far as a dump must understand it: where rows begin and end.
//!
//! The format is in PostgreSQL's manual, COPY, "Binary Format" (`src/backend/commands/copyto.c`): a header, rows of a
//! number of fields and each field's length and bytes, and a row of -1 fields at the end. All numbers are big-endian.

use crate::manifest::RowFormat;

/// What every stream begins with: the signature, no flags, no extension of the header.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What ends it.
pub const TRAILER: &[u8] = b"\xff\xff";

/// The send functions, all of `pg_catalog`, whose bytes mean the same in every supported version and every database.
/// Left out are those that send oids of a database's own objects (`regclasssend`, `record_send`), and money, whose number
/// of decimals is the locale's.
pub const PORTABLE_SEND_FUNCTIONS: &[&str] = &[
    "bit_send",
    "boolsend",
    "box_send",
    "bpcharsend",
    "byteasend",
    "charsend",
    "cidr_send",
    "date_send",
    "enum_send",
    "float4send",
    "float8send",
    "inet_send",
    "int2send",
    "int4send",
    "int8send",
    "interval_send",
    "json_send",
    "jsonb_send",
    "macaddr8_send",
    "macaddr_send",
    "namesend",
    "numeric_send",
    "oidsend",
    "point_send",
    "textsend",
    "time_send",
    "timestamp_send",
    "timestamptz_send",
    "timetz_send",
    "uuid_send",
    "varbit_send",
    "varcharsend",
];

/// The stream isn't what PostgreSQL sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are no rows in COPY's binary format")]
pub struct Malformed;

/// Counts the rows of a stream (without its header) that comes in pieces, cut anywhere.
#[derive(Debug, Default)]
pub struct RowCounter {
    rows: u64,
    /// Fields of the current row that are still to come.
    fields_left: u16,
    /// Bytes of the current field that are still to come.
    bytes_left: usize,
    /// The start of a number that was cut.
    partial: [u8; 4],
    partial_length: usize,
    ended: bool,
}

impl RowCounter {
    /// Rows so far, the one that is not yet whole included.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether the trailer was met.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether what was fed so far ends with a whole row.
    pub fn is_between_rows(&self) -> bool {
        self.fields_left == 0 && self.bytes_left == 0 && self.partial_length == 0
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// It doesn't go on as rows do, or something follows the trailer.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        loop {
            let skipped = self.bytes_left.min(bytes.len());
            self.bytes_left -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            if self.ended {
                return Err(Malformed);
            }
            if self.fields_left == 0 {
                match self.number::<2>(&mut bytes).map(i16::from_be_bytes) {
                    None => return Ok(()),
                    Some(-1) => self.ended = true,
                    Some(fields) => {
                        self.fields_left = u16::try_from(fields).map_err(|_| Malformed)?;
                        self.rows += 1;
                    }
                }
            } else {
                match self.number::<4>(&mut bytes).map(i32::from_be_bytes) {
                    None => return Ok(()),
                    Some(length) => {
                        self.fields_left -= 1;
                        // -1 is NULL, without bytes.
                        self.bytes_left = match length {
                            -1 => 0,
                            length => usize::try_from(length).map_err(|_| Malformed)?,
                        };
                    }
                }
            }
        }
    }

    /// The next number; `None` when the piece ends within it.
    fn number<const N: usize>(&mut self, bytes: &mut &[u8]) -> Option<[u8; N]> {
        if self.partial_length == 0
            && let Some((number, rest)) = bytes.split_first_chunk::<N>()
        {
            *bytes = rest;
            return Some(*number);
        }
        while self.partial_length < N {
            let (first, rest) = bytes.split_first()?;
            *self.partial.get_mut(self.partial_length)? = *first;
            self.partial_length += 1;
            *bytes = rest;
        }
        self.partial_length = 0;
        self.partial.first_chunk::<N>().copied()
    }
}

/// The rows in a piece of COPY's text format: there a line feed ends a row and nothing else, because one inside a value is
/// written as `\n`.
pub fn text_rows(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// The rows of a relation as the server sends them. Header and trailer come whole; a long row may come in pieces.
#[derive(Debug, Default)]
pub struct RowStream {
    begun: bool,
    counter: RowCounter,
}

impl RowStream {
    /// Where in the messages the rows are, without header and trailer, and how many begin there.
    ///
    /// # Errors
    /// As [`RowCounter::feed`].
    pub fn rows<'a>(&mut self, messages: &'a [u8]) -> Result<(&'a [u8], u64), Malformed> {
        let mut rows = messages;
        if !self.begun && !rows.is_empty() {
            rows = rows.strip_prefix(HEADER).ok_or(Malformed)?;
            self.begun = true;
        }
        let before = self.counter.rows();
        let had_ended = self.counter.has_ended();
        self.counter.feed(rows)?;
        if self.counter.has_ended() && !had_ended {
            rows = rows.strip_suffix(TRAILER).ok_or(Malformed)?;
        }
        Ok((rows, self.counter.rows() - before))
    }

    /// Whether the last piece ended with a whole row.
    pub fn is_between_rows(&self) -> bool {
        self.counter.is_between_rows()
    }

    /// Whether the server has sent all of it.
    pub fn is_whole(&self) -> bool {
        self.counter.has_ended()
    }
}

/// Counts the rows of a block, in either format, in pieces cut anywhere.
#[derive(Debug)]
pub enum RowCount {
    /// Lines so far.
    Text(u64),
    /// In the binary format.
    Binary(RowCounter),
}

impl Default for RowCount {
    fn default() -> Self {
        Self::Text(0)
    }
}

impl RowCount {
    /// Nothing yet.
    pub fn new(format: RowFormat) -> Self {
        match format {
            RowFormat::Text => Self::Text(0),
            RowFormat::Binary => Self::Binary(RowCounter::default()),
        }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// As [`RowCounter::feed`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        match self {
            Self::Text(rows) => *rows += text_rows(bytes),
            Self::Binary(counter) => counter.feed(bytes)?,
        }
        Ok(())
    }

    /// The whole rows; `None` within a row, or after the trailer.
    pub fn rows(&self) -> Option<u64> {
        match self {
            Self::Text(rows) => Some(*rows),
            Self::Binary(counter) => {
                (counter.is_between_rows() && !counter.has_ended()).then(|| counter.rows())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = Vec<Option<Vec<u8>>>;

    fn encode(rows: &[Row]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in rows {
            bytes.extend_from_slice(&i16::try_from(row.len()).unwrap().to_be_bytes());
            for field in row {
                let length = field
                    .as_ref()
                    .map_or(-1, |field| i32::try_from(field.len()).unwrap());
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(field.as_deref().unwrap_or_default());
            }
        }
        bytes
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let field = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
        proptest::collection::vec(proptest::collection::vec(field, 0..6), 0..12)
    }

    proptest! {
        #[test]
        fn rows_are_counted_wherever_the_pieces_are_cut(rows in rows(), size in 1_usize..40) {
            let bytes = encode(&rows);
            let mut counter = RowCounter::default();
            for piece in bytes.chunks(size) {
                counter.feed(piece).unwrap();
            }
            prop_assert!(counter.is_between_rows() && !counter.has_ended());
            prop_assert_eq!(counter.rows(), rows.len() as u64);
            if let Some((_, short)) = bytes.split_last() {
                let mut counter = RowCounter::default();
                counter.feed(short).unwrap();
                prop_assert!(!counter.is_between_rows(), "a byte is missing and nothing is noticed");
            }
        }

        #[test]
        fn a_server_s_messages_become_rows_without_header_and_trailer(rows in rows(), together in any::<bool>()) {
            let body = encode(&rows);
            let mut stream = RowStream::default();
            let messages = if together {
                vec![[HEADER, &body, TRAILER].concat()]
            } else {
                vec![HEADER.to_vec(), body.clone(), TRAILER.to_vec()]
            };
            let (mut found, mut count) = (Vec::new(), 0);
            for message in &messages {
                prop_assert!(!stream.is_whole());
                let (rows, number) = stream.rows(message).unwrap();
                found.extend_from_slice(rows);
                count += number;
            }
            prop_assert!(stream.is_whole());
            prop_assert_eq!((found, count), (body, rows.len() as u64));
            prop_assert_eq!(stream.rows(b"\0"), Err(Malformed));
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        assert_eq!(RowStream::default().rows(b"1\t2\n"), Err(Malformed));
        let mut half = RowStream::default();
        assert_eq!(half.rows(&[HEADER, b"\0\x01"].concat()), Ok((&b"\0\x01"[..], 1)));
        assert!(!half.is_between_rows() && !half.is_whole());
        assert_eq!(
            RowStream::default().rows(&[HEADER, b"\xff\xfe"].concat()),
            Err(Malformed)
        );
        assert_eq!(
            RowStream::default().rows(&[HEADER, b"\0\x01\xff\xff\xff\xfe"].concat()),
            Err(Malformed)
        );
    }
}
