//! From the server's archives to pieces: what is stored, what is kept for the manifest, what is passed over.

use std::sync::Arc;

use pgkeep_repository::map::{FileRecord, ROOT_DATA, RecordContents};
use pgkeep_repository::pack::{FRAME_CONTENT_BYTES_MAX, LevelChoice};

use super::blocks::FileKey;
use super::pieces::{Bench, FileHead, Piece, Step};
use super::tar::{Entry, EntryKind, TarEvent};
use crate::error::PhysicalError;
use crate::restore::is_of_a_restore;

/// Files that are kept in memory are never larger, in bytes.
const CAPTURED_BYTES_MAX: usize = 64 << 10;

/// Where the server puts its control file.
pub const CONTROL_FILE: &[u8] = b"global/pg_control";
const BACKUP_LABEL: &[u8] = b"backup_label";
const TABLESPACE_MAP: &[u8] = b"tablespace_map";
/// Without these a server doesn't start; packages of distributions have them elsewhere.
const CONFIGURATION: [&str; 2] = ["postgresql.conf", "pg_hba.conf"];

/// Files that say what the backup is.
#[derive(Debug, Default)]
pub struct Captured {
    pub backup_label: Option<Vec<u8>>,
    pub control_file: Option<Vec<u8>>,
    found: Vec<&'static str>,
}

impl Captured {
    /// A file that lies at the top of the data directory.
    pub fn found(&mut self, name: &[u8]) {
        let known = CONFIGURATION.into_iter().find(|known| name == known.as_bytes());
        self.found.extend(known);
    }

    /// What a server needs and the archives didn't have.
    pub fn missing_configuration(&self) -> Vec<&'static str> {
        let missing = CONFIGURATION
            .into_iter()
            .filter(|name| !self.found.contains(name));
        missing.collect()
    }
}

/// What is done with the entry that is being read.
enum Current {
    None,
    /// `backup_label`: it belongs to the manifest, not to the files.
    Captured(Vec<u8>),
    /// Nobody needs it.
    Skipped,
    Stored(Stored),
}

struct Stored {
    key: FileKey,
    /// Its blocks that are whole so far.
    blocks: u64,
    /// Kept beside: the control file is both.
    copy: Option<Vec<u8>>,
    /// Of its contents, in bytes, how many are still to come.
    left: u64,
    /// How many bytes of a block that isn't whole the buffer ends with.
    in_block: usize,
    levels: Arc<LevelChoice>,
}

/// Makes pieces.
pub struct Collector<'a> {
    bench: &'a Bench,
    block_bytes: usize,
    root: u32,
    piece: Piece,
    current: Current,
    pub captured: Captured,
    pub files: u64,
    pub plain_bytes: u64,
}

impl<'a> Collector<'a> {
    pub fn new(bench: &'a Bench, block_bytes: u32) -> Self {
        Self {
            bench,
            block_bytes: block_bytes as usize,
            root: ROOT_DATA,
            piece: bench.piece(),
            current: Current::None,
            captured: Captured::default(),
            files: 0,
            plain_bytes: 0,
        }
    }

    /// What follows belongs to this directory.
    pub fn set_root(&mut self, root: u32) {
        self.root = root;
    }

    /// Takes what is at the front of `event`; what is left of it has to be given again. Returns a piece that is full.
    pub fn take(&mut self, event: &mut TarEvent<'_>) -> Result<Option<Piece>, PhysicalError> {
        match event {
            TarEvent::Entry(entry) => self.begin(entry),
            TarEvent::Data(bytes) => return self.data(bytes),
            TarEvent::FileEnd => self.end(),
        }?;
        Ok(None)
    }

    fn begin(&mut self, entry: &Entry) -> Result<(), PhysicalError> {
        let is_file = entry.kind == EntryKind::File;
        if self.root == ROOT_DATA {
            self.captured.found(&entry.path);
            if is_of_a_restore(&entry.path) {
                self.current = if is_file { Current::Skipped } else { Current::None };
                return Ok(());
            }
            if is_file && entry.path == BACKUP_LABEL {
                self.current = Current::Captured(Vec::new());
                return Ok(());
            }
            // The manifest has the tablespaces.
            if is_file && entry.path == TABLESPACE_MAP {
                self.current = Current::Skipped;
                return Ok(());
            }
        }
        let contents = match &entry.kind {
            EntryKind::Directory => RecordContents::Directory,
            EntryKind::Link { target } => RecordContents::Link {
                target: target.clone(),
            },
            EntryKind::File => {
                self.begin_file(entry);
                return Ok(());
            }
        };
        self.piece.steps.push(Step::Whole(FileRecord {
            root: self.root,
            path: entry.path.clone(),
            mode: entry.mode,
            contents,
        }));
        Ok(())
    }

    fn begin_file(&mut self, entry: &Entry) {
        let is_control_file = self.root == ROOT_DATA && entry.path == CONTROL_FILE;
        self.files += 1;
        self.plain_bytes += entry.size;
        self.piece.steps.push(Step::Begin(FileHead {
            root: self.root,
            path: entry.path.clone(),
            mode: entry.mode,
            size: entry.size,
            modified_at: entry.modified_at,
        }));
        self.current = Current::Stored(Stored {
            key: FileKey::of(self.root, &entry.path),
            blocks: 0,
            copy: is_control_file.then(Vec::new),
            left: entry.size,
            in_block: 0,
            levels: Arc::default(),
        });
    }

    fn data(&mut self, bytes: &mut &[u8]) -> Result<Option<Piece>, PhysicalError> {
        let stored = match &mut self.current {
            Current::Stored(stored) => stored,
            Current::Skipped => {
                *bytes = &[];
                return Ok(None);
            }
            Current::Captured(contents) => {
                capture(contents, bytes)?;
                *bytes = &[];
                return Ok(None);
            }
            Current::None => return Err(PhysicalError::Archive("data belongs to no file")),
        };
        while !bytes.is_empty() {
            let room = FRAME_CONTENT_BYTES_MAX - self.piece.buffer.len();
            let wanted = stored.wanted(room, self.block_bytes);
            if wanted == 0 {
                return Ok(Some(self.rest()));
            }
            let (now, later) = bytes
                .split_at_checked(wanted.min(bytes.len()))
                .unwrap_or((bytes, &[]));
            *bytes = later;
            self.piece.buffer.extend_from_slice(now);
            match self.piece.steps.last_mut() {
                Some(Step::Blocks(length)) => *length += now.len(),
                _ => self.piece.steps.push(Step::Blocks(now.len())),
            }
            if let Some(copy) = &mut stored.copy {
                capture(copy, now)?;
            }
            stored.blocks += ((stored.in_block + now.len()) / self.block_bytes) as u64;
            stored.in_block = (stored.in_block + now.len()) % self.block_bytes;
            stored.left = stored.left.saturating_sub(now.len() as u64);
        }
        Ok(None)
    }

    fn end(&mut self) -> Result<(), PhysicalError> {
        match std::mem::replace(&mut self.current, Current::None) {
            Current::Stored(stored) => {
                if let Some(copy) = stored.copy {
                    self.captured.control_file = Some(copy);
                }
                self.piece.steps.push(Step::End);
            }
            Current::Captured(contents) => self.captured.backup_label = Some(contents),
            Current::Skipped => {}
            Current::None => return Err(PhysicalError::Archive("a file ends that hasn't begun")),
        }
        Ok(())
    }

    /// Whether nothing but small things waits, which could go on for long without a block: names take memory, too. Never within a
    /// block.
    pub fn is_crowded(&self) -> bool {
        const STEPS_MAX: usize = 20_000;
        let is_in_block = matches!(&self.current, Current::Stored(stored) if stored.in_block > 0);
        self.piece.steps.len() >= STEPS_MAX && !is_in_block
    }

    /// The piece as it is. A file that isn't at its end goes on in the next one.
    pub fn rest(&mut self) -> Piece {
        let next = Piece {
            goes_on: match &self.current {
                Current::Stored(stored) => Some((stored.key, stored.blocks)),
                _ => None,
            },
            levels: match &self.current {
                Current::Stored(stored) if stored.left > FRAME_CONTENT_BYTES_MAX as u64 / 2 => {
                    Some(Arc::clone(&stored.levels))
                }
                _ => None,
            },
            ..self.bench.piece()
        };
        std::mem::replace(&mut self.piece, next)
    }
}

impl Stored {
    /// How many of the next bytes a buffer with so much room takes: a block begins only where it has room as a whole, so that
    /// none lies in two pieces.
    fn wanted(&self, room: usize, block_bytes: usize) -> usize {
        if self.in_block > 0 {
            return block_bytes - self.in_block;
        }
        match usize::try_from(self.left) {
            Ok(left) if left <= room => left,
            _ => room / block_bytes * block_bytes,
        }
    }
}

fn capture(contents: &mut Vec<u8>, bytes: &[u8]) -> Result<(), PhysicalError> {
    if contents.len() + bytes.len() > CAPTURED_BYTES_MAX {
        return Err(PhysicalError::Archive(
            "backup_label or pg_control is larger than any can be",
        ));
    }
    contents.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pieces::Run;
    use super::*;

    const BLOCK: usize = 8192;

    fn file(path: &str, size: usize) -> TarEvent<'static> {
        TarEvent::Entry(Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File,
            mode: 0o600,
            size: size as u64,
            modified_at: 0,
        })
    }

    /// However files are cut on their way, no block lies in two pieces, and all blocks of a file are there.
    #[test]
    fn blocks_are_never_cut() {
        let bench = Bench::new(1, [1; 32], 8192);
        for step in [1, 7, 511, 4096, 8191, 8192, 8193, 100_000, 3 << 20] {
            let mut collector = Collector::new(&bench, 8192);
            let sizes = [
                0,
                1,
                8191,
                8192,
                8193,
                1 << 20,
                (1 << 20) + 5,
                3 * (1 << 20) - 1,
                100,
            ];
            let mut pieces = Vec::new();
            for (number, size) in sizes.into_iter().enumerate() {
                if step < 100 && size > 100_000 {
                    continue;
                }
                let contents = vec![u8::try_from(number).unwrap() + 1; size];
                collector.take(&mut file(&number.to_string(), size)).unwrap();
                for chunk in contents.chunks(step) {
                    let mut event = TarEvent::Data(chunk);
                    while event != TarEvent::Data(&[]) {
                        pieces.extend(collector.take(&mut event).unwrap());
                    }
                }
                collector.take(&mut TarEvent::FileEnd).unwrap();
            }
            pieces.push(collector.rest());
            let mut left = 0;
            for piece in pieces {
                assert!(piece.buffer.len() <= FRAME_CONTENT_BYTES_MAX);
                for step in bench.work(piece).unwrap().steps {
                    match step {
                        Step::Begin(head) => left = head.size.div_ceil(BLOCK as u64),
                        Step::Blocks(runs) => {
                            for run in runs {
                                match run {
                                    Run::Stored(blocks) => left -= u64::from(blocks),
                                    other => panic!("{other:?}"),
                                }
                            }
                        }
                        Step::End => assert_eq!(left, 0),
                        Step::Whole(_) => panic!("only files"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_belongs_to_the_manifest_or_to_a_restore_is_no_file() {
        let bench = Bench::new(1, [1; 32], 8192);
        let mut collector = Collector::new(&bench, 8192);
        for path in [
            "backup_label",
            "pgkeep_wal/000000010000000000000001",
            "pgkeep.restore",
            "global/pg_control",
        ] {
            collector.take(&mut file(path, 3)).unwrap();
            collector.take(&mut TarEvent::Data(b"abc")).unwrap();
            collector.take(&mut TarEvent::FileEnd).unwrap();
        }
        assert_eq!(collector.captured.backup_label.as_deref(), Some(&b"abc"[..]));
        assert_eq!(collector.captured.control_file.as_deref(), Some(&b"abc"[..]));
        assert_eq!((collector.files, collector.rest().buffer.len()), (1, 3));
        assert_eq!(collector.captured.missing_configuration(), CONFIGURATION);
        // In a tablespace these names are anybody's.
        collector.set_root(2);
        collector.take(&mut file("backup_label", 0)).unwrap();
        collector.take(&mut TarEvent::FileEnd).unwrap();
        assert_eq!(collector.files, 2);
    }
}
