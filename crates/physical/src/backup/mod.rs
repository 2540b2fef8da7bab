//! Taking a base backup: the server's files, read by workers or from its stream of archives, cut into blocks, compressed, packed
//! by a thread, uploaded while they come; its WAL beside it; the manifest last.

mod before;
mod blocks;
mod cache;
mod collect;
mod fragments;
mod local;
#[cfg(test)]
mod packing;
mod pieces;
mod refer;
mod run;
mod source;
mod stages;
mod stream;
mod tar;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgkeep_base::{BackupId, BackupKind, Progress};
use pgkeep_pg::Target;
use pgkeep_pg::replication::Checkpoint;
use pgkeep_repository::backups::{GivenUp, Swept};
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::{Repository, RepositoryError, layout};
use tokio::sync::mpsc;

use crate::error::PhysicalError;
use crate::manifest::BaseManifest;
use run::Run;

pub(crate) use collect::CONTROL_FILE;

/// Tasks that were told to end do so at their next wait, which is never long.
const TASKS_END_MAX: Duration = Duration::from_secs(10);

/// Why a backup's objects are swept.
pub(crate) const BACKUP_FAILED: &str = "the backup failed";

/// How the files of a cluster are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReaderChoice {
    /// From the data directory where it lies on this host, may be read and is proven to be the server's; else by replication.
    #[default]
    Auto,
    /// From the data directory, or not at all.
    Local,
    /// From the server's walsender.
    Replication,
}

/// How a backup is taken.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// How the files are read.
    pub reader: ReaderChoice,
    /// Where the data directory is on this host, if it isn't where the server says.
    pub data_directory: Option<PathBuf>,
    /// No backup, if a page of it is damaged.
    pub strict: bool,
    /// Pieces compressed at once.
    pub jobs: usize,
    /// How the server makes the checkpoint before it.
    pub checkpoint: Checkpoint,
    /// Store everything, and refer to nothing of the backups before.
    pub full: bool,
    /// Where it is kept what a backup holds, for the next one; without it, nothing is referred to.
    pub cache_directory: Option<PathBuf>,
    /// Files are read no faster than this, in KiB a second (32 to 1,048,576).
    pub rate_kib_max: Option<u32>,
    /// The user's notes.
    pub annotations: BTreeMap<String, String>,
    /// Take the cluster's data under this name although another database cluster wrote here before.
    pub accept_new_identity: bool,
    /// How long the lease lasts without being renewed.
    pub lease_duration: Duration,
}

/// What a backup did.
#[derive(Debug)]
pub struct BackupReport {
    /// The new backup.
    pub id: BackupId,
    /// Its manifest.
    pub manifest: BaseManifest,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// What is worth knowing, in plain words.
    pub notes: Vec<String>,
    /// Why the files came by replication, where the choice was left to the program.
    pub fallback: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// What was cleaned away of earlier, unfinished backups.
    pub swept: Swept,
}

/// Backs a cluster up.
///
/// # Errors
/// Nothing is half there: on any error there is no manifest, and what was stored is swept, now or by the next run. WAL that
/// was stored stays: it is good for other backups.
pub async fn backup(
    repository: &Repository,
    target: &Target,
    options: &BackupOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<BackupReport, PhysicalError> {
    let begun = Instant::now();
    let mut cancelled = pin!(cancelled);
    let destinations = Arc::new(Destinations::from(repository.clone()));
    progress.set_phase("connecting");
    let prepared = tokio::select! {
        prepared = run::prepare(target, options) => prepared?,
        () = &mut cancelled => return Err(PhysicalError::Interrupted),
    };
    destinations
        .claim_identity(prepared.identity.system_identifier, options.accept_new_identity)
        .await?;
    let acquiring =
        destinations.acquire_leases_unless(cancelled.as_mut(), "pgkeep backup", options.lease_duration);
    let made = match acquiring.await {
        Ok(true) => {
            let whole = (repository, &destinations, target, options, progress);
            under_lease(whole, prepared, cancelled).await
        }
        Ok(false) => Err(PhysicalError::Interrupted),
        Err(error) => Err(error.into()),
    };
    destinations.release_leases().await;
    made.map(|report| BackupReport {
        elapsed: begun.elapsed(),
        ..report
    })
}

type Whole<'a> = (
    &'a Repository,
    &'a Arc<Destinations>,
    &'a Target,
    &'a BackupOptions,
    &'a Arc<Progress>,
);

/// Cuts an archive into blocks, which come in pieces of some size; for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn collect_archive(archive: &[u8], piece_bytes: usize) -> Result<(), PhysicalError> {
    const BLOCK_BYTES: u32 = 1024;
    let bench = pieces::Bench::new(1, [0; 32], BLOCK_BYTES);
    let mut collector = collect::Collector::new(&bench, BLOCK_BYTES);
    let mut splitter = tar::TarSplitter::new();
    for mut piece in archive.chunks(piece_bytes.max(1)) {
        while let Some(mut event) = splitter.next(&mut piece)? {
            while let Some(full) = collector.take(&mut event)? {
                bench.work(full)?;
            }
        }
    }
    splitter.finish()?;
    bench.work(collector.rest()).map(drop)
}

/// All that is done while the lease is held, whatever becomes of it.
async fn under_lease(
    (repository, destinations, target, options, progress): Whole<'_>,
    prepared: run::Prepared,
    mut cancelled: Pin<&mut impl Future<Output = ()>>,
) -> Result<BackupReport, PhysicalError> {
    let begin = async {
        let swept = destinations.sweep_quietly(BackupKind::Base).await;
        Ok((swept, destinations.next_id(BackupKind::Base).await?))
    };
    let (swept, id) = tokio::select! {
        begun = begin => begun,
        () = cancelled.as_mut() => Err(PhysicalError::Interrupted),
    }?;
    let (alive, mut ended) = mpsc::channel(1);
    let run = Run {
        repository,
        destinations,
        target,
        options,
        progress,
        prefix: layout::backup_prefix(destinations.cluster(), &id),
        id: id.clone(),
        alive,
    };
    // From here to the manifest the user may interrupt; the commit itself is a request, and then either true or not.
    let fallback = prepared.fallback.clone();
    let built = tokio::select! {
        built = run.all(prepared) => built,
        () = cancelled => Err(PhysicalError::Interrupted),
    };
    let error = match built {
        Ok(ready) => {
            let (manifest, notes) = run.commit(ready).await?;
            return Ok(BackupReport {
                attention: run::attention(&manifest),
                notes,
                fallback,
                id,
                manifest,
                elapsed: Duration::ZERO,
                swept,
            });
        }
        Err(error) => error,
    };
    run.forget_map();
    drop(run);
    if tokio::time::timeout(TASKS_END_MAX, ended.recv()).await.is_err() {
        tracing::debug!("a task goes on; what it still stores stays until the next run");
    }
    progress.set_phase("cleaning up");
    match destinations.give_up(&id, BACKUP_FAILED).await.as_slice() {
        // Whatever failed after another process gave it up, failed because that one took the objects away.
        [GivenUp::Before(_)] => Err(RepositoryError::Fenced { id: id.to_string() }.into()),
        _ => Err(error),
    }
}
