use std::mem;

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::{backend, frontend};

use crate::PgError;
use crate::error::ServerError;
use crate::session::{BUFFER_BYTES, Session, affected_rows};
use crate::wire::CopyStep;

/// The largest CopyData message that is sent. The server holds one message in memory as a whole.
const MESSAGE_BYTES_MAX: usize = 512 * 1024;
/// A large message that is received comes in pieces of at least this size, however little is asked for.
const PIECE_BYTES_MIN: usize = 64 * 1024;
/// A block at least this large isn't copied into the output buffer first.
const DIRECT_BYTES_MIN: usize = 32 * 1024;

impl Session {
    /// Runs `COPY ... TO STDOUT`.
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it; [`PgError::Protocol`] if the statement is none.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, PgError> {
        self.start_copy(sql, backend::COPY_OUT_RESPONSE_TAG).await?;
        Ok(CopyOut {
            session: self,
            missing: 0,
            rows: None,
        })
    }

    /// Runs `COPY ... FROM STDIN`.
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it; [`PgError::Protocol`] if the statement is none.
    pub async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, PgError> {
        self.start_copy(sql, backend::COPY_IN_RESPONSE_TAG).await?;
        Ok(CopyIn {
            session: self,
            output: BytesMut::with_capacity(BUFFER_BYTES),
        })
    }

    /// Sends the statement and waits for the response that begins the copy.
    async fn start_copy(&mut self, sql: &str, response: u8) -> Result<(), PgError> {
        self.start_query(sql).await?;
        let frame = self.next().await?;
        if frame.tag == response {
            return Ok(());
        }
        let error = match frame.tag {
            backend::ERROR_RESPONSE_TAG => {
                PgError::Server(Box::new(ServerError::from_body(self.wire.body(frame))))
            }
            backend::COPY_IN_RESPONSE_TAG | backend::COPY_OUT_RESPONSE_TAG => {
                return Err(self.give_up(PgError::protocol("the COPY goes in the other direction")));
            }
            tag => {
                // The rest of an ordinary statement's result is read, so that the session can go on.
                let error =
                    PgError::protocol(format!("not a COPY: the server sent '{}'", tag.escape_ascii()));
                if let Err(worse) = self.read_to_ready().await
                    && self.is_broken()
                {
                    return Err(worse);
                }
                return Err(error);
            }
        };
        Err(self.drain(error).await)
    }

    /// The CopyDone was read: CommandComplete and ReadyForQuery follow.
    async fn end_copy(&mut self) -> Result<u64, PgError> {
        let frame = self.next().await?;
        match frame.tag {
            backend::COMMAND_COMPLETE_TAG => {
                let rows = affected_rows(self.wire.body(frame));
                self.read_to_ready().await?;
                Ok(rows)
            }
            backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(self.wire.body(frame));
                Err(self.drain(PgError::Server(Box::new(error))).await)
            }
            tag => Err(self.give_up(PgError::protocol(format!(
                "unexpected '{}' after a copy",
                tag.escape_ascii()
            )))),
        }
    }
}

/// A running `COPY ... TO STDOUT`. Dropped before its end, it leaves the session broken.
#[derive(Debug)]
pub struct CopyOut<'a> {
    session: &'a mut Session,
    /// Of a large message that was begun, so many bytes are still to come.
    missing: usize,
    /// Set at the end.
    rows: Option<u64>,
}

impl CopyOut<'_> {
    /// Appends the payload of CopyData messages (for the text format: rows) to `buffer` until it holds at least
    /// `bytes_min` bytes, a large message has ended, or the copy ends. Small messages come whole; a large one comes in
    /// pieces, so that memory doesn't follow the size of a row, and is never followed by another in one buffer. Returns
    /// false at the end; data may have been appended even so.
    ///
    /// # Errors
    /// [`PgError::Server`] if the copy fails; the session then can be used again. See [`PgError`] for the rest.
    pub async fn read_into(&mut self, buffer: &mut Vec<u8>, bytes_min: usize) -> Result<bool, PgError> {
        if self.rows.is_some() {
            return Ok(false);
        }
        loop {
            if self.missing > 0 {
                self.read_missing(buffer, bytes_min).await?;
                return Ok(true);
            }
            let step = self.session.wire.append_copy_data(buffer, bytes_min);
            let result = match step {
                Ok(CopyStep::Enough) => return Ok(true),
                Ok(CopyStep::NeedMore) => self.session.wire.fill().await,
                Ok(CopyStep::Direct(missing)) => {
                    self.missing = missing;
                    continue;
                }
                Ok(CopyStep::Other) => {
                    if self.other_message().await? {
                        continue;
                    }
                    return Ok(false);
                }
                Err(error) => return Err(self.session.give_up(error)),
            };
            if let Err(error) = result {
                return Err(self.session.explain(error).await);
            }
        }
    }

    /// More of a large message, as much as the buffer is to take.
    async fn read_missing(&mut self, buffer: &mut Vec<u8>, bytes_min: usize) -> Result<(), PgError> {
        let room = bytes_min.saturating_sub(buffer.len());
        if room == 0 {
            return Ok(());
        }
        let wanted = room.max(PIECE_BYTES_MIN).min(self.missing);
        match self.session.wire.read_direct(buffer, wanted).await {
            Ok(()) => {
                self.missing -= wanted;
                Ok(())
            }
            // In the middle of a message nobody could find the next one.
            Err(error) => Err(self.session.abandon(error).await),
        }
    }

    /// A message that isn't CopyData: does the copy go on?
    async fn other_message(&mut self) -> Result<bool, PgError> {
        match self.session.absorb()? {
            // A notice stood between two messages of the copy.
            Some(backend::COPY_DATA_TAG) => return Ok(true),
            None => {
                if let Err(error) = self.session.wire.fill().await {
                    return Err(self.session.explain(error).await);
                }
                return Ok(true);
            }
            Some(_) => {}
        }
        let frame = self.session.next().await?;
        match frame.tag {
            backend::COPY_DONE_TAG => {
                self.rows = Some(self.session.end_copy().await?);
                Ok(false)
            }
            backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(self.session.wire.body(frame));
                Err(self.session.drain(PgError::Server(Box::new(error))).await)
            }
            tag => {
                let text = format!("unexpected '{}' during a copy", tag.escape_ascii());
                Err(self.session.give_up(PgError::protocol(text)))
            }
        }
    }

    /// How many rows were copied, by the command's tag. What was not read yet is read and thrown away.
    ///
    /// # Errors
    /// As [`CopyOut::read_into`].
    pub async fn finish(mut self) -> Result<u64, PgError> {
        let mut scrap = Vec::new();
        while self.rows.is_none() {
            scrap.clear();
            self.read_into(&mut scrap, BUFFER_BYTES).await?;
        }
        Ok(self.rows.unwrap_or_default())
    }
}

/// A running `COPY ... FROM STDIN`. Dropped before [`CopyIn::finish`] or [`CopyIn::abort`], it leaves the session
/// broken, and the server rolls the statement back.
#[derive(Debug)]
pub struct CopyIn<'a> {
    session: &'a mut Session,
    output: BytesMut,
}

impl CopyIn<'_> {
    /// Sends data; rows may be split anywhere. Small pieces are gathered.
    ///
    /// # Errors
    /// [`PgError::Server`] if the server has refused a row meanwhile: the copy is over then, and the session can be
    /// used again. See [`PgError`] for the rest.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), PgError> {
        for chunk in data.chunks(MESSAGE_BYTES_MAX) {
            self.output.put_u8(b'd');
            self.output
                .put_u32(u32::try_from(chunk.len() + 4).unwrap_or(u32::MAX));
            if chunk.len() < DIRECT_BYTES_MIN {
                self.output.put_slice(chunk);
                if self.output.len() < BUFFER_BYTES {
                    continue;
                }
                self.send_output().await?;
            } else {
                self.send_output().await?;
                self.session.write(chunk).await?;
            }
            self.check().await?;
        }
        Ok(())
    }

    async fn send_output(&mut self) -> Result<(), PgError> {
        let mut output = mem::take(&mut self.output);
        let result = self.session.write(&output).await;
        output.clear();
        self.output = output;
        result
    }

    /// Has the server refused something already? What was written so far is whole messages, so the session can go on.
    async fn check(&mut self) -> Result<(), PgError> {
        if self.session.absorb()?.is_none() {
            return Ok(());
        }
        Err(self.failure().await)
    }

    /// Reads the error that ended the copy.
    async fn failure(&mut self) -> PgError {
        match self.session.next().await {
            Err(error) => error,
            Ok(frame) if frame.tag == backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(self.session.wire.body(frame));
                self.session.drain(PgError::Server(Box::new(error))).await
            }
            Ok(frame) => {
                let text = format!("unexpected '{}' during a copy", frame.tag.escape_ascii());
                self.session.give_up(PgError::protocol(text))
            }
        }
    }

    /// Ends the copy and returns how many rows the server took.
    ///
    /// # Errors
    /// As [`CopyIn::send`].
    pub async fn finish(mut self) -> Result<u64, PgError> {
        frontend::copy_done(&mut self.output);
        self.send_output().await?;
        self.session.end_copy().await
    }

    /// Makes the server give the copy up and roll the statement back; the session can be used again.
    ///
    /// # Errors
    /// The connection fails. That the copy failed is what was wanted, and no error.
    pub async fn abort(mut self, reason: &str) -> Result<(), PgError> {
        // NUL ends a string of the protocol.
        frontend::copy_fail(&reason.replace('\0', " "), &mut self.output)?;
        self.send_output().await?;
        match self.failure().await {
            PgError::Server(error) if !error.is_fatal() => Ok(()),
            error => Err(error),
        }
    }
}
