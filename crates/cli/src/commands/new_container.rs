//! A server made for a restore, in a container from an image.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgkeep_docker::{DockerError, Engine, ImageName, ServerContainer, ServerOptions, Started};
use pgkeep_dump::{DumpError, Progress, restore as restoring};
use pgkeep_pg::programs;
use serde_json::json;

use super::new_server;
use super::restore::{self, Work};
use crate::args::RestoreArgs;
use crate::context::{self, Context};
use crate::exit::{Failure, Outcome};
use crate::progress::Display;

/// How long initdb, the image's own scripts and the start may take together.
const START_LIMIT: Duration = Duration::from_secs(300);

/// `pgkeep restore --into image:NAME`
pub async fn restore(
    context: &Context,
    work: &Work,
    image: ImageName,
    args: &RestoreArgs,
) -> Result<Outcome, Failure> {
    let options = options(work, image, args);
    let connecting = async { Ok(Engine::connect(|name| std::env::var(name).ok()).await?) };
    let engine = context.cancellation.or(connecting).await?;
    if args.dry_run {
        return check(context, work, &engine, &options).await;
    }
    let mut server = start(context, &engine, options, args.resume).await?;
    let work = &with_programs(work, server.name()).await;
    let (repository, id, manifest) = (&work.repository, &work.id, &work.manifest);
    let checking = restoring::check(repository, id, manifest, server.target(), &work.options);
    let checked = context.cancellation.or(async { Ok(checking.await?) }).await;
    if let Err(failure) = checked {
        server.remove().await;
        return Err(failure);
    }
    let report = match restore::restore(context, work, server.target()).await {
        Ok(report) => report,
        Err(error) => return Err(given_up(context, work, &server, error).await),
    };
    server.hand_over().await?;
    let name = server.name();
    let facts = json!({
        "container": name,
        "volume": name,
        "host": "127.0.0.1",
        "port": server.port(),
        "user": server.superuser(),
        "password_command": server.password_command(),
    });
    let outcome = restore::tell(
        context,
        work,
        &report,
        &format!("in the container {name}"),
        Some(facts),
    );
    context.output.summary(format!(
        "\nConnect with      psql --host=127.0.0.1 --port={} --username={}\nIts password is   {}\nIts data is in    the volume {name}",
        server.port(),
        server.superuser(),
        server.password_command(),
    ));
    Ok(outcome)
}

/// The image's own programs, where this machine has none that will do. Those of another container don't reach it.
async fn with_programs(work: &Work, container: &str) -> Work {
    let mut work = work.clone();
    let major = work.manifest.server_version_num / 10_000;
    let search = work.settings.own_programs();
    let found = programs::find("pg_restore", major, &search).await;
    work.options.programs = match found {
        Ok(_) => search,
        Err(_) => context::programs_in(container),
    };
    work
}

fn options(work: &Work, image: ImageName, args: &RestoreArgs) -> ServerOptions {
    let name = args.container.clone();
    ServerOptions {
        image,
        name: name.unwrap_or_else(|| format!("pgkeep-{}", work.repository.cluster())),
        port: args.port,
        restore: work.id.to_string(),
        settings: new_server::SETTINGS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        timescaledb: new_server::needs_timescaledb(&work.manifest),
        deadline: START_LIMIT,
    }
}

async fn check(
    context: &Context,
    work: &Work,
    engine: &Engine,
    options: &ServerOptions,
) -> Result<Outcome, Failure> {
    let checking = async { Ok(ServerContainer::check(engine, options).await?) };
    let present = context.cancellation.or(checking).await?;
    let pulled = if present {
        ""
    } else {
        ", which has to be pulled first"
    };
    context.output.summary(format!(
        "\nA new server would be made in the container {}, from the image {}{pulled}. Nothing was done.",
        options.name, options.image
    ));
    Ok(work.foreseen(context))
}

async fn start(
    context: &Context,
    engine: &Engine,
    options: ServerOptions,
    resume: bool,
) -> Result<ServerContainer, Failure> {
    let progress = Arc::new(Progress::default());
    progress.set_phase(format!("starting {}", options.image));
    let display = Display::start(context.shown, &progress);
    let cancelled = context.cancellation.cancelled();
    let image = options.image.to_string();
    let tell = |started| match started {
        Started::Pulling(pulled) => {
            progress.set_phase(format!("pulling {image}"));
            progress.bytes_total.store(pulled.total_bytes, Ordering::Relaxed);
            progress.bytes_done.store(pulled.done_bytes, Ordering::Relaxed);
        }
        Started::Starting => progress.set_phase(format!("starting {image}")),
    };
    let started = if resume {
        ServerContainer::resume(engine, options, cancelled).await
    } else {
        ServerContainer::start(engine, options, tell, cancelled).await
    };
    drop(display);
    started.map_err(|error| match error {
        DockerError::Interrupted => Failure::interrupted(),
        error => error.into(),
    })
}

/// What the user stopped goes away; what failed stays, so that it can be gone on with.
async fn given_up(context: &Context, work: &Work, server: &ServerContainer, error: DumpError) -> Failure {
    if context.cancellation.is_cancelled() {
        server.remove().await;
        return Failure::interrupted();
    }
    let go_on = match error.is_damage() {
        true => "another dump takes another --container NAME, or those removed first",
        false => "to be gone on with: add --resume to the same command; or remove them",
    };
    context.output.note(format!(
        "the container {name} and its volume stay; {go_on}: docker rm --force {name} && docker volume rm {name}",
        name = server.name()
    ));
    work.failed(error)
}
