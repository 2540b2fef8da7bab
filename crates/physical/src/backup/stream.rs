//! The server's archives, read to their end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pgkeep_base::Progress;
use pgkeep_pg::ServerError;
use pgkeep_pg::replication::{BaseBackup, BaseEvent};
use pgkeep_pgformat::{Lsn, Timeline};
use pgkeep_repository::map::{ROOT_DATA, ROOT_TABLESPACES};
use tokio::sync::Semaphore;

use super::collect::{Captured, Collector};
use super::pieces::{Bench, Piece, Worked};
use super::stages::ToPack;
use super::tar::TarSplitter;
use crate::error::{Context, PhysicalError};
use crate::manifest::{DAMAGE_REPORTS_MAX, DamagedPages};

/// The server's functions that report a page whose checksum is wrong, or that can't be judged (`backup/basebackup.c`): their
/// names are the same in every language.
const CHECKSUM_ROUTINES: [&str; 2] = ["sendFile", "read_file_data_into_buffer"];

/// What came.
pub struct Received {
    pub captured: Captured,
    pub stop: (Lsn, Timeline),
    pub damaged_pages: DamagedPages,
    /// The server's other warnings.
    pub warnings: Vec<String>,
    pub files: u64,
    pub plain_bytes: u64,
}

/// What is read into.
pub struct Reading<'a> {
    pub bench: &'a Arc<Bench>,
    pub block_bytes: u32,
    pub jobs: usize,
    pub to_pack: ToPack,
    pub progress: &'a Arc<Progress>,
    /// Read no faster than this, in KiB a second.
    pub rate_kib_max: Option<u32>,
}

impl Reading<'_> {
    /// Reads a backup to its end. What is behind it has all of it then, and knows that it ended.
    pub async fn run(&self, mut backup: BaseBackup<'_>) -> Result<Received, PhysicalError> {
        let reading = || "reading the base backup".to_owned();
        let roots: BTreeMap<u32, u32> = backup
            .tablespaces()
            .iter()
            .filter_map(|space| space.tablespace.as_ref().map(|(oid, _)| *oid))
            .zip(ROOT_TABLESPACES..)
            .collect();
        let workers = Arc::new(Semaphore::new(self.jobs));
        let mut collector = Collector::new(self.bench, self.block_bytes);
        let mut splitter: Option<TarSplitter> = None;
        let mut reports = Reports::default();
        loop {
            match backup.next().await.context(reading)? {
                None => return Err(PhysicalError::Archive("it ended before its end was told")),
                Some(BaseEvent::Archive { tablespace }) => {
                    if let Some(ended) = splitter.replace(TarSplitter::new()) {
                        ended.finish()?;
                    }
                    collector.set_root(match tablespace {
                        None => ROOT_DATA,
                        Some(oid) => *roots
                            .get(&oid)
                            .ok_or(PhysicalError::Archive("a tablespace came that wasn't announced"))?,
                    });
                }
                Some(BaseEvent::Manifest) => {
                    return Err(PhysicalError::Archive("a manifest came that nobody asked for"));
                }
                Some(BaseEvent::Progress(bytes)) => self.progress.bytes_done.store(bytes, Ordering::Relaxed),
                Some(BaseEvent::Data(bytes)) => {
                    let splitter = splitter.as_mut();
                    let splitter = splitter.ok_or(PhysicalError::Archive("data belongs to no archive"))?;
                    self.data(bytes, splitter, &mut collector, &workers).await?;
                }
                Some(BaseEvent::End {
                    lsn,
                    timeline,
                    damage,
                }) => {
                    if let Some(ended) = &splitter {
                        ended.finish()?;
                    }
                    reports.take(backup.take_notices());
                    if let Some(damage) = damage {
                        // Its last word, after all reports.
                        reports.pages.reports_total += 1;
                        reports.pages.reports.push(damage.message);
                    }
                    self.work(collector.rest(), &workers).await?;
                    self.end().await?;
                    return Ok(Received {
                        files: collector.files,
                        plain_bytes: collector.plain_bytes,
                        captured: collector.captured,
                        stop: (lsn, timeline),
                        damaged_pages: reports.pages,
                        warnings: reports.warnings,
                    });
                }
            }
            reports.take(backup.take_notices());
        }
    }

    /// Tells the packing thread that nothing more comes.
    pub async fn end(&self) -> Result<(), PhysicalError> {
        self.to_pack
            .send(None)
            .await
            .map_err(|_| PhysicalError::StageGone)
    }

    /// The next bytes of an archive.
    async fn data(
        &self,
        mut bytes: &[u8],
        splitter: &mut TarSplitter,
        collector: &mut Collector<'_>,
        workers: &Arc<Semaphore>,
    ) -> Result<(), PhysicalError> {
        while let Some(mut event) = splitter.next(&mut bytes)? {
            while let Some(piece) = collector.take(&mut event)? {
                self.work(piece, workers).await?;
            }
            if collector.is_crowded() {
                self.work(collector.rest(), workers).await?;
            }
        }
        Ok(())
    }

    async fn work(&self, piece: Piece, workers: &Arc<Semaphore>) -> Result<(), PhysicalError> {
        let bench = Arc::clone(self.bench);
        self.hand_over(workers, move || bench.work(piece)).await
    }

    /// Gives a worker something to do, as soon as one is free; what comes of it goes to the packing thread in this order.
    pub async fn hand_over(
        &self,
        workers: &Arc<Semaphore>,
        work: impl FnOnce() -> Result<Worked, PhysicalError> + Send + 'static,
    ) -> Result<(), PhysicalError> {
        let permit = Arc::clone(workers).acquire_owned().await;
        let permit = permit.map_err(PhysicalError::internal)?;
        let working = tokio::task::spawn_blocking(move || {
            let worked = work();
            drop(permit);
            worked
        });
        let sent = self.to_pack.send(Some(working)).await;
        sent.map_err(|_| PhysicalError::StageGone)
    }
}

/// What the server says while it sends.
#[derive(Default)]
struct Reports {
    pages: DamagedPages,
    warnings: Vec<String>,
}

impl Reports {
    fn take(&mut self, notices: Vec<ServerError>) {
        for notice in notices.into_iter().filter(|notice| notice.severity == "WARNING") {
            let routine = notice.routine.as_deref().unwrap_or_default();
            if CHECKSUM_ROUTINES.contains(&routine) {
                self.pages.reports_total += 1;
                if self.pages.reports.len() < DAMAGE_REPORTS_MAX {
                    self.pages.reports.push(notice.message);
                }
            } else if self.warnings.len() < DAMAGE_REPORTS_MAX && !self.warnings.contains(&notice.message) {
                // Some come twice: when sizes are estimated, and when files are sent.
                self.warnings.push(notice.message);
            }
        }
    }
}
