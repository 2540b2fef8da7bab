//! The commands: each reads its arguments, calls a library, and prints what came of it.

mod backup;
mod base;
mod bucket;
mod copy;
mod doctor;
mod dump;
mod export;
mod export_base;
mod in_container;
mod init;
mod keep;
mod key;
mod latest;
mod list;
mod meta;
mod new_container;
mod new_server;
mod prune;
mod recoverable;
mod restore;
mod restore_base;
mod restore_plan;
mod run;
mod several;
mod show;
mod summaries;
mod verify;
mod wal;

use crate::args::Command;
use crate::context::Context;
use crate::exit::{Failure, Outcome};

/// Tells what needs attention, and ends accordingly.
fn attention(context: &Context, lines: &[String]) -> Outcome {
    lines.iter().for_each(|line| context.output.attention(line));
    if lines.is_empty() {
        Outcome::Done
    } else {
        Outcome::Attention
    }
}

/// Runs one.
pub async fn run(context: &Context, command: Command) -> Result<Outcome, Failure> {
    match command {
        Command::Init(args) => init::run(context, args).await,
        Command::Dump(args) => dump::run(context, args).await,
        Command::Backup(args) => backup::run(context, args).await,
        Command::Restore(args) if restore_base::is_meant(&args) => restore_base::run(context, args).await,
        Command::Restore(args) => restore::run(context, args).await,
        Command::List(args) => context.cancellation.or(list::run(context, args)).await,
        Command::Show(args) => context.cancellation.or(show::run(context, args)).await,
        Command::Verify(args) => context.cancellation.or(verify::run(context, args)).await,
        Command::Prune(args) => prune::run(context, args).await,
        Command::Pin(args) => context.cancellation.or(keep::pin(context, args)).await,
        Command::Unpin(args) => context.cancellation.or(keep::unpin(context, args)).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Copy(args) => copy::run(context, args).await,
        Command::Export(args) => export::run(context, args).await,
        Command::Wal(args) => wal::run(context, args).await,
        Command::Key(args) => key::run(context, args),
        Command::Bucket(args) => bucket::run(context, args).await,
        Command::Doctor => context.cancellation.or(doctor::run(context)).await,
        Command::Completions(args) => meta::completions(context, &args),
        Command::Version => meta::version(context),
        Command::InContainer(args) => in_container::run(context, args).await,
    }
}
