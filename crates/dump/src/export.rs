//! A dump out of the repository, as files: opened objects in a folder, or one script for psql.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pgkeep_base::BackupId;
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, layout};
use pgkeep_store::StoreOptions;
use tokio::io::AsyncWriteExt;

use crate::database::split_data;
use crate::error::{Context, DumpError};
use crate::files::local_directory;
use crate::manifest::{DatabaseManifest, DumpManifest, RowFormat};
use crate::output::{Compression, Output};
use crate::partial::{DIRECTORY_MODE, FILE_MODE, Partial};
use crate::progress::Progress;
use crate::restore::{Archive, ArchiveOptions, archive_major};
use crate::run::object_refs;
use crate::{sql, way_out};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A folder with every object decrypted and decompressed, and `restore.sh`, which loads it.
    Files,
    /// One script for psql, as pg_dumpall writes one; compressed as its name says.
    Plain,
}

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// What to write.
    pub format: ExportFormat,
    /// A folder, or for the script a file's path or a URL of an object store.
    pub output: String,
    /// The databases' names as they were dumped; empty for all. (For the script.)
    pub databases: Vec<String>,
    /// Encrypts the script with age; its name should end in `.age` then.
    pub encryption: Encryption,
    /// How to reach an object store.
    pub store: StoreOptions,
    /// Where to look for `pg_restore`, which turns the schema's archive into a script.
    pub programs: ProgramSearch,
}

/// Writes a dump as files: whole, or not at all. Returns their size in bytes.
///
/// # Errors
/// The output exists; the store's, the key's, the disk's.
pub async fn export(
    repository: &Repository,
    id: &BackupId,
    manifest: &DumpManifest,
    options: &ExportOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<u64, DumpError> {
    let prefix = layout::backup_prefix(repository.cluster(), id);
    let exporting = Exporting {
        repository,
        manifest,
        options,
        progress,
        prefix,
    };
    progress
        .bytes_total
        .store(manifest.totals.plain_bytes, std::sync::atomic::Ordering::Relaxed);
    let work = async {
        match options.format {
            ExportFormat::Files => exporting.files().await,
            ExportFormat::Plain => exporting.plain().await,
        }
    };
    tokio::select! {
        bytes = work => bytes,
        () = cancelled => Err(DumpError::Interrupted),
    }
}

struct Exporting<'a> {
    repository: &'a Repository,
    manifest: &'a DumpManifest,
    options: &'a ExportOptions,
    progress: &'a Arc<Progress>,
    prefix: String,
}

/// The name without what tells which tools open it.
fn opened_name(name: &str) -> &str {
    let name = name.strip_suffix(".age").unwrap_or(name);
    name.strip_suffix(".zst").unwrap_or(name)
}

/// A path inside the folder, whatever an object is called.
fn inside(folder: &Path, name: &str) -> Result<PathBuf, DumpError> {
    let path = Path::new(opened_name(name));
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(folder.join(path));
    }
    Err(DumpError::Object {
        name: name.to_owned(),
        reason: "its name leads out of the dump's folder".to_owned(),
    })
}

/// A file, and the folder it is in. In one go: what a thread of its own does would go on after an interruption, and make
/// again what was removed.
fn create(path: &Path) -> Result<tokio::fs::File, DumpError> {
    let context = || format!("creating {}", path.display());
    if let Some(folder) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        let builder = builder.recursive(true).mode(DIRECTORY_MODE);
        builder.create(folder).context(context)?;
    }
    let mut open = std::fs::OpenOptions::new();
    let open = open.write(true).create_new(true).mode(FILE_MODE);
    Ok(open.open(path).context(context)?.into())
}

impl Exporting<'_> {
    async fn files(&self) -> Result<u64, DumpError> {
        let partial = Partial::directory(&local_directory(&self.options.output)?)?;
        let scripts = ["create.sql", "settings.sql", "before.sql", "after.sql"];
        self.progress.set_phase("exporting");
        for object in object_refs(self.manifest) {
            self.write_object(partial.place(), &object).await?;
        }
        let suffix = crate::run::sealed_suffix(self.repository);
        for checksum in self.repository.checksums(&self.id()?).await? {
            let script = scripts
                .iter()
                .any(|script| checksum.name.ends_with(&format!("/{script}{suffix}")));
            if script {
                let object = ObjectRef {
                    name: checksum.name,
                    stored_bytes: 0,
                    hash: checksum.hash,
                    plain_bytes: SCRIPT_BYTES_MAX,
                };
                self.write_object(partial.place(), &object).await?;
            }
        }
        let manifest = serde_json::to_vec_pretty(self.manifest)
            .map_err(|error| DumpError::Internal(format!("writing JSON: {error}")))?;
        let index = way_out::index(self.manifest, opened_name);
        for (name, contents) in [
            ("index.tsv", index.into_bytes()),
            ("restore.sh", way_out::RESTORE_SCRIPT.as_bytes().to_vec()),
            ("RESTORE.md", way_out::readme(self.manifest, false).into_bytes()),
            ("manifest", manifest),
        ] {
            let path = partial.place().join(name);
            let mut file = create(&path)?;
            let context = || format!("writing {}", path.display());
            file.write_all(&contents).await.context(context)?;
            file.sync_all().await.context(context)?;
        }
        partial.finish().await
    }

    fn id(&self) -> Result<BackupId, DumpError> {
        let malformed = |error: pgkeep_base::ParseBackupIdError| DumpError::Manifest {
            id: self.manifest.id.clone(),
            reason: error.to_string(),
        };
        self.manifest.id.parse().map_err(malformed)
    }

    async fn write_object(&self, folder: &Path, object: &ObjectRef) -> Result<(), DumpError> {
        let path = inside(folder, &object.name)?;
        let context = || format!("writing {}", path.display());
        let mut file = create(&path)?;
        let key = format!("{}{}", self.prefix, object.name);
        let mut contents = self
            .repository
            .contents(&key, object.plain_bytes, Some(&object.hash))
            .await?;
        while let Some(block) = contents.next().await? {
            file.write_all(&block).await.context(context)?;
            Progress::add(&self.progress.bytes_done, block.len() as u64);
        }
        file.sync_all().await.context(context)
    }

    async fn plain(&self) -> Result<u64, DumpError> {
        let databases = crate::restore::choose_databases(self.manifest, &self.options.databases)?;
        refuse_binary(&databases)?;
        let compression = Compression::of_name(&self.options.output);
        let options = self.options;
        let mut output =
            Output::create(&options.output, &options.store, compression, &options.encryption).await?;
        if let Some(globals) = &self.manifest.globals {
            self.copy_object(globals, &mut output).await?;
        }
        for database in databases {
            self.progress.set_phase(format!("exporting {}", database.name));
            self.database(database, &mut output).await?;
        }
        output.finish().await
    }

    async fn database(&self, database: &DatabaseManifest, output: &mut Output) -> Result<(), DumpError> {
        let properties = &database.properties;
        output
            .write(Bytes::from(sql::enter_new_database(&database.name, properties)))
            .await?;
        output
            .write(Bytes::from(sql::before_script(database.timescaledb.as_ref())))
            .await?;
        let archive = self.archive(database, &database.schema).await?;
        let timescaledb = database.timescaledb.as_ref();
        let late = |oid: u32| database.foreign_keys_to_hypertables.contains(&oid);
        archive
            .script(Some("pre-data"), output, |entry| {
                !entry.is_made_beforehand(timescaledb)
            })
            .await?;
        let (mut configuration, mut data) = split_data(database);
        for objects in [&mut configuration, &mut data] {
            objects.sort_by(|a, b| a.object.name.cmp(&b.object.name));
            for object in objects.iter() {
                self.copy_object(&object.object, output).await?;
            }
        }
        if let Some(sequences) = &database.sequences {
            self.copy_object(sequences, output).await?;
        }
        archive
            .script(Some("post-data"), output, |entry| {
                !(entry.is_constraint() && late(entry.oid))
            })
            .await?;
        output
            .write(Bytes::from(sql::after_script(
                database.timescaledb.as_ref(),
                &database.materialized_views,
            )))
            .await?;
        archive
            .script(Some("post-data"), output, |entry| {
                entry.is_constraint() && late(entry.oid)
            })
            .await?;
        if !database.large_objects.is_empty() {
            self.archive(database, &database.large_objects)
                .await?
                .script(None, output, |_| true)
                .await?;
        }
        Ok(())
    }

    async fn archive(&self, database: &DatabaseManifest, pieces: &[ObjectRef]) -> Result<Archive, DumpError> {
        let major = archive_major(database, self.manifest.server_version_num / 10_000);
        let options = ArchiveOptions {
            owners: true,
            privileges: true,
            tablespaces: false,
            server_major: self.manifest.server_version_num / 10_000,
        };
        Archive::fetch(
            self.repository,
            &self.prefix,
            pieces,
            major,
            &self.options.programs,
            None,
            options,
        )
        .await
    }

    async fn copy_object(&self, object: &ObjectRef, output: &mut Output) -> Result<(), DumpError> {
        let key = format!("{}{}", self.prefix, object.name);
        let mut contents = self
            .repository
            .contents(&key, object.plain_bytes, Some(&object.hash))
            .await?;
        while let Some(block) = contents.next().await? {
            Progress::add(&self.progress.bytes_done, block.len() as u64);
            output.write(block).await?;
        }
        output.write(Bytes::from_static(b"\n")).await
    }
}

/// A script can't hold rows in COPY's binary format.
fn refuse_binary(databases: &[&DatabaseManifest]) -> Result<(), DumpError> {
    let mut relations = databases.iter().flat_map(|database| &database.relations);
    match relations.find(|relation| relation.format == RowFormat::Binary) {
        None => Ok(()),
        Some(relation) => Err(DumpError::Usage {
            message: format!(
                "the dump holds rows of {} in COPY's binary format, which no SQL script can",
                relation.name
            ),
            hint: Some(
                "export it with --format files, whose restore.sh loads them; a dump made with --set dump.row_format=text \
                 becomes a script, and so does one made with 'pgkeep dump --format plain'"
                    .to_owned(),
            ),
        }),
    }
}

/// The scripts beside the data are small.
const SCRIPT_BYTES_MAX: u64 = 64 << 20;
