//! The schema's archive: pg_restore in sections, with lists of what to take.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_base::{BackupId, ByteCount};
use pgkeep_pg::Target;
use pgkeep_pg::programs::{self, Program, ProgramError, ProgramSearch, RunLimits};
use pgkeep_repository::Repository;
use pgkeep_repository::object::ObjectRef;
use pgkeep_store::Disk;
use pgkeep_timescale::Inventory;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::claim::{ARCHIVE_NAME, LIST_PREFIX, WorkDirectory};
use crate::error::{Context, DumpError};
use crate::output::Output;
use crate::restore::{complaints, session};
use crate::{schema, sql};

/// An archive's table of contents; 50,000 tables make some 30 MB.
const CONTENTS_BYTES_MAX: usize = 1 << 30;
/// `pg_constraint`'s own oid.
const CLASS_CONSTRAINT: u32 = 2606;
/// What to do where temporary files have no room.
const MORE_ROOM: &str = "name a directory with more room: TMPDIR=/path pgkeep restore ...";
/// Reading it takes seconds.
const LIST_DEADLINE: Duration = Duration::from_secs(600);

/// One line of `pg_restore --list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The line as it stands.
    pub line: String,
    /// The catalog that the object is in (`pg_class` 1259, `pg_constraint` 2606, ...); 0 for none.
    pub class: u32,
    /// The object's oid in the dumped database.
    pub oid: u32,
    /// What follows: description, schema, tag, owner.
    pub text: String,
}

/// Reads the output of `pg_restore --list`: `dumpId; class oid description schema tag owner`.
pub fn parse_entries(list: &str) -> Vec<Entry> {
    list.lines()
        .filter(|line| !line.starts_with(';'))
        .filter_map(parse_entry)
        .collect()
}

fn parse_entry(line: &str) -> Option<Entry> {
    let (_, rest) = line.split_once("; ")?;
    let mut parts = rest.splitn(3, ' ');
    let class = parts.next()?.parse().ok()?;
    let oid = parts.next()?.parse().ok()?;
    Some(Entry {
        line: line.to_owned(),
        class,
        oid,
        text: parts.next()?.to_owned(),
    })
}

/// The archive as a file, and the program that reads it.
pub struct Archive {
    program: Program,
    directory: WorkDirectory,
    file: PathBuf,
    options: Vec<String>,
    server_major: u32,
    /// Settings (`name=value`) for the sessions of pg_restore.
    pub session_settings: Vec<String>,
    /// Its table of contents.
    pub entries: Vec<Entry>,
    /// Lines of it that are never taken: what they need isn't in the dump.
    pub left_out: HashSet<String>,
}

/// How objects are to be made.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveOptions {
    /// Give objects to their owners.
    pub owners: bool,
    /// Grant privileges.
    pub privileges: bool,
    /// Put objects into their tablespaces.
    pub tablespaces: bool,
    /// The major version of the server they are made in.
    pub server_major: u32,
}

impl Archive {
    /// Fetches the archive into a temporary directory and lists it.
    ///
    /// # Errors
    /// The store's, the key's, a missing or failing pg_restore.
    pub async fn fetch(
        repository: &Repository,
        id: &BackupId,
        pieces: &[ObjectRef],
        major_min: u32,
        search: &ProgramSearch,
        work_directory: Option<&Path>,
        options: ArchiveOptions,
    ) -> Result<Self, DumpError> {
        let context = || format!("looking for pg_restore of PostgreSQL {major_min} or later");
        let program = programs::find("pg_restore", major_min, search)
            .await
            .context(context)?;
        let work_directory = work_directory.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let parent = work_directory.clone();
        // Making one may take a while: it removes what killed processes left.
        let directory = tokio::task::spawn_blocking(move || WorkDirectory::make(&parent))
            .await
            .map_err(|error| DumpError::Internal(format!("a thread died: {error}")))?
            .context(|| format!("making a temporary directory in {}", work_directory.display()))?;
        let needed = pieces
            .iter()
            .map(|piece| piece.plain_bytes)
            .fold(0, u64::saturating_add);
        let free = Disk::of(&work_directory).map(|disk| disk.free_bytes);
        require_room(&work_directory, needed, free)?;
        let file = directory.path().join(ARCHIVE_NAME);
        write_pieces(repository, id, pieces, &file).await?;
        let mut archive = Self {
            program,
            directory,
            file,
            options: Vec::new(),
            server_major: options.server_major,
            session_settings: Vec::new(),
            entries: Vec::new(),
            left_out: HashSet::new(),
        };
        for (wanted, option) in [
            (options.owners, "--no-owner"),
            (options.privileges, "--no-privileges"),
            (options.tablespaces, "--no-tablespaces"),
        ] {
            if !wanted {
                archive.options.push(option.to_owned());
            }
        }
        archive.entries = parse_entries(&archive.list().await?);
        Ok(archive)
    }

    async fn list(&self) -> Result<String, DumpError> {
        let mut command = self.program.command(None);
        command.arg("--list").arg(&self.file);
        let limits = RunLimits {
            deadline: LIST_DEADLINE,
            stdout_bytes_max: CONTENTS_BYTES_MAX,
        };
        let context = || "reading the schema's archive".to_owned();
        let finished = programs::run(command, &limits).await.context(context)?;
        String::from_utf8(finished.stdout)
            .map_err(|_| DumpError::Internal("the archive's table of contents isn't UTF-8".to_owned()))
    }

    /// Writes what `wanted` picks as a script, as pg_restore prints it.
    ///
    /// # Errors
    /// pg_restore's, the output's.
    pub async fn script(
        &self,
        section: Option<&str>,
        output: &mut Output,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<(), DumpError> {
        let Some(list) = self.write_list(section, wanted).await? else {
            return Ok(());
        };
        let mut command = self.program.command(None);
        command
            .args(&self.options)
            .arg("--use-list")
            .arg(&list)
            .arg("--file=-");
        if let Some(section) = section {
            command.arg(format!("--section={section}"));
        }
        command.arg(&self.file);
        // Without a database, pg_restore prints what it would do.
        let context = "turning the schema's archive into a script".to_owned();
        let mut program = schema::ProgramOutput::start(command, None, context)?;
        let mut at_beginning = true;
        while let Some(mut block) = program.next().await? {
            if std::mem::take(&mut at_beginning) {
                block = complaints::without_refused_settings(block, self.program.major, self.server_major);
            }
            output.write(block).await?;
        }
        Ok(())
    }

    /// The same as text, of what is little.
    ///
    /// # Errors
    /// pg_restore's; [`DumpError::Internal`] for what isn't UTF-8.
    pub async fn text(
        &self,
        section: Option<&str>,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<String, DumpError> {
        let Some(list) = self.write_list(section, wanted).await? else {
            return Ok(String::new());
        };
        let mut command = self.program.command(None);
        command
            .arg("--no-owner")
            .arg("--use-list")
            .arg(&list)
            .arg("--file=-");
        command.arg(&self.file);
        let limits = RunLimits {
            deadline: LIST_DEADLINE,
            stdout_bytes_max: CONTENTS_BYTES_MAX,
        };
        let context = || "turning the schema's archive into statements".to_owned();
        let finished = programs::run(command, &limits).await.context(context)?;
        String::from_utf8(finished.stdout)
            .map_err(|_| DumpError::Internal("the archive's statements aren't UTF-8".to_owned()))
    }

    /// The list of what to take; none when that is nothing.
    async fn write_list(
        &self,
        section: Option<&str>,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Option<PathBuf>, DumpError> {
        let picked: Vec<&str> = self
            .entries
            .iter()
            .filter(|entry| wanted(entry) && !self.left_out.contains(&entry.line))
            .map(|entry| entry.line.as_str())
            .collect();
        if picked.is_empty() {
            return Ok(None);
        }
        let list = self
            .directory
            .path()
            .join(format!("{LIST_PREFIX}{}", section.unwrap_or("all")));
        let failed = |source| not_written(&list, source);
        let mut file = tokio::fs::File::create(&list).await.map_err(failed)?;
        file.write_all(picked.join("\n").as_bytes())
            .await
            .map_err(failed)?;
        file.write_all(b"\n").await.map_err(failed)?;
        file.flush().await.map_err(failed)?;
        Ok(Some(list))
    }

    /// Restores what `wanted` picks of a section (`pre-data`, `post-data`, or all of it).
    ///
    /// # Errors
    /// Outside: pg_restore could not be run. Inside: it failed, and what it said.
    pub async fn restore(
        &self,
        target: &Target,
        section: Option<&str>,
        jobs: usize,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Result<(), ProgramError>, DumpError> {
        let Some(list) = self.write_list(section, wanted).await? else {
            return Ok(Ok(()));
        };
        let mut command: Command = self.program.command(Some(target));
        let mut settings = session::settings_of_programs(target).await?;
        settings.extend_from_slice(&self.session_settings);
        command.env("PGOPTIONS", session_options(target, &settings));
        command
            .arg(format!("--dbname={}", sql::quote_conninfo(target.database())))
            .arg("--no-password");
        command.args(&self.options).arg("--use-list").arg(&list);
        if let Some(section) = section {
            command.arg(format!("--section={section}"));
        }
        if jobs > 1 {
            command.arg(format!("--jobs={jobs}"));
        }
        let (program_major, server_major) = (self.program.major, self.server_major);
        let complains = complaints::are_expected(program_major, server_major);
        if !complains {
            command.arg("--exit-on-error");
        }
        command.arg(&self.file);
        let ran = schema::run_on_server(command, target).await;
        match ran.context(|| "running pg_restore".to_owned())? {
            Ok(_) => Ok(Ok(())),
            Err(ProgramError::Failed { stderr, .. })
                if complains && complaints::are_harmless(&stderr, program_major, server_major) =>
            {
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

impl Entry {
    /// TimescaleDB itself, which is made beforehand at the dumped version, and the schema it was made in.
    pub fn is_made_beforehand(&self, timescaledb: Option<&Inventory>) -> bool {
        let Some(inventory) = timescaledb else {
            return false;
        };
        let text = self.text.trim_end();
        let extension = text == "EXTENSION - timescaledb" || text == "COMMENT - EXTENSION timescaledb";
        extension || text.starts_with(&format!("SCHEMA - {} ", inventory.schema))
    }

    /// A row of `pg_constraint`.
    pub fn is_constraint(&self) -> bool {
        self.class == CLASS_CONSTRAINT
    }
}

/// What the connection string set, and then ours.
fn session_options(target: &Target, settings: &[String]) -> String {
    let environment = target.libpq_environment();
    let given = environment
        .iter()
        .find(|(name, _)| name == "PGOPTIONS")
        .map(|(_, value)| value.expose().to_owned());
    settings
        .iter()
        .fold(given.unwrap_or_default(), |options, setting| {
            format!("{options} {}", session::as_option(setting))
        })
}

/// An archive of large objects may be larger than what is set aside for temporary files.
fn require_room(directory: &Path, needed: u64, free: Option<u64>) -> Result<(), DumpError> {
    match free {
        Some(free) if free < needed => Err(DumpError::Target {
            message: format!(
                "pg_restore reads its archive from a file of {} in {}, where {} are free",
                ByteCount(needed),
                directory.display(),
                ByteCount(free)
            ),
            hint: Some(MORE_ROOM.to_owned()),
        }),
        _ => Ok(()),
    }
}

/// An error of writing below the directory of temporary files: where that is full, another one is the mend.
fn not_written(path: &Path, source: io::Error) -> DumpError {
    let context = format!("writing {}", path.display());
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DumpError::Target {
            message: format!("{context}: {source}"),
            hint: Some(MORE_ROOM.to_owned()),
        },
        _ => DumpError::Io { context, source },
    }
}

async fn write_pieces(
    repository: &Repository,
    id: &BackupId,
    pieces: &[ObjectRef],
    path: &Path,
) -> Result<(), DumpError> {
    let failed = |source| not_written(path, source);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    for piece in pieces {
        let mut contents = repository.contents(id, piece).await?;
        while let Some(block) = contents.next().await? {
            file.write_all(&block).await.map_err(failed)?;
        }
    }
    file.flush().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use pgkeep_base::Classified;

    use super::*;

    #[test]
    fn an_archive_that_does_not_fit_is_refused_with_the_mend() {
        let place = Path::new("/tmp");
        require_room(place, 10, Some(10)).unwrap();
        require_room(place, 10, None).unwrap();
        let error = require_room(place, 11, Some(10)).unwrap_err();
        assert!(error.hint().unwrap().as_str().contains("TMPDIR"), "{error}");
        assert!(Disk::of(place).is_some_and(|disk| disk.free_bytes > 0));
    }

    #[test]
    fn a_disk_that_fills_up_meanwhile_is_told_with_the_same_mend() {
        let place = Path::new("/tmp/pgkeep-restore-x/archive.dump");
        let hint = |kind: io::ErrorKind| {
            let error = not_written(place, kind.into());
            assert!(error.to_string().contains("archive.dump"), "{error}");
            error.hint().is_some_and(|hint| hint.as_str() == MORE_ROOM)
        };
        assert!(hint(io::ErrorKind::StorageFull) && hint(io::ErrorKind::QuotaExceeded));
        assert!(!hint(io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn entries_of_the_table_of_contents_are_read() {
        let list = ";\n; Archive created at ...\n3345; 1259 16390 TABLE public games app\n17; 0 0 ACL public TABLE t app\nx\n";
        let entries = parse_entries(list);
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[0].class, entries[0].oid, entries[0].text.as_str()),
            (1259, 16390, "TABLE public games app")
        );
    }
}
