use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BytesMut};
use pgkeep_pgformat::{Lsn, Timeline};
use postgres_protocol::message::{backend, frontend};
use tokio::time::{Instant, timeout_at};

use super::messages::{WalMessage, lsn_and_timeline, put_status, wal_message};
use super::refused;
use super::result::{ResultEnd, result_set, unexpected};
use crate::error::ServerError;
use crate::wire::{Frame, Patience};
use crate::{PgError, Session};

/// CopyBothResponse, which `postgres-protocol` doesn't know.
pub(crate) const COPY_BOTH_RESPONSE_TAG: u8 = b'W';
/// Seconds from 1970 to 2000, where PostgreSQL's times begin.
const EPOCH_SECONDS: i64 = 946_684_800;
/// Statuses that wait for a server that takes none: more than a few say nothing new.
const OUTPUT_BYTES_MAX: usize = 4096;

/// When a stream of WAL says something unasked, and when the server's silence is its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// A status goes out at least this often; it must be less than the server's `wal_sender_timeout`.
    pub status_interval: Duration,
    /// Not a byte for so long, and the server is asked for a reply.
    pub silence_max: Duration,
    /// Not a byte for so long after it was asked, and the connection is given up.
    pub reply_max: Duration,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            status_interval: Duration::from_secs(10),
            silence_max: Duration::from_secs(60),
            reply_max: Duration::from_secs(60),
        }
    }
}

/// How far WAL came, positions behind the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StandbyStatus {
    /// Received.
    pub written: Lsn,
    /// Durable: the server may forget what lies before, and lets commits go on that wait for this.
    pub flushed: Lsn,
}

/// What comes next in a stream of WAL.
#[derive(Debug, PartialEq, Eq)]
pub enum WalEvent<'a> {
    /// Bytes of the WAL. They lie in the session's input buffer, and follow those before without a gap.
    Data {
        /// Where the first one belongs.
        start: Lsn,
        /// When the server sent them, in microseconds since 2000.
        server_time: i64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The server says how far its own WAL is. A reply that it wants is sent already.
    Keepalive {
        /// The end of what it has sent.
        end: Lsn,
        /// When, in microseconds since 2000.
        server_time: i64,
        /// Did it want a reply?
        reply_requested: bool,
    },
    /// The timeline was left: another one begins at this position. The session can be used again.
    TimelineEnd {
        /// The one that follows.
        next: Timeline,
        /// Where.
        at: Lsn,
    },
    /// The server shuts down, after all that it had was confirmed. The session is gone.
    Shutdown,
}

/// A running START_REPLICATION (`StartReplication`, `replication/walsender.c`).
///
/// [`WalStream::next`] may be given up at any time and called again; only at a timeline's end what was read of the next one
/// is lost then, which the next call tells as an error. Who doesn't call it for long must call
/// [`WalStream::confirm`] meanwhile, at least every [`StreamLimits::status_interval`]: else the server takes this side for
/// dead after `wal_sender_timeout`.
#[derive(Debug)]
pub struct WalStream<'a> {
    session: &'a mut Session,
    limits: StreamLimits,
    /// Where the next byte belongs.
    position: Lsn,
    status: StandbyStatus,
    /// What still has to be written; whole messages, of which the first may have been begun.
    output: BytesMut,
    /// The server takes nothing any more. What it said before is still to be read, and tells why.
    mute: bool,
    status_due: Instant,
    /// When the server's last byte came.
    heard: Instant,
    /// When it was asked for a reply since.
    asked: Option<Instant>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Streaming,
    /// The server has nothing more of this timeline; a result with the next one comes.
    Ending,
    /// This side has said that it wants no more; nothing may be said after it.
    Finishing,
    Ended,
}

/// A message, taken off the input.
enum Step {
    Data(Frame, Lsn, i64),
    Keepalive(Lsn, i64, bool),
    CopyDone,
    Shutdown,
}

impl<'a> WalStream<'a> {
    pub(super) async fn begin(
        session: &'a mut Session,
        command: &str,
        from: Lsn,
        limits: StreamLimits,
    ) -> Result<Self, PgError> {
        session.start_query(command).await?;
        let frame = session.next().await?;
        let stage = match frame.tag {
            COPY_BOTH_RESPONSE_TAG => Stage::Streaming,
            // Nothing of this timeline lies behind the position: its end is told at once.
            backend::ROW_DESCRIPTION_TAG => Stage::Ending,
            backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(session.wire.body(frame));
                return Err(refused(session, error).await);
            }
            tag => return Err(unexpected(session, tag)),
        };
        if stage == Stage::Streaming {
            // It has limits of its own.
            session.wire.patience = Patience::Endless;
        }
        let now = Instant::now();
        Ok(Self {
            session,
            limits,
            position: from,
            status: StandbyStatus::default(),
            output: BytesMut::new(),
            mute: false,
            status_due: now + limits.status_interval,
            heard: now,
            asked: None,
            stage,
        })
    }

    /// Where the next byte belongs.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Waits for what comes next; `None` after the end.
    ///
    /// # Errors
    /// [`PgError::Silent`] if the server said nothing for too long, [`PgError::Server`] if it gave up (58P01: it doesn't
    /// have the WAL any more), [`PgError::Closed`] and the like if the connection failed.
    pub async fn next(&mut self) -> Result<Option<WalEvent<'_>>, PgError> {
        match self.stage {
            Stage::Streaming => {}
            Stage::Ending => return self.timeline_end().await.map(Some),
            Stage::Finishing | Stage::Ended => return Ok(None),
        }
        match self.step().await? {
            Step::Data(frame, start, server_time) => {
                // Read a second time, because what it lends would keep the session for all other ways.
                match wal_message(self.session.wire.body(frame)) {
                    Some(WalMessage::Data { bytes, .. }) => Ok(Some(WalEvent::Data {
                        start,
                        server_time,
                        bytes,
                    })),
                    _ => Err(PgError::protocol("a message of the WAL is broken")),
                }
            }
            Step::Keepalive(end, server_time, reply_requested) => Ok(Some(WalEvent::Keepalive {
                end,
                server_time,
                reply_requested,
            })),
            Step::CopyDone => {
                self.stage = Stage::Ending;
                frontend::copy_done(&mut self.output);
                self.timeline_end().await.map(Some)
            }
            Step::Shutdown => {
                self.stage = Stage::Ended;
                // It has said its last word; whoever uses the session again hears that it is closed.
                self.session.give_up(PgError::Closed);
                Ok(Some(WalEvent::Shutdown))
            }
        }
    }

    /// Tells the server how far WAL came, at once. A position never goes back. That the connection has failed is no error
    /// here: [`WalStream::next`] tells it, after what still came.
    ///
    /// # Errors
    /// [`PgError::Silent`] if the server takes nothing for too long.
    pub async fn confirm(&mut self, status: StandbyStatus) -> Result<(), PgError> {
        self.status.written = self.status.written.max(status.written);
        self.status.flushed = self.status.flushed.max(status.flushed);
        if self.stage != Stage::Streaming {
            return Ok(());
        }
        self.put_status(false);
        self.write_output().await
    }

    /// Ends the stream: what the server still sends is thrown away, and the session can be used again. What is confirmed
    /// before holds.
    ///
    /// # Errors
    /// As [`WalStream::next`].
    pub async fn finish(mut self) -> Result<(), PgError> {
        if self.stage == Stage::Streaming {
            self.stage = Stage::Finishing;
            frontend::copy_done(&mut self.output);
            self.write_output().await?;
            loop {
                match self.step().await? {
                    Step::Data(..) | Step::Keepalive(..) => {}
                    Step::CopyDone => break,
                    Step::Shutdown => {
                        self.session.give_up(PgError::Closed);
                        return Ok(());
                    }
                }
            }
            self.stage = Stage::Ending;
        }
        if self.stage == Stage::Ending {
            self.write_output().await?;
            self.session.wire.patience = self.session.patience.clone();
            super::result::results(self.session).await?;
        }
        Ok(())
    }

    /// The result that follows the end of a timeline, to ReadyForQuery.
    async fn timeline_end(&mut self) -> Result<WalEvent<'static>, PgError> {
        self.write_output().await?;
        self.session.wire.patience = self.session.patience.clone();
        let mut found = None;
        loop {
            let (rows, end) = result_set(self.session).await?;
            let row = rows.first();
            found = found.or_else(|| row.and_then(|row| lsn_and_timeline(row, 1, 0)));
            match end {
                ResultEnd::Complete => {}
                ResultEnd::Other(frame) if frame.tag == backend::READY_FOR_QUERY_TAG => {
                    self.session.ready(frame);
                    self.stage = Stage::Ended;
                    let broken = || PgError::protocol("the end of a timeline doesn't tell the next one");
                    let (at, next) = found.ok_or_else(broken)?;
                    return Ok(WalEvent::TimelineEnd { next, at });
                }
                ResultEnd::Other(frame) => return Err(unexpected(self.session, frame.tag)),
            }
        }
    }

    /// The next message of the copy; statuses go out meanwhile.
    async fn step(&mut self) -> Result<Step, PgError> {
        loop {
            self.write_ready().await;
            let frame = match self.session.absorb()? {
                Some(_) => self.session.wire.take_frame(),
                None => Ok(None),
            };
            match frame {
                Ok(Some(frame)) => {
                    if Instant::now() >= self.status_due {
                        self.put_status(false);
                        self.write_ready().await;
                    }
                    return self.read(frame).await;
                }
                Ok(None) => self.exchange().await?,
                Err(error) => return Err(self.session.give_up(error)),
            }
        }
    }

    async fn read(&mut self, frame: Frame) -> Result<Step, PgError> {
        let body = self.session.wire.body(frame);
        match frame.tag {
            backend::COPY_DATA_TAG => {}
            backend::COPY_DONE_TAG => return Ok(Step::CopyDone),
            // WalSndDone: the end of the server, not of the timeline.
            backend::COMMAND_COMPLETE_TAG => return Ok(Step::Shutdown),
            backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(body);
                self.stage = Stage::Ended;
                self.session.wire.patience = self.session.patience.clone();
                return Err(refused(self.session, error).await);
            }
            tag => return Err(unexpected(self.session, tag)),
        }
        match wal_message(body) {
            Some(WalMessage::Data {
                start, time, bytes, ..
            }) => {
                let end = start.checked_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                match end {
                    Some(end) if start == self.position => {
                        self.position = end;
                        Ok(Step::Data(frame, start, time))
                    }
                    _ => {
                        let text = format!("WAL at {start} came where {} was to follow", self.position);
                        Err(self.session.give_up(PgError::Protocol(text)))
                    }
                }
            }
            Some(WalMessage::Keepalive {
                end,
                time,
                reply_requested,
            }) => {
                if reply_requested {
                    self.put_status(false);
                    // What can't be written now goes out with the next call.
                    self.write_ready().await;
                }
                Ok(Step::Keepalive(end, time, reply_requested))
            }
            None => Err(self
                .session
                .give_up(PgError::protocol("a message of the WAL is broken"))),
        }
    }

    /// Reads or writes something, until a status or the end of all patience is due.
    async fn exchange(&mut self) -> Result<(), PgError> {
        let silence = match self.asked {
            None => self.heard + self.limits.silence_max,
            Some(asked) => asked + self.limits.reply_max,
        };
        let due = silence.min(self.status_due);
        let work = async {
            if !self.output.is_empty() {
                self.write_some().await;
                return Ok(());
            }
            self.session.wire.fill().await?;
            self.heard = Instant::now();
            self.asked = None;
            Ok(())
        };
        match timeout_at(due, work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.session.explain(error).await),
            Err(_) if due < silence => {
                self.put_status(false);
                Ok(())
            }
            Err(_) if self.asked.is_none() => {
                self.asked = Some(Instant::now());
                self.put_status(true);
                Ok(())
            }
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&mut self) -> PgError {
        let error = PgError::Silent {
            endpoint: self.session.target().endpoint(),
            after: self.heard.elapsed(),
            reason: "though a reply was asked for".to_owned(),
        };
        self.session.give_up(error)
    }

    fn put_status(&mut self, ask: bool) {
        self.status_due = Instant::now() + self.limits.status_interval;
        let may_speak = self.stage == Stage::Streaming && !self.mute;
        if may_speak && self.output.len() < OUTPUT_BYTES_MAX {
            let StandbyStatus { written, flushed } = self.status;
            put_status(&mut self.output, written, flushed, now(), ask);
        }
    }

    /// Writes all that waits; a server that takes nothing has as long as one that says nothing.
    async fn write_output(&mut self) -> Result<(), PgError> {
        let until = Instant::now() + self.limits.silence_max + self.limits.reply_max;
        match timeout_at(until, self.write_some()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.silent()),
        }
    }

    /// Writes what can be written without waiting.
    async fn write_ready(&mut self) {
        while !self.output.is_empty() {
            match self.session.wire.write_ready(&self.output).await {
                Ok(0) => return,
                Ok(written) => self.output.advance(written),
                Err(error) => self.fall_mute(&error),
            }
        }
    }

    fn fall_mute(&mut self, error: &PgError) {
        tracing::debug!("the server takes no more statuses: {error}");
        self.output.clear();
        self.mute = true;
    }

    async fn write_some(&mut self) {
        self.write_ready().await;
        while !self.output.is_empty() {
            match self.session.wire.write_some(&self.output).await {
                Ok(written) => self.output.advance(written),
                Err(error) => self.fall_mute(&error),
            }
        }
        if !self.mute
            && let Err(error) = self.session.wire.flush().await
        {
            self.fall_mute(&error);
        }
    }
}

/// Microseconds since 2000.
fn now() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_micros()).unwrap_or_default() - EPOCH_SECONDS * 1_000_000
}
