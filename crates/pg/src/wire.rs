//! Frames on a stream: one reusable input buffer in which messages are read in place.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use postgres_protocol::message::backend::{COPY_DATA_TAG, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::PgError;
use crate::stream::Stream;

/// Tag and length.
const HEADER_BYTES: usize = 5;
/// The size of the input buffer; a larger message makes it grow until it was read.
const INPUT_BYTES: usize = 512 * 1024;
/// Less room than this at the buffer's end, and what is left is moved to its start.
const ROOM_BYTES_MIN: usize = 64 * 1024;
/// A CopyData message larger than this goes straight into the caller's buffer.
const DIRECT_BYTES_MIN: usize = 128 * 1024;
/// While it writes, it doesn't read further ahead than this.
const UNREAD_BYTES_MAX: usize = 8 << 20;
/// No field of PostgreSQL is larger than 1 GiB (`MaxAllocSize`); COPY may escape each byte of one.
pub(crate) const MESSAGE_BYTES_MAX: usize = (1 << 30) + (64 << 20);
/// Before the session is authenticated nothing large comes (libpq has 30,000 bytes for errors).
const STARTUP_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// One message: its tag, and where its body lies in the input buffer until the next read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    start: usize,
    end: usize,
}

/// What stopped [`Wire::append_copy_data`].
pub(crate) enum CopyStep {
    /// The caller's buffer holds enough.
    Enough,
    /// The next message isn't whole yet.
    NeedMore,
    /// The next message isn't CopyData.
    Other,
    /// A large message: its first bytes were appended, so many are to be read straight into the buffer.
    Direct(usize),
}

pub(crate) struct Wire {
    stream: Stream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    message_bytes_max: usize,
    /// How long the server may be silent while it is waited for.
    pub(crate) silence_max: Option<Duration>,
}

/// `timeout`, if there is one. On expiry: [`io::ErrorKind::TimedOut`] never comes from a socket read, but may from
/// the kernel's keepalives, so the expiry has an error of its own.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = io::Result<T>>) -> Result<T, PgError> {
    match limit {
        None => Ok(work.await?),
        Some(limit) => match timeout(limit, work).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(PgError::Deadline {
                after: limit,
                cancelled: false,
            }),
        },
    }
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
            message_bytes_max: STARTUP_MESSAGE_BYTES_MAX,
            silence_max: None,
        }
    }

    /// From now on messages may be large.
    pub(crate) fn authenticated(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
    }

    pub(crate) fn body(&self, frame: Frame) -> &[u8] {
        self.input.get(frame.start..frame.end).unwrap_or_default()
    }

    fn pending(&self) -> &[u8] {
        self.input.get(self.start..self.end).unwrap_or_default()
    }

    /// The next message's tag and whole length, if its header was read.
    fn header(&self) -> Result<Option<(u8, usize)>, PgError> {
        let header = Header::parse(self.pending()).map_err(|error| PgError::protocol(error.to_string()))?;
        let Some(header) = header else { return Ok(None) };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > self.message_bytes_max {
            return Err(PgError::protocol(format!(
                "a message '{}' of {length} bytes is larger than {} bytes",
                header.tag().escape_ascii(),
                self.message_bytes_max
            )));
        }
        Ok(Some((header.tag(), length + 1)))
    }

    /// The tag of the next message, if its header is there.
    pub(crate) fn next_tag(&self) -> Result<Option<u8>, PgError> {
        Ok(self.header()?.map(|(tag, _)| tag))
    }

    /// Takes the next message if it is there as a whole.
    pub(crate) fn take_frame(&mut self) -> Result<Option<Frame>, PgError> {
        let Some((tag, total)) = self.header()? else {
            return Ok(None);
        };
        if self.pending().len() < total {
            return Ok(None);
        }
        let frame = Frame {
            tag,
            start: self.start + HEADER_BYTES,
            end: self.start + total,
        };
        self.start = frame.end;
        Ok(Some(frame))
    }

    /// Waits for the next message.
    pub(crate) async fn next_frame(&mut self) -> Result<Frame, PgError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// Makes room for more input.
    fn make_room(&mut self) -> Result<(), PgError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.input.len() > INPUT_BYTES {
                // A large message was read: its memory goes back.
                self.input = vec![0; INPUT_BYTES];
            }
        }
        let total = self.header()?.map_or(HEADER_BYTES, |(_, total)| total);
        let room = self.input.len() - self.end;
        if self.start > 0 && (room < ROOM_BYTES_MIN || self.input.len() - self.start < total) {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.input.len() {
            // It doubles rather than believing the length at once: memory follows what was really sent.
            let size = total
                .min(self.input.len() * 2)
                .max(self.input.len() + ROOM_BYTES_MIN);
            self.input.resize(size, 0);
        }
        Ok(())
    }

    /// Reads at least one byte more.
    pub(crate) async fn fill(&mut self) -> Result<(), PgError> {
        self.make_room()?;
        let room = self.input.get_mut(self.end..).unwrap_or_default();
        let read = within(self.silence_max, self.stream.read(room)).await?;
        if read == 0 {
            return Err(PgError::Closed);
        }
        self.end += read;
        Ok(())
    }

    /// Appends the bodies of CopyData messages that are already here, in place and without allocating for each.
    pub(crate) fn append_copy_data(
        &mut self,
        buffer: &mut Vec<u8>,
        bytes_min: usize,
    ) -> Result<CopyStep, PgError> {
        loop {
            if buffer.len() >= bytes_min {
                return Ok(CopyStep::Enough);
            }
            let Some((tag, total)) = self.header()? else {
                return Ok(CopyStep::NeedMore);
            };
            if tag != COPY_DATA_TAG {
                return Ok(CopyStep::Other);
            }
            let pending = self.pending();
            if let Some(body) = pending.get(HEADER_BYTES..total) {
                buffer.extend_from_slice(body);
                self.start += total;
            } else if total > DIRECT_BYTES_MIN {
                buffer.extend_from_slice(pending.get(HEADER_BYTES..).unwrap_or_default());
                let missing = total - pending.len();
                self.start = self.end;
                return Ok(CopyStep::Direct(missing));
            } else {
                return Ok(CopyStep::NeedMore);
            }
        }
    }

    /// Reads so many bytes of a message's body straight into the caller's buffer.
    pub(crate) async fn read_direct(
        &mut self,
        buffer: &mut Vec<u8>,
        mut missing: usize,
    ) -> Result<(), PgError> {
        while missing > 0 {
            if buffer.capacity() == buffer.len() {
                buffer.reserve(missing.min(buffer.len().max(INPUT_BYTES)));
            }
            let limit = u64::try_from(missing).unwrap_or(u64::MAX);
            let read = within(self.silence_max, (&mut self.stream).take(limit).read_buf(buffer)).await?;
            if read == 0 {
                return Err(PgError::Closed);
            }
            missing -= read;
        }
        Ok(())
    }

    /// Writes some of the data; while the server doesn't take any, reads what it sends, so that neither waits for the
    /// other. Returns how much was written, which is 0 if something was read instead.
    pub(crate) async fn write_some(&mut self, data: &[u8]) -> Result<usize, PgError> {
        self.make_room()?;
        let may_read = self.pending().len() < UNREAD_BYTES_MAX;
        let (stream, input, end) = (&mut self.stream, &mut self.input, &mut self.end);
        let work = poll_fn(|context| {
            let mut room = ReadBuf::new(input.get_mut(*end..).unwrap_or_default());
            if may_read && let Poll::Ready(result) = Pin::new(&mut *stream).poll_read(context, &mut room) {
                let read = room.filled().len();
                *end += read;
                return Poll::Ready(match result {
                    Err(error) => Err(error),
                    Ok(()) if read == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(()) => Ok(0),
                });
            }
            Pin::new(&mut *stream).poll_write(context, data)
        });
        match within(self.silence_max, work).await {
            Err(PgError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(PgError::Closed),
            result => result,
        }
    }

    /// Writes everything, reading meanwhile. For short messages; the caller looks at the input afterwards.
    pub(crate) async fn write_all(&mut self, mut data: &[u8]) -> Result<(), PgError> {
        while !data.is_empty() {
            let written = self.write_some(data).await?;
            data = data.get(written..).unwrap_or_default();
        }
        self.flush().await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), PgError> {
        let (limit, stream) = (self.silence_max, &mut self.stream);
        within(
            limit,
            poll_fn(|context| Pin::new(&mut *stream).poll_flush(context)),
        )
        .await
    }

    /// Ends the connection's writing side.
    pub(crate) async fn shutdown(&mut self) -> Result<(), PgError> {
        within(self.silence_max, self.stream.shutdown()).await
    }

    /// Waits until the server closes the connection; what it still sends is thrown away.
    pub(crate) async fn wait_for_end(&mut self) {
        let mut scrap = [0; 256];
        while matches!(self.stream.read(&mut scrap).await, Ok(read) if read > 0) {}
    }
}
