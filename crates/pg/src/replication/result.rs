//! Result sets of replication commands. Their values are bytes: a history file may be in any encoding.

use std::str::FromStr;

use postgres_protocol::message::backend;

use crate::error::ServerError;
use crate::wire::Frame;
use crate::{PgError, Session};

/// No result of a replication command comes near it: a history of 100,000 timelines has some 5 MB.
const RESULT_BYTES_MAX: usize = 64 << 20;

/// A row as it was sent; `None` is NULL.
#[derive(Debug, Default)]
pub(super) struct RawRow {
    values: Vec<Option<Vec<u8>>>,
}

impl RawRow {
    /// Reads the body of a DataRow.
    pub(super) fn from_body(body: &[u8]) -> Option<Self> {
        let (count, mut rest) = body.split_first_chunk::<2>()?;
        let count = usize::from(u16::from_be_bytes(*count));
        let mut values = Vec::new();
        for _ in 0..count {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                values.push(None);
                rest = after;
                continue;
            };
            let (value, after) = after.split_at_checked(length)?;
            values.push(Some(value.to_vec()));
            rest = after;
        }
        rest.is_empty().then_some(Self { values })
    }

    pub(super) fn value(&self, column: usize) -> Option<&[u8]> {
        self.values.get(column)?.as_deref()
    }

    pub(super) fn text(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.value(column)?).ok()
    }

    pub(super) fn parsed<T: FromStr>(&self, column: usize) -> Option<T> {
        self.text(column)?.parse().ok()
    }
}

/// What ended a result set.
pub(super) enum ResultEnd {
    /// CommandComplete.
    Complete,
    /// Something that is no part of a result; it was taken off the input.
    Other(Frame),
}

/// Reads one result set with its end. An error of the server is returned with the session drained.
pub(super) async fn result_set(session: &mut Session) -> Result<(Vec<RawRow>, ResultEnd), PgError> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    loop {
        let frame = session.next().await?;
        let body = session.wire.body(frame);
        match frame.tag {
            backend::ROW_DESCRIPTION_TAG => {}
            backend::DATA_ROW_TAG => {
                bytes += body.len();
                let row = RawRow::from_body(body).filter(|_| bytes <= RESULT_BYTES_MAX);
                match row {
                    Some(row) => rows.push(row),
                    None => {
                        return Err(session.give_up(PgError::protocol("a DataRow is broken or too large")));
                    }
                }
            }
            backend::COMMAND_COMPLETE_TAG => return Ok((rows, ResultEnd::Complete)),
            backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(body);
                return Err(super::refused(session, error).await);
            }
            _ => return Ok((rows, ResultEnd::Other(frame))),
        }
    }
}

/// Reads all results to ReadyForQuery and returns all rows.
pub(super) async fn results(session: &mut Session) -> Result<Vec<RawRow>, PgError> {
    let mut all = Vec::new();
    loop {
        let (rows, end) = result_set(session).await?;
        all.extend(rows);
        match end {
            ResultEnd::Complete => {}
            ResultEnd::Other(frame) if frame.tag == backend::READY_FOR_QUERY_TAG => {
                session.ready(frame);
                return Ok(all);
            }
            ResultEnd::Other(frame) => return Err(unexpected(session, frame.tag)),
        }
    }
}

/// Nobody knows what the server means: the session ends.
pub(super) fn unexpected(session: &mut Session, tag: u8) -> PgError {
    let text = format!(
        "unexpected '{}' in the answer to a replication command",
        tag.escape_ascii()
    );
    session.give_up(PgError::protocol(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_bytes() {
        let row = RawRow::from_body(&[
            0, 3, 0, 0, 0, 2, b'4', b'2', 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1, 0xFE,
        ])
        .unwrap();
        assert_eq!(row.parsed::<u32>(0), Some(42));
        assert_eq!(
            (row.value(1), row.text(2), row.value(2)),
            (None, None, Some(&[0xFE][..]))
        );
        assert_eq!(row.value(3), None);
        for broken in [&[][..], &[0, 1], &[0, 1, 0, 0, 0, 2, b'4'], &[0, 0, 1]] {
            assert!(RawRow::from_body(broken).is_none(), "{broken:?}");
        }
    }
}
