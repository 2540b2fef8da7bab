//! The planner of retention: which backups stay, which go, and why. Pure: it neither reads nor deletes anything.
//!
//! What is kept is a union; each rule only adds:
//!
//! | rule | keeps |
//! |---|---|
//! | no policy at all | everything |
//! | window | every complete backup that was started within it |
//! | daily, weekly, monthly, yearly | the newest good one of each of the last N days (weeks, ...) that have one |
//! | last good | the newest good one of each database system, whatever the policy |
//! | nothing good | everything of a database system none of whose backups is good |
//! | pin | what the user pinned |
//! | future | what was started after `now`: then either clock is wrong, and nothing can be told from the age |
//! | window begins | of base backups, the newest good one of each database system that ended before the window |
//!
//! Base backups are planned apart from dumps, by the same rules. What they need of the WAL is in `wal`.
//!
//! A backup is *good* if it is complete and no verification of it failed. Days, ISO weeks, months and years are those of
//! the policy's time zone. N counts only days (weeks, ...) that have a good backup, so that an outage doesn't use up the
//! history. Days and so on are counted over all database systems of the cluster together; only the last good one is
//! kept for each.

pub mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::BackupId;

/// How long to keep backups. The default keeps everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Keep all that were started at most this long ago.
    pub window: Option<SignedDuration>,
    /// Days of which to keep the newest good backup.
    pub daily: u32,
    /// ISO weeks of which to keep the newest good backup.
    pub weekly: u32,
    /// Months of which to keep the newest good backup.
    pub monthly: u32,
    /// Years of which to keep the newest good backup.
    pub yearly: u32,
    /// Where the days begin.
    pub time_zone: TimeZone,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            window: None,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            time_zone: TimeZone::UTC,
        }
    }
}

impl Policy {
    /// Whether it never removes anything.
    pub fn keeps_everything(&self) -> bool {
        self.window.is_none() && self.counts().is_empty()
    }

    /// When the window begins at the moment `now`.
    pub fn window_start(&self, now: Timestamp) -> Option<Timestamp> {
        let window = self.window?.max(SignedDuration::ZERO);
        // Should the subtraction fail, the beginning of time is the harmless answer.
        Some(now.saturating_sub(window).unwrap_or(Timestamp::MIN))
    }

    /// The counting rules that are in use, and their N.
    fn counts(&self) -> Vec<(Rule, u32)> {
        let all = [
            (Rule::Daily, self.daily),
            (Rule::Weekly, self.weekly),
            (Rule::Monthly, self.monthly),
            (Rule::Yearly, self.yearly),
        ];
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// One backup, as far as retention is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: BackupId,
    /// When it was started; its age counts from here.
    pub started_at: Timestamp,
    /// Whether its manifest exists.
    pub completed: bool,
    /// The newest verification's outcome, if there was one.
    pub verified: Option<bool>,
    /// Why it is pinned, if it is.
    pub pinned: Option<String>,
    /// The database system it is of (PostgreSQL's `system_identifier`), where known.
    pub system_identifier: Option<u64>,
    /// When it ended, if WAL leads on from there: a base backup, of which that is known.
    pub ended_at: Option<Timestamp>,
}

impl Candidate {
    fn is_good(&self) -> bool {
        self.completed && self.verified != Some(false)
    }
}

/// The rules that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Calendar days.
    Daily,
    /// ISO 8601 weeks, Monday to Sunday.
    Weekly,
    /// Calendar months.
    Monthly,
    /// Calendar years.
    Yearly,
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// The first day of the day, week, month or year that `date` lies in, which names it.
    pub(crate) fn period_start(self, date: Date) -> Date {
        match self {
            Self::Daily => date,
            // Fails only before the first date that jiff knows, in the year -9999.
            Self::Weekly => {
                let days = i64::from(date.weekday().to_monday_zero_offset());
                date.checked_sub(SignedDuration::from_hours(24 * days))
                    .unwrap_or(date)
            }
            Self::Monthly => date.first_of_month(),
            Self::Yearly => date.first_of_year(),
        }
    }
}

/// Why a backup stays or goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// Kept: there is no policy.
    NoPolicy,
    /// Kept: the user's own words.
    Pinned(String),
    /// Kept: the newest good one of its database system.
    LastGood,
    /// Kept: its database system has no good backup.
    NothingGood,
    /// Kept: started within the window.
    Window(SignedDuration),
    /// Kept: the newest good one of a day, week, month or year.
    Newest {
        /// Which of them.
        rule: Rule,
        /// Its first day.
        period_start: Date,
    },
    /// Kept: the window begins at this moment, and recovery to it begins from this base backup.
    WindowBegins(Timestamp),
    /// Kept: started after the present moment.
    Future,
    /// Kept: it was a backup, and somebody else deleted its manifest.
    ManifestGone,
    /// No reason to keep it: what is kept for another one, and isn't good.
    Damaged,
    /// Removed: no rule keeps it.
    Expired {
        /// The window it is older than.
        window: Option<SignedDuration>,
        /// The counting rules that did not choose it.
        rules: Vec<Rule>,
        /// Whether those could not choose it because its verification failed.
        verification_failed: bool,
    },
}

impl Reason {
    /// A short name for machines, which doesn't change.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::Pinned(_) => "pinned",
            Self::LastGood => "last_good",
            Self::NothingGood => "nothing_good",
            Self::Window(_) => "window",
            Self::Newest { rule, .. } => rule.name(),
            Self::WindowBegins(_) => "window_begins",
            Self::Future => "future",
            Self::ManifestGone => "manifest_gone",
            Self::Damaged => "damaged",
            Self::Expired { .. } => "expired",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("no retention is configured, so everything is"),
            Self::Pinned(reason) if reason.is_empty() => f.write_str("pinned"),
            Self::Pinned(reason) => write!(f, "pinned: {reason}"),
            Self::LastGood => f.write_str("the last good one"),
            Self::NothingGood => f.write_str("no good one is there, so none goes"),
            Self::Window(window) => write!(f, "within the window of {}", Plain(*window)),
            Self::Newest {
                rule: Rule::Daily,
                period_start,
            } => {
                write!(f, "newest of {}", period_start.strftime("%A %Y-%m-%d"))
            }
            Self::Newest {
                rule: Rule::Weekly,
                period_start,
            } => {
                write!(f, "newest of week {}", period_start.strftime("%G-W%V"))
            }
            Self::Newest {
                rule: Rule::Monthly,
                period_start,
            } => {
                write!(f, "newest of {}", period_start.strftime("%B %Y"))
            }
            Self::Newest {
                rule: Rule::Yearly,
                period_start,
            } => write!(f, "newest of {}", period_start.year()),
            Self::WindowBegins(moment) => {
                let moment = moment.strftime("%Y-%m-%d %H:%M UTC");
                write!(f, "recovery to {moment}, where the window begins, starts from it")
            }
            Self::Future => {
                f.write_str("started after the present moment: a clock is wrong, so its age is unknown")
            }
            Self::ManifestGone => f.write_str("its manifest is gone, which no prune deleted"),
            Self::Damaged => f.write_str("DAMAGED, so it counts for nothing else"),
            Self::Expired {
                window,
                rules,
                verification_failed,
            } => {
                let rules = rules.iter().map(|rule| rule.name()).collect::<Vec<_>>().join("/");
                let passed_over = match (rules.is_empty(), verification_failed) {
                    (true, _) => String::new(),
                    (false, false) => format!("not chosen by {rules}"),
                    (false, true) => format!("not eligible for {rules} because its verification failed"),
                };
                match window {
                    Some(window) => write!(f, "older than the window of {}", Plain(*window))?,
                    None => return f.write_str(&passed_over),
                }
                if passed_over.is_empty() {
                    Ok(())
                } else {
                    write!(f, " and {passed_over}")
                }
            }
        }
    }
}

/// A duration as one says it: `30 days`, `12 hours`.
struct Plain(SignedDuration);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(i64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
        let seconds = self.0.as_secs();
        for (size, name) in UNITS {
            if self.0.subsec_nanos() == 0 && seconds % size == 0 && (seconds != 0 || size == 1) {
                let count = seconds / size;
                return write!(f, "{count} {name}{}", if count == 1 { "" } else { "s" });
            }
        }
        write!(f, "{:#}", self.0)
    }
}

/// What happens to one complete backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Which.
    pub id: BackupId,
    /// Whether it stays.
    pub keep: bool,
    /// Why, at least one.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = self
            .reasons
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        write!(f, "{}: {reasons}", if self.keep { "kept" } else { "removed" })
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// One for each complete backup, oldest first.
    pub decisions: Vec<Decision>,
    /// Backups without a manifest, oldest first: being written, or left by a run that died. Not retention's business.
    pub incomplete: Vec<BackupId>,
}

impl Plan {
    /// The backups to remove, oldest first.
    pub fn removed(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| !decision.keep)
    }

    /// The backups that stay, oldest first.
    pub fn kept(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| decision.keep)
    }
}

/// Plans what stays and what goes at the moment `now`. The order of the candidates doesn't matter.
pub fn plan(policy: &Policy, candidates: &[Candidate], now: Timestamp) -> Plan {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    let (complete, incomplete): (Vec<&Candidate>, Vec<&Candidate>) =
        sorted.into_iter().partition(|candidate| candidate.completed);
    // What lies in the future takes no place in any count: it would push out what is known to be old enough.
    let past: Vec<&Candidate> = complete.iter().copied().filter(|c| c.started_at <= now).collect();

    let mut kept = Kept::default();
    keep_protected(&complete, now, &mut kept);
    keep_last_good(&past, &mut kept);
    if policy.keeps_everything() {
        complete
            .iter()
            .for_each(|candidate| kept.add(&candidate.id, Reason::NoPolicy));
    }
    if let Some((window, start)) = policy.window.zip(policy.window_start(now)) {
        keep_window_begin(&past, start, &mut kept);
        let within = past.iter().filter(|candidate| candidate.started_at >= start);
        within.for_each(|candidate| kept.add(&candidate.id, Reason::Window(window)));
    }
    for (rule, count) in policy.counts() {
        keep_newest_of_periods(&past, rule, count, &policy.time_zone, &mut kept);
    }

    let decide = |candidate: &&Candidate| match kept.0.get(&candidate.id) {
        Some(reasons) => Decision {
            id: candidate.id.clone(),
            keep: true,
            reasons: match candidate.verified {
                Some(false) => [reasons.as_slice(), &[Reason::Damaged]].concat(),
                _ => reasons.clone(),
            },
        },
        None => {
            let rules = policy.counts().into_iter().map(|(rule, _)| rule).collect();
            let verification_failed = candidate.verified == Some(false);
            let reason = Reason::Expired {
                window: policy.window,
                rules,
                verification_failed,
            };
            Decision {
                id: candidate.id.clone(),
                keep: false,
                reasons: vec![reason],
            }
        }
    };
    Plan {
        decisions: complete.iter().map(decide).collect(),
        incomplete: incomplete.iter().map(|candidate| candidate.id.clone()).collect(),
    }
}

/// Reasons to keep, by backup.
#[derive(Default)]
struct Kept(BTreeMap<BackupId, Vec<Reason>>);

impl Kept {
    fn add(&mut self, id: &BackupId, reason: Reason) {
        self.0.entry(id.clone()).or_default().push(reason);
    }
}

fn keep_protected(complete: &[&Candidate], now: Timestamp, kept: &mut Kept) {
    for candidate in complete {
        if let Some(reason) = &candidate.pinned {
            kept.add(&candidate.id, Reason::Pinned(reason.clone()));
        }
        if candidate.started_at > now {
            kept.add(&candidate.id, Reason::Future);
        }
    }
}

fn keep_last_good(past: &[&Candidate], kept: &mut Kept) {
    let mut by_system: BTreeMap<Option<u64>, Vec<&Candidate>> = BTreeMap::new();
    for candidate in past {
        by_system
            .entry(candidate.system_identifier)
            .or_default()
            .push(candidate);
    }
    for backups in by_system.values() {
        match backups.iter().rfind(|candidate| candidate.is_good()) {
            Some(last) => kept.add(&last.id, Reason::LastGood),
            // When all have failed, the verification itself may be what is wrong.
            None => backups
                .iter()
                .for_each(|candidate| kept.add(&candidate.id, Reason::NothingGood)),
        }
    }
}

fn keep_window_begin(past: &[&Candidate], start: Timestamp, kept: &mut Kept) {
    let mut by_system: BTreeMap<Option<u64>, (Timestamp, &BackupId)> = BTreeMap::new();
    for candidate in past.iter().filter(|candidate| candidate.is_good()) {
        let Some(ended_at) = candidate.ended_at.filter(|ended_at| *ended_at <= start) else {
            continue;
        };
        let newest = by_system
            .entry(candidate.system_identifier)
            .or_insert((ended_at, &candidate.id));
        *newest = (*newest).max((ended_at, &candidate.id));
    }
    for (_, id) in by_system.values() {
        kept.add(id, Reason::WindowBegins(start));
    }
}

fn keep_newest_of_periods(past: &[&Candidate], rule: Rule, count: u32, zone: &TimeZone, kept: &mut Kept) {
    // A set, because days may come back: where clocks are put back at 00:01, the new day is left again for an hour.
    let mut seen: BTreeSet<Date> = BTreeSet::new();
    for candidate in past.iter().rev().filter(|candidate| candidate.is_good()) {
        if seen.len() as u64 >= u64::from(count) {
            break;
        }
        let period_start = rule.period_start(zone.to_datetime(candidate.started_at).date());
        if seen.insert(period_start) {
            kept.add(&candidate.id, Reason::Newest { rule, period_start });
        }
    }
}
