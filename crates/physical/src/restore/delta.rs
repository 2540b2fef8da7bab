//! Restoring over what is there: what is already as the backup has it stays and isn't fetched, all else goes.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgkeep_base::quote_for_shell;
use pgkeep_pgformat::ControlFile;
use pgkeep_repository::map::{ROOT_DATA, RecordContents};
use pgkeep_repository::pack::{Fingerprint, PackIndex, fingerprint};

use super::files::{CONTROL_FILE_ASIDE, Write};
use super::place::{Place, sync_directory};
use super::plan::system_identifier;
use super::{AUTO_CONF, BACKUP_LABEL, MARK, STAGING, auto_conf, settings};
use crate::error::{Context, PhysicalError};
use crate::manifest::{BaseManifest, Tablespace};

/// So many bytes of a file are compared at once.
const COMPARE_BYTES: u32 = 256 << 10;
/// `pg_control` is never larger (`PG_CONTROL_FILE_SIZE`), in bytes.
const CONTROL_FILE_BYTES_MAX: u64 = 64 << 10;
/// In a file system's own directory, and in nobody's backup.
const LOST_AND_FOUND: &str = "lost+found";

/// What becomes of what lies in the directories that a restore goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// There must be nothing.
    #[default]
    Refuse,
    /// What a restore left that stopped half-way is gone on with.
    Resume,
    /// The files of the same cluster: what differs from the backup is replaced, what it doesn't have is removed.
    Replace,
}

/// Refuses a data directory that is in use, or isn't of the backup's cluster. Whether anything is there.
pub fn check_data(
    directory: &Path,
    existing: Existing,
    manifest: &BaseManifest,
) -> Result<(), PhysicalError> {
    let shown = directory.display();
    let refused = |message: String, hint: String| Err(PhysicalError::Refused { message, hint });
    let looking = || format!("looking into {shown}");
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => {
            let first = entries.context(looking)?.next();
            if first.transpose().context(looking)?.is_none() {
                return Ok(());
            }
        }
    }
    let lock = directory.join("postmaster.pid");
    if lock.exists() {
        return refused(
            format!("a server runs on {shown}, or was killed: there is a postmaster.pid"),
            format!(
                "stop it: pg_ctl -D {directory} stop; if none runs on this machine or in a container, remove the file: rm {lock}",
                directory = quote_for_shell(&shown.to_string()),
                lock = quote_for_shell(&lock.display().to_string()),
            ),
        );
    }
    if directory.join(MARK).exists() {
        return Ok(());
    }
    if existing == Existing::Resume {
        return refused(
            format!("no restore stopped half-way in {shown}"),
            "write --delta in place of --resume, to replace what is there by the backup".to_owned(),
        );
    }
    let wanted = system_identifier(manifest)?;
    match system_identifier_of(directory)? {
        None => refused(
            format!("{shown} is not the data directory of a server: it has no global/pg_control"),
            "choose a directory that is empty or not there yet, or the one of the server".to_owned(),
        ),
        Some(found) if found != wanted => refused(
            format!(
                "{shown} holds the files of another database cluster: its system identifier is {found}, and that of backup {} \
                 {wanted}",
                manifest.id
            ),
            "choose a directory that is empty or not there yet, or the one of this cluster".to_owned(),
        ),
        Some(_) => Ok(()),
    }
}

fn system_identifier_of(directory: &Path) -> Result<Option<u64>, PhysicalError> {
    let path = directory.join("global/pg_control");
    let reading = || format!("reading {}", path.display());
    let metadata = match fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.context(reading)?,
    };
    if metadata.len() > CONTROL_FILE_BYTES_MAX {
        return Ok(None);
    }
    let contents = fs::read(&path).context(reading)?;
    let control = ControlFile::parse(&contents);
    Ok(control.ok().map(|control| control.system_identifier))
}

/// The line of the mark that has the tablespaces' directories.
const MARK_SPACES: &str = "tablespaces: ";
/// A mark is never longer, in bytes.
const MARK_BYTES_MAX: u64 = 16 << 20;

/// What the mark says: to people, and which directories of tablespaces restores into this directory have made or been given.
pub fn mark_text(id: &str, spaces: &BTreeMap<u32, PathBuf>) -> String {
    let told: BTreeMap<String, String> = spaces
        .iter()
        .filter_map(|(oid, path)| Some((oid.to_string(), path.to_str()?.to_owned())))
        .collect();
    let told = serde_json::to_string(&told).unwrap_or_default();
    format!(
        "pgkeep is restoring {id} into this directory, or stopped half-way: no server may be started here\n{MARK_SPACES}{told}\n"
    )
}

/// The directories of tablespaces in the mark, by OID; none where there is no mark, or one that says nothing of them.
pub fn marked_spaces(directory: &Path) -> BTreeMap<u32, PathBuf> {
    let path = directory.join(MARK);
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MARK_BYTES_MAX) {
        return BTreeMap::new();
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    let told = text.lines().find_map(|line| line.strip_prefix(MARK_SPACES));
    let told: Option<BTreeMap<u32, PathBuf>> = told.and_then(|told| serde_json::from_str(told).ok());
    told.unwrap_or_default()
}

/// Refuses a directory for a tablespace in which something lies, unless it is this data directory's own: an earlier restore
/// into it used it, or the data directory's link leads there and the user says so. The link alone proves nothing: in a copy
/// of a data directory it leads to the original's files.
pub fn check_tablespace(directory: &Path, space: &Tablespace, place: &Path) -> Result<(), PhysicalError> {
    let looking = || format!("looking into {}", place.display());
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.context(looking)?,
    };
    let names = entries.map(|entry| Ok(entry.context(looking)?.file_name()));
    let names: Vec<OsString> = names.collect::<Result<_, PhysicalError>>()?;
    if names.iter().all(|name| name == LOST_AND_FOUND) {
        return Ok(());
    }
    let refused = |message: String| {
        Err(PhysicalError::Refused {
            message,
            hint: format!(
                "give it a directory that is empty or not there yet: --tablespace {}=DIRECTORY",
                space.oid
            ),
        })
    };
    // One for each major version (`GetTablespaceVersionDirectory`).
    let is_tablespace =
        |name: &OsString| name.as_bytes().starts_with(b"PG_") || name == LOST_AND_FOUND || name == MARK;
    if let Some(name) = names.iter().find(|name| !is_tablespace(name)) {
        return refused(format!(
            "the tablespace's directory {} holds more than a tablespace: {}",
            place.display(),
            name.display()
        ));
    }
    let same = |other: &Path| match (fs::canonicalize(other), fs::canonicalize(place)) {
        (Ok(other), Ok(place)) => other == place,
        _ => false,
    };
    let is_marked = marked_spaces(directory)
        .get(&space.oid)
        .is_some_and(|marked| same(marked));
    let link = directory.join("pg_tblspc").join(space.oid.to_string());
    if is_marked || same(&link) {
        return Ok(());
    }
    refused(format!(
        "{} holds files, and isn't where {} has tablespace {}",
        place.display(),
        directory.display(),
        space.oid
    ))
}

/// What is said where nobody told where a tablespace goes whose directory is there.
pub fn where_to(directory: &Path, space: &Tablespace) -> String {
    let oid = space.oid;
    match fs::read_link(directory.join("pg_tblspc").join(oid.to_string())) {
        Ok(place) => format!(
            "its link leads to {place}: write --tablespace {oid}={quoted} if those are this server's own files. If the data directory \
             is a copy, they are the original's, and would be overwritten: then --tablespace {oid}=DIRECTORY, an empty one",
            place = place.display(),
            quoted = quote_for_shell(&place.display().to_string()),
        ),
        Err(_) => format!("say where it goes: --tablespace {oid}=DIRECTORY"),
    }
}

/// Before anything is changed: no server starts here any more, and what an earlier restore had staged and set is gone.
pub fn begin(place: &Place) -> Result<(), PhysicalError> {
    let data = place.data();
    let (control, aside) = (data.join("global/pg_control"), data.join(CONTROL_FILE_ASIDE));
    match fs::rename(&control, &aside) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        renamed => {
            renamed.context(|| format!("renaming {}", control.display()))?;
            sync_directory(&data.join("global"))?;
        }
    }
    remove_file(&data.join(BACKUP_LABEL))?;
    let settings = data.join(AUTO_CONF);
    if let Some(before) = auto_conf(&settings)? {
        let without = settings::with_block(&before, "");
        if without != before {
            place.write(&settings, without.as_bytes())?;
        }
    }
    let staging = data.join(STAGING);
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("removing {}", staging.display())),
    }
}

fn remove_file(path: &Path) -> Result<(), PhysicalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("removing {}", path.display())),
    }
}

/// What a backup has, as far as it takes to tell what it doesn't have: 16 bytes a name.
#[derive(Debug, Default)]
pub struct Known {
    names: HashSet<[u8; 16]>,
    directories: Vec<(u32, Vec<u8>)>,
}

impl Known {
    /// Adds what lies at a path below a root.
    pub fn add(&mut self, root: u32, path: &[u8], contents: &RecordContents) {
        self.names.insert(name_hash(root, path));
        if matches!(contents, RecordContents::Directory) {
            self.directories.push((root, path.to_vec()));
        }
    }

    /// Of a backup with these tablespaces.
    pub fn with(tablespaces: &[Tablespace]) -> Self {
        let mut known = Self::default();
        // Where a tablespace lies is told by a link that no backup has; recovery makes it anew.
        let links = tablespaces.iter().map(|space| format!("pg_tblspc/{}", space.oid));
        let beside = links.chain([CONTROL_FILE_ASIDE.to_owned()]);
        known
            .names
            .extend(beside.map(|name| name_hash(ROOT_DATA, name.as_bytes())));
        known
    }

    /// What lies in the backup's directories and isn't in the backup.
    pub fn strangers(
        &self,
        place: impl Fn(u32, &[u8]) -> Result<PathBuf, PhysicalError>,
    ) -> Result<Vec<PathBuf>, PhysicalError> {
        let mut strangers = Vec::new();
        let data = (ROOT_DATA, Vec::new());
        // Beside a tablespace, those of other versions may lie, and nobody knows whose they are.
        for (root, below) in std::iter::once(&data).chain(&self.directories) {
            let directory = place(*root, below)?;
            let looking = || format!("looking into {}", directory.display());
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.context(looking)?,
            };
            let is_link = fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_symlink());
            for entry in entries {
                let name = entry.context(looking)?.file_name();
                // In a copy of a data directory, the files are the original's.
                if is_link && !below.is_empty() {
                    return Err(leads_elsewhere(&directory));
                }
                let is_kept = below.is_empty() && (name == MARK || name == STAGING || name == LOST_AND_FOUND);
                let mut path = below.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.as_bytes());
                if !is_kept && !self.names.contains(&name_hash(*root, &path)) {
                    strangers.push(directory.join(name));
                }
            }
        }
        Ok(strangers)
    }
}

fn leads_elsewhere(link: &Path) -> PhysicalError {
    let quoted = quote_for_shell(&link.display().to_string());
    PhysicalError::Refused {
        message: format!(
            "{} is a link to another directory, in which something lies; whether that is another server's can't be told",
            link.display()
        ),
        hint: format!(
            "if no other server uses what it leads to, empty it: find {quoted}/ -mindepth 1 -delete; else remove the link: rm {quoted}"
        ),
    }
}

fn name_hash(root: u32, path: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&root.to_le_bytes()).update(path);
    let mut name = [0; 16];
    hasher.finalize_xof().fill(&mut name);
    name
}

/// Removes what the backup doesn't have; a link, but never what it leads to.
pub fn remove(stranger: &Path) -> Result<(), PhysicalError> {
    let removing = || format!("removing {}", stranger.display());
    let is_directory = fs::symlink_metadata(stranger).is_ok_and(|metadata| metadata.is_dir());
    match is_directory {
        true => fs::remove_dir_all(stranger).context(removing),
        false => remove_file(stranger),
    }
}

/// Compares what is there with one pack.
pub struct Comparison<'a> {
    index: &'a PackIndex,
    key: &'a [u8; 32],
    /// Of each block, in the pack's order.
    blocks: Vec<(Fingerprint, u32)>,
}

impl<'a> Comparison<'a> {
    /// With the key of the backup's fingerprints.
    pub fn new(index: &'a PackIndex, key: &'a [u8; 32]) -> Self {
        let block_bytes = index.block_bytes();
        let frames = index.frames().iter();
        let blocks = frames.flat_map(|frame| {
            let ranges = frame.block_ranges(block_bytes);
            let bytes = ranges
                .into_iter()
                .map(|range| u32::try_from(range.len()).unwrap_or(u32::MAX));
            frame.fingerprints.iter().copied().zip(bytes)
        });
        Self {
            key,
            blocks: blocks.collect(),
            index,
        }
    }

    /// Of the writes, those blocks that aren't in their files yet.
    pub fn differing(
        &self,
        writes: &[Write],
        path: impl Fn(u32) -> Result<PathBuf, PhysicalError>,
    ) -> Result<Vec<Write>, PhysicalError> {
        let block_bytes = self.index.block_bytes();
        let step = (COMPARE_BYTES / block_bytes).max(1);
        let mut differing: Vec<Write> = Vec::new();
        let mut open: Option<(u32, File)> = None;
        let mut buffer = Vec::new();
        for write in writes {
            if open.as_ref().is_none_or(|(file, _)| *file != write.file) {
                let path = path(write.file)?;
                let opened = File::open(&path).context(|| format!("opening {}", path.display()))?;
                open = Some((write.file, opened));
            }
            let Some((_, file)) = &open else { continue };
            let mut done = 0;
            while done < write.blocks {
                let count = step.min(write.blocks - done);
                let first = write.first.saturating_add(done);
                let at = write.at + u64::from(done);
                let there = self.read(file, at * u64::from(block_bytes), first, count, &mut buffer)?;
                for (number, is_there) in there.into_iter().enumerate() {
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    if !is_there {
                        add(
                            &mut differing,
                            Write {
                                first: first + number,
                                blocks: 1,
                                file: write.file,
                                at: at + u64::from(number),
                            },
                        );
                    }
                }
                done += count;
            }
        }
        Ok(differing)
    }

    /// For each of some blocks whether it is what the file has.
    fn read(
        &self,
        file: &File,
        at: u64,
        first: u32,
        count: u32,
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<bool>, PhysicalError> {
        let end = first.saturating_add(count) as usize;
        let wanted = self.blocks.get(first as usize..end);
        let wanted = wanted
            .ok_or_else(|| PhysicalError::internal("a file lies in a block that its pack doesn't have"))?;
        let length: usize = wanted.iter().map(|(_, bytes)| *bytes as usize).sum();
        buffer.resize(length, 0);
        let mut read = 0;
        while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(|| "comparing what is there".to_owned()),
            }
        }
        let mut from = 0;
        let there = wanted.iter().map(|(expected, bytes)| {
            let to = from + *bytes as usize;
            let block = buffer.get(from..to).filter(|_| to <= read);
            from = to;
            block.is_some_and(|block| fingerprint(self.key, block) == *expected)
        });
        Ok(there.collect())
    }
}

/// Adds blocks, to the last ones where they follow them.
fn add(writes: &mut Vec<Write>, write: Write) {
    match writes.last_mut() {
        Some(last)
            if last.file == write.file
                && last.first + last.blocks == write.first
                && last.at + u64::from(last.blocks) == write.at =>
        {
            last.blocks += write.blocks;
        }
        _ => writes.push(write),
    }
}

/// Makes a range of a file zeros: a hole, where the file system has any.
pub fn zero(path: &Path, at: u64, bytes: u64) -> Result<(), PhysicalError> {
    use nix::fcntl::{FallocateFlags, fallocate};
    static PIECE: [u8; 64 << 10] = [0; 64 << 10];
    let zeroing = || format!("writing {}", path.display());
    let file = OpenOptions::new().write(true).open(path).context(zeroing)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let range = (i64::try_from(at), i64::try_from(bytes));
    if let (Ok(at), Ok(bytes)) = range
        && fallocate(&file, flags, at, bytes).is_ok()
    {
        return Ok(());
    }
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(PIECE.len() as u64);
        let piece = PIECE
            .get(..usize::try_from(count).unwrap_or(0))
            .unwrap_or_default();
        file.write_all_at(piece, at + done).context(zeroing)?;
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_made_where_they_belong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut expected: Vec<u8> = (0..300_000_u32).map(|number| number as u8 | 1).collect();
        fs::write(&path, &expected).unwrap();
        for (at, bytes) in [(0, 8192), (16_384, 100_000), (299_000, 1000)] {
            zero(&path, at, bytes).unwrap();
            let range = usize::try_from(at).unwrap()..usize::try_from(at + bytes).unwrap();
            expected[range].fill(0);
            assert!(fs::read(&path).unwrap() == expected, "{at}");
        }
    }

    #[test]
    fn a_mark_says_where_tablespaces_are() {
        let folder = tempfile::tempdir().unwrap();
        assert!(marked_spaces(folder.path()).is_empty());
        let spaces = BTreeMap::from([(16384, PathBuf::from("/a \"b\"\nc")), (7, PathBuf::from("/ü"))]);
        fs::write(folder.path().join(MARK), mark_text("b1", &spaces)).unwrap();
        assert_eq!(marked_spaces(folder.path()), spaces);
        fs::write(folder.path().join(MARK), "tablespaces: {\"x\": 1}").unwrap();
        assert!(marked_spaces(folder.path()).is_empty());
    }

    #[test]
    fn what_the_backup_has_is_no_stranger() {
        let folder = tempfile::tempdir().unwrap();
        let place = |root: u32, path: &[u8]| {
            let below = std::ffi::OsStr::from_bytes(path);
            Ok(folder.path().join(root.to_string()).join(below))
        };
        let space = Tablespace {
            oid: 7,
            path: "/somewhere".to_owned(),
        };
        let mut known = Known::with(&[space]);
        let file = || RecordContents::File {
            size: 0,
            modified_at: 0,
            extents: Vec::new(),
        };
        for directory in ["0/base/1", "0/global", "0/pg_tblspc", "2/PG_16_1/5", "2/PG_15_1"] {
            fs::create_dir_all(folder.path().join(directory)).unwrap();
        }
        for name in ["base", "base/1", "global", "pg_tblspc", "missing"] {
            known.add(0, name.as_bytes(), &RecordContents::Directory);
        }
        known.add(0, b"base/1/2", &file());
        known.add(2, b"PG_16_1", &RecordContents::Directory);
        known.add(2, b"PG_16_1/5", &RecordContents::Directory);
        known.add(2, b"PG_16_1/5/6", &file());
        for file in [
            "0/base/1/2",
            "0/global/pg_control.pgkeep",
            "0/pg_tblspc/7",
            "0/pgkeep.restore",
            "2/PG_16_1/5/6",
        ] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert!(known.strangers(place).unwrap().is_empty());
        for file in [
            "0/base/1/6",
            "0/x",
            "0/pg_tblspc/8",
            "0/base/pgkeep.restore",
            "2/PG_16_1/5/2",
        ] {
            fs::write(folder.path().join(file), "").unwrap();
            let found = known.strangers(place).unwrap();
            assert_eq!(found, [folder.path().join(file)]);
            remove(&folder.path().join(file)).unwrap();
        }
    }
}
