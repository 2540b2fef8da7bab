use jiff::{SignedDuration, Timestamp};

use crate::schedule::Schedule;

/// A run that begins later than this after its due time is told as one that was missed and is caught up.
pub const LATE: SignedDuration = SignedDuration::from_mins(5);

/// Clocks are corrected by so much without anybody noticing, and local clocks go back by an hour in autumn. By more, the
/// clock was wrong before.
const BACK_MAX: SignedDuration = SignedDuration::from_hours(3);

/// The pause after the first failure; it doubles with each.
const PAUSE_MIN: SignedDuration = SignedDuration::from_mins(1);
const PAUSE_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Beside a run that doesn't end, what was due meanwhile is told after this at the latest: each night of a nightly
/// schedule, also when the clocks change.
const TOLD_AGAIN_MAX: SignedDuration = SignedDuration::from_hours(12);

/// More missed due times than this aren't counted one by one.
const COUNT_MAX: u64 = 1000;

/// One cluster's dumps, or its base backups: what was due, what came of it, what is next.
///
/// Call [`Planner::decide`] until it says [`Action::Wait`], and again when that time has come or something happened.
#[derive(Debug, Clone)]
pub struct Planner {
    schedule: Schedule,
    /// Due times up to here are dealt with: dumped, reported, or before this planner's time.
    covered: Timestamp,
    /// Whether it is known what the repository holds, and if not, when to look.
    sight: Sight,
    state: State,
    /// Nothing has run yet: what was missed was missed before.
    is_fresh: bool,
    /// How late the last due time may be and still count as on time.
    late: SignedDuration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    Unknown { failures: u32, look_at: Timestamp },
    Known,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle,
    /// To be begun at once.
    Ready(Run),
    Running {
        run: Run,
        since: Timestamp,
        /// Of those that were due meanwhile, the last that was told.
        told: Option<Timestamp>,
    },
    Failed {
        run: Run,
        retry_at: Timestamp,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the repository for its newest dump, and hand the answer to [`Planner::looked`] or [`Planner::look_failed`].
    Look,
    /// Tell that these were due and nothing ran.
    Tell(Missed),
    /// Tell that the clock has gone back, and that the schedule counts from its new time.
    ClockWentBack(SignedDuration),
    /// Dump, and tell [`Planner::finished`] how it went.
    Start(Run),
    /// Nothing is to be done before this time, or before the run that is under way has ended.
    Wait(Option<Timestamp>),
}

/// A dump to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// For which due time; none for the very first dump.
    pub due: Option<Timestamp>,
    /// Counts from 1.
    pub attempt: u32,
    /// Whether it makes up for due times that were missed.
    pub catches_up: bool,
}

/// Due times at which no dump was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
    /// How many, up to a thousand.
    pub count: u64,
    /// Why.
    pub reason: Reason,
}

/// Why nothing ran when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The scheduler wasn't there.
    NotRunning,
    /// The machine slept, or its clock was set forward.
    Asleep,
    /// The run before was still under way.
    UnderWay,
    /// Every attempt failed.
    Failed {
        /// How often it was tried.
        attempts: u32,
    },
}

impl Reason {
    /// A word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotRunning => "not_running",
            Self::Asleep => "asleep",
            Self::UnderWay => "under_way",
            Self::Failed { .. } => "failed",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRunning => f.write_str("pgkeep wasn't running"),
            Self::Asleep => f.write_str("the machine slept, or its clock was set forward"),
            Self::UnderWay => f.write_str("the one before was still under way"),
            Self::Failed { attempts: 1 } => f.write_str("it failed"),
            Self::Failed { attempts } => write!(f, "all {attempts} attempts failed"),
        }
    }
}

impl Planner {
    /// One that begins now and knows nothing of the past yet.
    pub fn new(schedule: Schedule, now: Timestamp) -> Self {
        Self {
            schedule,
            covered: now,
            sight: Sight::Unknown {
                failures: 0,
                look_at: now,
            },
            state: State::Idle,
            is_fresh: true,
            late: LATE,
        }
    }

    /// The same for a program that is started now and then, and not to the minute: what was due last is on time, and only
    /// what was due before that was missed.
    #[must_use]
    pub fn started_now_and_then(mut self) -> Self {
        self.late = SignedDuration::MAX;
        self
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// When the next dump is due, as far as it's known; a repetition after a failure comes earlier.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.schedule.next_after(self.covered)
    }

    /// What is to be done now. What it says is taken for done: it isn't said twice.
    pub fn decide(&mut self, now: Timestamp) -> Action {
        let back = self.covered.duration_since(now);
        if back > BACK_MAX {
            self.covered = now;
            self.forget_pauses(now);
            return Action::ClockWentBack(back);
        }
        match self.state.clone() {
            State::Running { run, since, told } => self.while_running(now, run, since, told),
            State::Failed { run, retry_at } => self.after_failure(now, run, retry_at),
            State::Ready(run) => self.start(now, run),
            State::Idle => self.when_idle(now),
        }
    }

    /// What is due is told at once, and then in growing distance: a short schedule must not fill pages beside a long dump,
    /// nor may a dump that never ends go unnoticed.
    fn while_running(
        &mut self,
        now: Timestamp,
        run: Run,
        since: Timestamp,
        told: Option<Timestamp>,
    ) -> Action {
        let due = match told {
            None => self.next_due(),
            Some(told) => {
                // As long as the run had lasted by then.
                let pause = told
                    .duration_since(since)
                    .clamp(SignedDuration::ZERO, TOLD_AGAIN_MAX);
                self.schedule.next_after(self.covered.max(later(told, pause)))
            }
        };
        let Some(due) = due.filter(|due| *due <= now) else {
            return Action::Wait(due);
        };
        let last = self.schedule.last_at(now).unwrap_or(due).max(due);
        let missed = self.missed_until(last, true, Reason::UnderWay);
        self.covered = last;
        self.state = State::Running {
            run,
            since,
            told: Some(last),
        };
        Action::Tell(missed.unwrap_or_else(|| one(due, Reason::UnderWay)))
    }

    fn after_failure(&mut self, now: Timestamp, run: Run, retry_at: Timestamp) -> Action {
        let next = self.next_due();
        if next.is_some_and(|next| next <= now) {
            // The next one takes its place.
            self.state = State::Idle;
            let reason = Reason::Failed {
                attempts: run.attempt,
            };
            return match run.due {
                Some(due) => Action::Tell(one(due, reason)),
                None => self.when_idle(now),
            };
        }
        if retry_at <= now {
            let attempt = run.attempt.saturating_add(1);
            return self.start(now, Run { attempt, ..run });
        }
        Action::Wait(Some(next.map_or(retry_at, |next| next.min(retry_at))))
    }

    fn when_idle(&mut self, now: Timestamp) -> Action {
        let next = self.next_due();
        let due = next.filter(|next| *next <= now);
        let Some(due) = due else {
            return match self.sight {
                Sight::Unknown { look_at, .. } if look_at <= now => Action::Look,
                Sight::Unknown { look_at, .. } => {
                    Action::Wait(Some(next.map_or(look_at, |next| next.min(look_at))))
                }
                Sight::Known => {
                    self.is_fresh = false;
                    Action::Wait(next)
                }
            };
        };
        let last = self.schedule.last_at(now).unwrap_or(due).max(due);
        let late = now.duration_since(last) > self.late;
        let reason = if self.is_fresh {
            Reason::NotRunning
        } else {
            Reason::Asleep
        };
        let missed = self.missed_until(last, late, reason);
        self.covered = last;
        let run = Run {
            due: Some(last),
            attempt: 1,
            catches_up: late,
        };
        match missed {
            Some(missed) => {
                self.state = State::Ready(run);
                Action::Tell(missed)
            }
            None => self.start(now, run),
        }
    }

    /// Due times from what is covered up to `last`, which counts only if it's `included`.
    fn missed_until(&self, last: Timestamp, included: bool, reason: Reason) -> Option<Missed> {
        let mut missed: Option<Missed> = None;
        let due = self.schedule.upcoming(self.covered);
        let is_missed = |due: &Timestamp| *due < last || (included && *due == last);
        for due in due.take_while(is_missed) {
            let missed = missed.get_or_insert_with(|| Missed {
                count: 0,
                ..one(due, reason)
            });
            missed.last = due;
            missed.count += 1;
            if missed.count == COUNT_MAX {
                missed.last = if included { last } else { due };
                break;
            }
        }
        missed
    }

    fn start(&mut self, now: Timestamp, run: Run) -> Action {
        self.is_fresh = false;
        self.state = State::Running {
            run: run.clone(),
            since: now,
            told: None,
        };
        Action::Start(run)
    }

    /// The repository was asked: when its newest complete dump was begun, if it has one. What was due since is missed.
    pub fn looked(&mut self, now: Timestamp, newest: Option<Timestamp>) {
        self.sight = Sight::Known;
        match newest {
            Some(newest) => self.covered = newest.min(now),
            None => {
                self.state = State::Ready(Run {
                    due: None,
                    attempt: 1,
                    catches_up: false,
                });
            }
        }
    }

    /// Something happened that makes a run due at once. False while one is under way, which may not be enough: then it is to be
    /// called again when that has ended.
    pub fn demand(&mut self, now: Timestamp) -> bool {
        match &mut self.state {
            State::Running { .. } => return false,
            State::Ready(_) => {}
            State::Failed { retry_at, .. } => *retry_at = now.min(*retry_at),
            State::Idle => {
                self.state = State::Ready(Run {
                    due: Some(now),
                    attempt: 1,
                    catches_up: false,
                });
            }
        }
        true
    }

    /// The repository couldn't be asked. Returns when it is tried again.
    pub fn look_failed(&mut self, now: Timestamp) -> Timestamp {
        let failures = match self.sight {
            Sight::Unknown { failures, .. } => failures.saturating_add(1),
            Sight::Known => 1,
        };
        let look_at = later(now, pause(failures));
        self.sight = Sight::Unknown { failures, look_at };
        look_at
    }

    /// The run has ended. Returns what was due while it was under way and wasn't told yet.
    pub fn finished(&mut self, now: Timestamp, succeeded: bool) -> Option<Missed> {
        let State::Running { run, since, .. } = self.state.clone() else {
            return None;
        };
        let missed = match self.schedule.last_at(now) {
            Some(last) if last > self.covered => {
                let missed = self.missed_until(last, true, Reason::UnderWay);
                self.covered = last;
                missed
            }
            _ => None,
        };
        if succeeded {
            // It holds what any due time before its start asked for.
            self.covered = self.covered.max(since.min(now));
            self.sight = Sight::Known;
            self.state = State::Idle;
        } else {
            let retry_at = later(now, pause(run.attempt));
            self.state = State::Failed { run, retry_at };
        }
        missed
    }

    /// When a failed run is tried again; none if the next due time comes first.
    pub fn retry_at(&self) -> Option<Timestamp> {
        match &self.state {
            State::Failed { retry_at, .. } if self.next_due().is_none_or(|next| *retry_at < next) => {
                Some(*retry_at)
            }
            _ => None,
        }
    }

    /// After the clock went back, pauses that were measured by the old one would be much too long.
    fn forget_pauses(&mut self, now: Timestamp) {
        if let State::Failed { retry_at, .. } = &mut self.state {
            *retry_at = now.min(*retry_at);
        }
        if let Sight::Unknown { look_at, .. } = &mut self.sight {
            *look_at = now.min(*look_at);
        }
    }
}

fn one(due: Timestamp, reason: Reason) -> Missed {
    Missed {
        first: due,
        last: due,
        count: 1,
        reason,
    }
}

/// 1, 2, 4 ... 60 minutes.
fn pause(failures: u32) -> SignedDuration {
    let doublings = failures.saturating_sub(1).min(6);
    (PAUSE_MIN * 2_i32.pow(doublings)).min(PAUSE_MAX)
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.saturating_add(by).unwrap_or(Timestamp::MAX)
}
