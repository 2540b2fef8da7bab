//! Frames on a stream: one reusable input buffer in which messages are read in place.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use postgres_protocol::message::backend::{COPY_DATA_TAG, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::PgError;
use crate::conninfo::Target;
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
    pub(crate) patience: Patience,
}

/// How long a server that says nothing is waited for.
#[derive(Debug, Clone, Default)]
pub(crate) enum Patience {
    /// For ever; who waits has a limit of its own.
    #[default]
    Endless,
    /// So long.
    Limited(Duration),
    /// As long as it answers when it's asked.
    WhileReachable(Arc<Target>),
}

impl Patience {
    /// On expiry: [`io::ErrorKind::TimedOut`] never comes from a socket read, but may from the kernel's keepalives, so
    /// the expiry has errors of its own.
    async fn wait<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T, PgError> {
        match self {
            Self::Endless => Ok(work.await?),
            Self::Limited(limit) => match timeout(*limit, work).await {
                Ok(result) => Ok(result?),
                Err(_) => Err(PgError::Deadline {
                    after: *limit,
                    cancelled: false,
                }),
            },
            Self::WhileReachable(target) => {
                let work = pin!(work);
                tokio::select! {
                    biased;
                    result = work => Ok(result?),
                    error = target.until_unreachable() => Err(error),
                }
            }
        }
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
            patience: Patience::Endless,
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
        let read = self.patience.wait(self.stream.read(room)).await?;
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
            let read = self
                .patience
                .wait((&mut self.stream).take(limit).read_buf(buffer))
                .await?;
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
        match self.patience.wait(work).await {
            Err(PgError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(PgError::Closed),
            result => result,
        }
    }

    /// Writes what the socket takes at once, which may be nothing; it doesn't wait.
    pub(crate) async fn write_ready(&mut self, data: &[u8]) -> Result<usize, PgError> {
        let stream = &mut self.stream;
        let written = poll_fn(|context| match Pin::new(&mut *stream).poll_write(context, data) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Ready(Ok(0)),
        });
        Ok(written.await?)
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
        let (patience, stream) = (&self.patience, &mut self.stream);
        let flushing = poll_fn(|context| Pin::new(&mut *stream).poll_flush(context));
        patience.wait(flushing).await
    }

    /// Ends the connection's writing side.
    pub(crate) async fn shutdown(&mut self) -> Result<(), PgError> {
        self.patience.wait(self.stream.shutdown()).await
    }

    /// Waits until the server closes the connection; what it still sends is thrown away.
    pub(crate) async fn wait_for_end(&mut self) {
        let mut scrap = [0; 256];
        while matches!(self.stream.read(&mut scrap).await, Ok(read) if read > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::error::ServerError;
    use crate::row::{Row, column_names};

    async fn wire(data: Vec<u8>) -> Wire {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let _ = theirs.write_all(&data).await;
        });
        let mut wire = Wire::new(Stream::Unix(ours));
        wire.authenticated();
        wire
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], length.to_be_bytes().as_slice(), body].concat()
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    /// Everything that reads outside bytes, on the bodies of all frames until the end or the first error.
    async fn read_everything(data: Vec<u8>) {
        let mut wire = wire(data).await;
        while let Ok(frame) = wire.next_frame().await {
            let body = wire.body(frame);
            let _ = ServerError::from_body(body).to_string();
            let _ = crate::session::parameter_status(body);
            let _ = crate::session::affected_rows(body);
            let columns = column_names(body).unwrap_or_else(|_| Arc::new([]));
            if let Ok(row) = Row::from_body(&columns, body) {
                for index in 0..=row.len() {
                    let _ = (
                        row.text(index),
                        row.get::<i64>(index),
                        row.get::<Option<bool>>(index),
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
            run(read_everything(data));
        }

        #[test]
        fn any_bodies_are_read_or_refused(bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(0_u8..6, 0..40)), 0..6)) {
            run(read_everything(bodies.iter().flat_map(|(tag, body)| message(*tag, body)).collect()));
        }

        #[test]
        fn copy_data_comes_out_as_it_went_in(
            sizes in prop::collection::vec(prop_oneof![0..50_usize, 130_000..140_000_usize, 500_000..600_000_usize], 0..12),
            bytes_min in prop_oneof![1..100_usize, 1..2_000_000_usize],
        ) {
            let bodies: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(index, size)| vec![u8::try_from(index).unwrap(); *size]).collect();
            let mut data = bodies.iter().map(|body| message(b'd', body)).collect::<Vec<_>>().concat();
            data.extend(message(b'c', &[]));
            let received = run(async {
                let mut wire = wire(data).await;
                let (mut all, mut buffer) = (Vec::new(), Vec::new());
                loop {
                    match wire.append_copy_data(&mut buffer, bytes_min).unwrap() {
                        CopyStep::Enough => all.append(&mut buffer),
                        CopyStep::NeedMore => wire.fill().await.unwrap(),
                        CopyStep::Direct(missing) => wire.read_direct(&mut buffer, missing).await.unwrap(),
                        CopyStep::Other => break,
                    }
                }
                all.append(&mut buffer);
                assert_eq!(wire.next_frame().await.unwrap().tag, b'c');
                all
            });
            prop_assert_eq!(received, bodies.concat());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_memory_is_taken() {
        run(async {
            for length in [u32::MAX, 0x7fff_ffff, 0x5000_0000, 3, 0] {
                let mut header = vec![b'd'];
                header.extend(length.to_be_bytes());
                let mut wire = wire(header).await;
                assert!(
                    matches!(wire.next_frame().await, Err(PgError::Protocol(_))),
                    "{length}"
                );
                assert!(wire.input.len() <= INPUT_BYTES);
            }
            // A claimed gigabyte that never comes.
            let mut wire = wire(
                [
                    b"d".as_slice(),
                    0x4000_0000_u32.to_be_bytes().as_slice(),
                    &[0; 1000],
                ]
                .concat(),
            )
            .await;
            assert!(matches!(wire.next_frame().await, Err(PgError::Closed)));
            assert!(wire.input.len() <= 2 * INPUT_BYTES);
        });
    }

    #[test]
    fn a_large_message_leaves_no_large_buffer_behind() {
        run(async {
            let data = [
                message(b'D', &vec![7; 20 << 20]),
                message(b'Z', b"I"),
                message(b'Z', b"I"),
            ]
            .concat();
            let mut wire = wire(data).await;
            let frame = wire.next_frame().await.unwrap();
            assert_eq!(wire.body(frame).len(), 20 << 20);
            wire.next_frame().await.unwrap();
            wire.next_frame().await.unwrap();
            assert!(wire.next_frame().await.is_err());
            assert_eq!(wire.input.len(), INPUT_BYTES);
        });
    }
}
