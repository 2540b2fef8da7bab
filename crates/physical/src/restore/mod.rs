//! Restoring a base backup: the plan, the files, the WAL beside them, the settings, and only then what lets a server start.

mod delta;
mod files;
mod path;
mod place;
mod plan;
mod settings;
mod target;
mod wal;

pub(crate) use files::{CONTROL_FILE_ASIDE, Files};
pub(crate) use place::{Place, sync_directory};
pub(crate) use plan::system_identifier;
pub(crate) use wal::fetched;

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgkeep_base::{Progress, quote_for_shell};
use pgkeep_pgformat::{MappedTablespace, TablespaceMap, Timeline};
use pgkeep_repository::Repository;

use crate::error::{Context, PhysicalError};
use settings::StopAt;

pub use delta::Existing;
pub use path::TimelineChoice;
pub use plan::{RestoreOptions, RestorePlan, TablespaceName, plan};
pub use target::{RecoveryTarget, parse_time};

/// In the data directory: a restore is under way there, or stopped half-way.
pub(crate) const MARK: &str = "pgkeep.restore";
/// In the data directory: the WAL that the server asks for while it recovers.
pub(crate) const STAGING: &str = "pgkeep_wal";

/// The file that makes a server recover from a backup's start.
pub(crate) const BACKUP_LABEL: &str = "backup_label";

/// Whether a path below the data directory is of what a restore left there.
pub(crate) fn is_of_a_restore(path: &[u8]) -> bool {
    let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
    first == STAGING.as_bytes() || first == MARK.as_bytes()
}

const AUTO_CONF: &str = "postgresql.auto.conf";
/// A file of settings is never larger, in bytes.
const AUTO_CONF_BYTES_MAX: u64 = 16 << 20;

/// What a restore did.
#[derive(Debug)]
pub struct RestoreReport {
    /// The data directory.
    pub directory: PathBuf,
    /// Files made.
    pub files: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Files and directories that were there and aren't in the backup, and were removed.
    pub removed: u64,
    /// Segments of WAL that lie ready.
    pub segments: u64,
    /// When the last transaction ended that recovery will find, if any is in the WAL.
    pub last_transaction_at: Option<Timestamp>,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Carries a plan out. What it writes is durable at the end; the server then recovers to the target by itself when it is
/// started.
///
/// # Errors
/// [`PhysicalError::Refused`] where something lies there now; [`PhysicalError::Unfinished`] once something was written: then the
/// directory keeps its mark, and no server starts from it.
pub async fn restore(
    repository: &Repository,
    plan: &RestorePlan,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<RestoreReport, PhysicalError> {
    let begun = Instant::now();
    let go_on = |directories: &str| {
        format!(
            "go on with the same command and --resume; until it ends, no server starts from {directories}"
        )
    };
    let work = async |place: &Arc<Place>| into(repository, plan, place, progress).await;
    let report = claimed(plan, cancelled, go_on, work).await?;
    Ok(RestoreReport {
        elapsed: begun.elapsed(),
        ..report
    })
}

/// Marks the place, and does the work there. Whatever becomes of it, a place that isn't finished says so, and `go_on` what to do
/// with its directories.
pub(crate) async fn claimed<T>(
    plan: &RestorePlan,
    cancelled: impl Future<Output = ()>,
    go_on: impl FnOnce(&str) -> String,
    work: impl AsyncFnOnce(&Arc<Place>) -> Result<T, PhysicalError>,
) -> Result<T, PhysicalError> {
    let (roots, existing) = (plan.roots.clone(), plan.options.existing);
    let (id, spaces) = (plan.id.to_string(), plan.tablespaces());
    let claiming = tokio::task::spawn_blocking(move || Place::claim(&roots, &spaces, &id, existing));
    let place = Arc::new(claiming.await.map_err(PhysicalError::internal)??);
    let cancelled = pin!(cancelled);
    let done = tokio::select! {
        done = work(&place) => done,
        () = cancelled => Err(PhysicalError::Interrupted),
    };
    if let Err(PhysicalError::Refused { .. }) = &done
        && plan.options.existing == Existing::Refuse
    {
        // It turned out before the first file; what was made is nobody's.
        let place = Arc::clone(&place);
        let clearing = tokio::task::spawn_blocking(move || place.clear());
        clearing.await.map_err(PhysicalError::internal)??;
        return done;
    }
    done.map_err(|source| {
        let directories = plan.roots.values();
        let directories: Vec<String> = directories
            .map(|root| quote_for_shell(&root.display().to_string()))
            .collect();
        PhysicalError::Unfinished {
            source: Box::new(source),
            hint: go_on(&directories.join(" ")),
        }
    })
}

async fn into(
    repository: &Repository,
    plan: &RestorePlan,
    place: &Arc<Place>,
    progress: &Arc<Progress>,
) -> Result<RestoreReport, PhysicalError> {
    // First what may turn out to be impossible, and is small beside the files.
    let staged = wal::stage(repository, plan, place, progress).await?;
    let files = Files {
        repository,
        plan,
        place,
        progress,
    };
    let made = files.restore().await?;
    progress.set_phase("making all durable");
    let ending = {
        let (place, stop_at) = (Arc::clone(place), staged.stop_at);
        let timeline = plan.path.timeline();
        let timeline = timeline.filter(|timeline| *timeline != plan.manifest.start_timeline);
        let label = plan.manifest.backup_label.clone();
        let map = tablespace_map(plan);
        tokio::task::spawn_blocking(move || finish(&place, (&stop_at, timeline), &label, map.as_ref()))
    };
    ending.await.map_err(PhysicalError::internal)??;
    let mut attention = plan.attention.clone();
    attention.extend(staged.attention);
    let is_root_s = nix::unistd::geteuid().is_root() && place.owner().is_none();
    if is_root_s {
        attention.push(format!(
            "all belongs to root, which no server runs as: chown -R postgres: {}",
            quote_for_shell(&place.data().display().to_string())
        ));
    }
    Ok(RestoreReport {
        directory: place.data().to_owned(),
        files: made.files,
        bytes: made.bytes,
        removed: made.removed,
        segments: staged.segments,
        last_transaction_at: staged.last_transaction_at,
        attention,
        elapsed: Duration::ZERO,
    })
}

fn tablespace_map(plan: &RestorePlan) -> Option<TablespaceMap> {
    use std::os::unix::ffi::OsStringExt;
    let spaces = plan.tablespaces().into_iter();
    let tablespaces: Vec<MappedTablespace> = spaces
        .map(|(oid, path)| MappedTablespace {
            oid,
            path: path.into_os_string().into_vec(),
        })
        .collect();
    (!tablespaces.is_empty()).then_some(TablespaceMap { tablespaces })
}

/// Settings with those of a restore; for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn settings_for_fuzzing(contents: &str) -> String {
    settings::with_block(contents, &settings::block(&StopAt::EndOfWal, None))
}

/// Settings; then, when all is durable, the label, and last the control file, without which no server starts.
fn finish(
    place: &Place,
    (stop_at, timeline): (&StopAt, Option<Timeline>),
    label: &str,
    map: Option<&TablespaceMap>,
) -> Result<(), PhysicalError> {
    let data = place.data();
    let path = data.join(AUTO_CONF);
    let before = auto_conf(&path)?.unwrap_or_default();
    let settings = settings::with_block(&before, &settings::block(stop_at, timeline));
    place.write(&path, settings.as_bytes())?;
    place.write(&data.join("recovery.signal"), b"")?;
    if let Some(map) = map {
        place.write(&data.join("tablespace_map"), &map.to_bytes())?;
    }
    place.sync()?;
    place.write(&data.join(BACKUP_LABEL), label.as_bytes())?;
    put_control_file(place)?;
    place.unmark()
}

/// The settings that `ALTER SYSTEM` writes, if there are any.
fn auto_conf(path: &Path) -> Result<Option<String>, PhysicalError> {
    let reading = || format!("reading {}", path.display());
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > AUTO_CONF_BYTES_MAX => Err(PhysicalError::internal(format!(
            "{} is larger than any can be",
            path.display()
        ))),
        Ok(_) => fs::read_to_string(path).context(reading).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(reading),
    }
}

/// Gives the control file its name, when all else is durable: from then on a server may start.
pub(crate) fn put_control_file(place: &Place) -> Result<(), PhysicalError> {
    let data = place.data();
    sync_directory(data)?;
    let (aside, control) = (data.join(CONTROL_FILE_ASIDE), data.join("global/pg_control"));
    fs::rename(&aside, &control).context(|| format!("renaming {}", aside.display()))?;
    sync_directory(&data.join("global"))
}
