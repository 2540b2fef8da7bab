//! Removing the WAL that no base backup needs: what lies below their need, the oldest first, so that what stays has no hole that
//! a kill made; and parts whose segment is there as a whole. Histories stay, as long as anything of their system does: they
//! are small, and say which timelines are taken.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_pgformat::{Lsn, SegmentSize, Timeline, TimelineHistory};

use super::{PruneError, PruneInput};
use crate::error::RepositoryError;
use crate::lease::Lease;
use crate::repo::Repository;
use crate::retention::wal::{BaseExtent, NeededWal, needs};
use crate::retention::{Decision, Plan, Policy, Reason};
use crate::wal::walk::whole_segments;
use crate::wal::{Covered, Ranges, StoredWal};

/// Objects that are removed with one request.
const BATCH_OBJECTS: usize = 1_000;

/// What of the WAL stays and goes, or went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WalPlan {
    /// One for each database system whose WAL is stored, by its identifier.
    pub systems: Vec<SystemWal>,
}

/// The same of one database system.
#[derive(Debug, Clone, PartialEq)]
pub struct SystemWal {
    /// Which.
    pub system_identifier: u64,
    /// By what it is decided.
    pub reason: WalReason,
    /// Timeline by timeline, ascending.
    pub timelines: Vec<TimelinePruned>,
}

/// What decides over the WAL of a database system.
#[derive(Debug, Clone, PartialEq)]
pub enum WalReason {
    /// Nothing but superseded parts goes: there is no policy.
    NoPolicy,
    /// Nothing goes: what this base backup needs can't be read, and why.
    Unknown {
        /// The backup.
        backup: BackupId,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing goes: an unfinished backup may need it, as it could not be given up.
    NotSwept,
    /// Nothing but superseded parts goes: there is no base backup that it could be used with, and may be one day.
    NoBackup,
    /// All of it goes: another database system has the name, and base backups of its own for the whole window.
    Superseded {
        /// The other one.
        by: u64,
        /// When the newest of this WAL was stored.
        newest_at: Timestamp,
    },
    /// What base backups need stays.
    Needed {
        /// The one that the window begins with.
        backup: BackupId,
        /// Its timeline.
        timeline: Timeline,
        /// From here on, all stays.
        from: Lsn,
        /// So many older ones keep their own range.
        points: usize,
    },
}

impl WalReason {
    /// A short name for machines, which doesn't change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::Unknown { .. } => "unknown",
            Self::NotSwept => "not_swept",
            Self::NoBackup => "no_base_backup",
            Self::Superseded { .. } => "superseded",
            Self::Needed { .. } => "needed",
        }
    }
}

impl std::fmt::Display for WalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no retention is configured, so all of it stays"),
            Self::Unknown { backup, why } => {
                write!(f, "all of it stays, because what {backup} needs can't be read: {why}")
            }
            Self::NotSwept => {
                f.write_str("all of it stays, because what unfinished backups left could not be removed")
            }
            Self::NoBackup => {
                f.write_str("all of it stays, but nothing can be recovered with it: there is no base backup of its server")
            }
            Self::Superseded { by, newest_at } => write!(
                f,
                "all of it goes: there is no base backup of its server, the newest of it was stored at {}, and server {by} has \
                 base backups for the whole window",
                newest_at.strftime("%Y-%m-%d %H:%M UTC")
            ),
            Self::Needed {
                backup,
                timeline,
                from,
                points,
            } => {
                write!(
                    f,
                    "what follows {backup} stays, from {from} of timeline {timeline} on"
                )?;
                match points {
                    0 => Ok(()),
                    1 => f.write_str(", and what one older backup needs itself"),
                    more => write!(f, ", and what {more} older backups need themselves"),
                }
            }
        }
    }
}

/// What goes, or went, of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelinePruned {
    /// Which.
    pub timeline: Timeline,
    /// The ranges that aren't there any more afterwards.
    pub removed: Vec<Covered>,
    /// The ranges that are.
    pub kept: Vec<Covered>,
    /// Objects that go because nobody needs them.
    pub objects: u64,
    /// Their size as stored, in bytes.
    pub stored_bytes: u64,
    /// Parts that go because their segment is there as a whole.
    pub parts: u64,
    /// Their size as stored, in bytes.
    pub part_bytes: u64,
}

impl WalPlan {
    /// Objects that go, or went.
    pub fn objects(&self) -> u64 {
        self.timelines()
            .map(|timeline| timeline.objects + timeline.parts)
            .sum()
    }

    /// Their size as stored, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.timelines()
            .map(|timeline| timeline.stored_bytes + timeline.part_bytes)
            .sum()
    }

    fn timelines(&self) -> impl Iterator<Item = &TimelinePruned> {
        self.systems.iter().flat_map(|system| &system.timelines)
    }
}

/// What stays of a system's WAL.
enum Rule {
    Everything,
    /// Superseded parts go.
    Wholes,
    Needed(NeededWal),
    Nothing,
}

impl Rule {
    fn holds(&self, timeline: Timeline, stored: &StoredWal) -> bool {
        match self {
            Self::Everything | Self::Wholes => true,
            Self::Nothing => false,
            Self::Needed(needed) => stored.object.segment().is_none_or(|segment| {
                let end = segment.end().unwrap_or(Lsn::new(u64::MAX));
                needed.holds(timeline, segment.start(), end)
            }),
        }
    }
}

/// Plans what of the WAL would go beside a plan for the backups, and what would be there afterwards. Nothing is changed.
///
/// # Errors
/// Whatever the store says; a history that can't be read for want of a key.
pub async fn plan_wal(
    repository: &Repository,
    policy: &Policy,
    input: &PruneInput,
    plan: &Plan,
    now: Timestamp,
) -> Result<WalPlan, PruneError> {
    let kept: Vec<&Decision> = plan.kept().collect();
    let walk = Walk {
        repository,
        policy,
        input,
        now,
        lease: None,
        is_swept: true,
    };
    Ok(walk.all(&kept).await?)
}

/// A walk over all WAL: with a lease it removes what goes, without one it tells.
pub(super) struct Walk<'a> {
    pub repository: &'a Repository,
    pub policy: &'a Policy,
    pub input: &'a PruneInput,
    pub now: Timestamp,
    pub lease: Option<&'a Lease>,
    /// Whether no unfinished backup is left that may still become one.
    pub is_swept: bool,
}

impl Walk<'_> {
    /// Goes over all database systems, for the base backups that stay.
    pub async fn all(&self, kept: &[&Decision]) -> Result<WalPlan, RepositoryError> {
        let mut plan = WalPlan::default();
        for system_identifier in self.repository.wal_systems().await? {
            let Some(size) = self.repository.wal_segment_size(system_identifier).await? else {
                continue;
            };
            let (reason, rule) = self.rule(system_identifier, kept).await?;
            let mut timelines = Vec::new();
            for timeline in self.repository.wal_timelines(system_identifier).await? {
                let pruned = self.timeline(system_identifier, size, timeline, &rule).await?;
                timelines.extend(pruned);
            }
            if matches!(rule, Rule::Nothing) && self.lease.is_some() {
                let remains = self.repository.wal_remains(system_identifier).await?;
                self.delete(remains).await?;
            }
            plan.systems.push(SystemWal {
                system_identifier,
                reason,
                timelines,
            });
        }
        Ok(plan)
    }

    async fn rule(
        &self,
        system_identifier: u64,
        kept: &[&Decision],
    ) -> Result<(WalReason, Rule), RepositoryError> {
        if !self.is_swept {
            return Ok((WalReason::NotSwept, Rule::Everything));
        }
        let mut extents = Vec::new();
        for decision in kept
            .iter()
            .filter(|decision| decision.id.kind() == BackupKind::Base)
        {
            match self.extent(&decision.id) {
                Ok((of, extent)) if of == system_identifier => extents.push((*decision, extent)),
                Ok(_) => {}
                Err(why) => {
                    let backup = decision.id.clone();
                    return Ok((WalReason::Unknown { backup, why }, Rule::Everything));
                }
            }
        }
        if self.policy.keeps_everything() {
            return Ok((WalReason::NoPolicy, Rule::Wholes));
        }
        let needs = needs(&extents);
        match needs.iter().find(|need| need.stop.is_none()) {
            Some(begins) => {
                let histories = self.histories(system_identifier).await?;
                let needed = NeededWal::new(&needs, &histories);
                Ok((
                    WalReason::Needed {
                        backup: begins.id.clone(),
                        timeline: begins.timeline,
                        from: begins.start,
                        points: needs.iter().filter(|need| need.stop.is_some()).count(),
                    },
                    needed.map_or(Rule::Everything, Rule::Needed),
                ))
            }
            None => self.without_backup(system_identifier, kept).await,
        }
    }

    /// Of which system a backup is, and what it needs; or why nobody knows.
    fn extent(&self, id: &BackupId) -> Result<(u64, BaseExtent), String> {
        let known = self.input.known.get(id);
        match known.and_then(|known| Some((known.system_identifier?, known.base?))) {
            Some(extent) => Ok(extent),
            None => Err(self
                .input
                .unread
                .get(id)
                .cloned()
                .unwrap_or_else(|| "it says nothing of it".to_owned())),
        }
    }

    /// WAL that no base backup can be used with. It goes only when another system's backups cover the whole window, and nothing came
    /// of this one during all of it.
    async fn without_backup(
        &self,
        system_identifier: u64,
        kept: &[&Decision],
    ) -> Result<(WalReason, Rule), RepositoryError> {
        let stays = Ok((WalReason::NoBackup, Rule::Wholes));
        let begins = |decision: &Decision| {
            decision
                .reasons
                .iter()
                .any(|reason| matches!(reason, Reason::WindowBegins(_)))
        };
        let other = kept
            .iter()
            .filter(|decision| begins(decision))
            .filter_map(|decision| self.input.known.get(&decision.id)?.system_identifier)
            .find(|other| *other != system_identifier);
        let (Some(by), Some(start)) = (other, self.policy.window_start(self.now)) else {
            return stays;
        };
        let mut newest: Option<Timestamp> = None;
        for timeline in self.repository.wal_timelines(system_identifier).await? {
            let found = self.repository.timeline_wal(system_identifier, timeline).await?;
            newest = newest.max(found.newest_at);
        }
        match newest.filter(|newest_at| *newest_at < start) {
            Some(newest_at) => Ok((WalReason::Superseded { by, newest_at }, Rule::Nothing)),
            None => stays,
        }
    }

    /// The histories of all timelines that WAL is stored of: `None` for one that isn't there, or that is damaged.
    async fn histories(
        &self,
        system_identifier: u64,
    ) -> Result<BTreeMap<Timeline, Option<TimelineHistory>>, RepositoryError> {
        let mut histories = BTreeMap::new();
        for timeline in self.repository.wal_timelines(system_identifier).await? {
            let history = if timeline == Timeline::FIRST {
                Some(TimelineHistory::of_first(timeline))
            } else {
                let fetched = self
                    .repository
                    .fetch_wal_history(system_identifier, timeline)
                    .await;
                let contents = match fetched {
                    Err(error) if error.is_damage() => None,
                    contents => contents?,
                };
                contents.and_then(|contents| TimelineHistory::parse(timeline, &contents).ok())
            };
            histories.insert(timeline, history);
        }
        Ok(histories)
    }

    async fn timeline(
        &self,
        system_identifier: u64,
        size: SegmentSize,
        timeline: Timeline,
        rule: &Rule,
    ) -> Result<Option<TimelinePruned>, RepositoryError> {
        let (mut removed, mut kept) = (Ranges::default(), Ranges::default());
        let mut pruned = TimelinePruned {
            timeline,
            removed: Vec::new(),
            kept: Vec::new(),
            objects: 0,
            stored_bytes: 0,
            parts: 0,
            part_bytes: 0,
        };
        let (mut seen, mut is_marked) = (0, false);
        for log in self.repository.wal_logs(system_identifier, timeline).await? {
            let stored = self.repository.wal_in(&log, size).await?;
            seen += stored.len();
            let whole = whole_segments(&stored);
            let mut going = Vec::new();
            for stored in stored {
                let is_needed = rule.holds(timeline, &stored);
                let is_superseded = !matches!(rule, Rule::Everything) && is_part_of(&stored, &whole);
                let ranges = if is_needed { &mut kept } else { &mut removed };
                if let Some((start, end)) = stored.object.positions() {
                    ranges.insert(start, end);
                }
                if !is_needed {
                    pruned.objects += 1;
                    pruned.stored_bytes += stored.stored_bytes;
                } else if is_superseded {
                    pruned.parts += 1;
                    pruned.part_bytes += stored.stored_bytes;
                }
                if !is_needed || is_superseded {
                    going.push(stored.key().to_owned());
                }
            }
            if pruned.objects > 0 && !is_marked && self.lease.is_some() {
                self.repository
                    .mark_wal_pruned(system_identifier, timeline)
                    .await?;
                is_marked = true;
            }
            self.delete(going).await?;
        }
        let covered = |ranges: &Ranges| ranges.iter().map(|(start, end)| Covered { start, end }).collect();
        pruned.removed = covered(&removed);
        pruned.kept = covered(&kept);
        Ok((seen > 0).then_some(pruned))
    }

    /// One request after another, in the order given; nothing without a lease.
    async fn delete(&self, keys: Vec<String>) -> Result<(), RepositoryError> {
        let Some(lease) = self.lease else {
            return Ok(());
        };
        for batch in keys.chunks(BATCH_OBJECTS) {
            lease.check()?;
            self.repository.store().delete_all(batch.to_vec()).await?;
        }
        Ok(())
    }
}

fn is_part_of(stored: &StoredWal, whole: &BTreeSet<u64>) -> bool {
    matches!(&stored.object, crate::wal::WalObject::Part { segment, .. } if whole.contains(&segment.number()))
}
