//! The backup before, whose blocks a new one refers to: which one it is, and what it holds at each place.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use futures::StreamExt;
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::backups::BackupEntry;
use pgkeep_repository::map::{
    Extent, FileRecord, PackInfo, PackTable, RecordContents, RecordReader, blocks_of,
};
use pgkeep_repository::pack::{BlockAddress, Fingerprint, PackIndex};
use pgkeep_repository::{Repository, RepositoryError, layout};

use super::blocks::{BlockMap, BlockMapWriter, FileKey, Held};
use super::cache::{CacheFiles, Cached, Facts};
use super::fragments::is_given_up;
use crate::error::{Context, PhysicalError};
use crate::manifest::BaseManifest;
use crate::manifest::key_of;
use crate::read::read_manifest;

/// Of the backups before, so many are looked at for one that suits.
const CANDIDATES_MAX: usize = 20;
/// Indexes of packs fetched at once; each has up to a megabyte.
const INDEXES_AT_ONCE: usize = 8;
const FINGERPRINT_BYTES: u64 = size_of::<Fingerprint>() as u64;

/// What a new backup's blocks must have in common with an earlier one's, to refer to them.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub system_identifier: u64,
    pub block_bytes: u32,
    pub recipients: Vec<String>,
}

impl Wanted {
    fn fits(&self, facts: &Facts) -> bool {
        facts.system_identifier == self.system_identifier.to_string()
            && facts.block_bytes == self.block_bytes
            && facts.recipients == self.recipients
    }
}

/// An earlier backup, and what of it may be referred to.
#[derive(Debug)]
pub struct Before {
    pub id: BackupId,
    pub fingerprint_key: [u8; 32],
    /// What it needs itself.
    pub packs: Vec<PackInfo>,
    /// Which of these may be referred to.
    usable: Vec<bool>,
    map: BlockMap,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub before: Option<Before>,
    /// Why everything is stored, although there are backups before, in plain words.
    pub note: Option<String>,
}

impl Before {
    /// What may be referred to of a file's blocks from `from` on, `count` at most.
    pub fn held(&self, key: FileKey, from: u64, count: usize) -> Vec<Option<Held>> {
        let read = self.map.read(key, from, count).unwrap_or_else(|error| {
            // Then they are stored.
            tracing::debug!(%error, "what {} holds can't be read", self.id);
            Vec::new()
        });
        let is_usable = |held: &Held| self.usable.get(held.at.pack as usize) == Some(&true);
        read.into_iter().map(|held| held.filter(is_usable)).collect()
    }

    /// Decides which of its packs may be referred to: those that are there, are suspected of nothing, and don't hold more that
    /// nobody needs than what is needed.
    async fn new(
        repository: &Repository,
        id: &BackupId,
        (facts, table, map): (&Facts, PackTable, BlockMap),
        suspects: &BTreeSet<BackupId>,
    ) -> Result<Option<Self>, PhysicalError> {
        let Some(fingerprint_key) = key_of(&facts.fingerprint_key) else {
            return Ok(None);
        };
        let names = table.packs.iter().map(|pack| pack.name_in(id));
        let names: Vec<String> = names.collect();
        let sizes = repository
            .stored_sizes(id, names.iter().map(String::as_str))
            .await?;
        let packs = table.packs.iter().zip(&names).enumerate();
        let usable = packs.map(|(place, (pack, name))| {
            sizes.get(name) == Some(&pack.stored_bytes)
                && !suspects.contains(&pack.owner)
                && !is_given_up(pack.blocks, map.needed(place))
        });
        Ok(Some(Self {
            id: id.clone(),
            fingerprint_key,
            usable: usable.collect(),
            packs: table.packs,
            map,
        }))
    }
}

/// Finds the newest backup whose blocks can be referred to, with what it holds: by the cache, or with the secret key by the backup
/// itself.
///
/// # Errors
/// The store's. That there is none is no error.
pub async fn find(
    repository: &Repository,
    directory: Option<&PathBuf>,
    wanted: &Wanted,
) -> Result<Found, PhysicalError> {
    let entries = repository.backups(BackupKind::Base).await?;
    let there: Vec<BackupEntry> = entries
        .into_iter()
        .filter(|entry| entry.state.is_there())
        .collect();
    if there.is_empty() {
        return Ok(Found::default());
    }
    let suspects = repository.suspects(&there).await;
    let Some(files) = directory.map(|directory| CacheFiles::new(directory, repository)) else {
        return Ok(Found::without("there is no cache_directory"));
    };
    let mut cached = {
        let files = files.clone();
        let opening = tokio::task::spawn_blocking(move || files.open());
        opening.await.map_err(PhysicalError::internal)?
    };
    let access = repository.access();
    let can_read = !access.encryption.is_encrypted() || !access.identities.is_empty();
    let mut suits = can_read;
    for entry in there.iter().rev().take(CANDIDATES_MAX) {
        let id = &entry.id;
        if suspects.contains(id) {
            continue;
        }
        if let Ok(Cached { facts, .. }) = &cached
            && facts.id == id.to_string()
        {
            if !wanted.fits(facts) {
                suits = true;
                continue;
            }
            if is_of_manifest(repository, id, facts).await?
                && let Ok(Cached { facts, table, map }) =
                    std::mem::replace(&mut cached, Err(io::Error::other("it was taken")))
                && let Some(before) = Before::new(repository, id, (&facts, table, map), &suspects).await?
            {
                return Ok(Found::from(before));
            }
        }
        if !can_read {
            continue;
        }
        match read(repository, id, &files, wanted, &suspects).await {
            Ok(Some(before)) => return Ok(Found::from(before)),
            Ok(None) => {}
            // No other one would do better.
            Err(error @ PhysicalError::Io { .. }) => return Ok(Found::without(&error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(match (suits, cached) {
        // None is of this cluster as it is now.
        (true, _) => Found::default(),
        (false, Err(error)) if error.kind() == io::ErrorKind::NotFound => Found::without(&format!(
            "{} isn't there, and without the secret key the backups before can't be read",
            files.path().display()
        )),
        (false, Err(error)) => Found::without(&format!(
            "{} can't be used ({error}), and without the secret key the backups before can't be read",
            files.path().display()
        )),
        (false, Ok(cached)) => Found::without(&format!(
            "{} is of {}, which isn't one of the newest good backups any more",
            files.path().display(),
            cached.facts.id
        )),
    })
}

impl Found {
    /// None, for a reason.
    pub fn without(why: &str) -> Self {
        Self {
            before: None,
            note: Some(format!("everything was stored, and nothing referred to: {why}")),
        }
    }
}

impl From<Before> for Found {
    fn from(before: Before) -> Self {
        Self {
            before: Some(before),
            note: None,
        }
    }
}

/// Whether a cached backup is the one of that name in the repository.
async fn is_of_manifest(
    repository: &Repository,
    id: &BackupId,
    facts: &Facts,
) -> Result<bool, PhysicalError> {
    match repository.checksums(id).await {
        Ok(checksums) => {
            let manifest = checksums
                .iter()
                .find(|checksum| checksum.name == layout::MANIFEST);
            Ok(manifest.is_some_and(|manifest| manifest.hash == facts.manifest_hash))
        }
        Err(error) if error.is_damage() || matches!(error, RepositoryError::Removed { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads what a backup holds out of the repository, if it suits and can be read. An error of a local file is about none of them.
async fn read(
    repository: &Repository,
    id: &BackupId,
    files: &CacheFiles,
    wanted: &Wanted,
    suspects: &BTreeSet<BackupId>,
) -> Result<Option<Before>, PhysicalError> {
    let passed_over = |error: PhysicalError| match &error {
        // It is verify's business to say so.
        _ if error.is_of_one_backup() || error.is_removed() => {
            tracing::debug!(%error, "nothing is referred to of {id}");
            Ok(None)
        }
        _ => Err(error),
    };
    let manifest = match read_manifest(repository, id).await {
        Ok(manifest) => manifest,
        Err(error) => return passed_over(error),
    };
    let facts = facts_of(&manifest, String::new());
    if !wanted.fits(&facts) {
        return Ok(None);
    }
    match read_map(repository, id, &manifest, files).await {
        Ok((table, map)) => Before::new(repository, id, (&facts, table, map), suspects).await,
        Err(error) => passed_over(error),
    }
}

/// What is said of a backup in the cache.
pub fn facts_of(manifest: &BaseManifest, manifest_hash: String) -> Facts {
    Facts {
        id: manifest.id.clone(),
        manifest_hash,
        system_identifier: manifest.system_identifier.clone(),
        block_bytes: manifest.block_bytes,
        fingerprint_key: manifest.fingerprint_key.clone(),
        recipients: manifest.recipients.clone(),
    }
}

/// The fingerprints lie in the packs, the addresses in the records of the files.
async fn read_map(
    repository: &Repository,
    id: &BackupId,
    manifest: &BaseManifest,
    files: &CacheFiles,
) -> Result<(PackTable, BlockMap), PhysicalError> {
    let table = repository.pack_table(id, &manifest.packs).await?;
    let writing = || format!("writing into {}", files.path().display());
    let stored: u64 = table.packs.iter().map(|pack| u64::from(pack.blocks)).sum();
    let scratch = files.scratch(stored * FINGERPRINT_BYTES).context(writing)?;
    let mut fingerprints = Fingerprints::new(scratch, &table.packs);
    let indexes = table.packs.clone().into_iter().zip(0_u32..);
    let indexes = indexes.map(|(pack, place)| {
        let repository = repository.clone();
        async move { (place, repository.pack_index(&pack).await) }
    });
    let mut indexes = futures::stream::iter(indexes).buffer_unordered(INDEXES_AT_ONCE);
    while let Some((place, index)) = indexes.next().await {
        match index.map_err(PhysicalError::from) {
            Ok(index) => fingerprints.add(place, &index).context(writing)?,
            Err(error) if error.is_of_one_backup() || error.is_removed() || error.is_gone() => {
                tracing::debug!(%error, "nothing is referred to of a pack");
            }
            Err(error) => return Err(error),
        }
    }
    drop(indexes);
    let blocks = blocks_of(manifest.totals.plain_bytes, manifest.block_bytes);
    let scratch = files.scratch(BlockMapWriter::bytes_of(blocks)).context(writing)?;
    let mut writer = BlockMapWriter::new(scratch).context(writing)?;
    for object in &manifest.files {
        let contents = repository.file_records(id, object).await?;
        let (block_bytes, name, id) = (manifest.block_bytes, object.name.clone(), manifest.id.clone());
        let adding = tokio::task::spawn_blocking(move || {
            for record in RecordReader::new(&contents, block_bytes) {
                let record = record.map_err(|broken| PhysicalError::Damaged {
                    id: id.clone(),
                    reason: format!("{name}: {broken}"),
                })?;
                add(&mut writer, &fingerprints, &record, block_bytes)
                    .context(|| "writing what a backup holds".to_owned())?;
            }
            Ok::<_, PhysicalError>((writer, fingerprints))
        });
        (writer, fingerprints) = adding.await.map_err(PhysicalError::internal)??;
    }
    Ok((table, writer.finish().context(writing)?))
}

fn add(
    writer: &mut BlockMapWriter,
    fingerprints: &Fingerprints,
    record: &FileRecord,
    block_bytes: u32,
) -> io::Result<()> {
    let RecordContents::File { size, extents, .. } = &record.contents else {
        return Ok(());
    };
    let key = FileKey::of(record.root, &record.path);
    let Some(room) = writer.begin(key, blocks_of(*size, block_bytes))? else {
        return Ok(());
    };
    let mut block = 0;
    for extent in extents {
        if let Extent::Stored { at, blocks } = extent {
            writer.put(room, block, &fingerprints.held(*at, *blocks)?)?;
        }
        block += extent.blocks();
    }
    Ok(())
}

/// The fingerprints of all packs, one pack after another in a file.
struct Fingerprints {
    file: File,
    /// Where each begins, how many there are, and whether they are there.
    packs: Vec<(u64, u32, bool)>,
}

impl Fingerprints {
    fn new(file: File, packs: &[PackInfo]) -> Self {
        let mut next = 0;
        let packs = packs.iter().map(|pack| {
            let first = next;
            next += u64::from(pack.blocks) * FINGERPRINT_BYTES;
            (first, pack.blocks, false)
        });
        Self {
            packs: packs.collect(),
            file,
        }
    }

    fn add(&mut self, place: u32, index: &PackIndex) -> io::Result<()> {
        let Some((first, blocks, there)) = self.packs.get_mut(place as usize) else {
            return Ok(());
        };
        if index.blocks() != *blocks {
            tracing::debug!("a pack hasn't the blocks that the list of packs says");
            return Ok(());
        }
        let fingerprints = index.frames().iter().flat_map(|frame| &frame.fingerprints);
        let bytes: Vec<u8> = fingerprints.flatten().copied().collect();
        self.file.write_all_at(&bytes, *first)?;
        *there = true;
        Ok(())
    }

    /// Of blocks one after another; nothing, where the pack can't be read.
    fn held(&self, at: BlockAddress, blocks: u32) -> io::Result<Vec<Held>> {
        let pack = self.packs.get(at.pack as usize);
        let Some((first, in_pack, true)) = pack else {
            return Ok(Vec::new());
        };
        if at.block.checked_add(blocks).is_none_or(|end| end > *in_pack) {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; blocks as usize * size_of::<Fingerprint>()];
        self.file
            .read_exact_at(&mut bytes, first + u64::from(at.block) * FINGERPRINT_BYTES)?;
        let (fingerprints, _) = bytes.as_chunks();
        Ok(Held::following(at, fingerprints))
    }
}

#[cfg(test)]
impl Before {
    /// With a file's blocks from the first one on, all in one pack.
    pub fn of_blocks(fingerprint_key: [u8; 32], key: FileKey, blocks: &[Fingerprint]) -> Self {
        let mut writer = BlockMapWriter::new(tempfile::tempfile().unwrap()).unwrap();
        let room = writer.begin(key, blocks.len() as u64).unwrap().unwrap();
        let held = blocks.iter().zip(0..).map(|(fingerprint, block)| Held {
            fingerprint: *fingerprint,
            at: BlockAddress { pack: 0, block },
        });
        let held: Vec<Held> = held.collect();
        writer.put(room, 0, &held).unwrap();
        Self {
            id: "b20261122T020000Z-7f3a9c".parse().unwrap(),
            fingerprint_key,
            packs: Vec::new(),
            usable: vec![true],
            map: writer.finish().unwrap(),
        }
    }
}
