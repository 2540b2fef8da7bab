//! The WAL that the restored server replays, put beside its files before it starts; and what recovery has to be told, which
//! only the WAL itself knows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use pgkeep_base::Progress;
use pgkeep_pgformat::{Lsn, SegmentName, Timeline, WalFileName, WalRecord, WalWalker};
use pgkeep_repository::Repository;

use super::place::Place;
use super::plan::{self, RestorePlan, time_of};
use super::settings::{COMPLETE_NAME, LIST_NAME, SCRIPT, SCRIPT_NAME, StopAt};
use super::{RecoveryTarget, STAGING};
use crate::error::PhysicalError;

/// Segments fetched at once; each is held in memory.
const SEGMENTS_AT_ONCE: usize = 3;
/// So large may the segments be that are in memory together, in bytes.
const SEGMENT_BYTES_AT_ONCE: u64 = 64 << 20;

/// What was staged.
#[derive(Debug)]
pub struct Staged {
    /// What recovery is told.
    pub stop_at: StopAt,
    /// Segments.
    pub segments: u64,
    /// When the last transaction ended that is in them and before the target, if any.
    pub last_transaction_at: Option<Timestamp>,
    /// What needs attention.
    pub attention: Vec<String>,
}

/// What walking over the WAL has shown so far.
struct Scan {
    walker: WalWalker,
    target: RecoveryTarget,
    /// The backup's own range.
    start: Lsn,
    stop: Lsn,
    /// A record at which PostgreSQL will find that it has come to the target.
    reached: bool,
    /// It lies before the backup's end.
    too_early: bool,
    last_transaction_end: Option<i64>,
    /// Directories that recovery will put tablespaces into, by their OIDs.
    tablespaces: BTreeMap<u32, PathBuf>,
}

impl Scan {
    fn see(&mut self, record: WalRecord) {
        // What lies before the backup in its first segment isn't replayed.
        if self.reached || record.start < self.start {
            return;
        }
        if let Some((oid, path)) = record.tablespace
            && !path.is_empty()
        {
            self.tablespaces
                .insert(oid, PathBuf::from(OsString::from_vec(path)));
        }
        let passes = match &self.target {
            RecoveryTarget::Lsn(lsn) => record.start >= *lsn,
            // Only the lower half is in the WAL.
            RecoveryTarget::Transaction(id) => record
                .transaction
                .is_some_and(|found| u64::from(found) == *id & u64::from(u32::MAX)),
            RecoveryTarget::Name(name) => record
                .restore_point
                .is_some_and(|point| point.as_bytes() == name.as_bytes()),
            RecoveryTarget::Time(time) => {
                // PostgreSQL compares in microseconds.
                let ended = record.transaction_end;
                ended.is_some_and(|ended| {
                    time_of(ended).is_some_and(|ended| ended.as_microsecond() > time.as_microsecond())
                })
            }
            RecoveryTarget::BackupEnd | RecoveryTarget::End => false,
        };
        if passes {
            self.reached = true;
            self.too_early = record.end <= self.stop && !matches!(self.target, RecoveryTarget::Lsn(_));
        }
        // It is part of what is recovered itself, where it is the target and not the first behind it.
        if !passes || matches!(self.target, RecoveryTarget::Transaction(_)) {
            self.last_transaction_end = record.transaction_end.or(self.last_transaction_end);
        }
    }
}

/// Stages all WAL that the target needs.
pub async fn stage(
    repository: &Repository,
    plan: &RestorePlan,
    place: &Arc<Place>,
    progress: &Progress,
) -> Result<Staged, PhysicalError> {
    progress.set_phase("fetching WAL");
    let staging = place.data().join(STAGING);
    let making = {
        let (place, staging) = (Arc::clone(place), staging.clone());
        tokio::task::spawn_blocking(move || {
            place.directory(&staging, 0o700)?;
            place.write(&staging.join(SCRIPT_NAME), SCRIPT.as_bytes())
        })
    };
    making.await.map_err(PhysicalError::internal)??;
    let mut list = String::new();
    let (scan, segments) = segments(repository, plan, (place, &staging), &mut list, progress).await?;
    let newer = histories(repository, plan, place, &mut list).await?;
    let writing = {
        let place = Arc::clone(place);
        tokio::task::spawn_blocking(move || {
            place.write(&staging.join(LIST_NAME), list.as_bytes())?;
            place.write(&staging.join(COMPLETE_NAME), b"")
        })
    };
    writing.await.map_err(PhysicalError::internal)??;
    Ok(outcome(plan, &scan, segments, newer))
}

fn outcome(plan: &RestorePlan, scan: &Scan, segments: u64, newer: Option<Timeline>) -> Staged {
    let last_transaction_at = scan.last_transaction_end.and_then(time_of);
    let mut attention = Vec::new();
    let stop_at = match &plan.options.target {
        RecoveryTarget::BackupEnd => StopAt::Consistent,
        RecoveryTarget::Lsn(lsn) if scan.reached => StopAt::Lsn(*lsn),
        RecoveryTarget::Time(time) if scan.reached => StopAt::Time(*time),
        RecoveryTarget::Transaction(id) => StopAt::Transaction(*id),
        RecoveryTarget::Name(name) => StopAt::Name(name.clone()),
        RecoveryTarget::Time(time) => {
            let last = match last_transaction_at {
                Some(last) => format!("the last one that is stored ended at {last}"),
                None => "none is stored since the backup".to_owned(),
            };
            attention.push(format!(
                "no transaction that ended after {time} is stored, so recovery goes to the end of the stored WAL, {}: {last}. \
                 Whether others ended before {time} and never came into the repository can't be told",
                plan.covered_to
            ));
            StopAt::EndOfWal
        }
        // Every record before it is there, and none behind it.
        RecoveryTarget::Lsn(_) | RecoveryTarget::End => StopAt::EndOfWal,
    };
    if let (StopAt::EndOfWal, Some(newer)) = (&stop_at, newer) {
        attention.push(format!(
            "recovery follows timeline {}; the server went on to timeline {newer} as well, which doesn't come from it or wasn't \
             asked for",
            plan.path.timeline().unwrap_or(plan.manifest.start_timeline)
        ));
    }
    Staged {
        stop_at,
        segments,
        last_transaction_at,
        attention,
    }
}

/// The segments of WAL from a backup's start to a position, in order, some fetched ahead.
pub(crate) fn fetched<'a>(
    repository: &'a Repository,
    plan: &'a RestorePlan,
    end: Lsn,
) -> Result<impl Stream<Item = Result<(SegmentName, Bytes), PhysicalError>> + 'a, PhysicalError> {
    let manifest = &plan.manifest;
    let system = plan::system_identifier(manifest)?;
    let names = plan.path.segments(manifest.start_lsn, end);
    let at_once = usize::try_from(SEGMENT_BYTES_AT_ONCE / plan.segment_size.bytes()).unwrap_or(1);
    let fetched = futures::stream::iter(names).map(move |name| async move {
        let bytes = repository.fetch_wal_to(system, &name, end).await?;
        Ok::<_, PhysicalError>((name, bytes.ok_or_else(|| plan::missing(manifest, name))?))
    });
    Ok(fetched.buffered(at_once.clamp(1, SEGMENTS_AT_ONCE)))
}

/// Fetches segments and walks over them, until the target is reached or there are no more.
async fn segments(
    repository: &Repository,
    plan: &RestorePlan,
    (place, staging): (&Arc<Place>, &std::path::Path),
    list: &mut String,
    progress: &Progress,
) -> Result<(Scan, u64), PhysicalError> {
    let manifest = &plan.manifest;
    let end = match plan.options.target {
        RecoveryTarget::BackupEnd => manifest.stop_lsn,
        _ => plan.covered_to,
    };
    // By number: the timeline doesn't matter.
    let last = SegmentName::before(manifest.start_timeline, end, plan.segment_size);
    let fetched = fetched(repository, plan, end)?;
    let mut fetched = std::pin::pin!(fetched);
    let mut scan = Scan {
        walker: WalWalker::new(),
        target: plan.options.target.clone(),
        start: manifest.start_lsn,
        stop: manifest.stop_lsn,
        reached: false,
        too_early: false,
        last_transaction_end: None,
        tablespaces: BTreeMap::new(),
    };
    let mut staged = 0;
    while let Some((name, bytes)) = fetched.try_next().await? {
        let was_reached = scan.reached;
        let (place, path) = (Arc::clone(place), staging.join(name.to_string()));
        let length = bytes.len() as u64;
        let writing = tokio::task::spawn_blocking(move || {
            let mut walker = std::mem::take(&mut scan.walker);
            walker.segment(name, &bytes, |record| scan.see(record));
            scan.walker = walker;
            place.write(&path, &bytes)?;
            Ok::<_, PhysicalError>(scan)
        });
        scan = writing.await.map_err(PhysicalError::internal)??;
        Progress::add(&progress.bytes_done, length);
        staged += 1;
        list.push_str(&format!("{name}\n"));
        check(plan, &scan, name, last)?;
        // One more than where the target is: a server reads ahead.
        if was_reached {
            break;
        }
    }
    // The backup's own are where the restore puts them.
    let known = plan.tablespaces();
    let made = scan
        .tablespaces
        .iter()
        .filter(|(oid, _)| !known.contains_key(oid));
    if let Some((oid, path)) = made.into_iter().find(|(_, path)| is_in_use(path)) {
        return Err(PhysicalError::Refused {
            message: format!(
                "recovery would make tablespace {oid} in {}, as it was made since the backup, and something lies there: it may be the \
                 original server's",
                path.display()
            ),
            hint: "restore where that directory is empty or not there (another host, a container), to a moment before the tablespace \
                   was made, or from a backup taken since"
                .to_owned(),
        });
    }
    match scan.reached {
        true => Ok((scan, staged)),
        false => match not_there(plan, &scan) {
            Some(refused) => Err(refused),
            None => Ok((scan, staged)),
        },
    }
}

fn is_in_use(directory: &std::path::Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// What is said of a target that the WAL doesn't have; `None` where it can be come to all the same.
fn not_there(plan: &RestorePlan, scan: &Scan) -> Option<PhysicalError> {
    let (id, end) = (&plan.manifest.id, plan.covered_to);
    let missing = match &plan.options.target {
        RecoveryTarget::Transaction(transaction) => format!("no transaction {transaction} ended"),
        RecoveryTarget::Name(name) => format!("there is no restore point '{}'", name.escape_debug()),
        RecoveryTarget::Time(time) => {
            let later = plan.path.covered.iter().find(|later| later.start > end)?;
            let last = match scan.last_transaction_end.and_then(time_of) {
                Some(last) => format!("the last transaction before it ended at {last}"),
                None => "no transaction ended before it".to_owned(),
            };
            return Some(PhysicalError::Refused {
                message: format!(
                    "{time} can't be come to from backup {id}: WAL from {end} to {} is not stored, and {last}",
                    later.start
                ),
                hint: "go to the last moment before the gap with --to-end, or behind it from a later backup: 'pgkeep list' shows \
                       what each leads to"
                    .to_owned(),
            });
        }
        RecoveryTarget::Lsn(_) | RecoveryTarget::BackupEnd | RecoveryTarget::End => return None,
    };
    Some(PhysicalError::Refused {
        message: format!(
            "{missing} in the WAL from the end of backup {id} to {end} on timeline {}",
            plan.timelines()
        ),
        hint: "name another point, such as --to-time, or an earlier backup: 'pgkeep list' shows them"
            .to_owned(),
    })
}

/// Recovery ends silently at what is no record; so that must be where the WAL ends.
fn check(plan: &RestorePlan, scan: &Scan, name: SegmentName, last: SegmentName) -> Result<(), PhysicalError> {
    if scan.walker.has_ended() && name.number() < last.number() && !scan.reached {
        return Err(PhysicalError::Damaged {
            id: plan.manifest.id.clone(),
            reason: format!("the WAL in {name} is damaged, and recovery would end there"),
        });
    }
    if scan.too_early {
        return Err(PhysicalError::Refused {
            message: format!(
                "{} lies before the end of backup {}: a transaction that ended later is part of it",
                plan.options.target, plan.manifest.id
            ),
            hint: "take an earlier backup: 'pgkeep list'".to_owned(),
        });
    }
    Ok(())
}

/// Stages the histories of the timelines that recovery follows and of all later ones, so that the one which the restored server
/// begins is one that nobody has. Returns the first that recovery doesn't follow.
async fn histories(
    repository: &Repository,
    plan: &RestorePlan,
    place: &Arc<Place>,
    list: &mut String,
) -> Result<Option<Timeline>, PhysicalError> {
    let system = plan::system_identifier(&plan.manifest)?;
    let own = plan.manifest.start_timeline;
    let target = plan.path.timeline().unwrap_or(own);
    let mut newer = None;
    // Behind the target, the server looks for them one after another, too (`findNewestTimeLine`, `access/transam/timeline.c`).
    let mut timeline = Some(own);
    while let Some(this) = timeline {
        let history = repository.fetch_wal_history(system, this).await?;
        timeline = this.as_u32().checked_add(1).and_then(Timeline::new);
        let Some(history) = history else {
            // The first of all has none, and numbers may be left out.
            if this <= target {
                continue;
            }
            break;
        };
        let name = WalFileName::History(this).to_string();
        let path: PathBuf = place.data().join(STAGING).join(&name);
        list.push_str(&format!("{name}\n"));
        let place = Arc::clone(place);
        let writing = tokio::task::spawn_blocking(move || place.write(&path, &history));
        writing.await.map_err(PhysicalError::internal)??;
        if this > target {
            newer = newer.or(Some(this));
        }
    }
    Ok(newer)
}
