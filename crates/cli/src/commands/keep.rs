//! `pgkeep pin` and `pgkeep unpin`.

use pgkeep_base::{BackupId, quote_for_shell};
use serde_json::json;

use super::base;
use super::several::{self, Opened};
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
    if base::is_meant(context, &settings, backup).await? {
        let repository = context.repository(&settings, KeyUse::None).await?;
        let id = pgkeep_physical::find(&repository, backup).await?;
        let changed = repository.set_pin(&id, pinned, reason).await?;
        tell(context, &id, pinned, reason, changed);
        return Ok(Outcome::Done);
    }
    // A key isn't needed to pin: where there is one, it tells which dump is the latest.
    let command = if pinned { "pin" } else { "unpin" };
    let (id, having, asked) = several::find(context, &settings, KeyUse::IfThere, backup, command).await?;
    let mut changed = false;
    for Opened { repository, .. } in &having {
        changed |= repository.set_pin(&id, pinned, reason).await?;
    }
    tell(context, &id, pinned, reason, changed);
    Ok(match asked {
        Outcome::Done => Outcome::Done,
        // What is done in some of them only isn't done.
        _ => {
            let reason = match reason {
                "" => String::new(),
                reason => format!(" --reason {}", quote_for_shell(reason)),
            };
            let again = settings.command(&format!("{command} {id}{reason}"));
            let text =
                format!("where it was left out nothing is changed; once more when it is back: {again}");
            context.output.attention(text);
            Outcome::Failed
        }
    })
}

fn tell(context: &Context, id: &BackupId, pinned: bool, reason: &str, changed: bool) {
    let shown = styled(ACCENT, id);
    context.output.summary(match (pinned, changed) {
        (true, _) => format!("{shown} is pinned: 'pgkeep prune' leaves it until 'pgkeep unpin {id}'."),
        (false, true) => format!("{shown} is not pinned any more: 'pgkeep prune' treats it like any other."),
        (false, false) => format!("{shown} was not pinned: nothing is changed."),
    });
    context.output.json(&json!({
        "id": id.to_string(),
        "pinned": pinned,
        "reason": reason,
        "changed": changed,
    }));
}
