//! Dumps as files in PostgreSQL's own formats: what pg_dump writes, under pgkeep's locks and snapshot.
//!
//! The formats are pg_dump's; the order (locks, then snapshot, then a second look) is what pg_dump lacks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgkeep_pg::Target;
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::encryption::Encryption;
use pgkeep_store::StoreOptions;
use tokio::process::Command;

use crate::catalog;
use crate::connect::connect;
use crate::database::inventory;
use crate::databases::{self, ChosenDatabases};
use crate::error::{Context, DumpError};
use crate::giving_way::Attempts;
use crate::hidden;
use crate::indispensable;
use crate::manifest::Filters;
use crate::output::{Compression, Output};
use crate::partial::Partial;
use crate::restore::without_refused_settings;
use crate::run::{PASSWORDS_OMITTED, check_server, not_in_the_dump};
use crate::schema::{self, ClientPrograms, ProgramOutput};
use crate::snapshot::{self, LockedSnapshot};
use crate::sql;
use crate::unfit::{self, Exclusion};
use pgkeep_base::Progress;

/// A format of pg_dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// A script for psql: of one database as pg_dump writes it, of several with roles and `CREATE DATABASE`, as
    /// pg_dumpall writes it. Compressed as the file's name says: `.gz`, `.zst`.
    Plain,
    /// pg_dump's custom format, of one database.
    Custom,
    /// pg_dump's directory format, of one database, written in parallel.
    Directory,
}

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct FileOptions {
    /// The format.
    pub format: FileFormat,
    /// A path, or a URL of an object store (not for directories).
    pub output: String,
    /// The databases' names; empty for all.
    pub databases: Vec<String>,
    /// Parts of them.
    pub filters: Filters,
    /// Tables read at once (directory format only: the others are one stream).
    pub jobs: usize,
    /// How long to wait for the tables' locks.
    pub lock_timeout: Duration,
    /// Encrypts the file with age; its name should end in `.age` then.
    pub encryption: Encryption,
    /// How to reach an object store.
    pub store: StoreOptions,
    /// Where to look for PostgreSQL's client programs.
    pub programs: ProgramSearch,
}

/// What was written.
#[derive(Debug)]
pub struct FileReport {
    /// Where.
    pub output: String,
    /// The databases in it.
    pub databases: Vec<String>,
    /// Whether the roles are in it, too.
    pub with_roles: bool,
    /// Its size, in bytes.
    pub bytes: u64,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Writes the file or directory: whole, or not at all.
///
/// # Errors
/// The output exists; PostgreSQL's, pg_dump's, the disk's or the store's.
pub async fn write_files(
    target: &Target,
    options: &FileOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<FileReport, DumpError> {
    let written = write_readable(target, options, progress, cancelled).await;
    written.map_err(DumpError::of_a_dump)
}

async fn write_readable(
    target: &Target,
    options: &FileOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<FileReport, DumpError> {
    let begun = Instant::now();
    progress.set_phase("connecting");
    let mut session = connect(target).await?;
    let server_version_num = check_server(&session)?;
    let ChosenDatabases { databases, omissions } =
        databases::choose(&mut session, target, &options.databases).await?;
    let settings_for_all = sql::settings_for_all(&catalog::settings_for_all(&mut session).await?);
    let with_passwords = schema::may_read_passwords(&mut session).await?;
    session.close().await;
    refuse_what_pg_dump_lacks(options, &databases)?;
    let programs = ClientPrograms::find(server_version_num, &options.programs).await?;
    let mut writing = Writing {
        target,
        options,
        programs,
        server_version_num,
        settings_for_all,
        with_passwords,
        progress,
        attention: omissions
            .iter()
            .map(|omission| not_in_the_dump(omission))
            .collect(),
        written: Vec::new(),
        unfit: Vec::new(),
        with_roles: false,
        half_restored: None,
    };
    let work = async {
        match options.format {
            FileFormat::Directory => {
                writing.written.clone_from(&databases);
                writing.directory(&databases).await
            }
            FileFormat::Custom | FileFormat::Plain => writing.stream(&databases).await,
        }
    };
    let bytes = tokio::select! {
        bytes = work => bytes,
        () = cancelled => return Err(DumpError::Interrupted),
    };
    let bytes = match (bytes, writing.written.last()) {
        (Ok(bytes), _) => bytes,
        (Err(error), Some(name)) => return Err(databases::gone_meanwhile(target, name, error).await),
        (Err(error), None) => return Err(error),
    };
    let unfit = writing.unfit.iter().map(Vec::as_slice);
    let unfit = unfit::attention(writing.written.iter().map(String::as_str).zip(unfit));
    writing.attention.extend(unfit);
    Ok(FileReport {
        output: options.output.clone(),
        databases: writing.written,
        with_roles: writing.with_roles,
        bytes,
        attention: writing.attention,
        elapsed: begun.elapsed(),
    })
}

fn refuse_what_pg_dump_lacks(options: &FileOptions, databases: &[String]) -> Result<(), DumpError> {
    if options.format != FileFormat::Plain && databases.len() != 1 {
        return Err(DumpError::Usage {
            message: "the custom and the directory format hold one database, and several would be dumped"
                .to_owned(),
            hint: Some(format!("choose one with --database: {}", databases.join(", "))),
        });
    }
    if !options.filters.schemas.is_empty() && !options.filters.tables.is_empty() {
        return Err(DumpError::Usage {
            message: "pg_dump takes --schema or --table, and ignores the one when the other is there"
                .to_owned(),
            hint: Some("give one of them, or use the repository format".to_owned()),
        });
    }
    Ok(())
}

struct Writing<'a> {
    target: &'a Target,
    options: &'a FileOptions,
    programs: ClientPrograms,
    server_version_num: u32,
    settings_for_all: Vec<String>,
    with_passwords: bool,
    progress: &'a Arc<Progress>,
    attention: Vec<String>,
    /// The databases that are in it.
    written: Vec<String>,
    /// Of each of them, the patterns of what to leave out that fit nothing.
    unfit: Vec<Vec<Exclusion>>,
    with_roles: bool,
    /// Why the first of those that were left out was.
    half_restored: Option<DumpError>,
}

impl Writing<'_> {
    async fn snapshot(&mut self, name: &str) -> Result<(Target, LockedSnapshot), DumpError> {
        self.progress.set_phase(format!("{name}: locking tables"));
        let target = self.target.with_database(name);
        let filters = &self.options.filters;
        let mut snapshot = snapshot::take(&target, filters, self.options.lock_timeout).await?;
        let unfit = unfit::in_database(&mut snapshot.session, filters, name).await?;
        self.unfit.push(unfit);
        let hidden = hidden::in_database(&mut snapshot.session, filters, name).await?;
        self.attention
            .extend(hidden.iter().map(|omission| not_in_the_dump(omission)));
        unfit::refuse_empty_selection(&mut snapshot.session, filters, name).await?;
        if let Some(inventory) = inventory(&mut snapshot.session, name).await? {
            indispensable::refuse_excluded(name, &inventory, filters)?;
        }
        self.progress.set_phase(format!("{name}: reading with pg_dump"));
        Ok((target, snapshot))
    }

    /// The same; none where the database is half-restored and everything was asked for, which is then said.
    async fn snapshot_of_whole(&mut self, name: &str) -> Result<Option<(Target, LockedSnapshot)>, DumpError> {
        let error = match self.snapshot(name).await {
            Ok(taken) => return Ok(Some(taken)),
            Err(error) => error,
        };
        let Some(omission) = databases::omission(&error, &self.options.databases) else {
            return Err(error);
        };
        self.attention.push(not_in_the_dump(&omission));
        self.half_restored.get_or_insert(error);
        Ok(None)
    }

    /// pg_dump on the snapshot. With filters, the chunks of the chosen hypertables are named one by one: pg_dump's own
    /// `--table HYPERTABLE` holds no rows at all.
    fn pg_dump(
        &self,
        target: &Target,
        snapshot: &LockedSnapshot,
        format: &str,
        lock_timeout_ms: u128,
    ) -> Command {
        let mut command = self.programs.pg_dump.command(Some(target));
        command
            .arg(format!("--format={format}"))
            .arg("--no-password")
            .arg(format!("--snapshot={}", snapshot.id))
            .arg(format!("--lock-wait-timeout={lock_timeout_ms}"));
        let filters = &self.options.filters;
        for (option, patterns) in [
            ("--table", &filters.tables),
            ("--exclude-table", &filters.exclude_tables),
            ("--schema", &filters.schemas),
            ("--exclude-schema", &filters.exclude_schemas),
            ("--exclude-table-data", &filters.exclude_table_data),
        ] {
            command.args(patterns.iter().map(|pattern| format!("{option}={pattern}")));
        }
        for relation in &snapshot.relations {
            let chunk = relation.name.schema == "_timescaledb_internal";
            if chunk && relation.data_excluded {
                command.arg(format!("--exclude-table-data={}", relation.name.quoted()));
            }
            if chunk && !(filters.tables.is_empty() && filters.schemas.is_empty()) {
                command.arg(format!("--table={}", relation.name.quoted()));
            }
        }
        command
    }

    async fn directory(&mut self, databases: &[String]) -> Result<u64, DumpError> {
        let path = local_directory(&self.options.output)?;
        let name = databases.first().map_or("postgres", String::as_str);
        let context = || format!("dumping database '{name}'");
        let mut attempts = Attempts::new();
        loop {
            // Before the snapshot, so that it is gone after it; what an attempt began goes with it.
            let partial = Partial::directory(&path)?;
            let (target, mut snapshot) = self.snapshot(name).await?;
            let mut command = self.pg_dump(&target, &snapshot, "directory", attempts.begin());
            command
                .arg(format!("--jobs={}", self.options.jobs.max(1)))
                .arg("--file")
                .arg(partial.place());
            let ran = schema::run_on_server(command, &target).await;
            if let Err(error) = ran.context(context)?.context(context) {
                attempts.after(error, &mut snapshot, name).await?;
                continue;
            }
            snapshot.session.execute("COMMIT").await.context(context)?;
            return partial.finish().await;
        }
    }

    async fn stream(&mut self, databases: &[String]) -> Result<u64, DumpError> {
        let options = self.options;
        let compression = match options.format {
            FileFormat::Plain => Compression::of_name(&options.output),
            // pg_dump compresses inside its own format.
            _ => Compression::None,
        };
        let mut output =
            Output::create(&options.output, &options.store, compression, &options.encryption).await?;
        let cluster =
            options.format == FileFormat::Plain && (options.databases.is_empty() || databases.len() > 1);
        self.with_roles = cluster;
        if cluster {
            self.progress.set_phase("roles and other globals");
            let globals = schema::globals(&self.programs, self.target, self.with_passwords).await?;
            if !self.with_passwords {
                self.attention.push(not_in_the_dump(PASSWORDS_OMITTED));
            }
            output.write(globals).await?;
            output
                .write(Bytes::from(sql::script(&self.settings_for_all)))
                .await?;
        }
        for name in databases {
            self.database(name, cluster, &mut output).await?;
        }
        match self.half_restored.take() {
            Some(error) if self.written.is_empty() => Err(error),
            _ => output.finish().await,
        }
    }

    async fn database(&mut self, name: &str, cluster: bool, output: &mut Output) -> Result<(), DumpError> {
        let plain = self.options.format == FileFormat::Plain;
        let format = if plain { "plain" } else { "custom" };
        let mut attempts = Attempts::new();
        let (mut snapshot, mut program, first) = loop {
            let Some((target, mut snapshot)) = self.snapshot_of_whole(name).await? else {
                return Ok(());
            };
            let command = self.pg_dump(&target, &snapshot, format, attempts.begin());
            let mut program =
                ProgramOutput::start(command, Some(&target), format!("dumping database '{name}'"))?;
            // pg_dump has all its locks before it writes anything.
            match program.next().await {
                Ok(first) => break (snapshot, program, first),
                Err(error) => attempts.after(error, &mut snapshot, name).await?,
            }
        };
        self.written.push(name.to_owned());
        let timescaledb = inventory(&mut snapshot.session, name).await?;
        if cluster {
            let properties = catalog::database_properties(&mut snapshot.session).await?;
            output
                .write(Bytes::from(sql::enter_new_database(name, &properties)))
                .await?;
        }
        if let (Some(inventory), true) = (&timescaledb, plain) {
            output
                .write(Bytes::from(sql::before_script(Some(inventory))))
                .await?;
            self.note_foreign_keys(&mut snapshot, name).await?;
        }
        if let Some(mut block) = first {
            if plain {
                // A newer pg_dump sets what the dumped server doesn't know.
                let server_major = self.server_version_num / 10_000;
                block = without_refused_settings(block, self.programs.pg_dump.major, server_major);
            }
            output.write(block).await?;
            while let Some(block) = program.next().await? {
                output.write(block).await?;
            }
        }
        if let (Some(inventory), true) = (&timescaledb, plain) {
            // pg_dump refreshes materialized views itself.
            output
                .write(Bytes::from(sql::after_script(Some(inventory), &[])))
                .await?;
        }
        let context = || format!("ending the snapshot of '{name}'");
        snapshot.session.execute("COMMIT").await.context(context)?;
        snapshot.session.close().await;
        Ok(())
    }

    async fn note_foreign_keys(
        &mut self,
        snapshot: &mut LockedSnapshot,
        name: &str,
    ) -> Result<(), DumpError> {
        let keys = catalog::foreign_keys_to_hypertables(&mut snapshot.session).await?;
        if !keys.is_empty() {
            self.attention.push(format!(
                "database '{name}' has {} foreign keys to hypertables, which one script can't restore: use the repository format",
                keys.len()
            ));
        }
        Ok(())
    }
}

/// A place for several files: those of a directory can't appear in an object store all at once.
pub(crate) fn local_directory(output: &str) -> Result<PathBuf, DumpError> {
    if output.contains("://") {
        return Err(DumpError::Usage {
            message: format!("{output} is a URL, and a directory of files is written to a disk"),
            hint: Some(
                "name a path; 'pgkeep copy' brings whole dumps to another object store, and --format plain \
                 writes one object"
                    .to_owned(),
            ),
        });
    }
    Ok(PathBuf::from(output))
}
