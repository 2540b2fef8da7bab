//! The rows: parallel COPY on one exported snapshot, straight into the repository.
//!
//! Each worker has a session, a packer thread and an uploader; bounded channels between them. What a worker may not
//! lock at once is handed back and read by the holder of the snapshot, which has the lock already.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pgkeep_pg::{Session, Target};
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::object::BLOCK_BYTES;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::blocks::{copy_in_statement, copy_out_statement};
use crate::catalog::CatalogRelation;
use crate::error::{Context, DumpError};
use crate::manifest::{DataObject, RelationKind, RowFormat, Segment};
use crate::pack::{self, PackInput, PackOutput, PartLimits, RowDigest};
use crate::reuse::Held;
use crate::snapshot::{self, LockedSnapshot, SQLSTATE_LOCK_NOT_AVAILABLE};
use pgkeep_base::Progress;

/// A table of at least this size on disk gets objects of its own, in bytes.
const OWN_OBJECT_BYTES_MIN: u64 = 8 << 20;
/// Smaller ones share objects, up to this many of them.
const BUNDLE_RELATIONS_MAX: usize = 500;
/// Memory for objects being built, waiting and being uploaded, over all workers, in bytes.
pub(crate) const OBJECT_MEMORY_BYTES: usize = 96 << 20;
/// An object is cut at this size at the latest, in bytes as stored. One PUT; see shared figures in docs/FORMAT.md.
const PART_BYTES_MAX: usize = 16 << 20;
pub(crate) const PART_BYTES_MIN: usize = 2 << 20;
/// Objects that a worker holds at once: one built, one waiting, one being uploaded.
pub(crate) const OBJECTS_PER_WORKER: usize = 3;
/// Contents of one object at most, in bytes.
const PART_PLAIN_BYTES_MAX: u64 = 1 << 30;
/// Row buffers between a session and its packer.
const BUFFERS_WAITING_MAX: usize = 4;

/// Everything the workers share.
pub struct DataPhase {
    /// Where the objects go.
    pub destinations: Arc<Destinations>,
    /// The dump's folder, with the slash at the end.
    pub prefix: String,
    /// The database's folder in it.
    pub folder: String,
    /// How to connect to the database.
    pub target: Target,
    /// The exported snapshot's id.
    pub snapshot_id: String,
    /// The relations to read, in the manifest's order.
    pub relations: Vec<CatalogRelation>,
    /// Their sizes on disk, in bytes.
    pub sizes: Vec<u64>,
    /// The encoding of the rows.
    pub client_encoding: String,
    /// What an earlier dump holds of them, by their place.
    pub held: HashMap<u32, Held>,
    /// How many read at once.
    pub jobs: usize,
    /// Counters for the screen.
    pub progress: Arc<Progress>,
    /// Closed when the last worker has gone: see [`crate::run::Run::alive`].
    #[expect(dead_code, reason = "that it goes away is what is waited for")]
    pub alive: mpsc::Sender<()>,
}

/// What was read of one relation.
#[derive(Debug, Clone, Copy)]
pub struct RelationRead {
    /// Its rows.
    pub rows: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// BLAKE3 of them.
    pub hash: blake3::Hash,
}

/// What all workers found.
#[derive(Debug, Default)]
pub struct DataRead {
    /// By the relation's place.
    pub relations: BTreeMap<u32, RelationRead>,
    /// In the order of their names.
    pub objects: Vec<DataObject>,
}

type Task = Vec<u32>;

struct Shared {
    phase: DataPhase,
    queue: Mutex<VecDeque<Task>>,
    handed_back: Mutex<Vec<Task>>,
    next_object: AtomicU32,
    limits: PartLimits,
}

impl Shared {
    fn relation(&self, place: u32) -> Result<&CatalogRelation, DumpError> {
        let relation = self.phase.relations.get(place as usize);
        relation.ok_or_else(|| DumpError::Internal(format!("there is no relation {place}")))
    }

    /// `reading table game.events of database 'app'`
    fn doing(&self, what: &str, relation: &CatalogRelation) -> String {
        let database = self.phase.target.database();
        format!("{what} table {} of database '{database}'", relation.name)
    }

    fn next_task(&self) -> Option<Task> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    fn object_name(&self, format: RowFormat) -> String {
        let number = self.next_object.fetch_add(1, Ordering::Relaxed) + 1;
        let kind = match format {
            RowFormat::Text => "sql",
            RowFormat::Binary => "copy",
        };
        let suffix = self.phase.destinations.access().sealed_suffix();
        format!("{}/{number:06}.{kind}{suffix}", self.phase.folder)
    }
}

/// Reads all relations under the snapshot and stores their rows.
///
/// # Errors
/// PostgreSQL's, the store's; a count that doesn't agree.
pub async fn read_all(phase: DataPhase, holder: &mut LockedSnapshot) -> Result<DataRead, DumpError> {
    let tasks = plan(&phase.relations, &phase.sizes);
    let jobs = phase.jobs.clamp(1, tasks.len().max(1));
    let per_object = OBJECT_MEMORY_BYTES / (OBJECTS_PER_WORKER * jobs);
    let limits = PartLimits {
        stored_bytes_max: per_object.clamp(PART_BYTES_MIN, PART_BYTES_MAX),
        plain_bytes_max: PART_PLAIN_BYTES_MAX,
    };
    let shared = Arc::new(Shared {
        phase,
        queue: Mutex::new(tasks.into()),
        handed_back: Mutex::new(Vec::new()),
        next_object: AtomicU32::new(0),
        limits,
    });
    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        workers.spawn(worker(Arc::clone(&shared)));
    }
    let mut read = DataRead::default();
    // The first failure drops the set, which stops the others.
    while let Some(worker) = workers.join_next().await {
        let part = worker.map_err(|error| DumpError::Internal(format!("a reader died: {error}")))??;
        read.relations.extend(part.relations);
        read.objects.extend(part.objects);
    }
    let handed_back = std::mem::take(&mut *shared.handed_back.lock().unwrap_or_else(PoisonError::into_inner));
    if !handed_back.is_empty() {
        let part = read_handed_back(&shared, &mut holder.session, handed_back).await?;
        read.relations.extend(part.relations);
        read.objects.extend(part.objects);
    }
    read.objects.sort_by(|a, b| a.object.name.cmp(&b.object.name));
    Ok(read)
}

/// Whether a relation has objects of its own.
pub fn has_own_objects(relation: &CatalogRelation, size_bytes: u64) -> bool {
    let chunk = matches!(relation.kind, RelationKind::Chunk | RelationKind::CompressedChunk);
    relation.kind != RelationKind::Configuration && (chunk || size_bytes >= OWN_OBJECT_BYTES_MIN)
}

/// Large relations and chunks by themselves, small ones in bundles, configuration tables together and in their order;
/// the most work first.
fn plan(relations: &[CatalogRelation], sizes: &[u64]) -> Vec<Task> {
    let mut configuration = Task::new();
    let mut tasks: Vec<(u64, Task)> = Vec::new();
    let mut bundle = (0_u64, Task::new());
    for (place, (relation, size)) in (0_u32..).zip(relations.iter().zip(sizes)) {
        if relation.data_excluded {
        } else if relation.kind == RelationKind::Configuration {
            configuration.push(place);
        } else if has_own_objects(relation, *size) {
            tasks.push((*size, vec![place]));
        } else {
            bundle.0 += size;
            bundle.1.push(place);
            if bundle.0 >= OWN_OBJECT_BYTES_MIN || bundle.1.len() >= BUNDLE_RELATIONS_MAX {
                tasks.push(std::mem::take(&mut bundle));
            }
        }
    }
    tasks.push(bundle);
    tasks.push((0, configuration));
    tasks.retain(|(_, task)| !task.is_empty());
    tasks.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    tasks.into_iter().map(|(_, task)| task).collect()
}

async fn worker(shared: Arc<Shared>) -> Result<DataRead, DumpError> {
    let mut session = snapshot::reading_session(&shared.phase.target).await?;
    let mut pipeline = Pipeline::start(&shared);
    while let Some(task) = shared.next_task() {
        match read_task(&shared, &mut session, &mut pipeline, &task).await {
            Ok(()) => {}
            Err(TaskError::NotLocked) => {
                session
                    .execute("ROLLBACK")
                    .await
                    .context(|| "handing a table back".to_owned())?;
                shared
                    .handed_back
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(task);
            }
            Err(TaskError::Pipeline) => return Err(pipeline.failure().await),
            Err(TaskError::Failed(error)) => return Err(error),
        }
    }
    session.close().await;
    pipeline.finish().await
}

/// The holder reads what nobody else could lock: it has had the locks since before the snapshot.
async fn read_handed_back(
    shared: &Arc<Shared>,
    session: &mut Session,
    tasks: Vec<Task>,
) -> Result<DataRead, DumpError> {
    let mut pipeline = Pipeline::start(shared);
    for task in tasks {
        match read_relations(shared, session, &mut pipeline, &task).await {
            Ok(()) => {}
            Err(TaskError::Pipeline) => return Err(pipeline.failure().await),
            Err(TaskError::NotLocked) => {
                return Err(DumpError::Internal("the holder lost its locks".to_owned()));
            }
            Err(TaskError::Failed(error)) => return Err(error),
        }
    }
    pipeline.finish().await
}

enum TaskError {
    /// Another session waits for, or has, a lock that reading conflicts with.
    NotLocked,
    /// A later stage failed; it knows why.
    Pipeline,
    Failed(DumpError),
}

impl TaskError {
    fn of_rows(self, relation: &CatalogRelation) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(error.of_rows(&relation.name, relation.format)),
            other => other,
        }
    }
}

impl From<DumpError> for TaskError {
    fn from(error: DumpError) -> Self {
        Self::Failed(error)
    }
}

async fn read_task(
    shared: &Shared,
    session: &mut Session,
    pipeline: &mut Pipeline,
    task: &Task,
) -> Result<(), TaskError> {
    let context = || "importing the snapshot".to_owned();
    let import = format!("SET TRANSACTION SNAPSHOT '{}'", shared.phase.snapshot_id);
    session
        .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .context(context)?;
    session.execute(&import).await.context(context)?;
    let mut relations = Vec::with_capacity(task.len());
    for place in task {
        relations.push(shared.relation(*place)?.clone());
    }
    let locked = session
        .execute(&snapshot::lock_statement(&relations, "NOWAIT"))
        .await;
    if let Err(error) = locked {
        if error.sqlstate() == Some(SQLSTATE_LOCK_NOT_AVAILABLE) {
            return Err(TaskError::NotLocked);
        }
        return Err(TaskError::Failed(DumpError::Pg {
            context: "locking tables for reading".to_owned(),
            source: error,
        }));
    }
    read_relations(shared, session, pipeline, task).await?;
    session
        .execute("COMMIT")
        .await
        .context(|| "ending the reading of tables".to_owned())?;
    Ok(())
}

async fn read_relations(
    shared: &Shared,
    session: &mut Session,
    pipeline: &mut Pipeline,
    task: &Task,
) -> Result<(), TaskError> {
    for place in task {
        let relation = shared.relation(*place)?;
        let size = shared.phase.sizes.get(*place as usize).copied().unwrap_or(0);
        let of_rows = |error: TaskError| error.of_rows(relation);
        let held = take_over(shared, session, pipeline, *place, size).await;
        let rows = match held.map_err(of_rows)? {
            Some(rows) => rows,
            None => {
                pipeline
                    .send(PackInput::Begin {
                        relation: *place,
                        format: relation.format,
                        copy_line: copy_in_line(relation),
                    })
                    .await?;
                let rows = read_relation(shared, session, pipeline, relation).await;
                let rows = rows.map_err(of_rows)?;
                pipeline.send(PackInput::End).await?;
                pipeline.counted.insert(*place, rows);
                rows
            }
        };
        Progress::add(&shared.phase.progress.relations_done, 1);
        Progress::add(&shared.phase.progress.rows, rows);
        Progress::add(&shared.phase.progress.bytes_done, size);
    }
    pipeline.send(PackInput::Cut).await
}

/// Reads and hashes a relation that seems unchanged, under the same snapshot. If an earlier dump holds just these rows, its
/// objects are taken over, and the number of rows is returned; otherwise all is to be read again.
async fn take_over(
    shared: &Shared,
    session: &mut Session,
    pipeline: &mut Pipeline,
    place: u32,
    size: u64,
) -> Result<Option<u64>, TaskError> {
    let Some(held) = shared
        .phase
        .held
        .get(&place)
        .filter(|held| held.seems_unchanged(size))
    else {
        return Ok(None);
    };
    let relation = shared.relation(place)?;
    let context = || format!("{} with the dump before", shared.doing("comparing", relation));
    let mut copy = session
        .copy_out(&reading_statement(relation))
        .await
        .context(context)?;
    let mut digest = RowDigest::new(relation.format);
    let mut buffer = pipeline.buffer();
    loop {
        buffer.clear();
        let more = copy.read_into(&mut buffer, BLOCK_BYTES).await.context(context)?;
        digest.add(&buffer).map_err(DumpError::from)?;
        if !more {
            break;
        }
    }
    let counted = copy.finish().await.context(context)?;
    let read = digest.finish().map_err(DumpError::from)?;
    if read.rows != counted {
        return Err(TaskError::Failed(DumpError::CountMismatch {
            what: format!("rows compared of table {}", relation.name),
            found: read.rows,
            expected: counted,
        }));
    }
    let Some(objects) = held.take_over(&read, place) else {
        return Ok(None);
    };
    pipeline.reused.objects.extend(objects);
    pipeline.reused.relations.insert(place, read);
    Ok(Some(counted))
}

async fn read_relation(
    shared: &Shared,
    session: &mut Session,
    pipeline: &mut Pipeline,
    relation: &CatalogRelation,
) -> Result<u64, TaskError> {
    let context = || shared.doing("reading", relation);
    let mut copy = session
        .copy_out(&reading_statement(relation))
        .await
        .context(context)?;
    loop {
        let mut buffer = pipeline.buffer();
        let more = copy.read_into(&mut buffer, BLOCK_BYTES).await.context(context)?;
        pipeline.send(PackInput::Rows(buffer)).await?;
        if !more {
            break;
        }
    }
    Ok(copy.finish().await.context(context)?)
}

fn reading_statement(relation: &CatalogRelation) -> String {
    if relation.condition.is_empty() {
        return copy_out_statement(&relation.name, &relation.columns, relation.format);
    }
    format!(
        "COPY (SELECT {} FROM ONLY {} {}) TO STDOUT",
        relation.columns,
        relation.name.quoted(),
        relation.condition
    )
}

fn copy_in_line(relation: &CatalogRelation) -> String {
    format!(
        "{};",
        copy_in_statement(
            relation.load_into.as_ref().unwrap_or(&relation.name),
            &relation.columns,
            RowFormat::Text,
            false
        )
    )
}

/// A worker's later stages.
struct Pipeline {
    input: mpsc::Sender<PackInput>,
    buffers: mpsc::Receiver<Vec<u8>>,
    /// One task, which ends with the pipeline: nothing may be stored for a dump that was given up.
    uploader: JoinSet<Result<DataRead, DumpError>>,
    /// What the server says it sent, by the relation's place.
    counted: BTreeMap<u32, u64>,
    /// What needn't be stored.
    reused: DataRead,
}

impl Pipeline {
    fn start(shared: &Arc<Shared>) -> Self {
        let (input, pack_input) = mpsc::channel(BUFFERS_WAITING_MAX);
        let (pack_output, objects) = mpsc::channel(1);
        let (used, buffers) = mpsc::channel(BUFFERS_WAITING_MAX + 2);
        let access = shared.phase.destinations.shared_access();
        let (encoding, limits) = (shared.phase.client_encoding.clone(), shared.limits);
        tokio::task::spawn_blocking(move || {
            pack::run(access, &encoding, limits, pack_input, pack_output, used)
        });
        let mut uploader = JoinSet::new();
        uploader.spawn(upload(Arc::clone(shared), objects));
        Self {
            input,
            buffers,
            uploader,
            counted: BTreeMap::new(),
            reused: DataRead::default(),
        }
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.buffers
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4))
    }

    async fn send(&self, input: PackInput) -> Result<(), TaskError> {
        self.input.send(input).await.map_err(|_| TaskError::Pipeline)
    }

    /// Why a later stage has gone.
    async fn failure(self) -> DumpError {
        match self.uploaded().await {
            Err(error) => error,
            Ok(_) => DumpError::Internal("the packer died".to_owned()),
        }
    }

    async fn uploaded(self) -> Result<(DataRead, BTreeMap<u32, u64>), DumpError> {
        let Self {
            input,
            mut uploader,
            counted,
            ..
        } = self;
        drop(input);
        match uploader.join_next().await {
            Some(Ok(read)) => Ok((read?, counted)),
            Some(Err(error)) => Err(DumpError::Internal(format!("the uploader died: {error}"))),
            None => Err(DumpError::Internal("there is no uploader".to_owned())),
        }
    }

    /// Waits for everything to be stored, and compares what the server counted with what was packed.
    async fn finish(mut self) -> Result<DataRead, DumpError> {
        let reused = std::mem::take(&mut self.reused);
        let (mut read, counted) = self.uploaded().await?;
        for (place, expected) in &counted {
            let found = read.relations.get(place).map(|relation| relation.rows);
            if found != Some(*expected) {
                let what = format!("rows packed of relation {place}");
                return Err(DumpError::CountMismatch {
                    what,
                    found: found.unwrap_or(0),
                    expected: *expected,
                });
            }
        }
        read.relations.extend(reused.relations);
        read.objects.extend(reused.objects);
        Ok(read)
    }
}

async fn upload(shared: Arc<Shared>, mut objects: mpsc::Receiver<PackOutput>) -> Result<DataRead, DumpError> {
    let mut read = DataRead::default();
    while let Some(output) = objects.recv().await {
        match output {
            PackOutput::Object { sealed, segments } => {
                let object = store_object(&shared, sealed, segments).await?;
                read.objects.push(object);
            }
            PackOutput::RelationDone {
                relation,
                read: found,
            } => {
                read.relations.insert(relation, found);
            }
            PackOutput::Failed(error) => return Err(error.into()),
        }
    }
    Ok(read)
}

async fn store_object(
    shared: &Shared,
    sealed: pgkeep_repository::object::SealedObject,
    segments: Vec<Segment>,
) -> Result<DataObject, DumpError> {
    let first = segments.first().map(|segment| shared.relation(segment.relation));
    let format = first.transpose()?.map(|relation| relation.format);
    let name = shared.object_name(format.unwrap_or_default());
    let object = shared
        .phase
        .destinations
        .put_sealed(&shared.phase.prefix, &name, sealed)
        .await?;
    Progress::add(&shared.phase.progress.bytes_stored, object.stored_bytes);
    Ok(DataObject { object, segments })
}
