//! `pgkeep wal`: WAL into the repository and back.

mod files;
mod status;
pub mod stream;

use crate::args::{WalAction, WalArgs};
use crate::context::Context;
use crate::exit::{Failure, Outcome};

/// `pgkeep wal`
pub async fn run(context: &Context, args: WalArgs) -> Result<Outcome, Failure> {
    match args.action {
        WalAction::Stream(args) => stream::run(context, &args).await,
        WalAction::Status => context.cancellation.or(status::run(context)).await,
        WalAction::Fetch(args) => context.cancellation.or(files::fetch(context, &args)).await,
        WalAction::Push(args) => context.cancellation.or(files::push(context, &args)).await,
    }
}
