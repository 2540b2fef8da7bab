//! The local copy of what the newest backup holds, in `cache_directory`: a host that has only the public key can't read it in the
//! repository. Nothing rests on it: without it, or with a damaged one, a backup stores everything.
//!
//! | in the file | |
//! |---|---|
//! | what [`BlockMapWriter`] wrote | |
//! | files | 16 bytes each, sorted: key, place of its entries |
//! | needed | 4 bytes for each pack |
//! | the list of packs | as in the repository |
//! | [`Facts`] | JSON |
//! | the end | how many bytes the first part has, number of files, number of packs, bytes of the list, bytes of the facts: 8 bytes each; BLAKE3 of all before |

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgkeep_base::ByteCount;
use pgkeep_repository::Repository;
use pgkeep_repository::map::{PACK_TABLE_BYTES_MAX, PackTable};
use pgkeep_store::Disk;
use serde::{Deserialize, Serialize};

use super::blocks::{BlockMap, BlockMapWriter, FileKey, MAGIC};

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const NUMBER_BYTES: usize = 8;
const NUMBERS: usize = 5;
const HASH_BYTES: usize = 32;
const END_BYTES: usize = NUMBERS * NUMBER_BYTES + HASH_BYTES;
/// The facts are never longer, in bytes.
const FACTS_BYTES_MAX: u64 = 64 << 10;
/// All behind the first part, in bytes: a million files, and as many packs as a list names.
const REST_BYTES_MAX: u64 = (64 << 20) + PACK_TABLE_BYTES_MAX as u64;
const READ_BYTES: usize = 256 << 10;

/// Whose blocks they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The backup.
    pub id: String,
    /// BLAKE3 of its manifest as it is stored, in hexadecimal.
    pub manifest_hash: String,
    pub system_identifier: String,
    pub block_bytes: u32,
    /// As in the manifest.
    pub fingerprint_key: String,
    pub recipients: Vec<String>,
}

/// What was kept of a backup.
#[derive(Debug)]
pub struct Cached {
    pub facts: Facts,
    pub table: PackTable,
    pub map: BlockMap,
}

/// Where the files for one cluster of one repository are.
#[derive(Debug, Clone)]
pub struct CacheFiles {
    directory: PathBuf,
    name: String,
}

impl CacheFiles {
    /// In a directory, which may not be there yet.
    pub fn new(directory: &Path, repository: &Repository) -> Self {
        let (marker, cluster) = (&repository.marker().repository, repository.cluster());
        Self {
            directory: directory.to_owned(),
            name: format!("{marker}.{cluster}.blocks"),
        }
    }

    /// What counts.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// What is being written.
    fn path_of_new(&self) -> PathBuf {
        self.directory.join(format!("{}.new", self.name))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut building = DirBuilder::new();
        building
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&self.directory)?;
        // What a killed process left goes, and is written over by nobody.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(FILE_MODE);
        options.open(path)
    }

    /// Refuses what would take more than half of what is free on the disk: it may be the database's.
    fn check_room(&self, bytes: u64) -> io::Result<()> {
        let free = Disk::of(&self.directory).map_or(u64::MAX, |disk| disk.free_bytes);
        if bytes <= free / 2 {
            return Ok(());
        }
        let (bytes, free) = (ByteCount(bytes), ByteCount(free));
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("it would take {bytes}, and {free} are free"),
        ))
    }

    /// An empty file without a name, for so many bytes.
    pub fn scratch(&self, bytes: u64) -> io::Result<File> {
        self.check_room(bytes)?;
        let path = self.directory.join(format!("{}.scratch", self.name));
        let file = self.create(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    /// Begins to write what a backup of so many blocks holds.
    pub fn begin(&self, blocks: u64) -> io::Result<BlockMapWriter> {
        self.check_room(BlockMapWriter::bytes_of(blocks))?;
        BlockMapWriter::new(self.create(&self.path_of_new())?)
    }

    /// Puts what was written in the place of what counts. It isn't made durable: what a crash makes of it has another hash.
    pub fn save(&self, writer: BlockMapWriter, table: &PackTable, facts: &Facts) -> io::Result<()> {
        let map = writer.finish()?;
        let mut rest = Vec::new();
        for (FileKey(key), place) in &map.files {
            rest.extend_from_slice(&key.to_le_bytes());
            rest.extend_from_slice(&place.to_le_bytes());
        }
        (0..table.packs.len()).for_each(|pack| rest.extend_from_slice(&map.needed(pack).to_le_bytes()));
        let packs = table.encode().map_err(io::Error::other)?;
        rest.extend_from_slice(&packs);
        let facts = serde_json::to_vec(facts)?;
        rest.extend_from_slice(&facts);
        let numbers = [
            map.bytes,
            map.files.len() as u64,
            table.packs.len() as u64,
            packs.len() as u64,
            facts.len() as u64,
        ];
        numbers
            .iter()
            .for_each(|number| rest.extend_from_slice(&number.to_le_bytes()));
        map.file.write_all_at(&rest, map.bytes)?;
        let end = map.bytes + rest.len() as u64;
        map.file.write_all_at(hash(&map.file, end)?.as_bytes(), end)?;
        std::fs::rename(self.path_of_new(), self.path())
    }

    /// Gives up what was being written.
    pub fn discard(&self) {
        // Best effort: the next backup writes over it.
        let _ = std::fs::remove_file(self.path_of_new());
    }

    /// What was kept.
    ///
    /// # Errors
    /// There is none, it can't be read, or it isn't what was written.
    pub fn open(&self) -> io::Result<Cached> {
        let damaged = || io::Error::other("it is damaged");
        let file = File::open(self.path())?;
        let size = file.metadata()?.len();
        let end_at = size.checked_sub(END_BYTES as u64).ok_or_else(damaged)?;
        let mut end = [0; END_BYTES];
        file.read_exact_at(&mut end, end_at)?;
        let (numbers, expected) = end.split_at(NUMBERS * NUMBER_BYTES);
        if hash(&file, size - HASH_BYTES as u64)?.as_bytes() != expected {
            return Err(damaged());
        }
        let (numbers, _) = numbers.as_chunks::<NUMBER_BYTES>();
        let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
        let [bytes, files, packs, table_bytes, facts_bytes] = *numbers.as_slice() else {
            return Err(damaged());
        };
        let rest_bytes = end_at.checked_sub(bytes).filter(|rest| *rest <= REST_BYTES_MAX);
        let rest_bytes = rest_bytes.and_then(|rest| usize::try_from(rest).ok());
        let mut rest = vec![0; rest_bytes.ok_or_else(damaged)?];
        file.read_exact_at(&mut rest, bytes)?;
        let mut rest = rest.as_slice();
        let mut part = |count: u64, each: u64| {
            let length = count
                .checked_mul(each)
                .and_then(|length| usize::try_from(length).ok());
            let (part, after) = rest.split_at_checked(length?)?;
            rest = after;
            Some(part)
        };
        let files = part(files, 16).ok_or_else(damaged)?;
        let needed = part(packs, 4).ok_or_else(damaged)?;
        let table = part(table_bytes, 1).ok_or_else(damaged)?;
        let facts = part(facts_bytes.min(FACTS_BYTES_MAX), 1).ok_or_else(damaged)?;
        let number = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        let (files, _) = files.as_chunks::<16>();
        let files = files.iter().filter_map(|file| {
            let (key, place) = (file.first_chunk()?, file.last_chunk()?);
            Some((FileKey(number(key)), number(place)))
        });
        let (needed, _) = needed.as_chunks::<4>();
        Ok(Cached {
            facts: serde_json::from_slice(facts)?,
            table: PackTable::parse(table).map_err(io::Error::other)?,
            map: BlockMap {
                bytes,
                files: files.collect(),
                needed: needed.iter().map(|number| u32::from_le_bytes(*number)).collect(),
                file,
            },
        })
    }
}

/// Of a file's first bytes.
fn hash(file: &File, bytes: u64) -> io::Result<blake3::Hash> {
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0)?;
    if magic != *MAGIC {
        return Err(io::Error::other(
            "it is no list of blocks that this version reads",
        ));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < bytes {
        let count = usize::try_from(bytes - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        let part = buffer.get_mut(..count).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += count as u64;
    }
    Ok(hasher.finalize())
}
