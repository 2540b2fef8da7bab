//! One database, step by step.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::manifest::DatabaseManifest;
use crate::restore::archive::{Archive, ArchiveOptions, Entry};
use crate::restore::load::{self, LoadPhase, client_encoding, loading_session};
use crate::restore::mark::{self, Mark, Step};
use crate::restore::options::RestoredDatabase;
use crate::restore::{Restore, connect, counts, foreign_keys, left_out, prepare, properties, roles, tables};
use crate::sql;

/// Memory for one index build is taken from the server's own measure of itself, within these bounds, in kB.
const MAINTENANCE_MEMORY_KB_MAX: u64 = 512 << 10;

pub(crate) async fn restore(
    restore: &Restore<'_>,
    session: &mut Session,
    database: &DatabaseManifest,
    target_name: &str,
    attention: &mut Vec<String>,
) -> Result<RestoredDatabase, DumpError> {
    restore.progress.set_phase(format!("{target_name}: preparing"));
    let target = restore.target.with_database(target_name);
    let mark = prepare::prepare(restore, session, database, target_name, attention).await?;
    let mut one = One {
        restore,
        database,
        target,
        target_name,
        mark,
        unsure_keys: HashSet::new(),
    };
    one.run(session, attention).await
}

struct One<'a> {
    restore: &'a Restore<'a>,
    database: &'a DatabaseManifest,
    target: Target,
    target_name: &'a str,
    mark: Mark,
    /// Foreign keys to tables whose rows the dump may lack: they are tried one by one.
    unsure_keys: HashSet<u32>,
}

impl One<'_> {
    fn phase(&self, what: &str) {
        self.restore
            .progress
            .set_phase(format!("{}: {what}", self.target_name));
    }

    async fn run(
        &mut self,
        outside: &mut Session,
        attention: &mut Vec<String>,
    ) -> Result<RestoredDatabase, DumpError> {
        let mut archive = self.archive().await?;
        attention.extend(left_out::notes(self.database));
        attention.extend(left_out::empty_tables(self.database, &archive.entries)?);
        self.unsure_keys = self.find_unsure_keys(&archive).await?;
        if !self.mark.has(Step::PreData) {
            self.pre_data(&archive).await?;
        }
        self.load_rows().await?;
        let mut session = self.session().await?;
        self.sequences(&mut session).await?;
        archive.session_settings = self.index_settings(&mut session).await?;
        session.close().await;
        self.post_data(&archive).await?;
        self.end_restore_mode(&archive).await?;
        self.make_unsure_keys(&archive, attention).await?;
        self.large_objects().await?;
        let mut session = self.session().await?;
        for statement in sql::refresh(&self.database.materialized_views) {
            self.phase("refreshing materialized views");
            session
                .execute(&statement)
                .await
                .context(|| format!("running {statement}"))?;
        }
        if self.restore.options.analyze {
            self.phase("collecting statistics");
            session
                .execute("ANALYZE")
                .await
                .context(|| "collecting the planner's statistics".to_owned())?;
        }
        session.close().await;
        self.phase("counting rows");
        let counted = counts::compare(self.database, &self.target, self.restore.options.jobs, None).await?;
        left_out::drop_hypertables(self.database, &self.target, attention).await?;
        properties::apply(self.restore, outside, self.database, self.target_name, attention).await?;
        self.jobs(attention).await?;
        self.update_extensions(attention).await?;
        // The mark itself goes when all databases are done.
        let mut session = connect(&self.target).await?;
        mark::note(&mut session, Step::Complete).await?;
        session.close().await;
        Ok(RestoredDatabase {
            name: self.database.name.clone(),
            target_name: self.target_name.to_owned(),
            relations: self.database.relations.len() as u64,
            // Each block's were counted as they were loaded, and the tables again afterwards.
            rows: self.database.rows(),
            counted,
        })
    }

    async fn session(&self) -> Result<Session, DumpError> {
        loading_session(&self.target, client_encoding(self.database)).await
    }

    fn timescale_error(&self, source: pgkeep_timescale::TimescaleError) -> DumpError {
        DumpError::Timescale {
            database: self.target_name.to_owned(),
            source,
        }
    }

    async fn archive(&self) -> Result<Archive, DumpError> {
        self.phase("fetching the schema");
        // Tablespaces are a matter of the machine: what the target lacks must not stop the restore.
        tables::fetch_archive(self.restore, self.database).await
    }

    /// The extension at the dumped version, restore mode, then all that rows need.
    async fn pre_data(&self, archive: &Archive) -> Result<(), DumpError> {
        self.phase("making tables");
        if let Some(inventory) = &self.database.timescaledb {
            let error = |source| self.timescale_error(source);
            let mut session = connect(&self.target).await?;
            let found = pgkeep_timescale::detect(&mut session).await.map_err(error)?;
            if found
                .is_some_and(|found| found.version != inventory.version || found.schema != inventory.schema)
            {
                // The database is empty; images of the vendor put the extension into template1.
                let drop = "DROP EXTENSION timescaledb";
                session
                    .execute(drop)
                    .await
                    .context(|| "removing another version of TimescaleDB".to_owned())?;
                session.close().await;
                session = connect(&self.target).await?;
            }
            pgkeep_timescale::create_extension(&mut session, &inventory.version, &inventory.schema)
                .await
                .map_err(error)?;
            session.close().await;
            let mut session = connect(&self.target).await?;
            pgkeep_timescale::pre_restore(&mut session).await.map_err(error)?;
            session.close().await;
        }
        let timescaledb = self.database.timescaledb.as_ref();
        let restored = archive.restore(&self.target, Some("pre-data"), 1, |entry| {
            !entry.is_made_beforehand(timescaledb)
        });
        restored
            .await?
            .context(|| format!("making the tables of database '{}'", self.target_name))?;
        let mut session = connect(&self.target).await?;
        mark::note(&mut session, Step::PreData).await?;
        session.close().await;
        Ok(())
    }

    async fn load_rows(&self) -> Result<(), DumpError> {
        self.phase("loading rows");
        let mut session = self.session().await?;
        let phase = LoadPhase {
            repository: self.restore.repository.clone(),
            id: self.restore.id.clone(),
            database: Arc::new(self.database.clone()),
            target: self.target.clone(),
            jobs: self.restore.options.jobs,
            done: self.mark.relations.clone(),
            wanted: None,
            special_storage: self.special_storage(&mut session).await?,
            progress: Arc::clone(self.restore.progress),
        };
        if !self.mark.has(Step::Configuration) {
            load::load_configuration(&phase, &mut session).await?;
            mark::note(&mut session, Step::Configuration).await?;
        }
        if !self.mark.has(Step::Data) {
            load::load_all(phase).await?;
            mark::note(&mut session, Step::Data).await?;
        }
        session.close().await;
        Ok(())
    }

    /// Relations whose access method isn't heap.
    async fn special_storage(&self, session: &mut Session) -> Result<BTreeSet<u32>, DumpError> {
        let context = || "looking at the tables' storage".to_owned();
        let sql = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_am a ON a.oid = c.relam
            WHERE c.relkind = 'r' AND a.amname <> 'heap' AND n.nspname OPERATOR(pg_catalog.!~) '^pg_'";
        let mut special: HashSet<(String, String)> = HashSet::new();
        for row in session.query(sql).await.context(context)? {
            special.insert((row.get(0).context(context)?, row.get(1).context(context)?));
        }
        let places = (0_u32..).zip(&self.database.relations).filter(|(_, relation)| {
            !special.is_empty()
                && special.contains(&(relation.name.schema.clone(), relation.name.name.clone()))
        });
        Ok(places.map(|(place, _)| place).collect())
    }

    async fn sequences(&self, session: &mut Session) -> Result<(), DumpError> {
        let (Some(object), false) = (&self.database.sequences, self.mark.has(Step::Sequences)) else {
            return Ok(());
        };
        self.phase("setting sequences");
        let script = tables::read_text(self.restore, object).await?;
        session
            .execute(&script)
            .await
            .context(|| "setting sequences".to_owned())?;
        mark::note(session, Step::Sequences).await
    }

    /// Memory for index builds, by the server's own size: a quarter of its memory is a usual `shared_buffers`.
    async fn index_settings(&self, session: &mut Session) -> Result<Vec<String>, DumpError> {
        let context = || "reading the server's memory settings".to_owned();
        let sql =
            "SELECT (SELECT setting::bigint * 8 FROM pg_catalog.pg_settings WHERE name = 'shared_buffers'),
            (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem')";
        let rows = session.query(sql).await.context(context)?;
        let row = rows
            .first()
            .ok_or_else(|| DumpError::Internal("no settings".to_owned()))?;
        let (buffers_kb, present_kb): (u64, u64) =
            (row.get(0).context(context)?, row.get(1).context(context)?);
        let jobs = self.restore.options.jobs.max(1) as u64;
        let memory_kb = present_kb.max((buffers_kb / jobs).min(MAINTENANCE_MEMORY_KB_MAX));
        let mut settings = vec![
            format!("maintenance_work_mem={memory_kb}kB"),
            "synchronous_commit=off".to_owned(),
        ];
        if jobs > 1 {
            // One process for each index is the better use of the same processors.
            settings.push("max_parallel_maintenance_workers=0".to_owned());
        }
        Ok(settings)
    }

    async fn post_data(&self, archive: &Archive) -> Result<(), DumpError> {
        if self.mark.has(Step::PostData) {
            return Ok(());
        }
        self.phase("building indexes and constraints");
        let mut session = connect(&self.target).await?;
        let there = if self.mark.has(Step::PostDataBegun) {
            existing_post_data(&mut session).await?
        } else {
            PostData::default()
        };
        mark::note(&mut session, Step::PostDataBegun).await?;
        let jobs = self.restore.options.jobs;
        let restored = archive.restore(&self.target, Some("post-data"), jobs, |entry| {
            !self.comes_after_restore_mode(entry) && !self.is_unsure(entry) && !there.holds(entry)
        });
        restored.await?.context(|| self.post_data_context())?;
        mark::note(&mut session, Step::PostData).await?;
        session.close().await;
        Ok(())
    }

    fn post_data_context(&self) -> String {
        format!(
            "building the indexes and constraints of database '{}'",
            self.target_name
        )
    }

    fn comes_after_restore_mode(&self, entry: &Entry) -> bool {
        entry.is_constraint() && self.database.foreign_keys_to_hypertables.contains(&entry.oid)
    }

    /// TimescaleDB: jobs off first, or they start at once and an overdue retention policy deletes what was restored.
    async fn end_restore_mode(&self, archive: &Archive) -> Result<(), DumpError> {
        if self.database.timescaledb.is_none() {
            return Ok(());
        }
        self.phase("ending TimescaleDB's restore mode");
        let error = |source| self.timescale_error(source);
        let mut session = connect(&self.target).await?;
        pgkeep_timescale::hold_jobs(&mut session).await.map_err(error)?;
        pgkeep_timescale::post_restore(&mut session)
            .await
            .map_err(error)?;
        session.close().await;
        let mut session = connect(&self.target).await?;
        let there = existing_post_data(&mut session).await?;
        session.close().await;
        let restored = archive.restore(&self.target, Some("post-data"), 1, |entry| {
            self.comes_after_restore_mode(entry) && !self.is_unsure(entry) && !there.holds(entry)
        });
        restored.await?.context(|| self.post_data_context())
    }

    fn is_unsure(&self, entry: &Entry) -> bool {
        entry.is_constraint() && self.unsure_keys.contains(&entry.oid)
    }

    async fn find_unsure_keys(&self, archive: &Archive) -> Result<HashSet<u32>, DumpError> {
        let without_rows = left_out::oids_without_rows(self.database, &archive.entries);
        if without_rows.is_empty() {
            return Ok(HashSet::new());
        }
        let dependents = tables::read_text(self.restore, &self.database.dependents).await?;
        let refers = |_, referenced| without_rows.contains(&referenced);
        Ok(foreign_keys::oids(&dependents, refers))
    }

    async fn make_unsure_keys(
        &self,
        archive: &Archive,
        attention: &mut Vec<String>,
    ) -> Result<(), DumpError> {
        if self.unsure_keys.is_empty() {
            return Ok(());
        }
        let mut session = connect(&self.target).await?;
        let there = existing_post_data(&mut session).await?;
        let wanted = |entry: &Entry| self.is_unsure(entry) && !there.holds(entry);
        foreign_keys::attempt(archive, &mut session, wanted, false, attention).await?;
        session.close().await;
        Ok(())
    }

    async fn large_objects(&self) -> Result<(), DumpError> {
        if self.database.large_objects.is_empty() || self.mark.has(Step::LargeObjects) {
            return Ok(());
        }
        self.phase("restoring large objects");
        let options = &self.restore.options;
        let archive = Archive::fetch(
            self.restore.repository,
            self.restore.id,
            &self.database.large_objects,
            archive_major(self.database, self.restore.manifest.server_version_num / 10_000),
            &options.programs,
            options.work_directory.as_deref(),
            ArchiveOptions {
                owners: options.owners,
                privileges: options.privileges,
                tablespaces: false,
                server_major: self.restore.server_major,
            },
        )
        .await?;
        let mut session = connect(&self.target).await?;
        if self.mark.has(Step::PreData) {
            // A resumed restore may have some of them already.
            let sql =
                "SELECT pg_catalog.count(pg_catalog.lo_unlink(oid)) FROM pg_catalog.pg_largeobject_metadata";
            session
                .execute(sql)
                .await
                .context(|| "removing half-restored large objects".to_owned())?;
        }
        let restored = archive.restore(&self.target, None, 1, |_| true).await?;
        restored.context(|| format!("restoring the large objects of database '{}'", self.target_name))?;
        mark::note(&mut session, Step::LargeObjects).await?;
        session.close().await;
        Ok(())
    }

    /// The counts agree: the jobs may run again, but for those that would delete what was just restored.
    async fn jobs(&self, attention: &mut Vec<String>) -> Result<(), DumpError> {
        let Some(inventory) = &self.database.timescaledb else {
            return Ok(());
        };
        let error = |source| self.timescale_error(source);
        let mut session = connect(&self.target).await?;
        // Functions of the user that tell the time are called, as the jobs themselves call them.
        let context = || "looking at what the jobs would delete".to_owned();
        session.execute("RESET search_path").await.context(context)?;
        let mut held: BTreeSet<i32> = BTreeSet::new();
        for deletion in pgkeep_timescale::pending_deletions(&mut session)
            .await
            .map_err(error)?
        {
            if deletion.chunks.is_empty() {
                continue;
            }
            let what = format!(
                "{} chunks with {} rows of {}.{} (older than {})",
                deletion.chunks.len(),
                deletion.rows(),
                deletion.relation.schema,
                deletion.relation.name,
                deletion.drop_after
            );
            let job = deletion.job.0;
            if self.restore.options.enable_jobs {
                attention.push(format!("retention job {job} is on again and will delete {what}"));
            } else {
                held.insert(job);
                attention.push(format!(
                    "retention job {job} stays off: it would delete {what}; turn it on with \
                     SELECT alter_job({job}, scheduled => true)"
                ));
            }
        }
        let release: Vec<_> = inventory
            .jobs
            .iter()
            .filter(|job| job.scheduled && !held.contains(&job.id))
            .map(|job| pgkeep_timescale::JobId(job.id))
            .collect();
        pgkeep_timescale::release_jobs(&mut session, &release, &inventory.jobs)
            .await
            .map_err(error)?;
        session.close().await;
        Ok(())
    }

    async fn update_extensions(&self, attention: &mut Vec<String>) -> Result<(), DumpError> {
        let (Some(inventory), true) = (&self.database.timescaledb, self.restore.options.update_extensions)
        else {
            return Ok(());
        };
        let mut session = connect(&self.target).await?;
        let updated = pgkeep_timescale::update_extension(&mut session).await;
        session.close().await;
        match updated {
            Ok(version) => tracing::info!("TimescaleDB went from {} to {version}", inventory.version),
            // All is restored: a failed update is no reason to call the restore failed.
            Err(error) => attention.push(format!("TimescaleDB stays at {}: {error}", inventory.version)),
        }
        Ok(())
    }
}

/// The major version of the pg_dump that wrote the archive: `pg_dump (PostgreSQL) 16.15`.
pub(crate) fn archive_major(database: &DatabaseManifest, server_major: u32) -> u32 {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let version = database
        .pg_dump_version
        .rsplit(' ')
        .map(digits)
        .find(|digits| !digits.is_empty());
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(server_major)
}

/// What of the post-data section is there already, in the words of an archive's table of contents.
async fn existing_post_data(session: &mut Session) -> Result<PostData, DumpError> {
    let context = || "looking at which indexes and constraints are there".to_owned();
    let sql = "SELECT 'INDEX ' || n.nspname || ' ' || c.relname FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('i', 'I')
        UNION ALL SELECT CASE k.contype WHEN 'f' THEN 'FK CONSTRAINT ' WHEN 'c' THEN 'CHECK CONSTRAINT ' ELSE 'CONSTRAINT ' END
            || n.nspname || ' ' || c.relname || ' ' || k.conname FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        UNION ALL SELECT 'CHECK CONSTRAINT ' || n.nspname || ' ' || t.typname || ' ' || k.conname FROM pg_catalog.pg_constraint k
          JOIN pg_catalog.pg_type t ON t.oid = k.contypid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
        UNION ALL SELECT 'TRIGGER ' || n.nspname || ' ' || c.relname || ' ' || t.tgname FROM pg_catalog.pg_trigger t
          JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        UNION ALL SELECT 'POLICY ' || n.nspname || ' ' || c.relname || ' ' || p.polname FROM pg_catalog.pg_policy p
          JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        UNION ALL SELECT 'RULE ' || n.nspname || ' ' || c.relname || ' ' || r.rulename FROM pg_catalog.pg_rewrite r
          JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        UNION ALL SELECT 'STATISTICS ' || n.nspname || ' ' || s.stxname FROM pg_catalog.pg_statistic_ext s
          JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace
        UNION ALL SELECT 'EVENT TRIGGER - ' || evtname FROM pg_catalog.pg_event_trigger
        UNION ALL SELECT 'PUBLICATION - ' || pubname FROM pg_catalog.pg_publication
        UNION ALL SELECT 'PUBLICATION TABLE ' || n.nspname || ' ' || p.pubname || ' ' || c.relname
          FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
          JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        UNION ALL SELECT 'PUBLICATION TABLES IN SCHEMA ' || n.nspname || ' ' || p.pubname || ' ' || n.nspname
          FROM pg_catalog.pg_publication_namespace s JOIN pg_catalog.pg_publication p ON p.oid = s.pnpubid
          JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid
        UNION ALL SELECT 'SUBSCRIPTION - ' || s.subname FROM pg_catalog.pg_subscription s
          JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database()";
    let rows = session.query(sql).await.context(context)?;
    let objects: Result<_, _> = rows.iter().map(|row| row.get(0).context(context)).collect();
    Ok(PostData {
        objects: objects?,
        roles: roles::existing(session).await?,
    })
}

/// Objects, and who may own them.
#[derive(Default)]
struct PostData {
    objects: HashSet<String>,
    roles: BTreeSet<String>,
}

impl PostData {
    /// An entry's text is description, schema, tag and owner with spaces between, and each of them may hold spaces itself.
    /// So every beginning is tried, as far as what follows can be an owner: index `a` isn't taken for index `a b`. The
    /// owner is one of the dumped server, and needn't be here; then it is taken for one word.
    fn holds(&self, entry: &Entry) -> bool {
        let text = &entry.text;
        let mut places = text.match_indices(' ').map(|(place, _)| text.split_at(place));
        places.any(|(object, rest)| {
            let owner = rest.trim_start();
            (!owner.contains(' ') || self.roles.contains(owner)) && self.objects.contains(object)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::archive::parse_entries;

    #[test]
    fn an_object_that_is_there_hides_no_other() {
        let there = PostData {
            objects: [
                "INDEX public a",
                "INDEX public c d",
                "PUBLICATION - p",
                "SUBSCRIPTION - s",
            ]
            .map(str::to_owned)
            .into(),
            roles: ["app", "the owner"].map(str::to_owned).into(),
        };
        for (text, expected) in [
            ("INDEX public a app", true),
            ("INDEX public a the owner", true),
            ("INDEX public a gone", true),
            ("INDEX public a b app", false),
            ("INDEX public a b the owner", false),
            ("INDEX public c app", false),
            ("INDEX public c d app", true),
            ("PUBLICATION - p app", true),
            ("PUBLICATION TABLE public p t app", false),
            ("SUBSCRIPTION - s app", true),
        ] {
            let entries = parse_entries(&format!("1; 1259 10 {text}"));
            assert_eq!(there.holds(&entries[0]), expected, "{text}");
        }
    }
}
