//! A base backup as PostgreSQL's own programs have it: a directory such as `pg_basebackup` makes, with its WAL and a
//! `backup_manifest`, which `pg_verifybackup` accepts and a server starts from without pgkeep.

mod manifest;

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt, TryStreamExt};
use pgkeep_base::Progress;
use pgkeep_pgformat::WalFileName;
use pgkeep_repository::Repository;
use pgkeep_repository::map::{FileRecord, ROOT_DATA, ROOT_TABLESPACES, RecordContents};

use crate::error::{Context, PhysicalError};
use crate::restore::{
    BACKUP_LABEL, Files, Place, RestorePlan, claimed, fetched, put_control_file, system_identifier,
};
use manifest::{Entry, ManifestWriter};

const WAL_DIRECTORY: &str = "pg_wal";
const TABLESPACES_DIRECTORY: &str = "pg_tblspc";

/// What an export did.
#[derive(Debug)]
pub struct ExportReport {
    /// The data directory.
    pub directory: PathBuf,
    /// Files made, the WAL's and the manifest aside.
    pub files: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Segments of WAL in `pg_wal`.
    pub segments: u64,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Writes a base backup into the directory of a plan, whose target is the backup's end. What it writes is durable at the end.
///
/// # Errors
/// As [`restore`](crate::restore::restore).
pub async fn export(
    repository: &Repository,
    plan: &RestorePlan,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<ExportReport, PhysicalError> {
    let begun = Instant::now();
    let go_on = |directories: &str| {
        format!("remove what it left, and export again: find {directories} -mindepth 1 -delete")
    };
    let work = async |place: &Arc<Place>| into(repository, plan, place, progress).await;
    let report = claimed(plan, cancelled, go_on, work).await?;
    Ok(ExportReport {
        elapsed: begun.elapsed(),
        ..report
    })
}

async fn into(
    repository: &Repository,
    plan: &RestorePlan,
    place: &Arc<Place>,
    progress: &Arc<Progress>,
) -> Result<ExportReport, PhysicalError> {
    progress.set_phase("fetching WAL");
    let segments = wal(repository, plan, place).await?;
    let files = Files {
        repository,
        plan,
        place,
        progress,
    };
    let made = files.restore().await?;
    progress.set_phase("writing backup_manifest");
    let (manifest, system) = (&plan.manifest, system_identifier(&plan.manifest)?);
    let beginning = {
        let (place, label) = (Arc::clone(place), manifest.backup_label.clone());
        let (version, links) = (manifest.server_version_num, plan.tablespaces());
        tokio::task::spawn_blocking(move || {
            links
                .iter()
                .try_for_each(|(oid, path)| place.link(&tablespace_link(&place, *oid), path))?;
            place.write(&place.data().join(BACKUP_LABEL), label.as_bytes())?;
            let mut writer = ManifestWriter::begin(&place, version, system)?;
            writer.add(&label_entry(&place)?)?;
            Ok::<_, PhysicalError>(writer)
        })
    };
    let mut writer = beginning.await.map_err(PhysicalError::internal)??;
    for object in &manifest.files {
        let records = files.records(object, |_| Ok(())).await?.into_iter();
        let entries = records.filter_map(|(record, ())| entry(plan, place, record).transpose());
        let entries: Vec<Entry> = futures::stream::iter(entries)
            .map(|found| async {
                let (path, modified_at, at) = found?;
                let reading = tokio::task::spawn_blocking(move || Entry::read(path, modified_at, &at));
                reading.await.map_err(PhysicalError::internal)?
            })
            .buffered(plan.options.jobs.max(1))
            .try_collect()
            .await?;
        let writing = tokio::task::spawn_blocking(move || {
            entries.iter().try_for_each(|entry| writer.add(entry))?;
            Ok::<_, PhysicalError>(writer)
        });
        writer = writing.await.map_err(PhysicalError::internal)??;
    }
    let range = (manifest.start_lsn, manifest.stop_lsn);
    let (timeline, place_there) = (manifest.start_timeline, Arc::clone(place));
    let ending = tokio::task::spawn_blocking(move || {
        writer.end(timeline, range)?;
        place_there.sync()?;
        put_control_file(&place_there)?;
        place_there.unmark()
    });
    ending.await.map_err(PhysicalError::internal)??;
    Ok(ExportReport {
        directory: place.data().to_owned(),
        files: made.files,
        bytes: made.bytes,
        segments,
        attention: plan.attention.clone(),
        elapsed: Duration::ZERO,
    })
}

/// The WAL of the backup alone, where the server looks for it first, and the history of its timeline.
async fn wal(repository: &Repository, plan: &RestorePlan, place: &Arc<Place>) -> Result<u64, PhysicalError> {
    let manifest = &plan.manifest;
    let directory = place.data().join(WAL_DIRECTORY);
    let write = async |name: String, contents: bytes::Bytes| {
        let (place, directory) = (Arc::clone(place), directory.clone());
        let writing = tokio::task::spawn_blocking(move || {
            place.directory(&directory, 0o700)?;
            place.write(&directory.join(name), &contents)
        });
        writing.await.map_err(PhysicalError::internal)?
    };
    let mut segments = 0;
    let mut fetching = std::pin::pin!(fetched(repository, plan, manifest.stop_lsn)?);
    while let Some((name, contents)) = fetching.try_next().await? {
        write(name.to_string(), contents).await?;
        segments += 1;
    }
    let timeline = manifest.start_timeline;
    let history = repository
        .fetch_wal_history(system_identifier(manifest)?, timeline)
        .await?;
    if let Some(history) = history {
        write(WalFileName::History(timeline).to_string(), history).await?;
    }
    Ok(segments)
}

fn tablespace_link(place: &Place, oid: u32) -> PathBuf {
    place.data().join(TABLESPACES_DIRECTORY).join(oid.to_string())
}

/// The label isn't among the backup's files.
fn label_entry(place: &Place) -> Result<Entry, PhysicalError> {
    let path = place.data().join(BACKUP_LABEL);
    let modified_at = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
    let modified_at = modified_at.context(|| format!("looking at {}", path.display()))?;
    let modified_at = modified_at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Entry::read(BACKUP_LABEL.as_bytes().to_vec(), modified_at.as_secs(), &path)
}

/// What a record is called in the manifest, when it was changed, and where it lies; of what isn't a file, nothing.
fn entry(
    plan: &RestorePlan,
    place: &Place,
    record: FileRecord,
) -> Result<Option<(Vec<u8>, u64, PathBuf)>, PhysicalError> {
    let RecordContents::File { modified_at, .. } = record.contents else {
        return Ok(None);
    };
    let Some(at) = Files::path(place, &record)? else {
        return Ok(None);
    };
    if record.root == ROOT_DATA {
        return Ok(Some((record.path, modified_at, at)));
    }
    let space = record.root.checked_sub(ROOT_TABLESPACES);
    let space = space.and_then(|space| plan.manifest.tablespaces.get(space as usize));
    let space = space.ok_or_else(|| PhysicalError::internal("a file belongs to an unknown tablespace"))?;
    let mut path = PathBuf::from(TABLESPACES_DIRECTORY).join(space.oid.to_string());
    path.push(std::ffi::OsStr::from_bytes(&record.path));
    Ok(Some((path.as_os_str().as_bytes().to_vec(), modified_at, at)))
}
