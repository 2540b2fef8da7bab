//! Taking a base backup from the data directory itself: backup mode is held by one session, and workers read the files.

mod find;
mod list;
mod plan;
mod read;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgkeep_pg::Session;
use pgkeep_pg::replication::Checkpoint;
use pgkeep_pgformat::{ControlFile, Lsn, TablespaceMap, Timeline};
use pgkeep_repository::map::FileRecord;
use tokio::sync::Semaphore;

use super::collect::CONTROL_FILE;
use super::pieces::Step;
use super::stream::{Reading, Received};
use crate::error::{Context, PhysicalError};
use crate::manifest::Tablespace;
use list::{Link, Listing};
use plan::Planner;
use read::{PageChecks, Reader};

pub use find::{Found, find};

/// The session is asked so often whether it is still there: without it the server isn't in backup mode.
const ASKING_PAUSE: Duration = Duration::from_secs(2);
/// How long pg_control is read again, until its checksum is right: it is written in place, and quickly.
const CONTROL_FILE_PATIENCE: Duration = Duration::from_secs(5);
const CONTROL_FILE_PAUSE: Duration = Duration::from_millis(10);
/// Directories in a piece, at most.
const RECORDS_MAX: usize = 20_000;

/// What decides how pages are read.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    pub block_bytes: u32,
    pub have_checksums: bool,
}

/// A server that is in backup mode as long as this lives.
pub struct LocalBackup {
    session: Session,
    directory: PathBuf,
    pages: Pages,
    segment_blocks: u32,
    start: Lsn,
    links: Vec<Link>,
    listing: Listing,
    asked: Instant,
}

impl LocalBackup {
    /// Begins backup mode, which takes a checkpoint, then lists what there is to read.
    pub async fn start(
        found: Found,
        label: &str,
        checkpoint: Checkpoint,
        pages: Pages,
    ) -> Result<Self, PhysicalError> {
        let Found {
            mut session,
            directory,
        } = found;
        let beginning = || "beginning the base backup".to_owned();
        // It is idle while files are read, and the checkpoint takes as long as it takes.
        let settings = "SET idle_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = 0";
        session.execute(settings).await.context(beginning)?;
        let fast = if checkpoint == Checkpoint::Fast {
            "true"
        } else {
            "false"
        };
        let start = "SELECT pg_backup_start($1, $2::boolean)::text";
        let rows = session.query_params(start, &[Some(label), Some(fast)]).await;
        let rows = rows.context(beginning)?;
        let start = rows.first().and_then(|row| row.text(0)?.parse().ok());
        let start = start.ok_or(PhysicalError::Archive("pg_backup_start gave no position"))?;
        let major = session.server_version_num() / 10_000;
        let folder = directory.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let control = control_file(&folder)?.1;
            let links = list::links(&folder)?;
            let version = format!("PG_{major}_{}", control.catalog_version);
            let listing = list::list(&folder, &links, major, &version)?;
            Ok::<_, PhysicalError>((control, links, listing))
        });
        let (control, links, listing) = listed.await.map_err(PhysicalError::internal)??;
        Ok(Self {
            session,
            directory,
            pages,
            segment_blocks: control.relation_segment_blocks,
            start,
            links,
            listing,
            asked: Instant::now(),
        })
    }

    /// Where recovery begins.
    pub fn start_lsn(&self) -> Lsn {
        self.start
    }

    /// The directories outside the data directory.
    pub fn tablespaces(&self) -> Vec<Tablespace> {
        let spaces = self.links.iter().map(|link| Tablespace {
            oid: link.oid,
            path: link.target.to_string_lossy().into_owned(),
        });
        spaces.collect()
    }

    /// About how much there is to read, in bytes.
    pub fn bytes(&self) -> u64 {
        self.listing.files.iter().map(|file| file.size).sum()
    }

    /// Reads all of it, and ends backup mode. `timeline` is that of the start.
    pub async fn run(mut self, reading: &Reading<'_>, timeline: Timeline) -> Result<Received, PhysicalError> {
        let checks = self.pages.have_checksums.then_some(PageChecks {
            start: self.start,
            segment_blocks: self.segment_blocks,
        });
        let reader = Reader::new(self.pages.block_bytes, checks, reading.jobs, reading.progress);
        let reader = Arc::new(reader);
        let workers = Arc::new(Semaphore::new(reading.jobs));
        let mut listing = std::mem::take(&mut self.listing);
        let mut captured = list::captured(&listing);
        let warnings = std::mem::take(&mut listing.omitted);
        self.directories(std::mem::take(&mut listing.records), reading, &workers)
            .await?;
        let mut planner = Planner::new(listing, self.pages.block_bytes);
        let begun = Instant::now();
        while let Some(parts) = planner.next() {
            self.ask().await?;
            if let Some(rate) = reading.rate_kib_max {
                pace(begun, reading.progress.bytes_done.load(Ordering::Relaxed), rate).await;
            }
            let (reader, bench) = (Arc::clone(&reader), Arc::clone(reading.bench));
            let work = move || bench.work(reader.fill(parts, bench.piece())?);
            reading.hand_over(&workers, work).await?;
        }
        // When every worker is idle all else is read.
        let all = u32::try_from(reading.jobs).map_err(PhysicalError::internal)?;
        drop(workers.acquire_many(all).await.map_err(PhysicalError::internal)?);
        let control = self.control_file(reading, &workers).await?;
        let (stop, label, map) = self.stop().await?;
        reading.end().await?;
        self.check_map(&map)?;
        let damaged_pages = reader.damaged_pages();
        captured.backup_label = Some(label.into_bytes());
        captured.control_file = Some(control);
        Ok(Received {
            captured,
            stop: (stop, timeline),
            damaged_pages,
            warnings,
            files: reader.files.load(Ordering::Relaxed) + 1,
            plain_bytes: reader.plain_bytes.load(Ordering::Relaxed)
                + pgkeep_pgformat::CONTROL_FILE_BYTES as u64,
        })
    }

    /// Whether the session is still there.
    async fn ask(&mut self) -> Result<(), PhysicalError> {
        if self.asked.elapsed() < ASKING_PAUSE {
            return Ok(());
        }
        let asking = || "keeping the server in backup mode".to_owned();
        self.session.execute("SELECT 1").await.context(asking)?;
        self.asked = Instant::now();
        Ok(())
    }

    async fn directories(
        &self,
        records: Vec<FileRecord>,
        reading: &Reading<'_>,
        workers: &Arc<Semaphore>,
    ) -> Result<(), PhysicalError> {
        let mut records = records.into_iter();
        loop {
            let mut piece = reading.bench.piece();
            piece
                .steps
                .extend(records.by_ref().take(RECORDS_MAX).map(Step::Whole));
            if piece.steps.is_empty() {
                return Ok(());
            }
            let bench = Arc::clone(reading.bench);
            reading.hand_over(workers, move || bench.work(piece)).await?;
        }
    }

    /// The last file: what recovery begins with.
    async fn control_file(
        &self,
        reading: &Reading<'_>,
        workers: &Arc<Semaphore>,
    ) -> Result<Vec<u8>, PhysicalError> {
        let folder = self.directory.clone();
        let read = tokio::task::spawn_blocking(move || control_file(&folder));
        let (contents, _) = read.await.map_err(PhysicalError::internal)??;
        let metadata =
            std::fs::metadata(path_of(&self.directory)).context(|| "reading pg_control".to_owned())?;
        let mut piece = reading.bench.piece();
        piece.steps = read::steps_of(CONTROL_FILE, &metadata, contents.len());
        piece.buffer.extend_from_slice(&contents);
        let bench = Arc::clone(reading.bench);
        reading.hand_over(workers, move || bench.work(piece)).await?;
        Ok(contents)
    }

    /// Ends backup mode. Its WAL comes by another way, so nothing is waited for.
    async fn stop(&mut self) -> Result<(Lsn, String, String), PhysicalError> {
        let ending = || "ending the base backup".to_owned();
        let stop = "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)";
        let rows = self.session.query(stop).await.context(ending)?;
        let answer = rows.first().and_then(|row| {
            let map = row.text(2).unwrap_or_default();
            Some((
                row.text(0)?.parse().ok()?,
                row.text(1)?.to_owned(),
                map.to_owned(),
            ))
        });
        answer.ok_or(PhysicalError::Archive("pg_backup_stop gave no label"))
    }

    /// The server's list of tablespaces is of the moment when backup mode began, and this one's of a moment later: the WAL makes
    /// those anew that are in this list alone, but one that this list lacks could not be restored.
    fn check_map(&self, map: &str) -> Result<(), PhysicalError> {
        let map = TablespaceMap::parse(map.as_bytes()).map_err(PhysicalError::internal)?;
        let missing = map
            .tablespaces
            .iter()
            .find(|mapped| self.links.iter().all(|link| link.oid != mapped.oid));
        match missing {
            None => Ok(()),
            Some(mapped) => Err(PhysicalError::Server {
                message: format!("tablespace {} was dropped while the backup began", mapped.oid),
                hint: Some("run 'pgkeep backup' again".to_owned()),
            }),
        }
    }
}

/// Reads pg_control until its checksum is right.
fn control_file(directory: &Path) -> Result<(Vec<u8>, ControlFile), PhysicalError> {
    let begun = Instant::now();
    loop {
        let contents = std::fs::read(path_of(directory)).context(|| "reading pg_control".to_owned())?;
        match ControlFile::parse(&contents) {
            Ok(control) => return Ok((contents, control)),
            Err(error) if begun.elapsed() > CONTROL_FILE_PATIENCE => {
                return Err(PhysicalError::internal(error));
            }
            Err(_) => std::thread::sleep(CONTROL_FILE_PAUSE),
        }
    }
}

fn path_of(directory: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    directory.join(std::ffi::OsStr::from_bytes(CONTROL_FILE))
}

/// Waits until so many bytes are no more than the rate permits.
async fn pace(begun: Instant, bytes: u64, rate_kib_max: u32) {
    let bytes_per_second = f64::from(rate_kib_max) * 1024.0;
    #[expect(clippy::cast_precision_loss, reason = "a pace needn't be exact")]
    let due = Duration::from_secs_f64(bytes as f64 / bytes_per_second);
    tokio::time::sleep_until((begun + due).into()).await;
}
