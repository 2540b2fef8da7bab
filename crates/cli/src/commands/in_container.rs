//! `pgkeep in-container NAME -- PROGRAM ...`: what pgkeep starts where PostgreSQL's programs are a container's. It passes its own
//! `PG*` variables on, and fails where the program does. And what takes their place for a server elsewhere, which they don't reach.

use pgkeep_base::Secret;
use pgkeep_docker::{ContainerProgram, Engine};
use pgkeep_pg::Target;
use pgkeep_pg::programs::{self, ProgramSearch};

use crate::args::InContainerArgs;
use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};

/// Variables that reach the program.
fn is_passed_on(name: &str) -> bool {
    name == "LC_ALL" || (name.starts_with("PG") && !name.starts_with("PGKEEP"))
}

/// Runs it.
pub async fn run(context: &Context, args: InContainerArgs) -> Result<Outcome, Failure> {
    let engine = Engine::connect(|name| std::env::var(name).ok()).await?;
    let program = ContainerProgram {
        container: args.container,
        command: args.command,
        variables: std::env::vars()
            .filter(|(name, _)| is_passed_on(name))
            .map(|(name, value)| (name, Secret::new(value)))
            .collect(),
    };
    let running = engine.run_program(&program, std::io::stdout(), std::io::stderr());
    let running = async { Ok(running.await?) };
    match context.cancellation.or(running).await? {
        0 => Ok(Outcome::Done),
        code => {
            tracing::debug!(code, "the program failed");
            Ok(Outcome::Failed)
        }
    }
}

/// The programs for a server: those that are set, unless they are a container's and the server isn't its own. Then this
/// machine's.
///
/// # Errors
/// There are none; what keeps the container's from being used.
pub(super) async fn programs_for(
    context: &Context,
    settings: &Settings,
    major_min: u32,
    target: &Target,
) -> Result<ProgramSearch, Failure> {
    let Some(container) = settings.container() else {
        return Ok(settings.programs());
    };
    let reaching = async {
        let engine = Engine::connect(|name| std::env::var(name).ok()).await?;
        engine
            .require_own_server(container, &target.libpq_environment())
            .await
    };
    let Err(error) = reaching.await else {
        return Ok(settings.programs());
    };
    let search = settings.own_programs();
    if programs::find("pg_restore", major_min, &search).await.is_err() {
        return Err(error.into());
    }
    context.output.note(format!(
        "this machine's own programs are used, and not those of the container '{container}': {error}"
    ));
    Ok(search)
}
