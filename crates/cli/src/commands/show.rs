//! `pgkeep show ID`: everything about one dump.

use pgkeep_base::{BackupKind, ByteCount};
use pgkeep_config::Overrides;
use pgkeep_dump::manifest::{DatabaseManifest, DumpManifest, RelationKind};
use pgkeep_dump::{Chosen, Wanted};
use pgkeep_repository::backups::BackupEntry;
use serde_json::{Value, json};

use super::several::{self, Choice};
use super::{base, latest, list};
use crate::args::ShowArgs;
use crate::context::Context;
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, BOLD, count, counted, ratio, styled, time, time_short};
use crate::table::{Align, Table};

/// `pgkeep show ID`
pub async fn run(context: &Context, args: ShowArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    if base::is_meant(context, &settings, &args.backup).await? {
        return base::show(context, &settings, &args.backup).await;
    }
    let wanted = Wanted {
        command: "show",
        ..Wanted::default()
    };
    let choosing = several::choose(context, &settings, &args.backup, &wanted);
    let Choice {
        repository,
        chosen: Chosen { id, manifest, .. },
        outcome,
        ..
    } = choosing.await?;
    let entries = repository.backups(BackupKind::Dump).await?;
    let entry = entries.into_iter().find(|entry| entry.id == id);
    context.output.json(&json!({
        "id": id.to_string(),
        "repository": repository.store().url(),
        "pin": entry.as_ref().and_then(|entry| entry.pin.clone()),
        "verification": entry.as_ref().and_then(|entry| entry.evidence.clone()),
        "manifest": shown_manifest(&manifest)?,
    }));
    facts(context, &manifest, entry.as_ref(), repository.store().url());
    context.output.line("");
    context.output.table(&databases(&manifest));
    if args.tables {
        for database in &manifest.databases {
            context.output.line(format!("\n{}", styled(BOLD, &database.name)));
            context.output.table(&relations(database));
        }
    }
    latest::tell_omissions(&context.output, &manifest.omissions);
    Ok(outcome)
}

/// The manifest without the values of settings that may be secrets: `ALTER DATABASE ... SET app.key`. PostgreSQL's own
/// settings that a database or role can have hold none, and their values are good to know; what extensions and
/// applications keep in theirs, whose names have a dot, nobody knows. A restore prints no values either.
fn shown_manifest(manifest: &DumpManifest) -> Result<Value, Failure> {
    let mut shown =
        serde_json::to_value(manifest).map_err(|error| Failure::failed("cannot write JSON", &error))?;
    let databases = shown.pointer_mut("/databases").and_then(Value::as_array_mut);
    for database in databases.into_iter().flatten() {
        let settings = database
            .pointer_mut("/properties/settings")
            .and_then(Value::as_array_mut);
        for setting in settings.into_iter().flatten() {
            let custom = setting["name"].as_str().is_none_or(|name| name.contains('.'));
            if custom {
                setting["value"] = Value::Null;
            }
        }
    }
    Ok(shown)
}

fn facts(context: &Context, manifest: &DumpManifest, entry: Option<&BackupEntry>, url: &str) {
    let totals = manifest.totals;
    let annotations: Vec<String> = manifest
        .annotations
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let pinned = entry.and_then(|entry| entry.pin.as_ref()).map(|pin| {
        let reason = if pin.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", pin.reason)
        };
        format!("since {}{reason}", time(pin.at))
    });
    let verified = entry.and_then(|entry| entry.evidence.as_ref());
    let verified = verified.map(|evidence| format!("{} ({})", list::in_words(evidence), time(evidence.at)));
    let size = format!(
        "{}, stored in {}",
        ByteCount(totals.plain_bytes),
        ByteCount(totals.stored_bytes)
    );
    let ratio = ratio(totals.plain_bytes, totals.stored_bytes);
    context
        .output
        .line(format!("Dump {}\n", styled(ACCENT, &manifest.id)));
    context.output.facts(&[
        ("cluster", manifest.cluster.clone()),
        ("server", format!("PostgreSQL {}", manifest.server_version)),
        ("system", manifest.system_identifier.clone()),
        ("started", time(manifest.started_at)),
        ("finished", time(manifest.finished_at)),
        (
            "rows",
            format!(
                "{} in {}",
                count(totals.rows),
                counted(totals.relations, "table", "tables")
            ),
        ),
        (
            "size",
            if ratio.is_empty() {
                size
            } else {
                format!("{size} ({ratio})")
            },
        ),
        ("verified", verified.unwrap_or_else(|| "never".to_owned())),
        ("pinned", pinned.unwrap_or_default()),
        ("notes", annotations.join(", ")),
        ("repository", url.to_owned()),
        ("pgkeep", manifest.pgkeep_version.clone()),
    ]);
}

fn databases(manifest: &DumpManifest) -> Table {
    let mut table = Table::new(&[
        ("DATABASE", Align::Left),
        ("SNAPSHOT", Align::Left),
        ("LSN", Align::Left),
        ("TABLES", Align::Right),
        ("ROWS", Align::Right),
        ("SIZE", Align::Right),
        ("TIMESCALEDB", Align::Left),
    ])
    .dispensable("LSN");
    for database in &manifest.databases {
        let size = database
            .relations
            .iter()
            .map(|relation| relation.plain_bytes)
            .sum();
        table.row(vec![
            database.name.clone(),
            time_short(database.snapshot_at),
            database.snapshot_lsn.clone().unwrap_or_default(),
            count(database.relations.len() as u64),
            count(database.rows()),
            ByteCount(size).to_string(),
            database
                .timescaledb
                .as_ref()
                .map(|inventory| inventory.version.clone())
                .unwrap_or_default(),
        ]);
    }
    table
}

fn relations(database: &DatabaseManifest) -> Table {
    let mut table = Table::new(&[
        ("TABLE", Align::Left),
        ("KIND", Align::Left),
        ("ROWS", Align::Right),
        ("SIZE", Align::Right),
        ("NOTE", Align::Fold),
    ]);
    for relation in &database.relations {
        let kind = match relation.kind {
            RelationKind::Table => "table",
            RelationKind::Configuration => "configuration",
            RelationKind::Chunk => "chunk",
            RelationKind::CompressedChunk => "compressed",
        };
        let note = match (relation.data_excluded, relation.compressed_rows) {
            (true, _) => "rows left out".to_owned(),
            (false, Some(rows)) => format!("stands for {} rows", count(rows)),
            (false, None) => String::new(),
        };
        table.row(vec![
            relation.name.to_string(),
            kind.to_owned(),
            count(relation.rows),
            ByteCount(relation.plain_bytes).to_string(),
            note,
        ]);
    }
    table
}
