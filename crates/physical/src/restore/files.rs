//! The files of a backup: made as holes, then filled pack by pack, several packs at once.
//!
//! Memory doesn't grow with the backup: the records are read once to make the files and to count what each pack holds, and
//! then again for every group of packs that has no more than [`WRITES_MAX`] pieces.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::TryStreamExt;
use pgkeep_base::Progress;
use pgkeep_repository::map::{Extent, FileRecord, PackInfo, RecordContents, RecordReader};
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::pack::PackReader;
use pgkeep_repository::{Repository, RepositoryError};

use super::delta::{self, Comparison, Existing};
use super::is_of_a_restore;
use super::place::Place;
use super::plan::{self, RestorePlan};
use crate::backup::CONTROL_FILE;
use crate::error::{Context, PhysicalError};
use crate::manifest::key_of;

/// Pieces of files that are held in memory at once: 24 bytes each, and the paths of their files.
const WRITES_MAX: u64 = 500_000;
/// Packs fetched at once, at most: each takes up to its size twice.
const PACKS_AT_ONCE_MAX: usize = 3;
/// Until all is there, the control file is called so: without one no server starts.
pub const CONTROL_FILE_ASIDE: &str = "global/pg_control.pgkeep";

/// Blocks of a pack that belong into a file.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// The first one's number in the pack.
    pub first: u32,
    /// How many.
    pub blocks: u32,
    /// The file's place in the group's paths.
    pub file: u32,
    /// Where they begin in it, in blocks.
    pub at: u64,
}

/// What a restore of files stands on.
pub struct Files<'a> {
    pub repository: &'a Repository,
    pub plan: &'a RestorePlan,
    pub place: &'a Arc<Place>,
    pub progress: &'a Arc<Progress>,
}

/// What was made.
#[derive(Debug, Default, Clone, Copy)]
pub struct FilesMade {
    pub files: u64,
    pub bytes: u64,
    /// What was there and isn't in the backup.
    pub removed: u64,
}

impl Files<'_> {
    /// Makes and fills all files.
    pub async fn restore(&self) -> Result<FilesMade, PhysicalError> {
        let manifest = &self.plan.manifest;
        let table = self.repository.pack_table(&self.plan.id, &manifest.packs).await?;
        self.progress
            .bytes_total
            .store(self.plan.bytes(), Ordering::Relaxed);
        self.progress.set_phase("making files");
        let mut made = FilesMade {
            removed: self.remove_strangers().await?,
            ..FilesMade::default()
        };
        let block_bytes = manifest.block_bytes;
        let mut counts = vec![0_u64; table.packs.len()];
        for object in &manifest.files {
            let place = Arc::clone(self.place);
            let made_here = self
                .records(object, move |record| make(&place, record, block_bytes))
                .await?;
            for (record, ()) in made_here {
                let RecordContents::File { size, extents, .. } = &record.contents else {
                    continue;
                };
                made.files += 1;
                made.bytes += size;
                for extent in extents {
                    if let Extent::Stored { at, .. } = extent {
                        let count = counts.get_mut(at.pack as usize);
                        *count
                            .ok_or_else(|| self.damaged("a file lies in a pack that it doesn't have"))? += 1;
                    }
                }
            }
        }
        self.progress.set_phase("restoring files");
        for group in groups(&counts) {
            self.group(&table.packs, group).await?;
        }
        Ok(made)
    }

    /// Where what is there is replaced, what isn't in the backup goes first: it may be in the way.
    async fn remove_strangers(&self) -> Result<u64, PhysicalError> {
        if self.place.existing() == Existing::Refuse {
            return Ok(0);
        }
        let strangers = plan::strangers(self.repository, self.plan).await?;
        let removing = tokio::task::spawn_blocking(move || {
            strangers
                .iter()
                .try_for_each(|stranger| delta::remove(stranger))?;
            Ok(strangers.len() as u64)
        });
        removing.await.map_err(PhysicalError::internal)?
    }

    /// The records of one object, each with what `work` made of it. Off the async threads.
    pub async fn records<T: Send + 'static>(
        &self,
        object: &ObjectRef,
        work: impl Fn(&FileRecord) -> Result<T, PhysicalError> + Send + 'static,
    ) -> Result<Vec<(FileRecord, T)>, PhysicalError> {
        let contents = self.repository.file_records(&self.plan.id, object).await?;
        let block_bytes = self.plan.manifest.block_bytes;
        let (id, name) = (self.plan.manifest.id.clone(), object.name.clone());
        let working = tokio::task::spawn_blocking(move || {
            RecordReader::new(&contents, block_bytes)
                .map(|record| {
                    let record = record.map_err(|broken| PhysicalError::Damaged {
                        id: id.clone(),
                        reason: format!("{name}: {broken}"),
                    })?;
                    let worked = work(&record)?;
                    Ok((record, worked))
                })
                .collect()
        });
        working.await.map_err(PhysicalError::internal)?
    }

    /// Where what a record names lies until all is there; of what is passed over, nothing.
    pub fn path(place: &Place, record: &FileRecord) -> Result<Option<PathBuf>, PhysicalError> {
        match is_passed_over(record) {
            true => Ok(None),
            false => place.path(record.root, path_of(record)).map(Some),
        }
    }

    fn damaged(&self, reason: &str) -> PhysicalError {
        PhysicalError::Damaged {
            id: self.plan.manifest.id.clone(),
            reason: reason.to_owned(),
        }
    }

    /// Fills what lies in some of the packs.
    async fn group(&self, packs: &[PackInfo], group: Range<usize>) -> Result<(), PhysicalError> {
        let mut writes: Vec<Vec<Write>> = vec![Vec::new(); group.len()];
        let mut paths: Vec<PathBuf> = Vec::new();
        for object in &self.plan.manifest.files {
            for (record, ()) in self.records(object, |_| Ok(())).await? {
                self.collect(&record, &group, &mut writes, &mut paths)?;
            }
        }
        let paths = Arc::new(paths);
        let jobs = self.plan.options.jobs.clamp(1, PACKS_AT_ONCE_MAX);
        let work = packs.get(group).unwrap_or_default().iter().zip(writes);
        let work = work
            .filter(|(_, writes)| !writes.is_empty())
            .map(Ok::<_, PhysicalError>);
        futures::stream::iter(work)
            .try_for_each_concurrent(jobs, |(pack, writes)| self.pack(pack, writes, &paths))
            .await
    }

    fn collect(
        &self,
        record: &FileRecord,
        group: &Range<usize>,
        writes: &mut [Vec<Write>],
        paths: &mut Vec<PathBuf>,
    ) -> Result<(), PhysicalError> {
        let RecordContents::File { extents, .. } = &record.contents else {
            return Ok(());
        };
        if is_passed_over(record) {
            return Ok(());
        }
        let mut position = 0;
        let mut file = None;
        for extent in extents {
            if let Extent::Stored { at, blocks } = extent
                && group.contains(&(at.pack as usize))
            {
                let file = match file {
                    Some(file) => file,
                    None => {
                        paths.push(self.place.path(record.root, path_of(record))?);
                        let place = u32::try_from(paths.len() - 1).map_err(PhysicalError::internal)?;
                        *file.insert(place)
                    }
                };
                if let Some(writes) = writes.get_mut(at.pack as usize - group.start) {
                    writes.push(Write {
                        first: at.block,
                        blocks: *blocks,
                        file,
                        at: position,
                    });
                }
            }
            position += extent.blocks();
        }
        Ok(())
    }

    async fn pack(
        &self,
        pack: &PackInfo,
        mut writes: Vec<Write>,
        paths: &Arc<Vec<PathBuf>>,
    ) -> Result<(), PhysicalError> {
        writes.sort_by_key(|write| write.first);
        if self.place.existing() != Existing::Refuse {
            writes = self.differing(pack, writes, paths).await?;
            if writes.is_empty() {
                return Ok(());
            }
        }
        let reader = self.repository.open_pack(pack).await?;
        Progress::add(&self.progress.bytes_stored, pack.stored_bytes);
        let (paths, progress) = (Arc::clone(paths), Arc::clone(self.progress));
        let (key, block_bytes) = (
            pack.key(self.repository.cluster()),
            self.plan.manifest.block_bytes,
        );
        let filling = tokio::task::spawn_blocking(move || {
            let filler = Filler {
                key,
                reader,
                paths,
                progress,
            };
            match filler.reader.index().block_bytes() == block_bytes {
                true => filler.fill(&writes),
                false => Err(filler.broken("its blocks are of another size")),
            }
        });
        filling.await.map_err(PhysicalError::internal)?
    }
}

impl Files<'_> {
    /// Of writes, those blocks that aren't in their files yet.
    async fn differing(
        &self,
        pack: &PackInfo,
        writes: Vec<Write>,
        paths: &Arc<Vec<PathBuf>>,
    ) -> Result<Vec<Write>, PhysicalError> {
        let index = self.repository.pack_index(pack).await?;
        let key = key_of(&self.plan.manifest.fingerprint_key);
        let key = key.ok_or_else(|| self.damaged("its key of fingerprints is none"))?;
        if index.block_bytes() != self.plan.manifest.block_bytes {
            return Err(self.damaged("a pack's blocks are of another size"));
        }
        let (paths, progress) = (Arc::clone(paths), Arc::clone(self.progress));
        let comparing = tokio::task::spawn_blocking(move || {
            let path = |file: u32| {
                let path = paths.get(file as usize).cloned();
                path.ok_or_else(|| PhysicalError::internal("a file has no path"))
            };
            let differing = Comparison::new(&index, &key).differing(&writes, path)?;
            let blocks =
                |writes: &[Write]| -> u64 { writes.iter().map(|write| u64::from(write.blocks)).sum() };
            let same = blocks(&writes) - blocks(&differing);
            Progress::add(&progress.bytes_done, same * u64::from(index.block_bytes()));
            Ok(differing)
        });
        comparing.await.map_err(PhysicalError::internal)?
    }
}

/// Packs one after another whose pieces are few enough to be held in memory; a single one may have more.
fn groups(counts: &[u64]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for (place, count) in counts.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if sum + count <= WRITES_MAX => group.end = place + 1,
            _ => {
                groups.push(place..place + 1);
                sum = 0;
            }
        }
        sum += count;
    }
    groups
}

/// What belongs to another moment of the server, or to another restore.
fn is_passed_over(record: &FileRecord) -> bool {
    const SIGNALS: [&[u8]; 2] = [b"standby.signal", b"recovery.signal"];
    record.root == pgkeep_repository::map::ROOT_DATA
        && (is_of_a_restore(&record.path) || SIGNALS.contains(&record.path.as_slice()))
}

fn path_of(record: &FileRecord) -> &[u8] {
    let is_control_file = record.root == pgkeep_repository::map::ROOT_DATA && record.path == CONTROL_FILE;
    match is_control_file {
        true => CONTROL_FILE_ASIDE.as_bytes(),
        false => &record.path,
    }
}

/// Makes what a record names: a file with holes where it is to be zeros, and elsewhere with what it has.
fn make(place: &Place, record: &FileRecord, block_bytes: u32) -> Result<(), PhysicalError> {
    let Some(path) = Files::path(place, record)? else {
        return Ok(());
    };
    match &record.contents {
        RecordContents::Directory => place.directory(&path, record.mode),
        RecordContents::File { size, extents, .. } => {
            let held = place.file_over(&path, record.mode, *size)?;
            zeros(extents, block_bytes, held).try_for_each(|(at, bytes)| delta::zero(&path, at, bytes))
        }
        // None of the readers stores one, and it would lead writes out of the directory.
        RecordContents::Link { .. } => Err(PhysicalError::Refused {
            message: format!(
                "the backup has a link at {}, which this version can't restore",
                path.display()
            ),
            hint: "restore with the pgkeep that wrote it, or a later one".to_owned(),
        }),
    }
}

/// Where a file is to be zeros, as far as it held something: position and length in bytes.
fn zeros(extents: &[Extent], block_bytes: u32, held: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut position = 0_u64;
    extents.iter().filter_map(move |extent| {
        let at = position;
        position = position.saturating_add(extent.blocks().saturating_mul(u64::from(block_bytes)));
        let end = position.min(held);
        (matches!(extent, Extent::Zeros(_)) && at < end).then(|| (at, end - at))
    })
}

/// Fills files with one pack's blocks.
struct Filler {
    key: String,
    reader: PackReader,
    paths: Arc<Vec<PathBuf>>,
    progress: Arc<Progress>,
}

impl Filler {
    fn broken(&self, reason: impl std::fmt::Display) -> PhysicalError {
        PhysicalError::Repository(RepositoryError::Malformed {
            key: self.key.clone(),
            reason: reason.to_string(),
        })
    }

    /// `writes` are in the order of the pack, so that each frame is decompressed once.
    fn fill(&self, writes: &[Write]) -> Result<(), PhysicalError> {
        let block_bytes = self.reader.index().block_bytes();
        let mut open: Option<(u32, File)> = None;
        let mut frame: Option<(usize, Vec<u8>, Vec<Range<usize>>)> = None;
        for write in writes {
            let (mut block, end) = (write.first, write.first.saturating_add(write.blocks));
            let mut at = write.at * u64::from(block_bytes);
            if open.as_ref().is_none_or(|(file, _)| *file != write.file) {
                open = Some((write.file, self.open(write.file)?));
            }
            let Some((_, file)) = &open else { continue };
            while block < end {
                let missing = "a file lies in a block that it doesn't have";
                let (number, first) = self
                    .reader
                    .index()
                    .frame_of(block)
                    .ok_or_else(|| self.broken(missing))?;
                if frame.as_ref().is_none_or(|(current, ..)| *current != number) {
                    let contents = self.reader.frame(number).map_err(|broken| self.broken(broken))?;
                    let entry = self.reader.index().frames().get(number);
                    let ranges = entry.map(|entry| entry.block_ranges(block_bytes));
                    frame = Some((number, contents, ranges.unwrap_or_default()));
                }
                let Some((_, contents, ranges)) = &frame else {
                    continue;
                };
                let from = (block - first) as usize;
                let to = (end - first).min(u32::try_from(ranges.len()).unwrap_or(u32::MAX)) as usize;
                let run = ranges.get(from..to).unwrap_or_default();
                let bytes = run.first().zip(run.last());
                let bytes = bytes.and_then(|(first, last)| contents.get(first.start..last.end));
                let bytes = bytes.ok_or_else(|| self.broken(missing))?;
                self.write(file, write.file, bytes, at)?;
                at += bytes.len() as u64;
                block = first + u32::try_from(to).unwrap_or(u32::MAX);
            }
        }
        Ok(())
    }

    fn path(&self, file: u32) -> Result<&Path, PhysicalError> {
        let path = self.paths.get(file as usize).map(PathBuf::as_path);
        path.ok_or_else(|| PhysicalError::internal("a file has no path"))
    }

    fn open(&self, file: u32) -> Result<File, PhysicalError> {
        let path = self.path(file)?;
        let opened = OpenOptions::new().write(true).open(path);
        opened.context(|| format!("opening {}", path.display()))
    }

    fn write(&self, file: &File, number: u32, bytes: &[u8], at: u64) -> Result<(), PhysicalError> {
        let path = self.path(number)?;
        file.write_all_at(bytes, at)
            .context(|| format!("writing {}", path.display()))?;
        Progress::add(&self.progress.bytes_done, bytes.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_held_is_made_zeros() {
        let at = pgkeep_repository::pack::BlockAddress::default();
        let extents = [
            Extent::Zeros(2),
            Extent::Stored { at, blocks: 3 },
            Extent::Zeros(10),
        ];
        let found = |held| zeros(&extents, 1024, held).collect::<Vec<_>>();
        assert_eq!(found(0), []);
        assert_eq!(found(1000), [(0, 1000)]);
        assert_eq!(found(4096), [(0, 2048)]);
        assert_eq!(found(6000), [(0, 2048), (5120, 880)]);
        assert_eq!(found(u64::MAX), [(0, 2048), (5120, 10_240)]);
    }

    #[test]
    fn groups_hold_every_pack_once_and_not_too_much() {
        for counts in [
            vec![],
            vec![0, 0, 0],
            vec![WRITES_MAX * 2, 1, 1],
            vec![1, WRITES_MAX, 1, WRITES_MAX - 1, 1],
            vec![200_000; 20],
        ] {
            let groups = groups(&counts);
            let all: Vec<usize> = groups.iter().cloned().flatten().collect();
            assert_eq!(all, (0..counts.len()).collect::<Vec<_>>());
            for group in groups {
                let sum: u64 = counts[group.clone()].iter().sum();
                assert!(sum <= WRITES_MAX || group.len() == 1, "{counts:?} {group:?}");
            }
        }
    }
}
