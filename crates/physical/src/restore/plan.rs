//! What a restore would do, and whether it can be done: all that is asked before anything is touched.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, ByteCount};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, WalWalker};
use pgkeep_repository::Repository;
use pgkeep_repository::map::{ROOT_TABLESPACES, RecordReader};
use pgkeep_repository::wal::Covered;
use pgkeep_store::Disk;
use pgkeep_wal::Windows;

use super::delta::{self, Existing, Known};
use super::path::{TimelineChoice, WalPath, path};
use super::{MARK, RecoveryTarget};
use crate::choose;
use crate::error::{Context, PhysicalError};
use crate::manifest::{BaseManifest, Tablespace};
use crate::windows::windows_of;

/// PostgreSQL's times begin in 2000; this many seconds after 1970 (`POSTGRES_EPOCH_JDATE`, `datatype/timestamp.h`).
const EPOCH_SECONDS: i64 = 946_684_800;

/// So many of the files that a restore will remove are named.
const REMOVED_NAMED_MAX: usize = 20;

/// Which tablespace is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TablespaceName {
    /// By its OID.
    Oid(u32),
    /// By the directory in which it was (`pg_tablespace_location`).
    Location(String),
}

impl TablespaceName {
    fn means(&self, space: &Tablespace) -> bool {
        match self {
            Self::Oid(oid) => space.oid == *oid,
            Self::Location(path) => space.path == *path,
        }
    }
}

impl fmt::Display for TablespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oid(oid) => write!(f, "{oid}"),
            Self::Location(path) => f.write_str(path),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The data directory to be: empty, or not there yet.
    pub directory: PathBuf,
    /// Where each tablespace goes.
    pub tablespaces: BTreeMap<TablespaceName, PathBuf>,
    /// Where recovery ends.
    pub target: RecoveryTarget,
    /// Packs fetched and written at once.
    pub jobs: usize,
    /// What becomes of what is there.
    pub existing: Existing,
    /// Which timeline recovery follows.
    pub timeline: TimelineChoice,
}

/// What would be done.
#[derive(Debug)]
pub struct RestorePlan {
    /// Which backup.
    pub id: BackupId,
    /// What it says of itself.
    pub manifest: BaseManifest,
    /// What was asked for.
    pub options: RestoreOptions,
    /// The WAL that recovery follows.
    pub(crate) path: WalPath,
    /// How far the WAL goes that follows the backup without a gap.
    pub covered_to: Lsn,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// Where each of the backup's roots goes, by the number in its records.
    pub(crate) roots: BTreeMap<u32, PathBuf>,
    /// What is there and isn't in the backup: it will be removed. The first ones, and their number.
    pub removed: (Vec<PathBuf>, usize),
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
}

impl RestorePlan {
    /// How much is to be written at most, in bytes; what the WAL takes is not in it.
    pub fn bytes(&self) -> u64 {
        let totals = self.manifest.totals;
        totals.plain_bytes.saturating_sub(totals.zero_bytes)
    }

    /// Where each tablespace goes, by its OID.
    pub(crate) fn tablespaces(&self) -> BTreeMap<u32, PathBuf> {
        let spaces = self.manifest.tablespaces.iter().zip(ROOT_TABLESPACES..);
        let places = spaces.filter_map(|(space, root)| Some((space.oid, self.roots.get(&root)?.clone())));
        places.collect()
    }

    /// The timelines that recovery follows, in words.
    pub fn timelines(&self) -> String {
        self.path.in_words()
    }
}

/// Chooses the backup, and makes sure that it, the WAL and the place are what the restore takes.
///
/// # Errors
/// No backup, no key; [`PhysicalError::Refused`] where the target isn't covered or the place isn't empty.
pub async fn plan(
    repository: &Repository,
    text: &str,
    options: &RestoreOptions,
) -> Result<RestorePlan, PhysicalError> {
    if options.existing == Existing::Refuse {
        check_place(&options.directory, "the data directory")?;
    }
    let (manifest, (path, covered, told)) =
        choose(
            repository,
            text,
            async |manifest: &BaseManifest| match check_target(repository, manifest, options).await {
                Ok(covered) => Ok(Ok(covered)),
                Err(error @ PhysicalError::Refused { .. }) => Ok(Err(error)),
                Err(error) => Err(error),
            },
        )
        .await?;
    if options.existing != Existing::Refuse {
        delta::check_data(&options.directory, options.existing, &manifest)?;
    }
    let roots = roots(&manifest, options)?;
    let segment_size = segment_size(&manifest)?;
    let id = manifest.id.parse().map_err(PhysicalError::internal)?;
    let mut attention: Vec<String> = manifest
        .omissions
        .iter()
        .map(|omission| format!("not in the backup: {omission}"))
        .collect();
    attention.extend(told);
    if manifest.damaged_pages.reports_total > 0 {
        attention.push(format!(
            "pages were damaged at the server already when it was backed up: 'pgkeep show {id}' names them"
        ));
    }
    let mut plan = RestorePlan {
        id,
        manifest,
        options: options.clone(),
        path,
        covered_to: covered.end,
        segment_size,
        roots,
        removed: (Vec::new(), 0),
        attention,
    };
    if options.existing == Existing::Refuse {
        check_room(&plan)?;
    } else {
        let mut strangers = strangers(repository, &plan).await?;
        let count = strangers.len();
        strangers.truncate(REMOVED_NAMED_MAX);
        plan.removed = (strangers, count);
    }
    Ok(plan)
}

/// What lies where the backup goes and isn't in it.
pub(crate) async fn strangers(
    repository: &Repository,
    plan: &RestorePlan,
) -> Result<Vec<PathBuf>, PhysicalError> {
    let mut known = Known::with(&plan.manifest.tablespaces);
    for object in &plan.manifest.files {
        let contents = repository.file_records(&plan.id, object).await?;
        let (id, name) = (plan.manifest.id.clone(), object.name.clone());
        let block_bytes = plan.manifest.block_bytes;
        let reading = tokio::task::spawn_blocking(move || {
            for record in RecordReader::new(&contents, block_bytes) {
                let record = record.map_err(|broken| PhysicalError::Damaged {
                    id: id.clone(),
                    reason: format!("{name}: {broken}"),
                })?;
                known.add(record.root, &record.path, &record.contents);
            }
            Ok::<_, PhysicalError>(known)
        });
        known = reading.await.map_err(PhysicalError::internal)??;
    }
    let roots = plan.roots.clone();
    let looking = tokio::task::spawn_blocking(move || {
        known.strangers(|root, path| {
            let root = roots.get(&root);
            let root = root.ok_or_else(|| PhysicalError::internal("a file belongs to an unknown root"))?;
            Ok(root.join(std::ffi::OsStr::from_bytes(path)))
        })
    });
    looking.await.map_err(PhysicalError::internal)?
}

pub(crate) fn segment_size(manifest: &BaseManifest) -> Result<SegmentSize, PhysicalError> {
    SegmentSize::new(manifest.wal_segment_bytes).map_err(PhysicalError::internal)
}

pub(crate) fn system_identifier(manifest: &BaseManifest) -> Result<u64, PhysicalError> {
    manifest
        .system_identifier
        .parse()
        .map_err(PhysicalError::internal)
}

/// Whether recovery from this backup can come to the target. Returns the WAL that it follows, how much of it there is without a
/// gap, and what is to be said of that.
async fn check_target(
    repository: &Repository,
    manifest: &BaseManifest,
    options: &RestoreOptions,
) -> Result<(WalPath, Covered, Option<String>), PhysicalError> {
    let (start, stop) = (manifest.start_lsn, manifest.stop_lsn);
    let system = system_identifier(manifest)?;
    let choice = match options.target {
        RecoveryTarget::BackupEnd => TimelineChoice::Current,
        _ => options.timeline,
    };
    let path = path(repository, manifest, choice).await?;
    let covered = &path.covered;
    let Some(range) = covered.iter().find(|range| range.holds(start, stop)) else {
        return Err(PhysicalError::Refused {
            message: format!(
                "backup {} can't be recovered: its WAL from {start} to {stop} is not all there any more",
                manifest.id
            ),
            hint: "restore from another one: 'pgkeep list'".to_owned(),
        });
    };
    let id = &manifest.id;
    match options.target {
        RecoveryTarget::BackupEnd | RecoveryTarget::End => {}
        // Where these are, only the WAL tells.
        RecoveryTarget::Transaction(_) | RecoveryTarget::Name(_) => {}
        RecoveryTarget::Lsn(lsn) if lsn < stop => {
            return Err(PhysicalError::Refused {
                message: format!(
                    "{lsn} lies before the end of backup {id}, which is consistent from {stop} on"
                ),
                hint: format!("the nearest point is --to-lsn {stop}; an earlier one takes an earlier backup"),
            });
        }
        RecoveryTarget::Lsn(lsn) if lsn > range.end => {
            let later = covered.iter().find(|later| later.start > range.end);
            let gap = later.map(|later| format!("; there is a gap from there to {}", later.start));
            return Err(PhysicalError::Refused {
                message: format!(
                    "{lsn} lies behind the WAL that follows backup {id}: that ends at {}{}",
                    range.end,
                    gap.unwrap_or_default()
                ),
                hint: nearest(&windows_of(repository, system).await?, manifest, lsn, range.end),
            });
        }
        RecoveryTarget::Lsn(_) => {}
        RecoveryTarget::Time(time) => {
            let earliest = earliest(repository, manifest).await?;
            if time < earliest {
                return Err(PhysicalError::Refused {
                    message: format!(
                        "{time} lies before the end of backup {id}, which is consistent from {earliest} on"
                    ),
                    hint: format!(
                        "the nearest point is --to-time {earliest}; an earlier one takes an earlier backup"
                    ),
                });
            }
        }
    }
    let (range, told) = (*range, told_of_end(manifest, &options.target, covered, range.end));
    Ok((path, range, told))
}

/// How to come as near as possible to a point that WAL from a backup doesn't lead to.
fn nearest(windows: &Windows, manifest: &BaseManifest, lsn: Lsn, end: Lsn) -> String {
    let timeline = manifest.start_timeline;
    let mut windows_with = windows.windows.iter();
    if let Some(id) = windows_with
        .find(|window| window.holds(timeline, lsn))
        .and_then(|window| window.backups.first())
    {
        return format!(
            "base backup {id} leads there: name it in place of {}",
            manifest.id
        );
    }
    let own = format!("the nearest point is --to-lsn {end}, which is --to-end");
    match windows.nearest(timeline, lsn).1 {
        Some(later) => match later.backups.first() {
            Some(id) => format!("{own}; the next one is --to-lsn {} of backup {id}", later.from),
            None => own,
        },
        None => own,
    }
}

/// What is to be said of a recovery to the end that isn't the end of all that is stored.
fn told_of_end(
    manifest: &BaseManifest,
    target: &RecoveryTarget,
    covered: &[Covered],
    end: Lsn,
) -> Option<String> {
    let later = covered.iter().find(|later| later.start > end)?;
    (*target == RecoveryTarget::End).then(|| {
        format!(
            "recovery ends at {end}: WAL from there to {} is not stored, and later points take a later backup than {}",
            later.start, manifest.id
        )
    })
}

/// The earliest time that recovery from a backup can be told: that of the last transaction that ended before the backup did,
/// or, if none ended since its checkpoint, a second after that, which is told to the second.
async fn earliest(repository: &Repository, manifest: &BaseManifest) -> Result<Timestamp, PhysicalError> {
    let (timeline, size) = (manifest.start_timeline, segment_size(manifest)?);
    let system = system_identifier(manifest)?;
    let first = SegmentName::holding(timeline, manifest.start_lsn, size);
    let mut segment = SegmentName::before(timeline, manifest.stop_lsn, size);
    let mut last = None;
    while last.is_none() {
        let fetched = repository
            .fetch_wal_to(system, &segment, manifest.stop_lsn)
            .await?;
        let bytes = fetched.ok_or_else(|| missing(manifest, segment))?;
        let (start, stop) = (manifest.start_lsn, manifest.stop_lsn);
        let found = tokio::task::spawn_blocking(move || {
            let mut last: Option<i64> = None;
            WalWalker::new().segment(segment, &bytes, |record| {
                if start <= record.start && record.end <= stop {
                    last = last.max(record.transaction_end);
                }
            });
            last
        });
        last = found.await.map_err(PhysicalError::internal)?;
        if segment.number() <= first.number() {
            break;
        }
        segment = SegmentName::before(timeline, segment.start(), size);
    }
    let checkpoint = manifest.checkpoint_at;
    match last.and_then(time_of) {
        Some(last) => Ok(last.max(checkpoint)),
        None => {
            let after = checkpoint.checked_add(SignedDuration::from_secs(1));
            after.map_err(PhysicalError::internal)
        }
    }
}

/// A time of PostgreSQL's.
pub(crate) fn time_of(microseconds: i64) -> Option<Timestamp> {
    let epoch = Timestamp::from_second(EPOCH_SECONDS).ok()?;
    epoch.checked_add(SignedDuration::from_micros(microseconds)).ok()
}

pub(crate) fn missing(manifest: &BaseManifest, segment: SegmentName) -> PhysicalError {
    PhysicalError::Damaged {
        id: manifest.id.clone(),
        reason: format!("segment {segment} of its WAL is gone"),
    }
}

/// Refuses a place where something lies.
fn check_place(place: &Path, what: &str) -> Result<(), PhysicalError> {
    let shown = place.display();
    let refused = |message: String| {
        Err(PhysicalError::Refused {
            message,
            hint: "choose a directory that is empty or not there yet".to_owned(),
        })
    };
    let metadata = match std::fs::symlink_metadata(place) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(|| format!("looking at {shown}")),
    };
    if !metadata.is_dir() {
        return refused(format!("{what} {shown} is no directory"));
    }
    let looking = || format!("looking into {shown}");
    if place.join(MARK).exists() {
        return Err(PhysicalError::Refused {
            message: format!("another restore is writing to {shown}, or stopped half-way there"),
            hint: "if none is running, go on with it: add --resume".to_owned(),
        });
    }
    let mut entries = std::fs::read_dir(place).context(looking)?;
    match entries.next().transpose().context(looking)? {
        None => Ok(()),
        Some(entry) => refused(format!(
            "{what} {shown} is not empty: it holds {}",
            entry.file_name().display()
        )),
    }
}

/// Where each root goes.
fn roots(manifest: &BaseManifest, options: &RestoreOptions) -> Result<BTreeMap<u32, PathBuf>, PhysicalError> {
    use pgkeep_repository::map::ROOT_DATA;
    let directory = absolute(&options.directory)?;
    let known = |name: &TablespaceName| manifest.tablespaces.iter().any(|space| name.means(space));
    if let Some(unknown) = options.tablespaces.keys().find(|name| !known(name)) {
        let oids: Vec<String> = manifest
            .tablespaces
            .iter()
            .map(|space| format!("{} ({})", space.oid, space.path))
            .collect();
        return Err(PhysicalError::Usage {
            message: format!("backup {} has no tablespace {unknown}", manifest.id),
            hint: match oids.is_empty() {
                true => "it has none: leave --tablespace out".to_owned(),
                false => format!("it has {}", oids.join(", ")),
            },
        });
    }
    let marked = delta::marked_spaces(&directory);
    let mut roots = BTreeMap::from([(ROOT_DATA, directory.clone())]);
    for (space, root) in manifest.tablespaces.iter().zip(ROOT_TABLESPACES..) {
        let asked = options.tablespaces.iter().filter(|(name, _)| name.means(space));
        let mut asked = asked.map(|(_, place)| place);
        let now = match options.existing {
            Existing::Refuse => None,
            Existing::Resume | Existing::Replace => marked.get(&space.oid),
        };
        let Some(place) = asked.next().or(now) else {
            return Err(PhysicalError::Usage {
                message: format!(
                    "backup {} has a tablespace {}, which was at {}",
                    manifest.id, space.oid, space.path
                ),
                hint: delta::where_to(&directory, space),
            });
        };
        if asked.next().is_some() {
            return Err(PhysicalError::Usage {
                message: format!(
                    "tablespace {} at {} is told twice where it goes",
                    space.oid, space.path
                ),
                hint: "name it once, by its OID or by its place".to_owned(),
            });
        }
        match options.existing {
            Existing::Refuse => check_place(place, "the tablespace's directory")?,
            Existing::Resume | Existing::Replace => delta::check_tablespace(&directory, space, place)?,
        }
        let place = absolute(place)?;
        if let Some(other) = roots
            .values()
            .find(|other| other.starts_with(&place) || place.starts_with(other))
        {
            return Err(PhysicalError::Usage {
                message: format!("{} and {} lie in one another", place.display(), other.display()),
                hint: "give each tablespace a directory of its own, outside the data directory".to_owned(),
            });
        }
        roots.insert(root, place);
    }
    Ok(roots)
}

fn absolute(path: &Path) -> Result<PathBuf, PhysicalError> {
    std::path::absolute(path).context(|| format!("finding {}", path.display()))
}

/// Refuses a disk that can't take it, where all goes to one.
fn check_room(plan: &RestorePlan) -> Result<(), PhysicalError> {
    if plan.roots.len() > 1 {
        return Ok(());
    }
    let directory = &plan.options.directory;
    let Some(disk) = Disk::of(directory) else {
        return Ok(());
    };
    let free = disk.free_bytes;
    let needed = plan.bytes();
    if needed <= free {
        return Ok(());
    }
    Err(PhysicalError::Refused {
        message: format!(
            "the backup takes {}, and {} has {} free",
            ByteCount(needed),
            directory.display(),
            ByteCount(free)
        ),
        hint: "free some space there, or choose another disk".to_owned(),
    })
}
