//! `pgkeep pin` and `pgkeep unpin`.

use pgkeep_base::BackupKind;
use serde_json::json;

use crate::args::{PinArgs, UnpinArgs};
use crate::context::{Context, KeyUse};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, styled};

/// `pgkeep pin ID`
pub async fn pin(context: &Context, args: PinArgs) -> Result<Outcome, Failure> {
    set(context, &args.backup, true, &args.reason).await
}

/// `pgkeep unpin ID`
pub async fn unpin(context: &Context, args: UnpinArgs) -> Result<Outcome, Failure> {
    set(context, &args.backup, false, "").await
}

async fn set(context: &Context, backup: &str, pinned: bool, reason: &str) -> Result<Outcome, Failure> {
    let settings = context.settings(pgkeep_config::Overrides::default())?;
    let repository = context.repository(&settings, KeyUse::None).await?;
    let id = repository.find(BackupKind::Dump, backup).await?;
    repository.set_pin(&id, pinned, reason).await?;
    let shown = styled(ACCENT, &id);
    context.output.summary(if pinned {
        format!("{shown} is pinned: 'pgkeep prune' leaves it until 'pgkeep unpin {id}'.")
    } else {
        format!("{shown} is not pinned any more: 'pgkeep prune' treats it like any other.")
    });
    context
        .output
        .json(&json!({ "id": id.to_string(), "pinned": pinned, "reason": reason }));
    Ok(Outcome::Done)
}
