//! The stages behind the workers: one thread puts frames into packs and writes the records of files, one task uploads both.
//! Memory is bounded by [`PACKS_MAX`] and by the pieces under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pgkeep_base::{BackupId, Progress};
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::map::{
    Extent, FileRecord, PackInfo, RECORDS_BYTES, RecordContents, RecordWriter, blocks_of,
};
use pgkeep_repository::object::{ObjectRef, SealedObject, Sealer};
use pgkeep_repository::pack::{
    BlockAddress, Fingerprint, Frame, FrameBuilder, LevelChoice, LooseBlocks, PackWriter, SealedPack,
};
use pgkeep_repository::{Access, Broken, layout};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::blocks::{BlockMapWriter, FileKey, Held, Room};
use super::pieces::{Bench, FileHead, Run, Step, StoredBlocks, Worked};
use crate::error::{Context, PhysicalError};

/// Packs in memory at once: the one being filled, and those that are uploaded or wait for it.
pub const PACKS_MAX: usize = 3;
/// Uploads at once.
const UPLOADS_MAX: usize = 2;
/// A file in more pieces than this has none of PostgreSQL's patterns, and its record would take memory.
const EXTENTS_MAX: usize = 1_000_000;

/// What goes to the packing thread: work in the order of the stream, and the end, which is said and never inferred.
pub type ToPack = mpsc::Sender<Option<JoinHandle<Result<Worked, PhysicalError>>>>;

/// What was stored.
#[derive(Debug, Default)]
pub struct Stored {
    pub packs: Vec<PackInfo>,
    pub pack_objects: Vec<ObjectRef>,
    pub records: Vec<ObjectRef>,
    pub zero_bytes: u64,
    /// In the order of the list of packs.
    pub places: Vec<PackPlace>,
    /// What the backup holds, for the next one, as far as it could be written.
    pub map: Option<BlockMapWriter>,
}

/// A pack in the list of those that the backup needs. It gets its place when a file's extent first names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackPlace {
    /// The backup's own, by its number from 1 on.
    Own(u32),
    /// One that the backup before needs, by its place in that one's list.
    Before(u32),
}

/// On its way to the repository.
enum Upload {
    Pack(u32, Box<SealedPack>, OwnedSemaphorePermit),
    Records(u32, SealedObject),
    /// All is there.
    End(Box<Stored>),
}

/// Starts both. Their outcome is that of the returned set's task; dropped, the set ends them.
pub fn start(
    destinations: &Arc<Destinations>,
    (id, prefix): (&BackupId, &str),
    bench: &Bench,
    map: Option<BlockMapWriter>,
    jobs: usize,
    progress: &Arc<Progress>,
    alive: &mpsc::Sender<()>,
) -> Result<(ToPack, JoinSet<Result<Stored, PhysicalError>>), PhysicalError> {
    let (to_pack, pieces) = mpsc::channel(jobs);
    let (to_upload, uploads) = mpsc::channel(1);
    let packer = Packer {
        access: destinations.shared_access(),
        block_bytes: bench.block_bytes(),
        permits: Arc::new(Semaphore::new(PACKS_MAX)),
        uploads: to_upload,
        pack: None,
        packs: 0,
        places: Places::default(),
        loose: bench.builder()?,
        levels: LevelChoice::default(),
        map,
        records: Vec::new(),
        record_writer: RecordWriter::default(),
        record_objects: 0,
        file: None,
        zero_bytes: 0,
    };
    let uploader = Uploader {
        destinations: Arc::clone(destinations),
        id: id.clone(),
        prefix: prefix.to_owned(),
        progress: Arc::clone(progress),
    };
    let alive = (alive.clone(), alive.clone());
    let packing = tokio::task::spawn_blocking(move || {
        let _alive = alive.0;
        packer.run(pieces)
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _alive = alive.1;
        let uploaded = uploader.run(uploads).await;
        let packed = packing.await.map_err(PhysicalError::internal)?;
        both(packed, uploaded).map(|((), stored)| stored)
    });
    Ok((to_pack, tasks))
}

/// Of two stages, the error of the one that knows why: one that stopped because the other was gone doesn't.
pub fn both<A, B>(
    first: Result<A, PhysicalError>,
    second: Result<B, PhysicalError>,
) -> Result<(A, B), PhysicalError> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(PhysicalError::StageGone), Err(error)) | (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

fn gone<T>(_: T) -> PhysicalError {
    PhysicalError::StageGone
}

fn unwritable(broken: Broken) -> PhysicalError {
    PhysicalError::Internal(format!("the record of a file can't be written: {broken}"))
}

/// The pack that is being filled.
struct Filling {
    /// In the list of packs.
    place: u32,
    writer: PackWriter,
    permit: OwnedSemaphorePermit,
}

struct Packer {
    access: Arc<Access>,
    block_bytes: u32,
    permits: Arc<Semaphore>,
    uploads: mpsc::Sender<Upload>,
    pack: Option<Filling>,
    /// Packs begun so far.
    packs: u32,
    places: Places,
    /// What is to be the next frame of the pack that is being filled.
    loose: FrameBuilder,
    /// How those are compressed best.
    levels: LevelChoice,
    map: Option<BlockMapWriter>,
    records: Vec<u8>,
    record_writer: RecordWriter,
    record_objects: u32,
    file: Option<OpenFile>,
    zero_bytes: u64,
}

/// A file whose blocks come.
struct OpenFile {
    head: FileHead,
    extents: Vec<Extent>,
    /// How many there are so far.
    blocks: u64,
    /// Where the map has them, if it does.
    room: Option<Room>,
}

/// Which packs have a place in the list.
#[derive(Default)]
struct Places {
    all: Vec<PackPlace>,
    /// Of the packs of the backup before, by their place there.
    before: BTreeMap<u32, u32>,
}

impl Places {
    fn add(&mut self, place: PackPlace) -> Result<u32, PhysicalError> {
        let number = u32::try_from(self.all.len()).map_err(PhysicalError::internal)?;
        self.all.push(place);
        Ok(number)
    }

    fn of_before(&mut self, pack: u32) -> Result<u32, PhysicalError> {
        if let Some(place) = self.before.get(&pack) {
            return Ok(*place);
        }
        let place = self.add(PackPlace::Before(pack))?;
        self.before.insert(pack, place);
        Ok(place)
    }
}

/// What the blocks of a piece are still to be found by.
struct Position<'a> {
    /// The next one of the frame.
    next: BlockAddress,
    fingerprints: &'a [Fingerprint],
}

impl Packer {
    fn run(
        mut self,
        mut pieces: mpsc::Receiver<Option<JoinHandle<Result<Worked, PhysicalError>>>>,
    ) -> Result<(), PhysicalError> {
        let runtime = tokio::runtime::Handle::current();
        while let Some(piece) = pieces.blocking_recv() {
            let Some(piece) = piece else {
                return self.finish();
            };
            let worked = runtime.block_on(piece).map_err(PhysicalError::internal)??;
            self.zero_bytes += worked.zero_bytes;
            let mut position = Position {
                next: BlockAddress::default(),
                fingerprints: &worked.fingerprints,
            };
            match worked.stored {
                StoredBlocks::None => {}
                StoredBlocks::Frame(frame) => position.next = self.add_frame(frame, &runtime)?,
                StoredBlocks::Loose(loose) => position.next = self.add_loose(&loose, &runtime)?,
            }
            for step in worked.steps {
                self.step(step, &mut position)?;
            }
        }
        Err(gone(()))
    }

    /// Puts a frame into a pack. Returns the address of its first block.
    fn add_frame(
        &mut self,
        frame: Frame,
        runtime: &tokio::runtime::Handle,
    ) -> Result<BlockAddress, PhysicalError> {
        self.finish_loose()?;
        let pack = self.pack_for(frame.entry.blocks(), runtime)?;
        Ok(BlockAddress {
            block: pack.writer.append(frame)?,
            pack: pack.place,
        })
    }

    /// Adds few blocks to those of pieces before, which become the pack's next frame together. Returns the address that the first
    /// one will have.
    fn add_loose(
        &mut self,
        loose: &LooseBlocks,
        runtime: &tokio::runtime::Handle,
    ) -> Result<BlockAddress, PhysicalError> {
        let more = self.loose.blocks() + loose.blocks();
        if self.pack.as_ref().is_some_and(|pack| !pack.writer.takes(more)) {
            self.finish_pack()?;
        }
        if !self.loose.push_loose(loose) {
            self.finish_loose()?;
            if !self.loose.push_loose(loose) {
                return Err(PhysicalError::internal(
                    "a piece has more blocks than a frame takes",
                ));
            }
        }
        let in_frame = self.loose.blocks() - loose.blocks();
        // Not another one, even if this one is full by now: the frame goes where the addresses before say.
        let pack = self.open_pack(runtime)?;
        Ok(BlockAddress {
            block: pack.writer.blocks() + in_frame,
            pack: pack.place,
        })
    }

    /// Puts the frame of what came in few blocks into its pack, where it is expected.
    fn finish_loose(&mut self) -> Result<(), PhysicalError> {
        let frame = self
            .loose
            .finish(&self.levels)
            .context(|| "compressing".to_owned())?;
        let Some(frame) = frame else { return Ok(()) };
        let pack = self.pack.as_mut();
        let pack = pack.ok_or_else(|| PhysicalError::internal("blocks belong to no pack"))?;
        pack.writer.append(frame)?;
        Ok(())
    }

    /// The pack that takes so many more blocks.
    fn pack_for(
        &mut self,
        blocks: u32,
        runtime: &tokio::runtime::Handle,
    ) -> Result<&mut Filling, PhysicalError> {
        if self.pack.as_ref().is_some_and(|pack| !pack.writer.takes(blocks)) {
            self.finish_pack()?;
        }
        self.open_pack(runtime)
    }

    /// The pack that is being filled.
    fn open_pack(&mut self, runtime: &tokio::runtime::Handle) -> Result<&mut Filling, PhysicalError> {
        if self.pack.is_none() {
            let permit = runtime.block_on(Arc::clone(&self.permits).acquire_owned());
            self.packs += 1;
            self.pack = Some(Filling {
                place: self.places.add(PackPlace::Own(self.packs))?,
                writer: PackWriter::new(&self.access, self.block_bytes)?,
                permit: permit.map_err(gone)?,
            });
        }
        self.pack.as_mut().ok_or_else(|| gone(()))
    }

    fn finish_pack(&mut self) -> Result<(), PhysicalError> {
        self.finish_loose()?;
        let Some(Filling { writer, permit, .. }) = self.pack.take() else {
            return Ok(());
        };
        let sealed = Box::new(writer.finish()?);
        let upload = Upload::Pack(self.packs, sealed, permit);
        self.uploads.blocking_send(upload).map_err(gone)
    }

    fn step(&mut self, step: Step<Vec<Run>>, position: &mut Position<'_>) -> Result<(), PhysicalError> {
        match step {
            Step::Begin(head) => {
                let key = FileKey::of(head.root, &head.path);
                let blocks = blocks_of(head.size, self.block_bytes);
                self.file = Some(OpenFile {
                    room: self.with_map(|map| map.begin(key, blocks)).flatten(),
                    head,
                    extents: Vec::new(),
                    blocks: 0,
                });
            }
            Step::Blocks(runs) => {
                let Some(mut file) = self.file.take() else {
                    return Err(PhysicalError::internal("blocks belong to no file"));
                };
                for run in runs {
                    self.run_of_blocks(run, &mut file, position)?;
                }
                if file.extents.len() > EXTENTS_MAX {
                    return Err(PhysicalError::Server {
                        message: format!("a file of the server lies in more than {EXTENTS_MAX} pieces"),
                        hint: None,
                    });
                }
                self.file = Some(file);
            }
            Step::End => {
                let Some(OpenFile { head, extents, .. }) = self.file.take() else {
                    return Err(PhysicalError::internal("a file ends that hasn't begun"));
                };
                self.record(&FileRecord {
                    root: head.root,
                    path: head.path,
                    mode: head.mode,
                    contents: RecordContents::File {
                        size: head.size,
                        modified_at: head.modified_at,
                        extents,
                    },
                })?;
            }
            Step::Whole(record) => self.record(&record)?,
        }
        Ok(())
    }

    /// Adds blocks that are alike to a file's record, and to the map.
    fn run_of_blocks(
        &mut self,
        run: Run,
        file: &mut OpenFile,
        position: &mut Position<'_>,
    ) -> Result<(), PhysicalError> {
        let from = file.blocks;
        let (at, blocks) = match run {
            Run::Zeros(blocks) => {
                file.blocks += blocks;
                extend(&mut file.extents, Extent::Zeros(blocks));
                return Ok(());
            }
            Run::Stored(blocks) => {
                let at = position.next;
                position.next.block += blocks;
                (at, blocks)
            }
            Run::Referred(BlockAddress { pack, block }, blocks) => {
                let pack = self.places.of_before(pack)?;
                (BlockAddress { pack, block }, blocks)
            }
        };
        file.blocks += u64::from(blocks);
        extend(&mut file.extents, Extent::Stored { at, blocks });
        let (fingerprints, rest) = position
            .fingerprints
            .split_at_checked(blocks as usize)
            .ok_or_else(|| PhysicalError::internal("a block has no fingerprint"))?;
        position.fingerprints = rest;
        if let Some(room) = file.room {
            let held = Held::following(at, fingerprints);
            self.with_map(|map| map.put(room, from, &held));
        }
        Ok(())
    }

    /// Does something to the map. It is given up where that fails: the backup is as good without it.
    fn with_map<T>(&mut self, work: impl FnOnce(&mut BlockMapWriter) -> std::io::Result<T>) -> Option<T> {
        match work(self.map.as_mut()?) {
            Ok(done) => Some(done),
            Err(error) => {
                tracing::warn!("what this backup holds can't be kept in cache_directory: {error}");
                self.map = None;
                None
            }
        }
    }

    fn record(&mut self, record: &FileRecord) -> Result<(), PhysicalError> {
        self.record_writer
            .append(record, self.block_bytes, &mut self.records)
            .map_err(unwritable)?;
        match self.records.len() >= RECORDS_BYTES {
            true => self.finish_records(),
            false => Ok(()),
        }
    }

    fn finish_records(&mut self) -> Result<(), PhysicalError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let mut sealer = Sealer::new(&self.access)?;
        sealer.write(&self.records)?;
        self.records.clear();
        self.record_writer = RecordWriter::default();
        self.record_objects += 1;
        let upload = Upload::Records(self.record_objects, sealer.finish()?);
        self.uploads.blocking_send(upload).map_err(gone)
    }

    fn finish(mut self) -> Result<(), PhysicalError> {
        if self.file.is_some() {
            return Err(PhysicalError::internal("a file hasn't ended"));
        }
        self.finish_pack()?;
        self.finish_records()?;
        let stored = Stored {
            zero_bytes: self.zero_bytes,
            places: self.places.all,
            map: self.map,
            ..Stored::default()
        };
        self.uploads
            .blocking_send(Upload::End(Box::new(stored)))
            .map_err(gone)
    }
}

/// Adds blocks to a file's extents, to the last one where they go on there.
fn extend(extents: &mut Vec<Extent>, next: Extent) {
    match (extents.last_mut(), next) {
        (Some(Extent::Zeros(blocks)), Extent::Zeros(more)) => *blocks += more,
        (Some(Extent::Stored { at: first, blocks }), Extent::Stored { at, blocks: more })
            if first.pack == at.pack && first.block + *blocks == at.block =>
        {
            *blocks += more;
        }
        _ => extents.push(next),
    }
}

struct Uploader {
    destinations: Arc<Destinations>,
    id: BackupId,
    prefix: String,
    progress: Arc<Progress>,
}

enum Uploaded {
    Pack(PackInfo, ObjectRef),
    Records(u32, ObjectRef),
}

impl Uploader {
    async fn run(self, mut uploads: mpsc::Receiver<Upload>) -> Result<Stored, PhysicalError> {
        let mut stored = Stored::default();
        let mut records = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut ended = false;
        while !ended || !running.is_empty() {
            tokio::select! {
                Some(done) = running.next(), if !running.is_empty() => match done? {
                    Uploaded::Pack(pack, object) => {
                        stored.packs.push(pack);
                        stored.pack_objects.push(object);
                    }
                    Uploaded::Records(number, object) => records.push((number, object)),
                },
                upload = uploads.recv(), if !ended && running.len() < UPLOADS_MAX => match upload {
                    Some(Upload::End(end)) => {
                        ended = true;
                        stored = Stored { packs: stored.packs, pack_objects: stored.pack_objects, ..*end };
                    }
                    Some(upload) => running.push(self.put(upload)),
                    None => return Err(gone(())),
                },
            }
        }
        // Uploads end in any order; places are by number.
        stored.packs.sort_by_key(|pack| pack.number);
        stored.pack_objects.sort_by(|a, b| a.name.cmp(&b.name));
        records.sort_by_key(|(number, _)| *number);
        stored.records = records.into_iter().map(|(_, object)| object).collect();
        Ok(stored)
    }

    async fn put(&self, upload: Upload) -> Result<Uploaded, PhysicalError> {
        let suffix = self.destinations.access().sealed_suffix();
        self.destinations.check_leases()?;
        match upload {
            Upload::Pack(number, pack, permit) => {
                let info = PackInfo {
                    owner: self.id.clone(),
                    number,
                    stored_bytes: pack.object.body.iter().map(|block| block.len() as u64).sum(),
                    header_bytes: pack.header_bytes,
                    index_bytes: pack.index_bytes,
                    blocks: pack.blocks,
                    hash: pack.object.hash,
                };
                let object = self
                    .destinations
                    .put_sealed(&self.prefix, &info.name(), pack.object)
                    .await?;
                drop(permit);
                Progress::add(&self.progress.bytes_stored, info.stored_bytes);
                Ok(Uploaded::Pack(info, object))
            }
            Upload::Records(number, object) => {
                let name = layout::records_object(number, suffix);
                let object = self.destinations.put_sealed(&self.prefix, &name, object).await?;
                Ok(Uploaded::Records(number, object))
            }
            Upload::End(_) => Err(PhysicalError::internal("the end is no object")),
        }
    }
}
