//! `pgkeep run`: dumps by schedule, in the foreground. What is to be done when is `pgkeep_schedule`'s to say; here are the
//! clock, the dump itself, and telling.

mod events;
mod job;
mod service;

use futures::future::join_all;
use pgkeep_base::SystemClock;
use pgkeep_config::DumpFormat;
use pgkeep_schedule::{EXAMPLE, Schedule};

use super::{dump, prune};
use crate::args::RunArgs;
use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};
use events::Events;
use job::{End, Job};
use service::Service;

/// A cluster, and when it is dumped.
struct Scheduled {
    settings: Settings,
    schedule: Schedule,
    /// Whether it can be pruned here.
    prunes: bool,
}

/// `pgkeep run`
pub async fn run(context: &Context, args: RunArgs) -> Result<Outcome, Failure> {
    let (scheduled, others) = clusters(context)?;
    let width = scheduled.iter().map(|one| one.settings.name.len()).max();
    let service = Service::start();
    let jobs: Vec<Job<'_>> = scheduled
        .iter()
        .map(|one| Job {
            context,
            settings: &one.settings,
            schedule: &one.schedule,
            clock: &SystemClock,
            events: Events::new(
                &context.output,
                &one.settings.name,
                width.unwrap_or(0),
                one.schedule.zone(),
            ),
            service: &service,
            prunes: one.prunes,
            once: args.once,
        })
        .collect();
    for name in others {
        context.output.note(format!(
            "cluster '{name}' has no dump.schedule, so nothing is dumped of it here"
        ));
    }
    let ends = tokio::select! {
        ends = join_all(jobs.iter().map(Job::run)) => ends,
        () = service.watchdog() => Vec::new(),
    };
    service.stopping();
    let mut outcome = Outcome::Done;
    for end in ends {
        match end {
            End::Interrupted => return Err(Failure::interrupted()),
            End::Outcome(of_one) => outcome = outcome.and(of_one),
        }
    }
    Ok(outcome)
}

/// The clusters that have a schedule, and the names of those that have none. All that can be found wrong without a server
/// or a store is found here: a scheduler that starts and then fails every night helps nobody.
fn clusters(context: &Context) -> Result<(Vec<Scheduled>, Vec<String>), Failure> {
    let mut scheduled = Vec::new();
    let mut others = Vec::new();
    for settings in context.settings_of_all()? {
        match schedule(&settings)? {
            Some(schedule) => {
                check(&settings)?;
                let prunes = prune::is_possible(&settings)?;
                scheduled.push(Scheduled {
                    settings,
                    schedule,
                    prunes,
                });
            }
            None => others.push(settings.name),
        }
    }
    if scheduled.is_empty() {
        return Err(Failure::usage(
            "there is nothing to run: no cluster has the setting 'dump.schedule'",
            "set for example dump = { schedule = \"0 2 * * *\" } in pgkeep.toml, or PGKEEP_DUMP__SCHEDULE",
        ));
    }
    Ok((scheduled, others))
}

/// When the cluster is dumped.
pub fn schedule(settings: &Settings) -> Result<Option<Schedule>, Failure> {
    let cluster = &settings.cluster;
    let Some(text) = &cluster.dump.schedule else {
        return Ok(None);
    };
    match Schedule::parse(text, cluster.timezone.clone()) {
        Ok(schedule) => Ok(Some(schedule)),
        Err(error) => Err(Failure::usage(
            format!(
                "the setting 'dump.schedule' of cluster '{}': {error}",
                settings.name
            ),
            format!("write for example {EXAMPLE}"),
        )),
    }
}

fn check(settings: &Settings) -> Result<(), Failure> {
    if settings.cluster.dump.format != DumpFormat::Repository {
        return Err(Failure::usage(
            format!(
                "the setting 'dump.format' of cluster '{}' asks for files, and 'pgkeep run' dumps into the repository",
                settings.name
            ),
            "leave dump.format out, and run 'pgkeep dump --format ... --output PATH' from cron for files",
        ));
    }
    dump::check(settings)
}
