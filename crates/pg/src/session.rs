use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::{backend, frontend};
use tokio::time::timeout;

use crate::PgError;
use crate::cancel::CancelHandle;
use crate::conninfo::Target;
use crate::error::ServerError;
use crate::row::{Row, column_names};
use crate::wire::{Frame, Patience, Wire};

/// How many notices are kept until somebody takes them; the oldest go first.
const NOTICES_MAX: usize = 256;
/// How many run-time parameters a server may report.
const PARAMETERS_MAX: usize = 256;
/// What [`Session::query`] collects at most.
const RESULT_BYTES_MAX: usize = 256 << 20;
/// How long a cancelled statement may take to end.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How long saying goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Longer statements are written to the socket in such pieces (they are sent whole anyway).
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// One connection to a PostgreSQL server, one statement at a time.
///
/// A call whose future is dropped before it ends, or a copy that isn't finished, leaves the session broken
/// ([`Session::is_broken`]): what the server would send next belongs to nobody.
pub struct Session {
    pub(crate) wire: Wire,
    pub(crate) target: Target,
    pub(crate) cancel: CancelHandle,
    parameters: BTreeMap<String, String>,
    notices: VecDeque<ServerError>,
    transaction_status: u8,
    process_id: i32,
    /// A call is under way, or was given up.
    busy: bool,
    broken: bool,
    pub(crate) patience: Patience,
}

/// What a new session knows of its server.
pub(crate) struct Opened {
    pub(crate) wire: Wire,
    pub(crate) target: Target,
    pub(crate) cancel: CancelHandle,
    pub(crate) process_id: i32,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) notices: Vec<ServerError>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("target", &self.target)
            .field("process_id", &self.process_id)
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects as libpq does: one host after another, TLS as `sslmode` says, every authentication method with a
    /// password. Each address has `connect_timeout` (15 s unless set).
    ///
    /// # Errors
    /// [`PgError::Connect`], [`PgError::Tls`], [`PgError::Authentication`], or [`PgError::Protocol`] if it is no
    /// PostgreSQL server.
    pub async fn connect(target: &Target) -> Result<Self, PgError> {
        crate::connect::connect(target).await
    }

    pub(crate) fn opened(opened: Opened) -> Self {
        let patience = Patience::WhileReachable(Arc::new(opened.target.clone()));
        let mut wire = opened.wire;
        wire.patience = patience.clone();
        let mut session = Self {
            wire,
            target: opened.target,
            cancel: opened.cancel,
            parameters: opened.parameters,
            notices: VecDeque::new(),
            transaction_status: b'I',
            process_id: opened.process_id,
            busy: false,
            broken: false,
            patience,
        };
        for notice in opened.notices {
            session.keep_notice(notice);
        }
        session
    }

    /// Where this session is connected to: of several hosts, the one that was chosen. Other connections that must
    /// reach the same server (workers of one snapshot, `pg_dump`) use it.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A run-time parameter that the server reports (`server_version`, `TimeZone`, `in_hot_standby`, ...).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The server's version as a number: 160015 for 16.15, 0 if it is unreadable.
    pub fn server_version_num(&self) -> u32 {
        self.parameter("server_version")
            .and_then(version_number)
            .unwrap_or_default()
    }

    /// `I` idle, `T` in a transaction, `E` in a failed transaction.
    pub fn transaction_status(&self) -> u8 {
        self.transaction_status
    }

    /// The process of the server that serves this session.
    pub fn backend_pid(&self) -> i32 {
        self.process_id
    }

    /// Can it not be used any more?
    pub fn is_broken(&self) -> bool {
        self.broken || self.busy
    }

    /// How long the server may be silent while it is waited for, whatever the statement. When it expires, the statement is
    /// cancelled and the call returns [`PgError::Deadline`]. `None` (the default): as long as the server answers a new
    /// connection when it is asked ([`Silence`](crate::Silence)); when it doesn't, the call returns [`PgError::Silent`].
    pub fn set_statement_deadline(&mut self, silence_max: Option<Duration>) {
        self.patience = match silence_max {
            Some(limit) => Patience::Limited(limit),
            None => Patience::WhileReachable(Arc::new(self.target.clone())),
        };
        self.wire.patience = self.patience.clone();
    }

    /// Takes the notices and warnings that came since the last call, oldest first (256 at most are kept).
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        self.notices.drain(..).collect()
    }

    /// What cancels this session's statement from anywhere else.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Says goodbye and closes the connection.
    pub async fn close(mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        let goodbye = async {
            self.wire.write_all(&message).await?;
            self.wire.shutdown().await
        };
        // The server may be gone already, which is as good.
        let _ = timeout(CLOSE_LIMIT, goodbye).await;
    }

    /// Runs statements by the simple protocol and collects the rows (all in one list, if several statements give
    /// any; 256 MiB at most).
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it; see [`PgError`].
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>, PgError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        self.query_each(sql, |row| {
            bytes += row.bytes();
            if bytes > RESULT_BYTES_MAX {
                return Err(PgError::TooLarge(RESULT_BYTES_MAX));
            }
            rows.push(row);
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    /// Runs statements by the simple protocol and hands over one row after the other, so that memory doesn't grow
    /// with the result. Returns how many rows there were. After an error of `each` the rest is read and thrown away,
    /// and the session stays usable.
    ///
    /// # Errors
    /// What `each` returned, or [`PgError`].
    pub async fn query_each<E: From<PgError>>(
        &mut self,
        sql: &str,
        each: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<u64, E> {
        self.start_query(sql).await?;
        self.read_rows(each).await.map(|(rows, _)| rows)
    }

    /// Runs one or several statements by the simple protocol and returns the row count of the last one.
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it; see [`PgError`].
    pub async fn execute(&mut self, sql: &str) -> Result<u64, PgError> {
        self.start_query(sql).await?;
        self.read_rows(|_| Ok::<(), PgError>(()))
            .await
            .map(|(_, affected)| affected)
    }

    /// Runs one statement by the extended protocol, with text parameters `$1`, `$2`, ... (`None` is NULL).
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it; see [`PgError`].
    pub async fn query_params(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Vec<Row>, PgError> {
        let message = extended_query(sql, params).map_err(|error| PgError::Statement(error.to_string()))?;
        self.start(&message).await?;
        let mut rows = Vec::new();
        let mut bytes = 0;
        self.read_rows(|row| {
            bytes += row.bytes();
            rows.push(row);
            if bytes > RESULT_BYTES_MAX {
                Err(PgError::TooLarge(RESULT_BYTES_MAX))
            } else {
                Ok(())
            }
        })
        .await?;
        Ok(rows)
    }

    /// Sends a simple query; the session is busy until its end was read.
    pub(crate) async fn start_query(&mut self, sql: &str) -> Result<(), PgError> {
        let mut message = BytesMut::with_capacity(sql.len() + 6);
        frontend::query(sql, &mut message).map_err(|error| PgError::Statement(error.to_string()))?;
        self.start(&message).await
    }

    async fn start(&mut self, message: &[u8]) -> Result<(), PgError> {
        if self.is_broken() {
            return Err(PgError::Broken);
        }
        self.busy = true;
        self.write(message).await
    }

    /// Writes while it listens. An error of the server that comes meanwhile stays in the input.
    pub(crate) async fn write(&mut self, mut data: &[u8]) -> Result<(), PgError> {
        while !data.is_empty() {
            match self.wire.write_some(data).await {
                Ok(written) => data = data.get(written..).unwrap_or_default(),
                Err(error) => return Err(self.abandon(error).await),
            }
            self.absorb()?;
        }
        match self.wire.flush().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.abandon(error).await),
        }
    }

    /// Takes the messages off the input that may come at any time. Returns the tag of the next other one.
    pub(crate) fn absorb(&mut self) -> Result<Option<u8>, PgError> {
        loop {
            match self.wire.next_tag() {
                Ok(Some(
                    backend::NOTICE_RESPONSE_TAG
                    | backend::PARAMETER_STATUS_TAG
                    | backend::NOTIFICATION_RESPONSE_TAG,
                )) => match self.wire.take_frame() {
                    Ok(Some(frame)) => self.take_side_message(frame),
                    Ok(None) => return Ok(None),
                    Err(error) => return Err(self.give_up(error)),
                },
                Ok(tag) => return Ok(tag),
                Err(error) => return Err(self.give_up(error)),
            }
        }
    }

    fn take_side_message(&mut self, frame: Frame) {
        let body = self.wire.body(frame);
        match frame.tag {
            backend::NOTICE_RESPONSE_TAG => {
                let notice = ServerError::from_body(body);
                self.keep_notice(notice);
            }
            backend::PARAMETER_STATUS_TAG => {
                if let Some((name, value)) = parameter_status(body)
                    && (self.parameters.len() < PARAMETERS_MAX || self.parameters.contains_key(&name))
                {
                    self.parameters.insert(name, value);
                }
            }
            // LISTEN is never used here.
            _ => {}
        }
    }

    fn keep_notice(&mut self, notice: ServerError) {
        tracing::debug!(severity = %notice.severity, sqlstate = %notice.sqlstate, "server: {}", notice.message);
        if self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }

    /// Waits for the next message that belongs to the statement.
    pub(crate) async fn next(&mut self) -> Result<Frame, PgError> {
        loop {
            let frame = match self.wire.next_frame().await {
                Ok(frame) => frame,
                Err(error) => return Err(self.explain(error).await),
            };
            match frame.tag {
                backend::NOTICE_RESPONSE_TAG
                | backend::PARAMETER_STATUS_TAG
                | backend::NOTIFICATION_RESPONSE_TAG => self.take_side_message(frame),
                _ => return Ok(frame),
            }
        }
    }

    /// Deals with a failure of the connection: what the server said last explains it better than a broken pipe, and
    /// a statement over its deadline is cancelled.
    pub(crate) async fn explain(&mut self, error: PgError) -> PgError {
        match error {
            PgError::Deadline { after, .. } => {
                let cancelled = self.cancel_and_drain().await;
                PgError::Deadline { after, cancelled }
            }
            error @ PgError::Silent { .. } => {
                self.leave().await;
                error
            }
            error => {
                let last_words = timeout(CLOSE_LIMIT, self.last_words()).await.ok().flatten();
                self.broken = true;
                last_words.map_or(error, |words| PgError::Server(Box::new(words)))
            }
        }
    }

    /// The connection failed in the middle of a message: there is no way on, but the server needn't work on either.
    pub(crate) async fn abandon(&mut self, error: PgError) -> PgError {
        if !matches!(error, PgError::Deadline { .. }) {
            return self.explain(error).await;
        }
        self.leave().await;
        error
    }

    /// Ends the session without waiting for what the server still says; the server is told, if it can be.
    async fn leave(&mut self) {
        self.broken = true;
        let handle = self.cancel.clone();
        if !matches!(timeout(CANCEL_GRACE, handle.cancel()).await, Ok(Ok(()))) {
            tracing::debug!(
                process_id = self.process_id,
                "the statement could not be cancelled"
            );
        }
    }

    /// The error that the server sent before it closed the connection.
    async fn last_words(&mut self) -> Option<ServerError> {
        loop {
            let frame = self.wire.next_frame().await.ok()?;
            if frame.tag == backend::ERROR_RESPONSE_TAG {
                return Some(ServerError::from_body(self.wire.body(frame)));
            }
        }
    }

    /// The session ends with this error.
    pub(crate) fn give_up(&mut self, error: PgError) -> PgError {
        self.broken = true;
        error
    }

    async fn cancel_and_drain(&mut self) -> bool {
        self.wire.patience = Patience::Endless;
        let handle = self.cancel.clone();
        let work = async {
            handle.cancel().await?;
            loop {
                let frame = self.wire.next_frame().await?;
                if frame.tag == backend::READY_FOR_QUERY_TAG {
                    return Ok::<_, PgError>(frame);
                }
            }
        };
        let result = timeout(CANCEL_GRACE, work).await;
        self.wire.patience = self.patience.clone();
        match result {
            Ok(Ok(frame)) => {
                self.ready(frame);
                true
            }
            _ => {
                self.broken = true;
                false
            }
        }
    }

    /// The server waits for the next statement.
    pub(crate) fn ready(&mut self, frame: Frame) {
        self.transaction_status = self.wire.body(frame).first().copied().unwrap_or(b'I');
        self.busy = false;
    }

    /// Reads to ReadyForQuery after an error and returns the error.
    pub(crate) async fn drain(&mut self, error: PgError) -> PgError {
        if error.ends_session() {
            return self.give_up(error);
        }
        match self.read_to_ready().await {
            // A later error is only a consequence.
            Ok(_) | Err(PgError::Server(_)) => error,
            Err(PgError::Deadline { .. }) => error,
            Err(_) => self.give_up(error),
        }
    }

    /// Reads to ReadyForQuery and returns the row count of the last command.
    pub(crate) async fn read_to_ready(&mut self) -> Result<u64, PgError> {
        self.read_rows(|_| Ok::<(), PgError>(()))
            .await
            .map(|(_, affected)| affected)
    }

    /// Reads results to ReadyForQuery: how many rows, and the row count of the last command's tag.
    async fn read_rows<E: From<PgError>>(
        &mut self,
        mut each: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(u64, u64), E> {
        let mut columns: Arc<[String]> = Arc::new([]);
        let (mut rows, mut affected) = (0, 0);
        let mut failure: Option<E> = None;
        loop {
            let frame = match self.next().await {
                Ok(frame) => frame,
                Err(error) => return Err(failure.unwrap_or_else(|| error.into())),
            };
            let body = self.wire.body(frame);
            let result = match frame.tag {
                backend::READY_FOR_QUERY_TAG => {
                    self.ready(frame);
                    return failure.map_or(Ok((rows, affected)), Err);
                }
                backend::DATA_ROW_TAG if failure.is_none() => {
                    rows += 1;
                    Row::from_body(&columns, body)
                        .map_err(E::from)
                        .and_then(&mut each)
                }
                backend::ROW_DESCRIPTION_TAG => {
                    column_names(body).map(|names| columns = names).map_err(E::from)
                }
                backend::COMMAND_COMPLETE_TAG => {
                    affected = affected_rows(body);
                    Ok(())
                }
                backend::ERROR_RESPONSE_TAG => {
                    let error = ServerError::from_body(body);
                    if error.is_fatal() {
                        self.broken = true;
                        return Err(failure.unwrap_or_else(|| PgError::Server(Box::new(error)).into()));
                    }
                    Err(PgError::Server(Box::new(error)).into())
                }
                _ => self.unexpected_in_result(frame.tag).await.map_err(E::from),
            };
            if let Err(error) = result {
                failure.get_or_insert(error);
            }
        }
    }

    /// What neither a row nor an error is.
    async fn unexpected_in_result(&mut self, tag: u8) -> Result<(), PgError> {
        match tag {
            backend::COPY_IN_RESPONSE_TAG => {
                let mut message = BytesMut::new();
                frontend::copy_fail("no data: the statement was not sent as a copy", &mut message)?;
                self.write(&message).await?;
                Ok(())
            }
            backend::COPY_OUT_RESPONSE_TAG => Err(PgError::protocol(
                "COPY TO STDOUT was sent as an ordinary statement",
            )),
            backend::DATA_ROW_TAG
            | backend::COPY_DATA_TAG
            | backend::COPY_DONE_TAG
            | backend::EMPTY_QUERY_RESPONSE_TAG
            | backend::PARSE_COMPLETE_TAG
            | backend::BIND_COMPLETE_TAG
            | backend::CLOSE_COMPLETE_TAG
            | backend::NO_DATA_TAG
            | backend::PORTAL_SUSPENDED_TAG
            | backend::PARAMETER_DESCRIPTION_TAG => Ok(()),
            other => Err(self.give_up(PgError::protocol(format!(
                "unexpected message '{}'",
                other.escape_ascii()
            )))),
        }
    }
}

/// Parse, Bind, Describe, Execute and Sync in one go.
fn extended_query(sql: &str, params: &[Option<&str>]) -> std::io::Result<BytesMut> {
    let mut message = BytesMut::new();
    frontend::parse("", sql, [], &mut message)?;
    let text = |param: Option<&str>, buffer: &mut BytesMut| {
        let Some(param) = param else {
            return Ok(postgres_protocol::IsNull::Yes);
        };
        buffer.extend_from_slice(param.as_bytes());
        Ok(postgres_protocol::IsNull::No)
    };
    frontend::bind("", "", [0], params.iter().copied(), text, [0], &mut message).map_err(
        |error| match error {
            frontend::BindError::Conversion(error) => std::io::Error::other(error),
            frontend::BindError::Serialization(error) => error,
        },
    )?;
    frontend::describe(b'P', "", &mut message)?;
    frontend::execute("", 0, &mut message)?;
    frontend::sync(&mut message);
    Ok(message)
}

/// Name and value of a ParameterStatus.
pub(crate) fn parameter_status(body: &[u8]) -> Option<(String, String)> {
    let mut parts = body.split(|byte| *byte == 0);
    let mut text = || {
        parts
            .next()
            .map(|part| String::from_utf8_lossy(part).into_owned())
    };
    text().zip(text())
}

/// `SELECT 5`, `INSERT 0 5`, `COPY 5`: the last number; 0 where there is none.
pub(crate) fn affected_rows(body: &[u8]) -> u64 {
    let tag = std::str::from_utf8(body)
        .unwrap_or_default()
        .trim_end_matches('\0');
    tag.rsplit(' ')
        .next()
        .and_then(|count| count.parse().ok())
        .unwrap_or_default()
}

/// `16.15 (Debian ...)`, `18beta1`, `9.6.24`: as `PQserverVersion` has it.
fn version_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let mut parts = text.get(..end)?.split('.').map(|part| part.parse::<u32>().ok());
    let major = parts.next()??;
    let minor = parts.next().flatten().unwrap_or_default();
    let patch = parts.next().flatten().unwrap_or_default();
    match major {
        0..=9 => Some(major * 10_000 + minor.min(99) * 100 + patch.min(99)),
        10..=99_999 => Some(major * 10_000 + minor.min(9_999)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_libpq_reads_them() {
        assert_eq!(version_number("16.15 (Debian 16.15-1)"), Some(160_015));
        assert_eq!(version_number("18beta1"), Some(180_000));
        assert_eq!(version_number("9.6.24"), Some(90_624));
        assert_eq!(version_number("x"), None);
    }

    #[test]
    fn the_last_number_of_a_tag_is_the_row_count() {
        assert_eq!(affected_rows(b"INSERT 0 5\0"), 5);
        assert_eq!(affected_rows(b"COPY 12\0"), 12);
        assert_eq!(affected_rows(b"BEGIN\0"), 0);
    }
}
