//! `pgkeep dump`: into the repository, or into files as pg_dump writes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use jiff::SignedDuration;
use pgkeep_base::{ByteCount, Classified, quote_for_shell};
use pgkeep_config::{Cluster, Databases, DumpFormat, Overrides, RowFormatChoice};
use pgkeep_dump::manifest::{Filters, Narrowed, Totals};
use pgkeep_dump::{
    DumpError, DumpOptions, DumpReport, FileFormat, FileOptions, FileReport, Progress, ReuseOptions, memory,
};
use pgkeep_repository::destinations::{Destinations, LeftOut};
use pgkeep_repository::{Access, Repository, RepositoryError, layout};
use pgkeep_store::Store;
use serde_json::{Value, json};

use super::several;
use crate::args::{DumpArgs, Format};
use crate::context::{Context, KeyUse, LEASE_DURATION, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, count, counted, duration, ratio, styled};
use crate::pipes::{self, Level, Metadata};
use crate::progress::Display;

/// `dump.reuse_max_age`, where it isn't set.
const REUSE_MAX_AGE_DEFAULT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// `pgkeep dump`
pub async fn run(context: &Context, args: DumpArgs) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides {
        jobs: args.jobs,
        compression_level: args.compression_level,
        upload_limit: args.upload_limit.clone(),
        ..Overrides::default()
    })?;
    check_databases(&settings)?;
    match (format(&settings, &args), &args.output) {
        (Format::Repository, Some(_)) => Err(Failure::usage(
            "--output names a file or directory, and a dump into the repository writes none",
            "add --format plain, custom or directory, or leave --output out",
        )),
        (Format::Repository, None) => repository(context, &settings, &args).await,
        (_, None) => Err(Failure::usage(
            "the format needs a place to write to",
            "add --output PATH",
        )),
        (Format::Plain, Some(path)) => files(context, &settings, &args, FileFormat::Plain, path).await,
        (Format::Custom, Some(path)) => files(context, &settings, &args, FileFormat::Custom, path).await,
        (Format::Directory, Some(path)) => {
            files(context, &settings, &args, FileFormat::Directory, path).await
        }
    }
}

fn format(settings: &Settings, args: &DumpArgs) -> Format {
    args.format.unwrap_or(match settings.cluster.dump.format {
        DumpFormat::Repository => Format::Repository,
        DumpFormat::Plain => Format::Plain,
        DumpFormat::Custom => Format::Custom,
        DumpFormat::Directory => Format::Directory,
    })
}

/// Refuses the settings that choose databases and that this version has not.
pub fn check_databases(settings: &Settings) -> Result<(), Failure> {
    match settings.cluster.dump.exclude_databases.first() {
        None => Ok(()),
        Some(pattern) => Err(Failure::usage(
            format!("the setting 'dump.exclude_databases' ({pattern}) is not supported yet"),
            "name the databases to dump with dump.databases = [...] or --database",
        )),
    }
}

/// Whether a dump into the repository could begin, as far as the settings alone tell.
pub fn check(settings: &Settings) -> Result<(), Failure> {
    check_databases(settings)?;
    settings.target()?;
    settings.cluster.repositories()?;
    settings.access(KeyUse::None)?.encryption.check_writable()?;
    Ok(())
}

async fn repository(context: &Context, settings: &Settings, args: &DumpArgs) -> Result<Outcome, Failure> {
    let report = into_repository(context, settings, args).await?;
    let outcome = tell(context, &report);
    report_to_dagster(&report);
    Ok(outcome)
}

/// Dumps into the repositories.
pub async fn into_repository(
    context: &Context,
    settings: &Settings,
    args: &DumpArgs,
) -> Result<DumpReport, Failure> {
    let options = options(context, settings, args);
    let target = settings.target()?;
    // Where there is a key, the dump before is read with it.
    let access = settings.access(match options.reuse {
        Some(_) => KeyUse::IfThere,
        None => KeyUse::None,
    })?;
    access.encryption.check_writable()?;
    let destinations = context.cancellation.or(destinations(settings, &access)).await?;
    let destinations = Arc::new(destinations);
    let made = destinations.made_beside_others().into_iter();
    let made: Vec<String> = made.map(|url| made_anew(settings, url)).collect();
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let cancelled = context.cancellation.cancelled();
    let report = pgkeep_dump::dump(&destinations, &target, &options, &progress, cancelled).await;
    drop(display);
    match report {
        Ok(mut report) => {
            report.attention.extend(made);
            Ok(report)
        }
        Err(error) => {
            // Nobody would hear of it any more: the next dump finds it there.
            made.iter().for_each(|line| tracing::warn!("{line}"));
            Err(error.into())
        }
    }
}

/// What is said of a repository that was made although another one of the cluster's had been there.
fn made_anew(settings: &Settings, url: &str) -> String {
    format!(
        "there was no repository at {url}, so it was made anew, and has no earlier dump; {}; this brings those of another \
         repository there: {}",
        several::WHERE_IS_IT,
        settings.copy_command("all", url)
    )
}

/// Opens all repositories at once, or makes them.
async fn destinations(settings: &Settings, access: &Access) -> Result<Destinations, Failure> {
    let open = |settings: Settings| async move {
        let url = settings.repository_url()?.to_owned();
        let opened = match Store::open(&url, &settings.store_options()).await {
            Ok(store) => Repository::open_or_create(store, &settings.name, access.clone()).await,
            Err(error) => Err(error.into()),
        };
        Ok::<_, Failure>((url, opened))
    };
    let each = settings.in_each_repository()?.into_iter().map(open);
    let opened = try_join_all(each).await?;
    Ok(Destinations::new(opened)?)
}

/// What needs attention: of the dump, and of the repositories that it is not in.
pub fn attention(report: &DumpReport) -> Vec<String> {
    let left_out = report.left_out.iter().map(|LeftOut { url, error }| {
        let id = &report.id;
        let url_quoted = quote_for_shell(url);
        let copy = format!("pgkeep copy {id} --to {url_quoted}");
        match error {
            DumpError::Unconfirmed { .. } => {
                format!(
                    "{url}: {error}\npgkeep verify {id} --repository {url_quoted}   # or once more: {copy}"
                )
            }
            // Their mend is to dump again.
            DumpError::Repository(RepositoryError::LeaseLost { .. } | RepositoryError::Fenced { .. }) => {
                format!("{id} is not in {url}: {error}\nbring it there: {copy}")
            }
            _ => {
                let mend = match error.hint() {
                    Some(hint) => format!("{hint}; then bring the dump there: {copy}"),
                    None => format!("when that is mended, bring the dump there: {copy}"),
                };
                format!("{id} is not in {url}: {error}\n{mend}")
            }
        }
    });
    report.attention.iter().cloned().chain(left_out).collect()
}

/// Which databases, and what of them. Flags are stronger than settings; a list that is given replaces the settings' one.
pub fn chosen(settings: &Settings, args: &DumpArgs) -> (Vec<String>, Filters) {
    let configured = &settings.cluster.dump;
    let databases = match &configured.databases {
        Databases::All => Vec::new(),
        Databases::Named(names) => names.clone(),
    };
    let either = |flags: &[String], settings: &[String]| {
        if flags.is_empty() {
            settings.to_vec()
        } else {
            flags.to_vec()
        }
    };
    let filters = Filters {
        tables: args.tables.clone(),
        exclude_tables: either(&args.exclude_tables, &configured.exclude_tables),
        schemas: args.schemas.clone(),
        exclude_schemas: either(&args.exclude_schemas, &configured.exclude_schemas),
        exclude_table_data: either(&args.exclude_table_data, &configured.exclude_table_data),
    };
    (either(&args.databases, &databases), filters)
}

fn options(context: &Context, settings: &Settings, args: &DumpArgs) -> DumpOptions {
    let (databases, filters) = chosen(settings, args);
    // What the configuration says is all that the cluster's dumps hold; flags may say less.
    let narrowed = Narrowed {
        databases: !args.databases.is_empty(),
        tables: [
            &args.tables,
            &args.schemas,
            &args.exclude_tables,
            &args.exclude_schemas,
            &args.exclude_table_data,
        ]
        .iter()
        .any(|flags| !flags.is_empty()),
    };
    let level = settings.compression_level();
    DumpOptions {
        databases,
        filters,
        narrowed,
        text_only: settings.cluster.dump.row_format == RowFormatChoice::Text,
        jobs: settings.jobs_in_memory(&context.output, |memory| memory::dump_jobs_max(memory, level)),
        lock_timeout: args.lock_timeout,
        reuse: reuse(settings, args),
        annotations: args.annotations.iter().cloned().collect::<BTreeMap<_, _>>(),
        accept_new_identity: args.accept_new_identity,
        programs: settings.programs(),
        lease_duration: LEASE_DURATION,
    }
}

/// How old what an incremental dump takes over may be.
pub fn reuse_max_age(cluster: &Cluster) -> SignedDuration {
    cluster.dump.reuse_max_age.unwrap_or(REUSE_MAX_AGE_DEFAULT)
}

/// From what earlier dumps objects are taken over.
fn reuse(settings: &Settings, args: &DumpArgs) -> Option<ReuseOptions> {
    let configured = &settings.cluster.dump;
    let incremental = configured.incremental || args.incremental;
    incremental.then(|| ReuseOptions {
        takes_over: !args.full,
        max_age: reuse_max_age(&settings.cluster),
        cache_directory: settings.cache_directory(),
    })
}

async fn files(
    context: &Context,
    settings: &Settings,
    args: &DumpArgs,
    format: FileFormat,
    path: &str,
) -> Result<Outcome, Failure> {
    let target = settings.target()?;
    let (databases, filters) = chosen(settings, args);
    let encryption = settings.file_encryption(path)?;
    let options = FileOptions {
        format,
        output: path.to_owned(),
        databases,
        filters,
        jobs: settings.jobs(),
        lock_timeout: args.lock_timeout,
        encryption,
        store: settings.store_options(),
        programs: settings.programs(),
    };
    let progress = Arc::new(Progress::default());
    let display = Display::start(context.shown, &progress);
    let report =
        pgkeep_dump::write_files(&target, &options, &progress, context.cancellation.cancelled()).await;
    drop(display);
    Ok(tell_files(context, &report?, options.encryption.is_encrypted()))
}

fn tell_files(context: &Context, report: &FileReport, encrypted: bool) -> Outcome {
    let output = &context.output;
    let roles = match report.with_roles {
        true => "",
        false => "not in it, as with pg_dump: pg_dumpall --roles-only writes them",
    };
    if !output.is_quiet() {
        output.line(format!("{} is written.\n", styled(ACCENT, &report.output)));
        output.facts(&[
            ("databases", report.databases.join(", ")),
            ("size", ByteCount(report.bytes).to_string()),
            ("roles", roles.to_owned()),
            ("encrypted", if encrypted { "yes" } else { "no" }.to_owned()),
            ("time", duration(report.elapsed)),
        ]);
    }
    output.json(&json!({
        "output": report.output,
        "databases": report.databases,
        "bytes": report.bytes,
        "with_roles": report.with_roles,
        "encrypted": encrypted,
        "attention": report.attention,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
    }));
    let metadata = Metadata::default()
        .url("url", &report.output)
        .list("databases", &report.databases)
        .number("stored_bytes", report.bytes)
        .seconds("elapsed_seconds", report.elapsed)
        .list("attention", &report.attention);
    pipes::materialization(None, &metadata);
    super::attention(context, &report.attention)
}

/// The facts that Dagster keeps with the asset. (`dagster/row_count` is the name by which it draws rows.)
fn report_to_dagster(report: &DumpReport) {
    let (manifest, totals) = (&report.manifest, report.manifest.totals);
    let prefix = layout::backup_prefix(&manifest.cluster, &report.id);
    let databases: Vec<&str> = manifest
        .databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    let id = report.id.to_string();
    let in_each = |url: &String| format!("{}/{prefix}", url.trim_end_matches('/'));
    let urls: Vec<String> = report.stored_in.iter().map(in_each).collect();
    let metadata = Metadata::default()
        .text("dump_id", &id)
        .url("url", urls.first().map_or("", String::as_str))
        .list("copies", urls.get(1..).unwrap_or_default())
        .list("databases", &databases)
        .number("rows", totals.rows)
        .number("dagster/row_count", totals.rows)
        .number("tables", totals.relations)
        .number("plain_bytes", totals.plain_bytes)
        .number("stored_bytes", totals.stored_bytes)
        .number("reused_bytes", totals.reused_bytes)
        .seconds("elapsed_seconds", report.elapsed)
        .text("started_at", &manifest.started_at.to_string())
        .text("finished_at", &manifest.finished_at.to_string())
        .text("server_version", &manifest.server_version)
        .list("attention", &attention(report));
    pipes::log(
        Level::Info,
        &format!(
            "dump {id} is complete: {} in {}, {} stored in {}, in {}",
            counted(totals.rows, "row", "rows"),
            counted(totals.relations, "table", "tables"),
            ByteCount(totals.plain_bytes),
            ByteCount(totals.stored_bytes),
            duration(report.elapsed),
        ),
    );
    pipes::materialization(Some(&id), &metadata);
}

/// What went into the store, and what was there already.
fn stored(totals: &Totals) -> String {
    let new = totals.stored_bytes - totals.reused_bytes;
    if totals.reused_objects == 0 {
        return format!(
            "{} in {}",
            ByteCount(new),
            counted(totals.objects, "object", "objects")
        );
    }
    format!(
        "{} in {}; {} in {} unchanged since earlier dumps",
        ByteCount(new),
        counted(totals.objects - totals.reused_objects, "object", "objects"),
        ByteCount(totals.reused_bytes),
        counted(totals.reused_objects, "object", "objects"),
    )
}

fn tell(context: &Context, report: &DumpReport) -> Outcome {
    let output = &context.output;
    let totals = report.manifest.totals;
    let databases: Vec<&str> = report
        .manifest
        .databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    let size = format!(
        "{}, {} compressed",
        ByteCount(totals.plain_bytes),
        ByteCount(totals.stored_bytes)
    );
    let ratio = ratio(totals.plain_bytes, totals.stored_bytes);
    if output.is_quiet() {
        output.line(report.id.to_string());
    } else {
        output.line(format!("Dump {} is complete.\n", styled(ACCENT, &report.id)));
        output.facts(&[
            ("databases", databases.join(", ")),
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
            ("stored", stored(&totals)),
            ("time", duration(report.elapsed)),
            ("repository", report.stored_in.join(", ")),
        ]);
        output.line(format!(
            "\nCheck it with    pgkeep verify {id}\nRestore it with  pgkeep restore {id} --into CONNECTION",
            id = report.id
        ));
    }
    output.json(&json!({
        "id": report.id.to_string(),
        "repository": report.stored_in.first(),
        "repositories": report.stored_in,
        "left_out": report.left_out.iter().map(left_out_json).collect::<Vec<_>>(),
        "databases": databases,
        "server_version": report.manifest.server_version,
        "system_identifier": report.manifest.system_identifier,
        "started_at": report.manifest.started_at,
        "finished_at": report.manifest.finished_at,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
        "totals": totals,
        "attention": attention(report),
        "swept": report.swept.backups.iter().map(ToString::to_string).collect::<Vec<_>>(),
    }));
    if !report.swept.backups.is_empty() {
        let number = report.swept.backups.len();
        output.note(format!(
            "cleaned up after {}",
            counted(number as u64, "unfinished dump", "unfinished dumps")
        ));
    }
    super::attention(context, &attention(report))
}

fn left_out_json(left_out: &LeftOut<DumpError>) -> Value {
    json!({ "repository": left_out.url, "error": left_out.error.to_string() })
}
