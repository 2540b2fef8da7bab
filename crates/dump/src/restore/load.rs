//! Rows into the target, in parallel.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use pgkeep_base::BackupId;
use pgkeep_base::quote_literal;
use pgkeep_pg::{Session, Target};
use pgkeep_repository::Repository;
use tokio::task::JoinSet;

use crate::blocks::{BlockReader, Piece, around_rows, copy_in_statement};
use crate::error::{Context, DumpError};
use crate::manifest::{DataObject, DatabaseManifest, RelationKind};
use crate::restore::plan::{LoadTask, load_tasks};
use crate::restore::{connect, mark};
use pgkeep_base::Progress;

/// From this size on, a table's own transaction with TRUNCATE and FREEZE is worth its cost, in bytes of text.
const FREEZE_BYTES_MIN: u64 = 256 << 10;

/// The session settings for loading. `session_replication_role` stays as it is: nothing that it would turn off exists
/// before the post-data section.
pub const LOAD_SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; \
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
    SET synchronous_commit = off; SET standard_conforming_strings = on; SET row_security = off; \
    SET default_transaction_read_only = off; SET check_function_bodies = off; SET xmloption = content";

/// What the loaders share.
pub struct LoadPhase {
    /// Where the objects are.
    pub repository: Repository,
    /// The dump.
    pub id: BackupId,
    /// What to load.
    pub database: Arc<DatabaseManifest>,
    /// The database to load into.
    pub target: Target,
    /// Loaders at once.
    pub jobs: usize,
    /// Relations that an interrupted restore has loaded already, by place.
    pub done: BTreeSet<u32>,
    /// Relations to load, by place; none for all.
    pub wanted: Option<BTreeSet<u32>>,
    /// Relations (by place) whose storage is not the ordinary heap: they take no TRUNCATE and no FREEZE.
    pub special_storage: BTreeSet<u32>,
    /// Counters for the screen.
    pub progress: Arc<Progress>,
}

impl LoadPhase {
    fn wants(&self, relation: u32) -> bool {
        !self.done.contains(&relation)
            && self
                .wanted
                .as_ref()
                .is_none_or(|wanted| wanted.contains(&relation))
    }
}

/// Opens a session that loads rows.
///
/// # Errors
/// PostgreSQL's.
pub async fn loading_session(target: &Target, client_encoding: &str) -> Result<Session, DumpError> {
    let context = || format!("preparing to load into database '{}'", target.database());
    let mut session = connect(target).await?;
    let encoding = quote_literal(client_encoding);
    session
        .execute(&format!("SET client_encoding = {encoding}; {LOAD_SETTINGS}"))
        .await
        .context(context)?;
    Ok(session)
}

/// The encoding in which a database's rows were read.
pub fn client_encoding(database: &DatabaseManifest) -> &'static str {
    if database.properties.encoding == "SQL_ASCII" {
        "SQL_ASCII"
    } else {
        "UTF8"
    }
}

/// Loads the configuration tables of extensions, one after the other, in the manifest's order.
///
/// # Errors
/// PostgreSQL's, the store's, an object that isn't what the manifest says.
pub async fn load_configuration(phase: &LoadPhase, session: &mut Session) -> Result<(), DumpError> {
    let (mut configuration, _) = crate::database::split_data(&phase.database);
    configuration.sort_by(|a, b| a.object.name.cmp(&b.object.name));
    let task = LoadTask {
        objects: configuration,
        plain_bytes: 0,
        single_relation: None,
    };
    let mut loader = Loader {
        phase,
        session,
        transaction: false,
        rows: 0,
    };
    loader.run(&task).await
}

/// Loads everything else, in parallel. Returns how many rows.
///
/// # Errors
/// As [`load_configuration`].
pub async fn load_all(phase: LoadPhase) -> Result<u64, DumpError> {
    let phase = Arc::new(phase);
    let tasks = load_tasks(&phase.database, |relation| phase.wants(relation)).len();
    let queue: Arc<Mutex<VecDeque<usize>>> = Arc::new(Mutex::new((0..tasks).collect()));
    let mut workers = JoinSet::new();
    for _ in 0..phase.jobs.clamp(1, tasks.max(1)) {
        let (phase, queue) = (Arc::clone(&phase), Arc::clone(&queue));
        workers.spawn(async move { worker(&phase, &queue).await });
    }
    let mut rows = 0;
    while let Some(worker) = workers.join_next().await {
        rows += worker.map_err(|error| DumpError::Internal(format!("a loader died: {error}")))??;
    }
    Ok(rows)
}

async fn worker(phase: &LoadPhase, queue: &Mutex<VecDeque<usize>>) -> Result<u64, DumpError> {
    let mut session = loading_session(&phase.target, client_encoding(&phase.database)).await?;
    let tasks = load_tasks(&phase.database, |relation| phase.wants(relation));
    let mut loader = Loader {
        phase,
        session: &mut session,
        transaction: false,
        rows: 0,
    };
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(task) = next.and_then(|number| tasks.get(number)) else {
            break;
        };
        loader.run(task).await?;
    }
    let rows = loader.rows;
    session.close().await;
    Ok(rows)
}

struct Loader<'a> {
    phase: &'a LoadPhase,
    session: &'a mut Session,
    transaction: bool,
    rows: u64,
}

impl Loader<'_> {
    /// One task. A transaction ends with a relation's last row and with an object whose hash was right, so what is
    /// committed is whole, and what is noted as done is committed with it.
    async fn run(&mut self, task: &LoadTask<'_>) -> Result<(), DumpError> {
        let freeze = task.plain_bytes >= FREEZE_BYTES_MIN && self.may_freeze(task.single_relation);
        for (number, object) in task.objects.iter().enumerate() {
            let last = object.segments.last().map(|segment| segment.relation);
            self.load_object(object, freeze && number == 0, freeze).await?;
            let continues = task
                .objects
                .get(number + 1)
                .and_then(|next| next.segments.first());
            if last.is_none() || continues.map(|segment| segment.relation) != last {
                self.commit().await?;
            }
        }
        self.commit().await
    }

    fn may_freeze(&self, relation: Option<u32>) -> bool {
        let Some(place) = relation else { return false };
        let relation = self.phase.database.relations.get(place as usize);
        let ordinary = relation.is_some_and(|relation| {
            relation.load_into.is_none() && relation.kind != RelationKind::Configuration
        });
        ordinary && !self.phase.special_storage.contains(&place)
    }

    async fn load_object(
        &mut self,
        object: &DataObject,
        truncate: bool,
        freeze: bool,
    ) -> Result<(), DumpError> {
        let contents = self
            .phase
            .repository
            .contents(&self.phase.id, &object.object)
            .await?;
        let mut blocks = BlockReader::new(object, &self.phase.database.relations, contents);
        while let Some(piece) = blocks.next().await? {
            if let Piece::Begin(segment) = piece {
                self.load_block(&mut blocks, segment.relation, truncate, freeze)
                    .await?;
            }
        }
        Progress::add(&self.phase.progress.bytes_stored, object.object.stored_bytes);
        Ok(())
    }

    async fn load_block(
        &mut self,
        blocks: &mut BlockReader<'_>,
        place: u32,
        truncate: bool,
        freeze: bool,
    ) -> Result<(), DumpError> {
        let internal = || DumpError::Internal(format!("there is no relation {place}"));
        let relation = self
            .phase
            .database
            .relations
            .get(place as usize)
            .ok_or_else(internal)?;
        let wanted = self.phase.wants(place);
        let context = || format!("loading table {}", relation.name);
        let into = relation.target();
        let statement = copy_in_statement(into, &relation.columns, relation.format, freeze);
        let (before, after) = around_rows(relation.format);
        if wanted && !self.transaction {
            self.session.execute("BEGIN").await.context(context)?;
            self.transaction = true;
        }
        if wanted && truncate {
            self.session
                .execute(&format!("TRUNCATE ONLY {}", into.quoted()))
                .await
                .context(context)?;
        }
        let mut copy = if wanted {
            let mut copy = self.session.copy_in(&statement).await.context(context)?;
            copy.send(before).await.context(context)?;
            Some(copy)
        } else {
            None
        };
        let expected = loop {
            match blocks.next().await? {
                Some(Piece::Rows(rows)) => {
                    Progress::add(&self.phase.progress.bytes_done, rows.len() as u64);
                    if let Some(copy) = &mut copy {
                        copy.send(&rows).await.context(context)?;
                    }
                }
                Some(Piece::End(segment)) => break segment.rows,
                _ => return Err(DumpError::Internal("a block inside a block".to_owned())),
            }
        };
        let Some(mut copy) = copy else { return Ok(()) };
        copy.send(after).await.context(context)?;
        let found = copy.finish().await.context(context)?;
        // Triggers of an extension may turn rows of its configuration tables into updates (TimescaleDB's metadata).
        if found != expected && relation.kind != RelationKind::Configuration {
            let what = format!("rows loaded into table {}", relation.name);
            return Err(DumpError::CountMismatch {
                what,
                found,
                expected,
            });
        }
        self.rows += found;
        Progress::add(&self.phase.progress.rows, found);
        let note = mark::relation_done_statement(place, found);
        self.session
            .execute(&note)
            .await
            .context(|| "noting the progress".to_owned())?;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), DumpError> {
        if self.transaction {
            self.session
                .execute("COMMIT")
                .await
                .context(|| "committing loaded rows".to_owned())?;
            self.transaction = false;
        }
        Ok(())
    }
}
