//! `pgkeep run`: dumps and base backups by schedule, and WAL as it comes, in the foreground. What is to be done when is `pgkeep_schedule`'s to say; here are the
//! clock, the work itself, and telling.

mod events;
mod job;
mod service;
mod stream;

use std::pin::Pin;
use std::sync::Arc;

use futures::future::join_all;
use pgkeep_base::{BackupKind, SystemClock};
use pgkeep_config::DumpFormat;
use pgkeep_schedule::{EXAMPLE, Schedule};
use tokio::sync::{Mutex, watch};

use super::{backup, dump, prune};
use crate::args::RunArgs;
use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};
use events::{Events, What};
use job::{End, Job};
use service::Service;
use stream::Streaming;

/// A cluster, and what is to be done with it.
struct Scheduled {
    settings: Settings,
    dumps: Option<Schedule>,
    bases: Option<Schedule>,
    /// Whether it can be pruned here.
    prunes: bool,
}

/// `pgkeep run`
pub async fn run(context: &Context, args: RunArgs) -> Result<Outcome, Failure> {
    let (scheduled, others) = clusters(context)?;
    let width = scheduled.iter().map(|one| one.settings.name.len()).max();
    let service = Service::start();
    for name in others {
        context.output.note(format!(
            "cluster '{name}' has no dump.schedule, no backup.schedule and no stream, so nothing is done with it here"
        ));
    }
    let mut outcome = Outcome::Done;
    let mut working: Vec<Pin<Box<dyn Future<Output = End> + '_>>> = Vec::new();
    for one in &scheduled {
        let events = |what| {
            let (output, zone) = (&context.output, &one.settings.cluster.timezone);
            Events::new(output, (&one.settings.name, what), width.unwrap_or(0), zone)
        };
        if tell_without_effect(one, &events(What::Dump)) && args.once {
            outcome = Outcome::Attention;
        }
        let turn = Arc::new(Mutex::new(()));
        let gaps = watch::Sender::new(0);
        let jobs = [
            (BackupKind::Dump, What::Dump, &one.dumps),
            (BackupKind::Base, What::Base, &one.bases),
        ];
        for (kind, what, schedule) in jobs {
            let Some(schedule) = schedule else { continue };
            let job = Job {
                context,
                settings: &one.settings,
                schedule,
                clock: &SystemClock,
                events: events(what),
                service: &service,
                kind,
                turn: Arc::clone(&turn),
                gaps: (kind == BackupKind::Base).then(|| gaps.subscribe()),
                prunes: one.prunes,
                once: args.once,
            };
            working.push(Box::pin(async move { job.run().await }));
        }
        if one.settings.cluster.stream && !args.once {
            let streaming = Streaming {
                context,
                settings: &one.settings,
                events: events(What::Wal),
                service: &service,
                gaps,
            };
            working.push(Box::pin(async move { streaming.run().await }));
        }
    }
    let ends = tokio::select! {
        ends = join_all(working) => ends,
        () = service.watchdog() => Vec::new(),
    };
    service.stopping();
    for end in ends {
        match end {
            End::Interrupted => return Err(Failure::interrupted()),
            End::Outcome(of_one) => outcome = outcome.and(of_one),
        }
    }
    Ok(outcome)
}

/// Says which settings nothing comes of. Returns whether there are any.
fn tell_without_effect(one: &Scheduled, events: &Events<'_>) -> bool {
    let settings = one.settings.without_effect();
    for setting in &settings {
        events.attention(&format!("the setting '{setting}' does nothing yet"));
    }
    !settings.is_empty()
}

/// The clusters that there is something to be done with, and the names of the others. All that can be found wrong without a server
/// or a store is found here: a scheduler that starts and then fails every night helps nobody.
fn clusters(context: &Context) -> Result<(Vec<Scheduled>, Vec<String>), Failure> {
    let mut scheduled = Vec::new();
    let mut others = Vec::new();
    for settings in context.settings_of_all()? {
        let (dumps, bases) = (schedule(&settings)?, base_schedule(&settings)?);
        if dumps.is_none() && bases.is_none() && !settings.cluster.stream {
            others.push(settings.name);
            continue;
        }
        if dumps.is_some() {
            check(&settings)?;
        }
        if bases.is_some() || settings.cluster.stream {
            backup::check_repository(&settings)?;
            settings.target()?;
        }
        let prunes = prune::is_possible(&settings)?;
        scheduled.push(Scheduled {
            settings,
            dumps,
            bases,
            prunes,
        });
    }
    if scheduled.is_empty() {
        return Err(Failure::usage(
            "there is nothing to run: no cluster has the setting 'dump.schedule', 'backup.schedule' or 'stream'",
            "set for example dump = { schedule = \"0 2 * * *\" } in pgkeep.toml, or PGKEEP_DUMP__SCHEDULE",
        ));
    }
    Ok((scheduled, others))
}

/// When the cluster is dumped.
pub fn schedule(settings: &Settings) -> Result<Option<Schedule>, Failure> {
    parsed(
        settings,
        "dump.schedule",
        settings.cluster.dump.schedule.as_deref(),
    )
}

/// When its base backups are taken.
pub fn base_schedule(settings: &Settings) -> Result<Option<Schedule>, Failure> {
    parsed(
        settings,
        "backup.schedule",
        settings.cluster.backup.schedule.as_deref(),
    )
}

fn parsed(settings: &Settings, setting: &str, text: Option<&str>) -> Result<Option<Schedule>, Failure> {
    let Some(text) = text else {
        return Ok(None);
    };
    match Schedule::parse(text, settings.cluster.timezone.clone()) {
        Ok(schedule) => Ok(Some(schedule)),
        Err(error) => Err(Failure::usage(
            format!("the setting '{setting}' of cluster '{}': {error}", settings.name),
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
