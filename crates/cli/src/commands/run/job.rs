use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use pgkeep_base::{BackupKind, Clock, quote_for_shell};
use pgkeep_repository::backups::BackupState;
use pgkeep_schedule::{Action, Planner, Run, Schedule};

use super::events::Events;
use super::service::Service;
use crate::args::DumpArgs;
use crate::commands::{dump, prune, summaries};
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};

/// The clock is read at least this often: it may be set, and a machine that slept doesn't tell.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

/// How long an interrupted dump has to clean up. What it leaves then is what a crash leaves: the next run sweeps it.
const END_MAX: Duration = Duration::from_secs(8);
const TOO_LATE: &str =
    "the dump didn't end in time; unless it is listed, the next run removes what it stored";

/// One cluster's dumps.
pub struct Job<'a> {
    pub context: &'a Context,
    pub settings: &'a Settings,
    pub schedule: &'a Schedule,
    pub clock: &'a dyn Clock,
    pub events: Events<'a>,
    pub service: &'a Service,
    /// Whether it can be pruned here.
    pub prunes: bool,
    /// Do what is due now, and no more.
    pub once: bool,
}

/// How a job came to its end.
pub enum End {
    /// Idle.
    Outcome(Outcome),
    /// In the middle of a dump.
    Interrupted,
}

/// What came of a run.
enum Ran {
    Done(Outcome),
    Failed(Failure),
    Interrupted,
}

impl Job<'_> {
    /// Dumps whenever it's due, until the user wants it to end.
    pub async fn run(&self) -> End {
        let left_out = self.tell_what_is_left_out();
        let mut planner = Planner::new(self.schedule.clone(), self.clock.now());
        if self.once {
            planner = planner.started_now_and_then();
        }
        // A scheduler that ends because it is asked to has nothing to complain of.
        let mut outcome = if self.once { left_out } else { Outcome::Done };
        let mut told_next = None;
        while !self.context.cancellation.is_cancelled() {
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
                        () = self.context.cancellation.cancelled() => {}
                    }
                }
            }
        }
        End::Outcome(outcome)
    }

    fn tell_what_is_left_out(&self) -> Outcome {
        let mut outcome = Outcome::Done;
        for setting in self.settings.without_effect() {
            self.events.attention(&format!(
                "the setting '{setting}' does nothing yet: only dumps are made"
            ));
            outcome = Outcome::Attention;
        }
        if self.is_retention_configured() && !self.prunes {
            self.events.note(
                "dumps are made here, and not pruned: the secret key isn't here; run 'pgkeep prune' where it is",
            );
        }
        outcome
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
            "next dump"
        } else {
            "trying again"
        };
        self.service.status(
            &self.settings.name,
            format!("{what} at {}", self.events.time(until)),
        );
    }

    /// Until that time, or until the clock should be read again.
    async fn wait(&self, until: Option<Timestamp>) {
        let rest = until.map_or(CLOCK_INTERVAL, |until| {
            // What is past needs no waiting.
            Duration::try_from(until.duration_since(self.clock.now())).unwrap_or_default()
        });
        tokio::time::sleep(rest.min(CLOCK_INTERVAL)).await;
    }

    /// Looks for the newest dump. Returns what came of it, if it could.
    async fn look(&self, planner: &mut Planner) -> Option<Outcome> {
        self.service
            .status(&self.settings.name, "looking for the newest dump".to_owned());
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
                self.events
                    .failed("cannot look for the newest dump", &failure, None, again, None);
                None
            }
        }
    }

    /// When the newest dump was begun that counts (it is complete and whole, as far as the key tells, and not from the
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
                Some(found) => format!("the newest dump there is of {}", self.events.time(found)),
                None => "there is no dump there".to_owned(),
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

    /// One run: the dump, what is due meanwhile, and what came of it.
    async fn ran(&self, planner: &mut Planner, run: Run) -> Ran {
        self.events.started(&run);
        let since = self.events.time(self.clock.now());
        self.service
            .status(&self.settings.name, format!("dumping since {since}"));
        let working = self.dump_and_prune();
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

    async fn dump_and_prune(&self) -> Ran {
        let args = DumpArgs::scheduled();
        let cancellation = &self.context.cancellation;
        let report = match dump::into_repository(self.context, self.settings, &args).await {
            Ok(report) => report,
            Err(failure) if cancellation.is_cancelled() => {
                self.events.interrupted(&format!(
                    "the dump ({}); what it stored is removed, now or by the next run",
                    failure.text()
                ));
                return Ran::Interrupted;
            }
            Err(failure) => return Ran::Failed(failure),
        };
        self.events.done(&report);
        let mut outcome = Outcome::Done;
        for line in dump::attention(&report) {
            self.events.attention(&line);
            outcome = Outcome::Attention;
        }
        if cancellation.is_cancelled() || !self.is_retention_configured() || !self.prunes {
            return Ran::Done(outcome);
        }
        self.service.status(&self.settings.name, "pruning".to_owned());
        let each = match self.settings.in_each_repository() {
            Ok(each) => each,
            Err(failure) => return Ran::Failed(failure),
        };
        for settings in each {
            // Where dumps don't arrive, the old ones are all there is.
            let has_it = |url: &str| report.stored_in.iter().any(|stored| stored == url);
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
                    self.events
                        .interrupted("the prune; the dump before it is complete");
                    return Ran::Interrupted;
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
        Ran::Done(outcome)
    }
}
