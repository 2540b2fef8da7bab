//! The streaming replication protocol, physical: what a walsender of PostgreSQL 15 to 18 answers (PostgreSQL
//! documentation, "Streaming Replication Protocol"; `replication/walsender.c`, `replication/repl_gram.y`).
//!
//! Such a session takes these commands and no SQL but SHOW. Connecting, TLS, authentication and cancelling are those of
//! every [`Session`].

mod base_backup;
mod messages;
mod result;
mod wal_stream;

use bytes::Bytes;
use pgkeep_pgformat::{Lsn, Timeline};

use crate::error::ServerError;
use crate::{CancelHandle, PgError, Session, Target};
use messages::lsn_and_timeline;
use result::{RawRow, results};

pub use base_backup::{BaseBackup, BaseBackupOptions, BaseEvent, BaseTablespace, Checkpoint};
#[cfg(any(test, fuzzing))]
pub(crate) use messages::{base_message, wal_message};
pub use wal_stream::{StandbyStatus, StreamLimits, WalEvent, WalStream};

/// The database that `pg_basebackup` and `pg_receivewal` name, so that it is the one to look for in `.pgpass`
/// (`bin/pg_basebackup/streamutil.c`, `GetConnection`); the server doesn't read it.
const DATABASE: &str = "replication";

/// A connection to a walsender.
#[derive(Debug)]
pub struct ReplicationSession {
    session: Session,
}

/// What IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which cluster it is; its copies have the same.
    pub system_identifier: u64,
    /// The timeline that it is on.
    pub timeline: Timeline,
    /// How far its WAL is flushed to disk.
    pub flushed: Lsn,
}

/// How long a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until the session ends, or one of its commands fails.
    Temporary,
    /// Until it is dropped.
    Lasting,
}

/// Where a physical slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest WAL that it holds, and the timeline of it; `None` while it holds none.
    pub restart: Option<(Lsn, Option<Timeline>)>,
}

impl ReplicationSession {
    /// Connects as [`Session::connect`] does, to a walsender. The role needs `REPLICATION`, and `pg_hba.conf` a line for
    /// `replication`. A password file may name the database `replication`, as for `pg_basebackup`, or the target's own.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn connect(target: &Target) -> Result<Self, PgError> {
        let mut target = target.clone();
        target.replication = Some("true".to_owned());
        let named = Target {
            database: DATABASE.to_owned(),
            ..target.clone()
        };
        if named.hosts.iter().any(|host| named.password_for(host).is_some()) {
            target = named;
        }
        let session = Session::connect(&target).await?;
        Ok(Self { session })
    }

    /// The session below: its parameters, notices, deadline, and whether it is broken.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The same, to take notices or set a deadline.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// What cancels a command of this session from anywhere else.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.session.cancel_handle()
    }

    /// Says goodbye and closes the connection; a temporary slot goes with it.
    pub async fn close(self) {
        self.session.close().await;
    }

    /// IDENTIFY_SYSTEM.
    ///
    /// # Errors
    /// See [`PgError`].
    pub async fn identify(&mut self) -> Result<Identity, PgError> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let broken = || PgError::protocol("the answer to IDENTIFY_SYSTEM is broken");
        let (flushed, timeline) = lsn_and_timeline(&row, 2, 1).ok_or_else(broken)?;
        Ok(Identity {
            system_identifier: row.parsed(0).ok_or_else(broken)?,
            timeline,
            flushed,
        })
    }

    /// SHOW: the value of a setting. A role that may only replicate sees most of them, but not `data_directory`.
    ///
    /// # Errors
    /// [`PgError::Server`] if there is no such setting or the role may not see it; see [`PgError`].
    pub async fn show(&mut self, name: &str) -> Result<String, PgError> {
        // The grammar takes names only, and no quoted ones with a dot.
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte))
        {
            return Err(PgError::Statement(format!("'{name}' is not a setting's name")));
        }
        let row = self.row(&format!("SHOW {name}")).await?;
        let value = row.text(0).map(str::to_owned);
        value.ok_or_else(|| PgError::protocol("the answer to SHOW is broken"))
    }

    /// CREATE_REPLICATION_SLOT, physical. With `reserve` it holds WAL from now on (from the redo point of the last
    /// checkpoint), else from the first START_REPLICATION with it.
    ///
    /// # Errors
    /// [`PgError::Server`], SQLSTATE 42710, if there is a slot of this name; see [`PgError`].
    pub async fn create_slot(
        &mut self,
        name: &str,
        lifetime: Lifetime,
        reserve: bool,
    ) -> Result<(), PgError> {
        let temporary = match lifetime {
            Lifetime::Temporary => " TEMPORARY",
            Lifetime::Lasting => "",
        };
        let options = if reserve { " (RESERVE_WAL)" } else { "" };
        let name = slot_name(name);
        self.command(&format!(
            "CREATE_REPLICATION_SLOT {name}{temporary} PHYSICAL{options}"
        ))
        .await
        .map(drop)
    }

    /// READ_REPLICATION_SLOT: where a physical slot stands, `None` if there is none of this name.
    ///
    /// # Errors
    /// [`PgError::Server`] if it is a logical one; see [`PgError`].
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotPosition>, PgError> {
        let row = self
            .row(&format!("READ_REPLICATION_SLOT {}", slot_name(name)))
            .await?;
        if row.value(0).is_none() {
            return Ok(None);
        }
        let restart = row
            .value(1)
            .map(|_| {
                let lsn = row
                    .parsed(1)
                    .ok_or_else(|| PgError::protocol("the answer to READ_REPLICATION_SLOT is broken"))?;
                Ok::<_, PgError>((lsn, row.parsed(2)))
            })
            .transpose()?;
        Ok(Some(SlotPosition { restart }))
    }

    /// DROP_REPLICATION_SLOT. With `wait` it waits for whoever uses the slot.
    ///
    /// # Errors
    /// [`PgError::Server`], SQLSTATE 42704, if there is none of this name, 55006 if it is used and `wait` is false; see
    /// [`PgError`].
    pub async fn drop_slot(&mut self, name: &str, wait: bool) -> Result<(), PgError> {
        let wait = if wait { " WAIT" } else { "" };
        let name = slot_name(name);
        self.command(&format!("DROP_REPLICATION_SLOT {name}{wait}"))
            .await
            .map(drop)
    }

    /// TIMELINE_HISTORY: the name and the contents of a timeline's history file; the first timeline of a cluster has none.
    ///
    /// # Errors
    /// [`PgError::Server`], SQLSTATE 58P01, if the server doesn't have it; see [`PgError`].
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<(String, Bytes), PgError> {
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        match (row.text(0), row.value(1)) {
            (Some(name), Some(contents)) => Ok((name.to_owned(), Bytes::copy_from_slice(contents))),
            _ => Err(PgError::protocol("the answer to TIMELINE_HISTORY is broken")),
        }
    }

    /// BASE_BACKUP: begins a backup. Dropped before its end, it leaves the session broken, and the server gives it up.
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it; see [`PgError`].
    pub async fn base_backup(&mut self, options: &BaseBackupOptions) -> Result<BaseBackup<'_>, PgError> {
        BaseBackup::begin(&mut self.session, options).await
    }

    /// START_REPLICATION, physical: WAL from a position on, on a timeline, held by a slot if one is named. Dropped before
    /// its end, it leaves the session broken.
    ///
    /// # Errors
    /// [`PgError::Server`] if the server refuses it: it doesn't have this WAL any more (58P01, or XX000), the timeline isn't in its
    /// history, or the slot is used (55006); see [`PgError`].
    pub async fn start(
        &mut self,
        slot: Option<&str>,
        from: Lsn,
        timeline: Timeline,
        limits: StreamLimits,
    ) -> Result<WalStream<'_>, PgError> {
        let slot = slot.map_or(String::new(), |name| format!("SLOT {} ", slot_name(name)));
        let command = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}");
        WalStream::begin(&mut self.session, &command, from, limits).await
    }

    /// Runs a command whose result has one row.
    async fn row(&mut self, command: &str) -> Result<RawRow, PgError> {
        let rows = self.command(command).await?;
        rows.into_iter()
            .next()
            .ok_or_else(|| PgError::protocol(format!("no answer to {command}")))
    }

    /// Runs a command and collects its rows.
    async fn command(&mut self, command: &str) -> Result<Vec<RawRow>, PgError> {
        self.session.start_query(command).await?;
        results(&mut self.session).await
    }
}

/// In double quotes always: a name may begin with a digit.
fn slot_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'` doubled and nothing else: the scanner of these commands knows no other escapes (`replication/repl_scanner.l`), so
/// that SQL's literals, with `E''` for a backslash, won't do.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The error that the server sent, its session drained to where the next command may come.
async fn refused(session: &mut Session, body: ServerError) -> PgError {
    session.drain(PgError::Server(Box::new(body))).await
}
