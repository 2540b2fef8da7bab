//! `pgkeep in-container NAME -- PROGRAM ...`: what pgkeep starts where PostgreSQL's programs are a container's. It passes its own
//! `PG*` variables on, and fails where the program does.

use pgkeep_base::Secret;
use pgkeep_docker::{ContainerProgram, Engine};

use crate::args::InContainerArgs;
use crate::context::Context;
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
