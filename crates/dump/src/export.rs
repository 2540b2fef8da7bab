//! A dump out of the repository, as files: opened objects in a folder, or one script for psql.

use std::fmt::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pgkeep_base::BackupId;
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, integrity, layout};
use pgkeep_store::StoreOptions;
use tokio::io::AsyncWriteExt;

use crate::database::split_data;
use crate::error::{Context, DumpError};
use crate::files::local_directory;
use crate::manifest::{DatabaseManifest, DumpManifest, RowFormat};
use crate::objects::object_refs;
use crate::output::{Compression, Output};
use crate::partial::{DIRECTORY_MODE, FILE_MODE, Partial};
use crate::restore::{Archive, ArchiveOptions, archive_major};
use crate::way_out::{OPENED, opened_name};
use crate::{sql, way_out};
use pgkeep_base::Progress;

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
    let exporting = Exporting {
        repository,
        manifest,
        options,
        progress,
        id,
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
    id: &'a BackupId,
}

/// A path inside the folder, whatever an object is called.
fn inside(folder: &Path, name: &str) -> Result<PathBuf, DumpError> {
    if integrity::is_object_name(name) {
        return Ok(folder.join(name));
    }
    Err(DumpError::Object {
        name: name.escape_debug().to_string(),
        reason: "its name leads out of the dump's folder".to_owned(),
    })
}

/// A folder that is being written, and the hashes of what is in it.
struct Folder {
    partial: Partial,
    /// Lines as `b3sum` writes them.
    blake3: String,
    /// Lines as `sha256sum` writes them, which is everywhere: nothing in an opened file tells that it was altered.
    sha256: String,
}

/// A file of the folder.
struct Writing {
    name: String,
    path: PathBuf,
    file: tokio::fs::File,
    blake3: blake3::Hasher,
    sha256: ring::digest::Context,
}

impl Folder {
    fn create(path: &Path) -> Result<Self, DumpError> {
        Ok(Self {
            partial: Partial::directory(path)?,
            blake3: String::new(),
            sha256: String::new(),
        })
    }

    fn begin(&self, name: &str) -> Result<Writing, DumpError> {
        let path = inside(self.partial.place(), name)?;
        Ok(Writing {
            name: name.to_owned(),
            file: create(&path)?,
            path,
            blake3: blake3::Hasher::new(),
            sha256: ring::digest::Context::new(&ring::digest::SHA256),
        })
    }

    async fn end(&mut self, mut writing: Writing) -> Result<(), DumpError> {
        let context = || format!("writing {}", writing.path.display());
        writing.file.flush().await.context(context)?;
        writing.file.sync_all().await.context(context)?;
        let sha256 = writing.sha256.finish();
        let sha256: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let blake3 = writing.blake3.finalize().to_hex();
        for (lines, hash) in [
            (&mut self.blake3, blake3.as_str()),
            (&mut self.sha256, sha256.as_str()),
        ] {
            // Writing to a String can't fail.
            let _ = writeln!(lines, "{hash}  {}", writing.name);
        }
        Ok(())
    }

    async fn write(&mut self, name: &str, contents: &[u8]) -> Result<(), DumpError> {
        let mut writing = self.begin(name)?;
        writing.take(contents).await?;
        self.end(writing).await
    }

    /// Names it. Returns its size in bytes.
    async fn finish(mut self) -> Result<u64, DumpError> {
        let (blake3, sha256) = (self.blake3.clone(), self.sha256.clone());
        self.write(layout::CHECKSUMS, blake3.as_bytes()).await?;
        self.write("checksums.sha256", sha256.as_bytes()).await?;
        self.partial.finish().await
    }
}

impl Writing {
    async fn take(&mut self, contents: &[u8]) -> Result<(), DumpError> {
        self.blake3.update(contents);
        self.sha256.update(contents);
        let context = || format!("writing {}", self.path.display());
        self.file.write_all(contents).await.context(context)
    }
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
        let mut folder = Folder::create(&local_directory(&self.options.output)?)?;
        self.progress.set_phase("exporting");
        for object in object_refs(self.manifest) {
            self.write_object(&mut folder, &object).await?;
        }
        for database in &self.manifest.databases {
            for (step, text) in way_out::scripts(database) {
                let name = way_out::script_name(database, step, OPENED);
                folder.write(&name, text.as_bytes()).await?;
            }
        }
        let manifest = serde_json::to_vec_pretty(self.manifest)
            .map_err(|error| DumpError::Internal(format!("writing JSON: {error}")))?;
        let index = way_out::index(self.manifest, OPENED);
        let readme = way_out::readme(self.manifest, OPENED);
        folder.write("index.tsv", index.as_bytes()).await?;
        folder
            .write("restore.sh", way_out::RESTORE_SCRIPT.as_bytes())
            .await?;
        folder.write("RESTORE.md", readme.as_bytes()).await?;
        folder.write(layout::MANIFEST, &manifest).await?;
        folder.finish().await
    }

    async fn write_object(&self, folder: &mut Folder, object: &ObjectRef) -> Result<(), DumpError> {
        let mut writing = folder.begin(opened_name(&object.name))?;
        let mut contents = self.repository.contents(self.id, object).await?;
        let mut bytes = 0;
        while let Some(block) = contents.next().await? {
            writing.take(&block).await?;
            bytes += block.len() as u64;
            Progress::add(&self.progress.bytes_done, block.len() as u64);
        }
        if bytes != object.plain_bytes {
            return Err(DumpError::Object {
                name: object.name.clone(),
                reason: format!("it holds {bytes} bytes, not {}", object.plain_bytes),
            });
        }
        folder.end(writing).await
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
        let mut archive = self.archive(database, &database.schema).await?;
        archive.left_out = crate::restore::lines_left_out(database, &archive.entries);
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
            self.id,
            pieces,
            major,
            &self.options.programs,
            None,
            options,
        )
        .await
    }

    async fn copy_object(&self, object: &ObjectRef, output: &mut Output) -> Result<(), DumpError> {
        let mut contents = self.repository.contents(self.id, object).await?;
        while let Some(block) = contents.next().await? {
            Progress::add(&self.progress.bytes_done, block.len() as u64);
            output.write(block).await?;
        }
        output.write(Bytes::from_static(b"\n")).await
    }
}

/// A script can't hold rows in COPY's binary format. (What is empty has none.)
fn refuse_binary(databases: &[&DatabaseManifest]) -> Result<(), DumpError> {
    for database in databases {
        let mut relations = database.relations.iter();
        let binary = relations.find(|relation| relation.format == RowFormat::Binary && relation.rows > 0);
        if let Some(relation) = binary {
            return Err(DumpError::Usage {
                message: format!(
                    "the dump holds rows of {} in database '{}' in COPY's binary format, which no SQL script can",
                    relation.name, database.name
                ),
                hint: Some(
                    "restore it with 'pgkeep restore', or export it as a folder with --format files, whose restore.sh loads it. \
                     Dumps that become scripts are made with dump.row_format = \"text\" in the configuration; and \
                     'pgkeep dump --format plain' writes one at once"
                        .to_owned(),
                ),
            });
        }
    }
    Ok(())
}
