//! `pgkeep key`: pairs of keys. The secret one is written into a file and never printed.

use std::path::Path;

use jiff::Timestamp;
use pgkeep_repository::keys;
use serde_json::json;

use crate::args::{KeyAction, KeyArgs};
use crate::context::Context;
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, styled};

/// `pgkeep key new`, `pgkeep key show`
pub fn run(context: &Context, args: KeyArgs) -> Result<Outcome, Failure> {
    match args.action {
        KeyAction::New { output } => new(context, &output),
        KeyAction::Show { file } => show(context, &file),
    }
}

fn new(context: &Context, path: &Path) -> Result<Outcome, Failure> {
    let (identity, recipient) = keys::generate();
    keys::write_key_file(path, &identity, Timestamp::now())?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let output = &context.output;
    if output.is_quiet() {
        output.line(recipient.to_string());
    } else {
        output.line("A new pair of keys.\n");
        output.facts(&[
            ("public key", styled(ACCENT, &recipient)),
            ("secret key", format!("in {}", path.display())),
        ]);
        output.line(format!(
            "\nBackups are encrypted with the public key: put it into pgkeep.toml as\n  recipients = [\"{recipient}\"]\n\n\
             Only the secret key opens them. Keep the file in two safe places away from this machine: who loses it \
             loses\nthe backups, and who has it can read them."
        ));
    }
    output.json(&json!({ "recipient": recipient.to_string(), "identity_file": path.display().to_string() }));
    Ok(Outcome::Done)
}

fn show(context: &Context, path: &Path) -> Result<Outcome, Failure> {
    let file = keys::read_identity_file(path)?;
    for warning in &file.warnings {
        tracing::warn!("{warning}");
    }
    let recipients: Vec<String> = file
        .identities
        .iter()
        .map(|identity| identity.to_recipient().to_string())
        .collect();
    for recipient in &recipients {
        context.output.line(recipient);
    }
    context.output.json(&json!({ "recipients": recipients }));
    Ok(Outcome::Done)
}
