//! `pgkeep wal fetch` and `pgkeep wal push`: what PostgreSQL's `restore_command` and `archive_command` call.

use std::path::{Path, PathBuf};

use pgkeep_config::Overrides;
use pgkeep_repository::wal::Stored;
use pgkeep_wal::{Fetched, System};
use serde_json::json;

use crate::args::{FetchArgs, PushArgs};
use crate::context::{Context, KeyUse};
use crate::exit::{Failure, Outcome};

/// `pgkeep wal fetch`
pub async fn fetch(context: &Context, args: &FetchArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let repository = context.repository(&settings, KeyUse::IfConfigured).await?;
    let directory = directory(args.data_directory.as_ref());
    let system = System::of_directory_or_repository(directory, &repository).await?;
    let fetched = pgkeep_wal::fetch(&repository, system, &args.name, &args.path).await?;
    context.output.json(&json!({
        "name": args.name,
        "path": args.path.display().to_string(),
        "fetched": fetched == Fetched::Written,
    }));
    match fetched {
        Fetched::Written => Ok(Outcome::Done),
        Fetched::Absent => {
            // What PostgreSQL asks for beyond the end, each time it gets there: no error.
            tracing::info!("{} isn't stored", args.name);
            Ok(Outcome::Absent)
        }
    }
}

/// `pgkeep wal push`
pub async fn push(context: &Context, args: &PushArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let repository = settings.repository_to_write(KeyUse::None).await?;
    let directory = directory(args.data_directory.as_ref());
    let stored = pgkeep_wal::push(&repository, &args.path, directory).await?;
    context.output.json(&json!({
        "path": args.path.display().to_string(),
        "stored": match stored {
            Stored::Created => "created",
            _ => "was there",
        },
    }));
    Ok(Outcome::Done)
}

fn directory(given: Option<&PathBuf>) -> &Path {
    given.map_or_else(|| Path::new("."), PathBuf::as_path)
}
