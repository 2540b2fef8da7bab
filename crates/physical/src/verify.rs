//! Whether a base backup is what was written: every pack, every frame, every record, and that its WAL is there.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use pgkeep_base::{BackupId, Progress};
use pgkeep_repository::map::{Extent, PackInfo, RecordContents, RecordReader};
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::records::Evidence;
use pgkeep_repository::{Repository, RepositoryError};

use crate::error::PhysicalError;
use crate::manifest::BaseManifest;
use crate::read::read_manifest;
use crate::restore::system_identifier;

/// Packs read at once, at most: each takes up to its size twice.
const PACKS_AT_ONCE_MAX: usize = 3;
/// In the evidence: everything was opened.
const DEPTH: &str = "contents";
/// So many failures are recorded.
const FAILURES_RECORDED_MAX: usize = 20;

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    /// The backup.
    pub id: BackupId,
    /// Objects read.
    pub objects: u64,
    /// Their size as stored, in bytes.
    pub stored_bytes: u64,
    /// What is wrong, in words.
    pub failures: Vec<String>,
    /// What was never in it, or damaged before, in words: it is what was written, and not the whole server.
    pub lacks: Vec<String>,
}

/// Reads all of a backup, and compares it with what it says of itself. What was found is recorded.
///
/// # Errors
/// The store can't be read at all, a missing or wrong key, the backup was removed; damage is the result, not an error.
pub async fn verify(
    repository: &Repository,
    id: &BackupId,
    jobs: usize,
    progress: &Arc<Progress>,
) -> Result<VerifyReport, PhysicalError> {
    let mut report = VerifyReport {
        id: id.clone(),
        objects: 0,
        stored_bytes: 0,
        failures: Vec::new(),
        lacks: Vec::new(),
    };
    progress.set_phase("verifying");
    let mut total = 1;
    match read_manifest(repository, id).await {
        Err(error) if is_damage(&error) => report.failures.push(error.to_string()),
        Err(error) => return Err(error),
        Ok(manifest) => {
            total = manifest.totals.objects.max(1);
            report.lacks = manifest
                .lacks()
                .map(|lack| format!("not in the backup: {lack}"))
                .chain((manifest.damaged_pages.reports_total > 0).then(|| {
                    format!(
                        "pages were damaged at the server already when it was backed up: 'pgkeep show {id}' names them"
                    )
                }))
                .collect();
            progress
                .bytes_total
                .store(manifest.totals.stored_bytes, Ordering::Relaxed);
            check(repository, id, &manifest, jobs, progress, &mut report).await?;
        }
    }
    let evidence = Evidence {
        at: repository.now(),
        depth: DEPTH.to_owned(),
        objects: report.objects,
        objects_total: total.max(report.objects),
        passed: report.failures.is_empty(),
        failures: report
            .failures
            .iter()
            .take(FAILURES_RECORDED_MAX)
            .cloned()
            .collect(),
    };
    repository.record_evidence(id, &evidence).await?;
    Ok(report)
}

fn is_damage(error: &PhysicalError) -> bool {
    match error {
        _ if error.is_locked() || error.is_removed() => false,
        PhysicalError::Repository(RepositoryError::NewerFormat { .. }) => false,
        _ => error.is_of_one_backup(),
    }
}

async fn check(
    repository: &Repository,
    id: &BackupId,
    manifest: &BaseManifest,
    jobs: usize,
    progress: &Arc<Progress>,
    report: &mut VerifyReport,
) -> Result<(), PhysicalError> {
    let table = match repository.pack_table(id, &manifest.packs).await {
        Ok(table) => table,
        Err(error) => return report.failed(error.into()),
    };
    report.read(&manifest.packs);
    let blocks: Arc<[u32]> = table.packs.iter().map(|pack| pack.blocks).collect();
    for object in &manifest.files {
        match repository.file_records(id, object).await {
            Ok(contents) => {
                report.read(object);
                let (blocks, block_bytes) = (Arc::clone(&blocks), manifest.block_bytes);
                let checking =
                    tokio::task::spawn_blocking(move || check_records(&contents, block_bytes, &blocks));
                let checked = checking.await.map_err(PhysicalError::internal)?;
                report
                    .failures
                    .extend(checked.err().map(|reason| format!("{}: {reason}", object.name)));
            }
            Err(error) => report.failed(error.into())?,
        }
    }
    let checks = table.packs.iter().map(|pack| check_pack(repository, pack));
    let mut checks = futures::stream::iter(checks).buffer_unordered(jobs.clamp(1, PACKS_AT_ONCE_MAX));
    while let Some(checked) = checks.next().await {
        match checked {
            Ok(stored_bytes) => {
                report.objects += 1;
                report.stored_bytes += stored_bytes;
                Progress::add(&progress.bytes_done, stored_bytes);
            }
            Err(error) => report.failed(error)?,
        }
    }
    drop(checks);
    let system = system_identifier(manifest)?;
    let covered = repository.wal_coverage(system, manifest.start_timeline).await?;
    let (start, stop) = (manifest.start_lsn, manifest.stop_lsn);
    if !covered.iter().any(|range| range.holds(start, stop)) {
        report
            .failures
            .push(format!("its WAL from {start} to {stop} is not all there"));
    }
    Ok(())
}

impl VerifyReport {
    fn read(&mut self, object: &ObjectRef) {
        self.objects += 1;
        // The manifest's own number, which may be anything.
        self.stored_bytes = self.stored_bytes.saturating_add(object.stored_bytes);
    }

    fn failed(&mut self, error: PhysicalError) -> Result<(), PhysicalError> {
        match is_damage(&error) {
            true => {
                self.failures.push(error.to_string());
                Ok(())
            }
            false => Err(error),
        }
    }
}

fn check_records(contents: &[u8], block_bytes: u32, blocks: &[u32]) -> Result<(), String> {
    for record in RecordReader::new(contents, block_bytes) {
        let record = record.map_err(|broken| broken.to_string())?;
        let RecordContents::File { extents, .. } = &record.contents else {
            continue;
        };
        for extent in extents {
            if let Extent::Stored { at, blocks: count } = extent {
                let in_pack = blocks.get(at.pack as usize).copied().unwrap_or(0);
                if at.block.checked_add(*count).is_none_or(|end| end > in_pack) {
                    return Err("a file lies in blocks that no pack has".to_owned());
                }
            }
        }
    }
    Ok(())
}

/// Every frame of a pack. Returns its size as stored, in bytes.
async fn check_pack(repository: &Repository, pack: &PackInfo) -> Result<u64, PhysicalError> {
    let reader = repository.open_pack(pack).await?;
    let blocks = pack.blocks;
    let checking = tokio::task::spawn_blocking(move || {
        if reader.index().blocks() != blocks {
            return Err(pgkeep_repository::Broken(
                "it has not the blocks that the list of packs says",
            ));
        }
        (0..reader.index().frames().len()).try_for_each(|frame| reader.frame(frame).map(drop))
    });
    checking
        .await
        .map_err(PhysicalError::internal)?
        .map_err(|broken| RepositoryError::Malformed {
            key: pack.key(repository.cluster()),
            reason: broken.to_string(),
        })?;
    Ok(pack.stored_bytes)
}
