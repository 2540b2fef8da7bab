//! A running stream of WAL, fed into the task that stores it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pgkeep_pg::PgError;
use pgkeep_pg::replication::{StandbyStatus, StreamLimits, WalEvent, WalStream};
use pgkeep_pgformat::{Lsn, SegmentSize, Timeline};
use pgkeep_repository::wal::WalCompressor;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::WalError;
use crate::state::Told;
use crate::storing::{Storing, Work};

/// How a stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As it was told to.
    Stopped,
    /// Another timeline begins.
    TimelineEnd { next: Timeline, at: Lsn },
    /// The server shuts down.
    Shutdown,
    /// Nothing became durable for so long that the connection isn't worth keeping: a server that shuts down would wait for
    /// it. The server keeps the WAL.
    Stalled,
}

/// What came and isn't stored yet; [`Rest::store`] it, when nothing holds up the server any more.
pub(crate) struct Rest {
    storing: Storing,
    intake: Intake,
    told: Told,
}

/// When to stop.
pub(crate) trait Until {
    /// Waits until something about it changes; for ever if nothing can.
    async fn changed(&mut self) -> Result<(), WalError>;
    /// Whether it is time, when WAL has come so far.
    fn is_reached(&self, received: Lsn) -> bool;
}

/// What came and hasn't been handed on.
struct Intake {
    size: SegmentSize,
    /// Where the next byte belongs.
    position: Lsn,
    pending: BytesMut,
    ready: VecDeque<Work>,
    /// Up to where all was handed on to be stored without waiting for more.
    flushed: Lsn,
    /// When the oldest byte came that nobody has begun to store.
    oldest: Option<Instant>,
    /// Since when there is something that isn't durable, and nothing has become so.
    behind_since: Option<Instant>,
}

impl Intake {
    fn new(size: SegmentSize, position: Lsn) -> Self {
        Self {
            size,
            position,
            pending: BytesMut::new(),
            ready: VecDeque::new(),
            flushed: position,
            oldest: None,
            behind_since: None,
        }
    }

    /// Takes bytes that follow; cuts them where a piece is full, and where a segment ends.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.oldest.get_or_insert_with(Instant::now);
            self.behind_since.get_or_insert_with(Instant::now);
            let to_edge = self.size.bytes() - self.position.as_u64() % self.size.bytes();
            let room = WalCompressor::FRAME_BYTES_MAX - self.pending.len();
            let length = room.min(usize::try_from(to_edge).unwrap_or(usize::MAX));
            let (piece, rest) = bytes.split_at(length.min(bytes.len()));
            self.pending.extend_from_slice(piece);
            self.position = Lsn::new(self.position.as_u64() + piece.len() as u64);
            bytes = rest;
            let at_edge = self.position.as_u64().is_multiple_of(self.size.bytes());
            if at_edge || self.pending.len() == WalCompressor::FRAME_BYTES_MAX {
                self.cut();
            }
            if at_edge {
                // A whole segment goes by itself.
                self.oldest = None;
            }
        }
    }

    fn cut(&mut self) {
        if !self.pending.is_empty() {
            let piece: Bytes = self.pending.split().freeze();
            self.ready.push_back(Work::Bytes(piece));
        }
    }

    fn flush(&mut self) {
        self.cut();
        self.ready.push_back(Work::Flush);
        self.flushed = self.position;
        self.oldest = None;
    }
}

/// Something happened.
enum Step {
    /// WAL came, or a word of the server, or nothing yet.
    Came,
    Durable,
    Sent,
    Flush,
    Status,
    Until,
    Stalled,
    Ended(Ended),
    StoringEnded,
}

/// Feeds a stream into the store until it ends, or `until` says so. Confirms what is durable, and nothing else.
pub(crate) struct Pump<'a, U> {
    pub limits: StreamLimits,
    pub size: SegmentSize,
    /// `None`: only whole segments, and the rest at the end.
    pub flush_after: Option<Duration>,
    /// What has come is stored as soon as all that was handed on before is durable.
    pub synchronous: bool,
    /// `None`: whatever the store does, the connection is kept.
    pub stall_max: Option<Duration>,
    /// True when the slot is to be dropped, for which the connection has to go.
    pub releasing: Option<watch::Receiver<bool>>,
    pub told: &'a Told,
    pub until: &'a mut U,
}

impl<U: Until> Pump<'_, U> {
    /// Runs it. Stopped, or at the end of a timeline, all that came is durable; else the rest is given back.
    ///
    /// # Errors
    /// What can't be stored. That the connection failed stands beside the rest, which is stored all the same.
    pub async fn run(
        mut self,
        mut stream: WalStream<'_>,
        mut storing: Storing,
    ) -> Result<(Result<Ended, PgError>, Lsn, Option<Rest>), WalError> {
        let mut intake = Intake::new(self.size, stream.position());
        let ended = match self.feed(&mut stream, &mut storing, &mut intake).await {
            Err(WalError::Server(error)) => Err(error),
            ended => Ok(ended?),
        };
        let received = intake.position;
        if !matches!(ended, Ok(Ended::Stopped | Ended::TimelineEnd { .. })) {
            let told = self.told.clone();
            let rest = Rest {
                storing,
                intake,
                told,
            };
            return Ok((ended, received, Some(rest)));
        }
        let mut alive = Some(&mut stream);
        drain(&mut alive, &mut storing, intake, self.limits, self.told).await?;
        if ended.as_ref().is_ok_and(|ended| *ended == Ended::Stopped)
            && alive.is_some()
            && let Err(error) = stream.finish().await
        {
            tracing::debug!(%error, "the stream doesn't end cleanly");
        }
        Ok((ended, received, None))
    }

    async fn feed(
        &mut self,
        stream: &mut WalStream<'_>,
        storing: &mut Storing,
        intake: &mut Intake,
    ) -> Result<Ended, WalError> {
        let mut status_due = Instant::now() + self.limits.status_interval;
        loop {
            if self.until.is_reached(intake.position) {
                return Ok(Ended::Stopped);
            }
            match self.step(stream, storing, intake, status_due).await? {
                Step::Came | Step::Sent | Step::Until => {}
                Step::Flush => intake.flush(),
                Step::Stalled => return Ok(Ended::Stalled),
                step @ (Step::Durable | Step::Status) => {
                    confirm(stream, storing, intake.position, self.told).await?;
                    if matches!(step, Step::Durable) {
                        let behind = *storing.durable.borrow() < intake.position;
                        intake.behind_since = behind.then(Instant::now);
                    }
                    status_due = Instant::now() + self.limits.status_interval;
                }
                Step::Ended(ended) => return Ok(ended),
                Step::StoringEnded => {
                    storing.ended().await?;
                    return Err(WalError::Internal("storing ended by itself".to_owned()));
                }
            }
        }
    }

    async fn step(
        &mut self,
        stream: &mut WalStream<'_>,
        storing: &mut Storing,
        intake: &mut Intake,
        status_due: Instant,
    ) -> Result<Step, WalError> {
        let work = storing
            .work
            .as_ref()
            .ok_or_else(|| WalError::Internal("nothing is stored any more".to_owned()))?;
        let may_read = intake.ready.is_empty();
        let stall_due = self.stall_max.zip(intake.behind_since).map(|(max, at)| at + max);
        let is_waited_for = self.synchronous && *storing.durable.borrow() >= intake.flushed;
        let flush_after = match is_waited_for {
            true => Some(Duration::ZERO),
            false => self.flush_after,
        };
        let flush_due = flush_after.zip(intake.oldest).map(|(after, at)| at + after);
        tokio::select! {
            biased;
            changed = storing.durable.changed() => match changed {
                Ok(()) => Ok(Step::Durable),
                Err(_) => Ok(Step::StoringEnded),
            },
            () = is_told(&mut self.releasing) => Ok(Step::Stalled),
            changed = self.until.changed() => changed.map(|()| Step::Until),
            permit = work.reserve(), if !may_read => match permit {
                Ok(permit) => {
                    if let Some(work) = intake.ready.pop_front() {
                        permit.send(work);
                    }
                    Ok(Step::Sent)
                }
                Err(_) => Ok(Step::StoringEnded),
            },
            () = tokio::time::sleep_until(flush_due.unwrap_or(status_due)), if may_read && flush_due.is_some() => Ok(Step::Flush),
            () = tokio::time::sleep_until(stall_due.unwrap_or(status_due)), if stall_due.is_some() => Ok(Step::Stalled),
            // Whoever isn't read from says what it has to say all the same.
            () = tokio::time::sleep_until(status_due), if !may_read => Ok(Step::Status),
            came = read(stream, intake, self.told), if may_read => came.map_err(WalError::Server),
        }
    }
}

impl Rest {
    /// Stores it. Returns the position behind it.
    ///
    /// # Errors
    /// It can't be stored.
    pub async fn store(mut self) -> Result<Lsn, WalError> {
        let received = self.intake.position;
        let limits = StreamLimits::default();
        drain(&mut None, &mut self.storing, self.intake, limits, &self.told).await?;
        Ok(received)
    }
}

async fn confirm(
    stream: &mut WalStream<'_>,
    storing: &mut Storing,
    received: Lsn,
    told: &Told,
) -> Result<(), WalError> {
    let flushed = *storing.durable.borrow_and_update();
    told.change(|state| {
        state.received = received;
        state.durable = flushed;
    });
    let status = StandbyStatus {
        // What came and isn't durable is in memory alone: with `remote_write`, too, no commit waits for less.
        written: flushed,
        flushed,
    };
    Ok(stream.confirm(status).await?)
}

/// Stores all that came, and confirms it as long as there is somebody to tell.
async fn drain(
    stream: &mut Option<&mut WalStream<'_>>,
    storing: &mut Storing,
    mut intake: Intake,
    limits: StreamLimits,
    told: &Told,
) -> Result<(), WalError> {
    intake.flush();
    let received = intake.position;
    let work = storing.work.take();
    let feed = async move {
        let Some(work) = work else { return };
        for item in intake.ready {
            // If nobody takes it, the task's own end tells why.
            let _ = work.send(item).await;
        }
    };
    let mut feed = std::pin::pin!(feed);
    let mut fed = false;
    loop {
        let durable = storing.durable.clone();
        let ended = tokio::select! {
            biased;
            () = &mut feed, if !fed => {
                fed = true;
                continue;
            }
            ended = storing.ended() => Some(ended),
            () = changed(durable) => None,
            () = tokio::time::sleep(limits.status_interval) => None,
        };
        storing.durable.mark_unchanged();
        if let Some(alive) = stream.as_mut()
            && let Err(error) = confirm(alive, storing, received, told).await
        {
            tracing::debug!(%error, "what became durable can't be confirmed");
            *stream = None;
        }
        if let Some(ended) = ended {
            ended?;
            break;
        }
    }
    let durable = *storing.durable.borrow();
    told.change(|state| {
        state.received = received;
        state.durable = durable;
    });
    if durable < received {
        return Err(WalError::Internal(format!(
            "WAL came up to {received}, and is durable up to {durable}"
        )));
    }
    Ok(())
}

/// Returns when that is true, and never if it can't be.
async fn is_told(releasing: &mut Option<watch::Receiver<bool>>) {
    if let Some(releasing) = releasing
        && releasing.wait_for(|releasing| *releasing).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Returns when there is something new, and never if there can't be.
async fn changed(mut durable: watch::Receiver<Lsn>) {
    if durable.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Reads one message. Given up at any time, nothing is lost.
async fn read(stream: &mut WalStream<'_>, intake: &mut Intake, told: &Told) -> Result<Step, PgError> {
    Ok(match stream.next().await? {
        Some(WalEvent::Data { bytes, .. }) => {
            intake.take(bytes);
            Step::Came
        }
        Some(WalEvent::Keepalive {
            end, reply_requested, ..
        }) => {
            told.change(|state| state.server_end = end);
            // A server that shuts down asks, and waits until all that it has sent is durable.
            match reply_requested && intake.oldest.is_some() {
                true => Step::Flush,
                false => Step::Came,
            }
        }
        Some(WalEvent::TimelineEnd { next, at }) => Step::Ended(Ended::TimelineEnd { next, at }),
        Some(WalEvent::Shutdown) | None => Step::Ended(Ended::Shutdown),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_join_to_what_came_and_end_with_segments(
            start in 0_u64..4, lengths in proptest::collection::vec(0_usize..700_000, 1..20),
        ) {
            let size = SegmentSize::new(1 << 20).unwrap();
            let position = Lsn::new(start << 20);
            let mut intake = Intake::new(size, position);
            let mut all = Vec::new();
            for (index, length) in lengths.into_iter().enumerate() {
                let bytes = vec![index as u8; length];
                intake.take(&bytes);
                all.extend_from_slice(&bytes);
            }
            intake.flush();
            let (mut joined, mut at) = (Vec::new(), position.as_u64());
            for work in intake.ready {
                let Work::Bytes(bytes) = work else { continue };
                let end = at + bytes.len() as u64 - 1;
                prop_assert_eq!(at >> 20, end >> 20, "a piece goes over a segment's end");
                at = end + 1;
                joined.extend_from_slice(&bytes);
            }
            prop_assert!(joined == all);
            prop_assert_eq!(Lsn::new(at), intake.position);
        }
    }
}
