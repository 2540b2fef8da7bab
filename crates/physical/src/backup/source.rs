//! Where the files of a backup come from: the server's own directory, or its walsender.

use std::sync::atomic::Ordering;

use pgkeep_base::Progress;
use pgkeep_pg::Target;
use pgkeep_pg::replication::{BaseBackup, BaseBackupOptions, Identity, ReplicationSession};
use pgkeep_pgformat::{Lsn, Timeline};

use super::local::{self, Found, LocalBackup, Pages};
use super::stream::{Reading, Received};
use super::{BackupOptions, ReaderChoice};
use crate::error::{Context, PhysicalError};
use crate::manifest::Tablespace;

/// What is read from.
pub enum Source {
    /// BASE_BACKUP.
    Replication,
    /// The server's data directory, on this host.
    Local(Box<Found>),
}

impl Source {
    /// The one that was asked for; by itself the data directory where it can be read, else replication, and why.
    pub async fn choose(
        target: &Target,
        options: &BackupOptions,
        identity: &Identity,
    ) -> Result<(Self, Option<String>), PhysicalError> {
        if options.reader == ReaderChoice::Replication {
            return Ok((Self::Replication, None));
        }
        let directory = options.data_directory.as_deref();
        match local::find(target, directory, identity.system_identifier).await? {
            Ok(found) => Ok((Self::Local(Box::new(found)), None)),
            Err(reason) if options.reader == ReaderChoice::Auto => Ok((Self::Replication, Some(reason))),
            Err(reason) => Err(PhysicalError::Refused {
                message: format!("the data directory can't be read here: {reason}"),
                hint: "run it on the server's host as the server's user, or leave out --reader local"
                    .to_owned(),
            }),
        }
    }

    /// In the manifest, how the files were read.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Replication => "replication",
            Self::Local(_) => "local",
        }
    }

    /// Begins the backup, which takes a checkpoint.
    pub async fn start<'a>(
        self,
        session: &'a mut ReplicationSession,
        (label, options): (String, &BackupOptions),
        (timeline, pages): (Timeline, Pages),
    ) -> Result<Started<'a>, PhysicalError> {
        match self {
            Self::Replication => {
                let wanted = BaseBackupOptions {
                    label,
                    checkpoint: options.checkpoint,
                    rate_kib_max: options.rate_kib_max,
                    ..BaseBackupOptions::default()
                };
                let beginning = || "beginning the base backup".to_owned();
                let backup = session.base_backup(&wanted).await.context(beginning)?;
                Ok(Started::Replication(Box::new(backup)))
            }
            Self::Local(found) => {
                let backup = LocalBackup::start(*found, &label, options.checkpoint, pages).await?;
                Ok(Started::Local(Box::new(backup), timeline))
            }
        }
    }
}

/// A backup that has begun at the server.
pub enum Started<'a> {
    Replication(Box<BaseBackup<'a>>),
    Local(Box<LocalBackup>, Timeline),
}

impl Started<'_> {
    /// Where recovery begins.
    pub fn start(&self) -> (Lsn, Timeline) {
        match self {
            Self::Replication(backup) => backup.start(),
            Self::Local(backup, timeline) => (backup.start_lsn(), *timeline),
        }
    }

    /// Directories outside the data directory.
    pub fn tablespaces(&self) -> Result<Vec<Tablespace>, PhysicalError> {
        let backup = match self {
            Self::Replication(backup) => backup,
            Self::Local(backup, _) => return Ok(backup.tablespaces()),
        };
        let spaces = backup
            .tablespaces()
            .iter()
            .filter_map(|space| space.tablespace.as_ref());
        spaces
            .map(|(oid, path)| match path.starts_with(b"/") {
                true => Ok(Tablespace {
                    oid: *oid,
                    path: String::from_utf8_lossy(path).into_owned(),
                }),
                false => Err(in_place(*oid)),
            })
            .collect()
    }

    /// Tells how much there is to read.
    pub fn expect(&self, progress: &Progress) {
        let expected = match self {
            Self::Replication(backup) => {
                let kib = backup.tablespaces().iter().filter_map(|space| space.size_kib);
                // The server's numbers, which may be anything.
                kib.fold(0, u64::saturating_add).saturating_mul(1 << 10)
            }
            Self::Local(backup, _) => backup.bytes(),
        };
        progress.bytes_total.store(expected, Ordering::Relaxed);
    }

    /// Reads all of it.
    pub async fn run(self, reading: &Reading<'_>) -> Result<Received, PhysicalError> {
        match self {
            Self::Replication(backup) => reading.run(*backup).await,
            Self::Local(backup, timeline) => backup.run(reading, timeline).await,
        }
    }
}

/// A tablespace that can't be backed up.
pub fn in_place(oid: u32) -> PhysicalError {
    PhysicalError::Server {
        message: format!(
            "tablespace {oid} lies inside the data directory (allow_in_place_tablespaces), which can't be backed up"
        ),
        hint: None,
    }
}
