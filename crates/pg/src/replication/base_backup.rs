use std::fmt::Write;

use pgkeep_pgformat::{Lsn, Timeline};
use postgres_protocol::message::backend;

use super::messages::{BaseMessage, base_message, lsn_and_timeline};
use super::result::{RawRow, ResultEnd, result_set, unexpected};
use super::{literal, refused};
use crate::error::ServerError;
use crate::wire::Frame;
use crate::{PgError, Session};

/// More tablespaces than this are no honest answer.
const TABLESPACES_MAX: usize = 1_000_000;
/// `data_corrupted`: how the server ends a backup in which it found pages whose checksum is wrong.
const DATA_CORRUPTED: &str = "XX001";

/// How the checkpoint before the backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// At once.
    Fast,
    /// Spread over `checkpoint_completion_target`, as others are: the database comes first.
    #[default]
    Spread,
}

/// The options of BASE_BACKUP (PostgreSQL documentation, "Streaming Replication Protocol"; `parse_basebackup_options`,
/// `backup/basebackup.c`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// What the backup is called in `backup_label`.
    pub label: String,
    /// How its checkpoint is made.
    pub checkpoint: Checkpoint,
    /// Ask for the sizes of the tablespaces first, which makes the server look at every file.
    pub progress: bool,
    /// Put the WAL that the backup needs into it.
    pub wal: bool,
    /// Wait at the end until the server has archived that WAL.
    pub wait: bool,
    /// Put `tablespace_map` into the archive of the data directory, instead of links in `pg_tblspc`.
    pub tablespace_map: bool,
    /// The server compares pages with their checksums.
    pub verify_checksums: bool,
    /// Send a `backup_manifest`.
    pub manifest: bool,
    /// The server sends no faster than this, in KiB a second (32 to 1,048,576).
    pub rate_kib_max: Option<u32>,
}

impl Default for BaseBackupOptions {
    /// What pgkeep wants of a backup: its WAL comes by another way, and what needs no manifest sends none.
    fn default() -> Self {
        Self {
            label: "pgkeep".to_owned(),
            checkpoint: Checkpoint::default(),
            progress: true,
            wal: false,
            wait: false,
            tablespace_map: true,
            verify_checksums: true,
            manifest: false,
            rate_kib_max: None,
        }
    }
}

impl BaseBackupOptions {
    /// In the grammar of 15 and later, options in parentheses.
    fn command(&self) -> String {
        let checkpoint = match self.checkpoint {
            Checkpoint::Fast => "fast",
            Checkpoint::Spread => "spread",
        };
        let manifest = if self.manifest { "yes" } else { "no" };
        let number = u8::from;
        let mut command = format!(
            "BASE_BACKUP (LABEL {}, CHECKPOINT '{checkpoint}', PROGRESS {}, WAL {}, WAIT {}, TABLESPACE_MAP {}, \
             VERIFY_CHECKSUMS {}, MANIFEST '{manifest}'",
            literal(&self.label),
            number(self.progress),
            number(self.wal),
            number(self.wait),
            number(self.tablespace_map),
            number(self.verify_checksums),
        );
        if let Some(rate) = self.rate_kib_max {
            // Writing to a String can't fail.
            let _ = write!(command, ", MAX_RATE {rate}");
        }
        command.push(')');
        command
    }
}

/// A directory that the backup has an archive of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseTablespace {
    /// OID and directory of a tablespace (the path's bytes may be in any encoding); `None`: the data directory.
    pub tablespace: Option<(u32, Vec<u8>)>,
    /// How large it is, about, in KiB; only with [`BaseBackupOptions::progress`].
    pub size_kib: Option<u64>,
}

/// What comes next in a backup.
#[derive(Debug, PartialEq, Eq)]
pub enum BaseEvent<'a> {
    /// The archive of a tablespace (its OID) begins, or that of the data directory (`None`).
    Archive {
        /// The tablespace.
        tablespace: Option<u32>,
    },
    /// The manifest begins.
    Manifest,
    /// The next bytes of the archive (tar) or the manifest. They lie in the session's input buffer.
    Data(&'a [u8]),
    /// So many bytes are done, of the sum of all sizes.
    Progress(u64),
    /// The backup has ended, and the session can be used again.
    End {
        /// The position that recovery must reach: all WAL from the start to here is needed.
        lsn: Lsn,
        /// The timeline of it.
        timeline: Timeline,
        /// All data came, but the server found pages whose checksum is wrong. Which ones, its warnings say
        /// ([`Session::take_notices`]).
        damage: Option<Box<ServerError>>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before the first archive.
    Begun,
    Copying,
    Ended,
}

/// A running BASE_BACKUP (`backup/basebackup_copy.c`): two results, one copy with all archives, one result.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    session: &'a mut Session,
    start: (Lsn, Timeline),
    tablespaces: Vec<BaseTablespace>,
    stage: Stage,
}

impl<'a> BaseBackup<'a> {
    pub(super) async fn begin(
        session: &'a mut Session,
        options: &BaseBackupOptions,
    ) -> Result<Self, PgError> {
        session.start_query(&options.command()).await?;
        let start = position(session).await?;
        let (rows, end) = result_set(session).await?;
        if let ResultEnd::Other(frame) = end {
            return Err(unexpected(session, frame.tag));
        }
        let tablespaces: Option<Vec<_>> = rows.iter().take(TABLESPACES_MAX).map(tablespace).collect();
        let Some(tablespaces) = tablespaces else {
            return Err(session.give_up(PgError::protocol("the list of tablespaces is broken")));
        };
        let frame = session.next().await?;
        match frame.tag {
            backend::COPY_OUT_RESPONSE_TAG => Ok(Self {
                session,
                start,
                tablespaces,
                stage: Stage::Begun,
            }),
            backend::ERROR_RESPONSE_TAG => {
                let error = ServerError::from_body(session.wire.body(frame));
                Err(refused(session, error).await)
            }
            tag => Err(unexpected(session, tag)),
        }
    }

    /// Where recovery begins: all WAL from here on is needed.
    pub fn start(&self) -> (Lsn, Timeline) {
        self.start
    }

    /// What archives will come.
    pub fn tablespaces(&self) -> &[BaseTablespace] {
        &self.tablespaces
    }

    /// Takes the server's warnings that came since the last call, such as pages whose checksum is wrong or files that it
    /// skips.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        self.session.take_notices()
    }

    /// Waits for what comes next; `None` after the end.
    ///
    /// # Errors
    /// [`PgError::Server`] if the backup failed; the session then can be used again. See [`PgError`] for the rest.
    pub async fn next(&mut self) -> Result<Option<BaseEvent<'_>>, PgError> {
        if self.stage == Stage::Ended {
            return Ok(None);
        }
        let frame = self.session.next().await?;
        match frame.tag {
            backend::COPY_DATA_TAG => {}
            backend::COPY_DONE_TAG => return self.end().await.map(Some),
            backend::ERROR_RESPONSE_TAG => {
                self.stage = Stage::Ended;
                let error = ServerError::from_body(self.session.wire.body(frame));
                return Err(refused(self.session, error).await);
            }
            tag => return Err(unexpected(self.session, tag)),
        }
        if !self.is_readable(frame) {
            let error = PgError::protocol("a message of the base backup is broken");
            return Err(self.session.give_up(error));
        }
        Ok(event(self.session.wire.body(frame)))
    }

    /// Is it a message that may come now? Data belongs to something.
    fn is_readable(&mut self, frame: Frame) -> bool {
        let body = self.session.wire.body(frame);
        match event(body) {
            None => false,
            Some(BaseEvent::Data(_)) => self.stage == Stage::Copying,
            Some(BaseEvent::Archive { .. } | BaseEvent::Manifest) => {
                self.stage = Stage::Copying;
                true
            }
            Some(_) => true,
        }
    }

    /// The copy is done: the end position follows, then what the server found out about its pages.
    async fn end(&mut self) -> Result<BaseEvent<'static>, PgError> {
        self.stage = Stage::Ended;
        let (lsn, timeline) = position(self.session).await?;
        let mut damage = None;
        loop {
            let frame = self.session.next().await?;
            match frame.tag {
                backend::COMMAND_COMPLETE_TAG => {}
                backend::ERROR_RESPONSE_TAG => {
                    let error = ServerError::from_body(self.session.wire.body(frame));
                    if error.is_fatal() || error.sqlstate != DATA_CORRUPTED {
                        return Err(refused(self.session, error).await);
                    }
                    damage = Some(Box::new(error));
                }
                backend::READY_FOR_QUERY_TAG => {
                    self.session.ready(frame);
                    return Ok(BaseEvent::End {
                        lsn,
                        timeline,
                        damage,
                    });
                }
                tag => return Err(unexpected(self.session, tag)),
            }
        }
    }
}

fn event(body: &[u8]) -> Option<BaseEvent<'_>> {
    Some(match base_message(body)? {
        BaseMessage::Data(bytes) => BaseEvent::Data(bytes),
        BaseMessage::Manifest => BaseEvent::Manifest,
        BaseMessage::Progress(bytes) => BaseEvent::Progress(bytes),
        // `base.tar` or `<oid>.tar`, and `.gz` and the like where the server compresses.
        BaseMessage::Archive(name, _) => BaseEvent::Archive {
            tablespace: match name.split('.').next()? {
                "base" => None,
                oid => Some(oid.parse().ok()?),
            },
        },
    })
}

/// A result with one position.
async fn position(session: &mut Session) -> Result<(Lsn, Timeline), PgError> {
    let (rows, end) = result_set(session).await?;
    if let ResultEnd::Other(frame) = end {
        return Err(unexpected(session, frame.tag));
    }
    let position = rows.first().and_then(|row| lsn_and_timeline(row, 0, 1));
    position.ok_or_else(|| session.give_up(PgError::protocol("a position of the base backup is broken")))
}

fn tablespace(row: &RawRow) -> Option<BaseTablespace> {
    let tablespace = match (row.value(0), row.value(1)) {
        (None, _) => None,
        (Some(_), Some(path)) => Some((row.parsed(0)?, path.to_owned())),
        (Some(_), None) => return None,
    };
    let size_kib = row.value(2).map(|_| row.parsed(2));
    Some(BaseTablespace {
        tablespace,
        size_kib: match size_kib {
            Some(None) => return None,
            other => other.flatten(),
        },
    })
}
