use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use pgkeep_base::{BackupKind, Clock, quote_for_shell};
use pgkeep_repository::Repository;
use pgkeep_repository::backups::BackupState;
use pgkeep_schedule::{Action, Planner, Run, Schedule};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::events::{Done, Events};
use super::service::Service;
use crate::args::{BackupArgs, DumpArgs};
use crate::commands::{backup, dump, prune, summaries};
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};

/// The clock is read at least this often: it may be set, and a machine that slept doesn't tell.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

/// How long what is interrupted has to clean up. What it leaves then is what a crash leaves: the next run sweeps it.
pub const END_MAX: Duration = Duration::from_secs(8);
const TOO_LATE: &str = "it didn't end in time; unless it is listed, the next run removes what it stored";

/// One cluster's dumps, or its base backups.
pub struct Job<'a> {
    pub context: &'a Context,
    pub settings: &'a Settings,
    pub schedule: &'a Schedule,
    pub clock: &'a dyn Clock,
    pub events: Events<'a>,
    pub service: &'a Service,
    pub kind: BackupKind,
    /// A cluster's dumps and base backups keep each other out of its repository, so they wait for each other here.
    pub turn: Arc<Mutex<()>>,
    /// How many pieces of WAL were found to be lost: each makes a base backup due at once.
    pub gaps: Option<watch::Receiver<u64>>,
    /// Whether it can be pruned here.
    pub prunes: bool,
    /// Do what is due now, and no more.
    pub once: bool,
}

/// How a job came to its end.
pub enum End {
    /// Idle.
    Outcome(Outcome),
    /// In the middle of a run.
    Interrupted,
}

/// What came of a run.
enum Ran {
    Done(Outcome),
    Failed(Failure),
    Interrupted,
}

impl Job<'_> {
    /// Does it whenever it's due, until the user wants it to end.
    pub async fn run(&self) -> End {
        self.tell_what_is_left_out();
        let mut planner = Planner::new(self.schedule.clone(), self.clock.now());
        if self.once {
            planner = planner.started_now_and_then();
        }
        // A scheduler that ends because it is asked to has nothing to complain of.
        let mut outcome = Outcome::Done;
        let mut told_next = None;
        let mut gaps = Gaps::new(self.gaps.clone());
        while !self.context.cancellation.is_cancelled() {
            if gaps.is_new() && planner.demand(self.clock.now()) {
                gaps.are_seen();
                self.events.note("WAL is lost, so a base backup is due at once");
            }
            match planner.decide(self.clock.now()) {
                Action::Tell(missed) => self.events.missed(&missed),
                Action::ClockWentBack(by) => self.events.clock_went_back(by),
                Action::Look => match self.look(&mut planner).await {
                    Some(of_look) if self.once => outcome = outcome.and(of_look),
                    None if self.once => return End::Outcome(Outcome::Failed),
                    _ => {}
                },
                Action::Start(run) => match self.ran(&mut planner, run).await {
                    Ran::Interrupted => return End::Interrupted,
                    Ran::Failed(_) if self.once => return End::Outcome(Outcome::Failed),
                    Ran::Failed(_) => {}
                    Ran::Done(of_run) if self.once => outcome = outcome.and(of_run),
                    Ran::Done(_) => {}
                },
                Action::Wait(until) => {
                    if told_next != until {
                        told_next = until;
                        self.tell_next(&planner, until);
                    }
                    if self.once {
                        break;
                    }
                    tokio::select! {
                        () = self.wait(until) => {}
                        () = gaps.changed() => {}
                        () = self.context.cancellation.cancelled() => {}
                    }
                }
            }
        }
        End::Outcome(outcome)
    }

    fn tell_what_is_left_out(&self) {
        if self.is_retention_configured() && !self.prunes {
            self.events.note(&format!(
                "{}s are made here, and not pruned: the secret key isn't here; run 'pgkeep prune' where it is",
                self.events.what()
            ));
        }
    }

    /// Tells what is being done, for `systemctl status`.
    fn status(&self, text: String) {
        let name = &self.settings.name;
        match self.kind {
            BackupKind::Dump => self.service.status(name, text),
            BackupKind::Base => self
                .service
                .status(&format!("{name} ({})", self.events.what()), text),
        }
    }

    fn is_retention_configured(&self) -> bool {
        let each = self.settings.in_each_repository().unwrap_or_default();
        each.iter().any(prune::is_configured)
    }

    fn tell_next(&self, planner: &Planner, until: Option<Timestamp>) {
        let Some(until) = until else { return };
        if planner.next_due() == Some(until) {
            self.events.next(until);
        }
        let what = if planner.next_due() == Some(until) {
            format!("next {}", self.events.what())
        } else {
            "trying again".to_owned()
        };
        self.status(format!("{what} at {}", self.events.time(until)));
    }

    /// Until that time, or until the clock should be read again.
    async fn wait(&self, until: Option<Timestamp>) {
        let rest = until.map_or(CLOCK_INTERVAL, |until| {
            // What is past needs no waiting.
            Duration::try_from(until.duration_since(self.clock.now())).unwrap_or_default()
        });
        tokio::time::sleep(rest.min(CLOCK_INTERVAL)).await;
    }

    /// Looks for the newest one. Returns what came of it, if it could.
    async fn look(&self, planner: &mut Planner) -> Option<Outcome> {
        let what = self.events.what();
        self.status(format!("looking for the newest {what}"));
        let newest = tokio::select! {
            newest = self.newest() => newest,
            // The loop ends right after this.
            () = self.context.cancellation.cancelled() => return Some(Outcome::Done),
        };
        let now = self.clock.now();
        match newest {
            Ok((newest, outcome)) => {
                planner.looked(now, newest);
                Some(outcome)
            }
            Err(failure) => {
                let again = planner.look_failed(now);
                let again = (!self.once).then_some(again);
                let looking = format!("cannot look for the newest {what}");
                self.events.failed(&looking, &failure, None, again, None);
                None
            }
        }
    }

    /// When the newest one was begun that counts (it is complete and whole, as far as the key tells, and not from the
    /// future), and whether something of the repositories needs attention.
    async fn newest(&self) -> Result<(Option<Timestamp>, Outcome), Failure> {
        let mut newest: Option<Timestamp> = None;
        let mut failure = None;
        let mut answered = false;
        let mut behind = Vec::new();
        let all = self.settings.in_each_repository()?;
        let each = all.iter().map(|settings| async move {
            let url = settings.repository_url().unwrap_or_default();
            (url, self.newest_in(settings).await)
        });
        for (url, found) in join_all(each).await {
            match found {
                Ok(found) => {
                    answered = true;
                    behind.push((url, found));
                    newest = newest.max(found);
                }
                Err(error) => {
                    if all.len() > 1 {
                        let text = error.text();
                        self.events.attention(&format!("{url} can't be asked: {text}"));
                    }
                    failure = Some(error);
                }
            }
        }
        // What one of them has needn't be made again for another's sake; but it is told.
        behind.retain(|(_, found)| *found < newest);
        let outcome = match failure.is_none() && behind.is_empty() {
            true => Outcome::Done,
            false => Outcome::Attention,
        };
        for (url, found) in behind {
            let has = match found {
                Some(found) => format!(
                    "the newest {} there is of {}",
                    self.events.what(),
                    self.events.time(found)
                ),
                None => format!("there is no {} there", self.events.what()),
            };
            let url_quoted = quote_for_shell(url);
            self.events.attention(&format!(
                "{url} lacks what another repository has: {has}; mend: pgkeep copy latest --to {url_quoted}"
            ));
        }
        match failure {
            Some(failure) if !answered => Err(failure),
            _ => Ok((newest, outcome)),
        }
    }

    async fn newest_in(&self, settings: &Settings) -> Result<Option<Timestamp>, Failure> {
        let opening = self.context.repository_if_there(settings, KeyUse::IfConfigured);
        let Some(repository) = opening.await? else {
            return Ok(None);
        };
        let now = self.clock.now();
        if self.kind == BackupKind::Base {
            return self.newest_base_in(&repository).await;
        }
        for id in repository.ids(BackupKind::Dump).await? {
            if id.started_at() > now || repository.state(&id).await? != BackupState::Complete {
                continue;
            }
            let summaries = summaries::read(&repository, std::slice::from_ref(&id)).await?;
            let is_part = |narrowed: pgkeep_dump::manifest::Narrowed| narrowed.databases || narrowed.tables;
            let counts = match summaries.by_id.get(&id) {
                Some(summary) => !is_part(summary.narrowed()),
                // Without the key nobody can tell; then it counts. Damaged or gone it doesn't.
                None => summaries.locked.is_some(),
            };
            if counts {
                return Ok(Some(id.started_at()));
            }
        }
        Ok(None)
    }

    /// The same of base backups; none where WAL is missing behind the newest, as far as the key tells.
    async fn newest_base_in(&self, repository: &Repository) -> Result<Option<Timestamp>, Failure> {
        let now = self.clock.now();
        for id in repository.ids(BackupKind::Base).await? {
            if id.started_at() > now || repository.state(&id).await? != BackupState::Complete {
                continue;
            }
            let summary = match pgkeep_physical::read_summary(repository, &id).await {
                Ok(summary) => summary,
                // Without the key nobody can tell; then it counts.
                Err(error) if error.is_locked() => return Ok(Some(id.started_at())),
                Err(error) if error.is_removed() || error.is_of_one_backup() => continue,
                Err(error) => return Err(error.into()),
            };
            let system = summary.system_identifier.parse().unwrap_or_default();
            let stored = pgkeep_wal::stored_wal(repository, system).await?;
            let windows = pgkeep_physical::windows(repository, system, &stored).await?;
            let mut gaps = stored.iter().flat_map(|timeline| &timeline.gaps);
            if let Some(gap) = gaps.find(|gap| windows.is_open(gap)) {
                self.events.attention(&format!(
                    "WAL from {} to {} of timeline {} is missing, and there is no base backup behind it: one is due at once",
                    gap.start, gap.end, gap.timeline
                ));
                return Ok(None);
            }
            return Ok(Some(id.started_at()));
        }
        Ok(None)
    }

    /// One run: what is made, what is due meanwhile, and what came of it.
    async fn ran(&self, planner: &mut Planner, run: Run) -> Ran {
        self.events.started(&run);
        let since = self.events.time(self.clock.now());
        self.status(match self.kind {
            BackupKind::Dump => format!("dumping since {since}"),
            BackupKind::Base => format!("backing up since {since}"),
        });
        let working = self.make_and_prune();
        tokio::pin!(working);
        let too_late = async {
            self.context.cancellation.cancelled().await;
            tokio::time::sleep(END_MAX).await;
        };
        tokio::pin!(too_late);
        let ran = loop {
            let next = match planner.decide(self.clock.now()) {
                Action::Tell(missed) => {
                    self.events.missed(&missed);
                    continue;
                }
                Action::ClockWentBack(by) => {
                    self.events.clock_went_back(by);
                    continue;
                }
                Action::Wait(until) => until,
                // Nothing else is said while a run is under way.
                Action::Look | Action::Start(_) => None,
            };
            tokio::select! {
                ran = &mut working => break ran,
                () = self.wait(next) => {}
                () = &mut too_late => {
                    self.events.interrupted(TOO_LATE);
                    break Ran::Interrupted;
                }
            }
        };
        let now = self.clock.now();
        let missed = planner.finished(now, matches!(ran, Ran::Done(_)));
        if let Ran::Failed(failure) = &ran {
            let (again, next) = match self.once {
                true => (None, None),
                false => (planner.retry_at(), planner.next_due()),
            };
            self.events
                .failed("", failure, Some(&run), again, next.filter(|_| again.is_none()));
        }
        if let Some(missed) = &missed {
            self.events.missed(missed);
        }
        ran
    }

    /// Makes one.
    async fn make(&self) -> Result<Done, Failure> {
        match self.kind {
            BackupKind::Dump => {
                let args = DumpArgs::scheduled();
                let report = dump::into_repository(self.context, self.settings, &args).await?;
                let totals = report.manifest.totals;
                Ok(Done {
                    plain_bytes: totals.plain_bytes,
                    stored_bytes: totals.stored_bytes,
                    totals: json!(totals),
                    elapsed: report.elapsed,
                    attention: dump::attention(&report),
                    stored_in: report.stored_in,
                    id: report.id,
                })
            }
            BackupKind::Base => {
                let args = BackupArgs::default();
                let (report, url) = backup::into_repository(self.context, self.settings, args).await?;
                let totals = report.manifest.totals;
                Ok(Done {
                    id: report.id,
                    plain_bytes: totals.plain_bytes,
                    stored_bytes: totals.stored_bytes,
                    totals: json!(totals),
                    elapsed: report.elapsed,
                    stored_in: vec![url],
                    attention: report.attention,
                })
            }
        }
    }

    async fn make_and_prune(&self) -> Ran {
        let cancellation = &self.context.cancellation;
        let _turn = tokio::select! {
            turn = self.turn.lock() => turn,
            // Nothing was begun.
            () = cancellation.cancelled() => return Ran::Done(Outcome::Done),
        };
        let what = self.events.what();
        let done = match self.make().await {
            Ok(done) => done,
            Err(failure) if cancellation.is_cancelled() => {
                self.events.interrupted(&format!(
                    "the {what} ({}); what it stored is removed, now or by the next run",
                    failure.text()
                ));
                return Ran::Interrupted;
            }
            Err(failure) => return Ran::Failed(failure),
        };
        self.events.done(&done);
        let mut outcome = Outcome::Done;
        for line in &done.attention {
            self.events.attention(line);
            outcome = Outcome::Attention;
        }
        if cancellation.is_cancelled() || !self.is_retention_configured() || !self.prunes {
            return Ran::Done(outcome);
        }
        self.status("pruning".to_owned());
        match self.prune(&done.stored_in).await {
            Ok(of_prune) => Ran::Done(outcome.and(of_prune)),
            Err(ran) => ran,
        }
    }

    /// Prunes the repositories that have what was just made.
    async fn prune(&self, stored_in: &[String]) -> Result<Outcome, Ran> {
        let cancellation = &self.context.cancellation;
        let mut outcome = Outcome::Done;
        let each = self.settings.in_each_repository().map_err(Ran::Failed)?;
        for settings in each {
            // Where new ones don't arrive, the old ones are all there is.
            let has_it = |url: &str| stored_in.iter().any(|stored| stored == url);
            if !prune::is_configured(&settings) || !settings.repository_url().is_ok_and(has_it) {
                continue;
            }
            let pruned = async {
                let report = prune::execute(self.context, &settings).await?;
                let lost = prune::lost(&settings, &report.plan)?;
                Ok((report, lost))
            };
            let needs_attention = match pruned.await {
                Ok((report, lost)) => self.events.pruned(&report, &lost),
                Err(_) if cancellation.is_cancelled() => {
                    let what = self.events.what();
                    self.events
                        .interrupted(&format!("the prune; the {what} before it is complete"));
                    return Err(Ran::Interrupted);
                }
                Err(failure) => {
                    self.events.prune_failed(&failure);
                    true
                }
            };
            if needs_attention {
                outcome = outcome.and(Outcome::Attention);
            }
        }
        Ok(outcome)
    }
}

/// Pieces of WAL that were found to be lost, as far as a base backup hasn't been asked for yet.
struct Gaps {
    found: Option<watch::Receiver<u64>>,
    seen: u64,
}

impl Gaps {
    fn new(found: Option<watch::Receiver<u64>>) -> Self {
        Self { found, seen: 0 }
    }

    fn number(&self) -> u64 {
        self.found.as_ref().map_or(0, |found| *found.borrow())
    }

    fn is_new(&self) -> bool {
        self.number() > self.seen
    }

    fn are_seen(&mut self) {
        self.seen = self.number();
    }

    /// Waits for a further one; for ever where nobody looks for them.
    async fn changed(&mut self) {
        if let Some(found) = &mut self.found
            && found.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
